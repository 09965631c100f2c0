"""Rules that can be taken out: one class for each, which overrides what the rule is made of.

    class NoTag(Session):
        def _check_tag(self, header, message):
            ...believe any tag

A rule that is one check and nothing else needs no class of its own:

    unchecked(Session, "_check_tag", "Believe any tag")

A weakened part is a class made of such rules and the real part. It works on loopback only.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from endpoint import loopback_address
from program import UserError, flag_type

Names = frozenset[str]  # of rules
Rules = Mapping[str, type]  # by name, in the order in which their methods call each other


def expanded(names: Iterable[str], documented: Sequence[str]) -> Names:
    """Return names of rules; `documented` stands for several."""
    return frozenset(
        rule for name in names for rule in (documented if name == "documented" else [name])
    )


def chosen(names: Iterable[str], rules: Rules, documented: Sequence[str]) -> list[type]:
    """Return rules by their names; `documented` stands for several. Raises UserError."""
    wanted = expanded(names, documented)
    if unknown := wanted - rules.keys():
        known = ", ".join(rules)
        raise UserError(f"there is no rule {min(unknown)}; there are: documented, {known}")
    return [rule for name, rule in rules.items() if name in wanted]


def unchecked(part: type, check: str, words: str) -> type:
    """Return the rule that leaves out one check of a part; `words` say what is done without it."""
    return type(f"No{check}", (part,), {"__doc__": words, check: lambda *_: None})


def lacking(part: type, rules: Sequence[type], *extra: type) -> Any:
    """Return `part` without these rules, as far as they belong to this class."""
    own = [rule for rule in rules if issubclass(rule, part)]
    return type(f"Weakened{part.__name__}", (*extra, *own, part), {})


@flag_type("a list of rules like tag,echo")
def rule_list(text: str) -> list[str]:
    """Return the rules that one --without names. Raises WrongValue."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):  # as in --without tag, echo
        raise ValueError(text)
    return names


def glossary(rules: Rules, documented: Sequence[str]) -> Iterator[str]:
    """Yield lines about what --without takes: a name, and what is done without that rule."""
    meanings = {name: meaning(rule) for name, rule in rules.items()}
    meanings["documented"] = f"Follow the original documents, without {', '.join(documented)}"
    for name, words in {"rule": "what the endpoints do without it", **meanings}.items():
        line = f"{name:<22}{words}"
        yield textwrap.fill(line, 79, subsequent_indent=" " * 22, break_on_hyphens=False)


def meaning(rule: type) -> str:
    """Return the first sentence about a rule: of the class, or else of what it overrides."""
    parts = [part for part in vars(rule).values() if callable(part) or isinstance(part, property)]
    texts = [text for text in (rule.__doc__, *(part.__doc__ for part in parts)) if text]
    return " ".join(texts[0].split()).partition(". ")[0].rstrip(".")


def require_loopback(host: str) -> str:
    """Return the address to use, and refuse every host but this one. Raises UserError."""
    address = loopback_address(host)
    if not address:
        raise UserError(f"weakened endpoints work on loopback only, and {host} is not")
    return address
