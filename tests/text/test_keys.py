"""The keys that a conversation may have: none is passed over in silence."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec
import pytest
from slipstream.actors.text.prompts.chat_template import ChatTemplate
from slipstream.actors.text.prompts.conversation import plain_messages, plain_tools
from slipstream.actors.text.prompts.keys import CALL, CALLED, FUNCTION, MESSAGE, TEXT, TOOL, Keys
from slipstream.protocol.errors import InvalidRequest
from slipstream.protocol.formats.tools import Function, Tool

Conversation = dict[str, Any]

USER = {"role": "user", "content": "hi"}


def asked(**extra: dict[str, Any]) -> Conversation:
    """A conversation with more keys in its parts, by the names of the parts."""
    more: Callable[[str], dict[str, Any]] = lambda name: extra.get(name, {})  # noqa: E731
    call = {"id": "a", "type": "function", **more("call")}
    call["function"] = {"name": "f", "arguments": {"x": 1}, **more("called")}
    parts = [
        {"type": "text", "text": "one", **more("part")},
        {"type": "refusal", "refusal": "no", **more("no")},
    ]
    function = {"name": "f", "description": "d", "parameters": {}, **more("function")}
    return {
        "messages": [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": None, "tool_calls": [call], **more("message")},
        ],
        "tools": [{"type": "function", "function": function, **more("tool")}],
    }


PLACES = {
    "message": "messages[1]",
    "part": "messages[0].content[0]",
    "no": "messages[0].content[1]",
    "call": "messages[1].tool_calls[0]",
    "called": "messages[1].tool_calls[0].function",
    "tool": "tools[0]",
    "function": "tools[0].function",
}

ALL = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}{% endfor %}"
DUMPS = ALL + "{{ tools | tojson }}"


def written(source: str, conversation: Conversation) -> str:
    """The prompt, as the tokenizer makes it."""
    template = ChatTemplate(source, {}, datetime.now)
    tools = plain_tools(conversation["tools"], template.keys)
    steps = plain_messages(conversation["messages"], 10**5, template.style, template.keys)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return "".join(template.write(end.value, {"tools": tools}))


@pytest.mark.parametrize("part", PLACES)
def test_a_key_that_nobody_reads_is_refused_by_its_path(part: str) -> None:
    with pytest.raises(InvalidRequest, match="colour is no field that is read here: ") as refused:
        written(DUMPS, asked(**{part: {"colour": "red"}}))
    assert refused.value.param == f"{PLACES[part]}.colour"
    assert str(refused.value).startswith(f"{PLACES[part]}.colour ")


@pytest.mark.parametrize("part", PLACES)
def test_a_null_asks_for_nothing_whatever_its_key(part: str) -> None:
    assert written(DUMPS, asked(**{part: {"colour": None}})) == written(DUMPS, asked())


IDLE = {"message": MESSAGE, "part": TEXT, "no": TEXT, "call": CALL, "called": CALLED, "tool": TOOL}
IDLE["function"] = FUNCTION


@pytest.mark.parametrize("part", PLACES)
def test_what_clients_send_back_of_an_answer_changes_no_prompt_however_the_template_writes_it(
    part: str,
) -> None:
    for key in IDLE[part].idle:
        assert written(DUMPS, asked(**{part: {key: {"type": "ephemeral"}}})) == written(DUMPS, asked()), key


@pytest.mark.parametrize(
    "reads",
    [
        "{{ m.colour }}",
        "{{ m['colour'] }}",
        "{{ m.get('colour') }}",
        "{% if 'colour' in m %}{{ m | tojson }}{% endif %}",
        "{% for n in messages | selectattr('colour') %}{{ n | tojson }}{% endfor %}",
        "{{ messages | map(attribute='colour') | list }}",
    ],
)
def test_a_key_that_the_template_reads_reaches_it(reads: str) -> None:
    source = ALL + "{% for m in messages %}" + reads + "{% endfor %}"
    assert "a very red" in written(source + "{{ tools }}", asked(message={"colour": "a very red"}))


def test_a_templates_own_variables_and_methods_are_no_keys() -> None:
    source = (
        "{% set ns = namespace(found=1) %}{% for m in messages %}{{ loop.index }}{{ ns.found }}"
        "{{ m.content.strip() }}{% endfor %}"
    )
    assert ChatTemplate(source, {}, datetime.now).keys == {"content"}


@pytest.mark.parametrize("part", ["part", "called", "function", "tool"])
def test_a_key_that_is_no_text_is_refused_as_any_other(part: str) -> None:
    """MessagePack has such keys."""
    key: Any = b"k"
    with pytest.raises(InvalidRequest, match="is no field that is read here"):
        written(DUMPS, asked(**{part: {key: 1}}))


def test_a_key_of_any_length_makes_an_error_that_can_be_read() -> None:
    with pytest.raises(InvalidRequest) as refused:
        written(DUMPS, asked(message={"x" * 10**4: 1}))
    assert len(str(refused.value)) < 400


def names(kind: type[msgspec.Struct]) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(kind)}


@pytest.mark.parametrize(("keys", "kind"), [(TOOL, Tool), (FUNCTION, Function)])
def test_tools_have_the_same_keys_over_zeromq_as_over_http(keys: Keys, kind: type[msgspec.Struct]) -> None:
    assert keys.meant | keys.idle == names(kind)
