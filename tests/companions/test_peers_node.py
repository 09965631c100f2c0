"""The node: what it does on real sockets, what a person sees of it, and what is typed."""
from __future__ import annotations

import contextlib
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import zmq

from companions.asymmetric import PrivateKey
from companions.peer_messaging import node as module
from companions.peer_messaging.identity import (
    Identity, IdentityChanged, Trust, grouped, known_peers, load_identity,
)
from companions.peer_messaging.node import (
    MAX_ALARMS, MAX_LINE, MAX_UNDER_WAY, Input, Node, Screen, Talk, address_of, escape,
    load_trust, main,
)
from companions.peer_messaging.peer import Event, Limits, Peer
from companions.peer_messaging.protocol import (
    CLEAR, MAX_MESSAGE, Kind, MessageLost, PeerAway, PeerLeft, Reason, Role, Session,
)
from endpoint import NoConnection, UserError
from protocol_fsm import BadTag, LocalError, MalformedMessage, WrongPeer

HOST = "127.0.0.1"
LIMIT_S = 20.0
QUICK = Limits(hello_s=0.05)

@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes notice at once that they are to end."""
    monkeypatch.setattr(module, "POLL_S", 0.01)

@pytest.fixture(scope="module")
def people(keys: Sequence[PrivateKey]) -> tuple[Identity, Identity]:
    """Two people; if both begin at once, the first of them is to answer."""
    low, high = sorted(map(Identity, keys[:2]), key=lambda who: who.fingerprint)
    return high, low

def free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])

class Party(Node):
    """A node that keeps what it tells."""

    def __init__(self, own: Identity, peer: Identity, at: tuple[str, int], port: int = 0,
                 host: str = HOST, limits: Limits = QUICK) -> None:
        self.told: queue.Queue[Event] = queue.Queue()
        super().__init__(own, Trust("peer", peer.fingerprint), at, host, port, limits,
                         tell=self.told.put)

    def __enter__(self) -> Party:
        super().__enter__()
        return self

    def wait_for(self, what: str) -> Event:
        while (event := self.told.get(timeout=LIMIT_S)).what != what:
            pass
        return event

@contextlib.contextmanager
def two_nodes(people: tuple[Identity, Identity], host: str = HOST) -> Iterator[tuple[Party, Party]]:
    port = free_port()
    one = Party(*people, (host, port), host=host)
    two = Party(*people[::-1], (host, one.address[1]), port, host)
    with one, two:
        one.wait_for("met")
        two.wait_for("met")
        yield one, two

class Raw:
    """Somebody who speaks ZeroMQ to a node, and whom it takes for its peer's inbox."""

    def __init__(self, people: tuple[Identity, Identity]) -> None:
        self.context = zmq.Context()
        self.inbox = self.context.socket(zmq.PULL)
        self.inbox.setsockopt(zmq.RCVTIMEO, int(1_000 * LIMIT_S))
        port = self.inbox.bind_to_random_port(f"tcp://{HOST}")
        self.node = Party(*people, (HOST, port), limits=Limits(hello_s=1_000.0))
        self.own, self.peer = people[1], people[0]

    def push(self, *messages: bytes | list[bytes]) -> None:
        """Drop messages into the node's inbox, over a connection of their own."""
        with self.context.socket(zmq.PUSH) as sock:
            sock.setsockopt(zmq.LINGER, int(1_000 * LIMIT_S))
            sock.connect(f"tcp://{HOST}:{self.node.address[1]}")
            for message in messages:
                sock.send_multipart([message] if isinstance(message, bytes) else message)

    def session(self) -> Session:
        return Session(self.own, Trust("peer", self.peer.fingerprint), Role.INITIATOR)

    def next_of(self, kind: Kind) -> bytes:
        while (message := self.inbox.recv())[0] != kind:
            pass
        return message

    def meet(self) -> Session:
        session = self.session()
        self.push(session.seal(Kind.HELLO))
        session.open(self.next_of(Kind.REPLY))
        self.push(session.seal(Kind.CONFIRM))
        session.open(self.next_of(Kind.WELCOME))
        return session

@pytest.fixture
def raw(people: tuple[Identity, Identity]) -> Iterator[Raw]:
    raw = Raw(people)
    with raw.node:
        yield raw
    raw.context.destroy(0)

# The node on sockets ------------------------------------------------------------------------------

def test_two_nodes_meet_talk_both_ways_and_say_goodbye(people: tuple[Identity, Identity]) -> None:
    port = free_port()
    with Party(*people, (HOST, port)) as one:
        with Party(*people[::-1], (HOST, one.address[1]), port) as two:
            one.say("hello")
            assert two.wait_for("text").text == "hello"
            assert one.wait_for("receipt").number == 1
            two.say("hello yourself")
            assert one.wait_for("text").text == "hello yourself"
        left = one.wait_for("ended").error
        assert isinstance(left, PeerLeft)
        assert left.reason is Reason.GOODBYE

def test_what_is_said_too_early_waits(people: tuple[Identity, Identity]) -> None:
    port = free_port()
    with Party(*people, (HOST, port)) as one:
        one.say("are you there?")
        with Party(*people[::-1], (HOST, one.address[1]), port) as two:
            assert two.wait_for("text").text == "are you there?"
            one.wait_for("receipt")

def test_the_first_hello_leaves_as_soon_as_there_is_a_connection(raw: Raw) -> None:
    assert raw.next_of(Kind.HELLO)  # else the next would come after 1,000 s

ANYTHING: dict[str, list[bytes | list[bytes]]] = {
    "nothing at all": [b""],
    "many parts of nothing": [[b""] * 1_000],
    "noise": [bytes([n]) * 46 for n in range(256)],
    "too much": [bytes([Kind.TEXT]) * (MAX_MESSAGE + 1)],
    "far too much": [bytes(10_000_000)],
    "the most that fits": [bytes([Kind.TEXT]) * MAX_MESSAGE],
}

@pytest.mark.parametrize("name", ANYTHING)
def test_a_node_survives_anything_in_its_inbox(raw: Raw, name: str) -> None:
    raw.push(*ANYTHING[name])
    session = raw.meet()
    raw.push(*ANYTHING[name])
    raw.push(session.seal(Kind.TEXT, b"still there?"))
    assert session.open(raw.next_of(Kind.RECEIPT)).kind is Kind.RECEIPT
    assert raw.node.wait_for("text").text == "still there?"

def test_a_message_in_parts_is_none_however_good_its_parts(raw: Raw) -> None:
    hello = raw.session().seal(Kind.HELLO)
    raw.push([hello, b""], [b"", hello], [hello[:100], hello[100:]])
    session = raw.meet()  # which the first REPLY answers
    raw.node.wait_for("met")
    text = session.seal(Kind.TEXT, b"x")
    raw.push([text, b""], [b"", text])
    for _ in range(2):
        assert isinstance(raw.node.wait_for("refused").error, MalformedMessage)
    raw.push(text)
    assert raw.node.wait_for("text").text == "x"

def test_what_is_too_long_is_not_even_read(raw: Raw) -> None:
    session = raw.meet()
    raw.node.wait_for("met")
    raw.push(bytes([Kind.TEXT]) * (MAX_MESSAGE + 1))
    for text in (b"x", b"y"):
        raw.push(session.seal(Kind.TEXT, text))
        session.open(raw.next_of(Kind.RECEIPT))
    assert [raw.node.told.get_nowait().what for _ in range(2)] == ["text", "text"]
    assert raw.node.told.empty(), "libzmq has dropped it, and closed the connection"

def test_a_taken_port_is_a_sentence(people: tuple[Identity, Identity]) -> None:
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(NoConnection, match=rf"^cannot listen on {HOST} port {port}: .*in use"):
            Party(*people, (HOST, 1), port)

@pytest.mark.parametrize("where", [{"host": "a" * 70}, {"at": ("a" * 70, 1)}])
def test_a_host_that_there_is_not_is_a_sentence(people: tuple[Identity, Identity],
                                                where: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^there is no host named 'aaa"):
        Party(*people, **{"at": (HOST, 1), **where})

def test_a_node_may_have_a_name(people: tuple[Identity, Identity]) -> None:
    with two_nodes(people, "localhost") as (one, _):
        assert one.address == ("localhost", one.address[1])

def test_of_several_addresses_ipv4_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    six = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0))
    four = (socket.AF_INET, socket.SOCK_STREAM, 6, "", (HOST, 0))
    for found, wanted in (([six, four], HOST), ([four, six], HOST), ([six], "::1")):
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, found=found, **__: found)
        assert address_of("somewhere") == wanted

def test_nothing_waits_in_the_outbox_for_a_peer_who_is_not_there(
        people: tuple[Identity, Identity]) -> None:
    began, port = threading.Semaphore(0), free_port()

    class Counting(Peer):
        def _begin(self, now: float) -> bytes:
            began.release()
            return super()._begin(now)

    with Node(people[0], Trust("peer"), (HOST, port), limits=Limits(hello_s=0.01),
              new_peer=Counting), zmq.Context() as context, context.socket(zmq.PULL) as inbox:
        for _ in range(4):
            assert began.acquire(timeout=LIMIT_S)
        inbox.setsockopt(zmq.RCVTIMEO, int(1_000 * LIMIT_S))
        before_ms = 1_000 * time.time()
        inbox.bind(f"tcp://{HOST}:{port}")
        _, _, timestamp = CLEAR.unpack_from(inbox.recv())
        assert timestamp >= before_ms - 1, "it was made after there was somebody to take it"

def test_ipv6_works_too(people: tuple[Identity, Identity], monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        with two_nodes(people, "::1") as (one, two):
            one.say("hello")
            two.wait_for("text")
        return
    pytest.skip("there is no IPv6 here")

class Broken(Exception):
    pass

def test_an_error_in_the_nodes_own_thread_is_raised_to_whoever_uses_it(
        people: tuple[Identity, Identity]) -> None:
    def tell(event: Event) -> None:
        raise Broken(event.what)

    port = free_port()
    one = Node(people[0], Trust("peer"), (HOST, port), limits=QUICK, tell=tell)
    with Party(*people[::-1], (HOST, one.address[1]), port):
        with pytest.raises(Broken, match="met"), one:  # noqa: PT012  # its end raises
            one._thread.join(LIMIT_S)
            for raises in (one.check, lambda: one.say("x")):
                with pytest.raises(Broken, match="met"):
                    raises()
    assert one._context.closed

def test_a_peer_that_cannot_be_remembered_ends_the_node(people: tuple[Identity, Identity],
                                                        tmp_path: Path) -> None:
    trust = load_trust(tmp_path / "gone" / "known_peers", "bob", "", pinned_only=False)
    port = free_port()
    one = Node(people[0], trust, (HOST, port), limits=QUICK)
    with Party(*people[::-1], (HOST, one.address[1]), port):
        with pytest.raises(UserError, match=r"^cannot write .*known_peers: No such file"), one:
            one._thread.join(LIMIT_S)

def test_an_error_of_the_user_comes_before_one_of_the_node(people: tuple[Identity, Identity]
                                                           ) -> None:
    one = Node(people[0], Trust("peer"), (HOST, 1))
    one._failure = Broken()
    with pytest.raises(KeyError), one:
        raise KeyError

# What a person sees -------------------------------------------------------------------------------

class Seen(list[str]):
    """Lines of a screen."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.screen = Screen("bob", Path("alice") / "known_peers", show=self._show, **options)

    def _show(self, text: str) -> None:
        self.extend(text.split("\n"))

    @property
    def joined(self) -> str:
        return " ".join(line.removeprefix("!!!").removeprefix("*").strip() for line in self)

PRINT = "0123456789abcdef" * 4

def test_the_first_meeting_is_loud_and_later_ones_are_not() -> None:
    seen = Seen()
    seen.screen.met(Event("met", PRINT, 1))
    assert grouped(PRINT) in seen
    assert all(line.startswith("!!! ") for line in seen if line != grouped(PRINT))
    assert "compare it with the one that bob's own node has shown" in seen.joined
    seen.clear()
    seen.screen.ended(Event("ended", error=PeerLeft(Reason.GOODBYE)))
    seen.screen.met(Event("met", PRINT))
    assert seen == ["* bob has left", "* bob is here again"]
    seen.clear()
    seen.screen.ended(Event("ended"))
    seen.screen.met(Event("met", PRINT))
    assert seen == ["* a new session with bob has begun"]

@pytest.mark.parametrize(("error", "words"), [
    (PeerAway("a word", "none"), "bob is away"),
    (PeerLeft(Reason.VIOLATION), "bob has ended the session, as it refused what came"),
    (MessageLost(3, 5), "has ended, and another will begin: MessageLost: expected 3, got 5"),
])
def test_why_a_session_is_over_is_said(error: Any, words: str) -> None:
    seen = Seen()
    seen.screen.ended(Event("ended", error=error))
    assert words in seen.joined

@pytest.mark.parametrize(("text", "shown"), [
    ("plain, t\u00fcr \u4f60\u597d", "plain, t\u00fcr \u4f60\u597d"),
    ("\x1b[31mred\x07", "\\x1b[31mred\\x07"), ("a\r\nb\tc", "a\\r\\nb\\tc"),
    ("\u202eevil\u2028line\x9b2J", "\\u202eevil\\u2028line\\x9b2J"),
])
def test_nothing_that_comes_moves_the_cursor_or_colours_the_terminal(text: str, shown: str) -> None:
    assert escape(text) == shown
    seen = Seen()
    seen.screen.text(Event("text", text))
    assert seen == [f"bob: {shown}"]

@pytest.mark.parametrize("text", [
    "* bob has left " * 20, "!!! " * 100, "x" * 4_096, " " * 500, "a-b " * 999,
    "x" * 74 + "* mallory is here", "alice: \n!!! look",
])
@pytest.mark.parametrize("width", [40, 79])
def test_no_text_looks_like_a_word_of_ours_however_it_breaks(text: str, width: int) -> None:
    seen = Seen(width=width)
    seen.screen.text(Event("text", text))
    assert seen[0].startswith("bob: ")
    assert all(line.startswith("    ") for line in seen[1:])
    assert max(map(len, seen)) <= width
    assert "".join([seen[0][5:], *(line[4:] for line in seen[1:])]) == escape(text)

def test_another_key_is_alarming_once_and_says_what_mends_it(tmp_path: Path) -> None:
    (tmp_path / "known_peers").write_text(f"carol {PRINT}\nbob {PRINT}\n")
    seen = Seen()
    seen.screen.known = tmp_path / "known_peers"
    for _ in range(3):
        seen.screen.refused(IdentityChanged("bob with 1111", PRINT[:16]))
    assert all(line.startswith("!!! ") for line in seen)
    assert seen.joined.count("SOMEBODY SHOWS ANOTHER KEY FOR bob: 0123 4567 89ab cdef") == 1
    assert "remove line 2 of" in seen.joined
    for n in range(10):
        seen.screen.refused(IdentityChanged("bob with 1111", f"{n:016}"))
    assert seen.joined.count("SOMEBODY SHOWS") == MAX_ALARMS, "anybody can show any number of keys"
    seen.clear()
    seen.screen.total(0)
    assert seen == ["* messages refused: 13 IdentityChanged", "* over: 0 sent, 0 received"]

def test_other_refusals_are_counted_and_told_when_asked_for() -> None:
    seen, told = Seen(), Seen(verbose=True)
    for error in (BadTag(), BadTag(), MalformedMessage("a kind", "ff")):
        seen.screen.refused(error)
        told.screen.refused(error)
    assert seen == []
    assert len(told) == 3
    seen.screen.total(2)
    assert seen[0] == "* messages refused: 2 BadTag, 1 MalformedMessage"

def test_who_talks_to_themselves_is_told_so_once() -> None:
    seen = Seen()
    for _ in range(2):
        seen.screen.refused(WrongPeer("another node", "ourselves"))
    assert seen.joined.count("our own key") == 1

def test_a_receipt_is_worth_a_word_only_if_it_took_long() -> None:
    seen = Seen()
    seen.screen.arrived(1, "quick", 0.1)
    assert seen == []
    seen.screen.arrived(2, "slow\n" + "x" * 100, 3.21)
    assert seen == ['* text 2, "slow\\nxxxxxxxxxxxxxxxxxxx...", has arrived after 3.2 s']

# What is typed ------------------------------------------------------------------------------------

def read(*pieces: bytes, encoding: str = "utf-8") -> list[str]:
    """Return what Input makes of bytes that come in pieces."""
    lines, (there, here) = list[str](), os.pipe()
    with open(here, "wb", buffering=0) as end:
        thread = Input(there, encoding, lines.append)
        thread.start()
        for piece in pieces:
            end.write(piece)
    thread.join(LIMIT_S)
    os.close(there)
    assert not thread.is_alive()
    return lines

@pytest.mark.parametrize(("pieces", "lines"), [
    ([b"one\ntwo\n"], ["one", "two", ""]), ([b"no end"], ["no end", ""]), ([], [""]),
    ([b"windows\r\n\r\n  \nx\n"], ["windows", "x", ""]), ([b"o", b"n", b"e\n"], ["one", ""]),
    ([b"one\n quit \nnever\n"], ["one", ""]), ([b"quit"], [""]), ([b"quits\n"], ["quits", ""]),
    ([b"t\xc3", b"\xbcr\n"], ["t\u00fcr", ""]), ([b"\xff\n\xc3"], ["\ufffd", "\ufffd", ""]),
])
def test_lines_are_read_as_they_come_until_the_end_or_quit(pieces: list[bytes],
                                                           lines: list[str]) -> None:
    assert read(*pieces) == lines

def test_a_line_without_end_takes_no_more_memory_than_its_beginning() -> None:
    line, end = read(*[b"x" * 50_000] * 5, b"\nnext\n")[0::2]
    assert MAX_LINE <= len(line) <= MAX_LINE + 65_536
    assert end == ""

def test_an_input_that_cannot_be_read_has_ended() -> None:
    lines, (there, here) = list[str](), os.pipe()
    os.close(here)
    os.close(there)
    Input(there, "utf-8", lines.append).run()
    assert lines[-1] == ""

def test_no_more_lines_are_read_ahead_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_AHEAD", 2)
    taken: queue.Queue[str] = queue.Queue()
    there, here = os.pipe()
    with open(here, "wb", buffering=0) as end:
        end.write(b"1\n2\n3\n4\n")
        thread = Input(there, "utf-8", taken.put)
        thread.start()
        assert [taken.get(timeout=LIMIT_S) for _ in range(2)] == ["1", "2"]
        with pytest.raises(queue.Empty):
            taken.get(timeout=0.05)
        thread.taken()
        assert taken.get(timeout=LIMIT_S) == "3"
        thread.taken()
        assert taken.get(timeout=LIMIT_S) == "4"
    thread.join(LIMIT_S)
    os.close(there)

# Between a person and a node ----------------------------------------------------------------------

class Play:
    """A Talk with a node that is none: `answers` says what it tells of each text."""

    def __init__(self, *answers: str, patience_s: float = 10.0) -> None:
        self.seen, self.said, self.taken = Seen(), list[str](), 0
        self.time, self.most_under_way, self.answers = 0.0, 0, answers
        self.talk = Talk(self.seen.screen, patience_s, self._timer)
        self.failure: Exception | None = None

    def _timer(self) -> float:
        self.time += 0.5
        return self.time

    def check(self) -> None:
        if self.failure:
            raise self.failure

    def say(self, text: str) -> None:
        if text == "bad":
            raise LocalError("a text has 1 to 4,096 bytes")
        self.said.append(text)
        self.most_under_way = max(self.most_under_way, len(self.talk._under_way) + 1)
        for what in self.answers:
            self.talk.happenings.put(Event(what, number=len(self.said)))

    def take(self) -> None:
        self.taken += 1

    def play(self, *happenings: Event | str | int) -> int:
        for happening in happenings:
            self.talk.happenings.put(happening)
        self.talk.run(self, self.take)  # type: ignore[arg-type]
        return self.talk.finish()

def test_texts_with_receipts_are_a_success() -> None:
    play = Play("receipt")
    assert play.play(Event("met", PRINT), "one", "two", "") == 0
    assert (play.said, play.taken) == (["one", "two"], 2)
    assert play.seen[-1] == "* over: 2 sent, 0 received"

def test_nothing_to_say_is_a_success_too() -> None:
    assert Play().play("") == 0

def test_texts_without_receipts_are_waited_for_and_then_a_failure(
        capsys: pytest.CaptureFixture[str]) -> None:
    play = Play(patience_s=3.0)
    assert play.play("one", "two", "") == 1
    assert play.time >= 3.0
    assert capsys.readouterr().err == "node: 2 texts have no receipt, and may not have arrived\n"

def test_an_unconfirmed_text_is_told_and_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    play = Play("unconfirmed")
    assert play.play(Event("met", PRINT), "one", "") == 1
    assert '* text 1, "one", is unconfirmed: it may have arrived, or not' in play.seen
    assert capsys.readouterr().err == "node: 1 text has no receipt, and may not have arrived\n"

def test_a_text_that_cannot_be_sent_is_told_and_a_failure() -> None:
    play = Play("receipt")
    assert play.play(Event("met", PRINT), "bad", "good", "") == 1
    assert "* not sent: a text has 1 to 4,096 bytes" in play.seen
    assert (play.said, play.taken) == (["good"], 2)

@pytest.mark.parametrize("number", [2, 15])
def test_a_signal_ends_it_whatever_is_under_way(number: int) -> None:
    assert Play().play("one", number, "two") == 128 + number
    assert Play("receipt").play(number) == 128 + number

def test_no_more_texts_are_under_way_than_a_node_keeps() -> None:
    play = Play()
    play.play(*["text"] * 150, 2)
    assert len(play.said) == play.taken == play.most_under_way == MAX_UNDER_WAY
    assert Limits().max_waiting >= MAX_UNDER_WAY
    play = Play("receipt", patience_s=1e9)
    assert play.play(*["text"] * 500, "") == 0
    assert len(play.said) == 500

def test_that_texts_wait_is_said_once_an_absence() -> None:
    play = Play()
    play.play("one", "two", Event("met", PRINT), "three",
              Event("ended", error=PeerAway("a word", "none")), "four", 2)
    assert [line for line in play.seen if "waits" in line] == [
        "* bob is not here; text 1, and what follows it, waits",
        "* bob is not here; text 4, and what follows it, waits"]

def test_what_ends_the_node_ends_the_talk() -> None:
    play = Play()
    play.failure = UserError("cannot write known_peers")
    with pytest.raises(UserError, match="cannot write"):
        play.play("one")

def test_what_comes_at_the_very_end_is_shown() -> None:
    play = Play()
    play.talk.happenings.put(2)
    play.talk.run(play, play.take)  # type: ignore[arg-type]
    play.talk.happenings.put(Event("text", "one more thing"))
    play.talk.finish()
    assert play.seen == ["bob: one more thing", "* over: 0 sent, 1 received"]

# Flags, and known_peers ---------------------------------------------------------------------------

def test_a_pin_is_written_down_and_holds(tmp_path: Path) -> None:
    known = tmp_path / "known_peers"
    trust = load_trust(known, "bob", PRINT, pinned_only=True)
    assert (trust.pinned, trust.first_use) == (PRINT, False)
    assert known_peers(known) == {"bob": PRINT}
    assert load_trust(known, "bob", PRINT, pinned_only=False).pinned == PRINT
    assert load_trust(known, "bob", "", pinned_only=False).pinned == PRINT
    assert known.read_text() == f"bob {PRINT}\n", "no line is written twice"
    with pytest.raises(UserError, match=r"line 1 of .*known_peers has another key for bob"):
        load_trust(known, "bob", "f" * 64, pinned_only=False)

def test_who_is_unknown_is_taken_the_first_time_unless_told_otherwise(tmp_path: Path) -> None:
    known = tmp_path / "known_peers"
    trust = load_trust(known, "bob", "", pinned_only=False)
    assert (trust.pinned, trust.first_use) == ("", True)
    with pytest.raises(UserError, match="add --pin"):
        load_trust(known, "bob", "", pinned_only=True)

GOOD = ["--peer", "bob", "--at", "127.0.0.1:5556"]

@pytest.mark.parametrize(("words", "why"), [
    (["a"], "required: --peer, --at"), (GOOD, "required: FOLDER"),
    (["a", *GOOD, "--at", "127.0.0.1"], "--at: invalid HOST:PORT value"),
    (["a", *GOOD, "--at", "127.0.0.1:0"], "--at: invalid HOST:PORT value"),
    (["a", *GOOD, "--at", "127.0.0.1:65536"], "--at: invalid HOST:PORT value"),
    (["a", *GOOD, "--peer", "b#b"], "--peer: invalid"), (["a", *GOOD, "--peer", ""], "--peer: inv"),
    (["a", *GOOD, "--peer", "b b"], "--peer: invalid"),
    (["a", *GOOD, "--peer", "b\x1b"], "--peer: invalid"),
    (["a", *GOOD, "--peer", "b" * 65], "--peer: invalid"),
    (["a", *GOOD, "--pin", "12"], "--pin: invalid fingerprint"),
    (["a", *GOOD, "--pin", PRINT + "0"], "--pin: invalid fingerprint"),
    (["a", *GOOD, "--port", "-1"], "--port: invalid"),
    (["a", *GOOD, "--patience", "0"], "--patience: invalid"),
])
def test_a_wrong_flag_is_a_sentence(words: list[str], why: str, tmp_path: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["node", *words])
    with pytest.raises(UserError) as caught:
        main()
    assert why in str(caught.value)
    assert not [*tmp_path.iterdir()]

def test_a_fingerprint_may_be_given_as_it_is_shown() -> None:
    assert module.fingerprint(f" {grouped(PRINT).upper()}\n") == PRINT

def test_our_own_fingerprint_is_shown_before_anything_can_go_wrong(
        keys: Sequence[PrivateKey], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("companions.peer_messaging.identity.new_identity", lambda: keys[0])
    monkeypatch.setattr(sys, "argv", ["node", str(tmp_path / "a"), *GOOD, "--pinned-only"])
    with pytest.raises(UserError, match="add --pin"):
        main()
    own, is_new = load_identity(tmp_path / "a", input)
    assert not is_new
    lines = capsys.readouterr().out.splitlines()
    assert grouped(own.fingerprint) in lines
    assert max(map(len, lines)) <= 79
