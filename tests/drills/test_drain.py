"""SIGTERM under load: what fits the drain time is finished, the exit code is 0, and nothing is left."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time

import psutil

from slipstream import AsyncClient, SamplingParams, Sidecar

STREAMS = 24


def runs(pid: int) -> bool:
    """A process that ended and waits for its parent does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def stream(client: AsyncClient, tokens: int, begun: asyncio.Semaphore) -> int:
    got = 0
    async for delta in client.generate([5, 6, 7], SamplingParams(max_tokens=tokens, ignore_eos=True)):
        if not got:
            begun.release()
        got += len(delta.token_ids)
        assert delta.finish_reason in (None, "length")
    return got


def test_sigterm_under_load_aborts_nothing_ends_with_code_0_and_leaves_no_process(soak: bool) -> None:
    rng = random.Random(6)

    async def under_load(sidecar: Sidecar) -> list[int]:
        lengths = [rng.randrange(20, 200) for _ in range(STREAMS)]
        begun = asyncio.Semaphore(0)
        async with sidecar.async_client() as client:
            tasks = [asyncio.create_task(stream(client, tokens, begun)) for tokens in lengths]
            for _ in tasks:
                await begun.acquire()
            await asyncio.sleep(rng.random() * 0.2)
            os.kill(sidecar.pid, signal.SIGTERM)
            assert await asyncio.gather(*tasks) == lengths
        return lengths

    for _ in range(100 if soak else 3):
        sidecar = Sidecar(device="emulated", emulated_step_ms=5.0)
        pids = [sidecar.pid, *sidecar.pids.values()]
        asyncio.run(under_load(sidecar))
        assert sidecar.stop() == 0, sidecar.log
        deadline = time.monotonic() + 1.0
        while left := [pid for pid in pids if runs(pid)]:
            assert time.monotonic() < deadline, f"{left} are left"
            time.sleep(0.01)
