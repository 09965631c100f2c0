"""What is taken out of the reference, so that a skeleton can never drift from it.

A place is named as in tasks.py: `Session.open` in a source text. What is cut is found by the syntax
tree and removed by lines, so that docstrings and all else stay byte for byte.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence

from classroom.kit.tasks import Task

Sources = dict[str, str]  # texts by file name
Named = ast.FunctionDef | ast.ClassDef | ast.AnnAssign


def find(tree: ast.Module | ast.ClassDef, qualname: str) -> Named:
    """Return the function, class or annotated constant of that name. Raises LookupError."""
    name, _, rest = qualname.partition(".")
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return find(node, rest) if rest else node
        if isinstance(node, ast.FunctionDef) and node.name == name and not rest:
            return node
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == qualname:
            return node
    raise LookupError(f"there is no {qualname}")


def statements(node: Named) -> Sequence[ast.stmt]:
    """Return what a task takes out of a function: all of its body but the docstring."""
    if isinstance(node, ast.FunctionDef):
        return node.body[1:] if ast.get_docstring(node) is not None else node.body
    return [node]


def edited(text: str, qualname: str, old: str, new: str) -> str:
    """Return a source whose `qualname` has `new` for `old`, which stands there once. ValueError."""
    node = find(ast.parse(text), qualname)
    lines = text.splitlines(keepends=True)
    first, last = node.lineno - 1, node.end_lineno or node.lineno
    part = "".join(lines[first:last])
    if part.count(old) != 1:
        raise ValueError(f"{qualname} has {part.count(old)} times {old!r}")
    return "".join([*lines[:first], part.replace(old, new), *lines[last:]])


def cut(sources: Mapping[str, str], tasks: Iterable[Task]) -> Sources:
    """Return sources in which the functions of these tasks have no bodies, and tables no rows."""
    skeleton = dict(sources)
    for task in tasks:
        for place in task.functions:
            module, _, qualname = place.partition(":")
            skeleton[f"{module}.py"] = _without(skeleton[f"{module}.py"], qualname, task.number)
    return skeleton


def _without(text: str, qualname: str, number: int) -> str:
    node = find(ast.parse(text), qualname)
    lines = text.splitlines(keepends=True)
    if isinstance(node, ast.AnnAssign):
        return _without_value(lines, node, number)
    body = statements(node)
    start = body[0].lineno - 1
    while lines[start - 1].lstrip().startswith("#"):  # a comment belongs to what is cut
        start -= 1
    stub = " " * body[0].col_offset + f'raise NotImplementedError("task {number}")\n'
    return "".join([*lines[:start], stub, *lines[body[-1].end_lineno :]])


def _without_value(lines: list[str], node: ast.AnnAssign, number: int) -> str:
    """Empty a constant, whose name and type stay."""
    value = node.value
    if value is None or value.end_lineno is None:
        raise ValueError("a constant has a value")
    head = lines[value.lineno - 1].encode()[: value.col_offset].decode()
    empty = "{}" if isinstance(value, ast.Dict) else "()"
    line = f"{head}{empty}  # task {number}\n"
    return "".join([*lines[: value.lineno - 1], line, *lines[value.end_lineno :]])
