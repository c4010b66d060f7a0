"""Promises of the detokenizer: the text is exact, never broken, and the same after any restart."""

from __future__ import annotations

import subprocess
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from slipstream.actors.text.detokenizer import Detokenizer
from slipstream.protocol.errors import ModelNotSupported
from slipstream.protocol.events import PeerUp
from slipstream.protocol.internal import Finished, Matched, Opened, Texts, Tokens
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "The cat sat by the fire, and the old woman told the cat a story about the sea.",
    "Größe, café, naïve, señor; e\u0301 and a\u0308 are combined; 日本語の文章と中文的句子。",
    "Smile 😀, family 👨‍👩‍👧, flag 🇩🇪; नमस्ते, привет, שלום, 안녕하세요.",
]
UNTRAINED = "𝔘"
"""Not in the corpus: every vocabulary here writes it as four tokens of one byte."""


def byte_level() -> tokenizers.Tokenizer:
    """As GPT-2, Llama 3 and Qwen have it."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=450,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|begin|>", "<|end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 2, trainer)
    tokenizer.add_tokens(["<tool>", " ünï "])
    return tokenizer


def byte_fallback() -> tokenizers.Tokenizer:
    """As Llama 2 has it: spaces are part of the tokens, unknown characters become tokens of one byte."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False)
    trained.train_from_iterator(CORPUS * 2, trainer)
    base = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    learned = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    vocab = {token: index for index, token in enumerate([*base, *learned])}
    merges = [
        (left, right)
        for token in learned
        for left, right in [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        if left in vocab and right in vocab
    ]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def metaspace() -> tokenizers.Tokenizer:
    """As SentencePiece unigram models have it."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=250, unk_token="<unk>", special_tokens=["<unk>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


TOKENIZERS = {make.__name__: make() for make in (byte_level, byte_fallback, metaspace)}
DETOKENIZERS = {name: Detokenizer(tokenizer) for name, tokenizer in TOKENIZERS.items()}
BYTE_LEVEL, BYTE_FALLBACK = TOKENIZERS["byte_level"], TOKENIZERS["byte_fallback"]


def encode(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def token_id(tokenizer: tokenizers.Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    assert found is not None
    return found


def pack(ids: Sequence[int]) -> bytes:
    return array("i", ids).tobytes()


def message(rows: list[tuple[int, int]], **rest: Any) -> Tokens:
    """A ``Tokens`` with a token id for each (request, token)."""
    requests = array("q", [request for request, _ in rows]).tobytes()
    return Tokens(rest.pop("step", 1), requests=requests, tokens=pack([token for _, token in rows]), **rest)


def opened(
    request: int, prompt: list[int], delivered: Sequence[int] = (), stop: Sequence[str] = ()
) -> Opened:
    return Opened(request, pack([*prompt, *delivered]), len(delivered), [*stop], 0, len(prompt))


@dataclass
class Answer:
    """What came of one request."""

    texts: list[str] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    tail: str = ""
    matched: list[int] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.texts) + self.tail


def run(
    detokenizer: Detokenizer,
    prompt: list[int],
    answer: list[int],
    *,
    delivered: Sequence[int] = (),
    stop: Sequence[str] = (),
    steps: Sequence[int] = (),
    reason: str = "length",
) -> Answer:
    """Send an answer in steps that end at the places ``steps``; the last one ends the request."""
    detokenizer.receive(b"", PeerUp("scheduler", 1), 0.0)
    cuts = sorted({cut for cut in steps if cut < len(answer)} | {0, len(answer)})
    found = Answer()
    for first, last in pairwise(cuts) if len(cuts) > 1 else [(0, 0)]:
        rows = [(7, token) for token in answer[first:last]]
        start = [opened(7, prompt, delivered, stop)] if first == 0 else []
        end = [Finished(7, reason)] if last == len(answer) else []
        for to, sent in detokenizer.receive("scheduler", message(rows, opened=start, finished=end), 0.0):
            if isinstance(sent, Matched):
                assert to == "scheduler"
                found.matched += sent.requests
                continue
            assert isinstance(sent, Texts)
            assert to == "gateway"
            assert len(sent.texts) == len(sent.tokens) // 4 == len(sent.requests) // 8
            assert len(sent.tails) == len(sent.finished)
            found.texts += sent.texts
            found.finished += sent.finished
            found.tail += "".join(sent.tails)
        if found.matched:
            break
    return found


settings.register_profile("no deadline", deadline=None)  # a busy machine is no failure
settings.load_profile("no deadline")
names = st.sampled_from(sorted(TOKENIZERS))
cuts = st.lists(st.integers(0, 40), max_size=12)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
known = st.sampled_from([*CORPUS, UNTRAINED, "👨‍👩‍👧", "日本", " a b"])
phrases = st.lists(texts | known, max_size=5).map("".join)


def ids(name: str, min_size: int = 0, max_size: int = 40) -> st.SearchStrategy[list[int]]:
    every = st.integers(0, TOKENIZERS[name].get_vocab_size() - 1)
    return st.lists(every, min_size=min_size, max_size=max_size)


# --- the text is exact ----------------------------------------------------------------------------


@given(st.data(), cuts)
def test_any_token_sequence_in_any_steps_decodes_as_the_whole(data: st.DataObject, steps: list[int]) -> None:
    prompt = data.draw(ids("byte_level", min_size=1, max_size=12))
    answer = data.draw(ids("byte_level"))
    found = run(DETOKENIZERS["byte_level"], prompt, answer, steps=steps)
    whole = BYTE_LEVEL.decode(prompt + answer)
    assert whole.endswith(found.text)
    before = whole.removesuffix(found.text)
    # What was before is the prompt's text, but for a character that the prompt leaves unfinished.
    assert BYTE_LEVEL.decode(prompt) in (before, before + "\ufffd")
    assert len(found.texts) == len(answer)


@given(st.data(), cuts)
def test_any_token_sequence_of_a_byte_fallback_vocabulary_decodes_as_its_bytes(
    data: st.DataObject, steps: list[int]
) -> None:
    # The library itself takes back a whole character when a broken one follows; a stream cannot, so the
    # measure is the bytes that the tokens stand for.
    prompt, answer = encode(BYTE_FALLBACK, "The cat"), data.draw(ids("byte_fallback"))
    raw = b""
    for token in answer:
        name = BYTE_FALLBACK.id_to_token(token) or ""
        raw += bytes([int(name[3:5], 16)]) if name.startswith("<0x") else b"" if token < 3 else name.encode()
    expected = raw.decode(errors="replace").replace("▁", " ")
    assert run(DETOKENIZERS["byte_fallback"], prompt, answer, steps=steps).text == expected


@given(names, phrases, st.integers(1, 30), cuts)
def test_any_text_cut_at_any_token_comes_back(name: str, text: str, cut: int, steps: list[int]) -> None:
    tokenizer = TOKENIZERS[name]
    tokens = encode(tokenizer, "The cat. " + text.replace("\ufffd", ""))
    found = run(DETOKENIZERS[name], tokens[:cut], tokens[cut:], steps=steps)
    whole = tokenizer.decode(tokens)
    # Whole characters of the prompt: the library takes some of them back where an unfinished one follows.
    beginnings = [tokenizer.decode(tokens[:count]).rstrip("\ufffd") for count in range(cut + 1)]
    prompt = max((text for text in beginnings if whole.startswith(text)), key=len)
    assert prompt + found.text == whole


@given(names, phrases, cuts)
def test_characters_never_appear_broken(name: str, text: str, steps: list[int]) -> None:
    tokenizer = TOKENIZERS[name]
    prompt, answer = encode(tokenizer, "The cat"), encode(tokenizer, text.replace("\ufffd", ""))
    for piece in run(DETOKENIZERS[name], prompt, answer, steps=steps).texts:
        assert "\ufffd" not in piece


@pytest.mark.parametrize("name", ["byte_fallback", "metaspace"])
def test_the_first_token_of_a_text_loses_its_space_and_that_of_an_answer_keeps_it(name: str) -> None:
    tokenizer, detokenizer = TOKENIZERS[name], DETOKENIZERS[name]
    answer = encode(tokenizer, "the cat")
    assert run(detokenizer, encode(tokenizer, "The"), answer).text == " the cat"
    special = [token_id(tokenizer, "</s>")]
    assert run(detokenizer, special, answer).text == tokenizer.decode(special + answer) == "the cat"
    # Special tokens at the end of a longer prompt: the context does not reach back to the beginning.
    whole = Opened(7, pack(special), 0, [], 0, prompt_tokens=9)
    [(_, sent)] = detokenizer.receive("", message([(7, token) for token in answer], opened=[whole]), 0.0)
    assert "".join(sent.texts) == " the cat"


def test_special_tokens_have_no_text_and_count_as_tokens() -> None:
    end = token_id(BYTE_LEVEL, "<|end|>")
    tokens = encode(BYTE_LEVEL, UNTRAINED)
    between = [end, tokens[0], end, *tokens[1:], end]
    found = run(DETOKENIZERS["byte_level"], encode(BYTE_LEVEL, "a"), between)
    assert found.texts == ["", "", "", "", "", UNTRAINED, ""]
    assert run(DETOKENIZERS["byte_level"], [5], [token_id(BYTE_LEVEL, "<tool>")]).text == "<tool>"


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
@pytest.mark.parametrize("delivered", [0, 3])
def test_special_tokens_have_their_names_where_they_are_asked_for(name: str, delivered: int) -> None:
    tokenizer, detokenizer = TOKENIZERS[name], DETOKENIZERS[name]
    special = [token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special]
    prompt, cat = encode(tokenizer, "The"), encode(tokenizer, " cat" + CORPUS[2])
    answer = [special[-1], *cat, special[0], *cat, special[-1]]
    start = msgspec.structs.replace(opened(7, prompt, answer[:delivered]), special=True)
    rows = [(7, token) for token in answer[delivered:]]
    [(_, sent)] = detokenizer.receive("", message(rows, opened=[start]), 0.0)
    assert isinstance(sent, Texts)
    before = tokenizer.decode(prompt + answer[:delivered], skip_special_tokens=False)
    whole = tokenizer.decode(prompt + answer, skip_special_tokens=False)
    assert before + "".join(sent.texts) == whole
    assert str(tokenizer.id_to_token(special[-1])) in whole
    assert str(tokenizer.id_to_token(special[-1])) not in run(detokenizer, prompt, answer).text


def test_a_special_token_can_be_a_stop_text_where_it_has_its_name() -> None:
    end, cat = token_id(BYTE_LEVEL, "<|end|>"), encode(BYTE_LEVEL, "cat")
    start = msgspec.structs.replace(opened(7, [5], stop=["<|end|>"]), special=True)
    rows = [(7, token) for token in [*cat, end, *cat]]
    [(_, sent), (_, matched)] = DETOKENIZERS["byte_level"].receive("", message(rows, opened=[start]), 0.0)
    assert isinstance(sent, Texts)
    assert ("".join(sent.texts), matched) == ("cat", Matched([7], [0]))


def test_a_token_that_the_tokenizer_does_not_know_has_no_text() -> None:
    # A model's vocabulary is padded: it can sample such ids.
    assert run(DETOKENIZERS["byte_level"], [5], [99_999, *encode(BYTE_LEVEL, "cat"), 2**31 - 1]).text == "cat"


def test_a_tokenizer_whose_tokens_have_no_text_of_their_own_is_refused() -> None:
    tokenizer = tokenizers.Tokenizer(models.WordLevel({"a</w>": 0, "b": 1}, unk_token="b"))
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")  # a space, unless the token is the last
    with pytest.raises(ModelNotSupported, match="cannot be streamed"):
        Detokenizer(tokenizer)


# --- the three guards -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_character_begun_in_the_prompt_comes_out_once_and_whole(name: str, cut: int) -> None:
    tokenizer = TOKENIZERS[name]
    split = encode(tokenizer, "a" + UNTRAINED)[-4:]
    letter = token_id(tokenizer, "a")
    found = run(DETOKENIZERS[name], encode(tokenizer, "The cat ") + split[:cut], [*split[cut:], letter])
    assert found.text == UNTRAINED + "a"
    assert found.texts[: 3 - cut] == [""] * (3 - cut)


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
def test_what_is_held_back_at_the_end_comes_as_a_tail(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    tokens = encode(tokenizer, "a" + UNTRAINED)[-4:-1]
    for reason in ("length", "abort", "internal"):
        found = run(DETOKENIZERS[name], [5], tokens, reason=reason)
        assert (found.texts, found.tail) == (["", "", ""], "\ufffd")
        assert found.finished == [Finished(7, reason)]
    found = run(DETOKENIZERS[name], encode(tokenizer, "The"), encode(tokenizer, " cat"), stop=["cats"])
    assert (found.text.strip(), found.tail) == ("cat", "cat")


def test_bytes_that_make_decoding_take_back_a_character_lose_and_repeat_nothing() -> None:
    raw = [3 + byte for byte in "中".encode()]
    letter = token_id(BYTE_FALLBACK, "a")
    # Decoded as one, the unfinished character spoils the whole one before it, which was sent by then.
    assert BYTE_FALLBACK.decode([*raw, raw[0], letter]) == "\ufffd" * 4 + "a"
    found = run(DETOKENIZERS["byte_fallback"], [letter], [*raw, raw[0], letter, *raw])
    assert found.texts == ["", "", "中", "", "\ufffda", "", "", "中"]


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
def test_an_endless_run_of_broken_bytes_holds_back_at_most_three(name: str) -> None:
    tokenizer, detokenizer = TOKENIZERS[name], DETOKENIZERS[name]
    first = encode(tokenizer, "a" + UNTRAINED)[-4]
    detokenizer.receive("", message([], opened=[opened(7, [5])]), 0.0)
    for count in range(1, 200):
        [(_, sent)] = detokenizer.receive("", message([(7, first)]), 0.0)
        assert sent.texts == ["" if count == 1 else "\ufffd"]
        assert detokenizer.answers[7].pending == UNTRAINED.encode()[:1]


# --- stop texts -----------------------------------------------------------------------------------


def cut_at_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The measure: of all stop texts the one that is complete first; with the same end, the longest."""
    found = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in stops if stop in text]
    if not found:
        return text, None
    _, start, stop = min(found)
    return text[:start], stop


some_letters = st.text("ab", min_size=1, max_size=5)


@settings(max_examples=300)
@given(st.text("abc", max_size=25), st.lists(some_letters, min_size=1, max_size=4), st.integers(1, 4), cuts)
def test_stop_texts_cut_as_a_search_in_the_whole_text(
    text: str, stops: list[str], size: int, steps: list[int]
) -> None:
    # Tokens of one to four characters, so that stop texts begin and end inside tokens.
    parts = [text[at : at + size] for at in range(0, len(text), size)]
    found = run(LETTERS, [0], [LETTERS_IDS[part] for part in parts], stop=stops, steps=steps)
    expected, stop = cut_at_stop(text, stops)
    assert found.text == expected
    assert found.finished == [Finished(7, "length") if stop is None else Finished(7, "stop", stop)]
    assert found.matched == ([] if stop is None else [7])


def letters() -> tokenizers.Tokenizer:
    """All texts of one to four letters of a, b, c are tokens."""
    parts = [""]
    for _ in range(4):
        parts += [part + letter for part in parts for letter in "abc"]
    vocab = {part: index for index, part in enumerate(sorted(set(parts) - {""}))}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="a"))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


LETTERS = Detokenizer(letters())
LETTERS_IDS = letters().get_vocab()


@given(names, phrases, st.data(), cuts)
def test_stop_texts_of_any_script_are_found_across_tokens(
    name: str, text: str, data: st.DataObject, steps: list[int]
) -> None:
    tokenizer = TOKENIZERS[name]
    prompt, answer = encode(tokenizer, "The cat"), encode(tokenizer, text)
    whole = run(DETOKENIZERS[name], prompt, answer).text
    places = st.tuples(st.integers(0, len(whole)), st.integers(1, 6)).map(lambda at: whole[at[0] : sum(at)])
    stops = [stop for stop in data.draw(st.lists(places, max_size=3)) if stop and "\ufffd" not in stop]
    found = run(DETOKENIZERS[name], prompt, answer, stop=stops, steps=steps)
    expected, stop = cut_at_stop(whole, stops)
    assert (found.text, found.finished[0].stop_reason) == (expected, stop)


@given(st.text("ab", max_size=20), some_letters)
def test_text_is_held_back_only_while_it_can_begin_a_stop_text(text: str, stop: str) -> None:
    found = run(LETTERS, [0], [LETTERS_IDS[letter] for letter in text], stop=[stop], steps=list(range(20)))
    shown = ""
    for count, piece in enumerate(found.texts, 1):
        shown += piece
        if not found.matched or count < len(found.texts):
            ends = [n for n in range(len(stop)) if text[:count].endswith(stop[:n])]
            assert shown == text[: count - max(ends)]


def test_tokens_after_a_stop_text_are_dropped_and_the_other_requests_go_on() -> None:
    detokenizer = Detokenizer(letters())
    a, b, c = (LETTERS_IDS[letter] for letter in "abc")
    both = [opened(1, [a], stop=["bc"]), opened(2, [a])]
    rows = [(1, a), (2, a), (1, b), (1, c), (2, b), (1, a)]
    sends = detokenizer.receive("", message(rows, opened=both, finished=[Finished(1, "length")], step=5), 0.0)
    kept = [(1, a), (2, a), (1, b), (1, c), (2, b)]
    end = Finished(1, "stop", "bc")
    assert sends == [
        ("gateway", texts_message(5, kept, ["a", "a", "", "", "b"], [end], [""], both)),
        ("scheduler", Matched([1], [0])),
    ]
    sends = detokenizer.receive("", message([(1, c), (2, c), (9, c)], step=6), 0.0)
    assert sends == [("gateway", texts_message(6, [(2, c)], ["c"]))]
    assert detokenizer.dropped_tokens == 3
    assert list(detokenizer.answers) == [2]


def texts_message(
    step: int,
    rows: list[tuple[int, int]],
    texts: list[str],
    finished: Sequence[Finished] = (),
    tails: Sequence[str] = (),
    opened: Sequence[Opened] = (),
) -> Texts:
    given = message(rows)
    return Texts(step, [*opened], given.requests, given.tokens, texts, [*finished], [*tails])


def test_the_token_that_ended_a_sequence_has_no_text() -> None:
    a, b, c = (LETTERS_IDS[letter] for letter in "abc")
    for stop_reason in (c, None):  # a stop token of the request, or the model's own
        detokenizer = Detokenizer(letters())
        end = Finished(1, "stop", stop_reason)
        start = [opened(1, [a], stop=["bc", "c", "bab"]), opened(2, [a])]
        rows = [(1, a), (2, c), (1, b), (1, c), (2, c)]
        sends = detokenizer.receive("", message(rows, opened=start, finished=[end]), 0.0)
        assert sends == [("gateway", texts_message(1, rows, ["a", "c", "", "", "c"], [end], ["b"], start))]
        detokenizer.receive("", message([(2, a)]), 0.0)
        [(_, sent)] = detokenizer.receive("", message([(2, b)], finished=[Finished(2, "stop")]), 0.0)
        assert sent.texts == [""]


def test_an_end_of_a_request_that_was_never_opened_reaches_the_gateway() -> None:
    end = Finished(3, "invalid_request", None, "it could never fit")
    sends = Detokenizer(letters()).receive("", message([], finished=[end], counters={"steps": 1.0}), 0.0)
    assert sends == [("gateway", Texts(1, finished=[end], tails=[""], counters={"steps": 1.0}))]


# --- restarts -------------------------------------------------------------------------------------


@given(st.data(), names)
def test_a_restart_at_any_token_goes_on_with_the_same_text(data: st.DataObject, name: str) -> None:
    tokenizer = TOKENIZERS[name]
    prompt = data.draw(ids(name, min_size=1, max_size=9))
    answer = data.draw(ids(name, max_size=25)) + encode(tokenizer, data.draw(phrases))
    whole = run(DETOKENIZERS[name], prompt, answer)
    stops = [whole.text[at : at + 4] for at in data.draw(st.lists(st.integers(0, 40), max_size=2))]
    whole = run(DETOKENIZERS[name], prompt, answer, stop=[stop for stop in stops if stop])
    cut = data.draw(st.integers(0, max(0, len(whole.texts) - 1)))
    rest = run(
        DETOKENIZERS[name],
        prompt,
        answer[cut:],
        delivered=answer[:cut],
        stop=[stop for stop in stops if stop],
    )
    assert rest.texts == whole.texts[cut:]
    assert (rest.tail, rest.finished, rest.matched) == (whole.tail, whole.finished, whole.matched)


@pytest.mark.parametrize("delivered", [0, 1, 2])
def test_what_ends_an_answer_is_part_of_it_where_that_is_asked_for(delivered: int) -> None:
    a, b, c = (LETTERS_IDS[letter] for letter in "abc")
    for ids, token, text in (([a, b, c], None, "abc"), ([a, b, a], a, "aba")):
        start = opened(7, [a], delivered=ids[:delivered], stop=["bc"])
        start = msgspec.structs.replace(start, include_stop=True)
        rows = [(7, each) for each in ids[delivered:]]
        ends = [] if token is None else [Finished(7, "stop", token)]
        [(_, sent), *_] = Detokenizer(letters()).receive(
            "", message(rows, opened=[start], finished=ends), 0.0
        )
        assert isinstance(sent, Texts)
        before = "a" if delivered else ""  # "b" waits, since it may begin a stop text
        assert before + "".join(sent.texts + sent.tails) == text
        assert sent.finished == [Finished(7, "stop", "bc" if token is None else token)]


def test_a_stop_text_within_the_delivered_tokens_ends_the_request_at_once() -> None:
    a, b, c = (LETTERS_IDS[letter] for letter in "abc")
    start = [opened(1, [a], delivered=[b, c, a], stop=["bc"])]
    sends = Detokenizer(letters()).receive("", message([(1, a)], opened=start), 0.0)
    assert sends == [
        ("gateway", texts_message(1, [], [], [Finished(1, "stop", "bc")], [""], start)),
        ("scheduler", Matched([1], [0])),
    ]


@pytest.mark.parametrize(("peer", "left"), [("scheduler", 0), ("gateway", 0), ("executor", 1)])
def test_a_new_scheduler_or_gateway_makes_all_streams_void(peer: str, left: int) -> None:
    detokenizer = Detokenizer(letters())
    detokenizer.receive("", message([], opened=[opened(1, [0])]), 0.0)
    assert detokenizer.receive(b"", PeerUp(peer, 2), 0.0) == []
    assert (len(detokenizer.answers), detokenizer.resets) == (left, 1 - left)


# --- what it costs --------------------------------------------------------------------------------


def test_neither_torch_nor_transformers_is_imported_and_memory_stays_small(tmp_path: Path) -> None:
    BYTE_LEVEL.save(str(tmp_path / "tokenizer.json"))
    program = f"""
import re, sys
from pathlib import Path
from slipstream.actors.text import detokenizer
from slipstream.runtime.process.child import ProcessStart
told = {{"model": {str(tmp_path)!r}, "vocab_size": 300, "max_model_len": 2000, "eos_token_ids": []}}
detokenizer.build(ProcessStart(told))
heavy = [name for name in ("torch", "transformers", "numpy", "huggingface_hub") if name in sys.modules]
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(heavy, int(peak[1]) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy, _, megabytes = done.stdout.strip().rpartition(" ")
    assert heavy == "[]"
    assert int(megabytes) < 90
