"""What a program says that cannot even be loaded; every program imports this before all else.

A missing package (most often nobody has activated the virtual environment) or a Python that is too
old is one sentence that names the commands, and exit code 2. Ctrl-C is no traceback.
"""

from __future__ import annotations

import os
import sys
from types import TracebackType

PACKAGES = {
    "Crypto",
    "aiohttp",
    "argon2",
    "cryptography",
    "dotenv",
    "dpkt",
    "jinja2",
    "prompt_toolkit",
    "pydantic",
}
PACKAGES |= {"pydantic_settings", "pymysql", "sqlalchemy", "tomli", "tqdm", "zmq"}
HERE = os.path.dirname(os.path.abspath(__file__))


def remedy(package: str, program: str) -> str:
    """Return the commands after which a program finds its packages."""
    file = "requirements.txt" if package == "Crypto" else "requirements-dev.txt"
    own = os.path.join(os.path.dirname(os.path.abspath(program)), "requirements.txt")
    if os.path.isfile(own):
        file = own[len(HERE) + 1 :]
    install = f"python -m pip install -r {file}"
    if sys.prefix != sys.base_prefix:  # a virtual environment is active
        return install
    python, activate = "python3", ". .venv/bin/activate"
    if sys.platform == "win32":
        python, activate = "py", ".venv\\Scripts\\activate"
    if os.path.isdir(os.path.join(HERE, ".venv")):
        return activate
    return f"{python} -m venv .venv, then {activate}, then {install}"


def give_up(sentence: str) -> None:
    """Print a sentence after the program's name, and exit with 2."""
    print(f"{os.path.basename(sys.argv[0])}: {sentence}", file=sys.stderr)
    sys.exit(2)


def explain(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Say in one sentence what would be a traceback, and exit."""
    package = (getattr(error, "name", None) or "").split(".")[0]
    if hasattr(sys, "ps1"):  # somebody types Python, and is used to tracebacks
        show(kind, error, traceback)
    elif issubclass(kind, KeyboardInterrupt):
        sys.exit(130)
    elif issubclass(kind, ModuleNotFoundError) and package in PACKAGES:
        what_to_type = remedy(package, sys.argv[0])
        give_up(f"this Python has no package {package}; in {HERE} type: {what_to_type}")
    else:
        show(kind, error, traceback)


if sys.version_info < (3, 10):  # noqa: UP036
    give_up(f"this is Python {sys.version.split()[0]}, and 3.10 or newer is needed")
show = sys.excepthook
sys.excepthook = explain
