"""One mutant, tried: its source in a copy of the project, and pytest in a process of its own.

The process is forked where the system can, so that pytest and the libraries are imported once.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import multiprocessing
import multiprocessing.connection
import multiprocessing.process
import os
import pkgutil
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import _pytest
import pytest

from tests.mutants.source import ROOT

PROFILE_LIMIT_S = 300.0  # for a test that is watched, and slowed down by that
MEMORY_BYTES = 4 << 30  # what a loop without an end may fill
HEAVY = (
    "hypothesis",
    "Crypto.Cipher.AES",
    "cryptography.x509",
    "zmq",
    "tqdm",
    "aiohttp",
    "argon2",
    "pydantic_settings",
    "sqlalchemy.dialects.mysql",
)
UNWANTED = ("__pycache__", ".git", ".venv", ".*_cache", "evidence", "pictures")
AT_IMPORT = "import"  # what no test was needed for
FORKS = "fork" in multiprocessing.get_all_start_methods()


def import_what_all_need() -> None:
    """Import the libraries once, before any process is forked."""
    parts = [f"_pytest.{part.name}" for part in pkgutil.iter_modules(_pytest.__path__)]
    for name in [*HEAVY, *parts]:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # or each process looks through all of that for garbage


@dataclass(frozen=True)
class Task:
    """What a process is to do in its copy."""

    folder: Path
    report: Path  # the test that runs, or that ran last
    output: Path
    tests: Sequence[str]  # files or tests, in the order in which they are to run
    without: Sequence[str]  # tests that are left out
    profile: Path | None = None  # where to write what each test enters; then no failure ends it


@dataclass
class Profile:
    """What a test takes, and what it enters in this process: `file:line` of functions."""

    seconds: float = 0.0
    entered: set[str] = field(default_factory=set)
    passed: bool = True


class Copy:
    """A copy of the project, in which one mutant at a time stands and is tried."""

    def __init__(self, folder: Path, limit_s: float) -> None:
        self.folder = folder / "project"
        self._report = folder / "report"
        self._output = folder / "output"
        self._profile = folder / "profile"
        shutil.copytree(ROOT, self.folder, ignore=shutil.ignore_patterns(*UNWANTED))
        self.process: Any = None
        self.without: list[str] = []  # tests that fail without a mutant, and so say nothing
        self._limit_s = limit_s  # for a test of which we know nothing better
        self._limits: Mapping[str, float] = {}
        self._is_profiling = False
        self._restore: tuple[Path, bytes, os.stat_result] | None = None

    def write(self, module: str, source: str) -> None:
        """Let `source` stand there instead of that module."""
        path = self.folder / module
        self._restore = (path, path.read_bytes(), path.stat())
        path.write_text(source, "utf-8")
        os.utime(path, (1, 1))  # or a cached compilation could seem to be of this

    def restore(self) -> None:
        if self._restore:
            path, content, was = self._restore
            path.write_bytes(content)
            os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
            self._restore = None

    def start(
        self, tests: Sequence[str], limits: Mapping[str, float], profile: bool = False
    ) -> None:
        """Begin to run those tests in that order; `limits` says how many seconds each may take."""
        self._limits = limits
        self._is_profiling = profile
        self._report.write_text("")
        self._profile.unlink(missing_ok=True)
        task = Task(
            self.folder,
            self._report,
            self._output,
            tests,
            self.without,
            self._profile if profile else None,
        )
        context = multiprocessing.get_context("fork" if FORKS else "spawn")
        self.process = context.Process(target=run_pytest, args=(task,))  # type: ignore[attr-defined]
        self.process.start()

    def is_done(self) -> bool:
        """Return whether the process has ended; one that hangs is ended."""
        if self.process.is_alive():
            limit_s = self._limits.get(self._report.read_text(), self._limit_s)
            if self._is_profiling:
                limit_s = PROFILE_LIMIT_S
            if time.time() - self._report.stat().st_mtime < limit_s * busyness():
                return False
            self.end()
        return True

    def wait(self) -> None:
        """Wait until the process has ended, or hangs."""
        while not self.is_done():
            self.process.join(1)

    def end(self) -> None:
        """End what is left of the process, and what it started."""
        if self.process and self.process.pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if FORKS:
                    os.killpg(self.process.pid, signal.SIGKILL)
                else:
                    self.process.kill()
            self.process.join()

    def killer(self) -> str | None:
        """Return the test that failed, crashed or hung, or None if all passed."""
        code = self.process.exitcode
        self.end()
        if code in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
            return None
        return self._report.read_text() or AT_IMPORT

    def output(self) -> str:
        return self._output.read_text("utf-8", errors="replace")

    def profiles(self) -> dict[str, Profile]:
        """Return what each test takes and enters."""
        found = json.loads(self._profile.read_text())
        return {
            test: Profile(seconds, set(entered), passed)
            for test, (seconds, entered, passed) in found.items()
        }


def run_pytest(task: Task) -> None:
    """Be the process: run the tests of the copy, and leave with pytest's exit code."""
    if FORKS:
        os.setsid()
        limit_memory()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # both are sent by some tests
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with open(task.output, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(task.folder)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    sys.path[:] = [str(task.folder), *(path for path in sys.path if Path(path or ".") != ROOT)]
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    sys.dont_write_bytecode = not task.profile  # nothing of a mutant may stay
    os.environ["PYTHONDONTWRITEBYTECODE"] = "" if task.profile else "1"
    preloaded = "ignore::pytest.PytestAssertRewriteWarning"
    flags = ["-q", "-p", "no:cacheprovider", "-W", preloaded]
    if not task.profile:
        flags += ["-x", "--tb=no"]
    if all("::" in test for test in task.tests):
        flags += ["-m", ""]  # what is asked by name may be slow
    plugin = Profiler(task) if task.profile else Witness(task)
    left_out = [f"--deselect={test}" for test in task.without]
    code = pytest.main([*flags, *left_out, *task.tests], plugins=[plugin])
    sys.stdout.flush()
    os._exit(int(code))  # whatever threads a mutant has left


def busyness() -> float:
    """Return how many times as long as usual things take on this machine at the moment."""
    if not hasattr(os, "getloadavg"):
        return 1.0
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


class Plugin:
    """What both plugins for pytest do: no more than is needed."""

    def pytest_configure(self) -> None:
        """Let hypothesis look for a failure, not for the smallest; and keep none."""
        with contextlib.suppress(ImportError):
            from hypothesis import Phase, settings

            phases = (Phase.explicit, Phase.generate)
            settings.register_profile(
                "mutants", settings(), phases=phases, database=None, derandomize=True
            )
            settings.load_profile("mutants")

    @pytest.hookimpl(tryfirst=True)
    def pytest_ignore_collect(self) -> bool:
        """Let nobody look through all files of tests, each time, for what cannot be imported."""
        return False


class Witness(Plugin):
    """It says what test runs, and keeps to the order."""

    def __init__(self, task: Task) -> None:
        self._report = task.report
        self._rank = {name: rank for rank, name in enumerate(task.tests)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: self._rank.get(test_name(item.nodeid), len(self._rank)))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._report.write_text(test_name(nodeid))


class Profiler(Plugin):
    """It writes down what each test takes, and which functions it enters."""

    def __init__(self, task: Task) -> None:
        assert task.profile
        self._task = task
        self._file = task.profile
        self._profiles: dict[str, Profile] = {}
        self._entered: set[tuple[str, int]] = set()
        self._began = 0.0

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._task.report.write_text(test_name(nodeid))
        self._entered.clear()
        self._began = time.monotonic()
        threading.settrace(self._note)
        sys.settrace(self._note)

    def _note(self, frame: FrameType, event: str, _: object) -> None:
        """Note a call, and ask for no other events: as a tracer, which is spared most of them."""
        self._entered.add((frame.f_code.co_filename, frame.f_code.co_firstlineno))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._profiles.setdefault(test_name(report.nodeid), Profile()).passed &= not report.failed

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        sys.settrace(None)
        threading.settrace(None)
        profile = self._profiles.setdefault(test_name(nodeid), Profile())
        profile.seconds += time.monotonic() - self._began
        root = f"{self._task.folder}{os.sep}"
        profile.entered |= {
            f"{name.removeprefix(root).replace(os.sep, '/')}:{line}"
            for name, line in self._entered.copy()  # threads may still be about
            if name.startswith(root)
        }

    def pytest_sessionfinish(self) -> None:
        found = {
            test: (profile.seconds, sorted(profile.entered), profile.passed)
            for test, profile in self._profiles.items()
        }
        self._file.write_text(json.dumps(found))


def test_name(node_id: str) -> str:
    """Return the test of a node id, without its parameters."""
    return node_id.partition("[")[0]


def wait_for_any(copies: Sequence[Copy]) -> Iterator[Copy]:
    """Wait a second or less, and yield what is done."""
    multiprocessing.connection.wait([copy.process.sentinel for copy in copies], timeout=1)
    yield from [copy for copy in copies if copy.is_done()]
