"""The fields of a step: what the host packs for the device, and what the device returns.

This table alone says where a number lies: the host writes and the device reads by these names. A new field is a line
here, a line where it is packed (`packing`) and a line where it is used. Every element has four bytes, so that all
fields travel in one array of int32, in one copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ....protocol.limits import MAX_LOGIT_BIAS, MAX_STOP_TOKEN_IDS

PLACEHOLDER = -1
"""In ``known_tokens``: this token was sampled on the device and is in the token table."""

UNWRITTEN = -1
"""The value of a cell of the token table that no step has written, where ``check_carry_over`` is on."""

NO_STOP_TOKEN = -2
"""Fills the stop tokens of a sequence that has fewer than there is room for; no sampled token equals it."""

NO_TOKEN = -1
"""The result of a row whose sequence had finished before."""

INT = np.dtype(np.int32)

JOIN = np.dtype(
    [
        ("slot", np.int32),
        ("start", np.int32),
        ("prompt_len", np.int32),
        ("max_length", np.int32),
        ("seed_low", np.int32),
        ("seed_high", np.int32),
        ("temperature", np.float32),
        ("top_p", np.float32),
        ("top_k", np.int32),
        ("min_p", np.float32),
        ("min_tokens", np.int32),
        ("repetition_penalty", np.float32),
        ("presence_penalty", np.float32),
        ("frequency_penalty", np.float32),
        ("adapter", np.int32),
        ("stop_tokens", np.int32, (MAX_STOP_TOKEN_IDS,)),
    ]
)
"""A sequence that takes a slot: the fields of `Join`, with the seed in two words. The device keeps the record."""

BIAS = np.dtype(
    [
        ("slot", np.int32),
        ("tokens", np.int32, (MAX_LOGIT_BIAS,)),
        ("biases", np.float32, (MAX_LOGIT_BIAS,)),
    ]
)
"""The logit bias of a joining sequence; unused places add 0 to the logit of token 0."""

BLOCK = np.dtype([("slot", np.int32), ("index", np.int32), ("block", np.int32)])
"""An entry of the block table: the ``index``-th block of a slot."""

COPY = np.dtype([("source", np.int32), ("target", np.int32)])
"""A block that is copied."""

COUNT = np.dtype([("slot", np.int32), ("token", np.int32), ("in_prompt", np.int32)])
"""A known token of a sequence with a penalty; ``in_prompt`` is 1 for the prompt's and 0 for the answer's."""


@dataclass(frozen=True, slots=True)
class Field:
    """A section of packed int32."""

    name: str
    dtype: np.dtype
    """The dtype of one record."""
    count: str
    """The attribute of `StepLayout` that says how many records there are."""

    @property
    def width(self) -> int:
        """The number of int32 of one record."""
        return self.dtype.itemsize // INT.itemsize


GRAPH_INPUTS = (
    Field(
        "sample_slots", INT, "seq_slots"
    ),  # first, and always of one size: it is all that a graph of the sampling reads
    Field("row_slots", INT, "mixed_rows"),
    Field("query_start", INT, "row_bounds"),
    Field("token_slots", INT, "mixed_tokens"),
    Field("token_offsets", INT, "mixed_tokens"),
    Field("known_tokens", INT, "mixed_tokens"),
    Field("logits_index", INT, "mixed_logits"),
)
"""The inputs of the forward pass and the sampling, of which a graph has a static copy."""

CHANGE_INPUTS = (
    Field("joins", JOIN, "joins"),
    Field("biases", BIAS, "biases"),
    Field("blocks", BLOCK, "blocks"),
    Field("copies", COPY, "copies"),
    Field("counts", COUNT, "counts"),
    Field("masked_rows", INT, "masked"),
    Field("prompt_tokens", INT, "prompt_logprobs"),
)
"""The inputs whose number changes from step to step; they are read outside of graphs."""

INPUTS = GRAPH_INPUTS + CHANGE_INPUTS


def column(records: Any, dtype: np.dtype, name: str) -> Any:
    """One field of ``records``, a tensor int32 [n, width] of records of ``dtype``: a view, [n] or [n, places].

    A float32 field is viewed as such. (numpy has this built in: ``array.view(dtype)[name]``.)
    """
    import torch

    fields: Any = dtype.fields
    kind, offset = fields[name][:2]
    first, width = offset // INT.itemsize, kind.itemsize // INT.itemsize
    taken = records[:, first : first + width] if kind.shape else records[:, first]
    return taken.view(torch.float32) if kind.base == np.float32 else taken
