"""Attack x defences: the smallest sets of rules without which an attack wins, found by search.

    python -m classroom.matrix
    python -m classroom.matrix --attack replay-session --size 3
    python -m classroom.matrix --write      writes classroom/sets.json

A set is tried in memory: two real Sessions that lack its rules, a wire in place of sockets, and the
attack as attacks.py has it, whose own goal says whether it won. The rules of the server, and what
waits for a clock, are tried on sockets, where every set found in memory has to win once more.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import textwrap
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from multiprocessing.pool import Pool
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar

from attacks import (
    ATTACKS,
    BYSTANDER,
    OLD_READINGS,
    OTHER,
    READINGS,
    VICTIM,
    Attack,
    CutHere,
    Frame,
    Lab,
    Outcome,
    Parts,
    random_source,
)
from channel import EndRequested
from classroom.output import write_whole
from endpoint import DEMO_KEYS
from lab.claims import Sets, as_json, read_claims
from lab.weakened import RULES as ELEMENTS
from lab.weakened import without
from program import Parser, UserError, positive, run_program
from protocol_fsm import (
    ConnectionCut,
    DeadlineExpired,
    Direction,
    LocalError,
    Message,
    Opcode,
    ProtocolError,
    ProtocolState,
    Session,
    State,
    Status,
    encode_body,
)

Names = frozenset[str]  # of elements
Script = Generator[None, "bytes | Exception", None]  # waits at each yield for what happens to it
Task = tuple[Names, tuple[str, ...]]  # what to take out, and the attacks to try then
Done = TypeVar("Done")
SESSION_RULES = {name: rule for name, rule in ELEMENTS.items() if issubclass(rule, Session)}
SERVER_RULES = [name for name in ELEMENTS if name not in SESSION_RULES]
SEEDS = ("one", "two", "three")  # garbage unpads well once in 256: a set has to win with all
FOLDER = Path(__file__).parent  # of claims.toml and sets.json

# A session in memory: what Channel, Member, Client and attacks.Lab do, without a socket or clock --


class End:
    """One end of a wire: a Session, and a script that lives with it and closes it."""

    def __init__(
        self, wire: deque[Frame], peer: str, session: Session, script: Callable[[End], Script]
    ) -> None:
        self.session = session
        self.is_open = True
        self.hello_number = 0
        self._wire, self._peer, self._farewell, self._script = wire, peer, b"", script(self)
        next(self._script)

    def happen(self, event: bytes | Exception) -> None:
        """Give the script what it waits for: a message, or why there is none."""
        if self.is_open:
            with contextlib.suppress(StopIteration):
                self._script.send(event)

    def send(self, opcode: Opcode, body: bytes = b"") -> None:
        self._wire.append(Frame(self._peer, self.session.seal(opcode, body)))

    def receive(self) -> Generator[None, bytes | Exception, Message]:
        return self.open((yield))

    def open(self, event: bytes | Exception) -> Message:
        try:
            if isinstance(event, Exception):
                raise event
            return self.session.open(event)
        except ProtocolError as error:
            self.session.fail(error)
            self._farewell = error.farewell
            raise

    def leave(self, status: Status) -> None:
        self.is_open = False
        if self.session.state.phase is ProtocolState.ACTIVE:
            self._farewell = self.session.seal(Opcode.TERMINATE, status=status)
        last = [self._farewell] if self._farewell else []
        self._wire.extend(Frame(self._peer, message) for message in [*last, b""])  # b"": closed


class Line(NamedTuple):
    """An outsider's connection. Who waits for what does not come gets nothing, and at once."""

    wire: deque[Frame]
    server: End

    def send(self, message: bytes) -> None:
        self.server.happen(message)

    def receive(self) -> bytes:
        return self.wire.popleft().message if self.wire else b""


class World:
    """What an attack sees of attacks.Lab. Where nothing is under way, a deadline has passed."""

    def __init__(self, session: type[Session], seed: str = SEEDS[0]) -> None:
        self.seed = seed
        self.outcome = Outcome()
        self._session = session
        self._started = Counter[tuple[int, Direction]]()
        self._hellos = itertools.count(1)
        self._epochs = itertools.count(1)
        self._newest_hello: dict[int, int] = {}
        self._members: dict[int, End] = {}
        self.victim: End
        self.readings: Sequence[list[float]] = READINGS
        self.tape = self._recorded(VICTIM)
        self.readings = OLD_READINGS
        self.older_tape, self.other_tape = self._recorded(VICTIM), self._recorded(OTHER)
        self.readings = READINGS
        self.is_honest = not self.outcome.errors["client"] and len(self.outcome.answers) == 9

    def _new_session(self, client_id: int, sends: Direction) -> Session:
        self._started[client_id, sends] += 1
        number = self._started[client_id, sends]
        source = random_source(f"{self.seed} {client_id} {sends.name} {number}")
        key = DEMO_KEYS.get(client_id, b"a key that nobody has")
        return self._session(client_id, key, sends, random_bytes=source)

    def _recorded(self, client_id: int) -> list[Frame]:
        tape: list[Frame] = []

        def listen(frames: Iterator[Frame]) -> Iterator[Frame]:
            for frame in frames:
                tape.append(frame)
                yield frame

        self._live(client_id, listen, None)
        return tape

    def suffer(self, attack: Attack) -> Outcome:
        """Let the victim live a session under attack, and return what became of it."""

        def tap(frames: Iterator[Frame]) -> Iterator[Frame]:
            return itertools.chain(attack.run(frames, self) if attack.is_on_path else (), frames)

        self.outcome, self.seed = Outcome(), f"{self.seed.split()[0]} {attack.name}"
        self._started.clear()  # so that it does not matter which attacks came before
        self._live(VICTIM, tap, attack)
        return self.outcome

    def _live(
        self,
        client_id: int,
        tap: Callable[[Iterator[Frame]], Iterator[Frame]],
        attack: Attack | None,
    ) -> None:
        wire = deque[Frame]()
        script = functools.partial(self._report, attack)
        client = End(wire, "server", self._new_session(client_id, Direction.C2S), script)
        server = End(wire, "client", self._new_session(0, Direction.S2C), self._serve)
        self.victim = client
        ends = {"client": client, "server": server}
        with contextlib.suppress(CutHere, RuntimeError):  # a generator's StopIteration
            for frame in tap(self._frames(wire, ends)):
                ends[frame.to].happen(frame.message)
        for end in ends.values():
            end.happen(ConnectionCut(mid_frame=False))

    def _frames(self, wire: deque[Frame], ends: Mapping[str, End]) -> Iterator[Frame]:
        while wire or any(end.is_open for end in ends.values()):
            frame = wire.popleft() if wire else None
            if frame and frame.message:
                yield frame
            elif frame:
                ends[frame.to].happen(ConnectionCut(mid_frame=False))
            else:  # the client has less patience than the server
                end = ends["client" if ends["client"].is_open else "server"]
                end.happen(DeadlineExpired("a message", "none"))

    def _report(self, attack: Attack | None, end: End) -> Script:
        outcome = self.outcome
        is_hasty = bool(attack and attack.hasty)
        try:
            end.send(Opcode.CLIENT_HELLO)
            yield from end.receive()
            for readings in self.readings[:1] if is_hasty else self.readings:
                outcome.sent.append(readings)
                end.send(Opcode.CLIENT_DATA, encode_body(readings))
                if not is_hasty:
                    answer = yield from end.receive()
                    outcome.answers.append(encode_body(answer.aggregate).decode())
                if attack and not attack.is_on_path and readings is READINGS[0]:
                    attack.run(self)
        except (ProtocolError, LocalError) as error:
            outcome.errors["client"].append(error)
        end.leave(Status.GOODBYE)

    def _serve(self, end: End) -> Script:
        reason: Exception
        try:
            hello = yield
            if isinstance(hello, bytes):
                end.session = self._new_session(hello[1], Direction.S2C)
            end.open(hello)
            end.hello_number = next(self._hellos)
            end.send(Opcode.SERVER_CHALLENGE)
            report = yield from end.receive()
            self._establish(end)
            while True:
                end.send(Opcode.SERVER_AGGR_RESPONSE, self._contribute(end, report))
                if end.session.state is State.ENDED:
                    raise EndRequested(Status.GOODBYE)
                report = yield from end.receive()
        except Exception as error:  # as Member.run does
            reason = error
        if end.session.client_id not in (BYSTANDER, OTHER):
            self.outcome.errors["server"].append(reason)
        end.leave(reason.status if isinstance(reason, EndRequested) else Status.SHUTDOWN)

    def _establish(self, end: End) -> None:
        client_id = end.session.client_id
        if end.hello_number < self._newest_hello.get(client_id, 0):
            raise EndRequested(Status.REPLACED)
        if client_id in self._members:
            self._members[client_id].happen(EndRequested(Status.REPLACED))
        self._newest_hello[client_id] = end.hello_number
        self._members[client_id] = end

    def _contribute(self, end: End, report: Message) -> bytes:
        aggregate = {
            "epoch": next(self._epochs),
            "round": report.round_number,
            "sum": math.fsum(report.readings),
        }
        if end.session.client_id not in (BYSTANDER, OTHER):
            self.outcome.accepted.append(report.readings)
        if end.session.client_id == VICTIM:
            self.outcome.answered.append(encode_body(aggregate).decode())
        return encode_body(aggregate)

    @contextlib.contextmanager
    def connect(self) -> Iterator[Line]:
        wire = deque[Frame]()
        line = Line(wire, End(wire, "client", self._new_session(0, Direction.S2C), self._serve))
        yield line
        line.server.happen(ConnectionCut(mid_frame=False))

    @contextlib.contextmanager
    def client(self, client_id: int) -> Iterator[SimpleNamespace]:
        with self.connect() as line:
            session = self._new_session(client_id, Direction.C2S)

            def exchange(opcode: Opcode, body: bytes = b"") -> Message:
                line.send(session.seal(opcode, body))
                return session.open(line.receive())

            exchange(Opcode.CLIENT_HELLO)
            yield SimpleNamespace(
                report=lambda readings: exchange(Opcode.CLIENT_DATA, encode_body(readings))
            )
            line.send(session.seal(Opcode.TERMINATE, status=Status.GOODBYE))


# The search ---------------------------------------------------------------------------------------

CHECKS = {
    name
    for rule in SESSION_RULES.values()
    for name in vars(rule)
    if name.startswith("_check_") or name == "fail"
}


def heard(session: type[Session], said_no: set[str]) -> type[Session]:
    """Return the class, with a note in `said_no` of each check that refuses something."""

    def listening_to(name: str) -> Callable[..., Any]:
        rule = getattr(session, name)

        def check(end: Session, argument: Any, *rest: Any) -> Any:
            if name == "fail":
                said_no.update({name, f"fail {type(argument).__name__}"})
            try:
                return rule(end, argument, *rest)
            except ProtocolError:
                said_no.add(name)
                raise

        return check

    return type("Heard", (session,), {name: listening_to(name) for name in CHECKS})


def matters(rule: type, said_no: set[str]) -> bool:
    """Tell if a rule could change a run in which these checks refused something."""
    if rule is ELEMENTS["cut-is-not-goodbye"]:
        return "fail ConnectionCut" in said_no
    methods = {name for name in vars(rule) if name == "__init__" or name[:2] != "__"}
    return bool(methods - CHECKS or methods & said_no)


def trial(task: Task) -> list[tuple[str, Names, bool, Names]]:
    """Run attacks in memory: which one won without these rules, and what could yet change that.

    A check that refused nothing in a run can be taken out of it without changing a byte, so a
    larger set that wins takes out one at least that did, or a rule that is no check (a key, the
    IV, the encryption). To go on with only those leaves out no minimal set.
    """
    (taken, names), session = task, without(task[0]).session
    said_no: set[str] = set()
    world = World(heard(session, said_no))
    results = []
    for name in names:
        said_no.clear()  # recordings are honest, and nothing in them is refused
        goal = ATTACKS[name].goal
        attack = ATTACKS[name]
        won = (
            world.is_honest
            and bool(goal(world.suffer(attack)))
            and all(goal(World(session, seed).suffer(attack)) for seed in SEEDS[1:])
        )
        relevant = {
            element
            for element, rule in SESSION_RULES.items()
            if matters(rule, said_no) or not world.is_honest
        }
        results.append((name, taken, won, frozenset(relevant - taken)))
    return results


def tasks_of(tries: Mapping[Names, set[str]], found: Mapping[str, list[Names]]) -> list[Task]:
    """Return what is still to be tried: no set around one that suffices."""
    tasks = [
        (
            taken,
            tuple(
                name
                for name in found
                if name in names and not any(smaller < taken for smaller in found[name])
            ),
        )
        for taken, names in tries.items()
    ]
    return [task for task in tasks if task[1]]


def search(
    names: Sequence[str],
    size: int,
    pool: Pool,
    trial: Callable[[Task], list[tuple[str, Names, bool, Names]]] = trial,
) -> dict[str, list[Names]]:
    """Return the minimal sets for each attack, the smallest first: here, of session rules."""
    found: dict[str, list[Names]] = {name: [] for name in names}
    tries: dict[Names, set[str]] = {frozenset(): set(names)}
    for count in range(size + 1):
        larger: dict[Names, set[str]] = defaultdict(set)
        tasks = tasks_of(tries, found)
        for results in progress(f"{count} rules less", pool.imap_unordered(trial, tasks), tasks):
            for name, taken, won, relevant in results:
                if won:
                    found[name].append(taken)
                for element in () if won else relevant:
                    larger[taken | {element}].add(name)
        tries = larger
    return found


def search_servers(names: Sequence[str], size: int, pool: Pool) -> dict[str, list[Names]]:
    """Return the minimal sets of one or two rules of the server."""
    found: dict[str, list[Names]] = {name: [] for name in names}
    for count in range(1, min(size, 2) + 1):
        tries = {frozenset(s): set(names) for s in itertools.combinations(SERVER_RULES, count)}
        tasks = tasks_of(tries, found)
        done = pool.imap_unordered(on_sockets, tasks)
        for results in progress(f"{count} server rules less", done, tasks):
            for name, taken, won in results:
                found[name] += [taken] * bool(won)
    return found


def on_sockets(task: Task) -> list[tuple[str, Names, str]]:
    """Run attacks on attacks.Lab; who won may have left it in ruins, so the next gets a new one."""
    taken, names = task
    results = []
    left = [*names]
    while left:
        with Lab(SEEDS[0], lambda *_: None, Parts(*without(taken))) as lab:
            while left:
                attack = ATTACKS[left.pop(0)]
                won = ""
                with contextlib.suppress(ProtocolError, LocalError, EndRequested):
                    won = attack.goal(lab.suffer(attack))
                results.append((attack.name, taken, won))
                if won or not lab.bystanders_go_on():
                    break
    return results


def confirm(found: Mapping[str, list[Names]], pool: Pool) -> list[str]:
    """Return a line for each set with which the attack does not win on sockets, too."""
    tasks = [(taken, (name,)) for name, sets in found.items() for taken in sets]
    done = pool.imap_unordered(on_sockets, tasks)
    return [
        f"not confirmed on sockets: {name} without {shown(taken)}"
        for results in progress("confirming", done, tasks)
        for name, taken, won in results
        if not won
    ]


def progress(what: str, done: Iterator[Done], tasks: Sequence[object]) -> Iterator[Done]:
    """Say on stderr how far it is: in one line, or in a line at the end if no person looks."""
    is_terminal = sys.stderr.isatty()
    for number, result in enumerate(done, 1):
        if is_terminal:  # what is said in between has the line for itself
            print(end=f"\r{'':60}\r", file=sys.stderr, flush=True)
        yield result
        if is_terminal or number == len(tasks):
            line = f"{what}: {100 * number // len(tasks):>3}% of {len(tasks)}"
            end = "\r" if is_terminal and number < len(tasks) else "\n"
            print(f"{line:<60}", end=end, file=sys.stderr, flush=True)


SPAWN = multiprocessing.get_context("spawn")  # the same everywhere


def begin(folder: str, prepare: Callable[..., object] | None, *arguments: object) -> None:
    """Make a worker leave Ctrl-C to its parent, and say nothing of what attacks break in it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable()
    threading.excepthook = lambda _: None
    tempfile.tempdir = folder
    if prepare:
        prepare(*arguments)


@contextlib.contextmanager
def workers(
    per_core: int, prepare: Callable[..., object] | None = None, *arguments: object
) -> Iterator[Pool]:
    """Give a pool of processes, each prepared by a call.

    Their labs' folders are in one of the parent's, because a worker may be killed at any time.
    """
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        SPAWN.Pool(per_core * (os.cpu_count() or 1), begin, (folder, prepare, *arguments)) as pool,
    ):
        yield pool
        pool.close()  # in peace: who is killed while it holds a lock of the pool stops the others
        pool.join()


def matrix(names: Sequence[str], size: int) -> tuple[dict[str, list[Names]], list[str]]:
    """Return the minimal sets for each attack that something prevents, and what went wrong."""
    prevented = [name for name in names if not ATTACKS[name].noticed]
    timeless = [name for name in prevented if ATTACKS[name].claim != "availability"]
    with workers(1) as pool:
        found = {**{name: [] for name in prevented}, **search(timeless, size, pool)}
    with workers(3) as pool:  # they wait most of the time
        for name, sets in search_servers(prevented, size, pool).items():
            found[name] += sets
        wrong = confirm(found, pool)
    order = [*ELEMENTS]
    for sets in found.values():
        sets.sort(key=lambda names: (len(names), sorted(map(order.index, names))))
    return found, wrong


# Showing it ---------------------------------------------------------------------------------------


def shown(names: Names) -> str:
    return "{" + ", ".join(name for name in ELEMENTS if name in names) + "}"


def verdict(name: str, found: Mapping[str, list[Names]], size: int) -> str:
    if ATTACKS[name].noticed:
        return f"not prevented (noticed by {ATTACKS[name].noticed})"
    if not found[name]:
        return f"no set of up to {size} rules found"
    return " ".join(map(shown, found[name]))


def unused(found: Mapping[str, list[Names]]) -> list[str]:
    """Return the elements that are in no minimal set."""
    used = frozenset[str]().union(*itertools.chain(*found.values()))
    return [name for name in ELEMENTS if name not in used]


def table(rows: Mapping[str, str]) -> str:
    """Return two columns, in lines of at most 80."""
    lines = []
    for name, text in rows.items():
        lines += textwrap.wrap(
            f"{name:<25} " + text,
            80,
            subsequent_indent=" " * 26,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def as_sets(
    names: Sequence[str],
    found: Mapping[str, Sequence[Names]],
    size: int,
    attacks: Mapping[str, Any],
    elements: Iterable[str],
) -> Sets:
    """Return what was found for these attacks, each set in the order of the elements."""
    order = [*elements]
    return Sets(
        size,
        {
            name: [[rule for rule in order if rule in taken] for taken in found[name]]
            for name in names
            if name in found
        },
        {name: attacks[name].noticed for name in names if name not in found},
    )


def main() -> int:
    parser = Parser("Which rules must be missing for which attack to win.")
    parser.add_argument("--attack", action="append", metavar="NAME", help="only this one")
    parser.add_argument("--size", type=positive, default=4, help="of sets; default 4")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one object")
    form.add_argument("--write", action="store_true", help="write classroom/sets.json")
    options = parser.options()
    names = options.attack or [*ATTACKS]
    is_whole = not options.attack and options.size >= 4
    if options.write and not is_whole:
        raise UserError("--write is for all attacks, and for sets of 4 rules or more")
    if unknown := set(names) - ATTACKS.keys():
        raise UserError(f"no attack is named {min(unknown)}; attacks.py --list names them all")
    found, wrong = matrix(names, options.size)
    text = as_json(as_sets(names, found, options.size, ATTACKS, ELEMENTS))
    if options.json:
        print(text, end="")
    elif options.write and not wrong:
        write_whole(FOLDER / "sets.json", text.encode())
    elif not options.write:
        rows = {name: verdict(name, found, options.size) for name in names}
        print(table({"attack": "minimal sets of rules without which it wins", **rows}))
        if is_whole:  # what some attacks do not need, or small sets, others may
            reasons = read_claims(FOLDER).redundant
            spare = {name: reasons.get(name, "(no reason is known)") for name in unused(found)}
            print("\n" + table({"redundant here": "because", **spare}))
    for line in wrong:
        print(line, file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    run_program(main)
