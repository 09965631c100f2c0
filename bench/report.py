"""What the benchmark prints: tables, ratios, bars and the ladder, in ASCII of 80 columns; JSON.

A ratio compares two slices that ran side by side, in the same turn; what is shown is the median of
the turns, and their quartiles in brackets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

from bench.ladder import Rung, floor
from bench.measure import BAR, Slice, Spread, bars, ratio
from bench.slices import Case
from program import plural

NAMES = {
    "plain": "plain TCP",
    "floor": "floor",
    "tls12": "TLS 1.2",
    "tls13": "TLS 1.3",
    "over_tls": "ours/TLS",
    "ours": "ours",
}
HEAD = (
    "           rounds/s    MB/s  p50 us    p99 us server   both  of TLS 1.2\n"
    "                                            processor us"
)


class Figure(NamedTuple):
    """One case in numbers. Times are in seconds; ratios are of rounds a second."""

    rounds: int
    rounds_per_s: float
    mb_per_s: float
    p50_s: float
    p99_s: float
    server_s: float  # processor time a round
    client_s: float
    of_tls12: Spread | None


def figure(slices: Sequence[Slice], tls12: Sequence[Slice], round_bytes: int) -> Figure:
    """Return the numbers of one case; `tls12` are the slices of TLS 1.2 in the same turns."""
    latencies = sorted(latency for piece in slices for latency in piece.latencies_s)
    rates = [piece.rate for piece in slices]
    return Figure(
        sum(piece.rounds for piece in slices),
        median(rates),
        median(rates) * round_bytes / 1e6,
        latencies[len(latencies) // 2],
        latencies[len(latencies) * 99 // 100],
        median(piece.server_s for piece in slices),
        median(piece.client_s for piece in slices),
        ratio(rates, [piece.rate for piece in tls12]) if tls12 else None,
    )


def table(
    clients: int,
    body: str,
    sizes: tuple[int, int],
    figures: Mapping[str, Figure],
    channels: Mapping[str, str],
) -> str:
    """Return the table and the bars for one number of clients and one body."""
    title = (
        f"{plural(clients, 'client')}, {body} bodies: {sizes[0]:,} bytes there, {sizes[1]:,} back"
    )
    rows = [row(NAMES[rival], each) for rival, each in figures.items()]
    drawn = bars({NAMES[rival]: each.rounds_per_s for rival, each in figures.items()}, 10)
    notes = [f"{NAMES[rival]}: {channels[rival]}" for rival in figures if rival != "plain"]
    return "\n".join([title, "-" * len(title), *notes, "", HEAD, *rows, "", *drawn, ""])


def row(name: str, each: Figure) -> str:
    both_s = each.server_s + each.client_s
    return (
        f"{name:9} {each.rounds_per_s:9,.0f} {each.mb_per_s:7,.1f} {each.p50_s * 1e6:7,.0f} "
        f"{each.p99_s * 1e6:9,.0f} {each.server_s * 1e6:6,.0f} {both_s * 1e6:6,.0f}  "
        f"{each.of_tls12 or '-'}"
    )


def growth(figures: Mapping[Case, Figure]) -> str:
    """Return how the processor time of a round grows with the clients, as ratios to one client."""
    lines = []
    for case, each in figures.items():
        one = figures.get(case._replace(clients=1))
        one_s = one.server_s + one.client_s if one else 0.0  # 0: less than a tick of its clock
        if one_s > 0 and case.clients > 1:
            times = (each.server_s + each.client_s) / one_s
            lines.append(
                f"{NAMES[case.rival]:10} {case.body:6} {case.clients:4} clients  "
                f"|{'#' * min(30, round(10 * times)):30}| {times:.2f}"
            )
    title = "Processor time a round, of that with one client (# is a tenth)"
    return "\n".join([title, *lines, ""]) if lines else ""


def ladder(body: str, rungs: Sequence[Rung], tls12_s: float, floor_s: float) -> str:
    """Return the ladder of one round, and what is left of it without the rest."""
    lines = []
    ours_s = sum(rung.seconds for rung in rungs)
    for rung in rungs:
        bar = "#" * max(0, round(BAR * min(1.0, rung.share)))
        lines.append(
            f"{rung.name:10} |{bar:{BAR}}| {rung.seconds * 1e6:8,.1f} us {rung.share:4.0%}"
        )
    least = floor(rungs)
    return "\n".join(
        [
            f"Cost ladder of one round of ours, 1 client, {body} bodies",
            *lines,
            f"Of the rounds of TLS 1.2 that is {tls12_s / ours_s:.2f}; "
            f"without the rest it would be {tls12_s / least:.2f},",
            "and it is "
            f"{tls12_s / floor_s:.2f} when the same pieces run as real rounds (the floor).",
            "",
        ]
    )
