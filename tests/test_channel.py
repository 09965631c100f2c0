"""A session on a real socket: deadlines of frames, sends that fail, and how a farewell leaves."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import endpoint
from channel import Channel
from protocol_fsm import (
    ConnectionCut,
    DeadlineExpired,
    Opcode,
    PeerTerminated,
    State,
    Status,
    write_frame,
)
from tests.helpers import AGGREGATE, READINGS, pair_in
from tests.network import PATIENCE_S, at_once

SOON_S = 3.0  # a test that waits so long for what takes 0.25 s has failed


@contextlib.contextmanager
def channel_and_peer(state: State = State.REPORT, **options: float) -> Iterator[tuple[Any, ...]]:
    """Give a client's Channel, the socket at its other end, and the session of that end."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE_S)
    pair = pair_in(state)
    with ours, theirs:
        yield Channel(ours, pair.client, **options), theirs, pair.server  # type: ignore[arg-type]


def ends_soon(call: Callable[[], object]) -> bool:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(SOON_S)
    return not thread.is_alive()


def test_each_frame_has_its_own_deadline() -> None:
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


def test_a_failed_send_is_a_cut_even_if_an_answer_arrives() -> None:
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


def test_a_farewell_to_a_closed_connection_raises_nothing() -> None:
    with channel_and_peer() as (channel, theirs, _):
        theirs.close()
        channel.leave(Status.GOODBYE)
        assert channel.session.state is State.ENDED


def test_a_farewell_half_closes_the_connection_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_leave_does_not_wait_for_a_peer_that_never_reads() -> None:
    with channel_and_peer() as (channel, _, _):
        channel._sock.setblocking(False)
        with pytest.raises(BlockingIOError):  # noqa: PT012
            while True:
                channel._sock.send(bytes(65_536))
        assert ends_soon(lambda: channel.leave(Status.GOODBYE)), "a farewell that nobody reads"
