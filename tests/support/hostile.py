"""Frames that are nearly messages."""

from __future__ import annotations

import random

LEADS = bytes([*range(0xC0, 0xE0), 0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xE0, 0xFF])
"""The first bytes of MessagePack's types."""


def mutated(rng: random.Random, frame: bytes) -> bytes:
    """A frame with a few bytes changed, lost, doubled or moved."""
    data = bytearray(frame)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.randrange(6))
        kind = rng.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = rng.choice(LEADS)
        elif kind == 2:
            del data[at:end]
        elif kind == 3:
            data[at:at] = data[at:end] * rng.randrange(1, 4)
        elif kind == 4:
            data[at:at] = rng.randbytes(rng.randrange(1, 6))
        else:
            del data[at:]
    return bytes(data)
