"""Completions: texts or token ids go in, what follows each of them comes out, whole or as events."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ...protocol.messages import Delta, Usage
from .bodies import CompletionBody, read_body, sampling_params, schema_of
from .errors import Problem
from .events import Events, encode, finish_reason_of, open_stream, together, total_usage, unless_left
from .service import Service
from .tokens import TokenTable

MAX_TOKENS = 16
"""OpenAI's length of an answer where none is asked for."""

Prompt = str | list[int]


async def create(service: Service, request: Request) -> Response:
    body = await read_body(request, CompletionBody)
    service.check(body.model)
    if body.echo and body.logprobs is not None:
        raise Problem(400, "echo with logprobs is not supported: leave one out", param="echo")
    params = sampling_params(
        body,
        service.bounds,
        max_tokens=MAX_TOKENS if body.max_tokens is None else body.max_tokens,
        logprobs=body.logprobs,
        json_schema=schema_of(body.response_format),
    )
    prompts = prompts_of(body.prompt)
    n = body.n or 1
    if len(prompts) * n > service.bounds.max_queued_requests:
        raise Problem(
            400,
            f"prompt has {len(prompts)} prompts with n={n} answers each; this service holds at most"
            f" {service.bounds.max_queued_requests} requests at once: send fewer",
            param="prompt",
        )
    about = service.about("cmpl", "text_completion")
    echoes = [service.echo(prompt) for prompt in prompts] if body.echo else []
    answers = Answers(service, n, echoes, body.logprobs)
    streams = [
        service.client.batches(prompt=prompt, params=params, request_id=f"{about['id']}-{number}")
        for number, prompt in enumerate(prompts)
    ]
    batches = together(streams)
    if body.stream:
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        return await open_stream(request, batches, CompletionEvents(about, include_usage, answers))
    whole = WholeCompletion(about, answers)
    await unless_left(request.receive, whole.take(batches))
    return service.answer(whole.told())


def prompts_of(prompt: str | list[str | int | list[int]]) -> list[Prompt]:
    """The four shapes that OpenAI has: a text, token ids, or a list of either."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise Problem(400, "prompt is empty; give a text, token ids, or a list of either", param="prompt")
    ids = [part for part in prompt if isinstance(part, int)]
    if len(ids) == len(prompt):
        return [ids]
    several = [part for part in prompt if not isinstance(part, int)]
    if ids or len({type(part) for part in several}) > 1:
        message = (
            "prompt mixes texts, token ids and lists; give one text, one list of ids, or a list of either"
        )
        raise Problem(400, message, param="prompt")
    return [*several]


class Answers:
    """What is told of each delta, the same for a whole answer and for events."""

    def __init__(self, service: Service, n: int, echoes: list[str], logprobs: int | None) -> None:
        self.n = n
        self.echoes = echoes
        """The text of each prompt, where answers begin with it."""
        self.tables: dict[int, TokenTable] | None = None
        if logprobs is not None:
            self.tables = defaultdict(lambda: TokenTable(service.tokens, logprobs))

    def index(self, prompt: int, delta: Delta) -> int:
        return prompt * self.n + delta.index

    def echo(self, index: int) -> str:
        return self.echoes[index // self.n] if self.echoes else ""

    def logprobs(self, index: int, delta: Delta) -> dict[str, list[Any]] | None:
        return None if self.tables is None else self.tables[index].take(delta)


class CompletionEvents(Events):
    """Text as it comes; the last event of an answer has the reason of its end."""

    def __init__(self, about: dict[str, Any], include_usage: bool, answers: Answers) -> None:
        super().__init__(about, include_usage)
        self.answers = answers
        self.begun: set[int] = set()

    def tell(self, prompt: int, delta: Delta, chunks: list[bytes]) -> None:
        answers = self.answers
        index = answers.index(prompt, delta)
        text = delta.text
        if index not in self.begun:
            self.begun.add(index)
            text = answers.echo(index) + text
        if answers.tables is None and delta.finish_reason is None:  # the hot path: for each token
            if text:
                choice = b'{"index":%d,"text":%b,"logprobs":null,"finish_reason":null}'
                chunks.append(self.chunk(choice % (index, encode(text))))
            return
        choice = {
            "index": index,
            "text": text,
            "logprobs": answers.logprobs(index, delta),
            "finish_reason": finish_reason_of(delta.finish_reason),
        }
        chunks.append(self.chunk(encode(choice)))


class WholeCompletion:
    """Folds the deltas of all prompts into one answer."""

    def __init__(self, about: dict[str, Any], answers: Answers) -> None:
        self.about = about
        self.answers = answers
        self.texts: defaultdict[int, list[str]] = defaultdict(list)
        self.logprobs: dict[int, dict[str, list[Any]]] = {}
        self.reasons: dict[int, str | None] = {}
        self.usages: list[Usage] = []

    async def take(self, batches: Any) -> None:
        async for prompt, deltas in batches:
            for delta in deltas:
                self.add(prompt, delta)

    def add(self, prompt: int, delta: Delta) -> None:
        index = self.answers.index(prompt, delta)
        self.texts[index].append(delta.text)
        table = self.answers.logprobs(index, delta)
        if table is not None:
            known = self.logprobs.setdefault(index, {name: [] for name in table})
            for name, values in table.items():
                known[name] += values
        if delta.finish_reason is not None:
            self.reasons[index] = finish_reason_of(delta.finish_reason)
        if delta.usage is not None:
            self.usages.append(delta.usage)

    def told(self) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "text": self.answers.echo(index) + "".join(self.texts[index]),
                "logprobs": self.logprobs.get(index),
                "finish_reason": self.reasons[index],
            }
            for index in sorted(self.reasons)
        ]
        return self.about | {"choices": choices, "usage": total_usage(self.usages)}
