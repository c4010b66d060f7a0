"""Chat completions: a conversation goes in, the next message of it comes out, whole or as events."""

from __future__ import annotations

from typing import Any

import msgspec

from ...protocol.errors import ServiceUnavailable
from ...protocol.messages import Delta, Usage
from ...protocol.outputs import RequestOutput
from .bodies import ChatBody, max_tokens, sampling_params
from .errors import Problem

encode = msgspec.json.encode


def chat_params(body: ChatBody) -> Any:
    if body.top_logprobs is not None and not body.logprobs:
        raise Problem(400, "top_logprobs is of no use without logprobs=true", param="top_logprobs")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return sampling_params(body, max_tokens=max_tokens(body), logprobs=logprobs)


def usage_of(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def finish_reason_of(reason: str | None) -> str | None:
    if reason == "abort":
        raise ServiceUnavailable("the service ended the request before its answer was complete")
    return reason


class ChatEvents:
    """The events of one stream: one ``id`` and ``created``, the role first, then text, then the reason."""

    def __init__(self, id: str, created: int, model: str, include_usage: bool) -> None:
        about = {"id": id, "object": "chat.completion.chunk", "created": created, "model": model}
        self.head = b"data: %b" % encode(about)[:-1]
        self.tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        self.include_usage = include_usage
        self.begun: set[int] = set()
        self.usage: Usage | None = None

    def add(self, prompt: int, deltas: list[Delta]) -> bytes:
        parts: list[bytes] = []
        for delta in deltas:
            index = delta.index
            if index not in self.begun:
                self.begun.add(index)
                parts.append(self.choice(index, {"role": "assistant", "content": ""}))
            if delta.text:
                parts.append(
                    b'%b,"choices":[{"index":%d,"delta":{"content":%b},"logprobs":null,"finish_reason":null}]%b'
                    % (self.head, index, encode(delta.text), self.tail)
                )
            if delta.finish_reason is not None:
                parts.append(self.choice(index, {}, finish_reason_of(delta.finish_reason)))
            if delta.usage is not None:
                self.usage = delta.usage
        return b"".join(parts)

    def choice(self, index: int, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return b'%b,"choices":[%b]%b' % (self.head, encode(choice), self.tail)

    def end(self) -> bytes:
        if not self.include_usage or self.usage is None:
            return b""
        return b'%b,"choices":[],"usage":%b}\n\n' % (self.head, encode(usage_of(self.usage)))


def chat_completion(id: str, created: int, model: str, output: RequestOutput) -> dict[str, Any]:
    """The whole answer."""
    assert output.usage is not None
    return {
        "id": id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [
            {
                "index": answer.index,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "logprobs": None,
                "finish_reason": finish_reason_of(answer.finish_reason),
            }
            for answer in output.outputs
        ],
        "usage": usage_of(output.usage),
    }
