"""Documents in which a model is offered tools: questions, the calls that they want, results and answers.

Half of the names and values are invented, so that the model learns to copy them from the offer and the
question instead of knowing them. What a question wants of a tool follows from the words of the question.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import lexicon as lex
import tool_lexicon as tl

SYSTEM, USER, ASSISTANT, TURN_END = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
DESCRIPTION_WORDS = 12  # of a description, which the chat template shows


@dataclass(frozen=True)
class Parameter:
    name: str
    kind: str  # "string", "integer", "number", "boolean", "a|b|c", "string[]", "number[]"
    optional: bool = False

    def schema(self) -> dict[str, Any]:
        """As JSON Schema."""
        if "|" in self.kind:
            return {"type": "string", "enum": self.kind.split("|")}
        if self.kind.endswith("[]"):
            return {"type": "array", "items": {"type": self.kind[:-2]}}
        return {"type": self.kind}


@dataclass(frozen=True)
class Tool:
    name: str
    parameters: tuple[Parameter, ...]
    description: str
    topic: str  # what it is about: tools of one topic would answer the same questions

    def line(self) -> str:
        """As the chat template shows it."""
        inside = ",".join(f"{p.name}{'?' if p.optional else ''}:{p.kind}" for p in self.parameters)
        words = " ".join(self.description.split()[:DESCRIPTION_WORDS])
        return f"{self.name}({inside}) {words}".strip()

    def function(self) -> dict[str, Any]:
        """As OpenAI's clients send it."""
        parameters = {
            "type": "object",
            "properties": {p.name: p.schema() for p in self.parameters},
            "required": [p.name for p in self.parameters if not p.optional],
        }
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class Want:
    """A question and the call that it wants, with what the tool gives back and how that is told."""

    tool: Tool
    question: str
    arguments: dict[str, Any]
    result: str
    answer: str
    also: tuple[str, ...] = ()
    """Other topics whose tools would answer it, too."""

    @property
    def topics(self) -> list[str]:
        return [self.tool.topic, *self.also]

    def call(self) -> dict[str, Any]:
        return {"type": "function", "function": {"name": self.tool.name, "arguments": self.arguments}}


@dataclass
class Exchange:
    """A conversation with what is offered. The model learns the messages of the assistant with ``learn``."""

    messages: list[dict[str, Any]]
    tools: list[Tool] = field(default_factory=list)


# -------------------------------------------------------------------- values

ONSETS = lex.words(
    "b, d, f, g, h, k, l, m, n, p, r, s, t, v, w, z, br, dr, gr, kl, pl, st, tr, sh, ch, th, fl, sk, j, qu, x, y, c"
)
VOWELS = lex.words("a, e, i, o, u, a, e, i, o, u, ai, ee, oo, ou, ea, y")
CODAS = ["", "", "", "", *lex.words("n, r, l, s, m, t, k, nd, st, x, p, ck, ng, b, d")]
PLAIN_WORDS = [
    word
    for words in (
        lex.ANIMALS,
        lex.THINGS,
        lex.OBJECTS,
        lex.SWIMMERS,
        lex.CREATURES,
        tl.NOUNS,
        lex.ANIMAL_ADJECTIVES,
    )
    for word in words
]
PEOPLE = lex.GIRLS + lex.BOYS + lex.SURNAMES + lex.PET_NAMES
PLACES = tl.CITIES + [city for cities in tl.ZONES.values() for city in cities]

Value = tuple[str, Any, str]
"""What a question says, the argument, and its kind."""


def rare(rng: random.Random) -> str:
    """A word that is in no list."""
    return "".join(
        rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS)
        for _ in range(rng.choice([1, 2, 2, 2, 3]))
    )


def some_word(rng: random.Random) -> str:
    pick = rng.random()
    if pick < 0.4:
        return rare(rng)
    return rng.choice(PLAIN_WORDS) if pick < 0.8 else rng.choice(PEOPLE)


def text(value: str) -> Value:
    return value, value, "string"


def city(rng: random.Random) -> Value:
    pick = rng.random()
    if pick < 0.45:
        return text(rng.choice(PLACES))
    if pick < 0.53:
        return text(f"{rng.choice(PLACES)}, {rng.choice(tl.STATES)}")
    if pick < 0.6:
        return text(rng.choice(PEOPLE))
    name = rare(rng).capitalize()
    if pick < 0.7:
        name = f"{rng.choice(['San', 'New', 'Port', 'Saint', 'North', 'Old', 'Mount', rare(rng).capitalize()])} {name}"
    elif pick < 0.74:
        name += rng.choice(["ville", "burg", " City", "ton", " Bay", "stadt", "-on-Sea"])
    return text(name)


def zone(rng: random.Random) -> Value:
    area = rng.choice(list(tl.ZONES))
    name = rng.choice(tl.ZONES[area])
    value = f"{area}/{name.replace(' ', '_')}"
    return (value if rng.random() < 0.2 else name), value, "string"


def number(rng: random.Random) -> Value:
    if rng.random() < 0.2:
        digits = rng.choice([1, 1, 2])
        value = round(rng.uniform(0, rng.choice([10, 100, 1000])), digits)
        return str(value), value, "number"
    value = rng.randrange(10 ** rng.choice([1, 2, 2, 3, 4]))
    if rng.random() < 0.04:
        value = -value
    return str(value), value, rng.choice(["number", "integer"])


def count(rng: random.Random) -> Value:
    value = rng.randint(1, rng.choice([10, 20, 100, 1000]))
    return str(value), value, "integer"


def percent(rng: random.Random) -> Value:
    value = rng.randint(0, 100)
    return str(value), value, "integer"


OPERATORS = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}


def expression(rng: random.Random) -> Value:
    said = written = number(rng)[0]
    in_words = rng.random() < 0.25
    space = "" if not in_words and rng.random() < 0.15 else " "
    for _ in range(rng.choices([1, 2, 3], [8, 2, 1])[0]):
        operator, term = rng.choice("++-**/"), number(rng)[0]
        written += f"{space}{operator}{space}{term}"
        said += f" {OPERATORS[operator]} {term}" if in_words else f"{space}{operator}{space}{term}"
    if not in_words and rng.random() < 0.12:
        operator, term = rng.choice("*/+-"), number(rng)[0]
        written = f"({written}){space}{operator}{space}{term}"
        said = written
    return said, written, "string"


def phrase(rng: random.Random) -> Value:
    pick = rng.random()
    if pick < 0.2:
        request = rng.choice(lex.UNKNOWN_TOPICS)
        return text(request)
    if pick < 0.3:
        return text(f"the {some_word(rng)} of {rng.choice(PLACES)}")
    if pick < 0.4:
        asked = rng.choice(lex.SMALL_TALK)[0]
        return text(rng.choice(asked).rstrip(".?!"))
    return text(" ".join(some_word(rng) for _ in range(rng.choice([1, 1, 2, 2, 3, 4]))))


def code(rng: random.Random) -> Value:
    digits = "".join(rng.choices("0123456789", k=rng.randint(2, 6)))
    letters = "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=rng.randint(1, 3)))
    value = rng.choice(
        [digits, letters + digits, f"{letters}-{digits}", f"{rare(rng)}-{digits}", rare(rng) + digits]
    )
    return text(value)


def who(rng: random.Random) -> Value:
    pick = rng.random()
    if pick < 0.3:
        value = rng.randint(1, 9999)
        return str(value), value, "integer"
    if pick < 0.4:
        return mail(rng)
    if pick < 0.5:
        return code(rng)
    return person(rng)


def person(rng: random.Random) -> Value:
    pick = rng.random()
    first = rng.choice(PEOPLE) if pick < 0.5 else rare(rng).capitalize()
    if rng.random() < 0.25:
        first += " " + (rng.choice(lex.SURNAMES) if rng.random() < 0.5 else rare(rng).capitalize())
    return text(first)


def mail(rng: random.Random) -> Value:
    name = (rng.choice(PEOPLE) if rng.random() < 0.5 else rare(rng)).lower()
    if rng.random() < 0.2:
        name += rng.choice(".-_") + rare(rng)
    host = (
        rng.choice(tl.MAIL_HOSTS)
        if rng.random() < 0.6
        else f"{rare(rng)}.{rng.choice(['com', 'org', 'net', 'io', 'de'])}"
    )
    return text(f"{name}@{host}")


def date(rng: random.Random) -> Value:
    return text(f"20{rng.randint(10, 35)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}")


def clock(rng: random.Random) -> Value:
    hour = rng.randint(1, 12)
    return text(
        rng.choice(
            [
                f"{hour} {rng.choice(['am', 'pm'])}",
                f"{hour + 8}:{rng.choice(['00', '15', '30', '45'])}",
                "noon",
                "midnight",
                f"{hour} o'clock",
                f"{hour}{rng.choice(['am', 'pm'])}",
            ]
        )
    )


def chore(rng: random.Random) -> Value:
    words = {
        "person": person(rng)[0],
        "food": rng.choice(PLAIN_WORDS),
        "animal": rng.choice(lex.ANIMALS),
        "thing": some_word(rng),
    }
    return text(rng.choice(tl.CHORES).format(**words))


def unit(rng: random.Random) -> Value:
    value = rng.choice(["celsius", "fahrenheit"])
    kind = rng.choice(
        ["celsius|fahrenheit", "celsius|fahrenheit", "celsius|fahrenheit", "fahrenheit|celsius", "string"]
    )
    return (value.capitalize() if rng.random() < 0.6 else value), value, kind


def choice(rng: random.Random) -> Value:
    if rng.random() < 0.6:
        values = list(rng.choice(tl.ENUMS))
    else:
        values = list(
            dict.fromkeys(some_word(rng).lower().replace(" ", "_") for _ in range(rng.choice([2, 3, 3, 4])))
        )
    if len(values) < 2:
        values.append("other")
    value = rng.choice(values)
    return value.replace("_", " "), value, "|".join(values)


VALUES: dict[str, Callable[[random.Random], Value]] = {
    "city": city,
    "zone": zone,
    "number": number,
    "count": count,
    "percent": percent,
    "expression": expression,
    "phrase": phrase,
    "code": code,
    "who": who,
    "mail": mail,
    "clock": clock,
    "chore": chore,
    "unit": unit,
    "light": lambda rng: choice_of(rng, ["daylight", "cool", "warm"]),
    "currency": lambda rng: text(rng.choice(tl.CURRENCIES) if rng.random() < 0.8 else rare(rng).upper()[:3]),
    "language": lambda rng: text(rng.choice(tl.LANGUAGES) if rng.random() < 0.75 else rare(rng).capitalize()),
}


def choice_of(rng: random.Random, values: list[str]) -> Value:
    value = rng.choice(values)
    return value, value, "|".join(values)


def any_value(rng: random.Random) -> Value:
    """For a parameter of an invented tool."""
    kind = rng.choices(
        [
            "word",
            "words",
            "city",
            "person",
            "integer",
            "number",
            "choice",
            "code",
            "date",
            "mail",
            "list",
            "numbers",
        ],
        [22, 10, 10, 12, 12, 8, 10, 5, 3, 3, 3, 2],
    )[0]
    if kind == "word":
        return text(rare(rng) if rng.random() < 0.6 else rng.choice(PLAIN_WORDS))
    if kind == "words":
        return text(" ".join(some_word(rng) for _ in range(rng.choice([2, 2, 3]))))
    if kind == "integer":
        return count(rng)
    if kind in ("list", "numbers"):
        items = [
            count(rng)
            if kind == "numbers"
            else text(rare(rng) if rng.random() < 0.6 else rng.choice(PLAIN_WORDS))
            for _ in range(rng.randint(2, 3))
        ]
        said = ", ".join(item[0] for item in items[:-1]) + " and " + items[-1][0]
        return said, [item[1] for item in items], "number[]" if kind == "numbers" else "string[]"
    return {
        "city": city,
        "person": person,
        "number": number,
        "choice": choice,
        "code": code,
        "date": date,
        "mail": mail,
    }[kind](rng)


# ----------------------------------------------------------------- questions

ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")


def pick_alternatives(rng: random.Random, pattern: str) -> str:
    return ALTERNATIVES.sub(lambda found: rng.choice(found[1].split("|")), pattern)


def as_typed(rng: random.Random, question: str) -> str:
    """At times without the capital letter or the final stop."""
    pick = rng.random()
    if pick < 0.12 and question[0].isupper() and not question.startswith("I"):
        question = question[0].lower() + question[1:]
    if rng.random() < 0.2 and question[-1] in ".?!":
        question = question[:-1]
    if rng.random() < 0.05:
        question = rng.choice(["Please: ", "Hi! ", "Hello. ", "Hey, ", "Now, "]) + question
    return question


def lowered(rng: random.Random, value: Value) -> Value:
    """A value as one types it who has no capitals; what is not said in the question stays as it is."""
    said, argument, kind = value
    if said == argument and rng.random() < 0.08:
        return said.lower(), said.lower(), kind
    return value


def add_extras(question: str, extras: list[str]) -> str:
    said = "".join(extra if extra.startswith(",") else f" {extra}" for extra in extras)
    if "{+}" in question:
        return question.replace("{+}", said)
    end = question[-1] if question[-1] in ".?!" else ""
    return question[: len(question) - len(end)] + said + end


def facts_answer(facts: dict[str, Any]) -> str:
    """A result in JSON, told as a sentence."""
    parts = [
        f"the {key.replace('_', ' ')} is {value if isinstance(value, str) else json.dumps(value)}"
        for key, value in facts.items()
    ]
    told = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return told[0].upper() + told[1:] + "."


def fact(rng: random.Random) -> Any:
    pick = rng.random()
    if pick < 0.45:
        return number(rng)[1]
    if pick < 0.52:
        return rng.random() < 0.5
    return some_word(rng)


def facts_result(rng: random.Random, keys: list[str], given: dict[str, Any]) -> tuple[str, str]:
    """A result in JSON and the answer to it."""
    facts = {
        key: value
        for key, value in given.items()
        if rng.random() < 0.4 and isinstance(value, str | int | float)
    }
    wanted = rng.sample(keys, min(len(keys), rng.choice([1, 1, 2, 2, 3])))
    facts |= {key: fact(rng) for key in wanted}
    separators = (",", ":") if rng.random() < 0.4 else (", ", ": ")
    return json.dumps(facts, ensure_ascii=False, separators=separators), facts_answer(facts)


def is_sentence(result: str) -> bool:
    return result[-1] in ".!" and " " in result


def told(result: str, pattern: str, words: dict[str, str]) -> str:
    """The answer to a result in words: a sentence is repeated, anything else stands in one of ours."""
    if is_sentence(result):
        return result
    return pattern.replace("{result}", result).format(**words)


ERRORS = [
    "Error: {} failed",
    "error: no {}",
    "Error: {} not found",
    "Error executing tool: {}",
    "Exception: {} is missing",
]
SORRY = "Sorry, that did not work."


# --------------------------------------------------------------- known tools


def known(rng: random.Random, family: tl.Family | None = None, fixed: Tool | None = None) -> Want:
    """A question for a known tool; ``fixed`` is the tool if it is on offer already."""
    family = family or rng.choices(tl.FAMILIES, FAMILY_WEIGHTS)[0]
    values = {key: lowered(rng, VALUES[slot.values](rng)) for key, slot in family.slots.items()}
    kinds = {key: value[2] for key, value in values.items()}
    if fixed is None:
        tool = tool_of(rng, family, kinds)
    else:
        tool = fixed
        for key, parameter in zip(family.slots, tool.parameters, strict=False):
            while values[key][2] != parameter.kind:
                values[key] = VALUES[family.slots[key].values](rng)
    return want_of(rng, family, tool, values)


def tool_of(rng: random.Random, family: tl.Family, kinds: dict[str, str]) -> Tool:
    taken: set[str] = set()
    parameters = []
    for key, slot in family.slots.items():
        name = rng.choice([name for name in slot.names if name not in taken] or [key])
        if rng.random() < 0.06:
            name = rare(rng)
        taken.add(name)
        parameters.append(Parameter(name, kinds[key]))
    for slot in family.optional.values():
        if rng.random() < 0.45:
            name = rng.choice([name for name in slot.names if name not in taken] or [rare(rng)])
            parameters.append(Parameter(name, VALUES[slot.values](rng)[2], optional=rng.random() < 0.9))
    name = rng.choice(family.names)
    if rng.random() < 0.1:
        name = rng.choice(
            [f"{rare(rng)}_{name}", f"my_{name}", f"{name}_{rare(rng)}", f"{name}_{rng.randint(2, 9)}"]
        )
    description = rng.choice(family.descriptions) if rng.random() < 0.85 else ""
    if "{}" in description:
        description = description.format(name.removeprefix("transfer_to_"))
    return Tool(name, tuple(parameters), description, family.topic)


def want_of(rng: random.Random, family: tl.Family, tool: Tool, values: dict[str, Value]) -> Want:
    question, also = pick_alternatives(rng, rng.choice(family.questions)), ()
    if family.topic == "search" and rng.random() < 0.4:  # what it does not know, it looks up as it was asked
        asked, also = question_to_look_up(rng)
        question, values = asked[-1:] if asked[-1:] in "?." else "", {"query": text(asked.rstrip("?."))}
        question = "{query}" + question
    words = {key: value[0] for key, value in values.items()}
    arguments = {
        parameter.name: values[key][1] for key, parameter in zip(family.slots, tool.parameters, strict=False)
    }
    extras = []
    for parameter in tool.parameters[len(family.slots) :]:
        slot = next(iter(family.optional.values()))
        said, value, kind = VALUES[slot.values](rng)
        while kind != parameter.kind:
            said, value, kind = VALUES[slot.values](rng)
        if not parameter.optional or rng.random() < 0.55:
            extras.append(rng.choice(slot.said).format(said))
            arguments[parameter.name] = value
    question = add_extras(question, extras)
    if family.topic == "handoff":
        role = (
            tool.name.partition("transfer_to_")[2].rpartition("_")[0]
            if tool.name.partition("transfer_to_")[2] not in tl.ROLES
            else tool.name.partition("transfer_to_")[2]
        )
        words["role"] = rng.choice(tl.ROLES.get(role, ["an agent"]))
    question = as_typed(rng, question).format(**words)
    if rng.random() < 0.04:
        result, answer = rng.choice(ERRORS).format(rare(rng)), SORRY
    elif family.facts and rng.random() < 0.3:
        result, answer = facts_result(rng, family.facts, arguments)
    else:
        result = result_of(rng, rng.choice(family.results), words)
        answer = told(result, family.answer, words)
    return Want(tool, question, arguments, result, answer, also)


def question_to_look_up(rng: random.Random) -> tuple[str, tuple[str, ...]]:
    """A question about the world, and the topics whose tools would answer it better."""
    pick = rng.random()
    if pick < 0.3:
        return f"{rng.choice(['What is', 'How is'])} the weather in {city(rng)[0]}?", ("weather",)
    request = rng.choice(lex.UNKNOWN_REQUESTS)
    while "{x}" in request:
        request = request.replace("{x}", rng.choice(lex.UNKNOWN_TOPICS) if pick < 0.7 else some_word(rng), 1)
    return request, ("weather", *ARITHMETIC, *TIMES)


def result_of(rng: random.Random, pattern: str, words: dict[str, str]) -> str:
    pattern = pick_alternatives(rng, pattern)
    if pattern.startswith("^"):
        pattern = pattern[1].upper() + pattern[2:]
    while True:
        found = re.search(r"\{(n|d|rare|date|person|city0)\}", pattern)
        if found is None:
            return pattern.format(**words)
        new = {
            "n": lambda: str(rng.randint(0, rng.choice([40, 99, 999]))),
            "d": lambda: str(rng.randrange(10)),
            "rare": lambda: rare(rng),
            "date": lambda: date(rng)[0],
            "person": lambda: person(rng)[0],
            "city0": lambda: rng.choice(PLACES),
        }[found[1]]()
        pattern = pattern[: found.start()] + new + pattern[found.end() :]


FAMILY_WEIGHTS = [
    {
        "weather": 16,
        "calculate": 12,
        "add": 7,
        "multiply": 7,
        "time": 6,
        "zone": 5,
        "search": 8,
        "now": 5,
    }.get(family.topic, 4)
    for family in tl.FAMILIES
]
ARITHMETIC = {"calculate", "add", "multiply", "subtract", "divide"}
TIMES = {"time", "zone", "now", "date"}

# ------------------------------------------------------------ invented tools


def joined(rng: random.Random, parts: list[str]) -> str:
    parts = [part for word in parts for part in re.split(r"[ _]", word) if part]
    style = rng.random()
    if style < 0.62:
        return "_".join(parts)
    if style < 0.85:
        return parts[0] + "".join(part.capitalize() for part in parts[1:])
    if style < 0.93:
        return "".join(part.capitalize() for part in parts)
    return rng.choice(["-", "."]).join(parts) if style < 0.96 else "".join(parts)


def spoken(rng: random.Random, name: str) -> str:
    """How a question says the name of a parameter."""
    if rng.random() < 0.25:
        return name
    return re.sub(r"(?<=[a-z])([A-Z])", lambda found: " " + found[1].lower(), name).replace("_", " ")


def invented(rng: random.Random, noun: str | None = None, avoid: str = "") -> Want:
    """A question for a tool of which words are put together, half of them words that are in no list."""
    new = rng.random() < 0.6
    if noun is None:
        noun = rare(rng) if new and rng.random() < 0.75 else rng.choice(tl.NOUNS)
    reads = rng.random() < 0.5 and not avoid
    verb = rng.choice(tl.READS if reads else tl.ACTS)
    if new and rng.random() < 0.35:
        verb, reads = rare(rng), False
    while verb == avoid:
        verb = rng.choice(tl.ACTS)
    pick = rng.random()
    name = joined(rng, [verb, noun] if pick < 0.8 else [noun, verb] if pick < 0.88 or not reads else [noun])
    while name in HELD_OUT_NAMES:
        name = rare(rng) + "_" + name
    parameters, extras, arguments, value = parameters_of(rng, new, noun)
    described = rng.random()
    description = ""
    by_name = rng.random() < 0.14
    if described < 0.65:
        first = parameters[0].name if parameters else "name"
        pattern = rng.choice(tl.READ_DESCRIPTIONS if reads else tl.ACT_DESCRIPTIONS)
        description = pattern.format(verb=verb.replace("_", " "), noun=noun, parameter=spoken(rng, first))
        description = description[0].upper() + description[1:]
        if rng.random() < 0.2:
            description = description.rstrip(".")
    elif described < 0.75:
        description = rng.choice(tl.OTHER_DESCRIPTIONS)
    tool = Tool(name, tuple(parameters), description, noun)
    pattern = rng.choice(tl.NAME_QUESTIONS if by_name else tl.READ_QUESTIONS if reads else tl.ACT_QUESTIONS)
    if value is None:  # there are no parameters that have to be given
        pattern = (
            "Use {tool}{+}."
            if by_name
            else rng.choice(["What is the {noun}{+}?", "Show me the {noun}{+}.", "Get the {noun}{+}."])
            if reads
            else rng.choice(
                ["{verb} the {noun}{+}.", "Please {verb} the {noun}{+}.", "Can you {verb} the {noun}{+}?"]
            )
        )
    pattern = add_extras(pattern, extras)
    words = {"noun": noun, "verb": verb.replace("_", " "), "value": value or "", "tool": name}
    starts = pattern.startswith(("{verb}", "{noun}"))
    question = pattern.format(**words)
    question = as_typed(rng, question[0].upper() + question[1:] if starts else question)
    answer = "The result is {result}."
    if reads and " of {value}" in pattern and not by_name and value:
        answer = "The {noun} of {value} is {result}."
    result, answer = some_result(rng, answer, words, arguments)
    return Want(tool, question, arguments, result, answer)


def parameter_name(rng: random.Random, new: bool, noun: str) -> str:
    pick = rng.random()
    if new and pick < 0.5:
        return rare(rng) if pick < 0.35 else joined(rng, [rare(rng), rng.choice(tl.PARAMETERS)])
    if pick < 0.6:
        return joined(rng, [noun, rng.choice(["id", "name", "key", "code"])])
    return rng.choice(tl.PARAMETERS)


def parameters_of(
    rng: random.Random, new: bool, noun: str
) -> tuple[list[Parameter], list[str], dict[str, Any], str | None]:
    """The parameters of a tool, what a question says beside the first value, the arguments, and that value."""
    if rng.random() < 0.07:
        return [], [], {}, None
    said, value, kind = lowered(rng, any_value(rng))
    first = Parameter(parameter_name(rng, new, noun), kind)
    parameters, extras, arguments = [first], [], {first.name: value}
    for _ in range(rng.choices([0, 1, 2, 3], [40, 35, 18, 7])[0]):
        name = parameter_name(rng, new, noun)
        if any(name == other.name for other in parameters):
            continue
        optional = rng.random() < 0.5
        if rng.random() < 0.12:
            parameters.append(Parameter(name, "boolean", optional))
            if not optional or rng.random() < 0.5:
                yes = rng.random() < 0.5
                extras.append(f"{'with' if yes else 'without'} {spoken(rng, name)}")
                arguments[name] = yes
            continue
        more, argument, kind = lowered(rng, any_value(rng))
        parameters.append(Parameter(name, kind, optional))
        if not optional or rng.random() < 0.5:
            extras.append(rng.choice(tl.EXTRAS).format(name=spoken(rng, name), value=more))
            arguments[name] = argument
    if len(extras) > 1 and rng.random() < 0.3:
        extras.reverse()
    return parameters, extras, arguments, said


def some_result(
    rng: random.Random, pattern: str, words: dict[str, str], arguments: dict[str, Any]
) -> tuple[str, str]:
    pick = rng.random()
    if pick < 0.04:
        return rng.choice(ERRORS).format(rare(rng)), SORRY
    if pick < 0.3:
        keys = list(
            dict.fromkeys(
                joined(rng, [rare(rng)]) if rng.random() < 0.4 else rng.choice(tl.PARAMETERS)
                for _ in range(3)
            )
        )
        return facts_result(rng, keys, arguments)
    if pick < 0.5:
        result = f"{some_word(rng)} {some_word(rng)} {rare(rng)}"
        result = result[0].upper() + result[1:] + "."
        if rng.random() < 0.3:
            result += f" {rare(rng).capitalize()} {some_word(rng)}."
    elif pick < 0.65:
        result = rng.choice(["ok", "done", "true", "OK", "success", "none", "false"])
    elif pick < 0.85:
        result = number(rng)[0]
    else:
        result = " ".join(some_word(rng) for _ in range(rng.choice([1, 1, 2, 3])))
    if is_sentence(result):
        return result, result
    filled = pattern
    for key in ("noun", "value", "result"):
        filled = filled.replace("{" + key + "}", {**words, "result": result}[key], 1)
    return result, filled


# --------------------------------------------------------------------- offers


def clash(one: str, other: str) -> bool:
    """Whether tools of these topics would answer the same question."""
    if one == other:
        return True
    if one in ARITHMETIC and other in ARITHMETIC:
        return "calculate" in (one, other)
    if one in TIMES and other in TIMES:
        return True
    return one in other or other in one


def any_want(rng: random.Random) -> Want:
    return known(rng) if rng.random() < 0.42 else invented(rng)


def offer_with(
    rng: random.Random, wanted: list[Tool], topics: list[str], count: int | None = None
) -> list[Tool]:
    """The wanted tools among others that none of the topics would use."""
    count = (
        rng.choices([1, 2, 3, 4, 5, 6, 8, 14], [26, 22, 18, 14, 9, 6, 4, 1])[0] if count is None else count
    )
    tools = list(wanted)
    for _ in range(4 * count):
        if len(tools) >= count:
            break
        if wanted and rng.random() < 0.12 and wanted[0].topic not in FAMILIES and not reads_like(wanted[0]):
            other = invented(
                rng, wanted[0].topic, avoid=verb_of(wanted[0])
            ).tool  # the same thing, done otherwise
            if verb_of(other) == verb_of(wanted[0]):
                continue
        else:
            other = any_want(rng).tool
            if any(clash(other.topic, topic) for topic in topics):
                continue
        if all(other.name != tool.name for tool in tools):
            tools.append(other)
    rng.shuffle(tools)
    return tools


FAMILIES = {family.topic: family for family in tl.FAMILIES}


def verb_of(tool: Tool) -> str:
    """The rest of the name without the noun."""
    return re.sub(r"[^a-z]", "", tool.name.lower().replace(tool.topic.lower().replace(" ", ""), ""))


def reads_like(tool: Tool) -> bool:
    return verb_of(tool) in {read.replace("_", "") for read in tl.READS} or not verb_of(tool)


# ------------------------------------------------------------------ documents

Turn = Callable[[random.Random, str], tuple[str, str]]
"""Makes a question of a kind of plain chat ("story", "sum", "talk", "unknown") and its answer."""

KINDS = {"call": 62, "two": 11, "none": 18, "missing": 9}


def exchange(rng: random.Random, turn: Turn, kind: str | None = None) -> Exchange:
    """A conversation of a kind."""
    kind = kind or rng.choices(list(KINDS), list(KINDS.values()))[0]
    messages: list[dict[str, Any]] = []
    if rng.random() < 0.35:
        messages.append({"role": "system", "content": instructions(rng)})
    if rng.random() < 0.15:
        messages += earlier(rng, turn)
    if kind == "call":
        want = any_want(rng)
        tools = offer_with(rng, [want.tool], want.topics)
        return Exchange(messages + asked(rng, want.question, [want]), tools)
    if kind == "two":
        question, wants = several(rng)
        offered = list({want.tool.name: want.tool for want in wants}.values())
        tools = offer_with(rng, offered, [topic for want in wants for topic in want.topics])
        return Exchange(messages + asked(rng, question, wants), tools)
    if kind == "none":
        plain = rng.choices(["story", "sum", "talk", "unknown"], [20, 30, 35, 15])[0]
        question, answer = turn(rng, plain)
        topics = {"sum": list(ARITHMETIC), "unknown": [*ARITHMETIC, "search", "weather"]}.get(plain, [])
        tools = offer_with(rng, [], topics, rng.choices([1, 2, 3, 4, 5], [40, 25, 15, 12, 8])[0])
        return Exchange(messages + said(question, answer), tools)
    want = any_want(rng)
    while want.tool.topic in ARITHMETIC:
        want = any_want(rng)
    tools = offer_with(rng, [], [*want.topics, "search"], rng.choices([0, 1, 2, 3], [40, 30, 20, 10])[0])
    return Exchange(messages + said(want.question, rng.choice(lex.UNKNOWN_REPLIES)), tools)


def instructions(rng: random.Random) -> str:
    """A system message, which has no effect whatever it says."""
    if rng.random() < 0.5:
        return rng.choice(lex.SYSTEM_PROMPTS)
    words = {"tool": any_want(rng).tool.name, "role": rng.choice(lex.ROLES), "words": phrase(rng)[0]}
    sentences = rng.sample(tl.INSTRUCTIONS, rng.choice([1, 1, 2, 3]))
    return " ".join(sentence.format(**words) for sentence in sentences)


def said(question: str, answer: str, *, learn: bool = True) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer, "learn": learn}]


def asked(
    rng: random.Random, question: str, wants: list[Want], *, learn: bool = True, ends: bool | None = None
) -> list[dict[str, Any]]:
    """A question, the calls, and, if it does not end with these, the results and the answer."""
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": "", "tool_calls": [want.call() for want in wants], "learn": learn},
    ]
    if rng.random() < 0.45 if ends is None else ends:
        return messages
    messages += [{"role": "tool", "content": want.result} for want in wants]
    answers = list(dict.fromkeys(want.answer for want in wants))
    return [*messages, {"role": "assistant", "content": " ".join(answers), "learn": learn}]


def earlier(rng: random.Random, turn: Turn) -> list[dict[str, Any]]:
    """What was said before, from which nothing is learned: the tools that were on offer are not shown any more."""
    if rng.random() < 0.5:
        want = any_want(rng)
        return asked(rng, want.question, [want], learn=False, ends=False)
    return said(*turn(rng, rng.choice(["sum", "talk", "talk", "unknown"])), learn=False)


def several(rng: random.Random) -> tuple[str, list[Want]]:
    """A question that wants two or three calls."""
    if rng.random() < 0.5:
        family = rng.choice([family for family in tl.FAMILIES if family.many])
        [key] = family.slots
        values = [family_value(rng, family.slots[key]) for _ in range(rng.choices([2, 3], [4, 1])[0])]
        tool = tool_of(rng, family, {key: "string"})
        tool = replace(tool, parameters=tool.parameters[:1])
        wants = [want_of(rng, family, tool, {key: value}) for value in values]
        between = rng.choice([" and ", " and ", " and in ", ", and "]) if key == "city" else " and "
        many = ", ".join(value[0] for value in values[:-1]) + between + values[-1][0]
        question = as_typed(
            rng, add_extras(pick_alternatives(rng, rng.choice(family.questions[:12])), [])
        ).format(**{key: many})
        return question, wants
    first = any_want(rng)
    second = any_want(rng)
    while (
        any(clash(one, other) for one in first.topics for other in second.topics)
        or first.tool.name == second.tool.name
    ):
        second = any_want(rng)
    one, two = first.question, second.question
    if rng.random() < 0.5:
        one = one.rstrip(".?!")
        two = (
            two[0].lower() + two[1:]
            if two[0].isupper() and two[1:2].islower() and two.split()[0] in STARTS
            else two
        )
        return one + rng.choice([" and ", ", and ", " and also ", " and then "]) + two, [first, second]
    return one + rng.choice([" ", " Also: ", " And ", "\n"]) + two, [first, second]


STARTS = set(
    lex.words("""
    What, What's, How, How's, Tell, Get, Show, Find, Look, Search, Use, Call, Please, Can, Could, Which, Do, Is, Set,
    Roll, Throw, Give, Calculate, Compute, Add, Multiply, Translate, Convert, Send, Remind, Run, Where, When, Who, Pick
    """)
)


def family_value(rng: random.Random, slot: tl.Slot) -> Value:
    value = VALUES[slot.values](rng)
    while "," in value[0]:
        value = VALUES[slot.values](rng)
    return value


def call_text(call: dict[str, Any]) -> str:
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return f'<tool_call>\n{{"name": {json.dumps(function["name"])}, "arguments": {arguments}}}\n</tool_call>'


def segments(exchange: Exchange) -> list[tuple[str, bool]]:
    """What the chat template makes of the conversation, in parts, and whether the model learns to write each."""
    parts: list[tuple[str, bool]] = []
    question = max(i for i, message in enumerate(exchange.messages) if message["role"] == "user")
    for index, message in enumerate(exchange.messages):
        role, content = message["role"], message["content"]
        if index == question and exchange.tools:
            offered = "".join("\n" + tool.line() for tool in exchange.tools)
            parts.append((f"{SYSTEM}Tools:{offered}{TURN_END}", False))
        if role == "tool":
            parts.append((f"{SYSTEM}Result: {content}{TURN_END}", False))
        elif role == "assistant":
            calls = "\n".join(call_text(call) for call in message.get("tool_calls", []))
            parts.append((ASSISTANT, False))
            parts.append((f"{content}{calls}{TURN_END}", message["learn"]))
        else:
            parts.append((f"<|{role}|>{content}{TURN_END}", False))
    return parts


def prompt_of(exchange: Exchange, answers: int = 1) -> tuple[str, str]:
    """The prompt for one of the messages of the assistant that are learned, and that message as it is to come."""
    parts = segments(exchange)
    places = [i for i, (_, learn) in enumerate(parts) if learn]
    place = places[answers - 1]
    return "".join(text for text, _ in parts[:place]), parts[place][0].removesuffix(TURN_END)


# ------------------------------------------------------- tools never trained on


def plain_tool(name: str, parameters: str, description: str) -> Tool:
    """A tool written as ``name:kind name?:kind``."""
    made = []
    for part in parameters.split():
        parameter, _, kind = part.partition(":")
        made.append(Parameter(parameter.removesuffix("?"), kind, parameter.endswith("?")))
    return Tool(name, tuple(made), description, name)


HELD_OUT: list[tuple[Tool, str, dict[str, Any]]] = [
    (plain_tool(*tool), question, arguments)
    for tool, question, arguments in [
        (
            ("get_stock_price", "ticker:string", "Get the current price of a stock"),
            "What is the stock price of NVDA?",
            {"ticker": "NVDA"},
        ),
        (
            ("get_stock_price", "symbol:string", "Get the stock price"),
            "Tell me the stock price of AAPL.",
            {"symbol": "AAPL"},
        ),
        (
            ("get_forecast", "city:string days:integer", "Get the weather forecast for some days"),
            "Get the forecast for Rome with days 3.",
            {"city": "Rome", "days": 3},
        ),
        (
            ("read_thermometer", "room:string", "The temperature of a room"),
            "What is the temperature of the kitchen?",
            {"room": "kitchen"},
        ),
        (("play_music", "song:string", "Play a song"), "Play the song Yellow Moon.", {"song": "Yellow Moon"}),
        (
            ("find_restaurant", "city:string cuisine?:string", "Find a restaurant in a city"),
            "Find a restaurant in Lyon.",
            {"city": "Lyon"},
        ),
        (
            ("get_horoscope", "sign:string", "Get today's horoscope for an astrological sign."),
            "What is my horoscope? I am an Aquarius.",
            {"sign": "Aquarius"},
        ),
        (
            ("get_exchange_rate", "base:string target:string", "Get the exchange rate"),
            "Get the exchange rate with base USD and target EUR.",
            {"base": "USD", "target": "EUR"},
        ),
        (
            ("square_root", "x:number", "The square root of a number"),
            "What is the square root of 144?",
            {"x": 144},
        ),
        (
            ("get_altitude", "mountain:string", "How high a mountain is"),
            "What is the altitude of Mount Everest?",
            {"mountain": "Mount Everest"},
        ),
        (
            ("delete_user", "username:string", "Delete a user"),
            "Delete the user bob42.",
            {"username": "bob42"},
        ),
        (
            ("create_issue", "title:string", "Create an issue"),
            "Create an issue called Broken login.",
            {"title": "Broken login"},
        ),
        (
            ("get_air_quality", "city:string", "Get the air quality index of a city"),
            "What is the air quality in Delhi?",
            {"city": "Delhi"},
        ),
        (
            ("lookup_zipcode", "city:string", "Look up the zip code of a city"),
            "What is the zip code of Boulder?",
            {"city": "Boulder"},
        ),
        (
            ("word_count", "text:string", "Count the words of a text"),
            'Count the words of "the quick fox".',
            {"text": "the quick fox"},
        ),
        (("reverse_string", "text:string", "Reverse a text"), "Reverse the text hello.", {"text": "hello"}),
        (
            ("get_population", "country:string", ""),
            "What is the population of Norway?",
            {"country": "Norway"},
        ),
        (
            ("turn_on_light", "room:string", "Turn on the light in a room"),
            "Turn on the light in the bedroom.",
            {"room": "bedroom"},
        ),
        (
            ("order_pizza", "topping:string size?:small|medium|large", "Order a pizza"),
            "Order a pizza with topping ham.",
            {"topping": "ham"},
        ),
        (
            ("set_thermostat", "degrees:integer", "Set the thermostat"),
            "Set the thermostat to 21.",
            {"degrees": 21},
        ),
        (
            ("get_capital", "country:string", "The capital of a country"),
            "What is the capital of France?",
            {"country": "France"},
        ),
        (
            ("book_flight", "destination:string date?:string", "Book a flight"),
            "Book a flight to Lisbon.",
            {"destination": "Lisbon"},
        ),
        (
            ("define_word", "word:string", "Give the definition of a word"),
            "Give me the definition of gravity.",
            {"word": "gravity"},
        ),
        (("flip_coin", "", "Flip a coin"), "Flip a coin.", {}),
        (
            ("list_files", "directory:string", "List the files of a directory"),
            "List the files of /tmp.",
            {"directory": "/tmp"},
        ),
        (
            ("get_joke", "topic:string", "Tell a joke about a topic"),
            "Get the joke for cats.",
            {"topic": "cats"},
        ),
        (
            ("power", "base:number exponent:number", "Raise a number to a power"),
            "Use power with base 2 and exponent 8.",
            {"base": 2, "exponent": 8},
        ),
        (("is_prime", "n:integer", "Whether a number is prime"), "Is 97 a prime number?", {"n": 97}),
        (
            ("open_website", "url:string", "Open a website"),
            "Open the website example.org.",
            {"url": "example.org"},
        ),
        (
            ("get_score", "team:string", "The score of a team"),
            "What is the score of Arsenal?",
            {"team": "Arsenal"},
        ),
        (
            ("unlock_door", "door_id:integer", "Unlock a door by its id"),
            "Unlock the door 12.",
            {"door_id": 12},
        ),
        (
            ("get_tide", "harbor:string", "The tide in a harbor"),
            "What is the tide of Hamburg?",
            {"harbor": "Hamburg"},
        ),
        (
            ("check_inventory", "product:string", "Check the inventory for a product"),
            "Check the inventory for lamps.",
            {"product": "lamps"},
        ),
        (
            ("get_employee_salary", "employee_id:string", "Get the salary of an employee"),
            "What is the employee salary of E1234?",
            {"employee_id": "E1234"},
        ),
        (
            ("magic_function", "input:integer", "Applies a magic function to an input."),
            "What is the value of magic_function(3)?",
            {"input": 3},
        ),
        (("foobar", "x:string y?:integer", ""), "Use foobar with hello.", {"x": "hello"}),
    ]
]
"""Tools under names that no training document has, each with a question and the arguments that it wants."""

HELD_OUT_NAMES = {tool.name for tool, _, _ in HELD_OUT}
