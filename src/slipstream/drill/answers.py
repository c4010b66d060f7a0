"""The requests of a drill, their answers, and what is counted of these: lost, duplicated and changed tokens.

An answer is known where the service gives the same one whenever and however often its tokens are computed: on an
emulated device, in float32, or if it is batch-invariant. Elsewhere the model itself reads what came, and says of each
token whether it may follow what stands before it.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

from ..actors.executor.devices.kinds import KINDS
from ..protocol.client.asynchronous import AsyncClient
from ..protocol.messages import Delta
from ..protocol.sampling import SamplingParams

DEVICES = tuple(KINDS)

TOP_K = 8
"""The ``top_k`` of the sampled answers that are checked against the model."""

ROUNDING = 0.5
"""By how much a logprob may differ where the same tokens are computed otherwise, in bfloat16."""


@dataclass(frozen=True)
class Load:
    """The requests of the streams, by device."""

    answer_tokens: int
    options: dict[str, Any]
    """The options of ``Sidecar``."""


def load_of(device: str) -> Load:
    if device == "emulated":
        return Load(300, {"device": device, "emulated_step_ms": 10.0})
    return Load(60, {"device": device})


@dataclass
class Case:
    """A request whose answer is known."""

    prompt: list[int]
    params: SamplingParams
    tokens: list[int] = field(default_factory=list)
    text: str = ""


def make_cases(count: int, device: str, top_k: int = 0) -> list[Case]:
    """``count`` requests, no two alike. For a model every second one is greedy, and the others sample among the
    ``top_k`` likeliest tokens."""
    rng = random.Random(0)
    most = load_of(device).answer_tokens
    cases: list[Case] = []
    for number in range(count):
        prompt = [rng.randrange(1, 2000) for _ in range(rng.randrange(4, 40))]
        temperature = 0.0 if device != "emulated" and number % 2 else 1.0
        params = SamplingParams(
            max_tokens=most,
            ignore_eos=True,
            seed=number,
            temperature=temperature,
            top_k=top_k if temperature else 0,
        )
        cases.append(Case(prompt, params))
    return cases


class Answer:
    """One answer as it comes."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.tokens: list[int] = []
        self.texts: list[str] = []
        self.over = self.finished = False
        self.heard_at = time.monotonic()
        self.longest_s = 0.0
        """Without a token, since the last fault."""

    def take(self, delta: Delta) -> None:
        """Take in what has come."""
        now = time.monotonic()
        self.tokens += delta.token_ids
        self.texts.append(delta.text)
        self.longest_s = max(self.longest_s, now - self.heard_at)
        self.heard_at = now

    def measure_from(self, now: float) -> None:
        """A fault comes now: what was before does not count for ``longest_s``."""
        self.heard_at, self.longest_s = now, 0.0


class Counts:
    """The differences between the answers of a drill and the right ones."""

    def __init__(self) -> None:
        self.tokens = self.lost = self.duplicated = self.changed = self.unfinished = 0
        self.errors: list[str] = []
        """The errors of the requests that were not finished."""

    def compare(self, answer: Answer) -> None:
        """Compare what has come with what it must be; an unfinished answer as far as it goes."""
        case, got = answer.case, answer.tokens
        self.tokens += len(got)
        expected = case.tokens if answer.finished else case.tokens[: len(got)]
        for kind, i, j, k, m in SequenceMatcher(None, expected, got, autojunk=False).get_opcodes():
            self.lost += j - i if kind == "delete" else 0
            self.duplicated += m - k if kind == "insert" else 0
            self.changed += max(j - i, m - k) if kind == "replace" else 0
        text = "".join(answer.texts)
        if got == expected and (text != case.text if answer.finished else not case.text.startswith(text)):
            self.changed += 1

    async def check(self, answer: Answer, client: AsyncClient) -> None:
        """Let the model at ``client`` read an answer, and count the tokens that it would not have given there."""
        case, got = answer.case, answer.tokens
        self.tokens += len(got)
        asked = case.params.max_tokens or 0
        self.duplicated += max(0, len(got) - asked)
        self.lost += max(0, asked - len(got)) if answer.finished else 0
        if not got:
            return
        choices = case.params.top_k if case.params.temperature else 1
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=choices)
        read = await client.complete([*case.prompt, *got], params)
        rows = (read.prompt_logprobs or [])[len(case.prompt) :]
        self.changed += sum(
            not may_follow(token, row or {}, choices) for token, row in zip(got, rows, strict=True)
        )


def may_follow(token: int, row: dict[int, float], choices: int) -> bool:
    """Whether ``token`` is one of the likeliest ``choices``, up to rounding; ``row`` has their logprobs and its own."""
    return row[token] >= sorted(row.values(), reverse=True)[choices - 1] - ROUNDING


def known_answer(case: Case, vocab_size: int) -> list[int]:
    """The tokens that the emulated device answers."""
    import numpy as np

    from ..actors.executor.step.emulated_runner import next_token

    assert case.params.max_tokens is not None
    tokens = list(case.prompt)
    for _ in range(case.params.max_tokens):
        previous, position, seed = (
            np.array([value]) for value in (tokens[-1], len(tokens), case.params.seed)
        )
        tokens.append(int(next_token(previous, position, seed, vocab_size)[0]))
    return tokens[len(case.prompt) :]
