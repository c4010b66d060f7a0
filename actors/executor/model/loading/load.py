"""Load the weights of a model, or make them up; refuse what would run and be wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from .....protocol.errors import InvalidRequest, ModelNotSupported
from ....checkpoint import open_checkpoint
from ...attention import backend as attention
from ...attention.transformers_hook import IMPLEMENTATION
from .. import support
from ..adapters.limits import AdapterLimits
from ..comparison import compared
from ..findings import DecoderFindings
from ..fused.fuse import fuse
from ..invariant.apply import make_invariant, prove_invariant
from ..paged_model import PagedModel
from ..quantization.linear import check_products, quantize_layers
from ..quantization.products import multiplied_by
from ..quantization.scheme import scheme_of, unquantized
from .files import check_numbers, open_files
from .language_model import dtype_of, language_model_config
from .weights import FROM_FOLDER, read_quantized, read_weights

DTYPES = ("auto", "float32", "bfloat16", "float16")
META = torch.device("meta")
"""Where tensors have a shape and no memory."""

WITHOUT_MEMORY = "batched_mm"
"""How experts are computed there: grouped products ask for bfloat16 first of all, and others for their shares."""


Around = Callable[[PagedModel], AbstractContextManager[None]]
"""Makes the context in which a model of transformers becomes the one that is served. `KeptWeights.keeping` is one: it
moves the weights to the keeper at its end."""


def nothing_around(model: PagedModel) -> AbstractContextManager[None]:
    return nullcontext()


def load_model(
    path_or_name: str,
    *,
    device: torch.device,
    dtype: str = "auto",
    attention_backend: str = "torch",
    quantization: str | None = None,
    batch_invariant: bool = False,
    adapter_limits: AdapterLimits | None = None,
    around: Around = nothing_around,
) -> PagedModel:
    """Load the weights of a folder, or of a model on the Hugging Face Hub.

    Weights come from safetensors files alone, and no code of the model's folder runs. InvalidRequest when there
    is no such model, ModelNotSupported when there is one that cannot be served. The decoder
    is replaced by one of few kernels where ``fuse`` can. ``quantization`` is what the layers' weights become.
    ``batch_invariant`` as in ``make_invariant``, ``adapter_limits`` as in ``PagedModel``.
    """
    if dtype not in DTYPES:
        raise InvalidRequest(f"dtype {dtype!r} is unknown: use one of {', '.join(DTYPES)}")
    backend = attention.create(attention_backend)
    transformer, weights_format = read_or_quantized(path_or_name, dtype, quantization, device)
    model = PagedModel(transformer.to(device), backend)  # type: ignore[arg-type]
    model.weights_format, model.adapter_limits = weights_format, adapter_limits
    with around(model):
        finish(model, batch_invariant)
    return model


def read_or_quantized(
    path_or_name: str, dtype: str, quantization: str | None, device: torch.device
) -> tuple[PreTrainedModel, str]:
    """As ``load_transformer``, for a device; its layers quantized if that is asked for."""
    transformer, weights_format = load_transformer(path_or_name, dtype, keep=multiplied_by(device))
    if quantization is None:
        return transformer, weights_format
    if weights_format:
        raise InvalidRequest(
            f"quantization={quantization!r}: this model is quantized already ({weights_format}); leave out"
            " --quantization"
        )
    return transformer, quantize_layers(transformer, quantization, device)


def finish(model: PagedModel, batch_invariant: bool) -> None:
    """Make sure that a model computes what it should, and fuse it where that is possible; ModelNotSupported if not."""
    with torch.inference_mode():
        check_products(model.transformer, model.dtype)
    with compared(model):
        replace(model, batch_invariant)
    if batch_invariant:
        prove_invariant(model)


def replace(
    model: PagedModel,
    batch_invariant: bool = False,
    *,
    checked: bool = False,
    findings: DecoderFindings | None = None,
) -> None:
    """The same model in fewer kernels, and if asked for in those whose sums have a fixed order; ``checked`` and
    ``findings`` as in ``fuse``."""
    fuse(model, checked=checked, findings=findings)
    if batch_invariant:
        make_invariant(model)
    elif model.device.type == "cuda":
        from ..products.few_rows import begin_products_early  # triton comes with torch where there is a GPU

        begin_products_early(model.transformer, checked=checked)


def load_transformer(
    path_or_name: str, dtype: str, *, keep: Sequence[torch.dtype] = ()
) -> tuple[PreTrainedModel, str]:
    """The model as transformers has it, in the memory of the host, and what one should know of its weights.

    ``keep`` as in ``read_quantized``; errors as in ``load_model``.
    """
    checkpoint = open_checkpoint(path_or_name)
    checkpoint.check_weights()
    config = load_config(checkpoint.folder)
    support.check_config(config)
    files = open_files(checkpoint.folder)
    scheme = scheme_of(config)
    weights_format = ""
    if scheme is None:
        check_numbers(files)
        transformer, report = read_weights(config, dtype, checkpoint.folder)
    else:
        transformer, report, weights_format = read_quantized(config, dtype, files, scheme, keep=keep)
    for what in ("missing", "mismatched"):
        # transformers fills these with random numbers and goes on.
        if keys := report[f"{what}_keys"]:
            some = ", ".join(str(key) for key in sorted(keys)[:3])
            raise ModelNotSupported(
                f"the weights of {path_or_name!r} do not fit its config.json: {len(keys)} {what} ({some})"
            )
    return transformer, weights_format


def make_model(
    path_or_name: str,
    *,
    device: torch.device,
    dtype: str = "auto",
    attention_backend: str = "torch",
    quantization: str | None = None,
    batch_invariant: bool = False,
    adapter_limits: AdapterLimits | None = None,
    around: Around = nothing_around,
) -> PagedModel:
    """The model of a folder's configuration with random weights, of which the folder needs none; for measuring."""
    config = load_config(open_checkpoint(path_or_name).folder)
    model = from_config(config, device, dtype_of(config, dtype), attention_backend=attention_backend)
    if quantization is not None:
        model.weights_format = quantize_layers(model.transformer, quantization, device)
        model.measure()
    model.adapter_limits = adapter_limits
    with around(model):
        finish(model, batch_invariant)
    return model


def from_config(
    config: PreTrainedConfig,
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
    attention_backend: str = "torch",
) -> PagedModel:
    """A model of this configuration with random weights, made on the device, as transformers has it."""
    return PagedModel(random_transformer(config, device, dtype, seed), attention.create(attention_backend))


def random_transformer(
    config: PreTrainedConfig, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> PreTrainedModel:
    """The model of transformers, with random weights."""
    support.check_config(config)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(seed)
        return support.causal_lm_class(config)._from_config(
            unquantized(language_model_config(config)), dtype=dtype, attn_implementation=IMPLEMENTATION
        )


class Skeleton(NamedTuple):
    """A model of transformers without memory, and the configuration that it was made of."""

    transformer: PreTrainedModel
    config: PreTrainedConfig


def skeleton_of(config: PreTrainedConfig, dtype: torch.dtype) -> Skeleton:
    """The model of a configuration, without memory."""
    text: Any = language_model_config(config)
    own = text._experts_implementation
    text._experts_implementation = WITHOUT_MEMORY
    try:
        transformer: Any = random_transformer(config, META, dtype)
    finally:
        text._experts_implementation = own
    return Skeleton(transformer, config)


def model_on_meta(config: PreTrainedConfig, dtype: torch.dtype) -> PagedModel:
    """A model of this configuration without memory: its layers show what they are, and compute nothing."""
    text: Any = language_model_config(config)
    own, transformer = text._experts_implementation, skeleton_of(config, dtype).transformer
    transformer.config._experts_implementation = WITHOUT_MEMORY  # it is run once, to see what attends
    try:
        model = PagedModel(transformer, attention.create("torch"))
    finally:
        text._experts_implementation = own
    use_own_experts(model.transformer, config)
    return model


def use_own_experts(transformer: Any, config: PreTrainedConfig) -> None:
    """Let a skeleton that has memory now compute its experts as its configuration says."""
    own = language_model_config(config)._experts_implementation
    transformer.config._experts_implementation = transformer.get_correct_experts_implementation(own)


def load_config(folder: Path) -> PreTrainedConfig:
    """The configuration as transformers reads it, which knows the defaults; ModelNotSupported when it cannot."""
    try:
        return without_padding(AutoConfig.from_pretrained(folder, **FROM_FOLDER))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, StrictDataclassError) as error:
        raise ModelNotSupported(
            f"model {str(folder)!r}: transformers {version('transformers')} cannot read its configuration, "
            f"and code from a model's folder is never run: {error}"
        ) from error


def without_padding(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration without a token for padding that the vocabulary has not: torch makes no embedding with it, and
    nothing is padded here."""
    for part in (config, config.get_text_config()):
        size, token = getattr(part, "vocab_size", None), getattr(part, "pad_token_id", None)
        if isinstance(size, int) and isinstance(token, int) and not -size <= token < size:
            part.pad_token_id = None
    return config
