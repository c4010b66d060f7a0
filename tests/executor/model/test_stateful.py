"""Modules that keep a state: how a step is parted for them, and what is found out about them when a model is loaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from slipstream.actors.executor.cache.paged import KVCache, PagedBatch
from slipstream.actors.executor.cache.state import StateKey, StateLayout, StateSlots
from slipstream.actors.executor.model.load import from_config
from slipstream.actors.executor.model.stateful.module import RowStates, StatefulModule
from slipstream.actors.executor.model.stateful.running import parts_of
from slipstream.actors.executor.model.stateful.trial import trial_of
from tiny_models import STATEFUL, make_config
from torch import Tensor, nn

CPU = torch.device("cpu")
LAYOUT = StateLayout(
    (
        (StateKey(0, "conv", 0), (3, 2), torch.float32),
        (StateKey(0, "recurrent", 0), (3,), torch.float32),
        (StateKey(1, "conv", 0), (1, 4), torch.bfloat16),
    )
)

torch.set_num_threads(1)


def batch_of(rows: list[int], counts: list[int], *, padding: int = 0, states: StateSlots) -> PagedBatch:
    tokens = sum(counts) + padding
    return PagedBatch(
        cache=KVCache(1, [], []),
        rows=torch.tensor(rows),
        kv_lens=torch.tensor(counts),
        query_start=torch.tensor([0]),
        write_index=torch.zeros(tokens, dtype=torch.int64),
        block_table=torch.zeros(1, 1),
        decode_only=set(counts) == {1} and not padding,
        max_kv_len=1,
        states=states,
        row_tokens=tuple(counts),
    )


def test_states_of_all_layers_lie_beside_each_other_and_are_cleared_together() -> None:
    slots = StateSlots(LAYOUT, 4, CPU)
    assert LAYOUT.bytes_per_slot == (6 + 3) * 4 + 4 * 2
    for state in slots.states.values():
        state.fill_(1)
    slots.clear(torch.tensor([2, 0]))
    for state in slots.states.values():
        assert [bool(one.any()) for one in state] == [False, True, False, True]
    assert {tuple(pool.shape) for pool in slots.pools.values()} == {(4, 9), (4, 4)}


def test_rows_that_decode_are_one_part_and_each_chunk_another() -> None:
    slots = StateSlots(LAYOUT, 8, CPU)
    found = parts_of(batch_of([5, 2, 7, 1], [1, 1, 3, 1], padding=4, states=slots))
    assert [(part.start, part.stop, rows.tolist(), single) for part, rows, single in found] == [
        (0, 2, [5, 2], True),
        (2, 5, [7], False),
        (5, 6, [1], False),
    ]
    [(part, rows, single)] = parts_of(batch_of([5, 8, 8], [1, 1, 1], states=slots))
    assert (part, rows.tolist(), single) == (slice(0, 3), [5, 8, 8], True), "padding decodes in the null slot"


def test_states_go_back_where_they_came_from() -> None:
    slots = StateSlots(LAYOUT, 4, CPU)
    conv, recurrent = StateKey(0, "conv", 0), StateKey(0, "recurrent", 0)
    slots.states[conv][:] = torch.arange(24.0).view(4, 3, 2)
    states = RowStates(slots, torch.tensor([3, 1]))
    inputs = states.update_conv_state(torch.full((2, 3, 1), -1.0), 0, conv_kernel_size=2)
    assert inputs[:, 0].tolist() == [[18, 19, -1], [6, 7, -1]], "what was kept, then what is new"
    taken = states.get_recurrent_state(0)
    assert taken is not None
    taken += 5  # as kernels do that write in place
    assert not slots.states[recurrent].any(), "nothing is changed before the module is through"
    states.put_back()
    assert slots.states[conv][:, 0].tolist() == [[0, 1], [7, -1], [12, 13], [19, -1]]
    assert slots.states[recurrent][:, 0].tolist() == [0, 5, 0, 5]
    assert states.get_recurrent_state(1) is None, "a layer may keep a convolution alone"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", STATEFUL)
def test_what_is_found_out_of_the_modules_of_each_family(family: str, dtype: torch.dtype) -> None:
    model = from_config(make_config(family), CPU, dtype)
    assert model.stateful is not None
    assert model.stateful.token_by_token == (family in ("mamba", "falcon_mamba", "jamba"))
    assert model.stateful.host_read == "", "a step that decodes can be captured"
    assert any("token by token" in line for line in model.stateful.told()) == model.stateful.token_by_token


class Module(nn.Module):
    """Adds its state, of which it may read something on the host, or which it may forget before several tokens."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.fault = fault

    def forward(self, states: Tensor, cache: Any = None) -> Tensor:
        kept = cache.get_recurrent_state(0)
        if self.fault == "forgets" and states.shape[1] > 1:
            kept = torch.zeros_like(kept)
        sums = states.cumsum(1) + kept[:, None]
        if self.fault == "item":
            sums = sums * sums.sum().item()
        if self.fault == "mask":
            sums[sums < 0] = 0
        cache.update_recurrent_state(sums[:, -1], 0)
        return sums * self.weight


@pytest.mark.parametrize(
    ("fault", "takes_chunks", "host_read"),
    [
        ("", True, ""),
        ("forgets", False, ""),
        ("item", None, "item"),
        ("mask", None, "index_put"),
    ],
)
def test_a_trial_finds_what_a_module_does(fault: str, takes_chunks: bool | None, host_read: str) -> None:
    module = Module(fault)
    one = StatefulModule(module, (torch.zeros(1, 1, 3),), {}, cache_place=1)
    found = trial_of(one, LAYOUT)
    assert found.host_read == host_read
    assert takes_chunks in (None, found.takes_chunks)
