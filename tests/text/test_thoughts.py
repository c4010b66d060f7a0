"""Thoughts where text meets tokens: marks that are special tokens, prompts that begin them, grammars behind them."""

from __future__ import annotations

import json
from array import array

import pytest
import tokenizers
from slipstream.actors.text.detokenizer import Detokenizer
from slipstream.actors.text.grammars.grammar import GrammarCompiler
from slipstream.actors.text.thoughts import ThoughtTokens
from slipstream.actors.text.tokenizer import Tokenizer
from slipstream.actors.text.vocabulary.tokenizer_files import load_tokenizer
from slipstream.protocol.internal import Enqueue, Finished, Opened, Submit, Texts, Tokens
from slipstream.protocol.messages import Formats
from slipstream.protocol.sampling import Grammar, SamplingParams
from tokenizers import AddedToken

from slipstream.serving.service import BUNDLED_MODEL

SPECIAL = ["[THINK]", "[/THINK]", "<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|constrain|>"]
PLAIN = ["<think>", "</think>"]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
HARMONY = Formats(reasoning="openai_gptoss")
MISTRAL = Formats(reasoning="mistral", tool_calls="mistral")
QWEN = Formats(reasoning="qwen3")
GRANITE = Formats(reasoning="granite")
BEFORE_FINAL = "<|channel|>analysis<|message|>Hm, {}.<|end|><|start|>assistant<|channel|>final<|message|>"


@pytest.fixture(scope="module")
def vocabulary() -> tokenizers.Tokenizer:
    tokenizer = load_tokenizer(BUNDLED_MODEL)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    tokenizer.add_tokens([AddedToken(name, special=False) for name in PLAIN])
    return tokenizer


def encode(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def texts_of(detokenizer: Detokenizer, opened: Opened, ids: list[int]) -> list[str]:
    """One for each token, which comes in a step of its own; the last is what was held back."""
    told: list[str] = []
    for step, token in enumerate(ids):
        message = Tokens(
            step,
            [opened] if step == 0 else [],
            array("q", [1]).tobytes(),
            array("i", [token]).tobytes(),
            [Finished(1, "length")] if step == len(ids) - 1 else [],
        )
        [(_, sent)] = detokenizer.receive("scheduler", message, 0.0)
        assert isinstance(sent, Texts)
        told += sent.texts + sent.tails
    return told


def opened(prompt: list[int], delivered: list[int], *, marks: bool) -> Opened:
    context = array("i", [*prompt, *delivered]).tobytes()
    return Opened(1, context, len(delivered), [], 0, len(prompt), marks=marks)


@pytest.mark.parametrize("formats", [MISTRAL, HARMONY])
def test_marks_that_are_special_tokens_have_text_for_those_who_ask(
    vocabulary: tokenizers.Tokenizer, formats: Formats
) -> None:
    answer = "[THINK]Hm é[/THINK]It is." if formats is MISTRAL else BEFORE_FINAL + "It is."
    ids = encode(vocabulary, answer)
    detokenizer = Detokenizer(vocabulary, formats)
    prompt = encode(vocabulary, "Hi")
    assert "".join(texts_of(detokenizer, opened(prompt, [], marks=True), ids)) == answer
    plain = vocabulary.decode(ids, skip_special_tokens=True)
    assert "".join(texts_of(detokenizer, opened(prompt, [], marks=False), ids)) == plain


def test_a_mark_that_ends_the_prompt_begins_the_text_once(vocabulary: tokenizers.Tokenizer) -> None:
    detokenizer = Detokenizer(vocabulary, QWEN)
    ids = encode(vocabulary, "Hm.\n</think>\n\nYes.")
    open_prompt = encode(vocabulary, "assistant\n<think>\n")
    for prompt, marks, begin in (
        (open_prompt, True, "<think>"),
        (open_prompt, False, ""),
        (encode(vocabulary, "<think>\n\n</think>\n\n"), True, ""),
    ):
        assert "".join(texts_of(detokenizer, opened(prompt, [], marks=marks), ids)) == (
            begin + "Hm.\n</think>\n\nYes."
        )
    resumed = texts_of(detokenizer, opened(open_prompt, ids[:2], marks=True), ids[2:])
    assert "".join(resumed) == vocabulary.decode(ids[2:], skip_special_tokens=False)


def follows(
    tokenizer: tokenizers.Tokenizer, compiler: GrammarCompiler, grammar: Grammar, answer: str
) -> bool:
    """Whether every token of the answer may come, and the answer may end then."""
    matcher = compiler.compile(grammar)
    for token in encode(tokenizer, answer):
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        if not mask >> token & 1:
            return False
        matcher.consume_token(token)
    return matcher.is_accepting()


JSON = '{"a": 12}'


@pytest.mark.parametrize(
    ("formats", "prompt", "answer", "allowed"),
    [
        (QWEN, "user", f"<think>\nHm, {{}} so.\n</think>\n\n{JSON}", True),
        (QWEN, "user", JSON, True),
        (QWEN, "user", f"Hm. {JSON}", False),
        (QWEN, "user", '<think>Hm</think>{"b": 1}', False),
        (QWEN, "<think>\n", f"Hm.\n</think>\n\n{JSON}", True),
        (QWEN, "<think>\n", "Hm.", False),
        (QWEN, "<think>\n\n</think>\n\n", JSON, True),
        (QWEN, "<think>\n\n</think>\n\n", f"<think>Hm</think>{JSON}", False),
        (MISTRAL, "user", f"[THINK]Hm[/THINK]{JSON}", True),
        (HARMONY, "<|start|>assistant", BEFORE_FINAL + JSON, True),
        (HARMONY, "<|start|>assistant", f"<|channel|>final <|constrain|>json<|message|>{JSON}", True),
        (HARMONY, "<|start|>assistant", JSON, False),
        (GRANITE, "user", f"Here is my thought process: Hm. Here is my response: {JSON}", True),
        (GRANITE, "user", JSON, True),
        (Formats(), "user", JSON, True),
        (Formats(), "user", f"<think>Hm</think>{JSON}", False),
    ],
)
def test_a_grammar_begins_behind_the_thoughts(
    vocabulary: tokenizers.Tokenizer, formats: Formats, prompt: str, answer: str, allowed: bool
) -> None:
    compiler = GrammarCompiler(vocabulary, vocabulary.get_vocab_size(), [0])
    before = ThoughtTokens(vocabulary, formats).rule(encode(vocabulary, prompt))
    grammar = Grammar("json_schema", json.dumps(SCHEMA), before)
    assert follows(vocabulary, compiler, grammar, answer) == allowed


def test_only_in_a_conversation_there_are_thoughts_before_what_matches(
    vocabulary: tokenizers.Tokenizer,
) -> None:
    compiler = GrammarCompiler(vocabulary, vocabulary.get_vocab_size(), [0])
    actor = Tokenizer(vocabulary, "none", 1000, compiler=compiler, formats=QWEN)

    def enqueued(submit: Submit) -> Enqueue:
        return next(
            message for _, message in actor.receive("gateway", submit, 0.0) if isinstance(message, Enqueue)
        )

    ids = array("i", encode(vocabulary, "user\n<think>\n")).tobytes()
    matching, free = SamplingParams(seed=1, regex="[0-9]+"), SamplingParams(seed=1)
    assert enqueued(Submit(1, None, matching, prompt_ids=ids)).before == ""
    assert enqueued(Submit(2, None, free, prompt_ids=ids, marks=True)).before == ""
    thinking = enqueued(Submit(3, None, matching, prompt_ids=ids, marks=True))
    assert thinking.marks
    grammar = Grammar("regex", "[0-9]+", thinking.before)
    assert follows(vocabulary, compiler, grammar, "Hm</think>\n\n42")
