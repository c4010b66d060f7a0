"""A service on an emulated device, all of whose rows decode at once: what several benches measure.

A step takes the time that is stated, whatever is in it. What is measured is the rest.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..protocol.sampling import SamplingParams
from ..serving.service import BUNDLED_MODEL
from ..sidecar import Sidecar

PROMPT_TOKENS = 4
"""Length of the prompts: those of all rows fit in one step."""

WARM_UP_STEPS = 32
"""Tokens of the answers that are asked for before anything is timed."""


def emulated_service(folder: Path, rows: int, step_ms: float, steps: int, depth: int = 2) -> Sidecar:
    """A service of the model in ``folder`` for ``rows`` requests of ``steps`` tokens each at once.

    A step takes ``step_ms`` milliseconds, and ``depth`` of them may be under way.
    """
    return Sidecar(
        folder,
        device="emulated",
        emulated_step_ms=step_ms,
        max_num_seqs=rows,
        max_num_batched_tokens=max(2048, PROMPT_TOKENS * rows),
        max_queued_requests=max(1024, rows),
        max_model_len=PROMPT_TOKENS + max(steps, WARM_UP_STEPS),
        pipeline_depth=depth,
    )


def short_prompts(rows: int) -> list[list[int]]:
    """A prompt of ``PROMPT_TOKENS`` token ids for each row."""
    return [[1 + (row + token) % 100 for token in range(PROMPT_TOKENS)] for row in range(rows)]


def fixed_length(tokens: int) -> SamplingParams:
    """Greedy sampling that neither a stop token nor a stop text ends before ``tokens`` are there."""
    return SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=0.0)


@contextmanager
def long_model(length: int) -> Iterator[Path]:
    """The bundled model's tokenizer with room for ``length`` tokens: an emulated device reads no weights."""
    with tempfile.TemporaryDirectory(prefix="slipstream-bench-") as name:
        folder = Path(name)
        for file in BUNDLED_MODEL.glob("*token*"):
            (folder / file.name).symlink_to(file)
        config = json.loads((BUNDLED_MODEL / "config.json").read_text())
        config["max_position_embeddings"] = max(length, config["max_position_embeddings"])
        (folder / "config.json").write_text(json.dumps(config))
        yield folder
