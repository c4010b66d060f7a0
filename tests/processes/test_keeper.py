"""The keeper of the weights, with real processes: an executor that starts again finds them, whoever else has died."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import Background, alive, until
from slipstream.protocol.errors import ServiceUnavailable
from slipstream.runtime.keeping import Keeper

from slipstream import InvalidRequest, SamplingParams, Sidecar

KEEPER, SPARE, EXECUTOR = "weights.keeper", "executor.spare", "executor"
ALL = {"gateway", "tokenizer", "scheduler", EXECUTOR, "detokenizer", SPARE, KEEPER}
PARAMS = SamplingParams(max_tokens=200, ignore_eos=True, seed=5)
OPTIONS: dict[str, Any] = dict(
    device="cpu",
    dtype="float32",
    max_num_seqs=4,
    kv_cache_memory=8 << 20,
    spare_executor="on",
    weights_keeper="on",
)
ANEW = "the weights are loaded anew"


def whole(sidecar: Sidecar, names: set[str] = ALL) -> dict[str, dict[str, Any]]:
    """All processes, when each is ready."""
    found: dict[str, dict[str, Any]] = {}

    def ready() -> bool:
        nonlocal found
        try:
            found = sidecar.actors
        except ServiceUnavailable:
            return False
        return found.keys() == names and all(state["state"] == "ready" for state in found.values())

    until(ready, "all are ready")
    return found


@pytest.fixture(scope="module")
def service() -> Iterator[Sidecar]:
    with Sidecar(**OPTIONS) as sidecar:
        whole(sidecar)
        yield sidecar


@pytest.fixture
def sidecar(service: Sidecar) -> Sidecar:
    """With weights that are kept, whatever happened before: a planned restart is none of the deaths in a row."""
    before = whole(service)[EXECUTOR]["pid"]
    service.restart(EXECUTOR)
    until(lambda: whole(service)[EXECUTOR]["pid"] != before, "there is another executor")
    kept(service)
    return service


def weights_of(pid: int) -> set[str]:
    """The inodes of the weights that a process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split()[4] for line in lines if "/memfd:weights" in line}


def held_by(pid: int) -> set[str]:
    """Those of the weights that it has open."""
    found: set[str] = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        if os.readlink(file).startswith("/memfd:weights"):
            found.add(str(file.stat().st_ino))
    return found


def kept(sidecar: Sidecar) -> set[str]:
    """The weights of the executor, when the keeper has them."""

    def held() -> bool:
        found = whole(sidecar)
        return held_by(found[KEEPER]["pid"]) == weights_of(found[EXECUTOR]["pid"]) != set()

    until(held, "the keeper has the weights of the executor")
    return weights_of(whole(sidecar)[EXECUTOR]["pid"])


def go_on(sidecar: Sidecar, *hits: tuple[str, signal.Signals]) -> str:
    """A stream goes on with the same tokens when these processes are hit; what the service logs meanwhile."""
    expected = Background(sidecar, "Once upon a time", PARAMS)
    assert expected.end() == "length"
    pids = {name: state["pid"] for name, state in whole(sidecar).items()}
    logged = len(sidecar.log)
    stream = Background(sidecar, "Once upon a time", PARAMS).begun()
    for name, number in hits:
        os.kill(pids[name], number)
    assert stream.end() == "length"
    assert stream.tokens == expected.tokens
    until(
        lambda: all(whole(sidecar)[name]["pid"] != pids[name] for name, _ in hits),
        "all that were hit are back",
    )
    return sidecar.log[logged:]


def test_an_executor_that_starts_again_has_the_weights_of_the_one_before(sidecar: Sidecar) -> None:
    before = whole(sidecar)
    weights = kept(sidecar)
    assert ANEW not in go_on(sidecar, (EXECUTOR, signal.SIGKILL))
    after = whole(sidecar)
    assert after[EXECUTOR]["pid"] != before[EXECUTOR]["pid"]
    assert after[KEEPER]["pid"] == before[KEEPER]["pid"]
    assert weights_of(after[EXECUTOR]["pid"]) == weights


def test_nobody_can_write_to_the_weights(sidecar: Sidecar) -> None:
    lines = Path(f"/proc/{whole(sidecar)[EXECUTOR]['pid']}/maps").read_text().splitlines()
    assert {line.split()[1] for line in lines if "/memfd:weights" in line} == {"r--s"}


def test_the_keeper_is_a_child_with_a_role_that_maps_nothing_and_takes_little_memory(
    sidecar: Sidecar,
) -> None:
    state = whole(sidecar)[KEEPER]
    assert (state["role"], state["state"]) == ("keeper", "ready")
    assert KEEPER not in sidecar.pids
    process = psutil.Process(state["pid"])
    assert process.ppid() == sidecar.pid
    assert weights_of(state["pid"]) == set()
    assert not any("torch" in line for line in Path(f"/proc/{state['pid']}/maps").read_text().splitlines())
    memory = process.memory_info().rss
    print(f"the keeper: {memory >> 20} MB beyond the weights")
    assert memory < 40 << 20
    with sidecar.client() as client:
        health = client.actors()
    assert health.ready
    assert [actor.role for actor in health.actors if actor.name == KEEPER] == ["keeper"]


def test_a_keeper_that_dies_harms_no_stream_and_the_next_one_is_given_the_weights_again(
    sidecar: Sidecar,
) -> None:
    executor, weights = whole(sidecar)[EXECUTOR]["pid"], kept(sidecar)
    assert KEEPER in go_on(sidecar, (KEEPER, signal.SIGKILL))
    assert whole(sidecar)[EXECUTOR]["pid"] == executor
    assert kept(sidecar) == weights
    assert ANEW not in go_on(sidecar, (EXECUTOR, signal.SIGKILL))
    assert kept(sidecar) == weights


@pytest.mark.rest
def test_keeper_spare_and_executor_may_die_at_once_and_the_weights_are_loaded_anew(sidecar: Sidecar) -> None:
    kill, weights = signal.SIGKILL, kept(sidecar)
    assert ANEW in go_on(sidecar, (KEEPER, kill), (SPARE, kill), (EXECUTOR, kill))
    assert kept(sidecar).isdisjoint(weights)


@pytest.mark.rest
def test_a_keeper_that_is_stopped_is_ended_before_the_weights_are_loaded_anew(sidecar: Sidecar) -> None:
    log = go_on(sidecar, (KEEPER, signal.SIGSTOP), (EXECUTOR, signal.SIGKILL))
    assert log.index("does not answer: ending it") < log.index(ANEW)
    assert kept(sidecar)


def test_weights_that_are_of_no_use_are_let_go_and_loaded_anew(sidecar: Sidecar) -> None:
    keeper = Keeper(sidecar.ready["control"].removeprefix("ipc://").replace("/control", "/keeper"), "weights")
    damaged = os.memfd_create("table")
    os.write(damaged, b"no table")
    with keeper.connected() as connection:
        keeper.ask(connection, b"keep", [damaged])
    os.close(damaged)
    assert f"{ANEW}: those that are kept are of no use" in go_on(sidecar, (EXECUTOR, signal.SIGKILL))
    assert kept(sidecar)


@pytest.mark.rest
def test_a_keeper_that_is_stopped_does_not_outlive_a_killed_supervisor() -> None:
    sidecar = Sidecar(**OPTIONS)
    pids = {name: state["pid"] for name, state in whole(sidecar).items()}
    os.kill(pids[KEEPER], signal.SIGSTOP)
    os.kill(sidecar.pid, signal.SIGKILL)
    until(lambda: alive(list(pids.values())) == [], "all have ended, and their memory with them", 1.0)
    sidecar.stop()


@pytest.mark.rest
def test_ranks_that_start_again_have_their_parts_of_the_ones_before() -> None:
    with Sidecar(**OPTIONS, tensor_parallel_size=2, quantization="int8") as sidecar:
        assert "rounded to int8" in sidecar.log
        names = {*ALL, "executor.1"}
        first = whole(sidecar, names)
        weights = {rank: weights_of(first[rank]["pid"]) for rank in (EXECUTOR, "executor.1")}
        both = weights[EXECUTOR] | weights["executor.1"]
        until(lambda: held_by(first[KEEPER]["pid"]) == both, "the keeper has the parts of both")
        assert len(both) == 2
        expected = Background(sidecar, "Once upon a time", PARAMS)
        assert expected.end() == "length"
        stream = Background(sidecar, "Once upon a time", PARAMS).begun()
        os.kill(first["executor.1"]["pid"], signal.SIGKILL)
        assert stream.end() == "length"
        assert stream.tokens == expected.tokens
        second = whole(sidecar, names)
        assert all(second[rank]["pid"] != first[rank]["pid"] for rank in weights)
        assert {rank: weights_of(second[rank]["pid"]) for rank in weights} == weights
        assert ANEW not in sidecar.log


def test_a_keeper_has_no_effect_on_the_emulated_device() -> None:
    with pytest.raises(InvalidRequest, match="weights_keeper=on has no effect"):
        Sidecar(device="emulated", weights_keeper="on")
