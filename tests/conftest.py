"""Settings for all tests. What needs a package that is not installed is left out, and named."""

from __future__ import annotations

import importlib
import importlib.util
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEFT_OUT: dict[str, str] = {}  # the package that is missing, by test file

# Whoever starts us in the background may ignore Ctrl-C, and our programs would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if importlib.util.find_spec("hypothesis"):
    from hypothesis import settings

    # A slow machine is no defect of ours; what failed can be repeated from what is printed.
    settings.register_profile("lab", deadline=None, print_blob=True, max_examples=30)
    settings.load_profile("lab")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out a test file that needs a package which is not installed here."""
    if collection_path.suffix != ".py" or not collection_path.name.startswith("test_"):
        return None
    path = collection_path.relative_to(ROOT)
    try:
        importlib.import_module(".".join(path.with_suffix("").parts))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or (ROOT / package).exists() or (ROOT / f"{package}.py").exists():
            return None  # one of ours: pytest shall show where
        LEFT_OUT[path.as_posix()] = package
        return True
    return None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name what was left out."""
    for path, package in sorted(LEFT_OUT.items()):
        terminalreporter.write_line(f"not run: {path} needs {package}")
