"""Keep of a model what one rank computes, as the model's own plan for tensor parallelism divides it.

The plan is transformers' (``tp_plan``: which layer is divided how); the tensors are plain ones, so that projections are
joined, kernels launched and bytes counted as without ranks. The embedding stays whole on every rank, which is one sum
less.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from ....protocol.errors import InvalidRequest
from ..model.quantization.linear import QuantizedLinear
from ..model.support import refusal
from .group import RankGroup
from .layers import Division, GatheredLinear, RowParallelExperts, RowParallelLinear, shard_of
from .quantized import RowParallelQuantized, columns_of, rows_of

OWN_TP_PLANS = {
    "gpt_oss": {
        **{f"model.layers.*.self_attn.{name}_proj": "colwise" for name in "qkv"},
        "model.layers.*.self_attn.o_proj": "rowwise",
        "model.layers.*.self_attn.sinks": "shard 0",
        "model.layers.*.mlp.experts.gate_up_proj": "shard 2",
        "model.layers.*.mlp.experts.gate_up_proj_bias": "shard 1",
        "model.layers.*.mlp.experts.down_proj": "shard 1",
        "model.layers.*.mlp.experts.down_proj_bias": "first",
        "model.layers.*.mlp.experts": "moe_tp_experts",
    }
}
"""How families are divided whose plan in transformers divides no layer, by model type. ``shard N`` divides dimension
N of a parameter, which only rank 0 has if it is ``first``."""

KEPT_WHOLE = ("embedding_rowwise", "replicate")
"""Beginnings of the names of what every rank has as a whole."""

SUMMED = {"rowwise": False, "rowwise_split_input": True, "rowwise_rep": True}
"""Styles of layers whose columns are divided, so that the ranks' products are summed; and whether the input of such a
layer comes undivided, so that each rank takes its part of it."""

GATHERED = ("colwise_gather_output", "colwise_rep")

GROUPED_PRODUCT_BYTES = 16
"""What the rows of an expert's weight have to be multiples of."""


@torch.no_grad()
def shard(transformer: PreTrainedModel, group: RankGroup) -> dict[str, Division]:
    """Leave of a model the shard of ``group.rank``, in place; returns what it has of each layer that is divided.

    InvalidRequest where the number of ranks does not divide what has to be divided, ModelNotSupported for a
    family without a plan, or with one that is not known here.
    """
    tp_plan = tp_plan_of(transformer)
    check_heads(transformer, group.size)
    sharding = Sharding(transformer, tp_plan, group)
    sharding.run()
    return sharding.divided


def tp_plan_of(transformer: PreTrainedModel) -> dict[str, str]:
    """The way in which each layer or parameter is divided, by its name with ``*`` for the number of a layer."""
    config = transformer.config
    tp_plan = {**(transformer.tp_plan or {}), **OWN_TP_PLANS.get(config.model_type, {})}
    tp_plan = {name: style for name, style in tp_plan.items() if not style.startswith(KEPT_WHOLE)}
    if not any(".*." in name for name in tp_plan):
        raise refusal(
            config,
            f"transformers has no plan that divides the layers of {type(transformer).__name__} among ranks; "
            "leave out --tensor-parallel-size",
        )
    return tp_plan


def check_heads(transformer: PreTrainedModel, size: int) -> None:
    heads = transformer.config.num_attention_heads
    key_heads = key_heads_of(transformer)
    if heads % size:
        raise InvalidRequest(
            f"tensor_parallel_size={size}: this model has {heads} attention heads, and {size} ranks cannot have"
            f" equally many; give a divisor of {heads}"
        )
    if max(key_heads, size) % min(key_heads, size):
        raise InvalidRequest(
            f"tensor_parallel_size={size}: this model has {key_heads} key heads, which {size} ranks can neither"
            " divide nor share; give a divisor or a multiple of that"
        )


def key_heads_of(transformer: PreTrainedModel) -> int:
    config: Any = transformer.config
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


class Sharding:
    """One model while it is divided."""

    def __init__(self, transformer: PreTrainedModel, tp_plan: dict[str, str], group: RankGroup) -> None:
        self.transformer, self.tp_plan, self.group = transformer, tp_plan, group
        self.divided: dict[str, Division] = {}

    def run(self) -> None:
        for name, module in list(self.transformer.named_modules()):
            for own, parameter in list(module.named_parameters(recurse=False)):
                style = self.style_of(f"{name}.{own}")
                if style is not None:
                    setattr(module, own, self.shard_of_parameter(parameter, style, f"{name}.{own}"))
            style = self.style_of(name)
            if style is not None:
                self.replace(name, module, style)

    def style_of(self, name: str) -> str | None:
        return self.tp_plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", name))

    def shard_of_parameter(self, parameter: Tensor, style: str, name: str) -> nn.Parameter:
        """The shard of a parameter that the plan names by itself, such as the weights of all experts."""
        rows = max(0, parameter.dim() - 2)
        if style == "first":
            return frozen(parameter if self.group.rank == 0 else torch.zeros_like(parameter))
        if style.startswith("shard "):
            shard = self.shard(parameter, int(style.removeprefix("shard ")), name)
        elif style == "colwise":
            shard = self.shard(parameter, rows, name)
        elif style == "rowwise":
            shard = self.shard(parameter, -1, name)
        elif style in ("packed_colwise", "packed_rowwise"):
            dim = rows if style == "packed_colwise" else -1
            shard = torch.cat([self.shard(half, dim, name) for half in parameter.chunk(2, dim)], dim)
        else:
            raise self.unknown(name, style)
        row, whole_row = (tensor.shape[-1] * tensor.itemsize for tensor in (shard, parameter))
        if shard.dim() == 3 and row % GROUPED_PRODUCT_BYTES > whole_row % GROUPED_PRODUCT_BYTES:
            raise InvalidRequest(
                f"tensor_parallel_size={self.group.size}: the rows of {name} would have {row} bytes, and torch's"
                f" product for experts takes multiples of {GROUPED_PRODUCT_BYTES}; use fewer ranks"
            )
        return frozen(shard)

    def replace(self, name: str, module: nn.Module, style: str) -> None:
        """Put what a rank has of a layer in its place."""
        parent_name, _, own = name.rpartition(".")
        parent = self.transformer.get_submodule(parent_name)
        if style == "moe_tp_experts":
            setattr(parent, own, RowParallelExperts(module, self.group))
            return
        if style == "colwise":
            self.divided[name] = Division(outputs=self.shards_of_outputs(name))
        elif style in SUMMED:
            self.divided[name] = Division(inputs=(self.group.size, self.group.rank))
        if type(module) is QuantizedLinear and (style == "colwise" or style in SUMMED):
            setattr(parent, own, self.shard_of_quantized(module, name, style))
            return
        if type(module) is not nn.Linear:
            raise self.unknown(f"{name}, a {type(module).__name__}", style)
        weight, bias = module.weight, module.bias
        if style == "colwise":
            self.divide_outputs(module, name)
        elif style in SUMMED:
            bias = bias if self.group.rank == 0 else None
            shard = frozen(self.shard(weight, 1, name))
            setattr(parent, own, RowParallelLinear(shard, bias, self.group, of_whole=SUMMED[style]))
        elif style in GATHERED:
            shard_of_bias = None if bias is None else frozen(self.padded_shard(bias))
            shard = frozen(self.padded_shard(weight))
            setattr(parent, own, GatheredLinear(shard, shard_of_bias, self.group, whole=len(weight)))
        else:
            raise self.unknown(name, style)

    def shard_of_quantized(self, layer: QuantizedLinear, name: str, style: str) -> QuantizedLinear:
        if style == "colwise":
            return rows_of(layer, *self.divided[name].outputs, name)
        shard = columns_of(layer, self.group, name)
        return RowParallelQuantized(shard, self.group, of_whole=SUMMED[style])

    def shards_of_outputs(self, name: str) -> tuple[int, int]:
        """Into how many shards the outputs of a layer are divided, and which of them is this rank's. Several ranks have
        the same one where there are fewer key heads."""
        size, rank = self.group.size, self.group.rank
        heads = key_heads_of(self.transformer)
        if name.endswith((".k_proj", ".v_proj")) and heads < size:
            return heads, rank * heads // size
        return size, rank

    def divide_outputs(self, layer: nn.Linear, name: str) -> None:
        """Keep a rank's outputs of a layer."""
        size, rank = self.divided[name].outputs
        layer.weight = frozen(self.shard(layer.weight, 0, name, size, rank))
        layer.out_features = len(layer.weight)
        if layer.bias is not None:
            layer.bias = frozen(self.shard(layer.bias, 0, name, size, rank))

    def shard(
        self, tensor: Tensor, dim: int, name: str, size: int | None = None, rank: int | None = None
    ) -> Tensor:
        """One of ``size`` equal shards along ``dim``, in memory of its own."""
        return shard_of(
            tensor,
            dim,
            self.group.size if size is None else size,
            self.group.rank if rank is None else rank,
            name,
        )

    def padded_shard(self, tensor: Tensor) -> Tensor:
        """A shard along the first dimension, the last ones filled up with zeros if it does not divide."""
        rows = -(-len(tensor) // self.group.size)
        shard = tensor[self.group.rank * rows : (self.group.rank + 1) * rows]
        missing = rows - len(shard)
        return F.pad(shard, (0, 0) * (tensor.dim() - 1) + (0, missing)) if missing else shard.clone()

    def unknown(self, name: str, style: str) -> Exception:
        return refusal(
            self.transformer.config,
            f"its plan divides {name} among ranks as {style!r}, which is not known here; "
            "leave out --tensor-parallel-size",
        )


def frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
