"""The messages between a client and the gateway: maps with string keys, so that any language can read and write them.

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
    """Name and version of the client, for people who look into the service."""


class Generate(FromClient, tag="generate"):
    """Ask for an answer to ``prompt`` or to ``messages``, one of the two; answered by ``Deltas`` until one has a
    ``finish_reason`` (with ``n`` answers, until each has had its own), or by one ``Error``."""

    id: str
    """1 to 128 characters, chosen by the client; no other open request of this connection may have it."""
    prompt: str | list[int] | None = None
    """Text, or token ids of the model."""
    messages: list[dict[str, Any]] | None = None
    """A conversation, ``[{"role": "user", "content": "…"}, …]``, which the model's chat template turns into text."""
    params: SamplingParams = SamplingParams()
    received: list[int] = []
    """Token ids of the answer that the client already has, when it resends a request after a lost connection."""
    received_of_others: list[list[int]] = []
    """With ``n`` > 1, the same of answers 1, 2, …; of answers that are left out, nothing was received."""
    return_prompt_ids: bool = False
    """Send the token ids of the prompt with the first delta."""
    age_s: float = 0.0
    """Seconds since the request was first sent, so that a resent request does not get a new deadline."""
    tools: list[dict[str, Any]] | None = None
    """With ``messages``: the functions that the model may call, for its chat template; refused if the template takes
    none."""
    chat_template_kwargs: dict[str, Any] = {}
    """With ``messages``: further arguments of the model's chat template, such as ``enable_thinking``. Two of them say
    how the prompt ends: ``add_generation_prompt`` (true: with the beginning of the next message) and
    ``continue_final_message`` (true: with the text of the last message, which the answer continues)."""
    add_special_tokens: bool = True
    """With a text as ``prompt``: add the special tokens that the model's tokenizer puts before and after a text. Token
    ids are taken as they are, and a chat template writes its own special tokens."""
    marks: bool = False
    """Write the marks of the model's ``formats`` into the text; otherwise marks that are special tokens have no text.
    If the prompt ends with the mark that begins thoughts, the text begins with it. So the text can be divided into
    thoughts, calls and the answer."""
    calls: dict[str, dict[str, Any]] = {}
    """With ``marks``: functions by name, each with a JSON Schema of its arguments. If ``formats`` has ``strict``, calls
    that the model chooses to make follow these schemas. A grammar for the whole answer in ``params`` (``json_schema``,
    ``regex``, ``choice``, ``lark``) then applies to answers without calls; beside other grammars the schemas have no
    effect."""
    traceparent: str = ""
    """The trace that the request is part of, in the form of W3C's Trace Context; empty: it is part of none. It has no
    effect where the service sends no traces."""


class Abort(FromClient, tag="abort"):
    """Stop a request: its last delta has ``finish_reason="abort"``. If no request with this id is open, nothing
    happens."""

    id: str


class Ping(FromClient, tag="ping"):
    """Answered by ``Pong`` with the same ``nonce``."""

    nonce: int = 0
    """Any whole number of up to 64 bits."""


class GetStats(FromClient, tag="stats"):
    """Answered by ``Stats``."""


class GetTrace(FromClient, tag="trace"):
    """Answered by ``Trace``: the newest spans and moments in the rings of every actor. Read one trace before asking for
    the next: while one is gathered two more may wait, and any further question is answered by ``Error``
    "overloaded"."""

    seconds: float | None = None
    """The seconds before now; only what ended within them is sent. Null: all that is there."""


class GetAdapters(FromClient, tag="adapters"):
    """Answered by ``Adapters``: those that requests may name."""


class LoadAdapter(FromClient, tag="load_adapter"):
    """Load an adapter while the service runs, if it was started with ``--enable-lora-updates``. Answered by
    ``Adapters`` when requests may name the adapter, or when it cannot be loaded, with an ``error``. If it is loaded
    already, that is no error."""

    name: str
    """The name by which requests ask for it; no other adapter may have it."""
    path: str
    """Its folder, on the machine of the service."""


class UnloadAdapter(FromClient, tag="unload_adapter"):
    """Unload an adapter. New requests cannot name it from now on; those that are under way are finished with it. Then
    comes the answer, ``Adapters``."""

    name: str


class GetActors(FromClient, tag="actors"):
    """Answered by ``Actors``: the states of the service and of each of its actors."""


class ResetCache(FromClient, tag="reset_cache"):
    """Empty the prefix cache, if the service was started with ``--server-dev-mode``: later requests use nothing that
    was computed before. Answered by ``CacheReset``."""


# --- gateway to client -------------------------------------------------------------------


class ToClient(msgspec.Struct, tag_field="t", kw_only=True, omit_defaults=True):
    """Base of what a client receives. Unknown fields are ignored: a later minor version may add some."""


class Formats(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The formats in which the model of a service writes thoughts and calls, by vLLM's names of these formats."""

    reasoning: str | None = None
    """The format of its thoughts; null: it marks no thoughts."""
    tool_calls: str | None = None
    """The format of its calls; null: a format that needs no marks."""
    strict: bool = False
    """Whether the service can make calls in this format follow schemas, as ``calls`` of a request asks."""


NO_FORMATS = Formats()


class Welcome(ToClient, tag="welcome"):
    """Answers ``Hello``: from now on requests may be sent on this connection."""

    protocol: list[int]
    """Major and minor version that the service speaks."""
    server: str
    """Name and version of the program."""
    model: str
    """Name of the model, as given to the service."""
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
    """What is new in one answer. Exactly one delta of an answer has a ``finish_reason``: its last.

    A request with ``n`` answers is over when all of them are, and the very last delta has the ``usage``.
    """

    id: str
    """The id of the request."""
    text: str = ""
    """May be empty although there are ``token_ids``: an incomplete character, or a possible beginning of a stop text,
    is held back until more has come."""
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
    """One map for each of ``token_ids``, if the request asks for them: from token id to logprob, for the sampled token
    and the ``logprobs`` most likely ones. The keys are strings, as in all maps here."""
    prompt_logprobs: list[dict[str, float] | None] | None = None
    """With the first delta of answer 0, if the request asks for them: the same for each token of the prompt; null for
    the first, which nothing precedes."""


class Deltas(ToClient, tag="deltas"):
    """All deltas of one step for one client."""

    items: list[Delta]


class Error(ToClient, tag="error"):
    """The end of request ``id``; without an id, an error of the connection itself."""

    code: str
    """The code, for programs: see the table of errors."""
    message: str
    """The message, for people: the value, the limit and what to do."""
    id: str | None = None
    retry_after_s: float | None = None
    """With ``overloaded``: how many seconds to wait before the request is tried again."""
    param: str | None = None
    """The field that is wrong: its path, such as ``messages[0].content``, or the bare name of a sampling parameter."""


class Pong(ToClient, tag="pong"):
    """Answers ``Ping``. While a request is open, the service also sends one with nonce 0 unasked after a second in
    which it sent nothing else; it needs no answer."""

    nonce: int = 0


GAUGES = frozenset(
    (
        *("num_requests_running", "num_requests_waiting", "requests_open", "max_num_seqs"),
        *("kv_cache_usage_perc", "kv_cache_blocks", "kv_cache_block_size"),
    )
)
"""Names in ``Stats`` that are gauges. All others are counters, which only grow, but for those of ``is_gauge``."""

ADAPTER_GAUGE = "adapter_"
"""The prefix of the gauges of adapters: ``adapter_slots``, and for each adapter with such requests
``adapter_running_`` or ``adapter_waiting_`` and its name."""


def is_gauge(name: str) -> bool:
    """Whether a name in ``Stats`` is that of a gauge, and not of a counter."""
    return name in GAUGES or name.startswith(ADAPTER_GAUGE)


class Stats(ToClient, tag="stats"):
    """Counters since the start of the service, or since the last death of its gateway, with which all begin at 0
    again; and gauges as they are now."""

    counters: dict[str, float]
    """Values by name. A later version may add names."""


class Trace(ToClient, tag="trace"):
    """Spans and moments, as packed little-endian records since they can be many: oldest first, times in ns."""

    actors: dict[str, Recorded]
    since_ns: int
    """The beginning of the time that was asked for, on the monotonic clock of the service's machine."""
    until_ns: int
    """The time at which the trace was asked for."""


class ActorState(msgspec.Struct, kw_only=True):
    """One actor, or another process of the service, as the supervisor knows it."""

    name: str
    role: str = "actor"
    """``actor``; ``frontend``: a client of the actors; ``spare``: waits to become the next incarnation of an actor;
    ``keeper``: holds the weights while the executor starts again; or ``service``: a service behind a router, named by
    its endpoint, whose pid is not known. The service is ready without spare and keeper."""
    state: str
    """``starting``, ``ready``, ``draining``, ``hung`` (has work and makes no progress), or ``dead`` (waits for its
    restart)."""
    pid: int
    epoch: int
    """Number of its incarnation; a restarted actor has a higher one."""
    restarts: int = 0
    """The number of restarts since the start of the service."""
    uptime_s: float = 0.0
    """Seconds since this incarnation was started."""
    mailbox_depth: int = 0
    """The number of messages of other actors that it has not handled yet."""
    last_progress_s: float = 0.0
    """Seconds since it was last seen to have handled something."""
    working: bool = False
    """Whether work is under way that only this actor can bring forward."""
    busy_s: float = 0.0
    """Seconds that this incarnation has spent in handling messages."""
    ready_s: float | None = None
    """Seconds from the start of this incarnation until it was ready; null: it is not."""
    full_speed_s: float | None = None
    """Seconds until it was as fast as it gets: an executor with all its CUDA graphs; null: it is not."""


class Actors(ToClient, tag="actors"):
    """The actors in the order of their start, and the state of the service as a whole."""

    actors: list[ActorState]
    live: bool
    """Whether no actor hangs. If it stays false, restart the service."""
    ready: bool
    """Whether every actor is ready and requests are accepted."""
    draining: bool = False
    """Whether the service is stopping: what is under way is finished, and nothing new is accepted."""


class CacheReset(ToClient, tag="cache_reset"):
    """Answers ``ResetCache``."""

    done: bool
    """False: this service does not allow it."""


class LoadedAdapter(msgspec.Struct, kw_only=True):
    """An adapter that requests may name."""

    name: str
    path: str
    """The folder that it was read from."""


class Adapters(ToClient, tag="adapters"):
    """Answers ``GetAdapters``, ``LoadAdapter`` and ``UnloadAdapter``, each question by one message. Only answers to
    questions of one kind are in order, so ask for one change after the other."""

    adapters: list[LoadedAdapter]
    """The adapters that are loaded now."""
    code: str = ""
    """The code of the error; empty: there was none."""
    error: str = ""
    """Why the change was not made."""


PublicIn = (
    Hello | Generate | Abort | Ping | GetStats | GetTrace | GetActors | ResetCache | GetAdapters | LoadAdapter
    | UnloadAdapter
)  # fmt: skip
PublicOut = Welcome | Deltas | Error | Pong | Stats | Trace | Actors | CacheReset | Adapters
