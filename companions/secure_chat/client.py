"""A client: logs in, says texts to a room, shows what others say, and leaves with a receipt.

    with Client(party, trust, "localhost", Path("transcripts")) as client:
        client.log_in("alice@example.org", password)
        client.join("lobby")
        client.say("hello")
        print(client.hear().text)
        client.settle()

As a program it asks what to do, and ends with 0 when the receipt was countersigned, 1 when the
session was ended or the login refused, 2 for bad input, 3 for no connection or a cut one, and 130
after Ctrl-C (143 after SIGTERM).
"""

from __future__ import annotations

import argparse
import getpass
import math
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import NamedTuple

from channel import EndRequested
from companions.secure_chat.duplex import Duplex
from companions.secure_chat.evidence import Evidence, Kept
from companions.secure_chat.forms import Recipient
from companions.secure_chat.options import ChatParser, load_party, log_frame, settings_of, start_log
from companions.secure_chat.certs import load_trust
from companions.secure_chat.pki import BadCertificate, Trust
from companions.secure_chat.protocol import (
    BAD_CERT,
    Kind,
    Message,
    Party,
    PeerEnded,
    Session,
    State,
    from_hex,
)
from companions.secure_chat.rooms import (
    LOBBY,
    MAX_ROOM_NAME,
    Member,
    Room,
    Said,
    Seat,
    encode_text,
    parse_member,
    parse_number,
    parse_room_name,
)
from companions.secure_chat.settings import PORT
from companions.terminal import QUIT, reading_lines
from endpoint import HOST
from program import NoConnection, UserError, escaped, reason_of, run_program, to_stderr, end_signals
from protocol_fsm import (
    BadPayload,
    ConnectionCut,
    DeadlineExpired,
    LocalError,
    ProtocolError,
    Status,
)

NO_LIMIT_S = 1e6  # others may say nothing for days
HISTORY = 1_000  # texts that `history` can show
UNREADABLE = "\ufffd"  # what a terminal or a pipe puts in place of bytes that are no letter
MAX_ANSWER = 4_096  # bytes of a line that a prompt takes
MAX_PENDING = 20  # texts of ours that have not come back yet


class NotLetIn(Exception):
    """The server refused a login or a registration, and never says why."""


class Joined(NamedTuple):
    """Somebody has come into the room."""

    member: Member


class Left(NamedTuple):
    """Somebody is no longer in the room."""

    member: Member


class Updated(NamedTuple):
    """There are new keys, whoever asked for them; old ones are forgotten."""

    keys: dict[str, str]  # their fingerprints, by label


Event = Said | Joined | Left | Updated | Kept


class Client:
    """A session with one server, named by its certificate: begins with `with`, ends with bye.

    `folder` is where transcripts and receipts go; `timeout_s` is the limit for each answer that the
    server owes us. Raises UserError and NoConnection before there is a session; any ProtocolError
    has ended it. One thread owns it; others may `channel.post` and `channel.request_end`.
    """

    def __init__(
        self,
        party: Party,
        trust: Trust,
        server_name: str,
        folder: Path,
        host: str = HOST,
        port: int = PORT,
        *,
        timeout_s: float = 10.0,
        new_session: Callable[..., Session] = Session,
        new_room: Callable[..., Room] = Room,
        clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.party = party
        self.trust = trust
        self.folder = folder
        self.timeout_s = timeout_s
        self.clock = clock
        self.session = new_session(party, trust, server_name)
        self.username = ""
        self.kept: Kept | None = None  # of the last room that we have left
        self.seat: Seat
        self.channel: Duplex
        self._address = (host, port)
        self._new_room = new_room
        self._evidence: Evidence | None = None
        self._held: deque[Callable[[], object]] = deque()  # until there are new keys
        self._update_by = math.inf  # monotonic; by then the server has to have sent its share

    def __enter__(self) -> Client:
        try:
            sock = socket.create_connection(self._address, min(self.timeout_s, 10.0))
        except (OSError, UnicodeError, OverflowError) as error:
            where = "{}:{}".format(*self._address)
            raise NoConnection(f"no server at {where}: {reason_of(error)}") from None
        self.channel = Duplex(sock, self.session, self.timeout_s)
        try:
            self.channel.send(Message(Kind.HELLO))
            self._receive()
            self._agree()
        except BaseException:
            self.channel.leave(Status.SHUTDOWN)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            if kind is None and self.session.state is State.READY:
                self.channel.send(Message(Kind.BYE))
        finally:
            self.channel.leave(Status.GOODBYE)
            self.keep()

    def _agree(self) -> None:
        """Exchange fresh shares: new keys follow."""
        self.channel.send(Message(Kind.DH_CLIENT))
        self._receive()

    def _receive(self) -> Message:
        return self.channel.receive(time.monotonic() + self.timeout_s)

    # Accounts

    def register(self, email: str, username: str, password: str) -> None:
        """Make an account, and be logged in to it. Raises NotLetIn; then try again."""
        self._let_in(
            Message(Kind.REGISTER, {"email": email, "username": username, "pwd": password})
        )

    def log_in(self, email: str, password: str) -> None:
        """Log in to an account. Raises NotLetIn; then try again, five times at most."""
        self._let_in(Message(Kind.LOGIN, {"email": email, "pwd": password}))

    def _let_in(self, credentials: Message) -> None:
        self.channel.send(credentials)
        answer = self._receive()
        if answer.kind is Kind.REFUSED:
            raise NotLetIn
        self.username = answer["username"]
        self._agree()

    # In a room

    def join(self, name: str = LOBBY) -> list[Member]:
        """Enter a room, which the first to come makes; return who is in it, ourselves included.

        A session has one stay in each room, and is in one room at a time.
        """
        self.channel.send(Message(Kind.JOIN, {"room": name}))
        try:
            self._enter(name, self._receive())
        except ProtocolError as error:
            self._fail(error)
            raise
        return [*self.seat.room.members.values()]

    def _enter(self, name: str, found: Message) -> None:
        me = self.address
        room = self._new_room(
            name,
            from_hex(found["start"]),
            parse_number(found["index"]),
            from_hex(found["head"]),
            self.clock,
            me,
        )
        for values in found["members"]:
            room.enter(self._member(values))
        if found["room"] != name or me not in [one.address for one in room.members.values()]:
            raise BadPayload(f"{name}, and us in it", "something else")
        self.seat = Seat(self.party, self.session.peer, room, self.session.encrypt)
        self._evidence = Evidence(self.session, name, room.head, self.folder)

    @property
    def address(self) -> Recipient:
        """What a message to us, in this session, has among its recipients."""
        return Recipient(self.party.identity.fingerprint, self.session.session_id)

    def _member(self, values: object) -> Member:
        if not isinstance(values, dict):
            raise BadPayload("a member", type(values).__name__)
        return parse_member(values, self.trust, self.session.now())

    def say(self, text: str) -> None:
        """Say a text, of at most 4,096 bytes, to everybody in the room. Raises LocalError.

        During a key update it is held until there are new keys.
        """
        encode_text(text)  # it is not held if it can never be said
        self._do_or_hold(lambda: self.channel.send(self.seat.compose(text, self.clock())))

    @property
    def pending(self) -> int:
        """How many of our texts have not come back yet."""
        return self.seat.pending + len(self._held)

    def _do_or_hold(self, action: Callable[[], object]) -> None:
        if self.session.state is State.UPDATING:
            self._held.append(action)
        else:
            action()

    def update(self) -> None:
        """Ask for new keys; `hear` returns Updated when they are there. Raises LocalError."""
        if self.session.state is State.UPDATING:
            return
        self.channel.send(Message(Kind.DH_CLIENT))
        self._update_by = time.monotonic() + self.timeout_s
        self.channel.hurry(self.timeout_s)

    def _updated(self) -> Updated:
        """Say under the new keys what was held."""
        self._update_by = math.inf
        while self._held:
            self._held.popleft()()
        return Updated(self.session.fingerprints())

    def hear(self, timeout_s: float = NO_LIMIT_S) -> Event:
        """Return what happens next; our own texts come back, too, when the server has them."""
        deadline = time.monotonic() + timeout_s
        while True:
            if self.session.is_update_due and self.session.state is State.CHAT:
                self.update()
            message = self.channel.receive(min(deadline, self._update_by))
            if message.kind is not Kind.UPDATE:
                break
            if self.session.state is State.ASKED:  # else it has crossed our share, or our leave
                self.update()
        try:
            return self._take(message)
        except ProtocolError as error:
            self._fail(error)
            raise

    def _take(self, message: Message) -> Event:
        """Return what a message of the server means. Raises ProtocolError."""
        if message.kind is Kind.DH_SERVER:
            return self._updated()
        room = self.seat.room
        evidence = self._evidence
        if evidence is None or message.members.get("room", room.name) != room.name:
            raise BadPayload(room.name, "another room")
        if message.kind is Kind.RELAY:
            said = self.seat.hear(message)
            evidence.hear(said)
            return said
        if message.kind is Kind.JOINED:
            member = self._member(message["member"])
            room.enter(member)
            return Joined(member)
        if message.kind is Kind.LEFT:
            gone = room.leave(from_hex(message["session"]))
            if gone is None or gone.address == room.me:
                raise BadPayload("somebody else who is here", "another")
            return Left(gone)
        return self._settle(evidence, message)

    def leave(self) -> None:
        """Say that we leave; what was said before still comes, and then the server's receipt."""
        leave = Message(Kind.LEAVE, {"room": self.seat.room.name})
        self._do_or_hold(lambda: self.channel.send(leave))
        self.channel.hurry(self.timeout_s)

    def settle(self) -> Kept:
        """Leave the room, and return what we have of it: both receipts, countersigned."""
        self.leave()
        while True:
            event = self.hear(self.timeout_s)
            if isinstance(event, Kept):
                return event

    def _settle(self, evidence: Evidence, message: Message) -> Kept:
        """Countersign the server's receipt, and have ours countersigned."""
        self.seat.check_complete()
        self.channel.send(evidence.offer(evidence.accept(message)))
        evidence.confirm(self._receive()["countersignature"])
        self._evidence = None
        self.kept = evidence.keep()
        return self.kept

    def keep(self) -> None:
        """Keep what we have of a room: if it was not left in peace, a receipt, uncountersigned."""
        if self._evidence:
            self.kept = self._evidence.keep()
        self._evidence = None

    def _fail(self, error: ProtocolError) -> None:
        if self.session.state is not State.ENDED:  # found above the session
            self.channel.fail(error)


# The program --------------------------------------------------------------------------------------


def ask(prompt: str) -> str:
    """Return a line from standard input, and read nothing behind it. Raises EOFError, UserError."""
    print(prompt, end="", flush=True)
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(sys.stdin.fileno(), 1)
        if not byte and not line:
            raise EOFError
        if not byte:
            break
        line += byte
        if len(line) > MAX_ANSWER:
            raise UserError(f"an answer has at most {MAX_ANSWER:,} bytes")
    try:
        return line.decode(sys.stdin.encoding).strip("\r\n")
    except UnicodeError:  # letters that are replaced would make many passwords one
        raise UserError(f"an answer is text in {sys.stdin.encoding}") from None


def ask_password(prompt: str) -> str:
    """Return a password, which a terminal does not show. Raises EOFError, UserError."""
    if sys.stdin.isatty():
        try:
            return getpass.getpass(prompt)
        except UnicodeError:
            raise UserError("a password is text") from None
    password = ask(prompt)
    print(flush=True)
    return password


def enter(client: Client) -> None:
    """Ask for what it takes to be let in, until the server lets us in. Raises EOFError."""
    email = client.party.identity.name
    while not client.username:
        choice = ask("1. Register new account  2. Login: ").strip().lower()
        try:
            if choice in ("1", "register"):
                client.register(email, ask("Username: "), ask_password("Password: "))
            elif choice in ("2", "login"):
                client.log_in(email, ask_password("Password: "))
        except NotLetIn:
            print("[!] refused; the server never says why", flush=True)
        except LocalError as error:
            print(f"[!] {error}", flush=True)


class Talk:
    """Stands between a person and a client: shows what happens, and does what is typed."""

    def __init__(self, client: Client, show: Callable[[str], object]) -> None:
        self._client = client
        self._show = show
        self._said: deque[str] = deque(maxlen=HISTORY)
        self._typed: deque[str] = deque()
        self._is_leaving = False
        self._taken: Callable[[], object] = lambda: None

    def run(self) -> Kept:
        """Go on until the person quits, and the receipts are there."""
        post = self._client.channel.post
        with reading_lines(lambda line: post(partial(self.typed, line))) as self._taken:
            while True:
                event = self._client.hear()
                self.tell(event)
                if isinstance(event, Kept):
                    return event
                self._go_on()

    def typed(self, line: str) -> None:
        """Take a line; an empty one is the end."""
        self._typed.append(line)
        self._go_on()

    def _go_on(self) -> None:
        """Do what was typed, but do not run ahead of the server: it could not answer us."""
        while self._typed and self._client.pending < MAX_PENDING:
            line = self._typed[0]
            if line.strip() in ("", QUIT, "history", "head") and self._client.pending:
                return  # until all that we said has come back
            self._typed.popleft()
            self._taken()
            if not self._is_leaving:
                self._do(line)

    def _do(self, line: str) -> None:
        if line.strip() in ("", QUIT):
            self._is_leaving = True
            self._client.leave()
        elif line.strip() == "history":
            for text in self._said:
                self._show(text)
        elif line.strip() == "head":
            room = self._client.seat.room
            self._show(f"[*] {room.name}, message {room.index}: others must have the same head")
            self._show(f"    {room.head.hex()}")
        elif line.strip() == "update":
            self._client.update()
        elif UNREADABLE in line:
            self._show("[!] not sent: it has letters that cannot be read here, and you sign for it")
        else:
            try:
                self._client.say(line)
            except LocalError as error:
                self._show(f"[!] not sent: {error}")

    def tell(self, event: Event) -> None:
        """Show what happened; no text can look like words of our own, which begin with [."""
        if isinstance(event, Joined):
            self._show(f"[*] {escaped(event.member.identity.name)} joined")
        elif isinstance(event, Updated):
            self._show("[*] new keys; the old ones are forgotten")
        elif isinstance(event, Left):
            self._show(f"[*] {escaped(event.member.identity.name)} left")
        elif isinstance(event, Said) and event.text is not None:
            line = f"{clock_of(event)} {escaped(event.member.identity.name)}: {escaped(event.text)}"
            self._said.append(line)
            self._show(line)
        elif isinstance(event, Said):  # which the transcript has, so it is told
            self._show(f"[*] {escaped(event.member.identity.name)} said something to others only")


def clock_of(said: Said) -> str:
    return datetime.fromtimestamp(said.message.ts / 1_000, timezone.utc).strftime("%H:%M:%S")


def explain(error: ProtocolError) -> str:
    """Return the sentence for a person whose session ended before its time."""
    if isinstance(error, BadCertificate):
        return f"Certificate validation failed: the server's: {error}"
    if isinstance(error, PeerEnded) and error.got == BAD_CERT:
        return "Certificate validation failed: the server refuses ours (bad-cert); its log says why"
    if isinstance(error, PeerEnded):
        return f"the server ended the session ({error.got}); its log says why"
    if isinstance(error, ConnectionCut):
        return "connection lost; what did not come back may not have been said"
    if isinstance(error, DeadlineExpired):
        return "no answer in time"
    return f"session ended: {error}"


def show(line: str) -> None:
    print(line, flush=True)


def room_name(text: str) -> str:
    try:
        return parse_room_name(text)
    except BadPayload:
        raise argparse.ArgumentTypeError(
            f"{text!a}: a room's name is of a-z, 0-9 and hyphens, at most {MAX_ROOM_NAME} of them"
        ) from None


def chat(client: Client, room: str, stop: list[int]) -> int:
    """Live a session in a room, from the prompts to the receipt; return the exit code."""

    def leave(number: int, _: object) -> None:
        stop.append(number)
        client.channel.request_end(Status.SHUTDOWN)
        signal.signal(number, signal.SIG_DFL)

    with client:
        show(f"[*] connected to {client.session.peer.name}, whose certificate holds")
        enter(client)
        for number in end_signals():
            signal.signal(number, leave)
        members = client.join(room)
        names = ", ".join(sorted({one.identity.name for one in members}))
        show(f"[*] logged in as {escaped(client.username)}; in {room}: {escaped(names)}")
        Talk(client, show).run()
    return 0


def report(kept: Kept) -> None:
    show(f"[*] transcript: {kept.transcript} ({kept.messages} messages)")
    state = "countersigned by the server" if kept.is_countersigned else "uncountersigned"
    show(f"[*] receipt: {kept.receipt}, {state}")


def main() -> int:
    parser = ChatParser("Chat, with a certificate and an account.")
    parser.add_argument("--name", default="client", help="of the certificate's files")
    parser.add_argument("--server", metavar="NAME", help="in the server's certificate")
    parser.add_argument("--room", type=room_name, default=LOBBY, help=f"default: {LOBBY}")
    options = parser.options()
    settings = settings_of(options)
    start_log(options.log, None, debug=options.debug)
    trust = load_trust(settings.certs)
    client = Client(
        load_party(settings.certs, options.name, "client", trust),
        trust,
        options.server or settings.server_name,
        settings.transcripts,
        settings.server_host,
        settings.server_port,
        new_session=partial(Session, watchers=[log_frame]),
    )
    stop: list[int] = []
    try:
        return chat(client, options.room, stop)
    except EndRequested:
        to_stderr("client: stopped")
        return 128 + stop[0]
    except EOFError:
        raise UserError("the input ended before there was a login") from None
    except ProtocolError as error:
        to_stderr(f"client: {explain(error)}")
        return 3 if isinstance(error, (ConnectionCut, DeadlineExpired)) else 1
    finally:
        if client.kept:
            report(client.kept)


if __name__ == "__main__":
    run_program(main)
