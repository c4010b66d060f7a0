"""Replace the decoder of a model of transformers by one of few kernels, where it computes the same.

``recognise.py`` finds its parts; a decoder with a part that it does not know stays as transformers has it. Numbers
decide whether it was understood: before anything is replaced, a copy of the first layers of each kind runs in float32,
as it is and replaced, and both must give the same states. The comparison of logits that follows at load
(`comparison.py`) runs all layers.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...triton_tools.compilation import compile_ahead
from ..adapters.adapters import Sublayers
from ..adapters.limits import AdapterLimits
from ..adapters.tail import tailed
from ..findings import DecoderFindings, DerivedValues, findings_of
from ..paged_model import PagedModel
from ..quantization.linear import QuantizedLinear
from ..quantization.linear import joined as joined_quantized
from ..quantization.stacked import stacked
from .decoder import Attention, Decoder, FeedForward, Layer, TransformersMlp
from .observe import CHECKED_POSITIONS, CHECKED_TOKENS, Observed, Unfit, observe
from .operations import Operations, TorchOperations
from .recognise import TOLERANCE, DecoderParts, LayerParts, recognise, recognised_again


def fuse(
    model: PagedModel,
    *,
    checked: bool = False,
    findings: DecoderFindings | None = None,
) -> None:
    """Replace the decoder of ``model`` in place where it can be; ``model.unfused_because`` says why it stays as it is.

    ``checked``: it was replaced before, with the same weights, and computed the same. ``findings``: those about it,
    if it was replaced before.
    """
    transformer = model.transformer
    prefix = transformer.base_model_prefix
    decoder: Any = getattr(transformer, prefix, None)
    operations = operations_for(model.device)
    try:
        if not isinstance(decoder, nn.Module) or decoder is transformer:
            raise Unfit(f"{type(transformer).__name__} has no decoder {prefix!r}")
        with torch.inference_mode():
            if findings is None:
                observed, derived = observe(decoder), DerivedValues()
                parts = recognise(decoder, observed, derived)
                findings = findings_of(decoder, observed.calls, observed.sinks, observed.tuples, derived)
            else:
                parts = recognised_again(decoder, findings)
            if not checked:
                check(transformer, parts, operations)
    except Unfit as reason:
        model.unfused_because = str(reason)
        return
    model.fused_projections = joined_layers(transformer, parts)
    adapter_limits = None if shares_weights(parts) else model.adapter_limits
    setattr(transformer, prefix, assemble(decoder, parts, operations, adapter_limits))
    model.unfused_because, model.decoder_findings = "", findings


def operations_for(device: torch.device) -> Operations:
    if device.type != "cuda":
        return TorchOperations()
    from .triton_operations import TritonOperations  # triton comes with torch where there is a GPU

    return TritonOperations()


# --- the comparison of both decoders ----------------------------------------------------------------


class Stub(nn.Module):
    """Stands in for a feed-forward module that stays as transformers has it."""

    def __init__(self, returns_tuple: bool) -> None:
        super().__init__()
        self.returns_tuple = returns_tuple

    def forward(self, states: Tensor) -> Any:
        states = states * 0.5
        return (states, None) if self.returns_tuple else states


def check(transformer: PreTrainedModel, parts: DecoderParts, operations: Operations) -> None:
    """Compare a copy in float32, of as many layers as have all kinds, with what it becomes; Unfit if they differ."""
    reference = first_layers(getattr(transformer, transformer.base_model_prefix), parts)
    observed = observe(reference)
    expected = states_of(transformer, reference, observed)
    replaced = assemble(reference, recognise(reference, observed), operations)
    try:
        compile_ahead(transformer.device, lambda: states_of(transformer, replaced, observed))
        found = states_of(transformer, replaced, observed)
    except (AttributeError, TypeError) as error:
        raise Unfit(f"{type(transformer).__name__} asks for more of its decoder: {error}") from error
    difference = float((found - expected).norm() / expected.norm())
    if not difference <= TOLERANCE:
        raise Unfit(f"replaced, its states differ by {difference:.2g} of their size")


def states_of(transformer: PreTrainedModel, decoder: nn.Module, backend: Observed) -> Tensor:
    """The states that ``transformer`` gives with another decoder, without the product with the vocabulary."""
    around = copy.copy(transformer)
    around._modules = dict(transformer._modules)
    head = transformer.get_output_embeddings()
    for name, module in transformer._modules.items():
        if name == transformer.base_model_prefix:
            around._modules[name] = decoder
        elif module is head:
            around._modules[name] = nn.Identity()
    device = transformer.device
    positions = torch.tensor([CHECKED_POSITIONS], device=device)
    return around(
        input_ids=backend.tokens, position_ids=positions, use_cache=False, paged=None, backend=backend
    ).logits


def first_layers(decoder: Any, parts: DecoderParts) -> Any:
    """A copy in float32 with as many of the layers as have all kinds, and few rows of the embedding."""
    count = parts.checked_layers()
    weight = decoder.embed_tokens.weight
    memo: dict[int, Any] = {id(weight): nn.Parameter(weight[:CHECKED_TOKENS].clone(), requires_grad=False)}
    for layer in parts.layers[:count]:
        if layer.whole_mlp is not None:
            memo[id(layer.whole_mlp)] = Stub(layer.returns_tuple)
    memo[id(decoder.layers)] = nn.ModuleList(copy.deepcopy(list(decoder.layers[:count]), memo))
    reference = copy.deepcopy(decoder, memo).float()
    reference.config.num_hidden_layers = count
    reference.embed_tokens.padding_idx = None
    return reference


# --- the replacement --------------------------------------------------------------------------------


def assemble(
    decoder: Any, parts: DecoderParts, operations: Operations, adapter_limits: AdapterLimits | None = None
) -> Decoder:
    """Layer by layer, so that only the weights of one are there twice. ``decoder`` and ``parts`` are used up.

    ``adapter_limits`` as in ``PagedModel``."""
    layers: list[Layer] = []
    while parts.layers:
        layers.append(assemble_layer(parts.layers.pop(0), operations, adapter_limits))
        decoder.layers[len(layers) - 1] = nn.Identity()
        if decoder.device.type == "cuda":
            torch.cuda.empty_cache()  # what is free would not fit the larger weights that come next
    return Decoder(
        decoder.embed_tokens, parts.embedding_scale, layers, parts.residual_scale, parts.norm, operations
    )


def joined_layers(transformer: PreTrainedModel, parts: DecoderParts) -> dict[str, Sublayers]:
    """As ``PagedModel.fused_projections``, of the decoder that will be assembled of ``parts``."""
    names = {id(module): name for name, module in transformer.named_modules()}
    return {
        f"{transformer.base_model_prefix}.layers.{index}.{projection}": [
            (names[id(linear)], linear.out_features) for linear in linears
        ]
        for index, layer in enumerate(parts.layers)
        for projection, linears in layers_by_projection(layer).items()
    }


def layers_by_projection(layer: LayerParts) -> dict[str, list[nn.Linear]]:
    """The layers that each projection will be made of."""
    found = {"self_attn.qkv_proj": layer.projections, "self_attn.o_proj": [layer.output]}
    if layer.down is not None:
        found |= {"mlp.gate_up_proj": layer.gate_up, "mlp.down_proj": [layer.down]}
    return found


def shares_weights(parts: DecoderParts) -> bool:
    """Whether some weight is that of several layers, beside each of which an adapter has weights of its own."""
    weights = [
        id(linear.weight)
        for layer in parts.layers
        for linears in layers_by_projection(layer).values()
        for linear in linears
    ]
    return len(set(weights)) < len(weights)


def assemble_layer(parts: LayerParts, operations: Operations, adapter_limits: AdapterLimits | None) -> Layer:
    call = parts.call
    attention = Attention(
        projection(parts.projections, adapter_limits),
        projection([parts.output], adapter_limits),
        layer_idx=parts.index,
        query_heads=call.query_heads,
        kv_heads=call.kv_heads,
        q_norm=parts.q_norm,
        k_norm=parts.k_norm,
        rotary=parts.rotary,
        scaling=call.scale,
        sliding_window=call.sliding_window,
        softcap=call.softcap,
        sinks=parts.sinks,
        operations=operations,
    )
    if parts.down is None:
        assert parts.whole_mlp is not None
        mlp = TransformersMlp(parts.whole_mlp)
    else:
        gate_up, down = projection(parts.gate_up, adapter_limits), projection([parts.down], adapter_limits)
        mlp = FeedForward(gate_up, down, parts.activation, operations)
    return Layer(attention, mlp, *parts.norms)


def projection(layers: list[nn.Linear], adapter_limits: AdapterLimits | None) -> nn.Linear:
    """As ``joined``, with a tail where there is to be one."""
    tail = 0 if adapter_limits is None else adapter_limits.tail(layers)
    if not tail:
        return joined(layers)
    weight = stacked([layer.weight for layer in layers], tail)
    bias = None if layers[0].bias is None else stacked([layer.bias for layer in layers])
    return tailed(layers[0], weight, bias)


def joined(layers: list[nn.Linear]) -> nn.Linear:
    """One linear layer that computes what all of them do, one after the other; its weights are theirs from now on."""
    if len(layers) == 1:
        return layers[0]
    quantized = [layer for layer in layers if isinstance(layer, QuantizedLinear)]
    if quantized:
        return joined_quantized(quantized)
    with torch.device("meta"):
        found = nn.Linear(layers[0].in_features, sum(one.out_features for one in layers), bias=False)
    found.weight = nn.Parameter(stacked([one.weight for one in layers]), requires_grad=False)
    if layers[0].bias is not None:
        found.bias = nn.Parameter(stacked([one.bias for one in layers]), requires_grad=False)
    return found
