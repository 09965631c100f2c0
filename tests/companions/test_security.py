"""SECURITY.md and README.md of each companion, and the code, say the same.

The tables are those of the core's page (tests/test_security.py), so that its readers know their
way; code is named from the folder of the companion, and tests from this one.
"""

from __future__ import annotations

import importlib
import logging
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from protocol_fsm import ProtocolError
from tests import diagrams
from tests.pages import VERDICTS, Claim, names_of_tests_in, quoted, table

ROOT = Path(__file__).parent.parent.parent
COMPANIONS = sorted(path.parent.name for path in (ROOT / "companions").glob("*/SECURITY.md"))
SHARED = ("asymmetric", "canonical", "channel")  # beside the companions' folders


class Page:
    """SECURITY.md of a companion, and what it speaks of."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = ROOT / "companions" / name
        self.text = (self.folder / "SECURITY.md").read_text("utf-8")
        self.readme = (self.folder / "README.md").read_text("utf-8")
        self.claims = [Claim(*row) for row in table("id", self.text)[1:]]
        self.elements = table("element", self.text)[1:]
        self.errors = table("error", self.text)[1:]
        self.attacks = self.module("attacks").ATTACKS
        self.rules = self.module("weakened").ELEMENTS

    def module(self, name: str) -> ModuleType:
        where = "companions" if name in SHARED else f"companions.{self.name}"
        return importlib.import_module(f"{where}.{name}")

    def resolve(self, symbol: str) -> object:
        module, *names = symbol.split(".")
        found: object = self.module(module)
        for name in names:
            found = getattr(found, name)
        return found

    def error_types(self) -> dict[str, type[ProtocolError]]:
        """Return the errors that its own modules can end a session with."""
        modules = [
            self.module(path.stem)
            for path in self.folder.glob("*.py")
            if path.stem not in ("__init__", "bench", "demo", "media", "weakened")
        ]
        return {
            name: value
            for module in modules
            for name, value in vars(module).items()
            if isinstance(value, type)
            and issubclass(value, ProtocolError)
            and value is not ProtocolError
        }


PAGES = {name: Page(name) for name in COMPANIONS}
CLAIMS = [(name, claim) for name, page in PAGES.items() for claim in page.claims]
ids = [claim.id for _, claim in CLAIMS]


@pytest.fixture(params=COMPANIONS)
def page(request: pytest.FixtureRequest) -> Page:
    return PAGES[request.param]


# What the page names is there ---------------------------------------------------------------------


def test_claims_are_numbered_in_order_and_those_cited_exist(page: Page) -> None:
    letter = page.claims[0].id[0]
    assert [claim.id for claim in page.claims] == [
        f"{letter}-{n}" for n in range(1, len(page.claims) + 1)
    ]
    cited = set(re.findall(rf"\b{letter}-\d+", page.text))
    assert cited == {claim.id for claim in page.claims}


@pytest.mark.parametrize(("name", "claim"), CLAIMS, ids=ids)
def test_code_attacks_and_tests_of_a_claim_exist(name: str, claim: Claim) -> None:
    page = PAGES[name]
    assert quoted(claim.code), "a claim without code"
    for symbol in quoted(claim.code):
        page.resolve(symbol)
    assert not set(quoted(claim.attacks)) - page.attacks.keys()
    assert quoted(claim.tests), "a claim without a test"
    for test in quoted(claim.tests):
        path, _, function = test.partition("::")
        assert function in names_of_tests_in(f"tests/companions/{path}"), test


@pytest.mark.parametrize(("name", "claim"), CLAIMS, ids=ids)
def test_a_verdict_rests_on_what_stands_beside_it(name: str, claim: Claim) -> None:
    assert claim.verdict in VERDICTS
    wanted = ["attack"] * bool(claim.attacks and claim.family) + ["test"] * bool(claim.tests)
    assert claim.rests_on == ", ".join(wanted)
    assert claim.condition or claim.verdict == "holds", "a limit without its words"
    if claim.verdict == "holds":
        attacks = PAGES[name].attacks
        assert not [attack for attack in quoted(claim.attacks) if attacks[attack].noticed]


def test_links_lead_to_files(page: Page) -> None:
    for text in (page.text, page.readme):
        targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", text)]
        assert targets
        assert not [target for target in targets if not (page.folder / target).exists()]


def test_files_that_the_readme_lists_exist_and_none_is_left_out(page: Page) -> None:
    listed = {name for row in table("file", page.readme)[1:] for name in quoted(row[0])}
    assert listed == {path.name for path in page.folder.glob("*.py")} - {
        "__init__.py",
        "options.py",
    }


# Nothing is left out ------------------------------------------------------------------------------


def test_every_attack_has_a_row_in_its_family(page: Page) -> None:
    rows = {(claim.family, name) for claim in page.claims for name in quoted(claim.attacks)}
    assert {(attack.claim, name) for name, attack in page.attacks.items()} == rows


def test_an_attack_that_nothing_prevents_has_a_row_that_says_so(page: Page) -> None:
    admitted = {
        name for claim in page.claims if claim.verdict != "holds" for name in quoted(claim.attacks)
    }
    assert not {name for name, attack in page.attacks.items() if attack.noticed} - admitted


def test_every_element_has_one_row_and_cites_claims(page: Page) -> None:
    assert [quoted(row[0])[0] for row in page.elements] == [*page.rules]
    letter = page.claims[0].id[0]
    for row in page.elements:
        assert re.fullmatch(rf"{letter}-\d+(, {letter}-\d+)*", row[2]), row


def test_every_error_has_one_row(page: Page) -> None:
    assert sorted(quoted(row[0])[0] for row in page.errors) == sorted(page.error_types())


def test_an_error_is_met_by_the_attacks_beside_it(page: Page) -> None:
    for row in page.errors:
        error = page.error_types()[quoted(row[0])[0]]
        assert {page.attacks[name].error for name in quoted(row[2])} <= {error}, row
        assert bool(quoted(row[2])) == any(
            attack.error is error for attack in page.attacks.values()
        ), row


def test_generated_parts_are_up_to_date(page: Page) -> None:
    assert page.readme == diagrams.updated(page.readme), "run: python -m tests.diagrams"
    assert "stateDiagram" in page.readme


# What the page says of runs is what they print ----------------------------------------------------


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield every command of the page with the words that it is said to print."""
    for block in re.findall(r"^ *```sh\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE):
        for part in re.split(r"^ *(?=python )", block, flags=re.MULTILINE):
            command, *words = part.splitlines() or [""]
            if command:
                yield command, [word.strip().removeprefix("#").strip() for word in words]


COMMANDS = [(command, words) for page in PAGES.values() for command, words in commands(page.text)]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "words"), COMMANDS, ids=[each[0] for each in COMMANDS])
def test_a_command_prints_what_is_quoted_below_it(command: str, words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *shlex.split(command)[1:]],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode in (0, 1)
    assert words, "it is not said what this prints"
    for word in words:
        assert word.removeprefix("WON: ") in " ".join(done.stdout.split())
        assert not word.startswith("WON") or "WON" in done.stdout


ELEMENT_ROWS = [(name, row) for name, page in PAGES.items() for row in page.elements]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "row"), ELEMENT_ROWS, ids=[quoted(row[0])[0] for _, row in ELEMENT_ROWS]
)
def test_an_element_is_missed_as_its_row_says(name: str, row: list[str]) -> None:
    [(element,), (rules,), (attack,)] = map(quoted, (row[0], row[3], row[4]))
    page = PAGES[name]
    names = rules.split(",")
    assert element in names
    assert won(page, names, attack) == (row[5] == "wins"), row[5]
    for spared in names if row[5] == "wins" and len(names) > 1 else ():
        assert not won(page, [rule for rule in names if rule != spared], attack), spared


def won(page: Page, rules: list[str], attack: str) -> bool:
    attacks = page.module("attacks")
    weakened = page.module("weakened")
    logging.disable()
    try:
        with attacks.Lab(lambda *_: None, attacks.Parts(*weakened.without(rules))) as lab:
            return bool(page.attacks[attack].goal(lab.suffer(page.attacks[attack])))
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPANIONS)
def test_the_minimal_sets_are_those_that_the_search_finds(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"companions.{name}.matrix", "--markdown"],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=900,
        check=True,
    )
    start = f"<!-- generated by: python -m companions.{name}.matrix --markdown -->\n\n"
    text = PAGES[name].text
    assert text[text.index(start) + len(start) :].split("\n\n<!-- end of")[0] == done.stdout.strip()
