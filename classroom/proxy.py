"""The man in the middle by hand: you decide what becomes of each message between real programs.

    python server.py --patient
    python -m classroom.proxy --listen 9000 --server 127.0.0.1:9999
    python client.py 1 --port 9000 --patient

With `--without tag` it brings a server and a client of its own that lack that rule, and keeps a
score: there you can win. With `--own` they have all rules.

Rules in this module:
- nothing is delivered by itself: messages wait in a queue, and the first of them is in hand;
- commands change the queue, and `undo` reverts the last change; a delivered message is gone;
- the end of a stream waits in the queue too, and is passed on in its turn;
- one lock guards the queue: the keyboard has one thread, the sockets have others.
It listens on loopback only. It has no keys but those of a key log, and never seals anything.
"""

from __future__ import annotations

import argparse
import cmd
import contextlib
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from attacks import edited
from channel import POLL_S
from classroom.keylog import describe_message, dump_message, plaintext_of, read_keylog
from classroom.proxy_commands import END, HELP, Command, parse, parse_script
from classroom.proxy_pair import OwnPair
from endpoint import HOST, OPCODE_NAMES, PORT, opcode_of
from lab.frames import OTHER_END, Frame, flipped
from lab.rules import rule_list
from program import (
    NoConnection,
    Parser,
    UserError,
    host_and_port,
    plural,
    port_number,
    reason_of,
    run_program,
)
from protocol_fsm import HEADER, ProtocolError, read_frame, write_frame
from server import listen

LISTED = 18  # messages; a screen has no room for more

# The sockets --------------------------------------------------------------------------------------


def reach(server: tuple[str, int]) -> socket.socket:
    """Return a connection. Raises NoConnection."""
    try:
        sock = socket.create_connection(server, 5.0)
    except (OSError, UnicodeError) as error:
        raise NoConnection("no server at {}:{}: ".format(*server) + reason_of(error)) from None
    sock.settimeout(None)
    return sock


def received(sock: socket.socket) -> bytes:
    """Return the next message; nothing at the end of the stream, or where there is no frame."""
    try:
        return read_frame(sock.recv)
    except (ProtocolError, OSError):
        return b""


class Wire:
    """Listens on a port of our choice, and has a connection to the server for each client in turn.

    It calls `began` with the reason why there is no server (empty if there is one), and `arrived`
    with the sender of each message and its bytes; no bytes are the end of that stream. What is
    delivered and when, another thread decides. That is why lab/proxy.py, where one generator does
    both, is no help here. Raises NoConnection if the port is taken.
    """

    def __init__(
        self,
        port: int,
        server: tuple[str, int],
        began: Callable[[str], object],
        arrived: Callable[[str, bytes], object],
    ) -> None:
        self._server = server
        self._listener = listen(HOST, port)
        self.address: tuple[str, int] = self._listener.getsockname()
        self._began = began
        self._arrived = arrived
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._closing = threading.Event()
        self._over = threading.Event()
        self._ends: dict[str, socket.socket] = {}
        self._own: socket.socket | None = None

    def __enter__(self) -> Wire:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.set()
        self.finish()
        self._thread.join(5.0)  # a server that never closes must not hold us up for ever
        self._listener.close()

    def _run(self) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError), self._listener.accept()[0] as client:
                try:
                    with reach(self._server) as server:
                        self._carry({"client": client, "server": server})
                except NoConnection as error:
                    self._began(str(error))

    def _carry(self, ends: dict[str, socket.socket]) -> None:
        self._over.clear()
        self._ends = ends
        self._began("")
        if self._closing.is_set():
            self.finish()
        threads = [
            threading.Thread(target=self._read, args=end, daemon=True) for end in ends.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._over.wait()

    def _read(self, sender: str, sock: socket.socket) -> None:
        while message := received(sock):
            self._arrived(sender, message)
        self._arrived(sender, b"")

    def send(self, frame: Frame) -> bool:
        """Deliver a message, or the end of a stream; return whether the end was still there."""
        try:
            if frame.message:
                write_frame(self._ends[frame.to].sendall, frame.message)
            else:
                self._ends[frame.to].shutdown(socket.SHUT_WR)
                self._hang_up(frame.to)
        except OSError:  # it has closed
            return False
        return True

    def finish(self) -> None:
        """End the connection, whatever its state."""
        self._over.set()
        self._hang_up("client")
        for sock in self._ends.values():
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def dial(self) -> None:
        """Connect as a client of our own, which says nothing and hears nothing."""
        self._own = socket.create_connection(self.address)

    def _hang_up(self, end: str) -> None:
        if end == "client" and self._own:
            self._own.close()
            self._own = None


# The table at which the man in the middle sits ----------------------------------------------------


class Item(NamedTuple):
    """A message in the queue; without bytes, the end of a stream."""

    number: int  # in the order of arrival; 0: an end of a stream, or made by the user
    connection: int
    frame: Frame


class Desk(NamedTuple):
    """The messages that wait, the first of them in hand, and those put aside."""

    waiting: tuple[Item, ...] = ()
    held: tuple[Item, ...] = ()

    def in_hand(self) -> Item:
        if not self.waiting:
            raise UserError("there is no message in hand")
        return self.waiting[0]

    def behind(self, *items: Item) -> Desk:
        return self._replace(waiting=(*items, *self.waiting))

    def rest(self) -> Desk:
        return self._replace(waiting=self.waiting[1:])

    def changed(self, frame: Frame) -> Desk:
        return self.rest().behind(self.in_hand()._replace(frame=frame))


class Table(cmd.Cmd):
    """The queue, and the commands that change it; each do_ method is one of HELP."""

    def __init__(
        self, port: int, server: tuple[str, int], keylog: str | None, pair: OwnPair | None = None
    ) -> None:
        super().__init__()
        self._pair = pair
        self.prompt = "proxy> " if sys.stdin.isatty() and sys.stdout.isatty() else ""
        self.wire = Wire(port, server, self._begin, self._arrive)
        self._keylog = Path(keylog) if keylog else None
        self._in_script = False
        self._at_prompt = False
        self._changed = threading.Condition()  # guards all that follows
        self._desks = [Desk()]  # the last is the present one; the others are for undo
        self._came: list[Item] = []
        self._forwarded: set[int] = set()
        self._connection = 0
        tapes = pair.tapes if pair else {}
        self._tapes = {
            name: [Item(0, self._connection, frame) for frame in tape]
            for name, tape in tapes.items()
        }
        self._connected = False
        self._closed: set[str] = set()
        self._ended = False  # a connection, and no line of the script has waited for it
        self._auto = False
        self._goal = ""
        self._failure = ""  # to reach the goal, or the server

    @property
    def _desk(self) -> Desk:
        return self._desks[-1]

    def _say(self, text: str) -> None:
        """Print lines. A prompt, and what has been typed behind it, move below them."""
        typed = ""
        if self._at_prompt:
            typed = self.prompt + sys.modules["readline"].get_line_buffer()
            text = f"\r{' ' * len(typed)}\r{text}"
        with contextlib.suppress(OSError):  # a closed terminal disturbs no connection
            sys.stdout.write(f"{text}\n{typed}")
            sys.stdout.flush()

    def tell(self, text: str) -> None:
        """Print what an end of the pair did, if there is anything to say."""
        with self._changed:
            if text:
                self._say(text)

    def leave(self) -> None:
        """Ignore messages that still come, and end the line of the prompt."""
        with self._changed:
            self._connected = False
            if self.prompt:
                print()

    # What comes from the sockets, in their threads

    def _begin(self, failure: str) -> None:
        with self._changed:
            self._failure = failure
            self._connected = not failure
            self._closed = set()
            if failure:
                self._say(failure)
            else:
                if self._pair:
                    self._pair.score.begin()
                self._connection += 1
                self._say(f"connection {self._connection} has begun")
            self._settle()

    def _arrive(self, sender: str, message: bytes) -> None:
        with self._changed:
            if not self._connected:  # it was cut
                return
            number = len(self._came) + 1 if message else 0
            item = Item(number, self._connection, Frame(OTHER_END[sender], message))
            if message:
                self._came.append(item)
                self._announce(item)
            self._desks = [desk._replace(waiting=(*desk.waiting, item)) for desk in self._desks]
            self._settle()

    def _settle(self) -> None:
        """Pass on the messages that nobody has to decide about."""
        while self._connected and self._desk.waiting:
            message = self._desk.in_hand().frame.message
            if message and not self._auto and self._goal in ("", OPCODE_NAMES.get(message[0])):
                self._goal = ""
                break
            self._deliver()
        self._changed.notify_all()

    def _deliver(self) -> None:
        item = self._desk.in_hand()
        self._desks = [self._desk.rest()]  # what is forwarded cannot be undone
        taken = self.wire.send(item.frame)
        if item.frame.message:
            self._forwarded.add(item.number)
            self._say(f"forwarded {self._name(item)}" + ("" if taken else ": nobody is there"))
            return
        sender = OTHER_END[item.frame.to]
        self._closed.add(sender)
        self._say(f"the {sender} has closed its side")
        if len(self._closed) == 2:
            self._finish()

    def _finish(self) -> None:
        if self._goal not in ("", END):
            self._failure = f"connection {self._connection} was over before a {self._goal} came"
        self._connected = False
        self._ended = True
        self._goal = ""
        self._desks = [Desk()]
        self._say(f"connection {self._connection} is over")
        self.wire.finish()

    # How messages are shown

    def _announce(self, item: Item) -> None:
        waits = " (it waits)" if self._desk.waiting else ""
        self._say("\n".join(self._described(item, waits)))

    def _name(self, item: Item) -> str:
        message = item.frame.message
        kind = opcode_of(message)
        if not item.number:
            return f"yours, {kind} to {item.frame.to}"
        changed = ", changed" if message != self._came[item.number - 1].frame.message else ""
        return f"#{item.number} {kind} to {item.frame.to}{changed}"

    def _described(self, item: Item, more: str = "") -> list[str]:
        """Return a message in words, with its plaintext if the key log has its keys."""
        message = item.frame.message
        who = f"#{item.number}" if item.number else "yours,"
        title = f"{who} to {item.frame.to}{more}: "
        if not self._keylog:
            return describe_message(message, None, title)
        try:
            plaintext = plaintext_of(read_keylog(self._keylog, say=lambda _: None), message)
        except UserError as error:
            return [*describe_message(message, None, title), f"  {error}"]
        unknown = ["  plaintext: no key in the log fits"] if plaintext is None else []
        return describe_message(message, plaintext, title) + unknown

    # Commands, in the thread of the keyboard

    def preloop(self) -> None:
        """Let readline, if there is one, tell us when the prompt is on the screen."""
        with contextlib.suppress(ImportError, AttributeError):
            import readline

            if self.prompt and sys.platform != "win32":
                readline.set_pre_input_hook(lambda: setattr(self, "_at_prompt", True))

    def onecmd(self, line: str) -> bool:
        """Obey a person; a mistake costs one sentence and changes nothing."""
        self._at_prompt = False
        try:
            command = parse({"": "forward", "EOF": "quit"}.get(line.strip(), line))
            return command is not None and self.obey(command)
        except UserError as error:
            self._say(str(error))
        except KeyboardInterrupt:
            self._goal = ""
            self._say("interrupted")
        return False

    def run_script(self, commands: Sequence[tuple[str, Command]]) -> bool:
        """Obey a script, and return whether it has quit. Raises UserError with the place."""
        self._in_script = True
        for place, command in commands:
            try:
                if self.obey(command):
                    return True
            except UserError as error:
                raise type(error)(f"{place}: {error}") from None
        self._in_script = False
        return False

    def obey(self, command: Command) -> bool:
        """Carry out a command, and return whether it was `quit`. Raises UserError."""
        with self._changed:
            before = self._desk.waiting[:1]
            stop = bool(getattr(self, f"do_{command.name}")(*command.values))
            self._settle()
            after = self._desk.waiting[:1]
            if after and after != before:
                self._say(f"in hand: {self._name(after[0])}")
            return stop

    def _take(self, number: int, items: Sequence[Item], where: str) -> Item:
        for item in items:
            if item.number == number:
                return item
        raise UserError(f"no message {number} {where}; list names them all")

    def _reach(self) -> None:
        """Make a connection of our own for the messages that wait, if there is none."""
        if not self._connected and self._desk.waiting:
            self._ended = False
            self._failure = ""
            self.wire.dial()
            self._wait(lambda: self._connected)

    def _wait(self, until: Callable[[], bool]) -> None:
        while not until() and not self._failure:
            self._changed.wait(POLL_S)  # a wait without a limit holds up Ctrl-C on Windows
        if self._failure:
            failure = self._failure
            self._failure = ""
            self._goal = ""
            raise NoConnection(failure)

    def do_forward(self) -> None:
        self._reach()
        self._deliver()

    def do_drop(self) -> None:
        self._say(f"dropped {self._name(self._desk.in_hand())}")
        self._desks.append(self._desk.rest())

    def do_hold(self) -> None:
        item = self._desk.in_hand()
        desk = self._desk.rest()
        self._desks.append(desk._replace(held=(*desk.held, item)))
        self._say(f"put aside {self._name(item)}")

    def do_release(self, number: int) -> None:
        desk = self._desk
        item = self._take(number, desk.held, "was put aside")
        held = tuple(other for other in desk.held if other is not item)
        self._desks.append(desk.behind(item)._replace(held=held))

    def do_replay(self, number: int) -> None:
        self._desks.append(self._desk.behind(self._take(number, self._came, "has come")))

    def do_reflect(self) -> None:
        self._desks.append(self._desk.changed(self._desk.in_hand().frame.reflected()))

    def do_flip(self, place: int, mask: int) -> None:
        frame = self._desk.in_hand().frame
        if not -len(frame.message) <= place < len(frame.message):
            raise UserError(f"it has only {plural(len(frame.message), 'byte')}, from 0")
        flip = flipped(frame, place, mask)
        self._desks.append(self._desk.changed(flip))
        self._say(f"byte {place}: {frame.message[place]:02x} -> {flip.message[place]:02x}")

    def do_edit(self, field: str, value: int) -> None:
        frame = self._desk.in_hand().frame
        if len(frame.message) < HEADER.size:
            raise UserError("it has no whole header")
        edit = edited(frame, **{field: value})
        self._desks.append(self._desk.changed(edit))
        self._say(f"header: {frame.message[:7].hex(' ')} -> {edit.message[:7].hex(' ')}")

    def do_splice(self, name: str, number: int) -> None:
        tape = self._tapes.get(name, [])
        if not 1 <= number <= len(tape):
            raise UserError(f"there is no recording {name} with a message {number}")
        frame = self._desk.in_hand().frame.replaced(tape[number - 1].frame)
        self._desks.append(self._desk.changed(frame))
        self._say(f"{name} {number} in its place: {frame.message[:7].hex(' ')}")

    def do_inject(self, message: bytes, to: str) -> None:
        self._desks.append(self._desk.behind(Item(0, self._connection, Frame(to, message))))

    def do_undo(self) -> None:
        if len(self._desks) == 1:
            raise UserError("nothing to undo: what has been forwarded stays forwarded")
        self._desks.pop()
        self._say("undone")

    def do_record(self, name: str) -> None:
        tape = [item for item in self._came if item.connection == self._connection]
        if not tape:
            raise UserError("there are no messages to record")
        self._tapes[name] = tape
        self._say(f"{name}: {plural(len(tape), 'message')} of connection {self._connection}")

    def do_play(self, name: str, to: str) -> None:
        tape = [item for item in self._tapes.get(name, []) if item.frame.to == to]
        if not tape:
            raise UserError(f"there is no recording {name} with messages to the {to}")
        self._desks.append(self._desk.behind(*tape))
        self._say(f"{name}: {plural(len(tape), 'message')} to the {to}")

    def do_until(self, kind: str) -> None:
        if not self._in_script:  # a person has seen the past on the screen
            self._ended = False
            self._failure = ""
        self._reach()
        ended = self._ended
        self._ended = False
        if ended and kind == END:
            return
        if ended:  # deciding now: another run might end only after this line
            raise NoConnection(f"connection {self._connection} was over before a {kind} came")
        if not self._connected and not self._in_script:
            self._say("waiting for a client; Ctrl-C stops it")
        self._auto = False
        self._goal = kind
        self._settle()
        self._wait(lambda: not self._goal)
        self._ended = False

    def do_auto(self, is_on: bool) -> None:
        if is_on:
            self._reach()
        self._auto = is_on
        self._say("from now on all is forwarded" if is_on else "from now on you decide")

    def do_cut(self) -> None:
        if not self._connected:
            raise UserError("there is no connection to cut")
        self._finish()

    def do_list(self) -> None:
        fates = {
            "put aside": {item.number for item in self._desk.held},
            "waits": {item.number for item in self._desk.waiting},
            "forwarded": self._forwarded,
        }
        for item in self._came[-LISTED:]:
            known = ", ".join(fate for fate, numbers in fates.items() if item.number in numbers)
            self._say(f"connection {item.connection}  {self._name(item):<38}  {known}")

    def do_show(self, number: int) -> None:
        item = self._take(number, self._came, "has come") if number else self._desk.in_hand()
        self._say("\n".join([*self._described(item), *dump_message(item.frame.message)]))

    def do_session(self) -> None:
        pair = self._own_pair()
        # after the end of the connection its client may need a moment longer
        self._wait(lambda: self._connected or not pair.is_living)
        pair.live(self.wire.address)

    def do_score(self) -> None:
        self._say(str(self._own_pair().score))

    def _own_pair(self) -> OwnPair:
        if not self._pair:
            raise UserError("there is a client and a score only with --without or --own")
        return self._pair

    def do_help(self) -> None:  # type: ignore[override]
        self._say(HELP)

    def do_quit(self) -> bool:
        return True


def main() -> int:
    options = read_options()
    commands = [] if options.script is None else parse_script(options.script)
    if options.keylog is not None:
        read_keylog(Path(options.keylog))
    if options.without is None and not options.own:
        server = options.server or (HOST, PORT)
        reach(server).close()
        return sit_down(Table(options.listen, server, options.keylog), commands)
    told: list[Callable[[str], None]] = []  # the table, which needs the pair's address first
    names = ",".join(options.without or [])
    with OwnPair(names, lambda text: told[0](text), not options.deadlines) as pair:
        table = Table(options.listen, pair.address, options.keylog, pair)
        told.append(table.tell)
        code = sit_down(table, [("the start", Command("session")), *commands])
    print(pair.score, flush=True)
    return code


def read_options() -> argparse.Namespace:
    """Return the flags. Raises UserError."""
    parser = Parser("The man in the middle by hand, between your own programs.")
    parser.add_argument(
        "--listen",
        type=port_number,
        default=9000,
        metavar="PORT",
        help="on loopback, for clients; 0 is any; default 9000",
    )
    parser.add_argument(
        "--server",
        type=host_and_port,
        metavar="HOST:PORT",
        help=f"where the server listens; default {HOST}:{PORT}",
    )
    parser.add_argument(
        "--without",
        type=rule_list,
        action="extend",
        metavar="A,B",
        help="bring a server and a client that lack these rules; attacks.py --rules names them",
    )
    parser.add_argument(
        "--own", action="store_true", help="bring a server and a client that have all rules"
    )
    parser.add_argument(
        "--deadlines", action="store_true", help="with --without or --own: they do not wait for you"
    )
    parser.add_argument("--script", metavar="FILE", help="commands to begin with, one per line")
    parser.add_argument(
        "--keylog", metavar="FILE", help="show plaintexts; the server or the client writes it"
    )
    options = parser.options()
    brings_own = options.without is not None or options.own
    if brings_own and (options.server or options.keylog is not None):
        raise UserError("--without and --own bring a server, without --server and --keylog")
    if options.deadlines and not brings_own:
        raise UserError("--deadlines is for --without and --own")
    return options


def sit_down(table: Table, commands: Sequence[tuple[str, Command]]) -> int:
    """Obey the script and then the keyboard, and return the exit code. Raises UserError."""
    with table.wire:
        print(f"listening on {HOST}:{table.wire.address[1]}; help names the commands", flush=True)
        try:
            if not table.run_script(commands):
                table.cmdloop()
        finally:
            table.leave()
    return 0


if __name__ == "__main__":
    run_program(main)
