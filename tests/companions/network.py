"""Real servers and sockets for the tests of the two ends: nothing is slept for, only awaited."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from companions.device_transfer.certificates import Identity
from companions.device_transfer.device import Device
from companions.device_transfer.protocol import Kind, Message, Session, write_frame
from companions.device_transfer.server import Limits, Record, Server
from companions.device_transfer.store import JOURNAL
from protocol_fsm import ConnectionCut
from tests.companions.helpers import SERVER, World
from tests.network import PATIENCE_S, Noted


class Records(Noted[Record]):
    """A server's records."""

    def of(self, what: str) -> list[Record]:
        return [record for record in [*self.records] if record.what == what]

    def ends(self, count: int = 1) -> list[Exception | None]:
        """Return what ended the connections, once `count` of them are over."""
        self.wait_until(lambda: len(self.of("end")) >= count)
        return [record.detail for record in self.of("end")]  # type: ignore[misc]


@contextlib.contextmanager
def serving(world: World, folder: Path, **options: Any) -> Iterator[tuple[Server, Records]]:
    """Run a server on a free port; after it no thread may be left, and only whole files."""
    before = set(threading.enumerate())
    records = Records()
    limits = Limits(**{name: options.pop(name) for name in vars(Limits()) if name in options})
    with Server(
        world.server, world.trust(), folder, port=0, limits=limits, record=records, **options
    ) as server:
        yield server, records
    assert not [
        thread
        for thread in set(threading.enumerate()) - before
        if "tqdm" not in type(thread).__module__
    ]
    assert not server._connections
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != JOURNAL}


def device_for(world: World, server: Server, who: Identity | None = None, **options: Any) -> Device:
    return Device(
        who or world.device,
        world.trust(),
        SERVER,
        *server.address,
        **{"timeout_s": PATIENCE_S, **options},
    )


class Raw:
    """An end that does what a test tells it, over a session of its own."""

    def __init__(self, session: Session, sock: socket.socket) -> None:
        self.session = session
        self.socket = sock
        sock.settimeout(PATIENCE_S)

    def send(self, kind: Kind, body: bytes = b"") -> None:
        write_frame(self.socket.sendall, self.session.seal(Message(kind, body)))

    def receive(self) -> Message:
        return self.session.open(self.session.read_frame(self.socket.recv))

    def until(self, kind: Kind) -> Message:
        """Receive until there is a message of this kind."""
        while (message := self.receive()).kind is not kind:
            pass
        return message

    def rest(self) -> bytes:
        """Return all that still comes, to the end."""
        pieces = []
        with contextlib.suppress(ConnectionResetError):
            while piece := self.socket.recv(65_536):
                pieces.append(piece)
        return b"".join(pieces)

    def answer_handshake(self) -> None:
        for kind in (Kind.HELLO, Kind.SHARE, Kind.CONFIRM):
            self.until(kind)
            self.send(kind)


@contextlib.contextmanager
def raw_device(world: World, server: Server, who: Identity | None = None) -> Iterator[Raw]:
    """Give a device after its handshake, that a test plays by hand."""
    with socket.create_connection(server.address, PATIENCE_S) as sock:
        raw = Raw(Session(who or world.device, world.trust(), SERVER), sock)
        for kind in (Kind.HELLO, Kind.SHARE, Kind.CONFIRM):
            raw.send(kind)
            raw.receive()
        yield raw


@contextlib.contextmanager
def raw_server(
    new_session: Callable[[], Session], play: Callable[[Raw], object]
) -> Iterator[tuple[str, int]]:
    """Let `play` be the server of one connection, in a thread; give its address."""

    def run() -> None:
        sock = listener.accept()[0]
        with sock, contextlib.suppress(ConnectionCut):
            play(Raw(new_session(), sock))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_S)
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield listener.getsockname()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
