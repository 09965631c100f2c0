"""The first command: a story on one screen, which fails if it does not go as it is told."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence

import pytest

from attacks import ATTACKS
from classroom import first
from lab.catalogue import Attack
from lab.stage import Parts
from lab.verdict import Result
from protocol_fsm import RoundMismatch
from tests.network import serving
from tests.programs import ROOT, posix_only, run

ROWS = 40  # of one screen


def run_main(monkeypatch: pytest.MonkeyPatch, names: Sequence[str] = ("flip-reading",)) -> int:
    """Tell the story, and try these attacks only."""
    every: Mapping[str, Attack] = vars(first)["ATTACKS"]
    monkeypatch.setattr(first, "ATTACKS", {name: every[name] for name in names})
    monkeypatch.setattr(sys, "argv", ["run.py"])
    return first.main()


def test_one_bit_makes_900_of_100_only_where_no_tag_is_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch) == 0
    acts = capsys.readouterr().out.split("\n\n")
    assert "adds up 100 + 20.5 + 21 + 22.5\n" in acts[1] + "\n"
    assert "refuses: BadTag, and ends the session" in acts[2]
    assert "adds up 900 + 20.5 + 21 + 22.5: 900 for 100" in acts[3]
    for act in acts[2:4]:
        before, after = re.findall(r"[01]{8}", act)
        assert int(before, 2) ^ int(after, 2) == 0b1000
    assert "1 refused, 0 not prevented (*); an honest session still works." in acts[4]
    assert acts[5].startswith("next: ")


@pytest.mark.slow
def test_an_attack_that_does_not_end_as_it_should_is_marked_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = dataclasses.replace(ATTACKS["flip-tag"], error=RoundMismatch)
    monkeypatch.setattr(first, "ATTACKS", {**ATTACKS, "flip-tag": wrong})
    assert run_main(monkeypatch, ["flip-reading", "flip-tag"]) == 1
    out = capsys.readouterr().out
    assert "integrity     flip-reading, flip-tag!\n" in out
    assert "1 refused, 0 not prevented (*), 1 NOT AS EXPECTED (!)" in out


@pytest.mark.slow
def test_a_story_that_goes_another_way_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first, "without", lambda missing: Parts())
    assert run_main(monkeypatch) == 1


def test_a_taken_port_is_said_and_not_connected_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving() as (server, journal):
        monkeypatch.setattr(first, "PORT", server.address[1])
        told = first.what_next()
    where = "{}:{}".format(*server.address)
    assert f"run.py attacks --server {where}  something listens there" in told
    assert "--server" not in first.what_next()
    assert not journal.records


@pytest.mark.slow
def test_the_whole_story_is_one_screen_of_plain_text_in_a_pipe() -> None:
    done = run("-m", "classroom.first")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) < 80
    assert len(lines) <= ROWS
    assert done.stdout.isascii()
    assert not re.search(r"[\x1b\r]", done.stdout)
    assert {*re.findall(r"[a-z]+(?:-[a-z]+)*", done.stdout)} >= ATTACKS.keys()


def test_no_line_of_the_table_is_wider_than_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    results = [Result(attack, True, "", "") for attack in ATTACKS.values()]
    rows = {}
    for width in (79, 119):
        monkeypatch.setattr(first, "columns", lambda width=width: width)
        lines = [*first.table(results)]
        assert max(map(len, lines)) <= width
        assert " ".join(lines).count(",") == len(ATTACKS) - len(
            {a.family for a in ATTACKS.values()}
        )
        rows[width] = len(lines)
    assert rows[79] > rows[119]


# On a terminal

SAYS = """
from lab.screen import columns, painted, passing
passing("passing by")
print(columns(), painted("red", "won"))
"""


@pytest.mark.slow
@posix_only
@pytest.mark.parametrize(
    ("width", "variables", "said"),
    [
        (80, {}, "79 \x1b[1;31mred\x1b[0m"),
        (100, {}, "99 \x1b[1;31mred\x1b[0m"),
        (300, {}, "119 \x1b[1;31mred\x1b[0m"),
        (40, {}, "79 \x1b[1;31mred\x1b[0m"),
        (80, {"NO_COLOR": "1"}, "79 red"),
        (80, {"TERM": "dumb"}, "79 red"),
    ],
)
def test_a_terminal_has_colours_unless_they_are_refused_and_its_own_width(
    width: int, variables: dict[str, str], said: str
) -> None:
    pexpect = pytest.importorskip("pexpect")
    terminal = pexpect.spawn(
        sys.executable,
        ["-c", SAYS],
        cwd=str(ROOT),
        timeout=30,
        encoding="utf-8",
        dimensions=(24, width),
        env={"TERM": "xterm", **variables},
    )
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0
    shown = re.split(r"\r+\n?", terminal.before.strip())
    assert (shown[0].strip(), shown[-1]) == ("passing by", said)


def test_in_a_pipe_there_are_no_colours_and_nothing_passes() -> None:
    done = run("-c", SAYS)
    assert (done.stdout, done.stderr) == ("79 red\n", "")
