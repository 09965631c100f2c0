"""Finds what an object still holds: every byte string that can be reached from it, however hidden.

A session must forget a key once it has moved on. Comparing a list of attributes would pass a copy
in a closure, a bound method, a suspended generator or the traceback of an error, so the walk asks
the garbage collector for all that an object refers to. It does not enter modules, the globals of a
function, callers of a frame, or the standard library's own classes: everything can be
reached from those.
"""

from __future__ import annotations

import gc
import sys
import types
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

PIECE_BYTES = 8  # a copy of part of a secret is found if it has this much of it
OPAQUE = ("cryptography.", "Crypto.", "_hashlib", "_hmac", "_sha", "hmac")  # keys out of sight
IDENTITIES = ("RSAPrivateKey", "RSAPublicKey")  # which outlive every session
LEAVES = (types.ModuleType, types.CodeType, str, bytes, bytearray, int, float, type(None))


def objects(start: object) -> list[tuple[str, object]]:
    """Return every object that can be reached from `start`, each with one path to it."""
    found: list[tuple[str, object]] = []
    seen: set[int] = set()
    waiting: deque[tuple[str, object]] = deque([("", start)])
    while waiting:
        path, one = waiting.popleft()
        if id(one) in seen:
            continue
        seen.add(id(one))
        found.append((path, one))  # which also keeps its id from being used again
        if not _is_leaf(one):
            waiting.extend((path + step, child) for step, child in _children(one))
    return found


def reachable(start: object) -> list[tuple[str, bytes | bytearray | memoryview]]:
    """Return all bytes that can be reached, each with a path: of large ints and texts, too."""
    found: list[tuple[str, bytes | bytearray | memoryview]] = []
    for path, one in objects(start):
        if isinstance(one, (bytes, bytearray, memoryview)):
            found.append((path, one))
        elif isinstance(one, str):
            found.append((path, one.encode("utf-8", "surrogatepass")))
        elif isinstance(one, int) and abs(one).bit_length() >= 8 * PIECE_BYTES:
            found.append((path, abs(one).to_bytes((one.bit_length() + 7) // 8, "big")))
        elif hasattr(type(one), "private_bytes_raw"):  # an ephemeral key of `cryptography`
            found.append((path, one.private_bytes_raw()))  # type: ignore[attr-defined]
    return found


def opaque(start: object) -> list[str]:
    """Return paths of what can hold a key where no walk sees it: ciphers, hashes, AEADs."""
    return [
        f"{path} ({type(one).__name__})"
        for path, one in objects(start)
        if type(one).__module__.startswith(OPAQUE)
        and not isinstance(one, (type, types.FunctionType, types.BuiltinFunctionType))
        and type(one).__name__ not in IDENTITIES
    ]


def held(start: object, secrets: Mapping[str, bytes]) -> dict[str, list[str]]:
    """Return by name which of these secrets can be reached, whole or in part, with the paths.

    A secret is looked for as bytes, as hex, and backwards, as an int may have been read.
    """
    pieces = [(piece, name) for name, secret in secrets.items() for piece in _pieces(secret)]
    found: dict[str, list[str]] = {}
    for path, data in reachable(start):
        content = bytes(data)
        if len(content) < PIECE_BYTES:
            continue
        content += content.lower()  # of hex digits in capitals
        for name in dict.fromkeys(name for piece, name in pieces if piece in content):
            found.setdefault(name, []).append(path)
    return found


def _pieces(secret: bytes) -> Iterator[bytes]:
    last = len(secret) - PIECE_BYTES
    for at in {*range(0, last + 1, PIECE_BYTES), last}:
        piece = secret[at : at + PIECE_BYTES]
        yield from (piece, piece[::-1], piece.hex().encode())


def _is_leaf(one: object) -> bool:
    """Return whether what an object refers to is nothing, or everything."""
    owner = one if isinstance(one, type) else type(one)
    module = str(owner.__module__).partition(".")[0]
    if isinstance(one, type):
        return module in sys.stdlib_module_names
    return isinstance(one, LEAVES) or module == "typing"


def _children(one: object) -> Iterator[tuple[str, object]]:
    """Yield what an object refers to: by name where it has one, and then all else."""
    named = [*_named(one)]
    yield from named
    if isinstance(one, (types.FunctionType, types.FrameType)):
        return  # the rest of them is globals, builtins and callers
    known = {id(child) for _, child in named}
    for child in gc.get_referents(one):
        if id(child) not in known:
            yield f"<{type(child).__name__}>", child


def _named(one: object) -> Iterator[tuple[str, object]]:
    if isinstance(one, types.FrameType):
        yield from _items(one.f_locals)
    elif isinstance(one, types.FunctionType):
        for name in ("__closure__", "__defaults__", "__kwdefaults__", "__dict__"):
            yield f".{name}", getattr(one, name)
    elif isinstance(one, (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType)):
        frame = getattr(one, "gi_frame", None) or getattr(one, "cr_frame", None)
        yield ".frame", frame or getattr(one, "ag_frame", None)
    elif isinstance(one, types.TracebackType):
        yield ".tb_frame", one.tb_frame
        yield ".tb_next", one.tb_next
    elif isinstance(one, BaseException):
        for name in ("args", "__dict__", "__traceback__", "__context__", "__cause__"):
            yield f".{name}", getattr(one, name, None)
    elif isinstance(one, dict):
        yield from _items(one)
    elif isinstance(one, (list, tuple, deque, set, frozenset)):
        yield from ((f"[{number}]", child) for number, child in enumerate(one))
    else:
        yield from _attributes(one)


def _items(entries: Mapping[Any, object]) -> Iterator[tuple[str, object]]:
    for key, value in entries.items():
        yield f"[{key!r:.40}]", value
        yield " key", key


def _attributes(one: object) -> Iterator[tuple[str, object]]:
    """Yield attributes and slots, without running a property or a __getattr__."""
    for name, value in getattr(one, "__dict__", {}).items():
        yield f".{name}", value
    for owner in type(one).__mro__:
        for name, member in vars(owner).items():
            if isinstance(member, types.MemberDescriptorType) and not name.startswith("__"):
                try:
                    yield f".{name}", member.__get__(one)
                except (AttributeError, ValueError):
                    continue  # an empty slot
