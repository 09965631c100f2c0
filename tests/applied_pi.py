"""ProVerif's models played with real bytes: as much of its language as classroom/model/ speaks.

ProVerif asks what is true of all runs. This is one run at a time: `kdf`, `H2` and `H3` are SHA-256,
`enc` is AES-128-CBC with padding, `mac` is HMAC-SHA256, and a tuple is its parts, joined. So what a
model puts on the wire can be compared with what the code does, byte for byte.

A process here is a nested tuple, as `Model.process` makes it. `|` binds closer than all else, as in
ProVerif: `out(c, x); P | Q` is `out(c, x); (P | Q)`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from crypto_utils import aes_cbc_decrypt, aes_cbc_encrypt, hmac_sha256, pkcs7_pad

Value = bytes | tuple["Value", ...]
Env = dict[str, Value]
Tree = tuple[Any, ...]  # of a term, a pattern or a process: its kind, then its parts


class Stuck(Exception):
    """A process met what it does not accept, and stops for good."""


def joined(value: Value) -> bytes:
    return value if isinstance(value, bytes) else b"".join(map(joined, value))


def without_comments(text: str) -> str:
    return re.sub(r"\(\*.*?\*\)", "", text, flags=re.DOTALL)


def tokens_of(text: str) -> list[str]:
    return re.findall(r"[\w']+|==>|\|\||\S", without_comments(text))


# Reading ------------------------------------------------------------------------------------------


class Model:
    """The text of a .pv file: its constants, and the parameters and the body of each process."""

    def __init__(self, text: str) -> None:
        self._left = tokens_of(text)
        self.constants: list[str] = []
        self.processes: dict[str, tuple[list[str], Tree]] = {}
        while self._left[0] != "process":
            if self._left[0] == "let":
                self._definition()
                continue
            declaration = self._until(".")
            if declaration[0] == "const":
                self.constants += [name for name in declaration[1:-2] if name != ","]
        self._take("process")
        self.main = self._parallel()
        assert not self._left, self._left[:9]

    def _take(self, *wanted: str) -> str:
        for token in wanted:
            assert self._left[0] == token, f"{token}, not {self._left[:9]}"
            self._left.pop(0)
        return wanted[-1]

    def _took(self, token: str) -> bool:
        return bool(self._left and self._left[0] == token and self._left.pop(0))

    def _until(self, end: str) -> list[str]:
        at = self._left.index(end)
        taken = self._left[:at]
        self._left = self._left[at + 1 :]
        return taken

    def _definition(self) -> None:
        self._take("let")
        name = self._left.pop(0)
        parameters = self._patterns()
        self._take("=")
        self.processes[name] = [p[1] for p in parameters], self._parallel()
        self._take(".")

    def _terms(self) -> tuple[Tree, ...]:
        """Return what stands between brackets, with commas between."""
        self._take("(")
        terms: list[Tree] = []
        while not self._took(")"):
            terms.append(self._term())
            self._took(",")
        return tuple(terms)

    def _term(self) -> Tree:
        if self._left[0] == "(":
            return ("tuple", self._terms())
        name = self._left.pop(0)
        return ("call", name, self._terms()) if self._left[0] == "(" else ("name", name)

    def _patterns(self) -> tuple[Tree, ...]:
        self._take("(")
        patterns: list[Tree] = []
        while not self._took(")"):
            patterns.append(self._pattern())
            self._took(",")
        return tuple(patterns)

    def _pattern(self) -> Tree:
        if self._left[0] == "(":
            return ("tuple", self._patterns())
        if self._took("="):
            return ("equal", self._term())
        name = self._left.pop(0)
        if self._took(":"):
            self._left.pop(0)  # its type
        return ("bind", name)

    def _parallel(self) -> Tree:
        parts = [self._process()]
        while self._took("|"):
            parts.append(self._process())
        return ("parallel", parts) if len(parts) > 1 else parts[0]

    def _then(self, separator: str = ";") -> Tree:
        return self._parallel() if self._took(separator) else ("nil",)

    def _process(self) -> Tree:
        word = self._left.pop(0)
        if word == "(":
            inner = self._parallel()
            self._take(")")
            return inner
        if word == "!":
            return ("repeat", self._parallel())
        if word == "new":
            name = self._pattern()[1]
            return ("new", name, self._then())
        if word == "in":
            self._take("(", "c", ",")
            pattern = self._pattern()
            self._take(")")
            return ("in", pattern, self._then())
        if word in ("out", "event", "insert"):
            return (word, self._terms_after(word), self._then())
        if word == "get":
            self._take("keys")
            return ("get", self._patterns(), self._then("in"))
        if word == "let":
            pattern = self._pattern()
            self._take("=")
            return ("let", pattern, self._term(), self._then("in"))
        if word == "if":
            left = self._term()
            self._take("=")
            return ("if", left, self._term(), self._then("then"))
        if word == "phase":
            self._left.pop(0)
            return self._then()
        return ("play", word, self._terms())

    def _terms_after(self, word: str) -> Tree:
        """Return what is sent, or the event or the table with its terms."""
        if word == "out":
            return self._terms()[1]
        return self._term()


# Playing ------------------------------------------------------------------------------------------


def sha256(*parts: Value) -> bytes:
    return hashlib.sha256(joined(parts)).digest()


class World:
    """What the ends of one run have in common: constants, master keys, and what was encrypted."""

    def __init__(self, model: Model, constants: Mapping[str, bytes]) -> None:
        self.model = model
        self.constants = constants
        self.keys: list[tuple[Value, ...]] = []  # the server's table: id, master key
        self._plaintexts: dict[bytes, Value] = {}
        self._functions: dict[str, Callable[..., Value]] = {
            "kdf": sha256,
            "H2": sha256,
            "H3": sha256,
            "enc": self._enc,
            "dec": self._dec,
            "mac": lambda key, data: hmac_sha256(joined(key), joined(data)),
        }

    def value(self, term: Tree, env: Mapping[str, Value]) -> Value:
        if term[0] == "name":
            return env[term[1]] if term[1] in env else self.constants[term[1]]
        values = tuple(self.value(part, env) for part in term[-1])
        return values if term[0] == "tuple" else self._functions[term[1]](*values)

    def _enc(self, key: Value, iv: Value, plaintext: Value) -> bytes:
        padded = pkcs7_pad(joined(plaintext))
        ciphertext = aes_cbc_encrypt(padded, joined(key)[:16], joined(iv))
        self._plaintexts[joined(iv) + ciphertext] = plaintext
        return ciphertext

    def _dec(self, key: Value, ciphertext: Value) -> Value:
        """Return the parts of the plaintext; with a wrong key there are none."""
        for sealed, plaintext in self._plaintexts.items():
            iv = sealed[:16]
            known = sealed[16:]
            if known == ciphertext and aes_cbc_decrypt(known, joined(key)[:16], iv) == pkcs7_pad(
                joined(plaintext)
            ):
                return plaintext
        raise Stuck

    def matched(self, pattern: Tree, value: Value, env: Env) -> Env:
        """Return what the pattern binds, on top of `env`. Raises Stuck."""
        if pattern[0] == "bind":
            return {**env, pattern[1]: value}
        if pattern[0] == "equal":
            if joined(self.value(pattern[1], env)) != joined(value):
                raise Stuck
            return env
        if not isinstance(value, tuple) or len(value) != len(pattern[1]):
            raise Stuck
        for part, item in zip(pattern[1], value):
            env = self.matched(part, item, env)
        return env


class Role:
    """A process that is played. `sent` and `events` is what it did, `names` all that it knows."""

    def __init__(
        self,
        world: World,
        process: str,
        arguments: tuple[Value, ...],
        fresh: Callable[[str], bytes],
    ) -> None:
        self.sent: list[Value] = []
        self.events: list[tuple[Value, ...]] = []
        self.names: Env = {}
        self._world = world
        self._fresh = fresh
        self._waiting: list[tuple[Tree, Env]] = []  # parts that stand at an `in`
        parameters, body = world.model.processes[process]
        self._play(body, dict(zip(parameters, arguments)))

    def deliver(self, message: Value, kind: str = "tuple") -> bool:
        """Give a message to the last part that accepts it, and tell if there was one."""
        for part in [part for part in self._waiting[::-1] if part[0][1][0] == kind]:
            try:
                (_, pattern, then), env = part
                self._play(then, self._world.matched(pattern, message, env))
            except Stuck:
                continue
            self._waiting.remove(part)
            return True
        return False

    def provoke(self) -> bool:
        """Give anything to a part that takes anything."""
        return self.deliver(b"anything", "bind")

    def _play(self, process: Tree, env: Env) -> None:
        """Go on to where the process ends, waits or divides. Raises Stuck."""
        value = self._world.value
        while process[0] not in ("nil", "parallel", "in"):
            kind = process[0]
            first = process[1]
            then = process[-1]
            if kind == "new":
                env = {**env, first: self._fresh(first)}
            elif kind == "out":
                self.sent.append(value(first, env))
            elif kind == "event":
                self.events.append((first[1].encode(), *(value(term, env) for term in first[2])))
            elif kind == "get":
                env = self._row(("tuple", first), env)
            elif kind == "let":
                env = self._world.matched(first, value(process[2], env), env)
            elif kind == "if" and joined(value(first, env)) != joined(value(process[2], env)):
                raise Stuck
            process = then
        self.names.update(env)
        if process[0] == "in":
            self._waiting.append((process, env))
        for part in process[1] if process[0] == "parallel" else ():
            self._play(part, env)

    def _row(self, pattern: Tree, env: Env) -> Env:
        for row in self._world.keys:
            try:
                return self._world.matched(pattern, row, env)
            except Stuck:
                continue
        raise Stuck
