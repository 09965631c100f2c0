"""Attack x defences: the minimal sets of rules without which an attack on two nodes wins.

    python -m companions.peer_messaging.matrix

Every try is a lab on real sockets, searched as lab/search.py says.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from companions.peer_messaging.attacks import ATTACKS
from companions.peer_messaging.stage import Lab, Parts
from companions.peer_messaging.weakened import RULES, without
from lab.frames import Frame
from lab.search import Found, Matrix, Names, Task, Trials, Tried, search, workers
from program import run_program

PER_CORE = 8  # processes, which wait most of the time


def parts(names: Names) -> Parts:
    """Return the parts of a lab without some rules."""
    return Parts(*without(names))


def nobody_logs(deed: str, frame: Frame) -> None:
    """Note nothing."""


TRIALS = Trials(
    attacks=ATTACKS,
    rules=RULES,
    parts=parts,
    lab=lambda parts, number: Lab(nobody_logs, parts),
    heard=("session", "trust", "peer"),
    also_checks=("_decrypt",),
)


def trial(task: Task) -> list[Tried]:
    """Run attacks without some rules."""
    return TRIALS.trial(task)


def find(names: Sequence[str], size: int) -> Found:
    """Return the minimal sets of each attack."""
    with workers(PER_CORE) as pool:
        return search(names, size, pool, trial)


MATRIX = Matrix(attacks=ATTACKS, rules=RULES, folder=Path(__file__).parent, find=find)


if __name__ == "__main__":
    run_program(MATRIX.run)
