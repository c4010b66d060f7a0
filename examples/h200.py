"""Everything that needs a GPU, in one script: correctness, the published workload, small models, servers under load.

    python examples/h200.py --parts correct,published,peers,small --out results
    python examples/h200.py --parts serving --models 8b,1.5b,0.5b
    python examples/h200.py --parts vllm --models 8b --loads b1,rate10,rate25,burst

The models have random weights, made on the device (``load_format="dummy"``), so nothing is downloaded:
the 8B one has the shape of Llama-3.1-8B, the others those of Qwen2.5-0.5B and 1.5B. Each part prints
its rows as it goes and a table last, and writes ``results/<part>.json``. ``--smoke`` is the same on
a CPU with toy models, to see that the script works. ``serving`` puts the loads of ``serving.py`` on our server,
``vllm`` on vLLM's and then ours; ``VLLM_PATH`` names folders to find vLLM in that are not on the path.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import serving as loads

import slipstream
from slipstream import Client, SamplingParams, Sidecar
from slipstream.observe.picture import as_text, utilization

Row = dict[str, Any]

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 16384,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "rms_norm_eps": 1e-5,
    "eos_token_id": 2,
    "dtype": "bfloat16",
}
QWEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 151936,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
    "dtype": "bfloat16",
}
QWEN_05B = QWEN | {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}
QWEN_15B = QWEN | {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
}
TOY = LLAMA_8B | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 2048,
    "max_position_embeddings": 1024,
    "dtype": "float32",
}


MODELS = {"8b": LLAMA_8B, "1.5b": QWEN_15B, "0.5b": QWEN_05B}


class Lab:
    """Where and how things are measured."""

    def __init__(self, found: argparse.Namespace) -> None:
        self.found = found
        self.out: Path = found.out
        self.smoke: bool = found.smoke
        self.device = "cpu" if self.smoke else "cuda"
        self.end = time.monotonic() + found.seconds
        self.out.mkdir(parents=True, exist_ok=True)

    def left(self) -> float:
        return self.end - time.monotonic()

    def folder(self, name: str, config: Row) -> Path:
        """A model folder without weights: configuration and the bundled tokenizer."""
        folder = self.out / "models" / name
        folder.mkdir(parents=True, exist_ok=True)
        bundled = Path(slipstream.__file__).resolve().parent / "model"
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(bundled / file, folder)
        (folder / "config.json").write_text(json.dumps(TOY if self.smoke else config))
        return folder

    def folder_to_serve(self, name: str) -> Path:
        """The same with a tokenizer as large as the vocabulary, for servers that show every token."""
        folder = self.folder(name, MODELS[name])
        loads.write_tokenizer(folder, (TOY if self.smoke else MODELS[name])["vocab_size"])
        return folder

    def service(self, folder: Path | None, rows: int, length: int, depth: int, **options: Any) -> Sidecar:
        settings: Row = {"max_num_seqs": rows, "max_num_batched_tokens": 4096, "pipeline_depth": depth}
        settings |= {"device": self.device, "enable_prefix_caching": False, "max_model_len": length}
        if folder is not None:
            settings["load_format"] = "dummy"
        return Sidecar(folder, **(settings | options))


def prompts(rows: int, tokens: int, vocab: int = 2000) -> list[list[int]]:
    return [
        [5 + (row * 7919 + place * 104729) % (vocab - 5) for place in range(tokens)] for row in range(rows)
    ]


def run_rows(client: Client, rows: int, prompt: int, new: int, adapter: str = "") -> Row:
    """All rows at once, greedy, to the last token; the device's own records of the steps in between."""
    params = SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True, adapter=adapter)
    client.generate_many(prompts(rows, prompt), msgspec.structs.replace(params, max_tokens=8))
    before = client.stats()["steps"]
    begun = time.perf_counter()
    outputs = client.generate_many(prompts(rows, prompt), params)
    seconds = time.perf_counter() - begun
    tracks = client.trace().tracks
    compute = [span for span in tracks["compute"] if span[1] >= before]
    tracks["compute"] = compute[8:-1] or compute
    durations = [(end - start) * 1e-6 for _, _, start, end in tracks["compute"]]
    return {
        "seconds": round(seconds, 2),
        "tokens_per_s": round(rows * new / seconds, 1),
        "step_ms": round(statistics.median(durations), 3),
        "last_step_ms": round(statistics.median(durations[-20:]), 3),
        "device_utilization": round(utilization(tracks["compute"]), 5),
        "tokens": [output.outputs[0].token_ids for output in outputs],
        "tracks": tracks,
    }


# --- correctness --------------------------------------------------------------------------------------


def correct(lab: Lab) -> list[Row]:
    """One service per mode on the bundled model in float32: all give the tokens of transformers' generate."""
    import torch
    from transformers import AutoModelForCausalLM

    where = torch.device(lab.device)
    bundled = Path(slipstream.__file__).resolve().parent / "model"
    loaded: Any = AutoModelForCausalLM.from_pretrained(bundled, dtype=torch.float32)
    model = loaded.to(where)
    asked = prompts(8, 40)
    expected = []
    for prompt in asked:
        ids = torch.tensor([prompt], device=where)
        answer = model.generate(ids, max_new_tokens=64, do_sample=False, eos_token_id=-1, pad_token_id=0)
        expected.append(answer[0, len(prompt) :].tolist())
    rows: list[Row] = []
    sampled: list[Any] = []
    modes: list[Row] = [{"pipeline_depth": 2}, {"pipeline_depth": 1}]
    if not lab.smoke:
        modes = [mode | {"cuda_graphs": graphs} for mode in modes for graphs in ("start", "off")]
        modes.append({"pipeline_depth": 2, "attention_backend": "torch", "cuda_graphs": "off"})
        modes.append({"pipeline_depth": 2, "cuda_graphs": "lazy"})
    for mode in modes:
        with lab.service(None, 16, 512, 2, dtype="float32", **mode) as sidecar, sidecar.client() as client:
            greedy = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)
            got = [output.outputs[0].token_ids for output in client.generate_many(asked, greedy)]
            warm = SamplingParams(temperature=0.8, top_p=0.9, max_tokens=64, seed=5)
            sampled.append([output.outputs[0].token_ids for output in client.generate_many(asked, warm)])
            same = sum(a == b for a, b in zip(got, expected, strict=True))
            equal = {
                "equal_to_generate": f"{same}/{len(asked)}",
                "sampled_as_first": sampled[-1] == sampled[0],
            }
            rows.append(mode | equal | beside_grammars(client, asked, expected))
            print(rows[-1], flush=True)
            if len(rows) == len(modes):
                rows.append({"memory_freed_after_kill_s": kill_frees(sidecar)})
                print(rows[-1], flush=True)
    return rows


def beside_grammars(client: Client, asked: list[list[int]], expected: list[list[int]]) -> Row:
    """Every other prompt follows a regular expression: it does, and its neighbours' tokens are as they were."""
    plain = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)
    pattern = r"[0-9]{3}-[a-z]{4}( (yes|no)){3}"
    bound = SamplingParams(temperature=1.0, max_tokens=64, regex=pattern, seed=3)
    outputs = client.generate_many(asked, [bound, plain] * (len(asked) // 2))
    followed = sum(re.fullmatch(pattern, output.outputs[0].text) is not None for output in outputs[::2])
    pairs = zip(outputs[1::2], expected[1::2], strict=True)
    same = sum(output.outputs[0].token_ids == tokens for output, tokens in pairs)
    half = len(asked) // 2
    return {"followed_regex": f"{followed}/{half}", "equal_beside_it": f"{same}/{half}"}


def kill_frees(sidecar: Sidecar) -> float:
    """Seconds until no process of the service is left after SIGKILL of its supervisor."""
    pids = list(sidecar.pids.values())
    begun = time.monotonic()
    os.kill(sidecar.pid, 9)
    while any(alive(pid) for pid in pids) and time.monotonic() - begun < 10:
        time.sleep(0.005)
    return round(time.monotonic() - begun, 3)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- the published workload ---------------------------------------------------------------------------


def published(lab: Lab) -> list[Row]:
    """8B, 32 rows, at depth 2 and 1, and the limit by memory traffic."""
    rows_, prompt = (8, 16) if lab.smoke else (32, 128)
    long = 64 if lab.smoke else 8192
    short = 64 if lab.smoke else 1024
    length = prompt + long + 8
    folder = lab.folder("8b", LLAMA_8B)
    bandwidth = None if lab.smoke else measured_bandwidth()
    rows: list[Row] = [{"what": "device copy bandwidth, TB/s", "value": bandwidth}]
    ours = (
        ("slipstream, depth 2", 2, long),
        ("slipstream, depth 1", 1, short),
    )
    for name, depth, new in ours:
        try:
            with (
                lab.service(folder, rows_, length, depth) as sidecar,
                sidecar.client() as client,
            ):
                print(sidecar.log, flush=True)
                measured = run_rows(client, rows_, prompt, new)
            tracks = measured.pop("tracks")
            measured.pop("tokens")
            if new == long:
                save_timeline(lab, tracks)
            limit = traffic_ms(bandwidth, rows_, prompt + new / 2) if bandwidth else None
            mean_step = 1000 * measured["seconds"] / new
            measured |= {"mean_ms_per_step": round(mean_step, 3), "limit_ms": limit}
            rows.append({"what": name, "new_tokens": new} | measured)
        except Exception as error:
            rows.append({"what": name, "error": f"{type(error).__name__}: {error}"[:2000]})
        print(rows[-1], flush=True)
    return rows


def peers(lab: Lab) -> list[Row]:
    """The same workload, shorter, by transformers' continuous batching and by ours, at the same context."""
    batch, prompt, new = (8, 16, 32) if lab.smoke else (32, 128, 512)
    folder = lab.folder("8b", LLAMA_8B)
    rows: list[Row] = []
    with lab.service(folder, batch, prompt + new + 8, 2) as sidecar, sidecar.client() as client:
        measured = run_rows(client, batch, prompt, new)
    del measured["tracks"], measured["tokens"]
    rows.append({"what": "slipstream, depth 2", "new_tokens": new} | measured)
    print(rows[-1], flush=True)
    for asynchronous in (True, False):
        if lab.left() < 60:
            rows.append({"what": "transformers", "error": "no time left"})
            continue
        rows.append(apart(lab, folder, batch, prompt, new, asynchronous))
        print(rows[-1], flush=True)
    return rows


def traffic_ms(bandwidth: float, rows: int, context: float) -> float:
    """Milliseconds to read the weights of the 8B model once and the cache of ``rows`` at ``context`` tokens."""
    weights = 2 * 7.5e9  # without the embedding, of which a step reads a few rows
    cache = rows * context * 32 * 2 * 8 * 128 * 2
    return round((weights + cache) / (bandwidth * 1e12) * 1000, 3)


def measured_bandwidth() -> float:
    """TB/s read and written by a copy on the device."""
    import torch

    source = torch.empty(2 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(12):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    del source, target
    torch.cuda.empty_cache()
    return round(2 * (2 << 30) / statistics.median(times) / 1e9, 3)


def apart(lab: Lab, folder: Path, rows: int, prompt: int, new: int, asynchronous: bool) -> Row:
    """transformers in a process of its own, so that its memory is free again afterwards."""
    arguments = [str(folder), str(rows), str(prompt), str(new), str(int(asynchronous)), lab.device]
    name = f"transformers, {'asynchronous' if asynchronous else 'synchronous'}"
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--peer", *arguments],
            capture_output=True,
            text=True,
            timeout=max(30.0, lab.left() - 10),
        )
    except subprocess.TimeoutExpired:
        return {"what": name, "error": "out of time"}
    if done.returncode:
        return {"what": name, "error": done.stderr[-1500:]}
    return {"what": name, "new_tokens": new} | json.loads(done.stdout.splitlines()[-1])


def peer(folder: str, rows: int, prompt: int, new: int, asynchronous: bool, device: str) -> None:
    """transformers' continuous batching with the best attention that it has offline; prints one JSON line."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    config = AutoConfig.from_pretrained(folder)
    on_gpu = device == "cuda"
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16 if on_gpu else torch.float32, attn_implementation="sdpa"
        ).eval()
    pages = rows * -(-(prompt + new + 256) // 256) + 8
    batching = ContinuousBatchingConfig(
        num_blocks=pages,
        max_batch_tokens=4096,
        use_async_batching=asynchronous and on_gpu,
        use_cuda_graph=on_gpu,
    )
    generation = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0)
    times = []
    for length in (16, new):
        generation.max_new_tokens = length
        begun = time.perf_counter()
        model.generate_batch(
            inputs=prompts(rows, prompt),
            generation_config=generation,
            continuous_batching_config=batching,
            progress_bar=False,
            persistent_manager=False,
        )
        times.append(time.perf_counter() - begun)
    # The start-up of its manager, which the short run shows, is not counted against it.
    seconds = times[1] - times[0]
    steps = new - 16
    print(
        json.dumps(
            {
                "seconds": round(times[1], 2),
                "tokens_per_s": round(rows * steps / seconds, 1),
                "mean_ms_per_step": round(1000 * seconds / steps, 3),
                "attention": str(model.config._attn_implementation),
            }
        )
    )


# --- small models -------------------------------------------------------------------------------------


def small(lab: Lab) -> list[Row]:
    """Where the host is the bottleneck: utilisation and tokens per second at depth 1, 2 and 3."""
    rows: list[Row] = []
    for name in ("1.5b", "0.5b"):
        folder = lab.folder(name, MODELS[name])
        for batch in (1, 32, 256):
            for depth in (2, 1, 3):
                if lab.left() < 20:
                    rows.append({"model": name, "rows": batch, "depth": depth, "error": "no time left"})
                    continue
                new = 32 if lab.smoke else 400
                with lab.service(folder, batch, 1024, depth) as sidecar, sidecar.client() as client:
                    measured = run_rows(client, batch, 32, new)
                del measured["tokens"], measured["tracks"]
                rows.append({"model": name, "rows": batch, "depth": depth} | measured)
                print(rows[-1], flush=True)
    return rows


def save_timeline(lab: Lab, tracks: Any) -> None:
    middle = tracks["compute"][len(tracks["compute"]) // 2][1]
    around = {
        track: [span for span in spans if middle - 6 <= span[1] <= middle + 6]
        for track, spans in tracks.items()
    }
    (lab.out / "timeline.json").write_text(json.dumps(around))
    text = as_text(tracks, middle, middle + 3)
    (lab.out / "timeline.txt").write_text(text + "\n")
    print(text, flush=True)


# --- servers under load -------------------------------------------------------------------------------


def serving(lab: Lab) -> list[Row]:
    """Our server under the loads of users."""
    return loads.serving(plan_of(lab, "serving"), ["slipstream"])


def vllm(lab: Lab) -> list[Row]:
    """vLLM and ours under the same loads, one after the other."""
    if not loads.vllm_found():
        return [{"error": "vLLM is not on the path; VLLM_PATH may name the folders that it needs"}]
    return loads.serving(plan_of(lab, "vllm"), lab.found.server.split(","))


def plan_of(lab: Lab, part: str) -> loads.Plan:
    out = lab.out / part
    out.mkdir(exist_ok=True)
    chosen = lab.found.loads.split(",") if lab.found.loads else None
    return loads.Plan(
        out=out,
        folder=lab.folder_to_serve,
        models=lab.found.models.split(","),
        loads=chosen,
        options=lab.found.options,
        smoke=lab.smoke,
        left=lab.left,
    )


PARTS: dict[str, Callable[[Lab], list[Row]]] = {
    "correct": correct,
    "published": published,
    "peers": peers,
    "small": small,
    "serving": serving,
    "vllm": vllm,
}


def main() -> None:
    if sys.argv[1:2] == ["--peer"]:
        folder, rows, prompt, new, asynchronous, device = sys.argv[2:]
        peer(folder, int(rows), int(prompt), int(new), asynchronous == "1", device)
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--seconds", type=float, default=540.0, help="begin nothing new after this")
    parser.add_argument("--smoke", action="store_true", help="on a CPU with toy models")
    parser.add_argument("--models", default="8b", help=f"to serve, of {','.join(MODELS)} (default 8b)")
    parser.add_argument("--loads", default="", help="to serve, as b1,rate10,burst (default: all of a model)")
    parser.add_argument("--server", default="vllm,slipstream", help="of the part vllm, in this order")
    parser.add_argument("--options", default="", help="more options for our server, in one text")
    found = parser.parse_args()
    for name, given, known in (
        ("--parts", found.parts, set(PARTS)),
        ("--models", found.models, set(MODELS)),
        ("--loads", found.loads, {*loads.SMOKE, *(name for model in loads.LOADS.values() for name in model)}),
        ("--server", found.server, {"vllm", "slipstream"}),
    ):
        if unknown := [one for one in given.split(",") if given and one not in known]:
            parser.error(f"{name} {','.join(unknown)}: none of {', '.join(sorted(known))}")
    # What started a server ends it, also when this program is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    lab = Lab(found)
    print(json.dumps(installed()), flush=True)
    for part in found.parts.split(","):
        try:
            rows = PARTS[part](lab)
        except Exception:
            rows = [{"error": traceback.format_exc()[-4000:]}]
        (lab.out / f"{part}.json").write_text(json.dumps(rows, indent=1, default=str))
        print(f"\n{part}")
        for row in rows:
            print("  " + "  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    shutil.rmtree(lab.out / "models", ignore_errors=True)


def installed() -> Row:
    import torch
    import transformers

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"torch": torch.__version__, "transformers": transformers.__version__, "gpu": gpu}


if __name__ == "__main__":
    main()
