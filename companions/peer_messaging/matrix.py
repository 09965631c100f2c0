"""Attack x defences, searched as lab/search.py says; every try is a lab on sockets.

python -m companions.peer_messaging.matrix
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from companions.peer_messaging.attacks import ATTACKS
from companions.peer_messaging.stage import Lab
from companions.peer_messaging.weakened import RULES, without
from lab.search import Found, Matrix, Task, Trials, Tried, search, workers
from program import run_program

TRIALS = Trials(
    attacks=ATTACKS,
    rules=RULES,
    parts=without,
    lab=lambda parts, number: Lab(lambda *_: None, parts),
    heard=("session", "trust", "peer"),
    also_checks=("_decrypt",),
)


def trial(task: Task) -> list[Tried]:
    """Run attacks without some rules."""
    return TRIALS.trial(task)


def find(names: Sequence[str], size: int) -> Found:
    """Return the minimal sets of each attack."""
    with workers(8) as pool:  # they wait most of the time
        return search(names, size, pool, trial)


MATRIX = Matrix(ATTACKS, RULES, Path(__file__).parent, find)


if __name__ == "__main__":
    run_program(MATRIX.run)
