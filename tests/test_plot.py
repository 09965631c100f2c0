"""The picture of the benchmark: its numbers are those of the JSON, and every word can be read."""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench.plot import (
    COLOURS,
    LINE,
    MARKS,
    RIGHT,
    Axis,
    Dot,
    apart,
    main,
    percents,
    plot,
    read_bench,
    ticks,
)
from bench.report import NAMES
from program import UserError
from tests.colours import contrast
from tests.programs import run

# All worked out by hand: rounds a second, and microseconds at the 50th and 99th percentile
CLIENTS = (1, 10, 250)
SPEEDS = {
    "plain": (2.5, 2.25, 2.0),
    "floor": (0.5, 0.625, 0.75),
    "tls12": (1.0, 1.0, 1.0),
    "tls13": (1.25, 1.125, 1.0625),
    "over_tls": (0.625, 0.5, 0.375),
    "ours": (0.375, 0.25, 0.125),
}
P50 = {
    "plain": (40, 400, 10_000),
    "floor": (200, 2_000, 50_000),
    "tls12": (100, 1_000, 25_000),
    "tls13": (80, 800, 20_000),
    "over_tls": (150, 1_500, 40_000),
    "ours": (250, 2_500, 75_000),
}
P50_OF_TLS12 = {
    "plain": [0.4, 0.4, 0.4],
    "floor": [2, 2, 2],
    "tls12": [1, 1, 1],
    "tls13": [0.8, 0.8, 0.8],
    "over_tls": [1.5, 1.5, 1.6],
    "ours": [2.5, 2.5, 3],
}
LADDER_US = {"sockets": 30, "AES": 25, "HMAC": 12.5, "SHA-256": 5, "JSON": 2.5, "the rest": 125}
PERCENT = {"sockets": 15, "AES": 13, "HMAC": 6, "SHA-256": 3, "JSON": 1, "the rest": 62}  # below


def made_up() -> dict[str, Any]:
    cases = [
        {
            "rival": rival,
            "clients": clients,
            "body": "small",
            "of_tls12": [SPEEDS[rival][at] * part for part in (1, 0.9, 1.1)],
            "p50_s": P50[rival][at] / 1e6,
            "p99_s": 3 * P50[rival][at] / 1e6,
        }
        for at, clients in enumerate(CLIENTS)
        for rival in NAMES
    ]
    return {
        "cases": cases,
        "ladder": {
            "small": [
                {"name": name, "seconds": us / 1e6, "share": us / 200}
                for name, us in LADDER_US.items()
            ]
        },
    }


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(made_up()))
    return path


def drawn(bench: Path) -> ElementTree.Element:
    return ElementTree.fromstring(plot(read_bench(bench, "small"), "small"))


def every(svg: ElementTree.Element, tag: str) -> list[ElementTree.Element]:
    found = svg.findall(f".//{{*}}{tag}")
    assert found
    return found


def texts(svg: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in every(svg, "text")]


def steps(svg: ElementTree.Element) -> list[tuple[float, float]]:
    """Return where each bar of the ladder begins and ends."""
    return [
        (float(bar.get("x", 0)), float(bar.get("x", 0)) + float(bar.get("width", 0)))
        for bar in every(svg, "rect")
        if bar.get("class") != "paper"
    ]


# The numbers


def test_the_ratios_are_those_worked_out_by_hand(bench: Path) -> None:
    found = read_bench(bench, "small")
    assert found.growth == pytest.approx({1: 1, 10: 10, 250: 250})
    for rival in NAMES:
        assert [*found.speed[rival]] == [*found.latency[rival]] == [*CLIENTS]
        assert tuple(dot.value for dot in found.speed[rival].values()) == SPEEDS[rival]
        latencies = found.latency[rival].values()
        assert [dot.value for dot in latencies] == pytest.approx(P50_OF_TLS12[rival])
        assert [dot.high / dot.low for dot in latencies] == pytest.approx([3, 3, 3])
    assert found.speed["ours"][1] == pytest.approx((0.375, 0.3375, 0.4125))


def test_shares_of_the_ladder_add_up_to_100(bench: Path) -> None:
    found = read_bench(bench, "small")
    assert dict(found.ladder) == pytest.approx({n: us / 200 for n, us in LADDER_US.items()})
    shown = [int(text[:-2]) for text in texts(drawn(bench)) if text.endswith(" %")]
    assert sum(shown) == 100
    bars = steps(drawn(bench))
    assert [at for at, _ in bars[1:]] == pytest.approx([end for _, end in bars[:-1]], abs=0.2)
    whole = bars[-1][1] - bars[0][0]
    assert [(end - at) / whole for at, end in bars] == pytest.approx(
        [us / 200 for us in LADDER_US.values()], abs=0.001
    )
    # 15, 12.5, 6.25, 2.5, 1.25 and 62.5: two of the three halves go up
    assert dict(zip(LADDER_US, shown)) == PERCENT


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([1 / 3] * 3, [34, 33, 33]),
        ([1.0], [100]),
        ([0.5, 0.75, -0.25], [50, 75, -25]),
        ([0.005] * 200, [1] * 100 + [0] * 100),
    ],
)
def test_percents_add_up(parts: list[float], expected: list[int]) -> None:
    assert percents(parts) == expected


def test_growth_is_from_the_fewest_clients(bench: Path) -> None:
    assert "TLS 1.2 itself with 10, 250: 10, 250 times that with 1." in texts(drawn(bench))
    told = made_up()
    told["cases"] = [case for case in told["cases"] if case["clients"] > 1]
    bench.write_text(json.dumps(told))
    assert read_bench(bench, "small").growth == pytest.approx({10: 1, 250: 25})
    assert "TLS 1.2 itself with 250: 25 times that with 10." in texts(drawn(bench))


# The picture


def test_every_rival_and_every_number_of_clients_is_named(bench: Path) -> None:
    svg = drawn(bench)
    for name in [*NAMES.values(), *LADDER_US]:
        assert texts(svg).count(name) == (1 if name in LADDER_US else 2), name
    columns = [text.text for text in every(svg, "text") if text.get("text-anchor") == "middle"]
    assert columns == [*map(str, CLIENTS), "clients"] * 2


def test_marks_and_colours_differ(bench: Path) -> None:
    assert len({*MARKS.values()}) == len(MARKS) == len(NAMES)
    assert {*NAMES} <= {*COLOURS}
    for at in (0, 1):
        assert len({COLOURS[name][at] for name in NAMES}) == len(NAMES)
    drawn_marks = [path.get("d") for path in every(drawn(bench), "path")]
    for mark in MARKS.values():
        assert drawn_marks.count(mark) == 2 * (len(CLIENTS) + 1)  # with the one beside the name


@pytest.mark.parametrize("scheme", [0, 1])
def test_what_is_to_be_seen_stands_out_from_the_paper(scheme: int) -> None:
    for name in COLOURS.keys() - {"paper", "line"}:
        wanted = 3 if name in ("one", "piece") else 4.5
        assert contrast(COLOURS[name][scheme], COLOURS["paper"][scheme]) >= wanted, name


def test_it_is_one_file_that_can_be_read_aloud(bench: Path) -> None:
    text = plot(read_bench(bench, "small"), "small")
    svg = ElementTree.fromstring(text)
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    assert svg.get("role") == "img"
    ids = (svg.get("aria-labelledby") or "").split()
    told = [part.text or "" for part in svg if part.get("id") in ids]
    assert len(told) == 2
    assert "ours 2.50 with 1, 2.50 with 10, 3.00 with 250" in told[1]
    assert "the rest 62 %" in told[1]
    assert "prefers-color-scheme: dark" in text
    assert text.isascii()
    assert not re.search(r"href|url\(|@import|<script|<image", text)
    assert not re.search(r"\d (us|ms|s)\b", " ".join([*texts(svg), *told]))  # no times


def test_nothing_is_outside_and_no_name_on_another(bench: Path) -> None:
    svg = drawn(bench)
    _, _, width, height = map(float, (svg.get("viewBox") or "").split())
    places = [
        (float(t.get("x", 0)), float(t.get("y", 0)), t.text or "") for t in every(svg, "text")
    ]
    assert all(0 < x < width and 0 < y < height - 4 for x, y, _ in places)
    for words in (t for t in every(svg, "text") if t.get("text-anchor") == "start"):
        wide = 11 if "title" in (words.get("class") or "") else 8  # a letter, of a wide font
        assert float(words.get("x", 0)) + wide * len(words.text or "") < width, words.text
    names = [(x, y) for x, y, text in places if text in NAMES.values()]
    assert len(names) == 2 * len(NAMES)
    assert all(x > RIGHT for x, _ in names)
    assert all(a == b or abs(a[1] - b[1]) >= LINE for a in names for b in names)


def test_the_axis_is_logarithmic() -> None:
    axis = Axis({"ours": {1: Dot(2, 1, 3), 10: Dot(0.5, 0.5, 0.5)}}, 100)
    assert axis.y(1) - axis.y(2) == pytest.approx(axis.y(0.5) - axis.y(1), abs=0.2)
    assert axis.bottom > axis.y(0.5) > axis.y(3) > axis.top
    assert axis.ticks == [0.5, 1, 2]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.3, 3, [0.5, 1, 2]),
        (0.3, 1_000, [1, 10, 100, 1_000]),
        (0.9, 1.1, [1]),
        (1e-9, 1e9, [1e-9, 1e-6, 1e-3, 1, 1e3, 1e6, 1e9]),
    ],
)
def test_ticks_are_few_and_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_names_move_apart() -> None:
    assert apart([10, 90], 0, 100) == [10, 90]
    assert apart([10, 11, 12], 0, 100) == [10, 10 + LINE, 10 + 2 * LINE]
    assert apart([98, 99, 100], 0, 100) == [100 - 2 * LINE, 100 - LINE, 100]


def test_fewer_rivals_one_column_and_no_p99_are_drawn_too(bench: Path) -> None:
    told = made_up()
    told["cases"] = [
        case
        for case in told["cases"]
        if case["clients"] == 10 and case["rival"] in ("tls12", "ours")
    ]
    for case in told["cases"]:
        del case["p99_s"]
    told["ladder"]["small"][-1]["seconds"] = -5e-6  # a machine that was busy
    bench.write_text(json.dumps(told))
    assert read_bench(bench, "small").latency["ours"][10] == pytest.approx((2.5, 2.5, 2.5))
    svg = drawn(bench)
    assert "plain TCP" not in texts(svg)
    assert "TLS 1.2 was measured with 10 clients only." in texts(svg)
    bars = steps(svg)
    assert [end for _, end in bars[:-2]] == pytest.approx([at for at, _ in bars[1:-1]], abs=0.2)
    assert bars[-1][1] == pytest.approx(bars[-2][1], abs=0.2)  # back from where JSON ended
    assert bars[-1][0] < bars[-1][1] - 10


# Bad input


def changed(path: str, value: object) -> str:
    """Return the JSON with one value changed: cases 0 p50_s, say."""
    told = copy.deepcopy(made_up())
    *way, last = (int(part) if part.isdigit() else part for part in path.split())
    at: Any = told
    for part in way:
        at = at[part]
    at[last] = value
    return json.dumps(told)


SHAPE = "is not what python3 run.py bench --json writes$"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", SHAPE),
        ("rounds/s", SHAPE),
        ("7", SHAPE),
        ("[]", SHAPE),
        ("{}", SHAPE),
        ("null", SHAPE),
        ("[" * 100_000, SHAPE),
        ('{"cases": 7, "ladder": {}}', SHAPE),
        ('{"cases": [{}], "ladder": {}}', SHAPE),
        ('{"cases": ["small"], "ladder": {}}', SHAPE),
        (changed("cases", []), "has no small bodies: "),
        (changed("cases 0 body", "huge"), None),
        (changed("ladder", {}), "has no cost ladder: "),
        (changed("ladder", []), SHAPE),
        (changed("ladder small", []), "has no cost ladder: "),
        (changed("ladder small", 7), SHAPE),
        (changed("ladder small 0 name", "\0"), SHAPE),
        (changed("ladder small 5 seconds", -1), SHAPE),
        (changed("ladder small 0 seconds", "1"), SHAPE),
        (changed("cases 0 p50_s", 0), SHAPE),
        (changed("cases 0 p50_s", float("nan")), SHAPE),
        (changed("cases 0 p99_s", True), SHAPE),
        (changed("cases 0 of_tls12 0", 10**400), SHAPE),
        (changed("cases 0 of_tls12", None), SHAPE),
        (changed("cases 0 of_tls12", [1]), SHAPE),
        (changed("cases 0 clients", "1"), SHAPE),
        (changed("cases 0 of_tls12", 1), SHAPE),
        (changed("cases 0 clients", []), SHAPE),
        (changed("cases 0 rival", "quic"), SHAPE),
        (changed("cases 0 rival", []), SHAPE),
        (changed("cases 1 rival", "tls12"), SHAPE),  # there twice
        (changed("cases 2 clients", 7), SHAPE),  # and nothing to compare the others with
        (
            json.dumps(
                {
                    **made_up(),
                    "cases": [case for case in made_up()["cases"] if case["rival"] != "tls12"],
                }
            ),
            "has no TLS 1.2, ",
        ),
    ],
)
def test_what_is_no_benchmark_is_one_sentence(bench: Path, text: str, sentence: str | None) -> None:
    bench.write_text(text)
    if sentence is None:  # other bodies are nobody's business
        read_bench(bench, "small")
        return
    with pytest.raises(UserError, match=sentence) as caught:
        read_bench(bench, "small")
    assert str(caught.value).startswith(str(bench))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "required"),
        (["{}/nowhere"], "^cannot read .*No such file"),
        (["{}"], "^cannot read "),
        (["{}/bytes"], "^cannot read "),
        (["{}/bench.json", "--body", "huge"], "invalid choice"),
        (
            ["{}/bench.json", "--body", "large"],
            "has no large bodies: measure them with --body large",
        ),
        (["{}/bench.json", "-o", "{}/no/svg"], "cannot write "),
        (["{}/bench.json", "-o", "{}"], "cannot write "),
        (["{}/bench.json", "-o", ""], "cannot write "),
    ],
)
def test_bad_words_are_one_sentence_and_nothing_is_written(
    bench: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], sentence: str
) -> None:
    (bench.parent / "bytes").write_bytes(b"\xff\xfe")
    monkeypatch.chdir(bench.parent)
    monkeypatch.setattr(sys, "argv", ["plot", *(w.replace("{}", str(bench.parent)) for w in words)])
    with pytest.raises(UserError, match=sentence) as caught:
        main()
    assert "\n" not in str(caught.value)
    assert {path.name for path in bench.parent.iterdir()} == {"bench.json", "bytes"}


@pytest.mark.slow
def test_it_is_a_command(bench: Path) -> None:
    svg = bench.with_name("bench.svg")
    done = run("-m", "bench.plot", str(bench), "-o", str(svg))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"wrote {svg}\n", "")
    assert svg.read_text("ascii") == plot(read_bench(bench, "small"), "small")
    assert run("-m", "bench.plot", str(svg)).returncode == 2
