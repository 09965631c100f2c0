"""secure_chat: certificates and lists, each fault refused with its own error."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from companions.asymmetric import PrivateKey
from companions.locking import locked
from companions.secure_chat import authority, gen_ca, gen_cert, pki, revoke
from companions.secure_chat.authority import pem_of
from companions.secure_chat.certs import load_credentials, load_trust
from companions.secure_chat.pins import Pins
from program import MIB, UserError
from tests.cases import case
from tests.companions.chat_helpers import (
    ALICE,
    BOB,
    DAY,
    NOW,
    Authority,
    authority_below,
    changed,
)

Keys = list[PrivateKey]


@pytest.fixture
def school(keys: Keys) -> Authority:
    return Authority(keys[0])


# Good ones ----------------------------------------------------------------------------------------


def test_clients_identity_is_its_one_address(school: Authority, keys: Keys) -> None:
    alice = school.issue("client", "Alice@Example.org", keys[1])
    found = school.trust().verify(alice.pem, "client", None, NOW)
    assert (found.name, found.role, found.fingerprint) == (ALICE, "client", alice.fingerprint)
    shown = f"Identity(name={ALICE!r}, role='client', fingerprint={alice.fingerprint!r})"
    assert repr(found) == shown
    assert found.public_key.public_numbers() == keys[1].public_key().public_numbers()


def test_address_in_capitals_is_the_same_client(school: Authority, keys: Keys) -> None:
    made = spoilt(school, keys, **named(x509.RFC822Name(ALICE.upper())))
    assert school.trust().verify(made, "client", ALICE, NOW).name == ALICE


def test_limits_are_those_of_readme(school: Authority, keys: Keys) -> None:
    """A modulus needs no primes here: the keys sign nothing."""
    assert timedelta(minutes=5) == pki.SKEW
    trust = school.trust()
    for bits, is_good in ((2_047, False), (2_048, True), (4_096, True), (4_097, False)):
        key = rsa.RSAPublicNumbers(65_537, (1 << bits) - 1).public_key()
        made = spoilt(school, keys, public_key=key)
        with case(bits), nullcontext() if is_good else pytest.raises(pki.WeakKey):
            trust.verify(made, "client", ALICE, NOW)
    longest = of_alice(school, keys).ljust(16_384, "\n")
    assert len(pki.parse_pem(longest)) == 1
    with pytest.raises(pki.Malformed):
        pki.parse_pem(longest + "\n")


def test_time_in_messages_is_unix_time_in_milliseconds() -> None:
    before = time.time_ns()
    assert before // 10**6 <= pki.now_ms() <= time.time_ns() // 10**6


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1"])
def test_localhost_is_found_under_its_addresses(school: Authority, keys: Keys, name: str) -> None:
    server = school.issue("server", "localhost", keys[1])
    trust = school.trust()
    assert trust.verify(server.pem, "server", name, NOW).name == name
    assert trust.verify(server.pem, "server", None, NOW).name == "localhost, 127.0.0.1, ::1"


@pytest.mark.parametrize("name", ["192.0.2.7", "chat.example.org"])
def test_server_can_be_an_address_or_a_host(school: Authority, keys: Keys, name: str) -> None:
    server = school.issue("server", name, keys[1])
    assert school.trust().verify(server.pem, "server", name, NOW).name == name


def test_clocks_may_differ_by_the_skew(school: Authority, keys: Keys) -> None:
    alice = school.issue("client", ALICE, keys[1])
    school.trust().verify(alice.pem, "client", ALICE, NOW - pki.SKEW)
    with pytest.raises(pki.NotYetValid):
        school.trust().verify(alice.pem, "client", ALICE, NOW - pki.SKEW - timedelta(seconds=1))


# Bad certificates ---------------------------------------------------------------------------------

Maker = Callable[[Authority, Keys], str]
SAN = (x509.SubjectAlternativeName,)


def certificate_of(school: Authority, keys: Keys) -> x509.Certificate:
    return school.issue("client", ALICE, keys[1]).certificate


def spoilt(school: Authority, keys: Keys, **changes: Any) -> str:
    """Return a certificate that the authority has signed, with changes."""
    return pem(changed(certificate_of(school, keys), keys[0], **changes))


def pem(made: x509.Certificate) -> str:
    return pem_of(made).decode("ascii")


def named(*names: x509.GeneralName) -> dict[str, Any]:
    """Return the change that gives a certificate these names only."""
    return {"without": SAN, "extra": [(x509.SubjectAlternativeName(names), False)]}


def of_alice(school: Authority, keys: Keys) -> str:
    return pem(certificate_of(school, keys))


def self_signed(school: Authority, keys: Keys) -> str:
    made = certificate_of(school, keys)
    return pem(changed(made, keys[1], issuer=made.subject))


def of_another_authority(school: Authority, keys: Keys) -> str:
    return of_alice(Authority(keys[2], "Another"), keys)


def issued_by_a_leaf(school: Authority, keys: Keys) -> str:
    bob = school.issue("client", BOB, keys[1])
    alice = school.issue("client", ALICE, keys[2]).certificate
    return pem(changed(alice, keys[1], issuer=bob.certificate.subject)) + bob.pem


def issued_by_an_authority_below(school: Authority, keys: Keys) -> str:
    below = authority.authority_certificate(keys[1], NOW, name="Below")
    signed = changed(below, keys[0], issuer=school.certificate.subject)
    alice = school.issue("client", ALICE, keys[2]).certificate
    without = (x509.AuthorityKeyIdentifier,)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[1].public_key())
    extra = [(identifier, False)]
    return pem(changed(alice, keys[1], issuer=below.subject, without=without, extra=extra)) + pem(
        signed
    )


def with_a_usage_of_e_mail(school: Authority, keys: Keys) -> str:
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
    return spoilt(school, keys, without=(x509.ExtendedKeyUsage,), extra=[(usage, False)])


def with_two_names(school: Authority, keys: Keys) -> str:
    return spoilt(school, keys, **named(x509.RFC822Name(ALICE), x509.RFC822Name(BOB)))


def with_a_small_exponent(school: Authority, keys: Keys) -> str:
    modulus = keys[1].public_key().public_numbers().n
    cubed = rsa.RSAPublicNumbers(3, modulus).public_key()
    return spoilt(school, keys, public_key=cubed)


def that_says_it_is_an_authority(school: Authority, keys: Keys) -> str:
    """No end may be one."""
    constraints = x509.BasicConstraints(ca=True, path_length=None)
    return spoilt(school, keys, without=(x509.BasicConstraints,), extra=[(constraints, True)])


UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
UNREADABLE = x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, b"nonsense")

BAD: dict[str, tuple[type[pki.BadCertificate], Maker]] = {
    "expired": (
        pki.Expired,
        lambda school, keys: school.issue("client", ALICE, keys[1], now=NOW - 3 * DAY, days=2).pem,
    ),
    "not yet valid": (
        pki.NotYetValid,
        lambda school, keys: school.issue("client", ALICE, keys[1], now=NOW + DAY).pem,
    ),
    "signed by itself": (pki.UnknownIssuer, self_signed),
    "another authority": (pki.UnknownIssuer, of_another_authority),
    "another authority with our name": (
        pki.UnknownIssuer,
        lambda school, keys: of_alice(Authority(keys[2]), keys),
    ),
    "issued by a leaf": (pki.UnknownIssuer, issued_by_a_leaf),
    "issued by an authority below": (pki.UnknownIssuer, issued_by_an_authority_below),
    "of a server": (
        pki.WrongPurpose,
        lambda school, keys: school.issue("server", "localhost", keys[1]).pem,
    ),
    "no usage": (
        pki.WrongPurpose,
        lambda school, keys: spoilt(school, keys, without=(x509.ExtendedKeyUsage,)),
    ),
    "usage of e-mail": (pki.WrongPurpose, with_a_usage_of_e_mail),
    "no names": (pki.WrongName, lambda school, keys: spoilt(school, keys, without=SAN)),
    "two names": (pki.WrongName, with_two_names),
    "a link as its name": (
        pki.WrongName,
        lambda school, keys: spoilt(school, keys, **named(x509.UniformResourceIdentifier(ALICE))),
    ),
    "unreadable names": (
        pki.Malformed,
        lambda school, keys: spoilt(school, keys, without=SAN, extra=[(UNREADABLE, False)]),
    ),
    "of bob": (pki.WrongName, lambda school, keys: school.issue("client", BOB, keys[1]).pem),
    "short key": (
        pki.WeakKey,
        lambda school, keys: spoilt(
            school, keys, public_key=rsa.generate_private_key(65_537, 1_024).public_key()
        ),
    ),
    "small exponent": (pki.WeakKey, with_a_small_exponent),
    "unknown critical extension": (
        pki.UnknownExtension,
        lambda school, keys: spoilt(school, keys, extra=[(UNKNOWN, True)]),
    ),
    "says it is an authority": (pki.BadCertificate, that_says_it_is_an_authority),
    "nothing": (pki.Malformed, lambda school, keys: ""),
    "half of one": (pki.Malformed, lambda school, keys: of_alice(school, keys)[:600]),
    "no ASCII": (pki.Malformed, lambda school, keys: "\xe4" + of_alice(school, keys)),
    "three": (pki.Malformed, lambda school, keys: of_alice(school, keys) * 3),
    "very long": (pki.Malformed, lambda school, keys: of_alice(school, keys) + "\n" * pki.MAX_PEM),
}


@pytest.mark.parametrize(("error", "make"), BAD.values(), ids=BAD)
def test_bad_certificate_is_refused_with_its_reason(
    school: Authority, keys: Keys, error: type[pki.BadCertificate], make: Maker
) -> None:
    with pytest.raises(pki.BadCertificate) as caught:
        school.trust().verify(make(school, keys), "client", ALICE, NOW)
    assert type(caught.value) is error, caught.value


def test_fault_is_told_at_the_first_and_the_last_moment_too(school: Authority, keys: Keys) -> None:
    """An unknown extension is no fault as long as it is not critical."""
    made = certificate_of(school, keys)
    other = changed(made, keys[0], without=(x509.ExtendedKeyUsage,), extra=[(UNKNOWN, False)])
    for moment in (made.not_valid_before_utc, made.not_valid_after_utc):
        with pytest.raises(pki.WrongPurpose):
            school.trust().identify(pem(other), "client", ALICE, moment)


def test_log_says_what_was_found_and_not_more_than_a_line(school: Authority, keys: Keys) -> None:
    long = f"{'x' * 60}@example.org"
    two_long = spoilt(school, keys, **named(x509.RFC822Name(long), x509.RFC822Name(BOB)))
    for other, got in (
        (self_signed(school, keys), "itself"),
        (of_another_authority(school, keys), "another one, or forged"),
        (with_two_names(school, keys), f"{ALICE}, {BOB}"),
        (two_long, f"{long}, {BOB}"[:80]),
    ):
        with pytest.raises(pki.BadCertificate) as caught:
            school.trust().identify(other, "client", ALICE, NOW)
        assert caught.value.got == got
    with pytest.raises(pki.BadCertificate) as caught:
        school.trust().identify(that_says_it_is_an_authority(school, keys), "client", ALICE, NOW)
    assert len(str(caught.value.got)) == 120
    with pytest.raises(pki.WrongName) as wrong:
        pki.client_name(changed(certificate_of(school, keys), keys[0], without=SAN))
    assert wrong.value.got == "none"


def test_certificate_without_rsa_is_refused(school: Authority, keys: Keys) -> None:
    made = school.issue("client", ALICE, keys[1]).certificate
    builder = x509.CertificateBuilder(
        made.issuer,
        made.subject,
        ec.generate_private_key(ec.SECP256R1()).public_key(),
        made.serial_number,
        made.not_valid_before_utc.replace(tzinfo=None),
        made.not_valid_after_utc.replace(tzinfo=None),
        list(made.extensions),
    )
    other = builder.sign(keys[0], hashes.SHA256())
    with pytest.raises(pki.WeakKey) as caught:
        school.trust().verify(pem(other), "client", ALICE, NOW)
    assert caught.value.expected == "an RSA key"


@pytest.mark.parametrize("name", ["example.org", "localhost.example.org", "not a name", "", "ä"])
def test_server_with_another_name_is_refused(school: Authority, keys: Keys, name: str) -> None:
    server = school.issue("server", "localhost", keys[1])
    with pytest.raises(pki.WrongName):
        school.trust().verify(server.pem, "server", name, NOW)


def test_client_cannot_pose_as_a_server(school: Authority, keys: Keys) -> None:
    """The library's own rule for the usage goes when another is given in its place."""
    other = spoilt(school, keys, **named(x509.DNSName("localhost")))
    with pytest.raises(pki.WrongPurpose):
        school.trust().verify(other, "server", "localhost", NOW)


def test_any_changed_byte_of_a_certificate_is_refused(school: Authority, keys: Keys) -> None:
    alice = school.issue("client", ALICE, keys[1])
    lines = alice.pem.splitlines()
    trust = school.trust()
    for number in range(1, len(lines) - 1):
        line = lines[number]
        other = "B" if line[10] == "A" else "A"
        edited = [*lines[:number], line[:10] + other + line[11:], *lines[number + 1 :]]
        with pytest.raises(pki.BadCertificate):
            trust.verify("\n".join(edited) + "\n", "client", ALICE, NOW)


# Lists --------------------------------------------------------------------------------------------


def test_revocation_needs_no_restart(school: Authority, keys: Keys) -> None:
    alice = school.issue("client", ALICE, keys[1])
    trust = school.trust()
    trust.verify(alice.pem, "client", ALICE, NOW)
    school.revoke([alice.certificate])
    with pytest.raises(pki.Revoked):
        trust.verify(alice.pem, "client", ALICE, NOW)
    renewed = school.issue("client", ALICE, keys[1])
    assert trust.verify(renewed.pem, "client", ALICE, NOW).name == ALICE


def test_revoked_authority_below_ours_lets_nobody_in(school: Authority, keys: Keys) -> None:
    """Ours issues none, but another authority may."""
    below = authority_below(school, keys[1])
    leaf = authority.certificate(keys[1], below, "client", ALICE, keys[2].public_key(), NOW)
    chain = (pem_of(leaf) + pem_of(below)).decode()
    trust = school.trust()
    assert trust.verify(chain, "client", ALICE, NOW).name == ALICE
    leaf = authority.certificate(keys[1], below, "server", "localhost", keys[2].public_key(), NOW)
    served = (pem_of(leaf) + pem_of(below)).decode()
    assert trust.verify(served, "server", "localhost", NOW).name == "localhost"
    school.revoke([below])
    with pytest.raises(pki.Revoked, match="CN=Below"):
        trust.verify(chain, "client", ALICE, NOW)


def refuse(school: Authority, keys: Keys, trust: pki.Trust, kind: type[Exception]) -> None:
    alice = school.issue("client", ALICE, keys[1])
    with pytest.raises(pki.UnusableList) as caught:
        trust.verify(alice.pem, "client", ALICE, NOW)
    assert type(caught.value) is kind


def test_stale_list_lets_nobody_in(school: Authority, keys: Keys) -> None:
    school.publish(now=NOW - 7 * DAY, days=7)
    school.trust().revocation_list(NOW)  # its last moment
    school.publish(now=NOW - 7 * DAY - timedelta(seconds=1), days=7)
    refuse(school, keys, school.trust(), pki.StaleList)


def test_list_that_is_never_due_lets_nobody_in(school: Authority, keys: Keys) -> None:
    """The library makes none: its date is cut out of one, and the list is signed anew."""

    def value(tag: int, content: bytes) -> bytes:
        size = len(content)
        long_form = bytes([0x82]) + size.to_bytes(2, "big")
        return bytes([tag]) + (bytes([size]) if size < 128 else long_form) + content

    made = x509.load_pem_x509_crl(school.list)
    tbs = made.tbs_certlist_bytes
    date = b"\x17\x0d" + f"{made.next_update_utc:%y%m%d%H%M%SZ}".encode()
    signed = value(0x30, tbs[3:].replace(date, b""))
    algorithm = made.public_bytes(Encoding.DER).partition(tbs)[2][: -len(made.signature) - 5]
    signature = value(0x03, bytes(1) + keys[0].sign(signed, padding.PKCS1v15(), hashes.SHA256()))
    school.list = pem_of(x509.load_der_x509_crl(value(0x30, signed + algorithm + signature)))
    assert school.trust().signed_list(school.list).next_update_utc is None
    refuse(school, keys, school.trust(), pki.StaleList)


def test_list_of_the_future_lets_nobody_in(school: Authority, keys: Keys) -> None:
    school.publish(now=NOW + DAY)
    refuse(school, keys, school.trust(), pki.StaleList)


def test_older_list_after_a_newer_one_lets_nobody_in(school: Authority, keys: Keys) -> None:
    trust = school.trust()
    for number in (1, 7):
        school.publish(number=number)
        trust.revocation_list(NOW)
    school.publish(number=6)
    refuse(school, keys, trust, pki.RolledBackList)


def test_other_list_with_the_same_number_lets_nobody_in(school: Authority, keys: Keys) -> None:
    trust = school.trust()
    trust.revocation_list(NOW)
    school.publish(days=6)
    refuse(school, keys, trust, pki.RolledBackList)


def test_list_of_another_authority_lets_nobody_in(school: Authority, keys: Keys) -> None:
    for other in (Authority(keys[2]), Authority(keys[0], "Another")):
        school.list = other.list
        refuse(school, keys, school.trust(), pki.UnusableList)


@pytest.mark.parametrize("data", [b"", b"no list", b"-----BEGIN X509 CRL-----\nAAAA\n"])
def test_something_else_than_a_list_lets_nobody_in(
    school: Authority, keys: Keys, data: bytes
) -> None:
    school.list = data
    refuse(school, keys, school.trust(), pki.UnusableList)


def test_missing_list_lets_nobody_in(school: Authority, keys: Keys, tmp_path: Path) -> None:
    trust = pki.Trust(pem_of(school.certificate), (tmp_path / "none.pem").read_bytes)
    refuse(school, keys, trust, pki.UnusableList)


def test_list_without_a_number_or_with_a_part_of_the_serials_lets_nobody_in(
    school: Authority, keys: Keys
) -> None:
    parts = x509.IssuingDistributionPoint(None, None, True, False, None, False, False)
    for extensions in ([], [(x509.CRLNumber(1), False), (parts, True)]):
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(school.certificate.subject)
            .last_update(NOW - DAY)
            .next_update(NOW + DAY)
        )
        for value, is_critical in extensions:
            builder = builder.add_extension(value, is_critical)
        school.list = pem_of(builder.sign(keys[0], hashes.SHA256()))
        refuse(school, keys, school.trust(), pki.UnusableList)
        with pytest.raises(pki.UnusableList):
            school.trust().signed_list(school.list)


def test_list_is_fetched_by_one_thread_at_a_time(school: Authority) -> None:
    def fetch() -> bytes:
        held.append(trust._lock.locked())
        return school.list

    held: list[bool] = []
    trust = pki.Trust(pem_of(school.certificate), fetch)
    trust.revocation_list(NOW)
    assert held == [True]


# Programs' files ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_files_have_the_documents_names_and_keys_are_private(certs: Path) -> None:
    gen_cert.issue(certs, "client", "localhost", "client")
    gen_cert.issue(certs, "server", "localhost", "server")
    keys = {f"{name}_private_key.pem" for name in ("ca", "client", "server")}
    certificates = {f"{name}_cert.pem" for name in ("ca", "client", "server")}
    assert {path.name for path in certs.iterdir()} == keys | certificates | {"ca_crl.pem"}
    if os.name == "posix":
        assert {(certs / name).stat().st_mode & 0o777 for name in keys} == {0o600}
    own = load_credentials(certs, "client")
    assert load_trust(certs).verify(own.pem, "client", None, pki.utc_now()).name == (
        "client@localhost"
    )


@pytest.mark.slow
def test_nothing_is_overwritten(certs: Path) -> None:
    gen_cert.issue(certs, "client", ALICE, "alice")
    before = {path: path.read_bytes() for path in certs.iterdir()}
    with pytest.raises(UserError, match="already"):
        gen_ca.create(certs)
    with pytest.raises(UserError, match="already"):
        gen_cert.issue(certs, "client", BOB, "alice")
    with pytest.raises(UserError, match="no certificate for"):
        gen_cert.issue(certs, "client", "zoë@example.org", "zoe")
    with pytest.raises(UserError, match="file's name"):
        gen_cert.issue(certs, "client", ALICE, "../alice")
    assert {path: path.read_bytes() for path in certs.iterdir()} == before


@pytest.mark.parametrize(
    ("role", "name"),
    [
        ("server", "http://localhost"),
        ("server", ""),
        ("client", "a b@example.org"),
        ("client", "a@b\n@example.org"),
        ("client", f"alice@{'x' * 250}"),
    ],
)
def test_certificate_that_nobody_would_accept_is_not_issued(
    certs: Path, role: pki.Role, name: str
) -> None:
    before = sorted(certs.iterdir())
    with pytest.raises(UserError, match="no certificate for"):
        gen_cert.issue(certs, role, name, "some")
    assert sorted(certs.iterdir()) == before


@pytest.mark.slow
def test_revoked_certificate_stays_on_every_later_list(certs: Path) -> None:
    made = gen_cert.issue(certs, "client", ALICE, "alice")
    serial = revoke.serial_of(certs, str(certs / "alice_cert.pem"))
    assert serial == made.serial_number == revoke.serial_of(certs, f"{serial:x}")
    assert pki.list_number(revoke.renew(certs, [serial])) == 2
    latest = revoke.renew(certs, [serial])
    assert [one.serial_number for one in latest] == [serial]
    with pytest.raises(pki.Revoked):
        load_trust(certs).verify(
            load_credentials(certs, "alice").pem, "client", ALICE, pki.utc_now()
        )


@pytest.mark.parametrize("which", ["0", "f" * 40])
def test_number_that_no_certificate_can_have_is_not_revoked(certs: Path, which: str) -> None:
    with pytest.raises(UserError, match="no serial number"):
        revoke.serial_of(certs, which)


def test_certificate_that_is_named_twice_is_revoked_once(certs: Path) -> None:
    assert revoke.serial_of(certs, "AB") == 0xAB
    assert [one.serial_number for one in revoke.renew(certs, [0xAB, 0xAB])] == [0xAB]


@pytest.mark.slow
def test_two_lists_are_not_made_at_once(certs: Path) -> None:
    before = (certs / "ca_crl.pem").read_bytes()
    with locked(certs / "ca_crl.lock"):
        with pytest.raises(UserError, match="another program is making a list"):
            revoke.renew(certs, [1])
    assert (certs / "ca_crl.pem").read_bytes() == before
    revoke.renew(certs, [1])
    assert not (certs / "ca_crl.lock").exists()


def test_file_without_an_end_is_not_read_to_it(
    certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A longer file than the limit stands here for /dev/zero, which would fill the memory."""
    monkeypatch.setattr("program.MOST_READ", MIB)
    gen_cert.issue(certs, "client", ALICE, "alice")
    trust = load_trust(certs)
    pem = load_credentials(certs, "alice").pem
    for path in certs.glob("*.pem"):
        os.truncate(path, MIB + 1)
    for read in (
        lambda: load_trust(certs),
        lambda: load_credentials(certs, "alice"),
        lambda: revoke.serial_of(certs, str(certs / "alice_cert.pem")),
        lambda: Pins(certs / "alice_private_key.pem"),
    ):
        with pytest.raises(UserError, match="or no end"):
            read()
    with pytest.raises(pki.UnusableList, match="or no end"):
        trust.verify(pem, "client", ALICE, pki.utc_now())


def test_end_shows_its_issuer_if_that_is_in_its_file(certs: Path, keys: Keys) -> None:
    gen_cert.issue(certs, "client", ALICE, "alice")
    path = certs / "alice_cert.pem"
    path.write_bytes(path.read_bytes() + (certs / "ca_cert.pem").read_bytes())
    assert load_credentials(certs, "alice").pem.encode() == path.read_bytes()
    assert load_credentials(certs, "ca").pem.encode() == (certs / "ca_cert.pem").read_bytes()


def test_lost_list_is_not_begun_anew(certs: Path) -> None:
    (certs / "ca_crl.pem").unlink()
    with pytest.raises(UserError, match="cannot read the list"):
        revoke.renew(certs, [])


def test_missing_certificate_is_told_in_the_documents_words(certs: Path) -> None:
    with pytest.raises(UserError, match=r"Certificate not found: .*gen_cert"):
        load_credentials(certs, "client")


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such modes")
def test_key_that_others_can_read_is_refused_with_the_remedy(certs: Path) -> None:
    gen_cert.issue(certs, "client", ALICE, "client")
    (certs / "client_private_key.pem").chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        load_credentials(certs, "client")


@pytest.mark.slow
def test_key_of_another_certificate_is_refused(certs: Path) -> None:
    gen_cert.issue(certs, "client", ALICE, "alice")
    gen_cert.issue(certs, "client", BOB, "bob")
    shutil.copy(certs / "bob_cert.pem", certs / "alice_cert.pem")
    with pytest.raises(UserError, match="does not match"):
        load_credentials(certs, "alice")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_openssl_agrees_on_chain_purpose_and_list(certs: Path) -> None:
    gen_cert.issue(certs, "client", ALICE, "alice")
    gen_cert.issue(certs, "server", "localhost", "server")

    def judge(name: str, *flags: str) -> int:
        files = ["-CAfile", str(certs / "ca_cert.pem"), "-CRLfile", str(certs / "ca_crl.pem")]
        command = ["openssl", "verify", *files, "-crl_check", "-x509_strict", *flags]
        return subprocess.run(
            [*command, str(certs / f"{name}_cert.pem")], capture_output=True, check=False
        ).returncode

    assert judge("alice", "-purpose", "sslclient", "-verify_email", ALICE) == 0
    assert judge("server", "-purpose", "sslserver", "-verify_hostname", "localhost") == 0
    assert judge("alice", "-purpose", "sslserver") != 0
    assert judge("alice", "-verify_email", BOB) != 0
    revoke.renew(certs, [load_credentials(certs, "alice").certificate.serial_number])
    assert judge("alice") != 0
    assert judge("server") == 0


@pytest.mark.parametrize("module", [gen_ca, gen_cert])
def test_key_whose_certificate_cannot_be_written_is_taken_away(
    module: Any, keys: list[PrivateKey], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would stand in the way of the next attempt."""
    monkeypatch.setattr(module, "new_identity", lambda: keys[2])
    monkeypatch.setattr(gen_ca, "new_identity", lambda: keys[2])
    certs = tmp_path / "certs"
    if module is gen_cert:
        gen_ca.create(certs)
    before = sorted(certs.glob("*"))

    def full(path: Path, data: bytes) -> None:
        raise UserError(f"cannot write {path}: No space left on device")

    make: Callable[[], object] = partial(gen_ca.create, certs)
    if module is gen_cert:
        make = partial(gen_cert.issue, certs, "server", "localhost", "server")
    monkeypatch.setattr("companions.secure_chat.certs.write_whole", full)
    with pytest.raises(UserError, match="No space left"):
        make()
    assert sorted(certs.glob("*")) == before
