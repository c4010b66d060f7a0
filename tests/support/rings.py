"""Reading a ring of spans."""

from __future__ import annotations

from slipstream.protocol.client.timeline import Timeline
from slipstream.protocol.messages import Trace
from slipstream.runtime.trace import Ring


def read(ring: Ring, since_ns: int = 0) -> Timeline:
    """What comes out of a ring, over the same messages as in a service."""
    whole = ring.outline(since_ns)
    for part in ring.dump(since_ns):
        whole.add(part)
    return Timeline.of(Trace(actors={"executor": whole}, since_ns=0, until_ns=0))
