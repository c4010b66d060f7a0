"""The logprobs that are reported beside a token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def logprobs(logits: Tensor, totals: Tensor, tokens: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Token ids int32 and logprobs float32, both [S, ``columns``]: the sampled token's, then the most likely ones.

    ``logits`` float32 [S, V] are the model's own, and ``totals`` [S, 1] as in `Sampler.totals`; ``tokens`` int32 [S]
    what was sampled. Columns for which
    the vocabulary has no tokens are zero.
    """
    ids = tokens[:, None]
    values = logits.gather(1, ids.long())
    if columns > 1:
        best = logits.topk(min(columns - 1, logits.shape[1]))
        ids = torch.cat([ids, best.indices.int()], dim=1)
        values = torch.cat([values, best.values], dim=1)
    values = values - totals
    unused = (0, columns - values.shape[1])
    return F.pad(ids, unused), F.pad(values, unused)
