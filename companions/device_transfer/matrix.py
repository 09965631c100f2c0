"""Attack x defences, searched as companions/matrix.py says.

python -m companions.device_transfer.matrix
"""

from __future__ import annotations

import functools
from pathlib import Path

from classroom.matrix import Task
from companions.device_transfer.attacks import ATTACKS, Lab, Parts, Pki
from companions.device_transfer.weakened import ELEMENTS, without
from companions.matrix import Matrix, Tried
from program import run_program


@functools.cache
def pki() -> Pki:
    """Return the keys of this process: making them takes longer than a try."""
    return Pki()


MATRIX = Matrix(
    ATTACKS,
    ELEMENTS,
    lambda names: Parts(*without(names)),
    lambda parts: Lab(lambda *_: None, parts, None, pki()),
    ("session", "trust", "incoming", "store"),
    Path(__file__).parent,
    ("final_name",),
)


def trial(task: Task) -> Tried:
    """Run attacks without some rules."""
    return MATRIX.trial(task)


def main() -> int:
    return MATRIX.run(trial)


if __name__ == "__main__":
    run_program(main)
