"""One table of options: its layers, where each value is from, and what is refused."""

from __future__ import annotations

import argparse
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from slipstream.runtime.options.command_line import add_arguments, show, to_arguments
from slipstream.runtime.options.sources import Resolved, resolve
from slipstream.runtime.options.table import table
from slipstream.runtime.options.values import size

from slipstream import InvalidRequest
from slipstream.options.route import RouteOptions
from slipstream.options.serve import ServeOptions
from slipstream.serving.child_specs import model_defaults


def resolved(*arguments: str, environ: Mapping[str, str] | None = None) -> Resolved[ServeOptions]:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_arguments(parser, ServeOptions)
    return resolve(ServeOptions, arguments=vars(parser.parse_args(arguments)), environ=environ or {})


def given(**keywords: Any) -> ServeOptions:
    return resolve(ServeOptions, keywords=keywords, environ={}).options


def test_defaults() -> None:
    options = resolved().options
    assert options == ServeOptions()
    assert options.model is None
    assert (options.max_num_seqs, options.max_num_batched_tokens, options.block_size) == (256, None, 16)
    assert (options.pipeline_depth, options.max_queued_requests, options.shutdown_timeout) == (2, 1024, 30.0)
    assert options.enable_prefix_caching
    assert options.gpu_memory_utilization == 0.9


def test_every_option_of_the_contract_is_there() -> None:
    names = """endpoint http device dtype max-num-seqs max-num-batched-tokens max-model-len block-size
        gpu-memory-utilization kv-cache-memory pipeline-depth no-enable-prefix-caching attention-backend
        max-queued-requests shutdown-timeout seed config ready-fd exit-with-parent print-config log-format"""
    parser = argparse.ArgumentParser()
    add_arguments(parser, ServeOptions)
    for name in names.split():
        assert f"--{name}" in parser._option_string_actions
        assert f"--{name}" in parser.format_help()


def test_precedence_and_provenance(tmp_path: Path) -> None:
    file = tmp_path / "service.toml"
    file.write_text('dtype = "float16"\nblock-size = 32\nmax_num_seqs = 8\nkv-cache-memory = "1.5G"\n')
    found = resolved(
        "--max-num-seqs=2",
        f"--config={file}",
        environ={"SLIPSTREAM_MAX_NUM_SEQS": "4", "SLIPSTREAM_BLOCK_SIZE": "64", "PATH": "x"},
    )
    options, origins = found.options, found.origins
    assert (options.max_num_seqs, origins["max_num_seqs"]) == (2, "command line")
    assert (options.block_size, origins["block_size"]) == (64, "environment")
    assert (options.dtype, origins["dtype"]) == ("float16", str(file))
    assert (options.kv_cache_memory, origins["kv_cache_memory"]) == (3 * 2**29, str(file))
    assert (options.pipeline_depth, origins["pipeline_depth"]) == (2, "default")


def test_the_file_can_be_named_in_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "service.json"
    file.write_text(
        '{"model": "here", "seed": 7, "gpu-memory-utilization": 1, "no-enable-prefix-caching": true}'
    )
    options = resolved(environ={"SLIPSTREAM_CONFIG": str(file)}).options
    assert (options.model, options.seed, options.gpu_memory_utilization) == ("here", 7, 1.0)
    assert not options.enable_prefix_caching


def test_a_keyword_wins_over_the_environment() -> None:
    found = resolve(ServeOptions, keywords={"seed": 1}, environ={"SLIPSTREAM_SEED": "2"})
    assert (found.options.seed, found.origins["seed"]) == (1, "keyword")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], True),
        (["--no-enable-prefix-caching"], False),
        (["--no-enable-prefix-caching", "--enable-prefix-caching"], True),
    ],
)
def test_booleans(arguments: list[str], expected: bool) -> None:
    assert resolved(*arguments).options.enable_prefix_caching is expected


@pytest.mark.parametrize("name", ["ENABLE_PREFIX_CACHING=off", "NO_ENABLE_PREFIX_CACHING=1"])
def test_booleans_in_the_environment(name: str) -> None:
    variable, value = f"SLIPSTREAM_{name}".split("=")
    assert not resolved(environ={variable: value}).options.enable_prefix_caching


def test_keywords() -> None:
    assert given(max_num_batched_tokens=64, dtype="float32", device="cpu").max_num_seqs == 64
    assert given(max_num_seqs=4096).max_num_batched_tokens is None  # the executor makes it no less
    assert given(kv_cache_memory=1000).kv_cache_memory == 1000
    assert given(kv_cache_memory="64M").kv_cache_memory == 2**26
    assert given(model=Path("/somewhere")).model == "/somewhere"
    assert given(seed=None).seed is None
    assert not given(no_enable_prefix_caching=True).enable_prefix_caching


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"max_num_sequences": 1}, "unknown keyword 'max_num_sequences'; did you mean 'max_num_seqs'"),
        ({"max_num_seqs": 0}, "max_num_seqs=0 is out of range; it must be at least 1 and at most 65,536"),
        ({"max_num_seqs": 2.5}, "max_num_seqs=2.5 is not a whole number"),
        ({"max_num_seqs": True}, "max_num_seqs=True is not a whole number"),
        ({"max_num_seqs": "many"}, "max_num_seqs=many is not a whole number"),
        ({"gpu_memory_utilization": 0}, "gpu_memory_utilization=0 is out of range; it must be above 0.0"),
        ({"gpu_memory_utilization": float("nan")}, "gpu_memory_utilization=nan is out of range"),
        ({"gpu_memory_utilization": 1.01}, "at most 1.0"),
        ({"dtype": "float23"}, "dtype=float23 is none of auto, float32, .*; did you mean 'float32'"),
        ({"device": "gpu"}, "device=gpu is no device; give auto, cuda, cuda:N, cpu or emulated"),
        ({"kv_cache_memory": "2 cups"}, "kv_cache_memory=2 cups is not a whole number: give bytes as"),
        ({"enable_prefix_caching": "maybe"}, "enable_prefix_caching=maybe is not true or false"),
        ({"enable_prefix_caching": True, "no_enable_prefix_caching": True}, "given twice"),
        (
            {"max_num_seqs": 65, "max_num_batched_tokens": 64},
            "max_num_batched_tokens=64 is less than max_num_seqs=65",
        ),
        ({"emulated_step_ms": 5}, "emulated_step_ms=5.0 has no effect with device=auto"),
        ({"device": "emulated", "cuda_graphs": "off"}, "cuda_graphs=off has no effect with device=emulated"),
        ({"device": "cpu", "cuda_graphs": "off"}, "cuda_graphs=off has no effect with device=cpu"),
        (
            {"kv_cache_memory": "1GiB", "gpu_memory_utilization": 0.5},
            "gpu_memory_utilization=0.5 has no effect with kv_cache_memory=",
        ),
        ({"metrics_prefix": "vllm:"}, "metrics-prefix has no effect without the OpenAI frontend"),
        ({"http": "0.0.0.0:80"}, "http=0.0.0.0:80 can be reached from other machines"),
        ({"endpoint": "tcp://0.0.0.0:5555"}, "--insecure"),
        ({"endpoint": "ipc://" + "x" * 108}, "107"),
        ({"endpoint": 5}, "endpoint=5 is not a text"),
    ],
)
def test_refused_keywords(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        given(**keywords)


def test_messages_spell_the_option_as_it_was_given(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"^--block-size 0 is out of range"):
        resolved("--block-size=0")
    with pytest.raises(InvalidRequest, match=r"^SLIPSTREAM_BLOCK_SIZE=0 is out of range"):
        resolved(environ={"SLIPSTREAM_BLOCK_SIZE": "0"})
    file = tmp_path / "service.toml"
    file.write_text("block-size = 0")
    with pytest.raises(InvalidRequest, match=r"service\.toml: block-size = 0 is out of range"):
        resolved(f"--config={file}")


def test_unknown_variable() -> None:
    with pytest.raises(
        InvalidRequest, match="'SLIPSTREAM_MAX_NUM_SEQ'; did you mean 'SLIPSTREAM_MAX_NUM_SEQS'"
    ):
        resolved(environ={"SLIPSTREAM_MAX_NUM_SEQ": "4"})


def test_variables_that_kubernetes_sets_for_a_service_of_our_name() -> None:
    names = [
        "SERVICE_HOST",
        "SERVICE_PORT",
        "SERVICE_PORT_ZMQ",
        "PORT",
        "PORT_5555_TCP_ADDR",
        "A_SERVICE_HOST",
    ]
    environ = {f"SLIPSTREAM_{name}": "tcp://10.0.0.1:5555" for name in names}
    assert resolved(environ=environ).options == ServeOptions()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "max-num-seq = 1", "unknown key of .*a.toml 'max-num-seq'; did you mean 'max-num-seqs'"),
        ("a.toml", 'config = "b.toml"', "concerns one process only"),
        ("a.toml", "ready-fd = 3", "concerns one process only"),
        ("a.toml", "max-num-seqs = ", "is not valid TOML"),
        ("a.json", "{", "is not valid JSON"),
        ("a.json", "[" * 100_000, "is not valid JSON"),
        ("a.json", '{"seed": 1, "seed": 2}', "is not valid JSON: 'seed' is given twice"),
        ("a.json", "[1]", "holds a list; it must map option names to values"),
        ("a.json", '{"model": {"a": 1}}', "is not a text"),
        ("a.ini", "", "neither .toml nor .json"),
    ],
)
def test_refused_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(InvalidRequest, match=message):
        resolved(f"--config={file}")


@pytest.mark.parametrize(
    ("name", "text"), [("a.toml", "max-num-seqs = 5"), ("a.json", '{"max-num-seqs": 5}')]
)
def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert resolved(f"--config={tmp_path / name}").options.max_num_seqs == 5


@pytest.mark.parametrize(
    "name", ["model", "config", "chat-template", "curve-keys", "lora", "attention-backend"]
)
def test_an_empty_text_is_not_taken_for_none(name: str) -> None:
    given = [""] if name == "model" else [f"--{name}="]
    with pytest.raises(InvalidRequest, match=r"(MODEL|--[a-z-]+) is empty; give a value, or leave it out"):
        resolved(*given)
    with pytest.raises(InvalidRequest, match=r"SLIPSTREAM_[A-Z_]+= is empty; give a value"):
        resolved(environ={f"SLIPSTREAM_{name.replace('-', '_').upper()}": ""})


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.toml")
    with pytest.raises(InvalidRequest, match=r"a\.toml is no file"):
        resolved(f"--config={tmp_path / 'a.toml'}")
    with pytest.raises(InvalidRequest, match=r"/dev/zero is neither \.toml"):
        resolved("--config=/dev/zero")
    with pytest.raises(InvalidRequest, match=r"/dev/zero cannot be read: it is no file"):
        model_defaults("/dev/zero")
    large = tmp_path / "large.json"
    large.touch()
    os.truncate(large, 1 << 40)
    with pytest.raises(InvalidRequest, match=r"large\.json cannot be read: it has more than 65536 bytes"):
        model_defaults(str(large))


@pytest.mark.parametrize("names", ["", ",,", " , "])
def test_served_names_of_which_none_is_a_name_are_refused(names: str) -> None:
    with pytest.raises(InvalidRequest, match="has no name in it"):
        resolved(f"--served-model-name={names}")


def test_missing_file() -> None:
    with pytest.raises(InvalidRequest, match=r"cannot read the file '/nowhere\.toml'"):
        resolved("--config=/nowhere.toml")


def test_shown_options_are_a_file_that_gives_the_same(tmp_path: Path) -> None:
    model = 'a "model" of\nc\x7fntrol # characters'
    found = resolved("--max-num-batched-tokens=64", "--no-enable-prefix-caching", model)
    text = show(found)
    assert "max-num-seqs = 64" in text
    assert "# lowered to max-num-batched-tokens" in text
    assert "# max-model-len = (none)" in text
    assert tomllib.loads(text)["model"] == model
    file = tmp_path / "again.toml"
    file.write_text(text)
    assert resolved(f"--config={file}").options == ServeOptions(
        **{**vars(found.options), "config": str(file)}
    )


def test_the_shown_options_of_a_router_are_a_file_that_gives_the_same(tmp_path: Path) -> None:
    """An option that is empty by default is left out of it."""

    def of_router(*arguments: str) -> Resolved[RouteOptions]:
        parser = argparse.ArgumentParser(allow_abbrev=False)
        add_arguments(parser, RouteOptions)
        return resolve(RouteOptions, arguments=vars(parser.parse_args(arguments)), environ={})

    found = of_router("--services-file=services")
    file = tmp_path / "again.toml"
    file.write_text(show(found))
    again = of_router(f"--config={file}")
    assert again.options == RouteOptions(**{**vars(found.options), "config": str(file)})


def test_a_shown_key_is_none_when_the_file_is_read(tmp_path: Path) -> None:
    """What stands for it would be a key that everybody knows."""
    text = show(resolved("--http=127.0.0.1:0", "--api-key=sesame"))
    assert "sesame" not in text
    assert re.search(r"^# api-key = \(secret\) +# command line$", text, re.MULTILINE)
    file = tmp_path / "again.toml"
    file.write_text(text)
    again = resolved(f"--config={file}").options
    assert (again.api_key, again.http) == (None, "127.0.0.1:0")


def test_keywords_as_a_command_line() -> None:
    keywords = {
        "model": "-odd-",
        "max_num_seqs": 3,
        "exit_with_parent": True,
        "insecure": False,
        "seed": None,
    }
    arguments = to_arguments(ServeOptions, keywords)
    assert arguments == ["--max-num-seqs=3", "--exit-with-parent", "--no-insecure", "--", "-odd-"]
    assert resolved(*arguments).options == given(**keywords)
    assert to_arguments(ServeOptions, {"no_enable_prefix_caching": True}) == ["--no-enable-prefix-caching"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10", 10),
        ("1k", 1024),
        ("512M", 2**29),
        ("2G", 2**31),
        ("2GB", 2**31),
        ("1.5GiB", 3 * 2**29),
        ("1T", 2**40),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert size(text) == expected


@pytest.mark.parametrize("text", ["", "G", "-1", "1e3", "2X", "0x10", "1G1", "1.5"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="bytes"):
        size(text)


def test_more_bytes_than_any_machine_has_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"--kv-cache-memory 9+ is out of range; .* at most"):
        resolved(f"--kv-cache-memory={'9' * 24}")


def test_every_option_explains_itself() -> None:
    for option in table(ServeOptions).values():
        assert option.help, option.name


def test_the_help_of_a_boolean_says_what_is_so_when_it_is_on() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser, ServeOptions)
    text = " ".join(parser.format_help().split())
    assert (
        "--enable-prefix-caching, --no-enable-prefix-caching reuse what is cached of prompts that begin the same"
        " (default on)" in text
    )
    for option in table(ServeOptions).values():
        if option.kind is bool:
            assert f"{option.flag}, --no-{option.key} {' '.join(option.help.split())}" in text
            assert not re.match(r"(do not|don't|no|never|without)\b", option.help), option.name


@pytest.mark.parametrize("key", ["", " x", "x\n", "\u00e4", "a\tb"])
def test_a_key_that_no_client_can_send_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        resolved("--http=127.0.0.1:0", environ={"SLIPSTREAM_API_KEY": key})
    assert str(refused.value).startswith("SLIPSTREAM_API_KEY=(secret) is no key that a header can carry")


def test_a_text_that_is_no_utf_8_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"--served-model-name .* is no UTF-8; give it in UTF-8"):
        resolved("--served-model-name=a\udcff")
