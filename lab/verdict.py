"""How an attack ended: what the victims did, compared with what they should have done.

A verdict rests on states and typed errors, never on whether bytes came back or on the text of a
log. What is noticed but not prevented is not called refused.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from lab.catalogue import Attack, Stage


class Result(NamedTuple):
    """How one attack ended."""

    attack: Attack
    as_expected: bool
    words: str
    won: str


def judge(attack: Attack, lab: Stage) -> Result:
    """Compare what the victims did with what they should have done."""
    who, expected, met, won = lab.evidence(attack)
    if broken := lab.outcome.broken:
        return Result(attack, False, f"the attack raised {type(broken).__name__}: {broken}", won)
    if not lab.bystanders_go_on():
        return Result(attack, False, "a bystander was harmed", won)
    if won and not attack.noticed:
        return Result(attack, False, f"WON: {won}", won)
    if expected and expected not in met:  # without some rules another check may refuse as well
        is_refused = lab.is_weakened and bool({*met} - {"PeerTerminated", "ConnectionCut"})
        return Result(attack, is_refused, f"{who}: {[*met, 'nothing'][0]}", won)
    if attack.noticed:
        return Result(attack, True, "not prevented", won)
    return Result(attack, True, f"{who}: {expected}" if expected else "nothing learned", won)


def summary(results: Sequence[Result]) -> str:
    """Return a table by family, and who notices the attacks that nothing prevents."""
    lines = [f"{'family':<14}{'attacks':>8}{'refused':>9}{'not prevented':>15}{'wrong':>7}"]
    for claim in dict.fromkeys(result.attack.claim for result in results):
        of_claim = [result for result in results if result.attack.claim == claim]
        wrong = sum(not result.as_expected for result in of_claim)
        noticed = sum(bool(result.attack.noticed) for result in of_claim if result.as_expected)
        refused = len(of_claim) - noticed - wrong
        lines.append(f"{claim:<14}{len(of_claim):>8}{refused:>9}{noticed:>15}{wrong:>7}")
    for attack, _, _, won in results:
        if attack.noticed:
            also = f"; won: {won}" if won else ""
            lines.append(f"{attack.name}: noticed by {attack.noticed}{also}")
    return "\n".join(line for text in lines for line in textwrap.wrap(text, 79))
