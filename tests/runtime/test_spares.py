"""When a spare is started and used: decisions alone."""

from __future__ import annotations

from slipstream.runtime.supervision.helper_restarts import FIRST_PAUSE_S, MAX_PAUSE_S
from slipstream.runtime.supervision.restarts import PERIOD_S
from slipstream.runtime.supervision.spares import Spares


def ready_spares(*, from_the_first: bool = True, now: float = 10.0) -> Spares:
    spares = Spares(from_the_first=from_the_first)
    spares.on_start()
    spares.on_ready(now)
    return spares


def test_the_first_incarnation_waits_for_a_spare_only_where_it_comes_first() -> None:
    first, later = Spares(from_the_first=True), Spares(from_the_first=False)
    assert first.due(serving=False, whole=False) == 0.0
    assert later.due(serving=False, whole=False) is None
    first.on_start()
    assert first.source(first=True) == "later"
    assert first.source(first=False) == "nothing", "streams wait for it"
    first.on_ready(5.0)
    assert first.source(first=True) == "spare"
    later.on_start()
    assert later.source(first=True) == "nothing"


def test_a_spare_that_cannot_start_holds_up_the_first_incarnation_no_longer() -> None:
    spares = Spares(from_the_first=True)
    spares.on_start()
    spares.on_death(3.0)
    assert spares.source(first=True) == "nothing"
    assert spares.due(serving=False, whole=False) is None, "the start goes on without one"


def test_the_next_spare_is_started_when_all_actors_are_ready_and_not_before() -> None:
    spares = ready_spares()
    assert spares.due(serving=True, whole=True) is None, "there is one"
    spares.on_death(20.0)
    assert spares.source(first=False) == "nothing"
    assert spares.due(serving=True, whole=False) is None
    assert spares.due(serving=True, whole=True) == 20.0 + FIRST_PAUSE_S


def test_the_pause_grows_while_spares_do_not_last_and_begins_anew_after_one_that_did() -> None:
    spares, now, pauses = ready_spares(), 20.0, []
    for _ in range(10):
        spares.on_death(now)
        due = spares.due(serving=True, whole=True)
        assert due is not None
        pauses.append(due - now)
        now = due
        spares.on_start()
        spares.on_ready(now)
    assert pauses == [min(MAX_PAUSE_S, FIRST_PAUSE_S * 2**n) for n in range(10)]
    spares.on_death(now + PERIOD_S)
    assert spares.due(serving=True, whole=True) == now + PERIOD_S + FIRST_PAUSE_S


def test_a_spare_is_to_blame_for_a_fork_that_could_not_start_and_for_no_other() -> None:
    spares = ready_spares()
    assert spares.is_to_blame(was_ready=False, own_fault=True)
    assert not spares.is_to_blame(was_ready=True, own_fault=True), "what it was asked killed it"
    assert not spares.is_to_blame(was_ready=False, own_fault=False), "it was killed from outside"
    spares.on_death(20.0)
    assert not spares.is_to_blame(was_ready=False, own_fault=True), "it is gone already"
