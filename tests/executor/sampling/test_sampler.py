"""Sampling: the processors against those of transformers, the draw and its generator as statistics, and the
whole path of scheduler, pipeline and runner on the CPU device against a plain loop over one sequence."""

from __future__ import annotations

import copy
import math
import os
import random
import select
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from covering import few_of
from replay import Replays, SpoilingRunner
from slipstream.actors.executor.devices.cpu import CpuDevice
from slipstream.actors.executor.executor import Executor
from slipstream.actors.executor.model.loading.load import from_config
from slipstream.actors.executor.model.paged_model import PagedModel
from slipstream.actors.executor.pipeline import Pipeline
from slipstream.actors.executor.sampling.distribution import draw, inverse_transform, least_of_top_p, truncate
from slipstream.actors.executor.sampling.logprobs import logprobs
from slipstream.actors.executor.sampling.random_numbers import uniform
from slipstream.actors.executor.sampling.sampler import IN_PROMPT, Sampler, masked, penalise
from slipstream.actors.executor.step.batch import MIN_CANDIDATES, RunningBatch, power_of_two
from slipstream.actors.executor.step.buckets import buckets_of
from slipstream.actors.executor.step.fields import JOIN, NO_STOP_TOKEN, column
from slipstream.actors.executor.step.model_runner import ModelRunner
from slipstream.actors.executor.step.sampling_kind import SamplingKind
from slipstream.actors.scheduler.config import SchedulerConfig
from slipstream.actors.scheduler.scheduler import Scheduler
from slipstream.protocol.errors import InvalidRequest
from slipstream.protocol.events import Completed
from slipstream.protocol.internal import Capacity, Enqueue, Tokens
from slipstream.protocol.limits import MAX_LOGIT_BIAS, MAX_LOGPROBS, Limits
from slipstream.protocol.sampling import SamplingParams
from slipstream.runtime.actor import Send
from tiny_models import make_config
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

NO_IDS = torch.zeros(1, 0, dtype=torch.int64)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def random_logits(rows: int, vocab: int, seed: int) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 4


# --- against transformers' logits processors ------------------------------------------------------


@dataclass(frozen=True)
class Cut:
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def processors(self) -> LogitsProcessorList:
        """The processors of transformers, in the order in which its ``generate`` puts them."""
        chain = LogitsProcessorList([TemperatureLogitsWarper(self.temperature)])
        if self.top_k:
            chain.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1.0:
            chain.append(TopPLogitsWarper(self.top_p))
        if self.min_p:
            chain.append(MinPLogitsWarper(self.min_p))
        return chain


CUTS = [
    *(Cut(temperature=t) for t in (0.3, 1.0, 1.7)),
    *(Cut(top_k=k) for k in (2, 3, 50, 999, 1000)),
    *(Cut(top_p=p) for p in (1e-6, 0.1, 0.5, 0.9, 0.999)),
    *(Cut(min_p=m) for m in (1e-4, 0.05, 0.5, 1.0)),
    *(
        Cut(t, k, p, m)
        for t in (0.6, 1.3)
        for k in (0, 20, 300)
        for p in (1.0, 0.8, 0.95)
        for m in (0.0, 0.02)
    ),
]


def columns(cuts: list[Cut]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.tensor([cut.temperature for cut in cuts]),
        torch.tensor([cut.top_k for cut in cuts]),
        torch.tensor([cut.top_p for cut in cuts]),
        torch.tensor([cut.min_p for cut in cuts]),
    )


def flags(cuts: list[Cut]) -> dict[str, Any]:
    """What ``RunningBatch`` tells the sampler of rows that ask for ``cuts``."""
    return {
        "candidates": max((power_of_two(cut.top_k, MIN_CANDIDATES) for cut in cuts if cut.top_k), default=0),
        "nucleus": any(cut.top_p < 1 and not cut.top_k for cut in cuts),
    }


def probabilities(logits: Tensor, cuts: list[Cut]) -> Tensor:
    temperature, *others = columns(cuts)
    scaled = (logits - logits.max(dim=-1, keepdim=True).values) / temperature[:, None]
    weights = truncate(scaled.exp(), scaled, *others, **flags(cuts))
    return weights / weights.sum(dim=-1, keepdim=True)


@pytest.mark.parametrize("limit", [0, 20, 300, 1000], ids="top-k up to {}".format)
def test_what_is_kept_and_how_likely_it_is_agrees_with_transformers(limit: int) -> None:
    """All rows at once here, each by itself there."""
    cuts = [cut for cut in CUTS if cut.top_k <= limit]
    for seed in range(4):
        logits = random_logits(len(cuts), 1000, seed)
        ours = probabilities(logits, cuts)
        for row, cut in enumerate(cuts):
            theirs = cut.processors()(NO_IDS, logits[row : row + 1]).softmax(dim=-1)[0]  # type: ignore[arg-type]
            assert torch.equal(ours[row] > 0, theirs > 0), cut
            torch.testing.assert_close(ours[row], theirs, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
def test_top_p_keeps_what_a_sort_would_keep(spread: float) -> None:
    """Flat and steep distributions over a large vocabulary, some of it barred."""
    generator = torch.Generator().manual_seed(16)
    for top_p in (1e-7, 0.01, 0.5, 0.9, 0.99, 1 - 2.0**-20):
        scaled = torch.randn(2, 20_000, generator=generator) * spread
        scaled[:, 1000:3000] = -math.inf
        scaled -= scaled.max(dim=-1, keepdim=True).values
        best = scaled.sort(dim=-1, descending=True).values
        ends = best.exp().cumsum(dim=-1, dtype=torch.float64)
        expected = best.gather(1, (ends < torch.tensor(top_p) * ends[:, -1:]).sum(dim=-1, keepdim=True))[:, 0]
        found = least_of_top_p(scaled.exp(), scaled, torch.full((2,), top_p))
        assert torch.equal(found, expected), top_p


def test_penalties_agree_with_transformers_and_with_the_formula_of_vllm() -> None:
    rows, vocab = 6, 200
    logits = random_logits(rows, vocab, 1)
    generator = torch.Generator().manual_seed(2)
    prompts = torch.randint(vocab, (rows, 30), generator=generator)
    answers = torch.randint(vocab, (rows, 50), generator=generator) // 3
    repetition = torch.tensor([1.0, 1.3, 0.7, 2.0, 1.0, 1.1])
    presence = torch.tensor([0.0, 0.0, 0.5, -1.0, 2.0, 0.3])
    frequency = torch.tensor([0.0, 0.0, 0.25, 1.5, 0.0, -0.7])

    sampler = Sampler(rows, vocab, torch.device("cpu"))
    sampler.counts = torch.zeros(rows, vocab, dtype=torch.int32)
    slots = torch.arange(rows)
    for token in prompts.unbind(1):
        sampler.count_known(slots, token.int(), torch.ones(rows, dtype=torch.bool))
    known = slots.repeat_interleave(20)
    sampler.count_known(known, answers[:, :20].reshape(-1).int(), torch.zeros(20 * rows, dtype=torch.bool))
    for token in answers[:, 20:].unbind(1):
        sampler.count_sampled(slots, token.int())
    ours = penalise(logits, sampler.counts, repetition, presence, frequency)

    for row in range(rows):
        said = torch.cat([prompts, answers], dim=1)[row : row + 1]
        theirs = RepetitionPenaltyLogitsProcessor(repetition[row].item())
        expected = theirs(said, logits[row : row + 1].clone())  # type: ignore[arg-type]
        count = torch.bincount(answers[row], minlength=vocab)
        expected = expected - frequency[row] * count - presence[row] * (count > 0)
        torch.testing.assert_close(ours[row : row + 1], expected)
    assert torch.equal(ours[0], logits[0]), "a row without penalties keeps its logits to the last bit"


def test_what_a_prompt_says_is_marked_once_and_what_an_answer_says_is_counted() -> None:
    sampler = Sampler(2, 4, torch.device("cpu"))
    sampler.counts = torch.zeros(2, 4, dtype=torch.int32)
    slots = torch.tensor([1, 1, 1, 1, 1, 0])
    tokens = torch.tensor([2, 2, 3, 2, 0, 1], dtype=torch.int32)
    sampler.count_known(slots, tokens, torch.tensor([True, True, True, False, False, False]))
    sampler.count_sampled(torch.tensor([0, 1]), torch.tensor([1, 2], dtype=torch.int32))
    assert sampler.counts.tolist() == [[0, 2, 0, 0], [1, 0, IN_PROMPT + 2, IN_PROMPT]]


def bias_of_transformers(bias: dict[int, float]) -> SequenceBiasLogitsProcessor:
    class OfAnyToken(SequenceBiasLogitsProcessor):
        def _validate_arguments(self) -> None:
            """Transformers 5.17 refuses token 0."""

    return OfAnyToken([[[token], value] for token, value in bias.items()])  # type: ignore[arg-type]


def test_logit_bias_agrees_with_transformers_and_comes_before_the_penalties() -> None:
    vocab = 100
    logits = random_logits(2, vocab, 3)
    bias = {3: 5.0, 99: -100.0, 0: 0.5}
    sampler = Sampler(2, vocab, torch.device("cpu"))
    sampler.bias_tokens[1, : len(bias)] = torch.tensor(list(bias))
    sampler.bias[1, : len(bias)] = torch.tensor(list(bias.values()))
    theirs = bias_of_transformers(bias)
    expected = theirs(torch.zeros(1, 1, dtype=torch.int64), logits[1:].clone())  # type: ignore[arg-type]
    slots = torch.arange(2)
    ours = logits.scatter_add(1, sampler.bias_tokens[slots], sampler.bias[slots])
    assert torch.equal(ours[0], logits[0])
    torch.testing.assert_close(ours[1:], expected)
    kind = SamplingKind(biased=True)
    assert sampler.sample(logits, slots, records(2), slots, kind).tolist() == [
        int(logits[0].argmax()),
        int(expected.argmax()),
    ]


def records(rows: int) -> Tensor:
    """Requests that ask for nothing."""
    made = torch.zeros(rows, JOIN.itemsize // 4, dtype=torch.int32)
    column(made, JOIN, "stop_tokens").fill_(NO_STOP_TOKEN)
    column(made, JOIN, "repetition_penalty").fill_(1.0)
    return made


# --- edges ------------------------------------------------------------------------------------------


def draw_one(logits: Tensor, cut: Cut, draws: Tensor) -> Tensor:
    """One row of logits [V] sampled with each of ``draws``."""
    rows = len(draws)
    temperature, top_k, top_p, min_p = columns([cut] * rows)
    return draw(
        logits.expand(rows, -1), temperature, top_k, top_p, min_p, draws, truncated=True, **flags([cut])
    )


DRAWS = torch.tensor([0.0, 2.0**-53, 0.25, 0.5, 0.999999, 1 - 2.0**-53], dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-44])
def test_a_tiny_temperature_is_greedy_and_never_nan(temperature: float) -> None:
    logits = random_logits(1, 5000, 4)[0] * 100
    assert (draw_one(logits, Cut(temperature), DRAWS) == logits.argmax()).all()


@pytest.mark.parametrize(
    "cut", [Cut(0.0), Cut(top_k=1), Cut(top_p=1e-9), Cut(min_p=1.0), Cut(1.5, 1, 0.5, 0.1)]
)
def test_cuts_that_leave_one_token_are_greedy(cut: Cut) -> None:
    for seed in range(20):
        logits = random_logits(1, 300, seed)[0]
        assert (draw_one(logits, cut, DRAWS) == logits.argmax()).all()


def test_top_k_of_one_takes_the_first_of_equals_as_greedy_does() -> None:
    logits = torch.tensor([1.0, 3.0, 3.0, 3.0])
    assert draw_one(logits, Cut(top_k=1), DRAWS).tolist() == [1] * len(DRAWS)


@pytest.mark.parametrize("cut", [Cut(), Cut(0.1), Cut(2.0, 50, 0.9, 0.1), Cut(top_p=0.5)])
@pytest.mark.parametrize("only", [0, 255, 256, 999])
def test_a_token_that_all_others_are_barred_for_is_taken(cut: Cut, only: int) -> None:
    logits = torch.full((1000,), -math.inf)
    logits[only] = -5.0
    assert (draw_one(logits, cut, DRAWS) == only).all()


def test_a_place_without_weight_is_never_drawn() -> None:
    rng = random.Random(6)
    for _ in range(300):
        vocab = rng.choice([1, 3, 255, 256, 257, 700])
        weights = torch.tensor([rng.choice([0.0, 0.0, 0.0, 1e-30, 1.0, 3.0]) for _ in range(vocab)])
        weights[rng.randrange(vocab)] = 1.0
        places = inverse_transform(weights.expand(len(DRAWS), -1), DRAWS)
        assert (weights[places] > 0).all()
        assert places[0] == weights.nonzero()[0], "a draw of 0 takes the first that has weight"
        assert places[-1] == (weights >= 1.0).nonzero()[-1]


@pytest.mark.parametrize("cut", [Cut(), Cut(top_p=0.9), Cut(top_k=3), Cut(min_p=0.1), Cut(0.7, 5, 0.9, 0.1)])
def test_logits_that_are_nan_still_give_a_token_of_the_vocabulary(cut: Cut) -> None:
    """One sick row must not stop the device, and with it the others."""
    logits = random_logits(3, 500, 7)
    logits[1] = math.nan
    cuts = [Cut(top_p=0.9), cut, Cut(top_k=5, top_p=0.9)]
    draws = torch.full((3,), 0.5, dtype=torch.float64)
    tokens = draw(logits, *columns(cuts), draws, truncated=True, **flags(cuts))
    assert ((tokens >= 0) & (tokens < 500)).all()
    assert tokens[0] == draw_one(logits[0], cuts[0], torch.tensor([0.5], dtype=torch.float64))[0]


def test_no_stop_token_before_min_tokens() -> None:
    sampler = Sampler(1, 8, torch.device("cpu"))
    request = records(1)
    column(request, JOIN, "min_tokens")[0] = 3
    column(request, JOIN, "stop_tokens")[0, :2] = torch.tensor([7, 6])
    logits = torch.arange(8.0)[None]
    kind = SamplingKind(min_tokens=True)
    chosen = [
        sampler.sample(logits, torch.tensor([0]), request, torch.tensor([index]), kind).item()
        for index in range(5)
    ]
    assert chosen == [5, 5, 5, 7, 7]


# --- the draw as a statistic ------------------------------------------------------------------------


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """Pearson's statistic in standard deviations from its mean; bins below 5 are one bin."""
    small = expected < 5
    counts = np.append(counts[~small], counts[small].sum())
    expected = np.append(expected[~small], expected[small].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    freedom = len(counts) - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom))


SIGMAS = 5.0
"""Seeds are fixed, so nothing flakes; a fair draw would be beyond this once in a million seeds."""

DRAWN = 40_000


def counts_of(cut: Cut, draws: Callable[[Tensor], Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """How often each of 400 tokens was drawn, and how often transformers' probabilities expect it."""
    logits = random_logits(1, 400, 8)[0] / 2
    index = torch.arange(DRAWN)
    tokens = draw_one(logits, cut, draws(uniform(torch.full_like(index, 1234), index)))
    expected = cut.processors()(NO_IDS, logits[None]).double().softmax(dim=-1)[0]  # type: ignore[arg-type]
    return np.bincount(tokens.numpy(), minlength=400), expected.numpy() * DRAWN


CUTS_OF_DRAWS = [Cut(), Cut(0.5), Cut(1.6, 100), Cut(top_p=0.9), Cut(1.3, 50, 0.95, 0.05)]


@pytest.mark.parametrize("cut", few_of(CUTS_OF_DRAWS, Cut(), Cut(1.6, 100), Cut(1.3, 50, 0.95, 0.05)))
def test_tokens_are_drawn_with_their_probabilities(cut: Cut) -> None:
    assert abs(chi_square(*counts_of(cut, lambda draws: draws))) < SIGMAS


@pytest.mark.parametrize(
    "bend",
    [
        lambda draws: draws**1.1,
        lambda draws: draws * 0.99,
        lambda draws: (draws * 256).floor() / 256,
        lambda draws: torch.where(draws < 0.05, draws * 0.5, draws),
    ],
    ids=["a power of 1.1", "a hundredth less", "8 bits", "small ones halved"],
)
def test_a_draw_that_is_not_fair_would_be_noticed(bend: Callable[[Tensor], Tensor]) -> None:
    assert chi_square(*counts_of(Cut(), bend)) > 2 * SIGMAS


# --- the generator ------------------------------------------------------------------------------------


def splitmix(seed: int, index: int) -> float:
    """The generator in Python's integers: two rounds of SplitMix64's mixing, and the upper 53 bits."""
    mask = (1 << 64) - 1

    def mixed(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        return z ^ (z >> 31)

    return (mixed((mixed(seed) + 0x9E3779B97F4A7C15 * (index + 1)) & mask) >> 11) * 2.0**-53


def test_the_generator_is_the_one_that_it_says() -> None:
    rng = random.Random(9)
    pairs = [(rng.getrandbits(63), rng.getrandbits(20)) for _ in range(500)] + [(0, 0), (2**63 - 1, 0)]
    seeds, indices = torch.tensor(pairs).unbind(1)
    assert uniform(seeds, indices).tolist() == [splitmix(*pair) for pair in pairs]


def kolmogorov_smirnov(draws: np.ndarray) -> float:
    """The greatest distance from the uniform distribution, times the root of the number of draws."""
    draws = np.sort(draws)
    place = np.arange(len(draws))
    distance = max((draws - place / len(draws)).max(), ((place + 1) / len(draws) - draws).max())
    return float(distance) * math.sqrt(len(draws))


KS_BOUND = 2.5
"""A uniform sample is beyond this less than once in 100,000 times."""

ZEROS, COUNTING = torch.zeros(100_000, dtype=torch.int64), torch.arange(100_000)


@pytest.mark.parametrize(
    ("seeds", "indices"),
    [
        (ZEROS, COUNTING),
        (ZEROS + 2**62, COUNTING),
        (COUNTING, ZEROS),
        (COUNTING, ZEROS + 7),
        (COUNTING << 40, ZEROS),
        (COUNTING // 100, COUNTING % 100),
    ],
    ids=["indices", "of a large seed", "seeds", "at index 7", "far seeds", "both"],
)
def test_draws_are_uniform_and_know_nothing_of_their_neighbours(seeds: Tensor, indices: Tensor) -> None:
    draws = uniform(seeds, indices).numpy()
    assert draws.min() >= 0.0
    assert draws.max() < 1.0
    assert kolmogorov_smirnov(draws) < KS_BOUND
    assert kolmogorov_smirnov(draws**1.04) > KS_BOUND
    for lag in (1, 2, 100):
        pairs = (draws[:-lag] * 16).astype(int) * 16 + (draws[lag:] * 16).astype(int)
        count = len(pairs)
        assert abs(chi_square(np.bincount(pairs, minlength=256), np.full(256, count / 256))) < SIGMAS


def test_the_streams_of_two_seeds_have_nothing_in_common() -> None:
    for other in (1, 2, 1 << 32, 0x9E3779B97F4A7C15 - (1 << 64)):
        one, two = uniform(ZEROS + 5, COUNTING).numpy(), uniform(ZEROS + 5 + other, COUNTING).numpy()
        assert abs(np.corrcoef(one, two)[0, 1]) < 5 / math.sqrt(len(COUNTING))
        assert not np.intersect1d(one, two).size


def test_a_row_draws_the_same_token_in_any_company() -> None:
    """Alone, in another order, among padding, and whatever the neighbours ask for."""
    rng = random.Random(10)
    cuts = [rng.choice([*CUTS, Cut(0.0), Cut(), Cut()]) for _ in range(48)]
    logits = random_logits(len(cuts), 1000, 11)
    draws = uniform(torch.arange(len(cuts)), torch.full((len(cuts),), 3))
    together = draw(logits, *columns(cuts), draws, truncated=True, **flags(cuts))
    for _ in range(20):
        rows = rng.sample(range(len(cuts)), rng.randrange(1, len(cuts)))
        chosen = [cuts[row] for row in rows]
        some = draw(logits[rows], *columns(chosen), draws[rows], truncated=True, **flags(chosen))
        assert torch.equal(some, together[rows])
    for row, cut in enumerate(cuts):
        only = logits[row : row + 1], *columns([cut]), draws[row : row + 1]
        alone = draw(*only, truncated=cut != Cut(cut.temperature), **flags([cut]))
        assert alone == together[row], cut


# --- logprobs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab", [5, 21, 1000])
def test_logprobs_are_those_of_the_log_softmax(vocab: int) -> None:
    logits = random_logits(4, vocab, 12)
    tokens = torch.tensor([0, 1, 2, vocab - 1], dtype=torch.int32)
    expected = logits.log_softmax(dim=-1)
    for columns in (1, 1 + MAX_LOGPROBS):
        ids, values = logprobs(logits, logits.logsumexp(-1, True), tokens, columns)
        assert (ids.dtype, values.dtype) == (torch.int32, torch.float32)
        assert ids.shape == values.shape == (4, columns)
        assert torch.equal(ids[:, 0], tokens)
        known = min(columns, 1 + vocab)
        torch.testing.assert_close(values[:, :known], expected.gather(1, ids[:, :known].long()))
        best = expected.topk(known - 1).indices
        assert torch.equal(ids[:, 1:known], best.int())


# --- through scheduler, pipeline and runner, against a plain loop ------------------------------------

LENGTH, SLOTS, BLOCK, BUDGET = 96, 5, 4, 16
EOS = 269


@pytest.fixture(scope="module")
def model() -> PagedModel:
    return from_config(make_config("llama"), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def plain(model: PagedModel) -> torch.nn.Module:
    """The same weights under transformers' own attention."""
    config = copy.deepcopy(make_config("llama"))
    alone = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    alone.load_state_dict(model.transformer.state_dict())
    return alone.eval()


@dataclass
class Answer:
    tokens: list[int] = field(default_factory=list)
    logprobs: list[dict[int, float]] = field(default_factory=list)


class Rig:
    """Scheduler and executor around one CPU device."""

    def __init__(self, model: PagedModel, depth: int, blocks: int = 200, *, graphs: bool = False) -> None:
        self.device = CpuDevice()
        buckets = buckets_of(SLOTS, BUDGET, LENGTH) if graphs else None
        batch = RunningBatch(SLOTS, BUDGET, LENGTH // BLOCK, buckets)
        with torch.inference_mode():
            self.plain = self.runner = ModelRunner(model, SLOTS, LENGTH, BLOCK, blocks)
            self.graphs = Replays()
            if buckets:
                self.runner = SpoilingRunner(self.plain, self.graphs.capture, LENGTH, buckets)
                self.runner.capture_all()
        pipeline = Pipeline(self.device, self.runner, depth, batch.input_capacity, batch.output_capacity)
        self.executor = Executor(pipeline, batch, Capacity(blocks, BLOCK), {})
        self.scheduler = Scheduler(SchedulerConfig(SLOTS, BUDGET, LENGTH, depth, (EOS,)))
        self.answers: dict[int, Answer] = {}
        self.wanted: dict[int, int | None] = {}
        self.carry(self.scheduler.receive("executor", Capacity(blocks, BLOCK), 0.0))

    def carry(self, sends: list[Send]) -> None:
        for to, message in sends:
            if to == "executor":
                self.carry(self.executor.receive("scheduler", message, 0.0))
            elif to == "scheduler":
                self.carry(self.scheduler.receive("executor", message, 0.0))
            elif isinstance(message, Tokens):
                self.take(message)

    def take(self, message: Tokens) -> None:
        requests = np.frombuffer(message.requests, np.int64).tolist()
        tokens = np.frombuffer(message.tokens, np.int32).tolist()
        ids, values = (
            np.frombuffer(message.logprob_tokens, np.int32),
            np.frombuffer(message.logprobs, np.float32),
        )
        for row, (request, token) in enumerate(zip(requests, tokens, strict=True)):
            answer, wanted = self.answers[request], self.wanted[request]
            answer.tokens.append(token)
            if wanted is not None:
                named = [data.reshape(len(tokens), -1)[row, : 1 + wanted].tolist() for data in (ids, values)]
                assert named[0][0] == token
                answer.logprobs.append(dict(zip(*named, strict=True)))

    def ask(self, request: int, prompt: list[int], params: SamplingParams) -> None:
        self.answers[request], self.wanted[request] = Answer(), params.logprobs
        ids = np.array(prompt, np.int32).tobytes()
        self.carry(self.scheduler.receive("tokenizer", Enqueue(request, ids, params, b""), 0.0))

    def wait(self) -> None:
        """Until the device has finished a step."""
        fd = self.device.completions_fd
        assert fd is not None
        assert select.select([fd], [], [], 30.0)[0], "the device is silent"
        os.eventfd_read(fd)
        self.carry(self.executor.receive("device", Completed(), 0.0))

    def finish(self) -> None:
        while self.scheduler.sequences or self.executor.pipeline.under_way:
            self.wait()
        self.device.close()


@torch.inference_mode()
def plain_answer(plain: torch.nn.Module, prompt: list[int], params: SamplingParams) -> Answer:
    """One sequence, one forward pass of all of it for each token, transformers' processors, a plain draw."""
    answer = Answer()
    stops = set(params.stop_token_ids) | (set() if params.ignore_eos else {EOS})
    chain = LogitsProcessorList()
    if params.logit_bias:
        chain.append(bias_of_transformers({int(token): bias for token, bias in params.logit_bias.items()}))
    chain.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    cut = Cut(params.temperature or 1.0, max(params.top_k, 0), params.top_p, params.min_p)
    while len(answer.tokens) < (params.max_tokens or LENGTH):
        known = torch.tensor([prompt + answer.tokens])
        logits = plain(known).logits[:, -1]
        scores = logits.clone()
        if len(answer.tokens) < params.min_tokens:
            scores[0, list(stops)] = -math.inf
        scores = chain(known, scores)  # type: ignore[arg-type]
        count = torch.bincount(torch.tensor(answer.tokens, dtype=torch.int64), minlength=scores.shape[1])
        scores = scores - params.frequency_penalty * count - params.presence_penalty * (count > 0)
        if params.greedy:
            token = int(scores.argmax())
        else:
            likely = cut.processors()(known, scores).double().softmax(dim=-1)[0]  # type: ignore[arg-type]
            assert params.seed is not None
            chosen = splitmix(params.seed, len(answer.tokens))
            token = int((likely.cumsum(0) <= chosen * likely.sum()).sum())
        if params.logprobs is not None:
            expected = logits[0].log_softmax(dim=-1)
            named = [token, *expected.topk(params.logprobs).indices.tolist()] if params.logprobs else [token]
            answer.logprobs.append({name: float(expected[name]) for name in named})
        answer.tokens.append(token)
        if token in stops:
            break
    return answer


def random_params(rng: random.Random, seed: int) -> SamplingParams:
    some = rng.random() < 0.7
    return SamplingParams(
        max_tokens=rng.randrange(8, 28),
        min_tokens=rng.choice([0, 0, 6]),
        temperature=rng.choice([0.0, 0.7, 1.0, 1.5]),
        top_k=rng.choice([0, 0, 1, 5, 40]),
        top_p=rng.choice([1.0, 1.0, 0.8]),
        min_p=rng.choice([0.0, 0.0, 0.05]),
        seed=seed,
        stop_token_ids=[rng.randrange(EOS) for _ in range(rng.randrange(20))],
        repetition_penalty=rng.choice([1.0, 1.2, 1.8, 0.8]) if some else 1.0,
        presence_penalty=rng.choice([0.0, 0.6, -0.5]) if some else 0.0,
        frequency_penalty=rng.choice([0.0, 0.4, 1.5]) if some else 0.0,
        logit_bias={rng.randrange(EOS): rng.uniform(-20, 8) for _ in range(rng.choice([0, 0, 3, 30]))},
        logprobs=rng.choice([None, None, 0, 4, MAX_LOGPROBS]),
    )


@pytest.fixture(scope="module")
def known(plain: torch.nn.Module) -> list[tuple[list[int], SamplingParams, Answer]]:
    """Requests and their answers by the plain loop. Some begin alike, for the prefix cache."""
    rng = random.Random(13)
    prefixes = [[rng.randrange(EOS) for _ in range(22)] for _ in range(2)]
    made = []
    for seed in range(24):
        prompt = rng.choice([[], [], *prefixes]) + [rng.randrange(EOS) for _ in range(rng.randrange(1, 20))]
        params = random_params(rng, seed)
        made.append((prompt, params, plain_answer(plain, prompt, params)))
    return made


def check(got: Answer, expected: Answer) -> None:
    assert got.tokens == expected.tokens
    assert len(got.logprobs) == len(expected.logprobs)
    for ours, theirs in zip(got.logprobs, expected.logprobs, strict=True):
        assert ours == pytest.approx(theirs, abs=2e-4)


@pytest.mark.covering(1)
@pytest.mark.parametrize(("depth", "graphs"), [(1, False), (2, False), (3, False), (2, True)])
def test_a_mixed_batch_gives_each_request_what_the_plain_loop_gives_it(
    model: PagedModel,
    known: list[tuple[list[int], SamplingParams, Answer]],
    depth: int,
    graphs: bool,
) -> None:
    """With chunked prompts, preemption, prefix-cache hits and slots that are taken again; and by graphs."""
    preempted = hits = 0.0
    for schedule, blocks in enumerate([200, 34]):
        rng = random.Random(schedule)
        rig = Rig(model, depth, blocks, graphs=graphs)
        order = [rng.randrange(len(known)) for _ in range(18)] + list(range(len(known)))
        for request, which in enumerate(order):
            prompt, params, _ = known[which]
            rig.ask(request, prompt, params)
            for _ in range(rng.randrange(4)):
                if rig.executor.pipeline.under_way:
                    rig.wait()
        rig.finish()
        for request, which in enumerate(order):
            check(rig.answers[request], known[which][2])
        preempted += rig.scheduler.counters["num_preemptions"]
        hits += rig.scheduler.counters["prefix_cache_hits"]
        assert not graphs or rig.graphs.replays[0] > 100
    assert preempted > 0
    assert hits > 0


@pytest.mark.parametrize("depth", [1, 2])
def test_each_request_alone_gives_the_same(
    model: PagedModel, known: list[tuple[list[int], SamplingParams, Answer]], depth: int
) -> None:
    for request, (prompt, params, expected) in enumerate(known[:10]):
        rig = Rig(model, depth)
        rig.ask(request, prompt, params)
        rig.finish()
        check(rig.answers[request], expected)


def test_a_penalty_counts_what_the_prefix_cache_and_a_recomputed_answer_bring(
    model: PagedModel, plain: torch.nn.Module
) -> None:
    """The cached blocks are written by a request that has no penalty, before anyone counts anything."""
    rng = random.Random(14)
    prompt = [rng.randrange(EOS) for _ in range(40)]
    quiet = SamplingParams(max_tokens=4, temperature=0.0, seed=0, ignore_eos=True)
    loud = SamplingParams(
        max_tokens=30,
        temperature=0.0,
        seed=0,
        repetition_penalty=1.5,
        frequency_penalty=1.0,
        ignore_eos=True,
    )
    rig = Rig(model, depth=2)
    rig.ask(0, prompt, quiet)
    while rig.scheduler.sequences:
        rig.wait()
    assert not rig.plain.sampler.counts.any(), "nobody has asked for a penalty yet"
    rig.ask(1, prompt, loud)
    for _ in range(12):
        rig.wait()
    rig.scheduler.holdings.preempt(rig.scheduler.sequences[1])
    rig.finish()
    expected = plain_answer(plain, prompt, loud)
    assert rig.scheduler.counters["prefix_cache_hits"] > 40
    assert rig.answers[1].tokens == expected.tokens
    assert (
        expected.tokens != plain_answer(plain, prompt, SamplingParams(max_tokens=30, temperature=0.0)).tokens
    )


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_what_a_finished_row_still_computes_spoils_no_cached_block(
    model: PagedModel, plain: torch.nn.Module, depth: int
) -> None:
    """An answer ends with the last place of a block, which steps already launched go on writing."""
    rng = random.Random(15)
    for _ in range(6):
        prompt = [rng.randrange(EOS) for _ in range(3 * BLOCK - 4)]
        seed = rng.getrandbits(60)
        free = SamplingParams(max_tokens=4, seed=seed, ignore_eos=True)
        answer = plain_answer(plain, prompt, free).tokens
        stopping = SamplingParams(max_tokens=40, seed=seed, ignore_eos=True, stop_token_ids=[answer[3]])
        longer = prompt + answer + [5]
        greedy = SamplingParams(max_tokens=8, temperature=0.0, seed=0, ignore_eos=True, logprobs=2)
        rig = Rig(model, depth)
        rig.ask(0, prompt, stopping)
        while rig.scheduler.sequences or rig.executor.pipeline.under_way:
            rig.wait()
        rig.ask(1, longer, greedy)
        rig.finish()
        if len(rig.answers[0].tokens) == 4:
            assert rig.scheduler.counters["prefix_cache_hits"] >= 3 * BLOCK
        check(rig.answers[1], plain_answer(plain, longer, greedy))


def test_a_bias_leaves_with_its_request(model: PagedModel) -> None:
    """A slot that is taken again has nothing of the bias of its last holder."""
    plain_params = SamplingParams(max_tokens=4, temperature=0.0, seed=0, ignore_eos=True)
    forced = SamplingParams(max_tokens=4, temperature=0.0, seed=0, ignore_eos=True, logit_bias={7: 100.0})
    alone = Rig(model, 2)
    alone.ask(0, [1, 2, 3], plain_params)
    alone.finish()
    rig = Rig(model, 2)
    for request in range(4 * SLOTS):
        rig.ask(request, [1, 2, 3], forced if request % 3 else plain_params)
    rig.finish()
    for request in range(4 * SLOTS):
        expected = [7] * 4 if request % 3 else alone.answers[0].tokens
        assert rig.answers[request].tokens == expected


# --- what is refused ------------------------------------------------------------------------------------

BOUNDS = Limits(max_model_len=100, vocab_size=256, max_prompt_bytes=100)


def test_a_logit_bias_has_integers_or_their_texts_as_keys() -> None:
    assert SamplingParams(logit_bias={5: 1.0, "7": -2.0}).logit_bias == {"5": 1.0, "7": -2.0}
    SamplingParams(logit_bias={token: 0.5 for token in range(256)}).check(BOUNDS)


@pytest.mark.parametrize(
    ("params", "named"),
    [
        (SamplingParams(logit_bias={256: 1.0}), "'256'; a token id of this model is 0 to 255"),
        (SamplingParams(logit_bias={-1: 1.0}), "'-1'"),
        (SamplingParams(logit_bias={"05": 1.0}), "'05'"),
        (SamplingParams(logit_bias={"five": 1.0}), "'five'"),
        (SamplingParams(logit_bias={"9" * 9000: 1.0}), "999"),
        (SamplingParams(logit_bias={5: 101.0}), "101.0 for token 5; it must be at least -100.0"),
        (SamplingParams(logit_bias={5: math.nan}), "nan for token 5"),
        (SamplingParams(logit_bias={n: 0.0 for n in range(MAX_LOGIT_BIAS + 1)}), "1025 entries"),
        (SamplingParams(repetition_penalty=0.0), "repetition_penalty=0.0"),
        (SamplingParams(frequency_penalty=math.inf), "frequency_penalty=inf"),
        (SamplingParams(logprobs=-1), "logprobs=-1"),
        (SamplingParams(logprobs=MAX_LOGPROBS + 1), f"at most {MAX_LOGPROBS}"),
        (SamplingParams(n=0), "n=0"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_out_of_range_is_refused_with_the_value(params: SamplingParams, named: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        params.check(BOUNDS)
    assert named in str(refused.value)
    assert len(str(refused.value)) < 300


# --- masks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab", [64, 70, 95])
def test_a_mask_leaves_the_tokens_whose_bits_are_set(vocab: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(5, vocab, generator=generator)
    allowed = torch.rand(5, 96, generator=generator) < 0.5
    allowed[:, [0, 31, 32, 63]] = torch.tensor([True, True, False, True])
    weights = torch.tensor([1 << bit for bit in range(31)] + [-(1 << 31)])
    masks = (allowed.view(5, 3, 32) * weights).sum(-1).int()
    found = masked(logits, masks[:, : -(-vocab // 32)])
    assert torch.equal(found, logits.masked_fill(~allowed[:, :vocab], float("-inf")))


def test_what_is_allowed_and_barred_is_the_last_to_be_taken_and_not_impossible() -> None:
    logits = torch.tensor([[float("-inf"), 1.0, 2.0]])
    found = masked(logits, torch.tensor([[0b001]], dtype=torch.int32))
    assert found.tolist() == [[torch.finfo(torch.float32).min, float("-inf"), float("-inf")]]
    assert found.argmax() == 0
