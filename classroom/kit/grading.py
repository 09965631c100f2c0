"""Grading: each task in a fresh folder and process, with all that it needs from ours.

The submission's functions meet the reference's answers here and nowhere else: a child never sees
what is expected of it.
"""

from __future__ import annotations

import ast
import secrets
import time
from functools import partial
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from classroom.kit import checks, others  # noqa: F401 (others registers the checks of task 13)
from classroom.kit.checks import CHECKS, CORE, Bench, Check, Failed
from classroom.kit.dialect import Dialect, sources, vectors
from classroom.kit.graft import Unreadable, grafted, modules_of, submission
from classroom.kit.sandbox import START_S, Asked, Folder, Gone, Jail, Raised, Side, best_jail
from classroom.kit.skeleton import Sources, find
from classroom.kit.tasks import TASKS, Task

TASK_S = 5.5  # for all checks of a task, as far as the submission uses it up
LONGER_S = {11: 12.0, 12: 15.0, 13: 30.0}  # thousands of queries, sessions, planted bugs
TRUSTED_S = 100.0  # of the reference, for all tasks


class Result(NamedTuple):
    """What one check gave; `sentence` is empty if all is well."""

    check: Check
    points: int
    sentence: str
    seconds: float


class Report(NamedTuple):
    """What is known so far of a submission."""

    student: str
    results: list[Result]
    warning: str = ""  # that it is not isolated
    is_complete: bool = False

    @property
    def points(self) -> int:
        return sum(result.points for result in self.results)

    def of_task(self, number: int) -> list[Result]:
        return [result for result in self.results if result.check.task == number]


class Restarting(Asked):
    """A child that is started when it is first asked, and anew when it has ended."""

    def __init__(self, folder: Path, modules: Iterable[str], jail: Jail, seconds: float) -> None:
        self._start = partial(Side, folder, [*modules], jail)
        self._side: Side | None = None
        self._left_s = seconds

    def do(self, code: str, **options: Any) -> Any:
        """Ask, with what is left of the time. Raises Gone, Raised."""
        began = time.monotonic()
        if self._left_s <= 0:
            raise Gone("has used up the time of its task")
        try:
            if self._side is None:
                self._side = self._start(min(START_S, self._left_s))
            if self._side.import_error:
                name = checks.named(self._side.import_error)
                raise Gone(f"cannot be imported, which raises {name}")
            return self._side.do(code, until=began + self._left_s, **options)
        except Raised:
            raise
        except BaseException:
            self.close()
            raise
        finally:
            self._left_s -= time.monotonic() - began

    def restart(self) -> None:
        self.close()

    def close(self) -> None:
        if self._side:
            self._side.close()
            self._side = None


def folder_of(texts: Sources, task: Task) -> Sources:
    """Return the files that a child gets: of its own task, and what that needs."""
    if task.number == 13:
        names = ["mine.py", "other_side.py"]
    else:
        names = [*dict.fromkeys([*CORE, *modules_of(task)])]
    return {name: texts[name] for name in names}


def modules_for(task: Task) -> list[str]:
    """Return what is imported in a child, in order; its names can be asked for."""
    if task.number == 13:
        return ["other_side", "mine"]
    own = [name.removesuffix(".py") for name in modules_of(task)]
    return [*dict.fromkeys(["crypto_utils", "protocol_fsm", "server", *own, "prelude"])]


def with_prelude(texts: Sources) -> Sources:
    return {**texts, "prelude.py": checks.PRELUDE.read_text("utf-8")}


class Reference:
    """The reference of a dialect, in a child of its own, and what wrong ones are made from."""

    def __init__(self, dialect: Dialect, jail: Jail) -> None:
        self.sources = sources(dialect)
        self.vectors = vectors(dialect)["key_schedule.json"]
        self.jail = jail
        self._folder = Folder(with_prelude(folder_of(self.sources, TASKS[0])))

    def __enter__(self) -> Reference:
        folder = self._folder.__enter__()
        modules = ["crypto_utils", "protocol_fsm", "server", "prelude"]
        self.side = Restarting(folder, modules, self.jail, TRUSTED_S)
        return self

    def __exit__(self, *exception: object) -> None:
        self.side.close()
        self._folder.__exit__(*exception)


def grade_task(
    reference: Reference, files: dict[str, str | Unreadable], task: Task
) -> list[Result]:
    """Return what the checks of one task give."""
    own = [check for check in CHECKS if check.task == task.number]
    try:
        own_sources, trees = grafted(reference.sources, files, task)
    except Unreadable as error:
        return [Result(check, 0, str(error), 0.0) for check in own]
    child = with_prelude(folder_of(own_sources, task))
    if task.number == 13:  # which holds nothing of the protocol
        child = {**folder_of(own_sources, task), "vectors/key_schedule.json": reference.vectors}
    seconds = LONGER_S.get(task.number, TASK_S)
    with Folder(child) as folder:
        student = Restarting(folder, modules_for(task), reference.jail, seconds)
        bench = Bench(student, reference.side, finder(trees), secrets.token_hex(8))
        bench.shared["reference"] = reference
        try:
            return [tried(check, bench) for check in own]
        finally:
            student.close()


def finder(trees: dict[str, ast.Module]) -> Callable[[str], ast.AST | None]:
    """Return what finds a function of the submission by module:name."""

    def found(place: str) -> ast.AST | None:
        module, _, qualname = place.partition(":")
        try:
            return find(trees[f"{module}.py"], qualname)
        except LookupError:
            return None

    return found


def tried(check: Check, bench: Bench) -> Result:
    """Return what one check gives; a mistake of ours is reported as such, not as a crash."""
    began = time.monotonic()
    sentence = ""
    try:
        check.run(bench)
    except Failed as error:
        sentence = str(error)
    except Gone as error:
        sentence = f"The grader's own side {error.why}: tell your instructor."
    return Result(check, 0 if sentence else check.points, sentence, time.monotonic() - began)


def reports(
    folder: Path, student: str, dialect: Dialect, tasks: Iterable[Task] = TASKS
) -> Iterator[Report]:
    """Yield the report after each task."""
    jail = best_jail()
    names = {name for task in TASKS for name in modules_of(task)}
    files = submission(folder, names)
    results: list[Result] = []
    with Reference(dialect, jail) as reference:
        for task in tasks:
            results = [*results, *grade_task(reference, files, task)]
            yield Report(student, results, jail.warning, task == TASKS[-1])
