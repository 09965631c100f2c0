"""The demo of peer messaging, which cannot hide a failure."""

from __future__ import annotations

from pathlib import Path

import pytest

from companions.peer_messaging import demo
from companions.peer_messaging.demo import Stage


def told(stage: Stage, *lines: tuple[str, str | None]) -> None:
    """Put lines into the stage's ear; none is the end of a program."""
    for line in lines:
        stage._heard.put(line)


def test_what_is_never_said_is_a_problem_and_no_hanging(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = Stage(tmp_path)
    told(stage, ("alice", "bob has a hat"), ("bob", "bob is here"), ("alice", "* bob is here"))
    stage.listen(("alice", "bob is here"))
    assert (stage.problems, stage._heard.empty()) == ([], True)
    told(stage, ("bob", "x"), ("bob", None))
    stage.listen(("bob", "alice is here"))
    assert stage.problems == ["bob ended and never said 'alice is here'"]
    assert capsys.readouterr().out.startswith("alice   | bob has a hat\n")


def test_attacks_that_fail_are_shown_though_most_lines_are_hidden(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        Stage,
        "begin",
        lambda stage, name, program: told(
            stage,
            *[("attacks", f"line {n}") for n in range(12)],
            ("attacks", "the reason"),
            ("attacks", None),
        ),
    )
    monkeypatch.setattr(
        Stage, "await_end", lambda stage, name, wanted: stage.check(False, "bad end")
    )
    stage = Stage(tmp_path)
    demo.attack(stage)
    assert stage.problems == ["bad end"]
    out = capsys.readouterr().out
    assert "line 0\n" in out
    assert "the reason\n" in out
