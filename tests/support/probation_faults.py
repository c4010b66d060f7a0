"""Faults to plant in what finds out which request kills an actor: each an edit of one line of a production method."""

from __future__ import annotations

from recovery_faults import GATEWAY, SUBMISSIONS, Fault

PROBATION = "actors.gateway.probation:Probation"

PROBATION_FAULTS = [
    Fault(
        "all-run-beside-a-suspect",
        f"{PROBATION}.admits",
        "if not self.active or request is self.tried:",
        "if True:",
    ),
    Fault("nobody-is-given-up", f"{PROBATION}.on_death", "suspicion.requests == [self.tried]", "False"),
    Fault(
        "only-prompts-are-suspect",
        f"{PROBATION}.on_death",
        "self.streams = suspicion.streams or (self.active and self.streams)",
        "self.streams = False",
    ),
    Fault(
        "a-suspect-passes-before-its-death",
        f"{PROBATION}.on_death",
        "request.delivered_tokens + further",
        "0",
    ),
    Fault("no-suspect-passes", f"{PROBATION}.take_passed", "if passed or not is_open:", "if not is_open:"),
    Fault(
        "one-that-left-stays-on-probation",
        f"{PROBATION}.take_passed",
        "if passed or not is_open:",
        "if passed:",
    ),
    Fault(
        "the-next-begins-beside-others",
        f"{PROBATION}.next",
        "or in_hand(requests.values(), streams=self.streams)",
        "",
    ),
    Fault(
        "what-is-closed-stays-suspect",
        "actors.gateway.probation:Suspicion.forget_closed",
        "if request.number in requests",
        "",
    ),
    Fault(
        "one-suspect-is-skipped", f"{PROBATION}.next", "self.tried = self.suspects.pop(", "self.suspects.pop("
    ),
    Fault(
        "what-was-given-up-is-forgotten", f"{PROBATION}.remember", "self.quarantined[request.digest] = why"
    ),
    Fault("those-that-waited-are-forgotten", f"{SUBMISSIONS}.advance_probation", "self.submit(request)"),
    Fault("new-ones-are-sent-while-an-actor-is-down", f"{SUBMISSIONS}.submit", "not self.faulty and ", ""),
    Fault(
        "texts-are-taken-in-together",
        f"{GATEWAY}.parts",
        "isinstance(message, Texts)",
        "False",
    ),
]
