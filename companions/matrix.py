"""Attack x defences for a companion: the smallest sets of rules without which an attack wins.

Every try is a lab on real sockets. An attack that fails is tried again with one more rule taken
out: one whose check refused something in that try, or one that is no check (a key, an IV, a
formula). A check that refused nothing can be taken out without changing a byte, so no smallest set
is left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

from classroom.matrix import Names, Task, as_sets, progress, search, table, workers
from classroom.output import write_whole
from lab.catalogue import Attack
from lab.claims import as_json, read_claims
from program import Parser, UserError, positive
from protocol_fsm import LocalError, ProtocolError

Found = dict[str, list[Names]]  # the smallest sets, by attack
Tried = list[tuple[str, Names, bool, Names]]  # attack, what was taken out, won, what could help
TRIES = 3  # garbage passes for something now and then: a set has to win every time


@dataclass(frozen=True)
class Matrix:
    """A companion's attacks and rules, and how to try them.

    `parts` gives the parts of a lab without some rules, `lab` a lab of such parts, and `heard` are
    those among them that have checks. `folder` has claims.toml and sets.json.
    """

    attacks: Mapping[str, Attack]
    elements: Mapping[str, type]
    parts: Callable[[Names], Any]
    lab: Callable[[Any], Any]
    heard: tuple[str, ...]
    folder: Path
    also_checks: tuple[str, ...] = ()  # methods that refuse, whatever their names
    per_core: int = 4  # processes, which wait most of the time

    @property
    def checks(self) -> set[str]:
        return {
            name
            for rule in self.elements.values()
            for name in vars(rule)
            if name.startswith("_check_") or name in self.also_checks
        }

    # One try

    def listening(self, part: Any, said_no: set[str]) -> Any:
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

        return type(
            "Listening",
            (part,),
            {name: listening_to(name) for name in self.checks if hasattr(part, name)},
        )

    def matters(self, rule: type, said_no: set[str]) -> bool:
        """Tell if a rule could change a try in which these checks refused something."""
        methods = {
            name
            for name, value in vars(rule).items()
            if callable(value) and (name == "__init__" or name[:2] != "__")
        }
        return bool(methods - self.checks or methods & said_no)

    def trial(self, task: Task) -> Tried:
        """Run attacks without some rules: which one won, and what could yet change that."""
        (taken, names), said_no = task, set[str]()
        parts = self.parts(taken)
        parts = parts._replace(
            **{name: self.listening(getattr(parts, name), said_no) for name in self.heard}
        )
        results = Tried()
        left = [*names]
        while left:
            try:
                with self.lab(parts) as lab:
                    while left:
                        name = left.pop(0)
                        won = ""
                        said_no.clear()
                        with contextlib.suppress(ProtocolError, LocalError, UserError):
                            outcome: Any = lab.suffer(self.attacks[name])
                            won = self.attacks[name].goal(outcome)
                        relevant = {
                            element
                            for element, rule in self.elements.items()
                            if self.matters(rule, said_no)
                        }
                        results.append((name, taken, bool(won), frozenset(relevant - taken)))
                        if won or not lab.bystanders_go_on():
                            break
            except UserError:  # without these rules even honest sessions fail
                return results
        return results

    # The search

    def confirmed(self, found: Found, pool: Pool, trial: Callable[[Task], Tried]) -> Found:
        """Return the sets with which the attack wins every time."""
        tasks = [(taken, (name,)) for name, sets in found.items() for taken in sets] * (TRIES - 1)
        lost = {
            (name, taken)
            for results in progress("again", pool.imap(trial, tasks), tasks)
            for name, taken, won, _ in results
            if not won
        }
        order = [*self.elements]
        return {
            name: sorted(
                (taken for taken in sets if (name, taken) not in lost),
                key=lambda names: (len(names), sorted(map(order.index, names))),
            )
            for name, sets in found.items()
        }

    def search(self, names: list[str], size: int, trial: Callable[[Task], Tried]) -> Found:
        """Return the smallest sets for each attack that something prevents.

        `trial` is that of this matrix, as a function of a module, which other processes can import.
        """
        prevented = [name for name in names if not self.attacks[name].noticed]
        with workers(self.per_core) as pool:
            return self.confirmed(search(prevented, size, pool, trial), pool, trial)

    # Showing it

    def shown(self, names: Names) -> str:
        return "{" + ", ".join(name for name in self.elements if name in names) + "}"

    def verdict(self, name: str, found: Found, size: int) -> str:
        if self.attacks[name].noticed:
            return f"not prevented (noticed by {self.attacks[name].noticed})"
        return " ".join(map(self.shown, found[name])) or f"no set of up to {size} rules found"

    def unused(self, found: Found) -> dict[str, str]:
        """Return the elements that are in no set, and why."""
        used = {element for sets in found.values() for taken in sets for element in taken}
        reasons = read_claims(self.folder).redundant
        return {
            name: reasons.get(name, "(no reason is known)")
            for name in self.elements
            if name not in used
        }

    def run(self, trial: Callable[[Task], Tried]) -> int:
        """Search for what the command line asks for, and print it. Raises UserError."""
        parser = Parser("Which rules must be missing for which attack to win.")
        parser.add_argument("--attack", action="append", metavar="NAME", help="only this one")
        parser.add_argument("--size", type=positive, default=3, help="of sets; default 3")
        form = parser.add_mutually_exclusive_group()
        form.add_argument("--json", action="store_true", help="print one object")
        form.add_argument("--write", action="store_true", help="write sets.json")
        options = parser.options()
        names = options.attack or [*self.attacks]
        is_whole = not options.attack and options.size >= 3
        if options.write and not is_whole:
            raise UserError("--write is for all attacks, and for sets of 3 rules or more")
        if unknown := set(names) - self.attacks.keys():
            raise UserError(f"no attack is named {min(unknown)}; attacks.py --list names them all")
        found = self.search(names, options.size, trial)
        text = as_json(as_sets(names, found, options.size, self.attacks, self.elements))
        if options.json:
            print(text, end="")
        elif options.write:
            write_whole(self.folder / "sets.json", text.encode())
        else:
            rows = {name: self.verdict(name, found, options.size) for name in names}
            print(table({"attack": "minimal sets of rules without which it wins", **rows}))
            if is_whole:
                print("\n" + table({"redundant here": "because", **self.unused(found)}))
        return 0
