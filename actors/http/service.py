"""The parts that every endpoint needs: clients of the gateway, and the facts about the model."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, ParamSpec, Protocol, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from tokenizers import Tokenizer

from ...protocol.client.asynchronous import AsyncClient
from ...protocol.errors import InvalidRequest, ServiceUnavailable, not_loaded
from ...protocol.limits import Limits
from ...protocol.messages import LoadedAdapter
from ...protocol.sampling import SamplingParams
from ...runtime.request_trace import TRACEPARENT
from ..text.prompts.chat_template import ChatTemplates
from ..text.prompts.prompts import Prompts
from ..text.vocabulary.pieces import UNREADABLE
from .defaults import Defaults
from .errors import STOPPED, Names, Problem, as_written
from .logprob_lists import MANY, LogprobBudget
from .responses.store import Store
from .tokens import TokenTexts
from .transport.events import Batches
from .transport.uploads import Uploads

MAX_GATEWAY_CLIENTS = 16
"""Clients of the gateway among which HTTP clients are spread: each takes two threads and eight descriptors, and with
more of them fewer HTTP clients share one."""


MAX_UNREAD_TOKENS = 20_000
"""Tokens of a request that may wait in memory because its client does not read, about 10 MB. One with logprobs counts
for as many as it has."""

MIN_UNREAD_STEPS = 64
"""Steps for which any client may be behind, however much each of them brings."""


MAX_GIVEN_CHARS = 64
"""Most characters of an ``X-Request-Id`` in the id of an answer, which has to be shorter than an id of the protocol."""

GIVEN = re.compile(r"[\w.:-]+", re.ASCII)


class NamesModel(Protocol):
    """A body that may name the model that it is for."""

    model: str | None


B = TypeVar("B", bound=NamesModel)
P = ParamSpec("P")
R = TypeVar("R")


class GatewayClients:
    """The clients of the gateway that this process is.

    The gateway and the scheduler are fair between clients. So HTTP clients at different addresses ask by different
    ones, and one that asks for much holds up nobody but itself and the few that share its own.
    """

    def __init__(self, connect: Callable[[], AsyncClient]) -> None:
        self.connect = connect
        self.own = connect()
        """For the service's own questions."""
        self.shared: dict[int, AsyncClient] = {}

    def of(self, address: str) -> AsyncClient:
        """The one for clients at an IP address."""
        number = zlib.crc32(address.encode()) % MAX_GATEWAY_CLIENTS
        found = self.shared.get(number)
        if found is None:
            found = self.shared[number] = self.connect()
        return found

    async def close(self) -> None:
        """Close them; whatever waits for an answer gets an error."""
        for client in (self.own, *self.shared.values()):
            await client.close()


def most_unread(params: SamplingParams, most_kept: int = 0) -> int:
    """Deltas, of which each step brings one for each answer, that may wait for a client. Of what is told all at once
    ``most_kept`` logprobs are kept, and as many may wait: its client cannot be behind, only the frontend can."""
    if most_kept and params.logprobs is not None:
        return most_kept // (1 + params.logprobs)
    return max(MAX_UNREAD_TOKENS // (1 + (params.logprobs or 0)), MIN_UNREAD_STEPS * params.n)


class Service:
    """The service that this frontend is of."""

    def __init__(
        self,
        connect: Callable[[], AsyncClient],
        texts: tuple[Tokenizer, ChatTemplates | str],
        model: str,
        version: str,
        bounds: Limits,
        metrics_prefix: str = "slipstream_",
        sanitize: bool = False,
        other_names: Sequence[str] = (),
        *,
        dev_mode: bool = False,
        defaults: Mapping[str, Mapping[str, Any]] | None = None,
        adapters: bool = False,
        routed: bool = False,
    ) -> None:
        """``connect`` makes a client of the gateway; ``texts`` is what ``load_texts`` returns. ``defaults`` are as in
        ``HttpOptions``."""
        self.clients = GatewayClients(connect)
        self.model = model
        self.names = (model, *other_names)
        """What a request may call it; answers have the first."""
        self.adapters = adapters
        """Any other name may be that of an adapter, which the scheduler knows."""
        self.routed = routed
        """A router is asked, whose services have adapters that it does not list."""
        self.version = version
        self.bounds = bounds
        self.defaults = Defaults(defaults or {}, self.names, bounds)
        self.dev_mode = dev_mode
        """There are endpoints for developers of the service."""
        self.profiled_since: float | None = None
        """When a profile was started that nobody has stopped, in seconds of the monotonic clock."""
        self.metrics_prefix = metrics_prefix
        tokenizer, chat_templates = texts
        self.prompts = Prompts(tokenizer, chat_templates, self.bounds.max_prompt_bytes, sanitize=sanitize)
        self.tokens = TokenTexts(tokenizer)
        self.started = int(time.time())
        self.draining = False
        self.stopped = False
        self.uploads = Uploads()
        self.logprobs = LogprobBudget()
        self.responses = Store()
        """What the Responses API keeps."""
        self.background: set[asyncio.Task[None]] = set()
        """Answers that nobody waits for."""
        self.long_work = ThreadPoolExecutor(1, "long-work")
        """What is made of large bodies, one at a time: together they never take more than one core."""
        self.statuses: Counter[int] = Counter()
        """How many requests were answered with each status."""
        self.errors: Counter[str] = Counter()
        """How many were answered with an error, by its reason."""

    @property
    def client(self) -> AsyncClient:
        return self.clients.own

    def client_of(self, request: Request) -> AsyncClient:
        """The client by which a request asks the gateway."""
        return self.clients.of("" if request.client is None else request.client.host)

    async def read(self, request: Request, kind: type[B]) -> B:
        """The body of a request that is for this service, and comes in time."""
        body = await self.uploads.read(request, kind)
        self.check(body.model)
        request.state.adapter = "" if body.model in (None, *self.names) else body.model
        return body

    async def read_apart(self, request: Request, kind: type[B]) -> B:
        """As ``read``, where the gateway is not asked, which knows whether there is an adapter of that name."""
        body = await self.read(request, kind)
        if (name := request.state.adapter) and not self.routed:
            # Not by the service's own client, whose question would wait for adapters that are loaded or unloaded.
            loaded = await self.client_of(request).adapters()
            if name not in (adapter.name for adapter in loaded):
                raise self.no_adapter(name, loaded)
        return body

    def name_of(self, request: Request) -> str:
        """The name of the model in answers to a request."""
        return request.state.adapter or self.model

    def check(self, model: str | None) -> None:
        """Refuse what is for another model, and what comes too late."""
        if self.draining:
            raise ServiceUnavailable("the service is stopping and accepts nothing new")
        if model is not None and model not in self.names and not (self.adapters and model):
            raise self.not_served(model)

    def no_adapter(self, name: str, loaded: Sequence[LoadedAdapter]) -> Problem:
        """The refusal of a request for what is neither the model nor one of its adapters."""
        return self.not_served(name, not_loaded("adapter", name, (adapter.name for adapter in loaded)))

    def not_served(self, model: str, adapters: str = "") -> Problem:
        """The refusal of a request for another model, which says what there is; ``adapters`` are the words of
        ``not_loaded``."""
        message = f"the model {model!r:.200} is not served here; this is {' or '.join(map(repr, self.names))}"
        return Problem(
            404, message + (adapters and f", and {adapters}"), param="model", code="model_not_found"
        )

    async def ask(
        self,
        request: Request,
        names: Names,
        params: SamplingParams,
        number: int = 0,
        *,
        whole: bool = False,
        **asked: Any,
    ) -> Batches:
        """The gateway's answer to prompt ``number`` of a request; ``names`` are those that the parameters have in its
        body. ``whole``: nothing is told before all of it is there, so that its client cannot be too slow."""
        trace = request.headers.get("traceparent", "")
        if TRACEPARENT.fullmatch(trace):  # as its specification has it, one that is none is none
            asked["traceparent"] = trace
        if request.state.adapter:
            params = msgspec.structs.replace(params, adapter=request.state.adapter)
            names = names | {"adapter": "model"}
        most = most_unread(params, self.logprobs.most_of_one if whole else 0)
        stream = self.client_of(request).batches(params=params, max_waiting=most, **asked)
        try:
            async with aclosing(stream):
                async for deltas in stream:
                    yield number, deltas
        except InvalidRequest as error:
            if error.code == "model_not_found":
                raise self.not_served(request.state.adapter, str(error)) from None
            raise as_written(error, names) from None
        except ServiceUnavailable:
            if self.stopped:
                raise ServiceUnavailable(STOPPED) from None
            raise

    async def beside(self, request: Request, work: Callable[P, R], *given: P.args, **more: P.kwargs) -> R:
        """The result of ``work``, which runs in a thread so that no stream waits for it."""
        pool = self.long_work if request.state.large else None
        return await asyncio.get_running_loop().run_in_executor(pool, lambda: work(*given, **more))

    def in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Work that goes on when its request has been answered; a stop waits for it as for any other."""
        task = asyncio.get_running_loop().create_task(work)
        self.background.add(task)
        task.add_done_callback(self.background.discard)
        return task

    async def stop(self) -> None:
        """End every request that is under way with an error."""
        self.stopped = self.draining = True
        self.uploads.stop()
        await self.clients.close()

    def about(self, request: Request, kind: str, object: str) -> dict[str, Any]:
        """The fields with which every answer begins. Its id, which traces and logs have too, holds that of its request;
        a client may give the same to several."""
        own = request.state.request_id
        if "x-request-id" in request.headers:
            given = own[:MAX_GIVEN_CHARS]
            own = f"{given}-{uuid.uuid4().hex[:12]}" if GIVEN.fullmatch(given) else uuid.uuid4().hex
        id, created = f"{kind}-{own}", int(time.time())
        return {"id": id, "object": object, "created": created, "model": self.name_of(request)}

    def answer(self, body: Any) -> Response:
        return Response(msgspec.json.encode(body), media_type="application/json")

    async def put_together(self, body: Callable[[], Any], *, many: int) -> Response:
        """The answer with what ``body`` returns, which has so ``many`` logprobs in it."""
        if many < MANY:
            return self.answer(body())
        return await asyncio.to_thread(lambda: self.answer(body()))

    def text_of(self, tokens: list[int], where: str) -> str:
        """The text of token ids that stand in the field ``where`` of a body."""
        most, last = self.bounds.max_model_len, self.bounds.vocab_size - 1
        if len(tokens) > most:
            raise InvalidRequest(f"{where} has {len(tokens)} tokens; the limit is {most}", param=where)
        for token in tokens:
            if not 0 <= token <= last:
                raise InvalidRequest(
                    f"{where} has {token}; a token id of this model is 0 to {last}", param=where
                )
        # A batch of one, since that gives up the interpreter lock.
        return self.prompts.tokenizer.decode_batch([tokens], skip_special_tokens=False)[0]

    def echo(self, prompt: str | list[int], where: str, *, answered: bool) -> str:
        """The text of a prompt. With ``answered`` its answer follows, which has the whole of a character that the
        prompt ends in the middle of."""
        if isinstance(prompt, str):
            return prompt
        text = self.text_of(prompt, where)
        unfinished = len(self.tokens.unfinished(prompt)) if answered else 0
        return text[: max(len(text) - unfinished, len(text.rstrip(UNREADABLE)))]
