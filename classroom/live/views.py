"""What the page is told of messages and runs, as JSON; nothing here is HTML.

The page takes no message apart and judges nothing: fields are those of a Wire, kinds and verdicts
those of the event log. Long fields are cut short: `size` says how long they are.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attacks import ATTACKS
from classroom.keylog import DIRECTION_NAMES
from classroom.report import command_of, verdict_of
from classroom.wire import LAB, ROOT, Wire
from endpoint import OPCODE_NAMES
from lab.claims import Claims, read_claims, read_sets
from lab.events import KINDS, Run, Step, not_known, parse_events, runs_of, shown
from lab.rules import meaning
from lab.weakened import DOCUMENTED, RULES
from program import UserError, escaped, plural

View = dict[str, Any]
MOST_BYTES = 512  # of a field that the page shows
MOST_LETTERS = 500  # of a text in a log
MOST_RUNS = 500  # of a log
PROTOCOLS = {  # by folder; the module of the Wire, which is loaded when a log needs it
    "classroom": "",
    "device_transfer": "companions.device_transfer.wire",
    "peer_messaging": "companions.peer_messaging.wire",
    "secure_chat": "companions.secure_chat.wire",
}
STEPS = (  # of receiving a message [P 3.6]
    "shape",
    "id and direction",
    "opcode",
    "round",
    "tag",
    "decrypt",
    "unpad",
    "payload",
    "commit",
)

# Messages -----------------------------------------------------------------------------------------


def bytes_view(message: bytes, wire: Wire) -> View:
    """Show a message by its fields, each with the place of its first byte."""
    fields = []
    at = 0
    for field in wire.fields(message):
        content = field.content
        fields.append(
            {
                "name": field.name,
                "at": at,
                "size": len(content),
                "hex": content[:MOST_BYTES].hex(),
                "says": escaped(field.meaning),
            }
        )
        at += len(content)
    return {"title": escaped(wire.title(message)), "size": len(message), "fields": fields}


def step_view(step: Step, wire: Wire) -> View:
    """Show one row of a ladder: what came in, what went on to whom, and how it was taken."""
    return {
        "kind": step.kind,
        "words": KINDS[step.kind],
        "to": step.to,
        "in": step.comes_in,
        "on": step.goes_on,
        "touched": step.is_touched,
        "sent": bytes_view(step.sent, wire) if step.sent else None,
        "got": bytes_view(step.arrived, wire) if step.arrived not in (b"", step.sent) else None,
        "what": wire.what_changed(step.sent, step.arrived) if step.is_changed else "",
        "verdict": step.refused,
    }


# Runs ---------------------------------------------------------------------------------------------


def run_view(run: Run, wire: Wire) -> View:
    """Show a run of a log: its ladder, its verdict, and how to see it again."""
    verdict = verdict_of(run)
    return {
        "attack": short(run.attack),
        "title": short(run.title),
        "story": short(run.story),
        "command": short(command_of(run, wire)) if run.verdict else "",
        "verdict": {"kind": verdict.kind, "words": short(verdict.words)},
        "ended": short(", ".join(f"{end}: {error} ({n})" for (end, error), n in run.ended.items())),
        "rows": [
            {**step_view(step, wire), "id": number}
            if step
            else {"note": f"{plural(number, 'message')} more"}
            for number, step in shown(run.steps)
        ],
    }


def log_view(text: str, protocol: str) -> View:
    """Show a finished event log of any protocol; "" finds out which. Raises UserError."""
    events, unknown = parse_events(text, "the log")
    runs = [*runs_of(events)]
    name = protocol or protocol_of(run.attack for run in runs)
    wire = wire_of(name)
    return {
        "protocol": name,
        "name": wire.name,
        "count": len(runs),
        "note": short(not_known("the log", unknown)) if unknown else "",
        "runs": [run_view(run, wire) for run in runs[:MOST_RUNS]],
    }


def short(text: str) -> str:
    """Return a text, or its beginning if no page has room for it."""
    return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]} ..."


def protocol_of(attacks: Iterable[str]) -> str:
    """Return the protocol whose catalogue has most of these attacks; our own if none has any."""
    names = {*attacks}

    def known(protocol: str) -> int:
        sets = read_sets(folder_of(protocol) / "sets.json")
        return len(names & {*sets.sets, *sets.not_prevented})

    return max(PROTOCOLS, key=known)


def folder_of(protocol: str) -> Path:
    return ROOT / ("classroom" if protocol == "classroom" else f"companions/{protocol}")


def wire_of(protocol: str) -> Wire:
    """Return how the messages of a protocol are taken apart. Raises UserError."""
    if protocol not in PROTOCOLS:
        raise UserError(f"there is no protocol {protocol!a}; there are: {', '.join(PROTOCOLS)}")
    module = PROTOCOLS[protocol]
    if not module:
        return LAB
    try:
        found: Wire = importlib.import_module(module).WIRE
    except ImportError as error:
        command = f"pip install -r companions/{protocol}/requirements.txt"
        raise UserError(f"{protocol} needs the package {error.name}: {command}") from None
    return found


# What does not change while the page is open ------------------------------------------------------


def facts() -> View:
    """Return rules, attacks and claims, and which step of receiving raises which error."""
    told = read_claims(LAB.data)
    sets = read_sets(LAB.data / "sets.json")
    return {
        "steps": STEPS,
        "names": {"opcode": OPCODE_NAMES, "direction": DIRECTION_NAMES},
        "errors": errors_view(told),
        "claims": [
            {
                "id": claim.id,
                "claim": claim.claim,
                "condition": claim.condition,
                "verdict": claim.verdict,
                "attacks": claim.attacks,
                "code": claim.code,
            }
            for claim in told.claims
        ],
        "rules": [{"name": name, "without": meaning(rule)} for name, rule in RULES.items()],
        "documented": [*DOCUMENTED],
        "attacks": [
            {
                "name": attack.name,
                "story": attack.story,
                "family": attack.family,
                "noticed": attack.noticed,
                "sets": sets.sets.get(attack.name, []),
            }
            for attack in ATTACKS.values()
        ],
        "protocols": [*PROTOCOLS],
    }


def errors_view(told: Claims) -> Mapping[str, View]:
    """Return, by error, the step that raises it (0: none of the nine) and the claims it defends."""
    found = {}
    for error in told.errors:
        step = re.match(r"step (\d)", error.when)
        words = re.sub(r"\s*\([^)]*\)", "", error.when)
        ids: Sequence[str] = re.findall(r"\bS-\d+\b", error.when)
        found[error.name] = {"step": int(step[1]) if step else 0, "when": words, "claims": ids}
    return found


def as_text(view: View) -> str:
    """Return JSON for the page, without blanks."""
    return json.dumps(view, separators=(",", ":"))
