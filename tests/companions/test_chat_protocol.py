"""secure_chat: Diffie-Hellman, handshake, records and states, on pairs of real sessions."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import operator
import pickle
import warnings
from collections.abc import Mapping
from functools import reduce
from io import BytesIO

import pytest
from Crypto.Util.number import isPrime
from cryptography.hazmat.primitives.asymmetric import dh as library
from hypothesis import given, settings
from hypothesis import strategies as st

from companions.canonical import canonical
from companions.secure_chat import dh, pki
from companions.secure_chat.pae import KINDS, is_signed, pae, parts_of, sign
from companions.secure_chat.protocol import (
    HANDSHAKE,
    MAX_FROM_CLIENT,
    MAX_FROM_SERVER,
    MAX_HANDSHAKE,
    MAX_TEXT_BYTES,
    MEMBERS,
    PHASE,
    RENEWING,
    SPEAKER,
    UPDATE_EVERY,
    BadGroup,
    BadShare,
    BadSignature,
    Direction,
    Kind,
    Message,
    OutsideSubgroup,
    PeerEnded,
    ProtocolFSM,
    Session,
    State,
    UnexpectedKind,
    chained,
    from_base64,
    from_hex,
    keys_of,
    parse,
    read_frame,
    to_base64,
    write_frame,
)
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
)
from tests.companions.chat_helpers import ALICE, DAY, NOW
from tests.companions.chat_sessions import (
    C2S,
    CONVERSATION,
    LOGIN,
    Pair,
    S2C,
    SAID,
    World,
    edited,
    flips,
    in_state,
    message,
    refusal,
)
from tests.sessions import clone

CELLS = [
    (state, kind, direction)
    for state in State
    for kind in Kind
    for direction in Direction
    if state is not State.ENDED
]
REACHED = [state for state in State if state is not State.ENDED]


# Diffie-Hellman -----------------------------------------------------------------------------------


def pi_times_power(bits: int) -> int:
    """Return floor(2^bits pi), by Machin's formula, with 64 bits to spare."""
    one = 1 << bits + 64

    def arctan(inverse: int) -> int:
        total = term = one // inverse
        for n in range(3, 1_000, 2):
            term //= -inverse * inverse
            total += term // n
        return total

    return 4 * (4 * arctan(5) - arctan(239)) >> 64


@pytest.mark.slow
def test_prime_is_that_of_rfc_3526_and_safe() -> None:
    assert 2**2048 - 2**1984 - 1 + 2**64 * (pi_times_power(1918) + 124_476) == dh.PRIME
    assert isPrime(dh.PRIME)
    assert isPrime((dh.PRIME - 1) // 2)


@pytest.mark.slow
@settings(max_examples=20)
@given(st.integers(2, dh.PRIME - 2))
def test_jacobi_symbol_is_eulers_criterion(value: int) -> None:
    euler = pow(value, (dh.PRIME - 1) // 2, dh.PRIME)
    assert dh.jacobi(value, dh.PRIME) % dh.PRIME == euler
    assert dh.is_in_subgroup(value) == (euler == 1)


@pytest.mark.parametrize(
    ("value", "modulus", "symbol"),
    [(1001, 9907, -1), (19, 45, 1), (8, 21, -1), (5, 21, 1), (30, 59, -1), (6, 15, 0), (-1, 7, -1)],
)
def test_jacobi_symbol_is_that_of_the_books(value: int, modulus: int, symbol: int) -> None:
    assert dh.jacobi(value, modulus) == symbol


def test_library_agrees_on_the_secret() -> None:
    mine, theirs = dh.new_exponent(), dh.new_exponent()
    share = pow(dh.GENERATOR, mine, dh.PRIME)
    other = pow(dh.GENERATOR, theirs, dh.PRIME)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, which is why dh.py is there
        numbers = library.DHParameterNumbers(dh.PRIME, dh.GENERATOR)
        public = library.DHPublicNumbers(other, numbers)
        private = library.DHPrivateNumbers(mine, library.DHPublicNumbers(share, numbers))
        expected = private.private_key().exchange(public.public_key())
    assert dh.shared_secret(mine, other) == expected.rjust(256, b"\0")


def test_exponents_have_256_bits_and_differ() -> None:
    exponents = [dh.new_exponent() for _ in range(80)]
    assert len({*exponents}) == 80
    assert reduce(operator.or_, exponents) == (1 << 256) - 1  # each bit is 1 in some
    assert reduce(operator.and_, exponents) == 1 << 255  # and 0 in others, but for the first


def test_secret_keeps_its_leading_zeros() -> None:
    assert dh.shared_secret(1, 4) == bytes(255) + b"\4"


@pytest.mark.parametrize("value", [-1, 0, 1, dh.PRIME - 1, dh.PRIME, dh.PRIME + 4])
def test_values_outside_the_range_are_refused(value: int) -> None:
    assert not dh.is_in_range(value)
    assert dh.is_in_range(2)
    assert dh.is_in_range(dh.PRIME - 2)


# The handshake ------------------------------------------------------------------------------------


def test_both_ends_agree_on_keys_session_and_names(world: World) -> None:
    pair = in_state(world, State.CREDENTIALS)
    assert pair.client._keys == pair.server._keys
    assert len({*pair.client._keys.values()}) == 4
    assert pair.client.session_id == pair.server.session_id
    assert pair.client.peer == world.server.identity
    assert pair.server.peer.name == ALICE
    assert pair.server.peer_pem == world.alice.pem


def test_session_that_has_not_begun_has_no_peer_and_no_secret(world: World) -> None:
    server = in_state(world, State.HELLO).server
    assert (server.peer_pem, server.session_id, server._shared) == ("", b"", b"")
    with pytest.raises(LocalError, match="has not shown"):
        _ = server.peer


def test_keys_follow_from_the_frames_as_readme_says(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    exponents = iter([7, 11])
    monkeypatch.setattr(dh, "new_exponent", lambda: next(exponents))
    pair = in_state(world, State.CREDENTIALS)
    running = b""
    for frame in pair.frames:
        running = chained(running, frame)
    assert pair.client.session_id == running
    assert pair.client._keys == keys_of(running, pow(2, 77).to_bytes(256, "big"))


def test_hash_and_keys_are_those_of_readme_written_out() -> None:
    def mac(key: bytes, data: bytes) -> bytes:
        return hmac.digest(key, data, "sha256")

    running = bytes(range(32))
    shared = bytes(range(256))
    inner = hashlib.sha256(b"a frame").digest()
    assert chained(running, b"a frame") == hashlib.sha256(running + inner).digest()
    secret = mac(mac(running, shared), b"secure_chat v1 secret\1")  # RFC 5869
    assert keys_of(running, shared) == {
        "C2S-ENC": mac(secret, b"secure_chat v1 C2S-ENC\1")[:16],
        "C2S-MAC": mac(secret, b"secure_chat v1 C2S-MAC\1"),
        "S2C-ENC": mac(secret, b"secure_chat v1 S2C-ENC\1")[:16],
        "S2C-MAC": mac(secret, b"secure_chat v1 S2C-MAC\1"),
    }


def test_signature_of_a_share_is_over_role_conversation_and_all_members(world: World) -> None:
    pair = in_state(world, State.SHARE)
    for direction, role, party in (
        (C2S, "dh-client", world.alice),
        (S2C, "dh-server", world.server),
    ):
        running = pair.client._running
        kind = Kind.DH_CLIENT if direction is C2S else Kind.DH_SERVER
        pair.say(direction, message(kind))
        share = parse(pair.frames[-1])
        signature = from_base64(share.pop("sig"))
        under = pae(role, running, canonical(share))
        assert is_signed(party.identity.public_key, under, signature)


def test_session_keys_replace_the_temporary_ones_and_no_secret_stays(world: World) -> None:
    pair = in_state(world, State.CREDENTIALS)
    before = {**pair.client._keys}
    pair.up_to(State.READY)
    assert not {*before.values()} & {*pair.client._keys.values()}
    assert pair.client._keys == pair.server._keys
    for end in (pair.client, pair.server):
        assert end._exponent is None
        assert end._shared == b""
        left = repr(vars(end))
        assert not any(repr(key) in left for key in before.values())


@pytest.mark.slow
def test_each_session_has_fresh_shares_and_keys(world: World) -> None:
    pairs = [in_state(world, State.READY) for _ in range(2)]
    assert pairs[0].client.session_id != pairs[1].client.session_id
    shares = {parse(pair.frames[2])["A"] for pair in pairs}
    shares |= {parse(pair.frames[3])["B"] for pair in pairs}
    nonces = {parse(frame)["nonce"] for pair in pairs for frame in pair.frames[:2]}
    assert (len(shares), len(nonces)) == (4, 4)
    assert {len(from_base64(nonce)) for nonce in nonces} == {32}


def test_ends_that_do_not_pad_the_secret_disagree_with_those_that_do(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once in 256 sessions, between honest ends: a fault, and no attack."""

    class Stripped(Session):
        def _agree(self, value: int) -> bytes:
            return super()._agree(value).lstrip(b"\0")

    pair = Pair(world, client=Stripped).up_to(State.CREDENTIALS)
    assert pair.client._keys == pair.server._keys  # this time, nearly always
    exponents = iter([3, 5])
    monkeypatch.setattr(dh, "new_exponent", lambda: next(exponents))
    pair = Pair(world, client=Stripped).up_to(State.CREDENTIALS)
    assert pair.client._keys != pair.server._keys


def go_on(pair: Pair, number: int, changed: bytes) -> None:
    """Deliver another frame than was sent, and finish the handshake."""
    twins = {end: clone(pair.end(end)) for end in Direction}
    twins[Direction(1 - CONVERSATION[number][0])].open(changed)
    for direction, kind in CONVERSATION[number + 1 : 5]:
        twins[Direction(1 - direction)].open(twins[direction].seal(message(kind)))


@pytest.mark.parametrize("number", range(4))
def test_changed_handshake_frame_never_leads_to_a_session(world: World, number: int) -> None:
    pair = Pair(world)
    for direction, kind in CONVERSATION[:number]:
        pair.say(direction, message(kind))
    direction, kind = CONVERSATION[number]
    frame = pair.end(direction).seal(message(kind))
    for changed in flips(frame, 97):
        with pytest.raises(ProtocolError):
            go_on(pair, number, changed)


def test_share_of_another_conversation_is_refused(world: World) -> None:
    one = in_state(world, State.SHARE)
    frame = in_state(world, State.SHARE).client.seal(message(Kind.DH_CLIENT))
    assert isinstance(refusal(one.server, frame), BadSignature)


class Cheating(Session):
    """An end that offers what it likes."""

    share: Mapping[str, int] = {}

    def _offer(self, kind: Kind) -> dict[str, int]:
        return {**super()._offer(kind), **self.share}


def cheating(**share: int) -> type[Session]:
    return type("CheatingWithThis", (Cheating,), {"share": share})


@pytest.mark.parametrize(
    ("share", "error"),
    [
        ({"A": 0}, BadShare),
        ({"A": 1}, BadShare),
        ({"A": dh.PRIME - 1}, BadShare),
        ({"A": dh.PRIME}, BadShare),
        ({"A": -4}, BadShare),
        ({"A": dh.PRIME - 2}, OutsideSubgroup),
        ({"p": dh.PRIME - 2}, BadGroup),
        ({"g": 4}, BadGroup),
    ],
)
def test_bad_share_of_a_client_is_refused(
    world: World, share: dict[str, int], error: type[ProtocolError]
) -> None:
    pair = Pair(world, client=cheating(**share)).up_to(State.SHARE)
    frame = pair.client.seal(message(Kind.DH_CLIENT))
    assert type(refusal(pair.server, frame)) is error


@pytest.mark.parametrize("value", [1, dh.PRIME - 1, dh.PRIME - 2])
def test_bad_share_of_a_server_is_refused(world: World, value: int) -> None:
    pair = Pair(world, server=cheating(B=value)).up_to(State.SHARE_BACK)
    frame = pair.server.seal(message(Kind.DH_SERVER))
    assert isinstance(refusal(pair.client, frame), (BadShare, OutsideSubgroup))


def test_certificates_are_judged_by_role_name_and_time(world: World) -> None:
    stranger = world.party("server", "elsewhere.example", world.keys[4])
    for party, error in ((world.bob, pki.WrongPurpose), (stranger, pki.WrongName)):
        pair = Pair(world)
        hello = pair.client.seal(message(Kind.HELLO))
        pair.server.open(hello)
        shown = {"server_cert": party.pem, "nonce": parse(hello)["nonce"], "type": "server_hello"}
        assert type(refusal(pair.client, canonical(shown))) is error
    late = Pair(world, now=lambda: NOW + 400 * DAY)
    hello = late.client.seal(message(Kind.HELLO))
    assert isinstance(refusal(late.server, hello), pki.BadCertificate)


def test_refused_certificate_is_told_in_one_word_and_nothing_else_is(world: World) -> None:
    world.authority.revoke([world.bob.identity.certificate])
    try:
        client, server = world.session(world.bob), world.session(world.server)
        error = refusal(server, client.seal(message(Kind.HELLO)))
        assert isinstance(error, pki.Revoked)
        assert error.farewell == b'{"error_type":"bad-cert","type":"error"}'
        with pytest.raises(PeerEnded, match="bad-cert"):
            client.open(error.farewell)
    finally:
        world.authority.revoked.clear()
        world.authority.number += 1
        world.authority.publish()


def test_client_tells_the_server_that_its_certificate_is_refused(world: World) -> None:
    pair = in_state(world, State.HELLO_BACK)
    frame = pair.server.seal(message(Kind.SERVER_HELLO))
    error = refusal(pair.client, edited(frame, server_cert=world.bob.pem))
    with pytest.raises(PeerEnded, match="bad-cert"):
        pair.server.open(error.farewell)


# Records ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [LOGIN, message(Kind.MSG)], ids=["payload", "msg"])
def test_changed_record_is_refused_before_anything_is_decrypted(
    world: World, said: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State.CHAT if said.kind is Kind.MSG else State.CREDENTIALS
    pair = in_state(world, state)
    frame = pair.client.seal(said)
    monkeypatch.setattr(Session, "decrypt", None)
    for changed in flips(frame, 1):
        error = refusal(pair.server, changed)
        assert isinstance(error, (BadTag, BadPayload, MalformedMessage, UnexpectedKind)), changed


@pytest.mark.slow
def test_record_repeated_dropped_or_of_another_session_is_refused(world: World) -> None:
    pair = in_state(world, State.CHAT)
    frames = [pair.client.seal(message(Kind.MSG)) for _ in range(3)]
    assert isinstance(refusal(pair.server, frames[1]), BadTag)
    pair.server.open(frames[0])
    assert isinstance(refusal(pair.server, frames[0]), BadTag)
    assert isinstance(refusal(pair.server, frames[2]), BadTag)
    pair.server.open(frames[1])
    other = in_state(world, State.CHAT)
    assert isinstance(refusal(other.server, frames[0]), BadTag)


@pytest.mark.slow
def test_record_is_not_taken_back_by_who_sent_it(world: World) -> None:
    frame = in_state(world, State.CHAT).client.seal(message(Kind.ERROR))
    assert isinstance(refusal(in_state(world, State.CHAT).client, frame), BadTag)


def test_tag_is_over_direction_number_and_all_members(world: World) -> None:
    pair = in_state(world, State.CREDENTIALS)
    for number in range(2):
        for direction, said in ((C2S, LOGIN), (S2C, message(Kind.REFUSED))):
            pair.say(direction, said)
            record = parse(pair.frames[-1])
            tag = from_base64(record.pop("tag"))
            key = pair.server._keys[f"{direction.name}-MAC"]
            place = bytes([direction, *bytes(7), number])
            assert tag == hmac.digest(key, place + canonical(record), "sha256")


def test_what_is_inside_a_record_is_of_its_kind(world: World) -> None:
    pair = in_state(world, State.CREDENTIALS)
    inside = pair.client.encrypt(canonical({**LOGIN.members, "type": "register"}))
    record = {"type": "login", "payload": to_base64(inside)}
    tag = to_base64(pair.client._tag(C2S, canonical(record)))
    assert isinstance(refusal(pair.server, canonical({**record, "tag": tag})), BadPayload)


def test_record_is_a_payload_and_nothing_else(world: World) -> None:
    pair = in_state(world, State.CREDENTIALS)
    for members in ({}, {"payload": 1}, {"payload": "", "more": ""}):
        record = {**members, "type": "login"}
        tag = to_base64(pair.client._tag(C2S, canonical(record)))
        error = refusal(pair.server, canonical({**record, "tag": tag}))
        assert isinstance(error, BadPayload)
        assert error.expected == "a payload"


def test_only_a_msg_shows_its_members(world: World) -> None:
    pair = in_state(world, State.CHAT)
    for kind in Kind:
        record = parse(pair.client._seal_record({**SAID.get(kind, {}), "type": kind.value}))
        shown = MEMBERS[kind] if kind is Kind.MSG else {"payload"}
        assert record.keys() == {"type", "tag", *shown}
    assert {"type", "tag", *MEMBERS[Kind.MSG]} == parse(pair.client.seal(message(Kind.MSG))).keys()
    assert {"seqno", "ts", "ct", "sig"} < MEMBERS[Kind.MSG].keys(), "the document's"


@pytest.mark.parametrize("plaintext", [b"", b"a", bytes(16), bytes(4_096)])
def test_what_is_encrypted_is_the_documents_iv_and_cbc(world: World, plaintext: bytes) -> None:
    pair = in_state(world, State.CREDENTIALS)
    data = pair.client.encrypt(plaintext)
    assert len(data) == 16 + 16 * (len(plaintext) // 16 + 1)
    assert pair.server.decrypt(data) == plaintext
    assert pair.client.encrypt(plaintext) != data


@pytest.mark.parametrize("length", [0, 15, 16, 31, 33])
def test_ciphertext_of_a_wrong_length_is_refused(world: World, length: int) -> None:
    with pytest.raises(BadPayload):
        in_state(world, State.CREDENTIALS).server.decrypt(bytes(length))


def test_wrong_padding_is_refused(world: World) -> None:
    pair = in_state(world, State.CREDENTIALS)
    data = bytearray(pair.client.encrypt(bytes(15)))
    data[15] ^= 1  # of the IV: makes the padding, one byte 1, a byte 0
    with pytest.raises(BadPadding):
        pair.server.decrypt(bytes(data))


def test_limits_are_those_of_readme() -> None:
    assert (MAX_HANDSHAKE, MAX_FROM_CLIENT, MAX_FROM_SERVER) == (20_480, 65_536, 4_194_304)
    assert (MAX_TEXT_BYTES, UPDATE_EVERY) == (4_096, 1_000)


# States -------------------------------------------------------------------------------------------


TABLE = """
HELLO               >hello HELLO_BACK, <error ENDED
HELLO_BACK          <server_hello SHARE, >error ENDED, <error ENDED
SHARE               >dh_client SHARE_BACK, >error ENDED
SHARE_BACK          <dh_server CREDENTIALS
CREDENTIALS         >register JUDGING, >login JUDGING, >resume JUDGING, >error ENDED, <error ENDED
JUDGING             <refused CREDENTIALS, <welcome SESSION_SHARE, >error ENDED, <error ENDED
SESSION_SHARE       >dh_client SESSION_SHARE_BACK, >error ENDED, <error ENDED
SESSION_SHARE_BACK  <dh_server READY, <error ENDED
READY               >join JOINING, >bye ENDED, >error ENDED, <error ENDED
JOINING             <room CHAT, >error ENDED, <error ENDED
CHAT                >msg CHAT, <relay CHAT, <joined CHAT, <left CHAT
CHAT                >dh_client UPDATING, <update ASKED, >leave LEAVING, >error ENDED, <error ENDED
ASKED               >msg ASKED, <relay ASKED, <joined ASKED, <left ASKED
ASKED               >dh_client UPDATING, >leave LEAVING, >error ENDED, <error ENDED
UPDATING            <relay UPDATING, <joined UPDATING, <left UPDATING
UPDATING            <update UPDATING, <dh_server CHAT, <error ENDED
LEAVING             <relay LEAVING, <joined LEAVING, <left LEAVING
LEAVING             <update LEAVING, <receipt RECEIPT, >error ENDED, <error ENDED
RECEIPT             >receipt COUNTERSIGN, >error ENDED, <error ENDED
COUNTERSIGN         <countersign READY, >error ENDED, <error ENDED
"""  # > is said by the client, < by the server


def test_table_is_the_one_of_readme() -> None:
    moves = {}
    for line in TABLE.strip().splitlines():
        name, told = line.split(maxsplit=1)
        for move in told.split(", "):
            kind, following = move[1:].split()
            moves[State[name], Kind(kind), C2S if move[0] == ">" else S2C] = State[following]
    assert moves == ProtocolFSM.VALID_TRANSITIONS
    assert ProtocolFSM().state is State.HELLO


def test_conversation_reaches_every_state_of_the_table() -> None:
    states = {state for state, _, _ in ProtocolFSM.VALID_TRANSITIONS} | {State.ENDED}
    assert states == {*State} == {*PHASE}
    assert {*SPEAKER} == {*State} - {State.ENDED}
    assert {state for state in State if PHASE[state] is ProtocolState.INIT} == HANDSHAKE
    assert PHASE[State.ENDED] is ProtocolState.TERMINATED


@pytest.mark.parametrize("state", REACHED)
def test_every_cell_of_the_table_is_sealed_or_refused(world: World, state: State) -> None:
    pair = in_state(world, state)
    for there, kind, direction in CELLS:
        if there is not state:
            continue
        twin = clone(pair.end(direction))
        if (state, kind, direction) in ProtocolFSM.VALID_TRANSITIONS:
            twin.seal(message(kind))
            assert twin.state is ProtocolFSM.VALID_TRANSITIONS[state, kind, direction]
        else:
            with pytest.raises(LocalError):
                twin.seal(message(kind))
            assert twin.state is state


@pytest.mark.parametrize("state", REACHED)
def test_every_cell_of_the_table_is_opened_or_refused(world: World, state: State) -> None:
    pair = in_state(world, state)
    for there, kind, direction in CELLS:
        if there is state and (state, kind, direction) not in ProtocolFSM.VALID_TRANSITIONS:
            frame = canonical({"type": kind.value, "payload": "", "tag": ""})
            assert isinstance(refusal(pair.other(direction), frame), UnexpectedKind)


def test_refused_login_may_be_tried_again(world: World) -> None:
    pair = in_state(world, State.CREDENTIALS)
    for _ in range(3):
        pair.say(C2S, LOGIN)
        pair.say(S2C, message(Kind.REFUSED))
    pair.up_to(State.READY)


# Ending -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [state for state in State if state in HANDSHAKE])
def test_failure_in_the_handshake_is_silent(world: World, state: State) -> None:
    pair = in_state(world, state)
    for end in (pair.client, pair.server):
        error = refusal(end, b"nonsense")
        assert isinstance(error, BadPayload)
        assert error.farewell == b""
        assert not end.has_farewell
        assert end.goodbye(Status.SHUTDOWN) == b""
        assert end.state is State.ENDED


@pytest.mark.parametrize("state", [state for state in REACHED if state not in HANDSHAKE])
def test_failure_under_keys_is_told_in_one_sealed_word(world: World, state: State) -> None:
    for direction in Direction:
        pair = in_state(world, state)
        error = refusal(pair.other(direction), b"nonsense")
        if state in RENEWING and direction is S2C:
            assert error.farewell == b""
            assert not pair.client.has_farewell
            continue
        with pytest.raises(PeerEnded, match="violation"):
            pair.end(direction).open(error.farewell)
        assert pair.end(direction).state is State.ENDED
        assert not pair.end(direction)._keys


def test_goodbye_gives_its_reason_and_a_cut_connection_is_not_answered(world: World) -> None:
    pair = in_state(world, State.CHAT)
    farewell = clone(pair.server).goodbye(Status.REPLACED)
    with pytest.raises(PeerEnded, match="replaced"):
        clone(pair.client).open(farewell)
    error = ConnectionCut(mid_frame=False)
    pair.client.fail(error)
    assert error.farewell == b""


def test_ended_session_has_no_keys_and_says_nothing(world: World) -> None:
    pair = in_state(world, State.CHAT)
    names = pair.client.fingerprints()
    keys = [*pair.client._keys.values()]
    pair.client.goodbye(Status.GOODBYE)
    assert not any(repr(key) in repr(vars(pair.client)) for key in keys)
    assert pair.client.fingerprints() == names
    with pytest.raises(LocalError):
        pair.client.seal(message(Kind.BYE))


def test_session_ended_between_two_shares_keeps_no_secret(world: World) -> None:
    pair = in_state(world, State.SHARE_BACK)
    ends = (pair.client, pair.server)
    assert all(end._exponent for end in ends)
    assert len(pair.server._shared) == 256
    for end in ends:
        end.goodbye(Status.SHUTDOWN)
        assert (end._exponent, end._shared) == (None, b"")


def test_session_is_not_pickled_and_shows_no_key(world: World) -> None:
    pair = in_state(world, State.READY)
    with pytest.raises(TypeError, match="keys"):
        pickle.dumps(pair.client)
    assert repr(pair.client) == "<Session of alice@example.org, READY>"
    names = {label: hashlib.sha256(key).hexdigest()[:8] for label, key in pair.client._keys.items()}
    assert pair.client.fingerprints() == names
    assert "a password" not in repr(LOGIN)
    assert repr(world.alice) == f"Party(identity={world.alice.identity!r})"


def test_watchers_see_every_decision_and_change_nothing(world: World) -> None:
    seen: list[Seen] = []
    pair = Pair(world, watchers=[seen.append]).up_to(State.CREDENTIALS)
    assert [one.verdict for one in seen] == ["sealed", "accepted"] * 4
    with pytest.raises(UnexpectedKind):
        pair.server.open(canonical({"type": "bye"}))
    assert [one.verdict for one in seen[-2:]] == ["UnexpectedKind", "sealed"]  # the farewell
    assert seen[-2].plaintext == b""


# Bad input ----------------------------------------------------------------------------------------

HELLO = {"client_cert": "x", "nonce": "AAAA", "type": "hello"}


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"nonsense",
        b"[]",
        b"{}",
        b"null",
        b'{"type":"hello","type":"hello"}',
        b'{"type": "hello"}',
        b'{"nonce":"","client_cert":"","type":"hello"}',
        b'{"type":"hello","x":' + b"[" * 5_000 + b"]" * 5_000 + b"}",
        b'{"type":"hello","x":' + b"9" * 5_000 + b"}",
        b'{"type":"hello","x":NaN}',
        b'{"type":"hello"}\n',
        '{"type":"hello","x":"\u00e9"}'.encode(),
        b'{"type":["hello"]}',
        b'{"type":7}',
        b'{"type":"no-such-type"}',
        canonical({**HELLO, "more": 1}),
        canonical({**HELLO, "nonce": True}),
        canonical({**HELLO, "nonce": "not base64!"}),
        canonical({**HELLO, "nonce": to_base64(bytes(31))}),
        canonical(HELLO),
        canonical({"client_cert": "|\n|", "nonce": to_base64(bytes(32)), "type": "hello"}),
    ],
)
def test_nonsense_ends_the_session_with_a_typed_error(world: World, frame: bytes) -> None:
    refusal(world.session(world.server), frame)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_nonce_of_a_wrong_length_is_refused(world: World, length: int) -> None:
    hello = world.session(world.alice).seal(message(Kind.HELLO))
    changed = edited(hello, nonce=to_base64(bytes(length)))
    assert isinstance(refusal(world.session(world.server), changed), BadPayload)


def test_frames_are_bounded_by_who_sends_them_and_when(world: World) -> None:
    pair = in_state(world, State.HELLO)
    assert pair.server.max_message == pair.client.max_message == MAX_HANDSHAKE
    pair.up_to(State.CHAT)
    assert pair.server.max_message == MAX_FROM_CLIENT
    assert pair.client.max_message == MAX_FROM_SERVER
    assert isinstance(refusal(pair.server, b" " * (MAX_FROM_CLIENT + 1)), MalformedMessage)
    longest = b" " * MAX_FROM_CLIENT
    assert isinstance(refusal(pair.server, longest), BadPayload)
    assert pair.server.read_frame(BytesIO(b"\0\1\0\0" + longest).read) == longest
    for length in (0, 1, MAX_FROM_CLIENT + 1, 10_000_000):
        with pytest.raises(MalformedMessage):
            pair.server.read_frame(BytesIO(length.to_bytes(4, "big")).read)


@pytest.mark.slow
@given(st.binary(min_size=2, max_size=60), st.data())
def test_frame_is_read_however_tcp_cuts_it(content: bytes, data: st.DataObject) -> None:
    sent = bytearray()
    write_frame(sent.extend, content)

    def recv(wanted: int) -> bytes:
        piece = bytes(sent[: data.draw(st.integers(1, wanted))])
        del sent[: len(piece)]
        return piece

    assert read_frame(recv) == content
    with pytest.raises(ConnectionCut) as cut:
        read_frame(recv)
    assert not cut.value.mid_frame


def test_stream_that_ends_inside_a_frame_is_cut_there() -> None:
    for begun in (b"\0\0", b"\0\0\0\2", b"\0\0\0\2{"):
        with pytest.raises(ConnectionCut) as cut:
            read_frame(BytesIO(begun).read)
        assert cut.value.mid_frame


def test_frame_is_its_length_and_the_message_in_one_piece() -> None:
    sent: list[bytes] = []
    write_frame(sent.append, b"{}")
    assert sent == [b"\0\0\0\2{}"]


def test_error_says_only_a_known_word(world: World) -> None:
    pair = in_state(world, State.CHAT)
    with pytest.raises(LocalError):
        pair.client.seal(Message(Kind.ERROR, {"error_type": "\x1b[2J"}))


def test_sender_obeys_the_members_of_each_message(world: World) -> None:
    pair = in_state(world, State.CREDENTIALS)
    for members in ({}, {"email": ALICE}, {"email": ALICE, "pwd": 1}, {"email": 1, "pwd": ""}):
        with pytest.raises(LocalError):
            pair.client.seal(Message(Kind.LOGIN, members))
    with pytest.raises(LocalError):
        pair.client.seal(Message(Kind.LOGIN, {"email": ALICE, "pwd": "\ud800"}))
    pair.say(C2S, LOGIN)


def test_table_of_members_has_every_message() -> None:
    assert MEMBERS.keys() == {*Kind}
    without = {Kind.HELLO, Kind.SERVER_HELLO, Kind.DH_CLIENT, Kind.DH_SERVER}
    for kind, members in MEMBERS.items():
        if kind not in without:
            assert {name: type(value) for name, value in SAID.get(kind, {}).items()} == members


@pytest.mark.parametrize("text", ["A", "AA==A", "AAA", "AB==", "AA= =", "AA\n==", "-_-_", "\u00e9"])
def test_base64_has_one_form(text: str) -> None:
    with pytest.raises(BadPayload):
        from_base64(text)


def test_base64_is_of_as_many_bytes_as_are_asked_for() -> None:
    assert from_base64("") == b""
    assert from_base64("AAAA", 3, 3) == bytes(3)
    for low, high in ((4, 5), (1, 2)):
        with pytest.raises(BadPayload):
            from_base64("AAAA", low, high)


@pytest.mark.parametrize("text", ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64, " " + "0" * 63])
def test_hash_is_64_lower_case_digits(text: str) -> None:
    with pytest.raises(BadPayload):
        from_hex(text)
    assert from_hex("0f" * 32) == b"\x0f" * 32


# Signatures ---------------------------------------------------------------------------------------


def test_signed_bytes_are_those_of_readme_written_out() -> None:
    start = b"\0\0\0\x0bsecure_chat\0\0\0\3msg\0\0\0\1\1"
    assert pae("msg", b"", b"ab") == start + b"\0\0\0\0\0\0\0\2ab"


@given(st.sampled_from(KINDS), st.sampled_from(KINDS), st.lists(st.binary(max_size=8), max_size=4))
def test_signed_bytes_are_of_one_kind_and_one_list_of_parts(
    kind: str, other: str, parts: list[bytes]
) -> None:
    data = pae(kind, *parts)
    assert parts_of(kind, data) == parts
    if other != kind:
        assert pae(other, *parts) != data
        with pytest.raises(ValueError, match="not the signed bytes"):
            parts_of(other, data)


def test_signature_of_each_kind_is_worthless_in_every_other_place(world: World) -> None:
    key = world.keys[2]
    signed = {kind: sign(key, pae(kind, b"one", b"other")) for kind in KINDS}
    for (kind, signature), other in itertools.product(signed.items(), KINDS):
        is_good = is_signed(key.public_key(), pae(other, b"one", b"other"), signature)
        assert is_good == (kind == other)
    with pytest.raises(ValueError):
        pae("else", b"")
