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
import contextlib
import getpass
import math
import re
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import NamedTuple

from channel import POLL_S, EndRequested
from companions.listening import Caller
from companions.secure_chat.certs import load_trust
from companions.secure_chat.duplex import Duplex
from companions.secure_chat.evidence import Evidence, Kept
from companions.secure_chat.forms import Recipient
from companions.secure_chat.options import (
    PORT,
    ChatParser,
    load_party,
    log_frame,
    settings_of,
    start_log,
)
from companions.secure_chat.pins import FILE as KNOWN_KEYS
from companions.secure_chat.pins import OtherKey, Pins, key_fingerprint
from companions.secure_chat.pki import BadCertificate, Identity, Trust, UnusableList, now_ms
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
from companions.terminal import QUIT, reading_lines
from endpoint import HOST
from program import (
    NoConnection,
    UserError,
    end_signals,
    escaped,
    flag_type,
    plural,
    run_program,
    to_stderr,
)
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
RETRY_S = (0.2, 1.0, 2.0, 4.0, 8.0)  # waits before each try to come back after a cut
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


class Client(Caller[Duplex]):
    """A session with one server, named by its certificate: begins with `with`, ends with bye.

    `folder` is where transcripts and receipts go; `timeout_s` is the limit for each answer that the
    server owes us; `pins` are the keys that we have met, by default none. Raises UserError and
    NoConnection before there is a session; any ProtocolError has ended it. One thread owns it;
    others may `channel.post` and `channel.request_end`.
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
        pins: Pins | None = None,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self.party = party
        self.trust = trust
        self.folder = folder
        self.timeout_s = timeout_s
        self.clock = clock
        self.pins = pins or Pins()
        self.is_first_meeting = False  # with the server
        self.renewed: list[Identity] = []  # members with another key than before, to be reported
        self.distrusted: list[Identity] = []  # members whose certificate is no longer good, too
        self.session = new_session(party, trust, server_name)
        self.username = ""
        self.token = ""  # with which this session can be resumed; in memory only
        self.kept: Kept | None = None  # of the last room that we have left
        self._seat: Seat | None = None
        self._address = (host, port)
        self._new_room = new_room
        self._evidence: Evidence | None = None
        self._held: deque[Callable[[], object]] = deque()  # until there are new keys
        self._update_by = math.inf  # monotonic; by then the server must have sent its share

    @property
    def seat(self) -> Seat:
        """Our place in the room that we are in, or were in last. Raises LocalError before both."""
        if self._seat is None:
            raise LocalError("a Client is in no room before it joins one")
        return self._seat

    def __enter__(self) -> Client:
        sock = self._reach(self._address, min(self.timeout_s, 10.0))
        self._channel = Duplex(sock, self.session, self.timeout_s)
        try:
            self.channel.send(Message(Kind.HELLO))
            self._receive()
            self._check_server()
            self._agree()
            self.is_first_meeting = self.pins.meet(self.session.peer) is None
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

    def _check_server(self) -> None:
        """Go on only if the server has the key that we remember. Raises OtherKey."""
        try:
            self.pins.check_key(self.session.peer)
        except OtherKey as error:
            self.channel.fail(error)
            raise

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

    def resume(self, token: str) -> None:
        """Resume a session that was cut, with its `token`, once. Raises NotLetIn."""
        self._let_in(Message(Kind.RESUME, {"session_token": token}))

    def _let_in(self, credentials: Message) -> None:
        self.channel.send(credentials)
        answer = self._receive()
        if answer.kind is Kind.REFUSED:
            raise NotLetIn
        self.username = answer["username"]
        self.token = answer["session_token"]
        self._agree()

    # In a room

    def join(self, name: str = LOBBY) -> list[Member]:
        """Enter a room, which the first to join makes; return who is in it, ourselves included.

        A session has one stay in each room, and is in one room at a time.
        """
        self.channel.send(Message(Kind.JOIN, {"room": name}))
        try:
            self._enter(name, self._receive())
        except ProtocolError as error:
            self.channel.fail(error)
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
        self._seat = Seat(self.party, self.session.peer, room, self.session.encrypt)
        self._evidence = Evidence(self.session, name, room.head, self.folder)

    @property
    def address(self) -> Recipient:
        """What a message to us, in this session, has among its recipients."""
        return Recipient(self.party.identity.fingerprint, self.session.session_id)

    def _member(self, values: object) -> Member:
        if not isinstance(values, dict):
            raise BadPayload("a member", type(values).__name__)
        member = parse_member(values, self.trust, self.session.now())
        if not member.is_trusted:
            self.distrusted.append(member.identity)
            return member
        key = key_fingerprint(member.identity.public_key)
        if self.pins.meet(member.identity) not in (None, key):
            self.renewed.append(member.identity)
        return member

    def say(self, text: str) -> None:
        """Say a text, of at most 4,096 bytes, to everybody in the room. Raises LocalError.

        During a key update it is held until there are new keys.
        """
        encode_text(text)  # it is not held if it can never be said
        self._do_or_hold(lambda: self._say(text))

    def _say(self, text: str) -> None:
        self.session.check_turn(Kind.MSG)  # the seat counts what it composes as said
        self.channel.send(self.seat.compose(text, self.clock()))

    @property
    def is_updating(self) -> bool:
        """Whether what we say is held until there are new keys."""
        return self.session.state is State.UPDATING

    def _do_or_hold(self, action: Callable[[], object]) -> None:
        if self.is_updating:
            self._held.append(action)
        else:
            action()

    def update(self) -> None:
        """Ask for new keys; `hear` returns Updated when they are there. Raises LocalError."""
        if self.is_updating:
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
        """Return what happens next; our own texts come back, too, when the server has them.

        Raises LocalError outside of a room.
        """
        evidence = self._evidence
        if evidence is None:
            raise LocalError("a Client hears nothing outside of a room")
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
            return self._take(message, evidence)
        except ProtocolError as error:
            self.channel.fail(error)
            raise

    def _take(self, message: Message, evidence: Evidence) -> Event:
        """Return what a message of the server means. Raises ProtocolError."""
        if message.kind is Kind.DH_SERVER:
            return self._updated()
        room = self.seat.room
        if message.members.get("room", room.name) != room.name:
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
        """Say that we leave; what was said before still comes, and then the server's receipt.

        Raises LocalError outside of a room.
        """
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
        """Keep what we have of a room; without a regular end our receipt is uncountersigned."""
        if self._evidence:
            self.kept = self._evidence.keep()
        self._evidence = None


# The program --------------------------------------------------------------------------------------


def ask(prompt: str) -> str:
    """Return a line from standard input, and read nothing beyond it. Raises EOFError, UserError."""
    print(prompt, end="", flush=True)
    line = b""
    # os.read would give the letters of a Windows terminal in another encoding than that of stdin
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as stream:
        while not line.endswith(b"\n") and (byte := stream.read(1)):
            line += byte
            if len(line) > MAX_ANSWER:
                raise UserError(f"an answer has at most {MAX_ANSWER:,} bytes")
    if not line:
        raise EOFError
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

    def __init__(
        self,
        client: Client,
        show: Callable[[str], object],
        come_back: Callable[[], Client | None] = lambda: None,
    ) -> None:
        """Take a client, and a function that returns another one, back in the room, after a cut."""
        self._client = client
        self._show = show
        self._come_back = come_back
        self._lock = threading.Lock()  # guards whose turn it is to get typed lines
        self._said: deque[str] = deque(maxlen=HISTORY)
        self._typed: deque[str] = deque()
        self._is_leaving = False
        self._taken: Callable[[], object] = lambda: None

    def run(self) -> Kept:
        """Go on until the person quits, and the receipts are there."""
        with reading_lines(self._post) as self._taken:
            try:
                return self._stay()
            finally:
                if self._typed and self._typed[0].strip() not in ("", QUIT):
                    self._show(f"[!] not sent: {escaped(self._typed[0])}, and what follows it")

    def _stay(self) -> Kept:
        """Go on, after a cut by another client."""
        while True:
            try:
                return self._listen()
            except ConnectionCut:
                client = None if self._is_leaving else self._come_back()
                if client is None:
                    raise
                self._go_on_with(client)

    def _listen(self) -> Kept:
        """Show what happens until the receipts are there, or what has not come back by the end."""
        try:
            while True:
                event = self._client.hear()
                self.tell(event)
                if isinstance(event, Kept):
                    return event
                self._go_on()
        finally:
            for text in self._client.seat.unheard:
                self._show(f"[!] this may not have been said: {escaped(text)}")

    def _post(self, line: str) -> None:
        with self._lock:
            self._client.channel.post(partial(self.typed, line))

    def _go_on_with(self, client: Client) -> None:
        """Do by another client what was typed meanwhile, and what is typed from now on."""
        with self._lock:
            waiting = self._client.channel
            self._client = client
        client.channel.post(waiting.act)
        client.channel.post(self._go_on)

    def typed(self, line: str) -> None:
        """Take a line; an empty one is the end."""
        self._typed.append(line)
        self._go_on()

    def _may_go_on(self) -> bool:
        is_free = self._client.seat.pending < MAX_PENDING and not self._client.is_updating
        return bool(self._typed) and is_free

    def _go_on(self) -> None:
        """Do what was typed, but do not run ahead of the server: it could not answer us."""
        while self._may_go_on():
            line = self._typed[0]
            if line.strip() in ("", QUIT, "history", "head") and self._client.seat.pending:
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
            self._show(
                "[!] not sent: it has characters that cannot be read here, and you would sign them"
            )
        else:
            try:
                self._client.say(line)
            except LocalError as error:
                self._show(f"[!] not sent: {error}")

    def tell(self, event: Event) -> None:
        """Show what happened; no text can look like words of our own, which begin with [."""
        if isinstance(event, Updated):
            self._show("[*] new keys; the old ones are forgotten")
        if isinstance(event, (Updated, Kept)):
            return
        name = escaped(event.member.identity.name)
        if isinstance(event, Joined):
            self._show(f"[*] {name} joined")
            tell_doubts(self._client, self._show)
        elif isinstance(event, Left):
            self._show(f"[*] {name} left")
        elif event.text is not None:
            line = f"{clock_of(event)} {name}: {escaped(event.text)}"
            self._said.append(line)
            self._show(line)
        elif not event.member.is_trusted:
            self._show(f"[!] {name} said something, with a revoked or expired certificate")
        else:  # it is in the transcript, so it is shown
            self._show(f"[*] {name} said something to others only")


def tell_doubts(client: Client, show: Callable[[str], object]) -> None:
    """Show whose key has changed, and whose certificate is revoked or expired."""
    for one in client.distrusted:
        show(
            f"[!] the certificate of {escaped(one.name)} is revoked or expired: they are not told"
            " what you say, and what they say is not shown"
        )
    client.distrusted.clear()
    for one in client.renewed:
        key = key_fingerprint(one.public_key)
        show(
            f"[!] {escaped(one.name)} has another key than before, {key}; ask whether it is theirs"
        )
    client.renewed.clear()


def clock_of(said: Said) -> str:
    return datetime.fromtimestamp(said.message.ts / 1_000, timezone.utc).strftime("%H:%M:%S")


def explain(error: ProtocolError) -> str:
    """Return the sentence for a person whose session ended before its time."""
    if isinstance(error, OtherKey):
        return (
            "Certificate validation failed: the server's is valid, but has another key than the one"
            f" we know: {error.got}; if its owner confirms it, give it with --pin"
        )
    if isinstance(error, UnusableList):
        return f"Certificate validation failed: our revocation list: {error}"
    if isinstance(error, BadCertificate):
        return f"Certificate validation failed: the server's, or a member's: {error}"
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
            f"{text!a}: a room's name has 1 to {MAX_ROOM_NAME} characters of a-z, 0-9 and -"
        ) from None


class Run:
    """One run of the program: a session from the prompts to the receipt, or more after cuts."""

    def __init__(self, new_client: Callable[[], Client], room: str) -> None:
        self.stop: list[int] = []  # the signal that ends it
        self._new_client = new_client
        self._room = room
        self._client = new_client()
        self._stack = contextlib.ExitStack()  # closes the last client before the next begins

    def chat(self) -> None:
        """Go on until the person quits. Raises what ended it before."""
        try:
            with self._stack:
                client = self._stack.enter_context(self._client)
                show(f"[*] connected to {client.session.peer.name}, whose certificate is valid")
                if client.is_first_meeting:
                    key = key_fingerprint(client.session.peer.public_key)
                    show(f"[*] it is new to us; from now on its key must be {key}")
                enter(client)
                for number in end_signals():
                    signal.signal(number, self._leave)
                self._join("logged in")
                Talk(client, show, self._come_back).run()
        finally:
            self._report()

    def _leave(self, number: int, _: object) -> None:
        self.stop.append(number)
        self._client.channel.request_end(Status.SHUTDOWN)
        signal.signal(number, signal.SIG_DFL)

    def _join(self, verb: str) -> None:
        client = self._client
        members = client.join(self._room)
        names = ", ".join(sorted({one.identity.name for one in members}))
        show(f"[*] {verb} as {escaped(client.username)}; in {self._room}: {escaped(names)}")
        tell_doubts(client, show)

    def _report(self) -> None:
        kept = self._client.kept
        self._client.kept = None
        if kept:
            show(f"[*] transcript: {kept.transcript} ({plural(kept.messages, 'message')})")
            state = "countersigned by the server" if kept.is_countersigned else "uncountersigned"
            show(f"[*] receipt: {kept.receipt}, {state}")

    def _come_back(self) -> Client | None:
        """Resume a session that was cut; None if that cannot be. Raises what ends the new one."""
        token = self._client.token
        self._stack.close()
        self._report()
        show("[!] connection lost; coming back")
        for wait_s in RETRY_S:
            self._wait(wait_s)
            with contextlib.suppress(NoConnection, ConnectionCut):
                return self._resume(token)
            self._stack.close()
            token = self._client.token or token  # a new one, if it was the new session that was cut
        return None

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left_s := deadline - time.monotonic()) > 0 and not self.stop:
            time.sleep(min(left_s, POLL_S))
        self._check_stop()

    def _check_stop(self) -> None:
        if self.stop:
            raise EndRequested(Status.SHUTDOWN)

    def _resume(self, token: str) -> Client | None:
        """Return a session in place of the one with this token; None if it is too late for that."""
        client = self._client = self._stack.enter_context(self._new_client())
        self._check_stop()  # a signal during the handshake went to the client before
        try:
            client.resume(token)
        except NotLetIn:
            return None
        self._join("back")
        return client


@flag_type("the SHA-256 of a key, in 64 hexadecimal digits")
def sha256(text: str) -> str:
    """Return the value of --pin, in lower case. Raises WrongValue."""
    digits = text.strip().lower()
    if not re.fullmatch("[0-9a-f]{64}", digits):
        raise ValueError(text)
    return digits


def main() -> int:
    parser = ChatParser("Chat, with a certificate and an account.")
    parser.add_argument("--name", default="client", help="of the certificate's files")
    parser.add_argument("--server", metavar="NAME", help="in the server's certificate")
    parser.add_argument("--room", type=room_name, default=LOBBY, help=f"default: {LOBBY}")
    parser.add_argument(
        "--pin", type=sha256, metavar="SHA256", help="the server's key must be this one"
    )
    options = parser.options()
    settings = settings_of(options)
    start_log(options.log, None, debug=options.debug)
    trust = load_trust(settings.certs)
    new_client = partial(
        Client,
        load_party(settings.certs, options.name, "client", trust),
        trust,
        options.server or settings.server_name,
        settings.transcripts,
        settings.server_host,
        settings.server_port,
        new_session=partial(Session, watchers=[log_frame]),
        pins=Pins(settings.certs / KNOWN_KEYS, options.pin),
    )
    run = Run(new_client, options.room)
    try:
        run.chat()
        return 0
    except EndRequested:
        to_stderr("client: stopped")
        return 128 + run.stop[0]
    except EOFError:
        raise UserError("the input ended before the login") from None
    except ProtocolError as error:
        to_stderr(f"client: {explain(error)}")
        return 3 if isinstance(error, (ConnectionCut, DeadlineExpired)) else 1


if __name__ == "__main__":
    run_program(main)
