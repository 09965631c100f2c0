"""The protocol: messages, errors, framing, state table, key schedule, Session.

[C 3] names section 3 of the protocol in README.md. Bytes in, bytes out, or a typed error: there
is no socket, thread, database or log here, and no clock but the one that certificates are compared
with. Both ends run the same table over the same conversation. What arrives is checked in the order
of [C 6]; a failure ends the session for good. What is said in a room is judged in rooms.py.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, IntEnum
from typing import Any, NoReturn

from Crypto.Random import get_random_bytes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from companions.asymmetric import PrivateKey, hkdf, hkdf_expand
from companions.canonical import canonical, has_members, parse_object
from companions.secure_chat import dh
from companions.secure_chat.pae import is_signed, pae, sign
from companions.secure_chat.pki import BadCertificate, Identity, Role, Trust, utc_now
from crypto_utils import (
    AES_KEY_BYTES,
    BLOCK_BYTES,
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
    read_exactly,
)

NAME = "secure_chat v1"  # stands in everything that is derived
NONCE_BYTES = 32
HASH_BYTES = 32
LENGTH_BYTES = 4  # in front of a frame
MAX_HANDSHAKE = 20_480  # bytes of a frame from a peer that has proved nothing yet
MAX_FROM_CLIENT = 65_536
MAX_FROM_SERVER = 4_194_304  # a full room's members, with certificates of any size
MAX_TEXT_BYTES = 4_096
UPDATE_EVERY = 1_000  # records, of both directions together, after which keys are due [C 3]
RECORD = struct.Struct(">BQ")  # direction and number of a record, under its tag [C 4]


# Messages [C 1] -----------------------------------------------------------------------------------


class Kind(str, Enum):
    """What a message is: its member `type`."""

    HELLO = "hello"
    SERVER_HELLO = "server_hello"
    DH_CLIENT = "dh_client"
    DH_SERVER = "dh_server"
    REGISTER = "register"
    LOGIN = "login"
    RESUME = "resume"
    WELCOME = "welcome"
    REFUSED = "refused"
    JOIN = "join"
    ROOM = "room"
    JOINED = "joined"
    LEFT = "left"
    MSG = "msg"
    RELAY = "relay"
    UPDATE = "update"
    LEAVE = "leave"
    RECEIPT = "receipt"
    COUNTERSIGN = "countersign"
    BYE = "bye"
    ERROR = "error"


class Direction(IntEnum):
    C2S = 0  # client to server
    S2C = 1  # server to client


MEMBERS: Mapping[Kind, Mapping[str, type]] = {  # of each message, besides its type
    Kind.HELLO: {"client_cert": str, "nonce": str},
    Kind.SERVER_HELLO: {"server_cert": str, "nonce": str},
    Kind.DH_CLIENT: {"g": int, "p": int, "A": int, "sig": str},
    Kind.DH_SERVER: {"B": int, "sig": str},
    Kind.REGISTER: {"email": str, "username": str, "pwd": str},
    Kind.LOGIN: {"email": str, "pwd": str},
    Kind.RESUME: {"session_token": str},
    Kind.WELCOME: {"username": str, "session_token": str},
    Kind.REFUSED: {},
    Kind.JOIN: {"room": str},
    Kind.ROOM: {"room": str, "start": str, "index": int, "head": str, "members": list},
    Kind.JOINED: {"room": str, "member": dict},
    Kind.LEFT: {"room": str, "session": str},
    Kind.MSG: {
        "session": str,
        "room": str,
        "recipients": list,
        "seqno": int,
        "ts": int,
        "previous": str,
        "seen": str,
        "commitment": str,
        "ct": str,
        "sig": str,
    },
    Kind.RELAY: {"msg": str, "sig": str, "head": str, "head_sig": str, "opening": str},
    Kind.UPDATE: {},
    Kind.LEAVE: {"room": str},
    Kind.RECEIPT: {"receipt": dict, "countersignature": str},
    Kind.COUNTERSIGN: {"countersignature": str},
    Kind.BYE: {},
    Kind.ERROR: {"error_type": str},
}
HELLOS = frozenset({Kind.HELLO, Kind.SERVER_HELLO})
SHARES = frozenset({Kind.DH_CLIENT, Kind.DH_SERVER})
OPEN_MEMBERS = frozenset({Kind.MSG})  # sealed, but only what `ct` holds is encrypted [C 4]
BAD_CERT = "bad-cert"
ERROR_TYPES = frozenset({BAD_CERT, *(status.name.lower() for status in Status)})


@dataclass(frozen=True)
class Message:
    """What an end says: its type, and the members beside it.

    A session fills in nonces, certificates, shares and signatures of the handshake itself.
    """

    kind: Kind
    members: Mapping[str, Any] = field(default_factory=dict, repr=False)  # passwords, texts

    def __getitem__(self, name: str) -> Any:
        return self.members[name]


# Errors: those of the core and of certificates, and what only this protocol knows -----------------


class UnexpectedKind(ProtocolError):
    """The table has no such move from here."""


class BadSignature(ProtocolError):
    """A share that the owner of the certificate has not signed, or not in this conversation."""


class BadGroup(ProtocolError):
    """A Diffie-Hellman group other than RFC 3526's number 14."""


class BadShare(ProtocolError):
    """A public value outside 2..p-2: anyone can compute the secret that it leads to."""


class OutsideSubgroup(ProtocolError):
    """A public value that is no power of 2: the answer to it leaks a bit of our exponent."""


class PeerEnded(ProtocolError):
    """The peer ended the session with an accepted error; `got` is the type that it gave."""


# Encodings ----------------------------------------------------------------------------------------


def to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def from_base64(text: str, low: int = 0, high: int = MAX_FROM_SERVER) -> bytes:
    """Return the `low` to `high` bytes of their only valid base64. Raises BadPayload."""
    try:
        data = base64.b64decode(text)
    except ValueError:
        raise BadPayload("base64", "something else") from None
    if to_base64(data) != text or not low <= len(data) <= high:
        raise BadPayload(f"base64 of {low} to {high} bytes", len(data))
    return data


def from_hex(text: str) -> bytes:
    """Return the 32 bytes that 64 lower-case digits stand for. Raises BadPayload."""
    try:
        data = bytes.fromhex(text)
    except ValueError:
        data = b""
    if len(data) != HASH_BYTES or data.hex() != text:
        raise BadPayload("64 hexadecimal digits", "something else")
    return data


def parse(data: bytes) -> dict[str, Any]:
    """Return the object in canonical JSON. Raises BadPayload for any other bytes."""
    try:
        return parse_object(data)
    except ValueError as error:
        raise BadPayload("canonical JSON", str(error)[:80]) from None


def check_members(kind: Kind, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the members of a message, without its type. Raises BadPayload."""
    members = dict(values)
    if members.pop("type", None) != kind.value or not has_members(members, MEMBERS[kind]):
        raise BadPayload(f"the members of {kind.value}", ", ".join(sorted(values))[:80])
    if kind is Kind.ERROR and members["error_type"] not in ERROR_TYPES:
        raise BadPayload("a known error", "another")
    return members


def read_frame(recv: Callable[[int], bytes], max_message: int = MAX_FROM_SERVER) -> bytes:
    """Return the next message, however TCP cut or joined it.

    `recv(n)` gives 1 to n bytes, or none at the end of the stream. Raises MalformedMessage (after
    4 bytes) and ConnectionCut.
    """
    length = int.from_bytes(read_exactly(recv, LENGTH_BYTES, mid_frame=False), "big")
    if not 2 <= length <= max_message:
        raise MalformedMessage(f"2 to {max_message} bytes", length)
    return read_exactly(recv, length, mid_frame=True)


def write_frame(sendall: Callable[[bytes], object], message: bytes) -> None:
    """Send `message` after its length, in one piece."""
    sendall(len(message).to_bytes(LENGTH_BYTES, "big") + message)


# State machine [C 5] ------------------------------------------------------------------------------


class State(Enum):
    """Where a conversation stands."""

    HELLO = "HELLO"
    HELLO_BACK = "HELLO_BACK"
    SHARE = "SHARE"
    SHARE_BACK = "SHARE_BACK"
    CREDENTIALS = "CREDENTIALS"
    JUDGING = "JUDGING"
    SESSION_SHARE = "SESSION_SHARE"
    SESSION_SHARE_BACK = "SESSION_SHARE_BACK"
    READY = "READY"
    JOINING = "JOINING"
    CHAT = "CHAT"
    ASKED = "ASKED"
    UPDATING = "UPDATING"
    LEAVING = "LEAVING"
    RECEIPT = "RECEIPT"
    COUNTERSIGN = "COUNTERSIGN"
    ENDED = "ENDED"


HANDSHAKE = frozenset({State.HELLO, State.HELLO_BACK, State.SHARE, State.SHARE_BACK})
DUPLEX = frozenset({State.CHAT, State.ASKED, State.UPDATING, State.LEAVING})  # both ends speak
PHASE: Mapping[State, ProtocolState] = {
    **{state: ProtocolState.ACTIVE for state in State},
    **{state: ProtocolState.INIT for state in HANDSHAKE},
    State.ENDED: ProtocolState.TERMINATED,
}
SPEAKER: Mapping[State, Direction] = {  # of the next message; in CHAT and ASKED it may be either
    State.HELLO: Direction.C2S,
    State.HELLO_BACK: Direction.S2C,
    State.SHARE: Direction.C2S,
    State.SHARE_BACK: Direction.S2C,
    State.CREDENTIALS: Direction.C2S,
    State.JUDGING: Direction.S2C,
    State.SESSION_SHARE: Direction.C2S,
    State.SESSION_SHARE_BACK: Direction.S2C,
    State.READY: Direction.C2S,
    State.JOINING: Direction.S2C,
    State.CHAT: Direction.C2S,
    State.ASKED: Direction.C2S,
    State.UPDATING: Direction.S2C,
    State.LEAVING: Direction.S2C,
    State.RECEIPT: Direction.C2S,
    State.COUNTERSIGN: Direction.S2C,
}


TOLD = (Kind.RELAY, Kind.JOINED, Kind.LEFT)  # by the server, to everybody in a room
RENEWING = frozenset({State.SESSION_SHARE_BACK, State.UPDATING})  # keys, when the server answers


class ProtocolFSM(StateMachine[State, Kind, Direction]):
    """The machine of this protocol: its table."""

    VALID_TRANSITIONS: Mapping[tuple[State, Kind, Direction], State] = {
        (State.HELLO, Kind.HELLO, Direction.C2S): State.HELLO_BACK,
        (State.HELLO_BACK, Kind.SERVER_HELLO, Direction.S2C): State.SHARE,
        (State.SHARE, Kind.DH_CLIENT, Direction.C2S): State.SHARE_BACK,
        (State.SHARE_BACK, Kind.DH_SERVER, Direction.S2C): State.CREDENTIALS,
        (State.CREDENTIALS, Kind.REGISTER, Direction.C2S): State.JUDGING,
        (State.CREDENTIALS, Kind.LOGIN, Direction.C2S): State.JUDGING,
        (State.CREDENTIALS, Kind.RESUME, Direction.C2S): State.JUDGING,
        (State.JUDGING, Kind.REFUSED, Direction.S2C): State.CREDENTIALS,
        (State.JUDGING, Kind.WELCOME, Direction.S2C): State.SESSION_SHARE,
        (State.SESSION_SHARE, Kind.DH_CLIENT, Direction.C2S): State.SESSION_SHARE_BACK,
        (State.SESSION_SHARE_BACK, Kind.DH_SERVER, Direction.S2C): State.READY,
        (State.READY, Kind.JOIN, Direction.C2S): State.JOINING,
        (State.JOINING, Kind.ROOM, Direction.S2C): State.CHAT,
        # in a room both ends speak at any time
        (State.CHAT, Kind.MSG, Direction.C2S): State.CHAT,
        **{(State.CHAT, kind, Direction.S2C): State.CHAT for kind in TOLD},
        (State.CHAT, Kind.LEAVE, Direction.C2S): State.LEAVING,
        # a key update: the client is silent from its share to the server's, so each end knows under
        # which keys a record is; the server's request may cross a share, or a leave, and is void
        (State.CHAT, Kind.UPDATE, Direction.S2C): State.ASKED,
        (State.CHAT, Kind.DH_CLIENT, Direction.C2S): State.UPDATING,
        **{(State.ASKED, kind, Direction.S2C): State.ASKED for kind in TOLD},
        (State.ASKED, Kind.MSG, Direction.C2S): State.ASKED,
        (State.ASKED, Kind.LEAVE, Direction.C2S): State.LEAVING,
        (State.ASKED, Kind.DH_CLIENT, Direction.C2S): State.UPDATING,
        **{(State.UPDATING, kind, Direction.S2C): State.UPDATING for kind in TOLD},
        (State.UPDATING, Kind.UPDATE, Direction.S2C): State.UPDATING,
        (State.UPDATING, Kind.DH_SERVER, Direction.S2C): State.CHAT,
        (State.LEAVING, Kind.UPDATE, Direction.S2C): State.LEAVING,
        **{(State.LEAVING, kind, Direction.S2C): State.LEAVING for kind in TOLD},
        (State.LEAVING, Kind.RECEIPT, Direction.S2C): State.RECEIPT,
        (State.RECEIPT, Kind.RECEIPT, Direction.C2S): State.COUNTERSIGN,
        (State.COUNTERSIGN, Kind.COUNTERSIGN, Direction.S2C): State.READY,
        (State.READY, Kind.BYE, Direction.C2S): State.ENDED,
        # in the clear, and only for certificates: an end that refuses one has not moved on yet
        (State.HELLO, Kind.ERROR, Direction.S2C): State.ENDED,
        (State.HELLO_BACK, Kind.ERROR, Direction.S2C): State.ENDED,
        (State.HELLO_BACK, Kind.ERROR, Direction.C2S): State.ENDED,
        (State.SHARE, Kind.ERROR, Direction.C2S): State.ENDED,
        # sealed; but a client that waits for the server's share cannot know under which keys the
        # server would read it
        **{
            (state, Kind.ERROR, sender): State.ENDED
            for state in State
            for sender in Direction
            if state not in HANDSHAKE
            and state is not State.ENDED
            and (sender is Direction.S2C or state not in RENEWING)
        },
    }
    FIRST = State.HELLO
    LAST = State.ENDED


# Key schedule [C 3] -------------------------------------------------------------------------------

KEY_BYTES = {"C2S-ENC": AES_KEY_BYTES, "C2S-MAC": 32, "S2C-ENC": AES_KEY_BYTES, "S2C-MAC": 32}


def chained(running: bytes, frame: bytes) -> bytes:
    """Return the hash (32 bytes) of a conversation that has one frame more."""
    return hashlib.sha256(running + hashlib.sha256(frame).digest()).digest()


def keys_of(running: bytes, shared: bytes) -> dict[str, bytes]:
    """Return the four keys, by label, of a shared secret and all that was said before them."""
    secret = hkdf(running, shared, f"{NAME} secret")
    return {label: hkdf_expand(secret, f"{NAME} {label}", n) for label, n in KEY_BYTES.items()}


# Session ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Party:
    """One end: its certificate, as it is shown and as we know it, and the key to that."""

    identity: Identity
    pem: str = field(repr=False)
    private_key: PrivateKey = field(repr=False)


class Session:
    """One end of one session: seal what we send, open what arrives.

    `server_name` is whom a client wants to talk to; a server takes any client. `watchers` see each
    message after the decision, and can change nothing. `now` tells the time; `random_bytes` draws
    nonces and IVs, for tests.
    """

    write_frame = staticmethod(write_frame)
    update_every = UPDATE_EVERY

    def __init__(
        self,
        party: Party,
        trust: Trust,
        server_name: str | None = None,
        *,
        watchers: Sequence[Watcher] = (),
        now: Callable[[], datetime] = utc_now,
        random_bytes: RandomSource = get_random_bytes,
    ) -> None:
        self.party = party
        self.trust = trust
        self.sends = Direction.C2S if party.identity.role == "client" else Direction.S2C
        self.receives = Direction(1 - self.sends)
        self.fsm = ProtocolFSM()
        self.watchers = Watchers(watchers)
        self.session_id = b""
        self.now = now
        self._random_bytes = random_bytes
        self._server_name = server_name
        self.peer_pem = ""  # the peer's certificate as it was shown
        self._peer: Identity | None = None
        self._running = b""  # hash of all frames but those that both ends send at any time
        self._exponent: int | None = None
        self._shared = b""  # the secret that both shares lead to
        self._keys: dict[str, bytes] = {}
        self._number = {Direction.C2S: 0, Direction.S2C: 0}  # of the next record
        self._records = 0  # under these keys
        self._last_fingerprints: dict[str, str] = {}

    @property
    def state(self) -> State:
        return self.fsm.state

    @property
    def peer(self) -> Identity:
        """Who the other end is. Raises LocalError before it has shown a certificate."""
        if self._peer is None:
            raise LocalError("the peer has not shown its certificate yet")
        return self._peer

    @property
    def max_message(self) -> int:
        """How many bytes the peer's next frame may have."""
        if self.state in HANDSHAKE:
            return MAX_HANDSHAKE
        return MAX_FROM_CLIENT if self.receives is Direction.C2S else MAX_FROM_SERVER

    @property
    def has_farewell(self) -> bool:
        """Whether we may say a sealed error now: not in the handshake, and not after the end."""
        return bool(self._keys) and self.fsm.allows(Kind.ERROR, self.sends)

    @property
    def is_update_due(self) -> bool:
        """Whether these keys have protected as many records as they should."""
        return self._records >= self.update_every

    def read_frame(self, recv: Callable[[int], bytes]) -> bytes:
        """Return the next message from a stream. Raises MalformedMessage and ConnectionCut."""
        return read_frame(recv, self.max_message)

    def fingerprints(self) -> dict[str, str]:
        """Name the four keys, 8 hex digits each; after the end, the last four there were."""
        return self._last_fingerprints or {k: fingerprint(v) for k, v in self._keys.items()}

    def __repr__(self) -> str:
        return f"<Session of {self.party.identity.name}, {self.state.name}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a session holds keys, which are not pickled")

    # What we say

    def seal(self, message: Message) -> bytes:
        """Return our next frame (canonical JSON), and move keys, numbers and state.

        Raises LocalError, and then nothing has changed.
        """
        kind = message.kind
        self.check_turn(kind)
        values = {**self._compose(message), "type": kind.value}
        try:
            check_members(kind, values)  # a sender obeys the rules too
            plain = canonical(values)
            frame = self._seal_record(values) if self._keys else plain
        except (ProtocolError, ValueError) as error:
            raise LocalError(f"{kind.value} cannot carry this: {error}") from error
        self._commit(kind, frame, self.sends)
        self.watchers.tell("sealed", frame, plain, self.fingerprints)
        return frame

    def check_turn(self, kind: Kind) -> None:
        """Raise LocalError if we cannot say this now."""
        if not self.fsm.allows(kind, self.sends):
            raise LocalError(f"{kind.value} cannot be sent in {self.state.name}")

    def _compose(self, message: Message) -> Mapping[str, Any]:
        """Return the members: our own for hellos and shares [C 2], else those of the message."""
        kind = message.kind
        if kind in HELLOS:
            name = "client_cert" if kind is Kind.HELLO else "server_cert"
            nonce = to_base64(self._random_bytes(NONCE_BYTES))
            return {name: self.party.pem, "nonce": nonce}
        if kind in SHARES:
            share = self._offer(kind)
            signed = self._under_signature(kind, share)
            return {**share, "sig": to_base64(sign(self.party.private_key, signed))}
        return message.members

    def _offer(self, kind: Kind) -> dict[str, int]:
        """Return our share."""
        generator, prime = self._group()
        value = pow(generator, self._own_exponent(), prime)
        return {"g": generator, "p": prime, "A": value} if kind is Kind.DH_CLIENT else {"B": value}

    def _own_exponent(self) -> int:
        """Return our exponent in this exchange; a new one is drawn for the first use."""
        if self._exponent is None:
            self._exponent = dh.new_exponent()
        return self._exponent

    def _group(self) -> tuple[int, int]:
        """Return generator and prime: no peer chooses them."""
        return dh.GENERATOR, dh.PRIME

    def _under_signature(self, kind: Kind, share: Mapping[str, Any]) -> bytes:
        """Return the bytes to sign: the role, what was said before, and the share [C 2]."""
        unsigned = canonical({**share, "type": kind.value})
        return pae(self._role_of(kind), self._running, unsigned)

    def _role_of(self, kind: Kind) -> str:
        return "dh-client" if kind is Kind.DH_CLIENT else "dh-server"

    def _seal_record(self, values: Mapping[str, Any]) -> bytes:
        """Return a record: a message's members, encrypted or not, and the tag over them [C 4]."""
        if values["type"] not in OPEN_MEMBERS:
            payload = to_base64(self.encrypt(canonical(values)))
            values = {"type": values["type"], "payload": payload}
        tag = self._tag(self.sends, canonical(values))
        return canonical({**values, "tag": to_base64(tag)})

    def _tag(self, sender: Direction, untagged: bytes) -> bytes:
        """Return the tag (32 bytes) of a record: over its direction, number and all members."""
        place = RECORD.pack(sender, self._number[sender])
        return hmac_sha256(self._key(sender, "MAC"), place + untagged)

    def encrypt(self, plaintext: bytes) -> bytes:
        """Return a fresh IV and the ciphertext, in our direction; a tag has to cover them."""
        iv = self._random_bytes(BLOCK_BYTES)
        aes = Cipher(algorithms.AES(self._key(self.sends, "ENC")), modes.CBC(iv)).encryptor()
        return iv + aes.update(pkcs7_pad(plaintext)) + aes.finalize()

    def _key(self, sender: Direction, use: str) -> bytes:
        return self._keys[f"{sender.name}-{use}"]

    # What we hear

    def open(self, message: bytes) -> Message:
        """Check, decrypt and accept the peer's next frame (without its length).

        Raises a ProtocolError, which ended the session and carries the farewell to send; and
        PeerEnded when the message was accepted and ends the session itself.
        """
        try:
            values = self._check_shape(message)
            kind = self._check_kind(values)
            if self._keys:
                values = self._open_record(kind, values)
            members = check_members(kind, values)
            if kind in HELLOS:
                self._check_certificate(members)
            elif kind in SHARES:
                self._check_share(kind, members)
        except ProtocolError as error:
            self.watchers.tell(type(error).__name__, message, b"", self.fingerprints)
            self.fail(error)
            raise
        self._commit(kind, message, self.receives)
        self.watchers.tell("accepted", message, canonical(values), self.fingerprints)
        if kind is Kind.ERROR:
            raise PeerEnded(None, members["error_type"])
        return Message(kind, members)

    def _check_shape(self, message: bytes) -> dict[str, Any]:
        if len(message) > self.max_message:
            raise MalformedMessage(f"at most {self.max_message} bytes", len(message))
        return parse(message)

    def _check_kind(self, values: Mapping[str, Any]) -> Kind:
        """Return what a frame claims to be; nothing is known about the rest yet."""
        try:
            kind = Kind(values.get("type"))
        except ValueError:
            raise MalformedMessage("a type", "something else") from None
        if not self.fsm.allows(kind, self.receives):
            raise UnexpectedKind(f"a move from {self.state.name}", kind.value)
        return kind

    def _open_record(self, kind: Kind, values: dict[str, Any]) -> dict[str, Any]:
        """Check the tag first; only then is anything decrypted."""
        tag = values.pop("tag", None)
        if type(tag) is not str:
            raise MalformedMessage("a record with a tag", "none")
        self._check_tag(canonical(values), from_base64(tag, TAG_BYTES, TAG_BYTES))
        if kind in OPEN_MEMBERS:
            return values
        if not has_members(values, {"payload": str, "type": str}):
            raise BadPayload("a payload", ", ".join(sorted(values))[:80])
        return parse(self.decrypt(from_base64(values["payload"])))

    def _check_tag(self, untagged: bytes, tag: bytes) -> None:
        key = self._key(self.receives, "MAC")
        place = RECORD.pack(self.receives, self._number[self.receives])
        if not hmac_verify(key, place + untagged, tag):
            raise BadTag

    def decrypt(self, data: bytes) -> bytes:
        """Return what the peer encrypted; its tag has been checked. Raises BadPayload."""
        if len(data) < 2 * BLOCK_BYTES or len(data) % BLOCK_BYTES:
            raise BadPayload("bytes of an IV and of whole blocks", len(data))
        key = self._key(self.receives, "ENC")
        aes = Cipher(algorithms.AES(key), modes.CBC(data[:BLOCK_BYTES])).decryptor()
        try:
            return pkcs7_unpad(aes.update(data[BLOCK_BYTES:]) + aes.finalize())
        except ValueError:
            raise BadPadding from None

    def _check_certificate(self, members: Mapping[str, Any]) -> None:
        from_base64(members["nonce"], NONCE_BYTES, NONCE_BYTES)
        role: Role = "server" if self.sends is Direction.C2S else "client"
        self.peer_pem = members[f"{role}_cert"]
        self._peer = self.trust.verify(self.peer_pem, role, self._server_name, self.now())

    def _check_share(self, kind: Kind, members: Mapping[str, Any]) -> None:
        if self.state in DUPLEX:
            self.check_again()
        share = {name: value for name, value in members.items() if name != "sig"}
        self._check_signature(kind, share, from_base64(members["sig"]))
        if kind is Kind.DH_CLIENT:
            self._check_group(share["g"], share["p"])
        value = share["A" if kind is Kind.DH_CLIENT else "B"]
        self._check_range(value)
        self._check_subgroup(value)
        self._shared = self._agree(value)

    def check_again(self) -> None:
        """Judge the peer's certificate anew: it may have been revoked or have expired."""
        self.trust.verify(self.peer_pem, self.peer.role, self._server_name, self.now())

    def _check_signature(self, kind: Kind, share: Mapping[str, Any], signature: bytes) -> None:
        signed = self._under_signature(kind, share)
        if not is_signed(self.peer.public_key, signed, signature):
            raise BadSignature(f"{self.peer.name}, as {self._role_of(kind)}", "another")

    def _check_group(self, generator: int, prime: int) -> None:
        if (generator, prime) != (dh.GENERATOR, dh.PRIME):
            raise BadGroup("group 14", f"a {prime.bit_length()}-bit prime")

    def _check_range(self, value: int) -> None:
        if not dh.is_in_range(value, self._group()[1]):
            raise BadShare("2 to p-2", f"a {value.bit_length()}-bit value")

    def _check_subgroup(self, value: int) -> None:
        if not dh.is_in_subgroup(value, self._group()[1]):
            raise OutsideSubgroup("a power of 2", "another value")

    def _agree(self, value: int) -> bytes:
        """Return the secret that both shares lead to (256 bytes)."""
        return dh.shared_secret(self._own_exponent(), value, self._group()[1])

    # What moves

    def _commit(self, kind: Kind, frame: bytes, sender: Direction) -> None:
        """Move keys, numbers and state together; the only place where they move."""
        if self._keys:
            self._number[sender] += 1
            self._records += 1
        if self.state not in DUPLEX or kind in SHARES:
            self._running = chained(self._running, frame)
        if kind is Kind.DH_SERVER:  # by now both ends have offered a share
            self._next_keys()
        self.fsm.advance(kind, sender)
        if self.state is State.ENDED:
            self._forget_keys()

    def _next_keys(self) -> None:
        """Derive the four keys anew, and forget what led to them."""
        self.session_id = self.session_id or self._running
        self._keys = keys_of(self._running, self._shared)
        self._records = 0
        self._exponent = None
        self._shared = b""

    def goodbye(self, status: Status) -> bytes:
        """End the session, and return a sealed error that says why; nothing in the handshake."""
        farewell = b""
        if self.has_farewell:
            farewell = self.seal(Message(Kind.ERROR, {"error_type": status.name.lower()}))
        self._end()
        return farewell

    def fail(self, error: ProtocolError) -> None:
        """End the session because of `error`, and give `error` the farewell to send."""
        if isinstance(error, BadCertificate) and self.fsm.allows(Kind.ERROR, self.sends):
            error.farewell = self.seal(Message(Kind.ERROR, {"error_type": BAD_CERT}))
        elif self.has_farewell and not isinstance(error, ConnectionCut):
            status = Status.VIOLATION.name.lower()
            error.farewell = self.seal(Message(Kind.ERROR, {"error_type": status}))
        self._end()

    def _end(self) -> None:
        self.fsm.end()
        self._forget_keys()

    def _forget_keys(self) -> None:
        self._last_fingerprints = self.fingerprints()
        self._keys = {}
        self._shared = b""
        self._exponent = None
