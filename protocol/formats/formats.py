"""The formats by name: the marks of each, and which one a model's chat template asks for.

The names are vLLM's, so that its users find theirs.
"""

from __future__ import annotations

from ..messages import Formats
from . import harmony
from .lists import ListMarks
from .marked import CallMarks
from .pythonic import MARKS as PYTHON_MARKS
from .thoughts import ThoughtMarks

THINK = ThoughtMarks(("<think>",), ("</think>",))

HARMONY = "openai_gptoss"

REASONING: dict[str, ThoughtMarks | None] = {
    **dict.fromkeys(("deepseek_r1", "deepseek_v3", "glm45", "kimi_k2", "minimax_m2", "qwen3"), THINK),
    "cohere_command3": ThoughtMarks(
        ("<|START_THINKING|>",),
        ("<|END_THINKING|>",),
        ("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
    ),
    "granite": ThoughtMarks(
        ("Here is my thought process:", "Here's my thought process:"),
        ("Here is my response:", "Here's my response:"),
    ),
    "mistral": ThoughtMarks(("[THINK]",), ("[/THINK]",)),
    HARMONY: None,
    "seed_oss": ThoughtMarks(("<seed:think>",), ("</seed:think>",)),
}
"""What thoughts stand between, by the name of the format; None: it has channels instead."""

DEEPSEEK_AROUND = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")

MARKED: dict[str, CallMarks] = {
    "deepseek_v3": CallMarks(
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>", "\n", "<｜tool▁call▁end｜>", DEEPSEEK_AROUND
    ),
    "deepseek_v31": CallMarks(
        "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", DEEPSEEK_AROUND
    ),
    "kimi_k2": CallMarks(
        "<|tool_call_begin|>",
        "<|tool_call_argument_begin|>",
        "<|tool_call_end|>",
        ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    ),
    "mistral": CallMarks("[TOOL_CALLS]", "[ARGS]", lists=True),
}

LISTS: dict[str, ListMarks] = {
    "cohere_command3": ListMarks(("<|START_ACTION|>", "Action: ```json"), ("<|END_ACTION|>", "```")),
    "granite": ListMarks(("<|tool_call|>",)),
    "phi4_mini_json": ListMarks(("functools",)),
}

GENERAL = ("glm45", "hermes", "llama3_json", "qwen3_coder", "xlam")
"""Formats that one reader knows all of, since they do not contradict each other."""

PYTHONIC = ("llama4_pythonic", "pythonic")

OPENAI = "openai"

TOOL_CALLS = tuple(sorted((*GENERAL, *LISTS, *MARKED, *PYTHONIC, OPENAI)))


REASONING_BY_MARK = (
    ("<|channel|>", HARMONY),
    ("<|START_THINKING|>", "cohere_command3"),
    ("[THINK]", "mistral"),
    ("<seed:think>", "seed_oss"),
    ("Here is my thought process:", "granite"),
)

THINK_BY_TYPE = (
    ("deepseek", "deepseek_r1"),
    ("glm", "glm45"),
    ("kimi", "kimi_k2"),
    ("minimax", "minimax_m2"),
)

TOOL_CALLS_BY_MARK = (
    ("<|channel|>", OPENAI),
    ("<｜tool▁calls▁begin｜>", "deepseek_v31"),
    ("<|tool_calls_section_begin|>", "kimi_k2"),
    ("<arg_key>", "glm45"),
    ("<function=", "qwen3_coder"),
    ("<|START_ACTION|>", "cohere_command3"),
    ("Action: ```json", "cohere_command3"),
    ("functools", "phi4_mini_json"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|tool_call|>", "granite"),
    ("<|tool_call_start|>", "pythonic"),
    ("<|python_start|>", "llama4_pythonic"),
    ("<tool_call>", "hermes"),
    ('"parameters": dictionary of argument name', "llama3_json"),
)
"""Texts that a template has in it, the more telling ones first, and the format that they are of."""


def formats_of(template: str, model_type: str) -> Formats:
    """The formats that the source of a chat template reveals; empty source: none."""
    reasoning = next((name for mark, name in REASONING_BY_MARK if mark in template), None)
    if reasoning is None and "</think>" in template:
        reasoning = next((name for begun, name in THINK_BY_TYPE if model_type.startswith(begun)), "qwen3")
    tool_calls = next((name for mark, name in TOOL_CALLS_BY_MARK if mark in template), None)
    if tool_calls == "deepseek_v31" and "```json" in template:
        tool_calls = "deepseek_v3"
    if tool_calls is None and model_type == "llama4":
        tool_calls = "llama4_pythonic"
    return Formats(reasoning=reasoning, tool_calls=tool_calls)


def marks_of(formats: Formats) -> frozenset[str]:
    """The marks that the parsers of these formats look for and that may be special tokens, which have no text
    otherwise."""
    marks: set[str] = set()
    thoughts = REASONING.get(formats.reasoning or "")
    if thoughts is not None:
        marks.update(*thoughts)
    if formats.reasoning == HARMONY or formats.tool_calls == OPENAI:
        marks.update(harmony.MARKS)
    calls, name = MARKED.get(formats.tool_calls or ""), formats.tool_calls or ""
    if calls is not None:
        marks.update((*calls.opening.partition("function")[:1], calls.opening, calls.named, calls.closing))
        marks.update(("<｜tool▁sep｜>", "[CALL_ID]", *calls.around))
    if name in LISTS:
        marks.update(*LISTS[name])
    if name in PYTHONIC:
        marks.update(PYTHON_MARKS)
    if name in GENERAL or not name:
        marks.update(("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>"))
        marks.update(("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"))
    return frozenset(mark for mark in marks if mark.strip())


def own_marks(name: str) -> tuple[str, ...]:
    """The marks of a format of calls that no text has otherwise, most of them special tokens."""
    if name in PYTHONIC:
        return PYTHON_MARKS
    if name in LISTS:
        return tuple(mark for marks in LISTS[name] for mark in marks if mark.startswith("<|"))
    if name not in MARKED:
        return ()
    marks = MARKED[name]
    tokens = (*marks.around, *marks.opening.partition("function")[::2], marks.named, marks.closing)
    return tuple(token for token in tokens if token.startswith(("<", "[")))


HELD = frozenset({"hermes", OPENAI, *MARKED, *LISTS})
"""Formats in which a grammar holds all of a call, which is not looked at then."""
