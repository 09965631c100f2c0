"""guard.py: a program without its packages, or interrupted as it is loaded, shows no traceback."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import guard
from tests.house import imports_of
from tests.programs import ROOT, Done, run

FOLDERS = ("bench", "classroom", "companions")
PROGRAMS = [
    path.relative_to(ROOT)
    for path in [
        *ROOT.glob("*.py"),
        *(path for name in FOLDERS for path in (ROOT / name).rglob("*.py")),
    ]
    if "__main__" in path.read_text("utf-8")
    and path.name not in ("run.py", "drive.py")  # which need none
]
STUDENT = ROOT / "classroom" / "kit" / "student"  # its modules are found in its own folder
QUICK = {Path("server.py"), Path("companions/peer_messaging/node.py")}


def bare(*words: str) -> Done:
    """Run a Python that has no packages."""
    return run("-S", *words)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[] if path in QUICK else [pytest.mark.slow], id=path.as_posix())
        for path in PROGRAMS
    ],
)
def test_a_program_without_its_packages_names_the_commands_that_mend_it(path: Path) -> None:
    module = [] if len(path.parts) == 1 else ["-m"]
    name = ".".join(path.with_suffix("").parts).removesuffix(".__main__") if module else path.name
    done = bare(*module, name, "--help")
    if done.returncode:  # some need none for their help
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert "this Python has no package" in done.stderr
        assert "python -m pip install -r " in done.stderr or "activate" in done.stderr


@pytest.mark.parametrize(
    "path", ["server.py", "client.py", "attacks.py", *(f"{name}/__init__.py" for name in FOLDERS)]
)
def test_guard_is_imported_before_all_else(path: str) -> None:
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    first = next(
        node for node in imports if ast.unparse(node) != "from __future__ import annotations"
    )
    assert ast.unparse(first) == "import guard"


@pytest.mark.slow
def test_each_package_that_is_imported_is_known() -> None:
    folders = [*FOLDERS, "lab"]
    files = [
        *ROOT.glob("*.py"),
        *(path for name in folders for path in ROOT.glob(f"{name}/**/*.py")),
    ]
    names = {
        name for path in files if not path.is_relative_to(STUDENT) for name in imports_of(path)
    }
    foreign = names - {
        *sys.stdlib_module_names,
        *folders,
        *(path.stem for path in ROOT.glob("*.py")),
    }
    told_elsewhere = {"matplotlib", "playwright", "tomllib"}
    imported_by_name = {"dpkt", "jinja2", "pymysql"}
    assert foreign - told_elsewhere | imported_by_name == guard.PACKAGES


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("raise KeyboardInterrupt", 130, None),
        ("import zmq.utils", 2, "-c: this Python has no package zmq; in "),
        ("import telepathy", 1, "Traceback"),
        ("from os import telepathy", 1, "Traceback"),
        ("raise ImportError(name='zmq')", 1, "Traceback"),
        ("1 / 0", 1, "Traceback"),
        ("import sys; sys.ps1 = '> '; raise KeyboardInterrupt", None, "Traceback"),
    ],
)
def test_only_what_is_no_mistake_of_ours_is_told_without_a_traceback(
    code: str, status: int | None, words: str | None
) -> None:
    done = bare("-c", f"import guard\n{code}")
    if status is not None:
        assert done.returncode == status
    assert done.stderr.startswith(words) if words else done.stderr == ""


def test_an_old_python_is_told_its_version() -> None:
    assert bare("-c", "import sys; sys.version_info = (3, 10, 0); import guard").returncode == 0
    done = bare("-c", "import sys; sys.version_info = (3, 9, 18); import guard")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "and 3.10 or newer is needed" in done.stderr


def test_the_commands_are_those_that_are_lacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "HERE", str(tmp_path))
    monkeypatch.setattr(sys, "base_prefix", "there")
    monkeypatch.setattr(sys, "prefix", "here")
    program = str(tmp_path / "node" / "node.py")
    assert guard.remedy("Crypto", program) == "python -m pip install -r requirements.txt"
    assert guard.remedy("zmq", program) == "python -m pip install -r requirements-dev.txt"
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "requirements.txt").touch()
    own = str(Path("node", "requirements.txt"))
    assert guard.remedy("zmq", program) == f"python -m pip install -r {own}"
    monkeypatch.setattr(sys, "prefix", "there")
    for system, python in (("linux", "python3"), ("win32", "py")):
        monkeypatch.setattr(sys, "platform", system)
        assert guard.remedy("zmq", program).startswith(f"{python} -m venv .venv, then ")
    assert guard.remedy("zmq", program).endswith(f", then python -m pip install -r {own}")
    (tmp_path / ".venv").mkdir()
    assert guard.remedy("zmq", program).endswith("activate")
