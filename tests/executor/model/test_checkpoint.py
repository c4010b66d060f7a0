"""What is known of a model before anything is loaded: where it lies, how long its texts may be, and what ends them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from slipstream.actors.checkpoint import (
    CONFIG_DEFAULTS,
    LENGTH_NAMES,
    Checkpoint,
    max_model_len,
    open_checkpoint,
)
from slipstream.actors.template_files import chat_template_sources, read_template
from slipstream.protocol.errors import InvalidRequest, ModelNotSupported
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from slipstream.options.serve import ServeOptions
from slipstream.serving.model_folder import describe, limits_for

LONGROPE = {"rope_type": "longrope", "original_max_position_embeddings": 4096}


def write(folder: Path, **files: dict[str, Any]) -> Checkpoint:
    """A folder whose JSON files are these, by their names without the suffix."""
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return open_checkpoint(str(folder))


def test_a_folder_may_be_named_from_here_or_from_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    write(tmp_path / "models", config={"vocab_size": 7})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("models", "./models", "~/models", f"{tmp_path}/models/"):
        found = open_checkpoint(name)
        assert (found.folder, found.vocab_size) == (tmp_path / "models", 7)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/no/such/folder", "there is no such folder"),
        ("./neither", "there is no such folder"),
        ("a/b/c", "there is no such folder"),
        ("model.gguf", "is a file; give the folder"),
        ("nobody/no-such-model", "there is no such folder, and the hub does not give it"),
        ("empty", r"the folder has no config\.json"),
    ],
)
def test_what_is_no_model_is_refused_by_its_name(
    name: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "model.gguf").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidRequest, match=f"'{name}'.*{reason}"):
        open_checkpoint(name)


@pytest.mark.parametrize(("text", "reason"), [("{", "is not JSON"), ("[1]", "holds a list")])
def test_a_broken_configuration_is_refused_by_its_path(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelNotSupported, match=rf"{tmp_path}{os.sep}config\.json {reason}"):
        open_checkpoint(str(tmp_path))


def test_a_configuration_that_is_nested_too_deep_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a":' * 200_000 + "1" + "}" * 200_000)
    with pytest.raises(ModelNotSupported, match=r"config\.json is not JSON"):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize("given", ["x", 2.5, True, [10**9, "x"], {"a": 1}, 10**30, [1, -(2**70)]])
def test_an_end_token_of_another_type_is_refused_by_its_value(given: Any, tmp_path: Path) -> None:
    checkpoint = write(tmp_path, config={"model_type": "llama", "eos_token_id": given})
    with pytest.raises(ModelNotSupported, match=r"names .* as eos_token_id; expected a number or a list"):
        checkpoint.eos_token_ids()


def test_end_tokens_that_the_model_cannot_write_are_none(tmp_path: Path) -> None:
    """Such as those of a vocabulary that was cut down, or a -1 that stands for none: with `min_tokens` the logits of
    end tokens are set, by their ids."""
    ends = {"eos_token_id": [-1, 4, 99, 100]}
    checkpoint = write(
        tmp_path,
        config={"model_type": "llama", "vocab_size": 100, "eos_token_id": 101},
        generation_config=ends,
    )
    assert checkpoint.eos_token_ids() == [4, 99]


def test_more_end_tokens_than_a_sequence_slot_holds_are_refused(tmp_path: Path) -> None:
    config = {"model_type": "llama", "vocab_size": 100, "max_position_embeddings": 64}
    checkpoint = write(tmp_path, config=config | {"eos_token_id": list(range(65))})
    with pytest.raises(ModelNotSupported, match="names 65 tokens that end an answer; the limit is 64"):
        describe(ServeOptions(), checkpoint)
    checkpoint = write(tmp_path, config=config | {"eos_token_id": list(range(64))})
    found = describe(ServeOptions(), checkpoint)
    assert limits_for(ServeOptions(), checkpoint, found).max_stop_token_ids == 0


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"eos_token": "</s>", "added_tokens_decoder": {"x": {"content": "</s>"}}}},
        {"tokenizer_config": {"eos_token": "</s>", "added_tokens_decoder": {"1": "</s>"}}},
        {"tokenizer_config": {"eos_token": "</s>"}, "tokenizer": {"added_tokens": [{"content": "</s>"}]}},
        {"tokenizer_config": {"eos_token": "</s>"}, "tokenizer": {"added_tokens": 5}},
    ],
    ids=str,
)
def test_added_tokens_that_are_none_are_refused(files: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = write(tmp_path, config={"model_type": "llama"}, **files)
    with pytest.raises(ModelNotSupported, match="are no tokens by their ids"):
        checkpoint.eos_token_ids()


def test_weights_and_a_template_that_are_no_files_are_not_waited_for(tmp_path: Path) -> None:
    checkpoint = write(tmp_path, config={"model_type": "llama"})
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(InvalidRequest, match=r"model\.safetensors is no file"):
        checkpoint.check_weights()
    with pytest.raises(ModelNotSupported, match="/dev/zero is no file"):
        read_template(Path("/dev/zero"))
    large = tmp_path / "large.jinja"
    large.touch()
    os.truncate(large, 1 << 40)
    with pytest.raises(ModelNotSupported, match=r"large\.jinja has more than 1048576 characters"):
        read_template(large)


@pytest.mark.parametrize("given", [7, ["x"], [{"name": "a"}], {"a": 7}, True])
def test_a_chat_template_of_another_type_is_refused_by_its_value(given: Any, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": given}))
    with pytest.raises(ModelNotSupported, match=r"tokenizer_config\.json has .* as chat_template; expected"):
        chat_template_sources(tmp_path)


@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/tool_use.jinja"])
def test_a_chat_template_is_text_in_utf_8(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"\xef\xbb\xbf{{ x }}")
    assert list(chat_template_sources(tmp_path).values()) == ["{{ x }}"], (
        "the mark of an editor is none of it"
    )
    file.write_bytes(b"\xff{{ x }}")
    with pytest.raises(ModelNotSupported, match=rf"the chat template .*{name} cannot be read"):
        chat_template_sources(tmp_path)


def test_a_configuration_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotSupported, match=r"config\.json has no vocab_size"):
        _ = write(tmp_path, config={"model_type": "resnet"}).vocab_size


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({}, None),
        ({"max_position_embeddings": 8192, "n_ctx": 5}, 8192),
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 77}, "max_position_embeddings": 5}, 77),
        ({"max_position_embeddings": 131072, "rope_parameters": LONGROPE}, 4096),
        ({"max_position_embeddings": 131072, "rope_scaling": LONGROPE | {"type": "longrope"}}, 4096),
        # As Phi-3 has it: the original length stands beside the parameters.
        (
            {
                "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": "longrope", "short_factor": [1.0]},
            },
            4096,
        ),
        # A set of parameters for each layer type.
        (
            {
                "max_position_embeddings": 131072,
                "rope_parameters": {
                    "full_attention": LONGROPE,
                    "sliding_attention": {"rope_type": "default"},
                },
            },
            4096,
        ),
        ({"max_position_embeddings": 131072, "rope_parameters": LONGROPE | {"rope_type": "yarn"}}, 131072),
        ({"text_config": {"model_type": "llama4_text", "attention_chunk_size": 1000}}, 131072),
    ],
)
def test_the_longest_text_is_what_the_model_was_made_for(config: dict[str, Any], length: int | None) -> None:
    assert max_model_len(config) == length


@pytest.mark.parametrize("family", CONFIG_DEFAULTS)
def test_what_a_published_configuration_leaves_out_is_what_transformers_takes(
    family: str, tmp_path: Path
) -> None:
    defaults: Any = CONFIG_MAPPING[family]()
    found = write(tmp_path, config={"model_type": "whole", "text_config": {"model_type": family}})
    for name, value in CONFIG_DEFAULTS[family].items():
        assert getattr(defaults, name) == value, name
    assert (found.vocab_size, found.max_model_len) == (defaults.vocab_size, max_model_len(defaults.to_dict()))
    stated = write(tmp_path, config={"text_config": {"model_type": family, "vocab_size": 9}})
    assert stated.vocab_size == 9


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "phi3", "opt", "kimi_linear"])
def test_the_length_is_the_same_from_the_file_and_from_transformers(family: str, tmp_path: Path) -> None:
    family_config: Any = CONFIG_MAPPING[family]
    config = family_config(vocab_size=300)
    config.save_pretrained(tmp_path)
    found = open_checkpoint(str(tmp_path))
    assert found.max_model_len == max_model_len(config.to_dict()) is not None


def test_every_name_that_transformers_has_for_a_length_is_read() -> None:
    types = {
        CONFIG_MAPPING[name].attribute_map.get(LENGTH_NAMES[0]) for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    }
    found = {name for name in types if name is not None}
    assert found >= {"n_positions", "model_max_length"}
    assert found <= set(LENGTH_NAMES)


def test_every_file_may_name_tokens_that_end_an_answer(tmp_path: Path) -> None:
    found = write(
        tmp_path,
        config={"eos_token_id": 5},
        generation_config={"eos_token_id": [9, 5]},
        tokenizer_config={
            "eos_token": {"content": "<end>"},
            "added_tokens_decoder": {"3": {"content": "<end>"}, "4": {"content": "<other>"}},
        },
    )
    assert found.eos_token_ids() == [3, 5, 9]


def test_the_end_that_the_tokenizer_names_is_found_in_its_own_file(tmp_path: Path) -> None:
    found = write(
        tmp_path,
        config={"text_config": {"eos_token_id": [1]}, "eos_token_id": None},
        tokenizer_config={"eos_token": "<end>"},
        tokenizer={"added_tokens": [{"id": 6, "content": "<end>"}, {"id": 7, "content": "<pad>"}]},
    )
    assert found.eos_token_ids() == [1, 6]


@pytest.mark.parametrize(
    ("name", "size"),
    [("num_hidden_layers", 10**9), ("vocab_size", -1), ("vocab_size", 2**40), ("n_ctx", 2**62)],
)
def test_a_size_that_no_model_has_is_refused_before_anything_is_built(
    name: str, size: int, tmp_path: Path
) -> None:
    with pytest.raises(ModelNotSupported, match=f"config.json states {name}={size}; it must be from 1 to"):
        write(tmp_path, config={name: size})


@pytest.mark.parametrize("name", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("given", [[1], 5, "linear"])
def test_parameters_of_a_rotary_embedding_that_are_no_object_are_refused(
    name: str, given: Any, tmp_path: Path
) -> None:
    checkpoint = write(tmp_path, config={"max_position_embeddings": 64, name: given})
    with pytest.raises(ModelNotSupported, match=r"config.json states .* as rope_parameters; expected an obj"):
        _ = checkpoint.max_model_len
