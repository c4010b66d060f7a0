"""What a client costs to import: little, and nothing of the engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

HEAVY = ["torch", "transformers", "tokenizers", "numpy", "uvloop", "jinja2", "safetensors", "multiprocessing"]

LIMIT_MS = 100.0


def imported(statement: str) -> tuple[float, set[str]]:
    """Milliseconds of the processor that a statement takes in a fresh process, and the modules that are there after."""
    program = f"""
import time
begun = time.process_time()
{statement}
spent = time.process_time() - begun
import json, sys
print(json.dumps([spent * 1000, sorted(sys.modules)]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    spent, modules = json.loads(done.stdout.splitlines()[-1])
    return spent, set(modules)


@pytest.mark.parametrize("name", ["AsyncClient", "Client"])
def test_client_import_is_light_and_quick(name: str) -> None:
    """The best of many runs, in time of the processor, which other work on the machine hardly lengthens."""
    best = float("inf")
    for _ in range(60):
        spent, modules = imported(f"from slipstream import {name}, SamplingParams")
        assert modules.isdisjoint(HEAVY)
        best = min(best, spent)
        if best < LIMIT_MS:
            break
    print(f"from slipstream import {name}: {best:.0f} ms")
    assert best < LIMIT_MS


@pytest.mark.parametrize("name", ["LLM", "Sidecar"])
def test_ways_to_own_a_service_load_no_engine_into_the_program(name: str) -> None:
    assert imported(f"from slipstream import {name}")[1].isdisjoint(HEAVY)


def test_the_package_itself_loads_nothing() -> None:
    modules = imported("import slipstream")[1]
    assert modules.isdisjoint([*HEAVY, "zmq", "msgspec", "msgpack", "asyncio"])
    assert {name for name in modules if name.startswith("slipstream.")} == set()


def test_an_actor_that_blocks_loads_no_event_loop() -> None:
    modules = imported("import slipstream.runtime.process.child, slipstream.actors.scheduler.scheduler")[1]
    assert modules.isdisjoint(["asyncio", "uvloop", "ssl", "torch", "tokenizers"])


def test_the_process_of_an_actor_has_no_threads_of_numpy() -> None:
    """Its library starts one for every other core, each of which spins for a while."""
    program = """
import os
from slipstream.runtime.process.set_up import set_up
set_up(os.getppid())
import numpy
print(len(os.listdir("/proc/self/task")))
"""
    given = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=given)
    assert done.stdout.split() == ["1"], done.stderr


def test_every_public_name_is_there() -> None:
    import slipstream

    for name in slipstream.__all__:
        assert getattr(slipstream, name) is not None
    assert set(slipstream.__all__) <= set(dir(slipstream))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = slipstream.Nothing  # type: ignore[attr-defined]
