"""The key log: written when asked for, to a file of one's own, and enough to open everything."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from classroom.keylog import (
    TEXT,
    describe_message,
    dump_message,
    open_with,
    parse_keylog,
    plaintext_of,
    read_keylog,
)
from endpoint import DEMO_KEYS, EndpointParser, open_key_log, session_factory
from program import UserError
from protocol_fsm import (
    BadTag,
    ClientHello,
    Direction,
    Message,
    PeerTerminated,
    ServerChallenge,
    Session,
    Status,
    client_id_of,
)
from tests.helpers import ANSWER, REPORT, Pair, live, logged_pair, logging_to, reseal
from tests.network import client_for, serving
from tests.programs import ROOT, TIMEOUT_S, posix_only, run, running_server

KEYLOG_MD = (ROOT / "classroom" / "KEYLOG.md").read_text("utf-8")


def key_lines(path: Path) -> list[str]:
    return [line for line in path.read_text("ascii").splitlines() if line.startswith("core ")]


def text_lines(path: Path) -> list[list[str]]:
    """Return end, verdict, message and plaintext of each line about a message."""
    return [
        line.split()[1:]
        for line in path.read_text("ascii").splitlines()
        if line.startswith("core-text ")
    ]


@pytest.mark.parametrize("ends", [(True, True), (True, False)], ids=["both ends", "the client"])
def test_every_message_of_a_session_is_opened(tmp_path: Path, ends: tuple[bool, bool]) -> None:
    messages = live(logged_pair(tmp_path / "log", *ends))
    log = read_keylog(tmp_path / "log")
    plain = [plaintext_of(log, message) for message in messages]
    assert [
        text[16:] if text and message[6] == Direction.C2S else text
        for text, message in zip(plain, messages)
    ] == [b"\x01", plain[1], *[REPORT.body, b"\0" + ANSWER.body] * 2, b"\x01"]
    assert plain[1] is not None
    assert plain[0] is not None
    assert plain[1][:17] == b"\0" + plain[0][:16]


def test_the_server_alone_logs_what_it_takes_and_each_key_before_it_is_used(tmp_path: Path) -> None:
    pair = logged_pair(tmp_path / "log", client=False)
    hello = pair.client.seal(ClientHello())
    assert plaintext_of(read_keylog(tmp_path / "log"), hello) is None
    pair.server.open(hello)
    assert plaintext_of(read_keylog(tmp_path / "log"), hello) is not None
    moves: list[tuple[Direction, Message]] = [
        (Direction.S2C, ServerChallenge()),
        (Direction.C2S, REPORT),
        (Direction.S2C, ANSWER),
    ]
    for sends, message in moves:
        sealed = pair.end(sends).seal(message)
        assert plaintext_of(read_keylog(tmp_path / "log"), sealed) is not None
        pair.end(Direction(1 - sends)).open(sealed)


def test_a_refused_message_leaves_no_key_in_the_log(tmp_path: Path) -> None:
    make = logging_to(tmp_path / "log")
    stranger = Session(1, b"another key of 16", Direction.C2S).seal(ClientHello())
    with pytest.raises(BadTag):
        make(1, DEMO_KEYS[1], Direction.S2C).open(stranger)
    assert (tmp_path / "log").read_text() == f"core-text server BadTag {stranger.hex()} -\n"
    assert read_keylog(tmp_path / "log") == {}


def test_a_changed_message_is_opened_by_no_key(tmp_path: Path) -> None:
    messages = live(logged_pair(tmp_path / "log"))
    log = read_keylog(tmp_path / "log")
    for place in (0, 1, 5, 6, 7, 24, -1):
        changed = bytearray(messages[2])
        changed[place] ^= 1
        assert plaintext_of(log, bytes(changed)) is None


def test_a_line_that_is_not_whole_in_the_log_is_noticed_and_the_session_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk, of which os.write tells by writing less."""
    session = logging_to(tmp_path / "log")(1, DEMO_KEYS[1], Direction.C2S)
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:10]))
    hello = session.seal(ClientHello())
    assert Session(1, DEMO_KEYS[1], Direction.S2C).open(hello) == ClientHello()
    assert session.watchers.error == "OSError: [Errno 28] a line of the log is cut short"


def test_a_log_has_a_line_for_each_pair_of_keys_and_grows(tmp_path: Path) -> None:
    live(logged_pair(tmp_path / "log", server=False))
    first = key_lines(tmp_path / "log")
    ways = [line.split()[1] for line in first]
    assert ways == ["C2S", "S2C"] * 2 + ["C2S", "S2C"] * 2
    assert len(set(first)) == len(first)
    live(logged_pair(tmp_path / "log"))
    lines = key_lines(tmp_path / "log")
    assert lines[: len(first)] == first
    assert len(lines) == 3 * len(first)
    assert lines[len(first) :][:2] == first[:2], "the keys of the handshake are always the same"


def test_the_document_has_the_lines_of_the_code(tmp_path: Path) -> None:
    logged_pair(tmp_path / "log", server=False).hello()
    keys, texts = re.findall(r"^```text\n(.*?)^```", KEYLOG_MD, re.DOTALL | re.MULTILINE)
    assert keys.splitlines() == key_lines(tmp_path / "log")
    assert parse_keylog(keys) == (read_keylog(tmp_path / "log"), [])
    for line in texts.splitlines():  # shortened by dots
        assert TEXT.fullmatch(line.replace("...", "")), line
        assert len(line.split()) == len(TEXT_LINE.split())


def test_without_the_flag_there_is_no_log_and_with_it_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def sent(*flags: str) -> bytes:
        monkeypatch.setattr(sys, "argv", ["client.py", *flags])
        make = session_factory(EndpointParser("").options())
        return make(1, DEMO_KEYS[1], Direction.C2S).seal(ClientHello())

    sent()
    assert (capsys.readouterr().err, [*tmp_path.iterdir()]) == ("", [])
    hello = sent("--keylog", str(tmp_path / "log"))
    assert capsys.readouterr().err == (
        f"WARNING: all keys go to {tmp_path / 'log'}; anyone who reads it can read everything\n"
    )
    assert plaintext_of(read_keylog(tmp_path / "log"), hello) is not None


@posix_only
def test_a_log_is_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        logging_to(tmp_path / "log")
    finally:
        os.umask(before)
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600
    for mode in (0o640, 0o604, 0o620, 0o602, 0o610, 0o601):
        (tmp_path / "log").chmod(mode)
        with pytest.raises(UserError, match="others can read it"):
            logging_to(tmp_path / "log")


def test_each_end_logs_what_it_made_of_each_message(tmp_path: Path) -> None:
    messages = live(logged_pair(tmp_path / "log"))
    keys = read_keylog(tmp_path / "log")
    lines = text_lines(tmp_path / "log")
    expected = []
    for message in messages:
        sender, receiver = ("server", "client") if message[6] else ("client", "server")
        text = (plaintext_of(keys, message) or b"").hex()
        expected += [
            [sender, "sealed", message.hex(), text],
            [receiver, "accepted", message.hex(), text],
        ]
    assert lines == expected


def test_a_refused_message_is_logged_with_the_check_and_so_is_the_farewell(tmp_path: Path) -> None:
    pair = logged_pair(tmp_path / "log")
    pair.hello()
    pair.challenge()
    report = pair.client.seal(REPORT)
    changed = report[:-1] + bytes([report[-1] ^ 1])
    with pytest.raises(BadTag) as caught:
        pair.server.open(changed)
    refused, farewell = text_lines(tmp_path / "log")[-2:]
    assert farewell == ["server", "sealed", caught.value.farewell.hex(), "02"]
    assert refused == ["server", "BadTag", changed.hex(), "-"]
    with pytest.raises(PeerTerminated):
        pair.client.open(caught.value.farewell)
    assert text_lines(tmp_path / "log")[-1][:2] == ["client", "accepted"]


@pytest.mark.slow
@posix_only
def test_a_full_disk_ends_no_session_and_is_reported_when_it_ends(tmp_path: Path) -> None:
    """No disk is filled here: the file may have one block, and the system refuses the rest."""
    log = tmp_path / "log"
    with running_server() as (server, port):
        done = subprocess.run(
            ["sh", "-c", f'ulimit -f 1; exec "$0" -B client.py 1 --port {port} --keylog {log} "$@"']
            + [sys.executable, "--rounds", "2", "--interval", "0.01"],
            cwd=ROOT,
            text=True,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        server.wait_for("client 1: left", "err")
    assert done.returncode == 0
    warning, report = done.stderr.splitlines()
    assert warning.startswith("WARNING: all keys go to ")
    reason = re.escape(os.strerror(errno.EFBIG))
    assert re.fullmatch(f"a watcher of <Session of client 1, .* failed: .*{reason}", report)
    assert 0 < log.stat().st_size <= 1024


@pytest.mark.slow
def test_two_programs_share_a_log_that_opens_their_session(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running_server("--keylog", str(log)) as (server, port):
        server.wait_for("^WARNING: all keys go to ", "err")
        done = run("client.py", "1", "--port", port, "--rounds", "1", "--keylog", str(log))
        assert (done.returncode, len(done.stderr.splitlines())) == (0, 1)
        server.wait_for("client 1: left after", "err")
    keys = read_keylog(log)
    assert {who: len(pairs) for who, pairs in keys.items()} == {(0, 1): 3, (1, 1): 3}
    lines = key_lines(log)
    assert len(lines) == 12
    assert all(lines.count(line) == 2 for line in lines)
    texts = [line.split() for line in log.read_text().splitlines() if line not in lines]
    assert Counter(tuple(words[1:3]) for words in texts) == {
        ("client", "sealed"): 3,
        ("server", "accepted"): 3,
        ("server", "sealed"): 2,
        ("client", "accepted"): 2,
    }


def test_a_server_logs_no_decoy(tmp_path: Path) -> None:
    with serving() as (server, _):
        server._new_session = logging_to(tmp_path / "log")
        with client_for(server, 1) as client:
            client.report([1.0])
    assert {client_id for _, client_id in read_keylog(tmp_path / "log")} == {1}


TEXT_LINE = "core-text server BadTag 0a01 -\n"
GOOD = f"core C2S 7 {'ab' * 16} {'cd' * 32}\n"


@pytest.mark.parametrize(
    "line",
    [
        "core C2S 7",
        GOOD.strip() + "0",
        "core C2S 7 " + "ab" * 32 + " " + "cd" * 16,
        "core both 7" + GOOD[10:-1],
        "core C2S \u0667" + GOOD[10:-1],
        "CORE" + GOOD[4:-1],
        "7:abcd",
        "core-text nobody sealed 0a ff",
        "core-text client sealed 0a f",
        "core-text client 0a ff",
        "core-text client Bad-Tag 0a -",
        TEXT_LINE.strip() + " -",
        GOOD[:20] + GOOD.strip(),
    ],
)
def test_a_line_that_is_none_is_skipped_and_named(line: str, tmp_path: Path) -> None:
    keys, bad = parse_keylog(f"{GOOD}\n{line}\n{GOOD.replace('7', '8')}", "my log")
    assert ([*keys], bad) == ([(0, 7), (0, 8)], [3])
    with pytest.raises(UserError, match=r"^my log is no key log: line 2 cannot be in one$"):
        parse_keylog(f"\n{line}\n", "my log")
    log = tmp_path / "log"
    log.write_text(f"{GOOD}{line}\n{line}\n", "utf-8")
    said: list[str] = []
    assert [*read_keylog(log, said.append)] == [(0, 7)]
    assert said == [f"{log}: skipped line 2 and 1 more, which cannot be in a key log"]


def test_comments_other_protocols_and_repetitions_are_no_keys() -> None:
    text = (
        f"# mine: \u00fc\n{GOOD}{GOOD.replace('core', 'chat').replace('7', '8')}"
        f"{TEXT_LINE}{TEXT_LINE.replace('core', 'chat')}  # also mine\n{GOOD}"
    )
    keys, bad = parse_keylog(text)
    assert [*keys] == [(0, 7)]
    assert len(keys[0, 7]) == 1
    assert bad == []


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("ab", "AB").replace("cd", "cD"),
        GOOD.replace("\n", "  # a comment\n"),
        GOOD.replace("\n", "\r\n").replace(" ", "\t "),
        "\ufeff" + GOOD,
        GOOD.strip(),
    ],
    ids=["capitals", "a comment", "blanks", "a byte order mark", "a last line without end"],
)
def test_a_line_is_read_as_the_document_allows_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "log").write_bytes(text.encode())
    assert read_keylog(tmp_path / "log", pytest.fail) == parse_keylog(GOOD)[0]


def test_half_a_line_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(GOOD + GOOD[:30])
    said: list[str] = []
    assert read_keylog(tmp_path / "log", said.append) == parse_keylog(GOOD)[0]
    assert said == [f"{tmp_path / 'log'}: skipped line 2, which cannot be in a key log"]


def test_no_line_is_written_in_pieces_or_gets_another_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the text mode of Windows, which O_BINARY switches off."""
    asked: list[int] = []
    opened = os.open

    def watched(path: str, flags: int, mode: int) -> int:
        asked.append(flags)
        return opened(path, flags, mode)

    binary = os.O_NONBLOCK  # which has no effect on a file
    monkeypatch.setattr(os, "O_BINARY", binary, raising=False)
    monkeypatch.setattr(os, "open", watched)
    open_key_log(str(tmp_path / "log"))("line\n")
    assert asked[0] & binary


def test_what_is_written_behind_half_a_line_begins_on_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk may have been full in an earlier run, in this one, or in another program's."""
    log = tmp_path / "log"
    log.write_text(GOOD + GOOD[:30])
    log.chmod(0o600)
    session = logging_to(log)(1, DEMO_KEYS[1], Direction.C2S)
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:10]))
    hello = session.seal(ClientHello())
    monkeypatch.setattr(os, "write", write)
    with log.open("a") as other:
        other.write("core C2S 1")
    session.goodbye(Status.GOODBYE)
    session = logging_to(log)(1, DEMO_KEYS[1], Direction.C2S)
    session.seal(ClientHello())
    said: list[str] = []
    assert plaintext_of(read_keylog(log, said.append), hello) is not None
    assert len(said) == 1
    assert "\n\n" not in log.read_text()


def test_a_log_that_is_not_there_yet_is_empty_and_one_that_cannot_be_read_is_named(
    tmp_path: Path,
) -> None:
    assert read_keylog(tmp_path / "later") == {}
    with pytest.raises(UserError, match=r"^cannot read .*directory"):
        read_keylog(tmp_path)
    (tmp_path / "noise").write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match=r"noise is no key log: line 1 cannot be in one$"):
        read_keylog(tmp_path / "noise")


def test_a_message_is_described_with_and_without_its_plaintext() -> None:
    messages = live(Pair(client_random=bytes, server_random=bytes))
    assert describe_message(messages[2], title="#3: ") == [
        "#3: CLIENT_DATA, client 1, round 1, C2S, 87 bytes",
        f"  IV 00000000.., 32 bytes of ciphertext, tag {messages[2][-32:-28].hex()}..",
    ]
    said = [
        describe_message(message, text)[2]
        for message, text in (
            (messages[0], bytes(16) + b"\x01"),
            (messages[1], bytes(33)),
            (messages[2], bytes(16) + REPORT.body),
            (messages[6], bytes(16) + b"\x01"),
        )
    ]
    assert said == [
        "  plaintext: client nonce 00000000.., version 01",
        "  plaintext: status OK, client nonce 00000000.., server nonce 00000000..",
        "  plaintext: nonce 00000000.., [21.5, 19.0]",
        "  plaintext: nonce 00000000.., status GOODBYE",
    ]


def test_any_message_is_shown_in_ascii_of_80_columns_and_few_lines() -> None:
    pair = Pair()
    pair.hello()
    text = b"\x01" + b"\x1b[2J \xff" * 2000
    largest = reseal(pair.server, 77, text, round_number=2**32 - 1, client_id=255)
    strange = largest[:6] + b"\x07" + largest[7:]
    for message in (largest, strange, b"\x1e", bytes(70)):
        lines = describe_message(message, text, "#1000 to client (it waits): ")
        lines += dump_message(message)
        assert all(line.isascii() and line.isprintable() and len(line) <= 80 for line in lines)
        assert 2 <= len(lines) <= 24
    assert client_id_of(largest) == 255


def test_bytes_are_shown_where_flip_finds_them() -> None:
    pair = Pair()
    pair.hello()
    message = pair.transcript[0]
    rows = [row for row in dump_message(message) if "more" not in row]
    assert b"".join(bytes.fromhex(row.split("  ")[-1]) for row in rows) == message
    assert [row.split()[:2] for row in rows if row[2] != " "] == [
        ["header", "0"],
        ["IV", "7"],
        ["ciphertext", "23"],
        ["tag", "55"],
    ]


def test_keys_that_pad_wrongly_open_nothing() -> None:
    pair = Pair()
    message = reseal(pair.client, 10, b"", padded=bytes(16))
    keys, _ = parse_keylog(
        "core C2S 1 {} {}\n".format(
            pair.client._keys["C2S-ENC"][:16].hex(), pair.client._keys["C2S-MAC"].hex()
        )
    )
    assert open_with(keys[0, 1], message) is None
