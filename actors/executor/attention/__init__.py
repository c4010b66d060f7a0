"""Attention over the paged cache: the function that transformers calls, and the backends that compute it."""
