"""Models that cannot be served correctly, and folders that hold no model, are refused with the reason."""

from __future__ import annotations

import io
import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from slipstream.actors.executor.attention import backend as attention
from slipstream.actors.executor.attention import transformers_hook
from slipstream.actors.executor.attention.torch_backend import TorchAttention
from slipstream.actors.executor.attention.transformers_hook import attention_chunk_of, attention_temperature
from slipstream.actors.executor.cache.paged_batch import PagedBatch
from slipstream.actors.executor.model import support
from slipstream.actors.executor.model.comparison import compared
from slipstream.actors.executor.model.loading.load import from_config, load_model
from slipstream.protocol.errors import InvalidRequest, ModelNotSupported
from tiny_models import make_checkpoint, make_config
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GPTJConfig, PreTrainedConfig, PreTrainedModel

CPU = torch.device("cpu")

torch.set_num_threads(1)


def load(folder: Path | str, backend: str = "torch", dtype: str = "float32") -> Any:
    return load_model(str(folder), device=CPU, dtype=dtype, attention_backend=backend)


REFUSED = {
    "deepseek_v32": "'indexed_attention' choose by an index which tokens they attend to",
    "bloom": "computes attention by itself",
    "mpt": "computes attention by itself",
    "t5": "encoder-decoder",
    "paligemma": "parts beside its language model .*not known that text needs none",
    "fuyu": "parts beside its language model",
    "resnet": "no causal language model",
}


@pytest.mark.parametrize("family", REFUSED)
def test_families_that_would_be_silently_wrong(family: str) -> None:
    with pytest.raises(ModelNotSupported, match=REFUSED[family]) as refusal:
        support.check_config(CONFIG_MAPPING[family]())
    assert repr(family) in str(refusal.value)


def test_gptj_is_refused_where_it_computes_attention_by_itself_and_right_where_it_does_not() -> None:
    """transformers 5.24 lets other attention in; releases before it do not."""
    config = GPTJConfig(vocab_size=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=64)
    if support.causal_lm_class(config)._supports_attention_backend:
        with compared(from_config(config, CPU, torch.float32)):
            pass
    else:
        with pytest.raises(ModelNotSupported, match="computes attention by itself"):
            support.check_config(config)


def test_a_class_that_another_package_has_put_in_the_place_of_transformers_own_is_named_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """flash-linear-attention does so with mamba2, when its kernels are imported for another model."""
    config = make_config("mamba2")
    support.check_config(config)
    theirs = type(
        "Mamba2ForCausalLM", (PreTrainedModel,), {"__module__": "fla.models.mamba2.modeling_mamba2"}
    )
    theirs_config = type("Mamba2Config", (PreTrainedConfig,), {"model_type": "mamba2"})
    mapping: Any = AutoModelForCausalLM._model_mapping  # type: ignore[attr-defined]
    monkeypatch.setitem(mapping._extra_content, theirs_config, theirs)
    with pytest.raises(ModelNotSupported, match="Mamba2ForCausalLM, which the package 'fla' has registered,"):
        support.check_config(theirs_config())
    support.check_config(config)


def test_refusal_comes_before_any_weight_is_read(tmp_path: Path) -> None:
    make_config("deepseek_v32").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not read")
    with pytest.raises(ModelNotSupported, match="indexed_attention"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("bert", "attend to later tokens"),
        ("minimax", "uses cache of its own"),
        ("recurrent_gemma", r"of its 2 layers the attention was called by \[\]"),
        ("doge", "its own mask"),
        ("nemotron", "not given the keyword"),
    ],
)
def test_attention_that_asks_for_more(family: str, reason: str) -> None:
    with pytest.raises(ModelNotSupported, match=reason):
        from_config(make_config(family), CPU, torch.float32)


def test_attention_that_layers_share_is_of_no_type() -> None:
    config = make_config("llama4_text")
    for layer, chunk in ((0, config.attention_chunk_size), (1, None), (None, None), (7, None)):
        assert attention_chunk_of(SimpleNamespace(config=config, layer_idx=layer)) == chunk


@pytest.mark.parametrize("family", ["lfm2", "mamba2", "qwen3_next"])
def test_states_that_an_older_transformers_lets_nobody_reach(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(transformers.Cache, "get_conv_state")
    folder = make_checkpoint(family, tmp_path)
    reason = r"its recurrent states can be reached from transformers 5\.21 on, and .* is installed"
    with pytest.raises(ModelNotSupported, match=reason):
        load_model(str(folder), device=CPU, dtype="float32")


def test_attention_called_twice_in_a_layer() -> None:
    with pytest.raises(ModelNotSupported, match=r"of its 2 layers .* by \[0, 0, 1, 1\]"):
        from_config(make_config("diffllama"), CPU, torch.float32)


class Faulty(TorchAttention):
    """The torch backend with one planted fault."""

    name = "faulty"

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, layer: int, batch: PagedBatch, **options: Any
    ) -> Tensor:
        match self.fault:
            case "no window":
                options["sliding_window"] = None
            case "wider window" if options["sliding_window"]:
                options["sliding_window"] += 1
            case "no chunks":
                options["attention_chunk"] = None
            case "shorter chunks" if options["attention_chunk"]:
                options["attention_chunk"] -= 1
            case "no sinks":
                options["sinks"] = None
            case "no softcap":
                options["softcap"] = None
            case "scale":
                options["scale"] *= 1.05
            case "swapped heads":
                key = key.flip(1)
            case "block table":
                batch = replace(batch, block_table=batch.block_table.flip(1))
            case "second layer is empty" if layer == 1:
                value = torch.zeros_like(value)
        return super().__call__(query, key, value, layer, batch, **options)


@pytest.mark.parametrize(
    ("family", "fault"),
    [
        ("llama", "scale"),
        ("llama", "swapped heads"),
        ("llama", "block table"),
        ("llama", "second layer is empty"),
        ("mistral", "no window"),
        ("mistral", "wider window"),
        ("gemma3_text", "no window"),
        ("gemma2", "no softcap"),
        ("gpt_oss", "no sinks"),
        ("llama4_text", "no chunks"),
        ("llama4_text", "shorter chunks"),
    ],
)
def test_comparison_refuses_a_planted_fault(
    family: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(attention._factories, "faulty", attention.Factories(lambda: Faulty(fault), None))
    # A window far beyond the tokens compared, as real models have.
    wide = {"sliding_window": 4096} if fault.endswith("window") else {}
    if fault.endswith("chunks"):
        wide = {"attention_chunk_size": 8192, "floor_scale": 8192}
    folder = make_checkpoint(family, tmp_path, **wide)
    with pytest.raises(ModelNotSupported, match="differ from plain attention by"):
        load(folder, "faulty")
    if wide:
        config = load(folder).transformer.config
        assert {name: getattr(config, name) for name in wide} == wide, "the comparison leaves no trace"


@pytest.mark.parametrize("fault", ["not scaled", "by the place in the step"])
def test_comparison_refuses_queries_that_are_not_scaled_by_position(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(module: Any, positions: Tensor) -> Tensor:
        places = torch.arange(len(positions)) if fault != "not scaled" else torch.zeros(len(positions))
        return attention_temperature(module, places)

    folder = make_checkpoint("llama4_text", tmp_path, floor_scale=8192)
    load(folder)
    monkeypatch.setattr(transformers_hook, "attention_temperature", faulty)
    with pytest.raises(ModelNotSupported, match="differ from plain attention by"):
        load(folder)


@pytest.mark.parametrize(("family", "fault"), [("llama", "block table"), ("gemma3_text", "no window")])
def test_comparison_refuses_a_planted_fault_in_half_precision(
    family: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(attention._factories, "faulty", attention.Factories(lambda: Faulty(fault), None))
    with pytest.raises(ModelNotSupported, match="differ from plain attention by"):
        load(make_checkpoint(family, tmp_path), "faulty", "bfloat16")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt_oss"])
def test_comparison_accepts_half_precision(family: str, dtype: str, tmp_path: Path) -> None:
    assert load(make_checkpoint(family, tmp_path), dtype=dtype).dtype == getattr(torch, dtype)


def test_folder_that_does_not_exist() -> None:
    with pytest.raises(InvalidRequest, match=r"'/no/such/model'.*no such folder"):
        load("/no/such/model")


def test_name_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InvalidRequest, match=r"'nobody/no-such-model': there is no such folder, and the hub"):
        load("nobody/no-such-model")


def test_folder_without_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"no config\.json"):
        load(tmp_path)


def test_folder_without_weights(tmp_path: Path) -> None:
    make_config("llama").save_pretrained(tmp_path)
    with pytest.raises(InvalidRequest, match=r"no weights; looked for model\.safetensors or"):
        load(tmp_path)


def test_folder_with_pickled_weights_only(tmp_path: Path) -> None:
    make_config("llama").save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InvalidRequest, match=r"pytorch_model\.bin is not read"):
        load(tmp_path)


def test_damaged_weights(tmp_path: Path) -> None:
    (make_checkpoint("llama", tmp_path) / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ModelNotSupported, match=r"model\.safetensors cannot be read"):
        load(tmp_path)


def test_incomplete_weights(tmp_path: Path) -> None:
    file = make_checkpoint("llama", tmp_path) / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelNotSupported, match=r"1 missing \(model\.layers\.1\.mlp\.up_proj\.weight\)"):
        load(tmp_path)


def test_nothing_is_said_of_weights_that_are_whole(tmp_path: Path) -> None:
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    transformers = logging.getLogger("transformers")
    transformers.addHandler(handler)
    try:
        load(make_checkpoint("llama", tmp_path))
    finally:
        transformers.removeHandler(handler)
    assert said.getvalue() == ""


def test_weights_of_another_size_than_the_configuration_says(tmp_path: Path) -> None:
    config = make_checkpoint("llama", tmp_path) / "config.json"
    said = json.loads(config.read_text())
    config.write_text(json.dumps(said | {"intermediate_size": 2 * said["intermediate_size"]}))
    with pytest.raises(ModelNotSupported, match=r"do not fit its config\.json: \d+ mismatched \(.*mlp"):
        load(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "nobody_knows"},
        {"model_type": "nobody_knows", "auto_map": {"AutoConfig": "evil.Config"}},
        {"num_hidden_layers": "two"},
    ],
)
def test_configuration_that_transformers_cannot_read(changes: dict[str, Any], tmp_path: Path) -> None:
    file = make_checkpoint("llama", tmp_path) / "config.json"
    (tmp_path / "evil.py").write_text("raise SystemExit('the folder's code ran')")
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ModelNotSupported, match="configuration"):
        load(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"hidden_act": "nope"}, {"rope_parameters": {"rope_type": "nope", "rope_theta": 1e4}}],
    ids=["activation", "rope"],
)
def test_a_configuration_of_which_transformers_makes_no_model(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    file = make_checkpoint("llama", tmp_path) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ModelNotSupported, match=r"makes no model of this configuration: KeyError: .*nope"):
        load(tmp_path)


def test_code_of_the_folder_never_runs(tmp_path: Path) -> None:
    file = make_checkpoint("llama", tmp_path) / "config.json"
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    mapping = {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | mapping))
    assert type(load(tmp_path).transformer).__name__ == "LlamaForCausalLM"


def test_broken_configuration_file(tmp_path: Path) -> None:
    (make_checkpoint("llama", tmp_path) / "config.json").write_text("{")
    with pytest.raises(ModelNotSupported, match=r"config\.json is not JSON"):
        load(tmp_path)


def test_unknown_dtype_and_backend(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"'int3'.*auto, float32"):
        load(tmp_path, dtype="int3")
    with pytest.raises(InvalidRequest, match=r"'warp'.*torch"):
        load(tmp_path, backend="warp")


def test_random_weights_are_the_same_for_a_seed() -> None:
    config = make_config("llama")
    models = [from_config(config, CPU, torch.float32, seed) for seed in (1, 1, 2)]
    first, again, other = (model.transformer.get_parameter("lm_head.weight") for model in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_frequencies_do_not_depend_on_the_batch(kind: str) -> None:
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    model = from_config(make_config("llama", rope_parameters=rope, head_dim=8), CPU, torch.float32)
    with compared(model):
        pass
    rotary: Any = model.transformer.get_submodule("model.rotary_emb")
    states = torch.zeros(1, 2, 8)
    near, _ = rotary(states, torch.tensor([[3, 4]]))
    mixed, _ = rotary(states, torch.tensor([[3, 200]]))
    assert torch.equal(near[0, 0], mixed[0, 0])
    assert model.max_model_len == (32 if kind == "longrope" else 256)


def test_a_token_for_padding_that_the_vocabulary_has_not_is_of_no_account(tmp_path: Path) -> None:
    """Torch makes no embedding with one, and its traceback ended the start."""
    folder = make_checkpoint("llama", tmp_path / "model")
    expected = load(folder).transformer.get_input_embeddings().weight
    config = json.loads((folder / "config.json").read_text())
    for token in (10**9, config["vocab_size"], -(10**9)):
        (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": token}))
        assert torch.equal(load(folder).transformer.get_input_embeddings().weight, expected)
