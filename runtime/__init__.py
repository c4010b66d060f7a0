"""Runs actors: hosts, mailboxes, supervision, simulation, tracing. Knows nothing of language models."""

if "." not in __name__:
    raise ImportError("`runtime` is part of the package slipstream: import slipstream.runtime instead")
