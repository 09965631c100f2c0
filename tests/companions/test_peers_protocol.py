"""The protocol of peer messaging, tested on pairs of real sessions: no sockets here."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import pickle
from collections.abc import Callable, Sequence

import pytest
from Crypto.Cipher import AES
from Crypto.Hash import SHA256
from Crypto.PublicKey import RSA
from Crypto.Signature import pss
from hypothesis import given
from hypothesis import strategies as st

from companions.asymmetric import PrivateKey
from companions.peer_messaging import protocol
from companions.peer_messaging.identity import (
    Identity,
    IdentityChanged,
    Trust,
    UnknownPeer,
    UnusableKey,
)
from companions.peer_messaging.protocol import (
    PHASE,
    SPEAKER,
    BadShare,
    BadSignature,
    Kind,
    Message,
    MessageLost,
    PeerLeft,
    ProtocolFSM,
    Reason,
    Replayed,
    Role,
    Session,
    State,
    UnexpectedKind,
    Untimely,
    WrongAnswer,
    WrongSession,
    answer_to,
)
from crypto_utils import fingerprint
from protocol_fsm import (
    BadPayload,
    BadTag,
    LocalError,
    MalformedMessage,
    ProtocolError,
    ProtocolState,
    Seen,
    WrongDirection,
    WrongPeer,
)
from tests.companions.helpers import LOW_ORDER, flipped, sha256, x25519
from tests.companions.peers_helpers import (
    A,
    B,
    BODIES,
    Clock,
    NOW,
    OTHER,
    Pair,
    WAY,
    World,
    forge,
    introduce,
    is_dropped,
    is_farewell,
    keys_after,
    nonce_of,
    snapshot,
)
from tests.sessions import clone, error_of

ROLES = pytest.mark.parametrize("sender", [A, B], ids=lambda role: role.name)
STATES = pytest.mark.parametrize("state", list(State), ids=lambda state: state.name)
RECORDS = [kind for kind in Kind if kind not in (Kind.HELLO, Kind.REPLY)]


@pytest.fixture(scope="module")
def world(keys: Sequence[PrivateKey]) -> World:
    return World(keys)


def ask(pair: Pair, sender: Role, kind: Kind) -> bytes:
    """Return a body that `sender` may say of this kind; the other end asks before, if need be."""
    asked = {Kind.RECEIPT: Kind.TEXT, Kind.PONG: Kind.PING}.get(kind)
    if not asked or pair.end(sender).state is not State.OPEN:
        return BODIES.get(kind, bytes(4) if asked else b"")
    return pair.carry(asked, OTHER[sender]).sequence.to_bytes(4, "big")


def intact(kind: Kind) -> int:
    """Return a size that this kind can have."""
    return {Kind.HELLO: 749, Kind.REPLY: 781}.get(kind, 50)


# A session that goes well -------------------------------------------------------------------------


def test_two_nodes_agree_talk_and_part(world: World) -> None:
    pair = world.pair()
    for sender, kind in [*WAY.values()][:4]:
        assert pair.carry(kind, sender) == Message(kind, b"", 0)
    assert pair.end(A).peer_key == world.bob.public_pem
    assert pair.end(B).peer_key == world.alice.public_pem
    assert pair.end(A)._keys == pair.end(B)._keys != {}
    for number, sender in ((1, A), (3, A), (5, B)):
        text = pair.carry(Kind.TEXT, sender, "Grüße".encode())
        assert text == Message(Kind.TEXT, "Grüße".encode(), number)
        pair.carry(Kind.RECEIPT, OTHER[sender], text.sequence.to_bytes(4, "big"))
        ping = pair.carry(Kind.PING, sender)
        pair.carry(Kind.PONG, OTHER[sender], ping.sequence.to_bytes(4, "big"))
        assert pair.end(A).unanswered == pair.end(B).unanswered == {}
    with pytest.raises(PeerLeft) as caught:
        pair.carry(Kind.BYE, B)
    assert caught.value.reason is Reason.GOODBYE
    assert pair.end(A).state is pair.end(B).state is State.ENDED


def test_numbers_and_sizes_are_those_of_the_document() -> None:
    assert [(kind.value, kind.name) for kind in Kind] == [
        (1, "HELLO"),
        (2, "REPLY"),
        (3, "CONFIRM"),
        (4, "WELCOME"),
        (5, "TEXT"),
        (6, "RECEIPT"),
        (7, "PING"),
        (8, "PONG"),
        (9, "BYE"),
    ]
    assert [*map(int, (*Role, *Reason))] == [0, 1, 0, 1]
    assert (Role.INITIATOR.value, Reason.GOODBYE.value) == (0, 0)
    assert (
        protocol.HELLO_BYTES,
        protocol.REPLY_BYTES,
        protocol.MIN_RECORD,
        protocol.MAX_MESSAGE,
    ) == (749, 781, 46, 4_142)
    assert (protocol.MAX_SEQUENCE, protocol.RENEW_AT, protocol.SPENT_AT) == (
        4_294_967_295,
        2_147_483_648,
        4_294_901_760,
    )


def rsa_verify(who: Identity, context: str, message: bytes) -> None:
    """Raise ValueError unless `who` has signed all but the last 256 bytes, with 32 of salt."""
    verifier = pss.new(RSA.import_key(who.public_pem), salt_bytes=32)
    verifier.verify(SHA256.new(context.encode() + b"\0" + message[:-256]), message[-256:])


def test_a_hello_stands_on_the_wire_as_documented(world: World) -> None:
    session = world.session(A)
    hello = session.seal(Message(Kind.HELLO))
    assert (len(hello), hello[:2]) == (749, b"\1\1")
    assert int.from_bytes(hello[2:10], "big") == 1_000 * NOW
    assert session._ephemeral
    assert hello[10:42] == session._ephemeral.public_key().public_bytes_raw()
    assert hello[42:493] == world.alice.public_pem.encode()
    rsa_verify(world.alice, "peer_messaging v1 HELLO", hello)


def test_a_reply_stands_on_the_wire_as_documented(world: World) -> None:
    pair = world.pair(State.REPLY)
    ephemeral = pair.end(B)._ephemeral
    assert ephemeral
    share = ephemeral.public_key().public_bytes_raw()
    reply = pair.end(B).seal(Message(Kind.REPLY))
    assert (len(reply), reply[:2]) == (781, b"\2\1")
    assert int.from_bytes(reply[2:10], "big") == 1_000 * NOW
    assert reply[10:42] == hashlib.sha256(pair.messages[0]).digest()
    assert (reply[42:74], reply[74:525]) == (share, world.bob.public_pem.encode())
    rsa_verify(world.bob, "peer_messaging v1 REPLY", reply)


def test_keys_and_session_id_are_those_of_the_document(world: World) -> None:
    pair = world.pair(State.REPLY)
    ephemeral = pair.end(A)._ephemeral
    assert ephemeral
    scalar = ephemeral.private_bytes_raw()
    pair.carry(Kind.REPLY, B)
    hello, reply = pair.messages
    expected = keys_after(hello, reply, x25519(scalar, reply[42:74]))
    for session in pair.ends:
        assert session._keys == expected
        assert session.session_id == sha256(hello + reply)[:16]
        assert session.fingerprints() == {n: fingerprint(key) for n, key in expected.items()}
    assert len({key[:12] for key in expected.values()}) == 4


@ROLES
@pytest.mark.parametrize("number", [0, 1, 255, 256, 2**31, 2**32 - 1])
def test_a_record_is_what_the_document_says_byte_by_byte(
    world: World, sender: Role, number: int
) -> None:
    pair = world.pair(State.OPEN)
    for session in pair.ends:
        session._sequence[sender] = number
    message = pair.end(sender).seal(Message(Kind.TEXT, b"hello"))
    keys = pair.end(sender)._keys
    assert message[:30] == (
        b"\5"
        + pair.end(sender).session_id
        + bytes([sender])
        + number.to_bytes(4, "big")
        + int(1_000 * NOW).to_bytes(8, "big")
    )
    aes = AES.new(keys["IR"[sender] + "-KEY"], AES.MODE_GCM, nonce_of(keys, sender, number))
    aes.update(message[:30])
    assert aes.decrypt_and_verify(message[30:-16], message[-16:]) == b"hello"
    assert pair.end(OTHER[sender]).open(message) == Message(Kind.TEXT, b"hello", number)


@ROLES
def test_a_record_of_another_implementation_is_opened(world: World, sender: Role) -> None:
    pair = world.pair(State.OPEN)
    message = forge(pair.end(sender), 5, b"hello")
    assert pair.end(OTHER[sender]).open(message) == Message(Kind.TEXT, b"hello", 1)


@ROLES
def test_an_introduction_of_another_implementation_is_opened(world: World, sender: Role) -> None:
    pair = world.pair(State.HELLO if sender is A else State.REPLY)
    if sender is A:
        message = introduce(world.alice)
    else:
        message = introduce(world.bob, Kind.REPLY, answers=pair.messages[0])
    assert pair.end(OTHER[sender]).open(message).kind == message[0]


@ROLES
def test_a_hello_and_a_reply_take_no_body_from_their_sender(world: World, sender: Role) -> None:
    pair = world.pair(State.HELLO if sender is A else State.REPLY)
    kind = Kind.HELLO if sender is A else Kind.REPLY
    before = snapshot(pair.end(sender))
    with pytest.raises(LocalError, match=f"{kind.name} cannot carry this"):
        pair.end(sender).seal(Message(kind, b"x"))
    assert snapshot(pair.end(sender)) == before


def test_a_message_says_what_its_body_means() -> None:
    assert Message(Kind.TEXT, "Grüße".encode()).text == "Grüße"
    assert Message(Kind.RECEIPT, b"\1\2\3\4").number == 0x01020304
    assert Message(Kind.BYE, b"\1").reason is Reason.VIOLATION
    answers = [answer_to(Message(kind, b"", 2**32 - 1)) for kind in (Kind.TEXT, Kind.PING)]
    assert answers == [Message(kind, b"\xff" * 4) for kind in (Kind.RECEIPT, Kind.PONG)]
    with pytest.raises(dataclasses.FrozenInstanceError):
        answers[0].body = b""  # type: ignore[misc]


def test_shares_keys_and_signatures_are_fresh_in_every_session(world: World) -> None:
    one = world.new_pair()
    two = world.new_pair()
    for mine, other in zip(one.messages[:2], two.messages[:2]):
        assert mine[-739:-707] != other[-739:-707], "the shares"
        assert mine[-256:] != other[-256:], "the signatures"
    assert not {*one.end(A)._keys.values()} & {*two.end(A)._keys.values()}
    assert one.end(A).session_id != two.end(A).session_id


def test_equal_texts_never_look_equal_on_the_wire(world: World) -> None:
    pair = world.pair(State.OPEN)
    sent = [pair.end(sender).seal(Message(Kind.TEXT, b"attack at dawn")) for sender in (A, B) * 8]
    assert len({message[30:-16] for message in sent}) == 16


# The table, every cell ----------------------------------------------------------------------------

BOTH = [Kind.TEXT, Kind.RECEIPT, Kind.PING, Kind.PONG]
MOVES = {
    (State.HELLO, Kind.HELLO, A): State.REPLY,
    (State.REPLY, Kind.REPLY, B): State.CONFIRM,
    (State.CONFIRM, Kind.CONFIRM, A): State.WELCOME,
    (State.WELCOME, Kind.WELCOME, B): State.OPEN,
    **{(State.OPEN, kind, sender): State.OPEN for kind in BOTH for sender in (A, B)},
    **{(State.OPEN, Kind.BYE, sender): State.ENDED for sender in (A, B)},
}
KEYED = (State.CONFIRM, State.WELCOME, State.OPEN)


def test_the_table_is_the_one_of_the_document() -> None:
    assert MOVES == ProtocolFSM.VALID_TRANSITIONS
    assert [(state.name, PHASE[state].name[0], SPEAKER.get(state)) for state in State] == [
        ("HELLO", "I", A),
        ("REPLY", "I", B),
        ("CONFIRM", "I", A),
        ("WELCOME", "I", B),
        ("OPEN", "A", None),
        ("ENDED", "T", None),
    ]
    assert PHASE[State.OPEN] is ProtocolState.ACTIVE


def message_of(pair: Pair, kind: Kind, sender: Role) -> bytes:
    """Return a message of this kind without a fault, apart from being one of this kind now."""
    if kind in (Kind.HELLO, Kind.REPLY):
        who = pair.end(sender).identity
        return introduce(who, kind, answers=pair.messages[0] if pair.messages else b"")
    session = pair.end(sender)
    if session._keys:
        return forge(session, kind, ask(pair, sender, kind))
    return bytes([kind]) + bytes(45)


@STATES
@ROLES
def test_every_cell_of_the_table_is_opened_or_refused(
    world: World, state: State, sender: Role
) -> None:
    """What is legal moves both ends. Of what is not, only what the peer vouches for ends it."""
    for kind in Kind:
        pair = world.pair(state)
        session = pair.end(OTHER[sender])
        peer = pair.end(sender)
        there = MOVES.get((state, kind, sender))
        if there:
            message = peer.seal(Message(kind, ask(pair, sender, kind)))
            error = error_of(session, message)
            assert type(error) is (PeerLeft if kind is Kind.BYE else type(None)), (kind, error)
            assert session.state is peer.state is there
            continue
        message = message_of(pair, kind, sender)
        if kind in (Kind.HELLO, Kind.REPLY):
            assert is_dropped(session, message, UnexpectedKind), kind
        elif state not in KEYED:
            assert is_dropped(session, message, WrongSession), kind
        else:
            error = error_of(session, message)
            assert type(error) is UnexpectedKind, (kind, error)
            assert (error.expected, error.got) == (f"a move from {state.name}", kind.name)
            assert is_farewell(error, peer) is (state is State.OPEN)
            assert (session.state, session._keys) == (State.ENDED, {})


@STATES
@ROLES
def test_every_cell_of_the_table_is_sealed_or_refused(
    world: World, state: State, sender: Role
) -> None:
    for kind in Kind:
        pair = world.pair(state)
        body = ask(pair, sender, kind)
        session = pair.end(sender)
        before = snapshot(session)
        if there := MOVES.get((state, kind, sender)):
            assert session.seal(Message(kind, body))[0] == kind
            assert session.state is there
            continue
        with pytest.raises(LocalError, match=f"{kind.name} cannot be sent in {state.name}"):
            session.seal(Message(kind, body))
        assert snapshot(session) == before, kind


@STATES
@ROLES
def test_no_message_is_taken_back_by_who_sent_it(world: World, state: State, sender: Role) -> None:
    """Reflection, in every state, of every kind that exists there."""
    for kind in Kind:
        pair = world.pair(state)
        session = pair.end(sender)
        if (state, kind, sender) not in MOVES:
            continue
        own = clone(session).seal(Message(kind, ask(pair, sender, kind)))
        expected: type[ProtocolError] = WrongDirection
        if kind in (Kind.HELLO, Kind.REPLY):
            expected = UnexpectedKind
        assert is_dropped(session, own, expected), kind
        if kind is Kind.TEXT:
            turned = own[:17] + bytes([OTHER[sender]]) + own[18:]
            assert is_dropped(session, turned, BadTag), "the keys of the directions differ"


# Dropped, and nothing has changed -----------------------------------------------------------------


def every_kind(world: World) -> list[tuple[Pair, Kind, Role, bytes]]:
    """Return a message of each kind from each sender who may, with the pair that awaits it."""
    cases = []
    for state, kind, sender in MOVES:
        pair = world.pair(state)
        body = ask(pair, sender, kind)
        cases.append((pair, kind, sender, pair.end(sender).seal(Message(kind, body))))
    return cases


def stays(session: Session, message: bytes, known: dict[str, object]) -> type | None:
    """Return the error that refuses `message`; None if anything has changed, or it was taken."""
    error = error_of(session, message)
    if error is None or error.farewell or snapshot(session) != known:
        return None
    return type(error)


def error_of_bit(kind: Kind, byte: int) -> set[type[ProtocolError]]:
    """Return how a flipped bit in this byte may be refused."""
    if byte == 0:  # another kind, or none
        return {MalformedMessage, WrongSession, UnexpectedKind, BadTag}
    if kind in (Kind.HELLO, Kind.REPLY):
        if byte == 1:
            return {BadPayload}
        at = byte - (32 if kind is Kind.REPLY else 0)
        if byte < 10:
            return {Untimely, BadSignature}
        return (
            {WrongAnswer}
            if at < 10
            else {BadSignature}
            if at < 42 or at >= 493
            else {UnusableKey, IdentityChanged}
        )
    return (
        {WrongSession}
        if byte < 17
        else {WrongDirection}
        if byte == 17
        else {Replayed, BadTag}
        if byte < 22
        else {BadTag}
    )


def flip_all(world: World, bits: Callable[[Kind, int], Sequence[int]]) -> None:
    for pair, kind, sender, message in every_kind(world):
        session = pair.end(OTHER[sender])
        known = snapshot(session)
        for byte in range(len(message)):
            for bit in bits(kind, byte):
                refused = stays(session, flipped(message, 8 * byte + bit), known)
                assert refused in error_of_bit(kind, byte), (kind, byte, bit, refused)
        error = error_of(session, message)  # and the session goes on
        assert error is None or kind is Kind.BYE, error


@pytest.mark.slow
def test_a_flipped_bit_in_any_byte_changes_nothing(world: World) -> None:
    flip_all(world, lambda kind, byte: [byte * 5 % 8] if kind < 3 else range(8))


@pytest.mark.slow
def test_every_flipped_bit_of_the_handshake_changes_nothing(world: World) -> None:
    flip_all(world, lambda kind, byte: range(8) if kind < 3 else [])


def test_every_shortened_or_lengthened_message_changes_nothing(world: World) -> None:
    for pair, kind, sender, message in every_kind(world):
        session = pair.end(OTHER[sender])
        known = snapshot(session)
        for length in range(len(message)):
            refused = stays(session, message[:length], known)
            short = length < (intact(kind) if kind < 3 else 46)
            assert refused is (MalformedMessage if short else BadTag), (kind, length, refused)
        for more in (b"\0", bytes(16), message, bytes(4_143 - len(message))):
            is_long = kind < 3 or len(message + more) > 4_142
            assert stays(session, message + more, known) is (
                MalformedMessage if is_long else BadTag
            ), (kind, len(more))
        assert error_of(session, message) is None or kind is Kind.BYE


def test_what_begins_with_no_kind_is_malformed(world: World) -> None:
    session = world.pair(State.OPEN).end(B)
    for first in (0, *range(10, 256)):
        for length in (1, 46, 749):
            assert is_dropped(session, bytes([first]) + bytes(length - 1), MalformedMessage)


def test_nothing_at_all_is_malformed(world: World) -> None:
    for message, got in ((b"", "nothing"), (b"\0secret", "00")):
        error = error_of(world.pair(State.OPEN).end(B), message)
        assert str(error) == f"MalformedMessage: expected a kind, got {got}"


@ROLES
def test_a_replayed_record_changes_nothing_and_a_lost_one_ends_the_session(
    world: World, sender: Role
) -> None:
    pair = world.pair(State.OPEN)
    session = pair.end(OTHER[sender])
    peer = pair.end(sender)
    one, two, three = (peer.seal(Message(Kind.TEXT, bytes([65 + n]))) for n in range(3))
    session.open(one)
    session.open(two)
    for old in (one, two):
        assert is_dropped(session, old, Replayed)
    twin = clone(session)
    assert session.open(three).body == b"C"
    four = peer.seal(Message(Kind.PING))
    five = peer.seal(Message(Kind.PING))
    for stale, late, expected, got in ((clone(session), five, 4, 5), (twin, four, 3, 4)):
        error = error_of(stale, late)
        assert type(error) is MessageLost
        assert (error.expected, error.got) == (expected, got)
        assert is_farewell(error, peer)
        assert stale.state is State.ENDED
    session.open(four)
    assert session.open(five).kind is Kind.PING


def test_two_texts_that_were_swapped_end_the_session(world: World) -> None:
    pair = world.pair(State.OPEN)
    one, two = (pair.end(A).seal(Message(Kind.TEXT, text)) for text in (b"1", b"2"))
    assert type(error_of(pair.end(B), two)) is MessageLost
    assert is_dropped(pair.end(B), one, WrongSession), "there are no keys any more"


@pytest.mark.parametrize("sequence", [2, 3, 2**31, 2**32 - 1])
def test_a_number_too_high_without_the_keys_is_a_bad_tag(world: World, sequence: int) -> None:
    """Or anybody could end a session with a made-up number."""
    session = world.pair(State.OPEN).end(B)
    message = forge(
        session,
        Kind.TEXT,
        b"x",
        sender=A,
        sequence=sequence,
        keys={name: bytes(len(key)) for name, key in session._keys.items()},
    )
    assert is_dropped(session, message, BadTag)


@ROLES
def test_a_record_of_another_session_changes_nothing(world: World, sender: Role) -> None:
    one = world.pair(State.OPEN)
    message = world.new_pair().end(sender).seal(Message(Kind.TEXT, b"x"))
    session = one.end(OTHER[sender])
    assert is_dropped(session, message, WrongSession)
    spliced = message[:1] + session.session_id + message[17:]
    assert is_dropped(session, spliced, BadTag)
    own = one.end(sender).seal(Message(Kind.TEXT, b"x"))
    assert is_dropped(session, own[:30] + message[30:], BadTag)
    assert is_dropped(session, own[:-16] + message[-16:], BadTag)
    assert session.open(own).body == b"x"


@pytest.mark.parametrize("state", [*WAY][1:], ids=lambda state: state.name)  # a HELLO is nobody's
def test_a_message_of_another_handshake_leads_nowhere(world: World, state: State) -> None:
    sender, kind = WAY[state]
    pair = world.pair(state)
    message = world.new_pair(state).end(sender).seal(Message(kind, BODIES.get(kind, b"")))
    assert is_dropped(
        pair.end(OTHER[sender]), message, WrongAnswer if kind is Kind.REPLY else WrongSession
    )
    own = pair.end(sender).seal(Message(kind, BODIES.get(kind, b"")))
    assert error_of(pair.end(OTHER[sender]), own) is None or kind is Kind.BYE


@pytest.mark.parametrize("share", LOW_ORDER, ids=lambda share: share.hex()[:8])
def test_a_share_that_is_of_no_use_is_refused(world: World, share: bytes) -> None:
    pair = world.pair(State.REPLY)
    reply = introduce(world.bob, Kind.REPLY, answers=pair.messages[0], share=share)
    assert is_dropped(pair.end(A), reply, BadShare)
    assert pair.carry(Kind.REPLY, B).kind is Kind.REPLY
    pair = world.pair()
    error = error_of(pair.end(B), introduce(world.alice, share=share))
    assert (type(error), pair.end(B).state, pair.end(B)._shared) == (BadShare, State.HELLO, b"")
    assert pair.carry(Kind.HELLO, A).kind is Kind.HELLO


def test_without_a_share_of_our_own_any_share_is_of_no_use(world: World) -> None:
    pair = world.pair(State.REPLY)
    pair.end(A)._ephemeral = None
    assert type(error_of(pair.end(A), pair.end(B).seal(Message(Kind.REPLY)))) is BadShare


def test_no_signature_serves_for_the_other_kind(world: World) -> None:
    pair = world.pair(State.REPLY)
    for kind, session, who, of in (
        (Kind.HELLO, world.session(B), world.alice, "REPLY"),
        (Kind.REPLY, pair.end(A), world.bob, "HELLO"),
    ):
        message = introduce(who, kind, answers=pair.messages[0], context=f"peer_messaging v1 {of}")
        assert is_dropped(session, message, BadSignature)
        message = introduce(who, kind, answers=pair.messages[0], key=world.mallory.private_key)
        assert is_dropped(session, message, BadSignature)


def test_a_reply_answers_our_last_hello(world: World) -> None:
    pair = world.pair(State.REPLY)
    assert is_dropped(
        pair.end(A), introduce(world.bob, Kind.REPLY, answers=b"another"), WrongAnswer
    )


def test_whom_the_trust_refuses_the_session_refuses(world: World) -> None:
    for trust, who, expected in (
        (Trust("alice", world.bob.fingerprint), world.mallory, IdentityChanged),
        (Trust("alice", first_use=False), world.alice, UnknownPeer),
        (Trust("alice"), world.bob, WrongPeer),
    ):
        assert is_dropped(world.session(B, trust), introduce(who), expected)
    session = world.session(B)
    assert is_dropped(session, introduce(world.alice, pem=b"x" * 451), UnusableKey)
    assert is_dropped(session, introduce(world.alice, pem=b"\xff" * 451), UnusableKey)
    assert session.open(introduce(world.alice)).kind is Kind.HELLO


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_is_refused(world: World, version: int) -> None:
    assert is_dropped(world.session(B), introduce(world.alice, version=version), BadPayload)


# The order of checks [N 6] ------------------------------------------------------------------------

RECORD_FAULTS = [
    MalformedMessage,
    WrongSession,
    WrongDirection,
    Replayed,
    BadTag,
    MessageLost,
    Untimely,
    UnexpectedKind,
    BadPayload,
]


@pytest.mark.parametrize("first", range(9))
def test_of_many_faults_of_a_record_the_first_in_order_is_told(world: World, first: int) -> None:
    """The record has the fault number `first`, and all that are found later."""
    pair = world.pair(State.OPEN)
    pair.carry(Kind.TEXT)
    session = pair.end(B)
    has = [first <= number for number in range(9)]
    message = forge(
        session,
        Kind.CONFIRM if has[7] else Kind.TEXT,
        b"\xff",
        sender=A,
        session_id=bytes(16) if has[1] else None,
        shown_sender=B if has[2] else None,
        sequence=1 if has[3] else 9 if has[5] else None,
        ago_s=31 if has[6] else 0,
    )
    message = flipped(message, 8 * len(message) - 1) if has[4] else message
    message = message + bytes(4_100) if has[0] else message
    if first <= 4:
        assert is_dropped(session, message, RECORD_FAULTS[first])
    else:
        error = error_of(session, message)
        assert type(error) is RECORD_FAULTS[first]
        assert is_farewell(error, pair.end(A))
        assert session.state is State.ENDED


INTRODUCTION_FAULTS = [
    MalformedMessage,
    UnexpectedKind,
    BadPayload,
    Untimely,
    WrongAnswer,
    UnusableKey,
    IdentityChanged,
    BadSignature,
    BadShare,
]


@pytest.mark.parametrize(
    ("sender", "first"),
    [(sender, first) for sender in (A, B) for first in range(9) if (sender, first) != (A, 4)],
)  # a HELLO answers nothing
def test_of_many_faults_of_an_introduction_the_first_in_order_is_told(
    world: World, sender: Role, first: int
) -> None:
    pair = world.pair(State.HELLO if sender is A else State.REPLY)
    kind = Kind.HELLO if sender is A else Kind.REPLY
    session = pair.end(OTHER[sender]) if first != 1 else pair.end(sender)
    who = pair.end(sender).identity if first > 6 else world.mallory
    has = [first <= number for number in range(9)]
    message = introduce(
        who,
        kind,
        answers=b"" if has[4] else pair.messages[0] if pair.messages else b"",
        share=bytes(32),
        version=2 if has[2] else 1,
        at_s=NOW - 31 if has[3] else NOW,
        pem=b"x" * 451 if has[5] else None,
        context="x" if has[7] else "",
    )
    message += b"x" if has[0] else b""
    if first == 8 and sender is A:  # whose session has made a share of its own meanwhile
        assert type(error_of(session, message)) is BadShare
    else:
        assert is_dropped(session, message, INTRODUCTION_FAULTS[first])


def test_of_two_faults_of_a_key_our_own_is_told_before_a_changed_one(world: World) -> None:
    assert is_dropped(world.session(B), introduce(world.bob), WrongPeer)


# Time ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ago_s", "fits"),
    [
        (-30.001, False),
        (-30.0, True),
        (-29.999, True),
        (0.0, True),
        (29.999, True),
        (30.0, True),
        (30.001, False),
        (-NOW, False),
        (NOW, False),
    ],
)
def test_a_timestamp_is_at_most_30_s_from_our_clock(world: World, ago_s: float, fits: bool) -> None:
    hello = introduce(world.alice, at_s=NOW - ago_s)
    assert (error_of(world.session(B), hello) is None) is fits
    pair = world.pair(State.REPLY)
    reply = introduce(world.bob, Kind.REPLY, answers=pair.messages[0], at_s=NOW - ago_s)
    assert (error_of(pair.end(A), reply) is None) is fits
    for sender in (A, B):
        pair = world.pair(State.OPEN)
        error = error_of(pair.end(OTHER[sender]), forge(pair.end(sender), 7, ago_s=ago_s))
        if fits:
            assert error is None
        else:
            assert type(error) is Untimely
            assert is_farewell(error, pair.end(sender))


def test_the_window_is_what_the_session_was_told(world: World) -> None:
    session = Session(world.bob, Trust("alice"), B, clock=Clock(), window_s=2.0)
    assert is_dropped(session, introduce(world.alice, at_s=NOW - 2.001), Untimely)
    assert is_dropped(session, introduce(world.alice, at_s=NOW + 2.001), Untimely)
    assert session.open(introduce(world.alice, at_s=NOW - 2)).kind is Kind.HELLO


def test_the_greatest_timestamp_of_all_is_only_untimely(world: World) -> None:
    hello = bytearray(introduce(world.alice))
    hello[2:10] = b"\xff" * 8
    assert is_dropped(world.session(B), bytes(hello), Untimely)


def test_a_record_that_was_held_back_ends_the_session(world: World) -> None:
    pair = world.pair(State.OPEN)
    held = pair.end(A).seal(Message(Kind.TEXT, b"now"))
    pair.clock.now += 30.5
    error = error_of(pair.end(B), held)
    assert type(error) is Untimely
    assert str(error) == "Untimely: expected at most 30 s from our clock, got 30.5 s"
    assert is_farewell(error, pair.end(A))


def test_timestamps_are_milliseconds_of_the_clock_that_was_handed_in(world: World) -> None:
    pair = world.pair(State.OPEN)
    pair.clock.now = NOW + 1.234_567
    message = pair.end(B).seal(Message(Kind.PING))
    assert abs(int.from_bytes(message[22:30], "big") - 1_000 * NOW - 1_234) <= 1


# Numbers ------------------------------------------------------------------------------------------


def test_a_session_is_used_up_when_half_of_its_numbers_are(world: World) -> None:
    for role in (A, B):
        session = world.pair(State.OPEN).end(A)
        session._sequence[role] = 2**31 - 1
        assert not session.is_used_up
        session._sequence[role] = 2**31
        assert session.is_used_up


@ROLES
def test_a_session_is_spent_when_hardly_any_of_our_own_numbers_are_left(
    world: World, sender: Role
) -> None:
    pair = world.pair(State.OPEN)
    for session in pair.ends:
        session._sequence[sender] = 2**32 - 2**16 - 1
    session = pair.end(sender)
    peer = pair.end(OTHER[sender])
    assert (session.next_number, session.is_spent) == (2**32 - 2**16 - 1, False)
    assert pair.carry(Kind.TEXT, sender).sequence == 2**32 - 2**16 - 1
    assert (session.next_number, session.is_spent) == (2**32 - 2**16, True)
    assert (peer.next_number, peer.is_spent) == (1, False), "it has its own"
    session.seal(Message(Kind.PING))
    assert session.is_spent, "and stays so"


@ROLES
def test_the_last_number_is_used_and_none_twice(world: World, sender: Role) -> None:
    pair = world.pair(State.OPEN)
    for session in pair.ends:
        session._sequence[sender] = 2**32 - 1
    assert pair.carry(Kind.TEXT, sender).sequence == 2**32 - 1
    session = pair.end(sender)
    before = snapshot(session)
    for kind in (Kind.TEXT, Kind.PING, Kind.BYE):
        with pytest.raises(LocalError, match="no numbers left"):
            session.seal(Message(kind, BODIES.get(kind, b"")))
    assert snapshot(session) == before
    assert is_dropped(pair.end(OTHER[sender]), pair.messages[-1], Replayed)
    assert pair.carry(Kind.TEXT, OTHER[sender]).body == b"hello", "the other one goes on"


def test_who_has_no_numbers_left_fails_without_a_farewell(world: World) -> None:
    for number, is_told in ((2**32 - 1, True), (2**32, False)):
        pair = world.pair(State.OPEN)
        for session in pair.ends:
            session._sequence[A] = number
        error = ProtocolError("this", "that")
        pair.end(A).fail(error)
        assert is_farewell(error, pair.end(B)) is is_told
        assert pair.end(A).state is State.ENDED


# What the peer vouches for ------------------------------------------------------------------------

LIMITS = {
    Kind.CONFIRM: (0, 0),
    Kind.WELCOME: (0, 0),
    Kind.TEXT: (1, 4_096),
    Kind.PING: (0, 0),
    Kind.RECEIPT: (4, 4),
    Kind.PONG: (4, 4),
    Kind.BYE: (1, 1),
}


@pytest.mark.parametrize(
    ("kind", "length", "fits"),
    [
        (kind, length, low <= length <= high)
        for kind, (low, high) in LIMITS.items()
        for length in sorted({low - 1, low, high, high + 1})
        if 0 <= length <= 4_096
    ],
)
def test_a_body_has_the_size_of_its_kind(world: World, kind: Kind, length: int, fits: bool) -> None:
    """Both ends know the limits: who may not send it does not take it either."""
    state, _, sender = next(move for move in MOVES if move[1] is kind)
    pair = world.pair(state)
    body = (ask(pair, sender, kind) + bytes(4_096))[:length] if kind in LIMITS else b""
    body = bytes(length) if kind is Kind.BYE else body
    session = pair.end(OTHER[sender])
    peer = pair.end(sender)
    error = error_of(session, forge(peer, kind, body))
    if fits:
        assert type(error) is (PeerLeft if kind is Kind.BYE else type(None))
        assert peer.seal(Message(kind, body))[0] == kind
        return
    assert type(error) is BadPayload
    assert is_farewell(error, peer) is (state is State.OPEN)
    before = snapshot(peer)
    low, high = LIMITS[kind]
    with pytest.raises(LocalError, match=f"{kind.name} cannot carry this: .* {low} to {high} b"):
        peer.seal(Message(kind, body))
    assert snapshot(peer) == before


def test_the_longest_text_makes_the_longest_message(world: World) -> None:
    pair = world.pair(State.OPEN)
    assert len(pair.carry(Kind.TEXT, body=b"x" * 4_096).body) == 4_096
    assert len(pair.messages[-1]) == 4_142
    with pytest.raises(LocalError, match="TEXT"):
        pair.end(A).seal(Message(Kind.TEXT, b"x" * 4_097))
    assert is_dropped(pair.end(B), forge(pair.end(A), 5, b"x" * 4_097), MalformedMessage)


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        (Kind.TEXT, b"\xff\xff", "UTF-8"),
        (Kind.TEXT, b"a\x80", "UTF-8"),
        (Kind.TEXT, b"\xc0\x80", "UTF-8"),
        (Kind.TEXT, b"\xed\xa0\x80", "UTF-8"),
        (Kind.TEXT, "é".encode()[:1], "UTF-8"),
        (Kind.TEXT, b"\xf4\x90\x80\x80", "UTF-8"),
        (Kind.BYE, b"\2", "a reason"),
        (Kind.BYE, b"\x09", "a reason"),
        (Kind.BYE, b"\xff", "a reason"),
    ],
)
def test_a_text_is_utf_8_and_a_bye_says_a_reason_that_exists(
    world: World, kind: Kind, body: bytes, words: str
) -> None:
    pair = world.pair(State.OPEN)
    with pytest.raises(LocalError, match=words):
        pair.end(A).seal(Message(kind, body))
    error = error_of(pair.end(B), forge(pair.end(A), kind, body))
    assert type(error) is BadPayload
    assert is_farewell(error, pair.end(A))
    assert kind is Kind.BYE or body.hex() not in str(error)


@pytest.mark.parametrize("text", ["\0", "ü", "日本", "\U0001f600", "\u2028", "\ufeff"])
def test_any_text_arrives_as_it_was(world: World, text: str) -> None:
    assert world.pair(State.OPEN).carry(Kind.TEXT, body=text.encode()).body.decode() == text


@ROLES
@pytest.mark.parametrize("kind", [Kind.RECEIPT, Kind.PONG])
def test_what_was_never_sent_is_not_answered(world: World, sender: Role, kind: Kind) -> None:
    base = world.pair(State.OPEN)
    text = base.carry(Kind.TEXT, OTHER[sender]).sequence
    ping = base.carry(Kind.PING, OTHER[sender]).sequence
    good, other = (text, ping) if kind is Kind.RECEIPT else (ping, text)
    for number in (0, other, ping + 1, 2**32 - 1):
        pair = base.clone()
        error = error_of(
            pair.end(OTHER[sender]), forge(pair.end(sender), kind, number.to_bytes(4, "big"))
        )
        assert type(error) is BadPayload, number
        assert error.got == number
        assert is_farewell(error, pair.end(sender))
    base.carry(kind, sender, good.to_bytes(4, "big"))
    assert base.end(OTHER[sender]).unanswered == {
        other: Kind.PING if kind is Kind.RECEIPT else Kind.TEXT
    }
    error = error_of(
        base.end(OTHER[sender]), forge(base.end(sender), kind, good.to_bytes(4, "big"))
    )
    assert type(error) is BadPayload, "nothing is answered twice"


def test_what_waits_for_an_answer_cannot_be_changed_from_outside(world: World) -> None:
    session = world.pair(State.OPEN).end(A)
    session.seal(Message(Kind.TEXT, b"x"))
    session.unanswered.clear()
    assert session.unanswered == {1: Kind.TEXT}


# How sessions end ---------------------------------------------------------------------------------


@ROLES
@pytest.mark.parametrize("reason", Reason)
def test_a_bye_ends_both_ends_and_is_not_answered(
    world: World, sender: Role, reason: Reason
) -> None:
    pair = world.pair(State.OPEN)
    was = pair.end(A).fingerprints()
    keys = pair.end(A)._keys
    with pytest.raises(PeerLeft) as caught:
        pair.carry(Kind.BYE, sender, bytes([reason]))
    assert (caught.value.reason, caught.value.farewell) == (reason, b"")
    assert str(caught.value) == f"PeerLeft: {reason.name}"
    for session in pair.ends:
        assert (session.state, session._keys) == (State.ENDED, {})
        assert session.fingerprints() == was, "what the keys were last is still named"
    for message in pair.messages:
        for session in pair.ends:
            assert error_of(session, message) is not None
            assert session.state is State.ENDED
    for session in pair.ends:  # not even with the old keys
        late = forge(session, Kind.TEXT, b"one more", sender=session.peer_role, keys=keys)
        assert is_dropped(session, late, WrongSession)


@STATES
def test_a_failure_forgets_the_keys_and_is_told_only_in_open(world: World, state: State) -> None:
    for role in (A, B):
        pair = world.pair(state)
        session = pair.end(role)
        peer = pair.end(OTHER[role])
        error = ProtocolError(None, "x")
        was = session.fingerprints()
        session.fail(error)
        assert is_farewell(error, peer) is (state is State.OPEN)
        assert (session.state, session._keys, session._shared, session._ephemeral) == (
            State.ENDED,
            {},
            b"",
            None,
        )
        assert session.fingerprints() == was
        again = ProtocolError(None, "y")
        session.fail(again)
        assert again.farewell == b"", "a farewell is said once"
        assert session.fingerprints() == was


@STATES
@pytest.mark.parametrize("number", [2**32 - 1, 2**32])
def test_goodbye_says_bye_in_open_while_there_is_a_number_for_it(
    world: World, state: State, number: int
) -> None:
    pair = world.pair(state)
    for session in pair.ends:
        session._sequence[A] = number
    session = pair.end(A)
    may_speak = state is State.OPEN and number < 2**32
    assert session.has_farewell is may_speak
    farewell = session.goodbye(Reason.GOODBYE)
    assert bool(farewell) is may_speak
    assert session.state is (State.ENDED if may_speak else state)
    if farewell:
        left = error_of(pair.end(B), farewell)
        assert isinstance(left, PeerLeft)
        assert left.reason is Reason.GOODBYE


# Watchers -----------------------------------------------------------------------------------------


def watched_pair(world: World) -> tuple[Pair, list[Seen], list[Seen]]:
    """Return a new pair, and what the watchers of Alice and of Bob will have seen."""
    clock = Clock()
    seen: tuple[list[Seen], list[Seen]] = ([], [])
    ends = [
        Session(who, Trust("x"), role, clock=clock, watchers=[seen[role].append])
        for who, role in ((world.alice, A), (world.bob, B))
    ]
    return Pair(ends[0], ends[1], clock), *seen


def test_a_watcher_sees_every_message_after_the_decision(world: World) -> None:
    pair, alices, bobs = watched_pair(world)
    for sender, kind in [*WAY.values()][:4]:
        pair.carry(kind, sender)
    pair.carry(Kind.TEXT, A)
    verdicts = ["sealed", "accepted", "sealed", "accepted", "sealed"]
    assert [seen.verdict for seen in alices] == verdicts
    assert [seen.verdict for seen in bobs] == [*verdicts[1:4], "sealed", "accepted"]
    for seen in (alices, bobs):
        assert [one.message for one in seen] == pair.messages
        assert [one.plaintext for one in seen] == [b"", b"", b"", b"", b"hello"]
        assert seen[0].fingerprints == {}
        assert seen[1].fingerprints == seen[-1].fingerprints == pair.end(A).fingerprints()


def test_a_watcher_sees_what_was_refused_and_not_what_was_in_it(world: World) -> None:
    pair, _, bobs = watched_pair(world)
    for sender, kind in [*WAY.values()][:4]:
        pair.carry(kind, sender)
    junk = flipped(forge(pair.end(A), Kind.TEXT, b"junk"), 8 * 40)
    bad = forge(pair.end(A), Kind.TEXT, b"\xff")
    bobs.clear()
    for message in (b"", junk, bad):
        error_of(pair.end(B), message)
    assert [(seen.verdict, seen.message, seen.plaintext) for seen in bobs[:3]] == [
        ("MalformedMessage", b"", b""),
        ("BadTag", junk, b""),
        ("BadPayload", bad, b""),
    ]
    assert [seen.verdict for seen in bobs[3:]] == ["sealed"], "the farewell, after its reason"
    assert bobs[3].message[0] == Kind.BYE
    assert bobs[3].fingerprints == pair.end(A).fingerprints(), "the last there were"


def test_a_watcher_that_raises_changes_nothing_and_is_remembered(world: World) -> None:
    def broken(seen: Seen) -> None:
        raise ValueError("the disk is full")

    clock = Clock()
    ends = [
        Session(who, Trust("x"), role, clock=clock, watchers=[broken])
        for who, role in ((world.alice, A), (world.bob, B))
    ]
    pair = Pair(ends[0], ends[1], clock)
    for sender, kind in [*WAY.values()][:4]:
        pair.carry(kind, sender)
    assert pair.carry(Kind.TEXT).body == b"hello"
    assert is_dropped(pair.end(B), pair.messages[-1], Replayed)
    assert [end.watchers.error for end in pair.ends] == ["ValueError: the disk is full"] * 2


# Keys ---------------------------------------------------------------------------------------------


def test_nothing_that_leads_to_a_key_is_kept_longer_than_it_is_needed(world: World) -> None:
    for state in KEYED:
        for session in world.pair(state).ends:
            assert (session._ephemeral, session._shared) == (None, b"")


def test_no_key_shows_in_a_repr_an_error_or_a_pickle(world: World) -> None:
    pair = world.pair(State.OPEN)
    text = pair.end(A).seal(Message(Kind.TEXT, b"secret text"))
    errors = [
        error_of(clone(pair.end(B)), message)
        for message in (
            flipped(text, 8 * len(text) - 1),
            flipped(text, 8),
            flipped(text, 136),
            b"",
            forge(pair.end(A), 3),
            forge(pair.end(A), 5, b"\xff"),
            forge(pair.end(A), 6, bytes(4)),
            forge(pair.end(A), 7, sequence=9),
            forge(pair.end(A), 7, ago_s=99),
        )
    ]
    assert None not in errors
    session = pair.end(A)
    assert repr(session) == str(session) == "<Session of the INITIATOR, OPEN>"
    shown = [repr(session), *session.fingerprints().values(), *map(repr, errors), *map(str, errors)]
    secrets = [*session._keys.values(), b"secret text"]
    assert not [
        1
        for secret in secrets
        for text_shown in shown
        if secret.hex() in text_shown or repr(secret)[2:-1] in text_shown
    ]
    for steal in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="keys"):
            steal(session)


# No bytes whatsoever ------------------------------------------------------------------------------

_worlds: dict[int, World] = {}


def world_of(keys: Sequence[PrivateKey]) -> World:
    """Return one world for all examples of a property; hypothesis knows no module's fixtures."""
    return _worlds.setdefault(id(keys), World(keys))


RAW = st.one_of(
    st.binary(max_size=120),
    st.builds(
        lambda kind, rest: bytes([kind]) + rest,
        st.sampled_from(Kind),
        st.binary(min_size=45, max_size=120),
    ),
    st.builds(
        lambda head, share: head + bytes(8) + share,
        st.sampled_from([b"\1\1", b"\2\1"]),
        st.sampled_from([bytes(739), bytes(771)]),
    ),
)


@given(message=RAW, state=st.sampled_from(State), role=st.sampled_from([A, B]))
def test_no_bytes_change_anything(
    keys: Sequence[PrivateKey], message: bytes, state: State, role: Role
) -> None:
    session = world_of(keys).pair(state).end(role)
    assert stays(session, message, snapshot(session))


@given(
    kind=st.sampled_from(RECORDS),
    body=st.binary(max_size=20),
    state=st.sampled_from(KEYED),
    sender=st.sampled_from([A, B]),
)
def test_no_sealed_nonsense_ends_in_anything_but_a_typed_error(
    keys: Sequence[PrivateKey], kind: Kind, body: bytes, state: State, sender: Role
) -> None:
    """The peer has the keys, and bad manners."""
    pair = world_of(keys).pair(state)
    session = pair.end(OTHER[sender])
    error = error_of(session, forge(pair.end(sender), kind, body))
    assert session.state is (State.ENDED if error else MOVES[state, kind, sender])
    if error and not isinstance(error, PeerLeft):
        assert is_farewell(error, pair.end(sender)) is (state is State.OPEN)
