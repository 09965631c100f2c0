"""Certificates, revocation lists, and what an end trusts [D 7].

Only the loaders at the end touch files. A peer's certificate is judged in the order of [D 7]: form;
issuer and signature; dates; role; revocation list. The list is read anew each time, so that a
revocation needs no restart, but judged only once: strangers can make us read it at any rate.
The newest list seen is forgotten when the program ends.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path

from companions.asymmetric import (
    SIGNATURE_BYTES,
    PrivateKey,
    PublicKey,
    is_signed,
    parse_public,
    public_pem,
    read_private,
    sign,
)
from companions.canonical import canonical, parse_canonical
from program import UserError, read_whole, reason_of
from protocol_fsm import ProtocolError

MAX_CERTIFICATE = 4_096  # bytes
CERTIFICATE_CONTEXT = "device_transfer v1 certificate"
LIST_CONTEXT = "device_transfer v1 revocation list"
CERTIFICATE_MEMBERS = dict.fromkeys(
    (
        "common_name",
        "issuer",
        "not_before",
        "not_after",
        "public_key",
        "role",
        "serial",
        "signature",
    ),
    str,
)
LIST_MEMBERS: Mapping[str, type] = {
    "issuer": str,
    "number": int,
    "this_update": str,
    "next_update": str,
    "revoked": list,
    "signature": str,
}
AUTHORITY_MEMBERS = {"common_name": str, "public_key": str}


class Role(Enum):
    DEVICE = "device"
    SERVER = "server"


# Errors -------------------------------------------------------------------------------------------


class MalformedCertificate(ProtocolError):
    """Not a certificate in its canonical encoding."""


class UntrustedCertificate(ProtocolError):
    """A certificate that is forged, or from another authority than ours."""


class CertificateNotYetValid(ProtocolError):
    """Our clock is before `not_before`."""


class CertificateExpired(ProtocolError):
    """Our clock is after `not_after`."""


class WrongRole(ProtocolError):
    """A device's certificate where a server's is needed, or the reverse."""


class CertificateRevoked(ProtocolError):
    """A certificate whose serial is on the revocation list."""


class RevocationListUnusable(ProtocolError):
    """The list is missing, malformed or forged, so that no certificate can be accepted."""


class RevocationListStale(RevocationListUnusable):
    """Our clock is after the list's `next_update`."""


class RevocationListRolledBack(RevocationListUnusable):
    """A list with a lower number than we have seen, or with the same number as another list."""


# Members ------------------------------------------------------------------------------------------


def utc_now() -> datetime:
    return datetime.now(timezone.utc)


def timestamp(moment: datetime) -> str:
    """Return text like 2026-01-31T12:00:00Z. Raises ValueError for a moment without a time zone."""
    if moment.tzinfo is None:
        raise ValueError("a moment needs a time zone")
    return moment.astimezone(timezone.utc).isoformat()[:19] + "Z"


def parse_timestamp(text: str) -> datetime:
    """Return the moment (UTC). Raises ValueError."""
    if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z", text):
        raise ValueError("a moment is written as 2026-01-31T12:00:00Z")
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)


def parse_common_name(text: str) -> str:
    """Return the name, which can also name a folder. Raises ValueError."""
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", text):
        raise ValueError("a common name is 1 to 64 letters, digits, '.', '_', '-', no '.' first")
    return text


def parse_serial(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{16}", text):
        raise ValueError("a serial is 16 hex digits")
    return text


def _parse_period(first: str, last: str) -> tuple[datetime, datetime]:
    begin = parse_timestamp(first)
    end = parse_timestamp(last)
    if begin > end:
        raise ValueError("it ends before it begins")
    return begin, end


def _check_signature_form(text: str) -> None:
    if not re.fullmatch(rf"[0-9a-f]{{{2 * SIGNATURE_BYTES}}}", text):
        raise ValueError(f"a signature is {SIGNATURE_BYTES} bytes in hex")


def _signed(authority: PrivateKey, context: str, members: Mapping[str, object]) -> bytes:
    signature = sign(authority, context, canonical(members)).hex()
    return canonical({**members, "signature": signature})


def _is_signed(authority: PublicKey, context: str, encoded: bytes) -> bool:
    """Return whether the authority signed this; the caller has parsed it."""
    members = json.loads(encoded)
    signature = bytes.fromhex(members.pop("signature"))
    return is_signed(authority, context, canonical(members), signature)


# Certificates -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Certificate:
    """What a certificate claims, and its bytes; Trust decides whether it holds."""

    common_name: str
    issuer: str
    not_before: datetime
    not_after: datetime
    public_key: PublicKey
    role: Role
    serial: str
    encoded: bytes = field(repr=False)


def parse_certificate(encoded: bytes) -> Certificate:
    """Return what at most 4,096 bytes claim. Raises MalformedCertificate."""
    if len(encoded) > MAX_CERTIFICATE:
        raise MalformedCertificate(f"at most {MAX_CERTIFICATE} bytes", len(encoded))
    try:
        members = parse_canonical(encoded, CERTIFICATE_MEMBERS)
        _check_signature_form(members["signature"])
        return Certificate(
            parse_common_name(members["common_name"]),
            parse_common_name(members["issuer"]),
            *_parse_period(members["not_before"], members["not_after"]),
            parse_public(members["public_key"]),
            Role(members["role"]),
            parse_serial(members["serial"]),
            encoded,
        )
    except ValueError as error:
        raise MalformedCertificate("a certificate", str(error)[:80]) from None  # a stranger's words


def issue(
    authority: PrivateKey,
    *,
    issuer: str,
    common_name: str,
    role: Role,
    public_key: PublicKey,
    not_before: datetime,
    not_after: datetime,
    serial: str,
) -> Certificate:
    """Return a new certificate. Raises MalformedCertificate for values that none may have."""
    return parse_certificate(
        _signed(
            authority,
            CERTIFICATE_CONTEXT,
            {
                "common_name": common_name,
                "issuer": issuer,
                "not_before": timestamp(not_before),
                "not_after": timestamp(not_after),
                "public_key": public_pem(public_key),
                "role": role.value,
                "serial": serial,
            },
        )
    )


# Revocation lists ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class RevocationList:
    """What a revocation list claims, and its bytes; Trust decides whether it holds."""

    issuer: str
    number: int
    this_update: datetime
    next_update: datetime
    revoked: frozenset[str]  # serials
    encoded: bytes = field(repr=False)


def parse_revocation_list(encoded: bytes) -> RevocationList:
    """Return what these bytes claim. Raises RevocationListUnusable."""
    try:
        members = parse_canonical(encoded, LIST_MEMBERS)
        _check_signature_form(members["signature"])
        if members["number"] < 1 or not all(isinstance(one, str) for one in members["revoked"]):
            raise ValueError("a number below 1, or a serial that is no string")
        revoked = frozenset(map(parse_serial, members["revoked"]))
        if members["revoked"] != sorted(revoked):
            raise ValueError("the serials are not sorted")
        return RevocationList(
            parse_common_name(members["issuer"]),
            members["number"],
            *_parse_period(members["this_update"], members["next_update"]),
            revoked,
            encoded,
        )
    except ValueError as error:
        raise RevocationListUnusable("a revocation list", str(error)) from None


def sign_revocation_list(
    authority: PrivateKey,
    *,
    issuer: str,
    number: int,
    this_update: datetime,
    next_update: datetime,
    revoked: Iterable[str],
) -> RevocationList:
    """Return a new list. Raises RevocationListUnusable for values that none may have."""
    return parse_revocation_list(
        _signed(
            authority,
            LIST_CONTEXT,
            {
                "issuer": issuer,
                "number": number,
                "this_update": timestamp(this_update),
                "next_update": timestamp(next_update),
                "revoked": sorted(set(revoked)),
            },
        )
    )


# Trust --------------------------------------------------------------------------------------------


class Trust:
    """What one end trusts. All its sessions share one, in whatever threads they run.

    `authority` and `issuer` are the key and the common name of the authority, `revocations`
    fetches the bytes of its list. Each rule is a method of its own, so that the lab can remove it.
    """

    def __init__(
        self,
        authority: PublicKey,
        issuer: str,
        revocations: Callable[[], bytes],
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.authority = authority
        self.issuer = issuer
        self._revocations = revocations
        self.now = now
        self._lock = threading.Lock()
        self._latest: RevocationList | None = None  # whose signature and number were right

    def check(self, encoded: bytes, role: Role) -> Certificate:
        """Return a valid certificate of that role. Raises a ProtocolError of this module."""
        certificate = parse_certificate(encoded)
        self._check_signature(certificate)
        self._check_dates(certificate)
        self._check_role(certificate, role)
        self._check_revocation(certificate)
        return certificate

    def revocation_list(self) -> RevocationList:
        """Return the list as it is now. Raises RevocationListUnusable.

        The lock includes the fetch, or a thread slow with an older list would see a rollback.
        """
        with self._lock:
            encoded = self._fetch()
            if self._latest is None or self._latest.encoded != encoded:
                latest = parse_revocation_list(encoded)
                self._check_list_signature(latest)
                self._check_list_number(latest)
                self._latest = latest
            self._check_list_date(self._latest)
            return self._latest

    def _check_signature(self, certificate: Certificate) -> None:
        if certificate.issuer != self.issuer:
            raise UntrustedCertificate(f"the issuer {self.issuer}", certificate.issuer)
        if not _is_signed(self.authority, CERTIFICATE_CONTEXT, certificate.encoded):
            raise UntrustedCertificate(f"a signature of {self.issuer}", "another one")

    def _check_dates(self, certificate: Certificate) -> None:
        now = self.now().replace(microsecond=0)  # certificates count in seconds
        if now < certificate.not_before:
            raise CertificateNotYetValid(
                f"from {timestamp(certificate.not_before)}", timestamp(now)
            )
        if now > certificate.not_after:
            raise CertificateExpired(f"until {timestamp(certificate.not_after)}", timestamp(now))

    def _check_role(self, certificate: Certificate, role: Role) -> None:
        if certificate.role is not role:
            raise WrongRole(role.value, certificate.role.value)

    def _check_revocation(self, certificate: Certificate) -> None:
        if certificate.serial in self.revocation_list().revoked:
            raise CertificateRevoked(None, f"{certificate.common_name}, {certificate.serial}")

    def _fetch(self) -> bytes:
        try:
            return self._revocations()
        except OSError as error:
            raise RevocationListUnusable("a revocation list", reason_of(error)) from None

    def _check_list_signature(self, latest: RevocationList) -> None:
        if latest.issuer != self.issuer:
            raise RevocationListUnusable(f"a list of {self.issuer}", latest.issuer)
        if not _is_signed(self.authority, LIST_CONTEXT, latest.encoded):
            raise RevocationListUnusable(f"a signature of {self.issuer}", "another one")

    def _check_list_date(self, latest: RevocationList) -> None:
        if self.now().replace(microsecond=0) > latest.next_update:
            raise RevocationListStale(f"a list later than {timestamp(latest.next_update)}", "none")

    def _check_list_number(self, latest: RevocationList) -> None:
        """Compare the number of another list than the one we have."""
        if self._latest and latest.number <= self._latest.number:
            number = self._latest.number
            raise RevocationListRolledBack(f"number {number}, and its list", latest.number)


# Files --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Identity:
    """The certificate of an end, and the key that proves it."""

    certificate: Certificate
    private_key: PrivateKey = field(repr=False)


def load_identity(folder: Path, ask: Callable[[str], str]) -> Identity:
    """Read private_key.pem and certificate.json; `ask` is given a prompt. Raises UserError."""
    try:
        certificate = parse_certificate(_read(folder / "certificate.json"))
    except MalformedCertificate as error:
        raise UserError(
            f"{folder / 'certificate.json'} is not a certificate: {error.got}"
        ) from None
    private_key = read_private(folder / "private_key.pem", ask)
    if public_pem(private_key.public_key()) != public_pem(certificate.public_key):
        raise UserError(f"the key in {folder} does not match the certificate in it")
    return Identity(certificate, private_key)


def load_trust(
    folder: Path, revocations: Path | None = None, now: Callable[[], datetime] = utc_now
) -> Trust:
    """Read authority.json; the list is at `revocations`, or next to the folder. UserError."""
    path = folder / "authority.json"
    try:
        members = parse_canonical(_read(path), AUTHORITY_MEMBERS)
        issuer = parse_common_name(members["common_name"])
        authority = members["public_key"]
        public_key = parse_public(authority)
    except ValueError as error:
        raise UserError(f"{path} names no authority: {error}") from None
    return Trust(
        public_key,
        issuer,
        (revocations or folder.resolve().parent / "revocation_list.json").read_bytes,
        now,
    )


def _read(path: Path) -> bytes:
    try:
        return read_whole(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}") from None
