"""Nodes with rules taken out, one by one, to see which attack each rule holds back.

Each is a rule of Session, Trust or Peer, taken out of both nodes. Weakened nodes still live
through honest sessions. They refuse every address but loopback, and node.py cannot reach them.
`documented` is what the document does without.

    python -m companions.peer_messaging.attacks --without replay replay-text
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from companions.asymmetric import PublicKey
from companions.peer_messaging.identity import Identity, Trust
from companions.peer_messaging.node import Node
from companions.peer_messaging.peer import Peer
from companions.peer_messaging.protocol import GCM_TAG_BYTES, HEADER, Header, Kind, Session, State
from companions.peer_messaging.stage import Parts
from endpoint import HOST
from lab.rules import chosen, lacking, require_loopback
from protocol_fsm import BadTag, ProtocolError

# Rules of Trust -----------------------------------------------------------------------------------


class NoOwnKey(Trust):
    def _check_not_own(self, own: Identity, fingerprint: str) -> None:
        """Take a node with our own key for another one."""


class NoPin(Trust):
    def _check_pin(self, fingerprint: str) -> None:
        """Take whatever key comes."""


# Rules of Session ---------------------------------------------------------------------------------


class NoSignature(Session):
    def _check_signature(self, public_key: PublicKey, kind: Kind, message: bytes) -> None:
        """Believe that a share comes from the owner of the key beside it."""


class NoAnswered(Session):
    def _check_answered(self, digest: bytes) -> None:
        """Take a REPLY to any HELLO."""


class NoEphemeral(Session):
    def _offer(self) -> bytes:
        """Offer the same share for ever, made from the private key."""
        secret = self.identity.private_key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        self._ephemeral = X25519PrivateKey.from_private_bytes(hashlib.sha256(secret).digest())
        return self._ephemeral.public_key().public_bytes_raw()


class NoForgetting(Session):
    def _forget_keys(self) -> None:
        """Keep the keys of a session that is over."""


class NoSessionId(Session):
    def _check_session(self, header: Header) -> None:
        """Take a record of any session."""
        if not self._keys:
            super()._check_session(header)


class NoSender(Session):
    def _check_sender(self, header: Header) -> None:
        """Take our own records for the peer's."""


class NoReplay(Session):
    def _check_replay(self, header: Header) -> None:
        """Take a record again."""


class NoGap(Session):
    def _check_gap(self, header: Header) -> None:
        """Go on after a record that never came."""
        self._sequence[self.peer_role] = max(header.sequence, self._sequence[self.peer_role])


class NoTime(Session):
    def _check_time(self, timestamp: int) -> None:
        """Take what was said at any time."""


class NoTable(Session):
    def _check_table(self, kind: Kind) -> None:
        """Take any record in an open session, and stay there."""
        if self.state is not State.OPEN:
            super()._check_table(kind)

    def _commit(self, kind: Kind, message: bytes, sender: Any) -> None:
        if self.fsm.allows(kind, sender):
            super()._commit(kind, message, sender)
        else:
            self._sequence[sender] += 1


class NoAnswer(Session):
    def _check_answer(self, kind: Kind, body: bytes) -> None:
        """Take a receipt for what was never sent."""


class NoBody(Session):
    def _check_body(self, kind: Kind, body: bytes) -> None:
        """Take any bytes for a text."""
        if kind is not Kind.TEXT:
            super()._check_body(kind, body)


class NoTag(Session):
    def _decrypt(self, header: Header, message: bytes) -> bytes:
        """Decrypt, as GCM does (SP 800-38D), and believe any tag."""
        counter = self._nonce(self.peer_role, header.sequence) + (2).to_bytes(4, "big")
        aes = Cipher(algorithms.AES(self._key(self.peer_role, "KEY")), modes.CTR(counter))
        return aes.decryptor().update(message[HEADER.size : -GCM_TAG_BYTES])


class NoDirectionKeys(Session):
    def _key(self, sender: int, use: str) -> bytes:
        """Use the keys of one direction for both."""
        return self._keys[f"I-{use}"]


class NoFreshNonce(Session):
    def _nonce(self, sender: int, number: int) -> bytes:
        """Use one nonce for the whole session."""
        return self._key(sender, "IV")


class NoEncryption(Session):
    def _encrypt(self, body: bytes, header: bytes, number: int) -> bytes:
        """Send the plaintext, under a good tag."""
        aead = AESGCM(self._key(self.role, "KEY"))
        return body + aead.encrypt(self._nonce(self.role, number), b"", header + body)

    def _decrypt(self, header: Header, message: bytes) -> bytes:
        """Check the tag over header and plaintext."""
        plain = message[:-GCM_TAG_BYTES]
        tag = message[-GCM_TAG_BYTES:]
        if not isinstance(self, NoTag):
            aead = AESGCM(self._key(self.peer_role, "KEY"))
            try:
                aead.decrypt(self._nonce(self.peer_role, header.sequence), tag, plain)
            except InvalidTag:
                raise BadTag from None
        return plain[HEADER.size :]


# Rules of Peer ------------------------------------------------------------------------------------


class NoMemory(Peer):
    def _check_memory(self, digest: bytes, now: float) -> None:
        """Answer a HELLO as often as it comes."""


class NoAdmission(Peer):
    def _admit(self, session: Session, now: float) -> None:
        """Let a HELLO end the session that is open."""
        super()._admit(session, now)
        if self._session:
            self._end(self._session, ProtocolError("no HELLO", "one"))


class NoPatience(Peer):
    def _refuse(self, error: ProtocolError) -> None:
        """Let every message that is refused end the session, as the core does."""
        super()._refuse(error)
        if self._session:
            self._end(self._session, error)


class NoLiveness(Peer):
    def _keep_alive(self, session: Session, now: float) -> list[bytes]:
        """Never ask, and wait for ever."""
        return []


# Never on a network -------------------------------------------------------------------------------


class LoopbackNode(Node):
    def __init__(
        self,
        identity: Any,
        trust: Any,
        at: tuple[str, int],
        host: str = HOST,
        *rest: Any,
        **options: Any,
    ) -> None:
        """Refuse every host but this one. Raises UserError."""
        theirs = (require_loopback(at[0]), at[1])
        super().__init__(identity, trust, theirs, require_loopback(host), *rest, **options)


# Names --------------------------------------------------------------------------------------------

RULES: dict[str, type] = {
    "own-key": NoOwnKey,
    "pin": NoPin,
    "signature": NoSignature,
    "answered": NoAnswered,
    "ephemeral": NoEphemeral,
    "forgetting": NoForgetting,
    "session-id": NoSessionId,
    "sender": NoSender,
    "replay": NoReplay,
    "gap": NoGap,
    "time": NoTime,
    "table": NoTable,
    "answer": NoAnswer,
    "body": NoBody,
    "direction-keys": NoDirectionKeys,
    "encryption": NoEncryption,
    "tag": NoTag,
    "fresh-nonce": NoFreshNonce,
    "memory": NoMemory,
    "admission": NoAdmission,
    "patience": NoPatience,
    "liveness": NoLiveness,
}
DOCUMENTED = (  # what the protocol of the seed document does without
    "pin",
    "answered",
    "ephemeral",
    "forgetting",
    "session-id",
    "sender",
    "direction-keys",
    "admission",
    "patience",
)


def without(names: Iterable[str]) -> Parts:
    """Return parts without these rules; `documented` stands for several. UserError."""
    rules = chosen(names, RULES, DOCUMENTED)
    return Parts(lacking(Session, rules), lacking(Trust, rules), lacking(Peer, rules), LoopbackNode)
