"""Logprobs that are reported are numbers."""

from __future__ import annotations

import numpy as np
from slipstream.actors.scheduler.logprobs import Logprobs


def test_a_logprob_that_is_no_finite_number_is_told_as_one_that_is() -> None:
    """A token whose weights are no numbers makes such ones; MessagePack can hold them, and JSON cannot."""
    values = np.array([[-1.5, np.nan], [-np.inf, np.inf]], np.float32)
    read = Logprobs.read(np.zeros(4, np.int32).tobytes(), values.tobytes(), 2)
    assert read.values.tolist() == [[-1.5, -9999.0], [-9999.0, -9999.0]]
