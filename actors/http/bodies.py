"""What may stand in the body of a request, as types: they check it, and describe it in ``/openapi.json``.

A field that is accepted has an effect, or it is refused: an unknown one, and a known one with a value that
cannot be honoured here. The exception are a caller's own labels (``Labels``), which promise nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from ...protocol.errors import InvalidRequest
from ...protocol.limits import Limits
from ...protocol.sampling import SamplingParams
from .errors import Names, Problem, as_written
from .tools import Tool, ToolChoice


class Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of all bodies."""


class StreamOptions(Body, kw_only=True):
    include_usage: bool = False
    """One more event before the last, with no choices and the usage."""


class StructuredOutputs(Body, kw_only=True):
    """vLLM's way to say what the whole answer must match: one of these."""

    json: dict[str, Any] | str | None = None
    """A JSON Schema."""
    regex: str | None = None
    choice: list[str] | None = None


class Labels(Body, kw_only=True):
    """What a caller says about itself; accepted, and kept nowhere."""

    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None


class Sampling(Labels, kw_only=True):
    """What all answers have in common; OpenAI's names, then vLLM's."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    priority: int | None = None
    deadline_s: float | None = None
    structured_outputs: StructuredOutputs | None = None


Message = Annotated[
    dict[str, Any],
    Meta(
        extra_json_schema={
            "required": ["role"],
            "properties": {
                "role": {"type": "string", "minLength": 1},
                "content": {"type": ["string", "array", "null"], "items": {"type": "object"}},
            },
        }
    ),
]
"""One message; whatever a model's template knows beyond role and content may stand in it too."""


class JsonSchema(Body, kw_only=True):
    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Body, kw_only=True):
    """That the answer is any text, any JSON object, or JSON that matches a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatBody(Sampling, kw_only=True):
    """``POST /v1/chat/completions``"""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionBody(Sampling, kw_only=True):
    """``POST /v1/completions``"""

    prompt: str | list[str | int | list[int]]
    """A text, token ids, or a list of either."""
    max_tokens: int | None = None
    logprobs: int | None = None
    echo: bool | None = None
    response_format: ResponseFormat | None = None


class TokenizeBody(Body, kw_only=True):
    """``POST /tokenize``: a ``prompt``, or ``messages`` by way of the chat template"""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    """Of a prompt; by default true. The chat template writes its own."""
    add_generation_prompt: bool | None = None
    """Of messages; by default true."""
    tools: list[Tool] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(Body, kw_only=True):
    """``POST /detokenize``"""

    model: str | None = None
    tokens: list[int]


COMMON = (
    "n",
    "temperature",
    "top_p",
    "stop",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "top_k",
    "min_p",
    "repetition_penalty",
    "min_tokens",
    "ignore_eos",
    "stop_token_ids",
    "priority",
    "deadline_s",
)
"""Fields that have the same name in ``SamplingParams``."""


class Given(NamedTuple):
    """A parameter as the body has it: under another name, or made of something else."""

    value: Any
    name: str
    """Path of the field in the body."""


class Asked(NamedTuple):
    """What a body asks of the sampler."""

    params: SamplingParams
    names: Names


def sampling_params(body: Sampling, bounds: Limits, **others: Given) -> Asked:
    """The parameters that a body asks for, within what the service accepts; a null is as good as a field left
    out."""
    given = {name: value for name in COMMON if (value := getattr(body, name)) is not None}
    wanted = [(name, other) for name, other in others.items() if other.value is not None]
    wanted += matches(body.structured_outputs)
    ruling = [other.name for name, other in wanted if name in MATCHES]
    if len(ruling) > 1:
        message = f"{ruling[0]} and {ruling[1]} are given; an answer matches one of them: leave one"
        raise Problem(400, message, param=ruling[1])
    if body.stream_options is not None and not body.stream:
        raise Problem(400, "stream_options is of no use without stream=true", param="stream_options")
    params = SamplingParams(**given | {name: other.value for name, other in wanted})
    names = {name: other.name for name, other in wanted}
    try:
        params.check(bounds)
    except InvalidRequest as error:
        raise as_written(error, names) from None
    return Asked(params, names)


MATCHES = {"json_schema": "json", "regex": "regex", "choice": "choice"}
"""Parameters that say what an answer must match, of which it can have one, to their names in
``structured_outputs``."""


def matches(outputs: StructuredOutputs | None) -> list[tuple[str, Given]]:
    """What ``structured_outputs`` says that the answer must match."""
    if outputs is None:
        return []
    given = [
        (name, Given(value, f"structured_outputs.{field}"))
        for name, field in MATCHES.items()
        if (value := getattr(outputs, field)) is not None
    ]
    if not given:
        message = "structured_outputs is empty; give json, regex or choice, or leave it out"
        raise Problem(400, message, param="structured_outputs")
    return given


def schema_of(format: ResponseFormat | None) -> Given:
    """What the answer must match; without a value: anything."""
    kind = None if format is None else format.type
    written = None if format is None else format.json_schema
    if kind != "json_schema" and written is not None:
        message = f"response_format.json_schema goes with type json_schema, not {kind}; leave one out"
        raise Problem(400, message, param="response_format.json_schema")
    if kind == "json_schema" and written is None:
        message = "response_format of type json_schema needs json_schema"
        raise Problem(400, message, param="response_format.json_schema")
    if written is not None:
        return Given(written.schema, "response_format.json_schema.schema")
    return Given({"type": "object"} if kind == "json_object" else None, "response_format")
