"""Stores what was found out about a decoder, for the next process with the same model.

The parts of a decoder are recognised from its structure, from one run of it and from its numbers (`recognise.py`). The
structure can be read from the decoder again; what the run and the numbers have shown is stored here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from torch import Tensor, nn

from ..cache.kv_layout import KVLayout

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


class DerivedValues:
    """The values that are derived from a decoder's numbers, always in the same order."""

    def __init__(self, known: Iterable[float | int | str] | None = None) -> None:
        """``known`` are the values of the same decoder; None: they are derived."""
        self.values: list[float | int | str] = []
        self.known = None if known is None else iter(known)

    def value_of(self, derive: Callable[[], T]) -> T:
        """The next known value, or what ``derive`` finds; ValueError if no further value is known."""
        value = derive() if self.known is None else next(self.known, None)
        kinds = (int, float, str)
        if not isinstance(value, kinds):
            raise ValueError("the decoder is not the one of the findings")
        self.values.append(value)
        return value  # type: ignore[return-value]


class DecoderFindings(msgspec.Struct, frozen=True):
    """What a run and the numbers of one decoder have shown, so that it can be replaced again without a run."""

    calls: dict[int, Call]
    """The attention call of each layer."""
    sinks: dict[int, str]
    """For each layer whose attention has sinks, the name of the parameter that holds them."""
    tuples: dict[int, bool]
    """For each layer, whether its feed-forward module returns a tuple."""
    derived: list[float | int | str]
    """The values of ``DerivedValues``."""


class ModelFindings(msgspec.Struct, frozen=True):
    """Everything that was found out about a model by running it."""

    kv_layout: KVLayout | None
    """What its layers keep; None: more than keys and values."""
    decoder: DecoderFindings | None
    """Of the decoder, if it was replaced and its findings can be written down."""


def findings_of(
    decoder: nn.Module,
    calls: dict[int, Call],
    sinks: dict[int, Tensor],
    tuples: dict[int, bool],
    derived: DerivedValues,
) -> DecoderFindings | None:
    """The findings about a decoder, made before it is taken apart; None if they cannot be written down."""
    names = {id(tensor): name for name, tensor in decoder.named_parameters()}
    if not all(id(tensor) in names for tensor in sinks.values()):
        return None
    named = {layer: names[id(tensor)] for layer, tensor in sinks.items()}
    return DecoderFindings(calls, named, tuples, derived.values)
