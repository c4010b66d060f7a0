"""What the scheduler makes of the adapters that requests name."""

from __future__ import annotations

from checked_scheduler import FREE, CheckedScheduler, prompt
from slipstream.actors.scheduler.scheduler import Scheduler
from slipstream.protocol.events import PeerUp
from slipstream.protocol.internal import Adapter, Capacity

SQL, VERSE = Adapter(3, "sql", "/sql"), Adapter(1, "verse", "/verse")


def scheduler_with(*adapters: Adapter) -> CheckedScheduler:
    checked = CheckedScheduler(size=16, slots=4)
    checked.give(Capacity(65, 16, adapters=list(adapters)))
    return checked


def lose_executor(checked: CheckedScheduler) -> None:
    """With all that it holds and has under way; another will say what it can."""
    checked.outstanding.clear()
    checked.rows.clear()
    checked.cache.clear()
    checked.give(PeerUp("executor", 2))


def test_a_sequence_joins_with_the_id_of_its_adapter() -> None:
    checked = scheduler_with(SQL, VERSE)
    for request, name in enumerate(["", "verse", "sql"]):
        checked.ask(request, prompt(request, 10), adapter=name, max_tokens=3, **FREE)
    checked.finish_all()
    joins = [join for plan in checked.plans for join in plan.joins]
    assert [join.adapter for join in joins] == [0, 1, 3]


def test_what_is_cached_with_one_adapter_is_found_by_no_request_with_another() -> None:
    checked = scheduler_with(SQL, VERSE)
    for request, (name, salt) in enumerate(
        [("", ""), ("sql", ""), ("verse", ""), ("sql", "a"), ("sql", ""), ("sql", "a"), ("", "a")]
    ):
        checked.ask(request, prompt(1, 64), adapter=name, cache_salt=salt, max_tokens=3, **FREE)
        checked.finish_all()
    starts = [join.start for plan in checked.plans for join in plan.joins]
    assert starts == [0, 0, 0, 0, 63, 63, 0]


def test_an_adapter_that_is_not_loaded_is_refused_by_name_and_others_go_on() -> None:
    checked = scheduler_with(SQL)
    checked.ask(1, prompt(1, 10), max_tokens=3, **FREE)
    checked.ask(2, prompt(1, 10), adapter="verse", max_tokens=3, **FREE)
    checked.finish_all()
    assert checked.ends[1].reason == "length"
    end = checked.ends[2]
    assert (end.reason, end.param) == ("model_not_found", "adapter")
    assert end.message == "adapter='verse' is not loaded; those that are: sql"


def test_what_the_next_executor_could_not_load_ends_what_was_computed_with_it() -> None:
    checked = scheduler_with(SQL, VERSE)
    for request, name in enumerate(["verse", "sql", ""]):
        checked.ask(request, prompt(request, 10), adapter=name, max_tokens=30, **FREE)
    checked.finish_step()
    lose_executor(checked)
    checked.give(Capacity(65, 16, adapters=[Adapter(1, "sql", "/sql")]))
    again = checked.outstanding[0].joins
    checked.finish_all()
    assert [checked.ends[request].reason for request in range(3)] == ["model_not_found", "length", "length"]
    assert sorted(join.adapter for join in again) == [0, 1]


def test_before_an_executor_has_said_what_it_has_nothing_is_refused() -> None:
    checked = scheduler_with()
    checked.scheduler = Scheduler(checked.scheduler.config)
    checked.ask(1, prompt(1, 10), adapter="sql", max_tokens=3, **FREE)
    assert not checked.ends
    checked.give(Capacity(65, 16, adapters=[SQL]))
    checked.finish_all()
    assert checked.ends[1].reason == "length"


def test_it_says_which_adapters_requests_run_and_wait_with() -> None:
    checked = CheckedScheduler(size=16, slots=2)
    checked.give(Capacity(65, 16, adapters=[SQL, VERSE], adapter_slots=4))
    assert checked.scheduler.gauges()["adapter_slots"] == 4.0
    for request, name in enumerate(["sql", "", "verse", "verse"]):
        checked.ask(request, prompt(request, 10), adapter=name, max_tokens=3, **FREE)
    found = {name: value for name, value in checked.scheduler.gauges().items() if "adapter_" in name}
    assert found == {"adapter_slots": 4.0, "adapter_running_sql": 1.0, "adapter_waiting_verse": 2.0}
    checked.finish_all()
    found = {name: value for name, value in checked.scheduler.gauges().items() if "adapter_" in name}
    assert found == {"adapter_slots": 4.0}
