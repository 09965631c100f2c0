"""One client: report readings, round by round, and learn the aggregate of each epoch.

    from client import Client
    with Client(1) as client:
        print(client.report([20.5, 21.0]))

As a program (python client.py --help) it exits with 0 when done, 1 when the session was
terminated, 2 for usage or bad input, 3 for no connection, a cut one, or a late answer.
"""

from __future__ import annotations

import guard  # noqa: F401 (before all else: it says what the others lack)
import argparse
import contextlib
import itertools
import json
import math
import numbers
import random
import re
import signal
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, SupportsFloat

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
    host_and_port_of,
    keep_inputs,
    positive,
    reason_of,
    run_program,
    seconds,
    to_stderr,
    whole,
)
from protocol_fsm import (
    ClientData,
    ClientHello,
    ConnectionCut,
    DeadlineExpired,
    Direction,
    Json,
    LocalError,
    MalformedMessage,
    Message,
    PeerTerminated,
    ProtocolError,
    Session,
    Status,
)
from readings import Table, reading


class Client:
    """One session with the server, from connect() to close(), or inside `with`.

    `keys` are master keys by client id, as load_keys returns them; without, the published demo
    keys, on loopback only. An answer may take `timeout_s`, which must exceed the server's window.
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
        if keys is None:
            keys, host = choose_keys(None, host)
        if client_id not in keys:
            known = ", ".join(map(str, sorted(keys)))
            raise UserError(f"there is no key for client {client_id}, only for {known}")
        self.session = new_session(client_id, keys[client_id], Direction.C2S)
        self._address = (host, port)
        self.timeout_s = timeout_s
        self._frame_timeout_s = frame_timeout_s
        self._channel: Channel[Message] | None = None

    def __enter__(self) -> Client:
        self.connect()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def connect(self) -> None:
        """Connect, and shake hands with the server. Raises LocalError the second time."""
        if self._channel is not None:
            raise LocalError("a Client has one session; make another Client for the next")
        try:
            sock = socket.create_connection(self._address, 5.0)
        except (OSError, UnicodeError) as error:
            where = host_and_port_of(self._address)
            raise NoConnection(f"no server at {where}: {reason_of(error)}") from None
        self._channel = Channel(sock, self.session, self._frame_timeout_s)
        try:
            self.channel.send(ClientHello())
            self.channel.receive(time.monotonic() + self.timeout_s)
        except BaseException:
            self.channel.leave(Status.GOODBYE)
            raise

    def close(self) -> None:
        """Say GOODBYE, unless the session is over, and disconnect. The second time does nothing."""
        if self._channel is not None:
            self._channel.leave(Status.GOODBYE)

    @property
    def channel(self) -> Channel[Message]:
        """The connection. Raises LocalError before there is one."""
        if self._channel is None:
            raise LocalError("a client reports after connect(), or inside its with block")
        return self._channel

    def report(self, readings: Iterable[SupportsFloat]) -> dict[str, Json]:
        """Send 0 to 1,024 real numbers, wait for the epoch to close, and return its aggregate."""
        channel = self.channel
        plain = [
            value if isinstance(value, (int, float)) else float_of(value) for value in readings
        ]
        channel.send(ClientData(plain))
        answer: Any = channel.receive(time.monotonic() + self.timeout_s)
        return dict(answer.aggregate)  # a ServerAggrResponse: the table allows nothing else


def float_of(value: SupportsFloat) -> float:
    """Return the float that one of numpy's numbers or a fraction stands for. Raises LocalError."""
    if not isinstance(value, numbers.Real):
        raise LocalError(f"a reading is a real number, and this is a {type(value).__name__}")
    return float(value)


# What is reported, and when -----------------------------------------------------------------------


def simulated(client_id: int) -> Iterator[list[float]]:
    """Yield the readings of a thermometer that does not exist, in degrees Celsius."""
    for step in itertools.count():
        yield [round(20 + client_id + math.sin(step / 4) + random.uniform(-0.2, 0.2), 2)]


def typed(client: Client) -> Iterator[list[float]]:
    """Yield what a person types, until `quit` or the end of the input. Raises ProtocolError."""
    session = client.session
    with contextlib.suppress(EOFError):
        while (line := asked(client).strip()) != "quit":
            if line == "status":
                print(session, *map(" ".join, session.fingerprints().items()), sep="\n")
                continue
            try:
                yield [reading(word) for word in re.findall("[^ \t]+", line)]
            except ValueError:
                print("numbers up to 1e15, please, with a decimal point and spaces between them")


def asked(client: Client) -> str:
    """Return the next line; a person at a terminal hears of the server's end before it."""
    print("numbers, status, quit> ", end="", flush=True)
    try:
        if sys.platform != "win32" and sys.stdin.isatty():  # Windows cannot wait for both
            client.channel.hear_before(sys.stdin)
        return input()
    except (EOFError, EndRequested, ProtocolError):
        print()  # the prompt has a line of its own
        raise


def choose_reports(options: argparse.Namespace, client: Client) -> Iterator[list[float]]:
    """Return the reports; an empty one establishes. Raises UserError before anything is sent."""
    if options.interactive and options.json:
        raise UserError("--json is for programs, which write to --file - and see no prompt")
    if options.interactive:
        return itertools.chain([[]], itertools.islice(typed(client), options.rounds))
    if options.file == "-":
        return itertools.chain([[]], itertools.islice(streamed(options), options.rounds))
    if options.file is not None:  # read whole, so that a bad cell is found before anything is sent
        table = Table(options.file, options.column, options.skip)
        readings = [*table.readings()]
        to_stderr(str(table))
        return itertools.islice(readings, options.rounds)
    if options.column is not None or options.skip:
        raise UserError("--column and --skip go with --file")
    source = itertools.repeat(options.values) if options.values else simulated(options.id)
    return itertools.islice(source, options.rounds or 10)


def streamed(options: argparse.Namespace) -> Iterator[list[float]]:
    """Yield readings as they arrive, and say after the first one how they are read."""
    table = Table("-", options.column, options.skip)
    for number, readings in enumerate(table.readings()):
        if number == 0:
            to_stderr(str(table))
        yield readings


def run(client: Client, reports: Iterator[list[float]], options: argparse.Namespace) -> None:
    """Report until there is nothing left. Raises EndRequested on Ctrl-C, and ProtocolError."""
    at_input = False

    def leave(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one must not stop the goodbye
        client.channel.request_end(Status.GOODBYE)
        if at_input:  # input() looks for no request, and nothing is half done
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
            if client.session.round_number > 1:  # pause, and hear a farewell meanwhile
                client.channel.idle(0.01 if options.interactive else options.interval)
            answer = client.report(readings)
            print(json.dumps(answer) if options.json else describe(answer), flush=True)


def explain(error: ProtocolError, session: Session) -> str:
    """Return the sentence for a user whose session ended early."""
    if isinstance(error, PeerTerminated):
        return f"session terminated by the server: {error.status.name}"
    if isinstance(error, ConnectionCut) and session.round_number == 0:
        return (
            "the server closed the connection in the handshake, and never says why: a wrong key, "
            "an unknown id, tampering, or a port of another program all look like this"
        )
    if isinstance(error, MalformedMessage) and session.round_number == 0:
        return f"the program on that port is not our server: {error}"
    if isinstance(error, ConnectionCut):
        return "connection lost: it closed without a TERMINATE"
    if isinstance(error, DeadlineExpired):
        return "no answer in time: is it our server, and is --timeout longer than its --window?"
    return f"session terminated: {error}"


def as_value(word: str) -> str:
    """Keep argparse from taking a number for a flag: it knows -1 and -1.5, but not -1e3 or -1,5."""
    return f" {word}" if re.fullmatch(r"-\.?\d[\d.,eE+-]*", word) else word


def main() -> int:
    parser = EndpointParser("A client: reports readings, and prints the aggregate of each epoch.")
    parser.add_argument("id", type=whole, help="1 to 255")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--values", nargs="+", action="extend", type=reading, metavar="X", help="report these"
    )
    source.add_argument(
        "--file", metavar="CSV", help="report one row per round; - is standard input"
    )
    source.add_argument("--interactive", action="store_true", help="report what you type")
    parser.add_argument("--column", metavar="C", help="of the CSV, its name or number from 1")
    parser.add_argument(
        "--skip", type=whole, default=0, metavar="N", help="lines before the header"
    )
    parser.add_argument("--rounds", type=positive, help="default 10, or the whole file")
    parser.add_argument("--interval", type=seconds, default=0.5, help="between rounds; default 0.5")
    parser.add_argument("--timeout", type=seconds, default=2.0, help="for an answer; default 2")
    parser.add_argument("--json", action="store_true", help="print answers as lines of JSON")
    options = parser.options([as_value(word) for word in sys.argv[1:]])
    keep_inputs(options.keylog, options.file)
    keys, host = choose_keys(options.keys, options.host)
    client = Client(
        options.id,
        keys,
        host,
        options.port,
        timeout_s=math.inf if options.patient else options.timeout,
        frame_timeout_s=math.inf if options.patient else FRAME_S,
        new_session=session_factory(options),
    )
    try:
        run(client, choose_reports(options, client), options)
    except EndRequested:
        pass  # Ctrl-C, and GOODBYE has been said
    except LocalError as error:
        raise UserError(str(error)) from None
    except ProtocolError as error:
        to_stderr(f"client {options.id}: {explain(error, client.session)}")
        return 3 if isinstance(error, (ConnectionCut, DeadlineExpired)) else 1
    if not options.json:
        print(f"client {options.id}: goodbye said after round {client.session.round_number - 1}")
    return 0


if __name__ == "__main__":
    run_program(main)
