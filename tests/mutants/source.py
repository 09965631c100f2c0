"""Mutants: the source of a module with one change in it, which some test has to notice.

Most are made by operators from the syntax tree; they ask whether each check, each operand and each
number is needed. Some have a name, in named.txt: these bend a rule in a way that no operator hits
upon. Nothing here depends on how the source is laid out.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
Statements = list[ast.stmt]

# Names of arguments whose values no test can see, or only by a clock.
UNSEEN_KEYWORDS = frozenset({"frozen", "slots", "daemon", "check", "flush", "name"})
SWAPPED_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
BOUNDARIES = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
SWAPPED_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitXor: ast.BitAnd,
}
SWAPPED_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass
class Place:
    """Where something stands in the tree: `count` nodes in a list, or one in a field."""

    parent: ast.AST
    field: str
    index: int | None = None
    count: int = 1

    @property
    def nodes(self) -> list[ast.AST]:
        value = getattr(self.parent, self.field)
        return [value] if self.index is None else value[self.index : self.index + self.count]

    @property
    def node(self) -> ast.AST:
        return self.nodes[0]

    def put(self, nodes: list[ast.AST]) -> Place:
        """Replace what stands here, and return the place of what stands here now."""
        if self.index is None:
            setattr(self.parent, self.field, nodes[0])
        else:
            getattr(self.parent, self.field)[self.index : self.index + self.count] = nodes
        return Place(self.parent, self.field, self.index, len(nodes))


@dataclass
class Mutant:
    """One change. `scope` is the function, method or class that it is in; empty: the module."""

    module: str
    scope: str
    old: str
    new: str
    why: str  # of a named one
    tree: ast.Module
    place: Place
    nodes: list[ast.AST]

    def __str__(self) -> str:
        return f"{self.module}: {self.scope}: {self.old} => {self.new}" + (
            f"  # {self.why}" if self.why else ""
        )

    def source(self) -> str:
        """Return the source of the whole module with the change in it."""
        before = self.place.nodes
        there = self.place.put(self.nodes)
        try:
            return ast.unparse(self.tree)
        finally:
            there.put(before)


# Scopes -------------------------------------------------------------------------------------------

Definition = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def scopes(tree: ast.Module) -> dict[str, list[ast.AST]]:
    """Return what each scope consists of; a property and its setter share one."""
    found: dict[str, list[ast.AST]] = {"": [tree]}

    def add(body: Statements, prefix: str) -> None:
        for node in body:
            if isinstance(node, Definition):
                found.setdefault(prefix + node.name, []).append(node)
            if isinstance(node, ast.ClassDef):
                add(node.body, f"{prefix}{node.name}.")

    add(tree.body, "")
    return found


def walk(node: ast.AST) -> Iterator[Place]:
    """Yield every place in a scope, without annotations, docstrings and the scopes inside it."""
    outer = isinstance(node, (ast.Module, ast.ClassDef))
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns"):
            continue
        for index, child in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(child, ast.AST) or (outer and isinstance(child, Definition)):
                continue
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                continue
            yield Place(node, field, index if isinstance(value, list) else None)
            yield from walk(child)


def lines_of_scope(mutant: Mutant) -> set[int]:
    """Return the lines on which its function begins, and those inside it; none of a class."""
    return {
        line
        for root in scopes(mutant.tree)[mutant.scope]
        if isinstance(root, ast.FunctionDef | ast.AsyncFunctionDef)
        for line in range(first_line(root), (root.end_lineno or root.lineno) + 1)
    }


def first_line(node: Any) -> int:
    """Return the line of the first decorator, or of what is defined."""
    lines = [part.lineno for part in [node, *getattr(node, "decorator_list", [])]]
    return int(min(lines))


# Operators ----------------------------------------------------------------------------------------


def operator_mutants(module: str, tree: ast.Module) -> Iterator[Mutant]:
    """Yield every mutant that the operators make of a module."""
    for scope, roots in scopes(tree).items():
        for root in roots:
            for place in places_to_change(root):
                for new in changes(place):
                    old_text, new_text = told(place.node, new)
                    if old_text != new_text:
                        yield Mutant(module, scope, old_text, new_text, "", tree, place, [new])


def told(old: ast.AST, new: ast.AST) -> tuple[str, str]:
    """Return both as a line of the lists has them: of a dict only the entries that change."""
    if isinstance(old, ast.ExceptHandler):
        return f"except {ast.unparse(old.type)}" if old.type else "except", "raise"
    if isinstance(old, ast.Dict) and isinstance(new, ast.Dict):
        old, new = without(old, entries(new)), without(new, entries(old))
    return ast.unparse(old), "" if isinstance(new, ast.Pass) else ast.unparse(new)


def entries(node: ast.Dict) -> list[str]:
    return [
        f"{ast.unparse(key) if key else '**'}: {ast.unparse(value)}"
        for key, value in zip(node.keys, node.values)
    ]


def without(node: ast.Dict, unwanted: list[str]) -> ast.Dict:
    """Return a dict without some of its entries."""
    kept = [index for index, entry in enumerate(entries(node)) if entry not in unwanted]
    return ast.Dict([node.keys[index] for index in kept], [node.values[index] for index in kept])


def places_to_change(root: ast.AST) -> Iterator[Place]:
    skipped: set[ast.AST] = set()
    for place in walk(root):
        node = place.node
        if place.parent in skipped or is_left_alone(node):
            skipped.add(node)
            continue
        if isinstance(node, ast.Raise):
            skipped.add(node)  # what an error says; that it is raised is asked for
        yield place


def is_left_alone(node: ast.AST) -> bool:
    """Return whether nothing in `node` is changed: words for people, and what is for tools."""
    match node:
        case ast.JoinedStr() | ast.Assert() | ast.Import() | ast.ImportFrom():
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.If(test=ast.Compare(left=ast.Name(id="__name__"))):
            return True
        case ast.keyword(arg=str(name)):
            return name in UNSEEN_KEYWORDS
        case ast.Expr(
            value=ast.Call(func=ast.Attribute(value=ast.Call(func=ast.Name(id="super"))))
        ):
            return True  # of an exception it is never missed, of all else at once
    return False


def changes(place: Place) -> Iterator[ast.AST]:
    """Yield what may stand in that place instead."""
    node = place.node
    match node:
        case ast.Expr(value=ast.Call()) | ast.Delete() | ast.AugAssign() | ast.Raise():
            if not is_guarded_alone(place):
                yield ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield ast.Pass()
        case ast.ExceptHandler(body=[ast.Raise(exc=None), *_]):
            pass
        case ast.ExceptHandler():
            yield ast.ExceptHandler(node.type, node.name, [ast.Raise()])
        case ast.expr():
            if is_condition(place):
                yield from other_conditions(place)
            yield from other_values(place)


def is_guarded_alone(place: Place) -> bool:
    """Return whether an `if` stands for nothing but this, so that its condition is changed."""
    parent = place.parent
    return isinstance(parent, ast.If) and len(parent.body) == 1 and not parent.orelse


def is_condition(place: Place) -> bool:
    return (place.field, type(place.parent)) in {
        ("test", ast.If),
        ("test", ast.IfExp),
        ("test", ast.While),
        ("ifs", ast.comprehension),
    }


def other_conditions(place: Place) -> Iterator[ast.expr]:
    """Yield a condition that never holds; one that always does only where that is no nonsense."""
    parent = place.parent
    yield ast.Constant(False)
    if isinstance(parent, ast.While):
        return
    leaves = isinstance(parent, ast.If) and isinstance(
        parent.body[-1], (ast.Raise, ast.Return, ast.Continue, ast.Break)
    )
    if not leaves or (isinstance(parent, ast.If) and parent.orelse):
        yield ast.Constant(True)


def other_values(place: Place) -> Iterator[ast.expr]:
    node: Any = place.node
    match node:
        case ast.BoolOp():
            for index in range(len(node.values)):
                rest = node.values[:index] + node.values[index + 1 :]
                yield rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
        case ast.Compare():
            if len(node.ops) == 2:  # low <= x <= high
                low, x, high = node.left, *node.comparators
                yield ast.Compare(x, node.ops[1:], [high])
                yield ast.Compare(low, node.ops[:1], [x])
            for index, operator in enumerate(node.ops):
                if isinstance(operator, BOUNDARIES) or not is_decided_elsewhere(place):
                    swapped = SWAPPED_COMPARISONS[type(operator)]()
                    operators = [*node.ops[:index], swapped, *node.ops[index + 1 :]]
                    yield ast.Compare(node.left, operators, node.comparators)
        case ast.UnaryOp(op=ast.Not()) if not is_decided_elsewhere(place):
            yield node.operand
        case ast.BinOp(op=ast.Add()):
            yield node.left
            yield node.right
        case ast.BinOp() if type(node.op) in SWAPPED_ARITHMETIC:
            yield ast.BinOp(node.left, SWAPPED_ARITHMETIC[type(node.op)](), node.right)
        case ast.Slice():
            if node.lower:
                yield ast.Slice(None, node.upper, node.step)
            if node.upper:
                yield ast.Slice(node.lower, None, node.step)
        case ast.Set() | ast.Dict():
            yield from with_one_less(node)
        case ast.Tuple() if isinstance(place.parent, ast.ExceptHandler):
            yield from with_one_less(node)
        case ast.Call(func=ast.Name(id=str(name))) if name in SWAPPED_NAMES:
            yield ast.Call(ast.Name(SWAPPED_NAMES[name]), node.args, node.keywords)
        case ast.Constant():
            yield from other_constants(node.value)


def other_constants(value: object) -> Iterator[ast.expr]:
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int):
        yield ast.Constant(value + 1)
    elif isinstance(value, float):
        yield ast.Constant(value * 2)
    elif isinstance(value, bytes):
        yield ast.Constant(value + b"?")


def is_decided_elsewhere(place: Place) -> bool:
    """Return whether the mutants of what stands around it make this one needless."""
    return is_condition(place) or isinstance(place.parent, ast.BoolOp)


def with_one_less(node: ast.Set | ast.Tuple | ast.Dict) -> Iterator[ast.expr]:
    if isinstance(node, ast.Dict):
        for entry in entries(node):
            yield without(node, [entry])
    elif len(node.elts) > 1:
        for index in range(len(node.elts)):
            left = node.elts[:index] + node.elts[index + 1 :]
            yield ast.Set(left) if isinstance(node, ast.Set) else ast.Tuple(left, ast.Load())
