"""The core's channel with sessions of this protocol: large frames, requests, farewells that fail.

What any protocol shows of a channel is tested in tests/test_channel.py.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

import channel as module
from channel import POLL_S, Channel
from companions.asymmetric import PrivateKey
from companions.device_transfer.protocol import (
    Kind,
    Message,
    PeerFailed,
    State,
    WrongSession,
    read_frame,
    write_frame,
)
from protocol_fsm import (
    ConnectionCut,
    DeadlineExpired,
    LocalError,
    MalformedMessage,
    ProtocolError,
    Status,
)
from tests.companions.helpers import Pair, World, legal

SOON_S = 0.02
LATE_S = 10.0
CHUNK = legal(Kind.CHUNK)


@pytest.fixture(scope="module")
def world(keys: Sequence[PrivateKey]) -> World:
    return World(keys)


class Ends:
    """The channel of a device; its peer is a session and a bare socket, to misbehave with."""

    def __init__(
        self, pair: Pair, sockets: tuple[socket.socket, socket.socket], frame_s: float
    ) -> None:
        ours, self.socket = sockets
        self.session = pair.device
        self.peer = pair.server
        self.channel: Channel[Message] = Channel(ours, pair.device, frame_s)
        self.socket.settimeout(LATE_S)

    def receive(self, within_s: float = LATE_S) -> Message:
        return self.channel.receive(time.monotonic() + within_s)

    def failure(self, within_s: float = LATE_S) -> ProtocolError:
        with pytest.raises(ProtocolError) as caught:
            self.receive(within_s)
        assert self.session.state is State.ENDED
        return caught.value

    def deliver(self, message: bytes) -> None:
        write_frame(self.socket.sendall, message)

    def farewell(self) -> bool:
        """Leave, and return whether the peer is told FAIL, and nothing after it."""
        leaving = threading.Thread(target=self.channel.leave, args=(Status.SHUTDOWN,), daemon=True)
        leaving.start()
        try:
            message = read_frame(self.socket.recv)
            with pytest.raises(PeerFailed):
                self.peer.open(message)
            assert self.socket.recv(1) == b""
            return True
        except ConnectionCut:
            return False
        finally:
            self.socket.close()
            leaving.join(LATE_S)
            assert not leaving.is_alive()


def tcp_sockets() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname()[:2], LATE_S)
        return ours, listener.accept()[0]


Make = Callable[..., Ends]


@pytest.fixture
def ends(world: World) -> Iterator[Make]:
    """Return what makes Ends in a state; all sockets are closed at the end."""
    made: list[Ends] = []

    def make(state: State = State.SENDING, frame_s: float = LATE_S, *, tcp: bool = False) -> Ends:
        sockets = tcp_sockets() if tcp else socket.socketpair()
        made.append(Ends(world.pair(state), sockets, frame_s))
        return made[-1]

    yield make
    for one in made:
        one.channel._sock.close()
        one.socket.close()


def in_background(call: Callable[[], object]) -> tuple[threading.Thread, list[Exception]]:
    """Call in a thread; return that, and the list that what it raises is put into."""
    raised: list[Exception] = []

    def run() -> None:
        try:
            call()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, raised


# Large frames, and their deadlines ----------------------------------------------------------------


def test_the_largest_message_arrives_between_small_ones(ends: Make) -> None:
    pair = ends(State.SENDING, tcp=True)
    large = Message(Kind.CHUNK, bytes(range(256)) * 256)
    sent = [CHUNK, large, CHUNK]

    def send_all() -> None:
        for message in sent:
            pair.channel.send(message)

    sending, raised = in_background(send_all)
    assert [pair.peer.open(read_frame(pair.socket.recv)) for _ in sent] == sent
    sending.join(LATE_S)
    assert not raised


def test_the_largest_message_is_received_between_small_ones(world: World) -> None:
    """Their frames come in one piece, and are cut apart again."""
    pair = world.pair(State.SENDING)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel: Channel[Message] = Channel(ours, pair.server)
        sent = [CHUNK, Message(Kind.CHUNK, bytes(65_536)), CHUNK]
        stream: list[bytes] = []
        for message in sent:
            write_frame(stream.append, pair.device.seal(message))
        sending, raised = in_background(lambda: theirs.sendall(b"".join(stream)))
        assert [channel.receive(time.monotonic() + LATE_S) for _ in sent] == sent
        sending.join(LATE_S)
        assert not raised


@pytest.mark.parametrize(("state", "limit"), [(State.HELLO_BACK, 8_192), (State.SENDING, 65_631)])
def test_a_frame_longer_than_the_state_allows_is_refused_after_its_length(
    ends: Make, state: State, limit: int
) -> None:
    pair = ends(state)
    pair.socket.sendall((limit + 1).to_bytes(4, "big"))
    error = pair.failure()
    assert (type(error), error.got) == (MalformedMessage, limit + 1)
    assert pair.farewell() is (state is State.SENDING)


# Requests to end ----------------------------------------------------------------------------------


# The end ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tcp", [False, True], ids=["socketpair", "tcp"])
def test_a_farewell_arrives_although_the_peer_sent_more(ends: Make, tcp: bool) -> None:
    pair = ends(tcp=tcp)
    pair.deliver(b"<FAIL>" + bytes(89))
    pair.socket.sendall(bytes(50_000))  # unread when we close, which by itself would reset
    assert type(pair.failure()) is WrongSession
    assert pair.farewell()


# Peers that disappear, or do not read -------------------------------------------------------------


class Stubborn:
    """A socket that takes 1,000 bytes every few tenths of a second, and its clock."""

    def __init__(self, every: int) -> None:
        self.now = 0.0
        self.taken = b""
        self._every = every
        self._asked = 0

    def __enter__(self) -> Stubborn:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def monotonic(self) -> float:
        return self.now

    def setsockopt(self, *arguments: int) -> None:
        pass

    def settimeout(self, limit_s: float) -> None:
        assert 0 < limit_s <= POLL_S

    def send(self, data: memoryview) -> int:
        self.now += 0.1
        self._asked += 1
        if self._asked % self._every:
            raise TimeoutError
        self.taken += data[:1_000]
        return min(len(data), 1_000)

    def recv(self, wanted: int) -> bytes:
        return b""


@pytest.mark.parametrize(("every", "is_sent"), [(1, True), (2, True), (3, False)])
def test_a_slow_peer_gets_all_of_a_frame_or_the_deadline_ends_it(
    world: World, monkeypatch: pytest.MonkeyPatch, every: int, is_sent: bool
) -> None:
    """10,099 bytes are 11 pieces; there are 25 tenths of a second for them."""
    stubborn = Stubborn(every)
    monkeypatch.setattr(module, "time", stubborn)
    pair = world.pair(State.SENDING)
    channel: Channel[Message] = Channel(stubborn, pair.device, 2.45)  # type: ignore[arg-type]
    if is_sent:
        channel.send(Message(Kind.CHUNK, bytes(10_000)))
        pair.server.open(stubborn.taken[4:])
        assert len(stubborn.taken) == 10_099
    else:
        with pytest.raises(ConnectionCut):
            channel.send(Message(Kind.CHUNK, bytes(10_000)))
        assert stubborn.now == pytest.approx(2.5)


def test_an_illegal_message_is_not_sent_and_the_session_goes_on(ends: Make) -> None:
    pair = ends()
    with pytest.raises(LocalError):
        pair.channel.send(legal(Kind.ACK))
    assert pair.session.state is State.SENDING
    pair.channel.send(CHUNK)
    assert pair.peer.open(read_frame(pair.socket.recv)) == CHUNK


# What arrives unasked -----------------------------------------------------------------------------


def test_a_reset_is_heard(ends: Make) -> None:
    pair = ends(tcp=True)
    reset(pair.socket)
    with pytest.raises(ConnectionCut):
        pair.channel.hear()


def reset(sock: socket.socket) -> None:
    """Close, and tell the peer with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_half_of_a_frame_that_arrives_unasked_is_waited_for_a_short_time(ends: Make) -> None:
    pair = ends(frame_s=SOON_S)
    pair.socket.sendall(b"\0\0")
    with pytest.raises(DeadlineExpired):
        pair.channel.hear()


def test_frames_are_not_held_back(ends: Make) -> None:
    assert ends(tcp=True).channel._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
