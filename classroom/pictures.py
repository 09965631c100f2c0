"""Makes the pictures of README.md anew, from a run of today: python -m classroom.pictures

A picture is a part of the report page, taken by a headless Chromium, which has to be there, and so
has the package playwright. Where there is none, nothing else needs them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from classroom.events import read_events, runs_of
from classroom.evidence import play
from classroom.report import page
from classroom.wire import LAB, ROOT
from program import Parser, UserError, run_program

PICTURES = {  # by file: the attack, the rules taken out, the colours
    "flip-reading.png": ("flip-reading", "", "light"),
    "flip-reading-dark.png": ("flip-reading", "", "dark"),
}
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")  # of the program
SHOWN = "h3, header p, svg, .message"  # of a run; what is below is left out
MARGIN = 24  # pixels around it


def find_chromium() -> str | None:
    """Return where a Chromium is that can be asked for pictures, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def browser() -> Iterator[Any]:
    """Give a headless Chromium, driven by playwright. Raises UserError."""
    program = find_chromium()
    if program is None:
        raise UserError(f"there is no Chromium here: none of {', '.join(NAMES)}")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise UserError("the package playwright is not installed: pip install playwright") from None
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0  # who may not use its sandbox
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=program, args=["--no-sandbox"] if is_root else []
        )
        try:
            yield chromium
        finally:
            chromium.close()


def photograph(chromium: Any, html: Path, scheme: str, picture: Path) -> None:
    """Take the first run of a page, from its heading to its first message."""
    view = chromium.new_page(
        viewport={"width": 880, "height": 1200}, color_scheme=scheme, device_scale_factor=1.25
    )
    view.goto(html.as_uri())
    view.add_style_tag(content=".facts, details { display: none; }")
    run = view.query_selector("article")
    parts = [part.bounding_box() for part in run.query_selector_all(SHOWN)]
    top = parts[0]["y"] - MARGIN
    left = min(part["x"] for part in parts) - MARGIN
    low, right = (
        max(part[at] + part[size] for part in parts) + MARGIN
        for at, size in (("y", "height"), ("x", "width"))
    )
    view.screenshot(
        path=picture,
        full_page=True,
        clip={"x": max(left, 0), "y": top, "width": right - left, "height": low - top},
    )
    view.close()


def main() -> int:
    parser = Parser("Makes the pictures of README.md anew.")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "pictures", metavar="FOLDER")
    options = parser.options()
    with browser() as chromium, tempfile.TemporaryDirectory() as folder:
        options.folder.mkdir(exist_ok=True)
        log = Path(folder, "events.jsonl")
        html = Path(folder, "report.html")
        for name, (attack, rules, scheme) in PICTURES.items():
            play(rules, [attack], "1", log)
            html.write_text(page([*runs_of(read_events(log)[0])], LAB, "CLAIMS.md"), "utf-8")
            photograph(chromium, html, scheme, options.folder / name)
            print(f"wrote {options.folder / name}")
    return 0


if __name__ == "__main__":
    run_program(main)
