"""The rings that every actor keeps, and what can be read out of them."""

from __future__ import annotations

from rings import read
from slipstream.protocol.client.timeline import Timeline
from slipstream.protocol.messages import Trace
from slipstream.protocol.trace import Recorded, Span
from slipstream.runtime.trace import RING, SLICE, Ring


def filled(spans: int, first: int = 0) -> Ring:
    """One span per microsecond, the first at 1 µs."""
    ring = Ring()
    for step in range(first, first + spans):
        ring.add("executor", f"turn {step % 3}", step, 1000 * step, 1000 * step + 500)
    return ring


def test_a_ring_gives_back_what_was_put_in() -> None:
    ring = filled(10)
    ring.add("h2d", "step", -1, 5, 7)
    ring.add_moment("planned", 1 << 40, 0.25)
    timeline = read(ring)
    expected = [Span(f"turn {step % 3}", step, 1000 * step, 1000 * step + 500) for step in range(10)]
    assert timeline.tracks == {"executor": expected, "h2d": [("step", -1, 5, 7)]}
    assert timeline.moments("executor") == [("planned", 1 << 40, 250_000_000)]
    assert timeline.moments("gateway") == timeline.spans("gateway") == []
    assert timeline.owners == {"executor": "executor", "h2d": "executor"}


def test_a_ring_holds_the_newest_spans_in_their_order_and_no_more() -> None:
    for spans in (RING - 1, RING, RING + 1, 3 * RING + 77):
        steps = [span.step for span in read(filled(spans)).tracks["executor"]]
        assert steps == list(range(max(0, spans - RING), spans))


def test_only_what_ended_since_then_is_sent() -> None:
    for spans in (100, 2 * RING + 9):
        ring = filled(spans)
        for back in (0, 1, 57, 100):
            since = 1000 * (spans - back) + 500
            assert [span.step for span in read(ring, since).tracks["executor"]] == list(
                range(spans - back, spans)
            )
        assert read(ring, 1 << 60).tracks == {"executor": []}


def test_a_ring_says_when_it_does_not_go_back_as_far_as_was_asked() -> None:
    assert read(filled(RING)).reach == {}
    ring = filled(RING + 1)
    assert read(ring).reach == {"executor": 1500}
    assert read(ring, 1501).reach == {}


def test_a_trace_comes_in_slices_and_what_is_overwritten_meanwhile_is_left_out() -> None:
    ring = filled(RING + 10)
    whole = ring.outline(0)
    for number, part in enumerate(ring.dump(0)):
        assert len(part.spans["executor"]) <= SLICE * 28
        whole.add(part)
        if number == 0:  # while the first is on its way, most of the rest is overwritten
            for step in range(3 * SLICE):
                ring.add("executor", "later", step, 0, 1000 * (RING + 10 + step))
    read_back = Timeline.of(Trace(actors={"executor": whole}, since_ns=0, until_ns=0)).tracks["executor"]
    assert all(span.name != "later" for span in read_back)
    steps = [span.step for span in read_back]
    assert steps == sorted(steps)
    assert steps[:SLICE] == list(range(10, 10 + SLICE))
    assert steps[-1] == RING + 9
    assert 2 * SLICE - 10 <= len(steps) < RING


def test_parts_that_know_more_names_add_up() -> None:
    ring = Ring()
    ring.add("gateway", "Texts", 1, 0, 1)
    early = next(ring.dump(0))
    ring.add("gateway", "Deltas", 2, 1, 2)
    late = Recorded(pid=1, names=list(ring.names), spans={"gateway": next(ring.dump(2)).spans["gateway"]})
    early.add(late)
    tracks = Timeline.of(Trace(actors={"gateway": early}, since_ns=0, until_ns=0)).tracks
    assert tracks["gateway"] == [("Texts", 1, 0, 1), ("Deltas", 2, 1, 2)]


def test_the_last_seconds_of_a_timeline_are_what_ended_in_them() -> None:
    ring = filled(100)
    ring.add_moment("planned", 7, 50e-6)
    whole = ring.outline(0)
    for part in ring.dump(0):
        whole.add(part)
    timeline = Timeline(0, 100_000, {"executor": whole})
    assert [span.step for span in timeline.last(10e-6).spans("executor")] == list(range(90, 100))
    assert [span.step for span in timeline.after(95_500).last(1.0).spans("executor")] == list(range(95, 100))
    assert len(timeline.after(50_000).moments("executor")) == 1
    assert timeline.after(50_001).moments("executor") == []
