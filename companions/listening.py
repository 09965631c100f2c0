"""What servers of the companions share: they accept, serve each connection in a thread, and end.

A connection is a stranger until its owner says otherwise; few may wait: one more evicts the oldest.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from channel import POLL_S, Channel
from program import NoConnection, reason_of
from protocol_fsm import LocalError, Status

END_S = 2.0  # how long the threads may take after a request to end


class Connection(Protocol):
    """One connection, served by a thread of its own."""

    thread: threading.Thread
    is_stranger: bool

    @property
    def channel(self) -> Channel[Any]:
        """Where it may be asked to end."""


AnyConnection = TypeVar("AnyConnection", bound=Connection)
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
        self._log = log
        self._lock = threading.Lock()  # guards what follows
        self._connections: list[AnyConnection] = []  # the oldest first
        self._closing = threading.Event()
        self._acceptor = threading.Thread(target=self._accept, daemon=True)

    @abstractmethod
    def _connect(self, sock: socket.socket, address: Sequence[object]) -> AnyConnection:
        """Return a connection whose thread has not begun."""

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
                self._log.log(level, "cannot accept: %s", error)
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


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket whose `accept` gives up now and then. Raises NoConnection."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=1_024)
    except (OSError, UnicodeError, OverflowError) as error:
        raise NoConnection(f"cannot listen on {host}:{port}: {reason_of(error)}") from None
    listener.settimeout(POLL_S / 4)
    return listener
