"""What a model's folder says about text: its tokenizer and its chat template.

Read with ``tokenizers`` and ``jinja2`` alone; torch and transformers are not imported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import tokenizers
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ...protocol.errors import InvalidRequest, ModelNotSupported
from ..checkpoint import read_json

SLOW_FILES = ["tokenizer.model", "spiece.model", "vocab.json"]
"""What a model has that only tokenizers written in Python can read."""


def load_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer in ``tokenizer.json``, with what its configuration calls special marked so."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        slow = [name for name in SLOW_FILES if (folder / name).is_file()]
        found = f"only {', '.join(slow)}" if slow else "no tokenizer at all"
        raise ModelNotSupported(
            f"{folder} has no tokenizer.json ({found}); make one in Python with transformers:"
            f" AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        )
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ModelNotSupported(f"{path} cannot be read as a tokenizer: {error}") from None
    tokenizer.no_truncation()  # some files carry the settings of their training
    tokenizer.no_padding()
    known = [text for text in special_tokens(folder).values() if tokenizer.token_to_id(text) is not None]
    tokenizer.add_special_tokens(known)  # of tokens that have an id already, this only marks them
    return tokenizer


def special_tokens(folder: Path) -> dict[str, str]:
    """The named special tokens, such as ``bos_token``, as chat templates know them."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        config = read_json(folder / name)
        extra = config.get("extra_special_tokens")
        for key, value in [*config.items(), *(extra.items() if isinstance(extra, dict) else ())]:
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                found[key] = text
    return found


def load_chat_template(folder: Path) -> ChatTemplate | None:
    """The model's chat template, of several the one named ``default``; None if it has none."""
    source = find_chat_template(folder)
    if source is None:
        return None
    try:
        return ChatTemplate(source, special_tokens(folder))
    except TemplateError as error:
        raise ModelNotSupported(f"the chat template of {folder} does not compile: {error}") from None


def find_chat_template(folder: Path) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = read_json(folder / name).get("chat_template")
        if isinstance(found, list):
            found = {entry["name"]: entry["template"] for entry in found}
        if isinstance(found, dict):
            found = found.get("default")
        if isinstance(found, str):
            return found
    return None


OURS = frozenset({"messages", "add_generation_prompt", "raise_exception", "strftime_now"})
"""What every template is given; a request cannot replace it."""


class ChatTemplate:
    """A model's own template, in a sandbox, with the names and filters that transformers gives to it."""

    def __init__(
        self, source: str, special_tokens: dict[str, str], clock: Callable[[], datetime] = datetime.now
    ) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
        )
        environment.filters["tojson"] = tojson
        environment.globals["raise_exception"] = raise_exception
        environment.globals["strftime_now"] = lambda format: clock().strftime(format)
        self.template = environment.from_string(source)
        self.special_tokens = special_tokens
        self.names = find_undeclared_variables(environment.parse(source)) - OURS - special_tokens.keys()
        """What can be given to the template beside the messages; anything else would have no effect."""

    def write(
        self,
        messages: list[dict[str, Any]],
        given: dict[str, Any] | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> Iterator[str]:
        """The prompt for an answer to ``messages``, in parts as the template writes it.

        ``given`` are ``tools`` and whatever else this template knows. ``InvalidRequest`` if the template does not
        take what it is given.
        """
        given = given or {}
        if "tools" in given.keys() - self.names:
            raise InvalidRequest(
                "tools are given, but the model's chat template takes none; leave tools out", param="tools"
            )
        for name in given.keys() - self.names:
            known = ", ".join(sorted(self.names)) or "none"
            raise InvalidRequest(
                f"chat_template_kwargs has {name!r:.80}, which the model's chat template does not know;"
                f" it knows {known}",
                param="chat_template_kwargs",
            )
        try:
            yield from self.template.generate(
                {"tools": None, "documents": None} | self.special_tokens | given,
                messages=messages,
                add_generation_prompt=add_generation_prompt,
            )
        except Refusal as error:
            raise InvalidRequest(
                f"the model's chat template refuses the messages: {error}", param="messages"
            ) from None
        except Exception as error:  # a template is a program: it can raise anything
            raise InvalidRequest(
                f"the model's chat template cannot render the messages ({type(error).__name__}: {error});"
                " check their roles and fields",
                param="messages",
            ) from None


class Refusal(TemplateError):
    """What a template says by ``raise_exception``."""


class Generation(Extension):
    """``{% generation %}`` marks the model's part for training; here its body is rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("rendered"), [], [], body).set_lineno(line)

    def rendered(self, caller: Macro) -> str:
        return caller()


def raise_exception(message: str) -> None:
    raise Refusal(message)


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is, with the options that templates use: jinja2's own filter escapes for HTML."""
    options: dict[str, Any] = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)
