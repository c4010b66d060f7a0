"""What the executor decides when it knows its device."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from rank_threads import at_once, groups
from slipstream.actors.executor.executor import Executor
from slipstream.actors.executor.model.adapters.loaded import LoadedAdapters
from slipstream.actors.executor.start import build
from slipstream.actors.executor.start.device_choice import DeviceLost, choose_device, found_again
from slipstream.actors.executor.start.engine import max_batched_tokens
from slipstream.actors.executor.start.imports import import_libraries
from slipstream.actors.executor.start.load_folder import leave_out_what_others_lack
from slipstream.actors.options import ModelOptions
from slipstream.actors.scheduler.config import SchedulerConfig
from slipstream.actors.scheduler.scheduler import Scheduler
from slipstream.protocol.errors import InvalidRequest
from slipstream.protocol.internal import Adapter
from slipstream.runtime.process.child import ProcessStart

from slipstream.options.serve import ServeOptions
from slipstream.serving.service import executor_options

MODEL = ModelOptions(model="/nowhere", vocab_size=10, max_model_len=10, eos_token_ids=())


@pytest.mark.parametrize(
    ("device", "stated", "slots", "tokens"),
    [
        ("cuda:1", None, 256, 2048),
        ("cpu", None, 256, 512),
        ("emulated", None, 256, 2048),
        ("cpu", None, 1000, 1000),
        ("cuda:0", 64, 16, 64),
    ],
)
def test_a_step_has_as_many_tokens_as_stated_or_as_suit_the_device_and_one_for_each_sequence(
    device: str, stated: int | None, slots: int, tokens: int
) -> None:
    options = executor_options(ServeOptions(max_num_batched_tokens=stated, max_num_seqs=slots), MODEL)
    assert max_batched_tokens(options, device) == tokens


def torch_with(devices: int, capability: tuple[int, int] = (9, 0)) -> Any:
    cuda = SimpleNamespace(
        is_available=lambda: devices > 0,
        device_count=lambda: devices,
        get_device_capability=lambda device: capability,
    )
    return SimpleNamespace(__version__="0", cuda=cuda)


@pytest.mark.parametrize(("device", "first"), [("auto", 0), ("cuda", 0), ("cuda:2", 2)])
def test_each_rank_has_a_device_of_its_own(device: str, first: int) -> None:
    options = ServeOptions(device=device, tensor_parallel_size=2)
    ranks = [executor_options(options, MODEL, rank) for rank in range(2)]
    assert [choose_device(own, torch_with(4)) for own in ranks] == [f"cuda:{first}", f"cuda:{first + 1}"]


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ("auto", "tensor_parallel_size=4: .* torch sees 3 CUDA devices$"),
        ("cuda:1", "torch sees 3 CUDA devices, 2 of them from cuda:1 on$"),
    ],
)
def test_more_ranks_than_devices_are_refused_by_every_rank(device: str, reason: str) -> None:
    options = ServeOptions(device=device, tensor_parallel_size=4)
    for rank in range(4):
        with pytest.raises(InvalidRequest, match=reason):
            choose_device(executor_options(options, MODEL, rank), torch_with(3))


@pytest.mark.parametrize("device", ["auto", "cuda:1"])
def test_an_fp8_cache_on_a_gpu_without_fp8_is_refused_in_a_sentence(device: str) -> None:
    options = executor_options(ServeOptions(device=device, kv_cache_dtype="fp8"), MODEL)
    with pytest.raises(InvalidRequest, match=r"cuda:\d has compute capability 8\.6, and FP8 needs 8\.9"):
        choose_device(options, torch_with(2, (8, 6)))
    assert choose_device(options, torch_with(2, (8, 9))).startswith("cuda:")
    assert choose_device(replace(options, attention_backend="torch"), torch_with(2, (8, 6)))
    assert choose_device(replace(options, kv_cache_dtype="auto"), torch_with(2, (8, 6)))


def test_ranks_share_a_cpu() -> None:
    options = ServeOptions(tensor_parallel_size=4)
    assert {choose_device(executor_options(options, MODEL, rank), torch_with(0)) for rank in range(4)} == {
        "cpu"
    }


@pytest.mark.parametrize(
    "error",
    [InvalidRequest("torch sees no CUDA device"), RuntimeError("torch sees no CUDA device\nfurther lines")],
)
def test_a_device_that_served_and_cannot_be_used_any_more_is_lost_for_good(error: Exception) -> None:
    options = executor_options(ServeOptions(device="cuda"), MODEL)
    told = r"^device 'cuda' served until now and cannot be used any more: torch sees no CUDA device$"
    with pytest.raises(DeviceLost, match=told) as lost, found_again(options, torch):
        raise error
    assert lost.value.for_good


def test_a_device_that_is_full_is_not_lost() -> None:
    options = executor_options(ServeOptions(device="cuda"), MODEL)
    with pytest.raises(torch.OutOfMemoryError), found_again(options, torch):
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("restarted", [False, True])
def test_a_gpu_that_is_not_there_is_the_users_mistake_at_first_and_lost_later(restarted: bool) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    options = executor_options(ServeOptions(device="cuda"), MODEL)
    context = ProcessStart({}, restarted=restarted)
    with pytest.raises(DeviceLost if restarted else InvalidRequest, match="sees no CUDA device"):
        import_libraries(context, options)


def test_the_ledger_of_an_emulated_cache_is_no_larger_than_one_that_is_built_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As long and as many as options allow: 67 million blocks, whose lists took 4.8 GB and longer than the watch."""
    monkeypatch.setattr(build, "load_grammars", lambda *about: "this model has no tokenizer")
    slots, length = 1024, 1 << 20
    served = ServeOptions(device="emulated", max_num_seqs=slots)
    options = executor_options(served, replace(MODEL, max_model_len=length))
    executor = build.build(ProcessStart(msgspec.to_builtins(options)))
    assert isinstance(executor, Executor)
    scheduler = Scheduler(SchedulerConfig(slots, None, length, 2, ()))
    tracemalloc.start()
    scheduler.receive("executor", executor.capacity, 1.0)
    ledger_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ledger_bytes < 100 << 20
    assert scheduler.holdings.longest is not None
    assert scheduler.holdings.longest >= length, "and one sequence of the full length has its blocks"


class Weights:
    """Room for adapters, without weights."""

    count = 3

    def load(self, adapter: Adapter) -> Iterator[None]:
        yield from ()


def test_an_adapter_that_one_rank_could_not_load_again_is_left_out_by_all(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ranks = [LoadedAdapters(Weights()), LoadedAdapters(Weights())]
    for kept, ids in zip(ranks, ([1, 2], [2]), strict=True):
        kept.start([Adapter(id, f"adapter {id}", "/a") for id in ids])
    at_once(
        lambda kept, group: leave_out_what_others_lack(kept, group, torch.device("cpu")), ranks, groups(2)
    )
    assert [sorted(kept.loaded) for kept in ranks] == [[2], [2]]
    assert "the adapter 'adapter 1' is not loaded on another rank: it is left out" in caplog.text
