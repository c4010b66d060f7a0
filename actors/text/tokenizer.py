"""The tokenizer: turns a text, token ids or a conversation into the token ids of a prompt, and checks it.

A long prompt is encoded in slices of about 50 ms, and short prompts are handled in between. What a restart loses, the
gateway submits again.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers

from ...protocol.errors import InvalidRequest, SlipstreamError, context_length_exceeded
from ...protocol.events import PeerUp
from ...protocol.formats.formats import HELD
from ...protocol.formats.schemas import pattern_in
from ...protocol.internal import Cancel, Enqueue, ForgetCache, Refused, Submit, Tokenized, first_number
from ...protocol.limits import MAX_PROMPT_LOGPROBS
from ...protocol.messages import NO_FORMATS, Formats
from ...protocol.sampling import MATCHED_AS_A_WHOLE, Grammar, SamplingParams
from ...runtime.actor import Actor, Address, Send
from ..options import TokenizerOptions
from .grammars.calls import CallMarkup
from .grammars.grammar import GrammarCompiler, compiler_of
from .grammars.notation import as_llguidance
from .prompts.chat_template import ChatTemplates
from .prompts.prompts import ENCODING_BUDGET_S, MAX_PROMPT_BYTES, PromptEncoding, Prompts, load_texts, settled
from .thoughts import ThoughtTokens

if TYPE_CHECKING:
    from ...runtime.process.child import StartContext

CHECKED_GRAMMARS = 256
"""Most grammars whose check is remembered, of at most 32 KiB each: 8 MiB."""

MAX_MESSAGE_CHARS = 1000
"""Longest message of an error: that of a chat template may quote the whole conversation."""


CHARACTERS_PER_SECOND = 1_000_000
"""Estimate of how fast prompts are encoded: a later prompt goes first if it would be done sooner."""


class Waiting:
    """A prompt that is being encoded, or waits for it."""

    __slots__ = ("asked_at", "calls", "encoding", "left", "spent_s", "submit")

    def __init__(self, submit: Submit, prompt_of: Callable[[Waiting], PromptEncoding], now: float) -> None:
        self.submit = submit
        self.encoding = prompt_of(self)
        self.calls = ""
        """As in ``Enqueue``; known when the prompt has been checked."""
        self.asked_at = now
        self.left = 0
        """The number of characters that are not encoded yet."""
        self.spent_s = 0.0
        """The time spent on it, in seconds."""

    @property
    def sort_key(self) -> float:
        """The time at which it was asked for, and what the rest of it takes: the earliest goes first, so none waits for
        ever."""
        return self.asked_at + self.left / CHARACTERS_PER_SECOND


def field_of_prompt(submit: Submit) -> str:
    return "messages" if isinstance(submit.prompt, list) else "prompt"


class Tokenizer(Actor):
    """Makes token ids of prompts, and refuses prompts that the model cannot take."""

    name = "tokenizer"

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        chat_templates: ChatTemplates | str,
        max_model_len: int,
        vocab_size: int | None = None,
        max_prompt_bytes: int = MAX_PROMPT_BYTES,
        compiler: GrammarCompiler | str = "this service has no grammars",
        *,
        sanitize: bool = False,
        formats: Formats = NO_FORMATS,
    ) -> None:
        """In place of ``chat_templates`` or ``compiler`` a sentence may say why there is none."""
        super().__init__()
        self.prompts = Prompts(tokenizer, chat_templates, max_prompt_bytes, sanitize=sanitize)
        self.thoughts = ThoughtTokens(tokenizer, formats)
        self.markup = CallMarkup(tokenizer, formats.tool_calls or "") if formats.strict else None
        """The markup of calls that can follow schemas; None: calls in the model's format cannot."""
        self.max_model_len = max_model_len
        self.vocab_size = vocab_size or tokenizer.get_vocab_size()
        self.compiler = compiler
        self.checked: OrderedDict[Grammar, InvalidRequest | None] = OrderedDict()
        """Grammars that were compiled lately, each with the reason for which it was refused; None: it was not."""
        self.waiting: dict[int, Waiting] = {}
        """The prompts that are not encoded yet, by request."""
        self.worked_at: Waiting | None = None
        """The prompt of the slice whose time is not counted yet; it began at ``worked_since``."""
        self.worked_since = 0.0
        self.handlers |= {Submit: self.on_submit, Cancel: self.on_cancel, ForgetCache: self.on_forget_cache}
        self.refused = 0
        """The number of requests that were refused."""
        self.failed = 0
        """The number of these that failed by an error of the service itself."""

    @property
    def idle(self) -> bool:
        return not self.waiting

    @property
    def working(self) -> bool:
        return bool(self.waiting)

    def receive(self, sender: Address, message: Any, now: float) -> list[Send]:
        self.charge(now)
        return super().receive(sender, message, now)

    def on_submit(self, submit: Submit, now: float) -> None:
        waiting = Waiting(submit, self.prompt_of, now)
        self.waiting[submit.request] = waiting  # this replaces an older attempt, if there is one
        self.work(waiting)
        if self.waiting:
            self.wake_at = now

    def on_wake(self, now: float) -> None:
        """Encode a slice of the first prompt by ``sort_key``."""
        self.charge(now)
        if self.waiting:
            self.work(min(self.waiting.values(), key=lambda waiting: waiting.sort_key))
        if self.waiting:
            self.wake_at = now

    def on_cancel(self, cancel: Cancel, now: float) -> None:
        """Pass it on, behind the requests that it ends: messages to the scheduler stay in order."""
        for request in cancel.requests:
            self.waiting.pop(request, None)
        self.send("scheduler", cancel)

    def on_forget_cache(self, message: ForgetCache, now: float) -> None:
        """Pass it on, before every later request."""
        self.send("scheduler", message)

    def on_peer_up(self, peer: PeerUp, now: float) -> None:
        """Forget the requests of the old gateway: a new one submits its own."""
        if peer.name == "gateway":
            first = first_number(peer.epoch)
            self.waiting = {request: it for request, it in self.waiting.items() if request >= first}

    def charge(self, now: float) -> None:
        """Count the time since the last slice began for the prompt of that slice."""
        if self.worked_at is not None:
            self.worked_at.spent_s += now - self.worked_since
            self.worked_at = None

    def work(self, waiting: Waiting) -> None:
        """Encode a slice of one prompt; answer if it is complete or cannot be taken."""
        submit = waiting.submit
        self.worked_at, self.worked_since = waiting, self.now
        self.progress += 1
        try:
            if waiting.spent_s > ENCODING_BUDGET_S:
                raise InvalidRequest(
                    f"the prompt took {waiting.spent_s:.1f} s until {waiting.left} characters before its end; the limit"
                    f" is {ENCODING_BUDGET_S:g} s: shorten it, or send token ids",
                    param=field_of_prompt(submit),
                )
            waiting.left = next(waiting.encoding)
            return
        except StopIteration as end:
            self.pass_on(waiting, end.value)
        except SlipstreamError as error:
            self.refuse(submit.request, error.code, str(error), error.param)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a request must fail only itself; a panic in Rust is a BaseException
            self.failed += 1
            reason = f"the prompt cannot be encoded ({type(error).__name__}: {error})"
            self.refuse(submit.request, "internal", reason)
        del self.waiting[submit.request]

    def pass_on(self, waiting: Waiting, prompt: array[int]) -> None:
        submit, ids = waiting.submit, prompt.tobytes()
        self.note_moment("tokenized", submit.request)
        self.send("gateway", Tokenized(submit.request, ids))
        self.send(
            "scheduler",
            Enqueue(
                submit.request,
                ids,
                submit.params,
                submit.delivered,
                submit.connection,
                submit.attempt,
                submit.marks,
                self.before(waiting, prompt),
                waiting.calls,
            ),
        )

    def before(self, waiting: Waiting, prompt: array[int]) -> str:
        """The rule for the text that may precede what the request's grammar describes: thoughts, in a conversation."""
        submit = waiting.submit
        if waiting.calls and self.markup is not None and self.markup.has_thoughts:
            return ""
        conversation = submit.marks or isinstance(submit.prompt, list)
        grammar = submit.params.grammar is not None or waiting.calls
        return self.thoughts.rule(prompt) if conversation and grammar else ""

    def prompt_of(self, waiting: Waiting) -> PromptEncoding:
        """Encode and check the prompt of a request; InvalidRequest if it cannot be served."""
        submit = waiting.submit
        prompt = yield from self.token_ids(submit)
        self.check_ids("prompt", prompt)
        delivered = array("i", submit.delivered)
        self.check_ids("received", delivered)
        prompt = self.truncated(prompt, submit.params)
        self.check_length(field_of_prompt(submit), len(prompt), len(delivered))
        self.check_grammar(submit.params.grammar)
        waiting.calls = self.calls(submit)
        self.check_scores(submit.params, len(prompt))
        return prompt

    def truncated(self, prompt: array[int], params: SamplingParams) -> array[int]:
        """The end of the prompt, if ``truncate_prompt_tokens`` asks for that."""
        most = params.truncate_prompt_tokens
        if most == -1:
            most = max(1, self.max_model_len - (params.max_tokens or 1))
        return prompt if most is None else prompt[-most:]

    def refuse(self, request: int, code: str, message: str, param: str | None = None) -> None:
        self.refused += 1
        self.send("gateway", Refused(request, code, message[:MAX_MESSAGE_CHARS], param))

    def token_ids(self, submit: Submit) -> PromptEncoding:
        prompt = submit.prompt
        most = self.max_model_len if submit.params.truncate_prompt_tokens is None else None
        if prompt is None:
            return array("i", submit.prompt_ids)
        if isinstance(prompt, str):
            special = submit.add_special_tokens
            return (yield from self.prompts.of_text(prompt, add_special_tokens=special, max_tokens=most))
        return (yield from self.prompts.of_conversation(prompt, submit.template, max_tokens=most))

    def check_ids(self, what: str, ids: array[int]) -> None:
        if ids and (min(ids) < 0 or max(ids) >= self.vocab_size):
            place, wrong = next((i, t) for i, t in enumerate(ids) if not 0 <= t < self.vocab_size)
            raise InvalidRequest(
                f"{what} has token id {wrong} at position {place};"
                f" a token id of this model is 0 to {self.vocab_size - 1}",
                param=what,
            )

    def check_length(self, where: str, prompt: int, delivered: int) -> None:
        if not prompt:
            raise InvalidRequest("the prompt has no tokens; give at least one", param="prompt")
        room_for_new = 0 if delivered else 1  # a resent answer may have all its tokens, and lack only its end
        if prompt + delivered + room_for_new > self.max_model_len:
            raise context_length_exceeded(where, prompt, delivered, self.max_model_len)

    def check_scores(self, params: SamplingParams, prompt: int) -> None:
        if params.prompt_logprobs is None:
            return
        logprobs = prompt * (1 + params.prompt_logprobs)
        if logprobs > MAX_PROMPT_LOGPROBS:
            raise InvalidRequest(
                f"prompt_logprobs={params.prompt_logprobs} of a prompt of {prompt} tokens are {logprobs} logprobs;"
                f" the limit is {MAX_PROMPT_LOGPROBS}: ask for fewer, or shorten the prompt",
                param="prompt_logprobs",
            )

    def calls(self, submit: Submit) -> str:
        """The grammar by which the answer's calls follow the schemas of their functions, together with the grammar that
        the parameters ask for; empty: there is none. InvalidRequest names a function for which there can be none."""
        other = submit.params.grammar
        apart = other is not None and other.kind not in MATCHED_AS_A_WHOLE
        if self.markup is None or self.markup.name not in HELD or apart:
            beside = f"beside {other.kind}" if other is not None and apart else "in the format of this model"
            refuse_patterns(submit.calls, beside)
        if not submit.calls or self.markup is None or apart:
            return ""
        try:
            if other is None or isinstance(self.compiler, str):  # which is refused below
                whole = self.markup.grammar(submit.calls)
            else:
                whole = self.markup.instead(submit.calls, as_llguidance(other, self.compiler.control))
            self.check_grammar(Grammar("calls", whole))
        except InvalidRequest as refused:
            for name, schema in submit.calls.items():
                try:
                    self.check_grammar(Grammar("calls", self.markup.grammar({name: schema})))
                except InvalidRequest as error:
                    place = f"calls.{name}"
                    message = str(error).replace("calls", place, 1)
                    raise InvalidRequest(f"{message}; leave out strict", param=place) from None
            raise InvalidRequest(f"{refused}; leave out strict of some", param="calls") from None
        return whole

    def check_grammar(self, grammar: Grammar | None) -> None:
        """Compile the grammar, within limits, to check that it can be followed."""
        if grammar is None:
            return
        if isinstance(self.compiler, str):
            raise InvalidRequest(
                f"{grammar.kind} is given, but {self.compiler}; leave it out", param=grammar.kind
            )
        if grammar not in self.checked:
            self.checked[grammar] = None
            try:
                self.compiler.check(grammar)
            except InvalidRequest as error:
                self.checked[grammar] = error.with_traceback(None)
            if len(self.checked) > CHECKED_GRAMMARS:
                self.checked.popitem(last=False)
        refused = self.checked[grammar]
        if refused is not None:
            raise InvalidRequest(str(refused), param=refused.param)


def refuse_patterns(calls: Mapping[str, dict[str, Any]], where: str) -> None:
    """Refuse functions whose schemas have regular expressions that nothing would enforce."""
    for name, schema in calls.items():
        place = f"calls.{name}"
        if pattern := pattern_in(schema):
            raise InvalidRequest(
                f"{place} has {pattern!r}, which calls {where} are not held to; leave out strict, or set"
                " tool_choice to required or to the function",
                param=place,
            )


def build(context: StartContext) -> Actor:
    """The tokenizer of a service, from its options."""
    options = context.options_as(TokenizerOptions)
    context.phase("load tokenizer")
    tokenizer, chat_templates = load_texts(
        Path(options.model), datetime.now, options.chat_template, options.chat_templates
    )
    actor = Tokenizer(
        tokenizer,
        chat_templates,
        options.max_model_len,
        options.vocab_size,
        options.max_prompt_bytes,
        compiler_of(tokenizer, options.vocab_size, options.eos_token_ids),
        sanitize=options.sanitize_control_tokens,
        formats=options.formats,
    )
    actor.facts |= settled(chat_templates)
    return actor
