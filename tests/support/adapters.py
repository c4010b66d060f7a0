"""Adapters with random weights, as peft saves them, and the checkpoint that one of them stands for.

The sum is made here by the formula of the paper (Hu and others, 2021) and of rsLoRA (Kalajdzievski, 2023): beside a
weight W stand B and A, and ``W + scaling * B A`` is what the layer computes with.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

EVERY_PROJECTION = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PREFIX = "base_model.model."


def make_adapter(
    base: Path,
    folder: Path,
    *,
    seed: int,
    rank: int = 4,
    targets: tuple[str, ...] = EVERY_PROJECTION,
    strength: float = 0.5,
    **config: Any,
) -> Path:
    """An adapter for the checkpoint ``base``; ``config`` changes what its configuration says."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, weight in load_file(base / "model.safetensors").items():
        layer = name.removesuffix(".weight")
        if layer.rpartition(".")[2] in targets:
            outputs, inputs = weight.shape
            own = config.get("rank_pattern", {}).get(layer.rpartition(".")[2], rank)
            tensors[f"{PREFIX}{layer}.lora_A.weight"] = (
                torch.randn(own, inputs, generator=generator) / inputs**0.5
            )
            tensors[f"{PREFIX}{layer}.lora_B.weight"] = strength * torch.randn(
                outputs, own, generator=generator
            )
    write_adapter(folder, tensors, config_of(base, rank, targets) | config)
    return folder


def config_of(base: Path, rank: int, targets: tuple[str, ...]) -> dict[str, Any]:
    """What peft 0.18 writes, as far as it says something."""
    return {
        "peft_type": "LORA",
        "auto_mapping": None,
        "base_model_name_or_path": str(base),
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.05,
        "target_modules": list(targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "loftq_config": {},
    }


def write_adapter(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def merge(base: Path, adapter: Path, folder: Path) -> Path:
    """The checkpoint ``base`` with the adapter's weights added to its own."""
    shutil.copytree(base, folder)
    config = json.loads((adapter / "adapter_config.json").read_text())
    weights = load_file(base / "model.safetensors")
    stored = load_file(adapter / "adapter_model.safetensors")
    for name, a in stored.items():
        if name.endswith(".lora_A.weight"):
            b = stored[name.replace("lora_A", "lora_B")]
            rank = len(a)
            end = name.removesuffix(".lora_A.weight").rpartition(".")[2]
            alpha = config["alpha_pattern"].get(end, config["lora_alpha"])
            scaling = alpha / (rank**0.5 if config["use_rslora"] else rank)
            layer = name.removeprefix(PREFIX).replace("lora_A.weight", "weight")
            weights[layer] = weights[layer] + scaling * (b @ a)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder
