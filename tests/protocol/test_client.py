"""The two clients, against a gateway that does what each test says."""

from __future__ import annotations

import asyncio
import errno
import gc
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import pytest
import zmq
from fake_gateway import LIMITS, FakeGateway, echo, never_finish
from slipstream.protocol.client import session as session_module
from slipstream.protocol.client_key import ClientKey
from slipstream.protocol.limits import PROTOCOL
from slipstream.protocol.messages import (
    Abort,
    Error,
    Generate,
    Hello,
    PublicIn,
    Stats,
    Usage,
)

from slipstream import (
    AsyncClient,
    Client,
    Delta,
    InvalidRequest,
    Overloaded,
    ProtocolError,
    SamplingParams,
    ServiceUnavailable,
)


def run(main: Any) -> Any:
    return asyncio.run(asyncio.wait_for(main, 20))


def test_async_stream(serve: Callable[..., FakeGateway], endpoint: str) -> None:
    gateway = serve()

    async def main() -> list[Delta]:
        async with AsyncClient(endpoint) as client:
            assert (await client.connect()).model == "fake"
            return [delta async for delta in client.generate("hello", SamplingParams(max_tokens=5))]

    deltas = run(main())
    assert "".join(delta.text for delta in deltas) == "hello"
    assert [delta.finish_reason for delta in deltas] == [None] * 4 + ["stop"]
    assert deltas[-1].usage == Usage(prompt_tokens=1, completion_tokens=2)
    hello, asked = gateway.seen
    assert isinstance(hello, Hello)
    assert hello.protocol == list(PROTOCOL)
    assert isinstance(asked, Generate)
    assert asked.params == SamplingParams(max_tokens=5)


def test_async_complete_chat_stats_and_trace(serve: Callable[..., FakeGateway], endpoint: str) -> None:
    gateway = serve()

    async def main() -> None:
        async with AsyncClient(endpoint) as client:
            output = await client.complete("hello")
            assert output.prompt == "hello"
            assert output.prompt_token_ids == [ord(c) for c in "hello"]
            assert output.finished
            assert output.outputs[0].text == "hello"
            assert output.outputs[0].token_ids == [ord(c) for c in "hello"]
            assert output.outputs[0].finish_reason == "stop"
            messages = [{"role": "user", "content": "?"}]
            assert (await client.complete_chat(messages)).outputs[0].text == "hi"
            assert "".join([delta.text async for delta in client.chat(messages)]) == "hi"
            assert gateway.saw(Generate, 3)[-1].messages == messages
            assert await client.stats() == {"requests": 3.0}
            assert (await client.trace()).tracks == {"scheduler": [("Plan", 1, 10, 20)]}

    run(main())


def test_streams_interleave(serve: Callable[..., FakeGateway], endpoint: str) -> None:
    """Two requests are answered in the same messages, one for each question; each stream gets its own."""
    waiting: list[str] = []
    steps = iter(range(50))

    def handler(gateway: FakeGateway, client: bytes, message: PublicIn) -> None:
        if isinstance(message, Generate):
            waiting.append(message.id)
            return
        step = next(steps)
        finish = "length" if step == 49 else None
        gateway.tokens(client, *[(id, f"{n}", [step]) for n, id in enumerate(waiting)], finish=finish)
        gateway.say(client, Stats(counters={}))

    gateway = serve(handler)

    async def main() -> None:
        order: list[int] = []

        async def consume(client: AsyncClient, number: int) -> list[Delta]:
            deltas = []
            async for delta in client.generate(f"prompt {number}"):
                order.append(number)
                deltas.append(delta)
            return deltas

        async with AsyncClient(endpoint) as client:
            both = asyncio.gather(consume(client, 0), consume(client, 1))
            await asyncio.to_thread(gateway.saw, Generate, 2)
            for _ in range(50):
                await client.stats()
            both = await both
        for deltas in both:
            assert [delta.token_ids for delta in deltas] == [[step] for step in range(50)]
        assert {"".join(delta.text for delta in deltas) for deltas in both} == {"0" * 50, "1" * 50}
        assert sorted(order[:20]) == [0] * 10 + [1] * 10

    run(main())


def fail_the_bad(gateway: FakeGateway, client: bytes, message: PublicIn) -> None:
    if isinstance(message, Generate) and message.prompt == "bad":
        gateway.say(client, Error(id=message.id, code="invalid_request", message="prompt is bad"))
    elif isinstance(message, Generate) and message.prompt == "busy":
        error = Error(id=message.id, code="overloaded", message="full", retry_after_s=0.25)
        gateway.say(client, error)
    else:
        echo(gateway, client, message)


def test_an_error_ends_only_its_stream(serve: Callable[..., FakeGateway], endpoint: str) -> None:
    serve(fail_the_bad)

    async def main() -> None:
        async with AsyncClient(endpoint) as client:
            asked = [client.complete(prompt) for prompt in ("good", "bad", "busy")]
            good, bad, busy = await asyncio.gather(*asked, return_exceptions=True)
        assert not isinstance(good, BaseException)
        assert good.outputs[0].text == "good"
        assert isinstance(bad, InvalidRequest)
        assert str(bad) == "prompt is bad"
        assert isinstance(busy, Overloaded)
        assert busy.retry_after_s == 0.25

    run(main())


def test_slow_consumer_loses_nothing(serve: Callable[..., FakeGateway], endpoint: str) -> None:
    serve()
    text = "abcdefghij" * 300

    async def main() -> None:
        async with AsyncClient(endpoint) as client:
            slow = client.generate(text)
            got = (await anext(slow)).text
            # Everything else arrives while nobody takes it; the other stream does not wait for that.
            assert (await client.complete("other")).outputs[0].text == "other"
            async for delta in slow:
                got += delta.text
            assert got == text

    run(main())


def test_async_early_exit_aborts(serve: Callable[..., FakeGateway], endpoint: str) -> None:
    gateway = serve(never_finish)

    async def main() -> None:
        async with AsyncClient(endpoint) as client:
            async for delta in client.generate("x"):
                assert delta.text == "a"
                break
            aborted = await asyncio.to_thread(gateway.saw, Abort)
            assert aborted[0].id == gateway.saw(Generate)[0].id
            task = asyncio.create_task(client.complete("y"))
            await asyncio.to_thread(gateway.saw, Generate, 2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(gateway.saw, Abort, 2)
            assert client._session.streams == {}

    run(main())


def test_abort_by_id(serve: Callable[..., FakeGateway], endpoint: str) -> None:
    serve(never_finish)

    async def main() -> list[str | None]:
        async with AsyncClient(endpoint) as client:
            reasons = []
            async for delta in client.generate("x", request_id="mine"):
                reasons.append(delta.finish_reason)
                client.abort("mine")
            return reasons

    assert run(main()) == [None, "abort"]


def test_blocking_client(serve: Callable[..., FakeGateway], endpoint: str) -> None:
    gateway = serve(fail_the_bad)
    with Client(endpoint) as client:
        assert client.welcome.limits == LIMITS
        output = client.generate("hello", SamplingParams(seed=7))
        assert (output.outputs[0].text, output.prompt_token_ids) == ("hello", [ord(c) for c in "hello"])
        assert gateway.saw(Generate)[0].params.seed == 7
        assert client.generate([104, 101]).outputs[0].text == "he"
        assert "".join(delta.text for delta in client.stream("stream")) == "stream"
        assert client.chat([{"role": "user", "content": "?"}]).outputs[0].text == "hi"
        assert client.stats() == {"requests": 3.0}
        assert client.trace().tracks["scheduler"] == [("Plan", 1, 10, 20)]
        with pytest.raises(InvalidRequest, match="prompt is bad"):
            client.generate("bad")
        with pytest.raises(Overloaded):
            client.generate("busy")
        one, two = client.stream("first"), client.stream("second")
        pairs = list(zip(one, two, strict=False))
        assert "".join(a.text for a, _ in pairs) == "first"
        assert "".join(b.text for _, b in pairs) == "secon"
    client.close()
    with pytest.raises(ServiceUnavailable, match="closed"):
        client.generate("x")


def test_blocking_early_exit_aborts(serve: Callable[..., FakeGateway], endpoint: str) -> None:
    gateway = serve(never_finish)
    with Client(endpoint) as client:
        for delta in client.stream("x"):
            assert delta.text == "a"
            break
        gateway.saw(Abort)


def test_generate_many(serve: Callable[..., FakeGateway], endpoint: str) -> None:
    """More prompts than the service holds; one of them is refused for lack of room at first."""
    open_now: set[str] = set()
    most = 0
    refused: list[str] = []

    def handler(gateway: FakeGateway, client: bytes, message: PublicIn) -> None:
        nonlocal most
        assert isinstance(message, Generate)
        if message.prompt == "prompt 3" and not refused:
            refused.append(message.id)
            gateway.say(client, Error(id=message.id, code="overloaded", message="full", retry_after_s=0.05))
            return
        open_now.add(message.id)
        most = max(most, len(open_now))
        open_now.discard(message.id)
        echo(gateway, client, message)

    gateway = serve(handler)
    prompts = [f"prompt {n}" for n in range(30)]
    seen: dict[int, str] = {}
    with Client(endpoint) as client:
        outputs = client.generate_many(
            prompts,
            [SamplingParams(seed=n) for n in range(30)],
            on_delta=lambda n, delta: seen.update({n: seen.get(n, "") + delta.text}),
        )
        assert [output.outputs[0].text for output in outputs] == prompts
        assert [output.prompt for output in outputs] == prompts
        assert [seen[n] for n in range(30)] == prompts
        assert refused
        seeds = {message.prompt: message.params.seed for message in gateway.saw(Generate)}
        assert seeds == {prompt: n for n, prompt in enumerate(prompts)}
        assert client.generate_many([]) == []
        with pytest.raises(InvalidRequest, match="2 SamplingParams for 3 prompts"):
            client.generate_many(["a", "b", "c"], [SamplingParams()] * 2)


def test_generate_many_names_the_prompt_that_failed(serve: Callable[..., FakeGateway], endpoint: str) -> None:
    serve(fail_the_bad)
    with Client(endpoint) as client:
        with pytest.raises(InvalidRequest, match="prompt is bad") as raised:
            client.generate_many(["a", "bad", "c"])
        assert raised.value.__notes__ == ["this was prompt 1 of 3, counted from 0"]
        assert client.generate("still here").outputs[0].text == "still here"


def test_nobody_answers(endpoint: str) -> None:
    begun = time.monotonic()
    with pytest.raises(ServiceUnavailable, match=f"no service answered at {endpoint} within 0.2 s"):
        Client(endpoint, timeout_s=0.2)

    async def main() -> None:
        async with AsyncClient(endpoint, timeout_s=0.2):
            pass

    with pytest.raises(ServiceUnavailable, match=endpoint):
        run(main())
    assert time.monotonic() - begun < 3


def test_service_that_starts_late(serve: Callable[..., FakeGateway], endpoint: str) -> None:
    timer = threading.Timer(0.2, serve)
    timer.start()
    with Client(endpoint, timeout_s=5) as client:
        assert client.generate("late").outputs[0].text == "late"
    timer.join()


@pytest.mark.parametrize(
    "wrong", ["nonsense", "http://x", "ipc://" + "a" * 108, "tcp://127.0.0.1", "tcp://h:99999"]
)
def test_wrong_endpoint(wrong: str) -> None:
    with pytest.raises(InvalidRequest):
        Client(wrong)
    with pytest.raises(InvalidRequest):
        AsyncClient(wrong)


def test_refused_handshake(serve: Callable[..., FakeGateway], endpoint: str) -> None:
    def refuse(gateway: FakeGateway, client: bytes, message: PublicIn) -> None:
        gateway.say(client, Error(code="protocol", message="protocol [1, 0] is not spoken here"))

    serve(refuse, greet=False)
    with pytest.raises(ProtocolError, match="not spoken here"):
        Client(endpoint)

    async def main() -> None:
        async with AsyncClient(endpoint):
            pass

    with pytest.raises(ProtocolError, match="not spoken here"):
        run(main())


GARBAGE = [b"", b"\xc1", b"\x81\xa1t\xa4what", b"\xdd\xff\xff\xff\xff", b"\x93" * 4000]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_from_the_server(serve: Callable[..., FakeGateway], endpoint: str, garbage: bytes) -> None:
    def handler(gateway: FakeGateway, client: bytes, message: PublicIn) -> None:
        if isinstance(message, Generate) and message.prompt == "x":
            gateway.router.send_multipart((client, garbage))
        else:
            echo(gateway, client, message)

    serve(handler)
    with Client(endpoint) as client:
        with pytest.raises(ProtocolError, match="no message"):
            client.generate("x")
        assert client.generate("on").outputs[0].text == "on"

    async def main() -> None:
        async with AsyncClient(endpoint) as client:
            with pytest.raises(ProtocolError, match="no message"):
                await client.complete("x")
            assert (await client.complete("on")).outputs[0].text == "on"

    run(main())


@pytest.mark.parametrize("break_at", ["key", "get_monitor_socket"])
def test_a_connection_that_cannot_be_made_is_an_error_and_no_wait(
    endpoint: str, break_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a socket that is left open the end of the context would wait for ever."""
    if break_at == "get_monitor_socket":

        def refuse(self: object, events: object = None) -> None:
            raise zmq.ZMQError(errno.EMFILE)

        monkeypatch.setattr(zmq.Socket, break_at, refuse)
    key = ClientKey("x", "y", "z") if break_at == "key" else None
    told: list[Exception] = []

    def connect() -> None:
        try:
            Client(endpoint, curve=key)
        except Exception as error:
            told.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert [type(error) for error in told] == [InvalidRequest]
    assert "cannot connect to" in str(told[0])


@pytest.mark.parametrize(
    ("params", "field"),
    [
        (SamplingParams(seed=cast(Any, complex(1))), "seed"),
        (SamplingParams(json_schema=cast(Any, SamplingParams)), "json_schema"),
        (SamplingParams(logit_bias={"5": cast(Any, object())}), "logit_bias"),
    ],
)
def test_a_parameter_that_cannot_be_sent_is_named(
    serve: Callable[..., FakeGateway], endpoint: str, params: SamplingParams, field: str
) -> None:
    serve()
    with (
        Client(endpoint) as client,
        pytest.raises(InvalidRequest, match=f"^{field} cannot be sent") as refused,
    ):
        client.generate("x", params)
    assert refused.value.param == field
    assert "prompt" not in str(refused.value)


def test_what_cannot_be_sent(serve: Callable[..., FakeGateway], endpoint: str) -> None:
    serve()
    loop: list[Any] = []
    loop.append(loop)
    hostile: Any
    with Client(endpoint) as client:
        for hostile in ([object()], loop, [2**70]):
            with pytest.raises(InvalidRequest, match="cannot be sent"):
                client.generate(hostile)
        for hostile in (None, object(), {1, 2}, 5.0):
            with pytest.raises(InvalidRequest, match=f"prompt is of type {type(hostile).__name__}"):
                client.generate(hostile)
        hostile = "hello"
        with pytest.raises(InvalidRequest, match="messages is of type str"):
            client.chat(hostile)
        with pytest.raises(InvalidRequest, match="a message has at most"):
            client.generate("x" * (17 * 1024 * 1024))
        stream = client.stream("on")
        for hostile in ([{5: "x"}], [{"role": "user", "content": [[]] * 200_001}]):
            with pytest.raises(InvalidRequest, match="cannot be sent"):
                client.chat(hostile)
        assert "".join(delta.text for delta in stream) == "on", "each fails alone"
        hostile = {"max_tokens": 3}
        with pytest.raises(InvalidRequest, match="params is of type dict"):
            client.generate("x", hostile)
        with pytest.raises(InvalidRequest, match="request_id"):
            list(client.stream("x", request_id="y" * 200))
        assert client.generate("fine").outputs[0].text == "fine"


def test_resend_after_the_gateway_was_replaced(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second gateway knows nobody; each open stream goes on behind what it has received."""
    monkeypatch.setattr(session_module, "PING_AFTER_S", 60.0)  # silence is not what tells
    begun = threading.Semaphore(0)

    def first_half(gateway: FakeGateway, client: bytes, message: PublicIn) -> None:
        if isinstance(message, Generate):
            for character in "abc":
                gateway.tokens(client, (message.id, character, [ord(character)]))
            begun.release()

    async def main() -> None:
        gateway = FakeGateway(endpoint, first_half)
        async with AsyncClient(endpoint) as client:
            tasks = [asyncio.create_task(client.complete("abcdef")) for _ in range(3)]
            for _ in tasks:
                await asyncio.to_thread(begun.acquire)
            stats = None
            await asyncio.to_thread(gateway.stop)
            gateway = FakeGateway(endpoint, echo)
            stats = asyncio.create_task(client.stats())
            outputs = await asyncio.gather(*tasks)
            assert [output.outputs[0].text for output in outputs] == ["abcdef"] * 3
            assert [output.outputs[0].token_ids for output in outputs] == [[ord(c) for c in "abcdef"]] * 3
            assert await stats == {"requests": 3.0}
            again = [m for m in gateway.seen if isinstance(m, Generate)]
            assert [m.received for m in again] == [[97, 98, 99]] * 3
            assert {m.id for m in again} == {output.request_id for output in outputs}
        await asyncio.to_thread(gateway.stop)

    run(main())


def test_blocking_resend(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "PING_AFTER_S", 60.0)  # silence is not what tells
    gateway = FakeGateway(endpoint, never_finish)
    with Client(endpoint) as client:
        stream = client.stream("ab")
        text = next(stream).text
        gateway.stop()
        gateway = FakeGateway(endpoint, echo)
        text += "".join(delta.text for delta in stream)
        assert text == "ab"
    gateway.stop()


def test_gateway_that_never_comes_back(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "PING_AFTER_S", 0.05)
    monkeypatch.setattr(session_module, "LOST_AFTER_S", 0.1)
    gateway = FakeGateway(endpoint, never_finish)
    with Client(endpoint, timeout_s=0.3) as client:
        stream = client.stream("x")
        next(stream)
        gateway.stop()
        with pytest.raises(ServiceUnavailable, match=r"within 0\.3 s"):
            next(stream)
        gateway = FakeGateway(endpoint, echo)
        assert client.generate("back").outputs[0].text == "back"
    gateway.stop()


def test_a_client_that_nobody_closes(serve: Callable[..., FakeGateway], endpoint: str) -> None:
    serve()
    assert Client(endpoint).generate("x").finished

    async def main() -> None:
        assert (await AsyncClient(endpoint).complete("x")).finished

    run(main())
    gc.collect()
