"""Tensor parallelism: an executor that is several ranks, each with a part of every weight on a GPU of its own."""
