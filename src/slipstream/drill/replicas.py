"""A drill of replicas: whole services behind a router are killed, or the router.

A service that was killed is started again at the same endpoint. The next is killed when it is there, so that
one at a time is away, as in a fleet whose machines fail one by one.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..protocol.client.asynchronous import AsyncClient
from ..protocol.errors import SlipstreamError
from ..runtime.key_folder import KeyFolder
from ..sidecar import RouterSidecar, Sidecar
from .streams import MAX_PAUSE_S, TIMEOUT_S, StreamsDrill

TARGETS = ("replica", "router")

SETTLED_S = 1.0
"""A stream that still gets tokens this long after a kill goes on: what was on its way then has arrived."""


class ReplicaDrill(StreamsDrill):
    """A drill of services behind one router."""

    def __init__(
        self,
        target: str,
        replicas: int,
        rounds: int,
        streams: int,
        *,
        over_tcp: bool = False,
        device: str = "emulated",
        dtype: str = "float32",
        seed: int = 0,
        say: Callable[[str], None] = lambda text: None,
        batch_invariant: bool = False,
    ) -> None:
        """``over_tcp``: with keys, as between machines."""
        super().__init__(
            (target,), rounds, streams, device, dtype, seed, say, batch_invariant=batch_invariant
        )
        self.replicas = replicas
        self.over_tcp = over_tcp
        self.keys: dict[str, Any] = {}
        """Options of services and router that are reached over TCP."""
        self.client_key: Path | None = None
        self.router: RouterSidecar | None = None
        self.services_there: list[Sidecar] = []

    async def run_service(self, targets: list[str]) -> list[str]:
        """Carry out the faults of all targets; nothing is left of them."""
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slipstream-drill-")))
            stack.callback(self.stop_all)
            await asyncio.to_thread(self.start_all, folder)
            clients = self.clients_of(self.router_there)
            try:
                if self.exact:
                    await self.learn(clients)
                streams = self.open_streams(clients)
                for target in targets:
                    await asyncio.sleep(self.rng.random() * MAX_PAUSE_S)
                    await (self.kill_replica() if target == "replica" else self.kill_router())
                await self.end_streams(streams, clients[0])
            finally:
                for client in clients:
                    await client.close()
        return []

    # --- what there is ------------------------------------------------------------------------

    @property
    def router_there(self) -> RouterSidecar:
        assert self.router is not None, "it was started before"
        return self.router

    def start_all(self, folder: Path) -> None:
        if self.over_tcp:
            keys = KeyFolder(folder / "keys")
            keys.make_server()
            self.client_key = keys.make_client("drill")
            self.keys = {"curve_keys": str(keys.path)}
        for number in range(self.replicas):
            endpoint = "tcp://127.0.0.1:0" if self.over_tcp else f"ipc://{folder}/{number}"
            self.services_there.append(self.start_service(endpoint))
        endpoint = "tcp://127.0.0.1:0" if self.over_tcp else f"ipc://{folder}/router"
        named = {"client_key": str(self.client_key)} if self.over_tcp else {}
        self.router = RouterSidecar(
            [service.endpoint for service in self.services_there], endpoint=endpoint, **named, **self.keys
        )

    def start_service(self, endpoint: str) -> Sidecar:
        self.services += 1
        return Sidecar(max_num_seqs=len(self.cases), endpoint=endpoint, **self.options, **self.keys)

    def stop_all(self) -> None:
        for one in (self.router, *self.services_there):
            if one is not None:
                one.stop()

    def client_of(self, sidecar: Sidecar) -> AsyncClient:
        return AsyncClient(sidecar.endpoint, timeout_s=TIMEOUT_S, curve=self.client_key)

    # --- faults -------------------------------------------------------------------------------

    async def kill_replica(self) -> None:
        """A whole service; the wait until every stream goes on, and until another is there in its place."""
        number = self.rng.randrange(self.replicas)
        victim = self.services_there[number]
        await self.strike("replica", victim.pid)
        self.services_there[number] = await asyncio.to_thread(self.start_service, victim.endpoint)
        await self.wait_for_services()

    async def kill_router(self) -> None:
        before = (await asyncio.to_thread(lambda: self.router_there.pids))["router"]
        await self.strike("router", before)

    async def strike(self, target: str, pid: int) -> None:
        begun, struck = self.begin_recovery()
        self.kills[target] += 1
        os.kill(pid, signal.SIGKILL)
        await self.wait_for_recovery(target, struck, since=begun + SETTLED_S)

    async def wait_for_services(self) -> None:
        """Until the router has the new service too."""
        async with self.client_of(self.router_there) as client:
            deadline = time.monotonic() + TIMEOUT_S
            while (await client.stats())["router_services_ready"] < self.replicas:
                if time.monotonic() > deadline:
                    raise SlipstreamError(f"a service is not there again after {TIMEOUT_S:g} s")
                await asyncio.sleep(0.02)
