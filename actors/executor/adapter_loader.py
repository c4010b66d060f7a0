"""Loads the adapters that the scheduler asks for, a piece at a time, so that no step waits long."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from ...protocol.errors import InvalidRequest
from ...protocol.internal import Adapter, AdapterSlotFilled, AdapterSlotFreed, Capacity
from .model.adapters.loaded import LoadedAdapters


class AdapterLoader:
    """Loads one adapter after the other, in the order in which they were asked for."""

    def __init__(self, adapters: LoadedAdapters) -> None:
        self.adapters = adapters
        self.waiting: deque[tuple[Adapter, Iterator[None]]] = deque()
        """Adapters and the pieces that are left of them; the first one is under way."""

    def load(self, adapter: Adapter) -> None:
        """Put it behind those that wait."""
        self.waiting.append((adapter, self.adapters.load(adapter)))

    def read_piece(self) -> AdapterSlotFilled | None:
        """Read a piece of the first adapter; returns the answer to the scheduler when all of it is there, or when it
        cannot be loaded."""
        adapter, pieces = self.waiting[0]
        try:
            next(pieces)
            return None
        except StopIteration:
            error = ""
        except InvalidRequest as reason:
            error = str(reason)
        self.waiting.popleft()
        return AdapterSlotFilled(adapter, error)

    def unload(self, id: int) -> AdapterSlotFreed:
        """Returns the answer to the scheduler."""
        self.adapters.unload(id)
        return AdapterSlotFreed(id)

    def forget_waiting(self) -> None:
        """The scheduler that asked is gone; the next one asks again."""
        self.waiting.clear()

    def describe(self, capacity: Capacity) -> None:
        """Write into the capacity, which the next scheduler is sent, what is loaded now."""
        capacity.adapters = list(self.adapters.loaded.values())
        capacity.adapter_slots = self.adapters.weights.count
