"""The device's clock on the host's: exact after hours, and without a jump."""

from __future__ import annotations

import random

import numpy as np
import pytest
from slipstream.actors.executor.devices.clock import MOVE_EVERY_NS, UNCERTAIN_NS, DeviceClock
from slipstream.actors.executor.pipeline import Pipeline
from slipstream.actors.executor.step.description import Step
from slipstream.actors.executor.step.layout import StepLayout
from slipstream.actors.executor.step.sampling_kind import SamplingKind

HOUR = 3600 * 1_000_000_000
STEP = 5_000_000


class Passed:
    """An event that a device passed at ``ns`` of its own clock; it tells times as CUDA does."""

    def __init__(self, ns: float) -> None:
        self.ns = ns

    def elapsed_time(self, end_event: Passed) -> float:
        return float(np.float32((end_event.ns - self.ns) * 1e-6))


@pytest.mark.parametrize("drift", [0.0, 30e-6, -80e-6])
def test_after_hours_a_time_is_still_exact_to_some_microseconds_and_steps_do_not_overlap(
    drift: float,
) -> None:
    """The host reads its clock around each move, now and then late."""
    rng = random.Random(1)
    clock = DeviceClock(Passed(0.0), 0)
    worst, last_end = 0.0, 0
    for second in range(1, 3 * 3600):
        begin = second * (MOVE_EVERY_NS + 10_000_000)
        for now in range(begin, begin + 2 * STEP, STEP):
            begun, ended = (Passed(time * (1 + drift)) for time in (now, now + STEP - 4000))
            if second > 60:
                assert clock.time_ns(begun) >= last_end
                worst = max(worst, abs(clock.time_ns(ended) - (now + STEP - 4000)))
            last_end = clock.time_ns(ended)
        now = begin + 3 * STEP
        late = UNCERTAIN_NS * 10 if rng.random() < 0.05 else rng.randrange(20_000)
        assert clock.is_due(now)
        clock.move(Passed(now * (1 + drift)), now - rng.randrange(5_000), now + late)
    assert worst < 30_000


def test_the_clock_that_it_replaces_was_off_by_more_than_that() -> None:
    """What this is for: one origin, read as a float of milliseconds after ten hours."""
    clock = DeviceClock(Passed(0.0), 0)
    errors = [
        abs(clock.time_ns(Passed(10 * HOUR + step * STEP / 7)) - 10 * HOUR - step * STEP / 7)
        for step in range(99)
    ]
    assert max(errors) > 100_000


def test_after_a_night_without_work_the_clock_is_set_anew() -> None:
    clock = DeviceClock(Passed(0.0), 0)
    drift = 50e-6
    now = 8 * HOUR
    clock.move(Passed(now * (1 + drift)), now - 2000, now + 2000)
    assert abs(clock.time_ns(Passed((now + STEP) * (1 + drift))) - (now + STEP)) < 5_000


# --- the streams' spans -------------------------------------------------------------------------


class Stamp:
    """An event that has passed at a time that the test gives it."""

    ns = 0

    def query(self) -> bool:
        return True

    def time_ns(self) -> int:
        return self.ns


class Stub:
    """A device and its three streams, on which nothing happens."""

    def __init__(self) -> None:
        self.h2d = self.compute = self.d2h = self

    def event(self) -> Stamp:
        return Stamp()

    def buffer(self, count: int) -> np.ndarray:
        return np.zeros(count, np.int32)

    staging = buffer

    def array(self, staging: np.ndarray) -> np.ndarray:
        return staging

    def nothing(self, *arguments: object, **named: object) -> None:
        return None

    record = copy = launch = wait = notify = check = nothing


def test_a_copy_of_results_that_had_to_wait_for_the_one_before_begins_when_that_has_ended() -> None:
    """The D2H stream may be behind by more than a step where cores are few; its spans still lie side by side."""
    layout = StepLayout(1, decode_only=True, rows=1, tokens=1, logits=1, samples=1)
    work = Step(layout, SamplingKind(), num_samples=1, max_kv_len=8)
    pipeline = Pipeline(Stub(), Stub(), 3, layout.input_size, work.results.size)  # type: ignore[arg-type]
    for step, (computed, copied) in enumerate([(10, 35), (20, 36), (30, 38)]):
        slot = pipeline.acquire()
        pipeline.launch(slot, step, work)
        slot.compute_done.ns, slot.d2h_done.ns = computed, copied  # type: ignore[attr-defined]
    assert [result.d2h for result in pipeline.poll_completed()] == [(10, 35), (35, 36), (36, 38)]
