"""From what a client asks with to token ids: a text, or a conversation by way of the model's chat template.

For the tokenizer, and for the HTTP frontend, which shows how a text would be tokenized.
"""

from __future__ import annotations

from array import array
from collections.abc import Generator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from ....protocol.errors import InvalidRequest, ModelNotSupported
from ..vocabulary.tokenizer_files import load_tokenizer
from .chat_template import ChatTemplates, Clock, load_chat_templates
from .control_tokens import Sanitizer
from .conversation import measure, plain_messages, plain_tools
from .conversation_end import ConversationEnd
from .cutting import LONGEST_PART, PART, Cutter, encode
from .iterations import Iterations

MAX_PROMPT_BYTES = 4 * 1024 * 1024
"""Most bytes of UTF-8 in a prompt or in a rendered conversation, where the options name no other limit."""

ENCODING_BUDGET_S = 10.0
"""Most time that one request may take to become token ids. The longest texts that are taken need a third of it."""

PromptEncoding = Generator[int, None, "array[int]"]
"""A prompt on its way to token ids. It pauses after each 50 ms or so of work, and says how many characters are
left to do; what it returns in the end are the ids."""

OUTPUTS_AT_ONCE = 500
"""Pieces of text that a chat template writes between two pauses; most take microseconds."""

ITERATIONS_AT_ONCE = 10_000
"""Iterations of a chat template between two pauses, about 50 ms: some templates look at all messages again for each
piece that they write."""

WHAT = {"prompt": "the prompt", "messages": "the conversation"}

ADVICE = "add one to the folder as chat_template.jinja, or send a prompt instead of messages"


class Prompts:
    """A model's tokenizer and chat template."""

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        chat_templates: ChatTemplates | str,
        max_prompt_bytes: int = MAX_PROMPT_BYTES,
        *,
        sanitize: bool = False,
    ) -> None:
        """``chat_templates`` are the templates, or the sentence that says why there is none. With ``sanitize`` a
        control token in a conversation is text."""
        self.tokenizer = tokenizer
        self.chat_templates = chat_templates
        self.max_prompt_bytes = max_prompt_bytes
        literals = "" if isinstance(chat_templates, str) else chat_templates.literals
        self.sanitizer = Sanitizer(tokenizer, literals) if sanitize else None

    def of_text(
        self, text: str, *, add_special_tokens: bool = True, max_tokens: int | None = None
    ) -> PromptEncoding:
        """The ids of a text; it is refused as soon as it has ``max_tokens`` of them and more to come."""
        return self.encode("prompt", text, add_special_tokens=add_special_tokens, max_tokens=max_tokens)

    def of_conversation(
        self,
        messages: list[dict[str, Any]],
        given: dict[str, Any] | None = None,
        *,
        max_tokens: int | None = None,
    ) -> PromptEncoding:
        """``given`` is what the template is given beside the messages, ``tools`` for example, and how its text ends
        (``ConversationEnd``)."""
        if isinstance(self.chat_templates, str):
            raise InvalidRequest(self.chat_templates, param="messages")
        given = dict(given or {})
        end = ConversationEnd.of(given)
        if given.get("tools") is None:
            given.pop("tools", None)
        for name, value in given.items():
            measure("tools" if name == "tools" else "chat_template_kwargs", value)
        template = self.chat_templates.choose(given)
        if "tools" in given:
            given["tools"] = plain_tools(given["tools"], template.keys)
        plain = yield from plain_messages(messages, self.max_prompt_bytes, template.style, template.keys)
        plain = end.marked(plain)
        if self.sanitizer is not None:
            plain, given = self.sanitizer.mark(plain), self.sanitizer.mark(given)
        iterations = Iterations(len(plain))
        pause_at = iterations.left - ITERATIONS_AT_ONCE
        written = template.write(
            plain, given, add_generation_prompt=end.add_generation_prompt, iterations=iterations
        )
        texts: list[str] = []
        characters = 0
        for number, text in enumerate(written, 1):
            texts.append(text)
            characters += len(text)
            if characters > self.max_prompt_bytes:
                raise self.too_long("messages", f"more than {self.max_prompt_bytes}")
            if number % OUTPUTS_AT_ONCE == 0 or iterations.left <= pause_at:
                pause_at = iterations.left - ITERATIONS_AT_ONCE
                yield max(characters, PART)
        # The template writes the special tokens itself.
        text = end.cut("".join(texts))
        if self.sanitizer is None:
            return (yield from self.encode("messages", text, add_special_tokens=False, max_tokens=max_tokens))
        return (yield from self.encode_sanitized(self.sanitizer, text, max_tokens))

    def encode_sanitized(self, sanitizer: Sanitizer, text: str, max_tokens: int | None) -> PromptEncoding:
        """The tokens of a rendered conversation with marks in it."""
        ids = array("i")
        for number, (piece, marked) in enumerate(sanitizer.pieces(text)):
            if number % OUTPUTS_AT_ONCE == OUTPUTS_AT_ONCE - 1:
                yield len(text)
            if marked:
                ids += sanitizer.encode_name(piece)
            elif number == 0:
                ids += yield from self.encode(
                    "messages", piece, add_special_tokens=False, max_tokens=max_tokens
                )
            else:  # behind a line's end, or some tokenizers would put a space before it
                behind = yield from self.encode(
                    "messages", "\n" + piece, add_special_tokens=False, max_tokens=max_tokens
                )
                line = encode(self.tokenizer, "\n", special=False)
                if behind[: len(line)] == line:
                    ids += behind[len(line) :]
                else:
                    ids += yield from self.encode(
                        "messages", piece, add_special_tokens=False, max_tokens=max_tokens
                    )
        return ids

    def encode(
        self, where: str, text: str, *, add_special_tokens: bool, max_tokens: int | None = None
    ) -> PromptEncoding:
        """``where`` is the field that the text is or was made of."""
        what = WHAT[where]
        if not text:
            raise InvalidRequest(f"{what} is empty; give at least one character", param=where)
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                f"{what} has the lone surrogate {text[error.start]!r} at character {error.start},"
                " which no UTF-8 can hold; send whole characters",
                param=where,
            ) from None
        if size > self.max_prompt_bytes:
            raise self.too_long(where, str(size))
        if len(text) <= PART:
            return encode(self.tokenizer, text, special=add_special_tokens)
        yield len(text)
        cutter = self.cutter
        ids = array("i", cutter.head if add_special_tokens else ())
        for start, end in cutter.cuts(text):
            if end - start > LONGEST_PART:
                raise InvalidRequest(
                    f"{what} has {end - start} characters from character {start} on without a place to cut it (a space"
                    f" between two words, or a letter at the begin of a line); the limit is {LONGEST_PART}:"
                    " break it into lines, or send token ids",
                    param=where,
                )
            ids += cutter.tokens_of(text, start, end)
            if max_tokens is not None and len(ids) >= max_tokens:
                raise InvalidRequest(
                    f"{what} has {len(ids)} tokens in its first {end} of {len(text)} characters; this model's maximum"
                    f" context length is {max_tokens} tokens (max_model_len), answer included: shorten it",
                    param=where,
                    code="context_length_exceeded",
                )
            yield len(text) - end
        return ids + cutter.tail if add_special_tokens else ids

    def too_long(self, where: str, size: str) -> InvalidRequest:
        message = f"{WHAT[where]} has {size} bytes; the limit is {self.max_prompt_bytes}: shorten it"
        return InvalidRequest(message, param=where, code="context_length_exceeded")

    @cached_property
    def cutter(self) -> Cutter:
        """Made when a long text comes: that takes up to half a second, and many services never see one."""
        return Cutter(self.tokenizer)


def load_texts(
    folder: Path, clock: Clock, chat_template: str | None = None, known: Mapping[str, str] | None = None
) -> tuple[tokenizers.Tokenizer, ChatTemplates | str]:
    """The tokenizer and the chat templates of a model's folder, or the sentence that says why it has none.

    ``chat_template`` is the path of a template to use instead; ``ModelNotSupported`` if that is none. Templates
    that are ``known`` are not read again.
    """
    tokenizer = load_tokenizer(folder)
    file = None if chat_template is None else Path(chat_template)
    try:
        found = load_chat_templates(folder, file, clock, known)
    except ModelNotSupported as error:
        if file is not None:
            raise
        return tokenizer, f"{error}; {ADVICE}"  # a plain prompt needs none
    return tokenizer, found or f"the model in {folder} has no chat template; {ADVICE}"


MAX_SETTLED_BYTES = 1 << 16
"""Most bytes of templates that later incarnations are handed: all of any known model are fewer, and they fit into a
packet between a supervisor and its children."""


def settled(templates: ChatTemplates | str) -> dict[str, Any]:
    """The options by which later incarnations have the same templates, as a fact of an actor."""
    sources = {} if isinstance(templates, str) else templates.sources
    fits = 0 < sum(len(source.encode()) for source in sources.values()) <= MAX_SETTLED_BYTES
    return {"settled": {"chat_templates": sources}} if fits else {}
