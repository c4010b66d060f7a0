"""Writes the fields of a step into the array that is copied to the device."""

from __future__ import annotations

import numpy as np

from ....protocol.internal import Join
from .fields import JOIN, NO_STOP_TOKEN, PLACEHOLDER
from .layout import StepLayout
from .rows import Chunk, Rows

AS_THEY_ARE = tuple(
    name for name in JOIN.names or () if name in Join.__struct_fields__ and name != "stop_tokens"
)
"""Fields of `fields.JOIN` that `Join` has under the same name."""


def pack_mixed(rows: Rows, null_slot: int, layout: StepLayout, staging: np.ndarray) -> None:
    """Rows that decode, rows with a chunk, and rows without a token up to the layout's size.

    The tokens that fill it up belong to no row and stand at the first position of the null slot.
    """
    row_slots, query_start, token_slots, offsets, known, logits_index = (
        layout.view(staging, name)
        for name in (
            "row_slots",
            "query_start",
            "token_slots",
            "token_offsets",
            "known_tokens",
            "logits_index",
        )
    )
    decodes, count = len(rows.decode), len(rows.decode) + len(rows.chunks)
    row_slots[:decodes] = token_slots[:decodes] = rows.decode
    query_start[:decodes] = np.arange(decodes)
    offsets[:decodes] = 0
    known[:decodes] = PLACEHOLDER
    end = decodes
    for row, chunk in enumerate(rows.chunks, decodes):
        start, end = chunk.first, chunk.first + len(chunk.tokens)
        row_slots[row] = token_slots[start:end] = chunk.slot
        query_start[row] = start
        offsets[start:end] = np.arange(end - start)
        known[start:end] = chunk.tokens
    row_slots[count:] = token_slots[end:] = null_slot
    query_start[count:] = end
    offsets[end:] = known[end:] = 0

    samples = len(rows.sampling)
    logits_index[:samples] = rows.sample_tokens
    logits_index[samples:] = 0
    if layout.prompt_logprobs:
        reporting = [chunk for chunk in rows.chunks if len(chunk.reported)]
        places = np.concatenate(
            [np.arange(chunk.first, chunk.first + len(chunk.reported)) for chunk in reporting]
        )
        logits_index[layout.prompt_logits_start : layout.prompt_logits_start + len(places)] = places
        layout.view(staging, "prompt_tokens")[:] = np.concatenate([chunk.reported for chunk in reporting])


def pack_joins(joins: list[Join], records: np.ndarray) -> None:
    """Into records of `fields.JOIN`."""
    records["stop_tokens"] = NO_STOP_TOKEN
    for record, join in zip(records, joins, strict=True):
        for name in AS_THEY_ARE:
            record[name] = getattr(join, name)
        record["seed_low"], record["seed_high"] = seed_words(join.seed)
        stop = np.frombuffer(join.stop_tokens, np.int32)
        record["stop_tokens"][: len(stop)] = stop


def pack_biases(joins: list[Join], records: np.ndarray) -> None:
    """Into records of `fields.BIAS`, for the joins that have some."""
    records["tokens"] = 0
    records["biases"] = 0.0
    for record, join in zip(records, (join for join in joins if join.bias_tokens), strict=True):
        tokens, biases = np.frombuffer(join.bias_tokens, np.int32), np.frombuffer(join.biases, np.float32)
        record["slot"] = join.slot
        record["tokens"][: len(tokens)] = tokens
        record["biases"][: len(biases)] = biases


def pack_blocks(pairs: np.ndarray, num_blocks: np.ndarray, records: np.ndarray) -> None:
    """Give each appended block of ``pairs`` (slot, block) its place in the block table of its slot, behind the
    ``num_blocks`` [slots] that are there until now."""
    slots = records["slot"] = pairs[::2]
    records["block"] = pairs[1::2]
    for record, slot in enumerate(slots.tolist()):
        records["index"][record] = num_blocks[slot]
        num_blocks[slot] += 1


def pack_counts(
    chunks: list[Chunk], penalised: np.ndarray, prompt_len: np.ndarray, records: np.ndarray
) -> None:
    """Tokens of chunks that the host knew, of slots that are ``penalised`` [slots]; ``prompt_len`` [slots]."""
    start = 0
    for chunk in chunks:
        if penalised[chunk.slot]:
            part = records[start : start + len(chunk.tokens)]
            part["slot"], part["token"] = chunk.slot, chunk.tokens
            part["in_prompt"] = np.arange(chunk.end - len(part), chunk.end) < prompt_len[chunk.slot]
            start += len(part)


def seed_words(seed: int) -> tuple[int, int]:
    """A 64-bit seed as two int32, low word first."""
    words = np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64).view(np.int32)
    return int(words[0]), int(words[1])
