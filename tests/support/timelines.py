"""Timelines that are made up, for tests of what shows them."""

from __future__ import annotations

from slipstream.protocol.client.timeline import STREAMS, Timeline, Tracks
from slipstream.protocol.trace import MOMENT, SPAN, Moment, Recorded


def made_up(
    since: int,
    until: int,
    tracks: Tracks,
    *,
    moments: list[Moment] | None = None,
    pids: dict[str, int] | None = None,
) -> Timeline:
    """Each track is an actor's own, but the streams are the executor's; the moments are the gateway's."""
    actors: dict[str, Recorded] = {}

    def of(actor: str) -> Recorded:
        return actors.setdefault(actor, Recorded(pid=(pids or {}).get(actor, 1), names=[]))

    def number(recorded: Recorded, name: str) -> int:
        if name not in recorded.names:
            recorded.names.append(name)
        return recorded.names.index(name)

    for track, spans in tracks.items():
        recorded = of("executor" if track in STREAMS else track)
        recorded.spans[track] = b"".join(
            SPAN.pack(end, start, step, number(recorded, name)) for name, step, start, end in spans
        )
    if moments:
        recorded = of("gateway")
        recorded.marks = b"".join(
            MOMENT.pack(at, request, number(recorded, name)) for name, request, at in moments
        )
    return Timeline(since, until, actors)
