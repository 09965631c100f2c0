"""Figures and cheat sheet are what the code draws; they fit their paper and can be read."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

import protocol_fsm
from classroom.cheatsheet import answer_to, error_rows, page
from classroom.figures import COLOURS, FIGURES, MIXED_IN, Conversation, steps
from classroom.pictures import browser
from lab.weakened import RULES
from protocol_fsm import ClientData, Opcode, ServerAggrResponse
from tests.colours import contrast
from tests.programs import ROOT, run

PICTURES = ROOT / "pictures"
SHEET = ROOT / "classroom" / "cheatsheet.html"
PROTOCOL = (ROOT / "PROTOCOL.md").read_text("utf-8")
LETTER = {"title": 11, "strong": 9.5, "bytes": 8, "small": 7}  # pixels, of a wide font


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_what_the_code_draws(name: str) -> None:
    assert (PICTURES / name).read_text("ascii") == FIGURES[name](), "run: -m classroom.figures"


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_stands_in_a_document_with_its_words(name: str) -> None:
    documents = [path.read_text("utf-8") for path in ROOT.glob("*.md")]
    shown = [re.findall(rf"!\[(.+)\]\(pictures/{name}\)", text) for text in documents]
    assert sum(map(len, shown)) == 1


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_in_a_figure_is_outside_or_silent(name: str) -> None:
    svg = ElementTree.fromstring(FIGURES[name]())
    _, _, width, height = map(float, (svg.get("viewBox") or "").split())
    for text in svg.findall(".//{*}text"):
        kinds = (text.get("class") or "").split()
        letter = next((LETTER[kind] for kind in kinds if kind in LETTER), 8)
        long = letter * len(text.text or "")
        left = float(text.get("x", 0)) - (long / 2 if text.get("text-anchor") == "middle" else 0)
        assert left > 0, text.text
        assert left + long < width, text.text
        assert 0 < float(text.get("y", 0)) < height - 4, text.text
    told = [part.text or "" for part in svg if part.get("id")]
    assert len(told) == 2
    assert all(told)


@pytest.mark.parametrize("scheme", [0, 1])
def test_words_of_a_figure_stand_out_from_all_they_stand_on(scheme: int) -> None:
    for word in ("ink", "soft"):
        for ground in ("paper", "plain", "moved", "touched") if word == "ink" else ("paper",):
            assert contrast(COLOURS[word][scheme], COLOURS[ground][scheme]) >= 4.5, (word, ground)


def test_the_keys_that_the_figure_moves_are_those_that_move() -> None:
    talk = Conversation("test")
    talk.handshake()
    talk.say(ClientData([1.0]))
    talk.say(ServerAggrResponse({}))
    moved = {
        (Opcode(seen.message[0]), label)
        for before, seen in zip(talk.told, talk.told[1:])
        for label, name in seen.fingerprints.items()
        if name != before.fingerprints[label]
    }
    assert moved == MIXED_IN.keys()


def test_what_the_figure_mixes_in_is_what_the_document_says() -> None:
    for (opcode, label), words in MIXED_IN.items():
        if opcode is Opcode.SERVER_CHALLENGE:
            assert words == "nonces"
            assert "X' = SHA-256(X || client nonce || server nonce)" in PROTOCOL
        else:
            assert f"{label}' = SHA-256({label} || {words})" in PROTOCOL


def test_the_nine_steps_are_those_of_the_document() -> None:
    table = re.findall(r"^\| (\d) \| .* \| ([\w, ]*)\|$", PROTOCOL, re.MULTILINE)
    assert [(int(number), errors.strip()) for number, errors in table] == [
        (step.number, ", ".join(kind.__name__ for kind in step.errors)) for step in steps()
    ]


# The cheat sheet


def test_the_cheat_sheet_is_what_the_code_writes() -> None:
    assert SHEET.read_text("utf-8") == page(), "run: python -m classroom.cheatsheet"


def test_each_error_has_its_rules_and_its_answer() -> None:
    rows = {row.name: row for row in error_rows()}
    errors = {kind.__name__ for step in steps() for kind in step.errors}
    assert rows.keys() == errors | {"DeadlineExpired", "ConnectionCut", "PeerTerminated"}
    assert {rule for row in rows.values() for rule in row.rules} <= RULES.keys()
    assert "tag" in rows["BadTag"].rules
    assert rows["EchoMismatch"].rules == ["echo"]
    answers = {name: row.answer for name, row in rows.items() if row.answer != "TERMINATE"}
    assert answers == {
        "RoundMismatch": "KEY_DESYNC_ERROR",
        "EchoMismatch": "nothing",
        "ConnectionCut": "nothing",
        "PeerTerminated": "nothing",
    }
    assert answer_to(protocol_fsm.BadTag) == "TERMINATE"


@pytest.mark.slow
def test_the_cheat_sheet_prints_on_one_page() -> None:
    with browser() as chromium:
        view = chromium.new_page()
        view.goto(SHEET.as_uri())
        printed = view.pdf(prefer_css_page_size=True)
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) == 1


@pytest.mark.slow
def test_both_programs_write_where_they_are_told_to(tmp_path: Path) -> None:
    done = run("-m", "classroom.figures", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == FIGURES.keys()
    done = run("-m", "classroom.cheatsheet", str(tmp_path / "sheet.html"))
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "sheet.html").read_text("utf-8") == SHEET.read_text("utf-8")
    assert run("-m", "classroom.figures", str(tmp_path / "none")).returncode == 2
