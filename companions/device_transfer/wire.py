"""What a message of this protocol looks like, for the pages that show what an adversary did.

python -m companions.device_transfer.attacks --events events.jsonl
python -m companions.device_transfer.wire events.jsonl -o report.html
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from classroom.report import main
from classroom.wire import Field, Wire
from companions.asymmetric import SHARE_BYTES, SIGNATURE_BYTES
from companions.device_transfer.attacks import kind_name
from companions.device_transfer.options import PORT
from companions.device_transfer.protocol import (
    CIPHERTEXT_AT,
    HEADER,
    KIND_BYTES,
    SESSION_BYTES,
    VERSION,
    Direction,
    Kind,
)
from crypto_utils import BLOCK_BYTES, NONCE_BYTES, TAG_BYTES
from program import escaped, plural, run_program

LAYOUTS: dict[bytes, tuple[tuple[str, int], ...]] = {  # of what is sent in clear [D 1]
    Kind.HELLO.value: (("version", len(VERSION)), ("nonce", NONCE_BYTES), ("certificate", 2**16)),
    Kind.SHARE.value: (("share", SHARE_BYTES), ("signature", SIGNATURE_BYTES)),
}
RECORD = (  # [D 4]
    ("session", SESSION_BYTES),
    ("direction", 1),
    ("sequence", 8),
    ("IV", BLOCK_BYTES),
)
NUMBERS = ("version", "direction", "sequence")
DIRECTION_NAMES = {direction.value: direction.name for direction in Direction}


def fields(message: bytes) -> list[Field]:
    """Cut a message as [D 1] and [D 4] do. What is too short for its tag has none."""
    kind = message[:KIND_BYTES]
    found = [Field("kind", kind, kind_name(message))]
    at = len(kind)
    for name, length in LAYOUTS.get(kind, RECORD):
        content = message[at : at + length]
        found.append(Field(name, content, meaning_of(name, content)))
        at += len(content)
    if kind not in LAYOUTS:
        end = max(CIPHERTEXT_AT, len(message) - TAG_BYTES)
        found += [Field("ciphertext", message[at:end]), Field("tag", message[end:])]
    elif at < len(message):
        found.append(Field("rest", message[at:]))
    return found


def meaning_of(name: str, content: bytes) -> str:
    """Say what a field means, if that can be read without a key."""
    if match := re.search(rb'"common_name":"([^"]*)"', content):
        return escaped(match[1].decode("utf-8", "replace"))
    if name not in NUMBERS or not content:
        return ""
    value = int.from_bytes(content, "big")
    if name == "direction":
        return f"{value}: {DIRECTION_NAMES.get(value, 'unknown')}"
    return str(value)


def title(message: bytes) -> str:
    """Name a message by its kind, and a record by its place too."""
    if message[:KIND_BYTES] in LAYOUTS or len(message) < HEADER.size:
        return kind_name(message)
    return f"{kind_name(message)}, number {HEADER.unpack_from(message)[3]}"


def describe(message: bytes) -> str:
    """Return the public part of a message, in a line."""
    return f"{title(message)}, {plural(len(message), 'byte')}"


def framed(message: bytes) -> bytes:
    """Return what TCP carries for a message [D 1]."""
    return len(message).to_bytes(4, "big") + message


FOLDER = Path(__file__).parent
WIRE = Wire(
    name="device_transfer",
    title=title,
    fields=fields,
    data=FOLDER,
    claims=FOLDER / "CLAIMS.md",
    attacks="python -m companions.device_transfer.attacks",
    describe=describe,
    framed=framed,
    port=PORT,
    cuts=frozenset({"ConnectionCut"}),
)

if __name__ == "__main__":
    run_program(partial(main, WIRE))
