"""Attack x defences, searched as lab/search.py says; every try is a lab on sockets.

python -m companions.peer_messaging.matrix
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from companions.peer_messaging.attacks import ATTACKS
from companions.peer_messaging.stage import Lab
from companions.peer_messaging.weakened import RULES, without
from lab.search import Matrix, Task, Trials, Tried, find
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


PER_CORE = 8  # processes per core, which wait most of the time
MATRIX = Matrix(ATTACKS, RULES, Path(__file__).parent, partial(find, trial, PER_CORE))

if __name__ == "__main__":
    run_program(MATRIX.run)
