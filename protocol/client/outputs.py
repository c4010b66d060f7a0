"""The finished result of a request, folded from the deltas of its stream."""

from __future__ import annotations

import msgspec

from ..formats.reader import ChatDelta
from ..messages import Delta, Usage


class ToolCall(msgspec.Struct, kw_only=True):
    """A call that the model asks for."""

    id: str
    name: str
    arguments: str = ""
    """JSON text."""


class CompletionOutput(msgspec.Struct, kw_only=True):
    """One answer to a request."""

    index: int = 0
    """Which of the ``n`` answers."""
    text: str = ""
    reasoning: str = ""
    """The thoughts before it, where the model marks them; in a conversation."""
    tool_calls: list[ToolCall] = []
    token_ids: list[int] = []
    finish_reason: str | None = None
    """``stop``, ``length`` or ``abort``."""
    stop_reason: str | int | None = None
    """The stop text or token id that ended the answer."""
    logprobs: list[dict[int, float]] | None = None
    """For each of ``token_ids``, if it was asked for: token id to logprob, of the sampled token and of the
    most likely ones."""
    cumulative_logprob: float | None = None
    """The sum of the sampled tokens' logprobs."""


class RequestOutput(msgspec.Struct, kw_only=True):
    """A request and its answers; the names are vLLM's."""

    request_id: str
    prompt: str | None = None
    """The prompt as it was given, if that was a text."""
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[dict[int, float] | None] | None = None
    """For each token of the prompt, if it was asked for: token id to logprob, of the prompt's token and of the most
    likely ones; None for the first."""
    outputs: list[CompletionOutput] = []
    usage: Usage | None = None
    finished: bool = False
    """Every answer has its ``finish_reason``."""


class Collector:
    """Folds the deltas of one request, in the order in which they came."""

    def __init__(self, request_id: str, prompt: str | list[int] | None = None) -> None:
        self.result = RequestOutput(
            request_id=request_id,
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_token_ids=prompt if isinstance(prompt, list) else None,
        )
        self.answers: dict[int, tuple[CompletionOutput, list[str]]] = {}

    def add(self, delta: Delta) -> None:
        found = self.answers.get(delta.index)
        if found is None:
            found = self.answers[delta.index] = (CompletionOutput(index=delta.index), [])
        answer, texts = found
        texts.append(delta.text)
        if isinstance(delta, ChatDelta):
            answer.reasoning += delta.reasoning
            for part in delta.tool_calls:
                if part.name:
                    answer.tool_calls.append(ToolCall(id=part.id, name=part.name))
                answer.tool_calls[-1].arguments += part.arguments
        answer.token_ids += delta.token_ids
        if delta.logprobs:
            rows = [{int(token): value for token, value in row.items()} for row in delta.logprobs]
            answer.logprobs = answer.logprobs or []
            answer.logprobs += rows
            answer.cumulative_logprob = (answer.cumulative_logprob or 0.0) + sum(
                row[token] for row, token in zip(rows, delta.token_ids, strict=True)
            )
        if delta.prompt_token_ids is not None:
            self.result.prompt_token_ids = delta.prompt_token_ids
        if delta.prompt_logprobs is not None:
            self.result.prompt_logprobs = [
                None if row is None else {int(token): value for token, value in row.items()}
                for row in delta.prompt_logprobs
            ]
        if delta.usage is not None:
            self.result.usage = delta.usage
        if delta.finish_reason is not None:
            answer.finish_reason = delta.finish_reason
            answer.stop_reason = delta.stop_reason

    def output(self) -> RequestOutput:
        """The output so far."""
        for answer, texts in self.answers.values():
            answer.text = "".join(texts)
            texts[:] = [answer.text]
        self.result.outputs = [self.answers[index][0] for index in sorted(self.answers)]
        self.result.finished = bool(self.answers) and all(
            answer.finish_reason is not None for answer in self.result.outputs
        )
        return self.result
