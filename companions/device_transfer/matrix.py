"""Attack x defences: the smallest sets of rules without which an attack wins, found by search.

    python -m companions.device_transfer.matrix

Every try is a lab on real sockets. An attack that fails is tried again with one more rule taken
out: one whose check refused something in that try, or one that is no check (a key, an IV, a
formula). A check that refused nothing can be taken out without changing a byte, so no smallest set
is left out.
"""
from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Sequence
from multiprocessing.pool import Pool
from typing import Any

from classroom.matrix import Names, Task, markdown, progress, search, table, workers
from companions.device_transfer.attacks import ATTACKS, Lab, Parts, Pki
from companions.device_transfer.weakened import ELEMENTS, without
from endpoint import Parser, UserError, positive, run_program
from protocol_fsm import LocalError, ProtocolError

Found = dict[str, list[Names]]  # the smallest sets, by attack
TRIES = 3  # garbage unpads well once in 256: a set has to win every time
REDUNDANT: dict[str, str] = {  # why an element is in no set; whatever is in one must not be here
    "session-id": "each session has keys of its own, so that another one's record has no good tag",
    "turn": "only who has the keys can say something out of turn, and would harm itself alone",
}

# One try ------------------------------------------------------------------------------------------

@functools.cache
def pki() -> Pki:
    """Return the keys of this process: making them takes longer than a try."""
    return Pki()

def heard(part: Any, said_no: set[str]) -> Any:
    """Return the class, with a note in `said_no` of each method that refuses something."""
    def listening_to(name: str) -> Callable[..., Any]:
        rule = getattr(part, name)

        def method(end: Any, *arguments: Any, **options: Any) -> Any:
            try:
                return rule(end, *arguments, **options)
            except ProtocolError:
                said_no.add(name)
                raise

        return method

    return type("Heard", (part,), {name: listening_to(name) for name in CHECKS
                                   if hasattr(part, name)})

CHECKS = {name for rule in ELEMENTS.values() for name in vars(rule)
          if name.startswith("_check_") or name == "final_name"}

def matters(rule: type, said_no: set[str]) -> bool:
    """Tell if a rule could change a try in which these checks refused something."""
    methods = {name for name, value in vars(rule).items()
               if callable(value) and (name == "__init__" or name[:2] != "__")}
    return bool(methods - CHECKS or methods & said_no)

def trial(task: Task) -> list[tuple[str, Names, bool, Names]]:
    """Run attacks without some rules: which one won, and what could yet change that."""
    (taken, names), said_no = task, set[str]()
    parts = Parts(*without(taken))
    listening = parts._replace(**{name: heard(getattr(parts, name), said_no)
                                  for name in ("session", "trust", "incoming", "store")})
    results, left = [], [*names]
    while left:
        try:
            with Lab(lambda *_: None, listening, None, pki()) as lab:
                while left:
                    name, won = left.pop(0), ""
                    said_no.clear()
                    with contextlib.suppress(ProtocolError, LocalError, UserError):
                        outcome: Any = lab.suffer(ATTACKS[name])
                        won = ATTACKS[name].goal(outcome)
                    relevant = {element for element, rule in ELEMENTS.items()
                                if matters(rule, said_no)}
                    results.append((name, taken, bool(won), frozenset(relevant - taken)))
                    if won or not lab.bystanders_go_on():
                        break
        except UserError:  # without these rules even honest sessions fail
            return results
    return results

# The search ---------------------------------------------------------------------------------------

def confirmed(found: Found, pool: Pool) -> Found:
    """Return the sets with which the attack wins every time."""
    tasks = [(taken, (name,)) for name, sets in found.items() for taken in sets] * (TRIES - 1)
    lost = {(name, taken) for results in progress("again", pool.imap(trial, tasks), tasks)
            for name, taken, won, _ in results if not won}
    order = [*ELEMENTS]
    return {name: sorted((taken for taken in sets if (name, taken) not in lost),
                         key=lambda names: (len(names), sorted(map(order.index, names))))
            for name, sets in found.items()}

def matrix(names: Sequence[str], size: int) -> Found:
    """Return the smallest sets for each attack that something prevents."""
    prevented = [name for name in names if not ATTACKS[name].noticed]
    with workers(4) as pool:  # they wait most of the time
        return confirmed(search(prevented, size, pool, trial), pool)

# Showing it ---------------------------------------------------------------------------------------

def shown(names: Names) -> str:
    return "{" + ", ".join(name for name in ELEMENTS if name in names) + "}"

def verdict(name: str, found: Found, size: int) -> str:
    if ATTACKS[name].noticed:
        return f"not prevented (noticed by {ATTACKS[name].noticed})"
    return " ".join(map(shown, found[name])) or f"no set of up to {size} rules found"

def unused(found: Found) -> dict[str, str]:
    """Return the elements that are in no set, and why."""
    used = {element for sets in found.values() for taken in sets for element in taken}
    return {name: REDUNDANT.get(name, "(no reason is known)")
            for name in ELEMENTS if name not in used}

def main() -> int:
    parser = Parser("Which rules must be missing for which attack to win.", is_endpoint=False)
    parser.add_argument("--attack", action="append", metavar="NAME", help="only this one")
    parser.add_argument("--size", type=positive, default=3, help="of sets; default 3")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one object")
    form.add_argument("--markdown", action="store_true", help="print tables for SECURITY.md")
    options = parser.options()
    names = options.attack or [*ATTACKS]
    if unknown := set(names) - ATTACKS.keys():
        raise UserError(f"no attack is named {min(unknown)}; attacks.py --list names them all")
    found = matrix(names, options.size)
    spare = {} if options.attack or options.size < 3 else unused(found)
    if options.json:
        print(json.dumps({
            "sets": {name: [[n for n in ELEMENTS if n in taken] for taken in sets]
                     for name, sets in found.items()},
            "not_prevented": {name: ATTACKS[name].noticed for name in names if name not in found},
            "redundant": spare}, indent=1))
        return 0
    show = markdown if options.markdown else table
    rows = {name: verdict(name, found, options.size) for name in names}
    print(show({"attack": "minimal sets of rules without which it wins", **rows}))
    print(end="\n" + show({"redundant here": "because", **spare}) + "\n" if spare else "")
    return 0

if __name__ == "__main__":
    run_program(main)
