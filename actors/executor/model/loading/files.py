"""Opens the files of a folder that hold a model's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .....protocol.errors import ModelNotSupported
from ....checkpoint import read_json, safetensors_in


def open_files(folder: Path) -> dict[str, Any]:
    """The files of a folder that hold each of its tensors; ModelNotSupported names one that is missing or cut short."""
    found: dict[str, Any] = {}
    for path in files_of(folder):
        try:
            file = safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise ModelNotSupported(
                f"{path} cannot be read: {error}; if it is cut short or missing, fetch it again"
            ) from None
        found |= dict.fromkeys(file.keys(), file)
    return found


def files_of(folder: Path) -> list[Path]:
    """The files with the weights of a folder: as transformers has it, the one file, or else those that the index names;
    ModelNotSupported if it is none."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        return safetensors_in(folder)
    said = read_json(index).get("weight_map")
    if not isinstance(said, dict) or not said or not all(isinstance(name, str) for name in said.values()):
        raise ModelNotSupported(f"{index} has {said!r:.80} as weight_map; expected the file of each weight")
    return [folder / name for name in sorted(set(said.values()))]


def check_numbers(files: Mapping[str, Any]) -> None:
    """ModelNotSupported for integers in a model that is not said to be quantized: they would be taken as they stand."""
    for name, file in files.items():
        stored = file.get_slice(name).get_dtype() if name.endswith(".weight") else ""
        if stored and not stored.startswith(("F", "BF")):
            raise ModelNotSupported(
                f"{name} is stored as {stored}, and config.json has no quantization_config that says what for"
            )
