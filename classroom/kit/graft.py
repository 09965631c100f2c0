"""A submission's functions in the reference: one task of the student's, all others ours.

Only what a task asks for is taken, with the helpers, imports and classes that the student has added
beside it. A mistake elsewhere in a submission can therefore cost no points here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path

from classroom.kit.skeleton import Sources, cut
from classroom.kit.tasks import Task

MAX_FILE = 150_000  # bytes of one file of a submission
Scope = ast.Module | ast.ClassDef


class Unreadable(Exception):
    """A file of a submission is missing, or no Python; the message is our sentence."""


def submission(folder: Path, names: Iterable[str]) -> dict[str, str | Unreadable]:
    """Return the files of a submission that are graded."""
    return {name: _read(folder / name) for name in names}


def _read(path: Path) -> str | Unreadable:
    try:
        if path.is_symlink() or not path.is_file():
            return Unreadable(f"{path.name} is missing, or is no plain file.")
        if path.stat().st_size > MAX_FILE:
            return Unreadable(f"{path.name} is longer than {MAX_FILE:,} bytes.")
        return path.read_text("utf-8-sig")
    except OSError:
        return Unreadable(f"{path.name} cannot be read.")
    except UnicodeError:
        return Unreadable(f"{path.name} is not in UTF-8.")


def modules_of(task: Task) -> list[str]:
    """Return the file names in which a task is solved."""
    return sorted({place.partition(":")[0] + ".py" for place in task.functions})


def grafted(
    reference: Sources, submitted: Mapping[str, str | Unreadable], task: Task
) -> tuple[Sources, dict[str, ast.Module]]:
    """Return the reference with a submission's functions for one task. Raises Unreadable."""
    sources = cut(reference, [task])
    trees = {}
    for name in modules_of(task):
        text = submitted[name]
        if isinstance(text, Unreadable):
            raise text
        trees[name] = parsed(name, text)
        places = [place.partition(":") for place in task.functions]
        wanted = {place[2] for place in places if f"{place[0]}.py" == name}
        base = ast.parse(sources[name])
        _merge(base, trees[name], wanted, "")
        if task.number == 13:  # a test that the student has deleted is none
            own = {found for node in trees[name].body for found in names_in(node)}
            base.body = [node for node in base.body if not (names_in(node) & wanted) - own]
        sources[name] = ast.unparse(ast.fix_missing_locations(base)) + "\n"
    return sources, trees


def parsed(name: str, text: str) -> ast.Module:
    """Return the syntax tree of a file. Raises Unreadable."""
    if "\0" in text:  # whose line Python does not tell
        raise Unreadable(f"{name} is no Python: it has a byte 0.")
    try:
        tree = ast.parse(text)
        ast.unparse(tree)  # it may be too deep for one of these
        ast.dump(tree)
        return tree
    except SyntaxError as error:
        raise Unreadable(f"{name} is no Python: look at line {error.lineno}.") from None
    except (ValueError, RecursionError, MemoryError):
        raise Unreadable(f"{name} is no Python.") from None


def names_in(node: ast.stmt) -> set[str]:
    """Return the names that a statement defines."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, ast.Assign):
        return {ast.unparse(target) for target in node.targets}
    if isinstance(node, ast.AnnAssign):
        return {ast.unparse(node.target)}
    return set()


def _merge(base: Scope, own: Scope, wanted: set[str], prefix: str) -> None:
    """Put into `base` what is wanted of `own`, and what `own` has in addition, in its places."""
    known = {name: node for node in base.body for name in names_in(node)}
    same = {ast.dump(node) for node in base.body}
    place = _start(base)  # where the next addition goes
    for node in own.body:
        names = names_in(node)
        old = next((known[name] for name in names if name in known), None)
        if old is None:
            if not (_stands_first(node) or ast.dump(node) in same):
                base.body.insert(place, node)
                place += 1
            continue
        qualnames = {prefix + name for name in names}
        if isinstance(old, ast.ClassDef) and isinstance(node, ast.ClassDef):
            _merge(old, node, wanted, f"{prefix}{node.name}.")
        elif qualnames & wanted:
            base.body[base.body.index(old)] = node
            known.update(dict.fromkeys(names, node))
            old = node
        place = base.body.index(old) + 1


def _start(base: Scope) -> int:
    """Return the place behind a docstring and the imports from __future__."""
    place = 0
    while place < len(base.body) and _stands_first(base.body[place]):
        place += 1
    return place


def _stands_first(node: ast.stmt) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.module == "__future__"
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
