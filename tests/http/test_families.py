"""What Prometheus gets of counters that nobody can have seen while they were like this."""

from __future__ import annotations

import pytest
from slipstream.actors.http.endpoints.metrics import Families
from slipstream.protocol.messages import Actors


@pytest.mark.parametrize(
    ("open_requests", "running", "waiting", "shown"),
    [(149, 7, 0, 142), (10, 4, 8, 8), (3, 3, 0, 0), (2, 5, 0, 0)],
)
def test_requests_that_are_not_at_the_scheduler_yet_wait_too(
    open_requests: float, running: float, waiting: float, shown: float
) -> None:
    """A load balancer sends its next request where least wait."""
    counters = {
        "requests_open": open_requests,
        "num_requests_running": running,
        "num_requests_waiting": waiting,
    }
    families = Families("x_", "m", counters, Actors(live=True, ready=True, draining=False, actors=[]))
    [found] = [family for family in families.collect() if family.name == "x_num_requests_waiting"]
    assert found.samples[0].value == shown
