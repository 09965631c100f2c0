"""classroom/matrix.py: its world in memory is that of the sockets, and its sets are minimal."""

from __future__ import annotations

import functools
import itertools
import json
import random
from collections import Counter
from multiprocessing.pool import ThreadPool

import pytest

from attacks import ATTACKS
from classroom.matrix import (
    FOLDER,
    MATRIX,
    MEMORY,
    NEED_SOCKETS,
    ROSTER_RULES,
    SERVER_RULES,
    SESSION_RULES,
    MemoryLab,
    Pieces,
    in_memory,
    pieces,
)
from lab.claims import read_claims, read_sets
from lab.rules import Names
from lab.search import Task, Tried, search, table, wins
from lab.stage import Lab, Outcome
from lab.weakened import DOCUMENTED, RULES, without
from program import UserError
from protocol_fsm import BadPadding, LocalError, ProtocolError, Session
from tests.programs import Done, run

TRIED = [name for name in ATTACKS if name not in NEED_SOCKETS]
KNOWN = [  # an attack, and one of the minimal sets that let it win
    ("flip-reading", {"tag"}),
    ("replay-session", {"binding"}),
    ("replay-hello", {"established"}),
    ("hold-until-reconnected", {"hello-order"}),
    ("flood", {"stranger-cap"}),
    ("eavesdrop", {"encryption"}),
    ("recorded-challenge", {"echo"}),
    ("recorded-server", {"echo", "binding"}),
    ("cut", {"cut-is-not-goodbye"}),
    ("drop-report-keep-goodbye", {"ratchet"}),
    ("replay-report", {"round", "ratchet"}),
    ("swap-opcode", {"header-in-tag", "payload"}),
    ("reflect-hello", {"direction", "header-in-tag", "payload"}),
    ("padding-oracle", {"tag-first", "uniform-answers", "binding"}),
]


def won(name: str, taken: Names) -> bool:
    with MemoryLab(pieces(taken)) as world:
        return wins(ATTACKS[name], world)


def seen(outcome: Outcome) -> dict[str, Counter[str]]:
    return {
        who: Counter(type(error).__name__ for error in errors)
        for who, errors in outcome.errors.items()
    }


def with_rules(rules: Names, task: Task) -> list[Tried]:
    """Run attacks in memory, and hold all these rules for relevant."""
    return [tried._replace(relevant=rules - tried.taken) for tried in in_memory(task)]


@functools.cache
def found_by_search(name: str, size: int, brute: Names | None = None) -> frozenset[Names]:
    """Search one attack in this process; `brute` are rules of which all sets are tried."""
    with ThreadPool(1) as pool:
        trial = functools.partial(with_rules, brute) if brute else in_memory
        found = search([name], size, pool, trial)
    return frozenset(found[name])


# The world in memory ------------------------------------------------------------------------------


@pytest.mark.slow
def test_memory_and_sockets_agree_while_nothing_is_taken_out() -> None:
    with MemoryLab(Pieces()) as world, Lab("agree", lambda *_: None) as lab:
        for name in TRIED:
            attack = ATTACKS[name]
            here = world.suffer(attack)
            there = lab.suffer(attack)
            assert not here.broken
            assert seen(here) == seen(there), name
            assert (here.sent, here.accepted) == (there.sent, there.accepted), name
            assert len(here.answers) == len(there.answers), name
            if attack.error:
                assert attack.error.__name__ in seen(here)[attack.who], name
            assert bool(attack.goal(here)) == bool(attack.goal(there)), name
            assert attack.noticed or not attack.goal(here), name


@pytest.mark.parametrize("names", [[], ["documented"], *([name] for name in RULES)])
def test_honest_sessions_work_in_memory_without(names: list[str]) -> None:
    with MemoryLab(pieces(frozenset(names))) as world:
        assert [len(tape) for tape in (world.tape, world.older_tape, world.other_tape)] == [9] * 3
        world.honest_session()
        assert world.outcome.answers == world.outcome.answered
        assert seen(world.outcome) == {"client": {}, "server": {"PeerTerminated": 1}}


def test_honest_sessions_that_fail_are_told() -> None:
    class Mute(Session):
        def seal(self, message: object) -> bytes:
            raise LocalError("nothing to say")

    with pytest.raises(UserError, match="honest"), MemoryLab(Pieces(Mute)):
        pass


class SaysNothingIfPaddingIsGood(without(["tag-first", "binding"]).session):  # type: ignore[misc]
    def fail(self, error: ProtocolError) -> None:
        """Refuse bad padding as always, and anything else without a word."""
        super().fail(error)
        if not isinstance(error, BadPadding):
            error.farewell = b""


@pytest.mark.slow
def test_the_padding_oracle_takes_silence_for_an_answer() -> None:
    with MemoryLab(Pieces(SaysNothingIfPaddingIsGood)) as world:
        assert world.suffer(ATTACKS["padding-oracle"]).learned.startswith("[100.0,20.5,21.0")


def test_the_world_is_the_same_again_whatever_came_before() -> None:
    with MemoryLab(Pieces()) as one, MemoryLab(Pieces()) as other:
        one.suffer(ATTACKS["replay-session"])
        for name in ("flip-reading", "inject-report"):
            assert str(one.suffer(ATTACKS[name])) == str(other.suffer(ATTACKS[name]))


def test_an_attack_that_stumbles_is_broken_and_no_loser() -> None:
    with MemoryLab(Pieces()) as world, pytest.raises(AttributeError):
        wins(ATTACKS["slow-drip"], world)


# The search ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "taken"), KNOWN)
def test_known_sets_win_and_are_minimal(name: str, taken: set[str]) -> None:
    assert won(name, frozenset(taken))
    for size in range(len(taken)):
        for fewer in itertools.combinations(sorted(taken), size):
            assert not won(name, frozenset(fewer)), fewer


@pytest.mark.slow
def test_a_search_finds_the_known_sets() -> None:
    """Some of them, others in each run."""
    small = [(name, taken) for name, taken in KNOWN if len(taken) < 3]
    for name, taken in random.sample(small, 4):
        assert taken in found_by_search(name, 2), name
    assert found_by_search("flip-reading", 2) == {frozenset({"tag"})}
    assert found_by_search("eavesdrop", 2) == {frozenset({"encryption"})}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["replay-rewritten", "swap-opcode", "replay-session"])
def test_leaving_out_what_refused_nothing_leaves_out_no_set(name: str) -> None:
    assert found_by_search(name, 2) == found_by_search(name, 2, frozenset(MEMORY.rules))


def relevant(name: str) -> Names:
    ((_, _, _, names),) = in_memory((frozenset(), (name,)))
    return names


def test_rules_that_had_nothing_to_do_are_not_relevant() -> None:
    assert relevant("flip-tag") >= {"tag", "finality", "uniform-answers", "encryption"}
    assert not relevant("flip-tag") & {"round", "payload", "cut-is-not-goodbye", *ROSTER_RULES}
    assert relevant("cut") >= {"cut-is-not-goodbye"}
    assert relevant("replay-hello") & ROSTER_RULES.keys() == {"established"}
    assert relevant("hold-until-reconnected") >= {"established", "hello-order"}
    assert relevant("flood") >= {"stranger-cap"}


def test_every_rule_is_one_of_session_roster_or_server() -> None:
    assert {*SESSION_RULES, *ROSTER_RULES, *SERVER_RULES} == RULES.keys()
    assert SERVER_RULES.keys() == {"decoy", "frame-deadline"}
    assert DOCUMENTED


# The program --------------------------------------------------------------------------------------


def test_reasons_fit_their_lines() -> None:
    lines = table({"redundant here": "because", **read_claims(FOLDER).redundant}).splitlines()
    assert max(map(len, lines)) <= 80


def run_matrix(*flags: str) -> Done:
    return run("-m", "classroom.matrix", *flags, timeout_s=600)


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
    assert done.stderr.startswith("searching for sets of up to ")


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--size", "1"), ("--attack", "hold")])
def test_a_part_of_the_search_is_not_written(flags: tuple[str, ...]) -> None:
    before = (FOLDER / "sets.json").read_bytes()
    done = run_matrix("--write", *flags)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert (FOLDER / "sets.json").read_bytes() == before


@pytest.mark.slow
def test_an_attack_that_does_not_exist_is_refused_in_one_sentence() -> None:
    done = run_matrix("--attack", "telepathy")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "telepathy" in done.stderr


def test_the_table_has_a_row_for_each_attack_and_a_reason_for_each_unused_rule() -> None:
    sets = read_sets(FOLDER / "sets.json")
    attacks, _, redundant = MATRIX.text(sets, is_whole=True).partition("\n\n")
    assert {line.split()[0] for line in attacks.splitlines()[1:] if line[0] != " "} == {*ATTACKS}
    assert "no reason is known" not in redundant
    assert {*MATRIX.unused(sets)} == read_claims(FOLDER).redundant.keys()
    assert MATRIX.text(sets, is_whole=False) == attacks


def test_sets_are_written_for_every_attack_and_the_known_ones_are_there() -> None:
    stored = read_sets(FOLDER / "sets.json")
    assert {*stored.sets, *stored.not_prevented} == ATTACKS.keys()
    for name, known in KNOWN:
        assert sorted(known) in map(sorted, stored.sets[name])
    for name, sets in stored.sets.items():
        assert all(sets), f"{name} wins with nothing taken out"
        assert not any({*other} < {*taken} for other, taken in itertools.permutations(sets, 2))


@pytest.mark.slow
def test_a_search_finds_the_stored_sets_and_they_are_minimal() -> None:
    """Of one attack, another in each run: all of them take minutes."""
    stored = read_sets(FOLDER / "sets.json")
    names = random.sample(sorted(stored.sets), 1)
    done = run_matrix("--json", *(flag for name in names for flag in ("--attack", name)))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["sets"]
    assert found == {name: [*map(list, stored.sets[name])] for name in found}
    assert {*found} == {*names}
    for name, sets in found.items():
        for taken in map(frozenset, sets):
            if taken <= MEMORY.rules.keys():
                assert not any(won(name, taken - {rule}) for rule in taken), (name, taken)


@pytest.mark.slow
def test_leaving_out_what_refused_nothing_leaves_out_no_set_of_three() -> None:
    """Of a dozen rules, others in each run: all sets of three take minutes."""
    name = "extend"  # which falls to a set of three
    found = found_by_search(name, 3)
    [three] = (taken for taken in found if len(taken) == 3)
    some = three | {*random.sample(sorted(MEMORY.rules.keys() - three), 9)}
    assert found_by_search(name, 3, some) == {taken for taken in found if taken <= some}, some


@pytest.mark.slow
def test_a_hello_is_reflected_only_without_the_direction() -> None:
    sets = found_by_search("reflect-hello", 4)
    assert sets
    assert all("direction" in taken for taken in sets)
