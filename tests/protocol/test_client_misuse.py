"""Clients used where they cannot be: after a fork, by another thread or event loop, after close. An error at once."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from fake_gateway import FakeGateway, never_finish
from slipstream.protocol.messages import Abort, Generate

from slipstream import AsyncClient, Client, Delta, InvalidRequest, ServiceUnavailable

AT_ONCE_S = 5.0
"""Far below any time limit of a client, which is set to a minute here, and far above what a busy machine takes."""


def run(main: Any) -> Any:
    return asyncio.run(asyncio.wait_for(main, 20))


def in_child(work: Callable[[], object]) -> str:
    """What ``work`` comes to in a forked child, its result or its error."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        child = os.fork()
    if child == 0:
        try:
            try:
                said = repr(work())
            except BaseException as error:
                said = f"{type(error).__name__}: {error}"
            os.write(write, said.encode())
        finally:
            os._exit(0)
    os.close(write)
    try:
        with os.fdopen(read, "rb") as answer:
            if not select.select([answer], [], [], AT_ONCE_S)[0]:
                os.kill(child, signal.SIGKILL)
                pytest.fail(f"the child said nothing for {AT_ONCE_S} s")
            return answer.read().decode()
    finally:
        os.waitpid(child, 0)


def in_thread(work: Callable[[], object]) -> str:
    """What ``work`` comes to in another thread, its result or its error."""
    said: list[str] = []

    def call() -> None:
        try:
            said.append(repr(work()))
        except BaseException as error:
            said.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(AT_ONCE_S)
    assert not thread.is_alive(), f"the thread said nothing for {AT_ONCE_S} s"
    return said[0]


# --- after a fork -------------------------------------------------------------------------------

BLOCKING_USES: dict[str, Callable[[Client], object]] = {
    "generate": lambda client: client.generate("x"),
    "chat": lambda client: client.chat([{"role": "user", "content": "x"}]),
    "stream": lambda client: next(client.stream("x")),
    "many": lambda client: client.generate_many(["x", "y"]),
    "stats": lambda client: client.stats(),
    "welcome": lambda client: client.welcome,
    "abort": lambda client: client.abort("x"),
}

ASYNC_USES: dict[str, Callable[[AsyncClient], Any]] = {
    "generate": lambda client: anext(client.generate("x")),
    "batches": lambda client: anext(client.batches(prompt="x")),
    "complete": lambda client: client.complete("x"),
    "stats": lambda client: client.stats(),
    "connect": lambda client: client.connect(),
}


@pytest.mark.parametrize("use", BLOCKING_USES)
def test_a_forked_child_that_uses_its_parents_client_is_told_to_make_its_own(
    use: str, serve: Callable[..., FakeGateway], endpoint: str
) -> None:
    serve()
    with Client(endpoint, timeout_s=60) as client:
        said = in_child(lambda: BLOCKING_USES[use](client))
        assert said.startswith(
            f"RuntimeError: this client belongs to process {os.getpid()}, of which this one"
        )
        assert said.endswith(f"make a new client of {endpoint} here")
        assert client.generate("hello").outputs[0].text == "hello"


@pytest.mark.parametrize("use", ASYNC_USES)
def test_a_forked_child_that_uses_its_parents_async_client_is_told_to_make_its_own(
    use: str, serve: Callable[..., FakeGateway], endpoint: str
) -> None:
    serve()

    async def main() -> None:
        async with AsyncClient(endpoint, timeout_s=60) as client:
            said = in_child(lambda: run(ASYNC_USES[use](client)))
            assert said.startswith(f"RuntimeError: this client belongs to process {os.getpid()}")
            assert said.endswith(f"make a new client of {endpoint} here")
            assert (await client.complete("hello")).outputs[0].text == "hello"

    run(main())


def test_a_child_that_is_forked_while_another_thread_uses_the_client_is_told_the_same(
    serve: Callable[..., FakeGateway], endpoint: str
) -> None:
    gateway = serve(never_finish)
    with Client(endpoint, timeout_s=60) as client:
        waiting = threading.Thread(target=lambda: list(client.stream("x", request_id="x")))
        waiting.start()
        wait_until_used(client)
        assert in_child(client.stats).startswith("RuntimeError: this client belongs to process")
        gateway.tokens(next(iter(gateway.known)), ("x", "b", [2]), finish="stop")
        waiting.join(AT_ONCE_S)
        assert not waiting.is_alive()


def test_a_stream_goes_on_in_the_parent_whatever_a_child_does_with_it(
    serve: Callable[..., FakeGateway], endpoint: str
) -> None:
    """Reading on, dropping it, closing the client and leaving its block: nothing of that reaches the service."""
    gateway = serve(never_finish)
    with Client(endpoint, timeout_s=60) as client:
        stream = client.stream("x", request_id="x")
        assert next(stream).text == "a"

        def leave_the_block() -> str:
            with client:
                return "left"

        assert in_child(lambda: next(stream)).startswith("RuntimeError: this client belongs to process")
        assert in_child(stream.close) == "None"
        assert in_child(client.close) == "None"
        assert in_child(leave_the_block) == "'left'"
        gateway.tokens(next(iter(gateway.known)), ("x", "b", [2]), finish="stop")
        assert [delta.text for delta in stream] == ["b"]
    assert not any(isinstance(message, Abort) for message in gateway.seen)


def test_an_async_stream_goes_on_in_the_parent_whatever_a_child_does_with_it(
    serve: Callable[..., FakeGateway], endpoint: str
) -> None:
    """The event loops of both look at the same sockets: what the child takes from its own the parent would miss."""
    gateway = serve(never_finish)

    async def main() -> None:
        async with AsyncClient(endpoint, timeout_s=60) as client:
            stream = client.generate("x", request_id="x")
            assert (await anext(stream)).text == "a"
            assert in_child(lambda: run(anext(stream))).startswith("RuntimeError: this client belongs to")
            assert in_child(lambda: run(stream.aclose())) == "None"
            assert in_child(lambda: run(client.close())) == "None"
            assert in_child(lambda: client.abort("x")).startswith("RuntimeError: this client belongs to")
            gateway.tokens(next(iter(gateway.known)), ("x", "b", [2]), finish="stop")
            assert [delta.text async for delta in stream] == ["b"]

    run(main())
    assert not any(isinstance(message, Abort) for message in gateway.seen)


def test_a_child_may_make_a_client_of_its_own(serve: Callable[..., FakeGateway], endpoint: str) -> None:
    serve()

    def ask() -> str:
        with Client(endpoint) as client:
            return client.generate("blocking").outputs[0].text

    async def ask_async() -> str:
        async with AsyncClient(endpoint) as client:
            return (await client.complete("async")).outputs[0].text

    with Client(endpoint) as client:
        client.stats()
        assert in_child(ask) == "'blocking'"
        assert in_child(lambda: run(ask_async())) == "'async'"


def test_an_async_client_that_has_connected_nowhere_yet_may_go_to_a_child(
    serve: Callable[..., FakeGateway], endpoint: str
) -> None:
    """As servers do that load the program once and fork their workers from it."""
    serve()
    client = AsyncClient(endpoint)

    async def ask() -> str:
        async with client:
            return (await client.complete("hello")).outputs[0].text

    assert in_child(lambda: run(ask())) == "'hello'"
    assert run(ask()) == "hello"


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_client_that_is_sent_to_another_process_is_refused_with_what_to_send(
    kind: type[Client | AsyncClient], serve: Callable[..., FakeGateway], endpoint: str
) -> None:
    """As ``multiprocessing`` does with what a new process is to work with, where it does not fork."""
    serve()
    client = kind(endpoint)
    with pytest.raises(TypeError, match=f"send its endpoint, '{endpoint}', and make a new client there"):
        pickle.dumps(client)
    for copied in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="a client cannot be pickled or copied"):
            copied(client)
    if isinstance(client, Client):
        client.close()


ENDS: dict[str, str] = {
    "Client": """
from slipstream import Client
client = Client(ENDPOINT)
stream = client.stream("x", request_id="x")
print(next(stream).text)
if child := os.fork():
    print(os.waitpid(child, 0)[1], flush=True)
    print(next(stream).text)
""",
    "AsyncClient": """
import asyncio
from slipstream import AsyncClient
async def main():
    client = AsyncClient(ENDPOINT)
    stream = client.generate("x", request_id="x")
    print((await anext(stream)).text)
    child = os.fork()
    if child == 0:
        sys.exit()  # through the loop, the generators and the finalizers
    print(os.waitpid(child, 0)[1], flush=True)
    print((await anext(stream)).text)
asyncio.run(main())
""",
    "a daemon that waits": """
import threading
from slipstream import Client
client = Client(ENDPOINT)
stream = client.stream("x", request_id="x")
print(next(stream).text)
print(0, flush=True)
print(next(stream).text)
threading.Thread(target=lambda: list(stream), daemon=True).start()
while "unlocked" in repr(client._busy):
    pass
""",
}


@pytest.mark.parametrize("program", ENDS)
def test_a_program_and_its_child_end_by_themselves_and_in_silence(
    program: str, serve: Callable[..., FakeGateway], endpoint: str
) -> None:
    """Finalizers run in the child too: what they closed there would be closed, or missed, in the parent."""
    gateway = serve(never_finish)
    script = f"import os, sys\nENDPOINT = {endpoint!r}\n{ENDS[program]}"
    with subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "a\n"
            assert process.stdout.readline() == "0\n"
            assert not any(isinstance(message, Abort) for message in gateway.seen)
            gateway.tokens(next(iter(gateway.known)), ("x", "b", [2]))
            rest, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (rest, errors, process.returncode) == ("b\n", "", 0)


# --- another thread -----------------------------------------------------------------------------


def wait_until_used(client: Client) -> None:
    end = time.monotonic() + AT_ONCE_S
    while "unlocked" in repr(client._busy):
        assert time.monotonic() < end
        threading.Event().wait(0.001)


@pytest.mark.parametrize("use", [*BLOCKING_USES, "close"])
def test_two_threads_at_once_are_refused(use: str, serve: Callable[..., FakeGateway], endpoint: str) -> None:
    gateway = serve(never_finish)
    with Client(endpoint, timeout_s=60) as client:
        stream = client.stream("x")
        next(stream)
        rest: list[Delta] = []
        waiting = threading.Thread(target=lambda: rest.extend(stream))
        waiting.start()
        wait_until_used(client)
        asked = len(gateway.seen)
        with pytest.raises(RuntimeError, match="one thread at a time"):
            (BLOCKING_USES | {"close": Client.close})[use](client)
        gateway.tokens(next(iter(gateway.known)), (gateway.saw(Generate)[0].id, "b", [2]), finish="stop")
        waiting.join(AT_ONCE_S)
        assert not waiting.is_alive()
        assert [delta.text for delta in rest] == ["b"]
        assert len(gateway.seen) == asked


def test_a_client_may_go_from_thread_to_thread(serve: Callable[..., FakeGateway], endpoint: str) -> None:
    serve()
    client = Client(endpoint)
    stream = client.stream("hello")
    assert next(stream).text == "h"
    assert in_thread(lambda: next(stream).text) == "'e'"
    assert in_thread(lambda: client.generate("other").outputs[0].text) == "'other'"
    assert "".join(delta.text for delta in stream) == "llo"
    assert in_thread(client.close) == "None"


def test_the_call_that_came_first_goes_on_between_the_answers_of_many(
    serve: Callable[..., FakeGateway], endpoint: str
) -> None:
    """It uses the client until the last of its answers, not only while it waits; its own callback may use it too."""
    serve()
    said: list[str] = []

    def on_delta(number: int, delta: Delta) -> None:
        said.append(in_thread(client.stats))
        assert client.stats() == {"requests": 3.0}

    with Client(endpoint, timeout_s=60) as client:
        outputs = client.generate_many(["ab", "cd"], on_delta=on_delta)
    assert [output.outputs[0].text for output in outputs] == ["ab", "cd"]
    assert said
    assert all("one thread at a time" in text for text in said)


def test_a_stream_that_is_dropped_while_another_thread_waits_is_ended_by_that_thread(
    serve: Callable[..., FakeGateway], endpoint: str
) -> None:
    gateway = serve(never_finish)
    with Client(endpoint, timeout_s=60) as client:
        dropped, other = client.stream("x", request_id="dropped"), client.stream("x", request_id="other")
        next(dropped)
        next(other)
        waiting = threading.Thread(target=lambda: list(other))
        waiting.start()
        wait_until_used(client)
        dropped.close()
        del dropped
        gc.collect()
        gateway.tokens(next(iter(gateway.known)), ("other", "b", [2]))
        assert gateway.saw(Abort)[0].id == "dropped"
        gateway.tokens(next(iter(gateway.known)), ("other", "c", [3]), finish="stop")
        waiting.join(AT_ONCE_S)
        assert not waiting.is_alive()


# --- another event loop -------------------------------------------------------------------------


@pytest.mark.parametrize("use", ASYNC_USES)
def test_an_async_client_is_refused_by_another_loop_after_the_first_and_beside_it(
    use: str, serve: Callable[..., FakeGateway], endpoint: str
) -> None:
    gateway = serve()
    client = AsyncClient(endpoint, timeout_s=60)

    async def first() -> None:
        await client.connect()
        asked = len(gateway.seen)
        beside = await asyncio.to_thread(in_thread, lambda: run(ASYNC_USES[use](client)))
        assert beside.startswith("RuntimeError: an AsyncClient belongs to the event loop that first used it")
        assert len(gateway.seen) == asked
        assert (await client.complete("hello")).outputs[0].text == "hello"

    run(first())
    with pytest.raises(RuntimeError, match="belongs to the event loop that first used it"):
        run(ASYNC_USES[use](client))
    run(client.close())


def test_what_is_open_in_one_loop_is_not_touched_by_another(
    serve: Callable[..., FakeGateway], endpoint: str
) -> None:
    gateway = serve(never_finish)

    async def main() -> None:
        async with AsyncClient(endpoint, timeout_s=60) as client:
            stream = client.generate("x", request_id="x")
            other = client.generate("x", request_id="other")
            await anext(stream)
            await anext(other)
            for work in (
                lambda: run(anext(other)),
                lambda: client.abort("x"),
                lambda: run(client.close()),
            ):
                said = await asyncio.to_thread(in_thread, work)
                assert said.startswith("RuntimeError: an AsyncClient belongs to the event loop")
            assert (await asyncio.to_thread(gateway.saw, Abort))[0].id == "other"
            gateway.tokens(next(iter(gateway.known)), ("x", "b", [2]), finish="stop")
            assert [delta.text async for delta in stream] == ["b"]

    run(main())


def test_an_async_client_is_closed_after_its_loop(serve: Callable[..., FakeGateway], endpoint: str) -> None:
    """As fixtures of tests do that make it in one loop and close it in the next."""
    serve(never_finish)
    client = AsyncClient(endpoint, timeout_s=60)
    stream = client.generate("x")
    loop = asyncio.new_event_loop()
    loop.run_until_complete(anext(stream))
    loop.close()
    run(client.close())
    assert client._transport.socket is None


def test_an_async_client_is_of_use_between_two_runs_of_its_loop(
    serve: Callable[..., FakeGateway], endpoint: str
) -> None:
    gateway = serve(never_finish)
    client = AsyncClient(endpoint, timeout_s=60)
    stream = client.generate("x", request_id="x")
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(anext(stream)).text == "a"
    client.abort("x")
    assert gateway.saw(Abort)[0].id == "x"
    assert loop.run_until_complete(anext(stream)).finish_reason == "abort"
    loop.run_until_complete(client.close())
    loop.close()


def test_an_async_client_that_is_collected_in_another_thread_is_closed_by_its_loop(
    serve: Callable[..., FakeGateway], endpoint: str
) -> None:
    serve()

    async def main() -> None:
        clients = [AsyncClient(endpoint, timeout_s=60)]
        await clients[0].connect()
        transport = clients[0]._transport
        await asyncio.to_thread(clients.clear)
        await asyncio.to_thread(gc.collect)
        end = time.monotonic() + AT_ONCE_S
        while transport.socket is not None:
            assert time.monotonic() < end
            await asyncio.sleep(0.005)

    run(main())


# --- after close --------------------------------------------------------------------------------


def test_nothing_but_another_close_is_left_to_a_closed_client(
    serve: Callable[..., FakeGateway], endpoint: str
) -> None:
    serve(never_finish)
    client = Client(endpoint, timeout_s=60)
    begun, unused = client.stream("x"), client.stream("x")
    assert next(begun).text == "a"
    client.close()
    client.close()
    started = time.monotonic()
    for use in (*BLOCKING_USES.values(), lambda _: next(begun), lambda _: next(unused)):
        if use is BLOCKING_USES["abort"]:
            use(client)  # nothing is open under any id
            continue
        with pytest.raises(ServiceUnavailable, match="was closed"):
            use(client)
    assert next(begun, None) is None
    assert time.monotonic() - started < AT_ONCE_S


def test_nothing_but_another_close_is_left_to_a_closed_async_client(
    serve: Callable[..., FakeGateway], endpoint: str
) -> None:
    serve(never_finish)

    async def main() -> None:
        client = AsyncClient(endpoint, timeout_s=60)
        begun, unused = client.generate("x"), client.generate("x")
        assert (await anext(begun)).text == "a"
        waiting = asyncio.create_task(client.complete("x"))
        await asyncio.sleep(0)
        await client.close()
        await client.close()
        client.abort("x")
        for use in (*ASYNC_USES.values(), lambda _: anext(begun), lambda _: anext(unused), lambda _: waiting):
            with pytest.raises(ServiceUnavailable, match="was closed"):
                await asyncio.wait_for(use(client), AT_ONCE_S)

    run(main())


@pytest.mark.parametrize(
    "given", [iter(["a"]), {"a": 1}, {"a"}, "a", 5, None], ids=lambda given: type(given).__name__
)
def test_what_is_no_list_of_several_is_told_so(serve: Callable[..., FakeGateway], given: Any) -> None:
    gateway = serve(never_finish)
    with Client(gateway.endpoint) as client:
        for ask, name in ((client.generate_many, "prompts"), (client.chat_many, "conversations")):
            with pytest.raises(
                InvalidRequest, match=f"{name} is of type {type(given).__name__}; give a list"
            ):
                ask(given)
        if given is not None:
            with pytest.raises(InvalidRequest, match="params is of type"):
                client.generate_many(["a"], given)
