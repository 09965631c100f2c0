"""What the companions' adversaries share: a catalogue, its telling, and the program around it.

A companion has a lab, in which victims live a session under attack, and a catalogue of attacks on
it. The verdicts, the summary and the event log are those of the core's attacks.py.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import textwrap
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, NamedTuple, Protocol

from attacks import Attack, CutHere, Frame, Frames, Result, judge, summary
from classroom.drawing import shown
from classroom.events import KINDS, Watch, run_of
from program import Parser, UserError, write_text
from protocol_fsm import LocalError, ProtocolError

Events = list[dict[str, Any]]


class LabLike(Protocol):
    """What a lab has to have."""

    outcome: Any
    attack: str  # that is going on
    rounds: int  # that the bystanders have done

    def suffer(self, attack: Attack) -> Any:
        """Let the victims live a session under attack, and return what became of it."""

    def bystanders_go_on(self) -> bool:
        """Tell whether who was not attacked goes on."""

    def honest_session(self) -> object:
        """Let the victims live a session in peace. Raises UserError."""


class Catalogue:
    """Attacks by name, each registered by a decorator; `goal` is what most of them want."""

    def __init__(self, goal: Callable[[Any], str]) -> None:
        self.attacks: dict[str, Attack] = {}
        self._goal = goal

    def attack(
        self, claim: str, who: str, error: type[Exception] | None, **options: Any
    ) -> Callable[[Any], Any]:
        """Register a generator over frames, or a function that takes only the lab."""

        def register(way: Any) -> Any:
            name = way.__name__.replace("_", "-")
            is_on_path = way.__code__.co_argcount == 2
            self.attacks[name] = Attack(
                name,
                way.__doc__,
                claim,
                way,
                is_on_path,
                who,
                error,
                **{"goal": self._goal, **options},
            )
            return way

        return register

    def change(
        self,
        claim: str,
        who: str,
        error: type[Exception],
        name: str,
        story: str,
        how: Callable[[Frame, Any], Frame | None],
        up_to: Callable[[Frames], Generator[Frame, None, Frame]],
        **options: Any,
    ) -> None:
        """Register an attack on one message: what `how` returns takes its place."""

        def way(frames: Frames, lab: Any) -> Frames:
            if changed := how((yield from up_to(frames)), lab):
                yield changed

        way.__name__ = name
        way.__doc__ = story
        self.attack(claim, who, error, **options)(way)


def attacked(attack: Attack, frames: Frames, lab: Any) -> Frames:
    """Yield what an attack makes of the frames, and log what it sees and does."""
    seen: list[Frame] = []

    def watched() -> Frames:
        for frame in frames:
            seen.append(frame)
            lab.log("sent", frame)
            yield frame

    wire = watched()
    with suppress(CutHere, ProtocolError, LocalError, RuntimeError):  # of a StopIteration
        for frame in itertools.chain(attack.run(wire, lab), wire):
            lab.log("delivered" if frame in seen else "inserted", frame)
            yield frame


# Rules that are taken out -------------------------------------------------------------------------


def chosen(
    names: Iterable[str], elements: dict[str, type], documented: Sequence[str]
) -> list[type]:
    """Return rules by their names; `documented` stands for several. Raises UserError."""
    wanted = {
        name for given in names for name in (documented if given == "documented" else (given,))
    }
    if unknown := wanted - elements.keys():
        raise UserError(
            f"there is no element {min(unknown)}; there are: documented, " + ", ".join(elements)
        )
    return [rule for name, rule in elements.items() if name in wanted]


def lacking(part: type, rules: Sequence[type], *extra: type) -> Any:
    """Return a class without the rules that are of this class."""
    own = [rule for rule in rules if issubclass(rule, part)]
    return type(f"Weakened{part.__name__}", (*extra, *own, part), {})


# Telling it ---------------------------------------------------------------------------------------


class Program(NamedTuple):
    """An adversary as a program."""

    description: str
    attacks: dict[str, Attack]
    lab: Callable[..., AbstractContextManager[Any]]  # of a log, the parts, and a watch
    parts: Callable[[Sequence[str]], Any]  # without some rules
    kind_name: Callable[[bytes], str]
    beginning: str = ""  # what is said first


def endings(outcome: Any) -> dict[str, list[Exception]]:
    """Return by which errors sessions ended: by every one, where a refusal is the end."""
    ended: dict[str, list[Exception]] = getattr(outcome, "ended", outcome.errors)
    return ended


def details(result: Result, events: Events, lab: LabLike, kind_name: Callable[[bytes], str]) -> str:
    """Return some 20 lines: what went over the wire, what was done to it, and who said no."""
    told = [{**event, "message": bytes.fromhex(event["message"])} for event in events]
    lines: list[str] = []
    for number, step in shown(run_of(told).steps if told else []):
        if step is None:
            lines.append(f"  ... {number} messages more ...")
            continue
        title = kind_name(step.sent if step.comes_in else step.arrived)
        lines.append(
            f"  to {step.to}: {title}, {len(step.arrived or step.sent)} bytes, {KINDS[step.kind]}"
        )
    ended = endings(lab.outcome)
    for who, errors in lab.outcome.errors.items():
        refused = [error for error in errors if error not in ended[who]]
        lines += [
            f"  {who} {what}: {some[0]}"
            for what, some in (("refused", refused), ("ended", ended[who]))
            if some
        ]
    return "\n".join([f"{result.attack.name}: {result.attack.story}", *lines, f"  {result.words}"])


def run_all(
    attacks: Sequence[Attack],
    lab: LabLike,
    events: Events,
    watch: Watch | None,
    say: Callable[[Result, Events], object],
    without: str = "",
) -> list[Result]:
    """Run attacks one after the other; `events` gets what happened [classroom/EVENTS.md]."""
    results: list[Result] = []
    for attack in attacks:
        begin = len(events)
        rounds = lab.rounds
        outcome = lab.suffer(attack)
        result = judge(attack, lab)  # type: ignore[arg-type]  # it asks no more of a lab
        results.append(result)
        say(result, events[begin:])
        ended = [
            {"event": "ended", "by": who, "error": type(error).__name__}
            for who, errors in endings(outcome).items()
            for error in errors
        ]
        judged = {
            "event": "judged",
            **result._asdict(),
            "attack": attack.name,
            "story": attack.story,
            "claim": attack.claim,
            "noticed": attack.noticed,
            "without": without,
            "bystanders": lab.rounds - rounds,
        }
        events += [
            {"attack": attack.name, **line}
            for line in (*(watch.told() if watch else ()), *sorted(ended, key=repr), judged)
        ]
    return results


def options_of(program: Program) -> argparse.Namespace:
    """Return what the command line asks for. Raises UserError."""
    parser = Parser(program.description)
    parser.add_argument("names", nargs="*", metavar="NAME", help="some of the attacks, in detail")
    parser.add_argument("--list", action="store_true", help="name all attacks, and stop")
    parser.add_argument("--events", metavar="FILE", help="write what happened, as lines of JSON")
    parser.add_argument("--json", action="store_true", help="print results as lines of JSON")
    parser.add_argument("-v", "--verbose", action="store_true", help="all attacks in detail")
    parser.add_argument("--without", metavar="A,B", help="take rules out of the lab's endpoints")
    options = parser.options()
    if unknown := {*options.names} - program.attacks.keys():
        raise UserError(f"no attack is named {min(unknown)}; --list names them all")
    return options


class Teller:
    """Tells of attacks as the command line asks for, and notes what happens in them."""

    def __init__(self, options: argparse.Namespace, kind_name: Callable[[bytes], str]) -> None:
        self._options = options
        self._kind_name = kind_name
        self.events = Events()
        self.lab: Any = None  # while there is one

    def log(self, event: str, frame: Frame) -> None:
        self.events.append(
            {
                "attack": self.lab.attack,
                "event": event,
                "to": frame.to,
                "message": frame.message.hex(),
            }
        )

    def say(self, text: str) -> None:
        print(end="" if self._options.json else f"{text}\n", flush=True)

    def tell(self, result: Result, events: Events) -> None:
        if self._options.json:
            print(json.dumps({**result._asdict(), "attack": result.attack.name}), flush=True)
        elif self._options.verbose or self._options.names:
            self.say(details(result, events, self.lab, self._kind_name) + "\n")
        else:
            self.say(
                textwrap.fill(
                    f"{result.attack.story:<53}{result.words}", 79, subsequent_indent="  "
                )
            )


def run(program: Program) -> int:
    """Run the attacks that the command line asks for, and return the exit code. UserError."""
    options = options_of(program)
    attacks = program.attacks
    if options.list:
        print("\n".join(f"{attack.name:<30}{attack.story}" for attack in attacks.values()))
        return 0
    parts = program.parts(options.without.split(",")) if options.without is not None else None
    watch = Watch() if options.events else None
    teller = Teller(options, program.kind_name)
    logging.disable()  # what is refused is told here
    if program.beginning:
        teller.say(program.beginning)
    with program.lab(teller.log, parts, watch) as teller.lab:
        teller.say("honest session first: worked")
        names = dict.fromkeys(options.names or attacks)
        results = run_all(
            [attacks[name] for name in names],
            teller.lab,
            teller.events,
            watch,
            teller.tell,
            options.without or "",
        )
        teller.lab.attack = ""
        teller.lab.honest_session()
    teller.say(f"honest session last: worked\n\n{summary(results)}")
    if options.events:
        write_text(options.events, "".join(json.dumps(event) + "\n" for event in teller.events))
    return int(not all(result.as_expected for result in results))
