"""The stage of this companion: two victims, a wire between them, two bystanders, a recording.

All of it is real: ZeroMQ, sockets, nodes, RSA keys. The client of the core's lab is alice here, who
begins the handshake, and its server is bob. The stage says what became of their session, and
nothing of how an attack works.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import zmq

from companions.asymmetric import new_identity
from companions.peer_messaging.identity import Identity, Trust
from companions.peer_messaging.node import Node
from companions.peer_messaging.peer import Event, Limits, Peer
from companions.peer_messaging.protocol import PeerLeft, Reason, Session
from endpoint import HOST
from lab.catalogue import Attack, Stage, attacked, run_outside
from lab.frames import OTHER_END, Frame, Frames, Log, Tap, recorder
from lab.observer import Observer
from program import UserError
from protocol_fsm import LocalError, ProtocolError

VICTIMS = {"client": "alice", "server": "bob"}
BYSTANDERS = {"client": "carol", "server": "dave"}
MALLORY = "mallory"
FIRST = "we meet at nine o'clock"
SECOND = "the door code is 4 7 1 1"
ANSWER = "I shall be there"
LIMITS = Limits(ping_s=0.3, away_s=0.9, hello_s=0.1, handshake_s=0.5)
PATIENCE_S = 1.0  # for what should come at once
WIRE_S = 5.0  # for an attack to come to its end
BYSTANDER_S = 2.0  # for a text of a bystander


def both() -> dict[str, list[Any]]:
    """Return an empty list for each end."""
    return {"client": [], "server": []}


@dataclass
class Outcome:
    """What became of the victims' session."""

    said: dict[str, list[str]] = field(default_factory=both)
    heard: dict[str, list[str]] = field(default_factory=both)
    confirmed: dict[str, list[int]] = field(default_factory=both)  # as the sender believes
    errors: dict[str, list[Exception]] = field(default_factory=both)  # refused, and ended by
    ended: dict[str, list[Exception]] = field(default_factory=both)  # sessions, by which error
    met: dict[str, list[str]] = field(default_factory=both)  # fingerprints taken for the peer's
    learned: str = ""  # by the adversary
    broken: Exception | None = None  # a mistake in the attack
    is_over: bool = False  # from now on a GOODBYE is the lab's


# Goals: what the adversary has won, in words; empty if nothing


def learned(outcome: Outcome) -> str:
    """Say what the adversary knows now."""
    return outcome.learned


def forged(outcome: Outcome) -> str:
    """Say what an end believes that its peer never said, or not so often, or not in this order."""
    for end, name in VICTIMS.items():
        said = iter(outcome.said[OTHER_END[end]])
        if not all(text in said for text in outcome.heard[end]):
            return f"{name} hears a text that was not sent, or not like that"
    for end, name in VICTIMS.items():
        if len(outcome.confirmed[end]) > len(outcome.heard[OTHER_END[end]]):
            return f"{name} believes that a text has arrived"
    return outcome.learned


def skipped(outcome: Outcome) -> str:
    """Say whether the second text was heard without the first."""
    heard = outcome.heard["server"]
    is_skipped = SECOND in heard and FIRST not in heard
    return "bob hears SECOND, and never FIRST" if is_skipped else forged(outcome)


def touched(outcome: Outcome) -> str:
    """Say whether the first text was heard, though it was touched."""
    return "FIRST is heard all the same" if FIRST in outcome.heard["server"] else forged(outcome)


def disturbed(outcome: Outcome) -> str:
    """Say whether a session ended or stopped, though all that the two said was delivered."""
    if outcome.ended["server"]:
        return "bob gives up his session with alice"
    if outcome.is_over and outcome.heard["server"] != [FIRST, SECOND]:
        return "bob does not hear alice any more"
    return outcome.learned


def deserted(outcome: Outcome) -> str:
    """Say whether alice did not notice, to the end, that nothing came any more."""
    has_noticed = bool(outcome.ended["client"])
    return "alice believes that bob is there" if outcome.is_over and not has_noticed else ""


def unnoticed(outcome: Outcome) -> str:
    """Say whether alice got the second receipt, and goes on without the first."""
    confirmed = outcome.confirmed["client"]
    return "alice misses nothing" if 2 in confirmed and 1 not in confirmed else forged(outcome)


def alone(outcome: Outcome) -> str:
    """Say whether alice takes herself for bob."""
    return "alice talks to herself" if outcome.met["client"] else ""


# The stage


class Wire:
    """Stands between two nodes, and delivers what `tap` yields of what they send, only that."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap
        self._closing = threading.Event()
        self._context = zmq.Context()
        self._from = {to: self._context.socket(zmq.PULL) for to in OTHER_END}
        self._into = {to: self._context.socket(zmq.PUSH) for to in OTHER_END}
        self.address = {
            to: (HOST, sock.bind_to_random_port(f"tcp://{HOST}")) for to, sock in self._from.items()
        }
        self._thread = threading.Thread(target=self._run, daemon=True)

    def connect(self, inboxes: Mapping[str, tuple[str, int]]) -> None:
        """Name the inboxes behind the wire, before it is entered."""
        for to, (host, port) in inboxes.items():
            self._into[to].connect(f"tcp://{host}:{port}")

    def __enter__(self) -> Wire:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.set()
        self._thread.join(WIRE_S)  # an attack that never ends holds nobody up for ever

    def _run(self) -> None:
        """Deliver, then close the sockets: libzmq aborts if another thread closes one in use."""
        try:
            for frame in self._tap(self._frames()):
                with suppress(zmq.Again):
                    self._into[frame.to].send(frame.message, zmq.DONTWAIT)
        finally:
            self._context.destroy(250)

    def _frames(self) -> Frames:
        poller = zmq.Poller()
        for sock in self._from.values():
            poller.register(sock, zmq.POLLIN)
        while not self._closing.is_set():
            ready = dict(poller.poll(20))
            for to, sock in self._from.items():
                if sock in ready:
                    yield Frame(to, sock.recv())


class Parts(NamedTuple):
    """What the lab is built from: the real parts, or weakened ones from weakened.py."""

    session: type[Session] = Session
    trust: type[Trust] = Trust
    peer: type[Peer] = Peer
    node: type[Node] = Node


@functools.cache
def people() -> dict[str, Identity]:
    """Return the keys of this process: making them takes longer than an attack."""
    names = (*VICTIMS.values(), *BYSTANDERS.values(), MALLORY)
    return {name: Identity(new_identity()) for name in names}


class Lab(Stage):
    """The stage of one run: the bystanders' session never ends, the victims have one per attack."""

    def __init__(
        self, log: Log, parts: Parts | None = None, observer: Observer | None = None
    ) -> None:
        self.outcome: Outcome = Outcome()
        self.attack = ""
        self.is_weakened = bool(parts)
        self.parts = parts or Parts()
        self.people = people()
        self.rounds = 0  # that the bystanders have done
        self.nodes: dict[str, Node] = {}  # of the victims
        self.sessions: list[Session] = []  # of the victims, as they were made
        self.offset_s = 0.0  # of the victims' clocks
        self._told = 0  # texts that a bystander has heard
        self._log = log
        self.observer = observer
        self._changed = threading.Condition()

    def __enter__(self) -> Lab:
        self.tape = self.honest_session()
        self.old_sessions = self.sessions  # both ends of the recorded one are among them
        with contextlib.ExitStack() as stack:
            nodes = stack.enter_context(self._pair(iter, BYSTANDERS, self._hear_bystander))
            self._bystander = nodes["client"]
            self._close = stack.pop_all().close
        return self

    def log(self, deed: str, frame: Frame) -> None:
        """Note what happened to a frame between the victims, or of an outsider's."""
        self._log(deed, frame)

    # Those who live on it

    @contextlib.contextmanager
    def _pair(
        self,
        tap: Tap,
        names: Mapping[str, str],
        tell: Callable[[str, Event], object],
        is_known: bool = True,
    ) -> Iterator[dict[str, Node]]:
        """Give two nodes with a wire between them; the client begins, the server answers."""
        wire = Wire(tap)
        nodes = {}
        for end, name in names.items():
            other = OTHER_END[end]
            pinned = self.people[names[other]].fingerprint if is_known else ""
            nodes[end] = self.parts.node(
                self.people[name],
                self.parts.trust(names[other], pinned),
                wire.address[other],
                limits=LIMITS,
                tell=partial(tell, end),
                new_peer=self.parts.peer if end == "client" else self._new_answerer,
                new_session=partial(self._new_session, end, names is VICTIMS),
                clock=lambda: time.time() + self.offset_s,
            )
        wire.connect({end: node.address for end, node in nodes.items()})
        with wire, nodes["client"], nodes["server"]:
            yield nodes

    def _new_answerer(self, *arguments: Any, **options: Any) -> Peer:
        """Return a peer that never begins, so that it is always the other who does."""
        peer = self.parts.peer(*arguments, **options)
        peer._next_hello = math.inf
        return peer

    def _new_session(self, end: str, is_victim: bool, *arguments: Any, **options: Any) -> Session:
        """Return a session of a node; those of the victims are kept, and observed."""
        watchers = self.watchers(end if is_victim else "")
        session = self.parts.session(*arguments, watchers=watchers, **options)
        if is_victim:
            self.sessions.append(session)
        return session

    def alices_session(self) -> Session:
        """Return the session that alice has with bob. Raises LocalError if there is none."""
        session = self.nodes["client"]._peer.session
        if session is None:
            raise LocalError("alice has no session")
        return session

    def inject(self, *messages: Frame | bytes) -> None:
        """Drop messages into bob's inbox, as anybody can who reaches its port."""
        with zmq.Context() as context, context.socket(zmq.PUSH) as outbox:
            outbox.linger = 1_000
            outbox.connect("tcp://{}:{}".format(*self.nodes["server"].address))
            for message in messages:
                frame = message if isinstance(message, Frame) else Frame("server", message)
                self.log("inserted", frame)
                outbox.send(frame.message)

    def _hear(self, end: str, event: Event) -> None:
        outcome = self.outcome
        with self._changed:
            if event.what == "text":
                outcome.heard[end].append(event.text)
            elif event.what == "receipt":
                outcome.confirmed[end].append(event.number)
            elif event.what == "met":
                outcome.met[end].append(event.text)
            elif event.error and not (outcome.is_over and is_goodbye(event.error)):
                outcome.errors[end].append(event.error)
                if event.what == "ended":
                    outcome.ended[end].append(event.error)
            self._changed.notify_all()

    def _hear_bystander(self, end: str, event: Event) -> None:
        with self._changed:
            if event.what == "text":
                self._told += 1
            self._changed.notify_all()

    def wait(self, is_so: Callable[[], bool], seconds: float = PATIENCE_S) -> bool:
        """Wait until something is so, but not longer; return whether it is."""
        with self._changed:
            return self._changed.wait_for(is_so, seconds)

    def bystanders_go_on(self) -> bool:
        """Return whether a text of the bystanders still arrives."""
        self._bystander.say(f"all is well, {self.rounds}")
        self.rounds += 1
        return self.wait(lambda: self._told == self.rounds, BYSTANDER_S)

    def honest_session(self) -> list[Frame]:
        """Let the victims live an undisturbed session, and return its recording. UserError."""
        tape: list[Frame] = []
        outcome = self._begin()
        with self._pair(recorder(tape), VICTIMS, self._hear) as self.nodes:
            self._converse()
            self.wait(lambda: outcome.confirmed == {"client": [1, 2], "server": [1]})
            outcome.is_over = True
        if outcome.heard != {"client": [ANSWER], "server": [FIRST, SECOND]}:
            errors = [*outcome.errors["client"], *outcome.errors["server"], "silence"]
            raise UserError(f"no honest session: {errors[0]}")
        return tape

    def _begin(self) -> Outcome:
        self.outcome = Outcome()
        self.sessions = []
        self.offset_s = 0.0
        return self.outcome

    # An attack

    def has_harmed_victim(self, attack: Attack) -> bool:
        """Return whether an attack from outside has ended a session, and no misdeed of alice's."""
        is_outside = not attack.is_on_path and attack.family != "peers"
        return is_outside and bool(self.outcome.ended["client"])

    def undergo(self, attack: Attack) -> Outcome:
        """Let the victims live a session under attack, and return what became of it."""
        outcome = self._begin()
        self.attack = attack.name
        tap: Tap = partial(attacked, attack, lab=self) if attack.is_on_path else iter
        is_known = attack.family != "first contact"
        with suppress(LocalError):  # a weakened node may die
            with self._pair(tap, VICTIMS, self._hear, is_known) as self.nodes:
                self._converse(attack)
                self.wait(partial(self._is_decided, attack))
                outcome.is_over = True
        return outcome

    def _converse(self, attack: Attack | None = None) -> None:
        """Let alice say two things, and bob answer. Once something went wrong, nobody waits."""
        heard = self.outcome.heard
        self._expect(lambda: all(self.outcome.met.values()))
        self._say("client", FIRST)
        if attack and not attack.is_on_path:
            self._expect(lambda: FIRST in heard["server"])
            run_outside(attack, self)
        self._say("client", SECOND)
        self._expect(lambda: SECOND in heard["server"])
        self._say("server", ANSWER)
        self._expect(lambda: ANSWER in heard["client"])

    def _expect(self, is_so: Callable[[], bool]) -> None:
        outcome = self.outcome
        self.wait(lambda: is_so() or any(outcome.errors.values()) or bool(outcome.learned))

    def _say(self, end: str, text: str) -> None:
        self.outcome.said[end].append(text)
        self.nodes[end].say(text)

    def _is_decided(self, attack: Attack) -> bool:
        """Return whether the attack has met what it must, or has won; else there is more to see."""
        if self.evidence(attack).won:
            return True
        met = {type(error) for error in self.outcome.errors.get(attack.who, [])}
        has_all = attack.goal is not disturbed or self.outcome.heard["server"] == [FIRST, SECOND]
        return not attack.error or (attack.error in met and has_all)


def is_goodbye(error: ProtocolError) -> bool:
    """Return whether the peer has left because it was done."""
    return isinstance(error, PeerLeft) and error.reason is Reason.GOODBYE
