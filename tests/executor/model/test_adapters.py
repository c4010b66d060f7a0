"""With an adapter a model computes what the one computes that it was merged into, alone and beside others."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import PREFIX, config_of, make_adapter, merge, write_adapter
from quantized import make_quantized
from rig import Rig
from safetensors.torch import load_file, save_file
from slipstream.actors.executor.cache.kv_cache import allocate
from slipstream.actors.executor.cache.paged_batch import PagedBatch
from slipstream.actors.executor.model.adapters import limits
from slipstream.actors.executor.model.adapters.limits import AdapterLimits
from slipstream.actors.executor.model.adapters.loaded import LoadedAdapters
from slipstream.actors.executor.model.comparison import compared_tokens, paged_logits
from slipstream.actors.executor.model.loading.load import from_config, load_model
from slipstream.actors.executor.model.paged_model import PagedModel
from slipstream.protocol.errors import InvalidRequest
from slipstream.protocol.internal import Adapter
from slipstream.protocol.sampling import SamplingParams
from tiny_models import VOCAB_SIZE, make_checkpoint, make_config

NUMBERS = itertools.count()
CPU = torch.device("cpu")
MAX_RANK = 8

torch.set_num_threads(1)

KINDS: dict[str, dict[str, Any]] = {
    "sql": {"seed": 1},
    "verse": {"seed": 2, "rank": 8, "targets": ("q_proj", "v_proj"), "use_rslora": True},
    "terse": {
        "seed": 3,
        "rank": 2,
        "targets": ("k_proj", "o_proj", "up_proj", "down_proj"),
        "alpha_pattern": {"up_proj": 7},
        "rank_pattern": {"down_proj": 5},
    },
}


@dataclass
class Trained:
    """A checkpoint, adapters for it, and the checkpoint of each merged."""

    base: Path
    adapters: dict[str, Path]
    merged: dict[str, Path]
    adapter_limits: AdapterLimits | None = None
    """For tails of the weights, as on a GPU."""

    def rig(self, depth: int, blocks: int, graphs: str = "off", *, loaded: bool = True) -> Rig:
        """With places for all adapters, which are loaded or will be."""
        model = load_model(str(self.base), device=CPU, adapter_limits=self.adapter_limits)
        assert model.has_tails == (self.adapter_limits is not None)
        places = model.take_adapters(len(self.adapters), MAX_RANK)
        kept = LoadedAdapters(places, self.base.parent / f"kept {next(NUMBERS)}.json")
        given = [Adapter(id, name, str(path)) for id, (name, path) in enumerate(self.adapters.items(), 1)]
        kept.start(given if loaded else [])
        return Rig(model, depth, blocks, graphs=graphs, adapters=kept)


WITH_TAILS = " with tails"


@pytest.fixture(
    scope="module",
    params=[
        "llama",
        "phi3",
        "qwen3_moe",
        "gpt_neox",
        *(f"{name}{WITH_TAILS}" for name in ("llama", "qwen3_moe")),
    ],
)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """Projections apart in the checkpoint and joined in the model, joined in both, in part, and in neither; and some
    with B of the adapters in the weights, which are narrow for that."""
    family = request.param.removesuffix(WITH_TAILS)
    found = train(family, tmp_path_factory.mktemp(family), KINDS)
    with pytest.MonkeyPatch.context() as patch:
        if family != request.param:
            patch.setattr(limits, "MAX_OF_WIDTH", 100)
            found = replace(found, adapter_limits=AdapterLimits(len(KINDS), MAX_RANK))
        yield found


TARGETS = {
    "phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    "qwen3_moe": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "gpt_neox": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
}


def train(family: str, folder: Path, kinds: dict[str, dict[str, Any]]) -> Trained:
    base = make_checkpoint(family, folder / "base", initializer_range=1.0)
    targets: dict[str, Any] = {"targets": TARGETS[family]} if family in TARGETS else {}
    adapters = {name: make_adapter(base, folder / name, **kind | targets) for name, kind in kinds.items()}
    return Trained(
        base,
        adapters,
        {name: merge(base, path, folder / f"{name} merged") for name, path in adapters.items()},
    )


def requests(names: list[str]) -> list[tuple[list[int], SamplingParams]]:
    """Prompts of which many begin alike, for each of the adapters and for none."""
    rng = random.Random(3)
    prefix = [rng.randrange(VOCAB_SIZE) for _ in range(20)]
    made = []
    for number in range(16):
        length = rng.randrange(1, 20)
        prompt = prefix[:length] if number % 4 < 2 else [rng.randrange(VOCAB_SIZE) for _ in range(length)]
        name = ["", *names][number % (len(names) + 1)]
        made.append((prompt, SamplingParams(max_tokens=12, temperature=0.0, seed=number, adapter=name)))
    return made


def alone(model: PagedModel, prompt: list[int], params: SamplingParams) -> list[int]:
    rig = Rig(model, depth=1, blocks=40)
    rig.ask(0, prompt, params)
    rig.finish()
    return rig.tokens[0]


@pytest.fixture(scope="module")
def expected(trained: Trained) -> list[list[int]]:
    """What the merged models answer, each request by itself."""
    models = {"": load_model(str(trained.base), device=CPU)}
    models |= {name: load_model(str(path), device=CPU) for name, path in trained.merged.items()}
    answers = []
    for prompt, params in requests(list(trained.adapters)):
        plain = SamplingParams(max_tokens=params.max_tokens, temperature=0.0, seed=params.seed)
        answers.append(alone(models[params.adapter], prompt, plain))
    return answers


@pytest.mark.covering(1)
@pytest.mark.parametrize(
    ("depth", "graphs"), [(1, "off"), (2, "off"), (3, "off"), (2, "all"), (3, "none"), (2, "meanwhile")]
)
def test_tokens_are_those_of_the_merged_models(
    trained: Trained, expected: list[list[int]], depth: int, graphs: str
) -> None:
    asked = requests(list(trained.adapters))
    rig = trained.rig(depth, 30, graphs)
    for request, (prompt, params) in enumerate(asked):
        rig.ask(request, prompt, params)
        if request % 3 == 2:
            rig.wait()
        if request == 9:
            rig.kill()
    rig.finish()
    assert [rig.tokens[request] for request in range(len(asked))] == expected
    assert rig.scheduler.counters["prefix_cache_hits"] > 0


def test_a_planted_fault_of_the_prefix_cache_is_seen(
    trained: Trained, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that does not know with which adapter a prefix was computed."""
    monkeypatch.setattr("slipstream.actors.scheduler.adapters.salt_of", lambda salt, adapter: b"")
    asked = requests(list(trained.adapters))
    rig = trained.rig(1, 60)
    for request, (prompt, params) in enumerate(asked):
        rig.ask(request, prompt, params)
    rig.finish()
    assert [rig.tokens[request] for request in range(len(asked))] != expected


def test_adapters_come_and_go_while_others_are_computed(trained: Trained, expected: list[list[int]]) -> None:
    """Loaded under streams, unloaded when their last answer is over, and there again after a death."""
    asked = requests(list(trained.adapters))
    rig = trained.rig(2, 60, loaded=False)
    waiting = dict(enumerate(asked))
    for request, (prompt, params) in list(waiting.items()):
        if not params.adapter:
            rig.ask(request, prompt, params)
            del waiting[request]
    for number, (name, path) in enumerate(trained.adapters.items()):
        rig.change(number, name, str(path))
        while len(rig.changed) <= number:
            rig.turn()
        for request, (prompt, params) in list(waiting.items()):
            if params.adapter == name:
                rig.ask(request, prompt, params)
                del waiting[request]
    assert not waiting
    rig.kill()
    first = next(iter(trained.adapters))
    rig.change(10, first)
    rig.ask(99, [1], SamplingParams(max_tokens=3, seed=0, adapter=first))
    assert rig.ends[99] == "model_not_found"
    assert rig.changed[-1].number != 10, "it is still computed with"
    rig.finish()
    assert [(change.number, change.error) for change in rig.changed] == [(0, ""), (1, ""), (2, ""), (10, "")]
    assert [adapter.name for adapter in rig.changed[-1].adapters] == list(trained.adapters)[1:]
    assert [rig.tokens[request] for request in range(len(asked))] == expected
    assert [adapter.name for adapter in rig.executor.capacity.adapters] == list(trained.adapters)[1:]


def test_beside_quantized_weights_they_add_what_they_add_beside_any(tmp_path: Path) -> None:
    """A layer of 8 bits computes its product, and the adapter's is added to it."""
    quantized, plain = make_quantized("fp8 by blocks", tmp_path)
    adapter = make_adapter(plain, tmp_path / "adapter", seed=1)
    logits = []
    for base in (quantized, plain):
        model = load_model(str(base), device=CPU)
        kept = LoadedAdapters(model.take_adapters(1, MAX_RANK))
        kept.start([Adapter(1, "a", str(adapter))])
        rig = Rig(model, 1, 40, adapters=kept)
        rig.ask(0, [5, 6, 7], SamplingParams(max_tokens=8, temperature=0.0, seed=0, adapter="a"))
        rig.ask(1, [5, 6, 7], SamplingParams(max_tokens=8, temperature=0.0, seed=0))
        rig.finish()
        logits.append(rig.tokens)
    assert logits[0] == logits[1]
    assert logits[0][0] != logits[0][1]


def test_a_projection_that_is_stored_the_other_way_round(tmp_path: Path) -> None:
    """GPT-2's weights are [in, out], and an adapter's are as of any layer."""
    base = make_checkpoint("gpt2", tmp_path / "base", initializer_range=1.0)
    stored = load_file(base / "model.safetensors")
    layer = "transformer.h.0.mlp.c_fc"
    inputs, outputs = stored[f"{layer}.weight"].shape
    assert inputs != outputs
    a, b = torch.randn(4, inputs) / inputs**0.5, torch.randn(outputs, 4)
    config = config_of(base, 4, ("c_fc",)) | {"layers_to_transform": [0], "fan_in_fan_out": True}
    tensors = {f"{PREFIX}{layer}.lora_A.weight": a, f"{PREFIX}{layer}.lora_B.weight": b}
    write_adapter(tmp_path / "adapter", tensors, config)
    shutil.copytree(base, tmp_path / "merged")
    stored[f"{layer}.weight"] += 2.0 * (b @ a).T
    save_file(stored, tmp_path / "merged" / "model.safetensors", {"format": "pt"})
    model = load_model(str(base), device=CPU)
    kept = LoadedAdapters(model.take_adapters(1, MAX_RANK))
    kept.start([Adapter(1, "a", str(tmp_path / "adapter"))])
    rig = Rig(model, 1, 40, adapters=kept)
    params = SamplingParams(max_tokens=12, temperature=0.0, seed=0, adapter="a")
    rig.ask(0, [5, 6, 7], params)
    rig.finish()
    merged = load_model(str(tmp_path / "merged"), device=CPU)
    plain = SamplingParams(max_tokens=12, temperature=0.0, seed=0)
    assert (
        rig.tokens[0]
        == alone(merged, [5, 6, 7], plain)
        != alone(load_model(str(base), device=CPU), [5, 6, 7], plain)
    )


def test_a_pass_that_names_no_adapters_is_computed_without_any(tmp_path: Path) -> None:
    """As the one that measures the scales of an FP8 cache, whatever step was before."""
    base = make_checkpoint("llama", tmp_path / "base")
    model = load_model(str(base), device=CPU)
    expected = paged_logits(model, compared_tokens(model))
    places = model.take_adapters(1, MAX_RANK)
    for _ in places.load(Adapter(1, "a", str(make_adapter(base, tmp_path / "adapter", seed=1)))):
        pass
    places.begin(torch.ones(1, dtype=torch.int32))
    assert torch.equal(paged_logits(model, compared_tokens(model)), expected)


def test_a_token_keeps_its_adapter_in_the_last_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which goes on with those tokens whose logits are asked for, and with their ids."""
    base = make_checkpoint("llama", tmp_path / "base")
    model = load_model(str(base), device=CPU)
    places = model.take_adapters(1, MAX_RANK)
    for _ in places.load(Adapter(1, "a", str(make_adapter(base, tmp_path / "adapter", seed=1)))):
        pass

    def last_logits(ids: list[int]) -> torch.Tensor:
        rows = len(ids)
        batch = PagedBatch(
            cache=allocate(model.kv_layout, 1 + rows, 4, CPU, model.dtype),
            rows=torch.arange(rows),
            kv_lens=torch.full((rows,), 3, dtype=torch.int32),
            query_start=torch.arange(0, 3 * rows + 1, 3, dtype=torch.int32),
            write_index=torch.cat([torch.arange(4 * row, 4 * row + 3) for row in range(1, 1 + rows)]),
            block_table=torch.arange(1, 1 + rows, dtype=torch.int32)[:, None],
            decode_only=False,
            max_kv_len=0,
            adapter_ids=torch.tensor(ids, dtype=torch.int32).repeat_interleave(3),
        )
        tokens, positions = torch.tensor([5, 6, 7]).repeat(rows), torch.arange(3).repeat(rows)
        return model.forward(tokens, positions, batch, torch.arange(2, 3 * rows, 3))

    without, with_it = last_logits([0])[0], last_logits([1])[0]
    assert not torch.allclose(without, with_it)
    found = last_logits([0, 1, 1, 0])
    assert torch.allclose(found, torch.stack([without, with_it, with_it, without]), atol=1e-5)
    monkeypatch.setattr(places, "select", lambda tokens: places.begin(places.ids[: len(tokens)]))
    wrong = last_logits([0, 1, 1, 0])
    assert not torch.allclose(wrong, found, atol=1e-5)


def test_models_with_states_take_none() -> None:
    model = from_config(make_config("mamba"), CPU, torch.float32)
    with pytest.raises(InvalidRequest, match="adapters are not served for models with recurrent layers"):
        model.take_adapters(1, MAX_RANK)
