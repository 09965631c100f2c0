"""The kit by its commands: run.py kit new, run.py kit check, run.py grade."""

from __future__ import annotations

import sys

import guard  # noqa: F401 (before all else that is ours: it says what the others lack)
from classroom.kit import check, export, grade
from program import UserError, run_program

COMMANDS = {"new": export.main, "check": check.main, "grade": grade.main}
USAGE = (
    "kit new DIR --student ID --class-key FILE",
    "grade DIR --student ID --class-key FILE",
    "kit check",
)


def main() -> int:
    command, *words = sys.argv[1:] or [""]
    if command in COMMANDS:
        return COMMANDS[command](words)
    if command in ("-h", "--help"):
        print(*(f"run.py {line}" for line in USAGE), sep="\n")
        return 0
    raise UserError(f"say what to do: {', or '.join(USAGE)}")


if __name__ == "__main__":
    run_program(main)
