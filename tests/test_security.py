"""SECURITY.md names nothing that is not there, leaves nothing out, and its commands win as it says.

The page is read as text: tables by their headings, commands from its `sh` blocks, in which the
lines behind `#` are words that the command above them prints.
"""

from __future__ import annotations

import importlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest

import protocol_fsm
from attacks import ATTACKS, unsealed
from classroom.explore import CLAIMS as EXPLORED
from classroom.weakened import DOCUMENTED, ELEMENTS
from protocol_fsm import Direction, Opcode, ProtocolError, State, bind_keys
from tests.helpers import Pair, clone, pair_in, reseal
from tests.pages import ROOT, VERDICTS, Claim, names_of_tests_in, quoted, table

TEXT = (ROOT / "SECURITY.md").read_text("utf-8")
PROSE = re.sub(r"^```.*?^```$", "", TEXT, flags=re.DOTALL | re.MULTILINE)  # and tables
MODULES = {path.stem for path in ROOT.glob("*.py")} | {"classroom"}
ERRORS = {
    name
    for name, value in vars(protocol_fsm).items()
    if isinstance(value, type) and issubclass(value, ProtocolError)
} - {"ProtocolError"}
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


HEAD, *ROWS = table("id", TEXT)
CLAIMS = [Claim(*row) for row in ROWS]
ELEMENT_ROWS = table("element", TEXT)[1:]
ERROR_ROWS = table("error", TEXT)[1:]
MODEL_PAGE = (ROOT / "classroom/model/README.md").read_text("utf-8")
MODELLED = {
    claim
    for row in re.findall(r"^\| `\w+\.pv` \|.*", MODEL_PAGE, re.M)
    for claim in re.findall(r"\bS-\d+", row)
}

# What the page names is there ---------------------------------------------------------------------


def resolve(symbol: str) -> object:
    """Import as much of a dotted name as is a module, and look up the rest."""
    module, *names = symbol.split(".")
    found: object = importlib.import_module(module)
    if module == "classroom":
        module = f"classroom.{names[0]}"
        names = names[1:]
        found = importlib.import_module(module)
    for name in names:
        found = getattr(found, name)
    return found


def test_columns_are_those_that_the_first_lines_explain() -> None:
    assert HEAD == [
        "id",
        "family",
        "claim",
        "condition",
        "code",
        "attacks",
        "tests",
        "verdict",
        "rests on",
    ]
    assert TEXT.index("| id |") < TEXT.index("## Security goals")


def test_claims_are_numbered_in_order() -> None:
    assert [claim.id for claim in CLAIMS] == [f"S-{n}" for n in range(1, len(CLAIMS) + 1)]


def test_claims_that_the_text_cites_exist() -> None:
    assert set(re.findall(r"\bS-\d+", TEXT)) == {claim.id for claim in CLAIMS}


@pytest.mark.parametrize("claim", CLAIMS, ids=[claim.id for claim in CLAIMS])
def test_code_attacks_and_tests_of_a_claim_exist(claim: Claim) -> None:
    assert quoted(claim.code), "a claim without code"
    for symbol in quoted(claim.code):
        assert symbol.partition(".")[0] in MODULES
        resolve(symbol)
    assert not set(quoted(claim.attacks)) - ATTACKS.keys()
    for test in quoted(claim.tests):
        path, _, name = test.partition("::")
        assert name in names_of_tests_in(path), test


@pytest.mark.parametrize("claim", CLAIMS, ids=[claim.id for claim in CLAIMS])
def test_a_verdict_rests_on_what_stands_beside_it(claim: Claim) -> None:
    assert claim.verdict in VERDICTS
    wanted = ["attack"] * bool(claim.attacks and claim.family) + ["test"] * bool(claim.tests)
    wanted += ["exploration"] * (claim.id in EXPLORED) + ["model"] * (claim.id in MODELLED)
    assert claim.rests_on == ", ".join(wanted)
    assert wanted, "a claim that nothing can show to be false"
    assert claim.condition or claim.verdict == "holds", "a limit without its words"


@pytest.mark.parametrize("claim", CLAIMS, ids=[claim.id for claim in CLAIMS])
def test_an_attack_that_nothing_prevents_is_no_witness_for_what_holds(claim: Claim) -> None:
    """But it may win one thing, and so show that another is closed: stolen chain keys."""
    open_ends = {name for name in quoted(claim.attacks) if ATTACKS[name].noticed}
    if claim.verdict == "holds":
        assert open_ends <= {"stolen-chain-keys"}


def test_backticks_come_in_pairs() -> None:
    assert not [line for line in PROSE.splitlines() if line.count("`") % 2]


def test_every_symbol_in_the_text_exists() -> None:
    prefix = "|".join(sorted(MODULES))
    symbols = [name for name in quoted(PROSE) if re.fullmatch(rf"({prefix})(\.\w+)+", name)]
    assert len(symbols) > len(CLAIMS)
    for symbol in symbols:
        if not (ROOT / symbol).is_file():
            resolve(symbol)


def test_every_file_in_the_text_exists() -> None:
    names = {name.partition("::")[0] for name in quoted(PROSE)}
    files = {name for name in names if re.fullmatch(r"[\w/]+\.(py|md)", name)}
    assert files
    assert not [name for name in files if not (ROOT / name).is_file()]


def test_every_attack_and_element_in_the_text_exists() -> None:
    hyphenated = {name for name in quoted(PROSE) if re.fullmatch(r"[a-z]+(-[a-z]+)+", name)}
    assert not hyphenated - ATTACKS.keys() - ELEMENTS.keys()


def test_links_lead_to_files() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert targets
    assert not [target for target in targets if not (ROOT / target).is_file()]


# Nothing is left out ------------------------------------------------------------------------------


def test_every_attack_has_a_row_in_its_family() -> None:
    rows = {(claim.family, name) for claim in CLAIMS for name in quoted(claim.attacks)}
    assert not {(attack.claim, name) for name, attack in ATTACKS.items()} - rows


def test_an_attack_that_nothing_prevents_has_a_row_that_says_so() -> None:
    admitted = {
        name for claim in CLAIMS if claim.verdict != "holds" for name in quoted(claim.attacks)
    }
    assert not {name for name, attack in ATTACKS.items() if attack.noticed} - admitted


def test_every_element_has_one_row_and_cites_claims() -> None:
    assert sorted(quoted(row[0])[0] for row in ELEMENT_ROWS) == sorted(ELEMENTS)
    for row in ELEMENT_ROWS:
        assert re.fullmatch(r"S-\d+(, S-\d+)*", row[2]), row


def test_every_error_has_one_row() -> None:
    assert sorted(quoted(row[0])[0] for row in ERROR_ROWS) == sorted(ERRORS)


@pytest.mark.parametrize("row", ERROR_ROWS, ids=[quoted(row[0])[0] for row in ERROR_ROWS])
def test_an_error_is_met_by_the_attacks_beside_it(row: list[str]) -> None:
    error = getattr(protocol_fsm, quoted(row[0])[0])
    assert {ATTACKS[name].error for name in quoted(row[2])} <= {error}
    assert bool(quoted(row[2])) == any(attack.error is error for attack in ATTACKS.values())


def test_the_documented_protocol_lacks_what_scenario_10_lists() -> None:
    sentence = TEXT[TEXT.index("What the documents leave out: ") :].split(".")[0]
    assert len(sentence.split(",")) == len(DOCUMENTED)


def test_every_scenario_tells_its_story_and_how_to_break_it() -> None:
    part = TEXT[TEXT.index("## The ten attack") :]
    titles = re.findall(r"^### (\d+)\. (.*)$", part, re.MULTILINE)
    assert titles == [(str(n), title) for n, title in enumerate(SCENARIOS, 1)]
    for _, title in titles:
        scenario = re.split(r"^##+ ", part[part.index(title) :], flags=re.MULTILINE)[0]
        for word in ("*Story.*", "*Break it.*", "```sh"):
            assert word in scenario, f"{title} lacks {word}"


def test_properties_are_answered_by_a_run_and_limits_by_a_condition() -> None:
    [_, *protocols], *rows = table("property", (ROOT / "README.md").read_text("utf-8"))
    assert len(rows) == 11
    assert protocols[0] == "core"
    for number, protocol in enumerate(protocols, 1):
        module = "attacks" if protocol == "core" else f"companions.{protocol}.attacks"
        catalogue = importlib.import_module(module).ATTACKS
        for row in rows:
            match = re.fullmatch(r"(yes|no|limited): ([a-z`, -]+?)( \(.+\))?", row[number])
            assert match, row
            assert match[3] or match[1] != "limited", row
            assert quoted(match[2]), row
            assert not {*quoted(match[2])} - catalogue.keys(), row


def test_the_part_for_the_generated_sets_is_marked() -> None:
    marks = (
        "<!-- generated by: python -m classroom.matrix --markdown -->",
        "<!-- end of generated part -->",
    )
    assert [TEXT.count(mark) for mark in marks] == [1, 1]
    assert TEXT.index(marks[0]) < TEXT.index(marks[1])


# What the page says of runs is what they print ----------------------------------------------------


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yield every command of the page with the words that it is said to print."""
    for block in re.findall(r"^```sh\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE):
        for part in re.split(r"^(?=python )", block, flags=re.MULTILINE):
            command, *words = part.splitlines() or [""]
            if command:
                yield command, [word.removeprefix("#").strip() for word in words]


COMMANDS = dict(commands())
QUICK = (  # one of each kind; the others take as long, and are many
    "python attacks.py --without tag flip-reading",
    "python attacks.py --without binding replay-session",
    "python attacks.py --seed 1 stolen-chain-keys",
    "python attacks.py --without documented recorded-server hold-until-reconnected cut",
)


def run(*words: str) -> str:
    """Run attacks.py, and return what it printed, with single spaces."""
    if "--without" not in words:  # a server may run on this machine, and would be attacked
        words = ("--seed", "test", *words)
    done = subprocess.run(
        [sys.executable, "attacks.py", *words],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode in (0, 1)
    return " ".join(done.stdout.split())


def test_the_page_has_commands_and_every_one_is_said_to_print_something() -> None:
    assert len(COMMANDS) == len(list(commands())) >= len(SCENARIOS)
    for command, words in COMMANDS.items():
        assert command.startswith("python attacks.py "), command
        assert all(words), command
        assert words, command
        assert ("--without" in command) == any(
            "WON" in word for word in words
        ) or "stolen-chain-keys" in command, command
    assert not set(QUICK) - COMMANDS.keys()


def check_command(command: str) -> None:
    printed = run(*shlex.split(command)[2:])
    for words in COMMANDS[command]:
        assert words in printed, f"{command} printed {printed[-600:]}"


@pytest.mark.parametrize("command", QUICK)
def test_a_command_prints_what_is_quoted_below_it(command: str) -> None:
    check_command(command)


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in QUICK])
def test_every_other_command_prints_what_is_quoted_below_it(command: str) -> None:
    check_command(command)


def result(attack: str, *flags: str) -> tuple[str, str]:
    """Return what attacks.py says of an attack: its words, and what was won."""
    told = json.loads(run("--json", *flags, attack))
    return told["words"], told["won"]


def check_element(row: list[str]) -> None:
    [(element,), (rules,), (attack,)] = map(quoted, (row[0], row[4], row[5]))
    assert element in rules.split(",")
    words, won = result(attack, "--without", rules)
    if row[6] == "wins":
        assert won
    elif row[6] == "not refused":
        assert won or words == f"{ATTACKS[attack].who}: PeerTerminated", "not a goodbye in peace"
    else:
        assert row[6] == "still refused"
        assert not won


ELEMENT_NAMES = [quoted(row[0])[0] for row in ELEMENT_ROWS]
QUICK_ELEMENTS = ("echo", "iv-in-tag", "id", "round")


@pytest.mark.parametrize(
    "row", [ELEMENT_ROWS[ELEMENT_NAMES.index(n)] for n in QUICK_ELEMENTS], ids=QUICK_ELEMENTS
)
def test_an_element_is_missed_as_its_row_says(row: list[str]) -> None:
    check_element(row)


@pytest.mark.slow
@pytest.mark.parametrize("row", ELEMENT_ROWS, ids=ELEMENT_NAMES)
def test_every_element_is_missed_as_its_row_says(row: list[str]) -> None:
    check_element(row)


@pytest.mark.slow
@pytest.mark.parametrize("row", ELEMENT_ROWS, ids=ELEMENT_NAMES)
def test_a_set_of_rules_that_lets_an_attack_win_has_none_to_spare(row: list[str]) -> None:
    rules = quoted(row[4])[0].split(",")
    if row[6] == "wins" and len(rules) > 1:
        for spared in rules:
            others = [rule for rule in rules if rule != spared]
            assert not result(quoted(row[5])[0], "--without", ",".join(others))[1], spared


# What only this page claims -----------------------------------------------------------------------


def test_chain_keys_of_the_handshake_are_as_good_as_the_master_key() -> None:
    stolen = dict(Pair().client._keys)  # from any session, before its keys are bound
    pair = Pair()
    pair.hello()
    pair.challenge()
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
    assert clone(server).open(report).readings == [900.0]  # as a judge with its keys would do
