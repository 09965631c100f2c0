"""The benchmark of peer messaging: what it counts and prints. Nothing is timed here."""

from __future__ import annotations

import queue
from pathlib import Path

import pytest

from bench.measure import BAR, Failed, Moment
from bench.peers import NAMES, WARM_UP, WORK, Sender, Slice, count_of, of, table, total
from companions.peer_messaging.peer import Event
from protocol_fsm import BadTag
from tests.programs import measured


def took(wall_s: float) -> Slice:
    return Slice(dict.fromkeys(WORK, Moment(wall_s, wall_s / 2)), wall_s / 4)


def test_a_ratio_is_of_speeds_in_the_same_turn() -> None:
    ours = [took(2.0), took(4.0), took(40.0)]
    theirs = [took(1.0), took(3.0), took(10.0)]
    assert of(ours, theirs, WORK[0]) == (0.5, 0.375, 0.625)
    assert of(ours, ours, WORK[0]) == (1.0, 1.0, 1.0)


def test_the_table_names_all_fits_a_terminal_and_bars_show_speed() -> None:
    seen = {rival: [took(n / 1e4)] * 2 for n, rival in enumerate(NAMES, 1)}
    lines = table(WORK[1], 5_000, seen).splitlines()
    assert lines[0] == "round trip: 1,000 texts of 100 bytes"
    assert max(map(len, lines)) <= 79
    assert "\n".join(lines).isascii()
    rows = {
        name: [line for line in lines if line.startswith(f"{name:13} ")] for name in NAMES.values()
    }
    assert [len(each) for each in rows.values()] == [2] * len(NAMES)
    assert rows["plain ZeroMQ"][0].split()[2:] == ["10,000", "100.0", "50.0", "0.33", "(0.33-0.33)"]
    assert rows["ours"][0].split() == ["ours", "3,333", "300.0", "150.0"]
    assert rows["plain ZeroMQ"][1].count("#") == BAR == 2 * rows["ZeroMQ CURVE"][1].count("#")


def test_a_receiver_waits_for_as_many_texts_as_a_sender_sends() -> None:
    assert total(50) == sum(WARM_UP + count_of(work, 50) for work in WORK)
    assert [count_of(work, 1) for work in WORK] == [1] * len(WORK)


class Mirror:
    """A node that has a receipt for each text at once, and remembers how many it had not."""

    def __init__(self, sender: Sender) -> None:
        self.sender = sender
        self.said = 0
        self.held = queue.Queue[int]()

    def say(self, text: str) -> None:
        self.said += 1
        self.sender.tell(Event("receipt", number=self.said))


def test_every_text_of_a_measurement_has_its_receipt_before_the_clock_stops() -> None:
    sender = Sender()
    mirror = Mirror(sender)
    sender.node = mirror  # type: ignore[assignment]
    for count, window in ((7, 1), (250, 100), (3, 100)):
        mirror.said = 0
        sender(count, 10, window)
        assert mirror.said == count
        assert sender._receipts.empty()


@pytest.mark.parametrize("event", [Event("ended"), Event("refused", error=BadTag())])
def test_a_session_that_does_not_last_is_no_measurement(event: Event) -> None:
    sender = Sender()
    sender.tell(Event("refused", error=BadTag()))  # while they meet, both may begin at once
    sender.tell(Event("met"))
    with pytest.raises(Failed, match="did not last"):
        sender.tell(event)


@pytest.mark.slow
def test_all_rivals_exchange_texts_and_the_numbers_are_written(tmp_path: Path) -> None:
    _, numbers = measured("peers", tmp_path, "--texts 50 --turns 1")
    assert {rival: len(slices) for rival, slices in numbers["slices"].items()} == dict.fromkeys(
        NAMES, 1
    )
    assert all(
        took["wall_s"] > 0
        for slices in numbers["slices"].values()
        for one in slices
        for took in one["sender"].values()
    )
