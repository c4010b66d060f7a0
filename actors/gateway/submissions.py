"""Decides which open requests are sent to the tokenizer, and which wait: for an actor that is down, or for the end of a
probation."""

from __future__ import annotations

from collections.abc import Callable

from ...protocol.internal import Cancel, Internal
from .ledger import Answer, Ledger, Request
from .quarantine import RequestQuarantine, Suspicion


class Submissions:
    """Sends the requests of a ledger to the tokenizer, again where that is needed, and stops them."""

    def __init__(self, ledger: Ledger, send: Callable[[str, Internal], None]) -> None:
        self.ledger = ledger
        self.send = send
        self.quarantine = RequestQuarantine()
        self.faulty: dict[str, Suspicion] = {}
        """Actors that have ended by their own fault and are not back yet, with what they had in hand. Nothing is
        submitted meanwhile, since all of it is submitted to the next incarnation anyway."""

    def submit(self, request: Request) -> None:
        """Start the request, or start it again from what was delivered, unless it has to wait.

        Its first answer is started alone, and the others once the prompt is tokenized. So the prompt is tokenized only
        once, and they find its blocks in the prefix cache.
        """
        for answer in request.answers:
            answer.opened = False
        request.sent = not self.faulty and self.quarantine.admits(request)
        if not request.sent:
            return
        request.started_alone = (request.unfinished or request.answers)[0]
        self.send("tokenizer", request.started_alone.submission())

    def start_others(self, first: Answer, prompt: bytes) -> None:
        """The prompt of the answer that was started alone is tokenized: start the other answers with its token ids."""
        request = first.request
        request.started_alone = None
        request.prompt = prompt  # rendered only once, as a template may print the date
        others = [other for other in request.unfinished if other is not first]
        for other in others:
            self.send("tokenizer", other.submission())

    def cancel(self, requests: list[Request]) -> None:
        """End these requests before their answers are complete."""
        for request in requests:
            request.error = request.error or "abort"
            self.ledger.forget(request)
        if requests:
            numbers = [answer.number for request in requests for answer in request.unfinished]
            self.send("tokenizer", Cancel(numbers))
            self.ledger.cancelled.update(answer.number for request in requests for answer in request.started)

    def pause(self, requests: list[Request]) -> None:
        """Stop these requests; they are submitted again later."""
        if requests:
            numbers = [answer.number for request in requests for answer in request.unfinished]
            self.send("tokenizer", Cancel(numbers))
        for request in requests:
            request.attempt += 1
            request.sent = False
            for answer in request.answers:
                answer.opened = False

    # --- actors that end by their own fault -------------------------------------------------------

    def on_fault(self, actor: str) -> None:
        """The actor has ended by its own fault: the requests that it had in hand become suspects once it is back."""
        self.faulty.setdefault(actor, Suspicion(actor, self.ledger.requests))

    def resolve_fault(self, actor: str) -> Request | None:
        """The actor is back: put the requests that it had in hand into quarantine, to run alone. Returns the request
        that has killed it again, if there is one."""
        suspicion = self.faulty.pop(actor, None)
        if suspicion is None:
            return None
        suspicion.forget_closed(self.ledger.requests)
        culprit = self.quarantine.on_death(suspicion)
        self.pause(list(self.quarantine.suspects.values()))
        return culprit

    def advance_probation(self) -> None:
        """Submit the next suspect if it can begin; after the last one, submit all requests that wait."""
        quarantine, requests = self.quarantine, self.ledger.requests
        if not quarantine.active:
            return
        passed = quarantine.take_passed(requests)
        if passed is not None and quarantine.whole_requests:
            self.pause([passed])
        following = quarantine.begin_probation(requests)
        if following is not None:
            self.submit(following)
        elif not quarantine.active:
            for request in requests.values():
                if not request.sent:
                    self.submit(request)
