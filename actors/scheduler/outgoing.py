"""News of sequences for the detokenizer: collected while a message is handled, and sent as one message."""

from __future__ import annotations

import numpy as np

from ...protocol.internal import Finished, Opened, PromptLogprobs, Tokens
from .logprobs import Logprobs
from .sequence import Sequence

CONTEXT_TOKENS = 8
"""Prompt tokens that the detokenizer gets, to continue their text: a character has at most four bytes, so at most four
tokens, and a mark before the answer a few."""

NO_REQUESTS, NO_TOKENS = np.empty(0, np.int64), np.empty(0, np.int32)


class Outgoing:
    """Sequences that begin and end, and logprobs of prompts, until they are taken."""

    def __init__(self) -> None:
        self.opened: list[Opened] = []
        self.prompts: list[PromptLogprobs] = []
        self.finished: list[Finished] = []

    def open(self, sequence: Sequence, known: np.ndarray, cached: int, now: float) -> None:
        """Announce a sequence, perhaps again; ``known`` int32 are its tokens, of which ``cached`` are not computed."""
        first = max(0, sequence.prompt_len - CONTEXT_TOKENS)
        end = sequence.prompt_len + sequence.delivered
        self.opened.append(
            Opened(
                sequence.request,
                known[first:end].tobytes(),
                sequence.delivered,
                sequence.params.stop_strings,
                min(cached, sequence.prompt_len),  # not of what was delivered before
                sequence.prompt_len,
                sequence.attempt,
                sequence.params.include_stop_str_in_output,
                sequence.marks,
                not sequence.params.skip_special_tokens,
                sequence.queued_at,
                now,
            )
        )
        self.report_prompt_logprobs(sequence)

    def report_prompt_logprobs(self, sequence: Sequence) -> None:
        """Report the logprobs of the whole prompt, if the request asks for them and all are there."""
        kept = sequence.prompt_logprobs
        if kept is None or sequence.needs_prompt_logprobs or sequence.finished:
            return
        tokens, values = kept.last(kept.count)
        self.prompts.append(PromptLogprobs(sequence.request, tokens.tobytes(), values.tobytes()))

    def take(
        self,
        step: int,
        requests: np.ndarray = NO_REQUESTS,
        tokens: np.ndarray = NO_TOKENS,
        counters: dict[str, float] | None = None,
        logprobs: Logprobs | None = None,
    ) -> Tokens | None:
        """All of it as one message, with the new ``tokens`` int32 [N] of ``requests`` int64 [N]; None if nothing is
        new."""
        if not (len(requests) or self.opened or self.finished or self.prompts or counters):
            return None
        message = Tokens(
            step, self.opened, requests.tobytes(), tokens.tobytes(), self.finished, counters or {}
        )
        if logprobs is not None:
            message.logprob_tokens = logprobs.tokens.tobytes()
            message.logprobs = logprobs.values.tobytes()
        message.prompts = self.prompts
        self.opened, self.finished, self.prompts = [], [], []
        return message
