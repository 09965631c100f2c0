"""Captures made from event logs: what the log has is on the wire, and nothing else is claimed."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import dpkt
import pytest

from classroom.capture import (
    EPOCH_S,
    HOSTS,
    MOST_LETTERS,
    SEGMENT_BYTES,
    SIDES,
    Connection,
    Told,
    main,
    packets,
    pcapng,
    tell,
)
from classroom.output import write_whole
from classroom.wire import LAB, Field, Wire
from lab.events import Run, event_of, parse_events, runs_of
from program import UserError
from protocol_fsm import Direction, Opcode
from tests.helpers import Pair, reseal
from tests.programs import run

A = b"\x0a" * 71
B = b"\x14" * 71
C = b"\x1e" * 87  # whatever these say


Line = dict[str, Any]


def sent(to: str, message: bytes) -> Line:
    return {"event": "sent", "to": to, "message": message.hex()}


def did(deed: str, to: str, message: bytes, origin: bytes = b"") -> Line:
    line = {"event": event_of(deed), "to": to, "message": message.hex(), "deed": deed}
    return {**line, "origin": origin.hex()} if origin else line


def refused(by: str, message: bytes, error: str) -> Line:
    return {"event": "refused", "by": by, "error": error, "message": message.hex()}


def ended(by: str, error: str) -> Line:
    return {"event": "ended", "by": by, "error": error}


def passed(message: bytes, to: str) -> list[Line]:
    return [sent(to, message), did("passed", to, message)]


def log_of(*lines: Line, attack: str = "x") -> str:
    return "".join(json.dumps({"attack": attack, **line}) + "\n" for line in lines)


def runs(*lines: Line, attack: str = "x") -> list[Run]:
    return [*runs_of(parse_events(log_of(*lines, attack=attack), "log")[0])]


def comments(*lines: Line) -> list[Told]:
    return [told for run in runs(*lines) for told in tell(run, LAB)]


REPLAY = runs(
    *passed(A, "server"),
    *passed(B, "client"),
    did("again", "server", A),
    ended("client", "ConnectionCut"),
    ended("server", "BadTag"),
)

# The packets


class Frame:
    """A packet as any reader of capture files sees it."""

    def __init__(self, block: Any) -> None:
        self.side = SIDES[block.iface_id]
        self.comment = block.opts[0].text
        self.time_us = (block.ts_high << 32) + block.ts_low
        self.ip = dpkt.ip.IP(block.pkt_data)
        self.tcp = self.ip.data
        self.bytes = block.pkt_data


def blocks_of(data: bytes) -> list[tuple[int, bytes]]:
    """Cut a capture file into its blocks, with their types, by the lengths in them."""
    found = []
    at = 0
    while at < len(data):
        kind, length = (int.from_bytes(data[at + n : at + n + 4], "little") for n in (0, 4))
        assert data[at + length - 4 : at + length] == length.to_bytes(4, "little")
        found.append((kind, data[at : at + length]))
        at += length
    return found


def frames(log: list[Run], wire: Wire = LAB) -> list[Frame]:
    data = pcapng(list(packets(log, wire)))
    return [
        Frame(dpkt.pcapng.EnhancedPacketBlockLE(block))
        for kind, block in blocks_of(data)
        if kind == 6
    ]


def test_the_file_has_two_named_interfaces() -> None:
    kinds = blocks_of(pcapng(list(packets(REPLAY, LAB))))
    assert [kind for kind, _ in kinds[:3]] == [0x0A0D0D0A, 1, 1]
    names = [
        dpkt.pcapng.InterfaceDescriptionBlockLE(block).opts[0].data
        for kind, block in kinds
        if kind == 1
    ]
    assert names == [b"client side", b"server side"]


def test_every_packet_has_a_comment_right_checksums_and_its_own_millisecond() -> None:
    for number, frame in enumerate(frames(REPLAY)):
        assert frame.comment
        assert frame.time_us == EPOCH_S * 1_000_000 + 1_000 * number
        again = dpkt.ip.IP(frame.bytes)
        again.sum = 0
        again.data.sum = 0
        assert bytes(again) == frame.bytes  # which fills in what is 0


def carried(found: list[Frame]) -> list[tuple[str, str, bytes]]:
    """Return side, receiver and bytes of all packets with data."""
    receivers = {(SIDES[0], HOSTS[SIDES[0]][0]): "client", (SIDES[1], HOSTS[SIDES[1]][1]): "server"}
    return [
        (frame.side, receivers.get((frame.side, frame.ip.dst), "adversary"), frame.tcp.data)
        for frame in found
        if frame.tcp.data
    ]


def test_each_message_is_on_the_side_where_it_was_seen_and_goes_where_it_went() -> None:
    a, b = (LAB.framed(message) for message in (A, B))
    assert carried(frames(REPLAY)) == [
        ("client side", "adversary", a),
        ("server side", "server", a),
        ("server side", "adversary", b),
        ("client side", "client", b),
        ("server side", "server", a),
    ]


def test_sequence_numbers_count_every_byte_that_each_end_has_sent() -> None:
    expected: dict[tuple[Any, ...], int] = {}
    for frame in frames(REPLAY):
        here = (frame.ip.src, frame.tcp.sport)
        back = (frame.ip.dst, frame.tcp.dport)
        assert frame.tcp.seq == expected.get((here, back), 0)
        if frame.tcp.flags & dpkt.tcp.TH_ACK:
            assert frame.tcp.ack == expected[back, here]
        expected[here, back] = (
            frame.tcp.seq
            + len(frame.tcp.data)
            + bool(frame.tcp.flags & (dpkt.tcp.TH_SYN | dpkt.tcp.TH_FIN))
        )


def test_each_attack_has_a_port_of_its_own_and_the_server_that_of_the_protocol() -> None:
    log = [
        *runs(*passed(A, "server")),
        *runs(*passed(A, "server"), attack="y"),
        *runs(did("inserted", "server", A), attack="z"),
    ]
    assert {frame.tcp.sport for frame in frames(log) if frame.tcp.dport == 9999} == {
        40_001,
        40_002,
        40_003,
    }
    assert {
        frame.side for frame in frames(log) if 40_003 in (frame.tcp.sport, frame.tcp.dport)
    } == {"server side"}, "an outsider has no client"


def test_the_end_whose_peer_closed_first_closes_last() -> None:
    last = {frame.side: frame for frame in frames(REPLAY) if frame.tcp.flags & dpkt.tcp.TH_FIN}
    first = {
        frame.side: frame for frame in reversed(frames(REPLAY)) if frame.tcp.flags & dpkt.tcp.TH_FIN
    }
    assert last["client side"].comment == (
        "x: the client closes; its session ended with ConnectionCut"
    )
    assert first["server side"].comment == "x: the server closes; its session ended with BadTag"


def test_a_long_message_is_cut_as_tcp_cuts_it() -> None:
    message = bytes(65_527)
    parts = [data for _, _, data in carried(frames(runs(did("inserted", "server", message))))]
    assert b"".join(parts) == LAB.framed(message)
    assert [len(part) for part in parts[:-1]] == [SEGMENT_BYTES] * (len(parts) - 1)


def test_the_same_log_gives_the_same_file() -> None:
    assert pcapng(list(packets(REPLAY, LAB))) == pcapng(list(packets(REPLAY, LAB)))


def test_another_protocol_brings_its_port_its_framing_and_its_words() -> None:
    wire = LAB._replace(
        port=7000,
        framed=lambda message: len(message).to_bytes(4, "big") + message,
        describe=lambda message: f"LETTER of {len(message)}",
        fields=lambda message: [Field("all", message)],
    )
    letter = [did("inserted", "server", b"hi"), refused("server", b"hi", "Bad")]
    found = frames(runs(*letter), wire)
    assert carried(found) == [("server side", "server", b"\0\0\0\2hi")]
    assert {frame.tcp.dport for frame in found} == {7000, 40_001}
    (comment,) = [frame.comment for frame in found if frame.tcp.data]
    assert comment == (
        "x: LETTER of 2. The server gets this: sent by the adversary. The server refused it: Bad."
    )


# The comments

FLIPPED = A[:5] + b"\x07\x08" + A[7:]
FLIP = [sent("server", A), did("changed", "server", FLIPPED, A)]
DROP = [sent("server", A), *passed(C, "server")]
HOLD = [sent("server", A), *passed(B, "client"), did("late", "server", A)]
REFLECT = [sent("server", A), did("reflected", "client", A, A)]


@pytest.mark.parametrize(
    ("log", "at", "words"),
    [
        (passed(A, "server"), 0, "Sent by the client; passed on as it was."),
        (passed(A, "server"), 1, "The server gets this: passed on as it was."),
        (passed(B, "client"), 0, "Sent by the server; passed on as it was."),
        (
            [*passed(A, "server"), *[did("again", "server", A)] * 3],
            4,
            "The server gets this: delivered once more (delivery 4).",
        ),
        (DROP, 0, "Sent by the client; not delivered."),
        (DROP, 2, "The server gets this: passed on as it was."),
        (HOLD, 0, "Sent by the client; kept back for a while."),
        (HOLD, 3, "The server gets this: delivered later than it was sent."),
        (FLIP, 0, "Sent by the client; changed on the way."),
        (
            FLIP,
            1,
            "The server gets this: changed on the way (round: 0a -> 07, direction: 0a -> 08).",
        ),
        (
            [sent("server", A), did("changed", "server", A + A[:16], A)],
            1,
            "The server gets this: changed on the way (ciphertext: 16 -> 32 bytes).",
        ),
        (
            [sent("server", A), did("replaced", "server", C, A)],
            1,
            "The server gets this: replaced by another message (opcode: 0a -> 1e, client id: "
            "0a -> 1e, round, direction: 0a -> 1e, IV, ciphertext: 16 -> 32 bytes, tag).",
        ),
        (REFLECT, 0, "Sent by the client; not delivered."),
        (REFLECT, 1, "The client gets this: sent back to its sender."),
        (
            [did("inserted", "server", A), sent("client", B)],
            1,
            "Sent by the server; answered to the adversary.",
        ),
    ],
)
def test_the_comment_says_what_was_done(log: list[Line], at: int, words: str) -> None:
    assert comments(*log)[at].words.partition(" bytes. ")[2] == words


def refusals(*log: Line) -> list[str]:
    return [
        told.words.rpartition(". The ")[2] for told in comments(*log) if "refused" in told.words
    ]


def test_the_comment_says_which_end_refused_it_and_why() -> None:
    bad_tag = refused("server", FLIPPED, "BadTag")
    assert refusals(*FLIP, bad_tag) == ["server refused it: BadTag."]
    assert refusals(*FLIP, refused("client", FLIPPED, "BadTag")) == []
    assert refusals(*FLIP, refused("server", A, "BadTag")) == [], "which never came there"
    assert refusals(*FLIP, ended("server", "BadTag")) == []
    second = comments(
        *passed(A, "server"), did("again", "server", A), refused("server", A, "RoundMismatch")
    )
    assert ["refused" in told.words for told in second] == [False, False, True]


def test_a_sealed_message_is_named() -> None:
    pair = Pair()
    pair.hello()
    report = reseal(pair.client, Opcode.CLIENT_DATA, bytes(17), sender=Direction.C2S)
    (told,) = comments(did("inserted", "server", report))
    assert told.words.startswith(f"CLIENT_DATA, client 1, round 0, C2S, {len(report)} bytes. ")


# What no capture can hold


def test_what_a_log_says_can_be_written_whatever_letters_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "\ud800\x1b[2J" + 70_000 * "x"
    (tmp_path / "log").write_text(log_of(did("inserted", "server", A), attack=name))
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["capture", str(tmp_path / "log"), "-o", str(out)])
    assert main() == 0
    found = [
        Frame(dpkt.pcapng.EnhancedPacketBlockLE(block))
        for kind, block in blocks_of(out.read_bytes())
        if kind == 6
    ]
    assert carried(found) == [("server side", "server", LAB.framed(A))]
    comment = found[0].comment.decode() if isinstance(found[0].comment, bytes) else found[0].comment
    assert comment.startswith("\\ud800\\x1b[2Jxxx")
    assert len(comment) == MOST_LETTERS


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (did("inserted", "server", bytes(65_536)), "x: no frame holds a message of 65,536 bytes"),
        (ended("server", "BadTag"), "there is no message in .*log"),
    ],
    ids=["a message too long for a frame", "no message"],
)
def test_a_log_that_cannot_be_shown_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, event: dict[str, object], why: str
) -> None:
    (tmp_path / "log").write_text(log_of(event))
    monkeypatch.setattr(sys, "argv", ["capture", str(tmp_path / "log"), "-o", str(tmp_path / "o")])
    with pytest.raises(UserError, match=f"^{why}$"):
        main()
    assert not (tmp_path / "o").exists()


def test_events_that_nobody_knows_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    log.write_text(log_of({"event": "un\x1bheard"}, did("inserted", "server", A)))
    monkeypatch.setattr(sys, "argv", ["capture", str(log), "-o", str(tmp_path / "o")])
    assert main() == 0
    said = capsys.readouterr().err
    assert said == f"{log}: not shown, because not known here: un\\x1bheard\n"


# Files that cannot be written


def test_without_its_package_it_says_which_one_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dpkt", None)
    with pytest.raises(UserError, match=r"^this needs dpkt: pip install -r requirements-evid"):
        list(packets(REPLAY, LAB))


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    write_whole(path, b"old")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(UserError, match=r"^cannot write "):
        write_whole(path, b"new")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_it_is_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log").write_text(log_of(did("inserted", "server", A)))
    out = tmp_path / "out.pcapng"
    monkeypatch.setattr(sys, "argv", ["capture", str(tmp_path / "log"), "-o", str(out)])
    assert main() == 0
    assert capsys.readouterr() == (f"9 packets in {out}\n", "")
    assert len(list(dpkt.pcapng.Reader(io.BytesIO(out.read_bytes())))) == 9


@pytest.mark.slow
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    done = run("-m", "classroom.capture", str(tmp_path), "-o", str(tmp_path / "out"))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert not (tmp_path / "out").exists()


def test_a_log_is_not_replaced_by_its_own_capture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    log.write_text(log_of(did("inserted", "server", A)))
    monkeypatch.setattr(sys, "argv", ["capture", str(log), "-o", str(log)])
    with pytest.raises(UserError, match="it is read here"):
        main()


def test_a_connection_counts_its_syn_and_fin() -> None:
    connection = Connection(SIDES[0], (1, 2), dpkt)
    for _ in (*connection.connect("x"), *connection.close(0, ("a", "b"))):
        pass
    assert connection._next == [2, 2]
