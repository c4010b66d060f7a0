"""Whom a new actor is told of at its start: the supervisor and the simulator ask here."""

from __future__ import annotations


def knows_at_once(*, running: bool, ready: bool, same_group: bool) -> bool:
    """Whether an actor that starts now is told of another.

    Of one that is not ready yet all hear at once, when it is: a new gateway that knew it before the tokenizer does
    would send requests by way of the one that is gone, and not send them again. Members of a group need each other
    to become ready.
    """
    return running and (ready or same_group)
