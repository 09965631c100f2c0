"""The demo of peer messaging, which cannot hide a failure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from companions.peer_messaging import demo
from companions.peer_messaging.demo import Stage, main
from program import UserError

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 180
DEMO = [sys.executable, "-m", "companions.peer_messaging.demo"]
posix_only = pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals")

# The demo


@pytest.fixture
def acts(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A demo whose acts do nothing, and whose signals stay with pytest."""
    monkeypatch.setattr(Stage, "__enter__", lambda stage: stage)
    for act in ("meet", "talk", "fall", "pose", "attack"):
        monkeypatch.setattr(demo, act, lambda stage: None)
    return monkeypatch


def test_what_goes_wrong_is_told_and_the_folder_is_gone(
    acts: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders: list[Path] = []
    acts.setattr(sys, "argv", ["demo"])
    acts.setattr(demo, "meet", lambda stage: folders.append(stage.folder))
    assert main() == 0
    acts.setattr(demo, "attack", lambda stage: stage.check(False, "the sky fell"))
    assert main() == 1
    assert capsys.readouterr().out.splitlines()[-1] == "PROBLEM: the sky fell"
    assert len({*folders}) == 2
    assert not any(folder.exists() for folder in folders)


def test_a_folder_is_kept_and_an_existing_one_refused(
    acts: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "kept"
    acts.setattr(sys, "argv", ["demo", "--keep", str(folder)])
    acts.setattr(demo, "meet", lambda stage: (stage.folder / "file").touch())
    assert main() == 0
    acts.setattr(demo, "meet", lambda stage: (stage.folder / "file").unlink())
    with pytest.raises(UserError, match="cannot make"):
        main()
    assert (folder / "file").exists()


def told(stage: Stage, *lines: tuple[str, str | None]) -> None:
    """Put lines into the stage's ear; none is the end of a program."""
    for line in lines:
        stage._heard.put(line)


def test_what_is_never_said_is_a_problem_and_no_hanging(
    acts: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = Stage(tmp_path)
    told(stage, ("alice", "bob has a hat"), ("bob", "bob is here"), ("alice", "* bob is here"))
    stage.listen(("alice", "bob is here"))
    assert (stage.problems, stage._heard.empty()) == ([], True)
    told(stage, ("bob", "x"), ("bob", None))
    stage.listen(("bob", "alice is here"))
    assert stage.problems == ["bob ended and never said 'alice is here'"]
    assert capsys.readouterr().out.startswith("alice   | bob has a hat\n")


@pytest.mark.slow
def test_a_program_that_ends_otherwise_than_it_should_is_a_problem(
    acts: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stage = Stage(tmp_path)
    with stage:
        stage.begin("alice", "node", "alice", "--peer", "b b")
        stage.await_end("alice", 0)
        stage.type("alice", "is anybody there?")
    if output := stage.processes["alice"].stdout:
        output.close()
    assert stage.problems == ["alice ended with exit code 2, not 0"]


def test_attacks_that_fail_are_shown_though_most_lines_are_hidden(
    acts: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    acts.undo()  # the act itself, with no program
    acts.setattr(
        Stage,
        "begin",
        lambda stage, name, program: told(
            stage,
            *[("attacks", f"line {n}") for n in range(12)],
            ("attacks", "the reason"),
            ("attacks", None),
        ),
    )
    acts.setattr(Stage, "await_end", lambda stage, name, wanted: stage.check(False, "bad end"))
    stage = Stage(tmp_path)
    demo.attack(stage)
    assert stage.problems == ["bad end"]
    out = capsys.readouterr().out
    assert "line 0\n" in out
    assert "the reason\n" in out


@pytest.mark.slow
def test_the_demo_shows_all_of_it_within_80_columns_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        DEMO,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        text=True,
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert len(done.stdout.splitlines()) <= 150
    for wanted in (
        "alice   | bob: hello alice\n",
        "alice: a red \\x1b[31m text\n",
        "is unconfirmed",
        "!!! SOMEBODY SHOWS ANOTHER KEY FOR bob",
        "not prevented",
    ):
        assert wanted in done.stdout
    assert "alice: nobody must read this" not in done.stdout
    assert done.stdout.endswith("\nAll went as it should.\n")
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
@posix_only
def test_ctrl_c_in_the_middle_ends_all_and_removes_the_folder(tmp_path: Path) -> None:
    with subprocess.Popen(
        DEMO,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("bob "):
                process.send_signal(signal.SIGINT)
                break
        _, error = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert error == ""
    assert not [*tmp_path.iterdir()]
