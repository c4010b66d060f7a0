"""The actors: gateway, tokenizer, scheduler, executor, detokenizer. No actor imports another."""

if "." not in __name__:
    raise ImportError("`actors` is part of the package slipstream: import slipstream.actors instead")
