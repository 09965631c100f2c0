"""claims.toml and sets.json name nothing that is not there, and leave nothing out.

That a run wins, or does not, is what the searches say in whose tests sets.json is found again.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import random
import re
from pathlib import Path

import pytest

from lab.claims import VERDICTS, Sets, as_json, read_claims, read_sets
from lab.rules import meaning
from program import UserError
from tests import diagrams
from tests.books import BOOKS, COMPANIONS, CORE, Book, names_of_tests_in, resolve
from tests.cases import case
from tests.programs import ROOT, run

SOURCES = ["attack", "test", "exploration", "model"]
MODEL_PAGE = (ROOT / "classroom/model/README.md").read_text("utf-8")
MODELLED = {
    claim
    for row in re.findall(r"^\| `\w+\.pv` \|.*", MODEL_PAGE, re.M)
    for claim in re.findall(r"\bS-\d+", row)
}


@pytest.fixture(params=[*BOOKS.values()], ids=[*BOOKS])
def book(request: pytest.FixtureRequest) -> Book:
    found: Book = request.param
    return found


# What a row names is there ------------------------------------------------------------------------


@pytest.mark.slow
def test_code_attacks_and_tests_of_a_claim_exist(book: Book) -> None:
    for claim in book.told.claims:
        assert claim.code, claim.id
        for symbol in claim.code:
            resolve(symbol)
        assert not {*claim.attacks} - book.attacks.keys(), claim.id
        assert claim.tests, claim.id
        for test in claim.tests:
            path, _, name = test.partition("::")
            assert name in names_of_tests_in(path), test


def test_a_verdict_rests_on_what_stands_beside_it(book: Book) -> None:
    for claim in book.told.claims:
        with case(claim.id):
            assert claim.verdict in VERDICTS
            assert [*claim.rests_on] == [source for source in SOURCES if source in claim.rests_on]
            assert ("attack" in claim.rests_on) == bool(claim.attacks and claim.family)
            assert ("test" in claim.rests_on) == bool(claim.tests)
            assert ("model" in claim.rests_on) == (book is CORE and claim.id in MODELLED)
            assert claim.condition or claim.verdict == "holds", "a limit without its words"


def test_an_attack_that_nothing_prevents_is_no_witness_for_what_holds(book: Book) -> None:
    for claim in book.told.claims:
        if claim.verdict == "holds":
            assert not [name for name in claim.attacks if book.attacks[name].noticed], claim.id


def test_claims_are_numbered_in_order(book: Book) -> None:
    letter = book.told.claims[0].id[0]
    numbers = range(1, len(book.told.claims) + 1)
    assert [claim.id for claim in book.told.claims] == [f"{letter}-{n}" for n in numbers]


def test_claims_that_documents_cite_exist(book: Book) -> None:
    ids = {claim.id for claim in book.told.claims}
    for path in book.documents.glob("*.md"):
        cited = set(re.findall(rf"\b{min(ids)[0]}-\d+", path.read_text("utf-8")))
        assert cited <= ids, path


# Nothing is left out ------------------------------------------------------------------------------


def test_every_attack_has_a_row_in_its_family(book: Book) -> None:
    rows = {(claim.family, name) for claim in book.told.claims for name in claim.attacks}
    assert not {(attack.family, name) for name, attack in book.attacks.items()} - rows


def test_an_attack_that_nothing_prevents_has_a_row_that_says_so(book: Book) -> None:
    admitted = {
        name for claim in book.told.claims if claim.verdict != "holds" for name in claim.attacks
    }
    assert not {name for name, attack in book.attacks.items() if attack.noticed} - admitted


def test_every_rule_has_one_row_and_cites_claims(book: Book) -> None:
    ids = {claim.id for claim in book.told.claims}
    assert sorted(rule.name for rule in book.told.rules) == sorted(book.rules)
    for rule in book.told.rules:
        assert rule.claims
        assert {*rule.claims} <= ids, rule.name
        assert rule.name in rule.without
        assert {*rule.without} <= book.rules.keys()


def test_every_error_has_one_row_and_is_met_by_the_attacks_in_it(book: Book) -> None:
    assert sorted(error.name for error in book.told.errors) == sorted(book.errors)
    for error in book.told.errors:
        wanted = book.errors[error.name]
        assert {book.attacks[name].error for name in error.attacks} <= {wanted}, error.name
        is_met = any(attack.error is wanted for attack in book.attacks.values())
        assert bool(error.attacks) == is_met, error.name
        assert bool(error.unmet) != is_met, error.name


def test_every_attack_has_its_minimal_sets_or_is_not_prevented(book: Book) -> None:
    assert book.found.not_prevented == {
        name: attack.noticed for name, attack in book.attacks.items() if attack.noticed
    }
    assert {*book.found.sets} == {*book.attacks} - {*book.found.not_prevented}


def test_sets_are_minimal_and_what_is_in_none_has_a_reason(book: Book) -> None:
    used: set[str] = set()
    for attack, sets in book.found.sets.items():
        for rules in sets:
            assert 0 < len(rules) <= book.found.size
            assert not [other for other in sets if {*other} < {*rules}], attack
            used.update(rules)
    assert used <= book.rules.keys()
    assert book.told.redundant.keys() == book.rules.keys() - used


def test_a_run_wins_if_it_takes_out_a_minimal_set_and_then_no_more(book: Book) -> None:
    for rule in book.told.rules:
        enough = [rules for rules in book.found.sets[rule.attack] if {*rules} <= {*rule.without}]
        assert rule.wins == bool(enough), rule.name
        assert not enough or {*enough[0]} == {*rule.without}, rule.name


def test_claims_page_is_drawn_from_the_data(book: Book) -> None:
    text = book.text("CLAIMS.md")
    assert text == diagrams.updated(text), "run: python -m tests.diagrams"
    for heading in ("The claims", "Rules that can be taken out", "Errors that end a session"):
        assert f"\n## {heading}\n" in text
    for claim in book.told.claims:
        assert f"\n| {claim.id} | {claim.family} | {claim.claim} | " in text


@pytest.mark.slow
def test_sets_of_a_companion_are_those_that_the_search_finds() -> None:
    """Of one attack of one companion, others in each run: all of them take an hour."""
    book = random.choice(COMPANIONS)
    written = json.loads((book.data / "sets.json").read_text("utf-8"))
    attack = random.choice([*written["sets"]])
    done = run(
        "-m", f"companions.{book.name}.matrix", "--json", f"--attack={attack}", timeout_s=600
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["sets"]
    wanted = {attack: written["sets"][attack]}
    assert found == wanted, f"run: python -m companions.{book.name}.matrix --write"


# The files themselves -----------------------------------------------------------------------------

GOOD = """
[[claims]]
id = "S-1"
claim = "It holds."
code = ["crypto_utils"]
tests = []
verdict = "holds"
rests_on = []

[[rules]]
name = "tag"
rule = "step 5"
claims = ["S-1"]
without = ["tag"]
attack = "flip"
wins = true
redundant = "it is not"

[[errors]]
name = "BadTag"
when = "always"
"""


def test_a_file_of_claims_is_read_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "claims.toml").write_text(GOOD)
    told = read_claims(tmp_path)
    assert told.claims[0].code == ("crypto_utils",)
    assert (told.claims[0].condition, told.claims[0].attacks) == ("", ())
    assert told.rules[0].wins is True
    assert told.redundant == {"tag": "it is not"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        told.rules[0].wins = False  # type: ignore[misc]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[[claims]]", "[[claims"),
        ("[[errors]]", "[[mistakes]]"),
        ("[[errors]]", "[errors]"),
        ('when = "always"\n', ""),
        ("wins = true", 'wins = "true"'),
        ('claims = ["S-1"]', 'claims = "S-1"'),
        ('when = "always"', 'when = "always"\nwhy = "no reason"'),
    ],
)
def test_a_file_of_claims_with_a_mistake_is_one_sentence(
    tmp_path: Path, old: str, new: str
) -> None:
    assert GOOD.count(old) == 1
    (tmp_path / "claims.toml").write_text(GOOD.replace(old, new))
    with pytest.raises(UserError, match=r"claims\.toml is not a file of claims: "):
        read_claims(tmp_path)


def test_a_folder_without_claims_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read "):
        read_claims(tmp_path)


def test_sets_are_read_as_they_were_written(tmp_path: Path) -> None:
    sets = Sets(2, {"flip": [["tag"], ["echo", "id"]], "cut": []}, {"hold": "the client"})
    (tmp_path / "sets.json").write_text(as_json(sets))
    assert read_sets(tmp_path / "sets.json") == sets
    endless = '{"size": 1e999, "sets": {}, "not_prevented": {}}'
    for text in ("", "[]", '{"sets": {}}', '{"size": 1, "sets": [], "not_prevented": {}}', endless):
        (tmp_path / "sets.json").write_text(text)
        with pytest.raises(UserError, match="not what a search"):
            read_sets(tmp_path / "sets.json")


def test_sets_are_stored_as_the_search_writes_them(book: Book) -> None:
    text = (book.data / "sets.json").read_text("utf-8")
    assert text == as_json(book.found)
    assert json.loads(text)["size"] == book.found.size


@pytest.mark.parametrize("name", BOOKS)
def test_every_rule_says_what_is_done_without_it(name: str) -> None:
    """As `--rules` shows it."""
    rules = importlib.import_module(BOOKS[name].weakened).RULES
    meanings = [meaning(rule) for rule in rules.values()]
    assert len({*meanings}) == len(rules)
    for text in meanings:
        assert re.fullmatch("[A-Z][a-z]+,? .{5,100}", text), text
