"""Attack x defences, searched as lab/search.py says; every try is a lab on sockets.

python -m companions.device_transfer.matrix
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from companions.device_transfer.attacks import ATTACKS
from companions.device_transfer.stage import Lab
from companions.device_transfer.weakened import RULES, without
from lab.search import Found, Matrix, Task, Trials, Tried, search, workers
from program import run_program


TRIALS = Trials(
    attacks=ATTACKS,
    rules=RULES,
    parts=without,
    lab=lambda parts, number: Lab(lambda *_: None, parts),
    heard=("session", "trust", "incoming", "store"),
    also_checks=("final_name",),
)


def trial(task: Task) -> list[Tried]:
    """Run attacks without some rules."""
    return TRIALS.trial(task)


def find(names: Sequence[str], size: int) -> Found:
    """Return the minimal sets of each attack."""
    with workers(4) as pool:  # they wait most of the time
        return search(names, size, pool, trial)


MATRIX = Matrix(ATTACKS, RULES, Path(__file__).parent, find)


if __name__ == "__main__":
    run_program(MATRIX.run)
