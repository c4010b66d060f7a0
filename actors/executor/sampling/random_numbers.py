"""The random number of a token, which is a function of the request's seed and the token's index and of nothing else.

SplitMix64 (Steele, Lea and Flood, 2014) as a function, in integers of 64 bits that wrap. On a GPU `kernels` computes
the same.
"""

from __future__ import annotations

from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio: the seeds of successive tokens are this far apart."""

MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
"""The multipliers of `mix`."""


def seed_of(low: Tensor, high: Tensor) -> Tensor:
    """The seed int64 of its two words int32."""
    return (high.long() << 32) | (low.long() & 0xFFFFFFFF)


def uniform(seed: Tensor, index: Tensor) -> Tensor:
    """float64 in [0, 1) for each pair of int64."""
    z = mix(mix(seed) + signed(GOLDEN) * (index + 1))
    return shifted(z, 11).double() * 2.0**-53


def mix(z: Tensor) -> Tensor:
    """int64 of which every bit depends on all bits of ``z`` int64."""
    z = (z ^ shifted(z, 30)) * signed(MIX[0])
    z = (z ^ shifted(z, 27)) * signed(MIX[1])
    return z ^ shifted(z, 31)


def shifted(z: Tensor, bits: int) -> Tensor:
    """``z`` int64 shifted to the right as if it were unsigned: zeros come in, not copies of the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def signed(word: int) -> int:
    """The int64 that has the bits of an unsigned word."""
    return word - (1 << 64) if word >= 1 << 63 else word
