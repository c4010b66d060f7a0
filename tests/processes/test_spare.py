"""The spare executor, with real processes: the next incarnation is forked from it, and its own end harms nobody."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import Background, Planted, alive, until
from slipstream.protocol.errors import ServiceUnavailable

from slipstream import SamplingParams, Sidecar

SPARE = "executor.spare"
PARAMS = SamplingParams(max_tokens=200, ignore_eos=True, seed=5)
ACTORS = {"gateway", "tokenizer", "scheduler", "executor", "detokenizer"}


def states(sidecar: Sidecar) -> dict[str, dict[str, Any]]:
    """Of all processes, when each is ready; empty until then."""
    try:
        found = sidecar.actors
    except ServiceUnavailable:
        return {}
    whole = found.keys() == ACTORS | {SPARE} and all(state["state"] == "ready" for state in found.values())
    return found if whole else {}


def whole(sidecar: Sidecar) -> dict[str, dict[str, Any]]:
    until(lambda: states(sidecar), "all are ready, and a spare waits")
    return states(sidecar)


def is_fork_of(pid: int, spare: int) -> bool:
    """A fork has the command line of the one that it is forked from."""
    return psutil.Process(pid).cmdline() == psutil.Process(spare).cmdline()


@pytest.fixture
def sidecar() -> Iterator[Sidecar]:
    with Sidecar(device="emulated", emulated_step_ms=5.0, spare_executor="on") as sidecar:
        yield sidecar


def go_on(sidecar: Sidecar, hit: list[tuple[int, signal.Signals]]) -> None:
    """A stream goes on with the same tokens when these processes are hit."""
    expected = Background(sidecar, "Once upon a time", PARAMS)
    assert expected.end() == "length"
    stream = Background(sidecar, "Once upon a time", PARAMS).begun()
    for pid, number in hit:
        os.kill(pid, number)
    assert stream.end() == "length"
    assert stream.tokens == expected.tokens


def test_the_first_executor_and_each_later_one_is_forked_from_the_spare_and_is_a_child_of_the_supervisor(
    sidecar: Sidecar,
) -> None:
    for _ in range(3):
        before = whole(sidecar)
        executor, spare = before["executor"]["pid"], before[SPARE]["pid"]
        assert (before[SPARE]["role"], before["executor"]["role"]) == ("spare", "actor")
        assert is_fork_of(executor, spare)
        assert psutil.Process(executor).ppid() == sidecar.pid
        assert os.getpgid(executor) == executor, "a signal to the group of another does not reach it"
        go_on(sidecar, [(executor, signal.SIGKILL)])
        after = whole(sidecar)
        assert after[SPARE]["pid"] == spare
        assert after["executor"]["restarts"] == before["executor"]["restarts"] + 1
        assert after["executor"]["epoch"] > before["executor"]["epoch"]
    assert not [child for child in psutil.Process(sidecar.pid).children() if child.status() == "zombie"]


def test_a_spare_that_dies_while_it_waits_harms_no_stream_and_is_followed_by_another(
    sidecar: Sidecar,
) -> None:
    before = whole(sidecar)
    go_on(sidecar, [(before[SPARE]["pid"], signal.SIGKILL)])
    after = whole(sidecar)
    assert after[SPARE]["restarts"] == 1
    assert {name: after[name]["pid"] for name in ACTORS} == {name: before[name]["pid"] for name in ACTORS}
    go_on(sidecar, [(after["executor"]["pid"], signal.SIGKILL)])
    assert is_fork_of(whole(sidecar)["executor"]["pid"], after[SPARE]["pid"])


@pytest.mark.parametrize("number", [pytest.param(signal.SIGKILL, marks=pytest.mark.rest), signal.SIGSTOP])
def test_executor_and_spare_may_die_at_once_and_one_that_is_stopped_is_done_without(
    sidecar: Sidecar, number: signal.Signals
) -> None:
    before = whole(sidecar)
    go_on(sidecar, [(before[SPARE]["pid"], number), (before["executor"]["pid"], signal.SIGKILL)])
    after = whole(sidecar)
    assert not alive([before[SPARE]["pid"]])
    assert after[SPARE]["restarts"] == 1
    assert not is_fork_of(after["executor"]["pid"], after[SPARE]["pid"])


@pytest.mark.rest
def test_two_deaths_within_a_second_are_both_recovered_from_by_the_same_spare(sidecar: Sidecar) -> None:
    spare = whole(sidecar)[SPARE]["pid"]
    expected = Background(sidecar, "Once upon a time", PARAMS)
    expected.end()
    stream = Background(sidecar, "Once upon a time", PARAMS).begun()
    killed: list[int] = []
    for _ in range(2):
        until(lambda: sidecar.pids["executor"] not in killed, "there is another executor")
        killed.append(sidecar.pids["executor"])
        os.kill(killed[-1], signal.SIGKILL)
    until(lambda: sidecar.pids["executor"] not in killed, "there is another executor")
    assert stream.end() == "length"
    assert stream.tokens == expected.tokens
    after = whole(sidecar)
    assert (after[SPARE]["pid"], after["executor"]["restarts"]) == (spare, 2)


@pytest.mark.parametrize("stopped", [SPARE, "executor"])
def test_neither_the_spare_nor_its_forks_outlive_a_killed_supervisor(stopped: str) -> None:
    sidecar = Sidecar(device="emulated", spare_executor="on")
    pids = [sidecar.pid, *(state["pid"] for state in whole(sidecar).values())]
    os.kill(whole(sidecar)[stopped]["pid"], signal.SIGSTOP)
    os.kill(sidecar.pid, signal.SIGKILL)
    until(lambda: alive(pids) == [], "all have ended", 1.0)
    sidecar.stop()


@pytest.mark.rest
def test_a_clean_stop_ends_the_spare_too_at_once() -> None:
    sidecar = Sidecar(device="emulated", spare_executor="on")
    pids = [state["pid"] for state in whole(sidecar).values()]
    begun = time.monotonic()
    assert sidecar.stop() == 0
    assert time.monotonic() - begun < 2.0
    assert alive(pids) == []


def test_what_cannot_start_as_a_fork_is_started_from_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "no forks"
    factories: dict[str, str] = dict.fromkeys(("executor", SPARE), "planted:executor_that_is_no_fork")
    with Planted(factories, "--spare-executor=on", PLANTED_MARKER=str(marker)) as service:
        marker.touch()
        with service.client() as client:
            before = {state.name: state.pid for state in client.actors().actors}
            os.kill(before["executor"], signal.SIGKILL)
            assert client.generate("Once upon a time", PARAMS).finished
            until(lambda: not alive([before[SPARE]]), "the spare is not used any more")
            restarts = {state.name: state.restarts for state in client.actors().actors}
            assert restarts["executor"] == 2
        code, log = service.stop()
    assert code == 0
    assert "planted: this is a fork" in log


@pytest.mark.rest
def test_what_a_fork_prints_goes_into_the_log_under_its_name() -> None:
    factories: dict[str, str] = dict.fromkeys(("executor", SPARE), "planted:printing_executor")
    with Planted(factories, "--spare-executor=on", "--log-format=json", PLANTED_MARKER="/nowhere") as service:
        _, log = service.stop()
    assert any('"actor": "executor"' in line and "printed by a fork" in line for line in log.splitlines())


def test_a_spare_executor_on_a_cpu_has_no_thread_and_shares_most_of_its_memory_with_the_running_one() -> None:
    with Sidecar(device="cpu", dtype="float32", max_num_seqs=4, kv_cache_memory=8 << 20) as sidecar:
        found = whole(sidecar)
        process = psutil.Process(found[SPARE]["pid"])
        assert process.num_threads() == 1
        own, shared = process.memory_full_info().uss, process.memory_info().rss
        print(f"the spare: {own >> 20} MB of its own, {shared >> 20} MB in all")
        assert own < 250 << 20 < shared
        go_on(sidecar, [(found["executor"]["pid"], signal.SIGKILL)])
        assert whole(sidecar)[SPARE]["pid"] == process.pid
