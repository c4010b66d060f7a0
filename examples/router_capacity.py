"""How many tokens a second one router carries, and where it ends: more and more emulated services behind it.

    python examples/router_capacity.py [--rows 256] [--step-ms 20] [--services 2,4,8,12,16] [--seconds 5]

The services are emulated in one light process, since five processes for each of them would need the machine for
themselves: it speaks the public protocol, and every ``--step-ms`` each service sends a token of each of its ``--rows``
open requests. The client is another light process's work too: it only counts what comes. The router is a real one, as
``slipstream route`` starts it. All three share the machine's cores.

Printed for each number of services: tokens a second that were offered, and that arrived; by how much the end of the
last answer was late; and the cores that the router's process took.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import zmq
from slipstream.protocol.codec import decode_from_client, decode_to_client, encode, encode_from_client
from slipstream.protocol.limits import Limits
from slipstream.protocol.messages import (
    Abort,
    Delta,
    Deltas,
    Error,
    Generate,
    GetStats,
    Hello,
    Ping,
    Pong,
    Stats,
    Usage,
    Welcome,
)
from slipstream.protocol.sampling import SamplingParams

from slipstream.sidecar import RouterSidecar

BOUNDS = Limits(max_model_len=65_536, vocab_size=32_000, max_prompt_bytes=10_000)
TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


class Emulated:
    """One service: a socket, and a token of each open request at every step."""

    def __init__(self, context: zmq.Context[Any], endpoint: str) -> None:
        self.socket = context.socket(zmq.ROUTER)
        self.socket.bind(endpoint)
        self.open: dict[tuple[bytes, str], int] = {}
        """Tokens that are left, by client and id."""

    def take(self) -> None:
        """Answer what has come."""
        while self.socket.poll(0):
            client, frame = self.socket.recv_multipart()
            message = decode_from_client(frame)
            if isinstance(message, Hello):
                welcome = Welcome(protocol=[1, 0], server="emulated", model="capacity", limits=BOUNDS)
                self.say(client, welcome)
            elif isinstance(message, Ping):
                self.say(client, Pong(nonce=message.nonce))
            elif isinstance(message, GetStats):
                self.say(client, Stats(counters={"requests_open": float(len(self.open))}))
            elif isinstance(message, Generate):
                left = (message.params.max_tokens or 1) - len(message.received)
                self.open[client, message.id] = left
            elif isinstance(message, Abort):
                self.open.pop((client, message.id), None)

    def step(self) -> None:
        for client in {client for client, _ in self.open}:
            items: list[Delta] = []
            for key in [key for key in self.open if key[0] == client]:
                self.open[key] -= 1
                delta = Delta(id=key[1], text=" word", token_ids=[17])
                if not self.open[key]:
                    delta.finish_reason, delta.usage = "length", Usage(prompt_tokens=4, completion_tokens=1)
                    del self.open[key]
                items.append(delta)
            self.say(client, Deltas(items=items))

    def say(self, client: bytes, message: Any) -> None:
        self.socket.send_multipart((client, encode(message)))


def serve(endpoints: list[str], step_s: float) -> None:
    """All services, until the process is ended."""
    context = zmq.Context()
    services = [Emulated(context, endpoint) for endpoint in endpoints]
    poller = zmq.Poller()
    for service in services:
        poller.register(service.socket, zmq.POLLIN)
    due = [time.monotonic() + step_s * place / len(services) for place in range(len(services))]
    while True:
        wait = min(due) - time.monotonic()
        if wait <= 0 or poller.poll(int(wait * 1e3) + 1):
            for service in services:
                service.take()
        now = time.monotonic()
        for place, service in enumerate(services):
            if now >= due[place]:
                service.step()
                due[place] += step_s


def count(endpoint: str, streams: int, tokens: int) -> float:
    """Ask for all streams at once; the seconds from the first token of any to the last of all."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.set(zmq.LINGER, 0)
        socket.connect(endpoint)
        socket.send(encode_from_client(Hello(protocol=[1, 0])))
        for number in range(streams):
            params = SamplingParams(max_tokens=tokens, ignore_eos=True, seed=number)
            socket.send(encode_from_client(Generate(id=str(number), prompt=[number, 2, 3, 4], params=params)))
        left, came, begun = streams, 0, 0.0
        while left:
            assert socket.poll(60_000), f"{left} streams have not ended and nothing comes"
            message = decode_to_client(socket.recv())
            assert not isinstance(message, Error), message
            if isinstance(message, Deltas):
                begun = begun or time.monotonic()
                came += sum(len(delta.token_ids) for delta in message.items)
                left -= sum(delta.finish_reason is not None for delta in message.items)
        assert came == streams * tokens, f"{came} tokens of {streams * tokens}"
        return time.monotonic() - begun


def processor_s(pid: int) -> float:
    """What a process has taken of the processors."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def carry(services: int, rows: int, step_s: float, seconds: float) -> str:
    """One line: ``services`` of ``rows`` streams each, behind one router."""
    tokens = round(seconds / step_s)
    with tempfile.TemporaryDirectory() as folder:
        endpoints = [f"ipc://{folder}/{number}" for number in range(services)]
        serving = multiprocessing.get_context("spawn").Process(
            target=serve, args=(endpoints, step_s), daemon=True
        )
        serving.start()
        try:
            with RouterSidecar(endpoints) as router:
                pid = router.pids["router"]
                count(router.endpoint, services * rows, 20)  # code has run once
                before = processor_s(pid)
                took_s = count(router.endpoint, services * rows, tokens)
                spent_s = processor_s(pid) - before
        finally:
            serving.kill()
            serving.join()
    total, nominal_s = services * rows * tokens, (tokens - 1) * step_s
    return (
        f"{services:3} services of {rows} streams: offered {services * rows / step_s:9,.0f} tokens/s, arrived"
        f" {total / took_s:9,.0f}; the end {max(0.0, took_s - nominal_s) * 1e3:5.0f} ms late; the router took"
        f" {spent_s / took_s:.2f} cores, {spent_s / total * 1e6:.1f} us a token"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=256, help="streams of each service")
    parser.add_argument("--step-ms", type=float, default=20.0)
    parser.add_argument("--services", default="2,4,8,12,16", help="how many, one after the other")
    parser.add_argument("--seconds", type=float, default=5.0, help="that each answer takes")
    found = parser.parse_args()
    for services in map(int, found.services.split(",")):
        print(carry(services, found.rows, found.step_ms * 1e-3, found.seconds), flush=True)


if __name__ == "__main__":
    main()
