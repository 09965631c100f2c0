"""Our round beside that of another checkout, say the commit before, and beside a bare TLS echo.

    python3 run.py bench --against ../before

One client and small bodies; `Server` and `Client` have a process each, which loads the modules of
its own checkout. All processes live through a turn, and make a hundred rounds each, again and
again: so a busy machine disturbs all alike. Compared are the processor time of both ends together,
the time on the clock, and the number of calls in a round, which has no noise (calls.py).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from bench.calls import KEY, READINGS, ROOT, calls_in, checked
from bench.measure import (
    LIMIT_S,
    Ends,
    Share,
    Slice,
    by_rival,
    hear,
    measurement,
    now,
    process,
    ratio,
    tell_processor_time,
    turns,
)

TURNS = 10
SLICES = 20  # of each rival in a turn, and one before them to warm up
ROUNDS = 100  # in a slice
ECHO = "TLS echo"


# In the processes, which import what follows from their own checkout ------------------------------


def serve(pipe: Connection, checkout: Path) -> None:
    sys.path.insert(0, str(checkout))
    from server import Limits, Server

    with Server({1: KEY}, port=0, limits=Limits(window_s=LIMIT_S)) as server:
        pipe.send(server.address)
        tell_processor_time(pipe)


def call(pipe: Connection, checkout: Path, address: tuple[str, int]) -> None:
    sys.path.insert(0, str(checkout))
    from client import Client

    with Client(1, {1: KEY}, *address, timeout_s=LIMIT_S) as client:
        pipe.send("ready")
        while (rounds := pipe.recv()) is not None:
            began = now()
            for _ in range(rounds):
                client.report(READINGS)
            pipe.send(Share(began, now(), []))


# Here ---------------------------------------------------------------------------------------------


@contextmanager
def ends_in(checkout: Path) -> Iterator[Ends]:
    """Yield the server and a client of a checkout, connected. Raises Failed."""
    with process(serve, checkout) as server, process(call, checkout, hear(server)) as client:
        hear(client)
        ends = Ends(server, [client])
        yield ends
        ends.stop()


Seen = Mapping[str, Sequence[Slice]]  # by rival, in the order of turns


def run(other: Path, folder: Path, turn_count: int, slices: int) -> Seen:
    """Return what all rivals showed, slice by slice. Raises Failed."""
    from bench.slices import Case, ends_of  # only here: with them come our own server and client

    echoing = Case("tls_echo", 1, "small")
    found: list[dict[str, Slice]] = []
    for turn in range(turn_count):
        with (
            ends_in(ROOT) as ours,
            ends_in(other) as theirs,
            ends_of(echoing, 1, folder) as (echo, _),
        ):
            found += one_turn({"ours": ours, "theirs": theirs, ECHO: echo}, slices)
        seen = by_rival(found)
        so_far = ratio(both_s(seen["ours"]), both_s(seen["theirs"]))
        print(f"turn {turn + 1} of {turn_count}: {so_far}", file=sys.stderr, flush=True)
    return by_rival(found)


def one_turn(ends: Mapping[str, Ends], slices: int) -> list[dict[str, Slice]]:
    _warm_up, *measured = turns([*ends], 1 + slices, lambda name: ends[name].run(ROUNDS))
    return measured


def both_s(slices: Sequence[Slice]) -> list[float]:
    return [each.both_s for each in slices]


def table(seen: Seen, calls: Mapping[str, float]) -> str:
    """Return what came out, as ratios in ASCII of at most 79 columns."""
    lines = ["One client, small bodies; medians of all slices, and their quartiles", ""]
    for title, one, other in (
        ("ours, of theirs", "ours", "theirs"),
        (f"ours, of {ECHO}", "ours", ECHO),
        (f"theirs, of {ECHO}", "theirs", ECHO),
    ):
        processor = ratio(both_s(seen[one]), both_s(seen[other]))
        wall = ratio([s.wall_s for s in seen[one]], [s.wall_s for s in seen[other]])
        lines.append(f"{title:20} processor time {processor}   time {wall}")
    lines.append(f"calls a round: ours {calls['ours']:.0f}, theirs {calls['theirs']:.0f}")
    return "\n".join(lines)


@measurement
def main(words: Sequence[str] | None = None) -> int:
    from program import Parser, positive  # the processes load that of their checkout

    parser = Parser("Our round beside that of another checkout.")
    parser.add_argument("checkout", type=Path, help="its folder")
    parser.add_argument("--turns", type=positive, default=TURNS, help=f"default {TURNS}")
    parser.add_argument(
        "--slices", type=positive, default=SLICES, help=f"in a turn; default {SLICES}"
    )
    options = parser.options(words)
    other = checked(options.checkout)
    from bench.certificate import write_certificate

    with tempfile.TemporaryDirectory() as folder:
        write_certificate(Path(folder), "127.0.0.1")
        seen = run(other, Path(folder), options.turns, options.slices)
    calls = {name: sum(calls_in(at).values()) for name, at in (("ours", ROOT), ("theirs", other))}
    print(table(seen, calls))
    return 0


if __name__ == "__main__":
    from program import run_program

    run_program(main)
