"""A node: an inbox that it binds, an outbox that it connects, and a Peer between them.

    python -m companions.peer_messaging.node alice --port 5555 --peer bob --at 127.0.0.1:5556

Both nodes run the same program; neither is the server. It sends each line as a text, and prints the
texts that come; the end of the input ends it, and so does `quit` at a terminal. It exits with 0
when every text has a receipt, 1 when some have none, 2 for bad input, 3 if the port is taken, 130
after Ctrl-C (143 after SIGTERM).
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import zmq

from companions.peer_messaging.identity import (
    Identity,
    Trust,
    known_peers,
    load_identity,
    peer_fingerprint,
    peer_name,
    remember,
)
from companions.peer_messaging.peer import Event, Limits, Peer
from companions.peer_messaging.protocol import MAX_MESSAGE, Kind, Session
from companions.peer_messaging.talk import Screen, Talk, line_in
from companions.terminal import ask_passphrase, bold, is_interactive, reading_lines
from endpoint import HOST
from program import (
    NoConnection,
    Parser,
    UserError,
    end_signals,
    flag_type,
    host_and_port,
    host_and_port_of,
    port_number,
    reason_of,
    run_program,
    seconds,
)
from protocol_fsm import LocalError

PORT = 5555
POLL_S = 0.05  # how soon a waiting node looks at its timers
CONNECT_S = 0.1  # how long a HELLO waits for its connection
LINGER_S = 0.25  # how long a last BYE has to leave
RECEIVE_AHEAD = 10  # messages of one connection that ZeroMQ keeps until we read them
LIMITS = Limits()


def address_of(host: str) -> str:
    """Return the numeric address of a host, of IPv4 if it has one. Raises UserError."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise UserError(f"there is no host named {host!a}") from None
    return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])


def endpoint_of(host: str, port: int) -> str:
    """Return an address as ZeroMQ writes it; port 0 lets the system choose."""
    bracketed = f"[{host}]" if ":" in host else host
    return f"tcp://{bracketed}:{port or '*'}"


class Node:
    """A Peer on ZeroMQ: it listens from the start, and lives inside `with`.

    A thread of its own tells events, and `tell` must not call the node. An error that ends this
    thread is raised by `check`, by `say` and at the end of `with`. Raises NoConnection if the port
    is taken, UserError if there is no such host.
    """

    def __init__(
        self,
        identity: Identity,
        trust: Trust,
        at: tuple[str, int],
        host: str = HOST,
        port: int = 0,
        limits: Limits = LIMITS,
        *,
        tell: Callable[[Event], object] = lambda event: None,
        new_peer: Callable[..., Peer] = Peer,
        new_session: Callable[..., Session] = Session,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._peer = new_peer(
            identity, trust, limits, tell=tell, new_session=new_session, clock=clock
        )
        self._lock = threading.Lock()  # of peer and outbox; only the thread touches the inbox
        self._closing = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._at = at
        self._hellos = 0  # over the outbox as it is now, without a session
        ours = address_of(host)
        self._theirs = address_of(at[0])
        self._context = zmq.Context()
        try:
            self._inbox = self._socket(zmq.PULL, ours)
            self._inbox.setsockopt(zmq.RCVTIMEO, int(1_000 * POLL_S))
            self._inbox.bind(endpoint_of(ours, port))
            self._outbox = self._new_outbox()
        except zmq.ZMQError as error:
            self._context.destroy(0)
            raise NoConnection(f"cannot listen on {host} port {port}: {reason_of(error)}") from None
        bound = self._inbox.getsockopt_string(zmq.LAST_ENDPOINT)
        self.address = (host, int(bound.rpartition(":")[2]))

    def _socket(self, kind: int, address: str) -> zmq.Socket[bytes]:
        """Return a socket that keeps little of what strangers send.

        It has no heartbeats of ZeroMQ: with them, libzmq 4.3.5 aborts the process when a connection
        is reset that has filled its pipe.
        """
        sock = self._context.socket(kind)
        sock.setsockopt(zmq.IPV6, int(":" in address))
        sock.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)  # of a part; a longer one ends its connection
        sock.setsockopt(zmq.RCVHWM, RECEIVE_AHEAD)
        return sock

    def _new_outbox(self) -> zmq.Socket[bytes]:
        outbox = self._socket(zmq.PUSH, self._theirs)
        outbox.setsockopt(zmq.IMMEDIATE, 1)  # nothing waits for a peer that is not there
        outbox.connect(endpoint_of(*self._at))  # by name, whose address may change
        return outbox

    def __enter__(self) -> Node:
        if self._thread.ident is not None:
            raise LocalError("a Node has one life; for another one, make another Node")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self._closing.set()
        self._thread.join()
        if kind is None:
            self.check()

    def check(self) -> None:
        """Raise the error that has ended the node's thread, if one has."""
        if self._failure:
            raise self._failure

    def say(self, text: str) -> None:
        """Send a text, or keep it until the peer is there. Any thread may.

        Raises LocalError, also while 100 texts are waiting already, and after the `with`.
        """
        self.check()
        with self._lock:
            self._send(self._peer.say(text))

    def _run(self) -> None:
        """Live, then close the sockets: libzmq aborts if another thread closes one in use."""
        try:
            self._exchange()
        except Exception as error:
            self._failure = error
        finally:
            with self._lock:
                self._context.destroy(int(1_000 * LINGER_S))

    def _exchange(self) -> None:
        try:
            while not self._closing.is_set():
                with self._lock:
                    self._send(self._peer.tick())
                message = self._next_message()
                if message is not None:
                    with self._lock:
                        self._send(self._peer.receive(message))
        finally:
            with self._lock:
                self._send(self._peer.leave())

    def _next_message(self) -> bytes | None:
        """Return a message if one comes within POLL_S; one of several parts counts as empty.

        libzmq gathers all parts of a message first, and nothing here can limit their number.
        """
        try:
            part = self._inbox.recv(copy=False)
        except zmq.Again:
            return None
        if not part.more:
            return bytes(part.buffer)
        while part.more:
            part = self._inbox.recv(copy=False)
        return b""

    def _send(self, messages: list[bytes]) -> None:
        """Send what can be sent. The peer will notice a loss, and we will notice its silence."""
        for message in messages:
            if message[0] == Kind.HELLO and self._peer.session is None:
                self._prepare_outbox()
            with contextlib.suppress(zmq.Again):
                self._outbox.send(message, zmq.DONTWAIT)

    def _prepare_outbox(self) -> None:
        """Wait a moment for the connection, and replace it if two HELLOs over it were in vain.

        It may lead nowhere without ZeroMQ noticing: the other machine is gone, or somebody there
        has filled a pipe that nobody reads. The second HELLO is for connections that take longer.
        """
        if self._hellos == 2:
            replaced = self._outbox
            with contextlib.suppress(zmq.ZMQError):  # without a free descriptor the old one stays
                self._outbox = self._new_outbox()
                replaced.close(int(1_000 * LINGER_S))
            self._hellos = 0
        self._hellos += 1
        self._outbox.poll(int(1_000 * CONNECT_S), zmq.POLLOUT)


# The program --------------------------------------------------------------------------------------


@flag_type("HOST:PORT")
def peer_address(text: str) -> tuple[str, int]:
    """Return the two parts of HOST:PORT; a port to connect to is not 0. Raises WrongValue."""
    host, port = host_and_port(text)
    if not port:
        raise ValueError(text)
    return host, port


def keep(known: Path, peer: str, pinned: str) -> None:
    """Write down that this key is the peer's. Raises UserError."""
    try:
        remember(known, peer, pinned)
    except OSError as error:
        raise UserError(f"cannot write {known}: {reason_of(error)}") from None


def load_trust(known: Path, peer: str, pin: str, *, pinned_only: bool) -> Trust:
    """Return the rule by which we accept the peer; `pin` is a fingerprint or "". UserError."""
    pinned = known_peers(known).get(peer, "")
    if pin and pinned and pin != pinned:
        raise UserError(
            f"{line_in(known, peer)} has another key for {peer}; if that is out of date, remove it"
        )
    if pin and not pinned:
        keep(known, peer, pin)
    if pinned_only and not (pin or pinned):
        raise UserError(
            f"{peer} is not in {known}, and no unknown key is accepted; add --pin "
            "with the fingerprint"
        )
    return Trust(peer, pin or pinned, first_use=not pinned_only, keep=partial(keep, known, peer))


def introduce(screen: Screen, identity: Identity, is_new: bool) -> None:
    """Show our own fingerprint."""
    if is_new:
        screen.notice(f"a new key is in {screen.known.parent / 'identity.pem'}; keep it secret")
    screen.notice(f"our own fingerprint, for {screen.peer} to compare:")
    screen.fingerprint(identity.fingerprint)


def parse() -> argparse.Namespace:
    parser = Parser("A node that exchanges texts with one peer.")
    parser.add_argument(
        "folder",
        type=Path,
        metavar="FOLDER",
        help="our key, made at the first start, and known_peers",
    )
    parser.add_argument("--host", default=HOST, help=f"to listen on; default {HOST}")
    parser.add_argument("--port", type=port_number, default=PORT, help=f"default {PORT}")
    parser.add_argument(
        "--peer",
        type=flag_type("a name without spaces or #")(peer_name),
        required=True,
        metavar="NAME",
        help="what we call the peer",
    )
    parser.add_argument(
        "--at", type=peer_address, required=True, metavar="HOST:PORT", help="where the peer listens"
    )
    parser.add_argument(
        "--pin",
        type=flag_type("a fingerprint of 64 hex digits")(peer_fingerprint),
        metavar="FINGERPRINT",
        help="of the peer's key: 64 hex digits, in quotes if with spaces",
    )
    parser.add_argument(
        "--pinned-only", action="store_true", help="accept no unknown key, not even the first time"
    )
    parser.add_argument(
        "--patience",
        type=seconds,
        default=10.0,
        metavar="SECONDS",
        help="for receipts, after the end of input that is not a terminal; default 10",
    )
    parser.add_argument(
        "--verbose", action="store_true", help="report each refused message, and each receipt"
    )
    return parser.options()


def interrupt(talk: Talk, number: int, _: object) -> None:
    """Ask for the end; a second signal forces it, even if output is stuck."""
    talk.happenings.put(int(number))
    signal.signal(number, signal.SIG_DFL)


def main() -> int:
    options = parse()
    known = options.folder / "known_peers"
    identity, is_new = load_identity(options.folder, ask_passphrase)
    emphasize = bold if is_interactive() else str
    screen = Screen(options.peer, known, verbose=options.verbose, emphasize=emphasize)
    introduce(screen, identity, is_new)
    trust = load_trust(known, options.peer, options.pin or "", pinned_only=options.pinned_only)
    if trust.pinned:
        screen.notice(f"{options.peer} is known: {line_in(known, options.peer)}")
    else:
        screen.notice(
            f"{options.peer} is not known yet, and the first node to come will be taken for "
            f"{options.peer}; --pin is safer"
        )
    talk = Talk(screen, 1.0 if sys.stdin.isatty() else options.patience)
    node = Node(identity, trust, options.at, options.host, options.port, tell=talk.hear)
    with node:
        for number in end_signals():
            signal.signal(number, partial(interrupt, talk))
        ours = host_and_port_of(node.address)
        theirs = host_and_port_of(options.at)
        screen.notice(f"listening on {ours}; {options.peer} should be at {theirs}")
        with reading_lines(talk.happenings.put) as taken:
            talk.run(node, taken)
    return talk.finish()


if __name__ == "__main__":
    run_program(main)
