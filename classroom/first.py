"""The first command: one bit of a message flips, in three acts, and then everything else is tried.

    python3 run.py

Server, clients and adversary are real, and all in this process. Exits with 0 only if the story
went as told, and every attack ended as it should.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Sequence

from attacks import ATTACKS, can_bind
from endpoint import HOST, PORT
from lab.catalogue import Attack, Catalogue
from lab.frames import Frame, Frames
from lab.program import families_of
from lab.screen import columns, painted, passing
from lab.stage import READINGS, Lab, forged
from lab.verdict import Result, judge
from lab.weakened import without
from program import Parser, run_program
from protocol_fsm import CIPHERTEXT_AT, Opcode

SEED = "1"  # so that every room sees the same bytes
SHOWN_BYTES = 10  # of a ciphertext
LABEL = 14  # columns for who acts, and for families
MARKS = {"refused": "", "not prevented": "*", "won": "!", "wrong": "!"}
NEXT = (
    ("report", "draws every attack on a page"),
    ("attacks flip-reading", "tells one attack in detail"),
    ("attacks --without tag", "does all this with no tag checked"),
)
NOBODY = Catalogue(goal=forged)


@NOBODY.on_path("honest", "", None)
def nobody(frames: Frames, lab: Lab) -> Frames:
    """All frames pass."""
    yield from frames


class Act:
    """What became of the victim's first report in a lab of its own, with some rules missing."""

    def __init__(self, attack: Attack, *missing: str) -> None:
        self._frames: dict[str, Frame] = {}
        parts = without(missing) if missing else None
        with Lab(SEED, self._log, parts) as lab:
            self.outcome = lab.suffer(attack)

    def _log(self, deed: str, frame: Frame) -> None:
        if frame.message[0] == Opcode.CLIENT_DATA:
            self._frames.setdefault(deed, frame)

    def wire(self) -> str:
        """Return the beginning of the ciphertext, as it was sent."""
        ciphertext = self._frames["sent"].message[CIPHERTEXT_AT:]
        return f"{ciphertext[:SHOWN_BYTES].hex(' ')} ... unreadable without the key"

    def flip(self) -> str:
        """Return the byte that was changed."""
        sent = self._frames["sent"].message
        arrived = self._frames["changed"].message
        (place,) = [place for place, byte in enumerate(sent) if byte != arrived[place]]
        return f"byte {place} of the message: {sent[place]:08b} -> {arrived[place]:08b}"

    def server(self) -> str:
        """Return what the server made of the report."""
        if self.outcome.accepted:
            return f"adds up {listed(self.outcome.accepted[0])}"
        errors = [str(error) for error in self.outcome.errors["server"]]
        return f"refuses: {' '.join(errors) or 'nothing came'}, and ends the session"


def listed(readings: Sequence[float]) -> str:
    return " + ".join(f"{reading:g}" for reading in readings)


def tell(title: str, **lines: str) -> None:
    """Print an act: its title, and what each participant does."""
    print(f"\n{painted(title, 'title')}")
    for who, deed in lines.items():
        print(f"  {who:<{LABEL}}{deed}", flush=True)


def story() -> bool:
    """Tell three acts, and return whether they went as their titles say."""
    report = f"reports {', '.join(f'{reading:g}' for reading in READINGS[0])}"
    honest = Act(NOBODY.attacks["nobody"])
    tell("1 An honest session", client=report, wire=honest.wire(), server=honest.server())
    flipped = Act(ATTACKS["flip-reading"])
    tell(
        "2 Somebody on the wire flips one bit of it",
        wire=flipped.flip(),
        server=painted(flipped.server(), "refused"),
    )
    weak = Act(ATTACKS["flip-reading"], "tag")
    tell(
        "3 The same bit, at a server that checks no tag",
        wire=weak.flip(),
        server=painted(f"{weak.server()}: 900 for 100", "won"),
    )
    accepted = [act.outcome.accepted[:1] for act in (honest, flipped, weak)]
    return accepted == [[READINGS[0]], [], [[900.0, *READINGS[0][1:]]]]


def try_all(lab: Lab) -> Iterator[Result]:
    """Run all attacks in a lab; an honest session has to work after them. Raises UserError."""
    for number, attack in enumerate(ATTACKS.values(), 1):
        passing(f"  {number} of {len(ATTACKS)}: {attack.name}")
        lab.suffer(attack)
        yield judge(attack, lab)
    passing("")
    lab.attack = ""
    lab.honest_session()


def table(results: Sequence[Result]) -> Iterator[str]:
    """Yield lines with the names of attacks by family."""
    kinds = {result.attack.name: result.kind for result in results}
    for family, names in families_of(result.attack for result in results).items():
        marked = ", ".join(name + MARKS[kinds[name]] for name in names)
        label = f"  {family}"
        for line in textwrap.wrap(marked, columns() - LABEL - 2, break_on_hyphens=False):
            words = [painted_name(word, kinds) for word in line.split(" ")]
            yield f"{label:<{LABEL + 2}}{' '.join(words)}"
            label = ""


def painted_name(word: str, kinds: dict[str, str]) -> str:
    name = word.rstrip(",*!")
    return painted(word.rstrip(","), kinds[name]) + "," * word.endswith(",")


def summed_up(results: Sequence[Result]) -> str:
    """Return how many attacks ended how, with the marks of the table."""
    kinds = [result.kind for result in results]
    counts = [
        f"{kinds.count('refused')} refused",
        f"{kinds.count('not prevented')} not prevented (*)",
    ]
    if failed := len([kind for kind in kinds if MARKS[kind] == "!"]):
        counts.append(f"{failed} NOT AS EXPECTED (!)")
    return f"{', '.join(counts)}; an honest session still works."


def what_next() -> str:
    """Return commands to type, in a column."""
    command = "py run.py" if sys.platform == "win32" else "python3 run.py"
    lines = [f"{command} {words:<24}{meaning}" for words, meaning in NEXT]
    if not can_bind(HOST, PORT):
        where = f"{HOST}:{PORT}"
        lines.append(f"{command} attacks --server {where}  something listens there")
    return "next: " + "\n      ".join(lines)


def main() -> int:
    Parser("A first look: one bit flips, and then every attack is tried.", "run.py demo").options()
    print("Clients report readings to a server. Somebody sits on the wire between them.")
    is_as_told = story()
    tell(f"4 All {len(ATTACKS)} attacks at the real server, in some seconds")
    with Lab(SEED, lambda deed, frame: None) as lab:
        results = [*try_all(lab)]
    print("\n".join(table(results)), summed_up(results), "", what_next(), sep="\n")
    return int(not is_as_told or any(MARKS[result.kind] == "!" for result in results))


if __name__ == "__main__":
    run_program(main)
