"""All the evidence at once: every attack, and every minimal set of the matrix in a run of its own.

    python -m classroom.evidence evidence

writes the event logs into that folder, and report.html beside them, in which each cell of the
matrix leads to a run.
"""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from classroom.output import write_whole
from classroom.report import page
from classroom.wire import LAB, ROOT
from lab.claims import Sets, read_sets
from lab.events import Run, read_runs
from program import Parser, UserError, escaped, plural, reason_of, run_program, to_stderr


def runs_needed(found: Sets) -> dict[str, list[str]]:
    """Return the attacks to run by what to take out; first all of them, with nothing taken out."""
    needed = defaultdict[str, list[str]](list)
    needed[""] = []
    for attack, sets in found.sets.items():
        for rules in sets:
            needed[",".join(rules)].append(attack)
    return needed


def play(rules: str, attacks: list[str], seed: str, path: Path) -> None:
    """Run attacks.py once; an attack may win (exit code 1). Raises UserError."""
    words = ["--seed", seed, "--events", str(path.resolve()), *attacks]
    if rules:
        words += ["--without", rules]
    done = subprocess.run(
        [sys.executable, "attacks.py", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1):
        raise UserError(done.stderr.strip() or f"attacks.py ended with {done.returncode}")


def main() -> int:
    parser = Parser("Runs everything that the page can show, and draws it.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="made if it is not there")
    parser.add_argument("--seed", default="1", help="of all runs; default 1")
    options = parser.options()
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {options.folder}: {reason_of(error)}") from None
    needed = runs_needed(read_sets(LAB.data / "sets.json"))
    runs: list[Run] = []
    to_stderr(f"{plural(len(needed), 'run')} of attacks.py, which take some minutes ...")
    for number, (rules, attacks) in enumerate(needed.items(), 1):
        path = options.folder / f"{rules.replace(',', '-') or 'all-rules'}.jsonl"
        play(rules, attacks, options.seed, path)
        runs += read_runs(path)
        to_stderr(f"{number} of {len(needed)}: {rules or 'all rules'}")
    output = options.folder / "report.html"
    write_whole(output, page(runs, LAB).encode())
    print(f"wrote {escaped(str(output))}: {plural(len(runs), 'run')}")
    return 0


if __name__ == "__main__":
    run_program(main)
