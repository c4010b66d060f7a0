"""The parameters of a request: how its tokens are chosen, and when it ends."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec

from . import limits
from .errors import InvalidRequest, brief
from .limits import Limits


class Grammar(msgspec.Struct, array_like=True, frozen=True):
    """The grammar that an answer has to match."""

    kind: str
    """The parameter that it was given as, one of ``GRAMMARS``; or ``calls``, of a conversation's functions."""
    source: str
    """The grammar as it was given; one that is no text, as JSON text."""
    before: str = ""
    """The text that may precede it, as the rule ``before`` of llguidance's notation; empty: none."""


class SamplingParams(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """Sampling and stopping of one request; the names and meanings are vLLM's.

    ``check`` refuses what is out of range. ``temperature=0`` is greedy. ``seed`` makes the request
    repeatable: its tokens are drawn by (seed, token index) and by nothing else in the batch. The logits that they are
    drawn from are the same ones [in float32, or batch-invariant](reliability.md#the-same-answer).
    """

    max_tokens: int | None = None
    """Most tokens to generate; left out: as many as the model's length leaves room for."""
    min_tokens: int = 0
    """No stop token is sampled before this many tokens, unless no other token is allowed: because what the answer must
    match is complete, or all ``allowed_token_ids`` are stop tokens."""
    temperature: float = 1.0
    """Divides the logits; 0: always the most likely token."""
    top_p: float = 1.0
    """Sample among the fewest most likely tokens whose probabilities add up to this."""
    top_k: int = 0
    """Sample among this many most likely tokens; 0 or -1: all."""
    min_p: float = 0.0
    """Sample among the tokens that are at least this likely, as a share of the most likely one."""
    seed: int | None = None
    """Left out: the service draws one."""
    stop: str | list[str] = []
    """Texts that end the answer; they are not part of it."""
    include_stop_str_in_output: bool = False
    """Whether the stop text that ends the answer is part of it."""
    skip_special_tokens: bool = True
    """Whether special tokens of the model have no text in the answer; false: their text is their name."""
    stop_token_ids: list[int] = []
    """Tokens that end the answer, beside the model's own end tokens; the one that ended it is among its
    ``token_ids``."""
    ignore_eos: bool = False
    """Whether the answer goes on after the model's own end tokens."""
    n: int = 1
    """The number of answers. Answer 0 has ``seed``, the others have seeds that are derived from it."""
    logprobs: int | None = None
    """The number of most likely tokens whose logprobs are reported with that of the sampled one; left out: none at all.
    They are those of the model's own distribution, before any other parameter changes it."""
    prompt_logprobs: int | None = None
    """As `logprobs`, for each token of the prompt but the first, with answer 0. The whole prompt is computed then, even
    if it is cached."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of each token that the answer already contains."""
    frequency_penalty: float = 0.0
    """As `presence_penalty`, but times the number of occurrences in the answer."""
    repetition_penalty: float = 1.0
    """Above 1, tokens of prompt and answer become less likely: positive logits are divided by it, and others
    multiplied."""
    logit_bias: dict[int | str, float] = {}
    """From token id, in decimal since all maps have string keys, to the number that is added to its logit."""
    json_schema: dict[str, Any] | str | None = None
    """A JSON Schema, as an object or as JSON text: the answer is one JSON value that is valid under it."""
    regex: str | None = None
    """A regular expression (syntax of Rust's ``regex``) that the whole answer matches."""
    choice: list[str] | None = None
    """The answer is one of these texts."""
    lark: str | None = None
    """A grammar as ``llguidance`` has it, in Lark's notation or as JSON, or in GBNF: the whole answer matches it."""
    structural_tag: dict[str, Any] | str | None = None
    """``{"structures": [{"begin", "schema", "end"}], "triggers": […]}``, or that as JSON text: the answer is any text,
    but wherever a trigger occurs in it, one of the structures that begin with it follows."""
    allowed_token_ids: list[int] | None = None
    """Only these tokens are sampled; not even the model's end tokens, unless they are among them."""
    bad_words: list[str] = []
    """Texts that the answer does not contain, in whichever way tokens could form them."""
    truncate_prompt_tokens: int | None = None
    """Of a longer prompt only this number of tokens at its end is used; -1: as many as leave room for
    ``max_tokens``."""
    priority: int = 0
    """Requests with a higher number go before others that wait, by a finite head start, so that nothing starves."""
    cache_salt: str = ""
    """Only requests with the same salt share prefixes in the prefix cache."""
    adapter: str = ""
    """The name of the adapter with which the model computes the answer; empty: none."""
    deadline_s: float | None = None
    """Seconds from acceptance within which the request must be finished."""

    def __post_init__(self) -> None:
        if isinstance(self.logit_bias, dict) and not all(isinstance(token, str) for token in self.logit_bias):
            bias = {str(token): value for token, value in self.logit_bias.items()}
            msgspec.structs.force_setattr(self, "logit_bias", bias)

    @property
    def stop_strings(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def grammar(self) -> Grammar | None:
        """The grammar that the answer has to match; None: any text."""
        for kind in GRAMMARS:
            given = getattr(self, kind)
            if kind in ("choice", "bad_words") and given:
                return Grammar(kind, json.dumps(given))
            if given is not None and given != []:
                return Grammar(kind, given if isinstance(given, str) else as_json(kind, given))
        return None

    def check(self, bounds: Limits) -> None:
        """Refuse with ``InvalidRequest`` the first value that is out of range."""
        for name, (low, high, above) in RANGES.items():
            within(self, name, low, getattr(bounds, high) if isinstance(high, str) else high, open_low=above)
        within(self, "min_tokens", 0, self.max_tokens or bounds.max_model_len)
        within(self, "logprobs", 0, min(limits.MAX_LOGPROBS, bounds.vocab_size))
        within(self, "prompt_logprobs", 0, min(limits.MAX_LOGPROBS, bounds.vocab_size))
        strings = self.stop_strings
        counted("stop", len(strings), limits.MAX_STOP_STRINGS, "strings")
        for text in strings:
            if not text:
                raise InvalidRequest('stop="" is empty; give a text of at least one character', param="stop")
            counted("stop", len(text), limits.MAX_STOP_CHARS, "characters in one string")
        counted("stop_token_ids", len(self.stop_token_ids), bounds.max_stop_token_ids, "ids")
        for token in self.stop_token_ids:
            if not 0 <= token < bounds.vocab_size:
                raise InvalidRequest(
                    f"stop_token_ids has {token}; a token id of this model is 0 to {bounds.vocab_size - 1}",
                    param="stop_token_ids",
                )
        counted("logit_bias", len(self.logit_bias), limits.MAX_LOGIT_BIAS, "entries")
        for token, bias in self.logit_bias.items():
            if not is_token_id(token, bounds.vocab_size):
                raise InvalidRequest(
                    f"logit_bias has {brief(token)}; a token id of this model is 0 to {bounds.vocab_size - 1}",
                    param="logit_bias",
                )
            if not -limits.MAX_ABS_LOGIT_BIAS <= bias <= limits.MAX_ABS_LOGIT_BIAS:
                raise InvalidRequest(
                    f"logit_bias has {bias} for token {token};"
                    f" it must be at least {-limits.MAX_ABS_LOGIT_BIAS} and at most {limits.MAX_ABS_LOGIT_BIAS}",
                    param="logit_bias",
                )
        for token in self.allowed_token_ids or ():
            if not 0 <= token < bounds.vocab_size:
                raise InvalidRequest(
                    f"allowed_token_ids has {token}; a token id of this model is 0 to {bounds.vocab_size - 1}",
                    param="allowed_token_ids",
                )
        if self.truncate_prompt_tokens == 0:
            message = (
                "truncate_prompt_tokens=0 would leave no prompt; give 1 or more, or -1 for as many as fit"
            )
            raise InvalidRequest(message, param="truncate_prompt_tokens")
        counted("cache_salt", len(self.cache_salt), limits.MAX_CACHE_SALT_CHARS, "characters")
        counted("adapter", len(self.adapter), limits.MAX_ADAPTER_NAME_CHARS, "characters")
        self.check_grammar()

    def check_grammar(self) -> None:
        """Check sizes only; whether a grammar is valid is found where it is compiled."""
        given = [name for name in GRAMMARS if getattr(self, name) not in (None, [])]
        if len(given) > 1:
            raise InvalidRequest(
                f"{' and '.join(given)} are given; an answer matches one of them: leave one", param=given[1]
            )
        for name in ("choice", "bad_words"):
            texts: list[str] | None = getattr(self, name)
            counted(name, len(texts or ()), limits.MAX_CHOICE_STRINGS, "strings")
            if self.choice == [] or "" in (texts or ()):
                raise InvalidRequest(
                    f"{name}={brief(texts)} has no text to choose; give texts of at least one character",
                    param=name,
                )
        if self.allowed_token_ids == []:
            message = "allowed_token_ids=[] allows no token; give at least one, or leave it out"
            raise InvalidRequest(message, param="allowed_token_ids")
        grammar = self.grammar
        if grammar is None:
            return
        texts = self.choice or self.bad_words or [grammar.source]
        try:
            size = sum(len(text.encode()) for text in texts)
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                f"{grammar.kind} has the lone surrogate {error.object[error.start]!r}, which no UTF-8 can hold;"
                " use whole characters",
                param=grammar.kind,
            ) from None
        counted(grammar.kind, size, limits.MAX_GRAMMAR_BYTES, "bytes")


GRAMMARS = ("json_schema", "regex", "choice", "lark", "structural_tag", "allowed_token_ids", "bad_words")
"""The parameters that say what an answer must match. A request can have one of them."""


MATCHED_AS_A_WHOLE = ("json_schema", "regex", "choice", "lark")
"""Those of them that an answer with calls cannot match, so that it may consist of calls instead."""


def as_json(name: str, value: dict[str, Any] | list[Any]) -> str:
    """The value of the parameter ``name`` as JSON text. One that is far too large or deep is refused before it is
    written."""
    layer: list[Any] = [value]
    size = 0
    for _ in range(limits.MAX_DEPTH):
        if not layer:
            break
        size += sum(1 + len(part) if isinstance(part, str | list | dict) else 1 for part in layer)
        if size > limits.MAX_GRAMMAR_BYTES:
            raise InvalidRequest(
                f"{name} has more than {size} bytes; the limit is {limits.MAX_GRAMMAR_BYTES}: send fewer",
                param=name,
            )
        layer = [item for part in layer for item in inside(part)]
    if layer:
        raise InvalidRequest(
            f"{name} is nested deeper than {limits.MAX_DEPTH} lists and maps; make it flatter, as a schema is whose"
            " parts are in $defs",
            param=name,
        )
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(
            f"{name} cannot be written as JSON ({error}); give a plain object", param=name
        ) from None


def inside(value: Any) -> list[Any]:
    return value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []


RANGES: dict[str, tuple[float, float | str, bool]] = {
    "max_tokens": (1, "max_model_len", False),
    "min_tokens": (0, "max_model_len", False),
    "temperature": (0.0, 2.0, False),
    "top_p": (0.0, 1.0, True),
    "top_k": (-1, "vocab_size", False),
    "min_p": (0.0, 1.0, False),
    "seed": (0, limits.MAX_SEED, False),
    "n": (1, limits.MAX_CHOICES, False),
    "logprobs": (0, limits.MAX_LOGPROBS, False),
    "prompt_logprobs": (0, limits.MAX_LOGPROBS, False),
    "presence_penalty": (-2.0, 2.0, False),
    "frequency_penalty": (-2.0, 2.0, False),
    "repetition_penalty": (0.01, 10.0, False),
    "truncate_prompt_tokens": (-1, "max_model_len", False),
    "priority": (-1000, 1000, False),
    "deadline_s": (0.0, limits.MAX_DEADLINE_S, True),
}
"""The lowest and highest value, and whether the lowest itself is excluded; a name is that of a field of ``Limits``."""


def within(params: SamplingParams, name: str, low: float, high: float, *, open_low: bool = False) -> None:
    value = getattr(params, name)
    if value is None:
        return
    inside = (low < value if open_low else low <= value) and value <= high and not math.isnan(value)
    if not inside:
        raise InvalidRequest(
            f"{name}={value} is out of range; it must be {'above' if open_low else 'at least'} {low}"
            f" and at most {high}",
            param=name,
        )


def is_token_id(name: int | str, vocab_size: int) -> bool:
    """Whether ``name`` is a token id in decimal, in canonical form."""
    digits = str(name)
    return (
        len(digits) <= 10 and digits.isdecimal() and str(int(digits)) == digits and int(digits) < vocab_size
    )


def counted(name: str, count: int, limit: int, unit: str) -> None:
    """Refuse more than ``limit`` items, before any of them is looked at."""
    if count > limit:
        raise InvalidRequest(f"{name} has {count} {unit}; the limit is {limit}: send fewer", param=name)
