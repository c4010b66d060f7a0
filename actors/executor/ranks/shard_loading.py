"""Load a rank's shard of a model, and make sure that all shards together compute what the whole does.

The comparison that every model has to pass is here between the shards and the whole model, of which nothing is divided:
all ranks compute that first, each by itself. If shards were compared with each other, some whose sums were left out
would pass. Where the whole model does not fit on one device, a short one of the same configuration with random weights
takes its place.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ...checkpoint import open_checkpoint
from ..attention import backend as attention
from ..model.adapters.limits import AdapterLimits
from ..model.comparison import compared
from ..model.loading.language_model import dtype_of, language_model_config
from ..model.loading.load import (
    Around,
    from_config,
    load_config,
    model_on_meta,
    nothing_around,
    read_or_quantized,
    replace,
)
from ..model.paged_model import PagedModel
from ..model.quantization.linear import check_products, quantize_layers
from .group import RankGroup
from .quantized import in_place_of
from .shard import shard

MAX_OF_DEVICE = 0.8
"""Share of a device's free memory that a whole model may take to be loaded and compared: the rest is for its states and
logits."""

for name in ("transformers.distributed.tensor_parallel", "transformers.integrations.tensor_parallel"):
    logging.getLogger(name).setLevel(
        logging.ERROR
    )  # they list what they would not divide, which is done here

SHORT_LAYERS = 4
"""Least number of layers of the short model; it has more if that is needed to have one of every type. Few, as they run
on each rank at every start; several, so that the input of one is the divided output of another."""


def load_shard(
    path_or_name: str,
    group: RankGroup,
    *,
    device: torch.device,
    dtype: str,
    attention_backend: str,
    quantization: str | None = None,
    adapter_limits: AdapterLimits | None = None,
    around: Around = nothing_around,
) -> PagedModel:
    """As ``load_model``, for one rank; also InvalidRequest and ModelNotSupported as in ``shard``."""
    backend = attention.create(attention_backend)
    transformer, weights_format = read_or_quantized(path_or_name, dtype, quantization, device)
    whole, divided = fits(transformer, group, device), {}
    if not whole:
        config = load_config(open_checkpoint(path_or_name).folder)
        compare_short_model(config, group, device, transformer.dtype, attention_backend)
        divided = shard(transformer, group)
    model = PagedModel(transformer.to(device), backend)  # type: ignore[arg-type]
    model.group, model.divided, model.weights_format, model.adapter_limits = (
        group,
        divided,
        weights_format,
        adapter_limits,
    )
    if whole:
        divide(model, group, around)
    else:
        with around(model):
            replace(model)
    with torch.inference_mode():
        check_products(model.transformer, model.dtype)
    return model


def make_shard(
    path_or_name: str,
    group: RankGroup,
    *,
    device: torch.device,
    dtype: str,
    attention_backend: str,
    quantization: str | None = None,
    adapter_limits: AdapterLimits | None = None,
    around: Around = nothing_around,
) -> PagedModel:
    """As ``make_model``, for one rank: no device holds the whole at any time."""
    config = load_config(open_checkpoint(path_or_name).folder)
    chosen = dtype_of(config, dtype)
    compare_short_model(config, group, device, chosen, attention_backend)
    planned = model_on_meta(config, chosen)
    if planned.stateful is not None:
        planned.stateful.undo()  # its modules become those of another model
    transformer = planned.transformer
    divided = shard(transformer, group)
    fill(transformer, device)
    weights_format = ""
    if quantization is not None:
        weights_format = quantize_layers(transformer, quantization, device, in_place_of)
    model = PagedModel(transformer, attention.create(attention_backend))
    model.group, model.divided, model.weights_format, model.adapter_limits = (
        group,
        divided,
        weights_format,
        adapter_limits,
    )
    with around(model):
        replace(model)
    with torch.inference_mode():
        check_products(model.transformer, model.dtype)
    return model


def fill(transformer: PreTrainedModel, device: torch.device) -> None:
    """Give a model without memory random weights on the device; what each rank has as a whole is the same on all."""
    transformer.to_empty(device=device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(0)
        transformer.initialize_weights()


def divide(model: PagedModel, group: RankGroup, around: Around = nothing_around) -> None:
    """Leave of a whole model a rank's shard, fused where it can be; ModelNotSupported if it computes anything else."""
    model.group = group
    with compared(model):
        model.divided = shard(model.transformer, group)
        if model.device.type == "cuda":
            torch.cuda.empty_cache()  # of the whole weights
        model.measure()
        with around(model):
            replace(model)


def fits(transformer: PreTrainedModel, group: RankGroup, device: torch.device) -> bool:
    """Whether every rank's device has room for what it lacks of the whole model."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    weights = sum(parameter.nbytes for parameter in transformer.parameters() if not parameter.is_cuda)
    return bool(group.least(int(weights <= MAX_OF_DEVICE * free), device))


def compare_short_model(
    config: PreTrainedConfig,
    group: RankGroup,
    device: torch.device,
    dtype: torch.dtype,
    attention_backend: str,
) -> None:
    """Divide a model of the first layers with random weights, and forget it again."""
    short = shortened(config)
    divide(from_config(short, device, dtype, attention_backend=attention_backend), group)
    if device.type == "cuda":
        torch.cuda.empty_cache()


def shortened(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration with fewer layers, which are of as many types."""
    short = copy.deepcopy(config)
    text: Any = language_model_config(short)
    layers = text.num_hidden_layers
    types = list(getattr(text, "layer_types", None) or [""] * layers)
    count = min(layers, max(SHORT_LAYERS, *(1 + types.index(kind) for kind in set(types))))
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == layers:
            setattr(text, name, value[:count])
    text.num_hidden_layers = count
    return short
