"""What the messages of one step cost to write and to read, the way they travel and by way of plain values.

    python examples/codec_bench.py [--rows 256]

*Native* is how the service writes and reads what it says itself: msgspec, straight from bytes to types. *Plain* is the
careful way, which reads what clients send: the msgpack package with bounds, then types. Microseconds of CPU time.
"""

from __future__ import annotations

import argparse
import time
from array import array
from collections.abc import Callable

from slipstream.protocol.codec import (
    decode,
    decode_envelope,
    decode_to_client,
    encode,
    pack,
    plain,
)
from slipstream.protocol.internal import Envelope, Plan, Sampled, Texts, Tokens
from slipstream.protocol.limits import MAX_INTERNAL_FRAME_BYTES
from slipstream.protocol.messages import Delta, Deltas, PublicOut

ROUNDS, ROUND_S = 15, 0.05
"""How many rounds, of which the best counts, and about how long each is: what other programs took is not in it."""


def best_us(work: Callable[[], object]) -> float:
    """Microseconds of CPU time for one call, in the round that nothing disturbed."""
    begun = time.thread_time()
    work()
    count = max(1, int(ROUND_S / (time.thread_time() - begun + 1e-9)))
    found: list[float] = []
    for _ in range(ROUNDS):
        begun = time.thread_time_ns()
        for _ in range(count):
            work()
        found.append((time.thread_time_ns() - begun) / count / 1000)
    return min(found)


def step_messages(rows: int) -> list[Plan | Sampled | Tokens | Texts]:
    """What the actors say to each other about one step in steady decode."""
    requests, tokens = array("q", range(rows)).tobytes(), array("i", range(rows)).tobytes()
    texts = [f" word{row}" for row in range(rows)]
    return [
        Plan(59),
        Sampled(59, tokens, 3364778464333, 3364784588230),
        Tokens(59, requests=requests, tokens=tokens),
        Texts(59, requests=requests, tokens=tokens, texts=texts),
    ]


def deltas(rows: int) -> list[Delta]:
    """One token for each row, as clients read it."""
    return [Delta(id=f"9f31c0de-{row}", text=f" word{row}", token_ids=[1000 + row]) for row in range(rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=256, help="requests in the step (default 256)")
    rows = parser.parse_args().rows
    print(f"{'us':34} {'plain':>8} {'native':>8} {'bytes':>8}")

    def show(what: str, slow: Callable[[], object], fast: Callable[[], object], size: int) -> None:
        print(f"{what:34} {best_us(slow):8.1f} {best_us(fast):8.1f} {size:8}")

    for message in step_messages(rows):
        envelope = Envelope("scheduler", 3, 2, 59, message)
        frame = encode(envelope)
        name = type(message).__name__
        show(
            f"encode {name}", lambda it=envelope: pack(plain(it)), lambda it=envelope: encode(it), len(frame)
        )
        show(
            f"decode {name}",
            lambda it=frame: decode(it, Envelope, max_bytes=MAX_INTERNAL_FRAME_BYTES),
            lambda it=frame: decode_envelope(it),
            len(frame),
        )
    together = Deltas(items=deltas(rows))
    apart = [Deltas(items=[delta]) for delta in together.items]
    frames = [encode(message) for message in apart]
    size = sum(map(len, frames))
    show(
        f"encode {rows} Deltas of one",
        lambda: [pack(plain(message)) for message in apart],
        lambda: [encode(message) for message in apart],
        size,
    )
    show(
        f"decode {rows} Deltas of one",
        lambda: [decode(frame, PublicOut) for frame in frames],
        lambda: [decode_to_client(frame) for frame in frames],
        size,
    )
    frame = encode(together)
    show(f"encode Deltas of {rows}", lambda: pack(plain(together)), lambda: encode(together), len(frame))
    show(
        f"decode Deltas of {rows}",
        lambda: decode(frame, PublicOut),
        lambda: decode_to_client(frame),
        len(frame),
    )


if __name__ == "__main__":
    main()
