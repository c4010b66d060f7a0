"""The types of the bodies of ``/v1/messages``, and of its answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from ..bodies.requests import Body, completed

CacheControl = dict[str, Any]
"""Where a client would have a prefix cached: all are, as far as there is room."""


MessagesTool = Annotated[
    dict[str, Any],
    Meta(
        extra_json_schema={
            "required": ["name"],
            "properties": {"name": {"type": "string", "minLength": 1, "maxLength": 128}},
        }
    ),
]
"""A tool that the caller carries out; its keys are in ``reading.py``."""


class Choice(Body, kw_only=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Body, kw_only=True):
    type: Literal["enabled", "disabled", "adaptive"]
    """For chat templates that know ``enable_thinking``."""
    budget_tokens: Annotated[int, Meta(ge=1)] | None = None
    """Without effect: how long it thinks is the model's to say."""
    display: str | None = None


class OutputFormat(Body, kw_only=True):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Body, kw_only=True):
    effort: str | None = None
    """For chat templates that know ``reasoning_effort``."""
    format: OutputFormat | None = None


class SystemPart(Body, kw_only=True):
    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: list[dict[str, Any]] | None = None


class MessageParam(Body, kw_only=True):
    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


class Metadata(Body, kw_only=True):
    user_id: str | None = None


class CountFields(Body, kw_only=True):
    """``POST /v1/messages/count_tokens``"""

    model: str | None = None
    messages: Annotated[list[MessageParam], Meta(min_length=1)]
    system: str | list[SystemPart] | None = None
    tools: list[MessagesTool] | None = None
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    cache_control: CacheControl | None = None


class MessagesFields(CountFields, kw_only=True):
    """``POST /v1/messages``"""

    max_tokens: int
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None


FIXED_IN_COUNT: dict[str, Any] = {"context_management": None, "mcp_servers": [], "speed": "standard"}

FIXED: dict[str, Any] = FIXED_IN_COUNT | {"container": None, "inference_geo": None, "thread": None}

CountBody = completed("CountBody", CountFields, FIXED_IN_COUNT)
MessagesBody = completed("MessagesBody", MessagesFields, FIXED)


class MessagesDetails(Struct, kw_only=True):
    thinking_tokens: int


class MessagesUsage(Struct, kw_only=True):
    input_tokens: int
    """The tokens of the prompt that were not in the prefix cache."""
    cache_read_input_tokens: int
    cache_creation_input_tokens: Literal[0]
    output_tokens: int
    output_tokens_details: MessagesDetails


class MessagesAnswer(Struct, kw_only=True):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    usage: MessagesUsage


class MessagesErrorDetail(Struct, kw_only=True):
    type: str
    message: str
    details: dict[str, Any] | None = None


class MessagesError(Struct, kw_only=True):
    type: Literal["error"]
    error: MessagesErrorDetail


class Counted(Struct, kw_only=True):
    input_tokens: int
