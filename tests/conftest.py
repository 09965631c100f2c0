"""Settings for all tests. What needs a package that is not installed is left out, and named."""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import os
import signal
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import pytest

from program import end_signals

ROOT = Path(__file__).parent.parent
LEFT_OUT: dict[str, str] = {}  # the package that is missing, by test file

gc.disable()  # until all is collected, and hardly anything of it is garbage

# Whoever starts us in the background may ignore Ctrl-C, and our programs would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if importlib.util.find_spec("hypothesis"):
    from hypothesis import settings

    # A slow machine is no defect of ours; what failed can be repeated from what is printed.
    settings.register_profile("lab", deadline=None, print_blob=True, max_examples=30)
    settings.load_profile("lab")


@pytest.fixture
def kept_signals() -> Iterator[None]:
    """What a program does about signals ends with its test."""
    before = {number: signal.getsignal(number) for number in end_signals()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def pytest_configure(config: pytest.Config) -> None:
    """Name a file that is not there, which pytest does not if workers run the tests."""
    for word in config.args:
        if not (config.invocation_params.dir / word.partition("::")[0]).exists():
            raise pytest.UsageError(f"file or directory not found: {word}")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Have workers begin at different files: what one has compiled, the others only read."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    if not worker or session.config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return
    paths = sorted((ROOT / "tests").rglob("test_*.py"))
    first = len(paths) * int(worker) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    for path in paths[first:] + paths[:first]:
        with contextlib.suppress(ImportError):
            importlib.import_module(module_name(path))


def pytest_collection_finish() -> None:
    """Let the garbage collector leave alone what was imported: that is there to the end."""
    gc.freeze()
    gc.enable()


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out a test file that needs a package which is not installed here."""
    if collection_path.suffix != ".py" or not collection_path.name.startswith("test_"):
        return None
    asked = {config.invocation_params.dir / word.partition("::")[0] for word in config.args}
    if asked.isdisjoint({collection_path, *collection_path.parents}):
        return None  # pytest asks about the files beside those that it is given, too
    try:
        importlib.import_module(module_name(collection_path))
    except ModuleNotFoundError as error:
        if package := missing_package(error):
            LEFT_OUT[collection_path.relative_to(ROOT).as_posix()] = package
            return True
    return None  # pytest shall show where one of ours is missing


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Skip a test that needs such a package only when it runs."""
    made: Any = yield
    report = made.get_result()
    if report.failed and call.excinfo and (package := missing_package(call.excinfo.value)):
        path = item.path.relative_to(ROOT).as_posix()
        LEFT_OUT[f"a part of {path}"] = package
        report.outcome = "skipped"
        report.longrepr = (path, 0, f"needs {package}")


def missing_package(error: BaseException | None) -> str:
    """Return the package that is not installed here and led to an error, if one did."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError):
            package = (error.name or "").partition(".")[0]
            is_ours = (ROOT / package).exists() or (ROOT / f"{package}.py").exists()
            # not find_spec of importlib.util: a test may have hidden a package that is there
            if not is_ours and PathFinder.find_spec(package) is None:
                return package
        error = error.__cause__ or error.__context__
    return ""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name what was left out."""
    for path, package in sorted(LEFT_OUT.items()):
        terminalreporter.write_line(f"not run: {path} needs {package}")
