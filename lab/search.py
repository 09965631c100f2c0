"""The search for minimal sets: the smallest sets of rules without which an attack wins.

It begins with nothing taken out. An attack that fails is tried again with one more rule taken out:
one whose check refused something in that try, or one that is no check (a key, an IV, a formula). A
check that refused nothing can be taken out without changing a byte, so no minimal set is missed.
Nothing here knows a protocol: each brings its attacks, its rules, its lab, and claims.toml.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import textwrap
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from channel import EndRequested
from lab.catalogue import Attack, Stage
from lab.claims import Sets, as_json, read_claims
from lab.rules import Names, Rules
from program import Parser, UserError, output_path, plural, positive, starting, write_text
from protocol_fsm import LocalError, ProtocolError

Task = tuple[Names, tuple[str, ...]]  # what to take out, and the attacks to try then
Found = dict[str, list[Names]]  # the minimal sets, by attack
Order = TypeVar("Order")  # what a worker is given
Done = TypeVar("Done")
MOST_WORKERS = 60  # Windows cannot wait for the ends of many more
TRIES = 3  # garbage may look valid by chance: a set has to win every time


# Trying -------------------------------------------------------------------------------------------


class Tried(NamedTuple):
    """How an attack went without some rules."""

    attack: str
    taken: Names
    won: bool
    relevant: Names  # rules whose removal, too, could change that


@dataclass(frozen=True)
class Trials:
    """How the attacks of a protocol are tried.

    `parts` gives the parts of a lab without some rules, and `lab` a lab of such parts for the try
    of this number. `heard` are the parts that have checks: methods named _check_..., fail, and
    `also_checks`. `idle` names rules that, by the outcome of a try, had nothing to do in it.
    """

    attacks: Mapping[str, Attack]
    rules: Rules
    parts: Callable[[Names], Any]
    lab: Callable[[Any, int], Stage]
    heard: tuple[str, ...] = ()
    also_checks: tuple[str, ...] = ()
    idle: Callable[[Any], Names] = lambda outcome: Names()
    tries: int = TRIES

    @cached_property
    def checks(self) -> set[str]:
        """The methods that refuse something or let it pass, or are told that it was refused."""
        return {
            name
            for rule in self.rules.values()
            for name in vars(rule)
            if name.startswith("_check_") or name in ("fail", *self.also_checks)
        }

    def trial(self, task: Task) -> list[Tried]:
        """Run attacks without some rules; return which won every time, and what could change it."""
        taken, names = task
        relevant = dict.fromkeys(names, Names())
        left = names
        for number in range(self.tries):
            winners = []
            for name, won, could_help in self._played(taken, left, number):
                relevant[name] |= could_help
                if won:
                    winners.append(name)
            left = tuple(winners)
        return [Tried(name, taken, name in left, relevant[name] - taken) for name in names]

    def _played(
        self, taken: Names, names: Sequence[str], number: int
    ) -> Iterator[tuple[str, bool, Names]]:
        """Yield for each attack whether it won, and what could change that.

        Without some rules even honest sessions fail: then there is nothing to yield.
        """
        said_no: set[str] = set()
        parts = self.parts(taken)
        heard = {name: listening(getattr(parts, name), self.checks, said_no) for name in self.heard}
        left = [*names]
        with contextlib.suppress(UserError):
            while left:
                with self.lab(parts._replace(**heard), number) as lab:
                    while left:
                        name = left.pop(0)
                        said_no.clear()
                        won = wins(self.attacks[name], lab)
                        yield name, won, self.relevant(said_no) - self.idle(lab.outcome)
                        if won or not lab.bystanders_go_on():
                            break  # the lab may be in ruins, so the next attack gets a new one

    def relevant(self, said_no: set[str]) -> Names:
        """Return the rules that could change a try in which these checks refused something."""
        return frozenset(name for name, rule in self.rules.items() if self._matters(rule, said_no))

    def _matters(self, rule: type, said_no: set[str]) -> bool:
        methods = {
            name
            for name, value in vars(rule).items()
            if callable(value) and (name == "__init__" or not name.startswith("__"))
        }
        return bool(methods - self.checks or methods & said_no)


def wins(attack: Attack, lab: Stage) -> bool:
    """Return whether an attack reaches its goal. What it raises by mistake is raised."""
    try:
        outcome = lab.suffer(attack)
    except (ProtocolError, LocalError, EndRequested, UserError):
        return False
    if outcome.broken:  # which must not look like a defence
        raise outcome.broken
    return bool(attack.goal(outcome))


def listening(part: Any, checks: set[str], said_no: set[str]) -> Any:
    """Return a subclass that notes in `said_no` each check that refuses something."""

    def listening_to(name: str) -> Callable[..., Any]:
        check = getattr(part, name)

        def method(*arguments: Any, **options: Any) -> Any:
            if name == "fail":
                said_no.add(name)
            try:
                return check(*arguments, **options)
            except (ProtocolError, EndRequested):
                said_no.add(name)
                raise

        return method

    heard = {name: listening_to(name) for name in checks if hasattr(part, name)}
    return type(f"Listening{part.__name__}", (part,), heard)


# Searching ----------------------------------------------------------------------------------------


def search(
    names: Sequence[str], size: int, pool: Pool, trial: Callable[[Task], list[Tried]]
) -> Found:
    """Return the minimal sets for each attack, the smallest first, up to `size` rules.

    `trial` is a function of a module, which other processes can import. Its mistakes come back as
    a RuntimeError.
    """
    found: Found = {name: [] for name in names}
    tries: dict[Names, set[str]] = {frozenset(): set(names)}
    for count in range(size + 1):
        larger: dict[Names, set[str]] = defaultdict(set)
        tasks = tasks_of(tries, found)
        done = pool.imap_unordered(Told(trial), tasks)
        for results in progress(f"{plural(count, 'rule')} less", done, tasks):
            for tried in results:
                if tried.won:
                    found[tried.attack].append(tried.taken)
                    continue
                for rule in tried.relevant:
                    larger[tried.taken | {rule}].add(tried.attack)
        tries = larger
    return found


def tasks_of(tries: Mapping[Names, set[str]], found: Found) -> list[Task]:
    """Return what is still to be tried: no superset of a set that wins."""
    tasks = []
    for taken, names in tries.items():
        left = [
            name
            for name, sets in found.items()
            if name in names and not any(smaller < taken for smaller in sets)
        ]
        if left:
            tasks.append((taken, tuple(left)))
    return tasks


def progress(what: str, done: Iterator[Done], tasks: Sequence[object]) -> Iterator[Done]:
    """Show progress on stderr: in one changing line on a terminal, else in a line at the end."""
    is_terminal = sys.stderr.isatty()
    if is_terminal:
        say(f"{what + ':   0% of ' + str(len(tasks)):<60}\r")
    for number, result in enumerate(done, 1):
        if is_terminal:
            say(f"\r{'':60}\r")  # other output has the line to itself
        yield result
        line = f"{what}: {100 * number // len(tasks):>3}% of {len(tasks)}"
        if number == len(tasks):
            say(f"{line}\n")
        elif is_terminal:
            say(f"{line:<60}\r")


def say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


@dataclass(frozen=True)
class Told(Generic[Order, Done]):
    """A module's function for a pool's workers, whose mistakes come back in words.

    An exception whose constructor takes more than a message would stop the pool for ever: the
    parent cannot rebuild it.
    """

    function: Callable[[Order], Done]

    def __call__(self, task: Order) -> Done:
        try:
            return self.function(task)
        except UserError:
            raise
        except Exception as error:
            words = f"{type(error).__name__}: {error}, in {task}"
        raise RuntimeError(words)


SPAWN = multiprocessing.get_context("spawn")  # the same on all systems


def begin(folder: str, prepare: Callable[..., object] | None, *arguments: object) -> None:
    """Make a worker leave signals to its parent, and be silent about what attacks break in it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "win32":  # a signal to all of us would kill it with a lock of the pool
        os.setpgid(0, 0)
    logging.disable()
    threading.excepthook = lambda _: None
    tempfile.tempdir = folder
    if prepare:
        prepare(*arguments)


@contextlib.contextmanager
def workers(
    per_core: int, prepare: Callable[..., object] | None = None, *arguments: object
) -> Iterator[Pool]:
    """Give a pool of processes, each prepared by a call.

    Their labs' folders are in one of the parent's, because a worker may be killed at any time.
    """
    count = min(per_core * (os.cpu_count() or 1), MOST_WORKERS)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        with starting():
            pool = SPAWN.Pool(count, begin, (folder, prepare, *arguments))
        with pool:
            yield pool
            pool.close()  # in good order: a worker killed with a lock of the pool stops the others
            pool.join()


def find(
    trial: Callable[[Task], list[Tried]], per_core: int, names: Sequence[str], size: int
) -> Found:
    """Return the minimal sets of each attack, searched in so many processes for each core."""
    with workers(per_core) as pool:
        return search(names, size, pool, trial)


# Showing ------------------------------------------------------------------------------------------


def shown(taken: Names, rules: Rules) -> str:
    """Return a set as it is printed, in the order of the rules."""
    return "{" + ", ".join(name for name in rules if name in taken) + "}"


def table(rows: Mapping[str, str]) -> str:
    """Return two columns, in lines of at most 80."""
    lines = []
    for name, text in rows.items():
        lines += textwrap.wrap(
            f"{name:<25} {text}",
            80,
            subsequent_indent=" " * 26,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class Matrix:
    """The program around a search: a table, JSON, and the sets.json of a folder.

    `find` searches for the minimal sets of these attacks, which something prevents, up to a size.
    """

    attacks: Mapping[str, Attack]
    rules: Rules
    folder: Path  # of claims.toml and sets.json
    find: Callable[[Sequence[str], int], Found]
    size: int = 3  # of the largest sets, if the command line asks for no other

    def run(self) -> int:
        """Search for what the command line asks for, and print or write it. Raises UserError."""
        parser = Parser("Which rules must be missing for which attack to win.")
        parser.add_argument("--attack", action="append", metavar="NAME", help="only this one")
        parser.add_argument(
            "--size", type=positive, default=self.size, help=f"of sets; default {self.size}"
        )
        form = parser.add_mutually_exclusive_group()
        form.add_argument("--json", action="store_true", help="print one object")
        form.add_argument("--write", action="store_true", help="write sets.json")
        options = parser.options()
        names = options.attack or [*self.attacks]
        output = self.folder / "sets.json"
        is_whole = not options.attack and options.size >= self.size
        if options.write and not is_whole:
            raise UserError(
                f"--write is for all attacks, and for sets of {plural(self.size, 'rule')} or more"
            )
        if unknown := set(names) - self.attacks.keys():
            raise UserError(f"no attack is named {min(unknown)}; attacks.py --list names them all")
        if options.write:
            output_path(str(output))  # tried now, not after minutes of work
        say(
            f"searching for sets of up to {plural(options.size, 'rule')}, "
            "which may take minutes ...\n"
        )
        found = self.found(names, options.size)
        if options.json:
            print(as_json(found), end="")
        elif options.write:
            write_text(output, as_json(found))
        else:
            print(self.text(found, is_whole))
        return 0

    def found(self, names: Sequence[str], size: int) -> Sets:
        """Return the minimal sets of attacks, in the order of the rules."""
        prevented = [name for name in names if not self.attacks[name].noticed]
        noticed = {name: self.attacks[name].noticed for name in names if name not in prevented}
        found = self.find(prevented, size)
        return Sets(size, {name: self._ordered(found[name]) for name in prevented}, noticed)

    def _ordered(self, sets: Sequence[Names]) -> list[list[str]]:
        order = [*self.rules]
        ordered = [sorted(taken, key=order.index) for taken in sets]
        return sorted(
            ordered, key=lambda rules: (len(rules), [order.index(rule) for rule in rules])
        )

    def text(self, found: Sets, is_whole: bool) -> str:
        """Return the table. Only a whole search can call a rule redundant."""
        rows = {"attack": "minimal sets of rules without which it wins"}
        for name in self.attacks:
            if name in found.not_prevented:
                rows[name] = f"not prevented (noticed by {found.not_prevented[name]})"
            elif name in found.sets:
                sets = [shown(frozenset(taken), self.rules) for taken in found.sets[name]]
                rows[name] = " ".join(sets) or f"no set of up to {plural(found.size, 'rule')} found"
        if not is_whole:
            return table(rows)
        reasons = read_claims(self.folder).redundant
        spare = {rule: reasons.get(rule, "(no reason is known)") for rule in self.unused(found)}
        return table(rows) + "\n\n" + table({"redundant here": "because", **spare})

    def unused(self, found: Sets) -> list[str]:
        """Return the rules that are in no minimal set."""
        used = {rule for sets in found.sets.values() for taken in sets for rule in taken}
        return [rule for rule in self.rules if rule not in used]
