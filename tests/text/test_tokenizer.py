"""Promises of the tokenizer: the ids that transformers would give, and a clear refusal of everything else."""

from __future__ import annotations

import json
import subprocess
import sys
from array import array
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from slipstream.actors.text.prompts.chat_template import OURS, ChatTemplate, load_chat_templates
from slipstream.actors.text.prompts.prompts import MAX_PROMPT_BYTES
from slipstream.actors.text.tokenizer import Tokenizer, build
from slipstream.actors.text.vocabulary.tokenizer_files import load_tokenizer, read_tokenizer
from slipstream.protocol.errors import ModelNotSupported
from slipstream.protocol.events import PeerUp
from slipstream.protocol.internal import Cancel, Enqueue, Refused, Submit, Tokenized
from slipstream.protocol.sampling import SamplingParams
from slipstream.runtime.process.child import ProcessStart
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

SPECIAL = [
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
SPECIAL += ["<start_of_turn>", "<end_of_turn>"]

CHATML = """
{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if loop.index0 > 40 %}{% break %}{% endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}
    {%- else %}
        {{- message.content + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
    {%- if message.tool_calls %}
        {%- for call in message.tool_calls %}
            {{- call | tojson }}{{ call.function | tojson(indent=2) }}
        {%- endfor %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

LLAMA_3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- set ns = namespace(system='') %}
{%- if messages[0].role == 'system' %}
    {%- set ns.system = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + date_string + '\\n' + ns.system + eot_token }}
{%- for message in messages %}
    {%- if tools is not none %}{{- raise_exception('no tools here') }}{% endif %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
    {{- message.content | trim + eot_token }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""

GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {{ raise_exception('System role not supported') }}
{%- endif -%}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '
' + message['content'] | trim + '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model
' }}{%- endif -%}
"""

LOOSE = """
{% for message in messages %}
    {% if message.role != 'nobody' %}
{{ message.role }}: {{ message.content }}
    {% endif %}
{% endfor %}
Answer:
"""
"""Without dashes: what the sandbox trims around blocks shows."""

TEMPLATES = {"chatml": CHATML, "llama-3": LLAMA_3, "gemma": GEMMA, "loose": LOOSE}

CONVERSATION: list[dict[str, Any]] = [
    {"role": "user", "content": "Größe of a 🦊?  <|im_end|> "},
    {"role": "assistant", "content": "Small & <b>quick</b>"},
    {"role": "user", "content": "日本語\n\nplease", "name": None},
]


def write_model(folder: Path, config: dict[str, Any] | None = None, template: str | None = None) -> Path:
    """A folder with a byte-level tokenizer that puts ``<s>`` before a prompt."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIAL,
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick fox sat by the fire and told a story"] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.enable_truncation(8)  # of its training: not for serving
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = config if config is not None else {"chat_template": template} if template else {}
    config = {"bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "</s>"}} | config
    config["extra_special_tokens"] = {"eot_token": "<|eot_id|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def start(folder: Path, **options: Any) -> Tokenizer:
    vocab_size = load_tokenizer(folder).get_vocab_size()
    told = {"model": str(folder), "vocab_size": vocab_size, "max_model_len": 100, "eos_token_ids": []}
    actor = build(ProcessStart(told | {"max_prompt_bytes": MAX_PROMPT_BYTES} | options))
    assert isinstance(actor, Tokenizer)
    return actor


def ask(actor: Tokenizer, prompt: Any, delivered: list[int] | None = None) -> list[Any]:
    """What the tokenizer answers to one request, by its receivers."""
    known = prompt if isinstance(prompt, bytes) else b""
    submit = Submit(
        5,
        None if isinstance(prompt, bytes) else prompt,
        SamplingParams(seed=1),
        array("i", delivered or []).tobytes(),
        connection=3,
        attempt=2,
        prompt_ids=known,
    )
    return actor.receive("gateway", submit, 0.0)


def prompt_ids(actor: Tokenizer, prompt: Any) -> list[int]:
    sends = ask(actor, prompt)
    assert [to for to, _ in sends] == ["gateway", "scheduler"], sends
    return array("i", sends[0][1].prompt).tolist()


def refusal(
    actor: Tokenizer, prompt: Any, delivered: list[int] | None = None, code: str = "invalid_request"
) -> str:
    [(to, refused)] = ask(actor, prompt, delivered)
    assert to == "gateway"
    assert isinstance(refused, Refused)
    assert (refused.request, refused.code) == (5, code)
    return refused.message


def test_the_special_tokens_of_a_text_are_left_out_where_it_has_its_own(tmp_path: Path) -> None:
    actor = start(write_model(tmp_path))
    for text in ("the fox", "the fox " * 10_000):
        actor.max_model_len = 100_000
        whole = Submit(1, text, SamplingParams(seed=1))
        bare = Submit(2, text, SamplingParams(seed=1), add_special_tokens=False)
        ids = {}
        for submit in (whole, bare):
            sends = actor.receive("gateway", submit, 0.0)
            while actor.waiting:
                sends += actor.wake(0.0)
            ids[submit.request] = array("i", sends[0][1].prompt).tolist()
        assert ids[1] == [actor.prompts.tokenizer.token_to_id("<s>"), *ids[2]]


@pytest.fixture
def actor(tmp_path: Path) -> Tokenizer:
    return start(write_model(tmp_path, template=CHATML))


# --- prompts --------------------------------------------------------------------------------------


def test_a_prompt_reaches_gateway_and_scheduler_with_all_that_came_with_it(actor: Tokenizer) -> None:
    ids = array("i", [0, *actor.prompts.tokenizer.encode("the fox", add_special_tokens=False).ids]).tobytes()
    assert ask(actor, "the fox", delivered=[9, 8]) == [
        ("gateway", Tokenized(5, ids)),
        ("scheduler", Enqueue(5, ids, SamplingParams(seed=1), array("i", [9, 8]).tobytes(), 3, 2)),
    ]
    assert (actor.refused, actor.failed) == (0, 0)


def test_text_is_encoded_as_transformers_does(actor: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in ("the quick fox", "Größe 🦊 日本語 e\u0301", " </s> two  spaces\n", "a" * 90, "<|eot_id|>x"):
        assert prompt_ids(actor, text) == theirs(text)["input_ids"]


def test_token_ids_are_taken_as_they_are(actor: Tokenizer) -> None:
    assert prompt_ids(actor, array("i", [7, 0, 289]).tobytes()) == [7, 0, 289]


@pytest.mark.parametrize("prompt", ["", b""])
def test_an_empty_prompt_is_refused(actor: Tokenizer, prompt: str | bytes) -> None:
    assert "at least one" in refusal(actor, prompt)


def test_a_prompt_leaves_room_for_one_token(actor: Tokenizer) -> None:
    fits, over = array("i", [7] * 99).tobytes(), array("i", [7] * 100).tobytes()
    assert len(prompt_ids(actor, fits)) == 99
    said = refusal(actor, over, code="context_length_exceeded")
    assert "100 tokens" in said
    assert "max_model_len" in said
    said = refusal(
        actor, array("i", [7] * 97).tobytes(), delivered=[1, 2, 3, 4], code="context_length_exceeded"
    )
    assert "97 tokens" in said
    assert "4 tokens" in said
    assert "100 tokens" in said


def cut_to(actor: Tokenizer, prompt: Any, most: int, max_tokens: int | None = None) -> list[int]:
    params = SamplingParams(truncate_prompt_tokens=most, max_tokens=max_tokens, seed=1)
    text, ids = (None, array("i", prompt).tobytes()) if isinstance(prompt[0], int) else (prompt, b"")
    [(_, tokenized), _] = actor.receive("gateway", Submit(1, text, params, prompt_ids=ids), 0.0)
    return array("i", tokenized.prompt).tolist()


def test_of_a_longer_prompt_the_end_is_taken_where_that_is_asked_for(actor: Tokenizer) -> None:
    ids = list(range(10, 20)) * 50  # more than the model's length
    assert cut_to(actor, ids, 3) == ids[-3:]
    assert cut_to(actor, ids, -1, 30) == ids[-(actor.max_model_len - 30) :]
    assert cut_to(actor, ids, -1) == ids[-(actor.max_model_len - 1) :]
    assert cut_to(actor, [5, 6], 3) == [5, 6]
    text = "how are you " * 400
    whole = load_whole(actor, text)
    assert len(whole) > actor.max_model_len
    assert cut_to(actor, text, 7) == whole[-7:]
    assert cut_to(actor, [{"role": "user", "content": text}], 7) == cut_to(
        actor, [{"role": "user", "content": "how are you " * 4}], 7
    )


def load_whole(actor: Tokenizer, text: str) -> list[int]:
    return actor.prompts.tokenizer.encode(text).ids


@pytest.mark.parametrize("wrong", [-1, 290, 2**31 - 1])
def test_an_id_outside_the_vocabulary_is_refused(actor: Tokenizer, wrong: int) -> None:
    said = refusal(actor, array("i", [7, wrong, -5]).tobytes())
    assert f"token id {wrong} at position 1" in said
    assert "0 to 289" in said
    assert "received has token id" in refusal(actor, "the", delivered=[wrong])


def test_the_models_vocabulary_counts_where_it_is_larger(tmp_path: Path) -> None:
    actor = start(write_model(tmp_path), vocab_size=512)
    assert prompt_ids(actor, array("i", [511]).tobytes()) == [511]
    assert "0 to 511" in refusal(actor, array("i", [512]).tobytes())


def test_a_lone_surrogate_is_refused(actor: Tokenizer) -> None:
    for prompt in ("ab\ud800", [{"role": "user", "content": "\udfff"}]):
        assert "lone surrogate" in refusal(actor, prompt)


def test_a_prompt_of_too_many_bytes_is_refused_before_it_is_encoded(tmp_path: Path) -> None:
    actor = start(write_model(tmp_path, template=CHATML), max_prompt_bytes=50)
    longer = "context_length_exceeded"
    assert "52 bytes; the limit is 50" in refusal(actor, "é" * 26, code=longer)
    assert "50 characters" in refusal(actor, [{"role": "user", "content": "x" * 51}], code=longer)
    rendered = [{"role": "user", "content": "x" * 20}]
    assert "50" in refusal(actor, rendered, code=longer)


@pytest.mark.parametrize("error", [RuntimeError("broken"), RecursionError("deep"), BaseException("a panic")])
def test_an_error_of_ours_fails_its_own_request_alone(actor: Tokenizer, error: BaseException) -> None:
    class Broken:
        def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> None:
            raise error

    whole, actor.prompts.tokenizer = actor.prompts.tokenizer, Broken()  # pyright: ignore[reportAttributeAccessIssue]
    [(_, refused)] = ask(actor, "the")
    assert (refused.code, actor.failed) == ("internal", 1)
    assert f"{type(error).__name__}: {error}" in refused.message
    actor.prompts.tokenizer = whole
    assert prompt_ids(actor, "the")


def test_a_cancel_follows_the_request_that_it_ends(actor: Tokenizer) -> None:
    ask(actor, "the")
    assert actor.receive("gateway", Cancel([5]), 0.0) == [("scheduler", Cancel([5]))]
    assert actor.receive(b"", PeerUp("scheduler", 2), 0.0) == []


# --- conversations --------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["config", "list", "file"])
@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_conversations_become_the_ids_that_transformers_gives(tmp_path: Path, name: str, place: str) -> None:
    transformers = pytest.importorskip("transformers")
    template: Any = TEMPLATES[name]
    if place == "list":
        other = {"name": "tool_use", "template": "not this one"}
        template = [other, {"name": "default", "template": template}]
    write_model(
        tmp_path, {"chat_template": "not this one"} if place == "file" else {"chat_template": template}
    )
    if place == "file":
        (tmp_path / "chat_template.jinja").write_text(template)
    actor = start(tmp_path, max_model_len=2000)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    system = [] if name == "gemma" else [{"role": "system", "content": " Be kind. "}]
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "ß<", "arguments": {"n": [1, None]}}}],
    }
    for messages in (CONVERSATION, CONVERSATION[:1], system + CONVERSATION, [*CONVERSATION, call]):
        expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert prompt_ids(actor, messages) == expected


def test_text_parts_are_joined(actor: Tokenizer) -> None:
    parts = [{"type": "text", "text": "the"}, {"type": "text", "text": "fox"}]
    joined = prompt_ids(actor, [{"role": "user", "content": "the\nfox"}])
    assert prompt_ids(actor, [{"role": "user", "content": parts}]) == joined


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "messages is empty"),
        (["hello"], "messages[0] is 'hello'"),
        ([{"content": "hello"}], "messages[0].role is None"),
        ([{"role": 3, "content": "hello"}], "messages[0].role is 3"),
        ([CONVERSATION[0], {"role": "user"}], "messages[1].content is missing"),
        ([{"role": "user", "content": None}], "messages[0].content is missing"),
        ([{"role": "user", "content": 7}], "messages[0].content is 7"),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}],
            "messages[0].content[0] is {'type': 'image_url'}; expected a part of type 'text': this service reads and "
            "writes text, also where its model has parts for more",
        ),
        ([{"role": "user", "content": "", "name": b"raw"}], None),
        ([{"role": "user", "content": "", "x": b"raw"}], "messages[0].x is no field that is read here"),
        ([{"role": "assistant", "tool_calls": b"raw"}], "expected a list of calls"),
    ],
)
def test_messages_of_a_wrong_shape_are_refused(
    actor: Tokenizer, messages: list[Any], said: str | None
) -> None:
    if said is None:
        assert prompt_ids(actor, messages)
    else:
        assert said in refusal(actor, messages)


def test_messages_that_are_nested_too_deeply_are_refused(actor: Tokenizer) -> None:
    deep: Any = "x"
    for _ in range(900):
        deep = [deep]
    assert "nested deeper than 32" in refusal(actor, [{"role": "user", "content": "a", "tool_calls": deep}])


def test_what_the_template_refuses_is_told(tmp_path: Path) -> None:
    actor = start(write_model(tmp_path, template=GEMMA))
    said = refusal(actor, [{"role": "system", "content": "be kind"}])
    assert said == "the model's chat template refuses the messages: System role not supported"


def test_a_request_is_data_for_the_template_and_never_a_template(actor: Tokenizer) -> None:
    ids = prompt_ids(actor, [{"role": "user", "content": "{{ 7 * 7 }}{% raw %}"}])
    assert "{{ 7 * 7 }}{% raw %}" in actor.prompts.tokenizer.decode(ids)


@pytest.mark.parametrize(
    "source",
    ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{% for i in range(10**9) %}{% endfor %}"],
)
def test_the_template_runs_in_a_sandbox(tmp_path: Path, source: str) -> None:
    assert "Error" in refusal(start(write_model(tmp_path, template=source)), CONVERSATION)


def test_a_template_can_ask_for_the_date() -> None:
    template = ChatTemplate("{{ strftime_now('%Y-%m') }}", {}, clock=lambda: datetime(2001, 2, 3))
    assert "".join(template.write(CONVERSATION)) == "2001-02"


@pytest.mark.parametrize("template", [None, "{% broken"])
def test_a_model_without_a_template_still_takes_prompts(tmp_path: Path, template: str | None) -> None:
    actor = start(write_model(tmp_path, template=template))
    assert "send a prompt instead" in refusal(actor, CONVERSATION)
    assert prompt_ids(actor, "the fox")


# --- folders --------------------------------------------------------------------------------------


def spoilt(folder: Path, change: Callable[[dict[str, Any]], object], **config: Any) -> Path:
    """A folder whose tokenizer.json is changed."""
    write_model(folder, config or None)
    written = json.loads((folder / "tokenizer.json").read_text())
    change(written)
    (folder / "tokenizer.json").write_text(json.dumps(written))
    return folder


def test_merges_that_training_left_out_by_chance_are_all_taken(tmp_path: Path) -> None:
    expected = load_tokenizer(write_model(tmp_path)).encode("the quick fox").ids
    folder = spoilt(tmp_path, lambda written: written["model"].update(dropout=0.9))
    assert all(load_tokenizer(folder).encode("the quick fox").ids == expected for _ in range(5))


@pytest.mark.parametrize(
    "changed",
    [
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "."}, "content": ""}, "post_processor": None},
        {"post_processor": {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}},
    ],
    ids=["normalizer", "post_processor"],
)
def test_a_tokenizer_that_leaves_nothing_of_a_text_is_no_failure(
    changed: dict[str, Any], tmp_path: Path
) -> None:
    actor = start(spoilt(tmp_path, lambda written: written.update(changed)))
    assert "the prompt has no tokens" in refusal(actor, "the fox")


def test_an_end_that_is_no_token_is_refused(tmp_path: Path) -> None:
    folder = spoilt(tmp_path, lambda written: None, bos_token="<nope>", add_bos_token=True)
    with pytest.raises(ModelNotSupported, match="puts its bos_token '<nope>' beside each text, and"):
        load_tokenizer(folder)


def test_a_folder_without_tokenizer_json_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelNotSupported, match="nor any other tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(
        ModelNotSupported, match=r"only tokenizer\.model, .*pip install sentencepiece, .*save_pretrained"
    ):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelNotSupported, match="cannot be read as a tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("tekken.json", "mistral-common"),
        ("tokenizer.model.v3", "mistral-common"),
        ("tiktoken.model", "tiktoken"),
        ("tokenizer.model", "sentencepiece"),
        ("spiece.model", "sentencepiece"),
    ],
)
def test_a_tokenizer_in_another_form_is_named_with_the_package_that_converts_it(
    tmp_path: Path, name: str, package: str
) -> None:
    (tmp_path / name).write_bytes(b"")
    folder = str(tmp_path)
    with pytest.raises(ModelNotSupported) as refused:
        load_tokenizer(tmp_path)
    assert str(refused.value) == (
        f"{folder} has no tokenizer.json, only {name}, which is not read; pip install {package}, then make one in"
        f" Python with transformers: AutoTokenizer.from_pretrained({folder!r}).save_pretrained({folder!r})"
    )


def in_pairs(written: dict[str, Any]) -> dict[str, Any]:
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in written["model"]["merges"]]
    return written | {"model": written["model"] | {"merges": pairs}}


def in_texts(written: dict[str, Any]) -> dict[str, Any]:
    texts = [" ".join(pair) for pair in in_pairs(written)["model"]["merges"]]
    return written | {"model": written["model"] | {"merges": texts}}


def with_settings(written: dict[str, Any]) -> dict[str, Any]:
    settings = {"unk_token": "<s>", "fuse_unk": True, "byte_fallback": True, "ignore_merges": True}
    return written | {"model": written["model"] | settings}


def with_tokens_added(written: dict[str, Any]) -> dict[str, Any]:
    made = tokenizers.Tokenizer.from_str(json.dumps(written))
    made.add_special_tokens(["<|new|>"])
    made.add_tokens([tokenizers.AddedToken("two words", single_word=True, lstrip=True, normalized=True)])
    return json.loads(made.to_str())


def of_words(written: dict[str, Any]) -> dict[str, Any]:
    model = models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]")
    return json.loads(tokenizers.Tokenizer(model).to_str())


@pytest.mark.parametrize("form", [in_pairs, in_texts, with_settings, with_tokens_added, of_words])
def test_a_file_is_read_as_the_library_reads_it(
    tmp_path: Path, form: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    path = write_model(tmp_path) / "tokenizer.json"
    path.write_text(json.dumps(form(json.loads(path.read_text()))))
    assert read_tokenizer(path).to_str() == tokenizers.Tokenizer.from_file(str(path)).to_str()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"model": {"type": "BPE"}}', '{"model": {"type": "BPE", "vocab": 1}}']
)
def test_a_file_that_is_no_tokenizer_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (write_model(tmp_path) / "tokenizer.json").write_text(text)
    with pytest.raises(ModelNotSupported, match=r"tokenizer\.json cannot be read as a tokenizer"):
        load_tokenizer(tmp_path)


def test_a_broken_configuration_is_refused_by_name(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(ModelNotSupported, match=r"tokenizer_config\.json holds a list"):
        load_chat_templates(tmp_path, None, datetime.now)


@pytest.mark.parametrize(
    "template", ["{% if x %}", f"{{{{ {'9' * 5000} }}}}", "{{ 10 ** 5000 }}", "{{ '%d' % 'x' }}"]
)
def test_a_chat_template_is_refused_by_name_or_compiles(tmp_path: Path, template: str) -> None:
    """It may fail by more than its syntax, but not by what it computes."""
    file = tmp_path / "odd.jinja"
    file.write_text(template)
    write_model(tmp_path)
    if "%d" in template or "**" in template:
        assert load_chat_templates(tmp_path, file, datetime.now) is not None
    else:
        with pytest.raises(ModelNotSupported, match=r"odd\.jinja does not compile: "):
            load_chat_templates(tmp_path, file, datetime.now)


def test_neither_torch_nor_transformers_is_imported_and_memory_stays_small(tmp_path: Path) -> None:
    write_model(tmp_path, template=CHATML)
    program = f"""
import re, sys
from pathlib import Path
from slipstream.actors.text import tokenizer
from slipstream.protocol.internal import Submit
from slipstream.protocol.sampling import SamplingParams
from slipstream.runtime.process.child import ProcessStart
told = {{"model": {str(tmp_path)!r}, "vocab_size": 300, "max_model_len": 2000, "eos_token_ids": []}}
actor = tokenizer.build(ProcessStart(told | {{"max_prompt_bytes": 4_000_000}}))
actor.receive("", Submit(1, [{{"role": "user", "content": "hi " * 500}}], SamplingParams()), 0.0)
heavy = [name for name in ("torch", "transformers", "numpy", "huggingface_hub") if name in sys.modules]
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(heavy, int(peak[1]) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy, _, megabytes = done.stdout.strip().rpartition(" ")
    assert heavy == "[]"
    assert int(megabytes) < 90


# --- what a template is given beside the messages -----------------------------------------------

TOOLS = [{"type": "function", "function": {"name": "now", "parameters": {}}}]


def submit_with(actor: Tokenizer, **template: object) -> object:
    """What the tokenizer answers to a conversation."""
    messages = [{"role": "user", "content": "hi"}]
    submit = Submit(5, messages, SamplingParams(seed=1), template=template)
    return actor.receive("gateway", submit, 0.0)[0][1]


def test_a_template_that_knows_tools_is_given_them(tmp_path: Path) -> None:
    with_tools = "{% for tool in tools or [] %}{{ tool.function.name }}{% endfor %}{{ messages[0].content }}"
    actor = start(write_model(tmp_path, template=with_tools))
    told = submit_with(actor, tools=TOOLS)
    assert isinstance(told, Tokenized)
    ids = memoryview(told.prompt).cast("i").tolist()
    assert actor.prompts.tokenizer.decode(ids).replace(" ", "") == "nowhi"


def rendered(actor: Tokenizer, messages: list[dict[str, Any]], **given: Any) -> str:
    """The text that a conversation becomes; or why it is refused."""
    sent = actor.receive("gateway", Submit(1, messages, SamplingParams(seed=1), template=given), 0.0)
    message = sent[0][1]
    if isinstance(message, Refused):
        return f"{message.param}: {message.message}"
    return actor.prompts.tokenizer.decode(array("i", message.prompt).tolist(), skip_special_tokens=False)


SAID = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": " Once upon a "}]


def test_a_prompt_can_end_with_the_last_message_or_before_the_next(tmp_path: Path) -> None:
    actor = start(write_model(tmp_path, template=CHATML))
    usual = rendered(actor, SAID)
    assert usual.endswith("<|im_start|>assistant\n")
    assert rendered(actor, SAID, add_generation_prompt=True) == usual
    before = rendered(actor, SAID, add_generation_prompt=False)
    assert usual == before + "<|im_start|>assistant\n"
    on = rendered(actor, SAID, continue_final_message=True)
    assert on.endswith("<|im_start|>assistant\n Once upon a ")
    assert before.startswith(on)
    parts = [SAID[0], {"role": "assistant", "content": [{"type": "text", "text": " Once upon a "}]}]
    assert rendered(actor, parts, continue_final_message=True) == on
    assert rendered(actor, SAID, continue_final_message=False, add_generation_prompt=None) == usual


@pytest.mark.parametrize(
    "last", ["end", "d", "|", ">", "<|", "im_end", "user", "2 + 2 = ", "a\n", "<|im_end|>"]
)
@pytest.mark.parametrize("strips", [False, True])
def test_a_prompt_ends_with_the_last_message_whatever_its_words_are(
    tmp_path: Path, last: str, strips: bool
) -> None:
    """Words of the template behind it among them."""
    template = CHATML.replace("{{ message.content +", "{{ message.content | trim +") if strips else CHATML
    assert ("trim" in template) == strips
    actor = start(write_model(tmp_path, template=template))
    told = [SAID[0], {"role": "assistant", "content": last}]
    before = rendered(actor, told, add_generation_prompt=False)
    begun = rendered(actor, SAID[:1])
    expected = begun + (last.strip() if strips else last)
    assert before.startswith(expected)
    assert rendered(actor, told, continue_final_message=True) == expected
    parts = [SAID[0], {"role": "assistant", "content": [{"type": "text", "text": last}]}]
    assert rendered(actor, parts, continue_final_message=True) == expected


def test_a_message_that_ends_with_calls_has_no_text_to_go_on_with(tmp_path: Path) -> None:
    """They were left out in silence."""
    call = {"id": "a", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    actor = start(write_model(tmp_path, template=CHATML))
    told = [SAID[0], {"role": "assistant", "content": "I look.", "tool_calls": [call]}]
    assert "ends with calls" in rendered(actor, told, continue_final_message=True)


@pytest.mark.parametrize(
    ("last", "given", "named"),
    [
        ("x", {"continue_final_message": True, "add_generation_prompt": True}, "leave one out"),
        ("", {"continue_final_message": True}, "whose content is empty"),
        ("x", {"continue_final_message": 1}, "continue_final_message=1 is neither true nor false"),
        ("x", {"add_generation_prompt": "no"}, "add_generation_prompt='no' is neither true nor false"),
    ],
)
def test_an_end_of_a_prompt_that_makes_no_sense_is_refused(
    tmp_path: Path, last: str, given: dict[str, Any], named: str
) -> None:
    actor = start(write_model(tmp_path, template=CHATML))
    answer = rendered(actor, [SAID[0], {"role": "assistant", "content": last}], **given)
    assert answer.partition(":")[0] in given
    assert named in answer


def test_a_model_that_knows_no_thinking_is_told_not_to_without_harm(tmp_path: Path) -> None:
    actor = start(write_model(tmp_path, template=CHATML))
    assert rendered(actor, SAID, enable_thinking=False, thinking=False) == rendered(actor, SAID)
    assert "does not know" in rendered(actor, SAID, enable_thinking=True)


def test_a_null_of_what_a_template_does_not_know_asks_for_nothing(tmp_path: Path) -> None:
    template = "{{ messages[0].content }}{{ style is none }}{{ bos_token }}{{ raise_exception is defined }}"
    actor = start(write_model(tmp_path, template=template))
    plain, told = (
        submit_with(actor),
        submit_with(actor, **dict.fromkeys(("tools", "colour", *OURS, "bos_token"))),
    )
    assert isinstance(plain, Tokenized)
    assert isinstance(told, Tokenized)
    assert told.prompt == plain.prompt
    known = submit_with(actor, style=None)
    assert isinstance(known, Tokenized)
    assert known.prompt != plain.prompt


def test_what_a_template_does_not_know_is_refused(tmp_path: Path) -> None:
    actor = start(write_model(tmp_path, template="{{ messages[0].content }}{{ style }}{{ bos_token }}"))
    assert isinstance(submit_with(actor, style="x"), Tokenized)
    for given, named in (
        ({"tools": TOOLS}, "takes none"),
        ({"stile": 1}, "'stile', which the model's chat template does not know; it knows style"),
        ({"b": 1, "a": 1, "style": 1}, "has 'b', which"),
        ({"messages": []}, "'messages'"),
        ({"bos_token": "x"}, "'bos_token'"),
    ):
        told = submit_with(actor, **given)
        assert isinstance(told, Refused)
        assert told.code == "invalid_request"
        assert named in told.message
