"""The demo of peer messaging, which cannot hide a failure, and its benchmark, which times nothing
here.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from companions.peer_messaging.bench import NAMES, WORK, Sender, Slice, count_of, of, table, total

from bench.report import BAR
from bench.slices import Failed
from companions.peer_messaging import bench, demo
from companions.peer_messaging.demo import Stage, main
from companions.peer_messaging.peer import Event
from program import UserError
from protocol_fsm import BadTag

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 180
DEMO = [sys.executable, "-m", "companions.peer_messaging.demo"]
BENCH = [sys.executable, "-m", "companions.peer_messaging.bench"]
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


# The benchmark


def took(wall_s: float) -> Slice:
    return Slice(dict.fromkeys(WORK, wall_s), dict.fromkeys(WORK, wall_s / 2), wall_s / 4)


def test_a_ratio_is_of_speeds_in_the_same_turn() -> None:
    ours = [took(2.0), took(4.0), took(40.0)]
    theirs = [took(1.0), took(3.0), took(10.0)]
    assert of(ours, theirs, WORK[0]) == (0.5, 0.375, 0.625)
    assert of(ours, ours, WORK[0]) == (1.0, 1.0, 1.0)


def test_the_table_names_all_fits_a_terminal_and_bars_show_speed() -> None:
    seen = {rival: [took(n / 1e4)] * 2 for n, rival in enumerate(NAMES, 1)}
    lines = table(WORK[1], 5_000, seen).splitlines()
    assert lines[0] == "round trip: 1,000 texts of 100 bytes"
    assert max(map(len, lines)) <= 79
    assert "\n".join(lines).isascii()
    rows = {
        name: [line for line in lines if line.startswith(f"{name:13} ")] for name in NAMES.values()
    }
    assert [len(each) for each in rows.values()] == [2] * len(NAMES)
    assert rows["plain ZeroMQ"][0].split()[2:] == ["10,000", "100.0", "50.0", "0.33", "(0.33-0.33)"]
    assert rows["ours"][0].split() == ["ours", "3,333", "300.0", "150.0"]
    assert rows["plain ZeroMQ"][1].count("#") == BAR == 2 * rows["ZeroMQ CURVE"][1].count("#")


def test_a_receiver_waits_for_as_many_texts_as_a_sender_sends() -> None:
    assert total(50) == sum(bench.WARM_UP + count_of(work, 50) for work in WORK)
    assert [count_of(work, 1) for work in WORK] == [1] * len(WORK)


class Mirror:
    """A node that has a receipt for each text at once, and remembers how many it had not."""

    def __init__(self, sender: Sender) -> None:
        self.sender = sender
        self.said = 0
        self.held = queue.Queue[int]()

    def say(self, text: str) -> None:
        self.said += 1
        self.sender.tell(Event("receipt", number=self.said))


def test_every_text_of_a_measurement_has_its_receipt_before_the_clock_stops() -> None:
    sender = Sender()
    mirror = Mirror(sender)
    sender.node = mirror  # type: ignore[assignment]
    for count, window in ((7, 1), (250, 100), (3, 100)):
        mirror.said = 0
        sender(count, 10, window)
        assert mirror.said == count
        assert sender._receipts.empty()


@pytest.mark.parametrize("event", [Event("ended"), Event("refused", error=BadTag())])
def test_a_session_that_does_not_last_is_no_measurement(event: Event) -> None:
    sender = Sender()
    sender.tell(Event("refused", error=BadTag()))  # while they meet, both may begin at once
    sender.tell(Event("met"))
    with pytest.raises(Failed, match="did not last"):
        sender.tell(event)


@pytest.mark.slow
def test_all_rivals_exchange_texts_and_the_numbers_are_written(tmp_path: Path) -> None:
    done = subprocess.run(
        [*BENCH, "--texts", "50", "--turns", "2", "--json", tmp_path / "numbers"],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 79
    numbers = json.loads((tmp_path / "numbers").read_text())
    assert {rival: len(slices) for rival, slices in numbers["slices"].items()} == dict.fromkeys(
        NAMES, 2
    )
    assert all(
        wall_s > 0
        for slices in numbers["slices"].values()
        for one in slices
        for wall_s in one["wall_s"].values()
    )
    assert [path.name for path in tmp_path.iterdir()] == ["numbers"]


@pytest.mark.slow
def test_the_profile_names_what_takes_time() -> None:
    done = subprocess.run(
        [*BENCH, "--profile", "--texts", "50"],
        cwd=ROOT,
        text=True,
        check=False,
        capture_output=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    assert "(_encrypt)" in done.stdout
