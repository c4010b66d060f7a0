"""The scheduler: continuous batching one step ahead of the device.

Up to ``depth`` plans may be outstanding. A plan is made from *positions*: it says where the next token of each
sequence will be, never which token that is. So plan N+1 is sent while step N computes. When the results of step N
come, its tokens are appended, sequences end, and what no outstanding step uses is freed.

This file is the actor: it keeps the sequences and handles the messages about them. ``planner.py`` decides what the
plans say; ``holdings.py`` records which sequence holds which slot and blocks.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from ...protocol.events import PeerUp
from ...protocol.internal import (
    AdapterSlotFilled,
    AdapterSlotFreed,
    AddAdapter,
    Cancel,
    Capacity,
    Enqueue,
    Finished,
    ForgetCache,
    GrammarEnd,
    ListAdapters,
    Matched,
    RemoveAdapter,
    Sampled,
    first_number,
)
from ...runtime.actor import Actor
from ..options import SchedulerOptions
from .adapters import AdapterRegistry
from .arrivals import Arrivals, too_long
from .config import SchedulerConfig
from .executor_deaths import ExecutorDeaths
from .holdings import Holdings
from .logprobs import Logprobs
from .metrics import Metrics
from .outgoing import NO_REQUESTS, NO_TOKENS, Outgoing
from .plan_builder import OutstandingStep
from .plan_timing import PlanTiming
from .planner import Planner
from .quarantine import MESSAGE
from .sequence import Sequence

if TYPE_CHECKING:
    from ...runtime.process.child import StartContext


class Scheduler(Actor):
    """Keeps the tokens of every sequence, sends plans to the executor and tokens to the detokenizer."""

    name = "scheduler"
    blocking = True

    def __init__(self, config: SchedulerConfig) -> None:
        super().__init__()
        self.config = config
        self.arrivals = Arrivals(config)
        self.handlers |= {
            Enqueue: self.on_enqueue,
            Cancel: self.on_cancel,
            ForgetCache: self.on_forget_cache,
            Capacity: self.on_capacity,
            Sampled: self.on_sampled,
            Matched: self.on_matched,
            ListAdapters: self.on_asked_of_adapters,
            AddAdapter: self.on_asked_of_adapters,
            RemoveAdapter: self.on_asked_of_adapters,
            AdapterSlotFilled: self.on_adapter_slot_filled,
            AdapterSlotFreed: self.on_adapter_slot_freed,
        }
        self.sequences: dict[int, Sequence] = {}
        """The sequences that have not ended, by the number of their request."""
        self.metrics = Metrics()
        self.counters = self.metrics.counters
        self.holdings = Holdings(config.max_num_seqs, config.max_model_len, self.counters)
        self.deaths = ExecutorDeaths(self.holdings)
        self.planner = Planner(config, self.holdings, self.deaths, self.counters)
        self.adapters = AdapterRegistry(self.send)
        self.timing = PlanTiming()
        self.outstanding: deque[OutstandingStep] = deque()
        """The steps that were planned and whose results have not come, oldest first."""
        self.outgoing = Outgoing()
        self.forgotten = 0
        """Number of the last ``ForgetCache``."""

    @property
    def idle(self) -> bool:
        return not self.sequences

    # --- requests come and go ---------------------------------------------------------------------

    def on_enqueue(self, message: Enqueue, now: float) -> None:
        known = self.sequences.get(message.request)
        if known is not None:
            self.resend(known, message)
            return
        sequence = self.arrivals.sequence_of(message, now)
        if refusal := self.refusal_of(sequence):
            self.refuse(refusal)
            return
        self.sequences[message.request] = sequence
        self.holdings.enqueue(sequence)
        if sequence.delivered and self.is_over(sequence):
            self.flush(-1)
        self.plan_ahead(now)

    def is_over(self, sequence: Sequence) -> bool:
        """Whether a sequence that was sent again already had its last token. If so, report its end."""
        last = int(sequence.tokens[-1])
        stopped = last in sequence.stop_tokens
        if stopped or len(sequence.tokens) >= sequence.max_length:
            self.open(sequence, 0)
            if stopped:
                self.finish(sequence, "stop", None if last in sequence.eos else last)
            else:
                self.finish(sequence, "length")
        return sequence.finished

    def refusal_of(self, sequence: Sequence) -> Finished | None:
        """The error for a sequence that the executor cannot compute; None if it can, or if no executor has come yet."""
        if message := too_long(sequence, self.holdings.longest):
            return Finished(sequence.request, "context_length_exceeded", None, message)
        if missing := self.adapters.resolve(sequence):
            return Finished(sequence.request, "model_not_found", None, missing, "adapter")
        return None

    def refuse(self, refusal: Finished) -> None:
        self.counters["num_requests_refused"] += 1
        self.outgoing.finished.append(refusal)
        self.flush(-1)

    def fail_quarantined(self, sequence: Sequence) -> None:
        self.counters["num_requests_quarantined"] += 1
        sequence.finished = True
        del self.sequences[sequence.request]
        self.outgoing.finished.append(Finished(sequence.request, "quarantined", None, MESSAGE))
        self.flush(-1)

    def resend(self, sequence: Sequence, message: Enqueue) -> None:
        """The gateway has sent a known request again: send it the tokens that it does not have."""
        if message.attempt <= sequence.attempt:
            return
        sequence.attempt = message.attempt
        sequence.delivered = len(message.delivered) // 4
        if not sequence.opened:
            return
        self.open(sequence, 0)
        first = sequence.prompt_len + sequence.delivered
        missing = self.holdings.known(sequence)[first:]
        requests = np.full(len(missing), sequence.request, np.int64)
        self.flush(-1, requests, missing, logprobs=sequence.last_logprobs(len(missing)))

    def on_cancel(self, message: Cancel, now: float) -> None:
        for request in message.requests:
            sequence = self.sequences.get(request)
            if sequence is not None:
                self.finish(sequence, "abort")
        self.flush(-1)
        self.plan_ahead(now)
        self.free_unused_adapters()

    def on_forget_cache(self, message: ForgetCache, now: float) -> None:
        if message.number > self.forgotten and self.holdings.blocks is not None:
            self.holdings.blocks.forget()
        self.forgotten = max(self.forgotten, message.number)

    def on_matched(self, message: Matched, now: float) -> None:
        for request, attempt in zip(message.requests, message.attempts, strict=True):
            sequence = self.sequences.get(request)
            if sequence is not None and sequence.attempt == attempt:
                self.end(sequence)
        self.plan_ahead(now)

    def finish(self, sequence: Sequence, reason: str, stop_reason: int | None = None) -> None:
        """End the sequence, and report that and the reason to the detokenizer."""
        self.outgoing.finished.append(Finished(sequence.request, reason, stop_reason))
        self.end(sequence)

    def end(self, sequence: Sequence) -> None:
        """End the sequence without a report: forget it and free what it holds. It may have ended already."""
        if sequence.finished:
            return
        sequence.finished = True
        del self.sequences[sequence.request]
        self.holdings.drop(sequence)

    def open(self, sequence: Sequence, cached: int) -> None:
        """Announce the sequence to the detokenizer, with the last tokens before those whose text it will make."""
        sequence.opened = True
        self.outgoing.open(sequence, self.holdings.known(sequence), cached, self.now)

    # --- adapters ---------------------------------------------------------------------------------

    def on_asked_of_adapters(self, message: ListAdapters | AddAdapter | RemoveAdapter, now: float) -> None:
        self.adapters.on_asked(message, self.holdings.step - 1)
        self.free_unused_adapters()

    def on_adapter_slot_filled(self, message: AdapterSlotFilled, now: float) -> None:
        self.adapters.on_slot_filled(message.adapter, message.error)

    def on_adapter_slot_freed(self, message: AdapterSlotFreed, now: float) -> None:
        self.adapters.on_slot_freed(message.id)

    def free_unused_adapters(self) -> None:
        """Free the slots of unloaded adapters that no sequence and no outstanding step uses any more."""
        if self.adapters.leaving:
            used = {sequence.adapter for sequence in self.sequences.values()}
            last = self.holdings.step - 1
            completed = self.outstanding[0].step - 1 if self.outstanding else last
            self.adapters.free_unused(used, last, completed)

    # --- plans and results ------------------------------------------------------------------------

    def plan_ahead(self, now: float) -> None:
        """Send plans until ``depth`` are outstanding or there is nothing to run. If the next plan is due only later,
        set a timer for it."""
        planner, timing = self.planner, self.timing
        while self.holdings.blocks is not None and len(self.outstanding) < self.config.depth:
            if self.outstanding:
                due = timing.due(now, sum(step.expected_s for step in self.outstanding))
                if due > now:
                    self.wake_at = due
                    return
            else:
                timing.begin(now)
            planned = planner.plan()
            for sequence, cached in planner.take_admitted():
                self.note_moment("planned", sequence.request)
                if not sequence.opened:
                    self.counters["prompt_tokens"] += sequence.prompt_len
                    self.open(sequence, cached)
            if planned is None:
                return
            plan, outstanding = planned
            self.outstanding.append(outstanding)
            self.send("executor", plan)

    def on_wake(self, now: float) -> None:
        self.plan_ahead(now)

    def on_sampled(self, message: Sampled, now: float) -> None:
        """Take in the tokens of the oldest outstanding step. A ghost token, which is of a sequence that has ended, is
        dropped."""
        step, slots, generations, prefill, expected_s, prompts = self.outstanding.popleft()
        self.timing.begin(now)
        if step != message.step:
            raise RuntimeError(
                f"the executor answered step {message.step}; step {step} is the oldest outstanding"
            )
        table = self.holdings.table
        if table.generation[slots].tobytes() != generations:
            raise RuntimeError(
                f"a sequence slot has a new holder before step {step}, which runs the old, is over"
            )
        tokens = np.frombuffer(message.tokens, np.int32)
        if prompts:
            self.keep_prompt_logprobs(message, prompts)
        for end in message.ends:
            self.end_by_grammar(end)
        alive = table.accepting[slots]
        logprobs = None
        if message.logprobs:
            logprobs = Logprobs.read(message.logprob_tokens, message.logprobs, len(slots)).take(alive)
        busy_ns, waited_s = self.metrics.on_step(message)
        self.planner.prefill_budget.learn(prefill, busy_ns)
        self.timing.learn(expected_s, busy_ns * 1e-9, waited_s)
        scheduled = len(slots)
        # np.count_nonzero takes a quarter of the time of a sum. Some versions of numpy return a numpy integer.
        if int(np.count_nonzero(alive)) != scheduled:
            slots, tokens = slots[alive], tokens[alive]
        if np.count_nonzero(tokens < 0):
            raise RuntimeError(f"step {step} has no token for a sequence that has not ended")
        self.metrics.on_rows(scheduled, len(slots), prefill)
        length = table.length[slots]
        table.tokens[slots, length] = tokens
        table.length[slots] = length + 1
        if logprobs is not None:
            logprobs = self.keep_logprobs(slots, logprobs)
        requests = table.request[slots]
        self.end_rows(slots, tokens, length + 1 >= table.max_length[slots])
        self.deaths.end_probation()
        self.holdings.complete(step)
        self.plan_ahead(now)
        self.free_unused_adapters()
        self.metrics.free_since_ns = message.ended_ns if self.outstanding else None
        self.flush(step, requests, tokens, now, logprobs)

    def end_rows(self, slots: np.ndarray, tokens: np.ndarray, over: np.ndarray) -> None:
        """End the sequences whose new token is one of their stop tokens, or that ``over`` says are at their length."""
        stops = self.holdings.table.stop.take(slots, axis=0) == tokens[:, None]
        if np.count_nonzero(stops):  # few steps have any, and testing row by row takes ten times as long
            over |= stops.any(axis=1)
        for row in over.nonzero()[0].tolist():
            sequence = self.holdings.holder(int(slots[row]))
            if stops[row].any():
                token = int(tokens[row])
                self.finish(sequence, "stop", None if token in sequence.eos else token)
            else:
                self.finish(sequence, "length")

    def end_by_grammar(self, end: GrammarEnd) -> None:
        """End a sequence that got no token because its grammar allows none."""
        if not self.holdings.table.accepting[end.slot]:
            return
        sequence = self.holdings.holder(end.slot)
        if end.error:
            grammar = sequence.grammar
            param = None if grammar is None else grammar.kind
            self.outgoing.finished.append(
                Finished(sequence.request, "invalid_request", None, end.error, param)
            )
            self.end(sequence)
        else:
            self.finish(sequence, "stop")

    def keep_prompt_logprobs(self, message: Sampled, prompts: list[tuple[Sequence, int]]) -> None:
        """Keep the logprobs of prompts, whose rows are in the order of the plan's chunks. They are sent when those of a
        whole prompt are there."""
        count = sum(rows for _, rows in prompts)
        logprobs = Logprobs.read(message.prompt_logprob_tokens, message.prompt_logprobs, count)
        first = 0
        for sequence, rows in prompts:
            assert sequence.prompt_logprobs is not None
            sequence.prompt_logprobs.extend(logprobs, first, rows)
            first += rows
            self.outgoing.report_prompt_logprobs(sequence)

    def keep_logprobs(self, slots: np.ndarray, logprobs: Logprobs) -> Logprobs | None:
        """Keep the logprobs of the rows whose requests ask for them; returns None if none does."""
        wanting = np.flatnonzero(self.holdings.table.logprobs[slots] >= 0).tolist()
        for row in wanting:
            kept = self.holdings.holder(int(slots[row])).logprobs
            assert kept is not None
            kept.extend(logprobs, row, 1)
        return logprobs if wanting else None

    def flush(
        self,
        step: int,
        requests: np.ndarray = NO_REQUESTS,
        tokens: np.ndarray = NO_TOKENS,
        now: float = 0.0,
        logprobs: Logprobs | None = None,
    ) -> None:
        """Send everything that is new to the detokenizer, in one message."""
        counters: dict[str, float] | None = None
        if self.metrics.due(now) or not self.outstanding:
            counters = self.metrics.take(now) | self.gauges()
        message = self.outgoing.take(step, requests, tokens, counters, logprobs)
        if message is not None:
            self.send("detokenizer", message)

    def gauges(self) -> dict[str, float]:
        held, blocks = self.holdings, self.holdings.blocks
        return {
            "num_requests_running": float(sum(1 for s in held.holders if s is not None and not s.finished)),
            "num_requests_waiting": float(len(held.waiting) + len(held.quarantine)),
            "max_num_seqs": float(self.config.max_num_seqs),
            "kv_cache_usage_perc": 0.0 if blocks is None else blocks.usage,
            "kv_cache_blocks": 0.0 if blocks is None else float(blocks.count),
            "kv_cache_block_size": 0.0 if blocks is None else float(blocks.block_size),
            "prefix_cache_evictions": self.counters["prefix_cache_evictions"]
            + (0.0 if blocks is None else blocks.evictions),
            **self.adapters.gauges(self.sequences.values()),
        }

    # --- peers ------------------------------------------------------------------------------------

    def on_peer_up(self, peer: PeerUp, now: float) -> None:
        """A new executor holds nothing, so its sequences wait again. A new gateway numbers its requests anew, so those
        of the old one end."""
        if peer.name == "executor":
            computing = bool(self.outstanding)
            self.outstanding.clear()
            self.metrics.free_since_ns = None
            self.deaths.invalidate_device_state(computing)
        if peer.name == "gateway":
            for sequence in list(self.sequences.values()):
                if sequence.request < first_number(peer.epoch):
                    self.end(sequence)
        if peer.name == "detokenizer" and self.holdings.blocks is not None:
            self.flush(-1)

    def on_capacity(self, message: Capacity, now: float) -> None:
        """The executor is ready, and says how large its cache is."""
        self.planner.begin(message)
        for sequence in self.deaths.resolve_crash(message.crashed):
            self.fail_quarantined(sequence)
        self.adapters.begin(message, self.holdings.step - 1)
        self.free_unused_adapters()
        for sequence in list(self.sequences.values()):
            if refusal := self.refusal_of(sequence):
                self.end(sequence)
                self.refuse(refusal)
        self.plan_ahead(now)
        if not self.outstanding:
            self.flush(-1)


def build(context: StartContext) -> Scheduler:
    """The scheduler of a service, from its options."""
    options = context.options_as(SchedulerOptions)
    return Scheduler(
        SchedulerConfig(
            max_num_seqs=options.max_num_seqs,
            max_num_batched_tokens=options.max_num_batched_tokens,
            max_model_len=options.max_model_len,
            depth=options.pipeline_depth,
            eos_token_ids=options.eos_token_ids,
            prefix_caching=options.enable_prefix_caching,
        )
    )
