"""One page to print, generated from the code: python -m classroom.cheatsheet

Message layout, key schedule, the nine steps of receiving, and for each error the rules that
`--without` takes out of its claims. It needs jinja2: pip install -r requirements-evidence.txt.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import protocol_fsm
from classroom.figures import CANNOT_FAIL, MIXED_IN, Conversation, meaning, message_layout, steps
from classroom.output import filled, write_whole
from classroom.wire import LAB, ROOT
from crypto_utils import AES_KEY_BYTES
from endpoint import OPCODE_NAMES
from lab.claims import read_claims
from program import Parser, escaped, run_program
from protocol_fsm import (
    KEY_LABELS,
    ConnectionCut,
    EchoMismatch,
    Opcode,
    PeerTerminated,
    ProtocolError,
    Status,
)

TEMPLATE = "cheatsheet.html.j2"


class ErrorRow(NamedTuple):
    """An error, what it means, the answer on the wire, and the rules behind it."""

    name: str
    words: str
    answer: str
    rules: list[str]


def answer_to(kind: type[ProtocolError]) -> str:
    """Return the farewell with which a session answers an error."""
    if kind is PeerTerminated:  # which is a farewell itself
        return "nothing"
    error = ConnectionCut(mid_frame=False) if kind is ConnectionCut else kind()
    talk = Conversation("cheat sheet")
    if kind is not EchoMismatch:  # which only a handshake can meet
        talk.handshake()
    talk.server.fail(error)
    return OPCODE_NAMES[error.farewell[0]] if error.farewell else "nothing"


def error_rows() -> list[ErrorRow]:
    """Return all errors; a rule stands behind an error if they are named by the same claim."""
    told = read_claims(LAB.data)
    rows = []
    for error in told.errors:
        claims = {*re.findall(r"S-\d+", error.when)}
        rules = [rule.name for rule in told.rules if claims & {*rule.claims}]
        kind = getattr(protocol_fsm, error.name)
        rows.append(ErrorRow(error.name, meaning(kind), answer_to(kind), rules))
    return rows


def page() -> str:
    moves = {
        opcode: [
            (label, MIXED_IN[opcode, label]) for label in KEY_LABELS if (opcode, label) in MIXED_IN
        ]
        for opcode in Opcode
    }
    return filled(
        TEMPLATE,
        layout=message_layout(),
        labels=KEY_LABELS,
        moves={opcode.name: told for opcode, told in moves.items() if told},
        statuses=list(Status),
        opcodes=list(Opcode),
        steps=steps(),
        cannot_fail=CANNOT_FAIL,
        errors=error_rows(),
        aes_key_bytes=AES_KEY_BYTES,
    )


def main() -> int:
    parser = Parser("Writes the cheat sheet again: one page to print.")
    default = ROOT / "classroom" / "cheatsheet.html"
    parser.add_argument("file", nargs="?", type=Path, default=default, metavar="FILE")
    options = parser.options()
    write_whole(options.file, page().encode("utf-8"))
    print(f"wrote {escaped(str(options.file))}")
    return 0


if __name__ == "__main__":
    run_program(main)
