"""Chat completions: a conversation goes in, the next message of it comes out, whole or as events."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ....protocol.client.outputs import Collector, CompletionOutput
from ....protocol.errors import InvalidRequest
from ....protocol.formats.ids import CallIds
from ....protocol.formats.reader import CallPart, ChatDelta, is_complete
from ....protocol.formats.tools import PARAMETERS, NamedTool, Offer, offer
from ....protocol.limits import Limits
from ....protocol.messages import Delta, Usage
from ....protocol.sampling import SamplingParams
from ..bodies.requests import (
    ChatBody,
    ChatFields,
    Given,
    StreamOptions,
    ending_of,
    for_template,
    of_prompt,
    sampling_params,
    schema_of,
)
from ..errors import Names, Problem, as_written
from ..logprob_lists import Allowance, JsonLists, count, count_prompt
from ..service import Service
from ..tokens import TokenTexts, prompt_logprobs
from ..transport.events import (
    Batches,
    Events,
    encode,
    finish_reason_of,
    open_stream,
    total_usage,
    unless_left,
)


async def create(service: Service, request: Request) -> Response:
    body = await service.read(request, ChatBody)
    about = service.about(request, "chatcmpl", "chat.completion.chunk" if body.stream else "chat.completion")
    batches = ask(service, request, body, about["id"])
    tokens = service.tokens if body.logprobs else None
    forced = isinstance(body.tool_choice, NamedTool) and body.tool_choice.function is not None
    converter = DeltaConverter(
        tokens, body.top_logprobs or 0, ids_wanted=bool(body.return_token_ids), calls_end=not forced
    )
    if body.stream:
        return await open_stream(request, batches, ChatEvents(about, body.stream_options, converter))
    with service.logprobs.allowance() as allowance:
        whole = WholeChat(about, converter, allowance)
        await unless_left(request.receive, whole.take(batches))
        scored = body.prompt_logprobs

        def made() -> dict[str, Any]:
            if scored is None:
                return whole.body()
            return whole.body() | {
                "prompt_logprobs": prompt_logprobs(service.tokens, whole.prompt_scores, scored)
            }

        return await service.put_together(made, many=allowance.taken)


EFFORTS = ("reasoning_effort", "verbosity")
"""Fields for the chat template, which many models have no use for."""


def template_arguments(service: Service, body: ChatFields) -> dict[str, Any]:
    """The arguments of the chat template beside messages and tools, such as the reasoning effort if it takes one."""
    given = for_template(body)
    efforts = {name: getattr(body, name) for name in EFFORTS if getattr(body, name) is not None}
    templates = service.prompts.chat_templates
    if efforts and not isinstance(templates, str):
        known = templates.choose(given | ({"tools": body.tools} if body.tools else {})).names
        given = {name: value for name, value in efforts.items() if name in known} | given
    return given | ending_of(body)


def ask(
    service: Service, request: Request, body: ChatFields, id: str, written: Names | None = None
) -> Batches:
    """The answer to a conversation, as ``ChatDelta``; ``written`` are the names that fields of ``body`` have in the
    body of the request, if that was another."""
    service.defaults.fill(body)
    written = written or {}
    where = written.get(PARAMETERS, PARAMETERS)
    offered = offer(body.tools, body.tool_choice, body.parallel_tool_calls, where)
    try:
        params, names = params_of(body, offered, service.bounds)
    except InvalidRequest as error:
        raise as_written(error, written) from None
    places = {name: written.get(place, place) for name, place in names.items()}
    return service.ask(
        request,
        places | {name: place for name, place in written.items() if name not in places},
        whole=not body.stream,
        messages=body.messages,
        params=params,
        offered=offered,
        new_ids=lambda: new_ids(service, body),
        chat_template_kwargs=template_arguments(service, body),
        request_id=id,
    )


def params_of(body: ChatFields, offered: Offer, bounds: Limits) -> tuple[SamplingParams, Names]:
    if body.top_logprobs and not body.logprobs:
        raise Problem(400, "top_logprobs is of no use without logprobs=true", param="top_logprobs")
    if None not in (body.max_tokens, body.max_completion_tokens):
        raise Problem(400, "give max_completion_tokens or max_tokens, not both", param="max_tokens")
    schema = schema_of(body.response_format)
    if (
        offered.schema is not None
    ):  # the answer is a call, without a text that the response_format would be of
        schema = Given(offered.schema, offered.where)
    most = Given(body.max_tokens, "max_tokens")
    if body.max_completion_tokens is not None:
        most = Given(body.max_completion_tokens, "max_completion_tokens")
    params, names = sampling_params(
        body,
        bounds,
        max_tokens=most,
        logprobs=Given((body.top_logprobs or 0) if body.logprobs else None, "top_logprobs"),
        prompt_logprobs=of_prompt(body),
        json_schema=schema,
    )
    return params, offered.places | names


def new_ids(service: Service, body: ChatFields) -> CallIds:
    """For the calls of an answer, in the form that the model's template takes."""
    templates = service.prompts.chat_templates
    form = "any" if isinstance(templates, str) else templates.choose({"tools": body.tools}).style.call_ids
    before = [message.get("tool_calls") for message in body.messages]
    return CallIds(form, sum(len(calls) for calls in before if isinstance(calls, list)))


class DeltaConverter:
    """Converts deltas into fields of OpenAI's answers, the same for a whole answer and for events."""

    def __init__(
        self,
        tokens: TokenTexts | None,
        top_logprobs: int,
        *,
        ids_wanted: bool = False,
        calls_end: bool = True,
    ) -> None:
        """``calls_end``: an answer with calls says so by its ``finish_reason``. Where the caller named the function,
        OpenAI's says ``stop``."""
        self.tokens = tokens
        self.ids_wanted = ids_wanted
        self.top_logprobs = top_logprobs
        self.calls_end = calls_end
        self.arguments: dict[int, list[str]] = {}
        """The arguments of the last call of each answer that has one."""

    def note(self, delta: ChatDelta) -> None:
        for part in delta.tool_calls:
            if part.name:
                self.arguments[delta.index] = []
            self.arguments[delta.index].append(part.arguments)

    def logprobs(self, delta: Delta) -> dict[str, Any] | None:
        if self.tokens is None:
            return None
        return {"content": self.tokens.for_chat(delta, self.top_logprobs), "refusal": None}

    def finish_reason(self, delta: Delta) -> str | None:
        reason = finish_reason_of(delta.finish_reason)
        if reason != "stop" or delta.index not in self.arguments or not self.calls_end:
            return reason
        cut = delta.stop_reason is not None and not is_complete("".join(self.arguments[delta.index]))
        return reason if cut else "tool_calls"


def as_call(part: CallPart) -> dict[str, Any]:
    """Part of a call as an event has it."""
    function = {"arguments": part.arguments}
    if not part.name:
        return {"index": part.index, "function": function}
    return {
        "index": part.index,
        "id": part.id,
        "type": "function",
        "function": {"name": part.name} | function,
    }


def as_thoughts(text: str) -> dict[str, str]:
    """Thoughts under both names that clients know."""
    return {"reasoning_content": text, "reasoning": text} if text else {}


def chat_usage(usages: Sequence[Usage], reasoning_tokens: int) -> dict[str, Any]:
    """That of a completion, and how much of it were thoughts."""
    return total_usage(usages) | {"completion_tokens_details": {"reasoning_tokens": reasoning_tokens}}


BEHIND_TEXT = b'},"logprobs":null,"finish_reason":null}]'


class ChatEvents(Events):
    """The role first, then thoughts, text and calls as they come, then the reason of the end."""

    def __init__(
        self, about: dict[str, Any], options: StreamOptions | None, converter: DeltaConverter
    ) -> None:
        super().__init__(about, options)
        self.converter = converter
        self.texts_alone = converter.tokens is None and not converter.ids_wanted
        self.heads: dict[int, bytes] = {}
        """By answer that has begun: what each event with a text of it begins with."""
        self.reasoning_tokens = 0

    def usage(self) -> dict[str, Any]:
        return chat_usage(self.usages, self.reasoning_tokens)

    def write(self, prompt: int, delta: Delta, chunks: list[bytes]) -> None:
        assert isinstance(delta, ChatDelta)
        index = delta.index
        self.reasoning_tokens += delta.reasoning_tokens
        head = self.heads.get(index) or self.write_begin(delta, chunks)
        if self.texts_alone and not delta.reasoning and not delta.tool_calls:
            if delta.text:  # the hot path: once for each token of the service
                chunks.append(head + encode(delta.text) + BEHIND_TEXT + self.tail)
        else:
            self.write_parts(delta, chunks)
        if delta.finish_reason is not None:
            self.write_choice(chunks, index, {}, finish_reason=self.converter.finish_reason(delta))

    def write_begin(self, delta: ChatDelta, chunks: list[bytes]) -> bytes:
        choice = {
            "index": delta.index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        prompt = b""
        if self.converter.ids_wanted and delta.prompt_token_ids is not None:
            prompt = b',"prompt_token_ids":' + encode(delta.prompt_token_ids)
        chunks.append(self.chunk(encode(choice), prompt))
        head = b'%b,"choices":[{"index":%d,"delta":{"content":' % (self.head, delta.index)
        return self.heads.setdefault(delta.index, head)

    def write_parts(self, delta: ChatDelta, chunks: list[bytes]) -> None:
        index, converter = delta.index, self.converter
        converter.note(delta)
        logprobs = converter.logprobs(delta)
        brought: dict[str, Any] = as_thoughts(delta.reasoning)
        if delta.text or not (brought or delta.tool_calls):
            brought["content"] = delta.text
        ids = {"token_ids": delta.token_ids} if converter.ids_wanted and delta.token_ids else {}
        if (brought and (delta.text or delta.reasoning)) or (logprobs and logprobs["content"]) or ids:
            self.write_choice(chunks, index, brought, logprobs, beside=ids)
        for part in delta.tool_calls:
            self.write_choice(chunks, index, {"tool_calls": [as_call(part)]})

    def write_choice(
        self,
        chunks: list[bytes],
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
        beside: dict[str, Any] | None = None,
    ) -> None:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        choice |= beside or {}
        chunks.append(self.chunk(encode(choice)))


class WholeChat:
    """Folds the deltas of one request into one answer."""

    def __init__(self, about: dict[str, Any], converter: DeltaConverter, allowance: Allowance) -> None:
        self.about = about
        self.converter = converter
        self.allowance = allowance
        self.collector = Collector(about["id"])
        self.logprobs: defaultdict[int, JsonLists] = defaultdict(JsonLists)
        self.reasons: dict[int, str | None] = {}
        self.usages: list[Usage] = []
        self.reasoning_tokens = 0
        self.prompt_scores: list[dict[str, float] | None] = []

    async def take(self, batches: Batches) -> None:
        async for _, deltas in batches:
            for delta in deltas:
                assert isinstance(delta, ChatDelta)
                self.add(delta)

    def add(self, delta: ChatDelta) -> None:
        index, converter = delta.index, self.converter
        converter.note(delta)
        self.reasoning_tokens += delta.reasoning_tokens
        if converter.tokens is not None:
            self.allowance.take(count(delta))
            self.logprobs[index].add({"content": converter.tokens.for_chat(delta, converter.top_logprobs)})
            delta.logprobs = []
        if delta.finish_reason is not None:
            self.reasons[index] = converter.finish_reason(delta)
        if delta.usage is not None:
            self.usages.append(delta.usage)
        if delta.prompt_logprobs is not None:
            self.allowance.take(count_prompt(delta))
            self.prompt_scores, delta.prompt_logprobs = delta.prompt_logprobs, None
        self.collector.add(delta)

    def body(self) -> dict[str, Any]:
        output = self.collector.output()
        choices = [self.choice(answer) for answer in output.outputs]
        prompt = {"prompt_token_ids": output.prompt_token_ids} if self.converter.ids_wanted else {}
        usage = chat_usage(self.usages, self.reasoning_tokens)
        return self.about | {"choices": choices, "usage": usage} | prompt

    def choice(self, answer: CompletionOutput) -> dict[str, Any]:
        calls = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in answer.tool_calls
        ]
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        message |= as_thoughts(answer.reasoning)
        if calls:
            message |= {"content": answer.text or None, "tool_calls": calls}
        wanted = self.converter.tokens is not None
        content = {"content": [], "refusal": None} | self.logprobs[answer.index].lists()
        logprobs = content if wanted else None
        return {
            "index": answer.index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": self.reasons[answer.index],
            **({"token_ids": answer.token_ids} if self.converter.ids_wanted else {}),
        }
