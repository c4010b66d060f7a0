"""Layers whose weights have a tail for adapters, as on a GPU; torch makes here what a kernel makes there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from adapters import PREFIX, make_adapter, merge
from safetensors.torch import load_file, save_file
from slipstream.actors.executor.model.adapters import limits
from slipstream.actors.executor.model.adapters.limits import AdapterLimits
from slipstream.actors.executor.model.adapters.products import TorchProducts
from slipstream.actors.executor.model.adapters.tail import TailedLinear
from slipstream.actors.executor.model.comparison import compared_tokens, paged_logits
from slipstream.actors.executor.model.fused import fuse as fusing
from slipstream.actors.executor.model.loading.load import from_config, load_model
from slipstream.actors.executor.model.paged_model import PagedModel
from slipstream.actors.executor.model.quantization.stacked import stacked
from slipstream.actors.executor.start.load_folder import adapter_limits_of
from slipstream.protocol.errors import InvalidRequest
from slipstream.protocol.internal import Adapter
from tiny_models import make_checkpoint, make_config
from torch import Tensor, nn

CPU = torch.device("cpu")
LIMITS = AdapterLimits(3, 8)

torch.set_num_threads(1)


@pytest.fixture
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tails for models so narrow that they are not worth it."""
    monkeypatch.setattr(limits, "MAX_OF_WIDTH", 100)


def tailed_in(model: PagedModel) -> dict[str, TailedLinear]:
    modules = model.transformer.named_modules()
    return {name: module for name, module in modules if isinstance(module, TailedLinear)}


def logits(model: PagedModel) -> Tensor:
    with torch.inference_mode():
        return paged_logits(model, compared_tokens(model))


class Everywhere(TorchProducts):
    """Every token has one adapter."""

    def __init__(self, id: int) -> None:
        super().__init__()
        self.id = id

    def begin(self, ids: Tensor) -> None:
        super().begin(torch.full_like(ids, self.id))


def load(model: PagedModel, path: Path, id: int = 1) -> None:
    """And let every token have it."""
    assert model.adapters is not None
    for _ in model.adapters.load(Adapter(id, "own", str(path))):
        pass
    model.adapters.products = Everywhere(id)


@pytest.mark.usefixtures("_narrow")
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "qwen3_moe", "gemma3_text", "gpt_oss"])
def test_a_model_with_tails_computes_what_it_did_and_with_an_adapter_what_the_merged_one_does(
    family: str, tmp_path: Path
) -> None:
    base = make_checkpoint(family, tmp_path / "base")
    targets = ("qkv_proj", "o_proj") if family == "phi3" else ("q_proj", "v_proj", "o_proj")
    adapter = make_adapter(base, tmp_path / "adapter", seed=1, targets=targets)
    expected = logits(load_model(str(base), device=CPU))
    merged = logits(load_model(str(merge(base, adapter, tmp_path / "merged")), device=CPU))
    model = load_model(str(base), device=CPU, adapter_limits=LIMITS)
    assert set(tailed_in(model)) == set(model.fused_projections)
    assert torch.allclose(logits(model), expected, rtol=1e-5, atol=1e-5)
    places = model.take_adapters(LIMITS.count, LIMITS.max_rank)
    assert torch.allclose(logits(model), expected, rtol=1e-5, atol=1e-5)
    load(model, adapter, 2)
    found = logits(model)
    assert float((found - merged).norm() / merged.norm()) < 1e-5
    assert float((found - expected).norm() / expected.norm()) > 1e-2
    places.clear(2)
    assert torch.allclose(logits(model), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("_narrow")
def test_weights_are_there_once_and_the_tails_are_counted(tmp_path: Path) -> None:
    base = str(make_checkpoint("llama", tmp_path / "base"))
    plain, model = load_model(base, device=CPU), load_model(base, device=CPU, adapter_limits=LIMITS)
    layers = tailed_in(model)
    places = model.take_adapters(LIMITS.count, LIMITS.max_rank)
    down = sum(stack.down.nbytes for stack in places.stacks)
    without, everything = (
        sum(parameter.nbytes for parameter in each.transformer.parameters()) for each in (plain, model)
    )
    assert everything - without == places.bytes - down
    for stack, layer in zip(places.stacks, layers.values(), strict=True):
        assert stack.up.untyped_storage().data_ptr() == layer.weight.untyped_storage().data_ptr()
        assert layer.weight.shape[1] % limits.ALIGNMENT == layer.in_features % limits.ALIGNMENT


@pytest.mark.parametrize(
    ("count", "rank", "layers", "width", "columns"),
    [
        (8, 16, 3, 4096, 384),
        (8, 16, 1, 14336, 128),
        (1, 4, 1, 896, 64),
        (8, 64, 2, 4096, 1024),
        (8, 64, 3, 4096, 0),
        (8, 16, 3, 896, 0),
    ],
)
def test_a_tail_is_of_whole_lines_and_no_longer_than_a_quarter(
    count: int, rank: int, layers: int, width: int, columns: int
) -> None:
    with torch.device("meta"):
        linears = [nn.Linear(width, 8) for _ in range(layers)]
    assert AdapterLimits(count, rank).tail(linears) == columns


def test_projections_that_get_none_have_adapters_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_OF_WIDTH", 2.5)  # 64 columns of 32 or 48, and not 128 of 32
    base = make_checkpoint("llama", tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", seed=1)
    merged = logits(load_model(str(merge(base, adapter, tmp_path / "merged")), device=CPU))
    model = load_model(str(base), device=CPU, adapter_limits=LIMITS)
    assert {name.rpartition(".")[2] for name in tailed_in(model)} == {"o_proj", "gate_up_proj", "down_proj"}
    model.take_adapters(LIMITS.count, LIMITS.max_rank)
    load(model, adapter)
    found = logits(model)
    assert float((found - merged).norm() / merged.norm()) < 1e-5


@pytest.mark.usefixtures("_narrow")
def test_layers_that_share_a_weight_get_no_tail() -> None:
    """An adapter has weights of its own beside each."""
    model = from_config(make_config("llama"), CPU, torch.float32)
    first, second = model.transformer.get_submodule("model.layers").children()
    second.mlp.up_proj.weight = first.mlp.up_proj.weight  # type: ignore[union-attr]
    model.adapter_limits = LIMITS
    fusing.fuse(model)
    assert not model.unfused_because
    assert not tailed_in(model)


@pytest.mark.usefixtures("_narrow")
def test_numbers_that_would_spoil_the_tokens_of_others_are_refused(tmp_path: Path) -> None:
    """Zero times infinity is no number."""
    base = make_checkpoint("llama", tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", seed=1)
    stored = load_file(adapter / "adapter_model.safetensors")
    stored[f"{PREFIX}model.layers.1.mlp.down_proj.lora_B.weight"][3, 2] = 50_000.0
    save_file(stored, adapter / "adapter_model.safetensors")
    model = load_model(str(base), device=CPU, dtype="float16", adapter_limits=LIMITS)
    model.take_adapters(LIMITS.count, LIMITS.max_rank)
    with pytest.raises(
        InvalidRequest, match=r"down_proj.lora_B.weight' is out of the range of torch.float16"
    ):
        load(model, adapter)
    assert all(bool(layer.weight.isfinite().all()) for layer in tailed_in(model).values())


def test_a_gpu_alone_has_them() -> None:
    """On a CPU forks share the weights."""
    options: Any = SimpleNamespace(max_loras=8, max_lora_rank=16)
    assert adapter_limits_of(options, torch.device("cuda", 1)) == AdapterLimits(8, 16)
    assert adapter_limits_of(options, CPU) is None
    options.max_loras = 0
    assert adapter_limits_of(options, torch.device("cuda")) is None


# --- how weights lie ------------------------------------------------------------------------------------


def matrices() -> Iterator[Tensor]:
    for rows in (3, 1, 4):
        yield torch.randn(rows, 6)


def test_what_lies_with_a_tail_is_not_copied_again() -> None:
    parts = list(matrices())
    expected = torch.cat(parts)
    whole = stacked(parts, 2)
    assert torch.equal(whole, nn.functional.pad(expected, (0, 2)))
    assert all(part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr() for part in parts)
    whole[:, 6:] = 5.0
    again = stacked(parts, 2)
    assert again.data_ptr() == whole.data_ptr()
    assert torch.equal(again, whole), "with what is in the tail"


@pytest.mark.parametrize("other", ["another tail", "none", "another order", "the end is cut off"])
def test_what_lies_otherwise_is(other: str) -> None:
    parts = list(matrices())
    whole = stacked(parts, 2)
    if other == "the end is cut off":
        memory = whole.flatten()[:-2].clone()
        parts = [memory.as_strided(part.shape, part.stride(), part.storage_offset()) for part in parts]
    if other == "another order":
        parts.reverse()
    tail = {"another tail": 4, "none": 0}.get(other, 2)
    expected = nn.functional.pad(torch.cat(parts), (0, tail))
    found = stacked(parts, tail)
    assert found.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr()
    assert torch.equal(found, expected)
