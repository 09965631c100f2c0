"""The protocol: kinds of messages, errors, state table, handshake, keys, records.

[N 3] names section 3 of the protocol in README.md. Bytes in, bytes out, or a typed error: there is
no socket, thread or log here, and the clock is handed in. Anybody can drop a message into a node's
inbox, so what nobody vouches for is refused and changes nothing. What the peer vouches for, and
must not have said, ends the session for good [N 6].
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Callable, Mapping
from enum import Enum, IntEnum
from typing import ClassVar, NamedTuple, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from companions.asymmetric import (
    SHARE_BYTES,
    SIGNATURE_BYTES,
    PublicKey,
    agree,
    hkdf,
    hkdf_expand,
    is_signed,
    new_share,
    sign,
)
from companions.peer_messaging.identity import KEY_BYTES, Identity, Trust
from crypto_utils import fingerprint
from protocol_fsm import (
    BadPayload,
    BadTag,
    LocalError,
    MalformedMessage,
    ProtocolError,
    ProtocolState,
    WrongDirection,
)

NAME = "peer_messaging v1"  # stands in everything that is signed or derived
VERSION = 1
CLEAR = struct.Struct(">BBQ")  # kind, version, timestamp: 10 bytes [N 2]
HEADER = struct.Struct(">B16sBIQ")  # kind, session id, sender, sequence, timestamp: 30 bytes [N 4]
NUMBER = struct.Struct(">I")  # a sequence number in a body
SESSION_BYTES = 16
DIGEST_BYTES = 32
GCM_TAG_BYTES = 16
GCM_NONCE_BYTES = 12
HELLO_BYTES = CLEAR.size + SHARE_BYTES + KEY_BYTES + SIGNATURE_BYTES  # 749
REPLY_BYTES = HELLO_BYTES + DIGEST_BYTES  # 781
MAX_TEXT = 4_096  # bytes of UTF-8
MIN_RECORD = HEADER.size + GCM_TAG_BYTES  # 46
MAX_MESSAGE = MIN_RECORD + MAX_TEXT  # 4,142
MAX_SEQUENCE = 2**32 - 1
RENEW_AT = 2**31  # records of a sender in one session, after which it is time for the next
SPENT_AT = 2**32 - 2**16  # and after which there is no waiting for it
WINDOW_S = 30.0  # how far a timestamp may be from our clock


class Kind(IntEnum):
    """What a message is: its first byte [N 1]."""

    HELLO = 1
    REPLY = 2
    CONFIRM = 3
    WELCOME = 4
    TEXT = 5
    RECEIPT = 6
    PING = 7
    PONG = 8
    BYE = 9


class Role(IntEnum):
    """Who began the handshake, and who answered; nothing else distinguishes the two nodes."""

    INITIATOR = 0
    RESPONDER = 1


class Reason(IntEnum):
    """What a BYE says, in a byte."""

    GOODBYE = 0  # the sender is done
    VIOLATION = 1  # it refused what came before


CLEAR_SIZES = {Kind.HELLO: HELLO_BYTES, Kind.REPLY: REPLY_BYTES}
BODIES: Mapping[Kind, tuple[int, int]] = {  # smallest and largest body, in bytes; of all others 0
    Kind.TEXT: (1, MAX_TEXT),
    Kind.RECEIPT: (NUMBER.size, NUMBER.size),
    Kind.PONG: (NUMBER.size, NUMBER.size),
    Kind.BYE: (1, 1),
}
ANSWERS = {Kind.RECEIPT: Kind.TEXT, Kind.PONG: Kind.PING}  # to what, by its number

# Errors: those of the core, and what only this protocol knows -------------------------------------


class UnexpectedKind(ProtocolError):
    """The table has no such move from here."""


class WrongSession(ProtocolError):
    """A record of another session."""


class Replayed(ProtocolError):
    """A record, or a HELLO, that was here before."""


class MessageLost(ProtocolError):
    """A record whose predecessor never came."""


class Untimely(ProtocolError):
    """A timestamp too far from our clock: it was held back, or the clocks differ."""


class BadSignature(ProtocolError):
    """A HELLO or REPLY that the owner of the key in it has not signed."""


class BadShare(ProtocolError):
    """A share that leads to the same secret whatever our own is."""


class WrongAnswer(ProtocolError):
    """A REPLY that answers somebody else's HELLO, or an earlier one of ours."""


class Outlived(ProtocolError):
    """Too old, or hardly any numbers left: somebody keeps the next session from beginning."""


class PeerAway(ProtocolError):
    """Nothing was heard of the peer for too long, not even a PONG."""


class PeerLeft(ProtocolError):
    """The peer ended the session with an accepted BYE."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(None, reason.name)
        self.reason = reason


# State machine [N 5] ------------------------------------------------------------------------------


class State(Enum):
    """A phase, and who sends the next message of the conversation; no one waits in OPEN."""

    HELLO = ProtocolState.INIT, Role.INITIATOR
    REPLY = ProtocolState.INIT, Role.RESPONDER
    CONFIRM = ProtocolState.INIT, Role.INITIATOR, 1  # a number, as Enum takes equals for one
    WELCOME = ProtocolState.INIT, Role.RESPONDER, 1
    OPEN = ProtocolState.ACTIVE, None
    ENDED = ProtocolState.TERMINATED, None

    def __init__(self, phase: ProtocolState, speaker: Role | None, number: int = 0) -> None:
        self.phase = phase
        self.speaker = speaker


class ProtocolFSM:
    """Where one end of one session stands. It holds no keys."""

    # Every legal move. What is not here is a violation.
    VALID_TRANSITIONS: ClassVar[Mapping[tuple[State, Kind, Role], State]] = {
        (State.HELLO, Kind.HELLO, Role.INITIATOR): State.REPLY,
        (State.REPLY, Kind.REPLY, Role.RESPONDER): State.CONFIRM,
        (State.CONFIRM, Kind.CONFIRM, Role.INITIATOR): State.WELCOME,
        (State.WELCOME, Kind.WELCOME, Role.RESPONDER): State.OPEN,
        (State.OPEN, Kind.TEXT, Role.INITIATOR): State.OPEN,
        (State.OPEN, Kind.TEXT, Role.RESPONDER): State.OPEN,
        (State.OPEN, Kind.RECEIPT, Role.INITIATOR): State.OPEN,
        (State.OPEN, Kind.RECEIPT, Role.RESPONDER): State.OPEN,
        (State.OPEN, Kind.PING, Role.INITIATOR): State.OPEN,
        (State.OPEN, Kind.PING, Role.RESPONDER): State.OPEN,
        (State.OPEN, Kind.PONG, Role.INITIATOR): State.OPEN,
        (State.OPEN, Kind.PONG, Role.RESPONDER): State.OPEN,
        (State.OPEN, Kind.BYE, Role.INITIATOR): State.ENDED,
        (State.OPEN, Kind.BYE, Role.RESPONDER): State.ENDED,
    }

    def __init__(self) -> None:
        self.state = State.HELLO

    def allows(self, kind: Kind, sender: Role) -> bool:
        return (self.state, kind, sender) in self.VALID_TRANSITIONS

    def advance(self, kind: Kind, sender: Role) -> None:
        self.state = self.VALID_TRANSITIONS[self.state, kind, sender]


# Session ------------------------------------------------------------------------------------------

LABELS = {"I-KEY": 32, "I-IV": GCM_NONCE_BYTES, "R-KEY": 32, "R-IV": GCM_NONCE_BYTES}


def keys_of(bound: bytes, shared: bytes) -> dict[str, bytes]:
    """Return keys and IVs of a session by label [N 3]; `bound` is H (32 bytes)."""
    secret = hkdf(bound, shared, f"{NAME} secret")
    return {label: hkdf_expand(secret, f"{NAME} {label}", n) for label, n in LABELS.items()}


class Header(NamedTuple):
    """The 30 public bytes of a record; nothing is known about them yet."""

    kind: int
    session: bytes
    sender: int
    sequence: int
    timestamp: int  # milliseconds since 1970, UTC


class Message(NamedTuple):
    """An accepted message; `sequence` is its number, 0 in the handshake."""

    kind: Kind
    body: bytes
    sequence: int

    @property
    def text(self) -> str:
        """The body of a TEXT, which is UTF-8."""
        return self.body.decode("utf-8", "replace")


class Session:
    """One end of one session: seal what we send, open what arrives.

    `trust` says whose key the peer may show, `clock` gives the seconds since 1970.
    """

    def __init__(
        self,
        identity: Identity,
        trust: Trust,
        role: Role,
        *,
        clock: Callable[[], float] = time.time,
        window_s: float = WINDOW_S,
    ) -> None:
        self.identity = identity
        self.trust = trust
        self.role = role
        self.peer_role = Role(1 - role)
        self.fsm = ProtocolFSM()
        self.session_id = b""
        self.peer_key = ""
        self._clock = clock
        self._window_s = window_s
        self._hello = b""  # until both keys and session id depend on it
        self._ephemeral: X25519PrivateKey | None = None
        self._share = b""
        self._shared = b""  # ours; what both shares lead to
        self._keys: dict[str, bytes] = {}
        self._sequence = {Role.INITIATOR: 0, Role.RESPONDER: 0}  # of the next record
        self._unanswered: dict[int, Kind] = {}  # our TEXTs and PINGs, by number
        self._last_fingerprints: dict[str, str] = {}

    @property
    def state(self) -> State:
        return self.fsm.state

    @property
    def unanswered(self) -> dict[int, Kind]:
        """Our TEXTs without a RECEIPT, and PINGs without a PONG, by number."""
        return dict(self._unanswered)

    @property
    def next_number(self) -> int:
        """The sequence number of our next record."""
        return self._sequence[self.role]

    @property
    def is_spent(self) -> bool:
        """Tell whether we have hardly any numbers left."""
        return self.next_number >= SPENT_AT

    @property
    def is_used_up(self) -> bool:
        """Tell whether half of the numbers are gone, so that it is time for the next session."""
        return max(self._sequence.values()) >= RENEW_AT

    def fingerprints(self) -> dict[str, str]:
        """Name keys and IVs, 8 hex digits each; after the end, the last there were."""
        return self._last_fingerprints or {k: fingerprint(v) for k, v in self._keys.items()}

    def __repr__(self) -> str:
        return f"<Session of the {self.role.name}, {self.state.name}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a session holds keys, which are not pickled")

    # Sending

    def seal(self, kind: Kind, body: bytes = b"") -> bytes:
        """Return our next message (46 to 4,142 bytes), and move numbers and state.

        HELLO and REPLY are built here. Raises LocalError, and then nothing has changed.
        """
        if not self.fsm.allows(kind, self.role):
            raise LocalError(f"{kind.name} cannot be sent in {self.state.name}")
        if self._sequence[self.role] > MAX_SEQUENCE:
            raise LocalError("this session has no numbers left")
        if kind in CLEAR_SIZES:
            message = self._introduction(kind)
        else:
            try:
                self._check_body(kind, body)  # a sender obeys the rules too
            except BadPayload as error:
                raise LocalError(f"{kind.name} cannot carry this: {error}") from error
            message = self._seal_record(kind, body)
        if kind in ANSWERS.values():
            self._unanswered[self._sequence[self.role]] = kind
        self._commit(kind, message, self.role)
        return message

    def _now_ms(self) -> int:
        return int(self._clock() * 1_000)

    def _introduction(self, kind: Kind) -> bytes:
        """Return a HELLO or a REPLY: who we are, and our share, signed [N 2]."""
        if kind is Kind.HELLO:
            self._share = self._offer()
        unsigned = b"".join(
            (
                CLEAR.pack(kind, VERSION, self._now_ms()),
                self._answered(kind),
                self._share,
                self.identity.public_pem.encode("ascii"),
            )
        )
        return unsigned + sign(self.identity.private_key, self._context(kind), unsigned)

    def _offer(self) -> bytes:
        """Return an ephemeral share (32 bytes), made for this session and forgotten with it."""
        self._ephemeral, share = new_share()
        return share

    def _answered(self, kind: Kind) -> bytes:
        """Return what a REPLY answers: SHA-256 (32 bytes) of the HELLO; a HELLO answers nothing."""
        return hashlib.sha256(self._hello).digest() if kind is Kind.REPLY else b""

    def _context(self, kind: Kind) -> str:
        """Name what is signed, so that no HELLO can pass as a REPLY."""
        return f"{NAME} {kind.name}"

    def _seal_record(self, kind: Kind, body: bytes) -> bytes:
        number = self._sequence[self.role]
        header = HEADER.pack(kind, self.session_id, self.role, number, self._now_ms())
        return header + self._encrypt(body, header, number)

    def _encrypt(self, body: bytes, header: bytes, number: int) -> bytes:
        aead = AESGCM(self._key(self.role, "KEY"))
        return aead.encrypt(self._nonce(self.role, number), body, header)

    def _key(self, sender: int, use: str) -> bytes:
        return self._keys[("I-", "R-")[sender] + use]

    def _nonce(self, sender: int, number: int) -> bytes:
        """Return the nonce (12 bytes) of a record: the sender's IV, XORed with its number."""
        iv = int.from_bytes(self._key(sender, "IV"), "big")
        return (iv ^ number).to_bytes(GCM_NONCE_BYTES, "big")

    # Receiving

    def open(self, message: bytes) -> Message:
        """Check, decrypt and accept a message from the inbox, in the order of [N 6].

        Raises a ProtocolError. A HELLO, a REPLY, or what nobody vouches for, ends nothing. After
        any other the session has ended, and the error carries the farewell to send; PeerLeft when
        the message was accepted and ends the session itself.
        """
        kind = self._check_shape(message)
        if kind in CLEAR_SIZES:
            accepted = Message(kind, self._open_introduction(kind, message), 0)
        else:
            header = Header(*HEADER.unpack_from(message))
            body = self._authenticated(header, message)
            try:
                self._check_gap(header)
                self._check_time(header.timestamp)
                self._check_table(kind)
                self._check_body(kind, body)
                self._check_answer(kind, body)
            except ProtocolError as error:
                self.fail(error)
                raise
            accepted = Message(kind, body, header.sequence)
        self._commit(kind, message, self.peer_role)
        if kind in ANSWERS:
            self._unanswered.pop(NUMBER.unpack(accepted.body)[0], None)
        if kind is Kind.BYE:
            raise PeerLeft(Reason(accepted.body[0]))
        return accepted

    def _check_shape(self, message: bytes) -> Kind:
        try:
            kind = Kind(message[0])
        except (ValueError, IndexError):
            raise MalformedMessage("a kind", message[:1].hex()) from None
        size = CLEAR_SIZES.get(kind)
        if size and len(message) != size:
            raise MalformedMessage(f"{size} bytes", len(message))
        if not size and not MIN_RECORD <= len(message) <= MAX_MESSAGE:
            raise MalformedMessage(f"{MIN_RECORD} to {MAX_MESSAGE} bytes", len(message))
        return kind

    def _open_introduction(self, kind: Kind, message: bytes) -> bytes:
        """Check a HELLO or a REPLY, and agree on keys if it is the second of the two."""
        self._check_table(kind)
        _, version, timestamp = CLEAR.unpack_from(message)
        if version != VERSION:
            raise BadPayload(f"protocol version {VERSION}", version)
        self._check_time(timestamp)
        end = len(message) - SIGNATURE_BYTES
        pem = message[end - KEY_BYTES : end]
        share = message[end - KEY_BYTES - SHARE_BYTES : end - KEY_BYTES]
        if kind is Kind.REPLY:
            self._check_answered(message[CLEAR.size :][:DIGEST_BYTES])
        public_key = self.trust.check(self.identity, pem)  # before what takes longer
        self._check_signature(public_key, kind, message)
        if kind is Kind.HELLO:
            self._share = self._offer()  # now, so that a share of no use is refused here
        self._shared = self._agree(share)
        self.peer_key = pem.decode("ascii")
        return b""

    def _check_signature(self, public_key: PublicKey, kind: Kind, message: bytes) -> None:
        signed = message[:-SIGNATURE_BYTES]
        signature = message[-SIGNATURE_BYTES:]
        if not is_signed(public_key, self._context(kind), signed, signature):
            raise BadSignature(f"a {kind.name} of its owner", "another")

    def _check_answered(self, digest: bytes) -> None:
        if digest != hashlib.sha256(self._hello).digest():
            raise WrongAnswer("an answer to our HELLO", "another")

    def _agree(self, share: bytes) -> bytes:
        """Return what both shares lead to (32 bytes). Raises BadShare."""
        try:
            if self._ephemeral is None:
                raise ValueError
            return agree(self._ephemeral, share)
        except ValueError:
            raise BadShare("a point of X25519 that is of use", "another") from None

    def _authenticated(self, header: Header, message: bytes) -> bytes:
        """Return the body of a record for which the peer vouches."""
        self._check_session(header)
        self._check_sender(header)
        self._check_replay(header)
        return self._decrypt(header, message)

    def _check_session(self, header: Header) -> None:
        if not self._keys or header.session != self.session_id:
            raise WrongSession(self.session_id.hex(), header.session.hex())

    def _check_sender(self, header: Header) -> None:
        if header.sender != self.peer_role:
            raise WrongDirection(int(self.peer_role), header.sender)

    def _check_replay(self, header: Header) -> None:
        expected = self._sequence[self.peer_role]
        if header.sequence < expected:
            raise Replayed(expected, header.sequence)

    def _decrypt(self, header: Header, message: bytes) -> bytes:
        """Check the tag over header and ciphertext, and return the body. Raises BadTag."""
        aead = AESGCM(self._key(self.peer_role, "KEY"))
        nonce = self._nonce(self.peer_role, header.sequence)
        try:
            return aead.decrypt(nonce, message[HEADER.size :], message[: HEADER.size])
        except InvalidTag:
            raise BadTag from None

    def _check_gap(self, header: Header) -> None:
        expected = self._sequence[self.peer_role]
        if header.sequence > expected:
            raise MessageLost(expected, header.sequence)

    def _check_time(self, timestamp: int) -> None:
        late_s = self._clock() - timestamp / 1_000
        if abs(late_s) > self._window_s:
            raise Untimely(f"at most {self._window_s:g} s from our clock", f"{late_s:.1f} s")

    def _check_table(self, kind: Kind) -> None:
        if not self.fsm.allows(kind, self.peer_role):
            raise UnexpectedKind(f"a move from {self.state.name}", kind.name)

    def _check_body(self, kind: Kind, body: bytes) -> None:
        low, high = BODIES.get(kind, (0, 0))
        if not low <= len(body) <= high:
            raise BadPayload(f"a body of {low} to {high} bytes", len(body))
        if kind is Kind.BYE and body[0] not in {*Reason}:
            raise BadPayload("a reason", body[0])
        if kind is Kind.TEXT:
            try:
                body.decode("utf-8")
            except UnicodeDecodeError:
                raise BadPayload("UTF-8", "something else") from None

    def _check_answer(self, kind: Kind, body: bytes) -> None:
        asked = ANSWERS.get(kind)
        if asked and self._unanswered.get(NUMBER.unpack(body)[0]) is not asked:
            raise BadPayload(f"an answer to a {asked.name} of ours", NUMBER.unpack(body)[0])

    # Both

    def _commit(self, kind: Kind, message: bytes, sender: Role) -> None:
        """Move keys, numbers and state together; the only place where they move."""
        if kind is Kind.HELLO:
            self._hello = message
        elif kind is Kind.REPLY:
            bound = hashlib.sha256(self._bound(message)).digest()
            self.session_id, self._keys = bound[:SESSION_BYTES], keys_of(bound, self._shared)
            self._ephemeral = None
            self._shared = b""
        else:
            self._sequence[sender] += 1
        self.fsm.advance(kind, sender)
        if self.state is State.ENDED:
            self._forget_keys()

    def _bound(self, reply: bytes) -> bytes:
        """Return what keys and session id depend on: both messages, whose sizes never change."""
        return self._hello + reply

    def fail(self, error: ProtocolError) -> None:
        """End the session because of `error`, and give `error` the farewell to send."""
        if self.fsm.allows(Kind.BYE, self.role) and self._sequence[self.role] <= MAX_SEQUENCE:
            error.farewell = self.seal(Kind.BYE, bytes([Reason.VIOLATION]))
        self.close()

    def close(self) -> None:
        """End the session without a word, and forget its keys."""
        self.fsm.state = State.ENDED
        self._forget_keys()

    def _forget_keys(self) -> None:
        self._last_fingerprints = self.fingerprints()
        self._keys = {}
        self._shared = b""
        self._ephemeral = None
