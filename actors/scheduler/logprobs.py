"""Logprobs of tokens, and those of a sequence in the ledger."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...protocol.limits import UNLIKELIEST


class Logprobs(NamedTuple):
    """The logprobs of some rows' tokens: the sampled one first, then the most likely ones."""

    tokens: np.ndarray
    """int32 [rows, columns]."""
    values: np.ndarray
    """float32 [rows, columns]."""

    @staticmethod
    def read(tokens: bytes, values: bytes, rows: int) -> Logprobs:
        return Logprobs(
            np.frombuffer(tokens, np.int32).reshape(rows, -1),
            np.nan_to_num(
                np.frombuffer(values, np.float32), nan=UNLIKELIEST, posinf=UNLIKELIEST, neginf=UNLIKELIEST
            ).reshape(rows, -1),
        )

    def take(self, rows: np.ndarray) -> Logprobs:
        """Some of the rows, by number or as a mask."""
        return Logprobs(self.tokens[rows], self.values[rows])


class LogprobLedger:
    """Logprobs of tokens in their order, a row for each, in arrays that double when they are full."""

    __slots__ = ("count", "tokens", "values")

    def __init__(self, top: int) -> None:
        """``top``: how many of the most likely tokens are kept beside each token's own."""
        self.count = 0
        self.tokens = np.empty((16, 1 + top), np.int32)
        self.values = np.empty((16, 1 + top), np.float32)

    def extend(self, logprobs: Logprobs, first: int, count: int) -> None:
        """Keep ``count`` rows from ``first`` on, as many columns as are wanted."""
        begin, end = self.count, self.count + count
        if end > len(self.tokens):
            rows = max(end, 2 * len(self.tokens))
            self.tokens = np.resize(self.tokens, (rows, self.tokens.shape[1]))
            self.values = np.resize(self.values, (rows, self.values.shape[1]))
        columns = self.tokens.shape[1]
        self.tokens[begin:end] = logprobs.tokens[first : first + count, :columns]
        self.values[begin:end] = logprobs.values[first : first + count, :columns]
        self.count = end

    def last(self, count: int) -> Logprobs:
        """The logprobs of the newest ``count`` tokens, or of as many as there are; views."""
        rows = slice(max(0, self.count - count), self.count)
        return Logprobs(self.tokens[rows], self.values[rows])


def ledger(top: int | None) -> LogprobLedger | None:
    """For a request that wants the logprobs of ``top`` tokens; None: it wants none."""
    return None if top is None else LogprobLedger(top)
