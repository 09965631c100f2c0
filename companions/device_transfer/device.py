"""A device: sends texts, images, videos and any other files, and knows that they have arrived.

    with Device(identity, trust, "server-1") as device:
        device.send_text("all is well")
        device.send_file(Path("door.mp4"))

Memory does not grow with a file: it is read, sealed and sent chunk by chunk. As a program it exits
with 0 when all was acknowledged, 1 when the session was ended, 2 for bad input, 3 for no
connection, a cut one, or a late answer.
"""
from __future__ import annotations

import hashlib
import io
import logging
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from companions.channel import Channel
from companions.device_transfer.certificates import Identity, Trust
from companions.device_transfer.options import PORT, PartyParser, load_party, start_log
from companions.device_transfer.protocol import (
    CHUNK_BYTES, Kind, Message, PeerFailed, Session, read_frame, write_frame,
)
from companions.device_transfer.transfer import (
    MAX_TEXT_BYTES, Announcement, Manifest, Outgoing, check_name, sign_manifest,
)
from endpoint import (
    HOST, NoConnection, UserError, reason_of, run_program, seconds,
)
from protocol_fsm import (
    BadPayload, ConnectionCut, DeadlineExpired, LocalError, ProtocolError, ProtocolState,
)

Progress = Callable[[int], object]  # told how many bytes went out

class Device:
    """A session with one server, named by its certificate: begins with `with`, ends with END.

    Raises UserError, NoConnection, and any ProtocolError, which has then ended the session.
    """

    def __init__(self, identity: Identity, trust: Trust, recipient: str, host: str = HOST,
                 port: int = PORT, *, timeout_s: float = 10.0,
                 new_session: Callable[..., Session] = Session) -> None:
        self.session = new_session(identity, trust, recipient)
        self._identity, self._trust, self.recipient = identity, trust, recipient
        self._address, self.timeout_s, self._number = (host, port), timeout_s, 0
        self.channel: Channel[Kind, Message]

    def __enter__(self) -> Device:
        try:
            sock = socket.create_connection(self._address, min(self.timeout_s, 10.0))
        except (OSError, UnicodeError) as error:
            where = "{}:{}".format(*self._address)
            raise NoConnection(f"no server at {where}: {reason_of(error)}") from None
        self.channel = Channel(sock, self.session, read_frame, write_frame, self.timeout_s)
        try:
            for kind in (Kind.HELLO, Kind.SHARE, Kind.CONFIRM):
                self.channel.send(kind)
                self.receive()
        except BaseException:
            self.channel.leave()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            if kind is None:
                self.channel.send(Kind.END)
                self._check_ack(hashlib.sha256(b"").digest())
            elif self.session.state.phase is ProtocolState.ACTIVE:
                self.channel.fail(ProtocolError(None, "our own side gave up"))
        finally:
            self.channel.leave()

    def send_text(self, text: str) -> Manifest:
        """Send a text of at most 65,536 bytes; returns when the server has verified it."""
        try:
            content = text.encode("utf-8")
        except UnicodeError:
            raise UserError("the text has characters that are none") from None
        if len(content) > MAX_TEXT_BYTES:
            raise UserError(f"the text has {len(content):,} bytes, and {MAX_TEXT_BYTES:,} is all")
        return self._send(Announcement("text", "", len(content)), io.BytesIO(content))

    def send_file(self, path: Path, progress: Progress = lambda count: None) -> Manifest:
        """Send a file of any size; returns when the server has verified and stored it."""
        with open_file(path) as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            return self._send(Announcement("file", path.name, size), file, progress)

    def _send(self, announcement: Announcement, content: BinaryIO,
              progress: Progress = lambda count: None) -> Manifest:
        outgoing, session = Outgoing(announcement), self.session
        self.channel.send(Kind.TEXT if announcement.kind == "text" else Kind.FILE,
                          announcement.encode())
        while chunk := read_chunk(content, announcement.size - outgoing.size):
            if session.chunks >= session.rekey_chunks:
                self.channel.send(Kind.REKEY)
                self.receive()
            self.channel.hear()
            self.channel.send(Kind.CHUNK, chunk)
            outgoing.take(chunk)
            progress(len(chunk))
        manifest = outgoing.manifest(session.session_id, self._number,
                                     self._identity.certificate.common_name, self.recipient,
                                     self._trust.now())
        self.channel.send(Kind.MANIFEST, sign_manifest(self._identity.private_key, manifest))
        self._check_ack(bytes.fromhex(manifest.digest))
        self._number += 1
        return manifest

    def receive(self) -> Message:
        return self.channel.receive(time.monotonic() + self.timeout_s)

    def _check_ack(self, digest: bytes) -> None:
        if (message := self.receive()).body != digest:
            error = BadPayload(digest.hex(), message.body.hex())
            self.channel.fail(error)
            raise error

def open_file(path: Path) -> BinaryIO:
    """Open a regular file. Raises UserError."""
    try:
        check_name(path.name)
        if not path.is_file():
            raise FileNotFoundError(0, "it is no file")
        return path.open("rb")
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}") from None
    except ProtocolError as error:
        raise UserError(f"cannot send {str(path)!a}: {error}") from None

def read_chunk(content: BinaryIO, left: int) -> bytes:
    """Return the next bytes to send, none when all was read. Raises UserError."""
    try:
        return content.read(min(CHUNK_BYTES, left))
    except OSError as error:
        raise UserError(f"cannot read on: {reason_of(error)}") from None

def explain(error: ProtocolError, session: Session) -> str:
    """Return the sentence for a person whose session ended before its time."""
    if isinstance(error, PeerFailed):
        return "the server ended the session; its log says why, and nobody else is told"
    if isinstance(error, ConnectionCut) and session.state.phase is not ProtocolState.ACTIVE \
            and not session.session_id:
        return ("the server closed the connection in the handshake, and never says why: an "
                "expired, revoked or unknown certificate, a wrong clock or tampering look alike")
    if isinstance(error, ConnectionCut):
        return "connection lost; what was not acknowledged has not arrived"
    if isinstance(error, DeadlineExpired):
        return "no answer in time"
    return f"session ended: {error}"

def send_all(device: Device, texts: Sequence[str], files: Sequence[Path]) -> None:
    """Send everything, with a progress bar on a terminal and a line for each that has arrived."""
    with device:
        print(f"session with {device.recipient} begun", flush=True)
        for text in texts:
            device.send_text(text)
            print(f"text of {len(text)} characters: acknowledged", flush=True)
        for path in files:
            size = path.stat().st_size
            with tqdm(total=size, unit="B", unit_scale=True, desc=f"{path.name[:30]!a}"[1:-1],
                      disable=None, leave=False, dynamic_ncols=True, delay=0.5) as bar:
                manifest = device.send_file(path, bar.update)
            print(f"{path.name!a}: {manifest.size:,} bytes acknowledged", flush=True)
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
    for path in options.files:
        open_file(path).close()  # before anything is sent
    start_log(options.log, logging.WARNING)
    device = Device(*load_party(options), options.to, options.host, options.port,
                    timeout_s=options.timeout)
    try:
        send_all(device, options.text, options.files)
    except LocalError as error:
        raise UserError(str(error)) from None
    except ProtocolError as error:
        print(f"device: {explain(error, device.session)}", file=sys.stderr)
        return 3 if isinstance(error, (ConnectionCut, DeadlineExpired)) else 1
    return 0

if __name__ == "__main__":
    run_program(main)
