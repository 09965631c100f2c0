"""Certificates, revocation lists and trust [D 7]: what is accepted, and everything bad refused."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companions.asymmetric import PrivateKey, is_signed, public_pem, sign, write_private
from companions.canonical import canonical, parse_canonical
from companions.device_transfer import certificates
from companions.device_transfer.certificates import (
    CERTIFICATE_CONTEXT,
    CERTIFICATE_MEMBERS,
    LIST_CONTEXT,
    LIST_MEMBERS,
    CertificateExpired,
    CertificateNotYetValid,
    CertificateRevoked,
    MalformedCertificate,
    RevocationList,
    RevocationListRolledBack,
    RevocationListStale,
    RevocationListUnusable,
    Role,
    Trust,
    UntrustedCertificate,
    WrongRole,
    issue,
    load_identity,
    load_trust,
    parse_certificate,
    parse_revocation_list,
    parse_timestamp,
    sign_revocation_list,
    timestamp,
)
from program import UserError
from protocol_fsm import ProtocolError

NOW = datetime(2026, 1, 31, 12, tzinfo=timezone.utc)
DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)
SERIAL = "00112233445566ff"
OTHER_SERIAL = "ffeeddccbbaa9900"


class World:
    """An authority, another one, and a device; the clock and the list can be set."""

    def __init__(self, keys: list[PrivateKey]) -> None:
        self.authority, self.other_authority, self.device, self.other_device = keys[:4]
        self.now = NOW
        self.listed = b""
        self.publish(1)

    def certificate(self, authority: PrivateKey | None = None, **changes: Any) -> bytes:
        terms: dict[str, Any] = {
            "issuer": "ca",
            "common_name": "phone",
            "role": Role.DEVICE,
            "serial": SERIAL,
            "public_key": self.device.public_key(),
            "not_before": NOW - DAY,
            "not_after": NOW + DAY,
            **changes,
        }
        return issue(authority or self.authority, **terms).encoded

    def publish(
        self, number: int, *revoked: str, authority: PrivateKey | None = None, issuer: str = "ca"
    ) -> RevocationList:
        made = sign_revocation_list(
            authority or self.authority,
            issuer=issuer,
            number=number,
            this_update=NOW - DAY,
            next_update=NOW + DAY,
            revoked=revoked,
        )
        self.listed = made.encoded
        return made

    def trust(self, cls: type[Trust] = Trust) -> Trust:
        return cls(self.authority.public_key(), "ca", lambda: self.listed, lambda: self.now)


@pytest.fixture
def world(keys: list[PrivateKey]) -> World:
    return World(keys)


def edited(encoded: bytes, **changes: object) -> bytes:
    return canonical({**json.loads(encoded), **changes})


# Canonical JSON -----------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.slow
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])),
        st.text(st.characters(exclude_categories=["Cs"])) | st.integers(),
    )
)
def test_canonical_json_is_read_back(members: dict[str, object]) -> None:
    encoded = canonical(members)
    assert encoded.isascii()
    assert parse_canonical(encoded, {name: type(one) for name, one in members.items()}) == members


def test_canonical_json_is_sorted_and_has_no_spaces() -> None:
    assert canonical({"b": "\xe9", "a": [1, "x"]}) == b'{"a":[1,"x"],"b":"\\u00e9"}'


@pytest.mark.parametrize(
    "data",
    [
        b'{"b":"x","a":1}',
        b'{"a":1, "b":"x"}',
        b'{"a":1,"b":"x"}\n',
        b' {"a":1,"b":"x"}',
        b'{"a":1,"a":1,"b":"x"}',
        b'{"a":2,"a":1,"b":"x"}',
        b'{"a":1,"b":"\\u0078"}',
        b'{"a":1,"b":"\\u00E9"}',
        b'{"a":1,"b":"\xc3\xa9"}',
        b'{"a":1,"b":"\xff"}',
        b'{"a":1,"b":"\\ud800"}',
        b'{"a":-0,"b":"x"}',
        b'{"a":1.0,"b":"x"}',
        b'{"a":1e0,"b":"x"}',
        b'{"a":true,"b":"x"}',
        b'{"a":null,"b":"x"}',
        b'{"a":"1","b":"x"}',
        b'{"a":1,"b":1}',
        b'{"a":NaN,"b":"x"}',
        b'{"a":Infinity,"b":"x"}',
        b'{"a":1}',
        b'{"a":1,"b":"x","c":1}',
        b'{"A":1,"b":"x"}',
        b"{}",
        b"[]",
        b"null",
        b"1",
        b'"x"',
        b"",
        b"\xef\xbb\xbf{}",
        b'{"a":' + b"9" * 5_000 + b',"b":"x"}',
        b"[" * 100_000,
        b'{"a":' + b"[" * 100_000,
        '{"a":1,"b":"x"}'.encode("utf-16"),
    ],
)
def test_what_is_not_canonical_is_refused(data: bytes) -> None:
    assert parse_canonical(b'{"a":1,"b":"x"}', {"a": int, "b": str}) == {"a": 1, "b": "x"}
    with pytest.raises(ValueError):
        parse_canonical(data, {"a": int, "b": str})


@pytest.mark.parametrize("data", [b"", b"{", b'{"a":"\xc3\xa9"}'])
def test_what_is_not_json_in_ascii_is_called_so(data: bytes) -> None:
    with pytest.raises(ValueError, match="not JSON in ASCII"):
        parse_canonical(data, {"a": str})


@pytest.mark.parametrize("value", ["\ud800", float("nan"), float("inf")])
def test_what_json_cannot_say_is_not_encoded(value: object) -> None:
    with pytest.raises(ValueError):
        canonical({"a": value})


# Timestamps ---------------------------------------------------------------------------------------


@given(st.datetimes(timezones=st.just(timezone.utc)))
def test_a_timestamp_is_read_back_to_the_second(moment: datetime) -> None:
    assert parse_timestamp(timestamp(moment)) == moment.replace(microsecond=0)


def test_a_timestamp_is_utc() -> None:
    there = NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert timestamp(there) == timestamp(NOW) == "2026-01-31T12:00:00Z"
    with pytest.raises(ValueError):
        timestamp(NOW.replace(tzinfo=None))


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-31T12:00:00",
        "2026-01-31T12:00:00+00:00",
        "2026-01-31 12:00:00Z",
        "20260131T120000Z",
        "2026-1-31T12:00:00Z",
        "2026-01-31T12:00:00.0Z",
        "2026-02-30T12:00:00Z",
        "2026-01-31T24:00:00Z",
        "2026-01-31T12:00:60Z",
        "0000-01-01T00:00:00Z",
        "2026-01-31T12:00:00Z\n",
        "",
        "now",
        "\u0662026-01-31T12:00:00Z",
        " 2026-01-31T12:00:00Z",
        "2026-01-31t12:00:00z",
    ],
)
def test_a_timestamp_has_one_form(text: str) -> None:
    with pytest.raises(ValueError):
        parse_timestamp(text)


# Certificates -------------------------------------------------------------------------------------


def test_a_certificate_says_what_was_issued(world: World) -> None:
    certificate = parse_certificate(world.certificate(not_after=NOW + SECOND / 2))
    assert (
        certificate.common_name,
        certificate.issuer,
        certificate.role,
        certificate.serial,
        certificate.not_before,
        certificate.not_after,
    ) == ("phone", "ca", Role.DEVICE, SERIAL, NOW - DAY, NOW)
    assert public_pem(certificate.public_key) == public_pem(world.device.public_key())
    assert set(json.loads(certificate.encoded)) == set(CERTIFICATE_MEMBERS)


@pytest.mark.parametrize(
    ("member", "values"),
    [
        (
            "common_name",
            ["", ".hidden", "a/b", "a\\b", "a b", "a" * 65, "\xe9", "a\n", "a\0", ".."],
        ),
        ("issuer", ["", "a/b", "a" * 65, "x" * 5_000]),
        ("not_before", ["", "2026-01-31", "2026-02-03T12:00:00Z"]),  # the last: after not_after
        ("not_after", ["", "2026-01-29T12:00:00Z", "9999-99-99T00:00:00Z"]),
        ("public_key", ["", "-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n", "\xe9"]),
        ("role", ["", "Device", "DEVICE", "authority"]),
        (
            "serial",
            ["", SERIAL.upper(), SERIAL[:-1], SERIAL + "0", SERIAL[:-1] + "g", "\u0660" * 16],
        ),
        ("signature", ["", "00", "00" * 255, "00" * 257, "0" * 511, "G" * 512, " 0" * 256]),
    ],
)
def test_a_member_that_is_not_as_it_should_be_is_refused(
    world: World, member: str, values: list[str]
) -> None:
    for value in [*values, None, 1, True, ["x"], {"x": "y"}]:
        with pytest.raises(MalformedCertificate):
            parse_certificate(edited(world.certificate(), **{member: value}))


@pytest.mark.parametrize("name", ["a", "-", "_x", "a.", "A-b_c.d", "0" * 64])
def test_a_common_name_may_be(world: World, name: str) -> None:
    assert parse_certificate(world.certificate(common_name=name)).common_name == name


def test_a_certificate_has_one_encoding(world: World) -> None:
    encoded = world.certificate()
    signature = json.loads(encoded)["signature"]
    others = [
        encoded + b"\n",
        b" " + encoded,
        encoded.replace(b'":"', b'": "'),
        json.dumps(json.loads(encoded)).encode(),
        encoded.replace(b"phone", b"\\u0070hone"),
        encoded[:-1] + b',"serial":"' + SERIAL.encode() + b'"}',
        encoded.replace(b'{"', b'{"role":"device","', 1),
        encoded[:-1],
        b"",
        b"\0",
        encoded.replace(signature.encode(), signature.upper().encode()),
        edited(encoded, more=""),
        encoded.decode().encode("utf-16"),
    ]
    for other in others:
        with pytest.raises(MalformedCertificate):
            parse_certificate(other)


def test_a_long_certificate_is_refused_before_it_is_read(world: World) -> None:
    with pytest.raises(MalformedCertificate) as caught:
        parse_certificate(b" " * 4_097)
    assert caught.value.got == 4_097
    assert len(world.certificate(issuer="i" * 64, common_name="n" * 64)) <= 4_096


def test_nothing_malformed_is_issued(world: World) -> None:
    for changes in ({"common_name": "../x"}, {"serial": "1"}, {"not_after": NOW - 2 * DAY}):
        with pytest.raises(MalformedCertificate):
            world.certificate(**changes)


@pytest.mark.slow
@given(st.binary(max_size=200) | json_values.map(lambda one: json.dumps(one).encode()))
def test_no_bytes_crash_the_parsers(data: bytes) -> None:
    with pytest.raises(MalformedCertificate):
        parse_certificate(data)
    with pytest.raises(RevocationListUnusable):
        parse_revocation_list(data)


@pytest.mark.slow
@given(st.data())
def test_no_member_crashes_the_parsers(keys: list[PrivateKey], data: st.DataObject) -> None:
    world = World(keys)
    for encoded, members, parse in (
        (world.certificate(), CERTIFICATE_MEMBERS, parse_certificate),
        (world.listed, LIST_MEMBERS, parse_revocation_list),
    ):
        member = data.draw(st.sampled_from(sorted(members)))
        other = json.dumps(
            {**json.loads(encoded), member: data.draw(json_values)},
            sort_keys=True,
            separators=(",", ":"),
        ).encode()
        with contextlib.suppress(MalformedCertificate, RevocationListUnusable):
            assert parse(other).encoded == other


@pytest.mark.slow
@given(st.data())
def test_a_changed_byte_is_noticed(keys: list[PrivateKey], data: st.DataObject) -> None:
    world = World(keys)
    trust = world.trust()
    encoded = world.certificate()
    at = data.draw(st.integers(0, len(encoded) - 1))
    other = bytes([data.draw(st.integers(0, 255).filter(lambda byte: byte != encoded[at]))])
    with pytest.raises((MalformedCertificate, UntrustedCertificate)):
        trust.check(encoded[:at] + other + encoded[at + 1 :], Role.DEVICE)


# Trust --------------------------------------------------------------------------------------------


def test_a_certificate_that_holds_is_accepted(world: World) -> None:
    encoded = world.certificate()
    assert world.trust().check(encoded, Role.DEVICE) == parse_certificate(encoded)


@pytest.mark.parametrize("member", sorted(CERTIFICATE_MEMBERS))
def test_a_certificate_with_one_member_edited_is_untrusted(world: World, member: str) -> None:
    encoded = world.certificate()
    signature = json.loads(encoded)["signature"]
    other = {
        "common_name": "server",
        "issuer": "cb",
        "not_before": "2026-01-30T12:00:01Z",
        "not_after": "2036-01-30T12:00:00Z",
        "role": "server",
        "serial": OTHER_SERIAL,
        "public_key": public_pem(world.other_device.public_key()),
        "signature": signature[:-1] + ("1" if signature[-1] == "0" else "0"),
    }[member]
    with pytest.raises(UntrustedCertificate):
        world.trust().check(edited(encoded, **{member: other}), Role.DEVICE)


def test_another_authority_of_the_same_name_is_not_trusted(world: World) -> None:
    with pytest.raises(UntrustedCertificate):
        world.trust().check(world.certificate(world.other_authority), Role.DEVICE)


def test_our_key_under_another_name_is_not_trusted(world: World) -> None:
    with pytest.raises(UntrustedCertificate) as caught:
        world.trust().check(world.certificate(issuer="other-ca"), Role.DEVICE)
    assert caught.value.got == "other-ca"


def test_a_certificate_signed_by_a_certified_device_is_not_trusted(world: World) -> None:
    for issuer in ("phone", "ca"):
        with pytest.raises(UntrustedCertificate):
            world.trust().check(world.certificate(world.device, issuer=issuer), Role.DEVICE)


@pytest.mark.parametrize("context", [LIST_CONTEXT, "certificate", "device_transfer v1 manifest"])
def test_a_signature_of_another_context_is_no_signature(world: World, context: str) -> None:
    members = json.loads(world.certificate())
    del members["signature"]
    for used, accepted in ((CERTIFICATE_CONTEXT, True), (context, False)):
        forged = edited(
            canonical(members), signature=sign(world.authority, used, canonical(members)).hex()
        )
        if accepted:
            world.trust().check(forged, Role.DEVICE)
        else:
            with pytest.raises(UntrustedCertificate):
                world.trust().check(forged, Role.DEVICE)


@pytest.mark.parametrize(
    ("now", "error"),
    [
        (NOW - DAY - SECOND, CertificateNotYetValid),
        (NOW - DAY, None),
        (NOW + DAY, None),
        (NOW + DAY + 0.9 * SECOND, None),
        (NOW + DAY + SECOND, CertificateExpired),
    ],
)
def test_a_certificate_holds_from_its_first_to_its_last_second(
    world: World, now: datetime, error: type[ProtocolError] | None
) -> None:
    world.now = now
    encoded = world.certificate()
    if error is None:
        world.trust().check(encoded, Role.DEVICE)
        return
    with pytest.raises(error):
        world.trust().check(encoded, Role.DEVICE)


def test_a_certificate_of_the_other_role_is_refused(world: World) -> None:
    for role, wanted in ((Role.DEVICE, Role.SERVER), (Role.SERVER, Role.DEVICE)):
        with pytest.raises(WrongRole):
            world.trust().check(world.certificate(role=role), wanted)


def test_a_revocation_works_at_once_and_for_that_serial_only(world: World) -> None:
    trust = world.trust()
    encoded = world.certificate()
    trust.check(encoded, Role.DEVICE)
    world.publish(2, SERIAL)
    with pytest.raises(CertificateRevoked):
        trust.check(encoded, Role.DEVICE)
    trust.check(world.certificate(serial=OTHER_SERIAL), Role.DEVICE)


# Each fault by its error, in the order of [D 7], with the method that looks for it.
Fault = Callable[[World, dict[str, Any]], None]
FAULTS: dict[type[ProtocolError], tuple[str, Fault]] = {
    UntrustedCertificate: (
        "_check_signature",
        lambda world, terms: terms.update(authority=world.other_authority),
    ),
    CertificateExpired: ("_check_dates", lambda world, terms: terms.update(not_after=NOW - SECOND)),
    WrongRole: ("_check_role", lambda world, terms: terms.update(role=Role.SERVER)),
    CertificateRevoked: (
        "_check_revocation",
        lambda world, terms: unused(world.publish(9, SERIAL)),
    ),
}
LIST_FAULTS: dict[type[ProtocolError], tuple[str, Callable[[World], object]]] = {
    RevocationListUnusable: (
        "_check_list_signature",
        lambda world: world.publish(9, authority=world.other_authority),
    ),
    RevocationListStale: (
        "_check_list_date",
        lambda world: setattr(world, "now", NOW + DAY + SECOND),
    ),
    RevocationListRolledBack: ("_check_list_number", lambda world: world.publish(4)),
}


def unused(value: object) -> None:
    """Take what a lambda must not return."""


def weakened(method: str) -> type[Trust]:
    """Return an end that leaves out one check."""
    return type("Weakened", (Trust,), {method: lambda *arguments: None})


@pytest.mark.parametrize("first", range(len(FAULTS)))
def test_the_first_fault_in_order_is_the_one_reported(world: World, first: int) -> None:
    terms: dict[str, Any] = {}
    for _, spoil in list(FAULTS.values())[first:]:
        spoil(world, terms)
    with pytest.raises(list(FAULTS)[first]):
        world.trust().check(world.certificate(**terms), Role.DEVICE)


@pytest.mark.parametrize("left_out", [method for method, _ in FAULTS.values()])
def test_leaving_out_one_check_lets_one_fault_through(
    keys: list[PrivateKey], left_out: str
) -> None:
    for error, (method, spoil) in FAULTS.items():
        world = World(keys)
        terms: dict[str, Any] = {}
        spoil(world, terms)
        trust = world.trust(weakened(left_out))
        encoded = world.certificate(**terms)
        if method == left_out:
            trust.check(encoded, Role.DEVICE)
        else:
            with pytest.raises(error):
                trust.check(encoded, Role.DEVICE)


@pytest.mark.parametrize("left_out", [method for method, _ in LIST_FAULTS.values()])
def test_leaving_out_one_check_of_the_list_lets_one_fault_through(
    keys: list[PrivateKey], left_out: str
) -> None:
    for error, (method, spoil) in LIST_FAULTS.items():
        world = World(keys)
        trust = world.trust(weakened(left_out))
        encoded = world.certificate(not_after=NOW + 9 * DAY)
        world.publish(5)
        trust.check(encoded, Role.DEVICE)
        spoil(world)
        if method == left_out:
            trust.check(encoded, Role.DEVICE)
        else:
            with pytest.raises(error) as caught:
                trust.check(encoded, Role.DEVICE)
            assert type(caught.value) is error


# Revocation lists ---------------------------------------------------------------------------------


def test_a_revocation_list_says_what_was_signed(world: World) -> None:
    made = world.publish(7, SERIAL, OTHER_SERIAL, SERIAL)
    assert made == parse_revocation_list(world.listed)
    assert (made.issuer, made.number, made.this_update, made.next_update, made.revoked) == (
        "ca",
        7,
        NOW - DAY,
        NOW + DAY,
        frozenset([SERIAL, OTHER_SERIAL]),
    )
    assert world.trust().revocation_list() == made
    assert json.loads(world.listed)["revoked"] == [SERIAL, OTHER_SERIAL]


@pytest.mark.parametrize(
    ("member", "values"),
    [
        ("issuer", ["", "a/b", 1, None]),
        ("number", [0, -1, True, "7", 7.0, None, [7]]),
        ("this_update", ["", "2026-01-31", "2026-02-03T12:00:00Z", 1]),
        ("next_update", ["", "2026-01-29T12:00:00Z", None]),
        (
            "revoked",
            [
                "",
                None,
                {},
                ["x"],
                [1],
                [None],
                [[SERIAL]],
                [SERIAL.upper()],
                [SERIAL, SERIAL],
                [OTHER_SERIAL, SERIAL],
            ],
        ),
        ("signature", ["", "00", None, "G" * 512]),
    ],
)
def test_a_malformed_list_is_unusable(world: World, member: str, values: list[object]) -> None:
    for value in values:
        with pytest.raises(RevocationListUnusable):
            parse_revocation_list(edited(world.listed, **{member: value}))


@pytest.mark.parametrize("member", sorted(LIST_MEMBERS))
def test_a_list_with_one_member_edited_is_forged(world: World, member: str) -> None:
    world.publish(3, SERIAL)
    signature = json.loads(world.listed)["signature"]
    other: object = {
        "issuer": "cb",
        "number": 4,
        "this_update": timestamp(NOW),
        "revoked": [],
        "next_update": timestamp(NOW + 9 * DAY),
        "signature": signature[:-1] + ("1" if signature[-1] == "0" else "0"),
    }[member]
    world.listed = edited(world.listed, **{member: other})
    with pytest.raises(RevocationListUnusable) as caught:
        world.trust().check(world.certificate(), Role.DEVICE)
    assert type(caught.value) is RevocationListUnusable


def test_a_list_of_another_authority_is_unusable(world: World) -> None:
    for changes in ({"authority": world.other_authority}, {"issuer": "other-ca"}):
        world.publish(2, **changes)
        with pytest.raises(RevocationListUnusable):
            world.trust().check(world.certificate(), Role.DEVICE)


def test_without_a_list_nobody_is_accepted(world: World, tmp_path: Path) -> None:
    missing = Trust(world.authority.public_key(), "ca", (tmp_path / "none").read_bytes, lambda: NOW)
    with pytest.raises(RevocationListUnusable, match="No such file"):
        missing.check(world.certificate(), Role.DEVICE)


def test_a_list_is_stale_after_its_next_update(world: World) -> None:
    encoded = world.certificate(not_after=NOW + 9 * DAY)
    world.now = NOW + DAY
    world.trust().check(encoded, Role.DEVICE)
    world.now += SECOND
    with pytest.raises(RevocationListStale):
        world.trust().check(encoded, Role.DEVICE)


def test_a_list_is_judged_once_however_many_ask(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger can show a recorded certificate at any rate, and a long list is slow to parse."""
    judged: list[bytes] = []

    def counted(encoded: bytes) -> RevocationList:
        judged.append(encoded)
        return parse_revocation_list(encoded)

    monkeypatch.setattr(certificates, "parse_revocation_list", counted)
    trust = world.trust()
    encoded = world.certificate()
    for _ in range(20):
        trust.check(encoded, Role.DEVICE)
    assert len(judged) == 1
    world.publish(2, SERIAL)
    judged.clear()
    for _ in range(20):
        with pytest.raises(CertificateRevoked):
            trust.check(encoded, Role.DEVICE)
    assert len(judged) == 1
    latest = world.listed
    world.publish(1)
    with pytest.raises(RevocationListRolledBack):
        trust.check(encoded, Role.DEVICE)
    world.listed = latest
    world.now = NOW + DAY + SECOND
    with pytest.raises(RevocationListStale):
        trust.revocation_list()


def test_an_older_list_is_not_taken_back(world: World) -> None:
    trust = world.trust()
    encoded = world.certificate()
    before = world.listed
    world.publish(2, SERIAL)
    with pytest.raises(CertificateRevoked):
        trust.check(encoded, Role.DEVICE)
    world.listed = before
    with pytest.raises(RevocationListRolledBack) as caught:
        trust.check(encoded, Role.DEVICE)
    assert (caught.value.expected, caught.value.got) == ("number 2, and its list", 1)


def test_of_two_lists_with_one_number_the_first_stays(world: World) -> None:
    trust = world.trust()
    encoded = world.certificate()
    world.publish(2, SERIAL)
    for _ in range(2):
        with pytest.raises(CertificateRevoked):
            trust.check(encoded, Role.DEVICE)
    world.publish(2)
    with pytest.raises(RevocationListRolledBack):
        trust.check(encoded, Role.DEVICE)


def test_certificates_and_lists_are_signed_in_the_contexts_of_the_document(world: World) -> None:
    for encoded, members, context in (
        (world.certificate(), CERTIFICATE_MEMBERS, "certificate"),
        (world.listed, LIST_MEMBERS, "revocation list"),
    ):
        said = parse_canonical(encoded, members)
        signature = bytes.fromhex(said.pop("signature"))
        assert is_signed(
            world.authority.public_key(),
            f"device_transfer v1 {context}",
            canonical(said),
            signature,
        )


def test_a_stale_list_still_counts_against_a_rollback(world: World) -> None:
    trust = world.trust()
    world.publish(2)
    world.now = NOW + DAY + SECOND
    with pytest.raises(RevocationListStale):
        trust.revocation_list()
    world.now = NOW
    world.publish(1)
    with pytest.raises(RevocationListRolledBack):
        trust.revocation_list()


def test_a_strangers_words_are_not_repeated_at_length(world: World) -> None:
    encoded = world.certificate().replace(b'"device"', b'"' + b"x" * 2_000 + b'"')
    with pytest.raises(MalformedCertificate) as caught:
        parse_certificate(encoded)
    assert len(str(caught.value)) < 150


def test_the_list_is_found_beside_the_folder_that_we_are_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: World
) -> None:
    folder = tmp_path / "device-1"
    folder.mkdir()
    (folder / "authority.json").write_bytes(
        canonical({"common_name": "ca", "public_key": public_pem(world.authority.public_key())})
    )
    (tmp_path / "revocation_list.json").write_bytes(world.listed)
    monkeypatch.chdir(folder)
    assert load_trust(Path("."), now=lambda: NOW).revocation_list().number == 1
    (folder / "inside").mkdir()
    monkeypatch.chdir(folder / "inside")
    assert load_trust(Path(".."), now=lambda: NOW).revocation_list().number == 1


def test_a_list_that_is_refused_does_not_raise_the_number(world: World) -> None:
    trust = world.trust()
    world.publish(1_000, authority=world.other_authority)
    with pytest.raises(RevocationListUnusable):
        trust.revocation_list()
    world.publish(1)
    assert trust.revocation_list().number == 1


def test_a_thread_that_is_slow_with_an_older_list_sees_no_rollback(world: World) -> None:
    older = world.listed
    newer = world.publish(2).encoded
    overtaker = threading.Thread(target=lambda: trust.revocation_list())
    answers = iter([older, newer])

    def fetch() -> bytes:
        answer = next(answers)
        if answer is older:
            overtaker.start()
            overtaker.join(0.05)  # it ends only if nothing holds it back
        return answer

    trust = Trust(world.authority.public_key(), "ca", fetch, lambda: NOW)
    assert trust.revocation_list().number == 1
    overtaker.join()


# Files --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(world: World, tmp_path: Path) -> Path:
    """The folder of a device, with the list beside it."""
    path = tmp_path / "phone"
    path.mkdir()
    write_private(path / "private_key.pem", world.device)
    (path / "certificate.json").write_bytes(world.certificate())
    (path / "authority.json").write_bytes(
        canonical({"common_name": "ca", "public_key": public_pem(world.authority.public_key())})
    )
    (tmp_path / "revocation_list.json").write_bytes(world.listed)
    return path


def ask(prompt: str) -> str:
    return "correct horse"


def test_an_identity_is_loaded_and_its_key_is_not_shown(world: World, folder: Path) -> None:
    identity = load_identity(folder, ask)
    assert identity.certificate.encoded == (folder / "certificate.json").read_bytes()
    assert public_pem(identity.private_key.public_key()) == public_pem(world.device.public_key())
    assert "private_key" not in repr(identity)


@pytest.mark.slow
def test_an_encrypted_identity_asks(world: World, folder: Path) -> None:
    (folder / "private_key.pem").unlink()
    write_private(folder / "private_key.pem", world.device, "correct horse")
    assert load_identity(folder, ask).certificate.common_name == "phone"
    with pytest.raises(UserError, match="the passphrase is wrong"):
        load_identity(folder, lambda prompt: "battery staple")


def test_a_key_that_does_not_fit_its_certificate_is_refused(world: World, folder: Path) -> None:
    (folder / "private_key.pem").unlink()
    write_private(folder / "private_key.pem", world.other_device)
    with pytest.raises(UserError, match="does not match"):
        load_identity(folder, ask)


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_a_key_that_others_can_read_is_refused(folder: Path) -> None:
    (folder / "private_key.pem").chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        load_identity(folder, ask)


@pytest.mark.parametrize("name", ["private_key.pem", "certificate.json", "authority.json"])
def test_a_folder_that_lacks_a_file_or_has_nonsense_is_refused(folder: Path, name: str) -> None:
    def load() -> None:
        load_identity(folder, ask)
        load_trust(folder)

    load()
    (folder / name).write_bytes(b"nonsense")
    with pytest.raises(UserError, match=name):
        load()
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name}: No such file"):
        load()


@pytest.mark.parametrize(
    "changes", [{"common_name": "a/b"}, {"public_key": ""}, {"public_key": 1}, {"more": ""}]
)
def test_a_malformed_authority_is_refused(folder: Path, changes: dict[str, object]) -> None:
    path = folder / "authority.json"
    path.write_bytes(edited(path.read_bytes(), **changes))
    with pytest.raises(UserError, match="names no authority"):
        load_trust(folder)


def test_trust_reads_the_list_beside_the_folder_or_where_it_is_told(
    world: World, folder: Path, tmp_path: Path
) -> None:
    trust = load_trust(folder, now=lambda: NOW)
    assert trust.check(world.certificate(), Role.DEVICE).common_name == "phone"
    (tmp_path / "elsewhere").write_bytes(world.publish(2, SERIAL).encoded)
    trust = load_trust(folder, tmp_path / "elsewhere", lambda: NOW)
    with pytest.raises(CertificateRevoked):
        trust.check(world.certificate(), Role.DEVICE)
