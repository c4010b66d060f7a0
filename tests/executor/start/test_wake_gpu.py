"""The context of a GPU is made beside the imports of a start."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from slipstream.actors.executor.devices import driver
from slipstream.actors.executor.start import wake_gpu


def test_a_gpu_that_does_not_wake_ends_nothing_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever uses it next says why."""
    failures: list[object] = []
    monkeypatch.setattr(wake_gpu.threading, "excepthook", failures.append)
    wake_gpu.wake(0).join()
    assert failures == []


def test_the_interpreter_is_free_while_the_driver_makes_a_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes long is asked of the driver, before torch is: torch would hold the interpreter."""
    asked: list[str] = []

    class Driver:
        def __call__(self, function: str, *arguments: object) -> None:
            asked.append(function)

    class Torch(ModuleType):
        def __getattr__(self, name: str) -> object:
            asked.append(f"torch.{name}")
            return lambda *given, **named: None

    monkeypatch.setattr(driver, "Driver", Driver)
    monkeypatch.setitem(sys.modules, "torch", Torch("torch"))
    wake_gpu.wake(0).join()
    assert asked == ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "torch.empty", "torch.device"]
