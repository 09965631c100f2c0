"""Task 13: a submission's tests, and the implementations that they meet on the other side.

The tests run in a child that holds nothing of the protocol. What they ask for goes to the
reference, or to the reference with one planted bug, in a child of its own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

from classroom.kit.examiner import CHECKS, Bench, Check, Failed, check, named
from classroom.kit.dialect import CORE
from classroom.kit.sandbox import Asked, Gone, Raised, Side, folder_with
from classroom.kit.skeleton import Sources, edited
from classroom.kit.tasks import BUGS, TASKS, Bug

MOST_TESTS = 40
BUGS_EACH = 3  # planted bugs of a task that are met, drawn anew for each run
REFERENCES = 3  # that are met among them, so that a test that fails by chance is found out
KILLED = 2  # of them, or all if there are fewer
WORLD_S = 20.0  # until one has started: that a machine is busy is no fault of a submission
RUNNER = """
def performed(handle, method, arguments):
    return ask("perform", handle, method, arguments)

def run_test(name):
    getattr(mine, name)(other_side.Other(performed))
    return True
"""
LISTED = "sorted(n for n, f in vars(mine).items() if n.startswith('test_') and callable(f))"
FILES = (*(f"{name}.py" for name in CORE), "other_side.py")
GROUPS: tuple[tuple[int, ...], ...] = ((1, 2), (3,), (4,), (5,), (6,), (7,))  # a check each


@contextlib.contextmanager
def world(reference: Any, bug: Bug | None) -> Iterator[Side]:
    """Give an implementation on the other side. Raises Gone."""
    sources = planted(reference.sources, bug) if bug else reference.sources
    with folder_with({name: sources[name] for name in FILES}) as folder:
        with Side(folder, ["other_side"], reference.jail, WORLD_S) as side:
            yield side


def passes(student: Asked, name: str, other: Side) -> bool:
    """Return whether a test passes. Raises Gone if the submission's child is gone."""
    failures: list[Gone] = []

    def told(question: list[Any]) -> object:
        try:
            return other.do(
                "local.perform(handle, method, arguments)",
                within_s=3.0,
                is_raw=True,
                handle=question[1] if len(question) > 1 else None,
                method=question[2] if len(question) > 2 else None,
                arguments=question[3] if len(question) > 3 else None,
            )
        except Raised:
            return ["refused", "WrongQuestion"]
        except Gone as error:  # a planted bug that never answers is noticed by the test
            failures.append(error)
            return ["refused", "Gone"]

    other.do("local = Local()")
    try:
        student.do("run_test(name)", within_s=6.0, told=told, name=name)
    except Raised:
        return False
    return not failures


class Found(NamedTuple):
    """What a submission's tests have found."""

    wrong: int  # tests that the reference fails
    noticed: dict[tuple[int, ...], list[bool]]  # by group: whether each planted bug was


def results(bench: Bench) -> Found:
    """Return what the tests find, which is tried once. Raises Failed."""

    def find() -> Found:
        try:
            return all_found(bench, bench.shared["reference"])
        except Gone as error:
            raise Failed(f"[P 3] The tests have to run. Yours {error}.") from None

    return bench.once("found", find)


def all_found(bench: Bench, reference: Any) -> Found:
    """Try the tests on planted bugs, and on the reference among them. Raises Gone, Failed."""
    names, wrong = sorted_tests(bench, reference)
    met: list[tuple[tuple[int, ...], Bug | None]] = [((), None)] * REFERENCES
    for group in GROUPS:
        bugs = [bug for bug in BUGS if bug.task in group and is_met(bug)]
        met += [(group, bug) for bug in bench.random.sample(bugs, min(BUGS_EACH, len(bugs)))]
    bench.random.shuffle(met)
    noticed: dict[tuple[int, ...], list[bool]] = {group: [] for group in GROUPS}
    for group, bug in met:
        has_failed = is_killed(bench, reference, names, bug)
        if bug is None and has_failed:
            raise Failed("[P 3] A test passes the reference once, and fails it another time.")
        if bug is not None:
            noticed[group].append(has_failed)
    return Found(wrong, noticed)


def is_met(bug: Bug) -> bool:
    """Return whether a bug is in what a test can reach."""
    return bug.function.partition(":")[0] + ".py" in FILES


def sorted_tests(bench: Bench, reference: Any) -> tuple[list[str], int]:
    """Return the tests that the reference passes, the fastest first, and how many it fails.

    Raises Gone, Failed.
    """
    say = "[P 3] mine.py has to have tests, functions named test_..., that the reference passes."
    try:
        names = bench.student.do(LISTED, within_s=6.0)
        bench.student.do(RUNNER, within_s=6.0)
    except Raised as error:
        raise Failed(f"{say} Yours raised {named(error.name)}.") from None
    if not isinstance(names, list) or not all(isinstance(n, str) and len(n) < 200 for n in names):
        raise Failed(say)
    names = names[:MOST_TESTS]
    took_s = {}
    with world(reference, None) as other:
        for name in names:
            began = time.monotonic()
            if passes(bench.student, name, other):
                took_s[name] = time.monotonic() - began
    if not took_s:
        raise Failed(f"{say} None of yours does.")
    return sorted(took_s, key=took_s.__getitem__), len(names) - len(took_s)


def is_killed(bench: Bench, reference: Any, names: list[str], bug: Bug | None) -> bool:
    """Return whether a test fails where a bug is planted, or none. Raises Gone."""
    bench.student.close()  # so that no test knows how often it has run
    with world(reference, bug) as other:
        bench.student.do(RUNNER, within_s=6.0)
        return bool(other.import_error) or not all(
            passes(bench.student, name, other) for name in names
        )


def planted(sources: Sources, bug: Bug) -> Sources:
    """Return the reference with a bug in it."""
    return edited(sources, bug.function, bug.old, bug.new)


@check(13, 1)
def are_right(bench: Bench) -> None:
    """The reference passes all tests, and planted bugs do not."""
    found = results(bench)
    if found.wrong:
        raise Failed(
            f"[P 3] The reference fails {found.wrong} of your tests, so they do not count."
        )
    if not any(map(any, found.noticed.values())):
        raise Failed("[P 3] Your tests notice no planted bug.")


def kills(bench: Bench, group: tuple[int, ...], titles: str) -> None:
    """Check that the bugs of some tasks are noticed."""
    noticed = results(bench).noticed[group]
    wanted = min(KILLED, len(noticed))
    if sum(noticed) < wanted or not noticed:
        raise Failed(
            f"[P 3] Of {len(noticed)} planted bugs ({titles}) your tests notice {sum(noticed)}, "
            f"and have to notice {wanted}."
        )


for _group in GROUPS:
    _titles = ", ".join(TASKS[number - 1].title for number in _group)
    _run = partial(kills, group=_group, titles=_titles)
    CHECKS.append(Check(13, 1, f"Planted bugs are noticed ({_titles})", _run))
