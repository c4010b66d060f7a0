"""The messages between a client and the gateway: maps with string keys, so that any language can speak it.

A request has two names. The client chooses an ``id`` (a string, unique on its connection); between actors
(``internal.py``) ``request`` is the number that the gateway gave it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .limits import Limits
from .sampling import SamplingParams
from .trace import Recorded

# --- client to gateway -------------------------------------------------------------------


class FromClient(msgspec.Struct, tag_field="t", kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of what a client may send. An unknown field is refused: it would have no effect."""


class Hello(FromClient, tag="hello"):
    """First message of a connection; answered by ``Welcome``, or by ``Error`` if the version is not spoken."""

    protocol: list[int]
    """Major and minor version that the client speaks, ``[1, 0]``. The major one has to be the service's."""
    client: str = ""
    """Name and version of the client, for people who look."""


class Generate(FromClient, tag="generate"):
    """Ask for an answer to ``prompt`` or to ``messages``, one of the two; answered by ``Deltas`` until one has a
    ``finish_reason`` (with ``n`` answers, until each has had its own), or by one ``Error``."""

    id: str
    """1 to 128 characters, the client's choice; of no other request that is open on this connection."""
    prompt: str | list[int] | None = None
    """Text, or token ids of the model."""
    messages: list[dict[str, Any]] | None = None
    """A conversation, ``[{"role": "user", "content": "…"}, …]``, which the model's chat template turns into text."""
    params: SamplingParams = SamplingParams()
    received: list[int] = []
    """Token ids of the answer that the client already has, when it resends a request after a lost connection."""
    received_of_others: list[list[int]] = []
    """With ``n`` > 1 the same of answers 1, 2, …; those left out have nothing."""
    return_prompt_ids: bool = False
    """Tell the token ids of the prompt with the first delta."""
    age_s: float = 0.0
    """Seconds since it was first sent: a request that is resent does not get a new deadline."""
    tools: list[dict[str, Any]] | None = None
    """With ``messages``: what the model may call, for its chat template; refused if the template takes none."""
    chat_template_kwargs: dict[str, Any] = {}
    """With ``messages``: what else the model's own chat template knows, ``enable_thinking`` for example. And how the
    prompt ends: ``add_generation_prompt`` (true: with the beginning of the next message) and ``continue_final_message``
    (with the text of the last one, which the answer goes on with)."""
    add_special_tokens: bool = True
    """With a text as ``prompt``: put before and after it what the model's tokenizer puts there, such as the token that
    begins a text. Token ids are taken as they are, and a chat template writes its own."""
    marks: bool = False
    """Write the marks of the model's ``formats``, which otherwise have no text where they are special tokens; and first
    the mark that a prompt ends with, if thoughts begin with it. The text can then be parted into thoughts, calls and
    the answer."""
    calls: dict[str, dict[str, Any]] = {}
    """With ``marks``: functions by name, each with a JSON Schema of its arguments, to which calls that the model
    chooses to make are held, if ``formats`` has ``strict``. What ``params`` say that a whole answer matches
    (``json_schema``, ``regex``, ``choice``, ``lark``) then holds for one that is no calls; beside other grammars calls
    are held to nothing."""
    traceparent: str = ""
    """The trace that the request is part of, as W3C's Trace Context has it; empty: of none. Of no effect where the
    service sends no traces."""


class Abort(FromClient, tag="abort"):
    """Stop a request: its last delta has ``finish_reason="abort"``. For an id that is not open nothing happens."""

    id: str


class Ping(FromClient, tag="ping"):
    """Answered by ``Pong`` with the same ``nonce``."""

    nonce: int = 0
    """Any whole number of up to 64 bits."""


class GetStats(FromClient, tag="stats"):
    """Answered by ``Stats``."""


class GetTrace(FromClient, tag="trace"):
    """Answered by ``Trace``: the newest spans and moments that every actor has in its rings. Read one before asking for
    the next: beside one that is being gathered two may wait, and another question is answered by ``Error``
    "overloaded"."""

    seconds: float | None = None
    """Only what ended within this time until now; None: all that is there."""


class GetAdapters(FromClient, tag="adapters"):
    """Answered by ``Adapters``: those that requests may name."""


class LoadAdapter(FromClient, tag="load_adapter"):
    """Load an adapter while the service runs, where it was started with ``--enable-lora-updates``; answered by
    ``Adapters`` when requests may name it, or with an ``error``. One that is loaded already is no error."""

    name: str
    """The name by which requests ask for it; no other adapter has it."""
    path: str
    """Its folder, on the machine of the service."""


class UnloadAdapter(FromClient, tag="unload_adapter"):
    """Take an adapter away. No request can name it from now on; those that are under way are finished with it, and
    ``Adapters`` answers when they are."""

    name: str


class GetActors(FromClient, tag="actors"):
    """Answered by ``Actors``: how the service and each of its actors are."""


class ResetCache(FromClient, tag="reset_cache"):
    """Answered by ``CacheReset``: what is asked from then on begins with nothing that was computed before. Only where
    the service is started with ``--server-dev-mode``."""


# --- gateway to client -------------------------------------------------------------------


class ToClient(msgspec.Struct, tag_field="t", kw_only=True, omit_defaults=True):
    """Base of what a client receives. Unknown fields are ignored: a later minor version may add some."""


class Formats(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The formats in which the model of a service writes thoughts and calls, by vLLM's names of these formats."""

    reasoning: str | None = None
    """The format of its thoughts; null: it marks none."""
    tool_calls: str | None = None
    """The format of its calls; null: one that needs no marks of its own."""
    strict: bool = False
    """The service can hold calls in this format to schemas, as a request's ``calls`` asks."""


NO_FORMATS = Formats()


class Welcome(ToClient, tag="welcome"):
    """Answers ``Hello``: from now on this connection may ask."""

    protocol: list[int]
    """Major and minor version that the service speaks."""
    server: str
    """Name and version of the program."""
    model: str
    """Name of the model, as it was given to the service."""
    limits: Limits
    formats: Formats = NO_FORMATS


class Usage(msgspec.Struct, kw_only=True, gc=False):
    """The numbers of tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    """The tokens of all ``n`` answers together."""
    cached_tokens: int = 0
    """The tokens of the prompt whose keys and values were in the prefix cache."""


class Delta(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """What is new in one answer. Exactly one delta of an answer has a ``finish_reason``, its last.

    A request with ``n`` answers is over when all of them are, and the last delta of all has the ``usage``.
    """

    id: str
    """The id of the request."""
    text: str = ""
    """May be empty beside ``token_ids``: half a character, or what may become a stop text, waits for more."""
    token_ids: list[int] = []
    index: int = 0
    """The number of the answer, from 0 to ``n`` - 1."""
    finish_reason: str | None = None
    """``stop``, ``length`` or ``abort``."""
    stop_reason: str | int | None = None
    """The stop text or token id that ended the answer."""
    usage: Usage | None = None
    """With the last delta of the request."""
    prompt_token_ids: list[int] | None = None
    """With the first delta, if ``return_prompt_ids`` asks for it."""
    logprobs: list[dict[str, float]] = []
    """One map for each of ``token_ids``, if the request asks: token id to logprob, of the sampled token and
    of the ``logprobs`` most likely ones. Keys are strings because all maps have string keys here."""
    prompt_logprobs: list[dict[str, float] | None] | None = None
    """With the first delta of answer 0, if the request asks: the same for each token of the prompt; nil for the first,
    which nothing comes before."""


class Deltas(ToClient, tag="deltas"):
    """All that one step brought to one client."""

    items: list[Delta]


class Error(ToClient, tag="error"):
    """The end of request ``id``; without an id, a complaint about the connection."""

    code: str
    """For programs: see the table of errors."""
    message: str
    """For people: the value, the limit and what to do."""
    id: str | None = None
    retry_after_s: float | None = None
    """With ``overloaded``: how many seconds to wait before the request is tried again."""
    param: str | None = None
    """The field that is wrong: its path, such as ``messages[0].content``, or the bare name of a sampling parameter."""


class Pong(ToClient, tag="pong"):
    """Answers ``Ping``. One with nonce 0 that nobody asked for comes when a request is open and nothing else was
    sent for a second; it needs no answer."""

    nonce: int = 0


GAUGES = frozenset(
    (
        *("num_requests_running", "num_requests_waiting", "requests_open", "max_num_seqs"),
        *("kv_cache_usage_perc", "kv_cache_blocks", "kv_cache_block_size"),
    )
)
"""Names in ``Stats`` that say how something is now; all others only grow, but for those of ``is_gauge``."""

ADAPTER_GAUGE = "adapter_"
"""The prefix of the gauges of adapters: ``adapter_places``, and for each adapter with such requests
``adapter_running_`` or ``adapter_waiting_`` and its name."""


def is_gauge(name: str) -> bool:
    """Whether this in ``Stats`` says how something is now."""
    return name in GAUGES or name.startswith(ADAPTER_GAUGE)


class Stats(ToClient, tag="stats"):
    """Counters since the start of the service, and gauges as they are now."""

    counters: dict[str, float]
    """Values by name. A later version may add names."""


class Trace(ToClient, tag="trace"):
    """Spans and moments, as packed little-endian records since they can be many: oldest first, times in ns."""

    actors: dict[str, Recorded]
    since_ns: int
    """Begin of the time that was asked for, on the monotonic clock of the service's machine."""
    until_ns: int
    """The time at which the trace was asked for."""


class ActorState(msgspec.Struct, kw_only=True):
    """One actor, or another process of the service, as the supervisor knows it."""

    name: str
    role: str = "actor"
    """``actor``; ``frontend``, a client of the others; ``spare``: it waits to be the next incarnation of an actor, and
    nobody waits for it; ``keeper``: it holds the weights while the executor starts again, and nobody waits for it;
    or ``service``: one that a router stands before, by its endpoint, of which it knows no pid."""
    state: str
    """``starting``, ``ready``, ``draining``, ``hung`` (has work and makes no progress), or ``dead``: it waits for
    its restart."""
    pid: int
    epoch: int
    """Number of its incarnation; a restarted actor has a higher one."""
    restarts: int = 0
    """Since the start of the service."""
    uptime_s: float = 0.0
    """Since this incarnation was started."""
    mailbox_depth: int = 0
    """Messages of other actors that it has not taken in yet."""
    last_progress_s: float = 0.0
    """Seconds since it was last seen to have handled something."""
    working: bool = False
    """Something is under way that only this actor can bring forward."""
    busy_s: float = 0.0
    """Spent in handling messages, by this incarnation."""
    ready_s: float | None = None
    """From the start of this incarnation to when it was ready; null: it is not."""
    full_speed_s: float | None = None
    """Seconds until it was as fast as it gets: an executor with all its CUDA graphs; null: it is not."""


class Actors(ToClient, tag="actors"):
    """The actors in the order of their start, and what follows for the service as a whole."""

    actors: list[ActorState]
    live: bool
    """No actor hangs. False for long: restart the service."""
    ready: bool
    """Every actor is ready and requests are taken."""
    draining: bool = False
    """The service is stopping: what is under way is finished, nothing new is taken."""


class CacheReset(ToClient, tag="cache_reset"):
    """Answers ``ResetCache``."""

    done: bool
    """False: this service does not do that."""


class LoadedAdapter(msgspec.Struct, kw_only=True):
    """An adapter that requests may name."""

    name: str
    path: str
    """The folder that it was read from."""


class Adapters(ToClient, tag="adapters"):
    """Answers ``GetAdapters``, ``LoadAdapter`` and ``UnloadAdapter``, each by one, in the order of the questions of a
    kind: ask for one change after the other."""

    adapters: list[LoadedAdapter]
    """The adapters that are loaded now."""
    code: str = ""
    """The code of the error; empty: it was done."""
    error: str = ""
    """Why it was not done."""


PublicIn = (
    Hello | Generate | Abort | Ping | GetStats | GetTrace | GetActors | ResetCache | GetAdapters | LoadAdapter
    | UnloadAdapter
)  # fmt: skip
PublicOut = Welcome | Deltas | Error | Pong | Stats | Trace | Actors | CacheReset | Adapters
