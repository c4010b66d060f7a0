"""The answers as types, for ``/openapi.json``; a test holds what is really answered to them."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct


class ErrorDetail(Struct, kw_only=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Struct, kw_only=True):
    error: ErrorDetail


class TokenDetails(Struct, kw_only=True):
    cached_tokens: int


class UsageAnswer(Struct, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: TokenDetails


class AnswerDetails(Struct, kw_only=True):
    reasoning_tokens: int


class ChatUsage(UsageAnswer, kw_only=True):
    completion_tokens_details: AnswerDetails


class CalledFunction(Struct, kw_only=True):
    name: str
    arguments: str


class ToolCall(Struct, kw_only=True):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(Struct, kw_only=True):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = ""
    """The thoughts before the answer, where the model marks them."""
    reasoning: str = ""
    """The thoughts once more, under the name that newer clients read."""
    tool_calls: list[ToolCall] = []


class ChatChoice(Struct, kw_only=True):
    index: int
    message: AnswerMessage
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    token_ids: list[int] = []
    """Here and below only with ``return_token_ids``."""


class ChatCompletion(Struct, kw_only=True):
    id: str
    object: Literal["chat.completion"]
    prompt_token_ids: list[int] = []
    prompt_logprobs: list[dict[str, dict[str, Any]] | None] = []
    """Only where they are asked for."""
    created: int
    model: str
    choices: list[ChatChoice]
    usage: ChatUsage


class CompletionLogprobs(Struct, kw_only=True):
    text_offset: list[int]
    token_logprobs: list[float | None]
    """Null for the first token of an echoed prompt."""
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(Struct, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]
    token_ids: list[int] = []
    prompt_token_ids: list[int] = []
    prompt_logprobs: list[dict[str, dict[str, Any]] | None] = []
    """Only where they are asked for."""


class Completion(Struct, kw_only=True):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageAnswer


class ModelCard(Struct, kw_only=True):
    id: str
    object: Literal["model"]
    type: Literal["model"]
    display_name: str
    lifecycle: Literal["active"]
    created: int
    created_at: str
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int


class ModelList(Struct, kw_only=True):
    object: Literal["list"]
    data: list[ModelCard]
    first_id: str
    last_id: str
    has_more: Literal[False]


class Tokenized(Struct, kw_only=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(Struct, kw_only=True):
    prompt: str


class Condition(Struct, kw_only=True):
    status: Literal["ok", "unavailable"]
    draining: bool
    actors: list[dict[str, Any]]


class Load(Struct, kw_only=True):
    server_load: int
    """Requests that are open."""


class Profile(Struct, kw_only=True):
    """A timeline in Chrome's trace format."""

    displayTimeUnit: Literal["ms"]
    traceEvents: list[dict[str, Any]]
    otherData: dict[str, Any]


class TokenizerInfo(Struct, kw_only=True):
    tokenizer_class: str
    chat_template: str | None
    model_max_length: int
    bos_token: str = ""
    eos_token: str = ""
    """So other named special tokens, where the model has them."""


class Version(Struct, kw_only=True):
    version: str
