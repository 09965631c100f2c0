"""What a message looks like to a page that shows it: its title, and its bytes cut into fields.

A Wire describes a protocol; pages and captures know nothing else of it. LAB describes this lab's
protocol, and each companion has its own. The fields of a message are all of its bytes, in their
order, even of a message that is cut short or nonsense.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from classroom.keylog import DIRECTION_NAMES, describe_message
from crypto_utils import BLOCK_BYTES, TAG_BYTES
from endpoint import OPCODE_NAMES, PORT, opcode_of
from program import plural
from protocol_fsm import CIPHERTEXT_AT, HEADER, Header

ROOT = Path(__file__).resolve().parent.parent


class Field(NamedTuple):
    """Some bytes of a message, their name, and their meaning if it can be read without a key."""

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
    describe: Callable[[bytes], str]  # the public part of a message, in a line
    framed: Callable[[bytes], bytes]  # what TCP carries for a message
    port: int  # of the server
    cut: str = "ConnectionCut"  # the error of an end whose peer has closed first

    def what_changed(self, before: bytes, after: bytes) -> str:
        """Return which fields differ, and how if that is short; empty unless both are there."""
        if not before or not after:
            return ""
        fields = changes(self.fields(before), self.fields(after))
        return ", ".join(in_short(change) for change in fields if change.touched)


def companion(
    name: str,
    title: Callable[[bytes], str],
    fields: Callable[[bytes], Sequence[Field]],
    framed: Callable[[bytes], bytes],
    port: int,
    cut: str = "ConnectionCut",
) -> Wire:
    """Return the Wire of a companion, whose documents stand in its folder."""
    folder = ROOT / "companions" / name
    return Wire(
        name,
        title,
        fields,
        folder,
        folder / "CLAIMS.md",
        f"python -m companions.{name}.attacks",
        lambda message: f"{title(message)}, {plural(len(message), 'byte')}",
        framed,
        port,
        cut,
    )


def laid_out(
    message: bytes, layout: Iterable[tuple[str, int]], meaning: Callable[[str, bytes], str]
) -> list[Field]:
    """Cut a message into fields of given names and lengths; what is longer has a `rest`."""
    found: list[Field] = []
    at = 0
    for name, length in layout:
        content = message[at : at + length]
        found.append(Field(name, content, meaning(name, content)))
        at += len(content)
    if at < len(message):
        found.append(Field("rest", message[at:]))
    return found


class Change(NamedTuple):
    """One field before and after; `touched` are the places in it where the two differ."""

    before: Field
    after: Field
    touched: frozenset[int]


def changes(before: Sequence[Field], after: Sequence[Field]) -> list[Change]:
    """Set two messages side by side, field by field; a field that one of them lacks is empty."""
    empty = {field.name: Field(field.name, b"") for field in (*before, *after)}
    olds = {**empty, **{field.name: field for field in before}}
    news = {**empty, **{field.name: field for field in after}}
    return [
        Change(old, news[name], differing(old.content, news[name].content))
        for name, old in olds.items()
    ]


def in_short(change: Change) -> str:
    """Name a field that has changed, with its lengths or its byte if only these have."""
    old = change.before.content
    new = change.after.content
    if len(old) != len(new):
        return f"{change.after.name}: {len(old)} -> {plural(len(new), 'byte')}"
    if len(change.touched) > 1:
        return change.after.name
    (at,) = change.touched
    return f"{change.after.name}: {old[at]:02x} -> {new[at]:02x}"


def differing(one: bytes, other: bytes) -> frozenset[int]:
    """Return the places that differ, or that only one of them has."""
    both = min(len(one), len(other))
    return frozenset(
        at for at in range(max(len(one), len(other))) if at >= both or one[at] != other[at]
    )


# This lab's protocol [P 3.2] ----------------------------------------------------------------------

FIELD_NAMES = {"client_id": "client id", "round_number": "round"}
IN_HEADER = {
    FIELD_NAMES.get(name, name): struct.calcsize(code)
    for name, code in zip(Header._fields, HEADER.format.lstrip(">"))
}
NAMES: dict[str, Mapping[int, str]] = {"opcode": OPCODE_NAMES, "direction": DIRECTION_NAMES}


def lab_fields(message: bytes) -> list[Field]:
    """Cut a message as PROTOCOL.md 3.2 does. One that is too short for its tag has none."""
    ciphertext = max(0, len(message) - CIPHERTEXT_AT - TAG_BYTES)
    layout = {**IN_HEADER, "IV": BLOCK_BYTES, "ciphertext": ciphertext, "tag": TAG_BYTES}
    return laid_out(message, layout.items(), lab_meaning)


def lab_meaning(name: str, content: bytes) -> str:
    """Say what a field of the header means."""
    if name not in IN_HEADER or not content:
        return ""
    value = int.from_bytes(content, "big")
    return f"{value}: {NAMES[name].get(value, 'unknown')}" if name in NAMES else str(value)


def lab_title(message: bytes) -> str:
    """Name a message by its opcode and its round."""
    if len(message) < HEADER.size:
        return plural(len(message), "byte")
    header = Header(*HEADER.unpack_from(message))
    return f"{opcode_of(message)}, round {header.round_number}"


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
)
