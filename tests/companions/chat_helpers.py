"""What the tests of secure_chat share: an authority, certificates of every kind, a history."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from companions.asymmetric import PrivateKey, PublicKey
from companions.secure_chat import authority, forms, pae
from companions.secure_chat.authority import pem_of
from companions.secure_chat.certs import Credentials
from companions.secure_chat.forms import OPENING_BYTES, Head, Message, Recipient
from companions.secure_chat.pki import Identity, Role, Trust

NOW = datetime(2026, 1, 31, 12, tzinfo=timezone.utc)
NOW_MS = int(NOW.timestamp() * 1000)
DAY = timedelta(1)
ALICE = "alice@example.org"
BOB = "bob@example.org"
ROOM = "lobby"
START = bytes(range(32))


class Authority:
    """An authority whose list can be replaced while its Trust is in use."""

    def __init__(self, key: PrivateKey, name: str = authority.NAME) -> None:
        self.key = key
        self.certificate = authority.authority_certificate(key, NOW - 10 * DAY, name=name)
        self.number = 1
        self.revoked: list[x509.RevokedCertificate] = []
        self.list = b""
        self.publish()

    def publish(self, *, now: datetime = NOW, number: int | None = None, days: int = 7) -> None:
        made = authority.revocation_list(
            self.key, self.certificate, number or self.number, self.revoked, now, days
        )
        self.list = pem_of(made)

    def revoke(self, certificates: Iterable[x509.Certificate], now: datetime = NOW) -> None:
        self.revoked += [authority.revoked_entry(one.serial_number, now) for one in certificates]
        self.number += 1
        self.publish()

    def issue(
        self, role: Role, name: str, key: PrivateKey, *, now: datetime = NOW, days: int = 365
    ) -> Credentials:
        made = authority.certificate(
            self.key, self.certificate, role, name, key.public_key(), now, days
        )
        return credentials(made, key)

    def trust(self) -> Trust:
        return Trust(pem_of(self.certificate), lambda: self.list)


def credentials(made: x509.Certificate, key: PrivateKey) -> Credentials:
    return Credentials(pem_of(made).decode("ascii"), made, key)


def changed(
    made: x509.Certificate,
    key: PrivateKey,
    *,
    without: tuple[type[x509.ExtensionType], ...] = (),
    extra: Iterable[tuple[x509.ExtensionType, bool]] = (),
    public_key: PublicKey | None = None,
    issuer: x509.Name | None = None,
) -> x509.Certificate:
    """Return the certificate signed anew by `key`, with other extensions, issuer or public key."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(made.subject)
        .issuer_name(issuer or made.issuer)
        .public_key(public_key or made.public_key())
        .serial_number(made.serial_number)
        .not_valid_before(made.not_valid_before_utc)
        .not_valid_after(made.not_valid_after_utc)
    )
    for one in made.extensions:
        if not isinstance(one.value, without):
            builder = builder.add_extension(one.value, one.critical)
    for value, is_critical in extra:
        builder = builder.add_extension(value, is_critical)
    return builder.sign(key, hashes.SHA256())


def authority_below(school: Authority, key: PrivateKey) -> x509.Certificate:
    """Let a school have other authorities below it, and return the certificate of one."""
    school.certificate = changed(
        school.certificate,
        school.key,
        without=(x509.BasicConstraints,),
        extra=[(x509.BasicConstraints(ca=True, path_length=None), True)],
    )
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(school.key.public_key())
    return changed(
        authority.authority_certificate(key, NOW - DAY, name="Below"),
        school.key,
        extra=[(issuer, False)],
        issuer=school.certificate.subject,
    )


def identity_of(own: Credentials, role: Role, name: str) -> Identity:
    return Identity(name, role, own.fingerprint, own.certificate, own.key.public_key())


class Talk:
    """A room in which everybody is honest: makes what a transcript keeps, without any session."""

    def __init__(self, server: Credentials, start: bytes = START) -> None:
        self.server = server
        self.start = start
        self.head = start
        self.index = 0
        self._said: dict[bytes, tuple[int, bytes]] = {}

    def say(
        self,
        sender: Credentials,
        session: bytes,
        text: str,
        recipients: Iterable[Recipient],
        ts: int = NOW_MS,
        seen: bytes | None = None,
    ) -> tuple[tuple[bytes, bytes, bytes, bytes], bytes]:
        """Return signed message, signature, signed head, signature; and the opening."""
        opening = os.urandom(OPENING_BYTES) + text.encode("utf-8")
        seqno, previous = self._said.get(session, (0, forms.NOTHING))
        message = Message(
            session=session,
            room=ROOM,
            sender=sender.fingerprint,
            recipients=tuple(sorted(recipients)),
            seqno=seqno,
            ts=ts,
            previous=previous,
            seen=self.head if seen is None else seen,
            commitment=forms.commitment(opening[:OPENING_BYTES], opening[OPENING_BYTES:]),
            ct=os.urandom(48),
        )
        signed = message.encode()
        signature = pae.sign(sender.key, signed)
        self._said[session] = (seqno + 1, forms.message_hash(signed))
        self.head = forms.next_head(self.head, signed, signature)
        head = Head(ROOM, self.start, self.index, ts, self.head).encode()
        self.index += 1
        return (signed, signature, head, pae.sign(self.server.key, head)), opening
