"""Grammars: from what a request asks its answer to match, to which tokens may come next.

``llguidance`` does the work. The tokenizer compiles each grammar once, to refuse a bad one at once;
the executor compiles it again and follows the answer. Both do it within the same limits, so that what
was accepted compiles, and no grammar holds up the others for long or takes much memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import tokenizers
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from ....protocol.errors import InvalidRequest, ModelNotSupported
from ....protocol.sampling import Grammar
from ..vocabulary.pieces import Pieces
from ..vocabulary.tokenizer_files import load_tokenizer
from .notation import as_llguidance


def limits(ways: int) -> LLParserLimits:
    """The limits of one grammar with ``ways`` alternatives by which its text may continue. Fuel is counted, not timed:
    the same on every machine."""
    return LLParserLimits(
        initial_lexer_fuel=500_000,  # to compile: about 10 ms
        max_grammar_size=100_000,
        step_lexer_fuel=20_000,  # one mask: about 2 ms of lexing,
        step_max_items=20_000,  # and 1 ms of parsing
        max_lexer_states=10_000,  # up to 2 kB each
        max_items_in_row=ways,
        verbose_errors=False,
    )


LIMITS = limits(2000)

AMBIGUOUS = limits(500)
"""Limits of a grammar that the user wrote, whose rules may part a text in many ways. With ``e: e e | e e e | "a"`` the
time for a token grows with the cube of the tokens before it: 5 ms at the 100th, where these limits end the answer, and
130 ms at the 350th."""

MAX_REASON_CHARS = 300
"""Most characters that are quoted of the library's own error: its beginning says what is wrong, what follows is the
grammar again."""

NOTHING_FOLLOWS = "NoExtensionBias"
"""The library's own word where no token may come and nothing is complete."""

NO_END = "<|no end|>"
"""A token that stands for the end in the vocabulary of a model that has none; no mask of ours allows it."""


class Vocabulary:
    """The bytes of all tokens, as the library asks for them.

    Given a whole tokenizer instead, it would keep a second one, which takes 40 MB for 150,000 tokens.
    """

    bos_token_id = None

    def __init__(self, tokenizer: tokenizers.Tokenizer, vocab_size: int, ends: list[int]) -> None:
        """``vocab_size`` is the model's; tokens that the tokenizer does not know are of no bytes, and never come."""
        pieces = Pieces(tokenizer)
        control = {
            token: added.content
            for token, added in tokenizer.get_added_tokens_decoder().items()
            if added.special or (added.content[:1], added.content[-1:]) == ("<", ">")
        }
        self.tokens = [
            control[token].encode() if token in control else as_bytes(pieces[token])
            for token in range(1 + max(tokenizer.get_vocab(with_added_tokens=True).values()))
        ]
        """By token id."""
        self.tokens += [b""] * (vocab_size - len(self.tokens))
        if not ends:  # the library needs one, to say with it that an answer may end
            ends = [len(self.tokens)]
            self.tokens.append(NO_END.encode())
            control[ends[0]] = NO_END
        self.ends = ends
        self.eos_token_id = ends[0]
        self.special_token_ids = sorted(control)
        """Tokens that no text has, whatever their names are."""
        self.control = frozenset(control.values())
        """Their names."""
        self.tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids


def as_bytes(piece: str | bytes) -> bytes:
    return piece.encode() if isinstance(piece, str) else piece


class GrammarCompiler:
    """Makes matchers for one model's vocabulary."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, vocab_size: int, eos: Collection[int]) -> None:
        """``vocab_size`` is the model's, ``eos`` are the tokens that end an answer, if it has such."""
        self.words = -(-vocab_size // 32)
        """int32 of one mask: bit ``token % 32`` of word ``token // 32`` says whether ``token`` may come."""
        vocabulary = Vocabulary(tokenizer, vocab_size, sorted(eos))
        ends, known = vocabulary.ends, len(vocabulary.tokens)
        try:
            self.vocabulary = LLTokenizer(TokenizerWrapper(vocabulary), eos_token=ends)
        except Exception as error:  # the library raises what its parts raise
            raise ModelNotSupported(
                f"this tokenizer gives no bytes to its tokens that a grammar could be applied to ({error})"
            ) from None
        self.control = vocabulary.control
        vocabulary.tokens = []  # the library has its own form of them
        self.library_words = -(-known // 32)
        """uint32 of one mask of the library's; ours has the first ``words`` of them."""
        self.ends = frozenset(ends)
        """What the library allows where an answer may end."""
        self.vocab_size = vocab_size

    def barred(self, stop_tokens: Collection[int]) -> int:
        """Tokens that are allowed by the library and by nobody else: bit ``token`` is set for each.

        They end no answer that has these ``stop_tokens``, or the model has no logits for them.
        """
        beyond = (1 << 32 * self.library_words) - (1 << self.vocab_size)
        return beyond | sum(1 << token for token in self.ends.difference(stop_tokens))

    def compile(self, grammar: Grammar) -> LLMatcher:
        """A matcher at the beginning of an answer; ``InvalidRequest`` says what is wrong with the grammar."""
        try:
            notation = as_llguidance(grammar, self.control)
            bounds = AMBIGUOUS if grammar.kind == "lark" else LIMITS
            matcher = LLMatcher(self.vocabulary, notation, log_level=0, limits=bounds)
        except (ValueError, TypeError, RecursionError) as error:
            raise refusal(grammar, str(error)) from None
        if matcher.is_error():
            raise refusal(grammar, matcher.get_error())
        return matcher

    def check(self, grammar: Grammar) -> None:
        """``InvalidRequest`` unless the grammar compiles and an answer can begin. It names the definition that is
        wrong in a schema that has several."""
        try:
            self.try_out(grammar)
        except InvalidRequest as error:
            name = self.wrong_definition(grammar) if grammar.kind == "json_schema" else None
            place = grammar.kind if name is None else f"{grammar.kind}.$defs.{name}"
            message = place + str(error).removeprefix(grammar.kind)
            raise InvalidRequest(message, param=place) from None

    def wrong_definition(self, grammar: Grammar) -> str | None:
        """The definition of a schema that no answer can follow by itself, found by halves; None if there is none."""
        try:
            schema = json.loads(grammar.source)
            definitions = dict(schema["$defs"])
        except (ValueError, TypeError, LookupError, RecursionError):
            return None
        suspects = list(definitions)
        while suspects:
            half = suspects[: (len(suspects) + 1) // 2]
            some = {"anyOf": [{"$ref": f"#/$defs/{name}"} for name in half], "$defs": definitions}
            try:
                self.try_out(Grammar(grammar.kind, json.dumps(some)))
            except InvalidRequest:
                if len(half) == 1:
                    return half[0]
                suspects = half
            else:
                suspects = suspects[len(half) :]
        return None

    def try_out(self, grammar: Grammar) -> None:
        matcher = self.compile(grammar)
        allowed = int.from_bytes(matcher.compute_bitmask(), "little")
        if matcher.is_error():
            raise refusal(grammar, matcher.get_error())
        if not allowed & ~self.barred(()):
            raise refusal(grammar, "no text matches but the empty one")


def refusal(grammar: Grammar, reason: str) -> InvalidRequest:
    """Why the grammar of a request is not taken."""
    return InvalidRequest(f"{grammar.kind} cannot be followed: {readable_error(reason)}")


def readable_error(reason: str) -> str:
    """The library's error, without its own notation of the grammar."""
    text = " ".join(reason.replace("<non-verbose/>", "").split()).partition(" 1 | %llguidance")[0]
    if text == NOTHING_FOLLOWS:
        return "no text matches, as where a $ref leads only to itself"
    return re.sub(r"^at \d+\(\d+\): ", "", text)[:MAX_REASON_CHARS]


def load_compiler(folder: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> GrammarCompiler | str:
    """As ``compiler_of``, for the tokenizer in a model's folder."""
    return compiler_of(load_tokenizer(folder), vocab_size, eos_token_ids)


def compiler_of(
    tokenizer: tokenizers.Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]
) -> GrammarCompiler | str:
    """The compiler for a model's vocabulary; or the sentence that says why there is none."""
    try:
        return GrammarCompiler(tokenizer, vocab_size, eos_token_ids)
    except ModelNotSupported as error:
        return f"the model cannot follow a grammar: {error}"
