"""A session of any protocol on a connected socket: deadlines, requests to end, farewells.

One thread owns a Channel; any other may only ask it to end. Nothing waits without a limit: a
waiting thread wakes every POLL_S to look at deadlines and requests. The session brings its own
messages and framing; the channel knows no opcode and no key.
"""

from __future__ import annotations

import contextlib
import logging
import math
import select
import socket
import time
from collections.abc import Callable
from typing import IO, Generic, Protocol, TypeVar

from protocol_fsm import ConnectionCut, DeadlineExpired, ProtocolError, Status, Watchers

POLL_S = 0.2  # how soon a waiting thread notices a request
FRAME_S = 2.0  # a frame, once begun, must be whole within this
DRAIN_S = 0.25  # how long the peer has to read a farewell [P 3.7]
READ_BYTES = 4_096  # asked of the system at once: most messages, with their length, in one call

log = logging.getLogger("channel")
AnyMessage = TypeVar("AnyMessage")


class Conversation(Protocol[AnyMessage]):
    """What a channel asks of a session, whatever its protocol."""

    watchers: Watchers

    @property
    def has_farewell(self) -> bool:
        """Whether `goodbye` would have something to say."""

    def seal(self, message: AnyMessage) -> bytes:
        """Return our next message, sealed, without its length. Raises LocalError."""

    def open(self, message: bytes) -> AnyMessage:
        """Return the peer's next message. Raises a ProtocolError, which has ended the session."""

    def fail(self, error: ProtocolError) -> None:
        """End the session, and give `error` the farewell to send."""

    def goodbye(self, status: Status) -> bytes:
        """End the session, and return the farewell to send, or nothing."""

    def read_frame(self, recv: Callable[[int], bytes]) -> bytes:
        """Return the next message from a stream. Raises MalformedMessage and ConnectionCut."""

    def write_frame(self, sendall: Callable[[bytes], object], message: bytes) -> None:
        """Send a message with its frame, in one piece."""


class EndRequested(Exception):
    """Our own side wants the session to end; the peer will be told `status`."""

    def __init__(self, status: Status) -> None:
        super().__init__(f"by this side ({status.name})")
        self.status = status


class Channel(Generic[AnyMessage]):
    """A session on a socket. Its owner calls `leave` at the end, however the session ended."""

    def __init__(
        self,
        sock: socket.socket,
        session: Conversation[AnyMessage],
        frame_timeout_s: float = FRAME_S,
    ) -> None:
        with contextlib.suppress(OSError):  # the peer may be gone already
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.session = session
        self._sock = sock
        self._frame_timeout_s = frame_timeout_s
        self._timeout_s = math.nan  # that the socket has now
        self._frame_begun = False
        self._deadline = 0.0
        self._received = b""
        self._farewell = b""
        self._is_stuck = False  # a message of ours is sealed but not sent
        self._requested: Status | None = None

    def request_end(self, status: Status) -> None:
        """Ask the owner to end the session. Any thread may; the first reason stands."""
        self._requested = self._requested or status

    def send_away(self, status: Status) -> None:
        """Ask the owner to end the session; wake it if it will send no farewell."""
        self.request_end(status)
        if not self.session.has_farewell:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RD)

    def check_request(self) -> None:
        if self._requested:
            raise EndRequested(self._requested)

    def read(self, deadline: float) -> bytes:
        """Return the next message, unopened. All of it has until `deadline` (monotonic)."""
        self._deadline = deadline
        self._frame_begun = False
        try:
            return self.session.read_frame(self._recv)
        except ProtocolError as error:
            self.fail(error)
            raise

    def open(self, message: bytes) -> AnyMessage:
        """Return what a message says. Raises ProtocolError."""
        try:
            return self.session.open(message)
        except ProtocolError as error:  # by which the session has failed already
            self._farewell = error.farewell
            raise

    def receive(self, deadline: float) -> AnyMessage:
        """Return the next message, accepted. All of it has until `deadline` (monotonic)."""
        return self.open(self.read(deadline))

    def send(self, message: AnyMessage) -> None:
        """Seal and send. A peer that cannot be written to may have sent a farewell [P 3.7]."""
        self.check_request()
        sealed = self.session.seal(message)
        self._is_stuck = True  # until all of it is sent, no farewell can be understood
        try:
            self.session.write_frame(self._send_all, sealed)
        except OSError:
            self.receive(time.monotonic() + FRAME_S)
            error = ConnectionCut(mid_frame=True)
            self.fail(error)
            raise error from None
        self._is_stuck = False

    def idle(self, seconds: float) -> None:
        """Wait. What arrives meanwhile can only be a farewell: open it."""
        self._deadline = time.monotonic() + seconds
        try:
            self._received = self._received or self._wait_for_bytes(READ_BYTES)
        except DeadlineExpired:
            return
        self.receive(time.monotonic() + self._frame_timeout_s)

    def hear(self) -> None:
        """Open what has arrived unasked, if anything has: it can only be a farewell."""
        try:
            self._set_timeout(0.0)
            if not self._received:
                self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            pass  # a reset connection is a closed one
        self.receive(time.monotonic() + self._frame_timeout_s)

    def hear_before(self, file: IO[str]) -> None:
        """Wait until a file can be read, and open a farewell that comes before (not on Windows)."""
        while not select.select([file.fileno(), self._sock.fileno()], [], [], POLL_S)[0]:
            self.check_request()
        self.hear()

    def fail(self, error: ProtocolError) -> None:
        """End the session because of `error`, which something above it may have found."""
        self.session.fail(error)
        self._farewell = error.farewell

    def leave(self, status: Status) -> None:
        """Say farewell, of a failure or else with `status`, and close [P 3.7].

        After a farewell the socket closes when the peer has closed it, or 0.25 s later: a plain
        close could destroy the farewell in flight.
        """
        with contextlib.suppress(OSError), self._sock:
            farewell = self._farewell or self.session.goodbye(status)
            if farewell and not self._is_stuck:
                self._say_farewell(farewell)
        if self.session.watchers.error:
            log.error("a watcher of %r failed: %s", self.session, self.session.watchers.error)

    def _say_farewell(self, farewell: bytes) -> None:
        self._set_timeout(DRAIN_S)
        self.session.write_frame(self._sock.sendall, farewell)
        self._sock.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + DRAIN_S
        while (left_s := deadline - time.monotonic()) > 0:
            self._set_timeout(left_s)
            if not self._sock.recv(65_536):
                break

    def _recv(self, wanted: int) -> bytes:
        """Return 1 to `wanted` bytes, or none at the end, as the session's framing asks."""
        received = self._received or self._wait_for_bytes(max(wanted, READ_BYTES))
        if not self._frame_begun:
            self._frame_begun = True
            self._deadline = min(self._deadline, time.monotonic() + self._frame_timeout_s)
        self._received = received[wanted:]
        return received[:wanted]

    def _wait_for_bytes(self, most: int) -> bytes:
        while True:
            self.check_request()
            now = time.monotonic()
            if now >= self._deadline:
                raise DeadlineExpired("a whole frame" if self._frame_begun else "a message", "none")
            self._set_timeout(min(self._deadline - now, POLL_S))
            try:
                received = self._sock.recv(most)
            except TimeoutError:
                continue
            except OSError:
                received = b""  # a reset connection is a closed one
            if not received:
                self.check_request()  # it may have been closed to wake us
            return received

    def _send_all(self, data: bytes) -> None:
        """Send all of it within a frame's time. Raises EndRequested, OSError."""
        deadline = time.monotonic() + self._frame_timeout_s
        self._set_timeout(POLL_S)
        while data:
            try:
                data = data[self._sock.send(data) :]
            except TimeoutError:
                self.check_request()
            if data and time.monotonic() >= deadline:
                raise TimeoutError

    def _set_timeout(self, timeout_s: float) -> None:
        if timeout_s != self._timeout_s:  # setting it costs a system call
            self._sock.settimeout(timeout_s)
            self._timeout_s = timeout_s
