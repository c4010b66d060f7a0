"""A Ray cluster of one machine, in a network namespace of its own: what ``tests/processes/test_ray.py`` runs.

``unshare -n python ray_cluster.py`` prints one line of JSON: how many of 32 texts were equal to those of an undisturbed
run after each fault. Ray listens at all addresses, which here are the loopback alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import os
import signal
import sys
import threading
import time
from typing import Any

STREAMS, TOKENS, PORT = 32, 200, 8123

FAULTS = ("replica", "supervisor", "executor", "stopped", "fewer", "more", "update", "load", "delete")
"""What happens under the streams, one after the other."""


def ask(number: int) -> str:
    """One streamed completion, as text."""
    body = {
        "prompt": f"prompt {number}",
        "max_tokens": TOKENS,
        "seed": number,
        "ignore_eos": True,
        "stream": True,
    }
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=120)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    text = ""
    for line in answer:
        if line.startswith(b"data: {"):
            chunk = json.loads(line[6:])
            assert "error" not in chunk, chunk
            text += "".join(choice["text"] for choice in chunk["choices"])
    return text


async def ask_all() -> list[str]:
    return list(await asyncio.gather(*(asyncio.to_thread(ask, number) for number in range(STREAMS))))


def main(faults: list[str]) -> None:
    import concurrent.futures

    import ray  # pyright: ignore[reportMissingImports]
    from ray import serve  # pyright: ignore[reportMissingImports]
    from ray.exceptions import RayError  # pyright: ignore[reportMissingImports]

    from slipstream.ray import application

    os.environ["RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S"] = "1"  # ten where it is not said
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        object_store_memory=80 << 20,
        logging_level=logging.ERROR,
        log_to_driver=os.environ.get("SHOW_LOG") == "1",
    )
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    options: dict[str, Any] = {"device": "emulated", "emulated_step_ms": 10.0, "max_num_seqs": 32}
    serve.run(application(replicas=2, options=options), name="slipstream", route_prefix="/")
    result: dict[str, Any] = {}
    loop = asyncio.new_event_loop()
    loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(STREAMS))
    undisturbed = loop.run_until_complete(ask_all())
    handle = serve.get_deployment_handle("Service", "slipstream")

    def services() -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for _ in range(12):
            with contextlib.suppress(RayError):  # one that has just gone, and is not yet known to
                one = handle.where.remote().result(timeout_s=30)
                found[one["endpoint"]] = one
        return found

    def strike(what: str, how: signal.Signals = signal.SIGKILL) -> None:
        victim = sorted(services().values(), key=lambda one: one["replica"])[0]
        os.kill(victim[what], how)

    def scale(replicas: int) -> None:
        serve.run(application(replicas=replicas, options=options), name="slipstream", route_prefix="/")

    def update() -> None:
        """Other options: Serve replaces the services one after the other."""
        options["max_num_seqs"] = 33
        scale(2)

    def settle(wanted: int) -> None:
        """Until there are so many services, each of which answers: a dead or stopped one has been replaced."""
        deadline = time.monotonic() + 120
        while len(there := services()) != wanted:
            assert time.monotonic() < deadline, f"{wanted} services are wanted and {there} are there"
            time.sleep(0.5)

    def equal(texts: list[str]) -> int:
        return sum(one == other for one, other in zip(texts, undisturbed, strict=True))

    def load() -> int:
        """As many services as open requests ask for: one when there is nothing to do, and two under load."""
        bounds = {"max_replicas": 2, "target_ongoing_requests": 8.0, "look_back_period_s": 2.0}
        delays = {"upscale_delay_s": 0.5, "downscale_delay_s": 2.0}
        made = application(replicas=1, options=options, autoscaling=bounds | delays)
        serve.run(made, name="slipstream", route_prefix="/")
        settle(1)
        deadline = time.monotonic() + 120
        while True:
            found = equal(loop.run_until_complete(ask_all()))
            if found != STREAMS or len(services()) == 2:
                return found
            assert time.monotonic() < deadline, "no second service was started"

    acts = {
        "replica": lambda: strike("replica"),
        "supervisor": lambda: strike("supervisor"),
        "executor": lambda: strike("executor"),
        "stopped": lambda: strike("supervisor", signal.SIGSTOP),
        "fewer": lambda: scale(1),
        "more": lambda: scale(2),
        "update": update,
        "delete": lambda: serve.delete("slipstream"),
    }
    wanted = 2
    for fault in faults:
        settle(wanted)
        if fault == "load":
            result[fault] = load()
            continue
        wanted = {"fewer": 1, "more": 2}.get(fault, wanted)
        acting = threading.Timer(0.7, acts[fault])
        acting.start()
        result[fault] = equal(loop.run_until_complete(ask_all()))
        acting.join()
    serve.shutdown()
    ray.shutdown()
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or [*FAULTS])
