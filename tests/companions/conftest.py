"""What the tests of the companions share: RSA keys, which cost 50 to 200 ms each; databases."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from companions.asymmetric import PrivateKey
    from tests.companions.chat_databases import MariaDb, Place
    from tests.companions.chat_programs import House
    from tests.companions.chat_sessions import World


@pytest.fixture(scope="session")
def keys() -> list[PrivateKey]:
    """Six RSA-2048 keys."""
    from companions.asymmetric import new_identity  # not everybody has its package

    return [new_identity() for _ in range(6)]


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDb]:
    """A MariaDB server of this test run."""
    from tests.companions.chat_databases import MariaDb

    with MariaDb() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("mariadb", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A new database: in a file, or in MariaDB."""
    from tests.companions.chat_databases import SqliteFile

    if request.param == "sqlite":
        yield SqliteFile(tmp_path)
    else:
        with request.getfixturevalue("mariadb").place("mariadb") as place:
            yield place


@pytest.fixture
def quiet() -> Iterator[None]:
    """No log: what a test refuses on purpose is many lines."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def house(keys: list[PrivateKey], tmp_path: Path) -> Iterator[House]:
    """A server of secure_chat, with what its members need."""
    from tests.companions.chat_programs import House

    with House(keys, tmp_path).open() as house:
        yield house


@pytest.fixture(scope="module")
def world(keys: list[PrivateKey]) -> World:
    """The parties of secure_chat, whose clock stands still."""
    from tests.companions.chat_sessions import World

    return World(keys)


@pytest.fixture
def certs(tmp_path: Path, keys: list[PrivateKey], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an authority of secure_chat, whose keys are not made anew."""
    from companions.secure_chat import gen_ca, gen_cert

    left = iter([*keys, *keys])
    for module in (gen_ca, gen_cert):
        monkeypatch.setattr(module, "new_identity", lambda: next(left))
    gen_ca.create(tmp_path / "certs")
    return tmp_path / "certs"
