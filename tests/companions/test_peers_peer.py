"""What a node does about its one peer, tested on two that are joined by queues: an hour costs
nothing here, and a test may lose, hold, repeat or reorder whatever is on its way.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from random import Random, randrange

import pytest

from companions.asymmetric import PrivateKey
from companions.peer_messaging.identity import (
    IdentityChanged,
    Trust,
    UnknownPeer,
    UnusableKey,
)
from companions.peer_messaging.peer import Event, Limits, Peer
from companions.peer_messaging.protocol import (
    BadShare,
    BadSignature,
    Kind,
    Message,
    MessageLost,
    Outlived,
    PeerAway,
    PeerLeft,
    Reason,
    Replayed,
    Role,
    Session,
    State,
    UnexpectedKind,
    Untimely,
    WrongAnswer,
    WrongSession,
)
from protocol_fsm import BadPayload, BadTag, LocalError, MalformedMessage, WrongPeer
from tests.companions.helpers import flipped
from tests.companions.peers_helpers import Link, NOW, World, forge, introduce, snapshot
from tests.sessions import clone, error_of


@pytest.fixture(scope="module")
def world(keys: Sequence[PrivateKey]) -> World:
    return World(keys)


@pytest.fixture
def link(world: World) -> Link:
    """Alice, who is node 0 and goes first if both begin, and Bob, who is node 1."""
    return Link(world.alice, world.bob)


def knows(peer: Peer) -> dict[str, object]:
    """Return all that a node knows, to be compared later."""
    known: dict[str, object] = {
        name: list(value) if isinstance(value, dict) else value
        for name, value in vars(peer).items()
    }
    for name in ("_session", "_pending"):
        if session := vars(peer)[name]:
            known[name + " knows"] = snapshot(session)
    return {**known, "_waiting": list(peer._waiting), "pinned": peer.trust.pinned}


# Two nodes meet -----------------------------------------------------------------------------------


def test_the_limits_are_those_of_the_document() -> None:
    assert Limits() == Limits(
        window_s=30.0,
        ping_s=2.0,
        away_s=6.0,
        hello_s=1.0,
        handshake_s=5.0,
        lifetime_s=3_600.0,
        max_waiting=100,
        max_under_way=100,
        hellos=3,
    )


@pytest.mark.parametrize("begins", [0, 1])
def test_one_begins_and_both_are_in_one_session(link: Link, begins: int) -> None:
    link.tick(begins)
    link.carry()
    assert [Kind(message[0]) for _, message in link.sent] == [
        Kind.HELLO,
        Kind.REPLY,
        Kind.CONFIRM,
        Kind.WELCOME,
    ]
    assert link.is_one_session()
    assert link.open_session(begins).role is Role.INITIATOR
    for n, peer in ((0, 1), (1, 0)):
        assert link.told[n] == [Event("met", link.people[peer].fingerprint, 0)]


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("is_turned", [False, True])
@pytest.mark.parametrize("ticks_between", [0, 1, 3])
def test_if_both_begin_at_once_the_lower_fingerprint_goes_first(
    world: World, first: int, is_turned: bool, ticks_between: int
) -> None:
    people = (world.bob, world.alice) if is_turned else (world.alice, world.bob)
    link = Link(*people)
    link.tick(first)
    link.tick(1 - first)
    assert link.kinds(0) == link.kinds(1) == [Kind.HELLO]
    link.deliver(first)
    for _ in range(ticks_between):
        link.tick(0)
        link.tick(1)
    link.carry()
    assert link.is_one_session()
    assert link.open_session(int(is_turned)).role is Role.INITIATOR


def test_whose_hello_got_lost_says_it_again_when_the_peer_begins(link: Link) -> None:
    """And soon, not after the whole pause: the peer is there, and waits for it."""
    link.lost[0, Kind.HELLO] = 4
    for _ in range(4):
        link.tick(0)
        link.time.now += 8
    link.tick(1)
    link.time.now -= 7.9  # it would be silent for a while yet
    link.carry()
    link.tick(0)
    assert link.kinds(1) == [], "it may have been on its way, and the REPLY too"
    link.time.now += 0.25
    link.tick(0)
    assert link.kinds(1) == [Kind.HELLO]
    link.carry()
    assert link.is_one_session()


def test_no_hello_of_the_peers_puts_ours_off(world: World, link: Link) -> None:
    """However often it says one, ours comes a quarter of a second after its first."""
    link.tick(0)
    link.wires[1].clear()
    for seconds in (0.125, 0.25, 0.3725, 0.375):
        link.time.now = seconds
        link.deliver(0, introduce(world.bob))
        assert link.kinds(1) == []
        link.tick(0)
    assert link.kinds(1) == [Kind.HELLO]


def test_when_the_peer_begins_our_own_pauses_begin_anew(world: World, link: Link) -> None:
    for seconds in (0, 1, 3, 7):
        link.time.now = seconds
        assert len(link.peers[0].tick()) == 1
    link.deliver(0, introduce(world.bob))
    assert trace(link, 0, 4) == [(0.25, Kind.HELLO), (1.25, Kind.HELLO), (3.25, Kind.HELLO)]


def test_the_first_contact_is_told_once(world: World) -> None:
    link = Link(world.alice, world.bob, first_use=True).meet()
    for n in (0, 1):
        assert link.told[n] == [Event("met", link.people[1 - n].fingerprint, 1)]
        assert link.trusts[n].pinned == link.people[1 - n].fingerprint
    for n in (0, 1):
        link.restart(n)
        link.tick(n)
        link.carry()
        assert link.told[n][-1] == Event("met", link.people[1 - n].fingerprint, 0)


def test_nobody_is_pinned_before_the_keys_are_shown(world: World) -> None:
    """A HELLO, and even a REPLY, can come from whoever has a key of any sort."""
    link = Link(world.alice, world.bob, first_use=True)
    link.tick(0)
    link.deliver(1)
    link.deliver(0)
    assert link.kinds(1) == [Kind.CONFIRM]
    assert [trust.pinned for trust in link.trusts] == ["", ""]
    link.deliver(1)
    assert [trust.pinned for trust in link.trusts] == ["", world.alice.fingerprint]


# Texts --------------------------------------------------------------------------------------------


def test_texts_and_receipts_have_our_own_numbers(link: Link) -> None:
    link.meet()
    for number, text in enumerate(("one", "zwei ü", "三"), 1):
        link.say(0, text)
        assert link.told[0][-1] == Event("sent", text, number)
        link.carry()
        assert link.told[0][-1] == Event("receipt", number=number)
        assert link.told[1][-1] == Event("text", text, number)
    link.say(1, "back")
    link.carry()
    assert link.told[1][-2:] == [Event("sent", "back", 1), Event("receipt", number=1)]
    assert link.told[0][-1] == Event("text", "back", 4)  # of the session: WELCOME was its 0


def test_receipts_belong_to_their_texts_in_whatever_order_they_were_said(link: Link) -> None:
    link.meet()
    link.say(0, "a")
    link.time.now += 2.0
    link.tick(0)  # a PING takes a number of the session, and none of the texts
    link.say(0, "b")
    link.carry()
    assert link.told[0][-4:] == [
        Event("sent", "a", 1),
        Event("sent", "b", 2),
        Event("receipt", number=1),
        Event("receipt", number=2),
    ]


@pytest.mark.parametrize("n", [0, 1])
def test_texts_wait_for_a_session(link: Link, n: int) -> None:
    for text in "abc":
        link.say(n, text)
    assert not any(link.wires)
    assert link.told[n] == []
    link.meet()
    assert link.texts_of(1 - n) == [*"abc"]
    assert [event.number for event in link.events(n, "receipt")] == [1, 2, 3]


def test_not_too_many_texts_wait(world: World) -> None:
    link = Link(world.alice, world.bob, Limits(max_waiting=3))
    for text in "abc":
        link.say(0, text)
    for _ in range(2):
        with pytest.raises(LocalError, match="3 texts are waiting already"):
            link.say(0, "d")
    link.meet()
    for text in "defgh":  # which need not wait
        link.say(0, text)
    link.carry()
    assert link.texts_of(1) == [*"abcdefgh"]
    assert [event.number for event in link.events(0, "receipt")] == [*range(1, 9)]


def test_of_many_texts_100_are_under_way_and_each_receipt_lets_the_next_go(link: Link) -> None:
    link.meet()
    for number in range(200):
        link.say(0, f"text {number}")
    with pytest.raises(LocalError, match="100 texts are waiting already"):
        link.say(0, "one too many")
    link.time.now = 1.0
    link.tick(0)
    assert link.kinds(1) == [Kind.TEXT] * 100
    for _ in range(100):
        link.deliver(1)
        assert link.kinds(0) == [Kind.RECEIPT]
        assert len(link.wires[1]) == 99
        link.deliver(0)
        assert len(link.wires[1]) == 100
    link.carry()
    assert link.texts_of(1) == [f"text {number}" for number in range(200)]
    assert [event.number for event in link.events(0, "receipt")] == [*range(1, 201)]


@pytest.mark.parametrize("text", ["", "x" * 4_097, "ü" * 2_049, "\ud800", "half \udfff"])
def test_what_is_no_text_is_not_kept(link: Link, text: str) -> None:
    before = knows(link.peers[0])
    with pytest.raises(LocalError, match="text"):
        link.say(0, text)
    assert knows(link.peers[0]) == before
    link.meet()
    with pytest.raises(LocalError, match="text"):
        link.say(0, text)
    assert link.is_one_session()


@pytest.mark.parametrize("text", ["x", "x" * 4_096, "ü" * 2_048, "\0"])
def test_a_text_has_1_to_4096_bytes(link: Link, text: str) -> None:
    link.meet().say(0, text)
    link.carry()
    assert link.texts_of(1) == [text]


def test_of_a_text_that_got_lost_we_hear_that_nothing_is_known(link: Link) -> None:
    link.meet()
    link.say(0, "arrives")
    link.carry()
    link.lost[0, Kind.TEXT] = 1
    link.say(0, "gets lost")
    link.wait(1)
    assert [event.number for event in link.events(0, "unconfirmed")] == []
    link.say(0, "comes too soon")
    link.wait(1)
    assert [event.number for event in link.events(0, "receipt")] == [1]
    assert [event.number for event in link.events(0, "unconfirmed")] == [2, 3]
    assert link.texts_of(1) == ["arrives"]
    assert link.errors(1, "ended") == [MessageLost]
    ended = link.events(0, "ended")[0].error
    assert isinstance(ended, PeerLeft)
    assert ended.reason is Reason.VIOLATION
    link.say(0, "arrives again")
    link.wait(1)
    assert link.is_one_session()
    assert link.texts_of(1) == ["arrives", "arrives again"]
    link.put(0, link.peers[0].leave())
    assert len(link.events(0, "unconfirmed")) == 2, "it is told once"


# What gets lost in a handshake --------------------------------------------------------------------


@pytest.mark.parametrize("ticking", [[0], [0, 1]])
@pytest.mark.parametrize(
    ("sender", "kind", "within_s"),
    [
        (0, Kind.HELLO, 1.25),
        (1, Kind.REPLY, 1.25),
        (0, Kind.CONFIRM, 5.25),
        (1, Kind.WELCOME, 5.25),
    ],
)
def test_whatever_got_lost_they_meet_by_themselves(
    link: Link, sender: int, kind: Kind, within_s: float, ticking: list[int]
) -> None:
    link.ticking = ticking
    link.lost[sender, kind] = 1
    link.say(0, "from Alice")
    link.tick(0)
    link.carry()
    assert not link.is_one_session()
    link.wait(within_s)
    link.say(1, "from Bob")
    link.wait(1)
    assert link.is_one_session()
    assert (link.texts_of(1), link.texts_of(0)) == (["from Alice"], ["from Bob"])


def test_a_handshake_that_goes_on_is_left_alone(link: Link) -> None:
    link.time.now = 10.0
    link.tick(0)
    link.deliver(1)
    link.deliver(0)
    link.time.now += 4.5
    for n in (0, 1):
        assert link.peers[n].tick() == []
    link.carry()
    assert link.is_one_session()
    assert len([1 for _, message in link.sent if message[0] == Kind.HELLO]) == 1


def test_hellos_become_rare_while_nobody_answers(world: World) -> None:
    link = Link(world.alice, world.bob, Limits(hello_s=0.5))
    said = []
    while link.time.now < 40:
        said += [link.time.now for message in link.peers[0].tick() if message[0] == 1]
        link.time.now += 0.25
    assert said == [0, 0.5, 1.5, *(3.5 + 4 * number for number in range(10))]
    link.wait(8)
    assert link.is_one_session()
    link.restart(1)
    link.peers[1].tick()
    for _ in range(24):  # until the HELLO that comes with the end of the session
        if link.peers[0].session:
            link.time.now += 0.25
            link.peers[0].tick()
    assert link.peers[0].session is None
    began = link.time.now
    said = []
    while link.time.now < began + 4:
        link.time.now += 0.25
        said += [link.time.now - began for message in link.peers[0].tick() if message[0] == 1]
    assert said == [0.5, 1.5, 3.5], "after a session they begin anew"


def test_hellos_that_nobody_answers_are_told_once_an_absence(link: Link) -> None:
    """Ports swapped the wrong way look just like this, and nothing else says so."""
    for absence in (1, 2):
        link.told[0].clear()
        began = link.time.now
        told = []
        while link.time.now < began + 40:
            link.peers[0].tick()
            told += [link.time.now - began] * len(link.told[0])
            assert link.told[0] in ([], [Event("unanswered", number=3)])
            link.told[0].clear()
            link.time.now += 0.25
        assert told == [7], absence  # with the fourth HELLO, after 0, 1 and 3 s
        link.wait(8)
        assert link.is_one_session()
        link.restart(0)


def test_a_hello_that_was_answered_was_not_in_vain(link: Link) -> None:
    """Even if the handshake then fails: somebody is there."""
    for _ in range(6):
        link.tick(0)
        link.carry_until(1, Kind.REPLY)
        link.deliver(0)
        link.wires[1].clear()  # the CONFIRM
        link.time.now += 9
    for _ in range(link.limits.hellos):
        link.tick(0)
        link.time.now += 9
    assert "unanswered" not in {event.what for event in link.told[0]}


def test_a_hello_before_a_session_was_not_in_vain(link: Link) -> None:
    for _ in range(link.limits.hellos):
        link.tick(1)
        link.time.now += 9
    link.wires[0].clear()
    link.meet()
    link.put(0, link.peers[0].leave())
    link.carry()
    for _ in range(link.limits.hellos):
        link.tick(1)
        link.time.now += 9
    assert link.events(1, "unanswered") == []


def test_a_hello_that_no_open_session_needs_was_not_in_vain(world: World) -> None:
    link = Link(world.alice, world.bob, Limits(away_s=10**9, ping_s=10**9)).meet()
    for number in range(5):
        link.time.now = 3_600 + 9 * number
        assert [Kind(message[0]) for message in link.peers[0].tick()] == [Kind.HELLO]
    assert link.events(0, "unanswered") == []


@pytest.mark.parametrize("stops_after", [Kind.REPLY, Kind.CONFIRM])
def test_a_handshake_has_5_s(link: Link, stops_after: Kind) -> None:
    """Whoever began it can begin another, and whoever answered forgets it."""
    link.tick(0)
    link.carry_until(int(stops_after is Kind.REPLY), stops_after)
    if stops_after is Kind.REPLY:
        link.deliver(0)
    link.wires[1].clear()  # CONFIRM
    peers = link.peers
    for n in (0, 1):
        pending = peers[n]._pending
        assert pending
        link.time.now = 4.999
        link.put(n, peers[n].tick())
        assert peers[n]._pending is pending
        link.time.now = 5.0
        link.put(n, peers[n].tick())
        assert peers[n]._pending is not pending
        link.time.now = 0.0
    assert link.kinds(0) == link.kinds(1) == [Kind.HELLO]


def test_a_reply_to_an_earlier_hello_is_refused_and_the_next_is_not(link: Link) -> None:
    link.tick(0)
    link.deliver(1)
    link.time.now += 1
    link.tick(0)
    link.carry()
    assert link.errors(0) == [WrongAnswer]
    assert link.is_one_session()


# HELLOs that are none -----------------------------------------------------------------------------


def test_a_replayed_hello_is_not_answered(link: Link) -> None:
    link.meet()
    hello = link.sent[0][1]
    session = link.open_session(1)
    for seconds in (0, 29.9, 30, 59.9):
        link.time.now = seconds
        link.deliver(1, hello)
        assert link.errors(1)[-1] is Replayed
    link.time.now = 60.1
    link.deliver(1, hello)
    assert link.errors(1)[-1] is Untimely
    assert not any(link.wires)
    assert link.peers[1]._hellos == {}, "and nobody remembers it for ever"
    assert link.peers[1].session is session


@pytest.mark.parametrize("ahead_s", [-30, 0, 30])
def test_no_hello_is_good_twice_however_its_clock_is_off(
    world: World, link: Link, ahead_s: int
) -> None:
    hello = introduce(world.alice, at_s=NOW + ahead_s)
    link.deliver(1, hello)
    assert link.kinds(0) == [Kind.REPLY]
    for tenth in range(1, 900):
        link.time.now = tenth / 10
        link.deliver(1, hello)
    assert link.kinds(0) == [Kind.REPLY]


def test_hellos_are_forgotten_when_they_are_too_old_and_no_sooner(world: World, link: Link) -> None:
    for seconds in (0.0, 10.0, 20.0, 30.0):
        link.time.now = seconds
        link.deliver(1, introduce(world.alice, at_s=NOW + seconds))
    known = [*link.peers[1]._hellos]
    assert len(known) == 4
    for seconds, forgotten in ((60, 0), (60.5, 1), (70, 1), (80.5, 3), (90.5, 4)):
        link.time.now = seconds
        link.deliver(1, bytes([Kind.HELLO]))  # whatever comes
        assert [*link.peers[1]._hellos] == known[forgotten:]


def test_a_stale_hello_is_not_answered(link: Link) -> None:
    link.put(0, link.peers[0].tick())
    link.time.now = 30.1
    link.deliver(1)
    assert link.errors(1) == [Untimely]
    assert link.peers[1]._pending is None
    assert not any(link.wires)


def test_a_hello_that_is_refused_is_not_remembered(world: World, link: Link) -> None:
    """Else anybody could fill the memory of a node, at no cost."""
    for _ in range(3):
        link.deliver(1, introduce(world.mallory))
        link.deliver(1, flipped(introduce(world.alice), 749 * 8 - 1))
    assert link.errors(1) == [IdentityChanged, BadSignature] * 3
    assert link.peers[1]._hellos == {}


def test_clocks_that_differ_too_much_never_meet_and_say_why(world: World) -> None:
    link = Link(world.alice, world.bob, Limits(window_s=2.0))
    link.skew[1] = 2.5
    link.wait(10)
    assert {*link.errors(0), *link.errors(1)} == {Untimely}
    assert link.peers[0].session is link.peers[1].session is None
    link.skew[1] = 1.5
    link.wait(10)
    assert link.is_one_session()


def test_a_hello_alone_displaces_nothing(world: World, link: Link) -> None:
    """One that a peer made elsewhere, or that was held back: whoever brings it has no keys."""
    link.meet()
    session = link.open_session(1)
    before = snapshot(session)
    link.deliver(1, introduce(world.alice))
    assert link.kinds(0) == [Kind.REPLY]
    assert (link.peers[1].session, snapshot(session)) == (session, before)
    link.carry()
    link.wait(20)
    link.say(0, "still here")
    link.carry()
    assert (link.peers[1].session, link.texts_of(1)) == (session, ["still here"])
    assert link.events(1, "ended") == []
    assert link.peers[1]._pending is None


# Whom to trust ------------------------------------------------------------------------------------


def test_somebody_else_is_refused_wherever_they_begin(world: World, link: Link) -> None:
    link.tick(0)
    hello = link.sent[0][1]
    link.deliver(0, introduce(world.mallory))
    link.deliver(0, introduce(world.mallory, Kind.REPLY, answers=hello))
    link.deliver(0, introduce(world.alice))
    assert link.errors(0) == [IdentityChanged, IdentityChanged, WrongPeer]
    link.carry()
    assert link.is_one_session()
    link.deliver(1, introduce(world.mallory))
    assert link.errors(1) == [IdentityChanged]
    assert link.is_one_session()


def test_whoever_takes_only_pinned_keys_answers_nobody_new(world: World) -> None:
    peer = Peer(
        world.alice,
        Trust("bob", first_use=False),
        clock=lambda: NOW,
        tell=(told := list[Event]()).append,
    )
    assert peer.receive(introduce(world.bob)) == []
    assert [type(event.error) for event in told] == [UnknownPeer]


def test_after_the_first_contact_another_key_is_refused(world: World) -> None:
    link = Link(world.alice, world.bob, first_use=True).meet()
    link.deliver(0, introduce(world.mallory))
    assert link.errors(0) == [IdentityChanged]
    assert link.is_one_session()


# A peer that comes back ---------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1])
def test_a_peer_that_began_again_takes_its_place_when_it_has_shown_the_keys(
    link: Link, n: int
) -> None:
    link.meet()
    old = link.open_session(n)
    other = 1 - n
    link.lost[n, Kind.TEXT] = 1
    link.say(n, "never arrives")
    link.restart(other)
    link.tick(other)
    for expected in (Kind.HELLO, Kind.CONFIRM):
        assert link.kinds(n) == [expected]
        assert link.peers[n].session is old
        assert old.state is State.OPEN
        link.deliver(n)
        if expected is Kind.HELLO:
            assert link.kinds(other) == [Kind.REPLY]
            link.deliver(other)
    assert link.open_session(n) is not old
    assert [event[:3] for event in link.told[n][-3:]] == [
        ("unconfirmed", "", 1),
        ("ended", "", 0),
        ("met", link.people[other].fingerprint, 0),
    ]
    assert link.events(n, "ended")[-1].error is None
    link.carry()
    assert link.is_one_session()


def test_who_begins_again_in_a_handshake_is_answered_at_once(link: Link) -> None:
    """Also by who would go first, had both only just begun."""
    link.tick(0)
    link.carry_until(0, Kind.CONFIRM)
    link.restart(1)
    link.tick(1)
    link.deliver(0)
    assert link.kinds(1) == [Kind.REPLY]
    link.carry()
    assert link.is_one_session()


def test_a_reply_that_nobody_waits_for_is_refused(link: Link) -> None:
    link.meet()
    link.deliver(0, next(message for _, message in link.sent if message[0] == Kind.REPLY))
    assert link.errors(0) == [UnexpectedKind]
    assert link.is_one_session()


def test_what_is_said_while_a_peer_begins_again_is_still_of_the_old_session(link: Link) -> None:
    link.meet()
    link.restart(1)
    link.tick(1)
    link.deliver(0)
    link.say(0, "to whoever you were")
    link.carry()
    assert link.errors(1) == [WrongSession]
    assert [event.number for event in link.events(0, "unconfirmed")] == [1]
    link.say(0, "to whoever you are")
    link.carry()
    assert link.texts_of(1) == ["to whoever you are"]


# Liveness -----------------------------------------------------------------------------------------


def trace(link: Link, n: int, seconds: float) -> list[tuple[float, Kind]]:
    """Let time pass for node n alone; return when it said what."""
    said = []
    began = link.time.now
    while link.time.now < began + seconds:
        link.time.now += 0.25
        said += [(link.time.now - began, Kind(message[0])) for message in link.peers[n].tick()]
    return said


@pytest.mark.parametrize("n", [0, 1])
def test_a_silent_peer_is_asked_and_then_away(link: Link, n: int) -> None:
    link.meet()
    session = link.open_session(n)
    peer = link.open_session(1 - n)
    assert trace(link, n, 5.75) == [(2, Kind.PING), (4, Kind.PING)]
    assert link.peers[n].session is session
    link.time.now = 6.0
    bye, hello = link.peers[n].tick()
    assert (hello[0], link.peers[n].session) == (1, None)
    error = link.events(n, "ended")[-1].error
    assert type(error) is PeerAway
    assert str(error) == "PeerAway: expected a word in 6 s, got none"
    twin = clone(peer)  # of the two PINGs it has heard nothing
    twin._sequence[session.role] = 2 + twin._sequence[session.role]
    assert isinstance(error_of(twin, bye), PeerLeft)


def test_who_was_met_late_was_not_silent_before(link: Link) -> None:
    link.time.now = 100.0
    link.meet()
    for n in (0, 1):
        assert link.peers[n].tick() == []
        assert link.told[n] == [Event("met", link.people[1 - n].fingerprint)]


def test_a_peer_that_answers_stays(link: Link) -> None:
    link.meet()
    session = link.peers[0].session
    link.wait(60)
    assert link.peers[0].session is session
    pings = Counter((n, message[0]) for n, message in link.sent)
    for n in (0, 1):
        assert pings[n, Kind.PING] == pings[1 - n, Kind.PONG] == 30
        assert link.told[n] == [Event("met", link.people[1 - n].fingerprint)]


def test_whoever_talks_is_not_asked(link: Link) -> None:
    link.meet()
    for _ in range(20):
        link.say(0, "x")
        link.wait(1)
    assert Kind.PING not in [message[0] for _, message in link.sent]


def test_only_what_is_accepted_counts_as_a_word(link: Link) -> None:
    """Else whoever holds the wire could keep a dead peer alive by saying old things again."""
    link.meet()
    link.say(1, "x")
    link.carry()
    old = [message for sender, message in link.sent if sender == 1]
    for _ in range(24):
        assert link.peers[0].session
        link.time.now += 0.25
        link.peers[0].tick()
        for message in old:
            link.peers[0].receive(message)
    assert link.errors(0, "ended") == [PeerAway]


def test_a_reply_is_no_word_in_the_open_session(link: Link) -> None:
    link.meet()
    link.time.now = 3_600.0
    link.peers[0]._heard = 3_600.0
    link.tick(0)
    link.deliver(1)
    link.time.now = 3_601.0
    link.deliver(0)
    assert link.kinds(1) == [Kind.CONFIRM]
    link.time.now = 3_606.0
    link.tick(0)
    assert link.errors(0, "ended") == [PeerAway]


def test_who_was_away_is_met_again_and_hears_what_waited(link: Link) -> None:
    link.meet()
    link.ticking = [0]
    link.lost = Counter({(0, kind): 10**6 for kind in Kind})
    link.wait(7)
    assert link.peers[0].session is None
    link.say(0, "are you there?")
    link.wait(20)
    link.lost.clear()
    link.ticking = [0, 1]
    link.wait(10)
    assert link.is_one_session()
    assert link.texts_of(1) == ["are you there?"]


# The next session ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_session_is_renewed_and_no_text_gets_lost(world: World) -> None:
    link = Link(world.alice, world.bob, Limits(lifetime_s=20)).meet()
    ids: list[bytes] = []
    said: list[str] = []

    def talk() -> None:
        assert link.is_one_session()
        ids.append(link.open_session(0).session_id)
        said.append(f"number {len(said)}")
        for n in (0, 1):
            link.say(n, said[-1])

    link.wait(70, each=talk)
    link.wait(1)
    assert len({*ids}) == 4
    assert Counter(ids).most_common()[1][1] == 20 / 0.25
    for n in (0, 1):
        assert link.texts_of(n) == link.texts_of(n, "sent") == said
        assert len(link.events(n, "receipt")) == len(said)
        assert link.events(n, "unconfirmed") == []
        assert [event.error for event in link.events(n, "ended")] == [None] * 3
        assert link.errors(n) == []


def test_a_session_is_renewed_by_whoever_began_it(world: World) -> None:
    for n in (0, 1):
        link = Link(world.alice, world.bob, Limits(away_s=10**9, ping_s=10**9))
        link.time.now = 10.0
        link.tick(n)
        link.carry()
        for seconds, is_time in ((3_609.9, False), (3_610, True)):
            link.time.now = seconds
            assert link.peers[1 - n].tick() == []
            link.put(n, link.peers[n].tick())
            assert link.kinds(1 - n) == [Kind.HELLO] * is_time


def test_a_session_is_renewed_when_half_of_its_numbers_are_gone(link: Link) -> None:
    link.meet()
    for n in (0, 1):
        link.open_session(n)._sequence[Role.RESPONDER] = 2**31 - 1
    old = link.peers[0].session
    link.wait(1)
    assert link.peers[0].session is old
    link.say(1, "the last one of the first half")
    link.wait(1)
    assert link.is_one_session()
    assert link.peers[0].session is not old


@pytest.mark.parametrize("n", [0, 1])
def test_a_session_whose_numbers_are_spent_ends_and_the_next_begins(link: Link, n: int) -> None:
    session = link.meet().open_session(n)
    for end in (0, 1):
        link.open_session(end)._sequence[session.role] = 2**32 - 2**16 - 1
    link.tick(n)
    link.say(n, "the last text")
    link.carry()
    assert link.peers[n].session is session
    link.tick(n)
    assert link.errors(n, "ended") == [Outlived]
    assert link.kinds(1 - n)[0] is Kind.BYE
    link.say(n, "the first text")
    link.wait(2)
    assert link.is_one_session()
    assert link.open_session(n).next_number < 10
    assert link.errors(1 - n, "ended") == [PeerLeft]
    assert link.texts_of(1 - n) == ["the last text", "the first text"]
    assert link.events(n, "unconfirmed") == []


@pytest.mark.parametrize(
    ("number", "said"), [(2**32 - 2**16, [Kind.BYE]), (2**32 - 1, [Kind.BYE]), (2**32, [])]
)
def test_not_even_the_end_of_the_numbers_is_an_error_of_our_own(
    link: Link, number: int, said: list[Kind]
) -> None:
    link.meet().open_session(0)._sequence[Role.INITIATOR] = number
    link.time.now = 3.0  # when a PING is due
    link.peers[0]._next_hello = 4.0
    link.tick(0)
    assert link.kinds(1) == said
    assert link.errors(0, "ended") == [Outlived]


def test_a_session_is_over_after_twice_its_time_if_somebody_keeps_the_next_from_beginning(
    world: World,
) -> None:
    """Whoever holds the wire, and drops every HELLO, would else keep one session for ever."""
    link = Link(world.alice, world.bob, Limits(lifetime_s=20)).meet()
    old = link.open_session(0)
    link.lost = Counter({(n, Kind.HELLO): 10**6 for n in (0, 1)})

    def talk() -> None:
        for n in (0, 1):
            link.say(n, "x")

    link.wait(39.75, each=talk)
    link.carry()
    assert link.peers[0].session is old
    assert link.is_one_session()
    assert len(link.texts_of(0)) == len(link.texts_of(1)) == 159
    link.wait(0.25)
    for n in (0, 1):
        assert link.peers[n].session is None
        assert link.errors(n, "ended") == [Outlived]
    link.wait(60)
    link.say(0, "much later")
    assert link.peers[0].session is link.peers[1].session is None
    link.lost.clear()
    link.wait(8.25)  # the longest pause
    assert link.is_one_session()
    assert link.texts_of(1)[-1] == "much later"
    assert link.errors(0, "ended") == link.errors(1, "ended") == [Outlived]


@pytest.mark.parametrize("n", [0, 1])
def test_whoever_sees_first_that_a_session_has_outlived_itself_says_so(link: Link, n: int) -> None:
    link.meet()
    link.time.now = 7_199.75
    link.peers[n]._heard = 7_199.75
    link.put(n, link.peers[n].tick())
    assert link.events(n, "ended") == []
    link.wires[1 - n].clear()
    link.time.now = 7_200.0
    link.peers[n]._heard = 7_200.0
    link.tick(n)
    assert link.errors(n, "ended") == [Outlived]
    assert (
        str(link.events(n, "ended")[0].error) == "Outlived: expected a newer session by now, "
        "got none"
    )
    assert link.kinds(1 - n)[0] is Kind.BYE
    link.carry()
    assert link.errors(1 - n, "ended") == [PeerLeft]


def test_of_spent_numbers_there_are_enough_for_all_that_is_under_way(link: Link) -> None:
    link.meet()
    for n in (0, 1):
        for role in Role:
            link.open_session(n)._sequence[role] = 2**32 - 2**16 - 1
    for number in range(200):
        for n in (0, 1):
            link.say(n, f"text {number}")
    link.carry()
    for n in (0, 1):
        assert link.open_session(n).is_spent
        assert len(link.events(n, "receipt")) == len(link.texts_of(n)) == 200
    link.put(0, link.peers[0].leave())
    assert link.kinds(1) == [Kind.BYE]
    link.open_session(1)._sequence[Role.RESPONDER] = 2**32
    assert link.peers[1].leave() == [], "it has no number for a BYE"


def test_what_is_said_while_sessions_change_is_said_in_the_new_one(link: Link) -> None:
    link.meet()
    old = link.open_session(0)
    link.jump(3_600.0)
    link.tick(0)
    link.say(0, "before the CONFIRM")
    assert link.kinds(1) == [Kind.HELLO, Kind.TEXT]
    link.deliver(1)
    link.deliver(0)
    assert link.kinds(1) == [Kind.TEXT, Kind.CONFIRM]
    link.say(0, "after the CONFIRM")
    link.tick(0)
    assert link.kinds(1) == [Kind.TEXT, Kind.CONFIRM]
    link.carry()
    assert link.is_one_session()
    new = link.open_session(0)
    assert link.texts[1] == [
        ("text", old.session_id, "before the CONFIRM"),
        ("text", new.session_id, "after the CONFIRM"),
    ]
    assert len(link.events(0, "receipt")) == 2


def test_what_is_said_while_sessions_change_waits_no_longer_than_a_handshake(link: Link) -> None:
    link.meet()
    link.time.now = 3_600
    link.peers[0]._heard = 3_600
    link.tick(0)
    link.deliver(1)
    link.deliver(0)
    link.wires[1].clear()  # the CONFIRM
    link.say(0, "after the CONFIRM")
    assert link.kinds(1) == []
    link.time.now = 3_605
    link.tick(0)
    assert Kind.TEXT in link.kinds(1)


def test_a_text_that_crosses_a_renewal_arrives_once_and_its_fate_is_told(link: Link) -> None:
    """Its receipt would come after the CONFIRM, and the keys for it are gone by then."""
    link.meet()
    link.jump(3_600.0)
    link.tick(0)
    link.deliver(1)
    link.say(1, "on its way")
    assert link.kinds(0) == [Kind.REPLY, Kind.TEXT]
    link.carry()
    assert link.is_one_session()
    assert link.texts_of(0) == ["on its way"]
    fates = [event.what for event in link.told[1] if event.number == 1]
    assert fates in (["sent", "receipt"], ["sent", "unconfirmed"])


@pytest.mark.parametrize(
    ("sender", "kind"), [(0, Kind.HELLO), (1, Kind.REPLY), (0, Kind.CONFIRM), (1, Kind.WELCOME)]
)
def test_a_renewal_that_got_lost_is_made_up_for(world: World, sender: int, kind: Kind) -> None:
    """The old session goes on until then; what was said into it too late is unconfirmed."""
    link = Link(world.alice, world.bob, Limits(lifetime_s=20)).meet()
    old = link.peers[0].session
    link.lost[sender, kind] = 1
    count = 0

    def talk() -> None:
        nonlocal count
        count += 1
        link.say(count % 2, f"number {count}")

    link.wait(40, each=talk)
    link.wait(1)
    assert link.lost[sender, kind] == 0
    assert link.is_one_session()
    assert link.peers[0].session is not old
    for n in (0, 1):
        sent = {event.text: event.number for event in link.events(n, "sent")}
        lost = {number for text, number in sent.items() if text not in link.texts_of(1 - n)}
        assert lost <= {event.number for event in link.events(n, "unconfirmed")}
        if kind is not Kind.WELCOME:  # whose sender has changed, and cannot know that we have not
            assert not lost


# How they part ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1])
def test_whoever_leaves_says_so_and_nothing_any_more(world: World, link: Link, n: int) -> None:
    link.meet()
    link.lost[n, Kind.TEXT] = 1
    link.say(n, "nobody will know")
    link.open_session(1 - n)._sequence[link.open_session(n).role] += 1  # as if it had come
    link.put(n, link.peers[n].leave())
    assert link.kinds(1 - n) == [Kind.BYE]
    assert link.told[n][-1] == Event("unconfirmed", number=1)
    link.carry()
    ended = link.events(1 - n, "ended")[-1].error
    assert isinstance(ended, PeerLeft)
    assert ended.reason is Reason.GOODBYE
    assert link.peers[n].session is None
    link.time.now += 100
    for message in (introduce(link.people[1 - n], at_s=NOW + 100), b"", bytes(50)):
        assert link.peers[n].receive(message) == []
    with pytest.raises(LocalError, match="has left"):
        link.peers[n].say("x")
    assert link.peers[n].tick() == link.peers[n].leave() == []
    assert link.told[n][-1].what == "unconfirmed"


def test_whoever_leaves_in_a_handshake_just_goes(link: Link) -> None:
    link.tick(0)
    assert link.peers[0].leave() == []
    link.carry()
    assert link.peers[0].session is link.peers[0]._pending is None
    assert not any(link.wires)


def test_who_was_left_waits_for_the_peer(link: Link) -> None:
    link.meet()
    link.put(1, link.peers[1].leave())
    link.carry()
    link.restart(1)
    link.ticking = [0]
    link.wait(2)
    assert link.is_one_session()


def renew(link: Link) -> None:
    link.jump(3_600.0)
    link.tick(0)
    link.carry()
    assert link.is_one_session()


def leave(link: Link) -> None:
    link.put(0, link.peers[0].leave())
    link.carry()


def be_away(link: Link) -> None:
    link.time.now = 6.0
    for n in (0, 1):
        link.peers[n].tick()


def violate(link: Link) -> None:
    link.deliver(0, forge(link.open_session(1), Kind.TEXT, b"\xff"))
    link.carry()


@pytest.mark.parametrize("end", [renew, leave, be_away, violate])
def test_of_a_session_that_is_over_no_keys_are_left_whoever_keeps_it(
    link: Link, end: Callable[[Link], None]
) -> None:
    link.meet()
    kept = [link.open_session(n) for n in (0, 1)]
    prints = kept[0].fingerprints()
    record = forge(kept[1], Kind.TEXT, b"x", sequence=2)
    end(link)
    for n in (0, 1):
        assert link.peers[n].session is not kept[n]
        assert (kept[n].state, kept[n]._keys, kept[n]._shared, kept[n]._ephemeral) == (
            State.ENDED,
            {},
            b"",
            None,
        )
        assert kept[n].fingerprints() == prints
        with pytest.raises(LocalError, match="cannot be sent in ENDED"):
            kept[n].seal(Message(Kind.TEXT, b"x"))
    assert type(error_of(kept[0], record)) is WrongSession


def all_of(error: BaseException | None) -> list[BaseException]:
    """Return an error, and those that it came of."""
    return [error, *all_of(error.__context__), *all_of(error.__cause__)] if error else []


def test_an_error_that_is_told_holds_no_message_and_no_key(world: World, link: Link) -> None:
    """A traceback does: each frame has its variables, and an Event may wait for long."""
    hello = introduce(world.bob)
    link.meet()
    session = link.open_session(1)
    for junk in (
        b"",
        b"\x05",
        flipped(forge(session, Kind.PING), 40 * 8),
        hello[:-1],
        forge(session, Kind.PING, sender=Role.INITIATOR),
        link.sent[0][1],
        introduce(world.mallory),
        flipped(introduce(world.bob), 749 * 8 - 1),
        introduce(world.bob, pem=bytes(451)),
        introduce(world.bob, share=bytes(32)),
        forge(session, Kind.TEXT, b"\xff"),
    ):
        link.deliver(0, junk)
    link.carry()
    refused = link.errors(0)
    assert {BadTag, MalformedMessage, IdentityChanged, BadSignature, UnusableKey, BadShare} <= {
        *refused
    }
    assert (link.errors(0, "ended"), link.errors(1, "ended")) == ([BadPayload], [PeerLeft])
    told = [error for n in (0, 1) for event in link.told[n] for error in all_of(event.error)]
    assert len(told) >= len(refused) + 2
    assert [error for error in told if error.__traceback__] == []


VIOLATIONS = {
    "a lost record": (dict[str, float](sequence=9), Kind.PING, b"", MessageLost),
    "a record held back": (dict[str, float](ago_s=31), Kind.PING, b"", Untimely),
    "a kind of the handshake": ({}, Kind.CONFIRM, b"", UnexpectedKind),
    "no UTF-8": ({}, Kind.TEXT, b"\xff", BadPayload),
    "a receipt for nothing": ({}, Kind.RECEIPT, bytes(4), BadPayload),
}


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_what_the_peer_must_not_say_ends_the_session_for_both(link: Link, violation: str) -> None:
    options, kind, body, expected = VIOLATIONS[violation]
    link.meet()
    bad = forge(link.open_session(1), kind, body, **options)  # type: ignore[arg-type]
    link.deliver(0, bad)
    assert link.errors(0, "ended") == [expected]
    assert link.kinds(1) == [Kind.BYE]
    assert link.peers[0].session is None
    link.carry()
    ended = link.events(1, "ended")[-1].error
    assert isinstance(ended, PeerLeft)
    assert ended.reason is Reason.VIOLATION
    link.wait(2)
    assert link.is_one_session()


@pytest.mark.parametrize("is_open", [False, True])
def test_a_violation_in_a_handshake_ends_only_that(link: Link, is_open: bool) -> None:
    old = link.meet().peers[0].session if is_open else None
    began = link.time.now = 3_600.0 * is_open
    link.peers[0]._heard = began
    link.tick(0)
    link.carry_until(1, Kind.WELCOME)
    pending = link.peers[0]._pending
    assert pending
    link.deliver(0, forge(pending, Kind.TEXT, b"too soon", sender=Role.RESPONDER))
    assert link.errors(0) == [UnexpectedKind]
    assert (link.peers[0]._pending, link.peers[0].session) == (None, old)
    assert not old or old.state is State.OPEN
    assert not link.wires[1]


# Junk ---------------------------------------------------------------------------------------------

STAGES = {
    "alone": 0,
    "HELLO is said": 1,
    "REPLY is said": 2,
    "CONFIRM is said": 3,
    "open": 4,
    "open, HELLO is said": 5,
    "open, REPLY is said": 6,
    "open, CONFIRM is said": 7,
}


def at_stage(world: World, stage: int) -> Link:
    link = Link(world.alice, world.bob)
    if stage >= 4:
        link.meet()
        link.say(0, "one")
        link.say(1, "two")
        link.carry()
        link.jump(3_600.0)
        for peer in link.peers:
            peer._hellos.clear()  # which the next HELLO would do, whatever it is
    if stage % 4:
        link.tick(0)
        for n in (1, 0)[: stage % 4 - 1]:
            link.deliver(n)
    return link


def junk(link: Link, rng: Random, stranger: Link) -> list[bytes]:
    """Return what anybody could put into an inbox: old things, damaged things, things of others."""
    waiting = [*link.wires[0], *link.wires[1]]
    old = [message for _, message in link.sent if message not in waiting]
    theirs = [message for _, message in stranger.sent]
    everything = [*(message for _, message in link.sent), *theirs]
    made = [b"", b"\0", bytes(4_142), bytes(4_143), bytes(10_000), *old, *theirs]
    for kind in range(12):
        for length in (1, 29, 46, 50, 749, 781, 4_142, rng.randrange(5_000)):
            made.append(bytes([kind]) + rng.randbytes(length - 1))
    for message in everything:
        for _ in range(8):
            made.append(flipped(message, rng.randrange(8 * len(message))))
        made.append(message[: rng.randrange(len(message))])
        made.append(message + rng.randbytes(rng.randrange(1, 40)))
        other = rng.choice(everything)
        at = rng.randrange(1, min(len(message), len(other)))
        made.append(
            (message[:at] + other[at:] if message[:at] + other[at:] not in waiting else b"") + b"!"
        )
    rng.shuffle(made)
    return made


@pytest.mark.parametrize("stage", STAGES.values(), ids=[*STAGES])
@pytest.mark.parametrize("seed", range(2))
def test_no_junk_changes_anything(world: World, stage: int, seed: int) -> None:
    link = at_stage(world, stage)
    stranger = at_stage(world, 4)  # of the same two, at another time
    stranger.time.now = -100.0
    rng = Random(f"{stage} {seed}")
    for message in junk(link, rng, stranger):
        for n in (0, 1):
            # the stranger's HELLOs are good ones, if nobody has seen them
            if message in [message for _, message in stranger.sent] and message[0] == 1:
                continue
            before = knows(link.peers[n])
            assert link.peers[n].receive(message) == [], message[:30].hex()
            assert knows(link.peers[n]) == before, message[:30].hex()
    assert {*link.errors(0)} >= ({MalformedMessage, BadTag, WrongSession} if stage >= 4 else set())
    link.carry()
    link.wait(6)
    for n in (0, 1):
        link.say(n, "alive")
        link.carry()
        assert link.texts_of(1 - n)[-1] == "alive"
        assert link.errors(n, "ended") == [], "no session has ended for a reason"


def test_what_is_for_nobody_is_dropped_without_a_word(link: Link) -> None:
    for kind in (2, 3, 5, 9):
        assert link.peers[0].receive(bytes([kind]) + bytes(780)) == []
    assert link.told[0] == []


def test_a_watcher_that_fails_is_named_in_the_log_when_its_session_is_over(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(seen: object) -> None:
        raise ValueError("the disk is full")

    link = Link(world.alice, world.bob)
    link.peers[0]._new_session = partial(Session, watchers=[broken])
    link.meet().say(0, "hello")
    link.carry()
    assert link.texts_of(1) == ["hello"]
    assert not caplog.records
    link.put(0, link.peers[0].leave())
    link.carry()
    assert [record.getMessage() for record in caplog.records] == [
        "a watcher of <Session of the INITIATOR, ENDED> failed: ValueError: the disk is full"
    ]


def test_a_node_is_not_pickled(link: Link) -> None:
    with pytest.raises(TypeError):
        pickle.dumps(link.meet().peers[0])


# Whatever the wire does ---------------------------------------------------------------------------


def meddle(link: Link, rng: Random, step: int, said: list[list[str]]) -> None:
    """Let one thing happen: somebody speaks, time passes, or the wire does as it likes."""
    n = rng.randrange(2)
    roll = rng.random()
    wire = link.wires[n]
    if roll < 0.15:
        said[n].append(f"{step} of {n}")
        link.say(n, said[n][-1])
    elif roll < 0.40:
        link.time.now += rng.choice([0.05, 0.05, 0.3, 1.0])
        link.tick(n)
    elif roll < 0.43 and link.sent:
        link.deliver(n, rng.choice(link.sent)[1])  # again, or to whoever has sent it
    elif roll < 0.45 and wire:
        wire.popleft()
    elif roll < 0.47 and wire:
        wire.rotate(rng.randrange(len(wire)))
    elif roll < 0.49 and wire:
        wire.append(wire[0])
    elif wire:
        link.deliver(n)


def check_texts(link: Link) -> None:
    """What each tells as `text` is the beginning of what the other said in that session."""
    for n in (0, 1):
        sent = link.texts[1 - n]
        heard = link.texts[n]
        for session in {session for what, session, _ in heard if what == "text"}:
            came = [text for what, where, text in heard if (what, where) == ("text", session)]
            went = [text for what, where, text in sent if (what, where) == ("sent", session)]
            assert came == went[: len(came)]
        assert len({*link.texts_of(n)}) == len(link.texts_of(n)), "no text comes twice"


def check_fates(link: Link, said: list[list[str]]) -> None:
    """Texts go once and in order, and what is told of them is true."""
    for n in (0, 1):
        tried = link.texts_of(n, "sent")
        assert tried == said[n][: len(tried)], "no text overtakes another, and none goes twice"
        numbers = {event.number: event.text for event in link.events(n, "sent")}
        known = [
            event.number for what in ("receipt", "unconfirmed") for event in link.events(n, what)
        ]
        assert len({*known}) == len(known)
        for event in link.events(n, "receipt"):
            assert numbers[event.number] in link.texts_of(1 - n), "a receipt is no lie"


def live(world: World, seed: int, steps: int, restarts: float = 0.0) -> Link:
    rng = Random(seed)
    people = (world.alice, world.bob) if seed % 2 else (world.bob, world.alice)
    link = Link(*people, Limits(lifetime_s=rng.choice([8, 3_600]), max_waiting=10**6))
    said: list[list[str]] = [[], []]
    for step in range(steps):
        meddle(link, rng, step, said)
        if rng.random() < restarts:
            link.restart(rng.randrange(2))
    check_texts(link)
    for wire in link.wires:
        wire.clear()
    link.wait(25)
    assert link.is_one_session(), f"seed {seed}"
    for n in (0, 1):
        said[n].append("at last")
        link.say(n, "at last")
    link.wait(5)
    check_texts(link)
    for n in (0, 1):
        assert link.texts_of(n)[-1] == "at last"
    if not restarts:
        check_fates(link, said)
        assert [link.texts_of(n, "sent") for n in (0, 1)] == said
    return link


@pytest.mark.parametrize("seed", range(8))
def test_whatever_the_wire_does_texts_come_in_order_and_once(world: World, seed: int) -> None:
    live(world, seed, 250)


@pytest.mark.parametrize("seed", range(4))
def test_whoever_begins_again_texts_come_in_order_and_once(world: World, seed: int) -> None:
    live(world, seed, 250, restarts=0.03)


@pytest.mark.slow
def test_the_wire_did_its_worst(world: World) -> None:
    """Or the test above would show nothing: texts came, sessions ended, much was refused."""
    links = [live(world, seed, 250) for seed in range(100, 104)]
    for what in ("text", "receipt", "unconfirmed", "ended", "met", "refused"):
        assert sum(len(link.events(n, what)) for link in links for n in (0, 1)) > 4, what


@pytest.mark.slow
def test_whatever_the_wire_does_for_long(world: World) -> None:
    for _ in range(15):
        seed = randrange(10**6)
        print("seed", seed)
        live(world, seed, 1_500, restarts=0.002 * (seed % 3))
