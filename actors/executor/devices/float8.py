"""The 8-bit floating point format that a cache and weights are stored in."""

from __future__ import annotations

import torch

FP8 = torch.float8_e4m3fn
"""A byte a number: four bits of exponent, three of mantissa, no infinity."""

FP8_MAX = torch.finfo(FP8).max
