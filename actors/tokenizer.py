"""The tokenizer: text, token ids or a conversation go in; a checked prompt of token ids comes out.

It keeps nothing between two messages, so a restart loses nothing that the gateway cannot send again.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

import tokenizers

from ..protocol.errors import InvalidRequest, ModelNotSupported, SlipstreamError
from ..protocol.messages import Cancel, Enqueue, Refused, Submit, Tokenized
from ..runtime.actor import Actor
from .text import ChatTemplate, find_folder, load_chat_template, load_tokenizer

if TYPE_CHECKING:
    from ..runtime.child import StartContext

MAX_PROMPT_BYTES = 4 * 1024 * 1024
"""Most bytes of UTF-8 in a prompt or in a rendered conversation, where the options name no other limit."""

ADVICE = "add one to the folder as chat_template.jinja, or send a prompt instead of messages"

MAX_DEPTH = 16
"""Deepest nesting of lists and maps in a chat message."""

MAX_MESSAGE_CHARS = 1000
"""Longest refusal: a template's complaint may quote the whole conversation."""


class Tokenizer(Actor):
    """Makes token ids of prompts, and refuses those that the model cannot take."""

    name = "tokenizer"

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        chat_template: ChatTemplate | str,
        max_model_len: int,
        vocab_size: int | None = None,
        max_prompt_bytes: int = MAX_PROMPT_BYTES,
    ) -> None:
        """``chat_template`` is the template, or the sentence that says why there is none."""
        super().__init__()
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.max_model_len = max_model_len
        self.vocab_size = vocab_size or tokenizer.get_vocab_size()
        self.max_prompt_bytes = max_prompt_bytes
        self.handlers |= {Submit: self.on_submit, Cancel: self.on_cancel}
        self.refused = 0
        """Requests that can never succeed as they stand."""
        self.failed = 0
        """Requests that met an error of ours; among ``refused`` too."""

    def on_submit(self, submit: Submit, now: float) -> None:
        try:
            prompt = self.token_ids(submit)
            self.check_ids("the prompt", prompt)
            delivered = array("i", submit.delivered)
            self.check_ids("received", delivered)
            self.check_length(len(prompt), len(delivered))
        except SlipstreamError as error:
            self.refuse(submit.request, error.code, str(error))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # one request fails only itself; a panic in Rust is no Exception
            self.failed += 1
            reason = f"the prompt cannot be encoded ({type(error).__name__}: {error})"
            self.refuse(submit.request, "internal", reason)
        else:
            ids = prompt.tobytes()
            self.mark("tokenized", submit.request)
            self.send("gateway", Tokenized(submit.request, ids))
            self.send(
                "scheduler",
                Enqueue(submit.request, ids, submit.params, submit.delivered, submit.client, submit.attempt),
            )

    def on_cancel(self, cancel: Cancel, now: float) -> None:
        """Passed on behind the request that it ends: messages to the scheduler stay in order."""
        self.send("scheduler", cancel)

    def refuse(self, request: int, code: str, message: str) -> None:
        self.refused += 1
        self.send("gateway", Refused(request, code, message[:MAX_MESSAGE_CHARS]))

    def token_ids(self, submit: Submit) -> array[int]:
        prompt = submit.prompt
        if prompt is None:
            return array("i", submit.prompt_ids)
        if isinstance(prompt, str):
            return self.encode("the prompt", prompt, add_special_tokens=True)
        if isinstance(self.chat_template, str):
            raise InvalidRequest(self.chat_template)
        messages = plain_messages(prompt, self.max_prompt_bytes)
        # The template writes the special tokens itself.
        return self.encode("the conversation", self.chat_template.render(messages), add_special_tokens=False)

    def encode(self, what: str, text: str, *, add_special_tokens: bool) -> array[int]:
        if not text:
            raise InvalidRequest(f"{what} is empty; give at least one character")
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                f"{what} has the lone surrogate {text[error.start]!r} at character {error.start},"
                " which no UTF-8 can hold; send whole characters"
            ) from None
        if size > self.max_prompt_bytes:
            raise InvalidRequest(f"{what} has {size} bytes; the limit is {self.max_prompt_bytes}: shorten it")
        return array("i", self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def check_ids(self, what: str, ids: array[int]) -> None:
        if ids and (min(ids) < 0 or max(ids) >= self.vocab_size):
            place, wrong = next((i, t) for i, t in enumerate(ids) if not 0 <= t < self.vocab_size)
            raise InvalidRequest(
                f"{what} has token id {wrong} at position {place};"
                f" a token id of this model is 0 to {self.vocab_size - 1}"
            )

    def check_length(self, prompt: int, delivered: int) -> None:
        if not prompt:
            raise InvalidRequest("the prompt has no tokens; give at least one")
        room_for_new = 0 if delivered else 1  # an answer sent again may lack only the news of its end
        if prompt + delivered + room_for_new > self.max_model_len:
            resumed = f" and {delivered} tokens of the answer were received" if delivered else ""
            raise InvalidRequest(
                f"the prompt has {prompt} tokens{resumed}; prompt and answer together have at most"
                f" {self.max_model_len} tokens (max_model_len), one of them new: shorten the prompt"
            )


def plain_messages(messages: list[dict[str, Any]], max_bytes: int) -> list[dict[str, Any]]:
    """The conversation as templates expect it: no empty fields, and text parts joined to one text."""
    if not messages:
        raise InvalidRequest("messages is empty; give at least one message")
    room = max_bytes
    plain: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise InvalidRequest(f"{where} is {message!r:.80}; expected a map with role and content")
        room -= measure(where, message)
        if room < 0:
            raise InvalidRequest(f"messages has more than {max_bytes} characters up to {where}: shorten it")
        message = {key: value for key, value in message.items() if value is not None}
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise InvalidRequest(f"{where}.role is {role!r:.80}; expected a text such as 'user'")
        if "content" in message:
            message["content"] = plain_content(f"{where}.content", message["content"])
        elif "tool_calls" not in message:
            raise InvalidRequest(f"{where}.content is missing; give a text")
        plain.append(message)
    return plain


def plain_content(where: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} is {content!r:.80}; expected a text or a list of text parts")
    texts: list[str] = []
    for index, part in enumerate(content):
        text = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else None
        if not isinstance(text, str):
            raise InvalidRequest(f"{where}[{index}] is {part!r:.80}; expected a part of type 'text'")
        texts.append(text)
    return "\n".join(texts)


def measure(where: str, value: Any, depth: int = 0) -> int:
    """Characters and items in a message; ``InvalidRequest`` where it is nested too deeply to be rendered."""
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"{where} is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(len(key) + measure(where, item, depth + 1) for key, item in value.items())
    if isinstance(value, list):
        return len(value) + sum(measure(where, item, depth + 1) for item in value)
    return 1


def build(context: StartContext) -> Actor:
    """The tokenizer of a service, from its options."""
    options = context.options
    context.phase("load tokenizer")
    folder = find_folder(options["model"])
    tokenizer = load_tokenizer(folder)
    try:
        chat_template = load_chat_template(folder) or f"the model in {folder} has no chat template; {ADVICE}"
    except ModelNotSupported as error:  # a plain prompt needs none
        chat_template = f"{error}; {ADVICE}"
    return Tokenizer(
        tokenizer,
        chat_template,
        options["max_model_len"],
        options.get("vocab_size"),
        options.get("max_prompt_bytes") or MAX_PROMPT_BYTES,
    )
