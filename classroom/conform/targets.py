"""What is tested: programs that we start from a command, or a server that runs already.

A command is cut into words and never given to a shell. What it prints is kept for the report of a
failure. It is always ended, and so is what it has started, where the system can do that.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from classroom.conform.checks import Unable
from classroom.conform.client_checks import READINGS
from classroom.conform.peer import Mismatch
from endpoint import generate_keys, load_keys
from program import NoConnection, UserError, escaped, host_and_port_of, reason_of, tidying

HOST = "127.0.0.1"
CONNECT_S = 2.0
START_S = 20.0  # until a server listens; some have to be compiled first
END_S = 2.0  # to end by itself
LAST_LINES = 12  # of its output that are shown
LAST_BYTES = 4_096
MARK = "CONFORM_RUN"  # in the environment of all that one run starts


def words_of(command: str, needed: Sequence[Sequence[str]]) -> list[str]:
    """Cut a command into words; it needs one placeholder of each group. Raises UserError."""
    try:
        words = shlex.split(command, posix=sys.platform != "win32")
    except ValueError as error:
        raise UserError(f"cannot cut {command!a} into words: {error}") from None
    if sys.platform == "win32":  # where a backslash is no escape, quotes stay
        words = [word[1:-1] if word.startswith('"') else word for word in words]
    for group in needed:
        if not any(f"{{{name}}}" in word for name in group for word in words):
            named = " or ".join(f"{{{name}}}" for name in group)
            raise UserError(f"the command has no {named}: {command!a}")
    return words


def filled(words: Sequence[str], values: Mapping[str, object]) -> list[str]:
    """Put values in place of {their names}."""
    done = []
    for word in words:
        for name, value in values.items():
            word = word.replace(f"{{{name}}}", str(value))
        done.append(word)
    return done


class Process:
    """A program that runs. However much it prints, only the end is kept."""

    address: tuple[str, int]  # where it listens, if it is a server

    def __init__(self, words: Sequence[str], mark: str = "") -> None:
        try:
            self._process = subprocess.Popen(
                words,
                env={**os.environ, MARK: mark},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                start_new_session=sys.platform != "win32",  # a group, which is ended together
            )
        except OSError as error:
            raise UserError(f"cannot start {words[0]!a}: {reason_of(error)}") from None
        self._printed = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self._process.stdout or contextlib.nullcontext() as stream:
            while stream and (data := stream.read(65_536)):
                self._printed = (self._printed + data)[-LAST_BYTES:]

    def code(self) -> int | None:
        """Return the exit code, None if it runs."""
        return self._process.poll()

    def wait(self, patience_s: float) -> int | None:
        """Wait for the end, and return the exit code; None if it does not come."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(patience_s)
        return None

    def stop(self) -> None:
        """Ask it to end in good order; on Windows it is killed."""
        with contextlib.suppress(OSError):
            self._process.terminate()

    def end(self) -> None:
        """End it, by force if need be."""
        self.stop()
        self.finish()

    def finish(self) -> None:
        """Wait for the end, and force it if it does not come."""
        self.wait(END_S)
        if sys.platform != "win32":
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
        else:
            self._process.kill()
        self._process.wait()

    def output(self) -> str:
        """Return its last lines, with nothing in them that moves a cursor."""
        if self.code() is not None:
            self._reader.join(END_S)
        lines = self._printed.decode(errors="replace").splitlines()
        return "\n".join(escaped(line) for line in lines[-LAST_LINES:])


class Workshop:
    """A folder for keys and output, and the programs started in it; none outlives the `with`."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name)
        generate_keys(self.folder / "keys", [*ids])
        self.keys = load_keys(self.folder / "keys" / "server.keys")
        self._lock = threading.Lock()
        self._mark = secrets.token_hex(16)
        self._processes: list[Process] = []
        self._is_closed = False

    def __enter__(self) -> Workshop:
        return self

    def __exit__(self, *exception: object) -> None:
        with tidying(), self._lock:
            self._is_closed = True  # no other can be started
            running = [process for process in self._processes if process.code() is None]
            for process in running:  # all at once, so that their times do not add up
                process.stop()
            for process in running:
                process.finish()
            end_strays(self._mark)
            self._folder.cleanup()

    def start(self, words: Sequence[str]) -> Process:
        """Start a program. Raises UserError, and Unable when all have been ended."""
        with self._lock:
            if self._is_closed:
                raise Unable("stopped")
            process = Process(words, self._mark)
            self._processes.append(process)
            return process


def end_strays(mark: str) -> None:
    """End what has left its group, as a daemon does; only Linux shows it."""
    if sys.platform != "linux":
        return
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)


class CommandServers:
    """Servers of a command, as many as are needed."""

    is_ours = True

    def __init__(self, shop: Workshop, command: str) -> None:
        self._words = words_of(command, [["port"], ["keys"]])
        self._shop = shop
        self.keys: Mapping[int, bytes] = shop.keys

    @contextlib.contextmanager
    def start(self) -> Iterator[Process]:
        """Give a new server that listens. Raises Mismatch if it does not, and UserError."""
        port = free_port()
        keys = self._shop.folder / "keys" / "server.keys"
        process = self._shop.start(filled(self._words, {"port": port, "keys": keys}))
        try:
            await_listener(process, port)
            process.address = (HOST, port)
            yield process
        finally:
            process.end()


class ForeignServer:
    """A server that runs already; it cannot be started, stopped or had alone."""

    is_ours = False

    def __init__(self, address: tuple[str, int], keys: Mapping[int, bytes]) -> None:
        self.address = address
        self.keys = keys

    @contextlib.contextmanager
    def start(self) -> Iterator[ForeignServer]:
        """Give it, if something listens there. Raises NoConnection."""
        try:
            socket.create_connection(self.address, CONNECT_S).close()
        except (OSError, UnicodeError) as error:
            where = host_and_port_of(self.address)
            raise NoConnection(f"no server at {where}: {reason_of(error)}") from None
        yield self

    def stop(self) -> None:
        """Do nothing: it belongs to somebody else."""

    def wait(self, patience_s: float) -> None:
        """Return at once: nobody knows whether it has ended."""

    def output(self) -> str:
        """Return nothing: its output goes elsewhere."""
        return ""


class CommandClients:
    """Clients of a command, one for each check."""

    def __init__(self, shop: Workshop, command: str) -> None:
        self._words = words_of(command, [["port"], ["key", "keys"], ["readings"]])
        self._shop = shop
        self.keys = shop.keys
        self._readings = shop.folder / "readings.csv"
        self._readings.write_text("".join(f"{reading}\n" for reading in READINGS), "ascii")

    def start(self, address: tuple[str, int], client_id: int) -> Process:
        """Start a client of that id, for a server at that address. Raises UserError."""
        values = {
            "host": address[0],
            "port": address[1],
            "id": client_id,
            "key": self.keys[client_id].hex(),
            "keys": self._shop.folder / "keys" / f"client-{client_id}.key",
            "readings": self._readings,
        }
        return self._shop.start(filled(self._words, values))


def free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def await_listener(process: Process, port: int) -> None:
    """Wait until something listens there. Raises Mismatch."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), CONNECT_S):
            return
        code = process.wait(0.05)  # also the pause between two attempts
        if code is not None:
            lines = ["", *process.output().splitlines()]
            said = next((line for line in reversed(lines) if "rror" in line), lines[-1])
            got = f"its end with exit code {code}"
            raise Mismatch(f"a server on port {port}", f"{got} ({said[:200]})" if said else got)
    raise Mismatch(f"a server on port {port}", f"none within {START_S:g} s")
