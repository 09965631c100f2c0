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
    VERSION,
    Direction,
    Kind,
)
from crypto_utils import BLOCK_BYTES, NONCE_BYTES, TAG_BYTES
from program import run_program

LAYOUTS: dict[bytes, tuple[tuple[str, int], ...]] = {  # of what is sent in clear [D 1]
    Kind.HELLO.value: (("version", len(VERSION)), ("nonce", NONCE_BYTES), ("certificate", 2**16)),
    Kind.SHARE.value: (("share", SHARE_BYTES), ("signature", SIGNATURE_BYTES)),
}
RECORD = (("session", 16), ("direction", 1), ("sequence", 8), ("IV", BLOCK_BYTES))  # [D 4]


def fields(message: bytes) -> list[Field]:
    """Cut a message as [D 1] and [D 4] do. What is too short for its tag has none."""
    found = [Field("kind", message[:KIND_BYTES], kind_name(message))]
    at = KIND_BYTES
    for name, length in LAYOUTS.get(message[:KIND_BYTES], RECORD):
        content = message[at : at + length]
        found.append(Field(name, content, meaning_of(name, content)))
        at += len(content)
    if message[:KIND_BYTES] in LAYOUTS:
        return [*found, Field("rest", message[at:])] if message[at:] else found
    end = max(CIPHERTEXT_AT, len(message) - TAG_BYTES)
    return [*found, Field("ciphertext", message[at:end]), Field("tag", message[end:])]


def meaning_of(name: str, content: bytes) -> str:
    if match := re.search(rb'"common_name":"([^"]*)"', content):
        return ascii(match[1].decode("utf-8", "replace"))[1:-1]
    value = int.from_bytes(content, "big")
    if name == "direction" and content:
        return f"{value}: " + next((way.name for way in Direction if way == value), "unknown")
    return str(value) if name in ("version", "sequence") and content else ""


def title(message: bytes) -> str:
    """Name a message by its kind, and a record by its place too."""
    if message[:KIND_BYTES] in LAYOUTS or len(message) < HEADER.size:
        return kind_name(message)
    return f"{kind_name(message)}, number {HEADER.unpack_from(message)[3]}"


def describe(message: bytes) -> str:
    """Return what anybody sees of a message, in a line."""
    return f"{title(message)}, {len(message)} bytes"


WIRE = Wire(
    "device_transfer",
    title,
    fields,
    Path(__file__).parent,
    Path(__file__).with_name("CLAIMS.md"),
    "python -m companions.device_transfer.attacks",
    describe,
    lambda message: len(message).to_bytes(4, "big") + message,
    PORT,
    frozenset({"ConnectionCut"}),
)

if __name__ == "__main__":
    run_program(partial(main, WIRE))
