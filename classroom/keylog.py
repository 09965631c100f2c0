"""Read a key log, open recorded messages with it, and put messages into words.

`python server.py --keylog FILE` writes the log; KEYLOG.md has its format and its price. A message
does not name its keys: its keys are those that give its tag. Nothing here checks the protocol: a
plaintext is shown whatever it holds.
"""

from __future__ import annotations

import contextlib
import io
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from crypto_utils import NONCE_BYTES, TAG_BYTES, aes_cbc_decrypt, hmac_verify, pkcs7_unpad
from endpoint import opcode_of
from program import UserError, plural, read_whole, reason_of, to_stderr
from protocol_fsm import (
    CIPHERTEXT_AT,
    FAREWELL_STATUS,
    HEADER,
    MAX_MESSAGE,
    MIN_MESSAGE,
    OVERHEAD,
    Direction,
    Header,
    Opcode,
    Status,
)

PROTOCOL = "core"  # lines of other protocols stand in the same file
LINE = re.compile(
    r"([0-9a-z_]+) (C2S|S2C) ([0-9]{1,3}) ([0-9a-fA-F]{32}) ([0-9a-fA-F]{64})", re.ASCII
)
TEXT = re.compile(r"\w+-text (client|server) \w+ ([0-9a-fA-F]{2})* (-|([0-9a-fA-F]{2})+)", re.ASCII)
DIRECTION_NAMES = {direction.value: direction.name for direction in Direction}
STATUS_NAMES = {status.value: status.name for status in Status}
WIDTH = 79
MOST_LINES = 4  # of a plaintext
MOST_ROWS = 12  # of bytes


class PairOfKeys(NamedTuple):
    """What seals and opens the messages of one direction until the keys move on."""

    encryption: bytes  # 16
    mac: bytes  # 32


KeyLog = Mapping[tuple[int, int], list[PairOfKeys]]  # by direction and client id, the oldest first


def parse_keylog(text: str, name: str = "key log") -> tuple[KeyLog, list[int]]:
    """Return all keys in a log, each once, and the numbers of lines that cannot be in a key log.

    Such a line may have been cut short by a full disk, or is still being written. Lines with
    plaintexts are for Wireshark, which cannot decrypt; here the keys are enough. Raises UserError
    if no line can be in a key log.
    """
    keys: dict[tuple[int, int], dict[PairOfKeys, None]] = {}
    bad: list[int] = []
    is_one = False
    for number, line in enumerate(text.split("\n"), 1):
        words = " ".join(line.partition("#")[0].split())
        match = LINE.fullmatch(words)
        if match and match[1] == PROTOCOL:
            pair = PairOfKeys(bytes.fromhex(match[4]), bytes.fromhex(match[5]))
            keys.setdefault((Direction[match[2]], int(match[3])), {})[pair] = None
        is_good = match or TEXT.fullmatch(words)
        if words and not is_good:
            bad.append(number)
        is_one = is_one or bool(is_good)
    if bad and not is_one:
        raise UserError(f"{name} is no key log: line {bad[0]} cannot be in one")
    return {whose: [*pairs] for whose, pairs in keys.items()}, bad


def read_keylog(path: Path, say: Callable[[str], object] = to_stderr) -> KeyLog:
    """Return the keys in a file; a file that is not there yet has none. Raises UserError.

    `say` is told of lines that were skipped.
    """
    try:
        text = read_whole(path).decode("utf-8-sig", errors="replace")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}") from None
    keys, bad = parse_keylog(text, str(path))
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        say(f"{path}: skipped line {bad[0]}{more}, which cannot be in a key log")
    return keys


def open_with(keys: Iterable[PairOfKeys], message: bytes) -> bytes | None:
    """Return the plaintext of a message of legal length, None if its tag fits none of the keys."""
    iv = message[HEADER.size : CIPHERTEXT_AT]
    ciphertext = message[CIPHERTEXT_AT:-TAG_BYTES]
    for pair in keys:
        if hmac_verify(pair.mac, message[:-TAG_BYTES], message[-TAG_BYTES:]):
            with contextlib.suppress(ValueError):  # a peer that holds the keys may pad wrongly
                return pkcs7_unpad(aes_cbc_decrypt(ciphertext, pair.encryption, iv))
    return None


def plaintext_of(log: KeyLog, message: bytes) -> bytes | None:
    """Return the plaintext of a message, or None if no key in the log fits."""
    if not has_legal_length(message):
        return None
    header = Header(*HEADER.unpack_from(message))
    return open_with(reversed(log.get((header.direction, header.client_id), [])), message)


def has_legal_length(message: bytes) -> bool:
    return is_legal(len(message))


def is_legal(length: int) -> bool:
    """Return whether a message may have so many bytes [P 3.1]."""
    return MIN_MESSAGE <= length <= MAX_MESSAGE and (length - OVERHEAD) % 16 == 0


def describe_message(message: bytes, plaintext: bytes | None = None, title: str = "") -> list[str]:
    """Return lines of at most 79 columns: the public part of a message, and its plaintext."""
    if not has_legal_length(message):
        return [
            f"{title}{plural(len(message), 'byte')}, a length of no message: {message[:8].hex()}.."
        ]
    header = Header(*HEADER.unpack_from(message))
    direction = DIRECTION_NAMES.get(header.direction, header.direction)
    first = (
        f"{title}{opcode_of(message)}, client {header.client_id}, round {header.round_number}, "
        f"{direction}, {len(message)} bytes"
    )
    lines = [
        *textwrap.wrap(first, WIDTH, subsequent_indent="    "),
        f"  IV {message[HEADER.size :][:4].hex()}.., {len(message) - OVERHEAD} bytes of "
        f"ciphertext, tag {message[-TAG_BYTES:][:4].hex()}..",
    ]
    if plaintext is not None:
        lines += textwrap.wrap(
            words_of(header, plaintext),
            WIDTH,
            initial_indent="  ",
            subsequent_indent="    ",
            max_lines=MOST_LINES,
            placeholder=" ...",
            break_on_hyphens=False,
        )
    return lines


def words_of(header: Header, plaintext: bytes) -> str:
    """Return what a plaintext says, in ASCII, with a space behind each comma of a body."""
    words = []
    for name, content in plaintext_fields(header, plaintext):
        if name == "status":
            words.append(f"status {STATUS_NAMES.get(content[0], content.hex())}")
        elif name == "version":
            words.append(f"version {content.hex()}")
        elif name == "body":
            words.append(printable(content).replace(",", ", "))
        else:
            words.append(f"{name} {content[:4].hex()}..")
    return "plaintext: " + ", ".join(words)


def plaintext_fields(header: Header, plaintext: bytes) -> list[tuple[str, bytes]]:
    """Cut a plaintext into its fields, by name [P 3.3]; those that are not there are left out."""
    fields = [("nonce", NONCE_BYTES)]
    if header.direction == Direction.S2C:
        fields = [("status", 1)]
    elif header.opcode in FAREWELL_STATUS:
        fields.append(("status", 1))
    if header.opcode == Opcode.CLIENT_HELLO:
        fields = [("client nonce", NONCE_BYTES), ("version", 1)]
    elif header.opcode == Opcode.SERVER_CHALLENGE:
        fields += [("client nonce", NONCE_BYTES), ("server nonce", NONCE_BYTES)]
    rest = io.BytesIO(plaintext)
    cut = [(name, rest.read(length)) for name, length in [*fields, ("body", len(plaintext))]]
    return [(name, content) for name, content in cut if content]


def printable(content: bytes) -> str:
    """Return bytes as ASCII, with dots in place of whatever a terminal would not show."""
    return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in content)


def dump_message(message: bytes) -> list[str]:
    """Return a message in rows of 16 bytes, each with the place of its first and what it is."""
    if not has_legal_length(message):
        cuts = [("bytes", 0, len(message))]
    else:
        tag_at = len(message) - TAG_BYTES
        cuts = [
            ("header", 0, HEADER.size),
            ("IV", HEADER.size, CIPHERTEXT_AT),
            ("ciphertext", CIPHERTEXT_AT, tag_at),
            ("tag", tag_at, len(message)),
        ]
    lines: list[str] = []
    for name, start, end in cuts:
        places = range(start, end, 16)
        lines += [
            f"  {name if at == start else '':<12}{at:>5}  {message[at:end][:16].hex(' ')}"
            for at in places[:MOST_ROWS]
        ]
        if len(places) > MOST_ROWS:
            lines.append(f"{len(places) - MOST_ROWS:>19} more ...")
    return lines
