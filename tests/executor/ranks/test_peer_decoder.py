"""A decoder in Triton's kernels on two ranks, whose sums go over memory that both reach, computes what the whole does.

The comparison at load says so, as it does for any division. The ranks are processes that share memory, under Triton's
interpreter.
"""

from __future__ import annotations

import mmap
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from interpreter import INTERPRETED, needs_interpreter, run_interpreted
from rank_threads import TIMEOUT
from slipstream.actors.executor.model.fused import fuse
from slipstream.actors.executor.model.loading.load import from_config
from slipstream.actors.executor.ranks.exchange import PeerExchange
from slipstream.actors.executor.ranks.group import RankGroup
from slipstream.actors.executor.ranks.shard_loading import divide
from slipstream.actors.executor.ranks.words import EMPTY, WORD
from tiny_models import make_config
from torch.distributed import FileStore, ProcessGroupGloo  # type: ignore[attr-defined]

SIZE, WORDS = 2, 1 << 12
WIDTH = 96
"""Rows of fewer numbers would be summed by themselves."""
VOCABULARY = 272
"""The half of a row of logits is whole words."""
TIMEOUT_S = 120.0


@pytest.mark.rest
@needs_interpreter
def test_under_the_interpreter() -> None:
    run_interpreted(__file__)


def run_rank(rank: int, family: str, store: str, halves: list[torch.Tensor]) -> None:
    """Fails unless the parts compute what the whole does, and every sum of the decoder goes over the halves."""
    from slipstream.actors.executor.model.fused.triton_operations import TritonOperations

    class Counting(PeerExchange):
        """How often it was asked for: for a sum by itself, for logits, and for any kernel."""

        alone, gathered, all = 0, 0, 0

        def sum(self, tensor: torch.Tensor) -> None:
            self.alone += 1
            super().sum(tensor)

        def gather(self, tensor: torch.Tensor, width: int) -> torch.Tensor:
            self.gathered += 1
            return super().gather(tensor, width)

        @property
        def arguments(self) -> dict[str, Any]:
            self.all += 1
            return super().arguments

    torch.set_num_threads(1)
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [ProcessGroupGloo.create_device(interface="lo")]
    options._timeout = TIMEOUT
    group = RankGroup(rank, SIZE, ProcessGroupGloo(FileStore(store, SIZE), rank, SIZE, options))
    mine = halves[rank].view(2, SIZE - 1, WORDS)
    group.exchange = small = Counting(rank, mine, [other.data_ptr() for other in halves], 2)
    fuse.operations_for = lambda device: TritonOperations()
    model = from_config(
        make_config(family, hidden_size=WIDTH, vocab_size=VOCABULARY), torch.device("cpu"), torch.float32
    )
    divide(model, group)
    assert model.unfused_because == "", model.unfused_because
    assert small.gathered > 0, "the logits compared at load"
    added = small.all - small.alone - small.gathered
    assert added >= 2 * len(model.kv_layout.layers), "every sum of the decoder that is compared"


@pytest.mark.skipif(not INTERPRETED, reason="on a GPU the ranks are those of the service")
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3_moe"])
def test_ranks_that_sum_over_shared_memory_compute_what_the_whole_model_does(
    family: str, tmp_path: Path
) -> None:
    halves = [
        torch.frombuffer(mmap.mmap(-1, 2 * (SIZE - 1) * WORDS * WORD), dtype=torch.int64) for _ in range(SIZE)
    ]
    for half in halves:
        half.fill_(EMPTY)
    fork = multiprocessing.get_context("fork")
    given = (family, str(tmp_path / "store"), halves)
    ranks = [fork.Process(target=run_rank, args=(rank, *given), daemon=True) for rank in range(SIZE)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(TIMEOUT_S)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    assert codes == [0] * SIZE
    assert all(bool((half == EMPTY).all()) for half in halves)
