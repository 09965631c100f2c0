"""A device: sends texts, images, videos and any other files, and learns that they have arrived.

    with Device(identity, trust, "server-1") as device:
        device.send_text("all is well")
        device.send_file(Path("door.mp4"))

A file is read, sealed and sent chunk by chunk, so that memory does not grow with it. As a program
it exits with 0 when all was acknowledged, 1 when the session was ended, 2 for bad input, 3 for no
connection, a cut one, or a late answer, and 130 after Ctrl-C (143 after SIGTERM).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from channel import Channel, EndRequested
from companions.device_transfer.certificates import (
    CertificateExpired,
    CertificateNotYetValid,
    CertificateRevoked,
    Identity,
    MalformedCertificate,
    RevocationListUnusable,
    Role,
    Trust,
    UntrustedCertificate,
    WrongRole,
    parse_common_name,
)
from companions.device_transfer.journal import shorten
from companions.device_transfer.options import PORT, Pace, PartyParser, check_role, load_party
from companions.device_transfer.protocol import (
    CHUNK_BYTES,
    Kind,
    Message,
    PeerFailed,
    Session,
    State,
)
from companions.device_transfer.transfer import (
    MAX_TEXT_BYTES,
    Announcement,
    ItemKind,
    Manifest,
    Outgoing,
    check_name,
    sign_manifest,
)
from companions.listening import Caller
from companions.logs import start_log
from endpoint import HOST
from program import UserError, end_signals, plural, reason_of, run_program, seconds, to_stderr
from protocol_fsm import (
    BadPayload,
    ConnectionCut,
    DeadlineExpired,
    LocalError,
    ProtocolError,
    Status,
    WrongPeer,
)

log = logging.getLogger("device_transfer.device")
Progress = Callable[[int], object]  # is told how many bytes went out
REFUSED = (
    MalformedCertificate,
    UntrustedCertificate,
    CertificateNotYetValid,
    CertificateExpired,
    WrongRole,
    CertificateRevoked,
)


class Device(Caller[Channel[Message]]):
    """A session with one server, named by its certificate: begins with `with`, ends with END.

    `timeout_s` is the limit for each answer, and for 64 KiB to go out. Raises UserError and
    NoConnection before there is a session; any ProtocolError has ended it. A Device has one
    session: for another one, make another Device. One thread at a time may use it.
    """

    def __init__(
        self,
        identity: Identity,
        trust: Trust,
        recipient: str,
        host: str = HOST,
        port: int = PORT,
        *,
        timeout_s: float = 10.0,
        new_session: Callable[..., Session] = Session,
    ) -> None:
        check_role(identity, Role.DEVICE)
        try:
            parse_common_name(recipient)
        except ValueError as error:
            raise UserError(f"{recipient!a} names no server: {error}") from None
        self.session = new_session(identity, trust, recipient)
        self._identity = identity
        self._trust = trust
        self.recipient = recipient
        self._address = (host, port)
        self.timeout_s = timeout_s
        self._number = 0

    def __enter__(self) -> Device:
        sock = self._reach(self._address, min(self.timeout_s, 10.0))
        self._channel = Channel(sock, self.session, self.timeout_s)
        try:
            for kind in (Kind.HELLO, Kind.SHARE, Kind.CONFIRM):
                self.channel.send(Message(kind))
                self.receive()
        except BaseException as error:
            log.info("%s: no session: %s", self.recipient, error)
            self.channel.leave(Status.SHUTDOWN)
            raise
        log.info("%s: session %s begun", self.recipient, self.session.session_id.hex())
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            if kind is None and self.session.state is State.READY:
                self.channel.send(Message(Kind.END))
                self._check_ack(hashlib.sha256(b"").digest())
        finally:
            self.channel.leave(Status.SHUTDOWN)  # by a FAIL, unless END was acknowledged
            log.info("%s: session over, %d acknowledged", self.recipient, self._number)

    def send_text(self, text: str) -> Manifest:
        """Send a text of 0 to 65,536 bytes (UTF-8), and return its signed manifest.

        By then the server has verified it and entered it into its journal. Raises UserError if
        nothing was sent; LocalError outside of a session; ProtocolError, which has ended the
        session.
        """
        content = encode_text(text)
        return self._send("text", "", io.BytesIO(content))

    def send_file(self, path: Path, progress: Progress = lambda count: None) -> Manifest:
        """Send a file of any size under its own name, and return its signed manifest.

        By then the server has verified and stored it. Raises UserError if nothing was sent, and
        LocalError outside of a session. A LocalError for a file that is changed meanwhile or cannot
        be read to its end has ended the session, as has a ProtocolError.
        """
        with open_file(path) as file:
            try:
                return self._send("file", path.name, file, progress)
            except LocalError as error:
                raise LocalError(f"{shorten(ascii(path.name), 40)}: {error}") from None

    def _send(
        self, what: ItemKind, name: str, content: BinaryIO, progress: Progress = lambda count: None
    ) -> Manifest:
        if self.session.state is not State.READY:
            raise LocalError(
                "there is no session: a Device sends inside its `with`, and not after "
                "something has ended that"
            )
        kind = Kind.TEXT if what == "text" else Kind.FILE
        announcement = Announcement(what, name, size_of(content), self._trust.now())
        try:
            self.channel.send(Message(kind, announcement.encode()))
            manifest = self._send_content(Outgoing(announcement), content, progress)
            self._check_ack(bytes.fromhex(manifest.digest))
        except BaseException as error:
            log.info(
                "%s: %a of %s not acknowledged: %r",
                self.recipient,
                announcement.name or "text",
                plural(announcement.size, "byte"),
                error,
            )
            raise
        self._number += 1
        log.info(
            "%s: %a of %s acknowledged",
            self.recipient,
            manifest.name or "text",
            plural(manifest.size, "byte"),
        )
        return manifest

    def _send_content(self, outgoing: Outgoing, content: BinaryIO, progress: Progress) -> Manifest:
        """Send chunks, new keys where they are due, and the signature over all of it."""
        session = self.session
        version = version_of(content)
        while chunk := read_chunk(content):
            outgoing.take(chunk)
            if session.chunks >= session.rekey_chunks:
                self.channel.send(Message(Kind.REKEY))
                self.receive()
            self.channel.hear()
            self.channel.send(Message(Kind.CHUNK, chunk))
            progress(len(chunk))
        manifest = outgoing.manifest(
            session.session_id,
            self._number,
            self._identity.certificate.common_name,
            self.recipient,
            self._trust.now(),
        )
        if version_of(content) != version:  # or half of one version would be signed with the other
            raise LocalError("it was changed while it was sent")
        signed = sign_manifest(self._identity.private_key, manifest)
        self.channel.send(Message(Kind.MANIFEST, signed))
        return manifest

    def receive(self) -> Message:
        return self.channel.receive(time.monotonic() + self.timeout_s)

    def _check_ack(self, digest: bytes) -> None:
        message = self.receive()
        if message.body != digest:
            error = BadPayload(f"an ACK of {digest.hex()}", message.body.hex())
            self.channel.fail(error)
            raise error


# What is sent -------------------------------------------------------------------------------------


def encode_text(text: str) -> bytes:
    """Return at most 65,536 bytes of UTF-8. Raises UserError."""
    try:
        content = text.encode("utf-8")
    except UnicodeError:
        raise UserError("the text is not Unicode: it has half a character in it") from None
    if len(content) > MAX_TEXT_BYTES:
        raise UserError(f"a text has at most {MAX_TEXT_BYTES:,} bytes, and this {len(content):,}")
    return content


def open_file(path: Path) -> BinaryIO:
    """Open a regular file whose name can be sent. Raises UserError."""
    try:
        mode = path.stat().st_mode  # first: opening a pipe would wait for its writer
        if not stat.S_ISREG(mode):
            raise OSError("it is a folder" if stat.S_ISDIR(mode) else "it is not a regular file")
        check_name(path.name)
        file = path.open("rb")
        try:
            size_of(file)
        except OSError:  # as for much of /proc
            file.close()
            raise
        return file
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {os.fspath(path)!a}: {reason_of(error)}") from None
    except ProtocolError as error:
        raise UserError(f"cannot send {os.fspath(path)!a}: {error}") from None


def size_of(content: BinaryIO) -> int:
    """Return the size in bytes, and go to the beginning. Raises OSError where there is none."""
    size = content.seek(0, io.SEEK_END)
    content.seek(0)
    return size


def version_of(content: BinaryIO) -> tuple[int, ...]:
    """Return what changes whenever a file is written to, as finely as its file system counts."""
    if isinstance(content, io.BytesIO):
        return ()
    now = os.fstat(content.fileno())
    return (now.st_size, now.st_mtime_ns)


def read_chunk(content: BinaryIO) -> bytes:
    """Return the next 1 to 65,536 bytes, or none at the end. Raises LocalError."""
    try:
        return content.read(CHUNK_BYTES)
    except OSError as error:
        raise LocalError(f"cannot be read to its end: {reason_of(error)}") from None


# The program --------------------------------------------------------------------------------------


def explain(error: ProtocolError, session: Session) -> str:
    """Return the sentence for a person whose session ended before its time."""
    if isinstance(error, PeerFailed):
        return "the server ended the session; only its log says why"
    if isinstance(error, ConnectionCut) and not session.session_id:
        return (
            "the server closed the connection in the handshake, and never says why: an "
            "expired, revoked or unknown certificate, a list or a clock that is wrong, or "
            "tampering look alike"
        )
    if isinstance(error, ConnectionCut):
        return "connection lost; what was not acknowledged may not have arrived"
    if isinstance(error, DeadlineExpired):
        return "no answer in time; what was not acknowledged may not have arrived"
    if isinstance(error, REFUSED):
        return f"the server's certificate is refused: {error}"
    if isinstance(error, WrongPeer):
        return f"another server is there: {error}"
    if isinstance(error, RevocationListUnusable):
        return f"no certificate is accepted without a good revocation list: {error}"
    return f"session ended: {error}"


@contextlib.contextmanager
def progress_of(path: Path) -> Iterator[Progress]:
    """Yield what shows progress on stderr: a bar on a terminal, a line now and then elsewhere."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
    name = shorten(ascii(path.name)[1:-1], 30)
    if not sys.stderr.isatty():
        yield Pace(name, size, to_stderr)
        return
    with tqdm(
        total=size, unit="B", unit_scale=True, desc=name, leave=False, dynamic_ncols=True, delay=0.5
    ) as bar:
        yield bar.update


@contextlib.contextmanager
def listing(left: Sequence[str]) -> Iterator[None]:
    """Tell at a failure what of a batch is left; the first of it was under way."""
    try:
        yield
    except BaseException:
        for number, item in enumerate(left):
            to_stderr(f"{'not sent' if number else 'not acknowledged'}: {item}")
        raise


def send_all(device: Device, texts: Sequence[str], files: Sequence[Path], stop: list[int]) -> None:
    """Send everything, and print a line for each item acknowledged. Signals are put into `stop`."""
    left = [f"text of {plural(len(text), 'character')}" for text in texts]
    left += [shorten(ascii(path.name), 40) for path in files]

    def leave(number: int, _: object) -> None:
        stop.append(number)
        device.channel.request_end(Status.SHUTDOWN)

    with device:
        for number in end_signals():
            signal.signal(number, leave)
        print(f"session with {device.recipient} begun", flush=True)
        with listing(left):
            for text in texts:
                device.send_text(text)
                print(f"{left.pop(0)}: acknowledged", flush=True)
            for path in files:
                with progress_of(path) as progress:
                    manifest = device.send_file(path, progress)
                print(f"{left.pop(0)}: {plural(manifest.size, 'byte')} acknowledged", flush=True)
    print(f"done: {len(texts) + len(files)} sent and acknowledged")


def main() -> int:
    parser = PartyParser("Sends texts and files to a server, signed and encrypted.")
    parser.add_argument("--to", required=True, metavar="NAME", help="the server's common name")
    parser.add_argument("--text", action="append", default=[], help="send this; may be repeated")
    parser.add_argument("--timeout", type=seconds, default=10.0, help="for an answer; default 10")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="images, videos, files")
    options = parser.options()
    if not options.text and not options.files:
        raise UserError("there is nothing to send: name files, or give a --text")
    for text in options.text:  # before anything is sent
        encode_text(text)
    for path in options.files:
        open_file(path).close()
    start_log(options.log, sys.stderr, logging.WARNING)
    device = Device(
        *load_party(options, Role.DEVICE),
        options.to,
        options.host,
        options.port,
        timeout_s=options.timeout,
    )
    stop: list[int] = []
    try:
        send_all(device, options.text, options.files, stop)
    except EndRequested:
        to_stderr("device: stopped; what was not acknowledged may not have arrived")
        return 128 + stop[0]
    except LocalError as error:
        raise UserError(str(error)) from None
    except ProtocolError as error:
        to_stderr(f"device: {explain(error, device.session)}")
        return 3 if isinstance(error, (ConnectionCut, DeadlineExpired)) else 1
    return 0


if __name__ == "__main__":
    run_program(main)
