"""The core and the companions, each with its claims, its documents, its attacks and its rules."""

from __future__ import annotations

import ast
import hashlib
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from lab.claims import Claims, Sets, read_claims, read_sets
from protocol_fsm import ProtocolError
from tests.programs import ROOT, run

NO_SESSION = ("__init__", "bench", "demo", "media", "weakened")  # modules without errors of one


@dataclass(frozen=True)
class Book:
    """One protocol; `data` has claims.toml and sets.json, `documents` SECURITY.md and CLAIMS.md."""

    name: str
    data: Path
    documents: Path
    program: str  # that attacks it
    weakened: str
    protocol: tuple[str, ...]  # the modules whose errors end a session

    @cached_property
    def told(self) -> Claims:
        return read_claims(self.data)

    @cached_property
    def found(self) -> Sets:
        return read_sets(self.data / "sets.json")

    @cached_property
    def attacks(self) -> dict[str, Any]:
        module = self.program.removeprefix("-m ").removesuffix(".py")
        return dict(importlib.import_module(module).ATTACKS)

    @cached_property
    def rules(self) -> dict[str, Any]:
        module = importlib.import_module(self.weakened)
        return dict(getattr(module, "RULES", None) or module.ELEMENTS)

    @cached_property
    def errors(self) -> dict[str, type[ProtocolError]]:
        return {
            name: value
            for module in self.protocol
            for name, value in vars(importlib.import_module(module)).items()
            if isinstance(value, type)
            and issubclass(value, ProtocolError)
            and value is not ProtocolError
        }

    def text(self, name: str) -> str:
        return (self.documents / name).read_text("utf-8")


def companion(folder: Path) -> Book:
    package = f"companions.{folder.name}"
    modules = sorted(path.stem for path in folder.glob("*.py") if path.stem not in NO_SESSION)
    return Book(
        folder.name,
        folder,
        folder,
        f"-m {package}.attacks",
        f"{package}.weakened",
        tuple(f"{package}.{module}" for module in modules),
    )


CORE = Book("core", ROOT / "classroom", ROOT, "attacks.py", "lab.weakened", ("protocol_fsm",))
COMPANIONS = [companion(path.parent) for path in sorted(ROOT.glob("companions/*/claims.toml"))]
BOOKS = {book.name: book for book in [CORE, *COMPANIONS]}


def resolve(symbol: str) -> object:
    """Import as much of a dotted name as is a module, and look up the rest."""
    names = symbol.split(".")
    for length in range(len(names), 0, -1):
        module = ".".join(names[:length])
        if (ROOT / module.replace(".", "/")).with_suffix(".py").is_file():
            found: object = importlib.import_module(module)
            for name in names[length:]:
                found = getattr(found, name)
            return found
    raise LookupError(f"{symbol} is in no module")


@lru_cache
def names_of_tests_in(path: str) -> set[str]:
    """Return the test functions of a file as pytest names them, with their class."""
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    inside = [(f"{cls.name}::", cls.body) for cls in tree.body if isinstance(cls, ast.ClassDef)]
    return {
        prefix + node.name
        for prefix, body in [("", tree.body), *inside]
        for node in body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def quoted(text: str) -> list[str]:
    """Return what stands between backticks."""
    return re.findall(r"`([^`]+)`", text)


def formula(protocol: str, name: str, **values: bytes) -> bytes:
    """Compute a formula of a PROTOCOL.md from the values of its parts."""
    (parts,) = re.findall(rf"^    {name} += SHA-256\((.*?)\)", protocol, re.MULTILINE)
    joined = b"".join(
        part.strip('"').encode()
        if part.startswith('"')
        else values[part.replace("-", "_").replace(" ", "_")]
        for part in parts.split(" || ")
    )
    return hashlib.sha256(joined).digest()


def moves(page: str) -> set[tuple[str, ...]]:
    """Return state, opcode, sender and next state of each move in the table of a page."""
    table = page[page.index("\n| state | phase |") + 1 :].split("\n\n")[0].splitlines()[2:-1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    return {
        (state, opcode, sender, following)
        for state, _, _, opcodes, senders, following in rows
        for opcode in opcodes.split(", ")
        for sender in senders.split(" or ")
    }


def moves_of(protocol: Any) -> set[tuple[str, ...]]:
    """Return the same from the code."""
    return {
        (state.name, opcode.name, sender.name, following.name)
        for (state, opcode, sender), following in protocol.ProtocolFSM.VALID_TRANSITIONS.items()
    }


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield every command of a document with the words that it is said to print."""
    for block in re.findall(r"^ *```sh\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE):
        for part in re.split(r"^ *(?=python )", block, flags=re.MULTILINE):
            command, *words = part.splitlines() or [""]
            if command:
                yield command, [word.strip().removeprefix("#").strip() for word in words]


def printed_by(command: str) -> str:
    """Run a command of a document, and return what it printed, with single spaces."""
    done = run(*command.split()[1:], timeout_s=300)
    assert done.stderr == ""
    assert done.returncode in (0, 1)
    return " ".join(done.stdout.split())
