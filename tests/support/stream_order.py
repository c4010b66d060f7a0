"""Which work on tensors no wait puts in order, where there are two streams: the default one and that of steps.

Torch's own streams are ordered with the default one by nothing but a wait. On a GPU that computes at once the lack of
one passes unseen; where it is shared, or was idle, the second stream overtakes the first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEFAULT, COMPUTE = "the default stream", "the compute stream"


@dataclass
class Uses:
    """What was done with some memory since the last wait."""

    storage: Any
    """Kept, so that no other tensor has its place before the next wait."""
    written: str = ""
    """The operation that wrote it last, and where."""
    writer: str = ""
    readers: dict[str, str] = field(default_factory=dict)
    """The last operation that read it, by stream."""


class StreamOrder(TorchDispatchMode):
    """Operations of torch on a CPU, as if `on_compute` were another stream that only `waited` puts in order."""

    def __init__(self) -> None:
        super().__init__()
        self.stream = DEFAULT
        self.uses: dict[int, Uses] = {}
        self.unordered: list[str] = []
        """Pairs of operations of which one writes what the other reads or writes."""

    @contextlib.contextmanager
    def on_compute(self) -> Iterator[None]:
        """What is queued inside goes to the compute stream."""
        before, self.stream = self.stream, COMPUTE
        try:
            yield
        finally:
            self.stream = before

    def waited(self) -> None:
        """The host has waited for all that is queued on any stream."""
        self.uses.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False))
        given |= kwargs or {}
        written = {
            argument.name
            for argument in func._schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write
        }
        if func.is_view:  # it touches no memory
            return made
        for name, value in given.items():
            for tensor in tensors_in(value):
                self.use(tensor, str(func), writes=name in written)
        for tensor in tensors_in(made):
            self.use(tensor, str(func), writes=True)
        return made

    def use(self, tensor: Tensor, what: str, *, writes: bool) -> None:
        storage: Any = tensor.untyped_storage()
        uses = self.uses.setdefault(storage._cdata, Uses(storage))
        others = [(uses.writer, uses.written)] if uses.writer not in ("", self.stream) else []
        if writes:
            others += [(stream, read) for stream, read in uses.readers.items() if stream != self.stream]
        for stream, other in others:
            self.unordered.append(f"{other} on {stream}, then {what} on {self.stream}")
        if writes:
            uses.writer, uses.written = self.stream, what
        else:
            uses.readers[self.stream] = what


def tensors_in(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
