"""The files of the weights are read beside the imports of a start."""

from __future__ import annotations

from pathlib import Path

import pytest
from slipstream.actors.executor.start import read_ahead


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
    read = read_ahead.ReadAhead(folder)
    read.thread.join()
    assert 40 << 20 <= bytes_read() - before < 50 << 20


def test_what_would_not_stay_in_memory_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "MAX_OF_MEMORY", 1e-9)
    before = bytes_read()
    read_ahead.ReadAhead(folder).thread.join()
    assert bytes_read() - before < 1 << 20


def test_loaded_weights_are_read_no_further(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead.threading.Thread, "start", lambda thread: None)
    read = read_ahead.ReadAhead(folder)
    read.stop()
    before = bytes_read()
    read.read()
    assert bytes_read() - before < 1 << 20
