"""The benchmark: that it compares like with like, and prints what can be read. It times nothing."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from collections import deque
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from bench import against, calls, ladder, report
from bench.bench import parse
from bench.certificate import write_certificate
from bench.compare import Took, compare
from bench.measure import (
    BAR,
    Failed,
    Slice,
    bars,
    by_rival,
    hear,
    measurement,
    process,
    ratio,
    spread,
    turns,
)
from bench.rivals import (
    BODIES,
    Body,
    OverTLSSession,
    example_answer,
    connected,
    make_server,
    message_sizes,
    tls_context,
)
from bench.slices import Case, ends_of
from classroom import pictures
from crypto_utils import TAG_BYTES
from program import UserError
from protocol_fsm import (
    CIPHERTEXT_AT,
    HEADER,
    MAX_BODY,
    MAX_MESSAGE,
    ClientData,
    ClientHello,
    Direction,
    ServerAggrResponse,
)
from tests.network import at_once
from tests.programs import ROOT, run

LIMIT_S = 600  # on a machine that is busy with other things


def answers_of(
    rival: str, clients: int, body: Body, rounds: int, folder: Path = Path()
) -> list[dict[str, object]]:
    """Return the last answer to each of some clients that report in step."""
    tls = tls_context(rival, folder, is_server=False) if "tls" in rival else None
    last: list[Any] = [{}] * clients

    def work(number: int) -> None:
        while len(last[number].get("participants", [])) < clients:
            last[number] = callers[number].call()
        for _ in range(rounds):
            last[number] = callers[number].call()

    with (
        make_server(rival, clients, body, folder) as server,
        ExitStack() as stack,
    ):
        assert not isinstance(server, BaseException)
        callers = [
            stack.enter_context(connected(rival, server.address, body, n + 1, tls))
            for n in range(clients)
        ]
        assert at_once(*(partial(work, n) for n in range(clients))) == [None] * clients
    return last


@pytest.mark.parametrize("clients", [1, 3])
@pytest.mark.parametrize("name", BODIES)
def test_lean_rivals_and_ours_give_the_same_answers(name: str, clients: int) -> None:
    told = {
        rival: answers_of(rival, clients, BODIES[name], 2) for rival in ("plain", "floor", "ours")
    }
    assert told["plain"] == told["floor"]
    for plain, ours in zip(told["plain"], told["ours"]):
        assert list(plain) == list(ours)  # the same members, in the same order
        for member in set(ours) - {"epoch", "round"}:
            assert plain[member] == ours[member]
        assert ours["participants"] == [*range(1, clients + 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", BODIES)
def test_over_tls_nothing_changes_but_the_channel(name: str, tmp_path: Path) -> None:
    write_certificate(tmp_path, "127.0.0.1")
    ours = answers_of("ours", 2, BODIES[name], 2)
    over_tls = answers_of("over_tls", 2, BODIES[name], 2, tmp_path)
    for one, other in zip(ours, over_tls):
        assert {**one, "epoch": 0, "round": 0} == {**other, "epoch": 0, "round": 0}


def test_over_tls_our_own_bytes_show_what_tls_hides(tmp_path: Path) -> None:
    message = OverTLSSession(1, bytes(16), Direction.C2S).seal(ClientHello())
    assert message[HEADER.size : CIPHERTEXT_AT] == bytes(16)  # so it is never used without TLS
    assert message[CIPHERTEXT_AT:-TAG_BYTES].endswith(b"\x01" + b"\x0f" * 15)


def test_large_bodies_are_near_the_limits_of_the_protocol_and_within_them() -> None:
    body = BODIES["large"]
    assert len(body.report) == len(ClientData(body.readings).body) > 18_000
    answer = example_answer(body, 250)
    assert 60_000 <= len(answer) <= MAX_BODY
    assert ServerAggrResponse(json.loads(answer)).body == answer


@pytest.mark.parametrize("name", BODIES)
def test_bare_messages_have_the_sizes_of_ours(name: str) -> None:
    for size, body_bytes in zip(
        message_sizes(BODIES[name]),
        (len(BODIES[name].report) + 16, len(example_answer(BODIES[name])) + 1),
    ):
        assert (size - 55) % 16 == 0
        assert body_bytes + 55 < size <= min(MAX_MESSAGE, body_bytes + 55 + 16)


# measure.py


def test_each_turn_has_every_rival_once_and_another_one_first() -> None:
    order: list[str] = []

    def run(rival: str) -> int:
        order.append(rival)
        return len(order)

    seen = [*turns(["a", "b", "c"], 4, run)]
    assert "".join(order) == "abcbcacababc"
    assert by_rival(seen) == {"a": [1, 6, 8, 10], "b": [2, 4, 9, 11], "c": [3, 5, 7, 12]}


def test_a_ratio_is_taken_within_each_turn_and_shown_with_its_quartiles() -> None:
    assert ratio([1.0, 2.0, 8.0], [2.0, 4.0, 16.0]) == (0.5, 0.5, 0.5)
    assert ratio([1.0, 3.0, 10.0], [2.0, 4.0, 40.0]) == (0.5, 0.375, 0.625)
    assert str(spread([1, 2, 3, 4, 5])) == "3.00 (2.00-4.00)"
    assert spread([7.0]) == (7.0, 7.0, 7.0)


def test_the_longest_bar_is_that_of_the_highest_rate() -> None:
    assert bars({"slow": 1.0, "fast": 4.0}, 5) == [
        f"slow  |{'#' * 11}{' ' * 33}| 0.25",
        f"fast  |{'#' * 44}| 1.00",
    ]


def test_companions_compare_speeds_within_a_turn_in_a_table_and_bars(
    capsys: pytest.CaptureFixture[str],
) -> None:
    walls_s = {"plain": iter([1.0, 3.0, 10.0]), "ours": iter([2.0, 4.0, 40.0])}

    def run(rival: str) -> Took:
        wall_s = next(walls_s[rival]) / 1e4
        note = "nothing" if rival == "plain" else ""
        return Took(wall_s, {"sender": wall_s / 2, "receiver": wall_s / 4}, note)

    numbers = compare("Five texts", "texts", {"plain": "plain TCP", "ours": "ours"}, 3, run)
    assert numbers["ours_of"] == {"plain": (0.5, 0.375, 0.625), "ours": (1.0, 1.0, 1.0)}
    page, progress = capsys.readouterr()
    assert progress.splitlines()[:2] == ["plain TCP: 10,000 texts/s", "ours: 5,000 texts/s"]
    lines = page.splitlines()
    assert page.isascii()
    assert max(map(len, lines)) <= 79
    assert lines[0] == "Five texts"
    assert "plain TCP: nothing" in lines
    rows = [line.split() for line in lines if line.startswith(("plain TCP  ", "ours  "))]
    assert rows[0][2:] == ["3,333", "300.0", "150.0", "75.0", "0.50", "(0.38-0.62)"]
    assert rows[1] == ["ours", "2,500", "400.0", "200.0", "100.0"]
    assert [rows[2][2].count("#"), rows[3][1].count("#")] == [BAR, BAR * 3 / 4]


@pytest.mark.slow
def test_a_process_that_dies_or_is_silent_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Failed, match="died"), process(exit) as pipe:
        hear(pipe)
    with pytest.raises(Failed, match="died"), process(exit) as pipe:
        deque(map(pipe.send, itertools.repeat("go")))
    monkeypatch.setattr("bench.measure.LIMIT_S", 0.01)
    with pytest.raises(Failed, match="too long"), process(Connection.recv) as pipe:
        hear(pipe)


def test_a_measurement_that_fails_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    @measurement
    def main(code: int) -> int:
        if code:
            raise Failed("a process died")
        return code

    assert (main(0), main(7)) == (0, 1)
    assert capsys.readouterr().err == "bench: a process died\n"


@pytest.mark.slow
def test_processor_times_of_both_ends_are_those_of_one_round(tmp_path: Path) -> None:
    with ends_of(Case("plain", 3, "small"), 2, tmp_path) as (ends, channel):
        seen = ends.run(7)
    assert channel == "TCP"
    assert (seen.rounds, len(seen.latencies_s), len(ends.clients)) == (21, 21, 2)
    assert 0 < seen.both_s < 1
    assert seen.wall_s >= max(seen.latencies_s)
    assert seen.rate == 21 / seen.wall_s


# against.py and calls.py


def slowed(folder: Path, calls: int) -> Path:
    """Copy the core into a folder; its client makes so many calls more in each round."""
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    with (folder / "program.py").open("a", encoding="ascii") as file:
        file.write("\n\nONLY_HERE = abs\n")  # so that no process can do with ours
    with (folder / "client.py").open("a", encoding="ascii") as file:
        file.write(
            "\n\nfrom program import ONLY_HERE\n"
            "\n\ndef slow_report(client, readings, report=Client.report):\n"
            f"    for _ in range({calls}):\n"
            "        ONLY_HERE(0)\n"
            "    return report(client, readings)\n"
            "\n\nClient.report = slow_report\n"
        )
    return folder


@pytest.mark.slow
def test_another_checkout_is_measured_by_its_own_modules(tmp_path: Path) -> None:
    seen = []
    for folder in (ROOT, slowed(tmp_path, 100_000)):
        with against.ends_in(folder) as ends:
            seen.append(ends.run(5).client_s)
    assert seen[1] > 2 * seen[0]


@pytest.mark.slow
def test_calls_of_another_checkout_are_counted(tmp_path: Path) -> None:
    ours = calls.calls_in(ROOT)
    theirs = calls.calls_in(slowed(tmp_path, 1_000))
    assert 980 < sum(theirs.values()) - sum(ours.values()) < 1_100  # other threads vary


def test_what_is_compared_with_another_checkout_is_told_in_ratios() -> None:
    seen = {"ours": slices(1, 1), "theirs": slices(2, 2), against.ECHO: slices(0.25, 0.25)}
    lines = against.table(seen, {"ours": 650.2, "theirs": 742}).splitlines()
    assert lines[2].endswith("time 0.50 (0.50-0.50)")
    assert lines[3].endswith("time 4.00 (4.00-4.00)")
    assert lines[-1] == "calls a round: ours 650, theirs 742"
    assert max(map(len, lines)) <= 79


def test_a_folder_without_a_server_is_refused(tmp_path: Path) -> None:
    for main in (against.main, calls.main):
        with pytest.raises(UserError, match="there is no server"):
            main([str(tmp_path)])


@pytest.mark.slow
def test_against_itself_a_checkout_makes_as_many_calls(tmp_path: Path) -> None:
    done = run("-m", "bench.bench", "--turns", "1", "--against", str(ROOT), timeout_s=LIMIT_S)
    assert done.returncode == 0, done.stderr
    one, other = re.findall(r"(\d+)", done.stdout.splitlines()[-1])
    assert abs(int(one) - int(other)) < 20


@pytest.mark.slow
def test_calls_are_listed_by_file_and_function() -> None:
    done = run("-m", "bench.calls", timeout_s=LIMIT_S)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^protocol_fsm.py +[\d.]+$", done.stdout, re.MULTILINE)
    assert re.search(r"^    seal +2.00$", done.stdout, re.MULTILINE)


# The tables


def slices(*walls_s: float) -> list[Slice]:
    return [Slice(100, wall_s, 1e-5, 2e-5, [wall_s / 100] * 100) for wall_s in walls_s]


def test_a_ratio_is_the_median_of_the_turns_each_taken_side_by_side() -> None:
    busy = report.figure(slices(1.0, 2.0, 8.0), slices(0.5, 1.0, 4.0), 1_000)
    assert busy.of_tls12 == (0.5, 0.5, 0.5)  # however the machine was disturbed, both were
    assert busy.rounds == 300
    assert busy.rounds_per_s == 50
    assert report.figure(slices(1.0), [], 1_000).of_tls12 is None


def test_what_is_printed_is_ascii_of_80_columns_at_any_speed() -> None:
    figures = {
        rival: report.figure(slices(wall_s), slices(1e-3), 1_000)
        for rival, wall_s in (
            ("plain", 1e-4),
            ("floor", 1e-3),
            ("tls12", 1e-3),
            ("tls13", 0.1),
            ("ours", 90.0),
        )
    }
    rungs = ladder.build([1e-3], [1e-4], {name: [1e-5] for name in ladder.pieces(BODIES["small"])})
    text = "\n".join(
        [
            report.table(250, "large", (60_000, 65_000), figures, dict.fromkeys(figures, "X" * 40)),
            report.growth(
                {Case(rival, n, "large"): each for rival, each in figures.items() for n in (1, 250)}
            ),
            report.ladder("small", rungs, 5e-4, 8e-4),
        ]
    )
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 80


def test_the_rungs_of_the_ladder_add_up_to_the_whole() -> None:
    work = ladder.pieces(BODIES["small"])
    assert [*work] == ["AES", "HMAC", "SHA-256", "JSON"]
    rungs = ladder.build([9.0, 8.0, 7.0], [1.0], {n: [ladder.clock(p, 1)] for n, p in work.items()})
    assert [rung.name for rung in rungs] == ["sockets", *work, "the rest"]
    assert math.isclose(sum(rung.seconds for rung in rungs), 8.0)
    assert math.isclose(sum(rung.share for rung in rungs), 1.0)
    assert math.isclose(ladder.floor(rungs), 8.0 - rungs[-1].seconds)


@pytest.mark.parametrize("words", ["--clients 0", "--clients 256", "--rounds -1", "--body tiny"])
def test_impossible_options_are_refused(words: str) -> None:
    with pytest.raises(UserError):
        parse(words.split())


@pytest.mark.slow
def test_a_quick_run_prints_tables_bars_and_a_ladder_and_writes_json(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    words = "-m bench.bench --quick --rounds 6 --turns 1 --clients 1 3 --body small --json"
    done = run(*words.split(), str(file), timeout_s=LIMIT_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "TLSv1.2 AES128-SHA256" in done.stdout
    assert "TLSv1.3 " in done.stdout
    assert done.stdout.count("Cost ladder") == 1
    assert len(done.stderr.splitlines()) == 2 * 6 + 4  # a line for each slice
    found = json.loads(file.read_text("ascii"))
    assert len(found["cases"]) == 2 * 6
    assert all(case["rounds_per_s"] > 0 for case in found["cases"])
    tls12 = [case["of_tls12"] for case in found["cases"] if case["rival"] == "tls12"]
    assert tls12 == [[1.0, 1.0, 1.0]] * 2
    assert [*found["ladder"]] == ["small"]


@pytest.mark.slow
def test_the_delays_of_the_live_page_are_measured_in_a_browser() -> None:
    pytest.importorskip("aiohttp")
    pytest.importorskip("playwright")
    if not pictures.find_chromium():
        pytest.skip("there is no Chromium")
    done = run("-m", "bench.live", "--rounds", "20", timeout_s=LIMIT_S)
    assert done.returncode == 0, done.stderr
    titles = [line.partition(":")[0] for line in done.stdout.splitlines()[::3]]
    assert titles == ["by hand", "by itself", "by hand, below all these"]
    assert done.stdout.count("message to screen") == done.stdout.count("picture to picture") == 3
    assert all(len(line) < 80 for line in done.stdout.splitlines())
