"""The sizes that steps are padded to, so that a few graphs serve all of them."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

FEWEST_MIXED_TOKENS = 16
"""Least size of a step with a prompt: a smaller one takes the device as long."""

LARGE_MIXED_TOKENS = 256
"""From this size on a step takes the device as long as it has tokens, so that sizes are closer to each other."""


@dataclass(frozen=True)
class Buckets:
    """Rising sizes; the last of each holds the largest step."""

    decode: tuple[int, ...]
    """Rows of a step that only decodes; also rows that sample in any step."""
    mixed: tuple[int, ...]
    """Tokens of a step with a prompt."""
    seq_slots: int

    @property
    def forwards(self) -> int:
        """Graphs of the forward pass that hold every step but those that report logprobs of prompts."""
        return len(self.decode) + len(self.mixed)

    def rows_for(self, tokens: int) -> int:
        """Rows, and rows of logits, of a step with ``tokens`` tokens.

        A row has at least one, so that there can be no more; padded like the rows that sample, each of which has
        its logits among these.
        """
        return padded(min(tokens, self.seq_slots), self.decode)


def buckets_of(max_num_seqs: int, max_batched_tokens: int, max_model_len: int) -> Buckets:
    """The sizes for a service with these limits."""
    return Buckets(
        decode=decode_sizes(max_num_seqs),
        mixed=mixed_sizes(min(max_batched_tokens, max_num_seqs * max_model_len)),
        seq_slots=max_num_seqs,
    )


def decode_sizes(most: int) -> tuple[int, ...]:
    """1, 2, 4, then multiples of 8, of 16 from 256 on, and from 512 on 32 sizes an octave, up to ``most``."""
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, 512, 16)]
    octave = 512
    while octave < most:
        sizes += range(octave, 2 * octave, octave // 32)
        octave *= 2
    return (*(size for size in sizes if size < most), most)


def mixed_sizes(most: int) -> tuple[int, ...]:
    """Sizes from ``FEWEST_MIXED_TOKENS`` up to ``most``: four an octave, from ``LARGE_MIXED_TOKENS`` on eight.

    A step is so padded to less than 1.25 times its tokens, a large one to 1.125 times.
    """
    sizes: list[int] = []
    octave = FEWEST_MIXED_TOKENS
    while octave < most:
        in_octave = 8 if octave >= LARGE_MIXED_TOKENS else 4
        sizes += range(octave, 2 * octave, octave // in_octave)
        octave *= 2
    return (*(size for size in sizes if size < most), most)


def padded(size: int, sizes: tuple[int, ...]) -> int:
    """The least of ``sizes`` that is not below ``size``; ``size`` itself where none is."""
    place = bisect_left(sizes, size)
    return sizes[place] if place < len(sizes) else size
