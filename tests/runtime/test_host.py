"""What the process around an actor promises, with real processes."""

from __future__ import annotations

import ctypes
import socket
import subprocess
import sys
import tracemalloc

import pytest
from processes import Planted
from slipstream.runtime.process.public_socket import most_connections
from slipstream.runtime.supervision import control

from slipstream import SamplingParams


def test_steps_whose_launch_takes_as_long_as_they_are_handed_over_one_by_one() -> None:
    """Not in pairs, of which one token has waited for the launch of the next step."""
    with (
        Planted({"executor": "planted:launching_executor"}, "--emulated-step-ms=30") as service,
        service.client() as client,
    ):
        client.generate([5, 6, 7], SamplingParams(max_tokens=60, ignore_eos=True))
        told = [span for span in client.trace().spans("executor") if span.name == "Sampled"]
        steps = client.stats()["steps"]
        print(f"{steps:g} steps were handed over in {len(told)} turns")
        assert steps >= 60
        assert len(told) > 0.8 * steps


def test_what_is_due_between_steps_is_done_where_the_next_plan_is_there_when_a_step_was_launched() -> None:
    """As after a restart on a GPU, where each launch takes longer than the step: else full speed never came."""
    with (
        Planted({"executor": "planted:catching_up_executor"}, "--emulated-step-ms=5") as service,
        service.client() as client,
    ):
        client.generate([5, 6, 7], SamplingParams(max_tokens=150, ignore_eos=True))
        (state,) = [actor for actor in client.actors().actors if actor.name == "executor"]
    assert state.full_speed_s is not None, "not while 150 steps were launched, of which 60 leave time enough"
    assert state.ready_s is not None
    assert state.full_speed_s > state.ready_s


PIECES = """
import psutil
from slipstream.runtime.process.child import give_memory_back

give_memory_back()
before = psutil.Process().memory_info().rss
kept = []
for _ in range(2):  # the C library changes its ways when the first large piece is freed
    large = []
    for _ in range(32):
        large.append(b"x" * (1 << 20))
        kept.append(bytes(20_000))
    del large
print(psutil.Process().memory_info().rss - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library has no such choice")
def test_what_large_pieces_took_goes_back_to_the_system_whatever_small_ones_lie_between() -> None:
    done = subprocess.run([sys.executable, "-c", PIECES], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4e6


@pytest.mark.parametrize(("descriptors", "most"), [(400, 100), (65_536, 16_384), (1 << 20, 16_384)])
def test_connections_leave_most_descriptors_free_for_a_burst(descriptors: int, most: int) -> None:
    """ZeroMQ accepts beside the host, and ends the process at the last one."""
    assert most_connections(descriptors) == most


def test_a_turn_at_which_the_supervisor_says_nothing_takes_no_memory_for_a_packet() -> None:
    """The system mapped it and took it back, at each turn and for each message: 10 us."""
    channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with channel, other:
        channel.setblocking(False)
        tracemalloc.start()
        with pytest.raises(BlockingIOError):
            control.receive(channel)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < control.MAX_PACKET / 4
        control.send(other, control.Probe())
        assert control.receive(channel) == control.Probe()
        other.close()
        assert control.receive(channel) is None
