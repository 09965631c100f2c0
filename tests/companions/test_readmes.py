"""README.md of each companion, and its folder, say the same."""

from __future__ import annotations

import re

import pytest

from tests import diagrams
from tests.books import COMPANIONS, Book, quoted


@pytest.fixture(params=COMPANIONS, ids=[book.name for book in COMPANIONS])
def book(request: pytest.FixtureRequest) -> Book:
    found: Book = request.param
    return found


def test_links_lead_to_files(book: Book) -> None:
    targets = [
        target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", book.text("README.md"))
    ]
    assert targets
    assert not [target for target in targets if not (book.documents / target).exists()]


def test_files_that_the_readme_lists_exist_and_none_is_left_out(book: Book) -> None:
    readme = book.text("README.md")
    table = readme[readme.index("\n| file |") + 1 :].split("\n\n")[0].splitlines()[2:]
    listed = {name for row in table for name in quoted(row.split("|")[1])}
    assert listed == {path.name for path in book.documents.glob("*.py")} - {
        "__init__.py",
        "options.py",
    }


def test_generated_parts_are_up_to_date(book: Book) -> None:
    readme = book.text("README.md")
    assert readme == diagrams.updated(readme), "run: python -m tests.diagrams"
    assert "stateDiagram" in readme
