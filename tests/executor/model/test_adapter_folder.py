"""A folder that is no adapter of this model is refused with the reason, and nothing of what is loaded changes."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import PREFIX, change_config, make_adapter, write_adapter
from safetensors.torch import load_file, save_file
from slipstream.actors.executor.model.adapters.adapters import Adapters
from slipstream.actors.executor.model.adapters.loaded import LoadedAdapters
from slipstream.actors.executor.model.loading.load import load_model
from slipstream.protocol.errors import InvalidRequest
from slipstream.protocol.internal import Adapter
from tiny_models import make_checkpoint
from torch import Tensor

WEIGHTS = "adapter_model.safetensors"
Q = f"{PREFIX}model.layers.0.self_attn.q_proj"

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedAdapters:
    """With one in the first of two places."""
    model = load_model(str(base), device=torch.device("cpu"))
    made = LoadedAdapters(model.take_adapters(2, max_rank=8))
    load(made, 1, make_adapter(base, tmp_path_factory.mktemp("first"), seed=1))
    return made


def load(adapters: LoadedAdapters, id: int, folder: Path) -> None:
    for _ in adapters.load(Adapter(id, folder.name, str(folder))):
        pass


def weights(adapters: LoadedAdapters, id: int) -> list[Tensor]:
    assert isinstance(adapters.weights, Adapters)
    return [stack.down[id - 1].clone() for stack in adapters.weights.stacks]


def with_tensors(**changed: Tensor | None) -> Callable[[Path], None]:
    """Tensors by the ends of their names; None takes one away."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        for name, tensor in changed.items():
            tensors.pop(name, None)
            if tensor is not None:
                tensors[name] = tensor
        save_file(tensors, folder / WEIGHTS)

    return change


def with_config(**fields: Any) -> Callable[[Path], None]:
    return lambda folder: change_config(folder, **fields)


def cut_short(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({}))


def without_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def with_pipe(name: str) -> Callable[[Path], None]:
    """Whoever opens it waits for ever."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def with_size(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, size)


def larger_than_memory(folder: Path) -> None:
    """A file of 200 GB as its header has it, which takes no room on the disk."""
    size = 200_000_000_000
    about = {"dtype": "F32", "shape": [4, size // 16], "data_offsets": [0, size]}
    header = json.dumps({f"{Q}.lora_A.weight": about, f"{Q}.lora_B.weight": about}).encode()
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(folder / WEIGHTS, 8 + len(header) + size)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pickle": (pickled, "adapter_model.bin and no adapter_model.safetensors; a pickle can run any code"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "the folder has no adapter_model.safetensors"),
    "cut short": (cut_short, "adapter_model.safetensors cannot be read"),
    "no configuration": (without_config, "the folder has no adapter_config.json"),
    "no JSON": (lambda folder: (folder / "adapter_config.json").write_text("{"), "cannot be read: "),
    "weights that are a pipe": (with_pipe(WEIGHTS), "cannot be read: it is a device, a pipe or a folder"),
    "a configuration that is a pipe": (
        with_pipe("adapter_config.json"),
        "cannot be read: it is a device, a pipe",
    ),
    "a long configuration": (with_size("adapter_config.json", 1 << 30), "has 1073741824 bytes; the limit is"),
    "weights larger than memory": (larger_than_memory, "adapter_model.safetensors"),
    "no fields": (lambda folder: (folder / "adapter_config.json").write_text("[]"), "holds a list"),
    "another type": (with_config(peft_type="LOHA"), "it is of the type 'LOHA'; LORA is served"),
    "another rank": (with_config(r=3), "has rank 4, and its adapter_config.json says 3"),
    "no rank": (with_config(r="high"), "has r='high'; a number above 0"),
    "a rank that is true": (with_config(r=True), "has r=True; a number above 0"),
    "no alpha": (with_config(lora_alpha=None), "has lora_alpha=None; a number above 0"),
    "DoRA": (with_config(use_dora=True), "use_dora=True: DoRA"),
    "DoRA's weights": (
        with_tensors(**{f"{Q}.lora_magnitude_vector": torch.ones(32)}),
        "lora_magnitude_vector': DoRA; not served here",
    ),
    "whole layers": (
        with_config(modules_to_save=["lm_head"]),
        "modules_to_save=['lm_head']: whole layers",
    ),
    "a whole layer's weights": (
        with_tensors(**{f"{PREFIX}lm_head.weight": torch.ones(4, 4)}),
        "lm_head.weight': a weight of the model itself",
    ),
    "tokens": (with_config(trainable_token_indices=[1]), "trainable_token_indices"),
    "biases": (with_config(bias="lora_only"), "bias='lora_only': biases"),
    "biases of the adapte": (with_config(lora_bias=True), "lora_bias=True: biases of adapters"),
    "stacked experts": (with_config(target_parameters=["experts.up"]), "target_parameters"),
    "PiSSA": (with_config(init_lora_weights="pissa"), "init_lora_weights='pissa', which changes"),
    "what is to come": (with_config(use_magic=True), "use_magic=True, and that field is not known here"),
    "a pattern": (
        with_config(rank_pattern={"(a+)+": 3}),
        "'(a+)+' in rank_pattern; names of layers",
    ),
    "no pattern": (with_config(alpha_pattern=[1]), "alpha_pattern=[1]; values by layers"),
    "embeddings": (
        with_tensors(**{f"{PREFIX}model.embed_tokens.lora_embedding_A": torch.ones(4, 4)}),
        "lora_embedding_A': an adapter of embeddings",
    ),
    "the head": (
        with_tensors(
            **{
                f"{PREFIX}lm_head.lora_A.weight": torch.ones(4, 32),
                f"{PREFIX}lm_head.lora_B.weight": torch.ones(9, 4),
            }
        ),
        "weights for 'lm_head', and this model has no layer of this name that adapters are served fo",
    ),
    "half a pai": (
        with_tensors(**{f"{Q}.lora_B.weight": None}),
        "has no lora_B of 'model.layers.0.self_attn.q_proj'",
    ),
    "a layer less": (
        with_tensors(**{f"{Q}.lora_A.weight": None, f"{Q}.lora_B.weight": None}),
        "no weights for 'model.layers.0.self_attn.q_proj' and 0 other layers",
    ),
    "another size": (
        with_tensors(**{f"{Q}.lora_A.weight": torch.ones(4, 33)}),
        "shapes [4, 33] and [32, 4], and this model takes [4, 32] and [32, 4]; it was trained for /",
    ),
    "no matrix": (
        with_tensors(**{f"{Q}.lora_A.weight": torch.ones(4)}),
        "is of the shape [4]; two dimensions",
    ),
    "an alpha that no float can be": (with_config(lora_alpha=10**400), "as the alpha of 'model.layers"),
    "such an alpha of a layer": (
        with_config(alpha_pattern={"q_proj": 10**400}),
        "as the alpha of 'model.layers",
    ),
    "integers": (
        with_tensors(**{f"{Q}.lora_A.weight": torch.ones(4, 32, dtype=torch.int8)}),
        "is stored as torch.int8; floating point numbers are read",
    ),
    "8 bits that are no number": (
        with_tensors(**{f"{Q}.lora_A.weight": torch.full((4, 32), float("nan")).to(torch.float8_e4m3fn)}),
        "has numbers that are not finite",
    ),
    "no numbers": (
        with_tensors(**{f"{Q}.lora_A.weight": torch.full((4, 32), float("nan"))}),
        "has numbers that are not finite",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_wrong_with_an_adapter_is_said(
    kind: str, base: Path, adapters: LoadedAdapters, tmp_path: Path
) -> None:
    spoil, message = BAD[kind]
    folder = make_adapter(base, tmp_path / "bad", seed=2)
    load(adapters, 2, folder)
    adapters.unload(2)
    first = weights(adapters, 1)
    spoil(folder)
    with pytest.raises(InvalidRequest) as refusal:
        load(adapters, 2, folder)
    assert str(refusal.value).startswith(f"the adapter 'bad' at '{folder}' cannot be loaded: ")
    assert message in str(refusal.value)
    assert list(adapters.loaded) == [1]
    assert all(map(torch.equal, weights(adapters, 1), first))


def test_a_folder_that_is_not_there(adapters: LoadedAdapters, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="there is no such folder"):
        load(adapters, 2, tmp_path / "nowhere")


def test_a_rank_for_which_there_is_no_room(base: Path, adapters: LoadedAdapters, tmp_path: Path) -> None:
    folder = make_adapter(base, tmp_path / "high", seed=2, rank=9)
    with pytest.raises(InvalidRequest, match="its rank is 9, and there is room for 8; raise --max-lora-rank"):
        load(adapters, 2, folder)


def test_an_adapter_of_another_model(adapters: LoadedAdapters, tmp_path: Path) -> None:
    other = make_checkpoint("llama", tmp_path / "other", hidden_size=64)
    folder = make_adapter(other, tmp_path / "of another", seed=2)
    with pytest.raises(InvalidRequest, match=r"it was trained for .*other"):
        load(adapters, 2, folder)


def test_an_adapter_of_a_model_with_fewer_layers(adapters: LoadedAdapters, tmp_path: Path) -> None:
    other = make_checkpoint("llama", tmp_path / "other", num_hidden_layers=1)
    folder = make_adapter(other, tmp_path / "of another", seed=2)
    with pytest.raises(
        InvalidRequest, match=r"no weights for 'model\.layers\.1\.self_attn\.q_proj' and 6 other"
    ):
        load(adapters, 2, folder)


def test_one_that_says_which_layers_it_is_for_may_leave_out_others(
    base: Path, adapters: LoadedAdapters, tmp_path: Path
) -> None:
    folder = make_adapter(base, tmp_path / "some", seed=2)
    tensors = {name: tensor for name, tensor in load_file(folder / WEIGHTS).items() if ".layers.1." in name}
    config = json.loads((folder / "adapter_config.json").read_text()) | {"layers_to_transform": [1]}
    write_adapter(folder, tensors, config)
    load(adapters, 2, folder)
    assert adapters.loaded[2].name == "some"
    assert not weights(adapters, 2)[0].any()
    adapters.unload(2)


def test_numbers_of_8_bits_are_read(base: Path, adapters: LoadedAdapters, tmp_path: Path) -> None:
    folder = make_adapter(base, tmp_path / "adapter", seed=2)
    tensors = load_file(folder / WEIGHTS)
    rounded = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()}
    save_file(rounded, folder / WEIGHTS)
    load(adapters, 2, folder)
    found = weights(adapters, 2)
    save_file({name: tensor.float() for name, tensor in rounded.items()}, folder / WEIGHTS)
    load(adapters, 2, folder)
    assert all(map(torch.equal, weights(adapters, 2), found))
