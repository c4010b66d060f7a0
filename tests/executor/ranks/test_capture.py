"""Ranks that capture under the real loops of their hosts: whichever is ready first, they come together."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from slipstream.actors.executor.devices.emulated import EmulatedDevice
from slipstream.actors.executor.pipeline import Pipeline
from slipstream.actors.executor.ranks.follower import Follower
from slipstream.actors.executor.ranks.leader import Leader
from slipstream.actors.executor.step.batch import RunningBatch
from slipstream.actors.executor.step.emulated_runner import EmulatedRunner
from slipstream.protocol.events import Completed, HandedOn, PeerUp
from slipstream.protocol.internal import Capacity, CaptureNext, Plan
from slipstream.runtime.actor import Actor
from slipstream.runtime.process.host import Host
from slipstream.runtime.process.loops import run_blocking
from slipstream.runtime.supervision import control

GRAPHS = 3
TIMEOUT_S = 5.0


class Graphs:
    """What two ranks capture; each graph is a barrier, as a collective is."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2)
        self.captured = threading.Event()

    def of_rank(self) -> Callable[[], float | None]:
        left = iter(range(GRAPHS))

        def capture_next() -> float | None:
            if next(left, None) is None:
                self.captured.set()
                return None
            self.barrier.wait(TIMEOUT_S)
            return 0.0

        return capture_next


def parts() -> tuple[Pipeline, RunningBatch]:
    batch = RunningBatch(4, 64, 4)
    runner = EmulatedRunner(4, 64, 100, check_carry_over=False)
    capacities = (batch.input_capacity, batch.output_capacity, batch.mask_capacity)
    return Pipeline(EmulatedDevice(1.0), runner, 2, *capacities), batch


def hosted(
    actor: Actor, epoch: int, mailbox: str, peers: dict[str, tuple[int, str]]
) -> tuple[Host, socket.socket]:
    """The actor in its host, and the supervisor's end of its channel."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    its.setblocking(False)
    ours.settimeout(TIMEOUT_S)
    in_hand = os.memfd_create("in hand")
    os.ftruncate(in_hand, 4096)
    begin = control.Begin(actor.name, epoch, mailbox, peers, {}, in_hand=in_hand, frame_key=b"k")
    return Host(actor, begin, its), ours


def test_no_capture_is_told_of_while_a_plan_was_handed_on_and_is_not_launched_here() -> None:
    """The others would launch it first, and rank 0 capture first: they would capture two things, each of which waits
    for the other."""
    pipeline, batch = parts()
    leader = Leader(pipeline, batch, Capacity(9, 4), {}, lambda: 0.02, followers=("executor.1",))
    leader.receive("executor.1", PeerUp("executor.1", 2), 0.0)
    handed = [type(message) for _, message in leader.receive("scheduler", Plan(0), 9.0)]
    assert handed == [Plan, HandedOn]
    assert leader.wake(10.0) == []
    leader.receive("executor", HandedOn(), 10.0)
    pipeline.device.close()
    while not pipeline.idle:
        leader.receive("device", Completed(), 10.1)
    assert [type(message) for _, message in leader.wake(20.0)] == [CaptureNext]


def test_rank_0_does_not_look_again_and_again_for_time_while_others_are_not_there() -> None:
    pipeline, batch = parts()
    leader = Leader(pipeline, batch, Capacity(9, 4), {}, lambda: 0.02, followers=("executor.1",))
    assert leader.wake(5.0) == []
    assert leader.wake_at is None
    leader.receive("executor.1", PeerUp("executor.1", 2), 6.0)
    assert leader.wake_at is not None
    pipeline.device.close()


@pytest.mark.parametrize("first", ["executor", "executor.1"])
def test_ranks_capture_together_whichever_is_ready_first(first: str, tmp_path: Path) -> None:
    graphs = Graphs()
    mailboxes = {name: f"ipc://{tmp_path}/{name}" for name in ("executor", "executor.1")}
    other = control.Peer("executor.1", 2, mailboxes["executor.1"])
    leader = Leader(*parts(), Capacity(9, 4), {}, graphs.of_rank(), followers=("executor.1",))
    follower = Follower("executor.1", 1, *parts(), {}, graphs.of_rank())
    known = {"executor.1": (other.epoch, other.mailbox)} if first == "executor.1" else {}
    made = [
        hosted(leader, 1, mailboxes["executor"], known),
        hosted(follower, 2, mailboxes["executor.1"], {"executor": (1, mailboxes["executor"])}),
    ]
    hosts, channels = [host for host, _ in made], [channel for _, channel in made]
    try:
        control.send(channels[0], control.Probe())
        with ThreadPoolExecutor(2) as pool:
            running = [pool.submit(run_blocking, host) for host in hosts]
            try:
                while not isinstance(control.receive(channels[0]), control.Report):
                    pass  # it has had its first turn
                control.send(channels[0], other)
                captured = graphs.captured.wait(2 * TIMEOUT_S)
            finally:
                for channel in channels:
                    control.send(channel, control.Stop())
            for loop in running:
                loop.result(TIMEOUT_S)
        assert captured
        assert [host.mailboxes.dead_letters for host in hosts] == [0, 0], "each was told of every graph"
    finally:
        for host, channel in zip(hosts, channels, strict=True):
            host.close()
            host.actor.pipeline.device.close()  # type: ignore[attr-defined]
            channel.close()
