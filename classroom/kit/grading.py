"""Grading: each task in a fresh folder and process, with all that it needs from ours.

The submission's functions meet the reference's answers here and nowhere else: a child never sees
what is expected of it.
"""

from __future__ import annotations

import ast
import contextlib
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from classroom.kit import checks, others  # noqa: F401 (which register the checks)
from classroom.kit.examiner import CHECKS, Bench, Check, Failed, named
from classroom.kit.dialect import CORE, Dialect, sources, vectors
from classroom.kit.graft import Unreadable, grafted, modules_of, submission
from classroom.kit.sandbox import START_S, Asked, Gone, Jail, Raised, Side, best_jail, folder_with
from classroom.kit.skeleton import Sources, find
from classroom.kit.tasks import TASKS, Task
from program import UserError

TASK_S = 5.5  # for all checks of a task, as far as the submission uses it up
LONGER_S = {11: 12.0, 12: 20.0, 13: 45.0}  # thousands of queries, sessions, planted bugs
GRADING_S = 110.0  # for all tasks together
PARSING_S = 5.0  # for one file
PRELUDE = Path(__file__).with_name("prelude.py")
PARSE = "bool(__import__('ast').unparse(__import__('ast').parse(text)))"


class Result(NamedTuple):
    """What one check gave; `sentence` is empty if all is well."""

    check: Check
    points: int
    sentence: str
    seconds: float


class Report(NamedTuple):
    """What is known so far of a submission."""

    student: str
    tasks: Sequence[Task]  # that are graded
    results: list[Result]
    warning: str = ""  # that it is not isolated

    @property
    def points(self) -> int:
        return sum(result.points for result in self.results)

    @property
    def most(self) -> int:
        return sum(task.points for task in self.tasks)

    @property
    def is_complete(self) -> bool:
        return all(self.of_task(task.number) for task in self.tasks)

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
                name = named(self._side.import_error)
                raise Gone(f"cannot be imported, which raises {name}")
            return self._side.do(code, until=began + self._left_s, **options)
        except Raised:
            raise
        except BaseException:
            self.close()
            raise
        finally:
            self._left_s -= time.monotonic() - began

    def close(self) -> None:
        if self._side:
            self._side.close()
            self._side = None


def child_of(texts: Sources, task: Task, vectors: str) -> tuple[Sources, list[str]]:
    """Return the files that a child gets, and what it imports, whose names can be asked for."""
    if task.number == 13:  # whose child holds nothing of the protocol
        files = {name: texts[name] for name in ("mine.py", "other_side.py")}
        return {**files, "vectors/key_schedule.json": vectors}, ["other_side", "mine"]
    own = [name.removesuffix(".py") for name in modules_of(task)]
    files = {f"{name}.py": texts[f"{name}.py"] for name in (*CORE, *own)}
    modules = dict.fromkeys(["crypto_utils", "protocol_fsm", "server", *own, "prelude"])
    return {**files, "prelude.py": PRELUDE.read_text("utf-8")}, [*modules]


class Reference(NamedTuple):
    """The reference of a dialect, in a child of its own, and what wrong ones are made from."""

    sources: Sources
    vectors: str  # of the key schedule
    jail: Jail
    side: Asked


@contextlib.contextmanager
def reference_of(dialect: Dialect, jail: Jail) -> Iterator[Reference]:
    """Give the reference of a dialect. Raises UserError if its child cannot be started."""
    texts = sources(dialect)
    key_schedule = vectors(dialect)["key_schedule.json"]
    files, modules = child_of(texts, TASKS[0], key_schedule)
    with folder_with(files) as folder:
        side = Restarting(folder, modules, jail, GRADING_S)
        try:
            side.do("True")
            yield Reference(texts, key_schedule, jail, side)
        except Gone as error:
            raise UserError(f"the grader's own side {error}; try again") from None
        finally:
            side.close()


def vetted(reference: Reference, name: str, text: str | Unreadable) -> str | Unreadable:
    """Return a file if a child has survived parsing it, which may crash or take for ever."""
    if isinstance(text, Unreadable):
        return text
    try:
        reference.side.do(PARSE, within_s=PARSING_S, text=text)
    except Gone:
        return Unreadable(f"{name} is no Python.")
    except Raised:  # which `parsed` tells more about
        pass
    return text


def grade_task(
    reference: Reference, files: Mapping[str, str | Unreadable], task: Task, seconds: float
) -> list[Result]:
    """Return what the checks of one task give."""
    own = [check for check in CHECKS if check.task == task.number]
    try:
        own_sources, trees = grafted(reference.sources, files, task)
    except Unreadable as error:
        return [Result(check, 0, str(error), 0.0) for check in own]
    child, modules = child_of(own_sources, task, reference.vectors)
    with folder_with(child) as folder:
        student = Restarting(folder, modules, reference.jail, seconds)
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
    except Exception as error:  # of the reference's child, or of ours: the others still count
        sentence = f"The grader itself failed here ({type(error).__name__}): tell your instructor."
    return Result(check, 0 if sentence else check.points, sentence, time.monotonic() - began)


def reports(
    folder: Path, student: str, dialect: Dialect, tasks: Sequence[Task] = TASKS
) -> Iterator[Report]:
    """Yield the report after each task."""
    end = time.monotonic() + GRADING_S
    jail = best_jail()
    results: list[Result] = []
    with reference_of(dialect, jail) as reference:
        names = {name for task in tasks for name in modules_of(task)}
        found = submission(folder, names)
        files = {name: vetted(reference, name, text) for name, text in found.items()}
        for task in tasks:
            seconds = min(LONGER_S.get(task.number, TASK_S), end - time.monotonic())
            results = [*results, *grade_task(reference, files, task, seconds)]
            yield Report(student, tasks, results, jail.warning)
