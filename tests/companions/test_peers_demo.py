"""The demo of peer messaging, which cannot hide a failure."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import MagicMock

import pytest

from companions.peer_messaging import demo
from companions.peer_messaging.demo import Stage


def told(stage: Stage, *lines: tuple[str, str | None]) -> None:
    """Put lines into the stage's ear; none is the end of a program."""
    for line in lines:
        stage._heard.put(line)


def test_a_bob_who_comes_back_late_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stage = Stage(tmp_path)
    stage.processes["bob"] = MagicMock()
    for name in ("node", "say", "leave", "await_end"):
        monkeypatch.setattr(stage, name, lambda *_: None)
    told(
        stage,
        ("alice", '* text 3, "are you there?", is unconfirmed: it may have arrived, or not'),
        ("alice", "* bob is away: nothing was heard for a while, not even a PONG"),
        ("bob", "* alice is here"),
        ("alice", "* bob is here again"),
        ("alice", "bob: back again"),
        ("alice", None),
    )
    demo.fall(stage)


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
    monkeypatch.setattr(Stage, "await_end", lambda stage, name: stage.check(False, "bad end"))
    stage = Stage(tmp_path)
    demo.attack(stage)
    assert stage.problems == ["bad end"]
    out = capsys.readouterr().out
    assert "line 0\n" in out
    assert "the reason\n" in out
