"""The protocol, tested on pairs of real sessions: no sockets here."""

from __future__ import annotations

import inspect
import itertools
import json
import math
import pickle
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import Crypto.Random
import pytest

import protocol_fsm
from crypto_utils import NONCE_BYTES, TAG_BYTES, derive_key, evolve_key, fingerprint
from protocol_fsm import (
    CIPHERTEXT_AT,
    HEADER,
    LAST_ROUND,
    MAX_BODY,
    MAX_MESSAGE,
    MIN_MESSAGE,
    OVERHEAD,
    PHASE,
    SPEAKER,
    BadPadding,
    BadPayload,
    BadTag,
    ClientData,
    ClientHello,
    ConnectionCut,
    DeadlineExpired,
    Direction,
    EchoMismatch,
    Header,
    Json,
    KeyDesync,
    Keys,
    LocalError,
    MalformedMessage,
    Message,
    Opcode,
    PeerTerminated,
    ProtocolError,
    ProtocolFSM,
    ProtocolState,
    RoundMismatch,
    Seen,
    ServerAggrResponse,
    ServerChallenge,
    Session,
    State,
    Status,
    Terminate,
    UnexpectedOpcode,
    WrongDirection,
    WrongPeer,
    bind_keys,
    parse_message,
    read_frame,
    write_frame,
)
from tests.helpers import (
    ANSWER,
    GOODBYE,
    MASTER_KEY,
    Pair,
    REPORT,
    ciphertext_of,
    farewell_of,
    pair_in,
    reseal,
    with_header,
    worded,
)
from tests.properties import given, st
from tests.secrets_walk import held, objects, opaque, reachable
from tests.sessions import clone, error_of, refusal

C2S = Direction.C2S
S2C = Direction.S2C
FAREWELLS = {Opcode.TERMINATE, Opcode.KEY_DESYNC_ERROR}
MESSAGES: dict[Opcode, Message] = {  # one of each class
    Opcode.CLIENT_HELLO: ClientHello(),
    Opcode.SERVER_CHALLENGE: ServerChallenge(),
    Opcode.CLIENT_DATA: REPORT,
    Opcode.SERVER_AGGR_RESPONSE: ANSWER,
    Opcode.KEY_DESYNC_ERROR: KeyDesync(),
    Opcode.TERMINATE: GOODBYE,
}

# A session that goes well


def test_two_ends_agree_from_hello_to_goodbye() -> None:
    pair = Pair(client_id=255)
    assert pair.hello() == ClientHello()
    assert pair.challenge() == ServerChallenge()
    for round_number in (1, 2, 3):
        assert pair.client.round_number == pair.server.round_number == round_number
        assert pair.report(ClientData([round_number, 0.5])) == ClientData([round_number, 0.5])
        aggregate: dict[str, Json] = {"sum": round_number}
        assert pair.answer(ServerAggrResponse(aggregate)) == ServerAggrResponse(aggregate)
        assert pair.client.fingerprints() == pair.server.fingerprints()
    with pytest.raises(PeerTerminated) as caught:
        pair.carry(C2S, GOODBYE)
    assert (caught.value.opcode, caught.value.status) == (Opcode.TERMINATE, Status.GOODBYE)
    assert caught.value.farewell == b""
    assert pair.client.state is pair.server.state is State.ENDED


def test_equal_readings_never_look_equal_on_the_wire() -> None:
    pair = pair_in(State.REPORT, rounds=8)
    for position in range(2):
        messages = pair.transcript[2 + position :: 2]
        assert len({m[7:23] for m in messages}) == 8, "the IV repeats"
        assert len({ciphertext_of(m) for m in messages}) == 8, "the ciphertext repeats"


def test_header_stands_on_the_wire_as_documented() -> None:
    pair = Pair(client_id=7, first_round=0x01020304)
    pair.hello()
    pair.challenge()
    pair.report()
    assert pair.transcript[0][:7] == bytes([10, 7, 0, 0, 0, 0, 0])
    assert pair.transcript[1][:7] == bytes([20, 7, 0, 0, 0, 0, 1])
    assert pair.transcript[2][:7] == bytes([30, 7, 1, 2, 3, 4, 0])


# Keys


def test_keys_move_by_the_documented_formulas() -> None:
    draws: list[bytes] = []

    def draw(length: int) -> bytes:
        draws.append(random.randbytes(length))
        return draws[-1]

    pair = Pair(client_random=draw, server_random=draw)
    expected = {label: derive_key(MASTER_KEY, label) for label in protocol_fsm.KEY_LABELS}
    assert pair.client._keys == pair.server._keys == expected
    pair.hello()
    assert pair.client._keys == pair.server._keys == expected
    pair.challenge()
    client_nonce, _, server_nonce, _ = draws
    both_nonces = client_nonce + server_nonce
    expected = {label: evolve_key(key, both_nonces) for label, key in expected.items()}
    assert pair.client._keys == pair.server._keys == expected
    pair.report()
    expected["C2S-ENC"] = evolve_key(expected["C2S-ENC"], ciphertext_of(pair.transcript[2]))
    expected["C2S-MAC"] = evolve_key(expected["C2S-MAC"], draws[4])
    assert pair.client._keys == pair.server._keys == expected
    pair.answer()
    expected["S2C-ENC"] = evolve_key(expected["S2C-ENC"], ANSWER.body)
    expected["S2C-MAC"] = evolve_key(expected["S2C-MAC"], b"\x00")
    assert pair.client._keys == pair.server._keys == expected


def test_each_end_binds_with_the_client_nonce_that_it_drew_or_accepted_itself() -> None:
    """A copy that came back is compared, never used: without the check, the ends still differ."""

    class Trusting(Session):
        def _check_echo(self, client_nonce: bytes) -> None:
            pass

    client = Trusting(1, MASTER_KEY, C2S, random_bytes=lambda length: b"o" * length)
    server = Session(1, MASTER_KEY, S2C)
    server.open(client.seal(ClientHello()))
    before = client._keys
    foreign = b"\x00" + b"f" * 16 + b"s" * 16
    client.open(reseal(server, Opcode.SERVER_CHALLENGE, foreign))
    assert client._keys == bind_keys(before, b"o" * 16, b"s" * 16)
    server._client_nonce = b"f" * 16  # so that it echoes another one than it binds with
    server.seal(ServerChallenge())
    assert server._keys != client._keys


def test_keys_differ_by_client_direction_use_and_session() -> None:
    first = pair_in(State.REPORT)
    second = pair_in(State.REPORT)
    other = Pair(client_id=2)
    seen = [key for pair in (first, second) for key in pair.client._keys.values()]
    assert len(set(seen)) == 8
    assert other.client._keys == Pair().client._keys, "the id is no part of the derivation"


@pytest.mark.parametrize("status", [Status.GOODBYE, Status.VIOLATION])
def test_terminate_moves_no_key_and_then_all_keys_are_gone(status: Status) -> None:
    pair = pair_in(State.REPORT, rounds=1)
    before = pair.client.fingerprints()
    with pytest.raises(PeerTerminated):
        pair.carry(C2S, Terminate(status))
    for session in (pair.client, pair.server):
        assert session.fingerprints() == before, "what the keys were last is still named"
        assert session._keys == {}


def test_no_key_shows_in_a_repr_an_error_or_a_pickle() -> None:
    pair = pair_in(State.ANSWER, rounds=1)
    secrets = [MASTER_KEY, *pair.server._keys.values()]
    error = refusal(clone(pair.server), pair.transcript[2])
    shown = [
        repr(pair.client),
        str(pair.server),
        repr(error),
        str(error),
        repr(error.__dict__),
        repr(refusal(clone(pair.client), b"")),
        *pair.client.fingerprints().values(),
    ]
    for secret in secrets:
        assert not any(secret.hex() in text or repr(secret)[2:-1] in text for text in shown)
    with pytest.raises(TypeError, match="keys"):
        pickle.dumps(pair.client)


def test_the_master_key_is_not_kept() -> None:
    assert MASTER_KEY not in kept_in(Session(1, MASTER_KEY, C2S))


def kept_in(session: Session) -> set[bytes]:
    """Return all bytes that can be reached from a session, but not through its test's functions."""
    twin = clone(session)
    twin._random_bytes = bytes
    twin.watchers = protocol_fsm.Watchers()
    return {bytes(data) for _, data in reachable(twin)}


def test_nothing_that_a_session_has_moved_on_from_is_kept_in_it() -> None:
    """No old chain key, no nonce and no plaintext, anywhere in it."""
    secrets: set[bytes] = set()

    def draw(length: int) -> bytes:
        drawn = random.randbytes(length)
        secrets.add(drawn)
        return drawn

    def see(seen: Seen) -> None:
        secrets.add(seen.plaintext)

    ends = [
        Session(1, MASTER_KEY, sends, watchers=[see], random_bytes=draw) for sends in (C2S, S2C)
    ]
    client, server = ends
    moves: list[Message] = [ClientHello(), ServerChallenge(), REPORT, ANSWER, REPORT, GOODBYE]
    for message in moves:
        sender, receiver = (server, client) if message.opcode in (20, 40) else (client, server)
        secrets.update(client._keys.values())
        try:
            receiver.open(sender.seal(message))
        except PeerTerminated:
            assert message is GOODBYE
        wanted = {client._client_nonce} if message.opcode == 10 else set()  # it awaits its echo
        for session in ends:
            kept = kept_in(session) & (secrets - {b""})
            assert kept <= {*session._keys.values()} | wanted, message
    assert len(secrets) > 30
    assert not kept_in(client) & secrets - {b""}


@pytest.mark.parametrize("ends", ["refused", "failed", "said goodbye"])
@pytest.mark.parametrize("state", [s for s in State if s is not State.ENDED])
def test_a_session_that_has_ended_keeps_no_secret_however_it_ended(state: State, ends: str) -> None:
    drawn: list[bytes] = []

    def draw(length: int) -> bytes:
        drawn.append(random.randbytes(length))
        return drawn[-1]

    for sends in (C2S, S2C):
        drawn.clear()
        session = pair_in(state).end(sends)
        session._random_bytes = draw
        nonce = session._client_nonce
        secrets = {**session._keys}
        if ends == "refused":
            refusal(session, bytes(MIN_MESSAGE))
        elif ends == "failed":
            session.fail(DeadlineExpired())
        elif not session.goodbye(Status.SHUTDOWN):
            continue  # nothing may be said in the handshake
        session._random_bytes = bytes
        secrets |= {"the client nonce": nonce, "a nonce": drawn[0] if drawn else b""}
        assert held(session, {name: secret for name, secret in secrets.items() if secret}) == {}
        assert opaque(session) == []


def test_a_session_does_not_grow_with_its_messages() -> None:
    pair = pair_in(State.REPORT, rounds=2)
    before = [len(objects(session)) for session in (pair.client, pair.server)]
    pair.rounds(300)
    assert [len(objects(session)) for session in (pair.client, pair.server)] == before


def test_a_session_of_nobody_and_a_first_round_are_as_the_document_says() -> None:
    assert Session(0, MASTER_KEY, S2C).client_id == 0, "a server has one until it knows more"
    machine = ProtocolFSM()
    machine.advance(Opcode.CLIENT_HELLO, C2S)
    machine.advance(Opcode.SERVER_CHALLENGE, S2C)
    assert machine.round_number == 1


def test_a_key_log_that_fails_is_told_to_the_sessions_owner() -> None:
    def full(keys: Keys) -> None:
        raise OSError("no space")

    session = Session(1, MASTER_KEY, C2S, key_log=full)
    session.seal(ClientHello())
    assert session.watchers.error == "OSError: no space"


def test_what_is_random_comes_from_the_library_alone() -> None:
    """A source of fewer bits, say of four bytes repeated, would pass every other test."""
    defaults = inspect.signature(Session).parameters
    assert defaults["random_bytes"].default is Crypto.Random.get_random_bytes
    assert Session(1, MASTER_KEY, C2S)._random_bytes is Crypto.Random.get_random_bytes


# Checks hold for messages of every length, and as well late as early

LATE_ROUNDS = [1, 2, 255, 256, 65_535, 65_536, 2**24, 2**31 - 1, 2**31, LAST_ROUND - 1, LAST_ROUND]


@pytest.mark.parametrize("round_number", LATE_ROUNDS)
def test_every_check_of_a_header_holds_in_every_round(round_number: int) -> None:
    pair = pair_in(State.REPORT, first_round=round_number)
    report = pair.client.seal(REPORT)
    expected = {
        "opcode": UnexpectedOpcode,
        "client_id": WrongPeer,
        "round_number": RoundMismatch,
        "direction": WrongDirection,
    }
    header = Header(*HEADER.unpack_from(report))
    assert header.round_number == round_number
    for field, error in expected.items():
        for bit in range(32 if field == "round_number" else 8):
            value = getattr(header, field) ^ 1 << bit
            changed = with_header(report, **{field: value})
            is_farewell = field == "opcode" and value in FAREWELLS
            wanted = BadTag if is_farewell else error
            assert type(refusal(clone(pair.server), changed)) is wanted, (field, value)
    with pytest.raises(BadTag):
        clone(pair.server).open(report[:-1] + bytes([report[-1] ^ 1]))
    assert clone(pair.server).open(report) == REPORT


def changed_everywhere(message: bytes) -> Iterator[bytes]:
    """Yield the message with one bit changed: in every byte of IV and tag, and some between."""
    length = len(message)
    middle = random.sample(range(CIPHERTEXT_AT, length - TAG_BYTES), 4)
    for at in [*range(HEADER.size, CIPHERTEXT_AT), *middle, *range(length - TAG_BYTES, length)]:
        yield message[:at] + bytes([message[at] ^ 1 << random.randrange(8)]) + message[at + 1 :]


def check_tags(blocks: Sequence[int]) -> None:
    pair = pair_in(State.REPORT)
    for count in blocks:
        plaintext = bytes(NONCE_BYTES) + b"[" + b" " * (16 * count - NONCE_BYTES - 3) + b"]"
        message = reseal(pair.client, Opcode.CLIENT_DATA, plaintext)
        assert len(message) == OVERHEAD + 16 * count
        for changed in changed_everywhere(message):
            assert type(refusal(clone(pair.server), changed)) is BadTag, count
        assert clone(pair.server).open(message) == ClientData([])


def test_a_changed_bit_is_found_in_messages_of_many_lengths() -> None:
    most = (MAX_MESSAGE - OVERHEAD) // 16
    check_tags([2, 3, 4, 15, 16, 17, 255, 256, 257, most])


@pytest.mark.slow
def test_a_changed_bit_is_found_in_messages_of_any_length() -> None:
    check_tags(random.sample(range(2, (MAX_MESSAGE - OVERHEAD) // 16 + 1), 500))


@pytest.mark.parametrize("at", ["first", "middle", "last"])
def test_one_illegal_number_is_found_among_any_others(at: str) -> None:
    for count in (1, 2, 3, 64, 65, 511, 1_024):
        for illegal in (True, None, "1", math.nan, math.inf, 1.1e15, -1.1e15, 10**400):
            readings: list[Any] = [1.5] * count
            readings[{"first": 0, "middle": count // 2, "last": -1}[at]] = illegal
            with pytest.raises(LocalError):
                _ = ClientData(readings).body
            body = json.dumps(readings).encode()
            if len(body) <= MAX_BODY:
                with pytest.raises(BadPayload):
                    parse_message(Opcode.CLIENT_DATA, C2S, bytes(NONCE_BYTES) + body)


def test_fingerprints_name_each_key_by_the_start_of_its_hash() -> None:
    session = pair_in(State.REPORT).client
    assert session.fingerprints() == {n: fingerprint(k) for n, k in session._keys.items()}
    assert all(len(name) == 8 for name in session.fingerprints().values())


# The table, every cell


def expected_refusal(
    state: State, receiver: Direction, opcode: int, direction: int, same_round: bool, good_tag: bool
) -> type[ProtocolError] | None:
    """Say from PROTOCOL.md 3.5 and 3.6, not from the code, what must happen; None: accepted."""
    if direction == receiver:
        return WrongDirection
    legal = {
        (State.HELLO, C2S): {Opcode.CLIENT_HELLO},
        (State.CHALLENGE, S2C): {Opcode.SERVER_CHALLENGE},
        (State.REPORT, C2S): {Opcode.CLIENT_DATA} | FAREWELLS,
        (State.REPORT, S2C): FAREWELLS,
        (State.ANSWER, C2S): FAREWELLS,
        (State.ANSWER, S2C): {Opcode.SERVER_AGGR_RESPONSE} | FAREWELLS,
    }
    if opcode not in legal.get((state, Direction(direction)), set()):
        return UnexpectedOpcode
    if not same_round and opcode not in FAREWELLS:
        return RoundMismatch
    return None if good_tag else BadTag


PLAINTEXTS: dict[
    tuple[int, int], bytes
] = {  # of the right shape for (opcode, direction); anything will do where none is legal
    (Opcode.CLIENT_HELLO, C2S): bytes(16) + b"\x01",
    (Opcode.CLIENT_DATA, C2S): bytes(16) + REPORT.body,
    (Opcode.SERVER_AGGR_RESPONSE, S2C): b"\x00" + ANSWER.body,
    (Opcode.TERMINATE, C2S): bytes(16) + b"\x01",
    (Opcode.TERMINATE, S2C): b"\x01",
    (Opcode.KEY_DESYNC_ERROR, C2S): bytes(16) + b"\x02",
    (Opcode.KEY_DESYNC_ERROR, S2C): b"\x02",
}


@pytest.mark.parametrize(
    "opcodes",
    [
        pytest.param(sorted({0, *Opcode, *(code + 1 for code in Opcode), 0xFF}), id="some opcodes"),
        pytest.param(range(256), id="all opcodes", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("receiver", [C2S, S2C], ids=["client receives", "server receives"])
@pytest.mark.parametrize("state", list(State), ids=lambda state: state.name)
def test_every_cell_of_the_table(state: State, receiver: Direction, opcodes: Sequence[int]) -> None:
    """Opcodes, both directions, five rounds, good and bad tags, from each state and end."""
    pair = pair_in(state, first_round=6, rounds=2)
    session = pair.end(receiver)
    peer = pair.end(Direction(1 - receiver))
    now = session.round_number
    accepted = 0
    cells = itertools.product(opcodes, (0, 1), sorted({0, now - 1, now, now + 1, LAST_ROUND}))
    for opcode, direction, round_number in cells:
        if round_number < 0:
            continue
        plaintext = PLAINTEXTS.get((opcode, direction), bytes(17))
        if (opcode, direction) == (Opcode.SERVER_CHALLENGE, S2C):
            plaintext = b"\x00" + session._client_nonce + bytes(16)
        if session._keys:
            good = reseal(
                session, opcode, plaintext, sender=Direction(direction), round_number=round_number
            )
        else:  # an ended session has no keys, and must not miss them
            good = with_header(
                bytes(87),
                opcode=opcode,
                client_id=1,
                round_number=round_number,
                direction=direction,
            )
        for good_tag in (True, False):
            message = good if good_tag else good[:-1] + bytes([good[-1] ^ 1])
            twin = clone(session)
            expected = expected_refusal(
                state, receiver, opcode, direction, round_number == now, good_tag
            )
            where = (state, receiver, opcode, direction, round_number, good_tag)
            if expected is None:
                accepted += 1
                if opcode in FAREWELLS:
                    with pytest.raises(PeerTerminated):
                        twin.open(message)
                    assert twin.state is State.ENDED, where
                else:
                    assert twin.open(message).opcode == opcode, where
                    move = state, Opcode(opcode), Direction(direction)
                    assert twin.state is ProtocolFSM.VALID_TRANSITIONS[move], where
                continue
            error = error_of(twin, message)
            assert type(error) is expected, where
            assert twin.state is State.ENDED, where
            assert twin._keys == {}, where
            assert twin.fingerprints() == session.fingerprints(), where
            assert bool(error.farewell) == (state in (State.REPORT, State.ANSWER)), where
    legal_once = {State.HELLO: S2C, State.CHALLENGE: C2S, State.REPORT: S2C, State.ANSWER: C2S}
    rounds = len({0, now - 1, now, now + 1, LAST_ROUND} - {-1})
    ending = 2 * rounds if state in (State.REPORT, State.ANSWER) else 0
    assert accepted == (legal_once.get(state) is receiver) + ending
    assert peer.state is state


@pytest.mark.parametrize("state", list(State), ids=lambda state: state.name)
@pytest.mark.parametrize("sends", [C2S, S2C], ids=["client", "server"])
def test_seal_makes_the_legal_moves_and_no_other(state: State, sends: Direction) -> None:
    for opcode, message in MESSAGES.items():
        session = pair_in(state).end(sends)
        if (state, opcode, sends) in ProtocolFSM.VALID_TRANSITIONS:
            assert len(session.seal(message)) >= MIN_MESSAGE
            assert session.state is ProtocolFSM.VALID_TRANSITIONS[state, opcode, sends]
        else:
            before = session.__dict__.copy(), session.state
            with pytest.raises(LocalError):
                session.seal(message)
            assert (session.__dict__, session.state) == before


def test_states_have_the_phases_and_speakers_of_the_document() -> None:
    assert [(s.name, PHASE[s], SPEAKER.get(s)) for s in State] == [
        ("HELLO", ProtocolState.INIT, C2S),
        ("CHALLENGE", ProtocolState.INIT, S2C),
        ("REPORT", ProtocolState.ACTIVE, C2S),
        ("ANSWER", ProtocolState.ACTIVE, S2C),
        ("ENDED", ProtocolState.TERMINATED, None),
    ]


def test_the_last_round_ends_the_session_at_both_ends() -> None:
    pair = pair_in(State.REPORT, first_round=LAST_ROUND)
    pair.report()
    pair.answer()
    assert pair.transcript[-1][2:6] == LAST_ROUND.to_bytes(4, "big")
    assert pair.client.state is pair.server.state is State.ENDED
    assert pair.client._keys == pair.server._keys == {}
    pair = pair_in(State.REPORT, first_round=LAST_ROUND - 1, rounds=1)
    assert pair.client.round_number == pair.server.round_number == LAST_ROUND


# Damage


def one_message_of_every_type() -> list[tuple[str, Session, Session, bytes]]:
    """Return name, sender before sealing, receiver, and message, for all eight types."""
    moves: list[tuple[State, Direction, Message]] = [
        (State.HELLO, C2S, ClientHello()),
        (State.CHALLENGE, S2C, ServerChallenge()),
        (State.REPORT, C2S, REPORT),
        (State.ANSWER, S2C, ANSWER),
        (State.REPORT, C2S, GOODBYE),
        (State.ANSWER, S2C, Terminate(Status.SHUTDOWN)),
        (State.ANSWER, C2S, KeyDesync()),
        (State.REPORT, S2C, KeyDesync()),
    ]
    made = []
    for state, sends, message in moves:
        pair = pair_in(state, rounds=1)
        sender = pair.end(sends)
        receiver = pair.end(Direction(1 - sends))
        before = clone(sender)
        name = f"{message.opcode.name} {sends.name}"
        made.append((name, before, receiver, sender.seal(message)))
    return made


def field_error(message: bytes, flipped: bytes) -> type[ProtocolError]:
    """Say which check must notice that one bit of `message` differs in `flipped`."""
    opcode, client_id, round_number, direction = protocol_fsm.HEADER.unpack_from(flipped)
    before = protocol_fsm.HEADER.unpack_from(message)
    if client_id != before[1]:
        return WrongPeer
    if direction != before[3]:
        return WrongDirection
    if opcode != before[0]:
        return UnexpectedOpcode  # no two legal opcodes of one state are one bit apart
    if round_number != before[2] and opcode not in FAREWELLS:
        return RoundMismatch
    return BadTag


def check_failure(
    receiver: Session, sender: Session, damaged: bytes, expected: type[ProtocolError]
) -> None:
    """Open `damaged`: right error, keys unmoved and gone, ENDED, and the answer of [P 3.6]."""
    twin = clone(receiver)
    active = receiver.state in (State.REPORT, State.ANSWER)
    error = refusal(twin, damaged)
    assert type(error) is expected
    assert twin.state is State.ENDED
    assert twin._keys == {}
    assert twin.fingerprints() == receiver.fingerprints()
    opcode = Opcode.KEY_DESYNC_ERROR if expected is RoundMismatch else Opcode.TERMINATE
    assert farewell_of(error, sender) == ((opcode, Status.VIOLATION) if active else None)
    with pytest.raises(LocalError):
        twin.seal(GOODBYE)
    assert type(refusal(twin, damaged)) in (
        UnexpectedOpcode,
        MalformedMessage,
        WrongPeer,
        WrongDirection,
    ), "ENDED is absorbing"


@pytest.mark.parametrize(
    ("sender", "receiver", "message"),
    [pytest.param(*rest, id=name) for name, *rest in one_message_of_every_type()],
)
class TestDamage:
    def test_the_message_itself_is_good(
        self, sender: Session, receiver: Session, message: bytes
    ) -> None:
        assert error_of(clone(receiver), message).__class__ in (type(None), PeerTerminated)

    def test_every_flipped_bit_is_noticed_by_the_right_check(
        self, sender: Session, receiver: Session, message: bytes
    ) -> None:
        for position, bit in itertools.product(range(len(message)), range(8)):
            flipped = bytearray(message)
            flipped[position] ^= 1 << bit
            check_failure(receiver, sender, bytes(flipped), field_error(message, bytes(flipped)))

    def test_every_truncation_is_noticed(
        self, sender: Session, receiver: Session, message: bytes
    ) -> None:
        for length in range(len(message)):
            legal = length >= MIN_MESSAGE and (length - 55) % 16 == 0
            check_failure(receiver, sender, message[:length], BadTag if legal else MalformedMessage)

    def test_every_appendix_is_noticed(
        self, sender: Session, receiver: Session, message: bytes
    ) -> None:
        for extra in range(1, 65):
            expected = MalformedMessage if extra % 16 else BadTag
            check_failure(receiver, sender, message + bytes(extra), expected)


# Replays, splices, reflections: the same bytes at another time, in another session, the other way


def test_replayed_report_ends_the_session() -> None:
    pair = pair_in(State.REPORT, rounds=1)
    report = pair.transcript[2]
    check_failure(pair.server, pair.client, report, RoundMismatch)
    check_failure(pair.server, pair.client, with_header(report, round_number=2), BadTag)


def test_an_error_says_what_was_expected_and_what_came() -> None:
    pair = pair_in(State.REPORT, rounds=1)
    error = refusal(clone(pair.server), with_header(pair.transcript[2], round_number=0))
    assert (error.expected, error.got) == (2, 0)
    assert str(error) == "RoundMismatch: expected 2, got 0"
    error = refusal(clone(pair.server), with_header(pair.transcript[2], client_id=0))
    assert (error.expected, error.got) == (1, 0)
    assert str(BadTag()) == "BadTag"
    assert str(PeerTerminated(Opcode.TERMINATE, Status.GOODBYE)) == (
        "PeerTerminated: TERMINATE (GOODBYE)"
    )


def test_repeated_hello_in_active_ends_the_session() -> None:
    pair = pair_in(State.REPORT)
    check_failure(pair.server, pair.client, pair.transcript[0], UnexpectedOpcode)


def test_recorded_session_gets_no_further_than_its_hello() -> None:
    recorded = pair_in(State.REPORT, rounds=2).transcript
    server = Session(1, MASTER_KEY, S2C)
    assert server.open(recorded[0]) == ClientHello()
    server.seal(ServerChallenge())
    assert type(refusal(server, recorded[2])) is BadTag


def test_recorded_server_is_not_believed() -> None:
    recorded = pair_in(State.REPORT, rounds=2).transcript
    client = Session(1, MASTER_KEY, C2S)
    client.seal(ClientHello())
    error = refusal(client, recorded[1])
    assert type(error) is EchoMismatch
    assert error.farewell == b""


def test_reflected_message_is_refused_with_and_without_a_new_header() -> None:
    pair = pair_in(State.REPORT)
    report = pair.client.seal(REPORT)
    assert type(refusal(clone(pair.client), report)) is WrongDirection
    forged = with_header(report, direction=1, opcode=Opcode.SERVER_AGGR_RESPONSE)
    assert type(refusal(clone(pair.client), forged)) is BadTag


def test_frame_of_another_session_or_client_is_refused() -> None:
    victim = pair_in(State.REPORT)
    other = pair_in(State.REPORT)
    assert type(refusal(clone(victim.server), other.client.seal(REPORT))) is BadTag
    stranger = Pair(client_id=2)
    stranger.hello()
    stranger.challenge()
    report = stranger.client.seal(REPORT)
    assert type(refusal(clone(victim.server), report)) is WrongPeer
    assert type(refusal(clone(victim.server), with_header(report, client_id=1))) is BadTag


def test_goodbye_is_not_accepted_before_the_report_it_follows() -> None:
    pair = pair_in(State.REPORT)
    pair.client.seal(REPORT)  # held back by somebody
    assert type(refusal(pair.server, pair.client.seal(GOODBYE))) is BadTag


def test_one_end_may_leave_out_of_turn_and_in_another_round() -> None:
    pair = pair_in(State.REPORT, rounds=1)
    pair.report()
    answer = pair.server.seal(ANSWER)
    goodbye = pair.client.seal(GOODBYE)
    assert (pair.server.round_number, goodbye[2:6]) == (3, bytes([0, 0, 0, 2]))
    with pytest.raises(PeerTerminated):
        pair.server.open(goodbye)
    assert type(refusal(pair.client, answer)) is UnexpectedOpcode


# Payloads

GOOD_REPORTS = [b"[]", b"[1e15,-1e15]", b" [ 1 , 2.5e0 ]\n", b"[" + b"1," * 1023 + b"1]", b"[-0]"]
BAD_REPORTS = [
    b"",
    b"1",
    b"null",
    b"{}",
    b'"x"',
    b"[true]",
    b"[null]",
    b"[[1]]",
    b'["1"]',
    b"[NaN]",
    b"[Infinity]",
    b"[-Infinity]",
    b"[1e400]",
    b"[1000000000000001]",
    b"[-1.1e15]",
    b"[1,]",
    b"[1]]",
    b"[01]",
    b"[.5]",
    b"[0x1]",
    b"\xff\xfe[\x001\x00]\x00",
    "[1]".encode("utf-16-le"),
    "[1]".encode("utf-16"),
    b"\xef\xbb\xbf[1]",
    b"[1]\xff",
    b"[" + b"1," * 1024 + b"1]",
    b"[" + b"9" * 5000 + b"]",
    b"[" * 10_000 + b"]" * 10_000,
    b"[1] 2",
    b"\x00",
    b"[1]\x00",
]
GOOD_ANSWERS = [
    b"{}",
    b'{"a":null,"b":[1,"x",null],"c":"\\u00e9\\ud83d\\ude00","d":-1.5e300}',
    b'{"a":1,"a":2}',
]
BAD_ANSWERS = [
    b"",
    b"[]",
    b"null",
    b'{"a":true}',
    b'{"a":{}}',
    b'{"a":[[1]]}',
    b'{"a":[{}]}',
    b'{"a":NaN}',
    b'{"a":1e999}',
    b'{"a":"\\ud800"}',
    b'{"\\udc00":1}',
    b'{"a":["\\ud800"]}',
    b'{"a":1',
    b"{a:1}",
    b'{"a":[false]}',
    b'{"a":' + b"9" * 400 + b"}",
    b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    b'{"a":"\n"}',
    "{}".encode("utf-16"),
    b'{"a":"\xff"}',
    b'{"a":NaN,"a":1}',
    b'{"a":-Infinity,"a":1}',
]


@pytest.mark.parametrize("body", GOOD_REPORTS, ids=repr)
def test_good_report_is_accepted(body: bytes) -> None:
    pair = pair_in(State.REPORT)
    assert pair.report(worded(ClientData([]), body)).readings == json.loads(body)
    assert pair.client.fingerprints() == pair.server.fingerprints()


@pytest.mark.parametrize("body", GOOD_ANSWERS, ids=repr)
def test_good_answer_is_accepted(body: bytes) -> None:
    pair = pair_in(State.ANSWER)
    assert pair.answer(worded(ServerAggrResponse({}), body)).aggregate == json.loads(body)
    assert pair.client.fingerprints() == pair.server.fingerprints()


class OwnFloat(float):
    """A number of somebody's library, as numpy has them: a float that is not quite one."""


class OwnInt(int):
    """The same of integers."""


GOOD_READINGS: list[Any] = [
    [],
    (1, 2.5),
    [1e15, -1e15, 10**15, -(10**15)],
    [-0.0, 5e-324],
    [OwnFloat(0.5), OwnInt(-7), Status.TIMEOUT],
    [0] * 1024,
]
BAD_READINGS: list[Any] = [
    None,
    1,
    "12",
    b"12",
    {},
    {1: 2},
    range(3),
    object,
    "\ud800".encode,
    [True],
    [1, False],
    [None],
    [[1]],
    ["1"],
    [b"1"],
    [1j],
    [object],
    [math.nan],
    [1.0, math.nan],
    [OwnFloat("nan")],
    [math.inf],
    [-math.inf, 1],
    [10**15 + 1],
    [-1.1e15],
    [OwnInt(10**16)],
    [10**400],
    [-(10**4000)],
    [0] * 1025,
]
SELF_CONTAINED: list[Any] = []
SELF_CONTAINED.append(SELF_CONTAINED)
GOOD_AGGREGATES: list[dict[str, Any]] = [
    {},
    {"a": None, "b": [1, "x", None], "c": "\u00e9\U0001f600", "d": -1.5e300, "e": (), "f": [""]},
    {"a": sys.float_info.max, "b": -int(sys.float_info.max), "": 0},
    {"a": OwnFloat(0.5), "b": [OwnInt(-7)], "c": Status.TIMEOUT},
]
BAD_AGGREGATES: list[Any] = [
    None,
    [],
    "x",
    {"a": True},
    {"a": [1, False]},
    {"a": {}},
    {"a": [[1]]},
    {"a": [{}]},
    {"a": [()]},
    {"a": {1, 2}},
    {"a": b"x"},
    {"a": 1j},
    {"a": object},
    {"a": math.nan},
    {"a": [1.0, math.nan]},
    {"a": 1.0, "b": math.nan},
    {"a": -math.inf},
    {"a": [1, "x", math.inf]},
    {"a": 10**400},
    {"a": [None, -(10**400)]},
    {"a": int(sys.float_info.max) + 1},
    {"a": 10**4000},
    {"a": "\ud800"},
    {"a": ["x", "\udc00"]},
    {"\udc00": 1},
    {"\ud83d": 1, chr(0xDE00): 2},
    {1: 2},
    {None: 2},
    {"a": 1, 2.5: 2},
    {"a": SELF_CONTAINED},
]


@pytest.mark.parametrize("readings", GOOD_READINGS, ids=lambda value: repr(value)[:40])
def test_good_readings_arrive_as_doubles(readings: Sequence[float]) -> None:
    received = pair_in(State.REPORT).report(ClientData(readings)).readings
    assert [*received] == [*readings]
    assert {*map(type, received)} <= {float}


@pytest.mark.parametrize("readings", BAD_READINGS, ids=lambda value: repr(value)[:40])
def test_bad_readings_are_not_sent(readings: Any) -> None:
    refused_locally(State.REPORT, C2S, ClientData(readings))


@pytest.mark.parametrize("aggregate", GOOD_AGGREGATES, ids=lambda value: repr(value)[:40])
def test_good_aggregate_arrives_as_it_is(aggregate: dict[str, Any]) -> None:
    received = pair_in(State.ANSWER).answer(ServerAggrResponse(aggregate)).aggregate
    lists = {name: [*v] if isinstance(v, tuple) else v for name, v in aggregate.items()}
    assert received == lists


@pytest.mark.parametrize("aggregate", BAD_AGGREGATES, ids=lambda value: repr(value)[:40])
def test_bad_aggregate_is_not_sent(aggregate: Any) -> None:
    refused_locally(State.ANSWER, S2C, ServerAggrResponse(aggregate))


def refused_locally(state: State, sends: Direction, message: Message) -> None:
    """Check that a session does not seal `message`, and that nothing has changed then."""
    session = pair_in(state).end(sends)
    draws: list[int] = []

    def draw(length: int) -> bytes:
        draws.append(length)
        return bytes(length)

    session._random_bytes = draw
    before = session.__dict__.copy(), session.state, session.round_number
    with pytest.raises(LocalError):
        session.seal(message)
    assert (session.__dict__, session.state, session.round_number) == before
    assert not draws, "it has drawn a nonce for nothing"


@pytest.mark.parametrize(
    ("state", "sends", "opcode", "plaintext"),
    [
        (State.HELLO, C2S, Opcode.CLIENT_HELLO, bytes(15)),
        (State.HELLO, C2S, Opcode.CLIENT_HELLO, bytes(16)),
        (State.HELLO, C2S, Opcode.CLIENT_HELLO, bytes(16) + b"\x02"),
        (State.HELLO, C2S, Opcode.CLIENT_HELLO, bytes(16) + b"\x01\x01"),
        (State.CHALLENGE, S2C, Opcode.SERVER_CHALLENGE, b""),
        (State.CHALLENGE, S2C, Opcode.SERVER_CHALLENGE, b"\x00" + bytes(31)),
        (State.CHALLENGE, S2C, Opcode.SERVER_CHALLENGE, b"\x00" + bytes(33)),
        (State.CHALLENGE, S2C, Opcode.SERVER_CHALLENGE, b"\x01" + bytes(32)),
        (State.REPORT, C2S, Opcode.CLIENT_DATA, b""),
        (State.REPORT, C2S, Opcode.CLIENT_DATA, b"[1,2,3]"),
        (State.ANSWER, S2C, Opcode.SERVER_AGGR_RESPONSE, b""),
        (State.ANSWER, S2C, Opcode.SERVER_AGGR_RESPONSE, b"\x02{}"),
        *[(State.REPORT, C2S, Opcode.TERMINATE, bytes(16) + bytes([n])) for n in (0, 6, 255)],
        *[(State.REPORT, S2C, Opcode.TERMINATE, bytes([n])) for n in (0, 6, 255)],
        *[(State.ANSWER, C2S, Opcode.KEY_DESYNC_ERROR, bytes(16) + bytes([n])) for n in (0, 1, 4)],
        *[(State.ANSWER, S2C, Opcode.KEY_DESYNC_ERROR, bytes([n])) for n in (0, 1, 3, 5)],
        (State.REPORT, C2S, Opcode.TERMINATE, bytes(16)),
        (State.REPORT, C2S, Opcode.TERMINATE, bytes(16) + b"\x01\x01"),
        (State.REPORT, S2C, Opcode.TERMINATE, b""),
        (State.REPORT, S2C, Opcode.TERMINATE, b"\x01\x00"),
        *[(State.REPORT, C2S, Opcode.CLIENT_DATA, bytes(16) + body) for body in BAD_REPORTS],
        *[(State.ANSWER, S2C, Opcode.SERVER_AGGR_RESPONSE, b"\x00" + body) for body in BAD_ANSWERS],
    ],
    ids=lambda value: repr(value)[-60:],
)
def test_well_sealed_nonsense_is_refused(
    state: State, sends: Direction, opcode: Opcode, plaintext: bytes
) -> None:
    pair = pair_in(state)
    sender = pair.end(sends)
    receiver = pair.end(Direction(1 - sends))
    check_failure(receiver, sender, reseal(sender, opcode, plaintext), BadPayload)


def test_a_message_without_a_body_still_needs_its_whole_nonce(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All the client's messages of today have a body; those of tomorrow may have none."""
    bodies: list[bytes] = []

    def parse_nothing(body: bytes) -> Message:
        bodies.append(body)
        return ClientHello()

    parsers = {**protocol_fsm.PARSERS, Opcode.CLIENT_HELLO: parse_nothing}
    monkeypatch.setattr(protocol_fsm, "PARSERS", parsers)
    assert parse_message(Opcode.CLIENT_HELLO, Direction.C2S, bytes(16)) == ClientHello()
    assert bodies == [b""]
    with pytest.raises(BadPayload, match="a nonce of 16 bytes, got 15"):
        parse_message(Opcode.CLIENT_HELLO, Direction.C2S, bytes(15))


def test_challenge_with_a_foreign_echo_is_refused_without_a_word() -> None:
    pair = pair_in(State.CHALLENGE)
    forged = reseal(pair.server, Opcode.SERVER_CHALLENGE, b"\x00" + bytes(32))
    check_failure(pair.client, pair.server, forged, EchoMismatch)


@pytest.mark.parametrize(
    "padded",
    [
        bytes(32),
        bytes(31) + b"\x11",
        bytes(30) + b"\x01\x02",
        b"\x00" + b"\x10" * 15 + bytes(15) + b"\xff",
        bytes(16) + b"\x0f" + b"\x10" * 15,
    ],
    ids=["zero", "seventeen", "unequal", "255", "sixteen, but one"],
)
def test_bad_padding_under_a_good_tag_is_refused(padded: bytes) -> None:
    pair = pair_in(State.REPORT)
    message = reseal(pair.client, Opcode.CLIENT_DATA, b"", padded=padded)
    check_failure(pair.server, pair.client, message, BadPadding)


def test_padding_and_tag_failures_look_the_same_on_the_wire() -> None:
    """One uniform answer: the padding oracle of Vaudenay (2002) has nothing to ask."""
    answers = set()
    for damage in ("padding", "tag", "payload", "opcode"):
        pair = pair_in(State.REPORT)
        good = reseal(pair.client, Opcode.CLIENT_DATA, bytes(16) + REPORT.body)
        message = {
            "padding": reseal(pair.client, Opcode.CLIENT_DATA, b"", padded=bytes(32)),
            "tag": good[:-1] + bytes([good[-1] ^ 1]),
            "payload": reseal(pair.client, Opcode.CLIENT_DATA, bytes(16) + b"[tru]"),
            "opcode": with_header(good, opcode=10),
        }[damage]
        error = refusal(pair.server, message)
        answers.add((len(error.farewell), error.farewell[:7], farewell_of(error, pair.client)))
    assert answers == {(71, bytes([60, 1, 0, 0, 0, 1, 1]), (Opcode.TERMINATE, Status.VIOLATION))}


# Failing for reasons that no message carries


@pytest.mark.parametrize("state", list(State), ids=lambda state: state.name)
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DeadlineExpired("a message", "none"), Status.TIMEOUT),
        (MalformedMessage("71", 3), Status.VIOLATION),
        (ConnectionCut(mid_frame=True), None),
    ],
    ids=["deadline", "framing", "cut"],
)
def test_fail_ends_the_session_with_the_farewell_that_fits(
    state: State, error: ProtocolError, status: Status | None
) -> None:
    pair = pair_in(state)
    error.farewell = b""
    pair.server.fail(error)
    assert pair.server.state is State.ENDED
    bound = state in (State.REPORT, State.ANSWER)
    expected = (Opcode.TERMINATE, status) if bound and status else None
    assert farewell_of(error, pair.client) == expected
    farewell = error.farewell
    pair.server.fail(error)
    assert error.farewell == farewell, "failing twice changes nothing"


# Misuse by our own side


@pytest.mark.parametrize(
    ("client_id", "key"), [(-1, MASTER_KEY), (256, MASTER_KEY), (1, b"k" * 15)]
)
def test_session_needs_a_byte_of_id_and_a_key_of_16_bytes(client_id: int, key: bytes) -> None:
    with pytest.raises(LocalError):
        Session(client_id, key, C2S)


@pytest.mark.parametrize("status", [Status.OK, 6, -1, None])
def test_a_terminate_needs_a_reason_that_a_farewell_can_have(status: Any) -> None:
    with pytest.raises(LocalError):
        Terminate(status)


@pytest.mark.parametrize("state", list(State), ids=lambda state: state.name)
@pytest.mark.parametrize("sends", [C2S, S2C], ids=["client", "server"])
def test_goodbye_is_said_where_the_table_has_it_and_is_nothing_elsewhere(
    state: State, sends: Direction
) -> None:
    pair = pair_in(state)
    session = pair.end(sends)
    peer = pair.end(Direction(1 - sends))
    has_farewell = state in (State.REPORT, State.ANSWER)
    assert session.has_farewell is has_farewell
    farewell = session.goodbye(Status.SHUTDOWN)
    assert bool(farewell) is has_farewell
    assert session.state is (State.ENDED if has_farewell else state)
    if has_farewell:
        with pytest.raises(PeerTerminated) as caught:
            peer.open(farewell)
        assert caught.value.status is Status.SHUTDOWN
    assert session.goodbye(Status.SHUTDOWN) == b""


def test_largest_body_makes_the_largest_frame_and_one_byte_more_is_refused() -> None:
    pair = pair_in(State.REPORT)
    largest = b"[" + b" " * (MAX_BODY - 2) + b"]"
    assert pair.report(worded(ClientData([]), largest)).readings == []
    assert len(pair.transcript[-1]) == MAX_MESSAGE
    letters = MAX_BODY - len('{"a":""}')
    pair.answer(ServerAggrResponse({"a": "x" * letters}))
    refused_locally(State.ANSWER, S2C, ServerAggrResponse({"a": "x" * (letters + 1)}))
    pair.report()
    longer = b"\x00{" + b" " * (MAX_BODY - 1) + b"}"
    assert type(refusal(pair.client, reseal(pair.server, 40, longer))) is BadPayload


def test_no_report_that_may_be_sent_is_too_long_to_be() -> None:
    assert len(ClientData([-1.7976931348623157e-308] * 1024).body) < MAX_BODY


def test_a_body_is_checked_and_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[object] = []

    def encode(value: object, check: Callable[[object], object]) -> bytes:
        encoded.append(value)
        return real(value, check)

    real = protocol_fsm.encode_json
    monkeypatch.setattr(protocol_fsm, "encode_json", encode)
    answer = ServerAggrResponse({"a": 1})
    assert answer.body == answer.body == b'{"a":1}'
    pair_in(State.ANSWER).answer(answer)
    assert encoded.count({"a": 1}) == 1


# Those who watch a session


def test_a_watcher_sees_each_message_after_the_decision() -> None:
    pair = pair_in(State.REPORT, rounds=1)
    seen: list[Seen] = []
    for session in (pair.client, pair.server):
        session.watchers = protocol_fsm.Watchers([seen.append])
    report = pair.client.seal(REPORT)
    after_report = pair.client.fingerprints()
    pair.server.open(report)
    answer = pair.server.seal(ANSWER)
    after_answer = pair.server.fingerprints()
    changed = answer[:-1] + bytes([answer[-1] ^ 1])
    farewell = refusal(pair.client, changed).farewell
    assert [(s.verdict, s.message, s.fingerprints) for s in seen] == [
        ("sealed", report, after_report),
        ("accepted", report, after_report),
        ("sealed", answer, after_answer),
        ("BadTag", changed, after_report),
        ("sealed", farewell, after_report),
    ]
    texts = [s.plaintext for s in seen]
    assert texts[0] == texts[1]
    assert [text[16:] for text in (texts[0], texts[4])] == [REPORT.body, b"\x02"]
    assert texts[2:4] == [b"\x00" + ANSWER.body, b""]


def test_an_accepted_farewell_is_seen_as_accepted() -> None:
    seen: list[Seen] = []
    pair = pair_in(State.REPORT)
    pair.server.watchers = protocol_fsm.Watchers([seen.append])
    with pytest.raises(PeerTerminated):
        pair.carry(C2S, GOODBYE)
    assert [(s.verdict, s.plaintext[16:]) for s in seen] == [("accepted", b"\x01")]


def test_watchers_and_key_log_change_nothing_in_a_session_even_if_they_raise() -> None:
    def meddle(seen: Seen) -> None:
        assert isinstance(seen.fingerprints, dict)
        seen.fingerprints.clear()

    def burst(_: object) -> None:
        raise ValueError("of an instructor's function")

    def take_keys(keys: Keys) -> None:
        keys.clear()

    def speak(**options: Any) -> tuple[Session, Session, bytes]:
        client, server = (
            Session(1, MASTER_KEY, sends, random_bytes=bytes, **options) for sends in (C2S, S2C)
        )
        server.open(client.seal(ClientHello()))
        client.open(server.seal(ServerChallenge()))
        server.open(client.seal(REPORT))
        client.open(server.seal(ANSWER))
        assert client._keys == server._keys
        return client, server, client.seal(GOODBYE)

    heard: list[Seen] = []
    for key_log in (burst, take_keys):
        client, server, goodbye = speak(watchers=[burst, meddle, heard.append], key_log=key_log)
        alone, other, expected = speak()
        assert goodbye == expected
        assert server._keys == other._keys
        assert client.watchers.error == "ValueError: of an instructor's function"
        assert alone.watchers.error == ""
        assert type(refusal(client, goodbye)) is WrongDirection
        assert client.fingerprints() == alone.fingerprints(), "of an ended session, too"
    assert len(heard) == 2 * 10


def test_only_the_key_log_is_handed_keys_and_each_before_it_is_used() -> None:
    logged: list[Keys] = []
    session = Session(1, MASTER_KEY, C2S, key_log=logged.append)
    peer = Session(1, MASTER_KEY, S2C)
    assert logged == []
    hello = session.seal(ClientHello())
    assert logged == [peer._keys]
    peer.open(hello)
    session.open(peer.seal(ServerChallenge()))
    assert logged[1:] == [peer._keys]
    stranger = Session(1, b"another key of 16", S2C, key_log=logged.append)
    refusal(stranger, hello)
    assert len(logged) == 2, "what is refused shows no key"
    assert Seen._fields == ("verdict", "message", "plaintext", "fingerprints")


# Framing


def receiver_of(pieces: list[bytes]) -> Callable[[int], bytes]:
    """Return a recv(n) that hands out `pieces` as TCP might, and then the end of the stream."""
    waiting = list(pieces)

    def recv(wanted: int) -> bytes:
        assert wanted > 0, "on a socket that would wait for more"
        if not waiting:
            return b""
        piece = waiting[0][:wanted]
        rest = waiting[0][wanted:]
        waiting[:1] = [rest] if rest else []
        return piece

    return recv


FRAMES: list[bytes] = []
for _message in pair_in(State.REPORT, rounds=2).transcript:
    write_frame(FRAMES.append, _message)


def test_every_split_in_two_of_a_frame_is_read() -> None:
    frame = FRAMES[3]
    for cut in range(len(frame) + 1):
        recv = receiver_of([piece for piece in (frame[:cut], frame[cut:]) if piece])
        assert read_frame(recv) == frame[2:]
        with pytest.raises(ConnectionCut) as caught:
            read_frame(recv)
        assert not caught.value.mid_frame


def test_byte_by_byte_and_many_in_one_piece_are_read_alike() -> None:
    stream = b"".join(FRAMES)
    for pieces in ([stream], [stream[i : i + 1] for i in range(len(stream))]):
        recv = receiver_of(pieces)
        assert [read_frame(recv) for _ in FRAMES] == [frame[2:] for frame in FRAMES]


def test_end_of_stream_inside_a_frame_is_a_cut_inside_a_frame() -> None:
    frame = FRAMES[0]
    for length in range(1, len(frame)):
        with pytest.raises(ConnectionCut) as caught:
            read_frame(receiver_of([frame[:length]]))
        assert caught.value.mid_frame


def test_impossible_lengths_are_refused_after_two_bytes() -> None:
    for length in [*range(200), *range(200, 65_400, 13), *range(65_400, 65_536)]:
        recv = receiver_of([length.to_bytes(2, "big")])
        legal = 71 <= length <= 65_527 and (length - 55) % 16 == 0
        with pytest.raises(ConnectionCut if legal else MalformedMessage):
            read_frame(recv)


def test_a_message_longer_than_any_frame_is_malformed() -> None:
    """No frame can bring it; whoever calls `open` with other bytes gets the same answer."""
    assert (MAX_MESSAGE + 16 - 55) % 16 == 0
    server = pair_in(State.REPORT).server
    assert type(refusal(server, bytes(MAX_MESSAGE + 16))) is MalformedMessage


# Properties

numbers = st.floats(-1e15, 1e15) | st.integers(-(10**15), 10**15)
plain = st.none() | numbers | st.text() | st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(numbers, max_size=1024))
def test_any_legal_report_is_opened_as_it_was_sealed(readings: list[float]) -> None:
    assert pair_in(State.REPORT).report(ClientData(readings)).readings == readings


@given(st.dictionaries(st.text(), plain | st.lists(plain, max_size=20), max_size=20))
def test_any_legal_answer_is_opened_as_it_was_sealed(aggregate: dict[str, Json]) -> None:
    answer = ServerAggrResponse(aggregate)
    assert pair_in(State.ANSWER).answer(answer).aggregate == aggregate


STATES = {
    state: pair_in(state, rounds=1 if PHASE[state] is ProtocolState.ACTIVE else 0)
    for state in State
}


@given(st.sampled_from(State), st.sampled_from(Direction), st.binary(max_size=200))
def test_any_bytes_end_in_a_typed_error(state: State, receiver: Direction, data: bytes) -> None:
    session = clone(STATES[state].end(receiver))
    assert isinstance(refusal(session, data), ProtocolError)
    assert session.state is State.ENDED


@given(
    st.sampled_from(State),
    st.sampled_from(Direction),
    st.integers(0, 255),
    st.integers(0, 1),
    st.binary(min_size=48, max_size=96),
)
def test_any_bytes_behind_a_plausible_header_end_in_a_typed_error(
    state: State, receiver: Direction, opcode: int, direction: int, rest: bytes
) -> None:
    session = clone(STATES[state].end(receiver))
    header = protocol_fsm.HEADER.pack(opcode, 1, session.round_number, direction)
    padded = rest[: 48 + (len(rest) - 48) // 16 * 16] + bytes(16)
    assert isinstance(refusal(session, header + padded), ProtocolError)


@given(st.lists(st.binary(min_size=1, max_size=300)))
def test_any_stream_of_bytes_ends_in_a_typed_error(pieces: list[bytes]) -> None:
    recv = receiver_of(pieces)
    with pytest.raises((MalformedMessage, ConnectionCut)):  # noqa: PT012
        while True:
            read_frame(recv)


@given(
    st.sampled_from([s for s in State if s is not State.ENDED]),
    st.sampled_from(Direction),
    st.sampled_from(Opcode),
    st.binary(max_size=64)
    | st.text().map(str.encode)
    | st.builds(
        lambda n, v: n + json.dumps(v).encode(),
        st.sampled_from([bytes(16), b"\x00"]),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        ),
    ),
)
def test_any_well_sealed_plaintext_is_accepted_or_ends_in_a_typed_error(
    state: State, sends: Direction, opcode: Opcode, plaintext: bytes
) -> None:
    pair = STATES[state]
    receiver = clone(pair.end(Direction(1 - sends)))
    message = reseal(pair.end(sends), opcode, plaintext)
    try:
        accepted = receiver.open(message)
    except ProtocolError:
        assert receiver.state is State.ENDED
    else:
        assert accepted.opcode is opcode
        assert receiver.state is ProtocolFSM.VALID_TRANSITIONS[state, opcode, sends]


def test_seeded_mutations_of_whole_conversations_never_surprise() -> None:
    """Splice, cut, repeat and rewrite real messages; an end stays in step or ends with an error."""
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    recorded = pair_in(State.REPORT, rounds=3).transcript
    for _ in range(2_000):
        state = rng.choice(list(State))
        session = clone(STATES[state].end(rng.choice(list(Direction))))
        message = bytearray(rng.choice(recorded + STATES[State.ANSWER].transcript))
        for _ in range(rng.randrange(3)):
            message[rng.randrange(len(message))] = rng.randrange(256)
        del message[rng.randrange(len(message)) if rng.random() < 0.2 else len(message) :]
        error = error_of(session, bytes(message))
        assert error is None or session.state is State.ENDED, f"seed {seed}"
