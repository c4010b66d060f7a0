"""The chat template of the bundled model writes conversations with tools as the model was trained on them."""

from __future__ import annotations

import random
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from slipstream.actors.text.prompts.chat_template import ChatTemplate
from slipstream.protocol.formats.formats import formats_of

import slipstream

TRAINING = Path(__file__).parents[2] / "training"
SOURCE = (Path(slipstream.__file__).parent / "model/chat_template.jinja").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate(SOURCE, {}, datetime.now)


def offered(template: ChatTemplate, tool: dict[str, Any]) -> str:
    """The line of one tool."""
    text = "".join(template.write([{"role": "user", "content": "hi"}], {"tools": [tool]}))
    return text.removeprefix("<|system|>Tools:\n").removesuffix("<|end|><|user|>hi<|end|><|assistant|>")


def function(parameters: dict[str, Any] | None, description: str | None = None) -> dict[str, Any]:
    given = {"description": description, "parameters": parameters}
    return {"name": "f"} | {key: value for key, value in given.items() if value is not None}


def test_a_conversation_is_what_the_model_was_trained_on(
    template: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(TRAINING))
    import tools  # pyright: ignore[reportMissingImports]

    def turn(rng: random.Random, kind: str) -> tuple[str, str]:
        return f"Tell me a {kind}", "Once."

    rng = random.Random(1)
    for _ in range(300):
        exchange = tools.exchange(rng, turn)
        given = {"tools": [tool.function() for tool in exchange.tools]} if exchange.tools else None
        written = "".join(template.write(exchange.messages, given, add_generation_prompt=False))
        assert written == "".join(text for text, _ in tools.segments(exchange))
    for name in ("tools", "tool_lexicon", "lexicon"):
        del sys.modules[name]


def test_its_calls_are_read_by_themselves() -> None:
    assert formats_of(SOURCE, "llama").tool_calls == "hermes"
    assert formats_of(SOURCE, "llama").reasoning is None


STRING: dict[str, Any] = {"type": "string"}
UNIT: dict[str, Any] = {"enum": ["celsius", "fahrenheit"], "type": "string"}

TOOLS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing but a name": (function(None), "f()"),
    "no parameters": (function({"type": "object", "properties": {}}), "f()"),
    "a parameter that is needed": (function({"properties": {"a": STRING}, "required": ["a"]}), "f(a:string)"),
    "one that may be left out": (function({"properties": {"a": STRING}}), "f(a?:string)"),
    "values to choose from": (
        function({"properties": {"a": UNIT}, "required": ["a"]}),
        "f(a:celsius|fahrenheit)",
    ),
    "one value": (function({"properties": {"a": {"const": "x"}}, "required": ["a"]}), "f(a:x)"),
    "a reference": (
        function({"$defs": {"U": UNIT}, "properties": {"a": {"$ref": "#/$defs/U"}}, "required": ["a"]}),
        "f(a:celsius|fahrenheit)",
    ),
    "a reference with a default": (
        function({"$defs": {"U": UNIT}, "properties": {"a": {"allOf": [{"$ref": "#/$defs/U"}]}}}),
        "f(a?:celsius|fahrenheit)",
    ),
    "a reference to nothing": (function({"properties": {"a": {"$ref": "#/$defs/U"}}}), "f(a?:string)"),
    "a reference to itself": (
        function({"$defs": {"U": {"$ref": "#/$defs/U"}}, "properties": {"a": {"$ref": "#/$defs/U"}}}),
        "f(a?:string)",
    ),
    "a text or null": (
        function({"properties": {"a": {"anyOf": [STRING, {"type": "null"}]}}, "required": ["a"]}),
        "f(a?:string)",
    ),
    "a number or null, as a strict function has it": (
        function({"properties": {"a": {"type": ["number", "null"]}}, "required": ["a"]}),
        "f(a?:number)",
    ),
    "a list": (function({"properties": {"a": {"type": "array", "items": STRING}}}), "f(a?:string[])"),
    "a list of anything": (function({"properties": {"a": {"type": "array"}}}), "f(a?:string[])"),
    "an object": (
        function({"properties": {"a": {"type": "object", "properties": {"b": STRING}}}}),
        "f(a?:object)",
    ),
    "several": (
        function({"properties": {"a": STRING, "b": {"type": "integer"}}, "required": ["a"]}),
        "f(a:string,b?:integer)",
    ),
    "names that a map has itself": (
        function({"properties": {"items": STRING, "keys": {"type": "boolean"}}}),
        "f(items?:string,keys?:boolean)",
    ),
    "anything at all": (function({"properties": {"a": True, "b": {}}}), "f(a?:string,b?:string)"),
    "a short description": (function({}, "Adds  a\nand b."), "f() Adds a and b."),
    "a long description": (function({}, "one " * 50), "f() " + " ".join(["one"] * 12)),
}


@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_is_a_line(template: ChatTemplate, name: str) -> None:
    tool, line = TOOLS[name]
    assert offered(template, tool) == line
    assert offered(template, {"type": "function", "function": tool}) == line


def test_calls_and_results_are_written_whichever_way_they_came(template: ChatTemplate) -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {"a": "é"}}\n</tool_call>'
    for arguments in ({"a": "é"}, '{"a": "é"}'):
        made = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": None, "tool_calls": [made, made]},
            {"role": "tool", "tool_call_id": "1", "content": "done"},
        ]
        text = "".join(template.write(messages, {"tools": [function({})]}))
        assert text == (
            f"<|system|>Tools:\nf()<|end|><|user|>hi<|end|><|assistant|>{call}\n{call}<|end|>"
            "<|system|>Result: done<|end|><|assistant|>"
        )
    assert "Let me see.\n<tool_call>" in "".join(
        template.write([{"role": "assistant", "content": "Let me see.", "tool_calls": [made]}])
    )


def test_tools_stand_before_the_last_question(template: ChatTemplate) -> None:
    said = [
        {"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))
    ]
    text = "".join(template.write(said, {"tools": [function({})]}))
    assert text == (
        "<|user|>a<|end|><|assistant|>b<|end|><|system|>Tools:\nf()<|end|><|user|>c<|end|><|assistant|>"
    )
    alone = "".join(template.write([{"role": "system", "content": "a"}], {"tools": [function({})]}))
    assert alone == "<|system|>Tools:\nf()<|end|><|system|>a<|end|><|assistant|>"


def test_a_chat_without_tools_is_written_as_ever(template: ChatTemplate) -> None:
    said = [{"role": role, "content": f" {role} "} for role in ("system", "user", "assistant")]
    assert "".join(template.write(said)) == (
        "<|system|>system<|end|><|user|>user<|end|><|assistant|>assistant<|end|><|assistant|>"
    )


def test_its_style_is_the_plain_one(template: ChatTemplate) -> None:
    style = template.style
    assert (style.takes_parts, style.wants_null, style.knows_developer, style.call_ids) == (
        False,
        False,
        False,
        "any",
    )
