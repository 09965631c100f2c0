"""Settings for all tests. What needs a package that is not installed is left out, and named."""

from __future__ import annotations

import ast
import functools
import importlib.util
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEFT_OUT: dict[str, list[str]] = {}  # packages that are missing, by test file

# Whoever starts us in the background may ignore Ctrl-C, and our programs would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if importlib.util.find_spec("hypothesis"):
    from hypothesis import settings

    # A slow machine is no defect of ours; what failed can be repeated from what is printed.
    settings.register_profile("lab", deadline=None, print_blob=True, max_examples=50)
    settings.load_profile("lab")


@functools.cache
def packages_of(path: Path) -> frozenset[str]:
    """Return the packages from outside that a file needs to be imported, itself or below it."""
    found: set[str] = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            below = ROOT.joinpath(*name.split(".")).with_suffix(".py")
            if below.is_file() and below != path:
                found |= packages_of(below)
            elif not (ROOT / name.split(".")[0]).is_dir():
                found.add(name.split(".")[0])
    return frozenset(found - set(sys.stdlib_module_names) - {"__future__"})


def is_missing(name: str) -> bool:
    return not (ROOT / f"{name}.py").is_file() and importlib.util.find_spec(name) is None


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out a test file that cannot be imported here."""
    if collection_path.suffix != ".py" or not collection_path.name.startswith("test_"):
        return None
    missing = sorted(filter(is_missing, packages_of(collection_path)))
    if not missing:
        return None
    LEFT_OUT[collection_path.relative_to(ROOT).as_posix()] = missing
    return True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name what was left out."""
    for path, missing in sorted(LEFT_OUT.items()):
        terminalreporter.write_line(f"not run: {path} needs {', '.join(missing)}")
