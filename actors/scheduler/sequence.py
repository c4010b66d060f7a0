"""A sequence: what the scheduler knows of one request."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import msgspec
import numpy as np

from ...protocol.internal import Join
from ...protocol.sampling import Grammar, SamplingParams
from .blocks import BlockList
from .logprobs import LogprobLedger, Logprobs, ledger


@dataclass(slots=True, eq=False)
class Sequence:
    """A request as the scheduler knows it, from its arrival to its end."""

    request: int
    tokens: np.ndarray
    """int32: the prompt, then the tokens generated so far. While the sequence has a slot, the row of `SlotTable` has
    newer ones."""
    prompt_len: int
    max_length: int
    """Length at which the sequence ends by ``max_tokens`` or the model's limit."""
    params: SamplingParams
    stop_tokens: np.ndarray
    """int32: token ids that end the sequence."""
    eos: frozenset[int]
    connection: int = 0
    """Number of its client's connection."""
    sort_key: float = 0.0
    """Place among the requests of its client, lowest first: see ``waiting.sort_key``."""
    adapter: int = 0
    """The id of the adapter that computes it; 0: none."""
    salt: bytes = b""
    """The bytes with which the hashes of its prefix begin."""
    attempt: int = 0
    delivered: int = 0
    """Generated tokens that the gateway had when it last sent the request."""
    marks: bool = False
    """Its text has the marks of the model's formats."""
    before: str = ""
    """As in ``Grammar``: the rule for the text that may precede what the grammar describes."""
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
    """The number of the next step at the time when it came into the queue."""
    block_list: BlockList = field(default_factory=BlockList)
    hashes: list[bytes] = field(default_factory=list)
    published: int = 0
    """The number of its full blocks that the prefix cache knows."""
    last_step: int = -1
    """Last step that runs this sequence."""
    opened: bool = False
    finished: bool = False
    left: bool = False
    """It is in no further plan; its slot and blocks are free once ``last_step`` is completed."""
    deaths: int = 0
    """Deaths of the executor, by its own fault, while it computed this sequence."""
    cleared_at: int = 0
    """A suspect is cleared once it has this many tokens: those that were planned when the executor died last, of which
    one may have caused its death."""
    preempted: bool = False
    """It has given up its slot to others, and returns to the queue once ``last_step`` is completed."""
    resumes: bool = False
    """It waits again because it had to give up its blocks."""

    def __post_init__(self) -> None:
        self.logprobs = ledger(self.params.logprobs)
        self.prompt_logprobs = ledger(self.params.prompt_logprobs)

    @property
    def has_begun(self) -> bool:
        """Whether a part of its answer was known when it came into the queue."""
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
            max_length=self.max_length,
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
        """Have the logprobs of the prompt computed again from the first token on."""
        if self.prompt_logprobs is not None:
            self.prompt_logprobs.count = 0

    def last_logprobs(self, count: int) -> Logprobs | None:
        """The logprobs of the newest ``count`` tokens; None if the request asks for none."""
        return self.logprobs.last(count) if self.logprobs is not None and count else None
