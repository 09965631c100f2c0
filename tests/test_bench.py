"""The benchmark: that it compares like with like, and prints what can be read. It times nothing."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bench import ladder, report
from bench.bench import parse
from bench.certificate import write_certificate
from bench.rivals import (
    BODIES,
    Body,
    Meter,
    OverTLSSession,
    example_answer,
    large_body,
    make_client,
    make_server,
    message_sizes,
    small_body,
    tls_context,
)
from bench.slices import Case, Slice
from crypto_utils import TAG_BYTES
from protocol_fsm import (
    CIPHERTEXT_AT,
    HEADER,
    MAX_BODY,
    MAX_MESSAGE,
    MAX_READINGS,
    Direction,
    Opcode,
    parse_aggregate,
    parse_readings,
)

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 120
QUICK = [sys.executable, "-m", "bench.bench", "--quick", "--rounds", "6", "--turns", "2"]


def answers_of(
    rival: str, clients: int, body: Body, rounds: int, folder: Path = Path()
) -> list[dict[str, object]]:
    """Return the last answer to each of some clients that report in step."""
    tls = tls_context(rival, folder, is_server=False) if "tls" in rival else None
    last: list[dict[str, object]] = [{}] * clients

    def work(number: int) -> None:
        while len(last[number].get("participants", [])) < clients:  # type: ignore[arg-type]
            last[number] = callers[number].call()  # type: ignore[assignment]
        for _ in range(rounds):
            last[number] = callers[number].call()  # type: ignore[assignment]

    with make_server(rival, clients, Meter(clients, body.filling), folder) as server:
        assert not isinstance(server, BaseException)
        callers = [make_client(rival, server.address, body, n + 1, tls) for n in range(clients)]
        threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
        for caller in callers:
            caller.close()
    return last


@pytest.mark.parametrize("clients", [1, 3])
@pytest.mark.parametrize("name", BODIES)
def test_lean_rivals_and_ours_give_the_same_answers(name: str, clients: int) -> None:
    told = {
        rival: answers_of(rival, clients, BODIES[name](), 2) for rival in ("plain", "floor", "ours")
    }
    assert told["plain"] == told["floor"]
    for plain, ours in zip(told["plain"], told["ours"]):
        assert list(plain) == list(ours)  # the same members, in the same order
        for member in set(ours) - {"epoch", "round"}:
            assert plain[member] == ours[member]
        assert ours["participants"] == [*range(1, clients + 1)]


@pytest.mark.parametrize("name", BODIES)
def test_over_tls_nothing_changes_but_the_channel(name: str, tmp_path: Path) -> None:
    write_certificate(tmp_path, "127.0.0.1")
    ours = answers_of("ours", 2, BODIES[name](), 2)
    over_tls = answers_of("over_tls", 2, BODIES[name](), 2, tmp_path)
    for one, other in zip(ours, over_tls):
        assert {**one, "epoch": 0, "round": 0} == {**other, "epoch": 0, "round": 0}


def test_over_tls_our_own_bytes_show_what_tls_hides(tmp_path: Path) -> None:
    session = OverTLSSession(1, bytes(16), Direction.C2S)
    message = session.seal(Opcode.CLIENT_HELLO)
    assert message[HEADER.size : CIPHERTEXT_AT] == bytes(16)  # so it is never used without TLS
    assert message[CIPHERTEXT_AT:-TAG_BYTES].endswith(b"\x01" + b"\x0f" * 15)


def test_large_bodies_are_about_60_kb_and_within_the_limits_of_the_protocol() -> None:
    body = large_body()
    assert len(parse_readings(body.report)) == MAX_READINGS
    assert 60_000 <= len(body.report) <= MAX_BODY
    assert 60_000 <= len(example_answer(body, 250)) <= MAX_BODY
    assert parse_aggregate(example_answer(body, 250))["text"] == body.filling


@pytest.mark.parametrize("name", BODIES)
def test_bare_messages_have_the_sizes_of_ours(name: str) -> None:
    for size, body_bytes in zip(
        message_sizes(BODIES[name]()),
        (len(BODIES[name]().report) + 16, len(example_answer(BODIES[name]())) + 1),
    ):
        assert (size - 55) % 16 == 0
        assert body_bytes + 55 < size <= min(MAX_MESSAGE, body_bytes + 55 + 16)


def test_the_meter_counts_only_full_epochs_after_the_first() -> None:
    meter = Meter(2, "")
    meter({1: [1.0]})
    assert math.isnan(meter.processor_s())
    for _ in range(3):
        assert meter({1: [1.0], 2: [2.0]})["count"] == 2
    assert meter.processor_s() >= 0


def slices(*walls_s: float) -> list[Slice]:
    return [Slice(100, wall_s, [wall_s / 100] * 100, 1e-5, 2e-5, "TLSv1.2 X") for wall_s in walls_s]


def test_a_ratio_is_the_median_of_the_turns_each_taken_side_by_side() -> None:
    busy = report.figure(slices(1.0, 2.0, 8.0), slices(0.5, 1.0, 4.0), 1_000)
    assert busy.of_tls12 == 0.5  # however the machine was disturbed, both were
    assert busy.of_tls12_quartiles == (0.5, 0.5)
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
    rungs = ladder.build([1e-3], [1e-4], {name: [1e-5] for name in ladder.pieces(small_body())})
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
    work = ladder.pieces(small_body())
    assert [*work] == ["AES", "HMAC", "SHA-256", "JSON"]
    rungs = ladder.build([9.0, 8.0, 7.0], [1.0], {n: [ladder.clock(p, 1)] for n, p in work.items()})
    assert [rung.name for rung in rungs] == ["sockets", *work, "the rest"]
    assert math.isclose(sum(rung.seconds for rung in rungs), 8.0)
    assert math.isclose(sum(rung.share for rung in rungs), 1.0)
    assert math.isclose(ladder.floor(rungs), 8.0 - rungs[-1].seconds)


@pytest.mark.parametrize("words", ["--clients 0", "--clients 256", "--rounds -1", "--body tiny"])
def test_impossible_options_are_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(words.split())
    assert "error: " in capsys.readouterr().err


@pytest.mark.slow
def test_a_quick_run_prints_tables_bars_and_a_ladder_and_writes_json(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    done = subprocess.run(
        [*QUICK, "--clients", "1", "3", "--json", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "TLSv1.2 AES128-SHA256" in done.stdout
    assert "TLSv1.3 " in done.stdout
    assert done.stdout.count("Cost ladder") == 2
    assert len(done.stderr.splitlines()) == 2 * (2 * 2 * 6 + 2 * 4)  # a line for each slice
    found = json.loads(file.read_text("ascii"))
    assert len(found["cases"]) == 2 * 2 * 6
    assert all(case["rounds_per_s"] > 0 for case in found["cases"])
    assert {case["of_tls12"] for case in found["cases"] if case["rival"] == "tls12"} == {1.0}
    assert [*found["ladder"]] == ["small", "large"]


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    broken = (
        "import sys, bench.slices as slices; from bench import bench\n"
        "slices.make_server = None\n"
        "if __name__ == '__main__': sys.exit(bench.main(['--quick', '--no-ladder']))\n"
    )
    (tmp_path / "broken.py").write_text(broken, "ascii")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "broken.py")],
        cwd=ROOT,
        text=True,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("bench: a process of the benchmark died; ")
