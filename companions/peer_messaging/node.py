"""A node: an inbox that it binds, an outbox that it connects, and a Peer between them.

    python -m companions.peer_messaging.node alice --port 5555 --peer bob --at 127.0.0.1:5556

Both nodes run the same program; neither is the server. It sends a text a line, and prints what
comes; `quit`, or the end of the input, ends it. It exits with 0 when every text has a receipt, 1
when some have none, 2 for bad input, 3 if the port is taken, 130 after Ctrl-C (143 after SIGTERM).
"""
from __future__ import annotations

import argparse
import codecs
import contextlib
import getpass
import queue
import re
import shutil
import signal
import socket
import sys
import textwrap
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

import zmq

from companions.peer_messaging.identity import (
    Identity, IdentityChanged, Trust, grouped, known_peers, load_identity, remember,
)
from companions.peer_messaging.peer import Event, Limits, Peer
from companions.peer_messaging.protocol import MAX_MESSAGE, PeerAway, PeerLeft, Reason, Session
from endpoint import (
    HOST, NoConnection, Parser, UserError, host_and_port, port_number, reason_of, run_program,
    seconds, to_stderr,
)
from protocol_fsm import LocalError, ProtocolError, WrongPeer

PORT = 5555
POLL_S = 0.05  # how soon a waiting node looks at its timers
LINGER_S = 0.25  # how long a last BYE has to leave
HEARTBEAT_S, SILENCE_S = 2, 6  # of ZeroMQ: after that silence it connects anew
LIMITS = Limits()

def address_of(host: str) -> str:
    """Return the numeric address of a host, of IPv4 if it has one. Raises UserError."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise UserError(f"there is no host named {host!a}") from None
    return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])

def endpoint_of(host: str, port: int) -> str:
    """Return what ZeroMQ calls an address; port 0 lets the system choose."""
    return f"tcp://{f'[{host}]' if ':' in host else host}:{port or '*'}"

class Node:
    """A Peer on ZeroMQ: it listens from the start, and lives inside `with`.

    What happens is told by a thread of its own, and `tell` must not call the node. Whatever ends
    that thread before its time is raised by `check`, `say`, and the end of `with`. Raises
    NoConnection if the port is taken, UserError if there is no such host.
    """

    def __init__(self, identity: Identity, trust: Trust, at: tuple[str, int], host: str = HOST,
                 port: int = 0, limits: Limits = LIMITS, *,
                 tell: Callable[[Event], object] = lambda event: None,
                 new_peer: Callable[..., Peer] = Peer,
                 new_session: Callable[..., Session] = Session,
                 clock: Callable[[], float] = time.time) -> None:
        self._peer = new_peer(identity, trust, limits, tell=tell, new_session=new_session,
                              clock=clock)
        self._lock = threading.Lock()  # of the peer and the outbox; the inbox is the thread's own
        self._closing = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        ours, theirs = address_of(host), address_of(at[0])
        self._context = zmq.Context()
        try:
            self._inbox = self._socket(zmq.PULL, ours)
            self._inbox.setsockopt(zmq.RCVTIMEO, int(1_000 * POLL_S))
            self._inbox.bind(endpoint_of(ours, port))
            self._outbox = self._socket(zmq.PUSH, theirs)
            self._outbox.setsockopt(zmq.IMMEDIATE, 1)  # nothing waits for a peer who is not there
            self._outbox.connect(endpoint_of(*at))  # by name: it may have another address later
        except zmq.ZMQError as error:
            self._context.destroy(0)
            raise NoConnection(f"cannot listen on {host} port {port}: {reason_of(error)}") from None
        bound = self._inbox.getsockopt_string(zmq.LAST_ENDPOINT)
        self.address = host, int(bound.rpartition(":")[2])

    def _socket(self, kind: int, address: str) -> zmq.Socket[bytes]:
        sock = self._context.socket(kind)
        sock.setsockopt(zmq.IPV6, int(":" in address))
        sock.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)  # whoever sends more is disconnected
        sock.setsockopt(zmq.HEARTBEAT_IVL, 1_000 * HEARTBEAT_S)
        sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, 1_000 * SILENCE_S)
        return sock

    def __enter__(self) -> Node:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self._closing.set()
        try:
            self._thread.join()
            with self._lock:
                self._send(self._peer.leave())
        finally:
            self._context.destroy(int(1_000 * LINGER_S))
        if kind is None:
            self.check()

    def check(self) -> None:
        """Raise what has ended the node's thread, if anything has."""
        if self._failure:
            raise self._failure

    def say(self, text: str) -> None:
        """Send a text, or keep it until the peer is there. Any thread may. Raises LocalError.

        Whoever says more than a thousand without waiting for receipts will lose some.
        """
        self.check()
        with self._lock:
            self._send(self._peer.say(text))

    def _run(self) -> None:
        try:
            with self._lock:  # a HELLO that cannot leave yet would cost a second
                self._outbox.poll(int(1_000 * POLL_S), zmq.POLLOUT)
            while not self._closing.is_set():
                message = self._next_message()
                with self._lock:
                    if message is not None:
                        self._send(self._peer.receive(message))
                    self._send(self._peer.tick())
        except Exception as error:
            self._failure = error

    def _next_message(self) -> bytes | None:
        """Return what comes within 0.1 s. Ours have one part; what has more counts as empty.

        Until its last part has come it is in libzmq's memory, and nothing here can limit that.
        """
        try:
            parts = self._inbox.recv_multipart()
        except zmq.Again:
            return None
        return parts[0] if len(parts) == 1 else b""

    def _send(self, messages: list[bytes]) -> None:
        """Send what can be sent. What is lost the peer will notice, and we by its silence."""
        for message in messages:
            with contextlib.suppress(zmq.Again):
                self._outbox.send(message, zmq.DONTWAIT)

# What a person sees -------------------------------------------------------------------------------

COLUMNS = 79  # of a line at most, and fewer on a narrow terminal
SLOW_S = 2.0  # a receipt that takes longer is worth a word
MAX_ALARMS = 3  # anybody can show any number of keys

def escape(text: str) -> str:
    """Return text that moves no cursor, colours nothing and hides nothing."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)

def shorten(text: str) -> str:
    """Return how a text begins, quoted, in at most 30 characters."""
    text = escape(text)
    return f'"{text}"' if len(text) <= 28 else f'"{text[:25]}..."'

def columns() -> int:
    """Return how many columns a line may have: 40 to 79."""
    return max(40, min(COLUMNS, shutil.get_terminal_size().columns - 1))

def print_now(line: str) -> None:
    print(line, flush=True)

class Screen:
    """Puts what happens into words, in lines of at most 79 columns.

    What is our own begins with `* ` or `!!! `, what comes with the peer's name; if that takes more
    than a line, the others begin with spaces, so that no text can look like a word of ours.
    """

    def __init__(self, peer: str, known: Path, *, verbose: bool = False, width: int = COLUMNS,
                 show: Callable[[str], object] = print_now) -> None:
        self.peer, self.known, self.is_here = peer, known, False
        self._verbose, self._width, self._show = verbose, width, show
        self._has_been_here, self._came = False, 0
        self._refused: Counter[str] = Counter()
        self._alarms: set[str] = set()

    def notice(self, sentence: str) -> None:
        self._fill("* ", sentence, "  ")

    def alarm(self, *sentences: str) -> None:
        for sentence in sentences:
            self._fill("!!! ", sentence, "!!! ")

    def fingerprint(self, fingerprint: str) -> None:
        """Show a fingerprint in a line of its own, which is full if it has 79 columns."""
        self._fill("", grouped(fingerprint), "")

    def _fill(self, first: str, text: str, rest: str, *, whole: bool = False) -> None:
        """Show a text in lines that begin with `first`, then `rest`; `whole` keeps its spaces."""
        self._show(textwrap.fill(text, self._width, initial_indent=first, subsequent_indent=rest,
                                 drop_whitespace=not whole, break_on_hyphens=False))

    def met(self, event: Event) -> None:
        if event.number:
            self.alarm(f"{self.peer} is here for the first time, with a key of this fingerprint:")
            self.fingerprint(event.text)
            self.alarm(f"Before you write what matters, compare it with the one that {self.peer}'s "
                       "own node has shown at its start: by telephone, or in person, and not "
                       "here. If they differ, somebody is in between.",
                       f"From now on no other is taken: {line_in(self.known, self.peer)}")
        elif self.is_here:
            self.notice(f"a new session with {self.peer} has begun")
        else:
            self.notice(f"{self.peer} is here{' again' if self._has_been_here else ''}")
        self.is_here = self._has_been_here = True

    def text(self, event: Event) -> None:
        self._came += 1
        self._fill(f"{self.peer}: ", escape(event.text), "    ", whole=True)

    def ended(self, event: Event) -> None:
        """Say why a session is over; if a newer one took its place, that is about to be said."""
        error = event.error
        if error is None:
            return
        self.is_here = False
        if isinstance(error, PeerLeft) and error.reason is Reason.GOODBYE:
            self.notice(f"{self.peer} has left")
        elif isinstance(error, PeerLeft):
            self.notice(f"{self.peer} has ended the session, as it refused what came from us, or "
                        "what somebody made of it; another will begin")
        elif isinstance(error, PeerAway):
            self.notice(f"{self.peer} is away: nothing was heard for a while, not even a PONG")
        else:
            self.notice(f"the session with {self.peer} has ended, and another will begin: {error}")

    def arrived(self, number: int, text: str, after_s: float) -> None:
        if after_s >= SLOW_S or self._verbose:
            self.notice(f"text {number}, {shorten(text)}, has arrived after {after_s:.1f} s")

    def unconfirmed(self, number: int, text: str) -> None:
        self.notice(f"text {number}, {shorten(text)}, is unconfirmed: it may have arrived, or not")

    def waiting(self, number: int) -> None:
        self.notice(f"{self.peer} is not here; text {number}, and what follows it, waits")

    def refused(self, error: ProtocolError) -> None:
        """Count what was refused; what a person has to act on is said, the first time."""
        kind = type(error).__name__
        self._refused[kind] += 1
        if self._verbose:
            self.notice(f"refused: {error}")
        if isinstance(error, IdentityChanged):
            self._warn(str(error.got))
        elif isinstance(error, WrongPeer) and self._refused[kind] == 1:
            self.notice(f"refused: our own key. Either --at leads to this node itself, or "
                        f"{self.peer} has a copy of our folder, or our messages are sent back")

    def _warn(self, shown: str) -> None:
        if shown in self._alarms or len(self._alarms) == MAX_ALARMS:
            return
        self._alarms.add(shown)
        self.alarm(f"SOMEBODY SHOWS ANOTHER KEY FOR {self.peer}: {grouped(shown)} ...",
                   f"It was refused. Either {self.peer} has a new installation, or somebody poses "
                   f"as {self.peer}. Ask {self.peer}, by another way than this one. Only if the "
                   f"new key is right: remove {line_in(self.known, self.peer)}, and start this "
                   "node again, best with --pin.")

    def total(self, sent: int) -> None:
        if self._refused:
            what = ", ".join(f"{number} {kind}" for kind, number in self._refused.most_common())
            self.notice(f"messages refused: {what}")
        self.notice(f"over: {sent} sent, {self._came} received")

def line_in(known: Path, peer: str) -> str:
    """Name the line of a peer in known_peers."""
    with contextlib.suppress(OSError, UnicodeError):
        for number, line in enumerate(known.read_text("utf-8").splitlines(), 1):
            if line.startswith(f"{peer} "):
                return f"line {number} of {known}"
    return f"its line in {known}"

# What a person types ------------------------------------------------------------------------------

MAX_LINE = 65_536  # characters of a line that are looked at; a text has fewer
READ_AHEAD = 1_000  # lines

class Input(threading.Thread):
    """Reads lines, and hands each to `take`; the end, or `quit`, as an empty one.

    A thread, as Windows can wait for nothing else beside a terminal. It reads past Python's buffer:
    that has a lock, and a thread that waits in it would be in the way of the program's end.
    """

    def __init__(self, descriptor: int, encoding: str, take: Callable[[str], object]) -> None:
        super().__init__(daemon=True)
        self._descriptor, self._take = descriptor, take
        self._decoder = codecs.getincrementaldecoder(encoding)("replace")
        self._permits = threading.Semaphore(READ_AHEAD)

    def taken(self) -> None:
        """Say that a line has been dealt with, so that another may be read."""
        self._permits.release()

    def run(self) -> None:
        left = ""
        with contextlib.suppress(OSError), \
                open(self._descriptor, "rb", buffering=0, closefd=False) as stream:
            while data := stream.read(65_536):
                *lines, left = (left + self._decoder.decode(data)).split("\n")
                left = left[:MAX_LINE]
                if not all(map(self._hand_over, lines)):
                    return
        if self._hand_over(left + self._decoder.decode(b"", True)):
            self._take("")

    def _hand_over(self, line: str) -> bool:
        """Tell whether this was no `quit`."""
        line = line.rstrip("\r")
        if line.strip() == "quit":
            self._take("")
            return False
        if line.strip():
            self._permits.acquire()
            self._take(line)
        return True

# The program --------------------------------------------------------------------------------------

MAX_UNDER_WAY = 100  # texts without a receipt; Limits has as many waiting
Happening = Event | str | int  # of the node; a line, empty at the end; a signal

class Talk:
    """Between a person and a node, in one thread: what happened, one thing after the other."""

    def __init__(self, screen: Screen, patience_s: float,
                 timer: Callable[[], float] = time.monotonic) -> None:
        self._screen, self._patience_s, self._timer = screen, patience_s, timer
        self.happenings: queue.SimpleQueue[Happening] = queue.SimpleQueue()
        self._typed: deque[str] = deque()
        self._under_way: dict[int, tuple[str, float]] = {}  # by number, and since when
        self._sent = self._lost = self._signal = 0
        self._has_told_of_waiting = False
        self._deadline: float | None = None  # once the input has ended

    def run(self, node: Node, taken: Callable[[], object]) -> None:
        """Go on until there is nothing more to say, or a signal came. Raises what `check` does."""
        while not self._is_over():
            node.check()
            while self._typed and len(self._under_way) < MAX_UNDER_WAY:
                taken()
                self._say(node, self._typed.popleft())
            with contextlib.suppress(queue.Empty):
                self._take(self.happenings.get(timeout=POLL_S))

    def finish(self) -> int:
        """Show what is left to show after the node's end, and return the exit code."""
        while not self.happenings.empty():
            self._take(self.happenings.get())
        self._screen.total(self._sent)
        if lost := self._lost + len(self._under_way) + len(self._typed):
            to_stderr(f"node: {lost} {'text has' if lost == 1 else 'texts have'} no receipt, and "
                      "may not have arrived")
        return 128 + self._signal if self._signal else int(lost > 0)

    def _is_over(self) -> bool:
        if self._deadline is None or self._signal:
            return self._signal > 0
        return self._timer() >= self._deadline or not (self._typed or self._under_way)

    def _say(self, node: Node, text: str) -> None:
        try:
            node.say(text)
        except LocalError as error:
            self._lost += 1
            self._screen.notice(f"not sent: {error}")
            return
        self._sent += 1  # as the node counts them
        self._under_way[self._sent] = text, self._timer()
        if not self._screen.is_here and not self._has_told_of_waiting:
            self._has_told_of_waiting = True
            self._screen.waiting(self._sent)

    def _take(self, happening: Happening) -> None:
        if isinstance(happening, Event):
            self._hear(happening)
        elif isinstance(happening, int):
            self._signal = happening
        elif happening:
            self._typed.append(happening)
        else:
            self._deadline = self._timer() + self._patience_s

    def _hear(self, event: Event) -> None:
        if event.what == "met":
            self._has_told_of_waiting = False
            self._screen.met(event)
        elif event.what == "text":
            self._screen.text(event)
        elif event.what == "ended":
            self._screen.ended(event)
        elif event.what == "refused" and event.error:
            self._screen.refused(event.error)
        elif event.what == "receipt":
            text, since = self._under_way.pop(event.number)
            self._screen.arrived(event.number, text, self._timer() - since)
        elif event.what == "unconfirmed":
            text, _ = self._under_way.pop(event.number)
            self._lost += 1
            self._screen.unconfirmed(event.number, text)

def peer_name(text: str) -> str:
    """Return a name as known_peers has them. Raises ValueError."""
    if not re.fullmatch(r"[^\s#]{1,64}", text) or not text.isprintable():
        raise ValueError(text)
    return text

def fingerprint(text: str) -> str:
    """Return 64 hex digits, without the spaces between them. Raises ValueError."""
    digits = "".join(text.split()).lower()
    if not re.fullmatch("[0-9a-f]{64}", digits):
        raise ValueError(text)
    return digits

def peer_address(text: str) -> tuple[str, int]:
    """Return the two parts of HOST:PORT; a port to connect to is not 0. Raises ValueError."""
    host, port = host_and_port(text)
    if not port:
        raise ValueError(text)
    return host, port

peer_address.__name__ = "HOST:PORT"  # for argparse, which quotes it

def ask_passphrase(prompt: str) -> str:
    """Return what is typed, unseen. Raises UserError."""
    try:
        return getpass.getpass(prompt)
    except EOFError:
        raise UserError("the key needs a passphrase, and nobody types one") from None

def keep(known: Path, peer: str, pinned: str) -> None:
    """Write down whose key this is. Raises UserError."""
    try:
        remember(known, peer, pinned)
    except OSError as error:
        raise UserError(f"cannot write {known}: {reason_of(error)}") from None

def load_trust(known: Path, peer: str, pin: str, *, pinned_only: bool) -> Trust:
    """Return whom we take for the peer; `pin` is a fingerprint, or "". Raises UserError."""
    pinned = known_peers(known).get(peer, "")
    if pin and pinned and pin != pinned:
        raise UserError(f"{line_in(known, peer)} has another key for {peer}; if that is out of "
                        "date, remove it")
    if pin and not pinned:
        keep(known, peer, pin)
    if pinned_only and not (pin or pinned):
        raise UserError(f"{peer} is not in {known}, and no unknown key is to be taken; add --pin "
                        "with the fingerprint")
    return Trust(peer, pin or pinned, first_use=not pinned_only, keep=partial(keep, known, peer))

def introduce(screen: Screen, identity: Identity, is_new: bool) -> None:
    """Show who we are."""
    if is_new:
        screen.notice(f"a new key is in {screen.known.parent / 'identity.pem'}, for nobody else")
    screen.notice(f"our own fingerprint, for {screen.peer} to compare:")
    screen.fingerprint(identity.fingerprint)

def parse() -> argparse.Namespace:
    parser = Parser("A node that exchanges texts with one peer.", is_endpoint=False)
    parser.add_argument("folder", type=Path, metavar="FOLDER",
                        help="our key, made at the first start, and known_peers")
    parser.add_argument("--host", default=HOST, help=f"to listen on; default {HOST}")
    parser.add_argument("--port", type=port_number, default=PORT, help=f"default {PORT}")
    parser.add_argument("--peer", type=peer_name, required=True, metavar="NAME",
                        help="what we call the peer")
    parser.add_argument("--at", type=peer_address, required=True, metavar="HOST:PORT",
                        help="where the peer listens")
    parser.add_argument("--pin", type=fingerprint, metavar="FINGERPRINT",
                        help="of the peer's key: 64 hex digits, in quotes if with spaces")
    parser.add_argument("--pinned-only", action="store_true",
                        help="take no unknown key, not even the first time")
    parser.add_argument("--patience", type=seconds, default=10.0, metavar="SECONDS",
                        help="for receipts, after the end of an input that is no terminal; "
                        "default 10")
    parser.add_argument("--verbose", action="store_true",
                        help="tell of each message refused, and of each receipt")
    return parser.options()

def main() -> int:
    options = parse()
    known = options.folder / "known_peers"
    identity, is_new = load_identity(options.folder, ask_passphrase)
    screen = Screen(options.peer, known, verbose=options.verbose, width=columns())
    introduce(screen, identity, is_new)
    trust = load_trust(known, options.peer, options.pin or "", pinned_only=options.pinned_only)
    screen.notice(f"{options.peer} is known: {line_in(known, options.peer)}" if trust.pinned else
                  f"{options.peer} is not known yet, and the first to come will be taken for "
                  f"{options.peer}; --pin is safer")
    talk = Talk(screen, 1.0 if sys.stdin.isatty() else options.patience)
    node = Node(identity, trust, options.at, options.host, options.port,
                tell=talk.happenings.put)
    with node:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: talk.happenings.put(int(number)))
        screen.notice("listening on {}:{}; {} should be at {}:{}".format(
            *node.address, options.peer, *options.at))
        lines = Input(sys.stdin.fileno(), sys.stdin.encoding, talk.happenings.put)
        lines.start()
        talk.run(node, lines.taken)
    return talk.finish()

if __name__ == "__main__":
    run_program(main)
