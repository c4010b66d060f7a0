"""Modules that keep a state: how a step is parted for them, and what is found out about them when a model is loaded."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from slipstream.actors.executor.cache.kv_cache import KVCache
from slipstream.actors.executor.cache.paged_batch import PagedBatch
from slipstream.actors.executor.cache.state import StateCache, StateKey, StateLayout
from slipstream.actors.executor.model import support
from slipstream.actors.executor.model.loading.load import from_config
from slipstream.actors.executor.model.stateful import scan as scan_module
from slipstream.actors.executor.model.stateful.examine import traits_of
from slipstream.actors.executor.model.stateful.module import RowStates, StatefulModule
from slipstream.actors.executor.model.stateful.running import StatefulModules, segments_of
from slipstream.actors.executor.model.stateful.scan import Scan, going_on
from slipstream.actors.executor.model.support import Layers
from slipstream.actors.executor.step.model_runner import ModelRunner
from slipstream.protocol.errors import ModelNotSupported
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


def batch_of(rows: list[int], counts: list[int], *, padding: int = 0, states: StateCache) -> PagedBatch:
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
    slots = StateCache(LAYOUT, 4, CPU)
    assert LAYOUT.bytes_per_slot == (6 + 3) * 4 + 4 * 2
    for state in slots.states.values():
        state.fill_(1)
    slots.clear(torch.tensor([2, 0]))
    for state in slots.states.values():
        assert [bool(one.any()) for one in state] == [False, True, False, True]
    assert {tuple(pool.shape) for pool in slots.pools.values()} == {(4, 9), (4, 4)}


def test_rows_that_decode_are_one_part_and_each_chunk_another() -> None:
    slots = StateCache(LAYOUT, 8, CPU)
    found = segments_of(batch_of([5, 2, 7, 1], [1, 1, 3, 1], padding=4, states=slots))
    assert [(part.start, part.stop, rows.tolist(), single) for part, rows, single in found] == [
        (0, 2, [5, 2], True),
        (2, 5, [7], False),
        (5, 6, [1], False),
    ]
    [(tokens, rows, single)] = segments_of(batch_of([5, 8, 8], [1, 1, 1], states=slots))
    assert (tokens, rows.tolist(), single) == (slice(0, 3), [5, 8, 8], True), (
        "padding decodes in the null slot"
    )


def test_states_go_back_where_they_came_from() -> None:
    slots = StateCache(LAYOUT, 4, CPU)
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
    assert not model.stateful.token_by_token, "chunks are computed as such"
    assert model.stateful.host_read == "", "a step that decodes can be captured"


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
        if self.fault == "asks for more":
            cache.get_conv_state(0, 7)
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
    found = traits_of(one, LAYOUT)
    assert found.host_read == host_read
    assert takes_chunks in (None, found.takes_chunks)


def test_a_module_that_forgets_is_given_one_token_after_the_other() -> None:
    module = Module("forgets")
    modules = StatefulModules([StatefulModule(module, (torch.zeros(1, 1, 3),), {}, cache_place=1)], LAYOUT)
    assert any("token by token" in line for line in modules.notes())
    slots = StateCache(LAYOUT, 4, CPU)
    given, outputs = torch.randn(1, 9, 3), []
    for rows, counts in (([2], [4]), ([1, 2], [1, 3]), ([2], [1])):
        modules.begin(batch_of(rows, counts, states=slots))
        start = sum(output.shape[1] for output in outputs)
        outputs.append(module(given[:, start : start + sum(counts)], None))
        modules.end()
    found = torch.cat(outputs, 1)
    of_two = [0, 1, 2, 3, 5, 6, 7, 8]
    torch.testing.assert_close(found[:, of_two], given[:, of_two].cumsum(1))
    assert torch.equal(found[:, 4], given[:, 4])


def test_a_state_that_no_single_token_showed_is_a_reason_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    model = from_config(make_config("mamba"), CPU, torch.float32)
    assert model.stateful is not None
    faulty = StatefulModule(Module("asks for more"), (torch.zeros(1, 1, 3),), {}, cache_place=1)
    layers = Layers(model.kv_layout, LAYOUT, [faulty])
    monkeypatch.setattr(support, "check_layers", lambda transformer: layers)
    with pytest.raises(
        ModelNotSupported, match=r"'mamba' .* by themselves: KeyError: .*kind='conv', number=7"
    ):
        model.measure()


@pytest.mark.parametrize("at_once", [1024, 7])
@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 9, 16, 17, 100])
def test_a_scan_goes_on_from_a_state(tokens: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against one token after the other in float64."""
    monkeypatch.setattr(scan_module, "TOKENS_AT_ONCE", at_once)
    torch.manual_seed(tokens)
    rows, channels, size = 2, 3, 4
    values, times, gate_of = (torch.randn(rows, channels, tokens) for _ in range(3))
    B, C = (torch.randn(rows, size, tokens) for _ in range(2))
    A, D, bias = -torch.rand(channels, size) * 5, torch.randn(channels), torch.randn(channels)
    slots = StateCache(
        StateLayout(((StateKey(7, "recurrent", 0), (channels, size), torch.float32),)), rows, CPU
    )
    slots.states[StateKey(7, "recurrent", 0)].normal_()
    scan = Scan(7)
    scan.states = RowStates(slots, torch.tensor([1, 0]))
    options = dict(D=D, z=gate_of, delta_bias=bias, delta_softplus=True, return_last_state=True)
    output, last = scan(values, times, A, B, C, **options)  # type: ignore[arg-type]

    state = slots.states[StateKey(7, "recurrent", 0)][[1, 0]].double()
    for at in range(tokens):
        step = F.softplus(times[..., at].double() + bias)
        grown = (step * values[..., at])[..., None] * B[:, None, :, at]
        state = torch.exp(step[..., None] * A) * state + grown
        expected = (state * C[:, None, :, at]).sum(-1) + D * values[..., at]
        expected *= F.silu(gate_of[..., at].double())
        torch.testing.assert_close(output[..., at].double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last.double(), state, rtol=1e-4, atol=1e-5)


def test_the_modules_of_others_keep_the_scan_of_transformers() -> None:
    """A text as a whole is computed by transformers alone, also after a step of ours."""
    model = from_config(make_config("mamba"), CPU, torch.float32)
    module: Any = model.transformer.get_submodule("backbone.layers.0.mixer")
    states, tokens = (
        RowStates(StateCache(model.state_layout, 1, CPU), torch.tensor([0])),
        torch.randn(1, 6, 32),
    )
    with torch.inference_mode():
        ours, theirs = going_on(module)(tokens, cache=states), module(tokens)
    torch.testing.assert_close(ours, theirs)
    assert not isinstance(sys.modules[type(module).__module__].mamba_selective_scan, Scan)


def test_joining_clears_the_slot_and_that_of_padding() -> None:
    model = from_config(make_config("mamba"), CPU, torch.float32)
    with torch.inference_mode():
        runner = ModelRunner(model, 3, 64, 8, 9)
        assert runner.states is not None
        for pool in runner.states.pools.values():
            pool.fill_(float("nan"))
        runner.join(torch.tensor([1]), torch.zeros(1, runner.table.requests.shape[1], dtype=torch.int32))
    for pool in runner.states.pools.values():
        assert pool.isnan().any(1).tolist() == [True, False, True, False]
