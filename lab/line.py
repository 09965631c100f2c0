"""An outsider's own connection to a server, on which an attack says what it likes."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress

from lab.frames import Frame, Log
from protocol_fsm import ProtocolError


class Line:
    """One connection. The framing is given as for a Proxy, and `log` is told of each message."""

    def __init__(
        self,
        sock: socket.socket,
        log: Log,
        read_frame: Callable[[Callable[[int], bytes]], bytes],
        write_frame: Callable[[Callable[[bytes], object], bytes], None],
    ) -> None:
        self.socket = sock
        self._log = log
        self._read_frame = read_frame
        self._write_frame = write_frame

    def send(self, message: Frame | bytes) -> None:
        """Send a recorded frame, or one made from it, or bytes."""
        frame = message if isinstance(message, Frame) else Frame("server", message)
        self._log("inserted", frame)
        with suppress(OSError):  # the server may have closed
            self._write_frame(self.socket.sendall, frame.message)

    def receive(self) -> bytes:
        """Return the next message, or nothing when the server has closed."""
        with suppress(OSError, ProtocolError):
            message = self._read_frame(self.socket.recv)
            self._log("sent", Frame("client", message))
            return message
        return b""
