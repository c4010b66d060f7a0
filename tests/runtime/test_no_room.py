"""A machine that has no room for a process: what a service does that is starting, and one that has served."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from slipstream.runtime.supervision.children import CannotStart, Child, ChildSpec
from slipstream.runtime.supervision.due import ROOM_WITHIN_S
from slipstream.runtime.supervision.notify import Notify
from slipstream.runtime.supervision.supervisor import Supervisor

ACTOR = ChildSpec("actor", "module:make", {})
SPARE = ChildSpec("actor.spare", "module:make", {}, prepare="module:prepare", from_the_first=True)


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    """For which there never is any room."""

    def spawn(spec: ChildSpec, *given: Any, **named: Any) -> Child:
        raise CannotStart(spec.name, OSError(errno.EMFILE, "Too many open files"))

    monkeypatch.setattr(Child, "spawn", spawn)
    made = Supervisor([ACTOR, SPARE], tmp_path, Notify({}))
    yield made
    made.status.close()


def test_a_service_that_starts_says_so_and_ends(supervisor: Supervisor) -> None:
    with pytest.raises(CannotStart, match=r"actor.spare cannot be started: Too many open files"):
        supervisor.start_helpers()


def test_so_it_does_where_only_the_actor_finds_none(supervisor: Supervisor) -> None:
    supervisor.waiting_for_spare = [ACTOR]
    with pytest.raises(CannotStart, match="actor cannot be started"):
        supervisor.restart_due()


def test_one_whose_actors_all_start_again_tries_again(supervisor: Supervisor) -> None:
    """Also what waited to be forked from a spare for which there was no room either."""
    supervisor.has_served = True
    supervisor.start_helpers()
    supervisor.waiting_for_spare = [ACTOR]
    supervisor.restart_due()
    assert [spec for _, spec in supervisor.due.waiting] == [ACTOR]
    assert supervisor.starting() == ["actor"]


def test_it_does_not_try_for_ever(supervisor: Supervisor) -> None:
    supervisor.has_served = True
    supervisor.due.waiting = [(0.0, ACTOR)]
    supervisor.restart_due()
    assert supervisor.due.waiting
    supervisor.due.waiting = [(0.0, ACTOR)]
    supervisor.due.no_room_since["actor"] = time.monotonic() - ROOM_WITHIN_S - 1.0
    with pytest.raises(CannotStart):
        supervisor.restart_due()
