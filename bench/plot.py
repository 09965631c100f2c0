"""A picture of what the benchmark found, as one SVG that loads nothing, for light and dark pages.

    python3 run.py bench --json bench.json
    python -m bench.plot bench.json -o bench.svg

Three panels: rounds a second and latency by the number of clients, and the cost ladder of a round.
All of it is ratios, as times belong to a machine and a day; what is not a ratio stays in the JSON.
A rival has a mark of its own and its name at the end of its line, so that no colour is needed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bench.report import NAMES
from bench.rivals import BODIES
from classroom.drawing import PAPER_AND_INK, Picture
from classroom.output import write_whole
from program import (
    Parser,
    UserError,
    escaped,
    keep_inputs,
    output_path,
    plural,
    read_text,
    run_program,
)

# Half as wide, as on a phone, letters of 15 are still of 9 or 10 pixels
WIDTH = 560
MARGIN = 16
LEFT = 62
RIGHT = 446  # of the charts; names stand right of that
HEAD = 62
CHART = 216
FEET = 74
RUNG = 28  # heights
BESIDE = 13  # between the rivals in one column, if there is room
LINE = 20  # between two names
LADDER_LEFT = 104
LADDER_RIGHT = 486

MARKS = {  # paths around 0,0
    "plain": "M-6,-5 h12 l-6,11 z",
    "floor": "M-5,-5 h10 v10 h-10 z",
    "tls12": "M-6,5 h12 l-6,-11 z",
    "tls13": "M0,-7 l6,7 -6,7 -6,-7 z",
    "over_tls": "M-2,-6 h4 v4 h4 v4 h-4 v4 h-4 v-4 h-4 v-4 h4 z",
    "ours": "M-6,0 a6,6 0 1 0 12,0 a6,6 0 1 0 -12,0 z",
}
COLOURS = {  # by class: light, dark
    **PAPER_AND_INK,
    "line": ("#d5dadc", "#353d40"),
    "one": ("#7c878c", "#7f8a8f"),
    "piece": ("#6f8698", "#8ba4b8"),
    "plain": ("#5f686d", "#aeb7bc"),
    "floor": ("#a65f00", "#e8a84a"),
    "tls12": ("#1c68b0", "#75b5f3"),
    "tls13": ("#0b7a60", "#54cba9"),
    "over_tls": ("#6a3fb5", "#bd9fff"),
    "ours": ("#bd1f57", "#ff82b0"),
}
STYLE = """text.name-ours { font-weight: 700; }
path.curve { fill: none; stroke-width: 1.5; }
path.curve.ours { stroke-width: 3; }
line.range { stroke-width: 2; }
line.leader { stroke-width: 1; stroke-dasharray: 2 3; }
"""

# What was measured --------------------------------------------------------------------------------


class Dot(NamedTuple):
    """One value, and how far the line through it goes."""

    value: float
    low: float
    high: float


Curves = Mapping[str, Mapping[int, Dot]]  # by rival and number of clients


class Measured(NamedTuple):
    """What the picture shows; nothing in it is a time."""

    speed: Curves  # of TLS 1.2 with as many clients; the line is the quartiles
    latency: Curves  # of the median of TLS 1.2 with as many clients; the line ends at p99
    growth: Mapping[int, float]  # of the median of TLS 1.2, by clients; with the fewest it is 1
    ladder: Sequence[tuple[str, float]]  # shares of a round, which add up to 1


def number(found: object, above: float = -1e9) -> float:
    """Return a number that can have been measured. Raises ValueError."""
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not above < found < 1e9:
        raise ValueError(found)
    return float(found)


above_0 = partial(number, above=1e-9)


def read_bench(path: Path, body: str) -> Measured:
    """Return what run.py bench --json wrote about one size of bodies. Raises UserError."""
    text = read_text(path)
    try:
        told = json.loads(text)
        cases = [case for case in told["cases"] if case["body"] == body]
        rungs = told["ladder"].get(body)
        if not cases:
            raise UserError(f"{path} has no {body} bodies: measure them with --body {body}")
        if not any(case["rival"] == "tls12" for case in cases):
            raise UserError(f"{path} has no TLS 1.2, which everything is compared with")
        if not rungs:
            raise UserError(f"{path} has no cost ladder: measure without --no-ladder")
        return measured(cases, shares(rungs))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} is not what python3 run.py bench --json writes") from None


def shares(rungs: Sequence[Mapping[str, object]]) -> list[tuple[str, float]]:
    """Return the rungs as shares of all. The rest may be below 0, when the machine was busy."""
    named = {str(rung["name"]): number(rung["seconds"]) for rung in rungs}
    if not all(map(str.isprintable, named)):  # which XML could not hold
        raise ValueError(rungs)
    whole = above_0(sum(named.values()))
    return [(name, seconds / whole) for name, seconds in named.items()]


def measured(cases: Sequence[Mapping[str, Any]], ladder: Sequence[tuple[str, float]]) -> Measured:
    """Turn cases into ratios; the rivals are in the order of the benchmark's own tables."""
    tls12 = [
        (above_0(case["clients"]), above_0(case["p50_s"]))
        for case in cases
        if case["rival"] == "tls12"
    ]
    medians = {int(clients): p50 for clients, p50 in sorted(tls12)}
    if len(medians) < len(tls12):
        raise ValueError(tls12)
    speed: dict[str, dict[int, Dot]] = {name: {} for name in NAMES}
    latency: dict[str, dict[int, Dot]] = {name: {} for name in NAMES}
    for case in sorted(cases, key=lambda case: int(case["clients"])):
        clients = int(above_0(case["clients"]))
        p50 = above_0(case["p50_s"]) / medians[clients]
        p99 = above_0(case.get("p99_s", case["p50_s"])) / medians[clients]
        speed[case["rival"]][clients] = Dot(*map(above_0, case["of_tls12"]))
        latency[case["rival"]][clients] = Dot(p50, p50, p99)
    growth = {clients: p50 / next(iter(medians.values())) for clients, p50 in medians.items()}
    return Measured(
        {rival: dots for rival, dots in speed.items() if dots},
        {rival: dots for rival, dots in latency.items() if dots},
        growth,
        ladder,
    )


def percents(parts: Sequence[float]) -> list[int]:
    """Round shares to whole percents that add up to 100: the largest remainders go up."""
    rounded = [math.floor(100 * part) for part in parts]
    order = sorted(range(len(parts)), key=lambda at: rounded[at] - 100 * parts[at])
    for at in order[: 100 - sum(rounded)]:
        rounded[at] += 1
    return rounded


# Where things go ----------------------------------------------------------------------------------


def ticks(low: float, high: float) -> list[float]:
    """Return round numbers for a logarithmic axis, 1 among them if it is between: at most 7."""
    tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [digit * 10.0**ten for ten in tens for digit in (1, 2, 5)]
    step = 1
    while len(inside := [tick for tick in found if low <= tick <= high]) > 7:
        found = [10.0**ten for ten in tens if ten % step == 0]
        step += 1
    return inside


class Axis:
    """A logarithmic axis, upwards from `bottom`: twice and half are equally far from 1."""

    def __init__(self, curves: Curves, top: float) -> None:
        dots = [dot for curve in curves.values() for dot in curve.values()]
        self.low = min(min(dot.low, dot.value) for dot in dots) / 1.2
        self.high = max(max(dot.high, dot.value) for dot in dots) * 1.2
        self.top = top
        self.bottom = top + CHART
        self.ticks = ticks(self.low, self.high)

    def y(self, value: float) -> float:
        part = math.log(value / self.low) / math.log(self.high / self.low)
        return round(self.bottom - CHART * part, 1)


def apart(wanted: Sequence[float], top: float, bottom: float) -> list[float]:
    """Move names up and down until none is on another; `wanted` is from the top down."""
    places: list[float] = []
    for y in wanted:
        places.append(max(y, places[-1] + LINE if places else top))
    for at in reversed(range(len(places))):
        places[at] = min(places[at], bottom)
        bottom = places[at] - LINE
    return places


# The picture --------------------------------------------------------------------------------------


def in_words(found: Measured, body: str) -> str:
    """Return in words what the picture shows, for readers who cannot see it."""
    names, parts = zip(*found.ladder)
    ladder = ", ".join(f"{name} {percent} %" for name, percent in zip(names, percents(parts)))
    return (
        f"Ratios of one run of the benchmark, {body} bodies, by the number of clients; TLS 1.2 "
        f"with as many is 1. Rounds a second: {curves_in_words(found.speed)}. Median latency: "
        f"{curves_in_words(found.latency)}. {growth_in_words(found.growth)} A round of ours "
        f"with 1 client: {ladder}."
    )


def growth_in_words(growth: Mapping[int, float]) -> str:
    """Return how the reference latency grows with the clients: a round waits for all of them."""
    fewest, *more = growth
    if not more:
        return f"TLS 1.2 was measured with {plural(fewest, 'client')} only."
    clients = ", ".join(map(str, more[-3:]))
    times = ", ".join(f"{growth[n]:.{1 if growth[n] < 10 else 0}f}" for n in more[-3:])
    return f"TLS 1.2 itself with {clients}: {times} times that with {fewest}."


def curves_in_words(curves: Curves) -> str:
    return "; ".join(
        f"{NAMES[rival]} "
        + ", ".join(
            f"{dot.value:.{2 if dot.value < 100 else 0}f} with {clients}"
            for clients, dot in dots.items()
        )
        for rival, dots in curves.items()
    )


class Plot(Picture):
    """The SVG."""

    def __init__(self, height: int, title: str, description: str) -> None:
        super().__init__(WIDTH, height, "plot", title, description, COLOURS, STYLE)

    def heading(self, top: float, title: str, note: str) -> None:
        self.write(MARGIN, top + 18, title, "ink title")
        self.write(MARGIN, top + 40, note, "soft")

    def chart(self, top: float, curves: Curves) -> None:
        """Draw one line a rival, over columns for the numbers of clients."""
        columns = sorted({clients for dots in curves.values() for clients in dots})
        axis = Axis(curves, top)
        for tick in axis.ticks:
            self.stroke(LEFT, axis.y(tick), RIGHT, axis.y(tick), "one" if tick == 1 else "line")
            self.write(LEFT - 8, axis.y(tick) + 5, f"{tick:g}", "soft", "end")
        wide = (RIGHT - LEFT) / len(columns)
        places = {clients: LEFT + wide * (at + 0.5) for at, clients in enumerate(columns)}
        for clients, x in places.items():
            self.write(x, axis.bottom + 20, str(clients), "soft", "middle")
        self.write((LEFT + RIGHT) / 2, axis.bottom + 40, "clients", "soft", "middle")
        ends: dict[str, tuple[float, float]] = {}
        beside = min(BESIDE, wide / (len(curves) + 1))
        for at, (rival, dots) in enumerate(curves.items()):
            aside = beside * (at - (len(curves) - 1) / 2)
            ends[rival] = self.curve(
                rival,
                [(round(places[clients] + aside, 1), dot) for clients, dot in dots.items()],
                axis,
            )
        self.names(ends, axis)

    def curve(
        self, rival: str, dots: Sequence[tuple[float, Dot]], axis: Axis
    ) -> tuple[float, float]:
        """Draw the line of one rival, and return where it ends."""
        ways = " L".join(f"{x},{axis.y(dot.value)}" for x, dot in dots)
        self._put("path", d=f"M{ways}", class_=f"curve {rival}")
        for x, dot in dots:
            self.stroke(x, axis.y(dot.low), x, axis.y(dot.high), f"range {rival}")
            self.mark(rival, x, axis.y(dot.value))
        return dots[-1][0], axis.y(dots[-1][1].value)

    def mark(self, rival: str, x: float, y: float) -> None:
        self._put("path", d=MARKS[rival], transform=f"translate({x},{y})", class_=rival)

    def names(self, ends: Mapping[str, tuple[float, float]], axis: Axis) -> None:
        """Write each rival's name where its line ends, or as near as there is room."""
        order = sorted(ends, key=lambda rival: ends[rival][1])
        lines = apart([ends[rival][1] for rival in order], axis.top, axis.bottom)
        for rival, y in zip(order, lines):
            self.stroke(*ends[rival], RIGHT + 14, y, f"leader {rival}")
            self.mark(rival, RIGHT + 22, y)
            self.write(RIGHT + 34, y + 5, NAMES[rival], f"ink name-{rival}")

    def ladder(self, top: float, rungs: Sequence[tuple[str, float]]) -> None:
        """Draw a step a rung: each begins where the last one ended."""
        ends = [sum(share for _, share in rungs[:at]) for at in range(len(rungs) + 1)]
        least = min(ends)
        most = max(ends)
        wide = (LADDER_RIGHT - LADDER_LEFT) / (most - least)
        places = [round(LADDER_LEFT + wide * (end - least), 1) for end in ends]
        told = percents([share for _, share in rungs])
        for at, (name, _) in enumerate(rungs):
            y = top + RUNG * at
            (left, right) = sorted(places[at : at + 2])
            if name != rungs[-1][0]:
                self.stroke(places[at + 1], y, places[at + 1], y + 2 * RUNG - 6, "line")
            self._put(
                "rect",
                x=left,
                y=y,
                width=max(round(right - left, 1), 1),
                height=RUNG - 6,
                class_="ours" if name == "the rest" else "piece",
            )
            self.write(LADDER_LEFT - 10, y + 16, name, "ink", "end")
            self.write(right + 8, y + 16, f"{told[at]} %")


def plot(found: Measured, body: str) -> str:
    """Return the picture."""
    panel = HEAD + CHART + FEET
    third = 2 * panel + 20  # with the line about growth above it
    height = third + HEAD + RUNG * len(found.ladder) + 2 * MARGIN
    svg = Plot(height, f"Our channel beside TLS, {body} bodies", in_words(found, body))
    svg.heading(
        MARGIN,
        f"Rounds a second: TLS 1.2 is 1 ({body} bodies)",
        "Higher is faster; log scale. Upright lines: quartiles of the turns.",
    )
    svg.chart(MARGIN + HEAD, found.speed)
    svg.heading(
        MARGIN + panel,
        f"Latency of a round: TLS 1.2 is 1 ({body} bodies)",
        "Lower is faster; log scale. Marks: median; upright lines: to p99.",
    )
    svg.chart(MARGIN + panel + HEAD, found.latency)
    svg.write(MARGIN, MARGIN + 2 * panel - FEET + 64, growth_in_words(found.growth), "soft")
    svg.heading(
        MARGIN + third,
        f"What a round of ours is made of ({body} bodies)",
        "1 client. The rest: checks, states, deadlines, calling it all.",
    )
    svg.ladder(MARGIN + third + HEAD, found.ladder)
    return svg.done() + "\n"


def main() -> int:
    parser = Parser("Draws what the benchmark found, as an SVG.")
    parser.add_argument(
        "bench", type=Path, metavar="BENCH", help="a file of python3 run.py bench --json"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=output_path,
        default="bench.svg",
        metavar="FILE",
        help="default bench.svg",
    )
    parser.add_argument("--body", default="small", choices=[*BODIES], help="default small")
    options = parser.options()
    keep_inputs(options.output, options.bench)
    text = plot(read_bench(options.bench, options.body), options.body)
    write_whole(options.output, text.encode("ascii"))
    print(f"wrote {escaped(str(options.output))}")
    return 0


if __name__ == "__main__":
    run_program(main)
