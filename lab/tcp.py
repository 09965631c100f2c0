"""What stages over TCP share: the wire under attack, and the connections that they wait for."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial

from lab.catalogue import Attack, Stage, attacked
from lab.frames import Frame, Log, Tap
from lab.line import Line
from lab.observer import Observer
from lab.proxy import Proxy

PATIENCE_S = 5.0  # for what must come


class TcpStage(Stage):
    """A stage with a server at an address; the framing is given as for a Proxy."""

    address: tuple[str, int]

    def __init__(
        self,
        log: Log,
        observer: Observer | None,
        read_frame: Callable[[Callable[[int], bytes]], bytes],
        write_frame: Callable[[Callable[[bytes], object], bytes], None],
    ) -> None:
        self.attack = ""
        self.rounds = 0
        self.harm: list[Exception] = []  # that came to the bystanders: there must be none
        self.observer = observer
        self._log = log
        self._read_frame = read_frame
        self._write_frame = write_frame
        self._changed = threading.Condition()
        self._connections = 0  # that have not ended yet

    def log(self, deed: str, frame: Frame) -> None:
        """Note what happened to a frame of the victim's connection, or of an outsider's."""
        self._log(deed, frame)

    def proxy(self, tap: Tap) -> Proxy:
        """Return a man in the middle of one connection to the server."""
        return Proxy(self.address, tap, self._read_frame, self._write_frame)

    def attack_on(self, attack: Attack, live: Callable[[tuple[str, int]], None]) -> None:
        """Let a victim live at the server's address, or behind an attack on its path."""
        if attack.is_on_path:
            with self.proxy(partial(attacked, attack, lab=self)) as proxy:
                live(proxy.address)
        else:
            live(self.address)

    @contextlib.contextmanager
    def connect(self) -> Iterator[Line]:
        """Give an outsider's connection, whose end the lab will wait for."""
        self._await_one_more()
        with socket.create_connection(self.address, PATIENCE_S) as sock:
            yield Line(sock, self.log, self._read_frame, self._write_frame)

    def _await_one_more(self) -> None:
        with self._changed:
            self._connections += 1

    def _one_has_ended(self) -> None:
        with self._changed:
            self._connections -= 1
            self._changed.notify_all()

    def _await_all_ends(self) -> None:
        self._wait(lambda: self._connections == 0)

    def _wait(self, until: Callable[[], bool]) -> bool:
        with self._changed:
            return self._changed.wait_for(until, PATIENCE_S)
