"""Tokens beside their text: where each begins in it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from scripted import Script, Scripted
from slipstream.actors.http.tokens import Offsets, TokenTable, TokenTexts
from slipstream.actors.text.vocabulary.pieces import Pieces
from slipstream.actors.text.vocabulary.tokenizer_files import load_tokenizer
from slipstream.protocol.messages import Delta, Usage
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from slipstream.serving.service import BUNDLED_MODEL

TEXTS = ["The 世 cat", "é😀 x", "a", "  two  spaces\n", "क्षि 👩‍👩‍👧"]


def sentencepiece() -> Tokenizer:
    """A vocabulary that writes spaces into its words and falls back to bytes."""
    words = ["<s>", "\u2581The", "\u2581cat", "\u2581", "s", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(
        models.BPE({word: number for number, word in enumerate(words)}, [], byte_fallback=True)
    )
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    steps = [
        decoders.Replace("\u2581", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


def offsets(tokenizer: Tokenizer, ids: list[int], at: int = 0) -> list[int]:
    found = Offsets(Pieces(tokenizer), at)
    return [found.add(token) for token in ids]


@pytest.mark.parametrize("text", TEXTS)
def test_each_token_begins_where_the_text_of_those_before_it_ends(text: str) -> None:
    tokenizer = load_tokenizer(Path(BUNDLED_MODEL))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    expected = [len(tokenizer.decode(ids[:number]).rstrip("\ufffd")) for number in range(len(ids))]
    assert offsets(tokenizer, ids) == expected


def test_bytes_and_special_tokens_do_not_count_by_their_names() -> None:
    tokenizer = load_tokenizer(Path(BUNDLED_MODEL))
    ids = [*tokenizer.encode("The 世 cat", add_special_tokens=False).ids, 4, 4]
    table = TokenTable(TokenTexts(tokenizer), 0).take(ids, [None, *({str(token): -1.0} for token in ids[1:])])
    assert table["tokens"][2:5] == ["bytes:\\xe4", "bytes:\\xb8", "bytes:\\x96"]
    assert table["text_offset"] == [0, 3, 4, 4, 4, 5, 9, 9]


def test_special_tokens_take_the_place_of_their_names_where_the_text_has_them() -> None:
    tokenizer = load_tokenizer(Path(BUNDLED_MODEL))
    special, cat = 0, tokenizer.encode("cat", add_special_tokens=False).ids
    ids = [special, *cat, special, *cat]
    expected = [len(tokenizer.decode(ids[:count], skip_special_tokens=False)) for count in range(len(ids))]
    table = TokenTable(TokenTexts(tokenizer), 0, named=True).take(ids, [None] * len(ids))
    assert table["text_offset"] == expected
    assert expected[1] > 0


def test_the_space_of_a_first_word_and_the_begin_token_take_no_place() -> None:
    tokenizer = sentencepiece()
    begin, the, cat, face = 0, 1, 2, [5 + byte for byte in "世".encode()]
    ids = [begin, the, cat, *face, cat, 4]
    assert tokenizer.decode(ids) == "The cat世 cats"
    assert offsets(tokenizer, ids) == [0, 0, 3, 7, 7, 7, 8, 12]
    assert offsets(tokenizer, [cat, 4], at=5) == [5, 9], "behind a prompt the space stays"


def test_special_tokens_of_a_prompt_take_the_place_that_they_have_in_its_text() -> None:
    """Those that its writer named stand in it; those that the tokenizer adds do not."""
    bundled = load_tokenizer(Path(BUNDLED_MODEL))
    text = "q <|end|> x<|user|>y"
    ids = bundled.encode(text, add_special_tokens=False).ids
    table = TokenTable(TokenTexts(bundled), 0, written=text).take(ids, [None] * len(ids))
    assert table["tokens"] == ["q", " ", "<|end|>", " ", "x", "<|user|>", "y"]
    assert table["text_offset"] == [0, 1, 2, 9, 10, 11, 19]

    first = TokenTable(TokenTexts(bundled), 0, written="<|end|>q").take([4, 85], [None] * 2)
    assert first["text_offset"] == [0, 7]

    added = TokenTable(TokenTexts(sentencepiece()), 0, written="The<s> cat").take([0, 1, 0, 2], [None] * 4)
    assert added["text_offset"] == [0, 0, 3, 6]


def test_an_answer_that_ends_a_character_of_its_prompt_begins_with_it() -> None:
    """Four bytes, of which the prompt has the first one, two or three."""
    tokenizer = load_tokenizer(Path(BUNDLED_MODEL))
    tokens = TokenTexts(tokenizer)
    ids = tokenizer.encode("The 😀 cat", add_special_tokens=False).ids
    whole = TokenTable(tokens, 0).take(ids, [None] * len(ids))["text_offset"]
    assert whole == [0, 3, 4, 4, 4, 4, 5]
    for cut in (3, 4, 5):
        table = TokenTable(tokens, 0, len("The "), pending=tokens.unfinished(ids[:cut]))
        assert table.take(ids[cut:], [None] * len(ids[cut:]))["text_offset"] == whole[cut:]


class Known(Script):
    """Answers with these tokens, one by one, and says how likely they were."""

    def __init__(self, ids: list[int], texts: list[str]) -> None:
        super().__init__()
        self.known = list(zip(ids, texts, strict=True))

    async def batches(self, **asked: Any) -> AsyncGenerator[list[Delta], None]:
        for number, (token, text) in enumerate(self.known, 1):
            end: dict[str, Any] = (
                {"finish_reason": "length", "usage": Usage(prompt_tokens=3, completion_tokens=4)}
                if number == len(self.known)
                else {}
            )
            yield [Delta(id="1", text=text, token_ids=[token], logprobs=[{str(token): -1.0}], **end)]


@pytest.mark.parametrize("stream", [False, True])
def test_the_offsets_of_an_answer_know_where_its_prompt_ends(stream: bool) -> None:
    tokenizer = load_tokenizer(Path(BUNDLED_MODEL))
    ids = tokenizer.encode("The 😀 cat", add_special_tokens=False).ids
    frontend = Scripted(Known(ids[3:], ["", "", "😀", " cat"]))
    body = {"prompt": ids[:3], "logprobs": 0, "stream": stream}
    reply = frontend.post("/v1/completions", body)
    choices = [each["choices"][0] for each in (reply.events[:-1] if stream else [reply.json])]
    assert "".join(choice["text"] for choice in choices) == "😀 cat"
    assert [at for choice in choices for at in choice["logprobs"]["text_offset"]] == [0, 0, 0, 1]


@pytest.mark.parametrize("character", ["世", "é", "😀"])
def test_an_echo_of_ids_has_a_character_that_is_cut_once(character: str) -> None:
    tokenizer = load_tokenizer(Path(BUNDLED_MODEL))
    whole = tokenizer.encode(f"The {character}", add_special_tokens=False).ids
    for cut in range(1, len(character.encode())):
        body = {"prompt": whole[:-cut], "echo": True}
        frontend = Scripted(Script(character, " cat"))
        assert frontend.post("/v1/completions", body).json["choices"][0]["text"] == f"The {character} cat"
        streamed = frontend.post("/v1/completions", body | {"stream": True}).events[:-1]
        assert "".join(chunk["choices"][0]["text"] for chunk in streamed) == f"The {character} cat"
        only = frontend.post("/v1/completions", body | {"max_tokens": 0}).json["choices"][0]["text"]
        assert only == tokenizer.decode(whole[:-cut])
