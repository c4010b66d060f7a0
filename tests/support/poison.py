"""Requests that kill an actor whenever it has them in hand, for the simulated world."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from simulation import World
from slipstream.actors.gateway.gateway import Gateway
from slipstream.actors.scheduler.scheduler import Scheduler
from slipstream.actors.text.detokenizer import Detokenizer
from slipstream.protocol.events import ClientMessage
from slipstream.protocol.internal import Enqueue, Plan, Sampled, Submit, Texts, Tokens
from slipstream.protocol.messages import Generate

ACTORS = ["gateway", "tokenizer", "scheduler", "executor", "detokenizer"]


@dataclass
class Poison:
    """The request with this seed kills ``actor``: when it comes, or once its answer has ``after`` tokens."""

    world: World
    actor: str
    seed: int
    after: int = 0
    deaths: int = 0

    def kills(self, name: str, message: Any) -> bool:
        if name != self.actor or not self.is_in(message):
            return False
        self.deaths += 1
        return True

    def is_in(self, message: Any) -> bool:
        if isinstance(message, ClientMessage):
            asked = message.message
            return not self.after and isinstance(asked, Generate) and asked.params.seed == self.seed
        if isinstance(message, Submit | Enqueue):
            return not self.after and message.params.seed == self.seed
        if isinstance(message, Plan):
            return any(join.seed == self.seed for join in message.joins)
        if isinstance(message, Sampled):
            return self.after > 0 and self.answer_has() >= self.after
        if isinstance(message, Tokens):
            return self.is_in_text(message) and self.answer_has() >= self.after
        if isinstance(message, Texts):
            is_there = self.after > 0 and self.number() in array("q", message.requests).tolist()
            return is_there and self.answer_has() >= self.after
        return False

    def is_in_text(self, tokens: Tokens) -> bool:
        """Whether the detokenizer makes text of it: of a stream that was never opened it makes none."""
        detokenizer, number = self.world.actors["detokenizer"], self.number()
        assert isinstance(detokenizer, Detokenizer)
        opened = any(opened.request == number for opened in tokens.opened)
        return opened or (number in detokenizer.answers and number in array("q", tokens.requests).tolist())

    def number(self) -> int | None:
        """The number that the request has now."""
        gateway = self.world.actors.get("gateway")
        if not isinstance(gateway, Gateway):
            return None
        answers = gateway.ledger.answers.values()
        return next((answer.number for answer in answers if answer.params.seed == self.seed), None)

    def answer_has(self) -> int:
        """How many tokens the scheduler has of its answer; -1 if it does not run."""
        scheduler = self.world.actors.get("scheduler")
        if not isinstance(scheduler, Scheduler):
            return -1
        sequence = scheduler.sequences.get(self.number() or -1)
        if sequence is None or sequence.slot < 0:
            return -1
        return len(scheduler.holdings.known(sequence)) - sequence.prompt_len


@dataclass
class Poisons:
    """Several of them in one world."""

    poisons: list[Poison] = field(default_factory=list)

    def kills(self, name: str, message: Any) -> bool:
        return any(poison.kills(name, message) for poison in self.poisons)

    def deaths(self) -> Counter[str]:
        """How many each actor has died of them."""
        return Counter({poison.actor: poison.deaths for poison in self.poisons})
