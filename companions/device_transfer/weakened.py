"""Endpoints with rules taken out, one by one, to see which attack each rule holds back.

A rule of Session, Trust, Incoming, Store or Server is taken out of both ends by overriding what it
is made of. A weakened lab still lives through honest sessions. It refuses every address but
loopback, and server.py and device.py cannot reach it.

    python -m companions.device_transfer.attacks --without ephemeral stolen-server-key
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from companions.asymmetric import SIGNATURE_BYTES
from companions.device_transfer.certificates import Certificate, RevocationList, Role, Trust
from companions.device_transfer.device import Device
from companions.device_transfer.protocol import (
    CERTIFICATE_AT,
    CIPHERTEXT_AT,
    PLAIN,
    SHARES,
    BadShare,
    Direction,
    Header,
    Kind,
    Session,
)
from companions.device_transfer.server import Server
from companions.device_transfer.stage import Parts
from companions.device_transfer.store import Partial, Store
from companions.device_transfer.transfer import Incoming, Manifest
from crypto_utils import TAG_BYTES
from endpoint import HOST
from lab.rules import chosen, lacking, require_loopback
from protocol_fsm import ProtocolError

# Rules of Trust -----------------------------------------------------------------------------------


class NoAuthority(Trust):
    def _check_signature(self, certificate: Certificate) -> None:
        """Believe a certificate, whoever made it."""


class NoDates(Trust):
    def _check_dates(self, certificate: Certificate) -> None:
        """Take a certificate of any time."""


class NoRole(Trust):
    def _check_role(self, certificate: Certificate, role: Role) -> None:
        """Take a device for a server."""


class NoRevocation(Trust):
    def _check_revocation(self, certificate: Certificate) -> None:
        """Look at no revocation list."""


class NoListSignature(Trust):
    def _check_list_signature(self, latest: RevocationList) -> None:
        """Believe a revocation list, whoever made it."""


class NoListDate(Trust):
    def _check_list_date(self, latest: RevocationList) -> None:
        """Take a list that should have been replaced."""


class NoListNumber(Trust):
    def _check_list_number(self, latest: RevocationList) -> None:
        """Go back to an older list."""


# Rules of Session ---------------------------------------------------------------------------------


class NoPeerName(Session):
    def _check_peer_name(self, common_name: str) -> None:
        """Talk to any server that the authority knows."""


class NoHandshakeSignature(Session):
    def _check_signature(self, context: str, share: bytes, signature: bytes) -> None:
        """Believe that a share comes from the owner of the certificate."""


class NoTranscript(Session):
    def _signed_parts(self, share: bytes) -> Sequence[bytes]:
        """Sign the nonces and the share alone, not who showed which certificate."""
        return [*self._nonces(), share]

    def _bound_parts(self) -> Sequence[bytes]:
        """Bind the keys to the nonces and the shares alone."""
        shares = [message[:-SIGNATURE_BYTES] for message in self._transcript[2:]]
        return [*self._nonces(), *shares]

    def _nonces(self) -> Sequence[bytes]:
        """Return both HELLOs up to their nonces."""
        return [message[:CERTIFICATE_AT] for message in self._transcript[:2]]


class NoEphemeral(Session):
    """Carry the premaster secret under the server's long-term RSA key, as the document does."""

    _premaster = b""
    OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)

    def _check_body(self, kind: Kind, body: bytes) -> None:
        if kind not in SHARES:  # which are longer here
            super()._check_body(kind, body)

    def _offer(self) -> bytes:
        if self.sends is Direction.S2D:
            return self._random_bytes(32)  # which nothing depends on
        self._premaster = self._random_bytes(32)
        return self.peer.public_key.encrypt(self._premaster, self.OAEP)

    def _agree(self, share: bytes) -> bytes:
        if self.sends is Direction.D2S:
            return self._premaster
        try:
            return self.identity.private_key.decrypt(share, self.OAEP)
        except ValueError:
            raise BadShare("a premaster secret", "another") from None


class NoSessionId(Session):
    def _check_session(self, header: Header) -> None:
        """Take a record of any session."""


class NoDirection(Session):
    def _check_direction(self, header: Header) -> None:
        """Take our own records for the peer's."""


class NoSequence(Session):
    def _check_sequence(self, header: Header) -> None:
        """Take a record again, or without those before it."""


class NoTag(Session):
    def _check_tag(self, header: Header, message: bytes) -> None:
        """Believe any tag."""


class NoTurn(Session):
    def _check_kind(self, kind: Kind) -> None:
        """Take any record at any time after the handshake, and go where it leads."""
        moves = self.fsm.VALID_TRANSITIONS
        if kind in PLAIN or not self._keys or self.fsm.allows(kind, self.receives):
            super()._check_kind(kind)
            return
        for state, legal, sender in moves:
            if (legal, sender) == (kind, self.receives):
                self.fsm.state = state
                return


class NoDirectionKeys(Session):
    def _key(self, sender: int, use: str) -> bytes:
        """Use the keys of one direction for both."""
        return self._keys[f"D2S-{use}"]


class NoEncryption(Session):
    def _encrypt(self, padded: bytes, iv: bytes) -> bytes:
        """Send the plaintext, under a good tag."""
        return padded

    def _decrypt(self, header: Header, message: bytes) -> bytes:
        """Take what came for the plaintext."""
        return message[CIPHERTEXT_AT:-TAG_BYTES]


class NoFreshIV(Session):
    def _fresh_iv(self) -> bytes:
        """Use one IV for the whole session, as the document does."""
        return bytes(16)


class NoRekeyLimit(Session):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Let one generation of keys serve for ever, and never ask for another."""
        super().__init__(*arguments, **{**options, "rekey_chunks": 2**62})


class NoUniformErrors(Session):
    def fail(self, error: ProtocolError) -> None:
        """Tell everybody on the wire what failed, also in the handshake."""
        super().fail(error)
        error.farewell = Kind.FAIL.value + type(error).__name__.encode()


# Rules of Incoming and Store ----------------------------------------------------------------------


class NoName(Incoming):
    def _check_name(self) -> None:
        """Take any name, a path too."""


class NoLimit(Incoming):
    def _check_limit(self, limit_bytes: int) -> None:
        """Take files of any size."""


class NoSize(Incoming):
    def _check_size(self) -> None:
        """Take more than was announced."""


class NoFileSignature(Incoming):
    def _check_signature(self, signature: bytes, encoded: bytes) -> None:
        """Believe a manifest, whoever signed it."""


class NoManifest(Incoming):
    def _check_manifest(self, manifest: Manifest) -> None:
        """Keep what came, whatever the manifest says of it."""


class NoManifestTime(Incoming):
    def _check_time(self, time: datetime) -> None:
        """Take an announcement or a manifest of any time."""


class NoVerifyFirst(Store):
    def begin(self) -> Partial:
        """Let what came stay in the folder, however it ended."""
        return Unfinished(self)


class Unfinished(Partial):
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind:
            self.keep("unfinished")
        super().__exit__(kind, error, traceback)


class NoPlainName(Store):
    def final_name(self, name: str) -> str:
        """Write where the name leads."""
        return name


class NoDeadline(Server):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Wait for a handshake, and for the end of a frame, for ever."""
        super().__init__(*arguments, **options)
        self.limits = dataclasses.replace(self.limits, handshake_s=1e6, frame_s=1e6)


# Never on a network -------------------------------------------------------------------------------


class LoopbackServer(Server):
    def __init__(
        self, identity: Any, trust: Any, folder: Any, host: str = HOST, *rest: Any, **options: Any
    ) -> None:
        """Refuse every host but this one. Raises UserError."""
        super().__init__(identity, trust, folder, require_loopback(host), *rest, **options)


class LoopbackDevice(Device):
    def __init__(
        self,
        identity: Any,
        trust: Any,
        recipient: str,
        host: str = HOST,
        *rest: Any,
        **options: Any,
    ) -> None:
        """Refuse every host but this one. Raises UserError."""
        super().__init__(identity, trust, recipient, require_loopback(host), *rest, **options)


# Names --------------------------------------------------------------------------------------------

RULES: dict[str, type] = {
    "authority": NoAuthority,
    "dates": NoDates,
    "role": NoRole,
    "revocation": NoRevocation,
    "list-signature": NoListSignature,
    "list-date": NoListDate,
    "list-number": NoListNumber,
    "peer-name": NoPeerName,
    "handshake-signature": NoHandshakeSignature,
    "transcript": NoTranscript,
    "ephemeral": NoEphemeral,
    "session-id": NoSessionId,
    "direction": NoDirection,
    "sequence": NoSequence,
    "tag": NoTag,
    "turn": NoTurn,
    "direction-keys": NoDirectionKeys,
    "encryption": NoEncryption,
    "fresh-iv": NoFreshIV,
    "rekey-limit": NoRekeyLimit,
    "uniform-errors": NoUniformErrors,
    "name": NoName,
    "limit": NoLimit,
    "size": NoSize,
    "file-signature": NoFileSignature,
    "manifest": NoManifest,
    "manifest-time": NoManifestTime,
    "verify-first": NoVerifyFirst,
    "plain-name": NoPlainName,
    "deadline": NoDeadline,
}
DOCUMENTED = (  # what the protocol of the seed document does without
    "dates",
    "role",
    "revocation",
    "peer-name",
    "handshake-signature",
    "ephemeral",
    "session-id",
    "direction",
    "sequence",
    "turn",
    "fresh-iv",
    "rekey-limit",
    "uniform-errors",
    "name",
    "limit",
    "size",
    "manifest-time",
    "plain-name",
    "deadline",
)


def without(names: Iterable[str]) -> Parts:
    """Return parts without these rules; `documented` stands for several. UserError."""
    rules = chosen(names, RULES, DOCUMENTED)
    return Parts(
        lacking(Session, rules),
        lacking(Trust, rules),
        lacking(Incoming, rules),
        lacking(Store, rules),
        lacking(Server, rules, LoopbackServer),
        LoopbackDevice,
    )
