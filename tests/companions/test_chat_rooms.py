"""secure_chat: what members and the server check of a message, and how a room goes on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from companions.canonical import canonical
from companions.secure_chat import forms
from companions.secure_chat.pae import sign
from companions.secure_chat.pki import UnknownIssuer
from companions.secure_chat.protocol import (
    MAX_FROM_SERVER,
    MAX_HANDSHAKE,
    Kind,
    Message,
    Party,
    to_base64,
)
from companions.secure_chat.rooms import (
    KNOWN_HEADS,
    MAX_MEMBERS,
    WINDOW_MS,
    BadHead,
    BadMessageSignature,
    BadOpening,
    Entry,
    Fork,
    FromTheFuture,
    LostMessage,
    Member,
    Room,
    Said,
    Seat,
    Untimely,
    WrongRecipient,
    WrongRoom,
    WrongSender,
    WrongSeqno,
    encode_relay,
    encode_said,
    parse_member,
    parse_number,
    parse_recipients,
    parse_relay,
    parse_room_name,
    parse_said,
)
from protocol_fsm import BadPayload, LocalError, ProtocolError
from tests.cases import case
from tests.companions.chat_helpers import ALICE, BOB, NOW, NOW_MS, ROOM, START, Authority
from tests.companions.chat_sessions import World


class Rooms:
    """Alice and Bob in one room, and what the server does there, in a few lines."""

    def __init__(self, world: World) -> None:
        self.room = Room(ROOM, START, 0, START, lambda: NOW_MS)  # the server's view
        self.sessions = {ALICE: bytes([1]) * 32, BOB: bytes([2]) * 32}
        self.parties = {ALICE: world.alice, BOB: world.bob}
        self.seats = {}
        self._server = world.server
        for name in self.parties:
            self.room.enter(self.member(name))
        for name, party in self.parties.items():
            view = Room(ROOM, START, 0, START, lambda: NOW_MS, self.member(name).address)
            for other in self.parties:
                view.enter(self.member(other))
            self.seats[name] = self.seat(party, view)

    def seat(self, party: Party, view: Room) -> Seat:
        return Seat(party, self._server.identity, view, lambda data: bytes(48))

    def member(self, name: str) -> Member:
        party = self.parties[name]
        return Member(party.identity, party.pem, self.sessions[name])

    def opening_of(self, name: str) -> bytes:
        """Return how the newest text opens that has not come back."""
        return self.seats[name]._pending[-1][1]

    def take(self, name: str, said: Message, opening: bytes) -> Message:
        """Check, place, and return the relay for the other member."""
        message, signature = parse_said(said, self.parties[name].identity.fingerprint)
        signed = message.encode()
        member = self.room.check(message, signed, signature)
        head, relay = self.relay(signed, signature, opening)
        self.room.extend(member, signed, head)
        return relay

    def relay(self, signed: bytes, signature: bytes, opening: bytes) -> tuple[bytes, Message]:
        head = forms.next_head(self.room.head, signed, signature)
        told = forms.Head(ROOM, START, self.room.index, NOW_MS, head).encode()
        entry = Entry(signed, signature, told, sign(self._server.private_key, told))
        return head, encode_relay(entry, opening)

    def composed(self) -> forms.Message:
        """Have Alice say a text, and return what she signs."""
        said = self.seats[ALICE].compose("text", NOW_MS)
        return parse_said(said, self.parties[ALICE].identity.fingerprint)[0]

    def relayed(self, signer: str = ALICE, opening: bytes | None = None, **changes: Any) -> Message:
        """Return how the server tells a text of Alice's, changed, and signed by `signer`."""
        signed = replace(self.composed(), **changes).encode()
        signature = sign(self.parties[signer].private_key, signed)
        told = self.opening_of(ALICE) if opening is None else opening
        return self.relay(signed, signature, told)[1]

    def say(self, name: str, text: str) -> list[Said]:
        """Let somebody say something, and both hear it."""
        said = self.seats[name].compose(text, NOW_MS)
        relay = self.take(name, said, self.opening_of(name))
        entry, _ = parse_relay(relay)
        own = encode_relay(entry, b"")
        return [seat.hear(own if one == name else relay) for one, seat in self.seats.items()]


@pytest.fixture
def rooms(world: World) -> Rooms:
    return Rooms(world)


# Honest members -----------------------------------------------------------------------------------


def test_both_hear_the_same_in_the_same_order(rooms: Rooms) -> None:
    for name, text in ((ALICE, "one"), (ALICE, "two"), (BOB, "three"), (ALICE, "\U0001f600|\n")):
        heard = rooms.say(name, text)
        assert [one.text for one in heard] == [text, text]
        assert {one.member.identity.name for one in heard} == {name}
    views = [rooms.room, *(seat.room for seat in rooms.seats.values())]
    assert len({view.head for view in views}) == 1
    assert {view.index for view in views} == {4}
    assert rooms.room.head == forms.parse_head(heard[0].entry.head).head


def test_each_message_names_the_newest_head_its_recipients_and_a_fresh_commitment(
    rooms: Rooms,
) -> None:
    commitments = set()
    for _ in range(3):
        head = rooms.room.head
        for said in rooms.say(ALICE, "yes"):
            assert said.message.seen == head
            assert said.message.recipients == (rooms.member(BOB).address,)
            commitments.add(said.message.commitment)
    assert len(commitments) == 3


def test_recipients_are_sorted_whoever_came_first(world: World, rooms: Rooms) -> None:
    seat = rooms.seats[ALICE]
    for number in (9, 5, 7):
        seat.room.enter(Member(world.bob.identity, "", bytes([number]) * 32))
    pairs = seat.compose("text", NOW_MS)["recipients"]
    assert len(pairs) == 4
    assert pairs == sorted(pairs)


def test_two_who_speak_at_once_are_both_heard(rooms: Rooms) -> None:
    said = {name: rooms.seats[name].compose(f"of {name}", NOW_MS) for name in (ALICE, BOB)}
    relays = [rooms.take(name, said[name], rooms.opening_of(name)) for name in (BOB, ALICE)]
    entries = [parse_relay(relay)[0] for relay in relays]
    heard = [
        rooms.seats[ALICE].hear(relays[0]).text,
        rooms.seats[ALICE].hear(encode_relay(entries[1], b"")).text,
        rooms.seats[BOB].hear(encode_relay(entries[0], b"")).text,
        rooms.seats[BOB].hear(relays[1]).text,
    ]
    assert heard == [f"of {BOB}", f"of {ALICE}", f"of {BOB}", f"of {ALICE}"]


def test_message_is_the_same_after_the_wire(world: World, rooms: Rooms) -> None:
    said = rooms.seats[ALICE].compose("text", NOW_MS)
    message, signature = parse_said(said, world.alice.identity.fingerprint)
    assert encode_said(message, signature) == said
    assert forms.parse_message(message.encode()) == message


def test_late_member_goes_on_from_where_it_came_in(world: World, rooms: Rooms) -> None:
    rooms.say(ALICE, "before")
    late = rooms.seats[ALICE].compose("on its way when Carol came", NOW_MS)
    carol = forms.Recipient("c" * 64, b"c" * 32)
    view = Room(ROOM, START, 1, rooms.room.head, lambda: NOW_MS, carol)
    for member in rooms.room.members.values():
        view.enter(replace(member))
    relay = rooms.take(ALICE, late, b"")
    assert rooms.seat(world.bob, view).hear(relay).text is None
    assert view.head == rooms.room.head


def test_member_who_came_back_is_told_of_a_message_to_its_earlier_session(
    world: World, rooms: Rooms
) -> None:
    """Its sender had not heard yet what was said before Bob came back: that is no fork."""
    late = rooms.seats[ALICE].compose("on its way when Bob came back", NOW_MS)
    bobs = rooms.seats[BOB].compose("the last before the cut", NOW_MS)
    rooms.take(BOB, bobs, rooms.opening_of(BOB))
    again = forms.Recipient(world.bob.identity.fingerprint, b"again" + bytes(27))
    view = Room(ROOM, START, 1, rooms.room.head, lambda: NOW_MS, again)
    view.enter(replace(rooms.room.members[rooms.sessions[ALICE]]))
    relay = rooms.take(ALICE, late, b"")
    assert rooms.seat(world.bob, view).hear(relay).text is None
    assert view.head == rooms.room.head


def test_text_is_neither_said_to_nor_heard_from_whom_we_do_not_trust(rooms: Rooms) -> None:
    rooms.seats[ALICE].room.members[rooms.sessions[BOB]].is_trusted = False
    heard, _ = rooms.say(BOB, "text")
    assert (heard.opening, heard.text) == (b"", None)
    assert rooms.seats[ALICE].compose("text", NOW_MS)["recipients"] == []


def test_history_concerns_the_server_the_sender_and_the_recipients(rooms: Rooms) -> None:
    message = rooms.composed()
    views = [rooms.room, *(seat.room for seat in rooms.seats.values())]
    for one, concerned in ((message, [True] * 3), (replace(message, recipients=()), [1, 1, 0])):
        assert [view.concerns(one) for view in views] == concerned


# What is refused ----------------------------------------------------------------------------------

Change = Callable[[forms.Message], forms.Message]
CHANGES: list[tuple[Change, type[ProtocolError]]] = [
    (lambda m: replace(m, room="elsewhere"), WrongRoom),
    (lambda m: replace(m, session=bytes(32)), WrongSender),
    (lambda m: replace(m, sender="0" * 64), WrongSender),
    (lambda m: replace(m, sender=m.sender[:-1] + "01"[m.sender[-1] == "0"]), WrongSender),
    (lambda m: replace(m, session=bytes([2]) * 32), WrongSender),
    (lambda m: replace(m, seqno=1), WrongSeqno),
    (lambda m: replace(m, previous=b"x" * 32), LostMessage),
    (lambda m: replace(m, seen=b"x" * 32), Fork),
    (lambda m: replace(m, ts=NOW_MS + WINDOW_MS + 1), FromTheFuture),
    (lambda m: replace(m, ts=NOW_MS - WINDOW_MS - 1), Untimely),
    (lambda m: replace(m, recipients=()), WrongRecipient),
    (
        lambda m: replace(m, recipients=(m.recipients[0]._replace(session=bytes(32)),)),
        WrongRecipient,
    ),
    (lambda m: replace(m, commitment=bytes(32)), BadOpening),
]


@pytest.mark.parametrize(("change", "error"), CHANGES)
def test_each_check_of_a_relayed_message_has_its_own_error(
    world: World, rooms: Rooms, change: Change, error: type[ProtocolError]
) -> None:
    """Alice signs it, so that nothing else is wrong; and the room has not moved."""
    message = rooms.composed()
    signed = change(message).encode()
    signature = sign(world.alice.private_key, signed)
    _, relay = rooms.relay(signed, signature, rooms.opening_of(ALICE))
    bob = rooms.seats[BOB]
    with pytest.raises(ProtocolError) as caught:
        bob.hear(relay)
    assert type(caught.value) is error
    assert (bob.room.index, bob.room.head) == (0, START)
    assert bob.room.members[message.session].seqno == 0


def test_message_that_another_signed_is_refused(rooms: Rooms) -> None:
    with pytest.raises(BadMessageSignature):
        rooms.seats[BOB].hear(rooms.relayed(BOB))


FAULTS: dict[type[ProtocolError], dict[str, Any]] = {  # in the order in which they are looked for
    WrongRoom: {"room": "elsewhere"},
    WrongSender: {"session": bytes(32)},
    BadMessageSignature: {},
    WrongSeqno: {"seqno": 9},
    Untimely: {"ts": 0},
    LostMessage: {"previous": b"x" * 32},
    Fork: {"seen": b"x" * 32},
    BadHead: {},
    BadOpening: {"commitment": bytes(32)},
}


@pytest.mark.parametrize("first", FAULTS)
def test_of_several_faults_the_first_is_told(rooms: Rooms, first: type[ProtocolError]) -> None:
    faults = [*FAULTS][[*FAULTS].index(first) :]
    wrong = {name: value for fault in faults for name, value in FAULTS[fault].items()}
    relay = rooms.relayed(BOB if BadMessageSignature in faults else ALICE, **wrong)
    if BadHead in faults:
        entry, opening = parse_relay(relay)
        relay = encode_relay(entry._replace(head_signature=entry.signature), opening)
    with pytest.raises(ProtocolError) as caught:
        rooms.seats[BOB].hear(relay)
    assert type(caught.value) is first


@pytest.mark.parametrize("text", [b"another", b"\xff", b"x" * 5_000])
def test_other_opening_than_the_senders_is_refused(rooms: Rooms, text: bytes) -> None:
    with pytest.raises((BadOpening, BadPayload)):
        rooms.seats[BOB].hear(rooms.relayed(opening=bytes(32) + text))


def test_text_is_utf_8_of_at_most_4096_bytes_even_if_it_was_committed_to(rooms: Rooms) -> None:
    message = rooms.composed()
    for text, is_good in ((b"x" * 4_096, True), (b"x" * 4_097, False), (b"\xff", False)):
        committed = replace(message, commitment=forms.commitment(bytes(32), text))
        for view in (rooms.room, rooms.seats[BOB].room):  # the server may read all
            with case(text[:9]), nullcontext() if is_good else pytest.raises(BadPayload):
                assert view.check_opening(committed, bytes(32) + text) == text
    with pytest.raises(BadOpening):
        rooms.room.check_opening(message, bytes(32))


def test_relay_of_something_else_than_a_message_is_refused(rooms: Rooms) -> None:
    _, relay = rooms.relay(b"nonsense", bytes(256), b"")
    with pytest.raises(BadPayload):
        rooms.seats[BOB].hear(relay)


def test_own_message_that_we_never_sent_is_refused(world: World, rooms: Rooms) -> None:
    said = Rooms(world).seats[ALICE].compose("text", NOW_MS)
    relay = rooms.take(ALICE, said, b"")
    with pytest.raises(WrongSender):
        rooms.seats[ALICE].hear(relay)


def test_server_says_nothing_in_a_room(world: World, rooms: Rooms) -> None:
    with pytest.raises(LocalError):
        rooms.seat(world.server, rooms.room).compose("text", NOW_MS)


def test_addressed_member_is_told_the_text(rooms: Rooms) -> None:
    with pytest.raises(BadPayload):
        rooms.seats[BOB].hear(rooms.relayed(opening=b""))


@pytest.mark.parametrize("change", ["room", "start", "index", "head", "signature", "nonsense"])
def test_head_that_does_not_fit_is_refused(world: World, rooms: Rooms, change: str) -> None:
    entry, opening = parse_relay(rooms.relayed())
    values: dict[str, Any] = {"room": "other", "start": bytes(32), "index": 7, "head": bytes(32)}
    head = entry.head
    if change in values:
        head = replace(forms.parse_head(head), **{change: values[change]}).encode()
    elif change == "nonsense":
        head = b"nonsense"
    key = world.keys[2 if change == "signature" else 1]
    with pytest.raises(BadHead) as caught:
        rooms.seats[BOB].hear(
            encode_relay(entry._replace(head=head, head_signature=sign(key, head)), opening)
        )
    if change == "start":
        assert "start 0000" in str(caught.value.got)


def test_server_cannot_put_words_between_ours(rooms: Rooms) -> None:
    with pytest.raises(WrongSender):
        rooms.seats[ALICE].hear(rooms.relayed(opening=b"", ts=NOW_MS + 1))


def test_own_text_that_does_not_come_back_is_missed(rooms: Rooms) -> None:
    rooms.seats[ALICE].check_complete()
    rooms.seats[ALICE].compose("text", NOW_MS)
    assert (rooms.seats[ALICE].pending, rooms.seats[ALICE].unheard) == (1, ["text"])
    with pytest.raises(LostMessage):
        rooms.seats[ALICE].check_complete()


@pytest.mark.parametrize("offset", [-WINDOW_MS, WINDOW_MS])
def test_message_may_be_five_minutes_old_or_early_and_no_more(rooms: Rooms, offset: int) -> None:
    said = rooms.seats[ALICE].compose("text", NOW_MS + offset)
    rooms.take(ALICE, said, rooms.opening_of(ALICE))
    beyond = rooms.seats[ALICE].compose("text", NOW_MS + offset + (1 if offset > 0 else -1))
    with pytest.raises(Untimely):
        rooms.take(ALICE, beyond, b"")


# Members ------------------------------------------------------------------------------------------


def test_limits_are_those_of_readme() -> None:
    assert (MAX_MEMBERS, KNOWN_HEADS, WINDOW_MS) == (100, 4_096, 5 * 60 * 1_000)


def test_session_has_one_stay_in_a_room(rooms: Rooms) -> None:
    """In a second it would begin to count anew, and what it said in the first could be repeated."""
    view = rooms.seats[BOB].room
    alice = rooms.member(ALICE)
    with pytest.raises(BadPayload):
        view.enter(alice)
    assert view.leave(alice.session) == alice
    assert view.leave(alice.session) is None
    with pytest.raises(BadPayload):
        view.enter(alice)
    rooms.room.leave(alice.session)
    rooms.room.enter(alice)  # the server knows by its connections who has been here


def test_room_is_full_at_a_hundred(world: World) -> None:
    room = Room(ROOM, START, 0, START, lambda: NOW_MS)
    for number in range(MAX_MEMBERS):
        room.enter(Member(world.alice.identity, "", number.to_bytes(32, "big")))
    with pytest.raises(BadPayload):
        room.enter(Member(world.alice.identity, "", b"x" * 32))


def test_full_room_fits_into_a_frame(world: World) -> None:
    """Whatever certificates its members have shown."""
    alice = Member(world.alice.identity, "x" * MAX_HANDSHAKE, bytes(32))
    members = canonical({"members": [alice.encode()] * MAX_MEMBERS})
    assert len(to_base64(members)) + 10_000 < MAX_FROM_SERVER


def test_heads_that_are_remembered_are_bounded(world: World) -> None:
    room = Room(ROOM, START, 0, START, lambda: NOW_MS)
    member = Member(world.alice.identity, "", bytes(32))
    for number in range(KNOWN_HEADS + 10):
        room.extend(member, b"signed", number.to_bytes(32, "big"))
    newest = range(10, KNOWN_HEADS + 10)
    assert [*room._heads] == [number.to_bytes(32, "big") for number in newest]


def test_member_is_shown_with_a_certificate_that_holds(world: World) -> None:
    alice = Member(world.alice.identity, world.alice.pem, bytes(32), 3, b"p" * 32)
    trust = world.authority.trust()
    assert parse_member(alice.encode(), trust, NOW) == alice
    assert "BEGIN" not in repr(alice)
    for change in ({"seqno": -1}, {"seqno": "0"}, {"session": "x"}, {"more": 1}):
        with pytest.raises(BadPayload):
            parse_member({**alice.encode(), **change}, trust, NOW)
    with pytest.raises(ProtocolError):
        parse_member({**alice.encode(), "certificate": world.server.pem}, trust, NOW)


def test_member_revoked_or_expired_meanwhile_is_shown_and_not_trusted(world: World) -> None:
    alice = Member(world.alice.identity, world.alice.pem, bytes(32))
    last = world.alice.identity.certificate.not_valid_after_utc
    later = Authority(world.keys[0])
    later.publish(now=last)
    late = parse_member(alice.encode(), later.trust(), last + timedelta(seconds=1))
    revoking = Authority(world.keys[0])
    revoking.revoke([world.alice.identity.certificate])
    for member in (late, parse_member(alice.encode(), revoking.trust(), NOW)):
        assert (member.identity, member.is_trusted) == (alice.identity, False)
    long = revoking.issue("client", ALICE, world.keys[2], days=5_000)  # outlives its authority
    revoking.revoke([long.certificate])
    shown = parse_member({**alice.encode(), "certificate": long.pem}, revoking.trust(), NOW)
    assert not shown.is_trusted
    stranger = Authority(world.keys[1]).issue("client", ALICE, world.keys[2])
    with pytest.raises(UnknownIssuer):
        parse_member({**alice.encode(), "certificate": stranger.pem}, world.authority.trust(), NOW)


# Bad input ----------------------------------------------------------------------------------------


def test_names_numbers_and_sizes_end_where_readme_says(rooms: Rooms) -> None:
    said = rooms.seats[ALICE].compose("text", NOW_MS)
    entry, _ = parse_relay(rooms.take(ALICE, said, b""))
    assert parse_room_name("a" * 32) == "a" * 32
    assert parse_number(2**63 - 1) == 2**63 - 1
    pairs = [[f"{number:064x}", "1" * 64] for number in range(101)]
    assert len(parse_recipients(pairs[:100])) == 100
    opening = bytes(32 + 4_096)
    assert parse_relay(encode_relay(entry, opening))[1] == opening
    assert parse_relay(encode_relay(entry._replace(signature=bytes(512)), b""))
    for parse in (
        lambda: parse_room_name("a" * 33),
        lambda: parse_recipients(pairs),
        lambda: parse_relay(encode_relay(entry, opening + b"x")),
        lambda: parse_relay(encode_relay(entry._replace(signature=bytes(513)), b"")),
        lambda: parse_relay(encode_relay(entry._replace(signature=bytes(255)), b"")),
    ):
        with pytest.raises(BadPayload):
            parse()


A = ["a" * 64, "1" * 64]
B = ["b" * 64, "1" * 64]


@pytest.mark.parametrize(
    "pairs",
    [
        [B, A],
        [A, A],
        [["a" * 64]],
        ["a" * 64],
        [[1, 2]],
        [["A" * 64, "1" * 64]],
        [A] * 200,
        [{}],
        [dict.fromkeys(A, 0)],
        [7],
    ],
)
def test_recipients_are_sorted_pairs_each_once(pairs: list[object]) -> None:
    assert parse_recipients([A, B])
    with pytest.raises(BadPayload):
        parse_recipients(pairs)


@pytest.mark.parametrize(
    "change",
    [
        {"seqno": -1},
        {"seqno": 2**63},
        {"ts": -1},
        {"room": "a|b"},
        {"room": "a\nb"},
        {"room": ""},
        {"session": "|"},
        {"sig": ""},
        {"sig": "AAAA"},
        {"ct": "\n"},
        {"previous": "0" * 63},
        {"recipients": [["a" * 64, (bytes([1]) * 32).hex()]]},  # the sender's own session
    ],
)
def test_message_of_bad_members_is_refused(rooms: Rooms, change: dict[str, object]) -> None:
    said = rooms.seats[ALICE].compose("text", NOW_MS)
    with pytest.raises(BadPayload):
        parse_said(Message(Kind.MSG, {**said.members, **change}), "0" * 64)


@pytest.mark.parametrize("text", ["x" * 4_097, "\u00e9" * 2_049, "\ud800"])
def test_text_that_cannot_be_sent_moves_nothing(rooms: Rooms, text: str) -> None:
    seat = rooms.seats[ALICE]
    with pytest.raises(LocalError):
        seat.compose(text, NOW_MS)
    assert seat.pending == 0
    seat.compose("x" * 4_096, NOW_MS)
