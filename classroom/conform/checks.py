"""What a check is, the list that it stands in, and how it can end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from program import UserError

Trial = TypeVar("Trial")  # what a check is run with: a server, or a way to start clients


class Unable(Exception):
    """A check cannot be tried here; the message is the reason."""


@dataclass(frozen=True)
class Check(Generic[Trial]):
    """One thing that PROTOCOL.md says, and how it is tried. `run` raises Mismatch."""

    name: str  # stable, like server/tag-flipped
    section: str  # like 3.6
    meaning: str  # a sentence
    run: Callable[[Trial], None]
    is_alone: bool = False  # needs a server that nobody else uses


class Checks(dict[str, Check[Trial]]):
    """Checks by name, in the order of the protocol."""

    def __init__(self, side: str) -> None:
        super().__init__()
        self._side = side

    def enter(
        self,
        name: str,
        section: str,
        meaning: str,
        run: Callable[[Trial], None],
        is_alone: bool = False,
    ) -> None:
        full_name = f"{self._side}/{name}"
        self[full_name] = Check(full_name, section, meaning, run, is_alone)

    def check(self, section: str, is_alone: bool = False) -> Callable[[Any], Any]:
        """Return a decorator that enters a function: its name and docstring are the check's."""

        def decorate(run: Callable[[Trial], None]) -> Callable[[Trial], None]:
            meaning = " ".join((run.__doc__ or "").split()).rstrip(".")
            self.enter(run.__name__.replace("_", "-"), section, meaning, run, is_alone)
            return run

        return decorate


class Result(NamedTuple):
    """How a check ended: "passed", "failed", "skipped" or "not implemented"."""

    check: Check[Any]
    end: str
    why: str = ""
    seconds: float = 0.0
    output: str = ""  # of the implementation, if it failed


def read_skips(text: str, known: Mapping[str, Check[Any]]) -> dict[str, str]:
    """Return reasons by check, from lines of a name and a reason. Raises UserError."""
    skips: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        name, _, reason = line.strip().partition(" ")
        if not name or name.startswith("#"):
            continue
        if name not in known or not reason.strip():
            raise UserError(f"line {number} of the skips is not a check and a reason; see --list")
        skips[name] = reason.strip()
    return skips
