"""secure_chat: signed bytes, transcripts, receipts, and the verifier who has nothing else."""

from __future__ import annotations

import base64
import errno
import hashlib
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from companions.asymmetric import PrivateKey, public_pem
from companions.canonical import canonical
from companions.secure_chat import authority, forms, pae, verify
from companions.secure_chat.authority import pem_of
from companions.secure_chat.certs import Credentials
from companions.secure_chat.evidence import Evidence
from companions.secure_chat.forms import NOTHING, Head, Message, Recipient
from companions.secure_chat.pki import SKEW, fingerprint_of
from companions.secure_chat.protocol import State, to_base64
from companions.secure_chat.rooms import Entry, Member, Said
from companions.secure_chat.transcript import (
    BadReceipt,
    EvidenceFailed,
    Lines,
    Receipt,
    Transcript,
    check_receipt,
    countersign,
    is_countersigned,
    line_of,
    make_receipt,
    opening_line,
    save_receipt,
)
from companions.secure_chat.verify import Certificates, Wrong
from program import UserError
from tests.cases import case
from tests.companions.chat_helpers import (
    ALICE,
    BOB,
    DAY,
    NOW,
    NOW_MS,
    ROOM,
    START,
    Authority,
    Talk,
    authority_below,
    changed,
    credentials,
    identity_of,
)
from tests.companions.chat_sessions import Pair, World, in_state

ALICES = b"A" * 32  # sessions
BOBS = b"B" * 32
TEXTS = ["hello", "and you?", "fine", "a|b\n", "😀", "bye"]


@dataclass
class Case:
    """A stay of Alice in the room, told by six messages of hers and Bob's, and its evidence."""

    folder: Path
    school: Authority
    alice: Credentials
    bob: Credentials
    server: Credentials
    talk: Talk
    stay: Transcript
    receipt: Receipt
    bundle: bytes = b""
    openings: list[bytes] = field(default_factory=list)

    @property
    def lines(self) -> bytes:
        return (self.folder / "transcript.txt").read_bytes()

    @property
    def receipt_file(self) -> bytes:
        return (self.folder / "receipt.json").read_bytes()

    def certificates(self, *, judged: bool = True) -> Certificates:
        authority = (pem_of(self.school.certificate), self.school.list) if judged else ()
        return Certificates(self.bundle, *authority)

    def verify(self, lines: bytes | None = None, receipt: bytes | None = None) -> verify.History:
        return verify.verify(
            receipt or self.receipt_file,
            self.lines if lines is None else lines,
            self.certificates(),
        )[2]


def say(
    talk: Talk, alice: Credentials, bob: Credentials, texts: list[str] = TEXTS
) -> list[tuple[tuple[bytes, bytes, bytes, bytes], bytes]]:
    """Alice and Bob speak in turn."""
    said = []
    for number, text in enumerate(texts):
        speakers = [(alice, ALICES), (bob, BOBS)]
        (sender, session), (other, to) = speakers if number % 2 == 0 else speakers[::-1]
        said.append(talk.say(sender, session, text, [Recipient(other.fingerprint, to)]))
    return said


@pytest.fixture(scope="module")
def whole(keys: list[PrivateKey], tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The evidence that the server gives Alice: its receipt, countersigned by her."""
    folder = tmp_path_factory.mktemp("evidence")
    school = Authority(keys[0])
    alice = school.issue("client", ALICE, keys[1], now=NOW - DAY)
    bob = school.issue("client", BOB, keys[2])
    server = school.issue("server", "localhost", keys[3])
    talk = Talk(server)
    stay = Transcript(folder / "transcript.txt", server.fingerprint, talk.head)
    kept = Lines(folder / "openings.jsonl")
    openings = []
    for index, (entry, opening) in enumerate(say(talk, alice, bob)):
        stay.add(*entry)
        kept.append(opening_line(index, opening))
        openings.append(opening)
    stay.close()
    kept.close()
    known = stay.known(ALICES, ROOM, identity_of(alice, "client", ALICE), server.pem)
    receipt = make_receipt(known, server.key, NOW)
    save_receipt(folder / "receipt.json", receipt, countersign(alice.key, receipt))
    bundle = (alice.pem + bob.pem + server.pem).encode()
    (folder / "certs.pem").write_bytes(bundle)
    (folder / "ca.pem").write_bytes(pem_of(school.certificate))
    (folder / "crl.pem").write_bytes(school.list)
    return Case(folder, school, alice, bob, server, talk, stay, receipt, bundle, openings)


def refuse(
    case: Case, reason: str, lines: bytes | None = None, receipt: bytes | None = None
) -> None:
    with pytest.raises(Wrong, match=reason):
        case.verify(lines, receipt)


# What is under a signature ------------------------------------------------------------------------


def test_cut_or_longer_bytes_are_nothing_that_was_signed() -> None:
    whole = pae.pae("head", b"room", b"text")
    for size in range(len(whole)):
        if size not in (len(pae.pae("head")), len(pae.pae("head", b"room"))):
            with pytest.raises(ValueError):
                pae.parts_of("head", whole[:size])
    with pytest.raises(ValueError):
        pae.parts_of("head", whole + b"\0")


@given(st.binary(max_size=80))
def test_other_bytes_are_nothing_that_was_signed(data: bytes) -> None:
    for parse in (forms.parse_message, forms.parse_head):
        with pytest.raises(ValueError):
            parse(data)


def test_salt_of_another_length_is_refused(keys: list[PrivateKey]) -> None:
    data = pae.pae("msg", b"text")
    longest = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.MAX_LENGTH)
    signature = keys[1].sign(data, longest, hashes.SHA256())
    assert not pae.is_signed(keys[1].public_key(), data, signature)


def test_message_and_head_are_read_as_they_were_written() -> None:
    message = Message(
        bytes(32),
        "lobby",
        "a" * 64,
        (Recipient("b" * 64, BOBS), Recipient("c" * 64, ALICES)),
        7,
        2**63 - 1,
        NOTHING,
        START,
        BOBS,
        b"ct",
    )
    head = Head("lobby", START, 3, 4, BOBS)
    assert forms.parse_message(message.encode()) == message
    assert forms.parse_head(head.encode()) == head


@pytest.mark.parametrize("number", [bytes(7), bytes(9)])
def test_number_of_other_than_eight_bytes_is_refused(number: bytes) -> None:
    with pytest.raises(ValueError, match="8 bytes"):
        forms.parse_head(pae.pae("head", b"lobby", START, number, bytes(8), BOBS))


def test_parts_too_few_or_too_many_are_told() -> None:
    for parts in ((), (b"",) * 6):
        with pytest.raises(ValueError, match="a head has 5 parts"):
            forms.parse_head(pae.pae("head", *parts))


@pytest.mark.parametrize(
    "change",
    [
        {"session": b"short"},
        {"previous": b""},
        {"recipients": (Recipient("b" * 64, b"short"),)},
        {"seqno": 2**63},
    ],
)
def test_message_with_a_part_of_the_wrong_size_is_refused(change: dict[str, object]) -> None:
    message = Message(bytes(32), "lobby", "a" * 64, (), 7, 8, NOTHING, START, BOBS, b"ct")
    with pytest.raises(ValueError):
        forms.parse_message(replace(message, **change).encode())  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"start": b"short"}, {"head": b"short"}, {"index": 2**63}])
def test_head_with_a_part_of_the_wrong_size_is_refused(change: dict[str, object]) -> None:
    head = Head("lobby", START, 3, 4, BOBS)
    with pytest.raises(ValueError):
        forms.parse_head(replace(head, **change).encode())  # type: ignore[arg-type]


def test_only_the_text_that_was_committed_to_opens() -> None:
    committed = forms.commitment(BOBS, b"text")
    assert forms.opens(committed, BOBS, b"text")
    assert not forms.opens(committed, BOBS, b"texT")
    assert not forms.opens(committed, ALICES, b"text")
    assert not forms.opens(committed, BOBS + b"t", b"ext")  # the same bytes in a row


def test_hashes_and_signed_bytes_are_those_of_readme_written_out(whole: Case) -> None:
    def sha256(*parts: bytes) -> bytes:
        return hashlib.sha256(b"".join(parts)).digest()

    assert forms.message_hash(b"said") == sha256(b"said")
    after = sha256(b"secure_chat v1 head", START, sha256(b"said"), b"signature")
    assert forms.next_head(START, b"said", b"signature") == after
    assert forms.commitment(BOBS, b"text") == sha256(b"secure_chat v1 commitment", BOBS, b"text")
    head = Head("lobby", START, 3, 4, BOBS)
    numbers = (bytes([*bytes(7), number]) for number in (3, 4))
    assert head.encode() == pae.pae("head", b"lobby", START, *numbers, BOBS)
    members = whole.receipt.members()
    assert whole.receipt.countersigned() == pae.pae("countersign", canonical(members))
    del members["signature"]
    assert whole.receipt.signed() == pae.pae("receipt", canonical(members))
    chain = NOTHING
    for line in whole.lines.decode("ascii").splitlines():
        *before, told, last = line.split("|")
        chain = sha256(b"secure_chat v1 line", chain, "|".join([*before, last]).encode())
        assert told == chain.hex()


def full(file: int, data: bytes) -> int:
    """Write to a disk that has no room."""
    raise OSError(errno.ENOSPC, "No space left on device")


# Lines --------------------------------------------------------------------------------------------


def test_line_has_the_documents_five_columns_first(whole: Case) -> None:
    first, second = whole.lines.decode("ascii").splitlines()[:2]
    seqno, ts, ct, sig, fingerprint, _, signed = first.split("|")
    message = forms.parse_message(base64.b64decode(signed))
    assert (int(seqno), int(ts), base64.b64decode(ct)) == (0, NOW_MS, message.ct)
    assert fingerprint == whole.alice.fingerprint
    assert len(base64.b64decode(sig)) == 256
    assert second.split("|")[0] == "0"
    assert second.split("|")[4] == whole.server.fingerprint


def test_hash_of_the_transcript_is_that_of_its_file(whole: Case) -> None:
    digest = hashlib.sha256(whole.lines).hexdigest()
    assert whole.stay.hash() == digest == whole.receipt.transcript_hash


def test_other_end_writes_the_same_without_a_file(whole: Case) -> None:
    other = Transcript(None, whole.server.fingerprint, START)
    for one, two in zip(*[iter(whole.lines.decode("ascii").splitlines())] * 2):
        parts = [
            base64.b64decode(line.split("|")[place]) for line in (one, two) for place in (6, 3)
        ]
        other.add(*parts)
    assert other.hash() == whole.stay.hash()
    assert (other.first_seqno, other.last_seqno, other.message_count) == (0, 5, 6)


def test_evidence_is_its_owners_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a" / "new" / "transcript.txt"
    Transcript(path, "a" * 64, START).close()
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(UserError, match="cannot keep evidence"):
        Transcript(path, "a" * 64, START)


def test_every_message_is_on_the_disk_before_the_next(
    whole: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    stay = Transcript(tmp_path / "transcript.txt", whole.server.fingerprint, START)
    for count, (entry, _) in enumerate(say(Talk(whole.server), whole.alice, whole.bob), 1):
        stay.add(*entry)
        assert len(synced) == count
    stay.close()


def test_file_of_lines_is_closed_once_and_then_keeps_nothing(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "lines.txt")
    file = lines._file
    assert file is not None
    lines.append(b"one\n")
    lines.close()
    with pytest.raises(OSError):
        os.fstat(file)
    lines.close()
    lines.append(b"two\n")
    assert (tmp_path / "lines.txt").read_bytes() == b"one\n"


def test_full_disk_is_told(whole: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stay = Transcript(tmp_path / "transcript.txt", whole.server.fingerprint, START)
    [(entry, _)] = say(Talk(whole.server), whole.alice, whole.bob, ["hello"])
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(EvidenceFailed, match="No space left"):
        stay.add(*entry)
    assert stay.message_count == 0


def test_receipt_for_which_there_is_no_room_leaves_no_file(
    whole: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (whole.folder / "receipt.json").read_bytes()
    receipt, countersignature = verify.read_receipt(data)
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UserError, match="No space left"):
        save_receipt(tmp_path / "new.json", receipt, countersignature)
    assert not (tmp_path / "new.json").exists()


def test_part_of_a_line_on_a_full_disk_is_taken_away(
    whole: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The room of a server goes on when there is space again, and its transcript holds."""
    stay = Transcript(tmp_path / "transcript.txt", whole.server.fingerprint, START)
    first, second = say(Talk(whole.server), whole.alice, whole.bob, ["hello", "again"])
    stay.add(*first[0])
    write = os.write
    written: list[int] = []

    def half(file: int, data: bytes) -> int:
        if written:
            full(file, data)
        written.append(write(file, data[:100]))
        return written[0]

    with monkeypatch.context() as context:
        context.setattr(os, "write", half)
        with pytest.raises(EvidenceFailed):
            stay.add(*second[0])
    stay.add(*second[0])
    stay.close()
    lines = (tmp_path / "transcript.txt").read_bytes()
    assert len(list(verify.read_lines(lines, whole.certificates()))) == 4
    assert hashlib.sha256(lines).hexdigest() == stay.hash()


# The verifier -------------------------------------------------------------------------------------


def test_honest_evidence_holds(whole: Case) -> None:
    receipt, is_countersigned, history = verify.verify(
        whole.receipt_file, whole.lines, whole.certificates()
    )
    assert is_countersigned
    assert receipt == whole.receipt
    assert list(history.messages) == [0, 1, 2, 3, 4, 5]
    assert [line.number for line in history.lines] == [*range(1, 13)]


def test_receipt_of_the_client_is_verified_like_the_servers(whole: Case) -> None:
    server = identity_of(whole.server, "server", "localhost")
    known = whole.stay.known(ALICES, ROOM, server, whole.alice.pem)
    history = whole.verify(receipt=file_of(make_receipt(known, whole.alice.key, NOW)))
    parties = (history.client, history.server)
    assert parties == (whole.alice.fingerprint, whole.server.fingerprint)


@pytest.mark.slow
def test_any_changed_byte_is_found_in_its_line(whole: Case) -> None:
    for place in random.sample(range(len(whole.lines)), len(whole.lines) // 20):
        lines = bytearray(whole.lines)
        lines[place] ^= random.randrange(1, 256)
        refuse(whole, rf"^line {whole.lines[:place].count(10) + 1}: ", bytes(lines))


def test_line_with_another_end_is_named(whole: Case) -> None:
    refuse(whole, r"^line 1: torn", whole.lines.replace(b"\n", b"\r\n"))
    refuse(whole, r"^line 12: torn", whole.lines[:-1])
    refuse(whole, r"^line 13: not 7 columns", whole.lines + b"\n")


@pytest.mark.parametrize(
    ("column", "text", "reason"),
    [
        (4, b"\x1b[2J", "not 7 columns with a fingerprint as the fifth"),
        (3, b"?", "unreadable"),
        (6, b"?", "unreadable"),
        (6, b"QUJD", "unreadable"),
        (6, b"QUJD|", "not 7 columns"),
        (0, b"1", "seqno: not as signed"),
        (5, b"0", "chain: a line was changed, moved or lost"),
    ],
)
def test_column_that_cannot_be_read_is_named_with_its_line(
    whole: Case, column: int, text: bytes, reason: str
) -> None:
    columns = whole.lines.splitlines()[0].split(b"|")
    columns[column] = text
    refuse(whole, f"^line 1: {reason}", b"|".join(columns) + b"\n")


@pytest.mark.parametrize(
    ("keep", "reason"),
    [
        (slice(0, 10), "line 11: missing, and with it the last 1 message"),
        (slice(0, 2), "line 3: missing, and with it the last 5 message"),
        (slice(0, 0), "line 1: missing, and with it the last 6 message"),
        (slice(0, 11), "line 11: the server's head after it is missing"),
        (slice(2, 12), "line 1: chain: a line was changed, moved or lost"),
        (slice(None, None, -1), "line 1: chain"),
    ],
)
def test_missing_lines_are_noticed(whole: Case, keep: slice, reason: str) -> None:
    refuse(whole, f"^{reason}", b"".join(whole.lines.splitlines(keepends=True)[keep]))


def rechained(lines: list[bytes]) -> bytes:
    """Return lines with new chains, which anybody can compute."""
    chain = NOTHING
    made = []
    for line in lines:
        columns = line.decode("ascii").rstrip("\n").split("|")
        signed, signature = (base64.b64decode(columns[place]) for place in (6, 3))
        text, chain = line_of(chain, signed, signature, columns[4])
        made.append(f"{text}\n".encode())
    return b"".join(made)


Edit = Callable[[list[bytes]], list[bytes]]


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda lines: lines[2:], "line 1: its sender has seen a head"),
        (lambda lines: lines[:4] + lines[6:], "line 5: its sender has seen a head"),
        (lambda lines: lines[:2] + lines[4:6] + lines[2:4] + lines[6:], "line 3: its sender"),
        (lambda lines: lines[:2] + lines[:2] + lines[2:], "line 3: not the next message"),
        (lambda lines: lines[:1] + lines[2:], "line 2: a message, where the head"),
        (lambda lines: lines[1:], "line 1: a head, where a message"),
        (lambda lines: [line.replace(b"|" + lines[0].split(b"|")[3], b"|" + lines[1].split(b"|")[3])
                        for line in lines], "line 1: the signature"),
    ],
)  # fmt: skip
def test_new_chain_over_other_lines_deceives_nobody(whole: Case, edit: Edit, reason: str) -> None:
    refuse(whole, f"^{reason}", rechained(edit(whole.lines.splitlines(keepends=True))))


def test_longer_transcript_than_the_receipts_is_refused(whole: Case) -> None:
    said = say(Talk(whole.server), whole.alice, whole.bob)
    shorter = Transcript(None, whole.server.fingerprint, START)
    for entry, _ in said[:5]:
        shorter.add(*entry)
    lines = whole_of(whole, [entry for entry, _ in said])
    reason = "^line 11: the receipt is of 5 messages only"
    refuse(whole, reason, lines, receipt_of(whole, shorter))


def whole_of(
    case: Case, entries: list[tuple[bytes, bytes, bytes, bytes]], signer: str = ""
) -> bytes:
    """Return the lines of these messages, by their senders unless a signer is named."""
    chain = NOTHING
    made = []
    for signed, signature, head, head_signature in entries:
        sender = signer or forms.parse_message(signed).sender
        for one, sig, fingerprint in (
            (signed, signature, sender),
            (head, head_signature, case.server.fingerprint),
        ):
            text, chain = line_of(chain, one, sig, fingerprint)
            made.append(f"{text}\n".encode())
    return b"".join(made)


def file_of(receipt: Receipt, countersignature: str = "uncountersigned") -> bytes:
    return canonical({**receipt.members(), "countersignature": countersignature}) + b"\n"


def signed_by(signer: Credentials, receipt: Receipt, **changes: object) -> Receipt:
    """Return a receipt with changes, signed anew, whoever should sign it."""
    made = replace(receipt, **changes)  # type: ignore[arg-type]
    return replace(made, signature=to_base64(pae.sign(signer.key, made.signed())))


def receipt_over(case: Case, lines: bytes, count: int, **changes: object) -> bytes:
    """Return a receipt of the server's, signed, for lines that it should not sign."""
    digest = hashlib.sha256(lines).hexdigest()
    numbers = {"message_count": count, "last_seqno": count - 1, "transcript_hash": digest}
    return file_of(signed_by(case.server, case.receipt, **{**numbers, **changes}))


def receipt_of(case: Case, stay: Transcript, session: bytes = ALICES) -> bytes:
    """Return the server's receipt for a stay of Alice's."""
    alice = identity_of(case.alice, "client", ALICE)
    known = stay.known(session, ROOM, alice, case.server.pem)
    return file_of(make_receipt(known, case.server.key, NOW))


def placed(case: Case, signed: bytes, signature: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Return a message as the first of its room, with the server's head."""
    head = Head(ROOM, START, 0, NOW_MS, forms.next_head(START, signed, signature)).encode()
    return signed, signature, head, pae.sign(case.server.key, head)


def judge(
    case: Case, reason: str, entries: list[tuple[bytes, bytes, bytes, bytes]], signer: str = ""
) -> None:
    """Check that messages with a receipt over them are refused for a reason, or good without."""
    lines = whole_of(case, entries, signer)
    receipt = receipt_over(case, lines, len(entries))
    if reason:
        refuse(case, f"^{reason}", lines, receipt)
    else:
        case.verify(lines, receipt)


# What two ends together cannot make true ----------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ts": NOW_MS + 300_000}, ""),
        ({"ts": NOW_MS - 300_000}, ""),
        ({"room": "other"}, "line 1: of another room"),
        ({"sender": "f" * 64}, "line 1: "),
        ({"seqno": 3}, "line 1: not the next message"),
        ({"previous": START}, "line 1: not the next message"),
        ({"seen": BOBS}, "line 1: its sender has seen a head that is not here"),
        ({"ts": NOW_MS + 300_001}, "line 2: the clocks"),
        ({"ts": NOW_MS - 300_001}, "line 2: the clocks"),
        ({"ts": 2**62}, "line 1: no moment"),
        ({"ts": 2**48}, "line 1: no moment"),  # after the year 9999
    ],
)
def test_message_that_breaks_a_rule_is_named_though_all_signed_it(
    whole: Case, changes: dict[str, object], reason: str
) -> None:
    [(entry, _)] = say(Talk(whole.server), whole.alice, whole.bob, ["hello"])
    message = replace(forms.parse_message(entry[0]), **changes)  # type: ignore[arg-type]
    signed = message.encode()
    judge(whole, reason, [placed(whole, signed, pae.sign(whole.alice.key, signed))])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"room": "other"}, "line 2: .*not the head of message"),
        ({"index": 1}, "line 2: .*not the head of message"),
        ({"head": BOBS}, "line 2: .*does not follow"),
    ],
)
def test_head_that_breaks_a_rule_is_named(
    whole: Case, changes: dict[str, object], reason: str
) -> None:
    [(entry, _)] = say(Talk(whole.server), whole.alice, whole.bob, ["hello"])
    head = replace(forms.parse_head(entry[2]), **changes).encode()  # type: ignore[arg-type]
    judge(whole, reason, [(*entry[:2], head, pae.sign(whole.server.key, head))])


def test_room_does_not_change_its_start(whole: Case) -> None:
    said = say(Talk(whole.server), whole.alice, whole.bob, ["hello", "and you?"])
    entries = [entry for entry, _ in said]
    head = replace(forms.parse_head(entries[1][2]), start=BOBS).encode()
    entries[1] = (*entries[1][:2], head, pae.sign(whole.server.key, head))
    judge(whole, "line 4: of another room", entries)


def test_head_of_another_server_is_refused(whole: Case, keys: list[PrivateKey]) -> None:
    other = whole.school.issue("server", "localhost", keys[4])
    [(entry, _)] = say(Talk(other), whole.alice, whole.bob, ["hello"])
    case = replace(whole, bundle=whole.bundle + other.pem.encode())
    lines = whole_of(replace(case, server=other), [entry])
    refuse(case, "^line 2: a head that the receipt's", lines, receipt_over(whole, lines, 1))


def test_messages_in_a_session_of_the_receipt_are_its_clients(whole: Case) -> None:
    entry, _ = Talk(whole.server).say(whole.bob, ALICES, "I am Alice", [])
    judge(whole, "line 1: in the receipt's session", [entry])


def test_nobody_signs_in_the_name_of_another(whole: Case) -> None:
    [(entry, _)] = say(Talk(whole.server), whole.alice, whole.bob, ["hello"])
    signature = pae.sign(whole.bob.key, entry[0])
    forged = placed(whole, entry[0], signature)
    judge(whole, "line 1: its sender is not its signer", [forged], whole.bob.fingerprint)


def test_first_message_of_anybody_follows_nothing(whole: Case) -> None:
    for previous, reason in ((NOTHING, ""), (START, "line 1: not the next")):
        message = Message(
            BOBS, ROOM, whole.bob.fingerprint, (), 0, NOW_MS, previous, START, bytes(32), b"ct"
        )
        signed = message.encode()
        judge(whole, reason, [placed(whole, signed, pae.sign(whole.bob.key, signed))])


def test_member_who_came_late_verifies_from_there(whole: Case) -> None:
    talk = Talk(whole.server)
    said = say(talk, whole.alice, whole.bob, TEXTS[:3])
    base = forms.parse_head(said[-1][0][2]).head
    late = b"L" * 32
    entry, _ = talk.say(whole.bob, BOBS, "welcome", [Recipient(whole.alice.fingerprint, late)])
    lines = whole_of(whole, [entry])
    receipt = receipt_over(
        whole, lines, 1, base_head=base.hex(), session_id=late.hex(), first_seqno=3
    )
    refuse(whole, "^receipt: its numbers", lines, receipt)
    stay = Transcript(None, whole.server.fingerprint, base)
    stay.add(*entry)
    assert list(whole.verify(lines, receipt_of(whole, stay, late)).messages) == [3]


def test_stay_in_which_nothing_was_said_is_verified_too(whole: Case) -> None:
    stay = Transcript(None, whole.server.fingerprint, START)
    assert (stay.first_seqno, stay.last_seqno, stay.message_count) == (0, -1, 0)
    assert not whole.verify(b"", receipt_of(whole, stay)).lines


def test_message_to_others_may_be_older_than_the_stay(whole: Case) -> None:
    """Bob speaks to Alice's earlier session: he has not heard yet what came before this one."""
    talk = Talk(whole.server)
    say(talk, whole.alice, whole.bob, TEXTS[:2])
    stay = Transcript(None, whole.server.fingerprint, talk.head)
    to = [Recipient(whole.alice.fingerprint, ALICES)]
    entry, _ = talk.say(whole.bob, BOBS, "late", to, seen=START)
    stay.add(*entry)
    receipt = receipt_of(whole, stay, b"L" * 32)
    assert list(whole.verify(whole_of(whole, [entry]), receipt).messages) == [2]


# Receipts -----------------------------------------------------------------------------------------


OTHER_VALUES: dict[str, object] = {
    "type": "else",
    "peer": "server",
    "created_at": "2026-01-31T12:00:01Z",
    "first_seqno": 1,
    "last_seqno": 6,
    "message_count": 5,
    "transcript_hash": "0" * 64,
    "peer_cert_fingerprint": "0" * 64,
    "signer_cert": "QQ==",
    "version": 2,
    "session_id": "0" * 64,
    "room": "other",
    "base_head": "0" * 64,
    "signature": "QQ==",
    "countersignature": "QQ==",
}


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_changed_field_of_a_receipt_is_noticed(whole: Case, name: str) -> None:
    members = json.loads(whole.receipt_file)
    assert set(members) == set(OTHER_VALUES)
    members[name] = OTHER_VALUES[name]
    refuse(whole, "^receipt: ", receipt=canonical(members) + b"\n")


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[:-1] + b" ",
        lambda data: b" " + data,
        lambda data: data.replace(b'"room":"lobby"', b'"room":"lobby","room":"lobby"'),
        lambda data: data.replace(b'"version":1', b'"version":true'),
        lambda data: data.replace(b'"version":1', b'"version":' + b"1" * 5_000),
        lambda data: b"[" * 100_000,
        lambda data: data.replace(b"12:00:00Z", b"12:00:0Z"),
    ],
)
def test_other_bytes_than_a_receipts_are_refused(
    whole: Case, change: Callable[[bytes], bytes]
) -> None:
    data = change(whole.receipt_file)
    assert data != whole.receipt_file
    with pytest.raises(Wrong, match=r"^receipt: "):
        verify.read_receipt(data)


HASHES = ("session_id", "base_head", "transcript_hash", "peer_cert_fingerprint")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 2}, "unreadable: not a receipt of this version"),
        ({"type": "else"}, "unreadable: not a receipt of this version"),
        ({"peer": "else"}, "peer is neither"),
        *(({name: "A" * 64}, f"unreadable: {name} is not 32 bytes in hex") for name in HASHES),
    ],
)
def test_receipt_of_another_form_is_refused_though_it_is_signed(
    whole: Case, change: dict[str, object], reason: str
) -> None:
    refuse(whole, f"^receipt: {reason}", receipt=receipt_over(whole, whole.lines, 6, **change))


def test_receipt_without_a_readable_signature_or_certificate_is_refused(whole: Case) -> None:
    for name, value in itertools.product(("signature", "signer_cert"), ("", "?", "QR==", "/w==")):
        made = replace(whole.receipt, **{name: value})  # type: ignore[arg-type]
        with case(f"{name} {value}"):
            refuse(whole, "^receipt: ", receipt=file_of(made))


def test_receipt_of_another_transcript_is_refused_though_its_count_fits(whole: Case) -> None:
    refuse(whole, "^receipt: of another transcript", receipt=receipt_over(whole, b"another", 6))


def test_certificate_inside_a_receipt_is_not_trusted(whole: Case, keys: list[PrivateKey]) -> None:
    """A forger signs with a new key, and puts its certificate in."""
    forger = Authority(keys[4]).issue("server", "localhost", keys[5])
    shown = to_base64(forger.pem.encode())
    forged = file_of(signed_by(forger, whole.receipt, signer_cert=shown))
    refuse(whole, "^receipt: no certificate with the fingerprint", receipt=forged)
    known = replace(whole, bundle=whole.bundle + forger.pem.encode())
    refuse(known, "^receipt: its signer's certificate: UnknownIssuer", receipt=forged)


def test_client_cannot_sign_as_the_server(whole: Case) -> None:
    made = signed_by(whole.bob, whole.receipt, signer_cert=to_base64(whole.bob.pem.encode()))
    refuse(whole, "WrongPurpose", receipt=file_of(made))


def test_countersignature_of_another_is_refused(whole: Case) -> None:
    signature = to_base64(countersign(whole.bob.key, whole.receipt))
    refuse(whole, "^receipt: the countersignature", receipt=file_of(whole.receipt, signature))


# Certificates in time -----------------------------------------------------------------------------


def test_certificate_that_expired_in_between_does_not_sign(
    whole: Case, keys: list[PrivateKey]
) -> None:
    brief = whole.school.issue("client", ALICE, keys[1], now=NOW - DAY, days=1)  # until NOW
    talk = Talk(whole.server)
    to = [Recipient(whole.bob.fingerprint, BOBS)]
    entries = [talk.say(brief, ALICES, text, to, NOW_MS + ms)[0] for text, ms in
               (("in time", 0), ("late", 1_001))]  # fmt: skip
    lines = whole_of(whole, entries)
    case = replace(whole, bundle=whole.bundle + brief.pem.encode())
    receipt = receipt_over(whole, lines, 2, peer_cert_fingerprint=brief.fingerprint)
    refuse(case, "^line 3: its signer's certificate: Expired", lines, receipt)


def test_revocation_counts_from_its_moment(whole: Case, keys: list[PrivateKey]) -> None:
    for hours, is_good in ((-1, False), (0, False), (1, True)):
        school = Authority(keys[0])
        school.revoke([whole.alice.certificate], NOW + timedelta(hours=hours))
        case = replace(whole, school=school)
        if is_good:
            case.verify()
            assert case.certificates().revoked_later() == [whole.alice.fingerprint]
        else:
            refuse(case, f"revoked 2026-01-31 {12 + hours}:00 UTC")


def test_member_below_another_authority_is_judged_as_in_a_handshake(
    whole: Case, keys: list[PrivateKey]
) -> None:
    school = Authority(keys[0])
    below = authority_below(school, keys[3])
    namesake = authority_below(school, keys[1])
    made = authority.certificate(keys[3], below, "client", BOB, keys[2].public_key(), NOW)
    talk = Talk(whole.server)
    bob = credentials(made, keys[2])
    entry, _ = talk.say(bob, BOBS, "hello", [Recipient(whole.alice.fingerprint, ALICES)])
    lines = whole_of(whole, [entry])
    receipt = receipt_over(whole, lines, 1)
    case = replace(whole, school=school, bundle=whole.bundle + pem_of(namesake) + pem_of(made))
    refuse(case, "^line 1: its signer's certificate: UnknownIssuer", lines, receipt)
    case.bundle = pem_of(below) + case.bundle
    case.verify(lines, receipt)
    school.revoke([below], NOW + DAY)
    case.verify(lines, receipt)
    school.revoked.clear()
    school.revoke([below], NOW - DAY)
    refuse(case, "^line 1: its signer's issuer's certificate was revoked", lines, receipt)


def test_unknown_fingerprint_is_named(whole: Case) -> None:
    bundle = (whole.alice.pem + whole.server.pem).encode()
    refuse(replace(whole, bundle=bundle), "^line 3: no certificate with the fingerprint")


def test_bundle_of_something_else_is_told(whole: Case) -> None:
    for bundle, ca, crl in ((b"", None, None), (whole.bundle, b"x", None)):
        with pytest.raises(UserError, match="not certificates"):
            Certificates(bundle, ca, crl)
    with pytest.raises(UserError, match="list"):
        Certificates(whole.bundle, pem_of(whole.school.certificate), b"x")


def test_sender_with_unreadable_names_is_told(whole: Case, keys: list[PrivateKey]) -> None:
    names = x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, b"nonsense")
    made = changed(
        whole.alice.certificate,
        keys[0],
        without=(x509.SubjectAlternativeName,),
        extra=[(names, False)],
    )
    found = Certificates(pem_of(made))
    with pytest.raises(Wrong, match="a sender without an address"):
        found.name(fingerprint_of(made))
    with pytest.raises(Wrong, match="a server without a name"):
        found.server_name(fingerprint_of(made))
    with pytest.raises(Wrong, match="a sender without an address"):
        whole.certificates().name(whole.server.fingerprint)
    nameless = changed(whole.alice.certificate, keys[0], without=(x509.SubjectAlternativeName,))
    assert Certificates(pem_of(nameless)).server_name(fingerprint_of(nameless)) == "without a name"


def test_signer_without_rsa_is_told(whole: Case, keys: list[PrivateKey]) -> None:
    curve: Any = ec.generate_private_key(ec.SECP256R1()).public_key()
    made = changed(whole.alice.certificate, keys[0], public_key=curve)
    rsa, unknown = (bytes.fromhex(f"2a864886f70d0101{last}") for last in ("01", "63"))
    unreadable = whole.alice.certificate.public_bytes(Encoding.DER).replace(rsa, unknown)
    for other in (made, x509.load_der_x509_certificate(unreadable)):
        with pytest.raises(Wrong, match="not RSA"):
            Certificates(pem_of(other)).key(fingerprint_of(other), "client", NOW)


# Two ends that exchange receipts ------------------------------------------------------------------


def check(case: Case, **changes: object) -> None:
    """Let Alice check the server's receipt, in which it has signed something else."""
    made = signed_by(case.server, case.receipt, **changes)
    server = identity_of(case.server, "server", "localhost")
    alice = identity_of(case.alice, "client", ALICE)
    known = case.stay.known(ALICES, ROOM, alice, case.server.pem)
    check_receipt(made, known, server, NOW)


@pytest.mark.parametrize(
    "name",
    [name for name in OTHER_VALUES if name not in ("created_at", "signature", "countersignature")],
)
def test_receipt_that_says_something_else_than_we_know_is_refused(whole: Case, name: str) -> None:
    check(whole)
    with pytest.raises(BadReceipt, match=f"expected {name} "):
        check(whole, **{name: OTHER_VALUES[name]})


def test_receipt_that_was_changed_when_it_was_signed_is_refused(
    whole: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    signature = pae.sign(whole.server.key, whole.receipt.signed())
    monkeypatch.setattr(pae, "sign", lambda *_: signature)
    check(whole)
    with pytest.raises(BadReceipt, match="the signature of localhost"):
        check(whole, created_at=OTHER_VALUES["created_at"])


@pytest.mark.parametrize("direction", [-1, 1])
def test_receipt_is_of_now(whole: Case, direction: int) -> None:
    edge = NOW + direction * SKEW
    check(whole, created_at=f"{edge:%Y-%m-%dT%H:%M:%SZ}")
    for other in ("now", "2026-01-31T12:00:0Z"):
        with pytest.raises(BadReceipt):
            check(whole, created_at=other)
    with pytest.raises(BadReceipt, match="a receipt of now"):
        check(whole, created_at=f"{edge + direction * timedelta(seconds=1):%Y-%m-%dT%H:%M:%SZ}")


def test_receipt_without_a_countersignature_says_so(whole: Case, tmp_path: Path) -> None:
    save_receipt(tmp_path / "receipt.json", whole.receipt, None)
    data = (tmp_path / "receipt.json").read_bytes()
    assert data == file_of(whole.receipt, "uncountersigned")
    assert verify.verify(data, whole.lines, whole.certificates())[1] is False


@pytest.fixture(scope="module")
def pair(world: World) -> Pair:
    """A session that Evidence only reads."""
    return in_state(world, State.CHAT)


@pytest.fixture(scope="module")
def another(world: World) -> Pair:
    return in_state(world, State.CHAT)


def stays(
    pair: Pair, folder: Path, room: str = ROOM, base: bytes = START
) -> tuple[Evidence, Evidence]:
    """Return what the client and the server keep of one stay, in which nothing was said."""
    return Evidence(pair.client, room, base, folder), Evidence(pair.server, room, base, folder)


def test_receipt_of_another_stay_is_not_countersigned(
    pair: Pair, another: Pair, tmp_path: Path
) -> None:
    ours = stays(pair, tmp_path)
    others = [
        stays(another, tmp_path / "of another session"),
        stays(pair, tmp_path / "of another room", room="elsewhere"),
        stays(pair, tmp_path / "from another head", base=BOBS),
    ]
    for mine, theirs, *wrong in zip(ours, ours[::-1], *(other[::-1] for other in others)):
        assert mine.accept(theirs.offer())
        for other in wrong:
            with pytest.raises(BadReceipt):
                mine.accept(other.offer())


def test_object_that_is_no_receipt_is_not_countersigned(pair: Pair, tmp_path: Path) -> None:
    client, server = stays(pair, tmp_path)
    offer = server.offer()
    assert offer["countersignature"] == ""
    with pytest.raises(BadReceipt):
        client.accept(replace(offer, members={**offer.members, "receipt": {}}))


def test_countersignature_is_of_this_receipt_and_by_the_peer(
    pair: Pair, another: Pair, tmp_path: Path
) -> None:
    client, server = stays(pair, tmp_path)
    signed = server.accept(client.offer())
    client.confirm(to_base64(signed))
    other, peer = stays(another, tmp_path / "of another session")
    for wrong in (peer.accept(other.offer()), client.accept(server.offer()), signed[::-1]):
        with pytest.raises(BadReceipt):
            client.confirm(to_base64(wrong))


def test_both_receipts_are_kept_with_both_words(world: World, pair: Pair, tmp_path: Path) -> None:
    client, server = stays(pair, tmp_path)
    asked = server.offer()
    answered = client.offer(client.accept(asked))
    told = server.accept(answered)
    server.confirm(answered["countersignature"])
    client.confirm(to_base64(told))
    kept = client.keep()
    assert (kept.messages, kept.is_countersigned) == (0, True)
    for name, offer, peer in (("client", answered, world.server), ("server", asked, world.alice)):
        (path,) = tmp_path.glob(f"receipt_*_{name}.json")
        receipt, mark = verify.read_receipt(path.read_bytes())
        assert receipt.members() == offer["receipt"]
        assert is_countersigned(peer.identity.public_key, receipt, mark or b"")


# The files of a stay ------------------------------------------------------------------------------


def heard(case: Case) -> list[Said]:
    """Return what Bob hears: a text of Alice's, his own, and one of Alice's that is for others."""
    said = []
    for number, (entry, opening) in enumerate(say(Talk(case.server), case.alice, case.bob)[:3]):
        own = case.alice if number % 2 == 0 else case.bob
        member = Member(identity_of(own, "client", ""), f"nonsense\n{own.pem}", ALICES)
        opening = opening if number < 2 else b""
        message = forms.parse_message(entry[0])
        said.append(Said(member, message, Entry(*entry), opening, None))
    return said


def test_client_keeps_all_that_it_heard_and_every_certificate_once(
    whole: Case, pair: Pair, tmp_path: Path
) -> None:
    client, _ = stays(pair, tmp_path)
    told = Transcript(None, pair.client.peer.fingerprint, START)
    stay = heard(whole)
    for said in stay:
        client.hear(said)
        told.add(*said.entry)
    kept = client.keep()
    names = ("certs_{}.pem", "openings_{}.jsonl", "receipt_{}_client.json", "transcript_{}.txt")
    paths = [tmp_path / name.format("20260131_120000") for name in names]
    certs, openings, receipt, transcript = paths
    assert sorted(tmp_path.iterdir()) == paths
    assert kept == (transcript, receipt, 3, False)
    assert hashlib.sha256(transcript.read_bytes()).hexdigest() == told.hash()
    texts = [json.loads(line) for line in openings.read_bytes().splitlines()]
    assert texts == [
        {"index": index, "opening": to_base64(opening[:32]), "text": opening[32:].decode()}
        for index, opening in enumerate(said.opening for said in stay[:2])
    ]
    parties = (pair.client.party.identity, pair.server.party.identity)
    expected = [one.certificate for one in (*parties, whole.alice, whole.bob)]
    assert certs.read_bytes() == b"".join(map(pem_of, expected))


def test_openings_do_not_wait_for_the_disk(
    whole: Case, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _ = stays(pair, tmp_path)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    client.hear(heard(whole)[0])
    assert len(synced) == 2, "the speaker's certificate and the transcript"


def test_server_keeps_a_receipt_of_all_that_was_said_and_no_other_file(
    whole: Case, pair: Pair, tmp_path: Path
) -> None:
    server = Evidence(pair.server, ROOM, START, tmp_path)
    told = Transcript(None, pair.client.peer.fingerprint, START)
    for said in heard(whole):
        server.add(said.entry)
        told.add(*said.entry)
    kept = server.keep()
    assert [*tmp_path.iterdir()] == [kept.receipt]
    session = pair.server.session_id.hex()[:8]
    assert kept.receipt.name == f"receipt_20260131_120000_{session}_server.json"
    receipt, _ = verify.read_receipt(kept.receipt.read_bytes())
    assert (receipt.message_count, receipt.transcript_hash) == (3, told.hash())


def test_nothing_is_added_to_what_is_kept(whole: Case, pair: Pair, tmp_path: Path) -> None:
    client, _ = stays(pair, tmp_path)
    client.keep()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for said in heard(whole):
        client.hear(said)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_stays_that_begin_in_one_second_are_kept_side_by_side(pair: Pair, tmp_path: Path) -> None:
    session = pair.server.session_id.hex()[:8]
    for number in ("", "_2", "_3"):
        client, server = stays(pair, tmp_path)
        assert client.keep().receipt.name == f"receipt_20260131_120000{number}_client.json"
        name = f"receipt_20260131_120000_{session}{number}_server.json"
        assert server.keep().receipt.name == name


# A server that tells two histories ----------------------------------------------------------------


def told(case: Case, texts: list[str], start: bytes = START, ts: int = NOW_MS) -> list[verify.Line]:
    talk = Talk(case.server, start)
    to = [Recipient(case.bob.fingerprint, BOBS)]
    entries = [talk.say(case.alice, ALICES, text, to, ts + place)[0] for place, text in
               enumerate(texts)]  # fmt: skip
    return list(verify.read_lines(whole_of(case, entries), case.certificates()))


def test_two_histories_with_one_start_are_exposed(whole: Case) -> None:
    ours = told(whole, ["yes", "go"])
    assert verify.compare(ours, ours) == 2
    assert verify.compare(ours, ours[2:]) == 1
    assert verify.compare(ours, []) == 0
    with pytest.raises(
        Wrong, match="two histories: message 0 of lobby is line 1 here, and another"
    ):
        verify.compare(ours, told(whole, ["no", "go"]))


def test_two_rooms_at_once_are_exposed_and_a_restart_is_none(whole: Case) -> None:
    ours = told(whole, ["one", "two", "three"])
    verify.compare(ours, told(whole, ["one"], BOBS, NOW_MS + 3))
    with pytest.raises(Wrong, match="two rooms lobby at once"):
        verify.compare(ours, told(whole, ["one"], BOBS, NOW_MS + 1))


def opened(start: bytes, first: int, last: int, room: str = ROOM) -> list[verify.Line]:
    """Return two heads of a room, with their times."""
    heads = [Head(room, start, index, ts, NOTHING) for index, ts in enumerate((first, last))]
    return [verify.Line(2, "a" * 64, b"", b"", head) for head in heads]


def test_rooms_with_two_starts_and_one_name_share_no_moment() -> None:
    ours = opened(START, 5, 9)
    for others in (
        opened(BOBS, 1, 4),
        opened(BOBS, 10, 12),
        opened(BOBS, 5, 9, "elsewhere"),
        opened(START, 5, 9),
    ):
        verify.compare(ours, others)
    for others in (opened(BOBS, 1, 5), opened(BOBS, 6, 7), opened(BOBS, 9, 12)):
        with pytest.raises(Wrong, match="two rooms lobby at once"):
            verify.compare(ours, others)


def test_message_that_crosses_a_fork_exposes_it(whole: Case) -> None:
    """Bob has seen another history than Alice, and his next message says so."""
    for_bob = Talk(whole.server)
    other, _ = for_bob.say(whole.alice, ALICES, "no", [Recipient(whole.bob.fingerprint, BOBS)])
    for_alice = Talk(whole.server)
    mine, _ = for_alice.say(whole.alice, ALICES, "yes", [Recipient(whole.bob.fingerprint, BOBS)])
    to = [Recipient(whole.alice.fingerprint, ALICES)]
    answer, _ = for_alice.say(whole.bob, BOBS, "I see", to, seen=for_bob.head)
    lines = whole_of(whole, [mine, answer])
    assert forms.parse_message(other[0]).seqno == forms.parse_message(mine[0]).seqno
    refuse(
        whole,
        "^line 3: its sender has seen a head that is not here",
        lines,
        receipt_over(whole, lines, 2),
    )


# Openings and the program -------------------------------------------------------------------------


def test_disclosed_text_is_the_one_that_was_signed(whole: Case) -> None:
    history = whole.verify()
    kept = (whole.folder / "openings.jsonl").read_bytes().splitlines(keepends=True)
    said = verify.check_openings(b"".join(kept), history, whole.certificates())
    assert [line.split(": ", 1)[1] for line in said[:3]] == TEXTS[:3]
    assert said[3] == rf"3 {BOB}: a|b\n"
    assert verify.check_openings(kept[2], history, whole.certificates()) == [f"2 {ALICE}: fine"]
    assert verify.check_openings(b"", history, whole.certificates()) == ["no text is disclosed"]
    for edited in (
        kept[0].replace(b"hello", b"hallo"),
        kept[0].replace(b'"index":0', b'"index":1'),
        kept[0].replace(b'"index":0', b'"index":9'),
        kept[0].replace(b'"index":0', b'"index":"0"'),
        canonical({**json.loads(kept[0]), "opening": "?"}),
        b"nothing\n",
    ):
        assert edited != kept[0]
        with pytest.raises(Wrong, match=r"^opening 1: "):
            verify.check_openings(edited, history, whole.certificates())


def test_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    assert (verify.MAX_LINES, verify.MAX_FILE) == (1_073_741_824, 16_777_216)
    path = tmp_path / "file"
    path.write_bytes(b"four")
    assert verify.read(path, 4) == b"four"
    with pytest.raises(UserError, match="is longer than 3 bytes"):
        verify.read(path, 3)


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["verify.py", *map(str, words)])
    return verify.main()


def test_program_prints_what_holds_and_what_it_rests_on(
    whole: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [whole.folder / name for name in ("receipt.json", "transcript.txt", "certs.pem")]
    assert run(monkeypatch, *files) == 0
    said = capsys.readouterr().out
    assert "6 messages in lobby" in said
    names = "localhost, 127.0.0.1, ::1"
    assert f"signed by the server {names}, countersigned by the client {ALICE}" in said
    assert "without --ca" in said
    assert "without --crl" in said
    assert said.endswith("Valid\n")
    judged = ["--ca", whole.folder / "ca.pem", "--crl", whole.folder / "crl.pem"]
    more = ["--openings", whole.folder / "openings.jsonl", "--against", files[1]]
    assert run(monkeypatch, *files, *judged, *more) == 0
    said = capsys.readouterr().out
    assert f"0 {ALICE}: hello" in said
    assert "tells the same history of the 6 messages that both have" in said
    assert "without" not in said


def test_fault_of_the_other_transcript_is_not_told_as_one_of_ours(
    whole: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [whole.folder / name for name in ("receipt.json", "transcript.txt", "certs.pem")]
    other = tmp_path / "other.txt"
    other.write_bytes(files[1].read_bytes()[:-1])
    assert run(monkeypatch, *files, "--against", other) == 1
    assert "Invalid: the other transcript: line 12: torn" in capsys.readouterr().out


def test_program_tells_of_a_fork_a_later_revocation_and_an_unconfirmed_receipt(
    whole: Case,
    tmp_path: Path,
    keys: list[PrivateKey],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = identity_of(whole.server, "server", "localhost")
    known = whole.stay.known(ALICES, ROOM, server, whole.alice.pem)
    save_receipt(tmp_path / "receipt.json", make_receipt(known, whole.alice.key, NOW), None)
    school = Authority(keys[0])
    school.revoke([whole.alice.certificate], NOW + DAY)
    (tmp_path / "crl.pem").write_bytes(school.list)
    entries = [entry for entry, _ in say(Talk(whole.server), whole.alice, whole.bob, ["no"])]
    (tmp_path / "other.txt").write_bytes(whole_of(whole, entries))
    files = [tmp_path / "receipt.json", whole.folder / "transcript.txt", whole.folder / "certs.pem"]
    judged = ["--ca", whole.folder / "ca.pem", "--crl", tmp_path / "crl.pem"]
    assert run(monkeypatch, *files, *judged) == 0
    said = capsys.readouterr().out
    assert f"signed by the client {ALICE}, uncountersigned; not confirmed by the server" in said
    assert f"revoked since: {whole.alice.fingerprint[:16]}..\n" in said
    assert run(monkeypatch, *files, "--against", tmp_path / "other.txt") == 1
    assert "two histories" in capsys.readouterr().out


def test_empty_file_is_no_authority_and_no_list(
    whole: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a file that a full disk left empty would switch a judgement off."""
    files = [whole.folder / name for name in ("receipt.json", "transcript.txt", "certs.pem")]
    (tmp_path / "empty").touch()
    for judged in (
        ["--ca", tmp_path / "empty"],
        ["--ca", whole.folder / "ca.pem", "--crl", tmp_path / "empty"],
    ):
        with pytest.raises(UserError, match="not certificates"):
            run(monkeypatch, *files, *judged)
    with pytest.raises(UserError, match="needs the authority"):
        run(monkeypatch, *files, "--crl", whole.folder / "crl.pem")


def test_program_names_the_first_bad_line(
    whole: Case,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = whole.lines.splitlines(keepends=True)
    (tmp_path / "cut.txt").write_bytes(b"".join(lines[:6] + lines[8:]))
    certs = whole.folder / "certs.pem"
    assert run(monkeypatch, whole.folder / "receipt.json", tmp_path / "cut.txt", certs) == 1
    assert capsys.readouterr().out == "Invalid: line 7: chain: a line was changed, moved or lost\n"
    with pytest.raises(UserError, match="cannot read"):
        run(monkeypatch, whole.folder / "none.json", tmp_path / "cut.txt", certs)


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_openssl_agrees_on_every_signature(whole: Case, tmp_path: Path) -> None:
    owners = {one.fingerprint: one for one in (whole.alice, whole.bob, whole.server)}
    columns = [line.split("|") for line in whole.lines.decode("ascii").splitlines()]
    signed = [(base64.b64decode(one[6]), base64.b64decode(one[3]), one[4]) for one in columns]
    receipt = base64.b64decode(whole.receipt.signature)
    for data, signature, fingerprint in [
        *signed[:3],
        (whole.receipt.signed(), receipt, whole.server.fingerprint),
    ]:
        (tmp_path / "signed").write_bytes(data)
        (tmp_path / "sig").write_bytes(signature)
        (tmp_path / "key.pem").write_text(public_pem(owners[fingerprint].key.public_key()))
        command = ["openssl", "dgst", "-sha256", "-sigopt", "rsa_padding_mode:pss"]
        command += ["-sigopt", "rsa_pss_saltlen:digest", "-verify", "key.pem"]
        done = subprocess.run(
            [*command, "-signature", "sig", "signed"],
            cwd=tmp_path,
            capture_output=True,
            check=False,
        )
        assert done.stdout == b"Verified OK\n", done.stderr
