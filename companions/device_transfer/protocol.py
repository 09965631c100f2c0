"""The protocol: messages, errors, framing, state table, key schedule, Session.

[D 3] names section 3 of the protocol in README.md. Bytes in, bytes out, or a typed error: there
is no socket, thread or log here, and no clock but the one that certificates are compared with. Both
ends run the same table over the same conversation. What arrives is checked in the order of [D 6];
a failure ends the session for good.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import NamedTuple, NoReturn

from Crypto.Random import get_random_bytes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from companions.asymmetric import (
    SHARE_BYTES,
    SIGNATURE_BYTES,
    agree,
    hkdf,
    hkdf_expand,
    is_signed,
    new_share,
    sign,
)
from companions.device_transfer.certificates import Certificate, Identity, Role, Trust
from crypto_utils import (
    AES_KEY_BYTES,
    BLOCK_BYTES,
    NONCE_BYTES,
    TAG_BYTES,
    fingerprint,
    hmac_sha256,
    hmac_verify,
    pkcs7_pad,
    pkcs7_unpad,
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
    RandomSource,
    StateMachine,
    Status,
    Watcher,
    Watchers,
    WrongDirection,
    WrongPeer,
    read_exactly,
)

NAME = "device_transfer v1"  # stands in everything that is signed or derived
VERSION = b"\x01"
HEADER = struct.Struct(">6s16sBQ")  # kind, session id, direction, sequence: 31 bytes [D 4]
KIND_BYTES = 6
SESSION_BYTES = 16
CERTIFICATE_AT = KIND_BYTES + len(VERSION) + NONCE_BYTES  # in a HELLO
CIPHERTEXT_AT = HEADER.size + BLOCK_BYTES  # the IV stands before it
CHUNK_BYTES = 65_536
MAX_MESSAGE = CIPHERTEXT_AT + CHUNK_BYTES + BLOCK_BYTES + TAG_BYTES  # 65,631
SIGNED_SHARE = SHARE_BYTES + SIGNATURE_BYTES  # bytes of a body
MAX_HANDSHAKE = 8_192  # bytes of a message from a peer that has proved nothing yet
REKEY_CHUNKS = 1_024  # 64 MiB under one key, at most


# Messages [D 1] -----------------------------------------------------------------------------------


class Kind(bytes, Enum):
    """What a message is, in the six letters that it begins with."""

    HELLO = b"<HELO>"
    SHARE = b"<PREM>"
    CONFIRM = b"<CONF>"
    TEXT = b"<SECX>"
    FILE = b"<IMGX>"
    CHUNK = b"<CHNK>"
    REKEY = b"<REKY>"
    MANIFEST = b"<SIGN>"
    ACK = b"<ACKN>"
    END = b"<ENDD>"
    FAIL = b"<FAIL>"


class Direction(IntEnum):
    D2S = 0  # device to server
    S2D = 1  # server to device


PLAIN = frozenset({Kind.HELLO, Kind.SHARE})  # not sealed: there are no keys yet
SHARES = frozenset({Kind.SHARE, Kind.REKEY})
SIZES: Mapping[Kind, tuple[int, int]] = {  # of a body, in bytes; of all others 0
    Kind.HELLO: (len(VERSION) + NONCE_BYTES, MAX_HANDSHAKE),
    Kind.SHARE: (SIGNED_SHARE, SIGNED_SHARE),
    Kind.REKEY: (SIGNED_SHARE, SIGNED_SHARE),
    Kind.TEXT: (2, 4_096),
    Kind.FILE: (2, 4_096),
    Kind.CHUNK: (1, CHUNK_BYTES),
    Kind.MANIFEST: (SIGNATURE_BYTES, 8_192),
    Kind.ACK: (32, 32),
}


@dataclass(frozen=True)
class Message:
    """What an end says. A session builds the bodies of HELLO, SHARE and REKEY itself."""

    kind: Kind
    body: bytes = b""


# Errors: those of the core, and what only this protocol knows -------------------------------------


class UnexpectedKind(ProtocolError):
    """The table has no such move from here."""


class WrongSession(ProtocolError):
    """A record of another session."""


class WrongSequence(ProtocolError):
    """A record that is not the next one: it was repeated, or others before it are missing."""


class BadSignature(ProtocolError):
    """A share that the owner of the certificate has not signed, or not in this conversation."""


class BadShare(ProtocolError):
    """A share that leads to the same secret whatever our own is."""


class RekeyOverdue(ProtocolError):
    """The device has used one generation of keys for longer than it may."""


class PeerFailed(ProtocolError):
    """The peer ended the session with an accepted FAIL; only its log says why."""


# Framing [D 1] ------------------------------------------------------------------------------------


def read_frame(recv: Callable[[int], bytes], max_message: int = MAX_MESSAGE) -> bytes:
    """Return the next message, however TCP cut or joined it.

    `recv(n)` gives 1 to n bytes, or none at the end of the stream. Raises MalformedMessage (after
    4 bytes) and ConnectionCut.
    """
    length_bytes = int.from_bytes(read_exactly(recv, 4, mid_frame=False), "big")
    if not KIND_BYTES <= length_bytes <= max_message:
        raise MalformedMessage(f"{KIND_BYTES} to {max_message} bytes", length_bytes)
    return read_exactly(recv, length_bytes, mid_frame=True)


def write_frame(sendall: Callable[[bytes], object], message: bytes) -> None:
    """Send `message` after its length, in one piece."""
    sendall(len(message).to_bytes(4, "big") + message)


# State machine [D 5] ------------------------------------------------------------------------------


class State(Enum):
    """Where a conversation stands."""

    HELLO = "HELLO"
    HELLO_BACK = "HELLO_BACK"
    SHARE = "SHARE"
    SHARE_BACK = "SHARE_BACK"
    CONFIRM = "CONFIRM"
    CONFIRM_BACK = "CONFIRM_BACK"
    READY = "READY"
    SENDING = "SENDING"
    REKEYING = "REKEYING"
    CHECKING = "CHECKING"
    LEAVING = "LEAVING"
    ENDED = "ENDED"


PHASE: Mapping[State, ProtocolState] = {
    State.HELLO: ProtocolState.INIT,
    State.HELLO_BACK: ProtocolState.INIT,
    State.SHARE: ProtocolState.INIT,
    State.SHARE_BACK: ProtocolState.INIT,
    State.CONFIRM: ProtocolState.INIT,
    State.CONFIRM_BACK: ProtocolState.INIT,
    State.READY: ProtocolState.ACTIVE,
    State.SENDING: ProtocolState.ACTIVE,
    State.REKEYING: ProtocolState.ACTIVE,
    State.CHECKING: ProtocolState.ACTIVE,
    State.LEAVING: ProtocolState.ACTIVE,
    State.ENDED: ProtocolState.TERMINATED,
}
SPEAKER: Mapping[State, Direction] = {  # of the next message of the conversation; ENDED has none
    State.HELLO: Direction.D2S,
    State.HELLO_BACK: Direction.S2D,
    State.SHARE: Direction.D2S,
    State.SHARE_BACK: Direction.S2D,
    State.CONFIRM: Direction.D2S,
    State.CONFIRM_BACK: Direction.S2D,
    State.READY: Direction.D2S,
    State.SENDING: Direction.D2S,
    State.REKEYING: Direction.S2D,
    State.CHECKING: Direction.S2D,
    State.LEAVING: Direction.S2D,
}


class ProtocolFSM(StateMachine[State, Kind, Direction]):
    """The machine of this protocol: its table."""

    VALID_TRANSITIONS: Mapping[tuple[State, Kind, Direction], State] = {
        (State.HELLO, Kind.HELLO, Direction.D2S): State.HELLO_BACK,
        (State.HELLO_BACK, Kind.HELLO, Direction.S2D): State.SHARE,
        (State.SHARE, Kind.SHARE, Direction.D2S): State.SHARE_BACK,
        (State.SHARE_BACK, Kind.SHARE, Direction.S2D): State.CONFIRM,
        (State.CONFIRM, Kind.CONFIRM, Direction.D2S): State.CONFIRM_BACK,
        (State.CONFIRM_BACK, Kind.CONFIRM, Direction.S2D): State.READY,
        (State.READY, Kind.TEXT, Direction.D2S): State.SENDING,
        (State.READY, Kind.FILE, Direction.D2S): State.SENDING,
        (State.SENDING, Kind.CHUNK, Direction.D2S): State.SENDING,
        (State.SENDING, Kind.REKEY, Direction.D2S): State.REKEYING,
        (State.REKEYING, Kind.REKEY, Direction.S2D): State.SENDING,
        (State.SENDING, Kind.MANIFEST, Direction.D2S): State.CHECKING,
        (State.CHECKING, Kind.ACK, Direction.S2D): State.READY,
        (State.READY, Kind.END, Direction.D2S): State.LEAVING,
        (State.LEAVING, Kind.ACK, Direction.S2D): State.ENDED,
        # an end that fails after the handshake says so out of turn; but a device that waits for
        # REKEY cannot know under which keys the server would read it
        (State.READY, Kind.FAIL, Direction.D2S): State.ENDED,
        (State.READY, Kind.FAIL, Direction.S2D): State.ENDED,
        (State.SENDING, Kind.FAIL, Direction.D2S): State.ENDED,
        (State.SENDING, Kind.FAIL, Direction.S2D): State.ENDED,
        (State.REKEYING, Kind.FAIL, Direction.S2D): State.ENDED,
        (State.CHECKING, Kind.FAIL, Direction.D2S): State.ENDED,
        (State.CHECKING, Kind.FAIL, Direction.S2D): State.ENDED,
        (State.LEAVING, Kind.FAIL, Direction.D2S): State.ENDED,
        (State.LEAVING, Kind.FAIL, Direction.S2D): State.ENDED,
    }
    FIRST = State.HELLO
    LAST = State.ENDED


# Key schedule [D 3] -------------------------------------------------------------------------------

KEY_BYTES = {"D2S-ENC": AES_KEY_BYTES, "D2S-MAC": 32, "S2D-ENC": AES_KEY_BYTES, "S2D-MAC": 32}
LABEL_OF: Mapping[tuple[int, str], str] = {
    (Direction.D2S, "ENC"): "D2S-ENC",
    (Direction.D2S, "MAC"): "D2S-MAC",
    (Direction.S2D, "ENC"): "S2D-ENC",
    (Direction.S2D, "MAC"): "S2D-MAC",
}


def digest_of(parts: Sequence[bytes]) -> bytes:
    """Return SHA-256 (32 bytes) over parts, each after its length: no other parts give it."""
    return hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()


def next_secret(salt: bytes, shared: bytes) -> bytes:
    """Return the secret (32 bytes) of a new generation of keys.

    The salt is H_0 for the first generation, and the secret before for any later one.
    """
    return hkdf(salt, shared, f"{NAME} secret")


def keys_of(secret: bytes) -> dict[str, bytes]:
    """Return the four keys of a generation, by label."""
    return {label: hkdf_expand(secret, f"{NAME} {label}", n) for label, n in KEY_BYTES.items()}


# Session ------------------------------------------------------------------------------------------


class Header(NamedTuple):
    """The 31 public bytes of a record; nothing is known about them yet."""

    kind: bytes
    session: bytes
    direction: int
    sequence: int


class Session:
    """One end of one session: seal what we send, open what arrives.

    Our certificate says which end it is. `peer_name` is the only common name that we will talk to;
    None: any in the right role. `watchers` see each message after the decision, and can change
    nothing. `rekey_chunks` is how many chunks one generation of keys may serve, `random_bytes`
    draws nonces and IVs; both are for tests.
    """

    write_frame = staticmethod(write_frame)

    def __init__(
        self,
        identity: Identity,
        trust: Trust,
        peer_name: str | None = None,
        *,
        watchers: Sequence[Watcher] = (),
        rekey_chunks: int = REKEY_CHUNKS,
        random_bytes: RandomSource = get_random_bytes,
    ) -> None:
        self.identity = identity
        self.trust = trust
        self.rekey_chunks = rekey_chunks
        is_device = identity.certificate.role is Role.DEVICE
        self.sends = Direction.D2S if is_device else Direction.S2D
        self.receives = Direction(1 - self.sends)
        self.fsm = ProtocolFSM()
        self.watchers = Watchers(watchers)
        self.session_id = b""
        self.chunks = 0
        self._random_bytes = random_bytes
        self._peer_name = peer_name
        self._peer: Certificate | None = None
        self._transcript: list[bytes] = []  # of the handshake, or of the rekeying in progress
        self._ephemeral: X25519PrivateKey | None = None
        self._share = b""  # our own
        self._shared = b""  # the secret that both shares lead to
        self._secret = b""
        self._keys: dict[str, bytes] = {}
        self._sequence = {Direction.D2S: 0, Direction.S2D: 0}  # of the next record
        self._last_fingerprints: dict[str, str] = {}

    @property
    def state(self) -> State:
        return self.fsm.state

    @property
    def peer(self) -> Certificate:
        """The certificate of the other end. Raises LocalError before it has shown one."""
        if self._peer is None:
            raise LocalError("the peer has not shown its certificate yet")
        return self._peer

    @property
    def max_message(self) -> int:
        """How many bytes the next message may have."""
        return MAX_HANDSHAKE if PHASE[self.state] is ProtocolState.INIT else MAX_MESSAGE

    @property
    def has_farewell(self) -> bool:
        """Whether we may say FAIL now: not in the handshake, and not after the end [D 5]."""
        return self.fsm.allows(Kind.FAIL, self.sends)

    def read_frame(self, recv: Callable[[int], bytes]) -> bytes:
        """Return the next message from a stream. Raises MalformedMessage and ConnectionCut."""
        return read_frame(recv, self.max_message)

    def fingerprints(self) -> dict[str, str]:
        """Name the four keys, 8 hex digits each; after the end, the last four there were."""
        return self._last_fingerprints or {k: fingerprint(v) for k, v in self._keys.items()}

    def __repr__(self) -> str:
        return f"<Session of {self.identity.certificate.common_name}, {self.state.name}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a session holds keys, which are not pickled")

    def seal(self, message: Message) -> bytes:
        """Return our next message (6 to 65,631 bytes), and move keys, sequence and state.

        Raises LocalError, and then nothing has changed.
        """
        kind = message.kind
        if not self.fsm.allows(kind, self.sends):
            raise LocalError(f"{kind.name} cannot be sent in {self.state.name}")
        body = self._compose(message)
        try:
            self._check_body(kind, body)  # a sender obeys the rules too
        except ProtocolError as error:
            raise LocalError(f"{kind.name} cannot carry this: {error}") from error
        sealed = kind.value + body if kind in PLAIN else self._seal_record(kind, body)
        self._commit(kind, body, sealed, self.sends)
        self.watchers.tell("sealed", sealed, body, self.fingerprints)
        return sealed

    def _compose(self, message: Message) -> bytes:
        """Return the body: our own of a HELLO, SHARE or REKEY [D 2], else that of the message."""
        if message.kind is Kind.HELLO:
            return VERSION + self._random_bytes(NONCE_BYTES) + self.identity.certificate.encoded
        if message.kind in SHARES:
            self._share = self._share or self._offer()
            signed = digest_of(self._signed_parts(self._share))
            context = self._context(message.kind, self.sends)
            return self._share + sign(self.identity.private_key, context, signed)
        return message.body

    def _offer(self) -> bytes:
        """Return our ephemeral share (32 bytes)."""
        self._ephemeral, share = new_share()
        return share

    def _context(self, kind: Kind, sender: Direction) -> str:
        """Name what is signed, and the role of the signer [D 2]."""
        role = Role.DEVICE if sender is Direction.D2S else Role.SERVER
        return f"{NAME} {role.value} {'share' if kind is Kind.SHARE else 'rekey'}"

    def _signed_parts(self, share: bytes) -> Sequence[bytes]:
        """Return what is signed with a share: all that both ends have said before."""
        return [*self._transcript, share]

    def _seal_record(self, kind: Kind, body: bytes) -> bytes:
        header = HEADER.pack(kind, self.session_id, self.sends, self._sequence[self.sends])
        iv = self._fresh_iv()
        untagged = header + iv + self._encrypt(pkcs7_pad(body), iv)
        return untagged + hmac_sha256(self._key(self.sends, "MAC"), untagged)

    def _fresh_iv(self) -> bytes:
        return self._random_bytes(BLOCK_BYTES)

    def _key(self, sender: int, use: str) -> bytes:
        return self._keys[LABEL_OF[sender, use]]

    def _encrypt(self, padded: bytes, iv: bytes) -> bytes:
        aes = Cipher(algorithms.AES(self._key(self.sends, "ENC")), modes.CBC(iv)).encryptor()
        return aes.update(padded) + aes.finalize()

    def open(self, message: bytes) -> Message:
        """Check, decrypt and accept the peer's next message (without its length).

        Raises a ProtocolError, which ended the session and carries the farewell to send; and
        PeerFailed when the message was accepted and ends the session itself.
        """
        try:
            kind = self._check_shape(message)
            self._check_kind(kind)
            body = message[KIND_BYTES:] if kind in PLAIN else self._open_record(message)
            self._check_body(kind, body)
            if kind is Kind.HELLO:
                self._check_peer(message[CERTIFICATE_AT:])
            elif kind in SHARES:
                self._check_share(kind, body)
        except ProtocolError as error:
            self.watchers.tell(type(error).__name__, message, b"", self.fingerprints)
            self.fail(error)
            raise
        self._commit(kind, body, message, self.receives)
        self.watchers.tell("accepted", message, body, self.fingerprints)
        if kind is Kind.FAIL:
            raise PeerFailed(None, "FAIL")
        return Message(kind, body)

    def _check_shape(self, message: bytes) -> Kind:
        if len(message) > self.max_message:
            raise MalformedMessage(f"at most {self.max_message} bytes", len(message))
        try:
            kind = Kind(message[:KIND_BYTES])
        except ValueError:
            raise MalformedMessage("a kind", message[:KIND_BYTES].hex()) from None
        length = len(message) - CIPHERTEXT_AT - TAG_BYTES
        if kind not in PLAIN and (length < BLOCK_BYTES or length % BLOCK_BYTES):
            raise MalformedMessage("79 + 16n bytes", len(message))
        return kind

    def _check_kind(self, kind: Kind) -> None:
        if not self.fsm.allows(kind, self.receives):
            raise UnexpectedKind(f"a move from {self.state.name}", kind.name)

    def _open_record(self, message: bytes) -> bytes:
        header = Header(*HEADER.unpack_from(message))
        self._check_session(header)
        self._check_direction(header)
        self._check_sequence(header)
        self._check_tag(header, message)
        return self._unpad(self._decrypt(header, message))

    def _check_session(self, header: Header) -> None:
        if header.session != self.session_id:
            raise WrongSession(self.session_id.hex(), header.session.hex())

    def _check_direction(self, header: Header) -> None:
        if header.direction != self.receives:
            raise WrongDirection(int(self.receives), header.direction)

    def _check_sequence(self, header: Header) -> None:
        if header.sequence != self._sequence[self.receives]:
            raise WrongSequence(self._sequence[self.receives], header.sequence)

    def _check_tag(self, header: Header, message: bytes) -> None:
        key = self._key(self.receives, "MAC")
        if not hmac_verify(key, message[:-TAG_BYTES], message[-TAG_BYTES:]):
            raise BadTag

    def _decrypt(self, header: Header, message: bytes) -> bytes:
        iv = message[HEADER.size : CIPHERTEXT_AT]
        ciphertext = message[CIPHERTEXT_AT:-TAG_BYTES]
        aes = Cipher(algorithms.AES(self._key(self.receives, "ENC")), modes.CBC(iv)).decryptor()
        return aes.update(ciphertext) + aes.finalize()

    def _unpad(self, padded: bytes) -> bytes:
        try:
            return pkcs7_unpad(padded)
        except ValueError:
            raise BadPadding from None

    def _check_body(self, kind: Kind, body: bytes) -> None:
        low, high = SIZES.get(kind, (0, 0))
        if not low <= len(body) <= high:
            raise BadPayload(f"a body of {low} to {high} bytes", len(body))
        if kind is Kind.HELLO and not body.startswith(VERSION):
            raise BadPayload(f"protocol version {VERSION.hex()}", body[:1].hex())
        if kind is Kind.CHUNK:
            self._check_rekeyed()

    def _check_rekeyed(self) -> None:
        if self.chunks >= self.rekey_chunks:
            raise RekeyOverdue(f"at most {self.rekey_chunks} chunks", "one more")

    def _check_peer(self, certificate: bytes) -> None:
        wanted = Role.SERVER if self.sends is Direction.D2S else Role.DEVICE
        self._peer = self.trust.check(certificate, wanted)
        self._check_peer_name(self._peer.common_name)

    def _check_peer_name(self, common_name: str) -> None:
        if self._peer_name not in (None, common_name):
            raise WrongPeer(self._peer_name, common_name)

    def _check_share(self, kind: Kind, body: bytes) -> None:
        share = body[:-SIGNATURE_BYTES]
        signature = body[-SIGNATURE_BYTES:]
        self._check_signature(self._context(kind, self.receives), share, signature)
        self._share = self._share or self._offer()
        self._shared = self._agree(share)

    def _check_signature(self, context: str, share: bytes, signature: bytes) -> None:
        signed = digest_of(self._signed_parts(share))
        if not is_signed(self.peer.public_key, context, signed, signature):
            raise BadSignature(f"{self.peer.common_name}, as {context}", "another")

    def _agree(self, share: bytes) -> bytes:
        """Return the secret that both shares lead to (32 bytes). Raises BadShare."""
        try:
            if self._ephemeral is None:
                raise ValueError
            return agree(self._ephemeral, share)
        except ValueError:
            raise BadShare("a point of X25519 that is of use", "another") from None

    def _commit(self, kind: Kind, body: bytes, message: bytes, sender: Direction) -> None:
        """Move keys, sequence and state together; the only place where they move."""
        if kind in PLAIN:
            self._transcript.append(message)
        else:
            self._sequence[sender] += 1
        if kind is Kind.CHUNK:
            self.chunks += 1
        if kind is Kind.REKEY:
            self._transcript.append(body[:-SIGNATURE_BYTES])
        if kind in SHARES and sender is Direction.S2D:  # by now both ends have offered one
            self._next_generation(kind)
        self.fsm.advance(kind, sender)
        if self.state is State.ENDED:
            self._forget_keys()

    def _next_generation(self, kind: Kind) -> None:
        """Derive the four keys anew, and forget what led to them."""
        bound = digest_of(self._bound_parts())
        if kind is Kind.SHARE:
            self.session_id = bound[:SESSION_BYTES]
        self._secret = next_secret(self._secret or bound, self._shared)
        self._keys = keys_of(self._secret)
        self._transcript = [bound]
        self._ephemeral = None
        self._share = b""
        self._shared = b""
        self.chunks = 0

    def _bound_parts(self) -> Sequence[bytes]:
        """Return what H_n is over: the first four messages, or H_n-1 and both new shares [D 3]."""
        return self._transcript

    def goodbye(self, status: Status) -> bytes:
        """End the session, and return a FAIL, whatever the status; nothing where none is legal."""
        error = ProtocolError(None, status.name)
        self.fail(error)
        return error.farewell

    def fail(self, error: ProtocolError) -> None:
        """End the session because of `error`, and give `error` the farewell to send."""
        if self.has_farewell and not isinstance(error, ConnectionCut):
            error.farewell = self.seal(Message(Kind.FAIL))
        self.fsm.end()
        self._forget_keys()

    def _forget_keys(self) -> None:
        self._last_fingerprints = self.fingerprints()
        self._keys = {}
        self._secret = b""
        self._shared = b""
        self._ephemeral = None
