"""From the blocks of a message to the messages of a conversation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ....protocol.errors import brief
from ...text.prompts.conversation import call_arguments
from ...text.prompts.keys import Keys, kept
from ..bodies.fields import text_at
from ..errors import Problem

Message = dict[str, Any]

ROLES = {
    "text": ("user", "assistant", "system"),
    "thinking": ("assistant",),
    "redacted_thinking": ("assistant",),
    "tool_use": ("assistant",),
    "tool_result": ("user",),
}
"""The roles whose messages may have a block, by its type."""

BLOCKS = {
    "text": Keys(
        "a text", frozenset(("type", "text")), frozenset(("cache_control", "citations", "parsed_output"))
    ),
    "thinking": Keys("thinking", frozenset(("type", "thinking")), frozenset(("signature",))),
    # Nobody but who encrypted it can read it.
    "redacted_thinking": Keys("redacted_thinking", frozenset(("type",)), frozenset(("data",))),
    "tool_use": Keys(
        "a tool_use", frozenset(("type", "id", "name", "input")), frozenset(("cache_control", "caller"))
    ),
    "tool_result": Keys(
        "a tool_result",
        frozenset(("type", "tool_use_id", "content")),
        frozenset(("cache_control", "is_error")),
    ),
}
"""The keys of blocks, by their type."""


def plain(where: str, role: str, content: str | list[dict[str, Any]]) -> list[Message]:
    """One message of several blocks: results of calls are messages of their own, before what the user says."""
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    results: list[Message] = []
    message: Message = {"role": role}
    texts: list[str] = []
    for number, block in enumerate(content):
        place = f"{where}.content[{number}]"
        kind = block.get("type")
        if isinstance(kind, str) and role in ROLES.get(kind, ()):
            block = kept(place, block, BLOCKS[kind])
        else:
            raise Problem(
                400,
                f"{place} is {brief(block)}; expected a block of type text, or tool_result of a user, or tool_use or"
                " thinking of an assistant: this service reads and writes text",
                param=place,
            )
        if kind == "text":
            texts.append(text_at(place, block, "text"))
        elif kind == "thinking":
            message["reasoning"] = message.get("reasoning", "") + text_at(place, block, "thinking")
        elif kind == "tool_use":
            arguments = call_arguments(f"{place}.input", block.get("input", {}))
            function = {"name": text_at(place, block, "name"), "arguments": arguments}
            call = {"id": id_in(place, block, "id"), "type": "function", "function": function}
            message.setdefault("tool_calls", []).append(call)
        elif kind == "tool_result":
            result = content_of(list(result_texts(place, block.get("content"))))
            id = id_in(place, block, "tool_use_id")
            results.append({"role": "tool", "tool_call_id": id, "content": result})
    if texts or not results:
        # What a model wrote is one text, between whose blocks calls and sources may have stood.
        message["content"] = content_of(texts) if role != "assistant" else "".join(texts)
    return [*results, message] if len(message) > 1 else results


def content_of(texts: list[str]) -> str | list[dict[str, str]]:
    """Several texts are parts, as in any other conversation: the chat template decides how they are put together."""
    if len(texts) > 1:
        return [{"type": "text", "text": text} for text in texts]
    return "".join(texts)


def id_in(place: str, block: dict[str, Any], name: str) -> str | None:
    """The id in a field that may be missing, but not null."""
    return text_at(place, block, name) if name in block else None


def result_texts(place: str, content: Any) -> Iterator[str]:
    """The texts of a tool's result."""
    if content is None:
        return
    if isinstance(content, str):
        yield content
        return
    for number, part in enumerate(content if isinstance(content, list) else [content]):
        where = f"{place}.content[{number}]"
        if not isinstance(part, dict) or part.get("type") != "text":
            raise Problem(400, f"{where} is {brief(part)}; expected a text block", param=where)
        yield text_at(where, kept(where, part, BLOCKS["text"]), "text")
