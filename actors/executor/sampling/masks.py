"""Masks: which tokens the grammar of each sequence lets come next, computed while the device runs.

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


class Follower:
    """One sequence's grammar, and how far its tokens are in it."""

    __slots__ = ("error", "kind", "matcher", "not_barred", "slot")

    def __init__(
        self, slot: int, kind: str, matcher: LLMatcher | None, not_barred: np.ndarray, error: str = ""
    ) -> None:
        self.slot = slot
        self.kind = kind
        """The parameter that the grammar is."""
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
    """The rows of a step that is not over, as far as they have a grammar."""

    rows: list[tuple[int, Follower]]
    """Sampling row, and its grammar."""
    ends: list[tuple[int, GrammarEnd]] = field(default_factory=list)
    """The rows that get no token."""


class Masks:
    """The grammars of the sequences on the device, and the masks of the step that waits for them."""

    def __init__(
        self, compiler: GrammarCompiler | None, slots: int, threads: LLExecutor | None = None
    ) -> None:
        """``compiler`` is None where no sequence has a grammar; ``threads`` are left out to compute row by row."""
        self.compiler = compiler
        self.followers: dict[int, Follower] = {}
        """By sequence slot."""
        self.steps: deque[ConstrainedRows] = deque()
        """Oldest first."""
        self.unfollowed: list[tuple[Follower, int]] = []
        """Tokens that have come and were not followed yet."""
        self.compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self.filled = np.zeros((slots, compiler.library_words if compiler else 0), np.int32)
        self.threads = threads

    def clear(self) -> None:
        """Forget every sequence; no step is under way."""
        self.followers.clear()
        self.unfollowed.clear()

    def begin(self, leaves: Iterable[int], joins: Iterable[Join], rows: Sequence[tuple[int, int]]) -> None:
        """A step was launched: who left before it, who joined, and its (sampling row, sequence slot) to mask."""
        for slot in leaves:
            self.followers.pop(slot, None)  # the steps that still run it hold it
        for join in joins:
            if join.grammar is not None:
                assert self.compiler is not None
                self.followers[join.slot] = self.follower(join, join.grammar, self.compiler)
        self.steps.append(ConstrainedRows([(row, self.followers[slot]) for row, slot in rows]))

    def follower(self, join: Join, grammar: Grammar, compiler: GrammarCompiler) -> Follower:
        """The grammar of a sequence that joins, after what of the answer is there already."""
        bits = compiler.barred(np.frombuffer(join.stop_tokens, np.int32).tolist())
        not_barred = ~np.frombuffer(bits.to_bytes(4 * compiler.library_words, "little"), np.int32)
        try:
            follower = Follower(join.slot, grammar.kind, self.matcher(grammar, compiler), not_barred)
        except InvalidRequest as error:  # the tokenizer let it through
            return Follower(join.slot, grammar.kind, None, not_barred, str(error))
        known = np.frombuffer(join.tokens, np.int32)[join.prompt_len :].tolist()
        if known:
            follower.feed(known)
        return follower

    def matcher(self, grammar: Grammar, compiler: GrammarCompiler) -> LLMatcher:
        """At the beginning of an answer; copied from one that is kept."""
        kept = self.compiled.get(grammar)
        if kept is None:
            kept = self.compiled[grammar] = compiler.compile(grammar)
            if len(self.compiled) > COMPILED_GRAMMARS:
                self.compiled.popitem(last=False)
        self.compiled.move_to_end(grammar)
        return kept.deep_copy()

    def sampled(self, tokens: np.ndarray) -> list[GrammarEnd]:
        """The tokens (int32, by sampling row) of the oldest step have come; who got none, where it becomes -1."""
        step = self.steps.popleft()
        for row, _ in step.ends:
            tokens[row] = -1
        self.unfollowed += [(follower, int(tokens[row])) for row, follower in step.rows if tokens[row] >= 0]
        return [end for _, end in step.ends]

    def fill(self, masks: np.ndarray) -> None:
        """Write the masks of the oldest step: int32 [rows, words], flat. All the steps before it are over.

        A row that can get no token is not masked: what it samples is dropped.
        """
        for follower, token in self.unfollowed:
            follower.feed([token])
        self.unfollowed.clear()
        step = self.steps[0]
        filled = self.filled[: len(step.rows)]
        self.compute(
            [(f.matcher, at) for at, (_, f) in enumerate(step.rows) if f.matcher is not None], filled
        )
        for mask, (row, follower) in zip(filled, step.rows, strict=True):
            if follower.matcher is not None and follower.matcher.is_error():
                follower.fail(follower.matcher.get_error())
            mask &= follower.not_barred
            if follower.matcher is None or not mask.any():
                step.ends.append((row, GrammarEnd(follower.slot, follower.error)))
                mask[:] = -1
        masks = masks.reshape(len(filled), -1)
        masks[:] = filled[:, : masks.shape[1]]

    def compute(self, matchers: list[tuple[LLMatcher, int]], filled: np.ndarray) -> None:
        """The mask of each matcher into its row of ``filled``."""
        if self.threads is None or len(matchers) < PARALLEL_ROWS:
            for matcher, row in matchers:
                fill_next_token_bitmask(matcher, filled, row)
            return
        fill_next_token_bitmask_par(self.threads, matchers, filled)
