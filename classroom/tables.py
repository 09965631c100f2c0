"""What SECURITY.md says, read from its Markdown: headings, claims, and minimal sets.

Only as much Markdown as those tables use. What it finds is the document's own words; nothing is
judged or worked out here.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from program import UserError, reason_of


class Section(NamedTuple):
    """What stands below one heading; `anchor` is the name that GitHub gives it."""

    title: str
    anchor: str
    text: str


class Matrix(NamedTuple):
    """What `python -m classroom.matrix` found."""

    sets: Mapping[str, Sequence[Sequence[str]]]  # by attack
    not_prevented: Mapping[str, str]  # by attack: who notices
    redundant: Mapping[str, str]  # by element: why


def read_document(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeError) as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}") from None


def sections(text: str) -> list[Section]:
    """Return the sections in their order; each ends where the next begins."""
    found = [Section("", "", "")]
    seen = Counter[str]()
    is_code = False
    for line in text.splitlines(keepends=True):
        is_code ^= line.startswith("```")
        if not is_code and (heading := re.match(r"#{1,6} (.*)", line)):
            anchor = re.sub(r"[^\w -]", "", heading[1].strip().lower()).replace(" ", "-")
            number = f"-{seen[anchor]}" if seen[anchor] else ""
            seen[anchor] += 1
            found.append(Section(heading[1], anchor + number, ""))
        found[-1] = found[-1]._replace(text=found[-1].text + line)
    return found[1:]


def tables(text: str) -> list[list[dict[str, str]]]:
    """Return the tables, each row a dict by the words of the head."""
    found = []
    for block in re.findall(r"^\|.*\n\|[-| :]+\|\n(?:\|.*\n?)*", text, re.MULTILINE):
        head, _, *rows = [
            [
                cell.strip().replace("\\|", "|")
                for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])
            ]
            for line in block.splitlines()
        ]
        found.append([dict(zip(head, row)) for row in rows])
    return found


def claims(text: str) -> tuple[Section, list[dict[str, str]]]:
    """Return the table of claims, and the section that it stands in. Raises UserError."""
    for section in sections(text):
        for table in tables(section.text):
            if table and {"id", "claim", "verdict", "attacks"} <= table[0].keys():
                return section, table
    raise UserError("the security document has no table with id, claim, attacks and verdict")


def matrix_of(text: str) -> Matrix:
    """Return the minimal sets as the document has them; without such a table there are none."""
    sets: dict[str, list[list[str]]] = {}
    noticed: dict[str, str] = {}
    redundant: dict[str, str] = {}
    for row in (row for table in tables(text) for row in table):
        if "redundant here" in row:
            redundant[row["redundant here"]] = row.get("because", "")
        for head, words in row.items():
            if head.startswith("minimal sets"):
                name = row["attack"]
                if match := re.match(r"not prevented \(noticed by (.*)\)", words):
                    noticed[name] = match[1]
                else:
                    sets[name] = [found.split(", ") for found in re.findall(r"\{(.*?)\}", words)]
    return Matrix(sets, noticed, redundant)


def read_matrix(path: Path) -> Matrix:
    """Return what `python -m classroom.matrix --json` printed. Raises UserError."""
    try:
        told = json.loads(read_document(path))
        sets = {
            str(name): [[str(rule) for rule in rules] for rules in found]
            for name, found in told["sets"].items()
        }
        noticed, redundant = (
            {str(name): str(why) for name, why in told[part].items()}
            for part in ("not_prevented", "redundant")
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} is not what python -m classroom.matrix --json prints") from None
    return Matrix(sets, noticed, redundant)
