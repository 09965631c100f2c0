"""The event log of classroom/EVENTS.md: a watch that notes what sessions do, and runs read back.

Nothing here knows a protocol. A message is bytes; a session is whatever seals and opens messages
and can name its keys. Nothing is computed twice: who draws or counts asks a Run, and a Run knows
its lines of the log and nothing else.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from program import UserError, reason_of

Event = dict[str, Any]  # one line
ENDS = ("client", "server")

# Noting -------------------------------------------------------------------------------------------

AnySession = TypeVar("AnySession")


class Watch:
    """Notes of sessions: what they refused, and the names of their keys when those had moved."""

    def __init__(self) -> None:
        self._notes: list[tuple[str, list[Event]]] = []  # of each session, by its end

    def noting(self, session: AnySession, by: str, farewell: type[Exception]) -> AnySession:
        """Return the session, which from now on is watched; `farewell` is not a refusal."""
        notes: list[Event] = []
        self._notes.append((by, notes))
        for name in ("seal", "open"):
            method = functools.partial(noted, session, getattr(session, name), by, farewell, notes)
            setattr(session, name, method)
        return session

    def told(self) -> list[Event]:
        """Return what was noted since the last time: of clients, then of servers, by their age."""
        notes = sorted(self._notes, key=lambda entry: entry[0])
        self._notes = []
        return [event for _, events in notes for event in events]


def noted(
    session: Any,
    method: Callable[..., Any],
    by: str,
    farewell: type[Exception],
    notes: list[Event],
    *given: Any,
    **options: Any,
) -> Any:
    """Seal or open a message, and note it if it moved a key, or was refused."""
    try:
        done = method(*given, **options)
    except farewell:
        raise
    except Exception as error:
        if isinstance(given[0], bytes):  # who could not seal has refused nothing
            notes.append(
                {
                    "event": "refused",
                    "by": by,
                    "error": type(error).__name__,
                    "message": given[0].hex(),
                }
            )
        raise
    keys = session.fingerprints()
    if keys not in [note.get("keys") for note in notes[-1:]]:
        message = done if isinstance(done, bytes) else given[0]
        notes.append({"event": "keys", "by": by, "keys": keys, "message": message.hex()})
    return done


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


RECENT = 32  # steps in which the source of an inserted message is looked for
WANTED: dict[str, dict[str, type]] = {  # the fields of each kind of line, besides the first two
    "sent": {"to": str, "message": bytes},
    "delivered": {"to": str, "message": bytes},
    "inserted": {"to": str, "message": bytes},
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
            event = checked(json.loads(line))
        except (ValueError, RecursionError):
            raise UserError(f"{name} line {number} is not an event: {line[:40]!a}") from None
        if event["event"] in WANTED:
            events.append(event)
        else:
            unknown[event["event"]] = None
    if not events:
        raise UserError(f"there are no events in {name}")
    return events, [*unknown]


def checked(event: Any) -> Event:
    """Return the event with its message as bytes. Raises ValueError for what is no event."""
    if not isinstance(event, dict):
        raise ValueError(event)
    wanted: dict[str, type] = {"attack": str, "event": str}
    wanted.update(WANTED.get(str(event.get("event")), {}))
    for name, kind in wanted.items():
        if kind is bytes and isinstance(event.get(name), str):
            event[name] = bytes.fromhex(event[name])
        if not isinstance(event.get(name), kind):
            raise ValueError(name)
    if not all(event[name] in ENDS for name in ("to", "by") if name in wanted):
        raise ValueError("an end")
    if "keys" in wanted and not all(isinstance(name, str) for name in event["keys"].values()):
        raise ValueError("keys")
    return event


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
    outside = bool(messages) and messages[0]["event"] == "inserted"
    for line in messages:
        tell(run.steps, line["event"], line["to"], line["message"], outside)
    for step in run.steps:
        if step.kind == "sent":  # and nobody came back for it
            step.kind = "dropped"
    delivered = {
        (step.to, step.arrived): step
        for step in run.steps  # if twice, the last time
        if step.goes_on
    }
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
    return run


def tell(steps: list[Step], event: str, to: str, message: bytes, outside: bool) -> None:
    """Add one line about a message to the steps, or complete the step that it belongs to."""
    last = steps[-1] if steps and steps[-1].kind == "sent" else None
    if event == "sent":
        steps.append(Step("answered" if outside else "sent", to, message))
    elif event == "delivered" and last and (last.to, last.sent) == (to, message):
        last.kind = "passed"
        last.arrived = message
    elif event == "delivered":
        held = next(
            (
                step
                for step in steps
                if step.kind == "sent" and (step.to, step.sent) == (to, message)
            ),
            None,
        )
        if held:
            held.kind = "held"
        steps.append(Step("late" if held else "again", to, message, message))
    elif last and last.to == to:
        last.kind = "changed" if are_alike(last.sent, message) else "replaced"
        last.arrived = message
    elif last and are_alike(last.sent, message, 4 / 5):  # not only of the same session
        last.kind = "dropped"
        steps.append(Step("reflected", to, last.sent, message))
    else:
        source = (step.sent for step in steps[:-RECENT:-1] if are_alike(step.sent, message))
        steps.append(Step("inserted", to, next(source, b""), message))


def are_alike(one: bytes, other: bytes, part: float = 1 / 3) -> bool:
    """Tell whether one message was made from the other: this part of the bytes stayed."""
    both = min(len(one), len(other))
    return 0 < both * part <= sum(a == b for a, b in zip(one, other))
