"""A run as a sequence diagram in SVG: client, adversary, server, and the bystanders below.

Time runs down, one row per message. It shows what the Run holds, in the words of a Wire, and knows
no protocol. Colours are those of the page around it, by class; none has a meaning of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree import ElementTree

from classroom.wire import Wire
from lab.events import ENDS, Run, Step, shown
from program import plural

WIDTH = 840
ROW = 54
TOP = 62
LANES = {"client": 150, "adversary": 420, "server": 690}
BOX = 78  # the width of the adversary's word for what it did
LETTERS = 36  # of a label; more would run into what is beside it


def diagram(run: Run, wire: Wire, name: str) -> str:
    """Return the SVG; `name` is what its ids begin with. Its text equivalent is `in_words`."""
    rows = shown(run.steps)
    bottom = TOP + ROW * len(rows)
    told = {end: endings(run, end) for end in ENDS}
    height = bottom + 40 + 17 * max(map(len, told.values())) + 58
    svg = Drawing(
        height,
        name,
        f"Sequence diagram of {run.title}",
        f"{plural(len(run.steps), 'message')} between client, adversary and server; the same in "
        "words is in the list below.",
    )
    for lane, x in LANES.items():
        svg.lane(lane, x, bottom, is_away=lane == "client" and run.is_from_outside)
    for row, (number, step) in enumerate(rows):
        y = TOP + ROW * row + 34
        if step:
            svg.step(number, step, y, wire)
        else:
            svg.text(
                LANES["adversary"],
                y,
                f"... {plural(number, 'message')} more ...",
                "note",
                paper=True,
            )
    for end, lines in told.items():
        for place, line in enumerate(lines):
            svg.text(LANES[end], bottom + 32 + 17 * place, line, "ending")
    svg.bystanders(height - 26, run)
    return svg.done()


def endings(run: Run, end: str) -> list[str]:
    """Return a line for each error by which sessions of one end ended."""
    lines = [
        f"ended: {error}" + (f" ({count} times)" if count > 1 else "")
        for (by, error), count in run.ended.items()
        if by == end
    ]
    return lines or ["no error"]


class Drawing:
    """An SVG that grows; texts are escaped by the library that writes it."""

    def __init__(self, height: int, name: str, title: str, description: str) -> None:
        self._svg = ElementTree.Element(
            "svg",
            {
                "viewBox": f"0 0 {WIDTH} {height}",
                "width": str(WIDTH),
                "height": str(height),
                "role": "img",
                "class": "sequence",
                "aria-labelledby": f"{name}-title {name}-desc",
            },
        )
        self._put("title", title, id=f"{name}-title")
        self._put("desc", description, id=f"{name}-desc")

    def done(self) -> str:
        return ElementTree.tostring(self._svg, encoding="unicode")

    def _put(self, tag: str, content: str | None = None, **attributes: object) -> None:
        given = {
            name.rstrip("_").replace("_", "-"): str(value) for name, value in attributes.items()
        }
        ElementTree.SubElement(self._svg, tag, given).text = content

    def text(
        self, x: float, y: float, words: str, kind: str, anchor: str = "middle", paper: bool = False
    ) -> None:
        """Write one line; on `paper` it hides what is behind it."""
        words = words if len(words) <= LETTERS else words[: LETTERS - 1] + "\u2026"
        if paper:
            width = 7 * len(words) + 8
            self._put("rect", x=x - width / 2, y=y - 13, width=width, height=18, class_="paper")
        self._put("text", words, x=x, y=y, text_anchor=anchor, class_=kind)

    def lane(self, lane: str, x: int, bottom: int, is_away: bool) -> None:
        """Draw one of the three, from its name down."""
        style = f"life {lane} away" if is_away else f"life {lane}"
        self._put("line", x1=x, y1=44, x2=x, y2=bottom + 14, class_=style)
        self._put("rect", x=x - 62, y=14, width=124, height=30, rx=6, class_=f"head {lane}")
        self.text(x, 34, lane, "name")
        if is_away:
            self.text(x, 62, "its own session, beside this", "note", paper=True)

    def arrow(self, start: float, end: float, y: float, kind: str) -> None:
        ahead = 1 if end > start else -1
        self._put("line", x1=start, y1=y, x2=end - 8 * ahead, y2=y, class_=f"arrow {kind}")
        self._put("path", d=f"M{end},{y} l{-10 * ahead},-5 v10 z", class_=f"tip {kind}")

    def step(self, number: int, step: Step, y: int, wire: Wire) -> None:
        """Draw a message on its way to the adversary, and on from there."""
        middle = LANES["adversary"]
        source = LANES[step.source]
        target = LANES[step.to]
        ahead = 1 if target > middle else -1
        is_quiet = step.kind in ("passed", "answered")
        gap = 0 if is_quiet else ahead * BOX / 2
        self.text(20, y + 4, str(number), "number")
        if step.kind == "passed":
            self.arrow(source, target, y, "quiet")
        elif step.comes_in:
            self.arrow(source, middle - gap, y, "quiet")
        self.labels(step, y, wire, (source + middle - gap) / 2, (target + middle + gap) / 2)
        if not is_quiet:
            self.deed(step, y, middle + gap, target)
        if step.refused:
            anchor = "start" if ahead > 0 else "end"
            self.text(target + 10 * ahead, y - 3, "\u2717 refused", "refused", anchor)
            self.text(target + 10 * ahead, y + 13, step.refused, "refused", anchor)

    def deed(self, step: Step, y: int, start: float, target: float) -> None:
        """Draw what the adversary did, and the message that it delivered, if any."""
        middle = LANES["adversary"]
        if step.arrived:
            self.arrow(start, target, y, "touched")
        self._put("rect", x=middle - BOX / 2, y=y - 11, width=BOX, height=22, rx=4, class_="deed")
        self.text(middle, y + 4, step.kind, "deed-name")

    def labels(self, step: Step, y: int, wire: Wire, coming: float, going: float) -> None:
        """Name the message that came in, the one that went on if it differs, and the change."""
        before = wire.title(step.sent) if step.comes_in else ""
        after = wire.title(step.arrived) if step.arrived else ""
        if before:
            self.text(coming, y - 8, before, "label")
        if after and after != before:
            self.text(going, y - 8, after, "label")
        if note := wire.what_changed(step.sent, step.arrived):
            self.text(going, y + 17, note, "note")

    def bystanders(self, y: int, run: Run) -> None:
        """Draw their lane, one dot per round; the log does not say when in the run each fell."""
        rounds = run.bystanders
        self._put("line", x1=LANES["client"], y1=y, x2=LANES["server"], y2=y, class_="life away")
        for number in range(min(rounds, 12)):
            self._put("circle", cx=LANES["client"] + 16 + 16 * number, cy=y, r=4.5, class_="round")
        self.text(LANES["client"] - 14, y + 4, "bystanders", "name", "end")
        note = f"{plural(rounds, 'round')} beside it" if rounds else "not in the log"
        self.text(LANES["server"] + 14, y + 4, note, "note", "start")


PAPER_AND_INK = {  # by class: light, dark
    "paper": ("#ffffff", "#14181a"),
    "ink": ("#1b2224", "#e4e8e6"),
    "soft": ("#4d585d", "#a9b3b8"),
}
STYLE = """
text { font: 15px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
text.ink, text.soft { stroke: none; }
text.title { font-size: 17px; font-weight: 600; }
"""


class Picture(Drawing):
    """An SVG that is a file of its own: it brings its paper, and its colours."""

    def __init__(
        self,
        width: int,
        height: int,
        name: str,
        title: str,
        description: str,
        colours: Mapping[str, tuple[str, str]],
        style: str,
    ) -> None:
        super().__init__(height, name, title, description)
        self._svg.attrib.update(
            {
                "xmlns": "http://www.w3.org/2000/svg",
                "viewBox": f"0 0 {width} {height}",
                "width": str(width),
                "height": str(height),
                "class": name,
            }
        )
        self._put("style", both_schemes(colours) + STYLE + style)
        self._put("rect", width=width, height=height, class_="paper")

    def write(
        self, x: float, y: float, words: str, kind: str = "ink", anchor: str = "start"
    ) -> None:
        self._put("text", words, x=x, y=y, text_anchor=anchor, class_=kind)

    def stroke(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self._put("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)


def both_schemes(colours: Mapping[str, tuple[str, str]]) -> str:
    """Return CSS for colours (light, dark) by class: no variables, which not every viewer knows."""
    light, dark = (
        " ".join(
            f".{name} {{ fill: {pair[at]}; stroke: {pair[at]}; }}" for name, pair in colours.items()
        )
        for at in (0, 1)
    )
    return f"\n{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}"


def in_words(run: Run, wire: Wire) -> list[str]:
    """Return the diagram as sentences, one per row."""
    return [
        sentence(step, wire) if step else f"{plural(number, 'message')} more."
        for number, step in shown(run.steps)
    ]


def sentence(step: Step, wire: Wire) -> str:
    source = step.source
    before = wire.title(step.sent) if step.sent else ""
    after = wire.title(step.arrived) if step.arrived else ""
    words = {
        "passed": f"{before}, from {source} to {step.to}, passed on as it was",
        "changed": f"{before}, from {source} to {step.to}, changed on the way",
        "replaced": f"{before}, from {source} to {step.to}, replaced by another message: {after}",
        "reflected": f"{after}, made from what the {step.to} itself had sent, sent back to it",
        "inserted": f"{after}, sent to the {step.to} by the adversary",
        "again": f"{after}, delivered to the {step.to} once more",
        "held": f"{before}, from {source} to {step.to}, held back",
        "late": f"{after}, held back until now, delivered to the {step.to}",
        "dropped": f"{before}, from {source} to {step.to}, not delivered",
        "answered": f"{before}, the {source}'s answer to the adversary",
    }[step.kind]
    if change := wire.what_changed(step.sent, step.arrived):
        words += f" ({change})"
    return words + (f"; the {step.to} refuses it: {step.refused}." if step.refused else ".")
