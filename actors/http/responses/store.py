"""Responses that can be asked for again: the newest, in memory, as many as there is room for."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ..errors import Problem

MAX_RESPONSES = 10_000

MAX_BYTES = 64 * 1024 * 1024
"""Of all responses together, as JSON."""


@dataclass(slots=True)
class Stored:
    """A response, and the conversation up to its end."""

    body: dict[str, Any]
    items: list[dict[str, Any]]
    """What was its own input."""
    messages: list[dict[str, Any]] = field(default_factory=list)
    """Without instructions: those are of one response alone."""
    task: asyncio.Task[None] | None = None
    """Makes it in the background; None: it is made."""
    size: int = 0

    def all_items(self) -> list[dict[str, Any]]:
        return [*self.items, *self.body.get("output", ())]

    def item_ids(self) -> list[str]:
        return [item["id"] for item in self.all_items() if isinstance(item.get("id"), str)]


class Store:
    """The newest responses by id. An older one is forgotten first."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self.max_responses = max_responses
        self.max_bytes = max_bytes
        self.kept: OrderedDict[str, Stored] = OrderedDict()
        self.bytes = 0
        self.holder_of: dict[str, str] = {}
        """The newest response that has an item, by the ids of both."""

    def put(self, stored: Stored) -> None:
        """Keep a response, or what has become of it."""
        self.drop(stored.body["id"])
        stored.size = len(msgspec.json.encode([stored.body, stored.items, stored.messages]))
        self.kept[stored.body["id"]] = stored
        self.bytes += stored.size
        self.holder_of |= {item: stored.body["id"] for item in stored.item_ids()}
        if self.is_over():
            for id in list(self.kept):
                if self.kept[id].task is None:
                    self.drop(id)
                if not self.is_over():
                    break

    def is_over(self) -> bool:
        return len(self.kept) > self.max_responses or self.bytes > self.max_bytes

    def drop(self, id: str) -> None:
        stored = self.kept.pop(id, None)
        if stored is not None:
            self.bytes -= stored.size
            for item in stored.item_ids():
                if self.holder_of.get(item) == id:
                    del self.holder_of[item]

    def item(self, id: Any, param: str) -> dict[str, Any]:
        """An item of a response that is kept; ``Problem`` if none has it."""
        holder = self.kept.get(self.holder_of.get(id, "")) if isinstance(id, str) else None
        if holder is None:
            raise Problem(
                404,
                f"{param} is {id!r:.100}, which is an item of no response that is kept here; send the item itself",
                param=param,
                code="item_not_found",
            )
        return next(item for item in holder.all_items() if item.get("id") == id)

    def get(self, id: str, param: str | None = None) -> Stored:
        """``Problem`` if it is not there."""
        stored = self.kept.get(id)
        if stored is None:
            raise Problem(
                404,
                f"there is no response {id!r:.100}: it was made with store=false, deleted, made before the service was"
                " started, or is not among the newest any more; send the whole conversation as input",
                param=param,
                code="response_not_found" if param is None else "previous_response_not_found",
            )
        return stored
