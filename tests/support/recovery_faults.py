"""Faults to plant in ledger, epochs and recovery: each an edit of one line of a production method.

An edit whose text is no longer in the source fails loudly: the fault has to be written anew. Three were not
invented: ``the-start-of-another-answer-counts-as-the-start-of-all`` and ``usage-of-a-finished-answer-is-dropped``
are how the simulation found the gateway and the session, ``who-is-not-ready-is-known`` is how a drill found the
supervisor.
"""

from __future__ import annotations

import importlib
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from chaos import detokenizer_is_late, everything_fails, gateway_fails, scheduler_fails, starts_overlap


@dataclass(frozen=True)
class Fault:
    """In the function ``where`` (``module:Class.method`` within the package), ``old`` becomes ``new``."""

    id: str
    where: str
    old: str
    new: str = "pass"
    fails: Callable[[Any], None] = everything_fails
    """In which worlds it shows best."""
    first: int = 0
    """The seed of the world to begin with: where a fault that shows in few of them has shown."""


def planted(fault: Fault) -> tuple[Any, str, Callable[..., Any]]:
    """The class or module, the name in it, and the function with the fault."""
    module, _, path = fault.where.partition(":")
    owner: Any = importlib.import_module(f"slipstream.{module}")
    *classes, name = path.split(".")
    for part in classes:
        owner = getattr(owner, part)
    function = inspect.unwrap(getattr(owner, name))
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(fault.old) == 1, f"{source.count(fault.old)} times in {fault.where}: {fault.old!r}"
    source = source.replace(fault.old, fault.new)
    made: dict[str, Any] = {}
    exec(
        compile(f"from __future__ import annotations\n{source}", f"<{fault.id}>", "exec"),
        function.__globals__,
        made,
    )
    return owner, name, made[name]


LINKS = "runtime.links:Links"
GATEWAY = "actors.gateway.gateway:Gateway"
SUBMISSIONS = "actors.gateway.submissions:Submissions"
DELIVERY = "actors.gateway.delivery"
LEDGER = "actors.gateway.ledger"
CONNECTIONS = "actors.public.connections"
SESSION = "protocol.client.session:Session"
STREAM = "protocol.client.session:Stream"
TOKENIZER = "actors.text.tokenizer:Tokenizer"
SCHEDULER = "actors.scheduler.scheduler:Scheduler"
ARRIVALS = "actors.scheduler.arrivals:Arrivals"
OUTGOING = "actors.scheduler.outgoing:Outgoing"
EXECUTOR_DEATHS = "actors.scheduler.executor_deaths:ExecutorDeaths"
HOLDINGS = "actors.scheduler.holdings:Holdings"
QUARANTINE = "actors.scheduler.quarantine:SequenceQuarantine"
SEQUENCE = "actors.scheduler.sequence:Sequence"
EXECUTOR = "actors.executor.executor:Executor"
DETOKENIZER = "actors.text.detokenizer:Detokenizer"

RESENT = "if peer.name not in PATH:"

FAULTS = [
    # --- epochs and numbers ---------------------------------------------------------------------------
    Fault(
        "frames-of-the-dead-are-taken-in",
        f"{LINKS}.open",
        "envelope.receiver_epoch != self.epoch or envelope.epoch < self.peers.get(sender, 0)",
        "envelope.receiver_epoch != self.epoch",
        first=30,
    ),
    Fault(
        "a-gap-is-not-noticed",
        f"{LINKS}.open",
        "envelope.sequence != expected",
        "envelope.sequence < expected",
    ),
    Fault("received-frames-are-not-counted", f"{LINKS}.open", "self.received[sender] = expected + 1"),
    Fault(
        "the-first-word-of-a-new-life-is-no-news",
        f"{LINKS}.open",
        "opened.append((sender, PeerUp(sender, envelope.epoch)))",
    ),
    Fault(
        "a-new-peer-is-sent-old-numbers",
        f"{LINKS}.peer_up",
        "self.sent[name] = 0",
        "self.sent.setdefault(name, 0)",
    ),
    Fault(
        "old-numbers-are-expected-of-a-new-peer",
        f"{LINKS}.peer_up",
        "self.received[name] = 0",
        "self.received.setdefault(name, 0)",
    ),
    Fault(
        "every-frame-is-news",
        f"{LINKS}.peer_up",
        "epoch <= self.peers.get(name, 0)",
        "epoch < self.peers.get(name, 0)",
    ),
    Fault("frames-are-not-numbered", f"{LINKS}.seal", "self.sent[to] = sequence + 1"),
    Fault(
        "who-is-not-ready-is-known",
        "runtime.introductions:knows_at_once",
        "running and (ready or same_group)",
        "running",
        fails=starts_overlap,
    ),
    # --- the gateway's ledger ---------------------------------------------------------------------------
    Fault("an-attempt-is-not-counted", f"{GATEWAY}.on_peer_up", "request.attempt += 1"),
    Fault("open-requests-are-not-sent-again", f"{GATEWAY}.on_peer_up", "self.submissions.submit(request)"),
    Fault(
        "a-new-tokenizer-gets-nothing",
        f"{GATEWAY}.on_peer_up",
        RESENT,
        'if peer.name not in PATH or peer.name == "tokenizer":',
        first=12,
    ),
    Fault(
        "a-new-scheduler-gets-nothing",
        f"{GATEWAY}.on_peer_up",
        RESENT,
        'if peer.name not in PATH or peer.name == "scheduler":',
    ),
    Fault(
        "a-new-detokenizer-gets-nothing",
        f"{GATEWAY}.on_peer_up",
        RESENT,
        'if peer.name not in PATH or peer.name == "detokenizer":',
    ),
    Fault("an-answer-stays-open-when-it-is-sent-again", f"{SUBMISSIONS}.submit", "answer.opened = False"),
    Fault(
        "the-start-of-another-answer-counts-as-the-start-of-all",
        f"{GATEWAY}.on_tokenized",
        "if answer is request.started_alone:",
        "if request.started_alone is not None:",
        first=141,
    ),
    Fault(
        "the-other-answers-are-not-started",
        f"{SUBMISSIONS}.start_others",
        'self.send("tokenizer", other.submission())',
    ),
    Fault("a-cancelled-request-stays", f"{SUBMISSIONS}.cancel", "self.ledger.forget(request)"),
    Fault(
        "a-failure-is-not-told",
        f"{GATEWAY}.fail",
        "self.send_to(request.connection, Error(code=code, message=message, id=request.id, param=param))",
    ),
    Fault(
        "an-older-attempt-opens-an-answer",
        f"{DELIVERY}:take_opened",
        "answer is None or one.attempt != answer.request.attempt",
        "answer is None",
        fails=detokenizer_is_late,
    ),
    Fault("no-answer-is-opened", f"{DELIVERY}:take_opened", "answer.opened = True"),
    Fault(
        "tokens-of-an-older-attempt-are-delivered",
        f"{DELIVERY}:take_tokens",
        "if not answer.opened or answer.finished:",
        "if answer.finished:",
    ),
    Fault("delivered-tokens-are-not-noted", f"{DELIVERY}:take_tokens", "answer.delivered.append(token)"),
    Fault(
        "an-end-of-an-older-attempt-counts",
        f"{DELIVERY}:take_end",
        "if not answer.opened:",
        "if False:",
        first=15,
    ),
    Fault(
        "an-end-is-not-noted",
        f"{DELIVERY}:take_end",
        "answer.finished, answer.reason = True, finished.reason",
        "answer.reason = finished.reason",
    ),
    Fault("a-tail-is-dropped", f"{DELIVERY}:take_end", "delta.text += tail"),
    Fault("a-finished-request-stays", f"{DELIVERY}:take_end", "ledger.forget(request)"),
    Fault("usage-is-not-told", f"{DELIVERY}:take_end", "delta.usage = request.usage"),
    Fault(
        "an-answer-is-sent-again-from-its-start",
        f"{LEDGER}:Answer.submission",
        "self.delivered.tobytes()",
        'b""',
    ),
    Fault(
        "an-answer-is-sent-again-with-another-seed",
        f"{LEDGER}:Answer.submission",
        "self.params,",
        "request.params,",
    ),
    Fault("an-attempt-is-not-told", f"{LEDGER}:Answer.submission", "request.attempt,", "0,"),
    Fault("what-the-client-has-is-ignored", f"{LEDGER}:Ledger.open", 'array("i", received)', 'array("i")'),
    Fault(
        "bytes-of-ended-requests-stay-counted", f"{LEDGER}:Ledger.forget", "self.open_bytes -= request.size"
    ),
    Fault(
        "what-the-client-has-of-other-answers-is-ignored",
        f"{LEDGER}:received_by_answer",
        "[message.received, *message.received_of_others]",
        "[message.received]",
    ),
    Fault("merging-drops-tokens", f"{CONNECTIONS}:merge", "waiting.token_ids += item.token_ids"),
    Fault("merging-drops-text", f"{CONNECTIONS}:merge", "waiting.text += item.text"),
    Fault("merging-drops-logprobs", f"{CONNECTIONS}:merge", "waiting.logprobs += item.logprobs"),
    Fault(
        "deltas-that-were-not-taken-are-dropped",
        f"{CONNECTIONS}:Connections.on_blocked",
        "self.keep(connection, blocked.message.items)",
    ),
    # --- the client's side ------------------------------------------------------------------------------
    Fault(
        "the-client-asks-anew",
        f"{SESSION}.resend",
        "encode_from_client(stream.resumed(now))",
        "encode_from_client(stream.request)",
    ),
    Fault(
        "the-client-tells-nothing-of-the-first-answer",
        f"{STREAM}.resumed",
        "request.received = self.received.get(0, [])",
    ),
    Fault(
        "the-client-does-not-note-what-it-has",
        f"{SESSION}.take_deltas",
        "stream.received[delta.index] += delta.token_ids",
    ),
    Fault(
        "an-answer-made-again-is-told-twice",
        f"{SESSION}.take_deltas",
        "elif delta.index not in stream.unfinished:",
        "elif False:",
    ),
    Fault(
        "usage-of-a-finished-answer-is-dropped",
        f"{STREAM}.lacks_usage",
        "return answer_count(self.request.params) > 1 and self.unfinished == {delta.index}",
        "return False",
        fails=gateway_fails,
        first=20,
    ),
    Fault(
        "a-gateway-that-forgot-us-fails-the-requests",
        f"{SESSION}.take_error",
        'self.state == "ready" and error.code == ProtocolError.code',
        "False",
    ),
    # --- tokenizer, scheduler, executor, detokenizer -----------------------------------------------------
    Fault(
        "the-tokenizer-drops-what-was-delivered",
        f"{TOKENIZER}.pass_on",
        "submit.delivered,",
        'b"",',
    ),
    Fault(
        "the-tokenizer-drops-the-attempt",
        f"{TOKENIZER}.pass_on",
        "submit.attempt,",
        "0,",
    ),
    Fault(
        "the-gateway-is-not-told-of-the-prompt",
        f"{TOKENIZER}.pass_on",
        'self.send("gateway", Tokenized(submit.request, ids))',
    ),
    Fault("a-request-sent-again-is-not-said-again", f"{SCHEDULER}.on_enqueue", "self.resend(known, message)"),
    Fault("the-scheduler-keeps-the-old-attempt", f"{SCHEDULER}.resend", "sequence.attempt = message.attempt"),
    Fault(
        "delivered-tokens-are-said-again",
        f"{SCHEDULER}.resend",
        "first = sequence.prompt_len + sequence.delivered",
        "first = sequence.prompt_len",
    ),
    Fault(
        "the-scheduler-keeps-the-old-count-of-delivered-tokens",
        f"{SCHEDULER}.resend",
        "sequence.delivered = len(message.delivered) // 4",
    ),
    Fault("a-stream-is-not-opened-again", f"{SCHEDULER}.resend", "self.open(sequence, 0)"),
    Fault(
        "logprobs-are-not-said-again",
        f"{SCHEDULER}.resend",
        "logprobs=sequence.last_logprobs(len(missing))",
        "logprobs=None",
    ),
    Fault(
        "the-wrong-logprobs-are-said-again",
        f"{SEQUENCE}.last_logprobs",
        "self.logprobs.last(count)",
        "Logprobs(self.logprobs.tokens[:count], self.logprobs.values[:count])",
    ),
    Fault(
        "an-answer-that-was-complete-goes-on",
        f"{SCHEDULER}.is_over",
        "stopped or len(sequence.tokens) >= sequence.max_length",
        "stopped",
        fails=gateway_fails,
    ),
    Fault(
        "a-stop-that-was-delivered-is-forgotten",
        f"{SCHEDULER}.is_over",
        "last in sequence.stop_tokens",
        "False",
        fails=gateway_fails,
    ),
    Fault(
        "the-scheduler-begins-anew",
        f"{ARRIVALS}.sequence_of",
        "np.concatenate([prompt, delivered])",
        "prompt",
    ),
    Fault(
        "delivered-tokens-count-as-prompt",
        f"{ARRIVALS}.sequence_of",
        "prompt_len=len(prompt)",
        "prompt_len=len(prompt) + len(delivered)",
    ),
    Fault(
        "the-text-goes-on-behind-the-prompt",
        f"{OUTGOING}.open",
        "end = sequence.prompt_len + sequence.delivered",
        "end = sequence.prompt_len",
    ),
    Fault(
        "a-stop-text-of-an-earlier-attempt-ends-a-later-one",
        f"{SCHEDULER}.on_matched",
        "sequence.attempt == attempt",
        "True",
        fails=detokenizer_is_late,
    ),
    Fault("suspects-are-never-tried", f"{QUARANTINE}.resolve_crash", "self.suspects.appendleft(sequence)"),
    Fault("a-probation-does-not-end", f"{QUARANTINE}.take_passed", "self.on_probation = None"),
    Fault("steps-of-a-dead-executor-are-waited-for", f"{SCHEDULER}.on_peer_up", "self.outstanding.clear()"),
    Fault(
        "a-dead-executors-cache-counts",
        f"{SCHEDULER}.on_peer_up",
        "self.deaths.invalidate_device_state(computing)",
    ),
    Fault(
        "ghost-tokens-go-on",
        f"{SCHEDULER}.on_sampled",
        "alive = table.accepting[slots]",
        "alive = table.accepting[slots] | True",
    ),
    Fault(
        "tokens-since-the-last-prefill-are-forgotten",
        f"{HOLDINGS}.forget_device",
        "sequence.tokens = self.table.known(sequence.slot).copy()",
    ),
    Fault(
        "ended-sequences-run-again",
        f"{EXECUTOR_DEATHS}.invalidate_sequence",
        "if sequence.finished:",
        "if False:",
        first=111,
    ),
    Fault("the-batch-of-a-dead-scheduler-stays", f"{EXECUTOR}.welcome_scheduler", "self.batch.clear()"),
    Fault(
        "results-for-a-dead-scheduler-reach-the-new",
        f"{EXECUTOR}.on_completed",
        "if not self.scheduler_is_new:",
        "if True:",
        fails=scheduler_fails,
        first=23,
    ),
    Fault("a-new-scheduler-is-not-welcomed", f"{EXECUTOR}.on_peer_up", "self.scheduler_is_new = True"),
    Fault("the-prompts-last-character-is-forgotten", f"{DETOKENIZER}.open", "answer.characters(token)"),
    Fault("delivered-text-is-not-gone-through-again", f"{DETOKENIZER}.open", "answer.text(token)"),
]
