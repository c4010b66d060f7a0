"""What the live views show, from readings that are made up; and ``slipstream top`` on a terminal of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console
from slipstream.protocol.client.snapshot import KEPT_REQUESTS, SHOWN_STEPS, Observer, Snapshot
from slipstream.protocol.client.timeline import LANES, Timeline
from slipstream.protocol.messages import Actors, ActorState
from slipstream.protocol.trace import Moment, Span
from timelines import made_up

from slipstream import SamplingParams, Sidecar, cli
from slipstream.observe.top import View

MS, S = 1_000_000, 1_000_000_000
STEP = 10 * MS

STATES = [
    ActorState(name="executor", state="ready", pid=11, epoch=1, uptime_s=90.0),
    ActorState(name="scheduler", state="dead", pid=12, epoch=2, restarts=3, mailbox_depth=41),
]
ACTORS = Actors(actors=STATES, live=True, ready=True)


def steps(first: int, count: int, begun: int, idle: int = 0) -> list[Span]:
    return [
        Span("step", first + i, begun + i * (STEP + idle), begun + i * (STEP + idle) + STEP)
        for i in range(count)
    ]


def reading(
    compute: list[Span], until: int, *, early: bool = True, moments: list[Moment] | None = None
) -> Timeline:
    """The plan of each step in the middle of the step before it, or after its end."""
    plans = [
        Span("Plan", s.step, at, at + MS)
        for s in compute
        for at in [s.start - (STEP // 2 if early else MS // 2)]
    ]
    return made_up(0, until, {"compute": compute, "scheduler": plans, "gateway": []}, moments=moments)


def snapshot_of(timeline: Timeline, observer: Observer | None = None, **counters: float) -> Snapshot:
    return (observer or Observer("m")).snapshot(ACTORS, counters, timeline)


def test_shares_and_rates_are_of_the_last_two_seconds() -> None:
    begun = 100 * S
    compute = steps(0, 500, begun, idle=STEP // 4)
    until = compute[-1].end
    snapshot = snapshot_of(reading(compute, until))
    assert snapshot.device_busy == pytest.approx(0.8, abs=0.01)
    assert snapshot.steps_per_s == pytest.approx(80, rel=0.02)
    assert snapshot.step_ms == pytest.approx(12.5)
    assert snapshot.gap_us == pytest.approx(2500)
    assert snapshot_of(reading(compute, until + S)).device_busy == pytest.approx(0.4, abs=0.01)
    idle = snapshot_of(reading(compute, until + 60 * S))
    assert (idle.device_busy, idle.steps_per_s, idle.step_ms) == (0.0, 0.0, None)
    assert idle.lanes_age_s == pytest.approx(60)


def test_a_plan_is_ahead_if_it_was_there_before_the_step_before_it_had_ended() -> None:
    assert snapshot_of(reading(steps(7, 30, S), 2 * S)).ahead == 1.0
    assert snapshot_of(reading(steps(7, 30, S, idle=2 * MS), 2 * S, early=False)).ahead == 0.0


def test_the_lanes_show_the_last_steps_that_followed_on_one_another() -> None:
    compute = steps(0, 40, S) + steps(40, 3, 3 * S)
    snapshot = snapshot_of(reading(compute, 4 * S))
    assert [lane.track for lane in snapshot.lanes] == [lane.track for lane in LANES]
    assert (snapshot.first_step, snapshot.last_step) == (40 - SHOWN_STEPS, 39)
    (shown,) = [lane.spans for lane in snapshot.lanes if lane.track == "compute"]
    assert shown[0] == (40 - SHOWN_STEPS, 0.0, 10_000.0)
    assert shown[-1][2] == pytest.approx(snapshot.lanes_span)


def test_while_nothing_runs_the_last_picture_stays() -> None:
    observer = Observer("m")
    first = snapshot_of(reading(steps(0, 20, S), 2 * S), observer)
    later = snapshot_of(reading([], 9 * S), observer)
    assert later.lanes == first.lanes
    assert later.lanes_age_s == pytest.approx(9 - 1.2)
    assert snapshot_of(reading([], 9 * S)).lanes == []


def test_latencies_are_told_once_for_each_request_however_often_its_moments_are_read() -> None:
    observer = Observer("m")
    moments = [Moment("arrived", 1, 10 * MS), Moment("first token", 1, 30 * MS)]
    assert snapshot_of(reading([], S, moments=moments), observer).ttft is not None
    moments += [
        Moment("arrived", 2, S),
        Moment("finished", 1, S + 10 * MS),
        Moment("first token", 2, S + 40 * MS),
    ]
    snapshot = snapshot_of(reading([], 2 * S, moments=moments), observer)
    assert list(observer.ttft) == pytest.approx([20.0, 40.0])
    assert list(observer.e2el) == pytest.approx([1000.0])
    assert snapshot.ttft is not None
    assert (snapshot.ttft.p50, snapshot.ttft.p90) == pytest.approx((30.0, 38.0))
    unfinished = [Moment("arrived", n, 3 * S + n) for n in range(10, 15)] + [
        Moment("finished", n, 4 * S + n) for n in range(10, 15)
    ]
    assert len(list(observer.e2el)) == 1
    snapshot_of(reading([], 5 * S, moments=unfinished), observer)
    assert len(observer.e2el) == 1, "a request that ended without a token has no latency"
    assert not observer.arrived.keys() - {2}


def test_what_is_remembered_of_requests_is_bounded() -> None:
    observer = Observer("m")
    for n in range(3 * KEPT_REQUESTS):
        at = n * MS + 1
        moments = [
            Moment("arrived", n, at),
            Moment("first token", n, at + 1000),
            Moment("finished", n, at + 2000),
        ]
        observer.take_in_requests(reading([], S, moments=moments))
    assert len(observer.ttft) == len(observer.e2el) == KEPT_REQUESTS
    assert not observer.arrived
    assert not observer.first_tokens


def test_rates_of_counters_survive_a_new_scheduler_that_counts_from_zero() -> None:
    observer = Observer("m")
    rates = [
        snapshot_of(reading([], time * S), observer, generation_tokens=tokens).tokens_per_s
        for time, tokens in [(1, 1000.0), (2, 1500.0), (3, 2000.0), (4, 100.0), (5, 400.0)]
    ]
    assert rates == pytest.approx([0.0, 500.0, 500.0, 0.0, 300.0])


def test_the_load_of_an_actor_is_the_share_of_the_last_half_second_that_its_turns_took() -> None:
    turns = [Span("Texts", -1, begun, begun + 100 * MS) for begun in (S, S + 450 * MS, S + 800 * MS)]
    timeline = made_up(0, 2 * S, {"gateway": turns, "tokenizer": []})
    assert snapshot_of(timeline).loads == pytest.approx({"gateway": 0.3, "tokenizer": 0.0})


# --- on a terminal ------------------------------------------------------------------------------


def shown(snapshot: Snapshot, width: int) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"), color_system="truecolor")  # noqa: SIM115
    console.print(View("ipc://e").of(snapshot))
    return console.export_text()


@pytest.mark.parametrize("width", [80, 106, 128, 200])
def test_top_fits_the_width_and_shows_actors_lanes_and_numbers(width: int) -> None:
    compute = steps(100, 30, S)
    text = shown(snapshot_of(reading(compute, compute[-1].end), num_requests_running=7.0), width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    for lane in LANES:
        assert any(line.split()[:1] == [lane.title] for line in lines)
    assert re.search(r"█ step 12\d █", text)
    assert re.search(r"plan 12\d", text)
    assert "7       █" in text
    assert re.search(r"scheduler +● dead +(?:\d+% +)?41 +3", text)
    assert "100% of these steps were planned before the step before them had ended" in re.sub(
        r"\s+", " ", text
    )


def test_top_of_a_service_that_has_done_nothing_says_so() -> None:
    assert "Nothing has run lately." in shown(snapshot_of(reading([], S)), 100)


def test_a_name_with_escape_sequences_does_not_reach_the_terminal_of_top() -> None:
    text = shown(snapshot_of(reading([], S), Observer("a\x1b[2Jb\x9bc\nd")), 100)
    assert r"a\x1b[2Jb\x9bc\nd" in text
    assert not {"\x1b", "\x9b"} & set(text)


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    with Sidecar(device="emulated", emulated_step_ms=5.0, max_num_seqs=8) as started:
        with started.client() as client:
            client.generate("Once", SamplingParams(max_tokens=40, ignore_eos=True))
        yield started


class Read(dict[str, float]):
    """Counters that note which of them are read."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)


def test_every_counter_that_the_views_read_is_one_that_a_service_tells(sidecar: Sidecar) -> None:
    counters = Read()
    Observer("m").snapshot(ACTORS, counters, reading([], S))
    with sidecar.client() as client:
        assert len(counters.names) > 8
        assert counters.names <= client.stats().keys()


def test_top_draws_on_a_terminal_until_ctrl_c_and_leaves_it_as_it_was(sidecar: Sidecar) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 130, 0, 0))
    top = subprocess.Popen(
        [sys.executable, "-m", "slipstream", "top", "--endpoint", sidecar.endpoint],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm-256color"},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a shell's background job ignores it
    )
    os.close(theirs)
    text, asked = "", False
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            if select.select([ours], [], [], 0.2)[0]:
                try:
                    text += os.read(ours, 1 << 16).decode(errors="replace")
                except OSError:  # the terminal's other side is closed
                    break
            if not asked and text.count("device busy") >= 3:
                top.send_signal(signal.SIGINT)
                asked = True
    finally:
        top.kill()
        os.close(ours)
    assert top.wait() == cli.INTERRUPTED, text[-2000:]
    assert "compute" in text
    assert "executor" in text
    assert text.count("\x1b[?1049h") == text.count("\x1b[?1049l") == 1, "the alternate screen is left"


def test_top_prints_one_view_where_there_is_no_terminal(
    sidecar: Sidecar, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["top", "--endpoint", sidecar.endpoint]) == cli.DONE
    told = capsys.readouterr().out
    assert told.count("device busy") == 1
    assert re.search(r"gateway +● ready", told)


def test_top_says_which_extra_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from slipstream.commands import extras

    monkeypatch.setitem(extras.EXTRAS, "top", ("no_such_module",))
    assert cli.main(["top", "--endpoint", "ipc:///tmp/none"]) == cli.USAGE
    assert "pip install 'slipstream[top]'" in capsys.readouterr().err
