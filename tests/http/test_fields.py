"""Which fields a body may have: every parameter of sampling, every null, and the values that change nothing."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import msgspec
import pytest
from scripted import Script, Scripted
from slipstream.actors.http.bodies.requests import (
    FIXED_IN_CHAT,
    FIXED_IN_COMPLETIONS,
    OTHERWISE,
    ChatBody,
    CompletionBody,
)
from slipstream.actors.text.prompts.chat_template import ChatTemplates
from slipstream.protocol.errors import InvalidRequest
from slipstream.protocol.formats.tools import offer_of

from slipstream import SamplingParams

HELLO = [{"role": "user", "content": "hello"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
TOOL = {"type": "function", "function": {"name": "now"}}
NOW = {"type": "function", "function": {"name": "now", "strict": True}}
ASKED: dict[str, dict[str, Any]] = {CHAT: {"messages": HELLO}, TEXT: {"prompt": "x"}}

OPENAI: dict[str, list[str]] = {
    CHAT: [
        "audio",
        "frequency_penalty",
        "function_call",
        "functions",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "metadata",
        "modalities",
        "model",
        "moderation",
        "n",
        "parallel_tool_calls",
        "prediction",
        "presence_penalty",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "response_format",
        "safety_identifier",
        "seed",
        "service_tier",
        "stop",
        "store",
        "stream",
        "stream_options",
        "temperature",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "user",
        "verbosity",
        "web_search_options",
    ],
    TEXT: [
        "best_of",
        "echo",
        "frequency_penalty",
        "logit_bias",
        "logprobs",
        "max_tokens",
        "model",
        "n",
        "presence_penalty",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "suffix",
        "temperature",
        "top_p",
        "user",
    ],
}
"""Every optional field of OpenAI's reference."""


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_null_of_any_field_is_as_good_as_none(path: str) -> None:
    """Clients in Go, Java and Rust send them all."""
    frontend = Scripted(Script("a"))
    fixed = FIXED_IN_CHAT if path == CHAT else FIXED_IN_COMPLETIONS
    every = dict.fromkeys([*OPENAI[path], *fixed, "structured_outputs", "deadline_s"])
    assert frontend.post(path, ASKED[path]).status == 200
    plain = frontend.script.asked["params"]
    reply = frontend.post(path, every | ASKED[path])
    assert reply.status == 200, reply.body
    assert frontend.script.asked["params"] == plain
    options = {"include_usage": None, "continuous_usage_stats": None, "include_obfuscation": None}
    reply = frontend.post(path, ASKED[path] | {"stream": True, "stream_options": options})
    assert reply.status == 200
    assert all("usage" not in chunk for chunk in reply.events[:-1])


NULL: dict[str, Any] = {"colour": None}
FUNCTION: dict[str, Any] = {"name": "f", "parameters": {"properties": {"a": {"const": None}}}}


def test_a_null_of_a_field_that_nobody_knows_asks_for_nothing_wherever_it_stands() -> None:
    frontend = Scripted(Script("a"))
    tools = [
        {"type": "function", "function": FUNCTION | NULL} | NULL,
        {"type": "function", "function": FUNCTION},
    ]
    named = {"type": "function", "function": {"name": "f"} | NULL} | NULL
    for fields in ({"tools": tools}, {"tools": tools, "tool_choice": named}, NULL, {"stream_options": NULL}):
        fields = {"stream": "stream_options" in fields} | fields
        assert frontend.post(CHAT, ASKED[CHAT] | fields).status == 200
    assert frontend.post(TEXT, ASKED[TEXT] | NULL).status == 200
    tools.append({"type": "function", "function": FUNCTION | {"colour": 1}})
    for more in ([], [{"type": "function"}], [None], [5]):
        reply = frontend.post(CHAT, ASKED[CHAT] | {"tools": tools + more})
        assert (reply.status, reply.json["error"]["param"]) == (400, "tools[2].function.colour")


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"function": {"name": "f", "colour": 1}}, "tools[1].function.colour"),
        ({"function": {"name": "f"}, "colour": 1}, "tools[1].colour"),
        ({"function": {"name": 5}}, "tools[1].function.name"),
        ({"function": NULL}, "tools[1].function.name"),
    ],
)
def test_what_is_wrong_in_tools_of_a_program_has_its_path_and_nulls_are_fine(
    wrong: dict[str, Any], param: str
) -> None:
    right = {"type": "function", "function": FUNCTION | NULL} | NULL
    offered = offer_of([right], "auto", None)
    assert offered.tools == [{"type": "function", "function": FUNCTION}]
    assert right == {"type": "function", "function": FUNCTION | NULL} | NULL
    with pytest.raises(InvalidRequest) as refused:
        offer_of([right, {"type": "function"} | wrong], "auto", None)
    assert refused.value.param == param


def test_a_whole_number_may_be_written_with_a_fraction_of_nothing() -> None:
    """As in JSON, and as Gson writes all numbers of a map."""
    frontend = Scripted(Script("a"))
    assert (
        frontend.post(CHAT, b'{"messages": [{"role": "user", "content": "x"}], "n": 2.0, "seed": 1e0}').status
        == 200
    )
    params = frontend.script.asked["params"]
    assert (params.n, params.seed) == (2, 1)
    assert type(params.n) is int
    assert frontend.post(TEXT, {"prompt": [[5.0, 6], [7.0]], "max_tokens": 3.0, "colour": None}).status == 200
    assert frontend.script.asked["prompt"] == [7]
    assert frontend.post("/detokenize", {"tokens": [44.0, 77]}).json == {"prompt": "Hi"}
    for given, param in (
        ({"n": 1.5}, "n"),
        ({"stop_token_ids": [5.0, 6.5]}, "stop_token_ids[1]"),
        ({"n": 1e300}, "n"),
        ({"seed": 9007199254740994.0}, "seed"),
    ):
        reply = frontend.post(TEXT, {"prompt": "x"} | given)
        assert (reply.status, reply.json["error"]["param"]) == (400, param)


ROUTERS = {
    "no_stop_trim": False,
    "skip_special_tokens": True,
    "continue_final_message": False,
    "separate_reasoning": True,
    "stream_reasoning": True,
    "include_reasoning": True,
    "return_hidden_states": False,
}
"""What vllm-router and sglang-router add to the conversations that pass through them."""


NEUTRAL_OUTPUTS = {
    "json": None,
    "grammar": None,
    "json_object": False,
    "structural_tag": None,
    "whitespace_pattern": None,
    "disable_fallback": True,
    "disable_any_whitespace": False,
    "disable_additional_properties": False,
}
"""What vLLM's client writes of ``structured_outputs`` beside the one thing that is asked."""


@pytest.mark.parametrize(
    ("body", "fixed"), [("ChatBody", FIXED_IN_CHAT), ("CompletionBody", FIXED_IN_COMPLETIONS)]
)
def test_the_document_has_the_one_value_that_a_field_is_taken_with(body: str, fixed: dict[str, Any]) -> None:
    fields = Scripted(Script("a")).get("/openapi.json").json["components"]["schemas"][body]["properties"]
    assert fields["max_tokens"]["anyOf"][0]["minimum"] == (0 if body == "CompletionBody" else 1)
    told = {name: json.dumps(fields[name]["enum"]) for name in fixed}
    each = {name: [None] if value is None else [value, None] for name, value in fixed.items()}
    assert told == {name: json.dumps(values) for name, values in each.items()}


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, FIXED_IN_CHAT),
        (TEXT, FIXED_IN_COMPLETIONS),
        (CHAT, ROUTERS),
        (CHAT, {"tool_choice": "auto", "tools": []}),
        (CHAT, {"logprobs": False, "top_logprobs": 0}),
        (CHAT, {"stream": True, "stream_options": {"include_obfuscation": False}}),
        (TEXT, {"length_penalty": 1, "best_of": 1, "use_beam_search": False}),
        (TEXT, {"n": 2, "best_of": 2}),
        (CHAT, {"n": 3, "best_of": 3}),
        (TEXT, {"structured_outputs": {"regex": "a"} | NEUTRAL_OUTPUTS}),
        (CHAT, {"structured_outputs": {"choice": ["a"]} | dict.fromkeys(NEUTRAL_OUTPUTS)}),
        (CHAT, {"structured_outputs": {"choice": None, "regex": None} | NEUTRAL_OUTPUTS}),
        (TEXT, {"structured_outputs": {"json_object": False}}),
        (TEXT, {"bad_words": [], "allowed_token_ids": None, "truncate_prompt_tokens": None, "suffix": ""}),
        (CHAT, {"add_generation_prompt": True, "reasoning_effort": None, "return_token_ids": False}),
    ],
)
def test_a_value_that_is_in_force_anyway_is_honoured(path: str, fields: dict[str, Any]) -> None:
    frontend = Scripted(Script("a"))
    reply = frontend.post(path, ASKED[path] | fields)
    assert reply.status == 200, reply.body


@pytest.mark.parametrize(
    ("path", "fields", "param", "message"),
    [
        (
            TEXT,
            {"best_of": 2},
            "best_of",
            "best_of=2 with n=1: all choices are told; leave it out, or give 1",
        ),
        (TEXT, {"n": 2, "best_of": 3}, "best_of", "best_of=3 with n=2"),
        (
            TEXT,
            {"n": 2, "best_of": 1},
            "best_of",
            "best_of=1 with n=2: all choices are told; leave it out, or give 2",
        ),
        (CHAT, {"n": 3, "best_of": 1}, "best_of", "best_of=1 with n=3"),
        (TEXT, {"n": 1, "best_of": True}, "best_of", "got `bool`"),
        (TEXT, {"best_of": 0}, "best_of", ">= 1"),
        (CHAT, {"store": True}, "store", "store=True is not served here; leave it out, or give false"),
        (TEXT, {"store": True}, "store", "store=True is not served here; leave it out, or give false"),
        (CHAT, {"service_tier": "flex"}, "service_tier", 'Expected `"auto" | "default" | null`'),
        (CHAT, {"tool_choice": "any"}, "tool_choice", '`"auto" | "none" | "required" | object | null`'),
        (CHAT, {"response_format": {"type": "x"}}, "response_format.type", '"json_schema" | "text"` - at'),
        (CHAT, {"tools": [TOOL, TOOL, NOW]}, "tools[2].function.name", "'now', which another tool has"),
        (CHAT, {"tools": [TOOL | {"type": "x"}]}, "tools[0].type", 'Expected `"function"` - at'),
        (
            CHAT,
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
            "Expected `false | null` - at `$.stream_options.include_obfuscation`: the value is True",
        ),
        (TEXT, {"suffix": "x"}, "suffix", "no tokens to fill in the middle with; leave it out"),
        (TEXT, {"detokenize": False}, "detokenize", "leave it out, or give true"),
        (CHAT, {"modalities": ["audio"]}, "modalities", 'give ["text"]'),
        (TEXT, {"suffix": "x", "prompt": [1, 2]}, "suffix", "goes with prompts that are texts"),
        (TEXT, {"reasoning_effort": "low"}, "reasoning_effort", "reasoning_effort='low' is not served"),
        (TEXT, {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "are not streamed"),
        (CHAT, {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "are not streamed"),
        (
            TEXT,
            {"prompt_logprobs": 2, "echo": True, "logprobs": 1},
            "prompt_logprobs",
            "give the same number, or leave one out",
        ),
        (TEXT, {"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "would leave no prompt"),
        (TEXT, {"truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "must be at least -1"),
        (TEXT, {"truncate_prompt_tokens": 2, "echo": True}, "truncate_prompt_tokens", "leave one out"),
        (CHAT, {"allowed_token_ids": [5000]}, "allowed_token_ids", "a token id of this model is 0 to 2047"),
        (CHAT, {"allowed_token_ids": []}, "allowed_token_ids", "allows no token"),
        (CHAT, {"bad_words": [""]}, "bad_words", "at least one character"),
        (
            CHAT,
            {"bad_words": ["x"], "structured_outputs": {"regex": "a"}},
            "bad_words",
            "structured_outputs.regex and bad_words are given",
        ),
        (CHAT, {"tool_choice": "required", "tools": []}, "tool_choice", "of no use without tools"),
        (
            CHAT,
            {"stream": True, "stream_options": {"continuous_usage_stats": True}},
            "stream_options.continuous_usage_stats",
            "include_usage",
        ),
    ],
)
def test_any_other_value_is_refused_by_its_name(
    path: str, fields: dict[str, Any], param: str, message: str
) -> None:
    reply = Scripted().post(path, ASKED[path] | fields)
    error = reply.json["error"]
    assert (reply.status, error["param"]) == (400, param)
    assert message in error["message"]


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    ("field", "value", "parameter"),
    [
        ("guided_json", {"type": "integer"}, "json_schema"),
        ("guided_json", '{"type": "integer"}', "json_schema"),
        ("guided_regex", "[0-9]+", "regex"),
        ("guided_choice", ["a", "b"], "choice"),
        ("guided_grammar", 'start: "a"', "lark"),
    ],
)
def test_the_older_names_of_what_an_answer_must_match_are_honoured(
    path: str, field: str, value: Any, parameter: str
) -> None:
    frontend = Scripted(Script("a"))
    assert frontend.post(path, ASKED[path] | {field: value}).status == 200
    assert getattr(frontend.script.asked["params"], parameter) == value
    both = frontend.post(path, ASKED[path] | {field: value, "structured_outputs": {"regex": "a"}})
    assert (both.status, both.json["error"]["param"]) == (400, field)


@pytest.mark.parametrize(
    ("field", "value"),
    [("guided_choice", []), ("guided_regex", "é" * 40_000), ("guided_grammar", "x" * 40_000)],
)
def test_a_wrong_value_of_an_older_name_is_refused_by_that_name(field: str, value: Any) -> None:
    reply = Scripted().post(TEXT, ASKED[TEXT] | {field: value})
    assert (reply.status, reply.json["error"]["param"]) == (400, field)
    assert field in reply.json["error"]["message"]


def test_any_json_object_can_be_asked_for_in_vllms_way() -> None:
    frontend = Scripted(Script("a"))
    assert frontend.post(TEXT, ASKED[TEXT] | {"structured_outputs": {"json_object": True}}).status == 200
    assert frontend.script.asked["params"].json_schema == {"type": "object"}


@pytest.mark.parametrize(("given", "added"), [(None, True), (True, True), (False, False)])
def test_a_completion_says_whether_its_prompt_gets_the_special_tokens(
    given: bool | None, added: bool
) -> None:
    frontend = Scripted(Script("a"))
    for prompt in ("<s>x", ["a", "b"], [5, 6]):
        assert frontend.post(TEXT, {"prompt": prompt, "add_special_tokens": given}).status == 200
        assert frontend.script.asked["add_special_tokens"] is added


# --- one declaration ------------------------------------------------------------------------------

VALUES: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.5,
    "min_p": 0.5,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.5,
    "deadline_s": 5.0,
    "stop": ["x"],
    "logit_bias": {"5": 1.0},
    "ignore_eos": True,
    "include_stop_str_in_output": True,
    "skip_special_tokens": False,
    "cache_salt": "x",
    "bad_words": ["x"],
}
"""A value that is not the default, for what is no whole number or list of them."""


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    "field",
    [f for f in msgspec.structs.fields(SamplingParams) if f.name not in OTHERWISE],
    ids=lambda f: f.name,
)
def test_every_parameter_of_sampling_is_a_field_by_its_declaration_alone(
    path: str, field: msgspec.structs.FieldInfo
) -> None:
    value = VALUES.get(field.name, [7] if "list" in str(field.type) else 2)
    frontend = Scripted(Script("a"))
    reply = frontend.post(path, ASKED[path] | {field.name: value})
    assert reply.status == 200, reply.body
    assert getattr(frontend.script.asked["params"], field.name) == value
    wrong = frontend.post(path, ASKED[path] | {field.name: {"x": []}})
    assert wrong.status == 400
    assert wrong.json["error"]["param"].startswith(field.name)


def test_the_document_of_the_api_has_every_field_with_its_range() -> None:
    described = Scripted().get("/openapi.json").json["components"]["schemas"]
    for name, kind in (("ChatBody", ChatBody), ("CompletionBody", CompletionBody)):
        assert set(described[name]["properties"]) == set(kind.__struct_fields__)
        [whole, _] = described[name]["properties"]["best_of"]["anyOf"]
        assert whole == {"type": "integer", "minimum": 1}
        [number, _] = described[name]["properties"]["top_p"]["anyOf"]
        assert (number["exclusiveMinimum"], number["maximum"]) == (0.0, 1.0)


# --- usage while it streams -----------------------------------------------------------------------


def test_each_event_has_the_usage_so_far_where_it_is_asked_for() -> None:
    frontend = Scripted(Script("a", "b", "c", prompt_ids=[5, 6, 7]))
    options = {"include_usage": True, "continuous_usage_stats": True}
    for path in (CHAT, TEXT):
        reply = frontend.post(path, ASKED[path] | {"stream": True, "stream_options": options})
        *chunks, last, done = reply.events
        assert done == "[DONE]"
        counted = [chunk["usage"]["completion_tokens"] for chunk in chunks if chunk["choices"]]
        assert counted == sorted(counted)
        assert (counted[0], counted[-1]) == (1, 3)
        assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {3}
        assert all(
            chunk["usage"]["total_tokens"] == 3 + chunk["usage"]["completion_tokens"] for chunk in chunks
        )
        assert json.dumps(last["choices"]) == "[]"
    assert frontend.script.asked["return_prompt_ids"] is True


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    ("field", "value", "parameter"),
    [
        ("grammar", 'start: "a"', "lark"),
        ("structural_tag", '{"structures": [], "triggers": []}', "structural_tag"),
        ("structural_tag", {"structures": [], "triggers": []}, "structural_tag"),
    ],
)
def test_grammars_reach_the_sampler_and_are_refused_under_their_own_name(
    path: str, field: str, value: Any, parameter: str
) -> None:
    frontend = Scripted(Script("a"))
    assert frontend.post(path, ASKED[path] | {"structured_outputs": {field: value}}).status == 200
    assert getattr(frontend.script.asked["params"], parameter) == value
    frontend = Scripted(Script(finish=InvalidRequest(f"{parameter} cannot be followed: x", param=parameter)))
    error = frontend.post(path, ASKED[path] | {"structured_outputs": {field: value}}).json["error"]
    assert error["param"] == f"structured_outputs.{field}"
    assert error["message"] == f"structured_outputs.{field} cannot be followed: x"


TEMPLATE = "{{ messages[0].content }} {{ reasoning_effort }}{{ tools }}"


@pytest.mark.parametrize(
    ("template", "fields", "given"),
    [
        (TEMPLATE, {"reasoning_effort": "low", "verbosity": "high"}, {"reasoning_effort": "low"}),
        ("{{ messages }}", {"reasoning_effort": "low", "verbosity": "high"}, {}),
        (
            TEMPLATE,
            {"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "high"}},
            {"reasoning_effort": "high"},
        ),
        (TEMPLATE, {"continue_final_message": True}, {"continue_final_message": True}),
        (TEMPLATE, {"add_generation_prompt": False}, {"add_generation_prompt": False}),
    ],
)
def test_what_is_for_the_template_is_given_to_one_that_knows_it(
    template: str, fields: dict[str, Any], given: dict[str, Any]
) -> None:
    frontend = Scripted(Script("a"))
    frontend.service.prompts.chat_templates = ChatTemplates({"default": template}, {}, datetime.now)
    assert frontend.post(CHAT, ASKED[CHAT] | fields).status == 200
    assert frontend.script.asked["chat_template_kwargs"] == given


@pytest.mark.parametrize("stream", [False, True])
def test_token_ids_are_returned_where_they_are_asked_for(stream: bool) -> None:
    frontend = Scripted(Script("a", "b", prompt_ids=[7, 8, 9]))
    reply = frontend.post(TEXT, ASKED[TEXT] | {"return_token_ids": True, "stream": stream})
    assert frontend.script.asked["return_prompt_ids"]
    if not stream:
        [choice] = reply.json["choices"]
        assert (choice["token_ids"], choice["prompt_token_ids"]) == ([0, 1], [7, 8, 9])
        return
    choices = [event["choices"][0] for event in reply.events[:-1]]
    assert [choice["token_ids"] for choice in choices] == [[0], [1], []]
    assert [choice.get("prompt_token_ids") for choice in choices] == [[7, 8, 9], None, None]


@pytest.mark.parametrize("stream", [False, True])
def test_token_ids_of_a_chat_are_returned_too(stream: bool) -> None:
    frontend = Scripted(Script("a", "b", prompt_ids=[7, 8, 9]))
    reply = frontend.post(CHAT, ASKED[CHAT] | {"return_token_ids": True, "stream": stream})
    if not stream:
        assert reply.json["prompt_token_ids"] == [7, 8, 9]
        assert reply.json["choices"][0]["token_ids"] == [0, 1]
        return
    events = reply.events[:-1]
    assert [event.get("prompt_token_ids") for event in events] == [[7, 8, 9], None, None, None]
    choices = [event["choices"][0] for event in events]
    assert [choice.get("token_ids") for choice in choices] == [None, [0], [1], None]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "ab"


def test_a_suffix_makes_a_prompt_with_a_gap() -> None:
    frontend = Scripted(Script("a"))
    frontend.service.prompts.tokenizer.add_special_tokens(["<fim_prefix>", "<fim_suffix>", "<fim_middle>"])
    asked = {"prompt": ["def f(", "x"], "suffix": "): pass"}
    assert frontend.post(TEXT, asked).status == 200
    assert frontend.script.asked["prompt"] == "<fim_prefix>x<fim_suffix>): pass<fim_middle>"
