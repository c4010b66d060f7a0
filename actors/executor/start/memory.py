"""Divides the memory of a GPU: steps and graphs are measured first, and the cache gets the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ....protocol.errors import InvalidRequest, SlipstreamError
from ....runtime.machine.memory import available
from ...options import ExecutorOptions

if TYPE_CHECKING:
    from ..model.paged_model import PagedModel

CPU_CACHE_BYTES = 1 << 30
"""Bytes of the cache on a CPU when none are stated: little beside the memory of a laptop. ``--kv-cache-memory`` states
more."""

GRAPH_BYTES_PER_LAYER = 64 << 10
"""What CUDA keeps of the kernels of one layer in one graph of the forward pass; those of the sampling have few.

Measured: 74 graphs of 32 layers, and as many of the sampling, took 428 MiB with the 290 MiB that the largest step
works in."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a device, when weights and all tables are there and the largest step has run."""

    free: int
    total: int
    graphs: int = 0
    """What is reserved for CUDA graphs."""


def bytes_of_graphs(forward_graphs: int, layers: int, step_bytes: int) -> int:
    """The memory of CUDA graphs: the kernels of ``forward_graphs`` forward passes of ``layers`` layers, those of the
    sampling included, and ``step_bytes`` in which all of them work."""
    return step_bytes + forward_graphs * layers * GRAPH_BYTES_PER_LAYER


def count_blocks(options: ExecutorOptions, model: PagedModel, memory: Memory | None) -> int:
    """Blocks of the cache: what ``memory`` holds, and no more than all sequences could fill; None: that of a CPU.
    Of several ranks all have as many as the one that has room for fewest.

    SlipstreamError with a hint if there is no room for two, or for as many as the options ask for. On a CPU, whose
    memory the ranks share, the cache takes memory only as it is filled: an executor that then found none would be
    ended while it serves.
    """
    size, per_block = options.block_size, bytes_per_block(options, model)
    most = 1 + options.max_num_seqs * -(-options.max_model_len // size)
    if not per_block:
        return most  # no layer attends: blocks are numbers
    given = options.kv_cache_memory
    if given is not None:
        room = given
    elif memory is None:
        room = CPU_CACHE_BYTES
    else:
        room = int(memory.free - (1.0 - options.gpu_memory_utilization) * memory.total) - memory.graphs
    blocks = min(most, max(0, room) // per_block)
    if blocks < 2:
        raise no_room(options, max(0, room), per_block, memory)
    if memory is not None and blocks * per_block > memory.free - memory.graphs:
        raise no_room(options, max(0, memory.free - memory.graphs), per_block, memory, blocks)
    if memory is None and given is not None:
        left = available() // options.tensor_parallel_size
        if blocks * per_block > left:
            raise no_room(options, left, per_block, memory, blocks)
    return blocks if model.group is None else model.group.least(blocks, model.device)


def bytes_per_block(options: ExecutorOptions, model: PagedModel) -> int:
    """Memory of one block in all layers."""
    from ..cache.kv_cache import cache_dtype

    dtype = cache_dtype(options.kv_cache_dtype, model.dtype)
    return model.kv_layout.bytes_per_block(options.block_size, dtype)


def check_states(options: ExecutorOptions, model: PagedModel, memory: Memory | None) -> None:
    """InvalidRequest where ``memory`` does not hold the states of all sequence slots; None: that of a CPU,
    which its ranks share.
    """
    each, slots = model.state_layout.bytes_per_slot, options.max_num_seqs + 1
    if not each:
        return
    if memory is None:
        room = available() // options.tensor_parallel_size
    else:
        room = max(0, int(memory.free - (1.0 - options.gpu_memory_utilization) * memory.total))
    if each * slots > room:
        fit = room // each - 1
        raise InvalidRequest(
            f"max_num_seqs={options.max_num_seqs}: the recurrent layers of this model keep {each} bytes for each"
            f" sequence, {each * slots} with one for padding, and there are {room}; "
            + (f"lower --max-num-seqs to {fit} or less" if fit > 0 else "not even one sequence has room")
        )


def no_room(
    options: ExecutorOptions, room: int, per_block: int, memory: Memory | None, wanted: int = 2
) -> SlipstreamError:
    """The error of a cache for which ``room`` bytes are too few, with what to change."""
    reserved = (
        f", after {memory.graphs} are kept for CUDA graphs," if memory is not None and memory.graphs else ""
    )
    error = SlipstreamError(
        f"the KV cache has {room} bytes{reserved} and one block takes {per_block}; {wanted} blocks are needed"
    )
    share = memory is not None and options.kv_cache_memory is None
    stated = "--gpu-memory-utilization" if share else "--kv-cache-memory"
    error.hint = f"lower {stated}" if wanted > 2 else f"raise {stated}"
    if memory is not None:
        error.hint += ", or lower --max-num-batched-tokens or --max-num-seqs, with which a step takes less"
        error.hint += ", or do without graphs: --cuda-graphs off" if memory.graphs else ""
    return error


def step_too_large(options: ExecutorOptions, tokens: int) -> SlipstreamError:
    """The error of a largest step, of ``tokens`` tokens, that does not fit beside the weights."""
    error = SlipstreamError(
        f"a step of {tokens} tokens and {options.max_num_seqs} sequences does not fit beside the weights"
    )
    error.hint = "lower --max-num-batched-tokens or --max-num-seqs"
    return error
