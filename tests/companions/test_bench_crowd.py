"""A crowd in many rooms: what its benchmark counts, and a small one that really talks."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.crowd import NAMES, Found, Plan, Slice, Tally, is_whole, sentences, table
from bench.process import Usage
from tests.programs import measured

MEMBERS = {"red": ["a", "b"], "blue": ["c"]}


def found(**changes: object) -> Found:
    return Found(10, 20, 0, 0, 0, 0.1, 0.2)._replace(**changes)  # type: ignore[arg-type]


def slice_of(one: Found) -> Slice:
    return Slice(one, 1.5, Usage(50_000, 8, 30), {"logins": 12})


def test_every_text_is_due_to_each_member_of_its_room_once() -> None:
    tally = Tally(MEMBERS)
    tally.say("red", "one")
    tally.say("blue", "two")
    for name, text in (("a", "one"), ("b", "one"), ("c", "two")):
        tally.hear(name, text)
    whole = tally.found()
    assert (whole.said, whole.heard) == (2, 3)
    assert (whole.lost, whole.doubled, whole.strange) == (0, 0, 0)


@pytest.mark.parametrize(
    ("heard", "counts"),
    [
        ([("a", "one")], (1, 0, 0)),
        ([("a", "one"), ("b", "one"), ("b", "one")], (0, 1, 0)),
        ([("a", "one"), ("b", "one"), ("c", "one")], (0, 0, 1)),
        ([("a", "one"), ("b", "other")], (1, 0, 1)),
        ([("a", "one"), ("b", None)], (1, 0, 1)),
    ],
    ids=["lost", "twice", "in another room", "never said", "not told"],
)
def test_what_is_lost_doubled_or_strange_is_counted(
    heard: list[tuple[str, str | None]], counts: tuple[int, int, int]
) -> None:
    tally = Tally(MEMBERS)
    tally.say("red", "one")
    for name, text in heard:
        tally.hear(name, text)
    seen = tally.found()
    assert (seen.lost, seen.doubled, seen.strange) == counts
    assert not is_whole([slice_of(seen)])


def test_clients_are_spread_over_the_rooms() -> None:
    members = Plan(100, 10, 1.0, 1.0).members()
    assert [len(names) for names in members.values()] == [10] * 10
    assert len({name for names in members.values() for name in names}) == 100


def test_table_fits_a_terminal_and_compares_within_a_turn() -> None:
    slow = found(p50_s=2.0, p99_s=80.0, lost=3)
    seen = {"tls": [found()], "ours": [found(p50_s=0.15)], "attacked": [found(), slow]}
    seen["tls"].append(found())
    lines = table({name: list(map(slice_of, each)) for name, each in seen.items()}).splitlines()
    assert max(map(len, lines)) <= 79
    assert "\n".join(lines).isascii()
    ours, attacked = (
        next(line for line in lines if line.startswith(f"{NAMES[name]:17} "))
        for name in ("ours", "attacked")
    )
    assert ours.split()[1:5] == ["20", "0", "0", "1.50"]
    assert attacked.split()[2:6] == ["40", "3", "0", "10.5"]
    told = sentences({name: [slice_of(one) for one in each] for name, each in seen.items()})
    assert any("12 logins" in line for line in told)
    assert max(map(len, told)) <= 79


@pytest.mark.slow
def test_small_crowd_loses_nothing_while_it_is_attacked(tmp_path: Path) -> None:
    flags = "--clients 6 --rooms 2 --seconds 2 --rate 10 --turns 1"
    _, numbers = measured("crowd", tmp_path, flags, NAMES)
    for rival in NAMES:
        assert numbers["slices"][rival][0]["found"][:5] == [20, 60, 0, 0, 0]
    assert numbers["slices"]["attacked"][0]["flood"]["logins"] > 0
