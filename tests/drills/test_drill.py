"""Actors of real services die, stand still and die again while streams are open: ``slipstream drill`` as tests."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from slipstream.protocol.actors import ACTORS
from slipstream.protocol.messages import Delta

from slipstream import Sidecar
from slipstream.drill.actors import STOPPED_S, Drill
from slipstream.drill.answers import Answer, Case, make_cases
from slipstream.drill.result import clean

BUSY = 10
"""By how much recovery may be slower in the short form, which other work shares the machine with."""


def drill(**options: Any) -> dict[str, Any]:
    result = asyncio.run(Drill(**options, say=print).run())
    print(json.dumps(result))
    assert clean(result), result
    return result


@pytest.mark.parametrize("rounds", [1, pytest.param(3, marks=pytest.mark.rest)])
def test_kill_9_of_each_actor_at_random_instants_loses_repeats_and_changes_no_token_of_64_streams(
    rounds: int, soak: bool
) -> None:
    rounds = 100 if soak else rounds
    result = drill(targets=ACTORS, rounds=rounds, streams=64)
    assert result["kills"] == 5 * rounds
    assert result["tokens"] > 64 * 300
    for actor, found in result["by_actor"].items():
        limit = 1000.0 if actor == "executor" else 500.0
        assert found["recovery_ms"]["p99"] < limit * (1 if soak else BUSY), actor


def test_the_same_on_the_cpu_device_with_the_bundled_model_greedy_and_sampled(soak: bool) -> None:
    assert {case.params.temperature for case in make_cases(64, "cpu")} == {0.0, 1.0}
    result = drill(targets=ACTORS, rounds=20 if soak else 1, streams=64 if soak else 24, device="cpu")
    assert result["kills"] == (100 if soak else 5)


@pytest.mark.rest
def test_an_executor_of_a_model_is_back_in_half_a_second_on_a_cpu(soak: bool) -> None:
    """It is forked from a spare, which has all imports and the weights."""
    result = drill(targets=("executor",), rounds=20 if soak else 2, streams=16, device="cpu")
    limits = {"p50": 500.0, "p99": 1000.0}
    for quantile, limit in limits.items():
        assert result["recovery_ms"][quantile] < limit * (1 if soak else BUSY / 2), quantile


@pytest.mark.rest
def test_a_planned_restart_of_each_actor_loses_nothing(soak: bool) -> None:
    drill(targets=ACTORS, rounds=20 if soak else 1, streams=32, fault="restart")


@pytest.mark.rest
def test_in_the_default_dtype_nothing_delivered_changes_and_the_rest_is_an_answer_of_the_model(
    soak: bool,
) -> None:
    """Tokens that are computed again may be others in bfloat16, so there is no single right answer."""
    targets = ACTORS if soak else ("scheduler", "executor")
    rounds, streams = (20, 64) if soak else (1, 16)
    result = drill(targets=targets, rounds=rounds, streams=streams, device="cpu", dtype="auto")
    assert result["kills"] == rounds * len(targets)
    assert result["tokens"] > streams * 60


@pytest.mark.rest
def test_a_batch_invariant_service_gives_the_same_answers_in_bfloat16_after_any_death(soak: bool) -> None:
    """Greedy and sampled, token by token and with their text."""
    targets = ACTORS if soak else ("scheduler", "executor")
    rounds, streams = (20, 64) if soak else (1, 16)
    result = drill(
        targets=targets, rounds=rounds, streams=streams, device="cpu", dtype="auto", batch_invariant=True
    )
    assert result["kills"] == rounds * len(targets)
    assert result["tokens"] > streams * 60


@pytest.mark.rest
def test_a_second_kill_during_the_recovery_changes_nothing(soak: bool) -> None:
    result = drill(targets=ACTORS, rounds=20 if soak else 1, streams=32, fault="twice")
    assert result["kills"] > (100 if soak else 5)


@pytest.mark.rest
def test_an_actor_that_stands_still_for_five_seconds_goes_on_as_if_nothing_had_been(soak: bool) -> None:
    """Shorter than the service's hang timeout: it is not ended."""
    targets = ACTORS if soak else ("scheduler",)
    result = drill(targets=targets, rounds=20 if soak else 1, streams=32, fault="stop")
    assert result["recovery_ms"]["max"] > STOPPED_S * 900 or "tokenizer" in result["by_actor"]


@pytest.fixture(scope="module")
def sidecar_cpu() -> Iterator[Sidecar]:
    with Sidecar(device="cpu", max_num_seqs=4) as sidecar:
        yield sidecar


# --- the comparison ----------------------------------------------------------------------------------------


def compared(got: list[int], text: str = "", *, finished: bool = True) -> tuple[int, int, int]:
    """What a drill says of an answer that must be 1 2 3 4 5 with the text "abc"."""
    drilled = Drill(("gateway",), 1, 1)
    case = drilled.cases[0]
    case.tokens, case.text = [1, 2, 3, 4, 5], "abc"
    answer = Answer(case)
    answer.take(Delta(id="1", token_ids=got, text=text or "abc"))
    answer.finished = finished
    drilled.counts.compare(answer)
    return drilled.counts.lost, drilled.counts.duplicated, drilled.counts.changed


def test_a_drill_counts_what_is_lost_repeated_and_changed() -> None:
    assert compared([1, 2, 3, 4, 5]) == (0, 0, 0)
    assert compared([1, 2, 4, 5]) == (1, 0, 0)
    assert compared([1, 2, 3]) == (2, 0, 0)
    assert compared([1, 2, 2, 3, 4, 5]) == (0, 1, 0)
    assert compared([1, 2, 9, 4, 5]) == (0, 0, 1)
    assert compared([1, 2, 3, 4, 5], "abcc") == (0, 0, 1)
    assert compared([1, 2], "ab", finished=False) == (0, 0, 0)
    assert compared([1, 9], "ab", finished=False) == (0, 0, 1)


def test_an_answer_with_a_token_lost_repeated_or_changed_is_not_one_of_the_models(
    sidecar_cpu: Sidecar,
) -> None:
    drilled = Drill(("gateway",), 1, 2, "cpu", "auto")
    assert [case.params.temperature for case in drilled.cases] == [1.0, 0.0]
    with sidecar_cpu.client() as client:
        answers = [client.generate(case.prompt, case.params).outputs[0].token_ids for case in drilled.cases]
    spoilt: dict[str, Callable[[list[int]], list[int]]] = {
        "nothing": lambda tokens: tokens,
        "lost": lambda tokens: [*tokens[:20], *tokens[21:]],
        "repeated": lambda tokens: [*tokens[:21], *tokens[20:]],
        "changed": lambda tokens: [*tokens[:20], 1999 - tokens[20], *tokens[21:]],
        "three lost": lambda tokens: [*tokens[:20], *tokens[23:], *tokens[-3:]],
    }

    async def counted(case: Case, tokens: list[int]) -> tuple[int, int, int]:
        drilled.counts.lost = drilled.counts.duplicated = drilled.counts.changed = 0
        read = Answer(case)
        read.tokens, read.finished = tokens, True
        async with sidecar_cpu.async_client() as client:
            await drilled.counts.check(read, client)
        return drilled.counts.lost, drilled.counts.duplicated, drilled.counts.changed

    for case, answer in zip(drilled.cases, answers, strict=True):
        found = {name: asyncio.run(counted(case, spoil(answer))) for name, spoil in spoilt.items()}
        assert found["nothing"] == (0, 0, 0)
        assert found["lost"][0] == 1
        assert found["repeated"][1] == 1
        assert found["changed"][2] > 0
        assert found["three lost"][:2] == (0, 0)
        assert found["three lost"][2] > 0


def test_the_command_prints_the_result_as_json_and_says_by_its_exit_code_whether_it_is_clean() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "slipstream",
            "drill",
            "--kill=tokenizer",
            "--rounds=1",
            "--streams=2",
            "--json=-",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    keys = (
        "kills",
        "streams",
        "tokens",
        "lost",
        "duplicated",
        "changed",
        "unfinished",
        "recovery_ms",
        "by_actor",
    )
    assert set(keys) <= result.keys()
    assert (result["kills"], result["streams"]) == (1, 2)
    assert set(result["recovery_ms"]) == {"p50", "p99", "max"}
    assert set(result["by_actor"]) == {"tokenizer"}
