"""What the rules of the house look at: files of the project, their imports, their functions."""

from __future__ import annotations

import ast
import functools
import subprocess
from pathlib import Path

from tests.programs import ROOT

CORE = (
    "crypto_utils",
    "protocol_fsm",
    "channel",
    "guard",
    "program",
    "endpoint",
    "server",
    "readings",
    "client",
)


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text("utf-8"), str(path))


@functools.cache
def modules_imported(path: Path) -> frozenset[str]:
    """Return the dotted names that a file imports, of modules and from them, wherever in it."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


def imports_of(path: Path) -> set[str]:
    """Return the top-level names that a file imports, wherever in it."""
    return {name.partition(".")[0] for name in modules_imported(path)}


def tracked_files() -> list[Path]:
    """Return the files that belong to the project: without git, all but hidden and cached ones."""
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
    )
    if listing.returncode == 0:
        return [ROOT / line for line in listing.stdout.splitlines() if (ROOT / line).is_file()]
    return [
        path
        for path in ROOT.rglob("*")
        if path.is_file()
        and not any(
            part.startswith(".") or part == "__pycache__" for part in path.relative_to(ROOT).parts
        )
    ]


def long_functions(tree: ast.Module) -> list[str]:
    """Return the functions of more than 25 statements; the flags of a main() are not counted."""
    return [
        f"{node.name} has {count} statements"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name not in ("main", "__init__")
        if (count := sum(isinstance(part, ast.stmt) for part in ast.walk(node)) - 1) > 25
    ]
