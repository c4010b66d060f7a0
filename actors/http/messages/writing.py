"""From an answer as it comes to the blocks of a message, and to the events that tell of them."""

from __future__ import annotations

from typing import Any

import msgspec

from ....protocol.formats.reader import CallPart, ChatDelta, is_complete
from ....protocol.formats.strict_json import DECODER
from ....protocol.messages import Delta, Usage
from ..errors import problem_of
from ..transport.events import EventWriter, finish_reason_of, merged, named_event, part_calls


class Blocks:
    """The blocks of one message so far; each method returns the events of what it has added."""

    def __init__(self, about: dict[str, Any]) -> None:
        self.about = about
        self.blocks: list[dict[str, Any]] = []
        self.open: dict[str, Any] | None = None
        self.arguments: list[str] = []
        """The arguments of the open block, if it is a call."""
        self.prompt_tokens = 0
        self.reasoning_tokens = 0
        self.usage: Usage | None = None
        self.stop_reason: str | None = None
        self.stop_sequence: str | None = None

    def add(self, delta: ChatDelta) -> list[bytes]:
        ending, begun = part_calls(delta.tool_calls)
        events = [event for part in ending for event in self.add_call(part)]
        self.reasoning_tokens += delta.reasoning_tokens
        if delta.reasoning:
            events += self.append("thinking", delta.reasoning)
        if delta.text:
            events += self.append("text", delta.text)
        for part in begun:
            events += self.add_call(part)
        if delta.usage is not None:
            self.usage = delta.usage
        if delta.finish_reason is not None:
            self.end_with(delta)
        return events

    def append(self, kind: str, text: str) -> list[bytes]:
        events: list[bytes] = []
        if self.open is None or self.open["type"] != kind:
            more = {"signature": ""} if kind == "thinking" else {"citations": None}
            events += self.begin({"type": kind, kind: ""} | more)
        assert self.open is not None
        self.open[kind] += text
        events.append(self.delta({"type": f"{kind}_delta", kind: text}))
        return events

    def add_call(self, part: CallPart) -> list[bytes]:
        events: list[bytes] = []
        if part.name:
            events += self.begin({"type": "tool_use", "id": part.id, "name": part.name, "input": {}})
        if part.arguments:
            self.arguments.append(part.arguments)
            events.append(self.delta({"type": "input_json_delta", "partial_json": part.arguments}))
        return events

    def begin(self, block: dict[str, Any]) -> list[bytes]:
        events = self.close()
        self.open, self.arguments = block, []
        self.blocks.append(block)
        place = {"index": len(self.blocks) - 1}
        return [*events, named_event("content_block_start", place | {"content_block": block})]

    def delta(self, delta: dict[str, Any]) -> bytes:
        return named_event("content_block_delta", {"index": len(self.blocks) - 1, "delta": delta})

    def close(self) -> list[bytes]:
        block, self.open = self.open, None
        if block is None:
            return []
        if block["type"] == "tool_use":
            block["input"] = input_of("".join(self.arguments))
        return [named_event("content_block_stop", {"index": len(self.blocks) - 1})]

    def end_with(self, delta: ChatDelta) -> None:
        reason = finish_reason_of(delta.finish_reason)
        called = any(block["type"] == "tool_use" for block in self.blocks)
        if reason == "length":
            self.stop_reason = "max_tokens"
        elif called and not self.is_cut(delta):  # whatever ended the answer, its calls are to be carried out
            self.stop_reason = "tool_use"
        elif isinstance(delta.stop_reason, str):
            self.stop_reason, self.stop_sequence = "stop_sequence", delta.stop_reason
        else:
            self.stop_reason = "end_turn"

    def is_cut(self, delta: ChatDelta) -> bool:
        """Whether a stop text ended the answer in the middle of a call's arguments."""
        in_call = self.open is not None and self.open["type"] == "tool_use"
        return in_call and delta.stop_reason is not None and not is_complete("".join(self.arguments))

    def message(self, *, done: bool) -> dict[str, Any]:
        return self.about | {
            "content": self.blocks if done else [],
            "stop_reason": self.stop_reason if done else None,
            "stop_sequence": self.stop_sequence if done else None,
            "usage": self.told_usage(),
        }

    def told_usage(self) -> dict[str, Any]:
        usage = self.usage or Usage(prompt_tokens=self.prompt_tokens, completion_tokens=0)
        return {
            "input_tokens": usage.prompt_tokens - usage.cached_tokens,
            "cache_read_input_tokens": usage.cached_tokens,
            "cache_creation_input_tokens": 0,
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"thinking_tokens": self.reasoning_tokens},
        }


def input_of(arguments: str) -> msgspec.Raw:
    """The arguments of a call as they were written; empty where they were cut off, which ``stop_reason`` says."""
    try:
        value = DECODER.decode(arguments)
    except (ValueError, RecursionError):
        value = None
    return msgspec.Raw(arguments.encode() if isinstance(value, dict) else b"{}")


class MessageEvents(EventWriter):
    """A message as events."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        self.begun = False

    def add(self, prompt: int, deltas: list[Delta]) -> bytes:
        events: list[bytes] = []
        if not self.begun:
            self.begun = True
            self.blocks.prompt_tokens = len(deltas[0].prompt_token_ids or ())
            events.append(named_event("message_start", {"message": self.blocks.message(done=False)}))
        for delta in merged(deltas):
            assert isinstance(delta, ChatDelta)
            events += self.blocks.add(delta)
        return b"".join(events)

    def end(self) -> bytes:
        blocks = self.blocks
        ended = {"stop_reason": blocks.stop_reason, "stop_sequence": blocks.stop_sequence}
        return b"".join(
            [
                *blocks.close(),
                named_event("message_delta", {"delta": ended, "usage": blocks.told_usage()}),
                named_event("message_stop", {}),
            ]
        )

    def fail(self, error: Exception) -> bytes:
        return named_event("error", problem_of(error).as_of_messages())
