"""The adversary: it sits on the wire, or knocks from outside, and tries what students will try.

Everything is real: sockets, endpoints, frames. An attack is a short function: on path it turns the
frames of one connection into what is delivered instead, an outsider has an address and recordings.
The verdict is what the victims did, never whether bytes came back. Nothing here weakens anything.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import operator
import queue
import secrets
import socket
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from channel import EndRequested
from client import Client
from crypto_utils import (
    TAG_BYTES,
    aes_cbc_decrypt,
    derive_key,
    hmac_verify,
    pkcs7_pad,
    pkcs7_unpad,
)
from endpoint import DEMO_KEYS, HOST, OPCODE_NAMES, PORT, choose_keys
from program import Parser, UserError, host_and_port, run_program, write_text
from protocol_fsm import (
    CIPHERTEXT_AT,
    HEADER,
    KEY_LABELS,
    BadTag,
    ConnectionCut,
    DeadlineExpired,
    Direction,
    EchoMismatch,
    Header,
    Message,
    Opcode,
    PeerTerminated,
    ProtocolError,
    RoundMismatch,
    Session,
    Status,
    UnexpectedOpcode,
    WrongDirection,
    WrongPeer,
    bind_keys,
    encode_body,
    evolve_c2s,
    read_frame,
    write_frame,
)
from server import Epoch, Limits, Record, Server

# The proxy: a man in the middle of one connection. It knows frames, and no protocol ---------------


class Frame(NamedTuple):
    """A message on the wire, and whom it is for: "client" or "server"."""

    to: str
    message: bytes


Frames = Iterator[Frame]
Log = Callable[[str, Frame], None]


class Proxy:
    """Listens on loopback, connects on to the server, and delivers what `tap` yields, only that.

    `read_frame(recv)` and `write_frame(sendall, message)` are the framing of the protocol. When
    `tap` ends, both connections are cut.
    """

    def __init__(
        self,
        server: tuple[str, int],
        tap: Callable[[Frames], Frames],
        read_frame: Callable[[Callable[[int], bytes]], bytes],
        write_frame: Callable[[Callable[[bytes], object], bytes], None],
    ) -> None:
        self._server = server
        self._tap = tap
        self._read_frame = read_frame
        self._write_frame = write_frame
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._seen: queue.SimpleQueue[tuple[str, bytes | None]] = queue.SimpleQueue()
        self.address: tuple[str, int] = self._listener.getsockname()

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(OSError):  # wakes an accept that nobody came for
            socket.create_connection(self.address).close()
        self._thread.join(5.0)  # a server that never closes holds nobody up for ever
        self._listener.close()

    def _run(self) -> None:
        client, _ = self._listener.accept()
        with suppress(ConnectionError), client, socket.create_connection(self._server) as server:
            ends = {"client": client, "server": server}
            for to, sock in (("server", client), ("client", server)):
                threading.Thread(target=self._listen, args=(to, sock), daemon=True).start()
            for frame in self._tap(self._frames(ends)):
                with suppress(OSError):  # one end may have closed; the other goes on
                    self._write_frame(ends[frame.to].sendall, frame.message)
            for sock in ends.values():
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _listen(self, to: str, sock: socket.socket) -> None:
        try:
            while True:
                self._seen.put((to, self._read_frame(sock.recv)))
        except Exception:  # cut, reset, or no frame: for the proxy all of them are the end
            self._seen.put((to, None))

    def _frames(self, ends: dict[str, socket.socket]) -> Frames:
        still_open = 2
        while still_open:
            to, message = self._seen.get()
            if message is not None:
                yield Frame(to, message)
                continue
            still_open -= 1
            with suppress(OSError):
                ends[to].shutdown(socket.SHUT_WR)


# What the victims do, and what is seen of it ------------------------------------------------------

VICTIM = 3
BYSTANDER = 4
OTHER = 5  # OTHER is a bystander, too
READINGS = ([100.0, 20.5, 21.0, 22.5], [101.0], [102.0])  # what the victim reports, round by round
OLD_READINGS = ([41.0], [42.0], [43.0])  # in recordings that are put in the place of these
LIMITS = Limits(window_s=0.3, stranger_timeout_s=0.8, frame_timeout_s=0.3, max_strangers=8)
TIMEOUT_S = 0.4
FOREIGN_TIMEOUT_S = 2.5  # for an answer: of our server, of any other


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


# Goals: what the adversary has won, in words; empty if nothing
learned = operator.attrgetter("learned")


def forged(outcome: Outcome) -> str:
    """Say what an end believed that its partner never said."""
    if unsent := Counter(map(str, outcome.accepted)) - Counter(map(str, outcome.sent)):
        return f"the server aggregates {min(unsent)}, which the client did not send"
    if outcome.answers != outcome.answered[: len(outcome.answers)]:
        return "the client believes an answer that the server did not give"
    return ""


def fooled(who: str, outcome: Outcome) -> str:
    """Say if this end takes for a farewell what was none."""
    ended = any(isinstance(error, PeerTerminated) for error in outcome.errors[who])
    return f"the {who} believes that its peer has said goodbye" if ended else ""


def counted(outcome: Outcome) -> str:
    """Say if the first report counts, though it was touched or held, or counts for another."""
    return "the report counts all the same" if READINGS[0] in outcome.accepted else forged(outcome)


def alone_in_a_session(outcome: Outcome) -> str:
    """Say if the client has begun to report to a server that never heard of it."""
    return "the client reports to itself" if outcome.sent and not outcome.accepted else ""


def crowded(outcome: Outcome) -> str:
    """Say if no stranger had to go for another."""
    made_room = any(isinstance(error, EndRequested) for error in outcome.errors["server"])
    return "" if made_room else "the server keeps as many strangers as come"


class Parts(NamedTuple):
    """What the lab is built from: the real parts, or weakened ones from classroom/weakened.py."""

    session: Callable[..., Session] = Session
    server: Callable[..., Server] = Server
    client: Callable[..., Client] = Client


class Line:
    """An outsider's own connection to the server."""

    def __init__(self, sock: socket.socket, log: Log) -> None:
        self.socket = sock
        self._log = log

    def send(self, message: bytes) -> None:
        self._log("inserted", Frame("server", message))
        with suppress(OSError):  # the server may have had enough
            write_frame(self.socket.sendall, message)

    def receive(self) -> bytes:
        """Return the next message, or nothing when the server has closed."""
        with suppress(OSError, ProtocolError):
            message = read_frame(self.socket.recv)
            self._log("sent", Frame("client", message))
            return message
        return b""


class CutHere(Exception):
    """An attack cuts the connection, or has missed its frame; if it just ends, the rest passes."""


class Lab:
    """A server, a victim, two bystanders who never stop, and recordings of two earlier sessions.

    `foreign` is a server in another process: the verdict is what it says last before it closes.
    """

    def __init__(
        self,
        seed: str,
        log: Log,
        parts: Parts | None = None,
        foreign: tuple[str, int] | None = None,
        watch: Any = None,
    ) -> None:
        self.seed = seed
        self.outcome = Outcome()
        self._log = log
        self._parts = parts or Parts()
        self.is_foreign = bool(foreign)
        self.is_weakened = bool(parts and not foreign)
        self.victim: Client  # while it is connected
        self.rounds = 0
        self._due = 1  # that the bystanders have done, and should have by now
        self.harm: list[Exception] = []  # that has come to them: there must be none
        # they report when the victim has, so that a run with the same seed has the same epochs
        self._turns = queue.SimpleQueue[bool]()
        self._reports = Counter[int]()
        self.attack = ""
        self._sessions = Counter[str]()
        self._watch = watch  # for the event log
        self._changed = threading.Condition()
        self._connections = 0  # that have not ended yet
        self._server: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        self.address = foreign or ("", 0)
        self._timeout_s = FOREIGN_TIMEOUT_S
        if foreign is None:
            server = self._parts.server(
                DEMO_KEYS, port=0, limits=LIMITS, record=self._see, new_session=self.new_session
            )
            self._server = server
            self.address = server.address
            self._timeout_s = TIMEOUT_S

    def __enter__(self) -> Lab:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._server)
            self.tape = self.honest_session(VICTIM)  # HELLO, CHALLENGE, report, answer, report, ...
            self.older_tape, self.other_tape = (
                self.honest_session(client_id, OLD_READINGS) for client_id in (VICTIM, OTHER)
            )
            bystanders = threading.Thread(target=self._stand_by, daemon=True)
            bystanders.start()
            stack.callback(bystanders.join)
            stack.callback(self._turns.put, False)
            self._wait(lambda: self.rounds > 0)
            self._close = stack.pop_all().close
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def log(self, event: str, frame: Frame) -> None:
        if (event, frame.to) == ("sent", "client"):
            self.outcome.said.append(OPCODE_NAMES.get(frame.message[0], "no opcode"))
        self._log(event, frame)

    def new_session(self, client_id: int, key: bytes, sends: Direction) -> Session:
        """Return a session whose randomness depends on seed and attack, and on nothing else."""
        name = f"{self.seed} {self.attack} {client_id} {sends.name}"
        self._sessions[name] += 1
        source = random_source(f"{name} {self._sessions[name]}")
        session = self._parts.session(client_id, key, sends, random_bytes=source)
        if self._watch and self.attack:
            self._watch.noting(session, ("client", "server")[sends], PeerTerminated)
        return session

    def client(self, client_id: int, address: tuple[str, int] | None = None) -> Client:
        """Return an honest client, whose end the lab will wait for."""
        with self._changed:
            self._connections += client_id not in (BYSTANDER, OTHER)
        return self._parts.client(
            client_id,
            DEMO_KEYS,
            *(address or self.address),
            timeout_s=self._timeout_s,
            new_session=self.new_session,
        )

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

        try:
            with (
                Proxy(self.address, listen, read_frame, write_frame) as proxy,
                self.client(client_id, proxy.address) as client,
            ):
                for readings in reports:
                    client.report(readings)
        except ProtocolError as error:
            raise UserError(f"no honest session at port {self.address[1]}: {error}") from None
        return tape

    def _stand_by(self) -> None:
        try:
            with self.client(BYSTANDER) as one, self.client(OTHER) as other:
                one.report([1.0])  # alone, so that the first epoch of the other waits for it
                self._turns.put(True)
                while self._turns.get():
                    other.channel.send(Opcode.CLIENT_DATA, b"[1.0]")
                    self._wait(lambda: self.is_foreign or self._reports[OTHER] > len(OLD_READINGS))
                    one.report([1.0])
                    other.channel.receive(time.monotonic() + self._timeout_s)
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
        """Tell whether both do another round, and nothing has ever happened to them."""
        self._take_turn()
        return self._wait(lambda: self.rounds == self._due) and not self.harm

    def _wait(self, until: Callable[[], bool]) -> bool:
        with self._changed:
            return self._changed.wait_for(until, 5.0)

    def _see(self, record: Record) -> None:
        detail = record.detail
        outcome = self.outcome
        with self._changed:
            self._reports[record.client_id] += isinstance(detail, Message)
            if isinstance(detail, Epoch) and VICTIM in (detail.answers or {}):
                outcome.answered.append((detail.answers or {})[VICTIM].decode())
            elif record.client_id not in (BYSTANDER, OTHER) and isinstance(detail, Message):
                outcome.accepted.append(detail.readings)
                self._take_turn()
            elif record.client_id not in (BYSTANDER, OTHER) and isinstance(detail, Exception):
                outcome.errors["server"].append(detail)
                self._connections -= 1
            self._changed.notify_all()

    def suffer(self, attack: Attack) -> Outcome:
        """Let the victim live a session under attack, and return what became of it."""
        self.outcome = Outcome()
        self.attack = attack.name
        self._sessions.clear()
        if attack.is_on_path:
            tap = partial(self._attacked, attack)
            with Proxy(self.address, tap, read_frame, write_frame) as proxy:
                self._live(proxy.address, attack)
        else:
            self._live(self.address, attack)
        self._wait(lambda: self.is_foreign or self._connections == 0)  # it may need a moment longer
        return self.outcome

    def _live(self, address: tuple[str, int], attack: Attack) -> None:
        outcome = self.outcome
        try:
            with self.client(VICTIM, address) as self.victim:
                for readings in READINGS[:1] if attack.hasty else READINGS:
                    outcome.sent.append(readings)
                    if self.is_foreign:  # its records tell nobody that the victim has reported
                        self._take_turn()
                    if attack.hasty:  # says goodbye without waiting for the answer
                        self.victim.channel.send(Opcode.CLIENT_DATA, encode_body(readings))
                        continue
                    outcome.answers.append(encode_body(self.victim.report(readings)).decode())
                    if readings is READINGS[0] and not attack.is_on_path:
                        attack.run(self)
        except ProtocolError as error:
            outcome.errors["client"].append(error)

    def _attacked(self, attack: Attack, frames: Frames) -> Frames:
        """Yield what the attack makes of the frames, and log what it sees and does."""
        seen: list[Frame] = []

        def watched() -> Frames:
            for frame in frames:
                seen.append(frame)
                self.log("sent", frame)
                yield frame

        wire = watched()
        with suppress(CutHere, ProtocolError, UserError, RuntimeError):  # of a StopIteration
            for frame in itertools.chain(attack.run(wire, self), wire):
                self.log("delivered" if frame in seen else "inserted", frame)
                yield frame


def random_source(name: str) -> Callable[[int], bytes]:
    """Return a source of bytes that are always the same for the same name."""
    start = name.encode(errors="surrogateescape")
    counter = itertools.count()
    return lambda length: hashlib.shake_256(b"%b %d" % (start, next(counter))).digest(length)


# The catalogue ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Attack:
    """One attack: what runs, and where it must fail. `noticed`: nothing prevents it, but this."""

    name: str
    story: str
    claim: str  # its family in SECURITY.md
    run: Callable[..., Any]  # (frames, lab), or (lab) from outside
    is_on_path: bool
    who: str  # refuses it: "client" or "server"
    error: type[Exception] | None
    goal: Callable[[Outcome], str] = forged
    noticed: str = ""
    hasty: bool = False  # the victim says goodbye without waiting for an answer


ATTACKS: dict[str, Attack] = {}


def attack(
    claim: str, who: str, error: type[Exception] | None, **options: Any
) -> Callable[[Any], Any]:
    """Register a generator over frames, or an outsider's function, which takes only the lab."""

    def register(run: Any) -> Any:
        name = run.__name__.replace("_", "-")
        is_on_path = run.__code__.co_argcount == 2
        ATTACKS[name] = Attack(name, run.__doc__, claim, run, is_on_path, who, error, **options)
        return run

    return register


def change(
    claim: str,
    who: str,
    error: type[Exception],
    name: str,
    story: str,
    how: Callable[[Frame, Lab], Frame | None],
    at: Opcode = Opcode.CLIENT_DATA,
    **options: Any,
) -> None:
    """Register an attack on the first message of one kind: what `how` returns takes its place."""

    def run(frames: Frames, lab: Lab) -> Frames:
        if changed := how((yield from up_to(frames, at)), lab):
            yield changed

    run.__name__ = name
    run.__doc__ = story
    attack(claim, who, error, **options)(run)


def up_to(frames: Frames, opcode: Opcode) -> Generator[Frame, None, Frame]:
    """Deliver everything up to the first frame of one kind, and return that. Raises CutHere."""
    for frame in frames:
        if frame.message[0] == opcode:
            return frame
        yield frame
    raise CutHere


def xored(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other))


def pieces(message: bytes) -> tuple[bytes, bytes, bytes]:
    """Return header and IV, and the first two blocks of the ciphertext."""
    second = CIPHERTEXT_AT + 16
    return message[:CIPHERTEXT_AT], message[CIPHERTEXT_AT:second], message[second : second + 16]


def flipped(frame: Frame, position: int, mask: int = 1) -> Frame:
    """Flip the bits of `mask` in one byte of a message; -1 is its last."""
    message = bytearray(frame.message)
    message[position] ^= mask
    return frame._replace(message=bytes(message))


def edited(frame: Frame, **fields: int) -> Frame:
    """Rewrite header fields of a message."""
    header = Header(*HEADER.unpack_from(frame.message))._replace(**fields)
    return frame._replace(message=HEADER.pack(*header) + frame.message[HEADER.size :])


def editing(**fields: int) -> Callable[[Frame, Lab], Frame]:
    return lambda frame, lab: edited(frame, **fields)


def again(frames: Frames, opcode: Opcode, **fields: int) -> Frames:
    """Deliver a message twice, the second time with some header fields rewritten."""
    message = yield from up_to(frames, opcode)
    yield message
    answer = next(frames)  # held, so that the client says nothing before the server has reacted
    yield edited(message, **fields)
    yield from (answer, next(frames))


@attack("freshness", "server", RoundMismatch)
def replay_report(frames: Frames, lab: Lab) -> Frames:
    """A report is delivered twice."""
    yield from again(frames, Opcode.CLIENT_DATA)


@attack("freshness", "server", BadTag)
def replay_rewritten(frames: Frames, lab: Lab) -> Frames:
    """An old report comes again, with the new round on it."""
    yield from again(frames, Opcode.CLIENT_DATA, round_number=2)


@attack("order", "server", UnexpectedOpcode)
def repeat_hello(frames: Frames, lab: Lab) -> Frames:
    """The CLIENT_HELLO comes again in mid-session."""
    yield from again(frames, Opcode.CLIENT_HELLO)


@attack("session", "server", BadTag)
def replay_session(lab: Lab) -> None:
    """A whole recorded session is replayed."""
    with lab.connect() as line:
        for frame in lab.tape:
            if frame.to == "server":
                line.send(frame.message)
        for _ in lab.tape:
            line.receive()


@attack(
    "session",
    "server",
    ConnectionCut,
    goal=lambda outcome: "an honest client is disturbed" if outcome.errors["client"] else "",
)
def replay_hello(lab: Lab) -> None:
    """A recorded CLIENT_HELLO comes beside the session."""
    with lab.connect() as line:
        line.send(lab.tape[0].message)
        line.receive()


change(
    "session",
    "client",
    EchoMismatch,
    "recorded-challenge",
    "The challenge is replaced by a recorded one.",
    lambda challenge, lab: lab.tape[1],
    Opcode.SERVER_CHALLENGE,
    goal=alone_in_a_session,
)


@attack("session", "client", EchoMismatch)
def recorded_server(frames: Frames, lab: Lab) -> Frames:
    """A recording plays the server."""
    answers = (frame for frame in lab.tape if frame.to == "client")
    for frame in frames:
        if frame.to == "server":
            yield next(answers, Frame("client", frame.message))


change(
    "integrity",
    "server",
    BadTag,
    "flip-reading",
    "One bit flips, to make the reading 100 a 900.",
    lambda report, lab: flipped(
        report,
        CIPHERTEXT_AT + 1,  # decrypts into the next block
        ord("1") ^ ord("9"),
    ),
)
change(
    "integrity",
    "server",
    BadTag,
    "flip-iv",
    "One bit of the IV flips.",
    lambda report, lab: flipped(report, HEADER.size),
    goal=counted,
)
change(
    "integrity",
    "server",
    BadTag,
    "flip-tag",
    "One bit of the tag flips.",
    lambda report, lab: flipped(report, -1),
    goal=counted,
)
change(
    "integrity",
    "client",
    BadTag,
    "flip-answer",
    "One bit of an answer flips, by its IV.",
    lambda answer, lab: flipped(answer, HEADER.size + len(b'\0{"')),  # of the e of "epoch"
    Opcode.SERVER_AGGR_RESPONSE,
)
change(
    "integrity",
    "server",
    UnexpectedOpcode,
    "edit-opcode",
    "A report is relabelled a CLIENT_HELLO.",
    editing(opcode=Opcode.CLIENT_HELLO),
    goal=counted,
)
change(
    "integrity",
    "server",
    WrongPeer,
    "edit-client-id",
    "A report is relabelled as another client's.",
    editing(client_id=OTHER),
    goal=counted,
)
change(
    "integrity",
    "server",
    RoundMismatch,
    "edit-round-number",
    "A report is moved to the next round.",
    editing(round_number=2),
    goal=counted,
)
change(
    "integrity",
    "server",
    WrongDirection,
    "edit-direction",
    "A report is relabelled as from the server.",
    editing(direction=Direction.S2C),
    goal=counted,
)
change(
    "integrity",
    "server",
    BadTag,
    "swap-opcode",
    "A report is relabelled as a goodbye.",
    editing(opcode=Opcode.TERMINATE),
    goal=partial(fooled, "server"),
)


@attack("integrity", "server", BadTag)
def truncate(frames: Frames, lab: Lab) -> Frames:
    """A report loses its end, and gets a new padding."""
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    message = report.message[: -TAG_BYTES - 16] + report.message[-TAG_BYTES:]
    shorter = flipped(Frame("server", message), CIPHERTEXT_AT + 14, ord(".") ^ ord("]"))
    yield flipped(shorter, CIPHERTEXT_AT + 15, ord("0") ^ 1)


change(
    "integrity",
    "server",
    BadTag,
    "extend",
    "A report gets its last block once more.",
    lambda report, lab: report._replace(
        message=report.message[:-TAG_BYTES] + report.message[-TAG_BYTES - 16 :]
    ),
)


@attack("integrity", "server", BadTag)
def inject_report(frames: Frames, lab: Lab) -> Frames:
    """A report is made up without any key."""
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    iv = random_source(lab.seed)(16)
    tag = bytes(TAG_BYTES)
    made_up = pkcs7_pad(bytes(16) + b"[900.0]")  # in clear: nobody without a key can encrypt it
    yield report._replace(message=report.message[: HEADER.size] + iv + made_up + tag)


change(
    "identity",
    "server",
    WrongPeer,
    "splice-client",
    "Another client's report is put in its place.",
    lambda report, lab: lab.other_tape[2],
)
change(
    "identity",
    "server",
    BadTag,
    "splice-client-rewritten",
    "The same, with the victim's id on it.",
    lambda report, lab: edited(lab.other_tape[2], client_id=VICTIM),
)
change(
    "session",
    "server",
    BadTag,
    "splice-session",
    "An earlier session's report is put in its place.",
    lambda report, lab: lab.older_tape[2],
)
change(
    "direction",
    "client",
    WrongDirection,
    "reflect",
    "A report comes back to the client that sent it.",
    lambda report, lab: Frame("client", report.message),
)
change(
    "direction",
    "client",
    WrongDirection,
    "reflect-hello",
    "A CLIENT_HELLO comes back as the challenge.",
    lambda hello, lab: edited(Frame("client", hello.message), opcode=Opcode.SERVER_CHALLENGE),
    Opcode.CLIENT_HELLO,
    goal=alone_in_a_session,
)
change(
    "direction",
    "client",
    BadTag,
    "reflect-rewritten",
    "A report comes back, dressed up as the answer.",
    lambda report, lab: edited(
        Frame("client", report.message), direction=Direction.S2C, opcode=Opcode.SERVER_AGGR_RESPONSE
    ),
)


@attack("order", "server", BadTag, goal=partial(fooled, "server"), hasty=True)
def reorder(frames: Frames, lab: Lab) -> Frames:
    """The goodbye overtakes the report before it."""
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    yield (yield from up_to(frames, Opcode.TERMINATE))
    yield report


change(
    "ending",
    "server",
    BadTag,
    "drop-report-keep-goodbye",
    "A report vanishes, and the goodbye after it arrives.",
    lambda report, lab: None,
    goal=partial(fooled, "server"),
    hasty=True,
)
change(
    "ending",
    "client",
    BadTag,
    "forge-terminate",
    "An answer is relabelled as the server's farewell.",
    editing(opcode=Opcode.TERMINATE),
    Opcode.SERVER_AGGR_RESPONSE,
    goal=partial(fooled, "client"),
)


@attack("ending", "server", BadTag, goal=partial(fooled, "server"))
def forge_goodbye(frames: Frames, lab: Lab) -> Frames:
    """A report whose text is known is made a goodbye."""
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    head, block, last = pieces(report.message)
    text = encode_body(READINGS[0])[:16]
    goodbye = pkcs7_pad(bytes([Status.GOODBYE]))
    block = xored(block, xored(text, goodbye))  # which decrypts into the block behind it
    yield edited(Frame("server", head + block + last + bytes(TAG_BYTES)), opcode=Opcode.TERMINATE)


@attack("ending", "server", ConnectionCut, goal=partial(fooled, "server"))
def cut(frames: Frames, lab: Lab) -> Frames:
    """The connection is cut after the first round."""
    yield (yield from up_to(frames, Opcode.SERVER_AGGR_RESPONSE))
    raise CutHere


change(
    "loss",
    "client",
    DeadlineExpired,
    "drop-report",
    "A report vanishes.",
    lambda report, lab: None,
    noticed="the client's deadline",
)
change(
    "loss",
    "client",
    DeadlineExpired,
    "drop-answer",
    "An answer vanishes.",
    lambda answer, lab: None,
    Opcode.SERVER_AGGR_RESPONSE,
    noticed="the client's deadline",
)


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
    with lab.client(VICTIM) as again:
        lab.outcome.sent.append([7.0])
        again.report([7.0])
    yield report


@attack("identity", "server", BadTag, goal=learned)
def unknown_client(lab: Lab) -> None:
    """A CLIENT_HELLO comes from an unknown id."""
    with lab.connect() as line:
        line.send(edited(lab.tape[0], client_id=77).message)
        if line.receive():
            lab.outcome.learned = "nobody's CLIENT_HELLO is answered"


@attack("availability", "server", DeadlineExpired, goal=learned)
def slow_drip(lab: Lab) -> None:
    """A CLIENT_HELLO drips in, byte by byte."""
    frame = len(lab.tape[0].message).to_bytes(2, "big") + lab.tape[0].message
    with lab.connect() as line, suppress(ConnectionError):
        line.socket.settimeout(LIMITS.frame_timeout_s / 10)  # so 10 bytes fit into the deadline
        for count in range(len(frame)):
            line.socket.sendall(frame[count : count + 1])
            if count == 18:
                lab.outcome.learned = "a frame takes as long as it likes"
            with suppress(TimeoutError):
                if not line.socket.recv(1):
                    return


@attack("availability", "server", EndRequested, goal=crowded)
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
    report = lab.tape[2].message
    known = b""
    head, block, last = pieces(report)

    def ask(untagged: bytes) -> bytes:
        with lab.connect() as line:
            line.send(lab.tape[0].message)
            line.receive()
            line.send(untagged + bytes(TAG_BYTES))
            return line.receive()[:1]

    if ask(report[:-TAG_BYTES]) == ask(report[: -TAG_BYTES - 16] + block):
        return  # good padding and bad look alike
    while len(known) < 16:  # of the second block, from its end
        aim = len(known) + 1
        answers: list[bytes] = []
        for guess in range(256):
            mask = bytes([*bytes(16 - aim), guess, *(aim ^ byte for byte in known)])
            answers.append(ask(head + xored(block, mask) + last))
        rare = [guess for guess, said in enumerate(answers) if said and answers.count(said) <= 2]
        if not rare:
            return  # all refusals look alike
        known = bytes([aim ^ rare[-1]]) + known
    connections = 2 + 256 * len(known)
    lab.outcome.learned = f"{known.decode(errors='replace')}, in {connections} connections"


def unsealed(keys: dict[str, bytes], sender: str, message: bytes) -> bytes:
    """Return the plaintext of a message, nothing if these chain keys do not fit."""
    iv = message[HEADER.size : CIPHERTEXT_AT]
    ciphertext = message[CIPHERTEXT_AT:-TAG_BYTES]
    with suppress(ValueError):  # of a session that does not encrypt
        if hmac_verify(keys[f"{sender}-MAC"], message[:-TAG_BYTES], message[-TAG_BYTES:]):
            return pkcs7_unpad(aes_cbc_decrypt(ciphertext, keys[f"{sender}-ENC"][:16], iv))
    return b""


@attack("theft", "", None, goal=learned, noticed="nothing")
def stolen_chain_keys(frames: Frames, lab: Lab) -> Frames:
    """The chain keys are stolen after round 1."""
    reports = []
    known: list[dict[str, bytes]] = []
    read = []
    for frame in frames:
        if frame.message[0] == Opcode.CLIENT_DATA:
            reports.append(frame.message)
        if frame.message[0] == Opcode.SERVER_AGGR_RESPONSE and not known:
            known = [dict(lab.victim.session._keys)]
        yield frame
    for number, report in enumerate(reports, 1):
        opened = [(keys, text) for keys in known if (text := unsealed(keys, "C2S", report))]
        ciphertext = report[CIPHERTEXT_AT:-TAG_BYTES]
        known += [evolve_c2s(keys, ciphertext, text[:16]) for keys, text in opened]
        read.append(f"round {number} {'open' if opened else 'closed'}")
    lab.outcome.learned = ", ".join(read)


@attack("theft", "", None, goal=learned, noticed="nothing")
def stolen_master_key(lab: Lab) -> None:
    """The master key opens an old recording."""
    keys = {label: derive_key(DEMO_KEYS[VICTIM], label) for label in KEY_LABELS}
    hello, challenge, report = (frame.message for frame in lab.tape[:3])
    keys = bind_keys(keys, unsealed(keys, "C2S", hello)[:16], unsealed(keys, "S2C", challenge)[17:])
    lab.outcome.learned = f"the recorded reading {unsealed(keys, 'C2S', report)[16:].decode()}"


@attack("theft", "client", PeerTerminated, noticed="the client, who is REPLACED")
def guessed_key(lab: Lab) -> None:
    """The key is a demo key, and somebody uses it."""
    with lab.client(VICTIM) as impostor:
        impostor.report([900.0])


# Telling it ---------------------------------------------------------------------------------------

DOCUMENTED = (  # the six families that the documents announce, in their order
    "flip-reading",
    "flip-iv",
    "truncate",
    "extend",
    "flip-tag",
    "edit-round-number",
    "replay-rewritten",
    "drop-report",
    "drop-answer",
    "reorder",
    "replay-report",
    "replay-session",
    "recorded-server",
    "reflect",
    "reflect-rewritten",
)


class Result(NamedTuple):
    """How one attack ended."""

    attack: Attack
    as_expected: bool
    words: str
    won: str


def judge(attack: Attack, lab: Lab) -> Result:
    """Compare what the victims did with what they should have done."""
    outcome = lab.outcome
    who = attack.who
    expected = attack.error.__name__ if attack.error else ""
    won = attack.goal(outcome)
    met = [type(e).__name__ for e in outcome.errors.get(who, [])]
    if lab.is_foreign:
        won = outcome.learned  # what else could be won is seen inside the server only
    if lab.is_foreign and who == "server":  # which tells a stranger nothing
        answers = [n for n in outcome.said if n == "SERVER_AGGR_RESPONSE"]
        answers = answers[1:] if attack.claim == "freshness" else answers  # the original's
        who = "wire"
        met = [*answers, *outcome.said[-1:], "closed"][:1]
        refusal = "KEY_DESYNC_ERROR" if attack.error is RoundMismatch else "TERMINATE"
        expected = refusal if outcome.said else "closed"
    if not lab.bystanders_go_on():
        return Result(attack, False, "a bystander was harmed", won)
    if won and not attack.noticed:
        return Result(attack, False, f"WON: {won}", won)
    if expected and expected not in met:  # without some rules another check may refuse as well
        refused = lab.is_weakened and bool({*met} - {"PeerTerminated", "ConnectionCut"})
        return Result(attack, refused, f"{who}: {[*met, 'nothing'][0]}", won)
    refused_by = f"{who}: {expected}" if expected else "nothing learned"
    return Result(attack, True, "not prevented" if attack.noticed else refused_by, won)


def summary(results: Sequence[Result]) -> str:
    """Return a table by family, and how the attacks are noticed that nothing prevents."""
    lines = [f"{'family':<14}{'attacks':>8}{'refused':>9}{'not prevented':>15}{'wrong':>7}"]
    for claim in dict.fromkeys(result.attack.claim for result in results):
        of_claim = [result for result in results if result.attack.claim == claim]
        open_ends = sum(bool(result.attack.noticed) for result in of_claim if result.as_expected)
        wrong = sum(not result.as_expected for result in of_claim)
        lines.append(
            f"{claim:<14}{len(of_claim):>8}{len(of_claim) - open_ends - wrong:>9}"
            f"{open_ends:>15}{wrong:>7}"
        )
    lines += [
        f"{attack.name}: noticed by {attack.noticed}" + (f"; won: {won}" if won else "")
        for attack, _, _, won in results
        if attack.noticed
    ]
    return "\n".join(line for text in lines for line in textwrap.wrap(text, 79))


def details(result: Result, events: Sequence[dict[str, Any]], lab: Lab) -> str:
    """Return at most 20 lines: what went over the wire, which bytes were touched, who said no."""
    lines: list[str] = []
    before = b""
    for event, message in ((event, bytes.fromhex(event["message"])) for event in events):
        touched = [n for n, (old, new) in enumerate(zip(before, message)) if old != new]
        lines.append(
            f"  {event['event']:<9} to {event['to']}: "
            f"{OPCODE_NAMES.get(message[0], message[0])}, {len(message)} bytes"
        )
        if event["event"] == "inserted" and 0 < len(touched) <= 3:
            lines += [f"    byte {n}: {before[n]:02x} -> {message[n]:02x}" for n in touched]
        before = message if event["event"] == "sent" else before
    if len(lines) > 13:
        lines[10:-2] = [f"  ... {len(lines) - 12} lines more ..."]
    lines += [f"  {who} ended: {errors[0]}" for who, errors in lab.outcome.errors.items() if errors]
    fate = "another round each" if lab.rounds == lab._due else "harmed"
    return "\n".join(
        [
            f"{result.attack.name}: {result.attack.story}",
            *lines,
            f"  bystanders 4 and 5: {fate}\n  {result.words}",
        ]
    )


def server_to_attack(options: argparse.Namespace) -> tuple[str, int] | None:
    """Return where a server is that is not ours: the one asked for, or the one found. UserError."""
    asked: tuple[str, int] | None = options.server
    if options.seed is None and options.without is None:
        with suppress(OSError), socket.create_connection(asked or (HOST, PORT), 1.0):
            asked = asked or (HOST, PORT)
    elif asked:
        raise UserError("--seed and --without need the lab's own server")
    choose_keys(None, asked[0] if asked else HOST)  # the demo keys are for loopback only
    return asked


def main() -> int:
    parser = Parser(f"Attacks the server on {HOST}:{PORT}, or one of its own.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="some of the attacks, in detail")
    parser.add_argument("--list", action="store_true", help="name all attacks, and stop")
    parser.add_argument("--server", type=host_and_port, metavar="HOST:PORT", help="attack this one")
    parser.add_argument("--seed", help="repeat a run byte for byte, on a server of its own")
    parser.add_argument("--events", metavar="FILE", help="write what happened, as lines of JSON")
    parser.add_argument("--json", action="store_true", help="print results as lines of JSON")
    parser.add_argument("-v", "--verbose", action="store_true", help="all attacks in detail")
    parser.add_argument("--step", action="store_true", help="wait for Enter before each attack")
    parser.add_argument("--without", metavar="A,B", help="take rules out of the lab's endpoints")
    options = parser.options()
    parts = None
    watch = None
    seed = options.seed or secrets.token_hex(4)
    if options.without is not None:
        from classroom.weakened import without  # insecure code is loaded when it is asked for

        parts = Parts(*without(options.without.split(",")))
    names = [n for name in options.names for n in (DOCUMENTED if name == "documented" else [name])]
    if unknown := {*names} - ATTACKS.keys():
        raise UserError(f"no attack is named {min(unknown)}; --list names them all")
    if options.list:
        print("\n".join(f"{attack.name:<26}{attack.story}" for attack in ATTACKS.values()))
        return 0
    results: list[Result] = []
    events: list[dict[str, Any]] = []
    foreign = server_to_attack(options)
    if options.events:
        from classroom.events import Watch  # attacks.py is read without it

        watch = Watch()

    def log(event: str, frame: Frame) -> None:
        events.append(
            {"attack": lab.attack, "event": event, "to": frame.to, "message": frame.message.hex()}
        )

    def say(text: str) -> None:
        print(end="" if options.json else f"{text}\n", flush=True)

    with Lab(seed, log, parts, foreign, watch) as lab:
        where = "server {}:{}".format(*foreign) if foreign else f"seed {seed}"
        say(f"honest session first: worked ({where})")
        for attack in map(ATTACKS.__getitem__, dict.fromkeys(names or ATTACKS)):
            if foreign and lab.harm:  # it is gone, or too slow: no verdict would mean anything
                break
            if foreign and (attack.claim == "availability" or attack.error is ConnectionCut):
                say(f"{attack.name}: skipped, it needs the clock or the insides of the server")
                continue
            if options.step:
                input(f"Enter starts {attack.name} ")
            begin = len(events)
            rounds = lab.rounds
            outcome = lab.suffer(attack)
            results.append(result := judge(attack, lab))
            if options.json:
                print(json.dumps({**result._asdict(), "attack": attack.name}), flush=True)
            say(
                details(result, events[begin:], lab) + "\n"
                if options.verbose or options.names
                else textwrap.fill(f"{attack.story:<53}{result.words}", 79, subsequent_indent="  ")
            )
            ended = [
                {"event": "ended", "by": who, "error": type(error).__name__}
                for who, errors in outcome.errors.items()
                for error in errors
            ]
            judged = {
                "event": "judged",
                **result._asdict(),
                "attack": attack.name,
                "story": attack.story,
                "claim": attack.claim,
                "noticed": attack.noticed,
                "without": options.without or "",
                "bystanders": lab.rounds - rounds,
            }
            events += [
                {"attack": attack.name, **line}
                for line in (*(watch.told() if watch else ()), *sorted(ended, key=repr), judged)
            ]
        lab.honest_session(VICTIM)
    say(f"honest session last: worked\n\n{summary(results)}")
    if options.events:
        write_text(options.events, "".join(json.dumps(event) + "\n" for event in events))
    return int(not all(result.as_expected for result in results))


if __name__ == "__main__":
    run_program(main)
