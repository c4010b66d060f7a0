"""A file that is watched: what becomes of it may be anything, and its last text holds until there is another."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from slipstream.protocol.errors import InvalidRequest
from slipstream.protocol.small_file import MAX_BYTES
from slipstream.runtime.process.watched_file import LOOK_EVERY_S, FileWatch

from slipstream.serving.route import read_services


def folder(path: Path) -> None:
    path.mkdir()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.symlink_to(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def large(path: Path) -> None:
    path.touch()
    os.truncate(path, MAX_BYTES + 1)


BECOMES = {
    folder: "Is a directory|it is no file",
    pipe: "it is no file",
    loop: "Too many levels",
    endless: "it is no file",
    large: "it has more than",
}


@pytest.mark.parametrize("become", BECOMES)
def test_a_file_that_becomes_something_else_is_told_once_and_read_when_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, become: Callable[[Path], None]
) -> None:
    path = tmp_path / "file"
    path.write_text("\ufeffone")
    watch, now = FileWatch(str(path)), 0.0
    assert watch.changed_text(now) == "one", "the mark of an editor is none of it"
    path.unlink()
    become(path)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            now += LOOK_EVERY_S
            assert watch.changed_text(now) is None
    [told] = caplog.messages
    assert "cannot be read, and what it said last holds" in told
    path.rmdir() if path.is_dir() else path.unlink()
    path.write_text("two, longer")
    assert watch.changed_text(now + LOOK_EVERY_S) == "two, longer"


@pytest.mark.parametrize(("become", "why"), BECOMES.items())
def test_a_router_does_not_wait_for_what_is_no_file_at_its_start(
    tmp_path: Path, become: Callable[[Path], None], why: str
) -> None:
    path = tmp_path / "file"
    become(path)
    with pytest.raises(InvalidRequest, match=rf"file of services .* cannot be read: .*({why})"):
        read_services(str(path))
