"""secure_chat: key updates, from either end, while both go on speaking."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import reduce
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from companions.asymmetric import PrivateKey
from companions.secure_chat.client import Left, Talk, Updated, explain, tell_doubts
from companions.secure_chat.evidence import Kept
from companions.secure_chat.pins import Pins
from companions.secure_chat.pki import Expired, Identity, Revoked, Role, Trust, utc_now
from companions.secure_chat.protocol import (
    BadSignature,
    Direction,
    Kind,
    Message,
    PeerEnded,
    Session,
    State,
    chained,
    keys_of,
)
from companions.secure_chat.rooms import Said
from protocol_fsm import BadTag, DeadlineExpired, LocalError
from tests.companions.chat_helpers import ALICE, BOB, Authority
from tests.companions.chat_programs import LIMIT_S, PASSWORDS, House, hear, next_of, say
from tests.companions.chat_sessions import C2S, S2C, Pair, World, in_state, message, refusal

pytestmark = pytest.mark.usefixtures("quiet")


def update(pair: Pair) -> None:
    pair.say(C2S, message(Kind.DH_CLIENT))
    pair.say(S2C, message(Kind.DH_SERVER))


# Sessions -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_keys_of_before_are_erased_at_both_ends(world: World) -> None:
    pair = in_state(world, State.CHAT)
    name = pair.client.session_id
    for _ in range(2):
        before = {**pair.client._keys}
        update(pair)
        assert pair.client.state is pair.server.state is State.CHAT
        assert pair.client._keys == pair.server._keys
        assert not {*before.values()} & {*pair.client._keys.values()}
        for end in (pair.client, pair.server):
            assert (end._exponent, end._shared, end.session_id) == (None, b"", name)
            assert not any(repr(key) in repr(vars(end)) for key in before.values())


def test_conversation_hash_goes_on_with_the_shares_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = in_state(world, State.CHAT)
    running = reduce(chained, pair.frames, b"")
    pair.say(C2S, message(Kind.MSG))
    pair.say(S2C, message(Kind.UPDATE))
    pair.say(C2S, message(Kind.DH_CLIENT))
    pair.say(S2C, message(Kind.RELAY))
    secrets: list[bytes] = []

    def agree(value: int) -> bytes:
        secrets.append(Session._agree(pair.client, value))
        return secrets[0]

    monkeypatch.setattr(pair.client, "_agree", agree)
    pair.say(S2C, message(Kind.DH_SERVER))
    for frame in (pair.frames[-3], pair.frames[-1]):
        running = chained(running, frame)
    assert pair.client._running == pair.server._running == running
    assert pair.client._keys == keys_of(running, secrets[0])


def test_numbers_of_records_go_on_through_an_update(world: World) -> None:
    pair = in_state(world, State.CHAT)
    before = {**pair.client._number}
    update(pair)
    assert pair.client._number == {way: number + 1 for way, number in before.items()}
    assert pair.server._number == pair.client._number


def test_share_of_an_earlier_update_is_refused_even_in_a_good_record(world: World) -> None:
    pair = in_state(world, State.CHAT)
    before = pair.client._running
    update(pair)
    pair.client._running = before
    frame = pair.client.seal(message(Kind.DH_CLIENT))
    assert isinstance(refusal(pair.server, frame), BadSignature)


def test_record_under_the_keys_of_before_is_refused(world: World) -> None:
    pair = in_state(world, State.CHAT)
    before = {**pair.client._keys}
    update(pair)
    pair.client._keys = before
    assert isinstance(refusal(pair.server, pair.client.seal(message(Kind.MSG))), BadTag)


def test_client_says_nothing_between_its_share_and_the_servers(world: World) -> None:
    pair = in_state(world, State.UPDATING)
    for kind in (Kind.MSG, Kind.LEAVE, Kind.DH_CLIENT, Kind.ERROR):
        with pytest.raises(LocalError):
            pair.client.seal(message(kind))


def test_keys_are_due_after_so_many_records_of_both_directions(world: World) -> None:
    pair = Pair(world)
    for session in (pair.client, pair.server):
        session.update_every = 1
        assert not session.is_update_due
        session.update_every = 5
    pair.up_to(State.CHAT)  # with two records
    for direction, kind in ((C2S, Kind.MSG), (S2C, Kind.RELAY), (C2S, Kind.MSG)):
        assert not pair.client.is_update_due
        pair.say(direction, message(kind))
    assert pair.client.is_update_due
    assert pair.server.is_update_due
    update(pair)
    assert not pair.client.is_update_due


class Wire:
    """Alice and the server, with what is on its way; either may speak when its table lets it."""

    def __init__(self, world: World) -> None:
        pair = in_state(world, State.CHAT)
        self.ends = {C2S: pair.client, S2C: pair.server}
        self.flying: dict[Direction, deque[bytes]] = {C2S: deque(), S2C: deque()}
        self.sent: dict[Direction, list[str]] = {C2S: [], S2C: []}
        self.got: dict[Direction, list[str]] = {C2S: [], S2C: []}

    def may_say(self, direction: Direction, kind: Kind) -> bool:
        end = self.ends[direction]
        owes = end.state is State.UPDATING and direction is S2C  # it answers before all else
        return end.fsm.allows(kind, direction) and not owes

    def say(self, direction: Direction, kind: Kind) -> None:
        if not self.may_say(direction, kind):
            return
        said = message(kind)
        if kind in (Kind.MSG, Kind.RELAY):
            text = f"{len(self.sent[direction])}"
            self.sent[direction].append(text)
            member = "ct" if kind is Kind.MSG else "opening"
            said = Message(kind, {**said.members, member: text})
        self.flying[direction].append(self.ends[direction].seal(said))

    def deliver(self, direction: Direction) -> None:
        if not self.flying[direction]:
            return
        end = self.ends[Direction(1 - direction)]
        heard = end.open(self.flying[direction].popleft())
        if heard.kind in (Kind.MSG, Kind.RELAY):
            self.got[direction].append(heard["ct" if heard.kind is Kind.MSG else "opening"])
        elif heard.kind is Kind.UPDATE:
            self.say(C2S, Kind.DH_CLIENT)
        elif heard.kind is Kind.DH_CLIENT:
            self.flying[S2C].append(end.seal(message(Kind.DH_SERVER)))


STEPS: Sequence[Callable[[Wire], object]] = [
    lambda wire: wire.say(C2S, Kind.MSG),
    lambda wire: wire.say(S2C, Kind.RELAY),
    lambda wire: wire.say(C2S, Kind.DH_CLIENT),
    lambda wire: wire.say(S2C, Kind.UPDATE),
    lambda wire: wire.deliver(C2S),
    lambda wire: wire.deliver(S2C),
]


def check_nothing_lost(wire: Wire, steps: Sequence[int]) -> None:
    for number in steps:
        STEPS[number](wire)
    while wire.flying[C2S] or wire.flying[S2C]:
        for direction in Direction:
            wire.deliver(direction)
    assert wire.got == wire.sent
    client, server = wire.ends.values()
    assert client.state is server.state is State.CHAT
    assert client._keys == server._keys


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, len(STEPS) - 1), max_size=40))
@pytest.mark.slow
def test_nothing_in_flight_is_lost_whoever_asks_and_whenever(
    world: World, steps: list[int]
) -> None:
    check_nothing_lost(Wire(world), steps)


@pytest.mark.parametrize(
    "steps",
    [
        [0, 1, 2, 1, 0, 4, 4, 1, 5, 5, 5, 0],  # the client asks, with words in flight both ways
        [0, 1, 3, 0, 1, 5, 5, 1, 0, 4, 4, 4],  # the server asks
        [0, 2, 1, 3, 1, 4, 4, 5, 5, 5, 5, 0],  # both ask, and the requests cross
        [2, 3, 3, 2, 4, 3, 5, 5, 5, 1, 0],  # the server asks again when it has answered
    ],
)
def test_table_decides_when_both_ends_ask(world: World, steps: list[int]) -> None:
    check_nothing_lost(Wire(world), steps)


@pytest.mark.slow
def test_certificate_is_judged_once_in_the_handshake_and_once_in_each_update(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[Role] = []
    verify = Trust.verify

    def watched(trust: Trust, pem: str, role: Role, name: str | None, now: datetime) -> Identity:
        judged.append(role)
        return verify(trust, pem, role, name, now)

    monkeypatch.setattr(Trust, "verify", watched)
    pair = in_state(world, State.CHAT)
    assert judged == ["client", "server"]
    for _ in range(2):
        judged.clear()
        update(pair)
        assert judged == ["client", "server"]


@pytest.mark.slow
@pytest.mark.parametrize("is_server", [True, False])
def test_certificate_is_judged_anew_at_each_update(world: World, is_server: bool) -> None:
    """By its dates too: it may have expired meanwhile."""
    pair = in_state(world, State.CHAT)
    update(pair)
    end = pair.server if is_server else pair.client
    last = end.peer.certificate.not_valid_after_utc
    later = Authority(world.keys[0])
    later.publish(now=last)
    end.trust = later.trust()
    end.now = lambda: last + timedelta(seconds=1)
    share = pair.client.seal(message(Kind.DH_CLIENT))
    if not is_server:
        pair.server.open(share)
        share = pair.server.seal(message(Kind.DH_SERVER))
    assert isinstance(refusal(end, share), Expired)


def test_request_that_crosses_a_leave_is_void(world: World) -> None:
    pair = in_state(world, State.CHAT)
    leave = pair.client.seal(message(Kind.LEAVE))
    pair.client.open(pair.server.seal(message(Kind.UPDATE)))
    pair.server.open(leave)
    assert pair.client.state is pair.server.state is State.LEAVING
    pair.up_to(State.READY)
    pair.up_to(State.UPDATING)  # both still have one conversation hash


# Programs -----------------------------------------------------------------------------------------


class Hasty(Session):
    update_every = 8


@pytest.mark.slow
def test_member_asks_and_what_it_says_meanwhile_is_heard(house: House) -> None:
    with house.members() as (alice, bob):
        names = alice.session.fingerprints()
        alice.say("before")
        alice.update()
        alice.update()  # is under way
        alice.say("meanwhile")  # is held
        bob.say("from bob")
        texts: list[str | None] = []
        while len(texts) < 3:
            event = alice.hear(LIMIT_S)
            if isinstance(event, Said):
                texts.append(event.text)
            else:
                assert isinstance(event, Updated)
                assert not {*event.keys.values()} & {*names.values()}
        assert {*texts} == {"before", "meanwhile", "from bob"}
        assert [hear(bob) for _ in range(3)] == texts
        assert alice.settle().is_countersigned


@pytest.mark.slow
@pytest.mark.parametrize(
    ("is_leaving", "text", "reason"),
    [(False, "x" * 4_097, "at most"), (True, "too late", "cannot be sent in LEAVING")],
    ids=["too long, in an update", "after the leave"],
)
def test_text_that_cannot_be_said_is_refused_at_once_and_costs_no_receipt(
    house: House, is_leaving: bool, text: str, reason: str
) -> None:
    with house.members() as (alice, _):
        if is_leaving:
            alice.leave()
        else:
            alice.update()
        with pytest.raises(LocalError, match=reason):
            alice.say(text)
        if not is_leaving:
            alice.leave()
        assert next_of(alice, Kept).is_countersigned


@pytest.mark.slow
def test_server_asks_all_its_members_at_once(house: House) -> None:
    with house.members() as (alice, bob):
        alice.update()  # crosses the server's request, perhaps
        house.server.update()
        for client in (alice, bob):
            next_of(client, Updated)
        say(alice, "still here", bob)
        assert bob.settle().is_countersigned


@pytest.mark.slow
def test_client_updates_by_itself_after_so_many_records(house: House) -> None:
    with house.member(new_session=Hasty) as alice:
        updates = 0
        for number in range(20):
            alice.say(str(number))
            while isinstance(event := alice.hear(LIMIT_S), Updated):
                updates += 1
            assert isinstance(event, Said)
            assert event.text == str(number)
        assert updates >= 4
        assert alice.settle().is_countersigned


@pytest.mark.slow
def test_server_asks_when_keys_are_old(keys: list[PrivateKey], tmp_path: Path) -> None:
    with House(keys, tmp_path).open(update_s=0.0) as house, house.member() as alice:
        assert next_of(alice, Updated).keys != next_of(alice, Updated).keys


@pytest.mark.slow
def test_member_that_does_not_answer_the_request_is_ended(
    keys: list[PrivateKey], tmp_path: Path
) -> None:
    with House(keys, tmp_path).open(update_s=0.0, handshake_s=1.0) as house:
        with contextlib.suppress(Exception), house.member():
            house.await_record(lambda record: record.what == "end")
        end = house.await_record(lambda record: record.what == "end")
        assert isinstance(end.detail, DeadlineExpired)


@pytest.mark.slow
def test_member_revoked_meanwhile_goes_at_the_next_update(house: House) -> None:
    with house.members() as (alice, bob):
        house.revoke(bob.party)
        house.server.update()
        with pytest.raises(PeerEnded) as ended:
            next_of(bob, Updated)
        assert "the server refuses ours (bad-cert)" in explain(ended.value)
        end = house.await_record(lambda record: record.what == "end")
        assert isinstance(end.detail, Revoked)
        next_of(alice, Left)
        assert alice.settle().is_countersigned


@pytest.mark.slow
def test_member_revoked_outside_of_rooms_gets_into_none(house: House) -> None:
    with house.members() as (alice, bob):
        assert bob.settle().is_countersigned
        house.revoke(bob.party)
        with pytest.raises(PeerEnded) as ended:
            bob.join("parlour")
        assert "the server refuses ours (bad-cert)" in explain(ended.value)
        assert isinstance(alice.hear(LIMIT_S), Left)
        assert alice.settle().is_countersigned


@pytest.mark.slow
@pytest.mark.parametrize("comes_first", [True, False])
def test_revoked_member_makes_nobody_leave(house: House, comes_first: bool) -> None:
    """Bob is on a list that Alice has and the server has not yet; Carol has it not either."""
    shown: list[str] = []
    newer = Authority(house.keys[0])
    pins = Pins()
    with house.client(BOB, 3) as bob, house.client(pins=pins) as alice:
        newer.revoke([bob.party.identity.certificate], now=utc_now())
        newer.publish(now=utc_now())
        alice.trust = newer.trust()
        for client, name in ((bob, BOB), (alice, ALICE)):
            client.register(name, name.partition("@")[0], PASSWORDS[name])
        for client in (bob, alice) if comes_first else (alice, bob):
            client.join()
        talk = Talk(alice, shown.append)
        if comes_first:
            tell_doubts(alice, shown.append)
        else:
            talk.tell(alice.hear(LIMIT_S))
        bob.say("let me in")
        talk.tell(said := alice.hear(LIMIT_S))
        assert isinstance(said, Said)
        assert (said.text, said.opening) == (None, b"")
        alice.say("nothing for bob")
        assert hear(alice) == "nothing for bob"
        assert hear(bob) == "let me in"
        assert hear(bob) is None
        assert alice.settle().is_countersigned
        assert pins.meet(bob.party.identity) is None  # the key was not learnt
    warnings = [line for line in shown if line.startswith("[!]")]
    assert len(warnings) == 2
    assert warnings[0].startswith(f"[!] the certificate of {BOB} is revoked or expired")
    assert warnings[1] == f"[!] {BOB} said something, with a revoked or expired certificate"
    assert "let me in" not in "".join(shown)


@pytest.mark.slow
def test_server_revoked_meanwhile_is_left_at_the_next_update(house: House) -> None:
    with house.member() as alice:
        house.revoke(house.server.party)
        alice.update()
        with pytest.raises(Revoked) as ended:
            next_of(alice, Updated)
        assert explain(ended.value).startswith("Certificate validation failed: the server's")


@pytest.mark.slow
def test_typed_update_is_told_and_the_lines_behind_it_are_said(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    with house.member() as alice:
        talk = Talk(alice, shown.append)
        for line in ("one", "update", "two", "quit"):
            talk.typed(line)
        while not isinstance(event := alice.hear(LIMIT_S), Kept):
            talk.tell(event)
            talk._go_on()
    words = [line.partition(": ")[2] or line for line in shown]
    assert words.index("one") < words.index("two")
    assert words.index("[*] new keys; the old ones are forgotten") < words.index("two")
