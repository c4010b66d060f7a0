"""A service on the rows of ``ranks.py``, in a process of its own: what it measures of a model on some ranks."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h200
from slipstream.protocol.trace import Span

from slipstream import Client, Sidecar
from slipstream.observe.picture import Panel, as_svg, as_text, utilization

Row = dict[str, Any]

PROMPT = 128
TIMEOUT_S = 60.0
"""For all graphs and a spare executor to be there."""

ADAPTER_RANK = 16
STEPS_SHOWN = 4


def measure(
    lab: h200.Lab,
    model: str,
    folder: Path,
    ranks: int,
    rows: list[int],
    new: int,
    quantization: str | None,
    adapter: Path | None,
) -> Iterator[Row]:
    """One service, with each number of rows: when it was ready, each, and how long it was away without a rank."""
    begun = time.perf_counter()
    options: Row = {"tensor_parallel_size": ranks, "quantization": quantization}
    if adapter is not None:
        options["lora"] = [f"one={adapter}"]
    with (
        lab.service(folder, max(rows), PROMPT + new + 8, 2, **options) as sidecar,
        sidecar.client() as client,
    ):
        yield {"ready_s": round(time.perf_counter() - begun, 1)}
        print(sidecar.log, flush=True)
        wait_for_all(sidecar)
        for count in rows:
            measured = h200.run_rows(client, count, PROMPT, new, "one" if adapter else "")
            picture(lab, model, ranks, count, measured["tracks"])
            yield {"rows": count} | of_rows(measured, ranks)
        if ranks > 1:
            yield {"recovered_s": recovery(sidecar, client, ranks)}


def wait_for_all(sidecar: Sidecar) -> None:
    """Until all graphs are captured, and the spare executor can be forked."""
    end = time.monotonic() + TIMEOUT_S
    while True:
        actors = sidecar.actors
        spares = [actor for actor in actors.values() if actor["role"] == "spare"]
        captured = actors["executor"].get("full_speed_s") is not None
        if captured and all(each["state"] == "ready" for each in spares):
            return
        if time.monotonic() > end:
            raise TimeoutError(f"not all is there after {TIMEOUT_S:g} s\n{sidecar.log}")
        time.sleep(0.1)


def track_of(rank: int) -> str:
    """The steps of a rank's device."""
    return "compute" if rank == 0 else f"compute.{rank}"


def of_rows(measured: Row, ranks: int) -> Row:
    tracks = measured["tracks"]
    steps = {span.step for span in map(Span._make, tracks["compute"])}
    found = {name: measured[name] for name in ("seconds", "tokens_per_s", "step_ms")}
    for rank in range(ranks):
        spans = [span for span in tracks.get(track_of(rank), []) if span[1] in steps]
        found[f"utilization_{rank}"] = round(utilization(spans), 5)
        found[f"step_ms_{rank}"] = round(statistics.median((s[3] - s[2]) * 1e-6 for s in spans), 3)
    return found


def counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def picture(lab: h200.Lab, model: str, ranks: int, rows: int, tracks: Row) -> None:
    """A few steps of all ranks: printed as text, and as ``timeline-MODEL-RANKS-ROWS.svg``."""
    steps = tracks["compute"]
    last = steps[-1].step
    print(as_text(tracks, last - STEPS_SHOWN, last - 1), flush=True)
    title = f"{model} on {counted(ranks, 'rank')}, {counted(rows, 'row')}"
    drawn = as_svg([Panel(title, tracks, steps)], STEPS_SHOWN)
    (lab.out / f"timeline-{model}-{ranks}-{rows}.svg").write_text(drawn, encoding="utf-8")


def recovery(sidecar: Sidecar, client: Client, ranks: int) -> float:
    """Kill the last rank while nothing runs: seconds until an answer has come again."""
    os.kill(sidecar.pids[f"executor.{ranks - 1}"], 9)
    begun = time.perf_counter()
    h200.run_rows(client, 1, 8, 16)
    return round(time.perf_counter() - begun, 1)


def write_adapter(folder: Path, config: Row) -> Path:
    """An adapter on every projection of a Llama, as peft saves it; its speed does not depend on its numbers."""
    import torch
    from safetensors.torch import save_file

    width, inner = config["hidden_size"], config["intermediate_size"]
    head = width // config["num_attention_heads"]
    keys = config["num_key_value_heads"] * head
    sizes = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(config["num_hidden_layers"]):
        for name, (outputs, inputs) in sizes.items():
            named = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{named}.lora_A.weight"] = torch.full((ADAPTER_RANK, inputs), 0.01, dtype=torch.bfloat16)
            tensors[f"{named}.lora_B.weight"] = torch.full(
                (outputs, ADAPTER_RANK), 0.01, dtype=torch.bfloat16
            )
    told = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": ADAPTER_RANK, "lora_alpha": ADAPTER_RANK}
    told |= {"target_modules": [name.rpartition(".")[2] for name in sizes], "bias": "none"}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(told))
    return folder
