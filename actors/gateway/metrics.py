"""The gateway's counters and histograms of requests, for ``Stats``.

Requests balance at any time: ``requests_accepted = requests_finished + requests_failed + requests_aborted +
requests_open``; those that were refused at once were never accepted. Times are from one clock, that of
the gateway's host: from a request's arrival to what leaves for its client.
"""

from __future__ import annotations

from collections import Counter

from ..histogram import Histogram
from .delivery import Delivery
from .ledger import Request

SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 25.0, 50.0, 100.0),
)
"""Bounds of the histograms of times: the default ones of Prometheus' client, with more for a fast device and for long
answers."""

COUNTS = (1.0, 2.0, 5.0, 10.0, 20.0)
"""Bounds of the histogram of ``n``: those of vLLM, whose dashboards so can be used."""

TOKENS = tuple(float(10**power * step) for power in range(6) for step in (1, 2, 5))


class Metrics:
    """The gateway's counters and histograms."""

    def __init__(self) -> None:
        names = ("accepted", "refused", "finished", "failed", "aborted")
        self.counters: dict[str, float] = {f"requests_{name}": 0.0 for name in names}
        self.counters |= {f"request_success_{reason}": 0.0 for reason in ("stop", "length")}
        self.histograms = {
            "time_to_first_token_seconds": Histogram(SECONDS),
            "inter_token_latency_seconds": Histogram(SECONDS),
            "request_time_per_output_token_seconds": Histogram(SECONDS),
            "e2e_request_latency_seconds": Histogram(SECONDS),
            "request_queue_time_seconds": Histogram(SECONDS),
            "request_prefill_time_seconds": Histogram(SECONDS),
            "request_decode_time_seconds": Histogram(SECONDS),
            "request_inference_time_seconds": Histogram(SECONDS),
            "request_prompt_tokens": Histogram(TOKENS),
            "request_prefill_kv_computed_tokens": Histogram(TOKENS),
            "request_max_num_generation_tokens": Histogram(TOKENS),
            "request_params_n": Histogram(COUNTS),
            "request_params_max_tokens": Histogram(TOKENS),
            "request_generation_tokens": Histogram(TOKENS),
        }
        self.errors: Counter[str] = Counter()
        """Requests that were refused or ended with an error, by its code."""
        self.stepped_at: float | None = None
        """When the last step's tokens came; None if nothing was under way after it."""
        self.step = -1
        """The step that is being taken in, which may come in parts."""
        self.before_at: float | None = None
        """When the tokens of the step before that came."""

    def count(self, what: str, requests: int = 1) -> None:
        self.counters[f"requests_{what}"] += requests

    def on_accepted(self, request: Request, now: float) -> None:
        self.count("accepted")
        request.accepted_at = now

    def on_delivery(self, delivery: Delivery, step: int, tokens: int, busy: bool, now: float) -> None:
        """One step's, or a part of it. The time since the step before is the latency of each token that was not a
        first one."""
        ttft, itl = (
            self.histograms["time_to_first_token_seconds"],
            self.histograms["inter_token_latency_seconds"],
        )
        for answer in delivery.begun:
            if answer.request.first_at is None:
                answer.request.first_at = now
                ttft.add(now - answer.request.accepted_at)
        later = tokens - len(delivery.begun)
        if step != self.step:
            self.step, self.before_at = step, self.stepped_at
        if later > 0 and self.before_at is not None:
            itl.add(now - self.before_at, later)
        if tokens:
            self.stepped_at = now
        if not busy:
            self.stepped_at = None
        for reason, answers in delivery.reasons.items():
            if reason != "abort":
                self.counters[f"request_success_{reason}"] += answers
        for request in delivery.finished:
            self.on_finished(request, now)

    def on_finished(self, request: Request, now: float) -> None:
        self.count("finished")
        tokens = sum(len(answer.delivered) for answer in request.answers)
        self.histograms["e2e_request_latency_seconds"].add(now - request.accepted_at)
        self.histograms["request_prompt_tokens"].add(request.prompt_tokens)
        computed = request.prompt_tokens - request.cached_tokens
        self.histograms["request_prefill_kv_computed_tokens"].add(computed)
        self.histograms["request_generation_tokens"].add(tokens)
        longest = max((len(answer.delivered) for answer in request.answers), default=0)
        self.histograms["request_max_num_generation_tokens"].add(longest)
        self.histograms["request_params_n"].add(request.params.n)
        if request.params.max_tokens is not None:
            self.histograms["request_params_max_tokens"].add(request.params.max_tokens)
        if request.planned_at is not None:
            self.histograms["request_queue_time_seconds"].add(request.queued_s)
            self.histograms["request_inference_time_seconds"].add(now - request.planned_at)
        if request.first_at is not None:
            self.histograms["request_decode_time_seconds"].add(now - request.first_at)
            if request.planned_at is not None:
                prefill = request.first_at - request.planned_at
                self.histograms["request_prefill_time_seconds"].add(prefill)
        if request.first_at is not None and tokens > len(request.answers):
            per_token = (now - request.first_at) * len(request.answers) / (tokens - len(request.answers))
            self.histograms["request_time_per_output_token_seconds"].add(per_token)

    def as_counters(self, open_requests: int) -> dict[str, float]:
        found = self.counters | {"requests_open": float(open_requests)}
        found |= {f"request_errors_{code}": float(requests) for code, requests in self.errors.items()}
        for name, histogram in self.histograms.items():
            found |= histogram.counters(name)
        return found
