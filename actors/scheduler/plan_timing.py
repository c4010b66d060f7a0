"""Decides when the next step is planned, while the device has steps to run.

A plan only has to reach the device before the step under way ends. Requests that arrive after a plan was made wait for
the plan after it, so a plan that is made too early lets prompts wait for one more step. While a long step runs, the
next one is therefore planned shortly before the expected end. ``examples/prefill_simulation.py`` shows what that gains.

After a short step the next plan is made at once. If a step ends earlier than expected, the next plan is made when its
result comes, and the device waits for that plan. So the expectation is kept rather too short, by a share that is
learned from the steps. How long a plan takes to reach the device is learned too: where other programs keep the
processors busy it comes late, and from then on plans are made earlier, in the end at once.
"""

from __future__ import annotations

MIN_LEAD_S = 0.0025
"""From a plan to its launch: 0.7 to 1.1 ms at the median on a machine with an H200, where nothing keeps a process
waiting."""

BETWEEN_STEPS_S = 50e-6
"""A device that has its next step begins it some µs after the end of the one before: it has not waited."""

LATE = 3.0
"""After the device has waited for a plan, the next plans are made earlier by this many times the wait. It is more than
1, since a device that waits costs more than a request that misses a plan."""

SOONER = 0.01
"""Share of the way back to ``MIN_LEAD_S`` that each step without a wait takes: after a wait, a hundred steps are
safe."""

MIN_WAIT_S = 0.0015
"""A shorter wait is not worth a wake: few requests arrive in it."""

SLOWLY = 0.05
"""Share of the way back that each step which was not shorter takes: twenty steps, so that a single short step does not
make the next plans late."""


class PlanTiming:
    """Predicts the end of the steps under way, and learns from their real times."""

    def __init__(self) -> None:
        self.began = 0.0
        """When the oldest step under way began on the device, or was sent to it, by the scheduler's clock."""
        self.lead_s = MIN_LEAD_S
        """The lead with which plans are made before they are needed: rises at once and falls slowly."""
        self.share = 0.5
        """The least time of steps as a share of the expected one: falls at once and rises slowly."""

    def begin(self, now: float) -> None:
        """A step begins on the device: it was idle, or another has ended."""
        self.began = now

    def learn(self, expected_s: float, took_s: float, waited_s: float) -> None:
        """A step that was expected to take ``expected_s`` took ``took_s``, after the device had waited for it."""
        late = waited_s > BETWEEN_STEPS_S
        self.lead_s += LATE * waited_s if late else SOONER * (MIN_LEAD_S - self.lead_s)
        if expected_s > 0:
            share = min(1.0, took_s / expected_s)
            self.share = share if share < self.share else self.share + SLOWLY * (share - self.share)

    def due(self, now: float, expected_s: float) -> float:
        """When to plan the next step, ``now`` or later; ``expected_s`` of all steps under way together."""
        due = self.began + self.share * expected_s - self.lead_s
        return due if due - now >= MIN_WAIT_S else now
