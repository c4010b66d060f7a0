"""The ids of calls, which differ by what the chat template of a model takes."""

from __future__ import annotations

import re
import uuid
from typing import Literal

CALL_ID_CHARACTERS = 9
"""The length of the ids of calls: the templates that ask for one ask for this."""

CallIdForm = Literal["any", "short", "counted"]
"""Which ids of calls a model knows: any; nine letters or digits; or ``functions.NAME:NUMBER``, counted through the
whole conversation."""


class CallIds:
    """The ids of the calls of one conversation, in the form that its model knows."""

    def __init__(self, form: CallIdForm = "any", count: int = 0) -> None:
        """``count`` is how many calls there were before."""
        self.form = form
        self.count = count
        self.known: dict[str, str] = {}

    def new(self, name: str) -> str:
        """An id for a call that the model makes now."""
        number, self.count = self.count, self.count + 1
        if self.form == "counted":
            return f"functions.{name}:{number}"
        return uuid.uuid4().hex[:CALL_ID_CHARACTERS]

    def of_call(self, id: str, name: str) -> str:
        """The id of a call that the conversation has, whichever service gave it."""
        if self.form == "counted":
            self.known[id] = self.new(name)
        return self.of_result(id)

    def of_result(self, id: str) -> str:
        """The id of the call that a message has the result of."""
        return short_id(id) if self.form == "short" else self.known.get(id, id)


def short_id(id: str) -> str:
    """An id of nine letters or digits, the same for the same id: its last ones."""
    return re.sub(r"[^a-zA-Z0-9]", "", id)[-CALL_ID_CHARACTERS:].rjust(CALL_ID_CHARACTERS, "0")
