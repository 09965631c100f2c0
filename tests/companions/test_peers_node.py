"""The node on real sockets, and the flags of the program."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import zmq

from companions.asymmetric import PrivateKey
from companions.peer_messaging import node as module
from companions.peer_messaging.identity import (
    Identity,
    Trust,
    grouped,
    known_peers,
    load_identity,
    peer_fingerprint,
)
from companions.peer_messaging.node import Node, address_of, load_trust, main
from companions.peer_messaging.peer import Event, Limits, Peer
from companions.peer_messaging.protocol import (
    CLEAR,
    MAX_MESSAGE,
    Kind,
    Message,
    PeerLeft,
    Reason,
    Role,
    Session,
)
from companions.peer_messaging.talk import MAX_UNSEEN, Talk
from program import NoConnection, UserError
from protocol_fsm import LocalError, MalformedMessage
from tests.companions.peers_helpers import (
    ANOTHER_PART,
    GREETING,
    ONE_PART,
    flood,
    greet,
    ours_alone,
    reset,
    wait_for_hello,
)
from tests.network import free_port

HOST = "127.0.0.1"
LIMIT_S = 20.0
QUICK = Limits(hello_s=0.05)
pytestmark = pytest.mark.usefixtures(ours_alone.__name__)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes notice at once that they are to end."""
    monkeypatch.setattr(module, "POLL_S", 0.01)


@pytest.fixture(scope="module")
def people(keys: Sequence[PrivateKey]) -> tuple[Identity, Identity]:
    """Two people; if both begin at once, the first of them is to answer."""
    low, high = sorted(map(Identity, keys[:2]), key=lambda who: who.fingerprint)
    return high, low


class Party(Node):
    """A node that keeps what it tells."""

    def __init__(
        self,
        own: Identity,
        peer: Identity,
        at: tuple[str, int],
        port: int = 0,
        host: str = HOST,
        limits: Limits = QUICK,
    ) -> None:
        self.told: queue.Queue[Event] = queue.Queue()
        super().__init__(
            own, Trust("peer", peer.fingerprint), at, host, port, limits, tell=self.told.put
        )

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
        self.own = people[1]
        self.peer = people[0]

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
        self.push(session.seal(Message(Kind.HELLO)))
        session.open(self.next_of(Kind.REPLY))
        self.push(session.seal(Message(Kind.CONFIRM)))
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
    raw.push(session.seal(Message(Kind.TEXT, b"still there?")))
    assert session.open(raw.next_of(Kind.RECEIPT)).kind is Kind.RECEIPT
    assert raw.node.wait_for("text").text == "still there?"


def test_a_message_in_parts_is_none_however_good_its_parts(raw: Raw) -> None:
    hello = raw.session().seal(Message(Kind.HELLO))
    raw.push([hello, b""], [b"", hello], [hello[:100], hello[100:]])
    session = raw.meet()  # which the first REPLY answers
    raw.node.wait_for("met")
    text = session.seal(Message(Kind.TEXT, b"x"))
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
        raw.push(session.seal(Message(Kind.TEXT, text)))
        session.open(raw.next_of(Kind.RECEIPT))
    assert [raw.node.told.get_nowait().what for _ in range(2)] == ["text", "text"]
    assert raw.node.told.empty(), "libzmq has dropped it, and closed the connection"


# Strangers who flood it, in raw ZMTP --------------------------------------------------------------


def resident_bytes() -> int:
    """Return how much memory this process has in use."""
    pages = Path("/proc/self/statm").read_text("ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux")
def test_a_flood_of_messages_of_many_parts_takes_little_memory(raw: Raw) -> None:
    """At most 10 of a connection wait, with 64 bytes for each of their 10,000 parts: 6.4 MB."""
    before = resident_bytes()
    with socket.create_connection((HOST, raw.node.address[1])) as stranger:
        greet(stranger, b"PUSH")
        for _ in flood(stranger, 9_999 * ANOTHER_PART + ONE_PART, 10_000_000, 2.0):
            assert resident_bytes() - before < 30_000_000
    raw.node.check()


@pytest.mark.slow
def test_a_flood_over_many_connections_ends_no_session(people: tuple[Identity, Identity]) -> None:
    with two_nodes(people) as (one, two), contextlib.ExitStack() as stack:
        for _ in range(20):
            stranger = stack.enter_context(socket.create_connection((HOST, one.address[1])))
            greet(stranger, b"PUSH")
            *_, sent = flood(stranger, ONE_PART, 20_000, 1.0)
            assert sent == 20_000
        one.wait_for("refused")
        two.say("still there?")
        two.wait_for("receipt")
        assert one.wait_for("text").text == "still there?"
        assert "ended" not in {event.what for event in [*one.told.queue, *two.told.queue]}


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n" * 20,
        GREETING[:11],
        GREETING + b"\x04\xff" + bytes(300),
        GREETING + b"\x06" + b"\x7f" * 8 + bytes(70_000),
    ],
    ids=["another protocol", "half a greeting", "no READY", "an endless command"],
)
def test_what_is_no_zeromq_over_many_connections_ends_no_session(
    people: tuple[Identity, Identity], said: bytes
) -> None:
    with two_nodes(people) as (one, two), contextlib.ExitStack() as stack:
        for _ in range(50):
            stranger = stack.enter_context(socket.create_connection((HOST, one.address[1])))
            with contextlib.suppress(OSError):  # it has hung up
                stranger.sendall(said)
        two.say("still there?")
        two.wait_for("receipt")
        assert one.wait_for("text").text == "still there?"
        assert "ended" not in {event.what for event in [*one.told.queue, *two.told.queue]}


@pytest.mark.slow
def test_an_outbox_that_a_stranger_has_filled_is_replaced(
    people: tuple[Identity, Identity],
) -> None:
    """Nobody reads an outbox, and libzmq does not notice when a stranger who filled it is gone."""
    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(LIMIT_S)
        at = listener.getsockname()[:2]
        with Party(*people, at, limits=Limits(hello_s=0.2)):
            stranger, _ = listener.accept()
            greet(stranger, b"PULL")
            for _ in flood(stranger, ONE_PART, 20_000, 1.0):
                pass
            reset(stranger)
            again, _ = listener.accept()
            with again:
                greet(again, b"PULL")
                wait_for_hello(again)


@pytest.mark.slow
def test_an_outbox_stays_when_there_is_no_descriptor_for_another(
    people: tuple[Identity, Identity], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise zmq.ZMQError(errno.EMFILE)

    with Party(*people, (HOST, 1)) as node:
        outbox = node._outbox
        monkeypatch.setattr(node, "_new_outbox", fail)
        with node._lock:
            for _ in range(4):
                node._prepare_outbox()
        assert node._outbox is outbox
        assert not outbox.closed


def test_a_taken_port_is_a_sentence(people: tuple[Identity, Identity]) -> None:
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(NoConnection, match=rf"^cannot listen on {HOST} port {port}: .*in use"):
            Party(*people, (HOST, 1), port)


@pytest.mark.parametrize("where", [{"host": "a" * 70}, {"at": ("a" * 70, 1)}])
def test_a_host_that_there_is_not_is_a_sentence(
    people: tuple[Identity, Identity], where: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=r"^there is no host named 'aaa"):
        Party(*people, **{"at": (HOST, 1), **where})


def test_a_node_lives_once(people: tuple[Identity, Identity]) -> None:
    node = Party(*people, (HOST, 1))
    with node, pytest.raises(LocalError, match="one life"), node:
        pytest.fail("entered twice")
    with pytest.raises(LocalError, match="has left"):
        node.say("too late")
    with pytest.raises(LocalError, match="one life"), node:
        pytest.fail("entered again")


def test_a_node_may_have_a_name(people: tuple[Identity, Identity]) -> None:
    with two_nodes(people, "localhost") as (one, _):
        assert one.address == ("localhost", one.address[1])


def test_of_several_addresses_ipv4_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    six = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0))
    four = (socket.AF_INET, socket.SOCK_STREAM, 6, "", (HOST, 0))
    for found, wanted in (([six, four], HOST), ([four, six], HOST), ([six], "::1")):
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, found=found, **__: found)
        assert address_of("somewhere") == wanted


def counting(began: threading.Semaphore) -> type[Peer]:
    """Return a Peer that counts the HELLOs that it begins with."""

    class Counting(Peer):
        def _begin(self, now: float) -> bytes:
            began.release()
            return super()._begin(now)

    return Counting


def test_nothing_waits_in_the_outbox_for_a_peer_who_is_not_there(
    people: tuple[Identity, Identity],
) -> None:
    began = threading.Semaphore(0)
    port = free_port()
    with (
        Node(
            people[0],
            Trust("peer"),
            (HOST, port),
            limits=Limits(hello_s=0.01),
            new_peer=counting(began),
        ),
        zmq.Context() as context,
        context.socket(zmq.PULL) as inbox,
    ):
        for _ in range(4):
            assert began.acquire(timeout=LIMIT_S)
        inbox.setsockopt(zmq.RCVTIMEO, int(1_000 * LIMIT_S))
        before_ms = 1_000 * time.time()
        inbox.bind(f"tcp://{HOST}:{port}")
        _, _, timestamp = CLEAR.unpack_from(inbox.recv())
        waited_ms = 1 + 1_000 * module.CONNECT_S
        assert timestamp >= before_ms - waited_ms, "none of the HELLOs made before"


def test_a_connection_that_takes_long_has_the_time_until_the_second_hello(
    people: tuple[Identity, Identity],
) -> None:
    began = threading.Semaphore(0)
    with (
        socket.create_server((HOST, 0)) as listener,
        Node(
            people[0],
            Trust("peer"),
            listener.getsockname()[:2],
            limits=Limits(hello_s=0.5),
            new_peer=counting(began),
        ) as node,
        listener.accept()[0] as slow,
    ):
        assert began.acquire(timeout=LIMIT_S)
        with node._lock:  # which the node holds until it has given up the first HELLO
            slow.settimeout(LIMIT_S)
        greet(slow, b"PULL")
        wait_for_hello(slow)


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
    people: tuple[Identity, Identity],
) -> None:
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


def test_only_the_nodes_own_thread_closes_its_sockets(
    people: tuple[Identity, Identity], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C may come while the end waits; a socket closed in use makes libzmq abort."""
    closing: list[threading.Thread] = []
    destroy = zmq.Context.destroy

    def closed(context: zmq.Context[Any], linger: int | None = None) -> None:
        closing.append(threading.current_thread())
        destroy(context, linger)

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(zmq.Context, "destroy", closed)
    one = Node(people[0], Trust("peer"), (HOST, free_port()), limits=QUICK)
    join = one._thread.join
    monkeypatch.setattr(one._thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt), one:
        pass
    join(LIMIT_S)
    assert closing == [one._thread]


def test_a_peer_that_cannot_be_remembered_ends_the_node(
    people: tuple[Identity, Identity], tmp_path: Path
) -> None:
    trust = load_trust(tmp_path / "gone" / "known_peers", "bob", "", pinned_only=False)
    port = free_port()
    one = Node(people[0], trust, (HOST, port), limits=QUICK)
    with Party(*people[::-1], (HOST, one.address[1]), port):
        with pytest.raises(UserError, match=r"^cannot write .*known_peers: No such file"), one:
            one._thread.join(LIMIT_S)


def test_an_error_of_the_user_comes_before_one_of_the_node(
    people: tuple[Identity, Identity],
) -> None:
    one = Node(people[0], Trust("peer"), (HOST, 1))
    one._failure = Broken()
    with pytest.raises(KeyError), one:
        raise KeyError


# Flags, and known_peers ---------------------------------------------------------------------------

PRINT = "0123456789abcdef" * 4


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


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["a"], "required: --peer, --at"),
        (GOOD, "required: FOLDER"),
        (["a", *GOOD, "--at", "127.0.0.1"], "is not HOST:PORT"),
        (["a", *GOOD, "--at", "127.0.0.1:0"], "'127.0.0.1:0' is not HOST:PORT"),
        (["a", *GOOD, "--at", "127.0.0.1:65536"], "is not HOST:PORT"),
        (["a", *GOOD, "--peer", "b#b"], "is not a name without spaces"),
        (["a", *GOOD, "--peer", ""], "is not a name without spaces"),
        (["a", *GOOD, "--peer", "b b"], "is not a name without spaces"),
        (["a", *GOOD, "--peer", "b\x1b"], "is not a name without spaces"),
        (["a", *GOOD, "--peer", "b" * 65], "is not a name without spaces"),
        (["a", *GOOD, "--pin", "12"], "is not a fingerprint of 64"),
        (["a", *GOOD, "--pin", PRINT + "0"], "is not a fingerprint of 64"),
        (["a", *GOOD, "--port", "-1"], "is not a port"),
        (["a", *GOOD, "--patience", "0"], "is not a number of seconds"),
    ],
)
def test_a_wrong_flag_is_a_sentence(
    words: list[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["node", *words])
    with pytest.raises(UserError) as caught:
        main()
    assert why in str(caught.value)
    assert not [*tmp_path.iterdir()]


def test_a_fingerprint_may_be_given_as_it_is_shown() -> None:
    assert peer_fingerprint(f" {grouped(PRINT).upper()}\n") == PRINT


def test_our_own_fingerprint_is_shown_before_anything_can_go_wrong(
    keys: Sequence[PrivateKey],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("companions.peer_messaging.identity.new_identity", lambda: keys[0])
    monkeypatch.setattr(sys, "argv", ["node", str(tmp_path / "a"), *GOOD, "--pinned-only"])
    with pytest.raises(UserError, match="add --pin"):
        main()
    own, is_new = load_identity(tmp_path / "a", input)
    assert not is_new
    lines = capsys.readouterr().out.splitlines()
    assert grouped(own.fingerprint) in lines
    assert max(map(len, lines)) <= 79


def test_the_program_keeps_little_of_what_its_node_refuses(
    keys: Sequence[PrivateKey], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talks: list[Talk] = []

    class Listening(Talk):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            talks.append(self)

    def flood(*arguments: object, tell: Callable[[Event], object]) -> Node:
        for _ in range(MAX_UNSEEN + 9):
            tell(Event("refused", error=MalformedMessage("a kind", "ff")))
        raise Broken

    monkeypatch.setattr("companions.peer_messaging.identity.new_identity", lambda: keys[0])
    monkeypatch.setattr(sys, "argv", ["node", str(tmp_path / "a"), *GOOD])
    monkeypatch.setattr(module, "Talk", Listening)
    monkeypatch.setattr(module, "Node", flood)
    with pytest.raises(Broken):
        main()
    assert talks[0].happenings.qsize() == MAX_UNSEEN
