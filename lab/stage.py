"""The core's stage: a server, a victim, two bystanders who never stop, and recordings.

All of it is real: sockets, endpoints, frames. It says what became of the victim's session, and
nothing about how an attack works.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from channel import EndRequested
from client import Client
from endpoint import DEMO_KEYS, OPCODE_NAMES
from lab.catalogue import Attack, Evidence, run_outside
from lab.frames import Frame, Log, recorder
from lab.observer import Observer
from lab.screen import as_typed
from lab.tcp import TcpStage
from program import UserError, host_and_port_of
from protocol_fsm import (
    ClientData,
    ConnectionCut,
    DeadlineExpired,
    Direction,
    Json,
    PeerTerminated,
    ProtocolError,
    RoundMismatch,
    ServerAggrResponse,
    Session,
    read_frame,
    write_frame,
)
from server import Contribution, Epoch, Limits, Record, Server

VICTIM = 3
BYSTANDER = 4
OTHER = 5  # a bystander, too
READINGS = ([100.0, 20.5, 21.0, 22.5], [101.0], [102.0])  # what the victim reports, round by round
OLD_READINGS = ([41.0], [42.0], [43.0])  # in recordings that attacks splice in
LIMITS = Limits(window_s=1.0, stranger_timeout_s=3.0, frame_timeout_s=0.3, max_strangers=8)
CROWD = 2 * LIMITS.max_strangers  # of strangers at once, before one more comes
TIMEOUT_S = 2.5  # for an answer that comes, on a busy machine and of another's server too
LOSS_S = 0.4  # for an answer that an attack keeps back


@dataclass
class Outcome:
    """What became of the victim's session, and of what was reported in its name."""

    sent: list[list[float]] = field(default_factory=list)  # by the honest client
    accepted: list[list[float]] = field(default_factory=list)  # by the server, for its id
    answered: list[str] = field(default_factory=list)  # by the server, to its id
    answers: list[str] = field(default_factory=list)  # believed by the honest client
    errors: dict[str, list[Exception]] = field(default_factory=lambda: {"client": [], "server": []})
    said: list[str] = field(default_factory=list)  # by the server to the adversary: opcodes
    learned: str = ""  # by the adversary
    broken: Exception | None = None  # a mistake in the attack


# Goals: what the adversary has won, in words; empty if nothing


def learned(outcome: Outcome) -> str:
    """Return what the adversary has learned."""
    return outcome.learned


def forged(outcome: Outcome) -> str:
    """Return what an end believed although its peer never said it."""
    unsent = Counter(map(str, outcome.accepted)) - Counter(map(str, outcome.sent))
    if unsent:
        return f"the server aggregates {min(unsent)}, which the client did not send"
    if outcome.answers != outcome.answered[: len(outcome.answers)]:
        return "the client believes an answer that the server did not give"
    return ""


def counted(outcome: Outcome) -> str:
    """Return a win if the first report counts, though it was changed or held, or a forged one."""
    return "the report counts all the same" if READINGS[0] in outcome.accepted else forged(outcome)


def fooled_client(outcome: Outcome) -> str:
    """Return a win if the client accepted a forged farewell."""
    return _fooled("client", outcome)


def fooled_server(outcome: Outcome) -> str:
    """Return a win if the server accepted a forged farewell."""
    return _fooled("server", outcome)


def _fooled(who: str, outcome: Outcome) -> str:
    has_ended = any(isinstance(error, PeerTerminated) for error in outcome.errors[who])
    return f"the {who} believes that its peer has said goodbye" if has_ended else ""


def alone_in_a_session(outcome: Outcome) -> str:
    """Return a win if the client has begun to report to a server that never heard of it."""
    return "the client reports to itself" if outcome.sent and not outcome.accepted else ""


def disturbed(outcome: Outcome) -> str:
    """Return a win if the honest client has met any error."""
    return "an honest client is disturbed" if outcome.errors["client"] else ""


def crowded(outcome: Outcome) -> str:
    """Return a win if the server kept more strangers than its limit, or fewer."""
    gone = sum(isinstance(error, EndRequested) for error in outcome.errors["server"])
    kept = CROWD + 1 - gone
    limit = LIMITS.max_strangers
    return "" if kept == limit else f"the server keeps {kept} strangers, where {limit} is the limit"


# The stage


class Parts(NamedTuple):
    """What the lab is built from: the real parts, or weakened ones from lab/weakened.py."""

    session: type[Session] = Session
    server: type[Server] = Server
    client: type[Client] = Client


class Lab(TcpStage):
    """The stage of one run. `foreign` is the address of a server in another process.

    A foreign server's verdict is what it says last before it closes.
    """

    def __init__(
        self,
        seed: str,
        log: Log,
        parts: Parts | None = None,
        foreign: tuple[str, int] | None = None,
        observer: Observer | None = None,
    ) -> None:
        super().__init__(log, observer, read_frame, write_frame)
        self.seed = seed
        self.outcome: Outcome = Outcome()
        self.is_foreign = bool(foreign)
        self.is_weakened = bool(parts and not foreign)
        self.sessions: dict[str, Session] = {}  # of the victim, the newest of each end
        self._due = 1  # rounds that the bystanders should have done by now
        # they report when the victim has, so that a run with the same seed has the same epochs
        self._turns: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._reports = Counter[int]()
        self._parts = parts or Parts()
        self._sessions = Counter[str]()
        self._server: Server | None = None
        self.address = foreign or ("", 0)
        self.where = f"seed {seed}"
        self.again = f"--seed {as_typed(seed)}"
        if foreign is None:
            self._server = self._parts.server(
                DEMO_KEYS, port=0, limits=LIMITS, record=self._see, new_session=self.new_session
            )
            self.address = self._server.address
        else:
            self.where = "server {}:{}".format(*foreign)
            self.again = "--server {}:{}".format(*foreign)

    def __enter__(self) -> Lab:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._server or contextlib.nullcontext())
            self.tape = self.honest_session(VICTIM)  # HELLO, CHALLENGE, report, answer, report, ...
            self.older_tape = self.honest_session(VICTIM, OLD_READINGS)
            self.other_tape = self.honest_session(OTHER, OLD_READINGS)
            bystanders = threading.Thread(target=self._stand_by, daemon=True)
            bystanders.start()
            stack.callback(bystanders.join)
            stack.callback(self._turns.put, False)
            self._wait(lambda: self.rounds > 0)
            self._close = stack.pop_all().close
        return self

    def log(self, deed: str, frame: Frame) -> None:
        """Note what happened to a frame of the victim's connection, or of an outsider's."""
        if (deed, frame.to) == ("sent", "client"):
            self.outcome.said.append(OPCODE_NAMES.get(frame.message[0], "no opcode"))
        super().log(deed, frame)

    # The actors

    def new_session(self, client_id: int, key: bytes, sends: Direction) -> Session:
        """Return a session whose randomness depends on seed and attack, and on nothing else."""
        name = f"{self.seed} {self.attack} {client_id} {sends.name}"
        self._sessions[name] += 1
        source = random_source(f"{name} {self._sessions[name]}")
        end = "client" if sends is Direction.C2S else "server"
        session = self._parts.session(
            client_id, key, sends, watchers=self.watchers(end), random_bytes=source
        )
        if client_id == VICTIM:
            self.sessions[end] = session
        return session

    def client(self, client_id: int, address: tuple[str, int] | None = None) -> Client:
        """Return an honest client, whose end the lab will wait for."""
        if client_id not in (BYSTANDER, OTHER):
            self._await_one_more()
        return self._parts.client(
            client_id,
            DEMO_KEYS,
            *(address or self.address),
            timeout_s=TIMEOUT_S,
            new_session=self.new_session,
        )

    def honest_session(
        self, client_id: int = VICTIM, reports: Sequence[list[float]] = READINGS
    ) -> list[Frame]:
        """Run an undisturbed session of a client, and return its recording. Raises UserError."""
        tape: list[Frame] = []
        try:
            with (
                self.proxy(recorder(tape)) as proxy,
                self.client(client_id, proxy.address) as client,
            ):
                for readings in reports:
                    client.report(readings)
        except ProtocolError as error:
            raise UserError(self._explained(error)) from None
        return tape

    def _explained(self, error: ProtocolError) -> str:
        if not self.is_foreign:
            return f"no honest session: {error}"
        where = host_and_port_of(self.address)
        return (
            f"the program on {where} is not our server, or has other keys than the demo keys "
            f"({type(error).__name__}); without --server the lab attacks one of its own"
        )

    def _stand_by(self) -> None:
        try:
            with self.client(BYSTANDER) as one, self.client(OTHER) as other:
                one.report([1.0])  # alone, so that the first epoch of the other waits for it
                self._turns.put(True)
                while self._turns.get():
                    other.channel.send(ClientData([1.0]))
                    self._wait(lambda: self.is_foreign or self._reports[OTHER] > len(OLD_READINGS))
                    one.report([1.0])
                    other.channel.receive(time.monotonic() + TIMEOUT_S)
                    with self._changed:
                        self.rounds += 1
                        self._changed.notify_all()
        except Exception as error:
            self.harm.append(error)

    def _take_turn(self) -> None:
        with self._changed:
            if self.rounds:  # not before they have begun
                self._due += 1
                self._turns.put(True)

    def bystanders_go_on(self) -> bool:
        """Return whether both do another round, and nothing has ever happened to them."""
        self._take_turn()
        return self._wait(lambda: self.rounds == self._due) and not self.harm

    # An attack

    def undergo(self, attack: Attack) -> Outcome:
        """Run a session of the victim under attack, and return what became of it."""
        outcome = self.outcome = Outcome()
        self.attack = attack.name
        self._sessions.clear()
        if self._server:
            self._server._epochs.current.number = 1  # the same bytes alone and after other attacks
        self.attack_on(attack, partial(self._live, attack))
        self._wait(lambda: self.is_foreign or self._connections == 0)  # it may need a moment longer
        return outcome

    def _live(self, attack: Attack, address: tuple[str, int]) -> None:
        outcome = self.outcome
        try:
            with self.client(VICTIM, address) as victim:
                if attack.error is DeadlineExpired and attack.who == "client" and self._server:
                    victim.timeout_s = LOSS_S  # only now: no handshake is kept back
                for readings in READINGS[:1] if attack.hasty else READINGS:
                    outcome.sent.append(readings)
                    if self.is_foreign:  # no record of it says that the victim has reported
                        self._take_turn()
                    if attack.hasty:  # says goodbye without waiting for the answer
                        victim.channel.send(ClientData(readings))
                        continue
                    outcome.answers.append(text_of(victim.report(readings)))
                    if readings is READINGS[0] and not attack.is_on_path:
                        run_outside(attack, self)
        except ProtocolError as error:
            outcome.errors["client"].append(error)

    def _see(self, record: Record) -> None:
        detail = record.detail
        outcome = self.outcome
        is_bystander = record.client_id in (BYSTANDER, OTHER)
        with self._changed:
            if isinstance(detail, Epoch):
                if detail.answers and VICTIM in detail.answers:
                    outcome.answered.append(detail.answers[VICTIM].body.decode())
            elif isinstance(detail, Contribution):
                self._reports[record.client_id] += 1
                if not is_bystander:
                    outcome.accepted.append([*detail.readings])
                    self._take_turn()
            elif not is_bystander:
                outcome.errors["server"].append(detail)
                self._one_has_ended()
            self._changed.notify_all()

    def evidence(self, attack: Attack) -> Evidence:
        """Return what the victims have met; of a foreign server, what it said on the wire."""
        seen = super().evidence(attack)
        if not self.is_foreign:
            return seen
        said = self.outcome.said
        won = self.outcome.learned  # anything else that is won can be seen only inside the server
        if attack.who != "server":
            return seen._replace(won=won)
        answers = [name for name in said if name == "SERVER_AGGR_RESPONSE"]
        if attack.family == "freshness":  # the first answer is to the original
            answers = answers[1:]
        refusal = "KEY_DESYNC_ERROR" if attack.error is RoundMismatch else "TERMINATE"
        met = [*answers, *said[-1:], "closed"][:1]
        return Evidence("wire", refusal if said else "closed", met, won)

    def obstacle(self, attack: Attack) -> str:
        """Return why an attack cannot be tried here; empty if it can."""
        needs_clock = attack.family == "availability" or attack.error is ConnectionCut
        if self.is_foreign and (needs_clock or attack.inside):
            return "it needs the clock or the memory of the server"
        return ""


def text_of(aggregate: dict[str, Json]) -> str:
    """Return an answer as it is on the wire."""
    return ServerAggrResponse(aggregate).body.decode()


def random_source(name: str) -> Callable[[int], bytes]:
    """Return a source of bytes that are always the same for the same name."""
    start = name.encode(errors="surrogateescape")
    counter = itertools.count()
    return lambda length: hashlib.shake_256(b"%b %d" % (start, next(counter))).digest(length)
