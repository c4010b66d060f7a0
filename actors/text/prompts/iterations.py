"""Bounds the iterations of a chat template: a template is a program, and one without end would stop the tokenizer.

Each pass through a loop and each call of a macro counts. No clock is read: the same conversation always ends the same.
"""

from __future__ import annotations

from jinja2 import nodes, pass_context
from jinja2.runtime import Context

COUNT_ITERATION = "count iteration"
ITERATIONS = "iterations left"
"""A filter and a variable, by names that no template can write."""

FEWEST_ITERATIONS = 300_000
"""For a conversation of few messages, whose tools may have many parameters; they take half a second on one core."""

TRIAL_ITERATIONS = 3_000
"""For the short conversations with which a template is examined when it is loaded."""


class Iterations:
    """The iterations that one rendering has left."""

    def __init__(self, messages: int, fewest: int = FEWEST_ITERATIONS) -> None:
        """Allow ``fewest``, and twice what a template needs that looks at all messages again for each of them."""
        self.most = self.left = fewest + 2 * messages * messages


class EndlessTemplate(Exception):
    """A template had more iterations than it may."""


@pass_context
def count_iteration(context: Context, nothing: str) -> str:
    iterations: Iterations = context[ITERATIONS]
    iterations.left -= 1
    if iterations.left < 0:
        raise EndlessTemplate(
            f"its loops and macros went round {iterations.most} times, and it has not ended"
        )
    return nothing


def count_iterations(tree: nodes.Template) -> nodes.Template:
    """The template with a counter in each loop and macro."""

    def counter() -> nodes.Filter:
        return nodes.Filter(nodes.Const(""), COUNT_ITERATION, [], [], None, None)

    for node in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
        node.body.insert(0, nodes.ExprStmt(counter()))
        if isinstance(node, nodes.For) and node.test is not None:
            node.test = nodes.Or(counter(), node.test)
    tree.set_environment(tree.environment)  # type: ignore[arg-type]
    return tree
