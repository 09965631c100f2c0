"""The certificate authority: makes identities, certificates and revocation lists [D 7].

    python -m companions.device_transfer.ca create|issue|revoke|list|refresh PKI ...

The only program that uses the authority's private key; no end imports it. Everything it makes
appears whole or not at all. A folder PKI has

    revocation_list.json     the newest list, which the ends need
    NAME/                    an identity: private_key.pem, certificate.json, authority.json
    ca/                      the authority's own: private_key.pem, authority.json, number,
                             issued/SERIAL.json, revoked/SERIAL, and `lock` while a list is made
"""

from __future__ import annotations

import argparse
import contextlib
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Set
from datetime import datetime, timedelta, timezone
from pathlib import Path

from classroom.output import write_whole
from companions.asymmetric import PrivateKey, new_identity, public_pem, read_private, write_private
from companions.canonical import canonical
from companions.device_transfer import certificates
from companions.device_transfer.certificates import (
    Certificate,
    RevocationList,
    RevocationListUnusable,
    Role,
    Trust,
    load_trust,
    parse_certificate,
    parse_common_name,
    parse_timestamp,
    sign_revocation_list,
    timestamp,
    utc_now,
)
from companions.device_transfer.transfer import CLOCK_SKEW
from companions.locking import locked
from companions.terminal import ask_passphrase
from program import (
    Parser,
    UserError,
    escaped,
    flag_type,
    new_folder,
    positive,
    read_whole,
    reason_of,
    run_program,
)
from protocol_fsm import ProtocolError

NAME = "device-transfer-ca"
CERTIFICATE_DAYS = 365
LIST_DAYS = 7
SERIAL = re.compile("[0-9a-f]{16}")
MAX_PASSPHRASE = 1_023  # bytes that OpenSSL takes

Ask = Callable[[str], str]  # is given a prompt, and returns what is typed

# What it makes ------------------------------------------------------------------------------------


def create(pki: Path, name: str = NAME, passphrase: str = "") -> None:
    """Make the folder, with a new authority and its list number 1. Raises UserError."""
    _checked_name(name)
    with _new_folder(pki) as partial:
        key = new_identity()
        ca = partial / "ca"
        ca.mkdir(mode=0o700)
        for folder in ("issued", "revoked"):
            (ca / folder).mkdir()
        write_private(ca / "private_key.pem", key, passphrase)
        write_whole(
            ca / "authority.json",
            canonical({"common_name": name, "public_key": public_pem(key.public_key())}),
        )
        _publish(partial, key, name, LIST_DAYS)


def issue(
    pki: Path,
    common_name: str,
    role: Role,
    *,
    days: int = CERTIFICATE_DAYS,
    not_before: datetime | None = None,
    not_after: datetime | None = None,
    passphrase: str = "",
    ask: Ask | None = None,
) -> Certificate:
    """Make an identity in PKI/COMMON_NAME; a passphrase encrypts its key. Raises UserError."""
    now = utc_now()
    begin = not_before or now - CLOCK_SKEW  # for ends whose clocks are behind
    serial = secrets.token_hex(8)
    end = not_after or _after(not_before or now, days)
    if end < begin:
        raise UserError(f"a certificate cannot end at {timestamp(end)}, before it begins")
    folder = pki / _checked_name(common_name)
    record = pki / "ca" / "issued" / f"{serial}.json"
    try:
        with _new_folder(folder) as partial:
            trust, authority_key = _authority(pki, ask)
            key = new_identity()
            certificate = certificates.issue(
                authority_key,
                issuer=trust.issuer,
                common_name=common_name,
                role=role,
                public_key=key.public_key(),
                not_before=begin,
                not_after=end,
                serial=serial,
            )
            write_private(partial / "private_key.pem", key, passphrase)
            write_whole(partial / "certificate.json", certificate.encoded)
            shutil.copyfile(pki / "ca" / "authority.json", partial / "authority.json")
            write_whole(record, certificate.encoded)  # first: every certificate can be revoked
    except BaseException:
        _forget(record, folder)
        raise
    return certificate


def _forget(record: Path, folder: Path) -> None:
    """Remove the record of a certificate, unless the folder already has that certificate."""
    made = folder / "certificate.json"
    with contextlib.suppress(OSError):
        if not made.exists() or made.read_bytes() != record.read_bytes():
            record.unlink()


def revoke(pki: Path, who: str, *, ask: Ask | None = None) -> RevocationList:
    """Revoke the certificate of this serial or common name, in a new list. Raises UserError."""
    issued = issued_certificates(pki)
    serials = [one.serial for one in issued if who in (one.serial, one.common_name)]
    if not serials:
        raise UserError(f"no certificate of {pki} has the serial or the name {who!r}")
    if len(serials) > 1:
        raise UserError(f"give one of the serials of {who!r}: {', '.join(serials)}")
    if serials[0] in _listed_serials(pki):
        raise UserError(f"{who!r} is revoked already")
    trust, key = _authority(pki, ask)
    with locked(pki / "ca" / "lock"):
        write_whole(pki / "ca" / "revoked" / serials[0], b"")
        return _publish(pki, key, trust.issuer, LIST_DAYS)


def refresh(pki: Path, days: int = LIST_DAYS, *, ask: Ask | None = None) -> RevocationList:
    """Sign the list anew, good for `days` from now. Raises UserError."""
    trust, key = _authority(pki, ask)
    with locked(pki / "ca" / "lock"):
        return _publish(pki, key, trust.issuer, days)


def _publish(pki: Path, key: PrivateKey, issuer: str, days: int) -> RevocationList:
    """Replace the list by one with all revoked serials and the next number.

    All that the list before had stay revoked, even if the folder was restored from an older copy.
    """
    before = _published(pki)
    number = max(_last_number(pki), before.number if before else 0) + 1
    for serial in _listed_serials(pki):
        (pki / "ca" / "revoked" / serial).touch()
    now = utc_now()
    latest = sign_revocation_list(
        key,
        issuer=issuer,
        number=number,
        this_update=now,
        next_update=_after(now, days),
        revoked=revoked_serials(pki),
    )
    write_whole(pki / "ca" / "number", b"%d" % number)  # first: no number is used twice
    write_whole(pki / "revocation_list.json", latest.encoded)
    return latest


# What there is ------------------------------------------------------------------------------------


def issued_certificates(pki: Path) -> list[Certificate]:
    """Return all that were ever issued, sorted by name and date. Raises UserError."""
    found = []
    for path in _files(pki / "ca" / "issued", ".json"):
        try:
            found.append(parse_certificate(read_whole(path)))
        except OSError as error:
            raise UserError(f"cannot read {path}: {reason_of(error)}") from None
        except ProtocolError as error:
            raise UserError(f"{path} is not a certificate: {error.got}") from None
    return sorted(found, key=lambda one: (one.common_name, one.not_before, one.serial))


def revoked_serials(pki: Path) -> set[str]:
    """Return the revoked serials; files with other names are not ours. Raises UserError."""
    names = {path.name for path in _files(pki / "ca" / "revoked")}
    return {name for name in names if SERIAL.fullmatch(name)} | _listed_serials(pki)


def table(pki: Path, now: datetime) -> list[str]:
    """Return lines of at most 79 columns: certificates, and the list. Raises UserError."""
    revoked = revoked_serials(pki)
    listed = _listed_serials(pki)
    row = "{:<16}  {:<20}  {:<6}  {:<16}  {}".format
    lines = [row("serial", "name", "role", "valid until, UTC", "status")]
    for one in issued_certificates(pki):
        name = one.common_name if len(one.common_name) <= 20 else f"{one.common_name[:18]}.."
        until = f"{one.not_after:%Y-%m-%d %H:%M}"
        status = _status_of(one, revoked, listed, now)
        lines.append(row(one.serial, name, one.role.value, until, status))
    try:
        latest = load_trust(pki / "ca").revocation_list()
        lines.append(
            f"revocation list: number {latest.number}, "
            f"next update {latest.next_update:%Y-%m-%d %H:%M} UTC"
        )
    except RevocationListUnusable as error:
        lines.append(f"revocation list: {error}"[:79])
    return lines


def _status_of(certificate: Certificate, revoked: set[str], listed: Set[str], now: datetime) -> str:
    if certificate.serial in revoked:
        return "revoked" if certificate.serial in listed else "revoked, not listed"
    if now > certificate.not_after:
        return "expired"
    if now < certificate.not_before:
        return "not yet valid"
    return "valid"


def _files(folder: Path, suffix: str = "") -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.suffix == suffix]
    except OSError as error:
        raise UserError(f"cannot read {folder}: {reason_of(error)}") from None


def _published(pki: Path) -> RevocationList | None:
    """Return the newest list that the authority signed, however stale; none if it is lost."""
    long_ago = datetime.min.replace(tzinfo=timezone.utc)
    try:
        return load_trust(pki / "ca", now=lambda: long_ago).revocation_list()
    except RevocationListUnusable:
        return None


def _listed_serials(pki: Path) -> Set[str]:
    latest = _published(pki)
    return latest.revoked if latest else frozenset()


def _last_number(pki: Path) -> int:
    path = pki / "ca" / "number"
    try:
        return int(read_whole(path))
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise UserError(f"cannot read the list's number in {path}: {reason_of(error)}") from None
    except ValueError:  # whose words show what is there
        raise UserError(f"cannot read the list's number in {path}: it is none") from None


def _authority(pki: Path, ask: Ask | None) -> tuple[Trust, PrivateKey]:
    """Return the trust in the authority, and its key. Raises UserError."""
    trust = load_trust(pki / "ca")
    key = read_private(pki / "ca" / "private_key.pem", ask or ask_passphrase)
    if public_pem(key.public_key()) != public_pem(trust.authority):
        raise UserError(f"the key in {pki / 'ca'} does not match the authority in it")
    return trust, key


def _checked_name(name: str) -> str:
    try:
        if SERIAL.fullmatch(name):
            raise ValueError("16 hex digits are a serial, and could revoke another certificate")
        return parse_common_name(name)
    except ValueError as error:
        raise UserError(f"{name!r} is not a valid name: {error}") from None


def _after(moment: datetime, days: int) -> datetime:
    try:
        return moment + timedelta(days=days)
    except OverflowError:
        raise UserError(f"{days} days are too many") from None


# All or nothing -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to fill, which becomes `folder` if nothing fails. Raises UserError."""
    try:
        with new_folder(folder) as partial:
            yield partial
    except OSError as error:
        raise UserError(f"cannot make {folder}: {reason_of(error)}") from None


# The program --------------------------------------------------------------------------------------


def new_passphrase(what: str) -> str:
    """Ask twice for a passphrase for a new key. Raises UserError."""
    passphrase = ask_passphrase(f"new passphrase for {what}: ")
    if not 1 <= len(passphrase.encode()) <= MAX_PASSPHRASE:
        raise UserError(f"a passphrase has 1 to {MAX_PASSPHRASE} bytes")
    if ask_passphrase("the same again: ") != passphrase:
        raise UserError("these were two different passphrases")
    return passphrase


@flag_type("a time in UTC like 2026-01-31T12:00:00Z")
def moment(text: str) -> datetime:
    return parse_timestamp(text)


def parse_arguments() -> argparse.Namespace:
    parser = Parser("The certificate authority of the device transfer.")
    commands = parser.add_subparsers(dest="command", required=True)
    about = {
        "create": "make a folder with a new authority",
        "issue": "make an identity",
        "revoke": "revoke a certificate",
        "list": "show what was issued",
        "refresh": "sign the revocation list anew",
    }
    command = {name: commands.add_parser(name, help=text) for name, text in about.items()}
    for one in command.values():
        one.add_argument("pki", type=Path, metavar="PKI", help="the authority's folder")
    for name in ("create", "issue"):
        command[name].add_argument(
            "--passphrase", action="store_true", help="ask for a passphrase, to encrypt the new key"
        )
    command["create"].add_argument("--name", default=NAME, help=f"default {NAME}")
    command["issue"].add_argument("common_name", metavar="COMMON_NAME")
    command["issue"].add_argument("--role", required=True, choices=[one.value for one in Role])
    for name, days in (("issue", CERTIFICATE_DAYS), ("refresh", LIST_DAYS)):
        command[name].add_argument("--days", type=positive, default=days, help=f"default {days}")
    for flag in ("--not-before", "--not-after"):
        command["issue"].add_argument(flag, type=moment, metavar="2026-01-31T12:00:00Z")
    command["revoke"].add_argument("who", metavar="SERIAL_OR_NAME")
    return parser.options()


def main() -> int:
    options = parse_arguments()
    pki: Path = options.pki
    if options.command == "list":
        print("\n".join(table(pki, utc_now())))
    elif options.command == "create":
        create(pki, options.name, new_passphrase(f"the key of {pki}") if options.passphrase else "")
        print(f"made {escaped(str(pki))}; keep its folder ca secret")
    elif options.command == "issue":
        passphrase = (
            new_passphrase(f"the key of {options.common_name}") if options.passphrase else ""
        )
        made = issue(
            pki,
            options.common_name,
            Role(options.role),
            days=options.days,
            not_before=options.not_before,
            not_after=options.not_after,
            passphrase=passphrase,
        )
        print(f"made {escaped(str(pki / made.common_name))}: certificate {made.serial}")
    else:
        latest = (
            revoke(pki, options.who) if options.command == "revoke" else refresh(pki, options.days)
        )
        print(
            f"revocation list: number {latest.number}, {len(latest.revoked)} revoked, "
            f"next update {latest.next_update:%Y-%m-%d %H:%M} UTC"
        )
    return 0


if __name__ == "__main__":
    run_program(main)
