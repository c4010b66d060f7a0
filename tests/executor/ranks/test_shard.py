"""A model in parts computes what the whole does, or is refused: two to four ranks, threads with gloo between them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import EVERY_PROJECTION, make_adapter, merge
from rank_threads import LOADING, at_once, groups, take_turns
from slipstream.actors.executor.model.adapters import limits as adapter_limits_module
from slipstream.actors.executor.model.adapters.limits import AdapterLimits
from slipstream.actors.executor.model.adapters.products import Stack, Tail, TorchProducts
from slipstream.actors.executor.model.adapters.tail import TailedRowParallel
from slipstream.actors.executor.model.comparison import compared_tokens, paged_logits
from slipstream.actors.executor.model.loading.load import from_config, load_model
from slipstream.actors.executor.model.paged_model import PagedModel
from slipstream.actors.executor.model.quantization.linear import PROJECTIONS, QuantizedLinear
from slipstream.actors.executor.ranks import shard_loading
from slipstream.actors.executor.ranks.group import RankGroup
from slipstream.actors.executor.ranks.layers import RowParallelExperts, RowParallelLinear
from slipstream.actors.executor.ranks.quantized import RowParallelQuantized
from slipstream.actors.executor.ranks.shard import Sharding, shard
from slipstream.actors.executor.ranks.shard_loading import divide, load_shard, make_shard, shortened
from slipstream.protocol.errors import InvalidRequest, ModelNotSupported
from slipstream.protocol.internal import Adapter
from tiny_models import FAMILIES, make_checkpoint, make_config
from torch import Tensor, nn

CPU = torch.device("cpu")
WITHOUT_PLAN = ("gpt2", "opt")

torch.set_num_threads(1)


def whole(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> PagedModel:
    return from_config(make_config(family, **changes), CPU, dtype)


def embedding_of(model: PagedModel) -> Tensor:
    weight = model.transformer.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


def in_parts(
    family: str, ranks: int = 2, dtype: torch.dtype = torch.float32, **changes: Any
) -> list[PagedModel]:
    """The shards of a model; what they compute together was compared with the whole when they were loaded."""
    models = [whole(family, dtype, **changes) for _ in range(ranks)]
    at_once(divide, models, groups(ranks))
    return models


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in WITHOUT_PLAN])
def test_two_parts_of_every_family_with_a_plan_compute_what_the_whole_does(family: str) -> None:
    parts = in_parts(family)
    embedding = embedding_of(whole(family)).nbytes
    for part in parts:
        assert part.weight_bytes < 0.52 * whole(family).weight_bytes + 1.05 * embedding


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe", "gemma3_text", "gpt_oss"])
def test_the_layers_of_a_part_are_fused_and_its_heads_divided(family: str) -> None:
    for part in in_parts(family):
        assert part.unfused_because == ""
        assert [layer.kv_heads for layer in part.kv_layout.layers] == [1, 1]


@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
def test_parts_in_half_precision(family: str) -> None:
    in_parts(family, dtype=torch.bfloat16)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_oss"])
def test_ranks_share_key_heads_where_there_are_fewer(family: str) -> None:
    parts = in_parts(family, ranks=4)
    assert [part.kv_layout.layers[0].kv_heads for part in parts] == [1, 1, 1, 1]
    keys = [part.transformer.get_parameter("model.layers.0.self_attn.qkv_proj.weight") for part in parts]
    heads = [weight.unflatten(0, (3, -1))[1] for weight in keys]  # a rank's one query, key and value
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[1], heads[2])


def test_a_vocabulary_that_does_not_divide_and_is_tied() -> None:
    parts = in_parts(
        "qwen3", ranks=2, vocab_size=271, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2
    )
    assert [len(part.transformer.get_parameter("lm_head.weight")) for part in parts] == [136, 136]
    assert [len(embedding_of(part)) for part in parts] == [271, 271]


def test_biases_are_added_once() -> None:
    models = [whole("llama", attention_bias=True, mlp_bias=True) for _ in range(2)]
    for model in models:
        for name, parameter in model.transformer.named_parameters():
            if name.endswith("bias"):
                parameter.fill_(0.5)
    at_once(divide, models, groups(2))


# --- faults -----------------------------------------------------------------------------------------


def no_sums(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RankGroup, "sum", lambda group, tensor: tensor)


def experts_not_summed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RowParallelExperts, "forward", lambda self, *given: self.experts(*given))


def attention_not_summed(patch: pytest.MonkeyPatch) -> None:
    real = RowParallelLinear.forward

    def forward(self: RowParallelLinear, input: Tensor) -> Tensor:
        square = self.in_features * self.group.size == self.out_features
        return nn.Linear.forward(self, input) if square else real(self, input)

    patch.setattr(RowParallelLinear, "forward", forward)


def logits_in_wrong_order(patch: pytest.MonkeyPatch) -> None:
    real = RankGroup.gather

    def gather(group: RankGroup, tensor: Tensor, width: int) -> Tensor:
        return real(group, tensor, width).roll(tensor.shape[1], 1)

    patch.setattr(RankGroup, "gather", gather)


def the_same_part_for_all(patch: pytest.MonkeyPatch) -> None:
    real = Sharding.shard

    def part(self: Sharding, tensor: Tensor, dim: int, name: str, *own: int) -> Tensor:
        return real(self, tensor, dim, name, self.group.size, 0)

    patch.setattr(Sharding, "shard", part)


def halves_of_experts_not_told_apart(patch: pytest.MonkeyPatch) -> None:
    real = Sharding.shard_of_parameter

    def part(self: Sharding, parameter: Tensor, style: str, name: str) -> nn.Parameter:
        return real(self, parameter, style.removeprefix("packed_"), name)

    patch.setattr(Sharding, "shard_of_parameter", part)


def sinks_of_other_heads(patch: pytest.MonkeyPatch) -> None:
    real = Sharding.shard

    def part(self: Sharding, tensor: Tensor, dim: int, name: str, *own: int) -> Tensor:
        return real(self, tensor.flip(0) if name.endswith("sinks") else tensor, dim, name, *own)

    patch.setattr(Sharding, "shard", part)


@pytest.mark.parametrize(
    ("family", "fault"),
    [
        ("llama", no_sums),
        ("llama", attention_not_summed),
        ("llama", logits_in_wrong_order),
        ("llama", the_same_part_for_all),
        ("qwen3_moe", no_sums),
        ("qwen3_moe", experts_not_summed),
        ("qwen3_moe", halves_of_experts_not_told_apart),
        ("gpt_oss", experts_not_summed),
        ("gpt_oss", sinks_of_other_heads),
        ("gpt_neox", no_sums),
    ],
)
def test_a_planted_fault_is_refused(
    family: str, fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [whole(family) for _ in range(2)]
    for model in models:
        for name, parameter in model.transformer.named_parameters():
            if name.endswith("sinks"):
                parameter.copy_(torch.arange(len(parameter)))
    fault(monkeypatch)
    with pytest.raises(ModelNotSupported, match="differ from plain attention by"):
        at_once(divide, models, groups(2))


# --- what cannot be divided -------------------------------------------------------------------------


@pytest.mark.parametrize("family", WITHOUT_PLAN)
def test_a_family_without_a_plan_is_refused_with_the_reason(family: str) -> None:
    with pytest.raises(
        ModelNotSupported, match=f"'{family}'.*no plan that divides.*leave out --tensor-parallel"
    ):
        in_parts(family)


def test_a_plan_that_divides_in_an_unknown_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = whole("llama")
    monkeypatch.setattr(
        type(model.transformer), "tp_plan", {"model.layers.*.mlp.up_proj": "sideways"}, raising=False
    )
    with pytest.raises(ModelNotSupported, match=r"layers\.0\.mlp\.up_proj among ranks as 'sideways'"):
        shard(model.transformer, RankGroup(0, 2, None))


@pytest.mark.parametrize(
    ("family", "ranks", "changes", "reason"),
    [
        ("llama", 3, {}, "tensor_parallel_size=3: this model has 4 attention heads.*give a divisor of 4"),
        (
            "llama",
            2,
            {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3},
            "3 key heads, which 2 ranks can neither divide nor share",
        ),
        ("llama", 2, {"intermediate_size": 49}, r"layers\.0\.mlp\.gate_proj has 49 rows or columns"),
        ("qwen3_moe", 4, {}, r"experts\.down_proj would have 24 bytes.*multiples of 16; use fewer ranks"),
    ],
)
def test_a_number_of_ranks_that_does_not_divide_is_refused(
    family: str, ranks: int, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        in_parts(family, ranks, **changes)


# --- loading ----------------------------------------------------------------------------------------


@pytest.fixture
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    take_turns(monkeypatch, {shard_loading: LOADING})


def loaded(folder: Path, of: Callable[..., PagedModel], dtype: str = "auto") -> list[PagedModel]:
    def load_one(group: RankGroup) -> PagedModel:
        return of(str(folder), group, device=CPU, dtype=dtype, attention_backend="torch")

    return at_once(load_one, groups(2))


@pytest.mark.usefixtures("one_at_a_time")
def test_parts_of_a_model_that_fits_nowhere_as_a_whole_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_checkpoint(
        "gemma3_text",
        tmp_path,
        num_hidden_layers=6,
        layer_types=["sliding_attention"] * 4 + ["full_attention"] * 2,
    )
    compared_whole = loaded(folder, load_shard)
    monkeypatch.setattr(shard_loading, "fits", lambda *given: False)
    short: list[int] = []
    real = shard_loading.divide

    def divide(model: PagedModel, group: RankGroup) -> None:
        short.append(model.config.num_hidden_layers)
        real(model, group)

    monkeypatch.setattr(shard_loading, "divide", divide)
    compared_short = loaded(folder, load_shard)
    assert short == [5, 5], "as many layers as it takes to have one of every type"
    for one, other in zip(compared_whole, compared_short, strict=True):
        for name, parameter in one.transformer.named_parameters():
            assert torch.equal(parameter, other.transformer.get_parameter(name)), name


@pytest.mark.usefixtures("one_at_a_time")
def test_random_weights_are_made_in_parts(tmp_path: Path) -> None:
    folder = make_checkpoint("llama", tmp_path)
    one, other = loaded(folder, make_shard)
    whole_one = whole("llama")
    assert one.weight_bytes == other.weight_bytes < 0.7 * whole_one.weight_bytes
    for name, parameter in one.transformer.named_parameters():
        assert bool(parameter.isfinite().all()), name
        assert torch.equal(parameter, other.transformer.get_parameter(name)), name
    attention: Any = one.transformer.get_submodule("model.layers.0.self_attn")
    assert torch.equal(
        attention.rotary.frequencies, whole_one.transformer.get_buffer("model.rotary_emb.inv_freq")
    )


@pytest.mark.usefixtures("one_at_a_time")
def test_random_weights_are_made_in_parts_of_a_model_with_states(tmp_path: Path) -> None:
    folder = make_checkpoint("qwen3_next", tmp_path, moe_intermediate_size=32)
    for model in loaded(folder, make_shard, "bfloat16"):
        assert model.dtype == torch.bfloat16
        assert model.stateful is not None
        for parameter in model.transformer.parameters():
            assert bool(parameter.isfinite().all())


@pytest.mark.covering(1)
@pytest.mark.usefixtures("one_at_a_time")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "gpt_oss"])
def test_random_weights_are_made_in_parts_of_a_mixture_of_experts(
    family: str, dtype: str, tmp_path: Path
) -> None:
    changes = {"moe_intermediate_size": 32} if family == "qwen3_moe" else {"intermediate_size": 32}
    for model in loaded(make_checkpoint(family, tmp_path, **changes), make_shard, dtype):
        assert model.dtype == getattr(torch, dtype)
        for name, parameter in model.transformer.named_parameters():
            assert bool(parameter.isfinite().all()), name


def test_a_short_configuration_has_every_type_of_layer() -> None:
    types = ["full_attention"] * 5 + ["sliding_attention"]
    config = make_config("gemma3_text", num_hidden_layers=6, layer_types=types)
    assert shortened(config).layer_types == types
    assert config.num_hidden_layers == 6
    assert shortened(make_config("llama", num_hidden_layers=9)).num_hidden_layers == 4


# --- quantized weights ------------------------------------------------------------------------------

BLOCKS = {
    "a scale for each row": (1, 0),
    "for blocks": (8, 8),
    "for blocks of which ranks share rows": (32, 8),
    "for all": (0, 0),
}
"""Rows and columns that share a scale; 0: all."""


def quantized_whole(family: str, block: tuple[int, int], dtype: torch.dtype = torch.int8) -> PagedModel:
    """A model whose projections are kept in 8 bits, as on a GPU."""
    model = whole(family)
    names = [name for name, _ in model.transformer.named_modules() if name.rpartition(".")[2] in PROJECTIONS]
    for number, name in enumerate(names):
        layer: Any = model.transformer.get_submodule(name)
        height, width = layer.weight.shape
        rows, columns = (block[0] or height), (block[1] or width)
        generator = torch.Generator().manual_seed(number)
        values = torch.randint(-127, 128, (height, width), generator=generator).to(dtype)
        scales = torch.rand(-(-height // rows), -(-width // columns), generator=generator) * 1e-3 + 1e-4
        model.transformer.set_submodule(name, QuantizedLinear(values, scales, (rows, columns), layer.bias))
    return model


@pytest.mark.covering(1)
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=["int8", "fp8"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text"])
def test_quantized_weights_are_divided_with_their_scales_and_joined(
    family: str, dtype: torch.dtype, block: tuple[int, int]
) -> None:
    models = [quantized_whole(family, block, dtype) for _ in range(2)]
    at_once(divide, models, groups(2))
    for model in models:
        assert model.unfused_because == ""
        layers = [module for module in model.transformer.modules() if isinstance(module, QuantizedLinear)]
        assert len(layers) == 4 * len(model.kv_layout.layers)
        assert sum(isinstance(layer, RowParallelQuantized) for layer in layers) == len(layers) // 2


def test_ranks_share_quantized_key_heads_where_there_are_fewer() -> None:
    models = [quantized_whole("llama", (1, 0)) for _ in range(4)]
    at_once(divide, models, groups(4))
    assert [model.kv_layout.layers[0].kv_heads for model in models] == [1, 1, 1, 1]


def test_scales_for_columns_of_several_ranks_are_refused_with_the_layer() -> None:
    models = [quantized_whole("llama", (8, 24)) for _ in range(2)]
    with pytest.raises(
        InvalidRequest, match=r"each scale of model\.layers\.0\.\S+ is for 24 columns, of which 2"
    ):
        at_once(divide, models, groups(2))


@pytest.mark.parametrize("fault", ["scales of rank 0", "no sum"])
def test_the_comparison_finds_a_quantized_part_that_is_wrong(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "no sum":
        monkeypatch.setattr(RowParallelQuantized, "forward", QuantizedLinear.forward)
    else:
        right = QuantizedLinear.multiply
        monkeypatch.setattr(
            RowParallelQuantized, "multiply", lambda layer, states: right(layer, states) * 1.05
        )
    models = [quantized_whole("llama", (1, 0)) for _ in range(2)]
    with pytest.raises(ModelNotSupported, match="differ from plain attention"):
        at_once(divide, models, groups(2))


@pytest.mark.usefixtures("one_at_a_time")
@pytest.mark.parametrize("load", [load_shard, make_shard])
@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_parts_are_quantized_at_load(kind: str, load: Any, tmp_path: Path) -> None:
    folder = str(make_checkpoint("llama", tmp_path))

    def own(group: RankGroup) -> PagedModel:
        return load(folder, group, device=CPU, dtype="float32", attention_backend="torch", quantization=kind)

    for model in at_once(own, groups(2)):
        assert model.weights_format.startswith("weights rounded to"), "as a CPU does"
        weight = model.transformer.get_parameter("model.layers.0.self_attn.qkv_proj.weight")
        numbers = weight / weight.abs().amax(1, keepdim=True) * (127 if kind == "int8" else 448)
        rounded = numbers.round() if kind == "int8" else numbers.to(torch.float8_e4m3fn).float()
        assert torch.allclose(numbers, rounded, rtol=1e-4, atol=1e-3)
        assert not torch.allclose(numbers * 0.99, rounded, rtol=1e-4, atol=1e-3), "so near is no accident"


# --- adapters ---------------------------------------------------------------------------------------


def logits(model: PagedModel) -> Tensor:
    with torch.inference_mode():
        return paged_logits(model, compared_tokens(model))


class Everywhere(TorchProducts):
    """Every token has the first adapter."""

    def add(self, output: Tensor, states: Tensor, stack: Stack) -> None:
        self.begin(torch.ones(len(states), dtype=torch.int32))
        super().add(output, states, stack)

    def extend(self, states: Tensor, tail: Tail) -> Tensor:
        self.begin(torch.ones(len(states), dtype=torch.int32))
        return super().extend(states, tail)


def with_adapter(model: PagedModel, adapter: Path) -> PagedModel:
    adapters = model.take_adapters(1, 8)
    adapters.products = Everywhere()
    for _ in adapters.load(Adapter(1, "own", str(adapter))):
        pass
    return model


@pytest.mark.covering(1)
@pytest.mark.usefixtures("one_at_a_time")
@pytest.mark.parametrize(
    "adapter_limits", [None, AdapterLimits(1, 8)], ids=["beside the weights", "in their tails"]
)
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize(
    ("family", "targets"),
    [("llama", EVERY_PROJECTION), ("qwen3_moe", ("q_proj", "k_proj", "v_proj", "o_proj"))],
)
def test_ranks_add_their_parts_of_an_adapter(
    family: str,
    targets: tuple[str, ...],
    ranks: int,
    adapter_limits: AdapterLimits | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adapter_limits_module, "MAX_OF_WIDTH", 100)
    changes = {"moe_intermediate_size": 32} if family == "qwen3_moe" else {}
    base = make_checkpoint(family, tmp_path / "base", **changes)
    adapter = make_adapter(base, tmp_path / "adapter", seed=1, targets=targets)
    expected = logits(load_model(str(merge(base, adapter, tmp_path / "merged")), device=CPU))

    def own(group: RankGroup) -> Tensor:
        part = load_shard(
            str(base),
            group,
            device=CPU,
            dtype="auto",
            attention_backend="torch",
            adapter_limits=adapter_limits,
        )
        summed = [module for module in part.transformer.modules() if isinstance(module, TailedRowParallel)]
        assert bool(summed) == (adapter_limits is not None)
        return logits(with_adapter(part, adapter))

    for found in at_once(own, groups(ranks)):
        assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_an_adapter_for_another_model_is_refused_by_a_rank_with_the_shapes_of_the_whole(
    tmp_path: Path,
) -> None:
    other = make_checkpoint("llama", tmp_path / "other", hidden_size=96)
    adapter = make_adapter(other, tmp_path / "adapter", seed=1)
    part = in_parts("llama")[1]
    whole_down = r"down_proj' .* \[4, 48\] and \[96, 4\], and this model takes \[4, 48\] and \[32, 4\]"
    with pytest.raises(InvalidRequest, match=whole_down):
        with_adapter(part, adapter)
