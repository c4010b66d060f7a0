"""The actors of a service by name."""

ACTORS = ("gateway", "tokenizer", "scheduler", "executor", "detokenizer")
"""In the order in which a request meets them."""

HELPERS = ("spare", "keeper")
"""The roles of processes beside the actors, which no stream needs and nobody waits for."""
