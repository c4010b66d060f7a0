"""What an attention backend is, and the backends that there are.

A **backend** stores one layer's new keys and values in the cache and attends. Backends are registered by name, and
imported when they are first wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from ....protocol.errors import InvalidRequest
from ..cache.paged import PagedBatch


class AttentionBackend(Protocol):
    """Stores the new keys and values of one layer, then attends over all that the cache holds."""

    name: str
    capturable: bool
    """Whether any step can be captured in a CUDA graph; otherwise only those that are ``decode_only``, because
    the backend reads the lengths of the others on the host, and waits for the device to do so."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layer: int,
        batch: PagedBatch,
        *,
        scale: float,
        sliding_window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
        attention_chunk: int | None = None,
    ) -> Tensor:
        """``query`` [T, Hq, D], ``key`` [T, Hkv, D] and ``value`` [T, Hkv, Dv] give [T, Hq, Dv].

        A query sees the positions of its row up to its own: the last ``sliding_window`` of them if that is
        set, or, if ``attention_chunk`` is, those in its own of the chunks of this many positions that a text is cut
        into. At most one of the two is given. ``softcap`` bounds the scores to ``softcap * tanh(score / softcap)``.
        ``sinks`` [Hq] are scores that take part in the softmax and bring no value. Layer 0, or another ``batch`` than
        before, begins a step.
        """
        ...


_factories: dict[str, Callable[[], AttentionBackend]] = {}


def register(name: str, factory: Callable[[], AttentionBackend]) -> None:
    """Make a backend known; ``factory`` runs, and imports what it needs, when the backend is first wanted."""
    _factories[name] = factory


def names() -> list[str]:
    """The known backends."""
    return sorted(_factories)


def create(name: str) -> AttentionBackend:
    """A new backend. InvalidRequest when there is none of that name."""
    if name not in _factories:
        raise InvalidRequest(f"attention backend {name!r} is unknown: use one of {', '.join(names())}")
    return _factories[name]()


def _torch() -> AttentionBackend:
    from .torch_backend import TorchAttention

    return TorchAttention()


def _triton() -> AttentionBackend:
    from .triton_backend import TritonAttention

    return TritonAttention()


register("torch", _torch)
register("triton", _triton)
