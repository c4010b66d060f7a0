"""What the dashboard shows of an idle service: nothing of its own questions."""

from __future__ import annotations

import asyncio
from typing import Any

from slipstream.actors.http.endpoints.dashboard import Dashboard
from slipstream.protocol.client.timeline import Timeline
from slipstream.protocol.messages import Actors, Trace


class Gateway:
    """Answers each question, and keeps the order in which questions and answers came."""

    def __init__(self) -> None:
        self.order: list[str] = []

    async def asked(self, name: str, answer: Any) -> Any:
        self.order.append(name)
        await asyncio.sleep(0)
        self.order.append(f"{name} answered")
        return answer

    async def actors(self) -> Any:
        return await self.asked("actors", Actors(live=True, ready=True, draining=False, actors=[]))

    async def stats(self) -> Any:
        return await self.asked("stats", {})

    async def trace(self, seconds: float) -> Any:
        return await self.asked("trace", Timeline.of(Trace(actors={}, since_ns=0, until_ns=1), seconds))


def test_no_question_of_the_page_stands_in_the_mailboxes_that_it_shows() -> None:
    gateway = Gateway()
    client: Any = gateway
    asyncio.run(Dashboard(client, "m").read())
    assert gateway.order[:2] == ["actors", "actors answered"]
    assert {"stats", "trace"} <= set(gateway.order)
