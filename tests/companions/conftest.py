"""What the tests of the companions share: RSA keys, which cost 50 to 200 ms each."""

from __future__ import annotations

import pytest

from companions.asymmetric import PrivateKey, new_identity


@pytest.fixture(scope="session")
def keys() -> list[PrivateKey]:
    """Six RSA-2048 keys."""
    return [new_identity() for _ in range(6)]
