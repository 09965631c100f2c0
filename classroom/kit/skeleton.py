"""What is taken out of the reference, so that a skeleton can never drift from it.

A place is named as in tasks.py: `Session.open` in a source text. What is cut is found by the syntax
tree and removed by lines, so that docstrings and all else stay byte for byte.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from classroom.kit.tasks import Task

Sources = dict[str, str]  # texts by file name
Named = ast.FunctionDef | ast.ClassDef | ast.AnnAssign


@functools.lru_cache(maxsize=64)
def tree(text: str) -> ast.Module:
    """Return the syntax tree of a source, which nobody may change."""
    return ast.parse(text)


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


def edited(sources: Mapping[str, str], place: str, old: str, new: str) -> Sources:
    """Return sources with `new` for `old`, which stands in module:name once. Raises ValueError."""
    module, _, qualname = place.partition(":")
    text = sources[f"{module}.py"]
    node = find(tree(text), qualname)
    lines = text.splitlines(keepends=True)
    first, last = node.lineno - 1, node.end_lineno or node.lineno
    part = "".join(lines[first:last])
    if part.count(old) != 1:
        raise ValueError(f"{place} has {part.count(old)} times {old!r}")
    whole = "".join([*lines[:first], part.replace(old, new), *lines[last:]])
    return {**sources, f"{module}.py": whole}


def cut(sources: Mapping[str, str], tasks: Iterable[Task]) -> Sources:
    """Return sources in which the functions of these tasks have no bodies, and tables no rows."""
    skeleton = dict(sources)
    places = [(task, place.partition(":")) for task in tasks for place in task.functions]
    for module in {place[0] for _, place in places}:
        text = sources[f"{module}.py"]
        lines = text.splitlines(keepends=True)
        cuts = [
            _cut(find(tree(text), place[2]), lines, task.number)
            for task, place in places
            if place[0] == module
        ]
        for part in sorted(cuts, reverse=True):  # from the end, so that numbers of lines stay
            lines[part.start : part.end] = [part.stub]
        skeleton[f"{module}.py"] = "".join(lines)
    return skeleton


class Cut(NamedTuple):
    """Lines, counted from 0, and the one that takes their place."""

    start: int
    end: int
    stub: str


def _cut(node: Named, lines: Sequence[str], number: int) -> Cut:
    body = statements(node)
    start = body[0].lineno - 1
    end = body[-1].end_lineno or len(lines)
    if isinstance(node, ast.AnnAssign):
        head = lines[start].partition(" = ")[0]
        empty = "{}" if isinstance(node.value, ast.Dict) else "()"
        return Cut(start, end, f"{head} = {empty}  # task {number}\n")
    while lines[start - 1].lstrip().startswith("#"):  # a comment belongs to what is cut
        start -= 1
    return Cut(
        start, end, f'{" " * body[0].col_offset}raise NotImplementedError("task {number}")\n'
    )
