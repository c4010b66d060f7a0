"""From what a client asks with to token ids: a text, or a conversation by way of the model's chat template.

For the tokenizer, and for the faces that tell how a text would be tokenized.
"""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import tokenizers

from ...protocol.errors import InvalidRequest, ModelNotSupported
from ...protocol.limits import MAX_DEPTH, MAX_MESSAGES
from ...protocol.sampling import counted
from .tokenizer_files import ChatTemplate, load_chat_template, load_tokenizer

MAX_PROMPT_BYTES = 4 * 1024 * 1024
"""Most bytes of UTF-8 in a prompt or in a rendered conversation, where the options name no other limit."""

ADVICE = "add one to the folder as chat_template.jinja, or send a prompt instead of messages"


class Prompts:
    """A model's tokenizer and chat template."""

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        chat_template: ChatTemplate | str,
        max_prompt_bytes: int = MAX_PROMPT_BYTES,
    ) -> None:
        """``chat_template`` is the template, or the sentence that says why there is none."""
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.max_prompt_bytes = max_prompt_bytes

    def of_text(self, text: str, *, add_special_tokens: bool = True) -> array[int]:
        return self.encode("prompt", text, add_special_tokens=add_special_tokens)

    def of_conversation(
        self,
        messages: list[dict[str, Any]],
        given: dict[str, Any] | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> array[int]:
        """``given`` is what the template is given beside the messages, ``tools`` for example."""
        if isinstance(self.chat_template, str):
            raise InvalidRequest(self.chat_template, param="messages")
        plain = plain_messages(messages, self.max_prompt_bytes)
        given = given or {}
        for name, value in given.items():
            measure("tools" if name == "tools" else "chat_template_kwargs", value)
        text = self.chat_template.render(plain, given, add_generation_prompt=add_generation_prompt)
        # The template writes the special tokens itself.
        return self.encode("messages", text, add_special_tokens=False)

    def encode(self, where: str, text: str, *, add_special_tokens: bool) -> array[int]:
        """``where`` is the field that the text is or was made of."""
        what = "the prompt" if where == "prompt" else "the conversation"
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
            raise InvalidRequest(
                f"{what} has {size} bytes; the limit is {self.max_prompt_bytes}: shorten it", param=where
            )
        return array("i", self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)


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
