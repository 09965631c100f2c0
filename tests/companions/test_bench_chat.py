"""The benchmark of secure_chat: what it counts and prints. Nothing is timed here."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.chat import NAMES, Held, rate, sentences
from bench.process import Usage
from tests.programs import measured


def test_the_first_client_pays_for_what_all_share() -> None:
    room = Held(11, Usage(50_000, 8, 30), Usage(51_000, 18, 60), 0.5)
    logins, clients, each = sentences(10.0, 20.0, room)
    assert "0.50 of argon2 alone" in logins
    assert "11 in a room" in clients
    assert each.split()[:2] == ["100", "kB"]


@pytest.mark.parametrize(("count", "each"), [(1, 1), (4, 2), (5, 3)])
def test_both_people_do_at_least_half_of_what_is_counted(count: int, each: int) -> None:
    done: list[str] = []
    assert rate(count, done.append) > 0
    assert sorted(done) == ["alice"] * each + ["bob"] * each


@pytest.mark.slow
def test_all_is_measured_and_the_numbers_are_written(tmp_path: Path) -> None:
    flags = "--messages 25 --logins 2 --clients 3 --turns 1"
    _, numbers = measured("chat", tmp_path, flags, NAMES)
    assert numbers["logins_per_s"] > 0
    assert numbers["held"][0] == 3
