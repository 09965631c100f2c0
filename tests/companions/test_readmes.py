"""README.md of each companion, and its folder, say the same."""

from __future__ import annotations

import importlib
import re

import pytest

from tests import diagrams
from tests.books import COMPANIONS, Book, moves, moves_of, quoted


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
    assert listed == {path.name for path in book.documents.glob("*.py")} - {"__init__.py"}


def test_generated_parts_are_up_to_date(book: Book) -> None:
    readme = book.text("README.md")
    assert readme == diagrams.updated(readme), "run: python -m tests.diagrams"
    assert "stateDiagram" in readme


def test_table_of_states_has_every_move_and_no_other(book: Book) -> None:
    protocol = importlib.import_module(f"companions.{book.name}.protocol")
    assert moves(book.text("README.md")) == moves_of(protocol)


WORDS = {  # what the documents name, and a reader of theirs will look for
    "device_transfer": [
        *("server.py", "device.py", "rsa_keys.py", "ca_cert.py", "logger.py", "keys/", "tqdm"),
        *("certificates/", "images/", "received_images/", "<HELO>", "<PREM>", "ACK after `<PREM>`"),
        *("nonce (16 bytes)", "pre-master secret", "master secret", "HKDF", "one IV", "<SECX>"),
        *("<IMGX>", "base64", "RSA-PSS", "<ENDD>", "video", "key update", "ECDHE", "CRL", "OCSP"),
        *("session identifiers", "a log for debugging", "error messages for others"),
    ],
    "peer_messaging": [
        *("main.py", "main port", "sub port", "live port", "constant pings", "pongs", "PKI", "ACK"),
        *("public keys exchanged", "signed_Private", "Encrypted_Public", "test messages", "MAC"),
        *("StorageNonceManager", "SHA-256 key", "AES key", "RSA key", "timestamp, 64 bits", "CA "),
        *("nonce, 96 bits", "seq#, 32 bits", "constant time", "ephemeral session key", "server"),
    ],
}


@pytest.mark.parametrize("name", WORDS)
def test_each_word_of_the_document_has_its_row(name: str) -> None:
    readme = next(book for book in COMPANIONS if book.name == name).text("README.md")
    table = readme[readme.index("| the document's | ours | why |") :].split("\n\n")[0]
    rows = [row.split("|")[1] for row in table.splitlines()]
    assert not [word for word in WORDS[name] if not any(word in row for row in rows)]
