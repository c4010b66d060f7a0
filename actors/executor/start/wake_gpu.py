"""Makes the context of a GPU in a thread, beside the imports of a start: it takes the driver seconds."""

from __future__ import annotations

import threading

from ....protocol.errors import SlipstreamError
from ..devices.driver import make_context


def wake(index: int) -> threading.Thread:
    """Begin to make the context of a GPU, which takes seconds; a thread that ends when it is there, or cannot be made.

    By the driver itself first: torch would hold the interpreter meanwhile, for which there is other work.
    """

    def touch() -> None:
        try:
            make_context(index)
            import torch

            torch.empty(1, device=torch.device("cuda", index))
        except (OSError, SlipstreamError, RuntimeError, AssertionError):
            return  # the next use meets the same error, and reports it

    thread = threading.Thread(target=touch, name="wake gpu", daemon=True)
    thread.start()
    return thread
