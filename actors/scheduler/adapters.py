"""The adapters that requests may name, how they are loaded and removed, and their effect on a sequence.

The executor has a number of adapter slots, each with an id. An adapter is loaded into a free one, and requests may name
it as soon as the executor says that it is there. When it is unloaded, new requests cannot name it any more. Its slot is
free when the last sequence that is computed with it has ended and all steps that were planned until then are over.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from ...protocol.errors import brief, not_loaded
from ...protocol.internal import (
    Adapter,
    AdapterAnswer,
    AddAdapter,
    Capacity,
    FillAdapterSlot,
    FreeAdapterSlot,
    ListAdapters,
    RemoveAdapter,
)
from ...protocol.messages import ADAPTER_GAUGE
from .prefix import salt_of
from .sequence import Sequence


@dataclass(slots=True)
class AdapterSlot:
    """What an adapter slot of the executor holds, or is to hold."""

    adapter: Adapter
    serial: int
    """Counts what was loaded: two adapters that were in one slot after the other have nothing in common."""
    asked: list[int] = field(default_factory=list)
    """The questions that are answered when it is loaded, or unloaded."""
    last_step: int = -1
    """For one that is unloaded: the last step that may compute with it."""
    unload_sent: bool = False
    """The executor was told that it is unloaded."""


class AdapterRegistry:
    """Which adapters the executor has, and what it is asked to load and unload."""

    def __init__(self, send: Callable[[str, Any], None]) -> None:
        self.send = send
        self.known = False
        """Whether an executor has said which adapters it has."""
        self.free: list[int] = []
        """Ids of free slots, the next one last."""
        self.count = 0
        self.serial = 0
        self.by_name: dict[str, AdapterSlot] = {}
        """The adapters that requests may name."""
        self.loading: dict[int, AdapterSlot] = {}
        """The slots that the executor is reading adapters into, by id."""
        self.leaving: dict[int, AdapterSlot] = {}
        """The slots whose adapters are to be unloaded and still computed with, by id."""
        self.waiting: deque[ListAdapters | AddAdapter | RemoveAdapter] = deque()
        """What was asked before an executor was there."""

    # --- sequences ----------------------------------------------------------------------------------

    def resolve(self, sequence: Sequence) -> str:
        """Give the sequence the id of the adapter that it names; returns why there is none, or an empty text."""
        name = sequence.params.adapter
        if not name or not self.known:
            return ""
        slot = self.by_name.get(name)
        old = self.leaving.get(sequence.adapter)
        if old is not None and old.adapter.name == name:
            slot = old
        if slot is None:
            return not_loaded("adapter", name, self.by_name)
        sequence.adapter = slot.adapter.id
        sequence.salt = salt_of(sequence.params.cache_salt, f"{slot.serial}".encode())
        return ""

    def new_slot(self, adapter: Adapter) -> AdapterSlot:
        self.serial += 1
        return AdapterSlot(adapter, self.serial)

    def gauges(self, sequences: Iterable[Sequence]) -> dict[str, float]:
        """The number of adapter slots, and of the requests that run with each adapter or wait for a sequence slot."""
        if not self.count:
            return {}
        found: Counter[str] = Counter()
        for sequence in sequences:
            if sequence.adapter:
                state = "running" if sequence.slot >= 0 else "waiting"
                found[f"{ADAPTER_GAUGE}{state}_{sequence.params.adapter}"] += 1
        return {f"{ADAPTER_GAUGE}slots": float(self.count), **found}

    # --- changes ------------------------------------------------------------------------------------

    def on_asked(self, message: ListAdapters | AddAdapter | RemoveAdapter, planned: int) -> None:
        """List the adapters, add one or remove one, now or when an executor is there; ``planned`` is the last step that
        was."""
        if not self.known:
            self.waiting.append(message)
        elif isinstance(message, AddAdapter):
            self.add(message)
        elif isinstance(message, RemoveAdapter):
            self.remove(message, planned)
        else:
            self.answer(message.number)

    def add(self, message: AddAdapter) -> None:
        name, path = message.name, message.path
        same = self.by_name.get(name)
        same = same or next((slot for slot in self.loading.values() if slot.adapter.name == name), None)
        if same is not None and same.adapter.path != path:
            self.answer(
                message.number,
                "invalid_request",
                f"name={brief(name)} is the adapter at {brief(same.adapter.path)}; unload it, or take another name",
            )
        elif same is not None and name in self.by_name:
            self.answer(message.number)
        elif same is not None:
            same.asked.append(message.number)
        elif not self.free:
            self.answer(
                message.number,
                "invalid_request",
                f"all {self.count} adapter slots are taken; unload one, or raise --max-loras",
            )
        else:
            slot = self.new_slot(Adapter(self.free.pop(), name, path))
            slot.asked.append(message.number)
            self.loading[slot.adapter.id] = slot
            self.send("executor", FillAdapterSlot(slot.adapter))

    def on_slot_filled(self, adapter: Adapter, error: str) -> None:
        """The executor has read an adapter, or says why it cannot."""
        slot = self.loading.pop(adapter.id)
        if error:
            self.free.append(adapter.id)
        else:
            self.by_name[adapter.name] = slot
        asked, slot.asked = slot.asked, []
        for number in asked:
            self.answer(number, "invalid_request" if error else "", error)

    def on_slot_freed(self, id: int) -> None:
        """The executor has given up an adapter."""
        slot = self.leaving.pop(id)
        self.free.append(id)
        for number in slot.asked:
            self.answer(number)

    def remove(self, message: RemoveAdapter, planned: int) -> None:
        slot = self.by_name.pop(message.name, None)
        leaving = slot or next((s for s in self.leaving.values() if s.adapter.name == message.name), None)
        if leaving is None and message.resent:
            self.answer(message.number)
            return
        if leaving is None:
            text = not_loaded("name", message.name, self.by_name)
            self.answer(message.number, "model_not_found", text)
            return
        leaving.asked.append(message.number)
        leaving.last_step = planned
        self.leaving[leaving.adapter.id] = leaving

    def free_unused(self, used: set[int], planned: int, completed: int) -> None:
        """Free the slots of the adapters that are to leave, except those of the ids ``used``, which sequences still
        name."""
        for id, slot in list(self.leaving.items()):
            if id in used:
                slot.last_step = planned
            elif slot.last_step <= completed and not slot.unload_sent:
                slot.unload_sent = True
                self.send("executor", FreeAdapterSlot(id))

    def answer(self, number: int, code: str = "", error: str = "") -> None:
        loaded_now = [slot.adapter for slot in self.by_name.values()]
        self.send("gateway", AdapterAnswer(number, loaded_now, code, error))

    # --- executors ----------------------------------------------------------------------------------

    def begin(self, capacity: Capacity, planned: int) -> None:
        """A new executor has these, or the one that is there says so to a new scheduler."""
        before = {slot.adapter: slot for slot in (*self.by_name.values(), *self.leaving.values())}
        loaded_now = {
            adapter.id: before.get(adapter) or self.new_slot(adapter) for adapter in capacity.adapters
        }
        lost, loading = self.leaving.keys() - loaded_now.keys(), list(self.loading.values())
        gone = [self.leaving.pop(id) for id in lost]
        self.by_name = {slot.adapter.name: slot for id, slot in loaded_now.items() if id not in self.leaving}
        for slot in self.leaving.values():
            slot.unload_sent = False
        self.loading = {}
        self.known, self.count = True, capacity.adapter_slots
        self.free = [id for id in range(self.count, 0, -1) if id not in loaded_now]
        for number in (number for slot in gone for number in slot.asked):
            self.answer(number)
        for slot in loading:
            self.retry(slot, crashed=capacity.crashed)
        while self.waiting:
            self.on_asked(self.waiting.popleft(), planned)

    def retry(self, slot: AdapterSlot, *, crashed: bool) -> None:
        """The executor ended while it read this one: read it anew, unless it may be what ended it."""
        adapter = slot.adapter
        for number in slot.asked:
            if crashed:
                text = f"the executor ended while it read {brief(adapter.path)}; it is not tried again"
                self.answer(number, "invalid_request", text)
            else:
                self.add(AddAdapter(number, adapter.name, adapter.path))
