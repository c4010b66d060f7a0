"""Faults to plant in the real pipeline, each an edit of its source, and the place that then races.

An edit whose text is no longer in the source fails loudly: the fault has to be written anew. Of the
faults one was not invented: ``block-held-and-given-back-forgets-its-last-use`` is how the checker found
the block pool.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from dataclasses import dataclass
from types import ModuleType
from unittest import mock

from slipstream.actors.executor.executor import Executor
from slipstream.actors.executor.pipeline import Pipeline
from slipstream.actors.executor.step.graphs import GraphRunner
from slipstream.actors.scheduler.scheduler import Scheduler

PIPELINE = "slipstream.actors.executor.pipeline"
STEP_ACTOR = "slipstream.actors.executor.step_actor"
GRAPHS = "slipstream.actors.executor.step.graphs"
POOL = "slipstream.actors.scheduler.pool"
BLOCKS = "slipstream.actors.scheduler.blocks"
PLAN_BUILDER = "slipstream.actors.scheduler.plan_builder"
PREFIX = "slipstream.actors.scheduler.prefix"
HOLDINGS = "slipstream.actors.scheduler.holdings"
PLANNER = "slipstream.actors.scheduler.planner"
ARRIVALS = "slipstream.actors.scheduler.arrivals"
SCHEDULER = "slipstream.actors.scheduler.scheduler"
SLOT, BLOCK = "sequence slot", "KV block"

ALL, MANY = (1, 2, 3, 4), (2, 3, 4)
"""Depths at which an edit is a fault. With one slot there is no other slot to mix up."""

Edits = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Fault:
    """``edits`` replace text that occurs once in ``module``; ``place`` is what races then, at each of ``depths``."""

    id: str
    place: str
    edits: Edits
    depths: tuple[int, ...] = ALL
    module: str = PIPELINE
    graphed: bool = False
    """Shows only where the runner replays graphs, whose inputs and outputs are the same for every step."""
    first: int = 0
    """The seed to begin with: where a fault that shows in few schedules has shown."""


@dataclass(frozen=True)
class Code:
    """The classes that a service is made of: the real ones, or one with a fault."""

    pipeline: type[Pipeline] = Pipeline
    executor: type[Executor] = Executor
    scheduler: type[Scheduler] = Scheduler
    graphed: type[GraphRunner] = GraphRunner


REAL = Code()


CLASSES: dict[str, tuple[str, ...]] = {
    POOL: ("Pool",),
    BLOCKS: ("BlockPool",),
    PREFIX: ("share_prefix", "publish", "salt_of"),
    PLAN_BUILDER: ("PlanBuilder",),
    HOLDINGS: ("Holdings",),
    PLANNER: ("Planner",),
}
"""What the scheduler's other modules have of these."""


def plant(fault: Fault) -> Code:
    module = edited(fault.module, fault.edits)
    if fault.module == PIPELINE:
        return Code(pipeline=module.Pipeline)
    if fault.module == STEP_ACTOR:
        return Code(executor=type("Executor", (Executor,), {"launch": module.StepActor.launch}))
    if fault.module == GRAPHS:
        return Code(graphed=module.GraphRunner)
    if fault.module in CLASSES:
        parts: dict[str, object] = {name: vars(module)[name] for name in CLASSES[fault.module]}
        if fault.module == POOL:
            with mock.patch.dict(sys.modules, {POOL: module}):
                parts["BlockPool"] = edited(BLOCKS, ()).BlockPool
        for user, name in ((HOLDINGS, "Holdings"), (PLANNER, "Planner"), (ARRIVALS, "Arrivals")):
            if name not in parts:
                module = edited(user, ())
                vars(module).update(parts)
                parts[name] = vars(module)[name]
        module = edited(SCHEDULER, ())
        vars(module).update(parts)
    return Code(scheduler=module.Scheduler)


def edited(name: str, edits: Edits) -> ModuleType:
    """The module as it would be with the edits."""
    original = importlib.import_module(name)
    source = inspect.getsource(original)
    for old, new in edits:
        assert source.count(old) == 1, f"{source.count(old)} times in {name}: {old!r}"
        source = source.replace(old, new)
    module = ModuleType(name)
    module.__package__ = original.__package__
    exec(compile(source, f"<{name}, edited>", "exec"), vars(module))
    return module


def drop(text: str) -> Edits:
    return ((text, "pass"),)


def swap(text: str, other: str) -> Edits:
    """``text`` comes later, where ``other`` is; ``other`` stays before it."""
    return ((text, "pass"), (other, f"{other}\n        {text}"))


H2D_COPY = "self.h2d.copy(slot.inputs, slot.staging, step.layout.input_size)"
H2D_DONE = "self.h2d.record(slot.h2d_done)"
COMPUTE_WAITS = "self.compute.wait(slot.h2d_done)"
COMPUTE_STARTED = "self.compute.record(slot.compute_started)"
RUN = "lambda: self.runner.run(slot.inputs, slot.outputs, step)"
LAUNCH = f"self.compute.launch(\n            {RUN}"
MASKS_COPY = "self.h2d.copy(self.masks, self.mask_staging, step.mask_size)"
MASKS_DONE = "self.h2d.record(self.masks_done)"
MASKS_WAIT = "self.compute.wait(self.masks_done)"
MASKS_DUE = "if self.awaiting_masks is not None and not self.under_way else None"
SAMPLE = "lambda: self.runner.finish(slot.inputs, self.masks, slot.outputs, step)"
COMPUTE_DONE = "self.compute.record(slot.compute_done)"
D2H_WAITS = "self.d2h.wait(slot.compute_done)"
D2H_COPY = "self.d2h.copy(slot.results, slot.outputs, step.results.size)"
D2H_DONE = "self.d2h.record(slot.d2h_done)"
LAUNCHED = "self.under_way.append(slot)"
OVER = "self.under_way[0].d2h_done.query()"
TOKENS = "self.device.array(slot.results)[: step.results.size].copy()"
NEXT_SLOT = "return self.free.popleft()"
RING = "for _ in range(depth)"
STATIC_INPUTS = "self.inputs[: layout.graph_input_size].copy_(inputs[: layout.graph_input_size])"
STATIC_OUTPUTS = "outputs[:size].copy_(self.outputs[:size])"
BEFORE = "(self.under_way[-1] if self.under_way else slot)"
"""The slot of the step before."""


def to_graph(source: str) -> str:
    """A copy of a step's inputs past the slot, to those that graphs read."""
    return f"self.h2d.copy(self.runner.inputs, {source}, step.layout.graph_input_size)"


def shared(field: str, made: str) -> Edits:
    """One buffer for all pipeline slots."""
    return (
        ("self.slots = [", f"shared = {made}\n        self.slots = ["),
        (f"{field}={made},", f"{field}=shared,"),
    )


def replaced(field: str) -> Edits:
    """A new buffer for every step; the last reference to the old one goes while it is in use."""
    made = "staging" if field in ("staging", "results") else "buffer"
    return ((LAUNCHED, f"{LAUNCHED}\n        slot.{field} = self.device.{made}(len(slot.{field}))"),)


FAULTS = (
    # inputs: staging → H2D → compute
    Fault("h2d-done-not-recorded", "inputs", drop(H2D_DONE)),
    Fault("h2d-done-recorded-before-the-copy", "inputs", swap(H2D_COPY, H2D_DONE)),
    Fault("h2d-done-recorded-on-compute", "inputs", ((H2D_DONE, "self.compute.record(slot.h2d_done)"),)),
    Fault("h2d-done-recorded-on-d2h", "inputs", ((H2D_DONE, "self.d2h.record(slot.h2d_done)"),)),
    Fault("h2d-done-recorded-into-h2d-started", "inputs", ((H2D_DONE, "self.h2d.record(slot.h2d_started)"),)),
    Fault("compute-does-not-wait", "inputs", drop(COMPUTE_WAITS)),
    Fault(
        "compute-waits-for-h2d-started", "inputs", ((COMPUTE_WAITS, "self.compute.wait(slot.h2d_started)"),)
    ),
    Fault(
        "compute-waits-for-its-own-event",
        "inputs",
        ((COMPUTE_WAITS, "self.compute.wait(slot.compute_done)"),),
    ),
    Fault("compute-waits-for-d2h-done", "inputs", ((COMPUTE_WAITS, "self.compute.wait(slot.d2h_done)"),)),
    Fault(
        "compute-waits-for-the-slot-before",
        "inputs",
        ((COMPUTE_WAITS, f"self.compute.wait({BEFORE}.h2d_done)"),),
        MANY,
    ),
    Fault(
        "compute-waits-for-slot-a",
        "inputs",
        ((COMPUTE_WAITS, "self.compute.wait(self.slots[0].h2d_done)"),),
        MANY,
    ),
    Fault(
        "compute-waits-before-the-record",
        "inputs",
        ((COMPUTE_WAITS, "pass"), (H2D_COPY, f"{COMPUTE_WAITS}; {H2D_COPY}")),
    ),
    Fault("compute-waits-after-the-launch", "inputs", swap(COMPUTE_WAITS, COMPUTE_DONE)),
    Fault("h2d-waits-in-place-of-compute", "inputs", ((COMPUTE_WAITS, "self.h2d.wait(slot.h2d_done)"),)),
    Fault("d2h-waits-in-place-of-compute", "inputs", ((COMPUTE_WAITS, "self.d2h.wait(slot.h2d_done)"),)),
    Fault("host-asks-in-place-of-waiting", "inputs", ((COMPUTE_WAITS, "slot.h2d_done.query()"),)),
    Fault("inputs-copied-on-d2h", "inputs", ((H2D_COPY, H2D_COPY.replace("h2d", "d2h")),)),
    Fault("inputs-copied-a-second-time-after-the-record", "inputs", ((H2D_DONE, f"{H2D_DONE}; {H2D_COPY}"),)),
    Fault(
        "inputs-copied-to-slot-a",
        "inputs A",
        ((H2D_COPY, H2D_COPY.replace("slot.inputs", "self.slots[0].inputs")),),
        MANY,
    ),
    Fault(
        "inputs-copied-to-the-slot-before",
        "inputs",
        ((H2D_COPY, H2D_COPY.replace("slot.inputs", f"{BEFORE}.inputs")),),
        MANY,
    ),
    Fault(
        "launch-runs-on-the-inputs-before",
        "inputs",
        (
            (
                f"        {LAUNCH}",
                f"        before = {BEFORE}\n        {LAUNCH.replace('slot.inputs', 'before.inputs')}",
            ),
        ),
        MANY,
    ),
    Fault("one-inputs-for-all-slots", "inputs", shared("inputs", "device.buffer(input_size)"), MANY),
    Fault("one-staging-for-all-slots", "staging", shared("staging", "device.staging(input_size)"), MANY),
    Fault(
        "staging-cleared-after-the-launch",
        "staging",
        ((LAUNCHED, f"{LAUNCHED}; self.device.array(slot.staging)[: step.layout.input_size] = 0"),),
    ),
    Fault(
        "staging-written-between-copy-and-launch",
        "staging",
        ((H2D_DONE, f"{H2D_DONE}; self.device.array(slot.staging)[0] += 0"),),
    ),
    Fault("staging-replaced-in-flight", "staging", replaced("staging")),
    Fault("inputs-replaced-in-flight", "inputs", replaced("inputs")),
    # outputs: compute → D2H → host
    Fault("launch-on-h2d", "outputs", ((LAUNCH, LAUNCH.replace("compute", "h2d")),)),
    Fault("launch-on-d2h", "inputs", ((LAUNCH, LAUNCH.replace("compute", "d2h")),)),
    Fault("compute-done-not-recorded", "outputs", drop(COMPUTE_DONE)),
    Fault(
        "compute-done-recorded-before-the-launch",
        "outputs",
        ((COMPUTE_DONE, "pass"), (COMPUTE_STARTED, f"{COMPUTE_STARTED}; {COMPUTE_DONE}")),
    ),
    Fault("compute-done-recorded-on-h2d", "outputs", ((COMPUTE_DONE, "self.h2d.record(slot.compute_done)"),)),
    Fault("compute-done-recorded-on-d2h", "outputs", ((COMPUTE_DONE, "self.d2h.record(slot.compute_done)"),)),
    Fault("d2h-does-not-wait", "outputs", drop(D2H_WAITS)),
    Fault("d2h-waits-for-compute-started", "outputs", ((D2H_WAITS, "self.d2h.wait(slot.compute_started)"),)),
    Fault("d2h-waits-for-h2d-done", "outputs", ((D2H_WAITS, "self.d2h.wait(slot.h2d_done)"),)),
    Fault("d2h-waits-for-its-own-event", "outputs", ((D2H_WAITS, "self.d2h.wait(slot.d2h_done)"),)),
    Fault(
        "d2h-waits-for-the-slot-before",
        "outputs",
        ((D2H_WAITS, f"self.d2h.wait({BEFORE}.compute_done)"),),
        MANY,
    ),
    Fault(
        "d2h-waits-for-slot-a", "outputs", ((D2H_WAITS, "self.d2h.wait(self.slots[0].compute_done)"),), MANY
    ),
    Fault(
        "d2h-waits-before-the-record",
        "outputs",
        ((D2H_WAITS, "pass"), (COMPUTE_STARTED, f"{COMPUTE_STARTED}; {D2H_WAITS}")),
    ),
    Fault("d2h-waits-after-the-copy", "outputs", swap(D2H_WAITS, D2H_COPY)),
    Fault("compute-waits-in-place-of-d2h", "outputs", ((D2H_WAITS, "self.compute.wait(slot.compute_done)"),)),
    Fault("outputs-copied-on-h2d", "outputs", ((D2H_COPY, D2H_COPY.replace("d2h", "h2d")),)),
    Fault("one-outputs-for-all-slots", "outputs", shared("outputs", "device.buffer(output_size)"), MANY),
    Fault("one-results-for-all-slots", "results", shared("results", "device.staging(output_size)"), MANY),
    Fault("outputs-replaced-in-flight", "outputs", replaced("outputs")),
    Fault("results-replaced-in-flight", "results", replaced("results")),
    Fault("d2h-done-not-recorded", "results", drop(D2H_DONE)),
    Fault("d2h-done-recorded-before-the-copy", "results", swap(D2H_COPY, D2H_DONE)),
    Fault("d2h-done-recorded-on-compute", "results", ((D2H_DONE, "self.compute.record(slot.d2h_done)"),)),
    Fault("d2h-done-recorded-on-h2d", "results", ((D2H_DONE, "self.h2d.record(slot.d2h_done)"),)),
    # the host
    Fault(
        "results-read-at-launch",
        "results",
        ((LAUNCHED, f"{LAUNCHED}; self.device.array(slot.results).copy()"),),
    ),
    Fault("results-read-unasked", "results", ((OVER, "True"),)),
    Fault("host-asks-for-compute-done", "results", ((OVER, "self.under_way[0].compute_done.query()"),)),
    Fault("host-asks-for-h2d-done", "results", ((OVER, "self.under_way[0].h2d_done.query()"),)),
    Fault("host-asks-for-slot-a", "results", ((OVER, "self.slots[0].d2h_done.query()"),), MANY),
    Fault("one-done-taken-for-all-done", "results", ((OVER, f"(completed or {OVER})"),), MANY),
    Fault(
        "results-of-the-newest-step-read",
        "results",
        ((TOKENS, TOKENS.replace("slot.results", f"{BEFORE}.results")),),
        MANY,
    ),
    Fault("slot-not-taken", "staging", ((NEXT_SLOT, "return self.free[0]"),), MANY),
    Fault("slot-always-a", "staging", ((NEXT_SLOT, "return self.slots[0]"),), MANY),
    Fault("slot-always-the-last", "staging", ((NEXT_SLOT, "return self.slots[-1]"),), MANY),
    Fault("slot-free-at-launch", "staging", ((LAUNCHED, f"{LAUNCHED}; self.free.append(slot)"),), MANY),
    Fault(
        "slot-free-twice", "staging", (("self.free.append(slot)", "self.free.extend((slot, slot))"),), MANY
    ),
    Fault(
        "the-slot-after-is-freed",
        "staging",
        (("self.free.append(slot)", "self.free.append(self.under_way[0] if self.under_way else slot)"),),
        MANY,
    ),
    Fault(
        "one-slot-under-two-names",
        "staging",
        (
            (RING, ""),
            ("self.slots = [", "self.slots = depth * ["),
        ),
        MANY,
    ),
    Fault(
        "staged-in-slot-a",
        "staging A",
        (("array(slot.staging)", "array(self.pipeline.slots[0].staging)"),),
        MANY,
        STEP_ACTOR,
    ),
    Fault(
        "staged-in-the-slot-before",
        "staging",
        (("array(slot.staging)", "array((*self.pipeline.under_way, slot)[0].staging)"),),
        MANY,
        STEP_ACTOR,
    ),
    # masks: staging → H2D → the second part of a step
    Fault("masks-done-not-recorded", "masks", drop(MASKS_DONE)),
    Fault("masks-done-recorded-before-the-copy", "masks", swap(MASKS_COPY, MASKS_DONE)),
    Fault("masks-done-recorded-on-compute", "masks", ((MASKS_DONE, "self.compute.record(self.masks_done)"),)),
    Fault("sampling-does-not-wait-for-the-masks", "masks", drop(MASKS_WAIT)),
    Fault("sampling-waits-for-the-inputs", "masks", ((MASKS_WAIT, "self.compute.wait(slot.h2d_done)"),)),
    Fault(
        "sampling-waits-before-the-record",
        "masks",
        ((MASKS_WAIT, "pass"), (MASKS_COPY, f"{MASKS_WAIT}; {MASKS_COPY}")),
    ),
    Fault("h2d-waits-in-place-of-sampling", "masks", ((MASKS_WAIT, "self.h2d.wait(self.masks_done)"),)),
    Fault("masks-copied-on-d2h", "masks", ((MASKS_COPY, MASKS_COPY.replace("h2d", "d2h")),)),
    Fault(
        "masks-copied-a-second-time-after-the-record", "masks", ((MASKS_DONE, f"{MASKS_DONE}; {MASKS_COPY}"),)
    ),
    Fault(
        "masks-written-while-the-step-before-is-under-way",
        "mask staging",
        ((MASKS_DUE, "if self.awaiting_masks is not None else None"),),
        MANY,
        first=17,
    ),
    Fault(
        "mask-staging-cleared-after-the-launch",
        "mask staging",
        ((MASKS_DONE, f"{MASKS_DONE}; self.device.array(self.mask_staging)[:] = 0"),),
    ),
    Fault(
        "sampling-on-d2h",
        "logits",
        ((f"self.compute.launch(\n            {SAMPLE}", f"self.d2h.launch(\n            {SAMPLE}"),),
    ),
    # reuse of sequence slots and KV blocks
    Fault(
        "retired-a-step-early",
        BLOCK,
        (("if last_step <= self.completed", "if last_step - 1 <= self.completed"),),
        (2,),
        POOL,
    ),
    Fault(
        "completed-counter-ahead",
        BLOCK,
        (("self.completed = step", "self.completed = step + 1"),),
        (2,),
        POOL,
    ),
    Fault(
        "slots-completed-a-step-early",
        SLOT,
        (("self.slots.complete(step)", "self.slots.complete(step + 1)"),),
        (2, 3),
        HOLDINGS,
    ),
    Fault(
        "slots-retired-at-once",
        SLOT,
        (("self.slots.retire(slot, sequence.last_step)", "self.slots.retire(slot, -1)"),),
        MANY,
        HOLDINGS,
    ),
    Fault("retired-at-once", SLOT, (("if last_step <= self.completed", "if True"),), MANY, POOL),
    Fault(
        "completed-frees-the-next-step-too",
        BLOCK,
        (
            ("self.by_step.pop(step, ())", "self.by_step.pop(step, []) + self.by_step.pop(step + 1, [])"),
            ("if self.retiring.get(number) == step", "if number in self.retiring"),
        ),
        MANY,
        POOL,
    ),
    Fault(
        "blocks-released-a-step-early",
        BLOCK,
        (("self.retire(block, last_use[block])", "self.retire(block, last_use[block] - 1)"),),
        MANY,
        BLOCKS,
    ),
    Fault(
        "blocks-released-at-once",
        BLOCK,
        (("self.retire(block, last_use[block])", "self.reuse(block)"),),
        MANY,
        BLOCKS,
    ),
    Fault(
        "block-held-and-given-back-forgets-its-last-use",
        BLOCK,
        (("self.retire(block, last_use[block])", "self.retire(block, last_step)"),),
        (4,),
        BLOCKS,
        first=19,
    ),
    Fault(
        "blocks-released-by-the-first-holder",
        BLOCK,
        (("if not references[block]:", "if block not in self.retiring:"),),
        ALL,
        BLOCKS,
    ),
    Fault(
        "cached-blocks-released-at-once",
        BLOCK,
        (
            (
                "if last_step <= self.completed",
                "if last_step <= self.completed or number in getattr(self, 'hashes_of', ())",
            ),
        ),
        MANY,
        POOL,
    ),
    Fault("held-block-stays-evictable", BLOCK, (("self.unused.pop(block, None)", "pass"),), ALL, BLOCKS),
    Fault("held-block-stays-retiring", BLOCK, (("self.retiring.pop(block, None)", "pass"),), MANY, BLOCKS),
    Fault(
        "blocks-retired-at-once",
        BLOCK,
        (
            (
                "self.blocks.release(sequence.block_list, sequence.last_step)",
                "self.blocks.release(sequence.block_list, -1)",
            ),
        ),
        MANY,
        HOLDINGS,
    ),
    Fault(
        "source-of-a-copy-given-back-at-once",
        BLOCK,
        (("blocks.release(copied, self.holdings.step)", "blocks.release(copied, -1)"),),
        (3, 4),
        PLANNER,
        first=19,
    ),
    Fault(
        "last-step-of-a-decode-a-step-early",
        BLOCK,
        (("sequence.last_step = self.step - 1 ", "sequence.last_step = self.step - 2 "),),
        MANY,
        HOLDINGS,
    ),
    Fault(
        "last-step-of-a-prefill-forgotten",
        BLOCK,
        (("sequence.last_step = self.holdings.step\n", "pass\n"),),
        MANY,
        PLANNER,
        first=9,
    ),
    Fault(
        "blocks-completed-with-every-launch",
        BLOCK,
        (
            (
                'self.send("executor", plan)',
                'self.send("executor", plan); self.holdings.blocks.complete(plan.step)',
            ),
        ),
        MANY,
        SCHEDULER,
    ),
    # graphs
    Fault(
        "inputs-copied-straight-into-the-graph",
        "graph inputs",
        ((H2D_COPY, to_graph("slot.staging")),),
        MANY,
        graphed=True,
    ),
    Fault(
        "graph-inputs-copied-on-h2d",
        "graph inputs",
        (
            (
                COMPUTE_WAITS,
                f"{to_graph('slot.inputs')}; {H2D_DONE}; {COMPUTE_WAITS}",
            ),
        ),
        MANY,
        graphed=True,
    ),
    Fault(
        "graph-inputs-written-by-the-host",
        "graph inputs",
        ((COMPUTE_WAITS, f"{COMPUTE_WAITS}; self.device.array(self.runner.inputs)[:1] = 0"),),
        MANY,
        graphed=True,
    ),
    Fault(
        "tokens-copied-straight-from-the-graph",
        "graph outputs",
        ((D2H_COPY, D2H_COPY.replace("slot.outputs", "self.runner.outputs")),),
        MANY,
        graphed=True,
    ),
    Fault(
        "replays-on-two-streams",
        "graph inputs",
        ((LAUNCH, LAUNCH.replace("self.compute", "(self.d2h if slot.number % 2 else self.compute)")),),
        MANY,
        graphed=True,
    ),
    Fault(
        "graphs-read-the-inputs-of-the-slot-that-came-first",
        "inputs A",
        ((STATIC_INPUTS, "self.inputs = self.first = getattr(self, 'first', inputs)"),),
        MANY,
        GRAPHS,
        graphed=True,
    ),
    Fault(
        "graphs-write-the-outputs-of-the-slot-that-came-first",
        "outputs A",
        ((STATIC_OUTPUTS, "self.outputs = self.first = getattr(self, 'first', outputs)"),),
        MANY,
        GRAPHS,
        graphed=True,
    ),
    Fault(
        "the-inputs-of-the-step-before-are-read",
        "inputs",
        (
            (
                STATIC_INPUTS,
                "before, self.before = getattr(self, 'before', inputs), inputs; "
                + STATIC_INPUTS.replace("(inputs[", "(before["),
            ),
        ),
        MANY,
        GRAPHS,
        graphed=True,
    ),
)

CHECKER = "races"

CHECKER_FAULTS = {
    "host-order-ignored": (("if stream:\n            join(clock, clocks[0])", "pass"),),
    "event-goes-on-after-its-record": (("= clock.copy()", "= clock"),),
    "first-record-counts": (
        ("events[operation.event] = clock.copy()", "events.setdefault(operation.event, clock.copy())"),
    ),
    "host-waits-ignored": (('kind == "wait" or kind == "synchronize"', 'kind == "wait"'),),
    "stream-waits-ignored": (('kind == "wait" or kind == "synchronize"', 'kind == "synchronize"'),),
    "own-clock-stands-still": (("clock[stream] = operation.number", "pass"),),
    "join-takes-the-earlier": (("number > clock[stream]", "number < clock[stream]"),),
    "ordered-one-too-few": (("operation.number <= known", "operation.number < known"),),
    "overwritten-reads-ignored": (("(writes, reads) if writing else (writes,)", "(writes,)"),),
    "only-the-last-pair": (
        ("        found.append(operation)\n", "        found.append(operation)\n        break\n"),
    ),
    "generations-ignored": (("life[0] != location.generation", "life[0] is None"),),
    "frees-ignored": (('location.generation if kind == "allocate" else None', "location.generation"),),
}
"""Faults in the checker itself: edits of its source."""

HARMLESS = (
    Fault("events-recorded-twice", "", ((H2D_DONE, f"{H2D_DONE}; {H2D_DONE}"),)),
    Fault("host-waits-for-the-copy", "", ((H2D_DONE, f"{H2D_DONE}; slot.h2d_done.wait()"),)),
    Fault(
        "everything-on-one-stream",
        "",
        (
            (
                "self.h2d, self.compute, self.d2h = device.h2d, device.compute, device.d2h",
                "self.h2d = self.compute = self.d2h = device.compute",
            ),
        ),
    ),
    Fault("inputs-copied-on-compute", "", ((H2D_COPY, H2D_COPY.replace("h2d.copy", "compute.copy")),)),
    Fault("h2d-does-not-time-its-start", "", drop("self.h2d.record(slot.h2d_started)")),
    Fault("one-h2d-done-for-all-slots", "", shared("h2d_done", "device.event()")),
    Fault(
        "slot-freed-before-its-results-are-read",
        "",
        (
            ("slot = self.under_way.popleft()", "slot = self.under_way.popleft(); self.free.append(slot)"),
            ("            self.free.append(slot)\n", ""),
        ),
    ),
    Fault(
        "sampling-reads-the-inputs-of-its-own-slot",
        "",
        (("slots = self.inputs[: layout.samples]", "slots = inputs[: layout.samples]"),),
        module=GRAPHS,
        graphed=True,
    ),
    Fault("any-free-slot-will-do", "", ((NEXT_SLOT, "return self.free.pop()"),)),
    Fault("results-not-copied-but-sent-at-once", "", ((TOKENS, TOKENS.replace(".copy()", "")),)),
)
