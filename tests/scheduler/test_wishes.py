"""Everything that a request may ask, any two things together, through all actors: see ``chorus.py``."""

from __future__ import annotations

import pytest
from chorus import Wishes
from race_faults import Edits, edited
from slipstream.protocol.limits import PROMPT_LOGPROBS_PER_STEP
from slipstream.protocol.sampling import SamplingParams

SEEDS = 4
"""Worlds of each part; with ``--soak`` 80."""


def test_nothing_that_a_request_may_ask_is_left_out() -> None:
    worlds = [Wishes(seed) for seed in range(4)]
    for world in worlds:
        world.load()
    changed = {
        name
        for world in worlds
        for _, params in world.requests.values()
        for name in SamplingParams.__struct_fields__
        if getattr(params, name) != getattr(SamplingParams(), name)
    }
    of_text = {"stop", "include_stop_str_in_output", "skip_special_tokens"}  # the detokenizer's
    assert changed == set(SamplingParams.__struct_fields__) - of_text


@pytest.mark.parametrize("part", range(5))
def test_any_two_wishes_together_are_answered_as_alone(part: int, more: int) -> None:
    """A failure names its seed: ``python tests/support/chorus.py SEED`` replays it."""
    full = False
    for seed in range(part * SEEDS * more, (part + 1) * SEEDS * more):
        world = Wishes(seed)
        try:
            world.load()
        except BaseException as error:
            error.add_note(f"replay: python tests/support/chorus.py {seed}")
            raise
        full = full or world.most_reported == PROMPT_LOGPROBS_PER_STEP
    assert full, "no step was ever asked for the logprobs of more tokens than it may report"


BATCH = "slipstream.actors.executor.step.batch"
GATEWAY = "slipstream.actors.gateway.gateway"
SUBMISSIONS = "slipstream.actors.gateway.submissions"

FAULTS: dict[str, tuple[str, str, Edits]] = {
    "a-join-without-a-chunk-keeps-the-counts-of-the-holder-before": (
        BATCH,
        "batch",
        (("if self.penalised[join.slot]]", "if self.penalised[join.slot] and rows.kind.penalties]"),),
    ),
    "what-is-cached-is-not-counted": (
        BATCH,
        "batch",
        (("for join in penalised if join.start)", "for join in ())"),),
    ),
    "chunks-of-another-slot-are-counted": (
        BATCH,
        "batch",
        (("for chunk in rows.chunks if self.penalised[chunk.slot])", "for chunk in rows.chunks[:0])"),),
    ),
    "a-penalty-is-left-out": (
        BATCH,
        "batch",
        (("penalties=bool(self.penalised[samples].any())", "penalties=bool(self.penalised[samples].all())"),),
    ),
    "numbers-of-answers-that-never-started-are-kept": (
        SUBMISSIONS,
        "gateway",
        (("for answer in request.started", "for answer in request.unfinished"),),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str) -> None:
    module, part, edits = FAULTS[fault]
    planted = edited(module, edits)
    if part == "gateway":
        gateway = edited(GATEWAY, ())
        gateway.Submissions = planted.Submissions  # type: ignore[attr-defined]
        planted = gateway
    faulty = type("Faulty", (Wishes,), {part: planted.RunningBatch if part == "batch" else planted.Gateway})
    assert isinstance(first_error(faulty), AssertionError)


def first_error(faulty: type[Wishes]) -> Exception | None:
    for seed in range(50):
        try:
            faulty(seed).load()
        except Exception as error:
            return error
    return None
