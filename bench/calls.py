"""How many calls a round of the core makes, function by function; this number has no noise.

    python -m bench.calls [FOLDER]      of another checkout; default: of this one

A server and a client run in one process, and every call of either is counted: functions of Python
by file and name, functions of C by name. Two processes that wake each other pay more for a call
than a loop does, because caches are cold: so counting calls says more than a profiler.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from bench.measure import hear, measurement, process

ROOT = Path(__file__).resolve().parent.parent
KEY = b"benchmark key 001"
READINGS = [20.5, 21.25, 19.75, 20.0]
ROUNDS = 100
WAIT_S = 120.0
LEAST = 0.5  # calls a round; fewer belong to threads that wake now and then


class Call(NamedTuple):
    where: str  # a file, or "C"
    name: str


class Counts:
    """Counts the calls of every thread that starts after it, once `is_on`."""

    def __init__(self) -> None:
        self.is_on = False
        self.found: Counter[Call] = Counter()

    def __call__(self, frame: FrameType, event: str, called: Any) -> None:
        if not self.is_on:
            return
        if event == "call":
            code = frame.f_code
            self.found[Call(Path(code.co_filename).name, code.co_name)] += 1
        elif event == "c_call":
            self.found[Call("C", called.__qualname__)] += 1


def count_calls(checkout: Path) -> dict[Call, float]:
    """Return the calls of one round, both ends together, of the core in that checkout.

    The process that calls this must not have imported another one before.
    """
    sys.path.insert(0, str(checkout))
    from client import Client
    from server import Limits, Server

    counts = Counts()
    threading.setprofile(counts)
    sys.setprofile(counts)
    limits = Limits(window_s=WAIT_S)
    with Server({1: KEY}, port=0, limits=limits) as server:
        with Client(1, {1: KEY}, *server.address, timeout_s=WAIT_S) as client:
            for _ in range(10):
                client.report(READINGS)
            counts.is_on = True
            for _ in range(ROUNDS):
                client.report(READINGS)
            counts.is_on = False
    sys.setprofile(None)
    return {call: number / ROUNDS for call, number in counts.found.items()}


def tell_calls(pipe: Connection, checkout: Path) -> None:
    pipe.send(count_calls(checkout))


def calls_in(checkout: Path) -> dict[Call, float]:
    """Count in a process of its own. Raises Failed."""
    with process(tell_calls, checkout) as pipe:
        counted: dict[Call, float] = hear(pipe)
        return counted


def checked(checkout: Path) -> Path:
    """Return the folder of a checkout, whole. Raises UserError."""
    from program import UserError  # the processes load that of their checkout

    if not (checkout / "server.py").is_file():
        raise UserError(f"there is no server.py in {checkout}")
    return checkout.resolve()


@measurement
def main(words: Sequence[str] | None = None) -> int:
    from program import Parser

    parser = Parser("The calls of a round, function by function.")
    parser.add_argument(
        "checkout", type=Path, nargs="?", default=ROOT, help="its folder; default: this one"
    )
    calls = calls_in(checked(parser.options(words).checkout))
    by_place: dict[str, float] = {}
    for call, number in calls.items():
        by_place[call.where] = by_place.get(call.where, 0.0) + number
    for place in sorted(by_place, key=lambda place: -by_place[place]):
        print(f"{place:20} {by_place[place]:7.2f}")
        for call in sorted(calls, key=lambda call: -calls[call]):
            if call.where == place and calls[call] >= LEAST:
                print(f"    {call.name:32} {calls[call]:7.2f}")
    print(f"{'all':20} {sum(calls.values()):7.2f}")
    return 0


if __name__ == "__main__":
    from program import run_program

    run_program(main)
