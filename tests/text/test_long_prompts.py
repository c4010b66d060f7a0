"""Promises about long prompts: no request, however long, holds up the others or takes longer than it may."""

from __future__ import annotations

import random
import re
import threading
import time
from array import array
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from slipstream.actors.text.prompts import cutting, prompts
from slipstream.actors.text.prompts.chat_template import ChatTemplates
from slipstream.actors.text.prompts.cutting import LONGEST_PART, PART, Cutter
from slipstream.actors.text.prompts.prompts import Prompts
from slipstream.actors.text.tokenizer import Tokenizer
from slipstream.protocol.events import PeerUp
from slipstream.protocol.internal import Cancel, Enqueue, Refused, Submit, Tokenized, first_number
from slipstream.protocol.sampling import SamplingParams
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

LOG_LINE = "2026-11-28T12:00:00 INFO worker-0 request 0 took 0 ms\n"

WORDS = [
    "the",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    "fox",
    "9",
    "世界",
    "。",
    "é",
    "e\u0301",
    "👩‍👩‍👧",
    "\u3000",
    "\xa0",
]
WORDS += [
    "<s>",
    "</s>",
    "<mask>",
    "two words",
    "[",
    "}",
    '"',
    ",",
    "'s",
    "_",
    ">",
    "▁",
    "Ġ",
    "x= 1",
    ". So",
    "ﬁ",
]


def byte_level() -> tokenizers.Tokenizer:
    """As Llama 3's: words by a regular expression, and a token before each text."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return trained(tokenizer, pre_tokenizers.ByteLevel.alphabet())


def sentencepiece_like() -> tokenizers.Tokenizer:
    """As Llama 2's: no words at all, and a space before each text."""
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return trained(tokenizer, [])


def words_over_spaces() -> tokenizers.Tokenizer:
    """One whose tokens go on over spaces, so that there is no place to cut before one."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    return trained(tokenizer, [])


def trained(tokenizer: tokenizers.Tokenizer, alphabet: list[str]) -> tokenizers.Tokenizer:
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    corpus = ["the fox said two words to the other fox. So it went\nhome, x= 1 of 世界\n" * 3, LOG_LINE]
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens([AddedToken("<mask>", rstrip=True), "two words"])
    tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


KINDS = {"byte_level": byte_level, "sentencepiece": sentencepiece_like, "over_spaces": words_over_spaces}


def finish(steps: prompts.PromptEncoding) -> tuple[array[int], int]:
    """The ids, and how many pauses there were before."""
    pauses = 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value, pauses
        pauses += 1


@pytest.mark.parametrize("part", [1, 17, 300])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_text_in_parts_has_the_tokens_of_the_whole(
    kind: str, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "PART", part)
    tokenizer = KINDS[kind]()
    cutter = Cutter(tokenizer)
    rng = random.Random(7)
    texts = ["".join(rng.choices(WORDS, k=1500)), LOG_LINE * 80, Path(__file__).read_text()]
    cuts = 0
    for text in texts:
        parts = list(cutter.cuts(text))
        assert [start for start, _ in parts[1:]] == [end for _, end in parts[:-1]]
        cuts += len(parts) - 1
        ids = sum((cutter.tokens_of(text, *place) for place in parts), array("i"))
        assert ids == array("i", tokenizer.encode(text, add_special_tokens=False).ids)
    assert cuts > 30


@pytest.mark.parametrize("special", [True, False])
def test_a_long_prompt_has_the_tokens_that_the_tokenizer_gives_it(special: bool) -> None:
    tokenizer = byte_level()
    text = LOG_LINE * (4 * PART // len(LOG_LINE))
    ids, pauses = finish(Prompts(tokenizer, "").of_text(text, add_special_tokens=special))
    assert ids == array("i", tokenizer.encode(text, add_special_tokens=special).ids)
    assert pauses >= 4


def test_other_threads_run_while_a_text_is_encoded() -> None:
    """A face that is asked for the tokens of a long text goes on with its streams."""
    tokenizer = byte_level()
    text = LOG_LINE * 4000
    state = ["before"]

    def work() -> None:
        state[0] = "encoding"
        cutting.encode(tokenizer, text, special=False)
        state[0] = "done"

    worker = threading.Thread(target=work)
    turns = 0
    worker.start()
    while state[0] != "done":
        turns += state[0] == "encoding"
        time.sleep(0)  # gives the interpreter away, and gets it back only when the worker does so too
    worker.join()
    assert turns > 10


# --- the actor ------------------------------------------------------------------------------------


def actor_of(
    tokenizer: tokenizers.Tokenizer, template: str = "{{ messages[0].content }}", **options: Any
) -> Tokenizer:
    options = {"max_model_len": 100_000, "max_prompt_bytes": 8 * 2**20} | options
    return Tokenizer(tokenizer, ChatTemplates({"default": template}, {}, datetime.now), **options)


def submit(request: int, prompt: Any, attempt: int = 0) -> Submit:
    return Submit(request, prompt, SamplingParams(seed=1), attempt=attempt)


def run(actor: Tokenizer, now: float = 0.0, step_s: float = 0.0) -> list[Any]:
    """Wake the actor until it has nothing to do; what it says meanwhile."""
    said: list[Any] = []
    while actor.wake_at is not None:
        now += step_s
        said += [message for _, message in actor.wake(now)]
    return said


def test_a_short_prompt_goes_before_a_long_one() -> None:
    actor = actor_of(byte_level())
    assert actor.receive("gateway", submit(1, LOG_LINE * 1500), 0.0) == []
    assert (actor.working, actor.idle) == (True, False)
    assert [type(m) for _, m in actor.receive("gateway", submit(2, "hi"), 0.01)] == [Tokenized, Enqueue]
    long, shorter = LOG_LINE * 1600, LOG_LINE * 800
    assert actor.receive("gateway", submit(3, long), 0.02) == []
    assert actor.receive("gateway", submit(4, shorter), 0.02) == []
    done = [message.request for message in run(actor) if isinstance(message, Enqueue)]
    assert done == [4, 1, 3]
    assert (actor.working, actor.idle) == (False, True)


def test_a_long_prompt_is_not_passed_over_for_ever() -> None:
    actor = actor_of(byte_level())
    actor.receive("gateway", submit(1, LOG_LINE * 1500), 0.0)
    for number in range(2, 2000):
        now = number * 0.01
        actor.receive("gateway", submit(number, LOG_LINE * 700), now)
        if any(isinstance(m, Enqueue) and m.request == 1 for _, m in actor.wake(now)):
            return
    raise AssertionError("the long prompt waits still")


def test_the_host_sees_the_progress_of_a_long_prompt() -> None:
    actor = actor_of(byte_level())
    actor.receive("gateway", submit(1, LOG_LINE * 1500), 0.0)
    seen = {actor.progress}
    while actor.wake_at is not None:
        actor.wake(0.0)
        seen.add(actor.progress)
    assert len(seen) >= 1500 * len(LOG_LINE) // PART


class Counted:
    """A tokenizer that notes how much it is given at once."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> Any:
        self.sizes += map(len, texts)
        return self.tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)


@pytest.mark.parametrize("face", ["prompt", "messages"])
def test_a_prompt_over_the_context_is_refused_as_soon_as_it_is_known_to_be(face: str) -> None:
    """8 MB of log lines took longer than a hanging actor is given, and ended the service."""
    counted = Counted(byte_level())
    actor = actor_of(counted, max_model_len=50_000)  # pyright: ignore[reportArgumentType]
    text = LOG_LINE * (8_000_000 // len(LOG_LINE))
    asked = text if face == "prompt" else [{"role": "user", "content": text}]
    [refused] = [*(m for _, m in actor.receive("gateway", submit(1, asked), 0.0)), *run(actor)]
    assert isinstance(refused, Refused)
    assert (refused.code, refused.param) == ("context_length_exceeded", face)
    assert f"of {len(text)} characters" in refused.message
    assert "50000 tokens (max_model_len)" in refused.message
    assert max(counted.sizes) <= PART + 100
    assert sum(counted.sizes) < 300_000


@pytest.mark.parametrize("unit", ["a", " ", "0123456789abcdef"])
def test_a_text_that_cannot_be_cut_is_refused_before_it_is_encoded(unit: str) -> None:
    counted = Counted(byte_level())
    actor = actor_of(counted)  # pyright: ignore[reportArgumentType]
    text = "the fox " * 9000 + unit * (2_000_000 // len(unit))
    [refused] = [*(m for _, m in actor.receive("gateway", submit(1, text), 0.0)), *run(actor)]
    assert isinstance(refused, Refused)
    assert refused.code == "invalid_request"
    assert f"the limit is {LONGEST_PART}: break it into lines, or send token ids" in refused.message
    assert max(counted.sizes) <= PART + 100


def test_a_request_that_takes_too_long_is_refused_alone() -> None:
    actor = actor_of(byte_level())
    actor.receive("gateway", submit(1, LOG_LINE * 1500), 0.0)
    [refused] = run(actor, step_s=11.0)
    assert isinstance(refused, Refused)
    assert refused.message == (
        "the prompt took 11.0 s until 81000 characters before its end; the limit is 10 s: shorten it, or send token ids"
    )
    assert refused.param == "prompt"


def test_the_time_of_others_is_not_counted() -> None:
    actor = actor_of(byte_level())
    actor.receive("gateway", submit(1, LOG_LINE * 1500), 0.0)
    now = 0.0
    said: list[Any] = []
    while actor.wake_at is not None:
        said += [message for _, message in actor.wake(now)]
        actor.receive("gateway", submit(2, "hi"), now + 0.05)
        now += 9.0
    assert [message.request for message in said if isinstance(message, Enqueue)] == [1]


def test_an_ended_or_repeated_request_is_not_worked_at() -> None:
    actor = actor_of(byte_level())
    actor.receive("gateway", submit(1, LOG_LINE * 1500), 0.0)
    assert actor.receive("gateway", Cancel([1]), 0.0) == [("scheduler", Cancel([1]))]
    assert run(actor) == []
    actor.receive("gateway", submit(2, LOG_LINE * 1500), 0.0)
    actor.receive("gateway", submit(2, LOG_LINE * 1500, attempt=1), 0.0)
    assert [m.attempt for m in run(actor) if isinstance(m, Enqueue)] == [1]
    actor.receive("gateway", submit(3, LOG_LINE * 1500), 0.0)
    actor.receive("", PeerUp("gateway", 9), 0.0)
    assert first_number(9) > 3
    assert run(actor) == []


# --- templates --------------------------------------------------------------------------------------


def test_a_conversation_of_many_messages_is_rendered_in_turns() -> None:
    template = "{% for m in messages %}{{ m.role }}{% endfor %}"
    actor = actor_of(byte_level(), template)
    messages = [{"role": "u", "content": ""}] * 8000
    assert actor.receive("gateway", submit(1, messages), 0.0) == []
    before = actor.progress
    assert [type(m) for m in run(actor)] == [Tokenized, Enqueue]
    assert actor.progress - before >= 8000 // prompts.OUTPUTS_AT_ONCE


def test_a_template_that_looks_at_all_messages_for_each_is_rendered_in_turns() -> None:
    """One of 1,300 took slices of 4 s, in which nobody else's prompt was encoded."""
    template = "{% for m in messages %}{{ m.role }}{% for n in messages %}{% endfor %}{% endfor %}"
    actor = actor_of(byte_level(), template)
    messages = [{"role": "u", "content": ""}] * 450
    assert len(messages) < prompts.OUTPUTS_AT_ONCE
    assert actor.receive("gateway", submit(1, messages), 0.0) == []
    before = actor.progress
    assert [type(m) for m in run(actor)] == [Tokenized, Enqueue]
    pauses = 450 * 450 // (prompts.ITERATIONS_AT_ONCE + 450)
    assert actor.progress - before >= pauses > 10


ROUND = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    "template",
    [
        ROUND,
        "{% macro m() %}" + ROUND + "{% endmacro %}{{ m() }}",
        "{% set x %}" + ROUND + "{% endset %}",
        "{% for a in range(99999) %}{% for b in range(99999) if b > a and false %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(99) }}",
        "{% for a in [1, 1] recursive %}{% if loop.depth < 99 %}{{ loop([1, 1]) }}{% endif %}{% endfor %}",
    ],
    ids=["loops", "macro", "assigned", "filtered", "recursion", "recursive loop"],
)
def test_a_template_that_computes_without_end_is_named_in_an_error(template: str) -> None:
    actor = actor_of(byte_level(), "{{ messages[0].content }}" + template)
    asked = [{"role": "user", "content": "x"}]
    [refused] = [*(m for _, m in actor.receive("gateway", submit(1, asked), 0.0)), *run(actor)]
    assert isinstance(refused, Refused)
    assert re.fullmatch(
        r"the model's chat template does not end: its loops and macros went round 300002 times.*",
        refused.message,
    )
    assert refused.param == "messages"


def test_a_template_that_looks_at_all_messages_for_each_is_not_stopped() -> None:
    template = (
        "{% for m in messages %}{% set n = namespace(same=0) %}{% for o in messages %}"
        "{% if o.role == m.role %}{% set n.same = n.same + 1 %}{% endif %}{% endfor %}{{ n.same }} {% endfor %}"
    )
    actor = actor_of(byte_level(), template)
    messages = [{"role": "u", "content": ""}] * 700
    actor.receive("gateway", submit(1, messages), 0.0)
    assert [type(m) for m in run(actor)] == [Tokenized, Enqueue]


def test_a_template_that_writes_without_end_is_stopped() -> None:
    template = "{% for m in messages %}{% for n in messages %}{{ n.content }}{% endfor %}{% endfor %}"
    actor = actor_of(byte_level(), template, max_prompt_bytes=200_000)
    messages = [{"role": "user", "content": "x" * 10}] * 5000
    [refused] = [*(m for _, m in actor.receive("gateway", submit(1, messages), 0.0)), *run(actor)]
    assert isinstance(refused, Refused)
    assert refused.message == "the conversation has more than 200000 bytes; the limit is 200000: shorten it"
