"""Many requests of one client: which of them are open at a time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from slipstream.protocol.client.many import ManyRequests
from slipstream.protocol.client.session import Session

from slipstream import SamplingParams


class Asked:
    """A stream, which is asked for and never answered."""

    def __init__(self, number: int) -> None:
        self.request = SimpleNamespace(id=str(number))
        self.waiter: Any = None


def open_with(room: int, answers: list[int]) -> int:
    """How many requests are open at once if the service holds ``room`` answers."""
    session = cast(Session, SimpleNamespace(ask=lambda now, **fields: Asked(len(many.running))))
    params = [None if n == 1 else SamplingParams(n=n) for n in answers]
    many = ManyRequests(session, [{"prompt": "x"}] * len(answers), params, None, room)
    assert many.ask(0.0) is None
    return len(many.running)


def test_a_request_takes_the_room_of_all_its_answers() -> None:
    """Otherwise the service refuses what is too much, and the client waits for a second before it asks again."""
    assert open_with(4, [1] * 10) == 4
    assert open_with(4, [2] * 10) == 2
    assert open_with(4, [1, 2, 2, 1]) == 2


def test_a_request_that_no_service_has_room_for_is_asked_all_the_same() -> None:
    """So that its error says so, and nothing waits for ever."""
    assert open_with(4, [5, 1]) == 1
