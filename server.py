"""The server: one thread per client, and one aggregation that they share.

Rules in this module:
- only its own thread touches a session or writes its socket; others may ask it to end;
- until its first report is accepted a connection is a stranger: it has little time, contributes
  nothing and displaces nobody;
- what exactly failed goes to the log; the peer gets one uniform answer, or none [P 3.6].
"""

from __future__ import annotations

import guard  # noqa: F401 (before all else: it says what the others lack)
import dataclasses
import itertools
import logging
import math
import secrets
import signal
import socket
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from channel import FRAME_S, POLL_S, Channel, EndRequested
from endpoint import (
    DEMO_KEYS,
    DEMO_WARNING,
    HOST,
    PORT,
    EndpointParser,
    NewSession,
    choose_keys,
    describe,
    generate_keys,
    id_list,
    session_factory,
)
from program import (
    Lines,
    NoConnection,
    UserError,
    end_signals,
    escaped,
    host_and_port_of,
    positive,
    reason_of,
    run_program,
    seconds,
    start_log,
)
from protocol_fsm import (
    ClientData,
    ConnectionCut,
    Direction,
    Json,
    PeerTerminated,
    ProtocolError,
    ServerAggrResponse,
    ServerChallenge,
    Session,
    State,
    Status,
    client_id_of,
)

log = logging.getLogger("server")
Number = TypeVar("Number", int, float)
Contributions = Mapping[int, Sequence[float]]  # readings by client id


def limit(default: Number, meaning: str) -> Number:
    """Return a dataclass field that becomes a flag of the program."""
    return dataclasses.field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Limits:
    """How long the server waits, and for how many."""

    window_s: float = limit(1.0, "seconds that an epoch waits for its members")
    stranger_timeout_s: float = limit(10.0, "seconds until a first report is accepted, in all")
    frame_timeout_s: float = limit(FRAME_S, "seconds from a frame's first byte to its last")
    silence_timeout_s: float = limit(300.0, "seconds between two reports")
    max_strangers: int = limit(64, "connections without a report; one more evicts the oldest")


def compute_aggregation(contributions: Contributions) -> dict[str, Json]:
    """Return what every member of an epoch is told. Pure; instructors may replace it."""
    readings = [reading for values in contributions.values() for reading in values]
    total = math.fsum(readings)
    return {
        "participants": [*sorted(contributions)],
        "count": len(readings),
        "sum": total,
        "mean": total / len(readings) if readings else None,
        "min": min(readings, default=None),
        "max": max(readings, default=None),
    }


def own_part(readings: Sequence[float], total: float) -> dict[str, Json]:
    """Return what only one member is told; a share of nothing is null."""
    own_sum = math.fsum(readings)
    share = own_sum / total if total else math.inf
    return {
        "own_count": len(readings),
        "own_sum": own_sum,
        "own_share": share if math.isfinite(share) else None,
    }


class Connection(Protocol):
    """What the rules of this module ask of a member or stranger, on a socket or in memory."""

    client_id: int
    hello_number: int  # its place in the order of accepted HELLOs

    def request_end(self, status: Status) -> None:
        """End the session soon, and tell the peer why."""

    def send_away(self, status: Status) -> None:
        """End the session now; a stranger in the handshake is told nothing."""


AnyConnection = TypeVar("AnyConnection", bound=Connection)


class Roster(Generic[AnyConnection]):
    """Who is connected: strangers, and one member per client id. It has no lock and no clock.

    A stranger displaces nobody but an older stranger. A member is displaced by a later session of
    its id, and only by one whose CLIENT_HELLO was accepted later than its own.
    """

    def __init__(self, max_strangers: int) -> None:
        self.strangers: list[AnyConnection] = []  # the oldest first
        self.members: dict[int, AnyConnection] = {}  # established, by client id
        self._max_strangers = max_strangers
        self._hellos = itertools.count(1)
        self._newest_hello: dict[int, int] = {}  # of an established session, by client id

    def arrive(self, stranger: AnyConnection) -> None:
        """Add a stranger; if there are too many now, evict the oldest."""
        self.strangers.append(stranger)
        if len(self.strangers) > self._max_strangers:
            self.strangers.pop(0).send_away(Status.TIMEOUT)

    def number_hello(self, stranger: AnyConnection) -> None:
        """Give a stranger its place in the order in which HELLOs are accepted."""
        stranger.hello_number = next(self._hellos)

    def establish(self, stranger: AnyConnection) -> None:
        """Turn a stranger into a member, in place of an older one. Raises EndRequested."""
        client_id = stranger.client_id
        if stranger.hello_number < self._newest_hello.get(client_id, 0):
            raise EndRequested(Status.REPLACED)  # a held report must not evict a live client
        if client_id in self.members:
            self.members[client_id].request_end(Status.REPLACED)
        self._newest_hello[client_id] = stranger.hello_number
        self.members[client_id] = stranger
        self.strangers.remove(stranger)

    def leave(self, connection: AnyConnection) -> bool:
        """Forget a connection that has ended, and return whether it was the member of its id."""
        self.strangers = [other for other in self.strangers if other is not connection]
        is_member = self.members.get(connection.client_id) is connection
        if is_member:
            del self.members[connection.client_id]
        return is_member


class Contribution(NamedTuple):
    """What one client gives to an epoch."""

    giver: Connection
    round_number: int
    readings: Sequence[float]


class Epoch:
    """One aggregation. It opens with its first contribution and closes for all members at once."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.deadline = math.inf
        self.contributions: dict[int, Contribution] = {}  # by client id
        self.aggregate: dict[str, Json] = {}
        self.answers: dict[int, ServerAggrResponse] | None = None  # empty if there is no aggregate


class Epochs:
    """The order of epochs: which one is open, and when it closes. It has no lock and no clock.

    An epoch waits for the clients that took part in the last one, but no longer than the window;
    a client that misses one is not waited for until it contributes again.
    """

    def __init__(
        self, window_s: float, aggregation: Callable[[Contributions], dict[str, Json]]
    ) -> None:
        self.current = Epoch(1)
        self._window_s = window_s
        self._aggregation = aggregation
        self._expected: set[int] = set()  # the clients that the open epoch waits for

    def contribute(self, contribution: Contribution, now: float) -> Epoch:
        """Enter a contribution (at `now`, in seconds) into the open epoch, and return that."""
        epoch = self.current
        if not epoch.contributions:
            epoch.deadline = now + self._window_s
        epoch.contributions[contribution.giver.client_id] = contribution
        return epoch

    def withdraw(self, connection: Connection) -> None:
        """Remove what an ended session has contributed to the open epoch."""
        client_id = connection.client_id
        entered = self.current.contributions.get(client_id)
        if entered and entered.giver is connection:
            del self.current.contributions[client_id]

    def expect_no_more(self, client_id: int) -> None:
        """Do not let an epoch wait for a client that has left."""
        self._expected.discard(client_id)

    def close_if_due(self, now: float) -> Epoch | None:
        """Close the open epoch if nobody is missing or its time is up, and return it then."""
        epoch = self.current
        is_complete = self._expected <= epoch.contributions.keys()
        if not epoch.contributions or not (is_complete or now >= epoch.deadline):
            return None
        try:
            epoch.answers = self._answers(epoch)
        except BaseException:  # an instructor's function may raise anything; the server goes on
            log.exception("epoch %d has no aggregate", epoch.number)
            epoch.aggregate = {}
            epoch.answers = {}
        self._expected = set(epoch.contributions)
        self.current = Epoch(epoch.number + 1)
        return epoch

    def _answers(self, epoch: Epoch) -> dict[int, ServerAggrResponse]:
        """Return every member's answer, or raise LocalError for all of them."""
        given = epoch.contributions
        copies = {client_id: [*entry.readings] for client_id, entry in given.items()}
        total = math.fsum(itertools.chain.from_iterable(copies.values()))
        epoch.aggregate = self._aggregation(copies)
        answers = {}
        for client_id, entry in given.items():
            head: dict[str, Json] = {"epoch": epoch.number, "round": entry.round_number}
            personal = {**head, **own_part(entry.readings, total)}  # no aggregation replaces it
            answers[client_id] = ServerAggrResponse({**head, **epoch.aggregate, **personal})
            _ = answers[client_id].body  # encoded here, to fail for all members or for none
        return answers


class Record(NamedTuple):
    """A "report" was accepted, an "epoch" closed, or a connection reached its "end"."""

    what: str
    client_id: int  # 0: an epoch, or a connection that never named its client
    detail: Contribution | Epoch | Exception  # what ended the session


class Member:
    """One connection, from its first byte to its last, served by a thread of its own."""

    hello_number: int

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self.client_id = 0  # until the first message names somebody
        self.session = server.session_for(self.client_id)
        self.channel = Channel(sock, self.session, server.limits.frame_timeout_s)
        self.request_end = self.channel.request_end
        self.send_away = self.channel.send_away
        self.rounds = 0
        self.is_established = False
        self._server = server

    def __str__(self) -> str:
        name = f"client {self.client_id}"
        if self.is_established:
            return name
        return f"stranger as {name}" if self.client_id else "stranger without a name"

    def run(self) -> None:
        cause: Exception
        try:
            self._serve()
        except (EndRequested, ProtocolError) as error:
            cause = error
        except Exception as error:  # a defect of ours, which must end no other session
            log.exception("%s: internal error", self)
            cause = error
        try:
            self._server.forget(self, cause)
        finally:  # a ProtocolError left its own farewell: then there is no session to terminate
            self.channel.leave(cause.status if isinstance(cause, EndRequested) else Status.SHUTDOWN)

    def _serve(self) -> None:
        server = self._server
        channel = self.channel
        deadline = time.monotonic() + server.limits.stranger_timeout_s
        hello = channel.read(deadline)
        self.client_id = client_id_of(hello)
        self.session = server.session_for(self.client_id)
        channel.session = self.session
        channel.open(hello)
        server.number_hello(self)
        channel.send(ServerChallenge())
        report: Any = channel.receive(deadline)  # a ClientData: the table allows nothing else
        server.establish(self)
        while True:
            channel.send(server.contribute(self, report))
            server.wake_next()
            self.rounds += 1
            if self.session.state is State.ENDED:
                raise EndRequested(Status.GOODBYE)  # there are no rounds left
            report = channel.receive(time.monotonic() + server.limits.silence_timeout_s)


class Server:
    """Listens from the start, serves inside `with`, and tells every client SHUTDOWN after it."""

    roster_class: type[Roster[Member]] = Roster

    def __init__(
        self,
        keys: Mapping[int, bytes],
        host: str = HOST,
        port: int = PORT,
        limits: Limits = Limits(),
        *,
        aggregation: Callable[[Contributions], dict[str, Json]] = compute_aggregation,
        record: Callable[[Record], object] | None = None,
        new_session: NewSession = Session,
    ) -> None:
        self.limits = limits
        self.sessions = Counter[int]()
        self.rounds = Counter[int]()
        self.refused = Counter[str]()
        self._keys = dict(keys)
        self._decoy_key = secrets.token_bytes(32)
        self._record = record
        self._new_session = new_session
        self._lock = threading.RLock()  # guards roster, epochs and counters
        self._changed = threading.Condition(self._lock)  # for members that wait for their epoch
        self._roster = self.roster_class(limits.max_strangers)
        self._epochs = Epochs(limits.window_s, aggregation)
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._closing = threading.Event()
        self._listener = listen(host, port)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]

    def __enter__(self) -> Server:
        self._acceptor.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.set()
        if self._acceptor.is_alive():
            self._acceptor.join()
        with self._lock:
            for member in [*self._roster.strangers, *self._roster.members.values()]:
                member.request_end(Status.SHUTDOWN)
        deadline = time.monotonic() + 1.5
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._listener.close()

    def session_for(self, client_id: int) -> Session:
        """Return a new session; for an unknown id with the decoy key, so that it meets BadTag."""
        key = self._keys.get(client_id, self._decoy_key)
        return self._new_session(client_id, key, Direction.S2C)

    def _accept(self) -> None:
        pause_s = 0.0  # longer while descriptors or threads are exhausted, which is logged once
        while not self._closing.wait(pause_s):
            try:
                self._take_in(Member(self, self._listener.accept()[0]))
                pause_s = 0.0
            except TimeoutError:
                continue
            except Exception as error:  # MemoryError included
                log.log(logging.DEBUG if pause_s else logging.ERROR, "cannot accept: %s", error)
                pause_s = POLL_S

    def _take_in(self, member: Member) -> None:
        thread = threading.Thread(target=member.run, daemon=True)
        with self._lock:  # the thread must not end before it is listed
            try:
                thread.start()
            except RuntimeError:  # out of threads
                member.channel.leave(Status.SHUTDOWN)
                raise
            self._threads = [*(old for old in self._threads if old.is_alive()), thread]
            self._roster.arrive(member)

    def number_hello(self, member: Member) -> None:
        """Give `member` its place in the order in which HELLOs are accepted."""
        with self._lock:
            self._roster.number_hello(member)

    def establish(self, member: Member) -> None:
        """Let a stranger in, in place of an older session of its id. Raises EndRequested."""
        with self._lock:
            member.channel.check_request()
            older = self._roster.members.get(member.client_id)
            self._roster.establish(member)
            if older:
                self._epochs.withdraw(older)
            member.is_established = True
            self.sessions[member.client_id] += 1
        log.info("%s: established", member)

    def forget(self, member: Member, reason: Exception) -> None:
        """Remove what an ended session leaves: its place, and its part in the open epoch."""
        client_id = member.client_id
        with self._lock:
            self._epochs.withdraw(member)
            if self._roster.leave(member):
                self._epochs.expect_no_more(client_id)
            self.wake_next()  # it may find the epoch complete now, or be the next in turn
            if not member.is_established:
                self.refused[type(reason).__name__] += 1
            if self._record:
                self._record(Record("end", client_id, reason))
        after = f" after round {member.rounds}" if member.is_established else ""
        if isinstance(reason, PeerTerminated) and reason.status is Status.GOODBYE:
            log.info("%s: left%s", member, after)
        elif not client_id and isinstance(reason, ConnectionCut) and not reason.mid_frame:
            log.debug("%s: gone without a word", member)  # it looked whether there is a server
        else:
            hint = "" if client_id in {0, *self._keys} else " (there is no key for it)"
            log.info("%s: ended%s: %s%s", member, after, reason, hint)

    def contribute(self, member: Member, report: ClientData) -> ServerAggrResponse:
        """Enter a report into the open epoch, wait for it to close, and return the answer.

        Raises EndRequested.
        """
        contribution = Contribution(member, member.session.round_number, report.readings)
        with self._lock:
            member.channel.check_request()
            epoch = self._epochs.contribute(contribution, time.monotonic())
            self.rounds[member.client_id] += 1
            if self._record:
                self._record(Record("report", member.client_id, contribution))
            self._close_epoch_if_due()
            while epoch.answers is None:
                self._changed.wait(max(0.0, min(POLL_S, epoch.deadline - time.monotonic())))
                member.channel.check_request()
                self._close_epoch_if_due()
        if member.client_id not in epoch.answers:
            raise EndRequested(Status.SHUTDOWN)
        return epoch.answers[member.client_id]

    def wake_next(self) -> None:
        """Wake one member, which wakes the next; all at once would contend."""
        with self._lock:
            self._changed.notify()

    def _close_epoch_if_due(self) -> None:
        epoch = self._epochs.close_if_due(time.monotonic())
        if epoch is None:
            return
        if self._record:
            self._record(Record("epoch", 0, epoch))

    def summary(self) -> str:
        """Return the table that the program prints last."""
        rows = [f"{n:>6}  {self.sessions[n]:>8}  {self.rounds[n]:>7}" for n in sorted(self.rounds)]
        refused = ", ".join(f"{n} {name}" for name, n in self.refused.most_common())
        strangers = textwrap.fill(f"strangers: {refused or 'none'}", 79, subsequent_indent="  ")
        return "\n".join(["client  sessions  reports", *rows, strangers])


def listen(host: str, port: int) -> socket.socket:
    """Return a listening TCP socket. Raises NoConnection."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address, family=family, backlog=1_024)
    except (OSError, UnicodeError) as error:
        raise NoConnection(f"cannot listen on {host} port {port}: {reason_of(error)}") from None
    listener.settimeout(POLL_S / 4)
    return listener


def log_record(record: Record) -> None:
    """Log a report or an epoch, for --verbose."""
    detail = record.detail
    if isinstance(detail, Contribution):
        log.debug("client %d: round %d, %s", record.client_id, detail.round_number, detail.readings)
    elif isinstance(detail, Epoch):
        log.debug("%s", describe({"epoch": detail.number, **detail.aggregate}, 70))


def main() -> int:
    parser = EndpointParser("The server: aggregates the readings of its clients.")
    for field in dataclasses.fields(Limits):
        flag = "--" + field.name.removesuffix("_s").replace("_", "-")
        kind = positive if isinstance(field.default, int) else seconds
        parser.add_argument(
            flag,
            dest=field.name,
            default=field.default,
            type=kind,
            metavar="N",
            help=f"{field.metadata['meaning']}; default {field.default:g}",
        )
    parser.add_argument("--verbose", action="store_true", help="log every report and epoch")
    parser.add_argument("--generate-keys", metavar="DIR", help="write new key files, and exit")
    parser.add_argument(
        "--ids",
        type=id_list,
        action="extend",
        help="client ids for --generate-keys; default 1-5",
    )
    options = parser.options()
    if options.generate_keys is not None:
        ids = sorted({*(options.ids or DEMO_KEYS)})
        generate_keys(Path(options.generate_keys), ids)
        where = escaped(options.generate_keys)
        print(f"wrote server.keys and {len(ids)} client keys to {where}")
        return 0
    if options.ids:
        raise UserError("--ids goes with --generate-keys")
    limits = Limits(*(getattr(options, field.name) for field in dataclasses.fields(Limits)))
    if options.patient:
        limits = dataclasses.replace(
            limits,
            stranger_timeout_s=math.inf,
            frame_timeout_s=math.inf,
            silence_timeout_s=math.inf,
        )
    start_log("DEBUG" if options.verbose else "INFO", lines := Lines())
    keys, host = choose_keys(options.keys, options.host)
    server = Server(
        keys,
        host,
        options.port,
        limits,
        record=log_record if options.verbose else None,
        new_session=session_factory(options, lines.write_line),
    )
    stop: list[int] = []  # not an Event, whose lock a second signal would find taken
    for signal_number in end_signals():
        signal.signal(signal_number, lambda number, _: stop.append(number))
    with server:
        print(f"listening on {host_and_port_of(server.address)}", flush=True)
        if not options.keys:
            log.warning(DEMO_WARNING)
        while not stop:
            time.sleep(POLL_S)
    lines.drain()
    print(server.summary())
    return 0


if __name__ == "__main__":
    run_program(main)
