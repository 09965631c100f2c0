"""No key outlives its use: everything reachable from a session, a node or a device is looked at.

A recorder notes every secret at the moment it is made. After each step the walk has to find those
that the protocol still needs, which shows that it can see, and no others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from companions.asymmetric import PrivateKey
from companions.device_transfer import protocol as device_protocol
from companions.device_transfer.protocol import Direction, PeerFailed
from companions.device_transfer.protocol import Kind as DeviceKind
from companions.device_transfer.protocol import Message as DeviceMessage
from companions.device_transfer.protocol import State as DeviceState
from companions.peer_messaging import protocol as peer_protocol
from companions.peer_messaging.protocol import Kind, PeerLeft, Role, State
from protocol_fsm import ProtocolError, Status
from tests.companions import helpers, peers_helpers
from tests.companions.helpers import D2S, S2D, flipped
from tests.companions.network import device_for, serving
from tests.companions.secrets_helpers import Nodes, Recorder
from tests.secrets_walk import held

# device_transfer ----------------------------------------------------------------------------------


def generation(number: int) -> set[str]:
    """Return what an end needs while it uses these keys."""
    return {f"{label} {number}" for label in (*device_protocol.KEY_BYTES, "secret")}


DEVICE_STEPS: list[tuple[Direction, DeviceKind, set[str], set[str]]] = [  # held by device, server
    (D2S, DeviceKind.HELLO, set(), set()),
    (S2D, DeviceKind.HELLO, set(), set()),
    (D2S, DeviceKind.SHARE, {"ephemeral 0"}, {"ephemeral 1", "shared 0"}),
    (S2D, DeviceKind.SHARE, generation(0), generation(0)),
    (D2S, DeviceKind.CONFIRM, generation(0), generation(0)),
    (S2D, DeviceKind.CONFIRM, generation(0), generation(0)),
    (D2S, DeviceKind.FILE, generation(0), generation(0)),
    (D2S, DeviceKind.CHUNK, generation(0), generation(0)),
    (
        D2S,
        DeviceKind.REKEY,
        {*generation(0), "ephemeral 2"},
        {*generation(0), "ephemeral 3", "shared 1"},
    ),
    (S2D, DeviceKind.REKEY, generation(1), generation(1)),
    (D2S, DeviceKind.CHUNK, generation(1), generation(1)),
    (D2S, DeviceKind.MANIFEST, generation(1), generation(1)),
    (S2D, DeviceKind.ACK, generation(1), generation(1)),
    (D2S, DeviceKind.END, generation(1), generation(1)),
    (S2D, DeviceKind.ACK, set(), set()),
]


@pytest.fixture
def device_pair(
    keys: Sequence[PrivateKey], monkeypatch: pytest.MonkeyPatch
) -> tuple[helpers.Pair, Recorder]:
    recorder = Recorder(monkeypatch, device_protocol)
    world = helpers.World(keys)
    pair = helpers.Pair(world.session(world.device, helpers.SERVER), world.session(world.server))
    return pair, recorder


@pytest.mark.slow
def test_a_device_and_a_server_hold_what_they_need_and_nothing_else(
    device_pair: tuple[helpers.Pair, Recorder],
) -> None:
    pair, recorder = device_pair
    for sends, kind, device, server in DEVICE_STEPS:
        pair.carry(sends, kind)
        assert recorder.held_by(pair.device) == device, kind
        assert recorder.held_by(pair.server) == server, kind
    assert len(recorder.secrets) == 4 + 2 + 2 * len(generation(0)), "all of two generations"


def junk(pair: helpers.Pair) -> None:
    for end in (pair.device, pair.server):
        with contextlib.suppress(ProtocolError):
            end.open(b"<JUNK>" * 20)


def farewell(pair: helpers.Pair) -> None:
    farewell = pair.device.goodbye(Status.SHUTDOWN)
    if farewell:
        with pytest.raises(PeerFailed):
            pair.server.open(farewell)
    pair.server.goodbye(Status.SHUTDOWN)


def damaged(pair: helpers.Pair) -> None:
    """The last message of the device comes again, with one bit changed."""
    for end in (pair.device, pair.server):
        with contextlib.suppress(ProtocolError):
            end.open(flipped(pair.messages[-1], -1))


@pytest.mark.slow
@pytest.mark.parametrize("end", [junk, farewell, damaged])
def test_after_the_end_a_device_and_a_server_hold_nothing(
    device_pair: tuple[helpers.Pair, Recorder], end: Callable[[helpers.Pair], None]
) -> None:
    """Wherever it comes: after each step the session of a copy is ended."""
    pair, recorder = device_pair
    for sends, kind, _, _ in DEVICE_STEPS[:-1]:
        pair.carry(sends, kind)
        ended = pair.clone()
        end(ended)
        for session in (ended.device, ended.server):
            assert session.state is DeviceState.ENDED
            assert recorder.held_by(session) == set()


@pytest.mark.parametrize("kind", [DeviceKind.SHARE, DeviceKind.REKEY])
def test_a_share_that_is_refused_leaves_nothing_behind(
    device_pair: tuple[helpers.Pair, Recorder], kind: DeviceKind
) -> None:
    """The refusal comes in the middle of an agreement, when most secrets are there."""
    pair, recorder = device_pair
    steps = next(n for n, step in enumerate(DEVICE_STEPS) if step[:2] == (S2D, kind))
    for sends, before, _, _ in DEVICE_STEPS[:steps]:
        pair.carry(sends, before)
    message = pair.server.seal(DeviceMessage(kind))
    with pytest.raises(ProtocolError):
        pair.device.open(flipped(message, -1))
    assert recorder.held_by(pair.device) == set()


@pytest.mark.slow
def test_devices_and_servers_that_are_done_hold_nothing(
    keys: Sequence[PrivateKey], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The objects around a session, too: channel, connection, list of members."""
    recorder = Recorder(monkeypatch, device_protocol)
    world = helpers.World(keys)
    with serving(world, tmp_path / "received") as (server, records):
        device = device_for(world, server)
        with device:
            device.send_text("door 3 is open")
            assert recorder.held_by(device) == generation(0)
        assert recorder.held_by(device) == set()
        assert records.ends() == [None]
        assert held(server, recorder.secrets) == {}, "while it waits for others"


# peer_messaging -----------------------------------------------------------------------------------

SESSION_KEYS = {f"{label} 0" for label in peer_protocol.KEY_SIZES}
A = Role.INITIATOR
B = Role.RESPONDER
PEER_STEPS: list[tuple[Role, Kind, set[str], set[str]]] = [  # held by initiator, responder
    (A, Kind.HELLO, {"ephemeral 0"}, {"ephemeral 1", "shared 0"}),
    (B, Kind.REPLY, SESSION_KEYS, SESSION_KEYS),
    (A, Kind.CONFIRM, SESSION_KEYS, SESSION_KEYS),
    (B, Kind.WELCOME, SESSION_KEYS, SESSION_KEYS),
    (A, Kind.TEXT, SESSION_KEYS, SESSION_KEYS),
    (B, Kind.PING, SESSION_KEYS, SESSION_KEYS),
    (B, Kind.TEXT, SESSION_KEYS, SESSION_KEYS),
]


@pytest.fixture
def peer_pair(
    keys: Sequence[PrivateKey], monkeypatch: pytest.MonkeyPatch
) -> tuple[peers_helpers.Pair, Recorder]:
    recorder = Recorder(monkeypatch, peer_protocol)
    return peers_helpers.World(keys).new_pair(State.HELLO), recorder


@pytest.mark.slow
def test_two_nodes_hold_what_their_session_needs_and_nothing_else(
    peer_pair: tuple[peers_helpers.Pair, Recorder],
) -> None:
    pair, recorder = peer_pair
    for sender, kind, initiator, responder in PEER_STEPS:
        pair.carry(kind, sender)
        assert recorder.held_by(pair.end(A)) == initiator, kind
        assert recorder.held_by(pair.end(B)) == responder, kind
    assert len(recorder.secrets) == 2 + 1 + 1 + len(SESSION_KEYS)
    with pytest.raises(PeerLeft):
        pair.carry(Kind.BYE)
    for end in pair.ends:
        assert recorder.held_by(end) == set()


def close(session: peer_protocol.Session) -> None:
    session.close()


def fail(session: peer_protocol.Session) -> None:
    session.fail(ProtocolError(None, "a reason"))


@pytest.mark.slow
@pytest.mark.parametrize("end", [close, fail])
def test_after_the_end_of_a_session_its_nodes_hold_nothing(
    peer_pair: tuple[peers_helpers.Pair, Recorder], end: Callable[[peer_protocol.Session], None]
) -> None:
    pair, recorder = peer_pair
    for sender, kind, _, _ in PEER_STEPS:
        pair.carry(kind, sender)
        for session in pair.clone().ends:
            end(session)
            assert recorder.held_by(session) == set()


def renewed(nodes: Nodes) -> None:
    nodes.time.now += 3_600
    nodes.carry(0, nodes.peers[0].tick())


def away(nodes: Nodes) -> None:
    nodes.time.now += 7
    for peer in nodes.peers:
        peer.tick()


def refused(nodes: Nodes) -> None:
    session = nodes.peers[0].session
    assert session
    session._sequence[session.role] += 1
    nodes.carry(0, nodes.peers[0].say("a gap before this"))


def handshake_lost(nodes: Nodes) -> None:
    nodes.time.now += 3_600
    hello = nodes.peers[0].tick()
    for message in hello:
        nodes.peers[1].receive(message)
    nodes.time.now += 6
    for peer in nodes.peers:
        peer._heard = nodes.time.now
        peer.tick()


def left(nodes: Nodes) -> None:
    nodes.carry(0, nodes.peers[0].leave())
    nodes.peers[1].leave()


@pytest.mark.slow
@pytest.mark.parametrize("happens", [renewed, away, refused, handshake_lost, left])
def test_a_node_holds_the_secrets_of_the_sessions_that_it_has(
    keys: Sequence[PrivateKey],
    monkeypatch: pytest.MonkeyPatch,
    happens: Callable[[Nodes], None],
) -> None:
    """Of those that are over nothing stays, nor of handshakes that failed; events show none."""
    recorder = Recorder(monkeypatch, peer_protocol)
    nodes = Nodes(keys)
    nodes.meet()
    assert recorder.held_by(nodes.peers[0]) == SESSION_KEYS
    nodes.carry(0, nodes.peers[0].say("hello"))
    before = {*recorder.secrets}
    happens(nodes)
    for peer, events in zip(nodes.peers, nodes.events):
        alive = {
            name
            for session in (peer._session, peer._pending)
            for name in (recorder.held_by(session) if session else ())
        }
        assert recorder.held_by(peer) == alive
        assert recorder.held_by(events) == set()
        if happens is renewed:
            assert alive == {name.replace(" 0", " 1") for name in SESSION_KEYS}
        elif happens is left:
            assert alive == set()
        elif happens in (away, refused):
            assert not alive & before
