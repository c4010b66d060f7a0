"""Tokens beside their text: where each begins in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripted import Script, Scripted
from slipstream.actors.http.tokens import Offsets, Tokens, TokenTable
from slipstream.actors.text.pieces import Pieces
from slipstream.actors.text.tokenizer_files import load_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from slipstream.service import BUNDLED_MODEL

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
    table = TokenTable(Tokens(tokenizer), 0).take(ids, [None, *({str(token): -1.0} for token in ids[1:])])
    assert table["tokens"][2:5] == ["bytes:\\xe4", "bytes:\\xb8", "bytes:\\x96"]
    assert table["text_offset"] == [0, 3, 4, 4, 4, 5, 9, 9]


def test_special_tokens_take_the_place_of_their_names_where_the_text_has_them() -> None:
    tokenizer = load_tokenizer(Path(BUNDLED_MODEL))
    special, cat = 0, tokenizer.encode("cat", add_special_tokens=False).ids
    ids = [special, *cat, special, *cat]
    expected = [len(tokenizer.decode(ids[:count], skip_special_tokens=False)) for count in range(len(ids))]
    table = TokenTable(Tokens(tokenizer), 0, named=True).take(ids, [None] * len(ids))
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
    table = TokenTable(Tokens(bundled), 0, written=text).take(ids, [None] * len(ids))
    assert table["tokens"] == ["q", " ", "<|end|>", " ", "x", "<|user|>", "y"]
    assert table["text_offset"] == [0, 1, 2, 9, 10, 11, 19]

    first = TokenTable(Tokens(bundled), 0, written="<|end|>q").take([4, 85], [None] * 2)
    assert first["text_offset"] == [0, 7]

    added = TokenTable(Tokens(sentencepiece()), 0, written="The<s> cat").take([0, 1, 0, 2], [None] * 4)
    assert added["text_offset"] == [0, 0, 3, 6]


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
