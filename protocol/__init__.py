"""The protocol: messages, codec, limits, endpoints and errors. Imports nothing else of Slipstream."""

if "." not in __name__:
    raise ImportError("`protocol` is part of the package slipstream: import slipstream.protocol instead")
