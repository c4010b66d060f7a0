"""``slipstream bench``: the JSON has the fixed keys and values that can be true, and the picture its lanes."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from slipstream.protocol.client.timeline import LANES, Tracks
from slipstream.protocol.messages import Delta
from slipstream.protocol.trace import Span

from slipstream import SlipstreamError, cli
from slipstream.bench.latency import Arrivals, percentile
from slipstream.bench.overlap import full_steps
from slipstream.observe.picture import Panel, as_svg, as_text, gaps, host_ms, typical

OVERLAP_KEYS = [
    *("depth", "rows", "step_ms", "steps", "wall_s", "device_busy_s"),
    *("device_utilization", "output_throughput", "wasted_row_ratio"),
]

THROUGHPUT_KEYS = [
    *("request_throughput", "output_throughput", "total_token_throughput"),
    *(
        f"{statistic}_{kind}_ms"
        for kind in ("ttft", "tpot", "itl", "e2el")
        for statistic in ("mean", "p50", "p99")
    ),
    "device_utilization",
]

SVG = "{http://www.w3.org/2000/svg}"
MS = 1_000_000


def bench(folder: Path, *arguments: str) -> Any:
    """Run ``slipstream bench``; returns the JSON that it wrote."""
    file = folder / "result.json"
    assert cli.main(["bench", *arguments, f"--json={file}"]) == 0
    return json.loads(file.read_text())


# --- the commands -------------------------------------------------------------------------------


def test_overlap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "overlap.svg"
    asked = ("--rows=4", "--step-ms=5", "--steps=60", "--depth=1,2", f"--svg={picture}")
    results = bench(tmp_path, "overlap", *asked)
    assert capsys.readouterr().out == ""
    assert [list(result) for result in results] == [OVERLAP_KEYS] * 2
    assert [result["depth"] for result in results] == [1, 2]
    for result in results:
        assert (result["rows"], result["step_ms"], result["steps"]) == (4, 5.0, 60)
        assert result["wall_s"] >= 60 * 0.005
        assert 0.2 < result["device_busy_s"] <= result["wall_s"]
        assert 0.3 < result["device_utilization"] <= 1.0
        assert result["output_throughput"] == pytest.approx(4 * 60 / result["wall_s"], rel=0.01)
        assert result["wasted_row_ratio"] == 0.0
    root = ET.parse(picture).getroot()
    titles = [text.text for text in root.iter(f"{SVG}text") if text.get("class") == "title"]
    assert titles == ["depth 1: synchronous batching", "depth 2: asynchronous batching"]


def test_a_run_longer_than_the_model_allows(tmp_path: Path) -> None:
    (result,) = bench(
        tmp_path, "overlap", "--rows=2", "--step-ms=0.2", "--steps=1100", "--depth=2", "--rounds=2"
    )
    assert result["steps"] == 1100


def test_overlap_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "overlap", "--rows=2", "--step-ms=2", "--steps=30", "--depth=3"]) == 0
    out = capsys.readouterr().out
    assert "2 rows, 2 ms a step, 30 steps" in out
    assert out.splitlines()[-1].split()[0] == "3"


def test_throughput(tmp_path: Path) -> None:
    asked = ("--num-prompts=12", "--input-len=16", "--output-len=10")
    service = ("--device=emulated", "--emulated-step-ms=20", "--max-num-seqs=4", "--pipeline-depth=2")
    result = bench(tmp_path, "throughput", *asked, *service)
    assert list(result) == THROUGHPUT_KEYS
    assert result["output_throughput"] == pytest.approx(10 * result["request_throughput"], rel=1e-4)
    assert result["total_token_throughput"] == pytest.approx(26 * result["request_throughput"], rel=1e-4)
    for kind in ("ttft", "tpot", "itl", "e2el"):
        assert 0 < result[f"p50_{kind}_ms"] <= result[f"p99_{kind}_ms"]
    assert result["p50_tpot_ms"] == pytest.approx(20.0, rel=0.9)
    assert result["mean_ttft_ms"] < result["mean_e2el_ms"]
    assert result["p99_e2el_ms"] > 3 * 10 * 20.0 * 0.9  # three batches of four, one after the other
    assert 0.3 < result["device_utilization"] <= 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "overlap|throughput"),
        (["overlap", "--rows=0"], "'0' is not a whole number of at least 1"),
        (["overlap", "--rows=1", "--steps=1", "--step-ms=-1"], "'-1' is not a number of milliseconds"),
        (["overlap", "--rows=1", "--steps=1", "--step-ms=1", "--depth=1,x"], "'x' is not a whole number"),
        (["overlap", "--rows=1"], "--step-ms"),
        (["throughput", "--num-prompts=1", "--input-len=1"], "--output-len"),
        (
            [
                "throughput",
                "--device=emulated",
                "--num-prompts=1",
                "--input-len=1000000000",
                "--output-len=1",
            ],
            "prompts of 1000000000 tokens with answers of 1 are longer than the model's 8192; lower --input-len",
        ),
        (
            ["throughput", "--num-prompts=1", "--input-len=1", "--output-len=1", "--device=gpu"],
            "--device gpu is no device",
        ),
    ],
)
def test_usage_errors(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert cli.main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


# --- what is computed ---------------------------------------------------------------------------


def steps_of(first: int, count: int, *, step: int = 2 * MS, idle: int = 0) -> list[Span]:
    """``count`` steps in a row, with a pause after each."""
    return [Span("step", first + i, i * (step + idle), i * (step + idle) + step) for i in range(count)]


def test_the_timed_steps_are_those_of_all_rows() -> None:
    # Requests of 10 tokens join in steps 100, 101 and 103: all decode in the steps 104 to 109.
    compute = steps_of(90, 10) + steps_of(100, 13)
    assert [span[1] for span in full_steps(compute, 100, 10)] == list(range(104, 110))
    assert [span[1] for span in full_steps(steps_of(0, 10), 0, 10)] == list(range(1, 10))
    with pytest.raises(SlipstreamError, match="steps=3 is too few"):
        full_steps(steps_of(0, 6), 0, 3)


def test_percentile() -> None:
    values = sorted(np.random.default_rng(1).random(37).tolist())
    for share in (0.0, 0.5, 0.99, 1.0):
        assert percentile(values, share) == pytest.approx(np.percentile(values, 100 * share))


def test_latencies(monkeypatch: pytest.MonkeyPatch) -> None:
    arrivals = Arrivals(2)
    arrivals.begun = 10.0
    clock = iter((10.5, 11.0, 12.0, 10.25))
    monkeypatch.setattr("slipstream.bench.latency.time.perf_counter", lambda: next(clock))
    for number, tokens in ((0, [1]), (0, []), (0, [2]), (0, [3, 4]), (1, [5])):
        arrivals.add(number, Delta(id="", token_ids=tokens))
    latencies = arrivals.latencies()
    assert latencies["ttft"].mean == pytest.approx(375.0)
    assert latencies["tpot"].mean == pytest.approx(1e3 * 1.5 / 3)  # a request of one token has none
    assert latencies["itl"].p50 == pytest.approx(750.0)
    assert latencies["e2el"].mean == pytest.approx(1125.0)


# --- the pictures -------------------------------------------------------------------------------


def tracks_of(compute: list[Span]) -> Tracks:
    """A trace in which every actor does something for every step."""
    tracks: Tracks = {"compute": compute}
    for lane in LANES:
        if lane.track != "compute":
            tracks[lane.track] = [
                Span(lane.shows[0], step, end, end + MS // 10) for _, step, _, end in compute
            ]
    return tracks


def panel(title: str, compute: list[Span]) -> Panel:
    return Panel(title, tracks_of(compute), compute)


def test_svg_has_every_lane_in_every_panel() -> None:
    fast, slow = steps_of(0, 50), steps_of(0, 50, idle=MS)
    root = ET.fromstring(as_svg([panel("a < b", slow), panel("c", fast)]))
    assert "a < b" in [text.text for text in root.iter(f"{SVG}text")]
    lanes = [group for group in root.iter(f"{SVG}g") if group.get("class") == "lane"]
    assert len(lanes) == 2 * len(LANES)
    for group, lane in zip(lanes, LANES * 2, strict=True):
        texts = [text.text for text in group.iter(f"{SVG}text")]
        assert texts[:2] == [lane.title, lane.does]
        bars = [bar for bar in group.iter(f"{SVG}rect") if bar.get("fill")]
        assert len(bars) >= 4
        assert len({bar.get("fill") for bar in bars}) == 4
    assert all(0 <= float(bar.get("x", 0)) <= 1080 for bar in root.iter(f"{SVG}rect"))
    idle = [bar for group in lanes for bar in group.iter(f"{SVG}rect") if bar.get("class") == "idle"]
    assert 4 <= len(idle) <= 5  # after each step of the slow one; the fast one never waits
    written = "".join(text.text or "" for text in root.iter(f"{SVG}text"))
    assert "device busy 67.1% of the time" in written
    assert "device busy 100.0% of the time" in written


def test_further_ranks_have_lanes_of_their_own_behind_those_of_rank_0() -> None:
    compute = steps_of(0, 50)
    tracks = tracks_of(compute)
    late = [span._replace(start=span.start + MS // 100, end=span.end + MS // 100) for span in compute]
    tracks |= {f"{track}.{rank}": late for rank in (1, 2) for track in ("executor", "h2d", "compute", "d2h")}
    drawn = ET.fromstring(
        as_svg([Panel("two", tracks_of(compute), compute), Panel("three", tracks, compute)])
    )
    lanes = [group for group in drawn.iter(f"{SVG}g") if group.get("class") == "lane"]
    titles = [next(group.iter(f"{SVG}text")).text for group in lanes]
    further = [f"{name} {rank}" for rank in (1, 2) for name in ("executor", "H2D", "compute", "D2H")]
    own = [lane.title for lane in LANES]
    assert titles == [*own, *own[:5], *further, *own[5:]]
    bottoms = [float(box.get("y", 0)) for group in lanes for box in group.iter(f"{SVG}rect")]
    assert max(bottoms) < float(drawn.get("height", 0))
    lines = as_text(tracks, 10, 13).splitlines()
    assert [line.split("│")[0].strip() for line in lines[:-1]] == titles[len(own) :]
    assert "step 11" in lines[own.index("compute") + 4]


def test_the_stretch_shown_is_typical() -> None:
    late = [
        Span(name, step, start + 204 * MS, end + 204 * MS) for name, step, start, end in steps_of(100, 100)
    ]
    compute = steps_of(0, 100) + late  # one pause of 4 ms in the middle
    begun = typical(compute, 8 * MS)
    assert begun > 0
    assert begun + 8 * MS <= 200 * MS or begun >= 204 * MS - MS


def test_gaps() -> None:
    assert list(gaps([(0, 2, 4), (1, 4, 5), (2, 7, 8)], 0, 10)) == [(0, 2), (5, 7), (8, 10)]
    assert list(gaps([], 3, 4)) == [(3, 4)]


def test_host_time_per_step() -> None:
    compute = steps_of(0, 5)
    tracks = tracks_of(compute)
    tracks["gateway"] = [
        span for step in range(5) for span in (Span("Texts", step, 0, MS), Span("Deltas", -1, MS, 3 * MS))
    ]
    spent = host_ms(tracks, compute[1:])
    assert spent == pytest.approx({"scheduler": 0.1, "executor": 0.1, "detokenizer": 0.1, "gateway": 3.0})


def test_text_has_every_lane() -> None:
    lines = as_text(tracks_of(steps_of(5, 20)), 8, 11).splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [lane.title for lane in LANES]
    assert "step 9" in lines[3]
    assert "ms" in lines[-1]
