"""How actors are kept alive: decisions as they are, and the whole service with real processes."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from covering import few_of
from processes import NEAR, Background, Planted, Raw, alive, until
from slipstream.actors.executor.devices.kinds import kind_of
from slipstream.actors.executor.step_limit import MARGIN, MIN_S, StepLimit
from slipstream.protocol.actors import ACTORS
from slipstream.protocol.errors import Quarantined
from slipstream.protocol.messages import ActorState
from slipstream.runtime.supervision.control import Report
from slipstream.runtime.supervision.liveness import Liveness
from slipstream.runtime.supervision.probes import SECOND_TIME_FACTOR, START_FACTOR, Probes
from slipstream.runtime.supervision.restarts import (
    BACK_OFF_S,
    INTENSITY,
    MAX_FRONTEND_BACK_OFF_S,
    PERIOD_S,
    TRIES,
    Restarts,
)
from slipstream.runtime.supervision.status import Status
from slipstream.runtime.supervision.stop_requests import SAME_S, StopRequests

from slipstream import SamplingParams, ServiceUnavailable, Sidecar

# --- liveness -----------------------------------------------------------------------------------


def report(turns: int, *, progress: int = 0, working: bool = False, idle: bool = False) -> Report:
    return Report(turns, progress, working, idle, {}, {})


def test_a_pulse_is_probed_while_there_is_something_to_do_and_hangs_without_an_answer() -> None:
    liveness = Liveness(2.0, now=10.0)
    assert not liveness.probe_due(10.0)
    assert liveness.due is not None
    assert liveness.probe_due(liveness.due)
    liveness.ask(liveness.due)
    assert not liveness.probe_due(11.9)
    assert not liveness.hung(11.9)
    assert liveness.hung(12.0)
    liveness.take(report(5), 11.0)
    assert not liveness.hung(12.9)
    assert liveness.hung(13.0)


def test_a_limit_that_the_actor_reports_takes_the_place_of_the_first_one() -> None:
    liveness = Liveness(600.0, now=0.0)
    answer = report(1, working=True)
    answer.hang_limit_s = 10.0
    liveness.take(answer, 5.0)
    assert not liveness.hung(14.9)
    assert liveness.hung(15.0)


def test_a_loop_that_does_not_answer_hangs_long_before_work_that_may_take_long() -> None:
    """On a CPU nobody knows at first how long a step takes: a stopped executor was found after ten minutes."""
    liveness = Liveness(600.0, now=0.0, silence_s=60.0)
    for answered in range(0, 550, 50):
        liveness.take(report(1, working=True), float(answered))
        assert not liveness.hung(answered + 50.0)
    assert not liveness.hung(559.9)
    assert liveness.hung(560.0)
    assert liveness.hangs_after_s == 60.0
    liveness.take(report(2, working=True), 555.0)
    assert not liveness.hung(599.9)
    assert liveness.hung(600.0)
    assert liveness.hangs_after_s == 600.0


@pytest.mark.parametrize(("stated", "most"), [(10.0, 60.0), (600.0, 600.0), (2.0, 2.0)])
def test_a_child_may_be_silent_for_a_minute_or_as_long_as_the_operator_says(
    tmp_path: Path, stated: float, most: float
) -> None:
    probes = Probes({}, Status({}, f"ipc://{tmp_path}/control"))
    spec = SimpleNamespace(name="executor", hang_timeout_s=stated)
    limit_s = 600.0 if stated == 10.0 else stated
    child: Any = SimpleNamespace(spec=spec, since=0.0, hang_timeout_s=limit_s, hung=False, liveness=None)
    probes.begin(child, 1.0)
    assert child.liveness.hangs_at == 1.0 + most


def test_who_hung_by_a_limit_that_was_learned_has_more_time_in_the_next_life_and_no_more_than_the_most(
    tmp_path: Path,
) -> None:
    """Else a step that is slower than it looked would end one executor after the other, each as soon."""
    probes = Probes({}, Status({}, f"ipc://{tmp_path}/control"))
    limits = []
    for learned, hung in (
        (10.0, False),
        (None, True),
        (None, True),
        (None, False),
        (None, True),
        (None, True),
    ):
        child: Any = SimpleNamespace(
            spec=SimpleNamespace(name="executor", hang_timeout_s=10.0),
            since=0.0,
            hang_timeout_s=45.0,
            hung=hung,
            liveness=None,
        )
        probes.begin(child, 1.0)
        limits.append(child.liveness.limit_s)
        child.liveness.limit_s = learned or child.liveness.limit_s
        probes.end_watch(child)
    assert SECOND_TIME_FACTOR == 2.0
    assert limits == [45.0, 10.0, 20.0, 40.0, 40.0, 45.0]


def test_the_time_limit_of_a_step_follows_from_the_largest_one_that_was_measured() -> None:
    step_limit = StepLimit(max_tokens=512, most_s=600.0)
    assert step_limit.limit_s == 600.0
    step_limit.learn(1, 0.05)
    assert step_limit.limit_s == MARGIN * 512 * 0.05
    step_limit.learn(256, 0.6)
    assert step_limit.limit_s == MARGIN * 2 * 0.6
    step_limit.learn(1, 99.0)
    assert step_limit.limit_s == MARGIN * 2 * 0.6, "a smaller step says less of a large one"
    step_limit.learn(512, 0.001)
    assert step_limit.limit_s == MIN_S
    step_limit.learn(512, 1e6)
    assert step_limit.limit_s == 600.0


def test_who_has_nothing_to_do_is_left_alone_until_something_comes() -> None:
    liveness = Liveness(2.0, now=10.0)
    liveness.ask(10.5)
    liveness.take(report(5, idle=True), 10.5)
    assert liveness.due is None
    assert not liveness.hung(1e9)
    liveness.wake(50.0)
    assert not liveness.hung(51.9)
    assert liveness.hung(52.0)


def test_an_answering_loop_whose_work_stands_still_hangs_but_slow_progress_does_not() -> None:
    stuck, slow = Liveness(2.0, now=0.0), Liveness(2.0, now=0.0)
    for tenth in range(1, 19):
        now = tenth / 10
        stuck.take(report(tenth, progress=3, working=True), now)
        assert not stuck.hung(now)
    stuck.take(report(99, progress=3, working=True), 2.1)
    assert stuck.hung(2.1)
    for number in range(10):
        slow.take(report(1, progress=number, working=True), number * 1.9)
        assert not slow.hung(number * 1.9 + 0.05)


def test_work_that_ends_and_begins_anew_is_not_one_long_hang() -> None:
    liveness = Liveness(2.0, now=0.0)
    for number in range(10):
        liveness.take(report(number, progress=1, working=number % 2 == 0), number * 1.5)
        assert not liveness.hung(number * 1.5 + 0.1)


def test_a_supervisor_that_was_away_itself_takes_nobody_to_be_hung() -> None:
    liveness = Liveness(2.0, now=0.0)
    liveness.ask(0.5)
    liveness.reset_timers(100.0)
    assert not liveness.hung(101.9)
    assert liveness.hung(102.0)


# --- restarts -----------------------------------------------------------------------------------


def test_a_child_is_restarted_alone_then_with_all_and_then_not_at_all() -> None:
    restarts = Restarts()
    for _ in range(2):
        decisions = [restarts.on_death("tokenizer", 0.1) for _ in range(INTENSITY)]
        assert [decision.restart for decision in decisions] == ["one"] * INTENSITY
        pauses = [decision.pause_s for decision in decisions]
        assert pauses[:3] == [0.0, BACK_OFF_S, 2 * BACK_OFF_S]
        assert pauses == sorted(pauses)
        last = restarts.on_death("tokenizer", 0.1).restart
        if last == "all":
            continue
        assert last == "none"


def test_a_child_that_has_lived_for_long_begins_a_new_row() -> None:
    restarts = Restarts()
    for _ in range(100):
        assert restarts.on_death("executor", PERIOD_S).restart == "one"


def test_a_frontend_is_restarted_however_often_after_pauses_that_grow_to_a_limit() -> None:
    restarts = Restarts()
    decisions = [restarts.on_death("http", 0.1, frontend=True) for _ in range(100)]
    assert {decision.restart for decision in decisions} == {"one"}
    pauses = [decision.pause_s for decision in decisions]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[1], pauses[-1]) == (0.0, BACK_OFF_S, MAX_FRONTEND_BACK_OFF_S)


def test_deaths_of_one_do_not_count_for_another() -> None:
    restarts = Restarts()
    for _ in range(INTENSITY):
        restarts.on_death("executor", 0.0)
    assert restarts.on_death("scheduler", 0.0).in_a_row == 1


def test_what_is_lost_for_good_is_tried_a_few_times_alone_and_then_not_at_all() -> None:
    restarts = Restarts()
    assert restarts.on_death("executor", 100.0).restart == "one"
    for _ in range(2):
        tries = [restarts.on_death("executor", 0.0, for_good=True) for _ in range(TRIES)]
        assert [decision.restart for decision in tries] == ["one"] * (TRIES - 1) + ["none"]
        assert restarts.on_death("executor", PERIOD_S).restart == "one", "it came back: a new row"


# --- starts -------------------------------------------------------------------------------------


def test_a_restarted_child_has_its_time_to_be_ready_and_is_ended_then(tmp_path: Path) -> None:
    ended: list[int] = []
    process = SimpleNamespace(pid=4711, kill=lambda: ended.append(4711))
    child: Any = SimpleNamespace(
        spec=SimpleNamespace(name="executor"), since=100.0, hung=False, state="starting", process=process
    )
    status = Status({}, f"ipc://{tmp_path}/control")
    probes = Probes({}, status)
    assert probes.check_start(child, 1e6, serving=False) == [], "the first start has a limit of its own"
    probes.first_start_s["executor"] = 20.0
    due = 100.0 + START_FACTOR * 20.0
    assert probes.check_start(child, due - 0.1, serving=True) == [due]
    assert not ended
    assert probes.check_start(child, due, serving=True) == []
    assert (ended, child.hung, child.state) == ([4711], True, "hung")
    status.close()


def test_a_signal_wakes_a_supervisor_that_is_just_about_to_wait() -> None:
    """Its handler in Python has run already or not: what wakes is written by C."""
    requests = StopRequests()
    before = signal.getsignal(signal.SIGUSR1)
    try:
        requests.handle(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        assert os.read(requests.wake_reader, 16) == bytes([signal.SIGUSR1])
        assert requests.idle_signals == [signal.SIGUSR1]
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGUSR1, before)
        for descriptor in (requests.wake_reader, requests.wake_writer):
            os.close(descriptor)


def test_a_signal_that_comes_twice_at_once_asks_for_one_drain_and_later_for_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``timeout`` signals its child, and then the group that the child is in."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    requests = StopRequests()
    try:
        requests.on_signal(signal.SIGTERM, None)
        requests.on_signal(signal.SIGTERM, None)
        now += SAME_S - 0.01
        requests.on_signal(signal.SIGINT, None)
        assert requests.pending
        assert not requests.at_once
        now += 0.01
        requests.on_signal(signal.SIGHUP, None)
        assert not requests.at_once
        requests.on_signal(signal.SIGINT, None)
        assert requests.at_once
    finally:
        for descriptor in (requests.wake_reader, requests.wake_writer):
            os.close(descriptor)


# --- real processes -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def patient() -> Iterator[Sidecar]:
    """A service that takes an actor to hang after two seconds."""
    with Sidecar(device="emulated", emulated_step_ms=5.0, hang_timeout=2.0) as sidecar:
        yield sidecar


def state_of(sidecar: Sidecar, actor: str) -> dict[str, Any]:
    return sidecar.actors[actor]


@pytest.mark.parametrize("actor", few_of(ACTORS, "scheduler", "executor"))
def test_an_actor_that_is_stopped_is_found_within_a_second_of_the_limit_and_no_token_is_lost(
    patient: Sidecar, actor: str, soak: bool
) -> None:
    params = SamplingParams(max_tokens=200, ignore_eos=True, seed=5)
    expected = Background(patient, "Once upon a time", params)
    assert expected.end() == "length"
    for _ in range(4 if soak else 1):
        before = state_of(patient, actor)
        stream = Background(patient, "Once upon a time", params).begun()
        begun = time.monotonic()
        os.kill(before["pid"], signal.SIGSTOP)
        until(lambda pid=before["pid"]: not alive([pid]), f"the {actor} was ended")
        seconds = time.monotonic() - begun
        print(f"{actor}: found after {seconds:.2f} s")
        assert seconds > 1.0
        assert seconds < 2.0 + 1.0 + (0.0 if soak else 2.0)  # the last: a busy machine
        assert stream.end() == "length"
        assert stream.tokens == expected.tokens
        until(lambda: state_of(patient, actor)["state"] == "ready", f"the {actor} is ready again")
        assert state_of(patient, actor)["restarts"] == before["restarts"] + 1


@pytest.mark.rest
def test_an_executor_on_a_cpu_that_is_stopped_is_found_in_seconds_by_steps_of_its_own_or_of_the_last_one() -> (
    None
):
    factories = {"executor": "planted:impatient_executor"}
    # Small steps: a busy machine, beside which ten times what one takes may be more than the least.
    with (
        Planted(factories, "--device=cpu", "--max-num-batched-tokens=32") as service,
        service.client() as client,
    ):

        def executor() -> ActorState:
            return next(state for state in client.actors().actors if state.name == "executor")

        def answer(tokens: int) -> None:
            params = SamplingParams(max_tokens=tokens, ignore_eos=True, seed=5)
            assert client.generate("Once upon a time there was", params).finished

        answer(30)
        pid = executor().pid
        os.kill(pid, signal.SIGSTOP)
        answer(300)
        assert not alive([pid])
        killed = executor().pid
        os.kill(killed, signal.SIGKILL)
        until(lambda: executor().pid != killed and executor().state == "ready", "there is another one")
        pid = executor().pid
        os.kill(pid, signal.SIGSTOP)  # before it has computed anything
        answer(30)
        assert not alive([pid])
        code, log = service.stop()
    assert code == 0
    limits = re.findall(r"executor .* made no progress for ([0-9.]+) s", log)
    assert len(limits) == 2
    assert all(limit == f"{round(float(limit), 1):g}" for limit in limits)
    assert all(1.0 <= float(limit) < kind_of("cpu").step_hangs_s / 10 for limit in limits)


def test_an_actor_that_was_stopped_while_the_service_was_idle_is_found_too(patient: Sidecar) -> None:
    before = state_of(patient, "gateway")
    time.sleep(1.5)  # until nobody is probed any more
    os.kill(before["pid"], signal.SIGSTOP)
    until(lambda: not alive([before["pid"]]), "the gateway was ended")
    with patient.client() as client:
        assert client.generate("Once", SamplingParams(max_tokens=2)).finished


def test_an_actor_that_is_stopped_only_for_a_moment_is_left_alone(patient: Sidecar) -> None:
    before = state_of(patient, "scheduler")
    stream = Background(patient, "Once", SamplingParams(max_tokens=300, ignore_eos=True)).begun()
    os.kill(before["pid"], signal.SIGSTOP)
    time.sleep(0.5)  # well below the limit
    os.kill(before["pid"], signal.SIGCONT)
    assert stream.end() == "length"
    assert len(stream.tokens) == 300
    assert state_of(patient, "scheduler")["pid"] == before["pid"]


@pytest.mark.parametrize(
    ("actor", "planted"),
    [
        pytest.param("detokenizer", "spinning_detokenizer", marks=pytest.mark.rest),
        ("executor", "stalling_executor"),
    ],
)
def test_an_actor_that_spins_or_whose_device_stands_still_is_ended_and_no_token_is_lost(
    actor: str, planted: str, tmp_path: Path, soak: bool
) -> None:
    """The executor's loop answers all the while: it is found since its work does not come forward."""
    marker = tmp_path / "now"
    for _ in range(20 if soak else 1):
        with (
            Planted(
                {actor: f"planted:{planted}"}, "--hang-timeout=1.5", PLANTED_MARKER=str(marker)
            ) as service,
            service.client() as client,
        ):
            params = SamplingParams(max_tokens=100, ignore_eos=True, seed=5)
            expected = client.generate("Once upon a time", params).outputs[0].token_ids
            marker.touch()
            assert client.generate("Once upon a time", params).outputs[0].token_ids == expected
            assert not marker.exists()
            restarts = {state.name: state.restarts for state in client.actors().actors}
            assert restarts[actor] == 1
            until(lambda: client.stats().get("actor_hangs") == 1.0, "the hang is counted")


@pytest.mark.parametrize(
    ("actor", "fault", "deaths"),
    [
        ("scheduler", "poisoned_scheduler", 2),
        *(
            pytest.param(actor, f"poisoned_{actor}", 2, marks=pytest.mark.rest)
            for actor in ("gateway", "tokenizer", "detokenizer")
        ),
        ("gateway", "poisoned_by_texts_gateway", 3),  # after the first it takes in one request's at a time
    ],
)
def test_a_request_that_kills_an_actor_is_given_up_after_few_deaths_and_all_others_are_answered(
    actor: str, fault: str, deaths: int
) -> None:
    with (
        Planted({actor: f"planted:{fault}"}) as service,
        service.client() as client,
        service.client() as victim,
    ):
        params = SamplingParams(max_tokens=400, ignore_eos=True, seed=5)
        expected = client.generate([5, 6, 7], params).outputs[0].token_ids
        stream = client.stream([5, 6, 7], params)
        tokens = list(next(stream).token_ids)
        with pytest.raises(Quarantined, match=rf"the {actor} died .*: it is not tried again"):
            list(victim.stream([5, 666, 7], params, request_id="the-culprit"))
        tokens += [token for delta in stream for token in delta.token_ids]
        assert tokens == expected
        until(lambda: all(s.state == "ready" for s in client.actors().actors), "all are ready")
        with pytest.raises(Quarantined):
            list(victim.stream([5, 666, 7], params))
        restarts = {state.name: state.restarts for state in client.actors().actors}
        assert restarts == dict.fromkeys(restarts, 0) | {actor: deaths}
        _, log = service.stop()
        if actor != "gateway":  # the next gateway refuses it at once
            assert f"request the-culprit failed (quarantined): the {actor} died" in log


def test_how_the_actors_are_is_told_while_one_of_them_hangs(patient: Sidecar) -> None:
    with patient.client() as client:
        pid = state_of(patient, "detokenizer")["pid"]
        os.kill(pid, signal.SIGSTOP)
        told = client.actors()
        assert {state.name for state in told.actors if state.pid == pid} == {"detokenizer"}

        def healed() -> bool:
            found: list[ActorState] = client.actors().actors
            return all(s.state == "ready" and s.pid != pid for s in found if s.name == "detokenizer")

        until(healed, "the detokenizer is ready again")


def test_what_is_still_open_when_the_drain_takes_too_long_is_answered_and_the_exit_code_says_so() -> None:
    sidecar = Sidecar(device="emulated", emulated_step_ms=50.0, shutdown_timeout=0.5)
    pids = [sidecar.pid, *sidecar.pids.values()]
    with Raw(sidecar.endpoint) as raw:
        raw.generate("1", max_tokens=900, ignore_eos=True)
        raw.hear()
        os.kill(sidecar.pid, signal.SIGTERM)
        error = raw.error_of("1")
    assert error["code"] == "unavailable"
    assert "before this request was finished" in error["message"]
    assert sidecar.stop() == 4
    assert "slipstream stopped before everything was finished" in sidecar.log
    assert alive(pids) == []


def test_no_process_outlives_a_killed_supervisor_though_one_of_them_is_stopped() -> None:
    sidecar = Sidecar(device="emulated")
    pids = [sidecar.pid, *sidecar.pids.values()]
    os.kill(sidecar.pids["scheduler"], signal.SIGSTOP)
    os.kill(sidecar.pid, signal.SIGKILL)
    until(lambda: alive(pids) == [], "all have ended", 1.0)
    sidecar.stop()


def ready_pid(sidecar: Sidecar, actor: str) -> int | None:
    """The process of an actor when all are ready; None if one is not."""
    try:
        found = sidecar.actors
    except ServiceUnavailable:
        return None
    ready = len(found) == 5 and all(state["state"] == "ready" for state in found.values())
    return found[actor]["pid"] if ready else None


def test_an_actor_that_finds_no_room_on_the_machine_is_started_when_there_is_some() -> None:
    """Processes and files run out for a while, on a machine that others use too. Here the supervisor may open no
    further file."""
    sidecar = Sidecar(device="emulated", emulated_step_ms=20.0)
    stream = Background(sidecar, "Once upon a time", SamplingParams(max_tokens=400, ignore_eos=True)).begun()
    limits = resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE)
    lowest = min(set(range(limits[0])) - set(map(int, os.listdir(f"/proc/{sidecar.pid}/fd"))))
    killed = sidecar.pids["detokenizer"]
    resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE, (lowest + 1, limits[1]))
    os.kill(killed, signal.SIGKILL)
    until(
        lambda: not alive([sidecar.pid]) or "cannot be started" in sidecar.log,
        "that there is no room is said",
    )
    resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE, limits)
    until(
        lambda: not alive([sidecar.pid]) or ready_pid(sidecar, "detokenizer") not in (None, killed),
        "it is back",
    )
    assert stream.end() == "length"
    assert len(stream.tokens) == 400
    assert sidecar.stop() == 0
    assert sidecar.log.count("detokenizer cannot be started: Too many open files; trying again for 60 s") == 1


def test_an_actor_that_dies_again_and_again_takes_all_with_it_once_and_then_ends_the_service() -> None:
    sidecar = Sidecar(device="emulated", emulated_step_ms=20.0)
    pids = sidecar.pids
    killed = [pids.pop("tokenizer")]
    stream = Background(sidecar, "Once upon a time", SamplingParams(max_tokens=1000, ignore_eos=True)).begun()
    while alive([sidecar.pid]):
        os.kill(killed[-1], signal.SIGKILL)
        until(
            lambda: not alive([sidecar.pid]) or ready_pid(sidecar, "tokenizer") not in (None, killed[-1]),
            "the tokenizer is ready again, or the service gave up",
            2 * NEAR,
        )
        if alive([sidecar.pid]):
            killed.append(ready_pid(sidecar, "tokenizer") or killed[-1])
    assert sidecar.stop() == 4
    assert alive([*pids.values(), *killed]) == []
    assert len(killed) == 12
    assert sidecar.log.count("restarting it") == 10
    assert sidecar.log.count("restarting all") == 1
    block = sidecar.log[sidecar.log.index("slipstream failed") :].splitlines()
    assert block[1].startswith(f"  actor   tokenizer (pid {killed[-1]})")
    assert block[2] == "  cause   killed by SIGKILL"
    with pytest.raises(ServiceUnavailable, match="the service failed: killed by SIGKILL"):
        stream.end()
    assert stream.deltas, "it had begun, and was answered"


def test_a_device_that_is_lost_for_good_ends_the_service_with_one_block_and_exit_code_4(
    tmp_path: Path,
) -> None:
    marker = tmp_path / "lost"
    with Planted(
        {"executor": "planted:executor_whose_device_is_lost"},
        "--emulated-step-ms=20",
        PLANTED_MARKER=str(marker),
    ) as service:
        with service.client() as client:
            pid = next(state.pid for state in client.actors().actors if state.name == "executor")
            stream = client.stream("Once upon a time", SamplingParams(max_tokens=1000, ignore_eos=True))
            next(stream)
            marker.touch()
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(
                ServiceUnavailable, match="the service failed: DeviceLost: device 'cuda:0' served"
            ):
                list(stream)
        _, log = service.process.communicate(timeout=NEAR)
    assert service.process.returncode == 4
    assert log.count("restarting it") == TRIES, (
        "once after the kill, and then as often as it is tried, less one"
    )
    assert "Traceback" not in log
    block = log[log.index("slipstream failed") :].splitlines()
    assert re.fullmatch(r"  actor   executor \(pid [0-9]+\), starting", block[1])
    assert block[3:] == [
        "  cause   DeviceLost: device 'cuda:0' served until now and cannot be used any more: planted",
        "  try     look at the device (nvidia-smi, dmesg), then start the service again",
    ]


@pytest.mark.rest
def test_a_stop_while_all_start_again_is_no_clean_end_and_until_then_the_watchdog_is_fed(
    tmp_path: Path,
) -> None:
    marker, told = tmp_path / "wait", tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(told))
        listener.settimeout(NEAR)
        with (
            Planted(
                {"tokenizer": "planted:waiting_tokenizer"},
                PLANTED_MARKER=str(marker),
                NOTIFY_SOCKET=str(told),
                WATCHDOG_USEC="200000",
            ) as service,
            service.client() as client,
        ):

            def pid() -> int | None:
                state = next(state for state in client.actors().actors if state.name == "tokenizer")
                return state.pid if state.state == "ready" else None

            killed: list[int] = []
            gateway = next(state.pid for state in client.actors().actors if state.name == "gateway")
            for _ in range(INTENSITY + 1):
                until(lambda: pid() not in (None, *killed), "the tokenizer is ready")
                killed.append(pid() or 0)
                if len(killed) > INTENSITY:
                    marker.touch()
                os.kill(killed[-1], signal.SIGKILL)
            until(lambda: not alive([gateway]), "all are started again")
            listener.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while listener.recv(4096):
                    pass
            listener.settimeout(NEAR)
            assert [listener.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            code, log = service.stop()
    assert code == 4
    assert "told to stop while all actors were starting again" in log
