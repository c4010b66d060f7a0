"""When decode steps are captured into CUDA graphs. Capturing itself needs a GPU and is measured there."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from slipstream.actors.executor.devices.emulated import EmulatedDevice, EmulatedProgram
from slipstream.actors.executor.executor import IDLE_S, Executor
from slipstream.actors.executor.pipeline import Pipeline
from slipstream.actors.executor.step import graphs
from slipstream.actors.executor.step.batch import RunningBatch, StepShape
from slipstream.actors.executor.step.graphs import GraphedProgram, forward_of
from slipstream.protocol.messages import Capacity, Completed, Plan


class Graphs(GraphedProgram):
    """Notes what is captured and what runs as it is."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.order: list[StepShape] = []
        self.ran: list[StepShape] = []
        self.chosen: list[tuple[torch.Tensor, StepShape]] = []
        program: Any = SimpleNamespace(
            run=lambda inputs, outputs, shape: self.ran.append(shape),
            choose=lambda logits, inputs, masks, outputs, shape: self.chosen.append((logits, shape)),
        )
        stream: Any = SimpleNamespace(stream=None)
        super().__init__(program, stream, 64, sizes)

    def capture(self, shape: StepShape) -> Any:
        self.order.append(shape)
        graph = SimpleNamespace(replay=lambda: None)
        inputs, outputs = torch.zeros(shape.size), torch.zeros(shape.output_size)
        return SimpleNamespace(graph=graph, inputs=inputs, outputs=outputs)

    @torch.inference_mode()
    def step(self, shape: StepShape) -> None:
        self.run(torch.zeros(shape.size), torch.zeros(shape.output_size), shape)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return Graphs((1, 2, 4))


def test_the_largest_is_captured_first(made: Graphs) -> None:
    made.capture_all()
    assert [(shape.decodes, shape.greedy, shape.forward_only) for shape in made.order] == [
        (size, *kind) for size in (4, 2, 1) for kind in ((True, False), (False, False), (True, True))
    ]
    assert not made.capture_next()


def test_a_shape_that_is_met_runs_as_it_is_and_is_captured_next(made: Graphs) -> None:
    met = made.plain_shape(2, False)
    made.step(met)
    assert made.ran == [met]
    assert [made.capture_next(), made.capture_next()] == [True, True]
    assert made.order == [forward_of(met), met]
    made.step(met)
    assert made.ran == [met], "now it is replayed"
    assert made.chosen == []
    made.capture_all()
    assert len(made.order) == len(set(made.order)) == 9


def test_whatever_is_asked_of_its_sampling_a_step_replays_the_forward_pass(made: Graphs) -> None:
    made.capture_all()
    for wanted in (
        {"logprobs": 3},
        {"truncated": True, "nucleus": True, "greedy": False},
        {"truncated": True, "candidates": 64, "greedy": False},
        {"penalties": True},
        {"biased": True},
        {"min_tokens": True},
    ):
        met = replace(made.plain_shape(2, True), padding=1, max_decode_kv_len=9, **wanted)
        made.step(met)
        logits, shape = made.chosen.pop()
        assert logits is made.captured[forward_of(made.plain_shape(2, True))].outputs
        assert shape == met
        assert made.capture_next(), "it is captured as a whole when there is time"
        made.step(met)
        assert made.chosen == []
    assert made.ran == []


def test_the_forward_pass_of_a_step_with_masks_is_a_graph_of_its_own_whatever_its_sampling(
    made: Graphs,
) -> None:
    passed: list[StepShape] = []
    made.program.forward = lambda inputs, shape: passed.append(shape)  # type: ignore[method-assign]
    plain = made.plain_shape(2, False)
    one = replace(plain, masked=((0, 3),), mask_words=8, logprobs=1)
    other = replace(plain, masked=((0, 3), (1, 4)), mask_words=8, greedy=True, truncated=True)

    def forward(shape: StepShape) -> None:
        with torch.inference_mode():
            made.forward(torch.zeros(shape.size), shape)

    forward(one)
    assert passed == [one], "there is no graph yet"
    made.capture_next()
    assert [(shape.forward_only, shape.masked) for shape in made.order] == [(True, ())]
    forward(one)
    forward(other)
    assert passed == [one], "one graph is replayed for both"
    assert made.program.logits is made.captured[made.order[0]].outputs


def test_the_number_of_graphs_is_bounded(made: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 10)
    made.capture_all()
    for columns in range(1, 5):
        shape = made.plain_shape(2, True)
        made.step(replace(shape, logprobs=columns))
    made.capture_all()
    assert len(made.captured) == 10


def test_the_executor_captures_only_while_there_is_nothing_to_run() -> None:
    pieces = [3]

    def idle_work() -> bool:
        pieces[0] -= 1
        return pieces[0] >= 0

    clock = [0]
    device = EmulatedDevice(1.0, clock_ns=lambda: clock[0], realtime=False)
    batch = RunningBatch(2, 8, 2)
    program = EmulatedProgram(2, 16, 50)
    pipeline = Pipeline(device, program, 2, batch.capacity, batch.output_capacity)
    executor = Executor(pipeline, batch, Capacity(5, 8), {}, idle_work)
    assert executor.wake_at == 0.0
    executor.wake(0.0)
    assert pieces == [2]
    assert executor.wake_at == 0.0

    executor.receive("scheduler", Plan(0), 0.0)
    executor.wake(0.0)
    assert pieces == [2], "a step is under way"
    assert executor.wake_at is None
    clock[0] = 10_000_000
    executor.receive("device", Completed(), 0.01)
    assert executor.wake_at == 0.01 + IDLE_S
    for _ in range(3):
        executor.wake(1.0)
    assert executor.wake_at is None, "nothing is left, and an idle service uses no CPU"
