"""The protocol, tested on pairs of real sessions: no sockets here."""

from __future__ import annotations

import hmac
import itertools
import pickle
from collections.abc import Callable, Sequence
from datetime import timedelta

import pytest
from Crypto.Cipher import AES
from Crypto.Util.Padding import unpad
from hypothesis import given
from hypothesis import strategies as st

from companions.asymmetric import PrivateKey
from companions.device_transfer import certificates, protocol
from companions.device_transfer.certificates import Role
from companions.device_transfer.protocol import (
    PHASE,
    PLAIN,
    SIZES,
    SPEAKER,
    BadShare,
    BadSignature,
    Direction,
    Kind,
    Message,
    PeerFailed,
    ProtocolFSM,
    RekeyOverdue,
    Session,
    State,
    UnexpectedKind,
    WrongSequence,
    WrongSession,
    read_frame,
    write_frame,
)
from crypto_utils import fingerprint
from protocol_fsm import (
    BadPadding,
    BadPayload,
    BadTag,
    ConnectionCut,
    LocalError,
    MalformedMessage,
    ProtocolError,
    ProtocolState,
    Seen,
    Status,
    WrongDirection,
    WrongPeer,
)
from tests.companions.helpers import (
    BODIES,
    D2S,
    DAY,
    DEVICE,
    ISSUER,
    LOW_ORDER,
    NOW,
    OTHER,
    Pair,
    REKEY_CHUNKS,
    S2D,
    SERVER,
    World,
    behind_lengths,
    flipped,
    forge,
    forge_share,
    is_farewell,
    keys_after,
    legal,
    rsa_verify,
    secret_after,
    sha256,
    snapshot,
    with_header,
    x25519,
)
from tests.sessions import clone, error_of, refusal

ENDS = pytest.mark.parametrize("sends", [D2S, S2D], ids=["device sends", "server sends"])
SHARING = pytest.mark.parametrize(
    "state",
    [State.SHARE, State.SHARE_BACK, State.SENDING, State.REKEYING],
    ids=lambda state: state.name,
)
STATES = pytest.mark.parametrize("state", list(State), ids=lambda state: state.name)
ACTIVE = [state for state in State if PHASE[state] is ProtocolState.ACTIVE]
HANDSHAKE = [*itertools.product((Kind.HELLO, Kind.SHARE, Kind.CONFIRM), Direction)]


@pytest.fixture(scope="module")
def world(keys: Sequence[PrivateKey]) -> World:
    """A test that changes clock or list makes a world of its own."""
    return World(keys)


# A session that goes well -------------------------------------------------------------------------


def test_two_ends_agree_from_hello_to_the_last_ack(world: World) -> None:
    pair = world.pair()
    for kind, sends in HANDSHAKE:
        assert pair.carry(sends, kind).kind is kind
    assert pair.device.peer == world.server.certificate
    assert pair.server.peer == world.device.certificate
    for kind, content in ((Kind.TEXT, b"1"), (Kind.FILE, b"ab")):
        pair.carry(D2S, kind)
        for byte in content:
            assert pair.carry(D2S, Kind.CHUNK, bytes([byte])).body == bytes([byte])
        pair.rekey()
        pair.carry(D2S, Kind.CHUNK)
        assert pair.carry(D2S, Kind.MANIFEST).body == BODIES[Kind.MANIFEST]
        assert pair.carry(S2D, Kind.ACK).body == BODIES[Kind.ACK]
        assert pair.device._keys == pair.server._keys != {}
    pair.carry(D2S, Kind.END)
    pair.carry(S2D, Kind.ACK)
    assert pair.device.state is pair.server.state is State.ENDED


def test_messages_stand_on_the_wire_as_documented(world: World) -> None:
    hello, _, share, _, confirm, _, file = world.pair(State.SENDING).messages
    assert hello[:7] == b"<HELO>\x01"
    assert hello[23:] == world.device.certificate.encoded
    assert (share[:6], len(share)) == (b"<PREM>", 6 + 32 + 256)
    assert (confirm[:6], len(confirm)) == (b"<CONF>", 31 + 16 + 16 + 32)
    assert file[:6] + file[22:31] == b"<IMGX>\0" + bytes(7) + b"\x01"
    assert [kind.value for kind in Kind] == [
        b"<HELO>",
        b"<PREM>",
        b"<CONF>",
        b"<SECX>",
        b"<IMGX>",
        b"<CHNK>",
        b"<REKY>",
        b"<SIGN>",
        b"<ACKN>",
        b"<ENDD>",
        b"<FAIL>",
    ]


def test_equal_chunks_never_look_equal_on_the_wire(world: World) -> None:
    pair = world.pair(State.SENDING)
    for _ in range(REKEY_CHUNKS):
        pair.carry(D2S, Kind.CHUNK)
    sent = pair.messages[-REKEY_CHUNKS:]
    assert len({message[31:47] for message in sent}) == REKEY_CHUNKS, "the IV repeats"
    assert len({message[47:-32] for message in sent}) == REKEY_CHUNKS, "the ciphertext repeats"


def test_nonces_and_shares_are_fresh_in_every_session(world: World) -> None:
    one = world.pair()
    two = world.pair()
    for kind, sends in HANDSHAKE[:4]:
        one.carry(sends, kind)
        two.carry(sends, kind)
    for mine, other in zip(one.messages, two.messages):
        assert mine[7:23] != other[7:23]


# The text of the protocol, computed a second time -------------------------------------------------


def test_keys_and_session_id_are_those_of_the_document(world: World) -> None:
    pair = world.pair(State.SHARE_BACK)
    assert pair.device._ephemeral
    scalar = pair.device._ephemeral.private_bytes_raw()
    pair.carry(S2D, Kind.SHARE)
    salt = sha256(behind_lengths(pair.messages))
    expected = keys_after(secret_after(salt, x25519(scalar, pair.messages[3][6:38])))
    for session in (pair.device, pair.server):
        assert session._keys == expected
        assert session.session_id == salt[:16]
        assert session.fingerprints() == {n: fingerprint(key) for n, key in expected.items()}


def test_rekeying_moves_the_keys_as_documented(world: World) -> None:
    pair = world.pair(State.SENDING)
    for _ in range(2):
        salt = pair.device._secret
        pair.carry(D2S, Kind.REKEY)
        assert pair.device._ephemeral
        scalar = pair.device._ephemeral.private_bytes_raw()
        share = pair.carry(S2D, Kind.REKEY).body[:32]
        secret = secret_after(salt, x25519(scalar, share))
        for session in (pair.device, pair.server):
            assert (session._secret, session._keys) == (secret, keys_after(secret))
            assert session.session_id == pair.messages[-1][6:22], "the session id stays"


def test_shares_are_signed_as_documented(world: World) -> None:
    """What is signed has a salt of 32 random bytes, so that no two signatures are equal."""
    messages = world.pair(State.CONFIRM).messages
    for at, key, context in ((2, 1, "device share"), (3, 2, "server share")):
        share = messages[at][6:38]
        signature = messages[at][38:]
        digest = sha256(behind_lengths([*messages[:at], share]))
        rsa_verify(world.keys[key], context, digest, signature)
    pair = world.pair(State.SHARE)
    assert clone(pair.device).seal(Message(Kind.SHARE)) != clone(pair.device).seal(
        Message(Kind.SHARE)
    )


def test_rekeyings_are_signed_as_documented(world: World) -> None:
    pair = world.pair(State.SENDING)
    h = sha256(behind_lengths(pair.messages[:4]))
    for _ in range(2):
        shares = []
        for sends, key, context in ((D2S, 1, "device rekey"), (S2D, 2, "server rekey")):
            body = pair.carry(sends, Kind.REKEY).body
            shares.append(body[:32])
            digest = sha256(behind_lengths([h, *shares]))
            rsa_verify(world.keys[key], context, digest, body[32:])
        h = digest  # what the server has signed last: all that was offered so far


@ENDS
def test_a_record_is_what_the_document_says_byte_by_byte(world: World, sends: Direction) -> None:
    session = world.pair(State.SENDING if sends is D2S else State.CHECKING).end(sends)
    kind = Kind.CHUNK if sends is D2S else Kind.ACK
    keys = session._keys
    sequence = session._sequence[sends]
    message = session.seal(legal(kind))
    assert message[:31] == (
        kind.value + session.session_id + bytes([sends]) + sequence.to_bytes(8, "big")
    )
    tag = hmac.digest(keys[f"{sends.name}-MAC"], message[:-32], "sha256")
    assert message[-32:] == tag
    aes = AES.new(keys[f"{sends.name}-ENC"], AES.MODE_CBC, message[31:47])
    assert unpad(aes.decrypt(message[47:-32]), 16) == BODIES[kind]


@ENDS
def test_a_record_of_another_implementation_is_opened(world: World, sends: Direction) -> None:
    pair = world.pair(State.SENDING if sends is D2S else State.CHECKING)
    kind = Kind.CHUNK if sends is D2S else Kind.ACK
    opened = pair.end(OTHER[sends]).open(forge(pair.end(sends), kind, BODIES[kind]))
    assert (opened.kind, opened.body) == (kind, BODIES[kind])


def test_a_session_given_its_randomness_says_that(world: World) -> None:
    device = world.session(world.device, random_bytes=lambda length: bytes(range(length)))
    assert device.seal(Message(Kind.HELLO))[6:23] == b"\x01" + bytes(range(16))
    pair = world.pair(State.READY)
    pair.device._random_bytes = lambda length: b"\x08" * length
    assert pair.device.seal(Message(Kind.END))[31:47] == b"\x08" * 16


# The table, every cell ----------------------------------------------------------------------------

MOVES = {
    (State.HELLO, Kind.HELLO, D2S): State.HELLO_BACK,
    (State.HELLO_BACK, Kind.HELLO, S2D): State.SHARE,
    (State.SHARE, Kind.SHARE, D2S): State.SHARE_BACK,
    (State.SHARE_BACK, Kind.SHARE, S2D): State.CONFIRM,
    (State.CONFIRM, Kind.CONFIRM, D2S): State.CONFIRM_BACK,
    (State.CONFIRM_BACK, Kind.CONFIRM, S2D): State.READY,
    (State.READY, Kind.TEXT, D2S): State.SENDING,
    (State.READY, Kind.FILE, D2S): State.SENDING,
    (State.SENDING, Kind.CHUNK, D2S): State.SENDING,
    (State.SENDING, Kind.REKEY, D2S): State.REKEYING,
    (State.REKEYING, Kind.REKEY, S2D): State.SENDING,
    (State.SENDING, Kind.MANIFEST, D2S): State.CHECKING,
    (State.CHECKING, Kind.ACK, S2D): State.READY,
    (State.READY, Kind.END, D2S): State.LEAVING,
    (State.LEAVING, Kind.ACK, S2D): State.ENDED,
    **{
        (state, Kind.FAIL, sends): State.ENDED
        for state in ACTIVE
        for sends in Direction
        if (state, sends) != (State.REKEYING, D2S)
    },
}


def may_say_farewell(session: Session, state: State) -> bool:
    """Return whether a failure in `state` is told: not in the handshake, nor between two keys."""
    return state in ACTIVE and (state, session.sends) != (State.REKEYING, D2S)


def test_states_have_the_phases_and_speakers_of_the_document() -> None:
    assert [(state.name, PHASE[state].name[0], SPEAKER.get(state)) for state in State] == [
        ("HELLO", "I", D2S),
        ("HELLO_BACK", "I", S2D),
        ("SHARE", "I", D2S),
        ("SHARE_BACK", "I", S2D),
        ("CONFIRM", "I", D2S),
        ("CONFIRM_BACK", "I", S2D),
        ("READY", "A", D2S),
        ("SENDING", "A", D2S),
        ("REKEYING", "A", S2D),
        ("CHECKING", "A", S2D),
        ("LEAVING", "A", S2D),
        ("ENDED", "T", None),
    ]
    assert [
        (state.name, set(speaking))
        for state, speaking in itertools.groupby(
            [move for move in MOVES if move[1] is not Kind.FAIL], lambda move: move[0]
        )
        if {sends for _, _, sends in speaking} != {SPEAKER[state]}
    ] == []


@STATES
@ENDS
def test_every_cell_of_the_table_is_opened_or_refused(
    world: World, state: State, sends: Direction
) -> None:
    """What is legal moves both ends alike; all else is an UnexpectedKind, whatever its tag."""
    base = world.pair(state)
    for kind in Kind:
        pair = base.clone()
        session = pair.end(OTHER[sends])
        peer = pair.end(sends)
        if there := MOVES.get((state, kind, sends)):
            message = peer.seal(legal(kind))
            if kind is Kind.FAIL:
                assert type(refusal(session, message)) is PeerFailed
            else:
                assert session.open(message).kind is kind
            assert session.state is peer.state is there
            continue
        message = kind.value + bytes(300)
        if session._keys and kind not in PLAIN:
            message = forge(session, kind, BODIES.get(kind, b""), sender=sends)
        elif kind not in PLAIN:
            message = kind.value + bytes(89)
        error = refusal(session, message)
        assert type(error) is UnexpectedKind, (state, kind, sends)
        assert (error.expected, error.got) == (f"a move from {state.name}", kind.name)
        assert is_farewell(error, peer) is may_say_farewell(session, state)
        assert session.state is State.ENDED


@STATES
@ENDS
def test_every_cell_of_the_table_is_sealed_or_refused(
    world: World, state: State, sends: Direction
) -> None:
    base = world.pair(state).end(sends)
    for kind in Kind:
        session = clone(base)
        before = snapshot(session)
        if there := MOVES.get((state, kind, sends)):
            assert session.seal(legal(kind))[:6] == kind.value
            assert session.state is there
            continue
        with pytest.raises(LocalError, match=f"{kind.name} cannot be sent in {state.name}"):
            session.seal(legal(kind))
        assert snapshot(session) == before, (state, kind, sends)


def test_the_table_is_the_one_of_the_document() -> None:
    assert MOVES == ProtocolFSM.VALID_TRANSITIONS


@ENDS
def test_a_share_is_sealed_once(world: World, sends: Direction) -> None:
    for state in (
        State.SHARE if sends is D2S else State.SHARE_BACK,
        State.SENDING if sends is D2S else State.REKEYING,
    ):
        session = world.pair(state).end(sends)
        kind = Kind.REKEY if state in ACTIVE else Kind.SHARE
        session.seal(Message(kind))
        before = snapshot(session)
        with pytest.raises(LocalError):
            session.seal(Message(kind))
        assert snapshot(session) == before


# What a failure does ------------------------------------------------------------------------------


@STATES
def test_a_failure_ends_the_session_and_forgets_the_keys(world: World, state: State) -> None:
    for sends in Direction:
        pair = world.pair(state)
        session = pair.end(sends)
        peer = pair.end(OTHER[sends])
        was = session.fingerprints()
        error = refusal(session, b"<FAIL>")
        assert type(error) is MalformedMessage
        assert session.state is State.ENDED
        assert (session._keys, session._secret, session._shared, session._ephemeral) == (
            {},
            b"",
            b"",
            None,
        )
        assert session.fingerprints() == was, "what the keys were last is still named"
        assert is_farewell(error, peer) is may_say_farewell(session, state)
        for message in (b"", b"<FAIL>", *pair.messages):
            again = refusal(session, message)
            assert type(again) in (MalformedMessage, UnexpectedKind)
            assert again.farewell == b"", "a farewell is said once"


@STATES
def test_a_cut_connection_has_no_farewell_and_any_other_failure_has(
    world: World, state: State
) -> None:
    for sends in Direction:
        pair = world.pair(state)
        session = pair.end(sends)
        peer = pair.end(OTHER[sends])
        twin = clone(session)
        cut = ConnectionCut(False)
        other = ProtocolError(None, "the disk")
        session.fail(cut)
        twin.fail(other)
        assert session.state is twin.state is State.ENDED
        assert session._keys == twin._keys == {}
        assert cut.farewell == b""
        assert is_farewell(other, peer) is may_say_farewell(session, state)


@STATES
@ENDS
def test_a_goodbye_is_a_fail_where_that_is_legal_and_ends_the_session(
    world: World, state: State, sends: Direction
) -> None:
    """Whatever the status is: a FAIL has no room for it."""
    pair = world.pair(state)
    session = pair.end(sends)
    peer = pair.end(OTHER[sends])
    assert session.has_farewell is may_say_farewell(session, state)
    farewell = session.goodbye(Status.TIMEOUT)
    assert bool(farewell) is may_say_farewell(session, state)
    if farewell:
        assert type(refusal(peer, farewell)) is PeerFailed
    assert (session.state, session._keys, session.has_farewell) == (State.ENDED, {}, False)
    assert session.goodbye(Status.TIMEOUT) == b"", "a farewell is said once"


@pytest.mark.parametrize("state", ACTIVE, ids=lambda state: state.name)
@ENDS
def test_a_fail_says_nothing_and_is_not_answered(
    world: World, state: State, sends: Direction
) -> None:
    pair = world.pair(state)
    error = ProtocolError(None, "a secret reason")
    is_told = may_say_farewell(pair.end(sends), state)
    pair.end(sends).fail(error)
    if not is_told:
        assert error.farewell == b""
        return
    assert len(error.farewell) == 95, "no reason has room in it"
    answer = refusal(pair.end(OTHER[sends]), error.farewell)
    assert (type(answer), str(answer), answer.farewell) == (PeerFailed, "PeerFailed: FAIL", b"")


def test_after_the_last_ack_the_keys_are_gone(world: World) -> None:
    pair = world.pair(State.ENDED)
    for session in (pair.device, pair.server):
        assert (session._keys, session._secret, session._ephemeral) == ({}, b"", None)
        assert len(session.fingerprints()) == 4


def test_nothing_that_leads_to_a_key_is_kept_longer_than_it_is_needed(world: World) -> None:
    ready = world.pair(State.CONFIRM)
    sending = world.pair(State.SENDING)
    old = [*sending.device._keys.values(), sending.device._secret]
    sending.rekey()
    for session in (ready.device, ready.server, sending.device, sending.server):
        assert (session._ephemeral, session._shared, session._share) == (None, b"", b"")
    for session in (sending.device, sending.server):
        kept = [*vars(session).values(), *session._keys.values()]
        assert not [secret for secret in old if secret in kept]


def test_no_key_shows_in_a_repr_an_error_or_a_pickle(world: World) -> None:
    pair = world.pair(State.REKEYING)
    assert repr(pair.device) == "<Session of device-1, REKEYING>"
    secrets = [*pair.device._keys.values(), pair.device._secret]
    error = refusal(clone(pair.device), pair.messages[-1])
    shown = [
        repr(pair.device),
        str(pair.device),
        repr(error),
        str(error),
        repr(error.__dict__),
        f"{pair.device.identity}",
        *pair.device.fingerprints().values(),
    ]
    assert not [
        1
        for secret in secrets
        for text in shown
        if secret.hex() in text or repr(secret)[2:-1] in text
    ]
    with pytest.raises(TypeError, match="keys"):
        pickle.dumps(pair.device)


def test_a_watcher_sees_what_is_sealed_accepted_and_refused(world: World) -> None:
    seen: list[Seen] = []
    server = world.session(world.server, watchers=[seen.append])
    pair = Pair(world.session(world.device, SERVER), server)
    for kind, sends in HANDSHAKE:
        pair.carry(sends, kind)
    pair.carry(D2S, Kind.FILE)
    assert [one.verdict for one in seen] == ["accepted", "sealed"] * 3 + ["accepted"]
    assert [one.message for one in seen] == pair.messages
    assert [one.plaintext for one in seen[-2:]] == [b"", BODIES[Kind.FILE]]
    assert seen[0].fingerprints == {}
    assert seen[-1].fingerprints == server.fingerprints()
    bad = flipped(pair.device.seal(legal(Kind.CHUNK)), 400)
    error = refusal(server, bad)
    assert [(one.verdict, one.message, one.plaintext) for one in seen[7:]] == [
        ("BadTag", bad, b""),
        ("sealed", error.farewell, b""),
    ]


def test_a_watcher_that_raises_changes_nothing(world: World) -> None:
    def broken(seen: Seen) -> None:
        raise ZeroDivisionError("in a watcher")

    device = world.session(world.device, SERVER, watchers=[broken])
    pair = Pair(device, world.session(world.server))
    for kind, sends in HANDSHAKE:
        pair.carry(sends, kind)
    assert device.state is pair.server.state is State.READY
    assert device.watchers.error == "ZeroDivisionError: in a watcher"


def test_a_session_has_no_peer_before_it_has_shown_itself(world: World) -> None:
    with pytest.raises(LocalError):
        _ = world.pair().device.peer


# The order of checks [D 6] ------------------------------------------------------------------------


@pytest.mark.parametrize("first", range(9))
def test_of_many_faults_of_a_record_the_first_in_order_is_told(world: World, first: int) -> None:
    """The record has the fault number `first`, and all that are found later."""
    pair = world.pair(State.SENDING)
    for _ in range(REKEY_CHUNKS):
        pair.carry(D2S, Kind.CHUNK)
    has = [first <= number for number in range(9)]
    message = forge(
        pair.server,
        Kind.ACK if has[1] else Kind.CHUNK,
        b"" if has[7] else b"one more",
        sender=D2S,
        session_id=bytes(16) if has[2] else None,
        direction=1 if has[3] else None,
        sequence=0 if has[4] else None,
        padded=bytes(16) if has[6] and first <= 6 else None,
    )
    message = flipped(message, 8 * len(message) - 1) if has[5] else message
    message += b"\0" if has[0] else b""
    error = refusal(pair.server, message)
    expected: list[type[ProtocolError]] = [
        MalformedMessage,
        UnexpectedKind,
        WrongSession,
        WrongDirection,
        WrongSequence,
        BadTag,
        BadPadding,
        BadPayload,
        RekeyOverdue,
    ]
    assert type(error) is expected[first]
    assert is_farewell(error, pair.device)


@pytest.mark.parametrize("first", range(6))
@ENDS
def test_of_many_faults_of_a_rekeying_the_first_in_order_is_told(
    world: World, sends: Direction, first: int
) -> None:
    pair = world.pair(State.SENDING if sends is D2S else State.REKEYING)
    body = forge_share(pair, sends, bytes(32), key=world.keys[3] if first <= 4 else None)
    message = forge(
        pair.end(sends),
        Kind.REKEY,
        bytes(255) if first == 3 else body,
        padded=bytes(304) if first == 2 else None,
        sequence=99 if first == 0 else None,
    )
    message = flipped(message, 8 * len(message) - 1) if first <= 1 else message
    error = refusal(pair.end(OTHER[sends]), message)
    expected = [WrongSequence, BadTag, BadPadding, BadPayload, BadSignature, BadShare]
    assert type(error) is expected[first]
    assert is_farewell(error, pair.end(sends)) is (sends is D2S), "a device between keys is silent"


@pytest.mark.parametrize("first", range(5))
@ENDS
def test_of_many_faults_of_a_share_the_first_in_order_is_told(
    world: World, sends: Direction, first: int
) -> None:
    pair = world.pair(State.SHARE if sends is D2S else State.SHARE_BACK)
    body = forge_share(pair, sends, bytes(32), key=world.keys[3] if first <= 3 else None)
    kind = {0: b"<PREN>", 1: b"<HELO>"}.get(first, b"<PREM>")
    error = refusal(pair.end(OTHER[sends]), kind + (body[:255] if first <= 2 else body))
    expected = [MalformedMessage, UnexpectedKind, BadPayload, BadSignature, BadShare]
    assert type(error) is expected[first]
    assert error.farewell == b"", "in the handshake a failure just closes"
    assert pair.end(OTHER[sends])._keys == {}


FAULTS: list[type[ProtocolError]] = [
    MalformedMessage,
    UnexpectedKind,
    BadPayload,
    certificates.MalformedCertificate,
    certificates.UntrustedCertificate,
    certificates.UntrustedCertificate,
    certificates.CertificateExpired,
    certificates.WrongRole,
    certificates.RevocationListStale,
    certificates.CertificateRevoked,
    WrongPeer,
]


@pytest.mark.parametrize("first", range(11))
@ENDS
def test_of_many_faults_of_a_hello_the_first_in_order_is_told(
    keys: Sequence[PrivateKey], sends: Direction, first: int
) -> None:
    world = World(keys)
    receiver = world.server if sends is D2S else world.device
    session = world.session(receiver, "somebody-else")
    if sends is S2D:
        session.seal(Message(Kind.HELLO))
    serial = "f" * 16
    good, bad = (Role.DEVICE, Role.SERVER) if sends is D2S else (Role.SERVER, Role.DEVICE)
    world.revocations = world.revocation_list(
        1, [serial] if first <= 9 else [], ends=NOW - timedelta(0, first <= 8)
    )
    made = world.person(
        DEVICE if sends is D2S else SERVER,
        bad if first <= 7 else good,
        serial=serial,
        authority=5 if first <= 5 else 0,
        issuer="elsewhere" if first <= 4 else ISSUER,
        ends=NOW - timedelta(0, 1) if first <= 6 else NOW,
    ).certificate.encoded
    message = (
        b"<HELO>"
        + (b"\x02" if first <= 2 else b"\x01")
        + bytes(16)
        + made
        + (b" " if first <= 3 else b"")
    )
    if first <= 1:
        message = (b"<HELO " if first == 0 else b"<PREM>") + message[6:]
    error = refusal(session, message)
    assert type(error) is FAULTS[first]
    assert (error.farewell, session.state) == (b"", State.ENDED)


def test_every_error_of_a_certificate_ends_the_handshake(keys: Sequence[PrivateKey]) -> None:
    """Those that the order above has no room for."""
    world = World(keys)

    def opened(certificate: bytes, session: Session | None = None) -> ProtocolError:
        return refusal(
            session or world.session(world.server), b"<HELO>\x01" + bytes(16) + certificate
        )

    device = world.device.certificate.encoded
    early = world.person(DEVICE, Role.DEVICE, begins=NOW + timedelta(0, 1)).certificate.encoded
    assert type(opened(early)) is certificates.CertificateNotYetValid
    assert type(opened(bytes(4_097))) is certificates.MalformedCertificate
    assert type(opened(b"")) is certificates.MalformedCertificate
    session = world.session(world.server)
    world.revocations = world.revocation_list(2)
    session.trust.revocation_list()
    world.revocations = world.revocation_list(1)
    assert type(opened(device, session)) is certificates.RevocationListRolledBack
    world.revocations = world.revocation_list(3, authority=4)
    assert type(opened(device)) is certificates.RevocationListUnusable
    world.revocations = b""
    assert type(opened(device)) is certificates.RevocationListUnusable
    world.revocations = world.revocation_list(4)
    session = world.session(world.server)
    session.open(b"<HELO>\x01" + bytes(16) + device)
    assert (session.state, session.peer.encoded) == (State.HELLO_BACK, device)


def test_a_certificate_that_expires_meanwhile_ends_nothing(keys: Sequence[PrivateKey]) -> None:
    """The document holds certificates against the clock when they are shown, and never again."""
    world = World(keys)
    pair = world.pair(State.SENDING)
    world.now = NOW + 9 * DAY
    world.revocations = b""
    pair.rekey()
    assert pair.carry(D2S, Kind.CHUNK).body == b"data"


@pytest.mark.parametrize(
    ("wanted", "accepted"),
    [
        (None, True),
        (SERVER, True),
        ("", False),
        ("server-2", False),
        (DEVICE, False),
        ("server-", False),
        ("SERVER-1", False),
    ],
)
def test_a_device_talks_to_the_server_it_names(
    world: World, wanted: str | None, accepted: bool
) -> None:
    device = world.session(world.device, wanted)
    hello = world.pair(State.HELLO_BACK).server.seal(Message(Kind.HELLO))
    device.seal(Message(Kind.HELLO))
    if accepted:
        assert device.open(hello).kind is Kind.HELLO
    else:
        error = refusal(device, hello)
        assert (type(error), error.expected, error.got) == (WrongPeer, wanted, SERVER)


# Sizes --------------------------------------------------------------------------------------------

LIMITS = {
    Kind.CONFIRM: (0, 0),
    Kind.TEXT: (2, 4_096),
    Kind.FILE: (2, 4_096),
    Kind.CHUNK: (1, 65_536),
    Kind.MANIFEST: (256, 8_192),
    Kind.ACK: (32, 32),
    Kind.END: (0, 0),
    Kind.FAIL: (0, 0),
}


@pytest.mark.parametrize(
    ("kind", "length", "fits"),
    [
        (kind, length, low <= length <= high)
        for kind, (low, high) in LIMITS.items()
        for length in sorted({low - 1, low, high, high + 1})
        if length >= 0
    ],
)
def test_a_body_has_the_size_of_its_kind(world: World, kind: Kind, length: int, fits: bool) -> None:
    """Both ends know the limits: a body that cannot be sealed is not opened either."""
    state, _, sends = next(move for move in MOVES if move[1] is kind)
    pair = world.pair(state)
    error = error_of(clone(pair.end(OTHER[sends])), forge(pair.end(sends), kind, bytes(length)))
    if fits:
        assert type(error) in (type(None), PeerFailed)
        assert pair.end(sends).seal(Message(kind, bytes(length)))[:6] == kind.value
    else:
        assert type(error) is BadPayload
        before = snapshot(pair.end(sends))
        with pytest.raises(LocalError, match=f"a body of {LIMITS[kind][0]} to {LIMITS[kind][1]} b"):
            pair.end(sends).seal(Message(kind, bytes(length)))
        assert snapshot(pair.end(sends)) == before


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (16, BadPayload),
        (17, certificates.MalformedCertificate),
        (8_186, certificates.MalformedCertificate),
        (8_187, MalformedMessage),
    ],
)
def test_a_hello_has_room_for_a_nonce_and_not_for_everything(
    world: World, length: int, expected: type[ProtocolError]
) -> None:
    assert type(refusal(world.pair().server, b"<HELO>\x01" + bytes(length - 1))) is expected


@STATES
def test_a_message_has_at_most_8192_bytes_before_the_handshake_is_over_and_65631_after(
    world: World, state: State
) -> None:
    limit = 8_192 if PHASE[state] is ProtocolState.INIT else 65_631
    pair = world.pair(state)
    for session in (pair.device, pair.server):
        assert session.max_message == limit
        with pytest.raises(MalformedMessage):
            session.read_frame(Stream((limit + 1).to_bytes(4, "big")).recv)
        frame = limit.to_bytes(4, "big") + bytes(limit)
        assert session.read_frame(Stream(frame).recv) == bytes(limit)
        error = refusal(clone(session), b"<HELO>" + bytes(limit - 5))
        assert (type(error), error.expected, error.got) == (
            MalformedMessage,
            f"at most {limit} bytes",
            limit + 1,
        )
        error = refusal(clone(session), b"<HELO>" + bytes(limit - 6))
        assert type(error) is not MalformedMessage, "the limit itself is no fault"


@pytest.mark.parametrize("length", [0, 5, 6, 62, 63, 78, 79, 94, 95, 96, 110, 111])
def test_a_record_has_whole_blocks_and_one_at_least(world: World, length: int) -> None:
    error = refusal(world.pair(State.READY).server, (b"<ENDD>" + bytes(200))[:length])
    assert type(error) is (WrongSession if length in (95, 111) else MalformedMessage)


# Sequence, direction, session ---------------------------------------------------------------------


def test_a_record_replayed_dropped_or_swapped_is_refused(world: World) -> None:
    pair = world.pair(State.SENDING)
    one = pair.device.seal(Message(Kind.CHUNK, b"\x01"))
    two = pair.device.seal(Message(Kind.CHUNK, b"\x02"))
    assert type(refusal(clone(pair.server), two)) is WrongSequence, "one is missing"
    pair.server.open(one)
    error = refusal(clone(pair.server), one)
    assert (type(error), error.expected, error.got) == (WrongSequence, 3, 2)
    assert pair.server.open(two).body == b"\x02"


@pytest.mark.parametrize("sequence", [0, 1, 3, 2**64 - 1])
def test_no_sequence_but_the_next_is_accepted(world: World, sequence: int) -> None:
    pair = world.pair(State.SENDING)
    message = forge(pair.device, Kind.CHUNK, b"data", sequence=sequence)
    assert type(refusal(pair.server, message)) is WrongSequence


@ENDS
def test_a_record_is_not_taken_back_by_who_sent_it(world: World, sends: Direction) -> None:
    """FAIL is legal from both ends; the direction tells them apart, and the keys of each."""
    session = world.pair(State.READY).end(sends)
    own = clone(session).seal(Message(Kind.FAIL))
    error = refusal(clone(session), own)
    assert (type(error), error.expected, error.got) == (WrongDirection, OTHER[sends], sends)
    turned = with_header(own, direction=OTHER[sends], sequence=session._sequence[OTHER[sends]])
    assert type(refusal(session, turned)) is BadTag


@pytest.mark.parametrize("at", range(6))
def test_a_handshake_message_of_another_session_leads_nowhere(world: World, at: int) -> None:
    other = Pair(world.session(world.device, SERVER), world.session(world.server))
    for kind, sends in HANDSHAKE:
        other.carry(sends, kind)
    error = handshake_with(world, at, lambda message: other.messages[at])
    assert type(error) is (BadSignature if at < 4 else WrongSession)


def handshake_with(world: World, at: int, change: Callable[[bytes], bytes]) -> ProtocolError:
    """Return the error with which a handshake ends whose message number `at` is changed."""
    pair = world.pair([*State][at])
    for number, (kind, sends) in [*enumerate(HANDSHAKE)][at:]:
        message = pair.end(sends).seal(Message(kind))
        if error := error_of(pair.end(OTHER[sends]), change(message) if number == at else message):
            return error
        assert pair.end(OTHER[sends]).state not in ACTIVE
    raise AssertionError("nobody has noticed")


def test_a_record_of_another_session_is_refused(world: World) -> None:
    one = world.pair(State.SENDING)
    two = world.pair(State.HELLO)
    for kind, sends in HANDSHAKE:
        two.carry(sends, kind)
    two.carry(D2S, Kind.FILE)
    chunk = one.device.seal(Message(Kind.CHUNK, b"data"))
    assert type(refusal(clone(two.server), chunk)) is WrongSession
    renamed = with_header(chunk, session=two.server.session_id)
    assert type(refusal(two.server, renamed)) is BadTag


# Signatures and shares ----------------------------------------------------------------------------

CONTEXTS = [
    "device share",
    "server share",
    "device rekey",
    "server rekey",
    "manifest",
    "certificate",
    "revocation list",
    "",
]


def offered(pair: Pair, sends: Direction, body: bytes) -> bytes:
    """Return a SHARE, or the REKEY that it is once there are keys."""
    session = pair.end(sends)
    return forge(session, Kind.REKEY, body) if session.state in ACTIVE else b"<PREM>" + body


@pytest.mark.parametrize("context", CONTEXTS)
@SHARING
def test_a_signature_holds_in_one_context_only(world: World, state: State, context: str) -> None:
    pair = world.pair(state)
    sends = SPEAKER[state]
    body = forge_share(pair, sends, b"\x09" + bytes(31), context=context or "device share ")
    role = pair.end(sends).identity.certificate.role.value
    kind = "rekey" if state in ACTIVE else "share"
    message = offered(pair, sends, body)
    if context == f"{role} {kind}":
        assert pair.end(OTHER[sends]).open(message).body == body
    else:
        error = refusal(pair.end(OTHER[sends]), message)
        assert type(error) is BadSignature
        assert error.expected == (
            f"{pair.end(sends).identity.certificate.common_name}, "
            f"as device_transfer v1 {role} {kind}"
        )


@SHARING
def test_a_share_is_signed_by_its_sender_over_all_before_it(world: World, state: State) -> None:
    pair = world.pair(state)
    sends = SPEAKER[state]
    session = pair.end(sends)
    receiver = pair.end(OTHER[sends])
    said = session._transcript
    share = b"\x09" + bytes(31)
    good = forge_share(pair, sends, share)
    wrong = [
        forge_share(pair, sends, share, key=key)
        for key in world.keys
        if key is not session.identity.private_key
    ]
    wrong += [
        forge_share(pair, sends, share, before=before)
        for before in ([], said[:-1], said[::-1], [b"".join(said)], [*said, b""])
        if before != said
    ]
    wrong += [b"\x0a" + good[1:], good[:32] + bytes(256), good[:32] + good[31:-1]]
    for body in wrong:
        assert type(refusal(clone(receiver), offered(pair, sends, body))) is BadSignature
    for body in (good + b"\0", good[1:], good[32:], b""):
        assert type(refusal(clone(receiver), offered(pair, sends, body))) is BadPayload
    assert receiver.open(offered(pair, sends, good)).body == good


@pytest.mark.parametrize("share", LOW_ORDER, ids=lambda share: share.hex()[:8])
@SHARING
def test_a_share_that_is_of_no_use_is_refused(world: World, state: State, share: bytes) -> None:
    pair = world.pair(state)
    sends = SPEAKER[state]
    body = forge_share(pair, sends, share)
    session = pair.end(OTHER[sends])
    assert type(refusal(session, offered(pair, sends, body))) is BadShare
    assert (session._shared, session._ephemeral) == (b"", None)


def test_without_a_share_of_our_own_any_share_is_of_no_use(world: World) -> None:
    pair = world.pair(State.SHARE_BACK)
    pair.device._ephemeral = None
    assert type(refusal(pair.device, pair.server.seal(Message(Kind.SHARE)))) is BadShare


def test_a_reflected_share_is_refused_even_if_both_ends_have_one_key(
    keys: Sequence[PrivateKey],
) -> None:
    world = World(keys)
    world.server = world.person(SERVER, key=1)
    pair = world.pair(State.SHARE)
    share = pair.device.seal(Message(Kind.SHARE))
    assert type(refusal(clone(pair.device), share)) is BadSignature
    body = forge_share(
        pair, D2S, share[6:38], before=[*pair.messages, share], context="device share"
    )
    assert type(refusal(pair.device, b"<PREM>" + body)) is BadSignature


def test_a_share_of_one_rekeying_does_not_answer_another(world: World) -> None:
    pair = world.pair(State.SENDING)
    pair.carry(D2S, Kind.REKEY)
    old = pair.carry(S2D, Kind.REKEY).body
    pair.carry(D2S, Kind.REKEY)
    assert type(refusal(pair.device, forge(pair.server, Kind.REKEY, old))) is BadSignature


def test_a_rekeying_is_not_begun_twice_with_one_signed_share(world: World) -> None:
    """Not even by a thief of all session keys, and of the ephemeral key behind that share."""
    pair = world.pair(State.SENDING)
    old = pair.carry(D2S, Kind.REKEY).body
    pair.carry(S2D, Kind.REKEY)
    assert type(refusal(pair.server, forge(pair.device, Kind.REKEY, old))) is BadSignature


# Rekeying -----------------------------------------------------------------------------------------


def test_rekeying_changes_all_keys_and_no_sequence(world: World) -> None:
    pair = world.pair(State.SENDING)
    pair.carry(D2S, Kind.CHUNK)
    before = pair.device._keys
    sequence = dict(pair.device._sequence)
    session_id = pair.device.session_id
    assert sequence == {D2S: 3, S2D: 1}
    pair.rekey()
    for session in (pair.device, pair.server):
        assert not set(before.values()) & set(session._keys.values())
        assert session._sequence == {D2S: 4, S2D: 2}
        assert session.session_id == session_id
    old = forge(pair.device, Kind.CHUNK, b"data", keys=before)
    assert type(refusal(clone(pair.server), old)) is BadTag, "the old keys open nothing"
    assert pair.carry(D2S, Kind.CHUNK).body == b"data"


def test_both_rekeys_are_sealed_with_the_old_keys(world: World) -> None:
    pair = world.pair(State.SENDING)
    mac = {sends: pair.device._keys[f"{sends.name}-MAC"] for sends in Direction}
    pair.rekey()
    for message, sends in zip(pair.messages[-2:], Direction):
        assert hmac.digest(mac[sends], message[:-32], "sha256") == message[-32:]


def test_rekeying_in_time_is_the_devices_duty_and_the_server_insists(world: World) -> None:
    pair = world.pair(State.SENDING)
    for count in range(REKEY_CHUNKS):
        assert pair.device.chunks == pair.server.chunks == count
        pair.carry(D2S, Kind.CHUNK)
    before = snapshot(pair.device)
    with pytest.raises(LocalError, match="RekeyOverdue"):
        pair.device.seal(Message(Kind.CHUNK, b"one more"))
    assert snapshot(pair.device) == before
    twin = pair.clone()
    error = refusal(twin.server, forge(twin.device, Kind.CHUNK, b"one more"))
    assert (type(error), error.expected) == (RekeyOverdue, f"at most {REKEY_CHUNKS} chunks")
    pair.rekey()
    for _ in range(REKEY_CHUNKS):
        pair.carry(D2S, Kind.CHUNK)
    assert type(refusal(pair.server, forge(pair.device, Kind.CHUNK, b"1"))) is RekeyOverdue


def test_chunks_are_counted_across_files(world: World) -> None:
    pair = world.pair(State.SENDING)
    for kind, sends in (
        (Kind.CHUNK, D2S),
        (Kind.CHUNK, D2S),
        (Kind.MANIFEST, D2S),
        (Kind.ACK, S2D),
        (Kind.TEXT, D2S),
        (Kind.CHUNK, D2S),
    ):
        pair.carry(sends, kind)
    assert type(refusal(pair.server, forge(pair.device, Kind.CHUNK, b"1"))) is RekeyOverdue


def test_one_generation_of_keys_serves_64_mib(world: World) -> None:
    session = Session(world.device, world.trust())
    assert session.rekey_chunks * SIZES[Kind.CHUNK][1] == 64 * 2**20


# Damage -------------------------------------------------------------------------------------------


def test_every_flipped_bit_of_a_record_is_noticed_by_the_right_check(world: World) -> None:
    pair = world.pair(State.READY)
    message = pair.device.seal(Message(Kind.END))
    checks: list[type[ProtocolError]] = [MalformedMessage] * 6
    checks += [WrongSession] * 16 + [WrongDirection] + [WrongSequence] * 8
    checks += [BadTag] * (len(message) - len(checks))
    for bit in range(8 * len(message)):
        error = error_of(clone(pair.server), flipped(message, bit))
        assert type(error) is checks[bit // 8], bit
    assert pair.server.open(message).kind is Kind.END


def test_every_shortened_or_lengthened_record_is_refused(world: World) -> None:
    pair = world.pair(State.READY)
    message = pair.device.seal(legal(Kind.FILE))
    for length in range(len(message)):
        assert isinstance(error_of(clone(pair.server), message[:length]), ProtocolError), length
    for more in (b"\0", bytes(16), message):
        assert isinstance(error_of(clone(pair.server), message + more), ProtocolError)


_worlds: dict[int, World] = {}


def world_of(keys: Sequence[PrivateKey]) -> World:
    """Return one world for all examples of a property; hypothesis knows no module's fixtures."""
    return _worlds.setdefault(id(keys), World(keys))


@pytest.mark.slow
@pytest.mark.parametrize("at", range(6))
def test_every_flipped_bit_of_the_handshake_ends_it(world: World, at: int) -> None:
    """Either at once, or with the signature of the end that has seen it."""
    kind, sends = HANDSHAKE[at]
    base = world.pair([*State][at])
    message = base.end(sends).seal(Message(kind))
    for bit in range(8 * len(message)):
        pair = base.clone()
        if error_of(pair.end(OTHER[sends]), flipped(message, bit)):
            continue
        assert kind is Kind.HELLO, bit
        assert 7 * 8 <= bit < 23 * 8, "only a nonce can be changed unseen, and not for long"
        if sends is D2S:
            pair.carry(S2D, Kind.HELLO)
        share = pair.device.seal(Message(Kind.SHARE))
        assert type(error_of(pair.server, share)) is BadSignature


def test_tags_are_compared_in_constant_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them by crypto_utils.hmac_verify, which has its own tests."""
    pair = world.pair(State.READY)
    asked: list[int] = []

    def always(key: bytes, data: bytes, tag: bytes) -> bool:
        asked.append(len(tag))
        return True

    monkeypatch.setattr(protocol, "hmac_verify", always)
    message = pair.device.seal(Message(Kind.END))
    pair.server.open(flipped(message, 8 * len(message) - 1))
    assert asked == [32]


# No bytes whatsoever end in anything but a typed error --------------------------------------------

KINDS = st.sampled_from([kind.value for kind in Kind])
RAW = st.one_of(
    st.binary(max_size=200),
    st.builds(bytes.__add__, KINDS, st.binary(max_size=400)),
    st.builds(
        lambda kind, blocks: kind + bytes(73) + blocks, KINDS, st.binary(min_size=16, max_size=16)
    ),
    st.builds(lambda rest: b"<HELO>\x01" + bytes(16) + rest, st.binary(max_size=300)),
    st.builds(lambda rest: b"<PREM>" + bytes(32) + rest, st.binary(min_size=256, max_size=256)),
)


@pytest.mark.slow
@given(message=RAW, data=st.data())
def test_no_bytes_end_in_anything_but_a_typed_error(
    keys: Sequence[PrivateKey], message: bytes, data: st.DataObject
) -> None:
    pair = world_of(keys).pair(data.draw(st.sampled_from(State)))
    session = pair.end(data.draw(st.sampled_from(Direction)))
    assert error_of(session, message) is not None
    assert session.state is State.ENDED


@pytest.mark.slow
@given(
    kind=KINDS,
    body=st.binary(max_size=400),
    padded=st.none() | st.binary(min_size=16, max_size=16),
    data=st.data(),
)
def test_no_sealed_nonsense_ends_in_anything_but_a_typed_error(
    keys: Sequence[PrivateKey], kind: bytes, body: bytes, padded: bytes | None, data: st.DataObject
) -> None:
    """The peer has the keys, and bad manners."""
    states = [State.CONFIRM, State.CONFIRM_BACK, *ACTIVE]
    state = data.draw(st.sampled_from(states))
    sends = data.draw(st.sampled_from(Direction))
    pair = world_of(keys).pair(state)
    session = pair.end(OTHER[sends])
    error = error_of(session, forge(session, kind, body, sender=sends, padded=padded))
    assert session.state is (State.ENDED if error else MOVES[state, Kind(kind), sends])
    if error and may_say_farewell(session, state) and not isinstance(error, PeerFailed):
        assert is_farewell(error, pair.end(sends))


# Errors in words ----------------------------------------------------------------------------------


def test_an_overdue_rekeying_and_a_strange_kind_are_told_in_words(world: World) -> None:
    error = refusal(world.pair(State.READY).device, b"<ENDD>" + bytes(89))
    assert str(error) == "UnexpectedKind: expected a move from READY, got END"
    error = refusal(world.pair(State.READY).device, b"nobody")
    assert str(error) == f"MalformedMessage: expected a kind, got {b'nobody'.hex()}"


# Framing [D 1] ------------------------------------------------------------------------------------


class Stream:
    """A TCP connection that gives its bytes in pieces of these sizes, again and again."""

    def __init__(self, data: bytes, sizes: Sequence[int] = (1 << 20,)) -> None:
        self.data = data
        self.sizes = itertools.cycle(sizes)
        self.asked: list[int] = []

    def recv(self, wanted: int) -> bytes:
        self.asked.append(wanted)
        size = min(wanted, next(self.sizes))
        taken = self.data[:size]
        self.data = self.data[size:]
        return taken


@given(
    messages=st.lists(st.binary(min_size=6, max_size=300), max_size=5),
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=5),
)
def test_frames_come_whole_however_tcp_cuts_them(messages: list[bytes], sizes: list[int]) -> None:
    sent: list[bytes] = []
    for message in messages:
        write_frame(sent.append, message)
    assert len(sent) == len(messages), "a frame leaves in one piece"
    stream = Stream(b"".join(sent), sizes)
    assert [read_frame(stream.recv) for _ in messages] == messages
    with pytest.raises(ConnectionCut) as caught:
        read_frame(stream.recv)
    assert not caught.value.mid_frame


def test_a_frame_is_its_length_and_its_message() -> None:
    sent: list[bytes] = []
    write_frame(sent.append, b"<ENDD>")
    assert sent == [b"\0\0\0\x06<ENDD>"]


@pytest.mark.parametrize("length", [0, 1, 5, 8_193, 65_632, 2**31, 2**32 - 1])
def test_a_length_that_no_message_has_is_refused_after_4_bytes(length: int) -> None:
    stream = Stream(length.to_bytes(4, "big") + b"<ENDD>")
    with pytest.raises(MalformedMessage) as caught:
        read_frame(stream.recv, 65_631 if length == 65_632 else 8_192)
    assert caught.value.got == length
    assert stream.asked == [4]


@pytest.mark.parametrize("length", [6, 8_192, 65_631])
def test_the_limits_themselves_are_lengths(length: int) -> None:
    frame = length.to_bytes(4, "big") + bytes(length)
    assert read_frame(Stream(frame).recv, length) == bytes(length)
    assert read_frame(Stream(frame).recv) == bytes(length)


@pytest.mark.parametrize("length", range(10))
def test_the_end_inside_a_frame_is_a_cut_inside_a_frame(length: int) -> None:
    with pytest.raises(ConnectionCut) as caught:
        read_frame(Stream(b"\0\0\0\x06<ENDD>"[:length]).recv)
    assert caught.value.mid_frame is (length > 0)


@given(data=st.binary(max_size=200), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_no_stream_ends_in_anything_but_a_typed_error(data: bytes, sizes: list[int]) -> None:
    stream = Stream(data, sizes)

    def read_all() -> None:
        while True:
            assert len(read_frame(stream.recv)) >= 6

    with pytest.raises((MalformedMessage, ConnectionCut)):
        read_all()
