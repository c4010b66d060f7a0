"""Faults to plant in what finds out which request kills an actor: each an edit of one line of a production method."""

from __future__ import annotations

from recovery_faults import GATEWAY, SUBMISSIONS, Fault

QUARANTINE = "actors.gateway.quarantine:RequestQuarantine"

QUARANTINE_FAULTS = [
    Fault(
        "all-run-beside-a-suspect",
        f"{QUARANTINE}.admits",
        "if not self.active or request is self.on_probation:",
        "if True:",
    ),
    Fault(
        "nobody-is-given-up", f"{QUARANTINE}.on_death", "suspicion.requests == [self.on_probation]", "False"
    ),
    Fault(
        "only-prompts-are-suspect",
        f"{QUARANTINE}.on_death",
        "self.whole_requests = suspicion.whole_requests or (self.active and self.whole_requests)",
        "self.whole_requests = False",
    ),
    Fault(
        "a-suspect-passes-before-its-death",
        f"{QUARANTINE}.on_death",
        "request.delivered_tokens + further",
        "0",
    ),
    Fault("no-suspect-passes", f"{QUARANTINE}.take_passed", "if passed or not is_open:", "if not is_open:"),
    Fault(
        "one-that-left-stays-on-probation",
        f"{QUARANTINE}.take_passed",
        "if passed or not is_open:",
        "if passed:",
    ),
    Fault(
        "the-next-begins-beside-others",
        f"{QUARANTINE}.begin_probation",
        "or in_hand(requests.values(), whole_requests=self.whole_requests)",
        "",
    ),
    Fault(
        "what-is-closed-stays-suspect",
        "actors.gateway.quarantine:Suspicion.forget_closed",
        "if request.number in requests",
        "",
    ),
    Fault(
        "one-suspect-is-skipped",
        f"{QUARANTINE}.begin_probation",
        "self.on_probation = self.suspects.pop(",
        "self.suspects.pop(",
    ),
    Fault(
        "what-was-given-up-is-forgotten", f"{QUARANTINE}.remember", "self.quarantined[request.digest] = why"
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
