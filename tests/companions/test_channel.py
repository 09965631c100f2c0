"""The core's channel with sessions of this protocol: large frames, requests, farewells that fail.

What any protocol shows of a channel is tested in tests/test_channel.py.
"""

from __future__ import annotations

import contextlib
import io
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

import channel as module
from channel import POLL_S, Channel, EndRequested
from companions.asymmetric import PrivateKey
from companions.device_transfer.protocol import (
    Kind,
    Message,
    PeerFailed,
    Session,
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
from tests.companions.helpers import S2D, Pair, World, forge, legal, snapshot

SOON_S = 0.02
LATE_S = 10.0
CHUNK = legal(Kind.CHUNK)
fails_at_once = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="TCP fails later")


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


def test_silence_ends_at_the_deadline_with_a_farewell(ends: Make) -> None:
    pair = ends()
    begin = time.monotonic()
    error = pair.failure(SOON_S)
    assert (type(error), error.expected) == (DeadlineExpired, "a message")
    assert SOON_S <= time.monotonic() - begin < 2.0
    assert pair.farewell()


@pytest.mark.parametrize("begun", [b"\0", b"\0\0\0\x5f", b"\0\0\0\x5f<FAIL>"])
def test_a_frame_that_has_begun_has_its_own_deadline(ends: Make, begun: bytes) -> None:
    pair = ends(frame_s=SOON_S)
    pair.socket.sendall(begun)
    error = pair.failure()
    assert (type(error), error.expected) == (DeadlineExpired, "a whole frame")


def test_a_frame_has_no_more_time_than_its_message(ends: Make) -> None:
    pair = ends()
    begin = time.monotonic()
    pair.socket.sendall(b"\0")
    error = pair.failure(SOON_S)
    assert (type(error), error.expected) == (DeadlineExpired, "a whole frame")
    assert time.monotonic() - begin < LATE_S / 2


class Trickle:
    """A socket that gives a byte at a time, each 0.01 s after the one before, and its clock."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def setsockopt(self, *arguments: int) -> None:
        pass

    def settimeout(self, limit_s: float) -> None:
        assert 0 < limit_s <= POLL_S

    def recv(self, wanted: int) -> bytes:
        self.now += 0.01
        taken = self.data[:1]
        self.data = self.data[1:]
        return taken


@pytest.mark.parametrize(("length", "is_in_time"), [(20, True), (50, False)])
def test_a_frame_that_trickles_in_gets_no_more_time(
    world: World, monkeypatch: pytest.MonkeyPatch, length: int, is_in_time: bool
) -> None:
    trickle = Trickle(b"\0\0\0" + bytes([length]) + bytes(length))
    monkeypatch.setattr(module, "time", trickle)
    device = world.pair(State.SENDING).device
    channel: Channel[Message] = Channel(trickle, device, 0.3)  # type: ignore[arg-type]
    with pytest.raises(MalformedMessage if is_in_time else DeadlineExpired):
        channel.receive(trickle.now + LATE_S)
    assert trickle.now == pytest.approx(100.24 if is_in_time else 100.31)


# Requests to end ----------------------------------------------------------------------------------


def test_a_stranger_that_is_sent_away_wakes_at_once(
    ends: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POLL_S", LATE_S)  # so that it does not wake by itself
    pair = ends(State.CONFIRM_BACK)
    waiting, raised = in_background(pair.receive)
    pair.channel.send_away(Status.TIMEOUT)
    waiting.join(LATE_S / 2)
    assert [str(error) for error in raised] == [str(EndRequested(Status.TIMEOUT))]
    assert not pair.farewell()


def test_a_device_that_is_sent_away_is_told(ends: Make) -> None:
    pair = ends()
    waiting, raised = in_background(pair.receive)
    pair.channel.send_away(Status.TIMEOUT)
    waiting.join(LATE_S / 2)
    assert [type(error) for error in raised] == [EndRequested]
    assert pair.farewell()


def test_a_request_wakes_a_channel_in_the_middle_of_a_frame(ends: Make) -> None:
    pair = ends()
    waiting, raised = in_background(pair.receive)
    pair.socket.sendall(b"\0")
    pair.channel.request_end(Status.SHUTDOWN)
    waiting.join(LATE_S / 2)
    assert [str(error) for error in raised] == [str(EndRequested(Status.SHUTDOWN))]
    assert pair.session.state is State.SENDING, "how to end is for the owner to say"


def test_of_several_reasons_to_end_the_first_stands(ends: Make) -> None:
    channel = ends().channel
    channel.check_request()
    channel.request_end(Status.GOODBYE)
    channel.request_end(Status.SHUTDOWN)
    with pytest.raises(EndRequested) as caught:
        channel.check_request()
    assert caught.value.status is Status.GOODBYE


def test_a_channel_asked_to_end_sends_nothing_but_a_farewell(ends: Make) -> None:
    pair = ends()
    pair.channel.request_end(Status.SHUTDOWN)
    before = snapshot(pair.session)
    with pytest.raises(EndRequested):
        pair.channel.send(CHUNK)
    assert snapshot(pair.session) == before
    assert pair.farewell()


# The end ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tcp", [False, True], ids=["socketpair", "tcp"])
def test_a_farewell_arrives_although_the_peer_sent_more(ends: Make, tcp: bool) -> None:
    pair = ends(tcp=tcp)
    pair.deliver(b"<FAIL>" + bytes(89))
    pair.socket.sendall(bytes(50_000))  # unread when we close, which by itself would reset
    assert type(pair.failure()) is WrongSession
    assert pair.farewell()


def test_in_the_handshake_a_failure_just_closes(ends: Make) -> None:
    pair = ends(State.CONFIRM_BACK)
    pair.deliver(b"<FAIL>" + bytes(89))
    pair.failure()
    assert not pair.farewell()


def test_leaving_says_fail_until_the_session_has_ended(ends: Make) -> None:
    pair = ends()
    assert pair.farewell()
    assert pair.session.state is State.ENDED
    pair.channel.leave(Status.SHUTDOWN)
    assert not ends(State.ENDED).farewell()


def test_a_failure_found_above_the_channel_is_told(ends: Make) -> None:
    pair = ends()
    pair.channel.fail(ProtocolError(None, "the disk is full"))
    assert pair.session.state is State.ENDED
    assert pair.farewell()


def test_after_a_whole_frame_a_farewell_is_said(ends: Make) -> None:
    pair = ends()
    pair.channel.send(CHUNK)
    pair.peer.open(read_frame(pair.socket.recv))
    pair.channel.fail(ProtocolError())
    assert pair.farewell()


@pytest.mark.slow
def test_a_peer_that_floods_is_not_waited_for(ends: Make) -> None:
    pair = ends()
    closed = threading.Event()
    pair.channel.fail(ProtocolError())

    def flood() -> None:
        pair.socket.setblocking(False)
        while not closed.is_set():
            try:
                pair.socket.send(bytes(10_000))
            except BlockingIOError:
                continue
            except OSError:
                return

    flooding, _ = in_background(flood)
    leaving, _ = in_background(lambda: pair.channel.leave(Status.SHUTDOWN))
    leaving.join(LATE_S / 2)
    closed.set()
    assert not leaving.is_alive()
    flooding.join(LATE_S)


# Peers that disappear, or do not read -------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"\0", b"\0\0\0\x5f", b"\0\0\0\x5f<FAIL>"])
def test_a_cut_connection_is_an_error_and_has_no_farewell(ends: Make, sent: bytes) -> None:
    pair = ends()
    pair.socket.sendall(sent)
    pair.socket.shutdown(socket.SHUT_WR)
    error = pair.failure()
    assert isinstance(error, ConnectionCut)
    assert error.mid_frame is (sent != b"")
    assert not pair.farewell()


def test_a_reset_is_a_cut(ends: Make) -> None:
    pair = ends(tcp=True)
    pair.socket.sendall(b"\0\0\0\x5f<FAIL>")
    reset(pair.socket)
    assert isinstance(pair.failure(), ConnectionCut)
    pair.channel.leave(Status.SHUTDOWN)


@fails_at_once
def test_the_farewell_of_a_peer_that_has_closed_is_heard(ends: Make) -> None:
    pair = ends()
    pair.deliver(pair.peer.seal(Message(Kind.FAIL)))
    pair.socket.close()
    with pytest.raises(PeerFailed):
        pair.channel.send(CHUNK)


@fails_at_once
def test_a_peer_that_has_closed_without_a_farewell_is_a_cut(ends: Make) -> None:
    pair = ends()
    pair.socket.close()
    with pytest.raises(ConnectionCut):
        pair.channel.send(CHUNK)
    assert pair.session.state is State.ENDED


@fails_at_once
def test_an_answer_to_a_message_that_was_never_sent_is_a_cut(ends: Make) -> None:
    """The peer has the keys, acknowledges in advance, and closes before it can read."""
    pair = ends()
    pair.deliver(forge(pair.peer, Kind.ACK, bytes(32), sender=S2D))
    pair.socket.close()
    with pytest.raises(ConnectionCut) as caught:
        pair.channel.send(legal(Kind.MANIFEST))
    assert caught.value.mid_frame
    assert pair.session.state is State.ENDED


def send_for_ever(pair: Ends) -> None:
    pair.session.rekey_chunks = 1_000
    for _ in range(1_000):
        pair.channel.send(Message(Kind.CHUNK, bytes(65_536)))


def open_chunks(peer: Session, received: bytes) -> None:
    """Open chunks, and nothing else, up to the end, which raises ConnectionCut."""
    peer.rekey_chunks = 1_000
    stream = io.BytesIO(received)
    while True:
        assert peer.open(read_frame(stream.read)).kind is Kind.CHUNK


@pytest.mark.parametrize("is_asked", [False, True], ids=["in time", "on request"])
def test_a_stuck_send_is_given_up_and_nothing_is_said_in_its_torn_frame(
    ends: Make, monkeypatch: pytest.MonkeyPatch, is_asked: bool
) -> None:
    """The peer would take a farewell for the rest of a chunk."""
    monkeypatch.setattr(module, "FRAME_S", SOON_S)  # for the peer's own farewell
    pair = ends(frame_s=LATE_S if is_asked else SOON_S)
    pair.channel._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 50_000)  # half a chunk fits
    sending, raised = in_background(lambda: send_for_ever(pair))
    if is_asked:
        while not pair.channel._is_stuck:
            sending.join(SOON_S)
        pair.channel.request_end(Status.SHUTDOWN)
    sending.join(LATE_S / 2)
    assert [type(error) for error in raised] == [EndRequested if is_asked else DeadlineExpired]
    received = drained(pair.socket)  # after which there would be room
    pair.channel.leave(Status.SHUTDOWN)
    received += drained(pair.socket)
    assert pair.session.state is State.ENDED
    with pytest.raises(ConnectionCut):
        open_chunks(pair.peer, received)


def drained(sock: socket.socket) -> bytes:
    """Return all that can be read at once."""
    sock.setblocking(False)
    received = b""
    with contextlib.suppress(BlockingIOError):
        while more := sock.recv(1 << 20):
            received += more
    return received


class Stubborn:
    """A socket that takes 1,000 bytes at a time, each 0.1 s after those before, and its clock."""

    def __init__(self, every: int) -> None:
        self.now = 0.0
        self.taken = b""
        self._every = every
        self._asked = 0
        self.busy: Callable[[], object] = lambda: None  # called when nothing can be sent

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
            self.busy()
            raise TimeoutError
        self.taken += data[:1_000]
        return min(len(data), 1_000)

    def recv(self, wanted: int) -> bytes:
        return b""


def test_a_request_wakes_a_stuck_send_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubborn = Stubborn(1_000)
    monkeypatch.setattr(module, "time", stubborn)
    device = world.pair(State.SENDING).device
    channel: Channel[Message] = Channel(stubborn, device, LATE_S)  # type: ignore[arg-type]
    stubborn.busy = lambda: channel.request_end(Status.SHUTDOWN)
    with pytest.raises(EndRequested):
        channel.send(CHUNK)
    assert stubborn.now == pytest.approx(0.1)


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


def test_hearing_nothing_takes_no_time(ends: Make) -> None:
    pair = ends()
    pair.channel.hear()
    assert pair.session.state is State.SENDING


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        (lambda peer: peer.seal(Message(Kind.FAIL)), PeerFailed),
        (lambda peer: b"<ACKN>" + bytes(89), ProtocolError),
        (lambda peer: b"", ConnectionCut),
    ],
    ids=["a farewell", "nonsense", "the end"],
)
def test_what_arrives_unasked_is_heard(
    ends: Make, says: Callable[[Session], bytes], expected: type[ProtocolError]
) -> None:
    pair = ends()
    if message := says(pair.peer):
        pair.deliver(message)
    else:
        pair.socket.close()
    with pytest.raises(expected):
        pair.channel.hear()
    assert pair.session.state is State.ENDED


def test_what_arrived_with_the_last_message_is_heard(ends: Make) -> None:
    """One read of the socket took both, so that nothing is left to arrive."""
    pair = ends(State.CHECKING)
    stream: list[bytes] = []
    for message in (legal(Kind.ACK), Message(Kind.FAIL)):
        write_frame(stream.append, pair.peer.seal(message))
    pair.socket.sendall(b"".join(stream))
    assert pair.receive().kind is Kind.ACK
    with pytest.raises(PeerFailed):
        pair.channel.hear()


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
