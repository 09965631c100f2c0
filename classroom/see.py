"""Evidence in one step: attack, draw, open what was drawn.

    python3 run.py report [NAME ...] [--without A,B]
    python3 run.py capture [NAME ...] [--without A,B]

`report` opens the page in the browser, `capture` the packets in Wireshark. Words that follow are
for attacks.py. Where nothing can open the result, only its path is printed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import webbrowser
from pathlib import Path

from classroom import capture, report
from classroom.output import needed, write_whole
from classroom.wire import LAB, ROOT
from lab.events import Run, read_runs
from program import (
    Parser,
    UserError,
    escaped,
    keep_inputs,
    output_path,
    plural,
    run_program,
    to_stderr,
)

PLACES = (  # of Wireshark, where it is not on the PATH
    "/Applications/Wireshark.app/Contents/MacOS/Wireshark",
    r"C:\Program Files\Wireshark\Wireshark.exe",
)
NAMES = {"report": "report.html", "capture": "run.pcapng"}
ALONE = {"--list", "--rules", "--step", "--events", "--json"}  # of attacks.py
UNSEEDED = {"--seed", "--without", "--server"}
PACKAGES = {"report": "jinja2", "capture": "dpkt"}


def flags_among(words: list[str], flags: set[str]) -> list[str]:
    """Return those of the flags that are among words, whole or cut short as argparse allows."""
    cut = [word.partition("=")[0] for word in words]
    return [flag for word in cut if len(word) > 2 for flag in flags if flag.startswith(word)]


def attack(words: list[str]) -> list[Run]:
    """Run attacks.py, and return what happened; an attack may win (exit code 1).

    Raises SystemExit: attacks.py has already said why there is nothing to draw. UserError.
    """
    if unfit := flags_among(words, ALONE):
        raise UserError(f"{unfit[0]} goes with attacks.py only: here its output is not shown")
    to_stderr("attacking, which takes some seconds ...")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "events.jsonl"
        seed = [] if flags_among(words, UNSEEDED) else ["--seed", "1"]
        done = subprocess.run(
            [sys.executable, str(ROOT / "attacks.py"), *words, *seed, "--events", str(log)],
            stdout=subprocess.DEVNULL,
            check=False,
        )
        if not log.is_file():
            sys.exit(done.returncode)
        return read_runs(log)


def open_page(path: Path) -> None:
    """Let the user's browser show a page, if there is one."""
    with contextlib.suppress(webbrowser.Error):
        if webbrowser.get().open(path.as_uri()):
            return
    print("there is no browser here: open that file in one")


def open_capture(path: Path) -> None:
    """Let Wireshark show packets, with our dissector, if it is installed."""
    found = [place for place in PLACES if os.path.exists(place)]
    wireshark = shutil.which("wireshark") or next(iter(found), "")
    dissector = ROOT / "classroom" / "wireshark" / "seclab.lua"
    if not wireshark:
        print("there is no Wireshark here: classroom/wireshark/README.md says how to get it")
        return
    words = [wireshark, "-X", f"lua_script:{dissector}", str(path)]
    subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main() -> int:
    command, *rest = sys.argv[1:] or [""]
    if command not in NAMES:
        raise UserError(f"say what to draw: {' or '.join(NAMES)}")
    parser = Parser(
        "Attacks, draws and opens it. Names, families and flags of attacks.py may follow.",
        prog=f"run.py {command}",
    )
    parser.add_argument("-o", "--output", type=output_path, metavar="FILE", help="file to write")
    options, words = parser.parse_known_args(rest)
    needed(PACKAGES[command])
    output = (options.output or output_path(NAMES[command])).resolve()
    keep_inputs(output, *words)
    runs = attack(words)
    if command == "report":
        write_whole(output, report.page(runs, LAB).encode("utf-8", "replace"))
    else:
        write_whole(output, capture.pcapng([*capture.packets(runs, LAB)]))
    print(f"wrote {escaped(str(output))}: {plural(len(runs), 'run')}", flush=True)
    if command == "report":
        open_page(output)
    else:
        open_capture(output)
    return 0


if __name__ == "__main__":
    run_program(main)
