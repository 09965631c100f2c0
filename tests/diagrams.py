"""Draw what documents show: state machines, a session of the vectors, claims, planted bugs.

python -m tests.diagrams            rewrite the generated parts of the documents
"""

from __future__ import annotations

import importlib
import json
import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from classroom.kit.tasks import BUGS, TASKS
from lab.claims import Claims, Sets, read_claims, read_sets
from program import Parser, run_program, write_whole
from protocol_fsm import ProtocolState

ROOT = Path(__file__).parent.parent
VECTORS = ROOT / "tests" / "vectors" / "sessions.json"
PLACES = ("*.md", "companions/*/*.md", "classroom/kit/*.md")  # of documents with drawn parts
PART = re.compile(
    r"(<!-- generated from (\S+) by: [^>]*-->\n)(.*?)"
    r"(<!-- end of generated part -->)",
    re.DOTALL,
)
WHO = {
    "C2S": "client",
    "S2C": "server",
    "D2S": "device",
    "S2D": "server",
    "INITIATOR": "initiator",
    "RESPONDER": "responder",
}


def whose_turn(protocol: Any, state: Any) -> str:
    if protocol.PHASE[state] is ProtocolState.TERMINATED:
        return "nobody"
    return WHO[protocol.SPEAKER[state].name] if state in protocol.SPEAKER else "both"


def transition_table(protocol: Any) -> str:
    """Return every legal move as a Markdown table; moves that differ in one cell share a row."""
    senders: dict[tuple[Any, str, Any], list[str]] = {}
    for (state, opcode, sender), following in protocol.ProtocolFSM.VALID_TRANSITIONS.items():
        senders.setdefault((state, opcode.name, following), []).append(f"{sender.name}")
    opcodes: dict[tuple[Any, str, Any], list[str]] = {}
    for (state, opcode, following), directions in senders.items():
        opcodes.setdefault((state, " or ".join(directions), following), []).append(opcode)
    rows = [
        f"| {state.name} | {protocol.PHASE[state].name} | {whose_turn(protocol, state)} | "
        f"{', '.join(names)} | {directions} | {following.name} |"
        for (state, directions, following), names in opcodes.items()
    ]
    last = protocol.ProtocolFSM.LAST
    phase = protocol.PHASE[last].name
    rows.append(f"| {last.name} | {phase} | {whose_turn(protocol, last)} | none | | |")
    order = [state.name for state in protocol.State]
    rows.sort(key=lambda row: order.index(row.split()[1]))
    what = "kind" if hasattr(protocol, "Kind") else "opcode"
    sender_is = "direction" if hasattr(protocol, "Direction") else "sender"
    return "\n".join(
        [
            f"| state | phase | whose turn | {what} | {sender_is} | next state |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
    )


def diagram(protocol: Any) -> str:
    """Return the same as a Mermaid state diagram, one box for each phase."""
    fsm = protocol.ProtocolFSM
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {fsm.FIRST.name}"]
    for phase in ProtocolState:
        names = [state.name for state in protocol.State if protocol.PHASE[state] is phase]
        lines += [f"    state {phase.name} {{", *(f"        {name}" for name in names), "    }"]
    arrows: dict[tuple[Any, Any], list[str]] = {}
    for (state, opcode, _), following in fsm.VALID_TRANSITIONS.items():
        labels = arrows.setdefault((state, following), [])
        if opcode.name not in labels:
            labels.append(opcode.name)
    lines += [
        f"    {state.name} --> {following.name}: {', '.join(labels)}"
        for (state, following), labels in arrows.items()
    ]
    return "\n".join([*lines, f"    {fsm.LAST.name} --> [*]", "```"])


def annotated_session() -> str:
    """Return the first session of the vectors, with every byte named of its first report."""
    messages = json.loads(VECTORS.read_text("ascii"))["sessions"][0]["messages"]
    other = {"client": "server", "server": "client"}
    overview = [
        f"{number}  {message['from']} -> {other[message['from']]}  {message['name']:<20}  "
        f"round {message['round']}  {len(message['frame']) // 2:>3} bytes"
        for number, message in enumerate(messages, 1)
    ]
    report = messages[2]
    frame = bytes.fromhex(report["frame"])
    plaintext = bytes.fromhex(report["padded"])
    on_the_wire = [
        ("length", 2, f"{len(frame) - 2} bytes follow"),
        ("opcode", 1, f"30: {report['name']}"),
        ("client id", 1, ""),
        ("round", 4, "the first one"),
        ("direction", 1, "0: C2S"),
        ("IV", 16, ""),
        ("ciphertext", len(plaintext), ""),
        ("tag", 32, ""),
    ]
    body_length = len(bytes.fromhex(report["body"]))
    decrypted = [
        ("nonce", 16, "moves the MAC key on"),
        ("body", body_length, report["text"]),
        ("padding", len(plaintext) - 16 - body_length, "each byte its own count"),
    ]
    return "\n".join(
        [
            "```text",
            *overview,
            "```",
            "",
            "Number 3, byte by byte:",
            "",
            "```text",
            *fields(frame, on_the_wire),
            "",
            "the ciphertext, decrypted:",
            *fields(plaintext, decrypted),
            "```",
        ]
    )


def fields(data: bytes, layout: list[tuple[str, int, str]]) -> list[str]:
    """Return the bytes of `data`, cut up as `layout` says (name, length, remark), 16 a line."""
    lines = []
    for name, length, remark in layout:
        taken = data[:length]
        data = data[length:]
        first, *more = textwrap.wrap(taken.hex(" "), 47)
        lines.append(f"{name:<11} {first:<47}  {remark}".rstrip())
        lines += [f"{'':<11} {line}" for line in more]
    if data:
        raise ValueError(f"{len(data)} bytes have no name")
    return lines


def markdown(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table without its empty columns."""
    columns = [column for column in zip(heading, *rows) if any(column[1:])]
    head, *lines = zip(*columns)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *lines))


def in_code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def table_of_claims(told: Claims) -> str:
    heading = (
        "id",
        "family",
        "claim",
        "condition",
        "code",
        "attacks",
        "tests",
        "verdict",
        "rests on",
    )
    rows = (
        (
            claim.id,
            claim.family,
            claim.claim,
            claim.condition,
            in_code(claim.code),
            in_code(claim.attacks),
            in_code(claim.tests),
            claim.verdict,
            ", ".join(claim.rests_on),
        )
        for claim in told.claims
    )
    return markdown(heading, rows)


def table_of_rules(told: Claims) -> str:
    heading = "rule", "what it says", "claims", "its removal alone", "a run", "then the attack"
    rows = (
        (
            in_code([rule.name]),
            rule.rule,
            ", ".join(rule.claims),
            rule.alone,
            f"`--without {','.join(rule.without)} {rule.attack}`",
            "wins" if rule.wins else "is still refused",
        )
        for rule in told.rules
    )
    return markdown(heading, rows)


def table_of_errors(told: Claims) -> str:
    rows = (
        (in_code([error.name]), error.when, in_code(error.attacks) or f"none: {error.unmet}")
        for error in told.errors
    )
    return markdown(("error", "when", "attacks that meet it"), rows)


def table_of_sets(found: Sets) -> str:
    minimal = {
        attack: " ".join(f"{{{', '.join(rules)}}}" for rules in sets)
        or f"no set of up to {found.size} rules found"
        for attack, sets in found.sets.items()
    }
    noticed = {
        attack: f"not prevented (noticed by {by})" for attack, by in found.not_prevented.items()
    }
    return markdown(
        ("attack", "minimal sets of rules without which it wins"), [*(minimal | noticed).items()]
    )


def claims_part(folder: Path) -> str:
    """Return the tables of a folder's claims.toml and sets.json."""
    told = read_claims(folder)
    redundant = markdown(("in no minimal set", "because"), told.redundant.items())
    return "\n\n".join(
        (
            "## The claims",
            table_of_claims(told),
            "## Rules that can be taken out",
            table_of_rules(told),
            "## Errors that end a session",
            table_of_errors(told),
            "## Minimal sets",
            table_of_sets(read_sets(folder / "sets.json")),
            redundant,
        )
    )


def table_of_bugs() -> str:
    """Return the planted bugs of the kit, each task below its title."""
    rows = []
    for task in TASKS:
        rows.append((f"**{task.number} {task.title}**", "", ""))
        for bug in BUGS:
            if bug.task == task.number:
                rows.append((in_code([bug.function.split(":")[1]]), bug.idea, bug.say))
    return markdown(("in", "the wrong idea", "what to say"), rows)


def part(source: str) -> str:
    """Return what stands in the documents for `source`."""
    if source == "classroom/kit/tasks.py":
        return table_of_bugs()
    if source.endswith("claims.toml"):
        return claims_part((ROOT / source).parent)
    if source == "tests/vectors/sessions.json":
        return annotated_session()
    protocol = importlib.import_module(source.removesuffix(".ProtocolFSM.VALID_TRANSITIONS"))
    return f"{transition_table(protocol)}\n\n{diagram(protocol)}"


def updated(text: str) -> str:
    """Return a document with its generated parts as they should be."""
    return PART.sub(lambda m: f"{m[1]}\n{part(m[2])}\n\n{m[4]}", text)


def main() -> int:
    Parser("Rewrites the generated parts of the documents.").options()
    for path in sorted(path for place in PLACES for path in ROOT.glob(place)):
        text = path.read_text("utf-8")
        if PART.search(text):
            write_whole(path, updated(text).encode("utf-8"))
            print(f"{path.relative_to(ROOT)} is up to date")
    return 0


if __name__ == "__main__":
    run_program(main)
