"""Kernels are compiled side by side before the first launch; nothing is launched meanwhile, and nothing compiled after.

Triton compiles for an H200, on a machine without a GPU.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from slipstream.actors.executor.triton_tools.compilation import compile_ahead

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1",
    reason="needs Triton's compiler",
)

DEVICE = 99
"""No real one, so that what is compiled here is nobody else's."""
GPU = torch.device("cuda", DEVICE)


class Driver:
    """What Triton asks of a GPU before it launches."""

    def get_current_device(self) -> int:
        return DEVICE

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """The kernels that were compiled; one for which no other is compiled at the same time never is."""
    import triton
    from slipstream.actors.executor.model.fused import triton_operations
    from triton.runtime import driver

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found: list[str] = []
    both = threading.Barrier(2, timeout=60.0)
    compile_one = triton.compile

    def noted(source: Any, **options: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            both.wait()
        found.append(source.fn.__name__)
        return compile_one(source, **options)

    monkeypatch.setattr("triton.compiler.compile", noted)
    monkeypatch.setattr(driver, "_active", Driver())
    yield found
    for kernel in (triton_operations.norm_kernel, triton_operations._gate_kernel):
        kernel.device_caches.pop(DEVICE, None)


def work() -> None:
    from slipstream.actors.executor.model.fused.operations import Norm
    from slipstream.actors.executor.model.fused.triton_operations import TritonOperations

    states = torch.zeros(3, 64, dtype=torch.bfloat16)
    operations = TritonOperations()
    operations.norm(states, Norm(torch.nn.Parameter(torch.ones(64, dtype=torch.bfloat16)), 1e-6, 0.0))
    operations.gate(states, "silu")


def test_all_kernels_are_compiled_at_once_and_none_is_launched(compiled: list[str]) -> None:
    compile_ahead(GPU, work)
    assert sorted(compiled) == ["_gate_kernel", "norm_kernel"]


def test_kernels_between_ranks_are_the_same_for_any_number_of_rows(compiled: list[str]) -> None:
    """None is compiled in the middle of serving, while the other ranks wait in theirs."""
    from slipstream.actors.executor.model.fused.norm_kernels import sum_add_norm_kernel
    from slipstream.actors.executor.model.fused.operations import Norm
    from slipstream.actors.executor.model.fused.triton_operations import TritonOperations
    from slipstream.actors.executor.ranks import exchange_kernels
    from slipstream.actors.executor.ranks.exchange import PeerExchange, shape_of_halves
    from slipstream.actors.executor.ranks.group import RankGroup
    from slipstream.actors.executor.ranks.layers import Unsummed

    group, width = RankGroup(0, 2, None), 4096
    group.exchange = PeerExchange(
        0, torch.zeros(shape_of_halves(2, 2 << 20), dtype=torch.int64), [0, 1 << 40], 128
    )
    norm = Norm(torch.nn.Parameter(torch.ones(width, dtype=torch.bfloat16)), 1e-6, 0.0)

    def work() -> None:
        for rows in (1, 2, 16, 33, 64, 150, 256):
            states = torch.zeros(rows, width, dtype=torch.bfloat16)
            group.sum(states)
            group.gather(states[:, :512].contiguous(), 1024)
            group.broadcast(torch.zeros(rows, dtype=torch.int32))
            with torch.inference_mode():
                TritonOperations().add_norm(states, Unsummed(states, group), None, 1.0, norm)

    try:
        compile_ahead(GPU, work)
    finally:
        for kernel in (
            exchange_kernels._sum_kernel,
            exchange_kernels._gather_kernel,
            exchange_kernels._broadcast_kernel,
            sum_add_norm_kernel,
        ):
            kernel.device_caches.pop(DEVICE, None)
    assert sorted(compiled) == ["_broadcast_kernel", "_gather_kernel", "_sum_kernel", "sum_add_norm_kernel"]


def test_after_it_a_launch_is_a_launch_again(compiled: list[str]) -> None:
    from slipstream.actors.executor.model.fused import triton_operations

    compile_ahead(GPU, work)
    compiled.clear()
    launched: list[bool] = []
    kernel: Any = triton_operations.norm_kernel
    original = type(kernel).run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(kernel), "run", lambda self, *given, warmup, **named: launched.append(not warmup))
        work()
    assert type(kernel).run is original
    assert launched == [True, True]
    assert compiled == []


def test_an_error_of_the_work_ends_it(compiled: list[str]) -> None:
    import triton

    with pytest.raises(ZeroDivisionError):
        compile_ahead(GPU, lambda: 1 // 0)
    assert "__getitem__" not in vars(triton.JITFunction)


def test_after_a_kernel_that_does_not_compile_others_do(compiled: list[str]) -> None:
    import triton

    def fail(*given: Any) -> None:
        """As Triton 3.6, which leaves its mode on."""
        raise RuntimeError("PassManager::run failed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton.AsyncCompileMode, "__exit__", fail)
        with pytest.raises(RuntimeError, match="PassManager"):
            compile_ahead(GPU, lambda: None)
    compile_ahead(GPU, work)
    assert sorted(compiled) == ["_gate_kernel", "norm_kernel"]


def test_what_a_kernel_would_have_written_is_an_index_that_is_there(compiled: list[str]) -> None:
    """It is not launched, and torch goes on with what it leaves: an index out of bounds would end the GPU's context."""
    size = 1 << 12
    like = torch.full((size,), 7)
    found: list[torch.Tensor] = []

    def work_with_indices() -> None:
        for _ in range(20):
            del found[:]
            found.extend(torch.full((size,), 1 << 40) for _ in range(5))
            del found[:]  # its memory is what comes next
            found.append(torch.empty(size, dtype=torch.int64))
            found.append(like.new_empty(size))
            found.append(torch.empty_like(like))
            found.append(torch.empty_strided((size,), (1,), dtype=torch.int64))
            found.append(like.new_empty_strided((size,), (1,)))
            assert all(like[made].eq(7).all() for made in found)

    compile_ahead(GPU, work_with_indices)
    assert all(not made.any() for made in found)


def test_garbage_is_not_collected_meanwhile(compiled: list[str]) -> None:
    """In Python 3.11 a thread that parses loses count when a finalizer lets another one parse (``SystemError: AST
    constructor recursion depth mismatch``), and Triton parses what it compiles."""
    collected, found = list[str](), list[str]()

    def note(phase: str, _: object) -> None:
        collected.append(phase)
        time.sleep(0.0)  # as a finalizer that waits for something: other threads go on

    thresholds = gc.get_threshold()
    gc.callbacks.append(note)
    gc.set_threshold(50, 2, 2)
    try:
        compile_ahead(GPU, lambda: (collected.clear(), work(), found.extend(collected)))
    finally:
        gc.callbacks.remove(note)
        gc.set_threshold(*thresholds)
    assert found == []
    assert sorted(compiled) == ["_gate_kernel", "norm_kernel"]
    assert gc.isenabled()


def test_nothing_happens_on_a_cpu() -> None:
    compile_ahead(torch.device("cpu"), lambda: pytest.fail("there is nothing to compile"))
