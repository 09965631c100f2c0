"""An adversary that is told no attack tries all that it can do, and finds the shortest by itself.

    python -m classroom.explore
    python -m classroom.explore --without ratchet --replay
    python -m classroom.explore --sets --replay

Four sessions of two clients are open at once, beside an old recording of each client. In a step one
end gets any frame that was ever sent, as it is or changed by the menu of story.py; or it reports,
leaves, waits in vain or loses its connection. What nobody gets is dropped, what comes twice is a
replay. The search goes breadth first, so that the first story that breaks a promise is a shortest:

1. who has accepted more than a CLIENT_HELLO has one partner: an end of the other side, of the same
   client, that holds the same two nonces (accepting a CLIENT_HELLO promises nothing);
2. what it has accepted, header and content, is the beginning of what this partner has sent; so
   nothing is missing before a goodbye (of which no more than the reason is compared);
3. no report and no answer stands on the wire in clear.

The real Session decides what is accepted. Its randomness comes from its name and from how much it
has said, and ends share nothing but frames: so what an end does with a message is asked once, and
the search puts the answers together. Left out, since no attack is lost with them: that an end
closes without a word (it may as well be left alone), and that a fresh server is used before the one
ahead of it (they are alike). Not looked at: clocks, the rules of Server, what many refusals tell,
more changes of a frame than the menu has, and flips inside of a part whose two ends resist them.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.pool import AsyncResult
from multiprocessing.sharedctypes import Synchronized
from typing import Any, NamedTuple

from attacks import random_source
from classroom.matrix import FOLDER, SEEDS, SESSION_RULES, SPAWN, Names, progress, shown, workers
from classroom.stage import on_sockets
from classroom.story import CLIENTS, OLD, ROUNDS, Notes, Step, broken, menu, readings, watched
from endpoint import DEMO_KEYS
from lab.claims import read_sets
from lab.weakened import DOCUMENTED, without
from program import Parser, UserError, positive, run_program
from protocol_fsm import (
    ConnectionCut,
    DeadlineExpired,
    Direction,
    Message,
    Opcode,
    ProtocolError,
    ProtocolState,
    Session,
    State,
    Status,
    client_id_of,
    encode_body,
)

# One end, and what becomes of it ------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class End:
    """Where one end stands after a history of its own. Equal ends are one object."""

    name: str
    session: Notes
    is_closed: bool
    mark: int  # for name, phase, round and keys; the same in every process


FAILURES: dict[str, Callable[[], ProtocolError]] = {
    "waits in vain": lambda: DeadlineExpired("a message", "none"),
    "is cut off": lambda: ConnectionCut(mid_frame=False),
}
OWN = ("reports", "leaves", *FAILURES)  # what an end does, or what happens to it, without a frame
Story = tuple[Step, ...]
World = tuple[End, ...]  # the ends of the open sessions
Places = dict[End, Step]  # where an end can be next, and a step that brings it there


def is_fresh(end: End) -> bool:
    return not end.session.client_id


def words_of(end: End) -> int:
    return len(end.session.said) + len(end.session.heard)


def is_alive(end: End) -> bool:
    """Tell if an end has accepted something, and goes on."""
    return bool(end.session.heard) and not end.is_closed


def is_free_to(what: str, session: Session) -> bool:
    return what != "reports" or (
        session.sends is Direction.C2S
        and session.state is State.REPORT
        and session.round_number <= ROUNDS
    )


def copied(session: Notes) -> Notes:
    """Copy a session as copy.copy would, which sessions refuse because they hold keys."""
    twin = type(session).__new__(type(session))
    vars(twin).update(vars(session), fsm=copy.copy(session.fsm))
    return twin


def act(name: str, session: Notes, what: str, message: bytes) -> None:
    """Do what a program does in this step. Whatever is raised ends the session."""
    if what == "reports":
        session.seal(Opcode.CLIENT_DATA, encode_body(readings(name, session.round_number)))
    elif what in FAILURES:
        error = FAILURES[what]()
        session.fail(error)
        raise error
    elif what == "gets":
        answer(session, session.open(message))


def answer(session: Notes, accepted: Message) -> None:
    """Let a server say what it says to an accepted message; a client does that in its own time."""
    if session.sends is Direction.S2C and len(session.heard) == 1:
        session.seal(Opcode.SERVER_CHALLENGE)
    elif session.sends is Direction.S2C:
        session.seal(
            Opcode.SERVER_AGGR_RESPONSE,
            encode_body({"epoch": session.round_number, "sum": math.fsum(accepted.readings)}),
        )


# The search ---------------------------------------------------------------------------------------


class Found(NamedTuple):
    """What a search has seen."""

    marks: set[int]  # of the worlds in which two ends are alive, or more
    transitions: int
    depth: int  # to which all worlds have been seen
    is_complete: bool  # nothing was left to see
    story: Story = ()  # that breaks a promise
    words: str = ""


class Explorer:
    """Some sessions, and what each of their ends does with each message, asked once."""

    def __init__(
        self, session: type[Session], sessions: int = len(CLIENTS), seed: str = SEEDS[0]
    ) -> None:
        self._session = watched(session)
        self._seed = seed
        self._ends: dict[object, End] = {}
        self._own: dict[End, Places] = {}
        self._frames: dict[object, Places] = {}
        self._pairs: dict[tuple[End, End], Places] = {}
        self.recorded = [end for name in OLD for end in self._recorded(name)]
        self.start: World = (
            *map(self._client, [*CLIENTS][:sessions]),
            *(self._server(f"server {n + 1}") for n in range(sessions)),
        )

    def _new(self, name: str, client_id: int, sends: Direction) -> Notes:
        return self._session(
            client_id,
            DEMO_KEYS.get(client_id, b"a key that nobody has"),
            sends,
            random_bytes=random_source(f"{self._seed} {name} 0"),
        )

    def _client(self, name: str) -> End:
        session = self._new(name, CLIENTS.get(name) or OLD[name], Direction.C2S)
        session.seal(Opcode.CLIENT_HELLO)
        return self._end(name, session)

    def _server(self, name: str) -> End:
        return self._end(name, self._new(name, 0, Direction.S2C))

    def _recorded(self, name: str) -> tuple[End, End]:
        """Return both ends of a session in which nobody interfered."""
        client = self._client(name)
        server = self._server(name.replace("client", "server"))
        for _ in range(1 + ROUNDS):
            server = self.after(server, "gets", client.session.sent[-1])
            client = self.after(client, "gets", server.session.sent[-1])
            client = self.after(
                client, "reports" if is_free_to("reports", client.session) else "leaves"
            )
        return client, self.after(server, "gets", client.session.sent[-1])

    def _end(self, name: str, session: Notes, is_closed: bool = False) -> End:
        keys = session.fingerprints() if is_closed else session._keys
        public = name, session.state.name, session.round_number, *keys.values()
        key = *public, is_closed, session.client_id, session.said, session.heard, session.sent
        if key not in self._ends:
            mark = int.from_bytes(hashlib.sha256(repr(public).encode()).digest()[:7], "big")
            self._ends[key] = End(name, session, is_closed, mark)
        return self._ends[key]

    def after(self, end: End, what: str, message: bytes = b"") -> End:
        """Return where an end stands after a step; programs go on as server.py and client.py do."""
        session = copied(end.session)
        is_closed = what == "leaves"
        session._random_bytes = random_source(f"{self._seed} {end.name} {len(session.said)}")
        if what == "gets" and is_fresh(end):
            session = self._new(end.name, client_id_of(message), Direction.S2C)
        try:
            act(end.name, session, what, message)
        except Exception:  # as both programs do; only a weakened session stumbles over itself
            is_closed = True
        if is_closed and session.state.phase is ProtocolState.ACTIVE:
            is_client = session.sends is Direction.C2S
            session.seal(Opcode.TERMINATE, status=Status.GOODBYE if is_client else Status.SHUTDOWN)
        return self._end(end.name, session, is_closed)

    def moves(self, world: World) -> Iterator[tuple[int, Step, End]]:
        """Yield every place where a step can bring an end, with its number and such a step."""
        is_first = True  # of the fresh servers
        for number, end in enumerate(world):
            if end.is_closed or (is_fresh(end) and not is_first):
                continue
            is_first = is_first and not is_fresh(end)
            places = dict(self._alone(end))
            for sender in (*world, *self.recorded):
                for new, step in self._handed_all(end, sender).items():
                    places.setdefault(new, step)
            yield from ((number, step, new) for new, step in places.items())

    def _alone(self, end: End) -> Places:
        if end not in self._own:
            own = (Step(end.name, what) for what in OWN if is_free_to(what, end.session))
            self._own[end] = self._places(end, end, own)
        return self._own[end]

    def _handed_all(self, end: End, sender: End) -> Places:
        """Return where the frames of this sender can bring an end."""
        if (end, sender) not in self._pairs:
            self._pairs[end, sender] = {}
            for number, _ in enumerate(sender.session.sent):
                for new, step in self._handed_one(end, sender, number).items():
                    self._pairs[end, sender].setdefault(new, step)
        return self._pairs[end, sender]

    def _handed_one(self, end: End, sender: End, number: int) -> Places:
        key = end, sender.name, sender.session.sent[: number + 1]
        if key not in self._frames:
            choose = functools.partial(
                menu, Step(end.name, "gets", sender.name, number), end.session, sender.session
            )
            places = self._places(end, sender, choose())
            if any(step.change for step in places.values()):
                for new, step in self._places(end, sender, choose(is_fine=True)).items():
                    places.setdefault(new, step)
            self._frames[key] = places
        return self._frames[key]

    def _places(self, end: End, sender: End, steps: Iterator[Step]) -> Places:
        """Ask the real Session for each step, and keep the first to each place.

        Steps that close an end in silence are left out.
        """
        places = Places()
        tried: set[bytes] = set()
        for step in steps:
            message = step.changed(sender.session) if step.sender else step.what.encode()
            if message not in tried:
                tried.add(message)
                new = self.after(end, step.what, message)
                if not (new.is_closed and words_of(new) == words_of(end)):
                    places.setdefault(new, step)
        return places

    def search(
        self,
        limit: int,
        first: int | None = None,
        *,
        is_enough: Callable[[Story], bool] = bool,
        count: Callable[[], object] = lambda: None,
    ) -> Found:
        """Go on until a promise is broken, or `limit` worlds with two live ends are seen, or all.

        `first`: only what begins with the step of this number. A story that is not enough ends
        where it breaks a promise, and the search goes on.
        """
        came_from: dict[World, tuple[World, Step] | None] = {self.start: None}
        level = [self.start]
        marks: set[int] = set()
        transitions = 0
        depth = 0
        while level and len(marks) < limit:
            following: list[World] = []
            for world, number, step, end in self._steps(level, None if depth else first):
                transitions += 1
                new = (*world[:number], end, *world[number + 1 :])
                if new in came_from:
                    continue
                came_from[new] = world, step
                if words := broken(end.session, self.sessions(new)):
                    if is_enough(story := told(came_from, new)):
                        return Found(marks, transitions, depth, False, story, words)
                    continue
                following.append(new)
                if sum(map(is_alive, new)) >= 2 and (mark := mark_of(new)) not in marks:
                    marks.add(mark)
                    count()
                if len(marks) >= limit:
                    return Found(marks, transitions, depth, False)
            level = following
            depth = depth + 1
        return Found(marks, transitions, depth, not level)

    def _steps(
        self, level: list[World], first: int | None
    ) -> Iterator[tuple[World, int, Step, End]]:
        steps = ((world, *move) for world in level for move in self.moves(world))
        return itertools.islice(steps, first, None if first is None else first + 1)

    def sessions(self, world: World) -> list[Notes]:
        return [end.session for end in (*world, *self.recorded)]

    def play(self, story: Story) -> str:
        """Return what a story breaks here; nothing if it cannot be played to such an end."""
        world = {end.name: end for end in self.start}
        for step in story:
            ends = world | {end.name: end for end in self.recorded}
            frame = ends[step.sender].session.sent[step.number :][:1] if step.sender else [b""]
            if world[step.end].is_closed or not frame:
                return ""
            message = step.changed(ends[step.sender].session) if step.sender else b""
            new = world[step.end] = self.after(world[step.end], step.what, message)
            if words := broken(new.session, self.sessions((*world.values(),))):
                return words
        return ""


def mark_of(world: World) -> int:
    return hash(tuple(end.mark for end in world))  # of whole numbers: equal in every process


def told(came_from: Mapping[World, tuple[World, Step] | None], world: World) -> Story:
    """Return the steps to a world."""
    steps: list[Step] = []
    while origin := came_from[world]:
        world, step = origin
        steps.append(step)
    return tuple(reversed(steps))


# What a story needs -------------------------------------------------------------------------------


@functools.lru_cache(64)
def explorer(taken: Names, seed: str = SEEDS[0], sessions: int = len(CLIENTS)) -> Explorer:
    return Explorer(without(taken).session if taken else Session, sessions, seed)


def lasts(taken: Names, story: Story) -> bool:
    """Tell if a story goes the same way with other random bytes: garbage may unpad by luck."""
    return all(explorer(taken, seed).play(story) for seed in SEEDS)


def needs(taken: Names, story: Story) -> Names:
    """Return rules that have to be missing, all of them, for a story."""
    for name in sorted(taken):
        taken -= {name} if lasts(taken - {name}, story) else set()
    return taken


class Tale(NamedTuple):
    """What the explorer tells of a set of rules that are missing."""

    taken: Names
    shortest: Found
    needed: Names  # of these rules, for the shortest story
    whole: Found  # the shortest story that needs them all; if that is longer, with one session
    on_sockets: tuple[str, str] = ("", "")  # what the two stories break there, if they are played


def tell(task: tuple[Names, int, bool]) -> Tale:
    """Find the shortest story, and if that needs less, the shortest that needs the whole set."""
    taken, limit, is_played = task
    shortest = explorer(taken).search(limit, is_enough=lambda story: lasts(taken, story))
    needed = needs(taken, shortest.story)
    whole = (
        shortest
        if needed == taken
        else explorer(taken, sessions=1).search(
            limit, is_enough=lambda story: lasts(taken, story) and needs(taken, story) == taken
        )
    )
    stories = shortest.story, whole.story
    played = {
        story: on_sockets(without(taken), story) or "breaks no promise"
        for story in stories
        if story and is_played
    }
    return Tale(
        taken, shortest, needed, whole, (played.get(stories[0], ""), played.get(stories[1], ""))
    )


# Both cores ---------------------------------------------------------------------------------------

COUNTER: Synchronized[int]  # of the worlds that the workers have seen


def share(counter: Synchronized[int]) -> None:
    """Prepare a worker."""
    global COUNTER
    COUNTER = counter


def count_one() -> None:
    with COUNTER:
        COUNTER.value += 1


def part(task: tuple[int, int, int]) -> Found:
    """Explore what begins with one first step of the real protocol."""
    sessions, first, limit = task
    real = explorer(frozenset(), sessions=sessions)
    return real.search(limit, first, count=count_one)


def explore(sessions: int, limit: int) -> Found:
    """Explore the real protocol, on all cores.

    A first step makes server 1 accept a CLIENT_HELLO, and its keys tell for ever which: so no world
    is seen by two workers. They are counted together all the same, and none would count twice.
    """
    real = explorer(frozenset(), sessions=sessions)
    firsts = len([*real.moves(real.start)])
    counter = SPAWN.Value("q")
    with workers(1, share, counter) as pool:
        tasks = [(sessions, first, -(-limit // firsts)) for first in range(firsts)]
        done = pool.map_async(part, tasks, 1)
        thousands = range(-(-limit // 1000))
        for _ in progress("thousand worlds", ticks(done, counter, len(thousands)), thousands):
            pass
        parts = done.get()
    is_complete = all(found.is_complete for found in parts)
    depths = [found.depth for found in parts if found.is_complete is is_complete]
    broke = next((found for found in parts if found.story), parts[0])
    return Found(
        set[int]().union(*(found.marks for found in parts)),
        sum(found.transitions for found in parts),
        max(depths) if is_complete else min(depths),
        is_complete,
        broke.story,
        broke.words,
    )


def ticks(done: AsyncResult[Any], counter: Synchronized[int], count: int) -> Iterator[None]:
    """Yield once for each thousand that the workers have counted, and `count` times in all."""
    ticked = 0
    while ticked < count:
        done.wait(0.1)
        now = count if done.ready() else min(counter.value // 1000, count - 1)
        yield from itertools.repeat(None, now - ticked)
        ticked = max(ticked, now)


def tell_all(sets: Sequence[Names], limit: int, is_played: bool) -> Iterator[Tale]:
    """Yield the tale of each set, on all cores."""
    with workers(1) as pool:
        tasks = [(taken, limit, is_played) for taken in sets]
        yield from progress("sets of rules", pool.imap(tell, tasks), tasks)


# Showing it ---------------------------------------------------------------------------------------


def minimal_sets() -> list[Names]:
    """Return the sets of sets.json, the smallest first. Raises UserError."""
    found = read_sets(FOLDER / "sets.json").sets
    sets = dict.fromkeys(frozenset(rules) for minimal in found.values() for rules in minimal)
    return sorted(sets, key=len)


def rules_of(text: str) -> Names:
    """Return the rules of Session among these elements. Raises UserError."""
    names = frozenset(
        name
        for given in text.split(",")
        for name in (DOCUMENTED if given == "documented" else [given])
    )
    without(names)  # which knows all elements
    if not names & SESSION_RULES.keys():
        raise UserError(f"{text}: the explorer looks at rules of Session only")
    return names.intersection(SESSION_RULES)


def numbered(found: Found, on_sockets: str = "") -> list[str]:
    steps = [f"{number}. {step}" for number, step in enumerate(found.story, 1)]
    played = " On sockets, too." if on_sockets == found.words else f" On sockets: {on_sockets}."
    return [*steps, f"Then {found.story[-1].end} {found.words}." + played * bool(on_sockets)]


def lines_of(tale: Tale) -> list[str]:
    """Return the stories of a set of rules."""
    _, shortest, needed, whole, played = tale
    if not shortest.story:
        seen = "there are no other worlds" if shortest.is_complete else "not further"
        return [f"No story was found, {shortest.depth} steps deep, and {seen}."]
    lines = numbered(shortest, played[0])
    if needed == tale.taken:
        return lines
    lines.append(f"So much for {shown(needed)}. The shortest that needs all, with one session:")
    seen = "in any world" if whole.is_complete else f"{whole.depth} steps deep"
    none = f"There is none {seen}, up to a first broken promise."
    return lines + (numbered(whole, played[1]) if whole.story else [none])


def paragraph(lines: Sequence[str]) -> str:
    return "\n".join(
        textwrap.fill(
            line, 79, initial_indent="  ", subsequent_indent="     ", break_on_hyphens=False
        )
        for line in lines
    )


def is_as_expected(tale: Tale, is_played: bool) -> bool:
    """Tell if a story was found, and if what was played breaks the same promise on sockets."""
    same = tale.on_sockets == (tale.shortest.words, tale.whole.words)
    return bool(tale.shortest.story) and (same or not is_played)


def main() -> int:
    parser = Parser("What an adversary finds that tries everything.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--without", metavar="A,B", help="take these rules out, and tell a story")
    which.add_argument("--sets", action="store_true", help="the same for all minimal sets")
    parser.add_argument(
        "--states",
        type=positive,
        default=100_000,
        help="worlds with two live ends to look at; default 100000",
    )
    parser.add_argument(
        "--sessions",
        type=int,
        choices=range(1, len(CLIENTS) + 1),
        help="of the real protocol, open at once; default: first 2, then 4",
    )
    parser.add_argument("--replay", action="store_true", help="play the stories on sockets, too")
    options = parser.options()
    if options.without is None and not options.sets:
        counts = [options.sessions] if options.sessions else [2, len(CLIENTS)]
        return max(explored(count, options.states) for count in counts)
    sets = minimal_sets() if options.sets else [rules_of(options.without)]
    code = 0
    looked_at = [names for names in sets if names <= SESSION_RULES.keys()]
    for tale in tell_all(looked_at, options.states, options.replay):
        print(f"without {shown(tale.taken)}\n{paragraph(lines_of(tale))}", flush=True)
        code |= not is_as_expected(tale, options.replay)
    for names in sets:
        if names not in looked_at:
            print(f"without {shown(names)}\n  Not looked at: rules of Server.")
    return code


def explored(sessions: int, limit: int) -> int:
    """Explore the real protocol, and say how far. Returns the exit code."""
    found = explore(sessions, limit)
    print(
        f"{sessions} sessions of {min(2, sessions)} clients, {ROUNDS} rounds each\n"
        f"{len(found.marks):>12,} worlds with two live ends or more, by phases, rounds and keys\n"
        f"{found.transitions:>12,} transitions\n"
        f"{found.depth:>12,} steps deep" + ", and there are no other worlds" * found.is_complete
    )
    print(paragraph(numbered(found)) if found.story else "no promise was broken so far")
    return int(bool(found.story))


if __name__ == "__main__":
    run_program(main)
