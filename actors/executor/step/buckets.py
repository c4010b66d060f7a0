"""The sizes that steps are padded to, so that a few graphs serve all of them."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

FEWEST_MIXED_TOKENS = 16
"""The smallest size of a step with a prompt: a smaller step would take the device as long."""

LARGE_MIXED_TOKENS = 256
"""From this size on the time of a step grows with its tokens, so the sizes are closer to each other."""


@dataclass(frozen=True)
class Buckets:
    """The sizes, in ascending order; the last of each is that of the largest step."""

    decode: tuple[int, ...]
    """The numbers of rows of steps that only decode, and of the rows that sample in any step."""
    mixed: tuple[int, ...]
    """The numbers of tokens of steps with a prompt."""
    seq_slots: int

    @property
    def num_forward_graphs(self) -> int:
        """The number of graphs of the forward pass that cover all steps but those that report logprobs of prompts."""
        return len(self.decode) + len(self.mixed)

    def rows_for(self, tokens: int) -> int:
        """The number of rows, and of rows of logits, of a step with ``tokens`` tokens.

        There are at most as many rows as tokens. They are padded like the rows that sample, whose logits are among
        these.
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
    """1, 2, 4, multiples of 8 below 256, multiples of 16 below 512, and then 32 sizes in each octave, up to
    ``most``."""
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, 512, 16)]
    octave = 512
    while octave < most:
        sizes += range(octave, 2 * octave, octave // 32)
        octave *= 2
    return (*(size for size in sizes if size < most), most)


def mixed_sizes(most: int) -> tuple[int, ...]:
    """Sizes from ``FEWEST_MIXED_TOKENS`` up to ``most``: four in each octave, and eight from ``LARGE_MIXED_TOKENS`` on.

    So a step is padded to less than 1.25 times its tokens, and a large one to less than 1.125 times.
    """
    sizes: list[int] = []
    octave = FEWEST_MIXED_TOKENS
    while octave < most:
        in_octave = 8 if octave >= LARGE_MIXED_TOKENS else 4
        sizes += range(octave, 2 * octave, octave // in_octave)
        octave *= 2
    return (*(size for size in sizes if size < most), most)


def padded(size: int, sizes: tuple[int, ...]) -> int:
    """The smallest of ``sizes`` that is not below ``size``; ``size`` itself if all are."""
    place = bisect_left(sizes, size)
    return sizes[place] if place < len(sizes) else size
