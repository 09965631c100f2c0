"""What the rules of the house look at: files of the project, their imports, their functions."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
CORE = (
    "crypto_utils",
    "protocol_fsm",
    "channel",
    "guard",
    "program",
    "endpoint",
    "server",
    "client",
)


def imports_of(path: Path) -> set[str]:
    """Return the top-level names that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add((node.module or "").split(".")[0])
    return found


def modules_imported(path: Path) -> set[str]:
    """Return the dotted names of the modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


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
