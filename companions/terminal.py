"""What the companions' programs ask on a terminal."""

from __future__ import annotations

import getpass

from program import UserError, to_stderr


def ask_passphrase(prompt: str) -> str:
    """Return a passphrase, which the terminal does not show. Raises UserError."""
    try:
        return getpass.getpass(prompt)
    except EOFError:
        to_stderr("")  # the prompt has a line of its own
        raise UserError("the key needs a passphrase, and nobody types one") from None
    except UnicodeError:
        raise UserError("a passphrase is text") from None
