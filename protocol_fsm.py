"""The protocol: wire format, errors, state table, payloads, key schedule, Session, framing.

[P 3.4] names the section of PROTOCOL.md that says the same in words. Bytes in, bytes out, or a
typed error: there is no socket, thread, clock or log here. Both ends run the same table over the
same conversation. What arrives is checked in the order of [P 3.6]; keys, round and state move
together, afterwards, and only if every check passed; a failure ends the session for good.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, IntEnum
from typing import ClassVar, NamedTuple, NoReturn

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
MIN_MESSAGE = 71
MAX_MESSAGE = 65_527  # one block; the most whole blocks that 2 bytes can count
MAX_BODY = MAX_MESSAGE - OVERHEAD - NONCE_BYTES - 1  # 65,455: one byte at least is padding
MIN_MASTER_KEY = 16
LAST_ROUND = 2**32 - 1
MAX_READINGS = 1_024
MAX_MAGNITUDE = 1e15  # numbers in one report; the magnitude of each

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


LEGAL_STATUS: Mapping[Opcode, frozenset[Status]] = {  # any other opcode carries OK
    Opcode.TERMINATE: frozenset(Status) - {Status.OK},
    Opcode.KEY_DESYNC_ERROR: frozenset({Status.VIOLATION}),
}
ENDING = frozenset(LEGAL_STATUS)
JSON_BODIES = frozenset({Opcode.CLIENT_DATA, Opcode.SERVER_AGGR_RESPONSE})
BODY_BYTES = {Opcode.CLIENT_HELLO: 1, Opcode.SERVER_CHALLENGE: 2 * NONCE_BYTES}  # all others: 0

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
    """Step 8: a SERVER_CHALLENGE that answers somebody else's CLIENT_HELLO."""


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


# State machine [P 3.5] ----------------------------------------------------------------------------


class ProtocolState(Enum):
    INIT = "INIT"
    ACTIVE = "ACTIVE"
    TERMINATED = "TERMINATED"


class State(Enum):
    """A phase, and the direction that the next message of the conversation takes."""

    HELLO = ProtocolState.INIT, Direction.C2S
    CHALLENGE = ProtocolState.INIT, Direction.S2C
    REPORT = ProtocolState.ACTIVE, Direction.C2S
    ANSWER = ProtocolState.ACTIVE, Direction.S2C
    ENDED = ProtocolState.TERMINATED, None

    def __init__(self, phase: ProtocolState, speaker: Direction | None) -> None:
        self.phase = phase
        self.speaker = speaker


class ProtocolFSM:
    """Where one end of one session stands. It holds no keys."""

    # Every legal move. What is not here is a violation.
    VALID_TRANSITIONS: ClassVar[Mapping[tuple[State, Opcode, Direction], State]] = {
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

    def __init__(self, first_round: int = 1) -> None:
        self.state = State.HELLO
        self.round_number = 0
        self._first_round = first_round

    def allows(self, opcode: int, sender: int) -> bool:
        """Tell whether the table has a move for these two header bytes, whatever they hold."""
        return (self.state, opcode, sender) in self.VALID_TRANSITIONS

    def advance(self, opcode: Opcode, sender: Direction) -> None:
        """Make the move. Rounds start with the challenge, rise with each answer, and run out."""
        self.state = self.VALID_TRANSITIONS[self.state, opcode, sender]
        if opcode is Opcode.SERVER_CHALLENGE:
            self.round_number = self._first_round
        elif opcode is Opcode.SERVER_AGGR_RESPONSE and self.round_number == LAST_ROUND:
            self.state = State.ENDED
        elif opcode is Opcode.SERVER_AGGR_RESPONSE:
            self.round_number += 1


# Messages and what they carry [P 3.2, 3.3] --------------------------------------------------------


class Header(NamedTuple):
    """The 7 public bytes as numbers; nothing is known about them yet."""

    opcode: int
    client_id: int
    round_number: int
    direction: int


class Message(NamedTuple):
    """An accepted message. What its type does not carry is empty, or OK."""

    opcode: Opcode
    client_id: int
    round_number: int
    direction: Direction
    nonce: bytes
    status: Status
    body: bytes
    readings: list[float]
    aggregate: dict[str, Json]


def parse_message(header: Header, plaintext: bytes) -> Message:
    """Return the message that `header` and `plaintext` make [P 3.3]. Raises BadPayload."""
    opcode = Opcode(header.opcode)
    direction = Direction(header.direction)
    nonce, status, body = _split_plaintext(opcode, direction, plaintext)
    if direction is Direction.C2S and len(nonce) != NONCE_BYTES:
        raise BadPayload(f"a nonce of {NONCE_BYTES} bytes", len(nonce))
    if not status or status[0] not in LEGAL_STATUS.get(opcode, {Status.OK}):
        raise BadPayload(f"a status of {opcode.name}", status.hex() or "none")
    readings = parse_readings(body) if opcode is Opcode.CLIENT_DATA else []
    aggregate = parse_aggregate(body) if opcode is Opcode.SERVER_AGGR_RESPONSE else {}
    length = BODY_BYTES.get(opcode, 0)
    if opcode not in JSON_BODIES and len(body) != length:
        raise BadPayload(f"a body of {length} bytes", len(body))
    if opcode is Opcode.CLIENT_HELLO and body != VERSION:
        raise BadPayload(f"protocol version {VERSION.hex()}", body.hex())
    return Message(
        opcode,
        header.client_id,
        header.round_number,
        direction,
        nonce,
        Status(status[0]),
        body,
        readings,
        aggregate,
    )


def _split_plaintext(opcode: int, sender: Direction, plaintext: bytes) -> tuple[bytes, ...]:
    """Return nonce, status byte and body; what is missing is empty."""
    if sender is Direction.S2C:
        return b"", plaintext[:1], plaintext[1:]
    nonce = plaintext[:NONCE_BYTES]
    body = plaintext[NONCE_BYTES:]
    return (nonce, body[:1], body[1:]) if opcode in ENDING else (nonce, bytes([Status.OK]), body)


def parse_readings(body: bytes) -> list[float]:
    """Return the 0 to 1,024 numbers of a report. Raises BadPayload."""
    values = _parse_json(body)
    if not isinstance(values, list) or len(values) > MAX_READINGS:
        raise BadPayload(f"an array of at most {MAX_READINGS} numbers", type(values).__name__)
    if not _are_numbers(values, MAX_MAGNITUDE):
        raise BadPayload(f"numbers of at most {MAX_MAGNITUDE:.0e}", "something else")
    return [float(value) for value in values]


def parse_aggregate(body: bytes) -> dict[str, Json]:
    """Return the object of an answer. Raises BadPayload."""
    members = _parse_json(body)
    if not isinstance(members, dict):
        raise BadPayload("an object", type(members).__name__)
    arrays = [value if isinstance(value, list) else [value] for value in members.values()]
    values = [item for array in arrays for item in array]
    if not _is_plain("".join(members)) or not (_are_numbers(values) or all(map(_is_plain, values))):
        raise BadPayload("strings, finite numbers, nulls, arrays of them", "something else")
    return members


def encode_body(value: Sequence[float] | Mapping[str, Json]) -> bytes:
    """Return a JSON body; whether [P 3.3] allows it, `seal` checks. Raises LocalError."""
    try:
        return _COMPACT_JSON.encode(value).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise LocalError(f"this is not JSON: {error}") from error


def _parse_json(body: bytes) -> object:
    """Decode first, then parse: Python's json would otherwise guess at UTF-16."""
    if len(body) > MAX_BODY:
        raise BadPayload(f"a body of at most {MAX_BODY} bytes", len(body))
    try:
        return _STRICT_JSON.decode(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadPayload("JSON in UTF-8", type(error).__name__) from None


_COMPACT_JSON = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
_STRICT_JSON = json.JSONDecoder(parse_constant=int)  # int("NaN") is a ValueError: not JSON


def _are_numbers(values: Sequence[float], limit: float = sys.float_info.max) -> bool:
    """Tell if all are numbers up to `limit`; True is an int, 1e400 infinity, an int may be huge."""
    return {*map(type, values)} <= {int, float} and max(map(abs, values), default=0) <= limit


def _is_plain(value: str | float | None) -> bool:
    """Tell if it is text, a number or null. Half a character (a lone surrogate) is not text."""
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)
    return value is None or _are_numbers([value])


# Key schedule [P 3.4] -----------------------------------------------------------------------------

Keys = dict[str, bytes]  # the four chain keys of 32 bytes, by label; never changed in place
KEY_LABELS = ("C2S-ENC", "C2S-MAC", "S2C-ENC", "S2C-MAC")


def bind_keys(keys: Keys, client_nonce: bytes, server_nonce: bytes) -> Keys:
    """Tie all four to one session: what was recorded in another is worthless in it."""
    return {label: evolve_key(key, client_nonce + server_nonce) for label, key in keys.items()}


def evolve_c2s(keys: Keys, ciphertext: bytes, nonce: bytes) -> Keys:
    """Move the client's two keys after its CLIENT_DATA."""
    return {
        **keys,
        "C2S-ENC": evolve_key(keys["C2S-ENC"], ciphertext),
        "C2S-MAC": evolve_key(keys["C2S-MAC"], nonce),
    }


def evolve_s2c(keys: Keys, body: bytes, status: Status) -> Keys:
    """Move the server's two keys after its SERVER_AGGR_RESPONSE."""
    return {
        **keys,
        "S2C-ENC": evolve_key(keys["S2C-ENC"], body),
        "S2C-MAC": evolve_key(keys["S2C-MAC"], bytes([status])),
    }


# Session ------------------------------------------------------------------------------------------


class Session:
    """One end of one session: seal what we send, open what arrives.

    `sends` is the direction of our own messages: C2S makes this the client's end. The master key
    (16 bytes or more) is not kept. `random_bytes` and `first_round` are for vectors and tests.
    """

    def __init__(
        self,
        client_id: int,
        master_key: bytes,
        sends: Direction,
        *,
        random_bytes: RandomSource = get_random_bytes,
        first_round: int = 1,
    ) -> None:
        if not 0 <= client_id <= 255 or len(master_key) < MIN_MASTER_KEY:
            raise LocalError("a session needs a one-byte client id and a key of 16 bytes or more")
        self.client_id = client_id
        self.sends = sends
        self.receives = Direction(1 - sends)
        self.fsm = ProtocolFSM(first_round)
        self._random_bytes = random_bytes
        self._client_nonce = b""
        self._keys = {label: derive_key(master_key, label) for label in KEY_LABELS}
        self._last_fingerprints: dict[str, str] = {}

    @property
    def state(self) -> State:
        return self.fsm.state

    @property
    def round_number(self) -> int:
        return self.fsm.round_number

    def fingerprints(self) -> dict[str, str]:
        """Name the four chain keys, 8 hex digits each; after the end, the last four there were."""
        return self._last_fingerprints or {k: fingerprint(v) for k, v in self._keys.items()}

    def __repr__(self) -> str:
        return (
            f"<Session of client {self.client_id}, sends {self.sends.name}, "
            f"{self.state.name}, round {self.round_number}>"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError("a session holds keys, which are not pickled")

    def seal(self, opcode: Opcode, body: bytes = b"", *, status: Status = Status.OK) -> bytes:
        """Return our next message (71 to 65,527 bytes), and move keys, round and state.

        CLIENT_DATA and SERVER_AGGR_RESPONSE take a JSON `body`, TERMINATE and KEY_DESYNC_ERROR
        a `status`; the rest is built here. Raises LocalError, and then nothing has changed.
        """
        if not self.fsm.allows(opcode, self.sends):
            raise LocalError(f"{opcode.name} cannot be sent in {self.state.name}")
        header = Header(opcode, self.client_id, self.round_number, self.sends)
        plaintext = self._plaintext(opcode, body, status)
        try:
            message = self._check_payload(header, plaintext)  # a sender obeys the rules too
        except BadPayload as error:
            raise LocalError(f"{opcode.name} cannot carry this: {error}") from error
        if message.status is not status:  # asked for one where there is no room for it
            raise LocalError(f"{opcode.name} cannot carry {status.name}")
        iv = self._fresh_iv()
        ciphertext = self._encrypt(pkcs7_pad(plaintext), iv)
        untagged = HEADER.pack(*header) + iv + ciphertext
        tag = hmac_sha256(self._key(self.sends, "MAC"), self._under_tag(untagged))
        self._commit(message, ciphertext, self.sends)
        return untagged + tag

    def _plaintext(self, opcode: Opcode, body: bytes, status: Status) -> bytes:
        """Build [P 3.3]: C2S `nonce || body`, S2C `status || body`. The nonce is drawn first."""
        if body and opcode not in JSON_BODIES:
            raise LocalError(f"the body of {opcode.name} is built by the session")
        if self.sends is Direction.C2S:
            nonce = self._random_bytes(NONCE_BYTES)
            if opcode is Opcode.CLIENT_HELLO:
                return nonce + VERSION
            return nonce + (bytes([status]) if opcode in ENDING else body)
        if opcode is Opcode.SERVER_CHALLENGE:
            body = self._client_nonce + self._random_bytes(NONCE_BYTES)
        return bytes([status]) + body

    def _fresh_iv(self) -> bytes:
        return self._random_bytes(BLOCK_BYTES)

    def _encrypt(self, padded: bytes, iv: bytes) -> bytes:
        return aes_cbc_encrypt(padded, self._key(self.sends, "ENC")[:AES_KEY_BYTES], iv)

    def _under_tag(self, untagged: bytes) -> bytes:
        """Return the bytes under the tag: header, IV and ciphertext, all there is [P 3.2]."""
        return untagged

    def _key(self, sender: int, use: str) -> bytes:
        return self._keys[("C2S-", "S2C-")[sender] + use]

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
            parsed = self._check_payload(header, plaintext)  # step 8
        except ProtocolError as error:
            self.fail(error)
            raise
        self._commit(parsed, message[CIPHERTEXT_AT:-TAG_BYTES], self.receives)  # step 9
        if parsed.opcode in ENDING:
            raise PeerTerminated(parsed.opcode, parsed.status)
        return parsed

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
        if header.opcode not in ENDING and header.round_number != self.round_number:
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
        message = parse_message(header, plaintext)
        if message.opcode is Opcode.SERVER_CHALLENGE:
            self._check_echo(message.body[:NONCE_BYTES])
        return message

    def _check_echo(self, client_nonce: bytes) -> None:
        if client_nonce != self._client_nonce:
            raise EchoMismatch("our own client nonce", "another")

    def _commit(self, message: Message, ciphertext: bytes, sender: Direction) -> None:
        """Move keys, round and state together; the only place where they move."""
        self._keys = self._next_keys(message, ciphertext)
        if message.opcode is Opcode.CLIENT_HELLO:
            self._client_nonce = message.nonce
        self.fsm.advance(message.opcode, sender)
        if self.state is State.ENDED:
            self._forget_keys()

    def _next_keys(self, message: Message, ciphertext: bytes) -> Keys:
        if message.opcode is Opcode.SERVER_CHALLENGE:
            return bind_keys(self._keys, message.body[:NONCE_BYTES], message.body[NONCE_BYTES:])
        if message.opcode is Opcode.CLIENT_DATA:
            return evolve_c2s(self._keys, ciphertext, message.nonce)
        if message.opcode is Opcode.SERVER_AGGR_RESPONSE:
            return evolve_s2c(self._keys, message.body, message.status)
        return self._keys

    def fail(self, error: ProtocolError) -> None:
        """End the session because of `error`, and give `error` the farewell to send.

        Only bound keys say farewell: those of the handshake are the same in every session, so that
        one recorded farewell, replayed, would end all later ones [P 3.5].
        """
        if self.state.phase is ProtocolState.ACTIVE and not isinstance(error, ConnectionCut):
            desync = isinstance(error, RoundMismatch)
            late = isinstance(error, DeadlineExpired)
            opcode = Opcode.KEY_DESYNC_ERROR if desync else Opcode.TERMINATE
            error.farewell = self.seal(opcode, status=Status.TIMEOUT if late else Status.VIOLATION)
        self.fsm.state = State.ENDED
        self._forget_keys()

    def _forget_keys(self) -> None:
        self._last_fingerprints = self.fingerprints()
        self._keys = {}


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

    `recv(n)` gives 1 to n bytes, or none at the end of the stream, as socket.recv does; whoever
    passes it owns the deadlines. Raises MalformedMessage (after 2 bytes) and ConnectionCut.
    """
    length_bytes = int.from_bytes(_read_exactly(recv, 2, mid_frame=False), "big")
    check_length(length_bytes)
    return _read_exactly(recv, length_bytes, mid_frame=True)


def _read_exactly(recv: Callable[[int], bytes], wanted: int, *, mid_frame: bool) -> bytes:
    received = bytearray()  # which grows in place, however small the pieces are
    while len(received) < wanted:
        more = recv(wanted - len(received))
        if not more:
            raise ConnectionCut(mid_frame or bool(received))
        received += more
    return bytes(received)


def write_frame(sendall: Callable[[bytes], object], message: bytes) -> None:
    """Send `message` behind its length, in one piece."""
    sendall(len(message).to_bytes(2, "big") + message)
