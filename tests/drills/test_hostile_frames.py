"""Hostile bytes at every socket of a service that runs: garbage instead of ZMTP, wrong frames, forged lives.

Who can reach the sockets inside is the same user; what is shown is that nothing there crashes, fills the
memory or gets in the way of the streams of others.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgpack
import psutil
import pytest
import zmq
from hostile import mutated
from slipstream.protocol.codec import decode_to_client, encode, encode_from_client
from slipstream.protocol.internal import Envelope
from slipstream.protocol.limits import MAX_FRAME_BYTES, PROTOCOL
from slipstream.protocol.messages import Error, Hello, PublicOut
from slipstream.runtime.process.mailboxes import MAILBOX_MESSAGES

from slipstream import Sidecar
from slipstream.drill.answers import known_answer, make_cases
from slipstream.reference import internal_examples, public_examples

FRAMES, ALL_FRAMES = 80_000, 10_000_000

GROWTH = 16e6
"""Bytes by which no process may have grown."""

SENT_AHEAD = 200
"""Frames that wait at an attacker's side."""

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)

PUBLIC = [encode_from_client(message) for _, message in public_examples.FROM_CLIENT]
INTERNAL = [message for _, message in internal_examples.INTERNAL]
ACTORS = ["gateway", "tokenizer", "scheduler", "executor", "detokenizer"]


@pytest.fixture(scope="module")
def service() -> Iterator[Sidecar]:
    with Sidecar(device="emulated", emulated_step_ms=5.0) as sidecar:
        yield sidecar


@pytest.fixture
def paths(service: Sidecar) -> dict[str, str]:
    """Every socket of the service: the public one, the mailbox of each actor, the supervisor's status socket."""
    directory = Path(service.ready["control"].removeprefix("ipc://")).parent
    found = {path.name.partition(".")[0]: str(path) for path in directory.glob("*.*")}
    found |= {"public": str(directory / "gateway"), "status": str(directory / "control")}
    assert {"public", "status", *ACTORS} <= found.keys()
    return found


class GoodTraffic:
    """A client that asks again and again for an answer that is known."""

    def __init__(self, service: Sidecar) -> None:
        self.case = make_cases(1, "emulated")[0]
        self.answers = 0
        self.longest_s = 0.0
        self.stopping = threading.Event()
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self.run, args=(service,))

    def __enter__(self) -> GoodTraffic:
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stopping.set()
        self.thread.join(60.0)
        if self.error is not None:
            raise self.error
        print(f"{self.answers} answers meanwhile, the longest pause {self.longest_s * 1000:.0f} ms")
        assert self.answers > 0
        assert self.longest_s < 10.0

    def run(self, service: Sidecar) -> None:
        try:
            with service.client() as client:
                expected = known_answer(self.case, client.welcome.limits.vocab_size)
                while not self.stopping.is_set():
                    got: list[int] = []
                    heard = time.monotonic()
                    for delta in client.stream(self.case.prompt, self.case.params):
                        got += delta.token_ids
                        now = time.monotonic()
                        self.longest_s, heard = max(self.longest_s, now - heard), now
                    assert got == expected
                    self.answers += 1
        except BaseException as error:
            self.error = error


def memory(service: Sidecar) -> dict[str, int]:
    pids = {"supervisor": service.pid, **service.pids}
    return {name: psutil.Process(pid).memory_info().rss for name, pid in pids.items()}


@contextlib.contextmanager
def unharmed(service: Sidecar) -> Iterator[None]:
    """No process has died or grown, and the log stays short."""
    before, pids, lines = memory(service), service.pids, len(service.log)
    with GoodTraffic(service):
        yield
    grown = {name: size - before[name] for name, size in memory(service).items()}
    print("grown by", {name: f"{size / 1e6:.1f} MB" for name, size in grown.items()})
    assert service.pids == pids, service.log
    assert all(actor["restarts"] == 0 for actor in service.actors.values())
    assert "Traceback" not in service.log
    assert len(service.log) - lines < 20_000
    assert max(grown.values()) < GROWTH, grown


# --- below ZeroMQ -------------------------------------------------------------------------------------


def hostile_bytes(rng: random.Random, kind: bytes) -> bytes:
    """What a connection says that is no ZMTP peer, or a bad one."""
    ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind
    command = bytes([4, len(ready)]) + ready
    shape = rng.randrange(7)
    if shape == 0:
        return rng.randbytes(rng.randrange(200))
    if shape == 1:
        return GREETING[: rng.randrange(len(GREETING))]
    if shape == 2:
        return GREETING + mutated(rng, command)
    if shape == 3:  # a frame that claims to be huge
        return (
            GREETING
            + command
            + b"\x02"
            + struct.pack(">Q", rng.choice([2**62, 2**33, 2**63, MAX_FRAME_BYTES]))
        )
    if shape == 4:
        return GREETING + command + rng.randbytes(rng.randrange(300))
    if shape == 5:  # a message of many frames
        return GREETING + command + b"\x01\x01x" * rng.randrange(1, 200) + b"\x00\x01x"
    return b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def test_garbage_instead_of_zmtp_at_every_socket_does_no_harm(
    service: Sidecar, paths: dict[str, str], soak: bool
) -> None:
    rng = random.Random(1)
    kinds = dict.fromkeys(paths, b"PUSH") | {"public": b"DEALER", "status": b"REQ"}
    with unharmed(service):
        for _ in range(50_000 if soak else 1000):
            for name, path in paths.items():
                with (
                    socket.socket(socket.AF_UNIX) as raw,
                    contextlib.suppress(BrokenPipeError, ConnectionResetError),
                ):
                    raw.connect(path)
                    raw.sendall(hostile_bytes(rng, kinds[name]))


# --- frames -------------------------------------------------------------------------------------------


class Attack:
    """A socket that sends and takes what comes back, if anything does."""

    def __init__(self, kind: int, path: str) -> None:
        self.socket = zmq.Context.instance().socket(kind)
        self.socket.set(zmq.LINGER, 0)
        self.socket.set(zmq.SNDHWM, SENT_AHEAD)
        self.socket.connect(f"ipc://{path}")
        self.heard: list[bytes] = []

    def __enter__(self) -> Attack:
        return self

    def __exit__(self, *exception: object) -> None:
        self.socket.close()

    def send(self, *frames: bytes) -> None:
        while True:
            self.listen()
            try:
                self.socket.send_multipart(frames, zmq.DONTWAIT)
                return
            except zmq.Again:
                self.socket.poll(100, zmq.POLLOUT | zmq.POLLIN)

    def listen(self, seconds: float = 0.0) -> None:
        if self.socket.type == zmq.PUSH:
            return
        while self.socket.poll(int(seconds * 1000)):
            self.heard.append(self.socket.recv_multipart()[-1])
            del self.heard[:-1000]


def test_malformed_frames_at_the_public_socket_are_answered_and_hurt_nobody(
    service: Sidecar, paths: dict[str, str], soak: bool
) -> None:
    count = (ALL_FRAMES if soak else FRAMES) // 4
    answers: list[PublicOut] = []

    def attack_with(rng: random.Random, count: int) -> None:
        with Attack(zmq.DEALER, paths["public"]) as attack:
            attack.send(encode(Hello(protocol=list(PROTOCOL))))
            for number in range(count):
                frame = rng.choice(PUBLIC)
                if b"generate" in frame:
                    frame = frame.replace(b"generate", b"genera\xc1e")  # good ones are answered at length
                frame = mutated(rng, frame)
                if number % 100 == 0:
                    attack.send(*[frame] * rng.randrange(2, 20))
                elif number % 100 == 1:
                    attack.send(b"", frame)
                else:
                    attack.send(frame)
            attack.listen(2.0)
            answers.extend(decode_to_client(frame) for frame in attack.heard)

    attack_with(random.Random(0), count // 10)  # buffers fill, and stay
    with unharmed(service):
        attack_with(random.Random(2), count)
    assert any(isinstance(answer, Error) for answer in answers)


def test_a_frame_over_the_limit_ends_only_its_own_connection(service: Sidecar, paths: dict[str, str]) -> None:
    with unharmed(service), Attack(zmq.DEALER, paths["public"]) as attack:
        attack.send(encode(Hello(protocol=list(PROTOCOL))))
        attack.listen(5.0)
        assert attack.heard
        monitor = attack.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        attack.send(b"x" * (MAX_FRAME_BYTES + 1))
        assert monitor.poll(20_000), "the connection is still there"
        attack.socket.disable_monitor()
        monitor.close()


def forged(rng: random.Random, receiver: str) -> bytes:
    """An envelope that some actor could have sent, in some life, to some life of the receiver."""
    sender = rng.choice([*ACTORS, "supervisor", "mallory", receiver])
    epochs = [0, 1, 2, 3, 4, 5, 6, 7, 2**31, 2**40, -1]
    frame = encode(
        Envelope(
            sender, rng.choice(epochs), rng.choice(epochs), rng.choice([0, 1, 5, 10**6]), rng.choice(INTERNAL)
        )
    )
    return mutated(rng, frame) if rng.random() < 0.5 else frame


@pytest.mark.parametrize("actor", ACTORS)
def test_malformed_frames_and_forged_lives_in_a_mailbox_are_dropped(
    service: Sidecar, paths: dict[str, str], actor: str, soak: bool
) -> None:
    rng = random.Random(actor)
    count = (ALL_FRAMES if soak else FRAMES) // 10
    with unharmed(service), Attack(zmq.PUSH, paths[actor]) as attack:
        for number in range(count):
            frame = forged(rng, actor)
            attack.send(*[frame] * (1 if number % 100 else rng.randrange(1, 20)))
        until_taken(attack)


def until_taken(attack: Attack) -> None:
    """Wait until the receiver has taken what was sent: there is room for as many more only when it has."""
    for _ in range(MAILBOX_MESSAGES + SENT_AHEAD):
        attack.send(b"")


def test_whatever_is_said_at_the_supervisors_desk_the_next_question_is_answered(
    service: Sidecar, paths: dict[str, str], soak: bool
) -> None:
    rng = random.Random(3)
    count = (ALL_FRAMES if soak else FRAMES) // 40
    with unharmed(service):
        for _ in range(count // 500):
            with Attack(zmq.DEALER, paths["status"]) as attack:
                for _ in range(400):
                    attack.send(*[rng.randbytes(rng.randrange(100)) for _ in range(rng.choice([1, 2, 5]))])
            with Attack(zmq.REQ, paths["status"]) as attack:
                for _ in range(100):
                    attack.socket.send_multipart([rng.randbytes(9) for _ in range(rng.choice([1, 2, 5]))])
                    assert attack.socket.poll(20_000)
                    said = msgpack.unpackb(attack.socket.recv_multipart()[-1])
                    assert "send nothing, or a map" in said["error"]
            with Attack(zmq.REQ, paths["status"]) as asking:
                asking.send(b"")
                assert asking.socket.poll(20_000)
                assert "actors" in msgpack.unpackb(asking.socket.recv_multipart()[-1])
