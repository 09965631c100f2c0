"""The kit by its commands: run.py kit new, run.py kit check, run.py grade."""

from __future__ import annotations

import guard  # noqa: F401 (before all else: it says what the others lack)
import sys

from classroom.kit import check, export, grade
from program import UserError, run_program

USAGE = "kit new DIR --student ID --class-key FILE, kit check, or grade DIR and the same flags"


def main() -> int:
    command, *words = sys.argv[1:] or [""]
    if command == "new":
        return export.main(words)
    if command == "check":
        return check.main(words)
    if command == "grade":
        return grade.main(words)
    raise UserError(f"say what to do: {USAGE}")


if __name__ == "__main__":
    run_program(main)
