"""Makes a sequence of a request that arrives, and says why one would not fit into the cache."""

from __future__ import annotations

import numpy as np

from ...protocol.internal import Enqueue
from .config import SchedulerConfig
from .prefix import salt_of
from .sequence import Sequence
from .waiting import sort_key


class Arrivals:
    """Requests as they arrive, with the limits and end tokens of the model."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.max_model_len = config.max_model_len
        self.eos = frozenset(config.eos_token_ids)

    def sequence_of(self, message: Enqueue, now: float) -> Sequence:
        """A sequence of the prompt and what was delivered of its answer."""
        prompt = np.frombuffer(message.prompt, np.int32)
        delivered = np.frombuffer(message.delivered, np.int32)
        params = message.params
        limit = self.max_model_len
        max_length = limit if params.max_tokens is None else min(limit, len(prompt) + params.max_tokens)
        eos = frozenset() if params.ignore_eos else self.eos
        stop = np.array(sorted(eos | set(params.stop_token_ids)), np.int32)
        return Sequence(
            request=message.request,
            tokens=np.concatenate([prompt, delivered]),
            prompt_len=len(prompt),
            max_length=max_length,
            params=params,
            stop_tokens=stop,
            eos=eos,
            connection=message.connection,
            sort_key=sort_key(now, params.priority),
            salt=salt_of(params.cache_salt),
            attempt=message.attempt,
            delivered=len(delivered),
            marks=message.marks,
            before=message.before,
            calls=message.calls,
            queued_at=now,
        )


def too_long(sequence: Sequence, limit: int | None) -> str:
    """The error for a sequence that may come to have more tokens than the cache's ``limit``; empty if it cannot, or if
    the limit is not known yet."""
    if limit is None or sequence.max_length <= limit:
        return ""
    most = sequence.max_length - sequence.prompt_len
    return (
        f"the prompt's {sequence.prompt_len} tokens and max_tokens up to {most}"
        f" need room for {sequence.max_length} tokens, and the KV cache holds {limit}:"
        " shorten the prompt or lower max_tokens"
    )
