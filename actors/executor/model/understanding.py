"""Stores how a decoder was understood, for the next process with the same model.

A decoder is understood from its structure, from one run of it and from numbers (`understand.py`). The structure can be
read from the decoder again; what the run and the numbers have shown is stored here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from torch import Tensor, nn

from ..cache.layout import KVLayout

T = TypeVar("T", float, int, str)


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of a layer's call of the attention function."""

    query_heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    scale: float
    sliding_window: int | None
    softcap: float | None


class Answers:
    """The answers to all questions that are decided by a decoder's numbers, which are always asked in the same
    order."""

    def __init__(self, known: Iterable[float | int | str] | None = None) -> None:
        """``known`` are those of the same decoder; None: they are asked of its numbers."""
        self.given: list[float | int | str] = []
        self.known = None if known is None else iter(known)

    def ask(self, question: Callable[[], T]) -> T:
        """The answer that is known, or what ``question`` finds; ValueError if none of this kind is known."""
        answer = question() if self.known is None else next(self.known, None)
        kinds = (int, float, str)
        if not isinstance(answer, kinds):
            raise ValueError("the decoder is not the one that was understood")
        self.given.append(answer)
        return answer  # type: ignore[return-value]


class Understanding(msgspec.Struct, frozen=True):
    """What one decoder was understood by, so that it can be replaced again without being run."""

    calls: dict[int, Call]
    """The attention call of each layer."""
    sinks: dict[int, str]
    """For each layer whose attention has sinks, the name of the parameter that holds them."""
    tuples: dict[int, bool]
    """For each layer, whether its feed-forward module returns a tuple."""
    answers: list[float | int | str]
    """As in ``Answers``."""


class Known(msgspec.Struct, frozen=True):
    """Everything that was found out about a model by running it."""

    layout: KVLayout | None
    """What its layers keep; None: more than keys and values."""
    decoder: Understanding | None
    """Of the decoder, if it was replaced and that can be written down."""


def understanding_of(
    decoder: nn.Module,
    calls: dict[int, Call],
    sinks: dict[int, Tensor],
    tuples: dict[int, bool],
    answers: Answers,
) -> Understanding | None:
    """The record by which a decoder was understood, made before it is taken apart; None if it cannot be written
    down."""
    names = {id(tensor): name for name, tensor in decoder.named_parameters()}
    if not all(id(tensor) in names for tensor in sinks.values()):
        return None
    named = {layer: names[id(tensor)] for layer, tensor in sinks.items()}
    return Understanding(calls, named, tuples, answers.given)
