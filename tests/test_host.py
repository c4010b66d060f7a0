"""What the process around an actor promises, with real processes."""

from __future__ import annotations

import itertools
import time

from test_supervision import Planted

from slipstream import SamplingParams


def test_steps_whose_launch_takes_as_long_as_they_are_handed_over_one_by_one() -> None:
    """Not in pairs, of which one token has waited for the launch of the next step."""
    step_s, tokens = 0.03, 60
    with (
        Planted({"executor": "planted:launching_executor"}, f"--emulated-step-ms={step_s * 1000:g}") as service,
        service.client() as client,
    ):
        came: list[float] = []
        for delta in client.stream([5, 6, 7], SamplingParams(max_tokens=tokens, ignore_eos=True)):
            came += [time.monotonic()] * len(delta.token_ids)
        gaps = [later - earlier for earlier, later in itertools.pairwise(came)]
        together = sum(gap < step_s / 3 for gap in gaps)
        print(f"{together} of {len(gaps)} tokens came with the one before")
        assert len(gaps) == tokens - 1
        assert together < tokens / 5
