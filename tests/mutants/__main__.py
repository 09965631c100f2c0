"""python3 run.py mutate [MODULE ...]: would a test miss each check, if it were gone?

A mutant is a module with one change in it (see source.py and named.txt). The tests of table.py
have to notice it: fail, crash or hang. One that survives them all is shown with its change. It
tells of a test that is missing, of code that is not needed, or of a line for equivalents.txt.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.mutants.kills import Kills
from tests.mutants.named import Unresolved, unresolved_lines
from tests.mutants.run import Broken, Run, find_scopes, say
from tests.mutants.source import Mutant
from tests.mutants.table import MODULES


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.py mutate", description=__doc__)
    parser.add_argument("modules", metavar="MODULE", nargs="*", help="a file; without: all")
    parser.add_argument("--check", action="store_true", help="only see if the two lists fit")
    parser.add_argument("--changed", action="store_true", help="leave out what kills.json knows")
    parser.add_argument("--slow", action="store_true", help="ask the slow tests, too")
    parser.add_argument("--minutes", type=float, default=0, help="begin nothing after so long")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at a time")
    parser.add_argument("--limit", type=float, default=20, help="seconds until a test hangs")
    arguments = parser.parse_args(words)
    for module in arguments.modules:
        if module not in MODULES:
            parser.error(f"there is no {module}; there are: {', '.join(MODULES)}")
    return arguments


def difference(mutant: Mutant) -> str:
    """Return what the mutant changes, as a diff of sources without their comments."""
    before = ast.unparse(mutant.tree).splitlines()
    after = mutant.source().splitlines()
    lines = difflib.unified_diff(before, after, mutant.module, mutant.module, n=2, lineterm="")
    return "\n".join(lines)


def report(run: Run) -> int:
    """Say what has survived and what was skipped, and return the exit code."""
    survivors = [mutant for scope in run.scopes for mutant in scope.survivors]
    for mutant in survivors:
        print(f"\n{mutant}\n{difference(mutant)}")
    skipped = [scope.key for scope in run.scopes if scope.left]
    if skipped:
        print(f"\nNo time for all of {len(skipped)}: {', '.join(skipped)}")
    for test in sorted(run.unreliable):
        print(f"\nFails without a mutant, so that it says nothing: {test}")
    tried = sum(len(scope.mutants) - scope.left for scope in run.scopes)
    print(f"\n{tried} mutants tried, {len(survivors)} survive")
    return 1 if survivors or run.unreliable else 0


def main(words: Sequence[str]) -> int:
    arguments = parse_arguments(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no copy or process stays
    if arguments.check:
        problems = unresolved_lines()
        print("\n".join([*problems, f"{len(problems)} lines do not fit the source"]))
        return int(bool(problems))
    if arguments.slow:
        os.environ["PYTEST_ADDOPTS"] = "-m ''"
    kills = Kills()
    try:
        scopes = find_scopes(arguments.modules or MODULES, kills, arguments.changed)
    except Unresolved as error:
        say(f"{error}\n(python3 run.py mutate --check lists all of these)")
        return 2
    deadline = time.monotonic() + arguments.minutes * 60 if arguments.minutes else float("inf")
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        run = Run(scopes, kills, Path(folder), max(1, arguments.jobs), arguments.limit)
        try:
            run.finish(deadline)
        except Broken as error:
            say(str(error))
            return 2
        except KeyboardInterrupt:
            say("interrupted")
    return report(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
