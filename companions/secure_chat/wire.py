"""What a message of this protocol looks like, for the pages that show what an adversary did.

python -m companions.secure_chat.attacks --events events.jsonl
python -m companions.secure_chat.wire events.jsonl -o report.html
"""

from __future__ import annotations

import base64
import re
from contextlib import suppress
from functools import partial

from classroom.report import main
from classroom.wire import Field, companion
from companions.secure_chat.pki import BadCertificate, alternative_names, parse_pem
from companions.secure_chat.protocol import LENGTH_BYTES
from companions.secure_chat.options import PORT, kind_name
from program import plural, run_program

MEMBER = re.compile(rb'([{,])("[A-Za-z_]+"):("(?:[^"\\]|\\.)*"|\[.*\]|[0-9]+)')  # canonical JSON
SHOWN = frozenset({"type", "seqno", "ts", "room", "error_type", "g"})  # as they are


def fields(message: bytes) -> list[Field]:
    """Cut a frame into its members, each with its name; other bytes are `rest`."""
    found: list[Field] = []
    end = 0
    for match in MEMBER.finditer(message):
        if match.start() > end:
            found.append(Field(f"rest {len(found)}", message[end : match.start()]))
        name = match[2].decode("ascii").strip('"')
        found.append(Field(name, match[0], meaning_of(name, match[3])))
        end = match.end()
    if end < len(message):
        found.append(Field("end", message[end:]))
    return found


def meaning_of(name: str, content: bytes) -> str:
    """Say what a member means, if that can be read without a key."""
    text = content.decode("ascii", "replace").strip('"')
    if name in SHOWN:
        return text[:80]
    if name in ("client_cert", "server_cert"):
        with suppress(BadCertificate):
            names = alternative_names(parse_pem(text.replace("\\n", "\n"))[0])
            return ", ".join(str(one.value) for one in names)
    if name in ("payload", "ct"):
        with suppress(ValueError):
            return (
                f"IV and ciphertext, {plural(len(base64.b64decode(text, validate=True)), 'byte')}"
            )
    return ""


def title(message: bytes) -> str:
    """Name a message by its type, and what was said by its number."""
    number = re.search(rb'"seqno":([0-9]+)', message)
    return kind_name(message) + (f", number {number[1].decode()}" if number else "")


def framed(message: bytes) -> bytes:
    """Return what TCP carries for a message [C 1]."""
    return len(message).to_bytes(LENGTH_BYTES, "big") + message


WIRE = companion("secure_chat", title, fields, framed, PORT)

if __name__ == "__main__":
    run_program(partial(main, WIRE))
