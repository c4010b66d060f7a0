"""Read the weights of a folder into a model of transformers, those that are quantized too."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from .....protocol.errors import ModelNotSupported
from ...attention.transformers_hook import IMPLEMENTATION
from .. import support
from ..quantization.checkpoint import Dequantized, StoredWeight, plain_tensors, stored_weights
from ..quantization.linear import layer_of
from ..quantization.scheme import Scheme, unquantized
from ..quantization.weight import QuantizedWeight
from .language_model import LANGUAGE_MODEL_KEYS, dtype_of, language_model_config

IN_8_BITS = "each in 8 bits: they take twice the memory of the files, and a step as much longer to read them"

FROM_FOLDER: Any = {"local_files_only": True, "trust_remote_code": False}
"""How transformers reads a folder: nothing is fetched, and no code in it runs."""


def read_weights(
    config: PreTrainedConfig, dtype: str, folder: Path | None, **given: Any
) -> tuple[Any, dict[str, Any]]:
    """The language model of a folder, a `PreTrainedModel`, and what transformers says of its weights.

    Without a folder the weights are ``given``, as transformers takes them.
    """
    text = language_model_config(config)
    # It would list every weight that is not read, a line each; those that are missing are our error. (It looks at the
    # level of its logger to decide whether to list what no rank divides, too.)
    report = logging.getLogger("transformers.modeling_utils")
    report.addFilter(only_errors)
    try:
        return support.causal_lm_class(config).from_pretrained(  # type: ignore[return-value]
            folder,
            config=unquantized(text),
            key_mapping=None if text is config else LANGUAGE_MODEL_KEYS,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation=IMPLEMENTATION,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are among what it says then, and an error of ours
            **FROM_FOLDER,
            **given,
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        where = f"of {str(folder)!r} " if folder else ""
        raise ModelNotSupported(f"the weights {where}cannot be loaded: {error}") from error
    except (AttributeError, LookupError, TypeError) as error:  # of a value that no model of the type has
        said = f"{type(error).__name__}: {error}"
        raise ModelNotSupported(f"transformers makes no model of this configuration: {said}") from error
    finally:
        report.removeFilter(only_errors)


def only_errors(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def dequantized_dtype(config: PreTrainedConfig, dtype: str) -> torch.dtype:
    """The dtype of what quantized weights stand for: of those that state none, what they are mostly made from."""
    return dtype_of(config, dtype, torch.bfloat16)


def read_quantized(
    config: PreTrainedConfig,
    dtype: str,
    files: Mapping[str, Any],
    scheme: Scheme,
    *,
    keep: Sequence[torch.dtype],
) -> tuple[Any, dict[str, Any], str]:
    """As ``read_weights``, of quantized weights; and what one should know of them.

    Linear layers keep theirs in 8 bits if those are of a dtype of ``keep`` and there are products with such. All others
    become what they stand for.
    """
    chosen = dequantized_dtype(config, dtype)
    name = str(chosen).removeprefix("torch.")
    weights = stored_weights(files, scheme)
    as_stored = layers_that_keep(config, [weight for weight in weights if weight.kept_as in keep])
    dequantized = {weight.name: Dequantized(weight, chosen) for weight in weights}
    unread = {weight.name: Unread(weight.shape) for weight in as_stored.values()}
    tensors = plain_tensors(files, weights) | dequantized | unread
    try:
        transformer, report = read_weights(config, name, None, state_dict=tensors)
    finally:
        for each in dequantized.values():
            if each.failure is not None:
                raise each.failure
    for layer_name, weight in as_stored.items():
        layer: Any = transformer.get_submodule(layer_name)
        stored = weight.read()
        assert isinstance(stored, QuantizedWeight)
        transformer.set_submodule(layer_name, layer_of(stored, layer.bias))
    others = sum(each.was_read for each in dequantized.values())
    if not others:
        return (
            transformer,
            report,
            f"weights {scheme.title}, {'as they are stored' if scheme.bits == 8 else IN_8_BITS}",
        )
    some = f", {others} of {others + len(as_stored)}" if as_stored else ""
    times = 8 * chosen.itemsize / scheme.bits
    weights_format = (
        f"weights {scheme.title}{some}, dequantized to {name}: they take {times:.1f} times the memory of the files,"
        " and a step that much longer to read them"
    )
    return transformer, report, weights_format


class Unread:
    """Stands in for a tensor of this shape, whose numbers nobody asks for; it takes no memory."""

    def __init__(self, shape: list[int]) -> None:
        self.shape = shape

    def __getitem__(self, _: Any) -> Tensor:
        return torch.zeros(1).expand(self.shape)


def layers_that_keep(config: PreTrainedConfig, weights: list[StoredWeight]) -> dict[str, StoredWeight]:
    """The linear layers that can keep their weights in 8 bits, by their names in the model."""
    text = language_model_config(config)
    model_class = support.causal_lm_class(config)
    if support.keeps_state(text, model_class):
        return {}  # recurrent layers read their weights themselves
    with torch.device("meta"):
        skeleton: PreTrainedModel = model_class._from_config(
            unquantized(text), attn_implementation=IMPLEMENTATION
        )
    shapes = {
        name: list(module.weight.shape)
        for name, module in skeleton.named_modules()
        if type(module) is nn.Linear
    }
    found: dict[str, StoredWeight] = {}
    for weight in weights:
        name = weight.name
        for pattern, instead in () if text is config else LANGUAGE_MODEL_KEYS.items():
            name = re.sub(pattern, instead, name)
        name = name.removesuffix(".weight")
        if weight.multiplied and shapes.get(name) == weight.shape:
            found[name] = weight
    return found
