"""What the demos of the companions share: programs that work in a folder, and how it all ends."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from classroom.demo import ROOT, Crew
from lab.screen import as_typed
from program import Parser, UserError, escaped, reason_of

COLUMNS = 79
LIMIT_S = 300.0  # for all of a demo
ATTACKS_SHOWN = 6  # one by one, before the summary of all
UNSHOWN = re.compile(r"^[\d-]+T[\d:]+Z | at [\d.]+:\d+(?=: )")  # time and address in a log


class Spoiled(Exception):
    """The story cannot go on; the message is a sentence that says why."""


class Programs(Crew):
    """The processes of a demo, the folder that they work in, and what went wrong, as sentences."""

    package = "companions"  # of the programs
    example = ""  # one of them
    environment: Mapping[str, str] = {}  # beside ours

    def __init__(self, folder: Path) -> None:
        super().__init__(LIMIT_S)
        self.folder = folder
        self.problems: list[str] = []
        self.port = ""

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        for process in self.processes.values():
            with contextlib.suppress(OSError):  # what was typed last may be unread
                if process.stdin:
                    process.stdin.close()

    def play(self, *acts: Callable[[Any], None]) -> list[str]:
        """Play the acts, until one cannot go on, and return what went wrong. Raises SystemExit."""
        command = f"python -m {self.package}.{self.example}"
        print(f"`$ {self.example}` stands for: {command}; and so on.", flush=True)
        with self:
            try:
                for act in acts:
                    act(self)
            except Spoiled as problem:
                self.problems.append(str(problem))
        return self.problems

    def begin(self, name: str, program: str, *words: str | Path) -> None:
        """Start a program of ours in our folder, and show the command; it can be typed into."""
        self.ended.discard(name)
        command = " ".join(["$", program, *(as_typed(word) for word in words)])
        indent = " " * 6
        print(
            textwrap.fill(command, COLUMNS, subsequent_indent=indent, break_on_hyphens=False),
            flush=True,
        )
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self.launch(
            name,
            "-m",
            f"{self.package}.{program}",
            *map(str, words),
            cwd=self.folder,
            stdin=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, **self.environment},
        )

    def next_line(self) -> tuple[str, str]:
        """Return the name of a program and its line, without what is another in each run.

        An empty line is its end.
        """
        name, line = self.hear()
        return name, UNSHOWN.sub("", line)

    def type(self, name: str, *lines: str) -> None:
        """Type lines into a program."""
        stdin = self.processes[name].stdin
        with contextlib.suppress(OSError):  # whoever listens notices that the program has ended
            if stdin:
                stdin.write("".join(f"{line}\n" for line in lines))
                stdin.flush()

    def listen(self, *wanted: tuple[str, str]) -> str:
        """Show all lines until each program has said what its pattern matches; return the last.

        An empty pattern stands for its end. Raises Spoiled if any other program ends meanwhile:
        what is wanted may then never come.
        """
        may_end = self.ended | {name for name, words in wanted if not words}
        missing = {*wanted}
        line = ""
        while missing:
            name, line = self.next_line()
            show(name, line)
            missing -= {(who, "") for who in self.ended}
            said = {words for _, words in missing if words and re.search(words, line)}
            missing -= {(name, words) for words in said}
            for who in self.ended - may_end:
                unsaid = ", ".join(sorted(words for _, words in missing))
                raise Spoiled(f"{who} ended too soon: nobody said {unsaid}")
        return line

    def await_end(self, name: str, wanted: int = 0) -> None:
        """Show all lines until a program has ended, and check its exit code."""
        while name not in self.ended:
            show(*self.next_line())
        self.check_end(name, wanted)

    def stop(self, name: str, wanted: int = 0) -> None:
        """Ask a program to end, show its last lines, and check its exit code."""
        self.processes[name].terminate()
        self.await_end(name, 1 if sys.platform == "win32" else wanted)  # which knows no gentle end

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

    def play_attacks(self) -> None:
        """Show some attacks one by one, and then the summary of all."""
        lines: list[str] = []
        self.begin("attacks", "attacks")
        while "attacks" not in self.ended:
            _, line = self.next_line()
            lines.append(line)
            if len(lines) <= ATTACKS_SHOWN:
                show_all([line])
        print("... `attacks` alone shows them all ...\n")
        summary = [*itertools.dropwhile(lambda line: not line.startswith("family "), lines)]
        show_all(summary or lines[-10:])  # it may never come to a summary
        self.await_end("attacks")

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


def perform(name: str, description: str, things: str, play: Callable[[Path], list[str]]) -> int:
    """Play a demo in a folder, say what went wrong, and return the exit code. Raises UserError."""
    parser = Parser(description, f"run.py {name}")
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FOLDER",
        help=f"make this folder, and leave everything there: {things}",
    )
    options = parser.options()
    with (  # on Windows a killed program may hold its folder a moment longer
        kept(options.keep)
        if options.keep
        else tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    ) as folder:
        problems = play(Path(folder))
    for problem in problems:
        print(f"PROBLEM: {problem}")
    if options.keep:
        print(f"\nEverything that was made is in {escaped(str(options.keep))}.")
    if not problems:
        print("\nAll went as it should.")
    return int(bool(problems))
