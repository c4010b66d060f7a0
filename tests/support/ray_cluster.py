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

    def strike(what: str) -> None:
        victim = sorted(services().values(), key=lambda one: one["replica"])[0]
        os.kill(victim[what], signal.SIGKILL)

    def scale(replicas: int) -> None:
        serve.run(application(replicas=replicas, options=options), name="slipstream", route_prefix="/")

    acts = {
        "replica": lambda: strike("replica"),
        "supervisor": lambda: strike("supervisor"),
        "executor": lambda: strike("executor"),
        "fewer": lambda: scale(1),
        "more": lambda: scale(2),
        "delete": lambda: serve.delete("slipstream"),
    }
    wanted = 2
    for fault in faults:
        deadline = time.monotonic() + 120
        while len(services()) != wanted and time.monotonic() < deadline:
            time.sleep(0.5)
        wanted = {"fewer": 1, "more": 2}.get(fault, wanted)
        acting = threading.Timer(0.7, acts[fault])
        acting.start()
        texts = loop.run_until_complete(ask_all())
        result[fault] = sum(one == other for one, other in zip(texts, undisturbed, strict=True))
        acting.join()
    serve.shutdown()
    ray.shutdown()
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["replica", "supervisor", "executor", "fewer", "more", "delete"])
