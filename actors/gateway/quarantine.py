"""Runs requests that may have killed an actor alone, and gives up one that kills it again.

When an actor behind the gateway ends by its own fault, each request that it had in hand is a suspect: one of them may
be the cause, and would kill the next incarnation too. So the suspects are submitted one at a time, the newest first,
since the others have done no harm for longer. All other requests wait meanwhile. A suspect that is in hand alone when
the actor dies again is answered with an error, and all the others are cleared.

A tokenizer has a prompt in hand until it answers, and a suspect has passed its probation when it has answered.
Scheduler and detokenizer have a request in hand until its end; there a suspect has passed when it is some tokens past
the point of the death. It is then stopped until all suspects have passed, so that the next one runs alone.

The scheduler has a quarantine of its own for the executor's suspects, since it knows what was in which step.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from .ledger import Request

PROBATION_TOKENS = 16
"""Tokens beyond the point of the death after which a suspect is cleared: more than the gateway can be behind the
scheduler."""

PROBATION_GROWTH = 4
"""Factor by which the tokens grow that a suspect has to get further before it is cleared, each time that it is
suspected again: one that kills an actor late is caught after a few deaths."""

MAX_QUARANTINED = 1024
"""Most quarantined requests that are remembered, so that they are refused when they come again. There are few, since
each has ended an actor twice; but every table here has a bound."""


class Suspicion:
    """The requests that an actor had in hand when it ended."""

    def __init__(self, actor: str, requests: Mapping[int, Request]) -> None:
        """``requests`` are all that are open."""
        self.whole_requests = actor != "tokenizer"
        """Whether whole requests are suspect, and not only their prompts."""
        self.requests = in_hand(requests.values(), whole_requests=self.whole_requests)

    def forget_closed(self, requests: Mapping[int, Request]) -> None:
        self.requests = [request for request in self.requests if request.number in requests]


class RequestQuarantine:
    """The suspects, which of them is on probation, and the requests that are refused from now on."""

    def __init__(self) -> None:
        self.suspects: dict[int, Request] = {}
        """The suspects that wait for their probation, by number, in order."""
        self.on_probation: Request | None = None
        """The suspect that runs, alone."""
        self.whole_requests = False
        """Whether whole requests are suspect: then nothing else may be under way beside the one on probation. Otherwise
        only prompts are."""
        self.quarantined: OrderedDict[bytes, str] = OrderedDict()
        """Digests of requests that are refused, from any client, and why."""

    @property
    def active(self) -> bool:
        return self.on_probation is not None or bool(self.suspects)

    def admits(self, request: Request) -> bool:
        """Whether the request may be submitted now. If only prompts are suspect, requests whose prompt is tokenized
        may."""
        if not self.active or request is self.on_probation:
            return True
        return not self.whole_requests and request.tokenized and request.number not in self.suspects

    def on_death(self, suspicion: Suspicion) -> Request | None:
        """An actor ended by its own fault with these requests in hand. Returns the request that was on probation and
        the only one in hand, which is to be quarantined; otherwise makes all of them suspects and returns None.
        """
        if self.on_probation is not None and suspicion.requests == [self.on_probation]:
            culprit, self.on_probation = self.on_probation, None
            self.suspects.clear()
            return culprit
        if suspicion.requests:
            self.whole_requests = suspicion.whole_requests or (self.active and self.whole_requests)
            for request in suspicion.requests:
                request.suspected += 1
                further = PROBATION_TOKENS * PROBATION_GROWTH ** (request.suspected - 1)
                request.passes_at = request.delivered_tokens + further
            everyone = self.suspects | {request.number: request for request in suspicion.requests}
            self.suspects = dict(sorted(everyone.items(), reverse=True))
            self.on_probation = None
        return None

    def remember(self, request: Request, why: str) -> None:
        """Refuse the request from now on."""
        self.quarantined[request.digest] = why
        if len(self.quarantined) > MAX_QUARANTINED:
            self.quarantined.popitem(last=False)

    def take_passed(self, requests: Mapping[int, Request]) -> Request | None:
        """The suspect that has just passed its probation, if there is one. Probation also ends with the request."""
        suspect = self.on_probation
        if suspect is None:
            return None
        is_open = suspect.number in requests
        passed = (
            suspect.delivered_tokens >= suspect.passes_at
            if self.whole_requests
            else suspect.started_alone is None
        )
        if passed or not is_open:
            self.on_probation = None
        return suspect if passed and is_open else None

    def begin_probation(self, requests: Mapping[int, Request]) -> Request | None:
        """Put the next suspect on probation, and return it; None if there is none, or another of the open ``requests``
        is still in hand, which could be the cause of a death.
        """
        self.suspects = {number: one for number, one in self.suspects.items() if number in requests}
        if self.on_probation is not None or in_hand(requests.values(), whole_requests=self.whole_requests):
            return None
        if not self.suspects:
            return None
        self.on_probation = self.suspects.pop(next(iter(self.suspects)))
        return self.on_probation


def in_hand(requests: Iterable[Request], *, whole_requests: bool) -> list[Request]:
    """The open requests that an actor has in hand: of a tokenizer, those that it has not answered."""
    return [
        request
        for request in requests
        if request.sent and (whole_requests or request.started_alone is not None)
    ]
