"""Accepts or refuses a request at the router; an accepted one becomes a stream that any service can answer and any
other resume."""

from __future__ import annotations

import random

import msgspec

from ...protocol import limits
from ...protocol.errors import DEFAULT_RETRY_AFTER_S
from ...protocol.limits import Limits
from ...protocol.messages import Error, Generate
from ..public.connections import Connection
from .open_requests import OpenRequests, PassedOn, Routed
from .prompt_blocks import hash_blocks

MAX_OPEN_BYTES = 1 << 28
"""Most bytes of all prompts that are open at the router, each of which it holds until its answer has ended: sixteen of
the largest frames."""


class Admission:
    """Numbers requests and draws the seeds of those that have none."""

    def __init__(self, open: OpenRequests, rng: random.Random) -> None:
        self.open = open
        self.rng = rng
        self.next_number = 0

    def refusal(
        self,
        connection: Connection,
        message: Generate,
        size: int,
        answers: int,
        bounds: Limits,
        *,
        draining: bool,
    ) -> Error | None:
        """Why a request is not even tried; whether its values are valid, the services say."""
        id, open = message.id, self.open
        if not 1 <= len(id) <= limits.MAX_REQUEST_ID_CHARS or connection.uses(id):
            # No id in the error: it would end the request that is open under it.
            most = limits.MAX_REQUEST_ID_CHARS
            text = f"id={id!r:.80} has to have 1 to {most} characters and to be of no open request"
            return Error(code="invalid_request", message=text, param="id")
        if draining:
            return Error(code="unavailable", message="the router is stopping and accepts nothing new", id=id)
        most = bounds.max_queued_requests
        if open.answers + answers > most or open.bytes + size > MAX_OPEN_BYTES:
            text = (
                f"{open.answers} requests with {open.bytes} bytes are open; the limits are {most} requests and"
                f" {MAX_OPEN_BYTES} bytes: try again later"
            )
            return Error(code="overloaded", message=text, id=id, retry_after_s=DEFAULT_RETRY_AFTER_S)
        return None

    def take(
        self, connection: Connection, message: Generate, size: int, prefix: bytes, answers: int, now: float
    ) -> Routed:
        """The request as the services are asked it. ``size`` and ``prefix`` are of ``size_and_bytes``."""
        params = message.params
        if params.seed is None:  # drawn here, so that every service continues the answer by the same
            params = msgspec.structs.replace(params, seed=self.rng.getrandbits(63))
        asked = msgspec.structs.replace(
            message,
            id=f"r{self.next_number}",
            params=params,
            received=[],
            received_of_others=[],
            return_prompt_ids=message.return_prompt_ids or message.messages is not None,
        )
        stream = PassedOn(asked, now - message.age_s)
        for index, received in enumerate([message.received, *message.received_of_others]):
            if received:
                stream.received[index] += received
        hashes = hash_blocks(prefix, params.cache_salt, params.adapter)
        request = Routed(
            self.next_number, connection, message.id, stream, answers, size, hashes, message.return_prompt_ids
        )
        stream.waiter = request
        self.next_number += 1
        return request
