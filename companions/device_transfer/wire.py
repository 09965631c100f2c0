"""What a message of this protocol looks like, for the pages that show what an adversary did.

python -m companions.device_transfer.attacks --events events.jsonl
python -m companions.device_transfer.wire events.jsonl -o report.html
"""

from __future__ import annotations

import re
from functools import partial

from classroom.report import main
from classroom.wire import Field, companion, laid_out
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
from program import escaped, run_program

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
    ciphertext = max(0, len(message) - CIPHERTEXT_AT - TAG_BYTES)
    record = (*RECORD, ("ciphertext", ciphertext), ("tag", TAG_BYTES))
    layout = LAYOUTS.get(message[:KIND_BYTES], record)
    return laid_out(message, [("kind", KIND_BYTES), *layout], meaning_of)


def meaning_of(name: str, content: bytes) -> str:
    """Say what a field means, if that can be read without a key."""
    if name == "kind":
        return kind_name(content)
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


def framed(message: bytes) -> bytes:
    """Return what TCP carries for a message [D 1]."""
    return len(message).to_bytes(4, "big") + message


WIRE = companion("device_transfer", title, fields, framed, PORT)

if __name__ == "__main__":
    run_program(partial(main, WIRE))
