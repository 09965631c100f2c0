"""What is kept of a session: a transcript of signed lines, openings of texts, and receipts.

A transcript line has the document's five columns and two more:

    seqno|ts|base64(ct)|base64(sig)|peer_cert_fingerprint|chain|base64(signed)

`signed` are the exact bytes under `sig`; the first three columns repeat what they say, the fifth
names the certificate of the signer. `chain` is a hash over the line and the chain before it. Each
message in a room is two lines: what its sender signed, and the head that the server signed after
it (its index, its clock, and the head in place of a ciphertext). Both ends write the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any, get_type_hints

from companions.asymmetric import PrivateKey, PublicKey
from companions.canonical import canonical, has_members
from companions.secure_chat import forms
from companions.secure_chat.forms import OPENING_BYTES
from companions.secure_chat.pae import is_signed, pae, sign
from companions.secure_chat.pki import SKEW, Identity
from companions.secure_chat.protocol import from_base64, to_base64
from program import UserError, reason_of
from protocol_fsm import ProtocolError

CHAIN_LABEL = b"secure_chat v1 line"
COLUMNS = 7
APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
UNCOUNTERSIGNED = "uncountersigned"
RECEIPT_VERSION = 1
TIME = "%Y-%m-%dT%H:%M:%SZ"


class EvidenceFailed(ProtocolError):
    """A line that could not be kept: the session cannot go on without it."""


class BadReceipt(ProtocolError):
    """The peer's receipt does not say what we know, or is not signed by the peer."""


# Lines --------------------------------------------------------------------------------------------


def columns_of(signed: bytes) -> tuple[int, int, bytes]:
    """Return seqno, ts and ct that signed bytes speak of. Raises ValueError."""
    content = forms.parse_signed(signed)
    if isinstance(content, forms.Head):
        return content.index, content.ts, content.head
    return content.seqno, content.ts, content.ct


def line_of(chain: bytes, signed: bytes, signature: bytes, fingerprint: str) -> tuple[str, bytes]:
    """Return a line without its end, and the chain after it. Raises ValueError."""
    before, last = _columns(signed, signature, fingerprint)
    after = hashlib.sha256(CHAIN_LABEL + chain + f"{before}|{last}".encode("ascii")).digest()
    return f"{before}|{after.hex()}|{last}", after


@lru_cache(maxsize=64)  # in the transcripts of all members, only the chains differ
def _columns(signed: bytes, signature: bytes, fingerprint: str) -> tuple[str, str]:
    """Return the columns before the chain, and the one behind it. Raises ValueError."""
    seqno, ts, ct = columns_of(signed)
    before = f"{seqno}|{ts}|{to_base64(ct)}|{to_base64(signature)}|{fingerprint}"
    return before, to_base64(signed)


@lru_cache(maxsize=64)
def _sender_of(signed: bytes) -> str:
    return forms.parse_message(signed).sender


class Lines:
    """A new file of lines that is only ever appended to, mode 0600. None: nothing is kept.

    Raises UserError if it cannot be made, or exists.
    """

    def __init__(self, path: Path | None) -> None:
        self._file: int | None = None
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, APPEND, 0o600)
        except OSError as error:
            raise UserError(f"cannot keep evidence in {path}: {reason_of(error)}") from None

    def append(self, lines: bytes, *, is_synced: bool = True) -> None:
        """Write the lines; if `is_synced`, wait for the disk. Raises EvidenceFailed.

        A part that still fits on a full disk is removed again: later lines must not follow it.
        """
        if self._file is None:
            return
        before = os.fstat(self._file).st_size
        try:
            left = memoryview(lines)
            while left:
                left = left[os.write(self._file, left) :]
            if is_synced:
                os.fsync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, before)
            raise EvidenceFailed("room for a line", reason_of(error)) from None

    def close(self) -> None:
        file = self._file
        self._file = None
        if file is not None:
            os.close(file)


class Transcript:
    """The lines of one member's session in a room, from the head `base` at which it came in."""

    def __init__(self, path: Path | None, server_fingerprint: str, base: bytes) -> None:
        self.base = base
        self.message_count = 0
        self.first_seqno = 0
        self._server = server_fingerprint
        self._lines = Lines(path)
        self._chain = forms.NOTHING
        self._hash = hashlib.sha256()

    @property
    def last_seqno(self) -> int:
        """The index of the last message; one below `first_seqno` if there is none."""
        return self.first_seqno + self.message_count - 1

    def hash(self) -> str:
        """Return the SHA-256 (hex) of all lines with their ends: that of the file."""
        return self._hash.hexdigest()

    def add(self, signed: bytes, signature: bytes, head: bytes, head_signature: bytes) -> None:
        """Keep a message and its head, which were verified. Raises EvidenceFailed, ValueError."""
        first, chain = line_of(self._chain, signed, signature, _sender_of(signed))
        second, chain = line_of(chain, head, head_signature, self._server)
        lines = f"{first}\n{second}\n".encode("ascii")
        self._lines.append(lines)
        if not self.message_count:
            self.first_seqno = forms.parse_head(head).index
        self._chain = chain
        self._hash.update(lines)
        self.message_count += 1

    def known(self, session: bytes, room: str, peer: Identity, signer_pem: str) -> dict[str, Any]:
        """Return the fields of a receipt for `peer` that both ends know by themselves."""
        return {
            "type": "receipt",
            "peer": peer.role,
            "first_seqno": self.first_seqno,
            "last_seqno": self.last_seqno,
            "message_count": self.message_count,
            "transcript_hash": self.hash(),
            "peer_cert_fingerprint": peer.fingerprint,
            "signer_cert": to_base64(signer_pem.encode("ascii")),
            "version": RECEIPT_VERSION,
            "session_id": session.hex(),
            "room": room,
            "base_head": self.base.hex(),
        }

    def close(self) -> None:
        self._lines.close()


def opening_line(index: int, opening: bytes) -> bytes:
    """Return the line that discloses what the message with this index in the room says."""
    members = {
        "index": index,
        "opening": to_base64(opening[:OPENING_BYTES]),
        "text": opening[OPENING_BYTES:].decode("utf-8"),
    }
    return canonical(members) + b"\n"


# Receipts -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Receipt:
    """What one end says of a whole session: the document's fields first, and all are signed.

    `peer` and `peer_cert_fingerprint` say to whom, `signer_cert` (base64 of PEM) who says so.
    `first_seqno` and `last_seqno` are indices in the room, `session_id` and `base_head` are hex.
    """

    type: str
    peer: str
    created_at: str
    first_seqno: int
    last_seqno: int
    message_count: int
    transcript_hash: str
    peer_cert_fingerprint: str
    signer_cert: str
    version: int
    session_id: str
    room: str
    base_head: str
    signature: str

    def members(self) -> dict[str, Any]:
        return asdict(self)

    def signed(self) -> bytes:
        """Return the bytes under the signature: every other field, in canonical form."""
        members = self.members()
        del members["signature"]
        return pae("receipt", canonical(members))

    def countersigned(self) -> bytes:
        """Return the bytes under a countersignature: every field."""
        return pae("countersign", canonical(self.members()))


MEMBERS: Mapping[str, type] = get_type_hints(Receipt)


def parse_receipt(members: Mapping[str, Any]) -> Receipt:
    """Return a receipt, unverified. Raises ValueError."""
    if not has_members(members, MEMBERS):
        raise ValueError("not exactly the fields of a receipt, or a wrong type")
    receipt = Receipt(**members)
    if receipt.type != "receipt" or receipt.version != RECEIPT_VERSION:
        raise ValueError("not a receipt of this version")
    return receipt


def make_receipt(known: Mapping[str, Any], key: PrivateKey, now: datetime) -> Receipt:
    """Return our signed receipt, which says what is known."""
    created = now.astimezone(timezone.utc).strftime(TIME)
    receipt = Receipt(**known, created_at=created, signature="")
    return replace(receipt, signature=to_base64(sign(key, receipt.signed())))


def check_receipt(
    receipt: Receipt, known: Mapping[str, Any], signer: Identity, now: datetime
) -> None:
    """Raise BadReceipt, or BadPayload, unless the peer signed what we know ourselves, just now."""
    said = receipt.members()
    for name, value in known.items():
        if said[name] != value:
            raise BadReceipt(f"{name} {value!a}"[:100], f"{said[name]!a}"[:100])
    if abs(parse_time(receipt.created_at) - now) > SKEW:
        raise BadReceipt("a receipt of now", receipt.created_at)
    if not is_signed(signer.public_key, receipt.signed(), from_base64(receipt.signature)):
        raise BadReceipt(f"the signature of {signer.name}", "another")


def parse_time(text: str) -> datetime:
    """Return the moment. Raises BadReceipt."""
    try:
        moment = datetime.strptime(text, TIME).replace(tzinfo=timezone.utc)
    except ValueError:
        raise BadReceipt("a moment like 2026-01-31T12:00:00Z", ascii(text)[:40]) from None
    if moment.strftime(TIME) != text:  # strptime takes fewer digits
        raise BadReceipt(moment.strftime(TIME), ascii(text)[:40])
    return moment


def countersign(key: PrivateKey, receipt: Receipt) -> bytes:
    """Return our signature (256 bytes) under the peer's receipt, which we have checked."""
    return sign(key, receipt.countersigned())


def is_countersigned(key: PublicKey, receipt: Receipt, signature: bytes) -> bool:
    """Return whether the owner of the key confirmed exactly this receipt."""
    return is_signed(key, receipt.countersigned(), signature)


def save_receipt(path: Path, receipt: Receipt, countersignature: bytes | None) -> None:
    """Write a new file with a receipt, and what the peer put under it. Raises UserError.

    Without a countersignature it says so, and proves only its signer's word.
    """
    mark = to_base64(countersignature) if countersignature else UNCOUNTERSIGNED
    try:
        with contextlib.closing(Lines(path)) as file:
            file.append(canonical({**receipt.members(), "countersignature": mark}) + b"\n")
    except EvidenceFailed as error:
        path.unlink()  # an empty one would look like a receipt
        raise UserError(f"cannot write {path}: {error.got}") from None
