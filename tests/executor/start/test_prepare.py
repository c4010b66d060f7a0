"""What a spare for a GPU does before it is forked: nothing that CUDA would hold against its forks."""

from __future__ import annotations

import subprocess
import sys

import pytest
from slipstream.actors.executor.devices import nvml

PREPARED = """
import os
import sys
from pathlib import Path

from slipstream.actors.executor.start.prepare import ENVIRONMENT, prepare

os.environ.update(ENVIRONMENT)

import torch

def touched(*arguments, **options):
    raise AssertionError("a spare made a device context")

torch.cuda.is_available = lambda: True  # as the management library says, with PYTORCH_NVML_BASED_CUDA_CHECK
for name in ("_lazy_init", "get_device_capability", "get_device_properties", "current_device", "synchronize"):
    setattr(torch.cuda, name, touched)

from slipstream.options.serve import ServeOptions
from slipstream.runtime.process.child import ProcessStart
from slipstream.serving.service import service_specs

spare = next(spec for spec in service_specs(ServeOptions(device="cuda"), Path("/tmp")) if spec.role == "spare")
prepared = prepare(ProcessStart(spare.options))

import slipstream.actors.executor.start.build

assert "slipstream.actors.executor.triton_tools.kernel" in sys.modules, "its kernels are not imported"
assert "torch.fx.experimental.symbolic_shapes" in sys.modules, "a fork would import it, with the algebra it needs"
assert "triton.experimental.gluon.nvidia.hopper" in sys.modules, "the first launch of a fork would import it"
assert prepared.skeleton is not None, "a fork would make the model's modules"
assert all(tensor.is_meta for tensor in prepared.skeleton.transformer.parameters())
print(len(os.listdir("/proc/self/task")))
"""


def test_a_spare_for_a_gpu_makes_no_device_context_and_starts_no_thread() -> None:
    done = subprocess.run([sys.executable, "-c", PREPARED], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1"]


class Library:
    """The management library of a machine with GPUs of these capabilities; None: one that cannot be asked."""

    def __init__(self, *gpus: tuple[int, int] | None, starts: bool = True) -> None:
        self.gpus, self.starts, self.open = gpus, starts, 0

    def nvmlInit_v2(self) -> int:
        self.open += self.starts
        return 0 if self.starts else 9

    def nvmlShutdown(self) -> int:
        self.open -= 1
        return 0

    def nvmlDeviceGetCount_v2(self, count: object) -> int:
        count._obj.value = len(self.gpus)  # type: ignore[attr-defined]
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, device: object) -> int:
        device._obj.value = index + 1  # type: ignore[attr-defined]
        return 0 if self.gpus[index] is not None else 15

    def nvmlDeviceGetCudaComputeCapability(self, device: object, major: object, minor: object) -> int:
        gpu = self.gpus[device.value - 1]  # type: ignore[attr-defined]
        assert gpu is not None
        major._obj.value, minor._obj.value = gpu  # type: ignore[attr-defined]
        return 0


@pytest.mark.parametrize(
    ("library", "expected"),
    [
        (Library((9, 0), (9, 0)), (9, 0)),
        (Library((10, 0), (8, 6)), (8, 6)),
        (Library((9, 0), None), (0, 0)),
        (Library(), (0, 0)),
        (Library((9, 0), starts=False), (0, 0)),
    ],
)
def test_the_capability_is_that_of_the_least_gpu_and_unknown_where_it_cannot_be_asked(
    library: Library, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvml.ctypes, "CDLL", lambda name: library)
    assert nvml.least_capability() == expected
    assert library.open == 0, "the library is not left open"


def test_without_the_library_no_capability_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(nvml.ctypes, "CDLL", missing)
    assert nvml.least_capability() == (0, 0)
