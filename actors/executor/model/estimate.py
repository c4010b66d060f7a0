"""What a model is and how much memory it takes, from its configuration alone: no weight is fetched or made."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...checkpoint import open_checkpoint
from .language_model import language_model_config
from .load import DTYPES, from_config, load_config

META = torch.device("meta")
"""Where tensors have a shape and no memory."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """The memory of a model."""

    model_type: str
    parameters: int
    dtype: str
    """Of weights and cache."""
    weight_bytes: int
    kv_bytes_per_token: int
    """Keys and values of one token, in all layers."""
    max_model_len: int
    """What the model itself is made for."""

    def cache_bytes(self, tokens: int, block_size: int) -> int:
        """The cache of one request of ``tokens`` tokens, which takes whole blocks."""
        return -(-tokens // block_size) * block_size * self.kv_bytes_per_token


def estimate(path_or_name: str, dtype: str = "auto") -> Estimate:
    """Read the configuration of a folder or of a model on the Hub, and lay the model out without memory.

    ``ModelNotSupported`` has the reason if it is not served; ``InvalidRequest`` if there is no such model.
    """
    assert dtype in DTYPES
    config = load_config(open_checkpoint(path_or_name, ["config.json"]).folder)
    own = getattr(language_model_config(config), "dtype", None) or torch.float32
    model = from_config(config, META, own if dtype == "auto" else getattr(torch, dtype))
    return Estimate(
        model_type=config.model_type,
        parameters=sum(parameter.numel() for parameter in model.transformer.parameters()),
        dtype=str(model.dtype).removeprefix("torch."),
        weight_bytes=model.weight_bytes,
        kv_bytes_per_token=model.layout.bytes_per_block(1, model.dtype),
        max_model_len=model.max_model_len,
    )
