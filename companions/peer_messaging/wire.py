"""What a message of this protocol looks like, for the pages that show what an adversary did.

python -m companions.peer_messaging.attacks --events events.jsonl
python -m companions.peer_messaging.wire events.jsonl -o report.html
"""

from __future__ import annotations

from datetime import datetime, timezone
from functools import partial

from classroom.report import main
from classroom.wire import Field, companion, laid_out
from companions.asymmetric import SHARE_BYTES, SIGNATURE_BYTES
from companions.peer_messaging.attacks import kind_name
from companions.peer_messaging.identity import KEY_BYTES
from companions.peer_messaging.protocol import (
    DIGEST_BYTES,
    GCM_TAG_BYTES,
    HEADER,
    MIN_RECORD,
    SESSION_BYTES,
    Header,
    Kind,
    Role,
)
from program import run_program

PORT = 5555
WHO = (("share", SHARE_BYTES), ("public key", KEY_BYTES), ("signature", SIGNATURE_BYTES))
LAYOUTS: dict[bytes, tuple[tuple[str, int], ...]] = {  # of what is sent in clear [N 2]
    bytes([Kind.HELLO]): (("version", 1), ("timestamp", 8), *WHO),
    bytes([Kind.REPLY]): (("version", 1), ("timestamp", 8), ("HELLO", DIGEST_BYTES), *WHO),
}
RECORD = (("session", SESSION_BYTES), ("sender", 1), ("sequence", 4), ("timestamp", 8))  # [N 4]
NUMBERS = ("version", "sender", "sequence", "timestamp")
ROLE_NAMES = {role.value: role.name for role in Role}
LATEST_MS = 2**42  # in the year 2109; what is later is no time of ours


def fields(message: bytes) -> list[Field]:
    """Cut a message as [N 2] and [N 4] do. What is too short for its tag has none."""
    ciphertext = max(0, len(message) - HEADER.size - GCM_TAG_BYTES)
    record = (*RECORD, ("ciphertext", ciphertext), ("tag", GCM_TAG_BYTES))
    layout = LAYOUTS.get(message[:1], record)
    return laid_out(message, [("kind", 1), *layout], meaning_of)


def meaning_of(name: str, content: bytes) -> str:
    """Say what a field means, if that can be read without a key."""
    if name == "kind":
        return kind_name(content)
    if name not in NUMBERS or not content:
        return ""
    value = int.from_bytes(content, "big")
    if name == "sender":
        return f"{value}: {ROLE_NAMES.get(value, 'unknown')}"
    if name == "timestamp":
        return time_of(value) if value < LATEST_MS else ""
    return str(value)


def time_of(milliseconds: int) -> str:
    """Return a timestamp as a date and a time, UTC."""
    at = datetime.fromtimestamp(milliseconds / 1_000, timezone.utc)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{milliseconds % 1_000:03}Z"


def title(message: bytes) -> str:
    """Name a message by its kind, and a record by its number too."""
    if message[:1] in LAYOUTS or len(message) < MIN_RECORD:
        return kind_name(message)
    return f"{kind_name(message)}, number {Header(*HEADER.unpack_from(message)).sequence}"


def framed(message: bytes) -> bytes:
    """Return what ZeroMQ puts on TCP for a message of one part (ZMTP 3, RFC 23)."""
    if len(message) > 255:
        return b"\2" + len(message).to_bytes(8, "big") + message
    return b"\0" + len(message).to_bytes(1, "big") + message


WIRE = companion("peer_messaging", title, fields, framed, PORT, cut="PeerAway")

if __name__ == "__main__":
    run_program(partial(main, WIRE))
