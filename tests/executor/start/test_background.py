"""What a start does beside its imports."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
from slipstream.actors.executor.devices import driver
from slipstream.actors.executor.start import background


def bytes_read() -> int:
    """By this process, from files of any kind."""
    counted = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counted["rchar"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in (1, 2):
        (tmp_path / f"model-{number}.safetensors").write_bytes(bytes(20 << 20))
    (tmp_path / "notes.bin").write_bytes(bytes(80 << 20))
    return tmp_path


def test_the_weights_are_read_once_and_nothing_else(folder: Path) -> None:
    before = bytes_read()
    read = background.ReadAhead(folder)
    read.thread.join()
    assert 40 << 20 <= bytes_read() - before < 50 << 20


def test_what_would_not_stay_in_memory_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "MOST_OF_MEMORY", 1e-9)
    before = bytes_read()
    background.ReadAhead(folder).thread.join()
    assert bytes_read() - before < 1 << 20


def test_loaded_weights_are_read_no_further(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background.threading.Thread, "start", lambda thread: None)
    read = background.ReadAhead(folder)
    read.stop()
    before = bytes_read()
    read.read()
    assert bytes_read() - before < 1 << 20


def test_a_gpu_that_does_not_wake_ends_nothing_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever uses it next says why."""
    failures: list[object] = []
    monkeypatch.setattr(background.threading, "excepthook", failures.append)
    background.wake(0).join()
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
    background.wake(0).join()
    assert asked == ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "torch.empty", "torch.device"]
