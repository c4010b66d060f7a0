"""Reads from a checkpoint's configuration how its weights are quantized; an unknown way is refused with the reason.

Nothing is left to transformers, which downloads kernels for some kinds, asks for packages for others, and computes
something else for those that it takes for its own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

COMPRESSED_FORMATS = ("float-quantized", "naive-quantized", "int-quantized", "pack-quantized")
"""The formats of compressed-tensors that are read. Others are of 4 bit floats, or sparse."""

STRATEGIES = ("tensor", "channel", "group", "block")
"""What one scale of compressed-tensors is for: a weight, a row, a part of a row, a block."""

OTHER_METHODS = {
    "bitsandbytes": "only the package of that name reads its weights",
    "gguf": "its files are no safetensors",
    "torchao": "its weights are objects of that package and no plain tensors",
    "nvfp4": "4 bit floats with scales in two steps are not read",
    "modelopt": "4 bit floats with scales in two steps, and its own names of FP8, are not read",
    "mxfp8": "scales that are exponents are read for 4 bits alone",
}
"""Why these methods are not served. Of any other the error says only that it is not known."""

INSTEAD = "take a checkpoint in bfloat16, or one that is quantized by one of "


class UnknownQuantization(ValueError):
    """A quantization that is not known here; its text is the reason."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """The quantization of a checkpoint's weights."""

    method: str
    """``quant_method`` of its configuration."""
    title: str
    """For people, such as ``FP8``."""
    formats: tuple[str, ...]
    """How weights may be stored, by their names in ``formats.FORMATS``."""
    skipped: tuple[str, ...] = ()
    """Which modules are not quantized: names, parts of names, or ``re:`` and a pattern."""
    bits: int = 8
    block: tuple[int, int] | None = None
    """Rows and columns that share a scale, where they are blocks of both."""
    zero_offset: int = 0
    """What is added to stored zero points."""


NAMES = ("quantization_config", "compression_config")


def quantization_config(config: PreTrainedConfig) -> Mapping[str, Any] | None:
    """The part of a configuration, or of its language model's, that describes quantization."""
    for place in (config, config.get_text_config(decoder=True)):
        for name in NAMES:
            found = getattr(place, name, None)
            if found is not None:
                return found if isinstance(found, Mapping) else found.to_dict()
    return None


def scheme_of(config: PreTrainedConfig) -> Scheme | None:
    """The quantization of a checkpoint with this configuration; None if there is none.

    UnknownQuantization where it is not known how.
    """
    said = quantization_config(config)
    if said is None:
        return None
    method = said.get("quant_method")
    reader = METHODS.get(str(method))
    if reader is None:
        why = OTHER_METHODS.get(str(method), "that is not known here")
        raise UnknownQuantization(
            f"its weights are quantized by {method!r}, and {why}; {INSTEAD}{', '.join(METHODS)}"
        )
    if said.get("transform_config"):
        raise UnknownQuantization(
            "its weights are rotated (transform_config), and its activations would have to be as well"
        )
    try:
        return reader(said, config)
    except (AttributeError, TypeError, LookupError) as error:  # of a value of another type
        raise UnknownQuantization(
            f"its quantization_config cannot be read: {type(error).__name__}: {error}"
        ) from None


def unquantized(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration as if nothing were said of quantization: what transformers is given."""
    if not any(hasattr(config, name) for name in NAMES):
        return config
    plain = copy.deepcopy(config)
    for name in NAMES:
        if hasattr(plain, name):
            delattr(plain, name)
    return plain


def fp8(said: Mapping[str, Any], config: PreTrainedConfig) -> Scheme:
    """8 bit floats (e4m3) with a scale for each weight, row, or block such as 128 x 128."""
    if said.get("fmt", "e4m3") != "e4m3":
        raise UnknownQuantization(f"its FP8 weights are of the form {said['fmt']!r}; e4m3 is read")
    block = said.get("weight_block_size")
    if block is not None and not (
        len(block) == 2 and all(isinstance(size, int) and size > 0 for size in block)
    ):
        raise UnknownQuantization(
            f"its weight_block_size is {block!r}; expected the rows and the columns of a block"
        )
    title = "FP8" if block is None else f"FP8 in blocks of {block[0]} x {block[1]}"
    return Scheme("fp8", title, ("scaled",), skipped_of(said), block=None if block is None else tuple(block))


def fbgemm_fp8(said: Mapping[str, Any], config: PreTrainedConfig) -> Scheme:
    """8 bit floats (e4m3) with a scale for each row."""
    return Scheme("fbgemm_fp8", "FP8", ("scaled",), skipped_of(said))


def compressed_tensors(said: Mapping[str, Any], config: PreTrainedConfig) -> Scheme:
    """8 bit floats or integers (`float-quantized`, `int-quantized`), 4 or 8 bit integers (`pack-quantized`)."""
    if said.get("quantization_status", "compressed") != "compressed":
        raise UnknownQuantization(
            f"its quantization_status is {said['quantization_status']!r}; 'compressed' is read"
        )
    sparsity = (said.get("sparsity_config") or {}).get("format", "dense")
    if sparsity != "dense":
        raise UnknownQuantization(f"its weights are sparse ({sparsity!r}), which is not read")
    weights: list[Mapping[str, Any]] = []
    for group in (said.get("config_groups") or {}).values():
        form = group.get("format") or said.get("format")
        if form not in COMPRESSED_FORMATS:
            raise UnknownQuantization(
                f"its weights have the format {form!r}; read are {', '.join(COMPRESSED_FORMATS)}"
            )
        if group.get("weights") is not None:
            weights.append(group["weights"])
    if not weights:
        raise UnknownQuantization("its config_groups name no weights that are quantized")
    for weight in weights:
        kind, bits, strategy = weight.get("type"), weight.get("num_bits"), weight.get("strategy")
        if (kind, bits) not in (("float", 8), ("int", 8), ("int", 4)):
            raise UnknownQuantization(
                f"its weights are of {bits} bits and type {kind!r}; read are float of 8, int of 8 and of 4"
            )
        if strategy not in STRATEGIES:
            raise UnknownQuantization(
                f"its scales have the strategy {strategy!r}; read are {', '.join(STRATEGIES)}"
            )
    kinds = sorted({"FP8" if weight["type"] == "float" else f"int{weight['num_bits']}" for weight in weights})
    blocks = {tuple(weight["block_structure"]) for weight in weights if weight.get("block_structure")}
    if len(blocks) > 1:
        raise UnknownQuantization(f"its scales are of blocks of different sizes: {sorted(blocks)}")
    return Scheme(
        "compressed-tensors",
        " and ".join(kinds),
        ("scaled", "packed"),
        tuple(said.get("ignore") or ()),
        bits=max(weight["num_bits"] for weight in weights),
        block=next(iter(blocks), None),
    )


def gptq(said: Mapping[str, Any], config: PreTrainedConfig) -> Scheme:
    """4 or 8 bit integers in groups, in any order (`desc_act`)."""
    bits, form = said.get("bits"), said.get("checkpoint_format") or "gptq"
    if bits not in (4, 8):
        raise UnknownQuantization(f"its GPTQ weights are of {bits} bits; 4 and 8 are read")
    if form not in ("gptq", "gptq_v2"):
        raise UnknownQuantization(f"its GPTQ weights have the format {form!r}; gptq and gptq_v2 are read")
    changed = [pattern for pattern in said.get("dynamic") or () if not pattern.startswith("-:")]
    if changed:
        raise UnknownQuantization(
            f"its GPTQ weights differ from module to module (dynamic: {changed[0]!r}), which is not read"
        )
    return Scheme(
        "gptq", f"GPTQ int{bits}", ("gptq",), skipped_of(said), bits=bits, zero_offset=form == "gptq"
    )


def awq(said: Mapping[str, Any], config: PreTrainedConfig) -> Scheme:
    """4 bit integers in groups, version `gemm`."""
    bits, version = said.get("bits", said.get("w_bit", 4)), str(said.get("version", "gemm")).lower()
    if bits != 4 or version != "gemm":
        raise UnknownQuantization(
            f"its AWQ weights are of {bits} bits and of the version {version!r}; 4 and 'gemm' are read"
        )
    return Scheme("awq", "AWQ int4", ("awq",), skipped_of(said), bits=4)


def mxfp4(said: Mapping[str, Any], config: PreTrainedConfig) -> Scheme:
    """4 bit floats of the experts of gpt_oss."""
    if config.model_type != "gpt_oss":
        raise UnknownQuantization("its weights are quantized by 'mxfp4', which is read of gpt_oss alone")
    return Scheme("mxfp4", "MXFP4", ("mxfp4",), skipped_of(said), bits=4)


METHODS = {
    "fp8": fp8,
    "fbgemm_fp8": fbgemm_fp8,
    "compressed-tensors": compressed_tensors,
    "gptq": gptq,
    "awq": awq,
    "mxfp4": mxfp4,
}
"""By ``quant_method``; their docstrings are what ``docs/models.md`` says of them."""


def skipped_of(said: Mapping[str, Any]) -> tuple[str, ...]:
    names = [said.get(name) or () for name in ("modules_to_not_convert", "ignored_layers", "ignore")]
    return tuple(str(name) for each in names for name in each)
