"""Triton compiles all kernels for an H200, on a machine without a GPU.

The interpreter, which runs them in the other tests, takes much that the compiler refuses.
"""

from __future__ import annotations

import importlib.util
import os
import re
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1",
    reason="needs Triton's compiler",
)

NORM = dict(
    after_epsilon="fp32", after_offset="fp32", scale="fp32", before_epsilon="fp32", before_offset="fp32"
)
ROWS = dict(logits="*bf16", values="*fp32", places="*i32", stride="i32", parts="i32")
REQUESTS = dict(temperatures="*fp32", request_stride="i32", sums="*fp64", blocks="i32")
VOCABULARY = dict(V=151_936, PARTS=128)

ATTEND = (
    dict(
        out="*bf16",
        results="*fp32",
        result_sums="*fp32",
        arrived="*i32",
        query="*bf16",
        keys="*bf16",
        values="*bf16",
    )
    | dict(items="*i32", block_table="*i32", scale="fp32")
    | dict.fromkeys(("query_token_stride", "query_head_stride", "table_stride"), "i32")
)
HEADS = dict(
    sinks=None,
    key_scales=None,
    value_scales=None,
    GROUP=4,
    WINDOW=0,
    CHUNKED=False,
    SOFTCAP=0.0,
    BLOCK_SIZE=16,
    DK=128,
    DV=128,
    DK_PAD=128,
    DV_PAD=128,
    KV_HEADS=8,
)
PAIRS = dict(keys="*i16", values="*i16", key_scales="*fp32", value_scales="*fp32")
FP8 = dict(keys="*fp8e4nv", values="*fp8e4nv", key_scales="*fp32", value_scales="*fp32")


ONE_TOKEN = dict(TOKENS=1, BLOCK_M=16, BLOCK_N=128, AT_ONCE=4)


def without_scales(constants: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in constants.items() if not name.endswith("_scales")}


PLAN = dict(
    items="*i32", arrived="*i32", rows="*i64", kv_lens="*i32", query_start="*i32", overhead="fp32"
) | (
    dict.fromkeys(
        (
            "num_rows",
            "num_tokens",
            "num_items",
            "num_results",
            "target",
            "most_splits",
            "multiprocessors",
            "places",
        ),
        "i32",
    )
)
STRIDES = dict.fromkeys(
    [f"{what}_{of}_stride" for what in ("key", "value", "keys", "values") for of in ("token", "head")], "i32"
)
SLOTS = dict(slots="*i32", position="*i64", finished="*i1", tokens="*i32", count="i32", tokens_stride="i32")

BY_ROWS = dict(N=4096, K=4096, ROWS_PER_SCALE=1, COLUMNS_PER_SCALE=4096)
BY_BLOCKS = BY_ROWS | dict(ROWS_PER_SCALE=128, COLUMNS_PER_SCALE=128)

KERNELS: list[tuple[str, dict[str, str], dict[str, Any]]] = [
    (
        "model:_angles_kernel",
        dict(positions="*i64", frequencies="*fp32", out="*fp32", tokens="i32", scaling="fp32"),
        dict(COUNT=64, PAD=64, TOKENS=16),
    ),
    *(
        (
            "model:add_norm_kernel",
            dict.fromkeys(("residual", "update", "out", "after", "before"), "*bf16") | NORM,
            dict(UPDATE=True, AFTER=after, BEFORE=True, N=896, PAD=1024),
        )
        for after in (False, True)
    ),
    *(
        (
            "model:sum_add_norm_kernel",
            dict.fromkeys(("residual", "update", "out", "after", "before"), dtype)
            | NORM
            | dict(rows="i32", halves="*i64", peers="*i64", current="*i32"),
            dict(
                RANK=0, SIZE=size, MAX_WORDS=65536, PROGRAMS=128, PER_WORD=per_word, AFTER=False, BEFORE=True
            )
            | dict(N=width, PAD=pad),
        )
        for dtype, per_word, size, width, pad in (
            ("*bf16", 4, 2, 4096, 4096),
            ("*fp32", 2, 2, 4096, 4096),
            ("*fp16", 4, 4, 5120, 8192),
        )
    ),
    (
        "model:norm_kernel",
        dict(states="*bf16", weight="*bf16", stride="i32", epsilon="fp32", offset="fp32"),
        dict(N=4096, PAD=4096),
    ),
    *(
        (
            "model:_rotate_kernel",
            dict.fromkeys(("states", "query_weight", "key_weight"), "*bf16")
            | dict(angles="*fp32", token_stride="i32", epsilon="fp32", offset="fp32"),
            dict(NORM=norm, QUERY_HEADS=32, ALL_HEADS=40, D=128, ROTATED=64 - rest // 2, REST=rest, HEADS=4)
            | dict(PAIRS=64 - rest // 2),
        )
        for norm, rest in ((False, 0), (True, 0), (True, 64))
    ),
    *(
        ("model:_gate_kernel", dict(states="*bf16", out="*bf16"), dict(N=4864, ACTIVATION=name, TILE=1024))
        for name in ("silu", "gelu", "gelu_tanh")
    ),
    *(
        (
            "quantization:_one_row_kernel",
            dict(states="*bf16", weight="*i8", scales="*fp32", bias="*bf16", out="*bf16"),
            scaled | dict(FLOAT8=float8, BLOCK_N=8, BLOCK_K=1024),
        )
        for float8, scaled in ((True, BY_ROWS), (False, BY_BLOCKS))
    ),
    *(
        (
            "quantization:_few_rows_kernel",
            dict(terms=stored, row_scales="*fp32", weight=stored, scales="*fp32", out=states, results="*fp32")
            | dict(arrived="*i32", rows="i32"),
            scaled | dict(bias=None, ROWS=rows, BLOCK_N=64, BLOCK_K=128, SPLITS=splits),
        )
        for stored, scaled, rows, splits, states in (
            ("*fp8e4nv", BY_ROWS, 8, 4, "*bf16"),
            ("*fp8e4nv", BY_BLOCKS, 64, 1, "*bf16"),
            ("*i8", BY_ROWS, 32, 4, "*fp16"),
        )
    ),
    *(
        (
            "conversion:_two_terms_kernel",
            dict(states="*bf16", terms=stored, scales="*fp32", rows="i32"),
            dict(K=14336, PAD=16384),
        )
        for stored in ("*fp8e4nv", "*i8")
    ),
    *(
        (
            "adapters:_shrink_kernel",
            dict(states="*bf16", down="*bf16", ids="*i32", sums="*fp32")
            | dict.fromkeys(("tokens", "state_stride", "K", "RANKS"), "i32"),
            dict(TOKENS=tokens, SPLITS=splits, TILE=16, COLUMNS=columns),
        )
        for tokens, splits, columns in ((16, 8, 512), (32, 14, 512), (64, 4, 64))
    ),
    *(
        (
            "adapters:_expand_kernel",
            dict(output="*bf16", up="*bf16", ids="*i32", sums="*fp32")
            | dict.fromkeys(("tokens", "N", "first_end", "second_end"), "i32"),
            dict(RANK=rank, SUBLAYERS=sublayers, TOKENS=tokens, SPLITS=8, TILE=min(rank, 64), OUTPUTS=128),
        )
        for rank, sublayers, tokens in ((16, 1, 16), (16, 3, 16), (128, 2, 64))
    ),
    *(
        (
            "adapters:_extend_kernel",
            dict.fromkeys(("states", "down", "out"), "*bf16")
            | dict(ids="*i32", sums="*fp32", arrived="*i32", tokens="i32", state_stride="i32"),
            dict(
                K=4096,
                COUNT=8,
                RANKS=16 * parts,
                TAIL=128 * parts,
                SPLITS=splits,
                ITERATIONS=4096 // splits // columns,
            )
            | dict(TOKENS=tokens, OUTPUTS=64, COLUMNS=columns, COPIED=256),
        )
        for parts, tokens, splits, columns in (
            (3, 16, 16, 256),
            (1, 32, 16, 256),
            (2, 64, 8, 64),
            (2, 64, 1, 64),
        )
    ),
    *(
        (
            "fixed_order:product_kernel",
            dict.fromkeys(("states", "weight", "bias", "out"), "*bf16")
            | dict.fromkeys(("rows", "N", "K", "split_width", "splits"), "i32")
            | (dict(results="*fp32", arrived="*i32") if spread else {}),
            dict(SPREAD=spread, ROWS=rows, BLOCK_N=outputs, BLOCK_K=columns, PREFETCHED=256, EVEN=True)
            | ({} if spread else dict(results=None, arrived=None)),
        )
        for rows, outputs, columns, spread in ((16, 64, 128, True), (128, 128, 64, False))
    ),
    (
        "one_row:one_row_kernel",
        dict.fromkeys(("row", "weight", "bias", "out"), "*bf16") | dict(N="i32", K="i32"),
        dict(OUTPUTS=8, COLUMNS=2048, EVEN=True),
    ),
    (
        "conversion:_quantize_kernel",
        dict(states="*bf16", out="*fp8e4nv", scales="*fp32"),
        dict(K=14336, PAD=16384),
    ),
    (
        "conversion:_dequantize_kernel",
        dict(weight="*i8", scales="*fp32", out="*bf16"),
        dict(FLOAT8=True, K=4096, ROWS_PER_SCALE=128, COLUMNS_PER_SCALE=128, TILE=1024),
    ),
    ("sampling:_best_of_part_kernel", ROWS, dict(V=151_936, PART=2048)),
    (
        "sampling:_best_kernel",
        dict(values="*fp32", places="*i32", out="*i32", parts="i32"),
        dict(PARTS=128),
    ),
    ("sampling:_weights_kernel", ROWS | REQUESTS, VOCABULARY | dict(PART=2048)),
    (
        "sampling:_draw_kernel",
        ROWS
        | REQUESTS
        | dict.fromkeys(("out", "top_ks", "prompt_lens", "low_seeds", "high_seeds"), "*i32")
        | dict(positions="*i64"),
        VOCABULARY | dict(BLOCKS=1024),
    ),
    ("attention:attend_kernel", ATTEND, HEADS | dict(TOKENS=1, BLOCK_M=16, BLOCK_N=128, AT_ONCE=4)),
    ("attention:attend_kernel", ATTEND, HEADS | dict(TOKENS=16, BLOCK_M=64, BLOCK_N=64, AT_ONCE=1)),
    ("attention:attend_kernel", ATTEND | PAIRS, without_scales(HEADS) | ONE_TOKEN),
    *(
        ("attention:attend_kernel", ATTEND | FP8, without_scales(HEADS) | tile)
        for tile in (
            dict(TOKENS=1, BLOCK_M=16, BLOCK_N=128, AT_ONCE=4),
            dict(TOKENS=16, BLOCK_M=64, BLOCK_N=64, AT_ONCE=1),
        )
    ),
    *(
        (
            "attention:attend_in_order_kernel",
            ATTEND | scaled,
            (HEADS if scaled == {} else without_scales(HEADS)) | tile | dict(SPLIT=512, BLOCK_N=64),
        )
        for scaled in ({}, FP8)
        for tile in (dict(TOKENS=1, BLOCK_M=16), dict(TOKENS=16, BLOCK_M=64))
    ),
    (
        "attention:partition_kernel",
        PLAN,
        dict(
            SINGLE=True,
            TOKENS=1,
            WINDOW=0,
            CHUNKED=False,
            KEYS=128,
            ALIGN=16,
            LEAST=128,
            FIXED=0,
            KV_HEADS=8,
            HEADS_PAD=8,
        ),
    ),
    (
        "attention:partition_kernel",
        PLAN,
        dict(
            SINGLE=False,
            TOKENS=16,
            WINDOW=100,
            CHUNKED=True,
            KEYS=64,
            ALIGN=16,
            LEAST=256,
            FIXED=8,
            KV_HEADS=6,
            HEADS_PAD=8,
        ),
    ),
    (
        "attention:write_kernel",
        dict(key="*bf16", value="*bf16", keys="*bf16", values="*bf16", write_index="*i64", kv_heads="i32")
        | STRIDES,
        dict(key_scales=None, value_scales=None, DK=128, DV=128, DK_PAD=128, DV_PAD=128, HEADS=8),
    ),
    (
        "attention:write_kernel",
        dict(key="*bf16", value="*bf16", write_index="*i64", kv_heads="i32") | FP8 | STRIDES,
        dict(DK=128, DV=128, DK_PAD=128, DV_PAD=128, HEADS=8),
    ),
    (
        "step:_gather_kernel",
        SLOTS
        | dict(block_table="*i32", block_tokens="*i32", kv_lens="*i32", table_stride="i32")
        | dict.fromkeys(("rows", "positions", "input_ids", "write_index"), "*i64"),
        dict(BLOCK_SIZE=16, ROWS=32),
    ),
    ("ranks:_write_kernel", dict(address="i64", word="i32"), {}),
    *(
        (
            "ranks:_sum_kernel",
            dict(tensor=dtype, halves="*i64", peers="*i64", current="*i32", words="i32"),
            dict(RANK=1, SIZE=size, MAX_WORDS=65536, PROGRAMS=128, PER_WORD=per_word, TILE=512),
        )
        for dtype, per_word, size in (("*bf16", 4, 2), ("*fp16", 4, 4), ("*fp32", 2, 8))
    ),
    *(
        (
            "ranks:_gather_kernel",
            dict.fromkeys(("part", "out"), dtype)
            | dict(halves="*i64", peers="*i64", current="*i32", words="i32", row_words="i32", width="i32"),
            dict(RANK=1, SIZE=size, MAX_WORDS=65536, PROGRAMS=128, PER_WORD=per_word, TILE=512),
        )
        for dtype, per_word, size in (("*bf16", 4, 2), ("*fp16", 4, 4), ("*fp32", 2, 8))
    ),
    *(
        (
            "ranks:_broadcast_kernel",
            dict(numbers="*i32", halves="*i64", peers="*i64", current="*i32", count="i32"),
            dict(RANK=rank, SIZE=size, MAX_WORDS=65536, PROGRAMS=128, TILE=512),
        )
        for rank, size in ((0, 2), (1, 2), (3, 8))
    ),
    (
        "step:_scatter_kernel",
        SLOTS | dict(sampled="*i32", requests="*i32", out="*i32"),
        dict(
            RECORD=79,
            MAX_LENGTH=3,
            STOP_TOKENS=15,
            MOST=64,
            MAX_PAD=64,
            NO_STOP_TOKEN=-2,
            NO_TOKEN=-1,
            ROWS=32,
        ),
    ),
]


def kernels() -> dict[str, Any]:
    from slipstream.actors.executor.attention import (
        triton_attend,
        triton_invariant,
        triton_partition_kernel,
        triton_write,
    )
    from slipstream.actors.executor.model.adapters import extend
    from slipstream.actors.executor.model.adapters import triton_products as adapters
    from slipstream.actors.executor.model.fused import norm_kernels
    from slipstream.actors.executor.model.fused import triton_operations as model
    from slipstream.actors.executor.model.products import fixed_order, one_row
    from slipstream.actors.executor.model.quantization import conversion
    from slipstream.actors.executor.model.quantization import product_kernels as quantization
    from slipstream.actors.executor.ranks import exchange_kernels as ranks
    from slipstream.actors.executor.sampling import kernels as sampling
    from slipstream.actors.executor.step import kernels as step

    attention = (
        ("attention", module)
        for module in (triton_attend, triton_invariant, triton_partition_kernel, triton_write)
    )

    return {
        f"{room}:{name}": found
        for room, module in (
            ("model", model),
            ("model", norm_kernels),
            ("adapters", adapters),
            ("adapters", extend),
            ("conversion", conversion),
            ("quantization", quantization),
            ("fixed_order", fixed_order),
            ("one_row", one_row),
            ("ranks", ranks),
            ("sampling", sampling),
            ("step", step),
            *attention,
        )
        for name, found in vars(module).items()
        if name.endswith("_kernel")
    }


def test_every_kernel_is_compiled_here() -> None:
    assert set(kernels()) == {name for name, _, _ in KERNELS}


@pytest.mark.parametrize(
    ("name", "arguments", "constants"), KERNELS, ids=[f"{name}-{i}" for i, (name, _, _) in enumerate(KERNELS)]
)
def test_it_compiles(name: str, arguments: dict[str, str], constants: dict[str, Any]) -> None:
    assert compiled(name, arguments, constants).asm["cubin"]


def test_where_rows_decode_no_byte_of_an_fp8_cache_is_loaded_by_itself() -> None:
    """From shared memory, where that takes longer than all the rest."""
    by_bytes, in_pairs = (
        compiled("attention:attend_kernel", ATTEND | cache, without_scales(HEADS) | ONE_TOKEN).asm["ptx"]
        for cache in (FP8, PAIRS)
    )
    assert re.search(r"ld\.shared\.[bsu]8", by_bytes)
    assert not re.search(r"ld\.shared\.[bsu]8", in_pairs)


def test_ranks_write_to_each_other_and_wait_past_the_caches_word_by_word() -> None:
    """A word that came in two parts would be taken when the first is there."""
    names = {f"ranks:_{name}_kernel" for name in ("sum", "gather", "broadcast")}
    cases = [case for case in KERNELS if case[0] in names]
    assert {case[0] for case in cases} == names
    for case in cases:
        ptx = compiled(*case).asm["ptx"]
        size, words_of_a_thread = case[2]["SIZE"], 4
        sent = re.findall(r"st\.relaxed\.sys\.global\.b64", ptx)
        assert len(sent) == (size - 1) * words_of_a_thread
        awaited = re.findall(r"ld\.volatile\.global\.(\S+)", ptx)
        assert awaited == ["b32"] + ["v2.b64"] * 2 * 2 * (size - 1), (
            "which half; a first look and the further ones"
        )


def compiled(name: str, arguments: dict[str, str], constants: dict[str, Any]) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = kernels()[name]
    names: list[str] = kernel.arg_names
    assert set(names) == arguments.keys() | constants.keys()
    source = ASTSource(
        fn=kernel,
        signature={name: arguments.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={
            (place,): [["tt.divisibility", 16]]
            for place, name in enumerate(names)
            if arguments.get(name, "fp32") != "fp32"
        },
    )
    return triton.compile(source, target=GPUTarget("cuda", 90, 32))
