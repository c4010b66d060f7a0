"""Whom a new actor is told of at its start: the supervisor and the simulator ask here."""

from __future__ import annotations


def knows_at_once(*, running: bool, ready: bool, same_group: bool) -> bool:
    """Whether an actor that starts now is told of another.

    An actor that is not ready yet is announced to all when it is. A new gateway that was told of it earlier would
    submit requests by way of a tokenizer that still talks to the one that died, and would not submit them again.
    Members of a group need each other to become ready.
    """
    return running and (ready or same_group)
