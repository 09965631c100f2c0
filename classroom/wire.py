"""What a message looks like, for whoever shows one: its title, and its bytes cut into fields.

A protocol is described once, by a Wire, and the pages that show messages know nothing else of it.
The description of this lab's protocol is LAB; a companion writes its own. The fields of a message
are all of its bytes, in their order, whatever it holds: a message may be cut short, or be nonsense.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from classroom.keylog import describe_message
from crypto_utils import TAG_BYTES
from endpoint import OPCODE_NAMES, PORT
from protocol_fsm import CIPHERTEXT_AT, HEADER, Direction, Header

ROOT = Path(__file__).resolve().parent.parent


class Field(NamedTuple):
    """Some bytes of a message, what they are called, and what they say, if that can be read."""

    name: str
    content: bytes
    meaning: str = ""


class Wire(NamedTuple):
    """One protocol, as far as pages and captures need it."""

    name: str
    title: Callable[[bytes], str]
    fields: Callable[[bytes], Sequence[Field]]
    data: Path  # the folder of its claims.toml and sets.json
    claims: Path  # its CLAIMS.md, which is drawn from them
    attacks: str  # the command that runs them
    describe: Callable[[bytes], str]  # all that anybody sees of a message, in a line
    framed: Callable[[bytes], bytes]  # what TCP carries for a message
    port: int  # of the server
    cuts: frozenset[str]  # errors that say that the other end has closed first

    def what_changed(self, before: bytes, after: bytes) -> str:
        """Say which fields are not what they were, and how if that is short; of both messages."""
        fields = changes(self.fields(before), self.fields(after)) if before and after else []
        return ", ".join(in_short(change) for change in fields if change.touched)


class Change(NamedTuple):
    """One field before and after; `touched` are the places in it where the two differ."""

    before: Field
    after: Field
    touched: frozenset[int]


def changes(before: Sequence[Field], after: Sequence[Field]) -> list[Change]:
    """Set two messages side by side, field by field; what one of them lacks is empty."""
    names = [*dict.fromkeys(field.name for field in (*before, *after))]
    pairs = [
        [
            next((field for field in fields if field.name == name), Field(name, b""))
            for fields in (before, after)
        ]
        for name in names
    ]
    return [Change(old, new, differing(old.content, new.content)) for old, new in pairs]


def in_short(change: Change) -> str:
    (name, old, _), (_, new, _), touched = change
    if len(old) != len(new):
        return f"{name}: {len(old)} -> {len(new)} bytes"
    return name + "".join(
        f": {old[at]:02x} -> {new[at]:02x}" for at in touched if len(touched) == 1
    )


def differing(one: bytes, other: bytes) -> frozenset[int]:
    """Return the places that differ, or that only one of them has."""
    both = min(len(one), len(other))
    return frozenset(
        at for at in range(max(len(one), len(other))) if at >= both or one[at] != other[at]
    )


# This lab's protocol [P 3.2] ----------------------------------------------------------------------

MEANINGS: dict[str, Callable[[int], str]] = {
    "opcode": lambda value: f"{value}: {OPCODE_NAMES.get(value, 'unknown')}",
    "direction": lambda value: (
        f"{value}: " + next((way.name for way in Direction if way == value), "unknown")
    ),
}


def lab_fields(message: bytes) -> list[Field]:
    """Cut a message as PROTOCOL.md 3.2 does. What is too short for its tag has none."""
    fields = []
    at = 0
    for name, code in zip(Header._fields, HEADER.format.lstrip(">")):
        content = message[at : at + struct.calcsize(code)]
        say = MEANINGS.get(name, str)
        fields.append(
            Field(
                name.replace("_", " ").removesuffix(" number"),
                content,
                say(int.from_bytes(content, "big")) if content else "",
            )
        )
        at += len(content)
    end = max(CIPHERTEXT_AT, len(message) - TAG_BYTES)
    return [
        *fields,
        Field("IV", message[HEADER.size : CIPHERTEXT_AT]),
        Field("ciphertext", message[CIPHERTEXT_AT:end]),
        Field("tag", message[end:]),
    ]


def lab_title(message: bytes) -> str:
    """Name a message by its opcode and its round."""
    if len(message) < HEADER.size:
        return f"{len(message)} bytes"
    header = Header(*HEADER.unpack_from(message))
    name = OPCODE_NAMES.get(header.opcode, f"opcode {header.opcode}")
    return f"{name}, round {header.round_number}"


LAB = Wire(
    "the lab's own protocol",
    lab_title,
    lab_fields,
    ROOT / "classroom",
    ROOT / "CLAIMS.md",
    "python attacks.py",
    lambda message: describe_message(message)[0],
    lambda message: len(message).to_bytes(2, "big") + message,
    PORT,
    frozenset({"ConnectionCut"}),
)
