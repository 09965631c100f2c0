"""The two lists: mutants with a name, and mutants that no test can tell from the original.

A line of either is `scope: old => new  # why`, below the [module] that it is of. `old` is an
expression, or a statement, or several with a semicolon between them, and stands once in its scope
(a function, a method, a class; before the colon nothing for the module itself). Without `new` the
statement goes. `{a: b}` stands for an entry of a longer dict, so that `{} => {c: d}` adds one, and
`with lock: ...` for a statement with whatever body, which it keeps.
Among the equivalents `*` is whatever an operator makes of `old`.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.mutants.source import (
    ROOT,
    Mutant,
    Place,
    entries,
    operator_mutants,
    scopes,
    walk,
    without,
)

HERE = Path(__file__).parent
LINE = re.compile(r"(?P<scope>[\w.]*): (?P<old>.+?) =>(?: (?P<new>.+?))?  # (?P<why>.+)")


class Line(NamedTuple):
    """One line of a list."""

    module: str
    scope: str
    old: str
    new: str
    why: str

    def __str__(self) -> str:
        return f"[{self.module}] {self.scope}: {self.old} => {self.new}  # {self.why}"


class Unresolved(Exception):
    """A line that does not fit the source of today."""


def read_lines(path: Path) -> list[Line]:
    """Return the lines of a list. Raises Unresolved for what is none."""
    found: list[Line] = []
    module = ""
    for text in path.read_text("utf-8").splitlines():
        match = LINE.fullmatch(text)
        if text.startswith("["):
            module = text.strip("[]")
        elif match:
            found.append(
                Line(module, match["scope"], match["old"], match["new"] or "", match["why"])
            )
        elif text and not text.startswith("#"):
            raise Unresolved(f"{path.name}: not `scope: old => new  # why`: {text}")
    return found


@functools.cache
def tree_of(module: str) -> ast.Module:
    return ast.parse((ROOT / module).read_text("utf-8"))


@functools.cache
def scopes_of(module: str) -> dict[str, list[ast.AST]]:
    return scopes(tree_of(module))


def parsed(text: str) -> list[ast.AST]:
    """Return an expression, or some statements. Raises SyntaxError."""
    try:
        return [ast.parse(text, mode="eval").body]
    except SyntaxError:
        return [*ast.parse(text or "pass").body]


def resolved(line: Line) -> Mutant:
    """Return the mutant that a line names. Raises Unresolved."""
    try:
        tree = tree_of(line.module)
        roots = scopes_of(line.module)[line.scope]
        old, new = alike(parsed(line.old), parsed(line.new))
    except (OSError, KeyError, SyntaxError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise Unresolved(f"{line}: {type(error).__name__}: {reason}") from None
    places = [place for root in roots for place in places_of(old, root)]
    if len(places) != 1:
        raise Unresolved(f"{line}: `old` is there {len(places)} times")
    [place] = places
    if isinstance(place.node, ast.Dict) and isinstance(new[0], ast.Dict):
        new = [exchanged(place.node, old[0], new[0])]
    if is_header(old[0]):
        new = [with_body_of(place.node, new[0])]
    if [*map(ast.unparse, place.nodes)] == [*map(ast.unparse, new)]:
        raise Unresolved(f"{line}: `new` changes nothing")
    return Mutant(line.module, line.scope, line.old, line.new, line.why, tree, place, new)


def alike(old: list[ast.AST], new: list[ast.AST]) -> tuple[list[ast.AST], list[ast.AST]]:
    """Return both as expressions or both as statements."""
    if isinstance(old[0], ast.expr) and isinstance(new[0], ast.expr):
        return old, new
    one, other = (
        [ast.Expr(node) if isinstance(node, ast.expr) else node for node in nodes]
        for nodes in (old, new)
    )
    return one, other


def places_of(old: list[ast.AST], root: ast.AST) -> Iterator[Place]:
    """Yield where `old` stands, however it is laid out."""
    wanted = [ast.unparse(node) for node in old]
    for place in walk(root):
        if isinstance(place.node, ast.Dict) and isinstance(old[0], ast.Dict):
            if {*entries(old[0])} <= {*entries(place.node)}:
                yield place
        elif is_header(old[0]):
            if type(place.node) is type(old[0]) and header(place.node) == header(old[0]):
                yield place
        elif type(place.node) is type(old[0]):
            here = Place(place.parent, place.field, place.index, len(old))
            if wanted == [ast.unparse(node) for node in here.nodes]:
                yield here


def is_header(node: ast.AST) -> bool:
    """Return whether its body is `...`, which stands for any."""
    return bool(getattr(node, "body", None)) and ast.unparse(node).endswith("\n    ...")


def header(node: ast.AST) -> str:
    return ast.unparse(node).partition(":\n")[0]


def with_body_of(whole: ast.AST, new: ast.AST) -> ast.AST:
    """Return `new`, whose body is `...`, with the body of `whole`."""
    return type(new)(**{**vars(new), "body": whole.body})  # type: ignore[attr-defined]


def exchanged(whole: ast.Dict, old: ast.AST, new: ast.Dict) -> ast.Dict:
    """Return a dict with some entries in the place of some others."""
    assert isinstance(old, ast.Dict)
    rest = without(whole, entries(old))
    return ast.Dict(rest.keys + new.keys, rest.values + new.values)


def named_mutants() -> list[Line]:
    return read_lines(HERE / "named.txt")


def equivalents() -> list[Line]:
    return read_lines(HERE / "equivalents.txt")


def is_listed(mutant: Mutant, line: Line) -> bool:
    return (mutant.module, mutant.scope, mutant.old) == line[:3] and line.new in ("*", mutant.new)


def mutants_of(module: str) -> list[Mutant]:
    """Return the mutants of a module that some test has to notice. Raises Unresolved."""
    named = [resolved(line) for line in named_mutants() if line.module == module]
    spared = [line for line in equivalents() if line.module == module]
    made = [*operator_mutants(module, tree_of(module))]
    return [
        mutant for mutant in made if not any(is_listed(mutant, line) for line in spared)
    ] + named


def unresolved_lines() -> list[str]:
    """Return what is wrong with the two lists, by name."""
    problems = []
    for line in named_mutants():
        try:
            resolved(line)
        except Unresolved as error:
            problems.append(str(error))
    made = {
        module: [*operator_mutants(module, tree_of(module))]
        for module in {line.module for line in equivalents()}
    }
    for line in equivalents():
        if not any(is_listed(mutant, line) for mutant in made[line.module]):
            problems.append(f"{line}: no operator makes this equivalent")
    return problems
