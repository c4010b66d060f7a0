"""The real scheduler under random load, each of its steps checked: see ``lab.py``."""

from __future__ import annotations

from collections import Counter

import pytest
from lab import Lab
from race_faults import BLOCKS, HOLDINGS, PLAN_BUILDER, PLANNER, POOL, PREFIX, Edits, Fault, plant
from slipstream.actors.scheduler.scheduler import Scheduler
from slipstream.protocol.limits import PROMPT_LOGPROBS_PER_STEP

PARTS, STEPS, ALL_STEPS = 3, 300_000, 20_000_000
"""In how many tests, of which ``make test`` runs one, and how many steps together; with ``--soak`` all."""

RUN = 1000
"""Steps of a run, before what is still open is finished."""


@pytest.mark.parametrize(
    "part", [0, *(pytest.param(part, marks=pytest.mark.rest) for part in range(1, PARTS))]
)
def test_whatever_happens_no_step_breaks_a_promise_and_every_token_is_as_it_is_alone(
    part: int, soak: bool
) -> None:
    """A failure names its seed: ``python tests/support/lab.py SEED STEPS`` replays it."""
    decided = Counter[str]()
    ended = Counter[str]()
    wanted = (ALL_STEPS if soak else STEPS) // PARTS
    steps, most_reported, seed = 0, 0, part * wanted
    while steps < wanted:
        lab = Lab(seed)
        try:
            lab.run_steps(RUN)
        except Exception as error:
            error.add_note(f"replay: python tests/support/lab.py {seed} {RUN}")
            raise
        decided.update({name: int(value) for name, value in lab.scheduler.counters.items()})
        ended.update(lab.ended)
        most_reported = max(most_reported, lab.most_reported)
        steps += lab.steps
        seed += 1
    for name in (
        "num_preemptions",
        "num_preemptions_for_fairness",
        "num_block_copies",
        "prefix_cache_hits",
        "wasted_rows",
    ):
        assert decided[name], f"{name} never happened"
    assert most_reported > PROMPT_LOGPROBS_PER_STEP // 4, (
        "no step reported the logprobs of many tokens of prompts"
    )
    if part == 0:  # its seeds reach the bound, those of some other parts do not
        assert most_reported == PROMPT_LOGPROBS_PER_STEP
    assert set(ended) == {"stop", "length", "abort", "matched"}


def test_a_run_is_a_function_of_its_seed() -> None:
    def history(seed: int) -> object:
        lab = Lab(seed)
        lab.run_steps(300)
        return lab.scheduler.counters, lab.ended, lab.asked

    assert history(3) == history(3)
    assert history(3) != history(4)


FAULTS: dict[str, tuple[str, Edits]] = {
    "reused-at-once": (POOL, (("if last_step <= self.completed", "if True"),)),
    "completed-a-step-early": (POOL, (("self.completed = step", "self.completed = step + 1"),)),
    "evicted-while-held": (BLOCKS, (("self.unused.pop(block, None)", "pass"),)),
    "first-holder-gives-back-for-all": (BLOCKS, (("if not references[block]:", "if True:"),)),
    "a-stale-hash-finds-a-block": (BLOCKS, (("del self.block_of[hash]", "pass"),)),
    "hash-without-the-prefix": (PREFIX, (("key=parent, digest_size", "digest_size"),)),
    "a-salt-can-spell-a-block": (PREFIX, ((', person=b"cache salt"', ""),)),
    "prompts-report-more-than-a-step-can": (
        PLAN_BUILDER,
        (("if min(start + tokens, sequence.prompt_len - 1) - start > left:", "if False:"),),
    ),
    "logprobs-of-prompts-of-a-dead-executor-count": (
        PLANNER,
        (("sequence.forget_prompt_logprobs()", "pass"),),
    ),
    "salts-ignored": (
        PREFIX,
        (("sequence.tokens.data, size, sequence.salt", 'sequence.tokens.data, size, b""'),),
    ),
    "copied-before-it-is-written": (PREFIX, (("blocks.written[block] < step", "True"),)),
    "one-block-too-few": (PLANNER, (("-(-length // size) - shared", "length // size - shared"),)),
    "blocks-lost": (
        HOLDINGS,
        (("        self.blocks.release(sequence.block_list, sequence.last_step)\n", ""),),
    ),
    "published-before-it-is-computed": (
        PREFIX,
        (
            (
                "    size = blocks.block_size\n    full =",
                "    size, computed = blocks.block_size, len(known)\n    full =",
            ),
        ),
    ),
    "no-budget": (PLAN_BUILDER, (("if tokens > self.budget:", "if False:"),)),
    "step-filled-beyond-its-size": (
        PLAN_BUILDER,
        (("return size - self.tokens if size > self.tokens else tokens", "return size - self.tokens"),),
    ),
    "slot-reused-at-once": (
        HOLDINGS,
        (("self.slots.retire(slot, sequence.last_step)", "self.slots.retire(slot, -1)"),),
    ),
    "preempted-and-forgotten": (
        HOLDINGS,
        (
            (
                "            self.requeue(sequence)\n        self.waiting",
                "            pass\n        self.waiting",
            ),
        ),
    ),
    "a-length-end-too-late": (
        PLANNER,
        (
            (
                "table.planned[slots] >= table.max_length[slots]",
                "table.planned[slots] > table.max_length[slots]",
            ),
        ),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str) -> None:
    module, edits = FAULTS[fault]
    error = first_error(plant(Fault(fault, "", edits, module=module)).scheduler)
    assert isinstance(error, AssertionError | IndexError), error


def first_error(faulty: type[Scheduler]) -> Exception | None:
    for seed in range(60):
        try:
            Lab(seed, faulty).run_steps(300)
        except Exception as error:
            return error
    return None
