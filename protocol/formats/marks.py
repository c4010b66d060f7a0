"""Finding a given text in a text that comes in parts (Knuth, Morris and Pratt).

For the stop texts of requests, and for the marks around the calls that a model writes.
"""

from __future__ import annotations

from functools import lru_cache


class Mark:
    """Looks for one text in another that comes in parts."""

    __slots__ = ("fallback", "length", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.fallback = fallback(text)
        self.length = 0
        """How much of it the end of what has come could be the beginning of."""

    def find_end(self, part: str) -> int:
        """The offset in ``part`` of the first end of the text; -1 if there is none."""
        text, fallback, length = self.text, self.fallback, self.length
        for index, char in enumerate(part, 1):
            while length and text[length] != char:
                length = fallback[length]
            if text[length] == char:
                length += 1
                if length == len(text):
                    return index
        self.length = length
        return -1


@lru_cache(maxsize=1024)
def fallback(text: str) -> tuple[int, ...]:
    """For each length of a beginning of ``text``: its longest proper end that is a beginning too."""
    table = [0, 0]
    for index in range(1, len(text)):
        length = table[index]
        while length and text[length] != text[index]:
            length = table[length]
        table.append(length + (text[length] == text[index]))
    return tuple(table)


def beginning_of(mark: str, text: str) -> int:
    """The length of the end of ``text`` that may be the beginning of ``mark``."""
    found = Mark(mark)
    found.find_end(text[-(len(mark) - 1) :] if len(mark) > 1 else "")
    return found.length


def may_hold(text: str, marks: tuple[str, ...]) -> bool:
    """Whether one of the marks can begin in a text: most tokens have nothing of them, and that has to be cheap."""
    for mark in marks:  # noqa: SIM110 - a generator takes three times as long
        if mark[0] in text:
            return True
    return False


def cut_at(text: str, marks: tuple[str, ...]) -> tuple[str, str | None, str]:
    """Split a text at the first of the marks: the text before it, the mark, and the text behind it. Where there is none
    yet: what is none for sure, None, and what may become one."""
    if not may_hold(text, marks):
        return text, None, ""
    places = [(text.find(mark), -len(mark), mark) for mark in marks]
    found = min((place for place in places if place[0] >= 0), default=None)
    if found is not None:
        at, _, mark = found
        return text[:at], mark, text[at + len(mark) :]
    waits = max(beginning_of(mark, text) for mark in marks)
    return text[: len(text) - waits], None, text[len(text) - waits :]
