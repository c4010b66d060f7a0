"""Describes a model and the memory that it takes from its configuration alone: no weight is fetched or made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel

from .....protocol.errors import InvalidRequest, ModelNotSupported
from ....checkpoint import max_model_len
from ...cache.kv_cache import cache_dtype
from ...ranks.shard import check_heads, tp_plan_of
from ..adapters.adapters import projections_of
from ..invariant.apply import EXPERTS, RECURRENT
from ..paged_model import PagedModel
from ..quantization.linear import quantize_layers
from ..quantization.scheme import Scheme, quantization_config, scheme_of
from .language_model import dtype_of, language_model_config
from .load import DTYPES, META, load_config, model_on_meta
from .weights import dequantized_dtype

RANKS = (2, 4, 8)
"""Numbers of ranks that are listed if the model can be divided among as many."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """The memory of a model."""

    model_type: str
    parameters: int
    dtype: str
    """The dtype of the weights, and of the cache where no other is asked for."""
    weight_bytes: int
    kv_bytes_per_token: int
    """Keys and values of one token, in all layers."""
    state_bytes: int
    """States of recurrent layers, of one sequence."""
    notes: tuple[str, ...]
    """What one should know of such layers, a sentence each."""
    max_model_len: int | None
    """What the model itself is made for; None: its configuration does not say."""
    left_out: tuple[str, ...]
    """Parts of a multimodal checkpoint that are not built, by their names in the configuration."""
    stored: str
    """How its weights are quantized, and what becomes of them; empty: they are not."""
    quantized_bytes: int
    """Memory of weights that ``--quantization`` has made of them on a GPU; 0: it can make none."""
    adapters: str
    """Whether adapters can be beside its layers."""
    graphs: str
    """Which of its steps are CUDA graphs on a GPU."""
    ranks: str
    """Among how many GPUs it can be divided."""
    invariant: str
    """Whether it can be batch-invariant."""

    def cache_bytes(self, tokens: int, block_size: int) -> int:
        """The cache of one request of ``tokens`` tokens, which takes whole blocks."""
        return -(-tokens // block_size) * block_size * self.kv_bytes_per_token

    def bytes_for(self, requests: int, tokens: int, block_size: int) -> int:
        """Weights, cache and states of ``requests`` requests of ``tokens`` tokens each; padding has a state as well."""
        states = (requests + 1) * self.state_bytes
        return self.weight_bytes + requests * self.cache_bytes(tokens, block_size) + states


def estimate(folder: Path, dtype: str = "auto", kv_cache_dtype: str = "auto") -> Estimate:
    """Read the configuration in a folder and lay the model out without memory.

    ``ModelNotSupported`` has the reason if it is not served.
    """
    assert dtype in DTYPES
    config = load_config(folder)
    text = language_model_config(config)
    dtype_chosen = dtype_of if quantization_config(config) is None else dequantized_dtype
    model = model_on_meta(config, dtype_chosen(config, dtype))
    scheme = scheme_of(config)
    return Estimate(
        model_type=config.model_type,
        parameters=sum(parameter.numel() for parameter in model.transformer.parameters()),
        dtype=str(model.dtype).removeprefix("torch."),
        weight_bytes=model.weight_bytes,
        kv_bytes_per_token=model.kv_layout.bytes_per_block(1, cache_dtype(kv_cache_dtype, model.dtype)),
        state_bytes=model.state_layout.bytes_per_slot,
        notes=() if model.stateful is None else tuple(model.stateful.notes()),
        max_model_len=max_model_len(model.config.to_dict()),
        left_out=() if text is config else other_parts(config, text),
        adapters=adapters_of(model),
        graphs=graphs_of(model),
        ranks=ranks_of(model.transformer),
        invariant=invariant_of(model),
        stored="" if scheme is None else stored(scheme, model),
        quantized_bytes=0 if scheme is not None else quantized_bytes(model),
    )


def other_parts(config: PreTrainedConfig, text: PreTrainedConfig) -> tuple[str, ...]:
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    return tuple(name for name, part in parts.items() if part is not None and part is not text)


def invariant_of(model: PagedModel) -> str:
    """As ``Estimate.invariant``, as far as it shows without weights."""
    if model.stateful is not None:
        return f"no: {RECURRENT}"
    if any(parameter.dim() == 3 for parameter in model.transformer.parameters()):
        return f"on a CPU alone, since {EXPERTS}, and if its decoder can be replaced, which shows at load"
    return "if its decoder can be replaced, which shows at load"


def stored(scheme: Scheme, model: PagedModel) -> str:
    where = (
        "dequantized when they are loaded, as the weights above are counted"
        if model.stateful is not None
        else "on a GPU those of linear layers stay in 8 bits; above they are counted as dequantized"
    )
    return f"{scheme.title} ({scheme.method}): {where}"


def quantized_bytes(model: PagedModel) -> int:
    """As ``Estimate.quantized_bytes``. The model is a quantized one from then on."""
    try:
        quantize_layers(model.transformer, "fp8", META)
    except InvalidRequest:
        return 0
    return sum(tensor.nbytes for tensor in (*model.transformer.parameters(), *model.transformer.buffers()))


def adapters_of(model: PagedModel) -> str:
    if model.stateful is not None:
        return "none: it has recurrent layers, which run a step in parts"
    beside = sum(len(parts) for parts in projections_of(model.transformer).values())
    return f"--lora NAME=FOLDER, beside {beside} of its layers" if beside else "none: no layer of it is known"


def graphs_of(model: PagedModel) -> str:
    if model.asks_host:
        return f"none: {model.asks_host}"
    return (
        "of every step"
        if model.stateful is None
        else "of steps that decode; those with prompts run as they are"
    )


def ranks_of(transformer: PreTrainedModel) -> str:
    """By its heads; the widths of its layers show when it is divided."""
    try:
        tp_plan_of(transformer)
    except ModelNotSupported as refused:
        return f"none: {str(refused).partition('is not supported: ')[2]}"
    sizes = [str(size) for size in RANKS if heads_divide(transformer, size)]
    return f"--tensor-parallel-size {', '.join(sizes)}" if sizes else "none: its heads cannot be divided"


def heads_divide(transformer: PreTrainedModel, size: int) -> bool:
    try:
        check_heads(transformer, size)
    except InvalidRequest:
        return False
    return True
