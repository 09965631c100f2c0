"""A channel whose owner also speaks while it waits: other threads hand it what to do.

Still only its owner touches the session and writes the socket. An action that another thread has
posted runs in the owner's thread while it waits for the peer; a byte through a pair of sockets
wakes it.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

from channel import FRAME_S, POLL_S, Channel, Conversation
from companions.secure_chat.protocol import Message
from protocol_fsm import DeadlineExpired, Status

Action = Callable[[], object]


class Duplex(Channel[Message]):
    """A session on a socket, for the owner's thread; `post` and `request_end` are for any other."""

    def __init__(
        self, sock: socket.socket, session: Conversation[Message], frame_timeout_s: float = FRAME_S
    ) -> None:
        super().__init__(sock, session, frame_timeout_s)
        self.tick: Action = lambda: None  # done by the owner now and then, while it waits
        self._lock = threading.Lock()  # guards what follows
        self._posted: deque[Action] = deque()
        self._waker, self._wakened = socket.socketpair()
        self._waker.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(sock, selectors.EVENT_READ)
        self._selector.register(self._wakened, selectors.EVENT_READ)

    def post(self, action: Action) -> int:
        """Let the owner do this soon; return how many actions wait for it."""
        with self._lock:
            self._posted.append(action)
            waiting = len(self._posted)
        if waiting == 1:
            self._wake()
        return waiting

    def request_end(self, status: Status) -> None:
        super().request_end(status)
        self._wake()

    def act(self) -> None:
        """Do what has been posted, in order; for the owner."""
        while True:
            with self._lock:
                if not self._posted:
                    return
                action = self._posted.popleft()
            action()

    def hurry(self, seconds: float) -> None:
        """Wait no longer than this for the message that is due; for the owner."""
        self._deadline = min(self._deadline, time.monotonic() + seconds)

    def leave(self, status: Status) -> None:
        super().leave(status)
        self._selector.close()
        for end in (self._waker, self._wakened):
            end.close()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # the channel may be closed, or be awake already
            self._waker.send(b"\0")

    def _wait_for_bytes(self, most: int) -> bytes:
        while True:
            self.act()
            self.tick()
            self.check_request()
            left_s = self._deadline - time.monotonic()
            if left_s <= 0:
                raise DeadlineExpired("a whole frame" if self._frame_begun else "a message", "none")
            ready = [key.fileobj for key, _ in self._selector.select(min(left_s, POLL_S))]
            if self._wakened in ready:
                self._wakened.recv(4_096)
            if self._sock in ready:
                return self._received_now(most)

    def _received_now(self, most: int) -> bytes:
        try:
            received = self._sock.recv(most)
        except OSError:
            received = b""  # a reset connection is a closed one
        if not received:
            self.check_request()  # it may have been closed to wake us
        return received
