"""What was received from whom: anybody with the authority's public key can verify it later.

    python -m companions.device_transfer.journal FOLDER --authority PKI/NAME/authority.json

FOLDER/journal.jsonl has a line for each item: certificate and signature of the sender, the manifest
that was signed, where the file is, or the text itself. Each line can be verified alone. A changed,
torn or repeated line is noticed, and so is a changed or missing file; a removed line is not, nor is
a changed order. `received` and `stored_as` are the server's word and not signed: the first must be
near the signed time, and the file that the second names must have the signed digest.

A certificate is compared with the time in the manifest. A later revocation does not undo what was
signed before, and is only noted. But a stolen key can backdate signatures.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from companions.asymmetric import SIGNATURE_BYTES, is_signed
from companions.canonical import canonical, parse_canonical
from companions.device_transfer.certificates import (
    Certificate,
    CertificateExpired,
    CertificateNotYetValid,
    CertificateRevoked,
    RevocationListUnusable,
    Role,
    Trust,
    UntrustedCertificate,
    WrongRole,
    load_trust,
    parse_certificate,
    parse_timestamp,
    timestamp,
)
from companions.device_transfer.store import JOURNAL, StoreFailed, storing, sync_folder, write_all
from companions.device_transfer.transfer import (
    CLOCK_SKEW,
    CONTEXT,
    BadName,
    Manifest,
    check_name,
    parse_manifest,
)
from program import Parser, UserError, reason_of, run_program, to_stderr
from protocol_fsm import ProtocolError

MAX_LINE_BYTES = 1 << 20  # 65,536 control characters of a text take six bytes each
BLOCK_BYTES = 1 << 20  # of a file, read at a time
PROGRESS_S = 2.0  # between two lines of progress
APPEND = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
MEMBERS: dict[str, type] = {
    "certificate": dict,
    "manifest": dict,
    "received": str,
    "signature": str,
    "stored_as": str,
    "text": str,
}

# Lines --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A line: `signature` (256 bytes) is of the manifest; `text` is empty for a file."""

    certificate: Certificate
    manifest: Manifest
    signature: bytes
    received: datetime
    stored_as: str = ""
    text: str = ""

    def encode(self) -> bytes:
        """Return the line, without its end. Raises ValueError for half a character in the text."""
        return canonical(
            {
                "certificate": json.loads(self.certificate.encoded),
                "manifest": json.loads(self.manifest.encode()),
                "received": timestamp(self.received),
                "signature": self.signature.hex(),
                "stored_as": self.stored_as,
                "text": self.text,
            }
        )


def parse_entry(line: bytes) -> Entry:
    """Return what a line claims, unverified. Raises ValueError and ProtocolError."""
    members = parse_canonical(line, MEMBERS)
    signature = bytes.fromhex(members["signature"])
    if len(signature) != SIGNATURE_BYTES or signature.hex() != members["signature"]:
        raise ValueError(f"no signature of {SIGNATURE_BYTES} bytes in hex")
    return Entry(
        parse_certificate(canonical(members["certificate"])),
        parse_manifest(canonical(members["manifest"])),
        signature,
        parse_timestamp(members["received"]),
        members["stored_as"],
        members["text"],
    )


class Journal:
    """The journal of a server, which opens it once; all its threads append to it.

    The file is made at once, with mode 0600, so that no received file can take its name. The folder
    is locked too, because the file may be moved away, which stops all writing. Raises UserError.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._lock = threading.Lock()
        self._folder = -1
        self._file = -1
        try:
            if hasattr(os, "O_DIRECTORY"):  # not on Windows
                self._folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
                lock(self._folder, path.parent)
            self._file = os.open(path, APPEND, 0o600)
            lock(self._file, path.parent)
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                raise OSError("it is not a regular file")
            sync_folder(path.parent)
        except OSError as error:
            self.close()
            raise UserError(f"cannot keep a journal in {path}: {reason_of(error)}") from None

    def append(self, entry: Entry) -> None:
        """Write a line to the disk, all of it or nothing. Raises StoreFailed."""
        line = entry.encode() + b"\n"
        with self._lock, storing("a line in the journal"):
            before = os.lseek(self._file, 0, os.SEEK_END)
            try:
                write_all(self._file, self._missing_end(before) + line)
                os.fsync(self._file)
                self._check_place()
            except BaseException:  # Ctrl-C too
                os.ftruncate(self._file, before)
                raise

    def _check_place(self) -> None:
        """Raise StoreFailed, or OSError, if the file we write to is not where others will look."""
        if not os.path.samestat(os.fstat(self._file), self._path.stat()):
            raise StoreFailed("the journal that was opened", "another file in its place")

    def _missing_end(self, size: int) -> bytes:
        """Return the end that a killed server's last line lacks, or the next would be torn too."""
        if not size:
            return b""
        os.lseek(self._file, size - 1, os.SEEK_SET)
        return b"" if os.read(self._file, 1) == b"\n" else b"\n"

    def close(self) -> None:
        with self._lock:
            files = (self._file, self._folder)
            self._file = -1
            self._folder = -1
            for file in files:
                if file >= 0:
                    os.close(file)


def lock(file: int, folder: Path) -> None:
    """Keep other processes from locking `file` until we close it or are killed. Raises OSError.

    Windows and some network drives have no such locks; NFS has them for files only.
    """
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(f"another server keeps its files in {folder}") from None
    except OSError:
        pass


# Verification -------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """The verdict on a line: `problem` is empty for a good one, which may have a remark."""

    line: int
    entry: Entry | None
    problem: str
    remark: str = ""


class _Wrong(Exception):
    """The line is not true; the message says why in a few words."""


def verify(
    folder: Path, trust: Trust, tell: Callable[[int], object] = lambda length: None
) -> Iterator[Verdict]:
    """Judge each line of the journal. `tell` is given counts of hashed bytes. Raises UserError."""
    time_signed = trust.now()
    revocations = _revocations(trust)
    then = Trust(trust.authority, trust.issuer, lambda: revocations, lambda: time_signed)
    seen: dict[tuple[str, str, int], int] = {}
    recipient = ""  # the server whose journal it is, according to its first good line
    for number, line in enumerate(_lines(folder / JOURNAL), 1):
        entry = None
        try:
            entry = _parse_line(line)
            time_signed = entry.manifest.time
            remark = _check_certificate(entry, then)
            _check_entry(entry)
            _check_content(folder, entry, tell)
            said = entry.manifest
            first = seen.setdefault((said.sender, said.session, said.number), number)
            if first != number:
                raise _Wrong(f"same as line {first}")
            recipient = recipient or said.recipient
            if said.recipient != recipient:
                raise _Wrong("of another server")
            yield Verdict(number, entry, "", remark)
        except _Wrong as wrong:
            yield Verdict(number, entry, str(wrong))


def _revocations(trust: Trust) -> bytes:
    """Return today's list; nothing if it is unusable."""
    try:
        return trust.revocation_list().encoded
    except RevocationListUnusable:
        return b""


def _lines(path: Path) -> Iterator[bytes]:
    """Yield lines with their ends; a line longer than any can be comes in pieces, without one."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
            raise OSError("it is not a regular file")
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES):
                yield line
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}") from None


def _parse_line(line: bytes) -> Entry:
    if not line.endswith(b"\n"):
        raise _Wrong("torn line")
    try:
        return parse_entry(line[:-1])
    except (ValueError, ProtocolError):
        raise _Wrong("unreadable line") from None


WRONG_CERTIFICATES: dict[type[ProtocolError], str] = {
    UntrustedCertificate: "forged certificate",
    CertificateNotYetValid: "not yet certified",
    CertificateExpired: "expired certificate",
    WrongRole: "not a device",
}


def _check_certificate(entry: Entry, then: Trust) -> str:
    """Check it at the time in the manifest, and return a remark on its revocation."""
    try:
        then.check(entry.certificate.encoded, Role.DEVICE)
    except CertificateRevoked:
        return "revoked by now"
    except RevocationListUnusable:
        return "may be revoked"
    except tuple(WRONG_CERTIFICATES) as error:
        raise _Wrong(WRONG_CERTIFICATES[type(error)]) from None
    return ""


def _check_entry(entry: Entry) -> None:
    """Check signature, sender and time of a line."""
    certificate = entry.certificate
    manifest = entry.manifest
    if not is_signed(certificate.public_key, CONTEXT, manifest.encode(), entry.signature):
        raise _Wrong("forged manifest")
    if manifest.sender != certificate.common_name:
        raise _Wrong("another sender")
    if abs(entry.received - manifest.time) > 2 * CLOCK_SKEW:  # received a little after the check
        raise _Wrong("time received")


def _check_content(folder: Path, entry: Entry, tell: Callable[[int], object]) -> None:
    if entry.manifest.kind == "text":
        data = entry.text.encode("utf-8")
        size = len(data)
        digest = hashlib.sha256(data).hexdigest()
        is_odd = entry.stored_as != ""
    else:
        size, digest = _hash_file(folder, entry.stored_as, tell)
        is_odd = entry.text != ""
    if is_odd:
        raise _Wrong("both text and file")
    if size != entry.manifest.size:
        raise _Wrong("size differs")
    if digest != entry.manifest.digest:
        raise _Wrong("content differs")


def _hash_file(folder: Path, name: str, tell: Callable[[int], object]) -> tuple[int, str]:
    """Return size and SHA-256 (hex) of a file in the folder, which must not be a link or a pipe."""
    try:
        check_name(name)
        if not stat.S_ISREG((folder / name).lstat().st_mode):
            raise _Wrong("not a file")
        size = 0
        digest = hashlib.sha256()
        with (folder / name).open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                size += len(block)
                digest.update(block)
                tell(len(block))
    except BadName:
        raise _Wrong("outside the folder") from None
    except FileNotFoundError:
        raise _Wrong("file is missing") from None
    except OSError:
        raise _Wrong("file is unreadable") from None
    return size, digest.hexdigest()


# Program ------------------------------------------------------------------------------------------


def describe(verdict: Verdict) -> str:
    """Return a verdict in a line of at most 79 columns, with all but ASCII escaped.

    A second line says where the content is, if not under the name that was signed.
    """
    outcome = verdict.problem or ", ".join(filter(None, ["ok", verdict.remark]))
    if verdict.entry is None:
        return f"{f'line {verdict.line}':58} {outcome}"
    said = verdict.entry.manifest
    name = shorten(json.dumps(said.name)[1:-1], 15)
    line = (
        f"{timestamp(said.time)[:16]} {shorten(ascii(said.sender)[1:-1], 11):11} {said.kind:4}"
        f" {name:15} {_in_columns(said.size):>8} {outcome}"
    )
    stored_as = verdict.entry.stored_as
    if stored_as in ("", said.name):
        return line
    return f"{line}\n{'':34}stored as {shorten(json.dumps(stored_as), 35)}"


def _in_columns(size: int) -> str:
    """Return a size in bytes, or in MB, in at most 8 columns; in a forged line it may be huge."""
    for text in (str(size), f"{size // 10**6} MB"):
        if len(text) <= 8:
            return text
    return "huge"


def shorten(text: str, width: int) -> str:
    """Return at most `width` columns: beginning and end, by which names are recognised."""
    return text if len(text) <= width else f"{text[: width - 6]}..{text[-4:]}"


class _Progress:
    """Reports on stderr how much is hashed, now and then, if it takes long."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = clock() + PROGRESS_S
        self._bytes = 0

    def __call__(self, length: int) -> None:
        self._bytes += length
        if self._clock() >= self._next:
            self._next = self._clock() + PROGRESS_S
            to_stderr(f"{self._bytes / 1e6:,.0f} MB hashed")


def main() -> int:
    parser = Parser("Verify a journal and the files that it names.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the files are")
    parser.add_argument(
        "--authority",
        type=Path,
        metavar="FILE",
        required=True,
        help="the authority.json of anybody who trusts the same authority",
    )
    options = parser.options()
    if options.authority.name != "authority.json":
        raise UserError(f"{options.authority} is not named authority.json")
    is_empty = True
    is_all_well = True
    for verdict in verify(options.folder, load_trust(options.authority.parent), _Progress()):
        print(describe(verdict))
        is_empty = False
        is_all_well = is_all_well and not verdict.problem
    if is_empty:
        print("0 lines")
    return 0 if is_all_well else 1


if __name__ == "__main__":
    run_program(main)
