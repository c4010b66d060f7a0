"""Train the small model that Slipstream ships, from nothing but this script.

The model is a llama decoder of under two million parameters with its own
byte-level BPE tokenizer. All of its training text is made up by this script:
short plain-English stories, small sums, short chats about both, and chats in
which tools are on offer. The script reads from top to bottom: stories, sums,
chats, tokenizer, corpus, model, training, evaluation, saving. Beside it live
the word lists and the sentence patterns (``lexicon.py``, ``tool_lexicon.py``),
the chats with tools (``tools.py``, ``tool_evaluation.py``) and the chat
template (``chat_template.jinja``).

The weights in ``src/slipstream/model`` were made on one GPU with::

    python training/train_model.py --device cuda --out src/slipstream/model

A quick try on a CPU, which shows that everything works and learns little::

    python training/train_model.py --docs 4000 --steps 30 --batch 8 --out /tmp/model

Everything random hangs on ``--seed``: the corpus, the held-out sums, the
tokenizer, the order of the rows and the first weights are the same for the same seed. The trained
weights agree only closely, since GPU arithmetic does not sum in a fixed order.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import lexicon as lex
import numpy as np
import tools
import torch
import torch.nn.functional as F
from muon import Muon
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tool_evaluation import KNOWN, Cases, made_cases, rated
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

ROW = 1024  # tokens in a training row
JOINED = 8  # rows that make one long row
CONTEXT = JOINED * ROW
VOCABULARY = 2048
STEPS = 16_000
DOCS = 2_000_000
END, SYSTEM, USER, ASSISTANT, TURN_END = "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL_TOKENS = [END, SYSTEM, USER, ASSISTANT, TURN_END]
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")

# ------------------------------------------------------------------- stories

PRONOUNS = {  # subject: object, possessive, reflexive, was
    "he": ("him", "his", "himself", "was"),
    "she": ("her", "her", "herself", "was"),
    "it": ("it", "its", "itself", "was"),
    "they": ("them", "their", "themselves", "were"),
    "I": ("me", "my", "myself", "was"),
    "we": ("us", "our", "ourselves", "were"),
}
FORMS = {"him": 0, "his": 1, "himself": 2, "was": 3}


@dataclass
class Being:
    """Somebody in a story, with the ways to name them."""

    pronoun: str
    first: str  # with the article: "an old sailor"
    early: str  # the first mention without introduction: "the old sailor"
    later: list[str]  # "the sailor"
    topics: list[str]  # how a request may name them
    noun: str = ""
    last_seen: int = -9  # the sentence that named them last
    introduced: bool = False
    known: bool = False  # has a pronoun or the noun told whether it is "he" or "she"

    @property
    def plural(self) -> bool:
        return self.pronoun in ("they", "we")

    @property
    def narrator(self) -> bool:
        return self.pronoun in ("I", "we")


def invented_name(rng: random.Random) -> str:
    """A name that no list has, so that the model learns to repeat any name."""
    syllables = rng.choices(
        [
            "za",
            "bo",
            "ki",
            "ru",
            "mel",
            "tor",
            "fi",
            "la",
            "dun",
            "pa",
            "qui",
            "vo",
            "ny",
            "gra",
            "lo",
            "xi",
            "sen",
            "wu",
            "ber",
            "jo",
            "ha",
            "ti",
            "ek",
            "ro",
            "mu",
            "sha",
            "bri",
            "den",
        ],
        k=rng.choice([2, 2, 3]),
    )
    return "".join(syllables).capitalize()


def person_name(rng: random.Random, pronoun: str) -> str:
    if rng.random() < 0.06:
        return invented_name(rng)
    return rng.choice(lex.GIRLS if pronoun == "she" else lex.BOYS)


def named_child(rng: random.Random) -> Being:
    pronoun = rng.choice(["he", "she"])
    noun = "girl" if pronoun == "she" else "boy"
    name = person_name(rng, pronoun)
    adjective = rng.choice(lex.CHILD_ADJECTIVES) + " " if rng.random() < 0.5 else ""
    first = f"a {adjective}{noun} {rng.choice(['named', 'named', 'called'])} {name}"
    return Being(
        pronoun,
        first,
        name,
        [name] * 8 + [f"the {noun}"],
        [f"a {noun}", f"a {adjective}{noun}", name, f"a {noun} named {name}", first],
        noun,
    )


def unnamed_child(rng: random.Random) -> Being:
    pronoun = rng.choice(["he", "she"])
    noun = "girl" if pronoun == "she" else "boy"
    adjective = rng.choice(lex.CHILD_ADJECTIVES)
    return Being(
        pronoun,
        f"a {adjective} {noun}",
        f"the {adjective} {noun}",
        [f"the {noun}"],
        [f"a {noun}", f"a {adjective} {noun}"],
        noun,
    )


def common(
    rng: random.Random, noun: str, adjectives: list[str], pronoun: str, names: list[str], named: float
) -> Being:
    """A being known by what it is: "an old sailor", perhaps "named Finn"."""
    adjective = rng.choice(adjectives) + " " if rng.random() < 0.75 else ""
    later = [f"the {noun}"] * 3 + [f"the {adjective}{noun}"]
    topics = [f"a {noun}", f"a {noun}", f"a {adjective}{noun}", f"the {adjective}{noun}"]
    if rng.random() >= named:
        return Being(pronoun, f"a {adjective}{noun}", f"the {adjective}{noun}", later, topics, noun)
    name = invented_name(rng) if rng.random() < 0.1 else rng.choice(names)
    first = f"a {adjective}{noun} {rng.choice(['named', 'called'])} {name}"
    return Being(
        pronoun,
        first,
        rng.choice([name, f"{name} the {noun}"]),
        rng.choice([[name], [name], later]),
        [*topics, f"{name} the {noun}", f"a {noun} named {name}"],
        noun,
    )


def grown_up(rng: random.Random) -> Being:
    noun = rng.choice(lex.ROLES)
    pronoun = (
        "she" if noun in lex.FEMALE_ROLES else "he" if noun in lex.MALE_ROLES else rng.choice(["he", "she"])
    )
    names = lex.GIRLS if pronoun == "she" else lex.BOYS
    if rng.random() < 0.15:
        title = rng.choice(
            ["Mrs.", "Miss", "Aunt", "Grandma", "Queen", "Old", "Doctor", "Captain"]
            if pronoun == "she"
            else ["Mr.", "Mr.", "Uncle", "Grandpa", "King", "Old", "Doctor", "Captain"]
        )
        name = rng.choice(lex.SURNAMES if title in ("Mrs.", "Miss", "Mr.", "Doctor") else names)
        full = f"{title} {name}"
        adjective = rng.choice(["old", "young", "kind", "busy", "funny"])
        who = f"{adjective} {'woman' if pronoun == 'she' else 'man'}"
        return Being(pronoun, f"a {who} called {full}", full, [full], [full])
    return common(rng, noun, lex.ROLE_ADJECTIVES, pronoun, names, 0.2)


def animal(rng: random.Random) -> Being:
    pronoun = rng.choice(["he", "she"])
    return common(rng, rng.choice(lex.ANIMALS), lex.ANIMAL_ADJECTIVES, pronoun, lex.PET_NAMES, 0.3)


def creature(rng: random.Random) -> Being:
    pronoun = rng.choice(["he", "she", "he", "she", "it"])
    return common(rng, rng.choice(lex.CREATURES), lex.CREATURE_ADJECTIVES, pronoun, lex.PET_NAMES, 0.3)


def thing(rng: random.Random) -> Being:
    nouns = lex.THINGS if rng.random() < 0.6 else lex.OBJECTS
    adjectives = lex.CREATURE_ADJECTIVES + lex.COLORS
    return common(rng, rng.choice(nouns), adjectives, rng.choice(["he", "she", "it"]), lex.PET_NAMES, 0.2)


def swimmer(rng: random.Random) -> Being:
    return common(
        rng, rng.choice(lex.SWIMMERS), lex.ANIMAL_ADJECTIVES, rng.choice(["he", "she"]), lex.PET_NAMES, 0.3
    )


def narrator(rng: random.Random) -> Being:
    return Being("I", "I", "I", ["I"], [], "I")


def relative(rng: random.Random) -> Being:
    noun = rng.choice(list(lex.RELATIVES))
    full = f"{rng.choice(['my', 'my', 'our'])} {noun}"
    return Being(lex.RELATIVES[noun], full, full, [full], [], noun)


def group(rng: random.Random) -> Being:
    """Two heroes who act as one: "Tom and his dog", "the two brothers", "my sister and I"."""
    kind = rng.random()
    if kind < 0.4:
        names = [person_name(rng, rng.choice(["he", "she"])) for _ in range(2)]
        both = " and ".join(names)
        what = rng.choice(["friends", "children", "friends"])
        return Being(
            "they",
            f"two {rng.choice(['', 'good ', 'little ', 'young '])}{what} named {both}",
            both,
            [both] * 3 + [f"the {what}", f"the two {what}"],
            [both, f"two {what}", f"two {what} named {both}"],
            "pair",
        )
    if kind < 0.65:
        pronoun = rng.choice(["he", "she"])
        noun, pet = ("girl" if pronoun == "she" else "boy"), rng.choice(lex.PETS)
        name, his = person_name(rng, pronoun), PRONOUNS[pronoun][1]
        both = f"{name} and {his} {pet}"
        if rng.random() < 0.3:
            pet_name = rng.choice(lex.PET_NAMES)
            return Being(
                "they",
                f"a {noun} named {name} and {his} {pet} {pet_name}",
                f"{both} {pet_name}",
                [f"{name} and {pet_name}"],
                [f"{both} {pet_name}", f"a {noun} and {his} {pet}"],
                "pair",
            )
        return Being(
            "they",
            f"a {noun} named {name} and {his} {pet}",
            both,
            [both],
            [both, f"a {noun} and {his} {pet}"],
            "pair",
        )
    if kind < 0.9:
        noun = rng.choice(list(lex.GROUP_NOUNS))
        number = rng.choice(["two", "two", "three"]) if noun != "twins" else "two"
        adjective = rng.choice(["", "", "little ", "young ", "old ", "poor ", "happy "])
        return Being(
            "they",
            f"{number} {adjective}{noun}",
            f"the {number} {adjective}{noun}",
            [f"the {noun}", f"the {number} {noun}"],
            [f"{number} {noun}", f"{number} {adjective}{noun}"],
            noun,
        )
    other = rng.choice(
        [
            "my brother",
            "my sister",
            "my friend",
            "my dog",
            "my grandfather",
            "my friend " + person_name(rng, "he"),
        ]
    )
    return Being("we", f"{other} and I", f"{other} and I", [f"{other} and I", "we"], [], "pair")


HEROES: dict[str, Callable[[random.Random], Being]] = {
    "c": lambda rng: named_child(rng) if rng.random() < 0.8 else unnamed_child(rng),
    "r": grown_up,
    "a": animal,
    "k": creature,
    "t": thing,
    "i": narrator,
    "g": group,
    "m": relative,
    "s": swimmer,
}
HERO_WEIGHTS = {"c": 30, "r": 20, "a": 18, "k": 7, "t": 6, "i": 6, "g": 8, "m": 3, "s": 2}


@cache
def parse(pattern: str) -> tuple:
    """Turn a pattern into literals, slots ("slot", name) and choices ("choice", parsed alternatives)."""
    nodes: list = []
    position = 0
    for match in re.finditer(r"\{([^}]*)\}|\[([^\]]*)\]", pattern):
        if match.start() > position:
            nodes.append(pattern[position : match.start()])
        if match.group(1) is not None:
            nodes.append(("slot", match.group(1)))
        else:
            nodes.append(("choice", tuple(parse(option) for option in match.group(2).split("|"))))
        position = match.end()
    if position < len(pattern):
        nodes.append(pattern[position:])
    return tuple(nodes)


def verb_forms(activity: str) -> tuple[str, str, str]:
    """The base form, the past and the -ing form of "look at the sea"."""
    verb, _, rest = activity.partition(" ")
    doubled = verb + verb[-1] if verb in lex.DOUBLING_VERBS else verb
    if verb in lex.IRREGULAR_VERBS:
        past = lex.IRREGULAR_VERBS[verb]
    elif verb.endswith("e"):
        past = verb + "d"
    elif verb.endswith("y") and verb[-2] not in "aeiou":
        past = verb[:-1] + "ied"
    else:
        past = doubled + "ed"
    ing = (verb[:-1] if verb.endswith("e") else doubled) + "ing"
    return activity, f"{past} {rest}".strip(), f"{ing} {rest}".strip()


def article(text: str) -> str:
    """Make "a old" into "an old" all through a text."""
    text = re.sub(r"\b([Aa]) (?=[aeiouAEIOU])(?!uni|use|one\b|eu|Uni|Eu)", r"\1n ", text)
    return re.sub(r"\b([Aa]) (?=hour|honest)", r"\1n ", text)


def capitalize(text: str) -> str:
    """Capital letters at the start, after the end of a sentence and where ``^`` asks for one."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"\^(\W*)(\w)", lambda m: m.group(1) + m.group(2).upper(), text)
    text = re.sub(r'^("?)(\w)', lambda m: m.group(1) + m.group(2).upper(), text)
    return re.sub(
        r'(?<!Mr)(?<!Mrs)(?<!\.\.)([.!?] |\." )("?)(\w)',
        lambda m: m.group(1) + m.group(2) + m.group(3).upper(),
        text,
    )


@cache
def sentence_ends(literal: str) -> int:
    return len(re.findall(r"[.!?](?:\s|\"|$)", literal))


GROUP_WORDS = {
    "I": "we",
    "my": "our",
    "me": "us",
    "am": "are",
    "was": "were",
    "mine": "ours",
    "myself": "ourselves",
}


@cache
def spoken_by_two(pattern: str) -> str | None:
    """A hero's speech made fit for two speakers, or None where somebody else speaks, too."""
    if '"' not in pattern:
        return pattern
    if re.search(
        r"\{(f|p)\.("
        + "|".join(lex.QUOTE_VERBS)
        + r")\}|\{(f|p)\.he\} (said|asked|called|cried|thought)|said|voice|shouted|star",
        pattern,
    ) and not re.search(
        r"^[^\"]*\"[^\"]*\"[^\"]*\{h\.(said|asked|cried|thought|called|answered)\}[^\"]*$", pattern
    ):
        return None
    parts = pattern.split('"')
    for i in range(1, len(parts), 2):
        parts[i] = re.sub(r"\b(I|my|me|am|was|mine|myself)\b", lambda m: GROUP_WORDS[m.group(1)], parts[i])
        parts[i] = re.sub(r"^we\b", "We", parts[i])
        parts[i] = re.sub(r"([.!?] )(we|our)\b", lambda m: m.group(1) + m.group(2).capitalize(), parts[i])
    return '"'.join(parts)


@dataclass
class Story:
    """One story in the making: who is in it, what has been picked, what has been said."""

    rng: random.Random
    kind: str
    hero: Being
    cast: dict[str, Being] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    sentence: int = 0
    started: bool = False  # has the action begun ("Soon,") or not ("One day,")
    fresh: bool = False  # is the next subject to be named in full
    any_sky: bool = True  # may an activity tell of the weather or the time of day

    def __post_init__(self) -> None:
        self.cast["h"] = self.hero

    # -- who and what

    def being(self, key: str) -> Being:
        if key not in self.cast:
            self.cast[key] = (
                self.pick_elder() if key == "p" else self.pick_small() if key == "b" else self.pick_friend()
            )
        return self.cast[key]

    def pick_friend(self) -> Being:
        rng = self.rng
        used = {being.noun for being in self.cast.values()} | {being.later[0] for being in self.cast.values()}
        while True:
            if self.kind == "s":
                friend = swimmer(rng)
            else:
                maker = rng.choices([named_child, grown_up, animal, creature], [4, 3, 3, 1])[0]
                friend = maker(rng)
            same = friend.pronoun == self.hero.pronoun
            if (
                friend.pronoun == "it"
                or (same and rng.random() < 0.6)
                or {friend.noun, friend.later[0]} & used - {"girl", "boy"}
            ):
                continue
            return friend

    def pick_elder(self) -> Being:
        elders = lex.ELDERS_OF_YOUNG if self.kind in "caikgs" else lex.ELDERS_OF_GROWN
        options = [noun for noun in elders if noun != self.hero.noun]
        noun = self.rng.choice(options)
        if self.kind in "ca" or (self.kind == "k" and self.rng.random() < 0.5):
            noun = self.rng.choice(
                ["mother", "father", "grandmother", "grandfather"] if self.rng.random() < 0.7 else options
            )
        his = PRONOUNS[self.hero.pronoun][1]
        return Being(elders[noun], f"{his} {noun}", f"{his} {noun}", [f"{his} {noun}"], [], noun)

    def pick_small(self) -> Being:
        used = {being.noun for being in self.cast.values()}
        noun = self.rng.choice([noun for noun in lex.SMALL_CREATURES if noun not in used])
        adjective = self.rng.choice(lex.SMALL_ADJECTIVES)
        return Being("it", f"a {adjective} {noun}", f"the {adjective} {noun}", [f"the {noun}"], [], noun)

    def keep(self, key: str, make: Callable[[], str]) -> str:
        """Pick something once for the whole story."""
        if key not in self.kept:
            value = make()
            for _ in range(19):
                if value not in self.kept.values() and value != self.hero.noun:
                    break
                value = make()
            self.kept[key] = value
        return self.kept[key]

    # -- words for slots

    def name(self, key: str) -> str:
        """A full name for somebody, by the way they were introduced."""
        being = self.being(key)
        text = self.rng.choice(being.later) if being.introduced else being.early
        being.introduced, being.last_seen = True, self.sentence
        return text

    def clear(self, key: str) -> bool:
        """May a pronoun stand for this being here, with nobody to mistake it for?"""
        being = self.being(key)
        rivals = [other for k, other in self.cast.items() if k != key and other.pronoun == being.pronoun]
        recent = self.sentence - being.last_seen <= 1 and all(
            self.sentence - rival.last_seen > 1 for rival in rivals
        )
        if not being.known and being.noun not in ("girl", "boy"):
            others = [other for k, other in self.cast.items() if k not in (key, "b")]
            recent = recent and all(self.sentence - other.last_seen > 1 for other in others)
        return being.introduced and recent and (being.pronoun != "it" or self.rng.random() < 0.4)

    def subject(self, key: str) -> tuple[str, bool]:
        being = self.being(key)
        if being.pronoun == "I":
            being.introduced, being.last_seen = True, self.sentence
            return "I", True
        fresh, self.fresh = self.fresh, False
        if self.clear(key) and self.rng.random() < 0.7 and not fresh:
            being.last_seen, being.known = self.sentence, True
            return being.pronoun, True
        return self.name(key), False

    def mention(self, key: str, form: str) -> str:
        being = self.being(key)
        if form == "":
            return self.subject(key)[0]
        if form == "a":
            text = self.name(key) if being.introduced else being.first
            being.introduced, being.last_seen = True, self.sentence
            return text
        if form == "o":
            if being.narrator:
                return PRONOUNS[being.pronoun][0]
            if self.clear(key):
                being.last_seen = self.sentence
                return PRONOUNS[being.pronoun][0]
            return self.name(key)
        if form == "n":
            return PRONOUNS[being.pronoun][0] if being.narrator else self.name(key)
        if form == "s":
            if being.narrator:
                return PRONOUNS[being.pronoun][1]
            name = self.name(key)
            return name + ("'" if name.endswith("s") and name.startswith("the ") else "'s")
        if form == "noun":
            return being.noun
        if form == "has":
            return "have" if being.plural or being.narrator else "has"
        if form in ("he", "him", "his"):
            being.known = True
        if form == "he":
            return being.pronoun
        if form == "my":
            return "our" if being.plural else "my"
        if form in FORMS:
            return PRONOUNS[being.pronoun][FORMS[form]]
        if form in lex.QUOTE_VERBS:
            who, is_pronoun = self.subject(key)
            before = is_pronoun or form == "laughed" or self.rng.random() < 0.4
            return f"{who} {form}" if before else f"{form} {who}"
        raise KeyError(f"{key}.{form}")

    def noun_phrase(self, value: str, form: str) -> str:
        """Forms of a kept phrase such as "some berries" or "an apple pie"."""
        head = value.split(" ", 1)[1] if value.split(" ", 1)[0] in ("a", "an", "some") else value
        last = head.split(" of ")[0]
        many = last.endswith("s")
        return {
            "a": value,
            "": head,
            "the": f"the {last}",
            "was": "were" if many else "was",
            "it": "them" if many else "it",
        }[form]

    def object_phrase(self, key: str, form: str) -> str:
        sea = self.kind == "s"
        noun = self.keep(key, lambda: self.rng.choice(lex.SEA_OBJECTS if sea else lex.OBJECTS))
        adjective = self.keep(key + ".adjective", lambda: self.rng.choice(lex.OBJECT_ADJECTIVES))
        if noun.startswith(("toy ", "teddy", "wooden", "paper")) and adjective in ("wooden", "soft"):
            adjective = self.kept[key + ".adjective"] = "little"
        full = f"{adjective} {noun}"
        if form in ("a", "A"):
            return (
                f"a {full}"
                if self.keep(key + ".plain", lambda: self.rng.choice("nny")) == "n"
                else f"a {noun}"
            )
        plain = self.kept.get(key + ".plain") == "y" or self.rng.random() < 0.6
        if form == "n":
            return noun if plain else full
        if form == "the":
            return f"the {noun}" if plain else f"the {full}"
        if form == "color":
            return adjective if adjective in lex.COLORS else "bright"
        return noun

    def place_phrase(self, key: str, form: str) -> str:
        places = lex.SEA_PLACES if self.kind == "s" else lex.PLACES
        preposition, place = self.keep(key, lambda: self.rng.choice(places)).split(" ", 1)
        adjective = self.keep(
            key + ".adjective",
            lambda: (
                self.rng.choice(lex.PLACE_ADJECTIVES) if self.rng.random() < 0.2 else str(self.rng.random())
            ),
        )
        if (
            adjective[0].isalpha()
            and place.split()[0] not in ("old", "deep")
            and preposition not in ("under", "behind")
        ):
            place = f"{adjective} {place}"
        if form == "to":
            return f"to the {place}"
        if place in ("seaweed", "snow"):
            return f"{preposition} the {place}"
        return f"{preposition} the {place}"

    def activity(self, form: int) -> str:
        pool = lex.SEA_ACTIVITIES if self.kind == "s" else lex.ACTIVITIES
        while True:
            activity = self.rng.choice(pool)
            if activity in self.kept or (form == 0 and re.match(lex.DULL_ACTIVITIES, activity)):
                continue
            if self.any_sky or form == 0 or not re.search(lex.SKY_ACTIVITIES, activity):
                break
        self.kept[activity] = activity
        return verb_forms(activity)[form]

    def slot(self, name: str) -> str:
        base, _, form = name.partition(".")
        if base in ("h", "f", "p", "b"):
            return self.mention(base, form)
        if base in ("hf", "ha"):
            for key in base.replace("a", ""):
                self.being(key).last_seen = self.sentence if base == "hf" else self.being(key).last_seen
            they = "we" if self.hero.narrator else "they"
            text = they if form.lower() == "they" else PRONOUNS[they][1]
            return text.capitalize() if form[0].isupper() else text
        if base == "both":
            hero = self.mention("h", "a" if form == "a" else "n")
            friend = self.mention("f", "a")
            return f"{friend} and I" if self.hero.narrator else f"{hero} and {friend}"
        if base == "when":
            starts = lex.WHEN_MOMENT if self.started else lex.WHEN_GENERAL
            self.started = True
            self.fresh = self.rng.random() < 0.75
            return self.rng.choice(starts)
        if base.startswith("~"):
            plain = base[1:].rstrip("23")
            if plain in ("do", "did", "doing"):
                return self.activity(("do", "did", "doing").index(plain))
            if plain == "live" and self.kind == "s":
                plain = "sealive"
            value = self.rng.choice(lex.LISTS[plain])
            if plain == "mood":
                value = self.keep(base, lambda: self.rng.choice(lex.MOODS))
            return value
        plain = base.rstrip("0123456789")
        if plain == "obj":
            return self.object_phrase(base, form)
        if plain == "place":
            return self.place_phrase(base, form.lower())
        if plain in lex.KEPT_LISTS:
            return self.noun_phrase(self.keep(base, lambda: self.rng.choice(lex.KEPT_LISTS[plain])), form)
        if plain in lex.KEPT_WORDS:
            return self.keep(base, lambda: self.rng.choice(lex.KEPT_WORDS[plain]))
        if plain == "things":
            return self.keep(base, lambda: self.rng.choice(lex.COUNTED))
        if plain == "n":
            return self.kept[base]
        raise KeyError(name)

    # -- sentences

    def render(self, pattern: str) -> str:
        out: list[str] = []
        self.any_sky = not re.search(
            r"~time|~sky|~setting|~event|~wake|breakfast|lunch|dinner|morning|evening|night", pattern
        )

        def walk(nodes: tuple) -> None:
            for node in nodes:
                if isinstance(node, str):
                    out.append(node)
                    self.sentence += sentence_ends(node)
                elif node[0] == "slot":
                    out.append(self.slot(node[1]))
                else:
                    walk(self.rng.choice(node[1]))

        walk(parse(pattern))
        return capitalize("".join(out))

    def fits(self, pattern: str) -> str | None:
        """The pattern without its condition if it suits the hero, else None."""
        if (pattern[:2] == "1>" or pattern[:3] == "13>") and self.hero.plural:
            return None
        if (pattern[:2] == "3>" or pattern[:3] == "13>") and self.hero.narrator:
            return None
        if (self.hero.narrator or self.kind == "m") and re.search(r"\{(h|both)\.a\}", pattern):
            return None
        pattern = re.sub(r"^[13]+> ", "", pattern)
        if self.kind == "s" and re.search(lex.LAND_WORDS, pattern):
            return None
        return spoken_by_two(pattern) if self.hero.plural else pattern

    def say(self, patterns: list[str]) -> str:
        """One pattern of a list that suits the hero, rendered; nothing if none does."""
        for _ in range(12):
            pattern = self.fits(self.rng.choice(patterns))
            if pattern is not None:
                return self.render(pattern)
        return ""


PLOT_NAMES = list(lex.PLOTS)


def open_story(story: Story, kinds: str, plot: str) -> tuple[list[str], list[str]]:
    """The opening sentences, and the beats which they make necessary."""
    rng = story.rng
    beats = lex.PLOTS[plot][2].split()
    if "found" in kinds and rng.random() < 0.4:
        return [story.say(lex.OPENINGS["found"])], ["seesit", "open", *beats[-2:]]
    if "friend" in kinds:
        return [story.say(lex.OPENINGS["friend"])], beats
    if "own" in kinds and rng.random() < 0.6:
        return [story.say(lex.OPENINGS["own"])], beats
    style = rng.choices(["classic", "general", "moment"], [3, 2, 5])[0]
    if style == "classic" and (story.hero.narrator or story.kind == "m"):
        style = "moment"
    sentences = [story.say(lex.OPENINGS[style])]
    story.started = style == "moment"
    if not story.hero.introduced:  # the opening told of the place alone
        sentences.append(story.say(lex.OPENINGS["moment"][:4]))
    if style != "moment" and rng.random() < 0.5:
        sentences.append(story.say(lex.INTRO))
    if "own" in kinds:
        beats = ["have", *beats]
    return sentences, beats


def make_story(rng: random.Random, holdout: HeldOut) -> tuple[str, str, Story, str]:
    """A story: its opening, the rest, the cast and the name of the plot."""
    while True:
        plot = rng.choice(PLOT_NAMES)
        kinds, heroes, _ = lex.PLOTS[plot]
        kind = rng.choices(list(HERO_WEIGHTS), list(HERO_WEIGHTS.values()))[0]
        if kind in heroes:
            break
    story = Story(rng, kind, HEROES[kind](rng))
    if plot == "count":
        first = second = 0
        while min(first, second) < 2:
            first, second = holdout.training_pair(rng, "+", 20)
        story.kept.update(n1=str(first), n2=str(second), n3=str(first + second))
    sentences, beats = open_story(story, kinds, plot)
    opening = len(sentences)
    for beat in beats:
        if beat.endswith("?") and rng.random() < 0.5:
            continue
        if rng.random() < 0.06 and len(sentences) > opening and not sentences[-1].endswith('?"'):
            story.fresh = True
            sentences.append(story.say(lex.ASIDES))
        sentences.append(story.say(lex.BEATS[beat.rstrip("?")]))
    if rng.random() < 0.3:
        story.fresh = True
        sentences.append(story.say(lex.ENDINGS))
    sentences = [article(sentence) for sentence in sentences if sentence]
    joints = [" "] * len(sentences)
    if rng.random() < 0.2:  # in paragraphs
        for i in range(2, len(sentences) - 1):
            if rng.random() < 0.3 and not sentences[i - 1].endswith('"'):
                joints[i] = "\n\n"
    start = " ".join(sentences[:opening])
    rest = "".join(
        joint + sentence for joint, sentence in zip(joints[opening:], sentences[opening:], strict=True)
    )
    return start, rest, story, plot


# ---------------------------------------------------------------------- sums


def result(a: int, op: str, b: int) -> int:
    return a + b if op == "+" else a - b if op == "-" else a * b


class HeldOut:
    """A fixed tenth of the operand pairs, which the training text never shows.

    A pair is held out in both orders, and apart for the pairs of two one-digit
    numbers and for all others, for each of the two operations.
    """

    def __init__(self, seed: int) -> None:
        rng = random.Random(f"held-out {seed}")
        self.pairs: dict[str, set[tuple[int, int]]] = {}
        for op in "+-":
            pairs = [(a, b) for b in range(100) for a in range(b + 1)]
            small = [pair for pair in pairs if pair[1] < 10]
            large = [pair for pair in pairs if pair[1] >= 10]
            self.pairs[op] = set(
                rng.sample(small, round(len(small) / 10)) + rng.sample(large, round(len(large) / 10))
            )

    def is_held_out(self, a: int, op: str, b: int) -> bool:
        return op in self.pairs and (min(a, b), max(a, b)) in self.pairs[op]

    def training_pair(self, rng: random.Random, op: str, limit: int = 100) -> tuple[int, int]:
        while True:
            a, b = rng.randrange(limit), rng.randrange(limit)
            if not self.is_held_out(a, op, b):
                return a, b

    def training_sum(self, rng: random.Random) -> tuple[int, str, int]:
        """Operands for training: small numbers more often than their share."""
        op = rng.choices("+-*", [10, 10, 1])[0]
        if op == "*":
            return rng.randrange(11), op, rng.randrange(11)
        while True:
            a, b = self.training_pair(rng, op, rng.choices([10, 20, 100], [2, 1, 9])[0])
            if op == "-" and a < b and rng.random() < 0.75 and not self.is_held_out(b, op, a):
                a, b = b, a  # results below zero are rarer
            return a, op, b


def equation(a: int, op: str, b: int) -> str:
    return f"{a} {op} {b} = {result(a, op, b)}"


def sum_question(rng: random.Random, a: int, op: str, b: int) -> str:
    question = rng.choice(lex.SUM_QUESTIONS[op])
    if rng.random() < 0.05 and max(a, b) <= 20 and re.search("plus|minus|times|and", question):
        return question.format(a=lex.NUMBER_WORDS[a], b=lex.NUMBER_WORDS[b])
    return question.format(a=a, b=b)


def word_problem(rng: random.Random, holdout: HeldOut) -> tuple[str, str]:
    """A small sum told as a story, and its answer."""
    things, name = rng.choice(lex.COUNTED), person_name(rng, pronoun := rng.choice(["he", "she"]))
    while True:
        op = rng.choice("+-")
        a, b = holdout.training_pair(rng, op, 21)
        if op == "-" and a < b:
            continue
        if min(a, b, result(a, op, b)) >= 2:
            break
    got = rng.choice(["gets", "finds", "buys"]) if op == "+" else rng.choice(["loses", "gives away", "sells"])
    more = " more" if op == "+" else ""
    question = f"{name} has {a} {things} and {got} {b}{more}. " + rng.choice(
        [
            f"How many {things} does {name} have now?",
            f"How many {things} does {pronoun} have now?",
            "How many are there now?",
        ]
    )
    return question, f"{equation(a, op, b)}. {name} has {result(a, op, b)} {things} now."


def plain_sums(rng: random.Random, holdout: HeldOut) -> str:
    """Sums as bare text: mostly one equation, at times a column of them."""
    form = rng.random()
    if form < 0.55:
        return equation(*holdout.training_sum(rng))
    if form < 0.65:
        return equation(*holdout.training_sum(rng)).replace(" ", "")
    if form < 0.85:
        return "\n".join(equation(*holdout.training_sum(rng)) for _ in range(rng.randint(2, 8)))
    a, op, b = holdout.training_sum(rng)
    if form < 0.92:
        asked = f"{rng.choice(['Question:', 'Q:'])} {sum_question(rng, a, op, b)}"
        return f"{asked}\n{rng.choice(['Answer:', 'A:'])} {equation(a, op, b)}."
    return f"{sum_question(rng, a, op, b)} {equation(a, op, b)}."


# --------------------------------------------------------------------- chats


def typed(rng: random.Random, text: str) -> str:
    """What somebody types: at times without the capital letter or the final stop."""
    if rng.random() < 0.2:
        text = text[0].lower() + text[1:]
        if rng.random() < 0.5:
            text = text.lower()
    if rng.random() < 0.25 and text[-1] in ".?!":
        text = text[:-1]
    return text


def with_topic(story: Story, plot: str) -> str | None:
    """A way to ask for this story by what is in it."""
    rng = story.rng
    who = rng.choice(story.hero.topics) if story.hero.topics else None
    if who is None or rng.random() < 0.1:
        topics = lex.PLOT_TOPICS[plot].split("; ")
        return rng.choice(topics)
    extras = []
    if "obj" in story.kept:
        extras += [f"a {story.kept['obj']}", f"a {story.kept['obj.adjective']} {story.kept['obj']}"]
    if "f" in story.cast and story.cast["f"].topics and story.cast["f"].introduced:
        extras += [rng.choice(story.cast["f"].topics)] * 2
    if "b" in story.cast:
        extras.append(f"a {story.cast['b'].noun}")
    if extras and rng.random() < 0.4:
        return f"{who} and {rng.choice(extras)}"
    if rng.random() < 0.1:
        return f"{who} and {rng.choice(lex.PLOT_TOPICS[plot].split('; '))}"
    return who


def story_turn(rng: random.Random, holdout: HeldOut, again: bool) -> tuple[str, str]:
    start, rest, story, plot = make_story(rng, holdout)
    form = rng.random()
    if form < 0.15:
        return rng.choice(lex.CONTINUE_REQUESTS).format(start=start), rest.strip()
    if form < 0.3:
        return rng.choice(lex.MORE_REQUESTS if again else lex.OPEN_REQUESTS), start + rest
    topic = with_topic(story, plot)
    return article(rng.choice(lex.STORY_REQUESTS).format(topic=topic)), start + rest


def talk_turn(rng: random.Random) -> tuple[str, str]:
    asked, answers = rng.choice(lex.SMALL_TALK)
    return rng.choice(asked), rng.choice(answers)


def unknown_turn(rng: random.Random) -> tuple[str, str]:
    if rng.random() < 0.25:  # numbers that are too big
        a, b = (
            rng.choice([rng.randint(100, 9999), rng.randint(100, 999)]),
            rng.choice([rng.randint(1, 999), rng.randint(100, 9999)]),
        )
        if rng.random() < 0.5:
            a, b = b, a
        return rng.choice(lex.SUM_QUESTIONS[rng.choice("+-*")]).format(a=a, b=b), rng.choice(
            lex.TOO_BIG_REPLIES
        )
    request = rng.choice(lex.UNKNOWN_REQUESTS)
    while "{x}" in request:
        topic = (
            rng.choice(lex.UNKNOWN_TOPICS)
            if rng.random() < 0.8
            else rng.choice(lex.OBJECTS + lex.ANIMALS + lex.GIRLS + lex.BOYS)
        )
        request = request.replace("{x}", topic, 1)
    return request, rng.choice(lex.UNKNOWN_REPLIES)


def sum_turn(rng: random.Random, holdout: HeldOut) -> tuple[str, str]:
    if rng.random() < 0.06:
        return word_problem(rng, holdout)
    a, op, b = holdout.training_sum(rng)
    return sum_question(rng, a, op, b), equation(a, op, b) + "."


def make_chat(rng: random.Random, holdout: HeldOut, kind: str) -> list[dict[str, str]]:
    """A chat of one to five turns, most of them of one kind."""
    messages = []
    if rng.random() < 0.15:
        messages.append({"role": "system", "content": rng.choice(lex.SYSTEM_PROMPTS)})
    turns = rng.choices([1, 2, 3, 4, 5], [14, 3, 2, 1, 1])[0]
    told = False
    for turn in range(turns):
        this = (
            kind
            if turn == 0 or rng.random() < 0.4
            else rng.choice(["story", "sum", "talk", "unknown", "talk"])
        )
        if this == "story":
            asked, answer = story_turn(rng, holdout, told)
            told = True
        elif this == "sum":
            asked, answer = sum_turn(rng, holdout)
        elif this == "talk":
            asked, answer = talk_turn(rng)
        else:
            asked, answer = unknown_turn(rng)
        messages += [{"role": "user", "content": typed(rng, asked)}, {"role": "assistant", "content": answer}]
    return messages


def tool_turn(holdout: HeldOut) -> tools.Turn:
    """Turns of plain chat for conversations in which tools are on offer."""

    def turn(rng: random.Random, kind: str) -> tuple[str, str]:
        if kind == "story":
            asked, answer = story_turn(rng, holdout, again=False)
        elif kind == "sum":
            asked, answer = sum_turn(rng, holdout)
        else:
            asked, answer = talk_turn(rng) if kind == "talk" else unknown_turn(rng)
        return typed(rng, asked), answer

    return turn


def chat_text(messages: list[dict[str, str]]) -> str:
    """What the chat template makes of the messages."""
    return "".join(f"<|{m['role']}|>{m['content']}{TURN_END}" for m in messages)


# -------------------------------------------------------------------- corpus

# The share of the documents of each kind. Stories are long and sums are short:
# about four fifths of the tokens are stories.
MIXTURE = {"story": 36, "sums": 26, "chat story": 14, "chat sum": 22, "chat talk": 4, "chat unknown": 4}


TOOL_DOCUMENTS = 0.155  # for each of those: three tenths of the tokens of the corpus


def document(rng: random.Random, holdout: HeldOut) -> str:
    """One training document of a random kind, without its end token."""
    kind = rng.choices(list(MIXTURE), list(MIXTURE.values()))[0]
    if kind == "sums":
        return plain_sums(rng, holdout)
    if kind.startswith("chat"):
        return chat_text(make_chat(rng, holdout, kind.split()[1]))
    start, rest, story, _ = make_story(rng, holdout)
    if rng.random() < 0.04 and story.hero.topics:
        title = story.hero.topics[0].removeprefix("a ").removeprefix("an ")
        title = (
            (title if title[0].isupper() else "The " + title)
            .title()
            .replace("'S", "'s")
            .replace(" And ", " and ")
        )
        return f"{title}\n\n{start}{rest}"
    return start + rest


def documents(seed: str, count: int, holdout: HeldOut) -> Iterator[str]:
    rng = random.Random(seed)
    for _ in range(count):
        yield document(rng, holdout)


def train_tokenizer(texts: Iterator[str]) -> Tokenizer:
    """Byte-level BPE in which every digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, text: str, rng: random.Random) -> list[int]:
    """The tokens of a document.

    One plain document in eight is cut at a random place and encoded in two
    parts: a prompt may end in the middle of a word or with a space, and the
    model has to go on from the tokens which that gives.
    """
    if not text.startswith("<|") and rng.random() < 0.125:
        cut = rng.randrange(1, len(text))
        if rng.random() < 0.5:
            cut = text.find(" ", cut) + 1 or cut
        return tokenizer.encode(text[:cut]).ids + tokenizer.encode(text[cut:]).ids
    return tokenizer.encode(text).ids


_worker: dict = {}


def start_worker(tokenizer_json: str, seed: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker.update(tokenizer=Tokenizer.from_str(tokenizer_json), holdout=HeldOut(seed))


def encode_exchange(tokenizer: Tokenizer, exchange: tools.Exchange) -> list[int]:
    """The tokens of a conversation with tools; ``-1 - token`` is one that the model is not to learn to write.

    What is offered, asked and given back has random words: to guess them would be lost work.
    """
    ids = []
    for text, learn in tools.segments(exchange):
        tokens = tokenizer.encode(text).ids
        ids += tokens if learn else [-1 - token for token in tokens]
    return ids


def pack_chunk(task: tuple[str, int, float]) -> np.ndarray:
    """Rows of documents, each row beginning with a document; what does not fit the row is left out.

    Beside each document there is one with tools at the given rate.
    """
    seed, count, tool_documents = task
    tokenizer: Tokenizer = _worker["tokenizer"]
    turn = tool_turn(_worker["holdout"])
    end = tokenizer.token_to_id(END)
    rng, tool_rng = random.Random(seed + " cuts"), random.Random(seed + " tools")
    rows, row = [], []
    for text in documents(seed, count, _worker["holdout"]):
        row += [*encode(tokenizer, text, rng), end]
        if tool_rng.random() < tool_documents:
            row += [*encode_exchange(tokenizer, tools.exchange(tool_rng, turn)), end]
        if len(row) > ROW:
            rows.append(row[: ROW + 1])
            row = []
    return np.array(rows, dtype=np.int16).reshape(-1, ROW + 1)


class Corpus:
    """Rows of ``ROW + 1`` tokens, made by worker processes while training goes on with the first of them.

    They are the same for any number of processes, which must begin before the device is touched.
    """

    def __init__(self, tokenizer: Tokenizer, seed: int, count: int, name: str, tool_documents: float) -> None:
        size = 1000
        tasks = [(f"{name} {seed} {i}", size, tool_documents) for i in range(math.ceil(count / size))]
        self.parts = len(tasks)
        self.pool = multiprocessing.get_context("fork").Pool(
            initializer=start_worker, initargs=(tokenizer.to_str(), seed)
        )
        self.coming = self.pool.imap(pack_chunk, tasks)
        self.here: list[np.ndarray] = []

    def first(self, share: float) -> torch.Tensor:
        """The rows of the first ``share`` of the documents, as soon as they are there."""
        while len(self.here) < math.ceil(share * self.parts):
            self.here.append(next(self.coming))
        if len(self.here) == self.parts:
            self.pool.close()
        return torch.from_numpy(np.concatenate(self.here))


PASSES = [1 / 8, 1 / 8, 1 / 4, 1 / 4, 1 / 2, 1 / 2]
"""Shares of the corpus that the first passes take, so that training need not wait for all of it."""


def batches(corpus: Corpus, size: int, seed: int, device: torch.device) -> Iterator[torch.Tensor]:
    """Rows in random order, pass after pass, for ever."""
    shuffle = torch.Generator().manual_seed(seed)
    rows, order = corpus.first(PASSES[0]).to(device), torch.empty(0, dtype=torch.long, device=device)
    number = 0
    while True:
        while len(order) < size:
            if 0 < number <= len(PASSES):
                rows = corpus.first([*PASSES[1:], 1.0][number - 1]).to(device)
            number += 1
            order = torch.cat([order, torch.randperm(len(rows), generator=shuffle).to(device)])
        yield rows[order[:size]]
        order = order[size:]


def long_rows(rows: torch.Tensor) -> torch.Tensor:
    """Every ``JOINED`` rows as one. What follows at a seam is not to be learned: the row before it is cut off."""
    seams = rows[:, :1]
    parts = torch.cat([torch.where(seams < 0, seams, -1 - seams), rows[:, 1:ROW]], dim=1)
    return F.pad(parts.reshape(-1, CONTEXT), (0, 1), value=-1)


# ------------------------------------------------------------ model, training


def new_model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    """A llama decoder with fresh weights: eight narrow layers, tied embeddings."""
    end = tokenizer.token_to_id(END)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        initializer_range=0.03,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
    )
    return LlamaForCausalLM(config)


IGNORED = -100
"""Cross entropy leaves this target out."""


def head_loss(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float().flatten(0, 1), targets.flatten())


def row_loss(
    model: LlamaForCausalLM, rows: torch.Tensor, head: Callable[..., torch.Tensor] = head_loss
) -> torch.Tensor:
    """Mean loss of the next token over rows, of those tokens that are to be learned: ``-1 - token`` is none."""
    rows = rows.long()
    tokens = torch.where(rows < 0, -1 - rows, rows)[:, :-1]
    targets = torch.where(rows < 0, IGNORED, rows)[:, 1:]
    with torch.autocast(rows.device.type, torch.bfloat16, enabled=rows.is_cuda):
        hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state
        return head(hidden, model.lm_head.weight, targets)


def learning_rate(progress: float, peak: float = 3e-3) -> float:
    """A short warm-up, then half a cosine down to nearly nothing."""
    return peak * min(progress / 0.02, 0.5 * (1 + math.cos(math.pi * progress)) + 0.003)


LONG_FROM, LONG_EVERY = 0.6, 8
"""Part of the training after which one step in this many has long rows, so that all positions are learned."""


def optimizers_of(model: LlamaForCausalLM, name: str) -> list[torch.optim.AdamW | Muon]:
    """AdamW for everything, or Muon for the matrices of the layers."""
    fused = model.lm_head.weight.is_cuda
    inside = [p for p in model.model.layers.parameters() if p.dim() > 1]
    embedding = [model.lm_head.weight]  # tied
    vectors = [p for p in model.parameters() if p.dim() == 1]
    decayed = embedding if name == "muon" else inside + embedding
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.97), fused=fused)
    return [adam, Muon(inside, lr=0.0, weight_decay=0.1)] if name == "muon" else [adam]


def train(
    model: LlamaForCausalLM, corpus: Corpus, steps: int, minutes: float, batch: int, seed: int, optimizer: str
) -> int:
    """Steps over shuffled rows which stay on the device; how many they were.

    Where they would take longer than ``minutes``, the learning rate follows the clock, and they are fewer.
    """
    device = model.lm_head.weight.device
    head = head_loss
    if device.type == "cuda":  # fused kernels for the layers and the loss, one set for each of the two shapes
        torch._dynamo.config.recompile_limit = 64
        for layer in model.model.layers:
            layer.compile(dynamic=False)
        head = torch.compile(head_loss, dynamic=False)
        rows = torch.zeros(batch, ROW + 1, dtype=torch.int16, device=device)
        for shape in (rows, long_rows(rows)):  # compiled while the corpus is made
            row_loss(model, shape, head).backward()
        model.zero_grad(set_to_none=True)
    optimizers = optimizers_of(model, optimizer)
    model.train()
    coming = batches(corpus, batch, seed, device)
    rows = next(coming)
    begin = seen = time.time()
    step, progress = 0, 0.0
    while progress < 1:
        progress = max((step + 1) / steps, (time.time() - begin) / (60 * minutes))
        if progress >= LONG_FROM and step % LONG_EVERY == 0:
            rows = long_rows(rows)
        for parameters in (group for each in optimizers for group in each.param_groups):
            parameters["lr"] = learning_rate(min(progress, 1))
        loss = row_loss(model, rows, head)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for each in optimizers:
            each.step()
        model.zero_grad(set_to_none=True)
        if step % 250 == 0 or progress >= 1:
            now, done = time.time(), loss.item()
            speed = ((step % 250) or min(step + 1, 250)) * batch * ROW / (time.time() - seen) / 1e6
            print(f"step {step:6d}  loss {done:.4f}  {now - begin:.0f} s  {speed:.2f} M tokens/s", flush=True)
            seen = now
        step, rows = step + 1, next(coming)
    model.eval()
    return step


# ---------------------------------------------------------------- evaluation

OPENINGS_TO_TRY = [  # none of them comes from the patterns
    "The captain lost his map in the storm.",
    "Nobody in the town had ever seen an elephant.",
    "It was raining when Ben found a letter in his shoe.",
    "The dragon did not want to fight anymore.",
    "Sara was angry with her little brother because he",
    '"Come quickly!" shouted the cook.',
    "My uncle Fred builds ships.",
    "On the last day of school, Mia missed the bus.",
    "The spaceship landed in the middle of the corn field.",
    "Two thieves wanted to steal the king's crown.",
]


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, rows: torch.Tensor) -> float:
    return float(np.mean([row_loss(model, part).item() for part in rows.split(16)]))


@torch.no_grad()
def continued(
    model: Any,
    tokenizer: Tokenizer,
    prompts: list[str],
    length: int,
    rows: int = 256,
    **settings: Any,
) -> list[str]:
    """How the model goes on after each prompt, up to an end token; greedy unless ``settings`` say otherwise."""
    device = model.lm_head.weight.device
    ends = [tokenizer.token_to_id(END), tokenizer.token_to_id(TURN_END)]
    encoded = [tokenizer.encode(prompt).ids for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    answers = [""] * len(prompts)
    for part in range(0, len(order), rows):
        some = order[part : part + rows]
        size = max(len(encoded[i]) for i in some)
        tokens = torch.tensor(
            [[ends[0]] * (size - len(encoded[i])) + encoded[i] for i in some], device=device
        )
        mask = torch.tensor(
            [[0] * (size - len(encoded[i])) + [1] * len(encoded[i]) for i in some], device=device
        )
        out = model.generate(
            tokens,
            attention_mask=mask,
            max_new_tokens=length,
            eos_token_id=ends,
            pad_token_id=ends[0],
            **({"do_sample": False} | settings),
        )
        for i, ids in zip(some, out[:, size:].tolist(), strict=True):
            cut = next((place for place, token in enumerate(ids) if token in ends), len(ids))
            answers[i] = tokenizer.decode(ids[:cut])
    return answers


def sums_right(model: LlamaForCausalLM, tokenizer: Tokenizer, holdout: HeldOut) -> dict[str, tuple[int, int]]:
    """How many of the sums come out right in the chat form, by kind: (right, asked)."""
    kinds: dict[str, list[tuple[int, str, int]]] = {}
    for op, name in (("+", "addition"), ("-", "subtraction")):
        for a in range(100):
            for b in range(100):
                digits = "one-digit" if max(a, b) < 10 else "two-digit"
                known = "held out" if holdout.is_held_out(a, op, b) else "trained on"
                if known == "held out" or digits == "one-digit" or (a * 37 + b * 11) % 9 == 0:
                    below = ", result below zero" if result(a, op, b) < 0 else ""
                    kinds.setdefault(f"{known}, {digits} {name}{below}", []).append((a, op, b))
    kinds["trained on, table of multiplication"] = [(a, "*", b) for a in range(11) for b in range(11)]
    table = {}
    for kind in sorted(kinds):
        prompts = [
            chat_text([{"role": "user", "content": f"What is {a} {op} {b}?"}]) + ASSISTANT
            for a, op, b in kinds[kind]
        ]
        answers = continued(model, tokenizer, prompts, 14, rows=1024)
        right = sum(
            answer == equation(*terms) + "." for answer, terms in zip(answers, kinds[kind], strict=True)
        )
        table[kind] = (right, len(prompts))
    return table


def share(table: dict[str, tuple[int, int]], wanted: str) -> str:
    """The share of right answers over all kinds whose name has every one of some words."""
    chosen = [pair for kind, pair in table.items() if all(part in kind for part in wanted.split("; "))]
    right, asked = (sum(column) for column in zip(*chosen, strict=True))
    tenths = 1000 * right // asked  # cut off, so that 100.0 % is all of them
    return f"{tenths // 10}.{tenths % 10} % ({right} of {asked})"


def samples(model: LlamaForCausalLM, tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """Greedy and sampled continuations."""
    torch.manual_seed(0)
    chats = [
        "Tell me a story about a fox.",
        "Write a short story about a girl and a kite.",
        "Hello!",
        "Who are you?",
        "What is 27 + 5?",
        "What is 64 - 38?",
        "Why is the sky blue?",
    ]
    prompts = OPENINGS_TO_TRY + [chat_text([{"role": "user", "content": chat}]) + ASSISTANT for chat in chats]
    greedy = continued(model, tokenizer, prompts, 300)
    sampled = continued(model, tokenizer, prompts, 300, do_sample=True, temperature=0.7, top_k=0)
    for shown, one, other in zip(OPENINGS_TO_TRY + chats, greedy, sampled, strict=True):
        yield shown, one
        yield shown, other


def tools_right(
    model: LlamaForCausalLM, tokenizer: Tokenizer, holdout: HeldOut, seed: int, count: int
) -> dict[str, tuple[int, int]]:
    """How many conversations with tools go on as they should, by kind: (right, asked)."""
    table = {}
    cases: Cases = made_cases(random.Random(f"tools {seed}"), tool_turn(holdout), count)
    for kind, (length, asked) in cases.items():
        answers = continued(model, tokenizer, [prompt for prompt, _ in asked], length)
        table[kind] = rated(kind, asked, answers)
    return table


def far_right(
    model: LlamaForCausalLM, tokenizer: Tokenizer, holdout: HeldOut, seed: int, count: int
) -> dict[str, tuple[int, int]]:
    """The same of sums and calls behind ``FAR`` tokens of other documents."""
    rng = random.Random(f"far {seed}")
    texts = documents(f"far {seed}", 10**9, holdout)

    def before() -> str:
        text, size = "", 0
        while size < FAR:
            document = next(texts) + END
            text, size = text + document, size + len(tokenizer.encode(document).ids)
        return text

    sums = []
    while len(sums) < count:
        a, op, b = rng.randrange(100), rng.choice("+-"), rng.randrange(100)
        if holdout.is_held_out(a, op, b):
            prompt = before() + chat_text([{"role": "user", "content": f"What is {a} {op} {b}?"}]) + ASSISTANT
            sums.append((prompt, equation(a, op, b) + "."))
    call_length, calls = made_cases(rng, tool_turn(holdout), count)[KNOWN]
    calls = [(before() + prompt, wanted) for prompt, wanted in calls]
    table = {}
    for kind, asked, length in (
        (f"sums behind {FAR} tokens", sums, 14),
        (f"calls behind {FAR} tokens", calls, call_length),
    ):
        answers = continued(model, tokenizer, [prompt for prompt, _ in asked], length, rows=10)
        table[kind] = rated(kind, asked, answers)
    return table


FAR = 7000


# -------------------------------------------------------------------- saving


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Weights in bfloat16, the tokenizer with its chat template, and the end tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    end, turn_end = tokenizer.token_to_id(END), tokenizer.token_to_id(TURN_END)
    plain = LlamaForCausalLM(model.config)  # not compiled
    plain.load_state_dict(model.state_dict())
    plain.generation_config = GenerationConfig(eos_token_id=[end, turn_end], pad_token_id=end)
    plain.bfloat16().save_pretrained(folder)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        model_max_length=CONTEXT,
        additional_special_tokens=SPECIAL_TOKENS[1:],
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(folder)


def model_card(
    facts: dict[str, str],
    table: dict[str, tuple[int, int]],
    tool_table: dict[str, tuple[int, int]],
    shown: list[tuple[str, str]],
) -> str:
    """The README of the model folder, with the measured figures."""
    head = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    wanted = {
        "all held-out sums": "held out",
        "held-out one-digit sums": "held out; one-digit",
        "held-out two-digit sums": "held out; two-digit",
        "held-out additions": "held out; addition",
        "held-out one-digit additions": "held out; one-digit; addition",
        "held-out two-digit additions": "held out; two-digit; addition",
        "held-out subtractions": "held out; subtraction",
        "held-out one-digit subtractions": "held out; one-digit; subtraction",
        "held-out two-digit subtractions": "held out; two-digit; subtraction",
        "held-out subtractions with a result below zero": "held out; subtraction; below zero",
        "all one-digit sums of the training text": "trained on; one-digit",
        "a ninth of the two-digit sums of the training text": "trained on; two-digit",
        "multiplication, 0 to 10 (all in the training text)": "multiplication",
    }
    sums = "\n".join(f"| {name} | {share(table, words)} |" for name, words in wanted.items())
    calls = "\n".join(f"| {name} | {share({name: pair}, name)} |" for name, pair in tool_table.items())
    stories = "\n\n".join(
        f"> **{prompt}**{'' if answer.startswith(chr(10)) else ' '}"
        + answer.strip().replace("\n\n", "\n>\n> ")
        for prompt, answer in shown
    )
    return CARD.format(facts=head, sums=sums, calls=calls, stories=stories)


CARD = """\
# The bundled model

The small language model which ships with Slipstream, so that a server answers right after installation.
It continues short plain-English stories, answers in a chat that asks for stories, adds and subtracts
numbers up to 99, and calls simple tools that it is offered. It is a toy for trying the server and its settings,
not a source of knowledge.

| | |
| --- | --- |
{facts}

All of the training text was made up by `training/train_model.py` and `training/tools.py` from the word lists and
sentence patterns in `training/lexicon.py` and `training/tool_lexicon.py`: no text and no weights of anybody else went
into the model.

## Sums

A tenth of the pairs of operands (in both orders, for each operation) never occurs in the training text.
Asked in the chat form, "What is 27 + 5?", with greedy decoding; only the exact answer "27 + 5 = 32." counts
as right:

| sums | right |
| --- | --- |
{sums}

## Tools

Offered tools, it writes a call of the one that the question wants, or of several, tells what came of
them, and answers as usual where no tool fits. Names, parameters and values are copied from the offer and the
question, so that it calls tools that it has never seen too, as long as the question has their words.
Greedy decoding; a call is right if its name and all of its arguments are; a call that is to be several is right if
all of them are, in order; an answer is right if it is word for word:

| conversations, made with another seed than the training text | right |
| --- | --- |
{calls}

## What it writes

Openings that are not from the patterns of the script, continued at temperature 0.7 (the first try each; the
opening in bold):

{stories}

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("src/slipstream/model")
model = AutoModelForCausalLM.from_pretrained("src/slipstream/model")
messages = [{{"role": "user", "content": "Tell me a story about a fox."}}]
prompt = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=300)[0]))
```

```python
weather = {{
    "type": "function",
    "function": {{
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": {{
            "type": "object",
            "properties": {{"city": {{"type": "string"}}}},
            "required": ["city"],
        }},
    }},
}}
messages = [{{"role": "user", "content": "What is the weather in Paris?"}}]
prompt = tokenizer.apply_chat_template(
    messages, tools=[weather], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=100)[0]))
```

A chat is written as `<|user|>...<|end|><|assistant|>...<|end|>`, with `<|system|>...<|end|>` before it if
there is a system message. Every `<|assistant|>` turn ends with `<|end|>` and a text with `<|endoftext|>`:
both are end tokens. There is no token for the beginning of a text. A system message is read and has no
effect. Tools stand before the last question, one a line, in a turn `<|system|>Tools:...<|end|>`; a call is
`<tool_call>`, a line of JSON with `name` and `arguments`, and `</tool_call>`, each on a line of its own; what a tool
gives back is `<|system|>Result: ...<|end|>`.

Greedy decoding tells the same few stories again and again; a temperature of about 0.7 brings out the others.

## Limits

- It knows the words and the kinds of stories of the script. An opening from another world is continued with
  a story of its own kind, and the story may forget a detail of the opening.
- The events of a story follow a pattern; they do not always follow from one another.
- A name or a noun which it has never seen may come back changed or as another one, and a sentence cut off
  in an unusual place may be finished with bad grammar.
- Sums with numbers above 99 are declined in the chat form, and wrong as bare text.
- It was trained on rows of 1024 tokens and, towards the end, on rows of 8192, which is also
  `max_position_embeddings`: do not go beyond that. It does not remember what stood far back.
- A question has to say what a tool needs, in the tool's own words or in common ones. Of a description it is shown
  the first twelve words; of a parameter its name, its type or the values that it may have, and whether it may be
  left out; nothing of what an object has inside.
- It calls what is asked for at once, and does not plan several steps.
- What a question says beyond what a tool asks for may end up in an argument where it does not belong.
- English only.

## Licence

Apache-2.0, like Slipstream itself.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the bundled model of Slipstream.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"optimizer steps (default {STEPS})")
    parser.add_argument(
        "--batch", type=int, default=128, help=f"rows of {ROW} tokens in a step (default 128)"
    )
    parser.add_argument("--docs", type=int, default=DOCS, help=f"documents to make up (default {DOCS})")
    parser.add_argument("--seed", type=int, default=1, help="seed of everything random (default 1)")
    parser.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        help="train this long at most, compiling left out (default: no limit)",
    )
    parser.add_argument(
        "--optimizer",
        choices=("adamw", "muon"),
        default="muon",
        help="for the matrices of the layers (default muon)",
    )
    args = parser.parse_args()

    if args.batch % JOINED:
        parser.error(f"--batch {args.batch} is no multiple of {JOINED}, as many rows as make a long one")

    begin = time.time()
    holdout = HeldOut(args.seed)
    tokenizer = train_tokenizer(documents(f"tokenizer {args.seed}", min(args.docs, 40_000), holdout))
    unseen = Corpus(tokenizer, args.seed, max(args.docs // 500, 2000), "unseen", 0.0).first(1.0)
    corpus = Corpus(tokenizer, args.seed, args.docs, "train", TOOL_DOCUMENTS)
    print(f"tokenizer and unseen documents made after {time.time() - begin:.0f} s", flush=True)

    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    model = new_model(tokenizer).to(args.device)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters} parameters", flush=True)
    training = time.time()
    steps = train(model, corpus, args.steps, args.minutes, args.batch, args.seed, args.optimizer)
    minutes = (time.time() - training) / 60
    size = corpus.first(1.0).numel()

    save(model, tokenizer, args.out)
    print(f"saved after {time.time() - begin:.0f} s", flush=True)
    torch.set_float32_matmul_precision("highest")
    saved = (
        LlamaForCausalLM.from_pretrained(args.out, dtype=torch.float32).to(args.device).eval()
    )  # as rounded to bfloat16
    loss = held_out_loss(saved, unseen.to(args.device))
    table = sums_right(saved, tokenizer, holdout)
    for kind, (right, asked) in table.items():
        print(f"{kind}: {right} of {asked}")
    print(f"held-out loss {loss:.4f}, held-out sums right: {share(table, 'held out')}", flush=True)
    tool_table = tools_right(saved, tokenizer, holdout, args.seed, max(args.docs // 10_000, 4))
    tool_table |= far_right(saved, tokenizer, holdout, args.seed, max(args.docs // 100_000, 2))
    for kind, (right, asked) in tool_table.items():
        print(f"{kind}: {right} of {asked}", flush=True)
    shown = list(samples(saved, tokenizer))
    for prompt, answer in shown:
        print(f"--- {prompt}\n{answer}\n", flush=True)
    trained = steps * args.batch * ROW
    device = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    limit = "" if math.isinf(args.minutes) else f"--minutes {args.minutes:g} "
    by_clock = f", as many as fitted into {args.minutes:g} minutes" if steps < args.steps else ""
    facts = {
        "kind": "llama decoder (`LlamaForCausalLM`), 8 layers of width 128, 4 query and 2 key-value heads, "
        "tied embeddings",
        "parameters": f"{parameters:,}, in bfloat16",
        "tokenizer": f"byte-level BPE, {VOCABULARY} tokens, every digit its own",
        "context": f"{CONTEXT} tokens",
        "made by": f"`python training/train_model.py --device {args.device} --steps {args.steps} {limit}"
        f"--batch {args.batch} --docs {args.docs} --seed {args.seed} "
        f"--optimizer {args.optimizer} --out src/slipstream/model`",
        "seed": str(args.seed),
        "training": f"{steps} steps of {args.batch} rows of {ROW} tokens{by_clock} "
        f"({trained / 1e9:.2f} billion tokens, {trained / size:.1f} times the corpus of "
        f"{size / 1e6:.0f} million, three tenths of it with tools); {minutes:.1f} minutes on one {device}",
        "loss on unseen documents": f"{loss:.4f} nats a token (with the weights in bfloat16)",
    }
    stories = shown[1 : 2 * len(OPENINGS_TO_TRY) : 2]
    print(f"done after {time.time() - begin:.0f} s", flush=True)
    (args.out / "README.md").write_text(model_card(facts, table, tool_table, stories), encoding="utf-8")


if __name__ == "__main__":
    main()
