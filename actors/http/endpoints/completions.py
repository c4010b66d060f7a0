"""Completions: texts or token ids go in, what follows each of them comes out, whole or as events."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ....protocol.messages import Delta, Usage
from ....protocol.sampling import SamplingParams
from ...text.prompts.fill_in import with_gap
from ..bodies.requests import (
    CompletionBody,
    CompletionFields,
    Given,
    StreamOptions,
    of_prompt,
    sampling_params,
    schema_of,
)
from ..errors import Problem
from ..logprob_lists import Allowance, JsonLists, count, count_prompt
from ..service import Service
from ..tokens import Columns, TokenTable, prompt_logprobs
from ..transport.events import (
    Events,
    encode,
    finish_reason_of,
    open_stream,
    together,
    total_usage,
    unless_left,
)

MAX_TOKENS = 16
"""OpenAI's length of an answer where none is asked for."""

Prompt = str | list[int]


async def create(service: Service, request: Request) -> Response:
    body = await service.read(request, CompletionBody)
    service.defaults.fill(body)
    echo_logprobs = bool(body.echo) and body.logprobs is not None
    counted = body.stream_options is not None and bool(body.stream_options.continuous_usage_stats)
    only_prompt = bool(body.echo) and body.max_tokens == 0
    most = MAX_TOKENS if body.max_tokens is None else body.max_tokens
    params, names = sampling_params(
        body,
        service.bounds,
        max_tokens=Given(1 if only_prompt else most, "max_tokens"),
        logprobs=Given(body.logprobs, "logprobs"),
        prompt_logprobs=prompt_logprobs_of(body, echo_logprobs=echo_logprobs),
        json_schema=schema_of(body.response_format),
    )
    prompts = prompts_of(body.prompt)
    check_together(body, params, len(prompts), service.bounds.max_queued_requests)
    asked = prompts if not body.suffix else with_gaps(service, prompts, body.suffix)
    about = service.about(request, "cmpl", "text_completion")
    echoes: list[str] = []
    if body.echo:
        echoes = await service.beside(
            request, lambda: [service.echo(*prompt, answered=not only_prompt) for prompt in prompts]
        )
    converter = DeltaConverter(service, body, params, prompts, echoes, only_prompt=only_prompt)
    streams = [
        service.ask(
            request,
            names | {"prompt": where},
            number=number,
            whole=not body.stream,
            prompt=prompt,
            params=params,
            add_special_tokens=body.add_special_tokens is not False,
            request_id=f"{about['id']}-{number}",
            return_prompt_ids=echo_logprobs or counted or bool(body.return_token_ids),
        )
        for number, (prompt, where) in enumerate(asked)
    ]
    scored = 0 if params.prompt_logprobs is None else 1 + params.prompt_logprobs
    weights = [scored * min(len(prompt), service.bounds.max_model_len) for prompt, _ in asked]
    batches = streams[0] if len(streams) == 1 else together(streams, weights)
    if body.stream:
        return await open_stream(request, batches, CompletionEvents(about, body.stream_options, converter))
    with service.logprobs.allowance() as allowance:
        whole = WholeCompletion(about, converter, allowance)
        await unless_left(request.receive, whole.take(batches))
        return await service.put_together(whole.body, many=allowance.taken)


def check_together(body: CompletionFields, params: SamplingParams, prompts: int, most: int) -> None:
    """Refuse what cannot be asked for together; ``most`` requests are held at once."""
    n = params.n
    if body.echo and body.logprobs is not None and body.stream and n > 1:
        raise Problem(
            400, f"echo with logprobs and n={n} answers cannot be streamed: leave one out", param="echo"
        )
    if prompts * n > most:
        raise Problem(
            400,
            f"prompt has {prompts} prompts with n={n} answers each; this service holds at most"
            f" {most} requests at once: send fewer",
            param="prompt",
        )
    if body.echo and params.truncate_prompt_tokens is not None:
        message = (
            "echo repeats the whole prompt, and truncate_prompt_tokens takes the end of it; leave one out"
        )
        raise Problem(400, message, param="truncate_prompt_tokens")


def prompts_of(prompt: str | list[str | int | list[int]]) -> list[tuple[Prompt, str]]:
    """Each prompt, with where it stands in the body; OpenAI has four shapes: a text, token ids, or a list of
    either."""
    if isinstance(prompt, str):
        return [(prompt, "prompt")]
    if not prompt:
        raise Problem(400, "prompt is empty; give a text, token ids, or a list of either", param="prompt")
    ids = [part for part in prompt if isinstance(part, int)]
    if len(ids) == len(prompt):
        return [(ids, "prompt")]
    several = [part for part in prompt if not isinstance(part, int)]
    if ids or len({type(part) for part in several}) > 1:
        message = (
            "prompt mixes texts, token ids and lists; give one text, one list of ids, or a list of either"
        )
        raise Problem(400, message, param="prompt")
    return [(part, f"prompt[{number}]") for number, part in enumerate(several)]


def prompt_logprobs_of(body: CompletionFields, *, echo_logprobs: bool) -> Given:
    """The number of logprobs of the prompt that are asked for, with its echo or without."""
    if body.prompt_logprobs is None:
        return Given(body.logprobs if echo_logprobs else None, "logprobs")
    if echo_logprobs and body.prompt_logprobs != body.logprobs:
        message = (
            f"echo with logprobs={body.logprobs} asks for as many of the prompt, and prompt_logprobs for"
            f" {body.prompt_logprobs}; give the same number, or leave one out"
        )
        raise Problem(400, message, param="prompt_logprobs")
    return of_prompt(body)


def with_gaps(service: Service, prompts: list[tuple[Prompt, str]], suffix: str) -> list[tuple[Prompt, str]]:
    """The prompts for what stands between each text and ``suffix``."""
    if not all(isinstance(prompt, str) for prompt, _ in prompts):
        message = (
            "suffix goes with prompts that are texts; write the tokens around the gap yourself, or give texts"
        )
        raise Problem(400, message, param="suffix")
    tokenizer = service.prompts.tokenizer
    return [(with_gap(tokenizer, str(prompt), suffix), where) for prompt, where in prompts]


def joined(first: Columns | None, then: Columns | None) -> Columns | None:
    if first is None or then is None:
        return first or then
    return {name: first[name] + then[name] for name in first}


class DeltaConverter:
    """Converts deltas into fields of OpenAI's answers, the same for a whole answer and for events."""

    def __init__(
        self,
        service: Service,
        body: CompletionFields,
        params: SamplingParams,
        prompts: list[tuple[Prompt, str]],
        echoes: list[str],
        *,
        only_prompt: bool,
    ) -> None:
        self.n = params.n
        self.prompts = prompts
        self.echoes = echoes
        """The text of each prompt, where answers begin with it."""
        self.only_prompt = only_prompt
        """Nothing but the prompt is asked for; the one token that is computed behind it is left out."""
        self.tokens = service.tokens
        self.columns = body.logprobs
        self.named = not params.skip_special_tokens
        """Special tokens have text."""
        self.ids_wanted = bool(body.return_token_ids)
        self.prompt_columns = body.prompt_logprobs
        self.tables: dict[int, TokenTable] = {}
        self.prompt_ids: dict[int, list[int]] = {}
        self.prompt_scores: dict[int, list[dict[str, float] | None]] = {}

    def take(self, prompt: int, delta: Delta) -> int:
        """Keep what a delta says of its prompt; returns the number of the answer."""
        if delta.prompt_token_ids is not None:
            self.prompt_ids[prompt] = delta.prompt_token_ids
        if delta.prompt_logprobs is not None:
            self.prompt_scores[prompt] = delta.prompt_logprobs
        if self.only_prompt:
            delta.text, delta.token_ids, delta.logprobs = "", [], []
            delta.finish_reason = delta.finish_reason and "length"
            if delta.usage is not None:
                delta.usage.completion_tokens = 0
        return prompt * self.n + delta.index

    def echo(self, index: int) -> str:
        return self.echoes[index // self.n] if self.echoes else ""

    def logprobs(self, index: int, delta: Delta) -> Columns | None:
        if self.columns is None:
            return None
        table = self.tables.get(index)
        if table is None:
            prompt, _ = self.prompts[index // self.n]
            begun = b"" if isinstance(prompt, str) else self.tokens.unfinished(prompt)
            at = len(self.echo(index))
            table = TokenTable(self.tokens, self.columns, at, named=self.named, pending=begun)
            self.tables[index] = table
        return table.take(delta.token_ids, delta.logprobs)

    def echoed_logprobs(self, index: int) -> Columns | None:
        """The logprobs of the prompt, where an answer begins with it; its scores have come with its first answer."""
        prompt = index // self.n
        if self.columns is None or not self.echoes:
            return None
        table = TokenTable(self.tokens, self.columns, written=self.echo(index))
        return table.take(self.prompt_ids[prompt], self.prompt_scores[prompt])

    def prompt_ids_of(self, index: int) -> dict[str, Any]:
        """The ids of the prompt of an answer, where they are asked for."""
        return {"prompt_token_ids": self.prompt_ids[index // self.n]} if self.ids_wanted else {}

    def prompt_logprobs_of(self, prompt: int) -> list[dict[str, Any] | None] | None:
        """The logprobs of the prompt by themselves, where they are asked for."""
        if self.prompt_columns is None:
            return None
        return prompt_logprobs(self.tokens, self.prompt_scores[prompt], self.prompt_columns)


BEHIND_TEXT = b',"logprobs":null,"finish_reason":null}]'


class CompletionEvents(Events):
    """Text as it comes; the last event of an answer has the reason of its end."""

    def __init__(
        self, about: dict[str, Any], options: StreamOptions | None, converter: DeltaConverter
    ) -> None:
        super().__init__(about, options)
        self.converter = converter
        self.texts_alone = converter.columns is None and not converter.ids_wanted
        self.heads: dict[int, bytes] = {}
        """By answer that has begun: what each event with a text of it begins with."""

    def write(self, prompt: int, delta: Delta, chunks: list[bytes]) -> None:
        converter = self.converter
        index = converter.take(prompt, delta)
        head = self.heads.get(index)
        if head is not None and self.texts_alone and delta.finish_reason is None:
            if delta.text:  # the hot path: once for each token of the service
                chunks.append(head + encode(delta.text) + BEHIND_TEXT + self.tail)
            return
        text, logprobs = delta.text, converter.logprobs(index, delta)
        ids: dict[str, Any] = {"token_ids": delta.token_ids} if converter.ids_wanted else {}
        if head is None:
            self.heads[index] = b'%b,"choices":[{"index":%d,"text":' % (self.head, index)
            ids |= converter.prompt_ids_of(index)
            text = converter.echo(index) + text
            logprobs = joined(converter.echoed_logprobs(index), logprobs)
            converter.prompt_scores.pop(prompt, None)
        if not (text or logprobs or ids or delta.finish_reason):
            return
        choice = {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": finish_reason_of(delta.finish_reason),
        }
        chunks.append(self.chunk(encode(choice | ids)))


class WholeCompletion:
    """Folds the deltas of all prompts into one answer."""

    def __init__(self, about: dict[str, Any], converter: DeltaConverter, allowance: Allowance) -> None:
        self.about = about
        self.converter = converter
        self.allowance = allowance
        self.texts: defaultdict[int, list[str]] = defaultdict(list)
        self.token_ids: defaultdict[int, list[int]] = defaultdict(list)
        self.logprobs: defaultdict[int, JsonLists] = defaultdict(JsonLists)
        self.echoed: dict[int, JsonLists] = {}
        """By prompt: its logprobs, where answers begin with it."""
        self.prompt_logprobs: dict[int, msgspec.Raw] = {}
        self.reasons: dict[int, str | None] = {}
        self.usages: list[Usage] = []

    async def take(self, batches: Any) -> None:
        async for prompt, deltas in batches:
            for delta in deltas:
                index = self.converter.take(prompt, delta)
                if delta.prompt_logprobs is not None:
                    self.allowance.take(count_prompt(delta) * self.converter.n)
                    await asyncio.to_thread(self.keep_prompt, prompt)
                self.add(index, delta)

    def keep_prompt(self, prompt: int) -> None:
        """Keep the logprobs of a prompt as they are told: a hundred thousand take a tenth of a second."""
        converter = self.converter
        echoed = converter.echoed_logprobs(prompt * converter.n)
        if echoed is not None:
            self.echoed[prompt] = JsonLists()
            self.echoed[prompt].add(echoed)
        scores = converter.prompt_logprobs_of(prompt)
        if scores is not None:
            self.prompt_logprobs[prompt] = msgspec.Raw(encode(scores))
        del converter.prompt_scores[prompt]

    def add(self, index: int, delta: Delta) -> None:
        self.texts[index].append(delta.text)
        if self.converter.ids_wanted:
            self.token_ids[index] += delta.token_ids
        columns = self.converter.logprobs(index, delta)
        if columns is not None:
            self.allowance.take(count(delta))
            self.logprobs[index].add(columns)
        if delta.finish_reason is not None:
            self.reasons[index] = finish_reason_of(delta.finish_reason)
        if delta.usage is not None:
            self.usages.append(delta.usage)

    def body(self) -> dict[str, Any]:
        choices = [self.choice(index) for index in sorted(self.reasons)]
        return self.about | {"choices": choices, "usage": total_usage(self.usages)}

    def choice(self, index: int) -> dict[str, Any]:
        converter, prompt = self.converter, index // self.converter.n
        ids = {"token_ids": self.token_ids[index]} if converter.ids_wanted else {}
        scores = {"prompt_logprobs": self.prompt_logprobs[prompt]} if prompt in self.prompt_logprobs else {}
        wanted = converter.columns is not None
        return {
            "index": index,
            "text": converter.echo(index) + "".join(self.texts[index]),
            "logprobs": self.logprobs[index].lists(self.echoed.get(prompt)) if wanted else None,
            "finish_reason": self.reasons[index],
            **ids,
            **converter.prompt_ids_of(index),
            **scores,
        }
