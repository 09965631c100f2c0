"""A session on a real socket: deadlines, requests to end, failed sends, how a farewell leaves."""

from __future__ import annotations

import contextlib
import math
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import channel as channel_module
from channel import READ_BYTES, Channel, EndRequested
from protocol_fsm import (
    BadTag,
    ConnectionCut,
    DeadlineExpired,
    MalformedMessage,
    Message,
    PeerTerminated,
    ProtocolError,
    Session,
    State,
    Status,
    Terminate,
    Watchers,
    read_frame,
    write_frame,
)
from tests.helpers import ANSWER, REPORT, pair_in, reseal
from tests.network import PATIENCE_S, at_once

SOON_S = 3.0  # a test that waits so long for what takes 0.25 s has failed


@contextlib.contextmanager
def channel_and_peer(
    state: State = State.REPORT, **options: float
) -> Iterator[tuple[Channel[Message], socket.socket, Session]]:
    """Give a client's Channel, the socket at its other end, and the session of that end."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE_S)
    pair = pair_in(state)
    with ours, theirs:
        yield Channel(ours, pair.client, **options), theirs, pair.server


def ends_soon(call: Callable[[], object]) -> bool:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(SOON_S)
    return not thread.is_alive()


def framed(message: bytes) -> bytes:
    frames: list[bytes] = []
    write_frame(frames.append, message)
    return frames[0]


def soon() -> float:
    return time.monotonic() + SOON_S


# Deadlines


@pytest.mark.parametrize("is_joined", [False, True], ids=["alone", "with the last frame"])
def test_each_frame_has_its_own_deadline_from_its_first_byte(is_joined: bool) -> None:
    """The system hands out what has arrived, and that need not end where a frame ends."""
    with channel_and_peer(frame_timeout_s=0.2) as (channel, theirs, session):
        channel.send(REPORT)
        session.open(theirs.recv(65_536)[2:])
        theirs.sendall(framed(session.seal(ANSWER)) + (b"\x00" if is_joined else b""))
        channel.receive(soon())
        theirs.sendall(b"" if is_joined else b"\x00")
        began = time.monotonic()
        with pytest.raises(DeadlineExpired, match="a whole frame"):
            channel.receive(began + SOON_S)
        assert time.monotonic() - began < SOON_S / 2


def test_a_frame_that_drips_in_does_not_extend_its_deadline() -> None:
    with channel_and_peer(frame_timeout_s=0.3) as (channel, theirs, _):
        stop = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError):
                for byte in (87).to_bytes(2, "big") + bytes(87):
                    theirs.sendall(bytes([byte]))
                    if stop.wait(0.05):
                        return

        dripping = threading.Thread(target=drip, daemon=True)
        dripping.start()
        began = time.monotonic()
        with pytest.raises(DeadlineExpired):
            channel.receive(began + 60)
        assert time.monotonic() - began < SOON_S
        stop.set()
        dripping.join()


def test_a_frame_that_has_begun_does_not_extend_the_deadline_of_the_message() -> None:
    """A stranger has its time in all, however long a frame may take."""
    with channel_and_peer(frame_timeout_s=60) as (channel, theirs, _):
        theirs.sendall(b"\x00")
        began = time.monotonic()
        with pytest.raises(DeadlineExpired):
            channel.receive(began + 0.1)
        assert time.monotonic() - began < SOON_S


def test_a_deadline_is_kept_however_seldom_a_waiting_owner_looks_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channel_module, "POLL_S", 60.0)
    with channel_and_peer() as (channel, _, _):
        began = time.monotonic()
        with pytest.raises(DeadlineExpired):
            channel.receive(began + 0.05)
        assert time.monotonic() - began < SOON_S


def test_a_deadline_that_is_now_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    with channel_and_peer() as (channel, _, _):
        now = time.monotonic()
        monkeypatch.setattr(channel_module, "time", SimpleNamespace(monotonic=lambda: now))
        with pytest.raises(DeadlineExpired):
            channel.receive(now)


def test_the_limits_are_those_of_the_protocol() -> None:
    """[P 3.7], and the table of deadlines in it."""
    assert (channel_module.FRAME_S, channel_module.DRAIN_S) == (2.0, 0.25)
    assert channel_module.POLL_S < channel_module.DRAIN_S  # by which a request is noticed


def test_a_connection_that_is_reset_was_cut_between_two_frames() -> None:
    with channel_and_peer() as (channel, theirs, _):
        channel.send(REPORT)
        theirs.close()  # with the report unread, so that the system may say "reset"
        with pytest.raises(ConnectionCut) as caught:
            channel.receive(soon())
        assert not caught.value.mid_frame


def test_no_deadline_is_no_deadline() -> None:
    with channel_and_peer(frame_timeout_s=math.inf) as (channel, theirs, session):
        channel.send(REPORT)
        session.open(theirs.recv(65_536)[2:])
        frame = framed(session.seal(ANSWER))
        theirs.sendall(frame[:1])
        later = threading.Timer(3 * channel_module.POLL_S, theirs.sendall, [frame[1:]])
        later.start()
        assert channel.receive(math.inf) == ANSWER
        later.join()


@pytest.mark.parametrize("pieces", [1, 2, READ_BYTES - 1, READ_BYTES, READ_BYTES + 1, 10**6])
def test_long_and_short_messages_arrive_however_they_are_cut(pieces: int) -> None:
    """Also where the system gives less, as much, or more than is asked of it at once."""
    with channel_and_peer() as (channel, theirs, session):
        lengths = [0, 5, READ_BYTES - 90, READ_BYTES, 2 * READ_BYTES, 60_000, 1]
        messages: list[bytes] = []
        for length in lengths:
            plaintext = b"\x00" + b'{"a":"' + b"x" * length + b'"}'
            messages.append(reseal(session, 40, plaintext))
        stream = b"".join(map(framed, messages))

        def send() -> None:
            step = max(pieces, len(stream) // 5_000)  # or it takes too long
            for start in range(0, len(stream), step):
                theirs.sendall(stream[start : start + step])

        def read() -> list[bytes]:
            return [channel.read(time.monotonic() + PATIENCE_S) for _ in lengths]

        assert at_once(send, read) == [None, messages]


# Pauses


def test_a_pause_in_which_nothing_comes_takes_its_time_and_changes_nothing() -> None:
    with channel_and_peer() as (channel, _, _):
        began = time.monotonic()
        channel.idle(0.1)
        assert time.monotonic() - began >= 0.1
        channel.hear()
        assert channel.session.has_farewell


@pytest.mark.parametrize("wait", ["idle", "hear"])
def test_a_farewell_that_comes_in_a_pause_is_opened(wait: str) -> None:
    with channel_and_peer() as (channel, theirs, session):
        write_frame(theirs.sendall, session.seal(Terminate(Status.SHUTDOWN)))
        with pytest.raises(PeerTerminated):
            channel.idle(PATIENCE_S) if wait == "idle" else channel.hear()


@pytest.mark.parametrize("wait", ["idle", "hear"])
def test_a_farewell_that_came_with_the_answer_is_opened_in_the_next_pause(wait: str) -> None:
    with channel_and_peer() as (channel, theirs, session):
        channel.send(REPORT)
        session.open(theirs.recv(65_536)[2:])
        answer = framed(session.seal(ANSWER))
        theirs.sendall(answer + framed(session.seal(Terminate(Status.REPLACED))))
        assert channel.receive(soon()) == ANSWER
        with pytest.raises(PeerTerminated):
            channel.idle(PATIENCE_S) if wait == "idle" else channel.hear()


@pytest.mark.parametrize("wait", ["idle", "hear"])
def test_a_connection_that_closes_in_a_pause_was_cut(wait: str) -> None:
    with channel_and_peer() as (channel, theirs, _):
        theirs.close()
        with pytest.raises(ConnectionCut):
            channel.idle(PATIENCE_S) if wait == "idle" else channel.hear()


def test_a_frame_that_begins_in_a_pause_may_end_after_it() -> None:
    with channel_and_peer() as (channel, theirs, session):
        frame = framed(session.seal(Terminate(Status.SHUTDOWN)))
        theirs.sendall(frame[:10])
        later = threading.Timer(0.5, theirs.sendall, [frame[10:]])
        later.start()
        with pytest.raises(PeerTerminated):
            channel.idle(0.2)
        later.join()
        channel.leave(Status.GOODBYE)


def test_a_frame_that_begins_in_a_pause_has_its_deadline() -> None:
    with channel_and_peer(frame_timeout_s=0.1) as (channel, theirs, _):
        theirs.sendall(b"\x00")
        with pytest.raises(DeadlineExpired, match="a whole frame"):
            channel.idle(0.01)


def test_a_farewell_that_comes_while_a_file_is_waited_for_is_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A person may take long to type."""
    real = select.select
    before: list[Callable[[], object]] = []

    def wait(*files: Any) -> object:
        before.pop(0)()
        return real(*files)

    monkeypatch.setattr(select, "select", wait)
    keyboard, hand = socket.socketpair()
    with (
        keyboard,
        hand,
        keyboard.makefile() as file,
        channel_and_peer() as (channel, theirs, session),
    ):
        farewell = session.seal(Terminate(Status.SHUTDOWN))
        before += [lambda: hand.sendall(b"1\n"), lambda: write_frame(theirs.sendall, farewell)]
        channel.hear_before(file)
        assert file.readline() == "1\n"
        with pytest.raises(PeerTerminated):
            channel.hear_before(file)


def test_who_waits_for_a_file_ends_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with channel_and_peer() as (channel, theirs, _), theirs.makefile() as file:

        def wait(*_: object) -> list[list[int]]:
            channel.request_end(Status.GOODBYE)
            return [[], [], []]

        monkeypatch.setattr(select, "select", wait)
        with pytest.raises(EndRequested):
            channel.hear_before(file)


# Requests to end


class Watched(socket.socket):
    """A socket that says when somebody begins to read."""

    reading: threading.Event

    def recv(self, size: int, flags: int = 0) -> bytes:
        self.reading.set()
        return super().recv(size, flags)


@contextlib.contextmanager
def waiting_owner(
    state: State,
) -> Iterator[tuple[Channel[Message], threading.Thread, list[Exception]]]:
    """Give a server's Channel whose owner waits for a message, the owner, and how that ended."""
    ours, theirs = socket.socketpair()
    sock = Watched(fileno=ours.detach())
    sock.reading = threading.Event()
    with sock, theirs:
        channel: Channel[Message] = Channel(sock, pair_in(state).server)
        said: list[Exception] = []

        def own() -> None:
            try:
                channel.receive(math.inf)
            except Exception as error:
                said.append(error)

        owner = threading.Thread(target=own, daemon=True)
        owner.start()
        assert sock.reading.wait(30)
        yield channel, owner, said


def test_who_is_asked_to_end_does_so_soon_and_the_first_reason_stands() -> None:
    with waiting_owner(State.REPORT) as (channel, owner, said):
        channel.request_end(Status.REPLACED)
        channel.request_end(Status.SHUTDOWN)
        owner.join(SOON_S)
        (error,) = said
        assert isinstance(error, EndRequested)
        assert error.status is Status.REPLACED
        assert channel.session.has_farewell, "it has still to be said, by `leave`"


def test_who_is_sent_away_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("channel.POLL_S", 60.0)  # how long it would sleep otherwise
    with waiting_owner(State.HELLO) as (channel, owner, said):
        channel.send_away(Status.TIMEOUT)
        owner.join(30)
        assert [type(error) for error in said] == [EndRequested]


def test_who_is_told_why_may_still_speak() -> None:
    """A socket that takes no more answers what still comes by a reset, which eats the farewell."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        Channel(ours, pair_in(State.REPORT).server).send_away(Status.TIMEOUT)
        theirs.sendall(b"a report that was on its way")
        assert ours.recv(100) == b"a report that was on its way"


def test_who_is_asked_to_end_seals_nothing_more() -> None:
    with channel_and_peer() as (channel, theirs, session):
        channel.request_end(Status.GOODBYE)
        with pytest.raises(EndRequested):
            channel.send(REPORT)
        channel.leave(Status.GOODBYE)
        assert told(theirs, session) is Status.GOODBYE


# Sends that fail


def fill(channel: Channel[Message]) -> None:
    """Send until the system takes no more, as for a peer that never reads."""
    channel._sock.setblocking(False)
    with pytest.raises(BlockingIOError):  # noqa: PT012
        while True:
            channel._sock.send(bytes(65_536))


def breaking(channel: Channel[Message], before: Callable[[bytes], object]) -> None:
    """Have the next send fail, after `before` was called with the frame."""

    def send_all(data: bytes) -> None:
        before(data)
        raise BrokenPipeError

    channel._send_all = send_all  # type: ignore[method-assign]


def test_a_failed_send_is_a_cut_even_if_an_answer_arrives() -> None:
    """What is read then may be no farewell: an answer, say, though the report seems unsent."""
    with channel_and_peer() as (channel, theirs, session):

        def deliver(frame: bytes) -> None:
            session.open(frame[2:])
            write_frame(theirs.sendall, session.seal(ANSWER))

        breaking(channel, deliver)
        with pytest.raises(ConnectionCut) as caught:
            channel.send(REPORT)
        assert caught.value.mid_frame
        assert not channel.session.has_farewell
        channel.leave(Status.GOODBYE)
        assert theirs.recv(1) == b"", "a farewell to nobody"


def test_who_cannot_send_still_hears_a_farewell() -> None:
    with channel_and_peer() as (channel, theirs, session):
        write_frame(theirs.sendall, session.seal(Terminate(Status.SHUTDOWN)))
        breaking(channel, lambda frame: None)
        with pytest.raises(PeerTerminated) as caught:
            channel.send(REPORT)
        assert caught.value.status is Status.SHUTDOWN


def test_who_can_neither_send_nor_hear_was_cut() -> None:
    with channel_and_peer() as (channel, theirs, _):
        breaking(channel, lambda frame: theirs.close())
        with pytest.raises(ConnectionCut):
            channel.send(REPORT)


def test_a_peer_that_never_reads_is_given_up_after_the_time_of_a_frame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channel_module, "FRAME_S", 0.1)  # to look for a farewell
    with channel_and_peer(frame_timeout_s=0.3) as (channel, theirs, _):
        fill(channel)
        began = time.monotonic()
        with pytest.raises(DeadlineExpired):
            channel.send(REPORT)
        assert 0.3 <= time.monotonic() - began < SOON_S
        channel.leave(Status.GOODBYE)
        theirs.setblocking(False)
        left = b""
        with contextlib.suppress(BlockingIOError):
            while more := theirs.recv(65_536):
                left = more
        assert not left.strip(b"\0"), "nothing was written behind half a frame"


def test_a_frame_has_its_time_in_all_however_slowly_it_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bytes] = []

    class Slow:
        """It takes one byte at a time, except the second time."""

        def send(self, data: bytes) -> int:
            asked.append(data[:1])
            if len(asked) == 2:
                raise TimeoutError
            return 1

        def __getattr__(self, _: str) -> Callable[..., object]:
            return lambda *_: None

    clock = SimpleNamespace(monotonic=lambda: 100.0 + 0.5 * len(asked))
    monkeypatch.setattr(channel_module, "time", clock)
    channel: Channel[Message] = Channel(Slow(), pair_in(State.REPORT).client, 2.0)  # type: ignore[arg-type]
    channel._send_all(b"123")
    assert asked == [b"1", b"2", b"2", b"3"]
    with pytest.raises(TimeoutError):
        channel._send_all(b"45678")
    assert b"".join(asked[4:]) == b"4567"


def test_a_stuck_send_heeds_a_request_to_end() -> None:
    with channel_and_peer(frame_timeout_s=math.inf) as (channel, _, _):
        fill(channel)
        later = threading.Timer(0.1, channel.request_end, [Status.SHUTDOWN])
        later.start()
        result: list[Any] = []
        assert ends_soon(lambda: result.extend(at_once(lambda: channel.send(REPORT))))
        later.join()
        assert isinstance(result[0], EndRequested)


class HalfSent(socket.socket):
    """A socket whose peer reads no more: half of what is sent gets through."""

    def send(self, data: Any, flags: int = 0) -> int:
        if not self.is_full:
            self.is_full = True
            return super().send(data[: len(data) // 2])
        raise TimeoutError

    is_full = False


def test_no_farewell_is_written_into_the_middle_of_a_frame() -> None:
    pair = pair_in(State.ANSWER)
    ours, theirs = socket.socketpair()
    with theirs:
        channel: Channel[Message] = Channel(HalfSent(fileno=ours.detach()), pair.server)
        ask = threading.Timer(0.1, channel.request_end, [Status.SHUTDOWN])
        ask.start()
        with pytest.raises(EndRequested):
            channel.send(ANSWER)
        ask.join()
        channel.leave(Status.SHUTDOWN)
        assert pair.server.state is State.ENDED
        assert (
            len(theirs.recv(1_000)) == len(framed(pair_in(State.ANSWER).server.seal(ANSWER))) // 2
        )
        assert theirs.recv(1_000) == b""


# Farewells


def told(theirs: socket.socket, session: Session) -> Status:
    """Return with which status the peer hears a farewell."""
    with pytest.raises(PeerTerminated) as caught:
        session.open(read_frame(theirs.recv))
    return caught.value.status


@pytest.mark.parametrize(
    ("sent", "error", "status"),
    [
        ("a bad tag", BadTag, Status.VIOLATION),
        ("two bytes", MalformedMessage, Status.VIOLATION),
        ("nothing", DeadlineExpired, Status.TIMEOUT),
    ],
)
def test_what_is_refused_is_answered_by_the_farewell_of_its_error(
    sent: str, error: type[ProtocolError], status: Status
) -> None:
    with channel_and_peer() as (channel, theirs, session):
        good = framed(reseal(session, 60, b"\x01"))
        frames = {"a bad tag": good[:-1] + bytes([good[-1] ^ 1]), "two bytes": b"\x00\x03"}
        theirs.sendall(frames.get(sent, b""))
        with pytest.raises(error):
            channel.receive(time.monotonic() + (SOON_S if sent in frames else 0.05))
        channel.leave(Status.GOODBYE)
        assert told(theirs, session) is status


def test_who_leaves_says_so_behind_what_it_has_sent() -> None:
    with channel_and_peer() as (channel, theirs, session):
        channel.send(REPORT)
        channel.leave(Status.GOODBYE)
        assert session.open(read_frame(theirs.recv)) == REPORT
        assert told(theirs, session) is Status.GOODBYE
        assert theirs.recv(1) == b""


def test_what_something_above_found_wrong_is_told_the_peer_too() -> None:
    with channel_and_peer() as (channel, theirs, session):
        channel.fail(DeadlineExpired("a person", "nobody"))
        channel.leave(Status.GOODBYE)
        assert told(theirs, session) is Status.TIMEOUT


@pytest.mark.parametrize("state", [State.HELLO, State.CHALLENGE, State.ENDED])
def test_who_may_say_no_farewell_leaves_without_a_word(state: State) -> None:
    with channel_and_peer(state) as (channel, theirs, _):
        channel.leave(Status.GOODBYE)
        assert theirs.recv(1) == b""


def test_an_accepted_farewell_is_not_answered() -> None:
    with channel_and_peer() as (channel, theirs, session):
        write_frame(theirs.sendall, session.seal(Terminate(Status.SHUTDOWN)))
        with pytest.raises(PeerTerminated):
            channel.receive(soon())
        channel.leave(Status.GOODBYE)
        assert theirs.recv(1) == b""


def test_a_farewell_to_a_closed_connection_raises_nothing() -> None:
    with channel_and_peer() as (channel, theirs, _):
        theirs.close()
        channel.leave(Status.GOODBYE)
        assert not channel.session.has_farewell


def test_a_farewell_half_closes_the_connection_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And so the peer, which closes then, need not be waited for as long as one may wait."""
    monkeypatch.setattr(channel_module, "DRAIN_S", PATIENCE_S)
    with channel_and_peer() as (channel, theirs, session):

        def read_all() -> int:
            theirs.settimeout(SOON_S)
            with pytest.raises(PeerTerminated):
                session.open(theirs.recv(65_536)[2:])
            left = len(theirs.recv(65_536))
            theirs.close()
            return left

        began = time.monotonic()
        assert at_once(read_all, lambda: channel.leave(Status.GOODBYE)) == [0, None]
        assert time.monotonic() - began < SOON_S


def test_leave_reads_on_until_the_peer_has_closed() -> None:
    """What nobody has read when a socket closes makes a reset, which may destroy the farewell."""
    done: list[str] = []
    arriving = [b"x" * 65_536, b"x", b""]

    class Recorder:
        def __getattr__(self, name: str) -> Callable[..., object]:
            def call(*_: object) -> object:
                if name not in ("settimeout", "setsockopt"):
                    done.append(name)
                return arriving.pop(0) if name == "recv" else None

            return call

        def __enter__(self) -> Recorder:
            return self

        def __exit__(self, *_: object) -> None:
            done.append("close")

    session = pair_in(State.REPORT).client
    Channel(Recorder(), session).leave(Status.GOODBYE)  # type: ignore[arg-type]
    assert done == ["sendall", "shutdown", "recv", "recv", "recv", "close"]


def test_leave_does_not_wait_for_a_peer_that_stays_connected() -> None:
    with channel_and_peer() as (channel, _, _):
        assert ends_soon(lambda: channel.leave(Status.GOODBYE)), "the peer does not close"


def test_leave_does_not_wait_for_a_peer_that_talks_on() -> None:
    with channel_and_peer() as (channel, theirs, _):
        stop = threading.Event()

        def talk() -> None:
            with contextlib.suppress(OSError):
                while not stop.wait(0.02):
                    theirs.sendall(b"more")

        talking = threading.Thread(target=talk, daemon=True)
        talking.start()
        assert ends_soon(lambda: channel.leave(Status.GOODBYE)), "as long as it talks"
        stop.set()
        talking.join()


def test_leave_does_not_wait_for_a_peer_that_never_reads() -> None:
    with channel_and_peer() as (channel, _, _):
        fill(channel)
        channel._sock.setblocking(True)
        assert ends_soon(lambda: channel.leave(Status.GOODBYE)), "a farewell that nobody reads"


# Those who watch


def test_a_watcher_that_raised_is_logged_when_the_channel_leaves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    with channel_and_peer() as (channel, theirs, session):
        channel.session.watchers = Watchers([full])
        channel.send(REPORT)
        assert session.open(theirs.recv(65_536)[2:]) == REPORT, "the session goes on"
        assert caplog.records == []
        theirs.close()
        channel.leave(Status.GOODBYE)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("channel", "ERROR")
    assert record.getMessage() == (
        "a watcher of <Session of client 1, sends C2S, ENDED, round 1> failed: "
        "OSError: [Errno 28] No space left on device"
    )


def test_a_channel_that_nobody_watches_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with channel_and_peer() as (channel, theirs, _):
        theirs.close()
        channel.leave(Status.GOODBYE)
    assert caplog.records == []
