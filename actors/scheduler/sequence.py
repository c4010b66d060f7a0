"""A sequence: one request on its way to its tokens; and the table of those that hold a slot."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import numpy as np

from ...protocol.internal import Join
from ...protocol.limits import MAX_STOP_TOKEN_IDS
from ...protocol.sampling import Grammar, SamplingParams
from .pool import BlockList

NO_TOKEN = -2
"""Fills unused stop-token places: equal to no token id and not to -1, the mark of a masked row."""


class Logprobs(NamedTuple):
    """The logprobs of some rows' tokens: the sampled one first, then the most likely ones."""

    tokens: np.ndarray
    """int32 [rows, columns]."""
    values: np.ndarray
    """float32 [rows, columns]."""

    @staticmethod
    def read(tokens: bytes, values: bytes, rows: int) -> Logprobs:
        return Logprobs(
            np.frombuffer(tokens, np.int32).reshape(rows, -1),
            np.frombuffer(values, np.float32).reshape(rows, -1),
        )

    def take(self, rows: np.ndarray) -> Logprobs:
        """Some of the rows, by number or as a mask."""
        return Logprobs(self.tokens[rows], self.values[rows])


class LogprobLedger:
    """Logprobs of tokens in their order, a row for each, in arrays that double when they are full."""

    __slots__ = ("count", "tokens", "values")

    def __init__(self, top: int) -> None:
        """``top``: how many of the most likely tokens are kept beside each token's own."""
        self.count = 0
        self.tokens = np.empty((16, 1 + top), np.int32)
        self.values = np.empty((16, 1 + top), np.float32)

    def extend(self, logprobs: Logprobs, first: int, count: int) -> None:
        """Keep ``count`` rows from ``first`` on, as many columns as are wanted."""
        begin, end = self.count, self.count + count
        if end > len(self.tokens):
            rows = max(end, 2 * len(self.tokens))
            self.tokens = np.resize(self.tokens, (rows, self.tokens.shape[1]))
            self.values = np.resize(self.values, (rows, self.values.shape[1]))
        columns = self.tokens.shape[1]
        self.tokens[begin:end] = logprobs.tokens[first : first + count, :columns]
        self.values[begin:end] = logprobs.values[first : first + count, :columns]
        self.count = end

    def last(self, count: int) -> Logprobs:
        """The logprobs of the newest ``count`` tokens, or of as many as there are; views."""
        rows = slice(max(0, self.count - count), self.count)
        return Logprobs(self.tokens[rows], self.values[rows])


def ledger(top: int | None) -> LogprobLedger | None:
    """For a request that wants the logprobs of ``top`` tokens; None: it wants none."""
    return None if top is None else LogprobLedger(top)


@dataclass(slots=True, eq=False)
class Sequence:
    """A request as the scheduler knows it, from its arrival to its end. ``tokens`` is the ledger."""

    request: int
    tokens: np.ndarray
    """int32: prompt, then the tokens generated so far; while the sequence has a slot, the table's row is newer."""
    prompt_len: int
    target: int
    """Length at which the sequence ends by ``max_tokens`` or the model's limit."""
    params: SamplingParams
    stop_tokens: np.ndarray
    """int32: token ids that end the sequence."""
    eos: frozenset[int]
    client: int = 0
    sort_key: float = 0.0
    """Place among the requests of its client, lowest first: see ``waiting.sort_key``."""
    adapter: int = 0
    """The id of the adapter that computes it; 0: none."""
    salt: bytes = b""
    """What the hashes of its prefix begin with."""
    attempt: int = 0
    delivered: int = 0
    """Generated tokens that the gateway had when it last sent the request."""
    marks: bool = False
    """Its text has the marks of the model's formats."""
    before: str = ""
    """What may stand before the answer that its grammar is for."""
    calls: str = ""
    """As in ``Enqueue``."""
    queued_at: float = 0.0
    """When it came, in seconds of the machine's monotonic clock."""
    logprobs: LogprobLedger | None = field(init=False)
    """The logprobs of each token generated here, if the request asks for them."""
    prompt_logprobs: LogprobLedger | None = field(init=False)
    """The logprobs of the prompt's tokens after the first as far as they are computed, if the request asks for them."""
    slot: int = -1
    waits_since: int = 0
    """The step that was next when it came into the queue."""
    block_list: BlockList = field(default_factory=BlockList)
    hashes: list[bytes] = field(default_factory=list)
    published: int = 0
    """Full blocks that the prefix cache knows."""
    last_step: int = -1
    """Last step that runs this sequence."""
    opened: bool = False
    finished: bool = False
    left: bool = False
    """Is in no further plan; its slot and blocks are free once ``last_step`` is completed."""
    deaths: int = 0
    """Deaths of the executor, by its own fault, while it computed this sequence."""
    cleared_at: int = 0
    """Token count at which a suspect is cleared: it is past the point of the last of them."""
    preempted: bool = False
    """Left for others, and returns to the queue once ``last_step`` is completed."""
    resumes: bool = False
    """Waits after it left for want of blocks."""

    def __post_init__(self) -> None:
        self.logprobs = ledger(self.params.logprobs)
        self.prompt_logprobs = ledger(self.params.prompt_logprobs)

    @property
    def has_begun(self) -> bool:
        """Some of its answer was there when it came into the queue."""
        return len(self.tokens) > self.prompt_len

    def order(self) -> tuple[float, int]:
        """Sorts sequences: a lower one goes first, and of equal ones the earlier."""
        return self.sort_key, self.request

    def join(self, start: int) -> Join:
        params = self.params
        assert params.seed is not None
        bias_tokens = array("i", map(int, params.logit_bias))
        biases = array("f", params.logit_bias.values())
        return Join(
            slot=self.slot,
            tokens=self.tokens.tobytes(),
            prompt_len=self.prompt_len,
            start=start,
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=max(params.top_k, 0),
            min_p=params.min_p,
            seed=params.seed,
            min_tokens=params.min_tokens,
            end=self.target,
            stop_tokens=self.stop_tokens.tobytes(),
            repetition_penalty=params.repetition_penalty,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            bias_tokens=bias_tokens.tobytes(),
            biases=biases.tobytes(),
            logprobs=self.wanted_logprobs,
            prompt_logprobs=-1
            if params.prompt_logprobs is None or not self.needs_prompt_logprobs
            else params.prompt_logprobs,
            grammar=self.grammar,
            adapter=self.adapter,
        )

    @property
    def grammar(self) -> Grammar | None:
        """The grammar that the answer has to match, with the thoughts that may precede it."""
        grammar = Grammar("calls", self.calls) if self.calls else self.params.grammar
        return None if grammar is None else msgspec.structs.replace(grammar, before=self.before)

    @property
    def wanted_logprobs(self) -> int:
        """The number of most likely tokens whose logprobs are reported with that of the sampled one; -1: none at
        all."""
        return -1 if self.params.logprobs is None else self.params.logprobs

    @property
    def needs_prompt_logprobs(self) -> bool:
        """The request asks for the logprobs of its prompt, and not all are there; the first token has none."""
        return self.prompt_logprobs is not None and self.prompt_logprobs.count < self.prompt_len - 1

    def forget_prompt_logprobs(self) -> None:
        """They will be computed from the first token on."""
        if self.prompt_logprobs is not None:
            self.prompt_logprobs.count = 0

    def last_logprobs(self, count: int) -> Logprobs | None:
        """The logprobs of the newest ``count`` tokens; None if the request asks for none."""
        return self.logprobs.last(count) if self.logprobs is not None and count else None


class SlotTable:
    """The state of all sequence slots as arrays, so that a decode step costs the same whatever the batch.

    It mirrors the device's token table: same slots, same positions, one step or more behind.
    """

    def __init__(self, slots: int, max_model_len: int) -> None:
        self.tokens = np.empty((slots, max_model_len + 1), np.int32)
        self.length = np.zeros(slots, np.int32)
        """Tokens known."""
        self.computed = np.zeros(slots, np.int32)
        """Positions whose keys and values are in the cache once the outstanding steps are done."""
        self.planned = np.zeros(slots, np.int32)
        """Tokens known once the outstanding steps are done."""
        self.target = np.zeros(slots, np.int32)
        self.room = np.zeros(slots, np.int32)
        """Positions for which the sequence has blocks."""
        self.charged = np.zeros(slots, np.int32)
        """The tokens known that are in the account of the sequence's client."""
        self.request = np.zeros(slots, np.int64)
        self.generation = np.zeros(slots, np.int64)
        """The generation of the slot, as handed to its holder."""
        self.stop = np.full((slots, MAX_STOP_TOKEN_IDS), NO_TOKEN, np.int32)
        self.logprobs = np.full(slots, -1, np.int32)
        """``Sequence.wanted_logprobs``."""
        self.decoding = np.zeros(slots, np.bool_)
        """Runs one token in every step."""
        self.accepting = np.zeros(slots, np.bool_)
        """Its sampled tokens count; false once it has ended."""

    def enter(self, sequence: Sequence, generation: int, start: int, room: int) -> None:
        slot, tokens = sequence.slot, sequence.tokens
        self.generation[slot] = generation
        self.tokens[slot, : len(tokens)] = tokens
        self.length[slot] = self.planned[slot] = self.charged[slot] = len(tokens)
        self.computed[slot] = start
        self.target[slot] = sequence.target
        self.room[slot] = room
        self.request[slot] = sequence.request
        self.stop[slot] = NO_TOKEN
        self.stop[slot, : len(sequence.stop_tokens)] = sequence.stop_tokens
        self.logprobs[slot] = sequence.wanted_logprobs
        self.decoding[slot] = False
        self.accepting[slot] = True

    def known(self, slot: int) -> np.ndarray:
        """The tokens of a slot as they are known now; a view."""
        return self.tokens[slot, : self.length[slot]]
