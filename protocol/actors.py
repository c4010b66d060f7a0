"""The actors of a service by name."""

ACTORS = ("gateway", "tokenizer", "scheduler", "executor", "detokenizer")
"""In the order in which a request meets them."""
