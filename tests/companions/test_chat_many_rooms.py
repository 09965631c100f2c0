"""secure_chat: several rooms on one server, which come and go with those who are in them."""

from __future__ import annotations

import argparse
import socket
from pathlib import Path

import pytest

from companions.asymmetric import PrivateKey
from companions.secure_chat.client import Client, Joined, Talk, room_name
from companions.secure_chat.evidence import Kept
from companions.secure_chat.options import require_folder
from companions.secure_chat.protocol import Kind, Message, PeerEnded
from companions.secure_chat.rooms import LOBBY, MAX_ROOM_NAME
from companions.secure_chat.verify import compare
from program import UserError
from protocol_fsm import ConnectionCut
from tests.companions.chat_helpers import ALICE, BOB
from tests.companions.chat_programs import LIMIT_S, PASSWORDS, House, Typed, hear, say

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.mark.slow
def test_texts_of_one_room_are_heard_in_no_other(house: House) -> None:
    with house.members() as (alice, bob):
        bob.settle()
        bob.join("blue")
        for number in range(3):
            alice.say(f"in {LOBBY}, {number}")
            bob.say(f"in blue, {number}")
        assert [hear(alice) for _ in range(3)] == [f"in {LOBBY}, {number}" for number in range(3)]
        assert [hear(bob) for _ in range(3)] == [f"in blue, {number}" for number in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize("is_full", [False, True], ids=["", "on a full disk"])
def test_room_can_only_be_left_by_its_name(
    house: House, monkeypatch: pytest.MonkeyPatch, is_full: bool
) -> None:
    """A disk that keeps no evidence hides no violation from the peer."""

    def keep(_: object) -> None:
        raise UserError("there is no room on the disk")

    with house.member() as alice:
        if is_full:
            monkeypatch.setattr("companions.secure_chat.server.Connection._keep_evidence", keep)
        alice.channel.send(Message(Kind.LEAVE, {"room": "blue"}))
        with pytest.raises(PeerEnded, match="violation"):
            alice.hear(LIMIT_S)


@pytest.mark.slow
def test_session_has_a_receipt_for_each_room_it_was_in(house: House) -> None:
    with house.member() as alice:
        kept: list[Kept] = []
        for room in (LOBBY, "blue"):
            if kept:
                alice.join(room)
            say(alice, f"in {room}")
            kept.append(alice.settle())
    rooms = [[message.room for message in house.judged(one).messages.values()] for one in kept]
    assert rooms == [[LOBBY], ["blue"]]
    server = house.folder / "server"
    assert len(list(server.glob("receipt_*_server.json"))) == 2
    assert len(list(server.glob("room_lobby_*.txt")) + list(server.glob("room_blue_*.txt"))) == 2


@pytest.mark.slow
def test_late_member_goes_on_from_the_head_and_both_tell_one_history(house: House) -> None:
    with house.member(room="blue") as alice:
        for text in ("one", "two"):
            say(alice, text)
        with house.member(BOB, 3, "blue") as bob:
            assert (bob.seat.room.index, bob.seat.room.head) == (2, alice.seat.room.head)
            assert isinstance(alice.hear(LIMIT_S), Joined)
            say(alice, "three", bob)
            ours, theirs = (house.judged(one.settle()) for one in (alice, bob))
    assert [*theirs.messages] == [2]
    compare(ours.lines, theirs.lines)


@pytest.mark.slow
def test_empty_room_goes_and_its_name_begins_a_new_one(house: House) -> None:
    with house.member(room="blue") as alice:
        say(alice, "one")
        start = alice.seat.room.start
        first = house.judged(alice.settle())
        assert not house.server._rooms
        with house.member(BOB, 3, "blue") as bob:
            assert bob.seat.room.index == 0
            assert bob.seat.room.start != start
            say(bob, "two")
            compare(first.lines, house.judged(bob.settle()).lines)  # two rooms, and no lie


@pytest.mark.slow
def test_room_stays_as_long_as_one_is_in_it(house: House) -> None:
    with house.members() as (alice, bob):
        alice.settle()
        say(bob, "alone")
        [room] = house.server._rooms.values()
        assert (room.name, room.guests) == (LOBBY, 1)


@pytest.mark.slow
def test_room_of_a_member_that_is_cut_off_goes_too(house: House) -> None:
    with house.member(room="blue") as alice:
        alice.channel._sock.shutdown(socket.SHUT_RDWR)
        house.await_record(lambda record: record.what == "end")
        assert not house.server._rooms
        with pytest.raises(ConnectionCut):
            alice.hear(LIMIT_S)


@pytest.mark.slow
def test_rooms_are_bounded_and_a_refused_one_harms_nobody(
    keys: list[PrivateKey], tmp_path: Path
) -> None:
    with House(keys, tmp_path).open(max_rooms=1) as house, house.members() as (alice, bob):
        bob.settle()
        with pytest.raises(PeerEnded, match="violation"):
            bob.join("blue")
        assert [*house.server._rooms] == [LOBBY]
        say(alice, "on we go")


@pytest.mark.slow
def test_stays_of_a_session_are_bounded(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("companions.secure_chat.server.MAX_STAYS", 2)
    with house.members() as (alice, _):
        alice.settle()
        alice.join("blue")
        alice.settle()
        with pytest.raises(PeerEnded, match="violation"):
            alice.join("red")


# What a person types and sees ---------------------------------------------------------------------


@pytest.mark.slow
def test_head_shows_two_members_whether_they_were_told_the_same(house: House) -> None:
    def shown(client: Client) -> list[str]:
        lines: list[str] = []
        Talk(client, lines.append).typed("head")
        return lines

    with house.members() as (alice, bob):
        say(alice, "one", bob)
        assert shown(alice) == shown(bob)
        assert shown(alice)[0].startswith("[*] lobby, message 1:")
        assert shown(alice)[1].strip() == alice.seat.room.head.hex()
        before = shown(bob)
        say(alice, "two", bob)
        assert shown(bob) != before


@pytest.mark.parametrize("name", ["", "Lobby", "caf\xe9", "a b", "a_b", "a" * (MAX_ROOM_NAME + 1)])
def test_rooms_have_one_spelling(name: str) -> None:
    assert room_name("a" * MAX_ROOM_NAME)
    with pytest.raises(argparse.ArgumentTypeError, match="a room's name"):
        room_name(name)


def test_folder_that_cannot_keep_evidence_is_told_before_anybody_comes(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    require_folder(tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder").is_dir()
    with pytest.raises(UserError, match="cannot keep evidence"):
        require_folder(tmp_path / "file")


@pytest.mark.slow
def test_client_joins_the_room_of_its_flag(keys: list[PrivateKey], tmp_path: Path) -> None:
    typed = Typed(keys, tmp_path)
    with typed.server() as port:
        said = f"register\nalice\n{PASSWORDS[ALICE]}\nhello\nhead\nquit\n"
        done = typed.client(port, said, "--room", "blue")
        assert done.returncode == 0, done.stderr
        assert "logged in as alice; in blue: alice@example.org" in done.stdout
        assert "[*] blue, message 1:" in done.stdout
        wrong = typed.client(port, "", "--room", "Blue")
        assert (wrong.returncode, "a room's name" in wrong.stderr) == (2, True)
