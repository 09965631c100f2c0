"""The server: takes texts and files from several devices at once, and keeps what was signed.

Rules in this module:
- only its own thread touches a session or writes its socket; others may ask it to end;
- until its handshake is over a connection is a stranger: it has little time, and few may wait;
- nothing gets its name before its signature, its size and its digest were found right;
- what exactly failed goes to the log; the peer gets one uniform answer, or none.
"""
from __future__ import annotations

import hashlib
import itertools
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from companions.asymmetric import SIGNATURE_BYTES
from companions.channel import Channel
from companions.device_transfer.certificates import Identity, Role, Trust
from companions.device_transfer.journal import Entry, Journal
from companions.device_transfer.options import PORT, PartyParser, load_party, start_log
from companions.device_transfer.protocol import (
    Kind, Message, Session, State, read_frame, write_frame,
)
from companions.device_transfer.store import JOURNAL, Store
from companions.device_transfer.transfer import Incoming, Manifest, parse_announcement
from endpoint import (
    HOST, POLL_S, EndRequested, NoConnection, UserError, positive, reason_of, run_program,
)
from protocol_fsm import ProtocolError

log = logging.getLogger("device_transfer.server")
NOTHING = hashlib.sha256(b"").digest()  # what the ACK of an END names

@dataclass(frozen=True)
class Limits:
    """How long the server waits, for how many, and how much it takes."""

    handshake_s: float = 10.0  # in all
    frame_s: float = 10.0  # from a frame's first byte to its last
    silence_s: float = 60.0  # between two messages
    max_strangers: int = 64  # one more, and the oldest goes
    max_bytes: int = 4 * 2**30  # of one file

class Record(NamedTuple):
    """What happened: something was "stored", or a connection came to its "end".

    `detail` is the Incoming, or the exception that ended the session; None after an END.
    """

    what: str
    sender: str  # the common name of the device; empty until it has shown its certificate
    detail: Incoming | Exception | None

class Server:
    """Listens from the start, serves inside `with`, and tells every device FAIL after it."""

    def __init__(self, identity: Identity, trust: Trust, folder: Path, host: str = HOST,
                 port: int = PORT, limits: Limits = Limits(), *,
                 new_session: Callable[..., Session] = Session,
                 new_incoming: Callable[..., Incoming] = Incoming,
                 new_store: Callable[[Path], Store] = Store,
                 record: Callable[[Record], object] = lambda record: None) -> None:
        self.identity, self.trust, self.limits = identity, trust, limits
        self.new_session, self.new_incoming, self.record = new_session, new_incoming, record
        self.store = new_store(folder)
        if left := self.store.clean():
            log.warning("removed %d files that an earlier server left unfinished", left)
        self.journal = Journal(folder / JOURNAL)
        self._lock = threading.Lock()  # guards what follows
        self._members: list[Member] = []  # the oldest first
        self._closing = threading.Event()
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._listener = listen(host, port)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]

    def __enter__(self) -> Server:
        self._acceptor.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.set()
        self._acceptor.join()
        with self._lock:
            members = [*self._members]
        for member in members:
            member.channel.request_end()
        deadline = time.monotonic() + 2.0
        for member in members:
            member.thread.join(max(0.0, deadline - time.monotonic()))
        self._listener.close()
        self.journal.close()

    def _accept(self) -> None:
        pause = 0.0  # longer while descriptors or threads are lacking, which is logged once
        while not self._closing.wait(pause):
            try:
                member = Member(self, self._listener.accept()[0])
                with self._lock:
                    self._members.append(member)
                    strangers = [member for member in self._members if member.is_stranger]
                    for oldest in strangers[: -self.limits.max_strangers]:
                        oldest.channel.request_end()
                member.thread.start()
                pause = 0.0
            except TimeoutError:
                continue
            except Exception as error:  # a lack of descriptors, threads or memory passes
                log.log(logging.DEBUG if pause else logging.ERROR, "cannot accept: %s", error)
                pause = POLL_S

    def forget(self, member: Member, reason: Exception | None) -> None:
        """Take a connection that is over off the list, and say how it ended."""
        with self._lock:
            self._members = [other for other in self._members if other is not member]
        name = member.name or "a stranger"
        if reason:
            log.warning("%s: ended: %s", name, reason)
        else:
            log.info("%s: done, %d received", name, member.received)
        self.record(Record("end", member.name, reason))

class Member:
    """One connection, from its first byte to its last, served by a thread of its own."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self._server = server
        self.session = server.new_session(server.identity, server.trust)
        self.channel: Channel[Kind, Message] = Channel(sock, self.session, read_frame, write_frame,
                                                       server.limits.frame_s)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.name, self.received, self.is_stranger = "", 0, True

    def run(self) -> None:
        reason: Exception | None = None
        try:
            self._serve()
        except ProtocolError as error:  # which has found the session alive, or ended it itself
            reason = error
            if self.session.state is not State.ENDED:
                self.channel.fail(error)
        except EndRequested as error:
            reason = error
            self.channel.fail(ProtocolError(None, str(error)))
        except Exception as error:  # a defect of ours: it ends this session and no other
            log.exception("%s: internal error", self.name or "a stranger")
            reason = error
            self.channel.fail(ProtocolError(None, "an internal error"))
        self._server.forget(self, reason)
        self.channel.leave()

    def _serve(self) -> None:
        self._shake_hands(time.monotonic() + self._server.limits.handshake_s)
        for number in itertools.count():
            message = self._receive()
            if message.kind is Kind.END:
                self.channel.send(Kind.ACK, NOTHING)
                return
            self._take(message, number)
            self.received += 1

    def _shake_hands(self, deadline: float) -> None:
        for kind in (Kind.HELLO, Kind.SHARE, Kind.CONFIRM):
            self.channel.receive(deadline)
            self.channel.send(kind)
        self.name, self.is_stranger = self.session.peer.common_name, False
        log.info("%s: session %s begun", self.name, self.session.session_id.hex())

    def _receive(self) -> Message:
        return self.channel.receive(time.monotonic() + self._server.limits.silence_s)

    def _take(self, message: Message, number: int) -> None:
        """Receive a text or a file to its end, verify it, keep it, and acknowledge it."""
        server = self._server
        kind: Literal["text", "file"] = "text" if message.kind is Kind.TEXT else "file"
        incoming = server.new_incoming(
            parse_announcement(kind, message.body), limit_bytes=server.limits.max_bytes,
            session=self.session.session_id, number=number, sender=self.session.peer,
            recipient=server.identity.certificate.common_name, now=server.trust.now)
        with server.store.begin() as partial:
            while (message := self._receive()).kind is not Kind.MANIFEST:
                if message.kind is Kind.REKEY:
                    self.channel.send(Kind.REKEY)
                    continue
                incoming.take(message.body)
                partial.write(message.body)
            manifest = incoming.finish(message.body)
            stored_as = partial.keep(manifest.name) if kind == "file" else ""
        self._enter(manifest, message.body[:SIGNATURE_BYTES], stored_as, incoming.text)
        log.info("%s: %s of %d bytes%s", self.name, kind, manifest.size,
                 f" stored as {stored_as!a}" if stored_as else f": {incoming.text[:200]!a}")
        server.record(Record("stored", self.name, incoming))
        self.channel.send(Kind.ACK, incoming.digest)

    def _enter(self, manifest: Manifest, signature: bytes, stored_as: str, text: str) -> None:
        """Write a line of the journal; what cannot be in it is not kept either."""
        try:
            self._server.journal.append(Entry(self.session.peer, manifest, signature,
                                              self._server.trust.now(), stored_as, text))
        except BaseException:
            if stored_as:
                self._server.store.remove(stored_as)
            raise

def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket whose accept wakes every POLL_S. Raises NoConnection."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=128)
    except (OSError, UnicodeError, OverflowError) as error:
        raise NoConnection(f"cannot listen on {host}:{port}: {reason_of(error)}") from None
    listener.settimeout(POLL_S)
    return listener

def main() -> int:
    parser = PartyParser("Takes texts and files from devices, and keeps what they have signed.")
    parser.add_argument("--received", type=Path, default=Path("received"), metavar="FOLDER",
                        help="where files go; default: received")
    parser.add_argument("--max-bytes", type=positive, default=Limits.max_bytes, metavar="N",
                        help="of one file; default 4 GiB")
    options = parser.options()
    start_log(options.log)
    identity, trust = load_party(options)
    if identity.certificate.role is not Role.SERVER:
        raise UserError(f"the certificate in {options.identity} is not one of a server")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with Server(identity, trust, options.received, options.host, options.port,
                Limits(max_bytes=options.max_bytes)) as server:
        print("{} listens on {}:{}".format(identity.certificate.common_name, *server.address),
              flush=True)
        while not stop.wait(POLL_S):  # without a timeout Ctrl-C does not wake it on Windows
            pass
    print("stopped")
    return 0

if __name__ == "__main__":
    run_program(main)
