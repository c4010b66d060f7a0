"""A decoder in few kernels, made of the weights of one of transformers.

A layer is four matrix products, attention, and four operations between them (`operations.py`). The states that run
through the layers, the *residual*, are one tensor that each layer adds to in place; what a layer adds last is added
by the next one's first operation, which normalises the sum as well. Of several ranks each has a part of what is added,
which that operation sums.

Most tokens of a prompt are there for their keys and values. Once the last layer has written those, it goes on with the
tokens whose logits are asked for: of 2,048 tokens no more than there are sequences.

``fuse.py`` makes a decoder, and makes sure that it computes what transformers' own does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import MoeModelOutputWithPast

from ...attention.backend import AttentionBackend
from ...cache.paged_batch import PagedBatch
from ...ranks.layers import Unsummed, unsummed
from ..adapters.adapters import Adapters
from .operations import Norm, Operations


@dataclass(frozen=True, slots=True)
class Rotary:
    """The rotary embedding of a kind of layers; layers of one kind share it."""

    frequencies: Tensor
    """float32 [F]: of the first 2 F dimensions of each head."""
    scaling: float


class Attention(nn.Module):
    """Queries, keys and values as one product, attention over the paged cache, and, as ``output``, the product that
    follows."""

    def __init__(
        self,
        qkv_proj: nn.Linear,
        o_proj: nn.Linear,
        *,
        layer_idx: int,
        query_heads: int,
        kv_heads: int,
        q_norm: Norm | None,
        k_norm: Norm | None,
        rotary: Rotary | None,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
        operations: Operations,
    ) -> None:
        """``q_norm`` and ``k_norm`` are as wide as a head, or as all heads together."""
        super().__init__()
        self.qkv_proj, self.o_proj = qkv_proj, o_proj
        self.q_norm, self.k_norm = q_norm, k_norm
        self.layer_idx = layer_idx
        self.query_heads, self.kv_heads = query_heads, kv_heads
        self.rotary = rotary
        self.scaling, self.sliding_window, self.softcap = scaling, sliding_window, softcap
        self.sinks = sinks
        self.operations = operations

    def forward(
        self, states: Tensor, angles: Tensor | None, batch: PagedBatch, backend: AttentionBackend
    ) -> Tensor:
        """``states`` [T, H] give [T, query heads * head size]; ``angles`` are those of ``rotary``."""
        queries, keys = self.query_heads, self.kv_heads
        flat = self.qkv_proj(states)
        heads = flat.view(len(flat), queries + 2 * keys, -1)
        q_norm, k_norm = self.q_norm, self.k_norm
        if q_norm is not None and k_norm is not None and len(q_norm.weight) > heads.shape[2]:
            split = len(q_norm.weight)
            self.operations.norm(flat[:, :split], q_norm)
            self.operations.norm(flat[:, split : split + len(k_norm.weight)], k_norm)
            q_norm = k_norm = None
        if angles is not None:
            self.operations.rotate(heads, queries, keys, q_norm, k_norm, angles)
        attended = backend(
            heads[:, :queries],
            heads[:, queries : queries + keys],
            heads[:, queries + keys :],
            self.layer_idx,
            batch,
            scale=self.scaling,
            sliding_window=self.sliding_window,
            softcap=self.softcap,
            sinks=self.sinks,
        )
        return attended.reshape(len(flat), -1)

    def output(self, attended: Tensor) -> Tensor | Unsummed:
        """The output [T, H] for the result of ``forward``, or for some of its tokens."""
        return unsummed(self.o_proj, attended)


class FeedForward(nn.Module):
    """A gated feed-forward layer, whose first two products are one."""

    def __init__(
        self, gate_up_proj: nn.Linear, down_proj: nn.Linear, activation: str, operations: Operations
    ) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = gate_up_proj, down_proj
        self.activation, self.operations = activation, operations

    def forward(self, states: Tensor) -> Tensor | Unsummed:
        return unsummed(self.down_proj, self.operations.gate(self.gate_up_proj(states), self.activation))


class TransformersMlp(nn.Module):
    """A feed-forward module of transformers as it is, such as a mixture of experts."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, states: Tensor) -> Tensor:
        output = self.module(states[None])
        return (output[0] if isinstance(output, tuple) else output)[0]


class Layer(nn.Module):
    """Attention and feed-forward, each with a norm of what goes in, a norm of what comes out, or both."""

    def __init__(
        self,
        self_attn: Attention,
        mlp: FeedForward | TransformersMlp,
        before_attention: Norm | None,
        after_attention: Norm | None,
        before_mlp: Norm | None,
        after_mlp: Norm | None,
    ) -> None:
        super().__init__()
        self.self_attn, self.mlp = self_attn, mlp
        self.before_attention, self.after_attention = before_attention, after_attention
        self.before_mlp, self.after_mlp = before_mlp, after_mlp


class Decoder(nn.Module):
    """Takes the place of transformers' decoder in its causal language model, which calls it as its own."""

    def __init__(
        self,
        embed_tokens: nn.Module,
        embedding_scale: float,
        layers: list[Layer],
        residual_scale: float,
        norm: Norm,
        operations: Operations,
    ) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens
        self.embedding_scale, self.residual_scale = embedding_scale, residual_scale
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.operations = operations
        self.adapters: Adapters | None = None
        """Those beside its projections."""

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        paged: PagedBatch,
        backend: AttentionBackend,
        logits_index: Tensor | None = None,
        **others: Any,
    ) -> MoeModelOutputWithPast:
        """``input_ids`` and ``position_ids`` int64 [1, T] give [1, T, H], or [1, S, H] of the tokens ``logits_index``
        int64 [S]; ``others`` are transformers' switches.

        The kind of output is the one that has a place for whatever a causal language model looks for.
        """
        positions = position_ids[0]
        residual = self.embed_tokens(input_ids[0])
        if self.embedding_scale != 1.0:
            residual = residual * self.embedding_scale
        operations, scale = self.operations, self.residual_scale
        angles: dict[int, Tensor] = {}
        update: Tensor | Unsummed | None = None
        after: Norm | None = None
        last = self.layers[-1]
        for layer in self.layers:
            assert isinstance(layer, Layer)
            attention, mlp = layer.self_attn, layer.mlp
            states = operations.add_norm(residual, update, after, scale, layer.before_attention)
            attended = attention(states, self.angles_of(attention.rotary, positions, angles), paged, backend)
            if layer is last and logits_index is not None:
                attended, residual = attended[logits_index], residual[logits_index]
                if not len(residual):
                    return MoeModelOutputWithPast(last_hidden_state=residual[None])  # type: ignore[arg-type]
                if self.adapters is not None:
                    self.adapters.select(logits_index)
            update = attention.output(attended)
            states = operations.add_norm(residual, update, layer.after_attention, scale, layer.before_mlp)
            update, after = mlp(states), layer.after_mlp
        states = operations.add_norm(residual, update, after, scale, self.norm)
        return MoeModelOutputWithPast(last_hidden_state=states[None])  # type: ignore[arg-type]

    def angles_of(self, rotary: Rotary | None, positions: Tensor, known: dict[int, Tensor]) -> Tensor | None:
        """The angles of ``rotary``, made when its first layer comes and then ``known``."""
        if rotary is None:
            return None
        found = known.get(id(rotary))
        if found is None:
            found = self.operations.angles(positions, rotary.frequencies, rotary.scaling)
            known[id(rotary)] = found
        return found
