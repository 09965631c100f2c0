"""run.py: its plans, its packages, and the classroom demo that it starts."""

from __future__ import annotations

import ast
import contextlib
import csv
import http.server
import importlib
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from tests.network import free_port
from tests.programs import Done, named_signal, posix_only
from tests.programs import run as run_program

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 60  # for what should take a second or two
TESTS = f"-m pytest -n {(os.cpu_count() or 1) + 1} --dist worksteal"
NOT_FOUND = "Could not fetch URL http://x/simple/: 404 Client Error: Not Found - skipping\n"
NO_FILE = "ERROR: Could not find a version that satisfies the requirement x (from versions: none)\n"
CUT_SHORT = "ERROR: Exception:\nTraceback (most recent call last):\nReadTimeoutError: timed out.\n"
ANSWER = re.compile(r"client (\d) \| round +(\d+): ([\d.]+) reported; epoch +(\d+): ")
ROW = re.compile(
    r"^ +(\d+)  +((?:\d )*\d)  +(\d+)  +([\d.]+)  +([\d.]+)  +([\d.]+)  +([\d.]+)$", re.MULTILINE
)
PROCESS = re.compile(r"(server|client \d) +\| is process (\d+)")


class World:
    """Stands in for the interpreters, the venv and the pip that run.py runs out of sight."""

    def __init__(self, run: Any) -> None:
        self.run = run
        self.slow_steps: list[list[str]] = []
        self.installed: dict[str, dict[str, str]] = {sys.executable: {}}
        self.venv_error = ""
        self.pip_error = ""
        self.pip_does_nothing = False
        self.no_pip = ""
        self.interrupt = False

    def __call__(self, command: list[str]) -> tuple[int, str, str]:
        python = command[0]
        venv_python = self.run.venv_python()
        if {"venv", "pip", "ensurepip"} & {*command[:3]}:
            self.slow_steps.append(command)
        if "ensurepip" in command and self.no_pip:
            return 1, "", self.no_pip
        if "ensurepip" in command:
            self.installed[python]["pip"] = "24.0"
            return 0, "", ""
        if "venv" in command:
            Path(venv_python).parent.mkdir(parents=True, exist_ok=True)
            Path(self.run.VENV, "pyvenv.cfg").touch()
            self.installed[venv_python] = {"pip": "24.0"}
            return int(bool(self.venv_error)), self.venv_error, ""
        if python not in self.installed:
            return 127, "", "no such file"
        if "pip" in command[:3]:
            if self.interrupt:
                raise KeyboardInterrupt
            if not self.pip_error and not self.pip_does_nothing:
                wanted = self.run.read_requirements(os.path.basename(command[-1]))
                self.installed[python].update(dict.fromkeys(wanted, "99.0"))
            return int(bool(self.pip_error)), "", self.pip_error
        return (
            0,
            json.dumps(
                {
                    name: version
                    for name, version in self.installed[python].items()
                    if name in command
                }
            ),
            "",
        )


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """run.py as a module, in a folder of its own, where it starts nothing."""
    spec = importlib.util.spec_from_file_location("run", ROOT / "run.py")
    assert spec
    assert spec.loader
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "HERE", str(tmp_path))
    monkeypatch.setattr(module, "VENV", str(tmp_path / ".venv"))
    module.started = []
    monkeypatch.setattr(module, "run", lambda *what: module.started.append(what) or 0)
    (tmp_path / "requirements.txt").write_text("pycryptodome>=3.19\n")
    (tmp_path / "requirements-dev.txt").write_text("-r requirements.txt\npytest>=7.4  # or 8\n\n")
    return module


@pytest.fixture
def world(run: Any, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(run, "quietly", world := World(run))
    return world


def fails(run: Any, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the last sentence of a run.py that gives up."""
    assert run.main([*words]) == 2
    assert run.started == []
    out, error = capsys.readouterr()
    assert out == ""
    lines: list[str] = error.splitlines()
    assert all(line.startswith("run.py: ") for line in lines)
    assert all(line.endswith(" ...") for line in lines[:-1])
    return lines[-1].removeprefix("run.py: ")


# The first moments


def test_ctrl_c_while_run_py_is_loaded_is_no_traceback(tmp_path: Path) -> None:
    shutil.copy(ROOT / "run.py", tmp_path)
    (tmp_path / "json.py").write_text("raise KeyboardInterrupt\n")
    done = run_program(tmp_path / "run.py", "help")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


# An old Python


def test_run_py_keeps_to_the_grammar_that_all_pythons_since_2_7_share() -> None:
    tree = ast.parse((ROOT / "run.py").read_text("ascii"), feature_version=(3, 4))
    newer = (ast.JoinedStr, ast.AnnAssign, ast.NamedExpr, ast.Nonlocal, ast.YieldFrom)
    for node in ast.walk(tree):
        assert not isinstance(node, newer), ast.unparse(node)
        assert not (isinstance(node, ast.Raise) and node.cause), "raise ... from"
        assert not (isinstance(node, ast.ClassDef) and node.keywords), "class with keywords"
        assert not (isinstance(node, ast.FunctionDef) and node.returns), "annotation"
        assert not (isinstance(node, ast.arg) and node.annotation), "annotation"
        assert not (isinstance(node, ast.arguments) and node.kwonlyargs), "keyword-only"
        if isinstance(node, ast.Call):
            starred = [isinstance(argument, ast.Starred) for argument in node.args]
            assert not any(starred[:-1]), "an argument after *arguments"
        elif isinstance(node, (ast.Tuple, ast.List, ast.Dict)):
            assert not any(isinstance(child, ast.Starred) for child in ast.iter_child_nodes(node))


@pytest.mark.slow
def test_an_old_python_gets_one_sentence() -> None:
    tried = 0
    for name in ["python2.7", "python2", *(f"python3.{minor}" for minor in range(10))]:
        old = shutil.which(name)
        if not old or subprocess.run([old, "-c", ""], capture_output=True, check=False).returncode:
            continue  # a launcher for a Python that is not there, perhaps
        done = subprocess.run(
            [old, str(ROOT / "run.py")],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 2
        assert done.stdout == ""
        assert re.fullmatch(
            r"run.py: this is Python [23]\.\d+\.\d+\S*, and 3.10 or newer is "
            r"needed\n",
            done.stderr,
        )
        tried += 1
    if not tried:
        pytest.skip("there is no Python older than 3.10 on the PATH")


def test_the_version_is_checked_before_anything_else(
    run: Any, world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    assert "3.10 or newer is needed" in fails(run, capsys, "no such command")
    assert not world.slow_steps


# Commands


@pytest.mark.parametrize(
    ("words", "requirements", "lines"),
    [
        ("classroom", "requirements.txt", ["classroom.demo"]),
        ("classroom --rounds 3", "requirements.txt", ["classroom.demo --rounds 3"]),
        (
            "device --keep mine",
            "companions/device_transfer/requirements.txt",
            ["companions.device_transfer.demo --keep mine"],
        ),
        (
            "peers --keep mine",
            "companions/peer_messaging/requirements.txt",
            ["companions.peer_messaging.demo --keep mine"],
        ),
        (
            "chat --keep mine",
            "companions/secure_chat/requirements.txt",
            ["companions.secure_chat.demo --keep mine"],
        ),
        ("server --port 0", "requirements.txt", ["server.py --port 0"]),
        ("client 1 --values 2 -3", "requirements.txt", ["client.py 1 --values 2 -3"]),
        ("test", "requirements-dev.txt", [TESTS]),
        ("test -k slow", "requirements-dev.txt", [TESTS + " -k slow"]),
        (
            "test core -x",
            "requirements-dev.txt",
            [
                TESTS + " tests/test_crypto_utils.py tests/test_protocol_fsm.py "
                "tests/test_vectors.py tests/test_channel.py tests/test_server.py "
                "tests/test_programs.py -x"
            ],
        ),
        ("test slow", "requirements-slow.txt", [TESTS + " -m slow"]),
        ("mutate --changed", "requirements-dev.txt", ["-m tests.mutants --changed"]),
        ("bench --quick", "requirements.txt", ["bench.bench --quick"]),
        (
            "check",
            "requirements-check.txt",
            [
                "-m ruff check .",
                "-m ruff format --check .",
                "-m mypy",
                "-m mypy --platform win32 --cache-dir .mypy_cache/win32 "
                "--exclude ^(tests/|run.py) .",
            ],
        ),
    ],
)
def test_a_command_is_planned_as(run: Any, words: str, requirements: str, lines: list[str]) -> None:
    assert run.plan(words.split()) == (requirements, [line.split() for line in lines])


def test_what_takes_long_says_so_before_it_starts(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {*run.SLOW} <= {*run.COMMANDS}
    for name in run.COMMANDS:
        run.plan(name.split())
        said = capsys.readouterr().err
        assert said == (f"run.py: {name} {run.SLOW[name]} ...\n" if name in run.SLOW else "")
    run.plan(["bench", "--quick"])
    assert capsys.readouterr().err == ""


def test_without_a_command_the_default_runs(run: Any, world: World) -> None:
    world.installed[sys.executable] = {"pycryptodome": "3.20"}
    assert run.DEFAULT in run.COMMANDS
    assert run.main([]) == 0
    _, lines = run.plan([run.DEFAULT])
    assert lines == [["classroom.first"]]
    assert run.started == [
        ([sys.executable, os.path.join(run.HERE, "run.py"), "--start"] + lines[0], None)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "made"),
    [
        ("report flip-tag -o mine", "mine"),
        ("bench --quick --clients 1 --rivals plain --no-ladder --json mine", "mine"),
        ("peers --keep mine", "mine/alice"),
    ],
)
def test_what_a_command_makes_is_where_the_user_is(tmp_path: Path, words: str, made: str) -> None:
    for name in ("json.py", "socket.py"):
        (tmp_path / name).write_text("raise ValueError('no module of ours')")
    done = run_program(
        ROOT / "run.py", *words.split(), cwd=tmp_path, env={"PATH": "", "BROWSER": ""}
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / made).exists()


@pytest.mark.slow
def test_the_help_of_a_command_shows_what_to_type(run: Any) -> None:
    for name, (_, lines, _) in run.COMMANDS.items():
        module = lines[0].split()
        if module[0].startswith(("classroom.", "companions.", "bench.")):
            done = run_program("run.py", run.START, *module, "-h")
            assert done.returncode == 0
            assert done.stdout.startswith((f"usage: run.py {name} ", f"run.py {name} "))


def test_server_and_client_run_where_the_user_is_so_that_paths_mean_what_they_say(
    run: Any, world: World
) -> None:
    world.installed[sys.executable] = {"pycryptodome": "3.20"}
    assert run.main(["client", "1", "--file", "mine.csv"]) == 0
    script = os.path.join(run.HERE, "client.py")
    assert run.started == [([sys.executable, script, "1", "--file", "mine.csv"], None)]


def test_an_unknown_command_is_one_sentence_that_names_the_known_ones(
    run: Any, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = fails(run, capsys, "teach")
    assert sentence.startswith("there is no command 'teach'; ")
    assert all(name in sentence for name in [*run.COMMANDS, "help"])


@pytest.mark.parametrize("word", ["help", "-h", "--help"])
def test_help_lists_every_command_and_needs_no_package(
    run: Any, world: World, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main([word]) == 0
    text = capsys.readouterr().out
    for name, (_, _, help_line) in run.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(help_line)}$", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 80
    assert not world.slow_steps


@pytest.mark.parametrize(
    ("codes", "expected"),
    [([0, 0, 0, 0], 0), ([1, 0, 0, 0], 1), ([0, 2, 0, 0], 1), ([0, 0, 0, 3], 1), ([130], 130)],
)
def test_check_runs_all_tools_unless_stopped_and_fails_if_one_does(
    run: Any, codes: list[int], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [*codes]
    monkeypatch.setattr(run, "prepare", lambda requirements: "python")
    monkeypatch.setattr(run, "run", lambda command, directory: left.pop(0))
    assert run.main(["check"]) == expected
    assert left == []


@pytest.mark.parametrize("code", [0, 1, 3])
def test_the_exit_code_of_what_it_starts_is_its_own(
    run: Any, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "prepare", lambda requirements: "python")
    monkeypatch.setattr(run, "run", lambda command, directory: code)
    assert run.main(["client", "1"]) == code


@posix_only
def test_a_child_that_a_signal_ended_gives_the_exit_code_of_a_shell() -> None:
    child = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
    program = f"import run, sys; sys.exit(run.run({child!r}, None))"  # for it handles signals
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=LIMIT_S, check=False)
    assert done.returncode == 128 + signal.SIGKILL


@posix_only
def test_below_nohup_run_py_handles_no_closed_terminal(run: Any) -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        run.handle("SIGHUP", print)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        run.handle("SIGHUP", print)
        assert signal.getsignal(signal.SIGHUP) is print
    finally:
        signal.signal(signal.SIGHUP, before)
    run.handle("SIGNONE", print)  # of another system


# Packages


def test_every_requirements_file_in_use_can_be_read(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "HERE", str(ROOT))
    for name in {entry[0] for entry in run.COMMANDS.values()}:
        assert "pycryptodome" in run.read_requirements(name)
    assert run.read_requirements("requirements.txt") == {"pycryptodome": (3, 19)}


def test_requirements_are_read_with_the_files_they_include(run: Any) -> None:
    assert run.read_requirements("requirements-dev.txt") == {
        "pycryptodome": (3, 19),
        "pytest": (7, 4),
    }


@pytest.mark.parametrize(
    ("version", "wanted"),
    [((3, 10, 12), {"tomli": (2,), "six": ()}), ((3, 11, 0), {}), ((3, 14, 1), {})],
)
def test_a_requirement_of_older_pythons_is_none_of_newer_ones(
    run: Any,
    monkeypatch: pytest.MonkeyPatch,
    version: tuple[int, ...],
    wanted: dict[str, tuple[int, ...]],
) -> None:
    lines = 'tomli>=2.0; python_version < "3.11"\nsix ; python_version < "3.11"\n'
    Path(run.HERE, "requirements.txt").write_text(lines)
    monkeypatch.setattr(sys, "version_info", version)
    assert run.read_requirements("requirements.txt") == wanted


@pytest.mark.parametrize("line", ["a==1.0", "a>=1,<2", "a ; os_name == 'nt'", "--pre", "a>=1.0rc1"])
def test_a_requirement_that_cannot_be_checked_is_refused(
    run: Any, world: World, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(run.HERE, "requirements.txt").write_text(line)
    assert line in fails(run, capsys, "server")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("3.19", (3, 19)),
        ("3.19.0", (3, 19)),
        ("50.0.2", (50, 0, 2)),
        ("3.20rc1", (3, 20)),
        ("1.0.post1", (1,)),
        ("", ()),
        ("0.0", ()),
    ],
)
def test_a_version_is_its_leading_numbers(run: Any, text: str, numbers: tuple[int, ...]) -> None:
    assert run.version_numbers(text) == numbers


@pytest.mark.parametrize(
    ("version", "lacking"),
    [
        ("3.19", []),
        ("3.19.0", []),
        ("3.19.1", []),
        ("3.100", []),
        ("4", []),
        ("3.18.9", ["pycryptodome"]),
        ("3.2", ["pycryptodome"]),
        ("2.99", ["pycryptodome"]),
    ],
)
def test_a_package_may_be_newer_but_not_older(
    run: Any, world: World, version: str, lacking: list[str]
) -> None:
    world.installed[sys.executable] = {"pycryptodome": version}
    assert run.missing(sys.executable, run.read_requirements("requirements.txt")) == lacking


@pytest.mark.slow
def test_a_real_interpreter_is_asked_for_real_versions(run: Any) -> None:
    assert run.missing(sys.executable, {"pytest": (7, 4)}) == []
    assert run.missing(sys.executable, {"pytest": (999,), "no-such-package": ()}) == [
        "no-such-package",
        "pytest",
    ]


@pytest.mark.slow
def test_an_interpreter_that_is_gone_or_too_old_does_not_work(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run.missing(str(tmp_path / "python"), {}) is None
    monkeypatch.setattr(run, "PROBE", run.PROBE.replace("(3, 10)", "(99, 0)"))
    assert run.missing(sys.executable, {}) is None


def test_a_python_that_has_everything_is_used_as_it_is(run: Any, world: World) -> None:
    world.installed[sys.executable] = {"pycryptodome": "3.20"}
    assert run.prepare("requirements.txt") == sys.executable
    assert not world.slow_steps


def test_a_venv_is_made_once_with_what_the_command_needs_and_nothing_more(
    run: Any, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    python = run.venv_python()
    assert run.prepare("requirements.txt") == run.prepare("requirements.txt") == python
    assert world.slow_steps == [
        [sys.executable, "-m", "venv", "--clear", run.VENV],
        [
            python,
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "-vv",
            "--require-virtualenv",
            "--no-user",
            "--target=",
            "-r",
            os.path.join(run.HERE, "requirements.txt"),
        ],
    ]
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == [
        "making",
        "installing",
    ]


def test_a_venv_that_lacks_a_package_is_filled_and_not_remade(
    run: Any, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.installed[run.venv_python()] = {"pip": "24.0", "pycryptodome": "3.20"}
    assert run.prepare("requirements-dev.txt") == run.venv_python()
    assert [step[2] for step in world.slow_steps] == ["pip"]
    assert "installing pytest into" in capsys.readouterr().err


def test_a_venv_without_pip_gets_it_only_if_something_has_to_be_installed(
    run: Any, world: World
) -> None:
    world.installed[run.venv_python()] = {"pycryptodome": "3.20"}
    assert run.prepare("requirements.txt") == run.venv_python()
    assert not world.slow_steps
    assert run.prepare("requirements-dev.txt") == run.venv_python()
    assert [step[2] for step in world.slow_steps] == ["ensurepip", "pip"]


def test_a_venv_that_cannot_get_pip_is_left_to_what_made_it(
    run: Any, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.installed[run.venv_python()] = {}
    world.no_pip = "No module named ensurepip"
    sentence = fails(run, capsys, "server")
    assert "cannot get it (No module named ensurepip); " in sentence
    assert sentence.endswith("uv pip install -r requirements.txt")


def test_a_venv_whose_interpreter_is_gone_is_remade(
    run: Any, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(run.VENV).mkdir()
    Path(run.VENV, "pyvenv.cfg").touch()
    assert run.prepare("requirements.txt") == run.venv_python()
    assert [step[2] for step in world.slow_steps] == ["venv", "pip"]
    assert "remaking the broken .venv" in capsys.readouterr().err


def a_folder(path: Path, elsewhere: Path) -> None:
    path.mkdir()
    (path / "precious").touch()


def a_file(path: Path, elsewhere: Path) -> None:
    path.touch()


def a_link_to_a_folder(path: Path, elsewhere: Path) -> None:
    path.symlink_to(elsewhere, target_is_directory=True)


def a_link_to_a_broken_venv(path: Path, elsewhere: Path) -> None:
    (elsewhere / "pyvenv.cfg").touch()
    path.symlink_to(elsewhere, target_is_directory=True)


def a_link_to_nothing(path: Path, elsewhere: Path) -> None:
    path.symlink_to(elsewhere / "nowhere")


@pytest.mark.parametrize(
    "make", [a_folder, a_file, a_link_to_a_folder, a_link_to_a_broken_venv, a_link_to_nothing]
)
def test_what_is_no_venv_of_ours_is_left_as_it_is(
    run: Any,
    world: World,
    tmp_path: Path,
    make: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (elsewhere / "precious").touch()
    try:
        make(Path(run.VENV), elsewhere)
    except OSError:
        pytest.skip("this system lets nobody make links")
    before = sorted(tmp_path.rglob("*"))
    assert "so it is left as it is; move it away" in fails(run, capsys, "server")
    assert sorted(tmp_path.rglob("*")) == before
    assert not world.slow_steps


def test_a_link_to_a_venv_that_has_everything_is_used(run: Any, world: World) -> None:
    world.installed[run.venv_python()] = {"pycryptodome": "3.20"}
    Path(run.VENV).mkdir()  # without pyvenv.cfg: whatever it is, it works
    assert run.prepare("requirements.txt") == run.venv_python()


def test_a_broken_venv_stays_where_no_other_can_be_made(
    run: Any, world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(run.VENV).mkdir()
    Path(run.VENV, "pyvenv.cfg").touch()
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    fails(run, capsys, "server")
    assert Path(run.VENV, "pyvenv.cfg").exists()


def test_a_pip_that_installs_elsewhere_or_nothing_is_found_out(
    run: Any, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.pip_does_nothing = True
    assert "pip ends as if all were well, but .venv has no pycryptodome" in fails(
        run, capsys, "server"
    )
    assert not os.path.exists(run.VENV)


@pytest.mark.parametrize("name", ["PYTHONSAFEPATH", "PYTHONHOME", "PYTHONEXECUTABLE", "PIP_PYTHON"])
def test_what_leads_to_another_python_is_kept_from_what_run_py_starts(
    run: Any, world: World, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "1")
    world.installed[sys.executable] = {"pycryptodome": "3.20"}
    assert run.main(["classroom"]) == 0
    assert name not in os.environ


@pytest.mark.parametrize(
    ("printed", "missing"), [('{"a": "1"}\nbye\n', []), ("hello\n", None), ("", None)]
)
def test_what_a_venv_prints_beside_the_answer_is_no_traceback(
    run: Any, monkeypatch: pytest.MonkeyPatch, printed: str, missing: list[str] | None
) -> None:
    monkeypatch.setattr(run, "quietly", lambda command: (0, printed, ""))
    assert run.missing("python", {"a": ()}) == missing


@pytest.mark.slow
def test_help_that_nobody_can_read_is_no_traceback() -> None:
    command = [sys.executable, "run.py", "help"]
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as pipe:
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, cwd=ROOT, text=True)
    assert (done.returncode, done.stderr) == (2, "run.py: the help cannot be written\n")


def test_run_py_is_found_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "run.py").symlink_to(ROOT / "run.py")
    spec = importlib.util.spec_from_file_location("linked", tmp_path / "run.py")
    assert spec
    assert spec.loader
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert str(ROOT) == module.HERE


@pytest.mark.slow
def test_an_encoding_or_warnings_of_the_user_hide_no_package(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "utf-16")
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    assert run.missing(sys.executable, {"pytest": (), "no-such-package": ()}) == ["no-such-package"]
    assert run.quietly([sys.executable, "-c", "import warnings; warnings.warn('old')"])[0] == 0


@pytest.mark.slow
def test_letters_that_the_locale_lacks_are_read_as_they_were_printed() -> None:
    """As those of a folder's name in an error, on Windows."""
    call = "import run, sys; print(ascii(run.quietly([sys.executable, '-c', 'print(chr(252))'])))"
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    assert run_program("-c", call, env=plain).stdout == "(0, '\\xfc\\n', '')\n"


@pytest.mark.slow
def test_modules_where_the_user_is_hide_none_of_python(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mine := tmp_path / "mine").mkdir()
    (mine / "json.py").write_text("raise SystemExit('this is no json')")
    monkeypatch.chdir(mine)
    assert run.missing(sys.executable, {"pytest": (7, 4)}) == []


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_without_venv_the_sentence_names_the_debian_package(
    run: Any,
    world: World,
    module: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # then importing it fails
    assert fails(run, capsys, "server").endswith(": sudo apt install python3-venv")
    assert not os.path.exists(run.VENV)
    assert not world.slow_steps


def test_a_venv_that_cannot_be_made_is_one_sentence_and_leaves_nothing(
    run: Any, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.venv_error = "Error: [Errno 28] No space left on device\n"
    assert fails(run, capsys, "server").endswith("No space left on device")
    assert not os.path.exists(run.VENV)


def test_a_pip_that_fetches_nothing_is_one_sentence_and_leaves_nothing(
    run: Any, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.pip_error = NOT_FOUND + NO_FILE
    assert fails(run, capsys, "server") == (
        "pip cannot install pycryptodome: the package index refuses; look at PIP_INDEX_URL "
        "(pip: 404 Client Error: Not Found)"
    )
    assert not os.path.exists(run.VENV)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("ERROR: ResolutionImpossible: see dependency-resolution\n", "ResolutionImpossible: see"),
        (NO_FILE, "Could not find a version"),
        (NOT_FOUND + "ERROR: ResolutionImpossible: see it\n", "ResolutionImpossible: see"),
        (CUT_SHORT, "nothing answers; "),
        ("Usage:\npip: error: invalid float value: 'x'\n", "pip: error: invalid float"),
        ("ERROR: Exception:\nTraceback ...:\nOSError: no space\n", "OSError: no space"),
        ("", "exit code 1"),
    ],
)
def test_any_other_failure_of_pip_is_told_in_its_own_words(
    run: Any, world: World, error: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    world.pip_error = error or "\n"
    assert f"pip cannot install pycryptodome: {reason}" in fails(run, capsys, "server")


def test_a_good_venv_outlives_a_failing_pip(
    run: Any, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    run.prepare("requirements.txt")
    world.pip_error = NO_FILE
    fails(run, capsys, "test")
    assert os.path.exists(run.VENV)
    assert run.prepare("requirements.txt") == run.venv_python()


def test_ctrl_c_during_pip_leaves_no_half_made_venv(run: Any, world: World) -> None:
    world.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        run.main(["server"])
    assert not os.path.exists(run.VENV)


def test_two_terminals_do_not_make_the_same_venv(
    run: Any, world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run.py has the lock, and has filled .venv when it gives it back."""
    lock = Path(run.VENV + ".lock")
    lock.mkdir()

    def meanwhile(_: float) -> None:
        world.installed[run.venv_python()] = {"pip": "24.0", "pycryptodome": "3.20"}
        lock.rmdir()

    monkeypatch.setattr(run.time, "sleep", meanwhile)
    assert run.prepare("requirements.txt") == run.venv_python()
    assert not world.slow_steps
    assert not lock.exists()
    assert capsys.readouterr().err.startswith("run.py: waiting for the run.py ")


def test_a_lock_that_is_no_folder_is_left_and_nobody_waits_for_it(
    run: Any, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = Path(run.VENV + ".lock")
    lock.write_text("mine")
    assert fails(run, capsys, "server").endswith("move it away")
    assert lock.read_text() == "mine"


def test_a_lock_that_stays_is_named(
    run: Any, world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "PATIENCE_S", -1)
    Path(run.VENV + ".lock").mkdir()
    assert fails(run, capsys, "server").endswith("delete the folder .venv.lock")


def test_a_folder_that_cannot_be_written_is_one_sentence(
    run: Any, world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "VENV", os.path.join(run.HERE, "no", "where"))
    assert "cannot make .venv in " in fails(run, capsys, "server")


# The classroom demo


def demo_in(folder: Path, *flags: str) -> Done:
    return run_program(folder / "run.py", "classroom", *flags)


def readings(client_id: int) -> list[float]:
    name = {1: "seattle", 2: "san-francisco", 3: "seattle-july"}[client_id]
    with (ROOT / "data" / f"{name}.csv").open() as file:
        return [float(row["temperature_f"]) for row in csv.DictReader(file)]


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("classroom.demo")


@pytest.mark.slow
def test_the_demo_shows_every_round_and_the_sums_of_the_files() -> None:
    rounds = 6
    done = demo_in(ROOT, "--rounds", str(rounds), "--interval", "0.02")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    reported: dict[int, dict[int, float]] = {}  # by epoch and client id
    for client_id, round_number, reading, epoch in ANSWER.findall(done.stdout):
        expected = readings(int(client_id))[int(round_number) - 1]
        assert float(reading) == expected
        reported.setdefault(int(epoch), {})[int(client_id)] = expected
    assert sum(map(len, reported.values())) == 3 * rounds
    table = [
        [int(epoch), participants.split(), *numbers]
        for epoch, participants, *numbers in ROW.findall(done.stdout)
    ]
    assert table == [
        [
            epoch,
            [str(client_id) for client_id in sorted(members)],
            str(len(members)),
            *(
                f"{number:.2f}"
                for number in (
                    math.fsum(members.values()),
                    math.fsum(members.values()) / len(members),
                    min(members.values()),
                    max(members.values()),
                )
            ),
        ]
        for epoch, members in sorted(reported.items())
    ]
    if os.name == "posix":  # elsewhere it is stopped without having the last word
        assert re.search(r"server   \| +3 +1 +6\n", done.stdout)  # of its summary
    assert done.stdout.endswith("All members of each epoch were told the same numbers.\n")
    assert done.stdout.isascii()
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_demo_refuses_answers_that_differ_or_are_missing(demo: Any) -> None:
    good = {
        "epoch": 1,
        "round": 1,
        "participants": [1, 2],
        "count": 2,
        "sum": 3.0,
        "mean": 1.5,
        "min": 1.0,
        "max": 2.0,
    }
    assert demo.disagreements({1: [good], 2: [good]}, 1) == []
    for key in ("count", "sum", "mean", "min", "max", "participants"):
        assert len(demo.disagreements({1: [good], 2: [{**good, key: 7}]}, 1)) == 1
    assert len(demo.disagreements({1: [good], 2: [good]}, 2)) == 2  # rounds are missing
    assert len(demo.disagreements({1: [good], 2: []}, 1)) == 2  # so is an answer
    assert demo.disagreements({1: [good], 2: [good], 3: [good]}, 1)  # one too many


def test_the_demo_does_not_wait_for_ever(demo: Any) -> None:
    with pytest.raises(SystemExit, match="too long"):
        demo.Crew(limit_s=0).hear()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("server", "complaint"),
    [
        ("raise SystemExit('no port is left')", "the server did not start"),
        ("real.main(); raise SystemExit(5)", "PROBLEM: server ended with exit code 5"),
        (
            "real.own_part = lambda readings, total: "
            "{**own_part(readings, total), 'max': readings[0]}\n"
            "real.main()",
            "its members were told different numbers",
        ),
        (
            "real.Server.establish = lambda *_: os._exit(0); real.main()",
            "client 1 did 0 of 4 rounds",
        ),
    ],
    ids=["does not start", "exits badly", "tells different numbers", "dies early"],
)
def test_a_server_that_misbehaves_fails_the_demo(
    tmp_path: Path, server: str, complaint: str
) -> None:
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*.txt")]:
        shutil.copy(path, tmp_path)
    for name in ("classroom", "data"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "server.py").rename(tmp_path / "real.py")
    (tmp_path / "server.py").write_text(
        f"import os\nimport real\nown_part = real.own_part\n{server}\n"
    )
    done = demo_in(tmp_path, "--rounds", "4", "--interval", "0.02")
    assert done.returncode == 1
    assert complaint in done.stdout + done.stderr
    assert "same numbers" not in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


class Demo:
    """A demo under way: too long to end by itself before the test has done its worst."""

    def __init__(self, stdout: IO[str]) -> None:
        self.pids: dict[str, int] = {}
        for line in stdout:
            if match := PROCESS.match(line):
                self.pids[match[1]] = int(match[2])
            if ANSWER.match(line) and len(self.pids) == 4:
                break

    def alive(self) -> list[str]:
        return [name for name, pid in self.pids.items() if exists(pid)]


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def started() -> Iterator[subprocess.Popen[str]]:
    command = [
        sys.executable,
        str(ROOT / "run.py"),
        "classroom",
        "--interval",
        "0.02",
        "--rounds",
        "60",
    ]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        yield process
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@posix_only
@pytest.mark.slow
def test_a_client_that_dies_fails_the_demo_and_leaves_no_process(
    started: subprocess.Popen[str],
) -> None:
    assert started.stdout
    demo = Demo(started.stdout)
    assert len(demo.alive()) == 4
    os.kill(demo.pids["client 2"], signal.SIGKILL)
    rest = started.stdout.read()
    assert started.wait(LIMIT_S) == 1
    assert demo.alive() == []
    assert "PROBLEM: client 2 ended with exit code -9" in rest
    assert "PROBLEM: client 1" not in rest  # the others are not to suffer
    assert "PROBLEM: client 3" not in rest


@posix_only
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "to_all"),
    [("SIGINT", True), ("SIGINT", False), ("SIGTERM", False), ("SIGHUP", False), ("SIGHUP", True)],
    ids=["Ctrl-C in a terminal", "SIGINT", "SIGTERM", "SIGHUP", "a terminal that is closed"],
)
def test_a_demo_that_is_stopped_leaves_no_process_and_no_traceback(
    started: subprocess.Popen[str], name: str, to_all: bool
) -> None:
    number = named_signal(name)
    assert started.stdout
    demo = Demo(started.stdout)
    (os.killpg if to_all else os.kill)(started.pid, number)
    rest = started.stdout.read()
    assert started.wait(LIMIT_S) == 128 + number
    assert demo.alive() == []
    assert "participants" not in rest  # the table, had it gone on to the end
    assert "Traceback" not in rest


@posix_only
@pytest.mark.slow
def test_a_demo_whose_reader_has_gone_leaves_no_process(started: subprocess.Popen[str]) -> None:
    assert started.stdout
    demo = Demo(started.stdout)
    started.stdout.close()
    assert started.wait(LIMIT_S) == 141
    assert demo.alive() == []


# From nothing


@pytest.fixture
def clean_copy(tmp_path: Path) -> tuple[str, Path]:
    """An interpreter without packages, and the files of the project and nothing else."""
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode != 0:
        pytest.skip("this is not a git checkout")
    folder = tmp_path / "a folder"
    for name in listing.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    empty = tmp_path / "empty"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(empty)], check=True)
    parts = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
    return str(empty.joinpath(*parts)), folder


@pytest.mark.slow
def test_from_a_clean_copy_the_demo_installs_what_it_needs_and_works(
    clean_copy: tuple[str, Path],
) -> None:
    python, folder = clean_copy
    for words in (["making", "installing"], []):
        done = subprocess.run(
            [python, "run.py", "classroom", "--rounds", "3"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert [line.split()[1] for line in done.stderr.splitlines()] == words
        assert "All members of each epoch were told the same numbers." in done.stdout


# The real pip


class Index(http.server.BaseHTTPRequestHandler):
    """An index that has nothing, and a proxy that breaks TLS open with its own certificate."""

    tls: ssl.SSLContext

    def do_GET(self) -> None:
        self.send_error(404)

    def do_CONNECT(self) -> None:
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.tls.wrap_socket(self.connection, server_side=True)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    from bench.certificate import write_certificate

    write_certificate(tmp_path, "127.0.0.1")
    Index.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    Index.tls.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def pip_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pip of this Python, without what this machine has configured for it."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("this Python has no pip")
    for name in list(os.environ):
        if name.startswith("PIP_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("PIP_INDEX_URL", "http://{index}/pypi-proxy", "the package index refuses; .*pip: 404"),
        ("HTTPS_PROXY", "http://{index}", ".*PIP_CERT .*certificate verify failed"),
        ("HTTPS_PROXY", "http://{closed}", "the proxy lets nothing through; .*pip: .*refused"),
        ("PIP_INDEX_URL", "http://{closed}/simple", "nothing answers; .*pip: .*refused"),
        ("PIP_NO_INDEX", "1", "Could not find a version"),
    ],
)
def test_the_real_pip_says_why_it_fetches_nothing(
    run: Any,
    index: str,
    pip_alone: None,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    sentence: str,
) -> None:
    closed = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv(name, value.format(index=index, closed=closed))
    Path(run.HERE, "requirements.txt").write_text("a-package-that-nobody-has-made>=1\n")
    with pytest.raises(run.Problem, match=rf"(?i)cannot install a-package.*: {sentence}"):
        run.install(sys.executable, "requirements.txt", {}, ["a-package"])


def wheel(folder: Path, name: str) -> None:
    """Make a package with nothing in it."""
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as file:
        info = f"{name}-1.0.dist-info"
        file.writestr(f"{name}.py", "")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


@pytest.mark.slow
def test_whatever_pip_is_configured_to_do_a_venv_as_uv_makes_it_is_filled(
    run: Any, pip_alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", run.VENV], check=True)
    Path(run.VENV, "mine").touch()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    for name, key in (("alpha", "user"), ("beta", "target")):
        value = "1" if key == "user" else str(tmp_path / "there")
        wheel(tmp_path, f"{name}0")
        wheel(tmp_path, f"{name}1")
        Path(run.HERE, "requirements.txt").write_text(f"{name}0\n")
        with monkeypatch.context() as patch:
            patch.setenv(f"PIP_{key.upper()}", value)
            assert run.prepare("requirements.txt") == run.venv_python()
        (tmp_path / "pip.conf").write_text(f"[install]\n{key} = {value}\n")
        Path(run.HERE, "requirements.txt").write_text(f"{name}1\n")
        with monkeypatch.context() as patch:
            patch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
            assert run.prepare("requirements.txt") == run.venv_python()
    assert Path(run.VENV, "mine").exists()
    assert not (tmp_path / "there").exists()


@pytest.mark.slow
def test_a_folder_that_was_filled_before_takes_the_place_of_the_network(
    run: Any, pip_alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    index.mkdir()
    for name in ("alpha", "beta", "gamma"):
        wheel(index, name)
    Path(run.HERE, "requirements.txt").write_text("alpha\n")
    Path(run.HERE, "requirements-dev.txt").write_text("-r requirements.txt\nbeta\n")
    Path(run.HERE, "requirements-slow.txt").write_text("gamma\n")
    names = {"server": "requirements", "test": "requirements-dev", "test slow": "requirements-slow"}
    commands = {key: (f"{name}.txt", [f"{key}.py"], "") for key, name in names.items()}
    monkeypatch.setattr(run, "COMMANDS", commands)
    with monkeypatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(index))
        assert run.main(["offline", str(tmp_path / "usb-stick")]) == 0
    found = sorted(path.name[:5] for path in (tmp_path / "usb-stick").iterdir())
    assert found == ["alpha", "beta-"]
    shutil.rmtree(index)
    (tmp_path / "usb-stick").rename(Path(run.HERE, run.WHEELHOUSE))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    for requirements in ("requirements.txt", "requirements-dev.txt"):
        assert run.prepare(requirements) == run.venv_python()
    assert run.main(["test", "slow"]) == 2


def test_offline_without_a_folder_is_one_sentence(
    run: Any, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["offline"], ["offline", ""], ["offline", "--platform"]):
        assert fails(run, capsys, *words) == "say which folder to fill: offline DIR"
    assert not world.slow_steps


@pytest.mark.slow
def test_a_folder_that_cannot_be_filled_is_one_sentence(
    run: Any,
    pip_alone: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path(run.HERE, "requirements.txt").write_text("a-package-that-nobody-has-made\n")
    monkeypatch.setattr(run, "COMMANDS", {"server": ("requirements.txt", ["server.py"], "")})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    folder = tmp_path / "folder"
    sentence = fails(run, capsys, "offline", str(folder))
    assert sentence.startswith("pip cannot fetch them: Could not find a version")
    assert not folder.exists(), "an empty wheelhouse would hide the network"
    folder.mkdir()
    assert "no such option" in fails(run, capsys, "offline", str(folder), "--no-such-flag")
    assert folder.exists(), "it was there before"
