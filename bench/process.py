"""A server in a process of its own, whose memory, threads and descriptors can be measured."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from channel import POLL_S
from endpoint import HOST
from program import starting

ROOT = Path(__file__).parent.parent


def raise_descriptor_limit() -> None:
    """Let this process have 4,096 connections, or as many as it may; macOS begins with 256."""
    if sys.platform == "win32":
        return
    import resource

    with contextlib.suppress(ValueError, OSError):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 4_096 if hard == resource.RLIM_INFINITY else min(4_096, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


class Usage(NamedTuple):
    """What a process holds; where the system does not tell (no /proc), all is 0."""

    resident_kb: int = 0
    threads: int = 0
    descriptors: int = 0

    def __str__(self) -> str:
        return (
            f"{self.resident_kb / 1024:.1f} MB, {self.threads} threads, "
            f"{self.descriptors} descriptors"
        )


def higher(one: Usage, other: Usage) -> Usage:
    """Return the larger of each number: the peak of both."""
    return Usage(*map(max, one, other))


def usage_of(pid: int) -> Usage:
    """Return what a process holds now; one that has ended holds nothing."""
    place = Path(f"/proc/{pid}")
    with contextlib.suppress(OSError, KeyError):
        lines = (place / "status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return Usage(
            int(fields["VmRSS"].split()[0]), int(fields["Threads"]), len(os.listdir(place / "fd"))
        )
    return Usage()


class ServerProcess:
    """A server on a free loopback port; its log goes to a file, so that it never waits for us."""

    def __init__(
        self, *flags: str, most_descriptors: int = 0, program: Sequence[str] = ("server.py",)
    ) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self._log = Path(self._directory.name) / "log"
        command = [sys.executable, *program, "--port", "0", *flags]
        if most_descriptors:
            command = ["sh", "-c", f'ulimit -n {most_descriptors}; exec "$@"', "sh", *command]
        with open(self._log, "w") as log, starting():
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                text=True,
                stderr=log,
                stdout=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
            )
        assert self.process.stdout is not None
        words = self.process.stdout.readline()
        if "listening on " not in words.lower():
            raise RuntimeError(f"the server did not start: {self.log()}")
        self.address = HOST, int(words.rpartition(":")[2])

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.communicate()
        self._directory.cleanup()

    def log(self) -> list[str]:
        """Return the lines that it has logged so far."""
        return self._log.read_text(errors="replace").splitlines()

    def usage(self) -> Usage:
        """Return what it holds now; a process that has ended holds nothing."""
        return usage_of(self.process.pid)

    def cpu_s(self) -> float:
        """Return the seconds of processor time that it has used; 0 where that is not told."""
        if sys.platform == "win32":
            return 0.0
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return 0.0

    def stop(self) -> tuple[int, float]:
        """Ask it to stop; return its exit code (0 where it cannot be asked), and the seconds."""
        began = time.monotonic()
        self.process.terminate()
        code = self.process.wait(30)
        return code if sys.platform != "win32" else 0, time.monotonic() - began


def settled(server: ServerProcess, wanted: Usage) -> Usage:
    """Return the usage once threads and descriptors are back at what is wanted, or at the end."""
    deadline = time.monotonic() + 20.0
    while (usage := server.usage())[1:] > wanted[1:] and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return usage
