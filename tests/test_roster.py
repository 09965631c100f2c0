"""The rules of who is connected and of when an epoch closes: pure objects, and no time passes."""

from __future__ import annotations

import ast
import inspect
import math
import sys
from typing import Any

import pytest

from channel import EndRequested
from protocol_fsm import MAX_BODY, Status
from server import Connection, Contribution, Epochs, Roster, compute_aggregation
from tests.properties import given, st

WINDOW_S = 1.0


class Caller:
    """A connection in memory, which notes what it is told."""

    def __init__(self, client_id: int = 1) -> None:
        self.client_id = client_id
        self.hello_number = 0
        self.told: list[tuple[str, Status]] = []

    def request_end(self, status: Status) -> None:
        self.told.append(("end", status))

    def send_away(self, status: Status) -> None:
        self.told.append(("away", status))


def arrived(roster: Roster[Caller], *client_ids: int) -> list[Caller]:
    """Return strangers that have said HELLO in this order."""
    callers = [Caller(client_id) for client_id in client_ids]
    for caller in callers:
        roster.arrive(caller)
        roster.number_hello(caller)
    return callers


@pytest.mark.parametrize("rules", [Roster, Epochs], ids=lambda rules: rules.__name__)
def test_the_rules_know_no_clock_no_lock_and_no_socket(rules: type) -> None:
    tree = ast.parse(inspect.getsource(rules))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not used & {"time", "threading", "socket"}


# Who is connected


def test_one_stranger_too_many_sends_the_oldest_away_and_no_member() -> None:
    roster = Roster[Caller](2)
    (member,) = arrived(roster, 1)
    roster.establish(member)
    first, second, third = arrived(roster, 2, 3, 4)
    assert first.told == [("away", Status.TIMEOUT)]
    assert roster.strangers == [second, third]
    assert [member.told, second.told, third.told] == [[], [], []]
    assert roster.members == {1: member}


def test_a_stranger_is_sent_away_by_age_and_not_by_its_hello() -> None:
    roster = Roster[Caller](2)
    silent = Caller(0)
    roster.arrive(silent)
    arrived(roster, 1, 2)
    assert silent.told == [("away", Status.TIMEOUT)]


def test_a_stranger_that_has_left_or_was_established_frees_its_place() -> None:
    roster = Roster[Caller](2)
    first, second = arrived(roster, 1, 2)
    assert not roster.leave(first)
    assert roster.strangers == [second]
    roster.establish(second)
    third, fourth = arrived(roster, 3, 4)
    assert roster.strangers == [third, fourth]
    assert third.told == []


def test_a_later_session_ends_the_older_one_of_its_id_and_no_other() -> None:
    roster = Roster[Caller](9)
    other, older, newer = arrived(roster, 2, 1, 1)
    roster.establish(other)
    roster.establish(older)
    assert older.told == []
    roster.establish(newer)
    assert older.told == [("end", Status.REPLACED)]
    assert (other.told, newer.told) == ([], [])
    assert roster.members == {2: other, 1: newer}
    assert roster.strangers == []


def test_a_session_of_an_older_hello_is_replaced_itself_and_changes_nothing() -> None:
    roster = Roster[Caller](9)
    held, newer = arrived(roster, 1, 1)
    roster.establish(newer)
    with pytest.raises(EndRequested) as caught:
        roster.establish(held)
    assert caught.value.status is Status.REPLACED
    assert roster.members == {1: newer}
    assert newer.told == []
    assert roster.strangers == [held], "until its owner lets it leave"


def test_the_order_is_that_of_the_hellos_and_not_of_the_connections() -> None:
    roster = Roster[Caller](9)
    first, second = Caller(), Caller()
    roster.arrive(first)
    roster.arrive(second)
    roster.number_hello(second)
    roster.number_hello(first)
    assert 0 < second.hello_number < first.hello_number
    roster.establish(first)
    with pytest.raises(EndRequested):
        roster.establish(second)


def test_the_order_of_hellos_is_remembered_after_the_newer_session_has_left() -> None:
    roster = Roster[Caller](9)
    held, newer = arrived(roster, 1, 1)
    roster.establish(newer)
    assert roster.leave(newer)
    assert roster.members == {}
    with pytest.raises(EndRequested):
        roster.establish(held)
    (newest,) = arrived(roster, 1)
    roster.establish(newest)
    assert roster.members == {1: newest}


def test_a_hello_without_a_report_displaces_nobody_later() -> None:
    """A replayed CLIENT_HELLO, say: only what was established counts."""
    roster = Roster[Caller](9)
    older, replayed = arrived(roster, 1, 1)
    assert not roster.leave(replayed)
    roster.establish(older)
    assert roster.members == {1: older}


def test_a_replaced_session_that_leaves_late_removes_nothing_of_the_newer_one() -> None:
    roster = Roster[Caller](9)
    older, newer = arrived(roster, 1, 1)
    roster.establish(older)
    roster.establish(newer)
    assert not roster.leave(older)
    assert roster.members == {1: newer}
    assert roster.leave(newer)
    assert not roster.leave(newer), "once"


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.sampled_from(["arrive", "hello", "establish", "leave"]), st.integers(0))),
)
def test_there_is_one_member_for_an_id_and_never_an_older_one(
    most: int, steps: list[tuple[str, int]]
) -> None:
    roster = Roster[Caller](most)
    callers: list[Caller] = []
    newest: dict[int, int] = {}
    for step, choice in steps:
        if step == "arrive":
            callers.append(Caller(choice % 3))
            roster.arrive(callers[-1])
        alive = [each for each in callers if not each.told]
        caller = alive[choice % len(alive)] if alive else Caller()
        is_stranger = caller in roster.strangers
        if step == "hello" and is_stranger and not caller.hello_number:
            roster.number_hello(caller)
        elif step == "establish" and is_stranger and caller.hello_number:
            may = caller.hello_number > newest.get(caller.client_id, 0)
            try:
                roster.establish(caller)
            except EndRequested:
                assert not may
                caller.told.append(("end", Status.REPLACED))
            else:
                assert may
                newest[caller.client_id] = caller.hello_number
                assert roster.members[caller.client_id] is caller
        elif step == "leave":
            was_member = roster.members.get(caller.client_id) is caller
            assert roster.leave(caller) is was_member
            assert caller not in roster.strangers
        assert len(roster.strangers) <= most
        assert not {id(each) for each in roster.strangers} & {*map(id, roster.members.values())}
        for client_id, member in roster.members.items():
            assert member.client_id == client_id
            assert member.hello_number == newest[client_id]
            assert not member.told


# Epochs


def new_epochs(aggregation: Any = compute_aggregation) -> Epochs:
    return Epochs(WINDOW_S, aggregation)


def give(
    epochs: Epochs, client_id: int, *readings: float, now: float = 0.0, giver: Any = None
) -> Connection:
    """Enter a contribution of round 7, and return who gave it."""
    giver = giver or Caller(client_id)
    epochs.contribute(Contribution(giver, 7, readings), now)
    return giver  # type: ignore[no-any-return]


def member_ids(epochs: Epochs, now: float) -> list[int] | None:
    """Return who was in the epoch that closes now; None if none does."""
    epoch = epochs.close_if_due(now)
    if epoch is None:
        return None
    assert epoch.answers is not None
    assert epoch.answers.keys() == epoch.contributions.keys()
    return sorted(epoch.answers)


def after_an_epoch_of(*client_ids: int) -> Epochs:
    """Return epochs of which the first has closed, with these members."""
    epochs = new_epochs()
    for client_id in client_ids:
        give(epochs, client_id, 1.0, now=-WINDOW_S)
    assert member_ids(epochs, -WINDOW_S) == sorted(client_ids)
    return epochs


def test_without_a_contribution_no_epoch_closes_however_late() -> None:
    assert new_epochs().close_if_due(math.inf) is None


def test_the_first_epoch_closes_at_its_first_contribution() -> None:
    epochs = new_epochs()
    give(epochs, 3, 20.0, 22.0)
    epoch = epochs.close_if_due(0.0)
    assert epoch is not None
    assert epoch.number == 1
    assert epoch.answers is not None
    assert epoch.answers[3].aggregate == {
        "epoch": 1,
        "round": 7,
        "participants": [3],
        "count": 2,
        "sum": 42.0,
        "mean": 21.0,
        "min": 20.0,
        "max": 22.0,
        "own_count": 2,
        "own_sum": 42.0,
        "own_share": 1.0,
    }


def test_an_epoch_waits_for_the_members_of_the_last_one() -> None:
    epochs = after_an_epoch_of(1, 2, 3)
    give(epochs, 1)
    give(epochs, 3)
    assert member_ids(epochs, 0.0) is None
    give(epochs, 4)
    assert member_ids(epochs, 0.0) is None, "who is new does not stand for who is missing"
    give(epochs, 2)
    assert member_ids(epochs, 0.0) == [1, 2, 3, 4]


def test_an_epoch_waits_no_longer_than_the_window_after_its_first_contribution() -> None:
    epochs = after_an_epoch_of(1, 2, 3)
    give(epochs, 1, now=10.0)
    give(epochs, 2, now=10.0 + WINDOW_S * 0.9)
    assert member_ids(epochs, 10.0 + WINDOW_S * 0.99) is None
    assert epochs.current.deadline == 10.0 + WINDOW_S, "not of the last contribution"
    assert member_ids(epochs, 10.0 + WINDOW_S) == [1, 2]


def test_who_misses_an_epoch_is_not_waited_for_until_it_contributes_again() -> None:
    epochs = after_an_epoch_of(1, 2)
    give(epochs, 1)
    assert member_ids(epochs, WINDOW_S) == [1]
    give(epochs, 1, now=2.0)
    assert member_ids(epochs, 2.0) == [1], "at once"
    give(epochs, 2, now=3.0)
    assert member_ids(epochs, 3.0) is None
    give(epochs, 1, now=3.0)
    assert member_ids(epochs, 3.0) == [1, 2]
    give(epochs, 1, now=4.0)
    assert member_ids(epochs, 4.0) is None, "and is waited for again"


def test_who_has_left_is_not_waited_for() -> None:
    epochs = after_an_epoch_of(1, 2)
    give(epochs, 1)
    epochs.expect_no_more(2)
    assert member_ids(epochs, 0.0) == [1]
    epochs.expect_no_more(77)  # who never was there


def test_a_report_that_comes_late_goes_into_the_next_epoch() -> None:
    epochs = after_an_epoch_of(1, 2)
    give(epochs, 1)
    assert member_ids(epochs, WINDOW_S) == [1]
    give(epochs, 2, 5.0, now=WINDOW_S)
    assert epochs.current.number == 3
    assert [*epochs.current.contributions] == [2]


def test_of_one_client_the_newer_report_counts() -> None:
    epochs = after_an_epoch_of(1, 2)
    give(epochs, 1, 100.0)
    give(epochs, 1, 7.0, now=0.5)
    give(epochs, 2, 1.0)
    epoch = epochs.close_if_due(0.5)
    assert epoch is not None
    assert (epoch.aggregate["sum"], epoch.aggregate["count"]) == (8.0, 2)


def test_a_session_withdraws_its_own_contribution_and_no_newer_one() -> None:
    epochs = after_an_epoch_of(1, 2)
    older = give(epochs, 1, 100.0)
    newer = give(epochs, 1, 7.0)
    epochs.withdraw(older)
    assert epochs.current.contributions[1].readings == (7.0,)
    epochs.withdraw(newer)
    assert epochs.current.contributions == {}
    epochs.withdraw(newer)


def test_an_epoch_that_all_have_left_opens_again_with_its_next_contribution() -> None:
    epochs = after_an_epoch_of(1, 2)
    epochs.withdraw(give(epochs, 1))
    assert epochs.close_if_due(math.inf) is None
    give(epochs, 2, now=50.0)
    assert epochs.current.number == 2
    assert epochs.current.deadline == 50.0 + WINDOW_S
    assert member_ids(epochs, 50.0) is None


def test_nothing_is_withdrawn_from_an_epoch_that_has_closed() -> None:
    epochs = new_epochs()
    giver = give(epochs, 1, 5.0)
    epoch = epochs.close_if_due(0.0)
    epochs.withdraw(giver)
    assert epoch is not None
    assert [*epoch.contributions] == [1]


def test_members_are_told_the_same_but_for_their_own_part() -> None:
    epochs = new_epochs()
    give(epochs, 1, 1.0, 2.0)
    give(epochs, 2, 3.0)
    epoch = epochs.close_if_due(0.0)
    assert epoch is not None
    assert epoch.answers is not None
    first, second = ({**epoch.answers[n].aggregate} for n in (1, 2))
    assert [first.pop(f"own_{name}") for name in ("count", "sum", "share")] == [2, 3.0, 0.5]
    assert [second.pop(f"own_{name}") for name in ("count", "sum", "share")] == [1, 3.0, 0.5]
    assert first == second


def test_an_aggregation_cannot_change_what_was_reported_nor_anybodys_own_part() -> None:
    def meddling(contributions: Any) -> dict[str, Any]:
        for values in contributions.values():
            values.clear()
        contributions.clear()
        contributions[99] = [5.0]
        return {"epoch": -7, "round": 99, "own_sum": 0.5, "of": "its own"}

    epochs = new_epochs(meddling)
    give(epochs, 1, 4.0, 6.0)
    epoch = epochs.close_if_due(0.0)
    assert epoch is not None
    assert epoch.answers is not None
    own: dict[str, object] = {"own_count": 2, "own_sum": 10.0, "own_share": 1.0}
    assert epoch.answers[1].aggregate == {"epoch": 1, "round": 7, "of": "its own", **own}
    assert epoch.contributions[1].readings == (4.0, 6.0)


@pytest.mark.parametrize(
    "aggregation",
    [
        lambda _: 1 / 0,
        lambda _: sys.exit("out of class"),
        lambda _: {"x": math.nan},
        lambda _: {"x": 10**400},
        lambda _: {"x": True},
        lambda _: {"x": "\ud800"},
        lambda _: {"x": "y" * 70_000},
        lambda _: None,
        lambda _: {"x": {"nested": 1}},
        lambda _: {1: 2},
        lambda _: {1: {2}},
    ],
    ids=[
        "raises",
        "exits",
        "NaN",
        "huge",
        "True",
        "half a character",
        "too large",
        "None",
        "nested",
        "a number for a name",
        "no JSON",
    ],
)
def test_a_failing_aggregation_leaves_its_epoch_without_an_answer_and_no_other(
    aggregation: Any, caplog: pytest.LogCaptureFixture
) -> None:
    epochs = new_epochs(lambda c: aggregation(c) if 2 in c else compute_aggregation(c))
    give(epochs, 1)
    give(epochs, 2, 1 / 3, -1e15 / 3)
    epoch = epochs.close_if_due(0.0)
    assert epoch is not None
    assert (epoch.aggregate, epoch.answers) == ({}, {})
    assert "epoch 1 has no aggregate" in caplog.text
    assert "Traceback" in caplog.text
    give(epochs, 1)
    assert member_ids(epochs, WINDOW_S / 2) is None, "its members are waited for"
    epochs.expect_no_more(2)
    assert member_ids(epochs, 0.0) == [1]


@pytest.mark.parametrize("has_room", [True, False])
def test_an_answer_that_one_member_cannot_get_nobody_gets(has_room: bool) -> None:
    """Of the same text, the longer own part of client 2 fits no longer."""
    text = ""
    epochs = new_epochs(lambda _: {"text": text})
    give(epochs, 1)
    give(epochs, 2, 1 / 3, -1e15 / 3)
    trial = epochs._answers(epochs.current)
    shorter, longer = (len(trial[n].body) for n in (1, 2))
    assert shorter < longer
    text = "x" * (MAX_BODY - (longer if has_room else shorter))
    epoch = epochs.close_if_due(0.0)
    assert epoch is not None
    assert epoch.answers is not None
    assert sorted(epoch.answers) == ([1, 2] if has_room else [])


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["give", "withdraw", "expect no more", "wait"]), st.integers(1, 4)
        ),
        max_size=40,
    )
)
def test_epochs_are_numbered_in_turn_and_each_has_who_contributed_since_the_last(
    steps: list[tuple[str, int]],
) -> None:
    epochs = new_epochs()
    now = 0.0
    given_since: dict[int, Connection] = {}
    opened = 0.0
    number = 1
    for step, client_id in steps:
        if step == "give":
            opened = opened if given_since else now
            given_since[client_id] = give(epochs, client_id, 1.0, now=now)
        elif step == "withdraw" and client_id in given_since:
            epochs.withdraw(given_since.pop(client_id))
        elif step == "expect no more":
            epochs.expect_no_more(client_id)
        else:
            now += WINDOW_S / 3
        epoch = epochs.close_if_due(now)
        if epoch is None:
            assert not given_since or now < opened + WINDOW_S
            continue
        assert epoch.number == number
        assert epoch.aggregate["participants"] == sorted(given_since)
        given_since.clear()
        number += 1
