"""The benchmark of secure_chat: what it counts and prints. Nothing is timed here."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.chat import NAMES, Held, Slice, of, sentences, table
from bench.measure import BAR
from bench.process import Usage
from tests.programs import measured


def took(wall_s: float) -> Slice:
    return Slice(wall_s, wall_s / 2, wall_s / 4)


def test_a_ratio_is_of_speeds_in_the_same_turn() -> None:
    ours = [took(2.0), took(4.0), took(40.0)]
    theirs = [took(1.0), took(3.0), took(10.0)]
    assert of(ours, theirs) == (0.5, 0.375, 0.625)


def test_the_table_fits_a_terminal_and_bars_show_speed() -> None:
    seen = {"tls": [took(0.01)] * 3, "ours": [took(0.02)] * 3}
    lines = table(400, seen).splitlines()
    assert max(map(len, lines)) <= 79
    assert "\n".join(lines).isascii()
    rows = {
        name: [line for line in lines if line.startswith(f"{name:17} ")] for name in NAMES.values()
    }
    assert rows[NAMES["tls"]][0].split()[3:] == ["100", "5.00", "2.50", "0.50", "(0.50-0.50)"]
    assert rows["ours"][0].split() == ["ours", "50", "10.00", "5.00"]
    assert rows[NAMES["tls"]][1].count("#") == BAR == 2 * rows["ours"][1].count("#")


def test_the_first_client_pays_for_what_all_share() -> None:
    room = Held(11, Usage(50_000, 8, 30), Usage(51_000, 18, 60), 0.5)
    logins, clients, each = sentences(10.0, 20.0, room)
    assert "0.50 of argon2 alone" in logins
    assert "11 in a room" in clients
    assert each.split()[:2] == ["100", "kB"]


@pytest.mark.slow
def test_all_is_measured_and_the_numbers_are_written(tmp_path: Path) -> None:
    _, numbers = measured("chat", tmp_path, "--messages 25 --logins 2 --clients 3 --turns 1")
    assert {rival: len(slices) for rival, slices in numbers["slices"].items()} == dict.fromkeys(
        NAMES, 1
    )
    assert numbers["logins_per_s"] > 0
    assert numbers["held"][0] == 3
