"""What is claimed and what the search found, by folder: claims.toml and sets.json.

People write claims.toml, and `python -m classroom.matrix --write` writes sets.json; each companion
has both in its own folder. Pages, tests and CLAIMS.md read them through this module only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

from program import UserError, read_text

VERDICTS = ("holds", "limited", "not claimed")
Row = TypeVar("Row")


@dataclass(frozen=True)
class Claim:
    """One falsifiable claim, and what would show it to be false."""

    id: str
    claim: str
    code: tuple[str, ...]  # dotted names
    tests: tuple[str, ...]  # path::name, as pytest prints them
    verdict: str  # one of VERDICTS
    rests_on: tuple[str, ...]  # attack, test, exploration, model
    family: str = ""  # by which attacks.py sums up; empty if no attack is about it
    condition: str = ""
    attacks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """A rule that `--without` takes out, and a run that shows what it is for."""

    name: str
    rule: str
    claims: tuple[str, ...]
    without: tuple[str, ...]  # what the run takes out
    attack: str
    wins: bool
    alone: str = ""  # what its removal does by itself
    redundant: str = ""  # why it is in no minimal set, if it is in none


@dataclass(frozen=True)
class Error:
    """A type of error that ends a session."""

    name: str
    when: str
    attacks: tuple[str, ...] = ()
    unmet: str = ""  # why no attack meets it, if none does


@dataclass(frozen=True)
class Claims:
    """A folder's claims.toml."""

    claims: tuple[Claim, ...]
    rules: tuple[Rule, ...]
    errors: tuple[Error, ...]

    @property
    def redundant(self) -> dict[str, str]:
        """Return why rules are in no minimal set, by name."""
        return {rule.name: rule.redundant for rule in self.rules if rule.redundant}


@dataclass(frozen=True)
class Sets:
    """A folder's sets.json: by attack, the minimal sets of rules without which it wins."""

    size: int  # the largest that was searched for
    sets: Mapping[str, Sequence[Sequence[str]]]
    not_prevented: Mapping[str, str]  # by attack: what notices it


def read_claims(folder: Path) -> Claims:
    """Return the claims of a folder. Raises UserError."""
    path = folder / "claims.toml"
    try:
        told = parse_toml(read_text(path))
        return Claims(
            rows(Claim, told["claims"]), rows(Rule, told["rules"]), rows(Error, told["errors"])
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a file of claims: {error}") from None


def parse_toml(text: str) -> dict[str, Any]:
    """Return what the TOML says. Raises ValueError, and UserError without a parser."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError:
            message = "this needs tomli: pip install -r requirements-evidence.txt"
            raise UserError(message) from None
    return tomllib.loads(text)


def rows(kind: type[Row], told: Sequence[Mapping[str, Any]]) -> tuple[Row, ...]:
    """Return rows of one kind. Raises TypeError for a wrong type, KeyError for a wrong name."""
    hints = get_type_hints(kind)
    found = []
    for row in told:
        fields = {
            name: tuple(value) if isinstance(value, list) else value for name, value in row.items()
        }
        for name, value in fields.items():
            wanted = get_origin(hints[name]) or hints[name]
            if not isinstance(value, wanted):
                raise TypeError(f"{name} = {value!r}")
        found.append(kind(**fields))
    return tuple(found)


def read_sets(path: Path) -> Sets:
    """Return what a search wrote or printed as JSON. Raises UserError."""
    try:
        told = json.loads(read_text(path))
        sets = {
            str(name): [[str(rule) for rule in rules] for rules in found]
            for name, found in told["sets"].items()
        }
        noticed = {str(name): str(by) for name, by in told["not_prevented"].items()}
        return Sets(int(told["size"]), sets, noticed)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise UserError(f"{path} is not what a search for minimal sets writes") from None


def as_json(sets: Sets) -> str:
    """Return the text of sets.json, one attack per line."""

    def lines(members: Mapping[str, object]) -> str:
        return ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in members.items())

    return (
        f'{{\n "size": {sets.size},\n "sets": {{\n{lines(sets.sets)}\n }},\n'
        f' "not_prevented": {{\n{lines(sets.not_prevented)}\n }}\n}}\n'
    )
