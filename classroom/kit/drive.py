"""The program inside a child: it imports the modules beside it, and answers questions about them.

    python drive.py MODULES SECONDS MEGABYTES USER

A question is a line of JSON with Python to evaluate; the answer is a line with what came of it. It
knows nothing but this: what is right is known on the other side of the pipe only. Before a module
of a student is imported, the limits are set and an audit hook stands, which keeps Python code from
starting programs, writing, and reading elsewhere. The hook stops accidents and idle curiosity; the
wall is what classroom/kit/sandbox.py builds around this process.
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import enum
import importlib
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, TextIO

HERE = os.path.dirname(os.path.realpath(__file__))
NOBODY = 65_534
FILE_BYTES = 1 << 16  # of a file that is written where no hook sees it
OPEN_FILES = 64
FORBIDDEN = (  # beginnings of audit events
    "os.",
    "shutil.",
    "socket.",
    "subprocess.",
    "pty.",
    "ctypes.dl",
    "signal.",
    "fcntl.",
    "winreg.",
    "webbrowser.",
    "tempfile.",
)
# What a module of a student may import, which is loaded while libraries can still be loaded.
IMPORTED = """
    Crypto.Cipher.AES Crypto.Random Crypto.Util.Padding argparse dataclasses encodings.ascii hashlib
    hmac ipaddress itertools logging math random re secrets signal socket struct threading
"""
HARMLESS = ("os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.add_dll_directory")


def encoded(value: object, depth: int = 0) -> object:
    """Return something that JSON can hold, and that tells values of different types apart."""
    if isinstance(value, enum.Enum):
        return {"enum": f"{type(value).__name__}.{value.name}"}
    if value is None or isinstance(value, (bool, str)):
        return value
    if depth > 20:
        return {"object": "too deep"}
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, (int, float)):
        return {type(value).__name__: repr(value)}
    if isinstance(value, (list, tuple)):
        return [encoded(item, depth + 1) for item in value]
    if isinstance(value, (set, frozenset)):
        return {"set": sorted((encoded(item, depth + 1) for item in value), key=json.dumps)}
    if isinstance(value, dict):
        pairs = [[encoded(name, depth + 1), encoded(value[name], depth + 1)] for name in value]
        return {"dict": sorted(pairs, key=json.dumps)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [[field.name, getattr(value, field.name)] for field in dataclasses.fields(value)]
        return {"is": type(value).__name__, "fields": encoded(fields, depth + 1)}
    return {"object": type(value).__name__}


def decoded(value: Any) -> Any:
    """Return what a line of JSON means: bytes are {"bytes": hex}, numbers {"int": text}."""
    if isinstance(value, list):
        return [decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "bytes" in value:
        return bytes.fromhex(value["bytes"])
    if "int" in value:
        return int(value["int"])
    if "float" in value:
        return float(value["float"])
    return {decoded(name): decoded(item) for name, item in value.get("dict", ())}


class Pipe:
    """The only way out: lines of JSON on what were stdin and stdout when we began."""

    def __init__(self) -> None:
        self._lines: TextIO = os.fdopen(os.dup(0), "r", encoding="utf-8")
        self._answers: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):  # what a student's module prints or asks for goes nowhere
            os.dup2(nothing, descriptor)

    def read(self) -> Any:
        line = self._lines.readline()
        if not line:
            os._exit(0)
        return json.loads(line)

    def write(self, answer: dict[str, object]) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()

    def ask(self, *question: object) -> Any:
        """Ask the grader in the middle of an answer."""
        self.write({"ask": encoded(question)})
        return decoded(self.read()["told"])


def set_limits(seconds: int, megabytes: int, user: str) -> None:
    """Set what a process cannot set back. Windows has no such limits."""
    if sys.platform == "win32":
        return
    import resource

    def limit(name: str, value: int) -> None:
        with contextlib.suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (value, value))

    limit("RLIMIT_CPU", seconds)
    limit("RLIMIT_AS", megabytes << 20)
    limit("RLIMIT_FSIZE", FILE_BYTES)
    limit("RLIMIT_NOFILE", OPEN_FILES)
    limit("RLIMIT_CORE", 0)
    if user == "nobody":
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    limit("RLIMIT_NPROC", 0)


def readable_places() -> tuple[str, ...]:
    """Return the folders that a module may be imported from."""
    places = [HERE, sys.prefix, sys.base_prefix, *sys.path]
    return tuple(os.path.realpath(place) for place in places if place)


def forbid(places: tuple[str, ...]) -> None:
    """Refuse to Python code what a solution has no use for."""
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    realpath = os.path.realpath

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            is_writing = bool((flags or 0) & writing) or bool(set(mode or "") & set("wax+"))
            if isinstance(path, int):
                return
            if is_writing or not realpath(os.fsdecode(path)).startswith(places):
                raise PermissionError("a submission works on what it is given")
        elif event.startswith(FORBIDDEN) and event not in HARMLESS:
            raise PermissionError("a submission works on what it is given")

    sys.addaudithook(hook)


class Namespace:
    """What the questions are evaluated in: the names of all modules, and what they keep."""

    def __init__(self, pipe: Pipe) -> None:
        self.names: dict[str, Any] = {"ask": pipe.ask}

    def load(self, names: list[str]) -> None:
        for name in names:
            self.names[name] = module = importlib.import_module(name)
            found = {key: value for key, value in vars(module).items() if not key.startswith("__")}
            self.names.update(found)

    def answer(self, question: dict[str, Any]) -> object:
        code = question["do"]
        self.names.update({name: decoded(value) for name, value in question["with"].items()})
        try:
            compiled = compile(code, "question", "eval")
        except SyntaxError:
            exec(compile(code, "question", "exec"), self.names)
            return None
        return eval(compiled, self.names)


def replied(action: Callable[[], object]) -> dict[str, object]:
    """Return what an action returns, or which error it raises."""
    try:
        return {"value": encoded(action())}
    except BaseException as error:  # an exit, too
        return {"raised": type(error).__name__}


def main() -> None:
    modules, seconds, megabytes, user = sys.argv[1:5]
    pipe = Pipe()
    sys.path.insert(0, HERE)
    for name in IMPORTED.split():
        importlib.import_module(name)
    set_limits(int(seconds), int(megabytes), user)
    namespace = Namespace(pipe)
    forbid(readable_places())
    builtins.input = lambda *_: ""
    pipe.write({"ready": replied(partial(namespace.load, modules.split(",")))})
    while True:
        question = pipe.read()
        pipe.write({"id": question["id"], **replied(partial(namespace.answer, question))})


if __name__ == "__main__":
    main()
