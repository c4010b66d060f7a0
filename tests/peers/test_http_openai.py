"""The OpenAI frontend as the official client sees it; what a model says is real, or scripted where it matters."""

from __future__ import annotations

import asyncio
import inspect
import json
import math
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.resources import Completions
from openai.resources.chat import Completions as ChatCompletions
from scripted import MODEL, Script, Scripted
from slipstream.actors.text.prompts.chat_template import ChatTemplate
from slipstream.actors.text.prompts.conversation import plain_messages
from slipstream.actors.text.vocabulary.tokenizer_files import load_tokenizer

from slipstream import Client, SamplingParams, Sidecar
from slipstream.serving.service import BUNDLED_MODEL

NEAR = 60.0

HELLO: Any = [{"role": "user", "content": "hello"}]


TEMPLATE = """{%- for message in messages -%}
{{- '<|' + message['role'] + '|>' + (message['content'] | trim) + '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"""
"""It takes no tools."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    template = tmp_path_factory.mktemp("template") / "chat.jinja"
    template.write_text(TEMPLATE, encoding="utf-8")
    options: dict[str, Any] = {"max_num_seqs": 8, "max_queued_requests": 32, "emulated_step_ms": 1}
    options |= {"chat_template": str(template), "max_model_len": 1024}
    with Sidecar(device="emulated", http="127.0.0.1:0", api_key="sesame", **options) as sidecar:
        yield sidecar


@pytest.fixture(scope="module")
def api(service: Sidecar) -> Iterator[OpenAI]:
    url = f"{service.ready['http']}/v1"
    with OpenAI(base_url=url, api_key="sesame", max_retries=0, timeout=NEAR) as client:
        yield client


@pytest.fixture(scope="module")
def direct(service: Sidecar) -> Iterator[Client]:
    with service.client() as client:
        yield client


# --- the same answers as over ZeroMQ ------------------------------------------------------------


def test_chat_gives_what_the_protocol_gives(api: OpenAI, direct: Client) -> None:
    params = SamplingParams(max_tokens=20, seed=4, temperature=0.8, top_p=0.9, presence_penalty=0.5)
    expected = direct.chat(HELLO, params)
    told = api.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=20, seed=4, temperature=0.8, top_p=0.9, presence_penalty=0.5
    )
    assert told.choices[0].message.content == expected.outputs[0].text
    assert told.choices[0].finish_reason == "length"
    assert told.usage is not None
    assert expected.usage is not None
    assert told.usage.prompt_tokens == expected.usage.prompt_tokens
    assert told.usage.completion_tokens == 20


def test_a_stream_and_a_whole_answer_are_the_same(api: OpenAI) -> None:
    fields: Any = {"model": MODEL, "messages": HELLO, "max_completion_tokens": 30, "seed": 9, "n": 3}
    whole = api.chat.completions.create(**fields)
    texts = {0: "", 1: "", 2: ""}
    reasons: dict[int, str] = {}
    usage = None
    for chunk in api.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                assert choice.index not in reasons
                reasons[choice.index] = choice.finish_reason
        usage = chunk.usage or usage
    assert texts == {choice.index: choice.message.content for choice in whole.choices}
    assert reasons == dict.fromkeys(range(3), "length")
    assert len(set(texts.values())) == 3
    assert usage == whole.usage


def test_completions_take_a_text_token_ids_and_lists_of_either(api: OpenAI, direct: Client) -> None:
    texts = ["Once upon", "One day a dog"]
    outputs = direct.generate_many(texts, SamplingParams(max_tokens=16, seed=2))
    expected = [output.outputs[0].text for output in outputs]
    ids = [output.prompt_token_ids for output in outputs]
    prompts: list[tuple[Any, list[str]]] = [
        (texts[0], expected[:1]),
        (ids[0], expected[:1]),
        (texts, expected),
        (ids, expected),
    ]
    for prompt, answers in prompts:
        told = api.completions.create(model=MODEL, prompt=prompt, seed=2)  # OpenAI's default: 16 tokens
        assert [choice.text for choice in told.choices] == answers
        assert [choice.index for choice in told.choices] == list(range(len(answers)))
        assert told.usage is not None
        assert told.usage.completion_tokens == 16 * len(answers)
        streamed = [""] * len(answers)
        for chunk in api.completions.create(model=MODEL, prompt=prompt, seed=2, stream=True):
            assert chunk.object == "text_completion"
            streamed[chunk.choices[0].index] += chunk.choices[0].text
        assert streamed == answers


def test_echo_puts_the_prompt_before_the_answer(api: OpenAI) -> None:
    fields: Any = {"model": MODEL, "prompt": ["Once upon", "One day"], "seed": 1, "n": 2}
    plain = api.completions.create(**fields)
    echoed = api.completions.create(**fields, echo=True)
    expected = [("Once upon", "Once upon", "One day", "One day")[c.index] + c.text for c in plain.choices]
    assert [choice.text for choice in echoed.choices] == expected
    assert [choice.index for choice in echoed.choices] == [0, 1, 2, 3]


def test_echo_with_logprobs_tells_those_of_the_prompt_and_may_tell_nothing_else(
    api: OpenAI, direct: Client
) -> None:
    """What an evaluation harness asks for: how likely a given text is."""
    text = "Once upon a time there was"
    output = direct.generate(text, SamplingParams(max_tokens=4, seed=1, prompt_logprobs=2, logprobs=2))
    ids, scores = output.prompt_token_ids, output.prompt_logprobs
    assert ids is not None
    assert scores is not None
    expected = [None] + [row[token] for token, row in zip(ids, scores, strict=True) if row]
    fields: Any = {"model": MODEL, "prompt": text, "seed": 1, "logprobs": 2, "echo": True}

    only = api.completions.create(**fields, max_tokens=0)
    [choice] = only.choices
    assert (choice.text, choice.finish_reason) == (text, "length")
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs == pytest.approx(expected, abs=1e-4)
    assert "".join(choice.logprobs.tokens or ()) == text
    assert only.usage is not None
    assert (only.usage.prompt_tokens, only.usage.completion_tokens) == (len(ids), 0)

    for more in api.completions.create(**fields, max_tokens=4, n=2).choices:
        assert more.logprobs is not None
        lists = more.logprobs.tokens, more.logprobs.token_logprobs, more.logprobs.top_logprobs
        assert [len(each or ()) for each in lists] == [len(ids) + 4] * 3
        assert (more.logprobs.token_logprobs or [])[: len(ids)] == choice.logprobs.token_logprobs
        offsets = more.logprobs.text_offset or []
        assert more.text[offsets[len(ids)] :] == "".join((more.logprobs.tokens or [])[len(ids) :])

    whole = api.completions.create(**fields, max_tokens=4).choices[0]
    text_of, tokens = "", []
    for chunk in api.completions.create(**fields, max_tokens=4, stream=True):
        [part] = chunk.choices
        text_of += part.text
        tokens += (part.logprobs and part.logprobs.tokens) or []
    assert whole.logprobs is not None
    assert (text_of, tokens) == (whole.text, whole.logprobs.tokens)
    with pytest.raises(openai.BadRequestError, match="cannot be streamed"):
        api.completions.create(**fields, n=2, stream=True)


def test_offsets_of_an_echo_of_ids_count_the_names_of_special_tokens(api: OpenAI) -> None:
    tokenizer = load_tokenizer(BUNDLED_MODEL)
    ids = [0, *tokenizer.encode("Once upon", add_special_tokens=False).ids, 0]
    told = api.completions.create(model=MODEL, prompt=ids, echo=True, logprobs=0, max_tokens=1, seed=1)
    [choice] = told.choices
    assert choice.logprobs is not None
    texts = [tokenizer.decode(ids[:count], skip_special_tokens=False) for count in range(len(ids) + 1)]
    assert choice.logprobs.text_offset == [len(text) for text in texts]
    assert choice.text.startswith(texts[-1])


def test_a_chat_tells_the_logprobs_of_its_prompt_as_vllm_does(api: OpenAI, direct: Client) -> None:
    output = direct.chat(HELLO, SamplingParams(max_tokens=4, seed=1, prompt_logprobs=2))
    ids, scores = output.prompt_token_ids, output.prompt_logprobs
    assert ids is not None
    assert scores is not None
    fields: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 4, "seed": 1}
    told = api.chat.completions.create(**fields, extra_body={"prompt_logprobs": 2})
    first, *rows = (told.model_extra or {})["prompt_logprobs"]
    assert first is None
    assert len(rows) == len(ids) - 1 > 3
    for token, row, score in zip(ids[1:], rows, scores[1:], strict=True):
        assert score is not None
        assert row[str(token)]["logprob"] == pytest.approx(score[token], abs=1e-4)
        ranks = [entry["rank"] for entry in sorted(row.values(), key=lambda entry: -entry["logprob"])]
        assert ranks == [1, 2, None][: len(row)]
    with pytest.raises(openai.BadRequestError, match="prompt_logprobs are not streamed"):
        api.chat.completions.create(**fields, stream=True, extra_body={"prompt_logprobs": 2})


def test_logprobs_of_chat_name_each_token_and_the_most_likely_ones(api: OpenAI) -> None:
    fields: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 6, "seed": 1}
    told = api.chat.completions.create(**fields, logprobs=True, top_logprobs=3)
    logprobs = told.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 6
    for entry in logprobs.content:
        assert entry.bytes is not None
        assert len(entry.top_logprobs) == 3
        ordered = [likely.logprob for likely in entry.top_logprobs]
        assert ordered == sorted(ordered, reverse=True)
        assert math.isfinite(entry.logprob)
    data = b"".join(bytes(entry.bytes or ()) for entry in logprobs.content)
    text = told.choices[0].message.content
    assert text is not None
    assert data.decode(errors="replace").lstrip() == text.lstrip()
    streamed = []
    for chunk in api.chat.completions.create(**fields, logprobs=True, top_logprobs=3, stream=True):
        streamed += (chunk.choices[0].logprobs and chunk.choices[0].logprobs.content) or []
    assert streamed == logprobs.content


def test_logprobs_of_completions_are_lists_with_an_entry_per_token(api: OpenAI) -> None:
    told = api.completions.create(model=MODEL, prompt="Once", max_tokens=5, seed=1, logprobs=2)
    logprobs = told.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.text_offset is not None
    assert len(logprobs.tokens) == len(logprobs.token_logprobs or ()) == len(logprobs.text_offset) == 5
    assert all(len(each) <= 2 for each in logprobs.top_logprobs or ())
    text, offsets = told.choices[0].text, logprobs.text_offset
    assert (offsets[0], offsets) == (0, sorted(offsets))
    for token, offset in zip(logprobs.tokens, offsets, strict=True):
        assert token.startswith("bytes:") or text[offset:].startswith(token)


def test_a_stop_text_ends_the_answer_and_is_not_in_it(api: OpenAI) -> None:
    fields: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 40, "seed": 3}
    text = api.chat.completions.create(**fields).choices[0].message.content
    assert text is not None
    stop = text[20:24]
    told = api.chat.completions.create(**fields, stop=[stop]).choices[0]
    assert told.message.content == text.partition(stop)[0]
    assert told.finish_reason == "stop"


def test_fields_that_only_others_have_go_through_extra_body(api: OpenAI, direct: Client) -> None:
    params = SamplingParams(max_tokens=10, seed=5, top_k=5, min_p=0.01, repetition_penalty=1.2)
    extra = {"top_k": 5, "min_p": 0.01, "repetition_penalty": 1.2}
    told = api.completions.create(model=MODEL, prompt="Once", max_tokens=10, seed=5, extra_body=extra)
    assert told.choices[0].text == direct.generate("Once", params).outputs[0].text


def test_the_model_is_listed_and_found(api: OpenAI) -> None:
    (model,) = api.models.list().data
    assert model.id == MODEL
    assert api.models.retrieve(MODEL) == model


def test_an_answer_matches_the_schema_that_was_asked_for(api: OpenAI) -> None:
    properties: Any = {"ok": {"type": "boolean"}, "word": {"type": "string", "maxLength": 8}}
    schema: Any = {
        "type": "object",
        "properties": properties,
        "required": ["ok", "word"],
        "additionalProperties": False,
    }
    told = api.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        max_tokens=400,
        seed=1,
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
    )
    answer = json.loads(told.choices[0].message.content or "")
    assert isinstance(answer["ok"], bool)
    assert isinstance(answer["word"], str)
    assert told.choices[0].finish_reason == "stop"
    extra = {"structured_outputs": {"choice": ["yes", "no"]}}
    chosen = api.completions.create(model=MODEL, prompt="Is it?", max_tokens=8, extra_body=extra)
    assert chosen.choices[0].text in ("yes", "no")


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_every_field_that_the_client_knows_may_be_null(kind: str) -> None:
    """Clients in typed languages send all that they know."""
    chat = kind == "chat"
    create = ChatCompletions.create if chat else Completions.create
    of_the_call = {"self", "timeout", "extra_headers", "extra_query", "extra_body"}
    fields: dict[str, Any] = dict.fromkeys(inspect.signature(create).parameters.keys() - of_the_call)
    fields |= {"messages": HELLO} if chat else {"prompt": "x"}
    path = "/v1/chat/completions" if chat else "/v1/completions"
    reply = Scripted(Script("a")).post(path, fields)
    assert reply.status == 200, reply.json


def test_each_refusal_is_the_error_that_the_client_knows(api: OpenAI, service: Sidecar) -> None:
    def ask(**fields: Any) -> Any:
        return api.chat.completions.create(**{"model": MODEL, "messages": HELLO, "max_tokens": 4} | fields)

    with pytest.raises(openai.NotFoundError) as found:
        ask(model="gpt-5")
    assert found.value.code == "model_not_found"
    assert found.value.param == "model"
    for fields, param in (
        ({"temperature": 3}, "temperature"),
        ({"n": 0}, "n"),
        ({"max_tokens": 100_000}, "max_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"extra_body": {"no_such_field": 1}}, "no_such_field"),
        ({"extra_body": {"max_completion_tokens": 3}}, "max_tokens"),
        ({"tools": [{"type": "function", "function": {"name": "now"}}]}, "tools"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ):
        for stream in (False, True) if "stream_options" not in fields else (False,):
            with pytest.raises(openai.BadRequestError) as refused:
                ask(stream=stream, **fields)
            assert refused.value.param == param, fields
            assert refused.value.type == "invalid_request_error"
    with pytest.raises(openai.AuthenticationError) as denied:
        api.with_options(api_key="wrong").models.list()
    assert denied.value.code == "invalid_api_key"


def test_a_full_service_says_when_to_come_again_and_goes_on(api: OpenAI) -> None:
    fields: Any = {"model": MODEL, "prompt": "x", "stream": True, "max_tokens": 900}
    with api.completions.create(**fields, n=32, extra_body={"ignore_eos": True}) as stream:
        next(iter(stream))  # 32 are the most that this service holds
        with pytest.raises(openai.RateLimitError) as full:
            api.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1)
        assert int(full.value.response.headers["retry-after"]) >= 1
        assert full.value.code == "rate_limit_exceeded"
        assert next(iter(stream)).choices
    retrying = api.with_options(max_retries=5)  # the stream was left: there is room again
    assert retrying.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1).choices


# --- scripted answers ---------------------------------------------------------------------------


def scripted(script: Script) -> AsyncOpenAI:
    app = Scripted(script, hosts=None).app
    transport = httpx2.ASGITransport(app)
    return AsyncOpenAI(
        base_url="http://here/v1",
        api_key="x",
        max_retries=0,
        http_client=httpx2.AsyncClient(transport=transport, base_url="http://here"),
    )


def ask(script: Script, **fields: Any) -> tuple[Any, list[Any]]:
    """The whole answer, and the chunks of the same as a stream."""

    async def both() -> tuple[Any, list[Any]]:
        async with scripted(script) as api:
            create: Any = api.chat.completions.create
            whole = await create(model=MODEL, messages=HELLO, **fields)
            return whole, [
                chunk async for chunk in await create(model=MODEL, messages=HELLO, stream=True, **fields)
            ]

    return asyncio.run(both())


TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


def test_a_call_is_told_whole_and_as_a_stream() -> None:
    script = Script(
        "I look. <tool", '_call>{"name": "weather", "arg', 'uments": {"city": "Rome"}}</tool_call>'
    )
    whole, chunks = ask(script, tools=TOOLS)
    assert script.asked["offered"].tools == TOOLS
    choice = whole.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "I look. "
    (call,) = choice.message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments) == {"city": "Rome"}
    assert len(call.id) == 9
    assert call.id.isalnum()
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == "I look. "
    (streamed,) = [made for delta in deltas for made in delta.tool_calls or ()]
    assert (streamed.index, streamed.type) == (0, "function")
    assert (streamed.function.name, streamed.function.arguments) == ("weather", call.function.arguments)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_a_conversation_with_calls_reaches_the_template_as_maps() -> None:
    script = Script("It is sunny.")

    async def go() -> None:
        async with scripted(script) as api:
            function = {"name": "weather", "arguments": '{"city": "Rome"}'}
            messages: Any = [
                {"role": "developer", "content": "Be brief."},
                {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": function}]},
                {"role": "tool", "tool_call_id": "1", "content": "sunny"},
            ]
            await api.chat.completions.create(model=MODEL, messages=messages)

    asyncio.run(go())
    template = ChatTemplate("{% for message in messages %}{{ message }}\n{% endfor %}", {}, datetime.now)
    steps = plain_messages(script.asked["messages"], 10_000, template.style)
    with pytest.raises(StopIteration) as end:
        next(steps)
    system, assistant, tool = end.value.value
    assert system["role"] == "system"
    assert assistant["tool_calls"][0]["function"]["arguments"] == {"city": "Rome"}
    assert tool["content"] == "sunny"


def test_a_forced_call_streams_its_arguments_as_they_come() -> None:
    script = Script('{"city"', ': "Rome"}')
    whole, chunks = ask(
        script, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "weather"}}
    )
    assert script.asked["params"].json_schema == TOOLS[0]["function"]["parameters"]
    (call,) = whole.choices[0].message.tool_calls
    assert whole.choices[0].message.content is None
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Rome"}')
    made = [made for chunk in chunks for made in chunk.choices[0].delta.tool_calls or ()]
    assert made[0].function.name == "weather"
    assert [one.function.arguments for one in made] == ["", '{"city"', ': "Rome"}']
    assert len({one.index for one in made}) == 1
    assert {one.id for one in made[1:]} == {None}


def test_a_required_call_is_one_of_the_list_that_the_schema_asks_for() -> None:
    script = Script('[{"name": "weather", "arguments": {"city": "Rome"}}]')
    whole, _ = ask(script, tools=TOOLS, tool_choice="required")
    assert script.asked["params"].json_schema["items"]["anyOf"][0]["properties"]["name"] == {
        "const": "weather"
    }
    assert whole.choices[0].finish_reason == "tool_calls"
    assert whole.choices[0].message.tool_calls[0].function.name == "weather"


@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
def test_a_response_format_becomes_a_schema(kind: str) -> None:
    schema = {"type": "object", "properties": {"answer": {"type": "integer"}}}
    script = Script("{}")
    format: dict[str, Any] = {"type": kind}
    if kind == "json_schema":
        format["json_schema"] = {"name": "answer", "schema": schema, "strict": True}
    ask(script, response_format=format)
    assert script.asked["params"].json_schema == (schema if kind == "json_schema" else {"type": "object"})


@pytest.mark.parametrize(
    ("match", "name"), [({"regex": "a+"}, "regex"), ({"choice": ["yes", "no"]}, "choice")]
)
def test_what_an_answer_must_match_reaches_the_parameters(match: dict[str, Any], name: str) -> None:
    script = Script("a")
    ask(script, extra_body={"structured_outputs": match})
    assert getattr(script.asked["params"], name) == match[name]


def test_an_error_in_the_middle_of_a_stream_is_raised_by_the_client() -> None:
    from slipstream import DeadlineExceeded

    with pytest.raises(openai.APIStatusError) as whole:
        ask(Script("a", "b", finish=DeadlineExceeded("not finished within deadline_s=1")))
    assert whole.value.status_code == 408

    async def stream() -> list[str]:
        seen: list[str] = []
        async with scripted(Script("a", "b", finish=DeadlineExceeded("too late"))) as api:
            create: Any = api.chat.completions.create
            try:
                async for chunk in await create(model=MODEL, messages=HELLO, stream=True):
                    seen.append(chunk.choices[0].delta.content)
            except openai.APIError as error:
                seen.append(error.message)
        return seen

    assert asyncio.run(stream()) == ["", "a", "b", "too late"]
