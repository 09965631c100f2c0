"""How everything in this folder is measured: in fresh processes, in turns, as ratios within a turn.

Each turn runs every rival once, and a different one first each time, so that whatever else the
machine does affects all of them alike. A ratio compares two slices of the same turn; the median of
the turns is shown, with its quartiles. Processor time belongs to one process, wall time to the
clock that all processes share. Connections, handshakes and a warm-up come before the clock starts.

Nothing here imports a protocol, so that a child process can load that of another checkout.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import quantiles
from typing import Any, NamedTuple, ParamSpec, TypeVar

SPAWN = multiprocessing.get_context("spawn")  # the same on every system
ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 120.0  # for what should take a moment
BAR = 44  # columns
DIED = "a process of the benchmark died; what it said stands above"
Rival = TypeVar("Rival")
Seen = TypeVar("Seen")


class Failed(Exception):
    """A process of the benchmark died, took too long, or did not do its work."""


Given = ParamSpec("Given")


def measurement(main: Callable[Given, int]) -> Callable[Given, int]:
    """Make `main` print why it Failed, and return 1 then."""

    def run(*given: Given.args, **named: Given.kwargs) -> int:
        try:
            return main(*given, **named)
        except Failed as problem:
            print(f"bench: {problem}", file=sys.stderr)
            return 1

    return run


# Processes ----------------------------------------------------------------------------------------


@contextmanager
def at_root() -> Iterator[None]:
    """Be in our folder: in the user's, a new process would take a socket.py for Python's."""
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def process(target: Callable[..., object], *arguments: object) -> Iterator[Connection]:
    """Start a process, and yield the pipe to it; it does not outlive the block. Raises Failed."""
    from program import starting  # here: the new process must load that of another checkout

    ours: Any  # a Connection; Windows has another class for it
    ours, theirs = SPAWN.Pipe()
    child = SPAWN.Process(target=target, args=(theirs, *arguments), daemon=True)
    with at_root(), starting():
        child.start()
    theirs.close()
    try:
        yield ours
        child.join(LIMIT_S)
    except ConnectionError:
        raise Failed(DIED) from None
    finally:
        child.kill()
        child.join()


def hear(pipe: Connection) -> Any:
    """Return the next thing that a process tells. Raises Failed."""
    try:
        if pipe.poll(5 * LIMIT_S):
            return pipe.recv()
    except (EOFError, OSError):
        raise Failed(DIED) from None
    raise Failed("a process of the benchmark takes too long")


class Moment(NamedTuple):
    """A point in time, or the time between two: on the clock, and of this process's processor."""

    wall_s: float
    processor_s: float


def now() -> Moment:
    return Moment(time.perf_counter(), time.process_time())


def since(began: Moment) -> Moment:
    return Moment(*(end - begin for begin, end in zip(began, now())))


# Rounds between a server and its clients ----------------------------------------------------------


class Share(NamedTuple):
    """What one client process tells of the rounds that it was asked for."""

    began: Moment
    ended: Moment
    latencies_s: list[float]


class Slice(NamedTuple):
    """What some rounds showed; processor times are those of one round."""

    rounds: int
    wall_s: float
    server_s: float
    client_s: float
    latencies_s: list[float]

    @property
    def rate(self) -> float:
        return self.rounds / self.wall_s

    @property
    def both_s(self) -> float:
        return self.server_s + self.client_s


class Ends(NamedTuple):
    """Pipes to a server and its clients, which are connected, and wait for orders."""

    server: Connection
    clients: Sequence[Connection]  # one to each process
    client_count: int = 1

    def run(self, rounds_each: int) -> Slice:
        """Have each client make so many rounds. Raises Failed."""
        rounds = rounds_each * self.client_count
        before_s = self._server_s()
        for client in self.clients:
            client.send(rounds_each)
        shares: list[Share] = [hear(client) for client in self.clients]
        server_s = self._server_s() - before_s
        return Slice(
            rounds,
            max(share.ended.wall_s for share in shares) - min(s.began.wall_s for s in shares),
            server_s / rounds,
            sum(s.ended.processor_s - s.began.processor_s for s in shares) / rounds,
            [latency for share in shares for latency in share.latencies_s],
        )

    def _server_s(self) -> float:
        self.server.send("processor time")
        return float(hear(self.server))

    def stop(self) -> None:
        for pipe in (*self.clients, self.server):
            pipe.send(None)


def tell_processor_time(pipe: Connection) -> None:
    """In a server's process: answer each question of `Ends`, until there are no more."""
    while pipe.recv() is not None:
        pipe.send(time.process_time())


# Turns and ratios ---------------------------------------------------------------------------------


def turns(
    rivals: Sequence[Rival], count: int, run: Callable[[Rival], Seen]
) -> Iterator[dict[Rival, Seen]]:
    """Yield what every rival showed, turn by turn; a different one is first each time."""
    for turn in range(count):
        first = turn % len(rivals)
        yield {rival: run(rival) for rival in [*rivals[first:], *rivals[:first]]}


def by_rival(seen: Iterable[Mapping[Rival, Seen]]) -> dict[Rival, list[Seen]]:
    """Return what each rival showed, in the order of turns."""
    found: dict[Rival, list[Seen]] = {}
    for turn in seen:
        for rival, one in turn.items():
            found.setdefault(rival, []).append(one)
    return found


class Spread(NamedTuple):
    """The median of some values, and the quartiles below and above it."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{in_short(self.middle)} ({in_short(self.low)}-{in_short(self.high)})"


def in_short(value: float) -> str:
    """Return a number with three digits, in four columns up to 9,999."""
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f}"


def spread(values: Sequence[float]) -> Spread:
    if len(values) < 2:
        return Spread(values[0], values[0], values[0])
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Return our values as parts of theirs, turn by turn."""
    return spread([our / their for our, their in zip(ours, theirs)])


# What all benchmarks print ------------------------------------------------------------------------


def bars(rates: Mapping[str, float], width: int) -> list[str]:
    """Return a bar for each name; the highest rate fills it."""
    best = max(rates.values())
    return [
        f"{name:{width}} |{'#' * round(BAR * rate / best):{BAR}}| {rate / best:.2f}"
        for name, rate in rates.items()
    ]


def machine() -> dict[str, object]:
    """Return what numbers depend on, for the JSON beside them."""
    return {"python": platform.python_version(), "processors": os.cpu_count()}
