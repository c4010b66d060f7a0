"""Logprobs of answers that are told whole: how many are kept, and how many are on their way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from scripted import Script, Scripted
from slipstream.actors.http.logprob_lists import LogprobBudget
from slipstream.actors.http.transport import events
from slipstream.protocol.messages import Delta, Usage

CHAT = {"messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 1}


class Scores(Script):
    """Answers with two tokens, each with two logprobs, and with those of four tokens of the prompt."""

    most_running = 0

    async def batches(self, **asked: Any) -> AsyncGenerator[list[Delta], None]:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        scored = asked["params"].prompt_logprobs is not None
        row = {"7": -1.0, "8": -2.0}
        delta = Delta(id="x", text="ab", token_ids=[7, 8], logprobs=[row, row])
        delta.prompt_token_ids = [7, 8, 7, 8]
        delta.prompt_logprobs = [None, row, row, row] if scored else None
        await asyncio.sleep(0)
        yield [delta]
        self.running -= 1
        usage = Usage(prompt_tokens=4, completion_tokens=2)
        yield [Delta(id="x", finish_reason="length", usage=usage)]


class ChatScores(Scores):
    async def batches(self, **asked: Any) -> AsyncGenerator[list[Delta], None]:
        from slipstream.protocol.formats.reader import ChatDelta

        async for deltas in super().batches(**asked):
            yield [
                ChatDelta(
                    id=each.id,
                    text=each.text,
                    token_ids=each.token_ids,
                    logprobs=each.logprobs,
                    prompt_logprobs=each.prompt_logprobs,
                    finish_reason=each.finish_reason,
                    usage=each.usage,
                )
                for each in deltas
            ]


@pytest.mark.parametrize(
    ("script", "path", "body", "logprobs"),
    [
        (Scores, "/v1/completions", {"prompt": "x", "logprobs": 1}, 4),
        (Scores, "/v1/completions", {"prompt": ["x", "y"], "logprobs": 1, "echo": True}, 20),
        (Scores, "/v1/completions", {"prompt": "x", "prompt_logprobs": 1, "logprobs": 1}, 10),
        (ChatScores, "/v1/chat/completions", CHAT, 4),
        (ChatScores, "/v1/chat/completions", CHAT | {"prompt_logprobs": 1}, 10),
    ],
)
def test_an_answer_that_is_told_whole_has_a_bounded_number_of_logprobs(
    script: type[Script], path: str, body: dict[str, Any], logprobs: int
) -> None:
    scripted = Scripted(script())
    for most_of_one, most_of_all, status in ((logprobs, logprobs, 200), (logprobs - 1, 99, 400)):
        scripted.service.logprobs = room = LogprobBudget(most_of_one, most_of_all)
        answer = scripted.post(path, body)
        assert answer.status == status
        assert room.taken == 0
    assert answer.json["error"]["param"] in ("logprobs", "top_logprobs", "prompt_logprobs")
    assert str(logprobs - 1) in answer.json["error"]["message"]


def test_answers_that_are_put_together_at_once_share_the_room() -> None:
    scripted = Scripted(Scores())
    scripted.service.logprobs = room = LogprobBudget(99, 10)
    with room.allowance() as allowance:
        allowance.take(7)
        answer = scripted.post("/v1/completions", {"prompt": "x", "logprobs": 1})
        assert answer.status == 429
        assert answer.headers["retry-after"]
        assert scripted.post("/v1/completions", {"prompt": "x", "logprobs": 1, "stream": True}).status == 200
    assert room.taken == 0
    assert scripted.post("/v1/completions", {"prompt": "x", "logprobs": 1}).status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_of_many_prompts_whose_logprobs_are_wanted_few_are_asked_for_at_once(
    monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(events, "MAX_AT_ONCE", 200)
    prompts = {"prompt": ["x" * 25] * 8, "logprobs": 1, "max_tokens": 2, "stream": stream}
    for echo, most in ((False, 8), (True, 4)):
        scripted = Scripted(script := Scores())
        assert scripted.post("/v1/completions", prompts | {"echo": echo}).status == 200
        assert script.most_running == most
