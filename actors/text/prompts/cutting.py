"""Finds where a long text can be cut so that the tokens of its parts, one after the other, are those of the whole.

Tokenizers work on words, and a word ends before a single space between two visible characters, and after the end
of a line that a letter or a digit follows. Whether that is so for a vocabulary is looked up in it and tried on a
sample; a kind of place for which it is not so is not used. Since many tokenizers treat the beginning of a text in
a way of its own, every part but the first is encoded behind one more character, whose tokens are dropped again.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from itertools import pairwise

import tokenizers

from ..vocabulary.pieces import BYTE_OF

PART = 32_768
"""Characters after which the next place to cut is taken: about 50 ms of work."""

LONGEST_PART = 524_288
"""Most characters without a place to cut: they are encoded at once, in a second or less. Texts of that kind, base64
for example, have one or two characters a token, so this many fill a context of 262,144 tokens."""

VISIBLE = [chr(code) for code in range(0x21, 0x7F)]

SAMPLE = (
    "The cat (it said) has 12 lives, x=3; 'one' and \"two\" [a] {b} <c> #d! ok? e@f.g h/i - j + 5% of 9$ & more.\n"
    "Then it went home:\nGröße 世界 и мир\n7 of them.\n世界\n\tif (x) { return y; }\n  end\n\nlast  one"
)


def encode(tokenizer: tokenizers.Tokenizer, text: str, *, special: bool) -> array[int]:
    """The ids of a text, with the tokenizer's own before and after it if ``special``."""
    # Unlike its ``encode`` this lets other threads run meanwhile, and it is faster; the ids are the same.
    return array("i", tokenizer.encode_batch_fast([text], add_special_tokens=special)[0].ids)


class Cutter:
    """Encodes texts of one vocabulary, part by part."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.head, self.tail = self.special_tokens()
        """What the tokenizer puts before and after a text."""
        inside, over_lines = self.find_long_words()
        safe = [char for char in VISIBLE if char not in inside]
        self.leads = {True: next(filter(str.isalnum, safe), ""), False: "\n"}
        """What a part is encoded behind: one that begins with a space, and one that does not."""
        self.lead_tokens = {kind: self.encode(lead) for kind, lead in self.leads.items()}
        kinds: list[str] = []
        if self.leads[True]:
            kinds.append(rf"(?<=[{re.escape(''.join(safe))}]) (?=\S)")
        if not over_lines:
            kinds.append(r"(?<=\S\n)(?=[^\W_])")
        self.places = re.compile("|".join(filter(self.holds, kinds)) or "(?!)")
        """Where a text can be cut."""

    def cuts(self, text: str) -> Iterator[tuple[int, int]]:
        """The parts of a text: where each begins and ends.

        One may be longer than ``LONGEST_PART``, where there is no place to cut; the caller has to refuse it.
        """
        start = 0
        while start < len(text):
            found = self.places.search(text, start + PART)
            end = len(text) if found is None else found.start()
            yield start, end
            start = end

    def tokens_of(self, text: str, start: int, end: int) -> array[int]:
        """The tokens of one part, without what the tokenizer puts before and after a text."""
        if start == 0:
            return self.encode(text[:end])
        kind = text[start] == " "
        lead, dropped = self.leads[kind], self.lead_tokens[kind]
        tokens = self.encode(lead + text[start:end])
        if tokens[: len(dropped)] != dropped:
            raise RuntimeError(
                f"the text cannot be cut at character {start}: {text[start - 1 : start + 1]!r}"
            )
        return tokens[len(dropped) :]

    def encode(self, text: str, *, special: bool = False) -> array[int]:
        return encode(self.tokenizer, text, special=special)

    def special_tokens(self) -> tuple[array[int], array[int]]:
        bare, whole = self.encode("a"), self.encode("a", special=True)
        start = next(at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
        return whole[:start], whole[start + len(bare) :]

    def find_long_words(self) -> tuple[set[str], bool]:
        """Where tokens go on at what ends a word elsewhere: the characters that a token has before a space, and
        whether one has a letter or a digit after the end of a line."""
        byte_level = self.tokenizer.token_to_id("▁") is None
        space, line = "ĠĊ" if byte_level else "▁\n"
        suspicious = re.compile(f"[!-~][ {space}]|{line}[^{line}]")
        # Behind an added token, a special one for example, some tokenizers begin a text anew.
        inside = {token.content[-1] for token in self.tokenizer.get_added_tokens_decoder().values()}
        over_lines = False
        for token in range(self.tokenizer.get_vocab_size()):
            name = self.tokenizer.id_to_token(token)
            if name is None or suspicious.search(name) is None:
                continue
            if byte_level and all(char in BYTE_OF for char in name):
                name = bytes(BYTE_OF[char] for char in name).decode(errors="replace")
            inside.update(re.findall("([!-~])[ ▁]", name))
            over_lines = over_lines or re.search(r"\n[^\W_]", name) is not None
        return inside, over_lines

    def holds(self, kind: str) -> bool:
        """Whether the sample, cut at every place of this kind, has the tokens that it has as a whole."""
        places = [0, *(found.start() for found in re.finditer(kind, SAMPLE)), len(SAMPLE)]
        try:
            parts = [self.tokens_of(SAMPLE, *place) for place in pairwise(places)]
        except RuntimeError:
            return False
        return self.encode(SAMPLE) == sum(parts, array("i"))
