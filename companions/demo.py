"""What the demos of the companions share: a folder to work in, and how it all ends."""

from __future__ import annotations

import contextlib
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

from program import Parser, UserError, escaped, reason_of

COLUMNS = 79


def heading(title: str, look: str) -> None:
    """Print what comes now, and what to look at."""
    print("", title, "-" * len(title), textwrap.fill(look, COLUMNS), "", sep="\n", flush=True)


@contextlib.contextmanager
def kept(folder: Path) -> Iterator[Path]:
    """Make a folder that stays. Raises UserError."""
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {reason_of(error)}") from None
    yield folder.absolute()


def perform(description: str, things: str, play: Callable[[Path], list[str]]) -> int:
    """Play a demo in a folder, say what went wrong, and return the exit code. Raises UserError."""
    parser = Parser(description)
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FOLDER",
        help=f"make this folder, and leave all there: {things}",
    )
    options = parser.options()
    with kept(options.keep) if options.keep else tempfile.TemporaryDirectory() as folder:
        problems = play(Path(folder))
    for problem in problems:
        print(f"PROBLEM: {problem}")
    if options.keep:
        print(f"\nAll that was made is in {escaped(str(options.keep))}.")
    if not problems:
        print("\nAll went as it should.")
    return int(bool(problems))
