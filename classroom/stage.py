"""Stories on sockets: the real programs of a Lab, connected by a story and by nothing else.

Clients and server are those of the lab, with rules taken out. Each client's connection ends here,
each of the server's begins here, and a step of the story is all that passes between them. Notes
of what the sessions of these programs seal and accept show what broke.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

from classroom.story import CLIENTS, OLD, ROUNDS, Notes, Step, broken, readings
from client import Client
from lab.catalogue import CutHere
from lab.line import Line
from lab.stage import LOSS_S, Lab, Parts
from protocol_fsm import (
    ClientData,
    Direction,
    LocalError,
    ProtocolError,
    Session,
    Watcher,
    read_frame,
    write_frame,
)

PATIENCE_S = 5.0  # that every end has, unless the story lets it wait in vain


class Player(threading.Thread):
    """A real client that does what it is told, one thing at a time."""

    def __init__(self, name: str, client: Client, notes: Notes) -> None:
        super().__init__(daemon=True)
        self.name = name
        self.client = client
        self.notes = notes
        client.timeout_s = PATIENCE_S
        self.orders = queue.SimpleQueue[str]()
        self._done = queue.SimpleQueue[None]()

    def run(self) -> None:
        try:
            with self.client:
                self.orders.get()  # the first order is to get the challenge, which it has
                self._done.put(None)
                for what in iter(self.orders.get, "leaves"):
                    self._do(what)
                    self._done.put(None)
        except (ProtocolError, LocalError) as error:
            self.notes.stop(error)
        self._done.put(None)

    def _do(self, what: str) -> None:
        if what == "reports":
            report = readings(self.name, self.client.session.round_number)
            self.client.channel.send(ClientData(report))
        else:  # whatever comes of it
            limit_s = LOSS_S if what == "waits in vain" else PATIENCE_S
            self.client.channel.receive(time.monotonic() + limit_s)

    def does(self, what: str) -> None:
        self.orders.put(what)
        self._done.get(timeout=2 * PATIENCE_S)


class Stage:
    """The ends of a story, by the names that they have in it."""

    def __init__(self, lab: Lab, made: Sequence[Notes]) -> None:
        self._lab = lab
        self._made = made  # of all sessions, as they were made
        self.ends: dict[str, Notes] = {}
        self._players: dict[str, Player] = {}
        self._lines: dict[str, Line] = {}
        self._arrived = Counter[str]()
        self.closing = contextlib.ExitStack()

    def record(self, client: str) -> None:
        """Run an undisturbed session of an old client, and keep what both ends have sent."""
        reports = [readings(client, number + 1) for number in range(ROUNDS)]
        self._lab.honest_session(OLD[client], reports)
        for name, sends in zip((client, client.replace("client", "server")), Direction):
            self.ends[name] = self._newest(sends, [OLD[client]])
            self._arrived[name] = len(self.ends[name].sent)

    def play(self, step: Step) -> None:
        """Let a step happen, and wait until the real program has done its part. Raises CutHere."""
        if step.sender:
            self._enter(step.sender)
            while self._arrived[step.sender] <= step.number:
                if not self._hear(step.sender):
                    raise CutHere
        self._enter(step.end)
        line = self._lines[step.end]
        if step.sender:
            line.send(step.changed(self.ends[step.sender]))
        if step.what == "is cut off":
            line.socket.shutdown(socket.SHUT_WR)
        if step.end in self._players:
            self._players[step.end].does(step.what)
        else:
            self._hear(step.end)  # an answer, or the end of the connection
            self.ends.setdefault(step.end, self._newest(Direction.S2C, [0, *CLIENTS.values()]))
        if step.what == "is cut off" and step.end not in self._players:
            self.ends[step.end].stop(self._lab.outcome.errors["server"][-1])

    def hear_out(self, name: str) -> None:
        """Wait until an end has closed."""
        while self._hear(name):
            pass

    def _hear(self, name: str) -> bytes:
        message = self._lines[name].receive()
        self._arrived[name] += bool(message)
        return message

    def _newest(self, sends: Direction, client_ids: Sequence[int]) -> Notes:
        return next(
            notes
            for notes in reversed(self._made)
            if notes.sends is sends and notes.client_id in client_ids
        )

    def _enter(self, name: str) -> None:
        if name in CLIENTS and name not in self._lines:
            self._start(name)
        elif name not in self._lines and name not in self.ends:
            self._lines[name] = self.closing.enter_context(self._lab.connect())

    def _start(self, name: str) -> None:
        listener = self.closing.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = self._lab.client(CLIENTS[name], listener.getsockname())
        self.ends[name] = self._newest(Direction.C2S, [CLIENTS[name]])
        player = Player(name, client, self.ends[name])
        self._players[name] = player
        player.start()
        self.closing.callback(player.join, PATIENCE_S)
        self.closing.callback(player.orders.put, "leaves")
        sock = self.closing.enter_context(listener.accept()[0])
        self._lines[name] = Line(sock, self._lab.log, read_frame, write_frame)


def on_sockets(weak: Parts, story: Sequence[Step], end: str, has_thief: bool = False) -> str:
    """Return which promise to an end a story breaks between the real programs; empty if none."""
    made: list[Notes] = []

    def new_session(
        client_id: int, key: bytes, sends: Direction, watchers: Sequence[Watcher], **options: Any
    ) -> Session:
        notes = Notes(client_id, sends)
        made.append(notes)
        session: Session = weak.session(
            client_id, key, sends, watchers=[*watchers, notes.watch], key_log=notes.hold, **options
        )
        notes.attach(session)
        return session

    parts = weak._replace(session=cast(type[Session], new_session))  # it is only called
    with Lab("stage", lambda *_: None, parts) as lab:
        stage = Stage(lab, made)
        senders = {step.sender.replace("server", "client") for step in story}
        for client in senders & OLD.keys():
            stage.record(client)
        with stage.closing, contextlib.suppress(CutHere, queue.Empty):
            for step in story:
                stage.play(step)
            if end != story[-1].end:  # another thread tells it to leave
                stage.hear_out(end)
            return broken(stage.ends[end], made, has_thief)
    return ""
