"""The server: lets in owners of a certificate and an account, and orders what is said in rooms.

Rules in this module:
- only its own thread touches a session or writes its socket; others post what it is to send;
- until its login a connection is a stranger: it has little time, and few may wait;
- the server orders what is said and signs the order; it signs and changes nothing else;
- what was said is in the transcript before anybody is told of it;
- what exactly failed goes to log and audit_log; the peer gets one uniform answer, or none.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from companions import listening
from companions.listening import Listener, listen, serve
from companions.secure_chat import forms
from companions.secure_chat.accounts import TOKEN_BYTES, Account, Accounts, Refused
from companions.secure_chat.certs import load_trust
from companions.secure_chat.duplex import Duplex
from companions.secure_chat.evidence import Evidence
from companions.secure_chat.options import (
    PORT,
    ChatParser,
    load_party,
    log_frame,
    require_folder,
    settings_of,
    start_log,
)
from companions.secure_chat.pae import sign
from companions.secure_chat.pins import key_fingerprint
from companions.secure_chat.pki import BadCertificate, Trust, now_ms
from companions.secure_chat.protocol import (
    Kind,
    Message,
    Party,
    Session,
    State,
    from_base64,
    to_base64,
)
from companions.secure_chat.rooms import (
    Entry,
    Member,
    Room,
    WrongSender,
    encode_relay,
    parse_room_name,
    parse_said,
)
from companions.secure_chat.storage import Database
from companions.secure_chat.transcript import Transcript
from endpoint import HOST
from program import Lines, run_program
from protocol_fsm import BadPayload, ConnectionCut, LocalError, Status

MAX_STAYS = 100  # of one session, each in another room
MAX_POSTED = 1_000  # messages that may wait for a member that does not read

log = logging.getLogger("secure_chat.server")


@dataclass(frozen=True)
class Limits:
    """How long the server waits, and for how many."""

    handshake_s: float = 10.0  # for its four messages
    credentials_s: float = 60.0  # for each try: a person may be typing
    frame_s: float = 5.0  # from a frame's first byte to its last
    silence_s: float = 3_600.0  # of a member
    update_s: float = 600.0  # of a member's keys, until the server asks for new ones
    max_strangers: int = 64  # one more evicts the oldest
    max_tries: int = 5  # of a login, on one connection
    max_rooms: int = 100  # at once


class Record(NamedTuple):
    """An event: a "login" or one "refused", something "said", or a connection's "end".

    `detail` is the account, the refusal, the text, or what ended the session (None after bye).
    """

    what: str
    name: str  # in the certificate; empty until it was shown
    detail: Any


class Server(Listener["Connection"]):
    """Listens from the start, serves inside `with`, and tells everybody after it.

    `folder` is where transcripts and receipts go. `record` is told of every event, in the thread of
    its connection. The `new_` arguments are for the lab. Raises UserError and NoConnection; a
    failure of one session ends no other.
    """

    def __init__(
        self,
        party: Party,
        trust: Trust,
        accounts: Accounts,
        folder: Path,
        host: str = HOST,
        port: int = PORT,
        limits: Limits = Limits(),
        *,
        new_session: Callable[..., Session] = Session,
        new_room: Callable[..., Room] = Room,
        new_connection: Callable[..., Connection] | None = None,
        record: Callable[[Record], object] = lambda record: None,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self.party = party
        self.trust = trust
        self.accounts = accounts
        self.folder = folder
        self.limits = limits
        self.new_session = new_session
        self._new_room = new_room
        self._new_connection = new_connection or Connection
        self.record = record
        self.clock = clock
        with contextlib.ExitStack() as stack:
            super().__init__(stack.enter_context(listen(host, port)), limits.max_strangers, log)
            self._rooms_lock = threading.Lock()  # guards what follows
            self._rooms: dict[str, SharedRoom] = {}
            self.close = stack.pop_all().close  # for a server that never serves

    def _connect(self, sock: socket.socket, address: Sequence[object]) -> Connection:
        return self._new_connection(self, sock, address)

    def admit(self, connection: Connection) -> None:
        """Let in a stranger that has logged in. Raises EndRequested if it was evicted.

        It replaces an older connection of the same name, by this certificate or a renewed one.
        """
        with self._lock:
            connection.channel.check_request()
            for other in self._connections:
                if other.name == connection.name and not other.is_stranger:
                    other.channel.request_end(Status.REPLACED)
            connection.is_stranger = False

    @contextlib.contextmanager
    def room(self, name: str) -> Iterator[SharedRoom]:
        """Yield a room for a stay: the first guest makes it, the last ends it.

        Raises BadPayload if there are too many, and UserError.
        """
        with self._rooms_lock:
            room = self._rooms.get(name) or self._make_room(name)
            room.guests += 1
        try:
            yield room
        finally:
            with self._rooms_lock:
                room.guests -= 1
                if not room.guests:
                    del self._rooms[name]
                    room.close()

    def _make_room(self, name: str) -> SharedRoom:
        if len(self._rooms) >= self.limits.max_rooms:
            raise BadPayload(f"at most {self.limits.max_rooms} rooms", "one more")
        room = self._rooms[name] = SharedRoom(name, self, self._new_room)
        return room

    def update(self) -> None:
        """Ask everybody in a room for new keys, before their time."""
        with self._lock:
            for connection in self._connections:
                connection.channel.post(connection.ask_for_update)

    def audit(self, event: str, connection: Connection, reason: str, email: str = "") -> None:
        """Keep an event, with its true reason, in the database."""
        self.accounts.database.audit(
            event, email or None, connection.fingerprint or None, reason, connection.ip
        )

    def tell(self, connection: Connection, reason: Exception | None) -> None:
        """Log how a connection ended; if its certificate was the reason, in audit_log too."""
        if reason is None:
            log.info("%s: done", connection)
        else:
            why = "connection lost" if isinstance(reason, ConnectionCut) else reason
            log.warning("%s: ended: %s", connection, why)
        if isinstance(reason, BadCertificate):
            self.audit("cert_invalid", connection, str(reason))
        self.record(Record("end", connection.name, reason))


# Rooms --------------------------------------------------------------------------------------------


class SharedRoom:
    """A room, and its members' connections; its lock lets one thing happen after another.

    A room that was empty and is made again has a new start: it is another room of the same name.
    """

    def __init__(self, name: str, server: Server, new_room: Callable[..., Room]) -> None:
        self.name = name
        self.guests = 0  # connections for which the server keeps it
        self._server = server
        self._lock = threading.Lock()  # guards what follows
        start = os.urandom(forms.HASH_BYTES)
        self._room = new_room(name, start, 0, start, server.clock)
        self._seats: dict[bytes, Connection] = {}  # by session
        path = server.folder / f"room_{name}_{self._room.start[:4].hex()}.txt"
        self._transcript = Transcript(path, server.party.identity.fingerprint, self._room.start)

    def close(self) -> None:
        self._transcript.close()

    def join(self, connection: Connection) -> Message:
        """Let somebody in, in place of an older session of theirs; return what they find here."""
        session = connection.session
        member = Member(session.peer, session.peer_pem, session.session_id)
        with self._lock:
            for other in [*self._seats.values()]:
                if other.name == connection.name:  # by this certificate, or by a renewed one
                    other.channel.request_end(Status.REPLACED)
                    self._remove(other)
            members = [one.encode() for one in self._room.members.values()]
            self._room.enter(member)
            for other in self._seats.values():
                other.post(Message(Kind.JOINED, {"room": self.name, "member": member.encode()}))
            self._seats[session.session_id] = connection
            connection.begin(self.name, self._room.head)
            return Message(
                Kind.ROOM,
                {
                    "room": self.name,
                    "start": self._room.start.hex(),
                    "index": self._room.index,
                    "head": self._room.head.hex(),
                    "members": [*members, member.encode()],
                },
            )

    def leave(self, connection: Connection) -> None:
        """Let somebody out; nothing more is relayed to them."""
        with self._lock:
            self._remove(connection)

    def _remove(self, connection: Connection) -> None:
        session = connection.session.session_id
        if self._seats.pop(session, None) is None:
            return
        self._room.leave(session)
        for other in self._seats.values():
            other.post(Message(Kind.LEFT, {"room": self.name, "session": session.hex()}))

    def say(self, connection: Connection, said: Message) -> None:
        """Check a message, put it into its place, and relay it. Raises ProtocolError."""
        message, signature = parse_said(said, connection.fingerprint)
        signed = message.encode()
        opening = connection.session.decrypt(message.ct)
        with self._lock:
            member = self._room.check(message, signed, signature)
            if member.session != connection.session.session_id:
                raise WrongSender("the session that it came in", "another")
            text = self._room.check_opening(message, opening)
            entry = self._place(signed, signature)
            self._transcript.add(*entry)
            self._room.extend(member, signed, forms.parse_head(entry.head).head)
            for seat in self._seats.values():
                seat.relay(entry, message, opening)
        log.info("%s: message %d in %s", connection, message.seqno, self.name)
        self._server.record(Record("said", connection.name, text.decode("utf-8")))

    def _place(self, signed: bytes, signature: bytes) -> Entry:
        """Return a message with the head that it leads to, signed."""
        room = self._room
        after = forms.next_head(room.head, signed, signature)
        ts = self._server.clock()
        head = forms.Head(room.name, room.start, room.index, ts, after).encode()
        return Entry(signed, signature, head, sign(self._server.party.private_key, head))


# Connections --------------------------------------------------------------------------------------


class Connection(listening.Connection):
    """A member, and what is posted to it."""

    channel: Duplex

    def __init__(self, server: Server, sock: socket.socket, address: Sequence[object]) -> None:
        self.session = server.new_session(server.party, server.trust)
        super().__init__(server, Duplex(sock, self.session, server.limits.frame_s), address)
        self._server = server
        self.ip = str(address[0])
        self.fingerprint = ""
        self._token = b""
        self._been_in: set[str] = set()  # a session has one stay in each room
        self._evidence: Evidence | None = None
        self._ask_at = math.inf  # monotonic, for new keys
        self._answer_by = math.inf  # monotonic, since we have asked

    def _outcome(self) -> Exception | None:
        try:
            return super()._outcome()
        finally:
            self._keep_evidence()  # once the session is over, and whatever ended it

    def _serve(self) -> None:
        self._shake_hands(time.monotonic() + self._server.limits.handshake_s)
        account = self._log_in()
        self._server.admit(self)
        self._server.record(Record("login", self.name, account))
        self._share(self._deadline(self._server.limits.handshake_s))
        self._expect_update()
        while True:
            message = self._receive()
            if message.kind is Kind.BYE:
                self._server.accounts.forget_token(self._token)
                return
            self._chat(parse_room_name(message["room"]))

    def _deadline(self, seconds: float) -> float:
        return time.monotonic() + seconds

    def _receive(self) -> Message:
        deadline = self._deadline(self._server.limits.silence_s)
        return self.channel.receive(min(deadline, self._answer_by))

    def _shake_hands(self, deadline: float) -> None:
        self.channel.receive(deadline)
        self.name = self.session.peer.name
        self.fingerprint = self.session.peer.fingerprint
        self.channel.send(Message(Kind.SERVER_HELLO))
        self._share(deadline)
        session = self.session.session_id.hex()
        log.info("%s: certificate %s, session %s", self, self.fingerprint[:16], session[:16])

    def _share(self, deadline: float) -> None:
        self.channel.receive(deadline)
        self.channel.send(Message(Kind.DH_SERVER))

    def _log_in(self) -> Account:
        """Return the account, after five tries at most. Raises the last Refused."""
        for left in reversed(range(self._server.limits.max_tries)):
            message = self.channel.receive(self._deadline(self._server.limits.credentials_s))
            try:
                account = self._judge(message)
                break
            except Refused as error:
                log.warning("%s: %s refused: %s", self, message.kind.value, error.reason)
                event = f"{message.kind.value}_failure"
                email = message.members.get("email", self.name)
                self._server.audit(event, self, error.reason, email)
                self._server.record(Record("refused", self.name, error))
                self.channel.send(Message(Kind.REFUSED))
                if not left:
                    raise
        self._token = self._server.accounts.new_session(
            account, self.fingerprint, self._server.party.identity.fingerprint
        )
        token = to_base64(self._token)
        welcome = {"username": account.username, "session_token": token}
        self.channel.send(Message(Kind.WELCOME, welcome))
        log.info("%s: %s as %s", self, message.kind.value, account.username)
        return account

    def _judge(self, message: Message) -> Account:
        """Return the account that is registered, logged in to, or resumed. Raises Refused."""
        accounts = self._server.accounts
        identity = self.session.peer
        if message.kind is Kind.RESUME:
            return accounts.resume(
                identity, from_base64(message["session_token"], TOKEN_BYTES, TOKEN_BYTES)
            )
        if message.kind is Kind.REGISTER:
            return accounts.register(
                identity, message["email"], message["username"], message["pwd"], self.ip
            )
        return accounts.login(identity, message["email"], message["pwd"], self.ip)

    def _chat(self, name: str) -> None:
        """Serve a member of a room until it leaves, and exchange receipts."""
        if name in self._been_in or len(self._been_in) >= MAX_STAYS:
            raise BadPayload(f"one of {MAX_STAYS} rooms, each for one stay", name)
        self.session.check_again()  # it may have been outside rooms, without updates, for long
        self._been_in.add(name)
        with self._server.room(name) as room:
            try:
                self.channel.send(room.join(self))
                while (message := self._receive()).kind is not Kind.LEAVE:
                    if message.kind is Kind.MSG:
                        room.say(self, message)
                    else:
                        self._update()
                if message["room"] != name:
                    raise BadPayload(name, "a leave of another room")
            finally:
                room.leave(self)
        self._answer_by = math.inf
        self.channel.act()  # what was relayed to us before
        self._exchange_receipts()

    def _update(self) -> None:
        """Answer a share at once; what was posted to us meanwhile is sent under the new keys."""
        self.channel.send(Message(Kind.DH_SERVER))
        self._expect_update()
        log.info("%s: new keys", self)

    def _expect_update(self) -> None:
        self._answer_by = math.inf
        self._ask_at = self._deadline(self._server.limits.update_s)
        self.channel.tick = self._ask_if_due

    def _ask_if_due(self) -> None:
        if time.monotonic() >= self._ask_at:
            self.ask_for_update()

    def ask_for_update(self) -> None:
        """Ask a member for new keys, if it is in a room and was not asked; for the owner."""
        if self.session.state is State.CHAT:
            self.channel.send(Message(Kind.UPDATE))
            self._answer_by = self._deadline(self._server.limits.handshake_s)
            self.channel.hurry(self._server.limits.handshake_s)

    def _exchange_receipts(self) -> None:
        if self._evidence is None:
            raise LocalError("there is nothing to receipt")
        self.channel.send(self._evidence.offer())
        theirs = self._receive()
        countersignature = self._evidence.accept(theirs)
        self._evidence.confirm(theirs["countersignature"])
        self._keep_evidence()  # before the client is told
        answer = {"countersignature": to_base64(countersignature)}
        self.channel.send(Message(Kind.COUNTERSIGN, answer))

    def begin(self, room: str, head: bytes) -> None:
        """Begin the evidence of a stay in a room; the room lets nothing happen meanwhile."""
        self._evidence = Evidence(self.session, room, head, self._server.folder)

    def relay(self, entry: Entry, message: forms.Message, opening: bytes) -> None:
        """Tell the member what was said, in the speaker's thread."""
        is_told = any(one.session == self.session.session_id for one in message.recipients)
        self.tell(entry, opening if is_told else b"")

    def tell(self, entry: Entry, opening: bytes) -> None:
        if self._evidence:
            self._evidence.add(entry)
        self.post(encode_relay(entry, opening))

    def post(self, message: Message) -> None:
        """Let the member be told soon. One that lets too much pile up is sent away."""
        if self.channel.post(lambda: self.channel.send(message)) > MAX_POSTED:
            self.channel.request_end(Status.TIMEOUT)

    def _keep_evidence(self) -> None:
        """Save the receipt, countersigned or not, and what the session's transcript was."""
        evidence = self._evidence
        self._evidence = None
        if evidence:
            evidence.keep()
            transcript = evidence.transcript
            self._server.accounts.end_session(
                self._token, transcript.hash(), transcript.message_count
            )


# The program --------------------------------------------------------------------------------------


def main() -> int:
    parser = ChatParser("Orders and relays what members say to each other.")
    parser.add_argument("--name", default="server", help="of the certificate's files")
    options = parser.options()
    settings = settings_of(options)
    lines = Lines()
    start_log(settings.server_log, lines, debug=options.debug)
    trust = load_trust(settings.certs)
    party = load_party(settings.certs, options.name, "server", trust)
    require_folder(settings.transcripts)
    database = Database(settings.database_url.get_secret_value())
    server = Server(
        party,
        trust,
        Accounts(database),
        settings.transcripts,
        settings.server_host,
        settings.server_port,
        new_session=partial(Session, watchers=[log_frame]),
    )
    log.info("our key is %s", key_fingerprint(party.identity.public_key))
    serve(server, "[*] Secure Chat Server listening on", lines)
    database.close()
    return 0


if __name__ == "__main__":
    run_program(main)
