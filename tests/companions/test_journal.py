"""The journal: written whole or not at all, and verified by anybody, later."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companions.asymmetric import PrivateKey, public_pem
from companions.canonical import canonical
from companions.device_transfer import certificates
from companions.device_transfer import journal as journal_module
from companions.device_transfer.certificates import (
    Certificate,
    RevocationList,
    Role,
    Trust,
    issue,
    sign_revocation_list,
)
from companions.device_transfer.journal import (
    MAX_LINE_BYTES,
    Entry,
    Journal,
    Verdict,
    describe,
    main,
    parse_entry,
    shorten,
    verify,
)
from companions.device_transfer.store import JOURNAL, StoreFailed
from companions.device_transfer.transfer import ItemKind, Manifest, sign_manifest, split_signed
from program import UserError
from tests.programs import run, posix_only

NOW = datetime(2026, 1, 31, 12, tzinfo=timezone.utc)
DAY = timedelta(days=1)


@dataclass(frozen=True)
class World:
    """An authority (key 0), its camera (key 1), and what they sign."""

    keys: list[PrivateKey]

    @cached_property
    def camera(self) -> Certificate:
        return self.certificate()

    def certificate(self, **other: Any) -> Certificate:
        members: dict[str, Any] = {
            "issuer": "authority",
            "common_name": "camera",
            "role": Role.DEVICE,
            "public_key": self.keys[1].public_key(),
            "not_before": NOW - DAY,
            "not_after": NOW + DAY,
            "serial": "0" * 16,
        }
        return issue(other.pop("authority", self.keys[0]), **{**members, **other})

    def revoked(self, *serials: str) -> bytes:
        return sign_revocation_list(
            self.keys[0],
            issuer="authority",
            number=1,
            this_update=NOW,
            revoked=serials,
            next_update=NOW + 100 * DAY,
        ).encoded

    def trust(self, *serials: str) -> Trust:
        """Trust as it is 50 days later, when the certificate has expired."""
        latest = self.revoked(*serials)
        return Trust(self.keys[0].public_key(), "authority", lambda: latest, lambda: NOW + 50 * DAY)

    def entry(
        self,
        kind: ItemKind,
        name: str,
        data: bytes,
        number: int = 0,
        *,
        certificate: Certificate | None = None,
        stored_as: str | None = None,
        **other: Any,
    ) -> Entry:
        said = replace(
            Manifest(
                kind,
                name,
                len(data),
                hashlib.sha256(data).hexdigest(),
                NOW,
                "5" * 32,
                number,
                "camera",
                "server",
            ),
            **other,
        )
        signature, _ = split_signed(sign_manifest(self.keys[1], said))
        received = said.time + timedelta(seconds=9)
        signed = (certificate or self.camera, said, signature, received)
        if kind == "text":
            return Entry(*signed, text=data.decode())
        return Entry(*signed, stored_as=name if stored_as is None else stored_as)


@pytest.fixture(scope="module")
def world(keys: list[PrivateKey]) -> World:
    return World(keys)


@pytest.fixture
def folder(tmp_path: Path, world: World) -> Path:
    """A folder with a text, two files of the same size, and their journal."""
    (tmp_path / "a.png").write_bytes(b"PNG 1")
    (tmp_path / "b.png").write_bytes(b"PNG 2")
    write(
        tmp_path,
        world.entry("text", "", "héllo\n".encode()),
        world.entry("file", "a.png", b"PNG 1", 1),
        world.entry("file", "b.png", b"PNG 2", 2),
    )
    return tmp_path


def write(folder: Path, *entries: Entry) -> None:
    journal = Journal(folder / JOURNAL)
    for entry in entries:
        journal.append(entry)
    journal.close()


def problems(folder: Path, trust: Trust) -> list[str]:
    return [verdict.problem for verdict in verify(folder, trust)]


# Lines --------------------------------------------------------------------------------------------


def test_a_line_stands_for_itself(world: World) -> None:
    entry = world.entry("text", "", b"x")
    line = entry.encode()
    assert parse_entry(line) == entry
    assert list(json.loads(line)) == [
        "certificate",
        "manifest",
        "received",
        "signature",
        "stored_as",
        "text",
    ]
    assert canonical(json.loads(line)["manifest"]) == entry.manifest.encode()
    assert b"\n" not in line


def test_the_longest_text_is_a_line_that_can_be_verified(tmp_path: Path, world: World) -> None:
    write(tmp_path, world.entry("text", "", b"\0" * 65_536))
    assert problems(tmp_path, world.trust()) == [""]


# Writing ------------------------------------------------------------------------------------------


@posix_only
def test_nobody_else_can_read_the_journal(folder: Path) -> None:
    assert (folder / JOURNAL).stat().st_mode & 0o777 == 0o600


def test_a_journal_goes_on_where_it_ended(folder: Path, world: World) -> None:
    write(folder, world.entry("text", "", b"x", 3))
    assert problems(folder, world.trust()) == [""] * 4


@pytest.mark.parametrize("name", ["write", "fsync"])
def test_a_line_that_does_not_fit_leaves_nothing(
    folder: Path, world: World, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    before = (folder / JOURNAL).read_bytes()
    journal = Journal(folder / JOURNAL)

    def full(file: int, data: bytes = b"") -> int:
        if len(data) > 100:  # a disk with room for some of it
            return real(file, data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    entry = world.entry("text", "", b"x" * 54, 3)
    monkeypatch.setattr(os, name, full)
    with pytest.raises(StoreFailed) as failed:
        journal.append(entry)
    monkeypatch.undo()
    assert failed.value.got == os.strerror(errno.ENOSPC)
    assert (folder / JOURNAL).read_bytes() == before
    journal.append(entry)
    journal.close()
    assert problems(folder, world.trust()) == [""] * 4


def test_after_a_torn_line_comes_a_whole_one(folder: Path, world: World) -> None:
    (folder / JOURNAL).write_bytes((folder / JOURNAL).read_bytes()[:-40])
    assert problems(folder, world.trust()) == ["", "", "torn line"]
    write(folder, world.entry("text", "", b"x", 3), world.entry("text", "", b"y", 4))
    assert problems(folder, world.trust()) == ["", "", "unreadable line", "", ""]


def test_threads_write_whole_lines(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / JOURNAL)
    real = os.write
    first, second = (world.entry("text", "", b"x", number) for number in range(2))
    other = threading.Thread(target=journal.append, args=(second,))

    def in_steps(file: int, data: bytes) -> int:
        written = real(file, data[:100])
        if not other.ident:
            other.start()
            other.join(0.1)  # in which it would write between two steps, if it could
        return written

    monkeypatch.setattr(os, "write", in_steps)
    journal.append(first)
    other.join()
    journal.close()
    assert [one.entry for one in verify(tmp_path, world.trust())] == [first, second]


def test_a_journal_that_cannot_be_is_the_users_fault(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        Journal(tmp_path)
    with pytest.raises(UserError):
        Journal(tmp_path / "nowhere" / JOURNAL)


@posix_only
def test_a_pipe_is_no_journal(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / JOURNAL)
    with pytest.raises(UserError, match=r"cannot keep a journal in .*: it is not a regular file"):
        Journal(tmp_path / JOURNAL)
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("it would wait for a writer"))
    with pytest.raises(UserError, match=r"cannot read .*: it is not a regular file"):
        next(verify(tmp_path, world.trust()))


@posix_only
@pytest.mark.parametrize("is_replaced", [False, True])
def test_into_a_journal_that_was_moved_nothing_is_written(
    folder: Path, world: World, is_replaced: bool
) -> None:
    before = (folder / JOURNAL).read_bytes()
    journal = Journal(folder / JOURNAL)
    (folder / JOURNAL).rename(folder / "journal.1")
    if is_replaced:
        (folder / JOURNAL).write_bytes(before)
    with pytest.raises(StoreFailed):
        journal.append(world.entry("text", "", b"x", 3))
    assert (folder / "journal.1").read_bytes() == before
    (folder / "journal.1").replace(folder / JOURNAL)
    journal.append(world.entry("text", "", b"x", 3))
    journal.close()
    assert problems(folder, world.trust()) == [""] * 4


def test_where_no_folder_can_be_locked_a_journal_is_kept_all_the_same(
    folder: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, which opens no folders."""
    monkeypatch.delattr(os, "O_DIRECTORY", raising=False)
    write(folder, world.entry("text", "", b"x", 3))
    assert problems(folder, world.trust()) == [""] * 4


@posix_only
def test_where_only_files_can_be_locked_the_journal_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, which makes of this lock another, for which a file has to be open for writing."""
    import fcntl

    real = fcntl.flock

    def flock(file: int, operation: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EBADF, "not open for writing")
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    first = Journal(folder / JOURNAL)
    with pytest.raises(UserError, match="another server"):
        Journal(folder / JOURNAL)
    first.close()


@posix_only
def test_a_journal_has_one_writer(tmp_path: Path) -> None:
    first = Journal(tmp_path / "journal.jsonl")
    with pytest.raises(UserError, match="another server"):
        Journal(tmp_path / "journal.jsonl")
    (tmp_path / "journal.jsonl").rename(tmp_path / "journal.1")  # the lock does not go along
    with pytest.raises(UserError, match="another server"):
        Journal(tmp_path / "journal.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["journal.1"]
    first.close()
    Journal(tmp_path / "journal.jsonl").close()


def test_after_the_end_no_line_is_written(folder: Path, world: World) -> None:
    journal = Journal(folder / JOURNAL)
    journal.close()
    journal.close()
    with pytest.raises(StoreFailed):
        journal.append(world.entry("text", "", b"x"))


# Verifying ----------------------------------------------------------------------------------------


def test_what_was_received_is_verified_after_the_certificate_has_expired(
    folder: Path, world: World
) -> None:
    entries = [
        world.entry("text", "", "héllo\n".encode()),
        world.entry("file", "a.png", b"PNG 1", 1),
        world.entry("file", "b.png", b"PNG 2", 2),
    ]
    (folder / JOURNAL).unlink()
    write(folder, *entries)
    assert list(verify(folder, world.trust())) == [
        Verdict(line, entry, "") for line, entry in enumerate(entries, 1)
    ]


def damage_link(folder: Path) -> None:
    (folder / "b.png").rename(folder / "c.png")
    (folder / "b.png").symlink_to("c.png")


def damage_swap(folder: Path) -> None:
    (folder / "b.png").rename(folder / "c.png")
    (folder / "a.png").rename(folder / "b.png")
    (folder / "c.png").rename(folder / "a.png")


def damage_folder(folder: Path) -> None:
    (folder / "b.png").unlink()
    (folder / "b.png").mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "removed": (lambda folder: (folder / "b.png").unlink(), ["", "", "file is missing"]),
    "edited": (
        lambda folder: (folder / "b.png").write_bytes(b"PNG 3"),
        ["", "", "content differs"],
    ),
    "cut": (lambda folder: (folder / "b.png").write_bytes(b"PNG "), ["", "", "size differs"]),
    "longer": (lambda folder: (folder / "b.png").write_bytes(b"PNG 22"), ["", "", "size differs"]),
    "swapped": (damage_swap, ["", "content differs", "content differs"]),
    "folder": (damage_folder, ["", "", "not a file"]),
    "link": (damage_link, ["", "", "not a file"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_noticed(folder: Path, world: World, damage: str) -> None:
    if damage == "link" and os.name != "posix":
        pytest.skip("making links may need rights")
    change, expected = DAMAGES[damage]
    change(folder)
    assert problems(folder, world.trust()) == expected


def test_a_file_that_the_system_refuses_is_noticed(
    folder: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> NoReturn:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(Path, "lstat", refuse)
    assert problems(folder, world.trust())[1] == "file is unreadable"


def lines_of(folder: Path) -> list[bytes]:
    return (folder / JOURNAL).read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("kept", "found"),
    [
        ([0, 1, 2, 1], ["", "", "", "same as line 2"]),
        ([2, 0], ["", ""]),  # a removed line, or another order: the docstring says so
    ],
    ids=["repeated", "removed and turned round"],
)
def test_a_repeated_line_is_noticed_and_nothing_more_is_claimed(
    folder: Path, world: World, kept: list[int], found: list[str]
) -> None:
    lines = lines_of(folder)
    (folder / JOURNAL).write_bytes(b"".join(lines[number] for number in kept))
    assert problems(folder, world.trust()) == found


def test_where_a_file_is_stored_under_another_name_is_shown(folder: Path, world: World) -> None:
    (folder / "a-2.png").write_bytes(b"picture")
    entry = world.entry("file", "a.png", b"picture", stored_as="a-2.png")
    (folder / JOURNAL).write_bytes(entry.encode() + b"\n")
    first, second = describe(next(verify(folder, world.trust()))).splitlines()
    assert first.endswith(" ok")
    assert second.strip() == 'stored as "a-2.png"'
    named = replace(entry, stored_as="\x1b\u202e" * 60 + ".png")
    assert all(len(line) <= 79 for line in describe(Verdict(1, named, "")).splitlines())
    assert describe(Verdict(1, named, "")).isascii()
    assert "\x1b" not in describe(Verdict(1, named, ""))
    assert len(describe(Verdict(1, replace(entry, stored_as="a.png"), "")).splitlines()) == 1


def test_a_list_is_judged_once_for_all_lines(
    folder: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[bytes] = []
    parse = certificates.parse_revocation_list

    def counted(encoded: bytes) -> RevocationList:
        judged.append(encoded)
        return parse(encoded)

    trust = world.trust("0" * 16)
    monkeypatch.setattr(certificates, "parse_revocation_list", counted)
    lines = [world.entry("text", "", b"x", number).encode() + b"\n" for number in range(20)]
    (folder / JOURNAL).write_bytes(b"".join(lines))
    verdicts = [*verify(folder, trust)]
    assert {verdict.remark for verdict in verdicts} == {"revoked by now"}
    assert len(verdicts) == 20
    assert len(judged) == 2, "as it is today, and for the times of the manifests"


def test_a_line_of_another_servers_journal_is_noticed(folder: Path, world: World) -> None:
    write(folder, world.entry("text", "", b"hello", 3, recipient="server-2"))
    assert problems(folder, world.trust()) == ["", "", "", "of another server"]


@pytest.mark.parametrize(
    ("member", "value", "problem"),
    [
        ("text", "hello\n", "size differs"),
        ("text", "hÉllo\n", "content differs"),
        ("stored_as", "a.png", "both text and file"),
        ("received", "2026-01-30T12:00:09Z", "time received"),
        ("received", "yesterday", "unreadable line"),
        ("signature", "0" * 512, "forged manifest"),
        ("signature", "00", "unreadable line"),
        ("signature", "A" * 512, "unreadable line"),
        ("certificate", {}, "unreadable line"),
        ("manifest", {}, "unreadable line"),
        ("extra", "", "unreadable line"),
    ],
)
def test_an_edited_line_is_noticed(
    folder: Path, world: World, member: str, value: object, problem: str
) -> None:
    lines = lines_of(folder)
    lines[0] = canonical({**json.loads(lines[0]), member: value}) + b"\n"
    (folder / JOURNAL).write_bytes(b"".join(lines))
    assert problems(folder, world.trust()) == [problem, "", ""]


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("kind", "file"),
        ("name", "x"),
        ("size", 10**400),
        ("number", 9),
        ("digest", "0" * 64),
        ("time", "2026-01-31T12:00:01Z"),
        ("session", "6" * 32),
        ("sender", "other"),
        ("recipient", "other"),
    ],
)
def test_each_edited_member_of_a_manifest_is_noticed(
    folder: Path, world: World, member: str, value: object
) -> None:
    lines = lines_of(folder)
    line = json.loads(lines[0])
    lines[0] = canonical({**line, "manifest": {**line["manifest"], member: value}}) + b"\n"
    (folder / JOURNAL).write_bytes(b"".join(lines))
    verdicts = list(verify(folder, world.trust()))
    assert [verdict.problem for verdict in verdicts] == ["forged manifest", "", ""]
    assert len(describe(verdicts[0])) <= 79


@pytest.fixture(scope="module")
def hello(world: World) -> Entry:
    """An entry that is the same in all examples: each signature is another."""
    return world.entry("text", "", b"hello")


@pytest.mark.slow
@given(st.data())
def test_no_changed_byte_of_a_line_passes(
    world: World, tmp_path_factory: pytest.TempPathFactory, hello: Entry, data: st.DataObject
) -> None:
    """But in the time of receiving, which nobody has signed."""
    folder = tmp_path_factory.mktemp("changed")
    entry = hello
    line = entry.encode() + b"\n"
    at = data.draw(st.integers(0, len(line) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != line[at]))
    (folder / JOURNAL).write_bytes(line[:at] + bytes([byte]) + line[at + 1 :])
    verdicts = list(verify(folder, world.trust()))
    if any(verdict.problem for verdict in verdicts):
        return
    assert [
        verdict.entry and replace(verdict.entry, received=entry.received) for verdict in verdicts
    ] == [entry]


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "", "..", "a\0"])
def test_a_line_that_names_what_is_outside_is_noticed(
    tmp_path: Path, world: World, name: str
) -> None:
    (tmp_path / "x").write_bytes(b"secret")
    (tmp_path / "in").mkdir()
    write(tmp_path / "in", world.entry("file", "x", b"secret", stored_as=name))
    assert problems(tmp_path / "in", world.trust()) == ["outside the folder"]


def test_a_file_with_a_text_is_noticed(folder: Path, world: World) -> None:
    (folder / JOURNAL).unlink()
    write(folder, replace(world.entry("file", "a.png", b"PNG 1"), text="x"))
    assert problems(folder, world.trust()) == ["both text and file"]


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"{}\n",
        b"[" * 100_000 + b"\n",
        b"\xff\n",
        b'{"size":' + b"9" * 5_000 + b"}\n",
    ],
)
def test_garbage_is_noticed_and_what_follows_verified(
    folder: Path, world: World, line: bytes
) -> None:
    (folder / JOURNAL).write_bytes(line + (folder / JOURNAL).read_bytes())
    assert problems(folder, world.trust()) == ["unreadable line", "", "", ""]


def test_a_line_without_end_is_read_in_pieces(folder: Path, world: World) -> None:
    text = (folder / JOURNAL).read_bytes()
    (folder / JOURNAL).write_bytes(b"x" * (2 * MAX_LINE_BYTES + 1) + b"\n" + text)
    assert problems(folder, world.trust()) == ["torn line"] * 2 + ["unreadable line", "", "", ""]


# Certificates -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("forged", "forged certificate"),
        ("issuer", "forged certificate"),
        ("role", "not a device"),
        ("too early", "not yet certified"),
        ("too late", "expired certificate"),
        ("sender", "another sender"),
        ("key", "forged manifest"),
    ],
)
def test_a_certificate_that_does_not_hold_is_noticed(
    tmp_path: Path, world: World, fault: str, problem: str
) -> None:
    faults: dict[str, dict[str, Any]] = {
        "forged": {"authority": world.keys[2]},
        "issuer": {"issuer": "other"},
        "role": {"role": Role.SERVER},
        "too early": {"not_before": NOW + timedelta(seconds=1)},
        "too late": {"not_after": NOW - timedelta(seconds=1)},
        "sender": {"common_name": "lens"},
        "key": {"public_key": world.keys[2].public_key()},
    }
    write(tmp_path, world.entry("text", "", b"x", certificate=world.certificate(**faults[fault])))
    assert problems(tmp_path, world.trust()) == [problem]


def test_a_revocation_is_remarked(folder: Path, world: World) -> None:
    for trust, remark in (
        (world.trust("0" * 16), "revoked by now"),
        (world.trust("1" * 16), ""),
        (
            Trust(world.keys[0].public_key(), "authority", lambda: b"", lambda: NOW),
            "may be revoked",
        ),
        (
            Trust(world.keys[0].public_key(), "authority", world.revoked, lambda: NOW + 101 * DAY),
            "may be revoked",
        ),
    ):
        found = list(verify(folder, trust))
        assert [(verdict.problem, verdict.remark) for verdict in found] == [("", remark)] * 3


# The program --------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path_factory: pytest.TempPathFactory, world: World) -> Path:
    """PKI/server/authority.json of somebody who trusts the authority, beside its list."""
    pki = tmp_path_factory.mktemp("pki")
    (pki / "server").mkdir()
    path = pki / "server" / "authority.json"
    path.write_bytes(
        canonical(
            {"common_name": "authority", "public_key": public_pem(world.keys[0].public_key())}
        )
    )
    (pki / "revocation_list.json").write_bytes(
        sign_revocation_list(
            world.keys[0],
            issuer="authority",
            number=1,
            this_update=NOW,
            revoked=[],
            next_update=NOW + 40_000 * DAY,
        ).encoded
    )
    return path


def test_the_program_prints_a_line_for_each_item(
    folder: Path,
    authority: Path,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["journal", str(folder), "--authority", str(authority)])
    assert main() == 0
    assert capsys.readouterr() == (
        "2026-01-31T12:00 camera      text                        7 ok\n"
        "2026-01-31T12:00 camera      file a.png                  5 ok\n"
        "2026-01-31T12:00 camera      file b.png                  5 ok\n",
        "",
    )
    (folder / "a.png").unlink()
    with (folder / JOURNAL).open("ab") as file:
        file.write(b"torn")
    assert main() == 1
    assert capsys.readouterr().out.splitlines()[1:] == [
        "2026-01-31T12:00 camera      file a.png                  5 file is missing",
        "2026-01-31T12:00 camera      file b.png                  5 ok",
        "line 4" + 53 * " " + "torn line",
    ]


def test_an_empty_journal_is_said_to_be_one(
    folder: Path,
    authority: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / JOURNAL).write_bytes(b"")
    monkeypatch.setattr(sys, "argv", ["journal", str(folder), "--authority", str(authority)])
    assert main() == 0
    assert capsys.readouterr() == ("0 lines\n", "")


@pytest.mark.slow
@given(
    st.text(st.characters(codec="utf-8")),
    st.from_regex(r"[\w.\x1b-]{1,64}"),
    st.integers(0, 10**400),
)
def test_no_name_breaks_the_line(world: World, name: str, sender: str, size: int) -> None:
    said = Manifest("file", name, size, "", NOW, "", 0, sender, "")
    entry = Entry(world.camera, said, b"", NOW)
    for problem in ("", "expired certificate"):
        line = describe(Verdict(1, entry, problem, "may be revoked"))
        assert len(line) <= 79
        assert line.isascii()
        assert line.isprintable()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["FOLDER"],
        ["FOLDER", "--authority", "x"],
        ["FOLDER", "--authority", "authority.json"],
        ["FOLDER", "--authority", "BESIDE"],
        ["nowhere", "--authority", "AUTHORITY"],
    ],
)
def test_misuse_is_the_users_fault(
    folder: Path, authority: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {
        "FOLDER": str(folder),
        "AUTHORITY": str(authority),
        "BESIDE": str(authority.with_name("certificate.json")),
    }
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["journal", *(places.get(one, one) for one in arguments)])
    with pytest.raises(UserError):
        main()


@pytest.mark.slow
def test_the_program_runs_as_documented(folder: Path, authority: Path) -> None:
    command = ("-m", "companions.device_transfer.journal", folder)
    ran = run(*command, "--authority", authority)
    assert (ran.returncode, ran.stderr, ran.stdout.count(" ok\n")) == (0, "", 3)
    ran = run(*command)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)


def test_what_takes_long_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    moments = iter([0.0, 1.9, 2.1, 2.1, 4.0, 4.2, 4.2])
    progress = journal_module._Progress(lambda: next(moments))
    for _ in range(4):
        progress(1_500_000_000)
    assert capsys.readouterr().err == "3,000 MB hashed\n6,000 MB hashed\n"


def test_verifying_tells_how_much_it_has_hashed(
    folder: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "BLOCK_BYTES", 2)
    told: list[int] = []
    assert [one.problem for one in verify(folder, world.trust(), told.append)] == [""] * 3
    assert told == [2, 2, 1] * 2


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("0123456789", "0123456789"),
        ("01234567890", "0123..7890"),
        ("a" * 30 + ".png", "aaaa...png"),
    ],
)
def test_a_long_name_is_shown_by_its_beginning_and_its_end(text: str, shown: str) -> None:
    assert shorten(text, 10) == shown
