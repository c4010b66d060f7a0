"""The messages between actors: positional arrays inside an ``Envelope``.

There is one message per step, not one per token, whose arrays are little-endian binary. ``request`` is the number that
the gateway gave to a request.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .sampling import Grammar, SamplingParams
from .trace import Recorded


class Internal(msgspec.Struct, array_like=True, tag=True):
    """Base of the messages between actors."""


class OfStep(Internal):
    """Base of the messages that belong to one step."""

    step: int


def first_number(epoch: int) -> int:
    """The first request number of a gateway's incarnation: no two incarnations give the same."""
    return epoch << 40


class Submit(Internal):
    """gateway → tokenizer: a request, new or resent with what was already delivered."""

    request: int
    prompt: str | list[dict[str, Any]] | None
    """Text or chat messages; None if ``prompt_ids`` has the prompt."""
    params: SamplingParams
    """``seed`` is set: the gateway draws one where the client gave none."""
    delivered: bytes = b""
    """Token ids (int32) of the answer that the client already has."""
    connection: int = 0
    """Number of the client's connection, for fairness between clients."""
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
    """tokenizer → gateway: the prompt's token ids (int32); the tokenizer has finished the request."""

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
    connection: int = 0
    """As in ``Submit``."""
    attempt: int = 0
    marks: bool = False
    """As in ``Generate``."""
    before: str = ""
    """As in ``Grammar``: the rule for thoughts, which the tokenizer derives from the prompt."""
    calls: str = ""
    """The source of a grammar of the kind ``calls``, which replaces that of the parameters; empty: none does."""


class Cancel(Internal):
    """gateway → tokenizer → scheduler: end these requests. It goes the way of the requests, so that it comes after
    them."""

    requests: list[int]


class ForgetCache(Internal):
    """gateway → tokenizer → scheduler: empty the prefix cache. It goes the way of the requests, so that later ones find
    nothing that was computed before."""

    number: int
    """Counts the resets, so that each is done once."""


class Adapter(msgspec.Struct, array_like=True, frozen=True):
    """An adapter that the executor has loaded."""

    id: int
    """The id in the rows that are computed with it, from 1 on; 0 is none."""
    name: str
    path: str
    """The folder that it was read from."""


class Capacity(Internal):
    """executor → scheduler: the executor is loaded and empty. What an earlier one held is lost."""

    num_blocks: int
    block_size: int
    crashed: bool = False
    """Whether the executor before this one ended by its own fault: what it was computing may have been the cause."""
    step_times: list[tuple[int, int]] = []
    """Of steps that it ran before it was ready, from small to large: the number of tokens, and the time in ns."""
    max_num_batched_tokens: int | None = None
    """Most tokens of a step, for which it has buffers. The default depends on the device, so the executor says it."""
    prefix_caching: bool = True
    """False: sequences have states, which no block holds, so that they cannot share prefixes."""
    adapters: list[Adapter] = []
    """The adapters that are loaded."""
    adapter_slots: int = 0
    """Most adapters that it can have loaded at once."""
    step_sizes: list[int] = []
    """The numbers of tokens, in ascending order, to which it pads steps that have a prompt. Empty: it does not pad."""


class ListAdapters(Internal):
    """gateway → scheduler: say which adapters are loaded."""

    number: int
    """The gateway's number of the question."""


class AddAdapter(Internal):
    """gateway → scheduler: load the adapter at ``path`` under this name."""

    number: int
    """The gateway's number of the question."""
    name: str
    path: str


class RemoveAdapter(Internal):
    """gateway → scheduler: unload the adapter of this name."""

    number: int
    """The gateway's number of the question."""
    name: str
    resent: bool = False
    """Whether an earlier scheduler may have done so already."""


class AdapterAnswer(Internal):
    """scheduler → gateway: the answer to ``ListAdapters``, ``AddAdapter`` or ``RemoveAdapter``."""

    number: int
    adapters: list[Adapter]
    """Those that are loaded now."""
    code: str = ""
    """As in ``Adapters``."""
    error: str = ""


class FillAdapterSlot(Internal):
    """scheduler → executor: load this adapter into its slot."""

    adapter: Adapter


class AdapterSlotFilled(Internal):
    """executor → scheduler: the adapter is loaded, or why it cannot be."""

    adapter: Adapter
    error: str = ""


class FreeAdapterSlot(Internal):
    """scheduler → executor: give up the adapter of this id, with which no step computes any more."""

    id: int


class AdapterSlotFreed(Internal):
    """executor → scheduler: the slot of this id holds no adapter any more."""

    id: int


class Join(Internal):
    """Part of a plan: a sequence takes a sequence slot."""

    slot: int
    tokens: bytes
    """Prompt and, after a preemption or a restart, the tokens generated so far (int32)."""
    prompt_len: int
    start: int
    """The first position to compute; earlier ones are in cached blocks."""
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    min_tokens: int
    stop_tokens: bytes
    """Token ids (int32) that end the sequence, the model's own among them unless ``ignore_eos``."""
    max_length: int
    """The number of tokens, of prompt and answer, at which the sequence ends by length."""
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
    """The id of the adapter that computes the sequence; 0: none."""


class Plan(OfStep):
    """scheduler → executor: step ``step``, as the difference from the step before.

    It is applied in this order: ``leaves`` free their slots, ``joins`` take slots, ``blocks`` extend block tables,
    ``copies`` copy blocks. Then every chunk of ``chunks`` runs, and one token of every sequence that has no prompt
    left. The rows that sample, in the order of their slots, are the rows of ``Sampled``.
    """

    leaves: bytes = b""
    """Sequence slots (int32)."""
    joins: list[Join] = []
    blocks: bytes = b""
    """Pairs (slot, block) of int32; each block is appended to the slot's block table."""
    copies: bytes = b""
    """Pairs (source, target) of blocks (int32): an earlier step wrote the source, and a sequence will write behind the
    copy."""
    chunks: bytes = b""
    """Pairs (slot, tokens) of int32: how much of a prompt runs in this step."""


class ClearBatch(Internal):
    """executor → its other ranks: forget all sequences, since the next plans are those of a new scheduler."""


class CaptureNext(Internal):
    """executor → its other ranks: capture the first of the missing graphs, as the executor itself does."""


class GrammarEnd(msgspec.Struct, array_like=True, frozen=True):
    """Part of ``Sampled``: the sequence in this slot got no token, and can get none any more."""

    slot: int
    error: str = ""
    """Why its grammar cannot be followed; empty: the answer is complete, as its grammar allows nothing more."""


class Sampled(OfStep):
    """executor → scheduler: the tokens of step ``step``."""

    tokens: bytes
    """int32, one per row that sampled, in the order of sequence slots; -1: the row was already finished."""
    started_ns: int
    ended_ns: int
    """Start and end of the step's compute on the device, on the host's monotonic clock."""
    logprob_tokens: bytes = b""
    """int32 [rows, columns] if any row asks for logprobs: the sampled token, then the most likely ones."""
    logprobs: bytes = b""
    """float32 [rows, columns]: logarithms of the probabilities that the model gave to those tokens."""
    ends: list[GrammarEnd] = []
    """Sequences that end with this step by their grammars; their tokens here are -1."""
    prompt_logprob_tokens: bytes = b""
    """int32 [positions, columns] for prompts that ask for logprobs, in the order of ``Plan.chunks``: the prompt's next
    token, then the most likely ones."""
    prompt_logprobs: bytes = b""
    """float32 [positions, columns]."""
    stalled_ns: int = 0
    """The time in which the step only waited for the masks of its grammars."""


class Opened(msgspec.Struct, array_like=True, frozen=True):
    """Part of ``Tokens``: a sequence whose tokens will follow."""

    request: int
    context: bytes
    """The last token ids (int32) of the prompt, then those that were delivered: the text continues them."""
    delivered: int
    """The number of tokens in ``context`` that were delivered."""
    stop: list[str]
    cached_tokens: int
    prompt_tokens: int
    attempt: int = 0
    include_stop: bool = False
    """Whether the stop text that ends the answer is part of it."""
    marks: bool = False
    """As in ``Generate``."""
    special: bool = False
    """Whether special tokens have their names as text."""
    queued_at: float = 0.0
    """The time at which it came to the scheduler, in seconds of the machine's monotonic clock."""
    planned_at: float = 0.0
    """The time at which the first step that it is in was planned."""


class Finished(msgspec.Struct, array_like=True, frozen=True):
    """The end of a sequence: ``reason`` is stop, length, abort, or the code of an error, which has a ``message``."""

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
    """float32 of the same shape: their logprobs."""


class Tokens(OfStep):
    """scheduler → detokenizer: what one step brought, for all sequences."""

    opened: list[Opened] = []
    requests: bytes = b""
    """int64, one per token."""
    tokens: bytes = b""
    """int32, one per token."""
    finished: list[Finished] = []
    counters: dict[str, float] = {}
    """The scheduler's counters, in some of these messages; empty in the others."""
    logprob_tokens: bytes = b""
    """As in ``Sampled``, with one row per token, or empty. Each request uses as many columns as it asks for."""
    logprobs: bytes = b""
    prompts: list[PromptLogprobs] = []


class Texts(OfStep):
    """detokenizer → gateway: what one step brought, as text."""

    opened: list[Opened] = []
    requests: bytes = b""
    tokens: bytes = b""
    texts: list[str] = []
    """One per token; empty where text is held back until the rest of a character, or of a possible stop text, comes."""
    finished: list[Finished] = []
    tails: list[str] = []
    """One per finished sequence: the text that was still held back."""
    counters: dict[str, float] = {}
    logprob_tokens: bytes = b""
    logprobs: bytes = b""
    prompts: list[PromptLogprobs] = []


class Matched(Internal):
    """detokenizer → scheduler: the text of these sequences has met a stop text, so they need no more tokens."""

    requests: list[int]
    attempts: list[int]
    """The attempt of each. The scheduler ignores a report of an earlier attempt, as it will be made again."""


class DumpTrace(Internal):
    """gateway → any actor: send the trace of what ended at ``since_ns`` or later. The host answers, not the actor."""

    since_ns: int = 0


class Spans(Internal):
    """any actor's host → gateway: a part of its spans and moments."""

    actor: str
    part: Recorded
    since_ns: int
    """As in ``DumpTrace``, so that the answers to an earlier question are recognised."""
    last: bool = False
    """Whether this is the last part."""


AnyInternal = (
    Submit | Tokenized | Refused | Enqueue | Cancel | ForgetCache | Capacity | Plan | Sampled | Tokens | Texts | Matched
    | ClearBatch | CaptureNext | DumpTrace | Spans | ListAdapters | AddAdapter | RemoveAdapter | AdapterAnswer
    | FillAdapterSlot | AdapterSlotFilled | FreeAdapterSlot | AdapterSlotFreed
)  # fmt: skip


class Envelope(msgspec.Struct, array_like=True, frozen=True):
    """The frame of a message between actors: its sender, the sender's epoch, and the number of the message."""

    sender: str
    epoch: int
    """The sender's incarnation. A restarted actor has a higher one, and messages of older ones are dropped."""
    receiver_epoch: int
    """The receiver's incarnation for which the message is meant."""
    sequence: int
    """Counts, from 0 and without gaps, the messages from this incarnation of the sender to this one of the receiver."""
    body: AnyInternal
