"""How an attack ended: what the victims did, compared with what they should have done.

A verdict rests on states and typed errors, never on whether bytes came back or on the text of a
log. What is noticed but not prevented is not called refused. What an attack wins is compared with
exactly what it should win: with all rules in place `Attack.wins`, else as sets.json says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lab.catalogue import Attack, NotEnded, Stage
from lab.claims import Sets
from lab.rules import Names
from program import escaped


class Result(NamedTuple):
    """How one attack ended."""

    attack: Attack
    as_expected: bool
    words: str
    won: str

    @property
    def kind(self) -> str:
        return kind_of(self.as_expected, self.attack.noticed, self.won)


KINDS = ("refused", "not prevented", "won", "wrong")


def kind_of(as_expected: bool, noticed: str, won: str) -> str:
    """Return one of KINDS. An attack is *won* only without rules: with all of them it is wrong."""
    if not as_expected:
        return "wrong"
    if noticed:
        return "not prevented"
    return "won" if won else "refused"


def should_win(attack: str, taken: Names, found: Sets) -> bool | None:
    """Return whether an attack should win without these rules; None if the search left it open.

    Without more rules than a minimal set it may fail all the same, because the victims may not
    come as far. Sets larger than those searched, and attacks of one's own, are open, too.
    """
    if attack not in {**found.sets, **found.not_prevented}:
        return None
    sets = [frozenset(rules) for rules in found.sets.get(attack, [])]
    if taken in sets:
        return True
    if len(taken) > found.size or any(rules < taken for rules in sets):
        return None
    return False


def judge(attack: Attack, lab: Stage, can_win: bool | None = False) -> Result:
    """Compare what the victims did, and what was won, with what should have been.

    `can_win`: more than `Attack.wins`, because rules are missing; None if either may happen.
    """
    who, expected, met, won = lab.evidence(attack)

    def judged(as_expected: bool, words: str) -> Result:
        return Result(attack, as_expected, escaped(words), won)

    if isinstance(broken := lab.outcome.broken, NotEnded):
        return judged(False, "the attack has not ended")
    if broken:
        return judged(False, f"the attack raised {type(broken).__name__}: {broken}")
    if not lab.bystanders_go_on():
        return judged(False, "a bystander was harmed")
    if won and won != attack.wins:
        return judged(can_win is not False, f"WON: {won}")
    if can_win or won != attack.wins:
        return judged(False, "won nothing, but should have")
    if expected and expected not in met:
        if not lab.is_weakened:
            return judged(False, f"{who}: {[*met, 'nothing'][0]}")
        # without some rules another check may refuse, or none: what counts is what was won
        refusals = [name for name in met if name not in ("PeerTerminated", "ConnectionCut")]
        return judged(True, f"{who}: {refusals[0]}" if refusals else "nothing won")
    if not lab.is_weakened and lab.has_harmed_victim(attack):
        return judged(False, "the victim was harmed")
    if attack.noticed:
        return judged(True, "not prevented")
    return judged(True, f"{who}: {expected}" if expected else "nothing learned")


def summary(results: Sequence[Result]) -> str:
    """Return a table by family, and who notices the attacks that nothing prevents."""
    row = "{:<14}{:>8}{:>9}{:>15}{:>6}{:>7}"
    lines = [row.format("family", "attacks", *KINDS)]
    for family in dict.fromkeys(result.attack.family for result in results):
        kinds = [result.kind for result in results if result.attack.family == family]
        lines.append(row.format(family, len(kinds), *(kinds.count(kind) for kind in KINDS)))
    for result in results:
        if result.attack.noticed:
            also = f"; won: {result.won}" if result.won else ""
            lines.append(f"{result.attack.name}: noticed by {result.attack.noticed}{also}")
    return "\n".join(lines)
