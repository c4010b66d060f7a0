"""Slipstream serves language models with asynchronous continuous batching.

Every name here is loaded when it is first used: the client imports neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .llm import LLM
    from .protocol.client.asynchronous import AsyncClient
    from .protocol.client.blocking import Client
    from .protocol.client.outputs import CompletionOutput, RequestOutput
    from .protocol.errors import (
        DeadlineExceeded,
        InvalidRequest,
        ModelNotSupported,
        Overloaded,
        ProtocolError,
        Quarantined,
        ServiceUnavailable,
        SlipstreamError,
    )
    from .protocol.messages import Delta
    from .protocol.sampling import SamplingParams
    from .sidecar import Sidecar

__all__ = [
    "LLM",
    "AsyncClient",
    "Client",
    "CompletionOutput",
    "DeadlineExceeded",
    "Delta",
    "InvalidRequest",
    "ModelNotSupported",
    "Overloaded",
    "ProtocolError",
    "Quarantined",
    "RequestOutput",
    "SamplingParams",
    "ServiceUnavailable",
    "Sidecar",
    "SlipstreamError",
    "__version__",
]

HOME = {
    "LLM": ".llm",
    "AsyncClient": ".protocol.client.asynchronous",
    "Client": ".protocol.client.blocking",
    "CompletionOutput": ".protocol.client.outputs",
    "Delta": ".protocol.messages",
    "RequestOutput": ".protocol.client.outputs",
    "SamplingParams": ".protocol.sampling",
    "Sidecar": ".sidecar",
}
"""Where each name lives; what is not here is an error."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(HOME.get(name, ".protocol.errors"), __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
