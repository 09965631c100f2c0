"""What the demos of all companions promise: no failure is hidden, and nothing is left behind."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from companions.demo import Programs, Spoiled
from companions.secure_chat.demo import PLAYED
from program import UserError
from tests.programs import ROOT, posix_only, run

LIMIT_S = 400


@dataclass(frozen=True)
class Demo:
    """A demo: its acts, the program after whose first line it is interrupted, what it tells."""

    name: str
    acts: tuple[str, ...]
    heard: str
    told: tuple[str, ...]
    hidden: str = "Traceback"

    @property
    def command(self) -> list[str]:
        return ["-m", f"companions.{self.name}.demo"]


DEMOS = {
    demo.name: demo
    for demo in (
        Demo(
            "device_transfer",
            ("certify", "transfer", "revoke", "verify", "attack"),
            "server ",
            (
                "'door.avi': 5,530,408 bytes acknowledged",
                "CertificateRevoked",
                "file door.png          133226 ok\n",
                "ok, revoked by now",
                "not prevented",
            ),
        ),
        Demo(
            "peer_messaging",
            ("meet", "talk", "fall", "pose", "attack"),
            "bob ",
            (
                "alice    | bob: hello alice\n",
                "alice: a red \\x1b[31m text\n",
                "is unconfirmed",
                "!!! SOMEBODY SHOWS ANOTHER KEY FOR bob",
                "not prevented",
            ),
            "alice: nobody must read this",
        ),
        Demo(
            "secure_chat",
            ("certify", "talk", "verify", "revoke", "attack"),
            "server ",
            ("at noon, at the station", "Valid", "bad-", "Revoked", "not prevented"),
        ),
    )
}


@pytest.fixture(params=DEMOS)
def demo(request: pytest.FixtureRequest) -> Demo:
    return DEMOS[request.param]


@pytest.fixture
def module(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A demo whose acts do nothing, and whose signals stay with pytest."""
    module = importlib.import_module(f"companions.{demo.name}.demo")
    monkeypatch.setattr(sys, "argv", ["demo"])
    monkeypatch.setattr(module.Stage, "__enter__", lambda stage: stage)
    for act in demo.acts:
        monkeypatch.setattr(module, act, lambda stage: None)
    return module


def test_what_goes_wrong_is_told_and_the_folder_is_gone(
    demo: Demo,
    module: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folders: list[Path] = []
    monkeypatch.setattr(module, demo.acts[0], lambda stage: folders.append(stage.folder))
    assert module.main() == 0
    monkeypatch.setattr(module, "attack", lambda stage: stage.check(False, "the sky fell"))
    assert module.main() == 1
    assert capsys.readouterr().out.splitlines()[-1] == "PROBLEM: the sky fell"
    assert len({*folders}) == 2
    assert not any(folder.exists() for folder in folders)


def test_a_folder_that_cannot_be_removed_at_once_spoils_nothing(
    demo: Demo, module: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As on Windows, where a program that is being killed still works in it."""

    def held(*path: object, **options: object) -> None:
        raise OSError(errno.ENOTEMPTY, "held")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(module, demo.acts[0], lambda stage: monkeypatch.setattr(os, "rmdir", held))
    assert module.main() == 0


def test_a_folder_is_kept_and_an_existing_one_refused(
    demo: Demo, module: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "kept"
    monkeypatch.setattr(sys, "argv", ["demo", "--keep", str(folder)])
    monkeypatch.setattr(module, demo.acts[0], lambda stage: (stage.folder / "file").touch())
    assert module.main() == 0
    assert (folder / "file").exists()
    monkeypatch.setattr(module, demo.acts[0], lambda stage: (stage.folder / "file").unlink())
    with pytest.raises(UserError, match="cannot make"):
        module.main()
    assert (folder / "file").exists()


class Told(Programs):
    """Programs that are nothing but their lines; none is the end of one."""

    def __init__(self, *lines: tuple[str, str | None]) -> None:
        super().__init__(Path())
        for line in lines:
            self._heard.put(line)

    def __enter__(self) -> Told:
        return self  # signals stay with pytest

    def begin(self, name: str, program: str, *words: str | Path) -> None:
        raise NotImplementedError


def test_lines_are_shown_until_all_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    stage = Told(("bob", ""), ("alice", "at 1:2"), ("bob", None), ("alice", "more"))
    assert stage.listen(("alice", "at "), ("bob", "")) == ""
    assert stage.listen(("alice", "more")) == "more"
    assert capsys.readouterr().out.startswith("alice    | at 1:2\n")


@pytest.mark.parametrize("who", ["alice", "bob"])
def test_what_is_never_said_is_a_problem_and_no_hanging(who: str) -> None:
    stage = Told(("alice", "bob has a hat"), ("bob", "alice is here"), (who, None))
    with pytest.raises(Spoiled, match=f"^{who} ended too soon: nobody said bob is here$"):
        stage.listen(("alice", "bob is here"))


def test_an_act_that_cannot_go_on_is_the_last() -> None:
    def ends_early(stage: Told) -> None:
        stage.listen(("alice", "words"))

    stage = Told(("alice", None))
    assert stage.play(ends_early, ends_early) == ["alice ended too soon: nobody said words"]


@pytest.mark.slow
@pytest.mark.parametrize("demo", ["device_transfer", "peer_messaging"], indirect=True)
def test_a_demo_shows_all_of_it_within_80_columns_and_leaves_nothing(
    demo: Demo, tmp_path: Path
) -> None:
    done = run(*demo.command, timeout_s=LIMIT_S, env={"TMPDIR": str(tmp_path)})
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert len(done.stdout.splitlines()) <= 150
    for wanted in demo.told:
        assert wanted in done.stdout
    assert demo.hidden not in done.stdout
    assert done.stdout.endswith("\nAll went as it should.\n")
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_the_demo_of_secure_chat_shows_every_act_and_keeps_what_it_made(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    done = run("run.py", "chat", "--keep", folder, timeout_s=LIMIT_S)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout[-2_000:]
    assert done.stdout.endswith("All went as it should.\n")
    for wanted in (*DEMOS["secure_chat"].told, *PLAYED):
        assert wanted in done.stdout
    *lines, _, _, _ = done.stdout.splitlines()  # the last of all name the folder
    assert max(map(len, lines)) <= 79
    for kept in ("report.html", "secure_chat.db", "certs/ca_cert.pem", "logs/server.log"):
        assert (folder / kept).is_file()
    assert len([*folder.glob("*/receipt_*_client.json")]) >= 2


@pytest.mark.slow
@posix_only
def test_ctrl_c_in_the_middle_ends_all_and_removes_the_folder(demo: Demo, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, *demo.command],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith(demo.heard):
                process.send_signal(signal.SIGINT)
                break
        _, error = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, error) == (130, "")
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_a_program_that_ends_otherwise_than_it_should_is_a_problem(
    module: ModuleType, tmp_path: Path
) -> None:
    stage = module.Stage(tmp_path)
    with stage:
        assert stage.finish("attacks", "--no-such-flag") != []
    stage.processes["attacks"].stdout.close()
    assert stage.problems == ["attacks ended with exit code 2, not 0"]
