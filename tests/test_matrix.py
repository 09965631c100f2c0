"""classroom/matrix.py: its world in memory is that of the sockets, and its sets are minimal."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
from classroom.weakened import DOCUMENTED, ELEMENTS, without

from attacks import ATTACKS, Lab, Outcome
from classroom.matrix import (
    FOLDER,
    SERVER_RULES,
    SESSION_RULES,
    Names,
    World,
    heard,
    table,
    tasks_of,
    trial,
    unused,
    workers,
)
from lab.claims import read_claims
from protocol_fsm import Session

ROOT = Path(__file__).parent.parent
TIMELESS = [name for name, attack in ATTACKS.items() if attack.claim != "availability"]
KNOWN = [  # an attack, and one of the minimal sets that let it win
    ("flip-reading", {"tag"}),
    ("replay-session", {"binding"}),
    ("eavesdrop", {"encryption"}),
    ("recorded-server", {"echo"}),
    ("cut", {"cut-is-not-goodbye"}),
    ("drop-report-keep-goodbye", {"ratchet"}),
    ("replay-report", {"round", "ratchet"}),
    ("swap-opcode", {"header-in-tag", "payload"}),
    ("reflect-hello", {"direction", "header-in-tag", "payload"}),
    ("padding-oracle", {"tag-first", "uniform-answers", "binding"}),
]


def wins(name: str, taken: Names) -> bool:
    return bool(ATTACKS[name].goal(World(without(taken).session).suffer(ATTACKS[name])))


def seen(outcome: Outcome) -> dict[str, Counter[str]]:
    return {
        who: Counter(type(error).__name__ for error in errors)
        for who, errors in outcome.errors.items()
    }


@functools.cache
def found_by_search(name: str, size: int, brute: bool) -> frozenset[Names]:
    """Search one attack in this process; `brute` tries all sets around one that fails."""
    found: dict[str, list[Names]] = {name: []}
    tries = {frozenset[str](): {name}}
    for _ in range(size + 1):
        larger: dict[Names, set[str]] = {}
        for task in tasks_of(tries, found):
            ((_, taken, won, relevant),) = trial(task)
            found[name] += [taken] * won
            for element in () if won else SESSION_RULES.keys() - taken if brute else relevant:
                larger[taken | {element}] = {name}
        tries = larger
    return frozenset(found[name])


@pytest.mark.slow
def test_memory_and_sockets_agree_while_nothing_is_taken_out() -> None:
    world = World(Session)
    with Lab("agree", lambda *_: None) as lab:
        for name in TIMELESS:
            attack = ATTACKS[name]
            here = world.suffer(attack)
            there = lab.suffer(attack)
            assert seen(here) == seen(there), name
            assert (here.sent, here.accepted) == (there.sent, there.accepted), name
            assert len(here.answers) == len(there.answers), name
            if attack.error:
                assert attack.error.__name__ in seen(here)[attack.who], name
            assert bool(attack.goal(here)) == bool(attack.goal(there)), name
            assert attack.noticed or not attack.goal(here), name


@pytest.mark.parametrize("names", [[], ["documented"], *([name] for name in ELEMENTS)])
def test_honest_sessions_work_in_memory_without(names: list[str]) -> None:
    world = World(without(names).session)
    assert world.is_honest
    assert not world.outcome.errors["client"]
    assert world.outcome.answers[:6] == world.outcome.answered, "two sessions of the victim"
    assert seen(world.outcome)["server"] == {"PeerTerminated": 2}


def test_the_world_is_the_same_again_whatever_came_before() -> None:
    one = World(Session)
    other = World(Session)
    one.suffer(ATTACKS["replay-session"])
    for name in ("flip-reading", "inject-report"):
        assert str(one.suffer(ATTACKS[name])) == str(other.suffer(ATTACKS[name]))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "taken"), KNOWN)
def test_known_sets_win_and_are_minimal(name: str, taken: set[str]) -> None:
    assert wins(name, frozenset(taken))
    for size in range(len(taken)):
        for fewer in itertools.combinations(sorted(taken), size):
            assert not wins(name, frozenset(fewer)), fewer


def test_a_search_finds_the_known_sets() -> None:
    for name, taken in KNOWN:
        if len(taken) < 3:
            assert taken in found_by_search(name, 2, brute=False), name
    assert found_by_search("flip-reading", 2, brute=False) == {frozenset({"tag"})}
    assert found_by_search("eavesdrop", 2, brute=False) == {frozenset({"encryption"})}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["replay-rewritten", "swap-opcode", "replay-session"])
def test_leaving_out_what_refused_nothing_leaves_out_no_set(name: str) -> None:
    assert found_by_search(name, 2, brute=False) == found_by_search(name, 2, brute=True)


def test_a_check_that_said_no_is_heard_and_only_that() -> None:
    said_no: set[str] = set()
    world = World(heard(Session, said_no))
    said_no.clear()
    world.suffer(ATTACKS["flip-tag"])
    assert {name for name in said_no if name.startswith("_")} == {"_check_tag"}


def test_no_set_around_one_that_suffices_is_tried() -> None:
    found = {"flip-reading": [frozenset({"tag"})], "cut": []}
    tries = {
        frozenset({"tag", "echo"}): {"flip-reading", "cut"},
        frozenset({"echo", "id"}): {"flip-reading"},
        frozenset({"tag", "id"}): {"flip-reading"},
    }
    assert tasks_of(tries, found) == [
        (frozenset({"tag", "echo"}), ("cut",)),
        (frozenset({"echo", "id"}), ("flip-reading",)),
    ]


def test_every_element_is_a_rule_of_one_end_or_the_other() -> None:
    assert {*SESSION_RULES, *SERVER_RULES} == ELEMENTS.keys()
    assert DOCUMENTED


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


def test_reasons_and_rows_fit_their_lines() -> None:
    lines = table({"redundant here": "because", **read_claims(FOLDER).redundant}).splitlines()
    assert max(map(len, lines)) <= 80


def run_matrix(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "classroom.matrix", *flags],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
        timeout=300,
    )


@pytest.mark.slow
def test_two_attacks_from_end_to_end_through_a_pipe() -> None:
    done = run_matrix("--attack", "flip-reading", "--attack", "hold", "--size", "1")
    assert done.returncode == 0, done.stderr
    assert [line.split(None, 1) for line in done.stdout.splitlines()[1:]] == [
        ["flip-reading", "{tag}"],
        ["hold", "not prevented (noticed by the client's deadline)"],
    ]
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "\r" not in done.stderr
    assert "100%" in done.stderr


@pytest.mark.parametrize("flags", [("--size", "1"), ("--attack", "hold")])
def test_a_part_of_the_search_is_not_written(flags: tuple[str, ...]) -> None:
    before = (FOLDER / "sets.json").read_bytes()
    done = run_matrix("--write", *flags)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert (FOLDER / "sets.json").read_bytes() == before


def test_an_attack_that_does_not_exist_is_refused_in_one_sentence() -> None:
    done = run_matrix("--attack", "telepathy")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "telepathy" in done.stderr


@pytest.mark.slow
def test_the_whole_matrix_is_confirmed_minimal_and_explained() -> None:
    done = run_matrix("--json")
    assert done.returncode == 0, done.stderr
    text = (FOLDER / "sets.json").read_text("utf-8")
    assert done.stdout == text, "run: python -m classroom.matrix --write"
    result = json.loads(text)
    found = {name: [frozenset(taken) for taken in sets] for name, sets in result["sets"].items()}
    assert {*found, *result["not_prevented"]} == ATTACKS.keys()
    assert {*unused(found)} == read_claims(FOLDER).redundant.keys()
    for name, taken in KNOWN:
        assert taken in found[name]
    for name, sets in found.items():
        for taken in sets:
            assert taken, f"{name} wins with nothing taken out"
            assert not any(other < taken for other in sets)
            if taken <= SESSION_RULES.keys():
                assert not any(wins(name, taken - {element}) for element in taken)


@pytest.mark.slow
def test_leaving_out_what_refused_nothing_leaves_out_no_set_of_three() -> None:
    for name in TIMELESS:
        if name != "padding-oracle" and not ATTACKS[name].noticed:
            small = found_by_search(name, 3, brute=False)
            assert small == found_by_search(name, 3, brute=True), name


@pytest.mark.slow
def test_a_hello_is_reflected_only_without_the_direction() -> None:
    sets = found_by_search("reflect-hello", 4, brute=False)
    assert sets
    assert all("direction" in taken for taken in sets)
