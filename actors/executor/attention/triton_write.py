"""The Triton kernel that stores the keys and values of a step's tokens in the cache."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..cache.kv_cache import LayerScales
from ..devices.float8 import FP8_MAX
from ..triton_tools.kernel import FOLLOWING, follow, jit
from .triton_common import STEP_INPUTS, pad

LARGEST = tl.constexpr(FP8_MAX)

TILE = 2048
"""Elements of a key or a value that one program copies."""


def write(
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    scales: LayerScales | None,
    write_index: Tensor,
) -> None:
    """Copy ``key`` [T, Hkv, DK] and ``value`` [T, Hkv, DV] to the places ``write_index`` int64 [T] of one layer's
    ``keys`` [blocks, block_size, Hkv, DK] and ``values``; a place counts tokens from the start of the cache.

    ``scales`` of an FP8 cache, otherwise None.
    """
    tokens, kv_heads, key_dim = key.shape
    value_dim = value.shape[2]
    heads = min(triton.next_power_of_2(kv_heads), max(1, TILE // max(pad(key_dim), pad(value_dim))))
    write_kernel[(tokens, triton.cdiv(kv_heads, heads))](
        key,
        value,
        keys,
        values,
        None if scales is None else scales.keys,
        None if scales is None else scales.values,
        write_index,
        kv_heads,
        *key.stride()[:2],
        *value.stride()[:2],
        *keys.stride()[1:3],
        *values.stride()[1:3],
        DK=key_dim,
        DV=value_dim,
        DK_PAD=pad(key_dim),
        DV_PAD=pad(value_dim),
        HEADS=heads,
        **FOLLOWING,
    )


@jit
def _scaled(states, scale):
    """``states`` as an FP8 cache stores them: numbers that are too large, and NaN, become the largest one."""
    return tl.clamp(states.to(tl.float32) / scale, -LARGEST, LARGEST).to(tl.float8e4nv)


@jit(do_not_specialize_on_alignment=STEP_INPUTS)
def write_kernel(
    key,  # [T, kv_heads, DK]
    value,  # [T, kv_heads, DV]
    keys,  # [num_blocks, block_size, kv_heads, DK]
    values,  # [num_blocks, block_size, kv_heads, DV]
    key_scales,  # float32 [kv_heads] of an FP8 cache, or None
    value_scales,
    write_index,  # int64 [T]
    kv_heads,
    key_token_stride,
    key_head_stride,
    value_token_stride,
    value_head_stride,
    keys_token_stride,
    keys_head_stride,
    values_token_stride,
    values_head_stride,
    DK: tl.constexpr,
    DV: tl.constexpr,
    DK_PAD: tl.constexpr,
    DV_PAD: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Copy one token's key and value, ``HEADS`` heads of them. Grid: (T, heads / HEADS)."""
    follow()
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]).to(tl.int64)
    place = tl.load(write_index + token)

    dim = tl.arange(0, DK_PAD)[None, :]
    mask = (head < kv_heads) & (dim < DK)
    states = tl.load(key + token * key_token_stride + head * key_head_stride + dim, mask=mask)
    if key_scales is not None:
        states = _scaled(states, tl.load(key_scales + head, mask=head < kv_heads, other=1.0))
    tl.store(keys + place * keys_token_stride + head * keys_head_stride + dim, states, mask=mask)

    dim = tl.arange(0, DV_PAD)[None, :]
    mask = (head < kv_heads) & (dim < DV)
    states = tl.load(value + token * value_token_stride + head * value_head_stride + dim, mask=mask)
    if value_scales is not None:
        states = _scaled(states, tl.load(value_scales + head, mask=head < kv_heads, other=1.0))
    tl.store(values + place * values_token_stride + head * values_head_stride + dim, states, mask=mask)
