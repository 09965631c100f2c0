"""Attack x defences, searched as companions/matrix.py says.

python -m companions.device_transfer.matrix
"""

from __future__ import annotations

import functools

from classroom.matrix import Task
from companions.device_transfer.attacks import ATTACKS, Lab, Parts, Pki
from companions.device_transfer.weakened import ELEMENTS, without
from companions.matrix import Matrix, Tried
from program import run_program

REDUNDANT = {  # why an element is in no set; whatever is in one must not be here
    "session-id": "each session has keys of its own, so that another one's record has no good tag",
    "turn": "only who has the keys can say something out of turn, and would harm itself alone",
}


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
    REDUNDANT,
    ("final_name",),
)


def trial(task: Task) -> Tried:
    """Run attacks without some rules."""
    return MATRIX.trial(task)


def main() -> int:
    return MATRIX.run(trial)


if __name__ == "__main__":
    run_program(main)
