"""Judge a receipt and its transcript, offline: anybody with the certificates can.

    python -m companions.secure_chat.verify receipt.json transcript.txt cert.pem
        [--ca ca_cert.pem] [--crl ca_crl.pem] [--openings FILE] [--against OTHER_TRANSCRIPT]

`cert.pem` holds every certificate whose fingerprint appears, and those between one of them and the
authority, one after the other. With `--ca`, each is judged at the time of each line that it signed,
as in a handshake; without, cert.pem is believed. `--crl`, with `--ca`, refuses what was revoked by
then. The certificate inside a receipt is never trusted by
itself. `--openings` compares disclosed texts with the commitments, `--against` another member's
transcript with this one: a server that told two histories has signed both. The first bad line is
named, and exit code 1.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509

from companions.asymmetric import PublicKey
from companions.canonical import parse_canonical
from companions.secure_chat import forms
from companions.secure_chat.authority import pem_of
from companions.secure_chat.forms import FINGERPRINT, NOTHING, Head, Message
from companions.secure_chat.pae import is_signed
from companions.secure_chat.pki import (
    SKEW,
    UNREADABLE,
    BadCertificate,
    Role,
    Trust,
    alternative_names,
    client_name,
    fingerprint_of,
    has_issued,
    parse_pem,
)
from companions.secure_chat.protocol import from_base64
from companions.secure_chat.transcript import (
    COLUMNS,
    MEMBERS,
    UNCOUNTERSIGNED,
    Receipt,
    line_of,
    parse_receipt,
    parse_time,
)
from program import Parser, UserError, escaped, plural, reason_of, run_program
from protocol_fsm import BadPayload, ProtocolError

MAX_LINES = 1 << 30  # bytes, of a transcript or of openings
MAX_FILE = 1 << 24  # bytes, of certificates, lists and receipts
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
SKEW_MS = SKEW // timedelta(milliseconds=1)
NAMES = ("seqno", "ts", "ct", "sig", "peer_cert_fingerprint", "chain", "signed")
OPENING_MEMBERS = {"index": int, "opening": str, "text": str}


class Wrong(Exception):
    """The evidence does not hold; the message says where and why."""


# Certificates -------------------------------------------------------------------------------------


class Certificates:
    """The certificates that are known, by fingerprint, and the authority that judges them."""

    def __init__(self, bundle: bytes, ca: bytes | None = None, crl: bytes | None = None) -> None:
        """Raises UserError."""
        try:
            found = x509.load_pem_x509_certificates(bundle)
            self._known = {fingerprint_of(one): one for one in found}
            self._trust = None if ca is None else Trust(ca, lambda: b"")
            self._list = None
            if crl is not None:
                if self._trust is None:
                    raise UserError("a revocation list needs the authority that signed it: --ca")
                self._list = self._trust.signed_list(crl)
        except (*UNREADABLE, BadCertificate) as error:
            raise UserError(f"not certificates, or not a list of this authority: {error}") from None

    def key(self, fingerprint: str, role: Role, moment: datetime) -> PublicKey:
        """Return the key of a certificate that was good for this, then. Raises Wrong."""
        certificate = self._known.get(fingerprint)
        if certificate is None:
            raise Wrong(f"no certificate with the fingerprint {fingerprint[:16]}.. is given")
        try:
            key = certificate.public_key()
        except UNREADABLE:
            key = None
        if not isinstance(key, PublicKey):
            raise Wrong("a certificate whose key is not RSA")
        if self._trust:
            refusals = [
                self._refusal(self._trust, chain, role, moment)
                for chain in self._chains(certificate)
            ]
            if all(refusals):
                raise Wrong(refusals[-1])
        return key

    def _chains(self, leaf: x509.Certificate) -> list[list[x509.Certificate]]:
        """Return a certificate alone, and with each known one that has issued it."""
        return [[leaf], *([leaf, one] for one in self._known.values() if has_issued(one, leaf))]

    def _refusal(
        self, trust: Trust, chain: list[x509.Certificate], role: Role, moment: datetime
    ) -> str:
        """Return why a chain would not have been accepted then; nothing if it would have been."""
        try:
            trust.identify(b"".join(map(pem_of, chain)).decode("ascii"), role, None, moment)
        except BadCertificate as error:
            return f"its signer's certificate: {error}"
        for one, whose in zip(chain, ("its signer's", "its signer's issuer's")):
            since = self._revoked_at(one)
            if since and since <= moment:
                return f"{whose} certificate was revoked {since:%Y-%m-%d %H:%M} UTC"
        return ""

    def name(self, fingerprint: str) -> str:
        """Return the client's address in a known certificate. Raises Wrong."""
        try:
            return escaped(client_name(self._known[fingerprint]))
        except (*UNREADABLE, BadCertificate) as error:
            raise Wrong(f"a sender without an address: {error}") from None

    def server_name(self, fingerprint: str) -> str:
        """Return the names in a known certificate of a server. Raises Wrong."""
        try:
            names = alternative_names(self._known[fingerprint])
        except UNREADABLE as error:
            raise Wrong(f"a server without a name: {error}") from None
        return escaped(", ".join(str(one.value) for one in names)) or "without a name"

    def revoked_later(self) -> list[str]:
        """Return the fingerprints of all that are on the list by now."""
        return [name for name, one in self._known.items() if self._revoked_at(one)]

    def _revoked_at(self, certificate: x509.Certificate) -> datetime | None:
        if self._list is None:
            return None
        serial = certificate.serial_number
        entry = self._list.get_revoked_certificate_by_serial_number(serial)
        return entry.revocation_date_utc if entry else None


# Lines --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A line whose columns agree with its signed bytes, and whose signature is verified."""

    number: int  # the first is 1
    fingerprint: str
    signed: bytes
    signature: bytes
    content: Message | Head


def read_lines(data: bytes, certificates: Certificates) -> Iterator[Line]:
    """Yield the lines of a transcript. Raises Wrong, with the number of the first bad one."""
    chain = NOTHING
    for number, text in enumerate(data.splitlines(keepends=True), 1):
        try:
            line, chain = _read_line(number, text, chain)
            role: Role = "client" if isinstance(line.content, Message) else "server"
            key = certificates.key(line.fingerprint, role, moment_of(line.content.ts))
            if not is_signed(key, line.signed, line.signature):
                raise Wrong("the signature is not its signer's")
        except Wrong as wrong:
            raise Wrong(f"line {number}: {wrong}") from None
        yield line


def _read_line(number: int, text: bytes, chain: bytes) -> tuple[Line, bytes]:
    """Return a line whose columns agree, and the chain after it. Raises Wrong."""
    if text[-1:] != b"\n" or text[-2:] == b"\r\n":
        raise Wrong("torn, or not ended by a newline alone")
    columns = text[:-1].decode("ascii", "replace").split("|")
    if len(columns) != COLUMNS or not FINGERPRINT.fullmatch(columns[4]):
        raise Wrong(f"not {COLUMNS} columns with a fingerprint as the fifth")
    try:
        signature = from_base64(columns[3])
        signed = from_base64(columns[6])
        expected, after = line_of(chain, signed, signature, columns[4])
        content = forms.parse_signed(signed)
    except (ValueError, BadPayload) as error:
        raise Wrong(f"unreadable: {escaped(str(error))[:80]}") from None
    for name, is_there, should_be in zip(NAMES, columns, expected.split("|")):
        if is_there != should_be:
            reason = "a line was changed, moved or lost" if name == "chain" else "not as signed"
            raise Wrong(f"{name}: {reason}")
    return Line(number, columns[4], signed, signature, content), after


def moment_of(ts: int) -> datetime:
    """Return the moment of a time in ms. Raises Wrong."""
    try:
        return EPOCH + timedelta(milliseconds=ts)
    except OverflowError:
        raise Wrong(f"no moment that a calendar has: {ts}") from None


# The history --------------------------------------------------------------------------------------


class History:
    """What the lines say together: one room, every message after the head before it."""

    def __init__(self, receipt: Receipt, signer: str) -> None:
        """Take a receipt, and the fingerprint of its signer."""
        self.lines: list[Line] = []
        self.messages: dict[int, Message] = {}  # by index
        self._receipt = receipt
        parties = (signer, receipt.peer_cert_fingerprint)
        self.server, self.client = parties if receipt.peer == "client" else parties[::-1]
        self._session = bytes.fromhex(receipt.session_id)
        self._start = b""
        self._head = bytes.fromhex(receipt.base_head)
        self._heads = {self._head}
        self._said: dict[bytes, tuple[int, bytes]] = {}  # by session: next seqno, last hash
        self._pending: tuple[Line, Message] | None = None  # its head comes next

    def take(self, line: Line) -> None:
        """Go on by a line. Raises Wrong."""
        try:
            if isinstance(line.content, Message):
                self._take_message(line, line.content)
            else:
                self._take_head(line, line.content)
            self.lines.append(line)
        except Wrong as wrong:
            raise Wrong(f"line {line.number}: {wrong}") from None

    def end(self) -> None:
        """Raise Wrong if the last message has no head."""
        if self._pending:
            line, _ = self._pending
            raise Wrong(f"line {line.number}: the server's head after it is missing")

    def _take_message(self, line: Line, message: Message) -> None:
        if self._pending:
            raise Wrong("a message, where the head of the previous one was due")
        if message.sender != line.fingerprint:
            raise Wrong("its sender is not its signer")
        if message.room != self._receipt.room:
            raise Wrong("of another room")
        is_ours = message.session == self._session
        if is_ours and message.sender != self.client:
            raise Wrong("in the receipt's session, but not by its client")
        is_first = is_ours or message.seqno == 0  # others may have spoken before we came
        first = (0, NOTHING) if is_first else (message.seqno, message.previous)
        if self._said.get(message.session, first) != (message.seqno, message.previous):
            raise Wrong("not the next message of its sender: one is missing, or comes twice")
        parties = (message.session, *(one.session for one in message.recipients))
        if self._session in parties and message.seen not in self._heads:
            raise Wrong(
                "its sender has seen a head that is not here: lines are lost, or the history forks"
            )
        self._said[message.session] = (message.seqno + 1, forms.message_hash(line.signed))
        self._pending = (line, message)

    def _take_head(self, line: Line, head: Head) -> None:
        if self._pending is None:
            raise Wrong("a head, where a message was due")
        before, message = self._pending
        if line.fingerprint != self.server:
            raise Wrong("a head that the receipt's server did not sign")
        index = self._receipt.first_seqno + len(self.messages)
        if (head.room, head.index) != (self._receipt.room, index):
            raise Wrong(f"not the head of message {index} in this room")
        if self._start not in (b"", head.start):
            raise Wrong("of another room with the same name")
        if head.head != forms.next_head(self._head, before.signed, before.signature):
            raise Wrong("the head does not follow from the message and the head before")
        if abs(head.ts - message.ts) > SKEW_MS:
            raise Wrong("the clocks of sender and server differ by more than five minutes")
        self._start = head.start
        self._head = head.head
        self._heads.add(head.head)
        self.messages[index] = message
        self._pending = None


def compare(ours: list[Line], others: list[Line]) -> int:
    """Return how many messages both transcripts have. Raises Wrong if their histories differ."""
    heads = {
        (one.fingerprint, head.room, head.start, head.index): (one.number, head.head)
        for one, head in _heads(ours)
    }
    shared = set()
    for one, head in _heads(others):
        place = (one.fingerprint, head.room, head.start, head.index)
        if place not in heads:
            continue
        shared.add(place)
        number, known = heads[place]
        if known != head.head:
            raise Wrong(
                f"the server told two histories: message {head.index} of {escaped(head.room)} "
                f"is line {number - 1} here, and another one in line {one.number - 1} there"
            )
    for (server, room, start), (first, last) in _times(ours).items():
        for (server_2, room_2, start_2), (first_2, last_2) in _times(others).items():
            is_another = (server, room) == (server_2, room_2) and start != start_2
            # after a restart, or when a room was empty, the other begins later
            if is_another and first <= last_2 and first_2 <= last:
                raise Wrong(
                    f"the server told two histories: it had two rooms {escaped(room)} at once"
                )
    return len(shared)


def _times(lines: list[Line]) -> dict[tuple[str, str, bytes], tuple[int, int]]:
    """Return the first and last time (ms) of each server's room."""
    found: dict[tuple[str, str, bytes], tuple[int, int]] = {}
    for line, head in _heads(lines):
        room = (line.fingerprint, head.room, head.start)
        first, last = found.get(room, (head.ts, head.ts))
        found[room] = (min(first, head.ts), max(last, head.ts))
    return found


def _heads(lines: list[Line]) -> Iterator[tuple[Line, Head]]:
    return ((line, line.content) for line in lines if isinstance(line.content, Head))


# The receipt --------------------------------------------------------------------------------------


def read_receipt(data: bytes) -> tuple[Receipt, bytes | None]:
    """Return a receipt and its countersignature, unverified. Raises Wrong."""
    try:
        members = parse_canonical(data[:-1], {**MEMBERS, "countersignature": str})
        if data[-1:] != b"\n":
            raise ValueError("no newline at its end")
        mark = members.pop("countersignature")
        receipt = parse_receipt(members)
        parse_time(receipt.created_at)
        for name in ("session_id", "base_head", "transcript_hash", "peer_cert_fingerprint"):
            if not FINGERPRINT.fullmatch(getattr(receipt, name)):
                raise ValueError(f"{name} is not 32 bytes in hex")
        return receipt, None if mark == UNCOUNTERSIGNED else from_base64(mark)
    except (ValueError, ProtocolError) as error:
        raise Wrong(f"receipt: unreadable: {escaped(str(error))[:200]}") from None


def check_signatures(
    receipt: Receipt, countersignature: bytes | None, certificates: Certificates
) -> str:
    """Return the fingerprint of the signer. Raises Wrong."""
    try:
        signature = from_base64(receipt.signature)
        pem = from_base64(receipt.signer_cert).decode("ascii")
        signer = fingerprint_of(parse_pem(pem)[0])
    except (ValueError, ProtocolError):
        raise Wrong("receipt: its signature or its signer_cert cannot be read") from None
    moment = parse_time(receipt.created_at)
    roles: Mapping[str, tuple[Role, Role]] = {
        "client": ("server", "client"),
        "server": ("client", "server"),
    }
    if receipt.peer not in roles:
        raise Wrong("receipt: peer is neither client nor server")
    ours, theirs = roles[receipt.peer]
    try:
        key = certificates.key(signer, ours, moment)
        peer_key = certificates.key(receipt.peer_cert_fingerprint, theirs, moment)
    except Wrong as wrong:
        raise Wrong(f"receipt: {wrong}") from None
    if not is_signed(key, receipt.signed(), signature):
        raise Wrong("receipt: a field was changed, or the signature is not its signer's")
    if countersignature and not is_signed(peer_key, receipt.countersigned(), countersignature):
        raise Wrong("receipt: the countersignature is not the peer's")
    return signer


def check_counts(receipt: Receipt, transcript: bytes, history: History) -> None:
    """Raise Wrong unless the receipt is of exactly these lines."""
    found = len(history.messages)
    if receipt.last_seqno - receipt.first_seqno + 1 != receipt.message_count:
        raise Wrong("receipt: its numbers do not fit its count")
    if found < receipt.message_count:
        missing = receipt.message_count - found
        raise Wrong(
            f"line {2 * found + 1}: missing, and with it the last {plural(missing, 'message')}"
        )
    if found > receipt.message_count:
        line = 2 * receipt.message_count + 1
        raise Wrong(
            f"line {line}: the receipt is of {plural(receipt.message_count, 'message')} only"
        )
    if hashlib.sha256(transcript).hexdigest() != receipt.transcript_hash:
        raise Wrong("receipt: of another transcript, though each line holds")


def check_openings(data: bytes, history: History, certificates: Certificates) -> list[str]:
    """Return the disclosed texts, each after its index and its sender. Raises Wrong."""
    found = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            members = parse_canonical(line, OPENING_MEMBERS)
            message = history.messages[members["index"]]
            opening = from_base64(members["opening"])
            text = members["text"].encode("utf-8")
        except (ValueError, KeyError, BadPayload):
            raise Wrong(f"opening {number}: unreadable, or of no message here") from None
        if not forms.opens(message.commitment, opening, text):
            raise Wrong(f"opening {number}: not the text that was signed")
        name = certificates.name(message.sender)
        found.append(f"{members['index']} {name}: {escaped(members['text'])}")
    return found or ["no text is disclosed"]


# All together -------------------------------------------------------------------------------------


def verify(
    receipt_data: bytes, transcript: bytes, certificates: Certificates
) -> tuple[Receipt, bool, History]:
    """Return the receipt, whether it is countersigned, and what it is of. Raises Wrong."""
    receipt, countersignature = read_receipt(receipt_data)
    signer = check_signatures(receipt, countersignature, certificates)
    history = History(receipt, signer)
    for line in read_lines(transcript, certificates):
        history.take(line)
    history.end()
    check_counts(receipt, transcript, history)
    return receipt, countersignature is not None, history


def report(options: argparse.Namespace) -> list[str]:
    """Return what holds, in sentences. Raises Wrong and UserError."""
    certificates = Certificates(
        read(options.certificates),
        read(options.ca) if options.ca else None,
        read(options.crl) if options.crl else None,
    )
    transcript = read(options.transcript, MAX_LINES)
    receipt, is_countersigned, history = verify(read(options.receipt), transcript, certificates)
    count = receipt.message_count
    said = [
        f"{plural(count, 'message')} in {escaped(receipt.room)}, {receipt.created_at}: "
        "every line holds"
    ]
    ends = [
        f"the server {certificates.server_name(history.server)}",
        f"the client {certificates.name(history.client)}",
    ]
    signer, peer = ends if receipt.peer == "client" else ends[::-1]
    confirmed = "countersigned by" if is_countersigned else f"{UNCOUNTERSIGNED}; not confirmed by"
    said.append(f"receipt signed by {signer}, {confirmed} {peer}")
    if options.against:
        shared = compare(history.lines, read_other(options.against, certificates))
        said.append(
            f"the other transcript tells the same history of the {plural(shared, 'message')} "
            "that both have"
        )
    if options.openings:
        said += check_openings(read(options.openings, MAX_LINES), history, certificates)
    if not options.ca:
        said.append("without --ca, the certificates are believed as they are")
    if not options.crl:
        said.append("without --crl, no certificate is taken as revoked")
    said += [f"revoked since: {one[:16]}.." for one in certificates.revoked_later()]
    return said


def read_other(path: Path, certificates: Certificates) -> list[Line]:
    """Return the lines of the transcript to compare with. Raises Wrong and UserError."""
    try:
        return [*read_lines(read(path, MAX_LINES), certificates)]
    except Wrong as wrong:
        raise Wrong(f"the other transcript: {wrong}") from None


def read(path: Path, limit: int = MAX_FILE) -> bytes:
    """Return a file's bytes. Raises UserError."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}") from None
    if len(data) > limit:
        raise UserError(f"{path} is longer than {limit:,} bytes")
    return data


def main() -> int:
    parser = Parser("Judge a receipt and its transcript.")
    parser.add_argument("receipt", type=Path, metavar="receipt.json")
    parser.add_argument("transcript", type=Path, metavar="transcript.txt")
    parser.add_argument("certificates", type=Path, metavar="cert.pem")
    for name, what in {
        "--ca": "the authority's certificate",
        "--crl": "its revocation list",
        "--openings": "texts that are disclosed",
        "--against": "another member's transcript",
    }.items():
        parser.add_argument(name, type=Path, metavar="FILE", help=what)
    options = parser.options()
    try:
        print("\n".join(report(options)))
    except Wrong as wrong:
        print(f"Invalid: {wrong}")
        return 1
    print("Valid")
    return 0


if __name__ == "__main__":
    run_program(main)
