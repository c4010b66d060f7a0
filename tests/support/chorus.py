"""Clients that ask for everything that a request may ask, for any two things together, and look at each answer.

``python tests/support/chorus.py SEED`` replays one run.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from simulation import (
    ADAPTERS,
    EOS,
    GRAMMARS,
    MODEL_LEN,
    VOCAB,
    World,
    expected_prompt_logprobs,
    expected_tokens,
    grammar_of,
    idle,
)
from slipstream.actors.executor.executor import Executor
from slipstream.actors.executor.step.description import Step
from slipstream.actors.executor.step.emulated_runner import EmulatedRunner, known_logprobs
from slipstream.actors.executor.step.layout import ResultLayout
from slipstream.actors.executor.step.sampling_kind import SamplingKind
from slipstream.actors.gateway.ledger import answer_params
from slipstream.protocol.limits import MAX_LOGPROBS
from slipstream.protocol.messages import Delta, Deltas, Error
from slipstream.protocol.sampling import SamplingParams


class Chorus(World):
    """A world whose clients ask for several answers, and look at each."""

    def connect(self, client: bytes) -> None:
        self.answers: dict[tuple[bytes, str, int], list[Delta]] = defaultdict(list)
        super().connect(client)

    def receive(self, client: bytes, message: object) -> None:
        if isinstance(message, Error):
            assert message.id is not None, message
            self.ends[client, message.id] = message.code
        if isinstance(message, Deltas):
            for delta in message.items:
                self.hear(client, delta)

    def hear(self, client: bytes, delta: Delta) -> None:
        key = (client, delta.id)
        _, params = self.requests[key]
        assert key not in self.ends, f"{key} got a delta after its end"
        answer = self.answers[client, delta.id, delta.index]
        assert not answer or answer[-1].finish_reason is None, f"answer {delta.index} went on after its end"
        answer.append(delta)
        assert len(delta.logprobs) == (0 if params.logprobs is None else len(delta.token_ids))
        finished = [
            index
            for index in range(params.n)
            if (deltas := self.answers[client, delta.id, index]) and deltas[-1].finish_reason is not None
        ]
        assert (delta.usage is not None) == (len(finished) == params.n)
        if delta.usage is not None:
            self.ends[key] = "answered"
            total = sum(len(self.tokens_of(key, index)) for index in range(params.n))
            assert delta.usage.completion_tokens == total

    def tokens_of(self, key: tuple[bytes, str], index: int) -> list[int]:
        return [token for delta in self.answers[(*key, index)] for token in delta.token_ids]

    def check(self) -> None:
        """Each answer has the tokens, the logprobs and the end that it would have had alone."""
        for key, (asked, params) in self.requests.items():
            prompt = seen_of(asked, params)
            for index in range(params.n):
                expected = expected_tokens(prompt, answer_params(params, index))
                got = self.tokens_of(key, index)
                deltas = self.answers[(*key, index)]
                self.check_logprobs(deltas, params.logprobs)
                if key in self.aborted:
                    assert got == expected[: len(got)], key
                    continue
                assert got == expected, key
                stops = {*params.stop_token_ids, *(() if params.ignore_eos else (EOS,))}
                most = min(params.max_tokens or MODEL_LEN, MODEL_LEN - len(prompt))
                stopped = len(expected) < most or expected[-1] in stops  # the first also by a grammar's end
                assert deltas[-1].finish_reason == ("stop" if stopped else "length")

    def check_logprobs(self, deltas: list[Delta], wanted: int | None) -> None:
        for delta in deltas:
            for token, row in zip(delta.token_ids, delta.logprobs, strict=wanted is not None):
                assert wanted is not None
                ids, values = known_logprobs(np.array([token]), 1 + wanted, VOCAB)
                assert row == dict(zip(map(str, ids[0].tolist()), values[0].tolist(), strict=True))


def seen_of(prompt: list[int], params: SamplingParams) -> list[int]:
    """What a model sees of a prompt, which is never too long here."""
    most = params.truncate_prompt_tokens
    return prompt if most is None or most < 0 else prompt[-most:]


class CountingRunner(EmulatedRunner):
    """Counts the tokens of sequences with a penalty, and expects the count of a row that samples to be its own.

    The real runner keeps a count of each token in the slot; here the number of all is enough to tell that what
    an earlier holder had was forgotten, and that all that the present one has was counted, once.
    """

    def __init__(
        self, seq_slots: int, max_model_len: int, vocab_size: int, *, check_carry_over: bool
    ) -> None:
        super().__init__(seq_slots, max_model_len, vocab_size, check_carry_over=check_carry_over)
        self.counted = np.zeros(seq_slots + 1, np.int64)
        self.penalised = np.zeros(seq_slots + 1, np.bool_)
        self.most_reported = 0
        """Most tokens of prompts whose logprobs one step reported."""

    def begin(self, inputs: np.ndarray, step: Step) -> None:
        super().begin(inputs, step)
        self.most_reported = max(self.most_reported, step.layout.prompt_logprobs)
        if step.layout.joins:
            joins = step.layout.view(inputs, "joins")
            self.penalised[joins["slot"]] = (
                (joins["repetition_penalty"] != 1.0)
                | (joins["presence_penalty"] != 0.0)
                | (joins["frequency_penalty"] != 0.0)
            )
        self.counted[list(step.penalised_joins)] = 0
        for history in step.histories:
            self.counted[history.slot] += history.length
        if step.layout.counts:
            np.add.at(self.counted, step.layout.view(inputs, "counts")["slot"], 1)

    def sample(
        self,
        slots: np.ndarray,
        allowed: tuple[np.ndarray, np.ndarray] | None,
        outputs: np.ndarray,
        kind: SamplingKind,
        results: ResultLayout,
    ) -> None:
        rows = slots[self.penalised[slots] & ~self.finished[slots]]
        assert not len(rows) or kind.penalties, "a penalty is left out"
        assert (self.counted[rows] == self.position[rows]).all(), (
            "a penalty counts other tokens than the sequence's"
        )
        super().sample(slots, allowed, outputs, kind, results)
        if kind.penalties:
            self.counted[slots] += 1


# --- everything that a request may ask ------------------------------------------------------------------

WISHES: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "a repetition penalty": lambda rng: {"repetition_penalty": rng.choice([0.5, 1.3])},
    "a presence penalty": lambda rng: {"presence_penalty": rng.choice([-1.0, 1.5])},
    "a frequency penalty": lambda rng: {"frequency_penalty": rng.choice([-1.0, 1.5])},
    "logprobs": lambda rng: {"logprobs": rng.choice([0, 3, MAX_LOGPROBS])},
    "logprobs of the prompt": lambda rng: {"prompt_logprobs": rng.choice([0, 2, MAX_LOGPROBS])},
    "a logit bias": lambda rng: {
        "logit_bias": {rng.randrange(VOCAB): -5.0 for _ in range(rng.randrange(1, 9))}
    },
    "a least length": lambda rng: {"min_tokens": rng.randrange(1, 4)},
    "stop tokens": lambda rng: {"stop_token_ids": [rng.randrange(VOCAB) for _ in range(8)]},
    "a grammar": lambda rng: grammar_of(rng.choice(GRAMMARS)),
    "a temperature": lambda rng: {"temperature": rng.choice([0.0, 0.7])},
    "few candidates": lambda rng: {"top_k": 5, "top_p": 0.9, "min_p": 0.01},
    "several answers": lambda rng: {"n": rng.choice([2, 3])},
    "a salt": lambda rng: {"cache_salt": rng.choice(["pepper", "thyme"])},
    "an adapter": lambda rng: {"adapter": rng.choice(ADAPTERS).name},
    "a priority": lambda rng: {"priority": rng.choice([-3, 1, 1000])},
    "the end of a prompt": lambda rng: {"truncate_prompt_tokens": rng.choice([-1, 7, 40])},
    "a deadline": lambda rng: {"deadline_s": 3600.0},
    "no end": lambda rng: {"ignore_eos": True},
}

TOGETHER = "logprobs of the prompt"
"""Most who wish this come at once, when the others are over, so that a step cannot report all that it is asked for."""

PAIRS = list(itertools.combinations(WISHES, 2))


def wished(rng: random.Random, pair: tuple[str, str]) -> SamplingParams:
    params = SamplingParams(max_tokens=rng.randrange(4, 40), seed=rng.getrandbits(60))
    for wish in pair:
        params = msgspec.structs.replace(params, **WISHES[wish](rng))
    return params


class Wishes(Chorus):
    """Asks for every pair once."""

    runner = CountingRunner

    def __init__(self, seed: int) -> None:
        super().__init__(seed, slots=8, blocks=200, budget=600)

    @property
    def most_reported(self) -> int:
        executor = self.actors["executor"]
        assert isinstance(executor, Executor)
        runner = executor.pipeline.runner
        assert isinstance(runner, CountingRunner)
        return runner.most_reported

    def load(self) -> None:
        """Ask, let all be answered, and look at the answers."""
        rng = self.rng
        clients = [b"ann", b"ben"]
        for client in clients:
            self.connect(client)
        prefix = [rng.randrange(VOCAB) for _ in range(MODEL_LEN)]
        for number, pair in enumerate(rng.sample(PAIRS, len(PAIRS))):
            length = rng.randrange(1, MODEL_LEN - 45)
            prompt = prefix[:length] if rng.random() < 0.5 else [rng.randrange(VOCAB) for _ in range(length)]
            client, id, params = rng.choice(clients), str(number), wished(rng, pair)
            start = 1.0 if TOGETHER in pair and rng.random() < 0.8 else 0.01 + rng.random() * 0.3
            self.at(start, lambda c=client, i=id, p=prompt, s=params: self.ask(c, i, p, s))
            if rng.random() < 0.1:
                self.at(start + rng.random() * 0.1, lambda c=client, i=id: self.abort(c, i))
        self.run(lambda: len(self.requests) == len(PAIRS) and self.over())
        self.run(lambda: not self.events or idle(self))
        self.check()
        self.check_nothing_left()

    def check(self) -> None:
        super().check()
        for key, (asked, params) in self.requests.items():
            prompt = seen_of(asked, params)
            told = [d.prompt_logprobs for d in self.answers[(*key, 0)] if d.prompt_logprobs is not None]
            expected = expected_prompt_logprobs(prompt, params)
            assert told == ([] if expected is None else [expected]) or key in self.aborted, key


def main() -> None:
    world = Wishes(int(sys.argv[1]))
    world.load()
    print(f"{len(world.requests)} requests, {world.turns} messages, {world.now:.3f} s of virtual time")


if __name__ == "__main__":
    main()
