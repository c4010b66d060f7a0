"""From an answer as it comes to the items of a response, and to the events that tell of them."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from typing import Any

from ....protocol.formats.reader import CallPart, ChatDelta, is_complete
from ....protocol.formats.strict_json import HALF
from ....protocol.messages import Delta, Usage
from ..errors import problem_of
from ..transport.events import EventWriter, finish_reason_of, merged, named_event, part_calls

Item = dict[str, Any]


class Output:
    """The items of one response so far; each method returns the events of what it has added."""

    def __init__(self, body: dict[str, Any], custom: frozenset[str], namespaces: dict[str, str]) -> None:
        """``body`` is the response as it is told at first; ``custom`` are the tools whose input is a text;
        ``namespaces`` has that of each tool that is in one."""
        self.body = body
        self.namespaces = namespaces
        self.custom = custom
        self.items: list[Item] = []
        self.open: Item | None = None
        self.written: list[str] = []
        """The text, thoughts or arguments of the open item."""
        self.sequence = 0
        self.reasoning_tokens = 0
        self.reason: str | None = None
        self.cut = False
        """A stop text ended the answer inside of a call."""
        self.usage: Usage | None = None

    def event(self, name: str, /, **fields: Any) -> bytes:
        number, self.sequence = self.sequence, self.sequence + 1
        return named_event(name, {"sequence_number": number} | fields)

    def begin(self) -> list[bytes]:
        return [
            self.event("response.created", response=self.body),
            self.event("response.in_progress", response=self.body),
        ]

    def add(self, delta: ChatDelta) -> list[bytes]:
        ending, begun = part_calls(delta.tool_calls)
        events = [event for part in ending for event in self.add_call(part)]
        self.reasoning_tokens += delta.reasoning_tokens
        if delta.reasoning:
            events += self.append("reasoning", delta.reasoning)
        if delta.text:
            events += self.append("message", delta.text)
        for part in begun:
            events += self.add_call(part)
        if delta.usage is not None:
            self.usage = delta.usage
        if delta.finish_reason is not None:
            self.reason = finish_reason_of(delta.finish_reason)
            if delta.stop_reason is not None and self.open is not None and "arguments" in self.open:
                self.cut = not is_complete("".join(self.written))
        return events

    # --- items --------------------------------------------------------------------------------

    def append(self, kind: str, text: str) -> list[bytes]:
        events: list[bytes] = []
        if self.open is None or self.open["type"] != kind:
            part = part_of(kind, "")
            item: Item = {"id": new_id("rs" if kind == "reasoning" else "msg"), "type": kind}
            if kind == "reasoning":
                item |= {"summary": [], "content": [], "status": "in_progress"}
            else:
                item |= {"role": "assistant", "content": [], "status": "in_progress"}
            events += self.begin_item(item)
            events.append(
                self.event("response.content_part.added", part=part, content_index=0, **self.place())
            )
        self.written.append(text)
        more = {} if kind == "reasoning" else {"logprobs": []}
        name = "response.reasoning_text.delta" if kind == "reasoning" else "response.output_text.delta"
        events.append(self.event(name, delta=text, content_index=0, **more, **self.place()))
        return events

    def add_call(self, part: CallPart) -> list[bytes]:
        events: list[bytes] = []
        if part.name:
            custom = part.name in self.custom
            item: Item = {
                "id": new_id("ctc" if custom else "fc"),
                "type": "custom_tool_call" if custom else "function_call",
                "call_id": part.id,
                "name": part.name,
                "input" if custom else "arguments": "",
                "status": "in_progress",
            }
            if part.name in self.namespaces:
                item["namespace"] = self.namespaces[part.name]
            events += self.begin_item(item)
        self.written.append(part.arguments)
        if part.arguments and self.open is not None and self.open["type"] == "function_call":
            name = "response.function_call_arguments.delta"
            events.append(self.event(name, delta=part.arguments, **self.place()))
        return events

    def begin_item(self, item: Item) -> list[bytes]:
        events = self.close()
        self.open, self.written = item, []
        self.items.append(item)
        return [
            *events,
            self.event("response.output_item.added", item=item, output_index=len(self.items) - 1),
        ]

    def place(self) -> dict[str, Any]:
        assert self.open is not None
        return {"item_id": self.open["id"], "output_index": len(self.items) - 1}

    def close(self, status: str = "completed") -> list[bytes]:
        """The end of the open item, if there is one."""
        item = self.open
        if item is None:
            return []
        text, place = "".join(self.written), self.place()
        item["status"] = status
        events: list[bytes] = []
        if item["type"] == "function_call":
            item["arguments"] = text
            events.append(
                self.event(
                    "response.function_call_arguments.done", arguments=text, name=item["name"], **place
                )
            )
        elif item["type"] == "custom_tool_call":
            item["input"] = text = input_of(text)
            events.append(self.event("response.custom_tool_call_input.delta", delta=text, **place))
            events.append(self.event("response.custom_tool_call_input.done", input=text, **place))
        else:
            part = part_of(item["type"], text)
            item["content"] = [part]
            more = {"content_index": 0} | place
            if item["type"] == "reasoning":
                events.append(self.event("response.reasoning_text.done", text=text, **more))
            else:
                events.append(self.event("response.output_text.done", text=text, logprobs=[], **more))
            events.append(self.event("response.content_part.done", part=part, **more))
        events.append(self.event("response.output_item.done", item=item, output_index=place["output_index"]))
        self.open = None
        return events

    def end(self) -> list[bytes]:
        """The end of the response, as it was asked for or at its limit."""
        status = "incomplete" if self.reason == "length" else "completed"
        events = self.close("incomplete" if self.cut else status)
        details = {"reason": "max_output_tokens"} if status == "incomplete" else None
        self.body |= {
            "status": status,
            "incomplete_details": details,
            "output": self.items,
            "usage": None if self.usage is None else usage_of(self.usage, self.reasoning_tokens),
        }
        return [*events, self.event(f"response.{status}", response=self.body)]

    def fail(self, error: Exception) -> list[bytes]:
        problem = problem_of(error).error
        events = self.close("incomplete")
        self.body |= {
            "status": "failed",
            "output": self.items,
            "error": {"code": problem["code"] or problem["type"], "message": problem["message"]},
        }
        return [*events, self.event("response.failed", response=self.body)]

    def message(self) -> dict[str, Any]:
        """The answer as a message of the conversation."""
        message: dict[str, Any] = {"role": "assistant", "content": ""}
        calls: list[dict[str, Any]] = []
        for item in self.items:
            if item["type"] == "message":
                message["content"] += item["content"][0]["text"]
            elif item["type"] == "reasoning":
                message["reasoning"] = message.get("reasoning", "") + item["content"][0]["text"]
            else:
                custom = item["type"] == "custom_tool_call"
                arguments = json.dumps({"input": item["input"]}) if custom else item["arguments"]
                function = {"name": item["name"], "arguments": arguments}
                calls.append({"id": item["call_id"], "type": "function", "function": function})
        return message | {"tool_calls": calls} if calls else message


def part_of(kind: str, text: str) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


INPUT = re.compile(r'\s*\{\s*"input"\s*:\s*"((?:[^"\\]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*)')
"""The arguments of a custom tool as far as whole characters of its input."""

NO_INPUT = '{"input":"'


def input_of(arguments: str) -> str:
    """The text that a custom tool is called with, as far as it came; arguments without any stay what they are."""
    try:
        text = str(json.loads(arguments)["input"])
    except (ValueError, TypeError, LookupError, RecursionError):
        cut = INPUT.match(arguments)
        if cut is None:
            return "" if NO_INPUT.startswith("".join(arguments.split())) else arguments
        text = json.loads(f'"{cut[1]}"', strict=False)
        text = text[:-1] if "\ud800" <= text[-1:] <= "\udbff" else text
    return HALF.sub("\ufffd", text)


def usage_of(usage: Usage, reasoning_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def new_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


class ResponseEvents(EventWriter):
    """A response as events."""

    def __init__(self, output: Output, keep: Callable[[], None]) -> None:
        """``keep`` is called when the response is complete."""
        self.output = output
        self.keep = keep
        self.begun = False

    def add(self, prompt: int, deltas: list[Delta]) -> bytes:
        events: list[bytes] = []
        if not self.begun:
            self.begun = True
            events += self.output.begin()
        for delta in merged(deltas):
            assert isinstance(delta, ChatDelta)
            events += self.output.add(delta)
        return b"".join(events)

    def end(self) -> bytes:
        events = self.output.end()
        self.keep()
        return b"".join(events)

    def fail(self, error: Exception) -> bytes:
        return b"".join(self.output.fail(error))
