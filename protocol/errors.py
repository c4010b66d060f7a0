"""The errors that a user can meet, and the codes that stand for them on the wire.

Every message names the value, the limit and what to do.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable

BRIEF = reprlib.Repr()
BRIEF.maxstring = BRIEF.maxother = 80


def brief(value: object) -> str:
    """A value of any size and depth in at most 80 characters."""
    return BRIEF.repr(value)[:80]


DEFAULT_RETRY_AFTER_S = 1.0
"""How long a client is to wait when nothing better is known: long enough to take load off the service."""


class SlipstreamError(Exception):
    """Base of all errors. An error of exactly this class is a fault of the service, not of the request."""

    code = "internal"
    """For programs: one of the codes of ``BY_CODE``, as it travels in an ``error`` message."""

    hint = ""
    """What to try, for the operator of a service that cannot start."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        """``param`` is the field that is wrong, ``code`` a more exact code than that of the class."""
        super().__init__(message)
        self.param = param
        """Path of the wrong field, such as ``prompt`` or ``messages[0].content``; sampling parameters by their bare
        name, such as ``top_p``. None if no single field is wrong."""
        if code is not None:
            self.code = code


class InvalidRequest(SlipstreamError):
    """The request can never succeed as it stands: a wrong type, value or length."""

    code = "invalid_request"


class Overloaded(SlipstreamError):
    """The service has no room for the request now; try again after ``retry_after_s`` seconds."""

    code = "overloaded"

    def __init__(self, message: str, retry_after_s: float = DEFAULT_RETRY_AFTER_S) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(SlipstreamError):
    """The request's ``deadline_s`` passed before it was finished."""

    code = "deadline_exceeded"


class Quarantined(SlipstreamError):
    """An actor had the request in hand when it died, twice: it is not tried a third time."""

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


EXACT_CODES: dict[str, tuple[type[SlipstreamError], str]] = {
    "context_length_exceeded": (
        InvalidRequest,
        "The prompt, with what is still to be generated, is longer than the model or its cache allows,"
        " or has more bytes than `max_prompt_bytes`.",
    ),
    "model_not_found": (InvalidRequest, "The service has no model of this name."),
}
"""Codes that programs act on and that need no class of their own: the class each belongs to, and its meaning."""


def context_length_exceeded(
    param: str, prompt_tokens: int, received_tokens: int, max_model_len: int
) -> InvalidRequest:
    """The prompt, given as ``param``, leaves no room for an answer."""
    resumed = f" and {received_tokens} tokens of the answer were received" if received_tokens else ""
    return InvalidRequest(
        f"the prompt has {prompt_tokens} tokens{resumed}; this model's maximum context length is"
        f" {max_model_len} tokens (max_model_len): with its answer it has at most {max_model_len}, one of them new;"
        " shorten the prompt",
        param=param,
        code="context_length_exceeded",
    )


def not_loaded(field: str, name: str, loaded: Iterable[str]) -> str:
    """The words that refuse a ``field`` with the name of an adapter that there is not, or no more."""
    those = ", ".join(sorted(loaded))
    return f"{field}={brief(name)} is not loaded; {f'those that are: {those}' if those else 'none is'}"


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
} | {code: kind for code, (kind, _) in EXACT_CODES.items()}


def from_wire(
    code: str, message: str, retry_after_s: float | None = None, param: str | None = None
) -> SlipstreamError:
    """The exception that an ``error`` message stands for; an unknown code gives the base class with that code."""
    kind = BY_CODE.get(code, SlipstreamError)
    if kind is Overloaded:
        return Overloaded(message, DEFAULT_RETRY_AFTER_S if retry_after_s is None else retry_after_s)
    return kind(message, param=param, code=code)
