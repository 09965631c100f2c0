"""The certificate authority: as functions, as a program, and interrupted wherever it writes."""

from __future__ import annotations

import functools
import getpass
import itertools
import re
import shutil
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NoReturn

import pytest
from cryptography.hazmat.primitives import serialization

from companions.asymmetric import PrivateKey, public_pem
from companions.device_transfer import ca
from companions.device_transfer.certificates import (
    CertificateRevoked,
    Role,
    UntrustedCertificate,
    load_identity,
    load_trust,
    parse_certificate,
    parse_revocation_list,
)
from companions.device_transfer.transfer import CLOCK_SKEW
from companions.locking import locked
from companions.terminal import ask_passphrase
from program import UserError
from tests.house import modules_imported
from tests.network import at_once
from tests.programs import ROOT, posix_only

DAY = timedelta(days=1)
load_once = functools.cache(serialization.load_pem_private_key)


@pytest.fixture(autouse=True)
def _keys_are_there(keys: list[PrivateKey], monkeypatch: pytest.MonkeyPatch) -> None:
    """Making and checking keys costs most of the time. That they are new, one test sees."""
    monkeypatch.setattr(serialization, "load_pem_private_key", load_once)
    supply = itertools.cycle(keys)
    monkeypatch.setattr(ca, "new_identity", lambda: next(supply))


@pytest.fixture(autouse=True)
def typed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What will be typed at the prompts, in order; more than that must not be asked."""
    answers: list[str] = []
    monkeypatch.setattr(getpass, "getpass", lambda prompt: answers.pop(0))
    return answers


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    ca.create(tmp_path / "pki", "test-ca")
    return tmp_path / "pki"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["ca.py", *map(str, arguments)])
    assert ca.main() == 0


def tree(folder: Path) -> dict[str, bytes]:
    """Return all there is under a folder, but for the time's sake not when."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


def statuses(pki: Path, now: datetime | None = None) -> dict[str, str]:
    """Return what the table says of each name."""
    rows = ca.table(pki, now or datetime.now(timezone.utc))[1:-1]
    return {row.split()[1]: row[66:] for row in rows}


# Create and issue ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_new_authority_has_a_first_list_and_issues_what_is_trusted(pki: Path) -> None:
    assert sorted(tree(pki)) == sorted(
        [
            "revocation_list.json",
            "ca",
            *(
                str(Path("ca") / name)
                for name in ("authority.json", "issued", "number", "private_key.pem", "revoked")
            ),
        ]
    )
    trust = load_trust(pki / "ca")
    first = trust.revocation_list()
    assert (first.issuer, first.number, first.revoked) == ("test-ca", 1, frozenset())
    assert first.next_update - first.this_update == 7 * DAY
    for name, role in (("phone", Role.DEVICE), ("home", Role.SERVER)):
        made = ca.issue(pki, name, role)
        identity = load_identity(pki / name, lambda prompt: pytest.fail("asked"))
        assert identity.certificate == made == trust.check(made.encoded, role)
        assert made.not_after - made.not_before == 365 * DAY + CLOCK_SKEW
        assert load_trust(pki / name).check(made.encoded, role) == made
        assert (pki / "ca" / "issued" / f"{made.serial}.json").read_bytes() == made.encoded


@posix_only
def test_keys_and_the_authority_are_for_their_owner_alone(pki: Path) -> None:
    ca.issue(pki, "phone", Role.DEVICE)
    for folder in (pki, pki / "ca", pki / "phone"):
        assert folder.stat().st_mode & 0o777 == 0o700
    for folder in (pki / "ca", pki / "phone"):
        assert (folder / "private_key.pem").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_every_key_is_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    ca.create(tmp_path / "pki")
    made = [ca.issue(tmp_path / "pki", name, Role.DEVICE) for name in ("one", "two")]
    authority = load_trust(tmp_path / "pki" / "ca").authority
    assert (
        len({public_pem(key) for key in (made[0].public_key, made[1].public_key, authority)}) == 3
    )
    assert made[0].serial != made[1].serial


def test_certificates_of_two_authorities_of_one_name_do_not_mix(tmp_path: Path) -> None:
    for name in ("a", "b"):
        ca.create(tmp_path / name)
    made = ca.issue(tmp_path / "a", "phone", Role.DEVICE)
    with pytest.raises(UntrustedCertificate):
        load_trust(tmp_path / "b" / "ca").check(made.encoded, Role.DEVICE)


def test_what_exists_is_never_replaced(pki: Path) -> None:
    ca.issue(pki, "phone", Role.DEVICE)
    before = tree(pki)
    for attempt in (
        lambda: ca.create(pki),
        lambda: ca.issue(pki, "phone", Role.DEVICE),
        lambda: ca.issue(pki, "ca", Role.DEVICE),
        lambda: ca.issue(pki, "revocation_list.json", Role.DEVICE),
    ):
        with pytest.raises(UserError, match="it exists already"):
            attempt()
    assert tree(pki) == before


@pytest.mark.parametrize(
    ("name", "why"),
    [
        *(
            (name, "common name")
            for name in ("", "..", ".x", "a/b", "../x", "/x", "a b", "\xe9", "x" * 65)
        ),
        # `revoke` takes both, and must never hit another certificate than was meant
        ("0123456789abcdef", "16 hex digits are a serial"),
    ],
)
def test_a_name_that_is_none_is_refused_before_anything_is_made(
    tmp_path: Path, pki: Path, name: str, why: str
) -> None:
    before = tree(tmp_path)
    with pytest.raises(UserError, match=why):
        ca.issue(pki, name, Role.DEVICE)
    with pytest.raises(UserError, match=why):
        ca.create(tmp_path / "other", name)
    assert tree(tmp_path) == before


def test_two_that_issue_at_once_both_succeed_or_one_is_refused(pki: Path) -> None:
    made = at_once(
        *(functools.partial(ca.issue, pki, name, Role.DEVICE) for name in ("one", "two", "two"))
    )
    assert sorted(type(one).__name__ for one in made) == ["Certificate", "Certificate", "UserError"]
    assert statuses(pki) == {"one": "valid", "two": "valid"}
    assert len(ca.issued_certificates(pki)) == 2
    assert not list(pki.rglob("*.partial"))


# Revoke and refresh -------------------------------------------------------------------------------


def test_a_trust_in_use_refuses_a_newly_revoked_certificate(pki: Path) -> None:
    phone = ca.issue(pki, "phone", Role.DEVICE)
    other = ca.issue(pki, "other", Role.DEVICE)
    trust = load_trust(pki / "phone")
    trust.check(phone.encoded, Role.DEVICE)
    latest = ca.revoke(pki, "phone")
    assert (latest.number, latest.revoked) == (2, frozenset([phone.serial]))
    with pytest.raises(CertificateRevoked):
        trust.check(phone.encoded, Role.DEVICE)
    trust.check(other.encoded, Role.DEVICE)
    assert ca.revoke(pki, other.serial).revoked == {phone.serial, other.serial}


def test_a_refreshed_list_keeps_what_was_revoked_and_has_the_next_number(pki: Path) -> None:
    phone = ca.issue(pki, "phone", Role.DEVICE)
    ca.revoke(pki, "phone")
    latest = ca.refresh(pki, 30)
    assert (latest.number, latest.revoked) == (3, frozenset([phone.serial]))
    assert latest.next_update - latest.this_update == 30 * DAY
    assert (pki / "revocation_list.json").read_bytes() == latest.encoded


def test_a_lost_or_older_list_in_the_folder_does_not_turn_the_number_back(pki: Path) -> None:
    older = (pki / "revocation_list.json").read_bytes()
    ca.refresh(pki)
    (pki / "revocation_list.json").write_bytes(older)
    assert ca.refresh(pki).number == 3
    (pki / "revocation_list.json").unlink()
    assert ca.refresh(pki).number == 4
    (pki / "ca" / "number").unlink()
    assert ca.refresh(pki).number == 5, "one of the two is enough"


def test_what_cannot_be_revoked_is_said_and_no_list_is_made(pki: Path) -> None:
    serials = [ca.issue(pki, "phone", Role.DEVICE).serial]
    (pki / "phone").rename(pki / "phone-1")
    serials.append(ca.issue(pki, "phone", Role.DEVICE).serial)
    ca.issue(pki, "gone", Role.DEVICE)
    ca.revoke(pki, "gone")
    before = tree(pki)
    for who, reason in (
        ("nobody", "no certificate"),
        ("0" * 16, "no certificate"),
        ("gone", "revoked already"),
        ("phone", f"serials.*{serials[0]}"),
        ("phone", f"serials.*{serials[1]}"),
    ):
        with pytest.raises(UserError, match=reason):
            ca.revoke(pki, who)
    assert tree(pki) == before
    assert ca.revoke(pki, serials[1]).number == 3


@pytest.mark.parametrize("content", ["none", "empty", "broken", "forged"])
def test_a_list_that_says_nothing_is_replaced_by_the_next(
    tmp_path: Path, pki: Path, content: str
) -> None:
    """So that an authority that has lost its list can revoke again, in a new one."""
    phone = ca.issue(pki, "phone", Role.DEVICE)
    ca.create(tmp_path / "other", "test-ca")
    ca.issue(tmp_path / "other", "victim", Role.DEVICE)
    forged = ca.revoke(tmp_path / "other", "victim").encoded
    path = pki / "revocation_list.json"
    path.unlink()
    if content != "none":
        path.write_bytes({"empty": b"", "broken": b"{}", "forged": forged}[content])
    latest = ca.revoke(pki, "phone")
    assert (latest.number, latest.revoked) == (2, frozenset([phone.serial]))


@pytest.mark.parametrize("command", ["refresh", "revoke"])
def test_an_older_copy_of_the_folder_takes_back_no_revocation(pki: Path, command: str) -> None:
    """Somebody restores the authority from a backup, but the list is published already."""
    phone = ca.issue(pki, "phone", Role.DEVICE)
    other = ca.issue(pki, "other", Role.DEVICE)
    shutil.copytree(pki / "ca", pki / "backup")
    ca.refresh(pki)
    number = ca.revoke(pki, "phone").number
    shutil.rmtree(pki / "ca")
    (pki / "backup").rename(pki / "ca")
    assert statuses(pki)["phone"] == "revoked"
    with pytest.raises(UserError, match="revoked already"):
        ca.revoke(pki, "phone")
    latest = ca.refresh(pki) if command == "refresh" else ca.revoke(pki, "other")
    assert latest.number == number + 1
    assert latest.revoked == {phone.serial} | ({other.serial} if command == "revoke" else set())
    (pki / "revocation_list.json").unlink()
    assert phone.serial in ca.refresh(pki).revoked, "and the folder knows it from now on"


def test_a_name_and_a_serial_that_are_the_same_are_told_apart_by_a_person(
    pki: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An authority of before this rule may have issued such a name."""
    serial = ca.issue(pki, "phone", Role.DEVICE).serial
    monkeypatch.setattr(ca, "SERIAL", re.compile("never"))
    other = ca.issue(pki, serial, Role.DEVICE).serial
    monkeypatch.undo()
    before = tree(pki)
    with pytest.raises(UserError, match=f"give one of the serials of '{serial}'"):
        ca.revoke(pki, serial)
    assert tree(pki) == before
    assert ca.revoke(pki, other).revoked == {other}


@pytest.mark.parametrize("behind", [timedelta(seconds=20), CLOCK_SKEW - timedelta(seconds=9)])
def test_a_fresh_certificate_is_good_where_the_clock_is_a_little_behind(
    pki: Path, behind: timedelta
) -> None:
    made = ca.issue(pki, "phone", Role.DEVICE, days=1)
    moment = datetime.now(timezone.utc) - behind
    trust = load_trust(pki / "phone", now=lambda: moment)
    assert trust.check(made.encoded, Role.DEVICE) == made
    begins = datetime(2030, 1, 1, tzinfo=timezone.utc)
    later = ca.issue(pki, "later", Role.DEVICE, days=2, not_before=begins)
    assert (later.not_before, later.not_after) == (begins, begins + 2 * DAY), "as it was asked for"


def test_two_programs_do_not_make_a_list_at_the_same_time(pki: Path) -> None:
    ca.issue(pki, "phone", Role.DEVICE)
    (pki / "ca" / "lock").touch()
    before = tree(pki)
    with pytest.raises(UserError, match="another program"):
        ca.revoke(pki, "phone")
    with pytest.raises(UserError, match="another program"):
        ca.refresh(pki)
    assert tree(pki) == before
    (pki / "ca" / "lock").unlink()
    ca.revoke(pki, "phone")
    assert not (pki / "ca" / "lock").exists()


# Interrupted --------------------------------------------------------------------------------------


class Interrupter:
    """Presses Ctrl-C before or after the nth thing that is written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, after: bool) -> None:
        self.left = at
        self.after = after
        self.struck = False
        for name in ("write_whole", "write_private"):
            monkeypatch.setattr(ca, name, self.wrap(getattr(ca, name)))
        monkeypatch.setattr("shutil.copyfile", self.wrap(shutil.copyfile))
        monkeypatch.setattr(Path, "rename", self.wrap(Path.rename))

    def wrap(self, write: Callable[..., object]) -> Callable[..., object]:
        def interrupted(*arguments: object) -> object:
            self.left -= 1
            self.struck |= self.left == 0
            if self.left == 0 and not self.after:
                raise KeyboardInterrupt
            answer = write(*arguments)
            if self.left == 0:
                raise KeyboardInterrupt
            return answer

        return interrupted


@pytest.mark.parametrize("at", range(1, 6))
def test_an_interrupted_create_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    with monkeypatch.context() as patched:
        Interrupter(patched, at, after=False)
        with pytest.raises(KeyboardInterrupt):
            ca.create(tmp_path / "pki")
    assert tree(tmp_path) == {}
    ca.create(tmp_path / "pki")


@pytest.mark.parametrize("at", range(1, 6))
def test_an_interrupted_issue_leaves_nothing(
    pki: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    before = tree(pki)
    with monkeypatch.context() as patched:
        interrupter = Interrupter(patched, at, after=False)
        with pytest.raises(KeyboardInterrupt):
            ca.issue(pki, "phone", Role.DEVICE)
    assert interrupter.struck
    assert tree(pki) == before
    ca.issue(pki, "phone", Role.DEVICE)


def test_an_interrupt_that_comes_too_late_leaves_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pki = tmp_path / "pki"
    for make in (lambda: ca.create(pki), lambda: ca.issue(pki, "phone", Role.DEVICE)):
        with monkeypatch.context() as patched:
            Interrupter(patched, 5, after=True)
            with pytest.raises(KeyboardInterrupt):
                make()
    serial = load_identity(pki / "phone", ask_passphrase).certificate.serial
    assert ca.revoke(pki, "phone").revoked == {serial}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(1, 4))
def test_an_interrupted_revoke_can_be_repeated(
    pki: Path, monkeypatch: pytest.MonkeyPatch, at: int, after: bool
) -> None:
    serial = ca.issue(pki, "phone", Role.DEVICE).serial
    trust = load_trust(pki / "phone")
    with monkeypatch.context() as patched:
        Interrupter(patched, at, after)
        with pytest.raises(KeyboardInterrupt):
            ca.revoke(pki, "phone")
    assert not (pki / "ca" / "lock").exists()
    was_done = serial in trust.revocation_list().revoked
    assert was_done is (at == 3 and after)
    if was_done:
        with pytest.raises(UserError, match="already"):
            ca.revoke(pki, "phone")
    else:
        ca.revoke(pki, "phone")
    assert serial in trust.revocation_list().revoked


# The table ----------------------------------------------------------------------------------------


def test_the_table_tells_what_became_of_each_certificate(pki: Path) -> None:
    now = datetime.now(timezone.utc)
    ca.issue(pki, "good", Role.SERVER)
    ca.issue(pki, "old", Role.DEVICE, not_before=now - 2 * DAY, days=1)
    ca.issue(pki, "future", Role.DEVICE, not_before=now + DAY)
    ca.issue(pki, "bad", Role.DEVICE, not_after=now + DAY)
    ca.issue(pki, "x" * 64, Role.DEVICE)
    (pki / "ca" / "revoked" / ".DS_Store").touch()
    (pki / "ca" / "issued" / "0123456789abcdef.json.1.partial").touch()
    ca.revoke(pki, "bad")
    assert statuses(pki) == {
        "good": "valid",
        "old": "expired",
        "future": "not yet valid",
        "bad": "revoked",
        "x" * 18 + "..": "valid",
    }
    lines = ca.table(pki, now)
    assert lines[-1].startswith("revocation list: number 2, next update 20")
    assert all(len(line) <= 79 for line in lines)


def test_the_table_says_what_is_revoked_but_not_on_the_list_yet(pki: Path) -> None:
    """As after a power cut between the two; it can be revoked again then."""
    serial = ca.issue(pki, "phone", Role.DEVICE).serial
    (pki / "ca" / "revoked" / serial).touch()
    assert statuses(pki) == {"phone": "revoked, not listed"}
    ca.revoke(pki, "phone")
    assert statuses(pki) == {"phone": "revoked"}


def test_the_table_says_when_the_list_is_no_good(pki: Path) -> None:
    (pki / "revocation_list.json").write_bytes(b"nonsense" * 20)
    line = ca.table(pki, datetime.now(timezone.utc))[-1]
    assert line.startswith("revocation list: RevocationListUnusable")
    assert len(line) <= 79


# The program --------------------------------------------------------------------------------------


def test_the_commands_make_what_the_functions_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pki = tmp_path / "pki"
    run(monkeypatch, "create", pki, "--name", "school")
    run(monkeypatch, "issue", pki, "phone", "--role", "device", "--days", "2")
    run(
        monkeypatch,
        "issue",
        pki,
        "home",
        "--role",
        "server",
        "--not-before",
        "2020-01-31T12:00:00Z",
        "--not-after",
        "2021-01-31T12:00:00Z",
    )
    run(monkeypatch, "revoke", pki, "phone")
    run(monkeypatch, "refresh", pki, "--days", "9")
    run(monkeypatch, "list", pki)
    phone, home = (
        parse_certificate((pki / name / "certificate.json").read_bytes())
        for name in ("phone", "home")
    )
    assert (phone.issuer, phone.role, phone.not_after - phone.not_before) == (
        "school",
        Role.DEVICE,
        2 * DAY + CLOCK_SKEW,
    )
    assert (home.role, home.not_before.year, home.not_after.year) == (Role.SERVER, 2020, 2021)
    latest = parse_revocation_list((pki / "revocation_list.json").read_bytes())
    assert (latest.number, latest.revoked) == (3, frozenset([phone.serial]))
    assert latest.next_update - latest.this_update == 9 * DAY
    out, err = capsys.readouterr()
    assert f"{phone.serial}  phone                 device  " in out
    assert "revocation list: number 3, 1 revoked, next update 20" in out
    assert err == ""
    assert "PRIVATE" not in out


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("", "required: command"),
        ("frobnicate {pki}", "invalid choice"),
        ("issue {pki} phone", "--role"),
        ("issue {pki} phone --role authority", "--role: invalid choice"),
        ("issue {pki} phone --role device --days 0", "--days: .* is not a whole number from 1"),
        ("issue {pki} phone --role device --days 999999999", "days are too many"),
        (
            "issue {pki} phone --role device --days 99999999999999999999",
            "--days: .* is not a whole",
        ),
        (
            "issue {pki} phone --role device --not-after 2020-01-31",
            "--not-after: .* is not a time in UTC like",
        ),
        ("issue {pki} phone --role device --not-after 2020-01-31T12:00:00Z", "before it begins"),
        ("issue {pki}/none phone --role device", "No such file"),
        ("issue {pki}/ca/number phone --role device", "Not a directory"),
        ("issue {pki}/ca/issued phone --role device", "authority.json: No such file"),
        ("refresh {pki} --days -1", "--days: .* is not a whole number from 1"),
        ("refresh {pki} --days 999999999", "days are too many"),
        ("refresh {pki}/ca", "No such file"),
        ("revoke {pki} phone", "no certificate"),
        ("revoke {pki}/none phone", "No such file"),
        ("list {pki}/none", "No such file"),
        ("create {pki}/no/where", "No such file"),
        ("create {pki}/x --passphrase=secret", "ignored explicit argument"),
    ],
)
def test_a_wrong_command_says_why_and_changes_nothing(
    pki: Path, monkeypatch: pytest.MonkeyPatch, flags: str, reason: str
) -> None:
    before = tree(pki)
    with pytest.raises(UserError, match=reason):
        run(monkeypatch, *flags.format(pki=pki).split())
    assert tree(pki) == before


@pytest.mark.parametrize(
    "name", ["issued/0000000000000000.json", "number", "authority.json", "private_key.pem"]
)
def test_a_spoilt_file_of_the_authority_is_named_and_not_shown(pki: Path, name: str) -> None:
    ca.issue(pki, "phone", Role.DEVICE)
    (pki / "ca" / name).write_bytes(b"nonsense")
    (pki / "ca" / name).chmod(0o600)
    with pytest.raises(UserError, match=Path(name).name) as refused:
        ca.revoke(pki, "phone")
    assert "nonsense" not in str(refused.value)  # it could be a key
    assert not (pki / "ca" / "lock").exists()


def test_a_record_of_the_authority_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca" / "issued" / "0.json").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot read"):
        ca.issued_certificates(tmp_path)


def test_a_lock_that_cannot_be_made_is_reported_to_the_user(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot make"):
        locked(tmp_path / "nowhere" / "lock").__enter__()


def test_a_key_of_another_authority_signs_nothing(tmp_path: Path, pki: Path) -> None:
    ca.create(tmp_path / "other")
    (tmp_path / "other" / "ca" / "private_key.pem").replace(pki / "ca" / "private_key.pem")
    for attempt in (lambda: ca.issue(pki, "phone", Role.DEVICE), lambda: ca.refresh(pki)):
        with pytest.raises(UserError, match="does not match"):
            attempt()


@pytest.mark.slow
def test_passphrases_are_typed_twice_when_made_and_once_when_used(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    typed: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    pki = tmp_path / "pki"
    typed[:] = ["for the ca", "for the ca"]
    run(monkeypatch, "create", pki, "--passphrase")
    typed[:] = ["for the phone", "for the phone", "for the ca"]
    run(monkeypatch, "issue", pki, "phone", "--role", "device", "--passphrase")
    for command in (("revoke", pki, "phone"), ("refresh", pki)):
        typed[:] = ["for the ca"]
        run(monkeypatch, *command)
    assert typed == []
    for path in (pki / "ca", pki / "phone"):
        assert b"ENCRYPTED" in (path / "private_key.pem").read_bytes()
    load_identity(pki / "phone", lambda prompt: "for the phone")
    assert "for the" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_wrong_passphrase_changes_nothing(tmp_path: Path, typed: list[str]) -> None:
    pki = tmp_path / "pki"
    ca.create(pki, passphrase="correct horse")
    before = tree(tmp_path)
    for attempt in (lambda: ca.issue(pki, "phone", Role.DEVICE), lambda: ca.refresh(pki)):
        typed[:] = ["battery staple"]
        with pytest.raises(UserError, match="the passphrase is wrong"):
            attempt()
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("answers", "reason"),
    [([""], "1 to 1023 bytes"), (["x" * 1_024], "1 to 1023 bytes"), (["one", "two"], "different")],
)
def test_a_bad_new_passphrase_makes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    typed: list[str],
    answers: list[str],
    reason: str,
) -> None:
    typed[:] = answers
    with pytest.raises(UserError, match=reason):
        run(monkeypatch, "create", tmp_path / "pki", "--passphrase")
    assert tree(tmp_path) == {}


def test_a_passphrase_that_nobody_types_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(prompt: str) -> NoReturn:
        raise EOFError

    monkeypatch.setattr(getpass, "getpass", nobody)
    with pytest.raises(UserError, match="nobody types one"):
        run(monkeypatch, "create", tmp_path / "pki", "--passphrase")
    assert tree(tmp_path) == {}


@pytest.mark.slow
@posix_only
def test_at_a_terminal_a_passphrase_is_not_shown_and_ctrl_c_makes_nothing(tmp_path: Path) -> None:
    pexpect = pytest.importorskip("pexpect")
    create = [
        "-m",
        "companions.device_transfer.ca",
        "create",
        str(tmp_path / "pki"),
        "--passphrase",
    ]
    program = pexpect.spawn(sys.executable, create, cwd=str(ROOT), encoding="utf-8", timeout=30)
    program.expect("new passphrase for the key of .*: ")
    program.sendintr()
    program.expect(pexpect.EOF)
    program.close()
    assert (program.exitstatus, tree(tmp_path)) == (130, {})
    program = pexpect.spawn(sys.executable, create, cwd=str(ROOT), encoding="utf-8", timeout=30)
    shown = ""
    for prompt in ("new passphrase for .*: ", "the same again: "):
        program.expect(prompt)
        shown += program.before
        program.sendline("correct horse")
    program.expect(pexpect.EOF)
    shown += program.before
    program.close()
    assert program.exitstatus == 0
    assert "horse" not in shown
    assert "made" in shown


# The rule -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_end_imports_the_authority() -> None:
    """A demo may: it plays all parts."""
    importers = {
        path.stem
        for path in (ROOT / "companions").rglob("*.py")
        if "companions.device_transfer.ca" in modules_imported(path)
    }
    assert importers <= {"demo"}
