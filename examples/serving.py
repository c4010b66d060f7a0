"""Servers under the loads of users: ours, and vLLM where it is installed, with the same client for both.

``python examples/h200.py --parts serving`` measures ours, ``--parts vllm`` both, one after the other on the same
card. Each server is started on random weights, loaded by ``slipstream bench serve`` over HTTP, and ended with all its
processes, whatever happens. A load that fails prints why, and the next one goes on.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]

READY_S = 300.0
"""A server that compiles is ready after two minutes."""

LOAD_S = 150.0
"""Most that one load may take; the longest takes 20 s where all is well."""

END_S = 20.0

PERCENTILES = ("p50", "p99")


@dataclass(frozen=True)
class Goal:
    """A figure of a load, what vLLM 0.26 had on 2026-11-28 on one H200, and what ours has to reach beside it."""

    figure: str
    recorded: float
    aim: float

    @property
    def more_is_better(self) -> bool:
        return self.figure == "output_throughput"


@dataclass(frozen=True)
class Load:
    prompts: int
    tokens_in: int
    tokens_out: int
    concurrency: int
    goals: tuple[Goal, ...] = ()
    spread: float = 0.0
    rate: float | None = None
    """Requests per second; None: all at once."""

    def arguments(self) -> list[str]:
        flags = {
            "num-prompts": self.prompts,
            "input-len": self.tokens_in,
            "output-len": self.tokens_out,
            "random-range-ratio": self.spread,
            "max-concurrency": self.concurrency,
        }
        if self.rate is not None:
            flags["request-rate"] = self.rate
        return [part for name, value in flags.items() for part in (f"--{name}", str(value))]


def step_time(recorded: float, aim: float) -> tuple[Goal, ...]:
    return (Goal("p50_tpot_ms", recorded, aim),)


def latencies(*pairs: tuple[float, float]) -> tuple[Goal, ...]:
    """Of a load that comes over time: TTFT, TPOT and the gaps between tokens."""
    names = ("p50_ttft_ms", "p99_ttft_ms", "p50_tpot_ms", "p99_tpot_ms", "p99_itl_ms")
    return tuple(Goal(name, *pair) for name, pair in zip(names, pairs, strict=False))


def rate_out(recorded: float, aim: float) -> tuple[Goal, ...]:
    return (Goal("output_throughput", recorded, aim),)


WARM_UP = Load(8, 64, 16, 8)

LOADS: dict[str, dict[str, Load]] = {
    "8b": {
        "b1": Load(1, 128, 200, 1, step_time(4.83, 4.6)),
        "b32": Load(32, 128, 1024, 32, step_time(5.84, 5.5)),
        "b256": Load(256, 128, 256, 256, step_time(14.07, 11)),
        "rate10": Load(
            150,
            1024,
            128,
            256,
            latencies((54, 50), (129, 120), (6.8, 6.5), (9.7, 9.5), (34, 25)),
            spread=0.5,
            rate=10,
        ),
        "rate25": Load(
            300, 1024, 128, 256, latencies((86, 80), (249, 240), (15.2, 15), (23.7, 23)), spread=0.5, rate=25
        ),
        "burst": Load(500, 1024, 128, 256, rate_out(3713, 4100), spread=0.5),
    },
    "1.5b": {
        "b1": Load(1, 32, 300, 1, step_time(2.29, 1.7)),
        "b32": Load(32, 32, 800, 32, rate_out(10_498, 10_498)),
        "b256": Load(256, 32, 400, 256, rate_out(20_168, 20_168)),
        "rate20": Load(
            300, 512, 128, 256, latencies((34, 30), (77, 70), (3.2, 2.8), (5.0, 4.5)), spread=0.5, rate=20
        ),
        "rate60": Load(
            900, 512, 128, 256, latencies((82, 60), (201, 180), (7.4, 6), (12.2, 10)), spread=0.5, rate=60
        ),
        "burst": Load(1500, 512, 128, 256, rate_out(9489, 20_000), spread=0.5),
    },
    "0.5b": {"b1": Load(1, 32, 300, 1, step_time(1.7, 1.2))},
}
"""By model and name. ``bN``: N requests at once; ``rateN``: N a second; ``burst``: all at once."""

SMOKE: dict[str, Load] = {
    "b1": Load(1, 8, 16, 1, step_time(1, 1)),
    "rate10": Load(10, 32, 8, 64, latencies((1, 1), (1, 1), (1, 1), (1, 1), (1, 1)), spread=0.5, rate=10),
    "burst": Load(12, 32, 8, 64, rate_out(1, 1), spread=0.5),
}

READY = {"8b": Goal("ready_s", 108, 25), "1.5b": Goal("ready_s", 121, 25)}


# --- the servers ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What to measure and where."""

    out: Path
    folder: Callable[[str], Path]
    """Makes the folder of a model."""
    models: Sequence[str]
    loads: Sequence[str] | None
    """None: all."""
    options: str
    """More options for our server."""
    smoke: bool
    left: Callable[[], float]
    """Seconds until nothing new is begun."""

    def loads_of(self, model: str) -> dict[str, Load]:
        found = SMOKE if self.smoke else LOADS[model]
        return {name: load for name, load in found.items() if self.loads is None or name in self.loads}


def vllm_found() -> bool:
    """Whether vLLM can be imported, from ``VLLM_PATH`` or the path of this program."""
    return importlib.machinery.PathFinder.find_spec("vllm", [*vllm_path(), *sys.path]) is not None


def vllm_path() -> list[str]:
    return [part for part in os.environ.get("VLLM_PATH", "").split(os.pathsep) if part]


def command_of(engine: str, plan: Plan, folder: Path, port: int) -> tuple[list[str], dict[str, str]]:
    """The command line and the environment of a server."""
    both = ["--served-model-name", "m", "--load-format", "dummy", "--no-enable-prefix-caching"]
    both += ["--max-model-len", "512" if plan.smoke else "8192", "--max-num-seqs", "256"]
    environment = dict(os.environ) | {"HF_HUB_OFFLINE": "1"}
    if engine == "vllm":
        environment |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0"}
        path = [*vllm_path(), *environment.get("PYTHONPATH", "").split(os.pathsep)]
        environment["PYTHONPATH"] = os.pathsep.join(part for part in path if part)
        module = [
            "vllm.entrypoints.cli.main",
            "serve",
            str(folder),
            *both,
            "--max-num-batched-tokens",
            "8192",
        ]
        return [sys.executable, "-m", *module, "--port", str(port)], environment
    ours = [*both, "--max-queued-requests", "4096", "--device", "cpu" if plan.smoke else "cuda"]
    ours += ["--http", f"127.0.0.1:{port}", "--exit-with-parent", *shlex.split(plan.options)]
    return [sys.executable, "-m", "slipstream", "serve", str(folder), *ours], environment


@contextmanager
def server(engine: str, plan: Plan, model: str) -> Iterator[tuple[str, float]]:
    """Its address and the seconds until it answered; all its processes are ended afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command, environment = command_of(engine, plan, plan.folder(model), port)
    log = plan.out / f"{model}.{engine}.log"
    begun = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        until = begun + max(10.0, min(READY_S, plan.left()))
        while not answers(f"{address}/health"):
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with {process.returncode}: {tail(log)}")
            if time.monotonic() > until:
                raise RuntimeError(f"not ready after {time.monotonic() - begun:.0f} s: {tail(log)}")
            time.sleep(0.2)
        yield address, time.monotonic() - begun
    finally:
        end(process)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def full_speed(address: str, limit_s: float) -> None:
    """Wait until our executor has all its graphs, as vLLM has when it is ready."""
    until = time.monotonic() + limit_s
    while True:
        with urllib.request.urlopen(f"{address}/metrics", timeout=5) as answer:
            if 'actor_full_speed_seconds{actor="executor"' in answer.read().decode():
                return
        if time.monotonic() > until:
            raise RuntimeError(f"not at full speed {limit_s:.0f} s after it was ready")
        time.sleep(0.2)


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and after a while SIGKILL for every process of its session, so that the memory is free again."""
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        print(f"  not ended {END_S:g} s after SIGTERM", flush=True)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # all of them have ended by themselves
    process.wait()
    time.sleep(1)  # until the driver has taken their memory back


def tail(log: Path) -> str:
    return log.read_text(errors="replace")[-1500:]


# --- one load -------------------------------------------------------------------------------------------


def put(load: Load, address: str, file: Path, limit_s: float) -> Row:
    """The figures of a load, or ``{"error": …}``."""
    command = [sys.executable, "-m", "slipstream", "bench", "serve", "--base-url", address, *load.arguments()]
    try:
        done = subprocess.run(
            [*command, "--seed", "1", "--json", str(file)], capture_output=True, text=True, timeout=limit_s
        )
        if done.returncode:
            return {"error": f"the client ended with {done.returncode}: {done.stderr[-600:]}"}
        return json.loads(file.read_text())
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {limit_s:.0f} s"}
    except (OSError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {error}"}


def line(row: Row) -> str:
    """What is printed of a load as soon as it is done."""
    if "error" in row:
        return f"failed: {row['error']}"
    if "ready_s" in row:
        return f"ready after {row['ready_s']} s, at full speed after {row['full_speed_s']} s"
    parts = [f"{row['completed']}/{row['num_prompts']}", f"{row['output_throughput']:,.0f} tokens/s"]
    for kind in ("ttft", "tpot", "itl"):
        parts.append(f"{kind} " + "/".join(f"{row[f'{p}_{kind}_ms']:.2f}" for p in PERCENTILES))
    if row["failed"]:
        parts.append(f"{row['failed']} failed: {'; '.join(row['errors'])}"[:600])
    return "  ".join(parts)


def measure(engine: str, plan: Plan, model: str) -> Iterator[Row]:
    """A row for its start and one for each load; what goes wrong is a row with ``error``."""
    about = {"model": model, "engine": engine}
    if plan.left() < 30:
        yield about | {"load": "start", "error": "no time left"}
        return
    try:
        with server(engine, plan, model) as (address, ready_s):
            begun = time.monotonic()
            if engine == "slipstream":
                full_speed(address, min(READY_S, plan.left()))
            full_speed_s = ready_s + time.monotonic() - begun
            yield about | {
                "load": "start",
                "ready_s": round(ready_s, 1),
                "full_speed_s": round(full_speed_s, 1),
            }
            for name, load in {"warm-up": WARM_UP, **plan.loads_of(model)}.items():
                if plan.left() < 15:
                    yield about | {"load": name, "error": "no time left"}
                    continue
                file = plan.out / f"{model}.{engine}.{name}.json"
                yield about | {"load": name} | put(load, address, file, min(LOAD_S, plan.left()))
    except Exception as error:
        yield about | {"load": "start", "error": f"{type(error).__name__}: {error}"}


def serving(plan: Plan, engines: Sequence[str]) -> list[Row]:
    """Every model on every server; each load is printed as it comes, and a table of the model at its end.

    Returns the lines of the tables; all figures are in ``rows.json`` and the files of the loads.
    """
    rows: list[Row] = []
    lines: list[Row] = []
    for model in plan.models:
        for engine in engines:
            for row in measure(engine, plan, model):
                rows.append(row)
                print(f"{model:>5}  {engine:<10}  {row['load']:<8}  {line(row)}", flush=True)
                (plan.out / "rows.json").write_text(json.dumps(rows, indent=1))
        found = table(plan, model, rows, engines)
        print("\n" + "\n".join(as_text(found)) + "\n", flush=True)
        lines += found
    return lines


# --- the table ------------------------------------------------------------------------------------------


def table(plan: Plan, model: str, rows: Sequence[Row], engines: Sequence[str]) -> list[Row]:
    """A line for each goal: both servers, ours over vLLM's, and the ratio that it has to reach.

    Where vLLM was not measured in this call, its recorded figures stand in its place.
    """
    found = {(row["engine"], row["load"]): row for row in rows if row["model"] == model}
    goals = [("start", READY[model])] if model in READY and not plan.smoke else []
    goals += [(name, goal) for name, load in plan.loads_of(model).items() for goal in load.goals]
    lines: list[Row] = []
    for name, goal in goals:
        ours = found.get(("slipstream", name), {}).get(goal.figure)
        measured = found.get(("vllm", name), {}).get(goal.figure)
        theirs = measured if "vllm" in engines or plan.smoke else goal.recorded
        ratio = round(ours / theirs, 3) if ours is not None and theirs else None
        aim = f"{'≥' if goal.more_is_better else '≤'} {goal.aim / goal.recorded:.2f}"
        who = "vllm" if "vllm" in engines else "vllm, recorded"
        lines.append(
            {"model": model, "load": name, "figure": goal.figure, who: theirs, "slipstream": ours}
            | {"ratio": ratio, "aim": aim}
        )
    return lines


def as_text(lines: Sequence[Row]) -> Iterator[str]:
    if lines:
        yield " ".join(f"{name:>{WIDTHS.get(name, 14)}}" for name in lines[0])
    for row in lines:
        yield " ".join(f"{shown(value):>{WIDTHS.get(name, 14)}}" for name, value in row.items())


WIDTHS = {"model": 6, "load": 8, "figure": 18, "ratio": 8, "aim": 8}


def shown(value: float | str | None) -> str:
    if not isinstance(value, float | int):
        return value or "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


# --- the models -----------------------------------------------------------------------------------------


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A byte-level tokenizer that covers a whole vocabulary, so that any server can show any token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += [f"Ġx{number}" for number in range(vocab_size - len(words))]
    found = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    found.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    found.add_special_tokens(["<s>", "</s>"])
    found.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 16384} | special
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
