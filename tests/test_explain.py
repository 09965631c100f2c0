"""Messages taken apart: every byte is explained once, and nothing is said that is not there."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from classroom.capture import packets, pcapng
from classroom.explain import TEMPLATE, Explained, Shown, as_text, explain, main, recorded
from classroom.keylog import KeyLog, parse_keylog, plaintext_of, read_keylog
from classroom.output import filled
from classroom.wire import LAB
from lab.events import parse_events, runs_of
from program import UserError
from protocol_fsm import Direction, Opcode
from tests.helpers import REPORT, Pair, live, logged_pair, reseal
from tests.programs import run


def as_html(shown: list[Shown]) -> str:
    return filled(TEMPLATE, shown=shown, title="<i>")


def capture_of(log: str) -> bytes:
    return pcapng([*packets([*runs_of(parse_events(log, "log")[0])], LAB)])


class Session:
    """A session of two rounds, its key log, and the names of its keys after each message."""

    def __init__(self, path: Path) -> None:
        pair = logged_pair(path)
        self.names = [pair.client.fingerprints()]
        self.messages = live(pair)
        self.log = read_keylog(path)

    def stream(self) -> bytes:
        return b"".join(map(LAB.framed, self.messages))

    def events(self) -> str:
        lines = []
        for message in self.messages:
            to = "client" if message[6] else "server"
            sent = {"attack": "none", "event": "sent", "to": to, "message": message.hex()}
            lines += [sent, {**sent, "event": "delivered", "deed": "passed"}]
        return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return Session(tmp_path_factory.mktemp("keys") / "log")


# One message


def test_every_byte_outside_and_inside_is_in_one_part(session: Session) -> None:
    for message in session.messages:
        found = explain(message, session.log)
        for parts, whole in (
            (found.parts, message),
            (found.inside, plaintext_of(session.log, message)),
        ):
            assert b"".join(part.data for part in parts) == whole
            assert [part.at for part in parts] == [
                sum(len(part.data) for part in parts[:n]) for n in range(len(parts))
            ]
            assert all(re.search(r"\[P 3\.\d\]$", part.meaning) for part in parts)


def test_the_header_is_read_as_it_is(session: Session) -> None:
    meanings = [part.meaning for part in explain(session.messages[3], {}).parts[:4]]
    assert meanings == [
        "40: SERVER_AGGR_RESPONSE [P 3.2]",
        "1 [P 3.2]",
        "1 [P 3.2]",
        "1: S2C, server to client [P 3.2]",
    ]


def test_the_inside_of_each_kind_is_named(session: Session) -> None:
    insides = [
        [part.name for part in explain(message, session.log).inside] for message in session.messages
    ]
    assert insides[:4] + insides[-1:] == [
        ["client nonce", "version"],
        ["status", "client nonce", "server nonce"],
        ["nonce", "body"],
        ["status", "body"],
        ["nonce", "status"],
    ]
    report = explain(session.messages[2], session.log)
    assert report.inside[1].meaning == f"{REPORT.body.decode()} [P 3.3]"
    assert explain(session.messages[6], session.log).inside[1].meaning == "1: GOODBYE [P 3.3]"


def test_the_steps_have_the_names_that_the_session_has(tmp_path: Path) -> None:
    """MAC keys are whole in the log, so their names are those of --trace."""
    pair = logged_pair(tmp_path / "log")
    before = pair.client.fingerprints()
    pair.hello()
    for move, moved in (
        (pair.challenge, ("C2S", "S2C")),
        (pair.report, ("C2S",)),
        (pair.answer, ("S2C",)),
    ):
        move()
        after = pair.client.fingerprints()
        steps = explain(pair.transcript[-1], read_keylog(tmp_path / "log")).steps
        assert [step for step in steps if "-MAC' = " in step] == [
            next(
                step
                for step in steps
                if step.startswith(f"{way}-MAC' = SHA-256({way}-MAC || ")
                and step.endswith(f": {before[f'{way}-MAC']} -> {after[f'{way}-MAC']} [P 3.4]")
            )
            for way in moved
        ]
        assert sum("-ENC' = " in step for step in steps) == len(moved)
        before = after


def test_formulas_are_those_of_the_protocol(session: Session) -> None:
    text = " ".join((Path(__file__).parent.parent / "PROTOCOL.md").read_text("utf-8").split())
    for message in session.messages[2:4]:
        formulas = [step.split(": ")[0] for step in explain(message, session.log).steps[1:]]
        assert len(formulas) == 2
        assert all(formula in text for formula in formulas)


def test_a_message_that_moves_no_key_says_so_and_a_missing_next_key_is_named(
    session: Session,
) -> None:
    for message in (session.messages[0], session.messages[6]):
        assert explain(message, session.log).steps[-1] == "it moves no key [P 3.4]"
    first = {who: pairs[:2] for who, pairs in session.log.items()}
    assert explain(session.messages[2], first).steps[-1] == (
        "C2S moves, but the log does not have what comes next"
    )


def test_a_changed_message_has_no_inside(session: Session) -> None:
    changed = session.messages[2][:-1] + bytes([session.messages[2][-1] ^ 1])
    found = explain(changed, session.log)
    assert (found.inside, len(found.steps)) == ([], 1)
    assert "No key in the log gives this tag" in found.steps[0]
    assert explain(changed, {}).steps == []


def test_keys_are_named_and_never_shown(session: Session) -> None:
    shown = [Shown(n, "", explain(m, session.log)) for n, m in enumerate(session.messages)]
    for text in ("\n".join(map(as_text, shown)), as_html(shown)):
        digits = re.sub(r"[^0-9a-f]", "", text)
        for pairs in session.log.values():
            for pair in pairs:
                assert pair.encryption.hex() not in digits
                assert pair.mac.hex() not in digits


@given(st.binary(max_size=200))
def test_any_bytes_are_explained_in_lines_of_ascii(data: bytes) -> None:
    found = explain(data, {})
    assert b"".join(part.data for part in found.parts) == data
    check_lines(found)


def check_lines(found: Explained) -> None:
    lines = as_text(Shown(1_000, "far " * 40, found)).splitlines()
    assert all(line.isascii() and line.isprintable() and len(line) <= 80 for line in lines)
    assert len(lines) < 120


def sealed_nonsense(opcode: int, text: bytes) -> tuple[bytes, KeyLog]:
    pair = Pair()
    message = reseal(pair.server, opcode, text, sender=Direction.S2C, round_number=2**32 - 1)
    keys = pair.server._keys
    return message, parse_keylog(
        f"core S2C 1 {keys['S2C-ENC'][:16].hex()} {keys['S2C-MAC'].hex()}\n"
    )


@pytest.mark.parametrize("opcode", [77, *Opcode])
@pytest.mark.parametrize("text", [b"", b"\x09", b"\0<script>\x1b[2J\xff&" * 3_000])
def test_sealed_nonsense_is_shown_as_it_is(opcode: int, text: bytes) -> None:
    found = explain(*sealed_nonsense(opcode, text))
    assert b"".join(part.data for part in found.inside) == text
    check_lines(found)
    page = as_html([Shown(1, "<b>", found)])
    assert "<script" not in page
    assert "<b>" not in page
    assert "<i>" not in page


# Where messages come from


def messages_of(source: object) -> list[bytes]:
    return [message for _, message in recorded(str(source))]


def test_every_form_of_a_recording_has_the_same_messages(session: Session, tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(session.stream())
    (tmp_path / "hex").write_text(session.stream().hex(":", 16) + "\n")
    (tmp_path / "log").write_text(session.events())
    (tmp_path / "pcapng").write_bytes(capture_of(session.events()))
    assert messages_of(session.stream().hex()) == session.messages
    assert messages_of(tmp_path / "raw") == messages_of(tmp_path / "hex") == session.messages
    twice = [message for message in session.messages for _ in range(2)]
    assert messages_of(tmp_path / "log") == messages_of(tmp_path / "pcapng") == twice
    assert [messages_of(message.hex()) for message in session.messages] == [
        [message] for message in session.messages
    ]


def test_an_event_says_what_was_done(session: Session, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(session.events())
    assert recorded(str(tmp_path / "log"))[0].where == (
        "none 1. Sent by the client; passed on as it was."
    )


@pytest.mark.parametrize("rest", [b"\0", b"\xff\xff", b"\0\x47" + bytes(70), b"\0\x48" + bytes(80)])
def test_bytes_that_are_no_frame_are_shown_to_the_end(session: Session, rest: bytes) -> None:
    found = recorded((session.stream() + rest).hex())
    assert [message for _, message in found] == [*session.messages, rest]
    assert found[-1].where == f"byte {len(session.stream())} and on: no whole frame"


def ethernet(segments: list[tuple[int, bytes]], classic: bool) -> bytes:
    """Return a capture that another program could have made, of one end of a connection."""
    file = io.BytesIO()
    writer = (dpkt.pcap if classic else dpkt.pcapng).Writer(file)
    for seq, data in segments:
        tcp = dpkt.tcp.TCP(sport=5, dport=9999, seq=seq, flags=24, data=data)
        ip = dpkt.ip.IP(src=b"\x7f\0\0\1", dst=b"\x7f\0\0\1", p=6, data=tcp)
        writer.writepkt(bytes(dpkt.ethernet.Ethernet(data=ip)), ts=1.0)
    writer.writepkt(b"no packet", ts=1.0)
    return file.getvalue()


@pytest.mark.parametrize("classic", [True, False], ids=["pcap", "pcapng"])
@pytest.mark.parametrize("start", [7, 2**32 - 100], ids=["", "over the end of numbers"])
def test_segments_that_come_twice_or_out_of_order_are_put_in_order(
    session: Session, tmp_path: Path, classic: bool, start: int
) -> None:
    stream = session.stream()
    pieces = [(start + at) % 2**32 for at in range(0, len(stream), 50)]
    segments = [(seq, stream[n * 50 : n * 50 + 50]) for n, seq in enumerate(pieces)]
    longer = (segments[1][0], stream[50:170])
    segments[3], segments[4] = segments[4], segments[3]
    path = tmp_path / "capture"
    path.write_bytes(ethernet([*segments, segments[2], longer], classic))
    assert messages_of(path) == session.messages
    path.write_bytes(ethernet(segments[:5] + segments[6:], classic))
    assert messages_of(path)[:2] == session.messages[:2], "up to the hole"


# The program


def test_a_page_needs_nothing_else_and_is_written_whole(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.html"
    monkeypatch.setattr(sys, "argv", ["explain", session.stream().hex(), "--html", str(out)])
    assert main() == 0
    page = out.read_bytes().decode("ascii")
    assert page.count("<table>") == len(session.messages)
    assert not re.search(r"https?:|src=|href=|@import|url\(", page)
    monkeypatch.setattr(sys, "argv", ["explain", "00", "--html", str(tmp_path / "no" / "where")])
    with pytest.raises(UserError, match="cannot write "):
        main()


def test_without_its_package_there_is_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UserError, match="this needs jinja2: pip install -r requirements-evidence"):
        as_html([])


FILES = {
    "empty": b"",
    "text": b"Dear reader",
    "odd": b"abc",
    "log": b'{"attack": 7}\n',
    "pcapng": b"\x0a\x0d\x0d\x0a" + bytes(30),
    "pcap": b"\xd4\xc3\xb2\xa1" + bytes(3),
    "cut": capture_of('{"attack": "x", "event": "sent", "to": "server", "message": "00"}')[:-9],
    "keys": b"nonsense\n",
}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["0"], "neither a file"),
        (["xyz"], "neither a file"),
        ([""], "cannot read|neither a file"),
        (["z" * 5_000], "cannot read|neither a file"),
        (["a\0b"], "cannot read|neither a file"),
        (["{}"], "cannot read "),
        (["{}/empty"], "neither a file"),
        (["{}/text"], "is text, but"),
        (["{}/odd"], "is text, but"),
        (["{}/log"], "line 1 is not an event"),
        (["{}/pcapng"], "no whole capture"),
        (["{}/pcap"], "no whole capture"),
        (["{}/cut"], "no whole capture"),
        (["00", "--keylog", "{}/keys"], "no line of a key log"),
        (["00", "--keylog", "{}/nowhere"], "no key log"),
        (["00", "--keylog", "{}"], "cannot read"),
        ([], "required"),
        (["00", "--frobnicate"], "unrecognized"),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], sentence: str
) -> None:
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    argv = [word.replace("{}", str(tmp_path)) for word in words]
    monkeypatch.setattr(sys, "argv", ["explain", *argv])
    with pytest.raises(UserError, match=sentence) as caught:
        main()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.slow
def test_it_is_a_command(session: Session) -> None:
    done = run("-m", "classroom.explain", session.messages[0].hex())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1] == "   CLIENT_HELLO, client 1, round 0, C2S, 87 bytes"
    assert run("-m", "classroom.explain", "xyz").returncode == 2
