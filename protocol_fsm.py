"""The protocol: wire format, errors, framing, state table, messages, key schedule, Session.

[P 3.4] names the section of PROTOCOL.md that says the same in words. Bytes in, bytes out, or a
typed error: there is no socket, thread, clock or log here. Both ends run the same table over the
same conversation. What arrives is checked in the order of [P 3.6]; keys, round and state move
together, afterwards, and only if every check passed; a failure ends the session for good.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from functools import cached_property
from typing import Any, ClassVar, Generic, NamedTuple, NoReturn, TypeVar

from Crypto.Random import get_random_bytes

from crypto_utils import (
    AES_KEY_BYTES,
    BLOCK_BYTES,
    NONCE_BYTES,
    TAG_BYTES,
    aes_cbc_decrypt,
    aes_cbc_encrypt,
    derive_key,
    evolve_key,
    fingerprint,
    hmac_sha256,
    hmac_verify,
    pkcs7_pad,
    pkcs7_unpad,
)

VERSION = b"\x01"
HEADER = struct.Struct(">BBIB")  # opcode, client id, round, direction: 7 bytes [P 3.2]
CIPHERTEXT_AT = HEADER.size + BLOCK_BYTES  # the IV stands before it
OVERHEAD = CIPHERTEXT_AT + TAG_BYTES  # the 55 bytes of a message that are not ciphertext
MIN_MESSAGE = 71  # one block of ciphertext
MAX_MESSAGE = 65_527  # the most whole blocks that 2 bytes can count
MAX_BODY = MAX_MESSAGE - OVERHEAD - NONCE_BYTES - 1  # 65,455: at least one byte is padding
MIN_MASTER_KEY = 16
LAST_ROUND = 2**32 - 1
MAX_READINGS = 1_024  # numbers in one report
MAX_MAGNITUDE = 1e15  # of each of them

RandomSource = Callable[[int], bytes]
Json = str | float | None | list[str | float | None]  # a value in an aggregate [P 3.3]


class Opcode(IntEnum):
    CLIENT_HELLO = 10
    SERVER_CHALLENGE = 20
    CLIENT_DATA = 30
    SERVER_AGGR_RESPONSE = 40
    KEY_DESYNC_ERROR = 50
    TERMINATE = 60


class Direction(IntEnum):
    C2S = 0  # client to server
    S2C = 1  # server to client


class Status(IntEnum):
    OK = 0
    GOODBYE = 1  # the sender is done
    VIOLATION = 2  # it refused what came before
    REPLACED = 3  # a newer session of the same id has taken over
    SHUTDOWN = 4  # the sender is shutting down
    TIMEOUT = 5  # its peer took too long


OK = bytes([Status.OK])

# Errors -------------------------------------------------------------------------------------------


class LocalError(Exception):
    """Our own caller asked for something illegal; nothing has changed."""


class ProtocolError(Exception):
    """What arrived, or failed to arrive, ends the session [P 3.6].

    `expected` and `got` say what was compared (never a key, a tag or a plaintext), for the
    local log. `farewell` is the message (bytes) to send before closing; it is empty when the
    keys are not bound to the session, and when nobody can be listening.
    """

    def __init__(self, expected: object = None, got: object = None) -> None:
        super().__init__(expected, got)
        self.expected = expected
        self.got = got
        self.farewell = b""

    def __str__(self) -> str:
        name = type(self).__name__
        if self.got is None:
            return name
        if self.expected is None:
            return f"{name}: {self.got}"
        return f"{name}: expected {self.expected}, got {self.got}"


class MalformedMessage(ProtocolError):
    """Step 1: not a length that a message can have."""


class WrongPeer(ProtocolError):
    """Step 2: another client's id."""


class WrongDirection(ProtocolError):
    """Step 2: not the direction in which the peer sends."""


class UnexpectedOpcode(ProtocolError):
    """Step 3: the table has no such move from here."""


class RoundMismatch(ProtocolError):
    """Step 4: an older or a later round than the one that both ends are in."""


class BadTag(ProtocolError):
    """Step 5: not sealed under our keys, or changed since."""


class BadPadding(ProtocolError):
    """Step 7: the peer holds the keys, and padded wrongly."""


class BadPayload(ProtocolError):
    """Step 8: the peer holds the keys, and sent what [P 3.3] does not allow."""


class EchoMismatch(ProtocolError):
    """Step 8: a SERVER_CHALLENGE that answers another CLIENT_HELLO."""


class DeadlineExpired(ProtocolError):
    """The peer took longer than it may."""


class ConnectionCut(ProtocolError):
    """The connection closed without an accepted TERMINATE; `mid_frame`: inside a frame."""

    def __init__(self, mid_frame: bool) -> None:
        super().__init__("a farewell first", "the end")
        self.mid_frame = mid_frame


class PeerTerminated(ProtocolError):
    """The peer ended the session with an accepted TERMINATE or KEY_DESYNC_ERROR."""

    def __init__(self, opcode: Opcode, status: Status) -> None:
        super().__init__(None, f"{opcode.name} ({status.name})")
        self.opcode = opcode
        self.status = status


# Framing [P 3.1] ----------------------------------------------------------------------------------


def client_id_of(message: bytes) -> int:
    """Return the client id that a message of legal length claims."""
    return message[1]


def check_length(length_bytes: int) -> None:
    """Raise MalformedMessage unless a message can have this many bytes."""
    if not MIN_MESSAGE <= length_bytes <= MAX_MESSAGE or (length_bytes - OVERHEAD) % BLOCK_BYTES:
        raise MalformedMessage("55 + 16n bytes, 71 to 65,527", length_bytes)


def read_frame(recv: Callable[[int], bytes]) -> bytes:
    """Return the next message, however TCP cut or joined it.

    `recv(n)` gives 1 to n bytes, or none at the end of the stream, as socket.recv does; the caller
    owns the deadlines. Raises MalformedMessage (after 2 bytes) and ConnectionCut.
    """
    length_bytes = int.from_bytes(read_exactly(recv, 2, mid_frame=False), "big")
    check_length(length_bytes)
    return read_exactly(recv, length_bytes, mid_frame=True)


def read_exactly(recv: Callable[[int], bytes], wanted: int, *, mid_frame: bool) -> bytes:
    """Return that many bytes of a stream. Raises ConnectionCut."""
    received = recv(wanted)
    if len(received) == wanted:  # nearly always
        return received
    gathered = bytearray(received)  # grows in place, however small the pieces are
    while received and len(gathered) < wanted:
        received = recv(wanted - len(gathered))
        gathered += received
    if len(gathered) < wanted:
        raise ConnectionCut(mid_frame or bool(gathered))
    return bytes(gathered)


def write_frame(sendall: Callable[[bytes], object], message: bytes) -> None:
    """Send `message` behind its length, in one piece."""
    sendall(len(message).to_bytes(2, "big") + message)


# State machine [P 3.5] ----------------------------------------------------------------------------


class ProtocolState(Enum):
    INIT = "INIT"
    ACTIVE = "ACTIVE"
    TERMINATED = "TERMINATED"


class State(str, Enum):
    """Where a conversation stands; a string, so that the table below is looked up quickly."""

    HELLO = "HELLO"
    CHALLENGE = "CHALLENGE"
    REPORT = "REPORT"
    ANSWER = "ANSWER"
    ENDED = "ENDED"


PHASE: Mapping[State, ProtocolState] = {
    State.HELLO: ProtocolState.INIT,
    State.CHALLENGE: ProtocolState.INIT,
    State.REPORT: ProtocolState.ACTIVE,
    State.ANSWER: ProtocolState.ACTIVE,
    State.ENDED: ProtocolState.TERMINATED,
}
SPEAKER: Mapping[State, Direction] = {  # of the next message of the conversation; ENDED has none
    State.HELLO: Direction.C2S,
    State.CHALLENGE: Direction.S2C,
    State.REPORT: Direction.C2S,
    State.ANSWER: Direction.S2C,
}

AnyState = TypeVar("AnyState")
AnyOpcode = TypeVar("AnyOpcode")
AnyDirection = TypeVar("AnyDirection")


class StateMachine(Generic[AnyState, AnyOpcode, AnyDirection]):
    """Where one end of one session stands. Each protocol fills in its table; it holds no keys."""

    # Every legal move. What is not here is a violation.
    VALID_TRANSITIONS: Mapping[tuple[AnyState, AnyOpcode, AnyDirection], AnyState]
    FIRST: AnyState
    LAST: AnyState

    def __init__(self) -> None:
        self.state = self.FIRST

    def allows(self, opcode: object, sender: object) -> bool:
        """Return whether the table has a move for these two header fields, whatever they hold."""
        return (self.state, opcode, sender) in self.VALID_TRANSITIONS

    def advance(self, opcode: AnyOpcode, sender: AnyDirection) -> None:
        """Make the move."""
        self.state = self.VALID_TRANSITIONS[self.state, opcode, sender]

    def end(self) -> None:
        """Make the one move that is legal from anywhere."""
        self.state = self.LAST


class ProtocolFSM(StateMachine[State, Opcode, Direction]):
    """The machine of this protocol: its table, and the round that it is in."""

    VALID_TRANSITIONS: Mapping[tuple[State, Opcode, Direction], State] = {
        (State.HELLO, Opcode.CLIENT_HELLO, Direction.C2S): State.CHALLENGE,
        (State.CHALLENGE, Opcode.SERVER_CHALLENGE, Direction.S2C): State.REPORT,
        (State.REPORT, Opcode.CLIENT_DATA, Direction.C2S): State.ANSWER,
        (State.ANSWER, Opcode.SERVER_AGGR_RESPONSE, Direction.S2C): State.REPORT,
        (State.REPORT, Opcode.TERMINATE, Direction.C2S): State.ENDED,
        (State.REPORT, Opcode.TERMINATE, Direction.S2C): State.ENDED,
        (State.REPORT, Opcode.KEY_DESYNC_ERROR, Direction.C2S): State.ENDED,
        (State.REPORT, Opcode.KEY_DESYNC_ERROR, Direction.S2C): State.ENDED,
        (State.ANSWER, Opcode.TERMINATE, Direction.C2S): State.ENDED,
        (State.ANSWER, Opcode.TERMINATE, Direction.S2C): State.ENDED,
        (State.ANSWER, Opcode.KEY_DESYNC_ERROR, Direction.C2S): State.ENDED,
        (State.ANSWER, Opcode.KEY_DESYNC_ERROR, Direction.S2C): State.ENDED,
    }
    FIRST = State.HELLO
    LAST = State.ENDED

    def __init__(self, first_round: int = 1) -> None:
        super().__init__()
        self.round_number = 0
        self._first_round = first_round

    def advance(self, opcode: Opcode, sender: Direction) -> None:
        """Make the move. Rounds start with the challenge, rise with each answer, and run out."""
        self.state = self.VALID_TRANSITIONS[self.state, opcode, sender]
        if opcode is Opcode.SERVER_CHALLENGE:
            self.round_number = self._first_round
        elif opcode is Opcode.SERVER_AGGR_RESPONSE and self.round_number == LAST_ROUND:
            self.end()
        elif opcode is Opcode.SERVER_AGGR_RESPONSE:
            self.round_number += 1


# Messages, and what they carry [P 3.3] ------------------------------------------------------------


@dataclass(frozen=True)
class ClientHello:
    """A client begins; its Session adds the client nonce."""

    opcode: ClassVar[Opcode] = Opcode.CLIENT_HELLO
    status: ClassVar[Status] = Status.OK
    body: ClassVar[bytes] = VERSION


@dataclass(frozen=True)
class ServerChallenge:
    """The server answers; its Session adds the echo and the server nonce."""

    opcode: ClassVar[Opcode] = Opcode.SERVER_CHALLENGE
    status: ClassVar[Status] = Status.OK
    body: ClassVar[bytes] = b""


@dataclass(frozen=True)
class ClientData:
    """A report: 0 to 1,024 numbers, each of magnitude at most 1e15."""

    readings: Sequence[float]
    opcode: ClassVar[Opcode] = Opcode.CLIENT_DATA
    status: ClassVar[Status] = Status.OK

    @cached_property
    def body(self) -> bytes:
        """The JSON array, checked and encoded once. Raises LocalError."""
        return encode_json(self.readings, check_readings)


@dataclass(frozen=True)
class ServerAggrResponse:
    """An answer: a JSON object of strings, finite numbers, nulls and arrays of them."""

    aggregate: Mapping[str, Json]
    opcode: ClassVar[Opcode] = Opcode.SERVER_AGGR_RESPONSE
    status: ClassVar[Status] = Status.OK

    @cached_property
    def body(self) -> bytes:
        """The JSON object, checked and encoded once. Raises LocalError."""
        return encode_json(self.aggregate, check_aggregate)


@dataclass(frozen=True)
class KeyDesync:
    """A farewell: the sender is in another round."""

    opcode: ClassVar[Opcode] = Opcode.KEY_DESYNC_ERROR
    status: ClassVar[Status] = Status.VIOLATION
    body: ClassVar[bytes] = b""


@dataclass(frozen=True)
class Terminate:
    """A farewell, and its reason: any status but OK. Raises LocalError."""

    status: Status
    opcode: ClassVar[Opcode] = Opcode.TERMINATE
    body: ClassVar[bytes] = b""

    def __post_init__(self) -> None:
        if self.status not in FAREWELL_STATUS[Opcode.TERMINATE]:
            raise LocalError(f"TERMINATE cannot carry {self.status!r}")


Message = ClientHello | ServerChallenge | ClientData | ServerAggrResponse | KeyDesync | Terminate
FAREWELL_STATUS: Mapping[Opcode, frozenset[Status]] = {  # any other opcode carries OK
    Opcode.TERMINATE: frozenset(Status) - {Status.OK},
    Opcode.KEY_DESYNC_ERROR: frozenset({Status.VIOLATION}),
}


class Header(NamedTuple):
    """The 7 public bytes as numbers, not yet verified."""

    opcode: int
    client_id: int
    round_number: int
    direction: int


def parse_message(opcode: int, sender: int, plaintext: bytes) -> Message:
    """Return the message that an opcode and a plaintext make [P 3.3]. Raises BadPayload."""
    rest = plaintext
    if sender == Direction.C2S:
        rest = plaintext[NONCE_BYTES:]
        if len(plaintext) < NONCE_BYTES:
            raise BadPayload(f"a nonce of {NONCE_BYTES} bytes", len(plaintext))
    if opcode in FAREWELL_STATUS:
        return _parse_farewell(opcode, rest)
    if sender == Direction.S2C:
        if rest[:1] != OK:
            raise BadPayload("the status OK", rest[:1].hex() or "none")
        rest = rest[1:]
    return PARSERS[opcode](rest)


def _parse_farewell(opcode: int, body: bytes) -> Message:
    legal = FAREWELL_STATUS[Opcode(opcode)]
    if len(body) != 1 or body[0] not in legal:
        raise BadPayload("a byte with a status of a farewell", body[:2].hex() or "none")
    return KeyDesync() if opcode == Opcode.KEY_DESYNC_ERROR else Terminate(Status(body[0]))


def _parse_hello(body: bytes) -> ClientHello:
    if body != VERSION:
        raise BadPayload(f"protocol version {VERSION.hex()}", body[:2].hex() or "none")
    return ClientHello()


def _parse_challenge(body: bytes) -> ServerChallenge:
    if len(body) != 2 * NONCE_BYTES:
        raise BadPayload(f"a body of {2 * NONCE_BYTES} bytes", len(body))
    return ServerChallenge()


def _parse_report(body: bytes) -> ClientData:
    readings = check_readings(_decode_json(body))
    return ClientData([float(reading) for reading in readings])


def _parse_answer(body: bytes) -> ServerAggrResponse:
    return ServerAggrResponse(check_aggregate(_decode_json(body)))


PARSERS: Mapping[int, Callable[[bytes], Message]] = {
    Opcode.CLIENT_HELLO: _parse_hello,
    Opcode.SERVER_CHALLENGE: _parse_challenge,
    Opcode.CLIENT_DATA: _parse_report,
    Opcode.SERVER_AGGR_RESPONSE: _parse_answer,
}


def check_readings(values: object) -> Sequence[float]:
    """Return the 0 to 1,024 numbers of a report. Raises BadPayload."""
    if not isinstance(values, (list, tuple)):
        raise BadPayload("an array", type(values).__name__)
    if len(values) > MAX_READINGS:
        raise BadPayload(f"at most {MAX_READINGS:,} numbers", len(values))
    for value in values:
        is_number = type(value) is float or _is_number(value)  # nearly all are floats
        if not (is_number and -MAX_MAGNITUDE <= value <= MAX_MAGNITUDE):
            raise BadPayload(f"numbers of at most {MAX_MAGNITUDE:.0e}", "something else")
    return values


def check_aggregate(members: object) -> dict[str, Json]:
    """Return the object of an answer. Raises BadPayload."""
    if not isinstance(members, dict):
        raise BadPayload("an object", type(members).__name__)
    names = "".join(members)  # checked all at once
    if not (_is_text(names) and _are_plain(members.values(), or_arrays=True)):
        raise BadPayload("strings, finite numbers, nulls, arrays of them", "something else")
    return members


def encode_json(value: object, check: Callable[[object], object]) -> bytes:
    """Return JSON in UTF-8, at most 65,455 bytes, of a value that passes. Raises LocalError."""
    try:
        check(value)
        body = _COMPACT_JSON.encode(value).encode("utf-8")
    except TypeError as error:
        raise LocalError(f"this is not JSON: {error}") from error
    except BadPayload as error:
        raise LocalError(f"this cannot be sent: {error}") from error
    if len(body) > MAX_BODY:
        raise LocalError(f"a body has at most {MAX_BODY:,} bytes, and this one {len(body):,}")
    return body


def _decode_json(body: bytes) -> object:
    """Decode first, then parse: Python's json would otherwise guess at UTF-16."""
    if len(body) > MAX_BODY:
        raise BadPayload(f"a body of at most {MAX_BODY} bytes", len(body))
    try:
        return _STRICT_JSON.decode(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadPayload("JSON in UTF-8", type(error).__name__) from None


_COMPACT_JSON = json.JSONEncoder(separators=(",", ":"))
_STRICT_JSON = json.JSONDecoder(parse_constant=int)  # int("NaN") is a ValueError: not JSON


LARGEST = sys.float_info.max


def _are_plain(values: Iterable[Any], or_arrays: bool = False) -> bool:
    """Return whether all are finite numbers, nulls, strings, or (if so) arrays of such."""
    for value in values:
        if not (
            (_is_number(value) and -LARGEST <= value <= LARGEST)
            or value is None
            or _is_text(value)
            or (or_arrays and isinstance(value, (list, tuple)) and _are_plain(value))
        ):
            return False
    return True


def _is_number(value: object) -> bool:
    """Return whether it is a number, infinity included; True is none."""
    kind = type(value)
    return kind is float or kind is int or (kind is not bool and isinstance(value, (float, int)))


def _is_text(value: object) -> bool:
    """Return whether it is text. Half a character is none."""
    if not isinstance(value, str):
        return False
    return value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)


# Key schedule [P 3.4] -----------------------------------------------------------------------------

Keys = dict[str, bytes]  # the four chain keys of 32 bytes, by label; never changed in place
KEY_LABELS = ("C2S-ENC", "C2S-MAC", "S2C-ENC", "S2C-MAC")
LABEL_OF: Mapping[tuple[int, str], str] = {
    (Direction.C2S, "ENC"): "C2S-ENC",
    (Direction.C2S, "MAC"): "C2S-MAC",
    (Direction.S2C, "ENC"): "S2C-ENC",
    (Direction.S2C, "MAC"): "S2C-MAC",
}


def bind_keys(keys: Keys, client_nonce: bytes, server_nonce: bytes) -> Keys:
    """Bind all four to one session: recordings of other sessions are worthless in it."""
    return {label: evolve_key(key, client_nonce + server_nonce) for label, key in keys.items()}


def evolve_c2s(keys: Keys, ciphertext: bytes, nonce: bytes) -> Keys:
    """Move the client's two keys after its CLIENT_DATA."""
    return {
        **keys,
        "C2S-ENC": evolve_key(keys["C2S-ENC"], ciphertext),
        "C2S-MAC": evolve_key(keys["C2S-MAC"], nonce),
    }


def evolve_s2c(keys: Keys, body: bytes, status: bytes) -> Keys:
    """Move the server's two keys after its SERVER_AGGR_RESPONSE; the status is its byte."""
    return {
        **keys,
        "S2C-ENC": evolve_key(keys["S2C-ENC"], body),
        "S2C-MAC": evolve_key(keys["S2C-MAC"], status),
    }


# Session ------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """What a watcher learns of a message, after the decision; copies only."""

    verdict: str  # "sealed", "accepted", or the error for which it was refused
    message: bytes  # without the length before it
    plaintext: bytes  # empty if it was refused
    fingerprints: Mapping[str, str]  # of the keys as they are now


Watcher = Callable[[Seen], object]
KeyLog = Callable[[Keys], object]  # asked for by name; nothing else receives keys


class Watchers(tuple[Watcher, ...]):
    """Observers of a session. They can change nothing in it, not even by raising."""

    error = ""  # of the last one that raised, for the log of the session's owner

    def tell(
        self,
        verdict: str,
        message: bytes,
        plaintext: bytes,
        fingerprints: Callable[[], Mapping[str, str]],
    ) -> None:
        """Show a message to all of them."""
        for watcher in self:
            try:
                watcher(Seen(verdict, message, plaintext, fingerprints()))
            except Exception as error:
                self.error = f"{type(error).__name__}: {error}"


class Session:
    """One end of one session: seal what we send, open what arrives.

    `sends` is the direction of our own messages: C2S makes this the client's end. The master key
    (16 bytes or more) is not kept. `watchers` see each message after the decision, and can change
    nothing; `key_log` alone receives the keys, whenever they may have moved. `random_bytes` and
    `first_round` are for vectors and tests.
    """

    read_frame = staticmethod(read_frame)
    write_frame = staticmethod(write_frame)

    def __init__(
        self,
        client_id: int,
        master_key: bytes,
        sends: Direction,
        *,
        watchers: Sequence[Watcher] = (),
        key_log: KeyLog | None = None,
        random_bytes: RandomSource = get_random_bytes,
        first_round: int = 1,
    ) -> None:
        if not 0 <= client_id <= 255 or len(master_key) < MIN_MASTER_KEY:
            raise LocalError("a session needs a one-byte client id and a key of 16 bytes or more")
        self.client_id = client_id
        self.sends = sends
        self.receives = Direction(1 - sends)
        self.fsm = ProtocolFSM(first_round)
        self.watchers = Watchers(watchers)
        self._key_log = key_log
        self._random_bytes = random_bytes
        self._client_nonce = b""  # from CLIENT_HELLO to SERVER_CHALLENGE
        self._keys = {label: derive_key(master_key, label) for label in KEY_LABELS}
        self._last_fingerprints: dict[str, str] = {}

    @property
    def state(self) -> State:
        return self.fsm.state

    @property
    def round_number(self) -> int:
        return self.fsm.round_number

    @property
    def has_farewell(self) -> bool:
        """Whether a farewell is legal now: not in the handshake, and not after the end [P 3.5]."""
        return self.fsm.allows(Opcode.TERMINATE, self.sends)

    def fingerprints(self) -> dict[str, str]:
        """Name the four chain keys, 8 hex digits each; after the end, the last four keys."""
        return {**self._last_fingerprints} or {k: fingerprint(v) for k, v in self._keys.items()}

    def __repr__(self) -> str:
        return (
            f"<Session of client {self.client_id}, sends {self.sends.name}, "
            f"{self.state.name}, round {self.round_number}>"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError("a session holds keys, which are not pickled")

    def seal(self, message: Message) -> bytes:
        """Return our next message (71 to 65,527 bytes), and move keys, round and state.

        Raises LocalError, and then nothing has changed.
        """
        opcode = message.opcode
        if not self.fsm.allows(opcode, self.sends):
            raise LocalError(f"{opcode.name} cannot be sent in {self.state.name}")
        plaintext = self._compose(message)
        iv = self._fresh_iv()
        ciphertext = self._encrypt(pkcs7_pad(plaintext), iv)
        header = HEADER.pack(opcode, self.client_id, self.fsm.round_number, self.sends)
        untagged = header + iv + ciphertext
        tag = hmac_sha256(self._key(self.sends, "MAC"), self._under_tag(untagged))
        sealed = untagged + tag
        self._commit(opcode, self.sends, plaintext, ciphertext)
        if self.watchers:
            self.watchers.tell("sealed", sealed, plaintext, self.fingerprints)
        return sealed

    def _compose(self, message: Message) -> bytes:
        """Build [P 3.3]: C2S `nonce || body`, S2C `status || body`. The nonce is drawn first."""
        status = bytes([message.status])
        body = message.body
        if self.sends is Direction.C2S:
            if message.opcode in FAREWELL_STATUS:
                body = status
            return self._random_bytes(NONCE_BYTES) + body
        if message.opcode is Opcode.SERVER_CHALLENGE:
            body = self._client_nonce + self._random_bytes(NONCE_BYTES)
        return status + body

    def _fresh_iv(self) -> bytes:
        return self._random_bytes(BLOCK_BYTES)

    def _encrypt(self, padded: bytes, iv: bytes) -> bytes:
        return aes_cbc_encrypt(padded, self._key(self.sends, "ENC")[:AES_KEY_BYTES], iv)

    def _under_tag(self, untagged: bytes) -> bytes:
        """Return the bytes under the tag: header, IV and ciphertext, all there is [P 3.2]."""
        return untagged

    def _key(self, sender: int, use: str) -> bytes:
        return self._keys[LABEL_OF[sender, use]]

    def open(self, message: bytes) -> Message:
        """Check, decrypt and accept the peer's next message (without its length prefix).

        Raises a ProtocolError, which ended the session and carries the farewell to send; and
        PeerTerminated when the message was accepted and ends the session itself.
        """
        try:
            header = self._check_shape(message)  # step 1
            self._check_client_id(header)  # step 2
            self._check_direction(header)  # step 2
            self._check_opcode(header)  # step 3
            self._check_round(header)  # step 4
            self._check_tag(header, message)  # step 5
            padded = self._decrypt(header, message)  # step 6
            plaintext = self._unpad(padded)  # step 7
            content = self._check_payload(header, plaintext)  # step 8
        except ProtocolError as error:
            if self.watchers:
                self.watchers.tell(type(error).__name__, message, b"", self.fingerprints)
            self.fail(error)
            raise
        ciphertext = message[CIPHERTEXT_AT:-TAG_BYTES]
        self._commit(content.opcode, self.receives, plaintext, ciphertext)  # step 9
        if self.watchers:
            self.watchers.tell("accepted", message, plaintext, self.fingerprints)
        if content.opcode in FAREWELL_STATUS:
            raise PeerTerminated(content.opcode, content.status)
        return content

    def _check_shape(self, message: bytes) -> Header:
        check_length(len(message))
        return Header(*HEADER.unpack_from(message))

    def _check_client_id(self, header: Header) -> None:
        if header.client_id != self.client_id:
            raise WrongPeer(self.client_id, header.client_id)

    def _check_direction(self, header: Header) -> None:
        if header.direction != self.receives:
            raise WrongDirection(int(self.receives), header.direction)

    def _check_opcode(self, header: Header) -> None:
        if not self.fsm.allows(header.opcode, self.receives):
            raise UnexpectedOpcode(f"a move from {self.state.name}", header.opcode)

    def _check_round(self, header: Header) -> None:
        is_farewell = header.opcode in FAREWELL_STATUS
        if header.round_number != self.fsm.round_number and not is_farewell:
            raise RoundMismatch(self.round_number, header.round_number)

    def _check_tag(self, header: Header, message: bytes) -> None:
        untagged = message[:-TAG_BYTES]
        tag = message[-TAG_BYTES:]
        if not hmac_verify(self._key(header.direction, "MAC"), self._under_tag(untagged), tag):
            raise BadTag

    def _decrypt(self, header: Header, message: bytes) -> bytes:
        iv = message[HEADER.size : CIPHERTEXT_AT]
        ciphertext = message[CIPHERTEXT_AT:-TAG_BYTES]
        return aes_cbc_decrypt(ciphertext, self._key(header.direction, "ENC")[:AES_KEY_BYTES], iv)

    def _unpad(self, padded: bytes) -> bytes:
        try:
            return pkcs7_unpad(padded)
        except ValueError:
            raise BadPadding from None

    def _check_payload(self, header: Header, plaintext: bytes) -> Message:
        message = parse_message(header.opcode, header.direction, plaintext)
        if message.opcode is Opcode.SERVER_CHALLENGE:
            self._check_echo(plaintext[1 : 1 + NONCE_BYTES])
        return message

    def _check_echo(self, client_nonce: bytes) -> None:
        if client_nonce != self._client_nonce:
            raise EchoMismatch("our own client nonce", "another")

    def _commit(
        self, opcode: Opcode, sender: Direction, plaintext: bytes, ciphertext: bytes
    ) -> None:
        """Move keys, round and state together; the only place where they move."""
        self._keys = self._next_keys(opcode, plaintext, ciphertext)
        if opcode is Opcode.CLIENT_HELLO:
            self._client_nonce = plaintext[:NONCE_BYTES]
        elif opcode is Opcode.SERVER_CHALLENGE:
            self._client_nonce = b""
        self.fsm.advance(opcode, sender)
        if self._key_log:
            self._tell_keys(self._key_log)
        if self.fsm.state is State.ENDED:
            self._forget_keys()

    def _next_keys(self, opcode: Opcode, plaintext: bytes, ciphertext: bytes) -> Keys:
        """Return the keys after a message [P 3.4]; each end binds with the nonce that it drew."""
        if opcode is Opcode.SERVER_CHALLENGE:
            return bind_keys(self._keys, self._client_nonce, plaintext[1 + NONCE_BYTES :])
        if opcode is Opcode.CLIENT_DATA:
            return evolve_c2s(self._keys, ciphertext, plaintext[:NONCE_BYTES])
        if opcode is Opcode.SERVER_AGGR_RESPONSE:
            return evolve_s2c(self._keys, plaintext[1:], plaintext[:1])
        return self._keys

    def goodbye(self, status: Status) -> bytes:
        """Return a TERMINATE, which ends the session; nothing where a farewell is not legal."""
        return self.seal(Terminate(status)) if self.has_farewell else b""

    def fail(self, error: ProtocolError) -> None:
        """End the session because of `error`, and give `error` the farewell to send.

        A farewell needs bound keys: those of the handshake are the same in every session, so one
        recorded farewell, replayed, would end all later sessions [P 3.5].
        """
        farewell: Message = Terminate(Status.VIOLATION)
        if isinstance(error, RoundMismatch):
            farewell = KeyDesync()
        elif isinstance(error, DeadlineExpired):
            farewell = Terminate(Status.TIMEOUT)
        if self.has_farewell and not isinstance(error, ConnectionCut):
            error.farewell = self.seal(farewell)
        self.fsm.end()
        self._forget_keys()

    def _forget_keys(self) -> None:
        self._last_fingerprints = self.fingerprints()
        self._keys = {}
        self._client_nonce = b""

    def _tell_keys(self, log: KeyLog) -> None:
        try:
            log({**self._keys})
        except Exception as error:
            self.watchers.error = f"{type(error).__name__}: {error}"
