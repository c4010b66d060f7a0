"""Faults to plant in what decides of spares."""

from __future__ import annotations

from recovery_faults import Fault

SPARES = "runtime.supervision.spares:Spares"

FAULTS = [
    Fault("a-second-spare-is-started", f"{SPARES}.due", "self.running or not", "not"),
    Fault(
        "a-spare-is-started-while-streams-wait",
        f"{SPARES}.due",
        "whole if serving else",
        "True if serving else",
    ),
    Fault(
        "no-spare-comes-after-the-first", f"{SPARES}.due", "whole if serving else", "False if serving else"
    ),
    Fault("the-first-spare-is-not-started", f"{SPARES}.due", "not self.number)", "self.number)"),
    Fault("the-pause-is-not-kept", f"{SPARES}.due", "return self.not_before", "return 0.0"),
    Fault("a-fork-of-what-is-not-ready", f"{SPARES}.source", "self.ready_at is not None", "self.running"),
    Fault(
        "streams-wait-for-a-spare", f"{SPARES}.source", "first and self.from_the_first", "self.from_the_first"
    ),
    Fault(
        "the-first-waits-for-a-dead-spare",
        f"{SPARES}.source",
        "self.from_the_first and self.running",
        "self.from_the_first",
    ),
    Fault(
        "a-new-spare-is-taken-for-ready",
        f"{SPARES}.on_start",
        "self.running, self.ready_at = True, None",
        "self.running, self.ready_at = True, 0.0",
    ),
    Fault("a-spare-is-not-numbered", f"{SPARES}.on_start", "self.number += 1", "self.number = 1"),
    Fault("a-ready-spare-is-not-noted", f"{SPARES}.on_ready", "self.ready_at = now"),
    Fault("a-death-is-not-noted", f"{SPARES}.on_death", "self.running, self.ready_at = False, None"),
    Fault("the-pause-does-not-grow", f"{SPARES}.on_death", "self.in_a_row += 1"),
    Fault("every-spare-begins-a-new-row", f"{SPARES}.on_death", "now - self.ready_at >= PERIOD_S", "True"),
    Fault("the-pause-is-forgotten", f"{SPARES}.on_death", "self.not_before = now +", "self.not_before ="),
    Fault("a-spare-is-never-to-blame", f"{SPARES}.is_to_blame", "not was_ready", "was_ready"),
    Fault("a-spare-is-to-blame-for-a-kill", f"{SPARES}.is_to_blame", "own_fault and ", ""),
    Fault("a-spare-is-to-blame-for-requests", f"{SPARES}.is_to_blame", " and not was_ready", ""),
]
