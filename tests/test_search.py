"""lab/search.py: what is tried, in what order, by whom, and how it is shown."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import pytest

import lab.search
from lab.rules import Names
from lab.search import Found, Task, Tried, listening, search, table, tasks_of, workers
from program import UserError
from protocol_fsm import BadTag, ProtocolError, RoundMismatch
from tests.programs import posix_only

LOCKS = {"open": frozenset({"bar", "bolt"}), "peep": frozenset({"curtain"})}  # by attack
BOLTED = frozenset({"bar", "bolt", "curtain", "bell"})


def rattle(task: Task) -> list[Tried]:
    """Win where all that stands in the way is taken out."""
    taken, names = task
    return [Tried(name, taken, taken >= LOCKS[name], BOLTED - taken) for name in names]


def test_a_search_finds_the_smallest_sets_and_nothing_around_them() -> None:
    with ThreadPool(1) as pool:
        assert search(["open", "peep"], 4, pool, rattle) == {
            name: [lock] for name, lock in LOCKS.items()
        }


def test_a_search_goes_on_with_what_is_relevant_only_and_stops_at_its_size() -> None:
    tried: list[Names] = []

    def forgetful(task: Task) -> list[Tried]:
        tried.append(task[0])
        return [result._replace(relevant=result.relevant - {"bolt"}) for result in rattle(task)]

    with ThreadPool(1) as pool:
        assert search(["open"], 2, pool, forgetful) == {"open": []}
    assert len(tried) == 1 + 3 + 3
    assert max(map(len, tried)) == 2


def test_no_set_around_one_that_suffices_is_tried() -> None:
    found: Found = {"flip-reading": [frozenset({"tag"})], "cut": []}
    tries = {
        frozenset({"tag", "echo"}): {"flip-reading", "cut"},
        frozenset({"echo", "id"}): {"flip-reading"},
        frozenset({"tag", "id"}): {"flip-reading"},
    }
    assert tasks_of(tries, found) == [
        (frozenset({"tag", "echo"}), ("cut",)),
        (frozenset({"echo", "id"}), ("flip-reading",)),
    ]


class Door:
    def _check_bolt(self, is_bolted: bool) -> None:
        if is_bolted:
            raise BadTag

    def _check_bell(self) -> None:
        raise RoundMismatch

    def fail(self, error: ProtocolError) -> None:
        """Stay shut."""


def test_only_checks_that_refuse_are_noted_and_a_failure_that_is_told() -> None:
    notes: set[str] = set()
    door = listening(Door, {"_check_bolt", "fail", "_check_of_another_part"}, notes)()
    door._check_bolt(False)
    with pytest.raises(RoundMismatch):
        door._check_bell()
    assert not notes
    with pytest.raises(BadTag):
        door._check_bolt(True)
    assert notes == {"_check_bolt"}
    door.fail(BadTag())
    assert notes == {"_check_bolt", "fail"}


class NeedsItsNames(Exception):
    """An error that pickle can take apart, and not put together."""

    def __init__(self, *, expected: str) -> None:
        super().__init__(expected)


def stumble(task: Task) -> list[Tried]:
    raise NeedsItsNames(expected="a lock")


def complain(task: Task) -> list[Tried]:
    raise UserError("there is no such rule")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trial", "kind", "words"),
    [
        (stumble, RuntimeError, r"NeedsItsNames: a lock, in \(frozenset\(\), \('open',\)\)"),
        (complain, UserError, "there is no such rule"),
    ],
)
def test_what_a_trial_raises_ends_the_search_and_does_not_stop_it(
    trial: Callable[[Task], list[Tried]], kind: type[Exception], words: str
) -> None:
    """Without Told the pool waits for ever: a thread limits the damage."""
    caught: list[BaseException] = []

    def run() -> None:
        try:
            with workers(1) as pool:
                search(["open"], 1, pool, trial)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60.0)
    assert [type(error) for error in caught] == [kind]
    assert re.fullmatch(words, str(caught[0]))


@pytest.mark.slow
@pytest.mark.parametrize("error", [None, KeyboardInterrupt()], ids=["in peace", "interrupted"])
def test_workers_and_their_folders_end_with_the_pool(error: BaseException | None) -> None:
    with contextlib.suppress(KeyboardInterrupt), workers(1) as pool:
        folder = Path(pool.apply(tempfile.mkdtemp))
        assert folder.is_dir()
        if error:
            pool.apply_async(time.sleep, (60,))
            raise error
    assert not folder.exists()
    assert not multiprocessing.active_children()


def test_rows_of_a_table_fit_their_lines() -> None:
    lines = table({"attack": "sets", "replay-report": "{round, ratchet} " * 20}).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) > 3
    assert {line[:26] for line in lines[2:]} == {" " * 26}


@posix_only
@pytest.mark.slow
def test_ctrl_c_is_for_the_parent_alone_from_the_first_moment_of_a_worker() -> None:
    """Before a worker could say so itself, its interpreter would die with a traceback."""
    with workers(1) as pool:
        held_back = pool.apply(signal.pthread_sigmask, (signal.SIG_BLOCK, ()))
    assert signal.SIGINT in held_back
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_machine_with_many_cores_has_no_more_workers_than_windows_can_wait_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[int] = []

    def pool(count: int, *_: object) -> ThreadPool:
        started.append(count)
        return ThreadPool(1)

    monkeypatch.setattr(lab.search, "SPAWN", SimpleNamespace(Pool=pool))
    monkeypatch.setattr(os, "cpu_count", lambda: 24)
    with workers(1), workers(3):
        pass
    assert started == [24, 60]


@pytest.mark.slow
@posix_only
def test_a_signal_to_a_whole_program_is_left_to_the_parent_of_its_workers() -> None:
    with workers(1) as pool:
        assert pool.apply(os.getpgrp) != os.getpgrp()
