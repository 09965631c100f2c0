"""One encoding for what is signed: JSON in ASCII, members sorted by name, no spaces.

A signature is over bytes, and readers act on values. So that the two cannot differ, bytes that are
not the encoding of what they say are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def canonical(members: Mapping[str, object]) -> bytes:
    """Return the canonical encoding. Raises ValueError for half a character (a lone surrogate)."""
    text = _ENCODER.encode(dict(members))
    json.dumps(dict(members), ensure_ascii=False).encode("utf-8")  # or UnicodeError, a ValueError
    return text.encode("ascii")


def parse_canonical(data: bytes, members: Mapping[str, type]) -> dict[str, Any]:
    """Return the members of an object that has exactly these, of exactly these types.

    A bool is no int. Raises ValueError, whatever is wrong.
    """
    try:
        values: object = json.loads(data.decode("ascii"))
        if not isinstance(values, dict) or canonical(values) != data:
            raise ValueError("not the canonical encoding of an object")
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if {name: type(value) for name, value in values.items()} != dict(members):
        raise ValueError(f"not exactly the members {', '.join(sorted(members))}, or a wrong type")
    return values
