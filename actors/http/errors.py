"""Every error in OpenAI's form, ``{"error": {"message", "type", "param", "code"}}``, and a status.

Below ``/v1/messages`` it is in Anthropic's form, ``{"type": "error", "error": {"type", "message"}}``, wherever the
error is found.
"""

from __future__ import annotations

import traceback
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ...protocol.errors import (
    DEFAULT_RETRY_AFTER_S,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    ServiceUnavailable,
    SlipstreamError,
)
from ...runtime.log import log_failure

INVALID = "invalid_request_error"
SERVER = "server_error"

MESSAGES = "/v1/messages"

TYPES_OF_MESSAGES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""The types of errors in Anthropic's form, by status."""

DETAILS_OF_MESSAGES = {"thread": {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}}
"""What Anthropic's client looks for in a refusal of a field: that it can ask again without."""

STOPPED = "the service was stopped before this request was finished"

Names = dict[str, str]
"""From a parameter of the protocol to the field of the body that it was made of, where the two differ."""


class Problem(Exception):
    """A request ends with this error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        self.error = {"message": message, "type": type, "param": param, "code": code}

    @property
    def body(self) -> bytes:
        return msgspec.json.encode({"error": self.error})

    @property
    def reason(self) -> str:
        """What the error is counted under: its code or, if it has none, its type."""
        return self.error["code"] or self.error["type"] or INVALID

    def as_of_messages(self) -> dict[str, Any]:
        """In Anthropic's form."""
        other = INVALID if self.status < 500 else "api_error"
        kind = TYPES_OF_MESSAGES.get(self.status, other)
        details = DETAILS_OF_MESSAGES.get(self.error["param"] or "")
        more = {} if details is None else {"details": details}
        return {"type": "error", "error": {"type": kind, "message": self.error["message"]} | more}

    def response(self, path: str) -> Response:
        """To who asked for this path."""
        body = msgspec.json.encode(self.as_of_messages()) if is_of_messages(path) else self.body
        return Response(body, self.status, self.headers, media_type="application/json")


def is_of_messages(path: str) -> bool:
    """Whether who asks for this path speaks Anthropic's API."""
    return path == MESSAGES or path.startswith(f"{MESSAGES}/")


def problem_of(error: Exception) -> Problem:
    """Any error as a user gets it; of a fault of ours only that it happened."""
    message = str(error)
    if isinstance(error, Problem):
        return error
    if isinstance(error, InvalidRequest):
        code = None if error.code == InvalidRequest.code else error.code
        status = 404 if code == "model_not_found" else 400
        return Problem(status, message, param=error.param, code=code)
    if isinstance(error, Overloaded):
        return Problem(
            429,
            message,
            type="rate_limit_error",
            code="rate_limit_exceeded",
            headers=retry_after(error.retry_after_s),
        )
    if isinstance(error, DeadlineExceeded):
        return Problem(408, message, type="timeout_error", code=error.code)
    if isinstance(error, ServiceUnavailable):
        return Problem(503, message, type=SERVER, code=error.code, headers=retry_after(DEFAULT_RETRY_AFTER_S))
    if isinstance(error, SlipstreamError):
        return Problem(500, message, type=SERVER, code=error.code)
    if isinstance(error, HTTPException):
        return Problem(error.status_code, str(error.detail), headers=dict(error.headers or {}))
    return Problem(500, "an error of the service; its log says more", type=SERVER, code="internal")


def is_fault(error: Exception) -> bool:
    """Whether an error is a fault of this frontend, of which a user hears only that it happened."""
    return not isinstance(error, (Problem, SlipstreamError, HTTPException))


def log_fault(what: str, error: Exception) -> None:
    """Log a fault of our own: ``what`` failed (with the ids that its answer has), and where."""
    log_failure(f"{what} failed, by a fault of the service", "".join(traceback.format_exception(error)))


def as_written(error: InvalidRequest, names: Names) -> InvalidRequest:
    """The same error, about the field that the caller wrote."""
    message, param = str(error), error.param
    for name, written in names.items():
        rest = None if param is None else param.removeprefix(name)
        if rest is not None and rest != param and rest[:1] in ("", ".", "["):
            if message.startswith(name):
                message = written + message.removeprefix(name)
            return InvalidRequest(message, param=written + rest, code=error.code)
    return error


def retry_after(seconds: float) -> dict[str, str]:
    """Whole seconds, as HTTP has it."""
    return {"Retry-After": str(max(1, int(seconds + 0.999)))}


NOT_SERVED = {
    "/v1/embeddings": "the model writes text, and no embeddings are made of it: use a service for embeddings",
    "/v1/audio": "the model reads and writes text alone",
    "/v1/images": "the model reads and writes text alone",
    "/v1/batches": "slipstream batch answers a file of requests",
    "/v1/files": "slipstream batch answers a file of requests",
    **dict.fromkeys(
        ("/reset_prefix_cache", "/start_profile", "/stop_profile"),
        "start the service with --server-dev-mode for it",
    ),
}
"""Parts of OpenAI's API that are not served, and why or what to do instead."""


def problem_at(request: Request, error: Exception) -> Problem:
    """Any error as the user gets it, in the form of the API that the request's path belongs to."""
    if isinstance(error, HTTPException) and error.status_code == 404:
        path = request.url.path
        why = next((why for start, why in NOT_SERVED.items() if path.startswith(start)), None)
        message = f"there is no {path:.200} here; {why or 'see /docs or /openapi.json'}"
        return Problem(404, message)
    if isinstance(error, HTTPException) and error.status_code == 405:
        allowed: Any = (error.headers or {}).get("Allow", "")
        message = f"{request.url.path} takes {allowed}, not {request.method}"
        return Problem(405, message, headers=dict(error.headers or {}))
    return problem_of(error)
