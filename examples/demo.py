"""The main job, to look at: a service of five actors, three questions at once over ZeroMQ, and its timeline.

Run it with ``make demo``. It starts a service on the bundled model, streams three answers at the same
time, prints throughput and how busy the device was, draws a few steps, and stops everything.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator

from slipstream import AsyncClient, Delta, SamplingParams, Sidecar
from slipstream.observe.picture import as_text, utilization

COLOURS = ("\x1b[36m", "\x1b[33m", "\x1b[35m") if sys.stdout.isatty() else ("", "", "")
PLAIN = "\x1b[0m" if sys.stdout.isatty() else ""

STORIES = ["Once upon a time there was a little fox", "One rainy morning, Anna found a key"]
QUESTION = [{"role": "user", "content": "What is 27 + 15?"}]


async def watch(name: str, opening: str, deltas: AsyncIterator[Delta], order: list[str]) -> tuple[str, int]:
    """Collect one answer, noting in ``order`` when each of its pieces came."""
    text, tokens = opening, 0
    async for delta in deltas:
        text += delta.text
        tokens += len(delta.token_ids)
        order.append(name)
    return text, tokens


async def ask(endpoint: str) -> None:
    async with AsyncClient(endpoint) as client:
        params = SamplingParams(max_tokens=150, temperature=0.7, seed=11)
        await client.complete("The sun was", SamplingParams(max_tokens=8))  # the first step is always slow
        order: list[str] = []
        begun = time.perf_counter()
        answers = await asyncio.gather(
            *(
                watch("AB"[i], opening, client.generate(opening, params), order)
                for i, opening in enumerate(STORIES)
            ),
            watch("C", "", client.chat(QUESTION, SamplingParams(temperature=0.0)), order),
        )
        seconds = time.perf_counter() - begun
        tracks = (await client.trace()).tracks

    for name, colour, (text, tokens) in zip("ABC", COLOURS, answers, strict=True):
        print(f"\n{colour}{name}  {text.strip()}{PLAIN}  [{tokens} tokens]")
    total = sum(tokens for _, tokens in answers)
    print(f"\nTheir pieces arrived in this order: {''.join(order[:60])}…")
    print(f"{total} tokens in {seconds:.2f} s: {total / seconds:,.0f} tokens/s from three requests at once")
    steps = [span for span in tracks["compute"] if span.step >= 0]
    tracks["compute"] = steps = steps[-100:-10]
    print(f"device busy {utilization(steps):.1%} of the time, over {len(steps)} steps")
    middle = steps[len(steps) // 2].step
    print("\nA few steps. The scheduler sends the plan of a step while the one before it computes:\n")
    print(as_text(tracks, middle, middle + 3))


def main() -> None:
    begun = time.perf_counter()
    with Sidecar(device="cpu") as sidecar:
        print(f"A service of {len(sidecar.pids)} actors is ready after {time.perf_counter() - begun:.1f} s:")
        print("  " + ", ".join(f"{name} (pid {pid})" for name, pid in sidecar.pids.items()))
        asyncio.run(ask(sidecar.endpoint))
    print("\nEverything has stopped.")


if __name__ == "__main__":
    main()
