"""One client: report readings, round by round, and learn the aggregate of each epoch.

    from client import Client
    with Client(1) as client:
        print(client.report([20.5, 21.0]))

As a program (python client.py --help) it exits with 0 when done, 1 when the session was
terminated, 2 for usage or bad input, 3 for no connection, a cut one, or a late answer.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import json
import math
import random
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from channel import FRAME_S, Channel, EndRequested
from endpoint import (
    DEMO_WARNING,
    HOST,
    PORT,
    EndpointParser,
    NewSession,
    choose_keys,
    describe,
    session_factory,
)
from program import (
    NoConnection,
    UserError,
    positive,
    reason_of,
    run_program,
    seconds,
    to_stderr,
)
from protocol_fsm import (
    MAX_MAGNITUDE,
    ClientData,
    ClientHello,
    ConnectionCut,
    DeadlineExpired,
    Direction,
    Json,
    LocalError,
    Message,
    PeerTerminated,
    ProtocolError,
    ServerAggrResponse,
    Session,
    Status,
)


class Client:
    """A session with the server: it begins with `with`, and says GOODBYE at the block's end.

    `keys` are master keys by client id, as load_keys returns them; without, the published demo
    keys, on loopback only. Each answer has `timeout_s`, which has to exceed the server's window.
    Raises UserError, NoConnection, and any ProtocolError, which has then ended this session.
    """

    def __init__(
        self,
        client_id: int,
        keys: Mapping[int, bytes] | None = None,
        host: str = HOST,
        port: int = PORT,
        *,
        timeout_s: float = 2.0,
        frame_timeout_s: float = FRAME_S,
        new_session: NewSession = Session,
    ) -> None:
        keys = choose_keys(None, host) if keys is None else keys
        if client_id not in keys:
            raise UserError(f"there is no key for client {client_id}; name its file with --keys")
        self.session = new_session(client_id, keys[client_id], Direction.C2S)
        self._address = (host, port)
        self.timeout_s = timeout_s
        self._frame_timeout_s = frame_timeout_s
        self.channel: Channel[Message]

    def __enter__(self) -> Client:
        try:
            sock = socket.create_connection(self._address, max(5.0, min(self.timeout_s, 10.0)))
        except (OSError, UnicodeError) as error:
            where = "{}:{}".format(*self._address)
            raise NoConnection(f"no server at {where}: {reason_of(error)}") from None
        self.channel = Channel(sock, self.session, self._frame_timeout_s)
        try:
            self.channel.send(ClientHello())
            self.channel.receive(time.monotonic() + self.timeout_s)
        except BaseException:
            self.channel.leave(Status.GOODBYE)
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.channel.leave(Status.GOODBYE)

    def report(self, readings: Sequence[float]) -> dict[str, Json]:
        """Send 0 to 1,024 readings, wait for the epoch to close, and return its aggregate."""
        self.channel.send(ClientData(readings))
        answer = self.channel.receive(time.monotonic() + self.timeout_s)
        return dict(cast(ServerAggrResponse, answer).aggregate)  # the table allows nothing else


def reading(text: str) -> float:
    """Return a number that a report may carry. Raises ValueError."""
    if not abs(value := float(text)) <= MAX_MAGNITUDE:
        raise ValueError(text)
    return value


def rows_of(path: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the place and the cells of each row that is not blank; `-` is standard input."""
    try:
        source: int | str = sys.stdin.fileno() if path == "-" else path
        with open(source, encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = csv.reader(file)
            for cells in rows:
                if any(map(str.strip, cells)):
                    yield f"{path} line {rows.line_num}", cells
    except (OSError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}") from None


def readings_of(path: str, column: str | None) -> Iterator[list[float]]:
    """Yield a reading a row, from `column` or else the last one. Raises UserError.

    The first row is a header if a column is named, or if none of its cells begins like a number.
    """
    rows = rows_of(path)
    index = -1
    where, head = next(rows, (path, list[str]()))
    if column is not None and column not in head:
        raise UserError(f"{where}: there is no column {column!r}")
    if column is not None:
        index = head.index(column)
    elif any(cell.strip().lstrip("+-.")[:1].isdigit() for cell in head):
        rows = itertools.chain([(f"{where} (a header? then use --column)", head)], rows)
    for where, cells in rows:
        try:
            yield [reading(cells[index])]
        except (ValueError, IndexError):
            cell = repr(cells[index][:30]) if index < len(cells) else "what is missing"
            where += f", column {index + 1 or len(cells)}"
            raise UserError(f"{where}: {cell} is not a number up to 1e15") from None


def simulated(client_id: int) -> Iterator[list[float]]:
    """Yield the readings of a thermometer that does not exist, in degrees Celsius."""
    for step in itertools.count():
        yield [round(20 + client_id + math.sin(step / 4) + random.uniform(-0.2, 0.2), 2)]


def typed(session: Session) -> Iterator[list[float]]:
    """Yield what a person types, until `quit` or the end of the input."""
    with contextlib.suppress(EOFError):
        while (line := input("numbers, status, quit> ").strip()) != "quit":
            if line == "status":
                print(session, *map(" ".join, session.fingerprints().items()), sep="\n")
                continue
            try:
                yield [reading(word) for word in line.replace(",", " ").split()]
            except ValueError:
                print("numbers up to 1e15, please, with spaces between them")


def choose_reports(options: argparse.Namespace, session: Session) -> Iterator[list[float]]:
    """Return the reports; an empty one establishes. Raises UserError before anything is sent."""
    if options.interactive:
        return itertools.chain([[]], itertools.islice(typed(session), options.rounds))
    if options.file == "-":
        return itertools.chain(
            [[]], itertools.islice(readings_of("-", options.column), options.rounds)
        )
    if options.file is not None:  # read whole, so that a bad cell is found before anything is sent
        readings = [*readings_of(options.file, options.column)]
        if not readings:
            raise UserError(f"there are no readings in {options.file}")
        return itertools.islice(readings, options.rounds)
    source = itertools.repeat(options.values) if options.values else simulated(options.id)
    return itertools.islice(source, options.rounds or 10)


def run(client: Client, reports: Iterator[list[float]], options: argparse.Namespace) -> None:
    """Report until there is nothing left. Raises EndRequested on Ctrl-C, and ProtocolError."""
    at_input = False

    def leave(*_: object) -> None:
        signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # a second Ctrl-C must not interrupt the goodbye
        client.channel.request_end(Status.GOODBYE)
        if at_input:  # then nothing looks at the request, and nothing is half done either
            raise EndRequested(Status.GOODBYE)

    with client:
        signal.signal(signal.SIGINT, leave)
        if not options.json:
            warning = "" if options.keys else f"\n{DEMO_WARNING}"
            print(f"client {options.id}: session with the server begun{warning}", flush=True)
        while True:
            at_input = True
            client.channel.check_request()  # Ctrl-C may have come just before
            readings = next(reports, None)
            at_input = False
            if readings is None:
                return
            if client.session.round_number > 1:  # a pause, which hears what the server has said
                client.channel.idle(0.01 if options.interactive else options.interval)
            answer = client.report(readings)
            print(json.dumps(answer) if options.json else describe(answer), flush=True)


def explain(error: ProtocolError, session: Session) -> str:
    """Return the sentence for a person whose session ended before its time."""
    if isinstance(error, PeerTerminated):
        return f"session terminated by the server: {error.status.name}"
    if isinstance(error, ConnectionCut) and session.round_number == 0:
        return (
            "the server closed the connection in the handshake, and never says why: a wrong "
            "key, an unknown id or tampering all look like this"
        )
    if isinstance(error, ConnectionCut):
        return "connection lost: it closed without a TERMINATE"
    if isinstance(error, DeadlineExpired):
        return "no answer in time: is it our server, and is --timeout longer than its --window?"
    return f"session terminated: {error}"


def main() -> int:
    parser = EndpointParser("A client: reports readings, and prints the aggregate of each epoch.")
    parser.add_argument("id", type=int, help="1 to 255")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--values", nargs="+", type=reading, metavar="X", help="report these")
    source.add_argument("--file", metavar="CSV", help="report a row a round; - is standard input")
    source.add_argument("--interactive", action="store_true", help="report what you type")
    parser.add_argument("--column", metavar="NAME", help="of the CSV; default: the last")
    parser.add_argument("--rounds", type=positive, help="default 10, or the whole file")
    parser.add_argument("--interval", type=seconds, default=0.5, help="between rounds; default 0.5")
    parser.add_argument("--timeout", type=seconds, default=2.0, help="for an answer; default 2")
    parser.add_argument("--json", action="store_true", help="print answers as lines of JSON")
    options = parser.options()
    client = Client(
        options.id,
        choose_keys(options.keys, options.host),
        options.host,
        options.port,
        timeout_s=math.inf if options.patient else options.timeout,
        frame_timeout_s=math.inf if options.patient else FRAME_S,
        new_session=session_factory(options),
    )
    try:
        run(client, choose_reports(options, client.session), options)
    except EndRequested:
        pass  # Ctrl-C, and GOODBYE has been said
    except LocalError as error:
        raise UserError(str(error)) from None
    except ProtocolError as error:
        to_stderr(f"client {options.id}: {explain(error, client.session)}")
        return 3 if isinstance(error, (ConnectionCut, DeadlineExpired)) else 1
    if not options.json:
        print(f"client {options.id}: goodbye said after {client.session.round_number - 1} rounds")
    return 0


if __name__ == "__main__":
    run_program(main)
