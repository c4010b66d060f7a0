"""The kernels of a step that only decodes leave in the slots what plain torch leaves there.

On a CUDA device the tests run as they are. Without one they run in Triton's interpreter, in a process of
their own: its switch must be set before ``triton`` is first imported and holds for the whole process.
"""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from interpreter import DEVICE, needs_interpreter, needs_kernels, run_interpreted
from slipstream.actors.executor.step.fields import JOIN, NO_STOP_TOKEN, column
from slipstream.actors.executor.step.slot_table import DecodeInputs, DeviceSlotTable
from torch import Tensor

SLOTS, LENGTH, BLOCK, VOCAB = 70, 64, 8, 50
NULL = SLOTS


@needs_interpreter
def test_under_the_interpreter() -> None:
    run_interpreted(__file__)


def make_table(seed: int) -> tuple[DeviceSlotTable, Tensor]:
    """Slots in the middle of their sequences, some of them finished, and the tokens of the cache."""
    draw = torch.Generator().manual_seed(seed)

    def numbers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=draw)

    table = DeviceSlotTable(SLOTS, LENGTH, LENGTH // BLOCK, torch.device("cpu"))
    table.tokens.copy_(numbers(0, VOCAB, *table.tokens.shape))
    table.block_table[:SLOTS] = (
        torch.randperm(SLOTS * LENGTH // BLOCK, generator=draw).add(1).view(SLOTS, -1).int()
    )
    table.position[:SLOTS] = numbers(0, LENGTH - 1, SLOTS)
    table.finished[:SLOTS] = numbers(0, 3, SLOTS) == 0
    column(table.requests, JOIN, "max_length").copy_(numbers(1, LENGTH, SLOTS + 1))
    stops = column(table.requests, JOIN, "stop_tokens")
    stops.fill_(NO_STOP_TOKEN)
    stops[::2, :2] = numbers(0, VOCAB, len(stops[::2]), 2).int()
    stops[::5, -1] = numbers(0, VOCAB, len(stops[::5])).int()
    return table, torch.zeros((1 + SLOTS * LENGTH // BLOCK) * BLOCK, dtype=torch.int32)


def rows_of(seed: int, padding: int) -> Tensor:
    slots = torch.randperm(SLOTS, generator=torch.Generator().manual_seed(seed))[: SLOTS - 3]
    return torch.cat((slots, torch.full((padding,), NULL))).int()


def on_device(table: DeviceSlotTable) -> DeviceSlotTable:
    moved = deepcopy(table)
    for name, tensor in vars(moved).items():
        if isinstance(tensor, Tensor):
            setattr(moved, name, tensor.to(DEVICE))
    return moved


def assert_same(found: DeviceSlotTable, expected: DeviceSlotTable) -> None:
    for name, tensor in vars(expected).items():
        assert not isinstance(tensor, Tensor) or torch.equal(getattr(found, name).cpu(), tensor), name


@needs_kernels
@pytest.mark.parametrize("padding", [0, 1, 40])
def test_each_row_takes_its_next_token_and_moves_on(padding: int) -> None:
    from slipstream.actors.executor.step.kernels import gather

    table, block_tokens = make_table(padding)
    slots = rows_of(padding, padding)
    copy, copied = on_device(table), block_tokens.to(DEVICE)
    expected = table.gather(slots, block_tokens, BLOCK)
    own = (copy.position, copy.finished, copy.tokens, copy.block_table)
    found = DecodeInputs(*(torch.zeros_like(tensor).to(DEVICE) for tensor in expected))
    gather(slots.to(DEVICE), *own, copied, BLOCK, found)
    for name, tensor, wanted in zip(expected._fields, found, expected, strict=True):
        assert tensor.dtype == wanted.dtype
        assert torch.equal(tensor.cpu(), wanted), name
    assert_same(copy, table)
    assert torch.equal(copied.cpu(), block_tokens)
    assert (table.position[:SLOTS] != make_table(padding)[0].position[:SLOTS]).any()


@needs_kernels
@pytest.mark.parametrize("padding", [0, 1, 40])
def test_new_tokens_go_to_the_table_and_end_who_has_what_ends_it(padding: int) -> None:
    from slipstream.actors.executor.step.kernels import scatter

    table, _ = make_table(padding)
    slots = rows_of(padding, padding)
    sampled = torch.randint(0, VOCAB, slots.shape, generator=torch.Generator().manual_seed(9)).int()
    copy = on_device(table)
    expected, found = torch.zeros_like(slots), torch.zeros_like(slots).to(DEVICE)
    before = table.finished.clone()
    table.scatter(slots, sampled, expected)
    own = (copy.position, copy.finished, copy.tokens, copy.requests)
    scatter(slots.to(DEVICE), sampled.to(DEVICE), *own, found)
    assert torch.equal(found.cpu(), expected)
    assert_same(copy, table)
    assert int((table.finished & ~before).sum()) > 10, "some end in this step"
    assert bool((~table.finished[slots[slots != NULL].long()]).any()), "and some go on"
