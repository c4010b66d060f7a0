"""What a scheduler is told when it is made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    max_num_seqs: int
    max_num_batched_tokens: int | None
    """None: as many as the executor says."""
    max_model_len: int
    depth: int
    eos_token_ids: tuple[int, ...]
    prefix_caching: bool = True
