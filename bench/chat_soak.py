"""A soak of secure_chat, of any length: members come to rooms, talk, leave and are cut off.

    python -m bench.chat_soak --minutes 1440 --clients 40

The server is the program itself, the clients are threads here. Every text has to come back to who
said it, every other text to be the next of its sender, all in one history for each room, and every
stay that is not cut ends with a countersigned receipt. The server's memory may not grow after the
first tenth of the time; its threads and descriptors have to be back in the end where they began.
The server's evidence and database stay on the disk, as they should: a few GB a day.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.members import certified, certify, enroll, our_client
from bench.process import ServerProcess, raise_descriptor_limit
from bench.soak import Herd, soak, soak_options
from channel import DRAIN_S
from companions.asymmetric import new_identity
from companions.secure_chat.client import Client
from companions.secure_chat.evidence import Kept
from companions.secure_chat.forms import message_hash, parse_head
from companions.secure_chat.protocol import Party
from companions.secure_chat.rooms import Said
from program import run_program, write_text
from protocol_fsm import ConnectionCut, Status

ROOMS = tuple(f"room-{number}" for number in range(5))
KEPT_PLACES = 20_000  # of messages in their histories; others may be hours behind by then
POOL = 15  # descriptors of the database: five connections, three files each
LOGINS = threading.Semaphore(4)  # at once: more would only wait for the same processors
WARM_UP = 8  # logins at once, before anything is measured


class History:
    """What was said in which place of which room: all members have to be told the same."""

    def __init__(self) -> None:
        self.texts = 0
        self._places: OrderedDict[tuple[str, bytes, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def fault(self, said: Said) -> str:
        """Note what somebody was told; return what is wrong with it, or nothing."""
        head = parse_head(said.entry.head)
        place = (head.room, head.start, head.index)
        told = message_hash(said.entry.signed)
        with self._lock:
            known = self._places.setdefault(place, told)
            self.texts += 1
            if len(self._places) > KEPT_PLACES:
                self._places.popitem(last=False)
        if known != told:
            return f"two histories: message {head.index} of {head.room}"
        if said.text not in (None, f"{said.message.seqno} in {head.room}"):
            return f"{said.text!a} was heard as message {said.message.seqno} of {head.room}"
        return ""


class Members(Herd):
    """Clients that log in, visit rooms and leave; some are cut off, or replaced by themselves."""

    deaths = ("goodbye", "cut", "replaced", "stranger")
    kept_descriptors = POOL

    def __init__(self, folder: Path, address: tuple[str, int], count: int, seed: str) -> None:
        super().__init__(address, range(count), seed)
        self.history = History()
        self.receipts = 0
        self._folder = folder
        key = new_identity()  # one for all: a key takes long to make
        self._people = [certified(folder, f"client{number}", key) for number in range(count)]
        enroll(folder, self._people)

    def warm_up(self) -> None:
        """Log everybody in once, so that the server has what it keeps: threads and connections."""

        def visit(who: Party) -> None:
            with our_client(self._folder, who, self._address):
                pass

        with ThreadPoolExecutor(WARM_UP) as pool:
            list(pool.map(visit, self._people))
        time.sleep(2 * DRAIN_S)  # the last ones are still closing

    def told(self) -> str:
        return f"{self.history.texts} texts heard, {self.receipts} receipts countersigned"

    def live(self, number: int, rng: random.Random, death: str) -> None:
        who = self._people[number]
        with contextlib.ExitStack() as stack:
            kept = self._folder / "kept" / f"client{number}"
            stack.callback(shutil.rmtree, kept, ignore_errors=True)
            with LOGINS:
                client = stack.enter_context(our_client(self._folder, who, self._address))
            for room in rng.sample(ROOMS, rng.randint(1, 3)):
                client.join(room)
                self._talk(client, room, rng)
                if death == "cut":
                    client.session.fail(ConnectionCut(mid_frame=False))  # so it says nothing
                    client.channel.leave(Status.GOODBYE)
                    return
                self._settle(client, rng)
                if self.stop.is_set():
                    return
            if death == "replaced":  # by a new session of the same member
                with LOGINS, our_client(self._folder, who, self._address):
                    client.session.fail(ConnectionCut(mid_frame=False))

    def _talk(self, client: Client, room: str, rng: random.Random) -> None:
        for seqno in range(rng.randint(0, 5)):
            began = time.monotonic()
            client.say(f"{seqno} in {room}")
            while client.seat.pending:
                self._note(client.hear())
            self.waited(began)

    def _settle(self, client: Client, rng: random.Random) -> None:
        """Listen for a while, leave, and have a receipt, which nobody keeps here."""
        timer = threading.Timer(rng.uniform(0, 3), client.channel.post, (client.leave,))
        timer.start()
        while not isinstance(event := client.hear(), Kept):
            self._note(event)
        timer.join()
        self.receipts += event.is_countersigned
        if not event.is_countersigned:
            self.wrong.append(f"{event.receipt} is not countersigned")

    def _note(self, event: object) -> None:
        if isinstance(event, Said) and (fault := self.history.fault(event)):
            self.wrong.append(fault)


def prepare(folder: Path) -> list[str]:
    """Make what the server needs, and return its flags."""
    certify(folder)
    env = folder / "env"
    write_text(env, f"DATABASE_URL=sqlite:///{folder / 'chat.db'}\n")
    return [
        *("--env", str(env)),
        *("--certs", str(folder)),
        *("--transcripts", str(folder / "server")),
        *("--log", str(folder / "server.log")),
    ]


def main() -> int:
    options = soak_options("Members of rooms, for any length of time.", clients=40)
    raise_descriptor_limit()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flags = prepare(folder)
        with ServerProcess(*flags, program=("-m", "companions.secure_chat.server")) as server:
            herd = Members(folder, server.address, options.clients, options.seed)
            herd.warm_up()
            return soak(server, herd, options)


if __name__ == "__main__":
    run_program(main)
