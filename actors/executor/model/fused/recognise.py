"""Recognises the parts of a decoder of transformers, from its structure and from one run of it (``observe.py``).

How its layers are built, what reaches their attention, by how much its embeddings are scaled: each part is found by
what it does, not by the family it belongs to. A decoder with a part that is not known here is ``Unfit``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ranks.layers import RowParallelLinear
from ...ranks.quantized import RowParallelQuantized
from ..findings import Call, DecoderFindings, DerivedValues
from ..quantization.linear import QuantizedLinear
from .decoder import Rotary
from .observe import CHECKED_POSITIONS, Observed, Unfit
from .operations import ACTIVATIONS, Norm

TOLERANCE = 1e-5
"""Of the difference of states in float32, relative to their size. Another order of sums gives 1e-6."""


@dataclass(slots=True)
class LayerParts:
    """The parts of a layer of transformers, by what they do."""

    index: int
    call: Call
    sinks: Tensor | None
    rotary: Rotary | None
    projections: list[nn.Linear]
    """Of queries, keys and values; one if they are joined already."""
    output: nn.Linear
    q_norm: Norm | None
    k_norm: Norm | None
    gate_up: list[nn.Linear]
    """Empty: the feed-forward module stays whole, as ``whole_mlp``."""
    down: nn.Linear | None
    activation: str
    whole_mlp: nn.Module | None
    returns_tuple: bool
    """What the feed-forward module returns."""
    norms: list[Norm | None]
    """Before and after attention, before and after feed-forward."""
    residual_scale: float

    def kind(self) -> tuple[Any, ...]:
        """Layers of one kind differ in their weights only."""
        call = self.call
        options = (
            call.query_heads,
            call.kv_heads,
            call.head_dim,
            call.scale,
            call.sliding_window,
            call.softcap,
        )
        norms = tuple(None if norm is None else norm.epsilon for norm in self.norms)
        return (id(self.rotary), type(self.whole_mlp), self.activation, *options, self.sinks is None, *norms)


@dataclass(slots=True)
class DecoderParts:
    """The parts of a decoder of transformers, by what they do."""

    layers: list[LayerParts]
    embedding_scale: float
    residual_scale: float
    norm: Norm

    def checked_layers(self) -> int:
        """The number of layers, from the first on, among which there is one of every kind."""
        kinds = [layer.kind() for layer in self.layers]
        return 1 + max(kinds.index(kind) for kind in kinds)


def recognise(decoder: Any, observed: Observed, derived: DerivedValues | None = None) -> DecoderParts:
    """The parts of ``decoder`` by their function; Unfit where it does something that is not known here.

    ``derived`` as in `recognised_again`; left out, everything is derived.
    """
    derived = derived or DerivedValues()
    parts = dict(decoder.named_children())
    unknown = parts.keys() - {"embed_tokens", "layers", "norm", "rotary_emb"}
    if unknown or "embed_tokens" not in parts or "norm" not in parts:
        raise Unfit(f"its decoder has parts that are not known here: {', '.join(sorted(parts))}")
    rotaries = rotaries_of(parts.get("rotary_emb"))
    layers = [
        recognise_layer(layer, index, observed, rotaries, derived)
        for index, layer in enumerate(decoder.layers)
    ]
    scales = {layer.residual_scale for layer in layers}
    if len(scales) > 1:
        raise Unfit("its layers differ in how they scale what they add")
    scale = derived.value_of(lambda: embedding_scale(parts["embed_tokens"], observed))
    return DecoderParts(layers, scale, scales.pop(), norm_of(parts["norm"], derived))


def recognised_again(decoder: nn.Module, findings: DecoderFindings) -> DecoderParts:
    """As ``recognise``, of a decoder with the same structure and weights as the one that ``findings`` are of.

    The decoder does not run: what a run and its numbers showed before is used again.
    """
    sinks: dict[int, Tensor] = {layer: decoder.get_parameter(name) for layer, name in findings.sinks.items()}
    observed = Observed(calls=findings.calls, sinks=sinks, tuples=findings.tuples)
    return recognise(decoder, observed, DerivedValues(findings.derived))


def embedding_scale(embed: nn.Module, observed: Observed) -> float:
    """By how much an embedding is multiplied before it reaches the first layer."""
    embedded = observed.embedded
    if embedded is None:
        raise Unfit("its layers are not called one after the other")
    own = embed(observed.tokens).float()
    scale = float((embedded.float() * own).sum() / (own * own).sum())
    nearest = next((known for known in (1.0,) if abs(scale - known) < 1e-3), scale)
    if float((own * nearest - embedded.float()).norm()) > 1e-2 * float(embedded.float().norm()):
        raise Unfit("its embeddings are changed before they reach the first layer")
    return nearest


def rotaries_of(module: nn.Module | None) -> list[Rotary]:
    """The rotary embeddings that a module of transformers has, one or one for each type of layers."""
    found: list[Rotary] = []
    for name, buffer in () if module is None else module.named_buffers():
        if name.endswith("inv_freq") and "original" not in name:
            scaling = getattr(module, name.removesuffix("inv_freq") + "attention_scaling", None)
            if isinstance(scaling, (int, float)):
                found.append(Rotary(buffer.float(), float(scaling)))
    return found


ORDERS = {
    ("input_layernorm", "post_attention_layernorm"): (0, 2),
    ("post_attention_layernorm", "post_feedforward_layernorm"): (1, 3),
    (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ): (0, 1, 2, 3),
}
"""The names of the norms of a layer, and where each stands in ``LayerParts.norms``."""


def recognise_layer(
    layer: nn.Module, index: int, observed: Observed, rotaries: list[Rotary], derived: DerivedValues
) -> LayerParts:
    parts = {
        name: part for name, part in layer.named_children() if not isinstance(part, (nn.Dropout, nn.Identity))
    }
    attention, mlp = parts.pop("self_attn", None), parts.pop("mlp", None)
    order = next((names for names in ORDERS if set(names) == set(parts)), None)
    call = observed.calls.get(index)
    if attention is None or mlp is None or order is None or call is None:
        raise Unfit(f"its layers have parts that are not known here: {', '.join(sorted(parts))}")
    norms: list[Norm | None] = [None] * 4
    for name, place in zip(order, ORDERS[order], strict=True):
        norms[place] = norm_of(parts[name], derived)
    rotary = None
    if getattr(attention, "use_rope", True):
        rotary = rotaries[derived.value_of(lambda: rotary_of(observed.embeddings.get(index), rotaries))]
    own = {
        name: part
        for name, part in attention.named_children()
        if not isinstance(part, (nn.Dropout, nn.Identity, nn.ModuleDict))
    }
    projections = linears(own, ("q_proj", "k_proj", "v_proj"), ("qkv_proj",))
    output = linears(own, ("o_proj",))[0]
    names = ("q_norm", "k_norm")
    q_norm, k_norm = (norm_of(own.pop(name), derived) if name in own else None for name in names)
    if own:
        raise Unfit(f"its attention has parts that are not known here: {', '.join(sorted(own))}")
    if (q_norm is None) != (k_norm is None) or (q_norm is not None and rotary is None):
        raise Unfit("its attention normalises queries or keys in a way that is not known here")
    heads = call.query_heads + 2 * call.kv_heads
    if (
        call.value_dim != call.head_dim
        or sum(one.out_features for one in projections) != heads * call.head_dim
    ):
        raise Unfit("its queries, keys and values differ in size")
    found = LayerParts(
        index=index,
        call=call,
        sinks=observed.sinks.get(index),
        rotary=rotary,
        projections=projections,
        output=output,
        q_norm=q_norm,
        k_norm=k_norm,
        gate_up=[],
        down=None,
        activation="",
        whole_mlp=mlp,
        returns_tuple=observed.tuples[index],
        norms=norms,
        residual_scale=float(getattr(layer, "residual_multiplier", 1.0)),
    )
    recognise_mlp(mlp, found, derived)
    return found


def recognise_mlp(mlp: nn.Module, found: LayerParts, derived: DerivedValues) -> None:
    """Find the weights of a gated MLP; what is anything else stays as it is, ``found.whole_mlp``."""
    parts = dict(mlp.named_children())
    act_fn = parts.pop("act_fn", None) or parts.pop("activation_fn", None)
    activation = derived.value_of(lambda: activation_of(act_fn))
    if activation and set(parts) in ({"gate_proj", "up_proj", "down_proj"}, {"gate_up_proj", "down_proj"}):
        found.gate_up = linears(parts, ("gate_proj", "up_proj"), ("gate_up_proj",))
        found.down = linears(parts, ("down_proj",))[0]
        found.activation, found.whole_mlp = activation, None


KNOWN_LINEARS = (nn.Linear, RowParallelLinear, QuantizedLinear, RowParallelQuantized)


def linears(parts: dict[str, nn.Module], *choices: tuple[str, ...]) -> list[nn.Linear]:
    """Take the layers of these names, which can be joined."""
    for names in choices:
        if all(name in parts for name in names):
            found = [parts.pop(name) for name in names]
            layers = [
                layer for layer in found if isinstance(layer, nn.Linear) and type(layer) in KNOWN_LINEARS
            ]
            if len(layers) < len(found) or len({kind_of(one) for one in layers}) > 1:
                raise Unfit(f"its {', '.join(names)} are no plain linear layers, or differ in kind")
            return layers
    raise Unfit(f"it has no {' and no '.join(', '.join(names) for names in choices)}")


def kind_of(layer: nn.Linear) -> tuple[Any, ...]:
    """Layers that differ in this are not joined."""
    block = layer.block if isinstance(layer, QuantizedLinear) else None
    return layer.weight.dtype, layer.bias is None, block


def norm_of(module: nn.Module, derived: DerivedValues) -> Norm:
    """The module as a root mean square norm."""
    weight = getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    alone = len(list(module.parameters())) == 1 and not list(module.children())
    if not (isinstance(weight, nn.Parameter) and weight.dim() == 1 and isinstance(epsilon, float) and alone):
        raise Unfit(f"{type(module).__name__} is no norm that is known here")
    return Norm(weight, epsilon, derived.value_of(lambda: offset_of(module, weight, epsilon)))


def offset_of(module: nn.Module, weight: Tensor, epsilon: float) -> float:
    """``Norm.offset``, by what the module computes on small states, where its epsilon counts."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(4, len(weight), generator=generator).to(weight.device) * max(epsilon, 1e-12) ** 0.5
    expected = module(states).float()
    for offset in (0.0, 1.0):
        found = F.rms_norm(states, weight.shape, weight.float() + offset, epsilon)
        if close(found, expected):
            return offset
    raise Unfit(f"{type(module).__name__} is no root mean square norm")


def rotary_of(embeddings: tuple[Tensor, Tensor] | None, rotaries: list[Rotary]) -> int:
    """The index in ``rotaries`` of the one that makes the cosines given to a layer."""
    if embeddings is not None:
        cosines = embeddings[0][0].float()
        positions = torch.tensor(CHECKED_POSITIONS, device=cosines.device)
        for number, rotary in enumerate(rotaries):
            angles = positions[:, None].float() * rotary.frequencies
            found = (angles.cos() * rotary.scaling).to(embeddings[0].dtype).float()
            # Only to tell one from the other: rounded to half precision they may differ in a last bit.
            known = cosines[:, : found.shape[1]]
            if cosines.shape[1] in (found.shape[1], 2 * found.shape[1]) and close(found, known, 1e-3):
                return number
    raise Unfit("its positions are embedded in a way that is not known here")


def activation_of(module: nn.Module | None) -> str:
    """Its name in ``ACTIVATIONS``; empty if it is none of them."""
    if module is None:
        return ""
    states = torch.linspace(-6.0, 6.0, 97)
    try:
        expected = module(states)
    except (TypeError, ValueError, RuntimeError):  # it asks for more than states
        return ""
    return next((name for name, known in ACTIVATIONS.items() if close(known(states), expected)), "")


def close(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> bool:
    return float((found - expected).norm()) <= tolerance * float(expected.norm())
