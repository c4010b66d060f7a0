"""The ranks of an executor, and what they do together."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch._C._distributed_c10d import AllgatherOptions
from torch.distributed import AllreduceOptions, BroadcastOptions, DistBackendError, ReduceOp

from ....protocol.errors import SlipstreamError


class RankLost(SlipstreamError):
    """Another rank has ended: what all do together cannot be done any more."""

    of_another = True


class Together:
    """A context for what all ranks do together: it fails with RankLost if one of them is gone; other errors are this
    rank's own."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None and is_of_connection(error):
            raise RankLost(f"another rank has ended: {str(error).splitlines()[0]}") from error


TOGETHER = Together()

OWN_FAULTS = ("unhandled cuda error", "Cuda failure", "CUDA error")
"""How NCCL reports what this rank's own GPU or driver has reported to it."""


def is_of_connection(error: BaseException) -> bool:
    """Whether NCCL or gloo says that it does not reach a rank.

    Lack of memory and illegal accesses are RuntimeErrors too, and gloo has no class for what its transport reports.
    """
    if isinstance(error, DistBackendError):
        return not any(words in str(error) for words in OWN_FAULTS)
    return type(error) is RuntimeError and "/gloo/transport/" in str(error)


class Exchange(Protocol):
    """As `PeerExchange`."""

    most_bytes: int
    most_bytes_alone: int

    @property
    def programs(self) -> int: ...
    @property
    def arguments(self) -> dict[str, Any]: ...
    def supports(self, tensor: Tensor) -> bool: ...
    def can_sum(self, tensor: Tensor) -> bool: ...
    def sum(self, tensor: Tensor) -> None: ...
    def can_gather(self, tensor: Tensor) -> bool: ...
    def gather(self, tensor: Tensor, width: int) -> Tensor: ...
    def can_broadcast(self, tensor: Tensor) -> bool: ...
    def broadcast(self, tensor: Tensor) -> None: ...


class RankGroup:
    """All ranks as one of them sees them.

    What they do together is queued on the current stream like any other work, and by every rank in the same order.
    """

    def __init__(self, rank: int, size: int, backend: Any) -> None:
        """``backend`` is a process group of torch, or of one backend of it."""
        self.rank, self.size, self.backend = rank, size, backend
        self.summing, self.broadcasting = AllreduceOptions(), BroadcastOptions()
        self.gathering, self.comparing = AllgatherOptions(), AllreduceOptions()
        self.comparing.reduceOp = ReduceOp(ReduceOp.MIN)
        self.exchange: Exchange | None = None
        """The way over peer memory, which is faster, where there is one."""
        for options in (self.summing, self.broadcasting, self.gathering, self.comparing):
            options.asyncOp = False  # on the current stream, not beside it

    def __deepcopy__(self, memo: dict[int, Any]) -> RankGroup:
        """A copy of a layer works with the same ranks."""
        return self

    def sum(self, tensor: Tensor) -> Tensor:
        """Put the sum of all ranks' tensors into ``tensor``, which is returned."""
        if tensor.is_meta:
            return tensor
        if self.exchange is not None and self.exchange.can_sum(tensor):
            self.exchange.sum(tensor)
        else:
            with TOGETHER:
                wait(self.backend.allreduce([tensor], self.summing))
        return tensor

    def exchange_for(self, tensor: Tensor) -> Exchange | None:
        """The exchange for a kernel that sums tensors like this one on its way, or None for the backend: the same on
        all ranks, whose tensors are alike."""
        return self.exchange if self.exchange is not None and self.exchange.supports(tensor) else None

    def description(self) -> str:
        """Describes for people how GPUs exchange tensors."""
        if self.exchange is None:
            return "what the ranks send each other goes through NCCL"
        most, alone = self.exchange.most_bytes >> 10, self.exchange.most_bytes_alone >> 10
        by_themselves = f" (logits, and sums by themselves, up to {alone})" if alone < most else ""
        return (
            f"what the ranks send each other goes over each other's memory up to {most} KiB{by_themselves},"
            " and through NCCL beyond"
        )

    def gather(self, tensor: Tensor, width: int) -> Tensor:
        """The columns of all ranks' tensors [N, M] in the order of ranks, cut to [N, width]."""
        if self.exchange is not None and self.exchange.can_gather(tensor):
            return self.exchange.gather(tensor, width)
        rows, columns = tensor.shape
        gathered = tensor.new_empty(self.size * rows, columns)
        with TOGETHER:
            wait(self.backend._allgather_base(gathered, tensor.contiguous(), self.gathering))
        side_by_side = (
            gathered.view(self.size, rows, columns).transpose(0, 1).reshape(rows, self.size * columns)
        )
        return side_by_side[:, :width].contiguous()

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Put what rank 0 has in ``tensor`` into that of every rank; returns it."""
        if self.exchange is not None and self.exchange.can_broadcast(tensor):
            self.exchange.broadcast(tensor)
            return tensor
        with TOGETHER:
            wait(self.backend.broadcast([tensor], self.broadcasting))
        return tensor

    def least(self, number: int, device: torch.device) -> int:
        """The least of all ranks' numbers; waits for them."""
        tensor = torch.tensor([number], device=device)
        with TOGETHER:
            wait(self.backend.allreduce([tensor], self.comparing))
        return int(tensor)


def wait(work: Any) -> None:
    """Nothing that follows on this stream begins before ``work`` is done; NCCL's is in its order already."""
    if work is not None:
        work.wait()
