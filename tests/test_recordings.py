"""Messages are found in whatever they were recorded, and what is not read is said."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import ipaddress
import json
import lzma
import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from classroom.capture import packets, pcapng
from classroom.recordings import HEADLESS, ILLEGAL, MOST_BYTES, Recorded, recorded
from classroom.wire import LAB
from lab.events import parse_events, runs_of
from program import UserError
from protocol_fsm import Direction
from tests.helpers import Pair, live
from tests.programs import posix_only

MESSAGES = live(Pair())
FRAMES = [LAB.framed(message) for message in MESSAGES]
STREAM = b"".join(FRAMES)
SENT = [frame for frame in FRAMES if frame[8] == Direction.C2S]
REPORTS = [message for message in MESSAGES if message[6] == Direction.C2S]


def found_in(data: bytes, tmp_path: Path) -> tuple[list[Recorded], list[str]]:
    """Return what a file holds, and what was said of the rest."""
    path = tmp_path / "recording"
    path.write_bytes(data)
    said: list[str] = []
    return recorded(str(path), None, said.append), said


def messages_in(data: bytes, tmp_path: Path) -> list[bytes]:
    """Return the messages of a file of which nothing is left out."""
    found, said = found_in(data, tmp_path)
    assert said == []
    assert all(not one.missing and not one.nonsense for one in found)
    return [one.message for one in found]


# Raw bytes, text and event logs


def events() -> str:
    lines = []
    for message in MESSAGES:
        to = "client" if message[6] else "server"
        sent = {"attack": "none", "event": "sent", "to": to, "message": message.hex()}
        lines += [sent, {**sent, "event": "delivered", "deed": "passed"}]
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_every_form_of_a_recording_has_the_same_messages(tmp_path: Path) -> None:
    assert messages_in(STREAM, tmp_path) == MESSAGES
    assert messages_in(STREAM.hex(":", 16).encode(), tmp_path) == MESSAGES
    assert messages_in(b"\xef\xbb\xbf" + STREAM.hex().upper().encode(), tmp_path) == MESSAGES
    assert messages_in(events().encode(), tmp_path) == MESSAGES
    assert messages_in(events().encode("utf-8-sig"), tmp_path) == MESSAGES
    assert messages_in(gzip.compress(events().encode()), tmp_path) == MESSAGES
    capture = pcapng([*packets([*runs_of(parse_events(events(), "log")[0])], LAB)])
    twice = [message for message in MESSAGES for _ in range(2)]
    assert messages_in(capture, tmp_path) == messages_in(gzip.compress(capture), tmp_path) == twice
    assert [one.message for one in recorded(STREAM.hex(), None, pytest.fail)] == MESSAGES
    for message in MESSAGES:
        (one,) = recorded(message.hex(), None, pytest.fail)
        assert one.message == message


@pytest.mark.parametrize(
    ("rest", "why"),
    [(b"\xff\xff", ILLEGAL), (b"\0\x48" + bytes(80), ILLEGAL), (b"\0", HEADLESS)],
)
def test_bytes_that_are_no_frame_are_shown_to_the_end(
    tmp_path: Path, rest: bytes, why: str
) -> None:
    found, _ = found_in(STREAM + rest, tmp_path)
    assert [one.message for one in found] == [*MESSAGES, rest]
    assert found[-1].where == f"byte {len(STREAM)} and on: no whole frame"
    assert found[-1].nonsense == why


def test_the_last_message_of_a_stream_may_be_cut(tmp_path: Path) -> None:
    found, _ = found_in(STREAM[:-5], tmp_path)
    assert [one.message for one in found[:-1]] == MESSAGES[:-1]
    size = len(MESSAGES[-1])
    assert found[-1].message == MESSAGES[-1][:-5] + bytes(5)
    assert found[-1].missing == {*range(size - 5, size)}
    assert found[-1].where.endswith("; 5 of its bytes missing here")


def test_an_event_says_what_was_done_and_one_attack_can_be_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "log"
    other = events().replace('"none"', '"ot\\u202eher\\u001b[2J"')
    path.write_text(events() + other + '{"attack": "x", "event": "un\\u001bheard"}\n')
    said: list[str] = []
    (first, *_) = recorded(str(path), "none", said.append)
    assert first.where == "none 1. The server gets this: passed on as it was."
    assert said == [f"{path}: not shown, because not known here: un\\x1bheard"]
    assert len(recorded(str(path), None, said.append)) == 2 * len(MESSAGES)
    assert len(recorded(str(path), "none", said.append)) == len(MESSAGES)
    name = "ot\\u202eher\\x1b[2J"
    assert len(recorded(str(path), name, said.append)) == len(MESSAGES)
    with pytest.raises(UserError) as caught:
        recorded(str(path), "nobody", said.append)
    assert str(caught.value) == f"{path} has no attack nobody; it has none, {name}"


def test_of_a_message_with_some_bytes_changed_these_are_named(tmp_path: Path) -> None:
    old = MESSAGES[2]
    changed = old[:30] + bytes([old[30] ^ 1]) + old[31:]
    for deed, places in (("changed", [30]), ("reflected", [30]), ("replaced", [])):
        sent = {"attack": "x", "event": "sent", "to": "server", "message": old.hex()}
        line = {**sent, "event": "inserted", "message": changed.hex(), "deed": deed}
        line["origin"] = old.hex()
        text = f"{json.dumps(sent)}\n{json.dumps(line)}\n"
        *_, one = found_in(text.encode(), tmp_path)[0]
        assert (one.message, [*one.touched]) == (changed, places)


def test_what_gzip_cannot_unpack_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = gzip.compress(STREAM, mtime=0)
    path = tmp_path / "recording"
    found, said = found_in(packed[:-300], tmp_path)
    assert said == [f"Not all of {path} could be unpacked"]
    assert found[0].message == MESSAGES[0]
    _, said = found_in(packed + packed, tmp_path)
    assert said == [f"Not all of {path} could be unpacked"]
    with pytest.raises(UserError, match=r"is damaged: its gzip cannot be unpacked$"):
        found_in(packed[:8] + b"\xff" * 300, tmp_path)
    assert MOST_BYTES >= 2**20
    monkeypatch.setattr("classroom.recordings.MOST_BYTES", 500)
    with pytest.raises(UserError, match=r"is too large: unpacked it has over 500 bytes$"):
        found_in(packed, tmp_path)


@pytest.mark.parametrize(
    ("name", "packed"),
    [
        ("xz", lzma.compress(STREAM)),
        ("bzip2", bz2.compress(STREAM)),
        ("zstd", b"\x28\xb5\x2f\xfd" + STREAM),
        ("zip", b"PK\3\4" + STREAM),
    ],
)
def test_another_compression_is_named(tmp_path: Path, name: str, packed: bytes) -> None:
    with pytest.raises(UserError, match=f"is compressed with {name}; unpack it first$"):
        found_in(packed, tmp_path)


@pytest.mark.parametrize("magic", [b"\x34\xcd\xb2\xa1", b"\xa1\xb2\xcd\x34", b"snoop\0", b"GMBU"])
def test_a_capture_of_another_kind_is_named(tmp_path: Path, magic: bytes) -> None:
    """Its bytes would be told as those of a frame that no receiver reads."""
    with pytest.raises(UserError, match=r"is a capture \(.*\); convert it: editcap -F pcapng$"):
        found_in(magic + STREAM, tmp_path)


# Dumps with offsets


def text_of(row: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)


def xxd(data: bytes, width: int = 16) -> str:
    lines = []
    for at in range(0, len(data), width):
        row = data[at : at + width]
        lines.append(f"{at:08x}: {row.hex(' ', -2):<{width // 2 * 5}} {text_of(row)}")
    return "\n".join(lines) + "\n"


def hexdump_c(data: bytes) -> str:
    lines = []
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        halves = f"{row[:8].hex(' ')}  {row[8:].hex(' ')}"
        lines.append(f"{at:08x}  {halves:<49} |{text_of(row)}|")
    return "\n".join([*lines, f"{len(data):08x}"]) + "\n"


def od(data: bytes, base: str = "06x") -> str:
    lines = [f"{at:{base}} {data[at : at + 16].hex(' ')}" for at in range(0, len(data), 16)]
    return "\n".join([*lines, f"{len(data):{base}}"]) + "\n"


def tshark_x(data: bytes) -> str:
    rows = [(at, data[at : at + 16]) for at in range(0, len(data), 16)]
    return "".join(f"{at:04x}  {row.hex(' '):<47}   {text_of(row)}\n" for at, row in rows)


DUMPS: dict[str, Callable[[bytes], str]] = {
    "xxd": xxd,
    "xxd -c 8": lambda data: xxd(data, 8),
    "hexdump -C": hexdump_c,
    "od": od,
    "od in octal": lambda data: od(data, "07o"),
    "od in decimal": lambda data: od(data, "07d"),
    "tshark -x": tshark_x,
}


@pytest.mark.parametrize("dump", DUMPS.values(), ids=DUMPS)
def test_a_dump_with_offsets_is_read(tmp_path: Path, dump: Callable[[bytes], str]) -> None:
    assert messages_in(dump(STREAM).encode(), tmp_path) == MESSAGES
    letters = LAB.framed(MESSAGES[2][:23] + b"  00 11 | ab cd |" * 2 + MESSAGES[2][57:])
    for frame in (letters, *FRAMES):  # of lengths that end in all places of a row
        assert messages_in(dump(frame).encode(), tmp_path) == [frame[2:]]
    assert messages_in(dump(gapless(SENT)).upper().encode(), tmp_path) == REPORTS


@pytest.mark.parametrize("dump", DUMPS.values(), ids=DUMPS)
def test_a_dump_that_lacks_a_line_is_refused(tmp_path: Path, dump: Callable[[bytes], str]) -> None:
    lines = dump(STREAM).splitlines()
    for without in (lines[:2] + lines[3:], lines[1:], [*lines[:2], "*", *lines[4:]]):
        with pytest.raises(UserError, match="of dumps with offsets, those of xxd, hexdump -v"):
            found_in("\n".join(without).encode(), tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "0000000 4700 010a 0000\n0000006\n",
        "000000 4700 010a 0000\n000006\n",
        "00000000: 0a014700 00000000\n",
        "0000000 005000 000400\n0000004\n",
    ],
    ids=["hexdump", "od -A x -x", "xxd -e", "od"],
)
def test_words_of_which_nobody_knows_the_order_of_bytes_are_refused(
    tmp_path: Path, text: str
) -> None:
    with pytest.raises(UserError, match="of dumps with offsets, those of xxd, hexdump -v"):
        found_in(text.encode(), tmp_path)


@posix_only
@pytest.mark.parametrize(
    "words", [["xxd"], ["hexdump", "-v", "-C"], ["od", "-v", "-A", "x", "-t", "x1"], ["xxd", "-p"]]
)
def test_the_tools_themselves_write_what_is_read(tmp_path: Path, words: list[str]) -> None:
    if not shutil.which(words[0]):
        pytest.skip(f"there is no {words[0]}")
    (tmp_path / "raw").write_bytes(STREAM)
    done = subprocess.run([*words, str(tmp_path / "raw")], capture_output=True, check=True)
    assert messages_in(done.stdout, tmp_path) == MESSAGES


# Captures: link layers and file formats

HERE = b"\x7f\0\0\1"
HERE_6 = ipaddress.ip_address("::1").packed
SYN, FIN, RST, ACK = (2, 1, 4, 16)


def tcp(
    sequence: int,
    data: bytes = b"",
    flags: int = ACK,
    ports: tuple[int, int] = (40_000, 9999),
    **fields: Any,
) -> bytes:
    """Return an IP packet on loopback."""
    segment = dpkt.tcp.TCP(
        sport=ports[0], dport=ports[1], seq=sequence % 2**32, flags=flags, data=data
    )
    return bytes(dpkt.ip.IP(src=HERE, dst=HERE, p=6, data=segment, **fields))


def tcp_6(sequence: int, data: bytes) -> bytes:
    segment = dpkt.tcp.TCP(sport=40_000, dport=9999, seq=sequence, flags=ACK, data=data)
    size = len(bytes(segment))
    return bytes(dpkt.ip6.IP6(src=HERE_6, dst=HERE_6, nxt=6, plen=size, data=segment))


def pcap(
    found: Sequence[bytes], link_type: int = 101, order: str = "<", snaplen: int = 2**18
) -> bytes:
    """Return a capture of packets, cut to so many bytes."""
    head = struct.pack(f"{order}IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, snaplen, link_type)
    records = [
        struct.pack(f"{order}IIII", 1, 0, len(packet[:snaplen]), len(packet)) + packet[:snaplen]
        for packet in found
    ]
    return head + b"".join(records)


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    body += bytes(-len(body) % 4)
    size = struct.pack(f"{order}I", 12 + len(body))
    return struct.pack(f"{order}I", kind) + size + body + size


def section(order: str, *link_types: int) -> bytes:
    head = block(0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1), order)
    return head + b"".join(
        block(1, struct.pack(f"{order}HHI", link_type, 0, 200), order) for link_type in link_types
    )


def enhanced(interface: int, packet: bytes, order: str = "<") -> bytes:
    fields = struct.pack(f"{order}IIIII", interface, 0, 0, len(packet), len(packet))
    return block(6, fields + packet + bytes(-len(packet) % 4) + bytes(4), order)


def old_block(interface: int, packet: bytes, order: str = "<") -> bytes:
    fields = struct.pack(f"{order}HHIIII", interface, 0, 0, 0, len(packet), len(packet))
    return block(2, fields + packet, order)


def simple(packet: bytes, order: str = "<") -> bytes:
    return block(3, struct.pack(f"{order}I", len(packet)) + packet[:200], order)


def numbered(frames: Sequence[bytes], start: int = 1) -> list[tuple[int, bytes]]:
    """Return frames with the sequence numbers at which they begin."""
    return [(start + len(b"".join(frames[:n])), frame) for n, frame in enumerate(frames)]


def gapless(frames: Sequence[bytes]) -> bytes:
    return b"".join(frames)


PACKETS = [tcp(*pair) for pair in numbered(SENT)]
IP_4, IP_6, VLAN = (b"\x08\0", b"\x86\xdd", b"\x81\0")
LINKS: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "Ethernet": (1, lambda ip: bytes(12) + IP_4 + ip),
    "Ethernet with VLAN": (1, lambda ip: bytes(12) + VLAN + b"\0\5" + IP_4 + ip),
    "Ethernet with two VLANs": (1, lambda ip: bytes(12) + (VLAN + b"\0\5") * 2 + IP_4 + ip),
    "Ethernet with padding": (1, lambda ip: bytes(12) + IP_4 + ip + bytes(6)),
    "cooked": (113, lambda ip: bytes(14) + IP_4 + ip),
    "cooked 2": (276, lambda ip: IP_4 + bytes(18) + ip),
    "null": (0, lambda ip: b"\2\0\0\0" + ip),
    "loopback": (108, lambda ip: b"\0\0\0\2" + ip),
    "raw": (101, lambda ip: ip),
    "raw of OpenBSD": (14, lambda ip: ip),
    "raw of BSD": (12, lambda ip: ip),
    "IPv4": (228, lambda ip: ip),
}
LINKS_6: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "Ethernet": (1, lambda ip: bytes(12) + IP_6 + ip),
    "cooked 2": (276, lambda ip: IP_6 + bytes(18) + ip),
    "null": (0, lambda ip: b"\x1e\0\0\0" + ip),
    "raw": (101, lambda ip: ip),
    "IPv6": (229, lambda ip: ip),
}


@pytest.mark.parametrize(("link_type", "wrap"), LINKS.values(), ids=LINKS)
@pytest.mark.parametrize("order", "<>")
def test_packets_of_each_link_type_are_read(
    tmp_path: Path, link_type: int, wrap: Callable[[bytes], bytes], order: str
) -> None:
    assert messages_in(pcap([*map(wrap, PACKETS)], link_type, order), tmp_path) == REPORTS


@pytest.mark.parametrize(("link_type", "wrap"), LINKS_6.values(), ids=LINKS_6)
def test_ipv6_is_read_on_each_link_type(
    tmp_path: Path, link_type: int, wrap: Callable[[bytes], bytes]
) -> None:
    found = [wrap(tcp_6(*pair)) for pair in numbered(SENT)]
    assert messages_in(pcap(found, link_type), tmp_path) == REPORTS
    assert "::1:40000 to ::1:9999" in recorded(str(tmp_path / "recording"), None, pytest.fail)[0][0]


@pytest.mark.parametrize("order", "<>")
def test_each_interface_of_pcapng_has_its_own_link_type(tmp_path: Path, order: str) -> None:
    wraps = [(link_type, wrap) for link_type, wrap in LINKS.values()]
    parts = [section(order, *(link_type for link_type, _ in wraps))]
    for number, packet in enumerate(PACKETS):
        interface = number % len(wraps)
        make = enhanced if number else old_block
        parts.append(make(interface, wraps[interface][1](packet), order))
    assert messages_in(b"".join(parts), tmp_path) == REPORTS


def test_a_section_of_pcapng_has_its_own_order_and_interfaces(tmp_path: Path) -> None:
    _, cooked = LINKS["cooked 2"]
    statistics = block(5, bytes(12))
    parts = [section("<", 101), enhanced(0, PACKETS[0]), statistics, section(">", 276)]
    parts += [enhanced(0, cooked(packet), ">") for packet in PACKETS[1:3]]
    parts += [simple(cooked(packet), ">") for packet in PACKETS[3:]]
    assert messages_in(b"".join(parts), tmp_path) == REPORTS


def test_what_is_not_read_is_named_with_its_packets(tmp_path: Path) -> None:
    udp = bytes(dpkt.ip.IP(src=HERE, dst=HERE, p=17, data=dpkt.udp.UDP(sport=1, dport=2)))
    fragment = tcp(1, SENT[0], mf=1)
    strange = tcp(1, b"GET / HTTP/1.1\r\n\r\n", ports=(80, 81))
    first = tcp(1, SENT[0])
    secret = bytes(dpkt.ip6.IP6(src=HERE_6, dst=HERE_6, nxt=50, plen=24, data=bytes(24)))  # ESP
    wraps = [udp, first, fragment, strange, secret, first[:30], b"", b"\x45" + bytes(3)]
    parts = [section("<", 101, 127), *(enhanced(0, packet) for packet in wraps)]
    parts.append(enhanced(1, PACKETS[1]))
    found, said = found_in(b"".join(parts) + b"\6\0\0", tmp_path)
    assert [one.message for one in found] == REPORTS[:1]
    assert said == [
        "Not TCP, and so not read: packets 1, 5",
        "A fragment of an IP packet, and so not read: packet 3",
        "Cut before the end of its TCP header, and so not read: packet 6",
        "Cut before its TCP header, or no packet at all: packets 7, 8",
        "Of link type 127, which is not read here: packet 9",
        "The file is cut off or damaged, and nothing could be read after packet 9",
        "On another port, with no frame first, and so not read: since packet 4",
    ]


def test_a_stream_on_another_port_is_read_if_it_begins_with_a_frame(tmp_path: Path) -> None:
    found = [tcp(*pair, ports=(1, 2)) for pair in numbered(SENT)]
    assert messages_in(pcap(found), tmp_path) == REPORTS


@pytest.mark.parametrize("cut", [1, 40, len(PACKETS[-1]), len(PACKETS[-1]) + 16])
def test_a_file_that_is_cut_off_is_read_up_to_there(tmp_path: Path, cut: int) -> None:
    found, said = found_in(pcap(PACKETS)[:-cut], tmp_path)
    assert [one.message for one in found] == REPORTS[:-1]
    is_at_packet = cut == len(PACKETS[-1]) + 16
    last = len(PACKETS) - 1
    assert said == (
        []
        if is_at_packet
        else [f"The file is cut off or damaged, and nothing could be read after packet {last}"]
    )


def test_blocks_without_a_size_end_the_reading(tmp_path: Path) -> None:
    data = section("<", 101) + enhanced(0, PACKETS[0]) + bytes(40)
    found, said = found_in(data, tmp_path)
    assert len(found) == 1
    assert said == ["The file is cut off or damaged, and nothing could be read after packet 1"]


@pytest.mark.slow
@given(st.binary(max_size=300), st.integers(0, 400))
def test_nonsense_behind_the_beginning_of_a_file_is_no_traceback(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int
) -> None:
    folder = tmp_path_factory.mktemp("noise")
    for data in (pcap(PACKETS), section("<", 1, 276, 113, 0) + enhanced(0, PACKETS[0])):
        with contextlib.suppress(UserError):
            found_in(data[:at] + noise + data[at:], folder)


# Captures: what TCP does


@pytest.mark.parametrize("start", [7, 2**32 - 100], ids=["", "over the end of numbers"])
@pytest.mark.parametrize("has_syn", [True, False])
def test_segments_that_come_twice_or_out_of_order_are_put_in_order(
    tmp_path: Path, start: int, has_syn: bool
) -> None:
    stream = gapless(SENT)
    segments = [(start + at, stream[at : at + 50]) for at in range(0, len(stream), 50)]
    longer = (segments[1][0], stream[50:170])
    mixed = [*segments[:1], *random.Random(1).sample(segments[1:], len(segments) - 1)]
    probe = (start - 1, b"\0")  # of keep-alive
    syn = [tcp(start - 1, flags=SYN)] * 2 if has_syn else []
    sent = [*mixed, segments[2], longer, *([probe] if has_syn else [])]
    found = [*syn, *(tcp(*segment) for segment in sent)]
    assert messages_in(pcap(found), tmp_path) == REPORTS


def lost(found: list[bytes], *numbers: int) -> bytes:
    return pcap([packet for number, packet in enumerate(found) if number not in numbers])


def test_one_missing_packet_loses_one_message(tmp_path: Path) -> None:
    found, said = found_in(lost([tcp(0, flags=SYN), *PACKETS], 2), tmp_path)
    assert said == ["Bytes of a stream are missing before packet 3"]
    rest = [one for one in found if not one.missing]
    assert [one.message for one in rest] == [REPORTS[0], *REPORTS[2:]]
    assert [one.nonsense for one in rest] == [""] * len(rest)


def test_after_a_missing_packet_of_many_frames_the_next_frame_is_found(tmp_path: Path) -> None:
    stream = gapless(SENT)
    frames = [SENT[0] + SENT[1] + SENT[2][:30], SENT[2][30:], *SENT[3:]]
    assert gapless(frames) == stream
    syn = tcp(0, flags=SYN)
    found, said = found_in(lost([syn, *(tcp(*pair) for pair in numbered(frames))], 1), tmp_path)
    assert said == ["Bytes of a stream are missing before packet 2"]
    assert [(one.message, one.nonsense) for one in found] == [
        (SENT[2][30:], HEADLESS),
        *((report, "") for report in REPORTS[3:]),
    ]


def test_a_hole_in_a_message_is_shown_as_one(tmp_path: Path) -> None:
    frames = [SENT[0], SENT[1][:40], SENT[1][40:50], SENT[1][50:], *SENT[2:]]
    found, said = found_in(lost([tcp(*pair) for pair in numbered(frames)], 2), tmp_path)
    assert said == ["Bytes of a stream are missing before packet 3"]
    assert [one.message for one in found if not one.missing] == [REPORTS[0], *REPORTS[2:]]
    (cut,) = [one for one in found if one.missing]
    assert cut.missing == {*range(38, 48)}
    assert cut.message == REPORTS[1][:38] + bytes(10) + REPORTS[1][48:]
    assert cut.where.endswith("; 10 of its bytes missing here")


def test_the_end_that_is_missing_is_said(tmp_path: Path) -> None:
    end = 1 + len(gapless(SENT))
    whole = [tcp(0, flags=SYN), *PACKETS, tcp(end, flags=FIN | ACK), tcp(end + 1, flags=ACK)]
    assert messages_in(pcap(whole), tmp_path) == REPORTS
    found, said = found_in(lost(whole, len(PACKETS)), tmp_path)
    assert said == [f"Bytes of a stream are missing before packet {len(PACKETS) + 1}"]
    assert [one.message for one in found[: len(REPORTS) - 1]] == REPORTS[:-1]


def test_a_capture_that_begins_late_begins_with_the_next_frame(tmp_path: Path) -> None:
    unknown = SENT[2][:2] + b"\x4d" + SENT[2][3:]
    frames = [SENT[0][30:], SENT[1], unknown, SENT[3]]
    found, said = found_in(pcap([tcp(*pair) for pair in numbered(frames)]), tmp_path)
    assert said == []
    assert [(one.message, one.nonsense) for one in found] == [
        (SENT[0][30:], HEADLESS),
        *((frame[2:], "") for frame in frames[1:]),
    ]


def test_an_illegal_length_ends_what_is_read_up_to_the_next_gap(tmp_path: Path) -> None:
    garbage = b"\0\x48" + SENT[1]
    frames = [SENT[0], garbage, SENT[1], SENT[2], SENT[3]]
    syn = tcp(0, flags=SYN)
    found, _ = found_in(lost([syn, *(tcp(*pair) for pair in numbered(frames))], 4), tmp_path)
    assert [(one.message, one.nonsense) for one in found] == [
        (REPORTS[0], ""),
        (garbage + SENT[1], ILLEGAL),
        (REPORTS[3], ""),
    ]


@pytest.mark.parametrize("start", [0, 5_000, 2**31, 2**32 - 1])
@pytest.mark.parametrize("end", [FIN | ACK, RST, ACK])
def test_each_syn_on_the_same_ports_begins_a_stream(tmp_path: Path, start: int, end: int) -> None:
    """The second connection may have the same first number as the first, if that is over."""
    if start == 0 and end == ACK:
        pytest.skip("the same number again, while the first is not over, is the same SYN again")
    first = [tcp(0, flags=SYN), *PACKETS, tcp(1 + len(gapless(SENT)), flags=end)]
    second = [tcp(start, flags=SYN), *(tcp(*pair) for pair in numbered(SENT, start + 1))]
    assert messages_in(pcap(first + second), tmp_path) == REPORTS * 2


def test_a_syn_begins_the_stream_of_the_other_end_too(tmp_path: Path) -> None:
    answers = [frame for frame in FRAMES if frame not in SENT]
    back = (9999, 40_000)
    first = [tcp(0, flags=SYN), *(tcp(*pair, ports=back) for pair in numbered(answers, 10**6))]
    second = [tcp(9, flags=SYN), *(tcp(*pair, ports=back) for pair in numbered(answers, 3))]
    assert messages_in(pcap(first + second), tmp_path) == [frame[2:] for frame in answers] * 2


def test_a_refused_connection_has_no_messages_and_no_notes(tmp_path: Path) -> None:
    refused = [tcp(5, flags=SYN, ports=(1, 9999)), tcp(0, flags=RST | ACK, ports=(9999, 1))]
    assert messages_in(pcap([*refused, *PACKETS]), tmp_path) == REPORTS


def test_numbers_that_are_far_away_are_of_another_connection(tmp_path: Path) -> None:
    far = [tcp(*pair) for pair in numbered(SENT, 2**30)]
    assert messages_in(pcap(PACKETS + far), tmp_path) == REPORTS * 2


def test_a_repetition_with_other_bytes_is_said(tmp_path: Path) -> None:
    other = tcp(1, bytes(len(SENT[0])))
    found, said = found_in(pcap([*PACKETS, other]), tmp_path)
    assert [one.message for one in found] == REPORTS
    number = len(PACKETS) + 1
    assert said == [f"Other bytes than before, and so not shown, are in packet {number}"]


@pytest.mark.parametrize("snaplen", [40, 41, 50, 90, 110])
@pytest.mark.parametrize(("link_type", "wrap"), [LINKS["raw"], LINKS["Ethernet"]])
def test_packets_that_were_cut_show_what_they_have(
    tmp_path: Path, snaplen: int, link_type: int, wrap: Callable[[bytes], bytes]
) -> None:
    before = len(wrap(b""))
    data = pcap([wrap(tcp(0, flags=SYN)), *map(wrap, PACKETS)], link_type, snaplen=before + snaplen)
    there = snaplen - 40  # headers of IP and TCP
    if there == 0:
        with pytest.raises(UserError, match="there is no message"):
            found_in(data, tmp_path)
        return
    found, said = found_in(data, tmp_path)
    assert said == ["Cut short when it was captured: packets 2, 3, 4, 5"]
    if there == 1:
        assert {one.nonsense for one in found} == {HEADLESS}
        return
    assert len(found) == len(REPORTS)
    for one, report in zip(found, REPORTS):
        assert len(one.message) == len(report)
        assert one.missing == {*range(there - 2, len(report))}
        assert one.message[: there - 2] == report[: there - 2]


def test_a_cut_packet_that_came_again_whole_is_whole(tmp_path: Path) -> None:
    parts = [section("<", 101)]
    packet = PACKETS[0]
    fields = struct.pack("<IIIII", 0, 0, 0, 60, len(packet))
    parts += [block(6, fields + packet[:60]), enhanced(0, packet)]
    found, said = found_in(b"".join(parts), tmp_path)
    assert [(one.message, one.missing) for one in found] == [(REPORTS[0], frozenset())]
    assert said == ["Cut short when it was captured: packet 1"]


def test_a_packet_that_leaves_its_size_to_the_network_card_is_whole(tmp_path: Path) -> None:
    found = [packet[:2] + bytes(2) + packet[4:] for packet in PACKETS]
    assert messages_in(pcap(found), tmp_path) == REPORTS
    cut, said = found_in(pcap(found, snaplen=100), tmp_path)
    assert said == ["Cut short when it was captured: packets 1, 2, 3, 4"]
    assert {len(one.missing) for one in cut} == {len(packet) - 100 for packet in PACKETS}


def test_without_its_package_it_says_which_one_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "dpkt", None)
    with pytest.raises(UserError, match=r"^this needs dpkt: pip install -r requirements-evid"):
        found_in(pcap(PACKETS), tmp_path)
