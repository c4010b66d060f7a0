"""What the scheduler makes of the adapters that requests name."""

from __future__ import annotations

from bench import FREE, Bench, prompt
from slipstream.actors.scheduler.scheduler import Scheduler
from slipstream.protocol.events import PeerUp
from slipstream.protocol.internal import Adapter, Capacity

SQL, VERSE = Adapter(3, "sql", "/sql"), Adapter(1, "verse", "/verse")


def bench_with(*adapters: Adapter) -> Bench:
    bench = Bench(size=16, slots=4)
    bench.give(Capacity(65, 16, adapters=list(adapters)))
    return bench


def lose_executor(bench: Bench) -> None:
    """With all that it holds and has under way; another will say what it can."""
    bench.outstanding.clear()
    bench.rows.clear()
    bench.cache.clear()
    bench.give(PeerUp("executor", 2))


def test_a_sequence_joins_with_the_id_of_its_adapter() -> None:
    bench = bench_with(SQL, VERSE)
    for request, name in enumerate(["", "verse", "sql"]):
        bench.ask(request, prompt(request, 10), adapter=name, max_tokens=3, **FREE)
    bench.finish_all()
    joins = [join for plan in bench.plans for join in plan.joins]
    assert [join.adapter for join in joins] == [0, 1, 3]


def test_what_is_cached_with_one_adapter_is_found_by_no_request_with_another() -> None:
    bench = bench_with(SQL, VERSE)
    for request, (name, salt) in enumerate(
        [("", ""), ("sql", ""), ("verse", ""), ("sql", "a"), ("sql", ""), ("sql", "a"), ("", "a")]
    ):
        bench.ask(request, prompt(1, 64), adapter=name, cache_salt=salt, max_tokens=3, **FREE)
        bench.finish_all()
    starts = [join.start for plan in bench.plans for join in plan.joins]
    assert starts == [0, 0, 0, 0, 63, 63, 0]


def test_an_adapter_that_is_not_loaded_is_refused_by_name_and_others_go_on() -> None:
    bench = bench_with(SQL)
    bench.ask(1, prompt(1, 10), max_tokens=3, **FREE)
    bench.ask(2, prompt(1, 10), adapter="verse", max_tokens=3, **FREE)
    bench.finish_all()
    assert bench.ends[1].reason == "length"
    end = bench.ends[2]
    assert (end.reason, end.param) == ("model_not_found", "adapter")
    assert end.message == "adapter='verse' is not loaded; those that are: sql"


def test_what_the_next_executor_could_not_load_ends_what_was_computed_with_it() -> None:
    bench = bench_with(SQL, VERSE)
    for request, name in enumerate(["verse", "sql", ""]):
        bench.ask(request, prompt(request, 10), adapter=name, max_tokens=30, **FREE)
    bench.finish_step()
    lose_executor(bench)
    bench.give(Capacity(65, 16, adapters=[Adapter(1, "sql", "/sql")]))
    again = bench.outstanding[0].joins
    bench.finish_all()
    assert [bench.ends[request].reason for request in range(3)] == ["model_not_found", "length", "length"]
    assert sorted(join.adapter for join in again) == [0, 1]


def test_before_an_executor_has_said_what_it_has_nothing_is_refused() -> None:
    bench = bench_with()
    bench.scheduler = Scheduler(bench.scheduler.config)
    bench.ask(1, prompt(1, 10), adapter="sql", max_tokens=3, **FREE)
    assert not bench.ends
    bench.give(Capacity(65, 16, adapters=[SQL]))
    bench.finish_all()
    assert bench.ends[1].reason == "length"


def test_it_says_which_adapters_requests_run_and_wait_with() -> None:
    bench = Bench(size=16, slots=2)
    bench.give(Capacity(65, 16, adapters=[SQL, VERSE], adapter_slots=4))
    assert bench.scheduler.gauges()["adapter_slots"] == 4.0
    for request, name in enumerate(["sql", "", "verse", "verse"]):
        bench.ask(request, prompt(request, 10), adapter=name, max_tokens=3, **FREE)
    found = {name: value for name, value in bench.scheduler.gauges().items() if "adapter_" in name}
    assert found == {"adapter_slots": 4.0, "adapter_running_sql": 1.0, "adapter_waiting_verse": 2.0}
    bench.finish_all()
    found = {name: value for name, value in bench.scheduler.gauges().items() if "adapter_" in name}
    assert found == {"adapter_slots": 4.0}
