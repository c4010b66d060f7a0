"""A drill of actors: they are hit at random instants, one after the other, and their service has to be whole again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable

from ..protocol.actors import ACTORS
from ..protocol.errors import ServiceUnavailable, SlipstreamError
from ..runtime.supervision.restarts import INTENSITY
from ..sidecar import Sidecar
from .answers import Answer
from .streams import MAX_PAUSE_S, TIMEOUT_S, StreamsDrill

FAULTS = ("kill", "twice", "stop", "restart")
"""SIGKILL; SIGKILL and another during the recovery; SIGSTOP, and SIGCONT after ``STOPPED_S``; a planned restart."""

STOPPED_S = 5.0
"""Time for which an actor is stopped by SIGSTOP: half of the default limit, so that it must not be taken to hang."""


class Drill(StreamsDrill):
    """A drill of the actors of one service, or of several, one after the other."""

    def __init__(
        self,
        targets: tuple[str, ...],
        rounds: int,
        streams: int,
        device: str = "emulated",
        dtype: str = "float32",
        fault: str = "kill",
        seed: int = 0,
        say: Callable[[str], None] = lambda text: None,
        *,
        batch_invariant: bool = False,
    ) -> None:
        """``targets`` are actors, ``fault`` is one of ``FAULTS``; the rest is as for every drill."""
        super().__init__(targets, rounds, streams, device, dtype, seed, say, batch_invariant=batch_invariant)
        self.fault = fault
        self.options |= {"tensor_parallel_size": ranks_for(targets)}
        self.deaths: Counter[str] = Counter()
        """Deaths of each actor of the present service."""

    async def run_service(self, targets: list[str]) -> list[str]:
        self.services += 1
        self.deaths.clear()
        sidecar = await asyncio.to_thread(lambda: Sidecar(max_num_seqs=len(self.cases), **self.options))
        clients = self.clients_of(sidecar)
        try:
            if self.exact and self.services == 1:
                await self.learn(clients)
            streams = self.open_streams(clients)
            while targets and self.bears(targets[0]):
                await asyncio.sleep(self.rng.random() * MAX_PAUSE_S)
                await self.strike(sidecar, targets[0])
                targets = targets[1:]
            await self.end_streams(streams, clients[0])
        finally:
            for client in clients:
                await client.close()
            await asyncio.to_thread(sidecar.stop)
        return targets

    def bears(self, actor: str) -> bool:
        """Whether the service still restarts the actor: it gives one up that dies again and again."""
        most = {dies_as(actor): 1} if self.fault != "twice" else dict.fromkeys(ACTORS, 1)
        return all(self.deaths[name] + extra <= INTENSITY for name, extra in most.items())

    # --- faults -------------------------------------------------------------------------------

    async def strike(self, sidecar: Sidecar, actor: str) -> None:
        """One fault, and the wait until every stream that was open goes on or is over."""
        pids = await asyncio.to_thread(lambda: sidecar.pids)
        hit = {actor: pids[actor]}
        _, struck = self.begin_recovery()
        self.kills[actor] += 1
        if self.fault == "stop":
            os.kill(pids[actor], signal.SIGSTOP)
            await asyncio.sleep(STOPPED_S)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pids[actor], signal.SIGCONT)
        elif self.fault == "restart":
            await asyncio.to_thread(sidecar.restart, actor)
        else:
            os.kill(pids[actor], signal.SIGKILL)
            self.deaths[dies_as(actor)] += 1
        if self.fault == "twice":
            hit |= await self.kill_another(sidecar)
        ready_at = await self.wait_until_ready(sidecar, {} if self.fault == "stop" else hit)
        await self.wait_for_recovery(actor, struck, since=ready_at)
        if "executor" in map(dies_as, (actor, *hit)):
            await self.wait_for_end(struck)

    async def kill_another(self, sidecar: Sidecar) -> dict[str, int]:
        """Kill an actor while another recovers; returns its name and pid if it was there."""
        await asyncio.sleep(self.rng.random() * MAX_PAUSE_S)
        actor = self.rng.choice(ACTORS)
        pid = (await asyncio.to_thread(lambda: sidecar.pids))[actor]
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return {}
        self.kills[actor] += 1
        self.deaths[actor] += 1
        return {actor: pid}

    async def wait_until_ready(self, sidecar: Sidecar, hit: dict[str, int]) -> float:
        """Wait until every actor is ready, and those that were hit are others than before; when that was."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(ServiceUnavailable):
                actors = await asyncio.to_thread(lambda: sidecar.actors)
                if all(actor["state"] == "ready" for actor in actors.values()) and all(
                    actors[name]["pid"] != pid for name, pid in hit.items()
                ):
                    return time.monotonic()
            await asyncio.sleep(0.01)
        raise SlipstreamError(f"the service is not whole again after {TIMEOUT_S:g} s\n{sidecar.log}")

    async def wait_for_end(self, struck: list[Answer]) -> None:
        """A request that has seen two executors die is suspected of killing them: let these end first."""
        while not all(answer.over for answer in struck):
            await asyncio.sleep(0.01)


def ranks_for(targets: tuple[str, ...]) -> int:
    """The number of ranks that the executor must have so that all targets exist."""
    return 1 + max(int(name.partition(".")[2] or 0) for name in targets)


def dies_as(actor: str) -> str:
    """Whose death the supervisor counts: the ranks of an executor die together."""
    return actor.partition(".")[0]
