"""What the tests share: two real sessions that talk, and ways to make messages nobody would."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeVar

import pytest
from Crypto.Random import get_random_bytes

from crypto_utils import TAG_BYTES, aes_cbc_encrypt, hmac_sha256, pkcs7_pad
from endpoint import DEMO_KEYS, NewSession, session_factory
from protocol_fsm import (
    CIPHERTEXT_AT,
    HEADER,
    ClientData,
    ClientHello,
    Direction,
    Header,
    Message,
    Opcode,
    PeerTerminated,
    ProtocolError,
    RandomSource,
    ServerAggrResponse,
    ServerChallenge,
    Session,
    State,
    Status,
    Terminate,
)
from tests.sessions import clone

MASTER_KEY = b"client1_master_k"
REPORT = ClientData([21.5, 19.0])
ANSWER = ServerAggrResponse({"epoch": 1, "sum": 40.5, "mean": None, "participants": [1, 2]})
GOODBYE = Terminate(Status.GOODBYE)
JsonMessage = TypeVar("JsonMessage", ClientData, ServerAggrResponse)


def worded(message: JsonMessage, body: bytes) -> JsonMessage:
    """Return `message` with a body that our own encoder would not write; nothing checks it."""
    vars(message)["body"] = body
    return message


def reseal(
    session: Session,
    opcode: int,
    plaintext: bytes,
    *,
    sender: Direction | None = None,
    round_number: int | None = None,
    client_id: int | None = None,
    padded: bytes | None = None,
) -> bytes:
    """Seal anything at all under `session`'s current keys, which it does not move.

    This is what somebody with the keys and bad manners could send: header fields, plaintext and
    padding are as asked, and the tag is right.
    """
    sender = session.sends if sender is None else sender
    header = HEADER.pack(
        opcode,
        session.client_id if client_id is None else client_id,
        session.round_number if round_number is None else round_number,
        sender,
    )
    keys = session._keys
    iv = b"\x24" * 16
    blocks = pkcs7_pad(plaintext) if padded is None else padded
    ciphertext = aes_cbc_encrypt(blocks, keys[f"{sender.name}-ENC"][:16], iv)
    untagged = header + iv + ciphertext
    return untagged + hmac_sha256(keys[f"{sender.name}-MAC"], untagged)


def with_header(message: bytes, **fields: int) -> bytes:
    """Return `message` with header fields rewritten, and the tag left as it was."""
    header = Header(*HEADER.unpack_from(message))._replace(**fields)
    return HEADER.pack(*header) + message[HEADER.size :]


def ciphertext_of(message: bytes) -> bytes:
    return message[CIPHERTEXT_AT:-TAG_BYTES]


class Pair:
    """Both ends of one session, and nobody between them."""

    def __init__(
        self,
        client_id: int = 1,
        *,
        first_round: int = 1,
        client_random: RandomSource = get_random_bytes,
        server_random: RandomSource = get_random_bytes,
    ) -> None:
        self.client = Session(
            client_id,
            MASTER_KEY,
            Direction.C2S,
            random_bytes=client_random,
            first_round=first_round,
        )
        self.server = Session(
            client_id,
            MASTER_KEY,
            Direction.S2C,
            random_bytes=server_random,
            first_round=first_round,
        )
        self.transcript: list[bytes] = []

    def end(self, sends: Direction) -> Session:
        return self.client if sends is Direction.C2S else self.server

    def carry(self, sends: Direction, message: Message) -> Message:
        """Seal at one end, open at the other."""
        sealed = self.end(sends).seal(message)
        self.transcript.append(sealed)
        return self.end(Direction(1 - sends)).open(sealed)

    def hello(self) -> Message:
        return self.carry(Direction.C2S, ClientHello())

    def challenge(self) -> Message:
        return self.carry(Direction.S2C, ServerChallenge())

    def report(self, report: ClientData = REPORT) -> ClientData:
        opened = self.carry(Direction.C2S, report)
        assert isinstance(opened, ClientData)
        return opened

    def answer(self, answer: ServerAggrResponse = ANSWER) -> ServerAggrResponse:
        opened = self.carry(Direction.S2C, answer)
        assert isinstance(opened, ServerAggrResponse)
        return opened

    def rounds(self, count: int) -> None:
        for _ in range(count):
            self.report()
            self.answer()


def pair_in(state: State, *, rounds: int = 0, first_round: int = 1) -> Pair:
    """Return a pair whose both ends are in `state`, after that many whole rounds."""
    pair = Pair(first_round=first_round)
    if state is State.HELLO:
        return pair
    pair.hello()
    if state is State.CHALLENGE:
        return pair
    pair.challenge()
    pair.rounds(rounds)
    if state is State.ANSWER:
        pair.report()
    if state is State.ENDED:
        goodbye = pair.client.seal(GOODBYE)
        with pytest.raises(PeerTerminated):
            pair.server.open(goodbye)
    assert pair.client.state is pair.server.state is state
    return pair


def logging_to(path: Path) -> NewSession:
    """Return what makes sessions that log their keys, as --keylog does."""
    return session_factory(argparse.Namespace(keylog=str(path), trace=False))


def logged_pair(path: Path, client: bool = True, server: bool = True) -> Pair:
    """Return two ends, of which those that are asked for log their keys."""
    pair = Pair()
    make = logging_to(path)
    if client:
        pair.client = make(1, DEMO_KEYS[1], Direction.C2S)
    if server:
        pair.server = make(1, DEMO_KEYS[1], Direction.S2C)
    return pair


def live(pair: Pair) -> list[bytes]:
    """Let two ends go through a session of two rounds; return all its messages."""
    pair.hello()
    pair.challenge()
    pair.rounds(2)
    with pytest.raises(PeerTerminated):
        pair.carry(Direction.C2S, GOODBYE)
    assert len(pair.transcript) == 7
    return pair.transcript


def farewell_of(error: ProtocolError, peer: Session) -> tuple[Opcode, Status] | None:
    """Return what the farewell in `error` says to `peer`, the end that the message came from."""
    if not error.farewell:
        return None
    with pytest.raises(PeerTerminated) as caught:
        clone(peer).open(error.farewell)
    return caught.value.opcode, caught.value.status
