"""Checks a request before it is accepted. Every refusal names the value and the limit."""

from __future__ import annotations

from array import array
from typing import Any

from ...protocol import limits
from ...protocol.errors import InvalidRequest, brief, context_length_exceeded
from ...protocol.limits import Limits
from ...protocol.messages import Generate
from ...protocol.sampling import as_json, counted
from ...runtime.request_trace import TRACEPARENT
from ..public.connections import Connection

Prompt = str | bytes | list[dict[str, Any]]
"""A text, token ids (int32), or the messages of a conversation."""


def check(message: Generate, connection: Connection, bounds: Limits) -> tuple[Prompt, int]:
    """The prompt as the tokenizer takes it, and its size in bytes; ``InvalidRequest`` if anything is wrong."""
    if not 1 <= len(message.id) <= limits.MAX_REQUEST_ID_CHARS:
        raise InvalidRequest(
            f"id has {len(message.id)} characters; give 1 to {limits.MAX_REQUEST_ID_CHARS}", param="id"
        )
    if connection.uses(message.id):
        raise InvalidRequest(f"id {message.id!r} is in use by an open request of this connection", param="id")
    if (message.prompt is None) == (message.messages is None):
        raise InvalidRequest("give either prompt or messages", param="prompt")
    if message.messages is None and template_of(message):
        raise InvalidRequest(
            "tools and chat_template_kwargs go with messages; give messages, not prompt", param="prompt"
        )
    message.params.check(bounds)
    check_calls(message)
    if message.traceparent and not TRACEPARENT.fullmatch(message.traceparent):
        raise InvalidRequest(
            f"traceparent={message.traceparent!r:.80} is none; it is such as"
            " 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            param="traceparent",
        )
    if not 0.0 <= message.age_s <= limits.MAX_DEADLINE_S:
        raise InvalidRequest(
            f"age_s={message.age_s} is out of range; it must be 0 to {limits.MAX_DEADLINE_S:g}",
            param="age_s",
        )
    if message.params.n > bounds.max_queued_requests:
        raise InvalidRequest(
            f"n={message.params.n} answers; this service holds at most {bounds.max_queued_requests} at once",
            param="n",
        )
    check_received(message, bounds)
    if message.messages is not None:
        return check_conversation(message.messages, template_of(message), bounds)
    prompt = message.prompt
    if isinstance(prompt, list):
        if len(prompt) >= bounds.max_model_len and message.params.truncate_prompt_tokens is None:
            received = len(message.received)
            if len(prompt) + received + (0 if received else 1) > bounds.max_model_len:
                raise context_length_exceeded("prompt", len(prompt), received, bounds.max_model_len)
        check_tokens("prompt", prompt, bounds)
        return array("i", prompt).tobytes(), 4 * len(prompt)
    assert prompt is not None
    size = len(prompt.encode("utf-8", "surrogatepass"))
    if size > bounds.max_prompt_bytes:
        raise InvalidRequest(
            f"prompt has {size} bytes; the limit is {bounds.max_prompt_bytes}: shorten it",
            param="prompt",
            code="context_length_exceeded",
        )
    return prompt, size


def check_calls(message: Generate) -> None:
    """Check the tool calls that an answer is to have, or is parsed for."""
    if message.calls and not message.marks:
        raise InvalidRequest(
            "calls are read from the marks of an answer; give marks=true with them", param="calls"
        )
    counted("calls", len(as_json("calls", message.calls)), limits.MAX_GRAMMAR_BYTES, "bytes")


def check_received(message: Generate, bounds: Limits) -> None:
    """Check the part of an answer that the client has received already, when it asks again."""
    if len(message.received_of_others) >= message.params.n:
        raise InvalidRequest(
            f"received_of_others has {len(message.received_of_others)} lists;"
            f" there are {message.params.n - 1} answers after the first",
            param="received_of_others",
        )
    for name, received in [
        ("received", message.received),
        *(("received_of_others", others) for others in message.received_of_others),
    ]:
        counted(name, len(received), bounds.max_model_len, "token ids")
        check_tokens(name, received, bounds)


def check_tokens(name: str, tokens: list[int], bounds: Limits) -> None:
    highest = bounds.vocab_size - 1
    if tokens and not (min(tokens) >= 0 and max(tokens) <= highest):
        wrong = next(token for token in tokens if not 0 <= token <= highest)
        raise InvalidRequest(f"{name} has token id {wrong}; this model's are 0 to {highest}", param=name)


def check_conversation(
    messages: list[dict[str, Any]], template: dict[str, Any], bounds: Limits
) -> tuple[Prompt, int]:
    if not messages:
        raise InvalidRequest("messages is empty; give at least one", param="messages")
    counted("messages", len(messages), limits.MAX_MESSAGES, "messages")
    tools = template.get("tools")  # or what the arguments of the template call so, which may be anything
    counted("tools", len(tools) if isinstance(tools, list) else 0, limits.MAX_TOOLS, "tools")
    size, most = 0, bounds.max_prompt_bytes
    for name, value in {"messages": messages, **template}.items():
        param = name if name in ("messages", "tools") else "chat_template_kwargs"
        size += weight(param, value, most - size)
        if size > most:
            raise InvalidRequest(
                f"messages and tools have more than {most} bytes, which is the limit: shorten them",
                param=param,
                code="context_length_exceeded",
            )
    return messages, size


def template_of(message: Generate) -> dict[str, Any]:
    """The arguments of the chat template beside the messages."""
    tools = {} if message.tools is None else {"tools": message.tools}
    return message.chat_template_kwargs | tools


def weight(name: str, value: Any, most: int) -> int:
    """About how many bytes a value of any type takes; more than ``most`` as soon as it is seen to be more.

    ``InvalidRequest`` if it is nested too deep.
    """
    size = 0
    layer: list[Any] = [value]
    for depth in range(limits.MAX_DEPTH + 1):
        inside: list[Any] = []
        for item in layer:
            if isinstance(item, list | dict):
                if depth == limits.MAX_DEPTH:
                    raise InvalidRequest(
                        f"{name} is nested deeper than {limits.MAX_DEPTH} lists and maps: {brief(value)}",
                        param=name,
                    )
                size += 4
                inside += [*item.keys(), *item.values()] if isinstance(item, dict) else item
            else:
                size += 4 + len(item) if isinstance(item, str | bytes) else 8
            if size + 4 * len(inside) > most:
                return most + 1
        layer = inside
    return size
