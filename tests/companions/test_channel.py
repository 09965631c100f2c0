"""A session on a real socket: deadlines, requests to end, farewells, and peers with bad manners."""

from __future__ import annotations

import contextlib
import io
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from channel import DRAIN_S, POLL_S, EndRequested
from companions import channel as module
from companions.asymmetric import PrivateKey
from companions.channel import Channel
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
from tests.companions.helpers import BODIES, S2D, Pair, World, forge, snapshot

SOON_S = 0.02
LATE_S = 10.0
fails_at_once = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="TCP fails later")

Line = Channel[Kind, Message]


@pytest.fixture(scope="module")
def world(keys: Sequence[PrivateKey]) -> World:
    return World(keys)


class Ends:
    """The channel of one end; the other end is a session and a bare socket, to misbehave with."""

    def __init__(
        self, pair: Pair, sockets: tuple[socket.socket, socket.socket], frame_s: float = LATE_S
    ) -> None:
        ours, self.socket = sockets
        self.session = pair.device
        self.peer = pair.server
        self.channel: Line = Channel(ours, pair.device, read_frame, write_frame, frame_s)
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
        """Leave, and tell whether the peer hears FAIL; whatever was sent before is read too."""
        leaving = threading.Thread(target=self.channel.leave, daemon=True)
        leaving.start()
        try:
            message = read_frame(self.socket.recv)
            with pytest.raises(PeerFailed):
                self.peer.open(message)
            assert self.socket.recv(1) == b"", "and nothing after it"
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


# Deadlines ----------------------------------------------------------------------------------------


def test_a_conversation_goes_over_a_real_connection(ends: Make) -> None:
    pair = ends(State.SENDING, tcp=True)
    pair.channel.send(Kind.CHUNK, b"data")
    assert pair.peer.open(read_frame(pair.socket.recv)).body == b"data"
    pair.channel.send(Kind.MANIFEST, BODIES[Kind.MANIFEST])
    pair.peer.open(read_frame(pair.socket.recv))
    pair.deliver(pair.peer.seal(Kind.ACK, bytes(32)))
    assert pair.receive() == Message(Kind.ACK, bytes(32))
    assert not pair.farewell()


def test_silence_ends_at_the_deadline(ends: Make) -> None:
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
    """A socket that gives a byte at a time, each 0.01 s after the one before."""

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
def test_a_frame_that_trickles_in_gets_no_more_time_for_that(
    world: World, monkeypatch: pytest.MonkeyPatch, length: int, is_in_time: bool
) -> None:
    trickle = Trickle(b"\0\0\0" + bytes([length]) + bytes(length))
    monkeypatch.setattr(module, "time", trickle)
    pair = world.pair(State.SENDING)
    channel: Line = Channel(
        trickle,
        pair.device,  # type: ignore[arg-type]
        read_frame,
        write_frame,
        0.3,
    )
    with pytest.raises(MalformedMessage if is_in_time else DeadlineExpired):
        channel.receive(trickle.now + LATE_S)
    assert trickle.now == pytest.approx(100.24 if is_in_time else 100.31)


def test_each_message_has_a_frame_deadline_of_its_own(ends: Make) -> None:
    pair = ends(State.CHECKING)
    pair.deliver(pair.peer.seal(Kind.ACK, bytes(32)))
    pair.receive()
    error = pair.failure(SOON_S)
    assert error.expected == "a message"


def test_a_frame_that_is_too_long_is_refused_after_its_length(ends: Make) -> None:
    """Before the handshake is over that is 8,192 bytes, and the channel asks the session."""
    for state, limit in ((State.HELLO_BACK, 8_192), (State.SENDING, 65_631)):
        pair = ends(state)
        pair.socket.sendall((limit + 1).to_bytes(4, "big"))
        error = pair.failure()
        assert (type(error), error.got) == (MalformedMessage, limit + 1)
        assert pair.farewell() is (state is State.SENDING)


# Requests to end ----------------------------------------------------------------------------------


def test_who_is_sent_away_goes_at_once(ends: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", LATE_S)  # so that nobody looks for itself
    pair = ends()
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            pair.receive()
        except (EndRequested, ProtocolError) as error:
            raised.append(error)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    pair.channel.send_away(Status.TIMEOUT)
    waiting.join(LATE_S / 2)
    assert [str(error) for error in raised] == [str(EndRequested(Status.TIMEOUT))]


def test_a_request_wakes_who_waits(ends: Make) -> None:
    pair = ends()
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            pair.receive()
        except (EndRequested, ProtocolError) as error:
            raised.append(error)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    pair.socket.sendall(b"\0")  # in the middle of a frame too
    pair.channel.request_end()
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
    assert caught.value.args == EndRequested(Status.GOODBYE).args


def test_who_was_asked_to_end_sends_nothing_more(ends: Make) -> None:
    pair = ends()
    pair.channel.request_end()
    before = snapshot(pair.session)
    with pytest.raises(EndRequested):
        pair.channel.send(Kind.CHUNK, b"data")
    assert snapshot(pair.session) == before
    pair.channel.fail(ProtocolError(None, "asked to"))
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


def test_who_leaves_in_peace_says_nothing(ends: Make) -> None:
    pair = ends()
    assert not pair.farewell()
    pair.channel.leave()


def test_a_failure_found_above_the_channel_is_told_too(ends: Make) -> None:
    pair = ends()
    pair.channel.fail(ProtocolError(None, "the disk is full"))
    assert pair.session.state is State.ENDED
    assert pair.farewell()


def test_after_a_whole_frame_a_farewell_is_said(ends: Make) -> None:
    pair = ends()
    pair.channel.send(Kind.CHUNK, b"data")
    pair.peer.open(read_frame(pair.socket.recv))
    pair.channel.fail(ProtocolError())
    assert pair.farewell()


@pytest.mark.parametrize(
    "floods", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["silent", "flooding"]
)
def test_a_peer_that_does_not_close_is_not_waited_for(ends: Make, floods: bool) -> None:
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

    flooding = threading.Thread(target=flood, daemon=True)
    if floods:
        flooding.start()
    begin = time.monotonic()
    leaving = threading.Thread(target=pair.channel.leave, daemon=True)
    leaving.start()
    leaving.join(LATE_S / 2)
    closed.set()
    assert not leaving.is_alive()
    assert time.monotonic() - begin >= DRAIN_S
    if floods:
        flooding.join(LATE_S)


def test_leaving_is_over_when_the_peer_has_closed(
    ends: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the peer closes as soon as it has heard that nothing will follow."""
    monkeypatch.setattr(module, "DRAIN_S", LATE_S)
    pair = ends()
    begin = time.monotonic()
    pair.channel.fail(ProtocolError())
    assert pair.farewell()
    assert time.monotonic() - begin < LATE_S / 2


def test_leaving_a_connection_that_is_gone_raises_nothing(ends: Make) -> None:
    pair = ends()
    pair.socket.close()
    assert isinstance(pair.failure(), ConnectionCut)
    pair.channel._farewell = bytes(95)
    pair.channel.leave()
    assert pair.channel._sock.fileno() == -1


# Peers that go, or do not read --------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"\0", b"\0\0\0\x5f", b"\0\0\0\x5f<FAIL>"])
def test_a_cut_connection_is_told_and_not_answered(ends: Make, sent: bytes) -> None:
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
    pair.channel.leave()


@fails_at_once
def test_the_last_word_of_a_peer_that_is_gone_is_heard(ends: Make) -> None:
    pair = ends()
    pair.deliver(pair.peer.seal(Kind.FAIL))
    pair.socket.close()
    with pytest.raises(PeerFailed):
        pair.channel.send(Kind.CHUNK, b"data")


@fails_at_once
def test_a_peer_that_is_gone_without_a_word_is_a_cut(ends: Make) -> None:
    pair = ends()
    pair.socket.close()
    with pytest.raises(ConnectionCut):
        pair.channel.send(Kind.CHUNK, b"data")
    assert pair.session.state is State.ENDED


@fails_at_once
def test_an_answer_to_what_was_never_sent_is_no_answer(ends: Make) -> None:
    """The peer has the keys, acknowledges in advance, and is gone before it can read."""
    pair = ends()
    pair.deliver(forge(pair.peer, Kind.ACK, bytes(32), sender=S2D))
    pair.socket.close()
    with pytest.raises(ConnectionCut) as caught:
        pair.channel.send(Kind.MANIFEST, BODIES[Kind.MANIFEST])
    assert caught.value.mid_frame
    assert pair.session.state is State.ENDED


def send_for_ever(pair: Ends) -> None:
    pair.session.rekey_chunks = 1_000
    for _ in range(1_000):
        pair.channel.send(Kind.CHUNK, bytes(65_536))


@pytest.mark.slow
def test_a_peer_that_never_reads_is_not_waited_for(ends: Make) -> None:
    pair = ends(frame_s=SOON_S)
    begin = time.monotonic()
    with pytest.raises(DeadlineExpired):
        send_for_ever(pair)
    assert pair.session.state is State.ENDED
    pair.channel.leave()
    assert time.monotonic() - begin < LATE_S


def test_in_a_torn_frame_nothing_more_is_said(ends: Make) -> None:
    """What would be a farewell, the peer would take for the rest of a chunk."""
    pair = ends(frame_s=SOON_S)
    with pytest.raises(DeadlineExpired) as caught:
        send_for_ever(pair)
    assert caught.value.farewell, "there would be one"
    received = drained(pair.socket)  # now there would be room
    pair.channel.leave()
    received += drained(pair.socket)
    pair.peer.rekey_chunks = 1_000

    def read_all() -> None:
        stream = io.BytesIO(received)
        while True:
            assert pair.peer.open(read_frame(stream.read)).kind is Kind.CHUNK

    with pytest.raises(ConnectionCut):
        read_all()


def drained(sock: socket.socket) -> bytes:
    """Return all that can be read at once."""
    sock.setblocking(False)
    received = b""
    with contextlib.suppress(BlockingIOError):
        while more := sock.recv(1 << 20):
            received += more
    return received


class Stubborn:
    """A socket that takes 1,000 bytes at a time, each time 0.1 s after the one before."""

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


def test_a_request_wakes_who_cannot_send(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    stubborn = Stubborn(1_000)
    monkeypatch.setattr(module, "time", stubborn)
    channel: Line = Channel(
        stubborn,
        world.pair(State.SENDING).device,  # type: ignore[arg-type]
        read_frame,
        write_frame,
        LATE_S,
    )
    stubborn.busy = channel.request_end
    with pytest.raises(EndRequested):
        channel.send(Kind.CHUNK, b"data")
    assert stubborn.now == pytest.approx(0.1)


@pytest.mark.parametrize(("every", "is_sent"), [(1, True), (2, True), (3, False)])
def test_a_slow_peer_gets_all_of_a_frame_or_the_deadline_ends_it(
    world: World, monkeypatch: pytest.MonkeyPatch, every: int, is_sent: bool
) -> None:
    """10,099 bytes are 11 pieces; there are 25 tenths of a second for them."""
    stubborn = Stubborn(every)
    monkeypatch.setattr(module, "time", stubborn)
    pair = world.pair(State.SENDING)
    channel: Line = Channel(
        stubborn,
        pair.device,  # type: ignore[arg-type]
        read_frame,
        write_frame,
        2.45,
    )
    if is_sent:
        channel.send(Kind.CHUNK, bytes(10_000))
        pair.server.open(stubborn.taken[4:])
        assert len(stubborn.taken) == 10_099
    else:
        with pytest.raises(ConnectionCut):
            channel.send(Kind.CHUNK, bytes(10_000))
        assert stubborn.now == pytest.approx(2.5)


def test_what_may_not_be_sent_is_not_sent(ends: Make) -> None:
    pair = ends()
    with pytest.raises(LocalError):
        pair.channel.send(Kind.ACK, bytes(32))
    assert pair.session.state is State.SENDING
    assert not pair.farewell()


# What comes unasked -------------------------------------------------------------------------------


def test_hearing_nothing_takes_no_time(ends: Make) -> None:
    pair = ends()
    pair.channel.hear()
    assert pair.session.state is State.SENDING


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        (lambda peer: peer.seal(Kind.FAIL), PeerFailed),
        (lambda peer: b"<ACKN>" + bytes(89), ProtocolError),
        (lambda peer: b"", ConnectionCut),
    ],
    ids=["a farewell", "nonsense", "the end"],
)
def test_what_comes_unasked_is_heard(
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


def test_a_reset_is_heard(ends: Make) -> None:
    pair = ends(tcp=True)
    reset(pair.socket)
    with pytest.raises(ConnectionCut):
        pair.channel.hear()


def reset(sock: socket.socket) -> None:
    """Close, and tell the peer with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_half_of_a_frame_that_comes_unasked_is_waited_for_a_short_time(ends: Make) -> None:
    pair = ends(frame_s=SOON_S)
    pair.socket.sendall(b"\0\0")
    with pytest.raises(DeadlineExpired):
        pair.channel.hear()


def test_frames_are_not_held_back(ends: Make) -> None:
    assert ends(tcp=True).channel._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
