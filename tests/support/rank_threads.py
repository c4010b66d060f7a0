"""Ranks as threads of one process: their collectives are gloo's own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import ModuleType
from typing import Any, TypeVar

import pytest
import torch
from slipstream.actors.executor.ranks.group import RankGroup
from torch.distributed import HashStore, ProcessGroupGloo  # type: ignore[attr-defined]

T = TypeVar("T")

LOADING = ("read_or_quantized", "from_config", "model_on_meta", "fill")
"""What ranks do of loading each by itself."""

TIMEOUT = timedelta(seconds=60)
"""A collective that not all take part in fails after this."""


def groups(size: int) -> list[RankGroup]:
    """The same group of ranks as each of them sees it."""
    store = HashStore()

    def join(rank: int) -> RankGroup:
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = [ProcessGroupGloo.create_device(interface="lo")]
        options._timeout = TIMEOUT
        return RankGroup(rank, size, ProcessGroupGloo(store, rank, size, options))

    return at_once(join, range(size))


def at_once(work: Callable[..., T], *given: Sequence[Any]) -> list[T]:
    """``work`` with what is ``given`` for each rank, for all at the same time; what each gives."""

    def alone(*own: Any) -> T:
        torch.set_num_threads(1)
        return work(*own)

    with ThreadPoolExecutor(len(given[0])) as pool:
        return list(pool.map(alone, *given))


def take_turns(monkeypatch: pytest.MonkeyPatch, functions: Mapping[ModuleType, Sequence[str]]) -> None:
    """Let one thread at a time be in any of these functions: they share torch's random numbers, and what transformers
    notes while it makes and loads a model."""
    lock = threading.Lock()

    def alone(real: Callable[..., T]) -> Callable[..., T]:
        def run(*given: Any, **named: Any) -> T:
            with lock:
                return real(*given, **named)

        return run

    for module, names in functions.items():
        for name in names:
            monkeypatch.setattr(module, name, alone(getattr(module, name)))
