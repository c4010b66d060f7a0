"""Bounds how long a chat template goes on: a template is a program, and one without end would stop the tokenizer.

Each pass through a loop and each call of a macro counts, and so does all that the template makes meanwhile. No clock is
read: the same conversation always ends the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

COUNT_ITERATION = "count iteration"
COUNT_MADE = "count what is made"
CONCATENATE = "concatenate"
"""Filters, by names that no template can write."""

MIN_ITERATIONS = 300_000
"""For a conversation of few messages, whose tools may have many parameters; they take half a second on one core."""

TRIAL_ITERATIONS = 3_000
"""For the short conversations with which a template is examined when it is loaded."""

MAX_MADE = 1 << 30
"""Most characters and items that a template makes in all: some put the whole text together anew for each message."""


class Iterations:
    """The iterations that one rendering has left."""

    def __init__(self, messages: int, fewest: int = MIN_ITERATIONS) -> None:
        """Allow ``fewest``, and twice what a template needs that looks at all messages again for each of them."""
        self.most = self.left = fewest + 2 * messages * messages
        self.made = 0
        """The characters and items that were made."""

    def counted(self, parts: Iterator[str]) -> Iterator[str]:
        """What a template writes, while this counts its iterations."""
        while True:
            before = CURRENT.set(self)  # several may be under way, each for a part at a time
            try:
                part = next(parts, None)
                self.add(len(part or ""))
            finally:
                CURRENT.reset(before)
            if part is None:
                return
            yield part

    def add(self, size: int) -> None:
        """Count what was made; ``Oversized`` if that is too much."""
        self.made += size
        if self.made > MAX_MADE:
            raise Oversized(f"it has made {MAX_MADE} characters and items, and goes on")


CURRENT: ContextVar[Iterations] = ContextVar("the rendering that is going on")
"""Unset while a template is compiled, so that what counts fails there, and jinja2 leaves it for the rendering."""


class EndlessTemplate(Exception):
    """A template had more iterations than it may."""


class Oversized(Exception):
    """A template makes more than it may."""


def count_iteration(nothing: str, texts: int) -> str:
    """One more, in which the template may write at most ``texts`` characters of its own."""
    current = CURRENT.get()
    current.left -= 1
    if current.left < 0:
        raise EndlessTemplate(f"its loops and macros went round {current.most} times, and it has not ended")
    current.add(texts)
    return nothing


def count_made(value: object) -> str:
    """What is written, as jinja2 itself would write it."""
    text = value if isinstance(value, str) else str(value)
    CURRENT.get().add(len(text))
    return text


KEEPERS = (nodes.Macro, nodes.CallBlock, nodes.AssignBlock, nodes.FilterBlock, nodes.Block, nodes.For)
"""Parts of a template that may keep what is written in them; loops do that are recursive."""


def count_iterations(tree: nodes.Template) -> nodes.Template:
    """The template with a counter in each loop and macro, and of what it writes."""

    def counter(node: nodes.Node) -> nodes.Filter:
        texts = sum(len(text.data) for text in node.find_all(nodes.TemplateData))
        return nodes.Filter(nodes.Const(""), COUNT_ITERATION, [nodes.Const(texts)], [], None, None)

    for node in list(tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))):
        # A loop shows its count as an empty text that it writes, so that whoever reads what is written can pause.
        count = counter(node)
        node.body.insert(0, nodes.Output([count]) if isinstance(node, nodes.For) else nodes.ExprStmt(count))
        if isinstance(node, nodes.For) and node.test is not None:
            node.test = nodes.Or(counter(node), node.test)
    keepers = [node for node in tree.find_all(KEEPERS) if getattr(node, "recursive", True)]
    kept = {id(node): node for keeps in keepers for node in keeps.find_all(nodes.Output)}
    for node in kept.values():
        node.nodes = [
            part
            if isinstance(part, nodes.TemplateData)
            else nodes.Filter(part, COUNT_MADE, [], [], None, None)
            for part in node.nodes
        ]
    Concatenations().visit(tree)
    tree.set_environment(tree.environment)  # type: ignore[arg-type]
    return tree


class Concatenations(NodeTransformer):
    """Has ``a ~ b`` done by a filter."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(node.nodes[0], CONCATENATE, node.nodes[1:], [], None, None)
