"""A child process with limits, which answers questions about a folder of modules.

Where there is bubblewrap, or unshare and the kernel's leave, the child sees its own folder, Python
and its packages, and nothing else; it has no network, no place to write, and no other process to
see. Elsewhere the limits of the operating system and the audit hook of drive.py remain, and
`Jail.warning` says so.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import queue
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from classroom.kit.drive import decoded, encoded
from program import UserError, reason_of, tidying

DRIVE = Path(__file__).with_name("drive.py")
CPU_S = 20  # of one process
MEMORY_MB = 512
LINE_BYTES = 2_000_000  # of one answer
LINES_AHEAD = 4  # an honest child says one line, and waits
START_S = 5.0  # until its modules are imported
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/alternatives")
NOT_ISOLATED = (
    "not isolated: this system has neither bwrap (Debian, Ubuntu: apt install bubblewrap) nor "
    "unshare, so a submission can reach this machine's files, and the reference's other functions"
)


class Gone(Exception):
    """A child ended, was silent for too long, or said too much; the message is our clause."""


class Raised(Exception):
    """What the child was asked for raised an error; `name` is its type's."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True)
class Jail:
    """How a child is started: what stands before Python, and which user it becomes."""

    name: str
    user: str  # "nobody", or "same"
    warning: str = ""  # empty if it is isolated

    def command(self, folder: Path) -> list[str]:
        """Return the command line up to the path of drive.py in `folder`."""
        python = [sys.executable, "-I", "-B", "-X", "utf8"]
        if self.name == "bwrap":
            return [*bubble(folder, self.user), *python, f"/task/{DRIVE.name}"]
        if self.name == "unshare":
            return [*unshared(folder), *python, f"/task/{DRIVE.name}"]
        return [*python, str(folder / DRIVE.name)]


def bubble(folder: Path, user: str) -> list[str]:
    """Return bwrap and its flags: an empty, read-only root with Python and one folder in it."""
    flags = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    if user == "nobody":  # root has to remain root until drive.py gives it up
        flags += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        flags += ["--unshare-user"]
    places = python_places()
    parents = {str(parent) for place in places for parent in Path(place).parents}
    for parent in sorted(parents - {"/"} - set(places)):  # else nobody could not pass through them
        flags += ["--perms", "0755", "--dir", parent]
    for place in places:
        flags += ["--ro-bind-try", place, place]
    flags += ["--dev", "/dev", "--ro-bind", str(folder), "/task", "--chdir", "/task"]
    flags += ["--remount-ro", "/", "--remount-ro", "/dev"]  # no memory of files, either
    return ["bwrap", "--die-with-parent", "--new-session", *flags]


# An empty root with Python and one folder in it, by what every Linux has; it stops at what fails.
NEW_ROOT = """
set -e
folder=$1
shift
root=$folder/root
mount -t tmpfs -o size=1m,mode=755 tmpfs "$root"
mkdir "$root/task" "$root/dev" "$root/old" "$root/proc"
mount -t proc proc "$root/proc"
while [ "$1" != -- ]; do
    if [ -d "$1" ]; then mkdir -p "$root$1"; mount --bind "$1" "$root$1"; fi
    if [ -f "$1" ]; then mkdir -p "$root${1%/*}"; : > "$root$1"; mount --bind "$1" "$root$1"; fi
    if [ -e "$1" ]; then mount -o remount,bind,ro "$root$1"; fi
    shift
done
shift
for device in null urandom; do
    : > "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mount --bind "$folder" "$root/task"
mount -o remount,bind,ro "$root/task"
cd "$root"
mount -o remount,bind,ro "$root"
pivot_root . old
umount -l /old
exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs "$@"
"""


def unshared(folder: Path) -> list[str]:
    """Return unshare and a script that leaves nothing but Python and one folder to be seen."""
    flags = ["--map-root-user", "--mount", "--net", "--pid", "--ipc", "--uts"]
    script = ["sh", "-c", NEW_ROOT, "sh", str(folder), *python_places(), "--"]
    return ["unshare", *flags, "--fork", "--kill-child", *script]


def python_places() -> list[str]:
    """Return the folders that Python needs, and none that holds the grader."""
    here = str(DRIVE.parents[2])
    program = os.path.dirname(os.path.realpath(sys.executable))
    places = [*SYSTEM, sys.base_prefix, sys.prefix, program]
    places += [place for place in sys.path if place.endswith(("site-packages", "dist-packages"))]
    return [place for place in dict.fromkeys(places) if not here.startswith(place + os.sep)]


@functools.cache
def best_jail() -> Jail:
    """Return the first way of starting a child that works here."""
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    jails = [Jail(name, "same") for name in ("bwrap", "unshare") if shutil.which(name)]
    jails.append(Jail("plain", "same", NOT_ISOLATED))
    if is_root:  # which no limit of processes holds
        jails = [Jail(jail.name, "nobody", jail.warning) for jail in jails] + jails
        jails.sort(key=lambda jail: bool(jail.warning))
    return next(filter(works, jails), jails[-1])


def works(jail: Jail) -> bool:
    """Return whether a child can be started in this way, and computes."""
    probe = {"probe.py": "import colorsys\nfrom Crypto.Cipher import AES\n"}
    with folder_with(probe) as folder:
        try:
            with Side(folder, ["probe"], jail) as side:
                return bool(side.do("AES.block_size") == 16)
        except (Gone, Raised):
            return False


@contextlib.contextmanager
def folder_with(sources: dict[str, str]) -> Iterator[Path]:
    """Give a fresh folder with modules and drive.py in it, removed afterwards. Raises UserError."""
    with tidying():
        temporary = tempfile.TemporaryDirectory(prefix="kit-", ignore_cleanup_errors=True)
    folder = Path(temporary.name)
    try:
        _fill(folder, sources)
        yield folder
    finally:
        with tidying():  # if Ctrl-C comes even before it, Python removes the folder at its end
            temporary.cleanup()


def _fill(folder: Path, sources: dict[str, str]) -> None:
    try:
        for name, text in sources.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8", newline="\n")
        shutil.copyfile(DRIVE, folder / DRIVE.name)
        (folder / "root").mkdir()  # where `unshare` makes its own
        folder.chmod(0o755)  # nobody reads it, too
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {reason_of(error)}") from None


class Asked(ABC):
    """Something that can be asked what Python code makes of some values."""

    @abstractmethod
    def do(self, code: str, **options: Any) -> Any:
        """Return what `code` makes of the values among the options. Raises Gone, Raised."""

    @abstractmethod
    def close(self) -> None:
        """End the child."""


@dataclass(frozen=True)
class Raw:
    """An answer as it came from a child, to be passed on to another."""

    answer: object


class Side(Asked):
    """One child. It can be asked until it ends, is silent, or says too much."""

    def __init__(
        self, folder: Path, modules: Sequence[str], jail: Jail, start_s: float = START_S
    ) -> None:
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        arguments = [",".join(modules), str(CPU_S), str(MEMORY_MB), jail.user]
        self._process = subprocess.Popen(
            [*jail.command(folder), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(),
            cwd=folder,
            start_new_session=True,
        )
        threading.Thread(target=self._send, daemon=True).start()
        threading.Thread(target=self._receive, daemon=True).start()
        self._start_s = start_s

    @functools.cached_property
    def import_error(self) -> str:
        """The name of what its modules raised, when it is known, else empty. Raises Gone."""
        ready = self._next(self._start_s).get("ready")
        if not isinstance(ready, dict):
            raise Gone("answered something else than it was asked")
        return str(ready.get("raised", ""))

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child and all that it has started."""
        self._outbox.put(None)
        if sys.platform != "win32":
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2.0)

    def do(
        self,
        code: str,
        *,
        within_s: float = 3.0,
        until: float = math.inf,
        told: Callable[[list[Any]], object] | None = None,
        is_raw: bool = False,
        **values: object,
    ) -> Any:
        """Return what `code` makes of `values` there. Raises Gone, Raised.

        A line has to come within some seconds, and the last before `until` on the monotonic clock.
        `told` answers what the code asks for by the function `ask`.
        """
        if self.import_error:
            raise Raised(self.import_error)
        name = secrets.token_hex(8)
        given = {key: encoded(value) for key, value in values.items()}
        self._write({"id": name, "do": code, "with": given})
        while True:
            answer = self._next(min(within_s, until - time.monotonic()))
            if "ask" in answer and told:
                self._tell(told(understood(answer["ask"])))
            elif answer.get("id") != name:
                raise Gone("answered something else than it was asked")
            elif "raised" in answer:
                raise Raised(str(answer["raised"]))
            else:
                value = answer.get("value")
                return Raw(value) if is_raw else decoded_answer(value)

    def _tell(self, value: object) -> None:
        self._write({"told": value.answer if isinstance(value, Raw) else encoded(value)})

    def _write(self, question: dict[str, object]) -> None:
        self._outbox.put(json.dumps(question).encode() + b"\n")

    def _next(self, within_s: float) -> dict[str, Any]:
        try:
            if within_s <= 0:  # a child that asks without end is never silent
                raise queue.Empty
            line = self._inbox.get(timeout=within_s)
        except queue.Empty:
            raise Gone("gave no answer in time") from None
        if len(line) >= LINE_BYTES:
            raise Gone("answered at too great length")
        if not line:
            raise Gone("ended before it answered")
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise Gone("answered something else than it was asked")
        return answer

    def _send(self) -> None:
        pipe = self._process.stdin
        with contextlib.suppress(OSError, ValueError), pipe or contextlib.nullcontext():
            while pipe and (line := self._outbox.get()) is not None:
                pipe.write(line)
                pipe.flush()

    def _receive(self) -> None:
        pipe = self._process.stdout
        with contextlib.suppress(OSError, ValueError), pipe or contextlib.nullcontext():
            while pipe and (line := pipe.readline(LINE_BYTES)):
                self._inbox.put(line)
                if len(line) >= LINE_BYTES or self._inbox.qsize() > LINES_AHEAD:
                    break
        self._inbox.put(b"")


NONSENSE = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


def understood(question: object) -> list[Any]:
    """Return what a child asks for: a list that begins with a word. Raises Gone."""
    try:
        value = decoded(question)
    except NONSENSE:
        value = None
    if not (isinstance(value, list) and value and isinstance(value[0], str)):
        raise Gone("asked something that cannot be understood")
    return value


def decoded_answer(value: object) -> Any:
    """Return bytes and numbers decoded, and all else as it came, to be compared. Raises Gone."""
    try:
        return _decoded(value)
    except NONSENSE:
        raise Gone("answered something else than it was asked") from None


def _decoded(value: object) -> object:
    if isinstance(value, dict) and value.keys() & {"bytes", "int", "float"}:
        return decoded(value)
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    return value


def environment() -> dict[str, str]:
    """Return the few variables that Python needs; the grader's own stay here."""
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
    return {**kept, "PYTHONDONTWRITEBYTECODE": "1"}
