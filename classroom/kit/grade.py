"""Grading as a program: python3 run.py grade DIR --student ID --class-key FILE.

The result is written anew after each task, so that what was earned stands even if the grader is
stopped. Every name and sentence in it is ours.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from xml.etree import ElementTree

from classroom.kit import dialect
from classroom.kit.grading import Report, Result, reports
from classroom.kit.tasks import TASKS
from program import Parser, UserError, escaped, output_path, run_program, write_whole


def text(report: Report) -> str:
    """Return the report for people: tasks, and below each what is wrong in it."""
    lines = []
    for task in report.tasks:
        results = report.of_task(task.number)
        earned = sum(result.points for result in results)
        lines.append(f"{task.number:>2}  {task.title:<22} {earned:>3} of {task.points}")
        for sentence in dict.fromkeys(result.sentence for result in results if result.sentence):
            lines.append(f"      {sentence}")
    lines.append(f"    {'all':<22} {report.points:>3} of {report.most}")
    if report.warning:
        lines.append(report.warning)
    return "\n".join([*lines, ""])


def title(result: Result) -> str:
    return f"{result.check.task}. {result.check.name}"


def gradescope(report: Report) -> str:
    """Return results.json of Gradescope's autograder."""
    tests = [
        {
            "score": result.points,
            "max_score": result.check.points,
            "status": "failed" if result.sentence else "passed",
            "name": result.check.name,
            "number": f"{result.check.task}",
            "output": result.sentence,
            "output_format": "text",
            "visibility": "visible",
        }
        for result in report.results
    ]
    whole = {
        "score": report.points,
        "output": report.warning,
        "output_format": "text",
        "visibility": "visible",
        "stdout_visibility": "hidden",
        "tests": tests,
    }
    return json.dumps(whole, indent=1) + "\n"


def junit(report: Report) -> str:
    """Return JUnit's XML: a suite for each task."""
    suites = ElementTree.Element("testsuites", name=f"student {report.student}")
    for task in report.tasks:
        results = report.of_task(task.number)
        failed = sum(bool(result.sentence) for result in results)
        suite = ElementTree.SubElement(suites, "testsuite", name=task.title)
        suite.set("tests", f"{len(results)}")
        suite.set("failures", f"{failed}")
        suite.set("errors", "0")
        for result in results:
            seconds = f"{result.seconds:.3f}"
            case = ElementTree.SubElement(suite, "testcase", name=title(result), time=seconds)
            case.set("classname", f"task{task.number}")
            if result.sentence:
                ElementTree.SubElement(case, "failure", message=result.sentence)
    ElementTree.indent(suites, " ")
    return ElementTree.tostring(suites, "unicode") + "\n"


def status(report: Report) -> str:
    """Return pass, fail, or error if the grading was stopped, as two of the formats have it."""
    if not report.is_complete:
        return "error"
    return "pass" if report.points == report.most else "fail"


def exercism(report: Report) -> str:
    """Return results.json of Exercism's test runners, version 3."""
    tests = [
        {
            "name": title(result),
            "status": "fail" if result.sentence else "pass",
            "message": result.sentence or None,
            "output": "",
            "test_code": "",
            "task_id": result.check.task,
        }
        for result in report.results
    ]
    whole = {
        "version": 3,
        "status": status(report),
        "message": None if report.is_complete else "The grading has not come to its end.",
        "tests": tests,
    }
    return json.dumps(whole, indent=1) + "\n"


def classroom(report: Report) -> str:
    """Return the step output `result` of GitHub Classroom's graders: JSON in base64."""
    tests = [
        {
            "name": title(result),
            "status": "fail" if result.sentence else "pass",
            "score": result.points,
            "message": result.sentence,
            "test_code": "",
            "filename": "",
            "line_no": 0,
            "duration": round(1000 * result.seconds),
        }
        for result in report.results
    ]
    whole = {"version": 1, "status": status(report), "max_score": report.most, "tests": tests}
    return f"result={base64.b64encode(json.dumps(whole).encode()).decode()}\n"


def ags(report: Report) -> str:
    """Return a line for a course's list of LTI scores (Assignment and Grade Services 2.0)."""
    now = datetime.now(timezone.utc)
    line = {
        "userId": report.student,
        "scoreGiven": report.points,
        "scoreMaximum": report.most,
        "timestamp": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "activityProgress": "Completed",
        "gradingProgress": "FullyGraded" if report.is_complete else "Pending",
        "comment": report.warning,
    }
    return json.dumps(line) + "\n"


FORMATS: dict[str, Callable[[Report], str]] = {
    "text": text,
    "gradescope": gradescope,
    "junit": junit,
    "exercism": exercism,
    "classroom": classroom,
    "ags": ags,
}


def numbers(words: str) -> list[int]:
    """Return the numbers of tasks in text like 1,3-5. Raises UserError."""
    found = set()
    for word in words.split(","):
        ends = re.fullmatch(r"([0-9]{1,2})(?:-([0-9]{1,2}))?", word)
        meant = range(int(ends[1]), int(ends[2] or ends[1]) + 1) if ends else range(0)
        if not meant:
            raise UserError(f"{escaped(words)} is no list of tasks like 1,3-5")
        found |= set(meant)
    if not found <= {task.number for task in TASKS}:
        raise UserError(f"tasks are numbered 1 to {len(TASKS)}")
    return sorted(found)


def options_of(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("Grades a submission, whose code runs in child processes only.", "run.py grade")
    parser.add_argument("folder", type=Path, metavar="DIR", help="what the student has handed in")
    parser.add_argument("--student", required=True, metavar="ID", help="whose dialect it is")
    parser.add_argument("--class-key", required=True, metavar="FILE", help="the course's secret")
    parser.add_argument("--format", choices=FORMATS, default="text", help="default text")
    parser.add_argument("--output", type=output_path, metavar="FILE", help="default stdout")
    parser.add_argument(
        "--tasks",
        type=numbers,
        default=[task.number for task in TASKS],
        metavar="N,M",
        help="only these, as in 1,3-5",
    )
    return parser.options(argv)


def main(argv: Sequence[str] | None = None) -> int:
    options = options_of(argv)
    own = dialect.of(dialect.class_key(options.class_key), options.student)
    if not options.folder.is_dir():
        raise UserError(f"{escaped(str(options.folder))} is no folder")
    tasks = [task for task in TASKS if task.number in options.tasks]
    written = ""
    for report in reports(options.folder, options.student, own, tasks):
        written = FORMATS[options.format](report)
        if options.output:
            write_whole(options.output, written.encode())
    if not options.output:
        print(written, end="")
    return 0


if __name__ == "__main__":
    run_program(main)
