"""A causal language model of transformers, run as it is over the paged cache."""

from __future__ import annotations

import re
import socket
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub import constants
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from ....protocol.errors import InvalidRequest, ModelNotSupported
from ..attention import backend as attention
from ..cache.paged import PagedBatch
from . import gate

HUB_TIMEOUT_S = 3.0
DTYPES = ("auto", "float32", "bfloat16", "float16")
CHANGING_ROPE_TYPES = ("dynamic", "longrope")
UNBOUNDED_LENGTH = 1 << 20
"""``max_model_len`` of a model that states no limit."""


def load_model(
    path_or_name: str,
    *,
    device: torch.device,
    dtype: str = "auto",
    attention_backend: str = "torch",
) -> PagedModel:
    """Load the weights of a folder, or of a model on the Hugging Face Hub.

    Weights come from safetensors files alone, and no code of the model's folder runs. With a folder nothing
    is fetched from a network. InvalidRequest when there is no such model, ModelNotSupported when there is
    one that cannot be served.
    """
    if dtype not in DTYPES:
        raise InvalidRequest(f"dtype {dtype!r} is unknown: use one of {', '.join(DTYPES)}")
    backend = attention.create(attention_backend)
    if local := _is_folder(path_or_name):
        path_or_name = str(Path(path_or_name).expanduser())
        _check_folder(Path(path_or_name))
    where = {"local_files_only": local or not _hub_answers(), "trust_remote_code": False}
    config = _load_config(path_or_name, where)
    gate.check_config(config)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path_or_name,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation=attention.IMPLEMENTATION,
            output_loading_info=True,
            **where,
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise ModelNotSupported(f"the weights of {path_or_name!r} cannot be loaded: {error}") from error
    transformer, report = loaded
    for what in ("missing", "mismatched"):
        # transformers fills these with random numbers and goes on.
        if keys := report[f"{what}_keys"]:
            some = ", ".join(str(key) for key in sorted(keys)[:3])
            raise ModelNotSupported(
                f"the weights of {path_or_name!r} are incomplete: {len(keys)} {what} ({some})"
            )
    model = PagedModel(transformer.to(device), backend)
    gate.probe(model)
    return model


def make_model(
    path_or_name: str,
    *,
    device: torch.device,
    dtype: str = "auto",
    attention_backend: str = "torch",
) -> PagedModel:
    """The model of a folder's configuration with random weights; the folder needs none."""
    config = AutoConfig.from_pretrained(path_or_name, trust_remote_code=False)
    chosen = getattr(config, "dtype", None) if dtype == "auto" else getattr(torch, dtype)
    return from_config(config, device, chosen or torch.float32, attention_backend=attention_backend)


def from_config(
    config: PreTrainedConfig,
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
    attention_backend: str = "torch",
) -> PagedModel:
    """A model of this configuration with random weights, made on the device: for measuring."""
    gate.check_config(config)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(seed)
        transformer = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention.IMPLEMENTATION
        )
    return PagedModel(transformer, attention.create(attention_backend))


class Forward(Protocol):
    """A forward pass, as ``PagedModel.forward``."""

    def __call__(
        self, input_ids: Tensor, positions: Tensor, batch: PagedBatch, logits_index: Tensor
    ) -> Tensor: ...


class PagedModel:
    """A model whose every forward pass reads and writes the paged cache.

    ``transformer`` is the model of transformers, whose attention is `attention.transformers_attention`.
    """

    def __init__(self, transformer: PreTrainedModel, backend: attention.AttentionBackend) -> None:
        self.transformer = transformer.eval().requires_grad_(False)
        self.backend = backend
        self.config: PreTrainedConfig = transformer.config
        self.device: torch.device = transformer.device
        self.dtype: torch.dtype = transformer.dtype
        self.max_model_len = _max_model_len(self.config)
        self.eos_token_ids = _eos_token_ids(self.config, transformer.generation_config)
        tensors = (*transformer.parameters(), *transformer.buffers())
        self.weight_bytes = sum(tensor.nbytes for tensor in tensors)
        _freeze_rope(transformer)
        # Some families search every input for this token, and so wait for the device, to warn of a lost mask.
        transformer.config.pad_token_id = None
        self.layout = gate.check_attention(transformer)
        self.compiled: Forward | None = None

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def capturable(self) -> bool:
        """Whether a step whose rows all decode can be captured into a CUDA graph.

        The grouped matrix product of a mixture of experts asks the host for the size of the groups, except
        in bfloat16. Expert weights are the only parameters of three dimensions.
        """
        experts = any(parameter.dim() == 3 for parameter in self.transformer.parameters())
        return self.device.type == "cuda" and (not experts or self.dtype == torch.bfloat16)

    def compile(self, compiler: Any = None) -> None:
        """Compile the forward pass, and make sure that its logits are those from before.

        ``compiler`` is a backend of ``torch.compile``; None: inductor. ModelNotSupported when it cannot be compiled.
        """
        from torch._dynamo.exc import TorchDynamoException
        from torch._inductor.exc import InductorError

        from .compiled import CompiledForward  # brings in the compiler

        with gate.same_logits(self):
            try:
                self.compiled = CompiledForward(self.transformer, self.backend, compiler)
            except (TorchDynamoException, InductorError) as error:
                raise ModelNotSupported(
                    f"model type {self.config.model_type!r} cannot be compiled; leave out --compile: {error}"
                ) from error

    @torch.inference_mode()
    def forward(
        self, input_ids: Tensor, positions: Tensor, batch: PagedBatch, logits_index: Tensor
    ) -> Tensor:
        """Run one step: ``input_ids`` and ``positions`` int64 [T], ``logits_index`` int64 [S] into them.

        Returns logits [S, vocab] in the model's dtype. Waits for nothing on the device.
        """
        if self.compiled is not None:
            return self.compiled(input_ids, positions, batch, logits_index)
        output = self.transformer(
            input_ids=input_ids[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=logits_index,
            paged=batch,
            backend=self.backend,
        )
        return output.logits[0]


def _is_folder(path_or_name: str) -> bool:
    """Tell a folder from a name on the Hub; InvalidRequest when it can be neither."""
    if Path(path_or_name).expanduser().is_dir():
        return True
    if re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path_or_name):
        return False
    raise InvalidRequest(f"model {path_or_name!r}: there is no such folder")


def _hub_answers() -> bool:
    """Without a network the Hub's library tries again for half a minute, even for what is in its cache."""
    if getproxies():
        return True
    try:
        address = urlsplit(constants.ENDPOINT)
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), timeout=HUB_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise InvalidRequest(f"model {str(folder)!r}: the folder has no config.json")
    if any(folder.glob("*.safetensors")):
        return
    looked_for = "model.safetensors or model.safetensors.index.json"
    if pickles := sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth")):
        raise InvalidRequest(
            f"model {str(folder)!r}: the folder has no {looked_for}, and {pickles[0]} is not read, since a "
            "pickle can run any code; load it where you trust it and save it with save_pretrained"
        )
    raise InvalidRequest(f"model {str(folder)!r}: the folder has no weights; looked for {looked_for}")


def _load_config(path_or_name: str, where: dict[str, Any]) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(path_or_name, **where)
    except OSError as error:
        # A name on the Hub ends here: no such model, no access, no network.
        folder = Path(path_or_name).is_dir()
        reason = (
            "cannot be read" if folder else f"neither a folder nor a model that {constants.ENDPOINT} gives"
        )
        raise InvalidRequest(f"model {path_or_name!r}: {reason}: {error}") from error
    except (ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise ModelNotSupported(
            f"model {path_or_name!r}: transformers {version('transformers')} cannot read its configuration, "
            f"and code from a model's folder is never run: {error}"
        ) from error


def _max_model_len(config: PreTrainedConfig) -> int:
    """Positions that the model was made for, prompt and completion together."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    longest = next((limit for name in names if (limit := getattr(config, name, None))), UNBOUNDED_LENGTH)
    for rope in _rope_parameters(config):
        if rope.get("rope_type") == "longrope":
            longest = min(longest, rope.get("original_max_position_embeddings") or longest)
    return longest


def _rope_parameters(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """The rotary parameters: one set, or one for each layer type."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return nested or [parameters]


def _freeze_rope(transformer: PreTrainedModel) -> None:
    """Keep the rotary frequencies that the model starts with.

    Some types choose them anew in each forward pass, by the greatest position in it: one long request would
    change the text of all others in its step. `_max_model_len` ends where the choice would change.
    """

    def frozen(rope_type: str) -> str:
        return "default" if rope_type in CHANGING_ROPE_TYPES else rope_type

    for module in transformer.modules():
        kind: Any = getattr(module, "rope_type", None)
        if isinstance(kind, str):
            module.rope_type = frozen(kind)  # type: ignore[assignment]
        elif isinstance(kind, dict):
            module.rope_type = {layer_type: frozen(own) for layer_type, own in kind.items()}  # type: ignore[assignment]


def _eos_token_ids(config: PreTrainedConfig, generation: GenerationConfig | None) -> frozenset[int]:
    """All the tokens that end a text, from both places that may name one or several."""
    found: set[int] = set()
    for source in (config, generation):
        ids = getattr(source, "eos_token_id", None)
        found.update([ids] if isinstance(ids, int) else ids or ())
    return frozenset(found)
