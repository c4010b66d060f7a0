"""The types of the bodies of ``/v1/responses``, and of its answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from ..bodies.requests import Body, Sampling, completed


class ResponseTool(Struct, kw_only=True):
    """A function; a ``custom`` tool, whose input is a text; or a ``namespace`` of either."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    format: dict[str, Any] | None = None
    """The form of a custom tool's text: only ``{"type": "text"}`` is kept to."""
    tools: list[ResponseTool] | None = None
    """The tools of a namespace."""
    external_web_access: bool | None = None


class TextFormat(Body, kw_only=True):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class TextOptions(Body, kw_only=True):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    """For chat templates that know it."""


class Reasoning(Body, kw_only=True):
    effort: str | None = None
    """For chat templates that know ``reasoning_effort``."""
    summary: Literal["auto", "concise", "detailed"] | None = None
    """Thoughts are told as they are, without a summary."""
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class ResponseFields(Sampling, kw_only=True):
    """``POST /v1/responses``"""

    input: str | list[dict[str, Any]]
    """A text of the user, or items: messages, calls, their outputs, thoughts."""
    instructions: str | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: int | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    """By default true: the response can be asked for, and gone on from, as long as there is room."""
    background: bool | None = None
    include: list[str] | None = None
    client_metadata: dict[str, str] | None = None
    """What a client says about itself; accepted, and kept nowhere."""
    truncation: Literal["disabled"] | None = None
    top_logprobs: Literal[0] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


FIXED: dict[str, Any] = {
    "access_programs": None,
    "background_options": None,
    "context_management": None,
    "conversation": None,
    "image": None,
    "max_tool_calls": None,
    "moderation": None,
    "prompt": None,
    "prompt_cache_options": None,
    "prompt_cache_retention": None,
}

ResponseBody = completed("ResponseBody", ResponseFields, FIXED)

INCLUDED = frozenset({"reasoning.encrypted_content"})
"""What ``include`` may ask for: thoughts are not encrypted, and always told."""


class ResponseAnswer(Struct, kw_only=True):
    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    model: str
    output: list[dict[str, Any]]
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    usage: dict[str, Any] | None
    background: bool
    previous_response_id: str | None
    store: bool
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    reasoning: dict[str, Any]
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float
    truncation: Literal["disabled"]
    user: str | None


class Items(Struct, kw_only=True):
    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(Struct, kw_only=True):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


OFFERED_NOWHERE = frozenset({"web_search"})
"""Tools of OpenAI's own that agents send unasked. The model is not told of them, and so does not use them."""


def all_tools(tools: Sequence[ResponseTool]) -> Iterator[tuple[str, str | None, ResponseTool]]:
    """Each tool that can be called, with its place in the body and its namespace."""
    for number, tool in enumerate(tools):
        if tool.type == "namespace":
            for inner, one in enumerate(tool.tools or ()):
                yield f"tools[{number}].tools[{inner}]", tool.name, one
        elif tool.type not in OFFERED_NOWHERE:
            yield f"tools[{number}]", None, tool


def plain(value: Any) -> Any:
    """A struct as it goes into an answer."""
    return msgspec.to_builtins(value)
