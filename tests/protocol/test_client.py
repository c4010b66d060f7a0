"""The clients and their sans-IO core, against a gateway that does what each test says."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from slipstream.protocol.client import session as session_module
from slipstream.protocol.client.session import (
    HELLO_TIMEOUT_S,
    LOST_AFTER_S,
    MAX_BARREN,
    PING_AFTER_S,
    RECONNECT_DELAY_S,
    Session,
    Stream,
)
from slipstream.protocol.codec import decode_from_client, encode
from slipstream.protocol.limits import PROTOCOL, Limits
from slipstream.protocol.messages import (
    Abort,
    Deltas,
    Error,
    Generate,
    GetStats,
    GetTrace,
    Hello,
    Ping,
    Pong,
    PublicIn,
    Stats,
    Trace,
    Usage,
    Welcome,
)
from slipstream.protocol.trace import SPAN, Recorded

from slipstream import (
    AsyncClient,
    Client,
    Delta,
    InvalidRequest,
    Overloaded,
    ProtocolError,
    SamplingParams,
    ServiceUnavailable,
    SlipstreamError,
)

LIMITS = Limits(max_model_len=100, vocab_size=256, max_prompt_bytes=1000, max_queued_requests=8)
WELCOME = Welcome(protocol=list(PROTOCOL), server="fake", model="fake", limits=LIMITS)

Handler = Callable[["FakeGateway", bytes, PublicIn], None]


class FakeGateway:
    """A ROUTER in a thread. It greets and answers pings; the rest is up to ``handler``."""

    def __init__(self, endpoint: str, handler: Handler, *, greet: bool = True) -> None:
        self.endpoint = endpoint
        self.handler = handler
        self.greet = greet
        self.seen: list[PublicIn] = []
        self.known: set[bytes] = set()
        self.context = zmq.Context()
        self.router = self.context.socket(zmq.ROUTER)
        self.router.linger = 0
        self.router.sndhwm = 0  # a ROUTER drops what is over its limit
        self.router.bind(endpoint)
        self.halt = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while not self.halt.is_set():
            if not self.router.poll(10):
                continue
            client, frame = self.router.recv_multipart()
            message = decode_from_client(frame)
            self.seen.append(message)
            if isinstance(message, Hello) and self.greet:
                self.known.add(client)
                self.say(client, WELCOME)
            elif client not in self.known and self.greet:
                self.say(client, Error(code="protocol", message="say hello first"))
            elif isinstance(message, Ping):
                self.say(client, Pong(nonce=message.nonce))
            else:
                self.handler(self, client, message)

    def say(self, client: bytes, message: Any) -> None:
        self.router.send_multipart((client, encode(message)))

    def tokens(self, client: bytes, *items: tuple[str, str, list[int]], finish: str | None = None) -> None:
        """One delta for each (id, text, token ids)."""
        usage = Usage(prompt_tokens=1, completion_tokens=2) if finish else None
        deltas = [
            Delta(id=id, text=text, token_ids=ids, finish_reason=finish, usage=usage)
            for id, text, ids in items
        ]
        self.say(client, Deltas(items=deltas))

    def stop(self) -> None:
        self.halt.set()
        self.thread.join(5)
        self.context.destroy(linger=0)

    def saw(self, kind: type, count: int = 1) -> list[Any]:
        """Wait until ``count`` messages of a kind have come."""
        end = time.monotonic() + 5
        while time.monotonic() < end:
            found = [message for message in list(self.seen) if isinstance(message, kind)]
            if len(found) >= count:
                return found
            self.halt.wait(0.005)
        raise AssertionError(f"no {count} x {kind.__name__} in {self.seen}")


def echo(gateway: FakeGateway, client: bytes, message: PublicIn) -> None:
    """Answer a text prompt with its characters, one per delta, after what was received."""
    if isinstance(message, Generate):
        prompt = message.prompt
        text = prompt if isinstance(prompt, str) else "".join(map(chr, prompt or [104, 105]))
        rest = text[len(message.received) :]
        if message.return_prompt_ids:
            ids = [ord(character) for character in text]
            gateway.say(client, Deltas(items=[Delta(id=message.id, prompt_token_ids=ids)]))
        for character in rest[:-1]:
            gateway.tokens(client, (message.id, character, [ord(character)]))
        gateway.tokens(client, (message.id, rest[-1:], [ord(c) for c in rest[-1:]]), finish="stop")
    elif isinstance(message, GetStats):
        gateway.say(client, Stats(counters={"requests": 3.0}))
    elif isinstance(message, GetTrace):
        recorded = Recorded(pid=7, names=["Plan"], spans={"scheduler": SPAN.pack(20, 10, 1, 0)})
        gateway.say(client, Trace(actors={"scheduler": recorded}, since_ns=0, until_ns=20))


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/door"


@pytest.fixture
def serve(endpoint: str) -> Iterator[Callable[..., FakeGateway]]:
    started: list[FakeGateway] = []

    def start(handler: Handler = echo, **options: Any) -> FakeGateway:
        started.append(FakeGateway(endpoint, handler, **options))
        return started[-1]

    yield start
    for gateway in started:
        gateway.stop()


def run(main: Any) -> Any:
    return asyncio.run(asyncio.wait_for(main, 20))


# --- the faces ----------------------------------------------------------------------------------


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


def never_finish(gateway: FakeGateway, client: bytes, message: PublicIn) -> None:
    if isinstance(message, Generate):
        gateway.tokens(client, (message.id, "a", [1]))
    elif isinstance(message, Abort):
        gateway.tokens(client, (message.id, "", []), finish="abort")


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


def test_two_threads_at_once_are_refused(serve: Callable[..., FakeGateway], endpoint: str) -> None:
    gateway = serve(never_finish)
    with Client(endpoint) as client:
        stream = client.stream("x")
        next(stream)
        waiting = threading.Thread(target=lambda: list(stream))
        waiting.start()
        while not client._busy.locked():
            gateway.halt.wait(0.001)
        with pytest.raises(RuntimeError, match="one thread at a time"):
            client.stats()
        gateway.tokens(next(iter(gateway.known)), (gateway.saw(Generate)[0].id, "b", [2]), finish="stop")
        waiting.join(5)
        assert not waiting.is_alive()


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


# --- the core -----------------------------------------------------------------------------------


def ready(now: float = 0.0) -> Session:
    session = Session("ipc:///x", timeout_s=10)
    session.inquire(now, Welcome)
    session.receive(encode(WELCOME), now)
    session.outbox.clear()
    return session


def sent(session: Session) -> list[PublicIn]:
    frames, session.outbox = list(session.outbox), type(session.outbox)()
    return [decode_from_client(frame) for frame in frames]


def test_hello_comes_first_and_requests_wait_for_welcome() -> None:
    session = Session("ipc:///x")
    session.ask(0.0, prompt="x", request_id="a")
    assert [type(message) for message in sent(session)] == [Hello]
    session.receive(encode(WELCOME), 0.1)
    assert [getattr(message, "id", None) for message in sent(session)] == ["a"]


def test_questions_of_one_kind_are_put_one_after_the_other() -> None:
    session = ready()
    one, two, three = (session.inquire(0.0, Trace, seconds=float(number)) for number in (1, 2, 3))
    other = session.inquire(0.0, Stats)
    assert sent(session) == [GetTrace(seconds=1.0), GetStats()]
    trace = encode(Trace(actors={}, since_ns=0, until_ns=0))
    assert session.receive(trace, 0.1) == [one]
    assert sent(session) == [GetTrace(seconds=2.0)]
    session.receive(encode(Error(code="protocol", message="say hello first")), 0.2)
    sent(session)
    session.receive(encode(WELCOME), 0.3)
    assert sent(session) == [GetTrace(seconds=2.0), GetStats()]
    assert session.receive(encode(Stats(counters={})), 0.4) == [other]
    assert sent(session) == []
    assert session.receive(trace, 0.5) == [two]
    assert sent(session) == [GetTrace(seconds=3.0)]
    assert session.receive(trace, 0.6) == [three]
    assert sent(session) == []


def test_silence_is_answered_with_a_ping_and_then_a_new_connection() -> None:
    session = ready(0.0)
    assert session.deadline is None
    stream = session.ask(100.0, prompt="x")
    sent(session)
    assert session.deadline == 100.0 + PING_AFTER_S
    session.receive(encode(Deltas(items=[Delta(id=stream.request.id, token_ids=[5])])), 101.5)
    assert session.tick(102.0) == []
    assert sent(session) == []
    session.tick(102.5)
    assert sent(session) == [Ping()]
    session.receive(encode(Pong()), 102.6)
    assert session.deadline == 102.6 + PING_AFTER_S
    session.tick(103.6)
    assert sent(session) == [Ping()]
    before = session.connection
    session.tick(103.6 + LOST_AFTER_S)
    assert session.connection == before + 1
    assert [type(message) for message in sent(session)] == [Hello]
    session.tick(103.6 + LOST_AFTER_S + HELLO_TIMEOUT_S)
    assert session.connection == before + 2
    assert [type(message) for message in sent(session)] == [Hello]
    session.receive(encode(WELCOME), 113.0)
    (again,) = sent(session)
    assert isinstance(again, Generate)
    assert (again.id, again.received) == (stream.request.id, [5])


def test_a_broken_connection_is_not_waited_for() -> None:
    session = ready()
    assert not session.interrupted(1.0)
    assert session.state == "lost"  # nothing is open: the next request connects
    session = ready()
    stream = session.ask(1.0, prompt="x")
    session.receive(encode(Deltas(items=[Delta(id=stream.request.id, token_ids=[7])])), 1.0)
    session.outbox.clear()
    assert not session.interrupted(1.5)
    assert session.state == "greeting"
    assert isinstance(sent(session)[0], Hello)
    connection = session.connection
    session.interrupted(1.6)  # before the Welcome: it is tried again, but not at once
    assert session.deadline == 1.6 + RECONNECT_DELAY_S
    session.tick(1.6 + RECONNECT_DELAY_S)
    assert session.connection == connection + 1


def test_a_gateway_that_forgets_us_at_once_is_given_up() -> None:
    session = ready()
    stream = session.ask(0.0, prompt="x")
    for _ in range(MAX_BARREN):
        assert session.receive(encode(Error(code="protocol", message="say hello first")), 1.0) == []
        session.receive(encode(WELCOME), 1.0)
        assert stream.error is None
    assert session.receive(encode(Error(code="protocol", message="say hello first")), 1.0) == [stream]
    assert isinstance(stream.error, ServiceUnavailable)


def test_a_restart_after_progress_never_counts_against_the_gateway() -> None:
    session = ready()
    stream = session.ask(0.0, prompt="x")
    for _ in range(5 * MAX_BARREN):
        session.receive(encode(Deltas(items=[Delta(id=stream.request.id, token_ids=[1])])), 1.0)
        session.receive(encode(Error(code="protocol", message="say hello first")), 1.0)
        session.receive(encode(WELCOME), 1.0)
    assert stream.error is None
    assert stream.received == {0: [1] * 5 * MAX_BARREN}


def test_a_request_aborted_before_the_connection_was_lost_is_not_sent_again() -> None:
    session = ready()
    stream = session.ask(0.0, prompt="x")
    session.abort(stream.request.id)
    session.abort(stream.request.id)
    assert [type(message) for message in sent(session)] == [Generate, Abort]
    session.receive(encode(Error(code="protocol", message="say hello first")), 1.0)
    assert session.receive(encode(WELCOME), 1.0) == [stream]
    assert [type(message) for message in sent(session)] == [Hello]
    assert stream.deltas[0].finish_reason == "abort"


def test_a_complaint_about_the_connection_ends_everything() -> None:
    session = ready()
    streams = [session.ask(0.0, prompt="x") for _ in range(3)]
    assert session.receive(encode(Error(code="unavailable", message="stopping")), 1.0) == streams
    assert all(isinstance(stream.error, ServiceUnavailable) for stream in streams)
    assert len({id(stream.error) for stream in streams}) == 3
    assert session.state == "lost"


def test_other_major_version_is_refused() -> None:
    session = Session("ipc:///x")
    question = session.inquire(0.0, Welcome)
    other = Welcome(protocol=[2, 0], server="s", model="m", limits=LIMITS)
    assert session.receive(encode(other), 0.1) == [question]
    assert isinstance(question.error, ProtocolError)


def test_strangers_and_late_messages_are_ignored() -> None:
    session = ready()
    stream = session.ask(0.0, prompt="x")
    session.leave(stream)
    for late in (
        Deltas(items=[Delta(id=stream.request.id, text="late", finish_reason="stop")]),
        Error(id="unknown", code="invalid_request", message="?"),
        Pong(nonce=9),
        Stats(counters={}),
        WELCOME,
    ):
        assert session.receive(encode(late), 1.0) == []
    assert session.state == "ready"


def test_request_ids() -> None:
    session = ready()
    assert isinstance(session.ask(0.0, prompt="x", request_id="a"), Stream)
    with pytest.raises(InvalidRequest, match="in use"):
        session.ask(0.0, prompt="x", request_id="a")
    with pytest.raises(SlipstreamError, match="1 to 128"):
        session.ask(0.0, prompt="x", request_id="")
    assert session.ask(0.0, prompt="x").request.id != session.ask(0.0, prompt="x").request.id
