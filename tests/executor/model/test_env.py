"""``slipstream env --model``: supported or not, why, and how much memory, from a folder without its weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from slipstream.actors.executor.model.loading.estimate import estimate
from slipstream.actors.executor.model.loading.load import load_model
from slipstream.protocol.errors import ModelNotSupported
from tiny_models import make_config

from slipstream import cli
from slipstream.options.serve import ServeOptions
from slipstream.serving.service import BUNDLED_MODEL, service_specs

LLAMA_8B = {
    "model_type": "llama",
    "dtype": "bfloat16",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
}


def folder_with(folder: Path, config: dict[str, object]) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["env", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
def test_the_estimate_is_what_the_loaded_model_takes(dtype: str) -> None:
    loaded = load_model(str(BUNDLED_MODEL), device=torch.device("cpu"), dtype=dtype)
    found = estimate(BUNDLED_MODEL, dtype)
    assert found.weight_bytes == loaded.weight_bytes
    assert found.kv_bytes_per_token == loaded.kv_layout.bytes_per_block(1, loaded.dtype)
    assert (found.dtype, found.max_model_len) == (str(loaded.dtype)[6:], loaded.max_model_len)


def test_the_memory_of_a_model_whose_weights_are_not_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = folder_with(tmp_path, LLAMA_8B)
    code, out, _ = run(capsys, "--model", model, "--max-num-seqs=32", "--max-model-len=4096")
    assert code == 0
    assert "supported by its configuration, type 'llama'; the weights are checked at load" in out
    assert "weights      14.96 GiB: 8,030,261,248 parameters in bfloat16\n" in out
    # 32 layers of 8 heads, keys and values of 128 numbers of 2 bytes: 128 KiB.
    assert "cache        128 KiB for each token, 512 MiB for a request of 4,096\n" in out
    assert "together     30.96 GiB for 32 requests of 4,096 tokens at once\n" in out
    code, out, _ = run(capsys, "--model", model, "--dtype=float32")
    assert "weights      29.92 GiB: 8,030,261,248 parameters in float32\n" in out
    assert "cache        256 KiB for each token, 2 GiB for a request of 8,192\n" in out


def test_states_are_told_with_what_they_take(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Falcon Mamba 7B has 64 layers of 8,192 channels, with 16 numbers of state and 4 inputs of a convolution each."""
    config = {
        "model_type": "falcon_mamba",
        "hidden_size": 4096,
        "intermediate_size": 8192,
        "dtype": "bfloat16",
    }
    config |= {"num_hidden_layers": 2, "vocab_size": 1000, "use_mambapy": False}
    options = ("--max-model-len", "1000", "--max-num-seqs", "3", "--block-size", "16")
    code, out, err = run(capsys, "--model", folder_with(tmp_path, config), *options)
    assert (code, err) == (0, "")
    each = 2 * 8192 * (16 * 4 + 4 * 2)  # recurrent states stay in float32
    assert f"states       recurrent layers: {each:,} bytes of state for each sequence" in out
    assert "mamba-ssm" in out
    assert "cache        0 bytes for each token" in out
    found = estimate(tmp_path)
    assert found.state_bytes == each
    assert found.weight_bytes + 4 * each == found.bytes_for(3, 1000, 16), "three, and the slot of padding"


@pytest.mark.parametrize(
    ("family", "dtype", "graphs", "ranks"),
    [
        ("llama", "float32", "of every step", "--tensor-parallel-size 2, 4"),
        ("mixtral", "float32", "none: a mixture of experts in torch.float32", "--tensor-parallel-size 2, 4"),
        ("mixtral", "bfloat16", "of every step", "--tensor-parallel-size 2, 4"),
        ("mamba", "bfloat16", "of steps that decode; those with prompts", "none: transformers has no plan"),
    ],
)
def test_graphs_and_ranks_are_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, family: str, dtype: str, graphs: str, ranks: str
) -> None:
    make_config(family).save_pretrained(tmp_path)
    code, out, _ = run(capsys, "--model", str(tmp_path), "--dtype", dtype)
    assert code == 0
    assert f"graphs       {graphs}" in out
    assert f"ranks        {ranks}" in out


@pytest.mark.parametrize(
    ("family", "told"),
    [
        ("llama", "if its decoder can be replaced"),
        ("mixtral", "on a CPU alone, since a mixture of experts multiplies as many rows"),
        ("mamba", "no: its recurrent layers compute a chunk of a prompt in another way"),
    ],
)
def test_it_is_told_whether_a_model_can_be_batch_invariant(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, family: str, told: str
) -> None:
    make_config(family).save_pretrained(tmp_path)
    code, out, _ = run(capsys, "--model", str(tmp_path))
    assert code == 0
    assert f"invariant    --batch-invariant: {told}" in out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "qwen3_next", "granitemoehybrid", "qwen3_5_moe"])
def test_experts_are_measured_in_any_dtype(family: str, dtype: str, tmp_path: Path) -> None:
    make_config(family).save_pretrained(tmp_path)
    assert estimate(tmp_path, dtype).weight_bytes > 0


@pytest.mark.parametrize(
    ("family", "parts"),
    [
        ("gemma3", "vision_config"),
        ("gemma3n", "vision_config and audio_config"),
        ("mllama", "vision_config"),
        ("gemma4", "vision_config"),
        ("qwen3_5", "vision_config"),
        ("qwen2_5_vl", "vision_config"),
    ],
)
def test_what_is_left_out_of_a_multimodal_checkpoint_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, family: str, parts: str
) -> None:
    make_config(family).save_pretrained(tmp_path)
    code, out, _ = run(capsys, "--model", str(tmp_path))
    assert code == 0
    assert (
        f"text         the language model alone, without {parts}; a picture in a request is an error\n" in out
    )
    states = "states       recurrent layers: " in out
    assert states == (family == "qwen3_5")


def test_nothing_is_left_out_of_a_model_of_text(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--model", str(BUNDLED_MODEL))
    assert code == 0
    assert "text  " not in out


@pytest.mark.parametrize(
    ("family", "told"),
    [
        ("llama", "--lora NAME=FOLDER, beside 14 of its layers"),  # 7 of each of two
        ("qwen3_5", "none: it has recurrent layers"),
    ],
)
def test_whether_adapters_are_served_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, family: str, told: str
) -> None:
    make_config(family).save_pretrained(tmp_path)
    code, out, _ = run(capsys, "--model", str(tmp_path))
    assert code == 0
    assert f"adapters     {told}" in out


def test_what_weights_in_8_bits_take_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Of an 8B model all but the head, the embeddings and the norms, with a scale in float32 for each row."""
    code, out, _ = run(capsys, "--model", folder_with(tmp_path, LLAMA_8B))
    rows = 4096 + 2 * 1024 + 4096 + 2 * 14336 + 4096
    layer = 4096 * (4096 + 2 * 1024 + 4096 + 3 * 14336)
    others = 2 * (2 * 128256 * 4096 + 65 * 4096)
    assert estimate(tmp_path).quantized_bytes == pytest.approx(32 * (layer + 4 * rows) + others, rel=1e-6)
    assert "quantized    no; with --quantization fp8 or int8 its weights take 8.463 GiB on a GPU\n" in out
    assert code == 0
    make_config("mamba").save_pretrained(tmp_path)
    code, out, _ = run(capsys, "--model", str(tmp_path), "--max-model-len=256")
    assert "quantized    no, and it has no layers that --quantization is for\n" in out
    assert code == 0


def test_a_configuration_without_a_length_is_told_as_it_would_be_to_serve(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Those of mamba state none, those of kimi_linear do so by another name."""
    config = make_config("mamba").to_dict()
    config.pop("max_position_embeddings")
    code, out, _ = run(capsys, "--model", folder_with(tmp_path, config))
    assert code == 0
    assert "length       config.json states none: give --max-model-len" in out
    assert "together" not in out
    make_config("kimi_linear").save_pretrained(tmp_path)
    code, out, _ = run(capsys, "--model", str(tmp_path))
    assert code == 0
    assert " for a request of 256\n" in out


def test_a_request_takes_whole_blocks() -> None:
    found = estimate(BUNDLED_MODEL)
    assert found.cache_bytes(17, 16) == found.cache_bytes(32, 16) == 32 * found.kv_bytes_per_token


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "deepseek_v32"}, "choose by an index"),
        ({"model_type": "t5"}, "encoder-decoder"),
        ({"model_type": "of nobody"}, "cannot read its configuration"),
        ({"model_type": "llama", "quantization_config": []}, "cannot read its configuration"),
        ({"model_type": "bloom"}, "not supported"),
    ],
)
def test_a_model_that_is_not_supported_is_told_with_the_reason_and_exit_code_4(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, config: dict[str, object], why: str
) -> None:
    code, out, err = run(capsys, "--model", folder_with(tmp_path, config))
    assert code == 4
    assert "not supported: " in out
    assert why in out
    assert err == ""


LLAMA = {"model_type": "llama", "num_hidden_layers": 1, "vocab_size": 300, "max_position_embeddings": 64}

REFUSED_FILES: dict[str, tuple[dict[str, str], str]] = {
    "many end tokens": (
        {"config.json": json.dumps(LLAMA | {"eos_token_id": list(range(65))})},
        "names 65 tokens that end an answer; the limit is 64",
    ),
    "end tokens of another type": (
        {"generation_config.json": '{"eos_token_id": "x"}'},
        "names 'x' as eos_token_id",
    ),
    "an added token without an id": (
        {"tokenizer_config.json": '{"eos_token": "x", "added_tokens_decoder": {"y": {"content": "x"}}}'},
        "are no tokens by their ids",
    ),
    "a vocabulary of nobody": (
        {"config.json": json.dumps({key: LLAMA[key] for key in LLAMA if key != "vocab_size"})},
        "has no vocab_size",
    ),
    "a template that is no text": (
        {"tokenizer_config.json": '{"chat_template": 7}'},
        "has 7 as chat_template",
    ),
    "no JSON": ({"generation_config.json": "{"}, "generation_config.json is not JSON"),
}
"""Files of a folder that no service starts with, and the reason."""


@pytest.mark.parametrize("name", REFUSED_FILES)
def test_a_folder_that_no_service_starts_with_is_refused_with_the_same_reason(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    files, why = REFUSED_FILES[name]
    for file, text in ({"config.json": json.dumps(LLAMA)} | files).items():
        (tmp_path / file).write_text(text)
    with pytest.raises(ModelNotSupported) as refused:
        service_specs(ServeOptions(model=str(tmp_path), load_format="dummy"), tmp_path)
    assert why in str(refused.value)
    code, out, err = run(capsys, "--model", str(tmp_path))
    assert (code, err) == (4, "")
    assert f"not supported: {refused.value}\n" in out


@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("tokenizer.json", "cannot be read as a tokenizer"),
        ("tokenizer.model", "only tokenizer.model, which is not read"),
        ("pytorch_model.bin", "pytorch_model.bin is not read, since a pickle can run any code"),
    ],
)
def test_a_tokenizer_or_weights_that_are_not_read_are_no_support(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, file: str, why: str
) -> None:
    """Those that are not there yet may come."""
    folder_with(tmp_path, LLAMA)
    code, out, _ = run(capsys, "--model", str(tmp_path))
    assert code == 0
    assert "lacks        tokenizer.json: a service needs it\n" in out
    (tmp_path / file).write_text("{}")
    code, out, err = run(capsys, "--model", str(tmp_path))
    assert (code, err) == (4, "")
    assert why in out


def test_a_length_that_is_not_stated_is_none_by_default(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """transformers has 2,048 for a llama that states none; a service asks for one."""
    unstated = {key: LLAMA[key] for key in LLAMA if key != "max_position_embeddings"}
    code, out, _ = run(capsys, "--model", folder_with(tmp_path, unstated))
    assert code == 0
    assert "length       config.json states none: give --max-model-len" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "/nowhere/at/all"], "model '/nowhere/at/all': there is no such folder"),
        (
            ["--model", str(BUNDLED_MODEL), "--max-model-len=9000"],
            "max_model_len=9000 is over the model's own limit",
        ),
        (["--model", str(BUNDLED_MODEL), "--max-num-seqs=0"], "--max-num-seqs 0 is out of range"),
        (["--max-num-seqs=3"], "--max-num-seqs has no effect without --model M"),
    ],
)
def test_what_is_wrong_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert message in err
