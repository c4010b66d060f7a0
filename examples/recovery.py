"""How long the streams of a large model wait when its executor dies on a GPU.

    python examples/recovery.py --faults kill:10,illegal:3 --streams 32 --out results
    python examples/recovery.py --faults kill:5 --batch-invariant --out results      # every token is compared

A service of the shape of Llama-3.1-8B with random weights answers ``--streams`` requests, again and again. A fault is

- ``kill``: SIGKILL of the executor,
- ``illegal``: a kernel in the executor's own process writes to an address that nobody has, which costs its context
  (the kernel is compiled before, while streams run),
- ``restart``: what ``slipstream restart executor`` does.

For each fault it prints the longest time that any stream was without a token, from the fault at the earliest, and when
every graph was there again; then how the first start went, and that no answer came short, or, with
``--batch-invariant``, other than without a fault. ``--smoke`` is the same with a toy model on a CPU, where there is no
``illegal``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import h200

from slipstream import AsyncClient, SamplingParams, Sidecar

Row = dict[str, Any]

FAULTS = ("kill", "illegal", "restart")
PROMPT = 128
TIMEOUT_S = 120.0
FAULTS_OF_A_SERVICE = 4
"""A service whose executor dies a sixth time in a row ends."""

MIN_S = 60.0
"""For the faults of one service."""

MARK = signal.SIGRTMIN + 7
"""To an executor that was started with `ILLEGAL` on its path: have a kernel compiled; the second time, write with it
where nothing is."""

ILLEGAL = f"""
import signal

compiled = []

def write_where_nothing_is(number, frame):
    import torch
    import illegal_kernel
    given = torch.zeros(1, dtype=torch.int32, device="cuda"), 1 << 42
    if compiled:
        illegal_kernel.write[(1,)](*given)
    else:
        compiled.append(illegal_kernel.write.warmup(*given, grid=(1,)))

signal.signal({int(MARK)}, write_where_nothing_is)
"""

KERNEL = """
import triton
import triton.language as tl

@triton.jit
def write(pointer, far):
    tl.store(pointer + far, 1)
"""


class Streams:
    """Requests that are asked again and again, and when each had a token last."""

    def __init__(self, count: int, new: int) -> None:
        self.new = new
        self.prompts = h200.prompts(count, PROMPT)
        self.expected: list[list[int]] = []
        """The answers without a fault, if they are compared."""
        self.last_ns = [0] * count
        self.longest_ns = [0] * count
        """Since `watch` was called."""
        self.since_ns = 0
        self.answers = self.tokens = self.short = self.changed = 0
        self.stopping = False

    async def answer(self, client: AsyncClient, number: int) -> list[int]:
        params = SamplingParams(temperature=0.0, max_tokens=self.new, ignore_eos=True)
        tokens: list[int] = []
        async for delta in client.generate(self.prompts[number], params):
            now = time.monotonic_ns()
            before = max(self.last_ns[number], self.since_ns)
            self.longest_ns[number] = max(self.longest_ns[number], now - before)
            self.last_ns[number] = now
            tokens += delta.token_ids
        return tokens

    async def keep_asking(self, client: AsyncClient, number: int) -> None:
        while not self.stopping:
            tokens = await self.answer(client, number)
            self.answers += 1
            self.tokens += len(tokens)
            self.short += len(tokens) != self.new
            self.changed += bool(self.expected) and tokens != self.expected[number]

    async def all_have_one(self, since_ns: int) -> None:
        """Wait until every stream has had a token after ``since_ns``."""
        end = time.monotonic() + TIMEOUT_S
        while min(self.last_ns) <= since_ns:
            if time.monotonic() > end:
                late = sum(last <= since_ns for last in self.last_ns)
                raise TimeoutError(f"{late} streams without a token for {TIMEOUT_S:g} s")
            await asyncio.sleep(0.005)

    def watch(self) -> int:
        self.since_ns = time.monotonic_ns()
        self.longest_ns = [0] * len(self.longest_ns)
        return self.since_ns


async def ready_again(sidecar: Sidecar, pid: int, what: str) -> float:
    """Wait until another executor than ``pid`` has ``what``; returns the instant."""
    end = time.monotonic() + TIMEOUT_S
    while True:
        executor = (await asyncio.to_thread(lambda: sidecar.actors))["executor"]
        if executor["pid"] != pid and executor["state"] == "ready" and executor.get(what) is not None:
            return time.monotonic()
        if time.monotonic() > end:
            raise TimeoutError(f"no executor with {what} for {TIMEOUT_S:g} s: {executor}\n{sidecar.log}")
        await asyncio.sleep(0.02)


async def helpers_wait(sidecar: Sidecar) -> None:
    """Until the spare executor can be forked: it begins to import when the service is ready."""
    end = time.monotonic() + TIMEOUT_S
    while any(
        actor["role"] == "spare" and actor["state"] != "ready"
        for actor in (await asyncio.to_thread(lambda: sidecar.actors)).values()
    ):
        if time.monotonic() > end:
            raise TimeoutError(f"no spare for {TIMEOUT_S:g} s\n{sidecar.log}")
        await asyncio.sleep(0.1)


def inflict(fault: str, sidecar: Sidecar, pid: int) -> None:
    if fault == "restart":
        sidecar.restart("executor")
    else:
        os.kill(pid, signal.SIGKILL if fault == "kill" else MARK)


async def suffer(fault: str, sidecar: Sidecar, streams: Streams, full_speed: bool) -> Row:
    """One fault, from a moment in which every stream runs until it is over."""
    await helpers_wait(sidecar)
    await streams.all_have_one(time.monotonic_ns())
    pid = sidecar.pids["executor"]
    if fault == "illegal":
        inflict(fault, sidecar, pid)
        for _ in range(2):  # steps that it had launched before it heard of this give the first
            await streams.all_have_one(time.monotonic_ns())
    begun_ns = streams.watch()
    inflict(fault, sidecar, pid)
    ready = await ready_again(sidecar, pid, "ready_s")
    await streams.all_have_one(int(ready * 1e9))
    found: Row = {
        "fault": fault,
        "ready_s": round(ready - begun_ns * 1e-9, 2),
        "longest_pause_s": round(max(streams.longest_ns) * 1e-9, 2),
    }
    if full_speed:
        found["full_speed_s"] = round(await ready_again(sidecar, pid, "full_speed_s") - begun_ns * 1e-9, 2)
    print(json.dumps(found), flush=True)
    return found


async def drill(sidecar: Sidecar, faults: list[str], found: argparse.Namespace) -> Row:
    streams = Streams(found.streams, found.new)
    clients = [sidecar.async_client(timeout_s=TIMEOUT_S) for _ in range(-(-found.streams // 16))]
    of = [clients[number % len(clients)] for number in range(found.streams)]
    if found.batch_invariant:
        streams.expected = await asyncio.gather(*(streams.answer(of[n], n) for n in range(found.streams)))
    asking = [asyncio.create_task(streams.keep_asking(of[n], n)) for n in range(found.streams)]
    rows = [await suffer(fault, sidecar, streams, not found.smoke) for fault in faults]
    streams.stopping = True
    await asyncio.gather(*asking)
    for client in clients:
        await client.close()
    return {
        "faults": rows,
        "answers": streams.answers,
        "tokens": streams.tokens,
        "short": streams.short,
        "changed": streams.changed if found.batch_invariant else None,
    }


def one_service(lab: h200.Lab, faults: list[str], found: argparse.Namespace) -> Row:
    options: Row = {"batch_invariant": True} if found.batch_invariant else {}
    folder = lab.folder(found.model, h200.MODELS[found.model])
    begun = time.monotonic()
    with lab.service(folder, found.streams, PROMPT + found.new + 8, 2, **options) as sidecar:
        print(f"ready after {time.monotonic() - begun:.1f} s", flush=True)
        try:
            return asyncio.run(drill(sidecar, faults, found))
        finally:
            print(sidecar.log, flush=True)


def parse_faults(text: str) -> list[str]:
    parts = [part.partition(":") for part in text.split(",")]
    if unknown := {name for name, _, _ in parts} - set(FAULTS):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: a fault is one of {', '.join(FAULTS)}")
    return [name for name, _, times in parts for _ in range(int(times or 1))]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=parse_faults, default=parse_faults("kill:10,illegal:3"))
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--new", type=int, default=512, help="tokens of each answer")
    parser.add_argument("--batch-invariant", action="store_true")
    parser.add_argument("--model", default="8b", choices=sorted(h200.MODELS))
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--seconds", type=float, default=500.0)
    parser.add_argument("--smoke", action="store_true")
    found = parser.parse_args()
    if found.smoke and "illegal" in found.faults:
        parser.error("illegal needs a GPU: give --smoke with --faults kill or restart")
    lab = h200.Lab(found)
    with tempfile.TemporaryDirectory() as path:
        (Path(path) / "sitecustomize.py").write_text(ILLEGAL)
        (Path(path) / "illegal_kernel.py").write_text(KERNEL)
        os.environ["PYTHONPATH"] = os.pathsep.join([path, os.environ.get("PYTHONPATH", "")])
        results: list[Row] = []
        for first in range(0, len(found.faults), FAULTS_OF_A_SERVICE):
            if lab.left() < MIN_S:
                print(f"no time for the faults from number {first + 1} on")
                break
            results.append(one_service(lab, found.faults[first : first + FAULTS_OF_A_SERVICE], found))
    (found.out / "recovery.json").write_text(json.dumps(results, indent=1))
    rows = [row for result in results for row in result["faults"]]
    for fault in dict.fromkeys(row["fault"] for row in rows):
        pauses = sorted(row["longest_pause_s"] for row in rows if row["fault"] == fault)
        median = pauses[len(pauses) // 2]
        print(f"{fault}: {len(pauses)} times, longest pause {median} s at the median, {pauses[-1]} at most")
    answers, tokens, short = (
        sum(result[name] for result in results) for name in ("answers", "tokens", "short")
    )
    changed = sum(result["changed"] or 0 for result in results)
    print(f"{answers} answers, {tokens} tokens, {short} answers of another length", flush=True)
    if found.batch_invariant:
        print(f"{changed} answers of other tokens", flush=True)
    return int(bool(short or changed))


if __name__ == "__main__":
    sys.exit(main())
