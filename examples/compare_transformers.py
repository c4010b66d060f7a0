"""Tokens per second, here and in transformers' own continuous batching, on the same machine.

A llama of 2 layers and width 64 with random weights in float32, prompts of 32 tokens, 128 new tokens,
greedy, one thread for the forward pass on each side. Ours goes through the whole service: five
processes, and this script is the client. The two take turns, so that a machine whose speed drifts
treats both alike; medians and their ratio are printed.

    python examples/compare_transformers.py --batch 32 256 --rounds 3
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.generation.configuration_utils import ContinuousBatchingConfig

import slipstream
from slipstream import Client, SamplingParams, Sidecar

PROMPT, NEW = 32, 128


def make_checkpoint(folder: Path) -> None:
    bundled = Path(slipstream.__file__).parent / "model"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundled / name, folder)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        eos_token_id=0,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)


def make_prompts(batch: int, round_: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1000 * batch + round_)
    return torch.randint(5, 2048, (batch, PROMPT), generator=generator).tolist()


def ours(client: Client, prompts: list[list[int]]) -> tuple[float, list[list[int]]]:
    begun = time.perf_counter()
    params = SamplingParams(temperature=0.0, max_tokens=NEW, ignore_eos=True)
    outputs = client.generate_many(prompts, params)
    seconds = time.perf_counter() - begun
    return len(prompts) * NEW / seconds, [output.outputs[0].token_ids for output in outputs]


def theirs(model: Any, prompts: list[list[int]]) -> tuple[float, list[list[int]]]:
    config = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)
    # Pages of 256 tokens, one for each sequence: all of the batch runs at once. Left to itself it takes most
    # of the machine's memory for pages and is many times slower on a CPU.
    batching = ContinuousBatchingConfig(use_cuda_graph=False, num_blocks=max(64, len(prompts)))
    begun = time.perf_counter()
    outputs = model.generate_batch(  # type: ignore[operator]
        inputs=prompts, generation_config=config, continuous_batching_config=batching, progress_bar=False
    )
    seconds = time.perf_counter() - begun
    ordered = sorted(outputs.items(), key=lambda item: int(item[0].rpartition("_")[2]))
    return len(prompts) * NEW / seconds, [list(output.generated_tokens) for _, output in ordered]


def compare(batch: int, rounds: int, folder: Path) -> None:
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    rates: tuple[list[float], list[float]] = ([], [])
    with (
        Sidecar(
            folder,
            device="cpu",
            dtype="float32",
            max_num_seqs=batch,
            enable_prefix_caching=False,
        ) as sidecar,
        sidecar.client() as client,
    ):
        for round_ in range(-1, rounds):  # the first one warms up
            prompts = make_prompts(batch, round_)
            rate, tokens = ours(client, prompts)
            their_rate, their_tokens = theirs(model, prompts)
            if round_ < 0:
                same = sum(a == b for a, b in zip(tokens, their_tokens, strict=True))
                print(f"batch {batch}: {same} of {batch} answers are the same on both sides")
                continue
            rates[0].append(rate)
            rates[1].append(their_rate)
    a, b = (statistics.median(side) for side in rates)
    print(f"batch {batch}: slipstream {a:,.0f} tokens/s, transformers {b:,.0f} tokens/s, ratio {a / b:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--rounds", type=int, default=3)
    found = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(Path(folder))
        for batch in found.batch:
            compare(batch, found.rounds, Path(folder))


if __name__ == "__main__":
    main()
