"""The bounds that docs/http.md states are those of the code."""

from __future__ import annotations

from pathlib import Path

import pytest
from slipstream.actors.http.logprob_lists import MAX_OF_ALL_ANSWERS, MAX_OF_ONE_ANSWER
from slipstream.actors.http.transport.connection import (
    HEADERS_S,
    MAX_HEADER_BYTES,
    RESERVED_DESCRIPTORS,
    UNREAD_S,
)
from slipstream.actors.http.transport.uploads import (
    BODY_S,
    MAX_BODY_BYTES,
    MAX_BYTES_ON_THEIR_WAY,
    SMALL_BODY_BYTES,
)
from slipstream.actors.text.prompts.bounded import MAX_LIST_ITEMS, MAX_NUMBER_BITS, MAX_TEXT_CHARACTERS
from slipstream.actors.text.prompts.iterations import MIN_ITERATIONS, Iterations
from slipstream.actors.text.prompts.prompts import ENCODING_BUDGET_S
from slipstream.protocol.limits import MAX_ALL_ITEMS, MAX_CONTAINERS

from slipstream.serving.service import ACTOR_HANGS_S

DOCUMENT = " ".join((Path(__file__).parents[2] / "docs" / "http.md").read_text().split())
MIB, KIB = 1 << 20, 1 << 10
NUMBERS = {10.0: "ten"}
"""Those that the document writes as words."""


@pytest.mark.parametrize(
    ("sentence", "figures"),
    [
        ("go round its loops and macros # times, plus twice the square", [MIN_ITERATIONS]),
        (
            "a text of more than # characters, a list of more than # items, or a number of more than # bits",
            [MAX_TEXT_CHARACTERS, MAX_LIST_ITEMS, MAX_NUMBER_BITS],
        ),
        ("a prompt that has taken # seconds is refused", [ENCODING_BUDGET_S]),
        (
            "one that takes # seconds holds up the tokenizer, which is ended",
            [ACTOR_HANGS_S],
        ),
        (
            "at most # MiB, # arrays and objects and # values; within # s",
            [MAX_BODY_BYTES // MIB, MAX_CONTAINERS, MAX_ALL_ITEMS, BODY_S],
        ),
        (
            "all bodies over # KiB together | # MiB until",
            [SMALL_BODY_BYTES // KIB, MAX_BYTES_ON_THEIR_WAY // MIB],
        ),
        (
            "| #, those of prompts too; of all such answers at once #;",
            [MAX_OF_ONE_ANSWER, MAX_OF_ALL_ANSWERS],
        ),
        ("| path and headers | # KiB, within # s", [MAX_HEADER_BYTES // KIB, HEADERS_S]),
        ("64 KiB of its answer unread for # s", [UNREAD_S]),
        ("as many as the process may have descriptors, less #.", [RESERVED_DESCRIPTORS]),
    ],
)
def test_a_bound_is_the_one_that_holds(sentence: str, figures: list[float]) -> None:
    words = [
        NUMBERS.get(figure, f"{figure:,g}" if figure < 1000 else f"{int(figure):,}") for figure in figures
    ]
    for word in words:
        sentence = sentence.replace("#", word, 1)
    assert sentence in DOCUMENT


def test_twice_the_square_of_the_number_of_messages_is_what_more_may_go_round() -> None:
    assert Iterations(30).left == MIN_ITERATIONS + 2 * 30**2
