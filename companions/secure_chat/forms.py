"""What is signed and kept: messages, heads of a room, and the commitments to their texts.

The sender signs a message once, and nobody rebuilds it: the relay, the members, the transcript and
the verifier all judge the same bytes. The relay alone orders, and signs the head of each room after
each message; a head stands for the whole history before it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from companions.secure_chat.pae import pae, parts_of

HASH_BYTES = 32
OPENING_BYTES = 32
NOTHING = bytes(HASH_BYTES)  # before the first message, the first line, the first head
MAX_SEQNO = 2**63 - 1
COMMITMENT_LABEL = b"secure_chat v1 commitment"
HEAD_LABEL = b"secure_chat v1 head"
FINGERPRINT = re.compile("[0-9a-f]{64}")


class Recipient(NamedTuple):
    """A member that a message is for, and the id (32 bytes) of the session that it is heard in.

    The member's own nonce makes the session fresh: an old message is not for it.
    """

    fingerprint: str
    session: bytes


@dataclass(frozen=True)
class Message:
    """What a sender says to a room: all of it is under the signature.

    `session` is the id of the sender's session (32 bytes), `sender` the fingerprint of the
    sender's certificate (hex): with the `recipients`, they say which way it goes. `ts` is Unix time
    in ms, `previous` the hash of the sender's previous message in the same session, `seen` the
    newest head that the sender knows. `commitment` binds the text; `ct` is IV and ciphertext.
    """

    session: bytes
    room: str
    sender: str
    recipients: tuple[Recipient, ...]  # sorted
    seqno: int
    ts: int
    previous: bytes
    seen: bytes
    commitment: bytes
    ct: bytes

    def encode(self) -> bytes:
        """Return the bytes to sign."""
        return pae(
            "msg",
            self.session,
            self.room.encode("utf-8"),
            bytes.fromhex(self.sender),
            b"".join(bytes.fromhex(one.fingerprint) + one.session for one in self.recipients),
            _number(self.seqno),
            _number(self.ts),
            self.previous,
            self.seen,
            self.commitment,
            self.ct,
        )


def parse_message(data: bytes) -> Message:
    """Return what signed bytes say. Raises ValueError."""
    session, room, sender, recipients, seqno, ts, previous, seen, commitment, ct = _parts(
        "msg", data, 10
    )
    hashes = (session, sender, previous, seen, commitment)
    if any(len(one) != HASH_BYTES for one in hashes) or len(recipients) % (2 * HASH_BYTES):
        raise ValueError("a hash of the wrong size")
    return Message(
        session,
        room.decode("utf-8"),
        sender.hex(),
        tuple(_parse_recipients(recipients)),
        _parse_number(seqno),
        _parse_number(ts),
        previous,
        seen,
        commitment,
        ct,
    )


def _parse_recipients(data: bytes) -> Iterator[Recipient]:
    for start in range(0, len(data), 2 * HASH_BYTES):
        middle = start + HASH_BYTES
        yield Recipient(data[start:middle].hex(), data[middle : middle + HASH_BYTES])


@dataclass(frozen=True)
class Head:
    """What the relay says of a room's order: message `index`, the first is 0, led to `head`.

    `start` is the head before the first message: 32 random bytes, new when a room is made, so that
    two histories are of one room only if they have the same. `ts` is the relay's clock, in ms.
    """

    room: str
    start: bytes
    index: int
    ts: int
    head: bytes

    def encode(self) -> bytes:
        """Return the bytes to sign."""
        return pae(
            "head",
            self.room.encode("utf-8"),
            self.start,
            _number(self.index),
            _number(self.ts),
            self.head,
        )


def parse_head(data: bytes) -> Head:
    """Return what signed bytes say. Raises ValueError."""
    room, start, index, ts, head = _parts("head", data, 5)
    if len(start) != HASH_BYTES or len(head) != HASH_BYTES:
        raise ValueError("a head of the wrong size")
    return Head(room.decode("utf-8"), start, _parse_number(index), _parse_number(ts), head)


def parse_signed(data: bytes) -> Message | Head:
    """Return what the signed bytes of a line say. Raises ValueError."""
    try:
        return parse_head(data)
    except ValueError:
        return parse_message(data)


def next_head(head: bytes, signed: bytes, signature: bytes) -> bytes:
    """Return the head after a message: it covers the head before, the bytes and the signature."""
    return hashlib.sha256(HEAD_LABEL + head + message_hash(signed) + signature).digest()


def message_hash(signed: bytes) -> bytes:
    """Return the hash by which the sender's next message names this one."""
    return hashlib.sha256(signed).digest()


# Commitments --------------------------------------------------------------------------------------


def commitment(opening: bytes, text: bytes) -> bytes:
    """Return 32 bytes that bind `text` and hide it, as long as `opening` (32 bytes) is secret."""
    return hashlib.sha256(COMMITMENT_LABEL + opening + text).digest()


def opens(committed: bytes, opening: bytes, text: bytes) -> bool:
    """Return whether this is the text, and the opening, that were committed to."""
    is_whole = len(opening) == OPENING_BYTES
    return is_whole and hmac.compare_digest(committed, commitment(opening, text))


# Parts --------------------------------------------------------------------------------------------


def _number(value: int) -> bytes:
    """Return 8 bytes, big-endian, as the document writes them."""
    return value.to_bytes(8, "big")


def _parse_number(data: bytes) -> int:
    value = int.from_bytes(data, "big")
    if len(data) != 8 or value > MAX_SEQNO:
        raise ValueError("not a number of 8 bytes")
    return value


def _parts(kind: str, data: bytes, count: int) -> list[bytes]:
    parts = parts_of(kind, data)
    if len(parts) != count:
        raise ValueError(f"a {kind} has {count} parts")
    return parts
