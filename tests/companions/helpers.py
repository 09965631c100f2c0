"""What the tests of the protocol share: two real sessions, and messages that nobody would make.

Keys and tags are computed here from the text [D 3], [D 4], by other libraries than the sessions'.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from Crypto.Cipher import AES
from Crypto.Hash import SHA256
from Crypto.Protocol import DH
from Crypto.PublicKey import RSA
from Crypto.Signature import pss
from Crypto.Util.Padding import pad

from companions.asymmetric import PrivateKey, public_pem, sign
from companions.device_transfer.certificates import (
    Identity,
    Role,
    Trust,
    issue,
    sign_revocation_list,
)
from companions.device_transfer.protocol import (
    HEADER,
    Direction,
    Header,
    Kind,
    Message,
    PeerFailed,
    Session,
    State,
)
from protocol_fsm import ProtocolError
from tests.sessions import clone

NOW = datetime(2026, 1, 31, 12, tzinfo=timezone.utc)
DAY = timedelta(1)
ISSUER = "school"
DEVICE = "device-1"
SERVER = "server-1"
D2S = Direction.D2S
S2D = Direction.S2D
OTHER = {D2S: S2D, S2D: D2S}
REKEY_CHUNKS = 3
LOW_ORDER = [  # shares that are of no use
    (n % 2**256).to_bytes(32, "little")
    for n in (
        0,
        1,
        2**255 - 20,
        2**255 - 19,
        2**255 - 18,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    )
]

BODIES: Mapping[Kind, bytes] = {  # one that is legal; what a session builds itself has none here
    Kind.TEXT: b'{"size":4,"time":"2026-01-31T12:00:00Z"}',
    Kind.FILE: b'{"name":"a.png","size":4,"time":"2026-01-31T12:00:00Z"}',
    Kind.CHUNK: b"data",
    Kind.MANIFEST: bytes(300),
    Kind.ACK: bytes(32),
}
WAY: Mapping[State, tuple[Direction, Kind]] = {  # the move that leads from here to the next line
    State.HELLO: (D2S, Kind.HELLO),
    State.HELLO_BACK: (S2D, Kind.HELLO),
    State.SHARE: (D2S, Kind.SHARE),
    State.SHARE_BACK: (S2D, Kind.SHARE),
    State.CONFIRM: (D2S, Kind.CONFIRM),
    State.CONFIRM_BACK: (S2D, Kind.CONFIRM),
    State.READY: (D2S, Kind.FILE),
    State.SENDING: (D2S, Kind.MANIFEST),
    State.CHECKING: (S2D, Kind.ACK),
}
DETOURS: Mapping[State, tuple[State, Direction, Kind]] = {
    State.REKEYING: (State.SENDING, D2S, Kind.REKEY),
    State.LEAVING: (State.READY, D2S, Kind.END),
    State.ENDED: (State.LEAVING, S2D, Kind.ACK),
}

# Two ends -----------------------------------------------------------------------------------------


class World:
    """An authority, a device and a server that it knows, and a clock that stands still."""

    def __init__(self, keys: Sequence[PrivateKey]) -> None:
        self.keys = keys
        self.device = self.person(DEVICE, Role.DEVICE)
        self.server = self.person(SERVER)
        self.revocations = self.revocation_list(1)
        self.now = NOW
        self._pairs: dict[State, Pair] = {}

    def person(
        self,
        name: str,
        role: Role = Role.SERVER,
        *,
        authority: int = 0,
        issuer: str = ISSUER,
        begins: datetime = NOW - DAY,
        ends: datetime = NOW + DAY,
        serial: str = "0123456789abcdef",
        key: int | None = None,
    ) -> Identity:
        """Return an identity; keys are named by their place in `keys`, 0 is the authority's."""
        private_key = self.keys[(1 if role is Role.DEVICE else 2) if key is None else key]
        return Identity(
            issue(
                self.keys[authority],
                issuer=issuer,
                common_name=name,
                role=role,
                serial=serial,
                public_key=private_key.public_key(),
                not_before=begins,
                not_after=ends,
            ),
            private_key,
        )

    def revocation_list(
        self,
        number: int,
        revoked: Sequence[str] = (),
        *,
        authority: int = 0,
        ends: datetime = NOW + DAY,
    ) -> bytes:
        return sign_revocation_list(
            self.keys[authority],
            issuer=ISSUER,
            number=number,
            this_update=NOW - 2 * DAY,
            next_update=ends,
            revoked=revoked,
        ).encoded

    def trust(self) -> Trust:
        return Trust(self.keys[0].public_key(), ISSUER, lambda: self.revocations, lambda: self.now)

    def session(self, who: Identity, peer_name: str | None = None, **options: Any) -> Session:
        return Session(who, self.trust(), peer_name, **{"rekey_chunks": REKEY_CHUNKS, **options})

    def pair(self, state: State = State.HELLO) -> Pair:
        """Return a pair whose both ends are in `state`; a handshake is lived through only once."""
        if state not in self._pairs:
            self._pairs[state] = self._lead(state)
        return self._pairs[state].clone()

    def _lead(self, state: State) -> Pair:
        if state is State.HELLO:
            return Pair(self.session(self.device, SERVER), self.session(self.server))
        before, sends, kind = DETOURS.get(state) or step_to(state)
        pair = self.pair(before)
        pair.carry(sends, kind)
        assert pair.device.state is pair.server.state is state
        return pair


def step_to(state: State) -> tuple[State, Direction, Kind]:
    """Return the state before this one on the straight way, and the move from there."""
    way = [*WAY]
    before = way[way.index(state) - 1]
    return before, *WAY[before]


class Pair:
    """Both ends of one session, and nobody between them; `messages` is all that was said."""

    def __init__(self, device: Session, server: Session, messages: Sequence[bytes] = ()) -> None:
        self.device = device
        self.server = server
        self.messages = [*messages]

    def end(self, sends: Direction) -> Session:
        return self.device if sends is D2S else self.server

    def carry(self, sends: Direction, kind: Kind, body: bytes | None = None) -> Message:
        """Seal at one end, open at the other."""
        message = legal(kind) if body is None else Message(kind, body)
        self.messages.append(self.end(sends).seal(message))
        return self.end(OTHER[sends]).open(self.messages[-1])

    def rekey(self) -> None:
        self.carry(D2S, Kind.REKEY)
        self.carry(S2D, Kind.REKEY)

    def clone(self) -> Pair:
        return Pair(clone(self.device), clone(self.server), self.messages)


def legal(kind: Kind) -> Message:
    """Return a message of this kind whose body is legal."""
    return Message(kind, BODIES.get(kind, b""))


def snapshot(session: Session) -> dict[str, object]:
    """Return all that a session knows, to be compared later."""
    return {**vars(clone(session)), "fsm": session.state}


def is_farewell(error: ProtocolError, peer: Session) -> bool:
    """Return whether `error` carries a FAIL that `peer` accepts, and not nothing at all."""
    if not error.farewell:
        return False
    with pytest.raises(PeerFailed):
        clone(peer).open(error.farewell)
    return True


# The text of the protocol, once more --------------------------------------------------------------


def behind_lengths(parts: Sequence[bytes]) -> bytes:
    return b"".join(bytes([0, 0, len(part) >> 8, len(part) & 255]) + part for part in parts)


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def expand(secret: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand of up to 32 bytes: RFC 5869 section 2.3 with one block."""
    return hmac.digest(secret, info + b"\x01", "sha256")[:length]


def secret_after(salt: bytes, shared: bytes) -> bytes:
    return expand(hmac.digest(salt, shared, "sha256"), b"device_transfer v1 secret", 32)


def keys_after(secret: bytes) -> dict[str, bytes]:
    return {
        "D2S-ENC": expand(secret, b"device_transfer v1 D2S-ENC", 16),
        "D2S-MAC": expand(secret, b"device_transfer v1 D2S-MAC", 32),
        "S2D-ENC": expand(secret, b"device_transfer v1 S2D-ENC", 16),
        "S2D-MAC": expand(secret, b"device_transfer v1 S2D-MAC", 32),
    }


def x25519(scalar: bytes, point: bytes) -> bytes:
    """RFC 7748 section 5."""
    private = DH.import_x25519_private_key(scalar)
    public = DH.import_x25519_public_key(point)
    agreed: bytes = DH.key_agreement(static_priv=private, static_pub=public, kdf=bytes)
    return agreed


def rsa_verify(key: PrivateKey, context: str, digest: bytes, signature: bytes) -> None:
    """Raise ValueError unless this was signed as [D 2] has it, with a salt of 32 bytes."""
    verifier = pss.new(RSA.import_key(public_pem(key.public_key())), salt_bytes=32)
    verifier.verify(SHA256.new(f"device_transfer v1 {context}\0".encode() + digest), signature)


# Messages nobody would make -----------------------------------------------------------------------


def forge(
    session: Session,
    kind: bytes,
    body: bytes = b"",
    *,
    sender: Direction | None = None,
    direction: int | None = None,
    sequence: int | None = None,
    session_id: bytes | None = None,
    padded: bytes | None = None,
    keys: Mapping[str, bytes] | None = None,
) -> bytes:
    """Seal anything at all as `session` or its peer could; neither moves, and the tag is right."""
    sender = session.sends if sender is None else sender
    keys = keys or session._keys
    header = HEADER.pack(
        kind,
        session.session_id if session_id is None else session_id,
        sender if direction is None else direction,
        session._sequence[sender] if sequence is None else sequence,
    )
    iv = b"\x24" * 16
    aes = AES.new(keys[f"{sender.name}-ENC"], AES.MODE_CBC, iv)
    untagged = header + iv + aes.encrypt(pad(body, 16) if padded is None else padded)
    return untagged + hmac.digest(keys[f"{sender.name}-MAC"], untagged, "sha256")


def forge_share(
    pair: Pair,
    sends: Direction,
    share: bytes,
    *,
    key: PrivateKey | None = None,
    context: str = "",
    before: Sequence[bytes] | None = None,
) -> bytes:
    """Return share and signature as that end could make them, for a SHARE or a REKEY."""
    session = pair.end(sends)
    rekeying = session.state in (State.SENDING, State.REKEYING)
    context = context or f"{session.identity.certificate.role.value} " + (
        "rekey" if rekeying else "share"
    )
    digest = sha256(behind_lengths([*(session._transcript if before is None else before), share]))
    key = key or session.identity.private_key
    return share + sign(key, f"device_transfer v1 {context}", digest)


def with_header(message: bytes, **fields: object) -> bytes:
    """Return `message` with header fields rewritten, and the tag left as it was."""
    header: Any = Header(*HEADER.unpack_from(message))
    return HEADER.pack(*header._replace(**fields)) + message[HEADER.size :]


def flipped(message: bytes, bit: int) -> bytes:
    changed = bytearray(message)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
