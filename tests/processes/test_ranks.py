"""Ranks of an executor as processes: if one dies, hangs or cannot start, it is one death, with the right cause."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from covering import few_of
from processes import Background, Planted, until
from slipstream.protocol.client.perfetto import write
from slipstream.protocol.client.timeline import LANES, in_lane
from slipstream.protocol.events import HandedOn
from slipstream.runtime.supervision.control import Failed, Report
from slipstream.runtime.supervision.groups import end_together, hanging
from slipstream.runtime.supervision.liveness import Liveness

from slipstream import SamplingParams, Sidecar
from slipstream.cli import main
from slipstream.drill.actors import Drill
from slipstream.drill.result import clean

RANKS = ("executor", "executor.1", "executor.2")
FAR = 120.0
"""Seconds within which two processes import torch on a busy machine."""

LONG = SamplingParams(max_tokens=150, ignore_eos=True, seed=5)


@pytest.fixture(scope="module")
def three() -> Iterator[Sidecar]:
    """Three ranks on the emulated device, whose steps need no other."""
    with Sidecar(device="emulated", tensor_parallel_size=3, hang_timeout=1.5) as sidecar:
        yield sidecar


def restarts(sidecar: Sidecar) -> dict[str, int]:
    return {name: actor["restarts"] for name, actor in sidecar.actors.items()}


def whole(sidecar: Sidecar) -> None:
    until(lambda: all(a["state"] == "ready" for a in sidecar.actors.values()), "all are ready", FAR)


def test_ranks_are_actors_like_any_other(three: Sidecar) -> None:
    with three.client() as client:
        shown = [actor.name for actor in client.actors().actors]
    assert shown[:3] == list(RANKS)
    assert "for the first of 3 ranks" in three.log


def test_the_steps_of_every_rank_are_on_the_timeline(three: Sidecar, tmp_path: Path) -> None:
    with three.client() as client:
        client.generate("Once upon a time", LONG)
        steps = {span.step for span in client.trace().spans("compute")}
        assert len(steps) > 100
        for follower in ("compute.1", "compute.2"):  # which may be behind
            until(
                lambda track=follower: steps <= {span.step for span in client.trace().spans(track)},
                f"all steps are on {follower}",
            )
        timeline = client.trace()
    lane = next(lane for lane in LANES if lane.track == "executor")
    turns = timeline.spans("executor")
    shown = {(start, end) for _, start, end in in_lane({lane.track: turns}, lane)}
    launches = {(turn.start, turn.end) for turn in turns if turn.name == HandedOn.__name__}
    assert len(launches) > 100
    assert launches <= shown, "the plan's own turn hands it on, and this one launches it"
    with (tmp_path / "trace.json").open("w") as file:
        write(timeline, file)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    threads = {(event["pid"], event["args"]["name"]) for event in events if event["name"] == "thread_name"}
    for rank in RANKS:
        assert {(three.pids[rank], "turns"), (three.pids[rank], "compute stream")} <= threads


@pytest.mark.parametrize("rank", few_of(RANKS, "executor", "executor.1"))
def test_a_rank_that_is_killed_takes_all_with_it_and_no_token_is_lost(three: Sidecar, rank: str) -> None:
    whole(three)
    with three.client() as client:
        expected = client.generate("Once upon a time", LONG).outputs[0].token_ids
    before, pids, told = restarts(three), three.pids, len(three.log)
    stream = Background(three, "Once upon a time", LONG).begun()
    os.kill(pids[rank], signal.SIGKILL)
    assert stream.end() == "length"
    assert stream.tokens == expected
    whole(three)
    after = restarts(three)
    assert after == {name: count + (name in RANKS) for name, count in before.items()}
    assert all((three.pids[name] == pid) == (name not in RANKS) for name, pid in pids.items())
    ended = re.findall(r"^(\S+) \(pid \d+\) ended: (.*)$", three.log[told:], re.MULTILINE)
    assert [name for name, _ in ended] == [rank], "one death, and whose it was"
    assert re.match(r"killed by SIGKILL; restarting all of its group of 3 \(\d of 5 in a row\)", ended[0][1])


def test_a_rank_that_is_killed_while_nothing_is_asked_is_noticed(three: Sidecar) -> None:
    whole(three)
    before = restarts(three)
    os.kill(three.pids["executor.2"], signal.SIGKILL)
    until(lambda: restarts(three)["executor"] == before["executor"] + 1, "the group starts again")
    whole(three)


@pytest.mark.parametrize("rank", ["executor", "executor.1"])
def test_a_rank_that_stands_still_is_ended_with_all_others(rank: str) -> None:
    with Sidecar(device="emulated", tensor_parallel_size=2, hang_timeout=1.5) as sidecar:
        with sidecar.client() as client:
            expected = client.generate("Once upon a time", LONG).outputs[0].token_ids
        stream = Background(sidecar, "Once upon a time", LONG).begun()
        os.kill(sidecar.pids[rank], signal.SIGSTOP)
        second = Background(sidecar, "Once upon a time", LONG)
        assert stream.end() == second.end() == "length"
        assert stream.tokens == second.tokens == expected
        until(lambda: restarts(sidecar)["executor.1"] == 1, "the group starts again")
        ended = re.findall(r"^(\S+) \(pid \d+\) ended: (no progress)", sidecar.log, re.MULTILINE)
        assert ended == [(rank, "no progress")]


@pytest.mark.rest
def test_a_drill_kills_ranks_at_random_instants(soak: bool) -> None:
    rounds = 40 if soak else 1
    drill = Drill(("executor", "executor.1"), rounds, 24, fault="kill", say=print)
    result = asyncio.run(drill.run())
    assert clean(result), result
    assert result["kills"] == 2 * rounds
    assert set(result["by_actor"]) == {"executor", "executor.1"}


WISHES = (
    SamplingParams(max_tokens=60, ignore_eos=True, temperature=0.0),
    SamplingParams(max_tokens=60, ignore_eos=True, seed=3, top_k=30, top_p=0.9, logprobs=2),
    SamplingParams(max_tokens=60, ignore_eos=True, seed=4, repetition_penalty=1.2),
    SamplingParams(max_tokens=60, seed=5, regex="[a-z ]{30,50}"),
)


def test_ranks_that_compute_together_are_killed_and_stopped_under_streams() -> None:
    """On the CPU device each waits for the other in every layer."""
    with Sidecar(device="cpu", dtype="float32", tensor_parallel_size=2, hang_timeout=4.0) as sidecar:
        with sidecar.client() as client:
            expected = [client.generate("Once upon a time", own).outputs[0].token_ids for own in WISHES]
        for rank, number in (("executor", signal.SIGKILL), ("executor.1", signal.SIGSTOP)):
            told = len(sidecar.log)
            streams = [Background(sidecar, "Once upon a time", own) for own in WISHES]
            streams[0].begun()
            os.kill(sidecar.pids[rank], number)
            for stream, tokens in zip(streams, expected, strict=True):
                stream.thread.join(FAR)
                assert stream.end() in ("length", "stop")
                assert stream.tokens == tokens
            ended = re.findall(r"^(\S+) \(pid \d+\) ended: (.*);", sidecar.log[told:], re.MULTILINE)
            cause = "killed by SIGKILL" if number == signal.SIGKILL else "no progress for 4 s"
            assert ended == [(rank, cause)]
            whole(sidecar)


def test_a_rank_that_fails_is_told_with_its_error(tmp_path: Path) -> None:
    marker = tmp_path / "now"
    factories = {"executor.1": "planted:failing_rank"}
    with (
        Planted(factories, "--tensor-parallel-size=2", PLANTED_MARKER=str(marker)) as service,
        service.client() as client,
    ):
        expected = client.generate("Once upon a time", LONG).outputs[0].token_ids
        marker.touch()
        assert client.generate("Once upon a time", LONG).outputs[0].token_ids == expected
        assert not marker.exists()
        _, log = service.stop()
    assert re.search(r"^executor\.1 .*ended: ArithmeticError: this rank has failed", log, re.MULTILINE), log


def test_a_rank_that_cannot_start_says_why_for_all() -> None:
    with Planted({"executor.1": "planted:unable_rank"}, "--tensor-parallel-size=2") as service:
        code, log = service.end()  # a signal to one that is about to end would be what ends it
    assert code == 3
    assert re.search(r"actor   executor\.1 \(pid \d+\), starting", log), log
    assert "cause   MemoryError: this rank has no room" in log


@pytest.mark.parametrize("target", ["executor.0", "executor.x", "scheduler.1", "rank"])
def test_a_drill_of_a_rank_that_cannot_be_is_refused(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drill", "--kill", target]) == 2
    assert f"'{target}' is no actor; give gateway" in capsys.readouterr().err


# --- whose death it was -----------------------------------------------------------------------------


def member(name: str, failure: str | None = None, **other: Any) -> Any:
    """A child of a group, whose process sleeps unless it has failed, of itself (``own``) or of ``another``."""
    command = ["sleep", "100"] if failure is None else ["false"]
    process = subprocess.Popen(command)
    if failure is not None:
        process.wait()
    said = None if failure is None else Failed("serving", "Error", failure, of_another=failure == "another")
    pidfd = os.pidfd_open(process.pid) if failure is None else -1
    return SimpleNamespace(
        spec=SimpleNamespace(name=name), process=process, pidfd=pidfd, failure=said, **{"hung": False} | other
    )


def blamed(first: Any, *others: Any) -> tuple[str, int]:
    child, status = end_together(first, [first, *others], lambda child: None)
    for one in others:
        assert one.process.wait(10) != 0, "all end"
    return child.spec.name, status


def test_a_rank_that_met_the_end_of_another_waits_for_the_news_of_it() -> None:
    """The kernel closes what a killed process has open before it tells of its death."""
    first, killed = member("met it", "another"), member("killed")
    threading.Timer(0.2, killed.process.kill).start()
    assert blamed(first, killed) == ("killed", -signal.SIGKILL)


def test_who_was_killed_from_outside_is_the_cause_of_the_errors_of_others() -> None:
    killed = member("killed")
    killed.process.kill()
    killed.process.wait()
    assert blamed(member("failed", "own"), killed, member("lives")) == ("killed", -signal.SIGKILL)


def test_who_hung_is_the_cause_although_it_was_killed_last() -> None:
    hung = member("hung", hung=True)
    hung.process.kill()
    hung.process.wait()
    other = member("killed")
    other.process.kill()
    other.process.wait()
    assert blamed(other, hung)[0] == "hung"


def test_the_first_of_several_with_an_error_of_their_own_is_the_cause() -> None:
    assert blamed(member("second", "own"), member("first", "own"))[0] == "second"
    assert blamed(member("alone", "another"), member("survivor"))[0] == "alone", (
        "after a while nobody else is to blame"
    )


def test_of_ranks_that_come_no_further_the_one_that_does_not_answer_is_blamed() -> None:
    def rank(name: str, answered: float) -> Any:
        liveness = Liveness(5.0, now=0.0)
        liveness.take(Report(1, 1, True, False, {}, {}), answered)
        liveness.ask(answered + liveness.every_s)
        return SimpleNamespace(spec=SimpleNamespace(name=name), liveness=liveness)

    waits, stopped, other = rank("waits", 5.4), rank("stopped", 0.5), rank("other", 5.6)
    assert hanging(waits, [waits, stopped, other], 5.6) is stopped
    assert hanging(waits, [waits, other], 5.9) is waits
