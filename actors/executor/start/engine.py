"""What an executor on any device is built from: the device, the runner of its steps, and the facts about both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...options import ExecutorOptions
from ..devices.device import Device
from ..devices.kinds import kind_of
from ..pipeline import StepRunner
from ..step.buckets import Buckets
from .memory import bytes_per_block

if TYPE_CHECKING:
    from ..model.paged_model import PagedModel
    from ..step.model_runner import ModelRunner


@dataclass(kw_only=True)
class Engine:
    """A device and the runner that computes steps on it, as a start has made them, and what is known of both."""

    device: Device
    runner: StepRunner
    blocks: int
    """The number of blocks of the cache."""
    facts: dict[str, Any]
    step_times: list[tuple[int, int]] = field(default_factory=list)
    """As ``Capacity.step_times``."""
    buckets: Buckets | None = None
    """Sizes that steps are padded to; None: a step is as large as it is."""
    background_work: Callable[[], float | None] | None = None
    catching_up: bool = False
    missed_twice: Callable[[], bool] | None = None
    """All three as ``Executor`` takes them."""


def runner_of(options: ExecutorOptions, model: PagedModel) -> ModelRunner:
    """The runner of a model, without its cache."""
    from ..step.model_runner import ModelRunner

    scales = None
    if options.kv_cache_dtype == "fp8":
        from ..model.scales import measure_scales

        scales = measure_scales(model)
    return ModelRunner(
        model,
        options.max_num_seqs,
        options.max_model_len,
        options.block_size,
        scales=scales,
        check_carry_over=options.check_carry_over,
    )


def facts_of(options: ExecutorOptions, model: PagedModel, blocks: int) -> dict[str, Any]:
    """The facts about a model on its device that the banner shows."""
    states = model.stateful
    return {
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.backend.name,
        "decoder": model.unfused_because or "fused",
        "batch_invariant": model.batch_invariant,
        "exchange": "" if model.group is None or model.device.type == "cpu" else model.group.description(),
        "weights": model.weights_format,
        "weight_bytes": model.weight_bytes,
        "kv_cache_dtype": options.kv_cache_dtype,
        "kv_cache_bytes": blocks * bytes_per_block(options, model),
        "adapters": "" if model.adapters is None else model.adapters.description(),
        "states": [] if states is None else states.notes(),
        "state_bytes": model.state_layout.bytes_per_slot * (options.max_num_seqs + 1),
    }


def max_batched_tokens(options: ExecutorOptions, device: str) -> int:
    """Most tokens of a step: what is stated, or the device's default and no less than one for each sequence."""
    return options.max_num_batched_tokens or max(kind_of(device).max_batched_tokens, options.max_num_seqs)
