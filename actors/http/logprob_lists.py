"""Logprobs of answers that are told whole: kept as the JSON that they become, within bounds.

There can be twenty of them for each token of each answer, and for each of a prompt, so that one request of 16 MiB asks
for more than any machine has memory for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ...protocol.errors import InvalidRequest, Overloaded
from ...protocol.messages import Delta

MAX_OF_ONE_ANSWER = 2_000_000
"""Logprobs of one answer, some 25 bytes each, and 70 in a chat."""

MAX_OF_ALL_ANSWERS = 2 * MAX_OF_ONE_ANSWER
"""Most bytes of all answers that are being put together."""

MANY = 1_000
"""From this many logprobs on, which take a few milliseconds, they are written in a thread, so that no stream waits."""

encode = msgspec.json.encode


class LogprobBudget:
    """Counts the logprobs that all requests hold together."""

    def __init__(self, most_of_one: int = MAX_OF_ONE_ANSWER, most_of_all: int = MAX_OF_ALL_ANSWERS) -> None:
        self.most_of_one = most_of_one
        self.most_of_all = most_of_all
        self.taken = 0

    def allowance(self) -> Allowance:
        return Allowance(self)


class Allowance:
    """The part of the budget that one request holds, until its answer is complete."""

    def __init__(self, budget: LogprobBudget) -> None:
        self.budget = budget
        self.taken = 0

    def __enter__(self) -> Allowance:
        return self

    def __exit__(self, *exception: object) -> None:
        self.budget.taken -= self.taken

    def take(self, count: int) -> None:
        """Keep ``count`` more; ``InvalidRequest`` beyond what one answer may have, ``Overloaded`` beyond the rest."""
        self.taken += count
        self.budget.taken += count
        if self.taken > self.budget.most_of_one:
            raise InvalidRequest(
                f"the answer has more than {self.budget.most_of_one} logprobs, the most of one that is told whole: ask"
                " for fewer prompts, tokens or logprobs at once, or for a stream",
                param="logprobs",
            )
        if self.budget.taken > self.budget.most_of_all:
            raise Overloaded(
                f"answers with {self.budget.most_of_all} logprobs are being put together, the most at once; send it"
                " again later, ask for fewer logprobs, or for a stream"
            )


def count(delta: Delta) -> int:
    """Logprobs of the tokens that a delta brings."""
    return sum(map(len, delta.logprobs))


def count_prompt(delta: Delta) -> int:
    """The bytes of the prompt."""
    return sum(len(row) for row in delta.prompt_logprobs or () if row is not None)


class JsonLists:
    """Lists by their names, each put together from parts."""

    def __init__(self) -> None:
        self.parts: dict[str, list[bytes]] = {}

    def add(self, columns: Mapping[str, Sequence[Any]]) -> None:
        for name, values in columns.items():
            known = self.parts.setdefault(name, [])
            if values:
                known.append(encode(values)[1:-1])

    def lists(self, before: JsonLists | None = None) -> dict[str, msgspec.Raw]:
        """The lists, with those of ``before`` in front."""
        earlier = {} if before is None else before.parts
        names = dict.fromkeys((*earlier, *self.parts))
        return {
            name: msgspec.Raw(b"[%b]" % b",".join((*earlier.get(name, ()), *self.parts.get(name, ()))))
            for name in names
        }
