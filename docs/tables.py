"""Fills in the tables of these documents, from the code that they are about.

``python docs/tables.py`` rewrites what stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` in each
document; with ``--check`` it says which documents are out of date instead. The tables of ``models.md`` have other
marks: ``models.py`` makes them, in some minutes.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from slipstream.actors.executor.model.quantization.scheme import METHODS, OTHER_METHODS
from slipstream.actors.http.bodies import requests
from slipstream.actors.http.messages.blocks import BLOCKS
from slipstream.actors.http.messages.reading import TOOL
from slipstream.actors.http.responses.items import ITEMS
from slipstream.actors.http.responses.items import PART as ITEM_PART
from slipstream.actors.http.responses.tools import TOOLS
from slipstream.actors.text.prompts import keys
from slipstream.actors.text.prompts.keys import Keys
from slipstream.runtime.options.table import Option, table

from slipstream.options.serve import ServeOptions
from slipstream.reference import schema as reference

HERE = Path(__file__).parent

PART = re.compile(r"(<!-- begin (?P<name>[\w-]+) -->\n).*?(<!-- end (?P=name) -->)", re.DOTALL)


def options_tables() -> str:
    """Every option of ``slipstream serve``, by its group."""
    groups: dict[str, list[tuple[str, ...]]] = {}
    for option in table(ServeOptions).values():
        groups.setdefault(option.group, []).append(
            (flag(option), f"`{option.variable}`", values(option), default(option), meaning(option))
        )
    head = ("option", "in the environment", "value", "default", "meaning")
    return "\n\n".join(
        f"## {group.capitalize()}\n\n{reference.table(head, rows)}" for group, rows in groups.items()
    )


def flag(option: Option) -> str:
    return f"`{option.flag}`" + (f", `--no-{option.key}`" if option.default is True else "")


def values(option: Option) -> str:
    """What may be given."""
    if option.kind is bool:
        return ""
    if option.choices:
        return ", ".join(f"`{choice}`" for choice in option.choices)
    name = option.metavar or {int: "N", float: "F"}.get(option.kind, "TEXT")
    bounds = [(option.low, "at least"), (option.above, "above"), (option.high, "at most")]
    limits = [f"{word} {bound:,}" for bound, word in bounds if bound is not None]
    return ", ".join([name, *limits])


def default(option: Option) -> str:
    if option.kind is bool:
        return "on" if option.default else "off"
    return "" if option.default is None else f"`{option.default}`"


def meaning(option: Option) -> str:
    only = "" if option.in_file else " Not in a file."
    text = option.help[0].upper() + option.help[1:] + "."
    return (text + only).replace("|", "\\|")


def http_fields_table() -> str:
    """The fields of a body, those that have the names of sampling parameters, and those with one value alone."""

    def fixed(values: Mapping[str, object]) -> str:
        return ", ".join(f"`{name}: {json.dumps(value)}`" for name, value in sorted(values.items()))

    chat = {name: value for name, value in requests.FIXED_IN_CHAT.items() if name not in requests.FIXED}
    text = {
        name: value for name, value in requests.FIXED_IN_COMPLETIONS.items() if name not in requests.FIXED
    }

    def own(kind: type, *others: type) -> str:
        """The fields that a body declares itself."""
        taken = {name for other in others for name in other.__struct_fields__}
        return ", ".join(f"`{name}`" for name in kind.__struct_fields__ if name not in taken)

    outputs = ", ".join(f"`structured_outputs.{name}`" for name in requests.MATCHES.values())
    rows = [
        ("in chats and completions", own(requests.Choices, requests.Labels)),
        ("in a chat", own(requests.ChatFields, requests.Choices)),
        ("in a completion", own(requests.CompletionFields, requests.Choices)),
        ("what an answer matches: one of", f"{outputs}, `structured_outputs.json_object`"),
        ("a caller's own labels, kept nowhere", own(requests.Labels)),
        ("parameters of sampling", ", ".join(f"`{field.name}`" for field in requests.PARAMETERS)),
        ("with this value alone, or null", fixed(requests.FIXED)),
        ("the same, in a chat", fixed(chat)),
        ("the same, in a completion", fixed(text)),
    ]
    return reference.table(("what", "fields"), rows)


def keys_table(*kinds: Keys) -> str:
    """The keys of a conversation's parts, and those of them that ask for nothing."""

    def named(names: Iterable[str]) -> str:
        return ", ".join(f"`{name}`" for name in sorted(names))

    rows: list[tuple[str, str, str]] = []
    for kind in kinds:
        fixed = [f"`{name}: {json.dumps(value)}`" for name, value in sorted(kind.fixed.items())]
        idle = ", ".join(filter(None, [named(kind.idle), *fixed]))
        rows.append((kind.what, named(kind.meant), idle))
    return reference.table(("what", "fields", "taken, and without effect"), rows)


def quantizations_table() -> str:
    """How weights may be quantized, and what of that is read; then what is known not to be."""
    rows = [(f"`{method}`", (reader.__doc__ or "").rstrip(".")) for method, reader in METHODS.items()]
    rows += [(f"`{method}`", f"refused: {why}") for method, why in OTHER_METHODS.items()]
    return reference.table(("`quant_method`", "what is read"), rows)


def tables() -> Mapping[str, str]:
    return {
        **reference.tables(),
        "options": options_tables(),
        "http-fields": http_fields_table(),
        "conversation-keys": keys_table(
            keys.MESSAGE, keys.TEXT, keys.REFUSAL, keys.CALL, keys.CALLED, keys.TOOL, keys.FUNCTION
        ),
        "responses-keys": keys_table(*ITEMS.values(), ITEM_PART, *TOOLS.values()),
        "messages-keys": keys_table(*BLOCKS.values(), TOOL),
        "quantizations": quantizations_table(),
    }


def filled(text: str, parts: Mapping[str, str]) -> str:
    """The document with its tables as they should be; an unknown name is a ``KeyError``."""
    return PART.sub(lambda found: f"{found[1]}\n{parts[found['name']]}\n\n{found[3]}", text)


def contents() -> dict[Path, str]:
    """Each document that is made from the code, wholly or in part, as it should be."""
    parts = tables()
    found = {path: path.read_text(encoding="utf-8") for path in sorted(HERE.glob("*.md"))}
    made = {path: filled(text, parts) for path, text in found.items() if PART.search(text)}
    return {**made, HERE / "protocol.schema.json": reference.schema_text()}


def main(arguments: list[str]) -> int:
    stale = [
        (path, text)
        for path, text in contents().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path, text in stale:
        print(path.relative_to(HERE.parent))
        if arguments != ["--check"]:
            path.write_text(text, encoding="utf-8")
    return 1 if stale and arguments == ["--check"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
