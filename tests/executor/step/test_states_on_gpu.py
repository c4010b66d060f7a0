"""Recurrent layers on a GPU: their steps as CUDA graphs, and the kernels of other packages.

That each family generates what transformers does, on a GPU as on a CPU, is in ``tests/peers/test_model_families.py``.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recurrent import alone_with, model_with_states, scheduled
from rig import VOCAB
from slipstream.actors.executor.attention.transformers_hook import IMPLEMENTATION
from slipstream.actors.executor.devices.cuda import CudaDevice, CudaGraphs
from slipstream.actors.executor.model.comparison import paged_logits
from slipstream.actors.executor.model.loading.load import load_model
from slipstream.actors.executor.model.paged_model import PagedModel
from slipstream.actors.executor.model.stateful import package_kernels
from slipstream.actors.executor.start.gpu import on_gpu as start_on_gpu
from slipstream.actors.executor.step.buckets import buckets_of
from slipstream.actors.executor.step.graphs import GraphRunner
from slipstream.actors.options import ModelOptions
from tiny_models import STATEFUL, make_checkpoint
from torch import Tensor

from slipstream.options.serve import ServeOptions
from slipstream.serving.service import executor_options

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CUDA = torch.device("cuda", 0)

DENSE: dict[str, dict[str, Any]] = {
    "qwen3_next": dict(num_experts=0),
    "kimi_linear": dict(mlp_layer_types=["dense", "dense"]),
    "lfm2_moe": dict(num_dense_layers=2),
    "granitemoehybrid": dict(num_local_experts=0),
    "jamba": dict(num_experts=0),
}
"""Without their experts, whose products in float32 no graph can have."""
ALWAYS_EXPERTS = ("qwen3_5_moe_text", "lara_mini", "zaya")
IN_FLOAT32 = [family for family in STATEFUL if family not in ALWAYS_EXPERTS]
MANY = 3
"""Requests, each of which is asked twice."""


def on_gpu(family: str, dtype: torch.dtype, **changes: Any) -> PagedModel:
    return model_with_states(family, CUDA, dtype, "triton", **changes)


@pytest.mark.parametrize("family", IN_FLOAT32)
def test_steps_that_decode_by_graphs_give_the_tokens_of_each_request_alone(family: str) -> None:
    """After preemptions, and after the executor died twice; alone, nothing is a graph."""
    model = on_gpu(family, torch.float32, **DENSE.get(family, {}))
    assert model.uncapturable == ""
    rig = scheduled(model, 2, 0, "all", many=MANY, deaths=(2, 4))
    assert rig.graphs.replays[0] > 20
    assert rig.scheduler.counters["num_preemptions"] > 0
    for request, answer in rig.tokens.items():
        assert answer == alone_with(model, MANY)[request % MANY], request


@pytest.mark.parametrize(("depth", "graphs"), [(1, "all"), (3, "all"), (3, "off"), (3, "meanwhile")])
@pytest.mark.parametrize("family", ["qwen3_next", "falcon_h1", "mamba"])
def test_states_are_those_of_each_request_alone_at_any_depth(family: str, depth: int, graphs: str) -> None:
    model = on_gpu(family, torch.float32, **DENSE.get(family, {}))
    rig = scheduled(model, depth, 1, graphs, many=MANY)
    assert (rig.graphs.replays[0] > 0) == (graphs != "off")
    assert rig.scheduler.counters["num_preemptions"] > 0
    for request, answer in rig.tokens.items():
        assert answer == alone_with(model, MANY)[request % MANY], request


DELTA, CONVOLUTION, SCAN = "fla", "causal_conv1d", "mamba_ssm"
GATED_DELTA = {DELTA: {"chunk_gated_delta_rule", "fused_recurrent_gated_delta_rule"}}
CONVOLVED = {CONVOLUTION: {"causal_conv1d_fn", "causal_conv1d_update"}}
SCANNED = CONVOLVED | {SCAN: {"mamba_chunk_scan_combined", "selective_state_update"}}
HEADS: dict[str, Any] = dict(
    linear_num_key_heads=16, linear_num_value_heads=32, linear_key_head_dim=128, linear_value_head_dim=128
)
MAMBA2_HEADS: dict[str, Any] = dict(
    mamba_n_heads=32, mamba_d_head=64, mamba_d_state=128, mamba_n_groups=1, mamba_chunk_size=256
)
AS_SERVED: dict[str, tuple[dict[str, Any], dict[str, set[str]]]] = {
    "qwen3_next": (HEADS, GATED_DELTA | CONVOLVED),
    "qwen3_5_text": (HEADS, GATED_DELTA | CONVOLVED),
    "qwen3_5_moe_text": (HEADS, GATED_DELTA | CONVOLVED),
    "olmo_hybrid": (HEADS, GATED_DELTA | CONVOLVED),
    "lara_mini": (HEADS, GATED_DELTA | CONVOLVED),
    "kimi_linear": (
        dict(linear_num_heads=16, linear_head_dim=128),
        {DELTA: {"chunk_kda", "fused_recurrent_kda"}} | CONVOLVED,
    ),
    "lfm2": ({}, CONVOLVED),
    "mamba2": (
        dict(hidden_size=1024, num_heads=32, head_dim=64, state_size=128, n_groups=1, chunk_size=256),
        SCANNED,
    ),
    "bamba": (dict(hidden_size=1024) | MAMBA2_HEADS, SCANNED),
    "falcon_h1": (dict(mamba_d_ssm=2048) | MAMBA2_HEADS, SCANNED),
}
"""Heads as models have them, since kernels take none of 8, and which kernels of which packages compute with them."""


@pytest.mark.parametrize("family", STATEFUL)
def test_graphs_of_a_model_in_bfloat16_give_the_tokens_of_its_steps_without_them(family: str) -> None:
    """With the kernels that are installed; in the same steps, in which the same sums are rounded alike."""
    model = on_gpu(family, torch.bfloat16, **AS_SERVED.get(family, ({}, {}))[0])
    assert model.uncapturable == ""
    captured, plain = (scheduled(model, 1, 0, graphs, many=MANY) for graphs in ("all", "none"))
    assert captured.graphs.replays[0] > 20
    assert plain.graphs.replays[0] == 0
    assert captured.tokens == plain.tokens


TEXT = 200
"""Tokens of a sequence: more than three chunks of the kernels."""
CUTS = [(70, 0), (1, 130), (64, 1), (3, 33), *[(1, 1)] * 30, (TEXT - 168, 6)]
"""As ``comparison.STEPS``: chunks longer and shorter than those of the kernels, and rows that decode."""
MOST = 5e-2
"""Of the difference to float32 relative to the size of the logits, of the median token."""


@pytest.mark.parametrize("family", AS_SERVED)
def test_kernels_of_packages_compute_chunks_and_rows_that_decode(
    family: str, called: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As near to the same weights in float32 as transformers is, with these kernels and without."""
    settings, functions = AS_SERVED[family]
    wanted = {name for package in functions if can_be_imported(package) for name in functions[package]}
    if not wanted:
        pytest.skip(f"needs {' or '.join(functions)}")
    model, exact = (on_gpu(family, dtype, **settings) for dtype in (torch.bfloat16, torch.float32))
    assert model.stateful is not None
    assert not model.stateful.token_by_token
    exact.transformer.load_state_dict(model.transformer.state_dict())
    tokens = (torch.arange(2 * TEXT, device=CUDA) * 7919 % VOCAB).view(2, TEXT)
    reference = plain_logits(exact, tokens)

    def error_of(logits: Tensor) -> float:
        return float((logits - reference).norm(dim=-1).median() / reference.norm(dim=-1).mean())

    called.clear()
    with torch.inference_mode():
        served = error_of(paged_logits(model, tokens, CUTS))
    assert called == wanted
    theirs = error_of(plain_logits(model, tokens))
    monkeypatch.setattr(package_kernels, "DEVICES", set[str]())
    in_torch = error_of(plain_logits(model, tokens))
    print(f"{family}: served {served:.4f}, transformers {theirs:.4f}, without kernels {in_torch:.4f}")
    assert served <= min(MOST, 1.5 * max(theirs, in_torch))


class Context:
    """What the start of an executor tells."""

    crashed = restarted = False
    prepared = None

    def phase(self, name: str) -> None:
        print(f"{time.monotonic():.1f} s: {name}")


@pytest.mark.parametrize("family", ["qwen3_next", "falcon_h1"])
def test_an_executor_starts_with_the_kernels_that_are_installed(family: str, tmp_path: Path) -> None:
    """They choose how they run when they are first called, which is before steps are captured."""
    settings, _ = AS_SERVED[family]
    folder = make_checkpoint(family, tmp_path, **settings)
    model = load_model(str(folder), device=CUDA, dtype="bfloat16", attention_backend="triton")
    assert model.stateful is not None
    assert not model.stateful.token_by_token
    about = ModelOptions(model=str(folder), vocab_size=model.vocab_size, max_model_len=256, eos_token_ids=())
    asked = ServeOptions(
        device="cuda", max_num_seqs=4, max_num_batched_tokens=256, block_size=16, kv_cache_memory=64 << 20
    )
    device, context = CudaDevice(0), Context()
    made: Any = (context, executor_options(asked, about), model, device, CudaGraphs(device))
    engine = start_on_gpu(*made)
    assert isinstance(engine.runner, GraphRunner)
    assert len(engine.runner.forward_graphs) == len(buckets_of(4, 256, 256).decode)
    assert not engine.runner.queue.common
    device.close()


def can_be_imported(package: str) -> bool:
    try:
        importlib.import_module(package)
    except Exception:  # as transformers has it: one that was built for another torch fails in many ways
        return False
    return True


@torch.inference_mode()
def plain_logits(model: PagedModel, tokens: Tensor) -> Tensor:
    """Float32 logits of a text as a whole, by transformers alone."""
    model.transformer.set_attn_implementation("eager")
    try:
        return model.transformer(input_ids=tokens, use_cache=False).logits.float()
    finally:
        model.transformer.set_attn_implementation(IMPLEMENTATION)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of the kernels that models made from now on have called."""
    names: set[str] = set()
    choose = package_kernels.chosen_by_inputs

    def noting(kernel: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*given: Any, **named: Any) -> Any:
            names.add(name_of(kernel))
            return kernel(*given, **named)

        run: Any = choose(noted, plain)
        run.chosen_by_inputs = kernel
        return run

    monkeypatch.setattr(package_kernels, "chosen_by_inputs", noting)
    return names


def name_of(kernel: Any) -> str:
    """Of what transformers has put in front of its own function."""
    kept = dict(zip(kernel.__code__.co_freevars, kernel.__closure__, strict=True))
    return kept["implementation"].cell_contents.__name__
