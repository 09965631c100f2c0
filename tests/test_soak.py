"""bench/soak.py: its ledger, a short soak without a fault, and faults that it must find."""

from __future__ import annotations

import itertools
import re
import sys

import pytest

from bench import soak
from bench.process import ServerProcess, Usage
from bench.soak import Ledger
from tests.programs import Done, run


def test_the_ledger_finds_lost_doubled_stale_and_invented_readings() -> None:
    def told(**other: object) -> dict[str, object]:
        return {
            "epoch": 1,
            "round": 1,
            "participants": [1, 2],
            "count": 3,
            "sum": 6.0,
            "mean": 2.0,
            "min": 1.0,
            "max": 3.0,
            "own_count": 1,
            "own_sum": 1.0,
            **other,
        }

    def wrong(one: dict[str, object], other: dict[str, object], *died: int) -> int:
        ledger = Ledger()
        ledger.answered(1, 1, [1], one)  # type: ignore[arg-type]
        ledger.answered(2, 1, [2, 3], {**other, "own_count": 2, "own_sum": 5.0})  # type: ignore
        for client_id in died:
            ledger.died(client_id)
        ledger.settle()
        return len(ledger.wrong)

    assert wrong(told(), told()) == 0
    with_the_dead = told(participants=[1, 2, 9], count=4, sum=15.0, mean=3.75, max=9.0)
    assert wrong(with_the_dead, with_the_dead, 9) == 0
    assert wrong(with_the_dead, with_the_dead) == 1, "nobody of that id has died"
    assert wrong(told(), told(sum=7.0)) == 1, "told different things"
    for change in (
        {"sum": 7.0},
        {"sum": 5.0},
        {"count": 4},
        {"participants": [1]},
        {"participants": [1, 1, 2]},
        {"mean": 3.0},
        {"min": 0.0},
        {"max": 4.0},
    ):
        assert wrong(told(**change), told(**change)) == 1, change
    assert wrong(told(own_sum=2.0), told()) == 1
    assert wrong(told(round=2), told()) == 1


def soaked(*flags: str) -> Done:
    return run("-m", "bench.soak", *flags, timeout_s=120)


@pytest.mark.slow
def test_a_short_soak_finds_nothing_wrong() -> None:
    done = soaked("--minutes", "0.15", "--clients", "60", "--progress", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every sum checked" in done.stdout
    assert done.stdout.endswith("\n0 wrong\n")
    assert len(re.findall(r"^ +\d+ s  ", done.stdout, re.MULTILINE)) >= 2, "progress"


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["a wrong sum", "a server that dies"])
def test_a_soak_that_finds_a_fault_names_it_and_fails(
    fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = itertools.count()
    usage = ServerProcess.usage

    def deadly(server: ServerProcess) -> Usage:
        if next(looks) == 2:
            server.process.kill()
        return usage(server)

    if fault == "a wrong sum":
        monkeypatch.setattr(Ledger, "_fault", lambda *_: "made up")
    else:
        monkeypatch.setattr(ServerProcess, "usage", deadly)
    monkeypatch.setattr(sys, "argv", ["soak", "--minutes", "0.06", "--clients", "5"])
    assert soak.main() == 1
    said = capsys.readouterr().out
    assert ("made up" if fault == "a wrong sum" else "the server ended by itself") in said


@pytest.mark.slow
def test_a_soak_of_too_many_clients_is_refused_in_one_sentence() -> None:
    done = soaked("--clients", "256")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
