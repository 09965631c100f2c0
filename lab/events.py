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

from lab.observer import Event
from program import UserError, reason_of

ENDS = ("client", "server")


# Reading back -------------------------------------------------------------------------------------


@dataclass
class Step:
    """One message as the adversary had it: what came in, and what went on to whom, if anything.

    `kind` is one of KINDS. `sent` is the message as an end made it, or as it was before; `arrived`
    is what was delivered. `refused` is the error by which the receiver said no.
    """

    kind: str
    to: str
    sent: bytes = b""
    arrived: bytes = b""
    refused: str = ""

    @property
    def comes_in(self) -> bool:
        """Tell whether an end sent it just now; else it was sent before, or never."""
        return self.kind in ("passed", "changed", "replaced", "dropped", "held", "answered")

    @property
    def goes_on(self) -> bool:
        """Tell whether it is delivered now."""
        return self.kind not in ("dropped", "held", "answered")

    @property
    def source(self) -> str:
        """The end that sends to `to`, or whom the adversary plays."""
        return ENDS[self.to == "client"]


KINDS = {
    "passed": "passed on as it was",
    "changed": "changed on the way",
    "replaced": "replaced by another message",
    "reflected": "sent back to the end that it came from",
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
    def story(self) -> str:
        """What the attack does, in a sentence, if the log has one."""
        return str(self.verdict.get("story", ""))

    @property
    def bystanders(self) -> int:
        """Rounds that the bystanders did meanwhile."""
        return int(self.verdict.get("bystanders", 0))

    @property
    def is_from_outside(self) -> bool:
        """Tell whether the adversary had a connection of its own."""
        return any(step.kind == "answered" for step in self.steps)


DELIVERED = ("passed", "again", "late")  # deeds by which a message goes on as it was sent


def event_of(deed: str) -> str:
    """Return the kind of line that tells of a deed."""
    if deed == "sent":
        return "sent"
    return "delivered" if deed in DELIVERED else "inserted"


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


def read_events(path: Path) -> tuple[list[Event], list[str]]:
    """Return the lines of a log, and the kinds of events that nobody here knows. UserError."""
    try:
        return parse_events(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeError) as error:
        raise UserError(f"cannot read events from {path}: {reason_of(error)}") from None


def parse_events(text: str, name: str) -> tuple[list[Event], list[str]]:
    """Do the same with the text of a log. Raises UserError."""
    lines = text.removesuffix("\n").split("\n")
    events: list[Event] = []
    unknown: dict[str, None] = {}
    for number, line in enumerate(lines if lines != [""] else [], 1):
        try:
            event = parsed(json.loads(line))
        except (ValueError, RecursionError):
            raise UserError(f"{name} line {number} is not an event: {line[:40]!a}") from None
        if event["event"] in WANTED:
            events.append(event)
        else:
            unknown[event["event"]] = None
    if not events:
        raise UserError(f"there are no events in {name}")
    return events, [*unknown]


def parsed(event: Any) -> Event:
    """Return an event with its messages as bytes. Raises ValueError for what is no event."""
    if not isinstance(event, dict):
        raise ValueError(event)
    wanted: dict[str, type] = {"attack": str, "event": str}
    wanted.update(WANTED.get(str(event.get("event")), {}))
    if "origin" in event:
        wanted["origin"] = bytes
    read = {**event}
    for name, kind in wanted.items():
        if kind is bytes and isinstance(read.get(name), str):
            read[name] = bytes.fromhex(read[name])
        if not isinstance(read.get(name), kind):
            raise ValueError(name)
    if not all(read[name] in ENDS for name in ("to", "by") if name in wanted):
        raise ValueError("an end")
    if "deed" in wanted:
        read.setdefault("origin", read["message"])
        if read["deed"] not in KINDS:
            raise ValueError("a deed")
    if "keys" in wanted and not all(isinstance(name, str) for name in read["keys"].values()):
        raise ValueError("keys")
    return read


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
    messages = [line for line in lines if "to" in line]
    is_outside = bool(messages) and messages[0]["event"] == "inserted"
    for line in messages:
        if line["event"] == "sent":
            run.steps.append(
                Step("answered" if is_outside else "sent", line["to"], line["message"])
            )
        else:
            add_deed(run.steps, line)
    for step in run.steps:
        if step.kind == "sent":  # and nobody came back for it
            step.kind = "dropped"
    add_notes(run, lines)
    return run


def add_deed(steps: list[Step], line: Event) -> None:
    """Add what the adversary did with a message, or complete the step of the message it had."""
    deed = line["deed"]
    to = line["to"]
    message: bytes = line["message"]
    origin: bytes = line["origin"]
    waiting = [step for step in steps if step.kind == "sent" and step.sent == origin]
    if deed == "late" and waiting:
        waiting[0].kind = "held"
    elif deed == "reflected" and waiting:
        waiting[-1].kind = "dropped"
    elif deed in ("passed", "changed", "replaced") and waiting:
        waiting[-1].kind = deed
        waiting[-1].arrived = message
        return
    kind = "inserted" if deed in ("changed", "replaced") else deed
    steps.append(Step(kind, to, origin, message))


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
    """Number the steps from 1. Of too many, what was left alone is left out first.

    There is a None in the place of what is missing, with how much that is.
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
