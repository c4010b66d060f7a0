"""Load the weights of a model, or make them up; refuse what would run and be wrong."""

from __future__ import annotations

import re
import socket
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub import constants
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from ....protocol.errors import InvalidRequest, ModelNotSupported
from ..attention import backend as attention
from . import gate
from .paged_model import PagedModel
from .probe import probed

HUB_TIMEOUT_S = 3.0
DTYPES = ("auto", "float32", "bfloat16", "float16")


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
    with probed(model):
        pass
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
