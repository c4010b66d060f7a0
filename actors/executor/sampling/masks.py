"""Masks: which tokens the grammar of each sequence allows next, computed while the device runs.

The forward pass of a step needs no mask, only its sampling does. So a step with such rows is launched in
two parts (``pipeline.py``), and in between, when the tokens of the step before have come, the masks are
computed here. Everything is in the order of steps: ``begin`` when a step is launched, ``sampled`` when
its tokens have come, ``fill`` for the one step that waits.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from llguidance import LLExecutor, LLMatcher
from llguidance.numpy import fill_next_token_bitmask, fill_next_token_bitmask_par

from ....protocol.errors import InvalidRequest
from ....protocol.internal import GrammarEnd, Join
from ....protocol.sampling import Grammar
from ...text.grammars.grammar import GrammarCompiler, readable_error

COMPILED_GRAMMARS = 32
"""Most compiled grammars that are cached, for requests that ask for the same one: an application has a handful, and
what requests choose needs a bound."""

PARALLEL_ROWS = 8
"""From this many rows on the library's threads share the work; for fewer it is not worth waking them."""


class SequenceGrammar:
    """The grammar of one sequence, after the tokens that it has."""

    __slots__ = ("error", "kind", "matcher", "not_barred", "slot")

    def __init__(
        self, slot: int, kind: str, matcher: LLMatcher | None, not_barred: np.ndarray, error: str = ""
    ) -> None:
        self.slot = slot
        self.kind = kind
        """The name of the parameter that asks for the grammar."""
        self.matcher = matcher
        """None: there was an error."""
        self.not_barred = not_barred
        """int32 [library words]: all tokens but those of ``GrammarCompiler.barred``."""
        self.error = error

    def feed(self, tokens: list[int]) -> None:
        if self.matcher is not None and not self.matcher.consume_tokens(tokens):
            self.fail(self.matcher.get_error())

    def fail(self, error: str) -> None:
        self.matcher = None
        self.error = f"{self.kind} cannot be followed to an end: {readable_error(error)}"


@dataclass(slots=True)
class ConstrainedRows:
    """The rows of a step under way whose sequences have a grammar."""

    rows: list[tuple[int, SequenceGrammar]]
    """The number of each sampling row, and its grammar."""
    ends: list[tuple[int, GrammarEnd]] = field(default_factory=list)
    """The rows that get no token."""


class Masks:
    """The grammars of the sequences on the device, and the masks of the step that waits for them."""

    def __init__(
        self, compiler: GrammarCompiler | None, slots: int, threads: LLExecutor | None = None
    ) -> None:
        """``compiler`` is None where no sequence has a grammar; ``threads`` are left out to compute row by row."""
        self.compiler = compiler
        self.grammars: dict[int, SequenceGrammar] = {}
        """By the sequence slot of their sequences."""
        self.steps: deque[ConstrainedRows] = deque()
        """The steps under way, oldest first."""
        self.unread: list[tuple[SequenceGrammar, int]] = []
        """Tokens that have come and that their grammars have not read yet."""
        self.compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self.filled = np.zeros((slots, compiler.library_words if compiler else 0), np.int32)
        self.threads = threads

    def clear(self) -> None:
        """Forget every sequence; no step is under way."""
        self.grammars.clear()
        self.unread.clear()

    def begin(self, leaves: Iterable[int], joins: Iterable[Join], rows: Sequence[tuple[int, int]]) -> None:
        """A step was launched: the slots of the sequences that left before it, the sequences that joined, and pairs of
        sampling row and sequence slot of the rows that need a mask."""
        for slot in leaves:
            self.grammars.pop(slot, None)  # the steps that still run it keep the grammar
        for join in joins:
            if join.grammar is not None:
                assert self.compiler is not None
                self.grammars[join.slot] = self.grammar_of(join, join.grammar, self.compiler)
        self.steps.append(ConstrainedRows([(row, self.grammars[slot]) for row, slot in rows]))

    def grammar_of(self, join: Join, grammar: Grammar, compiler: GrammarCompiler) -> SequenceGrammar:
        """The grammar of a joining sequence, after the tokens of its answer that are known already."""
        bits = compiler.barred(np.frombuffer(join.stop_tokens, np.int32).tolist())
        not_barred = ~np.frombuffer(bits.to_bytes(4 * compiler.library_words, "little"), np.int32)
        try:
            made = SequenceGrammar(join.slot, grammar.kind, self.matcher(grammar, compiler), not_barred)
        except InvalidRequest as error:  # the tokenizer let it through
            return SequenceGrammar(join.slot, grammar.kind, None, not_barred, str(error))
        known = np.frombuffer(join.tokens, np.int32)[join.prompt_len :].tolist()
        if known:
            made.feed(known)
        return made

    def matcher(self, grammar: Grammar, compiler: GrammarCompiler) -> LLMatcher:
        """A matcher at the beginning of an answer: a copy of one that is kept, since compiling takes long."""
        kept = self.compiled.get(grammar)
        if kept is None:
            kept = self.compiled[grammar] = compiler.compile(grammar)
            if len(self.compiled) > COMPILED_GRAMMARS:
                self.compiled.popitem(last=False)
        self.compiled.move_to_end(grammar)
        return kept.deep_copy()

    def sampled(self, tokens: np.ndarray) -> list[GrammarEnd]:
        """Take in the ``tokens`` of the oldest step, int32 by sampling row. Returns the sequences that got none, and
        sets their tokens to -1."""
        step = self.steps.popleft()
        for row, _ in step.ends:
            tokens[row] = -1
        self.unread += [(grammar, int(tokens[row])) for row, grammar in step.rows if tokens[row] >= 0]
        return [end for _, end in step.ends]

    def fill(self, masks: np.ndarray) -> None:
        """Write the masks of the oldest step: int32 [rows, words], flat. All the steps before it are over.

        A row that can get no token is not masked: what it samples is dropped.
        """
        for grammar, token in self.unread:
            grammar.feed([token])
        self.unread.clear()
        step = self.steps[0]
        filled = self.filled[: len(step.rows)]
        self.compute(
            [(f.matcher, at) for at, (_, f) in enumerate(step.rows) if f.matcher is not None], filled
        )
        for mask, (row, grammar) in zip(filled, step.rows, strict=True):
            if grammar.matcher is not None and grammar.matcher.is_error():
                grammar.fail(grammar.matcher.get_error())
            mask &= grammar.not_barred
            if grammar.matcher is None or not mask.any():
                step.ends.append((row, GrammarEnd(grammar.slot, grammar.error)))
                mask[:] = -1
        masks = masks.reshape(len(filled), -1)
        masks[:] = filled[:, : masks.shape[1]]

    def compute(self, matchers: list[tuple[LLMatcher, int]], filled: np.ndarray) -> None:
        """Write the mask of each matcher into its row of ``filled``."""
        if self.threads is None or len(matchers) < PARALLEL_ROWS:
            for matcher, row in matchers:
                fill_next_token_bitmask(matcher, filled, row)
            return
        fill_next_token_bitmask_par(self.threads, matchers, filled)
