"""The run directory lies on a disk that is full when an actor has to come back."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from slipstream import Sidecar
from slipstream.drill.answers import known_answer, make_cases

ACTORS = ["detokenizer", "tokenizer", "scheduler", "executor", "gateway"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for few files, as short a path as a socket needs."""
    disk = Path("/tmp") / f"slipstream-disk-{os.getpid()}"
    disk.mkdir(mode=0o700)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=64,mode=700", "tmpfs", disk], capture_output=True
    )
    try:
        if mounted.returncode:
            pytest.skip(f"no right to mount a file system here: {mounted.stderr.decode().strip()}")
        yield disk
    finally:
        if not mounted.returncode:
            subprocess.run(["umount", "--lazy", disk], check=True)
        disk.rmdir()


def fill(disk: Path) -> list[Path]:
    """Files until there is no room for another."""
    files: list[Path] = []
    with contextlib.suppress(OSError):
        for number in range(1000):
            path = disk / f"filler-{number}"
            path.touch()
            files.append(path)
    try:
        (disk / "one-more").touch()
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return files
    raise AssertionError("the disk is not full")


def test_an_actor_that_dies_while_the_disk_is_full_is_back_when_there_is_room_and_no_token_is_lost(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, soak: bool
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(small_disk))

    async def drill(sidecar: Sidecar, actor: str) -> None:
        case = make_cases(1, "emulated")[0]
        got: list[int] = []
        async with sidecar.async_client(timeout_s=60.0) as client:
            expected = known_answer(case, (await client.connect()).limits.vocab_size)
            files: list[Path] = []
            async for delta in client.generate(case.prompt, case.params):
                if not got:
                    files = fill(small_disk)
                    os.kill(sidecar.pids[actor], signal.SIGKILL)
                    deadline = time.monotonic() + 30.0
                    while "No space left on device" not in sidecar.log:
                        assert time.monotonic() < deadline, sidecar.log
                        await asyncio.sleep(0.01)
                    for path in files:
                        path.unlink()
                got += delta.token_ids
        assert got == expected

    for actor in ACTORS * 4 if soak else ACTORS[:1]:
        with Sidecar(device="emulated", emulated_step_ms=10.0) as sidecar:
            assert Path(sidecar.endpoint.removeprefix("ipc://")).is_relative_to(small_disk)
            asyncio.run(drill(sidecar, actor))
