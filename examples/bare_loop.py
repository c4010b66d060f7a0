"""What the whole service reaches of a bare loop of the same step, on a CPU with one thread for the forward pass.

The bare loop has no scheduler, no client and no other process: it runs the model's step again and again, and
reads the tokens after each. The service does all that a service does, and its client is this script. Both take turns;
medians and their ratio are printed, and how busy the service's own device was.

    python examples/bare_loop.py --rows 32 --new 64 --width 512 --layers 8 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from slipstream.actors.executor.model.loading.load import make_model
from slipstream.actors.executor.step.batch import RunningBatch
from slipstream.actors.executor.step.model_runner import ModelRunner
from slipstream.protocol.client.timeline import utilization
from slipstream.protocol.internal import Join, Plan

import slipstream
from slipstream import Client, SamplingParams, Sidecar

PROMPT, BLOCK, VOCAB = 32, 16, 2048


def make_folder(folder: Path, width: int, layers: int) -> None:
    bundled = Path(slipstream.__file__).resolve().parent / "model"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundled / name, folder)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // 64),
        "num_key_value_heads": max(1, width // 64),
        "vocab_size": VOCAB,
        "max_position_embeddings": 2048,
        "eos_token_id": 0,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))


class BareLoop:
    """The step of the executor, and nothing else."""

    def __init__(self, folder: Path, rows: int, new: int) -> None:
        self.rows, self.new = rows, new
        self.length = PROMPT + new
        self.blocks = -(-self.length // BLOCK)
        model = make_model(str(folder), device=torch.device("cpu"), attention_backend="torch")
        with torch.inference_mode():
            self.runner = ModelRunner(model, rows, self.length, BLOCK, 1 + rows * self.blocks)
        self.batch = RunningBatch(rows, max(2048, rows), self.blocks)

    def first(self) -> Plan:
        prompt = np.arange(5, 5 + PROMPT, dtype=np.int32)
        joins = [
            Join(
                slot=row,
                tokens=(prompt + row).tobytes(),
                prompt_len=PROMPT,
                start=0,
                temperature=0.0,
                top_p=1.0,
                top_k=0,
                min_p=0.0,
                seed=row,
                min_tokens=0,
                stop_tokens=b"",
                max_length=self.length,
            )
            for row in range(self.rows)
        ]
        slots = np.repeat(np.arange(self.rows, dtype=np.int32), self.blocks)
        blocks = np.stack([slots, np.arange(1, 1 + len(slots), dtype=np.int32)], 1)
        chunks = np.array([(row, PROMPT) for row in range(self.rows)], np.int32)
        return Plan(0, joins=joins, blocks=blocks.tobytes(), chunks=chunks.tobytes())

    @torch.inference_mode()
    def run(self) -> float:
        """Output tokens per second."""
        staging = np.zeros(self.batch.input_capacity, np.int32)
        outputs = torch.zeros(self.batch.output_capacity, dtype=torch.int32)
        begun = time.perf_counter()
        for step in range(self.new):
            work = self.batch.stage(self.first() if step == 0 else Plan(step), staging)
            self.runner.run(torch.from_numpy(staging), outputs, work)
            assert int(outputs[: self.rows].min()) >= 0
        seconds = time.perf_counter() - begun
        self.batch.stage(Plan(self.new, leaves=np.arange(self.rows, dtype=np.int32).tobytes()), staging)
        return self.rows * self.new / seconds


def service(client: Client, rows: int, new: int) -> tuple[float, float]:
    """Output tokens per second, and how busy the device was."""
    prompts = [list(range(5 + row, 5 + row + PROMPT)) for row in range(rows)]
    before = client.stats().get("steps", 0.0)
    begun = time.perf_counter()
    client.generate_many(prompts, SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True))
    seconds = time.perf_counter() - begun
    steps = [span for span in client.trace().spans("compute") if span.step >= before]
    return rows * new / seconds, utilization(steps)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("rows", 32), ("new", 64), ("width", 512), ("layers", 8), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    found = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_folder(folder, found.width, found.layers)
        bare = BareLoop(folder, found.rows, found.new)
        options = {
            "device": "cpu",
            "load_format": "dummy",
            "max_num_seqs": found.rows,
        }
        rates: list[tuple[float, float, float]] = []
        with Sidecar(folder, max_model_len=2048, **options) as sidecar, sidecar.client() as client:
            bare.run()
            service(client, found.rows, found.new)
            for _ in range(found.rounds):
                rates.append((bare.run(), *service(client, found.rows, found.new)))
    alone, whole, busy = (statistics.median(column) for column in zip(*rates, strict=True))
    print(
        f"{found.rows} rows: bare loop {alone:,.0f} tokens/s, service {whole:,.0f} tokens/s,"
        f" ratio {whole / alone:.3f}, device busy {busy:.2%}"
    )


if __name__ == "__main__":
    main()
