"""Takes the pictures of README.md again, from a new run: python -m classroom.pictures

A headless Chromium takes them: a part of the report page, and the live page with a scene on it.
That needs this program and the package playwright; nothing else here does.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from classroom.evidence import play
from classroom.report import page
from classroom.wire import LAB, ROOT
from lab.events import read_runs
from program import Parser, UserError, escaped, run_program

PICTURES = {  # by file: the attack, the rules taken out, the colours
    "flip-reading.png": ("flip-reading", "", "light"),
    "flip-reading-dark.png": ("flip-reading", "", "dark"),
}
LIVE = {"live.png": "light", "live-dark.png": "dark"}  # by file: the colours
SCENE = ("until CLIENT_DATA", "flip 24.3", "forward", "until TERMINATE")
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")  # of the program
SHOWN = "h3, header p, svg, .message"  # of a run; the rest is left out
MARGIN = 24  # pixels around it


def find_chromium() -> str | None:
    """Return the path of a Chromium, if there is one."""
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
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0  # for whom its sandbox fails
    flags = ["--no-sandbox"] if is_root else []
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=flags)
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
    left = max(min(part["x"] for part in parts) - MARGIN, 0)
    top = parts[0]["y"] - MARGIN
    right = max(part["x"] + part["width"] for part in parts) + MARGIN
    bottom = max(part["y"] + part["height"] for part in parts) + MARGIN
    clip = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    view.screenshot(path=picture, full_page=True, clip=clip)
    view.close()


def photograph_live(chromium: Any, scheme: str, picture: Path) -> None:
    """Take the live page when a flipped bit has been refused."""
    from classroom.live.app import in_background
    from classroom.live.room import Room

    view = chromium.new_page(
        viewport={"width": 1280, "height": 740}, color_scheme=scheme, device_scale_factor=0.7
    )
    with Room() as room, in_background(room) as door:
        view.goto(door.address)
        for line in SCENE:
            room.type(line)
        view.wait_for_selector(".row.changed .verdict.refused")
        view.wait_for_selector(".row.in-hand")
        view.screenshot(path=picture)
        view.close()


def main() -> int:
    parser = Parser("Takes the pictures of README.md again.")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "pictures", metavar="FOLDER")
    options = parser.options()
    with browser() as chromium, tempfile.TemporaryDirectory() as folder:
        options.folder.mkdir(exist_ok=True)
        log = Path(folder, "events.jsonl")
        html = Path(folder, "report.html")
        for name, (attack, rules, scheme) in PICTURES.items():
            play(rules, [attack], "1", log)
            html.write_text(page(read_runs(log), LAB), "utf-8")
            photograph(chromium, html, scheme, options.folder / name)
            print(f"wrote {escaped(str(options.folder / name))}")
        for name, scheme in LIVE.items():
            photograph_live(chromium, scheme, options.folder / name)
            print(f"wrote {escaped(str(options.folder / name))}")
    return 0


if __name__ == "__main__":
    run_program(main)
