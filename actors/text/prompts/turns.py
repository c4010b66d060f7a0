"""How often a chat template may go round: a template is a program, and one that never ends would stop the tokenizer.

Each loop and macro of it counts its turns. No clock is read: the same conversation always ends the same.
"""

from __future__ import annotations

from jinja2 import nodes, pass_context
from jinja2.runtime import Context

COUNT_TURN = "count turn"
TURNS = "turns left"
"""A filter and a variable, by names that no template can write."""

FEWEST_TURNS = 300_000
"""For a conversation of few messages, whose tools may have many parameters; they take about a second."""

TRIAL_TURNS = 3_000
"""To write a conversation of ours."""


class Turns:
    """Those that are left to one rendering."""

    def __init__(self, fewest: int, messages: int) -> None:
        """Beside ``fewest`` twice as many as a template needs that looks at all messages again for each of them."""
        self.most = self.left = fewest + 2 * messages * messages


class EndlessTemplate(Exception):
    """A template went round too often."""


@pass_context
def count_turn(context: Context, nothing: str) -> str:
    turns: Turns = context[TURNS]
    turns.left -= 1
    if turns.left < 0:
        raise EndlessTemplate(f"its loops and macros went round {turns.most} times, and it has not ended")
    return nothing


def count_turns(tree: nodes.Template) -> nodes.Template:
    """The template with a counter in all that may go round."""

    def counter() -> nodes.Filter:
        return nodes.Filter(nodes.Const(""), COUNT_TURN, [], [], None, None)

    for node in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
        node.body.insert(0, nodes.ExprStmt(counter()))
        if isinstance(node, nodes.For) and node.test is not None:
            node.test = nodes.Or(counter(), node.test)
    tree.set_environment(tree.environment)  # type: ignore[arg-type]
    return tree
