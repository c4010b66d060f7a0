"""Load the weights of a model, or make them up; refuse what would run and be wrong."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from ....protocol.errors import InvalidRequest, ModelNotSupported
from ...checkpoint import open_checkpoint
from ..attention import backend as attention
from ..attention.transformers_hook import IMPLEMENTATION
from . import gate
from .fuse import fuse
from .language_model import LANGUAGE_MODEL_KEYS, language_model_config
from .paged_model import PagedModel
from .probe import probed
from .quantization.checkpoint import dequantized_tensors, open_shards, stored_weights
from .quantization.scheme import Scheme, scheme_of, unquantized

DTYPES = ("auto", "float32", "bfloat16", "float16")
FROM_FOLDER: Any = {"local_files_only": True, "trust_remote_code": False}
"""How transformers reads a folder: nothing is fetched, and no code in it runs."""


def load_model(
    path_or_name: str,
    *,
    device: torch.device,
    dtype: str = "auto",
    attention_backend: str = "torch",
) -> PagedModel:
    """Load the weights of a folder, or of a model on the Hugging Face Hub.

    Weights come from safetensors files alone, and no code of the model's folder runs. InvalidRequest when there
    is no such model, ModelNotSupported when there is one that cannot be served. The decoder
    is replaced by one of few kernels where ``fuse`` can.
    """
    if dtype not in DTYPES:
        raise InvalidRequest(f"dtype {dtype!r} is unknown: use one of {', '.join(DTYPES)}")
    backend = attention.create(attention_backend)
    transformer, told = load_transformer(path_or_name, dtype)
    model = PagedModel(transformer.to(device), backend)  # type: ignore[arg-type]
    model.weights_told = told
    with probed(model):
        fuse(model)
    return model


def load_transformer(path_or_name: str, dtype: str) -> tuple[PreTrainedModel, str]:
    """The model as transformers has it, in the memory of the host, and what one should know of its weights.

    Errors as of ``load_model``.
    """
    checkpoint = open_checkpoint(path_or_name)
    checkpoint.check_weights()
    config = load_config(checkpoint.folder)
    gate.check_config(config)
    shards = open_shards(checkpoint.folder)
    scheme = scheme_of(config)
    told = ""
    if scheme is None:
        transformer, report = read_weights(config, dtype, checkpoint.folder)
    else:
        transformer, report, told = read_quantized(config, dtype, shards, scheme)
    for what in ("missing", "mismatched"):
        # transformers fills these with random numbers and goes on.
        if keys := report[f"{what}_keys"]:
            some = ", ".join(str(key) for key in sorted(keys)[:3])
            raise ModelNotSupported(
                f"the weights of {path_or_name!r} do not fit its config.json: {len(keys)} {what} ({some})"
            )
    return transformer, told


def read_quantized(
    config: PreTrainedConfig, dtype: str, shards: Mapping[str, Any], scheme: Scheme
) -> tuple[Any, dict[str, Any], str]:
    """As ``read_weights``, with every quantized weight as what it stands for; and what one should know of that."""
    text, failures = language_model_config(config), list[Exception]()
    own = getattr(text, "dtype", None) or torch.bfloat16
    chosen = own if dtype == "auto" else getattr(torch, dtype)
    weights = stored_weights(shards, scheme)
    tensors = dequantized_tensors(shards, weights, chosen, failures)
    try:
        transformer, report = read_weights(
            config, str(chosen).removeprefix("torch."), None, state_dict=tensors
        )
    except RuntimeError as error:
        raise (failures or [error])[0] from None
    if failures:
        raise failures[0]
    times = 8 * chosen.itemsize / scheme.bits
    told = (
        f"weights {scheme.title}, dequantized to {str(chosen).removeprefix('torch.')}: they take {times:.1f} times the"
        " memory of the files, and a step that much longer to read them"
    )
    return transformer, report, told


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
        return gate.causal_lm_class(config).from_pretrained(  # type: ignore[return-value]
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
    finally:
        report.removeFilter(only_errors)


def only_errors(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def make_model(
    path_or_name: str,
    *,
    device: torch.device,
    dtype: str = "auto",
    attention_backend: str = "torch",
) -> PagedModel:
    """The model of a folder's configuration with random weights, of which the folder needs none; for measuring."""
    config = load_config(open_checkpoint(path_or_name).folder)
    chosen = (
        getattr(language_model_config(config), "dtype", None) if dtype == "auto" else getattr(torch, dtype)
    )
    model = from_config(config, device, chosen or torch.float32, attention_backend=attention_backend)
    with probed(model):
        fuse(model)
    return model


def from_config(
    config: PreTrainedConfig,
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
    attention_backend: str = "torch",
) -> PagedModel:
    """A model of this configuration with random weights, made on the device, as transformers has it."""
    gate.check_config(config)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(seed)
        transformer = gate.causal_lm_class(config)._from_config(
            unquantized(language_model_config(config)), dtype=dtype, attn_implementation=IMPLEMENTATION
        )
    return PagedModel(transformer, attention.create(attention_backend))


def load_config(folder: Path) -> PreTrainedConfig:
    """The configuration as transformers reads it, which knows the defaults; ModelNotSupported when it cannot."""
    try:
        return AutoConfig.from_pretrained(folder, **FROM_FOLDER)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise ModelNotSupported(
            f"model {str(folder)!r}: transformers {version('transformers')} cannot read its configuration, "
            f"and code from a model's folder is never run: {error}"
        ) from error
