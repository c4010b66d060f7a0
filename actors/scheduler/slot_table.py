"""The state of those sequences that hold a slot, as arrays."""

from __future__ import annotations

import numpy as np

from ...protocol.limits import MAX_STOP_TOKEN_IDS
from .sequence import Sequence

NO_STOP_TOKEN = -2
"""Fills the unused columns of ``stop``: equal to no token id and not to -1, which a masked row has for its token."""


class SlotTable:
    """The state of all sequence slots as arrays, so that a decode step costs the same whatever the batch.

    It mirrors the executor's `DeviceSlotTable`: same slots, same positions, one step or more behind.
    """

    def __init__(self, slots: int, max_model_len: int) -> None:
        self.tokens = np.empty((slots, max_model_len + 1), np.int32)
        self.length = np.zeros(slots, np.int32)
        """The number of tokens that are known."""
        self.computed = np.zeros(slots, np.int32)
        """Positions whose keys and values are in the cache once the outstanding steps are done."""
        self.planned = np.zeros(slots, np.int32)
        """The number of tokens that will be known once the outstanding steps are done."""
        self.max_length = np.zeros(slots, np.int32)
        self.room = np.zeros(slots, np.int32)
        """Positions for which the sequence has blocks."""
        self.charged = np.zeros(slots, np.int32)
        """The number of tokens that the sequence's client has been charged for."""
        self.request = np.zeros(slots, np.int64)
        self.generation = np.zeros(slots, np.int64)
        """The generation of the slot, as handed to its holder."""
        self.stop = np.full((slots, MAX_STOP_TOKEN_IDS), NO_STOP_TOKEN, np.int32)
        self.logprobs = np.full(slots, -1, np.int32)
        """``Sequence.wanted_logprobs``."""
        self.decoding = np.zeros(slots, np.bool_)
        """Whether the sequence runs one token in every step."""
        self.accepting = np.zeros(slots, np.bool_)
        """Whether its sampled tokens count; false once the sequence has ended."""

    def enter(self, sequence: Sequence, generation: int, start: int, room: int) -> None:
        slot, tokens = sequence.slot, sequence.tokens
        self.generation[slot] = generation
        self.tokens[slot, : len(tokens)] = tokens
        self.length[slot] = self.planned[slot] = self.charged[slot] = len(tokens)
        self.computed[slot] = start
        self.max_length[slot] = sequence.max_length
        self.room[slot] = room
        self.request[slot] = sequence.request
        self.stop[slot] = NO_STOP_TOKEN
        self.stop[slot, : len(sequence.stop_tokens)] = sequence.stop_tokens
        self.logprobs[slot] = sequence.wanted_logprobs
        self.decoding[slot] = False
        self.accepting[slot] = True

    def known(self, slot: int) -> np.ndarray:
        """The tokens of a slot as they are known now; a view."""
        return self.tokens[slot, : self.length[slot]]
