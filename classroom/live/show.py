"""The man in the middle in a browser: python3 run.py live

It starts a server, its clients and the proxy on loopback, and opens a page on which you decide what
becomes of each message.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import threading
import webbrowser

from channel import POLL_S
from classroom.live.app import serving
from classroom.live.room import Room
from lab.rules import rule_list
from program import Parser, port_number, run_program


def read_options() -> argparse.Namespace:
    """Return the flags. Raises UserError."""
    parser = Parser("The man in the middle in a browser.", "run.py live")
    parser.add_argument(
        "--port",
        type=port_number,
        default=0,
        metavar="PORT",
        help="of the page, on loopback; default any",
    )
    parser.add_argument(
        "--without",
        type=rule_list,
        action="extend",
        metavar="A,B",
        help="begin without these rules",
    )
    parser.add_argument(
        "--deadlines", action="store_true", help="begin with ends that do not wait for you"
    )
    parser.add_argument(
        "--inside", action="store_true", help="begin with *look inside* switched on (for lecturers)"
    )
    parser.add_argument("--no-browser", action="store_true", help="print the address, open nothing")
    return parser.options()


async def show(room: Room, options: argparse.Namespace) -> None:
    """Serve the page until somebody stops the program. Raises NoConnection."""
    async with serving(room, options.port) as door:
        print(f"open this, once; Ctrl-C ends it:\n{door.address}", flush=True)
        if not options.no_browser:  # which may take long, or be a browser in this terminal
            threading.Thread(target=webbrowser.open, args=(door.address,), daemon=True).start()
        while True:
            await asyncio.sleep(POLL_S)  # a wait without a limit holds up Ctrl-C on Windows


def main() -> int:
    options = read_options()
    logging.disable()  # what is refused is on the page
    rules = ",".join(options.without or [])
    with Room(rules, not options.deadlines, options.inside) as room:
        try:
            asyncio.run(show(room, options))
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one must not disturb the end
            print()
    return 0


if __name__ == "__main__":
    run_program(main)
