"""A model's chat templates: programs that write a conversation as the prompt that the model was trained on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.runtime import Macro

from ....protocol.errors import InvalidRequest, ModelNotSupported
from ....protocol.formats.ids import CALL_ID_CHARACTERS, CallIdForm
from ....protocol.formats.strict_json import HALF
from ...template_files import DEFAULT_TEMPLATE, chat_template_sources, given_template
from ..vocabulary.tokenizer_files import special_tokens
from .bounded import BoundedEnvironment, bounded_filter, concatenated
from .conversation import Message, Style
from .iterations import (
    CONCATENATE,
    COUNT_ITERATION,
    COUNT_MADE,
    TRIAL_ITERATIONS,
    EndlessTemplate,
    Iterations,
    Oversized,
    count_iteration,
    count_iterations,
    count_made,
)
from .reads import keys_read, names_read

Clock = Callable[[], datetime]

COUNTED_IDS_MARK = "<|tool_calls_section_begin|>"
"""A template that writes this before calls is one of Kimi K2, which was trained on ids that say the function's name
and the number of the call."""

NAMED_AFTER = {"tools": "tool_use", "documents": "rag"}
"""Which of several templates is for requests that give this; transformers and publishers use these names."""

OURS = frozenset({"messages", "add_generation_prompt", "raise_exception", "strftime_now"})
"""What every template is given; a request cannot replace it."""


THINKING = frozenset({"enable_thinking", "thinking"})
"""Names under which templates learn whether the model is to think. Programs in front of many models send one."""


class ChatTemplates:
    """The templates of one model, by name; most models have one."""

    def __init__(self, sources: Mapping[str, str], special_tokens: dict[str, str], clock: Clock) -> None:
        """``clock`` is what a template sees that asks for the date."""
        self.by_name = {name: ChatTemplate(source, special_tokens, clock) for name, source in sources.items()}
        self.default = self.by_name.get(DEFAULT_TEMPLATE) or next(iter(self.by_name.values()))

    @property
    def literals(self) -> str:
        """All texts that the templates have in them."""
        return "\0".join(template.literals for template in self.by_name.values())

    @property
    def sources(self) -> dict[str, str]:
        """By name, as they were read."""
        return {name: template.source for name, template in self.by_name.items()}

    def choose(self, given: dict[str, Any]) -> ChatTemplate:
        """The template for a request that gives this beside its messages."""
        names = (name for key, name in NAMED_AFTER.items() if given.get(key))
        return next((self.by_name[name] for name in names if name in self.by_name), self.default)


def load_chat_templates(
    folder: Path, file: Path | None, clock: Clock, known: Mapping[str, str] | None = None
) -> ChatTemplates | None:
    """The chat templates of a model, or the one in ``file`` instead; None if it has none. ``known`` ones, by name, are
    not read again.

    ``ModelNotSupported`` if one does not compile, or cannot be read.
    """
    sources = known
    if sources is None:
        sources = chat_template_sources(folder) if file is None else {DEFAULT_TEMPLATE: given_template(file)}
    named = special_tokens(folder)
    try:
        return ChatTemplates(sources, named, clock) if sources else None
    except Exception as error:  # what is constant is computed when it is compiled, which can raise anything
        where = f"the chat template of {folder}" if file is None else str(file)
        raise ModelNotSupported(f"{where} does not compile: {error}") from None


class ChatTemplate:
    """A model's own template, in a sandbox, with the names and filters that transformers gives to it."""

    def __init__(self, source: str, special_tokens: dict[str, str], clock: Clock) -> None:
        environment = BoundedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
        )
        environment.filters |= {
            "tojson": bounded_filter("tojson", tojson),
            COUNT_ITERATION: count_iteration,
            COUNT_MADE: count_made,
            CONCATENATE: concatenated,
        }
        environment.globals["raise_exception"] = raise_exception
        environment.globals["strftime_now"] = lambda format: clock().strftime(format)
        self.source = source
        self.template = environment.from_string(count_iterations(environment.parse(source)))
        self.special_tokens = special_tokens
        tree = environment.parse(source)
        texts = {node.data for node in tree.find_all(nodes.TemplateData)}
        texts |= {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
        self.literals = "\0".join(texts)
        """The texts in it, apart from each other."""
        # jinja2 knows that a macro may read a name that is set behind it, and not that a branch may set none.
        self.names = (
            (find_undeclared_variables(tree) & set(names_read(tree, set()))) - OURS - special_tokens.keys()
        )
        """What can be given to the template beside the messages; anything else would have no effect."""
        self.keys = keys_read(tree)
        """Keys of messages, calls and tools that it may read by name."""

    def write(
        self,
        messages: list[dict[str, Any]],
        given: dict[str, Any] | None = None,
        *,
        add_generation_prompt: bool = True,
        iterations: Iterations | None = None,
    ) -> Iterator[str]:
        """The prompt for an answer to ``messages``, in parts as the template writes it; ``iterations`` tells how many
        it has left.

        ``given`` are ``tools`` and whatever else this template knows. ``InvalidRequest`` if the template does not
        take what it is given.
        """
        given = given or {}
        if "tools" in given.keys() - self.names:
            raise InvalidRequest(
                "tools are given, but the model's chat template takes none; leave tools out", param="tools"
            )
        for name in (name for name in given if name not in self.names):
            if given[name] is None or (name in THINKING and given[name] is False):
                continue  # nothing is asked; a model that cannot think does not
            known = ", ".join(sorted(self.names - {"tools"})) or "none beside the request's own fields"
            raise InvalidRequest(
                f"chat_template_kwargs has {name!r:.80}, which the model's chat template does not know;"
                f" it knows {known}",
                param="chat_template_kwargs",
            )
        given = {name: value for name, value in given.items() if name in self.names}
        try:
            written = self.template.generate(
                {"tools": None, "documents": None} | self.special_tokens | given,
                messages=messages,
                add_generation_prompt=add_generation_prompt,
            )
            yield from (iterations or Iterations(len(messages))).counted(written)
        except Refusal as error:
            raise InvalidRequest(
                f"the model's chat template refuses the messages: {error}", param="messages"
            ) from None
        except EndlessTemplate as error:
            raise InvalidRequest(
                f"the model's chat template does not end: {error}", param="messages"
            ) from None
        except Oversized as error:
            raise InvalidRequest(
                f"the model's chat template makes too much of the messages: {error}", param="messages"
            ) from None
        except Exception as error:  # a template is a program: it can raise anything
            raise InvalidRequest(
                f"the model's chat template cannot render the messages ({type(error).__name__}: {error});"
                " check their roles and fields",
                param="messages",
            ) from None

    @cached_property
    def style(self) -> Style:
        """The conventions by which this template reads conversations, found by letting it write some."""
        wants_null = not self.writes_calls("", "x" * CALL_ID_CHARACTERS) and self.writes_calls(
            None, "x" * CALL_ID_CHARACTERS
        )
        content = None if wants_null else ""
        form: CallIdForm = "any"
        if COUNTED_IDS_MARK in self.literals:
            form = "counted"
        elif self.writes_calls(content, "x" * CALL_ID_CHARACTERS):
            form = "any" if self.writes_calls(content, "call_" + "x" * 24) else "short"
        return Style(
            knows_developer="developer" in self.literals.split("\0"),
            takes_parts=self.takes_parts(),
            wants_null=wants_null,
            call_ids=form,
        )

    def takes_parts(self) -> bool:
        def said(role: str) -> Message:
            parts = [{"type": "text", "text": f"<1 {role}>"}, {"type": "text", "text": f"<2 {role}>"}]
            return {"role": role, "content": parts}

        user, answer, system = said("user"), said("assistant"), said("system")
        texts = [self.attempt(messages) for messages in ([user], [user, answer, user], [system, user])]
        written = [text for text in texts if text is not None]
        return (
            texts[0] is not None
            and all("<1 user>" in text and "<2 user>" in text for text in written)
            and not any("'text'" in text or '"text"' in text for text in written)
        )

    def writes_calls(self, content: str | None, id: str) -> bool:
        function = {"name": "name_of_function", "arguments": {"x": 1}}
        call = {"id": id, "type": "function", "function": function}
        question = {"role": "user", "content": "hi"}
        asked = {"role": "assistant", "content": content, "tool_calls": [call]}
        result = {"role": "tool", "tool_call_id": id, "name": "name_of_function", "content": "1"}
        text = self.attempt([question, asked, result])
        return text is not None and "name_of_function" in text

    def attempt(self, messages: list[Message]) -> str | None:
        try:
            return "".join(self.write(messages, iterations=Iterations(len(messages), TRIAL_ITERATIONS)))
        except InvalidRequest:
            return None


class Refusal(TemplateError):
    """The message of a template's ``raise_exception``."""


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
    text = json.dumps(value, ensure_ascii=ensure_ascii, **options)
    return json.dumps(value, **options) if HALF.search(text) else text
