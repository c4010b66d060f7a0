"""What the gateway alone costs per step, and what connections that ask for nothing add to it.

    python examples/gateway_bench.py [--rows N] [--idle N] [--steps N]

The real gateway takes in the texts of steps in which each of ``rows`` requests, of one client, gets a token, and is
woken after each, as its host does. Beside them ``idle`` clients have said hello and nothing else. Printed is the
median time of a step in microseconds, with and without them.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from array import array

from slipstream.actors.gateway.gateway import Gateway
from slipstream.protocol.events import ClientMessage
from slipstream.protocol.internal import Opened, Submit, Texts
from slipstream.protocol.limits import Limits
from slipstream.protocol.messages import Generate, Hello
from slipstream.protocol.sampling import SamplingParams

BUSY = b"busy"


def microseconds_per_step(rows: int, idle: int, steps: int) -> float:
    """The median over ``steps`` steps."""
    limits = Limits(max_model_len=2 * steps, vocab_size=256, max_prompt_bytes=1000, max_queued_requests=4096)
    gateway = Gateway("", "bench", limits, server="bench", rng=random.Random(0))
    hello = Hello(protocol=[1, 0])
    for number in range(idle):
        address = b"%d" % number
        gateway.receive(address, ClientMessage(address, hello), 0.0)
    gateway.receive(BUSY, ClientMessage(BUSY, hello), 0.0)
    numbers: list[int] = []
    for row in range(rows):
        asked = Generate(id=str(row), prompt="x", params=SamplingParams(max_tokens=steps))
        sends = gateway.receive(BUSY, ClientMessage(BUSY, asked), 0.0)
        numbers += [message.request for _, message in sends if isinstance(message, Submit)]
    requests, tokens = array("q", numbers).tobytes(), array("i", [7] * rows).tobytes()
    opened = [Opened(number, b"", 0, [], 0, 1) for number in numbers]
    taken: list[float] = []
    for step in range(steps):
        texts = Texts(step, opened, requests, tokens, ["x"] * rows)
        opened = []
        now = step * 0.005
        begun = time.perf_counter()
        gateway.receive("detokenizer", texts, now)
        gateway.wake(now)
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--idle", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    for idle in (0, options.idle):
        spent = microseconds_per_step(options.rows, idle, options.steps)
        print(f"{options.rows} rows, {idle} idle connections: {spent:.1f} us a step")


if __name__ == "__main__":
    main()
