"""The words in which ranks send tensors over peer memory: each is written and read as a whole."""

WORD = 8
"""Bytes."""

EMPTY = -0x7FFF_FFFF_8000_0000
"""The word where nothing has come: zeros, some of them negative, whether as two numbers of 32 bits or as four of 16.
The same zeros without a sign are sent instead."""
