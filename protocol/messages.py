"""Every message that is sent in Slipstream.

Two families. The *public* messages travel between a client and the gateway as maps with string
keys, so that any language can speak them. The *internal* ones travel between actors as positional
arrays inside an ``Envelope``, with step-wide arrays as little-endian binary: one message per step,
not one per token.

A request has two names. The client chooses an ``id`` (a string, unique on its connection); inside,
the gateway numbers requests, and ``request`` is that number.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .limits import Limits
from .sampling import Grammar, SamplingParams
from .trace import Recorded

# --- public: client to gateway -------------------------------------------------------------------


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
    """How long ago it was first asked: a request that is resent does not get a new deadline."""
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
    """Answered by ``Trace``: the newest spans and marks that every actor has in its rings. Read one before asking for
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
    """By which requests name it; of no other adapter."""
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


# --- public: gateway to client -------------------------------------------------------------------


class ToClient(msgspec.Struct, tag_field="t", kw_only=True, omit_defaults=True):
    """Base of what a client receives. Unknown fields are ignored: a later minor version may add some."""


class Formats(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """How the model of a service writes what is not its answer, by vLLM's names of these formats."""

    reasoning: str | None = None
    """Of its thoughts; null: it marks none."""
    tool_calls: str | None = None
    """Of its calls; null: in one that needs no marks of its own."""
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
    """What a request took."""

    prompt_tokens: int
    completion_tokens: int
    """Of all ``n`` answers together."""
    cached_tokens: int = 0
    """Of the prompt, those whose keys and values were in the prefix cache."""


class Delta(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """What is new in one answer. Exactly one delta of an answer has a ``finish_reason``, its last.

    A request with ``n`` answers is over when all of them are, and the last delta of all has the ``usage``.
    """

    id: str
    """Of the request."""
    text: str = ""
    """May be empty beside ``token_ids``: half a character, or what may become a stop text, waits for more."""
    token_ids: list[int] = []
    index: int = 0
    """Which of the ``n`` answers."""
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
        *("num_requests_running", "num_requests_waiting", "requests_open"),
        *("kv_cache_usage_perc", "kv_cache_blocks", "kv_cache_block_size"),
    )
)
"""Names in ``Stats`` that say how something is now; all others only grow."""


class Stats(ToClient, tag="stats"):
    """Counters since the start of the service, and gauges as they are now."""

    counters: dict[str, float]
    """By name. A later version may add names."""


class Trace(ToClient, tag="trace"):
    """Spans and marks, as packed little-endian records since they can be many: oldest first, times in ns."""

    actors: dict[str, Recorded]
    since_ns: int
    """Begin of the time that was asked for, on the monotonic clock of the service's machine."""
    until_ns: int
    """When the trace was asked for."""


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
    """How long ago it was last seen to have handled something."""
    working: bool = False
    """Something is under way that only this actor can bring forward."""
    busy_s: float = 0.0
    """Spent in handling messages, by this incarnation."""
    ready_s: float | None = None
    """From the start of this incarnation to when it was ready; null: it is not."""
    full_speed_s: float | None = None
    """The same to when it was as fast as it gets: an executor with all its CUDA graphs; null: it is not."""


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
    """Those that are loaded now."""
    code: str = ""
    """Of the error; empty: it was done."""
    error: str = ""
    """Why it was not done."""


PublicIn = (
    Hello | Generate | Abort | Ping | GetStats | GetTrace | GetActors | ResetCache | GetAdapters | LoadAdapter
    | UnloadAdapter
)  # fmt: skip
PublicOut = Welcome | Deltas | Error | Pong | Stats | Trace | Actors | CacheReset | Adapters

# --- internal ------------------------------------------------------------------------------------


class Internal(msgspec.Struct, array_like=True, tag=True):
    """Base of what actors say to each other."""


class OfStep(Internal):
    """Base of what belongs to one step."""

    step: int


def first_number(epoch: int) -> int:
    """The first request number of a gateway's incarnation: no two incarnations give the same."""
    return epoch << 40


class Submit(Internal):
    """gateway → tokenizer: a request, new or resent with what was already delivered."""

    request: int
    prompt: str | list[dict[str, Any]] | None
    """Text or chat messages; None where ``prompt_ids`` has it."""
    params: SamplingParams
    """``seed`` is set: the gateway draws one where the client gave none."""
    delivered: bytes = b""
    """Token ids (int32) of the answer that the client has."""
    client: int = 0
    """Number of the client, for fairness between clients."""
    attempt: int = 0
    """How often the request was resent; what an earlier attempt still brings is dropped."""
    prompt_ids: bytes = b""
    """The prompt as token ids (int32)."""
    template: dict[str, Any] = {}
    """What the chat template is given beside the messages."""
    add_special_tokens: bool = True
    """As in ``Generate``."""
    marks: bool = False
    """As in ``Generate``."""
    calls: dict[str, dict[str, Any]] = {}
    """As in ``Generate``."""


class Tokenized(Internal):
    """tokenizer → gateway: the prompt's token ids (int32); the tokenizer has no more to do with it."""

    request: int
    prompt: bytes


class Refused(Internal):
    """tokenizer → gateway: the request ends with this error."""

    request: int
    code: str
    message: str
    param: str | None = None
    """As in ``Error``."""


class Enqueue(Internal):
    """tokenizer → scheduler: a request as token ids (int32)."""

    request: int
    prompt: bytes
    params: SamplingParams
    delivered: bytes
    client: int = 0
    attempt: int = 0
    marks: bool = False
    """As in ``Generate``."""
    before: str = ""
    """As in ``Grammar``: thoughts, which the tokenizer knows from the prompt."""
    calls: str = ""
    """The answer's grammar in place of that of the parameters, as the source of one of the kind ``calls``."""


class Cancel(Internal):
    """gateway → tokenizer → scheduler: end these requests, by the path that brought them."""

    requests: list[int]


class ForgetCache(Internal):
    """gateway → tokenizer → scheduler: nothing that was computed before is found again, by the path of the requests."""

    number: int
    """Counts how often that was asked; each is done once."""


class Adapter(msgspec.Struct, array_like=True, frozen=True):
    """An adapter that the executor has loaded."""

    id: int
    """What the rows that it computes carry, from 1 on; 0 is none."""
    name: str
    path: str
    """The folder that it was read from."""


class Capacity(Internal):
    """executor → scheduler: loaded and empty. What an earlier executor held is lost."""

    num_blocks: int
    block_size: int
    crashed: bool = False
    """The executor before this one ended by its own fault: what it was computing may have caused it."""
    steps: list[tuple[int, int]] = []
    """Of steps that it ran before it was ready, from small to large: tokens, and the ns that they took."""
    max_num_batched_tokens: int | None = None
    """Most tokens of a step, as its buffers are; it is the executor who knows the device, and so the default."""
    prefix_caching: bool = True
    """False: sequences have a state that is in no block, so that one cannot begin where another did."""
    adapters: list[Adapter] = []
    """Those that are loaded."""
    adapter_places: int = 0
    """How many it has room for."""


class ChangeAdapter(Internal):
    """gateway → scheduler: load the adapter at ``path`` under this name; without a path, unload it; without a name, say
    which are loaded."""

    number: int
    """The gateway's, of the question."""
    name: str = ""
    path: str = ""
    again: bool = False
    """A scheduler before may have done it."""


class AdapterChanged(Internal):
    """scheduler → gateway: the answer to ``ChangeAdapter``."""

    number: int
    adapters: list[Adapter]
    code: str = ""
    """As in ``Adapters``."""
    error: str = ""


class PlaceAdapter(Internal):
    """scheduler → executor: read this adapter; without a path, give up its place, with which no step computes."""

    adapter: Adapter


class AdapterPlaced(Internal):
    """executor → scheduler: the adapter is there, or why it cannot be."""

    adapter: Adapter
    error: str = ""


class Join(Internal):
    """Part of a plan: a sequence takes a sequence slot."""

    slot: int
    tokens: bytes
    """Prompt and, after a preemption or a restart, the tokens generated so far (int32)."""
    prompt_len: int
    start: int
    """First position to compute; what lies before is in cached blocks."""
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    min_tokens: int
    stop_tokens: bytes
    """Token ids (int32) that end the sequence, the model's own among them unless ``ignore_eos``."""
    end: int
    """How many tokens, prompt and answer, the sequence has when it ends by length."""
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias_tokens: bytes = b""
    """Token ids (int32) that have a logit bias."""
    biases: bytes = b""
    """float32, one for each of them."""
    logprobs: int = -1
    """How many of the most likely tokens have their logprob reported with the sampled token's; -1: none is."""
    prompt_logprobs: int = -1
    """The same for the tokens of the prompt after the first."""
    grammar: Grammar | None = None
    """What the generated tokens, those among ``tokens`` included, have to match."""
    adapter: int = 0
    """The id of the one that computes the sequence; 0: none."""


class Plan(OfStep):
    """scheduler → executor: step ``step``, as the difference from the step before.

    In order: ``leaves`` free their slots, ``joins`` take slots, ``blocks`` extend block tables, ``copies``
    copy blocks; then every chunk of ``chunks`` and one token of every sequence that has no prompt left run. Rows that
    sample, in the order of their slots, are the rows of ``Sampled``.
    """

    leaves: bytes = b""
    """Sequence slots (int32)."""
    joins: list[Join] = []
    blocks: bytes = b""
    """Pairs (slot, block) of int32; each block is appended to the slot's block table."""
    copies: bytes = b""
    """Pairs (source, target) of blocks (int32): what an earlier step wrote, for a sequence that will write on."""
    chunks: bytes = b""
    """Pairs (slot, tokens) of int32: how much of a prompt runs in this step."""


class Forget(Internal):
    """executor → its other ranks: the plans that follow are a new scheduler's, which begins with nothing."""


class CaptureNext(Internal):
    """executor → its other ranks: capture the graph that is missing first, as it does itself."""


class GrammarEnd(msgspec.Struct, array_like=True, frozen=True):
    """Part of ``Sampled``: the sequence in a sequence slot got no token, and can get none."""

    slot: int
    error: str = ""
    """Why its grammar cannot go on; empty: nothing can follow what it has, so it is complete."""


class Sampled(OfStep):
    """executor → scheduler: the tokens of step ``step``."""

    tokens: bytes
    """int32, one per row that sampled, in the order of sequence slots; -1: the row was already finished."""
    started_ns: int
    ended_ns: int
    """Start and end of the step's compute on the device, on the host's monotonic clock."""
    logprob_tokens: bytes = b""
    """int32 [rows, columns] if some row wants logprobs: the sampled token, then the most likely ones."""
    logprobs: bytes = b""
    """float32 [rows, columns]: logarithms of the probabilities that the model gave to those tokens."""
    ends: list[GrammarEnd] = []
    """Sequences that end with this step by their grammars; their tokens here are -1."""
    prompt_logprob_tokens: bytes = b""
    """int32 [positions, columns] of the prompts that ask, in the order of ``Plan.chunks``: the prompt's next token,
    then the most likely ones."""
    prompt_logprobs: bytes = b""
    """float32 [positions, columns]."""
    stalled_ns: int = 0
    """How long of its time the step only waited for the masks of its grammars."""


class Opened(msgspec.Struct, array_like=True, frozen=True):
    """Part of ``Tokens``: a sequence whose tokens will follow."""

    request: int
    context: bytes
    """Last token ids (int32) of the prompt, then of what was delivered: what the text continues."""
    delivered: int
    """How many of ``context`` are delivered tokens."""
    stop: list[str]
    cached_tokens: int
    prompt_tokens: int
    attempt: int = 0
    include_stop: bool = False
    """The stop text that ends the answer is part of it."""
    marks: bool = False
    """As in ``Generate``."""
    special: bool = False
    """Special tokens have their names as text."""
    queued_at: float = 0.0
    """When it came to the scheduler, in seconds of the machine's monotonic clock."""
    planned_at: float = 0.0
    """When the first step that it is in was planned."""


class Finished(msgspec.Struct, array_like=True, frozen=True):
    """The end of a sequence: ``reason`` is stop, length, abort, or an error's code with its message."""

    request: int
    reason: str
    stop_reason: str | int | None = None
    message: str = ""
    param: str | None = None
    """As in ``Error``."""


class PromptLogprobs(msgspec.Struct, array_like=True, frozen=True):
    """Part of ``Tokens`` and ``Texts``: the logprobs of a whole prompt."""

    request: int
    tokens: bytes
    """int32 [prompt tokens - 1, columns]: the prompt's own token, then the most likely ones."""
    values: bytes
    """float32, the same."""


class Tokens(OfStep):
    """scheduler → detokenizer: what one step brought, for all sequences."""

    opened: list[Opened] = []
    requests: bytes = b""
    """int64, one per token."""
    tokens: bytes = b""
    """int32, one per token."""
    finished: list[Finished] = []
    counters: dict[str, float] = {}
    """The scheduler's counters, now and then; empty otherwise."""
    logprob_tokens: bytes = b""
    """As in ``Sampled``, one row per token, or empty. A request reads as many columns as it asks for."""
    logprobs: bytes = b""
    prompts: list[PromptLogprobs] = []


class Texts(OfStep):
    """detokenizer → gateway: what one step brought, as text."""

    opened: list[Opened] = []
    requests: bytes = b""
    tokens: bytes = b""
    texts: list[str] = []
    """One per token; empty where the text waits for the rest of a character or of a stop text."""
    finished: list[Finished] = []
    tails: list[str] = []
    """One per finished sequence: text that was held back."""
    counters: dict[str, float] = {}
    logprob_tokens: bytes = b""
    logprobs: bytes = b""
    prompts: list[PromptLogprobs] = []


class Matched(Internal):
    """detokenizer → scheduler: these sequences met a stop text and need no more tokens."""

    requests: list[int]
    attempts: list[int]
    """Which attempt of each: one that was resent meanwhile has still to say what it knows."""


class DumpTrace(Internal):
    """gateway → any actor: send what ended at ``since_ns`` or later. Answered by the host, not by the actor."""

    since_ns: int = 0


class Spans(Internal):
    """any actor's host → gateway: a part of its spans and marks."""

    actor: str
    part: Recorded
    since_ns: int
    """As it was asked: what answers an earlier question is known by it."""
    last: bool = False
    """It was the last part."""


AnyInternal = (
    Submit | Tokenized | Refused | Enqueue | Cancel | ForgetCache | Capacity | Plan | Sampled | Tokens | Texts | Matched
    | Forget | CaptureNext | DumpTrace | Spans | ChangeAdapter | AdapterChanged | PlaceAdapter | AdapterPlaced
)  # fmt: skip


class Envelope(msgspec.Struct, array_like=True, frozen=True):
    """What travels between two actors: who says it, in which life, and how many it said before."""

    sender: str
    epoch: int
    """The sender's incarnation; a restarted actor has a higher one, and what an older one said is dropped."""
    receiver_epoch: int
    """The receiver's incarnation for which the message is meant."""
    sequence: int
    """Counts the messages of this sender incarnation to this receiver incarnation from 0, without gaps."""
    body: AnyInternal


# --- from a host to its own actor; never on a wire ------------------------------------------------


class PeerUp(msgspec.Struct, frozen=True):
    """A new incarnation of the actor ``name`` is there; whatever was on its way to or from the old is lost."""

    name: str
    epoch: int


class PeerDown(msgspec.Struct, frozen=True):
    """The actor ``name`` has ended; a new incarnation will come."""

    name: str
    own_fault: bool
    """Not by a signal from outside: what it was working at may be the cause."""


class ClientMessage(msgspec.Struct, frozen=True):
    """A public message and the connection that it came from."""

    client: bytes
    message: PublicIn


class ClientGone(msgspec.Struct, frozen=True):
    """The connection is no longer there."""

    client: bytes


class ClientBlocked(msgspec.Struct, frozen=True):
    """The client does not read: this message to it was not sent."""

    client: bytes
    message: PublicOut


class ServiceFrame(msgspec.Struct, frozen=True):
    """A frame of a service that the actor is a client of, by the name that the actor has for it."""

    service: str
    frame: bytes


class ServiceInterrupted(msgspec.Struct, frozen=True):
    """The connection to that service broke; all that had arrived was handed over."""

    service: str


class WatchedFile(msgspec.Struct, frozen=True):
    """The text of the file that the actor has the host watch, as it is now."""

    text: str


class Completed(msgspec.Struct, frozen=True):
    """The device finished at least one step."""


class Drain(msgspec.Struct, frozen=True):
    """Accept nothing new."""


class Ending(msgspec.Struct, frozen=True):
    """The host ends now: answer whatever is still open."""

    reason: str


class Counted(msgspec.Struct, frozen=True):
    """What the hosts of all actors have counted since the start of the service."""

    counters: dict[str, float]
