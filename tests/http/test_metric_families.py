"""What Prometheus gets of counters that nobody can have seen while they were like this."""

from __future__ import annotations

from typing import Any

import pytest
from slipstream.actors.http.endpoints.metrics import Families
from slipstream.protocol.messages import Actors


@pytest.mark.parametrize(
    ("open_requests", "running", "waiting", "shown"),
    [(149, 7, 0, 142), (10, 4, 8, 8), (3, 3, 0, 0), (2, 5, 0, 0)],
)
def test_requests_that_are_not_at_the_scheduler_yet_wait_too(
    open_requests: float, running: float, waiting: float, shown: float
) -> None:
    """A load balancer sends its next request where least wait."""
    counters = {
        "requests_open": open_requests,
        "num_requests_running": running,
        "num_requests_waiting": waiting,
    }
    families = Families("x_", "m", counters, Actors(live=True, ready=True, draining=False, actors=[]))
    [found] = [family for family in families.collect() if family.name == "x_num_requests_waiting"]
    assert found.samples[0].value == shown


def lora_requests_info(counters: dict[str, float]) -> list[Any]:
    actors = Actors(live=True, ready=True, draining=False, actors=[])
    families = [*Families("vllm:", "m", counters, actors, now=7.5).collect()]
    assert not [family.name for family in families if "adapter" in family.name]
    return [
        sample for family in families for sample in family.samples if sample.name == "vllm:lora_requests_info"
    ]


def test_gateways_of_clusters_read_which_adapters_are_in_use_from_labels() -> None:
    [sample] = lora_requests_info(
        {
            "adapter_slots": 4.0,
            "adapter_running_verse": 2.0,
            "adapter_running_sql": 1.0,
            "adapter_waiting_sql": 9.0,
        }
    )
    assert sample.labels == {
        "model_name": "m",
        "engine": "0",
        "max_lora": "4",
        "running_lora_adapters": "sql,verse",
        "waiting_lora_adapters": "sql",
    }
    assert sample.value == 7.5
    [idle] = lora_requests_info({"adapter_slots": 4.0})
    assert idle.labels["running_lora_adapters"] == idle.labels["waiting_lora_adapters"] == ""
    assert lora_requests_info({}) == [], "a service without adapter slots says nothing of them"
