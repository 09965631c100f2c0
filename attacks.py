"""The adversary: it sits on the wire, or knocks from outside, and tries what students will try.

Everything is real: sockets, endpoints, frames. An attack is a short function: on path it turns the
frames of one connection into what is delivered instead, an outsider has an address and recordings.
The verdict is what the victims did, never whether bytes came back. Nothing here weakens anything.
"""
from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import queue
import secrets
import socket
import textwrap
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from client import Client
from crypto_utils import TAG_BYTES, aes_cbc_decrypt, derive_key, hmac_verify, pkcs7_unpad
from endpoint import (
    DEMO_KEYS, OPCODE_NAMES, EndRequested, Parser, UserError, run_program, write_text,
)
from protocol_fsm import (
    CIPHERTEXT_AT, HEADER, KEY_LABELS, BadTag, ConnectionCut, DeadlineExpired, Direction,
    EchoMismatch, Header, Message, Opcode, PeerTerminated, ProtocolError, RoundMismatch, Session,
    UnexpectedOpcode, WrongDirection, WrongPeer, bind_keys, encode_body, evolve_c2s, read_frame,
    write_frame,
)
from server import Epoch, Limits, Record, Server

# The proxy: a man in the middle of one connection. It knows frames, and no protocol ---------------

class Frame(NamedTuple):
    """A message on the wire, and whom it is for: "client" or "server"."""

    to: str
    message: bytes

    def back(self) -> Frame:
        """Return the same message on its way to whoever sent it."""
        return Frame("client" if self.to == "server" else "server", self.message)

Frames = Iterator[Frame]
Log = Callable[[str, Frame], None]
Tap = Callable[[Frames], Frames]  # from what is sent to what is delivered

class Proxy:
    """Listens on loopback, connects on to the server, and delivers what `tap` yields, only that.

    `read_frame(recv)` and `write_frame(sendall, message)` are the framing of the protocol. When
    `tap` ends, both connections are cut.
    """

    def __init__(self, server: tuple[str, int], tap: Tap,
                 read_frame: Callable[[Callable[[int], bytes]], bytes],
                 write_frame: Callable[[Callable[[bytes], object], bytes], None]) -> None:
        self._server, self._tap = server, tap
        self._read_frame, self._write_frame = read_frame, write_frame
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._seen: queue.SimpleQueue[tuple[str, bytes | None]] = queue.SimpleQueue()
        self.address: tuple[str, int] = self._listener.getsockname()

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self
    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):  # wakes an accept that nobody came for
            socket.create_connection(self.address).close()
        self._thread.join(5.0)  # a server that never closes holds nobody up for ever
        self._listener.close()

    def _run(self) -> None:
        client, _ = self._listener.accept()
        with client, socket.create_connection(self._server) as server:
            ends = {"client": client, "server": server}
            for name, sock in ends.items():
                threading.Thread(target=self._listen, args=(name, sock), daemon=True).start()
            for frame in self._tap(self._frames(ends)):
                with contextlib.suppress(OSError):  # one end may have closed; the other goes on
                    self._write_frame(ends[frame.to].sendall, frame.message)
            for sock in ends.values():
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _listen(self, name: str, sock: socket.socket) -> None:
        try:
            while True:
                self._seen.put((name, self._read_frame(sock.recv)))
        except Exception:  # cut, reset, or no frame: for the proxy all of them are the end
            self._seen.put((name, None))

    def _frames(self, ends: dict[str, socket.socket]) -> Frames:
        other = {"client": "server", "server": "client"}
        open_ends = set(ends)
        while open_ends:
            sender, message = self._seen.get()
            if message is not None:
                yield Frame(other[sender], message)
                continue
            open_ends.discard(sender)
            with contextlib.suppress(OSError):
                ends[other[sender]].shutdown(socket.SHUT_WR)

# What the victims do, and what is seen of it ------------------------------------------------------

VICTIM, BYSTANDER, OTHER = 3, 4, 5
READINGS = ([100.0, 20.5, 21.0, 22.5], [101.0], [102.0])  # what the victim reports, round by round
OLD_READINGS = ([41.0], [42.0], [43.0])  # in recordings that are put in the place of these
LIMITS = Limits(window_s=0.3, stranger_timeout_s=0.8, frame_timeout_s=0.3, max_strangers=8)
TIMEOUT_S = 0.4  # of the victim, for an answer

@dataclass
class Outcome:
    """What became of the victim's session, and of what was reported in its name."""

    sent: list[list[float]] = field(default_factory=list)  # by the honest client
    accepted: list[list[float]] = field(default_factory=list)  # by the server, for its id
    answered: list[str] = field(default_factory=list)  # by the server, to its id
    answers: list[str] = field(default_factory=list)  # believed by the honest client
    errors: dict[str, list[Exception]] = field(default_factory=lambda: {"client": [], "server": []})
    learned: str = ""  # by the adversary
    reporting: bool = False  # the client believes that it shares a session with the server

Goal = Callable[[Outcome], str]  # what the adversary won, in words; empty if nothing

def forged(outcome: Outcome) -> str:
    """Say what an end believed that its partner never said; empty if nothing was."""
    unsent = [*outcome.accepted]
    for readings in outcome.sent:
        if readings in unsent:
            unsent.remove(readings)
    if unsent:
        return f"the server aggregates {unsent[0]}, which the client did not send"
    if outcome.answers != outcome.answered[: len(outcome.answers)]:
        return "the client believes an answer that the server did not give"
    return ""

def lost_quietly(outcome: Outcome) -> str:
    """Say if the server takes a session for complete that was not."""
    at_peace = all(isinstance(error, PeerTerminated) for error in outcome.errors["server"])
    return "the server believes that nothing is missing" if at_peace else ""

def fooled(who: str, outcome: Outcome) -> str:
    """Say if this end takes for a farewell what was none."""
    ended = any(isinstance(error, PeerTerminated) for error in outcome.errors[who])
    return f"the {who} believes that the other one has left" if ended else ""

def counted(outcome: Outcome) -> str:
    """Say if the first report counts, though it was touched or held, or counts for another."""
    taken = READINGS[0] in outcome.accepted
    return "the report counts all the same" if taken else forged(outcome)

def alone_in_a_session(outcome: Outcome) -> str:
    """Say if the client has begun to report to a server that never heard of it."""
    return "the client reports to itself" if outcome.reporting and not outcome.accepted else ""

def learned(outcome: Outcome) -> str:
    return outcome.learned

def disturbed(outcome: Outcome) -> str:
    return "an honest client is disturbed" if outcome.errors["client"] else ""

class Parts(NamedTuple):
    """What the lab is built from: the real parts, or weakened ones from classroom/weakened.py."""

    session: Callable[..., Session] = Session
    server: Callable[..., Server] = Server
    client: Callable[..., Client] = Client

REAL = Parts()

class Line:
    """An outsider's own connection to the server."""

    def __init__(self, sock: socket.socket, log: Log) -> None:
        self.socket, self._log = sock, log

    def send(self, message: bytes) -> None:
        self._log("inserted", Frame("server", message))
        with contextlib.suppress(OSError):  # the server may have had enough
            write_frame(self.socket.sendall, message)

    def receive(self) -> bytes:
        """Return the next message, or nothing when the server has closed."""
        try:
            message = read_frame(self.socket.recv)
        except (OSError, ProtocolError):
            return b""
        self._log("sent", Frame("client", message))
        return message

class Missed(Exception):
    """The frame that an attack waits for never came."""
class CutHere(Exception):
    """An attack cuts the connection; when it just ends, everything else passes."""

class Lab:
    """A server, a victim, two bystanders who never stop, and recordings of two earlier sessions."""

    def __init__(self, seed: str, log: Log, parts: Parts = REAL) -> None:
        self.seed, self.log, self.outcome, self._parts = seed, log, Outcome(), parts
        self.is_weakened = parts is not REAL  # then another check than the usual may refuse
        self.victim: Client  # while it is connected
        self.rounds = {BYSTANDER: 0, OTHER: 0}  # that the bystanders have done
        self._due = {BYSTANDER: 1, OTHER: 1}  # that they should have done by now
        self.harm: list[Exception] = []  # that has come to them: there must be none
        # they report when the victim has, so that a run with the same seed has the same epochs
        self._turns = {n: queue.SimpleQueue[bool]() for n in self.rounds}
        self._sessions: dict[str, int] = {}
        self._changed, self._connections = threading.Condition(), 0  # that have not ended yet
        self._server = parts.server(DEMO_KEYS, port=0, limits=LIMITS, record=self._see,
                                    new_session=self.new_session)
        self.address = self._server.address

    def __enter__(self) -> Lab:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._server)
            self.tape = self.honest_session(VICTIM)  # a whole one, from before all attacks
            self.older_tape, self.other_tape = (
                self.honest_session(client_id, OLD_READINGS) for client_id in (VICTIM, OTHER))
            for client_id in self.rounds:
                thread = threading.Thread(target=self._stand_by, args=(client_id,), daemon=True)
                thread.start()
                stack.callback(thread.join)
                self._wait(lambda: self.rounds[client_id] > 0)  # noqa: B023, called at once
            stack.callback(self._take_turns, go_on=False)
            self._close = stack.pop_all().close
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def new_session(self, client_id: int, key: bytes, sends: Direction) -> Session:
        """Return a session whose randomness depends on the seed and on nothing that varies."""
        name = f"{self.seed} {client_id} {sends.name}"
        number = self._sessions[name] = self._sessions.get(name, 0) + 1
        source = random_source(f"{name} {number}")
        return self._parts.session(client_id, key, sends, random_bytes=source)

    def client(self, client_id: int, address: tuple[str, int] | None = None) -> Client:
        """Return an honest client, whose end the lab will wait for."""
        with self._changed:
            self._connections += client_id not in self.rounds
        return self._parts.client(client_id, DEMO_KEYS, *(address or self.address),
                                  timeout_s=TIMEOUT_S, new_session=self.new_session)

    @contextlib.contextmanager
    def connect(self) -> Iterator[Line]:
        """Give an outsider's connection, whose end the lab will wait for."""
        with self._changed:
            self._connections += 1
        with socket.create_connection(self.address, 5.0) as sock:
            yield Line(sock, self.log)

    def honest_session(self, client_id: int, reports: Any = READINGS) -> list[Frame]:
        """Let a client live a whole session in peace, and return its recording."""
        tape: list[Frame] = []

        def listen(frames: Frames) -> Frames:
            for frame in frames:
                tape.append(frame)
                yield frame

        with Proxy(self.address, listen, read_frame, write_frame) as proxy, \
                self.client(client_id, proxy.address) as client:
            for readings in reports:
                client.report(readings)
        return tape

    def _stand_by(self, client_id: int) -> None:
        try:
            with self.client(client_id) as client:
                going_on = True
                while going_on:
                    client.report([1.0])
                    with self._changed:
                        self.rounds[client_id] += 1
                        self._changed.notify_all()
                    going_on = self._turns[client_id].get()
        except Exception as error:
            self.harm.append(error)

    def _take_turns(self, *client_ids: int, go_on: bool = True) -> None:
        for client_id in client_ids or self.rounds:
            if self.rounds[client_id]:  # not before it has begun
                self._due[client_id] += 1
                self._turns[client_id].put(go_on)

    def bystanders_go_on(self) -> bool:
        """Tell whether both do another round, and nothing has ever happened to them."""
        self._take_turns()
        return self._wait(lambda: self.rounds == self._due) and not self.harm

    def _wait(self, until: Callable[[], bool]) -> bool:
        with self._changed:
            return self._changed.wait_for(until, 5.0)

    def _see(self, record: Record) -> None:
        detail, outcome = record.detail, self.outcome
        with self._changed:
            if isinstance(detail, Epoch) and VICTIM in (detail.answers or {}):
                outcome.answered.append((detail.answers or {})[VICTIM].decode())
            elif record.client_id not in self.rounds and isinstance(detail, Message):
                outcome.accepted.append(detail.readings)
                self._take_turns()
            elif record.client_id not in self.rounds and isinstance(detail, Exception):
                outcome.errors["server"].append(detail)
                self._connections -= 1
            elif record.client_id == OTHER and self.rounds == {BYSTANDER: 1, OTHER: 0}:
                self._take_turns(BYSTANDER)  # to share the first epoch of the other
            self._changed.notify_all()

    def suffer(self, attack: Attack) -> Outcome:
        """Let the victim live a session under attack, and return what became of it."""
        self.outcome = Outcome()
        if attack.is_on_path:
            with Proxy(self.address, self._tap(attack), read_frame, write_frame) as proxy:
                self._live(proxy.address, attack)
        else:
            self._live(self.address, attack)
        self._wait(lambda: self._connections == 0)  # the server may need a moment longer
        return self.outcome

    def _live(self, address: tuple[str, int], attack: Attack) -> None:
        outcome = self.outcome
        try:
            with self.client(VICTIM, address) as self.victim:
                outcome.reporting = True
                for readings in READINGS[:1] if attack.hasty else READINGS:
                    outcome.sent.append(readings)
                    if attack.hasty:  # says goodbye without waiting for the answer
                        self.victim.channel.send(Opcode.CLIENT_DATA, encode_body(readings))
                        continue
                    outcome.answers.append(encode_body(self.victim.report(readings)).decode())
                    if readings is READINGS[0] and not attack.is_on_path:
                        attack.run(self)
        except ProtocolError as error:
            outcome.errors["client"].append(error)

    def _tap(self, attack: Attack) -> Tap:
        """Return the attack as a tap that logs what it sees and does, and stops when it misses."""
        def tap(frames: Frames) -> Frames:
            seen: list[Frame] = []

            def watched() -> Frames:
                for frame in frames:
                    seen.append(frame)
                    self.log("sent", frame)
                    yield frame

            wire = watched()
            with contextlib.suppress(Missed, CutHere):
                for frame in itertools.chain(attack.run(wire, self), wire):
                    self.log("delivered" if frame in seen else "inserted", frame)
                    yield frame

        return tap

    def reconnect(self) -> None:
        """Let the victim lose patience: it comes back on a new connection, and reports."""
        with self.client(VICTIM) as again:
            self.outcome.sent.append([7.0])
            again.report([7.0])

def random_source(name: str) -> Callable[[int], bytes]:
    """Return a source of bytes that are always the same for the same name."""
    counter = itertools.count()
    return lambda length: hashlib.shake_256(f"{name} {next(counter)}".encode()).digest(length)

# The catalogue ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Attack:
    """One attack: what runs, and where it must fail. `noticed`: nothing prevents it, but this."""

    name: str
    story: str
    claim: str  # of SECURITY.md
    run: Callable[..., Any]  # (frames, lab), or (lab) from outside
    is_on_path: bool
    who: str  # refuses it: "client" or "server"
    error: type[Exception] | None
    goal: Goal
    noticed: str
    hasty: bool  # the victim says goodbye without waiting for an answer

ATTACKS: dict[str, Attack] = {}

def attack(claim: str, who: str, error: type[Exception] | None, *, goal: Goal = forged,
           noticed: str = "", hasty: bool = False) -> Callable[[Any], Any]:
    """Register a generator over frames, an outsider's function, or a change of the first report."""
    def register(function: Any) -> Any:
        def change_first_report(frames: Frames, lab: Lab) -> Frames:
            yield function((yield from up_to(frames, Opcode.CLIENT_DATA)))

        name, takes = function.__name__.replace("_", "-"), function.__code__.co_varnames[0]
        run = change_first_report if takes == "report" else function
        ATTACKS[name] = Attack(name, str(function.__doc__), claim, run, takes != "lab", who, error,
                               goal, noticed, hasty)
        return function

    return register

def up_to(frames: Frames, opcode: Opcode) -> Generator[Frame, None, Frame]:
    """Deliver everything up to the first frame of one kind, and return that. Raises Missed."""
    for frame in frames:
        if frame.message[0] == opcode:
            return frame
        yield frame
    raise Missed(opcode.name)

def first(tape: list[Frame], opcode: Opcode) -> Frame:
    return next(frame for frame in tape if frame.message[0] == opcode)

def flipped(frame: Frame, position: int, mask: int = 1) -> Frame:
    """Flip the bits of `mask` in one byte of a message; -1 is its last."""
    message = bytearray(frame.message)
    message[position] ^= mask
    return frame._replace(message=bytes(message))

def edited(frame: Frame, **fields: int) -> Frame:
    """Rewrite header fields of a message."""
    header = Header(*HEADER.unpack_from(frame.message))._replace(**fields)
    return frame._replace(message=HEADER.pack(*header) + frame.message[HEADER.size :])

@attack("freshness", "server", RoundMismatch)
def replay_report(frames: Frames, lab: Lab) -> Frames:
    """A report is delivered twice."""
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    yield report
    answer = next(frames)  # held, so that the client says nothing before the server has reacted
    yield report
    yield from (next(frames), answer)

@attack("freshness", "server", BadTag)
def replay_rewritten(frames: Frames, lab: Lab) -> Frames:
    """An old report comes again, with the new round on it."""
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    yield report
    answer = next(frames)
    yield edited(report, round_number=2)
    yield from (next(frames), answer)

@attack("order", "server", UnexpectedOpcode)
def repeat_hello(frames: Frames, lab: Lab) -> Frames:
    """The CLIENT_HELLO comes again in mid-session."""
    hello = yield from up_to(frames, Opcode.CLIENT_HELLO)
    yield hello
    challenge = next(frames)
    yield hello
    yield from (challenge, next(frames))

@attack("session", "server", BadTag)
def replay_session(lab: Lab) -> None:
    """A whole recorded session is replayed."""
    with lab.connect() as line:
        for frame in lab.tape:
            if frame.to == "server":
                line.send(frame.message)
        while line.receive():
            pass

@attack("session", "server", ConnectionCut, goal=disturbed)
def replay_hello(lab: Lab) -> None:
    """A recorded CLIENT_HELLO comes beside the session."""
    with lab.connect() as line:
        line.send(lab.tape[0].message)
        line.receive()

@attack("session", "client", EchoMismatch, goal=alone_in_a_session)
def recorded_challenge(frames: Frames, lab: Lab) -> Frames:
    """The challenge is replaced by a recorded one."""
    yield from up_to(frames, Opcode.SERVER_CHALLENGE)
    yield first(lab.tape, Opcode.SERVER_CHALLENGE)

@attack("session", "client", EchoMismatch)
def recorded_server(frames: Frames, lab: Lab) -> Frames:
    """A recording plays the server."""
    answers = (frame for frame in lab.tape if frame.to == "client")
    for frame in frames:
        if frame.to == "server":
            yield next(answers, frame.back())

@attack("integrity", "server", BadTag)
def flip_reading(report: Frame) -> Frame:
    """One bit flips, to make the reading 100 a 900."""
    return flipped(report, CIPHERTEXT_AT + 1, ord("1") ^ ord("9"))  # decrypts into the next block

@attack("integrity", "server", BadTag, goal=counted)
def flip_iv(report: Frame) -> Frame:
    """One bit of the IV flips, to put keys out of step."""
    return flipped(report, HEADER.size)

@attack("integrity", "server", BadTag, goal=counted)
def flip_tag(report: Frame) -> Frame:
    """One bit of the tag flips."""
    return flipped(report, -1)

def edit(name: str, value: int, error: type[Exception], story: str) -> None:
    """Register an attack that rewrites one header field of the first report."""
    def change(report: Frame) -> Frame:
        return edited(report, **{name: value})

    change.__name__, change.__doc__ = f"edit_{name}", story
    attack("integrity", "server", error, goal=counted)(change)

edit("opcode", Opcode.CLIENT_HELLO, UnexpectedOpcode, "A report is relabelled as a CLIENT_HELLO.")
edit("client_id", OTHER, WrongPeer, "A report is relabelled as another client's.")
edit("round_number", 2, RoundMismatch, "A report is moved to the next round.")
edit("direction", Direction.S2C, WrongDirection, "A report is relabelled as from the server.")

@attack("integrity", "server", BadTag, goal=partial(fooled, "server"))
def swap_opcode(report: Frame) -> Frame:
    """A report is relabelled as a goodbye."""
    return edited(report, opcode=Opcode.TERMINATE)

@attack("integrity", "server", BadTag)
def truncate(report: Frame) -> Frame:
    """A report loses its end, and gets a new padding."""
    ciphertext, tag = report.message[: -TAG_BYTES - 16], report.message[-TAG_BYTES:]
    shorter = report._replace(message=ciphertext + tag)
    shorter = flipped(shorter, CIPHERTEXT_AT + 14, ord(".") ^ ord("]"))
    return flipped(shorter, CIPHERTEXT_AT + 15, ord("0") ^ 1)

@attack("integrity", "server", BadTag)
def extend(report: Frame) -> Frame:
    """A report gets its last block once more."""
    ciphertext, tag = report.message[:-TAG_BYTES], report.message[-TAG_BYTES:]
    return report._replace(message=ciphertext + ciphertext[-16:] + tag)

@attack("integrity", "server", BadTag)
def inject_report(frames: Frames, lab: Lab) -> Frames:
    """A report is made up without any key."""
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    random_bytes = random_source(lab.seed)(len(report.message) - HEADER.size)
    yield report._replace(message=report.message[: HEADER.size] + random_bytes)
    yield report

@attack("identity", "server", WrongPeer)
def splice_client(frames: Frames, lab: Lab) -> Frames:
    """Another client's report is put in its place."""
    yield from up_to(frames, Opcode.CLIENT_DATA)
    yield first(lab.other_tape, Opcode.CLIENT_DATA)

@attack("identity", "server", BadTag)
def splice_client_rewritten(frames: Frames, lab: Lab) -> Frames:
    """The same, with the victim's id on it."""
    yield from up_to(frames, Opcode.CLIENT_DATA)
    yield edited(first(lab.other_tape, Opcode.CLIENT_DATA), client_id=VICTIM)

@attack("session", "server", BadTag)
def splice_session(frames: Frames, lab: Lab) -> Frames:
    """A report of an earlier session is put in its place."""
    yield from up_to(frames, Opcode.CLIENT_DATA)
    yield first(lab.older_tape, Opcode.CLIENT_DATA)

@attack("direction", "client", WrongDirection)
def reflect(frames: Frames, lab: Lab) -> Frames:
    """A report comes back to the client that sent it."""
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    yield report.back()

@attack("direction", "client", WrongDirection, goal=alone_in_a_session)
def reflect_hello(frames: Frames, lab: Lab) -> Frames:
    """A CLIENT_HELLO comes back as the challenge."""
    hello = yield from up_to(frames, Opcode.CLIENT_HELLO)
    yield edited(hello.back(), opcode=Opcode.SERVER_CHALLENGE)

@attack("direction", "client", BadTag)
def reflect_rewritten(frames: Frames, lab: Lab) -> Frames:
    """A report comes back, dressed up as the answer."""
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    yield edited(report.back(), opcode=Opcode.SERVER_AGGR_RESPONSE, direction=Direction.S2C)

@attack("order", "server", BadTag, goal=lost_quietly, hasty=True)
def reorder(frames: Frames, lab: Lab) -> Frames:
    """The goodbye overtakes the report before it."""
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    yield (yield from up_to(frames, Opcode.TERMINATE))
    yield report

@attack("ending", "server", BadTag, goal=lost_quietly, hasty=True)
def drop_report_keep_goodbye(frames: Frames, lab: Lab) -> Frames:
    """A report vanishes, and the goodbye after it arrives."""
    yield from up_to(frames, Opcode.CLIENT_DATA)

@attack("ending", "client", BadTag, goal=partial(fooled, "client"))
def forge_terminate(frames: Frames, lab: Lab) -> Frames:
    """An answer is relabelled as the server's farewell."""
    answer = yield from up_to(frames, Opcode.SERVER_AGGR_RESPONSE)
    yield edited(answer, opcode=Opcode.TERMINATE)

@attack("ending", "server", ConnectionCut, goal=lost_quietly)
def cut(frames: Frames, lab: Lab) -> Frames:
    """The connection is cut after the first round."""
    yield (yield from up_to(frames, Opcode.SERVER_AGGR_RESPONSE))
    raise CutHere

@attack("loss", "client", DeadlineExpired, noticed="the client's deadline")
def drop_report(frames: Frames, lab: Lab) -> Frames:
    """A report vanishes."""
    yield from up_to(frames, Opcode.CLIENT_DATA)

@attack("loss", "client", DeadlineExpired, noticed="the client's deadline")
def drop_answer(frames: Frames, lab: Lab) -> Frames:
    """An answer vanishes."""
    yield from up_to(frames, Opcode.SERVER_AGGR_RESPONSE)

@attack("loss", "client", DeadlineExpired, noticed="the client's deadline")
def hold(frames: Frames, lab: Lab) -> Frames:
    """A report is held until its client has given up."""
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    farewell = yield from up_to(frames, Opcode.TERMINATE)
    yield from (report, farewell)

@attack("order", "server", EndRequested, goal=counted)
def hold_until_reconnected(frames: Frames, lab: Lab) -> Frames:
    """A report is held until its client has come back."""
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    lab.reconnect()
    yield report

@attack("identity", "server", BadTag)
def unknown_client(lab: Lab) -> None:
    """A CLIENT_HELLO comes from an unknown id."""
    with lab.connect() as line:
        line.send(edited(lab.tape[0], client_id=77).message)
        line.receive()

@attack("availability", "server", DeadlineExpired, goal=disturbed)
def slow_drip(lab: Lab) -> None:
    """A CLIENT_HELLO drips in, byte by byte."""
    with lab.connect() as line, contextlib.suppress(OSError):
        line.socket.settimeout(LIMITS.frame_timeout_s / 10)
        for byte in len(lab.tape[0].message).to_bytes(2, "big") + lab.tape[0].message:
            line.socket.sendall(bytes([byte]))
            with contextlib.suppress(TimeoutError):
                if not line.socket.recv(1):
                    return

@attack("availability", "server", EndRequested, goal=disturbed)
def flood(lab: Lab) -> None:
    """Many strangers connect, and say nothing."""
    with contextlib.ExitStack() as lines:
        oldest, *_ = [lines.enter_context(lab.connect()) for _ in range(2 * LIMITS.max_strangers)]
        oldest.receive()  # nothing: the server closes it to make room
        with lab.client(2) as newcomer:
            newcomer.report([])

@attack("secrecy", "", None, goal=learned)
def eavesdrop(frames: Frames, lab: Lab) -> Frames:
    """Two sessions of equal readings are compared."""
    known = {frame.message[CIPHERTEXT_AT:-TAG_BYTES] for frame in lab.tape}
    for frame in frames:
        if frame.message[CIPHERTEXT_AT:-TAG_BYTES] in known:
            lab.outcome.learned = "the readings are those of the earlier session"
        if b"100.0" in frame.message:
            lab.outcome.learned = "a reading is 100.0"
        yield frame

@attack("secrecy", "server", BadTag, goal=learned)
def padding_oracle(lab: Lab) -> None:
    """Refusals are asked for, to learn from them."""
    hello, report = lab.tape[0], first(lab.tape, Opcode.CLIENT_DATA)
    two_blocks = report._replace(message=report.message[: CIPHERTEXT_AT + 32] + bytes(TAG_BYTES))
    queries, known = 0, b""  # of the second block, from its end
    while len(known) < 16:
        aim, answers = len(known) + 1, {}
        for guess in range(256):
            query = two_blocks
            for position, byte in enumerate([guess, *(aim ^ byte for byte in known)], 16 - aim):
                query = flipped(query, CIPHERTEXT_AT + position, byte)
            with lab.connect() as line:
                line.send(hello.message)
                line.receive()
                line.send(query.message)
                answers[guess] = line.receive()[:1]
            queries += 1
        rare = [guess for guess in answers if [*answers.values()].count(answers[guess]) <= 2]
        if not rare:
            return  # all refusals look alike
        known = bytes([aim ^ rare[-1]]) + known
    lab.outcome.learned = f"{known.decode(errors='replace')}, in {queries} connections"

def unsealed(keys: dict[str, bytes], sender: str, message: bytes) -> bytes:
    """Return the plaintext of a message, nothing if these chain keys do not fit."""
    iv, ciphertext = message[HEADER.size : CIPHERTEXT_AT], message[CIPHERTEXT_AT:-TAG_BYTES]
    with contextlib.suppress(ValueError):  # of a session that does not encrypt
        if hmac_verify(keys[f"{sender}-MAC"], message[:-TAG_BYTES], message[-TAG_BYTES:]):
            return pkcs7_unpad(aes_cbc_decrypt(ciphertext, keys[f"{sender}-ENC"][:16], iv))
    return b""

@attack("theft", "", None, goal=learned, noticed="nothing")
def stolen_chain_keys(frames: Frames, lab: Lab) -> Frames:
    """The chain keys are stolen after round 1."""
    reports, keys, read = [], dict[str, bytes](), []
    for frame in frames:
        if frame.message[0] == Opcode.CLIENT_DATA:
            reports.append(frame.message)
        if frame.message[0] == Opcode.SERVER_AGGR_RESPONSE and not keys:
            keys = dict(lab.victim.session._keys)
        yield frame
    for number, report in enumerate(reports, 1):
        if plaintext := unsealed(keys, "C2S", report):
            keys = evolve_c2s(keys, report[CIPHERTEXT_AT:-TAG_BYTES], plaintext[:16])
            read.append(f"round {number} open")
        else:
            read.append(f"round {number} closed")
    lab.outcome.learned = ", ".join(read)

@attack("theft", "", None, goal=learned, noticed="nothing")
def stolen_master_key(lab: Lab) -> None:
    """The master key opens an old recording."""
    keys = {label: derive_key(DEMO_KEYS[VICTIM], label) for label in KEY_LABELS}
    hello = unsealed(keys, "C2S", first(lab.tape, Opcode.CLIENT_HELLO).message)
    challenge = unsealed(keys, "S2C", first(lab.tape, Opcode.SERVER_CHALLENGE).message)
    keys = bind_keys(keys, hello[:16], challenge[17:])
    report = unsealed(keys, "C2S", first(lab.tape, Opcode.CLIENT_DATA).message)
    lab.outcome.learned = f"the recorded reading {report[16:].decode()}" if report else ""

@attack("theft", "client", PeerTerminated, noticed="the client, who is REPLACED")
def guessed_key(lab: Lab) -> None:
    """The key is a demo key, and somebody uses it."""
    with lab.client(VICTIM) as impostor:
        impostor.report([900.0])

# Telling it ---------------------------------------------------------------------------------------

FAMILIES = {  # that the documents announce
    "Ciphertext modification (bit flipping)": ["flip-reading", "flip-iv", "truncate", "extend"],
    "HMAC tampering": ["flip-tag"],
    "Round number manipulation": ["edit-round-number", "replay-rewritten"],
    "Message dropping and reordering": ["drop-report", "drop-answer", "reorder"],
    "Replay attacks": ["replay-report", "replay-session", "recorded-server"],
    "Reflection attacks": ["reflect", "reflect-rewritten"],
}

class Result(NamedTuple):
    """How one attack ended."""

    attack: Attack
    as_expected: bool
    words: str
    won: str

def judge(attack: Attack, lab: Lab) -> Result:
    """Compare what the victims did with what they should have done."""
    outcome, error = lab.outcome, attack.error
    won, met = attack.goal(outcome), [type(e).__name__ for e in outcome.errors.get(attack.who, [])]
    if not lab.bystanders_go_on():
        return Result(attack, False, "a bystander was harmed", won)
    if won and not attack.noticed:
        return Result(attack, False, f"WON: {won}", won)
    if error and error.__name__ not in met:
        return Result(attack, lab.is_weakened, f"{attack.who}: {[*met, 'nothing'][0]}", won)
    refused = f"{attack.who}: {error.__name__}" if error else "nothing learned"
    return Result(attack, True, "not prevented" if attack.noticed else refused, won)

def summary(results: Sequence[Result]) -> str:
    """Return a table by claim, and how the attacks are noticed that nothing prevents."""
    lines = [f"{'claim':<14}{'attacks':>8}{'refused':>9}{'not prevented':>15}{'wrong':>7}"]
    for claim in dict.fromkeys(result.attack.claim for result in results):
        of_claim = [result for result in results if result.attack.claim == claim]
        open_ends = sum(bool(result.attack.noticed) for result in of_claim if result.as_expected)
        wrong = sum(not result.as_expected for result in of_claim)
        lines.append(f"{claim:<14}{len(of_claim):>8}{len(of_claim) - open_ends - wrong:>9}"
                     f"{open_ends:>15}{wrong:>7}")
    lines += [f"{attack.name}: noticed by {attack.noticed}" + (f"; won: {won}" if won else "")
              for attack, _, _, won in results if attack.noticed]
    return "\n".join(line for text in lines for line in textwrap.wrap(text, 79))

def details(result: Result, events: Sequence[dict[str, str]], lab: Lab) -> str:
    """Return at most 20 lines: what went over the wire, which bytes were touched, who said no."""
    lines, before = list[str](), b""
    for event, message in ((event, bytes.fromhex(event["message"])) for event in events):
        touched = [n for n, (old, new) in enumerate(zip(before, message)) if old != new]
        lines.append(f"  {event['event']:<9} to {event['to']}: "
                     f"{OPCODE_NAMES.get(message[0], message[0])}, {len(message)} bytes")
        if event["event"] == "inserted" and 0 < len(touched) <= 3:
            lines += [f"    byte {n}: {before[n]:02x} -> {message[n]:02x}" for n in touched]
        before = message if event["event"] == "sent" else before
    if len(lines) > 13:
        lines[10:-2] = [f"  ... {len(lines) - 12} lines more ..."]
    lines += [f"  {who} ended: {errors[0]}" for who, errors in lab.outcome.errors.items() if errors]
    fate = "another round each" if lab.rounds == lab._due else "harmed"
    return "\n".join([f"{result.attack.name}: {result.attack.story}", *lines,
                      f"  bystanders 4 and 5: {fate}\n  {result.words}"])

def chosen(names: Sequence[str]) -> list[Attack]:
    """Return the attacks of these names, or all of them. Raises UserError."""
    documented = [name for family in FAMILIES.values() for name in family]
    wanted = [n for given in names for n in (documented if given == "documented" else [given])]
    if unknown := set(wanted) - ATTACKS.keys():
        raise UserError(f"no attack is named {min(unknown)}; --list names them all")
    return [ATTACKS[name] for name in dict.fromkeys(wanted or ATTACKS)]

def main() -> int:
    parser = Parser("The adversary, with a server and clients of its own.", is_endpoint=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help="some of the attacks, in detail")
    parser.add_argument("--list", action="store_true", help="name all attacks, and stop")
    parser.add_argument("--seed", default=secrets.token_hex(4), help="repeat a run byte for byte")
    parser.add_argument("--events", metavar="FILE", help="write what happened, as lines of JSON")
    parser.add_argument("--json", action="store_true", help="print results as lines of JSON")
    parser.add_argument("-v", "--verbose", action="store_true", help="all attacks in detail")
    parser.add_argument("--step", action="store_true", help="wait for Enter before each attack")
    parser.add_argument("--without", metavar="A,B", help="take rules out of the lab's endpoints")
    options = parser.options()
    parts = REAL
    if options.without is not None:
        from classroom.weakened import without  # insecure code is loaded when it is asked for
        parts = Parts(*without(options.without.split(",")))
    if options.list:
        print("\n".join(f"{attack.name:<26}{attack.story}" for attack in ATTACKS.values()))
        return 0
    attacks, results, events = chosen(options.names), list[Result](), list[dict[str, str]]()

    def log(event: str, frame: Frame) -> None:
        events.append({"attack": attacks[len(results)].name, "event": event, "to": frame.to,
                       "message": frame.message.hex()})

    def say(text: str) -> None:
        print(text, flush=True) if not options.json else None
    with Lab(options.seed, log, parts) as lab:
        say(f"honest session first: worked (seed {options.seed})")
        for attack in attacks:
            if options.step:
                input(f"Enter starts {attack.name} ")
            begin, outcome = len(events), lab.suffer(attack)
            result = judge(attack, lab)
            results.append(result)
            say(details(result, events[begin:], lab) + "\n" if options.verbose or options.names
                else textwrap.fill(f"{attack.story:<53}{result.words}", 79, subsequent_indent="  "))
            events += [{"attack": attack.name, "event": "ended", "by": who, "error": name}
                       for who, errors in outcome.errors.items()
                       for name in sorted(type(error).__name__ for error in errors)]
            if options.json:
                print(json.dumps({**result._asdict(), "attack": attack.name}), flush=True)
        lab.honest_session(VICTIM)
    say(f"honest session last: worked\n\n{summary(results)}")
    if options.events:
        write_text(options.events, "".join(json.dumps(event) + "\n" for event in events))
    return int(not all(result.as_expected for result in results))

if __name__ == "__main__":
    run_program(main)
