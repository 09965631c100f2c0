"""How soon a message is on the screen of the live page, and whether a thousand of them stay smooth.

    python -m bench.live

A lab and a headless Chromium on this machine. First messages that are forwarded one by one, as in
class; then a session of 500 rounds that passes by itself, about a thousand messages; then some by
hand again, below those. The delay goes from the arrival of a message at the proxy to the end of
the first picture with its row, and of several rows in one picture the newest counts; the clock is
one and the same. It needs the packages of requirements-slow.txt and a Chromium.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from classroom.live.app import in_background
from classroom.live.room import Room
from classroom.pictures import browser
from program import Parser, positive, run_program

ROUNDS = 500
BY_HAND = 20  # messages that are forwarded one by one
LIMIT_MS = 120_000
WATCH = """
const now = () => performance.timeOrigin + performance.now();
globalThis.delays = []; // of the newest row of each picture
globalThis.gaps = [];
let seen = now(); // the arrival of the newest row so far
new MutationObserver(changes => {
  const newest = Math.max(...changes.map(change => change.target.dataset.at ?? 0));
  if (newest <= seen) return;
  seen = newest;
  const drawn = new MessageChannel(); // heard when this picture is done
  drawn.port1.onmessage = () => delays.push(now() - newest);
  drawn.port2.postMessage(null);
}).observe(document.getElementById("ladder"), { childList: true, subtree: true });
let last = performance.now();
const tick = time => { gaps.push(time - last); last = time; requestAnimationFrame(tick); };
requestAnimationFrame(tick);
"""
PRESS = """async times => {
  const pause = ms => new Promise(done => setTimeout(done, ms));
  const press = key => {
    const found = document.querySelector(`.actions [data-key="${key}"]:not([aria-disabled])`);
    found?.click();
    return found;
  };
  for (let pressed = 0; pressed < times; await pause(100))
    if (press("Forward") || press("New session")) pressed++;
}"""  # a person is slower; no selector is looked for meanwhile by anybody else
IS_OVER = """() =>
  document.querySelector(".actions [data-key='New session']:not([aria-disabled])") !== null"""


def table(title: str, delays_ms: Sequence[float], gaps_ms: Sequence[float]) -> str:
    """Return lines with the median, the 95th percentile and the worst of both."""
    lines = [f"{title}: {len(delays_ms)} of {len(gaps_ms)} pictures have new rows"]
    for name, values in (("message to screen", delays_ms), ("picture to picture", gaps_ms)):
        late = statistics.quantiles(values, n=20)[-1]
        lines.append(
            f"  {name:<20} median {statistics.median(values):6.1f} ms  "
            f"95 % within {late:6.1f} ms  worst {max(values):6.1f} ms"
        )
    return "\n".join(lines)


def taken(view: Any) -> tuple[list[float], list[float]]:
    """Return what the page has noted, and let it begin anew."""
    delays, gaps = view.evaluate("[delays.splice(0), gaps.splice(0)]")
    return delays, gaps[1:]


def by_itself(view: Any, room: Room, rounds: int) -> None:
    """Let what is left of a session pass, and then a long one."""
    room.type("auto")
    view.wait_for_function(IS_OVER, polling=100)
    taken(view)
    room.pair.reports = [[100.0]] * rounds
    room.type("session")
    view.wait_for_function("() => delays.length > 0", polling=100)
    view.wait_for_function(IS_OVER, polling=100, timeout=LIMIT_MS)


def main() -> int:
    parser = Parser("How soon a message is on the screen of the live page.")
    parser.add_argument(
        "--rounds", type=positive, default=ROUNDS, metavar="N", help=f"default {ROUNDS}"
    )
    options = parser.options()
    with browser() as chromium, Room() as room, in_background(room) as door:
        view = chromium.new_page(viewport={"width": 1280, "height": 800})
        view.goto(door.address)
        view.wait_for_selector(".byte")
        view.evaluate(WATCH)
        view.evaluate(PRESS, BY_HAND)
        print(table("by hand", *taken(view)), flush=True)
        by_itself(view, room, options.rounds)
        print(table("by itself", *taken(view)), flush=True)
        room.type("auto off")
        taken(view)
        view.evaluate(PRESS, BY_HAND)
        print(table("by hand, below all these", *taken(view)))
    return 0


if __name__ == "__main__":
    run_program(main)
