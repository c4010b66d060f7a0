"""From what a client asks with to token ids: a text, or a conversation by way of the model's chat template.

For the tokenizer, and for the faces that tell how a text would be tokenized.
"""

from __future__ import annotations

from array import array
from collections.abc import Generator
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from ...protocol.errors import InvalidRequest, ModelNotSupported
from ...protocol.limits import MAX_DEPTH, MAX_MESSAGES
from ...protocol.sampling import counted
from .cutting import LONGEST_PART, PART, Cutter, encode
from .tokenizer_files import ChatTemplate, load_chat_template, load_tokenizer

MAX_PROMPT_BYTES = 4 * 1024 * 1024
"""Most bytes of UTF-8 in a prompt or in a rendered conversation, where the options name no other limit."""

ENCODING_BUDGET_S = 10.0
"""Most time that one request may take to become token ids. The longest texts that are taken need a third of it."""

Steps = Generator[int, None, "array[int]"]
"""A prompt on its way to token ids. It pauses after each 50 ms or so of work, and says how many characters are
left to do; what it returns in the end are the ids."""

OUTPUTS_AT_ONCE = 500
"""Pieces of text that a chat template writes between two pauses; most take microseconds, some templates look at all
messages again for each."""

WHAT = {"prompt": "the prompt", "messages": "the conversation"}

ADVICE = "add one to the folder as chat_template.jinja, or send a prompt instead of messages"


class Prompts:
    """A model's tokenizer and chat template."""

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        chat_template: ChatTemplate | str,
        max_prompt_bytes: int = MAX_PROMPT_BYTES,
        max_model_len: int | None = None,
    ) -> None:
        """``chat_template`` is the template, or the sentence that says why there is none. A prompt of more than
        ``max_model_len`` tokens is refused as soon as it has so many."""
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.max_prompt_bytes = max_prompt_bytes
        self.max_model_len = max_model_len

    def of_text(self, text: str, *, add_special_tokens: bool = True) -> Steps:
        return self.encode("prompt", text, add_special_tokens=add_special_tokens)

    def of_conversation(
        self,
        messages: list[dict[str, Any]],
        given: dict[str, Any] | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> Steps:
        """``given`` is what the template is given beside the messages, ``tools`` for example."""
        if isinstance(self.chat_template, str):
            raise InvalidRequest(self.chat_template, param="messages")
        plain = plain_messages(messages, self.max_prompt_bytes)
        given = given or {}
        for name, value in given.items():
            measure("tools" if name == "tools" else "chat_template_kwargs", value)
        written = self.chat_template.write(plain, given, add_generation_prompt=add_generation_prompt)
        texts: list[str] = []
        characters = 0
        for number, text in enumerate(written, 1):
            texts.append(text)
            characters += len(text)
            if characters > self.max_prompt_bytes:
                raise self.too_long("messages", f"more than {self.max_prompt_bytes}")
            if number % OUTPUTS_AT_ONCE == 0:
                yield max(characters, PART)
        # The template writes the special tokens itself.
        text = "".join(texts)
        return (yield from self.encode("messages", text, add_special_tokens=False))

    def encode(self, where: str, text: str, *, add_special_tokens: bool) -> Steps:
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
            if self.max_model_len is not None and len(ids) >= self.max_model_len:
                raise InvalidRequest(
                    f"{what} has {len(ids)} tokens in its first {end} of {len(text)} characters; this model's maximum"
                    f" context length is {self.max_model_len} tokens (max_model_len), answer included: shorten it",
                    param=where,
                    code="context_length_exceeded",
                )
            yield len(text) - end
        return ids + cutter.tail if add_special_tokens else ids

    def too_long(self, where: str, size: str) -> InvalidRequest:
        message = f"{WHAT[where]} has {size} bytes; the limit is {self.max_prompt_bytes}: shorten it"
        return InvalidRequest(message, param=where)

    @cached_property
    def cutter(self) -> Cutter:
        """Made when a long text comes: that takes up to half a second, and many services never see one."""
        return Cutter(self.tokenizer)


def load_texts(folder: Path) -> tuple[tokenizers.Tokenizer, ChatTemplate | str]:
    """The tokenizer and the chat template of a model's folder, or the sentence that says why it has none."""
    tokenizer = load_tokenizer(folder)
    try:
        return tokenizer, load_chat_template(
            folder
        ) or f"the model in {folder} has no chat template; {ADVICE}"
    except ModelNotSupported as error:  # a plain prompt needs none
        return tokenizer, f"{error}; {ADVICE}"


def plain_messages(messages: list[dict[str, Any]], max_bytes: int) -> list[dict[str, Any]]:
    """The conversation as templates expect it: no empty fields, and text parts joined to one text."""
    if not messages:
        raise InvalidRequest("messages is empty; give at least one message", param="messages")
    counted("messages", len(messages), MAX_MESSAGES, "messages")
    room = max_bytes
    plain: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise InvalidRequest(
                f"{where} is {message!r:.80}; expected a map with role and content", param=where
            )
        room -= measure(where, message)
        if room < 0:
            raise InvalidRequest(
                f"messages has more than {max_bytes} characters up to {where}: shorten it", param="messages"
            )
        message = {key: value for key, value in message.items() if value is not None}
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise InvalidRequest(
                f"{where}.role is {role!r:.80}; expected a text such as 'user'", param=f"{where}.role"
            )
        if "content" in message:
            message["content"] = plain_content(f"{where}.content", message["content"])
        elif "tool_calls" not in message:
            raise InvalidRequest(f"{where}.content is missing; give a text", param=f"{where}.content")
        plain.append(message)
    return plain


def plain_content(where: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(
            f"{where} is {content!r:.80}; expected a text or a list of text parts", param=where
        )
    texts: list[str] = []
    for index, part in enumerate(content):
        text = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else None
        if not isinstance(text, str):
            raise InvalidRequest(
                f"{where}[{index}] is {part!r:.80}; expected a part of type 'text'", param=f"{where}[{index}]"
            )
        texts.append(text)
    return "\n".join(texts)


def measure(where: str, value: Any, depth: int = 0) -> int:
    """Characters and items in a message; ``InvalidRequest`` where it is nested too deeply to be rendered."""
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"{where} is nested deeper than {MAX_DEPTH} levels", param=where)
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(len(key) + measure(where, item, depth + 1) for key, item in value.items())
    if isinstance(value, list):
        return len(value) + sum(measure(where, item, depth + 1) for item in value)
    return 1
