"""Reads the sources of chat templates from files; it imports nothing that renders them."""

from __future__ import annotations

from pathlib import Path

from ..protocol.errors import ModelNotSupported
from .checkpoint import read_json

DEFAULT_TEMPLATE = "default"
"""The name under which a chat template without one is known."""

MAX_TEMPLATE_CHARACTERS = 1024 * 1024
"""Most characters of a chat template; the longest of known ones has 30,000."""


def given_template(path: Path) -> str:
    """The source of the chat template that an operator gives; ``ModelNotSupported`` if there is none in the file."""
    text = read_template(path)
    if not text.strip():
        raise ModelNotSupported(f"the chat template {path} is empty")
    return text


def read_template(path: Path) -> str:
    """The source of a chat template; ``ModelNotSupported`` if the file cannot be read as text."""
    if path.exists() and not path.is_file() and not path.is_dir():  # to read a pipe is to wait for ever
        raise ModelNotSupported(f"the chat template {path} is no file")
    try:
        with path.open(encoding="utf-8-sig") as file:  # some editors begin a file with a byte order mark
            text = file.read(MAX_TEMPLATE_CHARACTERS + 1)
        if len(text) > MAX_TEMPLATE_CHARACTERS:
            raise ModelNotSupported(
                f"the chat template {path} has more than {MAX_TEMPLATE_CHARACTERS} characters"
            )
        return text
    except (OSError, UnicodeDecodeError) as error:
        raise ModelNotSupported(f"the chat template {path} cannot be read: {error}") from None


def chat_template_sources(folder: Path) -> dict[str, str]:
    """A model's chat templates by name, from every place where transformers writes them or once wrote them."""
    found: dict[str, str] = {}
    for name in ("tokenizer_config.json", "chat_template.json"):
        given = read_json(folder / name).get("chat_template")
        if isinstance(given, list) and all(isinstance(entry, dict) for entry in given):
            given = {entry.get("name"): entry.get("template") for entry in given}
        if isinstance(given, str):
            given = {DEFAULT_TEMPLATE: given}
        given = {} if given is None else given
        if not isinstance(given, dict) or not all(
            isinstance(text, str) for pair in given.items() for text in pair
        ):
            raise ModelNotSupported(
                f"{folder / name} has {given!r:.80} as chat_template; expected a text, or texts by their names"
            )
        found |= given
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = read_template(path)
    path = folder / "chat_template.jinja"
    if path.is_file():
        found[DEFAULT_TEMPLATE] = read_template(path)
    return {name: text for name, text in found.items() if text.strip()}  # an empty one is none
