"""Attack x defences, searched as lab/search.py says; every try is a lab on sockets.

python -m companions.device_transfer.matrix
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from companions.device_transfer.attacks import ATTACKS
from companions.device_transfer.stage import Lab
from companions.device_transfer.weakened import RULES, without
from lab.search import Matrix, Task, Trials, Tried, find
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


PER_CORE = 4  # processes per core, which wait most of the time
MATRIX = Matrix(ATTACKS, RULES, Path(__file__).parent, partial(find, trial, PER_CORE))

if __name__ == "__main__":
    run_program(MATRIX.run)
