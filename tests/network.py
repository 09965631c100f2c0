"""Real servers and real sockets for the tests: what happened is awaited, never slept for."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from client import Client
from endpoint import DEMO_KEYS
from protocol_fsm import (
    ClientData,
    ClientHello,
    ConnectionCut,
    Direction,
    Json,
    MalformedMessage,
    Message,
    ServerAggrResponse,
    Session,
    read_frame,
    write_frame,
)
from server import Limits, Record, Server, compute_aggregation

LINGER_0 = b"\x01\0\0\0\0\0\0\0"  # a socket that closes so sends a reset
PATIENCE_S = 10.0  # how long a test waits for what must happen; reached only by failing tests

AnyRecord = TypeVar("AnyRecord")
AnyWire = TypeVar("AnyWire", bound="Wire")


class Noted(Generic[AnyRecord]):
    """What another thread tells, and a way to wait for it."""

    def __init__(self) -> None:
        self.records: list[AnyRecord] = []
        self._changed = threading.Condition()

    def __call__(self, record: AnyRecord) -> None:
        with self._changed:
            self.records.append(record)
            self._changed.notify_all()

    def wait_until(self, true: Callable[[], bool], within_s: float = PATIENCE_S) -> None:
        with self._changed:
            assert self._changed.wait_for(true, within_s), self.records


class Journal(Noted[Record]):
    """A server's records."""

    def of(self, what: str, client_id: int | None = None) -> list[Record]:
        return [
            r for r in list(self.records) if r.what == what and client_id in (None, r.client_id)
        ]

    def wait(self, what: str, client_id: int | None = None, count: int = 1) -> list[Record]:
        """Return the records of one kind once there are `count` of them."""
        self.wait_until(lambda: len(self.of(what, client_id)) >= count)
        return self.of(what, client_id)


@contextlib.contextmanager
def serving(
    aggregation: Callable[..., Any] = compute_aggregation, **limits: Any
) -> Iterator[tuple[Server, Journal]]:
    """Run a server on a free loopback port, and check that it leaves no thread behind."""
    before = set(threading.enumerate())
    journal = Journal()
    with Server(
        DEMO_KEYS,
        port=0,
        limits=Limits(**limits),
        aggregation=aggregation,
        record=journal,
    ) as server:
        yield server, journal
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), f"{thread} outlived its server"


def client_for(server: Server, client_id: int) -> Client:
    return Client(client_id, DEMO_KEYS, *server.address, timeout_s=5.0)


class Wire:
    """A bare connection to a server, which sends what it is told to."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, PATIENCE_S)
        self.sent: list[bytes] = []
        self.received: list[bytes] = []

    def __enter__(self: AnyWire) -> AnyWire:
        return self

    def __exit__(self, *exception: object) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Close as a process does that is killed: what is unread or unsent is lost."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
        self.socket.close()

    def send(self, message: bytes) -> None:
        self.sent.append(message)
        write_frame(self.socket.sendall, message)

    def receive(self) -> bytes:
        self.received.append(read_frame(self.socket.recv))
        return self.received[-1]

    def is_closed_silently(self) -> bool:
        """Return whether the server closes without sending another byte."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True

    def last_opcode(self) -> int | None:
        """Return the opcode of the last message before the server closes, None if none came."""
        last = None
        with contextlib.suppress(ConnectionCut, ConnectionError, MalformedMessage):
            while True:
                last = self.receive()[0]
        return last


class Hand(Wire):
    """A client by hand: a Session on a Wire, one step at a time."""

    def __init__(self, address: tuple[str, int], client_id: int = 1, key: bytes = b"") -> None:
        super().__init__(address)
        self.session = Session(client_id, key or DEMO_KEYS[client_id], Direction.C2S)

    def hello(self) -> None:
        self.send(self.session.seal(ClientHello()))

    def shake_hands(self) -> Hand:
        self.hello()
        self.open()
        return self

    def open(self) -> Message:
        return self.session.open(self.receive())

    def report(self, readings: Sequence[float] = (1,)) -> None:
        self.send(self.session.seal(ClientData(readings)))

    def answer(self) -> Mapping[str, Json]:
        """Return the aggregate of the answer that comes next."""
        answer = self.open()
        assert isinstance(answer, ServerAggrResponse)
        return answer.aggregate


def at_once(*calls: Callable[[], object]) -> list[object]:
    """Make all calls at the same time, each in a thread; return what they return, or raise."""
    results: list[object] = [None] * len(calls)
    barrier = threading.Barrier(len(calls))

    def call(position: int) -> None:
        barrier.wait()
        try:
            results[position] = calls[position]()
        except BaseException as error:  # handed to the test, which looks at it
            results[position] = error

    threads = [threading.Thread(target=call, args=(n,), daemon=True) for n in range(len(calls))]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 3 * PATIENCE_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
        assert not thread.is_alive(), "a call never came back"
    return results


def wait_until(true: Callable[[], bool], within_s: float = 30.0) -> None:
    """Wait for what nobody announces: a number in another process, say."""
    deadline = time.monotonic() + within_s
    never = threading.Event()
    while not true():
        assert time.monotonic() < deadline, "it never came about"
        never.wait(0.02)


def free_port() -> int:
    """Return a port on which nothing listens, and which no system gives to a program by itself."""
    while True:
        port = random.randrange(10_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextlib.contextmanager
def other_program(says: bytes) -> Iterator[tuple[str, int]]:
    """Listen as some other program, which says the same to everybody and closes; give its port."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while not over.is_set():
                with listener.accept()[0] as connection, contextlib.suppress(OSError):
                    connection.sendall(says)
                    connection.recv(1_000)

        thread = threading.Thread(target=serve)
        thread.start()
        address: tuple[str, int] = listener.getsockname()
        try:
            yield address
        finally:
            over.set()
            socket.create_connection(address).close()  # which wakes it
            thread.join()
