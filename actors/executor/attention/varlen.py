"""Paged attention by PyTorch itself: ``torch.nn.attention.varlen.varlen_attn`` over the block table.

It needs no package but torch, from 2.13 on; 2.11 takes no block table. The user chooses the kernel:

- FlashAttention 2, built into torch: blocks of a multiple of 256 tokens. Its split over the context leaves
  the rows of all sequences but the first unwritten (pytorch#194167), so one split is asked for, always;
- FlashAttention 3, after ``torch.nn.attention.activate_flash_attention_impl("FA3")``: any block size, and
  the number of splits is the kernel's choice.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ....protocol.errors import InvalidRequest, ModelNotSupported
from ..cache.paged import PagedBatch

OLDEST_TORCH = (2, 13)
BUILT_IN_BLOCK = 256
"""The block sizes that the built-in kernel takes are the multiples of this."""


class VarlenAttention:
    """Attention backend ``varlen``: bfloat16 and float16 on CUDA, equal head sizes up to 256 for keys and
    values, grouped query heads and sliding window; neither softcap nor sinks."""

    name = "varlen"

    def __init__(self) -> None:
        """Raises InvalidRequest where this torch or this machine cannot run it."""
        release = tuple(int(part) for part in torch.__version__.split(".")[:2])
        if release < OLDEST_TORCH:
            raise InvalidRequest(
                f"attention backend 'varlen' needs torch 2.13, and this is {torch.__version__}, which cannot "
                "attend over a block table by itself: install a newer torch or choose the backend 'triton'"
            )
        if not torch.cuda.is_available():
            raise InvalidRequest(
                "attention backend 'varlen' needs a CUDA device, and torch sees none: choose 'torch'"
            )
        from torch.nn.attention import varlen

        self._varlen_attn: Any = varlen.varlen_attn

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
    ) -> Tensor:
        """Write ``key [T, Hkv, D]`` and ``value [T, Hkv, D]`` into the cache of ``layer``, then attend.

        ``query [T, Hq, D]`` gives ``[T, Hq, D]``. Raises ModelNotSupported for what the kernels lack, and
        InvalidRequest for a block size that they do not take.
        """
        keys, values = batch.cache.keys[layer], batch.cache.values[layer]
        built_in = torch.nn.attention.current_flash_attention_impl() is None
        self._refuse(keys, values, softcap, sinks, built_in)
        keys.flatten(0, 1).index_copy_(0, batch.write_index, key)
        values.flatten(0, 1).index_copy_(0, batch.write_index, value)

        counts = [count for _, count, _ in batch.chunks]
        lengths = [kv_len for _, _, kv_len in batch.chunks]
        return self._varlen_attn(
            query,
            keys,
            values,
            cu_seq_q=batch.query_start,
            # Only the built-in kernel takes it along with a block table, and it insists.
            cu_seq_k=F.pad(batch.kv_lens.cumsum(0, dtype=torch.int32), (1, 0)) if built_in else None,
            max_q=max(counts, default=1),
            max_k=max(batch.max_decode_kv_len, *lengths, 1),
            scale=scale,
            # The window counts the keys before the query's own; to the right nothing is visible.
            window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
            enable_gqa=True,
            seqused_k=batch.kv_lens,
            block_table=batch.block_table.index_select(0, batch.rows),
            num_splits=1 if built_in else None,
        )

    def _refuse(
        self, keys: Tensor, values: Tensor, softcap: float | None, sinks: Tensor | None, built_in: bool
    ) -> None:
        block_size, key_dim, value_dim = keys.shape[1], keys.shape[3], values.shape[3]
        lacks = None
        if softcap is not None:
            lacks = "softcap"
        elif sinks is not None:
            lacks = "sinks"
        elif keys.dtype not in (torch.bfloat16, torch.float16):
            lacks = str(keys.dtype)
        elif key_dim != value_dim or key_dim > 256 or key_dim % 8:
            lacks = f"head sizes {key_dim} and {value_dim}"
        if lacks is not None:
            raise ModelNotSupported(
                f"attention backend 'varlen' cannot compute {lacks}: choose the backend 'triton'"
            )
        if built_in and block_size % BUILT_IN_BLOCK:
            raise InvalidRequest(
                f"attention backend 'varlen' takes blocks of a multiple of {BUILT_IN_BLOCK} tokens, not "
                f"{block_size}: set the block size to 256, activate FlashAttention 3, or choose 'triton'"
            )
