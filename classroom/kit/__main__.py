"""The kit by its commands: run.py kit new, run.py kit check, run.py grade."""

from __future__ import annotations

import sys

import guard  # noqa: F401 (before all else that is ours: it says what the others lack)
from classroom.kit import check, export, grade
from program import UserError, run_program

USAGE = (
    "kit new DIR --student ID --class-key FILE",
    "grade DIR --student ID --class-key FILE",
    "kit check",
)


def main() -> int:
    command, *words = sys.argv[1:] or [""]
    if command == "new":
        return export.main(words)
    if command == "check":
        return check.main(words)
    if command == "grade":
        return grade.main(words)
    if command in ("-h", "--help"):
        print(*(f"run.py {line}" for line in USAGE), sep="\n")
        return 0
    raise UserError(f"say what to do: {', or '.join(USAGE)}")


if __name__ == "__main__":
    run_program(main)
