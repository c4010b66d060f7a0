"""The forward pass as one graph of ``torch.compile``, which fuses the small operations between the large ones.

Attention is a single opaque operation in it, whatever the backend: the compiler sees neither the cache nor the
block table, and the step that is under way is found where ``CompiledForward`` has put it. The graph is compiled
for any number of tokens, and once more for a single one, which the compiler insists on treating by itself.

Linear layers with the same input (queries, keys and values; gate and up) become parts of one: a small
batch then reads the weights in few large pieces. Each part asks for the whole product and takes its share;
``share_products`` sees to it that the graph has the product once. Outside of the compiler a part multiplies by its own
rows alone, so that nothing changes there.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.compile_fx import compile_fx
from torch._inductor.exc import InductorError
from transformers import PreTrainedModel

from ....protocol.errors import ModelNotSupported
from ..attention.backend import AttentionBackend
from ..cache.layout import CallRecorder
from ..cache.paged import PagedBatch
from .paged_model import PagedModel
from .probe import same_logits

TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names that transformers gives to linear layers of one module that are applied to the same input."""


class Step(threading.local):
    """What the attention of the step under way works on; a step computes on one thread."""

    backend: AttentionBackend
    batch: PagedBatch | None


step = Step()


@torch.library.custom_op("slipstream::paged_attention", mutates_args=())
def paged_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layer: int,
    scale: float,
    sliding_window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """``AttentionBackend`` as one operation; it also writes the cache, which no other operation touches."""
    return step.backend(
        query,
        key,
        value,
        layer,
        step.batch,  # type: ignore[arg-type]
        scale=scale,
        sliding_window=sliding_window,
        softcap=softcap,
        sinks=sinks,
    )


@paged_attention.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layer: int,
    scale: float,
    sliding_window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[1], value.shape[2])


class OpaqueAttention:
    """The attention backend that the compiler is shown."""

    name = "opaque"
    capturable = True

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layer: int,
        batch: PagedBatch | None,
        *,
        scale: float,
        sliding_window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        return paged_attention(query, key, value, layer, scale, sliding_window, softcap, sinks)


def compile_model(model: PagedModel, compiler: Any = None) -> None:
    """Compile the forward pass of ``model``, and make sure that its logits are those from before.

    ``compiler`` is a backend of ``torch.compile``; None: inductor. ModelNotSupported when it cannot be compiled.
    """
    with same_logits(model):
        try:
            model.compiled = CompiledForward(model.transformer, model.backend, compiler)
        except (TorchDynamoException, InductorError) as error:
            raise ModelNotSupported(
                f"model type {model.config.model_type!r} cannot be compiled; leave out --compile: {error}"
            ) from error


class CompiledForward:
    """The forward pass of ``transformer``, whose attention is ``backend``'s; compiled when it is made."""

    def __init__(self, transformer: PreTrainedModel, backend: AttentionBackend, compiler: Any = None) -> None:
        """``compiler`` is a backend of ``torch.compile``; None: inductor."""
        join_projections(transformer)
        opaque = OpaqueAttention()

        def forward(input_ids: Tensor, positions: Tensor, logits_index: Tensor) -> Tensor:
            output = transformer(
                input_ids=input_ids[None],
                position_ids=positions[None],
                use_cache=False,
                logits_to_keep=logits_index,
                backend=opaque,
            )
            return output.logits[0]

        self.backend = backend
        self.graph = torch.compile(
            forward, fullgraph=True, dynamic=True, backend=compiler or inductor_with_shared_products
        )
        self.warm_up(transformer.device)

    def warm_up(self, device: torch.device) -> None:
        """Compile for several tokens and for one, so that no step in service has to wait for it."""
        step.backend, step.batch = CallRecorder(), None
        with torch.inference_mode():
            for tokens in (3, 1):
                positions = torch.arange(tokens, device=device)
                self.graph(
                    torch.zeros_like(positions), positions, torch.zeros(2, dtype=torch.int64, device=device)
                )

    def __call__(
        self, input_ids: Tensor, positions: Tensor, batch: PagedBatch, logits_index: Tensor
    ) -> Tensor:
        """As ``PagedModel.forward``."""
        step.backend, step.batch = self.backend, batch
        wanted = len(logits_index)
        if wanted < 2:  # the compiler would compile anew for none and for one
            logits_index = F.pad(logits_index, (0, 2 - wanted))
        return self.graph(input_ids, positions, logits_index)[:wanted]


class Part(nn.Module):
    """Rows ``start`` to ``stop`` of a linear layer that stands for several."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, start: int, stop: int) -> None:
        super().__init__()
        self.weight, self.bias, self.start, self.stop = weight, bias, start, stop

    def forward(self, states: Tensor) -> Tensor:
        rows = slice(self.start, self.stop)
        if torch.compiler.is_compiling():
            return F.linear(states, self.weight, self.bias)[..., rows]
        return F.linear(states, self.weight[rows], None if self.bias is None else self.bias[rows])


def join_projections(transformer: PreTrainedModel) -> None:
    """Replace linear layers that are applied to the same input by parts of one. Their memory is not doubled."""
    for module in list(transformer.modules()):
        for names in TOGETHER:
            layers = [getattr(module, name, None) for name in names]
            if can_join(layers):
                join(module, names, layers)  # type: ignore[arg-type]


def can_join(layers: list[Any]) -> bool:
    """All are plain linear layers, alike in dtype and input, all or none with a bias, and of weights of their own."""
    if not all(type(layer) is nn.Linear for layer in layers):
        return False
    kinds = {(layer.in_features, layer.weight.dtype, layer.bias is None) for layer in layers}
    return len(kinds) == 1


def join(module: nn.Module, names: tuple[str, ...], layers: list[nn.Linear]) -> None:
    weight = nn.Parameter(torch.cat([layer.weight for layer in layers]), requires_grad=False)
    bias = None
    if layers[0].bias is not None:
        bias = nn.Parameter(torch.cat([layer.bias for layer in layers]), requires_grad=False)
    start = 0
    for name, layer in zip(names, layers, strict=True):
        stop = start + layer.out_features
        setattr(module, name, Part(weight, bias, start, stop))
        start = stop


def inductor_with_shared_products(graph: torch.fx.GraphModule, example_inputs: list[Tensor]) -> Any:
    """Inductor, which by itself computes equal products as often as they are asked for."""
    share_products(graph.graph)
    graph.recompile()
    return compile_fx(graph, example_inputs)


def share_products(graph: torch.fx.Graph) -> None:
    """Keep the first of the linear products that have the same input, weight and bias."""
    first: dict[Any, torch.fx.Node] = {}
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is F.linear and not node.kwargs:
            kept = first.setdefault(node.args, node)
            if kept is not node:
                node.replace_all_uses_with(kept)
                graph.erase_node(node)
