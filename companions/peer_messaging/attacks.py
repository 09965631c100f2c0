"""The adversary of two nodes: on the wire between them, in front of their inboxes, with their keys.

Everything is real: ZeroMQ, sockets, nodes, RSA keys. The verdicts and the event log are those of
the core's attacks.py; there the two ends are a client and a server, here these are alice and bob.
The adversary binds where each believes the other's inbox to be, and delivers what an attack yields.
An attack from outside has the lab: recordings, and inboxes into which anybody can drop a message.

    python -m companions.peer_messaging.attacks
    python -m companions.peer_messaging.attacks --without replay replay-text
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import zmq
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from attacks import Attack, CutHere, Frame, Frames, Log, flipped, xored
from companions.adversary import Catalogue, Program, attacked, run
from companions.asymmetric import SHARE_BYTES, new_identity
from companions.peer_messaging.identity import Identity, IdentityChanged, Trust
from companions.peer_messaging.node import Node
from companions.peer_messaging.peer import Event, Limits, Peer
from companions.peer_messaging.protocol import (
    CLEAR,
    DIGEST_BYTES,
    HEADER,
    NUMBER,
    BadSignature,
    Header,
    Kind,
    MessageLost,
    PeerAway,
    PeerLeft,
    Reason,
    Replayed,
    Role,
    Session,
    State,
    UnexpectedKind,
    Untimely,
    WrongAnswer,
    WrongSession,
    keys_of,
)
from companions.peer_messaging.wire import kind_name
from endpoint import HOST
from program import UserError, run_program
from protocol_fsm import BadPayload, BadTag, LocalError, WrongDirection, WrongPeer

ENDS = {"client": "alice", "server": "bob"}
OTHER = {"client": "server", "server": "client"}
FIRST = "we meet at nine o'clock"
SECOND = "the door code is 4 7 1 1"
ANSWER = "I shall be there"
LIMITS = Limits(ping_s=0.3, away_s=0.9, hello_s=0.1, handshake_s=0.5)
PATIENCE_S = 1.0  # for what should come at once
QUIET_S = 0.4  # after which nothing more will come

# The wire -----------------------------------------------------------------------------------------


class Wire:
    """Stands between two nodes, and delivers what `tap` yields of what they send, only that."""

    def __init__(self, tap: Callable[[Frames], Frames]) -> None:
        self._tap = tap
        self._closing = threading.Event()
        self._context = zmq.Context()
        self._from = {to: self._context.socket(zmq.PULL) for to in ENDS}
        self._into = {to: self._context.socket(zmq.PUSH) for to in ENDS}
        self.port = {
            to: sock.bind_to_random_port("tcp://127.0.0.1") for to, sock in self._from.items()
        }
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self, inboxes: dict[str, tuple[str, int]]) -> None:
        """Deliver to these from now on."""
        for to, (host, port) in inboxes.items():
            self._into[to].connect(f"tcp://{host}:{port}")
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        self._context.destroy(250)

    def _run(self) -> None:
        for frame in self._tap(self._frames()):
            with suppress(zmq.Again):
                self._into[frame.to].send(frame.message, zmq.DONTWAIT)

    def _frames(self) -> Frames:
        poller = zmq.Poller()
        for sock in self._from.values():
            poller.register(sock, zmq.POLLIN)
        while not self._closing.is_set():
            ready = dict(poller.poll(20))
            for to, sock in self._from.items():
                if sock in ready:
                    yield Frame(to, sock.recv())


# The victims, and what is seen of them ------------------------------------------------------------


def both() -> dict[str, list[Any]]:
    return {"client": [], "server": []}


@dataclass
class Outcome:
    """What became of the victims."""

    said: dict[str, list[str]] = field(default_factory=both)
    heard: dict[str, list[str]] = field(default_factory=both)
    confirmed: dict[str, list[int]] = field(default_factory=both)  # as the sender believes
    errors: dict[str, list[Exception]] = field(default_factory=both)  # refused, and ended by
    ended: dict[str, list[Exception]] = field(default_factory=both)  # sessions, by which error
    met: dict[str, list[str]] = field(default_factory=both)  # whom each took for its peer
    learned: str = ""  # by the adversary
    is_over: bool = False  # from now on a GOODBYE is the lab's, and nobody else's


# Goals: what the adversary has won, in words; empty if nothing
def learned(outcome: Outcome) -> str:
    return outcome.learned


def forged(outcome: Outcome) -> str:
    """Say what an end believes that its peer never said, or not so often, or not in this order."""
    for end, name in ENDS.items():
        said = iter(outcome.said[OTHER[end]])
        if not all(text in said for text in outcome.heard[end]):
            return f"{name} hears what was not said, or not like that"
    for end, name in ENDS.items():
        if len(outcome.confirmed[end]) > len(outcome.heard[OTHER[end]]):
            return f"{name} believes that a text has arrived"
    return learned(outcome)


def skipped(outcome: Outcome) -> str:
    """Say if the second text was heard without the first."""
    heard = outcome.heard["server"]
    return (
        "bob hears SECOND, and never FIRST"
        if SECOND in heard and FIRST not in heard
        else forged(outcome)
    )


def touched(outcome: Outcome) -> str:
    """Say if the first text was heard, though it was touched."""
    return "FIRST is heard all the same" if FIRST in outcome.heard["server"] else forged(outcome)


def disturbed(outcome: Outcome) -> str:
    """Say if a session ended, though everything that the two said was delivered."""
    return "bob gives up his session with alice" if outcome.ended["server"] else learned(outcome)


def deserted(outcome: Outcome) -> str:
    """Say if an end does not notice that nothing comes any more."""
    return "" if outcome.ended["client"] else "alice believes that bob is there"


def unnoticed(outcome: Outcome) -> str:
    """Say if the first receipt never came, the second did, and alice's session goes on."""
    confirmed = outcome.confirmed["client"]
    return "alice misses nothing" if 2 in confirmed and 1 not in confirmed else forged(outcome)


def alone(outcome: Outcome) -> str:
    """Say if alice takes herself for bob."""
    return "alice talks to herself" if outcome.met["client"] else ""


# The lab ------------------------------------------------------------------------------------------


class Parts(NamedTuple):
    """What the lab is built from: the real parts, or weakened ones from weakened.py."""

    session: Callable[..., Session] = Session
    trust: Callable[..., Trust] = Trust
    peer: Callable[..., Peer] = Peer
    node: Callable[..., Node] = Node


@functools.cache
def people() -> dict[str, Identity]:
    """Return keys for this process: making them takes longer than an attack."""
    return {name: Identity(new_identity()) for name in ("alice", "bob", "carol", "dave", "mallory")}


class Lab:
    """Two victims who know each other's keys, two others who are left alone, and a recording."""

    is_foreign = False

    def __init__(self, log: Log, parts: Parts | None = None, watch: Any = None) -> None:
        self.outcome = Outcome()
        self.attack = ""
        self.people = people()
        self.parts = parts or Parts()
        self.is_weakened = bool(parts)
        self._log = log
        self._watch = watch
        self._changed = threading.Condition()
        self.offset_s = 0.0  # of the victims' clocks
        self.rounds = 0
        self._told = 0  # texts that the bystanders have said, and heard
        self.sessions: list[Session] = []  # of the victims, as they were made
        self.nodes: dict[str, Node] = {}  # of the victims
        self.tape: list[Frame] = []  # of an honest session
        self.thieves: list[Session] = []  # what was alice's and bob's in the recording

    def __enter__(self) -> Lab:
        with contextlib.ExitStack() as stack:
            self.tape = self.honest_session()
            self.thieves = [session for session in self.sessions if session.session_id]
            bystanders = stack.enter_context(
                self._pair(
                    lambda frames: frames,
                    {"client": "carol", "server": "dave"},
                    self._hear_bystander,
                )
            )
            self._carol = bystanders["client"]
            self._close = stack.pop_all().close
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def log(self, event: str, frame: Frame) -> None:
        self._log(event, frame)

    # Nodes

    @contextlib.contextmanager
    def _pair(
        self,
        tap: Callable[[Frames], Frames],
        names: dict[str, str],
        tell: Callable[[str, Event], object],
        is_known: bool = True,
    ) -> Iterator[dict[str, Node]]:
        """Give two nodes with a wire between them. The first begins, the second answers."""
        wire = Wire(tap)
        nodes = {
            end: self._node(end, name, names[OTHER[end]], wire, partial(tell, end), is_known)
            for end, name in names.items()
        }
        wire.start({end: node.address for end, node in nodes.items()})
        with contextlib.ExitStack() as stack:
            stack.callback(wire.close)
            for node in nodes.values():
                stack.enter_context(node)
            yield nodes

    def _node(
        self,
        end: str,
        name: str,
        peer: str,
        wire: Wire,
        tell: Callable[[Event], object],
        is_known: bool,
    ) -> Node:
        def new_peer(*arguments: Any, **options: Any) -> Peer:
            made = self.parts.peer(*arguments, **options)
            if end == "server":  # so that it is always the same one who begins
                made._next_hello = math.inf
            return made

        def new_session(*arguments: Any, **options: Any) -> Session:
            session = self.parts.session(*arguments, **options)
            if name in ENDS.values():
                self.sessions.append(session)
                if self._watch and self.attack:
                    self._watch.noting(session, end, PeerLeft)
            return session

        pinned = self.people[peer].fingerprint if is_known else ""
        return self.parts.node(
            self.people[name],
            self.parts.trust(peer, pinned),
            (HOST, wire.port[OTHER[end]]),
            limits=LIMITS,
            tell=tell,
            new_peer=new_peer,
            new_session=new_session,
            clock=lambda: time.time() + self.offset_s,
        )

    def inject(self, to: str, *messages: bytes) -> None:
        """Drop messages into an inbox, as anybody can who reaches its port."""
        with zmq.Context() as context, context.socket(zmq.PUSH) as outbox:
            outbox.linger = 1_000
            outbox.connect("tcp://{}:{}".format(*self.nodes[to].address))
            for message in messages:
                self.log("inserted", Frame(to, message))
                outbox.send(message)

    # What is seen

    def _hear(self, end: str, event: Event) -> None:
        outcome = self.outcome
        with self._changed:
            if event.what == "text":
                outcome.heard[end].append(event.text)
            elif event.what == "receipt":
                outcome.confirmed[end].append(event.number)
            elif event.what == "met":
                outcome.met[end].append(event.text)
            is_goodbye = isinstance(event.error, PeerLeft) and event.error.reason is Reason.GOODBYE
            if event.error and not (outcome.is_over and is_goodbye):
                outcome.errors[end].append(event.error)
                outcome.ended[end] += [event.error] if event.what == "ended" else []
            self._changed.notify_all()

    def _hear_bystander(self, end: str, event: Event) -> None:
        with self._changed:
            self._told += event.what == "text"
            self._changed.notify_all()

    def wait(self, is_so: Callable[[], bool], seconds: float = PATIENCE_S) -> bool:
        """Wait until something is so, but not longer."""
        with self._changed:
            return self._changed.wait_for(is_so, seconds)

    def bystanders_go_on(self) -> bool:
        """Tell whether a text of the bystanders still arrives."""
        self._carol.say(f"all is well, {self.rounds}")
        self.rounds += 1
        return self.wait(lambda: self._told == self.rounds, 2.0)

    # What the victims live

    def honest_session(self) -> list[Frame]:
        """Let the victims live a session in peace, and return its recording. UserError."""
        tape: list[Frame] = []

        def listen(frames: Frames) -> Frames:
            for frame in frames:
                tape.append(frame)
                yield frame

        self.outcome = Outcome()
        self.sessions = []
        self.offset_s = 0.0
        with self._pair(listen, ENDS, self._hear) as self.nodes:
            self._converse(lambda: None, lambda: sum(map(len, self.outcome.confirmed.values())) > 2)
        if self.outcome.heard != {"client": [ANSWER], "server": [FIRST, SECOND]}:
            errors = [*self.outcome.errors["client"], *self.outcome.errors["server"], "silence"]
            raise UserError(f"no honest session: {errors[0]}")
        return tape

    def _converse(self, in_the_middle: Callable[[], object], is_over: Callable[[], bool]) -> None:
        """Let alice say two things, and bob answer. Where something went wrong, nobody waits."""
        outcome = self.outcome
        alice = self.nodes["client"]
        bob = self.nodes["server"]

        def wait(is_so: Callable[[], object]) -> None:
            self.wait(lambda: bool(is_so() or any(outcome.errors.values()) or outcome.learned))

        wait(lambda: outcome.met["server"] and outcome.met["client"])
        self._say(alice, "client", FIRST)
        in_the_middle()
        self._say(alice, "client", SECOND)
        wait(lambda: SECOND in outcome.heard["server"])
        self._say(bob, "server", ANSWER)
        wait(lambda: ANSWER in outcome.heard["client"])
        deadline = time.monotonic() + PATIENCE_S
        with self._changed:
            while not is_over() and time.monotonic() < deadline and self._changed.wait(QUIET_S):
                pass
            outcome.is_over = True

    def _say(self, node: Node, end: str, text: str) -> None:
        self.outcome.said[end].append(text)
        node.say(text)

    def suffer(self, attack: Attack) -> Outcome:
        """Let the victims live a session under attack, and return what became of it."""
        self.outcome = Outcome()
        self.attack = attack.name
        self.sessions = []
        self.offset_s = 0.0
        tap = partial(attacked, attack, lab=self) if attack.is_on_path else iter
        is_known = attack.claim != "first contact"
        with (
            suppress(LocalError),
            self._pair(tap, ENDS, self._hear, is_known) as self.nodes,
        ):  # if a node dies
            self._converse(
                partial(self._outside, attack) if not attack.is_on_path else int,
                partial(self._is_decided, attack),
            )
        return self.outcome

    def _is_decided(self, attack: Attack) -> bool:
        """Tell whether the attack has met what it must, or has won; else there is more to wait."""
        met = {type(error) for error in self.outcome.errors.get(attack.who, [])}
        goal: Any = attack.goal
        has_won = goal is not deserted and bool(goal(self.outcome))
        return has_won or attack.error in met or not attack.error

    def _outside(self, attack: Attack) -> None:
        self.wait(lambda: FIRST in self.outcome.heard["server"])
        attack.run(self)


# The catalogue ------------------------------------------------------------------------------------

CATALOGUE = Catalogue(forged)
ATTACKS = CATALOGUE.attacks
attack = CATALOGUE.attack


def up_to(
    frames: Frames, kind: Kind, count: int = 1, to: str = "server"
) -> Generator[Frame, None, Frame]:
    """Deliver all before the first (second, ...) message of a kind, and return that. CutHere."""
    for frame in frames:
        count -= frame.to == to and frame.message[0] == kind
        if not count:
            return frame
        yield frame
    raise CutHere


def change(
    claim: str,
    who: str,
    error: type[Exception],
    name: str,
    story: str,
    how: Callable[[Frame, Lab], Frame | None],
    at: Kind,
    count: int = 1,
    **options: Any,
) -> None:
    """Register an attack on one message to bob: what `how` returns takes its place."""
    CATALOGUE.change(
        claim, who, error, name, story, how, lambda frames: up_to(frames, at, count), **options
    )


def edited(message: bytes, **fields: Any) -> bytes:
    """Rewrite header fields of a record."""
    header = Header(*HEADER.unpack_from(message))._replace(**fields)
    return HEADER.pack(*header) + message[HEADER.size :]


def taped(lab: Lab, kind: Kind, to: str = "server") -> bytes:
    """Return a message from the recording."""
    return next(frame.message for frame in lab.tape if frame.to == to and frame.message[0] == kind)


# Texts on their way


@attack("secrecy", "", None, goal=learned)
def eavesdrop(frames: Frames, lab: Lab) -> Frames:
    """Texts are searched, and compared with a known one."""
    stream = b""
    for frame in frames:
        sealed = frame.message[HEADER.size :]
        if SECOND.encode() in sealed:
            lab.outcome.learned = f"the text: {SECOND}"
        if frame.message[0] == Kind.TEXT and frame.to == "server":
            guess = xored(stream, sealed)[: len(FIRST)]
            if guess and guess == SECOND.encode()[: len(guess)]:
                lab.outcome.learned = f"from one text the next: {guess.decode()}"
            stream = stream or xored(sealed, FIRST.encode())
        yield frame


change(
    "integrity",
    "server",
    BadTag,
    "flip-text",
    "One bit flips, to make nine o'clock mine.",
    lambda text, lab: flipped(text, HEADER.size + FIRST.index("nine"), ord("n") ^ ord("m")),
    Kind.TEXT,
)
change(
    "integrity",
    "server",
    BadTag,
    "flip-tag",
    "One bit of a tag flips.",
    lambda text, lab: flipped(text, -1),
    Kind.TEXT,
    goal=touched,
)
change(
    "integrity",
    "server",
    BadTag,
    "truncate",
    "A text loses its last 16 bytes.",
    lambda text, lab: text._replace(message=text.message[:-16]),
    Kind.TEXT,
)
change(
    "freshness",
    "server",
    BadTag,
    "edit-time",
    "A text's timestamp is moved by a second.",
    lambda text, lab: text._replace(
        message=edited(
            text.message, timestamp=Header(*HEADER.unpack_from(text.message)).timestamp + 1_000
        )
    ),
    Kind.TEXT,
    goal=touched,
)


@attack("freshness", "server", Replayed)
def replay_text(frames: Frames, lab: Lab) -> Frames:
    """A text is delivered twice."""
    text = yield from up_to(frames, Kind.TEXT)
    yield from (text, text)


@attack("freshness", "server", BadTag)
def replay_rewritten(frames: Frames, lab: Lab) -> Frames:
    """A text is delivered again, as the next one."""
    text = yield from up_to(frames, Kind.TEXT)
    yield text
    number = Header(*HEADER.unpack_from(text.message)).sequence
    yield text._replace(message=edited(text.message, sequence=number + 1))


@attack("freshness", "server", Untimely, goal=touched)
def hold(frames: Frames, lab: Lab) -> Frames:
    """All that alice says is held back for a minute."""
    text = yield from up_to(frames, Kind.TEXT)
    lab.offset_s = 60.0
    yield text


@attack("order", "server", MessageLost, goal=skipped)
def drop_text(frames: Frames, lab: Lab) -> Frames:
    """The first text is dropped."""
    yield from up_to(frames, Kind.TEXT)


@attack("order", "server", MessageLost, goal=skipped)
def swap_texts(frames: Frames, lab: Lab) -> Frames:
    """The second text is delivered before the first."""
    first = yield from up_to(frames, Kind.TEXT)
    second = yield from up_to(frames, Kind.TEXT)
    yield from (second, first)


@attack("order", "client", MessageLost, goal=unnoticed)
def drop_receipt(frames: Frames, lab: Lab) -> Frames:
    """The receipt of the first text is dropped."""
    yield from up_to(frames, Kind.RECEIPT, to="client")


@attack("reflection", "client", WrongDirection)
def reflect(frames: Frames, lab: Lab) -> Frames:
    """Alice's first text comes back to her."""
    text = yield from up_to(frames, Kind.TEXT)
    yield from (text, Frame("client", text.message))


@attack("reflection", "client", BadTag)
def reflect_rewritten(frames: Frames, lab: Lab) -> Frames:
    """Alice's first text comes back to her, as bob's."""
    text = yield from up_to(frames, Kind.TEXT)
    yield from (text, Frame("client", edited(text.message, sender=Role.RESPONDER)))


@attack("reflection", "client", WrongPeer)
def reflect_hello(frames: Frames, lab: Lab) -> Frames:
    """Alice's HELLO comes back to her."""
    hello = yield from up_to(frames, Kind.HELLO)
    yield Frame("client", hello.message)
    yield hello


@attack("first contact", "client", WrongPeer, goal=alone)
def mirror(frames: Frames, lab: Lab) -> Frames:
    """All that alice says comes back to her."""
    for frame in frames:
        if frame.to == "server":
            yield Frame("client", frame.message)


@attack("sessions", "server", WrongSession)
def splice(frames: Frames, lab: Lab) -> Frames:
    """A recorded text takes the place of one."""
    yield from up_to(frames, Kind.TEXT)
    yield Frame("server", taped(lab, Kind.TEXT))


@attack("sessions", "server", BadTag)
def splice_rewritten(frames: Frames, lab: Lab) -> Frames:
    """The same, with the id of this session."""
    text = yield from up_to(frames, Kind.TEXT)
    session = Header(*HEADER.unpack_from(text.message)).session
    yield Frame("server", edited(taped(lab, Kind.TEXT), session=session))


# Handshakes


@attack("sessions", "server", WrongSession)
def replay_session(lab: Lab) -> None:
    """A whole recorded session is replayed."""
    lab.inject("server", *(frame.message for frame in lab.tape if frame.to == "server"))
    lab.wait(lambda: len(lab.outcome.errors["server"]) > 1)


def hello_again(frames: Frames) -> Frames:
    """Deliver alice's HELLO once more, in the session that it began."""
    hello = yield from up_to(frames, Kind.HELLO)
    yield hello
    text = yield from up_to(frames, Kind.TEXT)
    yield from (text, hello)


@attack("sessions", "server", Replayed, goal=disturbed)
def replay_hello(frames: Frames, lab: Lab) -> Frames:
    """Alice's HELLO comes again, to end her session."""
    yield from hello_again(frames)


@attack("sessions", "server", Replayed, goal=learned)
def provoke(frames: Frames, lab: Lab) -> Frames:
    """Alice's HELLO comes again, to be answered again."""
    yield from hello_again(frames)
    for frame in frames:
        if frame.to == "client" and frame.message[0] == Kind.REPLY:
            lab.outcome.learned = "bob answers it again"
        yield frame


@attack("sessions", "server", Untimely, goal=learned)
def old_hello(lab: Lab) -> None:
    """A HELLO of alice's comes a minute late."""
    hello = lab.parts.session(lab.people["alice"], Trust("bob"), Role.INITIATOR).seal(Kind.HELLO)
    lab.offset_s = 60.0
    sessions = len(lab.sessions)
    lab.inject("server", hello)
    if lab.wait(lambda: any(s.state is State.CONFIRM for s in lab.sessions[sessions:]), 0.2):
        lab.outcome.learned = "bob answers it"


@attack("sessions", "client", WrongAnswer)
def recorded_reply(frames: Frames, lab: Lab) -> Frames:
    """A recording plays bob."""
    replies = iter([frame for frame in lab.tape if frame.to == "client"])
    for frame in frames:
        if frame.to == "server":
            yield next(replies, Frame("client", frame.message))


# Somebody else


def posing(lab: Lab, identity: Identity) -> Peer:
    """Return a peer of the adversary's, who tells her what she is told."""

    def tell(event: Event) -> None:
        if event.what == "text":
            lab.outcome.learned = lab.outcome.learned or f"mallory is told: {event.text}"

    return lab.parts.peer(
        identity, Trust("whoever comes"), LIMITS, tell=tell, new_session=lab.parts.session
    )


def answered_by(mallory: Peer, frames: Frames) -> Frames:
    """Give all that alice says to mallory, and alice what she answers."""
    for frame in frames:
        if frame.to == "server":
            for message in mallory.receive(frame.message):
                yield Frame("client", message)


@attack("identity", "client", IdentityChanged, goal=learned)
def other_key(frames: Frames, lab: Lab) -> Frames:
    """Mallory answers as bob, with a key of her own."""
    yield from answered_by(posing(lab, lab.people["mallory"]), frames)


@attack("identity", "client", BadSignature, goal=learned)
def borrowed_key(frames: Frames, lab: Lab) -> Frames:
    """Mallory answers as bob, with his public key."""
    mallory = Identity(lab.people["mallory"].private_key)
    mallory.public_pem = lab.people["bob"].public_pem
    yield from answered_by(posing(lab, mallory), frames)


@attack("first contact", "", None, goal=learned, noticed="who compares fingerprints")
def first_contact(frames: Frames, lab: Lab) -> Frames:
    """Mallory answers first, at the first contact."""
    yield from answered_by(posing(lab, lab.people["mallory"]), frames)


# Peers who behave badly: they have the keys


def misbehave(lab: Lab, kind: Kind, body: bytes, what: str) -> None:
    """Let alice say something that she should not, in her session with bob."""
    session = lab.nodes["client"]._peer._session
    sessions = len(lab.outcome.ended["server"])
    if session:
        header = HEADER.pack(
            kind,
            session.session_id,
            session.role,
            session._sequence[session.role],
            session._now_ms(),
        )
        lab.inject(
            "server", header + session._encrypt(body, header, session._sequence[session.role])
        )
    if not lab.wait(lambda: len(lab.outcome.ended["server"]) > sessions):
        failure = lab.nodes["server"]._failure
        lab.outcome.learned = f"bob's node dies: {failure}" if failure else what


@attack("peers", "server", BadPayload)
def false_receipt(lab: Lab) -> None:
    """Alice confirms a text that bob has not sent."""
    misbehave(lab, Kind.RECEIPT, NUMBER.pack(77), "bob takes a receipt for nothing")


@attack("peers", "server", BadPayload)
def broken_text(lab: Lab) -> None:
    """Alice sends a text that is no UTF-8."""
    misbehave(lab, Kind.TEXT, b"\xff\xfe", "bob takes what is no text")


@attack("peers", "server", UnexpectedKind)
def second_confirm(lab: Lab) -> None:
    """Alice confirms a session that is open."""
    misbehave(lab, Kind.CONFIRM, b"", "bob takes a second CONFIRM")


# In front of the inbox


@attack("availability", "server", BadTag, goal=disturbed)
def junk(lab: Lab) -> None:
    """Anybody fills bob's inbox with junk."""
    session = next(s for s in lab.sessions if s.session_id)
    for kind in Kind:
        header = Header(kind, session.session_id, Role.INITIATOR, 50, int(1_000 * time.time()))
        lab.inject(
            "server",
            HEADER.pack(*header) + secrets.token_bytes(40),
            b"",
            bytes([kind]),
            bytes([kind]) + secrets.token_bytes(748),
        )
    lab.wait(lambda: len(lab.outcome.errors["server"]) > 25)


@attack("availability", "server", BadTag, goal=disturbed)
def forged_bye(lab: Lab) -> None:
    """Anybody says BYE in alice's name."""
    session = next(s for s in lab.sessions if s.session_id)
    number = session._sequence[Role.INITIATOR]
    header = Header(Kind.BYE, session.session_id, Role.INITIATOR, number, int(1_000 * time.time()))
    lab.inject("server", HEADER.pack(*header) + bytes(17))
    lab.wait(lambda: bool(lab.outcome.errors["server"]))


@attack("availability", "client", PeerAway, goal=deserted)
def cut_off(frames: Frames, lab: Lab) -> Frames:
    """After the first text nothing is delivered any more."""
    yield from up_to(frames, Kind.TEXT)
    for _ in frames:
        if lab.outcome.ended["client"]:
            return


# Theft


def readable(message: bytes, keys: dict[str, bytes]) -> str:
    """Return a text of the initiator's, nothing if these keys do not fit."""
    with suppress(KeyError):  # of keys that are forgotten
        header = Header(*HEADER.unpack_from(message))
        iv = int.from_bytes(keys["I-IV"], "big")
        for nonce in (iv ^ header.sequence, iv):
            with suppress(InvalidTag):
                return (
                    AESGCM(keys["I-KEY"])
                    .decrypt(
                        nonce.to_bytes(12, "big"), message[HEADER.size :], message[: HEADER.size]
                    )
                    .decode()
                )
    return ""


@attack("theft", "", None, goal=learned)
def stolen_identities(lab: Lab) -> None:
    """Both identities are stolen, for an old recording."""
    hello = taped(lab, Kind.HELLO)
    reply = taped(lab, Kind.REPLY, "client")
    thief = lab.parts.session(lab.people["alice"], Trust("bob"), Role.INITIATOR)
    if thief._offer() in hello:  # what she offered can be made again
        share = reply[CLEAR.size + DIGEST_BYTES :][:SHARE_BYTES]
        keys = keys_of(hashlib.sha256(hello + reply).digest(), thief._agree(share))
        lab.outcome.learned = f"the recorded text: {readable(taped(lab, Kind.TEXT), keys)}"


@attack("theft", "", None, goal=learned)
def stolen_memory(lab: Lab) -> None:
    """What a node remembers is stolen, after the session."""
    for session in lab.thieves:
        if text := readable(taped(lab, Kind.TEXT), session._keys):
            lab.outcome.learned = f"the recorded text: {text}"


@attack("theft", "", None, goal=learned, noticed="nothing; the next handshake makes them worthless")
def stolen_session_keys(frames: Frames, lab: Lab) -> Frames:
    """A session's keys are stolen in the middle of it."""
    keys: dict[str, bytes] = {}
    is_open: list[str] = []
    for frame in frames:
        if frame.to == "server" and frame.message[0] == Kind.TEXT:
            session = lab.nodes["client"]._peer._session
            keys = keys or dict(session._keys if session else {})
            is_open.append("open" if readable(frame.message, keys) else "closed")
        yield frame
        lab.outcome.learned = f"texts: {', '.join(is_open)}"


@attack("theft", "", None, noticed="alice, who is cut off")
def stolen_identity(frames: Frames, lab: Lab) -> Frames:
    """Alice's private key is stolen, and used on the wire."""
    mallory = posing(lab, lab.people["alice"])
    mallory.say("the door code has changed")
    for message in mallory.tick():
        yield Frame("server", message)
    for frame in frames:
        if frame.to == "client":
            for message in mallory.receive(frame.message):
                yield Frame("server", message)


def main() -> int:
    def parts(names: Sequence[str]) -> Parts:
        from companions.peer_messaging.weakened import without  # loaded when it is asked for

        return Parts(*without(names))

    return run(
        Program(
            "Attacks two nodes of its own, on loopback.",
            ATTACKS,
            Lab,
            parts,
            kind_name,
            "making keys for five people ...",
        )
    )


if __name__ == "__main__":
    run_program(main)
