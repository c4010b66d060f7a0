"""From the items of a response's input to the messages of a conversation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ....protocol.errors import InvalidRequest, brief
from ....protocol.limits import MAX_MESSAGES
from ...text.prompts.conversation import call_arguments
from ...text.prompts.keys import REFUSAL, TEXT, Keys, kept
from ..bodies.fields import text_at
from ..errors import Problem

Message = dict[str, Any]

CALL_RECORDS = frozenset(("async", "caller", "id", "namespace", "status"))
"""Keys of a call, and of its output, that serve the client's records and are not read here."""

ITEMS = {
    "message": Keys(
        "a message", frozenset(("type", "role", "content")), frozenset(("id", "phase", "status"))
    ),
    "function_call": Keys(
        "a function_call", frozenset(("type", "call_id", "name", "arguments")), CALL_RECORDS
    ),
    "custom_tool_call": Keys(
        "a custom_tool_call", frozenset(("type", "call_id", "name", "input")), CALL_RECORDS
    ),
    "function_call_output": Keys(
        "a function_call_output", frozenset(("type", "call_id", "output")), CALL_RECORDS | {"name"}
    ),
    "custom_tool_call_output": Keys(
        "a custom_tool_call_output", frozenset(("type", "call_id", "output")), CALL_RECORDS | {"name"}
    ),
    "reasoning": Keys(
        "reasoning",
        frozenset(("type", "summary", "content")),
        frozenset(("encrypted_content", "id", "status")),
    ),
}
"""The keys of an input's items, by their type."""

SHORT_BYTES = 64 * 1024
"""Most arguments of calls, as JSON text, that are read here and not where prompts are written, away from streams."""

PART = TEXT._replace(what="a text part")


def messages_of(items: list[dict[str, Any]]) -> list[Message]:
    """Thoughts, text and calls in a row are one message of the assistant."""
    messages: list[Message] = []
    room = SHORT_BYTES
    for number, item in enumerate(items):
        room -= len(text) if isinstance(text := item.get("arguments"), str) else 0
        for message in item_messages(f"input[{number}]", item, short=room >= 0):
            last = messages[-1] if messages else {}
            if message["role"] == "assistant" == last.get("role") and joins(last, message):
                last |= {key: value for key, value in message.items() if key != "tool_calls"}
                if "tool_calls" in message:
                    last["tool_calls"] = [*last.get("tool_calls", []), *message["tool_calls"]]
            else:
                messages.append(message)
        if len(messages) > MAX_MESSAGES:
            raise InvalidRequest(
                f"input has more than {MAX_MESSAGES} messages, the limit: send fewer", param="input"
            )
    return messages


def joins(last: Message, message: Message) -> bool:
    """Whether two messages of the assistant are parts of one."""
    if "reasoning" in message:
        return False
    return "tool_calls" in message or not ("content" in last or "tool_calls" in last)


def item_messages(where: str, item: dict[str, Any], *, short: bool) -> Iterator[Message]:
    """``short``: there is little to read in the arguments so far, so that what is wrong with them is told by its place
    here."""
    kind = "message" if item.get("type") is None else item["type"]
    if not isinstance(kind, str) or kind not in ITEMS:
        raise Problem(
            400,
            f"{where}.type is {brief(kind)}; give message, function_call, function_call_output, custom_tool_call,"
            " custom_tool_call_output, reasoning or item_reference",
            param=f"{where}.type",
        )
    item = kept(where, item, ITEMS[kind])
    if kind == "message":
        role = item.get("role")
        if not isinstance(role, str) or not role:
            raise Problem(
                400, f"{where}.role is {brief(role)}; give user, for example", param=f"{where}.role"
            )
        yield {"role": role, "content": text_of(f"{where}.content", item.get("content"))}
    elif kind == "function_call":
        arguments = item.get("arguments", {})
        if short or not isinstance(arguments, str):
            arguments = call_arguments(f"{where}.arguments", arguments)
        yield call_of(where, item, arguments)
    elif kind == "custom_tool_call":
        yield call_of(where, item, {"input": text_at(where, item, "input", "")})
    elif kind == "reasoning":
        thoughts = thoughts_of(where, item)
        if thoughts:
            yield {"role": "assistant", "reasoning": thoughts}
    else:
        content = text_of(f"{where}.output", item.get("output"))
        yield {"role": "tool", "tool_call_id": text_at(where, item, "call_id", None), "content": content}


def call_of(where: str, item: dict[str, Any], arguments: dict[str, Any] | str) -> Message:
    function = {"name": text_at(where, item, "name"), "arguments": arguments}
    call = {"id": text_at(where, item, "call_id", None), "type": "function", "function": function}
    return {"role": "assistant", "tool_calls": [call]}


def thoughts_of(where: str, item: dict[str, Any]) -> str:
    """The thoughts of an item, or else their summary; empty where they are encrypted."""
    name = "content" if item.get("content") else "summary"
    parts = item.get(name) or []
    place = f"{where}.{name}"
    if not isinstance(parts, list):
        raise Problem(400, f"{place} is {brief(parts)}; give a list of parts", param=place)
    texts: list[str] = []
    for number, part in enumerate(parts):
        text, inside = part.get("text") if isinstance(part, dict) else None, f"{place}[{number}]"
        if not isinstance(text, str):
            raise Problem(400, f"{inside} is {brief(part)}; expected a part with text", param=inside)
        kept(inside, part, PART)
        texts.append(text)
    return "\n".join(texts)


def text_of(where: str, content: Any) -> Any:
    """A content with the names that conversations have for its parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Problem(400, f"{where} is {brief(content)}; give a text or a list of text parts", param=where)
    parts: list[dict[str, str]] = []
    for number, part in enumerate(content):
        kind, place = part.get("type") if isinstance(part, dict) else None, f"{where}[{number}]"
        text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, dict) else None
        if kind not in ("input_text", "output_text", "text", "refusal") or not isinstance(text, str):
            raise Problem(
                400, f"{place} is {brief(part)}; expected a text part: this service reads text", param=place
            )
        kept(place, part, REFUSAL if kind == "refusal" else PART)
        parts.append({"type": "text", "text": text})
    if len(parts) == 1:
        return parts[0]["text"]
    return parts
