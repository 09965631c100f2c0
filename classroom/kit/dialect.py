"""A dialect for each student: the same protocol, with other formulas in its key schedule.

It is drawn from HMAC(class key, student id) and changes only what is written inside the bodies that
tasks 3 and 8 cut; messages, opcodes and states stay. Reference, second implementation (which makes
the vectors) and PROTOCOL.md are edited alike, in copies: the core knows nothing of it. Somebody
else's module meets BadTag at the first message, because a word stands in whatever is hashed. That
is a deterrent: the reference is public, and the student's own PROTOCOL.md says what differs.
"""

from __future__ import annotations

import functools
import re
import types
import unicodedata
from pathlib import Path
from typing import NamedTuple

from classroom.kit.skeleton import Sources, edited
from crypto_utils import hmac_sha256
from program import UserError, escaped, reason_of

ROOT = Path(__file__).parent.parent.parent
CORE = ("guard", "crypto_utils", "protocol_fsm", "channel", "program", "endpoint", "server")
MODULES = (*CORE, "readings", "client")
OWN = ("breaking", "mine", "other_side")  # in classroom/kit/student
MIN_CLASS_KEY = 16  # bytes
MAX_CLASS_KEY = 4_096  # bytes: /dev/zero is none
MAX_STUDENT = 64  # characters


class Dialect(NamedTuple):
    """What differs from the reference."""

    word: str  # 8 hex digits, in everything that is hashed
    label_first: bool
    material_first: bool  # in each step of a chain
    server_first: bool  # of the two nonces, in the binding
    c2s_crossed: bool  # the ciphertext moves C2S-MAC, and the nonce C2S-ENC
    s2c_crossed: bool  # the body moves S2C-MAC, and the status S2C-ENC

    @property
    def constant(self) -> str:
        return f'b"{self.word}"'

    def start(self, master_key: str, label: str) -> str:
        """Return the input of the first key of a chain, as Python."""
        return " + ".join((label, master_key) if self.label_first else (master_key, label))

    def step(self, key: str, material: str) -> str:
        """Return the input of a step of a chain, as Python."""
        parts = (material, key) if self.material_first else (key, material)
        return " + ".join((*parts, self.constant))

    def nonces(self, client: str, server: str) -> str:
        """Return the material of the binding, as Python."""
        one, other = (server, client) if self.server_first else (client, server)
        return " + ".join((one, self.constant, other))

    def moving(self, direction: str, values: tuple[str, str]) -> tuple[str, str]:
        """Return what moves the two keys of a direction, that of the encryption first."""
        is_crossed = self.c2s_crossed if direction == "C2S" else self.s2c_crossed
        return (values[1], values[0]) if is_crossed else values


def class_key(path: str) -> bytes:
    """Return the secret of a course: a file of 16 bytes or more. Raises UserError."""
    try:
        with Path(path).open("rb") as file:
            key = file.read(MAX_CLASS_KEY + 1).strip()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the class key {escaped(path)}: {reason_of(error)}") from None
    if not MIN_CLASS_KEY <= len(key) <= MAX_CLASS_KEY:
        limits = f"{MIN_CLASS_KEY} to {MAX_CLASS_KEY:,} bytes"
        raise UserError(f"{escaped(path)} is no class key, which has {limits}")
    return key


def of(class_key: bytes, student: str) -> Dialect:
    """Return the dialect of a student, the same each time. Raises UserError."""
    if not (student.isprintable() and 1 <= len(student.strip()) == len(student) <= MAX_STUDENT):
        raise UserError(
            f"a student id has 1 to {MAX_STUDENT} printable characters, and no space at its ends"
        )
    name = unicodedata.normalize("NFC", student)  # an accent is typed in two ways
    drawn = hmac_sha256(class_key, b"dialect 1\0" + name.encode())
    bits = [bool(drawn[4] >> place & 1) for place in range(5)]
    return Dialect(drawn[:4].hex(), *bits)


def sources(dialect: Dialect) -> Sources:
    """Return the solutions in a dialect: the core, and the files of the students."""
    texts = {f"{name}.py": _read(f"{name}.py") for name in MODULES}
    texts |= {f"{name}.py": _read(f"classroom/kit/student/{name}.py") for name in OWN}
    for place, old, new in _edits(dialect):
        texts = edited(texts, place, old, new)
    return texts


def _edits(dialect: Dialect) -> list[tuple[str, str, str]]:
    """Return the edits of the reference: the place, what stands there, and what is to stand."""
    label = f'f"{{label}}/{dialect.word}".encode("ascii")'
    start = dialect.start("master_key", label)
    step = dialect.step("chain_key", "material")
    nonces = dialect.nonces("client_nonce", "server_nonce")
    c2s = dialect.moving("C2S", ("ciphertext", "nonce"))
    s2c = dialect.moving("S2C", ("body", "status"))
    return [
        ("crypto_utils:derive_key", 'master_key + label.encode("ascii")', start),
        ("crypto_utils:evolve_key", "chain_key + material", step),
        ("protocol_fsm:bind_keys", "client_nonce + server_nonce", nonces),
        ("protocol_fsm:evolve_c2s", 'keys["C2S-ENC"], ciphertext', f'keys["C2S-ENC"], {c2s[0]}'),
        ("protocol_fsm:evolve_c2s", 'keys["C2S-MAC"], nonce', f'keys["C2S-MAC"], {c2s[1]}'),
        ("protocol_fsm:evolve_s2c", 'keys["S2C-ENC"], body', f'keys["S2C-ENC"], {s2c[0]}'),
        ("protocol_fsm:evolve_s2c", 'keys["S2C-MAC"], status', f'keys["S2C-MAC"], {s2c[1]}'),
    ]


def _read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


# The second implementation, which makes the vectors ----------------------------------------------

# Where it writes a step of a chain: of the two keys of a direction, and what moves each.
STEPS = (
    ("C2S", 'keys["C2S-{}"]', 'made["ciphertext"]', "nonce", 2),
    ("C2S", 'bound["C2S-{}"]', 'report["ciphertext"]', 'report["random"][0]', 1),
    ("S2C", 'keys["S2C-{}"]', "body", "bytes([OK])", 2),
    ("S2C", 'bound["S2C-{}"]', 'reply["body"]', "bytes([OK])", 1),
)


def _replaced(text: str, old: str, new: str, times: int) -> str:
    if text.count(old) != times:
        raise ValueError(f"the maker of the vectors has {text.count(old)} times {old!r}")
    return text.replace(old, new)


def _maker(dialect: Dialect) -> str:
    """Return the source of the second implementation in a dialect."""
    text = _read("tests/make_vectors.py")
    label = f'f"{{label}}/{dialect.word}".encode("ascii")'
    old = 'master_key + label.encode("ascii")'
    text = _replaced(text, old, dialect.start("master_key", label), 2)
    for key in ("keys[label]", "first[x]"):
        nonces = dialect.nonces("client_nonce", "server_nonce")
        old = f"{key} + client_nonce + server_nonce"
        text = _replaced(text, old, dialect.step(key, nonces), 1)
    for direction, key, *values, times in STEPS:
        moving = dialect.moving(direction, (values[0], values[1]))
        uses = [key.format(use) for use in ("ENC", "MAC")]
        for use, old in zip(uses, values):
            text = _replaced(text, f"{use} + {old}", f"<{use}>", times)
        for use, new in zip(uses, moving):
            text = text.replace(f"<{use}>", dialect.step(use, new))
    return text


@functools.lru_cache(maxsize=4)
def vectors(dialect: Dialect) -> Sources:
    """Return the public vectors in a dialect, by file name."""
    module = types.ModuleType("vectors_of_a_dialect")
    module.__file__ = str(ROOT / "tests" / "make_vectors.py")
    exec(compile(_maker(dialect), module.__file__, "exec"), vars(module))
    texts: Sources = module.files()
    return texts


# PROTOCOL.md --------------------------------------------------------------------------------------


def protocol(dialect: Dialect) -> str:
    """Return PROTOCOL.md with the formulas of a dialect, without what is generated elsewhere."""
    text = _read("PROTOCOL.md")
    for line in re.findall(r"^    \S+ +?= SHA-256\(.*$", text, re.MULTILINE):
        text = text.replace(line, _formula(dialect, line), 1)
    text = re.sub(r"\n!\[[^\n]*ratchet\.svg\)\n", "", text)  # its names are those of the reference
    text = re.sub(r"\n<!-- (generated|end)[^\n]*-->\n", "", text)
    return text.replace("`tests/vectors/`", "`vectors/`")


def _formula(dialect: Dialect, line: str) -> str:
    left, right = re.fullmatch(r"    (.*?) += SHA-256\((.*?)\).*", line).groups()  # type: ignore[union-attr]
    key, *_ = right.split(" || ")
    note = ""
    if key == "master key":
        label = f'b"{left}/{dialect.word}"'
        note = f"          labels are ASCII, {len(label) - 3} bytes" if left == "C2S-ENC" else ""
        code = dialect.start(key, label)
    elif key == "X":
        code = dialect.step(key, dialect.nonces("client nonce", "server nonce"))
    else:
        direction, use = left.rstrip("'").split("-")
        values = ("ciphertext", "nonce") if direction == "C2S" else ("body", "status")
        code = dialect.step(key, dialect.moving(direction, values)[use == "MAC"])
    hashed = code.replace(" + ", " || ").replace('b"', '"')
    return f"    {left} = SHA-256({hashed}){note}"
