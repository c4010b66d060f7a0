"""``slipstream route`` before real services: streams outlive them, and what cannot work is said."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from processes import NEAR
from slipstream.protocol.client.outputs import RequestOutput
from slipstream.protocol.errors import ServiceUnavailable

from slipstream import AsyncClient, Client, SamplingParams, Sidecar, cli
from slipstream.serving import route

STREAMS = 12


@contextmanager
def routing(*arguments: str) -> Iterator[dict[str, Any]]:
    """A router, as its ready line describes it; it ends with 0."""
    reader, writer = os.pipe()
    command = [
        sys.executable,
        "-m",
        "slipstream",
        "route",
        *arguments,
        f"--ready-fd={writer}",
        "--exit-with-parent",
    ]
    process = subprocess.Popen(command, pass_fds=(writer,), stderr=subprocess.PIPE, text=True)
    os.close(writer)
    try:
        with open(reader) as ready:
            line = json.loads(ready.readline())
            assert "error" not in line, line
            yield line
    finally:
        process.terminate()
        _, log = process.communicate(timeout=30)
    assert process.returncode == 0, log


def service(**options: Any) -> Sidecar:
    return Sidecar(device="emulated", emulated_step_ms=5.0, max_num_seqs=32, **options)


async def ask_all(client: AsyncClient, most: int) -> list[RequestOutput]:
    """Answers of every kind, all at once."""

    def params(number: int) -> SamplingParams:
        wishes: dict[str, Any] = [{}, {"n": 2}, {"logprobs": 1}, {"stop": ["the"]}][number % 4]
        return SamplingParams(max_tokens=most, seed=number, ignore_eos=True, **wishes)

    return list(
        await asyncio.gather(
            *(client.complete(f"prompt {number}", params(number)) for number in range(STREAMS))
        )
    )


def told(outputs: list[RequestOutput]) -> list[Any]:
    return [
        [(o.token_ids, o.text, o.finish_reason, o.logprobs) for o in output.outputs] for output in outputs
    ]


def test_a_service_that_is_killed_under_streams_changes_none_of_them() -> None:
    async def run(endpoint: str, victim: int) -> None:
        async with AsyncClient(endpoint) as client:
            undisturbed = await ask_all(client, 300)
            asking = asyncio.create_task(ask_all(client, 300))
            while (await client.stats())["router_requests_open"] < STREAMS:
                await asyncio.sleep(0.01)
            os.kill(victim, signal.SIGKILL)
            assert told(await asking) == told(undisturbed)
            assert (await client.stats())["router_requests_moved"] > 0
            actors = {actor.name: actor for actor in (await client.actors()).actors}
            assert actors["router"].state == "ready"
            assert sorted(actor.state for actor in actors.values() if actor.role == "service") == [
                "dead",
                "ready",
            ]

    with service() as one, service() as two, routing(one.endpoint, two.endpoint) as ready:
        asyncio.run(run(ready["endpoint"], one.pid))


@pytest.mark.rest
def test_how_full_services_are_is_told_before_anything_is_asked_and_after_any_actor_was_restarted() -> None:
    async def told_by(client: AsyncClient, services: int) -> None:
        wanted = {"max_num_seqs": 32.0 * services, "num_requests_running": 0.0, "num_requests_waiting": 0.0}
        while True:
            stats = await client.stats()
            if wanted.items() <= stats.items() and stats["kv_cache_blocks"] > 0:
                assert stats["kv_cache_block_size"] == 16.0
                assert stats["kv_cache_usage_perc"] == 0.0
                assert stats["requests_accepted"] == 0.0
                return
            await asyncio.sleep(0.02)

    async def run(endpoint: str, one: str) -> None:
        async with AsyncClient(one) as direct, AsyncClient(endpoint) as client:
            await asyncio.wait_for(told_by(direct, 1), 30)
            await asyncio.wait_for(told_by(client, 2), 30)
            for name in ("gateway", "detokenizer", "scheduler", "executor"):
                pids = {actor.name: actor.pid for actor in (await direct.actors()).actors}
                os.kill(pids[name], signal.SIGKILL)
                await asyncio.wait_for(back(direct, name, pids[name]), 30)
                await asyncio.wait_for(told_by(direct, 1), 30)

    async def back(client: AsyncClient, name: str, gone: int) -> None:
        """Another process is the actor."""
        while True:
            found = await client.actors()
            if found.ready and all(one.pid != gone for one in found.actors if one.name == name):
                return
            await asyncio.sleep(0.02)

    with service() as one, service() as two, routing(one.endpoint, two.endpoint) as ready:
        asyncio.run(run(ready["endpoint"], one.endpoint))


def test_services_come_and_go_by_a_file(tmp_path: Path) -> None:
    async def run(endpoint: str, file: Path, one: str, two: str) -> None:
        async with AsyncClient(endpoint, timeout_s=60) as client:
            await ready(client, 1)
            file.write_text(f"{one}\n{two}\n")
            await ready(client, 2)
            asking = asyncio.create_task(ask_all(client, 300))
            await asyncio.sleep(0.1)
            file.write_text(f"{two}\n")
            await ready(client, 1)
            assert all(len(answer.outputs[0].token_ids) > 0 for answer in await asking)

    file = tmp_path / "services"
    with service() as one, service() as two:
        file.write_text(f"{one.endpoint}\n")
        with routing("--services-file", str(file)) as routed:
            asyncio.run(run(routed["endpoint"], file, one.endpoint, two.endpoint))


def test_the_router_has_openais_face_too() -> None:
    with service() as one, routing(one.endpoint, "--http", "127.0.0.1:0") as ready:
        body = json.dumps({"prompt": "hello", "max_tokens": 4, "seed": 1, "ignore_eos": True}).encode()
        request = urllib.request.Request(
            f"{ready['http']}/v1/completions", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == 4
        with urllib.request.urlopen(f"{ready['http']}/health") as answer:
            assert answer.status == 200


def test_a_service_that_never_answers_is_named_at_the_start_and_the_others_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(route, "FIRST_ANSWER_S", 0.5)
    monkeypatch.setattr(route, "FURTHER_ANSWERS_S", 0.1)
    monkeypatch.setattr(route.logger, "warning", lambda form, *values: told.append(form % values))
    nobody = f"ipc://{tmp_path}/nobody"
    with pytest.raises(ServiceUnavailable, match=nobody):
        asyncio.run(route.first_welcome({nobody: None}))
    monkeypatch.setattr(route, "FIRST_ANSWER_S", 30.0)
    with service() as one:
        welcome = asyncio.run(route.first_welcome({nobody: None, one.endpoint: None}))
    assert welcome.model
    assert told == [f"{nobody} has not answered yet"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no service is named"),
        (["nowhere"], "neither ipc://PATH nor tcp://HOST:PORT"),
        (["ipc:///tmp/a", "ipc:///tmp/a"], "named twice"),
        (["ipc:///tmp/a", "--endpoint", "ipc:///tmp/a"], "one of its own"),
        (["ipc:///tmp/a", "--chat-template", "x"], "--http HOST:PORT"),
        (["ipc:///tmp/a", "--endpoint", "tcp://0.0.0.0:1"], "--curve-keys"),
        (["ipc:///tmp/a", "--max-num-seqs", "3"], "unknown argument"),
    ],
)
def test_what_cannot_be_is_said_and_ends_with_2(arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "slipstream", "route", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert said in done.stderr


def test_relative_paths_of_sockets_begin_where_each_command_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        service(endpoint="ipc://one") as sidecar,
        routing("ipc://one", "--endpoint", "ipc://router") as ready,
    ):
        assert (sidecar.endpoint, ready["endpoint"]) == (f"ipc://{tmp_path}/one", f"ipc://{tmp_path}/router")
        for endpoint in ("ipc://one", "ipc://./router"):
            with Client(endpoint) as client:
                assert len(client.generate([5], SamplingParams(max_tokens=3)).outputs[0].token_ids) == 3
        assert cli.main(["restart", "executor", "--endpoint=ipc://one"]) == 0


def test_relative_paths_in_a_file_of_services_begin_where_the_router_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the file is read again, too, by an actor that works elsewhere."""

    async def run(endpoint: str) -> None:
        async with AsyncClient(endpoint, timeout_s=60) as client:
            await ready(client, 1)
            file.write_text("ipc://one\nipc://two\n")
            await ready(client, 2)

    monkeypatch.chdir(tmp_path)
    file = Path("services")
    with service(endpoint="ipc://one"), service(endpoint="ipc://two"):
        file.write_text("ipc://one\n")
        with routing("--services-file", "services") as routed:
            asyncio.run(run(routed["endpoint"]))


async def ready(client: AsyncClient, services: int) -> None:
    """Wait until as many services are ready."""
    async with asyncio.timeout(NEAR):
        while (await client.stats())["router_services_ready"] != services:
            await asyncio.sleep(0.05)
