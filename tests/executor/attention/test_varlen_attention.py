"""The backend over torch's own paged attention: what it passes on, and what it refuses.

Without a CUDA device a stand-in that follows the documented contract of ``varlen_attn`` takes its place.
"""

from __future__ import annotations

import pytest
import torch
from slipstream.actors.executor.attention.varlen import VarlenAttention
from slipstream.actors.executor.cache.paged import KVCache, PagedBatch
from slipstream.protocol.errors import InvalidRequest, ModelNotSupported
from torch import Tensor

RELEASE = tuple(int(part) for part in torch.__version__.split(".")[:2])
REAL = torch.cuda.is_available() and RELEASE >= (2, 13)
DEVICE = torch.device("cuda" if REAL else "cpu")


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
    """Plain attention in float64 of the last positions of one sequence."""
    count, kv_len = len(query), len(key)
    group = query.shape[1] // key.shape[1]
    key, value = (t.double().repeat_interleave(group, dim=1) for t in (key, value))
    score = torch.einsum("qhd,khd->hqk", query.double(), key) * scale
    at, to = torch.arange(kv_len - count, kv_len)[:, None], torch.arange(kv_len)[None, :]
    hidden = (to > at) if window is None else (to > at) | (to <= at - window)
    return torch.einsum("hqk,khd->qhd", score.masked_fill(hidden, float("-inf")).softmax(dim=2), value)


def stand_in(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: Tensor,
    block_table: Tensor,
    num_splits: int | None,
) -> Tensor:
    """What the documentation says of ``varlen_attn``, and of its built-in kernel."""
    rows = len(seqused_k)
    assert cu_seq_q.dtype == seqused_k.dtype == block_table.dtype == torch.int32
    assert cu_seq_k is not None
    assert cu_seq_k.dtype == torch.int32
    assert cu_seq_k.diff().tolist() == seqused_k.tolist()
    assert block_table.shape[0] == rows
    assert key.shape[1] % 256 == 0
    assert num_splits == 1
    assert enable_gqa
    assert max_q >= int(cu_seq_q.diff().max())
    assert max_k >= int(seqused_k.max())
    left, right = window_size
    assert right == 0
    parts = []
    for row in range(rows):
        kv_len = int(seqused_k[row])
        blocks = block_table[row, : -(-kv_len // key.shape[1])].long()
        k, v = key[blocks].flatten(0, 1)[:kv_len], value[blocks].flatten(0, 1)[:kv_len]
        parts.append(
            attend(query[cu_seq_q[row] : cu_seq_q[row + 1]], k, v, scale, left + 1 if left >= 0 else None)
        )
    return torch.cat(parts).to(query.dtype)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> VarlenAttention:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "__version__", "2.13.0" if not REAL else torch.__version__)
    made = VarlenAttention()
    if not REAL:
        made._varlen_attn = stand_in
    return made


def one_layer(block_size: int = 256, dtype: torch.dtype = torch.bfloat16, value_dim: int = 32) -> KVCache:
    key, value = (torch.randn(9, block_size, 2, dim).to(DEVICE, dtype) for dim in (32, value_dim))
    return KVCache(block_size, [key], [value])


def step(cache: KVCache) -> PagedBatch:
    """Rows that decode at 1, 256 and 300 tokens, and chunks of 40 of 40 and 30 of 290."""
    counts, kv_lens = [1, 1, 1, 40, 30], [1, 256, 300, 40, 290]
    starts = torch.tensor([0, *counts]).cumsum(0)
    table = torch.tensor([[1, 0], [6, 0], [5, 2], [3, 0], [8, 4]])[[3, 0, 4, 1, 2]]
    rows = torch.tensor([1, 3, 4, 0, 2])
    write = [
        int(table[slot, pos // 256]) * 256 + pos % 256
        for slot, count, kv_len in zip(rows, counts, kv_lens, strict=True)
        for pos in range(kv_len - count, kv_len)
    ]
    return PagedBatch(
        cache=cache,
        rows=rows.to(DEVICE),
        kv_lens=torch.tensor(kv_lens, dtype=torch.int32, device=DEVICE),
        query_start=starts.to(DEVICE, torch.int32),
        write_index=torch.tensor(write, device=DEVICE),
        block_table=table.to(DEVICE, torch.int32),
        num_decode=3,
        chunks=[(3, 40, 40), (43, 30, 290)],
        max_decode_kv_len=512,
    )


@pytest.mark.parametrize("window", [None, 1, 100, 1000])
def test_equals_plain_attention(backend: VarlenAttention, window: int | None) -> None:
    torch.manual_seed(0)
    cache = one_layer()
    batch = step(cache)
    query, key, value = (torch.randn(73, heads, 32).to(DEVICE, torch.bfloat16) for heads in (6, 2, 2))
    out = backend(query, key, value, 0, batch, scale=0.2, sliding_window=window)
    assert torch.equal(cache.keys[0].flatten(0, 1)[batch.write_index], key)
    assert torch.equal(cache.values[0].flatten(0, 1)[batch.write_index], value)
    for row in range(5):
        part = slice(int(batch.query_start[row]), int(batch.query_start[row + 1]))
        blocks, kv_len = batch.block_table[batch.rows[row]].long(), int(batch.kv_lens[row])
        k, v = (pool[0][blocks].flatten(0, 1)[:kv_len].cpu() for pool in (cache.keys, cache.values))
        expected = attend(query[part].cpu(), k, v, 0.2, window)
        assert (out[part].cpu().double() - expected).abs().max() < 1e-2 * expected.abs().max()


def test_refuses_what_the_kernels_lack(backend: VarlenAttention) -> None:
    query, kv = torch.zeros(73, 2, 32), torch.zeros(73, 2, 32)

    def call(cache: KVCache, softcap: float | None = None, sinks: Tensor | None = None) -> None:
        backend(query, kv, kv, 0, step(cache), scale=1.0, softcap=softcap, sinks=sinks)

    with pytest.raises(ModelNotSupported, match="softcap: choose the backend 'triton'"):
        call(one_layer(), softcap=30.0)
    with pytest.raises(ModelNotSupported, match="sinks: choose the backend 'triton'"):
        call(one_layer(), sinks=torch.zeros(2))
    with pytest.raises(ModelNotSupported, match="float32"):
        call(one_layer(dtype=torch.float32))
    with pytest.raises(ModelNotSupported, match="head sizes 32 and 64"):
        call(one_layer(value_dim=64))
    with pytest.raises(InvalidRequest, match="multiple of 256 tokens, not 16"):
        call(one_layer(block_size=16))


def test_refuses_an_older_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu130")
    with pytest.raises(InvalidRequest, match=r"needs torch 2\.13, and this is 2\.11\.0"):
        VarlenAttention()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_refuses_a_machine_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.13.0")
    with pytest.raises(InvalidRequest, match="CUDA"):
        VarlenAttention()
