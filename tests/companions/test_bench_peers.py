"""The benchmark of peer messaging: what it counts and prints. Nothing is timed here."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.measure import Failed
from bench.peers import NAMES, Sender, Work, works
from companions.peer_messaging.peer import Event
from protocol_fsm import BadTag
from tests.programs import measured


def test_both_ways_are_measured_with_texts_of_both_sizes() -> None:
    assert works(5_000) == {
        "stream: 5,000 texts of 100 bytes": Work(100, 5_000, 100),
        "round trip: 1,000 texts of 100 bytes": Work(100, 1_000, 1),
        "stream: 5,000 texts of 4,000 bytes": Work(4_000, 5_000, 100),
        "round trip: 1,000 texts of 4,000 bytes": Work(4_000, 1_000, 1),
    }
    assert [work.texts for work in works(1).values()] == [1] * 4


class Mirror:
    """A node that has a receipt for each text at once, and counts them."""

    def __init__(self, sender: Sender) -> None:
        self.sender = sender
        self.said = 0

    def say(self, text: str) -> None:
        self.said += 1
        self.sender.tell(Event("receipt", number=self.said))


def test_every_text_of_a_measurement_has_its_receipt_before_the_clock_stops() -> None:
    for count, window in ((7, 1), (250, 100), (3, 100)):
        sender = Sender(Work(10, count, window))
        sender.node = mirror = Mirror(sender)  # type: ignore[assignment]
        sender(count)
        assert mirror.said == count
        assert sender._receipts.empty()


@pytest.mark.parametrize("event", [Event("ended"), Event("refused", error=BadTag())])
def test_a_session_that_does_not_last_is_no_measurement(event: Event) -> None:
    sender = Sender(Work(1, 1, 1))
    sender.tell(Event("refused", error=BadTag()))  # while they meet, both may begin at once
    sender.tell(Event("met"))
    with pytest.raises(Failed, match="did not last"):
        sender.tell(event)


@pytest.mark.slow
def test_all_rivals_exchange_texts_and_the_numbers_are_written(tmp_path: Path) -> None:
    titles = works(50)
    _, numbers = measured("peers", tmp_path, "--texts 50 --turns 1", [])
    for title in titles:
        assert [*numbers[title]["ours_of"]] == [*NAMES]
        for slices in numbers[title]["slices"].values():
            assert slices[0]["wall_s"] > 0
