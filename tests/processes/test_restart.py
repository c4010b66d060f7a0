"""``slipstream restart``: an actor is ended and started again as it was asked, and no token is lost."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import msgpack
import pytest
import zmq
from covering import few_of
from processes import NEAR, Background, Planted, alive, until
from slipstream.protocol.actors import ACTORS
from slipstream.protocol.messages import ActorState
from slipstream.runtime.supervision.restarts import INTENSITY

from slipstream import InvalidRequest, SamplingParams, Sidecar

PARAMS = SamplingParams(max_tokens=200, ignore_eos=True, seed=5)


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    with Sidecar(device="emulated", emulated_step_ms=5.0) as sidecar:
        yield sidecar


def restart(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "slipstream", "restart", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/")


@pytest.mark.parametrize("actor", few_of(ACTORS, "gateway", "scheduler"))
def test_any_actor_can_be_restarted_under_a_stream_of_which_no_token_is_lost(
    sidecar: Sidecar, actor: str
) -> None:
    expected = Background(sidecar, "Once upon a time", PARAMS)
    expected.end()
    before = sidecar.actors
    stream = Background(sidecar, "Once upon a time", PARAMS).begun()
    done = restart(actor, "--endpoint", sidecar.endpoint)
    assert (done.returncode, done.stderr) == (0, "")
    assert stream.end() == "length"
    assert stream.tokens == expected.tokens
    after = sidecar.actors
    pids = (before[actor]["pid"], after[actor]["pid"])
    assert pids[0] != pids[1]
    assert done.stdout.startswith(f"{actor}: pid {pids[0]} → {pids[1]}, ready after ")
    assert after[actor]["restarts"] == before[actor]["restarts"] + 1
    assert {n: s["pid"] for n, s in after.items() if n != actor} == {
        n: s["pid"] for n, s in before.items() if n != actor
    }


def test_a_planned_restart_is_no_death_in_a_row(sidecar: Sidecar) -> None:
    for _ in range(INTENSITY + 1):
        before = sidecar.actors["tokenizer"]
        sidecar.restart("tokenizer")
        until(
            lambda pid=before["pid"]: (
                sidecar.actors["tokenizer"]["pid"] != pid and sidecar.actors["tokenizer"]["state"] == "ready"
            ),
            "it is ready again",
        )
    assert "restarting all" not in sidecar.log
    assert "in a row" not in sidecar.log


def test_what_cannot_be_restarted_is_refused_with_the_reason(sidecar: Sidecar) -> None:
    done = restart("planner", "--endpoint", sidecar.endpoint)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        "there is no actor 'planner'; there are executor, scheduler, detokenizer, tokenizer, gateway"
        in done.stderr
    )
    done = restart("executor", "--endpoint", "ipc:///nowhere")
    assert (done.returncode, done.stdout) == (3, "")
    assert "no service of yours at ipc:///nowhere runs on this machine" in done.stderr
    sidecar.restart("detokenizer")
    until(lambda: sidecar.actors["detokenizer"]["state"] != "ready", "it ends")
    with pytest.raises(
        InvalidRequest, match=r"detokenizer is not ready to be restarted: it is (starting|dead)"
    ):
        sidecar.restart("detokenizer")
    until(lambda: sidecar.actors["detokenizer"]["state"] == "ready", "it is ready again")


@pytest.mark.parametrize(
    "question",
    [b"\xc1", msgpack.packb({"restart": 5}), msgpack.packb(["restart"]), msgpack.packb({}), b"\x91" * 900],
)
def test_a_question_that_is_none_restarts_nothing(sidecar: Sidecar, question: bytes) -> None:
    pids = sidecar.pids
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.set(zmq.LINGER, 0)
        socket.connect(sidecar.ready["control"])
        socket.send(question)
        assert socket.poll(5000)
        assert "error" in msgpack.unpackb(socket.recv())
    assert sidecar.pids == pids
    assert alive([*pids.values()]) == [*pids.values()]
    assert os.stat(sidecar.ready["control"].removeprefix("ipc://")).st_uid == os.getuid()


@pytest.mark.parametrize("slow", ["tokenizer", "scheduler", "detokenizer"])
def test_a_gateway_that_begins_before_another_is_ready_sends_again_when_that_one_is(
    tmp_path: Path, slow: str
) -> None:
    """Its requests pass through actors that still speak to the one before."""
    marker = tmp_path / "wait"
    with (
        Planted({slow: f"planted:waiting_{slow}"}, PLANTED_MARKER=str(marker)) as service,
        service.client() as client,
        service.client() as asker,
    ):

        def state(name: str) -> ActorState:
            return next(state for state in client.actors().actors if state.name == name)

        client.generate("before", SamplingParams(max_tokens=2))
        gateway = state("gateway")
        marker.touch()
        os.kill(state(slow).pid, signal.SIGKILL)
        until(lambda: state(slow).state == "starting", "it starts again")
        os.kill(gateway.pid, signal.SIGKILL)
        until(lambda: state("gateway").pid != gateway.pid, "the gateway is back")
        first = asker.stream("meanwhile", SamplingParams(max_tokens=3, deadline_s=NEAR))
        with ThreadPoolExecutor(1) as thread:
            answer = thread.submit(list, first)
            until(lambda: client.stats()["requests_open"] == 1, "the gateway has the request")
            marker.unlink()
            assert sum(len(delta.token_ids) for delta in answer.result(NEAR)) == 3


ASKED = [{"role": "user", "content": "hello hello"}]


@pytest.mark.parametrize("became", ["{{ messages[0].content * 3 }}", "{% if", None])
def test_a_tokenizer_that_is_back_writes_the_same_prompts_whatever_has_become_of_the_template(
    became: str | None, tmp_path: Path
) -> None:
    """It wrote others, in silence, or ended the service where the file was gone or broken."""
    template = tmp_path / "template.jinja"
    template.write_text("Say {{ messages[0].content }}")
    one = SamplingParams(max_tokens=1)
    with (
        Sidecar(device="emulated", emulated_step_ms=0.0, chat_template=str(template)) as sidecar,
        sidecar.client() as client,
    ):
        before = client.chat(ASKED, one).prompt_token_ids
        if became is None:
            template.unlink()
        else:
            template.write_text(became)
        first = sidecar.pids["tokenizer"]
        os.kill(first, signal.SIGKILL)
        assert client.chat(ASKED, one).prompt_token_ids == before
        assert sidecar.pids["tokenizer"] != first


def test_a_frontend_that_is_back_counts_the_tokens_of_the_template_that_the_service_began_with(
    tmp_path: Path,
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("Say {{ messages[0].content }}")
    with Sidecar(device="emulated", http="127.0.0.1:0", chat_template=str(template)) as sidecar:

        def count() -> int | None:
            try:
                reply = httpx2.post(sidecar.ready["http"] + "/tokenize", json={"messages": ASKED})
            except httpx2.TransportError:
                return None
            return reply.json()["count"]

        before = count()
        assert before is not None
        template.unlink()
        os.kill(sidecar.actors["http"]["pid"], signal.SIGKILL)
        until(lambda: sidecar.actors["http"]["restarts"] == 1 and count() is not None, "the frontend is back")
        assert count() == before


def test_with_a_new_gateway_all_counters_begin_at_0_whatever_had_died_before() -> None:
    """As Prometheus sees it at ``/metrics``."""

    def counted(name: str) -> int:
        found = re.search(rf"^slipstream_{name}{{.*}} ([0-9.e+]+)$", web.get("/metrics").text, re.MULTILINE)
        assert found is not None
        return int(float(found[1]))

    def answer(tokens: int) -> None:
        asked = {"prompt": "Once", "max_tokens": tokens, "ignore_eos": True}
        assert web.post("/v1/completions", json=asked).json()["usage"]["completion_tokens"] == tokens

    def kill(actor: str) -> None:
        first = sidecar.actors[actor]["pid"]
        os.kill(first, signal.SIGKILL)
        until(lambda: sidecar.actors.get(actor, {}).get("pid", first) != first, f"{actor} is back")

    emulated: dict[str, Any] = {"device": "emulated", "emulated_step_ms": 1.0}
    with Sidecar(http="127.0.0.1:0", **emulated) as sidecar:
        web = httpx2.Client(base_url=sidecar.ready["http"], timeout=NEAR)
        answer(50)
        until(lambda: counted("generation_tokens_total") == 50, "the tokens are counted")
        kill("scheduler")
        answer(30)
        until(lambda: counted("generation_tokens_total") == 80, "both schedulers' tokens are counted")
        kill("gateway")
        answer(7)
        until(lambda: counted("generation_tokens_total") == 7, "only what came since is counted")
