"""The lab that an attack of a submission is tried in: the ends and the wire are ours.

The attack runs in its child and is asked for one frame after another, which comes back as bytes.
"""

from __future__ import annotations

from typing import Any

from classroom.kit.sandbox import Asked, Gone, Raised
from lab.catalogue import Attack, CutHere
from lab.frames import OTHER_END, Frame, Frames
from lab.rules import Names
from lab.stage import Lab, forged
from lab.weakened import without
from protocol_fsm import MAX_MESSAGE, MIN_MESSAGE

MOST_FRAMES = 64  # that one attack may deliver
STEPS = """
def wire():
    while (frame := ask("next")) is not None:
        yield Frame(*frame)

def step():
    frame = next(playing, None)
    return frame and [frame[0], frame[1]]

playing = iter(own_attack(wire()))
"""


class Remote:
    """An attack on path whose steps are in a child."""

    def __init__(self, student: Asked) -> None:
        self._student = student
        self.error: Exception | None = None

    def run(self, frames: Frames, lab: Lab) -> Frames:
        """Play the attack; when it ends, the rest passes."""
        seen: list[Frame] = []

        def told(question: list[Any]) -> object:
            frame = next(frames, None)
            if frame is None:
                raise CutHere
            seen.append(frame)
            return [frame.to, frame.message]

        try:
            self._student.do(STEPS)
            for _ in range(MOST_FRAMES):
                step = self._student.do("step()", told=told)
                if step is None:
                    return
                yield self._frame(step, seen)
        except (Gone, Raised) as error:
            self.error = error
        raise CutHere

    def _frame(self, step: object, seen: list[Frame]) -> Frame:
        """Return what is delivered: a frame that was seen if it is one. Raises Gone."""
        if not (isinstance(step, list) and len(step) == 2 and step[0] in (*OTHER_END,)):
            raise Gone("delivered something that is no frame")
        to, message = step
        if not (isinstance(message, bytes) and MIN_MESSAGE <= len(message) <= MAX_MESSAGE):
            raise Gone("delivered something that is no message")
        known = [frame for frame in seen if (frame.to, frame.message) == (to, message)]
        return known[0] if known else Frame(str(to), message, "inserted")


def wins(student: Asked, seed: str, rules: Names) -> bool:
    """Return whether an attack wins in a fresh lab without some rules. Raises Gone, Raised."""
    student.close()  # so that no attack knows how often it has been tried
    remote = Remote(student)
    attack = Attack(
        name="own-attack",
        story="An attack of a submission.",
        family="own",
        run=remote.run,
        is_on_path=True,
        who="",
        error=None,
        goal=forged,
    )
    parts = without(sorted(rules)) if rules else None
    with Lab(seed, lambda deed, frame: None, parts) as lab:
        won = forged(lab.suffer(attack))
    if remote.error and not won:
        raise remote.error
    return bool(won)
