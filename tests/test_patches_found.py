"""Rules that `tests/patches.py` took out, and that no other test missed, or none so soon."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import endpoint
import protocol_fsm
from channel import Channel, EndRequested
from endpoint import DEMO_KEYS, id_list, is_loopback, load_keys
from program import UserError, port_number, positive, seconds, write_text
from protocol_fsm import (
    MAX_MESSAGE,
    BadPayload,
    ConnectionCut,
    DeadlineExpired,
    Direction,
    Header,
    MalformedMessage,
    Opcode,
    PeerTerminated,
    State,
    Status,
    parse_message,
    write_frame,
)
from tests.helpers import AGGREGATE, READINGS, pair_in, refusal
from tests.network import PATIENCE_S, Hand, at_once, client_for, serving
from tests.test_programs import posix_only

GOOD_KEY = "ab" * 16
SOON_S = 3.0  # a test that waits so long for what takes 0.25 s has failed


def status_told(hand: Hand) -> Status:
    with pytest.raises(PeerTerminated) as caught:
        hand.open()
    return caught.value.status


@contextlib.contextmanager
def channel_and_peer(state: State = State.REPORT, **options: float) -> Iterator[tuple[Any, ...]]:
    """Give a client's Channel, the socket at its other end, and the session of that end."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE_S)
    pair = pair_in(state)
    with ours, theirs:
        yield Channel(ours, pair.client, **options), theirs, pair.server  # type: ignore[arg-type]


# The session


def test_a_message_longer_than_any_frame_is_malformed() -> None:
    """No frame can bring it; whoever calls `open` with other bytes gets the same answer."""
    assert (MAX_MESSAGE + 16 - 55) % 16 == 0
    server = pair_in(State.REPORT).server
    assert type(refusal(server, bytes(MAX_MESSAGE + 16))) is MalformedMessage


def test_a_message_without_a_body_still_needs_its_whole_nonce(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All the client's messages of today have a body; those of tomorrow may have none."""
    monkeypatch.setitem(protocol_fsm.BODY_BYTES, Opcode.SERVER_CHALLENGE, 0)
    header = Header(Opcode.SERVER_CHALLENGE, 1, 0, Direction.C2S)
    assert parse_message(header, bytes(16)).body == b""
    with pytest.raises(BadPayload, match="a nonce of 16 bytes, got 15"):
        parse_message(header, bytes(15))


# Admission


def test_a_stranger_has_one_deadline_for_hello_and_report(monkeypatch: pytest.MonkeyPatch) -> None:
    deadlines: list[float] = []
    real = Channel.read

    def read(channel: Channel, deadline: float) -> bytes:
        if channel.session.sends is Direction.S2C:
            deadlines.append(deadline)
        return real(channel, deadline)

    monkeypatch.setattr(Channel, "read", read)
    with serving() as (server, _), client_for(server, 1) as client:
        client.report([1])
        client.report([2])
    hello, report, *later = deadlines
    assert hello == report
    assert report < later[0]


def test_nobody_can_know_the_key_for_unknown_ids() -> None:
    with serving() as (first, _), serving() as (second, _):
        assert first.session_for(77).fingerprints() != second.session_for(77).fingerprints()


@pytest.mark.slow
def test_a_stranger_that_has_left_takes_no_place_away() -> None:
    with serving(max_strangers=2) as (server, journal):
        with Hand(server.address, 1).shake_hands() as first:
            with Hand(server.address, 2).shake_hands():
                pass
            journal.wait("end", 2)
            with Hand(server.address, 3).shake_hands() as third:
                for hand in (first, third):
                    hand.report()
                    assert hand.open().opcode is Opcode.SERVER_AGGR_RESPONSE


def test_a_replaced_session_takes_nothing_of_the_newer_one_along() -> None:
    """`forget` comes when its thread does, often after the newer session has reported."""
    with serving(window_s=60) as (server, journal), client_for(server, 5) as other:
        other.report([0])
        with (
            Hand(server.address, 1).shake_hands() as older,
            Hand(server.address, 1).shake_hands() as newer,
        ):
            older.report(b"[100]")  # waits for client 5
            journal.wait("report", 1)
            member = server._members[1]
            newer.report(b"[7]")
            assert status_told(older) is Status.REPLACED
            journal.wait("report", 1, 2)
            server.forget(member, EndRequested(Status.REPLACED))  # as if it came late
            assert other.report([1])["sum"] == 8
            assert newer.open().aggregate["participants"] == [1, 5]
            with Hand(server.address, 1).shake_hands() as newest:
                newest.report()
                assert status_told(newer) is Status.REPLACED


def test_a_server_that_stops_waits_until_all_are_told() -> None:
    with serving() as (server, _), contextlib.ExitStack() as hands:
        for client_id in DEMO_KEYS:
            hands.enter_context(Hand(server.address, client_id).shake_hands())
        server.__exit__()
        assert not any(thread.is_alive() for thread in server._threads)


@pytest.mark.slow
def test_a_server_that_stops_waits_a_moment_and_no_longer() -> None:
    """A thread may be held by an aggregation that takes long, say."""
    release = threading.Event()

    with serving(window_s=60) as (server, _):
        with Hand(server.address, 1).shake_hands() as hand:
            server._threads.append(threading.Thread(target=release.wait, args=(PATIENCE_S,)))
            server._threads[-1].start()
            began = time.monotonic()
            server.__exit__()
            assert time.monotonic() - began < SOON_S
            assert status_told(hand) is Status.SHUTDOWN
        release.set()


# Epochs


def test_a_report_gives_its_epoch_no_more_time() -> None:
    with serving(window_s=60) as (server, journal), client_for(server, 5) as awaited:
        awaited.report([0])
        with (
            Hand(server.address, 1).shake_hands() as first,
            Hand(server.address, 2).shake_hands() as second,
        ):
            first.report()
            journal.wait("report", 1)
            deadline = server._epoch.deadline
            second.report()
            journal.wait("report", 2)
            assert server._epoch.deadline == deadline
            assert awaited.report([1])["participants"] == [1, 2, 5]


def test_an_epoch_without_an_answer_is_no_internal_error() -> None:
    with serving(lambda _: 1 / 0) as (server, journal):
        with Hand(server.address, 1).shake_hands() as hand:
            hand.report()
            assert status_told(hand) is Status.SHUTDOWN
        assert isinstance(journal.wait("end", 1)[0].detail, EndRequested)


# The channel


def test_every_frame_has_a_time_to_be_whole() -> None:
    with channel_and_peer(frame_timeout_s=0.2) as (channel, theirs, session):
        channel.send(Opcode.CLIENT_DATA, READINGS)
        session.open(theirs.recv(65_536)[2:])
        write_frame(theirs.sendall, session.seal(Opcode.SERVER_AGGR_RESPONSE, AGGREGATE))
        channel.receive(time.monotonic() + SOON_S)
        theirs.sendall(b"\x00")
        began = time.monotonic()
        with pytest.raises(DeadlineExpired, match="a whole frame"):
            channel.receive(began + SOON_S)
        assert time.monotonic() - began < SOON_S / 2


def test_a_frame_that_drips_has_no_more_time() -> None:
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


def test_who_cannot_send_is_cut_whatever_else_it_hears() -> None:
    """What is read then may be no last word: an answer, say, though the report seems unsent."""
    with channel_and_peer() as (channel, theirs, session):

        def delivered_and_broken(message: bytes) -> None:
            session.open(message)
            write_frame(theirs.sendall, session.seal(Opcode.SERVER_AGGR_RESPONSE, AGGREGATE))
            raise BrokenPipeError

        channel._write = delivered_and_broken
        with pytest.raises(ConnectionCut):
            channel.send(Opcode.CLIENT_DATA, READINGS)
        assert channel.session.state is State.ENDED


def test_a_farewell_to_nobody_is_no_error() -> None:
    with channel_and_peer() as (channel, theirs, _):
        theirs.close()
        channel.leave(Status.GOODBYE)
        assert channel.session.state is State.ENDED


def test_a_farewell_ends_the_stream_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And so the peer, which closes then, need not be waited for as long as one may wait."""
    monkeypatch.setattr(endpoint, "DRAIN_S", PATIENCE_S)
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


def test_who_said_farewell_reads_on_until_the_peer_has_closed() -> None:
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


def test_a_farewell_waits_no_longer_than_it_has_to() -> None:
    with channel_and_peer() as (channel, _, _):
        assert ends_soon(lambda: channel.leave(Status.GOODBYE)), "the peer does not close"


def test_a_peer_that_does_not_read_holds_nobody() -> None:
    with channel_and_peer() as (channel, _, _):
        channel._sock.setblocking(False)
        with pytest.raises(BlockingIOError):  # noqa: PT012
            while True:
                channel._sock.send(bytes(65_536))
        assert ends_soon(lambda: channel.leave(Status.GOODBYE)), "a farewell that nobody reads"


def ends_soon(call: Callable[[], object]) -> bool:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(SOON_S)
    return not thread.is_alive()


# Hosts, keys, numbers


def test_a_host_with_one_foreign_address_is_not_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))
        for address in ("127.0.0.1", "192.0.2.1")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert not is_loopback("both")
    del found[1]
    assert is_loopback("ours")


@pytest.mark.parametrize(
    "text",
    [
        f"0:{GOOD_KEY}\n",
        f"256:{GOOD_KEY}\n",
        f"1:{GOOD_KEY[2:]}\n",
        f"1:{GOOD_KEY}\n1:{'cd' * 16}\n",
        f"1:{GOOD_KEY} # the first\n",
        f"1:{GOOD_KEY}\nand that is all\n",
        "\n \n",
    ],
    ids=["id 0", "id 256", "short key", "id twice", "more behind it", "a line of prose", "nothing"],
)
def test_a_key_file_that_is_not_quite_one_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "some.keys"
    path.write_text(f"\n 255 : {GOOD_KEY.upper()} \n")
    path.chmod(0o600)
    assert load_keys(path) == {255: bytes.fromhex(GOOD_KEY)}
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_keys(path)
    assert GOOD_KEY not in str(caught.value)


@posix_only
@pytest.mark.parametrize("mode", [0o640, 0o620, 0o604, 0o601], ids=oct)
def test_a_key_file_that_the_group_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "some.keys"
    path.write_text(f"1:{GOOD_KEY}\n")
    path.chmod(mode)
    with pytest.raises(UserError, match="chmod 600"):
        load_keys(path)


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (id_list, "0"),
        (id_list, "4-1"),
        (id_list, "1-256"),
        (id_list, "1,,2"),
        (seconds, "0"),
        (seconds, "-1"),
        (seconds, "inf"),
        (seconds, "nan"),
        (positive, "0"),
        (positive, "9223372036854775808"),
        (positive, "1.5"),
        (port_number, "-1"),
        (port_number, "65536"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_number_outside_its_limits_is_refused(read: Callable[[str], object], text: str) -> None:
    with pytest.raises(ValueError):
        read(text)


def test_a_number_at_its_limit_is_taken() -> None:
    assert id_list("1,3-4,255") == [1, 3, 4, 255]
    assert (seconds("1e-3"), positive("1")) == (0.001, 1)
    assert (port_number("0"), port_number("65535")) == (0, 65_535)


def test_a_file_that_cannot_be_written_is_said_in_a_sentence(tmp_path: Path) -> None:
    write_text(str(tmp_path / "some.txt"), "one\ntwo\n")
    assert (tmp_path / "some.txt").read_bytes() == b"one\ntwo\n"
    with pytest.raises(UserError, match=r"cannot write .*No such file"):
        write_text(str(tmp_path / "nowhere" / "some.txt"), "one\n")
