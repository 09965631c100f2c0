"""A fourth protocol in one page: it needs a protocol, a catalogue and rules, and no change below.

A client sends numbered texts under a tag, and the server answers each with its number. It stands on
the core's StateMachine and errors, on channel.py and on lab/, as the companions do.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import pytest

from channel import Channel
from crypto_utils import TAG_BYTES, hmac_sha256, hmac_verify
from lab.catalogue import Attack, Catalogue, CutHere, attacked
from lab.claims import read_sets
from lab.events import parse_events, runs_of
from lab.frames import Frame, Frames, flipped
from lab.observer import Observer
from lab.program import Program
from lab.rules import chosen, lacking
from lab.search import Matrix, Trials, search
from lab.tcp import TcpStage
from protocol_fsm import (
    BadTag,
    ConnectionCut,
    MalformedMessage,
    ProtocolError,
    RoundMismatch,
    StateMachine,
    Status,
    UnexpectedOpcode,
    Watcher,
    Watchers,
    read_exactly,
)

KEY = b"a key that both ends hold"
PATIENCE_S = 10.0
TEXTS = ("open door 1", "open door 2")


# The protocol: kind, number, text, tag


class Kind(IntEnum):
    TEXT = 1
    RECEIPT = 2


class State(str, Enum):
    TEXT = "TEXT"
    RECEIPT = "RECEIPT"
    ENDED = "ENDED"


class ToyFSM(StateMachine[State, Kind, Kind]):
    VALID_TRANSITIONS = {  # noqa: RUF012  # a kind is its own sender here
        (State.TEXT, Kind.TEXT, Kind.TEXT): State.RECEIPT,
        (State.RECEIPT, Kind.RECEIPT, Kind.RECEIPT): State.TEXT,
    }
    FIRST = State.TEXT
    LAST = State.ENDED


@dataclass(frozen=True)
class Note:
    kind: Kind
    text: bytes = b""


class Session:
    has_farewell = False

    def __init__(self, watchers: Sequence[Watcher] = ()) -> None:
        self.fsm = ToyFSM()
        self.number = 0
        self.watchers = Watchers(watchers)

    def seal(self, note: Note) -> bytes:
        untagged = bytes([note.kind, self.number]) + note.text
        self._advance(note.kind)
        return untagged + hmac_sha256(KEY, untagged)

    def open(self, message: bytes) -> Note:
        try:
            kind = self._check_kind(message)
            self._check_number(message)
            self._check_tag(message)
        except ProtocolError as error:
            self.watchers.tell(type(error).__name__, message, b"", dict)
            self.fail(error)
            raise
        self._advance(kind)
        self.watchers.tell("accepted", message, message[2:-TAG_BYTES], dict)
        return Note(kind, message[2:-TAG_BYTES])

    def _check_kind(self, message: bytes) -> Kind:
        if not self.fsm.allows(message[0], message[0]):
            raise UnexpectedOpcode(self.fsm.state.name, message[0])
        return Kind(message[0])

    def _check_number(self, message: bytes) -> None:
        if message[1] != self.number:
            raise RoundMismatch(self.number, message[1])

    def _check_tag(self, message: bytes) -> None:
        if not hmac_verify(KEY, message[:-TAG_BYTES], message[-TAG_BYTES:]):
            raise BadTag

    def _advance(self, kind: Kind) -> None:
        self.fsm.advance(kind, kind)
        self.number += kind is Kind.RECEIPT

    def fail(self, error: ProtocolError) -> None:
        self.fsm.end()

    def goodbye(self, status: Status) -> bytes:
        self.fsm.end()
        return b""

    def read_frame(self, recv: Callable[[int], bytes]) -> bytes:
        return read_frame(recv)

    def write_frame(self, sendall: Callable[[bytes], object], message: bytes) -> None:
        write_frame(sendall, message)


def read_frame(recv: Callable[[int], bytes]) -> bytes:
    length_bytes = read_exactly(recv, 1, mid_frame=False)[0]
    if length_bytes < 2 + TAG_BYTES:
        raise MalformedMessage("34 bytes or more", length_bytes)
    return read_exactly(recv, length_bytes, mid_frame=True)


def write_frame(sendall: Callable[[bytes], object], message: bytes) -> None:
    sendall(bytes([len(message)]) + message)


# The lab, the catalogue and the rules


@dataclass
class Outcome:
    heard: list[bytes] = field(default_factory=list)
    errors: dict[str, list[Exception]] = field(default_factory=lambda: {"client": [], "server": []})
    learned: str = ""
    broken: Exception | None = None


class Lab(TcpStage):
    def __init__(
        self, log: Callable[[str, Frame], object], parts: Parts | None, observer: Observer | None
    ) -> None:
        super().__init__(log, observer, read_frame, write_frame)
        self.outcome = Outcome()
        self.is_weakened = parts is not None
        self._new_session = (parts or Parts()).session

    def undergo(self, attack: Attack) -> Outcome:
        outcome = self.outcome = Outcome()
        self.attack = attack.name
        self._live(partial(attacked, attack, lab=self))
        return outcome

    def honest_session(self) -> None:
        self.outcome = Outcome()
        self._live(lambda frames: frames)
        assert self.outcome.heard == [text.encode() for text in TEXTS]

    def bystanders_go_on(self) -> bool:
        return True

    def _live(self, tap: Callable[[Frames], Frames]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = threading.Thread(target=self._serve, args=(listener,))
            server.start()
            self.address = listener.getsockname()
            with self.proxy(tap) as proxy:
                self._report(proxy.address)
                server.join(5.0)

    def _channel(self, sock: socket.socket, end: str) -> Channel[Note]:
        return Channel(sock, self._new_session(self.watchers(end)))

    def _serve(self, listener: socket.socket) -> None:
        channel = self._channel(listener.accept()[0], "server")
        with self._noting("server", channel):
            while True:
                self.outcome.heard.append(channel.receive(time.monotonic() + PATIENCE_S).text)
                channel.send(Note(Kind.RECEIPT))

    def _report(self, address: tuple[str, int]) -> None:
        channel = self._channel(socket.create_connection(address), "client")
        with self._noting("client", channel):
            for text in TEXTS:
                channel.send(Note(Kind.TEXT, text.encode()))
                channel.receive(time.monotonic() + PATIENCE_S)

    @contextmanager
    def _noting(self, end: str, channel: Channel[Note]) -> Iterator[None]:
        try:
            yield
        except ProtocolError as error:
            self.outcome.errors[end].append(error)
        finally:
            channel.leave(Status.GOODBYE)


def forged(outcome: Outcome) -> str:
    said = [text.encode() for text in TEXTS]
    return "" if outcome.heard == said[: len(outcome.heard)] else f"heard {outcome.heard}"


CATALOGUE = Catalogue(forged)


@CATALOGUE.on_path("integrity", "server", BadTag)
def flip_door(frames: Frames, lab: Lab) -> Frames:
    """Door 1 becomes door 3."""
    yield flipped(next(frames), -TAG_BYTES - 1, ord("1") ^ ord("3"))


@CATALOGUE.on_path("freshness", "server", RoundMismatch)
def replay(frames: Frames, lab: Lab) -> Frames:
    """The first text comes again in place of the second."""
    first = next(frames)
    yield first
    yield next(frames)
    yield next(frames).replaced(first)


@CATALOGUE.on_path("ending", "client", ConnectionCut)
def cut(frames: Frames, lab: Lab) -> Frames:
    """The connection is cut before the first receipt."""
    yield next(frames)
    raise CutHere


class NoTag(Session):
    def _check_tag(self, message: bytes) -> None:
        """Believe any tag."""


class NoNumber(Session):
    def _check_number(self, message: bytes) -> None:
        """Take a message of any number."""


RULES: dict[str, type] = {"tag": NoTag, "number": NoNumber}
DOCUMENTED = ()


class Parts(NamedTuple):
    session: type[Session] = Session


def without(names: Iterable[str]) -> Parts:
    return Parts(lacking(Session, chosen(names, RULES, DOCUMENTED)))


TOY = Program(
    description="Attacks a toy.",
    attacks=CATALOGUE.attacks,
    lab=lambda options, log, parts, observer: Lab(log, parts, observer),
    weakened=__name__,
    title=lambda message: Kind(message[0]).name,
)

TRIALS = Trials(
    attacks=CATALOGUE.attacks,
    rules=RULES,
    parts=without,
    lab=lambda parts, number: Lab(lambda *_: None, parts, None),
    heard=("session",),
)


def find(names: Sequence[str], size: int) -> dict[str, list[frozenset[str]]]:
    with ThreadPool(1) as pool:
        return search(names, size, pool, TRIALS.trial)


# What comes with the common rooms


def run_toy(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["toy", *words])
    return TOY.run()


def test_a_new_protocol_has_verdicts_for_its_attacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_toy(monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    verdicts = ["server: BadTag", "server: RoundMismatch", "client: ConnectionCut"]
    assert [line[53:] for line in lines[1:4]] == verdicts


@pytest.mark.parametrize(("rule", "name"), [("tag", "flip-door"), ("number", "replay")])
def test_a_rule_of_a_new_protocol_can_be_taken_out(
    rule: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_toy(monkeypatch, "--without", rule, name) == 1
    assert "WON: heard" in capsys.readouterr().out


def test_a_new_protocol_has_an_event_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "events.jsonl"
    assert run_toy(monkeypatch, "--events", str(log), "flip-door", "replay") == 0
    capsys.readouterr()
    flip, replay = runs_of(parse_events(log.read_text(), "log")[0])
    assert [step.kind for step in flip.steps] == ["changed"]
    assert flip.steps[0].refused == "BadTag"
    assert [step.kind for step in replay.steps] == ["passed", "passed", "replaced"]


def test_the_minimal_sets_of_a_new_protocol_are_searched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["toy", "--write"])
    matrix = Matrix(CATALOGUE.attacks, RULES, tmp_path, find, size=2)
    assert matrix.run() == 0
    found = read_sets(tmp_path / "sets.json")
    assert found.sets == {"flip-door": [["tag"]], "replay": [["number"]], "cut": []}
    assert matrix.text(found, is_whole=False).splitlines()[1:] == [
        f"{'flip-door':<25} {{tag}}",
        f"{'replay':<25} {{number}}",
        f"{'cut':<25} no set of up to 2 rules found",
    ]
