"""The types of the bodies of ``/v1/responses``, and of its answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from ..bodies.requests import Body, Sampling, completed

ResponseTool = Annotated[
    dict[str, Any],
    Meta(extra_json_schema={"required": ["type"], "properties": {"type": {"type": "string"}}}),
]
"""One tool: which fields it may have depends on its type (``tools.py``)."""


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
    """Functions, custom tools, whose input is a text, and namespaces of either."""
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
    "top_logprobs": 0,
    "truncation": "disabled",
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
    safety_identifier: str | None
    prompt_cache_key: str | None


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
