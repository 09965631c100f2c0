"""A sans-I/O session of a companion on a connected socket: deadlines, requests to end, farewells.

One thread owns a channel, any other may only ask it to end. Nothing waits without a limit: a recv
wakes every POLL_S to look at deadlines and requests.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from channel import DRAIN_S, POLL_S, EndRequested
from protocol_fsm import ConnectionCut, DeadlineExpired, ProtocolError, Status

Kind = TypeVar("Kind", contravariant=True)
Message = TypeVar("Message", covariant=True)
ReadFrame = Callable[[Callable[[int], bytes], int], bytes]
WriteFrame = Callable[[Callable[[bytes], object], bytes], None]


class Speaking(Protocol[Kind, Message]):
    """What a session has to be able to do."""

    @property
    def max_message(self) -> int:
        """How many bytes the next message may have."""

    def seal(self, kind: Kind, body: bytes = b"") -> bytes:
        """Return our next message."""

    def open(self, message: bytes) -> Message:
        """Check the peer's next message; a ProtocolError has ended the session."""

    def fail(self, error: ProtocolError) -> None:
        """End the session, and give `error` the farewell to send."""


class Channel(Generic[Kind, Message]):
    """A session on a socket. Its owner calls `leave` at the end, however that came."""

    def __init__(
        self,
        sock: socket.socket,
        session: Speaking[Kind, Message],
        read_frame: ReadFrame,
        write_frame: WriteFrame,
        frame_timeout_s: float,
    ) -> None:
        with contextlib.suppress(OSError):  # the peer may be gone already
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.session = session
        self._sock = sock
        self._read_frame = read_frame
        self._write_frame = write_frame
        self._frame_timeout_s = frame_timeout_s
        self._frame_begun = False
        self._deadline = 0.0
        self._farewell = b""
        self._is_stuck = False
        self._requested: Status | None = None

    def request_end(self, status: Status = Status.SHUTDOWN) -> None:
        """Ask the owner to end the session. Any thread may; the first reason stands."""
        self._requested = self._requested or status

    def send_away(self, status: Status) -> None:
        """Ask the owner to end the session, without a word: the connection is closed at once."""
        self.request_end(status)
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # which also wakes the owner

    def check_request(self) -> None:
        if self._requested:
            raise EndRequested(self._requested)

    def receive(self, deadline: float) -> Message:
        """Return the next message, accepted. Its first byte has until `deadline` (monotonic)."""
        self._deadline = deadline
        self._frame_begun = False
        try:
            message = self._read_frame(self._recv, self.session.max_message)
        except ProtocolError as error:
            self.fail(error)
            raise
        try:
            return self.session.open(message)
        except ProtocolError as error:  # which has failed the session already
            self._farewell = error.farewell
            raise

    def hear(self) -> None:
        """Open what has come unasked, if anything has: it can only be the end."""
        try:
            self._sock.settimeout(0)
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            pass  # a reset connection is a closed one
        self.receive(time.monotonic() + self._frame_timeout_s)

    def send(self, kind: Kind, body: bytes = b"") -> None:
        """Seal and send. A peer that cannot be written to may have had a last word."""
        self.check_request()
        message = self.session.seal(kind, body)
        try:
            self._write(message)
        except OSError:
            self.receive(time.monotonic() + DRAIN_S)
            error = ConnectionCut(mid_frame=True)
            self.fail(error)
            raise error from None

    def fail(self, error: ProtocolError) -> None:
        """End the session because of `error`, which something above it has found."""
        self.session.fail(error)
        self._farewell = error.farewell

    def leave(self) -> None:
        """Say the farewell of a failure, if there is one, and close.

        After a farewell the socket closes when the peer has closed it, or 0.25 s later: a plain
        close could destroy the farewell in flight. After half a frame nothing can be said.
        """
        with contextlib.suppress(OSError), self._sock:
            if self._farewell and not self._is_stuck:
                self._sock.settimeout(DRAIN_S)
                self._write_frame(self._sock.sendall, self._farewell)
                self._sock.shutdown(socket.SHUT_WR)
                deadline = time.monotonic() + DRAIN_S
                while (left := deadline - time.monotonic()) > 0:
                    self._sock.settimeout(left)
                    if not self._sock.recv(65_536):
                        break

    def _recv(self, wanted: int) -> bytes:
        while True:
            self.check_request()
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise DeadlineExpired("a whole frame" if self._frame_begun else "a message", "none")
            try:
                self._sock.settimeout(min(left, POLL_S))
                received = self._sock.recv(wanted)
            except TimeoutError:
                continue
            except OSError:
                received = b""  # a reset connection is a closed one
            if not received:
                self.check_request()
                return b""
            if not self._frame_begun:
                self._frame_begun = True
                self._deadline = min(self._deadline, time.monotonic() + self._frame_timeout_s)
            return received

    def _write(self, message: bytes) -> None:
        self._is_stuck = True
        self._write_frame(self._send_all, message)
        self._is_stuck = False

    def _send_all(self, data: bytes) -> None:
        """Send all of it. While nothing can be sent, requests to end are looked at."""
        deadline = time.monotonic() + self._frame_timeout_s
        left = memoryview(data)
        while left:
            if (left_s := deadline - time.monotonic()) <= 0:
                raise TimeoutError
            self._sock.settimeout(min(left_s, POLL_S))
            try:
                left = left[self._sock.send(left) :]
            except TimeoutError:
                self.check_request()
