"""Rules that can be taken out: a class each, which overrides what the rule is made of.

    class NoTag(Session):
        def _check_tag(self, header, message):
            ...believe any tag

A weakened part is a class made of such rules and the real part. It works on loopback only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from endpoint import loopback_address
from program import UserError

Rules = Mapping[str, type]  # by name, in the order in which their methods call each other


def chosen(names: Iterable[str], rules: Rules, documented: Sequence[str]) -> list[type]:
    """Return rules by their names; `documented` stands for several. Raises UserError."""
    wanted: set[str] = set()
    for name in names:
        wanted.update(documented if name == "documented" else [name])
    if unknown := wanted - rules.keys():
        known = ", ".join(rules)
        raise UserError(f"there is no rule {min(unknown)}; there are: documented, {known}")
    return [rule for name, rule in rules.items() if name in wanted]


def lacking(part: type, rules: Sequence[type], *extra: type) -> Any:
    """Return `part` without those of the rules that are rules of this class."""
    own = [rule for rule in rules if issubclass(rule, part)]
    return type(f"Weakened{part.__name__}", (*extra, *own, part), {})


def require_loopback(host: str) -> str:
    """Return the address to use, and refuse every host but this one. Raises UserError."""
    address = loopback_address(host)
    if not address:
        raise UserError(f"weakened endpoints work on loopback only, and {host} is not")
    return address
