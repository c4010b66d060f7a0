"""Conversations with tools that no training document has, and what an answer to each has to be."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import lexicon as lex
import tools
from tools import Exchange, Turn, Want

KNOWN = "calls of known tools"
HELD_OUT = "calls of real tools under names never trained on"
INVENTED = "calls of invented tools"
SEVERAL = "two or three calls at once"
NONE = "no call where none is wanted"
MISSING = "no call where the tool that is wanted is missing"
ANSWERS = "answers after a result"

Asked = list[tuple[str, Any]]
"""Prompts and what is wanted: a list of calls, or a text."""

Cases = dict[str, tuple[int, Asked]]
"""By kind: tokens that an answer may have, and the cases."""


def made_cases(rng: random.Random, turn: Turn, count: int) -> Cases:
    """``count`` conversations of each kind."""
    several = [tools.exchange(rng, turn, "two") for _ in range(count)]
    kinds: dict[str, tuple[int, list[Exchange]]] = {
        KNOWN: (200, [calling(rng, tools.known(rng)) for _ in range(count)]),
        HELD_OUT: (200, [held_out(rng, i) for i in range(min(count, 2 * len(tools.HELD_OUT)))]),
        INVENTED: (250, [calling(rng, tools.invented(rng)) for _ in range(count)]),
        SEVERAL: (500, several),
        NONE: (80, [tools.exchange(rng, turn, "none") for _ in range(count)]),
        MISSING: (80, [tools.exchange(rng, turn, "missing") for _ in range(count)]),
    }
    cases: Cases = {}
    for kind, (length, exchanges) in kinds.items():
        cases[kind] = length, [wanted_of(*tools.prompt_of(exchange)) for exchange in exchanges]
    answered = [calling(rng, tools.any_want(rng), ends=False) for _ in range(count)]
    cases[ANSWERS] = 150, [tools.prompt_of(exchange, 2) for exchange in answered]
    return cases


def calling(rng: random.Random, want: Want, *, ends: bool = True) -> Exchange:
    offered = tools.offer_with(rng, [want.tool], want.topics)
    return Exchange(tools.asked(rng, want.question, [want], ends=ends), offered)


def held_out(rng: random.Random, number: int) -> Exchange:
    tool, question, arguments = tools.HELD_OUT[number % len(tools.HELD_OUT)]
    others = [other for other in tools.HELD_OUT if not tools.clash(other[0].topic, tool.topic)]
    want = Want(tool, question, arguments, "", "")
    offered = [tool]
    for other, _, _ in rng.sample(others, rng.randint(0, 3)):
        if other.name not in [one.name for one in offered]:
            offered.append(other)
    rng.shuffle(offered)
    return Exchange(tools.asked(rng, question, [want], ends=True), offered)


def wanted_of(prompt: str, answer: str) -> tuple[str, Any]:
    return prompt, calls_of(answer) or answer


CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>")


def calls_of(answer: str) -> list[Any]:
    """The calls of an answer that is nothing else."""
    if CALL.sub("", answer).strip():
        return []
    try:
        return [json.loads(found) for found in CALL.findall(answer)]
    except ValueError:
        return []


def rated(kind: str, asked: Asked, answers: list[str]) -> tuple[int, int]:
    """How many answers are right, of how many; one of the wrong ones is printed, to be looked at."""
    wrong = [
        (prompt, wanted, answer)
        for (prompt, wanted), answer in zip(asked, answers, strict=True)
        if not is_right(kind, wanted, answer)
    ]
    for prompt, _, answer in wrong[:3]:
        print(f"wrong, {kind}: {prompt[-500:]}{answer}", flush=True)
    return len(asked) - len(wrong), len(asked)


def is_right(kind: str, wanted: Any, answer: str) -> bool:
    if kind == NONE:
        return bool(answer) and "<tool_call>" not in answer
    if kind == MISSING:
        return answer in lex.UNKNOWN_REPLIES
    return calls_of(answer) == wanted if isinstance(wanted, list) else answer == wanted
