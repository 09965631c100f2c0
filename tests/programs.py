"""Programs run as a person runs them: started, read line by line, interrupted."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from program import end_signals, run_program

ROOT = Path(__file__).parent.parent
TIMEOUT_S = 30
HINT = re.compile(r"something listens on 127\.0\.0\.1:9999; .*\n")  # the reader's own server, say
Done = subprocess.CompletedProcess[str]
posix_only = pytest.mark.skipif(os.name != "posix", reason="signals and modes of POSIX")


def named_signal(name: str) -> signal.Signals:
    """Return a signal that programs started by this one take notice of, or skip the test."""
    number: signal.Signals = getattr(signal, name)
    if number not in end_signals():
        pytest.skip("these tests run below nohup")
    return number


class Program:
    """A running program whose output is read line by line as it comes."""

    def __init__(self, *arguments: str, cwd: Path = ROOT) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=cwd,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.lines: dict[str, list[str]] = {"out": [], "err": []}
        self._ended: set[str] = set()  # the streams that have no more lines
        self._changed = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=(name, stream), daemon=True)
            for name, stream in (("out", self.process.stdout), ("err", self.process.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str, stream: Iterator[str]) -> None:
        for line in stream:
            with self._changed:
                self.lines[name].append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended.add(name)
            self._changed.notify_all()

    def wait_for(self, pattern: str, name: str = "out", count: int = 1) -> str:
        """Return the line that matches, when it has been printed `count` times."""

        def found() -> list[str]:
            return [line for line in self.lines[name] if re.search(pattern, line)]

        def is_decided() -> bool:
            return len(found()) >= count or name in self._ended

        with self._changed:
            self._changed.wait_for(is_decided, TIMEOUT_S)
            assert len(found()) >= count, self.lines
        return found()[count - 1]

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def finish(self) -> int:
        """Wait for the end; return the exit code."""
        code = self.process.wait(TIMEOUT_S)
        for reader in self._readers:
            reader.join(TIMEOUT_S)
        told = "\n".join(self.lines["err"])
        assert "Traceback" not in told, told
        return code

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait(TIMEOUT_S)
        for reader in self._readers:
            reader.join(TIMEOUT_S)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]


@contextlib.contextmanager
def running_server(*flags: str) -> Iterator[tuple[Program, str]]:
    """Run server.py on a port of its own choice; give the program and the port."""
    with Program("server.py", "--port", "0", *flags) as server:
        yield server, server.wait_for("^listening on ").rpartition(":")[2]


def run(
    *words: object,
    given: str = "",
    cwd: Path = ROOT,
    timeout_s: float = 2 * TIMEOUT_S,
    env: Mapping[str, str] | None = None,
) -> Done:
    """Run a program of Python to its end, without a terminal; `env` is added to its environment."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        input=given,
        text=True,
        capture_output=True,
        timeout=timeout_s,
        check=False,
        env={**os.environ, **(env or {})},
        start_new_session=True,
    )
    done.stderr = HINT.sub("", done.stderr)
    return done


def run_here(main: Callable[[], int], capfd: pytest.CaptureFixture[str], *words: object) -> Done:
    """Run a main to its end in this process, without input, and spare the start of another."""
    argv = [*map(str, words)]
    handlers = {number: signal.getsignal(number) for number in end_signals()}
    level = logging.root.level
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", argv)
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        patch.setattr(sys, "unraisablehook", sys.unraisablehook)
        patch.setattr(logging, "raiseExceptions", logging.raiseExceptions)
        patch.setattr(logging.root, "handlers", [])  # what it logs is for stderr
        with pytest.raises(SystemExit) as ended:
            run_program(main)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    logging.root.setLevel(level)
    return Done(argv, int(str(ended.value)), *capfd.readouterr())


def run_in_shell(words: Iterable[str], streams: str) -> Done:
    """Run a program of Python in bash, which leads its streams elsewhere, as in `> /dev/full`."""
    return subprocess.run(
        ["bash", "-c", f"{shlex.join([sys.executable, *words])} {streams}"],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=2 * TIMEOUT_S,
        check=False,
    )


def write(program: Program, text: str) -> None:
    """Type into a program's standard input."""
    assert program.process.stdin
    program.process.stdin.write(text)
    program.process.stdin.flush()


def measured(
    module: str, folder: Path, flags: str, rivals: Iterable[str]
) -> tuple[str, dict[str, Any]]:
    """Run a benchmark; return its page and its numbers, beside which it leaves nothing behind."""
    words = ("-m", f"bench.{module}", *flags.split(), "--json", folder / "numbers")
    done = run(*words, timeout_s=20 * TIMEOUT_S, env={"TMPDIR": str(folder)})  # on a busy machine
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 79
    assert [path.name for path in folder.iterdir()] == ["numbers"]
    numbers = json.loads((folder / "numbers").read_text())
    assert "Traceback" not in done.stderr
    assert all(len(numbers["slices"][rival]) == 1 for rival in rivals)
    return done.stdout, numbers
