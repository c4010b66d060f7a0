"""What the files of a model's folder say of requests and answers, for a service before it starts, and for
``slipstream env``: both refuse what is wrong in it, and only a service what is not there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..actors.checkpoint import PICKLES, Checkpoint
from ..actors.template_files import chat_template_sources, given_template
from ..options.serve import ServeOptions
from ..protocol.errors import InvalidRequest, ModelNotSupported
from ..protocol.formats.formats import formats_of
from ..protocol.limits import MAX_FRAME_BYTES, MAX_STOP_TOKEN_IDS, Limits
from ..protocol.messages import Formats
from .child_specs import chat_template_of

BYTES_PER_TOKEN = 16
"""Most bytes that a prompt may have for each token of the longest context. Prose and code have two to six a token in
any vocabulary, tables and deep indentation up to ten; only long runs of one character have more."""


@dataclass(frozen=True, slots=True)
class Description:
    """What all requests of a model have in common."""

    vocab_size: int
    eos_token_ids: tuple[int, ...]
    formats: Formats
    """The formats in which the model writes thoughts and calls."""


def describe(options: ServeOptions, checkpoint: Checkpoint) -> Description:
    """What a folder says; ``ModelNotSupported`` if no service can start with that."""
    ends = checkpoint.eos_token_ids()
    if len(ends) > MAX_STOP_TOKEN_IDS:
        raise ModelNotSupported(
            f"{checkpoint.folder} names {len(ends)} tokens that end an answer; the limit is {MAX_STOP_TOKEN_IDS}"
        )
    return Description(checkpoint.vocab_size, tuple(ends), formats_for(options, checkpoint))


def formats_for(options: ServeOptions, checkpoint: Checkpoint) -> Formats:
    """The formats in which the model writes thoughts and calls: as stated, or as its chat template has them."""
    file = chat_template_of(options)
    if file is None:
        template = "\n".join(chat_template_sources(checkpoint.folder).values())
    else:
        template = given_template(Path(file))
    found = formats_of(template, str(checkpoint.config.get("model_type", "")))
    tool_calls = options.tool_call_parser or found.tool_calls
    return Formats(
        reasoning=options.reasoning_parser or found.reasoning,
        tool_calls=tool_calls,
        strict=tool_calls is not None,
    )


def check_files(checkpoint: Checkpoint) -> list[str]:
    """Check the tokenizer and the form of the weights, where they are there; returns what is not there yet.

    ``ModelNotSupported`` as when a service starts.
    """
    from ..actors.text.detokenizer import Detokenizer  # the library is none of the supervisor's
    from ..actors.text.vocabulary.tokenizer_files import OTHER_FILES, load_tokenizer

    here = {path.name for path in checkpoint.folder.iterdir()}
    if any(name.endswith((".safetensors", *PICKLES)) for name in here):
        try:
            checkpoint.check_weights()
        except InvalidRequest as error:
            raise ModelNotSupported(str(error)) from None
    if here.isdisjoint({"tokenizer.json", *OTHER_FILES}):
        return ["tokenizer.json"]
    Detokenizer(load_tokenizer(checkpoint.folder))
    return []


def check_length(length: int, limit: int | None) -> None:
    """``InvalidRequest`` for a length beyond the model's own."""
    if limit is not None and length > limit:
        raise InvalidRequest(f"max_model_len={length} is over the model's own limit of {limit} tokens")


def limits_for(options: ServeOptions, checkpoint: Checkpoint, found: Description) -> Limits:
    """The limits of a request; ``InvalidRequest`` where the model's own length is unknown or exceeded."""
    limit = checkpoint.max_model_len
    if limit is None and options.max_model_len is None:
        raise InvalidRequest("the model's config.json states no length; give --max-model-len")
    length = options.max_model_len or limit or 0
    check_length(length, limit)
    return Limits(
        max_model_len=length,
        vocab_size=found.vocab_size,
        max_prompt_bytes=min(MAX_FRAME_BYTES // 2, max(65_536, BYTES_PER_TOKEN * length)),
        max_stop_token_ids=MAX_STOP_TOKEN_IDS - len(found.eos_token_ids),
        max_queued_requests=options.max_queued_requests,
    )
