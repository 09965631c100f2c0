"""Evidence in one step: attacked, drawn, and opened with what is there."""

from __future__ import annotations

import os
import shlex
import socket
from pathlib import Path

import pytest

from tests.programs import ROOT, Done, posix_only, run

pytestmark = pytest.mark.slow


def see(*words: str, **variables: str) -> Done:
    """Run it where there is neither a browser nor Wireshark, but for what the variables say."""
    hidden = dict.fromkeys(("DISPLAY", "WAYLAND_DISPLAY", "PATH", "BROWSER"), "")
    return run("run.py", *words, env={**hidden, **variables})


@posix_only
def test_the_page_of_a_family_is_drawn_and_opened(tmp_path: Path) -> None:
    opened = tmp_path / "opened"
    page = tmp_path / "page.html"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$@" > {shlex.quote(str(opened))}\n')
    browser.chmod(0o755)
    done = see("report", "secrecy", "-o", str(page), BROWSER=f"{browser} %s")
    assert (done.returncode, done.stdout) == (0, f"wrote {page}: 2 runs\n")
    assert opened.read_text() == f"{page.as_uri()}\n"
    assert "padding-oracle" in page.read_text("utf-8")


@posix_only
def test_without_a_browser_the_path_is_printed_and_a_win_is_no_failure(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = see("report", "--without", "tag", "flip-reading", "-o", str(page))
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        [f"wrote {page}: 1 run", "there is no browser here: open that file in one"],
    )
    assert "[900.0, 20.5, 21.0, 22.5]" in page.read_text("utf-8")


@posix_only
def test_packets_are_opened_in_wireshark_with_the_dissector(tmp_path: Path) -> None:
    told = tmp_path / "told"
    packets = tmp_path / "run.pcapng"
    os.mkfifo(told)
    wireshark = tmp_path / "wireshark"
    wireshark.write_text(f'#!/bin/sh\necho "$@" > {shlex.quote(str(told))}\n')
    wireshark.chmod(0o755)
    done = see("capture", "flip-tag", "-o", str(packets), PATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, f"wrote {packets}: 1 run\n")
    dissector = ROOT / "classroom" / "wireshark" / "seclab.lua"
    assert told.read_text() == f"-X lua_script:{dissector} {packets}\n"
    assert packets.read_bytes()[:4] == b"\n\r\r\n"


def test_a_name_that_no_attack_has_is_one_sentence_and_no_file(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = see("report", "nonsense", "-o", str(page))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[1:] == [
        "attacks.py: no attack is named nonsense; --list names them all"
    ]
    assert not page.exists()


def test_a_server_is_attacked_without_the_seed_of_our_own_however_it_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = "{}:{}".format(*taken.getsockname())
    for words in (["--server", free], [f"--server={free}"]):
        done = see("report", *words, "-o", os.devnull)
        assert done.returncode == 3
        assert done.stderr.splitlines()[1:] == [
            f"attacks.py: no server at {free}: nothing listens there"
        ]


@pytest.mark.parametrize(
    "word", ["--list", "--rules", "--step", "--events=mine", "--json", "--lis"]
)
def test_a_flag_that_draws_nothing_is_refused_before_any_attack(tmp_path: Path, word: str) -> None:
    page = tmp_path / "page.html"
    done = see("report", word, "flip-tag", "-o", str(page))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"run.py: {word.removesuffix('=mine')}")
    assert " goes with attacks.py only" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not page.exists()


def test_a_seed_counts_however_short_its_flag(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert see("report", "flip-tag", "--see", "7", "-o", str(page)).returncode == 0
    assert "--seed 7" in page.read_text("utf-8")
