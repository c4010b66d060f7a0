"""What the executor decides when it knows its device."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from slipstream.actors.executor.build import DeviceLost, choose_device, find_again
from slipstream.actors.executor.engine import max_batched_tokens
from slipstream.actors.options import ModelOptions
from slipstream.protocol.errors import InvalidRequest

from slipstream.options import ServeOptions
from slipstream.service import executor_options

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


def torch_with(devices: int) -> Any:
    cuda = SimpleNamespace(is_available=lambda: devices > 0, device_count=lambda: devices)
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


def test_ranks_share_a_cpu() -> None:
    options = ServeOptions(tensor_parallel_size=4)
    assert {choose_device(executor_options(options, MODEL, rank), torch_with(0)) for rank in range(4)} == {
        "cpu"
    }


def torch_whose_device(fails: Exception | None, devices: int = 1) -> Any:
    """What touches the device fails so."""

    def touch(*_: object, **__: object) -> None:
        if fails is not None:
            raise fails

    cuda = SimpleNamespace(is_available=lambda: devices > 0, device_count=lambda: devices, synchronize=touch)
    return SimpleNamespace(
        __version__="0",
        cuda=cuda,
        device=torch.device,
        empty=lambda *_, **__: None,
        OutOfMemoryError=torch.OutOfMemoryError,
    )


@pytest.mark.parametrize(
    ("device", "broken", "reason"),
    [
        ("cuda", torch_whose_device(None, devices=0), "torch 0 sees no CUDA device"),
        (
            "cuda:0",
            torch_whose_device(RuntimeError("CUDA error: unspecified\nfurther lines")),
            "CUDA error: unspecified$",
        ),
    ],
)
def test_a_device_that_served_and_is_not_there_any_more_is_lost_for_good(
    device: str, broken: Any, reason: str
) -> None:
    options = executor_options(ServeOptions(device=device), MODEL)
    assert find_again(options, torch_whose_device(None)) == torch.device("cuda", 0)
    with pytest.raises(
        DeviceLost, match=rf"device '{device}' served until now and cannot be used any more: .*{reason}"
    ) as lost:
        find_again(options, broken)
    assert lost.value.for_good


def test_a_device_that_is_full_is_not_lost() -> None:
    options = executor_options(ServeOptions(device="cuda"), MODEL)
    with pytest.raises(torch.OutOfMemoryError):
        find_again(options, torch_whose_device(torch.OutOfMemoryError("CUDA out of memory")))
