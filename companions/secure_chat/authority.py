"""What the authority signs: its own certificate, those of clients and servers, revocation lists.

Only values in, certificates out: the programs gen_ca, gen_cert and revoke handle the files. No end
of a session imports this. Validity begins earlier than now by the skew that two clocks may have.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from companions.asymmetric import PrivateKey, PublicKey
from companions.secure_chat.pki import SKEW, USAGES, Role, fold, subject_of

NAME = "Secure Chat Root CA"
AUTHORITY_DAYS = 3_650
CERTIFICATE_DAYS = 365
LIST_DAYS = 7
MAX_COMMON_NAME = 64  # characters, by X.520
LOOPBACK = ("127.0.0.1", "::1")  # what localhost stands for


def authority_certificate(
    key: PrivateKey, now: datetime, days: int = AUTHORITY_DAYS, name: str = NAME
) -> x509.Certificate:
    """Return the authority's own certificate. No other authority can stand below it."""
    public_key = key.public_key()
    return (
        _begun(_named(name), _named(name), public_key, now, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .sign(key, hashes.SHA256())
    )


def certificate(
    key: PrivateKey,
    authority: x509.Certificate,
    role: Role,
    name: str,
    public_key: PublicKey,
    now: datetime,
    days: int = CERTIFICATE_DAYS,
) -> x509.Certificate:
    """Return the certificate of a client (an e-mail address) or a server (a host or an address).

    Raises ValueError for a name that a certificate cannot have.
    """
    shown = f"{role.upper()}: {name}"[:MAX_COMMON_NAME]
    return (
        _begun(_named(shown), authority.subject, public_key, now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(is_authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([USAGES[role]]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_names(role, name)), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .sign(key, hashes.SHA256())
    )


def revocation_list(
    key: PrivateKey,
    authority: x509.Certificate,
    number: int,
    revoked: Iterable[x509.RevokedCertificate],
    now: datetime,
    days: int = LIST_DAYS,
) -> x509.CertificateRevocationList:
    """Return list `number`, which must be higher than all before, good for `days`."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.subject)
        .last_update(now - SKEW)
        .next_update(now + timedelta(days=days))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
    )
    for one in revoked:
        builder = builder.add_revoked_certificate(one)
    return builder.sign(key, hashes.SHA256())


def revoked_entry(serial: int, now: datetime) -> x509.RevokedCertificate:
    """Return an entry for the list: this certificate is worthless from now on."""
    builder = x509.RevokedCertificateBuilder().serial_number(serial)
    return builder.revocation_date(now).build()


def pem_of(made: x509.Certificate | x509.CertificateRevocationList) -> bytes:
    return made.public_bytes(serialization.Encoding.PEM)


def _begun(
    subject: x509.Name, issuer: x509.Name, public_key: PublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _named(common_name: str) -> x509.Name:
    """Return a name for people; it decides nothing."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _names(role: Role, name: str) -> list[x509.GeneralName]:
    """Return the names that decide. Raises ValueError."""
    if role == "client":
        return [x509.RFC822Name(fold(name))]
    if name == "localhost":
        loopback = (x509.IPAddress(ipaddress.ip_address(one)) for one in LOOPBACK)
        return [x509.DNSName(name), *loopback]
    return [subject_of(name)]


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    """Return what a key is for: an authority's signs certificates and lists, others sign data."""
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=not is_authority,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )
