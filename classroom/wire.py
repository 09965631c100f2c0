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

from crypto_utils import TAG_BYTES
from endpoint import OPCODE_NAMES
from protocol_fsm import CIPHERTEXT_AT, HEADER, Direction, Header

ROOT = Path(__file__).resolve().parent.parent

class Field(NamedTuple):
    """Some bytes of a message, what they are called, and what they say, if that can be read."""

    name: str
    content: bytes
    meaning: str = ""

class Wire(NamedTuple):
    """One protocol, as far as a page needs it."""

    name: str
    title: Callable[[bytes], str]
    fields: Callable[[bytes], Sequence[Field]]
    security: Path  # its SECURITY.md
    attacks: str  # the command that runs them

class Change(NamedTuple):
    """One field before and after; `touched` are the places in it where the two differ."""

    before: Field
    after: Field
    touched: frozenset[int]

def changes(before: Sequence[Field], after: Sequence[Field]) -> list[Change]:
    """Set two messages side by side, field by field; what one of them lacks is empty."""
    names = [*dict.fromkeys(field.name for field in (*before, *after))]
    pairs = [[next((field for field in fields if field.name == name), Field(name, b""))
              for fields in (before, after)] for name in names]
    return [Change(old, new, differing(old.content, new.content)) for old, new in pairs]

def differing(one: bytes, other: bytes) -> frozenset[int]:
    """Return the places that differ, or that only one of them has."""
    both = min(len(one), len(other))
    return frozenset(at for at in range(max(len(one), len(other)))
                     if at >= both or one[at] != other[at])

# This lab's protocol [P 3.2] ----------------------------------------------------------------------

MEANINGS: dict[str, Callable[[int], str]] = {
    "opcode": lambda value: f"{value}: {OPCODE_NAMES.get(value, 'unknown')}",
    "direction": lambda value: f"{value}: " + next(
        (way.name for way in Direction if way == value), "unknown"),
}

def lab_fields(message: bytes) -> list[Field]:
    """Cut a message as PROTOCOL.md 3.2 does. What is too short for its tag has none."""
    fields, at = [], 0
    for name, code in zip(Header._fields, HEADER.format.lstrip(">")):
        content = message[at : at + struct.calcsize(code)]
        say = MEANINGS.get(name, str)
        fields.append(Field(name.replace("_", " ").removesuffix(" number"), content,
                            say(int.from_bytes(content, "big")) if content else ""))
        at += len(content)
    end = max(CIPHERTEXT_AT, len(message) - TAG_BYTES)
    return [*fields, Field("IV", message[HEADER.size : CIPHERTEXT_AT]),
            Field("ciphertext", message[CIPHERTEXT_AT:end]), Field("tag", message[end:])]

def lab_title(message: bytes) -> str:
    """Name a message by its opcode and its round."""
    if len(message) < HEADER.size:
        return f"{len(message)} bytes"
    header = Header(*HEADER.unpack_from(message))
    name = OPCODE_NAMES.get(header.opcode, f"opcode {header.opcode}")
    return f"{name}, round {header.round_number}"

LAB = Wire("the lab's own protocol", lab_title, lab_fields, ROOT / "SECURITY.md",
           "python attacks.py")
