"""Which tests notice the mutants of each scope, kept until the scope or one of the tests changes.

kills.json has a line for each scope: a fingerprint, then the tests that together notice all of its
mutants. The fingerprint is of the scope's source, its mutants, and for each of those tests: its
source, the rest of its file without other tests, and the helpers that the file imports. What it
leaves out are the other modules of the project: `run.py mutate` without --changed asks again.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.mutants.named import tree_of
from tests.mutants.source import ROOT, Definition, Mutant, first_line, scopes

FILE = Path(__file__).parent / "kills.json"


def digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def key_of(mutant: Mutant) -> str:
    return f"{mutant.module}::{mutant.scope}"


def fingerprint(mutants: Sequence[Mutant], killers: Iterable[str]) -> str:
    """Return that of a scope with these mutants. Raises LookupError for a test that is gone."""
    module, scope = mutants[0].module, mutants[0].scope
    source = [own_text(module, root) for root in scopes(tree_of(module))[scope]]
    changes = [f"{mutant.old} => {mutant.new}" for mutant in mutants]
    return digest([*source, *changes, *(test_digest(name) for name in sorted(killers))])


@functools.cache
def lines_of(path: str) -> list[str]:
    return (ROOT / path).read_text("utf-8").splitlines()


def own_text(path: str, root: ast.AST) -> str:
    """Return the lines of a scope, without those of the scopes inside it."""
    if isinstance(root, (ast.Module, ast.ClassDef)):
        parts = [node for node in root.body if not isinstance(node, Definition)]
        return "\n".join(text_of(path, node) for node in parts)
    return text_of(path, root)


def text_of(path: str, node: ast.AST) -> str:
    return "\n".join(lines_of(path)[first_line(node) - 1 : node.end_lineno])  # type: ignore[attr-defined]


@functools.cache
def test_digest(name: str) -> str:
    """Return that of a test and of what it stands on. Raises LookupError if it is gone."""
    path, *names = name.split("::")
    if not (ROOT / path).is_file():
        raise LookupError(name)
    found = scopes(tree_of(path)).get(".".join(names))
    if names and not found:
        raise LookupError(name)
    return digest([rest_of(path), *(text_of(path, node) for node in found or [])])


def is_there(test: str) -> bool:
    """Return whether there still is such a test."""
    try:
        return bool(test_digest(test))
    except LookupError:
        return False


@functools.cache
def rest_of(path: str) -> str:
    """Return the digest of a file of tests without the tests, and of all helpers below it."""
    found: set[str] = set()
    waiting = [path]
    while waiting:  # helpers may import each other
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += helpers_of(file)
    return digest(own_rest_of(file) for file in sorted(found))


@functools.cache
def own_rest_of(path: str) -> str:
    """Return the lines of a file of tests or helpers that are not of a test."""
    tests = {
        number
        for scope, nodes in scopes(tree_of(path)).items()
        if scope.rpartition(".")[2].startswith("test_")
        for node in nodes
        for number in range(node.lineno, node.end_lineno + 1)  # type: ignore[attr-defined]
    }
    return "\n".join(line for number, line in enumerate(lines_of(path), 1) if number not in tests)


def helpers_of(path: str) -> list[str]:
    """Return the files below tests/ that a file imports, and the conftest.py beside it."""
    nodes = ast.walk(tree_of(path))
    modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    files = {module.replace(".", "/") + ".py" for module in modules if module}
    files.add(str(Path(path).parent / "conftest.py"))
    return sorted(
        file
        for file in files
        if file.startswith("tests/") and (ROOT / file).is_file() and file != path
    )


class Kills:
    """The file, in memory."""

    def __init__(self, file: Path = FILE) -> None:
        self._file = file
        text = file.read_text("utf-8") if file.exists() else "{}"
        self._lines: dict[str, list[str]] = json.loads(text)

    def killers(self, key: str) -> list[str]:
        return self._lines.get(key, [])[1:]

    def knows(self, mutants: Sequence[Mutant]) -> bool:
        """Return whether nothing has changed since those tests noticed all these mutants."""
        line = self._lines.get(key_of(mutants[0]), [""])
        try:
            return line[0] == fingerprint(mutants, line[1:])
        except LookupError:
            return False

    def keep(self, mutants: Sequence[Mutant], killers: Iterable[str]) -> None:
        kept = sorted({*killers})
        self._lines[key_of(mutants[0])] = [fingerprint(mutants, kept), *kept]

    def forget(self, key: str) -> None:
        self._lines.pop(key, None)

    def write(self) -> None:
        lines = [
            f"{json.dumps(key)}: {json.dumps(line)}" for key, line in sorted(self._lines.items())
        ]
        self._file.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
