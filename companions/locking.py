"""A lock that two programs share: a file that one of them makes, and removes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from program import UserError, reason_of


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one program make a list at a time: else one of two revocations would be lost."""
    try:
        path.open("x").close()
    except FileExistsError:
        raise UserError(f"another program is making a list; if none is, remove {path}") from None
    except OSError as error:
        raise UserError(f"cannot make {path}: {reason_of(error)}") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
