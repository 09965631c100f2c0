"""The server: one thread per client, and one aggregation that they share.

Rules in this module:
- only its own thread touches a session or writes its socket; others may ask it to end;
- until its first report is accepted a connection is a stranger: it has little time, contributes
  nothing and displaces nobody;
- what exactly failed goes to the log; the peer gets one uniform answer, or none [P 3.6].
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import secrets
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from endpoint import (
    DEMO_WARNING,
    FRAME_S,
    HOST,
    POLL_S,
    PORT,
    Channel,
    EndRequested,
    NoConnection,
    Parser,
    Lines,
    choose_keys,
    describe,
    generate_keys,
    id_list,
    positive,
    reason_of,
    run_program,
    seconds,
)
from protocol_fsm import (
    Direction,
    Json,
    Message,
    Opcode,
    ProtocolError,
    Session,
    State,
    Status,
    client_id_of,
    encode_body,
    parse_aggregate,
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
    max_strangers: int = limit(64, "connections without a report; one more, and the oldest goes")


def compute_aggregation(contributions: Contributions) -> dict[str, Json]:
    """Return what every member of an epoch is told. Pure, and meant to be replaced."""
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
    """Return what one member is told besides; a share of nothing is null."""
    own_sum = math.fsum(readings)
    share = own_sum / total if total else math.inf
    return {
        "own_count": len(readings),
        "own_sum": own_sum,
        "own_share": share if math.isfinite(share) else None,
    }


class Record(NamedTuple):
    """A "report" was accepted, an "epoch" closed, or a connection came to its "end"."""

    what: str
    client_id: int  # 0: an epoch, or a connection that never named its client
    detail: Message | Epoch | Exception  # what ended the session


class Epoch:
    """One aggregation. It opens with its first contribution and closes for all members at once."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.deadline = math.inf
        self.contributions: dict[int, tuple[Member, Message]] = {}
        self.aggregate: dict[str, Json] = {}
        self.answers: dict[int, bytes] | None = None  # bodies by client id; none if it failed


class Member:
    """One connection, from its first byte to its last, served by a thread of its own."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        nobody = server.session_for(0)  # until the first message names somebody
        self.channel = Channel(sock, nobody, server.limits.frame_timeout_s, server.trace)
        self.hello_number = 0
        self.rounds = 0
        self.established = False
        self._server = server

    @property
    def client_id(self) -> int:
        return self.channel.session.client_id

    def run(self) -> None:
        cause: Exception
        try:
            self._serve()
        except (EndRequested, ProtocolError) as error:
            cause = error
        except Exception as error:  # a defect of ours: it ends this session and no other
            log.exception("client %d: internal error", self.client_id)
            cause = error
        try:
            self._server.forget(self, cause)
        finally:  # a ProtocolError left its own farewell: then there is no session to terminate
            self.channel.leave(cause.status if isinstance(cause, EndRequested) else Status.SHUTDOWN)

    def _serve(self) -> None:
        server = self._server
        channel = self.channel
        limits = self._server.limits
        deadline = time.monotonic() + limits.stranger_timeout_s
        hello = channel.read(deadline)
        channel.session = server.session_for(client_id_of(hello))
        channel.open(hello)
        server.number_hello(self)
        channel.send(Opcode.SERVER_CHALLENGE)
        report = channel.receive(deadline)
        server.establish(self)
        while True:
            channel.send(Opcode.SERVER_AGGR_RESPONSE, server.contribute(self, report))
            server.wake_next()
            self.rounds += 1
            if channel.session.state is State.ENDED:
                raise EndRequested(Status.GOODBYE)  # there are no rounds left
            report = channel.receive(time.monotonic() + limits.silence_timeout_s)


class Server:
    """Listens from the start, serves inside `with`, and tells every client SHUTDOWN after it."""

    def __init__(
        self,
        keys: Mapping[int, bytes],
        host: str = HOST,
        port: int = PORT,
        limits: Limits = Limits(),
        *,
        trace: Callable[[str], object] | None = None,
        aggregation: Callable[[Contributions], dict[str, Json]] = compute_aggregation,
        record: Callable[[Record], object] = lambda record: None,
        new_session: Callable[[int, bytes, Direction], Session] = Session,
    ) -> None:
        self.limits = limits
        self.trace = trace
        self.sessions = Counter[int]()
        self.rounds = Counter[int]()
        self.refused = Counter[str]()
        self._hellos = itertools.count(1)
        self._keys = dict(keys)
        self._decoy_key = secrets.token_bytes(32)
        self._aggregation = aggregation
        self._record = record
        self._new_session = new_session
        self._changed = threading.Condition()  # guards all that follows
        self._strangers: list[Member] = []  # the oldest first
        self._members: dict[int, Member] = {}  # established, by client id
        self._newest_hello: dict[int, int] = {}  # that ever established a session, by client id
        self._expected: set[int] = set()  # the clients that the open epoch waits for
        self._epoch = Epoch(1)
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
        with self._changed:
            for member in [*self._strangers, *self._members.values()]:
                member.channel.request_end(Status.SHUTDOWN)
        deadline = time.monotonic() + 1.5
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._listener.close()

    def session_for(self, client_id: int) -> Session:
        """Return a new session; for an unknown id with the decoy key, so that it meets BadTag."""
        key = self._keys.get(client_id, self._decoy_key)
        return self._new_session(client_id, key, Direction.S2C)

    def _accept(self) -> None:
        pause = 0.0  # longer while descriptors or threads are lacking, which is logged once
        while not self._closing.wait(pause):
            try:
                member = Member(self, self._listener.accept()[0])
                thread = threading.Thread(target=member.run, daemon=True)
                with self._changed:  # which the thread has to wait for before it can be forgotten
                    try:
                        thread.start()
                    except RuntimeError:  # out of threads
                        member.channel.leave(Status.SHUTDOWN)
                        raise
                    self._threads = [*(old for old in self._threads if old.is_alive()), thread]
                    self._strangers.append(member)
                    while len(self._strangers) > self.limits.max_strangers:
                        self._strangers.pop(0).channel.send_away(Status.TIMEOUT)
                pause = 0.0
            except TimeoutError:
                continue
            except Exception as error:  # of memory, too, there may be too little
                log.log(logging.DEBUG if pause else logging.ERROR, "cannot accept: %s", error)
                pause = POLL_S

    def number_hello(self, member: Member) -> None:
        """Give `member` its place in the order in which HELLOs are accepted."""
        member.hello_number = next(self._hellos)

    def establish(self, member: Member) -> None:
        """Let a stranger in, in place of an older session of its id. Raises EndRequested."""
        with self._changed:
            member.channel.check_request()
            if member.hello_number < self._newest_hello.get(member.client_id, 0):
                raise EndRequested(Status.REPLACED)  # a held report must not evict a live client
            if member.client_id in self._members:
                self._members[member.client_id].channel.request_end(Status.REPLACED)
                self._epoch.contributions.pop(member.client_id, None)
            self._newest_hello[member.client_id] = member.hello_number
            self._members[member.client_id] = member
            self._strangers.remove(member)
            member.established = True
            self.sessions[member.client_id] += 1
        log.info("client %d: established", member.client_id)

    def forget(self, member: Member, reason: Exception) -> None:
        """Take out what an ended session leaves: its place, and its part in the open epoch."""
        client_id = member.client_id
        with self._changed:
            self._strangers = [other for other in self._strangers if other is not member]
            if self._members.get(client_id) is member:
                del self._members[client_id]
                self._expected.discard(client_id)
            if self._epoch.contributions.get(client_id, (None,))[0] is member:
                del self._epoch.contributions[client_id]
            self._close_epoch_if_due()
            self.wake_next()  # in case it was this one's turn to
            if not member.established:
                self.refused[type(reason).__name__] += 1
            self._record(Record("end", client_id, reason))
        name = f"as client {client_id}" if client_id else "without a name"
        log.info(
            "%s: %s",
            f"client {client_id}: ended after {member.rounds} rounds"
            if member.established
            else f"stranger {name}: ended",
            reason,
        )

    def contribute(self, member: Member, report: Message) -> bytes:
        """Enter a report into the open epoch, wait for it to close, and return the answer's body.

        It waits for who took part in the last epoch, but not longer than the window; so who misses
        one is not waited for until it contributes again. Raises EndRequested.
        """
        with self._changed:
            member.channel.check_request()
            epoch = self._epoch
            if not epoch.contributions:
                epoch.deadline = time.monotonic() + self.limits.window_s
            epoch.contributions[member.client_id] = (member, report)
            self.rounds[member.client_id] += 1
            self._record(Record("report", member.client_id, report))
            log.debug(
                "client %d: round %d, %s", member.client_id, report.round_number, report.readings
            )
            self._close_epoch_if_due()
            while epoch.answers is None:
                self._changed.wait(max(0.0, min(POLL_S, epoch.deadline - time.monotonic())))
                member.channel.check_request()
                self._close_epoch_if_due()
        if member.client_id not in epoch.answers:
            raise EndRequested(Status.SHUTDOWN)
        return epoch.answers[member.client_id]

    def wake_next(self) -> None:
        """Wake one member for its answer, and it the next: all at once cut in on each other."""
        with self._changed:
            self._changed.notify()

    def _close_epoch_if_due(self) -> None:
        epoch = self._epoch
        complete = self._expected <= epoch.contributions.keys()
        if not epoch.contributions or not (complete or time.monotonic() >= epoch.deadline):
            return
        try:
            epoch.answers = self._answers(epoch)
        except BaseException:  # an instructor's function may raise anything, and the server lives
            log.exception("epoch %d has no aggregate", epoch.number)
            epoch.aggregate = {}
            epoch.answers = {}
        self._expected = set(epoch.contributions)
        self._epoch = Epoch(epoch.number + 1)
        self._record(Record("epoch", 0, epoch))
        if log.isEnabledFor(logging.DEBUG):  # to describe takes longer than to answer
            log.debug("%s", describe({"epoch": epoch.number, **epoch.aggregate}))

    def _answers(self, epoch: Epoch) -> dict[int, bytes]:
        """Return every member's body, or raise LocalError or BadPayload for all of them."""
        reports = {client_id: report for client_id, (_, report) in epoch.contributions.items()}
        total = math.fsum(reading for report in reports.values() for reading in report.readings)
        copies = {client_id: [*report.readings] for client_id, report in reports.items()}
        epoch.aggregate = self._aggregation(copies)
        answers = {}
        for client_id, report in reports.items():
            head = {"epoch": epoch.number, "round": report.round_number}
            personal = {**head, **own_part(report.readings, total)}  # which it cannot overwrite
            answers[client_id] = encode_body({**head, **epoch.aggregate, **personal})
        parse_aggregate(max(answers.values(), key=len))  # they differ in the personal part only
        return answers

    def summary(self) -> str:
        """Return the table that the program prints last."""
        rows = [f"{n:>6}  {self.sessions[n]:>8}  {self.rounds[n]:>7}" for n in sorted(self.rounds)]
        refused = ", ".join(f"{n} {name}" for name, n in self.refused.most_common())
        return "\n".join(["client  sessions  reports", *rows, f"strangers: {refused or 'none'}"])


def listen(host: str, port: int) -> socket.socket:
    """Return a listening TCP socket. Raises NoConnection."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family, backlog=1_024)
    except (OSError, UnicodeError) as error:
        raise NoConnection(f"cannot listen on {host} port {port}: {reason_of(error)}") from None
    listener.settimeout(POLL_S / 4)
    return listener


def main() -> int:
    parser = Parser("The server: aggregates the readings of its clients.")
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
    parser.add_argument("--ids", type=id_list, default="1-5", help="for whom; default 1-5")
    options = parser.options()
    if options.generate_keys is not None:
        generate_keys(Path(options.generate_keys), options.ids)
        print(f"wrote server.keys and {len(options.ids)} client keys to {options.generate_keys}")
        return 0
    limits = Limits(*(getattr(options, field.name) for field in dataclasses.fields(Limits)))
    if options.patient:
        limits = dataclasses.replace(
            limits,
            stranger_timeout_s=math.inf,
            frame_timeout_s=math.inf,
            silence_timeout_s=math.inf,
        )
    logging.basicConfig(
        level="DEBUG" if options.verbose else "INFO",
        format="%(message)s",
        stream=(lines := Lines()),
    )
    server = Server(
        choose_keys(options.keys, options.host),
        options.host,
        options.port,
        limits,
        trace=options.trace and lines.write_line,
        new_session=options.new_session,
    )
    stop: list[int] = []  # not an Event, whose lock a second signal would find taken
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, lambda number, _: stop.append(number))
    with server:
        print("listening on {}:{}".format(*server.address), flush=True)
        if not options.keys:
            log.warning(DEMO_WARNING)
        while not stop:
            time.sleep(POLL_S)
    lines.drain()
    print(server.summary())
    return 0


if __name__ == "__main__":
    run_program(main)
