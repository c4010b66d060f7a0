"""The errors that a user can meet, and the codes that stand for them on the wire.

Every message names the value, the limit and what to do.
"""

from __future__ import annotations

import reprlib

BRIEF = reprlib.Repr()
BRIEF.maxstring = BRIEF.maxother = 80


def brief(value: object) -> str:
    """A value of any size and depth in at most 80 characters."""
    return BRIEF.repr(value)[:80]


class SlipstreamError(Exception):
    """Base of all errors; as it is, something in the service that is not the request's fault."""

    code = "internal"
    """What travels in an ``error`` message."""


class InvalidRequest(SlipstreamError):
    """The request can never succeed as it stands: a wrong type, value or length."""

    code = "invalid_request"


class Overloaded(SlipstreamError):
    """The service has no room for the request now; try again after ``retry_after_s`` seconds."""

    code = "overloaded"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(SlipstreamError):
    """The request's ``deadline_s`` passed before it was finished."""

    code = "deadline_exceeded"


class Quarantined(SlipstreamError):
    """The request was being computed when the executor died, twice: it is not tried a third time."""

    code = "quarantined"


class ModelNotSupported(SlipstreamError):
    """The model cannot be served correctly; the message says which property of it is the reason."""

    code = "model_not_supported"


class ServiceUnavailable(SlipstreamError):
    """No service answers at the endpoint, or it is stopping."""

    code = "unavailable"


class ProtocolError(SlipstreamError):
    """A frame that is no message of this protocol, or one that is not allowed at this point."""

    code = "protocol"


BY_CODE: dict[str, type[SlipstreamError]] = {
    kind.code: kind
    for kind in (
        SlipstreamError,
        InvalidRequest,
        Overloaded,
        DeadlineExceeded,
        Quarantined,
        ModelNotSupported,
        ServiceUnavailable,
        ProtocolError,
    )
}


def from_wire(code: str, message: str, retry_after_s: float | None = None) -> SlipstreamError:
    """The exception that an ``error`` message stands for; an unknown code gives the base class."""
    kind = BY_CODE.get(code, SlipstreamError)
    if kind is Overloaded:
        return Overloaded(message, 1.0 if retry_after_s is None else retry_after_s)
    return kind(message)
