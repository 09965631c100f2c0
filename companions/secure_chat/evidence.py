"""What an end keeps of its stay in a room: the transcript, and receipts that both ends sign.

A client keeps all of it in files, side by side, named after the moment when it joined:

    transcript_20231115_143022.txt   openings_....jsonl   certs_....pem
    receipt_..._client.json          receipt_..._server.json

The server has the room's own transcript, and keeps of each stay only the hash and the receipts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from companions.secure_chat.authority import pem_of
from companions.secure_chat.pki import Identity, parse_pem
from companions.secure_chat.protocol import Kind, Message, Session, from_base64, to_base64
from companions.secure_chat.rooms import SIGNATURE_BYTES, Entry, Said
from companions.secure_chat.transcript import (
    BadReceipt,
    Lines,
    Receipt,
    Transcript,
    check_receipt,
    countersign,
    is_countersigned,
    make_receipt,
    opening_line,
    parse_receipt,
    save_receipt,
)


class Kept(NamedTuple):
    """Where the evidence of a stay is, and whether the peer has countersigned our receipt."""

    transcript: Path
    receipt: Path
    messages: int
    is_countersigned: bool


class Evidence:
    """The evidence of one stay in a room, from the head `base` on. Raises UserError."""

    def __init__(self, session: Session, room: str, base: bytes, folder: Path) -> None:
        self._session = session
        self._room = room
        self._folder = folder
        self._is_client = session.party.identity.role == "client"
        self._stem = self._free_stem()
        server = session.peer if self._is_client else session.party.identity
        self._file = self._path("transcript", ".txt")
        self.transcript = Transcript(
            self._file if self._is_client else None, server.fingerprint, base
        )
        self._openings = Lines(self._path("openings", ".jsonl") if self._is_client else None)
        self._certificates = Lines(self._path("certs", ".pem") if self._is_client else None)
        self._shown: set[str] = set()  # certificates that are in the file
        self._receipt: Receipt | None = None
        self._countersignature: bytes | None = None  # of the peer, under our receipt
        self._theirs: Receipt | None = None
        self.show(session.party.pem)
        self.show(session.peer_pem)

    def add(self, entry: Entry) -> None:
        """Keep a message and its head. Raises EvidenceFailed."""
        self.transcript.add(*entry)

    def hear(self, said: Said) -> None:
        """Keep what was said in our presence, and how it opens. Raises EvidenceFailed.

        A power cut can take the last openings: the transcript proves no less without them.
        """
        self.show(said.member.pem)
        self.add(said.entry)
        if said.opening:
            line = opening_line(self.transcript.last_seqno, said.opening)
            self._openings.append(line, is_synced=False)

    def show(self, pem: str) -> None:
        """Keep a certificate that is needed to verify the rest. Raises EvidenceFailed."""
        if pem not in self._shown:
            self._shown.add(pem)
            for one in parse_pem(pem):  # what else a peer wrote there could spoil the whole file
                self._certificates.append(pem_of(one))

    # Receipts

    def offer(self, countersignature: bytes = b"") -> Message:
        """Return our receipt for all that was said, and our countersignature of the peer's."""
        receipt = self._own_receipt()
        members = {"receipt": receipt.members(), "countersignature": to_base64(countersignature)}
        return Message(Kind.RECEIPT, members)

    def accept(self, message: Message) -> bytes:
        """Check the peer's receipt, and return our countersignature. Raises ProtocolError."""
        session = self._session
        try:
            theirs = parse_receipt(message["receipt"])
        except ValueError as error:
            raise BadReceipt("a receipt", str(error)[:80]) from None
        known = self._known(session.party.identity, session.peer_pem)
        check_receipt(theirs, known, session.peer, session.now())
        self._theirs = theirs
        return countersign(session.party.private_key, theirs)

    def confirm(self, countersignature: str) -> None:
        """Take the peer's countersignature of our receipt. Raises ProtocolError."""
        signature = from_base64(countersignature, *SIGNATURE_BYTES)
        if not is_countersigned(self._session.peer.public_key, self._own_receipt(), signature):
            raise BadReceipt(f"the countersignature of {self._session.peer.name}", "another")
        self._countersignature = signature

    def keep(self) -> Kept:
        """Write the receipts, countersigned or not, and close all files. Raises ProtocolError."""
        ours = self._own_receipt()
        role = self._session.party.identity.role
        path = self._path("receipt", f"_{role}.json")
        save_receipt(path, ours, self._countersignature)
        if self._theirs:
            key = self._session.party.private_key
            other = self._path("receipt", f"_{self._session.peer.role}.json")
            save_receipt(other, self._theirs, countersign(key, self._theirs))
        for file in (self.transcript, self._openings, self._certificates):
            file.close()
        is_countersigned = self._countersignature is not None
        return Kept(self._file, path, self.transcript.message_count, is_countersigned)

    def _own_receipt(self) -> Receipt:
        """Return our receipt; nothing is said in the room after it was asked for."""
        session = self._session
        if self._receipt is None:
            known = self._known(session.peer, session.party.pem)
            self._receipt = make_receipt(known, session.party.private_key, session.now())
        return self._receipt

    def _known(self, peer: Identity, signer_pem: str) -> dict[str, Any]:
        return self.transcript.known(self._session.session_id, self._room, peer, signer_pem)

    # Files

    def _free_stem(self) -> str:
        """Return what the names of the files end in: the moment, and what tells them apart."""
        moment = self._session.now().strftime("%Y%m%d_%H%M%S")
        first = "transcript_{}.txt"
        if not self._is_client:
            moment += f"_{self._session.session_id.hex()[:8]}"
            first = "receipt_{}_server.json"
        stem = moment
        number = 1
        while (self._folder / first.format(stem)).exists():
            number += 1
            stem = f"{moment}_{number}"
        return stem

    def _path(self, what: str, end: str) -> Path:
        return self._folder / f"{what}_{self._stem}{end}"
