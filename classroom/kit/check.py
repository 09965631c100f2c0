"""Whether the kit grades rightly: python3 run.py kit check.

An untouched skeleton gets nothing and the reference everything; a planted bug costs points of its
own task. A task's points depend only on the files that its child gets, so for the other tasks it
is enough to compare these files with the reference's: equal files cannot lose anything.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from classroom.kit.dialect import Dialect, of, sources
from classroom.kit.grading import Report, reports
from classroom.kit.graft import grafted
from classroom.kit.others import planted
from classroom.kit.skeleton import Sources, cut
from classroom.kit.tasks import BUGS, TASKS, Bug, Task
from program import Parser, plural, run_program, write_text

HERE = Path(__file__).parent
CACHE = HERE / ".checked.json"
KEY = b"a class key of the kit's own tests"
STUDENT = "the kit itself"


class Finding(NamedTuple):
    """What was found, and whether it is as it has to be."""

    what: str
    is_right: bool
    words: str


def graded(folder: Sources, dialect: Dialect, tasks: Sequence[Task]) -> Report:
    """Return the last report about a submission with these files."""
    with tempfile.TemporaryDirectory() as path:
        for name, text in folder.items():
            (Path(path) / name).write_text(text, encoding="utf-8", newline="\n")
        *_, report = reports(Path(path), STUDENT, dialect, tasks)
    return report


def ends(dialect: Dialect) -> Iterator[Finding]:
    """Grade the untouched skeleton, and the reference."""
    whole = sources(dialect)
    most = sum(task.points for task in TASKS)
    for what, folder, wanted in (("skeleton", cut(whole, TASKS), 0), ("reference", whole, most)):
        report = graded(folder, dialect, TASKS)
        wrong = [
            f"{result.check.task}: {result.sentence or result.check.name}"
            for result in report.results
            if bool(result.sentence) == bool(wanted)
        ]
        words = plural(report.points, "point") + "".join(f"\n      {line}" for line in wrong)
        yield Finding(what, report.points == wanted and not wrong, words)


def of_bug(bug: Bug, dialect: Dialect) -> Finding:
    """Grade the reference with one planted bug."""
    task = TASKS[bug.task - 1]
    whole = sources(dialect)
    wrong = planted(whole, bug)
    others = [
        other.number
        for other in TASKS
        if other is not task and grafted(whole, wrong, other)[0] != grafted(whole, whole, other)[0]
    ]
    report = graded(wrong, dialect, [task])
    lost = task.points - report.points
    words = f"costs {lost} of {plural(task.points, 'point')} of task {task.number}"
    if others:
        words += f", and touches tasks {others}"
    return Finding(f"{bug.function}: {bug.idea}", lost > 0 and not others, words)


def name_of(bug: Bug) -> str:
    """Return what the finding about a bug depends on: all of the kit, the core, and the bug."""
    whole = hashlib.sha256(repr((bug.task, bug.function, bug.old, bug.new)).encode())
    places = [*sorted(HERE.glob("*.py")), *sorted((HERE / "student").glob("*.py"))]
    for path in places:
        if path.name not in ("tasks.py", "export.py", "grade.py", "check.py", "__main__.py"):
            whole.update(path.read_bytes())
    for name, text in sorted(sources(of(KEY, STUDENT)).items()):
        whole.update(f"{name} {text}".encode())
    return whole.hexdigest()


def cached() -> dict[str, str]:
    """Return what earlier runs have found right, by name."""
    try:
        found = json.loads(CACHE.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def bugs(chosen: Sequence[Bug], dialect: Dialect) -> Iterator[Finding]:
    """Grade planted bugs; what was found right before is not graded again."""
    known = cached()
    for bug in chosen:
        name = name_of(bug)
        if name in known:
            yield Finding(f"{bug.function}: {bug.idea}", True, known[name])
            continue
        finding = of_bug(bug, dialect)
        yield finding
        if finding.is_right:
            known[name] = finding.words
            write_text(CACHE, json.dumps(known, indent=1) + "\n")


def options_of(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("Checks that the kit grades skeleton, reference and planted bugs rightly.")
    parser.add_argument("--ends", action="store_true", help="only the skeleton and the reference")
    parser.add_argument("--task", type=int, choices=range(1, 14), help="planted bugs of one task")
    return parser.options(argv)


def main(argv: Sequence[str] | None = None) -> int:
    options = options_of(argv)
    dialect = of(KEY, STUDENT)
    chosen = [bug for bug in BUGS if options.task in (None, bug.task)]
    findings = [] if options.task else list(shown(ends(dialect)))
    if not options.ends:
        findings += shown(bugs(chosen, dialect))
    wrong = sum(not finding.is_right for finding in findings)
    print(f"{len(findings)} checked, {wrong} wrong")
    return int(wrong > 0)


def shown(findings: Iterator[Finding]) -> Iterator[Finding]:
    """Print findings as they come."""
    for finding in findings:
        sign = "right" if finding.is_right else "WRONG"
        print(f"{sign}  {finding.what}\n      {finding.words}", flush=True)
        yield finding


if __name__ == "__main__":
    run_program(main)
