"""An adversary as a program: its flags, its run between two honest sessions, its words."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from lab.catalogue import Attack, NotEnded, Stage
from lab.claims import Sets, read_sets
from lab.events import KINDS, Step, event_of, parsed, run_of, shown
from lab.frames import Frame, Log
from lab.observer import Event, Observer
from lab.rules import Names, expanded, glossary, rule_list
from lab.screen import as_typed, columns, painted, wrapped
from lab.verdict import Result, judge, should_win, summary
from program import (
    Parser,
    UserError,
    escaped,
    keep_inputs,
    output_path,
    plural,
    read_whole,
    reason_of,
    write_text,
)

NewLab = Callable[[argparse.Namespace, Log, Any, Observer | None], Stage]
MOST_BYTES = 3  # of a change that is shown byte by byte


@dataclass(frozen=True)
class Program:
    """What a protocol brings: its attacks, its lab, its weakened parts, how it names messages."""

    description: str
    attacks: Mapping[str, Attack]
    lab: NewLab  # of the options, a log, the parts (or None), and an observer (or None)
    weakened: str  # the module with RULES, DOCUMENTED, and `without`, which returns parts
    title: Callable[[bytes], str]
    beginning: str = ""  # what is said first
    add_flags: Callable[[Parser], None] = lambda parser: None
    module: str = "__main__"  # of the attacks, from which a student's file imports
    sets: Path | None = None  # sets.json, if there is one
    families: Mapping[str, Sequence[str]] = field(default_factory=dict)  # beside those of claims

    def insecure(self) -> ModuleType:
        """Return the module of weakened parts, which is loaded only when it is asked for."""
        return importlib.import_module(self.weakened)

    def run(self) -> int:
        """Run the attacks that the command line asks for, and return the exit code. UserError."""
        options, attacks = parse(self)
        if options.rules:
            weakened = self.insecure()
            print(*glossary(weakened.RULES, weakened.DOCUMENTED), sep="\n")
            return 0
        if options.list:
            for family, names in families_of(self.attacks.values()).items():
                print(f"{family}:")
                for name in names:
                    line = f"  {name:<28}{self.attacks[name].story}"
                    print(textwrap.fill(line, columns(), subsequent_indent=30 * " "))
            return 0
        teller = Teller(self, options)
        logging.disable()  # refusals are told here
        try:
            results = play_all(self, options, attacks, teller)
        finally:
            logging.disable(logging.NOTSET)
        teller.say(f"honest session last: worked\n\n{summary(results)}")
        if options.events:
            write_text(options.events, "".join(json.dumps(event) + "\n" for event in teller.events))
        return int(any(result.kind in ("won", "wrong") for result in results))


def parse(program: Program) -> tuple[argparse.Namespace, list[Attack]]:
    """Return the options, and the attacks that they ask for. Raises UserError."""
    parser = Parser(program.description)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="attacks, told in detail, or families"
    )
    parser.add_argument("--list", action="store_true", help="name all attacks, and stop")
    parser.add_argument("--file", metavar="FILE", help="attacks of your own, beside the others")
    parser.add_argument(
        "--events", type=output_path, metavar="FILE", help="write what happened, as lines of JSON"
    )
    parser.add_argument("--json", action="store_true", help="print results as lines of JSON")
    parser.add_argument("-v", "--verbose", action="store_true", help="all attacks in detail")
    parser.add_argument("--step", action="store_true", help="wait for Enter before each attack")
    parser.add_argument(
        "--without",
        type=rule_list,
        action="extend",
        metavar="A,B",
        help="take rules out of the lab's endpoints",
    )
    parser.add_argument("--rules", action="store_true", help="name what --without takes, and stop")
    program.add_flags(parser)
    options = parser.options()
    keep_inputs(options.events, options.file)
    own = [] if options.file is None else added_by(options.file, program)
    names: list[str] = []
    families = {**families_of(program.attacks.values()), **program.families}
    for name in options.names or own or program.attacks:
        names += families.get(name, [name])
    if unknown := {*names} - program.attacks.keys():
        raise UserError(f"no attack is named {min(unknown)}; --list names them all")
    return options, [program.attacks[name] for name in dict.fromkeys(names)]


def families_of(attacks: Iterable[Attack]) -> dict[str, list[str]]:
    """Return the names of attacks by family, both in the order of the catalogue."""
    families: dict[str, list[str]] = {}
    for attack in attacks:
        families.setdefault(attack.family, []).append(attack.name)
    return families


def added_by(path: str, program: Program) -> list[str]:
    """Run a file whose decorators add attacks to the catalogue; return their names. UserError."""
    sys.modules.setdefault(program.module, sys.modules["__main__"])  # for imports from the file
    known = [*program.attacks]
    try:
        text = read_whole(Path(path))
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}") from None
    try:
        exec(compile(text, path, "exec"), {"__name__": program.module, "__file__": path})
    except (Exception, SystemExit) as error:
        lines = [n.lineno for n in traceback.extract_tb(error.__traceback__) if n.filename == path]
        where = f" line {lines[-1]}" if lines else ""
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path}{where}: {words}") from None
    if own := [name for name in program.attacks if name not in known]:
        return own
    raise UserError(f"there is no attack in {path}: put @on_path(...) or @outside(...) before one")


class Teller:
    """Tells of attacks as the command line asks, and keeps the event log [EVENTS.md]."""

    def __init__(self, program: Program, options: argparse.Namespace) -> None:
        self._program = program
        self._options = options
        named = [name for name in options.names if name in program.attacks]
        self._is_detailed = bool(options.verbose or named or options.file)
        self.observer = Observer() if options.events else None
        self.events: list[Event] = []
        self.attack = ""  # the one that is going on

    def log(self, deed: str, frame: Frame) -> None:
        """Note what happened to a frame."""
        event: Event = {
            "attack": self.attack,
            "event": event_of(deed),
            "to": frame.to,
            "message": frame.message.hex(),
        }
        if deed != "sent":
            event["deed"] = deed
        if frame.origin:
            event["origin"] = frame.origin.message.hex()
        self.events.append(event)

    def say(self, text: str, kind: str = "") -> None:
        """Print for a person, in the colour of a kind if there is one; with --json nothing."""
        if not self._options.json:
            shown = wrapped("\n".join(map(escaped, text.split("\n"))))  # before it has a colour
            print(painted(shown, kind) if kind else shown, flush=True)

    def play(self, attack: Attack, lab: Stage, can_win: bool | None = False) -> Result:
        """Run one attack, and tell of it; `can_win` as for `judge`."""
        if self._options.step:
            stream = sys.stderr if self._options.json else sys.stdout
            print(f"Enter starts {attack.name} ", end="", file=stream, flush=True)
            input()
        self.attack = attack.name
        begin = len(self.events)
        rounds = lab.rounds
        lab.suffer(attack)
        result = judge(attack, lab, can_win)
        if self._options.json:
            print(json.dumps({**result._asdict(), "attack": attack.name}), flush=True)
        elif self._is_detailed:
            self.say(details(result, self.events[begin:], lab, self._program.title) + "\n")
        else:
            kind = "" if result.kind == "refused" else result.kind
            self.say(f"{attack.story:<53}{result.words}", kind)
        self._conclude(result, lab, lab.rounds - rounds)
        return result

    def _conclude(self, result: Result, lab: Stage, rounds: int) -> None:
        attack = result.attack
        own = ["--file", as_typed(self._options.file)] if self._options.file else []
        ended = [
            {"event": "ended", "by": who, "error": type(error).__name__}
            for who, errors in endings(lab.outcome).items()
            for error in errors
        ]
        judged = {
            "event": "judged",
            **result._asdict(),
            "attack": attack.name,
            "story": attack.story,
            "claim": attack.family,
            "noticed": attack.noticed,
            "without": ",".join(self._options.without or []),
            "again": " ".join([lab.again, *own]).strip(),
            "bystanders": rounds,
        }
        noted = self.observer.told() if self.observer else []
        for event in (*noted, *sorted(ended, key=repr), judged):
            self.events.append({"attack": attack.name, **event})


def play_all(
    program: Program, options: argparse.Namespace, attacks: Sequence[Attack], teller: Teller
) -> list[Result]:
    """Run attacks between two honest sessions. Raises UserError."""
    parts = None
    taken: Names = frozenset()
    if options.without is not None:
        weakened = program.insecure()
        taken = expanded(options.without, weakened.DOCUMENTED)
        parts = weakened.without(taken)
    found = read_sets(program.sets) if taken and program.sets else Sets(0, {}, {})
    results: list[Result] = []
    if program.beginning:
        teller.say(program.beginning)
    with program.lab(options, teller.log, parts, teller.observer) as lab:
        where = f" ({lab.where})" if lab.where else ""
        teller.say(f"honest session first: worked{where}")
        for attack in attacks:
            if reason := lab.obstacle(attack):
                teller.say(f"{attack.name}: skipped, {reason}")
                continue
            can_win = should_win(attack.name, taken, found) if taken else False
            results.append(teller.play(attack, lab, can_win))
            if lab.is_foreign and lab.harm:  # the server is gone or slow: no verdict means anything
                break
            if isinstance(lab.outcome.broken, NotEnded):  # it would meddle with the next one
                break
        lab.attack = ""
        lab.honest_session()
    return results


# Details of one attack ----------------------------------------------------------------------------


def endings(outcome: Any) -> dict[str, list[Exception]]:
    """Return the errors that ended sessions: all errors, where every refusal ends one."""
    ended: dict[str, list[Exception]] = getattr(outcome, "ended", outcome.errors)
    return ended


def details(
    result: Result, events: Sequence[Event], lab: Stage, title: Callable[[bytes], str]
) -> str:
    """Return some 20 lines: what went over the wire, what was done to it, and who refused it."""
    lines = [f"{result.attack.name}: {result.attack.story}"]
    steps = run_of([parsed(event) for event in events]).steps if events else []
    for number, step in shown(steps):
        lines += told(step, title) if step else [f"  ... {plural(number, 'message')} more ..."]
    ended = endings(lab.outcome)
    for who, errors in lab.outcome.errors.items():
        refused = [error for error in errors if error not in ended[who]]
        lines += [f"  {who} refused: {error}" for error in refused[:1]]
        lines += [f"  {who} ended: {error}" for error in ended[who][:1]]
    return "\n".join([*lines, f"  {result.words}"])


def told(step: Step, title: Callable[[bytes], str]) -> list[str]:
    """Return a line about a step, and one for each byte that was changed if these are few."""
    message = step.sent if step.comes_in else step.arrived
    size = len(step.arrived or step.sent)
    lines = [f"  to {step.to}: {title(message)}, {plural(size, 'byte')}, {KINDS[step.kind]}"]
    pairs = list(enumerate(zip(step.sent, step.arrived)))
    touched = [(place, old, new) for place, (old, new) in pairs if old != new]
    if len(step.sent) == len(step.arrived) and len(touched) <= MOST_BYTES:
        lines += [f"    byte {place}: {old:02x} -> {new:02x}" for place, old, new in touched]
    return lines
