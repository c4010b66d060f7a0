"""How long a start took: until an actor was ready, and until it was as fast as it gets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from slipstream.runtime.supervision.status import full_speed_s


def child(ready_at: float | None, *reported: float | None) -> Any:
    """One that was started at 10; ``reported``: what its last report said, if there was one."""
    report = SimpleNamespace(full_speed_at=reported[0]) if reported else None
    return SimpleNamespace(since=10.0, ready_at=ready_at, report=report)


@pytest.mark.parametrize(
    ("started", "seconds"),
    [
        (child(None), None),
        (child(12.5), None),
        (child(12.5, 0.0), 2.5),
        (child(12.5, None), None),
        (child(12.5, 19.75), 9.75),
    ],
    ids=["not ready", "not heard of yet", "when it was ready", "catching up", "later"],
)
def test_full_speed_is_known_when_the_actor_has_said_so(started: Any, seconds: float | None) -> None:
    assert full_speed_s(started) == seconds
