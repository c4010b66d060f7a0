"""What others feel of a long prompt, and what a repeated prompt costs.

    python examples/latency_bench.py [--model M] [--device cpu] [--streams N] [--long N] [--repeated N] [--json FILE|-]

``gap``: some streams run; then a long prompt arrives, and another when its first token is there. Each line is
the time between two tokens of a stream, without and with a prompt under way. ``ttft``: the time to the first
token of a prompt that comes for the first time, and again. Without ``--model`` it is a small model of random
weights with room for long prompts, made on the spot.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

import slipstream
from slipstream import AsyncClient, SamplingParams, Sidecar

BUNDLED = Path(slipstream.__file__).parent / "model"


def small_model(folder: Path, length: int) -> None:
    """A Llama of random weights, with the bundled tokenizer."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(BUNDLED / name, folder)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=length,
        eos_token_id=0,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def random_prompt(length: int) -> list[int]:
    return [random.randrange(10, 2000) for _ in range(length)]


async def first_token_s(client: AsyncClient, prompt: list[int], seed: int = 0) -> float:
    begun = time.perf_counter()
    params = SamplingParams(max_tokens=1, seed=seed, ignore_eos=True)
    async for delta in client.generate(prompt, params):
        if delta.token_ids:
            return time.perf_counter() - begun
    raise RuntimeError("no token came")


async def gaps(client: AsyncClient, streams: int, long: int, prompts: int) -> dict[str, float]:
    """Milliseconds between the tokens of ``streams`` streams, while nothing else happens and while prompts come."""
    quiet: list[float] = []
    disturbed: list[float] = []
    begun = asyncio.Event()
    under_way = False
    running = 0

    async def stream(number: int) -> None:
        nonlocal running
        last = None
        params = SamplingParams(seed=number, ignore_eos=True)  # as long as the model can
        async for _ in client.generate(random_prompt(16), params):
            now = time.perf_counter()
            if last is None:
                running += 1
                if running == streams:
                    begun.set()
            elif begun.is_set():
                (disturbed if under_way else quiet).append(now - last)
            last = now

    tasks = [asyncio.create_task(stream(number)) for number in range(streams)]
    await begun.wait()
    times = []
    for _ in range(prompts):
        await asyncio.sleep(1.0)
        under_way = True
        times.append(await first_token_s(client, random_prompt(long)))
        under_way = False
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    result = {}
    for name, values in (("quiet", quiet), ("disturbed", disturbed)):
        for percentile in (50, 99):
            result[f"{name}_p{percentile}_ms"] = float(np.percentile(values, percentile)) * 1e3
    result["p99_ratio"] = result["disturbed_p99_ms"] / result["quiet_p99_ms"]
    result["long_prompt_ttft_ms"] = statistics.median(times) * 1e3
    return result


async def repeated(client: AsyncClient, length: int, rounds: int = 5) -> dict[str, float]:
    """Milliseconds to the first token of prompts that nobody has asked before, and of the same again."""
    first, again = [], []
    for _ in range(rounds):
        prompt = random_prompt(length)
        first.append(await first_token_s(client, prompt))
        again += [await first_token_s(client, prompt, seed) for seed in (1, 2, 3)]
    new, known = statistics.median(first) * 1e3, statistics.median(again) * 1e3
    return {"first_ms": new, "again_ms": known, "times_faster": new / known}


async def measure(endpoint: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    async with AsyncClient(endpoint) as client:
        for length in (options.long, options.repeated, 100):  # warm up
            await first_token_s(client, random_prompt(length))
        return {
            "ttft": await repeated(client, options.repeated),
            "gap": await gaps(client, options.streams, options.long, options.prompts),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", metavar="M", help="a folder or a name; left out, a small one")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--streams", type=int, default=8, metavar="N", help="that run meanwhile")
    parser.add_argument("--long", type=int, default=4000, metavar="N", help="tokens of the long prompt")
    parser.add_argument("--prompts", type=int, default=5, metavar="N", help="long prompts, one after another")
    parser.add_argument(
        "--repeated", type=int, default=2000, metavar="N", help="tokens of the repeated prompt"
    )
    parser.add_argument("--json", metavar="FILE", help="- for standard output")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model
        if model is None:
            model = folder
            small_model(Path(folder), 2 * options.long)
        with Sidecar(model, device=options.device, max_model_len=2 * options.long) as sidecar:
            results = asyncio.run(measure(sidecar.endpoint, options))
    if options.json:
        text = json.dumps(results, indent=2)
        print(text) if options.json == "-" else Path(options.json).write_text(text + "\n")
        return
    for name, values in results.items():
        print(f"{name:5s}", ", ".join(f"{key} {value:.2f}" for key, value in values.items()))


if __name__ == "__main__":
    main()
