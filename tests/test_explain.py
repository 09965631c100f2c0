"""Messages taken apart: every byte is explained once, and nothing is said that is not there."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from classroom.explain import (
    TEMPLATE,
    Explained,
    Shown,
    all_shown,
    as_text,
    explain,
    explain_recorded,
    main,
)
from classroom.keylog import KeyLog, parse_keylog, plaintext_of, read_keylog
from classroom.output import filled
from classroom.recordings import ILLEGAL, Recorded, recorded
from classroom.wire import LAB
from program import UserError
from protocol_fsm import MAX_MESSAGE, Direction, Opcode
from tests.helpers import REPORT, Pair, live, logged_pair, reseal
from tests.programs import run


def as_html(shown: list[Shown]) -> str:
    return filled(TEMPLATE, shown=shown, notes=["<b>"], title="<i>")


def shown(message: bytes, found: Explained, where: str = "") -> Shown:
    return Shown(1_000, Recorded(where, message), found)


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


@pytest.mark.parametrize("length", [70, 72, 86, MAX_MESSAGE + 16])
def test_a_length_that_no_message_has_is_said(length: int) -> None:
    assert [part.meaning for part in explain(bytes(length), {}).parts] == [ILLEGAL]
    assert len(explain(bytes(MAX_MESSAGE), {}).parts) == 7


def test_keys_are_named_and_never_shown(session: Session) -> None:
    found = all_shown([Recorded("", message) for message in session.messages], session.log)
    for text in ("\n".join(map(as_text, found)), as_html(found)):
        digits = re.sub(r"[^0-9a-f]", "", text)
        for pairs in session.log.values():
            for pair in pairs:
                assert pair.encryption.hex() not in digits
                assert pair.mac.hex() not in digits


@given(st.binary(max_size=200))
def test_any_bytes_are_explained_in_lines_of_ascii(data: bytes) -> None:
    found = explain(data, {})
    assert b"".join(part.data for part in found.parts) == data
    check_lines(data, found)


def check_lines(message: bytes, found: Explained) -> None:
    lines = as_text(shown(message, found, "far " * 40)).splitlines()
    assert all(line.isascii() and line.isprintable() and len(line) <= 80 for line in lines)
    assert len(lines) < 120


def sealed_nonsense(opcode: int, text: bytes) -> tuple[bytes, KeyLog]:
    pair = Pair()
    message = reseal(pair.server, opcode, text, sender=Direction.S2C, round_number=2**32 - 1)
    keys = pair.server._keys
    line = f"core S2C 1 {keys['S2C-ENC'][:16].hex()} {keys['S2C-MAC'].hex()}\n"
    return message, parse_keylog(line)[0]


@pytest.mark.parametrize("opcode", [77, *Opcode])
@pytest.mark.parametrize("text", [b"", b"\x09", b"\0<script>\x1b[2J\xff&" * 300])
def test_sealed_nonsense_is_shown_as_it_is(opcode: int, text: bytes) -> None:
    message, log = sealed_nonsense(opcode, text)
    found = explain(message, log)
    assert b"".join(part.data for part in found.inside) == text
    check_lines(message, found)
    page = as_html([shown(message, found, "<b>")])
    assert "<script" not in page
    assert "<b>" not in page
    assert "<i>" not in page


# Each message once


def events_of(*lines: dict[str, str]) -> str:
    return "".join(json.dumps({"attack": "x", **line}) + "\n" for line in lines)


def shown_of(tmp_path: Path, text: str, log: KeyLog) -> list[Shown]:
    (tmp_path / "log").write_text(text)
    return all_shown(recorded(str(tmp_path / "log"), None, pytest.fail), log)


def test_a_message_that_came_before_is_named_and_not_explained_again(
    session: Session, tmp_path: Path
) -> None:
    report = session.messages[2].hex()
    sent = {"event": "sent", "to": "server", "message": report}
    passed = {**sent, "event": "delivered", "deed": "passed"}
    found = shown_of(tmp_path, events_of(sent, passed, {**passed, "deed": "again"}), session.log)
    assert [one.same_as for one in found] == [0, 1]
    assert "ciphertext    32 bytes" in as_text(found[0])
    assert as_text(found[1]).splitlines() == [
        "2. x 2. The server gets this: delivered once more (delivery 2).",
        "   CLIENT_DATA, client 1, round 1, C2S, 87 bytes",
        "   the same bytes as 1.",
    ]
    page = as_html(found)
    assert page.count("<table>") == 1
    assert '<a href="#m1">' in page


def test_changed_bytes_are_marked_and_the_rest_is_not_shown_again(
    session: Session, tmp_path: Path
) -> None:
    report = session.messages[2]
    changed = report[:2] + b"\0\0\0\x02" + report[6:24] + bytes([report[24] ^ 8]) + report[25:]
    sent = {"event": "sent", "to": "server", "message": report.hex()}
    to = {"event": "inserted", "to": "server", "deed": "changed", "origin": report.hex()}
    found = shown_of(tmp_path, events_of(sent, {**to, "message": changed.hex()}), {})
    text = as_text(found[1]).splitlines()
    marked = [re.findall(r"\*(..)", line) for line in text if "*" in line]
    assert marked == [["02"], [f"{changed[24]:02x}"]]
    assert [line.split()[0] for line in text[3:5]] == ["2", "23"]
    assert text[-1] == "   all other bytes are those of 1."
    assert as_html(found).count("<mark>") == 2


# Messages that are not whole


def test_of_a_cut_message_every_byte_that_is_there_is_shown_and_no_other(
    session: Session,
) -> None:
    report = session.messages[2]
    missing = frozenset({*range(20, 30), *range(80, 87)})
    cut = bytes(0 if place in missing else byte for place, byte in enumerate(report))
    one = Recorded("", cut, missing)
    found = explain_recorded(one, session.log)
    assert found.title == "CLIENT_DATA, client 1, round 1, C2S, 87 bytes, 17 of them missing"
    meanings = {part.name: part.meaning for part in found.parts}
    assert meanings["round"] == "1 [P 3.2]"
    assert meanings["IV"] == "3 of 16 bytes missing here"
    assert meanings["tag"] == "7 of 32 bytes missing here"
    text = as_text(Shown(1, one, found))
    cells = [cell for part in found.parts for cell in Shown(1, one, found).cells(part)]
    assert [cell.text for cell in cells] == [
        ".." if place in missing else f"{byte:02x}" for place, byte in enumerate(report)
    ]
    assert text.count("..") == len(missing)


def test_of_a_message_whose_header_is_cut_only_the_size_is_said(session: Session) -> None:
    found = explain_recorded(Recorded("", bytes(87), frozenset(range(3, 87))), session.log)
    assert found.title == "3 of the 87 bytes of a message"
    assert found.parts[2].meaning == "3 of 4 bytes missing here"


def test_bytes_without_their_beginning_are_not_taken_for_a_message(session: Session) -> None:
    one = Recorded("", session.messages[0], nonsense="why")
    found = explain_recorded(one, session.log)
    assert [(part.name, part.meaning) for part in found.parts] == [("bytes", "why")]
    assert found.title == "87 bytes"


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
    "events": b'{"attack": "x", "event": "sent", "to": "server", "message": "00"}\n',
    "pcapng": b"\x0a\x0d\x0d\x0a" + bytes(30),
    "pcap": b"\xd4\xc3\xb2\xa1" + bytes(3),
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
        (["{}/pcapng"], "there is no message in"),
        (["{}/pcap"], "there is no message in"),
        (["{}/events", "--attack", "y"], "has no attack y; it has x$"),
        (["{}/odd", "--attack", "y"], "--attack is for event logs"),
        (["00", "--keylog", "{}/keys"], "is no key log: line 1 cannot be in one"),
        (["00", "--keylog", "{}/nowhere"], "no key log"),
        ([""], r"cannot read \.: "),
        (["00", "--keylog", "{}"], "cannot read"),
        ([], "required"),
        (["00", "--frobnicate"], "unrecognized"),
        (["{}/events", "--html", "{}/events"], "events: it is read here"),
        (["00", "--keylog", "{}/keys", "--html", "{}/keys"], "keys: it is read here"),
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


def test_a_key_log_that_cannot_be_looked_for_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["explain", "00", "--keylog", "k" * 300])
    with pytest.raises(UserError, match=r"cannot read kkk.*: "):
        main()


@pytest.mark.slow
def test_it_is_a_command(session: Session) -> None:
    done = run("-m", "classroom.explain", session.messages[0].hex())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1] == "   CLIENT_HELLO, client 1, round 0, C2S, 87 bytes"
    assert run("-m", "classroom.explain", "xyz").returncode == 2


@pytest.mark.slow
def test_of_what_is_no_message_the_beginning_is_shown_and_the_rest_counted() -> None:
    found = Recorded("", bytes(200_000), nonsense=ILLEGAL)
    (one,) = all_shown([found], {})
    assert "199,872  more" in as_text(one)
    assert "and 134464 more" in as_html([one])


def test_an_empty_message_is_made_from_no_other() -> None:
    (one,) = all_shown([Recorded("", b"")], {})
    assert "all other bytes" not in as_text(one)
