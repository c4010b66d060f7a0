"""The kinds of devices by name, and what of them others need to know before one is made. Torch is not imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class DeviceKind:
    """The properties that all devices of a kind share."""

    step_hangs_s: float
    """A step that takes this long counts as hung; a long prompt, or a kernel that is compiled first, takes less."""
    max_batched_tokens: int
    """Most tokens of a step when none are stated: it computes for longer than it reads the weights. More gain little
    and make everyone wait, as ``examples/prefill_simulation.py`` shows; a CPU takes longer for each."""
    attention: str = ""
    """The backend that ``--attention-backend auto`` takes."""
    numbered: bool = False
    """There may be several: ``NAME:N`` is one of them."""
    without_effect: tuple[str, ...] = ()
    """Options of a service that this device does nothing with."""


KINDS = {
    "cuda": DeviceKind(step_hangs_s=60.0, max_batched_tokens=2048, attention="triton", numbered=True),
    "cpu": DeviceKind(
        step_hangs_s=600.0,
        max_batched_tokens=512,
        attention="torch",
        without_effect=("gpu_memory_utilization", "cuda_graphs"),
    ),
    "emulated": DeviceKind(
        step_hangs_s=10.0,
        max_batched_tokens=2048,
        without_effect=(
            "dtype",
            "quantization",
            "lora",
            "enable_lora_updates",
            "max_loras",
            "max_lora_rank",
            "gpu_memory_utilization",
            "kv_cache_dtype",
            "kv_cache_memory",
            "attention_backend",
            "batch_invariant",
            "load_format",
            "cuda_graphs",
            "weights_keeper",
        ),
    ),
}
"""A device is an entry here, a module beside this one, and a branch of ``build``."""


GPU_DEVICES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""Where a driver of NVIDIA's shows: on Linux, and on Linux under Windows."""


def uses_gpu(device: str) -> bool:
    """Whether a device, ``auto`` for example, will be a GPU, as far as that shows without torch."""
    return device.startswith("cuda") or (device == "auto" and any(path.exists() for path in GPU_DEVICES))


def kind_of(device: str) -> DeviceKind:
    """The kind of a device by its full name, ``cuda:1`` for example."""
    return KINDS[kind_name(device)]


def kind_name(device: str) -> str:
    """``cuda`` of ``cuda:1``."""
    return device.partition(":")[0]
