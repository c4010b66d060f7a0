"""The recording device: any device, wrapped, and everything that was asked of it, in the host's order.

A recording is made of what happens, not of what the pipeline says about itself:

- a stream notes each copy, launch, record and wait as the host queues it;
- an event notes when the host saw it passed (``synchronize``);
- the host's view of a staging buffer notes when it is read and written;
- a buffer is allocated when it is asked for, and freed when the last reference to it is gone;
- a runner notes, in the launch that runs it, the buffers it was given and the sequence slots and KV
  blocks that the step uses (``RecordedRunner``);
- a batch notes to whom a plan hands sequence slots and KV blocks (``RecordedBatch``).

``races`` finds what no event orders.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from slipstream.actors.executor.devices.device import Buffer, Device, Event, Stream
from slipstream.actors.executor.step.batch import RunningBatch
from slipstream.actors.executor.step.description import Step
from slipstream.protocol.internal import Plan

if TYPE_CHECKING:
    from slipstream.actors.executor.pipeline import PipelineSlot, StepRunner

HOST = "host"
SEQUENCE_SLOT = "sequence slot"
STATE_SLOT = "state slot"
KV_BLOCK = "KV block"

Kind = Literal["copy", "launch", "record", "wait", "read", "write", "synchronize", "allocate", "free"]
"""The first four are queued on a stream; the host does the others itself."""

Place = tuple[str, int]
"""Memory, independent of who holds it: what it is, and which of its kind."""


class Location(NamedTuple):
    """A place in one of its lives: each hand-out gives it the next generation."""

    kind: str
    number: int
    generation: int = 0

    @property
    def place(self) -> Place:
        return self[:2]


@dataclass(slots=True)
class Operation:
    """One thing that the host did, or queued on a stream."""

    number: int
    """Place in the recording: the order of the host's calls."""
    stream: str
    kind: Kind
    reads: list[Location] = field(default_factory=list)
    writes: list[Location] = field(default_factory=list)
    event: int = -1
    step: int = -1
    """The step staged last."""

    def __str__(self) -> str:
        return f"{self.kind} on {self.stream} (operation {self.number}, step {self.step})"


class Recording:
    """The operations, and the names of what they touch."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.step = -1
        self.buffers: dict[int, Location] = {}
        """By ``id``; the device hands out the buffers of the device that it wraps."""
        self.storages: dict[int, Location] = {}
        """Those that are tensors, by the address of their memory: views are other objects."""
        self.generations: dict[Place, int] = {}
        self.names: dict[Place, str] = {}
        self.running: Operation | None = None
        """The launch whose work runs now; one stream launches, in order."""

    def add(
        self,
        stream: str,
        kind: Kind,
        reads: Iterable[Location] = (),
        writes: Iterable[Location] = (),
        event: int = -1,
    ) -> Operation:
        operation = Operation(len(self.operations), stream, kind, list(reads), list(writes), event, self.step)
        self.operations.append(operation)
        return operation

    def access(self, kind: Literal["read", "write"], location: Location) -> None:
        """The host reads or writes; the same again in a row is one access."""
        touched = [location]
        if self.operations:
            last = self.operations[-1]
            if last.kind == kind and (last.reads if kind == "read" else last.writes) == touched:
                return
        self.add(HOST, kind, touched if kind == "read" else (), touched if kind == "write" else ())

    def touch(self, reads: Iterable[Location], writes: Iterable[Location]) -> None:
        """What the launch that runs now uses, beyond what was declared when it was queued."""
        assert self.running is not None, "only the work of a launch can touch"
        self.running.reads.extend(reads)
        self.running.writes.extend(writes)

    def use(self, reads: Iterable[torch.Tensor], writes: Iterable[torch.Tensor]) -> None:
        """The launch that runs now, or else the host, uses these tensors; those of nobody's buffer do not count."""
        read, written = (
            [found for tensor in tensors if (found := self.storages.get(tensor.untyped_storage().data_ptr()))]
            for tensors in (reads, writes)
        )
        if self.running is not None:
            self.touch(read, written)
            return
        for location in read:
            self.access("read", location)
        for location in written:
            self.access("write", location)

    def hand_out(self, kind: str, number: int) -> Location:
        """A new owner gets the place: a write by the host, so whatever the old owner did must be over."""
        generation = self.generations.get((kind, number), -1) + 1
        self.generations[kind, number] = generation
        location = Location(kind, number, generation)
        self.add(HOST, "allocate", writes=[location])
        return location

    def current(self, kind: str, number: int) -> Location:
        """The place in the life that it has now."""
        return Location(kind, number, self.generations.get((kind, number), 0))

    def allocate(self, kind: str, buffer: Buffer) -> Buffer:
        key = id(buffer)
        location = self.hand_out(kind, sum(1 for place in self.generations if place[0] == kind))
        self.buffers[key] = location
        address = None
        if isinstance(buffer, torch.Tensor):
            address = buffer.untyped_storage().data_ptr()
            self.storages[address] = location
        weakref.finalize(buffer, self.free, key, address).atexit = False
        return buffer

    def free(self, key: int, address: int | None) -> None:
        location = self.buffers.pop(key)
        if address is not None and self.storages.get(address) is location:
            del self.storages[address]
        self.add(HOST, "free", writes=[location])

    def location(self, buffer: Buffer) -> Location:
        location = self.buffers.get(id(buffer))
        if location is None:
            raise ValueError("the buffer was not made by the recording device")
        return location

    def name_slots(self, slots: Sequence[PipelineSlot]) -> None:
        """Call the buffers of the pipeline's slots by the names that they have there."""
        for letter, slot in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", slots, strict=False):
            for buffer in ("staging", "inputs", "outputs", "results"):
                self.names.setdefault(self.location(getattr(slot, buffer)).place, f"{buffer} {letter}")

    def name(self, place: Place) -> str:
        return self.names.get(place, f"{place[0]} {place[1]}")


class HostView(np.ndarray):
    """The host's view of a staging buffer. It tells of every read and write, and so do its slices.

    The buffer protocol (``memoryview``, ``np.frombuffer``) goes past it.
    """

    tell: Callable[[Literal["read", "write"]], None] | None

    def __array_finalize__(self, obj: Any) -> None:
        self.tell = getattr(obj, "tell", None)

    def told(self, kind: Literal["read", "write"]) -> np.ndarray:
        """The plain array, for the access that is now made."""
        if self.tell is not None:
            self.tell(kind)
        return self.view(np.ndarray)

    def __getitem__(self, key: Any) -> Any:
        item = super().__getitem__(key)
        if isinstance(item, HostView) and np.may_share_memory(item.view(np.ndarray), self.view(np.ndarray)):
            return item  # a slice: nothing is read yet
        return self.told("read")[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self.told("write")[key] = value

    def copy(self, order: Any = "C") -> np.ndarray:
        return self.told("read").copy(order)

    def tobytes(self, order: Any = "C") -> bytes:
        return self.told("read").tobytes(order)

    def tolist(self) -> Any:
        return self.told("read").tolist()

    def astype(self, dtype: Any, *args: Any, **kwargs: Any) -> np.ndarray:
        return self.told("read").astype(dtype, *args, **kwargs)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        out = kwargs.get("out", ())
        if out:
            kwargs["out"] = tuple(a.told("write") if isinstance(a, HostView) else a for a in out)
        values = [a.told("read") if isinstance(a, HostView) else a for a in inputs]
        result = getattr(ufunc, method)(*values, **kwargs)
        return out[0] if len(out) == 1 else result

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Any other function of numpy may do both."""
        for argument in (*args, *kwargs.values()):
            for array in argument if isinstance(argument, list | tuple) else (argument,):
                if isinstance(array, HostView):
                    array.told("read")
                    array.told("write")
        return super().__array_function__(func, types, args, kwargs)


class RecordedEvent:
    """An event that notes when the host learns that it has passed."""

    def __init__(self, event: Event, number: int, recording: Recording) -> None:
        self.event = event
        self.number = number
        self.recording = recording

    def query(self) -> bool:
        passed = self.event.query()
        if passed:
            self.recording.add(HOST, "synchronize", event=self.number)
        return passed

    def wait(self) -> None:
        self.event.wait()
        self.recording.add(HOST, "synchronize", event=self.number)

    def time_ns(self) -> int:
        return self.event.time_ns()


class RecordedStream:
    """A stream that notes what is queued."""

    def __init__(self, stream: Stream, recording: Recording) -> None:
        self.stream = stream
        self.name = stream.name
        self.recording = recording

    def copy(self, target: Buffer, source: Buffer, count: int) -> None:
        at = self.recording.location
        self.recording.add(self.name, "copy", reads=[at(source)], writes=[at(target)])
        self.stream.copy(target, source, count)

    def launch(self, work: Callable[[], None], reads: Sequence[Buffer], writes: Sequence[Buffer]) -> None:
        at = self.recording.location
        operation = self.recording.add(self.name, "launch", map(at, reads), map(at, writes))

        def recorded() -> None:
            self.recording.running = operation
            work()
            self.recording.running = None

        self.stream.launch(recorded, reads, writes)

    def record(self, event: RecordedEvent) -> None:
        self.recording.add(self.name, "record", event=event.number)
        self.stream.record(event.event)

    def wait(self, event: RecordedEvent) -> None:
        self.recording.add(self.name, "wait", event=event.number)
        self.stream.wait(event.event)


class RecordingDevice:
    """Does what ``device`` does, and notes it in ``recording``."""

    def __init__(self, device: Device, recording: Recording) -> None:
        self.device = device
        self.recording = recording
        self.name = device.name
        self.completions_fd = device.completions_fd
        self.h2d = RecordedStream(device.h2d, recording)
        self.compute = RecordedStream(device.compute, recording)
        self.d2h = RecordedStream(device.d2h, recording)
        self.events = 0

    def event(self) -> RecordedEvent:
        self.events += 1
        return RecordedEvent(self.device.event(), self.events - 1, self.recording)

    def staging(self, count: int) -> Buffer:
        return self.recording.allocate("staging", self.device.staging(count))

    def buffer(self, count: int) -> Buffer:
        return self.recording.allocate("buffer", self.device.buffer(count))

    def array(self, staging: Buffer) -> np.ndarray:
        view = self.device.array(staging).view(HostView)
        view.tell = functools.partial(self._tell, self.recording.location(staging))
        return view

    def _tell(self, location: Location, kind: Literal["read", "write"]) -> None:
        self.recording.access(kind, location)

    def notify(self, stream: RecordedStream) -> None:
        self.device.notify(stream.stream)

    def check(self) -> None:
        self.device.check()

    def close(self) -> None:
        self.device.close()


Uses = tuple[Step, list[Location], list[Location]]
"""A staged step, and what of sequence slots and KV blocks it reads and writes."""


class RecordedBatch(RunningBatch):
    """Notes to whom each plan hands sequence slots, state slots and KV blocks, and what of them its step uses."""

    def __init__(self, recording: Recording, block_size: int, *sizes: Any, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.recording = recording
        self.block_size = block_size
        self.holders: dict[int, Location] = {}
        """The sequence slot of each row, in the life that the row's sequence was given."""
        self.state_holders: dict[int, Location] = {}
        """The same of state slots, where the model keeps states."""
        self.block_tables: dict[int, list[Location]] = {}
        self.uses: dict[int, Uses] = {}
        """Reads and writes of each staged step, by its ``id``, until a launch runs it."""

    def stage(self, plan: Plan, staging: np.ndarray) -> Step:
        recording, size = self.recording, self.block_size
        recording.step = plan.step
        cached: dict[int, int] = {}
        for join in plan.joins:
            self.holders[join.slot] = recording.hand_out(SEQUENCE_SLOT, join.slot)
            if self.stateful:
                self.state_holders[join.slot] = recording.hand_out(STATE_SLOT, join.slot)
            self.block_tables[join.slot] = []
            cached[join.slot] = join.start // size
        for slot, block in np.frombuffer(plan.blocks, np.int32).reshape(-1, 2).tolist():
            table = self.block_tables[slot]
            shared = len(table) < cached.get(slot, 0)  # found in the prefix cache: its holders share it
            table.append(
                recording.current(KV_BLOCK, block) if shared else recording.hand_out(KV_BLOCK, block)
            )
        step = super().stage(plan, staging)

        layout = step.layout
        if layout.decode_only:
            rows, counts = layout.view(staging, "sample_slots")[: layout.rows].tolist(), [1] * layout.rows
        else:
            rows = layout.view(staging, "row_slots").tolist()
            counts = np.diff(layout.view(staging, "query_start").copy()).tolist()
        reads: list[Location] = []
        writes: list[Location] = []
        for slot, count in zip(rows, counts, strict=True):
            if slot == self.null_slot:
                continue
            end = int(self.position[slot])
            table = self.block_tables[slot][: -(-end // size)]
            reads += table
            writes += [self.holders[slot], *table[(end - count) // size :]]
            if self.stateful and count:
                reads.append(self.state_holders[slot])
                writes.append(self.state_holders[slot])
        for source, target in np.frombuffer(plan.copies, np.int32).reshape(-1, 2).tolist():
            reads.append(recording.current(KV_BLOCK, source))
            writes.append(recording.current(KV_BLOCK, target))
        self.uses[id(step)] = step, reads, writes
        return step


LOGITS = Location("logits of a forward pass", 0)
"""They stay with the runner until the step's sampling."""


class RecordedRunner:
    """Notes, in the launch that runs it, what the runner is given and what the staged step uses."""

    def __init__(self, runner: StepRunner, recording: Recording, batch: RecordedBatch) -> None:
        self.runner = runner
        self.recording = recording
        self.batch = batch

    def run(self, inputs: Buffer, outputs: Buffer, step: Step) -> None:
        self.touch(self.batch.uses.pop(id(step), None), [inputs], [outputs])
        self.runner.run(inputs, outputs, step)

    def begin(self, inputs: Buffer, step: Step) -> None:
        self.touch(self.batch.uses.get(id(step)), [inputs], [])
        self.recording.touch([], [LOGITS])
        self.runner.begin(inputs, step)

    def finish(self, inputs: Buffer, masks: Buffer, outputs: Buffer, step: Step) -> None:
        self.touch(self.batch.uses.pop(id(step), None), [inputs, masks], [outputs])
        self.recording.touch([LOGITS], [])
        self.runner.finish(inputs, masks, outputs, step)

    def touch(self, uses: Uses | None, reads: list[Buffer], writes: list[Buffer]) -> None:
        """Buffers, and what the staged step uses; a graph is captured from a step that nobody staged."""
        _, used, changed = uses or (None, [], [])
        at = self.recording.location
        self.recording.touch([*map(at, reads), *used], [*map(at, writes), *changed])
