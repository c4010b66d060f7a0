"""What steps of models with recurrent layers take on a GPU: with CUDA graphs or without, with whose kernels.

    python examples/recurrent_bench.py [--models qwen3_5_text falcon_h1] [--json FILE]

Models of one to two billion parameters with random weights, in bfloat16: a step of 1 row and of 32 rows that decode, by
its graph and launched kernel by kernel, and a step with a prompt of 2,047 tokens, which is no graph. Each is measured
with the kernels that transformers finds installed (flash-linear-attention, causal-conv1d, mamba-ssm), if there are any,
and with torch's. Times are medians of 10 on the device, in ms.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from model_shapes import MODELS, RECURRENT
from slipstream.actors.executor.model.stateful import package_kernels
from step_bench import BUDGET, Rig, Variant
from transformers import PreTrainedConfig

SLOTS, CONTEXT = 33, 900
ROWS = (1, 32)


def measure(config: PreTrainedConfig) -> dict[str, Any]:
    begun = time.perf_counter()
    rig = Rig(config, Variant(SLOTS, CONTEXT, None, "auto", 0))
    model = rig.runner.model
    assert model.stateful is not None
    found: dict[str, Any] = {
        "parameters": sum(weight.numel() for weight in model.transformer.parameters()),
        "state_bytes": model.state_layout.bytes_per_slot,
        "graphs": len(rig.graphed.forward_graphs),
        "capture_s": rig.graphs.seconds,
        "told": model.stateful.notes()[1:],
    }
    for rows in ROWS:
        found[f"{rows} rows, graph"] = rig.decode(rows)[1]
        found[f"{rows} rows, launched"] = rig.decode(rows, run=rig.runner.run)[1]
    tokens = BUDGET - 1
    found[f"prompt of {tokens}"] = rig.mixed(rig.graphed.run, 1, tokens)[1]
    found["all_s"] = time.perf_counter() - begun
    rig.device.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", choices=list(RECURRENT), default=list(RECURRENT))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("there is no GPU here")
    results: dict[str, Any] = {}
    # Before any model runs: flash-linear-attention, once imported, puts a class of its own in the place of mamba2's.
    configs = {name: MODELS[name]() for name in options.models}
    for name, config in configs.items():
        for devices in ({"cuda"}, set[str]()):
            package_kernels.DEVICES = devices
            key = f"{name}, {'kernels that are installed' if devices else 'torch'}"
            try:
                results[key] = measure(copy.deepcopy(config))
            except (
                Exception
            ) as error:  # one model that cannot be measured is no reason to leave the others out
                traceback.print_exc()
                results[key] = {"failed": f"{type(error).__name__}: {error}"}
            told = ", ".join(
                f"{what} {value:.2f}" if isinstance(value, float) else f"{what} {value}"
                for what, value in results[key].items()
            )
            print(f"{key}: {told}", flush=True)
            gc.collect()
            torch.cuda.empty_cache()
            if options.json:
                options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
