"""The benchmark of the core: our channel beside plain TCP, TLS 1.2 and TLS 1.3, in one run.

    python3 run.py bench                    all cases; some minutes
    python3 run.py bench --quick            few rounds: shows that it works, measures little
    python3 run.py bench --against FOLDER   our round beside that of another checkout (against.py)

The work of a round is the same for all (rivals.py). The server has a process of its own, and so
have the clients: as many processes as there are other processors, each with its share of the
clients as threads. How it is measured says measure.py. Last comes the cost ladder of one round
(ladder.py). Tables go to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from bench import ladder, report
from bench.certificate import write_certificate
from bench.measure import Slice, by_rival, machine, measurement, turns
from bench.rivals import BODIES, HOST, RIVALS, example_answer
from bench.slices import Case, run_slice
from program import Parser, UserError, output_path, positive, run_program, write_text

CLIENTS = (1, 10, 50, 250)
ROUNDS = 20_000
TURNS = 10  # of a case
QUICK_ROUNDS = 200
QUICK_TURNS = 2
PIECE_ROUNDS = 200

# pycryptodome calls its AES by ctypes, or by cffi if that is installed; they differ in speed
AES_BACKEND = "cffi" if importlib.util.find_spec("cffi") else "ctypes"


class Bench:
    """One run with its options, its certificate, and what it has found."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options = options
        self._folder = folder
        groups = len(options.clients) * len(options.body)
        steps = groups * len(options.rivals) + (0 if options.no_ladder else 4 * len(options.body))
        self._total = steps * options.turns
        self._done = 0
        self._began = time.monotonic()
        self._channels: dict[str, str] = {}  # by rival: the version and the cipher
        self.figures: dict[Case, report.Figure] = {}
        self.ladders: dict[str, list[ladder.Rung]] = {}

    def run(self) -> None:
        for body in self._options.body:
            for clients in self._options.clients:
                self._group(clients, body)
        print(report.growth(self.figures), flush=True)
        for body in [] if self._options.no_ladder else self._options.body:
            self._ladder(body)

    def _slice(self, case: Case) -> Slice:
        rounds_each = max(4, self._options.rounds // self._options.turns // case.clients)
        processes = min(case.clients, self._options.processes)
        seen, self._channels[case.rival] = run_slice(case, rounds_each, processes, self._folder)
        self._tell(case, seen)
        return seen

    def _tell(self, case: Case, seen: Slice) -> None:
        """Print a line for each slice: how many there are, and how long the rest may take."""
        self._done += 1
        left_s = (time.monotonic() - self._began) / self._done * (self._total - self._done)
        print(
            f"{self._done}/{self._total} {case.rival}, {case.clients} x {case.body}: "
            f"{seen.rate:,.0f} rounds/s; about {left_s / 60:.1f} minutes left",
            file=sys.stderr,
            flush=True,
        )

    def _group(self, clients: int, body: str) -> None:
        cases = [Case(rival, clients, body) for rival in self._options.rivals]
        seen = by_rival(turns(cases, self._options.turns, self._slice))
        sizes = len(BODIES[body].report), len(example_answer(BODIES[body], clients))
        tls12 = seen.get(Case("tls12", clients, body), [])
        figures = {case: report.figure(slices, tls12, sum(sizes)) for case, slices in seen.items()}
        self.figures.update(figures)
        told = {case.rival: each for case, each in figures.items()}
        print(report.table(clients, body, sizes, told, self._channels), flush=True)

    def _ladder(self, body: str) -> None:
        work = ladder.pieces(BODIES[body])
        pieces: dict[str, list[float]] = {name: [] for name in work}
        cases = [Case(rival, 1, body) for rival in ("bare", "ours", "tls12", "floor")]
        seen = []
        for turn in turns(cases, self._options.turns, self._slice):
            seen.append(turn)
            for name, piece in work.items():
                pieces[name].append(ladder.clock(piece, PIECE_ROUNDS))
        bare, ours, tls12, floor = (
            [1 / each.rate for each in slices] for slices in by_rival(seen).values()
        )
        self.ladders[body] = ladder.build(ours, bare, pieces)
        tls12_s = median(tls12)
        floor_s = median(floor)
        print(report.ladder(body, self.ladders[body], tls12_s, floor_s), flush=True)

    def as_json(self) -> Mapping[str, object]:
        return {
            **machine(),
            "openssl": ssl.OPENSSL_VERSION,
            "aes_called_by": AES_BACKEND,
            "client_processes": self._options.processes,
            "cases": [{**case._asdict(), **each._asdict()} for case, each in self.figures.items()],
            "ladder": {
                body: [rung._asdict() for rung in rungs] for body, rungs in self.ladders.items()
            },
        }


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = Parser("Our channel beside TLS.", prog="run.py bench")
    parser.add_argument(
        "--clients",
        type=positive,
        nargs="+",
        default=[*CLIENTS],
        metavar="N",
        help="how many at a time; default 1 10 50 250",
    )
    parser.add_argument("--body", nargs="+", default=[*BODIES], choices=[*BODIES])
    parser.add_argument(
        "--rivals",
        nargs="+",
        default=[*RIVALS],
        choices=RIVALS,
        metavar="NAME",
        help=f"default {' '.join(RIVALS)}",
    )
    parser.add_argument("--rounds", type=positive, help=f"of a case in all; default {ROUNDS:,}")
    parser.add_argument(
        "--turns", type=positive, help=f"that they are divided into; default {TURNS}"
    )
    parser.add_argument(
        "--processes",
        type=positive,
        default=max(1, (os.cpu_count() or 2) - 1),
        help="for the clients; default: processors but one",
    )
    parser.add_argument("--quick", action="store_true", help="few rounds: a trial, no measurement")
    parser.add_argument("--no-ladder", action="store_true", help="leave out the cost ladder")
    parser.add_argument("--json", type=output_path, metavar="FILE", help="write all numbers there")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FOLDER",
        help="measure nothing but a round of this, beside one of another checkout",
    )
    options = parser.options(words)
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    options.turns = options.turns or (QUICK_TURNS if options.quick else TURNS)
    if max(options.clients) > 255:
        raise UserError("there are ids for 255 clients only")
    return options


@measurement
def main(words: list[str] | None = None) -> int:
    options = parse(words)
    if options.against:  # in a process that has not loaded our own server and client
        words = [str(options.against.resolve()), "--turns", str(options.turns)]
        command = [sys.executable, "-m", "bench.against", *words]
        return subprocess.run(command, cwd=Path(__file__).parent.parent, check=False).returncode
    with tempfile.TemporaryDirectory() as folder:
        write_certificate(Path(folder), HOST)
        bench = Bench(options, Path(folder))
        bench.run()
    if options.json:
        write_text(options.json, json.dumps(bench.as_json(), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run_program(main)
