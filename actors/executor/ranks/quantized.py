"""A rank's shard of a layer whose weights are quantized: numbers and scales are divided together."""

from __future__ import annotations

from torch import Tensor, nn

from ....protocol.errors import InvalidRequest
from ..model.quantization.linear import QuantizedLinear
from .group import RankGroup
from .layers import RowParallel, shard_of


class RowParallelQuantized(RowParallel, QuantizedLinear):
    """A quantized layer, of which a rank has columns."""

    def __init__(self, shard: QuantizedLinear, group: RankGroup, *, of_whole: bool) -> None:
        QuantizedLinear.__init__(self, shard.weight, shard.scales, shard.block, shard.bias)
        self.group, self.of_whole = group, of_whole

    def multiply(self, input: Tensor) -> Tensor:
        return QuantizedLinear.multiply(self, input)


def in_place_of(layer: nn.Linear, quantized: QuantizedLinear) -> QuantizedLinear:
    """The layer that replaces a rank's layer when its weight has been quantized."""
    if isinstance(layer, RowParallel):
        return RowParallelQuantized(quantized, layer.group, of_whole=layer.of_whole)
    return quantized


def rows_of(layer: QuantizedLinear, size: int, rank: int, name: str) -> QuantizedLinear:
    """One of ``size`` equal shards of the outputs."""
    rows, columns = layer.block
    scales = layer.scales
    if layer.out_features % (size * rows):
        scales, rows = scales.repeat_interleave(rows, 0)[: layer.out_features], 1
    bias = None if layer.bias is None else shard_of(layer.bias, 0, size, rank, name)
    weight, scales = (shard_of(tensor, 0, size, rank, name) for tensor in (layer.weight, scales))
    return QuantizedLinear(weight, scales, (rows, columns), bias)


def columns_of(layer: QuantizedLinear, group: RankGroup, name: str) -> QuantizedLinear:
    """The shard of a rank of the inputs. The bias, which is summed with the products, is rank 0's alone.

    InvalidRequest where a scale is for columns of two ranks, but not of all.
    """
    rows, columns = layer.block
    weight = shard_of(layer.weight, 1, group.size, group.rank, name)
    scales, width = layer.scales, weight.shape[1]
    if scales.shape[1] == 1:
        columns = width
    elif width % columns:
        raise InvalidRequest(
            f"tensor_parallel_size={group.size}: each scale of {name} is for {columns} columns, of which"
            f" {group.size} ranks cannot have equally many of its {layer.in_features}; use fewer ranks"
        )
    else:
        scales = shard_of(scales, 1, group.size, group.rank, name)
    return QuantizedLinear(weight, scales, (rows, columns), layer.bias if group.rank == 0 else None)
