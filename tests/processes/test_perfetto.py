"""``slipstream trace``: the file that it writes, read as a viewer reads it."""

from __future__ import annotations

import io
import itertools
import json
import socket
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from slipstream.protocol import endpoints
from slipstream.protocol.client.perfetto import write
from slipstream.protocol.client.timeline import Timeline
from slipstream.protocol.endpoints import running_services
from slipstream.protocol.trace import Moment, Span
from timelines import made_up

from slipstream import SamplingParams, Sidecar, cli
from slipstream.commands.common import Exit
from slipstream.commands.connecting import the_running_service

ACTORS = ("gateway", "tokenizer", "scheduler", "executor", "detokenizer")
REQUESTS, TOKENS = 3, 60

Event = dict[str, Any]
Track = tuple[int, int]
"""Process and thread."""


class File:
    """The events of a file, by what they are."""

    def __init__(self, text: str) -> None:
        self.events: list[Event] = json.loads(text)["traceEvents"]
        named = {(e["pid"], e["tid"], e["name"]): e["args"] for e in self.events if e["ph"] == "M"}
        self.processes = {a["name"]: pid for (pid, _, kind), a in named.items() if kind == "process_name"}
        self.threads = {
            (pid, tid): a["name"] for (pid, tid, kind), a in named.items() if kind == "thread_name"
        }
        self.spans: defaultdict[Track, list[Event]] = defaultdict(list)
        for event in self.events:
            if event["ph"] == "X":
                self.spans[event["pid"], event["tid"]].append(event)
        self.flows: defaultdict[tuple[str, int], list[Event]] = defaultdict(list)
        for event in self.events:
            if event["ph"] in "stf":
                self.flows[event["cat"], event["id"]].append(event)

    def actor(self, name: str) -> list[Event]:
        pid = self.processes[f"slipstream {name}"]
        return self.spans[pid, pid]

    def stream(self, title: str) -> list[Event]:
        (track,) = [track for track, name in self.threads.items() if name == title]
        assert track[0] == self.processes["slipstream executor"]
        return self.spans[track]

    def around(self, event: Event) -> Event:
        """The span that a flow's end is bound to."""
        spans = self.spans[event["pid"], event["tid"]]
        (found,) = [
            s for s in spans if s["ts"] <= event["ts"] <= s["ts"] + s["dur"] and s["ts"] == event["ts"]
        ]
        return found


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    with Sidecar(device="emulated", emulated_step_ms=8.0, max_num_seqs=8) as started:
        yield started


@pytest.fixture(scope="module")
def file(sidecar: Sidecar, tmp_path_factory: pytest.TempPathFactory) -> File:
    path = tmp_path_factory.mktemp("trace") / "trace.json"
    with sidecar.client() as client:
        params = SamplingParams(max_tokens=TOKENS, ignore_eos=True)
        client.generate_many(["Once upon a time"] * REQUESTS, params)
    arguments = ["trace", "--endpoint", sidecar.endpoint, "--seconds", "60", "--output", str(path)]
    assert cli.main(arguments) == cli.DONE
    return File(path.read_text())


def test_every_actor_is_a_process_with_its_pid_and_every_stream_a_track(sidecar: Sidecar, file: File) -> None:
    assert file.processes == {f"slipstream {name}": sidecar.pids[name] for name in ACTORS}
    for name in ACTORS:
        assert file.actor(name)
    for title in ("H2D stream", "compute stream", "D2H stream"):
        assert len(file.stream(title)) >= TOKENS


def test_no_two_spans_of_a_track_overlap(file: File) -> None:
    for track, spans in file.spans.items():
        spans = sorted(spans, key=lambda span: span["ts"])
        for span, after in itertools.pairwise(spans):
            assert span["ts"] + span["dur"] <= after["ts"] + 1e-3, (file.threads[track], span, after)


def test_every_arrow_has_both_ends_in_order_and_each_is_bound_to_a_span(file: File) -> None:
    assert file.flows
    for flow in file.flows.values():
        phases = "".join(event["ph"] for event in flow)
        assert phases == "s" + "t" * (len(flow) - 2) + "f"
        times = [event["ts"] for event in flow]
        assert times == sorted(times)
        for event in flow:
            assert file.around(event)
            assert event["ph"] == "s" or event["bp"] == "e"


def test_a_step_is_followed_from_its_plan_over_launch_and_streams_to_its_text(file: File) -> None:
    whole = 0
    for (kind, step), flow in file.flows.items():
        if kind != "step":
            continue
        path = [(file.threads[e["pid"], e["tid"]], file.around(e)["name"].split()[0], e["pid"]) for e in flow]
        pid = file.processes
        whole += path == [
            ("turns", "Plan", pid["slipstream scheduler"]),
            ("turns", "Plan", pid["slipstream executor"]),
            ("H2D stream", "step", pid["slipstream executor"]),
            ("compute stream", "step", pid["slipstream executor"]),
            ("D2H stream", "step", pid["slipstream executor"]),
            ("turns", "Sampled", pid["slipstream executor"]),
            ("turns", "Texts", pid["slipstream detokenizer"]),
            ("turns", "Texts", pid["slipstream gateway"]),
        ]
        assert file.around(flow[3])["args"]["step"] == step
    assert whole >= TOKENS - 2


def test_a_request_is_followed_through_the_actors_from_its_arrival_to_its_end(file: File) -> None:
    names = {pid: name.removeprefix("slipstream ") for name, pid in file.processes.items()}
    flows = [flow for (kind, _), flow in file.flows.items() if kind == "request"]
    assert len(flows) == REQUESTS
    for flow in flows:
        assert [names[event["pid"]] for event in flow] == [
            *(
                "gateway",
                "tokenizer",
                "scheduler",
                "executor",
                "executor",
                "detokenizer",
                "gateway",
                "gateway",
            )
        ]
        phases = [e for e in file.events if e["ph"] in "be" and e["id"] == flow[0]["id"]]
        begun = [e["name"] for e in phases if e["ph"] == "b"]
        assert begun[1:] == ["tokenize", "wait", "prefill", "decode"]
        assert sorted(begun) == sorted(e["name"] for e in phases if e["ph"] == "e")


def test_at_depth_2_the_plan_of_step_n_plus_1_lies_within_the_computation_of_step_n(file: File) -> None:
    """On a busy machine the scheduler may have to wait for a core now and then."""
    plans = {e["args"]["step"]: e for e in file.actor("scheduler") if e["name"].startswith("Plan")}
    steps = {e["args"]["step"]: e for e in file.stream("compute stream")}
    inside = [
        step["ts"] <= plans[number + 1]["ts"] <= step["ts"] + step["dur"]
        for number, step in steps.items()
        if number + 1 in plans
    ]
    assert len(inside) >= TOKENS - 3
    assert sum(inside) / len(inside) > 0.8


def test_only_the_seconds_that_were_asked_for_are_in_the_file(
    sidecar: Sidecar, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with sidecar.client() as client:
        client.generate("Once", SamplingParams(max_tokens=60, ignore_eos=True))
    path = tmp_path / "short.json"
    arguments = ["trace", "--endpoint", sidecar.endpoint, "--seconds", "0.2", "--output", str(path)]
    assert cli.main(arguments) == cli.DONE
    assert str(path) in capsys.readouterr().out
    timed = [event for event in File(path.read_text()).events if "ts" in event]
    assert min(event["ts"] for event in timed) >= 0
    assert max(event["ts"] + event.get("dur", 0) for event in timed) <= 0.2e6 + 1


def test_what_cannot_be_done_is_said(
    sidecar: Sidecar, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(seconds: str, output: Path) -> str:
        arguments = ["trace", "--endpoint", sidecar.endpoint, "--seconds", seconds, "--output", str(output)]
        assert cli.main(arguments) in (cli.USAGE, cli.FAILED)
        return capsys.readouterr().err

    assert "seconds=-1.0" in fails("-1", tmp_path / "t")
    assert "seconds=nan" in fails("nan", tmp_path / "t")
    assert f"cannot write {tmp_path}/no/t" in fails("1", tmp_path / "no" / "t")


# --- which service ------------------------------------------------------------------------------


@pytest.fixture
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where services put their sockets, for this test alone; a dead service has left one behind."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("SLIPSTREAM_ENDPOINT", raising=False)
    (tmp_path / "slipstream-run-dead").mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "slipstream-run-dead" / "gateway"))
    return tmp_path


def listening(folder: Path) -> socket.socket:
    folder.mkdir()
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(folder / "gateway"))
    made.listen()
    return made


def test_without_an_endpoint_the_one_service_that_runs_is_meant(
    run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mine() -> list[str]:
        return [endpoint for endpoint in running_services() if str(run_directory) in endpoint]

    assert mine() == []
    first = f"ipc://{run_directory}/slipstream-run-a/gateway"
    with listening(run_directory / "slipstream-run-a"):
        assert mine() == [first]
        monkeypatch.setattr(endpoints, "running_services", mine)
        assert the_running_service() == first
        with listening(run_directory / "slipstream-run-b"), pytest.raises(Exit, match="which one"):
            the_running_service()
    with pytest.raises(Exit, match="no service of yours is running"):
        the_running_service()
    monkeypatch.setenv("SLIPSTREAM_ENDPOINT", "ipc:///tmp/named")
    assert the_running_service() == "ipc:///tmp/named"


# --- what a service does not do on demand -------------------------------------------------------

MS = 1_000_000


PIDS = {"gateway": 5, "scheduler": 6, "executor": 7}


def timeline(*moments: Moment, **tracks: list[Span]) -> Timeline:
    return made_up(10 * MS, 100 * MS, tracks, moments=list(moments), pids=PIDS)


def written(timeline: Timeline) -> File:
    text = io.StringIO()
    write(timeline, text)
    return File(text.getvalue())


def test_a_turn_that_plans_two_steps_is_where_both_arrows_begin() -> None:
    plan = Span("Plan", 1, 20 * MS, 21 * MS)
    steps = [Span("step", 1, 30 * MS, 40 * MS), Span("step", 2, 40 * MS, 50 * MS)]
    flows = written(timeline(scheduler=[plan], compute=steps)).flows
    assert {key: [event["ts"] for event in flow] for key, flow in flows.items()} == {
        ("step", 1): [10_000.0, 20_000.0],
        ("step", 2): [10_000.0, 30_000.0],
    }


def test_what_has_one_end_in_the_file_has_no_arrow() -> None:
    tracks = {"gateway": [Span("Texts", 1, 20 * MS, 21 * MS)], "compute": [Span("step", 9, 30 * MS, 40 * MS)]}
    assert written(timeline(Moment("finished", 3, 20 * MS), **tracks)).flows == {}


def test_a_request_that_is_still_open_ends_with_the_file() -> None:
    made = timeline(Moment("arrived", 3, 20 * MS), gateway=[Span("Submit", -1, 20 * MS, 21 * MS)])
    phases = [(e["ph"], e["name"], e["ts"]) for e in written(made).events if e["ph"] in "be"]
    assert phases == [
        ("b", "request 3", 10_000.0),
        ("b", "tokenize", 10_000.0),
        ("e", "tokenize", 90_000.0),
        ("e", "request 3", 90_000.0),
    ]


def test_spans_are_cut_at_the_edges_of_the_time_that_was_asked_for() -> None:
    spans = [Span("step", 1, 0, 5 * MS), Span("step", 2, 5 * MS, 15 * MS), Span("step", 3, 95 * MS, 120 * MS)]
    (compute,) = written(timeline(compute=spans)).spans.values()
    assert [(e["name"], e["ts"], e["dur"]) for e in compute] == [
        ("step 2", 0.0, 5_000.0),
        ("step 3", 85_000.0, 5_000.0),
    ]
