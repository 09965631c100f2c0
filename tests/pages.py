"""How the pages on security are read: tables by their headings, names between backticks."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
VERDICTS = {"holds", "limited", "not claimed"}


def table(heading: str, text: str) -> list[list[str]]:
    """Return the cells of the table whose first line starts with `heading`."""
    lines = text[text.index(f"\n| {heading} |") + 1 :].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert {len(row) for row in rows} == {len(rows[0])}, f"a row of another length: {heading}"
    return rows[:1] + rows[2:]


def quoted(cell: str) -> list[str]:
    """Return what stands between backticks."""
    return re.findall(r"`([^`]+)`", cell)


class Claim(NamedTuple):
    """One row of the first table."""

    id: str
    family: str
    claim: str
    condition: str
    code: str
    attacks: str
    tests: str
    verdict: str
    rests_on: str


@lru_cache
def names_of_tests_in(path: str) -> set[str]:
    """Return the test functions of a file as pytest names them, with their class."""
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    inside = [(f"{cls.name}::", cls.body) for cls in tree.body if isinstance(cls, ast.ClassDef)]
    return {
        prefix + node.name
        for prefix, body in [("", tree.body), *inside]
        for node in body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
