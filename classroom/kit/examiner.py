"""How a submission is asked and compared with the reference, and what a check is.

A check asks the same of two children: one has the submission's functions, one is the reference of
the same dialect. What is right is computed in the second and compared here. A check that fails says
one sentence of ours, with its section of PROTOCOL.md, and at most the type of an error: nothing
that a submission says is passed on.
"""

from __future__ import annotations

import ast
import builtins
import json
import random
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import protocol_fsm
from classroom.kit.sandbox import Asked, Gone, Raised

ERRORS = {"Refused"} | {  # whose names may be told
    name
    for module in (builtins, protocol_fsm)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, BaseException)
}
Found = TypeVar("Found")


class Failed(Exception):
    """A check failed; the message is our sentence."""


class Bench:
    """Both sides, and a source of everything that is asked."""

    def __init__(
        self, student: Asked, reference: Asked, tree: Callable[[str], ast.AST | None], seed: str
    ) -> None:
        self.student = student
        self.reference = reference
        self.tree = tree  # of a function of the submission, by module:name
        self.random = random.Random(seed)
        self.shared: dict[str, Any] = {}  # between checks of one task

    def data(self, length: int) -> bytes:
        return self.random.randbytes(length)

    def keys(self) -> dict[str, bytes]:
        return {label: self.data(32) for label in protocol_fsm.KEY_LABELS}

    def ask(self, sentence: str, code: str, **values: Any) -> Any:
        """Return what the submission makes of it. Raises Failed if it makes nothing of it."""
        try:
            return self.student.do(code, **values)
        except Raised as error:
            raise Failed(f"{sentence} Yours raised {named(error.name)}.") from None
        except Gone as error:
            raise Failed(f"{sentence} Yours {error}.") from None

    def same(self, sentence: str, code: str, **values: Any) -> Any:
        """Compare what both make of it, and return that. Raises Failed with the sentence."""
        wanted = tried(self.reference, code, values)
        try:
            got = tried(self.student, code, values)
        except Gone as error:
            raise Failed(f"{sentence} Yours {error}.") from None
        if text_of(got) != text_of(wanted):
            raise Failed(sentence + difference(wanted, got))
        return wanted

    def takes(self, sentence: str, code: str, **values: Any) -> None:
        """Fail a submission that refuses what is right, too: its refusals show nothing."""
        try:
            got = self.student.do(code, **values)
        except Raised as error:
            got = ["refused"] if error.name != "NotImplementedError" else None
        except Gone as error:
            raise Failed(f"{sentence} Yours {error}.") from None
        if isinstance(got, list) and got[:1] == ["refused"]:
            raise Failed(f"{sentence} Yours refuses what is right, too.")

    def once(self, name: str, find: Callable[[], Found]) -> Found:
        """Return what is found at the first time; if that fails, it fails each time."""
        if name not in self.shared:
            try:
                self.shared[name] = find()
            except Failed as error:
                self.shared[name] = error
        found = self.shared[name]
        if isinstance(found, Failed):
            raise found
        return cast(Found, found)

    def true(self, sentence: str, is_so: object) -> None:
        if is_so is not True:
            raise Failed(sentence)


def tried(side: Asked, code: str, values: dict[str, Any]) -> Any:
    """Return a value, or which error was raised."""
    try:
        return side.do(code, **values)
    except Raised as error:
        return {"raised": error.name}


def named(name: object) -> str:
    """Return the name of a type that we know; others could be anything."""
    return name if isinstance(name, str) and name in ERRORS else "an error of its own"


def text_of(value: Any) -> str:
    """Return a value as text, in which True is not 1, nor 1 1.0."""
    return json.dumps(value, default=lambda data: {"bytes": data.hex()})


def difference(wanted: Any, got: Any) -> str:
    """Return what may be said about types of errors, and nothing else."""
    raised = [value.get("raised", "") if isinstance(value, dict) else "" for value in (wanted, got)]
    if raised[1] and raised[0]:
        return f" The reference raises {raised[0]}, and yours raised {named(raised[1])}."
    if raised[1]:
        return f" Yours raised {named(raised[1])}."
    if raised[0]:
        return f" The reference raises {raised[0]}, and yours raised nothing."
    return ""


class Check(NamedTuple):
    """One check of a task."""

    task: int
    points: int
    name: str
    run: Callable[[Bench], None]


CHECKS: list[Check] = []
Run = TypeVar("Run", bound=Callable[[Bench], None])


def check(task: int, points: int) -> Callable[[Run], Run]:
    """Register a check; its name is the first line of its docstring."""

    def register(run: Run) -> Run:
        CHECKS.append(Check(task, points, (run.__doc__ or "").splitlines()[0].rstrip("."), run))
        return run

    return register
