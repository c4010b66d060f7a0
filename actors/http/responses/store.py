"""Responses that can be asked for again: the newest, in memory, as many as there is room for."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ....protocol.limits import MAX_FRAME_BYTES
from ..errors import Problem

MAX_RESPONSES = 10_000
"""Most responses that are stored; then the oldest is forgotten. With the limit on bytes this bounds the table where
each is small."""

MAX_BYTES = 64 * 1024 * 1024
"""Most bytes of all stored responses together, as JSON: the memory of the frontend is bounded by this, however long
they are."""

MAX_REFERRED_BYTES = MAX_FRAME_BYTES
"""Most bytes of all that one input refers to, as JSON: a body can name an item of a megabyte a hundred thousand
times."""


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

    def items_with_ids(self) -> list[dict[str, Any]]:
        """The items that can be referred to, of its input and its output."""
        return [
            item for item in (*self.items, *self.body.get("output", ())) if isinstance(item.get("id"), str)
        ]


class Store:
    """The newest responses by id. An older one is forgotten first."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self.max_responses = max_responses
        self.max_bytes = max_bytes
        self.kept: OrderedDict[str, Stored] = OrderedDict()
        self.bytes = 0
        self.items: dict[str, tuple[str, dict[str, Any]]] = {}
        """By the id of each item: the id of the newest response that has it, and the item."""

    def put(self, stored: Stored) -> None:
        """Keep a response, or what has become of it."""
        self.drop(stored.body["id"])
        stored.size = len(msgspec.json.encode([stored.body, stored.items, stored.messages]))
        self.kept[stored.body["id"]] = stored
        self.bytes += stored.size
        self.items |= {item["id"]: (stored.body["id"], item) for item in stored.items_with_ids()}
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
            for item in stored.items_with_ids():
                if self.items.get(item["id"], ("",))[0] == id:
                    del self.items[item["id"]]

    def item(self, id: Any, param: str) -> dict[str, Any]:
        """An item of a response that is kept; ``Problem`` if none has it."""
        found = self.items.get(id) if isinstance(id, str) else None
        if found is None:
            raise Problem(
                404,
                f"{param} is {id!r:.100}, which is an item of no response that is kept here; send the item itself",
                param=param,
                code="item_not_found",
            )
        return found[1]

    def whole(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """An input with the items that it refers to, as though they had been in the body: as much as fits into one."""
        sizes: dict[str, int] = {}
        room = MAX_REFERRED_BYTES
        found: list[dict[str, Any]] = []
        for number, item in enumerate(items):
            if item.get("type") == "item_reference":
                item = self.item(item.get("id"), f"input[{number}].id")
                id: str = item["id"]
                room -= sizes[id] if id in sizes else sizes.setdefault(id, len(msgspec.json.encode(item)))
                if room < 0:
                    raise Problem(
                        400,
                        f"what input refers to has more than {MAX_REFERRED_BYTES} bytes up to input[{number}], the"
                        " most of a body: refer to less",
                        param="input",
                    )
            found.append(item)
        return found

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
