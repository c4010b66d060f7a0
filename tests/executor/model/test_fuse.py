"""A decoder of few kernels gives the logits of transformers' own, or does not take its place."""

from __future__ import annotations

import gc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from slipstream.actors.executor.cache.kv_cache import allocate
from slipstream.actors.executor.cache.paged_batch import PagedBatch
from slipstream.actors.executor.model.comparison import compared_tokens, paged_logits
from slipstream.actors.executor.model.fused import fuse as fusing
from slipstream.actors.executor.model.fused import recognise
from slipstream.actors.executor.model.fused.decoder import Attention, Decoder, FeedForward
from slipstream.actors.executor.model.fused.fuse import fuse
from slipstream.actors.executor.model.fused.observe import checked_tokens
from slipstream.actors.executor.model.fused.operations import Norm, TorchOperations
from slipstream.actors.executor.model.loading.load import from_config, load_model, make_model
from slipstream.actors.executor.model.paged_model import PagedModel
from slipstream.protocol.errors import ModelNotSupported
from tiny_models import FAMILIES, make_checkpoint, make_config
from torch import Tensor

CPU = torch.device("cpu")

torch.set_num_threads(1)

STAYS = {
    "gpt2": "no list of layers",
    "gpt_neox": "parts that are not known here",
    "opt": "no list of layers",
    "cohere2": "parts that are not known here: input_layernorm",
    "llama4_text": "no decoder 'language_model'",
    "starcoder2": "LayerNorm is no norm that is known here",
}
"""Families that do not fit, and why. A change that makes one fit takes it out."""

KINDS_OF_ROTARY: dict[str, dict[str, Any]] = {
    "partial": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


def make(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> PagedModel:
    model = from_config(make_config(family, **changes), CPU, dtype)
    for name, parameter in model.transformer.named_parameters():
        if name.endswith(("norm.weight", "sinks", "bias")):  # all of one value as they are made
            torch.nn.init.normal_(parameter, 0.5)
    return model


def logits_of(model: PagedModel) -> Tensor:
    with torch.inference_mode():
        return paged_logits(model, compared_tokens(model))


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_a_vocabulary_of_a_few_letters_is_enough() -> None:
    model = make("llama", vocab_size=23, bos_token_id=0, eos_token_id=1)
    expected = logits_of(model)
    fuse(model)
    assert not model.unfused_because
    assert difference(logits_of(model), expected) < 1e-5


@pytest.mark.parametrize("vocabulary", [1, 6, 7, 14, 21, 63, 64, 1000])
def test_a_decoder_is_tried_with_as_many_different_tokens_as_it_has(vocabulary: int) -> None:
    """Where all were the same, attention to whichever of them would give the same."""
    decoder = SimpleNamespace(config=SimpleNamespace(vocab_size=vocabulary), device=torch.device("cpu"))
    (tokens,) = checked_tokens(decoder).tolist()
    assert len(set(tokens)) == min(vocabulary, len(tokens))
    assert max(tokens) < vocabulary


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_from_before(family: str) -> None:
    model = make(family)
    expected, size = logits_of(model), model.weight_bytes
    fuse(model)
    assert difference(logits_of(model), expected) <= 1e-5
    if family in STAYS:
        assert STAYS[family] in model.unfused_because
    else:
        assert model.unfused_because == ""
        assert isinstance(model.transformer.get_submodule("model"), Decoder)
    tensors = (*model.transformer.parameters(), *model.transformer.buffers())
    assert 0 <= size - sum(tensor.nbytes for tensor in tensors) <= 10_000, "the buffers of rotary embeddings"


@pytest.mark.parametrize(
    ("family", "kind"),
    [("phi3", "partial"), *((family, kind) for family in ("llama", "qwen3") for kind in KINDS_OF_ROTARY)],
)
def test_every_kind_of_rotary_embedding(family: str, kind: str) -> None:
    model = make(family, rope_parameters=KINDS_OF_ROTARY[kind], head_dim=16)
    expected = logits_of(model)
    fuse(model)
    assert difference(logits_of(model), expected) <= 1e-5
    if family == "phi3" or kind != "partial":  # transformers' llama and qwen3 turn all dimensions
        assert model.unfused_because == ""


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text", "olmo2"])
def test_half_precision_is_as_near_to_float32_as_before(family: str) -> None:
    exact = logits_of(make(family))
    model = make(family, torch.bfloat16)
    with torch.no_grad():
        for parameter, own in zip(
            model.transformer.parameters(), make(family).transformer.parameters(), strict=True
        ):
            parameter.copy_(own)
    before = difference(logits_of(model), exact)
    fuse(model)
    assert model.unfused_because == ""
    assert difference(logits_of(model), exact) <= 1.2 * before


def test_a_layer_is_four_products_and_few_operations() -> None:
    model = make("llama")
    fuse(model)
    decoder: Any = model.transformer.get_submodule("model")
    for layer in decoder.layers:
        assert isinstance(layer.self_attn, Attention)
        assert isinstance(layer.mlp, FeedForward)
        linear = [module for module in layer.modules() if isinstance(module, torch.nn.Linear)]
        assert len(linear) == 4

    class Counted(TorchOperations):
        calls = 0

        def __getattribute__(self, name: str) -> Any:
            Counted.calls += name in ("angles", "add_norm", "rotate", "gate", "norm")
            return super().__getattribute__(name)

    for module in decoder.modules():
        if hasattr(module, "operations"):
            module.operations = Counted()
    layers = len(decoder.layers)
    model.forward(*one_token(model))
    assert Counted.calls == 4 * layers + 2  # the angles, and the last norm


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "olmo2", "qwen3_moe", "gpt_oss"])
def test_the_last_layer_goes_on_with_the_tokens_whose_logits_are_asked_for(family: str) -> None:
    model = make(family)
    fuse(model)
    tokens = compared_tokens(model)[0]
    batch = one_text(model, len(tokens))
    every = model.forward(tokens, torch.arange(len(tokens)), batch, None)
    written = batch.cache.keys[-1].clone()
    rows: list[int] = []
    for layer in model.transformer.get_submodule("model.layers").children():
        layer.get_submodule("mlp").register_forward_hook(
            lambda module, given, output: rows.append(len(given[0]))
        )

    asked = torch.tensor([19, 3, 3, 0])
    some = model.forward(tokens, torch.arange(len(tokens)), batch, asked)

    assert difference(some, every[asked]) <= 1e-6
    assert rows == [len(tokens)] * (len(rows) - 1) + [len(asked)]
    assert model.forward(tokens, torch.arange(len(tokens)), batch, asked[:0]).shape == (0, model.vocab_size)
    assert torch.equal(batch.cache.keys[-1], written)


def test_more_logits_than_tokens_are_picked_when_all_are_computed() -> None:
    """As of a step that reports the logprobs of prompts, whose other rows are padded."""
    model = make("llama")
    fuse(model)
    tokens = compared_tokens(model)[0]
    batch, positions = one_text(model, len(tokens)), torch.arange(len(tokens))
    every = model.forward(tokens, positions, batch, None)
    asked = torch.cat([torch.zeros(8, dtype=torch.int64), torch.arange(len(tokens))])
    assert torch.equal(model.forward(tokens, positions, batch, asked), every[asked])


def one_text(model: PagedModel, length: int) -> PagedBatch:
    """A text of ``length`` tokens in the blocks from block 1 on."""
    size = 4
    blocks = length // size
    return PagedBatch(
        cache=allocate(model.kv_layout, 1 + blocks, size, CPU, model.dtype),
        rows=torch.zeros(1, dtype=torch.int64),
        kv_lens=torch.tensor([length], dtype=torch.int32),
        query_start=torch.tensor([0, length], dtype=torch.int32),
        write_index=torch.arange(size, size + length),
        block_table=torch.arange(1, 1 + blocks, dtype=torch.int32)[None],
        decode_only=False,
        max_kv_len=0,
        row_tokens=(length,),
    )


def one_token(model: PagedModel) -> tuple[Tensor, Tensor, Any, Tensor]:
    class Nothing:
        name = "nothing"

        def __call__(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
            return torch.zeros_like(query)

    nothing: Any = Nothing()
    model.backend = nothing
    token = torch.zeros(1, dtype=torch.int64)
    return token, token, None, token


def test_the_weights_that_were_joined_are_gone() -> None:
    model = make("llama", hidden_size=64, intermediate_size=256)
    fuse(model)
    gc.collect()
    shapes = [
        tuple(found.shape)
        for found in gc.get_objects()
        if type(found) is torch.nn.Parameter and found.shape == (256, 64)
    ]
    assert shapes == []


def wrong_epsilon(patch: pytest.MonkeyPatch) -> None:
    class Wrong(Norm):
        def __init__(self, weight: Any, epsilon: float, offset: float) -> None:
            super().__init__(weight, 100 * epsilon, offset)

    patch.setattr(recognise, "Norm", Wrong)


def wrong_split(patch: pytest.MonkeyPatch) -> None:
    def swapped(layers: list[Any]) -> Any:
        return joined(layers if len(layers) < 3 else [layers[0], layers[2], layers[1]])

    joined = fusing.joined
    patch.setattr(fusing, "joined", swapped)


def wrong_turn(patch: pytest.MonkeyPatch) -> None:
    right = TorchOperations.angles
    patch.setattr(
        TorchOperations,
        "angles",
        lambda self, positions, frequencies, scaling: right(self, positions + 1, frequencies * 1.01, scaling),
    )


def wrong_gate(patch: pytest.MonkeyPatch) -> None:
    right = TorchOperations.gate

    def gate(self: TorchOperations, states: Tensor, activation: str) -> Tensor:
        return right(self, states.roll(states.shape[1] // 2, 1), activation)

    patch.setattr(TorchOperations, "gate", gate)


FAULTS = [wrong_epsilon, wrong_split, wrong_turn, wrong_gate]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_leaves_the_decoder_as_it_is(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama", rms_norm_eps=1e-4)
    expected = logits_of(model)
    fault(monkeypatch)
    fuse(model)
    assert "its states differ by" in model.unfused_because
    assert torch.equal(logits_of(model), expected)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_at_load_finds_a_fault_that_was_overlooked(
    fault: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = make_checkpoint("llama", tmp_path, rms_norm_eps=1e-2)
    monkeypatch.setattr(fusing, "check", lambda *_: None)
    fault(monkeypatch)
    with pytest.raises(ModelNotSupported, match="over the paged cache differ from plain attention by"):
        load_model(str(folder), device=CPU, dtype="float32")


def test_what_is_loaded_or_made_up_is_fused(tmp_path: Path) -> None:
    folder = str(make_checkpoint("qwen2", tmp_path))
    for load in (load_model, make_model):
        assert load(folder, device=CPU).unfused_because == ""


def test_a_fault_in_one_kind_of_layers_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared has layers of every kind, those with a sliding window and those without."""
    model = make("gemma3_text")
    right = Attention.__init__

    def init(self: Attention, *given: Any, **named: Any) -> None:
        if named["sliding_window"] is None:
            named["scaling"] *= 1.01
        right(self, *given, **named)

    monkeypatch.setattr(Attention, "__init__", init)
    fuse(model)
    assert "its states differ by" in model.unfused_because
