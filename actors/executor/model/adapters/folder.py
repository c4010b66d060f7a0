"""A folder with an adapter as peft writes it: what its files say, and whether that can be computed here.

peft (Hugging Face's library for such training) stores LoRA, "low rank adaptation": beside a weight W of a layer are two
small ones, A [rank, in] and B [out, rank], and the layer computes ``W x + scaling * B A x``. ``scaling`` is
``lora_alpha / rank``, or with ``use_rslora`` ``lora_alpha / sqrt(rank)``.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .....protocol.errors import InvalidRequest, brief

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"

MAX_CONFIG_BYTES = 16 << 20
"""Most bytes of a configuration, which is read as a whole: a thousand times what peft writes."""

UNREADABLE = (OSError, SafetensorError, RuntimeError, MemoryError)
"""What reading weights raises; the third is torch's, where a file is larger than what can be mapped."""

DTYPES = frozenset(
    (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2)
)

PREFIX = "base_model.model."
"""What peft puts before the names of the model's layers."""

WEIGHT = re.compile(r"(?P<layer>.+)\.lora_(?P<half>[AB])(\.default)?\.weight")

PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Values of ``init_lora_weights`` that leave the model's own weights as they are."""

TRAINING_KEYS = frozenset(
    (
        *(
            "auto_mapping",
            "base_model_name_or_path",
            "revision",
            "task_type",
            "inference_mode",
            "peft_version",
        ),
        *("lora_dropout", "layers_to_transform", "layers_pattern", "target_modules", "exclude_modules"),
        *("fan_in_fan_out", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config"),
        *("megatron_config", "megatron_core", "qalora_group_size", "ensure_weight_tying"),
    )
)
"""Fields of a configuration that say how the adapter came to be. What it computes shows in its weights."""

READ = frozenset(
    ("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights")
)

UNSUPPORTED = {
    "use_dora": "DoRA, which divides each weight by its length",
    "modules_to_save": "whole layers that were trained beside the adapter",
    "trainable_token_indices": "embeddings of tokens that were trained beside the adapter",
    "target_parameters": "adapters of parameters that are no layers, such as stacked experts",
    "layer_replication": "layers that are there several times",
    "lora_bias": "biases of adapters",
    "alora_invocation_tokens": "an adapter that begins at certain tokens",
    "use_qalora": "QALoRA, which pools what goes in",
}
"""Fields with which an adapter computes what is not computed here, and what that is."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The two weights beside one layer, in their file."""

    a: str
    """The name of A [rank, in]."""
    b: str
    """The name of B [out, rank]."""
    scaling: float


class AdapterFolder:
    """The files of one adapter, open to be read."""

    def __init__(self, path: str) -> None:
        """InvalidRequest when there is no adapter, or one that is not computed here; it says why."""
        self.path = path
        self.config = read_config(Path(path))
        self.check_config()
        self.file = open_weights(Path(path))
        self.pairs = self.find_pairs(list(self.file.keys()))
        """By the name of the layer in the model."""

    @property
    def base(self) -> str:
        """The model that it was trained for, as its configuration has it."""
        return str(self.config.get("base_model_name_or_path") or "a model that it does not name")

    @property
    def targets(self) -> list[str]:
        """The ends of the names of the layers that it was trained for; empty where that is said in another way."""
        targets = self.config.get("target_modules")
        return [str(target) for target in targets] if isinstance(targets, list) else []

    def check_config(self) -> None:
        config = self.config
        if config.get("peft_type") != "LORA":
            raise InvalidRequest(f"it is of the type {brief(config.get('peft_type'))}; LORA is served")
        for field, what in UNSUPPORTED.items():
            if config.get(field):
                raise InvalidRequest(
                    f"its {CONFIG} has {field}={brief(config[field])}: {what}; not served here"
                )
        if config.get("bias", "none") != "none":
            raise InvalidRequest(
                f"its {CONFIG} has bias={brief(config['bias'])}: biases that were trained with it; not served here"
            )
        start = config.get("init_lora_weights")
        if start not in PLAIN_STARTS:
            raise InvalidRequest(
                f"its {CONFIG} has init_lora_weights={brief(start)}, which changes the model's own weights too;"
                " save it with path_initial_model_for_weight_conversion"
            )
        known = TRAINING_KEYS | READ | UNSUPPORTED.keys() | {"bias"}
        for field, value in config.items():
            if field not in known and value not in (None, False, [], {}):
                raise InvalidRequest(
                    f"its {CONFIG} has {field}={brief(value)}, and that field is not known here"
                )
        number("r", config.get("r"))
        number("lora_alpha", config.get("lora_alpha"))

    def find_pairs(self, names: list[str]) -> dict[str, Pair]:
        halves: dict[str, dict[str, str]] = {}
        for name in names:
            found = WEIGHT.fullmatch(name.removeprefix(PREFIX))
            if found is None:
                raise InvalidRequest(f"{WEIGHTS} has {name!r:.200}: {meaning(name)}; not served here")
            halves.setdefault(found["layer"], {})[found["half"]] = name
        if not halves:
            raise InvalidRequest(f"{WEIGHTS} has no weights of an adapter")
        for layer, given in halves.items():
            for half in "AB":
                if half not in given:
                    raise InvalidRequest(f"{WEIGHTS} has no lora_{half} of {layer!r:.200}; it is incomplete")
        return {
            layer: Pair(given["A"], given["B"], self.scaling(layer, self.shape(given["A"])[0]))
            for layer, given in halves.items()
        }

    def scaling(self, layer: str, rank: int) -> float:
        """The factor of a layer whose A has ``rank`` rows, which has to be what the configuration says."""
        config = self.config
        ranks, alphas = config.get("rank_pattern"), config.get("alpha_pattern")
        stated = number("rank_pattern", of_layer("rank_pattern", ranks, layer, config["r"]))
        alpha = number("alpha_pattern", of_layer("alpha_pattern", alphas, layer, config["lora_alpha"]))
        if rank != stated:
            raise InvalidRequest(f"lora_A of {layer!r:.200} has rank {rank}, and its {CONFIG} says {stated}")
        try:
            return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        except OverflowError:  # of a whole number that no float can be
            raise InvalidRequest(f"its {CONFIG} has {brief(alpha)} as the alpha of {layer!r:.200}") from None

    def shape(self, name: str) -> list[int]:
        """InvalidRequest where a weight is no matrix."""
        shape = list(self.file.get_slice(name).get_shape())
        if len(shape) != 2 or 0 in shape:
            raise InvalidRequest(f"{name!r:.200} is of the shape {shape}; two dimensions are expected")
        return shape

    def read(self, name: str) -> Tensor:
        """InvalidRequest where it has numbers that are none."""
        try:
            tensor = self.file.get_tensor(name)
        except UNREADABLE as error:
            raise InvalidRequest(f"{name!r:.200} cannot be read: {error}") from None
        if tensor.dtype not in DTYPES:
            raise InvalidRequest(
                f"{name!r:.200} is stored as {tensor.dtype}; floating point numbers are read"
            )
        tensor = tensor.float() if tensor.itemsize == 1 else tensor
        if not bool(tensor.isfinite().all()):
            raise InvalidRequest(f"{name!r:.200} has numbers that are not finite")
        return tensor


def read_config(folder: Path) -> Mapping[str, Any]:
    if not folder.is_dir():
        raise InvalidRequest("there is no such folder")
    try:
        size = regular_size(folder / CONFIG)
        if size > MAX_CONFIG_BYTES:
            raise InvalidRequest(f"its {CONFIG} has {size} bytes; the limit is {MAX_CONFIG_BYTES}")
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidRequest(f"the folder has no {CONFIG}; is it an adapter as peft saves it?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"its {CONFIG} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise InvalidRequest(f"its {CONFIG} holds a {type(config).__name__}, and no fields")
    return config


def open_weights(folder: Path) -> Any:
    if not (folder / WEIGHTS).exists():
        if (folder / PICKLE).exists():
            raise InvalidRequest(
                f"the folder has {PICKLE} and no {WEIGHTS}; a pickle can run any code and is not read: load it where"
                " you trust it and save it with save_pretrained"
            )
        raise InvalidRequest(f"the folder has no {WEIGHTS}")
    try:
        regular_size(folder / WEIGHTS)
        return safe_open(folder / WEIGHTS, framework="pt")
    except UNREADABLE as error:
        raise InvalidRequest(
            f"its {WEIGHTS} cannot be read: {error}; if it is cut short, copy it again"
        ) from None


def regular_size(file: Path) -> int:
    """Bytes of a file; OSError if it is none. Whoever opens a pipe waits until somebody writes to it."""
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is a device, a pipe or a folder, and no file")
    return found.st_size


def meaning(name: str) -> str:
    """Describes a tensor that belongs to no pair of A and B."""
    if "lora_embedding" in name:
        return "an adapter of embeddings"
    if "lora_magnitude_vector" in name:
        return "DoRA"
    if ".lora_" in name:
        return "a part of an adapter that is not known"
    return "a weight of the model itself that was trained beside the adapter"


def of_layer(field: str, pattern: Any, layer: str, otherwise: Any) -> Any:
    """The value that ``pattern``, by names of layers or the ends of names, gives for ``layer``."""
    if pattern is not None and not isinstance(pattern, dict):
        raise InvalidRequest(f"its {CONFIG} has {field}={brief(pattern)}; values by layers are expected")
    for end, value in (pattern or {}).items():
        whole = end.removeprefix("^")
        if not re.fullmatch(r"[\w.]+", whole):
            raise InvalidRequest(f"its {CONFIG} has {brief(end)} in {field}; names of layers are read")
        if layer == whole or (whole == end and layer.endswith(f".{end}")):
            return value
    return otherwise


def number(field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InvalidRequest(f"its {CONFIG} has {field}={brief(value)}; a number above 0 is expected")
    return value
