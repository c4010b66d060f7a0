"""``/metrics``: the service's counters for Prometheus, with the names that vLLM's dashboards know.

The gateway counts and times, the scheduler counts steps, the supervisor knows the actors; here they only get
their names. What is not in the tables below is there too, under the name that the service has for it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    UnknownMetricFamily,
)
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from ....protocol.messages import Actors
from ..service import Service

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

GAUGES = {
    "num_requests_running": "Requests that hold a sequence slot",
    "num_requests_waiting": "Requests that wait for one",
    "max_num_seqs": "Sequence slots, which is how many requests can run at once",
    "kv_cache_usage_perc": "Share of the KV cache in use, 0 to 1",
    "requests_open": "Requests that were accepted and have not ended",
}
COUNTERS = {
    "prompt_tokens": ("prompt_tokens", "Prompt tokens processed"),
    "generation_tokens": ("generation_tokens", "Tokens generated"),
    "num_preemptions": ("num_preemptions", "Times that a sequence had to make room"),
    "num_preemptions_for_fairness": ("num_preemptions_for_fairness", "Of these, for another client's turn"),
    "num_block_copies": ("num_block_copies", "Cache blocks copied because their sequences parted"),
    "prefill_tokens": ("prefill_tokens", "Prompt tokens computed, those of repeated prefills included"),
    "prefix_cache_evictions": ("prefix_cache_evictions", "Cached blocks given up for others"),
    "num_requests_quarantined": (
        "num_requests_quarantined",
        "Requests given up because an actor died twice while it had them",
    ),
    "num_requests_refused": ("scheduler_requests_refused", "Requests that the scheduler could never run"),
    "prefix_cache_queries": ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache"),
    "prefix_cache_hits": ("prefix_cache_hits", "Prompt tokens found in the prefix cache"),
    "requests_accepted": ("requests_accepted", "Requests taken: finished + failed + aborted + open"),
    "requests_refused": ("requests_refused", "Requests refused before they were accepted"),
    "requests_finished": ("requests_finished", "Requests with complete answers"),
    "requests_failed": ("requests_failed", "Requests that ended with an error"),
    "requests_aborted": ("requests_aborted", "Requests ended by their clients"),
    "steps": ("steps", "Steps of the device"),
    "scheduled_rows": ("scheduled_rows", "Rows of those steps that were to give a token"),
    "wasted_rows": ("wasted_rows", "Rows whose sequence had already ended"),
    "dead_letters": ("dead_letters", "Messages to an actor that was not there"),
    "stale": ("stale_messages", "Messages of an actor's earlier life, dropped"),
    "malformed": ("malformed_frames", "Frames that were no message"),
    "unexpected": ("unexpected_messages", "Messages of which the actor knows nothing"),
    "device_busy_s": ("device_busy_seconds", "Time in which the device computed"),
    "device_idle_s": ("device_idle_seconds", "Time in which it waited, for a step or masks, with work there"),
}
"""By what the service calls it: its name here, less ``_total``, and what it is."""

HISTOGRAMS = {
    "time_to_first_token_seconds": "From a request's arrival to its first token",
    "inter_token_latency_seconds": "Between two steps that brought tokens, once for each token",
    "request_time_per_output_token_seconds": "Of a request, from its first token to its end, per token",
    "e2e_request_latency_seconds": "From a request's arrival to the end of its answer",
    "request_queue_time_seconds": "Of a request in the scheduler, until the first step that it is in is planned",
    "request_prefill_time_seconds": "From then to its first token",
    "request_inference_time_seconds": "From then to the end of its answer",
    "request_decode_time_seconds": "From a request's first token to the end of its answer",
    "request_prompt_tokens": "Prompt tokens of a request",
    "request_prefill_kv_computed_tokens": "Of these, those that were not in the prefix cache",
    "request_max_num_generation_tokens": "Tokens of the longest answer of a request",
    "request_params_n": "Answers that a request asks for",
    "request_params_max_tokens": "Tokens that a request allows an answer",
    "request_generation_tokens": "Tokens generated for a request",
    "iteration_tokens_total": "Tokens of a step, of prompts and sampled",
}

LABELS = ("model_name", "engine")
"""Labels that every metric has, so that boards made for several engines of vLLM read it."""

ENGINE = "0"

REASONS = "request_success_"
ERRORS = "request_errors_"


class Families(Collector):
    """The metrics of one moment."""

    def __init__(
        self,
        prefix: str,
        model: str,
        counters: dict[str, float],
        actors: Actors,
        statuses: Mapping[int, int] = MappingProxyType({}),
        errors: Mapping[str, int] = MappingProxyType({}),
        now: float = 0.0,
    ) -> None:
        """``now`` in seconds since 1970."""
        self.prefix = prefix
        self.model = model
        self.counters = counters
        self.actors = actors
        self.statuses = statuses
        self.errors = errors
        self.now = now

    def collect(self) -> Iterator[Metric]:
        left = dict(self.counters)
        # Those on their way to the scheduler wait too; in a burst they are most of them.
        outside = left.get("requests_open", 0.0) - left.get("num_requests_running", 0.0)
        left["num_requests_waiting"] = max(left.get("num_requests_waiting", 0.0), outside)
        for name, about in GAUGES.items():
            yield self.family(GaugeMetricFamily, name, about, {(): left.pop(name, 0.0)})
        yield self.cache_config(left)
        yield from self.adapters(left)
        for key, (name, about) in COUNTERS.items():
            yield self.family(CounterMetricFamily, name, about, {(): left.pop(key, 0.0)})
        reasons = {
            (key.removeprefix(REASONS),): left.pop(key) for key in list(left) if key.startswith(REASONS)
        }
        codes = {(key.removeprefix(ERRORS),): left.pop(key) for key in list(left) if key.startswith(ERRORS)}
        said = "Requests that were refused or ended with an error, by its code"
        yield self.family(CounterMetricFamily, "request_errors", said, codes, ("code",))
        about = "Answers that are complete, by the reason of their end"
        yield self.family(CounterMetricFamily, "request_success", about, reasons, ("finished_reason",))
        for name, about in HISTOGRAMS.items():
            yield self.histogram(name, about, left)
        yield from self.of_actors()
        left.pop("actor_restarts", None)  # those of all actors together
        answered = {(str(status),): float(count) for status, count in sorted(self.statuses.items())}
        about = "HTTP requests answered, by status; those that the gateway never saw are counted nowhere else"
        yield self.family(CounterMetricFamily, "http_requests", about, answered, ("status",))
        refused = {(reason,): float(count) for reason, count in sorted(self.errors.items())}
        about = "HTTP requests answered with an error, by its code or, where it has none, its type"
        yield self.family(CounterMetricFamily, "http_errors", about, refused, ("reason",))
        for name, value in sorted(left.items()):
            yield self.family(UnknownMetricFamily, name, "As the service counts it", {(): value})

    def family(
        self,
        kind: Any,
        name: str,
        about: str,
        values: dict[tuple[str, ...], float],
        labels: Iterable[str] = (),
    ) -> Metric:
        made = kind(self.prefix + name, about, labels=[*LABELS, *labels])
        for given, value in values.items():
            made.add_metric([self.model, ENGINE, *given], value)
        return made

    def cache_config(self, left: dict[str, float]) -> Metric:
        """The size of the cache as labels, since gateways of clusters read it there; nothing until it is known."""
        blocks, size = (int(left.pop(name, 0.0)) for name in ("kv_cache_blocks", "kv_cache_block_size"))
        known = {(str(size), str(blocks)): 1.0} if blocks else {}
        about = "Blocks of the KV cache, and tokens in each"
        return self.family(
            GaugeMetricFamily, "cache_config_info", about, known, ("block_size", "num_gpu_blocks")
        )

    def adapters(self, left: dict[str, float]) -> Iterator[Metric]:
        """Which adapters requests run and wait with, as labels, since gateways of clusters read them there; the value
        is the time. Nothing where there are none."""
        slots = left.pop("adapter_slots", 0.0)
        running, waiting = (
            ",".join(
                sorted(
                    key.removeprefix(begin) for key in list(left) if key.startswith(begin) and left.pop(key)
                )
            )
            for begin in ("adapter_running_", "adapter_waiting_")
        )
        if slots:
            labels = ("max_lora", "running_lora_adapters", "waiting_lora_adapters")
            values = {(str(int(slots)), running, waiting): self.now}
            about = "When it was so, in seconds since 1970"
            yield self.family(GaugeMetricFamily, "lora_requests_info", about, values, labels)

    def histogram(self, name: str, about: str, left: dict[str, float]) -> Metric:
        begin = f"{name}_bucket_"
        buckets = [(key.removeprefix(begin), left.pop(key)) for key in list(left) if key.startswith(begin)]
        made = HistogramMetricFamily(self.prefix + name, about, labels=LABELS)
        bounds = [("+Inf" if bound == "inf" else bound, count) for bound, count in buckets]
        left.pop(f"{name}_count", None)
        made.add_metric([self.model, ENGINE], bounds or [("+Inf", 0.0)], left.pop(f"{name}_sum", 0.0))
        return made

    def of_actors(self) -> Iterator[Metric]:
        by = {(actor.name,): actor for actor in self.actors.actors}
        labels = ("actor",)
        up = {key: float(actor.state == "ready") for key, actor in by.items()}
        yield self.family(GaugeMetricFamily, "actor_up", "Whether the actor is ready", up, labels)
        restarts = {key: float(actor.restarts) for key, actor in by.items()}
        about = "Restarts since the start of the service"
        yield self.family(CounterMetricFamily, "actor_restarts", about, restarts, labels)
        depth = {key: float(actor.mailbox_depth) for key, actor in by.items()}
        about = "Messages that it has not taken in yet"
        yield self.family(GaugeMetricFamily, "actor_mailbox_depth", about, depth, labels)
        busy = {key: actor.busy_s for key, actor in by.items()}
        about = "Time spent in handling messages, since its last restart"
        yield self.family(CounterMetricFamily, "actor_busy_seconds", about, busy, labels)
        for name, about, seconds in (
            ("ready", "when it was ready", {key: actor.ready_s for key, actor in by.items()}),
            (
                "full_speed",
                "when it was as fast as it gets",
                {key: actor.full_speed_s for key, actor in by.items()},
            ),
        ):
            known = {key: value for key, value in seconds.items() if value is not None}
            about = f"From the actor's last start to {about}; not there until then"
            yield self.family(GaugeMetricFamily, f"actor_{name}_seconds", about, known, labels)
        hidden = max(0.0, sum(busy.values()) - self.counters.get("device_idle_s", 0.0))
        about = "Host time behind which the device did not wait: actor_busy_seconds less device_idle_seconds"
        yield self.family(GaugeMetricFamily, "host_hidden_seconds", about, {(): hidden})


async def metrics(service: Service, request: Request) -> Response:
    counters, actors = await service.client.stats(), await service.client.actors()
    registry = CollectorRegistry(auto_describe=False)
    registry.register(
        Families(
            service.metrics_prefix,
            service.model,
            counters,
            actors,
            service.statuses,
            service.errors,
            time.time(),
        )
    )
    return Response(generate_latest(registry), media_type=CONTENT_TYPE)
