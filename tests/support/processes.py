"""What tests of real processes share: waiting, streams in the background, services with planted actors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgpack
import psutil
import zmq
from slipstream.protocol.limits import PROTOCOL

from slipstream import Client, Delta, SamplingParams, Sidecar

NEAR = 30.0
"""Seconds within which anything happens on a busy machine."""


def until(condition: Callable[[], object], what: str, seconds: float = NEAR) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def alive(pids: list[int]) -> list[int]:
    """Those that run; a process that ended and waits for its parent does not."""

    def runs(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return [pid for pid in pids if runs(pid)]


class Raw:
    """A client that knows only MessagePack and ZeroMQ."""

    def __init__(self, endpoint: str, *, greet: bool = True) -> None:
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.set(zmq.LINGER, 0)
        self.socket.connect(endpoint)
        if greet:
            self.say({"t": "hello", "protocol": list(PROTOCOL)})
            assert self.hear()["t"] == "welcome"

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *exception: object) -> None:
        self.socket.close()

    def say(self, message: dict[str, Any] | bytes) -> None:
        packed = message if isinstance(message, bytes) else msgpack.packb(message)
        assert packed is not None
        self.socket.send(packed)

    def hear(self, seconds: float = NEAR) -> dict[str, Any]:
        assert self.socket.poll(seconds * 1000), f"nothing was heard for {seconds} s"
        return msgpack.unpackb(self.socket.recv())

    def generate(self, id: str, prompt: Any = "Once upon a time", **params: Any) -> None:
        self.say({"t": "generate", "id": id, "prompt": prompt, "params": params})

    def error_of(self, id: str | None) -> dict[str, Any]:
        """The next error, past whatever else is told."""
        while True:
            message = self.hear()
            if message["t"] == "error":
                assert message.get("id") == id
                return message


class Background:
    """A stream that another thread reads."""

    def __init__(self, sidecar: Sidecar, prompt: str | list[int], params: SamplingParams) -> None:
        self.deltas: list[Delta] = []
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self.read, args=(sidecar, prompt, params))
        self.thread.start()

    def read(self, sidecar: Sidecar, prompt: str | list[int], params: SamplingParams) -> None:
        try:
            with sidecar.client() as client:
                for delta in client.stream(prompt, params):
                    self.deltas.append(delta)
        except BaseException as error:
            self.error = error

    @property
    def tokens(self) -> list[int]:
        return [token for delta in self.deltas for token in delta.token_ids]

    def begun(self) -> Background:
        until(lambda: self.deltas or self.error, "the first delta")
        return self

    def end(self) -> str | None:
        """How the stream ended."""
        self.thread.join(NEAR)
        assert not self.thread.is_alive()
        if self.error is not None:
            raise self.error
        return self.deltas[-1].finish_reason


def serve(*arguments: str) -> tuple[int, list[str], float]:
    """The exit code of a service that cannot start, what it printed, and the seconds that it took."""
    begun = time.monotonic()
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "slipstream", "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        cwd="/",
    )
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines(), time.monotonic() - begun


HERE = Path(__file__).parent


class Planted:
    """A service in which factories of this folder take the place of some actors'."""

    def __init__(
        self, factories: dict[str, str], *arguments: str, path: Sequence[Path] = (), **environment: str
    ) -> None:
        places = [*map(str, path), str(HERE), os.environ.get("PYTHONPATH", "")]
        read_end, write_end = os.pipe()
        self.process = subprocess.Popen(
            [
                *(sys.executable, str(HERE / "planted.py"), json.dumps(factories)),
                *("--device=emulated", *arguments, f"--ready-fd={write_end}"),
            ],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))} | environment,
            pass_fds=(write_end,),
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
        )
        os.close(write_end)
        with open(read_end, "rb") as told:
            line = told.readline()
        assert line, self.process.communicate()[1]
        self.ready: dict[str, Any] = json.loads(line)

    def __enter__(self) -> Planted:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def client(self) -> Client:
        return Client(self.ready["endpoint"])

    def stop(self) -> tuple[int, str]:
        """Exit code and log."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.end()

    def end(self) -> tuple[int, str]:
        """The same of a service that ends by itself."""
        _, log = self.process.communicate(timeout=NEAR)
        return self.process.returncode, log
