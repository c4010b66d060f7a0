"""Attention backend ``triton``: what it launches, and how its kernels are configured."""

from __future__ import annotations

from functools import lru_cache
from itertools import starmap
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ....protocol.errors import InvalidRequest, ModelNotSupported
from ..cache.paged_batch import PagedBatch
from ..triton_tools.kernel import FOLLOWING
from .triton_attend import attend_kernel
from .triton_common import pad, pad_value
from .triton_partition import WorkPartition, partition_work
from .triton_write import write

MAX_HEAD_SIZE = 512
"""The largest size of a head that transformers has (DeepSeek V4): no kernel was compiled for a larger one."""

WAVES = 4
"""Waves of resident programs for which keys are divided into splits: with more, the last one does not matter."""

COMBINED_AT_ONCE = 8192
"""Numbers that a program loads before it adds them up: 64 for each of 128 threads."""


class LaunchConfig(NamedTuple):
    """The launch configuration of the attention kernel."""

    queries: int
    """Tokens times the query heads that share a key/value head; a row with one token takes as few as there are."""
    keys: int
    """Keys of one iteration of the inner loop."""
    warps: int
    stages: int
    """Loads under way in Triton's software pipeline; fewer where they do not fit into shared memory."""
    resident: int
    """Programs that a multiprocessor has registers and shared memory for."""
    least: int
    """Keys of a split. Shorter splits cost more to combine than they save."""


class LaunchConfigs(NamedTuple):
    """The configurations for rows with one token, where they are few or many, and for all others."""

    few: LaunchConfig
    many: LaunchConfig
    several: LaunchConfig


MANY = 8
"""Rows with one token, times heads, for each multiprocessor, from which they are many: then it is worth more that
another program reads while one begins or ends than that each has more loads under way."""

# By the bytes of a number and the widest padded sizes of a key and a value together; the first that is not smaller.
# The first two of one and of two bytes are from sweeps on one H200 (`examples/attention_bench.py --tune`, and
# `--fp8`); the others have like them 32 or 64 KiB under way per stage. Float32 needs more registers, so more warps.
LAUNCH_CONFIGS: dict[tuple[int, int], LaunchConfigs] = {
    key: LaunchConfigs(*starmap(LaunchConfig, configs))
    for key, configs in {
        (1, 128): ((16, 128, 4, 2, 3, 128), (16, 128, 4, 2, 3, 128), (64, 128, 4, 2, 1, 256)),
        (1, 256): ((16, 128, 8, 3, 2, 128), (16, 128, 4, 3, 3, 128), (64, 128, 4, 2, 1, 256)),
        (1, 512): ((16, 64, 4, 3, 2, 64), (16, 64, 4, 3, 2, 64), (64, 32, 4, 3, 1, 256)),
        (1, 1024): ((16, 32, 8, 3, 2, 64), (16, 32, 8, 3, 2, 64), (32, 32, 8, 2, 1, 256)),
        (2, 128): ((16, 128, 4, 2, 3, 128), (16, 128, 4, 2, 3, 128), (64, 64, 4, 3, 1, 256)),
        (2, 256): ((16, 128, 4, 3, 1, 128), (16, 128, 4, 2, 3, 128), (64, 64, 4, 3, 1, 256)),
        (2, 512): ((16, 64, 4, 3, 1, 64), (16, 64, 4, 2, 3, 64), (64, 32, 4, 3, 1, 256)),
        (2, 1024): ((16, 32, 8, 3, 1, 64), (16, 32, 8, 2, 2, 64), (32, 32, 8, 2, 1, 256)),
        (4, 128): ((16, 64, 8, 3, 2, 64), (16, 64, 8, 3, 2, 64), (64, 64, 8, 3, 1, 256)),
        (4, 256): ((16, 32, 8, 3, 2, 64), (16, 32, 8, 3, 2, 64), (64, 32, 8, 3, 1, 256)),
        (4, 512): ((16, 16, 8, 3, 2, 64), (16, 16, 8, 3, 2, 64), (64, 16, 8, 3, 1, 256)),
        (4, 1024): ((16, 16, 8, 2, 1, 64), (16, 16, 8, 2, 1, 64), (32, 16, 8, 1, 1, 256)),
    }.items()
}


class TritonAttention:
    """Our kernels, on any GPU that Triton compiles for.

    Float32, bfloat16, float16 and FP8 caches, sums in float32; head sizes 1 to 512, different ones for keys and
    values; any block size; grouped query heads, sliding windows, chunks of the context, softcap and sinks. Nothing is
    read on the host, so that any step can be captured in a CUDA graph. A call launches the kernel that writes the
    cache, and then the one that attends: once for the rows with one token and, if there are others, once for those. In
    layer 0 it also launches the partitions of both.
    """

    name = "triton"
    capturable = True

    def __init__(self) -> None:
        """Raises InvalidRequest where the kernels cannot run."""
        if not torch.cuda.is_available() and not interpreted():
            raise InvalidRequest(
                "attention backend 'triton' needs a GPU, and torch sees none: choose another backend, or set "
                "TRITON_INTERPRET=1 before the start to run the kernels on the CPU, slowly, for a test"
            )
        self._batch: PagedBatch | None = None
        """The step under way."""
        self._partitions: dict[tuple[object, ...], WorkPartition] = {}
        """Its partitions: layers differ in windows and heads."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layer: int,
        batch: PagedBatch,
        *,
        scale: float,
        sliding_window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
        attention_chunk: int | None = None,
    ) -> Tensor:
        """Write ``key`` and ``value`` into the cache of ``layer``, then attend to each row's context.

        ``query [T, Hq, DK]``, ``key [T, Hkv, DK]`` and ``value [T, Hkv, DV]`` may be views whose last
        dimension is dense; ``sinks [Hq]`` are extra scores in the denominator. A query at position ``p`` sees
        the keys at ``p`` and before, the last ``sliding_window`` of them if given, or those
        of its own chunk of ``attention_chunk`` positions. Returns ``[T, Hq, DV]`` in
        the dtype of ``query``.

        Raises ValueError for shapes that do not belong together, ModelNotSupported for heads over 512.
        """
        keys, values = batch.cache.keys[layer], batch.cache.values[layer]
        tokens, query_heads, key_dim = query.shape
        kv_heads, value_dim = values.shape[2], values.shape[3]
        if query_heads % kv_heads or key.shape != (tokens, kv_heads, key_dim) or keys.shape[3] != key_dim:
            raise ValueError(
                f"query {list(query.shape)}, key {list(key.shape)}, cache {list(keys.shape)} do not match:"
                " the query heads must be a multiple of the key/value heads, and the head sizes equal"
            )
        if not (keys.is_contiguous() and values.is_contiguous()):
            raise ValueError(
                f"the cache of layer {layer} is not contiguous: strides {keys.stride()}, {values.stride()}"
            )
        if max(key_dim, value_dim) > MAX_HEAD_SIZE:
            raise ModelNotSupported(
                f"attention backend 'triton' takes head sizes up to {MAX_HEAD_SIZE}, not {key_dim} and {value_dim}"
            )
        if keys.dtype == torch.bfloat16 and interpreted():
            raise InvalidRequest(
                "Triton's interpreter multiplies bfloat16 wrongly: use float32 or float16 there"
            )
        if layer == 0 or batch is not self._batch:
            # The tensors of a new step may be those of the step before, with other contents.
            self._batch, self._partitions = batch, {}
        query, key, value = _dense(query), _dense(key), _dense(value)
        write(key, value, keys, values, batch.cache.scales_of(layer), batch.write_index)

        out = query.new_empty(tokens, query_heads, value_dim)
        window, chunked = attention_chunk or sliding_window or 0, attention_chunk is not None
        for single in (True, False):
            if single or not batch.decode_only:
                self._attend(out, query, layer, batch, scale, window, chunked, softcap or 0.0, sinks, single)
        return out

    def _attend(
        self,
        out: Tensor,
        query: Tensor,
        layer: int,
        batch: PagedBatch,
        scale: float,
        window: int,
        chunked: bool,
        softcap: float,
        sinks: Tensor | None,
        single: bool,
    ) -> None:
        """Attend from the rows with one token if ``single``, otherwise from all others."""
        keys, values = batch.cache.keys[layer], batch.cache.values[layer]
        scales = batch.cache.scales_of(layer)
        kv_heads, key_dim, value_dim = keys.shape[2], keys.shape[3], values.shape[3]
        group = query.shape[1] // kv_heads
        device = device_limits(query.device)
        few = len(batch.rows) * kv_heads < MANY * device.multiprocessors
        kind = "several" if not single else "few" if few else "many"
        pairs = single and scales is not None and in_pairs(key_dim, value_dim)
        value_pad = pad(value_dim) if pairs else pad_value(value_dim, values)
        config = launch_config(pad(key_dim) + value_pad, keys.dtype, kind, device.shared_memory)
        queries = max(pad(group), 0 if single else config.queries)
        tokens = 1 if single else queries // group
        partition = self._partition_of(
            batch, single, tokens, window, chunked, config, kv_heads, device.multiprocessors
        )
        results, sums = partition.room(tokens * group, value_dim)
        block_size = keys.shape[1]
        if pairs:
            keys, values = keys.view(torch.int16), values.view(torch.int16)
        attend_kernel[(kv_heads, len(partition.items))](
            out,
            results,
            sums,
            partition.arrived,
            query,
            keys,
            values,
            None if scales is None else scales.keys,
            None if scales is None else scales.values,
            sinks,
            partition.items,
            batch.block_table,
            scale,
            *query.stride()[:2],
            batch.block_table.stride(0),
            GROUP=group,
            WINDOW=window,
            CHUNKED=chunked,
            SOFTCAP=softcap,
            BLOCK_SIZE=block_size,
            DK=key_dim,
            DV=value_dim,
            DK_PAD=pad(key_dim),
            DV_PAD=value_pad,
            KV_HEADS=kv_heads,
            TOKENS=tokens,
            BLOCK_M=queries,
            BLOCK_N=config.keys,
            AT_ONCE=max(1, COMBINED_AT_ONCE // (queries * value_pad)),
            num_warps=config.warps,
            num_stages=config.stages,
            **FOLLOWING,
        )

    def _partition_of(
        self,
        batch: PagedBatch,
        single: bool,
        tokens: int,
        window: int,
        chunked: bool,
        config: LaunchConfig,
        kv_heads: int,
        multiprocessors: int,
    ) -> WorkPartition:
        """The partition of this step, made once for all layers that are alike."""
        key = (single, tokens, window, chunked, config, kv_heads)
        if key not in self._partitions:
            target = max(2, triton.cdiv(WAVES * config.resident * multiprocessors, kv_heads))
            self._partitions[key] = partition_work(
                batch,
                single=single,
                tokens=tokens,
                window=window,
                chunked=chunked,
                keys=config.keys,
                block_size=batch.cache.block_size,
                least=config.least,
                target=target,
                kv_heads=kv_heads,
                multiprocessors=multiprocessors,
                resident=config.resident,
            )
        return self._partitions[key]


def configs_key(dims: int, dtype: torch.dtype) -> tuple[int, int]:
    """The key in `LAUNCH_CONFIGS` for ``dims``, the padded sizes of a key and a value together."""
    return next(
        (size, widest) for size, widest in LAUNCH_CONFIGS if size == dtype.itemsize and widest >= dims
    )


def launch_config(dims: int, dtype: torch.dtype, kind: str, shared_memory: int) -> LaunchConfig:
    """The ``kind`` of `LAUNCH_CONFIGS` for ``dims``, the padded sizes of a key and a value together, with as many
    stages and resident programs as fit into ``shared_memory``, in bytes, of a multiprocessor.
    """
    config: LaunchConfig = getattr(LAUNCH_CONFIGS[configs_key(dims, dtype)], kind)
    stage, fixed = config.keys * dims * dtype.itemsize, config.queries * dims * dtype.itemsize // 2
    # For tiles of a single token Triton keeps one stage less in shared memory than are under way.
    unkept = 0 if kind == "several" else 1
    stages = max(1, min(config.stages, (shared_memory - fixed) // stage + unkept))
    fit = shared_memory // (fixed + max(1, stages - unkept) * stage)
    return config._replace(stages=stages, resident=max(1, min(config.resident, fit)))


def in_pairs(key_dim: int, value_dim: int) -> bool:
    """Whether an FP8 cache with heads of these sizes can be read two numbers at a time, each in a matrix of its own."""
    return all(dim % 2 == 0 and pad(dim) >= 32 for dim in (key_dim, value_dim))


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU."""
    return not isinstance(attend_kernel, triton.JITFunction)


class DeviceLimits(NamedTuple):
    multiprocessors: int
    shared_memory: int
    """Bytes of one multiprocessor."""


@lru_cache
def device_limits(device: torch.device) -> DeviceLimits:
    if device.type != "cuda":
        return DeviceLimits(1, 0)
    properties = torch.cuda.get_device_properties(device)
    return DeviceLimits(properties.multi_processor_count, properties.shared_memory_per_multiprocessor)


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
