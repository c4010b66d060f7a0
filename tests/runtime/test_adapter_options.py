"""What the options of adapters may be, and what follows for those that are left out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
from slipstream.protocol.errors import InvalidRequest
from slipstream.runtime.options.command_line import add_arguments, to_arguments
from slipstream.runtime.options.sources import resolve

from slipstream.options.adapters import adapters_of
from slipstream.options.serve import ServeOptions


def options_of(**given: Any) -> ServeOptions:
    return resolve(ServeOptions, keywords=given, environ={}).options


@pytest.mark.parametrize(
    ("given", "slots"),
    [
        ({}, 0),
        ({"lora": ["a=/a", "b=/b"]}, 2),
        ({"lora": "a=/a,b=/b"}, 2),
        ({"lora": "a=/a", "max_loras": 5}, 5),
        ({"enable_lora_updates": True}, 8),
        ({"enable_lora_updates": True, "lora": [f"{n}=/{n}" for n in range(9)]}, 9),
        ({"enable_lora_updates": True, "max_loras": 2}, 2),
    ],
)
def test_adapter_slots(given: dict[str, Any], slots: int) -> None:
    assert options_of(**given).adapter_slots == slots


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lora": "a"}, "is no NAME=PATH; give sql=/adapters/sql"),
        ({"lora": ["a=/a", "=/b"]}, "is no NAME=PATH"),
        ({"lora": ["a=/a", "a=/b"]}, "has the name 'a' twice"),
        ({"lora": ["a=/a", "b=/b"], "max_loras": 1}, "are more adapters than max_loras=1; raise the latter"),
        (
            {"lora": "a=/a", "served_model_name": "b,a"},
            "has an adapter of the name 'a', which is the model's own",
        ),
        ({"lora": "slipstream-bundled=/a"}, "'slipstream-bundled', which is the model's own"),
        ({"lora": f"{'a' * 257}=/a"}, "has a name of more than 256 characters"),
        ({"max_loras": 1}, "has no effect without adapters; add --lora or --enable-lora-updates"),
        ({"max_lora_rank": 8}, "has no effect without adapters"),
        (
            {"enable_lora_updates": True, "tensor_parallel_size": 2},
            "enable_lora_updates=True is not possible",
        ),
        (
            {"enable_lora_updates": True, "batch_invariant": True},
            "with enable_lora_updates=True: what adapters add",
        ),
        ({"lora": "a=/a", "device": "emulated"}, "has no effect with"),
    ],
)
def test_what_does_not_fit_together_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        options_of(**given)
    assert message in str(refusal.value)


def test_the_flag_may_be_given_several_times_and_keywords_become_such() -> None:
    arguments = to_arguments(ServeOptions, {"lora": ["a=/a", Path("b=/b")]})
    assert arguments == ["--lora=a=/a", "--lora=b=/b"]
    parser = argparse.ArgumentParser()
    add_arguments(parser, ServeOptions)
    given = resolve(ServeOptions, arguments=vars(parser.parse_args(arguments)), environ={}).options
    assert adapters_of(given.lora) == [("a", "/a"), ("b", "/b")]
