"""What the tests of peer messaging share: two real sessions, two real nodes, and forged messages.

Keys, nonces and tags are computed here from the text [N 2] to [N 4], by another library than the
sessions'. Time passes when a test says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import socket
import struct
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import pytest
from Crypto.Cipher import AES

from companions.asymmetric import PrivateKey, sign
from companions.peer_messaging.identity import Identity, Trust
from companions.peer_messaging.peer import Event, Limits, Peer
from companions.peer_messaging.protocol import (
    HELLO_BYTES,
    Kind,
    Message,
    Reason,
    Role,
    Session,
    State,
)
from protocol_fsm import ProtocolError, read_exactly
from tests.companions.helpers import expand, sha256
from tests.sessions import clone, error_of

A = Role.INITIATOR
B = Role.RESPONDER  # who begins, and who answers
OTHER = {A: B, B: A}
NOW = 1_800_000_000.0  # seconds since 1970
NAME = "peer_messaging v1"
WAY: Mapping[State, tuple[Role, Kind]] = {  # the move that leads from here to the next line
    State.HELLO: (A, Kind.HELLO),
    State.REPLY: (B, Kind.REPLY),
    State.CONFIRM: (A, Kind.CONFIRM),
    State.WELCOME: (B, Kind.WELCOME),
    State.OPEN: (A, Kind.BYE),
}
BODIES: Mapping[Kind, bytes] = {Kind.TEXT: b"hello", Kind.BYE: b"\0"}


class Clock:
    """Seconds, which pass when a test says so."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def ours_alone() -> Iterator[None]:
    """Nobody else can write files and folders of a test, whatever umask it is run with."""
    before = os.umask(0o022)
    yield
    os.umask(before)


# Two ends of a session ----------------------------------------------------------------------------


class World:
    """Three people with a key each, in the order of their fingerprints."""

    def __init__(self, keys: Sequence[PrivateKey]) -> None:
        self.alice, self.bob, self.mallory = sorted(
            (Identity(key) for key in keys[:3]), key=lambda who: who.fingerprint
        )
        self._pairs: dict[State, Pair] = {}

    def session(
        self, role: Role, trust: Trust | None = None, clock: Clock | None = None
    ) -> Session:
        """Return a session of Alice, who begins, or of Bob, who answers; they know each other."""
        who, peer = (self.alice, self.bob) if role is A else (self.bob, self.alice)
        return Session(
            who, trust or Trust("the peer", peer.fingerprint), role, clock=clock or Clock()
        )

    def pair(self, state: State = State.HELLO) -> Pair:
        """Return a pair whose both ends are in `state`; a handshake is lived through only once."""
        if state not in self._pairs:
            self._pairs[state] = self._lead(state)
        return self._pairs[state].clone()

    def new_pair(self, state: State = State.OPEN) -> Pair:
        """Return a pair that has nothing in common with any other."""
        clock = Clock()
        pair = Pair(self.session(A, clock=clock), self.session(B, clock=clock), clock)
        for sender, kind in [*WAY.values()][: [*State].index(state)]:
            pair.carry(kind, sender)
        return pair

    def _lead(self, state: State) -> Pair:
        if state is State.HELLO:
            return self.new_pair(state)
        before = [*State][[*State].index(state) - 1]
        pair = self.pair(before)
        sender, kind = WAY[before]
        message = pair.end(sender).seal(Message(kind, BODIES.get(kind, b"")))
        pair.messages.append(message)
        error_of(pair.end(OTHER[sender]), message)
        assert pair.end(A).state is pair.end(B).state is state
        return pair


class Pair:
    """Both ends of one session, and nobody between them; `messages` is all that was said."""

    def __init__(
        self, initiator: Session, responder: Session, clock: Clock, messages: Sequence[bytes] = ()
    ) -> None:
        self.ends = (initiator, responder)
        self.clock = clock
        self.messages = [*messages]

    def end(self, role: Role) -> Session:
        return self.ends[role]

    def carry(self, kind: Kind, sender: Role = A, body: bytes | None = None) -> Message:
        """Seal at one end, open at the other."""
        body = BODIES.get(kind, b"") if body is None else body
        self.messages.append(self.end(sender).seal(Message(kind, body)))
        return self.end(OTHER[sender]).open(self.messages[-1])

    def clone(self) -> Pair:
        clock = Clock(self.clock.now)
        ends = [clone(session) for session in self.ends]
        for session in ends:
            session._clock = clock
        return Pair(ends[0], ends[1], clock, self.messages)


def snapshot(session: Session) -> dict[str, object]:
    """Return all that a session knows, to be compared later."""
    return {**vars(clone(session)), "fsm": session.state, "pinned": session.trust.pinned}


def is_dropped(session: Session, message: bytes, expected: type[ProtocolError]) -> bool:
    """Tell whether a message is refused in this way, and nothing at all has changed."""
    before = snapshot(session)
    error = error_of(session, message)
    assert type(error) is expected, (error, message[:30].hex())
    assert error.farewell == b"", "whoever sent it learns nothing"
    return snapshot(session) == before


def is_farewell(error: ProtocolError, peer: Session) -> bool:
    """Tell whether `error` carries a BYE that `peer` takes for one of a violation, or nothing."""
    if not error.farewell:
        return False
    answer = error_of(clone(peer), error.farewell)
    assert getattr(answer, "reason", None) is Reason.VIOLATION, answer
    return True


# The text of the protocol, once more --------------------------------------------------------------


def keys_after(hello: bytes, reply: bytes, shared: bytes) -> dict[str, bytes]:
    """Return what [N 3] makes of the two messages and of what both shares lead to."""
    bound = hashlib.sha256(hello + reply).digest()
    secret = expand(hmac.digest(bound, shared, "sha256"), f"{NAME} secret".encode(), 32)
    return {
        label: expand(secret, f"{NAME} {label}".encode(), length)
        for label, length in (("I-KEY", 32), ("I-IV", 12), ("R-KEY", 32), ("R-IV", 12))
    }


def nonce_of(keys: Mapping[str, bytes], sender: Role, number: int) -> bytes:
    padded = bytes(8) + number.to_bytes(4, "big")
    return bytes(a ^ b for a, b in zip(keys[f"{sender.name[0]}-IV"], padded))


# Messages nobody would make -----------------------------------------------------------------------


def forge(
    session: Session,
    kind: int,
    body: bytes = b"",
    *,
    sender: Role | None = None,
    shown_sender: int | None = None,
    sequence: int | None = None,
    ago_s: float = 0.0,
    session_id: bytes | None = None,
    keys: Mapping[str, bytes] | None = None,
) -> bytes:
    """Seal anything at all as `session` or its peer could; neither moves, and the tag is right."""
    sender = session.role if sender is None else sender
    keys = keys or session._keys
    number = session._sequence[sender] if sequence is None else sequence
    timestamp = int((session._clock() - ago_s) * 1_000)
    header = (
        bytes([kind])
        + (session.session_id if session_id is None else session_id)
        + bytes([sender if shown_sender is None else shown_sender])
        + number.to_bytes(4, "big")
        + timestamp.to_bytes(8, "big")
    )
    aes = AES.new(keys[f"{sender.name[0]}-KEY"], AES.MODE_GCM, nonce_of(keys, sender, number))
    aes.update(header)
    return header + b"".join(aes.encrypt_and_digest(body))


def introduce(
    who: Identity,
    kind: Kind = Kind.HELLO,
    *,
    answers: bytes = b"",
    share: bytes = b"\x09" + bytes(31),
    version: int = 1,
    at_s: float = NOW,
    pem: bytes | None = None,
    context: str = "",
    key: PrivateKey | None = None,
) -> bytes:
    """Return a HELLO, or a REPLY that answers `answers`, as `who` (or a forger) could make it."""
    digest = sha256(answers) if kind is Kind.REPLY else b""
    pem = who.public_pem.encode() if pem is None else pem
    unsigned = bytes([kind, version]) + int(at_s * 1_000).to_bytes(8, "big") + digest + share + pem
    return unsigned + sign(key or who.private_key, context or f"{NAME} {kind.name}", unsigned)


# Two nodes ----------------------------------------------------------------------------------------


class Link:
    """Two nodes, and wires between them that lose, hold or shuffle what a test says.

    Nodes are numbered, 0 and 1. `wires[n]` is what is on its way to node n, `sent` all that was
    ever sent, `told[n]` what node n has told. `lost` counts, by sender and kind, how many of the
    next messages get lost; `skew` is how far each clock is off, `ticking` whose timers go.
    """

    def __init__(
        self, one: Identity, two: Identity, limits: Limits | None = None, *, first_use: bool = False
    ) -> None:
        self.people = (one, two)
        self.limits = limits or Limits()
        self.time = Clock(0.0)
        self.skew = [0.0, 0.0]
        self.ticking = [0, 1]
        self.trusts = [
            Trust("the peer", "" if first_use else peer.fingerprint) for peer in (two, one)
        ]
        self.wires: list[deque[bytes]] = [deque(), deque()]
        self.told: list[list[Event]] = [[], []]
        self.texts: list[list[tuple[str, bytes, str]]] = [[], []]  # sent or text, session, text
        self.sent: list[tuple[int, bytes]] = []
        self.lost: Counter[tuple[int, Kind]] = Counter()
        self.peers = [self._peer(0), self._peer(1)]

    def _peer(self, n: int) -> Peer:
        def tell(event: Event) -> None:
            self.told[n].append(event)
            if event.what in ("sent", "text"):
                session = self.peers[n].session
                assert session is not None, "texts belong to the session that is open"
                self.texts[n].append((event.what, session.session_id, event.text))

        return Peer(
            self.people[n],
            self.trusts[n],
            self.limits,
            tell=tell,
            clock=lambda: NOW + self.time.now + self.skew[n],
            timer=self.time,
        )

    def restart(self, n: int) -> None:
        """Begin node n again; it knows its key and its peer's, and nothing else."""
        self.peers[n] = self._peer(n)
        self.wires[n].clear()

    def jump(self, now: float) -> None:
        """Let it be so late, and neither has been silent."""
        self.time.now = now
        for peer in self.peers:
            peer._heard = now

    def put(self, sender: int, messages: Iterable[bytes]) -> None:
        """Send messages, unless they get lost."""
        for message in messages:
            self.sent.append((sender, message))
            if self.lost[sender, Kind(message[0])] > 0:
                self.lost[sender, Kind(message[0])] -= 1
            else:
                self.wires[1 - sender].append(message)

    def say(self, n: int, text: str) -> None:
        self.put(n, self.peers[n].say(text))

    def tick(self, n: int) -> None:
        self.put(n, self.peers[n].tick())

    def deliver(self, n: int, message: bytes | None = None) -> None:
        """Let node n take this message, or the next on its wire."""
        self.put(n, self.peers[n].receive(self.wires[n].popleft() if message is None else message))

    def carry(self) -> None:
        """Deliver all, until nothing is on its way."""
        for _ in range(1_000):
            for n in (0, 1):
                if self.wires[n]:
                    self.deliver(n)
            if not any(self.wires):
                return
        pytest.fail("they never stop answering each other")

    def carry_until(self, sender: int, kind: Kind) -> None:
        """Deliver until this message of `sender` is the next to be taken by the other."""
        for _ in range(1_000):
            if self.wires[1 - sender] and self.wires[1 - sender][0][0] == kind:
                return
            for n in (0, 1):
                if self.wires[n] and not (n != sender and self.wires[n][0][0] == kind):
                    self.deliver(n)
        pytest.fail(f"there is no {kind.name}")

    def wait(
        self, seconds: float, step_s: float = 0.25, each: Callable[[], object] = lambda: None
    ) -> None:
        """Let time pass, and deliver what is sent meanwhile."""
        until = self.time.now + seconds
        while self.time.now < until - 1e-9:
            self.time.now += step_s
            for n in self.ticking:
                self.tick(n)
            self.carry()
            each()

    def meet(self) -> Link:
        """Let node 0 begin, and both be in one session."""
        self.tick(0)
        self.carry()
        assert self.is_one_session()
        return self

    def open_session(self, n: int) -> Session:
        session = self.peers[n].session
        assert session is not None
        return session

    def is_one_session(self) -> bool:
        """Tell whether both are in the same session, with the same keys."""
        one, two = (peer.session for peer in self.peers)
        return one is not None and two is not None and one._keys == two._keys != {}

    def events(self, n: int, what: str) -> list[Event]:
        return [event for event in self.told[n] if event.what == what]

    def errors(self, n: int, what: str = "refused") -> list[type[ProtocolError]]:
        return [type(event.error) for event in self.events(n, what) if event.error]

    def kinds(self, n: int) -> list[Kind]:
        """Return what is on its way to node n."""
        return [Kind(message[0]) for message in self.wires[n]]

    def texts_of(self, n: int, what: str = "text") -> list[str]:
        return [event.text for event in self.events(n, what)]


# A stranger on a plain socket ---------------------------------------------------------------------

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\0" + b"NULL".ljust(20, b"\0") + bytes(32)  # ZMTP 3.0
ONE_PART = b"\0\0"  # a message that is empty
ANOTHER_PART = b"\1\0"  # an empty part, after which there is another


def greet(sock: socket.socket, kind: bytes) -> None:
    """Introduce a connected socket as a PUSH or PULL of ZeroMQ (RFC 23).

    Until libzmq has sent its own READY, it takes a message for a violation.
    """
    ready = b"\x05READY\x0bSocket-Type" + bytes([0, 0, 0, len(kind)]) + kind
    sock.settimeout(20.0)
    sock.sendall(GREETING + bytes([4, len(ready)]) + ready)
    read_exactly(sock.recv, len(GREETING), mid_frame=True)
    _, length = read_exactly(sock.recv, 2, mid_frame=True)
    read_exactly(sock.recv, length, mid_frame=True)


def wait_for_hello(sock: socket.socket) -> None:
    """Read from a node's outbox until a HELLO has begun: the length of its frame."""
    received = b""
    while HELLO_BYTES.to_bytes(8, "big") not in received:
        piece = sock.recv(4_096)
        assert piece, "the node has closed the connection"
        received += piece


def flood(sock: socket.socket, message: bytes, most_bytes: int, seconds: float) -> Iterator[int]:
    """Send a message again and again while it is taken; yield how many bytes were so far."""
    data = message * (most_bytes // len(message))
    sent = 0
    deadline = time.monotonic() + seconds
    sock.settimeout(0.1)
    while sent < len(data) and time.monotonic() < deadline:
        with contextlib.suppress(TimeoutError):
            sent += sock.send(data[sent : sent + 100_000])
        yield sent


def reset(sock: socket.socket) -> None:
    """Close a connection in the rudest way of TCP, without a FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
