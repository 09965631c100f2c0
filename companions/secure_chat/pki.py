"""What an end believes about a certificate: the library's verdict, and the checks it leaves out.

Path, dates, basic constraints, unknown critical extensions and a server's name are judged by
`x509.verification`. It lets pass a missing extended key usage, short keys and revoked certificates,
so these are checked here. A custom rule for an extension replaces the library's own: ours demands
the usage of one role. The typed errors are for the log and the audit table; the peer is told
`bad-cert` and no more. A common name is a word for people and decides nothing.
"""

from __future__ import annotations

import ipaddress
import re
import threading
import time
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from companions.asymmetric import EXPONENT, PublicKey
from program import reason_of
from protocol_fsm import ProtocolError

Role = Literal["client", "server"]
MAX_PEM = 16_384  # bytes
MAX_CERTIFICATES = 2  # in one PEM: a leaf and, at most, one between it and the authority
MIN_RSA_BITS = 2_048
MAX_RSA_BITS = 4_096  # verifying with a longer key is slow
SKEW = timedelta(minutes=5)  # between two clocks: certificates and lists are backdated by it
ADDRESS = re.compile(r"(?=.{3,254}\Z)[!-?A-~]+@[!-?A-~]+")  # no space, no second @
USAGES = {"client": ExtendedKeyUsageOID.CLIENT_AUTH, "server": ExtendedKeyUsageOID.SERVER_AUTH}
UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


# Errors -------------------------------------------------------------------------------------------


class BadCertificate(ProtocolError):
    """A certificate that is not accepted: `bad-cert` on the wire, the reason in the audit log."""


class Malformed(BadCertificate):
    """Not one or two certificates in PEM, of at most 16,384 bytes."""


class UnknownIssuer(BadCertificate):
    """Forged, self-signed, or issued by anything but our authority."""


class NotYetValid(BadCertificate):
    """Our clock is before the certificate's first moment."""


class Expired(BadCertificate):
    """Our clock is after the certificate's last moment."""


class UnknownExtension(BadCertificate):
    """It has a critical extension that we do not know, and so may not ignore."""


class WrongPurpose(BadCertificate):
    """Its extended key usage is missing, or not that of the role."""


class WrongName(BadCertificate):
    """It names another server, or no client, or more than one."""


class WeakKey(BadCertificate):
    """Its key is not RSA of 2,048 to 4,096 bits with the exponent 65,537."""


class Revoked(BadCertificate):
    """Its serial number is on the authority's list."""


class UnusableList(BadCertificate):
    """The revocation list is missing, malformed or forged, so nobody can be accepted."""


class StaleList(UnusableList):
    """The revocation list is not current: a newer one is due, or it is from the future."""


class RolledBackList(UnusableList):
    """A list older than one that we have seen, or another one with the same number."""


# What a certificate says --------------------------------------------------------------------------


@dataclass(frozen=True)
class Identity:
    """Someone whose certificate is valid: `fingerprint` is the SHA-256 (hex) of its DER."""

    name: str
    role: Role
    fingerprint: str
    certificate: x509.Certificate = field(repr=False)
    public_key: PublicKey = field(repr=False)


def utc_now() -> datetime:
    return datetime.now(timezone.utc)


def now_ms() -> int:
    """Return the Unix time in milliseconds, as it stands in messages."""
    return time.time_ns() // 1_000_000


def fold(name: str) -> str:
    """Return the one form of a name: NFKC, then case-folded, then NFKC again."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    return unicodedata.normalize("NFKC", folded)


def fingerprint_of(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex()


def parse_pem(pem: str) -> list[x509.Certificate]:
    """Return one or two certificates, unverified. Raises Malformed."""
    try:
        data = pem.encode("ascii")
        if len(data) > MAX_PEM:
            raise ValueError(f"{len(data)} bytes")
        certificates = x509.load_pem_x509_certificates(data)
    except UNREADABLE as error:
        raise Malformed("certificates in PEM", str(error)[:80]) from None
    if len(certificates) > MAX_CERTIFICATES:
        raise Malformed(f"at most {MAX_CERTIFICATES} certificates", len(certificates))
    return certificates


def alternative_names(certificate: x509.Certificate) -> list[x509.GeneralName]:
    """Return the names that decide; nothing if there are none."""
    with suppress(x509.ExtensionNotFound):
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        return list(found.value)
    return []


def client_name(certificate: x509.Certificate) -> str:
    """Return the one e-mail address that a client's certificate names. Raises WrongName."""
    names = alternative_names(certificate)
    if len(names) != 1 or not isinstance(names[0], x509.RFC822Name):
        raise WrongName("one e-mail address as the only name", _words(names))
    if not ADDRESS.fullmatch(names[0].value):
        raise WrongName("an e-mail address of at most 254 printable characters", _words(names))
    return fold(names[0].value)


def subject_of(name: str) -> verification.Subject:
    """Return a server's name as the library wants it. Raises ValueError for one not in ASCII."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def usages_of(certificate: x509.Certificate) -> list[x509.ObjectIdentifier]:
    """Return what the extended key usage allows; nothing if there is none."""
    with suppress(x509.ExtensionNotFound):
        return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    return []


def has_issued(issuer: x509.Certificate, one: x509.Certificate) -> bool:
    """Return whether the issuer's name is in a certificate, and its signature below it."""
    try:
        one.verify_directly_issued_by(issuer)
    except (*UNREADABLE, InvalidSignature):
        return False
    return True


def list_number(latest: x509.CertificateRevocationList) -> int:
    """Return the number of a list. Raises UnusableList."""
    try:
        return latest.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        raise UnusableList("a list with a number", "none") from None


def _words(names: list[x509.GeneralName]) -> str:
    return ", ".join(str(name.value) for name in names)[:80] or "none"


# Trust --------------------------------------------------------------------------------------------


class Trust:
    """What one end trusts: an authority and its newest list. All sessions share one, in any thread.

    `revocations` fetches the list's bytes (PEM) anew for each certificate, so that a revocation
    needs no restart. The highest list number seen is forgotten when the program ends. Each rule is
    a method of its own, so that the lab can remove it.
    """

    def __init__(self, ca_pem: bytes, revocations: Callable[[], bytes]) -> None:
        """Take the authority's certificate. Raises Malformed."""
        self.authority = parse_pem(ca_pem.decode("ascii", "replace"))[0]
        self._revocations = revocations
        self._lock = threading.Lock()
        self._newest: tuple[int, bytes] | None = None  # number and bytes of a list

    def verify(self, pem: str, role: Role, name: str | None, now: datetime) -> Identity:
        """Return whose certificate this is, at this moment. Raises BadCertificate.

        `name` is the server that the caller wants, or the client's address; None takes any.
        """
        identity = self.identify(pem, role, name, now)
        self.check_revocation(pem, now)
        return identity

    def identify(self, pem: str, role: Role, name: str | None, now: datetime) -> Identity:
        """Return whose certificate this is, revoked or not. Raises BadCertificate."""
        chain = parse_pem(pem)
        try:
            self._check_path(chain, role, now)
            key = self._check_key(chain[0])
            found = self._check_name(chain, role, name, now)
        except UNREADABLE as error:
            raise Malformed("readable extensions", str(error)[:80]) from None
        return Identity(found, role, fingerprint_of(chain[0]), chain[0], key)

    def check_revocation(self, pem: str, now: datetime) -> None:
        """Raise Revoked if one of these is on the current list, UnusableList without a list."""
        latest = self.revocation_list(now)
        for one in parse_pem(pem):
            if latest.get_revoked_certificate_by_serial_number(one.serial_number):
                name = one.subject.rfc4514_string()
                raise Revoked("a valid certificate", f"{name}, serial {one.serial_number:x}")

    def revocation_list(self, now: datetime) -> x509.CertificateRevocationList:
        """Return the list as it is now. Raises UnusableList.

        The lock includes the fetch, or a thread slow with an older list would see a rollback.
        """
        with self._lock:
            try:
                encoded = self._revocations()
            except OSError as error:
                raise UnusableList("a revocation list", reason_of(error)) from None
            latest = self.signed_list(encoded)
            self._check_list_number(latest, encoded)
            self._check_list_dates(latest, now)
            return latest

    def signed_list(self, encoded: bytes) -> x509.CertificateRevocationList:
        """Return our authority's list, of whatever date. Raises UnusableList."""
        try:
            latest = x509.load_pem_x509_crl(encoded)
            key = self._check_key(self.authority)
            if latest.issuer != self.authority.subject or not latest.is_signature_valid(key):
                raise UnusableList("a list signed by our authority", "another one")
            unknown = [one.oid.dotted_string for one in latest.extensions if one.critical]
            list_number(latest)
        except UNREADABLE as error:
            raise UnusableList("a revocation list in PEM", str(error)[:80]) from None
        if unknown:  # such as the one that marks a partial list
            raise UnusableList("no critical extension", unknown[0])
        return latest

    def _check_path(self, chain: list[x509.Certificate], role: Role, now: datetime) -> None:
        """Let the library judge path, dates, constraints, extensions, and the usage."""
        try:
            self._policy(role, now).build_client_verifier().verify(chain[0], chain[1:])
        except verification.VerificationError as error:
            raise self._diagnosis(chain[0], role, now, str(error)) from None

    def _policy(self, role: Role, now: datetime) -> verification.PolicyBuilder:
        return (
            verification.PolicyBuilder()
            .store(verification.Store([self.authority]))
            .time(now.astimezone(timezone.utc).replace(tzinfo=None))
            .extension_policies(
                ca_policy=verification.ExtensionPolicy.webpki_defaults_ca(),
                ee_policy=self._purpose_policy(role),
            )
        )

    def _purpose_policy(self, role: Role) -> verification.ExtensionPolicy:
        """Require an extended key usage, and in it that of the role."""

        def check(
            policy: verification.Policy, leaf: x509.Certificate, usage: x509.ExtendedKeyUsage
        ) -> None:
            if USAGES[role] not in usage:
                raise ValueError("the extended key usage is another role's")

        return verification.ExtensionPolicy.webpki_defaults_ee().require_present(
            x509.ExtendedKeyUsage, verification.Criticality.AGNOSTIC, check
        )

    def _check_key(self, leaf: x509.Certificate) -> PublicKey:
        key = leaf.public_key()
        if not isinstance(key, PublicKey):
            raise WeakKey("an RSA key", type(key).__name__)
        if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            raise WeakKey(f"{MIN_RSA_BITS} to {MAX_RSA_BITS} bits", key.key_size)
        if key.public_numbers().e != EXPONENT:
            raise WeakKey(f"the exponent {EXPONENT}", key.public_numbers().e)
        return key

    def _check_name(
        self, chain: list[x509.Certificate], role: Role, name: str | None, now: datetime
    ) -> str:
        """Return the name that was wanted, or the one that is there. Raises WrongName."""
        if role == "client":
            found = client_name(chain[0])
            if name is not None and fold(name) != found:
                raise WrongName(name, found)
            return found
        if name is None:
            return _words(alternative_names(chain[0]))
        try:
            verifier = self._policy(role, now).build_server_verifier(subject_of(name))
            verifier.verify(chain[0], chain[1:])
        except (verification.VerificationError, ValueError):  # the second: not a host's name
            raise WrongName(name, _words(alternative_names(chain[0]))) from None
        return name

    def _check_list_number(self, latest: x509.CertificateRevocationList, encoded: bytes) -> None:
        number = list_number(latest)
        known, seen = self._newest or (number, encoded)
        if number < known or (number == known and encoded != seen):
            raise RolledBackList(f"number {known}, and its list", number)
        self._newest = (number, encoded)

    def _check_list_dates(self, latest: x509.CertificateRevocationList, now: datetime) -> None:
        until = latest.next_update_utc
        if latest.last_update_utc > now:
            raise StaleList("a list of the past", f"one of {latest.last_update_utc:%Y-%m-%d %H:%M}")
        if until is None or until < now:
            raise StaleList("a list for today", f"one until {until}")

    def _diagnosis(
        self, leaf: x509.Certificate, role: Role, now: datetime, words: str
    ) -> BadCertificate:
        """Return why the library refuses a certificate: it says so in words only."""
        if not has_issued(self.authority, leaf):
            is_own = leaf.issuer == leaf.subject
            return UnknownIssuer("our authority", "itself" if is_own else "another one, or forged")
        if now < leaf.not_valid_before_utc:
            return NotYetValid(f"from {leaf.not_valid_before_utc}", now)
        if now > leaf.not_valid_after_utc:
            return Expired(f"until {leaf.not_valid_after_utc}", now)
        for extension in leaf.extensions:
            if extension.critical and isinstance(extension.value, x509.UnrecognizedExtension):
                return UnknownExtension("known critical extensions", extension.oid.dotted_string)
        if USAGES[role] not in usages_of(leaf):
            return WrongPurpose(f"the usage of a {role}", "none, or another one")
        if not alternative_names(leaf):
            return WrongName("a subject alternative name", "none")
        return BadCertificate("what RFC 5280 asks for", words[:120])
