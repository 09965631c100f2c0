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
from program import plural, run_program

PORT = 5555
WHO = (("share", SHARE_BYTES), ("public key", KEY_BYTES), ("signature", SIGNATURE_BYTES))
LAYOUTS: dict[int, tuple[tuple[str, int], ...]] = {  # of what is sent in clear [N 2]
    Kind.HELLO: (("version", 1), ("timestamp", 8), *WHO),
    Kind.REPLY: (("version", 1), ("timestamp", 8), ("HELLO", DIGEST_BYTES), *WHO),
}
RECORD = (("session", SESSION_BYTES), ("sender", 1), ("sequence", 4), ("timestamp", 8))  # [N 4]
NUMBERS = ("version", "sender", "sequence", "timestamp")
ROLE_NAMES = {role.value: role.name for role in Role}
LATEST_MS = 2**42  # in the year 2109; what is later is no time of ours


def fields(message: bytes) -> list[Field]:
    """Cut a message as [N 2] and [N 4] do. What is too short for its tag has none."""
    kind = message[:1]
    layout = LAYOUTS.get(message[0]) if message else None
    found = [Field("kind", kind, kind_name(message))]
    at = len(kind)
    for name, length in layout or RECORD:
        content = message[at : at + length]
        found.append(Field(name, content, meaning_of(name, content)))
        at += len(content)
    if layout is None:
        end = max(HEADER.size, len(message) - GCM_TAG_BYTES)
        found += [Field("ciphertext", message[at:end]), Field("tag", message[end:])]
    elif at < len(message):
        found.append(Field("rest", message[at:]))
    return found


def meaning_of(name: str, content: bytes) -> str:
    """Say what a field means, if that can be read without a key."""
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
    if not message or message[0] in LAYOUTS or len(message) < MIN_RECORD:
        return kind_name(message)
    return f"{kind_name(message)}, number {Header(*HEADER.unpack_from(message)).sequence}"


def describe(message: bytes) -> str:
    """Return the public part of a message, in a line."""
    return f"{title(message)}, {plural(len(message), 'byte')}"


def framed(message: bytes) -> bytes:
    """Return what ZeroMQ puts on TCP for a message of one part (ZMTP 3, RFC 23)."""
    if len(message) > 255:
        return b"\2" + len(message).to_bytes(8, "big") + message
    return b"\0" + len(message).to_bytes(1, "big") + message


FOLDER = Path(__file__).parent
WIRE = Wire(
    name="peer_messaging",
    title=title,
    fields=fields,
    data=FOLDER,
    claims=FOLDER / "CLAIMS.md",
    attacks="python -m companions.peer_messaging.attacks",
    describe=describe,
    framed=framed,
    port=PORT,
    cuts=frozenset({"PeerAway"}),
)

if __name__ == "__main__":
    run_program(partial(main, WIRE))
