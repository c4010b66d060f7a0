"""The types of request bodies, which check them and describe them in ``/openapi.json``.

A field that is accepted has an effect, or it is refused: an unknown one, and a known one with a value that
cannot be honoured here. The exception are a caller's own labels (``Labels``), which promise nothing. A null is as
good as a field left out.

Sampling parameters are declared once, in ``protocol/sampling.py``: a body has each under its own name, but for those
in ``OTHERWISE``. Fields of other servers that are not served are in ``FIXED``, with the value that is in force anyway.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ....protocol.errors import InvalidRequest, brief
from ....protocol.formats.tools import Tool, ToolChoice
from ....protocol.limits import Limits
from ....protocol.sampling import GRAMMARS, SamplingParams
from ..errors import Names, Problem, as_written

OTHERWISE = frozenset(
    {"max_tokens", "logprobs", "prompt_logprobs", "json_schema", "regex", "choice", "lark", "structural_tag"}
    | {"adapter"}  # which is the model
)
"""Sampling parameters that OpenAI has in another form, which the bodies below declare."""

PARAMETERS = tuple(field for field in msgspec.structs.fields(SamplingParams) if field.name not in OTHERWISE)
"""Sampling parameters that every body has under their own names."""

FIXED: dict[str, Any] = {
    "detokenize": True,
    "early_stopping": False,
    "guided_decoding_backend": None,
    "guided_whitespace_pattern": None,
    "length_penalty": 1.0,
    "no_stop_trim": False,
    "return_hidden_states": False,
    "return_tokens_as_token_ids": False,
    "spaces_between_special_tokens": True,
    "store": False,
    "use_beam_search": False,
}
"""Fields of other servers that are taken with this value alone, which is what happens here anyway, or null. Clients
and routers in front of a service send them without being asked."""

FIXED_IN_CHAT: dict[str, Any] = FIXED | {
    "add_special_tokens": False,
    "audio": None,
    "chat_template": None,
    "documents": None,
    "echo": False,
    "function_call": None,
    "functions": None,
    "include_reasoning": True,
    "modalities": ["text"],
    "moderation": None,
    "prediction": None,
    "prompt_cache_options": None,
    "prompt_cache_retention": None,
    "separate_reasoning": True,
    "stream_reasoning": True,
    "web_search_options": None,
}

FIXED_IN_COMPLETIONS: dict[str, Any] = FIXED | {"reasoning_effort": None}

FIXED_IN_TOKENIZE: dict[str, Any] = {"chat_template": None}

B = TypeVar("B", bound="Body")


class Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of all bodies."""

    fixed: ClassVar[Mapping[str, Any]] = {}
    """Fields that are taken with one value alone."""

    def __post_init__(self) -> None:
        for name, value in self.fixed.items():
            given = getattr(self, name)
            if given is not None and (given != value or isinstance(given, bool) != isinstance(value, bool)):
                instead = "" if value is None else f", or give {json.dumps(value)}"
                raise Problem(
                    400, f"{name}={brief(given)} is not served here; leave it out{instead}", param=name
                )


class StreamOptions(Body, kw_only=True):
    include_usage: bool | None = None
    """One more event before the last, with no choices and the usage."""
    continuous_usage_stats: bool | None = None
    """With ``include_usage``: each event has the usage so far of the answer that it is about."""
    include_obfuscation: Literal[False] | None = None


class StructuredOutputs(Body, kw_only=True):
    """vLLM's way to say what the whole answer must match: one of these."""

    json: dict[str, Any] | str | UnsetType | None = UNSET
    """A JSON Schema."""
    regex: str | UnsetType | None = UNSET
    choice: list[str] | UnsetType | None = UNSET
    json_object: bool | UnsetType | None = UNSET
    """True: any JSON object."""
    grammar: str | UnsetType | None = UNSET
    """In Lark's notation or as JSON, as llguidance has it, or in GBNF."""
    structural_tag: dict[str, Any] | str | UnsetType | None = UNSET
    """Structures that follow triggers in an otherwise free text."""
    whitespace_pattern: None = None
    disable_fallback: bool | None = None
    """There is one engine, and so nothing to fall back to."""
    disable_any_whitespace: Literal[False] | None = None
    disable_additional_properties: Literal[False] | None = None


class Labels(Body, kw_only=True):
    """What a caller says about itself; accepted, and kept nowhere."""

    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = None
    service_tier: Literal["auto", "default"] | None = None


class Sampling(Labels, kw_only=True):
    """What all answers have in common, beside the parameters of sampling."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    """As vLLM once had it: what ``structured_outputs.json`` is now. So are the next three."""
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None


class JsonSchema(Body, kw_only=True):
    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Body, kw_only=True):
    """Asks that the answer be any text, any JSON object, or JSON that matches a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Choices(Sampling, kw_only=True):
    """What answers of several choices have in common."""

    best_of: Annotated[int, Meta(ge=1)] | None = None
    """As many as ``n``: all are told."""
    response_format: ResponseFormat | None = None
    return_token_ids: bool | None = None
    """Each choice has its ``token_ids``. ``prompt_token_ids`` stand beside the choices of a chat, and in each choice of
    a completion."""
    prompt_logprobs: int | None = None
    """How many of the most likely tokens at each place of the prompt, with the prompt's own; not in streams."""


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


class ChatFields(Choices, kw_only=True):
    """``POST /v1/chat/completions``"""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Annotated[str, Meta(max_length=64)] | None = None
    """For the chat template; one that does not know it is not given it. So is ``verbosity``."""
    verbosity: Annotated[str, Meta(max_length=64)] | None = None
    add_generation_prompt: bool | None = None
    """The prompt ends with the beginning of the next message; by default true."""
    continue_final_message: bool | None = None
    """The answer goes on with the last message."""


class CompletionFields(Choices, kw_only=True):
    """``POST /v1/completions``"""

    prompt: str | list[str | int | list[int]]
    """A text, token ids, or a list of either."""
    max_tokens: int | None = None
    logprobs: int | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None
    """For prompts that are texts; by default true. Token ids are taken as they are."""
    suffix: str | None = None
    """The text that comes after the answer, for models that fill in the middle."""


class TokenizeFields(Body, kw_only=True):
    """``POST /tokenize``: a ``prompt``, or ``messages`` by way of the chat template"""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    """For a prompt; by default true. The chat template writes its own."""
    add_generation_prompt: bool | None = None
    """For messages; by default true."""
    continue_final_message: bool | None = None
    """The text of the messages ends with the last one."""
    tools: list[Tool] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(Body, kw_only=True):
    """``POST /detokenize``"""

    model: str | None = None
    tokens: list[int]


class LoadAdapterBody(Body, kw_only=True):
    """``POST /v1/load_lora_adapter``"""

    lora_name: str
    lora_path: str
    """Its folder, on the machine of the service."""
    load_inplace: Literal[False] | None = None
    """Another adapter under a name that is taken: unload the one that is there first."""


class UnloadAdapterBody(Body, kw_only=True):
    """``POST /v1/unload_lora_adapter``"""

    lora_name: str
    lora_int_id: None = None


def completed(name: str, kind: type[B], fixed: Mapping[str, Any]) -> type[B]:
    """``kind`` with fields that are taken at a fixed value alone and, where it is to be sampled, all parameters."""
    fields: list[tuple[str, Any, Any]] = []
    if issubclass(kind, Sampling):
        fields += [(field.name, field.type | None, None) for field in PARAMETERS]
    fields += [
        (
            name,
            Annotated[
                Any, Meta(title=name, extra_json_schema={"enum": [value] if value is None else [value, None]})
            ],
            None,
        )
        for name, value in fixed.items()
    ]  # with a title, since ``typing`` takes annotations that are equal for one, and ``True`` for 1
    made = msgspec.defstruct(
        name,
        fields,
        bases=(kind,),
        namespace={"__doc__": kind.__doc__, "fixed": fixed},
        module=__name__,
        kw_only=True,
        forbid_unknown_fields=True,
    )
    return made  # type: ignore[return-value]


ChatBody = completed("ChatBody", ChatFields, FIXED_IN_CHAT)
CompletionBody = completed("CompletionBody", CompletionFields, FIXED_IN_COMPLETIONS)
TokenizeBody = completed("TokenizeBody", TokenizeFields, FIXED_IN_TOKENIZE)


class Given(NamedTuple):
    """A parameter as the body has it: under another name, or made of something else."""

    value: Any
    name: str
    """Path of the field in the body."""


class Asked(NamedTuple):
    """The parts of a body that the sampler needs."""

    params: SamplingParams
    names: Names


def sampling_params(body: Sampling, bounds: Limits, **others: Given) -> Asked:
    """The parameters that a body asks for, within what the service accepts; a null is as good as a field left
    out."""
    given = {field.name: value for field in PARAMETERS if (value := getattr(body, field.name)) is not None}
    wanted = [(name, other) for name, other in others.items() if other.value is not None]
    wanted += matches(body.structured_outputs)
    wanted += [
        (name, Given(value, f"guided_{field}"))
        for name, field in MATCHES.items()
        if (value := getattr(body, f"guided_{field}", None)) is not None
    ]
    constraints = [other.name for name, other in wanted if name in MATCHES]
    constraints += [name for name in given if name in GRAMMARS and given[name] != []]
    if len(constraints) > 1:
        message = f"{constraints[0]} and {constraints[1]} are given; an answer matches one of them: leave one"
        raise Problem(400, message, param=constraints[1])
    options = body.stream_options
    if options is not None and not body.stream:
        raise Problem(400, "stream_options is of no use without stream=true", param="stream_options")
    if options is not None and options.continuous_usage_stats and not options.include_usage:
        message = "stream_options.continuous_usage_stats is of no use without include_usage=true"
        raise Problem(400, message, param="stream_options.continuous_usage_stats")
    params = SamplingParams(**given | {name: other.value for name, other in wanted})
    if isinstance(body, Choices) and body.best_of not in (None, params.n):
        message = f"best_of={body.best_of} with n={params.n}: all choices are told; leave it out, or give {params.n}"
        raise Problem(400, message, param="best_of")
    names = {name: other.name for name, other in wanted}
    try:
        params.check(bounds)
    except InvalidRequest as error:
        raise as_written(error, names) from None
    return Asked(params, names)


def of_prompt(body: Choices) -> Given:
    """The number of logprobs of the prompt that are asked for without its echo."""
    if body.prompt_logprobs is not None and body.stream:
        message = "prompt_logprobs are not streamed; leave out one of prompt_logprobs and stream"
        raise Problem(400, message, param="prompt_logprobs")
    return Given(body.prompt_logprobs, "prompt_logprobs")


MATCHES = {
    "json_schema": "json",
    "regex": "regex",
    "choice": "choice",
    "lark": "grammar",
    "structural_tag": "structural_tag",
}
"""Parameters that say what an answer must match, of which it can have one, to their names in
``structured_outputs``, and behind ``guided_``."""


def matches(outputs: StructuredOutputs | None) -> list[tuple[str, Given]]:
    """The formats that ``structured_outputs`` requires of the answer; nothing if all are null."""
    if outputs is None:
        return []
    stated = {field: getattr(outputs, field) for field in (*MATCHES.values(), "json_object")}
    if all(value is UNSET for value in stated.values()):
        message = f"structured_outputs is empty; give one of {', '.join(stated)}, or leave it out"
        raise Problem(400, message, param="structured_outputs")
    given = [
        (name, Given(stated[field], f"structured_outputs.{field}"))
        for name, field in MATCHES.items()
        if stated[field] is not UNSET and stated[field] is not None
    ]
    if stated["json_object"] is True:
        given.append(("json_schema", Given({"type": "object"}, "structured_outputs.json_object")))
    return given


def for_template(body: ChatFields | TokenizeFields) -> dict[str, Any]:
    """What the caller gives the chat template by name."""
    given = dict(body.chat_template_kwargs or {})
    if given.get("tools"):
        message = "chat_template_kwargs has tools, whose calls would stay text; give them in the field tools instead"
        raise Problem(400, message, param="chat_template_kwargs.tools")
    return given


def ending_of(body: ChatFields | TokenizeFields) -> dict[str, bool]:
    """The way in which a body wants the text of a conversation to end."""
    asked = {name: getattr(body, name) for name in ("add_generation_prompt", "continue_final_message")}
    return {name: value for name, value in asked.items() if value is not None}


def schema_of(format: ResponseFormat | None) -> Given:
    """The format that the answer must match; without a value, any."""
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
