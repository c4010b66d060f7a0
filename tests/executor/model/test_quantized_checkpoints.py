"""A checkpoint with quantized weights computes what they stand for, exactly; what is not read is named at the start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from quantized import STORED, compressed, make_quantized, write
from safetensors.torch import load_file, save_file
from slipstream.actors.executor.attention.torch_backend import TorchAttention
from slipstream.actors.executor.model.comparison import compared_tokens, paged_logits
from slipstream.actors.executor.model.fused.fuse import fuse
from slipstream.actors.executor.model.loading.estimate import estimate
from slipstream.actors.executor.model.loading.load import load_model, load_transformer, make_model
from slipstream.actors.executor.model.paged_model import PagedModel
from slipstream.actors.executor.model.quantization.checkpoint import read_as
from slipstream.actors.executor.model.quantization.linear import (
    QuantizedLinear,
    check_products,
    quantize_layers,
)
from slipstream.actors.executor.model.quantization.products import STORED as MULTIPLIED
from slipstream.protocol.errors import InvalidRequest, ModelNotSupported
from slipstream.runtime.options.sources import resolve
from tiny_models import MULTIMODAL, make_checkpoint, make_config
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from slipstream import cli
from slipstream.options.serve import ServeOptions

CPU = torch.device("cpu")

torch.set_num_threads(1)


def logits_of(folder: Path, dtype: str = "float32") -> Tensor:
    model = load_model(str(folder), device=CPU, dtype=dtype)
    assert model.unfused_because == ""
    with torch.inference_mode():
        return paged_logits(model, compared_tokens(model))


@pytest.mark.parametrize("kind", STORED)
def test_logits_are_exactly_those_of_the_dequantized_model(kind: str, tmp_path: Path) -> None:
    quantized, plain = make_quantized(kind, tmp_path)
    assert torch.equal(logits_of(quantized), logits_of(plain))


def test_rounded_once_in_half_precision(tmp_path: Path) -> None:
    quantized, plain = make_quantized("fp8 by blocks", tmp_path)
    assert torch.equal(logits_of(quantized, "bfloat16"), logits_of(plain, "bfloat16"))


def test_experts_that_a_checkpoint_has_one_by_one(tmp_path: Path) -> None:
    """transformers stacks them when it loads them."""
    quantized, plain = make_quantized("compressed fp8 by rows", tmp_path, "qwen3_moe")
    assert any(
        ".experts.3.up_proj.weight_scale" in name for name in load_file(quantized / "model.safetensors")
    )
    assert torch.equal(logits_of(quantized), logits_of(plain))


def test_the_language_model_of_a_multimodal_checkpoint(tmp_path: Path) -> None:
    quantized, plain = make_quantized("gptq", tmp_path, "llava")
    assert "llava" in MULTIMODAL
    assert torch.equal(logits_of(quantized), logits_of(plain))


def test_mxfp4_of_gpt_oss(tmp_path: Path) -> None:
    folder, plain = (
        make_checkpoint("gpt_oss", tmp_path / "quantized", intermediate_size=64),
        tmp_path / "plain",
    )
    tensors = load_file(folder / "model.safetensors")
    stored, dense = dict(tensors), dict(tensors)
    torch.manual_seed(7)
    for name, tensor in tensors.items():
        if name.endswith("experts.gate_up_proj") or name.endswith("experts.down_proj"):
            experts, width, height = tensor.shape
            blocks = torch.randint(0, 256, (experts, height, width // 32, 16), dtype=torch.uint8)
            exponents = torch.randint(118, 124, (experts, height, width // 32), dtype=torch.uint8)
            dense[name] = convert_moe_packed_tensors(blocks, exponents, dtype=torch.float32)
            del stored[name]
            stored |= {f"{name}_blocks": blocks, f"{name}_scales": exponents}
    write(folder, plain, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, stored, dense)
    assert torch.equal(logits_of(folder), logits_of(plain))


def test_it_is_said_what_that_costs(tmp_path: Path) -> None:
    quantized, plain = make_quantized("awq", tmp_path)
    assert load_model(str(plain), device=CPU).weights_format == ""
    assert load_model(str(quantized), device=CPU, dtype="bfloat16").weights_format == (
        "weights AWQ int4, dequantized to bfloat16: they take 4.0 times the memory of the files, and a step that much"
        " longer to read them"
    )


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        "'bitsandbytes', and only the package of that name",
    ),
    (
        {"quant_method": "of nobody"},
        "'of nobody', and that is not known here; take a checkpoint in bfloat16, or",
    ),
    ({"load_in_4bit": True}, "quantized by None"),
    ({"quant_method": "fp8", "fmt": "e5m2"}, "of the form 'e5m2'; e4m3 is read"),
    ({"quant_method": "fp8", "weight_block_size": [128]}, r"weight_block_size is \[128\]"),
    ({"quant_method": "gptq", "bits": 3}, "of 3 bits; 4 and 8 are read"),
    ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "the format 'marlin'"),
    ({"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*down.*": {"bits": 8}}}, r"dynamic: '\+:.*down"),
    ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "the version 'gemv'"),
    ({"quant_method": "mxfp4"}, "'mxfp4', which is read of gpt_oss alone"),
    (
        compressed("nvfp4-pack-quantized", "float", 4, "tensor_group"),
        "the format 'nvfp4-pack-quantized'; read are",
    ),
    (compressed("pack-quantized", "int", 2, "group"), "of 2 bits and type 'int'"),
    (compressed("int-quantized", "int", 8, "token"), "the strategy 'token'"),
    (compressed("float-quantized", "float", 8, "channel") | {"quantization_status": "frozen"}, "'frozen'"),
    (
        compressed("float-quantized", "float", 8, "channel")
        | {"sparsity_config": {"format": "sparse-24-bitmask"}},
        "sparse-24-bitmask",
    ),
    (
        compressed("int-quantized", "int", 8, "channel") | {"transform_config": {"config_groups": {"u": 1}}},
        "rotated",
    ),
    (compressed("int-quantized", "int", 8, "channel") | {"config_groups": {}}, "name no weights"),
]


@pytest.mark.parametrize(("said", "reason"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_what_is_not_read_is_refused_before_any_weight_is(
    said: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    make_config("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    (tmp_path / "model.safetensors").write_bytes(b"not read")
    with pytest.raises(ModelNotSupported, match=f"model type 'llama' is not supported: .*{reason}"):
        load_model(str(tmp_path), device=CPU)


def test_env_tells_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quantized, _ = make_quantized("fp8 by blocks", tmp_path)
    assert cli.main(["env", "--model", str(quantized)]) == 0
    assert "quantized    FP8 in blocks of 12 x 20 (fp8)" in capsys.readouterr().out
    config = json.loads((quantized / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (quantized / "config.json").write_text(json.dumps(config))
    assert cli.main(["env", "--model", str(quantized)]) == 4
    assert (
        "not supported: model type 'llama' is not supported: its weights are quantized by 'bitsandbytes'"
        in (capsys.readouterr().out)
    )


def changed(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


NAME = "model.layers.1.mlp.up_proj"


def test_half_of_a_weight_is_named(tmp_path: Path) -> None:
    for kind, part in (("compressed fp8 by rows", "weight_scale"), ("gptq", "qzeros")):
        folder, _ = make_quantized(kind, tmp_path / part)
        changed(folder, lambda tensors, part=part: tensors.pop(f"{NAME}.{part}"))
        with pytest.raises(
            ModelNotSupported, match=f"{NAME}.* is quantized, and its {NAME}.{part} is missing"
        ):
            load_model(str(folder), device=CPU)


def test_scales_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folder, _ = make_quantized("compressed int8", tmp_path)
    changed(folder, lambda tensors: tensors.update({f"{NAME}.weight_scale": torch.ones(7, 1)}))
    with pytest.raises(
        ModelNotSupported, match=rf"scales of {NAME}.weight have the shape \[7, 1\], .* 48 x 32"
    ):
        load_model(str(folder), device=CPU)


def test_a_weight_that_is_not_there_is_missing(tmp_path: Path) -> None:
    folder, _ = make_quantized("gptq", tmp_path)
    changed(
        folder,
        lambda tensors: [tensors.pop(f"{NAME}.{part}") for part in ("qweight", "qzeros", "scales", "g_idx")],
    )
    with pytest.raises(ModelNotSupported, match=rf"1 missing \({NAME}.weight\)"):
        load_model(str(folder), device=CPU)


def test_weights_that_state_no_dtype_are_estimated_in_the_one_that_they_are_loaded_in(tmp_path: Path) -> None:
    folder, _ = make_quantized("gptq", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config.pop("dtype")
    (folder / "config.json").write_text(json.dumps(config))
    loaded, found = load_model(str(folder), device=CPU), estimate(folder)
    assert (loaded.dtype, found.dtype) == (torch.bfloat16, "bfloat16")
    assert found.kv_bytes_per_token == loaded.kv_layout.bytes_per_block(1, loaded.dtype)


def test_a_plain_folder_that_says_it_is_quantized(tmp_path: Path) -> None:
    folder, plain = make_quantized("gptq", tmp_path)
    (plain / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(ModelNotSupported, match="says that weights are quantized by 'gptq', and none is"):
        load_model(str(plain), device=CPU)


@pytest.mark.parametrize(
    ("error", "told_as"),
    [
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            RuntimeError,
        ),
        (RuntimeError("shapes [2] and [3] do not match"), ModelNotSupported),
    ],
)
def test_a_lack_of_memory_is_no_fault_of_the_folder(error: Exception, told_as: type[Exception]) -> None:
    with pytest.raises(told_as) as told, read_as(NAME):
        raise error
    assert (told.value is error) is (told_as is RuntimeError)


def test_one_file_of_weights_is_read_whatever_an_index_beside_it_says(tmp_path: Path) -> None:
    """As transformers does."""
    folder, _ = make_quantized("gptq", tmp_path)
    assert (folder / "model.safetensors").exists()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "elsewhere.safetensors"}})
    )
    load_model(str(folder), device=CPU)


@pytest.mark.parametrize(
    ("kind", "part", "change", "told"),
    [
        ("gptq", "g_idx", lambda order: order + 1000, "are not 32 of 0 to 1"),
        ("gptq", "g_idx", lambda order: order - 1, "are not 32 of 0 to 1"),
        ("gptq", "g_idx", lambda order: order[:5], "are not 32 of 0 to 1"),
        ("gptq", "qweight", lambda words: words.float(), f"the tensors of {NAME}.weight do not fit together"),
        ("gptq", "qweight", lambda words: words.long(), "packed into torch.int64; torch.int32 is read"),
        (
            "gptq",
            "scales",
            lambda scales: scales.to(torch.int8),
            f"scales of {NAME}.weight are stored as torch.int8",
        ),
        (
            "awq",
            "scales",
            lambda scales: scales.to(torch.uint8),
            "stored as torch.uint8: exponents, or numbers",
        ),
        ("compressed int4", "weight_scale", lambda scales: scales.int(), "stored as torch.int32: exponents"),
        ("compressed int8", "weight_scale", lambda scales: scales.to(torch.uint8), "stored as torch.uint8"),
        (
            "compressed int8",
            "weight",
            lambda values: values.bfloat16(),
            "is stored as torch.bfloat16; numbers of 8",
        ),
        ("gptq", "qweight", lambda words: words[:2], "are not 16 of 0 to 1"),
        ("compressed int4", "weight_shape", lambda shape: shape[:1], "do not fit together"),
    ],
)
def test_tensors_that_do_not_fit_together_are_named(
    kind: str, part: str, change: Any, told: str, tmp_path: Path
) -> None:
    folder, _ = make_quantized(kind, tmp_path)
    changed(folder, lambda tensors: tensors.update({f"{NAME}.{part}": change(tensors[f"{NAME}.{part}"])}))
    with pytest.raises(ModelNotSupported, match=told):
        load_model(str(folder), device=CPU)


def test_groups_that_are_none_are_refused(tmp_path: Path) -> None:
    folder, _ = make_quantized("compressed int4", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for groups in ({"group_0": 5}, {"group_0": {"weights": 5}}, {"group_0": {"weights": {"type": "int"}}}, 5):
        config["quantization_config"]["config_groups"] = groups
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ModelNotSupported, match=r"cannot be read|are of None bits"):
            load_model(str(folder), device=CPU)


def test_integers_are_no_weights_where_nothing_says_what_they_stand_for(tmp_path: Path) -> None:
    """As where a quantized checkpoint has lost its `quantization_config`."""
    folder = make_checkpoint("llama", tmp_path)
    changed(
        folder, lambda tensors: tensors.update({f"{NAME}.weight": tensors[f"{NAME}.weight"].to(torch.int8)})
    )
    with pytest.raises(
        ModelNotSupported, match=rf"{NAME}\.weight is stored as I8, and config.json has no quantiz"
    ):
        load_model(str(folder), device=CPU)


@pytest.mark.parametrize("said", [None, [], {}, "x", {"model.norm.weight": 5}], ids=str)
def test_an_index_that_is_none_is_refused_by_its_value(said: Any, tmp_path: Path) -> None:
    folder = make_checkpoint("llama", tmp_path)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": said}))
    with pytest.raises(
        ModelNotSupported, match=r"index\.json has .* as weight_map; expected the file of each weight"
    ):
        load_model(str(folder), device=CPU)


def test_a_dtype_that_is_a_list_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint("llama", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": ["float32"]}))
    with pytest.raises(ModelNotSupported, match="cannot read its configuration"):
        load_model(str(folder), device=CPU)


@pytest.mark.parametrize("kind", ["plain", "quantized"])
def test_a_shard_that_is_cut_short_is_named(kind: str, tmp_path: Path) -> None:
    make_quantized("awq", tmp_path)
    folder = tmp_path / kind
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(
        ModelNotSupported, match=f"{file} cannot be read: .*; if it is cut short or missing, fetch it"
    ):
        load_model(str(folder), device=CPU)


def test_what_macos_puts_beside_shards_is_no_shard(tmp_path: Path) -> None:
    make_quantized("awq", tmp_path)
    folder = tmp_path / "quantized"
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "._model-00001-of-00001.safetensors").write_bytes(b"\0\5\26\7" + bytes(100))
    load_model(str(folder), device=CPU)


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    _, folder = make_quantized("awq", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors, folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors").unlink()
    where = dict.fromkeys(tensors, "model-00001-of-00002.safetensors") | {
        "model.norm.weight": "model-00002-of-00002.safetensors"
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    with pytest.raises(ModelNotSupported, match=r"model-00002-of-00002\.safetensors cannot be read"):
        load_model(str(folder), device=CPU)


# --- kept as they are stored, as on a GPU ---------------------------------------------------------


KEPT = [
    "fp8 by tensor",
    "fp8 by wide blocks",
    "fbgemm",
    "compressed int8",
    "compressed int4 with zeros",
    "gptq",
    "awq",
]


def kept_model(folder: Path, dtype: str = "float32") -> PagedModel:
    """What a GPU is given; a CPU computes the same more slowly."""
    transformer, told = load_transformer(str(folder), dtype, keep=MULTIPLIED)
    assert told.endswith("as they are stored") or "each in 8 bits" in told
    return PagedModel(transformer, TorchAttention())


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "llava"])
@pytest.mark.parametrize("kind", KEPT)
def test_kept_weights_are_joined_and_give_the_logits_of_the_dequantized_model(
    kind: str, family: str, tmp_path: Path
) -> None:
    quantized, plain = make_quantized(kind, tmp_path, family)
    model = kept_model(quantized)
    with torch.inference_mode():
        before = paged_logits(model, compared_tokens(model))
        fuse(model)
        assert model.unfused_because == ""
        found = paged_logits(model, compared_tokens(model))
    layers = [module for module in model.transformer.modules() if isinstance(module, QuantizedLinear)]
    assert len(layers) == 4 * len(model.kv_layout.layers), "what each layer multiplies with"
    expected = logits_of(plain)
    assert torch.equal(found, expected), "the numbers are the same"
    assert float((before - expected).norm() / expected.norm()) < 1e-5


def test_what_is_no_linear_layer_is_dequantized_and_told(tmp_path: Path) -> None:
    folder, plain = make_quantized("compressed fp8 by rows", tmp_path, "qwen3_moe")
    transformer, told = load_transformer(str(folder), "bfloat16", keep=MULTIPLIED)
    assert told.startswith("weights FP8, 24 of 32, dequantized to bfloat16: they take 2.0 times"), told
    model = PagedModel(transformer, TorchAttention())
    expected = load_model(str(plain), device=CPU, dtype="bfloat16")
    with torch.inference_mode():
        fuse(model)
        tokens = compared_tokens(model)
        assert torch.equal(paged_logits(model, tokens), paged_logits(expected, tokens))


@pytest.mark.parametrize("kind", ["fp8 by blocks", "gptq in shuffled groups", "gptq of 8 bits"])
def test_weights_that_no_product_takes_are_dequantized(kind: str, tmp_path: Path) -> None:
    """Scales for parts of rows that are no tiles, groups in an order of their own, 8 bits and a zero point."""
    folder, _ = make_quantized(kind, tmp_path)
    transformer, told = load_transformer(str(folder), "bfloat16", keep=MULTIPLIED)
    assert "dequantized to bfloat16: they take" in told
    assert not any(isinstance(module, QuantizedLinear) for module in transformer.modules())


def test_a_product_that_is_wrong_is_named_with_its_layer(tmp_path: Path) -> None:
    folder, _ = make_quantized("gptq", tmp_path)
    transformer, _ = load_transformer(str(folder), "float32", keep=MULTIPLIED)
    check_products(transformer, torch.float32)
    layer: Any = transformer.get_submodule("model.layers.0.mlp.down_proj")
    layer.multiply = lambda states: QuantizedLinear.multiply(layer, states) * 1.1
    with pytest.raises(
        ModelNotSupported, match=r"products of 1 rows .* of model\.layers\.0\.mlp\.down_proj differ by 0\.1 "
    ):
        check_products(transformer, torch.float32)


# --- quantized at load ----------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "most"), [("fp8", 448.0), ("int8", 127.0)])
def test_weights_quantized_at_load_are_the_nearest_with_a_scale_for_each_row(
    kind: str, most: float, tmp_path: Path
) -> None:
    folder = make_checkpoint("llama", tmp_path)
    before, _ = load_transformer(str(folder), "float32")
    after, _ = load_transformer(str(folder), "float32")
    told = quantize_layers(after, kind, CPU)
    assert told.startswith(
        f"weights rounded to {kind.replace('fp8', 'FP8')} and kept as they were, which a CPU"
    )
    changed = 0
    for (name, weight), (_, found) in zip(before.named_parameters(), after.named_parameters(), strict=True):
        if not name.endswith("_proj.weight"):
            assert torch.equal(found, weight), "embeddings, norms and the head stay as they are"
            continue
        changed += 1
        scales = weight.abs().amax(1, keepdim=True) / most
        step = (weight.abs() / 16).clamp(min=scales * 2**-10) if kind == "fp8" else scales / 2
        assert bool(((found - weight).abs() <= step * 1.001).all())
        assert torch.allclose(found.abs().amax(1), weight.abs().amax(1)), "the largest of a row stays"
    assert changed == 14


def test_a_service_with_quantized_weights_says_so(tmp_path: Path) -> None:
    folder = str(make_checkpoint("llama", tmp_path))
    for load in (load_model, make_model):
        model = load(folder, device=CPU, quantization="int8")
        assert model.weights_format.startswith("weights rounded to int8")
        assert model.unfused_because == ""


def test_quantized_weights_are_not_quantized_again(tmp_path: Path) -> None:
    folder, _ = make_quantized("gptq", tmp_path)
    with pytest.raises(InvalidRequest, match=r"'fp8': this model is quantized already \(weights GPTQ"):
        load_model(str(folder), device=CPU, quantization="fp8")


def test_a_model_without_projections_is_not_quantized(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="GPT2LMHeadModel has no projections that are known; leave out"):
        load_model(str(make_checkpoint("gpt2", tmp_path)), device=CPU, quantization="fp8")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"quantization": "fp8", "device": "emulated"},
            "quantization=fp8 has no effect with device=emulated",
        ),
    ],
)
def test_an_option_that_could_have_no_effect_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        resolve(ServeOptions, keywords=options)
