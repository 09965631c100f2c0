"""What a message of this protocol looks like, for the pages that show what an adversary did.

python -m companions.peer_messaging.attacks --events events.jsonl
python -m companions.peer_messaging.wire events.jsonl -o report.html
"""

from __future__ import annotations

from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from classroom.report import main
from classroom.wire import Field, Wire
from companions.asymmetric import SHARE_BYTES, SIGNATURE_BYTES
from companions.peer_messaging.identity import KEY_BYTES
from companions.peer_messaging.protocol import (
    DIGEST_BYTES,
    GCM_TAG_BYTES,
    HEADER,
    MIN_RECORD,
    SESSION_BYTES,
    Kind,
    Role,
)
from program import run_program

PORT = 5555
WHO = (("share", SHARE_BYTES), ("public key", KEY_BYTES), ("signature", SIGNATURE_BYTES))
LAYOUTS: dict[int, tuple[tuple[str, int], ...]] = {  # of what is sent in clear [N 2]
    Kind.HELLO: (("version", 1), ("timestamp", 8), *WHO),
    Kind.REPLY: (("version", 1), ("timestamp", 8), ("HELLO", DIGEST_BYTES), *WHO),
}
RECORD = (("session", SESSION_BYTES), ("sender", 1), ("sequence", 4), ("timestamp", 8))  # [N 4]


def kind_name(message: bytes) -> str:
    """Name the kind of a message."""
    return next((kind.name for kind in Kind if message[:1] == bytes([kind])), "nonsense")


def fields(message: bytes) -> list[Field]:
    """Cut a message as [N 2] and [N 4] do. What is too short for its tag has none."""
    found = [Field("kind", message[:1], kind_name(message))]
    at = 1
    layout = LAYOUTS.get(message[0]) if message else None
    for name, length in layout or RECORD:
        content = message[at : at + length]
        found.append(Field(name, content, meaning_of(name, content)))
        at += len(content)
    if layout:
        return [*found, Field("rest", message[at:])] if message[at:] else found
    end = max(HEADER.size, len(message) - GCM_TAG_BYTES)
    return [*found, Field("ciphertext", message[at:end]), Field("tag", message[end:])]


def meaning_of(name: str, content: bytes) -> str:
    value = int.from_bytes(content, "big")
    if name == "sender" and content:
        return f"{value}: " + next((role.name for role in Role if role == value), "unknown")
    if name == "timestamp" and content and value < 2**42:
        at = datetime.fromtimestamp(value / 1_000, timezone.utc)
        return f"{at:%Y-%m-%dT%H:%M:%S}.{value % 1_000:03}Z"
    return str(value) if name in ("version", "sequence") and content else ""


def title(message: bytes) -> str:
    """Name a message by its kind, and a record by its number too."""
    if not message or message[0] in LAYOUTS or len(message) < MIN_RECORD:
        return kind_name(message)
    return f"{kind_name(message)}, number {HEADER.unpack_from(message)[3]}"


def describe(message: bytes) -> str:
    """Return what anybody sees of a message, in a line."""
    return f"{title(message)}, {len(message)} bytes"


def framed(message: bytes) -> bytes:
    """Return what ZeroMQ puts on TCP for a message of one part (ZMTP 3, RFC 23)."""
    long = len(message) > 255
    return bytes([2 * long]) + len(message).to_bytes(8 if long else 1, "big") + message


WIRE = Wire(
    "peer_messaging",
    title,
    fields,
    Path(__file__).parent,
    Path(__file__).with_name("CLAIMS.md"),
    "python -m companions.peer_messaging.attacks",
    describe,
    framed,
    PORT,
    frozenset({"PeerAway"}),
)

if __name__ == "__main__":
    run_program(partial(main, WIRE))
