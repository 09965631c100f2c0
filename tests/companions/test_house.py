"""The rules of the house for companions: who may import whom, and how they read."""

from __future__ import annotations

import ast

import pytest

from tests.cases import case
from tests.house import imports_of, long_functions, modules_imported, tree_of
from tests.programs import ROOT

FOLDER = ROOT / "companions"
MODULES = sorted(FOLDER.rglob("*.py"))
COMPANIONS = {path.name for path in FOLDER.iterdir() if (path / "README.md").is_file()}
CORE = sorted(
    [*ROOT.glob("*.py"), *(ROOT / "lab").glob("*.py"), *(ROOT / "classroom").rglob("*.py")]
)
# what no program of a companion imports
LAB = {"attacks", "stage", "demo", "weakened", "matrix", "wire"}


@pytest.mark.slow
def test_nothing_below_imports_a_companion() -> None:
    assert not [path for path in CORE if "companions" in imports_of(path)]


@pytest.mark.slow
def test_no_companion_imports_another() -> None:
    for path in MODULES:
        own = path.parent.name if path.parent != FOLDER else ""
        for name in modules_imported(path):
            parts = name.split(".")
            if parts[0] == "companions" and len(parts) > 1 and parts[1] in COMPANIONS:
                assert parts[1] == own, f"{path} imports {name}"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(COMPANIONS))
def test_no_program_can_reach_what_is_insecure(name: str) -> None:
    """Only the lab imports the lab; what is weakened, only when it is asked for."""
    insecure = {f"companions.{name}.{module}" for module in LAB}
    for path in (FOLDER / name).glob("*.py"):
        if path.stem not in LAB:
            assert not modules_imported(path) & insecure, path.name
    top = tree_of(FOLDER / name / "attacks.py").body
    imported = {node.module for node in top if isinstance(node, ast.ImportFrom)}
    assert f"companions.{name}.weakened" not in imported


@pytest.mark.slow
def test_modules_read_like_the_core() -> None:
    for path in MODULES:
        with case(path):
            tree = tree_of(path)
            assert ast.get_docstring(tree)
            for node in ast.walk(tree):
                assert not isinstance(node, ast.Assert), "no assert guards a protocol"
                assert not (isinstance(node, ast.ExceptHandler) and node.type is None)
            assert not long_functions(tree)
