"""The server: takes texts and files from several devices at once, and keeps what was signed.

Rules in this module:
- only its own thread touches a session or writes its socket; others may ask it to end;
- until its handshake is over a connection is a stranger: it has little time, and few may wait;
- certificates are judged in the handshake: a device revoked later continues to the session's end;
- no file gets its name before its signature, its size and its digest were found right;
- what exactly failed goes to the log; the peer gets one uniform answer, or none.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from channel import Channel
from companions.asymmetric import SIGNATURE_BYTES
from companions.device_transfer.certificates import Identity, Role, Trust
from companions.device_transfer.journal import Entry, Journal
from companions.device_transfer.options import (
    PORT,
    Pace,
    PartyParser,
    check_role,
    load_party,
)
from companions.device_transfer.protocol import Kind, Message, Session
from companions.device_transfer.store import JOURNAL, Partial, Store
from companions.device_transfer.transfer import Incoming, ItemKind, Manifest, parse_announcement
from companions.listening import Connection, Listener, listen, serve
from companions.logs import start_log
from endpoint import HOST
from program import Lines, UserError, is_same_file, plural, positive, run_program
from protocol_fsm import ConnectionCut

log = logging.getLogger("device_transfer.server")
NOTHING = hashlib.sha256(b"").digest()  # for the ACK of an END


@dataclass(frozen=True)
class Limits:
    """How long the server waits, for how many, and how much it takes."""

    handshake_s: float = 10.0  # for all of it
    frame_s: float = 10.0  # from a frame's first byte to its last
    silence_s: float = 60.0  # between two messages
    max_strangers: int = 64  # one more evicts the oldest
    max_bytes: int = 4 * 2**30  # of one file


class Record(NamedTuple):
    """An event: a text or file was "stored", or a connection came to its "end".

    `detail` is the Incoming, or the exception that ended the session; None after an END.
    """

    what: str
    sender: str  # the common name of the device; empty until it has shown its certificate
    detail: Incoming | Exception | None


class Server(Listener["Member"]):
    """Listens from the start, serves inside `with`, and tells every device FAIL after it.

    `folder` is made if need be, and is this server's alone. `record` is told of every event, in
    the thread of its connection. The `new_` arguments are for the lab. Raises UserError and
    NoConnection; a failure of one device's session ends no other.
    """

    def __init__(
        self,
        identity: Identity,
        trust: Trust,
        folder: Path,
        host: str = HOST,
        port: int = PORT,
        limits: Limits = Limits(),
        *,
        new_session: Callable[..., Session] = Session,
        new_incoming: Callable[..., Incoming] = Incoming,
        new_store: Callable[[Path], Store] = Store,
        record: Callable[[Record], object] = lambda record: None,
    ) -> None:
        check_role(identity, Role.SERVER)
        self.identity = identity
        self.trust = trust
        self.limits = limits
        self.new_session = new_session
        self.new_incoming = new_incoming
        self.record = record
        with contextlib.ExitStack() as stack:
            super().__init__(stack.enter_context(listen(host, port)), limits.max_strangers, log)
            self.store = new_store(folder)
            self.journal = Journal(folder / JOURNAL)
            stack.callback(self.journal.close)
            if left := self.store.clean():  # now that the folder is known to be ours
                log.warning("unfinished files of an earlier server, removed: %d", left)
            self.close = stack.pop_all().close  # for a server that never serves

    def _connect(self, sock: socket.socket, address: Sequence[object]) -> Member:
        return Member(self, sock, address)

    def admit(self, member: Member) -> None:
        """Let in a stranger that has proved its identity. Raises EndRequested if it was evicted."""
        with self._lock:
            member.channel.check_request()
            member.is_stranger = False

    def tell(self, member: Member, reason: Exception | None) -> None:
        """Log how a connection ended."""
        if reason is None:
            log.info("%s: done, %d received", member, member.received)
        else:
            received = "" if member.is_stranger else f" after {member.received} received"
            why = "connection lost" if isinstance(reason, ConnectionCut) else reason
            log.warning("%s: ended%s: %s", member, received, why)
        self.record(Record("end", member.name, reason))


class Member(Connection):
    """A device, and what has come from it."""

    channel: Channel[Message]

    def __init__(self, server: Server, sock: socket.socket, address: Sequence[object]) -> None:
        self.session = server.new_session(server.identity, server.trust)
        super().__init__(server, Channel(sock, self.session, server.limits.frame_s), address)
        self._server = server
        self.received = 0

    def _serve(self) -> None:
        self._shake_hands(time.monotonic() + self._server.limits.handshake_s)
        for number in itertools.count():
            message = self._receive()
            if message.kind is Kind.END:
                self.channel.send(Message(Kind.ACK, NOTHING))
                return
            self._take(message, number)
            self.received += 1

    def _shake_hands(self, deadline: float) -> None:
        for kind in (Kind.HELLO, Kind.SHARE, Kind.CONFIRM):
            self.channel.receive(deadline)
            if kind is Kind.CONFIRM:  # first: a device that has ours is no stranger any more
                self._server.admit(self)
            self.channel.send(Message(kind))
        self.name = self.session.peer.common_name
        log.info("%s: session %s begun", self, self.session.session_id.hex())

    def _receive(self) -> Message:
        return self.channel.receive(time.monotonic() + self._server.limits.silence_s)

    def _take(self, message: Message, number: int) -> None:
        """Receive a text or a file to its end, verify it, keep it, and acknowledge it."""
        server = self._server
        kind: ItemKind = "text" if message.kind is Kind.TEXT else "file"
        incoming = server.new_incoming(
            parse_announcement(kind, message.body),
            limit_bytes=server.limits.max_bytes,
            session=self.session.session_id,
            number=number,
            sender=self.session.peer,
            recipient=server.identity.certificate.common_name,
            now=server.trust.now,
        )
        with server.store.begin() as partial:
            signed = self._fill(partial, incoming)
            manifest = incoming.finish(signed)
            stored_as = partial.keep(manifest.name) if kind == "file" else ""
        self._enter(manifest, signed[:SIGNATURE_BYTES], stored_as, incoming.text)
        what = f" stored as {stored_as!a}" if stored_as else f": {incoming.text[:200]!a}"
        log.info("%s: %s of %s%s", self, kind, plural(manifest.size, "byte"), what)
        server.record(Record("stored", self.name, incoming))
        self.channel.send(Message(Kind.ACK, incoming.digest))

    def _fill(self, partial: Partial, incoming: Incoming) -> bytes:
        """Write every chunk to the disk, and return the manifest with its signature."""
        announced = incoming.announcement
        pace = Pace(f"{self}: {announced.name!a}", announced.size, log.info)
        while (message := self._receive()).kind is not Kind.MANIFEST:
            if message.kind is Kind.REKEY:
                self.channel.send(Message(Kind.REKEY))
                partial.sync()  # now, since all of a large file could outlast the device's patience
                continue
            incoming.take(message.body)
            partial.write(message.body)
            pace(len(message.body))
        return message.body

    def _enter(self, manifest: Manifest, signature: bytes, stored_as: str, text: str) -> None:
        """Write a line of the journal; without one a file is not kept either."""
        now = self._server.trust.now()
        entry = Entry(self.session.peer, manifest, signature, now, stored_as, text)
        try:
            self._server.journal.append(entry)
        except BaseException:
            if stored_as:
                self._server.store.remove(stored_as)
            raise


def main() -> int:
    parser = PartyParser("Takes texts and files from devices, and keeps what they have signed.")
    parser.add_argument(
        "--received",
        type=Path,
        default=Path("received"),
        metavar="FOLDER",
        help="where files go; default: received",
    )
    parser.add_argument(
        "--max-bytes",
        type=positive,
        default=Limits.max_bytes,
        metavar="N",
        help="of one file; default 4 GiB",
    )
    options = parser.options()
    if options.log and is_same_file(options.log, options.received / JOURNAL):
        raise UserError(f"the log cannot be the journal, {options.log}")
    lines = Lines()
    start_log(options.log, lines)
    identity, trust = load_party(options, Role.SERVER)
    server = Server(
        identity,
        trust,
        options.received,
        options.host,
        options.port,
        Limits(max_bytes=options.max_bytes),
    )
    serve(server, f"{identity.certificate.common_name} listens on", lines)
    return 0


if __name__ == "__main__":
    run_program(main)
