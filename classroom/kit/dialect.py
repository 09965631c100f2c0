"""A dialect for each student: the same protocol, with other formulas in its key schedule.

It is drawn from HMAC(class key, student id) and changes only what is written inside the bodies that
tasks 3 and 8 cut; messages, opcodes and states stay. Reference, second implementation (which makes
the vectors) and PROTOCOL.md are edited alike, in copies: the core knows nothing of it. Somebody
else's module meets BadTag at the first message. That is a deterrent, because the reference is
public and the student's own PROTOCOL.md says how the dialect differs.
"""

from __future__ import annotations

import functools
import re
import types
from pathlib import Path
from typing import NamedTuple

from classroom.kit.skeleton import Sources, edited
from crypto_utils import hmac_sha256
from program import UserError, escaped, reason_of

ROOT = Path(__file__).parent.parent.parent
CORE = ("guard", "crypto_utils", "protocol_fsm", "channel", "program", "endpoint")
MODULES = (*CORE, "server", "client")
OWN = ("breaking", "mine", "other_side")  # in classroom/kit/student
MIN_CLASS_KEY = 16  # bytes
MAX_STUDENT = 64  # characters


class Dialect(NamedTuple):
    """What differs from the reference."""

    word: str  # 8 hex digits behind each label
    label_first: bool
    material_first: bool  # in each step of a chain
    server_first: bool  # of the two nonces, in the binding
    c2s_crossed: bool  # the ciphertext moves C2S-MAC, and the nonce C2S-ENC
    s2c_crossed: bool  # the body moves S2C-MAC, and the status S2C-ENC

    def joined(self, key: str, material: str, sign: str = " + ") -> str:
        """Return the input of one step of a chain, as it is written."""
        return sign.join((material, key) if self.material_first else (key, material))

    def nonces(self, client: str, server: str, sign: str = " + ") -> str:
        """Return the two nonces in their order."""
        return sign.join((server, client) if self.server_first else (client, server))

    def start(self, master_key: str, label: str, sign: str = " + ") -> str:
        """Return the input of the first key of a chain, as it is written."""
        return sign.join((label, master_key) if self.label_first else (master_key, label))


def class_key(path: str) -> bytes:
    """Return the secret of a course: a file of 16 bytes or more. Raises UserError."""
    try:
        key = Path(path).read_bytes().strip()
    except OSError as error:
        raise UserError(f"cannot read the class key {escaped(path)}: {reason_of(error)}") from None
    if len(key) < MIN_CLASS_KEY:
        raise UserError(f"{escaped(path)} is no class key: it has fewer than {MIN_CLASS_KEY} bytes")
    return key


def of(class_key: bytes, student: str) -> Dialect:
    """Return the dialect of a student, the same each time. Raises UserError."""
    if not (student.isprintable() and 1 <= len(student.strip()) == len(student) <= MAX_STUDENT):
        raise UserError(
            f"a student id has 1 to {MAX_STUDENT} printable characters, and no space at its ends"
        )
    drawn = hmac_sha256(class_key, b"dialect 1\0" + student.encode())
    bits = [bool(drawn[4] >> place & 1) for place in range(5)]
    return Dialect(drawn[:4].hex(), *bits)


REFERENCE_EDITS = (  # (module, function, old); what is new stands in _new_texts, in the same order
    ("crypto_utils", "derive_key", 'master_key + label.encode("ascii")'),
    ("crypto_utils", "evolve_key", "chain_key + material"),
    ("protocol_fsm", "bind_keys", "client_nonce + server_nonce"),
    ("protocol_fsm", "evolve_c2s", 'keys["C2S-ENC"], ciphertext'),
    ("protocol_fsm", "evolve_c2s", 'keys["C2S-MAC"], nonce'),
    ("protocol_fsm", "evolve_s2c", 'keys["S2C-ENC"], body'),
    ("protocol_fsm", "evolve_s2c", 'keys["S2C-MAC"], status'),
)


def sources(dialect: Dialect) -> Sources:
    """Return the solutions in a dialect: the core, and the files of the students."""
    texts = {f"{name}.py": _read(f"{name}.py") for name in MODULES}
    texts |= {f"{name}.py": _read(f"classroom/kit/student/{name}.py") for name in OWN}
    for (module, function, old), new in zip(REFERENCE_EDITS, _new_texts(dialect)):
        name = f"{module}.py"
        texts[name] = edited(texts[name], function, old, new)
    return texts


def _new_texts(dialect: Dialect) -> list[str]:
    c2s = ["ciphertext", "nonce"]
    s2c = ["body", "status"]
    if dialect.c2s_crossed:
        c2s.reverse()
    if dialect.s2c_crossed:
        s2c.reverse()
    return [
        dialect.start("master_key", f'f"{{label}}/{dialect.word}".encode("ascii")'),
        dialect.joined("chain_key", "material"),
        dialect.nonces("client_nonce", "server_nonce"),
        f'keys["C2S-ENC"], {c2s[0]}',
        f'keys["C2S-MAC"], {c2s[1]}',
        f'keys["S2C-ENC"], {s2c[0]}',
        f'keys["S2C-MAC"], {s2c[1]}',
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
        old = f"{key} + client_nonce + server_nonce"
        nonces = dialect.nonces("client_nonce", "server_nonce")
        text = _replaced(text, old, dialect.joined(key, nonces), 1)
    for direction, key, one, other, times in STEPS:
        is_crossed = dialect.c2s_crossed if direction == "C2S" else dialect.s2c_crossed
        marked = {}
        for use, old, new in (("ENC", one, other), ("MAC", other, one)):
            moves = new if is_crossed else old
            place = f"{key.format(use)} + {old}"
            marked[f"<{use}>"] = dialect.joined(key.format(use), moves)
            text = _replaced(text, place, f"<{use}>", times)
        for mark, written in marked.items():
            text = text.replace(mark, written)
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
    parts = right.split(" || ")
    if parts[0] == "master key":
        label = f'"{left}/{dialect.word}"'
        note = f"          labels are ASCII, {len(label) - 2} bytes" if left == "C2S-ENC" else ""
        return f"    {left} = SHA-256({dialect.start('master key', label, ' || ')}){note}"
    if parts[0] == "X":
        nonces = dialect.nonces("client nonce", "server nonce", " || ")
        return f"    {left} = SHA-256({dialect.joined('X', nonces, ' || ')})"
    crossed = {
        "ciphertext": "nonce",
        "nonce": "ciphertext",
        "body": "status",
        "status": "body",
    }
    is_crossed = dialect.c2s_crossed if left.startswith("C2S") else dialect.s2c_crossed
    moves = crossed[parts[1]] if is_crossed else parts[1]
    return f"    {left} = SHA-256({dialect.joined(parts[0], moves, ' || ')})"
