"""The walk that looks for keys finds one wherever an object can hide it."""

from __future__ import annotations

import functools
import hashlib
import hmac
from collections import deque
from collections.abc import Callable, Iterator

import pytest

from tests.secrets_walk import held, opaque, reachable

SECRET = bytes(range(1, 33))


class Slotted:
    __slots__ = ("_content",)

    def __init__(self, content: object) -> None:
        self._content = content


class Holder:
    """Hides what it is given, as a session could."""

    def __init__(self, content: object) -> None:
        self._content = content

    def method(self) -> object:
        return self._content


def closure(secret: bytes) -> Callable[[], bytes]:
    return lambda: secret


def with_default(secret: bytes) -> Callable[[], bytes]:
    def function(key: bytes = secret) -> bytes:
        return key

    return function


def generator(secret: bytes) -> Iterator[int]:
    """Return a generator that waits with the secret in a variable."""

    def steps() -> Iterator[int]:
        key = secret
        yield 1
        yield len(key)

    started = steps()
    next(started)
    return started


def failure(secret: bytes) -> Exception:
    """Return an error whose traceback has the secret in a frame."""

    def fail() -> None:
        key = secret
        raise ValueError(len(key))

    try:
        fail()
    except ValueError as error:
        return error
    raise AssertionError


def cached(secret: bytes) -> Callable[[int], bytes]:
    @functools.lru_cache
    def function(number: int) -> bytes:
        return secret[number:]

    function(0)
    return function


def class_with(secret: bytes) -> object:
    return type("Keeper", (), {"last": secret})()


HIDES: dict[str, Callable[[bytes], object]] = {
    "attribute": lambda secret: secret,
    "slot": Slotted,
    "list": lambda secret: [[secret]],
    "tuple": lambda secret: (1, (secret,)),
    "set": lambda secret: {secret},
    "deque": lambda secret: deque([secret]),
    "value": lambda secret: {"a": {1: secret}},
    "key": lambda secret: {secret: 1},
    "iterator": lambda secret: iter([secret]),
    "bytearray": bytearray,
    "view": memoryview,
    "part of more bytes": lambda secret: b"before" + secret + b"after",
    "half of it": lambda secret: secret[16:],
    "hex": bytes.hex,
    "number": lambda secret: int.from_bytes(secret, "big"),
    "number read backwards": lambda secret: int.from_bytes(secret, "little"),
    "closure": closure,
    "default": with_default,
    "partial": lambda secret: functools.partial(len, secret),
    "bound method": lambda secret: Holder(secret).method,
    "generator": generator,
    "error": ValueError,
    "traceback": failure,
    "cache": cached,
    "class": class_with,
}


@pytest.mark.parametrize("place", HIDES)
def test_a_secret_is_found_wherever_it_is_hidden(place: str) -> None:
    found = held(Holder(HIDES[place](SECRET)), {"key": SECRET, "another": bytes(32)})
    assert [*found] == ["key"]
    assert all(path.startswith("._content") for path in found["key"])


def test_an_object_without_the_secret_holds_none() -> None:
    assert held(Holder([bytes(100), "text", 7, SECRET[:7]]), {"key": SECRET}) == {}


def test_paths_name_the_way_to_a_secret() -> None:
    holder = Holder({"a": [0, SECRET]})
    assert ("._content['a'][1]", SECRET) in reachable(holder)


def test_a_ring_of_references_ends() -> None:
    ring: list[object] = [SECRET]
    ring.append(ring)
    assert held(ring, {"key": SECRET}) == {"key": ["[0]"]}


def test_hashes_with_a_key_inside_are_named() -> None:
    assert opaque(Holder(hmac.new(SECRET, digestmod="sha256")))
    assert opaque(Holder(hashlib.sha256(SECRET)))
    assert opaque(Holder(SECRET)) == []
