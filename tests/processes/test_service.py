"""The whole service as real processes, on the bundled model and the CPU."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import platform
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from covering import few_of
from processes import NEAR, Background, Raw, alive, serve, until
from slipstream.runtime.process.priority import NICENESS, SLICE_NS

from slipstream import Client, SamplingParams, Sidecar
from slipstream.serving.service import BUNDLED_MODEL

PROMPTS = ["Once upon a time", "The old mill stood by the river.", "What is 12 + 7?"]

GREEDY = SamplingParams(temperature=0.0, max_tokens=48)


LONG = SamplingParams(max_tokens=600, ignore_eos=True, seed=3)


@pytest.fixture(scope="module")
def service() -> Iterator[Sidecar]:
    with Sidecar(device="cpu", dtype="float32", max_num_seqs=16, max_model_len=1024) as sidecar:
        yield sidecar


@pytest.fixture(scope="module")
def synchronous() -> Iterator[Sidecar]:
    """Depth 1, and a cache for 12 blocks of 16 tokens."""
    per_block = 8 * 2 * 2 * 32 * 16 * 4  # layers, keys and values, heads, width, tokens, bytes
    options: dict[str, Any] = {"kv_cache_memory": 13 * per_block, "max_num_seqs": 4, "pipeline_depth": 1}
    with Sidecar(device="cpu", dtype="float32", **options) as sidecar:
        yield sidecar


@pytest.fixture(scope="module")
def long_steps() -> Iterator[Sidecar]:
    """Depth 2, and steps of 60 ms in which nothing is computed: a scheduler that must wait for a core is not late, also
    where it waits for ten others (of steps of 20 ms a third were prepared too late)."""
    with Sidecar(device="emulated", emulated_step_ms=60.0) as sidecar:
        yield sidecar


@pytest.fixture
def client(service: Sidecar) -> Iterator[Client]:
    with service.client() as client:
        yield client


def quiet(client: Client) -> None:
    """Wait until nothing of earlier requests is left."""
    until(lambda: client.stats().get("num_requests_running", 0.0) == 0.0, "no request runs")


# --- the main job -------------------------------------------------------------------------------


def test_greedy_answers_are_those_of_transformers(client: Client) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    model: Any = AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL, dtype=torch.float32)
    outputs = client.generate_many(PROMPTS, GREEDY)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        told = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=48)
        expected = told[0, ids.shape[1] :].tolist()
        assert output.prompt_token_ids == ids[0].tolist()
        assert output.outputs[0].token_ids == expected
        assert output.outputs[0].text == tokenizer.decode(expected, skip_special_tokens=True)


def test_two_clients_stream_at_once_and_their_tokens_come_from_the_same_steps(
    service: Sidecar, client: Client
) -> None:
    quiet(client)
    before = client.stats()
    arrived: queue.SimpleQueue[str] = queue.SimpleQueue()
    both_begun = threading.Barrier(2, timeout=NEAR)

    def read(name: str) -> None:
        with service.client() as mine:
            stream = mine.stream("Once upon a time", SamplingParams(max_tokens=100, ignore_eos=True))
            for number, delta in enumerate(stream):
                arrived.put(name)
                if number == 0:
                    both_begun.wait()
                assert delta.token_ids or delta.finish_reason

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(read, ("ann", "ben")))
    order = [arrived.get() for _ in range(arrived.qsize())]
    turns = sum(first != second for first, second in itertools.pairwise(order))
    assert turns > 40, f"{turns} turns in {len(order)} deltas"
    quiet(client)
    after = client.stats()
    assert after["generation_tokens"] - before["generation_tokens"] == 200
    assert after["steps"] - before["steps"] < 150  # apart they would take 200


@pytest.mark.parametrize("others", [1, 7])
def test_the_same_seed_gives_the_same_tokens_alone_and_among_others(client: Client, others: int) -> None:
    params = SamplingParams(max_tokens=40, seed=11, temperature=0.9, top_p=0.95)
    alone = client.generate("Once upon a time", params).outputs[0]
    crowd = [SamplingParams(max_tokens=20 + n, seed=n, ignore_eos=True) for n in range(others)]
    prompts = ["Once upon a time", *(PROMPTS[n % len(PROMPTS)] for n in range(others))]
    many = client.generate_many(prompts, [params, *crowd])
    assert many[0].outputs[0].token_ids == alone.token_ids
    assert many[0].outputs[0].text == alone.text


# --- the timeline -------------------------------------------------------------------------------

Spans = list[tuple[str, int, int, int]]


def steady_steps(sidecar: Sidecar) -> tuple[dict[int, tuple[int, int]], dict[int, tuple[int, int]]]:
    """Of one request's decode steps: when each was planned, and when the device computed it."""
    with sidecar.client() as client:
        quiet(client)
        first = int(client.stats().get("steps", 0.0))
        client.generate("Once upon a time", SamplingParams(max_tokens=120, ignore_eos=True))
        tracks = client.trace().tracks
    wanted = range(first + 10, first + 110)
    plans = {step: (start, end) for name, step, start, end in tracks["scheduler"] if name == "Plan"}
    steps = {step: (start, end) for name, step, start, end in tracks["compute"] if name == "step"}
    assert set(wanted) <= plans.keys() & steps.keys()
    return {step: plans[step] for step in wanted}, {step: steps[step] for step in wanted}


def planned_while_computing(sidecar: Sidecar) -> tuple[int, int]:
    """Steps N+1 that were planned between the start and the end of step N; and of how many."""
    plans, steps = steady_steps(sidecar)
    inside = [
        steps[step][0] <= plans[step + 1][0] and plans[step + 1][1] <= steps[step][1]
        for step in steps
        if step + 1 in plans
    ]
    return sum(inside), len(inside)


def test_at_depth_2_the_scheduler_prepares_step_n_plus_1_while_step_n_computes(long_steps: Sidecar) -> None:
    inside, of = planned_while_computing(long_steps)
    print(f"steps prepared while the one before computed: {inside} of {of}")
    assert of > 90
    assert inside / of > 0.8


def test_at_depth_1_the_scheduler_never_does(synchronous: Sidecar) -> None:
    inside, of = planned_while_computing(synchronous)
    assert of > 90
    assert inside == 0


def test_the_device_computes_one_step_at_a_time_in_their_order(service: Sidecar) -> None:
    _, steps = steady_steps(service)
    for step in sorted(steps)[1:]:
        assert steps[step - 1][1] <= steps[step][0] < steps[step][1]


def test_a_timeline_has_a_track_of_every_actor_and_stream_and_comes_at_once(client: Client) -> None:
    client.generate("Once upon a time", SamplingParams(max_tokens=3, ignore_eos=True))
    tracks: Any = {}
    seconds = math.inf
    for _ in range(5):  # the machine may be busy with other things
        begun = time.monotonic()
        tracks = client.trace().tracks
        seconds = min(seconds, time.monotonic() - begun)
        if seconds < 1.5:
            break
    assert seconds < 1.5  # not the two seconds of waiting for an actor that is gone
    assert set(tracks) == {
        "gateway",
        "tokenizer",
        "scheduler",
        "executor",
        "detokenizer",
        "h2d",
        "compute",
        "d2h",
    }


# --- clients that leave -------------------------------------------------------------------------


def test_the_requests_of_a_client_that_disappears_end_and_free_their_blocks_while_others_go_on(
    service: Sidecar, client: Client
) -> None:
    quiet(client)
    other = Background(service, "Once upon a time", LONG).begun()
    with Raw(service.endpoint) as lost:
        for number in range(5):
            lost.generate(str(number), max_tokens=900, ignore_eos=True)
        assert lost.hear()["t"] == "deltas"
        until(lambda: client.stats()["num_requests_running"] == 6, "all six run")
    seen = len(other.tokens)
    until(lambda: client.stats()["num_requests_running"] <= 1, "the five have ended")
    assert len(other.tokens) > seen or other.end()
    assert other.end() == "length"
    assert len(other.tokens) == 600
    until(lambda: client.stats()["num_requests_running"] == 0, "nothing runs")
    stats = client.stats()
    assert stats["kv_cache_usage_perc"] == 0.0
    assert stats["num_requests_waiting"] == 0.0


def test_a_client_that_disappears_while_its_request_waits_is_noticed_too(synchronous: Sidecar) -> None:
    with synchronous.client() as client:
        quiet(client)
        with Raw(synchronous.endpoint) as holder, Raw(synchronous.endpoint) as lost:
            holder.generate("1", max_tokens=180, ignore_eos=True)
            holder.hear()
            for number in range(3):
                lost.generate(str(number), max_tokens=180, ignore_eos=True)
            lost.say({"t": "ping", "nonce": 1})
        until(lambda: client.stats()["requests_aborted"] >= 4, "all four were aborted")
        until(lambda: client.stats()["num_requests_running"] == 0, "nothing runs")
        assert client.stats()["kv_cache_usage_perc"] == 0.0


# --- bad input ----------------------------------------------------------------------------------


def generate(**fields: Any) -> dict[str, Any]:
    return {"t": "generate", "id": "bad", "prompt": "x"} | fields


BAD: dict[str, tuple[dict[str, Any] | bytes, str | None, list[str]]] = {
    "empty prompt": (generate(prompt=""), "bad", ["empty"]),
    "no tokens": (generate(prompt=[]), "bad", ["no tokens"]),
    "no prompt": ({"t": "generate", "id": "bad"}, "bad", ["prompt", "messages"]),
    "too long": (generate(prompt=[5] * 1024), "bad", ["1024 tokens", "at most 1024"]),
    "too long a text": (generate(prompt="a " * 3000), "bad", ["tokens", "at most 1024"]),
    "far too long a text": (generate(prompt="a" * 100_000), "bad", ["100000", "65536"]),
    "unknown token": (generate(prompt=[5, 2048]), "bad", ["2048", "0 to 2047"]),
    "unknown field": (generate(temperature=1.0), "bad", ["temperature"]),
    "unknown parameter": (generate(params={"max_token": 5}), "bad", ["max_token"]),
    "wrong type": (generate(params={"max_tokens": "5"}), "bad", ["max_tokens", "'5'"]),
    "wrong type of prompt": (generate(prompt=5.5), "bad", ["prompt", "5.5"]),
    "NaN": (generate(params={"temperature": math.nan}), "bad", ["temperature=nan", "2.0"]),
    "infinite": (generate(params={"top_p": math.inf}), "bad", ["top_p=inf", "1.0"]),
    "out of range": (generate(params={"temperature": 2.5}), "bad", ["temperature=2.5", "2.0"]),
    "too many tokens": (generate(params={"max_tokens": 5000}), "bad", ["max_tokens=5000", "1024"]),
    "too deep": (
        generate(prompt=None, messages=[{"role": [[[[[[[[[[]]]]]]]]]]}] * 2),
        "bad",
        ["messages[0]"],
    ),
    "role of another type": (generate(prompt=None, messages=[{"role": 5, "content": "x"}]), "bad", ["5"]),
    "unknown message": ({"t": "genrate", "id": "bad"}, "bad", ["'genrate'"]),
    "no MessagePack": (b"\xc1", None, ["not MessagePack"]),
    "another client's protocol": (b"GET / HTTP/1.1\r\n\r\n", None, ["not MessagePack"]),
    "other version": ({"t": "hello", "protocol": [2, 0]}, None, ["protocol 2.0", "1.0"]),
}


def test_every_bad_input_is_answered_at_once_with_the_value_and_the_limit_while_a_stream_goes_on(
    service: Sidecar,
) -> None:
    """The same bytes that any program in any language could send."""
    stream = Background(service, "Once upon a time", SamplingParams(max_tokens=900, ignore_eos=True)).begun()
    slowest = 0.0
    with Raw(service.endpoint) as raw:
        for name, (message, id, named) in BAD.items():
            begun = time.monotonic()
            raw.say(message)
            error = raw.error_of(id)
            slowest = max(slowest, time.monotonic() - begun)
            for part in named:
                assert part in error["message"], f"{name}: {error['message']}"
            longer = "context_length_exceeded"
            exact = {"other version": "protocol"} | {
                name: longer for name in ("too long", "too long a text", "far too long a text")
            }
            expected = exact.get(name, "invalid_request")
            assert error["code"] == expected, name
        raw.socket.send_multipart([b"a", b"b", b"c"])
        assert "one frame; this one has 3" in raw.error_of(None)["message"]
        raw.generate("good", max_tokens=3, ignore_eos=True, temperature=0)
        tokens = 0
        while tokens < 3:
            tokens += len(raw.hear()["items"][0].get("token_ids", []))
    print(f"slowest answer to bad input: {slowest * 1000:.0f} ms")
    assert slowest < 2.0
    assert stream.end() == "length"
    assert len(stream.tokens) == 900


def test_a_stranger_who_says_no_hello_is_told_to(service: Sidecar) -> None:
    with Raw(service.endpoint, greet=False) as raw:
        raw.generate("1")
        assert "hello" in raw.error_of("1")["message"]


def test_a_request_that_could_never_fit_the_cache_is_refused_and_others_go_on(synchronous: Sidecar) -> None:
    stream = Background(synchronous, "Once", SamplingParams(max_tokens=150, ignore_eos=True)).begun()
    with Raw(synchronous.endpoint) as raw:
        raw.generate("1", prompt=[5] * 190, max_tokens=10)
        error = raw.error_of("1")
    assert error["code"] == "context_length_exceeded"
    for part in ("190 tokens", "max_tokens up to 10", "200 tokens", "KV cache holds 192"):
        assert part in error["message"]
    assert stream.end() == "length"


def test_overload_is_refused_at_once_with_a_time_to_retry() -> None:
    with (
        Sidecar(
            device="emulated", emulated_step_ms=20.0, max_queued_requests=2, shutdown_timeout=0.0
        ) as sidecar,
        Raw(sidecar.endpoint) as raw,
    ):
        for number in range(3):
            raw.generate(str(number), max_tokens=100, ignore_eos=True)
        error = raw.error_of("2")
    assert error["code"] == "overloaded"
    assert error["retry_after_s"] > 0
    assert "2 requests" in error["message"]


# --- starts that fail ---------------------------------------------------------------------------


def assert_one_block(lines: list[str], *named: str) -> None:
    """A title, and below it the cause, indented; nothing else."""
    assert lines[0] == "slipstream could not start"
    assert all(line.startswith("  ") for line in lines[1:]), lines
    assert sum(line.startswith("  cause ") for line in lines) == 1
    for part in named:
        assert part in "\n".join(lines[1:])


def test_a_start_that_fails_tells_the_cause_in_one_block_and_ends_with_code_3(tmp_path: Path) -> None:
    weightless = tmp_path / "weightless"
    shutil.copytree(BUNDLED_MODEL, weightless, ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "empty").mkdir()
    here = Path("/tmp") / f"slipstream-test-{os.getpid()}.sock"
    with socket.socket() as port, socket.socket(socket.AF_UNIX) as path:
        port.bind(("127.0.0.1", 0))
        port.listen()
        path.bind(str(here))
        path.listen()
        tcp, ipc = f"tcp://127.0.0.1:{port.getsockname()[1]}", f"ipc://{here}"
        starts: dict[tuple[str, ...], tuple[str, ...]] = {
            ("./no-such-model",): ("'./no-such-model'", "no such folder"),
            ("nobody/no-such-model",): ("'nobody/no-such-model'", "no such folder", "hub"),
            (str(tmp_path / "empty"),): (str(tmp_path / "empty"), "config.json"),
            (str(weightless), "--device=cpu"): (str(weightless), "no weights", "safetensors"),
            ("--max-model-len=9000",): ("max_model_len=9000", "8192"),
            ("--device=emulated", f"--endpoint={tcp}"): ("actor   gateway", "phase   sockets", tcp, "in use"),
            ("--device=emulated", f"--endpoint={ipc}"): (
                "actor   gateway",
                "phase   sockets",
                ipc,
                "listening",
            ),
        }
        try:
            with ThreadPoolExecutor(2) as threads:
                for named, (code, lines, _) in zip(
                    starts.values(), threads.map(lambda arguments: serve(*arguments), starts), strict=True
                ):
                    assert code == 3, lines
                    assert_one_block(lines, *named)
        finally:
            here.unlink()


@pytest.mark.rest
def test_the_owner_of_a_path_keeps_it_when_another_service_wants_it() -> None:
    """ZeroMQ alone would take it away without a word."""
    with Sidecar(device="emulated") as sidecar:
        code, lines, _ = serve("--device=emulated", f"--endpoint={sidecar.endpoint}")
        assert code == 3
        assert_one_block(lines, sidecar.endpoint)
        with sidecar.client() as client:
            assert client.generate("Once", SamplingParams(max_tokens=2)).finished


def test_an_ipc_path_that_no_socket_can_have_is_a_usage_error_with_its_length_and_the_limit() -> None:
    endpoint = "ipc:///tmp/" + "x" * 110
    code, lines, seconds = serve("--device=emulated", f"--endpoint={endpoint}")
    assert code == 2
    (line,) = lines
    for part in (endpoint, "115 bytes", "at most 107"):
        assert part in line
    assert seconds < NEAR


def test_a_path_left_behind_by_a_service_that_was_killed_can_be_used_again() -> None:
    path = Path("/tmp") / f"slipstream-test-{os.getpid()}-left.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    try:
        with Sidecar(device="emulated", endpoint=f"ipc://{path}") as sidecar, sidecar.client() as client:
            assert client.generate("Once", SamplingParams(max_tokens=2)).finished
    finally:
        path.unlink(missing_ok=True)


# --- what it costs ------------------------------------------------------------------------------


def test_a_service_is_ready_in_seconds(service: Sidecar) -> None:
    (line,) = [line for line in service.log.splitlines() if line.startswith("ready in ")]
    print(line)
    assert float(line.split()[2]) < 40.0  # on two cores that nobody else uses: under 8


@pytest.mark.parametrize("actor", ["gateway", "tokenizer", "detokenizer", "scheduler"])
def test_an_actor_without_a_model_stays_below_90_megabytes(service: Sidecar, actor: str) -> None:
    megabytes = psutil.Process(service.pids[actor]).memory_info().rss / 1e6
    print(f"{actor}: {megabytes:.0f} MB")
    assert megabytes < 90


def cpu_seconds(pids: list[int]) -> float:
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(spent.user + spent.system for spent in times)


def test_an_idle_service_uses_no_cpu(service: Sidecar, client: Client) -> None:
    """Under one percent of a core, all processes together; the first look may still see the last request."""
    quiet(client)
    pids = [service.pid, *service.pids.values()]
    shares: list[float] = []
    while len(shares) < 4 and (not shares or shares[-1] >= 0.01):
        begun, spent = time.monotonic(), cpu_seconds(pids)
        time.sleep(3.0)  # what is measured
        shares.append((cpu_seconds(pids) - spent) / (time.monotonic() - begun))
    print("share of a core while idle:", [f"{share:.4f}" for share in shares])
    assert shares[-1] < 0.01


# --- the end ------------------------------------------------------------------------------------


def test_sigterm_lets_every_stream_finish_takes_nothing_new_and_ends_with_code_0() -> None:
    sidecar = Sidecar(device="emulated", emulated_step_ms=5.0)
    pids = [sidecar.pid, *sidecar.pids.values()]
    streams = [
        Background(sidecar, "Once upon a time", SamplingParams(max_tokens=200, ignore_eos=True)).begun()
        for _ in range(3)
    ]
    with Raw(sidecar.endpoint) as raw:
        os.kill(sidecar.pid, signal.SIGTERM)
        until(lambda: "stopping" in sidecar.log, "the drain has begun")

        def refused() -> bool:
            raw.generate(f"{time.monotonic()}", max_tokens=1)
            message = raw.hear()
            return message["t"] == "error" and message["code"] == "unavailable"

        until(refused, "new requests are refused")
    assert [stream.end() for stream in streams] == ["length"] * 3
    assert [len(stream.tokens) for stream in streams] == [200] * 3
    assert sidecar.stop() == 0
    assert alive(pids) == []


@pytest.mark.rest
def test_a_second_sigterm_ends_the_drain() -> None:
    sidecar = Sidecar(device="emulated", emulated_step_ms=50.0)
    pids = [sidecar.pid, *sidecar.pids.values()]
    with Raw(sidecar.endpoint) as raw:
        raw.generate("1", max_tokens=900, ignore_eos=True)
        raw.hear()
        os.kill(sidecar.pid, signal.SIGTERM)
        until(lambda: "stopping" in sidecar.log, "the drain has begun")
        os.kill(sidecar.pid, signal.SIGTERM)
        until(lambda: alive(pids) == [], "all have ended", 10.0)
    assert sidecar.stop() == 4  # something was cut off


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.rest)])
def test_a_signal_to_every_process_of_a_service_drains_it(number: int) -> None:
    """As systemd sends it, unless a unit says KillMode=mixed, and as a shell does to what it has started."""
    inherited = signal.signal(number, signal.SIG_DFL)  # under nohup a service does not stop by SIGHUP
    try:
        sidecar = Sidecar(device="emulated", emulated_step_ms=5.0, spare_executor="on")
    finally:
        signal.signal(number, inherited)
    stream = Background(sidecar, "Once", SamplingParams(max_tokens=200, ignore_eos=True)).begun()
    for pid in (sidecar.pid, *sidecar.pids.values()):
        os.kill(pid, number)
    assert stream.end() == "length"
    assert len(stream.tokens) == 200
    until(lambda: alive([sidecar.pid]) == [], "the drain is over")
    assert sidecar.stop() == 0


def test_a_stream_goes_on_though_the_gateway_dies_in_a_drain() -> None:
    sidecar = Sidecar(device="emulated", emulated_step_ms=10.0)
    params = SamplingParams(max_tokens=200, ignore_eos=True, seed=1)
    with sidecar.client() as client:
        expected = client.generate("1", params).outputs[0].token_ids
        stream = client.stream("1", params)
        tokens = list(next(stream).token_ids)
        gateway = sidecar.pids["gateway"]
        os.kill(sidecar.pid, signal.SIGTERM)
        until(lambda: "stopping" in sidecar.log, "the drain has begun")
        os.kill(gateway, signal.SIGKILL)
        tokens += [token for delta in stream for token in delta.token_ids]
        assert tokens == expected
    until(lambda: alive([sidecar.pid]) == [], "the drain is over")
    assert sidecar.stop() == 0


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_no_process_is_left_a_second_after_the_supervisor_was_killed(busy: bool) -> None:
    sidecar = Sidecar(device="emulated", emulated_step_ms=5.0)
    pids = [sidecar.pid, *sidecar.pids.values()]
    assert len(alive(pids)) == 6
    with Raw(sidecar.endpoint) as raw:
        if busy:
            raw.generate("1", max_tokens=900, ignore_eos=True)
            raw.hear()
        os.kill(sidecar.pid, signal.SIGKILL)
        until(lambda: alive(pids) == [], "all have ended", 1.0)
    assert sidecar.stop() == -signal.SIGKILL


@pytest.fixture(scope="module")
def mortal() -> Iterator[Sidecar]:
    """A service whose model is a known function, so that every token can be told in advance."""
    with Sidecar(device="emulated", emulated_step_ms=5.0) as sidecar:
        yield sidecar


def test_in_a_crowd_of_short_requests_each_result_has_its_prompts_token_ids_and_their_count(
    mortal: Sidecar,
) -> None:
    """The answers overtake the tokenizer's notes."""
    with mortal.client() as client:
        params = SamplingParams(max_tokens=1, ignore_eos=True)
        outputs = client.generate_many(["Once upon a time"] * 500, params)
    assert {len(output.prompt_token_ids or ()) for output in outputs} == {4}
    assert {output.usage.prompt_tokens for output in outputs if output.usage} == {4}


ACTORS = ["gateway", "tokenizer", "scheduler", "executor", "detokenizer"]


def test_a_client_can_ask_how_each_actor_is(mortal: Sidecar) -> None:
    with mortal.client() as client:
        client.generate("Once upon a time", SamplingParams(max_tokens=5, ignore_eos=True))
        told = client.actors()
    assert told.live
    assert told.ready
    assert not told.draining
    assert [state.name for state in told.actors] == [
        "executor",
        "scheduler",
        "detokenizer",
        "tokenizer",
        "gateway",
    ]
    for state in told.actors:
        assert state.state == "ready"
        assert state.pid == mortal.pids[state.name]
        assert state.restarts == 0
        assert 0.0 < state.uptime_s < NEAR * 10
        assert state.last_progress_s < NEAR
        assert state.mailbox_depth < 10


@pytest.mark.parametrize("actor", few_of(ACTORS, "executor"))
def test_an_actor_that_is_killed_comes_again_and_a_stream_goes_on_with_the_same_tokens(
    mortal: Sidecar, actor: str
) -> None:
    params = SamplingParams(max_tokens=300, ignore_eos=True, seed=5)
    expected = Background(mortal, "Once upon a time", params)
    assert expected.end() == "length"
    before = mortal.pids
    stream = Background(mortal, "Once upon a time", params).begun()
    os.kill(before[actor], signal.SIGKILL)
    assert stream.end() == "length"
    assert stream.tokens == expected.tokens
    assert "".join(delta.text for delta in stream.deltas) == "".join(delta.text for delta in expected.deltas)
    until(lambda: mortal.actors[actor]["state"] == "ready", f"the {actor} is ready again")
    after = mortal.pids
    assert {name for name in ACTORS if before[name] != after[name]} == {actor}


@pytest.mark.rest
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the option has an effect")
def test_an_option_of_a_gpu_is_refused_where_the_device_turns_out_to_be_the_cpu() -> None:
    code, lines, _ = serve("--cuda-graphs=lazy")
    assert code == 3
    assert "cuda_graphs=lazy has no effect on the CPU" in "\n".join(lines)


def test_where_cores_are_few_the_actors_that_the_device_waits_for_come_first(mortal: Sidecar) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    nice = {name: os.getpriority(os.PRIO_PROCESS, pid) - own for name, pid in mortal.pids.items()}
    assert {name for name, more in nice.items() if more == 0} == {"scheduler", "executor"}
    assert {more for more in nice.values() if more} == {NICENESS}

    def slice_ns(pid: int | str) -> int | None:
        with contextlib.suppress(FileNotFoundError):  # a kernel without this view
            for line in Path(f"/proc/{pid}/sched").read_text().splitlines():
                if line.startswith("se.slice"):
                    return int(line.rpartition(":")[2])
        return None

    usual = slice_ns("self")
    if usual is None or tuple(map(int, platform.release().split(".")[:2])) < (6, 12):
        pytest.skip("this kernel has no slices that a thread may choose, or does not show them")
    slices = {name: slice_ns(pid) for name, pid in mortal.pids.items()}
    assert {name for name, found in slices.items() if found == SLICE_NS} == {"scheduler", "executor"}


def test_the_ready_line_says_where_the_service_is_and_stop_leaves_no_file_behind() -> None:
    read_end, write_end = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "slipstream", "serve", "--device=emulated", f"--ready-fd={write_end}"],
        pass_fds=(write_end,),
        stderr=subprocess.DEVNULL,
        cwd="/",
    )
    os.close(write_end)
    with open(read_end, "rb") as told:
        ready = json.loads(told.readline())
    try:
        assert ready.items() >= {"http": None, "pid": process.pid, "protocol": [1, 0]}.items()
        assert isinstance(ready["model"], str)
        path = Path(ready["endpoint"].removeprefix("ipc://"))
        assert path.is_socket()
        assert path.parent.stat().st_mode & 0o777 == 0o700
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(NEAR) == 0
    assert not path.parent.exists()


@pytest.mark.parametrize("killed", few_of([False, True], False), ids=["stopped", "gateway killed"])
def test_an_endpoint_of_the_users_own_leaves_no_file_behind(killed: bool, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Sidecar(device="emulated", endpoint=f"ipc://{path}") as sidecar:
        assert path.is_socket()
        refused = subprocess.run(
            [sys.executable, "-m", "slipstream", "serve", "--device=emulated", f"--endpoint=ipc://{path}"],
            capture_output=True,
            text=True,
            timeout=NEAR,
        )
        assert "another process is listening there" in refused.stderr
        assert path.is_socket(), "that of the first service stays"
        if killed:
            os.kill(sidecar.pids["gateway"], signal.SIGKILL)
    assert not path.exists()
