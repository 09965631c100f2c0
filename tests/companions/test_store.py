"""The folder of received files: all or nothing, nothing overwritten, nothing outside."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companions.device_transfer import store as store_module
from companions.device_transfer.store import (
    JOURNAL,
    MAX_SAME_NAME,
    Store,
    StoreFailed,
    candidates,
    numbered,
)
from companions.device_transfer.transfer import MAX_NAME_BYTES, BadName, safe_name
from program import UserError
from tests.network import at_once
from tests.programs import ROOT

NAMES = (
    st.text(st.characters(), max_size=40)
    | st.text("./\\: CONcom1-_<\u202ea", max_size=8)
    | st.sampled_from(["../../x", "/x", "..", "a/../../x", JOURNAL, "\u017fecret", "a" * 255])
)


def keep(store: Store, name: str, data: bytes = b"new") -> str:
    with store.begin() as partial:
        partial.write(data)
        return partial.keep(name)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextmanager
def folder_inside() -> Iterator[tuple[Path, Path]]:
    """Give an outer folder and one inside it, for each example that hypothesis tries."""
    with tempfile.TemporaryDirectory() as outside:
        inside = Path(outside) / "b" / "c"
        inside.mkdir(parents=True)
        yield Path(outside), inside


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "in")


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_folder_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    """They could swap the content between its verification and its final name."""
    folder = tmp_path / "in"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(UserError, match=r"others can write .*in; make it yours: chmod go-w "):
        Store(folder)
    folder.chmod(0o755)
    assert keep(Store(folder), "a") == "a", "others may read it"


@pytest.fixture(params=["links", "no links", "no os.link"])
def any_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system with hard links, one without, and a Python without."""

    def refuse(*paths: object) -> NoReturn:
        raise PermissionError(errno.EPERM, "no links here")

    if request.param == "no links":
        monkeypatch.setattr(os, "link", refuse)
    elif request.param == "no os.link":
        monkeypatch.delattr(os, "link")


# Names --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("any_system")
def test_a_file_gets_its_name_when_it_is_whole(store: Store) -> None:
    with store.begin() as partial:
        partial.write(b"ab\r\n")
        partial.write(b"")
        partial.write(b"\x1a\nc")
        assert [path.name[0] for path in store.folder.iterdir()] == ["."]
        assert partial.keep("a.png") == "a.png"
    assert contents(store.folder) == {"a.png": b"ab\r\n\x1a\nc"}


@pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX")
def test_stored_files_and_their_folder_are_for_their_owner_only(store: Store) -> None:
    keep(store, "a")
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert (store.folder / "a").stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("any_system")
def test_a_name_that_is_taken_gets_a_number(store: Store) -> None:
    assert [keep(store, "a.tar.gz", bytes([n])) for n in range(3)] == [
        "a.tar.gz",
        "a.tar-2.gz",
        "a.tar-3.gz",
    ]
    assert [keep(store, "b") for _ in range(2)] == ["b", "b-2"]
    assert contents(store.folder)["a.tar-3.gz"] == b"\2"


def test_many_files_of_one_name_end_in_random_digits() -> None:
    names = list(candidates("a.png"))
    assert names[:3] == ["a.png", "a-2.png", "a-3.png"]
    assert len(set(names)) == len(names) == MAX_SAME_NAME
    assert len(names[-1]) == len("a-.png") + 16


def test_when_every_name_is_taken_it_is_not_stored(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(path: Path, final: Path) -> NoReturn:
        raise FileExistsError

    monkeypatch.setattr(store_module, "give_name", taken)
    with pytest.raises(StoreFailed):
        keep(store, "a")
    assert not contents(store.folder)


@pytest.mark.slow
@given(NAMES.filter(lambda name: name.isprintable()), st.sampled_from(["-2", "-0123456789abcdef"]))
def test_a_numbered_name_is_a_safe_one_too(name: str, mark: str) -> None:
    try:
        safe = safe_name(name)
    except BadName:
        return
    assert len(numbered(safe, mark).encode()) <= MAX_NAME_BYTES
    assert safe_name(numbered(safe, mark)) == numbered(safe, mark)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("é" * 127, "é" * 126 + "-2"),
        ("x" * 251 + ".png", "x" * 249 + "-2.png"),
        ("a." + "x" * 253, "a." + "x" * 251 + "-2"),
    ],
)
def test_a_long_name_loses_its_end_but_not_its_ending(name: str, expected: str) -> None:
    assert numbered(name, "-2") == expected


@pytest.mark.slow
@given(st.lists(NAMES, max_size=6))
def test_no_name_whatsoever_leaves_the_folder_or_overwrites(names: list[str]) -> None:
    with folder_inside() as (outside, inside):
        for taken in (outside / "x", outside / "b" / "x", inside / "a", inside / "_"):
            taken.write_bytes(b"old")
        store = Store(inside)
        kept: dict[str, bytes] = {"a": b"old", "_": b"old"}
        for number, name in enumerate(names):
            try:
                used = keep(store, name, bytes([number]))
            except BadName:
                continue
            assert used not in kept
            kept[used] = bytes([number])
        assert contents(inside) == kept
        assert sorted(path.name for path in outside.iterdir()) == ["b", "x"]
        assert sorted(path.name for path in (outside / "b").iterdir()) == ["c", "x"]
        assert (outside / "x").read_bytes() == (outside / "b" / "x").read_bytes() == b"old"


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "..", "", "a/b", "a\0"])
def test_a_path_is_refused_here_too(store: Store, name: str) -> None:
    with pytest.raises(BadName):
        keep(store, name)
    with pytest.raises(BadName):
        store.remove(name)
    assert not contents(store.folder)


@pytest.mark.parametrize("name", ["../x", "/x", "", ".", ".."])
def test_the_folder_is_not_left_even_if_names_were_not_checked(
    store: Store, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(store_module, "safe_name", lambda name: name)
    with pytest.raises(BadName):
        keep(store, name)
    assert not (store.folder.parent / "x").exists()


@pytest.mark.parametrize(
    "name", [JOURNAL, "Journal.JSONL", "\uff4aournal.jsonl", "journal.j\u017fonl"]
)
def test_no_file_gets_the_name_of_the_journal(store: Store, name: str) -> None:
    assert keep(store, name) == "_" + name


def test_an_awkward_name_is_mended_on_the_disk(store: Store) -> None:
    for name, kept in (("CON.txt", "_CON.txt"), (".hidden", "_hidden"), ("a?", "a_")):
        with store.begin() as partial:
            assert partial.keep(name) == kept
        assert (store.folder / kept).is_file()


@pytest.mark.skipif(os.name != "posix", reason="making links may need rights")
@pytest.mark.usefixtures("any_system")
@pytest.mark.parametrize("target", ["victim", "nowhere"])
def test_a_link_in_the_folder_is_not_followed(store: Store, target: str) -> None:
    victim = store.folder.parent / "victim"
    victim.write_bytes(b"old")
    (store.folder / "a").symlink_to(victim.with_name(target))
    assert keep(store, "a") == "a-2"
    assert victim.read_bytes() == b"old"
    assert not victim.with_name("nowhere").exists()
    assert (store.folder / "a").is_symlink()


def test_a_folder_of_that_name_is_no_hindrance(store: Store) -> None:
    (store.folder / "a").mkdir()
    assert keep(store, "a") == "a-2"


def test_a_system_that_knows_no_case_loses_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def folding(source: Path, final: Path) -> None:
        if final.name.casefold() in {path.name.casefold() for path in store.folder.iterdir()}:
            raise FileExistsError(errno.EEXIST, "the same in other letters")
        link(source, final)

    monkeypatch.setattr(os, "link", folding)
    assert [keep(store, name) for name in ("a.png", "A.PNG", "A.png")] == [
        "a.png",
        "A-2.PNG",
        "A-3.png",
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("any_system")
def test_threads_that_keep_one_name_lose_nothing(store: Store) -> None:
    used: list[tuple[str, bytes]] = []

    def work(number: int) -> None:
        for turn in range(5):
            data = bytes([number, turn])
            used.append((keep(store, "a.png", data), data))

    at_once(*(partial(work, number) for number in range(8)))
    assert len(used) == 40
    assert contents(store.folder) == dict(used)


# Failures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["write", "fsync", "close"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_leaves_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    real_close = os.close

    def full(file: int, *data: bytes) -> NoReturn:
        if name == "close":
            real_close(file)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, name, full)
    with pytest.raises(StoreFailed) as failed:
        keep(store, "a")
    monkeypatch.undo()
    assert failed.value.got == os.strerror(number)
    assert not contents(store.folder)


def test_a_folder_without_room_for_a_name_leaves_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = os.open

    def full(*given: object, **named: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full_for_final(path: Path, flags: int, mode: int = 0o777) -> int:
        if path.name == "a":
            full()
        return real_open(path, flags, mode)

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(os, "open", full_for_final)
    with pytest.raises(StoreFailed) as failed:
        keep(store, "a")
    monkeypatch.undo()
    assert failed.value.got == os.strerror(errno.ENOSPC)
    assert not contents(store.folder)


def test_a_rename_that_fails_gives_the_name_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*paths: object) -> NoReturn:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "link", fail)
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StoreFailed):
        keep(store, "a")
    assert not contents(store.folder)


def test_a_name_that_the_system_has_no_letters_for_is_a_failure(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an ASCII locale; elsewhere the same file could be stored."""

    def link(path: Path, final: Path) -> None:
        os.fspath(final).encode("ascii")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(StoreFailed, match="'ascii' codec"):
        keep(store, "\u00fc.txt")
    assert not contents(store.folder)


def test_a_new_file_that_cannot_be_made_is_a_failure(store: Store) -> None:
    store.folder.rmdir()
    with pytest.raises(StoreFailed) as failed:
        store.begin()
    assert failed.value.got == os.strerror(errno.ENOENT)


def test_short_writes_are_continued(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:3]))
    assert keep(store, "a", bytes(range(10))) == "a"
    assert contents(store.folder) == {"a": bytes(range(10))}


def test_leaving_without_keep_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real_close = os.close

    def broken(file: int) -> NoReturn:
        real_close(file)
        raise OSError(errno.EIO, "broken")

    def interrupted() -> None:
        with store.begin() as partial:
            partial.write(b"x")
            raise KeyboardInterrupt

    with store.begin() as partial:
        partial.write(b"x")
    monkeypatch.setattr(os, "close", broken)  # which must not hide what has happened
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    monkeypatch.undo()
    assert not contents(store.folder)


def test_after_the_end_nothing_is_written(store: Store) -> None:
    with store.begin() as partial:
        partial.keep("a")
        with pytest.raises(StoreFailed):
            partial.write(b"x")
        with pytest.raises((StoreFailed, ValueError)):  # a mistake of ours, whichever it is
            partial.keep("b")
    assert contents(store.folder) == {"a": b""}


def test_a_file_can_be_taken_back(store: Store) -> None:
    keep(store, "a")
    store.remove(keep(store, "a"))
    assert list(contents(store.folder)) == ["a"]
    with pytest.raises(StoreFailed):
        store.remove("b")


KILLED = """
import sys
from pathlib import Path
from companions.device_transfer.store import Store
with Store(Path(sys.argv[1])).begin() as partial:
    partial.write(b"half")
    print("written", flush=True)
    sys.stdin.read()
    partial.keep("a")
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is of POSIX")
def test_a_server_killed_while_it_writes_leaves_no_file(store: Store) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(store.folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline().strip() == b"written"
        program.send_signal(signal.SIGKILL)
    assert list(contents(store.folder).values()) == [b"half"]
    assert "a" not in contents(store.folder)
    assert store.clean() == 1
    assert not contents(store.folder)


def test_cleaning_removes_nothing_else(store: Store) -> None:
    for name in ("a.partial", ".a.partial", f"{'0' * 16}.partial", f".{'0' * 16}.partial.png"):
        (store.folder / name).write_bytes(b"")
    assert store.clean() == 0
    (store.folder / f".{'0' * 16}.partial").write_bytes(b"")
    assert store.clean() == 1
    assert len(contents(store.folder)) == 4


def test_a_folder_that_cannot_be_one_is_the_users_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file" / "x", tmp_path / "no" / "x"):
        with pytest.raises(UserError):
            Store(path)
    store = Store(tmp_path / "in")
    store.folder.rmdir()
    with pytest.raises(UserError):
        store.clean()
