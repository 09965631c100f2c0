"""What the demos of the companions share: programs that work in a folder, and how it all ends."""

from __future__ import annotations

import contextlib
import re
import tempfile
import textwrap
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from classroom.demo import Crew
from program import Parser, UserError, escaped, reason_of

COLUMNS = 79
LIMIT_S = 300.0  # for all of a demo
UNSHOWN = re.compile(r"^[\d-]+T[\d:]+Z | at [\d.]+:\d+(?=: )")  # time and address in a log


class Programs(Crew):
    """The processes of a demo, the folder that they work in, and what went wrong, as sentences."""

    def __init__(self, folder: Path) -> None:
        super().__init__(LIMIT_S)
        self.folder = folder
        self.problems: list[str] = []
        self.port = ""

    @abstractmethod
    def begin(self, name: str, program: str, *words: str | Path) -> None:
        """Start a program of ours, and show the command."""

    @abstractmethod
    def next_line(self) -> tuple[str, str]:
        """Return the name of a program and its line; an empty line when it has ended."""

    def finish(self, program: str, *words: str | Path) -> list[str]:
        """Run a program to its end, and return the lines that it prints."""
        lines: list[str] = []
        self.begin(program, program, *words)
        while program not in self.ended:
            name, line = self.next_line()
            if name != program:
                show(name, line)
            elif line:
                lines.append(line)
        self.check_end(program)
        return lines

    def check_end(self, name: str, wanted: int = 0) -> None:
        """Remember a program that did not end as it should."""
        code = self.processes[name].wait()
        self.check(code == wanted, f"{name} ended with exit code {code}, not {wanted}")

    def check(self, is_well: bool, problem: str) -> None:
        if not is_well:
            self.problems.append(problem)


def show(name: str, line: str) -> None:
    """Print what a program has said, after its name."""
    if line:
        told = f"{name:<8} | {line}"
        print(textwrap.fill(told, COLUMNS, subsequent_indent=" " * 9 + "| "), flush=True)


def show_all(lines: Sequence[str]) -> None:
    """Print lines, those that are too long in several."""
    for line in lines:
        print(textwrap.fill(line, COLUMNS, subsequent_indent=" " * 4), flush=True)


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
        help=f"make this folder, and leave everything there: {things}",
    )
    options = parser.options()
    with kept(options.keep) if options.keep else tempfile.TemporaryDirectory() as folder:
        problems = play(Path(folder))
    for problem in problems:
        print(f"PROBLEM: {problem}")
    if options.keep:
        print(f"\nEverything that was made is in {escaped(str(options.keep))}.")
    if not problems:
        print("\nAll went as it should.")
    return int(bool(problems))
