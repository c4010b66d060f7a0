"""The interface of attention backends, and the registry of those that exist.

A **backend** stores one layer's new keys and values in the cache and attends. Backends are registered by name, and
imported when they are first wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from ....protocol.errors import InvalidRequest
from ..cache.paged_batch import PagedBatch


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

        A query sees the positions of its row up to its own. With ``sliding_window`` it sees only the last of them, as
        many as that says. With ``attention_chunk`` a text is cut into chunks of as many positions, and a query sees
        those of its own chunk. At most one of the two is given.

        ``softcap`` bounds the scores to ``softcap * tanh(score / softcap)``. ``sinks`` [Hq] are scores that take part
        in the softmax and bring no value. Layer 0, or another ``batch`` than before, begins a step.
        """
        ...


class Factories(NamedTuple):
    usual: Callable[[], AttentionBackend]
    invariant: Callable[[], AttentionBackend] | None
    """Makes the backend in which a token's bits do not depend on its step."""


_factories: dict[str, Factories] = {}


def register(
    name: str,
    factory: Callable[[], AttentionBackend],
    invariant: Callable[[], AttentionBackend] | None = None,
) -> None:
    """Make a backend known; ``factory`` runs, and imports what it needs, when the backend is first wanted.

    ``invariant`` makes one in which what a token is given has the same bits whatever else is in the step.
    """
    _factories[name] = Factories(factory, invariant)


def names() -> list[str]:
    """The known backends."""
    return sorted(_factories)


def create(name: str, *, batch_invariant: bool = False) -> AttentionBackend:
    """A new backend. InvalidRequest when there is none of that name, or none that is ``batch_invariant``."""
    if name not in _factories:
        raise InvalidRequest(f"attention backend {name!r} is unknown: use one of {', '.join(names())}")
    factory = _factories[name].invariant if batch_invariant else _factories[name].usual
    if factory is None:
        others = ", ".join(other for other in names() if _factories[other].invariant)
        raise InvalidRequest(
            f"attention backend {name!r} adds in an order that depends on the step: leave out --batch-invariant,"
            f" or use one of {others}"
        )
    return factory()


def _torch() -> AttentionBackend:
    from .torch_backend import TorchAttention

    return TorchAttention()


def _triton() -> AttentionBackend:
    from .triton_backend import TritonAttention

    return TritonAttention()


def _invariant_torch() -> AttentionBackend:
    from .torch_invariant import InvariantTorchAttention

    return InvariantTorchAttention()


register("torch", _torch, _invariant_torch)


def _invariant_triton() -> AttentionBackend:
    from .triton_invariant import InvariantTritonAttention

    return InvariantTritonAttention()


register("triton", _triton, _invariant_triton)
