"""The server, over real sockets: admission, endings, aggregation by epochs."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import itertools
import logging
import math
import os
import random
import re
import secrets
import signal
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from channel import POLL_S, Channel, EndRequested
from client import Client
from endpoint import DEMO_KEYS, DEMO_WARNING, generate_keys
from program import NoConnection, UserError
from protocol_fsm import (
    LAST_ROUND,
    BadTag,
    ClientData,
    ClientHello,
    ConnectionCut,
    DeadlineExpired,
    Direction,
    Json,
    Message,
    Opcode,
    PeerTerminated,
    ProtocolError,
    RoundMismatch,
    ServerAggrResponse,
    ServerChallenge,
    Session,
    State,
    Status,
    Terminate,
    UnexpectedOpcode,
    write_frame,
)
from server import (
    Contribution,
    Epoch,
    Limits,
    Member,
    Record,
    Server,
    compute_aggregation,
    listen,
    log_record,
    own_part,
)
from server import main as server_main
from tests.helpers import GOODBYE, reseal
from tests.network import (
    PATIENCE_S,
    Hand,
    Journal,
    Wire,
    at_once,
    client_for,
    serving,
    wait_until,
)
from tests.properties import given, st

SOON_S = 3.0  # a test that waits so long for what takes 0.25 s has failed
SHARED = ("epoch", "participants", "count", "sum", "mean", "min", "max")


def shared(answer: Mapping[str, Json]) -> list[Json]:
    return [answer[name] for name in SHARED]


def terminated(session: Session, message: bytes) -> tuple[Opcode, Status]:
    with pytest.raises(PeerTerminated) as caught:
        session.open(message)
    return caught.value.opcode, caught.value.status


def reason(journal: Journal, client_id: int, number: int = 0) -> Exception:
    error = journal.wait("end", client_id, number + 1)[number].detail
    assert isinstance(error, Exception)
    return error


def participants(hand: Hand) -> list[object]:
    """Return who took part, as the answer says that comes next."""
    ids = hand.answer()["participants"]
    assert isinstance(ids, list)
    return [*ids]


def status_told(hand: Hand) -> Status:
    with pytest.raises(PeerTerminated) as caught:
        hand.open()
    return caught.value.status


# The aggregate


def test_aggregate_is_what_the_document_says() -> None:
    assert compute_aggregation({2: [1.0, 4.0], 1: [], 7: [-2.5]}) == {
        "participants": [1, 2, 7],
        "count": 3,
        "sum": 2.5,
        "mean": 2.5 / 3,
        "min": -2.5,
        "max": 4.0,
    }
    assert compute_aggregation({3: []}) == {
        "participants": [3],
        "count": 0,
        "sum": 0.0,
        "mean": None,
        "min": None,
        "max": None,
    }
    assert compute_aggregation({1: [0.1] * 10})["sum"] == 1.0, "rounded once, not ten times"


def test_own_part_has_no_share_where_there_is_nothing_to_share() -> None:
    assert own_part([1.0, 2.0], 4.0) == {"own_count": 2, "own_sum": 3.0, "own_share": 0.75}
    assert own_part([], 0.0)["own_share"] is None
    assert own_part([1e15], 5e-324)["own_share"] is None, "a share that overflows"


@pytest.mark.slow
@given(
    st.dictionaries(st.integers(1, 255), st.lists(st.floats(-1e15, 1e15), max_size=9), min_size=1)
)
def test_aggregate_is_independent_of_the_order_of_clients(
    contributions: dict[int, list[float]],
) -> None:
    turned = dict(reversed(contributions.items()))
    assert compute_aggregation(contributions) == compute_aggregation(turned)
    readings = [x for values in contributions.values() for x in values]
    assert compute_aggregation(turned)["sum"] == math.fsum(readings)


# Epochs


def test_a_lone_client_waits_for_nobody() -> None:
    with serving(window_s=60) as (server, _), client_for(server, 3) as client:
        answer = client.report([20.0, 22.0])
        assert (answer["epoch"], answer["participants"], answer["own_sum"]) == (1, [3], 42.0)
        assert client.report([])["mean"] is None


def test_each_epoch_is_recorded_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(lambda _: {"text": "x" * 55}, window_s=0.05) as (server, journal):
        with client_for(server, 3) as one, client_for(server, 4) as other:
            one.report([20.5])
            other.report([22.5])  # in an epoch that waits for the first in vain
        closed = [(record.client_id, record.detail) for record in journal.of("epoch")]
    for record in journal.of("epoch"):
        log_record(record)
    assert [(client_id, getattr(epoch, "number", epoch)) for client_id, epoch in closed] == [
        (0, 1),
        (0, 2),
    ]
    told = [line for line in caplog.messages if "text" in line]
    assert told == [f'epoch {n}\n    text "{"x" * 55}"' for n in (1, 2)], (
        "71 columns are one too many"
    )


def test_clients_that_start_at_random_offsets_share_every_epoch_from_then_on() -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    offsets = {client_id: rng.uniform(0, 0.5) for client_id in (1, 2, 3)}
    enough = threading.Event()
    with serving(window_s=5) as (server, _):

        def run(client_id: int) -> list[dict[str, Any]]:
            answers: list[dict[str, Any]] = []
            with client_for(server, client_id) as client:
                client.channel.idle(offsets[client_id])
                while not enough.is_set():
                    answers.append(client.report([client_id * 10.0 + len(answers)]))
                    if sum(len(a["participants"]) == 3 for a in answers) == 20:
                        enough.set()
            return answers

        answers = at_once(*(functools.partial(run, client_id) for client_id in offsets))
        by_epoch: dict[int, list[dict[str, Any]]] = {}
        for each in answers:
            assert isinstance(each, list), (seed, each)
            for answer in each:
                by_epoch.setdefault(answer["epoch"], []).append(answer)
        for members in by_epoch.values():
            assert all(shared(answer) == shared(members[0]) for answer in members), f"seed {seed}"
            assert len(members) == len(members[0]["participants"])
            assert math.fsum(m["own_sum"] for m in members) == members[0]["sum"]
        sizes = [len(by_epoch[number]) for number in sorted(by_epoch)]
        first = sizes.index(3)
        last = len(sizes) - 1 - sizes[::-1].index(3)
        assert sizes[first : last + 1] == [3] * (last + 1 - first), f"seed {seed}: {sizes}"
        assert last > first + 10


@pytest.mark.slow
def test_a_stalled_client_delays_the_others_by_one_window_once() -> None:
    with (
        serving(window_s=1.0) as (server, journal),
        client_for(server, 1) as quick,
        client_for(server, 2) as stalled,
    ):
        quick.report([1])
        assert share_an_epoch(journal, stalled, quick) == [1, 2]
        began = time.monotonic()
        assert quick.report([1])["participants"] == [1]
        waited = time.monotonic() - began
        assert waited > 0.9
        server._epochs._window_s = 60  # longer than the test would wait for it
        for _ in range(5):
            assert quick.report([1])["participants"] == [1]
        assert share_an_epoch(journal, stalled, quick) == [1, 2], "and it may come back"


def test_members_wake_each_other_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(window_s=60) as (server, journal), contextlib.ExitStack() as stack:
        monkeypatch.setattr("server.POLL_S", 60)  # so that nobody looks for itself
        hands = [Hand(server.address, client_id).shake_hands() for client_id in (1, 2, 3)]
        for hand in hands:
            stack.enter_context(hand)

        def report(client_id: int) -> None:
            count = len(journal.of("report", client_id)) + 1
            hands[client_id - 1].report([1])
            journal.wait("report", client_id, count)

        def told(client_id: int) -> list[object]:
            return participants(hands[client_id - 1])

        report(1)
        assert told(1) == [1]
        for client_id in (2, 3, 1):
            report(client_id)
        assert [told(client_id) for client_id in (1, 2, 3)] == [[1, 2, 3]] * 3
        report(1)
        report(2)
        hands[2].socket.close()
        assert [told(client_id) for client_id in (1, 2)] == [[1, 2]] * 2


def test_a_member_looks_at_the_clock_and_for_requests_until_its_epoch_closes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []

    def wait(timeout_s: float) -> None:
        assert len(waits) < 5, "it waits on"
        waits.append(timeout_s)
        if len(waits) == 5:
            member.request_end(Status.SHUTDOWN)

    monkeypatch.setattr("server.POLL_S", 0.25)
    monkeypatch.setattr("server.time", SimpleNamespace(monotonic=lambda: sum(waits)))
    server = Server(DEMO_KEYS, port=0, limits=Limits(window_s=0.625))
    monkeypatch.setattr(server._changed, "wait", wait)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        member = Member(server, ours)
        server._epochs._expected = {7}
        server.contribute(member, ClientData([1.0]))
        assert waits == [0.25, 0.25, 0.125]
        server._epochs._expected = {7}
        with pytest.raises(EndRequested):
            server.contribute(member, ClientData([1.0]))
    server.__exit__()


def share_an_epoch(journal: Journal, first: Client, second: Client) -> object:
    """Have `first` open an epoch, which waits for `second`; return who took part."""
    reports = len(journal.of("report", first.session.client_id))

    def follow() -> dict[str, Any]:
        journal.wait("report", first.session.client_id, reports + 1)
        return second.report([1])

    one, other = at_once(lambda: first.report([2]), follow)
    assert isinstance(one, dict), one
    assert isinstance(other, dict), other
    assert shared(one) == shared(other)
    return one["participants"]


def test_a_stranger_that_ends_does_not_make_an_epoch_close_without_its_namesake() -> None:
    with (
        serving(window_s=60) as (server, journal),
        client_for(server, 1) as one,
        client_for(server, 2) as namesake,
    ):
        one.report([1])
        assert share_an_epoch(journal, namesake, one) == [1, 2]
        with Hand(server.address, 2).shake_hands():
            pass
        reason(journal, 2)
        assert share_an_epoch(journal, one, namesake) == [1, 2]


def test_leaving_frees_the_others_at_once() -> None:
    with serving(window_s=60) as (server, journal), client_for(server, 1) as staying:
        with Hand(server.address, 2).shake_hands() as leaving:
            leaving.report()
            leaving.open()

            def leave() -> None:
                journal.wait("report", 1)
                leaving.send(leaving.session.seal(GOODBYE))

            staying_report, _ = at_once(lambda: staying.report([5]), leave)
        assert isinstance(staying_report, dict), staying_report
        assert staying_report["participants"] == [1]
        assert str(reason(journal, 2)) == "PeerTerminated: TERMINATE (GOODBYE)"


def test_a_killed_client_leaves_nothing_in_the_next_epoch() -> None:
    with serving(window_s=60) as (server, journal), client_for(server, 1) as staying:
        killed = Hand(server.address, 2).shake_hands()
        killed.report([1000])
        assert killed.answer()["sum"] == 1000
        killed.reset()
        assert isinstance(reason(journal, 2), ConnectionCut)
        assert staying.report([1])["sum"] == 1


def test_replaced_session_is_told_so_and_its_values_give_way() -> None:
    with serving(window_s=60) as (server, journal), client_for(server, 5) as third:
        third.report([0])
        old = Hand(server.address, 1).shake_hands()
        old.report([100])  # waits for client 5
        journal.wait("report", 1)
        new = Hand(server.address, 1).shake_hands()
        new.report([7])
        assert terminated(old.session, old.receive()) == (Opcode.TERMINATE, Status.REPLACED)
        assert isinstance(reason(journal, 1), EndRequested)
        journal.wait("report", 1, 2)
        assert third.report([1])["sum"] == 8, "7 instead of 100, and not both"
        assert new.answer()["participants"] == [1, 5]
        new.socket.close()
        old.socket.close()


def test_a_replaced_session_has_no_part_in_the_epoch_even_before_the_newer_one_reports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody else's report may close the epoch between the two."""
    entered: list[list[int]] = []

    def contribute(member: Member, report: ClientData) -> ServerAggrResponse:
        entered.append([*server._epochs.current.contributions])
        return real(member, report)

    with serving(window_s=60) as (server, journal), client_for(server, 5) as other:
        other.report([0])
        real = server.contribute
        monkeypatch.setattr(server, "contribute", contribute)
        with (
            Hand(server.address, 1).shake_hands() as older,
            Hand(server.address, 1).shake_hands() as newer,
        ):
            older.report([100])
            journal.wait("report", 1)
            newer.report([7])
            journal.wait("report", 1, 2)
            assert entered == [[], []]
            assert status_told(older) is Status.REPLACED


def test_a_member_that_ends_while_it_waits_takes_its_values_along() -> None:
    with serving(window_s=60) as (server, journal), client_for(server, 5) as other:
        other.report([0])
        with Hand(server.address, 1).shake_hands() as waiting:
            waiting.report([100])
            journal.wait("report", 1)
            server._roster.members[1].channel.request_end(Status.SHUTDOWN)
            assert terminated(waiting.session, waiting.receive())[1] is Status.SHUTDOWN
            reason(journal, 1)
        assert other.report([3])["sum"] == 3


def test_a_session_that_was_asked_to_end_contributes_nothing_more() -> None:
    with serving(window_s=60) as (server, journal), client_for(server, 1) as client:
        client.report([1])
        member = server._roster.members[1]
        report = journal.of("report")[0].detail
        assert isinstance(report, Contribution)
        member.channel.request_end(Status.REPLACED)  # while its next report is on its way
        member.channel.request_end(Status.SHUTDOWN)
        with pytest.raises(EndRequested) as caught:
            server.contribute(member, ClientData(report.readings))
        assert caught.value.status is Status.REPLACED, "the first reason stands"
        with pytest.raises(EndRequested):
            server.establish(member)
        assert len(journal.of("report")) == 1


@pytest.mark.parametrize(
    "aggregation",
    [
        lambda _: 1 / 0,
        lambda _: sys.exit("out of class"),
        lambda _: {"x": "y" * 70_000},
    ],
    ids=["raises", "exits", "too large"],
)
def test_a_failing_aggregation_ends_its_epoch_but_not_the_server(
    aggregation: Callable[[object], object], caplog: pytest.LogCaptureFixture
) -> None:
    with serving(
        lambda c: compute_aggregation(c) if 13.0 not in c.get(2, []) else aggregation(c),
        window_s=60,
    ) as (server, journal):
        client = client_for(server, 1)
        with client, Hand(server.address, 2).shake_hands() as unlucky:
            client.report([1])
            unlucky.report([13])
            journal.wait("report", 2)  # and now it waits for client 1
            with pytest.raises(PeerTerminated) as caught:
                client.report([1])
            assert caught.value.status is Status.SHUTDOWN
            assert terminated(unlucky.session, unlucky.receive())[1] is Status.SHUTDOWN
            assert isinstance(reason(journal, 2), EndRequested)
        assert "Traceback" in caplog.text
        with client_for(server, 1) as again:
            assert again.report([4])["sum"] == 4
        epochs = [record.detail for record in journal.of("epoch")]
        assert [bool(e.answers) for e in epochs if isinstance(e, Epoch)] == [True, False, True]


# Admission and endings


def test_shutdown_tells_every_client_and_waits_for_nobody() -> None:
    with serving(window_s=60) as (server, _):
        established = Hand(server.address, 1).shake_hands()
        established.report()
        established.open()
        bound = Hand(server.address, 2).shake_hands()
        silent = Wire(server.address)
    assert terminated(established.session, established.receive())[1] is Status.SHUTDOWN
    assert terminated(bound.session, bound.receive())[1] is Status.SHUTDOWN
    assert silent.is_closed_silently()
    with pytest.raises(ConnectionError):
        Wire(server.address)
    for wire in (established, bound, silent):
        wire.socket.close()


def test_a_port_in_use_is_a_typed_error() -> None:
    with serving() as (server, _), pytest.raises(NoConnection):
        Server(DEMO_KEYS, port=server.address[1])
    with pytest.raises(NoConnection):
        listen("x" * 64, 0)  # more than a part of a name can have


def test_an_address_on_one_link_is_listened_on_with_its_link(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = ("fe80::1", 9999, 0, 7)
    waits: list[float] = []
    listener = SimpleNamespace(settimeout=waits.append, getsockname=lambda: address)
    found = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", address)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(socket, "create_server", lambda address, **_: {address: listener}[address])
    assert Server(DEMO_KEYS, "fe80::1%7").address == ("fe80::1", 9999)
    assert waits[0] < POLL_S, "how soon it notices that it shall close"


@pytest.mark.parametrize("client_id", [0, 6, 255])
def test_unknown_id_and_wrong_key_end_alike(client_id: int) -> None:
    with serving() as (server, journal):
        for id_and_key in ((client_id, b"k" * 16), (1, b"k" * 16)):
            with Hand(server.address, *id_and_key) as stranger:
                stranger.hello()
                assert stranger.is_closed_silently()
        kinds = {type(record.detail) for record in journal.wait("end", count=2)}
        assert kinds == {BadTag}


def test_unknown_id_keeps_its_decoy_so_that_two_attempts_meet_the_same_keys() -> None:
    with serving() as (server, _):
        first = server.session_for(77)
        second = server.session_for(77)
        assert first.fingerprints() == second.fingerprints()
        assert first.fingerprints() != server.session_for(1).fingerprints()


@pytest.mark.slow
def test_a_stranger_has_its_time_in_all_however_it_drips() -> None:
    with serving(stranger_timeout_s=0.5, frame_timeout_s=30) as (server, journal):
        with Wire(server.address) as silent:
            assert silent.is_closed_silently()
        with Wire(server.address) as dripping, contextlib.suppress(OSError):
            dripping.socket.settimeout(0.05)
            dripping.socket.sendall((87).to_bytes(2, "big"))
            began = time.monotonic()
            while time.monotonic() - began < 5.0:
                dripping.socket.sendall(b"\x0a")
                with contextlib.suppress(TimeoutError):
                    if not dripping.socket.recv(1):
                        break
        assert time.monotonic() - began < 3.0
        with Hand(server.address, 1).shake_hands() as quiet:
            assert terminated(quiet.session, quiet.receive())[1] is Status.TIMEOUT
        kinds = [type(record.detail) for record in journal.wait("end", count=3)]
        assert kinds == [DeadlineExpired] * 3


def test_a_frame_once_begun_must_be_finished() -> None:
    with serving(frame_timeout_s=0.3) as (server, journal):
        with Hand(server.address, 1).shake_hands() as slow:
            slow.report()
            slow.open()
            slow.socket.sendall(b"\x00")
            assert terminated(slow.session, slow.receive())[1] is Status.TIMEOUT
        assert str(reason(journal, 1)) == "DeadlineExpired: expected a whole frame, got none"


def test_after_the_last_round_both_ends_close_in_peace(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as (server, journal):
        last = functools.partial(Session, first_round=LAST_ROUND)
        monkeypatch.setattr(server, "_new_session", last)
        with Client(1, DEMO_KEYS, *server.address, new_session=last) as client:
            assert client.report([1])["round"] == LAST_ROUND
        assert str(reason(journal, 1)) == "by this side (GOODBYE)"


def test_a_silent_client_is_told_timeout() -> None:
    with serving(silence_timeout_s=0.3) as (server, _), client_for(server, 1) as client:
        client.report([1])
        with pytest.raises(PeerTerminated) as caught:
            client.channel.idle(10)
        assert caught.value.status is Status.TIMEOUT


def test_the_oldest_stranger_makes_room_and_no_established_client_does() -> None:
    with (
        serving(max_strangers=2, window_s=0.2) as (server, _),
        client_for(server, 1) as established,
    ):
        established.report([1])
        oldest = Hand(server.address, 2).shake_hands()
        others = [Hand(server.address, n).shake_hands() for n in (3, 4)]
        assert terminated(oldest.session, oldest.receive())[1] is Status.TIMEOUT
        assert established.report([2])["sum"] == 2
        for n, other in zip((3, 4), others):
            other.report()
            assert n in participants(other)
        for wire in (oldest, *others):
            wire.socket.close()


@pytest.mark.parametrize(
    "data",
    [b"\x00\x00", b"\xff\xff", b"GET / HTTP/1.1\r\n\r\n", b"\x00\x57" + bytes(87)],
    ids=["too short", "too long", "HTTP", "zeros"],
)
def test_garbage_from_a_stranger_is_closed_silently_and_disturbs_nobody(data: bytes) -> None:
    with serving() as (server, journal), client_for(server, 1) as client:
        with Wire(server.address) as garbage:
            garbage.socket.sendall(data)
            assert garbage.is_closed_silently()
        assert client.report([1])["participants"] == [1]
        assert isinstance(journal.wait("end")[0].detail, ProtocolError)


def test_terminate_in_the_handshake_is_not_understood() -> None:
    with serving() as (server, journal), Hand(server.address, 1) as early:
        early.send(reseal(early.session, Opcode.TERMINATE, bytes(16) + b"\x01"))
        assert early.is_closed_silently()
        assert isinstance(reason(journal, 1), UnexpectedOpcode)


def test_wrong_round_is_answered_by_key_desync_error() -> None:
    with serving() as (server, journal), Hand(server.address, 1).shake_hands() as hand:
        hand.report()
        hand.open()
        hand.send(hand.sent[-1])
        assert terminated(hand.session, hand.receive()) == (
            Opcode.KEY_DESYNC_ERROR,
            Status.VIOLATION,
        )
        assert isinstance(reason(journal, 1), RoundMismatch)


def test_any_cut_of_the_stream_is_served() -> None:
    """One byte a segment, and two messages in one segment."""
    with serving() as (server, _), Hand(server.address, 1) as hand:
        stream = bytearray()
        hand.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        write_frame(stream.extend, hand.session.seal(ClientHello()))
        for byte in stream:
            hand.socket.sendall(bytes([byte]))
        hand.open()
        stream.clear()
        for message in (ClientData([9]), GOODBYE):
            write_frame(stream.extend, hand.session.seal(message))
        hand.socket.sendall(stream)
        assert hand.receive()[0] == Opcode.SERVER_AGGR_RESPONSE


def test_a_defect_of_ours_ends_one_session_and_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serving() as (server, journal), client_for(server, 1) as healthy:
        healthy.report([1])

        def broken(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(server, "establish", broken)
        with Hand(server.address, 2).shake_hands() as victim:
            victim.report()
            assert terminated(victim.session, victim.receive())[1] is Status.SHUTDOWN
        assert isinstance(reason(journal, 2), ZeroDivisionError)
        assert healthy.report([2])["sum"] == 2
        assert "internal error" in caplog.text


def test_a_server_that_never_served_can_be_closed() -> None:
    server = Server(DEMO_KEYS, port=0)
    server.__exit__()
    with pytest.raises(ConnectionError):
        Wire(server.address)


def test_the_log_names_what_the_wire_does_not(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "server")
    with serving() as (server, journal):
        with client_for(server, 4) as client:
            client.report([8.5])
        with Hand(server.address, 1, b"k" * 16) as wrong:
            wrong.hello()
            assert wrong.is_closed_silently()
        with Hand(server.address, 77, b"k" * 16) as unknown:
            unknown.hello()
            assert unknown.is_closed_silently()
        reason(journal, 1)
        reason(journal, 4)
        reason(journal, 77)
        with socket.create_connection(server.address):
            pass  # as the interactive proxy looks whether there is a server
        reason(journal, 0)
    told = [record.message for record in caplog.records if record.levelno >= logging.INFO]
    assert sorted(told) == [
        "client 4: established",
        "client 4: left after round 1",
        "stranger as client 1: ended: BadTag",
        "stranger as client 77: ended: BadTag (there is no key for it)",
    ]
    assert "stranger without a name: gone without a word" in caplog.text
    assert not [record for record in caplog.records if "8.5" in record.getMessage()]
    for record in journal.records:
        log_record(record)
    assert "client 4: round 1, [8.5]" in caplog.text
    assert "epoch 1  participants [4]  count 1  sum 8.5" in caplog.text
    assert server.summary().splitlines()[1].split() == ["4", "1", "1"]
    assert server.summary().splitlines()[-1] == "strangers: 2 BadTag, 1 ConnectionCut"


def test_each_end_has_its_own_words_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "server")
    with serving() as (server, journal):
        with Hand(server.address, 1).shake_hands() as refusing:
            refusing.send(refusing.session.seal(Terminate(Status.VIOLATION)))
            reason(journal, 1)
        with Hand(server.address, 2).shake_hands():
            pass
        reason(journal, 2)
        with Wire(server.address) as half:
            half.socket.sendall(b"\0")
        reason(journal, 0)
        with Hand(server.address, 3).shake_hands() as older:
            older.report()
            older.answer()
            for thread in server._threads[:-1]:
                thread.join(PATIENCE_S)
            with Hand(server.address, 3).shake_hands() as newer:
                assert len(server._threads) == 2, "threads that have ended are forgotten"
                newer.report()
                reason(journal, 3)
    told = [record.message for record in caplog.records]
    assert "stranger as client 1: ended: PeerTerminated: TERMINATE (VIOLATION)" in told
    assert (
        "stranger as client 2: ended: ConnectionCut: expected a farewell first, got the end" in told
    )
    assert (
        "stranger without a name: ended: ConnectionCut: expected a farewell first, got the end"
        in told
    )
    assert "client 3: ended after round 1: by this side (REPLACED)" in told
    assert not any("internal error" in line for line in told)


def test_a_stranger_has_one_deadline_for_hello_and_report(monkeypatch: pytest.MonkeyPatch) -> None:
    deadlines: list[float] = []
    real = Channel.read

    def read(channel: Channel[Message], deadline: float) -> bytes:
        assert isinstance(channel.session, Session)
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


def test_the_log_of_a_debug_run_has_no_key_and_only_verbose_shows_readings(
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every way to end that a client can bring about, with a reading that is nothing else."""
    reading = 7_351_942.625
    keys: set[bytes] = set(DEMO_KEYS.values())

    def note(client_id: int, key: bytes, sends: Direction) -> Session:
        return Session(client_id, key, sends, key_log=lambda moved: keys.update(moved.values()))

    def record(told: Record) -> None:
        journal(told)
        log_record(told)

    caplog.set_level(logging.DEBUG)
    with serving(frame_timeout_s=0.3) as (server, journal):
        monkeypatch.setattr(server, "_new_session", note)
        monkeypatch.setattr(server, "_record", record)
        keys.add(server._decoy_key)
        with client_for(server, 1) as client:
            client.report([reading])
        for client_id, spoil in enumerate([0, 1, 2, 6, 30, -1], 2):
            with Hand(server.address, min(client_id, 5)).shake_hands() as hand:
                sealed = bytearray(hand.session.seal(ClientData([reading])))
                sealed[spoil] ^= 0x20
                hand.send(bytes(sealed))
                hand.receive()
        with Hand(server.address, 5).shake_hands() as hand:
            hand.send(reseal(hand.session, Opcode.CLIENT_DATA, bytes(16) + b"[7351942.625,x]"))
            hand.receive()
        with Hand(server.address, 77, b"k" * 16) as stranger:
            stranger.hello()
            assert stranger.is_closed_silently()
        with Hand(server.address, 4).shake_hands() as slow:
            slow.socket.sendall(b"\x00")
            slow.receive()
        journal.wait("end", count=10)
    text = caplog.text + "".join(capsys.readouterr())
    assert len(keys) > 40
    for key in keys:
        for shown in (key.hex(), key.hex().upper(), repr(key)[2:-1], str(list(key))[1:-1]):
            assert shown not in text
    debug = [record for record in caplog.records if record.levelno == logging.DEBUG]
    told = [record for record in caplog.records if "7351942" in record.getMessage()]
    assert told, "client 1's report is shown with --verbose"
    assert set(told) <= set(debug)
    assert all("7351942" not in str(record.detail) for record in journal.of("end"))


def test_a_hello_has_its_number_before_the_client_hears_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a client that reports at once could be established in another order than it spoke."""
    may_go_on = threading.Event()
    real = Server.number_hello

    def number_late(server: Server, member: Member) -> None:
        assert may_go_on.wait(PATIENCE_S)
        real(server, member)

    monkeypatch.setattr(Server, "number_hello", number_late)
    with serving() as (server, _), Hand(server.address, 1) as hand:
        hand.hello()
        hand.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            hand.socket.recv(1)
        may_go_on.set()
        hand.socket.settimeout(PATIENCE_S)
        assert hand.open() == ServerChallenge()


def test_every_flag_of_a_limit_reaches_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Limits] = []

    class Made(Exception):
        pass

    def make(keys: object, host: str, port: int, limits: Limits, **_: object) -> None:
        made.append(limits)
        raise Made

    monkeypatch.setattr("server.Server", make)
    fields = dataclasses.fields(Limits)
    for number, field in enumerate(fields):
        flag = "--" + field.name.removesuffix("_s").replace("_", "-")
        monkeypatch.setattr(sys, "argv", ["server.py", flag, str(number + 2)])
        with pytest.raises(Made):
            server_main()
        assert made.pop() == dataclasses.replace(Limits(), **{field.name: number + 2})
    monkeypatch.setattr(sys, "argv", ["server.py", "--window", "0.5", "--patient"])
    with pytest.raises(Made):
        server_main()
    assert made.pop() == Limits(0.5, math.inf, math.inf, math.inf)
    monkeypatch.setattr(sys, "argv", ["server.py", "--max-strangers", "1.5"])
    with pytest.raises(UserError, match="not a whole number"):
        server_main()


@pytest.mark.usefixtures("kept_signals")
@pytest.mark.parametrize("flags", [[], ["--verbose"], ["--keys"]], ids=" ".join)
def test_the_program_serves_until_it_is_told_to_stop(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    flags: list[str],
) -> None:
    generate_keys(tmp_path / "keys", [1])
    words = [*flags, *([str(tmp_path / "keys" / "server.keys")] if flags == ["--keys"] else [])]
    done: list[object] = []

    def pause(seconds: float) -> None:
        done.append(seconds)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sys, "argv", ["server.py", "--port", "0", *words])
    monkeypatch.setattr("server.time", SimpleNamespace(monotonic=time.monotonic, sleep=pause))
    monkeypatch.setattr("server.start_log", lambda level, _: done.append(level))
    monkeypatch.setattr("server.Lines.drain", lambda _: done.append("drained"))
    enter = Server.__enter__

    def entered(server: Server) -> Server:
        done.append(server._record)
        return enter(server)

    monkeypatch.setattr(Server, "__enter__", entered)
    assert server_main() == 0
    told = ["DEBUG", log_record] if flags == ["--verbose"] else ["INFO", None]
    assert done == [*told, POLL_S, "drained"]
    listening, *summary = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"listening on 127\.0\.0\.1:\d+", listening)
    assert summary == ["client  sessions  reports", "strangers: none"]
    assert (DEMO_WARNING in caplog.messages) == (flags != ["--keys"])


def test_the_program_writes_keys_for_five_clients_or_those_that_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for words, count in (([], 5), (["--ids", "7"], 1)):
        where = str(tmp_path / str(count))
        monkeypatch.setattr(sys, "argv", ["server.py", "--generate-keys", where, *words])
        assert server_main() == 0
        assert capsys.readouterr().out == f"wrote server.keys and {count} client keys to {where}\n"
        assert len([*Path(where).iterdir()]) == count + 1
    monkeypatch.setattr(sys, "argv", ["server.py", "--ids", "7"])
    with pytest.raises(UserError, match="--ids goes with --generate-keys"):
        server_main()


def test_the_decoy_key_is_drawn_whole_from_the_operating_system(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(secrets, "token_bytes", lambda length: b"\xd5" * length)
    server = Server({1: DEMO_KEYS[1]}, port=0)
    expected = Session(9, b"\xd5" * 32, Direction.S2C).fingerprints()
    assert server.session_for(9).fingerprints() == expected
    server.__exit__()


def test_closing_a_server_waits_until_every_client_is_told() -> None:
    with serving() as (server, _), contextlib.ExitStack() as hands:
        for client_id in DEMO_KEYS:
            hands.enter_context(Hand(server.address, client_id).shake_hands())
        threads = [*server._threads]
        assert len(threads) == len(DEMO_KEYS)
        server.__exit__()
        assert not any(thread.is_alive() for thread in threads)


@pytest.mark.slow
def test_closing_a_server_does_not_wait_for_a_stuck_thread() -> None:
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


# Recordings


def accepted_readings(journal: Journal) -> list[list[float]]:
    return [
        [*record.detail.readings]
        for record in journal.of("report")
        if isinstance(record.detail, Contribution)
    ]


def recorded_session(server: Server) -> tuple[list[bytes], list[bytes]]:
    """Return what client 1 sent and received in a whole session of two rounds."""
    with Hand(server.address, 1).shake_hands() as hand:
        for _ in range(2):
            hand.report([100])
            hand.open()
        hand.send(hand.session.seal(GOODBYE))
        assert hand.last_opcode() is None
    return hand.sent, hand.received


def test_a_whole_recorded_session_is_worthless_beside_the_live_one() -> None:
    with serving(window_s=60) as (server, journal):
        sent, _ = recorded_session(server)
        with client_for(server, 1) as live:
            assert live.report([1])["sum"] == 1
            with Wire(server.address) as replay:
                for message in sent:
                    with contextlib.suppress(OSError):
                        replay.send(message)
                assert replay.last_opcode() == Opcode.TERMINATE
            assert isinstance(reason(journal, 1, 1), BadTag)
            assert live.report([2])["sum"] == 2
        readings = accepted_readings(journal)
        assert readings == [[100.0], [100.0], [1.0], [2.0]]


def test_a_replayed_hello_gets_a_challenge_and_displaces_nobody() -> None:
    with serving(window_s=60) as (server, journal):
        sent, _ = recorded_session(server)
        with client_for(server, 1) as live:
            live.report([1])
            server.limits = dataclasses.replace(server.limits, stranger_timeout_s=0.5)
            with Wire(server.address) as replay:
                replay.send(sent[0])
                assert replay.receive()[0] == Opcode.SERVER_CHALLENGE
                assert live.report([2])["sum"] == 2
                assert replay.last_opcode() == Opcode.TERMINATE
            assert isinstance(reason(journal, 1, 1), DeadlineExpired)
            assert live.report([3])["sum"] == 3


def test_recorded_server_bytes_are_not_believed_by_a_client() -> None:
    with serving() as (server, _):
        _, received = recorded_session(server)
    with socket.create_server(("127.0.0.1", 0)) as posing:

        def pose() -> None:
            connection, _ = posing.accept()
            with connection:
                for message in received:
                    with contextlib.suppress(OSError):
                        connection.sendall(len(message).to_bytes(2, "big") + message)
                while connection.recv(65_536):
                    pass

        def believe() -> None:
            with Client(1, DEMO_KEYS, *posing.getsockname()):
                pass

        error, _ = at_once(believe, pose)
    assert type(error).__name__ == "EchoMismatch"


def test_a_held_report_does_not_evict_the_client_that_reconnected() -> None:
    with serving(window_s=60) as (server, journal):
        held = Hand(server.address, 1).shake_hands()
        report = held.session.seal(ClientData([100]))  # an adversary holds this back
        with client_for(server, 1) as live:
            assert live.report([1])["sum"] == 1
            held.send(report)
            assert held.last_opcode() == Opcode.TERMINATE
            ended = reason(journal, 1)
            assert isinstance(ended, EndRequested)
            assert ended.status is Status.REPLACED
            assert live.report([2])["sum"] == 2
        reason(journal, 1, 1)
        held.socket.close()
        readings = accepted_readings(journal)
        assert readings == [[1.0], [2.0]]
        late = Hand(server.address, 1).shake_hands()
        late.report([5])
        assert late.answer()["sum"] == 5
        late.socket.close()


def test_a_cut_connection_is_said_to_be_cut_at_both_ends() -> None:
    with serving() as (server, journal):
        client = client_for(server, 1)
        with client:
            client.report([1])
            client.channel._sock.shutdown(socket.SHUT_RDWR)
            with pytest.raises(ConnectionCut):
                client.report([2])
        assert isinstance(reason(journal, 1), ConnectionCut)


def test_sessions_of_one_server_never_share_keys() -> None:
    with serving() as (server, _):
        names = set()
        for _ in range(3):
            with client_for(server, 1) as client:
                names |= set(client.session.fingerprints().values())
    assert len(names) == 12


# Defects of ours, and of what instructors put in


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # closed unasked
def test_a_session_that_cannot_be_made_ends_neither_the_server_nor_anybody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.log.log", lambda *words: None)  # which would keep the connection
    wanted = [RuntimeError("once"), NotImplementedError("a student's stub")]

    def new_session(*arguments: Any) -> Session:
        if server._roster.members and wanted:
            raise wanted.pop()
        return Session(*arguments)

    with Server(DEMO_KEYS, port=0, new_session=new_session) as server:
        with client_for(server, 1) as client:
            assert client.report([1])["sum"] == 1
            with Wire(server.address), Wire(server.address), client_for(server, 2) as newcomer:
                assert newcomer.session.state is State.REPORT
                assert not wanted  # connections are accepted one after the other
            assert client.report([2])["sum"] == 2


def test_a_record_that_raises_keeps_no_farewell_back() -> None:
    def record(seen: Any) -> None:
        if seen.what == "end":
            raise ValueError("of an instructor's function")

    def thread_died(args: Any) -> None:
        died.append(args.exc_type)

    died: list[type[BaseException]] = []
    usual = threading.excepthook
    threading.excepthook = thread_died
    try:
        with Server(DEMO_KEYS, port=0, record=record) as server, Hand(server.address) as first:
            first.shake_hands().report()
            first.open()
            with client_for(server, 1) as second:
                second.report([1])
                assert terminated(first.session, first.receive())[1] is Status.REPLACED
    finally:
        threading.excepthook = usual
    assert died == [ValueError] * 2


# Faults of the network


@pytest.mark.parametrize("place", ["stranger", "bound", "established"])
def test_a_reset_inside_a_frame_is_a_cut_and_disturbs_no_other_client(place: str) -> None:
    with serving(window_s=60) as (server, journal), client_for(server, 5) as bystander:
        hand = Hand(server.address, 1)
        if place != "stranger":
            hand.shake_hands()
        if place == "established":
            hand.report()
            hand.open()
        hand.socket.sendall(b"\x00\x57\x0a\x01\x00")
        hand.reset()
        error = journal.wait("end")[0].detail
        assert isinstance(error, ConnectionCut)
        assert error.mid_frame or os.name != "posix"  # Windows forgets what came before a reset
        assert bystander.report([3])["participants"] == [5]


def test_a_client_that_half_closes_still_gets_its_answer() -> None:
    with serving(window_s=60) as (server, journal), client_for(server, 5) as other:
        other.report([0])
        with Hand(server.address, 1).shake_hands() as half:
            half.report([7])
            half.socket.shutdown(socket.SHUT_WR)
            journal.wait("report", 1)
            assert other.report([1])["sum"] == 8
            assert half.answer()["sum"] == 8
            assert half.is_closed_silently()
        error = journal.wait("end", 1)[0].detail
        assert isinstance(error, ConnectionCut)
        assert not error.mid_frame


def flood_of_reports(hand: Hand, limit_s: float) -> bool:
    """Report on and on and never read an answer; tell whether the server has ended it in time."""
    deadline = time.monotonic() + limit_s
    hand.socket.settimeout(0.2)
    with contextlib.suppress(OSError):
        while time.monotonic() < deadline:
            message = hand.session.seal(ClientData([1]))
            hand.session.fsm.state = State.REPORT  # as if the answer had been read
            hand.session.fsm.round_number += 1
            pending = len(message).to_bytes(2, "big") + message
            while pending and time.monotonic() < deadline:
                with contextlib.suppress(TimeoutError):
                    pending = pending[hand.socket.send(pending) :]
    return time.monotonic() < deadline


@pytest.mark.slow
def test_a_client_that_never_reads_blocks_no_other_and_is_cut() -> None:
    """Answers of 60,000 bytes fill what the system keeps for it, and then the server cannot go on.

    Others wait for it once, for a window, as for anybody who misses an epoch.
    """
    window_s = 0.5
    with (
        serving(lambda c: {"text": "x" * 60_000 if 1 in c else ""}, window_s=window_s) as (
            server,
            journal,
        ),
        client_for(server, 5) as other,
        Hand(server.address, 1).shake_hands() as deaf,
    ):
        given_up = threading.Event()

        def report_until_given_up() -> list[float]:
            waits = []
            while not given_up.is_set():
                began = time.monotonic()
                other.report([1])
                waits.append(time.monotonic() - began)
            return waits

        def be_deaf() -> bool:
            try:
                return flood_of_reports(deaf, 20.0)
            finally:
                journal.wait("end", 1)
                given_up.set()

        waits, ended = at_once(report_until_given_up, be_deaf)
        assert ended is True
        assert isinstance(waits, list), waits
        assert max(waits) < window_s + 1.0
        assert statistics.median(waits) < window_s / 2, "rounds go on while the server is stuck"
        assert isinstance(journal.of("end", 1)[0].detail, ConnectionCut)


# Faults of the system


@pytest.mark.parametrize("what", ["descriptors", "memory", "threads"])
def test_a_lack_of_descriptors_memory_or_threads_is_logged_once_and_passes(
    what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lacks = {
        "descriptors": OSError(errno.EMFILE, "too many"),
        "memory": MemoryError("too little"),
        "threads": RuntimeError("can't start new thread"),
    }
    left = [0]
    attempts: list[float] = []
    start = threading.Thread.start

    def maybe_fail() -> None:
        if left[0]:
            left[0] -= 1
            attempts.append(time.monotonic())
            raise lacks[what]

    class Listener:
        def accept(self) -> object:
            if what != "threads":
                maybe_fail()
            return real.accept()

        def close(self) -> None:
            real.close()

    def start_member(thread: threading.Thread) -> None:
        if "(run)" in thread.name and what == "threads":
            maybe_fail()
        start(thread)

    monkeypatch.setattr("server.POLL_S", 0.05)
    monkeypatch.setattr(threading.Thread, "start", start_member)
    with serving() as (server, journal):
        real = server._listener
        server._listener = Listener()  # type: ignore[assignment]
        for lack in (1, 2):
            attempts.clear()
            left[0] = 4
            with contextlib.ExitStack() as stack:
                # of threads each lacks one, of descriptors the first lacks all
                wires = [stack.enter_context(Wire(server.address)) for _ in range(4)]
                wait_until(lambda: not left[0])
                assert what != "threads" or all(wire.is_closed_silently() for wire in wires)
            assert min(b - a for a, b in itertools.pairwise(attempts)) > 0.025, "it spins"
            with client_for(server, 1) as client:
                assert client.report([lack])["sum"] == lack
            journal.wait("end", 1, lack)
    errors = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert [str(lacks[what]) in r.getMessage() for r in errors] == [True, True]


@pytest.mark.slow
def test_setting_the_wall_clock_changes_no_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = time.time
    leaps = itertools.cycle([-1e9, 1e9, 0.0, 3_600.0, -3_600.0])
    monkeypatch.setattr(time, "time", lambda: real() + next(leaps))
    with (
        serving(window_s=0.3, stranger_timeout_s=0.5, frame_timeout_s=0.3) as (server, journal),
        client_for(server, 1) as client,
        client_for(server, 2) as slow,
    ):
        slow.report([1])
        client.report([1])
        began = time.monotonic()
        with Wire(server.address) as stranger:
            assert stranger.is_closed_silently()
        assert 0.4 < time.monotonic() - began < PATIENCE_S / 2
        for value in (2, 3):
            assert client.report([value])["sum"] == value
        journal.wait("epoch", 0, 4)
