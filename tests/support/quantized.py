"""Checkpoints with quantized weights, each beside a plain one with the numbers that they stand for.

Values and scales are drawn; nothing is quantized. They are packed number by number, as the formats are described.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny_models import make_checkpoint
from torch import Tensor

AWQ_COLUMNS = [0, 2, 4, 6, 1, 3, 5, 7]

Stored = tuple[dict[str, Tensor], Tensor]
"""What a format stores of a weight, by the ends of the names; and the weight, in float32."""


def integers(height: int, width: int, low: int, high: int) -> Tensor:
    return torch.randint(low, high, (height, width))


def scales_of(height: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.rand(height, width) * 0.01 + 0.002).to(dtype)


def spread(each: Tensor, rows: int, columns: int) -> Tensor:
    """What belongs to each number."""
    height, width = each.shape
    where = torch.arange(rows) * height // rows, torch.arange(columns) * width // columns
    return each[where[0][:, None], where[1][None, :]]


def pack(numbers: Tensor, bits: int, along: int, order: list[int] | None = None) -> Tensor:
    """Into int32, ``order`` naming for each place of a word, from the lowest, which of its numbers it has."""
    numbers = numbers.movedim(along, -1)
    per_word = 32 // bits
    order = order or list(range(per_word))
    words = torch.zeros(*numbers.shape[:-1], -(-numbers.shape[-1] // per_word), dtype=torch.int64)
    for word in range(words.shape[-1]):
        for place, which in enumerate(order):
            if word * per_word + which < numbers.shape[-1]:
                words[..., word] |= numbers[..., word * per_word + which] << (bits * place)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32).movedim(-1, along).contiguous()


def float8(height: int, width: int) -> Tensor:
    return (torch.randn(height, width) * 30).to(torch.float8_e4m3fn)


def fp8_tensor(height: int, width: int) -> Stored:
    values, scale = float8(height, width), torch.tensor(0.0037)
    return {
        ".weight": values,
        ".weight_scale": scale,
        ".input_scale": torch.tensor(0.1),
    }, values.float() * scale


def fp8_rows(height: int, width: int) -> Stored:
    values, scales = float8(height, width), scales_of(height, 1, torch.bfloat16)
    return {".weight": values, ".weight_scale": scales}, values.float() * scales.float()


def fp8_blocks(height: int, width: int, rows: int = 12, columns: int = 20) -> Stored:
    """The last blocks may not be full."""
    values, scales = float8(height, width), scales_of(-(-height // rows), -(-width // columns))
    own = scales.repeat_interleave(rows, 0)[:height].repeat_interleave(columns, 1)[:, :width]
    return {".weight": values, ".weight_scale_inv": scales}, values.float() * own


def int8_rows(height: int, width: int) -> Stored:
    values, scales = integers(height, width, -127, 128).to(torch.int8), scales_of(height, 1)
    return {".weight": values, ".weight_scale": scales}, values.float() * scales


def int4_packed(height: int, width: int) -> Stored:
    values, scales = integers(height, width, -8, 8), scales_of(height, width // 16, torch.bfloat16)
    parts = {
        ".weight_packed": pack(values + 8, 4, 1),
        ".weight_scale": scales,
        ".weight_shape": torch.tensor([height, width]),
    }
    return parts, values * spread(scales.float(), height, width)


def int4_packed_with_zeros(height: int, width: int) -> Stored:
    parts, _ = int4_packed(height, width)
    values, zeros = integers(height, width, -8, 8), integers(height, width // 16, -8, 8)
    parts |= {".weight_packed": pack(values + 8, 4, 1), ".weight_zero_point": pack(zeros + 8, 4, 0)}
    scales = parts[".weight_scale"].float()
    return parts, (values - spread(zeros, height, width)) * spread(scales, height, width)


def gptq(height: int, width: int, *, bits: int = 4, offset: int = 1, shuffled: bool = False) -> Stored:
    values = integers(height, width, 0, 2**bits)
    scales, zeros = scales_of(height, width // 16, torch.float16), integers(height, width // 16, 1, 2**bits)
    groups = torch.arange(width) // 16
    if shuffled:
        groups = groups[torch.randperm(width)]
    parts = {
        ".qweight": pack(values.T.contiguous(), bits, 0),
        ".qzeros": pack(zeros.T.contiguous() - offset, bits, 1),
        ".scales": scales.T.contiguous(),
        ".g_idx": groups.int(),
    }
    return parts, (values - zeros[:, groups]) * scales.float()[:, groups]


def awq(height: int, width: int) -> Stored:
    values, zeros = integers(height, width, 0, 16), integers(height, width // 16, 0, 16)
    scales = scales_of(height, width // 16, torch.float16)
    parts = {
        ".qweight": pack(values.T.contiguous(), 4, 1, AWQ_COLUMNS),
        ".qzeros": pack(zeros.T.contiguous(), 4, 1, AWQ_COLUMNS),
        ".scales": scales.T.contiguous(),
    }
    return parts, (values - spread(zeros, height, width)) * spread(scales.float(), height, width)


def compressed(format: str, kind: str, bits: int, strategy: str, **more: Any) -> dict[str, Any]:
    weights = {"type": kind, "num_bits": bits, "strategy": strategy, "symmetric": True, "dynamic": False}
    return {
        "quant_method": "compressed-tensors",
        "format": format,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights | more}},
    }


STORED: dict[str, tuple[dict[str, Any], Callable[[int, int], Stored]]] = {
    "fp8 by tensor": ({"quant_method": "fp8", "activation_scheme": "static"}, fp8_tensor),
    "fp8 by blocks": ({"quant_method": "fp8", "weight_block_size": [12, 20], "fmt": "e4m3"}, fp8_blocks),
    "fp8 by wide blocks": (
        {"quant_method": "fp8", "weight_block_size": [12, 32]},
        lambda height, width: fp8_blocks(height, width, 12, 32),
    ),
    "fbgemm": ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, fp8_rows),
    "compressed fp8 by tensor": (compressed("float-quantized", "float", 8, "tensor"), fp8_tensor),
    "compressed fp8 by rows": (compressed("float-quantized", "float", 8, "channel"), fp8_rows),
    "compressed int8": (compressed("int-quantized", "int", 8, "channel"), int8_rows),
    "compressed int4": (compressed("pack-quantized", "int", 4, "group", group_size=16), int4_packed),
    "compressed int4 with zeros": (
        compressed("pack-quantized", "int", 4, "group", group_size=16, symmetric=False),
        int4_packed_with_zeros,
    ),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": False}, gptq),
    "gptq in shuffled groups": (
        {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": True},
        lambda height, width: gptq(height, width, shuffled=True),
    ),
    "gptq of 8 bits": (
        {"quant_method": "gptq", "bits": 8, "group_size": 16, "desc_act": False},
        lambda height, width: gptq(height, width, bits=8),
    ),
    "gptq_v2": (
        {"quant_method": "gptq", "bits": 4, "group_size": 16, "checkpoint_format": "gptq_v2"},
        lambda height, width: gptq(height, width, offset=0),
    ),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True, "version": "gemm"}, awq),
}
"""What the configuration says, and how a weight of a size is stored."""


def quantize(folder: Path, kind: str, plain: Path) -> None:
    """Make a checkpoint of ``folder``'s a quantized one, and ``plain`` a copy with what it stands for in float32."""
    said, store = STORED[kind]
    tensors = load_file(folder / "model.safetensors")
    stored, dense = dict(tensors), dict(tensors)
    torch.manual_seed(7)
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight"):
            base = name.removesuffix(".weight")
            parts, dense[name] = store(*tensor.shape)
            del stored[name]
            stored |= {base + end: part for end, part in parts.items()}
    write(folder, plain, said, stored, dense)


def write(folder: Path, plain: Path, said: dict[str, Any], stored: Any, dense: Any) -> None:
    plain.mkdir()
    config = json.loads((folder / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    for place, tensors in ((folder, stored), (plain, dense)):
        save_file({name: each.contiguous() for name, each in tensors.items()}, place / "model.safetensors")


def make_quantized(kind: str, folder: Path, family: str = "llama", **changes: Any) -> tuple[Path, Path]:
    """A quantized checkpoint of the family, and a plain one with the same numbers."""
    quantized = make_checkpoint(family, folder / "quantized", **changes)
    quantize(quantized, kind, folder / "plain")
    return quantized, folder / "plain"
