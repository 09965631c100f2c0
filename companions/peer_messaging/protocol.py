"""The protocol: kinds of messages, errors, state table, handshake, keys, records.

[N 3] names section 3 of the protocol in README.md. Bytes in, bytes out, or a typed error: there is
no socket, thread or log here, and the clock is handed in. Anybody can drop a message into a node's
inbox, so a message that nobody vouches for is refused and changes nothing. A message that the peer
vouches for, but must not send, ends the session for good [N 6].
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import NamedTuple, NoReturn

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
    StateMachine,
    Watcher,
    Watchers,
    WrongDirection,
)

NAME = "peer_messaging v1"  # part of everything that is signed or derived
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
RENEW_AT = 2**31  # records of a sender in one session; then the next session is due
SPENT_AT = 2**32 - 2**16  # and then this session ends, even without a next one
WINDOW_S = 30.0  # how far a timestamp may be from our clock


class Kind(IntEnum):
    """The first byte of a message [N 1]."""

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
    """One node began the handshake, the other answered; they differ in nothing else."""

    INITIATOR = 0
    RESPONDER = 1


class Reason(IntEnum):
    """Why a BYE ends the session: its body, one byte."""

    GOODBYE = 0  # the sender is done
    VIOLATION = 1  # it refused what came before


CLEAR_SIZES = {Kind.HELLO: HELLO_BYTES, Kind.REPLY: REPLY_BYTES}
BODIES: Mapping[Kind, tuple[int, int]] = {  # smallest and largest body in bytes; of all others 0
    Kind.TEXT: (1, MAX_TEXT),
    Kind.RECEIPT: (NUMBER.size, NUMBER.size),
    Kind.PONG: (NUMBER.size, NUMBER.size),
    Kind.BYE: (1, 1),
}
ASKED_BY = {Kind.RECEIPT: Kind.TEXT, Kind.PONG: Kind.PING}  # what an answer answers, by its number

# Errors: those of the core, and those that only this protocol knows -------------------------------


class UnexpectedKind(ProtocolError):
    """The table has no such move from here."""


class WrongSession(ProtocolError):
    """A record of another session."""


class Replayed(ProtocolError):
    """A record or a HELLO that has been accepted before."""


class MessageLost(ProtocolError):
    """A record whose predecessor never arrived."""


class Untimely(ProtocolError):
    """A timestamp too far from our clock: it was held back, or the clocks differ."""


class BadSignature(ProtocolError):
    """A HELLO or REPLY without a signature by the owner of the key in it."""


class BadShare(ProtocolError):
    """A share that leads to the same secret whatever our own share is."""


class WrongAnswer(ProtocolError):
    """A REPLY to somebody else's HELLO, or to an earlier one of ours."""


class Outlived(ProtocolError):
    """The session is too old or almost out of numbers, and something prevents the next one."""


class PeerAway(ProtocolError):
    """Nothing was heard from the peer for too long, not even a PONG."""


class PeerLeft(ProtocolError):
    """The peer ended the session with an accepted BYE."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(None, reason.name)
        self.reason = reason


# State machine [N 5] ------------------------------------------------------------------------------


class State(str, Enum):
    """Where a conversation stands; a string, so that the table below is looked up quickly."""

    HELLO = "HELLO"
    REPLY = "REPLY"
    CONFIRM = "CONFIRM"
    WELCOME = "WELCOME"
    OPEN = "OPEN"
    ENDED = "ENDED"


PHASE: Mapping[State, ProtocolState] = {
    State.HELLO: ProtocolState.INIT,
    State.REPLY: ProtocolState.INIT,
    State.CONFIRM: ProtocolState.INIT,
    State.WELCOME: ProtocolState.INIT,
    State.OPEN: ProtocolState.ACTIVE,
    State.ENDED: ProtocolState.TERMINATED,
}
SPEAKER: Mapping[State, Role] = {  # of the next message; in OPEN both may speak, in ENDED nobody
    State.HELLO: Role.INITIATOR,
    State.REPLY: Role.RESPONDER,
    State.CONFIRM: Role.INITIATOR,
    State.WELCOME: Role.RESPONDER,
}


class ProtocolFSM(StateMachine[State, Kind, Role]):
    """The machine of this protocol: its table. It holds no keys."""

    # Every legal move. What is not here is a violation.
    VALID_TRANSITIONS: Mapping[tuple[State, Kind, Role], State] = {
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

    FIRST = State.HELLO
    LAST = State.ENDED


# Messages -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Message:
    """What is said: a kind and its body [N 1].

    `sequence` is the number of an accepted record; the session numbers its own records itself.
    """

    kind: Kind
    body: bytes = b""
    sequence: int = 0

    @property
    def text(self) -> str:
        """The body of a TEXT, which is UTF-8."""
        return self.body.decode("utf-8", "replace")

    @property
    def number(self) -> int:
        """The body of a RECEIPT or PONG: the sequence number of the record that it answers."""
        return int(NUMBER.unpack(self.body)[0])

    @property
    def reason(self) -> Reason:
        """The body of a BYE."""
        return Reason(self.body[0])


def answer_to(message: Message) -> Message:
    """Return the RECEIPT of an accepted TEXT, or the PONG of an accepted PING."""
    kind = Kind.RECEIPT if message.kind is Kind.TEXT else Kind.PONG
    return Message(kind, NUMBER.pack(message.sequence))


class Header(NamedTuple):
    """The 30 public bytes of a record; nothing is known about them yet."""

    kind: int
    session: bytes
    sender: int
    sequence: int
    timestamp: int  # milliseconds since 1970, UTC


# Keys [N 3] ---------------------------------------------------------------------------------------

KEY_SIZES = {"I-KEY": 32, "I-IV": GCM_NONCE_BYTES, "R-KEY": 32, "R-IV": GCM_NONCE_BYTES}
LABEL_OF: Mapping[tuple[int, str], str] = {
    (Role.INITIATOR, "KEY"): "I-KEY",
    (Role.INITIATOR, "IV"): "I-IV",
    (Role.RESPONDER, "KEY"): "R-KEY",
    (Role.RESPONDER, "IV"): "R-IV",
}


def keys_of(bound: bytes, shared: bytes) -> dict[str, bytes]:
    """Return keys and IVs of a session by label; `bound` is H (32 bytes)."""
    secret = hkdf(bound, shared, f"{NAME} secret")
    return {
        label: hkdf_expand(secret, f"{NAME} {label}", size) for label, size in KEY_SIZES.items()
    }


# Session ------------------------------------------------------------------------------------------


class Session:
    """One end of one session: seal what we send, open what arrives.

    `trust` judges the key that the peer shows, `clock` gives the seconds since 1970. `watchers` see
    each message after the decision, and can change nothing.
    """

    def __init__(
        self,
        identity: Identity,
        trust: Trust,
        role: Role,
        *,
        clock: Callable[[], float] = time.time,
        window_s: float = WINDOW_S,
        watchers: Sequence[Watcher] = (),
    ) -> None:
        self.identity = identity
        self.trust = trust
        self.role = role
        self.peer_role = Role(1 - role)
        self.fsm = ProtocolFSM()
        self.watchers = Watchers(watchers)
        self.session_id = b""
        self.peer_key = ""
        self._clock = clock
        self._window_s = window_s
        self._hello = b""  # until keys and session id depend on it
        self._ephemeral: X25519PrivateKey | None = None
        self._share = b""  # the public half of it
        self._shared = b""  # the secret that both shares lead to
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
        """Whether we have hardly any numbers left."""
        return self.next_number >= SPENT_AT

    @property
    def is_used_up(self) -> bool:
        """Whether half of the numbers are gone, so that the next session is due."""
        return max(self._sequence.values()) >= RENEW_AT

    @property
    def has_farewell(self) -> bool:
        """Whether we may say BYE now: only in OPEN, and only with a number left for it."""
        return self.fsm.allows(Kind.BYE, self.role) and self.next_number <= MAX_SEQUENCE

    def fingerprints(self) -> dict[str, str]:
        """Name keys and IVs, 8 hex digits each; after the end, the last there were."""
        return self._last_fingerprints or {k: fingerprint(v) for k, v in self._keys.items()}

    def __repr__(self) -> str:
        return f"<Session of the {self.role.name}, {self.state.name}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a session holds keys, which are not pickled")

    # Sending

    def seal(self, message: Message) -> bytes:
        """Return our next message (46 to 4,142 bytes), and move numbers and state.

        A HELLO and a REPLY get their contents here. Raises LocalError, and then nothing has
        changed.
        """
        kind = message.kind
        number = self.next_number
        if not self.fsm.allows(kind, self.role):
            raise LocalError(f"{kind.name} cannot be sent in {self.state.name}")
        if number > MAX_SEQUENCE:
            raise LocalError("this session has no numbers left")
        try:
            self._check_body(kind, message.body)  # a sender obeys the rules too
        except BadPayload as error:
            raise LocalError(f"{kind.name} cannot carry this: {error}") from error
        if kind in CLEAR_SIZES:
            sealed = self._introduction(kind)
        else:
            sealed = self._seal_record(kind, message.body)
        if kind in ASKED_BY.values():
            self._unanswered[number] = kind
        self._commit(kind, sealed, self.role)
        self.watchers.tell("sealed", sealed, message.body, self.fingerprints)
        return sealed

    def _now_ms(self) -> int:
        return int(self._clock() * 1_000)

    def _introduction(self, kind: Kind) -> bytes:
        """Return a HELLO or a REPLY: our public key and our share, signed [N 2]."""
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
        number = self.next_number
        header = HEADER.pack(kind, self.session_id, self.role, number, self._now_ms())
        return header + self._encrypt(body, header, number)

    def _encrypt(self, body: bytes, header: bytes, number: int) -> bytes:
        aead = AESGCM(self._key(self.role, "KEY"))
        return aead.encrypt(self._nonce(self.role, number), body, header)

    def _key(self, sender: int, use: str) -> bytes:
        return self._keys[LABEL_OF[sender, use]]

    def _nonce(self, sender: int, number: int) -> bytes:
        """Return the nonce (12 bytes) of a record: the sender's IV, XORed with its number."""
        iv = int.from_bytes(self._key(sender, "IV"), "big")
        return (iv ^ number).to_bytes(GCM_NONCE_BYTES, "big")

    # Receiving

    def open(self, message: bytes) -> Message:
        """Check, decrypt and accept a message from the inbox, in the order of [N 6].

        Raises a ProtocolError. A HELLO or a REPLY that is refused ends nothing, and neither does a
        record that nobody vouches for. After any other refusal the session has ended, and the error
        carries the farewell to send. PeerLeft: the message was accepted, and ends the session.
        """
        is_vouched = False  # by the peer, whose keys made the tag
        try:
            kind = self._check_shape(message)
            if kind in CLEAR_SIZES:
                self._open_introduction(kind, message)
                accepted = Message(kind)
            else:
                header = Header(*HEADER.unpack_from(message))
                body = self._authenticated(header, message)
                is_vouched = True
                self._check_vouched(kind, header, body)
                accepted = Message(kind, body, header.sequence)
        except ProtocolError as error:
            self.watchers.tell(type(error).__name__, message, b"", self.fingerprints)
            if is_vouched:
                self.fail(error)
            raise
        self._commit(kind, message, self.peer_role)
        if kind in ASKED_BY:
            self._unanswered.pop(accepted.number, None)
        self.watchers.tell("accepted", message, accepted.body, self.fingerprints)
        if kind is Kind.BYE:
            raise PeerLeft(accepted.reason)
        return accepted

    def _check_shape(self, message: bytes) -> Kind:
        try:
            kind = Kind(message[0])
        except (ValueError, IndexError):
            raise MalformedMessage("a kind", message[:1].hex() or "nothing") from None
        size = CLEAR_SIZES.get(kind)
        if size and len(message) != size:
            raise MalformedMessage(f"{size} bytes", len(message))
        if not size and not MIN_RECORD <= len(message) <= MAX_MESSAGE:
            raise MalformedMessage(f"{MIN_RECORD} to {MAX_MESSAGE} bytes", len(message))
        return kind

    # A HELLO or a REPLY

    def _open_introduction(self, kind: Kind, message: bytes) -> None:
        """Check it, and agree on a secret. Its steps are 2 to 8 of [N 6]."""
        _, version, timestamp = CLEAR.unpack_from(message)
        end = len(message) - SIGNATURE_BYTES
        pem = message[end - KEY_BYTES : end]
        share = message[end - KEY_BYTES - SHARE_BYTES : end - KEY_BYTES]
        self._check_table(kind)  # step 2
        self._check_version(version)  # step 3
        self._check_time(timestamp)  # step 4
        if kind is Kind.REPLY:
            self._check_answered(message[CLEAR.size :][:DIGEST_BYTES])  # step 5
        public_key = self.trust.check(self.identity, pem)  # step 6, before what takes longer
        self._check_signature(public_key, kind, message)  # step 7
        if kind is Kind.HELLO:
            self._share = self._offer()  # now, so that a useless share is refused here
        self._shared = self._agree(share)  # step 8
        self.peer_key = pem.decode("ascii")

    def _check_version(self, version: int) -> None:
        if version != VERSION:
            raise BadPayload(f"protocol version {VERSION}", version)

    def _check_answered(self, digest: bytes) -> None:
        if digest != hashlib.sha256(self._hello).digest():
            raise WrongAnswer("an answer to our HELLO", "another")

    def _check_signature(self, public_key: PublicKey, kind: Kind, message: bytes) -> None:
        signed = message[:-SIGNATURE_BYTES]
        signature = message[-SIGNATURE_BYTES:]
        if not is_signed(public_key, self._context(kind), signed, signature):
            raise BadSignature(f"a {kind.name} of its owner", "another")

    def _agree(self, share: bytes) -> bytes:
        """Return the secret (32 bytes) that both shares lead to. Raises BadShare."""
        try:
            if self._ephemeral is None:
                raise ValueError
            return agree(self._ephemeral, share)
        except ValueError:
            raise BadShare("a point of X25519 that is of use", "another") from None

    # A record

    def _authenticated(self, header: Header, message: bytes) -> bytes:
        """Return the body of a record, if the peer vouches for it."""
        self._check_session(header)  # step 2
        self._check_sender(header)  # step 3
        self._check_replay(header)  # step 4
        return self._decrypt(header, message)  # step 5

    def _check_vouched(self, kind: Kind, header: Header, body: bytes) -> None:
        """Check what a good tag leaves open. A failure here ends the session."""
        self._check_gap(header)  # step 6
        self._check_time(header.timestamp)  # step 7
        self._check_table(kind)  # step 8
        self._check_body(kind, body)  # step 9
        self._check_answer(kind, body)  # step 9

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
        asked = ASKED_BY.get(kind)
        if asked:
            number = NUMBER.unpack(body)[0]
            if self._unanswered.get(number) is not asked:
                raise BadPayload(f"an answer to a {asked.name} of ours", number)

    # Both

    def _commit(self, kind: Kind, message: bytes, sender: Role) -> None:
        """Move keys, numbers and state together; the only place where they move."""
        if kind is Kind.HELLO:
            self._hello = message
        elif kind is Kind.REPLY:
            self._bind(hashlib.sha256(self._bound(message)).digest())
        else:
            self._sequence[sender] += 1
        self.fsm.advance(kind, sender)
        if self.state is State.ENDED:
            self._forget_keys()

    def _bound(self, reply: bytes) -> bytes:
        """Return what keys and session id depend on: both messages, whose sizes never change."""
        return self._hello + reply

    def _bind(self, bound: bytes) -> None:
        """Derive session id and keys from H (32 bytes), and forget what led to them [N 3]."""
        self.session_id = bound[:SESSION_BYTES]
        self._keys = keys_of(bound, self._shared)
        self._hello = b""
        self._shared = b""
        self._ephemeral = None

    def goodbye(self, reason: Reason) -> bytes:
        """Return a BYE, which ends the session; nothing where none may be said."""
        return self.seal(Message(Kind.BYE, bytes([reason]))) if self.has_farewell else b""

    def fail(self, error: ProtocolError) -> None:
        """End the session because of `error`, and give `error` the farewell to send."""
        error.farewell = self.goodbye(Reason.VIOLATION)
        self.close()

    def close(self) -> None:
        """End the session without a word, and forget its keys."""
        self.fsm.end()
        self._forget_keys()

    def _forget_keys(self) -> None:
        self._last_fingerprints = self.fingerprints()
        self._keys = {}
        self._shared = b""
        self._ephemeral = None
