"""One executor of one rank and of several: the shapes of Llama-3.1-8B and 70B, beside vLLM where that is there.

    python examples/ranks.py --out results                          # 8B on one rank and on two, 70B on two
    python examples/ranks.py --models 8b --ranks 2,1 --rows 1,32 --seconds 400
    python examples/ranks.py --models 8b,70b --vllm 8b              # vLLM's 70B takes minutes to start
    python examples/ranks.py --models 8b --quantization fp8 --adapter

Weights are random and made on the devices. For each model and number of ranks one service runs 1, 32 and 256 rows,
of 128 tokens of prompt and ``--new`` tokens of answer; then its last rank is killed. Where vLLM is on the path
(``VLLM_PATH`` names further folders), it runs the same. Each is a process of its own, which is ended with all that it
has started after ``--limit`` seconds: what it had until then counts, and what went wrong is told in its place.

Each finding is printed as a line of JSON when its process has ended, and a table at the end: what all rows together
took, a step at the median, how much faster that is than on one rank and than vLLM's, and the utilisation of each rank's
device by its own records. All lines are also in ``results/ranks.jsonl``; ``timeline-MODEL-RANKS-ROWS.svg`` shows a few
steps of all ranks. ``--smoke`` is the same with a toy model on a CPU. A model whose weights do not fit is left out, and
the output says so.

    python examples/ranks.py --sums --ranks 2                       # half a minute

times only what the ranks do together, over the memory of each other's GPUs and through NCCL (`rank_sums.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h200
import rank_rows
import serving
import vllm_rows

Row = dict[str, Any]

LLAMA_70B = h200.LLAMA_8B | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}
MODELS = {"8b": h200.LLAMA_8B, "70b": LLAMA_70B}
MIN_RANKS = {"8b": 1, "70b": 2}
"""On devices of 139 GiB: the weights of the 70B model are 131."""

MIN_S = 60.0
"""Nothing is begun that could not take as long."""

ROW = "ROW "
"""What a process prints before each row."""


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def models(text: str) -> list[str]:
    found = [part for part in text.split(",") if part]
    if unknown := set(found) - MODELS.keys():
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is none of {', '.join(MODELS)}")
    return found


# --- the processes ------------------------------------------------------------------------------------


def command_of(engine: str, model: str, ranks: int, lab: h200.Lab) -> tuple[list[str], dict[str, str]]:
    """The command line and the environment of what measures one case."""
    found, here = lab.found, Path(__file__)
    if engine == "slipstream":
        case = f"{model}:{ranks}"
        return [sys.executable, str(here), *sys.argv[1:], "--case", case], dict(os.environ)
    folder, adapter = folders(lab, model)
    asked = {
        "folder": str(folder),
        "ranks": ranks,
        "rows": found.rows,
        "prompts": h200.prompts(max(found.rows), rank_rows.PROMPT),
        "new": found.new,
        "quantization": found.quantization,
        "adapter": adapter and str(adapter),
        "adapter_rank": rank_rows.ADAPTER_RANK,
    }
    path = [*serving.vllm_path(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = os.environ | vllm_rows.WITHOUT_MULTICAST | vllm_rows.QUIET
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    file = lab.out / f"{engine}-{model}-{ranks}.json"
    file.write_text(json.dumps(asked))  # too long for a command line
    return [sys.executable, str(here.with_name("vllm_rows.py")), str(file)], environment


def folders(lab: h200.Lab, model: str) -> tuple[Path, Path | None]:
    """Those of a model, and of the adapter that is wanted."""
    folder = lab.folder(model, MODELS[model])
    if not lab.found.adapter:
        return folder, None
    config = json.loads((folder / "config.json").read_text())
    return folder, rank_rows.write_adapter(folder / "adapter", config)


def rows_of(engine: str, model: str, ranks: int, lab: h200.Lab) -> list[Row]:
    """What one process finds; what goes wrong is a row with ``error``."""
    limit = min(lab.found.limit, lab.left())
    if limit < MIN_S:
        return [{"error": f"not begun: {limit:.0f} s are left"}]
    log = lab.out / f"{engine}-{model}-{ranks}.log"
    with log.open("wb") as file:
        command, environment = command_of(engine, model, ranks, lab)
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    wrong = ""
    try:
        status = process.wait(limit)
        if status:
            wrong = f"ended with {status}: {serving.tail(log)}"
    except subprocess.TimeoutExpired:
        wrong = f"not done after {limit:.0f} s: {serving.tail(log)}"
    finally:
        serving.end(process)
    lines = log.read_text(errors="replace").splitlines()
    if engine == "slipstream":
        print("\n".join(line for line in lines if not line.startswith(ROW)), flush=True)
    found = [json.loads(line.removeprefix(ROW)) for line in lines if line.startswith(ROW)]
    return [*found, {"error": wrong}] if wrong else found


def one_case(lab: h200.Lab, model: str, ranks: int) -> None:
    """In a process of its own."""
    found = lab.found
    folder, adapter = folders(lab, model)
    for row in rank_rows.measure(
        lab, model, folder, ranks, found.rows, found.new, found.quantization, adapter
    ):
        print(ROW + json.dumps(row), flush=True)


# --- all of it ----------------------------------------------------------------------------------------


def cases(found: argparse.Namespace) -> list[tuple[str, str, int]]:
    """Engines, models and numbers of ranks, without those that cannot be."""
    fitting: list[tuple[str, int]] = []
    for model in found.models:
        for ranks in found.ranks:
            if found.smoke or ranks >= MIN_RANKS[model]:
                fitting.append((model, ranks))
            else:
                print(f"{model} on {ranks}: not run, its weights do not fit", flush=True)
    beside = found.models if found.vllm is None else found.vllm
    vllm = [case for case in fitting if case[0] in beside] if serving.vllm_found() else []
    return [("slipstream", *case) for case in fitting] + [("vllm", *case) for case in vllm]


def table(rows: list[Row]) -> str:
    """A line for each model, number of ranks and of rows, and then what went wrong."""
    found = {(r["engine"], r["model"], r["ranks"], r["rows"]): r for r in rows if "rows" in r}

    def times(row: Row, other: Row | None) -> str:
        """How many times as many tokens in a time, and how much shorter a step is."""
        if other is None:
            return f"{'-':>6} {'-':>6}"
        return f"{row['tokens_per_s'] / other['tokens_per_s']:6.2f} {other['step_ms'] / row['step_ms']:6.2f}"

    lines = [
        "                               times one rank     vLLM               times vLLM",
        "model ranks rows tokens/s step ms  tokens   step  tokens/s step ms  tokens   step  busy, rank by rank",
    ]
    for (engine, model, ranks, count), row in found.items():
        if engine != "slipstream":
            continue
        theirs = found.get(("vllm", model, ranks, count))
        alone = None if ranks == 1 else found.get((engine, model, 1, count))
        beside = (
            f"{'-':>8} {'-':>7}"
            if theirs is None
            else f"{theirs['tokens_per_s']:8.0f} {theirs['step_ms']:7.3f}"
        )
        busy = "  ".join(f"{row[name]:.1%}" for name in row if name.startswith("utilization_"))
        lines.append(
            f"{model:5} {ranks:5} {count:4} {row['tokens_per_s']:8.0f} {row['step_ms']:7.3f}  {times(row, alone)}"
            f"  {beside}  {times(row, theirs)}  {busy}"
        )
    for row in rows:
        about = f"{row['engine']}, {row['model']} on {row['ranks']}"
        if "error" in row:
            lines.append(f"{about}: {row['error'].strip().splitlines()[-1]}")
        elif "rows" not in row:
            lines += [f"{about}: {name} {row[name]}" for name in ("ready_s", "recovered_s") if name in row]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", type=models, default="8b,70b")
    parser.add_argument(
        "--vllm", type=models, help="those of the models that vLLM runs too (default all; '': none)"
    )
    parser.add_argument("--ranks", type=numbers, default="1,2")
    parser.add_argument("--rows", type=numbers, default="1,32,256")
    parser.add_argument("--new", type=int, default=256, help="tokens of each answer")
    parser.add_argument("--quantization", choices=("fp8", "int8"))
    parser.add_argument(
        "--adapter", action="store_true", help="all rows have an adapter, on every projection"
    )
    parser.add_argument("--limit", type=float, default=240.0, help="seconds that one service may take")
    parser.add_argument("--seconds", type=float, default=560.0, help="what is left undone then is not begun")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--sums", action="store_true", help="time only what ranks do together")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    found = parser.parse_args()
    if found.sums:
        import rank_sums

        for ranks in found.ranks:
            if ranks > 1:
                print(rank_sums.table(ranks), flush=True)
        return
    lab = h200.Lab(found)
    if found.case is not None:
        model, _, ranks = found.case.partition(":")
        one_case(lab, model, int(ranks))
        return
    results: list[Row] = []
    with (lab.out / "ranks.jsonl").open("w") as file:
        for engine, model, ranks in cases(found):
            begun = time.monotonic()
            try:
                rows = rows_of(engine, model, ranks, lab)
            except OSError as error:  # the others go on
                rows = [{"error": f"{type(error).__name__}: {error}"}]
            for row in rows:
                results.append({"engine": engine, "model": model, "ranks": ranks} | row)
                print(json.dumps(results[-1]), flush=True)
                file.write(json.dumps(results[-1]) + "\n")
            file.flush()
            print(f"{engine}, {model} on {ranks}: {time.monotonic() - begun:.0f} s", flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
