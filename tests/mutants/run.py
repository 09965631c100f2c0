"""All mutants, tried in three stages: each asks more tests about what is left of the one before.

First the tests that are known to have noticed the mutants of the same function; then, quickest
first, those that enter it, which a run without a mutant finds out; and then all of table.py.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.mutants.kills import Kills, is_there, key_of
from tests.mutants.named import mutants_of
from tests.mutants.source import Mutant, lines_of_scope
from tests.mutants.table import MODULES, wider
from tests.mutants.trial import (
    AT_IMPORT,
    Copy,
    Profile,
    import_what_all_need,
    wait_for_any,
)

SAY_EVERY_S = 10.0
FACTOR = 8.0  # a test that takes so many times as long as without a mutant hangs


class Broken(Exception):
    """The tests cannot be run, even without a mutant."""


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass
class Scope:
    """The mutants of a function, method or class, and what has become of them."""

    key: str
    mutants: list[Mutant]
    known: list[str]  # the tests that noticed them before, if they are still there
    killers: list[str] = field(default_factory=list)  # those that have noticed some now
    left: int = 0
    survivors: list[Mutant] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.left = len(self.mutants)


@dataclass
class Attempt:
    """One mutant that is not noticed yet, and the tests to ask now."""

    scope: Scope
    mutant: Mutant
    tests: Sequence[str] = ()
    is_survivor: bool = False  # of the tests of the last stage that had time for it


def find_scopes(modules: Iterable[str], kills: Kills, only_changed: bool) -> list[Scope]:
    """Return what is to be tried. Raises Unresolved."""
    found = []
    for module in modules:
        mutants = sorted(mutants_of(module), key=key_of)
        for key, group in itertools.groupby(mutants, key_of):
            members = [*group]
            if not (only_changed and kills.knows(members)):
                known = [test for test in kills.killers(key) if is_there(test)]
                found.append(Scope(key, members, known))
    return found


class Run:
    """All attempts, as many at a time as there are copies of the project."""

    def __init__(
        self, scopes: list[Scope], kills: Kills, folder: Path, jobs: int, limit_s: float
    ) -> None:
        self.scopes = scopes
        self.unreliable: set[str] = set()  # tests that fail without a mutant
        self._checked: set[str] = set()  # tests that pass without a mutant
        self._kills = kills
        self._profiles: dict[str, Profile] = {}
        self._limit_s = limit_s
        self._limits: dict[str, float] = {}
        total = sum(len(scope.mutants) for scope in scopes)
        say(f"{total} mutants in {len(scopes)} functions and classes, {jobs} at a time")
        if total:
            import_what_all_need()
        copies = jobs if total else 0
        self._copies = [Copy(folder / str(number), limit_s) for number in range(copies)]

    def finish(self, deadline: float) -> None:
        """Try every mutant, or those for which there is time. Raises Broken."""
        left = [Attempt(scope, mutant) for scope in self.scopes for mutant in scope.mutants]
        try:
            self._check_without_mutants()
            left = self._try("tests that noticed before", left, self._known_tests, deadline)
            self._profile({attempt.mutant.module for attempt in left}, deadline)
            left = self._try("tests that get there", left, self._nearest_tests, deadline)
            left = self._try("all tests", left, self._all_tests, deadline)
            for attempt in left:
                if attempt.is_survivor:
                    attempt.scope.survivors.append(attempt.mutant)
                    attempt.scope.left -= 1
            self._check_without_mutants()
        finally:
            for copy in self._copies:
                copy.end()

    # The tests that are asked

    def _known_tests(self, attempt: Attempt) -> list[str]:
        return attempt.scope.known

    def _nearest_tests(self, attempt: Attempt) -> list[str]:
        """Return the tests that enter the function, the quickest first."""
        module = attempt.mutant.module
        wanted = lines_of_scope(attempt.mutant)
        found = [
            test
            for test, profile in self._profiles.items()
            if test.partition("::")[0] in MODULES[module]
            and (not wanted or any(f"{module}:{line}" in profile.entered for line in wanted))
        ]
        return sorted(found, key=lambda test: self._profiles[test].seconds)

    def _all_tests(self, attempt: Attempt) -> list[str]:
        module = attempt.mutant.module
        return [*MODULES[module], *(test for test in wider(module) if test not in MODULES[module])]

    def _profile(self, modules: set[str], deadline: float) -> None:
        """Run the tests of those modules without a mutant: what each takes, and where it gets."""
        files = sorted({file for module in modules for file in MODULES[module]})
        waiting = [*files]
        free = [*self._copies]
        running: list[Copy] = []
        if time.monotonic() > deadline:
            return
        if files:
            say(f"running {', '.join(files)} without a mutant")
        while waiting or running:
            while waiting and free:
                running.append(free.pop())
                running[-1].start([waiting.pop()], {}, profile=True)
            for copy in wait_for_any(running):
                running.remove(copy)
                free.append(copy)
                self._learn(copy)

    def _learn(self, copy: Copy) -> None:
        copy.end()
        if copy.process.exitcode not in (0, 1, 5):  # of pytest: passed, failed, all of them slow
            raise Broken(copy.output())
        for test, profile in copy.profiles().items():
            if profile.passed:
                self._profiles[test] = profile
                self._limits[test] = max(self._limit_s / 4, FACTOR * profile.seconds)
            else:
                self._distrust(test)

    def _distrust(self, test: str) -> None:
        self.unreliable.add(test)
        for copy in self._copies:
            copy.without.append(test)

    # One stage

    def _try(
        self,
        title: str,
        attempts: list[Attempt],
        tests_for: Callable[[Attempt], list[str]],
        deadline: float,
    ) -> list[Attempt]:
        """Ask the tests that `tests_for` gives, and return the attempts that nobody noticed."""
        for attempt in attempts:
            attempt.tests = tests_for(attempt)
            attempt.is_survivor = False
        left = [attempt for attempt in attempts if not attempt.tests]
        waiting = [attempt for attempt in reversed(attempts) if attempt.tests]
        free = [*self._copies]
        running: dict[Copy, Attempt] = {}
        progress = Progress(title, len(waiting))
        while (waiting and time.monotonic() < deadline) or running:
            while waiting and free and time.monotonic() < deadline:
                attempt = waiting.pop()
                running[self._begin(attempt, free.pop())] = attempt
            for copy in wait_for_any([*running]):
                attempt = running.pop(copy)
                copy.restore()
                free.append(copy)
                noticed = self._look(attempt, copy)
                if not noticed:
                    attempt.is_survivor = True
                    left.append(attempt)
                    say(f"{title}: not noticed: {attempt.mutant}")
                progress.step(noticed)
        return left + waiting

    def _begin(self, attempt: Attempt, copy: Copy) -> Copy:
        copy.write(attempt.mutant.module, attempt.mutant.source())
        first = [test for test in attempt.scope.killers if test in attempt.tests]
        rest = [test for test in attempt.tests if test not in first]
        copy.start([*first, *rest], self._limits)
        return copy

    def _look(self, attempt: Attempt, copy: Copy) -> bool:
        """Return whether a test has noticed the mutant."""
        killer = copy.killer()
        if killer is None:
            return False
        scope = attempt.scope
        if killer != AT_IMPORT and killer not in scope.killers:
            scope.killers.append(killer)
        scope.left -= 1
        if scope.left == 0:
            self._kills.keep(scope.mutants, scope.killers)
            self._kills.write()
        return True

    def _check_without_mutants(self) -> None:
        """Forget what a test has noticed that fails without a mutant, too."""
        tests = {test for scope in self.scopes for test in [*scope.known, *scope.killers]}
        for culprit in self._culprits(tests - self._checked):
            self._distrust(culprit)
            for scope in self.scopes:
                if culprit in scope.killers:
                    self._kills.forget(scope.key)
                if culprit in scope.known:
                    scope.known.remove(culprit)
            self._kills.write()
        self._checked |= tests

    def _culprits(self, tests: set[str]) -> list[str]:
        found: list[str] = []
        while tests:
            self._copies[0].start(sorted(tests), {})
            self._copies[0].wait()
            culprit = self._copies[0].killer()
            if culprit is None:
                break
            if culprit not in tests:
                raise Broken(self._copies[0].output())
            found.append(culprit)
            tests.discard(culprit)
        return found


class Progress:
    """Says on stderr, now and then, how far a stage is."""

    def __init__(self, title: str, total: int) -> None:
        self._title = title
        self._total = total
        self._done = 0
        self._noticed = 0
        self._began = time.monotonic()
        self._said = self._began

    def step(self, noticed: bool) -> None:
        self._done += 1
        self._noticed += noticed
        now = time.monotonic()
        if now > self._said + SAY_EVERY_S:
            self._said = now
            left_min = (now - self._began) / self._done * (self._total - self._done) / 60
            say(
                f"{self._title}: {self._done:5} of {self._total} mutants tried, "
                f"{self._noticed} noticed, {left_min:.0f} min left"
            )
