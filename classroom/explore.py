"""An adversary that knows no attack tries everything that it can do, the shortest first.

    python -m classroom.explore
    python -m classroom.explore --without ratchet --replay
    python -m classroom.explore --sets --replay

Up to four sessions of two clients are open at once, beside an old recording of each client. In a
step one end gets any frame that was ever sent, as it is or changed by the menu of story.py; or it
reports, leaves, waits in vain or loses its connection. What nobody gets is dropped, what comes
twice is a replay. After any step the adversary may steal the keys of one end, and it has all keys
of one client, as an insider. The search goes breadth first, so that the first story that breaks a
promise is a shortest:

1. an end that has accepted more than a CLIENT_HELLO has one partner: an end of the other side, of
   the same client, that holds the same two nonces (accepting a CLIENT_HELLO promises nothing);
2. what it has accepted, byte by byte, is the beginning of what this partner has sent; so nothing is
   missing before a goodbye;
3. no report and no answer stands on the wire in clear;
4. a session gives way (REPLACED) only to a session of the same client that has reported, and whose
   CLIENT_HELLO the server accepted later;
5. after its handshake an end holds no key of any message, except of those on their way from its
   partner: a thief of its keys can then open or make no older message, and none of another session;
6. an end never holds a key that another client's ends have used.

The real Session decides what is accepted, and the server's real Roster which session gives way. The
randomness of an end comes from its name and from how much it has said, and ends share nothing but
frames and a Roster: so what an end does with a message is asked once, and the search puts the
answers together. Two things are left out, since no attack is lost with them: an end that closes
without a farewell (it may as well be left alone), and a fresh server that is used before the one
ahead of it (they are alike, so servers accept CLIENT_HELLOs in the order of their numbers). Not
looked at: clocks, epochs, crowds of strangers, what many refusals tell, more changes of a frame
than the menu has, and flips inside a part whose edges resist them. With rules missing, promises 5
and 6 are looked at only if no story breaks another one, because they end a story early.
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
from typing import Any, NamedTuple, cast

from channel import EndRequested
from classroom.matrix import FOLDER, ROSTER_RULES, SEEDS, SESSION_RULES, shown
from classroom.stage import on_sockets
from classroom.story import CLIENTS, OLD, ROUNDS, Notes, Step, broken, menu, readings
from endpoint import DEMO_KEYS
from lab.claims import read_sets
from lab.rules import Names, rule_list
from lab.search import SPAWN, Told, progress, say, workers
from lab.stage import LIMITS, random_source
from lab.weakened import DOCUMENTED, without
from program import Parser, UserError, plural, positive, run_program, whole
from protocol_fsm import (
    ClientData,
    ClientHello,
    ConnectionCut,
    FAREWELL_STATUS,
    DeadlineExpired,
    Direction,
    Message,
    PeerTerminated,
    ProtocolError,
    ServerAggrResponse,
    ServerChallenge,
    Session,
    State,
    Status,
    Watchers,
    client_id_of,
)
from server import Roster

LOOKED_AT = {*SESSION_RULES, *ROSTER_RULES} - {"stranger-cap"}
Clients = tuple[str, ...]  # by name, whose sessions are open at once
ALL = tuple(CLIENTS)
ONE = ALL[:1]
TWO = ALL[:2]
TWICE = (ALL[0], ALL[2])  # sessions of one client

# One end, and what becomes of it ------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class End:
    """Where one end stands after a history of its own. Equal ends are one object."""

    name: str
    session: Session
    notes: Notes
    is_closed: bool
    mark: int  # for name, phase, round and keys; the same in every process

    @functools.cached_property
    def rank(self) -> int:
        """How far a server's end is: 0 fresh, 1 with a CLIENT_HELLO, 2 with a first report."""
        if self.session.sends is Direction.C2S:
            return 0
        return sum(heard.opcode not in FAREWELL_STATUS for heard in self.notes.heard[:2])


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
    return len(end.notes.said) + len(end.notes.heard)


def is_alive(end: End) -> bool:
    """Return whether an end has accepted something, and goes on."""
    return bool(end.notes.heard) and not end.is_closed


def is_free_to(what: str, session: Session, rounds: int) -> bool:
    if what != "reports":
        return True
    may_report = session.sends is Direction.C2S and session.state is State.REPORT
    return may_report and session.round_number <= rounds


def copied(session: Session, notes: Notes) -> tuple[Session, Notes]:
    """Copy a session as copy.copy would, which sessions refuse because they hold keys."""
    twin = type(session).__new__(type(session))
    twin_notes = copy.copy(notes)
    vars(twin).update(vars(session))
    twin.fsm = copy.copy(session.fsm)
    twin.watchers = Watchers([twin_notes.watch])
    twin._key_log = twin_notes.hold
    twin_notes.attach(twin)
    return twin, twin_notes


def refusal_of(end: End, message: bytes) -> type[Exception] | None:
    """Return the error with which an end refuses a message: failures differ only in that."""
    if is_fresh(end):
        return None
    session, _ = copied(end.session, end.notes)
    session.watchers = Watchers([])
    session.fail = lambda error: None  # type: ignore[method-assign]
    try:
        session.open(message)
    except PeerTerminated:
        return None
    except Exception as error:
        return type(error)
    return None


def act(
    name: str, session: Session, notes: Notes, what: str, message: bytes, gives_way: bool
) -> None:
    """Do what a program does in this step. Whatever is raised ends the session."""
    if what == "reports":
        session.seal(ClientData(readings(name, session.round_number)))
    elif what in FAILURES:
        error = FAILURES[what]()
        session.fail(error)
        raise error
    elif what == "gets":
        accepted = session.open(message)
        if not gives_way:
            answer(session, notes, accepted)
    if gives_way:
        raise EndRequested(Status.REPLACED)


def answer(session: Session, notes: Notes, accepted: Message) -> None:
    """Let a server answer an accepted message at once; a client acts in its own time."""
    if session.sends is Direction.S2C and len(notes.heard) == 1:
        session.seal(ServerChallenge())
    elif session.sends is Direction.S2C:
        total = math.fsum(cast(ClientData, accepted).readings)
        session.seal(ServerAggrResponse({"epoch": session.round_number, "sum": total}))


# Who gives way ------------------------------------------------------------------------------------


class Place:
    """A connection, as far as Roster needs one."""

    def __init__(self, client_id: int) -> None:
        self.client_id = client_id
        self.hello_number = 0
        self.gives_way = False

    def request_end(self, status: Status) -> None:
        self.gives_way = True

    send_away = request_end


class Standing(NamedTuple):
    """What Roster has been told of a server's end."""

    client_id: int
    rank: int
    is_closed: bool


def giving_way(
    roster: Roster[Place], standings: Sequence[Standing], number: int, rank: int
) -> list[int]:
    """Return the numbers of those that give way when one of them comes to a rank."""
    places = [Place(standing.client_id) for standing in standings]
    for place, standing in zip(places, standings):
        if standing.rank:
            roster.arrive(place)
            roster.number_hello(place)
    for has_left in (True, False):
        for place, standing in zip(places, standings):
            if standing.is_closed is has_left and standing.rank == 2:
                roster.establish(place)
            if standing.is_closed and has_left:
                roster.leave(place)
    try:
        if rank == 1:
            roster.arrive(places[number])
            roster.number_hello(places[number])
        else:
            roster.establish(places[number])
    except EndRequested:
        places[number].gives_way = True
    return [n for n, place in enumerate(places) if place.gives_way]


# The search ---------------------------------------------------------------------------------------


class Found(NamedTuple):
    """What a search has seen."""

    marks: set[int]  # of the worlds in which two ends are alive, or more
    transitions: int
    depth: int  # to which all worlds have been seen
    is_complete: bool  # nothing was left to see
    story: Story = ()  # that breaks a promise
    end: str = ""  # to whom
    words: str = ""  # which


class Explorer:
    """Some sessions, and what each of their ends does with each message, asked once."""

    def __init__(
        self,
        session: type[Session],
        clients: Clients = ALL,
        seed: str = SEEDS[0],
        roster: type[Roster[Place]] = Roster,
        *,
        rounds: int = ROUNDS,
        has_thief: bool = False,
    ) -> None:
        self._session = session
        self._rounds = rounds
        self._has_thief = has_thief
        self._roster = roster
        self._seed = seed
        self._ends: dict[object, End] = {}
        self._own: dict[End, Places] = {}
        self._frames: dict[object, Places] = {}
        self._pairs: dict[tuple[End, End], Places] = {}
        self._decided: dict[object, list[int]] = {}
        self.recorded = [end for name in OLD for end in self._recorded(name)]
        self.start: World = (
            *map(self._client, clients),
            *(self._server(f"server {n + 1}") for n in range(len(clients))),
        )
        self._first_server = len(clients)

    def _new(self, name: str, client_id: int, sends: Direction) -> tuple[Session, Notes]:
        notes = Notes(client_id, sends)
        session = self._session(
            client_id,
            DEMO_KEYS.get(client_id, b"a key that nobody has"),
            sends,
            watchers=[notes.watch],
            key_log=notes.hold,
            random_bytes=random_source(f"{self._seed} {name} 0"),
        )
        notes.attach(session)
        return session, notes

    def _client(self, name: str) -> End:
        client_id = CLIENTS[name] if name in CLIENTS else OLD[name]
        session, notes = self._new(name, client_id, Direction.C2S)
        session.seal(ClientHello())
        return self._end(name, session, notes)

    def _server(self, name: str) -> End:
        return self._end(name, *self._new(name, 0, Direction.S2C))

    def _recorded(self, name: str) -> tuple[End, End]:
        """Return both ends of a session in which nobody interfered."""
        client = self._client(name)
        server = self._server(name.replace("client", "server"))
        for _ in range(1 + ROUNDS):
            server = self.after(server, "gets", client.notes.sent[-1])
            client = self.after(client, "gets", server.notes.sent[-1])
            goes_on = is_free_to("reports", client.session, ROUNDS)
            client = self.after(client, "reports" if goes_on else "leaves")
        return client, self.after(server, "gets", client.notes.sent[-1])

    def _end(self, name: str, session: Session, notes: Notes, is_closed: bool = False) -> End:
        keys = session.fingerprints() if is_closed else session._keys
        public = name, session.state.name, session.round_number, *keys.values()
        key = *public, is_closed, session.client_id, notes.said, notes.heard, notes.sent, notes.got
        if key not in self._ends:
            mark = int.from_bytes(hashlib.sha256(repr(public).encode()).digest()[:7], "big")
            self._ends[key] = End(name, session, notes, is_closed, mark)
        return self._ends[key]

    def after(self, end: End, what: str, message: bytes = b"", gives_way: bool = False) -> End:
        """Return where an end stands after a step; programs go on as server.py and client.py do."""
        session, notes = copied(end.session, end.notes)
        is_closed = what == "leaves"
        status = Status.GOODBYE if session.sends is Direction.C2S else Status.SHUTDOWN
        session._random_bytes = random_source(f"{self._seed} {end.name} {len(notes.said)}")
        if what == "gets" and is_fresh(end):
            session, notes = self._new(end.name, client_id_of(message), Direction.S2C)
        try:
            act(end.name, session, notes, what, message, gives_way)
        except EndRequested as request:
            is_closed = True
            status = request.status
        except Exception as error:  # as both programs do; only a weakened session harms itself
            is_closed = True
            notes.stop(error)
        if is_closed:
            session.goodbye(status)
        return self._end(end.name, session, notes, is_closed)

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
            own = (
                Step(end.name, what) for what in OWN if is_free_to(what, end.session, self._rounds)
            )
            self._own[end] = self._places(end, end, own)
        return self._own[end]

    def _handed_all(self, end: End, sender: End) -> Places:
        """Return where the frames of this sender can bring an end."""
        if (end, sender) not in self._pairs:
            self._pairs[end, sender] = {}
            for number, _ in enumerate(sender.notes.sent):
                for new, step in self._handed_one(end, sender, number).items():
                    self._pairs[end, sender].setdefault(new, step)
        return self._pairs[end, sender]

    def _handed_one(self, end: End, sender: End, number: int) -> Places:
        key = end, sender.name, sender.notes.sent[: number + 1]
        if key not in self._frames:
            choose = functools.partial(
                menu, Step(end.name, "gets", sender.name, number), end.session, sender.notes
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
        refusals: set[type[Exception] | None] = set()
        for step in steps:
            message = step.changed(sender.notes) if step.sender else step.what.encode()
            if message not in tried:
                tried.add(message)
                refusal = refusal_of(end, message) if step.sender else None
                if refusal and refusal in refusals:
                    continue  # it ends as the other one did
                refusals.add(refusal)
                new = self.after(end, step.what, message)
                if not (new.is_closed and words_of(new) == words_of(end)):
                    places.setdefault(new, step)
        return places

    def _result(self, world: World, number: int, step: Step, new: End) -> tuple[World, list[End]]:
        """Return the world after a step, with what the server's Roster says to it, and its news."""
        ends = [*world]
        ends[number] = new
        if new.rank == world[number].rank:
            return tuple(ends), [new]
        others = self._giving_way(world, number, new)
        if number in others:
            ends[number] = self.after(world[number], step.what, self._message(world, step), True)
            others.remove(number)
        for other in others:
            ends[other] = self.after(world[other], "gives way", gives_way=True)
        return tuple(ends), [ends[number], *(ends[other] for other in others)]

    def _giving_way(self, world: World, number: int, new: End) -> list[int]:
        """Return the numbers of ends that give way because one has come to a new rank."""
        standings = [
            Standing(end.session.client_id, end.rank, end.is_closed)
            for end in world[self._first_server :]
        ]
        place = number - self._first_server
        standings[place] = standings[place]._replace(client_id=new.session.client_id)
        key = tuple(standings), place, new.rank
        if key not in self._decided:
            roster = self._roster(LIMITS.max_strangers)
            self._decided[key] = giving_way(roster, *key)
        return [self._first_server + n for n in self._decided[key]]

    def _message(self, world: World, step: Step) -> bytes:
        """Return the frame of a step as it arrives; nothing if there is none (yet)."""
        for end in (*world, *self.recorded):
            if end.name == step.sender and step.number < len(end.notes.sent):
                return step.changed(end.notes)
        return b""

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
                new, news = self._result(world, number, step, end)
                if new in came_from:
                    continue
                came_from[new] = world, step
                name, words = self._broken(new, news)
                if words:
                    story = told(came_from, new)
                    if is_enough(story):
                        return Found(marks, transitions, depth, False, story, name, words)
                    continue
                following.append(new)
                if sum(map(is_alive, new)) >= 2 and (mark := mark_of(new)) not in marks:
                    marks.add(mark)
                    count()
                if len(marks) >= limit:
                    return Found(marks, transitions, depth, False)
            level = following
            depth += 1
        return Found(marks, transitions, depth, not level)

    def _steps(
        self, level: list[World], first: int | None
    ) -> Iterator[tuple[World, int, Step, End]]:
        steps = ((world, *move) for world in level for move in self.moves(world))
        return itertools.islice(steps, first, None if first is None else first + 1)

    def _broken(self, world: World, news: Sequence[End]) -> tuple[str, str]:
        """Return to which of these ends a promise is broken, and which; nothing if none is."""
        everybody = [end.notes for end in (*self.recorded, *world)]
        for end in news:
            words = broken(end.notes, everybody, self._has_thief)
            if words:
                return end.name, words
        return "", ""

    def play(self, story: Story) -> str:
        """Return what a story breaks here; nothing if it cannot be played to such an end."""
        world = self.start
        numbers = {end.name: number for number, end in enumerate(world)}
        for step in story:
            number = numbers[step.end]
            message = self._message(world, step)
            if world[number].is_closed or (step.sender and not message):
                return ""
            new = self.after(world[number], step.what, message)
            world, news = self._result(world, number, step, new)
            _, words = self._broken(world, news)
            if words:
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
def explorer(
    taken: Names, clients: Clients = ALL, seed: str = SEEDS[0], *, has_thief: bool = False
) -> Explorer:
    rounds = rounds_of(clients)
    if not taken:
        return Explorer(Session, clients, seed, rounds=rounds, has_thief=has_thief)
    weak = without(taken)
    roster = cast(type[Roster[Place]], weak.server.roster_class)
    return Explorer(weak.session, clients, seed, roster, rounds=rounds, has_thief=has_thief)


def rounds_of(clients: Clients) -> int:
    """Return how many rounds a client may begin: one more where there is one session."""
    return ROUNDS + 1 if clients == ONE else ROUNDS


def lasts(taken: Names, story: Story, has_thief: bool = False) -> bool:
    """Return whether a story goes the same way with other random bytes: garbage may be lucky."""
    return all(explorer(taken, seed=seed, has_thief=has_thief).play(story) for seed in SEEDS)


def needs(taken: Names, story: Story, has_thief: bool = False) -> Names:
    """Return the rules all of which have to be missing for a story."""
    for name in sorted(taken):
        if lasts(taken - {name}, story, has_thief):
            taken -= {name}
    return taken


def needs_all(taken: Names, story: Story, has_thief: bool = False) -> bool:
    """Return whether `needs` would return all of them; stop at the first that is not needed."""
    return not any(lasts(taken - {name}, story, has_thief) for name in sorted(taken))


class Tale(NamedTuple):
    """What the explorer reports about a set of missing rules."""

    taken: Names
    shortest: Found
    needed: Names  # of these rules, for the shortest story
    whole: Found  # the shortest story that needs them all; if that is longer, of few sessions
    on_sockets: tuple[str, str] = ("", "")  # what the two stories break there, if they are played
    has_thief: bool = False  # because no story was found without


def tell(task: tuple[Names, int, bool]) -> Tale:
    """Find the shortest story, and if it needs fewer rules, the shortest that needs the whole set.

    Two sessions are tried if sessions of one client can give way to each other, otherwise one.
    """
    taken, limit, is_played = task
    has_order = bool(taken & ROSTER_RULES.keys())
    many, few = (TWICE, TWICE) if has_order else (ALL, ONE)
    shortest = explorer(taken, many).search(limit, is_enough=lambda story: lasts(taken, story))
    has_thief = not shortest.story
    if has_thief:
        shortest = explorer(taken, many, has_thief=True).search(
            limit, is_enough=lambda story: lasts(taken, story, True)
        )
    needed = needs(taken, shortest.story, has_thief)
    whole = shortest
    if needed != taken:
        whole = explorer(taken, few, has_thief=has_thief).search(
            limit,
            is_enough=lambda story: (
                needs_all(taken, story, has_thief) and lasts(taken, story, has_thief)
            ),
        )
    played = ("", "")
    if is_played:
        first = on_stage(taken, shortest, has_thief)
        played = (first, first if whole is shortest else on_stage(taken, whole, has_thief))
    return Tale(taken, shortest, needed, whole, played, has_thief)


def on_stage(taken: Names, found: Found, has_thief: bool) -> str:
    """Return what a story breaks on sockets; nothing if there is no story."""
    if not found.story:
        return ""
    weak = without(taken)
    return on_sockets(weak, found.story, found.end, has_thief) or "breaks no promise"


# Both cores ---------------------------------------------------------------------------------------

COUNTER: Synchronized[int]  # of the worlds that the workers have seen


def share(counter: Synchronized[int]) -> None:
    """Prepare a worker."""
    global COUNTER
    COUNTER = counter


def count_one() -> None:
    with COUNTER:
        COUNTER.value += 1


def part(task: tuple[Clients, int, int]) -> Found:
    """Explore what begins with one first step of the real protocol."""
    clients, first, limit = task
    real = explorer(frozenset(), clients, has_thief=True)
    return real.search(limit, first, count=count_one)


def explore(clients: Clients, limit: int) -> Found:
    """Explore the real protocol, on all cores.

    A first step makes server 1 accept a CLIENT_HELLO, and its keys tell for ever which: so no world
    is seen by two workers. They are counted together all the same, and none would count twice.
    """
    real = explorer(frozenset(), clients)
    firsts = len([*real.moves(real.start)])
    counter = SPAWN.Value("q")
    with workers(1, share, counter) as pool:
        tasks = [(clients, first, -(-limit // firsts)) for first in range(firsts)]
        done = pool.map_async(Told(part), tasks, 1)
        thousands = range(-(-limit // 1000))
        for _ in progress("thousand worlds", ticks(done, counter, len(thousands)), thousands):
            pass
        parts = done.get()
    is_complete = all(found.is_complete for found in parts)
    depths = [found.depth for found in parts if found.is_complete is is_complete]
    broke = next((found for found in parts if found.story), parts[0])
    return broke._replace(
        marks=set[int]().union(*(found.marks for found in parts)),
        transitions=sum(found.transitions for found in parts),
        depth=max(depths) if is_complete else min(depths),
        is_complete=is_complete,
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
        yield from progress("sets of rules", pool.imap(Told(tell), tasks), tasks)


# Showing it ---------------------------------------------------------------------------------------


def minimal_sets() -> list[Names]:
    """Return the sets of sets.json, the smallest first. Raises UserError."""
    found = read_sets(FOLDER / "sets.json").sets
    sets = dict.fromkeys(frozenset(rules) for minimal in found.values() for rules in minimal)
    return sorted(sets, key=len)


def rules_of(given: Sequence[str]) -> Names:
    """Return the rules among these that the explorer looks at. Raises UserError."""
    without(given)  # which knows all rules
    names = frozenset(given)
    if "documented" in names:
        names |= {*DOCUMENTED}
    if not names & LOOKED_AT:
        raise UserError(
            f"{','.join(given)}: the explorer looks at rules of Session, and at the order of HELLOs"
        )
    return names & LOOKED_AT


def numbered(found: Found, on_sockets: str = "") -> list[str]:
    lines = [f"{number}. {step}" for number, step in enumerate(found.story, 1)]
    last = f"Then {found.end} {found.words}."
    if on_sockets == found.words:
        last += " On sockets, too."
    elif on_sockets:
        last += f" On sockets: {on_sockets}."
    return [*lines, last]


def lines_of(tale: Tale) -> list[str]:
    """Return the stories of a set of rules."""
    _, shortest, needed, whole, played, _ = tale
    if not shortest.story:
        seen = "there are no other worlds" if shortest.is_complete else "not further"
        return [f"No story was found, {plural(shortest.depth, 'step')} deep, and {seen}."]
    lines = numbered(shortest, played[0])
    if needed == tale.taken:
        return lines
    few = "two sessions" if tale.taken & ROSTER_RULES.keys() else "one session"
    lines.append(f"So much for {shown(needed)}. The shortest that needs all, with {few}:")
    if whole.story:
        return lines + numbered(whole, played[1])
    seen = "in any world" if whole.is_complete else f"{plural(whole.depth, 'step')} deep"
    return [*lines, f"There is none {seen}, up to a first broken promise."]


def paragraph(lines: Sequence[str]) -> str:
    return "\n".join(
        textwrap.fill(
            line, 79, initial_indent="  ", subsequent_indent="     ", break_on_hyphens=False
        )
        for line in lines
    )


def is_as_expected(tale: Tale, is_played: bool) -> bool:
    """Return whether a story was found, and breaks the same promise on sockets if played there."""
    same = tale.on_sockets == (tale.shortest.words, tale.whole.words)
    return bool(tale.shortest.story) and (same or not is_played)


def main() -> int:
    parser = Parser("What an adversary finds that tries everything.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--without",
        type=rule_list,
        action="extend",
        metavar="A,B",
        help="take these rules out, and tell a story",
    )
    which.add_argument("--sets", action="store_true", help="the same for all minimal sets")
    parser.add_argument(
        "--states",
        type=positive,
        default=100_000,
        help="worlds with two live ends to look at; default 100000",
    )
    parser.add_argument(
        "--sessions",
        type=whole,
        choices=range(1, len(ALL) + 1),
        help="of the real protocol, open at once; default: 1, 2, 2 of one client, and 4",
    )
    parser.add_argument("--replay", action="store_true", help="play the stories on sockets, too")
    options = parser.options()
    worlds = plural(options.states, "world")
    start = f"looking at up to {worlds} at a time, which may take minutes ...\n"
    if options.without is None and not options.sets:
        say(start)
        some = [ALL[: options.sessions]] if options.sessions else [ONE, TWO, TWICE, ALL]
        return max(explored(clients, options.states) for clients in some)
    sets = minimal_sets() if options.sets else [rules_of(options.without)]
    say(start)
    code = 0
    looked_at = [names for names in sets if names <= LOOKED_AT]
    for tale in tell_all(looked_at, options.states, options.replay):
        print(f"without {shown(tale.taken)}\n{paragraph(lines_of(tale))}", flush=True)
        code |= not is_as_expected(tale, options.replay)
    for names in sets:
        if names not in looked_at:
            print(f"without {shown(names)}\n  Not looked at: it takes a clock, or a crowd.")
    return code


def explored(clients: Clients, limit: int) -> int:
    """Explore the real protocol, and print how far. Returns the exit code."""
    found = explore(clients, limit)
    ids = {CLIENTS[name] for name in clients}
    lines = [
        f"{plural(len(clients), 'session')} of {plural(len(ids), 'client')}, "
        f"{plural(rounds_of(clients), 'round')} each",
        f"worlds with two live ends or more, by phases, rounds and keys: {len(found.marks):,}",
        f"transitions: {found.transitions:,}",
        f"steps deep: {found.depth:,}",
    ]
    if found.is_complete:
        lines[-1] += ", and there are no other worlds"
    print("\n".join(lines))
    print(paragraph(numbered(found)) if found.story else "no promise was broken so far")
    return int(bool(found.story))


if __name__ == "__main__":
    run_program(main)
