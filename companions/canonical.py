"""One encoding for what is signed: JSON in ASCII, members sorted by name, no spaces.

A signature covers bytes, but readers act on values. So that the two cannot differ, any bytes but
the canonical encoding of their values are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # which UTF-8 cannot carry


def canonical(members: Mapping[str, object]) -> bytes:
    """Return the canonical encoding. Raises ValueError for half a character (a lone surrogate)."""
    encoded = _ENCODER.encode(dict(members))
    may_be_half = "\\ud" in encoded  # or both halves of one
    if may_be_half and _HALF_CHARACTER.search(json.dumps(dict(members), ensure_ascii=False)):
        raise ValueError("half a character in a text")
    return encoded.encode("ascii")


def parse_object(data: bytes) -> dict[str, Any]:
    """Return the members of an object, whatever they are. Raises ValueError for other bytes."""
    try:
        values: object = json.loads(data.decode("ascii"))
        if not isinstance(values, dict) or canonical(values) != data:
            raise ValueError("not the canonical encoding of an object")
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise ValueError("not JSON in ASCII") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return values


def parse_canonical(data: bytes, members: Mapping[str, type]) -> dict[str, Any]:
    """Return the members of an object that has exactly these, of exactly these types.

    A bool is not an int here. Raises ValueError for any other bytes.
    """
    values = parse_object(data)
    if not has_members(values, members):
        raise ValueError(f"not exactly the members {', '.join(sorted(members))}, or a wrong type")
    return values


def has_members(values: Mapping[str, object], members: Mapping[str, type]) -> bool:
    """Return whether an object has exactly these members, of exactly these types."""
    return {name: type(value) for name, value in values.items()} == dict(members)
