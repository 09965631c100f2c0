"""What the tests of the companions share: RSA keys, which cost 50 to 200 ms each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from companions.asymmetric import PrivateKey


@pytest.fixture(scope="session")
def keys() -> list[PrivateKey]:
    """Six RSA-2048 keys."""
    from companions.asymmetric import new_identity  # not everybody has its package

    return [new_identity() for _ in range(6)]
