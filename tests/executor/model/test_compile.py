"""The compiled forward pass: one graph, the same logits, each shared product once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from slipstream.actors.executor.model.compiled import Part, compile_model, join_projections, share_products
from slipstream.actors.executor.model.load import from_config
from slipstream.actors.executor.model.paged_model import PagedModel
from slipstream.protocol.errors import ModelNotSupported
from tiny_models import make_config

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def tiny(family: str) -> PagedModel:
    layers = {} if family == "gpt_oss" else {"num_hidden_layers": 1}
    return from_config(make_config(family, **layers), CPU, torch.float32)


class Eager:
    """A compiler that runs the graphs that it is given, and keeps them."""

    def __init__(self, spoil: float = 1.0) -> None:
        self.graphs: list[torch.fx.GraphModule] = []
        self.spoil = spoil

    def __call__(self, graph: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        share_products(graph.graph)
        graph.recompile()
        self.graphs.append(graph)
        return lambda *inputs: [output * self.spoil for output in graph(*inputs)]


@pytest.mark.parametrize("family", ["llama", "gpt_oss"], ids=["plain", "experts, sinks and a window"])
def test_the_forward_pass_is_one_graph_with_the_same_logits(family: str) -> None:
    compiler = Eager()
    compile_model(
        tiny(family), compiler
    )  # refuses other logits, and a forward pass that takes several graphs
    assert len(compiler.graphs) == 2, "one for several tokens and one for a single token"


def test_a_product_that_several_layers_share_is_computed_once() -> None:
    compiler = Eager()
    model = tiny("llama")
    compile_model(model, compiler)
    layers = model.config.num_hidden_layers
    products = [node for node in compiler.graphs[0].graph.nodes if node.target is F.linear]
    assert len(products) == layers * 4 + 1, (
        "queries with keys and values; output; gate with up; down; the head"
    )


def test_joined_layers_give_what_they_gave_and_take_no_more_memory() -> None:
    model = tiny("qwen2")  # its projections have a bias
    attention: Any = model.transformer.model.layers[0].self_attn
    states = torch.randn(3, model.config.hidden_size)
    before = [layer(states) for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]
    join_projections(model.transformer)
    parts = [attention.q_proj, attention.k_proj, attention.v_proj]
    assert all(isinstance(part, Part) for part in parts)
    assert len({part.weight.data_ptr() for part in parts}) == 1
    for part, expected in zip(parts, before, strict=True):
        torch.testing.assert_close(part(states), expected)


def test_a_compiler_that_changes_the_logits_is_refused() -> None:
    with pytest.raises(ModelNotSupported, match="its logits as compiled differ"):
        compile_model(tiny("llama"), Eager(spoil=1.01))


def test_inductor_gives_the_same_logits() -> None:
    compile_model(tiny("llama"))
