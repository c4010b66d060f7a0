"""What is counted adds up, and reaches Prometheus under the names that boards know."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import Background, until
from prometheus_client.parser import text_string_to_metric_families
from slipstream.actors.gateway.carried_counters import CarriedCounters
from slipstream.actors.histogram import Histogram
from slipstream.protocol.errors import DeadlineExceeded, InvalidRequest

from slipstream import AsyncClient, Client, SamplingParams, Sidecar, SlipstreamError

VLLM = """num_requests_running num_requests_waiting kv_cache_usage_perc cache_config_info prompt_tokens_total
    generation_tokens_total request_success_total num_preemptions_total prefix_cache_queries_total
    prefix_cache_hits_total time_to_first_token_seconds_bucket inter_token_latency_seconds_bucket
    request_time_per_output_token_seconds_count e2e_request_latency_seconds_sum
    request_prompt_tokens_bucket request_generation_tokens_bucket request_max_num_generation_tokens_bucket
    request_params_n_bucket request_params_max_tokens_bucket request_decode_time_seconds_bucket
    request_queue_time_seconds_bucket request_prefill_time_seconds_bucket request_inference_time_seconds_bucket
    iteration_tokens_total_bucket request_prefill_kv_computed_tokens_bucket"""
"""What boards and endpoint pickers made for vLLM look for."""

BOARD = Path(__file__).parents[2] / "examples" / "grafana.json"


@pytest.fixture(scope="module")
def service() -> Iterator[Sidecar]:
    options: dict[str, Any] = {"max_num_seqs": 8, "max_queued_requests": 24, "emulated_step_ms": 1}
    with Sidecar(device="emulated", http="127.0.0.1:0", **options) as sidecar:
        yield sidecar


@pytest.fixture
def client(service: Sidecar) -> Iterator[Client]:
    with service.client() as client:
        yield client


def samples(service: Sidecar) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """What Prometheus would read: by name, then by labels, less those that all have."""
    with urllib.request.urlopen(f"{service.ready['http']}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert sample.labels["engine"] == "0"
            own = {k: v for k, v in sample.labels.items() if k not in ("model_name", "engine")}
            labels = tuple(sorted(own.items()))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def balance(counters: dict[str, float]) -> tuple[float, float]:
    ends = ("requests_finished", "requests_failed", "requests_aborted", "requests_open")
    return counters["requests_accepted"], sum(counters[name] for name in ends)


def test_the_counters_balance_at_any_time_under_a_wild_load(service: Sidecar, client: Client) -> None:
    before = client.stats()
    ends: dict[str, int] = {"finished": 0, "refused": 0, "failed": 0, "aborted": 0}
    rng = random.Random(5)

    async def one(asking: AsyncClient, kind: str) -> None:
        params: dict[str, Any] = {"max_tokens": rng.randint(1, 60)}
        prompt: Any = "Once upon a time"
        if kind == "late":
            params |= {"max_tokens": 800, "ignore_eos": True, "deadline_s": 0.05}
        elif kind == "too long":
            prompt = [5] * 1024
        elif kind == "bad":
            params["temperature"] = 9
        stream = asking.generate(prompt, SamplingParams(**params))
        try:
            async for _ in stream:
                if kind == "leaves":
                    break
            await stream.aclose()
            ends["aborted" if kind == "leaves" and params["max_tokens"] > 1 else "finished"] += 1
        except SlipstreamError as error:
            ends["refused" if error.code == "overloaded" or kind in ("bad", "too long") else "failed"] += 1

    async def load() -> None:
        async with AsyncClient(service.endpoint) as asking, AsyncClient(service.endpoint) as watching:
            kinds = ["whole"] * 30 + ["leaves"] * 15 + ["late"] * 10 + ["too long"] * 10 + ["bad"] * 10
            rng.shuffle(kinds)
            tasks = [asyncio.create_task(one(asking, kind)) for kind in kinds]
            while not all(task.done() for task in tasks):
                accepted, accounted = balance(await watching.stats())
                assert accepted == accounted
                await asyncio.sleep(0.005)
            await asyncio.gather(*tasks)

    asyncio.run(load())
    after = client.stats()
    accepted, accounted = balance(after)
    assert accepted == accounted
    assert after["requests_open"] == 0
    grown = {name: after[f"requests_{name}"] - before[f"requests_{name}"] for name in ends}
    assert sum(grown.values()) == 75
    assert grown["refused"] == ends["refused"] > 0
    assert grown["failed"] == ends["failed"] > 0
    assert grown["aborted"] > 0
    assert grown["finished"] + grown["aborted"] == ends["finished"] + ends["aborted"]
    success = sum(after[f"request_success_{reason}"] for reason in ("stop", "length"))
    assert success == after["requests_finished"]  # each had one answer
    for name in ("e2e_request_latency_seconds", "request_generation_tokens"):
        assert after[f"{name}_count"] == after["requests_finished"]


def test_latencies_are_those_of_the_steps(service: Sidecar, client: Client) -> None:
    before = client.stats()
    client.generate_many(["a"] * 4, SamplingParams(max_tokens=100, ignore_eos=True))
    after = client.stats()

    def mean(name: str) -> float:
        grown = [after[f"{name}_{part}"] - before[f"{name}_{part}"] for part in ("sum", "count")]
        return grown[0] / grown[1]

    assert after["inter_token_latency_seconds_count"] - before["inter_token_latency_seconds_count"] == 396
    # The last token comes after 100 steps of 1 ms, however late the first one was noticed.
    pauses = 99 * mean("inter_token_latency_seconds")
    assert mean("time_to_first_token_seconds") + pauses >= 0.1
    assert mean("e2e_request_latency_seconds") == pytest.approx(mean("time_to_first_token_seconds") + pauses)
    assert mean("request_generation_tokens") == mean("request_max_num_generation_tokens") == 100
    assert mean("request_params_max_tokens") == 100
    assert mean("request_params_n") == 1
    assert mean("request_decode_time_seconds") < mean("e2e_request_latency_seconds")
    assert mean("request_decode_time_seconds") == pytest.approx(pauses), (
        "from the first token, whenever that was seen"
    )
    parts = mean("request_prefill_time_seconds") + mean("request_decode_time_seconds")
    assert mean("request_inference_time_seconds") == pytest.approx(parts, abs=1e-6)
    before_first = mean("request_queue_time_seconds") + mean("request_prefill_time_seconds")
    assert 0 < before_first <= mean("time_to_first_token_seconds")


def test_tokens_of_steps_are_prompts_and_answers(service: Sidecar, client: Client) -> None:
    before = client.stats()
    output = client.generate("Once upon a time", SamplingParams(max_tokens=20, ignore_eos=True))
    after = client.stats()
    steps, tokens = (
        after[f"iteration_tokens_total_{part}"] - before[f"iteration_tokens_total_{part}"]
        for part in ("count", "sum")
    )
    assert steps == after["steps"] - before["steps"]
    computed = after["prefill_tokens"] - before["prefill_tokens"]
    assert 0 < computed <= len(output.prompt_token_ids or [])
    assert tokens == computed + 20


def test_a_request_that_waits_for_a_slot_is_in_the_queue_and_not_in_prefill() -> None:
    with (
        Sidecar(device="emulated", emulated_step_ms=5, max_num_seqs=1) as sidecar,
        sidecar.client() as client,
    ):
        first = client.stream("a", SamplingParams(max_tokens=5000, ignore_eos=True))
        next(first)
        before = client.stats()
        second = Background(sidecar, "b", SamplingParams(max_tokens=2, ignore_eos=True))
        until(
            lambda: client.stats()["num_requests_waiting"] == 1, "the second waits for the slot of the first"
        )
        begun, tokens = time.monotonic(), 0
        while tokens < 40:
            tokens += len(next(first).token_ids)
        waited = time.monotonic() - begun
        first.close()
        second.end()
        after = client.stats()
    assert after["request_queue_time_seconds_count"] == 1, "the first did not finish"
    queue, prefill = (after[f"request_{part}_time_seconds_sum"] for part in ("queue", "prefill"))
    name = "time_to_first_token_seconds"
    to_first_token, answers = (
        after[f"{name}_{part}"] - before[f"{name}_{part}"] for part in ("sum", "count")
    )
    assert answers == 1
    assert waited <= queue
    assert 0 < prefill <= to_first_token - queue


def test_prometheus_reads_what_the_service_counts(service: Sidecar, client: Client) -> None:
    client.generate("Once", SamplingParams(max_tokens=9, ignore_eos=True))
    stats, told = client.stats(), samples(service)
    for name in ("generation_tokens", "requests_accepted", "prefix_cache_queries", "steps"):
        assert told[f"slipstream_{name}_total"][()] == stats[name]
    assert told["slipstream_device_busy_seconds_total"][()] == stats["device_busy_s"]
    actors = {dict(labels)["actor"] for labels in told["slipstream_actor_up"]}
    assert actors == {"executor", "scheduler", "detokenizer", "tokenizer", "gateway", "http"}
    assert set(told["slipstream_actor_restarts_total"].values()) == {0.0}
    assert told["slipstream_actor_busy_seconds_total"][(("actor", "scheduler"),)] > 0
    ready = told["slipstream_actor_ready_seconds"]
    assert {dict(labels)["actor"] for labels in ready} == actors
    assert all(0.0 < seconds < 60.0 for seconds in ready.values())
    assert told["slipstream_actor_full_speed_seconds"] == ready, "nothing here catches up"
    buckets = told["slipstream_time_to_first_token_seconds_bucket"]
    ordered = [
        buckets[(("le", bound),)] for bound in ("0.001", "0.1", "10", "+Inf") if (("le", bound),) in buckets
    ]
    assert ordered == sorted(ordered)
    assert ordered[-1] == told["slipstream_time_to_first_token_seconds_count"][()]


def test_refusals_and_failures_are_counted_by_their_code(service: Sidecar, client: Client) -> None:
    def errors() -> dict[str, float]:
        counted = samples(service).get("slipstream_request_errors_total", {})
        return {dict(labels)["code"]: value for labels, value in counted.items()}

    before = errors()
    with pytest.raises(InvalidRequest):
        client.generate("x", SamplingParams(temperature=9.0))
    with pytest.raises(DeadlineExceeded):
        client.generate("x", SamplingParams(max_tokens=500, ignore_eos=True, deadline_s=0.01))
    after = errors()
    assert after["invalid_request"] - before.get("invalid_request", 0.0) == 1
    assert after["deadline_exceeded"] - before.get("deadline_exceeded", 0.0) == 1


def test_errors_over_http_are_counted_by_their_reason(service: Sidecar) -> None:
    def errors() -> Counter[str]:
        counted = samples(service).get("slipstream_http_errors_total", {})
        return Counter({dict(labels)["reason"]: int(value) for labels, value in counted.items()})

    before = errors()
    url, hi = service.ready["http"], [{"role": "user", "content": "hi"}]
    asked: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", {"messages": hi, "no_such_field": 1}),
        ("/v1/chat/completions", {"messages": hi, "model": "another"}),
        ("/v1/completions", {"prompt": "x " * 9000}),
        ("/v1/messages", {"messages": hi, "max_tokens": 1, "model": "another"}),
        ("/v1/nothing", {}),
    ]
    for path, body in asked:
        request = urllib.request.Request(
            url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(request, timeout=30)
    grown = errors() - before
    assert grown == {"invalid_request_error": 2, "model_not_found": 2, "context_length_exceeded": 1}


def test_every_metric_that_the_board_names_is_there(service: Sidecar, client: Client) -> None:
    client.generate("Once", SamplingParams(max_tokens=2))
    named = set(re.findall(r"slipstream_[a-z0-9_]+", json.dumps(json.loads(BOARD.read_text())["panels"])))
    assert len(named) > 15
    assert named - samples(service).keys() == set()


def test_with_vllms_prefix_its_dashboards_find_what_they_know() -> None:
    with Sidecar(device="emulated", http="127.0.0.1:0", metrics_prefix="vllm:") as sidecar:
        with sidecar.client() as client:
            client.generate("Once", SamplingParams(max_tokens=2))
        told = samples(sidecar)
    for name in VLLM.split():
        assert f"vllm:{name}" in told
    ((labels, value),) = told["vllm:cache_config_info"].items()
    assert value == 1.0
    assert {name: int(size) > 1 for name, size in labels} == {"block_size": True, "num_gpu_blocks": True}


def test_a_histogram_counts_a_value_by_the_smallest_bound_that_holds_it() -> None:
    histogram = Histogram((1.0, 2.0))
    for value, times in ((0.5, 1), (1.0, 2), (1.5, 1), (9.0, 1)):
        histogram.add(value, times)
    assert histogram.counters("x") == {
        "x_bucket_1": 3.0,
        "x_bucket_2": 4.0,
        "x_bucket_inf": 5.0,
        "x_sum": 13.0,
        "x_count": 5.0,
    }


def test_with_a_new_gateway_the_counters_of_an_older_scheduler_begin_at_0() -> None:
    """What Prometheus takes for new is new, whatever had died before."""
    carried = CarriedCounters(anew=True)
    carried.take({"generation_tokens_total": 500.0, "num_requests_running": 2.0})
    assert carried.totals() == {"generation_tokens_total": 0.0, "num_requests_running": 2.0}
    carried.take({"generation_tokens_total": 530.0, "num_preemptions": 1.0})
    assert carried.totals() == {"generation_tokens_total": 30.0, "num_preemptions": 1.0}
    carried.restart()
    carried.take({"generation_tokens_total": 7.0})
    assert carried.totals()["generation_tokens_total"] == 37.0


def test_what_is_only_so_now_ends_with_the_actor_that_said_it() -> None:
    carried = CarriedCounters()
    carried.take(
        {"steps": 3.0, "num_requests_running": 2.0, "adapter_slots": 4.0, "adapter_running_sql": 2.0}
    )
    carried.on_death()
    carried.restart()
    assert carried.totals() == {
        "steps": 3.0, "num_requests_running": 0.0, "adapter_slots": 0.0, "adapter_running_sql": 0.0,
    }  # fmt: skip
    carried.take({"steps": 1.0, "adapter_slots": 4.0})
    assert carried.totals() == {"steps": 4.0, "adapter_slots": 4.0}
