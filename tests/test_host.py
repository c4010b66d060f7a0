"""What the process around an actor promises, with real processes."""

from __future__ import annotations

from test_supervision import Planted

from slipstream import SamplingParams


def test_steps_whose_launch_takes_as_long_as_they_are_handed_over_one_by_one() -> None:
    """Not in pairs, of which one token has waited for the launch of the next step."""
    with (
        Planted({"executor": "planted:launching_executor"}, "--emulated-step-ms=30") as service,
        service.client() as client,
    ):
        client.generate([5, 6, 7], SamplingParams(max_tokens=60, ignore_eos=True))
        told = [span for span in client.trace().spans("executor") if span.name == "Sampled"]
        steps = client.stats()["steps"]
        print(f"{steps:g} steps were handed over in {len(told)} turns")
        assert steps >= 60
        assert len(told) > 0.8 * steps
