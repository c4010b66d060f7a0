"""Writes the grammar that a request asks for in the notation of ``llguidance``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import quote

import msgspec
from llguidance import regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark

from ....protocol.codec import as_whole
from ....protocol.formats.moved_schemas import NAMED, VALUES
from ....protocol.formats.schemas import is_neutral
from ....protocol.sampling import Grammar

JSON_STYLE = {
    "whitespace_pattern": "[ ]?",  # a weak model would go on with spaces for ever
    "lenient": False,  # a keyword without effect is refused
    "coerce_one_of": False,
}

LENIENT_STYLE = JSON_STYLE | {"lenient": True, "coerce_one_of": True}
"""For arguments of calls that are looked at again where the library may have left something out."""

NO_FORCING = '%llguidance {"no_forcing": true}'
"""The model chooses among all the ways to write the one text that can follow. To force one of them, the
library would look ahead without a limit: 0.4 s for ``(a{1000}){1000}``."""

ANSWER = "the_answer"
"""The name of a grammar behind what may stand before it."""

ANY_TEXT = "/(?s:.*)/"

OPTIONS = re.compile(r"%llguidance\s+(?!\{\s*\})")
"""Options of the library's that ask for something; they are the service's to set."""


class Grammars(msgspec.Struct, forbid_unknown_fields=True):
    """Several grammars, the first of which names the others."""

    grammars: list[dict[str, Any]]


class Structure(msgspec.Struct, forbid_unknown_fields=True):
    """The rule that an answer must follow once a trigger has come in it."""

    begin: str
    """Begins with a trigger."""
    schema: dict[str, Any]
    end: str


class StructuralTag(msgspec.Struct, forbid_unknown_fields=True):
    structures: list[Structure]
    triggers: list[str]
    type: str = "structural_tag"


def as_llguidance(grammar: Grammar, control: Collection[str]) -> str:
    """The grammar in the library's own notation; most of its errors show when it is compiled. ``control`` are the names
    of tokens that no text has. ``ValueError`` says what is wrong with it. What may stand before the answer, a model's
    thoughts, is not held to it, except to which tokens and words may come at all."""
    notation = NOTATIONS[grammar.kind](grammar.source, control)
    if not grammar.before or grammar.kind in ("allowed_token_ids", "bad_words"):
        return notation
    # Two grammars, the first of which names the other, since a user's own may have any rules in it.
    if not notation.startswith("{"):
        notation = json.dumps({"grammars": [{"lark_grammar": notation}]})
    [answer, *others] = json.loads(notation)["grammars"]
    whole = {"lark_grammar": f"{NO_FORCING}\nstart: before @{ANSWER}\n{grammar.before}"}
    return json.dumps({"grammars": [whole, answer | {"name": ANSWER}, *others]})


def json_schema(source: str, control: Collection[str]) -> str:
    schema = json.loads(source)
    if not isinstance(schema, dict):
        raise ValueError(f"expected an object, got {source:.80}")
    return f"{NO_FORCING}\nstart: {json_rule(schema)}"


def json_rule(schema: dict[str, Any], style: dict[str, Any] = JSON_STYLE) -> str:
    return f"%json {json.dumps(as_known(schema) | {'x-guidance': style})}"


NO_URI = re.compile(r"%(?![0-9A-Fa-f]{2})|[^%!$&'()*+,./0-9:;=?@A-Z_a-z~-]")
"""What a URI can only have in the form ``%20``."""


COUNTS = frozenset(
    {f"{bound}{what}" for bound in ("min", "max") for what in ("Items", "Length", "Properties")}
)
"""Keywords whose values are whole numbers, which JSON may write as ``5.0``; the library takes only ``5``."""


def as_known(schema: Any) -> Any:
    """A schema as the library wants it: references are URIs, though pydantic writes the names of classes into them as
    they are, in any script; whole numbers are written as such; and no keyword, which it may not know, is there only to
    ask for nothing."""
    if isinstance(schema, list):
        return [as_known(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key in VALUES:
            made[key] = value
        elif key in NAMED and isinstance(value, dict):
            made[key] = {name: as_known(each) for name, each in value.items()}
        elif key == "$ref" and isinstance(value, str):
            before, mark, path = value.partition("#")
            made[key] = before + mark + NO_URI.sub(lambda found: quote(found[0], safe=""), path)
        elif key in COUNTS:
            made[key] = as_whole(value)
        elif not is_neutral(key, value):
            made[key] = as_known(value)
    return made


def regex(source: str, control: Collection[str]) -> str:
    return f"{NO_FORCING}\nstart: /{regex_to_lark(source, use_ascii='')}/"


def choice(source: str, control: Collection[str]) -> str:
    return regex("|".join(map(literal, json.loads(source))), control)


def lark(source: str, control: Collection[str]) -> str:
    """Lark's notation, or GBNF, or the library's form of several grammars that name each other."""
    if OPTIONS.search(source):
        raise ValueError("%llguidance sets options, which are the service's here; leave it out")
    if source.lstrip().startswith("{"):
        grammars = msgspec.json.decode(source, type=Grammars).grammars
        for each in grammars:
            if isinstance(each.get("json_schema"), dict):
                each["lark_grammar"] = f"start: {json_rule(each.pop('json_schema'))}"
            if isinstance(each.get("lark_grammar"), str):
                each["lark_grammar"] = lark(each["lark_grammar"], control)
        return json.dumps({"grammars": grammars})
    try:
        written = any_to_lark(source)
    except Exception as error:  # of GBNF the library raises nothing more exact
        raise ValueError(str(error)) from None
    return f"{NO_FORCING}\n{written.replace('%llguidance', '// ')}"


def structural_tag(source: str, control: Collection[str]) -> str:
    """Any text, in which a structure follows each trigger."""
    tag = msgspec.json.decode(source, type=StructuralTag)
    if not tag.structures or not all(tag.triggers):
        raise ValueError("it has no structures, or an empty trigger; give at least one of each")
    rules: list[str] = []
    for number, trigger in enumerate(tag.triggers):
        bodies = [
            " ".join(
                [
                    *written(structure.begin.removeprefix(trigger), control),
                    json_rule(structure.schema),
                    *written(structure.end, control),
                ]
            )
            for structure in tag.structures
            if structure.begin.startswith(trigger)
        ]
        if bodies:
            rules.append(f"tag_{number}: trigger_{number} ({' | '.join(bodies)})")
            if trigger in control:
                rules.append(f"trigger_{number}: TEXT {trigger}")
            else:
                rules.append(f"trigger_{number}[lazy]: TEXT {json.dumps(trigger)}")
    begun = [structure.begin.startswith(tuple(tag.triggers)) for structure in tag.structures]
    if not all(begun):
        raise ValueError(
            f"the structure that begins with {tag.structures[begun.index(False)].begin!r:.80} begins with no trigger"
        )
    tags = " | ".join(rule.partition(":")[0] for rule in rules if rule.startswith("tag_"))
    return "\n".join([NO_FORCING, f"start: ({tags})* rest", "rest: TEXT", f"TEXT: {ANY_TEXT}", *rules])


def written(text: str, control: Collection[str]) -> list[str]:
    """A text as what follows on each other in a rule: control tokens by their names, and what is between them."""
    names = [name for name in control if name in text]
    if not names:
        return [json.dumps(text)] if text else []
    parts = re.split("(" + "|".join(map(re.escape, sorted(names, key=len, reverse=True))) + ")", text)
    return [part if part in names else json.dumps(part) for part in parts if part]


def allowed_token_ids(source: str, control: Collection[str]) -> str:
    """These tokens for ever: it matches no whole answer, so that the end comes only if it is one of them."""
    return f"{NO_FORCING}\nstart: <[{','.join(map(str, sorted(set(json.loads(source)))))}]> start"


def bad_words(source: str, control: Collection[str]) -> str:
    """Any text without these."""
    words = "|".join(map(literal, json.loads(source)))
    return f"{NO_FORCING}\nstart: TEXT\nTEXT: {ANY_TEXT} & ~/(?s:.*)({words})(?s:.*)/"


def calls(source: str, control: Collection[str]) -> str:
    """The grammar that ``CallMarkup`` has written, in the library's notation."""
    return source


def literal(text: str) -> str:
    """A regular expression for this text alone."""
    return "".join(char if char.isalnum() else f"\\x{{{ord(char):x}}}" for char in text)


NOTATIONS: dict[str, Callable[[str, Collection[str]], str]] = {
    "json_schema": json_schema,
    "regex": regex,
    "choice": choice,
    "lark": lark,
    "structural_tag": structural_tag,
    "allowed_token_ids": allowed_token_ids,
    "bad_words": bad_words,
    "calls": calls,
}
"""By kind of grammar."""
