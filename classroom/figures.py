"""The figures of the documents, drawn from what the code does: python -m classroom.figures

Each is an SVG of its own in pictures/. Sizes come from the code, keys and bytes from real Sessions
with a fixed source of random bytes. A test draws them again and compares.
"""

from __future__ import annotations

import inspect
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import protocol_fsm
from classroom.drawing import PAPER_AND_INK, Picture
from classroom.output import write_whole
from classroom.wire import FIELD_NAMES, ROOT
from crypto_utils import (
    AES_KEY_BYTES,
    BLOCK_BYTES,
    NONCE_BYTES,
    TAG_BYTES,
    aes_cbc_decrypt,
    pkcs7_unpad,
)
from endpoint import DEMO_KEYS
from lab.frames import xored
from lab.stage import random_source
from program import Parser, escaped, run_program
from protocol_fsm import (
    CIPHERTEXT_AT,
    HEADER,
    KEY_LABELS,
    ClientData,
    ClientHello,
    Direction,
    Header,
    Keys,
    Message,
    Opcode,
    ProtocolError,
    Seen,
    ServerAggrResponse,
    ServerChallenge,
    Session,
)

WIDTH = 820
MARGIN = 20
CELL = 21  # the width of one byte
READINGS = [100.0, 20.5, 21.0, 22.5]
COLOURS = {  # by class: light, dark
    **PAPER_AND_INK,
    "line": ("#7c878c", "#7f8a8f"),
    "plain": ("#eef0ee", "#232a2c"),
    "moved": ("#d9e8f7", "#1d3a55"),
    "touched": ("#fbd3bf", "#6b3312"),
}
STYLE = """text.strong { font-weight: 600; }
text.small { font-size: 13px; }
text.bytes { font: 13px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
line.line { stroke-width: 1.5; }
"""


class Figure(Picture):
    """A picture with boxes, rows of bytes and arrows that point down."""

    def __init__(self, height: int, name: str, title: str, description: str) -> None:
        super().__init__(WIDTH, height, name, title, description, COLOURS, STYLE)
        self.write(MARGIN, 34, title, "ink title")

    def box(self, x: float, y: float, width: float, words: str, kind: str = "plain") -> None:
        """Draw a box of 34 pixels' height with a word in its middle."""
        self._put("rect", x=x, y=y, width=width, height=34, rx=4, class_=kind)
        self.write(x + width / 2, y + 22, words, "ink", "middle")

    def down(self, x: float, start: float, end: float) -> None:
        self.stroke(x, start, x, end - 6, "line")
        self._put("path", d=f"M{x},{end} l-5,-8 h10 z", class_="line")

    def brace(self, left: float, right: float, y: float, words: str) -> None:
        """Draw a line under what it spans, with its name below."""
        self.stroke(left, y, right, y, "line")
        self.stroke(left, y - 6, left, y, "line")
        self.stroke(right, y - 6, right, y, "line")
        self.write((left + right) / 2, y + 19, words, "soft", "middle")

    def row(self, x: float, y: float, words: Sequence[str], touched: Sequence[int] = ()) -> None:
        """Draw one word per byte, and mark some."""
        for at, word in enumerate(words):
            kind = "touched" if at in touched else "plain"
            left = x + CELL * at
            self._put("rect", x=left, y=y, width=CELL - 2, height=24, rx=2, class_=kind)
            self.write(left + CELL / 2 - 1, y + 17, word, "ink bytes", "middle")


# What is drawn comes from the code ----------------------------------------------------------------


class Step(NamedTuple):
    """One of the nine steps of receiving: its methods, and the errors that it ends in."""

    number: int
    methods: list[str]
    errors: list[type[ProtocolError]]


def steps() -> list[Step]:
    """Return the steps as Session.open takes them; each error names its step in its docstring."""
    calls = re.findall(r"self\.(_\w+)\(.*\)  # step (\d)", inspect.getsource(Session.open))
    kinds = [
        kind
        for kind in vars(protocol_fsm).values()
        if isinstance(kind, type) and issubclass(kind, ProtocolError)
    ]
    return [
        Step(
            number,
            [method for method, step in calls if int(step) == number],
            [kind for kind in kinds if f"{kind.__doc__}".startswith(f"Step {number}:")],
        )
        for number in sorted({int(step) for _, step in calls})
    ]


def meaning(kind: type[ProtocolError]) -> str:
    """Return what the docstring of an error says, without its step and what follows a semicolon."""
    words = re.sub(r"^Step \d: ", "", inspect.getdoc(kind) or "").rstrip(".").partition(";")[0]
    return f"{words[:1].upper()}{words[1:]}."


def message_fields() -> list[tuple[str, str]]:
    """Return the fields of a frame [P 3.1, P 3.2], and how many bytes each has."""
    header = zip(Header._fields, HEADER.format.lstrip(">"))
    return [
        ("length", "2"),
        *((FIELD_NAMES.get(name, name), str(struct.calcsize(code))) for name, code in header),
        ("IV", str(CIPHERTEXT_AT - HEADER.size)),
        ("ciphertext", f"{BLOCK_BYTES}n"),
        ("tag", str(TAG_BYTES)),
    ]


class Conversation:
    """Two Sessions that talk, with random bytes that are the same in every run."""

    def __init__(self, name: str) -> None:
        self.keys: list[Keys] = []  # of the client, after each message
        self.told: list[Seen] = []
        key = DEMO_KEYS[1]
        self.client = Session(
            1,
            key,
            Direction.C2S,
            watchers=[self.told.append],
            key_log=self.keys.append,
            random_bytes=random_source(f"client of {name}"),
        )
        self.server = Session(
            1, key, Direction.S2C, random_bytes=random_source(f"server of {name}")
        )

    def say(self, message: Message) -> bytes:
        """Let the end that may say it say it, and the other hear it."""
        speaks, hears = self.client, self.server
        if isinstance(message, (ServerChallenge, ServerAggrResponse)):
            speaks, hears = hears, speaks
        sealed = speaks.seal(message)
        hears.open(sealed)
        return sealed

    def handshake(self) -> None:
        self.say(ClientHello())
        self.say(ServerChallenge())


class Recorded(NamedTuple):
    """A report on the wire, and the key that opens it, which only its ends have."""

    iv: bytes
    blocks: list[bytes]
    key: bytes

    def decrypted(self, blocks: Sequence[bytes]) -> list[bytes]:
        """Return the plaintext blocks of these ciphertext blocks, as the server would get them."""
        return cut(aes_cbc_decrypt(b"".join(blocks), self.key, self.iv))


def cut(data: bytes) -> list[bytes]:
    return [data[at : at + BLOCK_BYTES] for at in range(0, len(data), BLOCK_BYTES)]


def recorded() -> Recorded:
    talk = Conversation("figures")
    talk.handshake()
    key = talk.keys[-1]["C2S-ENC"][:AES_KEY_BYTES]
    message = talk.say(ClientData(READINGS))
    return Recorded(
        message[HEADER.size : CIPHERTEXT_AT], cut(message[CIPHERTEXT_AT:-TAG_BYTES]), key
    )


# The figures --------------------------------------------------------------------------------------


def message_layout() -> str:
    svg = Figure(
        376,
        "message-layout",
        "A message on the wire",
        "The fields of a frame and their lengths in bytes: "
        + ", ".join(f"{name} {size}" for name, size in message_fields())
        + ". The tag covers header, IV and ciphertext.",
    )
    left: dict[str, float] = {}
    x: float = MARGIN
    for name, size in message_fields():
        width = {"ciphertext": 206, "IV": 74, "tag": 92}.get(name, 8 * len(name) + 20)
        left[name] = x
        svg.box(x, 84, width, name, "moved" if name == "ciphertext" else "plain")
        svg.write(x + width / 2, 74, size, "soft small", "middle")
        x += width + 2
    svg.brace(left["opcode"], left["IV"] - 2, 132, f"header: {HEADER.size} bytes")
    svg.brace(left["opcode"], left["tag"] - 2, 168, "under the tag: every byte before it")
    svg.write(MARGIN, 222, "The ciphertext, decrypted by AES-128-CBC and still padded:", "soft")
    for y, direction, first, first_bytes in (
        (244, "C2S", "nonce", NONCE_BYTES),
        (308, "S2C", "status", 1),
    ):
        svg.write(MARGIN, y + 22, direction, "ink strong")
        svg.box(90, y, 150, first, "moved")
        svg.box(242, y, 320, "body", "moved")
        svg.box(564, y, 150, "padding", "moved")
        svg.write(165, y + 49, str(first_bytes), "soft small", "middle")
        svg.write(402, y + 49, "any length", "soft small", "middle")
        svg.write(639, y + 49, f"1 to {BLOCK_BYTES}", "soft small", "middle")
    return svg.done() + "\n"


MIXED_IN = {  # by opcode and key, as [P 3.4] has it; `nonces` are both of the handshake
    (Opcode.SERVER_CHALLENGE, "C2S-ENC"): "nonces",
    (Opcode.SERVER_CHALLENGE, "C2S-MAC"): "nonces",
    (Opcode.SERVER_CHALLENGE, "S2C-ENC"): "nonces",
    (Opcode.SERVER_CHALLENGE, "S2C-MAC"): "nonces",
    (Opcode.CLIENT_DATA, "C2S-ENC"): "ciphertext",
    (Opcode.CLIENT_DATA, "C2S-MAC"): "nonce",
    (Opcode.SERVER_AGGR_RESPONSE, "S2C-ENC"): "body",
    (Opcode.SERVER_AGGR_RESPONSE, "S2C-MAC"): "status",
}


def ratchet() -> str:
    talk = Conversation("figures")
    talk.handshake()
    for reading in READINGS[:2]:
        talk.say(ClientData([reading]))
        talk.say(ServerAggrResponse({"sum": reading}))
    svg = Figure(
        96 + 76 * len(talk.told),
        "ratchet",
        "Binding and ratchet: which message moves which key",
        "The names of the four chain keys after each message of a session. CLIENT_HELLO moves "
        "none, SERVER_CHALLENGE all four, each CLIENT_DATA the two of C2S, each "
        "SERVER_AGGR_RESPONSE the two of S2C.",
    )
    places = {label: 226 + 140 * at for at, label in enumerate(KEY_LABELS)}
    for label, x in places.items():
        svg.write(x + 60, 64, label, "ink strong", "middle")
    before: dict[str, str] = {}
    for at, seen in enumerate(talk.told):
        y = 80 + 76 * at
        opcode = Opcode(seen.message[0])
        svg.write(MARGIN, y + 22, opcode.name, "ink small strong")
        svg.write(
            MARGIN, y + 40, f"round {Header(*HEADER.unpack_from(seen.message))[2]}", "soft small"
        )
        for label, x in places.items():
            if seen.fingerprints[label] == before.get(label):
                svg.stroke(x + 60, y - 42, x + 60, y + 34, "line")
                continue
            if before:
                svg.down(x + 60, y - 42, y)
                svg.write(x + 66, y - 14, f"|| {MIXED_IN[opcode, label]}", "soft small")
            svg.box(x, y, 120, seen.fingerprints[label], "moved" if before else "plain")
        before = dict(seen.fingerprints)
    return svg.done() + "\n"


def cbc_flip() -> str:
    """Draw how one bit of a ciphertext block changes the same bit of the next plaintext block."""
    report = recorded()
    mask = bytes([0, 0x08, *bytes(14)])  # a 1 becomes a 9
    changed = [xored(report.blocks[0], mask), *report.blocks[1:]]
    before = report.decrypted(report.blocks)
    after = report.decrypted(changed)
    texts = [block[1].decode() for block in (before, after)]
    svg = Figure(
        408,
        "cbc-flip",
        "CBC: a flipped bit comes back in the next block",
        f"One bit of the first ciphertext block is flipped. The first plaintext block, a nonce, "
        f"becomes noise. The second one was {texts[0]} and is {texts[1]}.",
    )
    columns = (MARGIN, MARGIN + 16 * CELL + 60)
    for at, x in enumerate(columns):
        middle = x + 8 * CELL
        svg.write(x, 78, f"ciphertext block {at + 1}", "soft")
        svg.row(x, 88, cells(changed[at]), [1] if at == 0 else [])
        svg.down(middle, 114, 146)
        svg.box(middle - 80, 146, 160, "AES decrypt")
        svg.down(middle, 180, 212)
        svg.box(
            middle - 80,
            212,
            160,
            f"xor {('IV', 'ciphertext block 1')[at]}",
            ("plain", "touched")[at],
        )
        svg.down(middle, 246, 278)
    svg.write(columns[0], 274, "before", "soft small")
    svg.row(columns[0], 280, cells(before[0]))
    svg.row(columns[0], 312, cells(after[0]), range(16))
    svg.write(columns[0], 356, "after: noise, in a block that was random anyway", "soft small")
    svg.write(columns[1], 274, "before", "soft small")
    svg.row(columns[1], 280, [*texts[0]])
    svg.row(columns[1], 312, [*texts[1]], [1])
    svg.write(columns[1], 356, "after: the one bit, and nothing else", "soft small")
    svg.write(
        MARGIN,
        390,
        "Nothing here is noticed without the tag: padding and JSON are still right.",
        "ink",
    )
    return svg.done() + "\n"


def cells(block: bytes) -> list[str]:
    return [f"{byte:02x}" for byte in block]


def padding_oracle() -> str:
    """Draw the plaintexts that the server sees when a guess is right, for some of the bytes."""
    report = recorded()
    first, aim = report.blocks[:2]
    known = b""
    asked = [0]
    seen = []
    while len(known) < BLOCK_BYTES:
        length = len(known) + 1
        for guess in range(256):
            mask = bytes([*bytes(BLOCK_BYTES - length), guess, *(length ^ byte for byte in known)])
            plaintext = report.decrypted([xored(first, mask), aim])[1]
            if is_padded(plaintext):
                break
        asked.append(guess + 1)
        seen.append(plaintext)
        known = bytes([guess ^ length]) + known
    svg = Figure(
        122 + 4 * 60 + 36,
        "padding-oracle",
        "A padding oracle reads a block from its end",
        "What the server decrypts when a guess is right, for the last byte and those before it: "
        "the padding is 01, then 02 02, and so on. "
        f"{known.decode()} is read in {sum(asked)} questions.",
    )
    svg.write(
        MARGIN, 62, "The first block is forged, so that the padding comes out right for one", "soft"
    )
    svg.write(MARGIN, 82, "guess in 256. What the server sees then, and does not show:", "soft")
    for at, length in enumerate((1, 2, 3, BLOCK_BYTES)):
        y = 104 + 60 * at
        shown = [*["?"] * (BLOCK_BYTES - length), *cells(seen[length - 1])[-length:]]
        svg.row(MARGIN, y, shown, range(BLOCK_BYTES - length, BLOCK_BYTES))
        byte = known[-length]
        svg.write(
            372, y + 17, f"guess {asked[length] - 1:02x} xor {length:02x} = {byte:02x}", "ink bytes"
        )
        svg.write(560, y + 17, f"a byte is read: {chr(byte)}", "ink")
        svg.write(MARGIN, y + 42, f"after {sum(asked[: length + 1])} questions", "soft small")
    svg.write(
        MARGIN,
        372,
        f"All 16 bytes: {known.decode()}   in {sum(asked)} questions, not 2^128.",
        "ink strong",
    )
    return svg.done() + "\n"


def is_padded(plaintext: bytes) -> bool:
    try:
        pkcs7_unpad(plaintext)
    except ValueError:
        return False
    return True


BEFORE = {  # a line above these steps
    1: "Anyone can read what these steps compare.",
    5: "The tag decides. Nothing is decrypted before it is right.",
    9: "Nothing has changed until here. A failure above ends the session.",
}

CANNOT_FAIL = {
    6: "Decrypts whole blocks; this cannot fail.",
    9: "Keys, round and state move, all at once. This cannot fail.",
}


def nine_steps() -> str:
    rows = steps()
    svg = Figure(
        70 + 46 * len(rows) + 38 * len(BEFORE),
        "nine-steps",
        "The nine steps of receiving: Session.open",
        "; ".join(
            f"step {step.number}: {', '.join(step.methods)}, "
            + (" or ".join(kind.__name__ for kind in step.errors) or "no error")
            for step in rows
        ),
    )
    y = 60
    for step in rows:
        if step.number in BEFORE:
            svg.stroke(MARGIN, y, WIDTH - MARGIN, y, "line")
            svg.write(MARGIN, y + 22, BEFORE[step.number], "soft")
            y += 38
        svg.box(MARGIN, y, 34, str(step.number), "moved")
        for line, method in zip(lines(y, len(step.methods)), step.methods):
            svg.write(64, line, method, "ink bytes")
        for line, kind in zip(lines(y, len(step.errors)), step.errors):
            svg.write(196, line, kind.__name__, "ink strong")
            svg.write(372, line, meaning(kind), "soft small")
        if not step.errors:
            svg.write(196, y + 22, CANNOT_FAIL[step.number], "soft small")
        y += 46
    return svg.done() + "\n"


def lines(y: float, count: int) -> list[float]:
    """Return where one or two lines stand beside a box at `y`."""
    return [y + 22] if count == 1 else [y + 13, y + 31]


FIGURES: dict[str, Callable[[], str]] = {
    "message-layout.svg": message_layout,
    "ratchet.svg": ratchet,
    "cbc-flip.svg": cbc_flip,
    "padding-oracle.svg": padding_oracle,
    "nine-steps.svg": nine_steps,
}


def main() -> int:
    parser = Parser("Draws the figures of the documents again.")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "pictures", metavar="FOLDER")
    options = parser.options()
    for name, draw in FIGURES.items():
        write_whole(options.folder / name, draw().encode("ascii"))
        print(f"wrote {escaped(str(options.folder / name))}")
    return 0


if __name__ == "__main__":
    run_program(main)
