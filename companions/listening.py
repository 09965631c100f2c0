"""What servers of the companions share: they accept, serve each connection in a thread, and end.

A connection is a stranger until its server says otherwise; few may wait: one more evicts the
oldest. Only its own thread touches its session and writes its socket; others may ask it to end.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from channel import POLL_S, Channel, EndRequested
from program import Lines, NoConnection, UserError, end_signals, host_and_port_of, reason_of
from protocol_fsm import LocalError, ProtocolError, Status

END_S = 2.0  # how long the threads may take after a request to end

AnyConnection = TypeVar("AnyConnection", bound="Connection")
AnyChannel = TypeVar("AnyChannel", bound=Channel[Any])
AnyListener = TypeVar("AnyListener", bound="Listener[Any]")


class Listener(ABC, Generic[AnyConnection]):
    """Accepts inside `with`, and after it asks every connection to end, and waits for them.

    A subclass sets `close`, which is called at the end; its users call it if it never serves.
    """

    close: Callable[[], None]

    def __init__(self, listener: socket.socket, max_strangers: int, log: logging.Logger) -> None:
        self.address: tuple[str, int] = listener.getsockname()[:2]
        self._listener = listener
        self._max_strangers = max_strangers
        self.log = log
        self._lock = threading.Lock()  # guards what follows
        self._connections: list[AnyConnection] = []  # the oldest first
        self._closing = threading.Event()
        self._acceptor = threading.Thread(target=self._accept, daemon=True)

    @abstractmethod
    def _connect(self, sock: socket.socket, address: Sequence[object]) -> AnyConnection:
        """Return a connection whose thread has not begun."""

    @abstractmethod
    def tell(self, connection: AnyConnection, reason: Exception | None) -> None:
        """Log how a connection ended; without a reason, in peace."""

    def __enter__(self: AnyListener) -> AnyListener:
        if self._acceptor.ident is not None:
            raise LocalError("it listens once; for another time, make another one")
        self._acceptor.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.set()
        self._acceptor.join()
        with self._lock:
            connections = [*self._connections]
        for connection in connections:
            connection.channel.request_end(Status.SHUTDOWN)
        deadline = time.monotonic() + END_S
        for connection in connections:
            connection.thread.join(max(0.0, deadline - time.monotonic()))
        self.close()

    def _accept(self) -> None:
        pause_s = 0.0  # longer while descriptors or threads are lacking, which is logged once
        while not self._closing.wait(pause_s):
            try:
                self._begin(*self._listener.accept())
                pause_s = 0.0
            except TimeoutError:
                continue
            except Exception as error:  # a lack of descriptors, threads or memory passes
                level = logging.DEBUG if pause_s else logging.ERROR
                self.log.log(level, "cannot accept: %s", error)
                pause_s = POLL_S

    def _begin(self, sock: socket.socket, address: Sequence[object]) -> None:
        """Serve a connection in a thread, and evict the oldest strangers if there are many."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(sock)
            connection = self._connect(sock, address)
            with self._lock:  # which the thread has to wait for before it can be forgotten
                connection.thread.start()
                stack.pop_all()
                self._connections.append(connection)
                strangers = [one for one in self._connections if one.is_stranger]
                for oldest in strangers[: -self._max_strangers]:
                    oldest.channel.send_away(Status.TIMEOUT)

    def forget(self, connection: AnyConnection) -> None:
        """Take a closed connection off the list."""
        with self._lock:
            self._connections = [one for one in self._connections if one is not connection]


class Connection(ABC):
    """One connection, from its first byte to its last, served by a thread of its own."""

    def __init__(
        self, listener: Listener[Any], channel: Channel[Any], address: Sequence[object]
    ) -> None:
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.name = ""  # in the certificate; empty until it was shown
        self.is_stranger = True
        self._listener = listener
        self.channel = channel
        self._address = host_and_port_of(address)

    def __str__(self) -> str:
        return f"{self.name or 'a stranger'} at {self._address}"

    @abstractmethod
    def _serve(self) -> None:
        """Serve to the end."""

    def _run(self) -> None:
        status = Status.SHUTDOWN
        try:
            reason = self._outcome()
            if isinstance(reason, EndRequested):
                status = reason.status
            self._listener.tell(self, reason)
        except (ProtocolError, UserError) as error:  # of the database, or of the disk
            self._listener.log.error("%s: %s", self, error)
        finally:
            self.channel.leave(status)
            self._listener.forget(self)

    def _outcome(self) -> Exception | None:
        """Serve, and return what ended the session; nothing after a goodbye."""
        try:
            self._serve()
        except ProtocolError as error:
            self.channel.fail(error)  # what a session has found has ended it already
            return error
        except (EndRequested, UserError) as reason:  # the second: of the disk
            return reason
        except Exception as error:  # a defect of ours: it ends this session and no other
            self._listener.log.exception("%s: internal error", self)
            return error
        return None


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket whose `accept` gives up now and then. Raises NoConnection."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=1_024)
    except (OSError, UnicodeError, OverflowError) as error:
        where = host_and_port_of((host, port))
        raise NoConnection(f"cannot listen on {where}: {reason_of(error)}") from None
    listener.settimeout(POLL_S / 4)
    return listener


class Caller(Generic[AnyChannel]):
    """A client: it has one session, inside its `with`."""

    _channel: AnyChannel | None = None

    @property
    def channel(self) -> AnyChannel:
        """The connection. Raises LocalError before there is one."""
        if self._channel is None:
            raise LocalError("a client has a connection inside its `with`, and not before")
        return self._channel

    def _reach(self, address: tuple[str, int], timeout_s: float) -> socket.socket:
        """Return a connection to a server. Raises NoConnection, and LocalError after a session."""
        if self._channel is not None:
            raise LocalError("a client has one session; for another one, make another client")
        try:
            return socket.create_connection(address, timeout_s)
        except (OSError, UnicodeError, OverflowError) as error:
            where = host_and_port_of(address)
            raise NoConnection(f"no server at {where}: {reason_of(error)}") from None


def serve(listener: Listener[Any], greeting: str, lines: Lines) -> None:
    """Serve until a signal comes; `lines` are those of the log."""
    stop: list[int] = []  # not an Event, whose lock a second signal would find taken
    for number in end_signals():
        signal.signal(number, lambda number, _: stop.append(number))
    with listener:
        print(f"{greeting} {host_and_port_of(listener.address)}", flush=True)
        while not stop:
            time.sleep(POLL_S)
    lines.drain()
    print("stopped")
