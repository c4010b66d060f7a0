"""The messages between actors, positional arrays inside an ``Envelope``.

Step-wide arrays are little-endian binary: one message per step, not one per token. ``request`` is the number that the
gateway gave to a request.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .sampling import Grammar, SamplingParams
from .trace import Recorded


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
    """The number of times that the request was resent; results of earlier attempts are dropped."""
    prompt_ids: bytes = b""
    """The prompt as token ids (int32)."""
    template: dict[str, Any] = {}
    """The arguments of the chat template beside the messages."""
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
    """The id in the rows that are computed with it, from 1 on; 0 is none."""
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
    """The times of steps that it ran before it was ready, from small to large: tokens, and ns."""
    max_num_batched_tokens: int | None = None
    """Most tokens of a step, as its buffers are; it is the executor who knows the device, and so the default."""
    prefix_caching: bool = True
    """False: sequences have a state that is in no block, so that one cannot begin where another did."""
    adapters: list[Adapter] = []
    """The adapters that are loaded."""
    adapter_places: int = 0
    """Most adapters that it can have loaded at once."""
    sizes: list[int] = []
    """Rising: to the next of these numbers of tokens it pads a step that has a prompt. Empty: it pads none."""


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
    """The tokens, of prompt and answer, at which the sequence ends by length."""
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias_tokens: bytes = b""
    """Token ids (int32) that have a logit bias."""
    biases: bytes = b""
    """float32, one for each of them."""
    logprobs: int = -1
    """The number of most likely tokens whose logprobs are reported with that of the sampled one; -1: none at all."""
    prompt_logprobs: int = -1
    """The same for the tokens of the prompt after the first."""
    grammar: Grammar | None = None
    """The grammar that the generated tokens, those among ``tokens`` included, have to match."""
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
    """The part of its time in which the step only waited for the masks of its grammars."""


class Opened(msgspec.Struct, array_like=True, frozen=True):
    """Part of ``Tokens``: a sequence whose tokens will follow."""

    request: int
    context: bytes
    """Last token ids (int32) of the prompt, then of what was delivered: what the text continues."""
    delivered: int
    """The number of tokens in ``context`` that are delivered already."""
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
    """The time at which it came to the scheduler, in seconds of the machine's monotonic clock."""
    planned_at: float = 0.0
    """The time at which the first step that it is in was planned."""


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
    """The attempt of each: one that was resent meanwhile is reported again."""


class DumpTrace(Internal):
    """gateway → any actor: send what ended at ``since_ns`` or later. Answered by the host, not by the actor."""

    since_ns: int = 0


class Spans(Internal):
    """any actor's host → gateway: a part of its spans and moments."""

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
    """The frame of a message between actors: its sender, the sender's epoch, and the number of the message."""

    sender: str
    epoch: int
    """The sender's incarnation; a restarted actor has a higher one, and what an older one said is dropped."""
    receiver_epoch: int
    """The receiver's incarnation for which the message is meant."""
    sequence: int
    """Counts the messages of this sender incarnation to this receiver incarnation from 0, without gaps."""
    body: AnyInternal
