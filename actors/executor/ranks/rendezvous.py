"""The rendezvous of an executor's ranks when they start."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import FileStore, PrefixStore  # type: ignore[attr-defined]

from ....protocol.errors import SlipstreamError
from . import exchange
from .group import RankGroup
from .leader import name_of

MEET_WITHIN = timedelta(seconds=120)
"""How long the last rank may come after the first; until here they only import, all at the same time."""

NEVER = timedelta(days=7)
"""When a collective that hangs fails by itself: it is the supervisor who ends ranks that make no progress."""


def meet(rank: int, size: int, path: str, device: torch.device) -> RankGroup:
    """Wait for all other ranks; SlipstreamError names the one that does not come.

    They meet over the file ``path``, so that no port is open to strangers, and what they open to each other is on the
    loopback interface.
    """
    for backend in ("GLOO", "NCCL"):
        os.environ[f"{backend}_SOCKET_IFNAME"] = "lo"
    store = FileStore(path, size)
    store.set(f"rank {rank}", "here")
    for other in range(size):
        try:
            store.wait([f"rank {other}"], MEET_WITHIN)
        except RuntimeError:
            raise SlipstreamError(
                f"rank {other} ({name_of(other)}) has not come within {MEET_WITHIN.total_seconds():g} s,"
                " and the others cannot start without it; see what it printed above"
            ) from None
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore("group", store),
        rank=rank,
        world_size=size,
        timeout=NEVER,
        device_id=device if device.type == "cuda" else None,
    )
    group = RankGroup(rank, size, dist.group.WORLD)
    if device.type == "cuda":
        from .peer_memory import PeerMemory

        group.exchange = exchange.exchange_of(
            group, device, lambda nbytes: PeerMemory(device, nbytes), exchange.most_bytes_for(size)
        )
    return group
