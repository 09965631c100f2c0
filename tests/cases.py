"""Many cases in one test: where each is short, a test of its own would cost more than it does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def case(name: object) -> Iterator[None]:
    """Name the case in which an assertion fails."""
    try:
        yield
    except (Exception, pytest.fail.Exception) as error:
        raise AssertionError(f"case: {name}") from error
