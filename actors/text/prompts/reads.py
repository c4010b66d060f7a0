"""What a chat template reads: names that a request can give it, and keys of messages, calls and tools."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from jinja2 import nodes

IN_MACROS = ("caller", "kwargs", "varargs")
"""Names that jinja2 gives a macro."""


def names_read(node: nodes.Node, own: set[str]) -> Iterator[str]:
    """The names that are read where the template may not have set them itself; ``own`` are those that it has, and gets
    those that it does in ``node``. jinja2 names all that it sets in one branch alone too."""
    match node:
        case nodes.Name(ctx="load"):
            if node.name not in own:
                yield node.name
        case nodes.Name():
            own.add(node.name)
        case nodes.Assign():
            yield from names_read(node.node, own)
            yield from names_read(node.target, own)
        case nodes.If():
            yield from names_read(node.test, own)
            ends = [set(own) for _ in (node, *node.elif_, node)]
            yield from names_read_in(node.body, ends[0])
            for other, end in zip(node.elif_, ends[1:-1], strict=True):
                yield from names_read(other.test, end)
                yield from names_read_in(other.body, end)
            yield from names_read_in(node.else_, ends[-1])
            own |= set.intersection(*ends)
        case nodes.For():
            yield from names_read(node.iter, own)
            within = own | {"loop"}
            yield from names_read(node.target, within)
            yield from names_read_in([node.test] if node.test else [], within)
            yield from names_read_in(node.body, within)
            yield from names_read_in(node.else_, set(own))
        case nodes.Macro() | nodes.CallBlock():
            if isinstance(node, nodes.Macro):
                own.add(node.name)
            else:
                yield from names_read(node.call, own)
            within = own.union(IN_MACROS)
            yield from names_read_in(node.defaults, own)
            yield from names_read_in(node.args, within)
            yield from names_read_in(node.body, within)
        case nodes.With():
            yield from names_read_in(node.values, own)
            within = set(own)
            yield from names_read_in(node.targets, within)
            yield from names_read_in(node.body, within)
        case nodes.AssignBlock():
            yield from names_read_in([*([node.filter] if node.filter else []), *node.body], set(own))
            yield from names_read(node.target, own)
        case nodes.Stmt() if not isinstance(node, nodes.Output | nodes.ExprStmt):
            yield from names_read_in(node.iter_child_nodes(), set(own))  # what is set within stays within
        case _:
            yield from names_read_in(node.iter_child_nodes(), own)


def names_read_in(parts: Iterable[nodes.Node], own: set[str]) -> Iterator[str]:
    for part in parts:
        yield from names_read(part, own)


def keys_read(tree: nodes.Template) -> frozenset[str]:
    """The keys that a template asks some map for, but for its own variables' and for methods."""
    own = {"loop"}
    for made in tree.find_all(nodes.Assign):
        call, target = made.node, made.target
        if (
            isinstance(call, nodes.Call)
            and isinstance(call.node, nodes.Name)
            and call.node.name == "namespace"
        ):
            own |= {target.name} if isinstance(target, nodes.Name) else set()
    calls = list(tree.find_all(nodes.Call))
    methods = {id(call.node) for call in calls}
    found = {
        one.attr
        for one in tree.find_all(nodes.Getattr)
        if id(one) not in methods and not (isinstance(one.node, nodes.Name) and one.node.name in own)
    }
    named: list[nodes.Node] = [one.arg for one in tree.find_all(nodes.Getitem)]
    for call in calls:
        if isinstance(call.node, nodes.Getattr) and call.node.attr == "get":
            named += call.args[:1]
    for compared in tree.find_all(nodes.Compare):
        if any(operand.op in ("in", "notin") for operand in compared.ops):
            named.append(compared.expr)
    for filtered in tree.find_all(nodes.Filter):
        if filtered.name in BY_KEY:
            named += filtered.args[:1]
        named += [given.value for given in filtered.kwargs if given.key == "attribute"]
    return frozenset(
        found | {one.value for one in named if isinstance(one, nodes.Const) and isinstance(one.value, str)}
    )


BY_KEY = ("selectattr", "rejectattr", "groupby")
"""Filters whose first argument is a key."""
