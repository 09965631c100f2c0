"""Each SECURITY.md names nothing that is not there, and its commands print what it says.

The lines behind `#` in an `sh` block are words that the command above them prints.
"""

from __future__ import annotations

import random
import re

import pytest

from attacks import unsealed
from lab.weakened import DOCUMENTED
from protocol_fsm import ClientData, Direction, Opcode, State, bind_keys
from tests.books import BOOKS, CORE, Book, commands, names_of_tests_in, printed_by, quoted, resolve
from tests.helpers import Pair, pair_in, reseal
from tests.programs import ROOT
from tests.sessions import clone

MOST_BYTES = 22 * 1024  # of the core's page, which a class reads beside the code
MODULES = {path.stem for path in ROOT.glob("*.py")} | {"classroom", "companions", "lab"}
SCENARIOS = (  # the titles of the original document, which its readers look for
    "Replay attack defense",
    "Message modification attack defense",
    "HMAC tampering attack defense",
    "Round number manipulation attack defense",
    "Message dropping attack defense",
    "Message reordering attack defense",
    "Reflection attack defense",
    "Key compromise and forward secrecy",
    "Padding oracle attack defense",
    "Man-in-the-middle (MITM) attack summary",
)
TEXT = CORE.text("SECURITY.md")


@pytest.fixture(params=[*BOOKS.values()], ids=[*BOOKS])
def book(request: pytest.FixtureRequest) -> Book:
    found: Book = request.param
    return found


def prose(book: Book) -> str:
    """Return the page without its blocks of commands."""
    text = book.text("SECURITY.md")
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)


# What the page names is there ---------------------------------------------------------------------


def test_backticks_come_in_pairs(book: Book) -> None:
    assert not [part for part in prose(book).split("\n\n") if part.count("`") % 2]


def test_every_symbol_file_and_test_in_the_text_exists(book: Book) -> None:
    prefix = "|".join(sorted(MODULES))
    for name in quoted(prose(book)):
        path, _, test = name.partition("::")
        if test:
            assert test in names_of_tests_in(path), name
        elif re.fullmatch(r"[\w/]+\.(py|md|toml|json)", name):
            assert (book.documents / name).is_file() or (ROOT / name).is_file(), name
        elif re.fullmatch(rf"({prefix})(\.\w+)+", name):
            resolve(name)


def test_every_attack_and_rule_in_the_text_exists(book: Book) -> None:
    hyphenated = {name for name in quoted(prose(book)) if re.fullmatch(r"[a-z]+(-[a-z]+)+", name)}
    assert not hyphenated - book.attacks.keys() - book.rules.keys()


def test_links_lead_to_files(book: Book) -> None:
    targets = re.findall(r"\]\(([^)#]+)", book.text("SECURITY.md"))
    assert "CLAIMS.md" in targets
    assert not [target for target in targets if not (book.documents / target).is_file()]


def test_properties_are_answered_by_a_run_and_limits_by_a_condition() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    table = readme[readme.index("\n| property |") + 1 :].split("\n\n")[0].splitlines()
    [_, *protocols], _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    assert len(rows) == 12
    assert protocols[0] == "core"
    for number, protocol in enumerate(protocols, 1):
        for row in rows:
            match = re.fullmatch(r"(yes|no|limited): ([a-z`, -]+?)( \(.+\))?", row[number])
            assert match, row
            assert match[3] or match[1] != "limited", row
            assert quoted(match[2]), row
            assert not {*quoted(match[2])} - BOOKS[protocol].attacks.keys(), row


def test_reader_is_sent_to_attacks_that_exist_in_the_protocols_named() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    lines = readme[readme.index("\n| question |") + 1 :].split("\n\n")[0].splitlines()[2:]
    named = set()
    for line in lines:
        _, where, attacks = [cell.strip() for cell in line.split("|")[1:-1]]
        protocols = [name for name in BOOKS if re.search(rf"\b{name}\b", where)]
        assert protocols, line
        known = set().union(*(BOOKS[name].attacks for name in protocols))
        assert quoted(attacks), line
        assert not {*quoted(attacks)} - known, line
        named |= {*protocols}
    assert named == {*BOOKS}


# The core's page, as a class reads it -------------------------------------------------------------


def test_the_page_can_be_read_in_class() -> None:
    assert len(TEXT.encode()) <= MOST_BYTES


def test_the_documented_protocol_lacks_what_scenario_10_lists() -> None:
    sentence = TEXT[TEXT.index("What the document leaves out: ") :].split(".")[0]
    assert len(sentence.split(",")) == len(DOCUMENTED)


def test_every_scenario_tells_its_story_and_how_to_break_it() -> None:
    part = TEXT[TEXT.index("## The ten attack") :]
    titles = re.findall(r"^### (\d+)\. (.*)$", part, re.MULTILINE)
    assert titles == [(str(n), title) for n, title in enumerate(SCENARIOS, 1)]
    for _, title in titles:
        scenario = re.split(r"^##+ ", part[part.index(title) :], flags=re.MULTILINE)[0]
        for word in ("*Story.*", "*Mechanism.*", "*Break it.*", "```sh"):
            assert word in scenario, f"{title} lacks {word}"


# What the page says of runs is what they print ----------------------------------------------------

COMMANDS = {
    command: words
    for book in BOOKS.values()
    for command, words in commands(book.text("SECURITY.md"))
}
QUICK = "python attacks.py --without tag flip-reading"
OTHERS = [command for command in COMMANDS if command != QUICK]


def test_every_command_runs_attacks_and_is_said_to_print_something(book: Book) -> None:
    told = [*commands(book.text("SECURITY.md"))]
    assert len(told) == len({command for command, _ in told}) >= 8
    for command, words in told:
        assert command.startswith(f"python {book.program} "), command
        assert words, command
        assert all(words), command
        if book is CORE:  # a server on this machine would be attacked
            assert "--without" in command or "--seed" in command


def check_command(command: str) -> None:
    printed = printed_by(command)
    for words in COMMANDS[command]:
        assert words in printed, f"{command} printed {printed[-600:]}"


def test_a_command_prints_what_is_quoted_below_it() -> None:
    check_command(QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(3))
def test_other_commands_print_what_is_quoted_below_them(part: int) -> None:
    """Some, others in each run: all of them take minutes."""
    for command in random.sample(OTHERS, 2):
        check_command(command)


# What only this page claims -----------------------------------------------------------------------


def test_chain_keys_of_the_handshake_are_as_good_as_the_master_key() -> None:
    stolen = dict(Pair().client._keys)  # from any session, before its keys are bound
    pair = pair_in(State.REPORT)
    hello, challenge = pair.transcript
    client_nonce = unsealed(stolen, "C2S", hello)[:16]
    server_nonce = unsealed(stolen, "S2C", challenge)[17:]
    assert bind_keys(stolen, client_nonce, server_nonce) == pair.client._keys


def test_chain_keys_of_one_session_do_not_open_the_next() -> None:
    stolen = dict(pair_in(State.REPORT).client._keys)
    following = pair_in(State.REPORT, rounds=1)
    for message in following.transcript:
        assert not any(unsealed(stolen, sender, message) for sender in ("C2S", "S2C"))


def test_the_server_can_make_a_report_of_its_client() -> None:
    server = pair_in(State.REPORT).server
    report = reseal(server, Opcode.CLIENT_DATA, bytes(16) + b"[900]", sender=Direction.C2S)
    opened = clone(server).open(report)  # as a judge with its keys would do
    assert isinstance(opened, ClientData)
    assert [*opened.readings] == [900.0]
