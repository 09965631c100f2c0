"""What every adversary stands on: proxy, deeds of frames, verdicts, observer, event log, rules."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import re
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab.catalogue import Attack, Catalogue, CutHere, Stage, attacked, run_outside
from lab.ciphertexts import repeats, shown_by
from lab.claims import Sets
from lab.events import DEEDS, KINDS, Step, parse_events, parsed, read_runs, run_of, shown
from lab.frames import OTHER_END, Frame, Frames, flipped, xored
from lab.observer import Observer
from lab.program import Program, Teller, details
from lab.proxy import Proxy
from lab.rules import chosen, glossary, lacking, require_loopback, rule_list
from lab.screen import as_typed
from lab.verdict import judge, should_win, summary
from program import UserError
from protocol_fsm import BadTag, ConnectionCut, LocalError, Session, UnexpectedOpcode, Watchers
from tests.helpers import Pair
from tests.network import PATIENCE_S, at_once, free_port
from tests.sessions import refusal

# A stage without protocol, sockets or ends --------------------------------------------------------


class Toy(Stage):
    """The frames of one connection, and a victim that meets whatever it is told to."""

    def __init__(self, *met: Exception, learned: str = "") -> None:
        self.outcome = SimpleNamespace(
            errors={"client": [], "server": [*met]}, learned=learned, broken=None
        )
        self.rounds = 0
        self.teller = Teller(
            Program("", {}, None, None, None),  # type: ignore[arg-type]
            argparse.Namespace(
                verbose=False,
                names=[],
                file=None,
                events=None,
                json=False,
                step=False,
                without=None,
            ),
        )
        self.are_bystanders_well = True

    def log(self, deed: str, frame: Frame) -> None:
        self.teller.log(deed, frame)

    def undergo(self, attack: Attack) -> list[Frame]:
        """Return what is delivered of three frames."""
        frames = [Frame("server", b"one"), Frame("client", b"two"), Frame("server", b"three")]
        return [*attacked(attack, iter(frames), self)]

    def bystanders_go_on(self) -> bool:
        return self.are_bystanders_well

    def honest_session(self) -> None:
        """Nothing to do."""

    def steps(self) -> list[Step]:
        """Return what the event log tells of the frames."""
        return run_of([parsed(event) for event in self.teller.events]).steps


def catalogued(run: Callable[..., Any], *, is_on_path: bool = True, **options: Any) -> Attack:
    """Return an attack that the server has to refuse with BadTag."""
    catalogue = Catalogue(goal=lambda outcome: str(outcome.learned))
    register = catalogue.on_path if is_on_path else catalogue.outside
    register("integrity", "server", BadTag, **options)(run)
    (attack,) = catalogue.attacks.values()
    return attack


# Deeds: a tap on three frames, what it delivers, and what the event log says of each -------------


def passes(frames: Frames, lab: Toy) -> Frames:
    return frames


def delivers_again(frames: Frames, lab: Toy) -> Frames:
    frame = next(frames)
    yield frame
    yield frame


def delivers_late(frames: Frames, lab: Toy) -> Frames:
    held = next(frames)
    yield next(frames)
    yield held


def delivers_its_own_first(frames: Frames, lab: Toy) -> Frames:
    held = next(frames)
    yield Frame("client", b"mine")
    yield held


def changes(frames: Frames, lab: Toy) -> Frames:
    yield flipped(flipped(next(frames), 0), 1)


def changes_a_copy(frames: Frames, lab: Toy) -> Frames:
    frame = next(frames)
    yield frame
    yield flipped(frame, 0)


def replaces(frames: Frames, lab: Toy) -> Frames:
    yield next(frames).replaced(Frame("server", b"tape"))


def reflects(frames: Frames, lab: Toy) -> Frames:
    yield next(frames).reflected().changed(b"eno")


def drops(frames: Frames, lab: Toy) -> Frames:
    next(frames)
    yield from ()


def cuts(frames: Frames, lab: Toy) -> Frames:
    yield next(frames)
    raise CutHere


def asks_for_more_than_there_are(frames: Frames, lab: Toy) -> Frames:
    for _ in range(9):
        yield next(frames)


DEEDS_OF: dict[Callable[..., Frames], tuple[str, str]] = {
    passes: ("one two three", "passed passed passed"),
    delivers_again: ("one one two three", "passed again passed passed"),
    delivers_late: ("two one three", "held passed late passed"),
    delivers_its_own_first: ("mine one two three", "held inserted late passed passed"),
    changes: ("noe two three", "changed passed passed"),
    changes_a_copy: ("one nne two three", "passed inserted passed passed"),
    replaces: ("tape two three", "replaced passed passed"),
    reflects: ("eno two three", "dropped reflected passed passed"),
    drops: ("two three", "dropped passed passed"),
    cuts: ("one", "passed"),
    asks_for_more_than_there_are: ("one two three", "passed passed passed"),
}


@pytest.mark.parametrize("tap", DEEDS_OF, ids=lambda tap: tap.__name__)
def test_the_log_tells_what_a_tap_did_with_each_frame(tap: Callable[..., Frames]) -> None:
    lab = Toy()
    delivered, kinds = DEEDS_OF[tap]
    attack = catalogued(tap)
    assert " ".join(frame.message.decode() for frame in lab.suffer(attack)) == delivered
    assert [step.kind for step in lab.steps()] == kinds.split()


def test_every_deed_of_the_log_is_done_by_some_tap() -> None:
    told = {kind for _, kinds in DEEDS_OF.values() for kind in kinds.split()}
    assert told == KINDS.keys() - {"answered"}
    assert {deed for deeds in DEEDS.values() for deed in deeds} <= told


def test_a_made_frame_says_from_which_it_was_made() -> None:
    lab = Toy()
    lab.suffer(catalogued(changes))
    (step,) = [step for step in lab.steps() if step.kind == "changed"]
    assert (step.sent, step.arrived) == (b"one", b"noe")
    lab = Toy()
    lab.suffer(catalogued(reflects))
    (step,) = [step for step in lab.steps() if step.kind == "reflected"]
    assert (step.to, step.sent, step.arrived) == ("client", b"one", b"eno")


def test_the_answers_to_an_outsider_are_told_as_answers() -> None:
    lab = Toy()
    lab.log("inserted", Frame("server", b"mine"))
    lab.log("sent", Frame("client", b"no"))
    assert [(step.kind, step.source) for step in lab.steps()] == [
        ("inserted", "client"),
        ("answered", "server"),
    ]
    assert OTHER_END == {"client": "server", "server": "client"}


# Verdicts -----------------------------------------------------------------------------------------


def broken(frames: Frames, lab: Toy) -> Frames:
    """An attack with a mistake in it."""
    yield next(frames)
    raise TypeError("no such thing")


def words_of(lab: Toy, attack: Attack) -> tuple[bool, str]:
    lab.suffer(attack)
    result = judge(attack, lab)
    return result.as_expected, result.words


def test_a_verdict_is_what_the_victims_did() -> None:
    attack = catalogued(passes)
    assert words_of(Toy(BadTag()), attack) == (True, "server: BadTag")
    assert words_of(Toy(UnexpectedOpcode()), attack) == (False, "server: UnexpectedOpcode")
    assert words_of(Toy(), attack) == (False, "server: nothing")
    assert words_of(Toy(BadTag(), learned="a secret"), attack) == (False, "WON: a secret")


def test_an_attack_that_raises_is_broken_even_if_the_server_refused_something() -> None:
    words = "the attack raised TypeError: no such thing"
    assert words_of(Toy(BadTag()), catalogued(broken)) == (False, words)


def test_harm_to_a_bystander_is_no_defence() -> None:
    lab = Toy(BadTag())
    lab.are_bystanders_well = False
    assert words_of(lab, catalogued(passes)) == (False, "a bystander was harmed")


def exits(frames: Frames, lab: Toy) -> Frames:
    yield next(frames)
    sys.exit(0)


def interrupts(frames: Frames, lab: Toy) -> Frames:
    yield next(frames)
    raise KeyboardInterrupt


def closes_itself(frames: Frames, lab: Toy) -> Frames:
    yield next(frames)
    raise GeneratorExit


def uses_a_client_wrongly(frames: Frames, lab: Toy) -> Frames:
    yield next(frames)
    raise LocalError("not now")


def addresses_nobody(frames: Frames, lab: Toy) -> Frames:
    yield replace(next(frames), to="sever")


def controls_the_terminal(frames: Frames, lab: Toy) -> Frames:
    """\x1b[2J clears it."""
    yield next(frames)
    raise ValueError("\x1b[2J\nrefused")


def yields_from_outside(lab: Toy) -> Frames:
    yield Frame("server", b"never")


@pytest.mark.parametrize(
    ("tap", "words"),
    [
        (interrupts, "KeyboardInterrupt: "),
        (closes_itself, "GeneratorExit: "),
        (uses_a_client_wrongly, "LocalError: not now"),
        (addresses_nobody, "ValueError: a frame goes to client or server, not to 'sever'"),
        (controls_the_terminal, r"ValueError: \x1b[2J\nrefused"),
    ],
)
def test_a_mistake_of_any_kind_is_no_defence(tap: Callable[..., Frames], words: str) -> None:
    assert words_of(Toy(BadTag()), catalogued(tap)) == (False, f"the attack raised {words}")
    assert catalogued(tap).story.isprintable()


def test_a_line_is_escaped_before_it_is_coloured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lab.screen.is_coloured", lambda: True)
    lab = Toy(learned="\x1b[2J")
    lab.teller.play(catalogued(passes), lab)
    line = f"{catalogued(passes).story:<53}WON: \\x1b[2J"
    assert capsys.readouterr().out == f"\x1b[1;31m{line}\x1b[0m\n"


def test_a_command_is_shown_as_it_is_typed_on_this_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert (as_typed(Path("my own.py")), as_typed("own.py")) == ("'my own.py'", "own.py")
    monkeypatch.setattr(sys, "platform", "win32")
    assert (as_typed("my own.py"), as_typed(r"sub\own.py")) == ('"my own.py"', r"sub\own.py")


@pytest.mark.parametrize("columns", [79, 119])
def test_all_that_is_told_of_an_attack_is_wrapped_between_words_and_indented(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lab.screen.columns", lambda: columns)
    monkeypatch.setattr("lab.screen.is_coloured", lambda: True)
    words = " ".join(["the-server adds what its-client has-not sent"] * 9)
    lab = Toy(BadTag(), learned=words)
    result = lab.teller.play(catalogued(passes), lab)
    lab.teller.say(details(result, [], lab, str))
    lab.teller.say(f"passes: skipped, {words}")
    told = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out)
    assert columns - 20 < max(map(len, told.splitlines())) <= columns
    assert " ".join(told.split()).count(words) == 3
    indents = [len(line) - len(line.lstrip()) for line in told.splitlines()]
    assert {*indents} == {0, 2, 4}, "what is cut off has two more than the line has"


def test_an_attack_from_outside_that_is_a_generator_is_broken() -> None:
    lab = Toy(BadTag())
    run_outside(catalogued(yields_from_outside, is_on_path=False), lab)
    assert judge(catalogued(passes), lab).words.endswith("is a function that returns nothing")


def test_a_goal_that_raises_is_a_mistake_in_the_attack() -> None:
    attack = replace(catalogued(passes), goal=lambda outcome: outcome.no_such_thing)
    as_expected, words = words_of(Toy(BadTag()), attack)
    assert not as_expected
    assert words.startswith("the attack raised AttributeError: ")


released = threading.Event()


class Hasty(Toy):
    """A stage that waits for no attack; its victim has met what the attack should lead to."""

    def undergo(self, attack: Attack) -> list[Frame]:
        self.thread = threading.Thread(target=super().undergo, args=(attack,))
        if not attack.is_on_path:
            self.thread = threading.Thread(target=run_outside, args=(attack, self))
        self.thread.start()
        self.thread.join(0.05)
        return []


def hangs_on_path(frames: Frames, lab: Toy) -> Frames:
    yield next(frames)
    released.wait()


def swallows_all(frames: Frames, lab: Toy) -> Frames:
    while not released.is_set():
        with contextlib.suppress(BaseException):
            yield next(frames)


def never_stops(frames: Frames, lab: Toy) -> Frames:
    frame = next(frames)
    while True:
        yield frame


def hangs_outside(lab: Toy) -> None:
    released.wait()


def leaves_a_thread(frames: Frames, lab: Toy) -> Frames:
    threading.Thread(target=hangs_outside, args=(lab,)).start()
    yield from frames


def leaves_a_thread_outside(lab: Toy) -> None:
    threading.Thread(target=hangs_outside, args=(lab,)).start()


@pytest.mark.parametrize(
    "run",
    [
        hangs_on_path,
        swallows_all,
        never_stops,
        hangs_outside,
        leaves_a_thread,
        leaves_a_thread_outside,
    ],
    ids=lambda run: run.__name__,
)
def test_an_attack_that_has_not_ended_is_wrong_whatever_the_server_met(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a deadline is the defence, to do nothing at all would look like one."""
    monkeypatch.setattr("lab.catalogue.OUTSIDE_S", 0.05)
    monkeypatch.setattr("lab.catalogue.GRACE_S", 0.05)
    released.clear()
    lab = Hasty(BadTag())
    attack = catalogued(run, is_on_path="outside" not in run.__name__)
    try:
        assert words_of(lab, attack) == (False, "the attack has not ended")
    finally:
        released.set()
    lab.thread.join()
    if run is not never_stops:
        assert words_of(Hasty(BadTag()), attack) == (True, "server: BadTag"), "in time, now"


def opens_no_file(lab: Toy) -> None:
    Path("nowhere at all").read_bytes()


def loses_its_connection(lab: Toy) -> None:
    raise ConnectionResetError(104, "reset")


def test_an_attack_that_ends_the_program_or_opens_no_file_is_broken() -> None:
    assert words_of(Toy(BadTag()), catalogued(exits)) == (False, "the attack raised SystemExit: 0")
    lab = Toy(BadTag())
    run_outside(catalogued(opens_no_file, is_on_path=False), lab)
    assert isinstance(lab.outcome.broken, FileNotFoundError)
    lab = Toy(BadTag())
    run_outside(catalogued(loses_its_connection, is_on_path=False), lab)
    assert lab.outcome.broken is None, "which a server may well do to it"


def test_an_attack_from_outside_that_hurts_the_victim_is_no_success() -> None:
    attack = catalogued(loses_its_connection, is_on_path=False)
    lab = Toy(BadTag())
    lab.outcome.errors["client"].append(ConnectionCut(False))
    assert judge(attack, lab)[1:3] == (False, "the victim was harmed")
    assert judge(replace(attack, is_on_path=True), lab).as_expected, "it is the one attacked"


@pytest.mark.parametrize(
    ("learned", "words", "as_expected"),
    [
        ("time", "not prevented", True),
        ("time and money", "WON: time and money", False),
        ("", "won nothing, but should have", False),
    ],
)
def test_what_nothing_prevents_is_won_exactly(learned: str, words: str, as_expected: bool) -> None:
    attack = catalogued(passes, noticed="the clock", wins="time")
    for is_weakened in (False, True):
        lab = Toy(BadTag(), learned=learned)
        lab.is_weakened = is_weakened
        assert words_of(lab, attack) == (as_expected, words)


def test_an_attack_that_nothing_prevents_must_still_be_noticed() -> None:
    noticed = catalogued(passes, noticed="the clock", wins="time")
    assert words_of(Toy(learned="time"), noticed) == (False, "server: nothing")


def test_without_rules_what_counts_is_whether_it_won_and_should_have() -> None:
    def judged(won: str, can_win: bool | None, *met: Exception) -> tuple[str, str]:
        lab = Toy(*met, learned=won)
        lab.is_weakened = True
        result = judge(catalogued(passes), lab, can_win)
        return result.kind, result.words

    for may in (True, None):
        assert judged("a secret", may) == ("won", "WON: a secret")
    assert judged("a secret", False) == ("wrong", "WON: a secret")
    assert judged("", True, BadTag()) == ("wrong", "won nothing, but should have")
    for may in (False, None):
        assert judged("", may, UnexpectedOpcode()) == ("refused", "server: UnexpectedOpcode")
        assert judged("", may, ConnectionCut(False)) == ("refused", "nothing won")


def test_an_attack_should_win_without_a_minimal_set_and_without_no_smaller_one() -> None:
    found = Sets(2, {"flip": [["tag"], ["iv", "id"]]}, {"hold": "the clock"})

    def can_win(*taken: str, attack: str = "flip") -> bool | None:
        return should_win(attack, frozenset(taken), found)

    assert can_win("tag") is can_win("iv", "id") is True
    assert can_win("iv") is can_win("id", "echo") is can_win("tag", attack="hold") is False
    assert can_win("tag", "iv") is None, "more may be in its way"
    assert can_win("iv", "echo", "turn") is None, "more than were searched"
    assert can_win("tag", attack="my-own") is None


def test_the_table_counts_each_result_once() -> None:
    good = judge(catalogued(passes), Toy(BadTag()))
    bad = judge(catalogued(passes), Toy())
    won = judge(catalogued(passes), Toy(BadTag(), learned="a secret"), can_win=True)
    late = judge(
        catalogued(passes, noticed="the clock", wins="time"), Toy(BadTag(), learned="time")
    )
    other = judge(
        replace(catalogued(cuts, noticed="x " * 99), family="order", wins=""), Toy(BadTag())
    )
    lines = summary([good, bad, won, late, good, other]).splitlines()
    assert lines[0].split() == ["family", "attacks", "refused", "not", "prevented", "won", "wrong"]
    assert lines[1].split() == ["integrity", "5", "2", "1", "1", "1"]
    assert lines[2].split() == ["order", "1", "0", "1", "0", "0"]
    assert lines[3] == "passes: noticed by the clock; won: time"
    assert " ".join(lines[4:]).split() == ["cuts:", "noticed", "by", *["x"] * 99]


def test_an_attack_without_a_docstring_has_a_story() -> None:
    assert catalogued(passes).story == catalogued(exits).story == "(an attack without a docstring)"
    assert catalogued(broken).story == "An attack with a mistake in it."
    assert catalogued(tells_at_length).story == "The first line is the story."


def tells_at_length(frames: Frames, lab: Toy) -> Frames:
    """
    The first line is the story.

    The others are for readers of the code.
    """
    return frames


def test_two_attacks_of_one_name_and_half_a_refusal_are_refused_in_one_sentence() -> None:
    catalogue = Catalogue(goal=lambda outcome: "")
    catalogue.on_path("order", "server", BadTag)(passes)
    with pytest.raises(UserError, match=r"^there are two attacks named passes$"):
        catalogue.on_path("order", "server", BadTag)(passes)
    halves: list[tuple[str, type[Exception] | None]] = [
        ("sever", BadTag),
        ("", BadTag),
        ("server", None),
    ]
    for who, error in halves:
        with pytest.raises(UserError, match=r"^cuts is refused by "):
            catalogue.on_path("order", who, error)(cuts)
    catalogue.on_path("secrecy", "", None)(cuts)
    assert [*catalogue.attacks] == ["passes", "cuts"]


# What ciphertexts show ----------------------------------------------------------------------------

TEXTS = [b"[100.0,20.5,21.0,22.%d]" % number * 40 for number in range(10)]


def test_random_bytes_show_nothing() -> None:
    for size in (0, 1, 40, 400, 40_000):
        assert shown_by([hashlib.shake_256(b"%d" % size).digest(size)]) == ""
    assert not repeats(hashlib.sha256().digest(), TEXTS[0])


def test_ciphertexts_that_are_bad_ones_show_something() -> None:
    ecb = [hashlib.md5(bytes([n % 3])).digest() for n in range(6)]
    assert "two blocks" in shown_by([b"".join(ecb)])
    per_message = [xored(text, bytes([n]) * len(text)) for n, text in enumerate(TEXTS)]
    assert "more frequent" in shown_by(
        [text[start : start + 15] for text in per_message for start in range(0, 800, 15)]
    )
    assert repeats(xored(TEXTS[0], b"\x5a" * 99), TEXTS[0])
    assert repeats(xored(TEXTS[0], b"key" * 99), TEXTS[0])


# The proxy, which knows no protocol ---------------------------------------------------------------


def read_line(recv: Callable[[int], bytes]) -> bytes:
    """Another framing than ours: lines of text."""
    line = b""
    while not line.endswith(b"\n"):
        byte = recv(1)
        if not byte:
            raise EOFError
        line += byte
    return line[:-1]


def write_line(sendall: Callable[[bytes], object], message: bytes) -> None:
    sendall(message + b"\n")


def test_the_proxy_carries_any_framing_and_what_the_tap_yields() -> None:
    def shout(frames: Frames) -> Frames:
        for frame in frames:
            yield Frame(frame.to, frame.message.upper())
            if frame.message == b"echo":
                yield Frame("client", frame.message)

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> list[bytes]:
            connection, _ = listener.accept()
            with connection:
                heard = [read_line(connection.recv), read_line(connection.recv)]
                connection.sendall(b"bye\n")
                return heard

        def talk() -> list[bytes]:
            with (
                Proxy(listener.getsockname(), shout, read_line, write_line) as proxy,
                socket.create_connection(proxy.address) as sock,
            ):
                sock.sendall(b"hel")
                sock.sendall(b"lo\necho\n")
                return [read_line(sock.recv), read_line(sock.recv)]

        heard, told = at_once(serve, talk)
    assert heard == [b"HELLO", b"ECHO"]
    assert told == [b"echo", b"BYE"]


def test_each_end_may_close_its_side_and_the_other_goes_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> list[bytes]:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(PATIENCE_S)
                heard = [read_line(connection.recv), connection.recv(1)]
                connection.sendall(b"bye\n")
                return heard

        def talk() -> list[bytes]:
            with (
                Proxy(listener.getsockname(), iter, read_line, write_line) as proxy,
                socket.create_connection(proxy.address, PATIENCE_S) as sock,
            ):
                sock.sendall(b"hello\n")
                sock.shutdown(socket.SHUT_WR)
                told = [read_line(sock.recv), sock.recv(1)]
                proxy._thread.join(PATIENCE_S)
                assert not proxy._thread.is_alive(), "both ends have closed"
                return told

        assert at_once(serve, talk) == [[b"hello", b""], [b"bye", b""]]


@pytest.mark.parametrize(
    ("tap", "error"),
    [(iter, BrokenPipeError), (partial(map, replace), OverflowError)],
    ids=["an end has closed", "a tap that is no generator"],
)
def test_what_cannot_be_delivered_ends_no_connection(
    tap: Callable[[Frames], Frames], error: type[Exception]
) -> None:
    def write(sendall: Callable[[bytes], object], message: bytes) -> None:
        if message == b"bad":
            raise error
        write_line(sendall, message)

    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        Proxy(listener.getsockname(), tap, read_line, write) as proxy,
        socket.create_connection(proxy.address) as sock,
    ):
        sock.sendall(b"bad\ngood\n")
        with listener.accept()[0] as connection:
            assert read_line(connection.recv) == b"good"


def test_a_proxy_to_which_nobody_comes_ends_at_once() -> None:
    nobody = ("127.0.0.1", free_port())
    with (
        Proxy(nobody, iter, read_line, write_line) as one,
        Proxy(nobody, iter, read_line, write_line) as other,
    ):
        pass
    for proxy in (one, other):
        assert not proxy._thread.is_alive()
        with pytest.raises(ConnectionError):
            socket.create_connection(proxy.address)


def test_a_proxy_ends_though_its_tap_and_its_server_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = threading.Event()
    release = threading.Event()

    def stuck(frames: Frames) -> Frames:
        begun.set()
        release.wait(PATIENCE_S)
        yield from frames

    monkeypatch.setattr("lab.proxy.PATIENCE_S", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with Proxy(listener.getsockname(), stuck, read_line, write_line) as proxy:
            sock = socket.create_connection(proxy.address, PATIENCE_S)
            assert begun.wait(PATIENCE_S)
        with sock:
            assert sock.recv(1) == b""
    release.set()
    proxy._thread.join(PATIENCE_S)


def test_a_frame_that_cannot_be_written_is_a_mistake_in_the_attack() -> None:
    def write_line(sendall: Callable[[bytes], object], message: bytes) -> None:
        raise OverflowError("too big")

    lab = Toy()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        tap = partial(attacked, catalogued(passes), lab=lab)
        with (
            Proxy(listener.getsockname(), tap, lambda recv: recv(1), write_line) as proxy,
            socket.create_connection(proxy.address) as sock,
        ):
            sock.sendall(b"1")
            assert sock.recv(1) == b"", "cut, as after any mistake"
    assert isinstance(lab.outcome.broken, OverflowError)


# The observer -------------------------------------------------------------------------------------


def test_the_observer_notes_refusals_and_new_names_of_keys_and_changes_nothing() -> None:
    observer = Observer()
    pair = Pair()
    server = observer.watcher("server")
    client = observer.watcher("client")
    pair.server.watchers = Watchers([server])
    pair.client.watchers = Watchers([client])
    pair.hello()
    pair.challenge()
    hello, challenge = (message.hex() for message in pair.transcript)
    refusal(pair.server, pair.transcript[0])  # the farewell after it moves no key
    told = observer.told()
    assert [(line["event"], line["by"], line["message"]) for line in told] == [
        ("keys", "client", hello),
        ("keys", "client", challenge),
        ("keys", "server", hello),
        ("keys", "server", challenge),
        ("refused", "server", hello),
    ]
    assert told[0]["keys"] == told[2]["keys"] != told[1]["keys"]
    assert told[1]["keys"] == told[3]["keys"] == pair.client.fingerprints()
    assert told[4]["error"] == "UnexpectedOpcode"
    assert observer.told() == []


# The event log ------------------------------------------------------------------------------------

SENT = '{"attack": "x", "event": "sent", "to": "server", "message": "0a"}'
CHANGED = (
    '{"attack": "x", "event": "inserted", "to": "server", "message": "0b", '
    '"deed": "changed", "origin": "0a"}'
)
KEYS = '{"attack": "x", "event": "keys", "by": "client", "message": "", "keys": {"K": "0a"}}'
ENDED = '{"attack": "x", "event": "ended", "by": "server", "error": "BadTag"}'


def test_lines_of_unknown_kinds_are_left_out_and_named() -> None:
    others = [
        '{"attack": "x", "event": "verdict", "words": "ok"}',
        '{"attack": "x", "event": "keyring", "by": "nobody", "more": [1, {}]}',
    ]
    events, unknown = parse_events("\n".join([others[0], SENT, others[1]]), "log")
    assert [event["message"] for event in events] == [b"\x0a"]
    assert unknown == ["verdict", "keyring"]


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "hello",
        "[]",
        "7",
        '"x"',
        "null",
        "{}",
        '{"attack": "x"}',
        '{"event": "ended"}',
        "[" * 100_000,
        SENT.replace('"x"', "null"),
        SENT.replace('"sent"', "7"),
        SENT.replace('"sent"', '["sent"]'),
        SENT.replace("server", "nobody"),
        SENT.replace('"server"', '["server"]'),
        SENT.replace("0a", "0"),
        SENT.replace('"0a"', "7"),
        SENT.replace(', "message": "0a"', ""),
        CHANGED.replace('"deed": "changed", ', ""),
        CHANGED.replace("changed", "frobnicated"),
        CHANGED.replace("changed", "held"),
        CHANGED.replace("changed", "passed"),
        CHANGED.replace('"changed"', '["changed"]'),
        CHANGED.replace("0a", "0"),
        KEYS.replace('"0a"', "[1]"),
        KEYS.replace('{"K": "0a"}', '"K"'),
        ENDED.replace("server", "nobody"),
        ENDED.replace('"BadTag"', "7"),
        ENDED.replace('"by"', '"again": 7, "by"'),
    ],
)
def test_a_line_that_is_no_event_is_named(bad: str) -> None:
    parse_events(f"{SENT}\n{CHANGED}\n{KEYS}\n{ENDED}\n", "my log")
    with pytest.raises(UserError, match=r"^my log line 2 is not an event$"):
        parse_events(f"{SENT}\n{bad}\n", "my log")


def test_words_of_a_log_are_escaped_wherever_they_are() -> None:
    line = KEYS.replace('{"K": "0a"}', r'{"K\u001b": "\u202e"}').replace('"x"', r'"x\ud800"')
    assert line.count("\\u") == 3
    (event,), _ = parse_events(line, "log")
    assert (event["attack"], event["keys"]) == ("x\\ud800", {"K\\x1b": "\\u202e"})


def test_a_log_that_is_empty_or_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    (tmp_path / "noise").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"^there are no events in .*empty$"):
        read_runs(tmp_path / "empty")
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "noise"):
        with pytest.raises(UserError, match=r"^cannot read "):
            read_runs(path)


def test_of_many_steps_the_untouched_ones_are_left_out_first() -> None:
    steps = [Step("passed", "server", b"a", b"a") for _ in range(40)]
    steps[20] = Step("changed", "server", b"a", b"b")
    numbers = [number if step else f"{number} more" for number, step in shown(steps)]
    assert numbers == [1, 2, 3, 4, "16 more", 21, "15 more", 37, 38, 39, 40]
    assert [number for number, _ in shown(steps[:14])] == [*range(1, 15)]


# Rules --------------------------------------------------------------------------------------------


class Careless(Session):
    """A rule of Session, taken out."""


class OneWay:
    """Go one way. Not two."""


class OtherWay:
    length = 3

    def step(self) -> None:
        """Go the other way, and on, and on, and on, and on, and on, to where a line has an end."""


def test_what_rules_mean_stands_in_their_classes() -> None:
    assert [*glossary({"one": OneWay, "other": OtherWay}, ["one"])] == [
        "rule                  what the endpoints do without it",
        "one                   Go one way",
        "other                 Go the other way, and on, and on, and on, and on, and on,\n"
        "                      to where a line has an end",
        "documented            Follow the original documents, without one",
    ]


@pytest.mark.parametrize("text", ["", ",", "tag,", "tag,,echo", " , "])
def test_a_list_of_rules_without_a_name_in_it_is_refused(text: str) -> None:
    assert rule_list(" tag , echo") == ["tag", "echo"]
    with pytest.raises(ValueError):
        rule_list(text)


def test_rules_are_chosen_by_name_in_the_order_of_the_table() -> None:
    rules = {"one": int, "two": str, "three": Careless}
    assert chosen(["three", "one"], rules, ["two"]) == [int, Careless]
    assert chosen(["documented"], rules, ["two"]) == [str]
    sentence = "^there is no rule nonsense; there are: documented, one, two, three$"
    with pytest.raises(UserError, match=sentence):
        chosen(["one", "nonsense"], rules, [])


def test_a_part_lacks_its_own_rules_and_no_others() -> None:
    assert lacking(Session, [int, Careless]).__mro__[1:3] == (Careless, Session)
    assert lacking(dict, [Careless]).__mro__[1] is dict


def test_only_loopback_is_allowed() -> None:
    assert require_loopback("127.0.0.1") == "127.0.0.1"
    with pytest.raises(UserError, match=r"loopback only, and 192\.0\.2\.1 is not"):
        require_loopback("192.0.2.1")
