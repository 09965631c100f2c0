"""The event log of EVENTS.md, read back as runs: what the adversary had, and what it did with it.

Nothing here knows a protocol: a message is bytes. Nothing is guessed: a line says what was done to
a message, and from which other one it was made. Pages and captures ask a Run, and a Run knows its
lines of the log and nothing else.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.frames import OTHER_END
from lab.observer import Event
from program import UserError, escaped, read_text, to_stderr

ENDS = ("client", "server")


@dataclass
class Step:
    """One message as the adversary had it: what came in, and what went on to whom, if anything.

    `kind` is one of KINDS. `sent` is the message as an end made it, or as it was before; `arrived`
    is what was delivered. `refused` is the error with which the receiver refused it.
    """

    kind: str
    to: str
    sent: bytes = b""
    arrived: bytes = b""
    refused: str = ""

    @property
    def comes_in(self) -> bool:
        """Return whether an end sent it just now; else it was sent before, or never."""
        return self.kind in ("passed", "changed", "replaced", "dropped", "held", "answered")

    @property
    def goes_on(self) -> bool:
        """Return whether it is delivered now."""
        return self.kind not in ("dropped", "held", "answered")

    @property
    def is_touched(self) -> bool:
        """Return whether the adversary did more than to pass it on, late or not at all."""
        return self.kind in ("changed", "replaced", "reflected", "inserted", "again")

    @property
    def is_changed(self) -> bool:
        """Return whether it is another message with some bytes changed."""
        return self.goes_on and self.sent not in (b"", self.arrived) and self.kind != "replaced"

    def delivers(self, other: Step) -> bool:
        """Return whether it delivers the message of another step, which has waited until now."""
        return other.kind == "dropped" and other.sent == self.sent

    @property
    def source(self) -> str:
        """The end that sends to `to`, or whom the adversary plays."""
        return OTHER_END[self.to]


KINDS = {
    "passed": "passed on as it was",
    "changed": "changed on the way",
    "replaced": "replaced by another message",
    "reflected": "sent back to its sender",
    "inserted": "sent by the adversary",
    "again": "delivered once more",
    "held": "kept back for a while",
    "late": "delivered later than it was sent",
    "dropped": "not delivered",
    "answered": "answered to the adversary",
}


@dataclass
class Run:
    """One attack in a log: its steps, what became of the ends, and how it was judged."""

    attack: str
    steps: list[Step] = field(default_factory=list)
    keys: list[Event] = field(default_factory=list)  # of messages that are among the steps
    ended: Counter[tuple[str, str]] = field(default_factory=Counter)  # (end, error)
    verdict: Event = field(default_factory=dict)  # the line `judged`, if there is one

    @property
    def without(self) -> frozenset[str]:
        """The rules that were taken out."""
        return frozenset(filter(None, self.verdict.get("without", "").split(",")))

    @property
    def title(self) -> str:
        """The attack, and the rules that were taken out if there were any."""
        rules = ", ".join(sorted(self.without))
        return f"{self.attack} without {rules}" if rules else self.attack

    @property
    def again(self) -> str:
        """The flags that repeat this run, if the log has them."""
        return str(self.verdict.get("again", ""))

    @property
    def story(self) -> str:
        """What the attack does, in a sentence, if the log has one."""
        return str(self.verdict.get("story", ""))

    @property
    def bystanders(self) -> int:
        """Rounds that the bystanders did meanwhile."""
        return int(self.verdict.get("bystanders", 0))

    @property
    def is_from_outside(self) -> bool:
        """Return whether the adversary had a connection of its own."""
        return any(step.kind == "answered" for step in self.steps)


DEEDS = {  # by the kind of line that tells of them
    "delivered": ("passed", "late", "again"),
    "inserted": ("changed", "replaced", "reflected", "inserted"),
}


def event_of(deed: str) -> str:
    """Return the kind of line that tells of a deed; `sent` is an end's."""
    return next((event for event, deeds in DEEDS.items() if deed in deeds), "sent")


WANTED: dict[str, dict[str, type]] = {  # the fields of each kind of line, besides the first two
    "sent": {"to": str, "message": bytes},
    "delivered": {"to": str, "message": bytes, "deed": str},
    "inserted": {"to": str, "message": bytes, "deed": str},
    "keys": {"by": str, "keys": dict, "message": bytes},
    "refused": {"by": str, "error": str, "message": bytes},
    "ended": {"by": str, "error": str},
    "judged": {
        "story": str,
        "claim": str,
        "noticed": str,
        "without": str,
        "as_expected": bool,
        "words": str,
        "won": str,
        "bystanders": int,
    },
}


def read_runs(path: Path) -> list[Run]:
    """Return the runs of a log; what is not known here is named on stderr. Raises UserError."""
    events, unknown = parse_events(read_text(path), str(path))
    if unknown:
        to_stderr(not_known(path, unknown))
    return [*runs_of(events)]


def not_known(name: object, unknown: Sequence[str]) -> str:
    return f"{name}: not shown, because not known here: {', '.join(unknown)}"


def parse_events(text: str, name: str) -> tuple[list[Event], list[str]]:
    """Return the lines of a log, and the kinds of events that nobody here knows. UserError."""
    lines = text.removesuffix("\n").split("\n")
    events: list[Event] = []
    unknown: dict[str, None] = {}
    for number, line in enumerate(lines if lines != [""] else [], 1):
        try:
            event = parsed(json.loads(line))
        except (ValueError, RecursionError):
            raise UserError(f"{name} line {number} is not an event") from None
        if event["event"] in WANTED:
            events.append(event)
        else:
            unknown[event["event"]] = None
    if not events:
        raise UserError(f"there are no events in {name}")
    return events, [*unknown]


def parsed(event: Any) -> Event:
    """Return an event with its messages as bytes, and its words escaped for terminals and pages.

    Raises ValueError for what is no event.
    """
    if not isinstance(event, dict):
        raise ValueError(event)
    wanted = {"attack": str, "event": str, **WANTED.get(str(event.get("event")), {})}
    if "origin" in event:
        wanted["origin"] = bytes
    if "again" in event:
        wanted["again"] = str
    read = {name: harmless(value) for name, value in event.items()}
    for name, kind in wanted.items():
        if kind is bytes and isinstance(read.get(name), str):
            read[name] = bytes.fromhex(read[name])
        if not isinstance(read.get(name), kind):
            raise ValueError(name)
    if not all(read[name] in ENDS for name in ("to", "by") if name in wanted):
        raise ValueError("an end")
    if "deed" in wanted and read["deed"] not in DEEDS[read["event"]]:
        raise ValueError("a deed")
    if "keys" in wanted and not all(isinstance(name, str) for name in read["keys"].values()):
        raise ValueError("keys")
    return read


def harmless(value: Any) -> Any:
    """Return a value of an event, with the words in it escaped."""
    if isinstance(value, dict):
        return {escaped(name): harmless(inner) for name, inner in value.items()}
    return escaped(value) if isinstance(value, str) else value


def runs_of(events: Sequence[Event]) -> Iterator[Run]:
    """Cut a log into its runs: `judged` is the last line of one."""
    lines: list[Event] = []
    for event in events:
        if lines and (lines[-1]["event"] == "judged" or lines[-1]["attack"] != event["attack"]):
            yield run_of(lines)
            lines = []
        lines.append(event)
    if lines:
        yield run_of(lines)


def run_of(lines: Sequence[Event]) -> Run:
    """Return the run that these lines tell of."""
    run = Run(lines[0]["attack"])
    messages = [line for line in lines if "to" in WANTED[line["event"]]]
    is_outside = bool(messages) and messages[0]["event"] == "inserted"
    for line in messages:
        if line["event"] != "sent":
            add_deed(run.steps, line)
        else:
            kind = "answered" if is_outside else "dropped"
            run.steps.append(Step(kind, line["to"], line["message"]))
    add_notes(run, lines)
    return run


def add_deed(steps: list[Step], line: Event) -> None:
    """Add what the adversary did with a message, or complete the step of the message it had.

    A message of an end counts as dropped until a deed says otherwise.
    """
    message: bytes = line["message"]
    deed = Step(line["deed"], line["to"], line.get("origin", message), message)
    if deed.comes_in and any(map(deed.delivers, steps[-1:])):
        steps.pop()  # at once, so that both are one step
    elif deed.kind in ("changed", "replaced"):
        deed.kind = "inserted"  # made from a message that had gone on already
    elif deed.kind == "late" and (held := next(filter(deed.delivers, steps), None)):
        held.kind = "held"
    steps.append(deed)


def add_notes(run: Run, lines: Sequence[Event]) -> None:
    """Add to a run what the ends said of its messages, and how it ended."""
    delivered = {(step.to, step.arrived): step for step in run.steps if step.goes_on}
    seen = {message for step in run.steps for message in (step.sent, step.arrived)}
    for line in lines:
        if line["event"] == "keys" and line["message"] in seen:
            run.keys.append(line)
        elif line["event"] == "refused" and (line["by"], line["message"]) in delivered:
            delivered[line["by"], line["message"]].refused = line["error"]
        elif line["event"] == "ended":
            run.ended[line["by"], line["error"]] += 1
        elif line["event"] == "judged":
            run.verdict = line


LONGEST = 14  # rows; of more, some are left out


def shown(steps: Sequence[Step]) -> list[tuple[int, Step | None]]:
    """Number the steps from 1. If there are too many, untouched ones are left out first.

    A gap is a None, with the number of steps that are missing.
    """
    if len(steps) <= LONGEST:
        return [*enumerate(steps, 1)]
    numbers = range(1, len(steps) + 1)
    middle = range(5, len(steps) - 3)
    touched = [n for n in middle if steps[n - 1].kind != "passed" or steps[n - 1].refused]
    kept = sorted({*numbers[:4], *numbers[-4:], *(touched or middle)[: LONGEST - 9]})
    rows: list[tuple[int, Step | None]] = []
    last = 0
    for number in kept:
        if number > last + 1:
            rows.append((number - last - 1, None))
        rows.append((number, steps[number - 1]))
        last = number
    return rows
