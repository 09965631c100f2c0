"""The dissector in tshark: what it shows is what Python reads, however TCP cut it."""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import dpkt
import pytest

from classroom.capture import SIDES, Connection, Packet, pcapng
from classroom.explain import explain
from classroom.keylog import plaintext_of, read_keylog
from classroom.recordings import recorded
from classroom.wire import LAB
from crypto_utils import TAG_BYTES
from endpoint import OPCODE_NAMES
from lab.events import parse_events
from protocol_fsm import (
    CIPHERTEXT_AT,
    HEADER,
    MAX_MESSAGE,
    MIN_MESSAGE,
    OVERHEAD,
    BadTag,
    ClientData,
    Direction,
    Header,
    Opcode,
    RoundMismatch,
    Status,
)
from tests.helpers import Pair, live, logged_pair, with_header
from tests.programs import TIMEOUT_S, posix_only, run, running_server

FOLDER = Path(__file__).parent.parent / "classroom" / "wireshark"
SCRIPT = FOLDER / "seclab.lua"
README = (FOLDER / "README.md").read_text("utf-8")
TSHARK = shutil.which("tshark")
with_tshark = [
    pytest.mark.slow,
    pytest.mark.skipif(TSHARK is None, reason="tshark is not installed"),
]


def slow(test: object) -> object:
    for mark in with_tshark:
        test = mark(test)
    return test


# The script, without tshark

LUA = SCRIPT.read_text("utf-8")


def lua_names(table: str) -> list[str]:
    body = re.search(rf"^local {table} = {{(.*?)}}", LUA, re.DOTALL | re.MULTILINE)
    assert body
    return re.findall(r'"(\w+)"', body[1])


def test_the_numbers_of_the_script_are_those_of_the_protocol() -> None:
    for names, numbers in re.findall(r"^local ([A-Z_, ]+) = ([\d, ]+)$", LUA, re.MULTILINE):
        for name, number in zip(names.split(", "), numbers.split(", ")):
            ours = {
                "PORT": LAB.port,
                "MIN_MESSAGE": MIN_MESSAGE,
                "MAX_MESSAGE": MAX_MESSAGE,
                "OVERHEAD": OVERHEAD,
                "BLOCK": 16,
                "IV_AT": HEADER.size,
                "CIPHERTEXT_AT": CIPHERTEXT_AT,
                "TAG_BYTES": TAG_BYTES,
                "NONCE_BYTES": 16,
                "HELLO": Opcode.CLIENT_HELLO,
                "CHALLENGE": Opcode.SERVER_CHALLENGE,
                "DATA": Opcode.CLIENT_DATA,
                "RESPONSE": Opcode.SERVER_AGGR_RESPONSE,
                "DESYNC": Opcode.KEY_DESYNC_ERROR,
                "TERMINATE": Opcode.TERMINATE,
            }
            assert int(number) == ours[name]
    assert lua_names("OPCODES") == [*OPCODE_NAMES.values()]
    assert lua_names("STATUSES") == [status.name for status in Status]
    assert lua_names("DIRECTIONS") == [direction.name for direction in Direction]


def test_the_readme_names_every_field_and_no_other() -> None:
    named = set(re.findall(r"`(seclab\.\w+)", README)) - {
        "seclab.lua",
        "seclab.png",
        "seclab.keylog",
    }
    fields = set(re.findall(r'"(seclab\.[a-z_]+)"', LUA))
    experts = {f"seclab.{name}" for name in re.findall(r'info\("(\w+)"', LUA)}
    assert named == fields | experts
    colours = dict(re.findall(r"^\| `seclab\.(\w+)` \| (red|yellow|blue) \|", README, re.MULTILINE))
    severities = dict(re.findall(r'info\("(\w+)"[^)]*?(ERROR|WARN|NOTE)\)', LUA))
    assert {
        name: {"ERROR": "red", "WARN": "yellow", "NOTE": "blue"}[severity]
        for name, severity in severities.items()
    } == colours


def test_links_of_the_readme_lead_somewhere_and_the_picture_is_small() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (FOLDER / target).exists(), target
    assert (FOLDER / "seclab.png").stat().st_size < 150_000


# tshark


def tshark(*words: object, home: Path | None = None, script: Path | None = SCRIPT) -> str:
    """Return what tshark prints. A Lua error is a failure, though tshark exits with 0."""
    flags = ["-X", f"lua_script:{script}"] if script else []
    assert TSHARK
    done = subprocess.run(
        [TSHARK, *map(str, words), *flags],
        text=True,
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
        env={**os.environ, **({"HOME": str(home)} if home else {})},
    )
    assert done.returncode == 0, done.stderr
    assert "lua" not in done.stderr.lower(), done.stderr
    assert "Lua Error" not in done.stdout
    return done.stdout


def fields(path: Path, *names: str, flags: Sequence[object] = ()) -> list[list[str]]:
    """Return one list for each packet with messages in it, with the values of these fields."""
    wanted = [word for name in names for word in ("-e", name)]
    lines = tshark("-r", path, *flags, "-Y", "seclab", "-T", "fields", *wanted).splitlines()
    return [line.split("\t") for line in lines]


def written(path: Path, *sent: tuple[int, bytes], side: str = SIDES[1], port: int = 9999) -> Path:
    """Write a capture of one connection: who sent (0 is the client) which bytes in one piece."""
    path.write_bytes(pcapng(connection(*sent, side=side, port=port)))
    return path


def connection(
    *sent: tuple[int, bytes], side: str = SIDES[1], port: int = 9999, client_port: int = 40_001
) -> list[Packet]:
    tcp = Connection(side, (client_port, port), dpkt)
    found = list(tcp.connect("client"))
    for end, data in sent:
        found += tcp.carry(end, data, "data")
    return [*found, *tcp.close(0, ("end", "end"))]


def dialogue(messages: Sequence[bytes]) -> list[tuple[int, bytes]]:
    return [(message[6] & 1, LAB.framed(message)) for message in messages]


PUBLIC = (
    "seclab.length",
    "seclab.opcode",
    "seclab.client_id",
    "seclab.round",
    "seclab.direction",
    "seclab.iv",
    "seclab.ciphertext",
    "seclab.tag",
)


def public(message: bytes) -> list[str]:
    header = Header(*HEADER.unpack_from(message))
    parts = (message[7:CIPHERTEXT_AT], message[CIPHERTEXT_AT:-TAG_BYTES], message[-TAG_BYTES:])
    return [*map(str, (len(message), *header)), *(part.hex() for part in parts)]


EXPERTS = (
    "malformed",
    "cut",
    "unknown_opcode",
    "wrong_direction",
    "round_jump",
    "replay",
    "elsewhere",
    "refused",
    "changed",
    "unsealed",
)


def remarks(path: Path, *flags: object) -> list[list[str]]:
    """Return for each packet with messages which expert infos it has."""
    found = fields(path, "frame.number", *(f"seclab.{name}" for name in EXPERTS), flags=flags)
    return [[name for name, value in zip(EXPERTS, values) if value] for _, *values in found]


def session() -> list[bytes]:
    return live(Pair())


@slow
def test_the_script_loads_and_its_name_is_its_own() -> None:
    def protocols(script: Path | None) -> list[str]:
        return [
            line
            for line in tshark("-G", "protocols", script=script).splitlines()
            if "\tseclab\t" in f"{line.lower()}\t"
        ]

    assert protocols(None) == []
    assert len(protocols(SCRIPT)) == 1


@slow
@pytest.mark.parametrize("broken", ["this is not Lua", "error('no')"])
def test_a_script_that_does_not_load_is_noticed(tmp_path: Path, broken: str) -> None:
    (tmp_path / "broken.lua").write_text(broken)
    with pytest.raises(AssertionError, match="Lua"):
        tshark("-G", "protocols", script=tmp_path / "broken.lua")


@slow
def test_an_error_while_it_dissects_is_noticed(tmp_path: Path) -> None:
    text = LUA.replace("local opcode, round, direction =", "nothing.at_all()\n    local opcode =")
    (tmp_path / "broken.lua").write_text(text)
    with pytest.raises(AssertionError, match="Lua"):
        tshark(
            "-r",
            written(tmp_path / "x", *dialogue(session())),
            "-V",
            script=tmp_path / "broken.lua",
        )


@slow
def test_it_works_from_the_folder_that_the_readme_names(tmp_path: Path) -> None:
    (folder,) = re.findall(r"^\| Linux \| `~/(.*)` \|$", README, re.MULTILINE)
    (tmp_path / folder).mkdir(parents=True)
    shutil.copy(SCRIPT, tmp_path / folder)
    path = written(tmp_path / "x", *dialogue(session()))
    assert len(tshark("-r", path, "-Y", "seclab", home=tmp_path, script=None).splitlines()) == 7


@slow
def test_every_public_field_is_shown_as_it_is(tmp_path: Path) -> None:
    messages = session()
    path = written(tmp_path / "x", *dialogue(messages))
    assert fields(path, *PUBLIC) == [public(message) for message in messages]
    assert remarks(path) == [[]] * len(messages)
    (lines,) = [[line.strip() for (line,) in fields(path, "_ws.col.Info")]]
    assert lines[2] == "CLIENT_DATA id 1 round 1 C2S"


@slow
def test_the_largest_message_is_shown(tmp_path: Path) -> None:
    message = session()[2][:CIPHERTEXT_AT] + bytes(MAX_MESSAGE - CIPHERTEXT_AT)
    assert fields(written(tmp_path / "x", (0, LAB.framed(message))), *PUBLIC) == [public(message)]


@slow
@pytest.mark.parametrize(("seed", "cuts"), [(1, 0), (2, 1), (3, 4), (4, 30), (5, 200)])
def test_frames_are_found_however_they_are_split_and_joined(
    tmp_path: Path, seed: int, cuts: int
) -> None:
    chance = random.Random(seed)
    messages = session()
    sent: list[tuple[int, bytes]] = []
    for end in (0, 1):
        stream = b"".join(data for sender, data in dialogue(messages) if sender == end)
        places = sorted(chance.sample(range(1, len(stream)), cuts))
        sent += [(end, stream[a:b]) for a, b in itertools.pairwise([0, *places, len(stream)])]
    found = fields(written(tmp_path / "x", *sent), *PUBLIC)
    columns = [[value for row in found for value in row[n].split(",")] for n in range(len(PUBLIC))]
    in_order = [message for end in (0, 1) for message in messages if message[6] == end]
    assert [list(row) for row in zip(*columns)] == [public(message) for message in in_order]


@slow
def test_several_messages_in_a_packet_are_all_named(tmp_path: Path) -> None:
    first = session()[0]
    second = session()[2]
    path = written(tmp_path / "x", (0, LAB.framed(first) + LAB.framed(second)))
    assert [line.strip() for (line,) in fields(path, "_ws.col.Info")] == [
        "CLIENT_HELLO id 1 round 0 C2S CLIENT_DATA id 1 round 1 C2S"
    ]


@slow
def test_another_port_is_decoded_on_demand(tmp_path: Path) -> None:
    path = written(tmp_path / "x", *dialogue(session()), port=7000)
    assert fields(path, "seclab.opcode") == []
    assert len(fields(path, "seclab.opcode", flags=["-d", "tcp.port==7000,seclab"])) == 7
    assert remarks(path, "-d", "tcp.port==7000,seclab") == [[]] * 7


# Messages that are not whole


def cut_to(path: Path, there: int, *sent: tuple[int, bytes]) -> Path:
    """Write a capture of one connection with so many bytes of each packet that has data."""
    head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 40 + there, 101)
    records = [
        struct.pack("<IIII", 1, 0, len(data[: 40 + there]), len(data)) + data[: 40 + there]
        for _, data, _ in connection(*sent)
    ]
    path.write_bytes(head + b"".join(records))
    return path


@slow
@pytest.mark.parametrize("there", [2, 3, 9, 70])
def test_of_a_cut_packet_there_is_what_was_captured(tmp_path: Path, there: int) -> None:
    messages = session()
    message = messages[0]
    path = cut_to(tmp_path / "x", there, *dialogue(messages))
    assert fields(path, "seclab.length", "seclab.opcode", "seclab.round", "seclab.tag")[0] == [
        str(len(message)),
        str(message[0]) if there > 2 else "",
        "0" if there >= 2 + HEADER.size else "",
        message[len(message) - TAG_BYTES : there - 2].hex(),
    ]
    assert remarks(path) == [["cut"]] * len(messages)


@slow
@pytest.mark.parametrize("more", [0, 1, 2, 30])
def test_a_packet_may_be_cut_between_two_messages(tmp_path: Path, more: int) -> None:
    first, second = map(LAB.framed, session()[::2][:2])
    path = cut_to(tmp_path / "x", len(first) + more, (0, first + second))
    tshark("-r", path, "-V")
    opcodes = f"{Opcode.CLIENT_HELLO:d}" + (f",{Opcode.CLIENT_DATA:d}" if more > 2 else "")
    assert fields(path, "seclab.opcode") == [[opcodes]]
    assert "cut" in remarks(path)[0]


@slow
def test_a_message_that_is_split_is_marked_where_tcp_is_not_reassembled(tmp_path: Path) -> None:
    (end, frame), *others = dialogue(session())
    path = written(tmp_path / "x", (end, frame[:30]), (end, frame[30:]), *others)
    off = ["-o", "tcp.desegment_tcp_streams:FALSE"]
    assert remarks(path, *off) == [["cut"], *[[]] * len(others)]
    assert remarks(path) == [[]] * (1 + len(others))


# What looks wrong


def meddled(at: int, *instead: tuple[int, bytes]) -> list[tuple[int, bytes]]:
    """A session in which one message has others in its place."""
    sent = dialogue(session())
    return [*sent[:at], *instead, *sent[at + 1 :]]


def framed(message: bytes, end: int = 0) -> tuple[int, bytes]:
    return end, LAB.framed(message)


REPORT = session()[2]


@slow
@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ([(0, b"\0\x48" + bytes(72))], [["malformed"]]),
        ([(0, b"\xff\xff" + bytes(72))], [["malformed"]]),
        ([(0, b"\0\0")], [["malformed"]]),
        ([framed(with_header(REPORT, opcode=77))], [["unknown_opcode"]]),
        ([framed(with_header(REPORT, direction=1))], [["wrong_direction"]]),
        ([framed(with_header(REPORT, direction=9))], [["wrong_direction"]]),
        ([framed(REPORT, 1)], [["wrong_direction"]]),
        ([framed(with_header(REPORT, opcode=40))], [["wrong_direction"]]),
        ([framed(with_header(REPORT, opcode=60, direction=1), 1)], [[]]),
        ([framed(with_header(REPORT, opcode=60, direction=1), 0)], [["wrong_direction"]]),
        ([framed(REPORT), framed(REPORT)], [[], ["replay"]]),
        (
            [framed(REPORT), framed(with_header(REPORT, round_number=9))],
            [[], ["round_jump", "replay"]],
        ),
        (
            [framed(REPORT), framed(with_header(REPORT, round_number=2**24 + 1))],
            [[], ["round_jump", "replay"]],
        ),
        (dialogue([session()[0], session()[2]]), [[], ["round_jump"]]),
        (meddled(3), [[], [], [], ["round_jump"], ["round_jump"], []]),  # an answer is lost
        (meddled(4), [[]] * 6),  # a report is lost: its answer has the right round
        ([*dialogue(session()), *dialogue(session())], [[]] * 14),
    ],
)
def test_suspicious_messages_are_marked(
    tmp_path: Path, sent: list[tuple[int, bytes]], expected: list[list[str]]
) -> None:
    assert remarks(written(tmp_path / "x", *sent)) == expected


@slow
def test_a_message_seen_on_another_connection_is_noted_unless_it_was_passed_on(
    tmp_path: Path,
) -> None:
    first = dialogue(session())
    path = tmp_path / "x"
    path.write_bytes(pcapng([*connection(*first, side=SIDES[0]), *connection(*first)]))
    assert remarks(path) == [[]] * 14
    path.write_bytes(pcapng([*connection(*first), *connection(*first, client_port=40_002)]))
    assert remarks(path) == [[]] * 7 + [["elsewhere"]] * 7
    frames = [int(value) for (value,) in fields(path, "seclab.same_as") if value]
    assert frames == [int(value) for (value,) in fields(path, "frame.number")[:7]]


@slow
def test_a_second_look_finds_the_same(tmp_path: Path) -> None:
    path = written(tmp_path / "x", *meddled(3, framed(REPORT), framed(REPORT)))
    assert remarks(path, "-2") == remarks(path) != [[]] * 8


# The key log


@slow
def test_the_key_log_shows_verdicts_and_plaintexts(tmp_path: Path) -> None:
    messages = live(logged_pair(tmp_path / "log"))
    path = written(tmp_path / "x", *dialogue(messages))
    flags = ["-o", f"seclab.keylog:{tmp_path}/log"]
    keys = read_keylog(tmp_path / "log")
    found = fields(
        path,
        "seclab.verdict",
        "seclab.plaintext",
        "seclab.nonce",
        "seclab.client_nonce",
        "seclab.server_nonce",
        "seclab.version",
        "seclab.status",
        "seclab.body",
        flags=flags,
    )
    for message, (verdict, plaintext, *inside) in zip(messages, found):
        ends = ("server", "client") if message[6] else ("client", "server")
        assert verdict == "sealed by the {}; accepted by the {}".format(*ends)
        assert plaintext == (plaintext_of(keys, message) or b"").hex()
        parts = {
            "nonce": "",
            "client nonce": "",
            "server nonce": "",
            "version": "",
            "status": "",
            "body": "",
        }
        for part in explain(message, keys).inside:
            shown = part.data.hex() if "nonce" in part.name else part.meaning.split(" [")[0]
            parts[part.name] = shown.split(":")[0] if part.name == "status" else shown
        if message[0] == Opcode.CLIENT_HELLO:  # its nonce is the client nonce [P 3.3]
            parts["nonce"] = parts["client nonce"]
            parts["client nonce"] = ""
        assert inside == [*parts.values()]
    assert remarks(path, *flags) == [[]] * 7
    assert fields(path, "seclab.verdict", "seclab.plaintext") == [["", ""]] * 7


@slow
def test_the_key_log_tells_what_was_changed_refused_and_never_sealed(tmp_path: Path) -> None:
    pair = logged_pair(tmp_path / "log")
    pair.hello()
    pair.challenge()
    report = pair.client.seal(ClientData([100.0]))
    flipped = report[:30] + bytes([report[30] ^ 1]) + report[31:]
    with pytest.raises(BadTag):
        pair.server.open(flipped)
    path = written(tmp_path / "x", framed(flipped), framed(report), framed(session()[2]))
    flags = ["-o", f"seclab.keylog:{tmp_path}/log"]
    assert remarks(path, *flags) == [["refused", "changed"], ["replay"], ["unsealed"]]
    assert fields(path, "seclab.verdict", "seclab.body", flags=flags) == [
        ["refused by the server: BadTag", ""],
        ["sealed by the client", "[100.0]"],
        ["", ""],
    ]


@slow
def test_of_two_that_are_the_same_the_second_is_the_refused_one(tmp_path: Path) -> None:
    pair = logged_pair(tmp_path / "log")
    pair.hello()
    pair.challenge()
    pair.report()
    report = pair.transcript[-1]
    pair.answer()
    with pytest.raises(RoundMismatch):
        pair.server.open(report)
    path = written(tmp_path / "x", framed(report), framed(report))
    assert remarks(path, "-o", f"seclab.keylog:{tmp_path}/log") == [[], ["replay", "refused"]]


@slow
def test_the_key_log_is_read_as_its_document_allows(tmp_path: Path) -> None:
    path = written(tmp_path / "x", *dialogue(live(logged_pair(tmp_path / "log"))))
    lines = (tmp_path / "log").read_text().splitlines()
    changed = [
        " ".join([*line.split()[:-2], *line.upper().split()[-2:]]).replace(" ", "\t ")
        + "  # mine\r\n"
        for line in lines
        if line.startswith("core-text")
    ]
    half = "core-text client sealed 0a0"
    text = "\ufeff" + changed[0] + f"# \u00fc\n\n{half}\n" + "".join(changed[1:])
    (tmp_path / "changed").write_text(text, "utf-8", newline="")
    names = ("seclab.verdict", "seclab.plaintext")
    expected = fields(path, *names, flags=["-o", f"seclab.keylog:{tmp_path}/log"])
    assert all(plaintext for _, plaintext in expected)
    assert fields(path, *names, flags=["-o", f"seclab.keylog:{tmp_path}/changed"]) == expected


@slow
def test_a_key_log_that_is_not_there_or_is_none_does_no_harm(tmp_path: Path) -> None:
    path = written(tmp_path / "x", *dialogue(session()))
    (tmp_path / "noise").write_bytes(
        bytes(range(256)) + b"\ncore-text a b\ncore-text client sealed"
    )
    for name in ("nowhere", "noise", ""):
        assert remarks(path, "-o", f"seclab.keylog:{tmp_path}/{name}") == [["unsealed"]] * 7


# Captures of attacks, and of the living wire


@slow
def test_every_attack_is_clean_tcp_and_shows_what_the_log_has(tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    path = tmp_path / "run.pcapng"
    assert run("attacks.py", "--seed", "1", "--events", str(log)).returncode == 0
    assert run("-m", "classroom.capture", str(log), "-o", str(path)).returncode == 0
    check = ["-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE"]
    assert (
        tshark(
            "-r",
            path,
            *check,
            "-Y",
            "tcp.analysis.flags || tcp.checksum.status != 1 || "
            "ip.checksum.status != 1 || not frame.comment || _ws.malformed",
        )
        == ""
    )
    messages = [
        event["message"]
        for event in parse_events(log.read_text("utf-8"), "log")[0]
        if "to" in event
    ]
    assert fields(path, *PUBLIC) == [public(message) for message in messages]
    assert [one.message for one in recorded(str(path), None, pytest.fail)] == messages
    names = fields(path, "frame.interface_name", "frame.comment")
    assert {name for name, _ in names} == {*SIDES}
    (flip,) = [
        words
        for _, words in names
        if words.startswith("flip-reading") and "gets this: changed" in words
    ]
    assert flip.endswith("The server refused it: BadTag.")
    refused = [
        (event["attack"], event["by"], event["error"])
        for event in parse_events(log.read_text("utf-8"), "log")[0]
        if event["event"] == "refused"
    ]
    assert sorted(refused) == sorted(
        (attack, *said.groups())
        for attack, words in (words.split(": ", 1) for _, words in names)
        if (said := re.search(r"The (\w+) refused it: (\w+)\.$", words))
    )


def typed(line: str, folder: Path) -> str:
    """Type a command of the README in that folder, with tshark for wireshark; return its output."""
    program, *words = re.sub(r"^wireshark (.*) (\S+)$", r"tshark -r \2 \1", line).split()
    words = [
        str(FOLDER.parent.parent / word)
        if word.endswith(".py")
        else word.replace("classroom/wireshark", str(FOLDER))
        for word in words
    ]
    done = subprocess.run(
        [sys.executable if program == "python" else program, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(FOLDER.parent.parent)},
        text=True,
        capture_output=True,
        timeout=2 * TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, (line, done.stderr)
    return done.stdout


@slow
@posix_only
def test_the_commands_of_the_readme_work(tmp_path: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 4
    (tmp_path / "keys.log").write_text("")
    for line in (blocks[0] + blocks[3]).splitlines():
        output = typed(line, tmp_path)
        assert ("SecLab" in output) == line.startswith("wireshark")
    assert b"<h2" in (tmp_path / "run.html").read_bytes()


@slow
@posix_only
def test_the_readme_shows_an_attack_on_your_server_with_plaintexts(tmp_path: Path) -> None:
    server, *rest = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)[2].splitlines()
    flags = server.replace("keys.log", str(tmp_path / "keys.log")).split()[2:]
    with running_server(*flags) as (_, port):
        outputs = [typed(line.replace(":9999", f":{port}"), tmp_path) for line in rest]
    assert "Body: [100.0,20.5,21.0,22.5]" in outputs[-1]
    assert "Verdict: refused by the server: BadTag" in outputs[-1]


@slow
@posix_only
def test_a_live_session_is_seen_with_its_plaintexts(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running_server("--keylog", str(log)) as (_, port):
        assert TSHARK
        with subprocess.Popen(
            [
                TSHARK,
                "-X",
                f"lua_script:{SCRIPT}",
                "-i",
                "lo",
                "-f",
                f"tcp port {port}",
                "-l",
                "-d",
                f"tcp.port=={port},seclab",
                "-o",
                f"seclab.keylog:{log}",
                "-Y",
                "seclab",
                "-T",
                "fields",
                "-e",
                "seclab.opcode",
                "-e",
                "seclab.body",
                "-c",
                "120",
            ],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as listener:
            assert listener.stdout
            assert listener.stderr
            watchdog = threading.Timer(TIMEOUT_S, listener.kill)
            watchdog.start()
            said = list(itertools.takewhile(lambda line: "Capturing" not in line, listener.stderr))
            if listener.poll() is not None:
                pytest.skip(f"nothing can be captured here: {said}")
            while listener.poll() is None:  # it may need a moment before it hears
                assert (
                    run(
                        "client.py",
                        "1",
                        "--port",
                        port,
                        "--values",
                        "21.5",
                        "19",
                        "--rounds",
                        "2",
                        "--interval",
                        "0.01",
                        "--keylog",
                        str(log),
                    ).returncode
                    == 0
                )
            watchdog.cancel()
            lines = listener.stdout.read().splitlines()
            if "permission" in listener.stderr.read():
                pytest.skip("this user may not capture")
    assert "30\t[21.5,19.0]" in lines
    assert any(line.startswith('40\t{"epoch":') for line in lines)
