"""A catalogue of attacks: how they are registered, and how one is played.

An attack on path is a generator over the frames of one connection: what it yields is delivered.
One from outside is a function that is given the lab: its address, recordings and connections. A
protocol brings its own lab, outcome and goals; `Stage` is what the catalogue asks of that lab.
"""

from __future__ import annotations

import inspect
import itertools
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, NamedTuple, TypeVar

from lab.frames import OTHER_END, Frame, Frames
from lab.observer import Observer
from program import UserError, escaped
from protocol_fsm import LocalError, ProtocolError, Seen, Watcher

Goal = Callable[[Any], str]  # from an outcome to what the adversary has won; empty if nothing
OnPath = TypeVar("OnPath", bound=Callable[..., Iterator[Frame]])
Outside = TypeVar("Outside", bound=Callable[..., None])
Run = TypeVar("Run", bound=Callable[..., Any])

OUTSIDE_S = 60.0  # that an attack from outside may take
GRACE_S = 5.0  # for what is about to end, on a busy machine too


class NotEnded(Exception):
    """The session under attack is over, and the attack's own code still runs."""


class CutHere(Exception):
    """An attack cuts the connection, or has missed its frame; if it just ends, the rest passes."""


@dataclass(frozen=True)
class Attack:
    """One attack: what runs, and where it must fail."""

    name: str
    story: str
    family: str  # of claims in the documents
    run: Callable[..., Any]  # (frames, lab), or (lab) from outside
    is_on_path: bool
    who: str  # refuses it: "client" or "server"; empty if nobody has anything to refuse
    error: type[Exception] | None  # of the refusal
    goal: Goal
    noticed: str = ""  # by whom, if nothing prevents it
    wins: str = ""  # exactly, against all rules: what `goal` says then
    inside: bool = False  # it needs the memory of both ends
    hasty: bool = False  # the victim says goodbye without waiting for an answer


class Evidence(NamedTuple):
    """What a verdict compares: who had to refuse with which error, what it met, what was won."""

    who: str
    expected: str
    met: list[str]
    won: str


class Stage(ABC):
    """What a lab has to have, whatever its protocol."""

    outcome: Any  # has errors (by end), learned, and broken (a mistake in the attack)
    attack: str  # the one that is going on
    rounds: int  # done by the bystanders
    is_foreign = False  # the server is in another process, and nobody sees inside
    is_weakened = False
    observer: Observer | None = None  # of the victims' sessions
    again = ""  # the flags that repeat this run
    where = ""  # the address or seed of the lab, for the first line of a run
    harm: Sequence[Exception] = ()  # errors that the bystanders met
    _close: Callable[[], object] = staticmethod(lambda: None)  # ends what `__enter__` began

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    @abstractmethod
    def log(self, deed: str, frame: Frame) -> None:
        """Note what happened to a frame: it was sent, or what the adversary did with it."""

    def watch_own(self, seen: Seen) -> None:
        """Log a message of an honest program that the adversary uses: what it says is inserted."""
        if seen.verdict == "sealed":
            self.log("inserted", Frame("server", seen.message))
        else:
            self.log("sent", Frame("client", seen.message))

    def watchers(self, end: str) -> list[Watcher]:
        """Return the watchers of a session: the observer of an end, while an attack goes on."""
        return [self.observer.watcher(end)] if self.observer and self.attack and end else []

    @abstractmethod
    def undergo(self, attack: Attack) -> Any:
        """Run a session of the victims under attack, and return what became of it."""

    def suffer(self, attack: Attack) -> Any:
        """Do the same, and note if the attack has left a thread behind."""
        outcome = self.undergo(attack)
        deadline = time.monotonic() + GRACE_S
        while isinstance(self.outcome.broken, NotEnded) or is_running(attack):
            if time.monotonic() > deadline:
                self.outcome.broken = NotEnded("it still runs")
                break
            time.sleep(0.01)
        return outcome

    @abstractmethod
    def bystanders_go_on(self) -> bool:
        """Return whether those who were not attacked go on."""

    @abstractmethod
    def honest_session(self) -> object:
        """Run an undisturbed session of the victims. Raises UserError."""

    def evidence(self, attack: Attack) -> Evidence:
        """Return what the victims have met."""
        expected = attack.error.__name__ if attack.error else ""
        met = [type(error).__name__ for error in self.outcome.errors.get(attack.who, [])]
        won = ""
        try:
            won = attack.goal(self.outcome)
        except Exception as error:  # this too is a mistake in the attack
            self.outcome.broken = error
        return Evidence(attack.who, expected, met, won)

    def has_harmed_victim(self, attack: Attack) -> bool:
        """Return whether an attack from outside has harmed an end that had nothing to refuse."""
        return (
            not attack.is_on_path and attack.who != "client" and bool(self.outcome.errors["client"])
        )

    def obstacle(self, attack: Attack) -> str:
        """Return why an attack cannot be tried here; empty if it can."""
        return ""


class Catalogue:
    """Attacks by name, each registered by a decorator; `goal` is what most of them want."""

    def __init__(self, goal: Goal) -> None:
        self.attacks: dict[str, Attack] = {}
        self._goal = goal

    def on_path(
        self, family: str, who: str, error: type[Exception] | None, **options: Any
    ) -> Callable[[OnPath], OnPath]:
        """Register a generator over frames. Raises UserError."""
        return lambda run: self._add(run, True, family, who, error, options)

    def outside(
        self, family: str, who: str, error: type[Exception] | None, **options: Any
    ) -> Callable[[Outside], Outside]:
        """Register a function of the lab, off the victim's connection. Raises UserError."""
        return lambda run: self._add(run, False, family, who, error, options)

    def _add(
        self,
        run: Run,
        is_on_path: bool,
        family: str,
        who: str,
        error: type[Exception] | None,
        options: dict[str, Any],
    ) -> Run:
        name = run.__name__.replace("_", "-")
        story, *_ = inspect.cleandoc(run.__doc__ or UNTOLD).splitlines() or [UNTOLD]
        if name in self.attacks:
            raise UserError(f"there are two attacks named {name}")
        if who not in ({""} if error is None else OTHER_END):
            raise UserError(f'{name} is refused by "client" or "server" with an error, or by ""')
        if error is not None and not (isinstance(error, type) and issubclass(error, Exception)):
            raise UserError(f"{name}: the error must be a type of exception, not {error!a}")
        wanted = {"goal": self._goal, **options}
        self.attacks[name] = Attack(
            name, escaped(story), family, run, is_on_path, who, error, **wanted
        )
        return run


UNTOLD = "(an attack without a docstring)"


def first_of(
    frames: Frames, is_wanted: Callable[[Frame], bool], count: int = 1
) -> Generator[Frame, None, Frame]:
    """Deliver all before the first (second, ...) wanted frame, and return that. Raises CutHere."""
    for frame in frames:
        count -= is_wanted(frame)
        if not count:
            return frame
        yield frame
    raise CutHere


def attacked(attack: Attack, frames: Frames, lab: Stage) -> Frames:
    """Yield what an attack on path makes of the frames, and log what it sees and does."""
    past: list[Frame] = []

    def watched() -> Frames:
        for frame in frames:
            past.append(frame)
            lab.log("sent", frame)
            yield frame

    wire = watched()
    outcome = lab.outcome
    outcome.broken = still_runs = NotEnded("it still runs")
    try:
        for frame in itertools.chain(attack.run(wire, lab), wire):
            if frame.to not in OTHER_END:
                raise ValueError(f"a frame goes to client or server, not to {frame.to!a}")
            lab.log(deed_of(frame, past), frame)
            past.append(frame)
            try:
                yield frame
            except GeneratorExit:  # nobody wants any more; one of the attack's own is a mistake
                break
            if outcome.broken is not still_runs:  # it has been judged meanwhile
                return
        outcome.broken = None
    except (CutHere, ProtocolError):
        outcome.broken = None
    except BaseException as error:  # a mistake in the attack is no defence; no Ctrl-C comes here
        # a next() that found no frame is none
        outcome.broken = None if isinstance(error.__cause__, StopIteration) else error


def run_outside(attack: Attack, lab: Stage) -> None:
    """Run an attack from outside, to its end or for OUTSIDE_S: `Stage.suffer` notices that."""
    thread = threading.Thread(target=_run_outside, args=(attack, lab), daemon=True)
    thread.start()
    thread.join(OUTSIDE_S)


def _run_outside(attack: Attack, lab: Stage) -> None:
    """Run an attack; a client or connection of its own may be refused."""
    outcome = lab.outcome
    outcome.broken = NotEnded("it still runs")
    try:
        if attack.run(lab) is not None:  # a generator, which has not even begun
            raise TypeError("an attack from outside is a function that returns nothing")
        outcome.broken = None
    except (ProtocolError, LocalError, UserError):
        outcome.broken = None
    except BaseException as error:  # a mistake in the attack is no defence; here is no Ctrl-C
        is_cut = isinstance(error, OSError) and not error.filename  # a connection, and no file
        outcome.broken = None if is_cut else error


def is_running(attack: Attack) -> bool:
    """Return whether code from the file of an attack runs, beside this thread and the first one.

    These play attacks, from the same file perhaps, and are not where an attack could go on.
    """
    code = getattr(attack.run, "__code__", None)
    ours = (threading.get_ident(), threading.main_thread().ident)
    for thread, top in sys._current_frames().items():
        frame: FrameType | None = None if thread in ours else top
        while frame:
            if code and frame.f_code.co_filename == code.co_filename:
                return True
            frame = frame.f_back
    return False


def deed_of(frame: Frame, past: Sequence[Frame]) -> str:
    """Name what it is to deliver a frame now; `past` are those seen and delivered, in order."""
    if frame.deed:
        return frame.deed
    times = sum(frame is other for other in past)
    if times > 1:
        return "again"
    if times == 0:
        return "inserted"
    return "passed" if frame is past[-1] else "late"
