"""From a response's request to a conversation: its fields, tools and choice of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ....protocol.formats.tools import PARAMETERS, converted
from ...text.prompts.chat_template import ChatTemplates
from ..bodies.requests import ChatBody, ChatFields, Labels, ResponseFormat, Sampling
from ..errors import Problem
from .bodies import INCLUDED, ResponseFields
from .items import Message, messages_of
from .tools import allowed_names, choice_of, kinds_of, tools_of

WRITTEN = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "json_schema": "text.format.schema",
    "response_format.json_schema.schema": "text.format.schema",
    "response_format": "text.format",
    PARAMETERS: "tools[{}].parameters",
}
"""Names of a conversation's fields to those of this API."""

SHARED = tuple(name for name in Sampling.__struct_fields__ if name not in Labels.__struct_fields__)
"""Fields that mean the same in both."""


def refuse_more(include: Iterable[str]) -> None:
    """``Problem`` if ``include`` asks for what no response has here."""
    for name in include:
        if name not in INCLUDED:
            raise Problem(
                400, f"include has {name!r:.80}, which is not served here; leave it out", param="include"
            )


def conversation(
    body: ResponseFields, before: list[Message], templates: ChatTemplates | str, parameters: tuple[str, ...]
) -> ChatFields:
    """The request as a chat completion; ``before`` are the messages of the response that it goes on from."""
    refuse_more(body.include or ())
    if getattr(body, "n", None) not in (None, 1):
        raise Problem(400, f"n={body.n}; a response is one answer: leave n out", param="n")  # type: ignore[attr-defined]
    messages = [{"role": "system", "content": body.instructions}] if body.instructions else []
    messages += before
    messages += (
        [{"role": "user", "content": body.input}] if isinstance(body.input, str) else messages_of(body.input)
    )
    given: dict[str, Any] = {
        name: getattr(body, name) for name in (*SHARED, "parallel_tool_calls", *parameters)
    }
    tools, choice, kinds = tools_of(body.tools or []), body.tool_choice, kinds_of(body.tools or [])
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        names = allowed_names(choice, kinds)
        tools, choice = [tool for tool in tools if tool.function.name in names], choice.get("mode", "auto")
    return ChatBody(
        **given,
        messages=messages,
        max_tokens=body.max_output_tokens,
        tools=tools or None,
        tool_choice=None if choice in ("auto", "none") and not tools else choice_of(choice, kinds),
        response_format=format_of(body),
        reasoning_effort=None if body.reasoning is None else body.reasoning.effort,
        verbosity=None if body.text is None else body.text.verbosity,
        chat_template_kwargs=template_arguments(body, templates) or None,
    )


def format_of(body: ResponseFields) -> Any:
    wanted = None if body.text is None else body.text.format
    if wanted is None:
        return None
    if wanted.schema is not None and wanted.type != "json_schema":
        message = (
            f"text.format of type {wanted.type} holds nothing to a schema; leave it out, or say json_schema"
        )
        raise Problem(400, message, param="text.format.schema")
    if wanted.type == "text":
        return None
    schema = None
    if wanted.type == "json_schema":
        if wanted.schema is None:
            raise Problem(400, "text.format of type json_schema needs schema", param="text.format.schema")
        schema = {"name": wanted.name or "answer", "schema": wanted.schema}
    return converted("text.format", {"type": wanted.type, "json_schema": schema}, ResponseFormat)


def template_arguments(body: ResponseFields, templates: ChatTemplates | str) -> dict[str, Any]:
    """The arguments of the chat template: those of the caller, and not to think where that is asked for and the
    template can."""
    known = frozenset[str]() if isinstance(templates, str) else frozenset(templates.default.names)
    thinks = body.reasoning is None or body.reasoning.effort != "none" or "enable_thinking" not in known
    return ({} if thinks else {"enable_thinking": False}) | (body.chat_template_kwargs or {})
