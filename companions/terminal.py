"""What the companions' programs show on a terminal, and what they ask there."""

from __future__ import annotations

import getpass

from program import UserError, to_stderr


def shown(text: str) -> str:
    """Return text that breaks no line, moves no cursor, colours nothing and hides nothing."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def ask_passphrase(prompt: str) -> str:
    """Return a passphrase, which the terminal does not show. Raises UserError."""
    try:
        return getpass.getpass(prompt)
    except EOFError:
        to_stderr("")  # the prompt has a line of its own
        raise UserError("the key needs a passphrase, and nobody types one") from None
    except UnicodeError:
        raise UserError("a passphrase is text") from None
