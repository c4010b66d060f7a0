"""LLM and Sidecar on the bundled model: from a script, from a notebook, from an event loop."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from slipstream.protocol.client.outputs import RequestOutput

import slipstream
from slipstream import (
    LLM,
    Client,
    Delta,
    InvalidRequest,
    SamplingParams,
    ServiceUnavailable,
    Sidecar,
    SlipstreamError,
)

ACTORS = {"gateway", "tokenizer", "scheduler", "executor", "detokenizer"}

GREEDY = SamplingParams(max_tokens=8, temperature=0)

PROMPTS = ["Once upon a time", "One day a dog", "3 + 4 ="]


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    with Sidecar(device="cpu", max_num_seqs=8) as started:
        yield started


@pytest.fixture
def client(sidecar: Sidecar) -> Iterator[Client]:
    with sidecar.client() as connected:
        yield connected


def run_script(path: Path, source: str, *, timeout: float = 120) -> Any:
    """Run a file as a user would, and return what its last line says."""
    path.write_text(source)
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=timeout, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def gone(pids: list[int], within_s: float) -> bool:
    """Whether all these processes end in time."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        left = [pid for pid in pids if alive(pid)]
        if not left:
            return True
        time.sleep(0.02)
    return False


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


# --- Sidecar ------------------------------------------------------------------------------------


def test_sidecar_tells_where_it_is(sidecar: Sidecar) -> None:
    assert sidecar.endpoint.startswith("ipc://")
    assert set(sidecar.pids) == ACTORS
    assert all(alive(pid) for pid in [sidecar.pid, *sidecar.pids.values()])
    assert {sidecar.actors[name]["state"] for name in ACTORS} == {"ready"}
    assert sidecar.ready["protocol"] == [1, 0]
    assert sidecar.ready["pid"] == sidecar.pid


def test_text_comes_back(client: Client) -> None:
    output = client.generate("Once upon a time", GREEDY)
    assert output.finished
    assert output.prompt == "Once upon a time"
    assert output.prompt_token_ids
    assert len(output.outputs[0].token_ids) == 8
    assert output.outputs[0].text
    assert output.outputs[0].finish_reason == "length"
    assert output.usage is not None
    assert output.usage.completion_tokens == 8
    assert output.usage.prompt_tokens == len(output.prompt_token_ids)


def test_token_ids_are_a_prompt_too(client: Client) -> None:
    told = client.generate("Once upon a time", GREEDY)
    assert told.prompt_token_ids is not None
    again = client.generate(told.prompt_token_ids, GREEDY)
    assert again.outputs[0].token_ids == told.outputs[0].token_ids


def test_a_stream_is_the_answer_in_parts(client: Client) -> None:
    whole = client.generate("Once upon a time", GREEDY).outputs[0]
    deltas = list(client.stream("Once upon a time", GREEDY))
    assert "".join(delta.text for delta in deltas) == whole.text
    assert [id for delta in deltas for id in delta.token_ids] == whole.token_ids
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["length"]
    assert deltas[-1].finish_reason == "length"


def test_chat(client: Client) -> None:
    assert client.chat([{"role": "user", "content": "What is 2 + 3?"}], GREEDY).outputs[0].text


def test_two_async_clients_stream_at_once(sidecar: Sidecar) -> None:
    params = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)

    async def main() -> tuple[list[str], tuple[list[Delta], list[Delta]]]:
        order: list[str] = []

        async def consume(name: str) -> list[Delta]:
            deltas = []
            async with sidecar.async_client() as client:
                async for delta in client.generate("Once upon a time", params):
                    order.append(name)
                    deltas.append(delta)
            return deltas

        return order, await asyncio.gather(consume("a"), consume("b"))

    order, both = asyncio.run(asyncio.wait_for(main(), 60))
    assert [sum(len(delta.token_ids) for delta in deltas) for deltas in both] == [40, 40]
    # Neither ran as a whole before the other.
    assert "b" in order[: order.count("a")] or "a" in order[: order.count("b")]


def test_one_bad_request_fails_alone(sidecar: Sidecar, client: Client) -> None:
    async def main() -> list[Any]:
        async with sidecar.async_client() as other:
            asked = [other.complete(prompt, GREEDY) for prompt in ("Once", "", "Once")]
            return await asyncio.gather(*asked, return_exceptions=True)

    good, bad, same = asyncio.run(asyncio.wait_for(main(), 60))
    assert isinstance(bad, InvalidRequest)
    assert good.outputs[0].token_ids == same.outputs[0].token_ids
    with pytest.raises(InvalidRequest, match="temperature=9"):
        client.generate("Once", SamplingParams(temperature=9))
    assert client.generate("Once", GREEDY).outputs[0].token_ids == good.outputs[0].token_ids


@pytest.mark.rest
def test_stop_ends_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also: an endpoint in the environment is another service's, and this one does not take it away."""
    monkeypatch.setenv("SLIPSTREAM_ENDPOINT", "ipc:///nowhere/at/all")
    sidecar = Sidecar(device="cpu", max_num_seqs=2)
    assert sidecar.endpoint != "ipc:///nowhere/at/all"
    pids = [sidecar.pid, *sidecar.pids.values()]
    assert sidecar.stop() == 0
    assert gone(pids, 1.0)
    assert sidecar.stop() == 0


# --- what goes wrong ----------------------------------------------------------------------------


# --- where they cannot be used ------------------------------------------------------------------


def test_a_forked_child_can_neither_use_nor_stop_its_parents_llm(tmp_path: Path) -> None:
    """Nor does it by leaving the block, by an exception or by ending; what it may do is make a client of its own."""
    script = """
import json, os, sys
from slipstream import LLM, Client, SamplingParams
said = []
def tried(work):
    try:
        return str(work())
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
params = SamplingParams(max_tokens=2, ignore_eos=True)
with LLM(device="emulated") as llm:
    llm.generate("x", params)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        said = [tried(lambda: llm.generate("x", params)), tried(llm.shutdown), tried(llm.sidecar.stop)]
        with Client(llm.sidecar.endpoint) as client:
            said.append(len(client.generate("x", params).outputs[0].token_ids))
        os.write(write, json.dumps(said).encode())
        sys.exit(7)
    os.close(write)
    with os.fdopen(read) as answer:
        said = json.load(answer)
    said.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    said.append(len(llm.generate("x", params)[0].outputs[0].token_ids))
print(json.dumps(said))
"""
    generate, shutdown, stop, tokens, code, tokens_after = run_script(tmp_path / "forks.py", script)
    assert generate.startswith("RuntimeError: this client belongs to process ")
    assert "make a new client of ipc://" in generate
    assert shutdown == stop
    assert stop.startswith("RuntimeError: this Sidecar belongs to process ")
    assert (tokens, code, tokens_after) == (2, 7, 2)


def test_after_the_end_of_its_service_nothing_waits_for_it() -> None:
    with LLM(device="emulated") as llm:
        client, sidecar = llm.sidecar.client(timeout_s=60), llm.sidecar
    llm.shutdown()
    begun = time.monotonic()
    for use in (
        lambda: llm.generate("x"),
        lambda: llm.chat([{"role": "user", "content": "x"}]),
        lambda: llm.pids,
        sidecar.client,
        sidecar.async_client,
        lambda: sidecar.actors,
    ):
        with pytest.raises(
            ServiceUnavailable, match="the service has ended with exit code 0; start a new one"
        ):
            use()
    assert sidecar.stop() == 0
    client.close()
    assert time.monotonic() - begun < 2.0


def test_another_thread_neither_uses_nor_ends_an_llm_that_waits() -> None:
    params = SamplingParams(max_tokens=200, ignore_eos=True)
    with LLM(device="emulated", emulated_step_ms=5) as llm:
        begun = threading.Event()
        outputs: list[RequestOutput] = []

        def ask() -> None:
            outputs.extend(llm.client.generate_many(["x"], params, on_delta=lambda *_: begun.set()))

        waiting = threading.Thread(target=ask)
        waiting.start()
        assert begun.wait(20)
        for use in (lambda: llm.generate("x"), llm.shutdown):
            with pytest.raises(RuntimeError, match="one thread at a time"):
                use()
        waiting.join(20)
        assert len(outputs[0].outputs[0].token_ids) == 200
        for prompts in ({"prompt": "x"}, {"x", "y"}, iter(["x"]), None):
            with pytest.raises(InvalidRequest, match=r"prompts is of type .*; give a list"):
                llm.generate(cast(Any, prompts))
        with pytest.raises(InvalidRequest, match="messages is of type dict"):
            llm.chat(cast(Any, {"role": "user", "content": "x"}))
        assert llm.generate("x", SamplingParams(max_tokens=1))[0].finished


@pytest.mark.rest
def test_a_bad_model_is_told_with_its_cause(tmp_path: Path) -> None:
    with pytest.raises(SlipstreamError, match="model '/nowhere/at/all'"):
        Sidecar("/nowhere/at/all")
    with pytest.raises(SlipstreamError, match=r"config\.json"):
        LLM(tmp_path)
    bundled = Path(slipstream.__file__).parent / "model"
    shutil.copytree(bundled, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text(
        '{"model_type": "deepseek_v32", "vocab_size": 4096, "max_position_embeddings": 64}'
    )
    with pytest.raises(SlipstreamError, match="deepseek_v32"):
        LLM(tmp_path)


def test_a_wrong_option_is_refused_before_anything_starts() -> None:
    with pytest.raises(InvalidRequest, match="'max_num_sequences'; did you mean 'max_num_seqs'"):
        Sidecar(max_num_sequences=4)
    with pytest.raises(InvalidRequest, match="block_size=0 is out of range"):
        LLM(block_size=0)


# --- LLM ----------------------------------------------------------------------------------------


def test_llm_in_a_script_without_a_main_guard(tmp_path: Path) -> None:
    """The script is run once, not once per process; no handler is installed; no engine is loaded into it."""
    source = f"""
import json, signal, sys
print("once")
handlers = [signal.getsignal(number) for number in sorted(signal.valid_signals())]
from slipstream import LLM, SamplingParams
with LLM(device="cpu", max_num_seqs=4) as llm:
    many = llm.generate({PROMPTS!r}, SamplingParams(max_tokens=8, temperature=0))
    one = llm.generate({PROMPTS[1]!r}, [SamplingParams(max_tokens=8, temperature=0)])
    ids = llm.generate([many[0].prompt_token_ids, many[1].prompt_token_ids],
                       [SamplingParams(max_tokens=n, temperature=0) for n in (2, 3)])
    chat = llm.chat([{{"role": "user", "content": "What is 2 + 3?"}}], SamplingParams(max_tokens=8))
    weather = {{"name": "get_weather", "parameters": {{"properties": {{"city": {{"type": "string"}}}}}}}}
    asked = [[{{"role": "user", "content": f"What is the weather in {{city}}?"}}] for city in ("Paris", "Oslo")]
    tools = [{{"type": "function", "function": weather}}]
    called = llm.chat(asked, SamplingParams(max_tokens=100, temperature=0), tools=tools)
    pids = llm.pids
assert handlers == [signal.getsignal(number) for number in sorted(signal.valid_signals())]
assert not set(sys.modules) & {{"torch", "transformers", "multiprocessing", "numpy"}}
print(json.dumps({{
    "prompts": [output.prompt for output in many],
    "texts": [output.outputs[0].text for output in many],
    "one": one[0].outputs[0].text,
    "lengths": [len(output.outputs[0].token_ids) for output in ids],
    "chats": len(chat),
    "calls": [call.arguments for output in called for call in output.outputs[0].tool_calls],
    "pids": pids,
}}))
"""
    told = run_script(tmp_path / "script.py", source)
    assert told["prompts"] == PROMPTS
    assert all(told["texts"])
    assert told["one"] == told["texts"][1]
    assert told["lengths"] == [2, 3]
    assert told["chats"] == 1
    assert [json.loads(arguments) for arguments in told["calls"]] == [{"city": "Paris"}, {"city": "Oslo"}]
    assert gone(list(told["pids"].values()), 1.0)


@pytest.mark.rest
def test_llm_in_a_notebook(tmp_path: Path) -> None:
    """As in a cell: no file, no real stderr, and an event loop that runs."""
    source = """
import asyncio, io, json, sys
cell = '''
from slipstream import LLM, SamplingParams
llm = LLM(device="cpu", max_num_seqs=4)
text = llm.generate("Once upon a time", SamplingParams(max_tokens=8, temperature=0))[0].outputs[0].text
llm.shutdown()
llm.shutdown()
'''
async def kernel():
    names = {"__name__": "__main__"}
    exec(compile(cell, "<cell>", "exec"), names)
    return names["text"]
sys.stderr = io.StringIO()
del sys.modules["__main__"].__file__
text = asyncio.run(kernel())
print(json.dumps(text))
"""
    assert run_script(tmp_path / "kernel.py", source)


def test_nothing_is_left_when_the_program_is_killed(tmp_path: Path) -> None:
    """The service was started by a thread that has ended meanwhile: that must not end it; the kill must."""
    script = tmp_path / "script.py"
    script.write_text(
        """
import json, sys, threading
from slipstream import Sidecar
made = []
thread = threading.Thread(target=lambda: made.append(Sidecar(device="cpu", max_num_seqs=2)))
thread.start()
thread.join()
print(json.dumps([made[0].pid, *made[0].pids.values()]), flush=True)
print(made[0].client().generate("Once").finished, flush=True)
sys.stdin.read()
"""
    )
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        pids = json.loads(program.stdout.readline())
        assert program.stdout.readline() == "True\n"
        assert all(alive(pid) for pid in pids)
        os.kill(program.pid, signal.SIGKILL)
        assert gone(pids, 3.0)
