"""Schedules of many requests of models that keep states, on any device."""

from __future__ import annotations

import functools
import random
from typing import Any

import torch
from rig import EOS, VOCAB, Rig
from slipstream.actors.executor.model.loading.load import from_config
from slipstream.actors.executor.model.paged_model import PagedModel
from slipstream.protocol.sampling import SamplingParams
from tiny_models import make_config

CPU = torch.device("cpu")


def model_with_states(
    family: str,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    attention_backend: str = "torch",
    **changes: Any,
) -> PagedModel:
    """A tiny model of the family, which remembers for long: random layers forget within a token or two."""
    settings: dict[str, Any] = dict(vocab_size=VOCAB, eos_token_id=EOS, bos_token_id=0, initializer_range=1.0)
    config = make_config(family, **settings | changes)
    model = from_config(config, device, dtype, attention_backend=attention_backend)
    for name, parameter in model.transformer.named_parameters():
        if name.endswith("A_log"):
            parameter.fill_(-3.0)
    return model


def long_requests() -> list[tuple[list[int], SamplingParams]]:
    """More than fit at once, some of which end by themselves."""
    rng = random.Random(7)
    return [
        (
            [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 26))],
            SamplingParams(max_tokens=24, temperature=seed % 2 * 0.8, seed=seed, ignore_eos=seed % 4 > 0),
        )
        for seed in range(8)
    ]


def scheduled(
    model: PagedModel,
    depth: int,
    schedule: int,
    graphs: str = "off",
    *,
    many: int = 8,
    deaths: tuple[int, ...] = (),
) -> Rig:
    """``many`` requests, each twice, more than there are slots and blocks for; the executor is killed when one of
    ``deaths`` has been asked."""
    rng = random.Random(schedule)
    known = long_requests()[:many]
    rig = Rig(model, depth, blocks=14, graphs=graphs)
    for request in range(2 * len(known)):
        rig.ask(request, *known[request % len(known)])
        if request in deaths:
            assert rig.executor.pipeline.under_way
            rig.kill()
        for _ in range(rng.randrange(3)):
            if rig.executor.pipeline.under_way:
                rig.wait()
    rig.finish()
    return rig


@functools.cache
def alone_with(model: PagedModel, many: int = 8) -> list[list[int]]:
    """What a model answers to each of the first ``many`` of those requests by itself, synchronously."""
    answers = []
    for prompt, params in long_requests()[:many]:
        rig = Rig(model, depth=1, blocks=40)
        rig.ask(0, prompt, params)
        rig.finish()
        answers.append(rig.tokens[0])
    return answers
