"""One executor of one rank and of two: the shapes of Llama-3.1-8B and 70B on two GPUs, beside vLLM where that is there.

    python examples/ranks.py --out results                          # 8B on one rank and on two, 70B on two
    python examples/ranks.py --models 8b --ranks 1,2 --rows 1,32 --seconds 400

Weights are random and made on the devices. For each model and number of ranks one service runs 1, 32 and 256 rows,
of 128 tokens of prompt and ``--new`` tokens of answer. A row of the table has what all together took, a step at the
median, the utilisation of each rank's device by its own records, and how much faster that is than one rank. A picture
of a few steps in text shows what the actors do. Everything is also in ``results/ranks.json``. Where vLLM is on the
path (``VLLM_PATH`` names further folders), it runs the same afterwards, in a process of its own. ``--smoke`` is the
same with a toy model on a CPU. A model whose weights do not fit on these devices is left out, and the output says so.

    python examples/ranks.py --sums --ranks 2                       # half a minute

times only what the ranks do together, over the memory of each other's GPUs and through NCCL (`rank_sums.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h200
import serving
from slipstream.protocol.trace import Span

from slipstream import Client, Sidecar
from slipstream.observe.timeline import as_text, utilization

Row = dict[str, Any]

LLAMA_70B = h200.LLAMA_8B | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}
MODELS = {"8b": h200.LLAMA_8B, "70b": LLAMA_70B}
LEAST_RANKS = {"8b": 1, "70b": 2}
"""On devices of 139 GiB: the weights of the 70B model are 131."""

PROMPT = 128
PATIENCE_S = 60.0
"""For all graphs and a spare executor to be there."""


def measure(lab: h200.Lab, model: str, ranks: int, rows: list[int], new: int) -> list[Row]:
    """One service, with each number of rows."""
    folder = lab.folder(model, MODELS[model])
    found: list[Row] = []
    begun = time.perf_counter()
    with (
        lab.service(folder, max(rows), PROMPT + new + 8, 2, tensor_parallel_size=ranks) as sidecar,
        sidecar.client() as client,
    ):
        print(
            f"{model} on {ranks}: started in {time.perf_counter() - begun:.1f} s\n{sidecar.log}", flush=True
        )
        wait_for_all(sidecar)
        for count in rows:
            found.append({"what": "slipstream", "model": model, "ranks": ranks, "rows": count})
            found[-1] |= run(client, ranks, count, new)
            print(json.dumps(found[-1]), flush=True)
        recovery(sidecar, client, ranks)
    return found


def wait_for_all(sidecar: Sidecar) -> None:
    """Until all graphs are captured, and the spare executor can be forked."""
    end = time.monotonic() + PATIENCE_S
    while True:
        actors = sidecar.actors
        spares = [actor for actor in actors.values() if actor["role"] == "spare"]
        captured = actors["executor"].get("full_speed_s") is not None
        if captured and all(each["state"] == "ready" for each in spares):
            return
        if time.monotonic() > end:
            raise TimeoutError(f"not all is there after {PATIENCE_S:g} s\n{sidecar.log}")
        time.sleep(0.1)


def run(client: Client, ranks: int, rows: int, new: int) -> Row:
    measured = h200.run_rows(client, rows, PROMPT, new)
    steps = {span.step for span in map(Span._make, measured["tracks"]["compute"])}
    busy = {}
    for rank in range(ranks):
        track = "compute" if rank == 0 else f"compute.{rank}"
        spans = [span for span in measured["tracks"].get(track, []) if span[1] in steps]
        busy[f"utilization_{rank}"] = round(utilization(spans), 5)
        busy[f"step_ms_{rank}"] = round(statistics.median((s[3] - s[2]) * 1e-6 for s in spans), 3)
    last = max(steps)
    print(as_text(measured["tracks"], last - 4, last - 1), flush=True)
    kept = {name: measured[name] for name in ("seconds", "tokens_per_s", "step_ms")}
    return kept | busy


def recovery(sidecar: Sidecar, client: Client, ranks: int) -> None:
    """Kill the last rank while nothing runs, and see how long it takes until an answer comes again."""
    if ranks == 1:
        return
    os.kill(sidecar.pids[f"executor.{ranks - 1}"], 9)
    begun = time.perf_counter()
    h200.run_rows(client, 1, 8, 16)
    print(f"an answer {time.perf_counter() - begun:.1f} s after the last rank was killed", flush=True)
    print("\n".join(sidecar.log.splitlines()[-ranks:]), flush=True)


# --- vLLM ---------------------------------------------------------------------------------------------

WITHOUT_MULTICAST = {"NCCL_NVLS_ENABLE": "0", "VLLM_ALLREDUCE_USE_SYMM_MEM": "0"}
"""Rented machines have the multicast of their links off, and what tries it fails when it starts."""

VLLM = """
import json, sys, time
from vllm import LLM, SamplingParams
folder, ranks, rows, prompt, new = sys.argv[1], *map(json.loads, sys.argv[2:])
llm = LLM(folder, load_format="dummy", tensor_parallel_size=ranks, skip_tokenizer_init=True, max_num_seqs=max(rows),
          max_model_len=prompt + new + 8, enable_prefix_caching=False, gpu_memory_utilization=0.9)
for count in rows:
    asked = [{"prompt_token_ids": [5 + (r * 7919 + p * 104729) % 1995 for p in range(prompt)]} for r in range(count)]
    def run(tokens):
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        begun = time.perf_counter()
        llm.generate(asked, params, use_tqdm=False)
        return time.perf_counter() - begun
    run(8)
    seconds = run(new)
    found = {"rows": count, "seconds": round(seconds, 2), "tokens_per_s": round(count * new / seconds, 1)}
    print("ROW", json.dumps(found))
"""


def vllm(lab: h200.Lab, model: str, ranks: int, rows: list[int], new: int) -> list[Row]:
    folder = lab.folder(model, MODELS[model])
    path = [*serving.vllm_path(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    done = subprocess.run(
        [sys.executable, "-c", VLLM, str(folder), *map(json.dumps, (ranks, rows, PROMPT, new))],
        capture_output=True,
        text=True,
        timeout=max(60.0, lab.left()),
        env=os.environ | WITHOUT_MULTICAST | {"PYTHONPATH": os.pathsep.join(filter(None, path))},
    )
    (lab.out / f"vllm-{model}-{ranks}.log").write_text(done.stdout + done.stderr)
    found = [json.loads(line[4:]) for line in done.stdout.splitlines() if line.startswith("ROW ")]
    if not found:
        print(done.stderr[-3000:], flush=True)
    return [{"what": "vllm", "model": model, "ranks": ranks} | row for row in found]


# --- all of it ----------------------------------------------------------------------------------------


def cases(found: argparse.Namespace) -> list[tuple[str, int]]:
    """Models and numbers of ranks, without those that cannot be."""
    wanted = [(model, int(ranks)) for model in found.models.split(",") for ranks in found.ranks.split(",")]
    fitting = [case for case in wanted if found.smoke or case[1] >= LEAST_RANKS[case[0]]]
    for model, ranks in wanted:
        if (model, ranks) not in fitting:
            print(f"{model} on {ranks}: not run, its weights do not fit", flush=True)
    return fitting


def table(rows: list[Row]) -> str:
    alone = {
        (row["what"], row["model"], row["rows"]): row["seconds"]
        for row in rows
        if row.get("ranks") == 1 and "seconds" in row
    }
    lines = ["what        model ranks  rows  tokens/s  step ms  times one rank   busy, rank by rank"]
    for row in rows:
        if "seconds" not in row:
            lines.append(f"{row['what']:11} {row['model']:5} {row['ranks']:5}  {row['error']}")
            continue
        before = alone.get((row["what"], row["model"], row["rows"]))
        times = "-" if before is None else f"{before / row['seconds']:.2f}"
        busy = "  ".join(f"{row[name]:.1%}" for name in row if name.startswith("utilization_"))
        lines.append(
            f"{row['what']:11} {row['model']:5} {row['ranks']:5} {row['rows']:5} {row['tokens_per_s']:9.1f}"
            f" {row.get('step_ms', 0):8.3f} {times:>15}   {busy}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", default="8b,70b")
    parser.add_argument("--ranks", default="1,2")
    parser.add_argument("--rows", default="1,32,256")
    parser.add_argument("--new", type=int, default=256, help="tokens of each answer")
    parser.add_argument("--seconds", type=float, default=560.0, help="what is left undone then is not begun")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument(
        "--sums", action="store_true", help="time only what ranks do together, for each number of --ranks"
    )
    found = parser.parse_args()
    if found.sums:
        import rank_sums

        for ranks in map(int, found.ranks.split(",")):
            if ranks > 1:
                print(rank_sums.table(ranks), flush=True)
        return
    lab = h200.Lab(found)
    rows = [int(count) for count in found.rows.split(",")]
    engines = [measure, *([vllm] if serving.vllm_found() and not found.smoke else [])]
    results: list[Row] = []
    for engine in engines:
        for model, ranks in cases(found):
            try:
                if lab.left() < 60:
                    raise TimeoutError("no time left")
                results += engine(lab, model, ranks, rows, found.new)
            except Exception as error:
                said = f"{type(error).__name__}: {error}"[-2000:]
                results.append({"what": engine.__name__, "model": model, "ranks": ranks, "error": said})
                print(said, flush=True)
            (lab.out / "ranks.json").write_text(json.dumps(results, indent=1))
    print(table(results))


if __name__ == "__main__":
    main()
