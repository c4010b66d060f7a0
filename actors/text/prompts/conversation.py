"""A conversation as chat templates know it, whichever way it came.

Clients write the same conversation in several ways, and templates differ in the way that they read. What is written
here is the one meaning of both: for HTTP and ZeroMQ alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import msgspec

from ....protocol.errors import InvalidRequest, brief
from ....protocol.formats.ids import CallIdForm, CallIds
from ....protocol.limits import MAX_CONTAINERS, MAX_DEPTH, MAX_MESSAGES, MAX_TOOLS
from ....protocol.sampling import counted
from .keys import CALL, CALLED, FUNCTION, MESSAGE, REASONING, REFUSAL, TEXT, TOOL, kept

Message = dict[str, Any]

CUT_OFF = "Input data was truncated"
"""How msgspec says that JSON ends too early; its errors have no fields."""

HALF_A_NUMBER = re.compile(r"(?<=[0-9])[.eE][-+]?$|-$")
"""What a number ends with that was cut off where none could end."""

MESSAGES_AT_ONCE = 1000
"""Messages between two pauses: a few milliseconds of work."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """In which ways a template reads a conversation."""

    knows_developer: bool = False
    """It has a role ``developer``; for any other that is ``system``."""
    takes_parts: bool = False
    """It reads the parts of a content itself; for any other they are joined, one a line."""
    wants_null: bool = False
    """It writes the calls only of messages whose content is null; for any other that is an empty text."""
    call_ids: CallIdForm = "any"
    """Which ids of calls it takes."""


def plain_messages(
    messages: list[Message], max_bytes: int, style: Style = Style(), named: frozenset[str] = frozenset()
) -> Generator[int, None, list[Message]]:
    """The conversation in the template's style: no empty fields, roles and arguments as the template knows them.
    ``named`` are keys that the template reads.

    Pauses now and then, and says how many messages are left. ``InvalidRequest`` names the place of what is wrong.
    """
    if not messages:
        raise InvalidRequest("messages is empty; give at least one message", param="messages")
    counted("messages", len(messages), MAX_MESSAGES, "messages")
    room = max_bytes
    brackets = 0
    plain: list[Message] = []
    ids = CallIds(style.call_ids)
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise InvalidRequest(
                f"{where} is {brief(message)}; expected a map with role and content", param=where
            )
        room -= measure(where, message)
        if room < 0:
            raise InvalidRequest(
                f"messages has more than {max_bytes} characters up to {where}: shorten it",
                param="messages",
                code="context_length_exceeded",
            )
        brackets += brackets_in_arguments(message)
        if brackets > MAX_CONTAINERS:
            raise InvalidRequest(
                f"messages has more than {MAX_CONTAINERS} brackets in the arguments of calls up to {where};"
                " send fewer",
                param="messages",
            )
        plain.append(plain_message(where, message, style, ids, named))
        if index % MESSAGES_AT_ONCE == MESSAGES_AT_ONCE - 1:
            yield len(messages) - index
    return with_results_in_order(plain)


def with_results_in_order(plain: list[Message]) -> list[Message]:
    """The results of calls in the order of their calls, by which templates go that write no ids. Where a result is of
    none of the calls, all stay as they came."""
    found: list[Message] = []
    places: dict[Any, int] = {}
    """Of the calls that were made last, by their ids."""
    for role, run in groupby(plain, lambda message: message["role"]):
        said = list(run)
        ids = [message.get("tool_call_id") for message in said]
        if role == "tool" and all(isinstance(id, str) and id in places for id in ids):
            said.sort(key=lambda message: places[message["tool_call_id"]])
        found += said
        calls = [call.get("id") for call in said[-1].get("tool_calls", ())]
        known = len({id for id in calls if isinstance(id, str)}) == len(calls)
        places = {id: place for place, id in enumerate(calls)} if known else {}
    return found


def plain_message(where: str, message: Message, style: Style, ids: CallIds, named: frozenset[str]) -> Message:
    message = kept(where, message, MESSAGE, named)
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise InvalidRequest(
            f"{where}.role is {brief(role)}; expected a text such as 'user'", param=f"{where}.role"
        )
    if role == "developer" and not style.knows_developer:
        message["role"] = "system"
    if "tool_calls" in message:
        calls = message.pop("tool_calls")
        if not isinstance(calls, list):
            said = f"{where}.tool_calls is {brief(calls)}; expected a list of calls"
            raise InvalidRequest(said, param=f"{where}.tool_calls")
        if calls:
            message["tool_calls"] = [
                plain_call(f"{where}.tool_calls[{i}]", call, ids, named) for i, call in enumerate(calls)
            ]
    if (
        "refusal" in message
    ):  # what another model said instead of an answer: a part of its own, as in lists of parts
        said = {"type": "refusal", "refusal": message.pop("refusal")}
        content = message.get("content") or []
        content = [{"text": content}] if isinstance(content, str) else content
        message["content"] = [*content, said] if isinstance(content, list) else content
    if isinstance(message.get("tool_call_id"), str):
        message["tool_call_id"] = ids.of_result(message["tool_call_id"])
    if "content" in message:
        message["content"] = plain_content(f"{where}.content", message["content"], style)
    elif "tool_calls" not in message:
        raise InvalidRequest(f"{where}.content is missing; give a text", param=f"{where}.content")
    else:
        message["content"] = None if style.wants_null else ""
    thoughts = next((message[name] for name in REASONING if isinstance(message.get(name), str)), None)
    if thoughts is not None:
        message |= dict.fromkeys(REASONING, thoughts)
    return message


def plain_content(where: str, content: Any, style: Style) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(
            f"{where} is {brief(content)}; expected a text or a list of text parts", param=where
        )
    texts: list[str] = []
    for index, part in enumerate(content):
        text, place = text_of(part), f"{where}[{index}]"
        if not isinstance(text, str):
            raise InvalidRequest(
                f"{place} is {brief(part)}; expected a part of type 'text'{only_text(part)}", param=place
            )
        kept(place, part, REFUSAL if part.get("type") == "refusal" else TEXT)
        texts.append(text)
    if style.takes_parts:
        return [{"type": "text", "text": text} for text in texts]
    return "\n".join(texts)


def text_of(part: Any) -> Any:
    """The text of a part, which may be a refusal as OpenAI's models write one; None if the part is no text."""
    kind = part.get("type", "text") if isinstance(part, dict) else None
    return part.get(kind) if kind in ("text", "refusal") else None


def only_text(part: Any) -> str:
    """The hint for a picture, a sound or a film: the usual types of such parts begin or end with these words."""
    kind = str(part.get("type", "")) if isinstance(part, dict) else ""
    return (
        ": this service reads and writes text, also where its model has parts for more"
        if any(other in kind for other in ("image", "audio", "video", "file"))
        else ""
    )


def plain_call(where: str, call: Any, ids: CallIds, named: frozenset[str]) -> dict[str, Any]:
    """A call with its arguments as a map: OpenAI's clients send them as JSON text."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidRequest(f"{where} is no call of a function: {brief(call)}", param=where)
    call, function = kept(where, call, CALL, named), kept(f"{where}.function", function, CALLED, named)
    if isinstance(call.get("id"), str):
        call["id"] = ids.of_call(call["id"], function["name"])
    if "arguments" in function:
        place = f"{where}.function.arguments"
        function["arguments"] = call_arguments(place, function["arguments"])
    return call | {"function": function}


def call_arguments(place: str, given: Any) -> dict[str, Any]:
    """The arguments of a call as a map; none where they were cut off, as in an answer that reached its limit."""
    arguments = given
    if isinstance(given, str):
        try:
            arguments = json.loads(given or "{}")
        except (ValueError, RecursionError):
            arguments = {} if is_cut_off(given) else None
    if not isinstance(arguments, dict):
        raise InvalidRequest(f"{place} is no JSON object: {brief(given)}", param=place)
    measure(place, arguments)
    return arguments


def is_cut_off(arguments: str) -> bool:
    """Whether a JSON object ends before it is complete."""
    try:
        msgspec.json.decode(HALF_A_NUMBER.sub("", arguments))
    except (ValueError, RecursionError) as error:
        return arguments.lstrip().startswith("{") and str(error) == CUT_OFF
    return False


def brackets_in_arguments(message: Message) -> int:
    """The number of lists and maps that arguments given as JSON text may have: two bytes of it become a hundred."""
    calls = message.get("tool_calls")
    functions = (
        [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    )
    texts = [function.get("arguments") for function in functions if isinstance(function, dict)]
    return sum(text.count("[") + text.count("{") for text in texts if isinstance(text, str))


def plain_tools(tools: Any, named: frozenset[str] = frozenset()) -> Any:
    """Tools without empty fields, and in the order that their documentation has, which templates write them in.
    ``named`` are keys that the template reads."""
    if not isinstance(tools, list):
        raise InvalidRequest(f"tools is {brief(tools)}; expected a list of functions", param="tools")
    counted("tools", len(tools), MAX_TOOLS, "tools")
    return [plain_tool(f"tools[{number}]", tool, named) for number, tool in enumerate(tools)]


def plain_tool(where: str, tool: Any, named: frozenset[str]) -> Any:
    if not isinstance(tool, dict):
        return tool
    tool = in_order(kept(where, tool, TOOL, named), ("type", "function"))
    if isinstance(tool.get("function"), dict):
        function = kept(f"{where}.function", tool["function"], FUNCTION, named)
        tool["function"] = in_order(function, ("name", "description", "parameters", "strict"))
    return tool


def in_order(value: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value[name] for name in (*names, *value) if name in value}


def measure(where: str, value: Any, depth: int = 0) -> int:
    """Characters and items in a message; ``InvalidRequest`` where it is nested too deeply to be rendered."""
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"{where} is nested deeper than {MAX_DEPTH} levels", param=where)
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(len(key) + measure(where, item, depth + 1) for key, item in value.items())
    if isinstance(value, list):
        return len(value) + sum(measure(where, item, depth + 1) for item in value)
    return 1
