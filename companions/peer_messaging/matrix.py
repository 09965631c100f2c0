"""Attack x defences, searched as companions/matrix.py says.

python -m companions.peer_messaging.matrix
"""

from __future__ import annotations

from pathlib import Path

from classroom.matrix import Task
from companions.matrix import Matrix, Tried
from companions.peer_messaging.attacks import ATTACKS
from companions.peer_messaging.stage import Lab, Parts
from companions.peer_messaging.weakened import RULES, without
from program import run_program

MATRIX = Matrix(
    ATTACKS,
    RULES,
    lambda names: Parts(*without(names)),
    lambda parts: Lab(lambda *_: None, parts),
    ("session", "trust", "peer"),
    Path(__file__).parent,
    ("_decrypt",),
    per_core=8,
)


def trial(task: Task) -> Tried:
    """Run attacks without some rules."""
    return MATRIX.trial(task)


def main() -> int:
    return MATRIX.run(trial)


if __name__ == "__main__":
    run_program(main)
