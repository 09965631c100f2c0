"""Attack x defences: the smallest sets of rules without which an attack wins, found by search.

    python -m classroom.matrix
    python -m classroom.matrix --attack replay-session --size 3
    python -m classroom.matrix --write      writes classroom/sets.json

A set is tried in memory: real Sessions, the server's real Roster and Epochs, a wire in place of
sockets, and the attack as attacks.py has it, whose own goal says whether it won. The rules that
need a clock or a thread are tried on sockets, where every set found in memory has to win once more.
"""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from multiprocessing.pool import Pool
from pathlib import Path
from typing import NamedTuple, cast

from attacks import ATTACKS
from channel import EndRequested
from endpoint import DEMO_KEYS
from lab.catalogue import Attack, Stage, attacked, run_outside
from lab.frames import Frame, Frames, Tap, recorder
from lab.rules import Names
from lab.search import TRIES, Found, Matrix, Told, Task, Trials, Tried, progress, search, workers
from lab.search import shown as shown_in_order
from lab.stage import (
    BYSTANDER,
    LIMITS,
    OLD_READINGS,
    OTHER,
    READINGS,
    VICTIM,
    Lab,
    Outcome,
    random_source,
)
from lab.weakened import RULES, without
from program import UserError, run_program
from protocol_fsm import (
    ClientData,
    ClientHello,
    ConnectionCut,
    DeadlineExpired,
    Direction,
    LocalError,
    Message,
    ProtocolError,
    ServerChallenge,
    Session,
    State,
    Status,
    client_id_of,
)
from server import Contribution, Epochs, Roster, compute_aggregation

Script = Generator[None, "bytes | Exception", None]  # waits at each yield for what happens to it
SESSION_RULES = {name: rule for name, rule in RULES.items() if issubclass(rule, Session)}
ROSTER_RULES = {name: rule for name, rule in RULES.items() if issubclass(rule, Roster)}
SERVER_RULES = {
    name: rule for name, rule in RULES.items() if name not in {**SESSION_RULES, **ROSTER_RULES}
}
SEEDS = ("one", "two", "three")  # of the tries
NEED_SOCKETS = {"slow-drip"}  # attacks that need bytes of a frame, and a clock
FOLDER = Path(__file__).parent  # of claims.toml and sets.json

# A lab in memory: what Channel, Member, Client and Lab do, without socket, thread or clock --------


class End:
    """One end of a wire: a session, and a script that lives with it and closes it."""

    def __init__(
        self, wire: deque[Frame], peer: str, session: Session, script: Callable[[End], Script]
    ) -> None:
        self.session = session
        self.is_open = True
        self.client_id = 0  # of a server's end, until the first message names somebody
        self.hello_number = 0
        self._wire = wire
        self._peer = peer
        self._farewell = b""
        self._script = script(self)
        next(self._script, None)

    def happen(self, event: bytes | Exception) -> None:
        """Give the script what it waits for: a message, or why there is none."""
        if self.is_open:
            with contextlib.suppress(StopIteration):
                self._script.send(event)

    def request_end(self, status: Status) -> None:
        """End the session at once, as the threads of Channel do soon."""
        self.happen(EndRequested(status))

    send_away = request_end  # nobody has to be woken here

    def send(self, message: Message) -> None:
        self._wire.append(Frame(self._peer, self.session.seal(message)))

    def receive(self) -> Generator[None, bytes | Exception, Message]:
        return self.open((yield))

    def open(self, event: bytes | Exception) -> Message:
        """Return what a message says. Raises what has happened in place of one."""
        try:
            if isinstance(event, bytes):
                return self.session.open(event)
            if isinstance(event, ProtocolError):
                self.session.fail(event)
            raise event
        except ProtocolError as error:
            self._farewell = error.farewell
            raise

    def leave(self, status: Status) -> None:
        """Send a farewell, that of a failure or else one with `status`, and close."""
        self.is_open = False
        farewell = self._farewell or self.session.goodbye(status)
        if farewell:
            self._wire.append(Frame(self._peer, farewell))
        self._wire.append(Frame(self._peer, CLOSED))


CLOSED = b""  # on a wire, in place of a message


class Line(NamedTuple):
    """An outsider's connection. What does not come at once will not come at all."""

    wire: deque[Frame]
    server: End

    def send(self, message: Frame | bytes) -> None:
        self.server.happen(message.message if isinstance(message, Frame) else message)

    def receive(self) -> bytes:
        return self.wire.popleft().message if self.wire else CLOSED


class Guest:
    """An honest client on an outsider's connection."""

    def __init__(self, line: Line, session: Session) -> None:
        self._line = line
        self._session = session

    def exchange(self, message: Message) -> Message:
        self._line.send(self._session.seal(message))
        return self._session.open(self._line.receive())

    def report(self, readings: Sequence[float]) -> Message:
        return self.exchange(ClientData(readings))

    def leave(self) -> None:
        self._line.send(self._session.goodbye(Status.GOODBYE))


class Pieces(NamedTuple):
    """What a MemoryLab is built from."""

    session: type[Session] = Session
    roster: type[Roster[End]] = Roster


class MemoryLab(Stage):
    """What an attack sees of a Lab. Where nothing is under way, every deadline has passed."""

    def __init__(self, pieces: Pieces, seed: str = SEEDS[0]) -> None:
        self.seed = seed
        self.attack = ""
        self.rounds = 0
        self.outcome = Outcome()
        self.sessions: dict[str, Session] = {}  # of the victim, the newest of each end
        self._pieces = pieces
        self._epochs = Epochs(0.0, compute_aggregation)  # with a window of no time for others
        self._open()

    def __enter__(self) -> MemoryLab:
        self.tape = self.honest_session(VICTIM, READINGS)
        self.older_tape = self.honest_session(VICTIM, OLD_READINGS)
        self.other_tape = self.honest_session(OTHER, OLD_READINGS)
        return self

    def _open(self) -> None:
        """Begin anew, but for epochs: so it does not matter which attacks came before."""
        self._started = Counter[str]()
        self._roster = self._pieces.roster(LIMITS.max_strangers)

    def log(self, deed: str, frame: Frame) -> None:
        """Keep no log."""

    def bystanders_go_on(self) -> bool:
        """Return that nobody was harmed: there are none."""
        return True

    def honest_session(
        self, client_id: int = VICTIM, reports: Sequence[list[float]] = READINGS
    ) -> list[Frame]:
        """Let a client live an undisturbed session, and return its recording. Raises UserError."""
        tape: list[Frame] = []
        self.outcome = Outcome()
        self._live(client_id, recorder(tape), partial(self._report, reports))
        if self.outcome.errors["client"] or len(self.outcome.answers) != len(reports):
            raise UserError("no honest session in memory")
        return tape

    def undergo(self, attack: Attack) -> Outcome:
        """Let the victim live a session under attack, and return what became of it."""
        self._open()
        outcome = self.outcome = Outcome()
        self.attack = attack.name
        if attack.is_on_path:
            tap: Tap = partial(attacked, attack, lab=self)
            reports = READINGS[:1] if attack.hasty else READINGS
            script = partial(self._report, reports, is_hasty=attack.hasty)
        else:
            tap = iter
            script = partial(self._report, READINGS, beside=attack)
        self._live(VICTIM, tap, script)
        return outcome

    # Those who live in it

    def _new_session(self, client_id: int, sends: Direction) -> Session:
        name = f"{self.seed} {self.attack} {client_id} {sends.name}"
        self._started[name] += 1
        source = random_source(f"{name} {self._started[name]}")
        key = DEMO_KEYS.get(client_id, b"a key that nobody has")
        session = self._pieces.session(client_id, key, sends, random_bytes=source)
        if client_id == VICTIM:
            self.sessions["client" if sends is Direction.C2S else "server"] = session
        return session

    def _live(self, client_id: int, tap: Tap, script: Callable[[End], Script]) -> None:
        wire = deque[Frame]()
        client = End(wire, "server", self._new_session(client_id, Direction.C2S), script)
        ends = {"client": client, "server": self._accept(wire)}
        for frame in tap(self._frames(wire, ends)):
            ends[frame.to].happen(frame.message)
        for end in ends.values():
            end.happen(ConnectionCut(mid_frame=False))

    def _frames(self, wire: deque[Frame], ends: Mapping[str, End]) -> Frames:
        while wire or any(end.is_open for end in ends.values()):
            frame = wire.popleft() if wire else None
            if frame and frame.message != CLOSED:
                yield frame
            elif frame:
                ends[frame.to].happen(ConnectionCut(mid_frame=False))
            else:  # the client has less patience than the server
                end = ends["client" if ends["client"].is_open else "server"]
                end.happen(DeadlineExpired("a message", "none"))

    def _report(
        self,
        reports: Sequence[list[float]],
        end: End,
        is_hasty: bool = False,
        beside: Attack | None = None,
    ) -> Script:
        """Do what a Client does; an attack from outside comes after its first report."""
        outcome = self.outcome
        try:
            end.send(ClientHello())
            yield from end.receive()
            for readings in reports:
                outcome.sent.append(readings)
                end.send(ClientData(readings))
                if is_hasty:  # says goodbye without waiting for the answer
                    continue
                answer = yield from end.receive()
                outcome.answers.append(answer.body.decode())
                if beside and readings is READINGS[0]:
                    run_outside(beside, self)
        except (ProtocolError, LocalError) as error:
            outcome.errors["client"].append(error)
        end.leave(Status.GOODBYE)

    # The server

    def _accept(self, wire: deque[Frame]) -> End:
        end = End(wire, "client", self._new_session(0, Direction.S2C), self._serve)
        self._roster.arrive(end)
        return end

    def _serve(self, end: End) -> Script:
        """Do what a Member does."""
        cause: Exception
        try:
            yield from self._converse(end)
        except Exception as error:
            cause = error
        self._roster.leave(end)
        if end.client_id not in (BYSTANDER, OTHER):
            self.outcome.errors["server"].append(cause)
        end.leave(cause.status if isinstance(cause, EndRequested) else Status.SHUTDOWN)

    def _converse(self, end: End) -> Script:
        hello = yield
        if isinstance(hello, bytes):
            end.client_id = client_id_of(hello)
            end.session = self._new_session(end.client_id, Direction.S2C)
        end.open(hello)
        self._roster.number_hello(end)
        end.send(ServerChallenge())
        report = yield from end.receive()
        self._roster.establish(end)
        while True:
            self._answer(end, cast(ClientData, report))  # the table allows nothing else
            if end.session.state is State.ENDED:
                raise EndRequested(Status.GOODBYE)
            report = yield from end.receive()

    def _answer(self, end: End, report: ClientData) -> None:
        contribution = Contribution(end, end.session.round_number, report.readings)
        self._epochs.contribute(contribution, now=0.0)
        if end.client_id not in (BYSTANDER, OTHER):
            self.outcome.accepted.append([*report.readings])
        epoch = self._epochs.close_if_due(now=0.0)
        if not epoch or not epoch.answers:
            raise EndRequested(Status.SHUTDOWN)
        answer = epoch.answers[end.client_id]
        if end.client_id == VICTIM:
            self.outcome.answered.append(answer.body.decode())
        end.send(answer)

    @contextlib.contextmanager
    def connect(self) -> Iterator[Line]:
        """Give an outsider's connection."""
        wire = deque[Frame]()
        line = Line(wire, self._accept(wire))
        yield line
        line.server.happen(ConnectionCut(mid_frame=False))

    @contextlib.contextmanager
    def client(self, client_id: int) -> Iterator[Guest]:
        """Give an honest client of its own connection."""
        with self.connect() as line:
            guest = Guest(line, self._new_session(client_id, Direction.C2S))
            guest.exchange(ClientHello())
            yield guest
            guest.leave()


# The search ---------------------------------------------------------------------------------------


def pieces(names: Names) -> Pieces:
    """Return what a MemoryLab is built from, without some rules."""
    weak = without(names)
    return Pieces(weak.session, cast(type[Roster[End]], weak.server.roster_class))


def idle(outcome: Outcome) -> Names:
    """Return rules that had nothing to do: without them this would have gone the same way."""
    errors = [*outcome.errors["server"], *outcome.errors["client"]]
    requests = {error.status for error in errors if isinstance(error, EndRequested)}
    has_worked = {
        "cut-is-not-goodbye": any(isinstance(error, ConnectionCut) for error in errors),
        "established": len(outcome.errors["server"]) > 1,  # connections
        "hello-order": Status.REPLACED in requests,
        "stranger-cap": Status.TIMEOUT in requests,
    }
    return frozenset(name for name, worked in has_worked.items() if not worked)


MEMORY = Trials(
    attacks=ATTACKS,
    rules={**SESSION_RULES, **ROSTER_RULES},
    parts=pieces,
    lab=lambda pieces, number: MemoryLab(pieces, SEEDS[number]),
    heard=("session", "roster"),
    idle=idle,
)
SOCKETS = Trials(
    attacks=ATTACKS,
    rules=SERVER_RULES,
    parts=without,
    lab=lambda parts, number: Lab(SEEDS[number], lambda *_: None, parts),
    tries=1,  # which are repeated where it matters
)


def in_memory(task: Task) -> list[Tried]:
    """Run attacks in memory."""
    return MEMORY.trial(task)


def on_sockets(task: Task) -> list[Tried]:
    """Run attacks in labs of their own."""
    return SOCKETS.trial(task)


def confirm(found: Found, pool: Pool) -> None:
    """Raise UserError if an attack does not win on sockets, too, without a set that was found."""
    left: list[Task] = [(taken, (name,)) for name, sets in found.items() for taken in sets]
    for _ in range(TRIES):  # a busy machine may miss a deadline
        done = [*progress("confirming", pool.imap_unordered(Told(on_sockets), left), left)]
        lost = [tried for results in done for tried in results if not tried.won]
        left = [(tried.taken, (tried.attack,)) for tried in lost]
    if left:
        sets = [f"{name} without {shown(taken)}" for taken, (name,) in left]
        raise UserError("not confirmed on sockets: " + ", ".join(sets))


def find(names: Sequence[str], size: int) -> Found:
    """Return the minimal sets of each attack, confirmed on sockets. Raises UserError."""
    found: Found = {name: [] for name in names}
    with workers(1) as pool:
        timeless = [name for name in names if name not in NEED_SOCKETS]
        found.update(search(timeless, size, pool, in_memory))
    with workers(3) as pool:  # they wait most of the time
        for name, sets in search(names, min(size, len(SERVER_RULES)), pool, on_sockets).items():
            found[name] += sets
        confirm(found, pool)
    return found


def shown(taken: Names) -> str:
    return shown_in_order(taken, RULES)


MATRIX = Matrix(ATTACKS, RULES, FOLDER, find, size=4)


if __name__ == "__main__":
    run_program(MATRIX.run)
