"""The live page without a browser: who is let in, what is told, and that nobody waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Sequence
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, WSMessage, WSServerHandshakeError

from classroom.live import app, show
from classroom.live.app import FILES, MOST_REQUEST, TOO_MANY, in_background
from classroom.live.room import Room
from classroom.live.safe import Door
from classroom.live.scene import MOST_ROWS, ROWS_AT_ONCE, Feed, Feeds, Scene
from classroom.live.views import (
    MOST_BYTES,
    MOST_LETTERS,
    MOST_RUNS,
    PROTOCOLS,
    bytes_view,
    facts,
    folder_of,
    log_view,
    protocol_of,
)
from classroom.wire import LAB
from lab.claims import read_sets
from lab.events import LONGEST
from lab.frames import Frame, flipped
from lab.weakened import RULES
from program import UserError
from protocol_fsm import ClientData, State
from tests.helpers import pair_in
from tests.network import PATIENCE_S, wait_until
from tests.programs import ROOT, posix_only, run, run_here


class Reader:
    """A browser that may be let in: it asks for pages, and keeps its cookie."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.cookie = ""

    def ask(
        self,
        path: str,
        method: str = "GET",
        body: bytes | None = None,
        **headers: str | Sequence[str],
    ) -> tuple[int, http.client.HTTPMessage, str]:
        """Return status, headers and text; `headers` in place of those that a browser sends."""
        wanted = {"Host": self.door.host, "Cookie": self.cookie, **headers}
        connection = http.client.HTTPConnection("127.0.0.1", int(self.door.host.split(":")[1]))
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host=True)
            for name, values in wanted.items():
                for value in [values] if isinstance(values, str) else values:
                    if value:
                        connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read().decode()

    def enter(self) -> None:
        """Swap the token for the cookie."""
        status, headers, _ = self.ask(self.door.address.removeprefix(self.door.origin))
        assert status == 303
        self.cookie = headers["Set-Cookie"].split(";")[0]


@pytest.fixture(scope="module")
def room() -> Iterator[Room]:
    with Room() as found:
        yield found


@pytest.fixture
def reader(room: Room) -> Iterator[Reader]:
    with in_background(room) as door:
        yield Reader(door)


# Who is let in ------------------------------------------------------------------------------------


def test_the_token_is_swapped_for_a_cookie_and_leaves_the_address(reader: Reader) -> None:
    address = reader.door.address
    status, headers, _ = reader.ask(address.removeprefix(reader.door.origin))
    assert (status, headers["Location"]) == (303, "/")
    (cookie,) = SimpleCookie(headers["Set-Cookie"]).values()
    assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "Strict", "/")
    assert cookie["domain"] == ""
    assert cookie.value not in address
    reader.cookie = f"{cookie.key}={cookie.value}"
    assert reader.ask("/")[0] == 200


def test_a_token_opens_the_page_once(reader: Reader) -> None:
    path = reader.door.address.removeprefix(reader.door.origin)
    assert reader.ask(path)[0] == 303
    status, headers, text = reader.ask(path)
    assert (status, headers["Set-Cookie"]) == (403, None)
    assert text.startswith("the address that the terminal shows opens this page once")
    assert reader.ask("/?token=")[0] == 403  # the used one is nothing now


@pytest.mark.slow
@pytest.mark.parametrize("path", [*FILES, "/ws", "/nothing", "/?token=wrong", "/live.js?token=x"])
def test_without_the_cookie_there_is_nothing(reader: Reader, path: str) -> None:
    assert reader.ask(path)[0] == 403
    assert reader.ask(path, Cookie=f"live{reader.door.host.split(':')[1]}=wrong")[0] == 403


def test_a_cookie_that_is_no_utf_8_is_a_wrong_one(reader: Reader) -> None:
    name = f"live{reader.door.host.split(':')[1]}"
    assert reader.ask("/", Cookie=f"{name}=\xff\xfe")[0] == 403  # sent as Latin-1


def test_a_token_is_not_spent_on_another_path_or_method(reader: Reader) -> None:
    query = reader.door.address.partition("?")[2]
    assert reader.ask(f"/live.js?{query}")[0] == 403
    assert reader.ask(f"/?{query}", "POST", b"", Origin=reader.door.origin)[0] == 403
    reader.enter()


@pytest.mark.parametrize("host", ["evil.example", "localhost:{port}", "127.0.0.1", "[::1]:{port}"])
def test_another_host_is_refused_even_with_the_cookie(reader: Reader, host: str) -> None:
    reader.enter()
    port = reader.door.host.split(":")[1]
    status, _, text = reader.ask("/", Host=host.format(port=port))
    assert (status, text) == (403, "this is another host")


@pytest.mark.parametrize(
    "origin", ["null", "http://evil.example", "https://{host}", "http://{host}0"]
)
def test_another_origin_is_refused_even_with_the_cookie(reader: Reader, origin: str) -> None:
    reader.enter()
    status, _, text = reader.ask("/", Origin=origin.format(host=reader.door.host))
    assert (status, text) == (403, "this comes from another page")
    assert reader.ask("/", Origin=reader.door.origin)[0] == 200


def test_two_hosts_or_origins_are_refused_though_one_is_ours(reader: Reader) -> None:
    reader.enter()
    host, origin = reader.door.host, reader.door.origin
    for other in ([host, "evil.example"], ["evil.example", host]):
        assert reader.ask("/", Host=other)[0] in (400, 403)
    for other in ([origin, "http://evil.example"], ["http://evil.example", origin]):
        assert reader.ask("/", Origin=other)[0] == 403


def test_a_page_may_be_asked_for_its_headers_alone(reader: Reader) -> None:
    reader.enter()
    assert reader.ask("/", "HEAD")[0] == 200


def test_what_is_posted_must_name_its_origin(reader: Reader) -> None:
    reader.enter()
    assert reader.ask("/log", "POST", b"{}")[0] == 403
    assert reader.ask("/log", "POST", b"{}", Origin=reader.door.origin)[0] == 200


@pytest.mark.parametrize("path", ["/", "/live.js", "/nothing"])
@pytest.mark.parametrize("is_in", [True, False])
def test_every_answer_has_the_headers(reader: Reader, path: str, is_in: bool) -> None:
    if is_in:
        reader.enter()
    _, headers, _ = reader.ask(path)
    wanted = {
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
    assert {name: headers[name] for name in wanted} == wanted
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self'",
        "connect-src": f"'self' ws://{reader.door.host}",
        "frame-ancestors": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_only_the_page_s_own_files_are_served(reader: Reader) -> None:
    reader.enter()
    assert sorted(name for name, _ in FILES.values()) == sorted(os.listdir(app.PAGE))
    for path, (_, kind) in FILES.items():
        status, headers, _ = reader.ask(path)
        assert (status, headers["Content-Type"]) == (200, f"{kind}; charset=utf-8")
    for path in ("/app.py", "/../app.py", "/%2e%2e/app.py", "/page/live.js"):
        assert reader.ask(path)[0] == 404


def test_the_page_makes_no_html_of_text_and_loads_nothing_from_elsewhere() -> None:
    texts = {name: (app.PAGE / name).read_text("utf-8") for name, _ in FILES.values()}
    for name, text in texts.items():
        found = re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)
        assert not found, f"{name}: {found}"
        links = re.findall(r"https?://(?!www\.w3\.org/2000/svg)\S+", text)
        assert not links, f"{name}: {links}"
    assert not re.search(r"<script(?! type=\"module\" src=)|\son\w+=|style=", texts["index.html"])


# The WebSocket


async def handshake(door: Door, headers: dict[str, str]) -> int:
    async with ClientSession() as session:
        try:
            async with session.ws_connect(f"ws://{door.host}/ws", headers=headers) as talk:
                await talk.close()
                return 101
        except WSServerHandshakeError as error:
            return error.status


async def first_told(door: Door, headers: dict[str, str]) -> WSMessage:
    """Return the first message to a window."""
    async with ClientSession() as session:
        async with session.ws_connect(f"ws://{door.host}/ws", headers=headers) as talk:
            return await talk.receive(PATIENCE_S)


def test_a_websocket_has_to_name_our_origin(reader: Reader) -> None:
    reader.enter()
    own = {"Cookie": reader.cookie, "Origin": reader.door.origin}
    for headers, status in (
        (own, 101),
        ({"Cookie": reader.cookie}, 403),
        ({**own, "Origin": "http://evil.example"}, 403),
        ({**own, "Host": "evil.example"}, 403),
        ({"Origin": reader.door.origin}, 403),
    ):
        assert asyncio.run(handshake(reader.door, headers)) == status, headers


class Talk:
    """A page's WebSocket, without the page."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.rows: dict[int, dict[str, Any]] = {}
        self.said: list[str] = []
        self.told: dict[str, Any] = {}

    async def type(self, line: str) -> None:
        await self.socket.send_str(json.dumps({"type": line}))

    async def until(self, seen: Callable[[], object]) -> None:
        """Listen until it is so."""
        while not seen():
            told = await asyncio.wait_for(self.socket.receive(), PATIENCE_S)
            await self.socket.send_str('{"drawn": true}')
            message = json.loads(told.data)
            self.rows.update({row["id"]: row for row in message.pop("rows", [])})
            self.said += message.pop("said", [])
            self.told.update(message)

    async def has(self, kind: str) -> None:
        """Wait until a message of this kind is in hand."""
        await self.until(lambda: kind in self.hand["name"])

    @property
    def hand(self) -> dict[str, Any]:
        found = self.told.get("state", {}).get("table", {}).get("hand")
        return found or {"name": ""}


Scenario = Callable[[Talk], Awaitable[None]]


async def with_socket(reader: Reader, scene: Scenario) -> None:
    """Let a coroutine talk to a lab that lets a browser in."""
    await asyncio.to_thread(reader.enter)
    headers = {"Cookie": reader.cookie, "Origin": reader.door.origin}
    async with ClientSession() as session:
        address = f"ws://{reader.door.host}/ws"
        async with session.ws_connect(address, headers=headers, max_msg_size=0) as socket:
            await scene(Talk(socket))


def talk(rules: str, scene: Scenario) -> Room:
    """Let a coroutine talk to a lab of its own, which lacks these rules; return the lab."""
    with Room(rules) as room, in_background(room) as door:
        asyncio.run(with_socket(Reader(door), scene))
    return room


async def up_to_report(page: Talk) -> None:
    await page.has("CLIENT_HELLO")
    await page.type("forward")
    await page.has("SERVER_CHALLENGE")
    await page.type("forward")
    await page.has("CLIENT_DATA")


@pytest.mark.slow
def test_a_flipped_bit_is_refused_by_step_5_and_the_row_says_so() -> None:
    async def scene(page: Talk) -> None:
        await up_to_report(page)
        await page.type("flip 24.3")
        await page.until(lambda: page.hand.get("changed") == [24])
        await page.type("forward")
        await page.until(lambda: any(row.get("verdict") == "BadTag" for row in page.rows.values()))
        (row,) = [row for row in page.rows.values() if row.get("verdict") == "BadTag"]
        assert (row["kind"], row["to"], row["number"]) == ("changed", "server", 3)
        assert row["what"].startswith("ciphertext: ")
        assert "inside" not in row
        await page.until(lambda: page.told["state"]["ends"]["server"]["state"] == "ENDED")
        assert page.told["facts"]["errors"]["BadTag"]["step"] == 5

    talk("", scene)


def test_without_the_tag_the_same_click_makes_a_900() -> None:
    async def scene(page: Talk) -> None:
        await page.socket.send_str(json.dumps({"inside": True}))
        await up_to_report(page)
        for line in ("flip 24.3", "undo", "flip 24.3", "forward"):
            await page.type(line)
        await page.until(lambda: any("[900.0,20.5" in line for line in page.said))
        await page.until(
            lambda: any("900.0" in str(row.get("inside")) for row in page.rows.values())
        )
        await page.until(lambda: page.told["state"]["ends"]["score"]["won"] == 1)

    talk("tag", scene)


@pytest.mark.slow
def test_the_script_of_a_scene_replays_it_in_the_proxy(tmp_path: Path) -> None:
    async def scene(page: Talk) -> None:
        await up_to_report(page)
        for line in ("list", "hold", "release 3", "flip 24.3", "show", "forward"):
            await page.type(line)
        await page.has("SERVER_AGGR_RESPONSE")
        for line in ("cut", "session"):
            await page.type(line)
        await page.has("CLIENT_HELLO")
        for line in ("drop", "undo", "splice older 1", "forward"):
            await page.type(line)
        await page.until(lambda: page.told["script"].endswith("splice older 1\nforward\n"))

    script = tmp_path / "scene.txt"
    text = talk("tag", scene).script()
    assert text.startswith("# python -m classroom.proxy --without tag --script FILE\n")
    assert not re.search("^(list|show)", text, re.MULTILINE), "what changes nothing is left out"
    script.write_text(f"{text}until SERVER_CHALLENGE\nquit\n")
    done = run(
        "-m", "classroom.proxy", "--listen", "0", "--without", "tag", "--script", str(script)
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "YOU WIN: the server accepted CLIENT_DATA [900.0,20.5,21.0,22.5]" in done.stdout
    assert "older 1 in its place" in done.stdout


def test_the_ends_are_there_whatever_rules_they_lack() -> None:
    with Room(",".join(RULES)) as room:
        for rules in ("documented", ""):
            room._restart(rules, is_patient=True)
            assert {*room.pair.tapes} == {"older", "other"}
            assert all(tape[-1].to == "server" for tape in room.pair.tapes.values())
            room.table.type("until CLIENT_HELLO")
            assert room.view()["ends"]["client"]["state"] == "CHALLENGE"


@pytest.mark.slow
def test_what_cannot_be_understood_is_said_and_harms_nothing() -> None:
    async def scene(page: Talk) -> None:
        for text in ("", "[", "[]", '{"type": 1}', '{"rules": ["tag"]}', '{"play": [1]}', "1" * 9):
            await page.socket.send_str(text)
        await page.until(lambda: sum("cannot be understood" in line for line in page.said) == 7)
        for line in (
            "quit",
            "nonsense",
            "flip 999",
            "until TERMINATE x",
            "release 5",
            "splice x 1",
        ):
            await page.type(line)
        await page.until(lambda: any("no recording x" in line for line in page.said))
        await page.socket.send_str(json.dumps({"rules": ["nonsense"], "patient": True}))
        await page.until(lambda: any("no rule nonsense" in line for line in page.said))
        await page.socket.send_str(json.dumps({"play": ["nonsense"]}))
        await page.until(lambda: any("no attack is named" in line for line in page.said))
        await up_to_report(page)

    talk("", scene)


@pytest.mark.slow
def test_a_flood_of_requests_keeps_no_other_window_waiting(room: Room, reader: Reader) -> None:
    async def scene(page: Talk) -> None:
        await page.has("CLIENT_HELLO")
        for _ in range(20_000):
            await page.type("nonsense")
        status, _, _ = await asyncio.to_thread(reader.ask, "/")
        assert status == 200
        assert room.scene._lines < 20_000, "the flood is not over yet"

    asyncio.run(with_socket(reader, scene))


def test_too_long_a_request_ends_the_talk_and_not_the_lab(room: Room, reader: Reader) -> None:
    async def to_the_end(socket: Any) -> None:
        async for _ in socket:
            pass

    async def scene(page: Talk) -> None:
        await page.socket.send_str("x" * (MOST_REQUEST + 1))
        await asyncio.wait_for(to_the_end(page.socket), PATIENCE_S)
        assert page.socket.close_code == 1009

    asyncio.run(with_socket(reader, scene))
    assert reader.ask("/")[0] == 200


class Noted:
    """It notes what it is asked for, instead of a room or a feed."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def __getattr__(self, name: str) -> Any:
        if name in ("scene", "plays", "drawn"):
            return self
        return lambda *words: self.seen.append((name, *words))


def test_a_ninth_window_is_refused_until_another_is_closed(room: Room, reader: Reader) -> None:
    reader.enter()
    headers = {"Cookie": reader.cookie, "Origin": reader.door.origin}
    others: list[Any] = [Noted() for _ in range(8)]
    for feed in others:
        room.feeds.add(feed)
    refused = asyncio.run(first_told(reader.door, headers))
    assert (refused.data, refused.extra) == (1013, TOO_MANY.decode())
    room.feeds.remove(others.pop())
    assert "facts" in json.loads(asyncio.run(first_told(reader.door, headers)).data)
    for feed in others:
        room.feeds.remove(feed)


def test_a_log_that_is_too_large_is_refused(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    assert app.MOST_LOG == 67_108_864
    monkeypatch.setattr(app, "MOST_LOG", 10)
    with in_background(room) as door:
        reader = Reader(door)
        reader.enter()
        assert reader.ask("/log", "POST", bytes(10), Origin=door.origin)[0] == 200
        assert reader.ask("/log", "POST", bytes(11), Origin=door.origin)[0] == 413


@pytest.mark.parametrize(
    ("text", "done"),
    [
        ('{"type": "list"}', ("type", "list")),
        ('{"rules": ["tag"], "patient": false}', ("restart", ["tag"], False)),
        ('{"inside": true}', ("show_inside", True)),
        ('{"play": ["replay"]}', ("play", ["replay"])),
        ('{"stop": true}', ("stop",)),
        ('{"drawn": true}', ("set",)),
        ('{"rules": ["tag", 1], "patient": true}', None),
        ('{"play": [1, "replay"]}', None),
        ('{"type": 1}', None),
        ("[", None),
        ("[" * 100_000, None),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_each_request_does_one_thing_and_what_is_none_is_said(
    text: str, done: tuple[object, ...] | None
) -> None:
    noted: Any = Noted()
    live = object.__new__(app.Live)
    live._room = noted
    live._hear(text, noted)
    refusal = ("say", "the page asked for something that cannot be understood")
    assert noted.seen == [done or refusal]


def test_why_a_request_is_refused_is_said() -> None:
    def refuse(names: list[str]) -> None:
        raise UserError(f"no attack is named {names}")

    noted: Any = Noted()
    noted.play = refuse
    live = object.__new__(app.Live)
    live._room = noted
    live._hear('{"play": ["x"]}', noted)
    assert noted.seen == [("say", "no attack is named ['x']")]


# What is told -------------------------------------------------------------------------------------


def flipped_report() -> tuple[Frame, Frame]:
    pair = pair_in(State.REPORT)
    report = Frame("server", pair.client.seal(ClientData([100.0])))
    return report, flipped(report, 24, 8)


def scene_of(*frames: Frame) -> Scene:
    """Return a scene in which these were sent."""
    scene = Scene(Feeds())
    scene.begin(1)
    for number, frame in enumerate(frames, 1):
        scene.sent(number, frame)
    return scene


def test_a_message_is_told_by_its_fields_whose_bytes_are_all_of_it() -> None:
    report, _ = flipped_report()
    view = bytes_view(report.message, LAB)
    assert "".join(field["hex"] for field in view["fields"]) == report.message.hex()
    assert [field["at"] for field in view["fields"]] == [0, 1, 2, 6, 7, 23, 23 + 48 - 16]
    long = bytes_view(report.message[:23] + bytes(4_096) + report.message[-32:], LAB)
    (ciphertext,) = [field for field in long["fields"] if field["name"] == "ciphertext"]
    assert (ciphertext["size"], len(ciphertext["hex"])) == (4_096, 2 * MOST_BYTES)
    assert long["fields"][-1]["hex"] == report.message[-32:].hex(), "what is cut hides no tag"


def test_every_error_of_the_nine_steps_has_its_step_and_claims_that_are_there() -> None:
    told = facts()
    ids = {claim["id"] for claim in told["claims"]}
    steps = {name: error["step"] for name, error in told["errors"].items() if error["step"]}
    assert steps == {
        "MalformedMessage": 1,
        "WrongPeer": 2,
        "WrongDirection": 2,
        "UnexpectedOpcode": 3,
        "RoundMismatch": 4,
        "BadTag": 5,
        "BadPadding": 7,
        "BadPayload": 8,
        "EchoMismatch": 8,
    }
    for name in steps:
        assert told["errors"][name]["claims"], name
        assert {*told["errors"][name]["claims"]} <= ids, name


def test_the_rows_of_a_scene_are_those_that_an_event_log_of_it_has() -> None:
    report, changed = flipped_report()
    other = Frame("server", report.message[::-1])
    scene = scene_of(report)
    scene.waits({1: "in hand"})
    (row,) = scene.rows_view(scene.ids()[1:])
    assert (row["kind"], row["words"]) == ("in hand", "in your hand")
    scene.delivered(changed)
    scene.judged("server", changed.message, "BadTag", "")
    scene.sent(2, other)
    scene.waits({2: "aside"})
    scene.delivered(report)
    scene.delivered(report)
    scene.delivered(other)
    rows = scene.rows_view(scene.ids()[1:])
    assert [(row["kind"], row["number"], row["verdict"]) for row in rows] == [
        ("changed", 1, "BadTag"),
        ("held", 2, ""),
        ("late", 0, ""),
        ("again", 0, ""),
        ("late", 0, ""),
    ]
    assert rows[0]["what"] == f"ciphertext: {report.message[24]:02x} -> {changed.message[24]:02x}"


def test_a_bit_that_is_flipped_back_leaves_a_message_as_it_was() -> None:
    report, changed = flipped_report()
    scene = scene_of(report)
    scene.delivered(flipped(changed, 24, 8))
    (row,) = scene.rows_view(scene.ids()[1:])
    assert (row["kind"], row["got"]) == ("passed", None)


def test_what_the_ends_see_is_told_only_while_it_is_asked_for() -> None:
    report, _ = flipped_report()
    scene = scene_of(report)
    scene.judged("client", report.message, "sealed", "[100.0]")
    assert "inside" not in scene.rows_view(scene.ids())[1]
    scene.show_inside(True)
    assert scene.rows_view(scene.ids())[1]["inside"] == ["[100.0]", None]
    scene.show_inside(False)
    assert "100.0" not in json.dumps(scene.rows_view(scene.ids()))


def test_old_rows_leave_the_page_and_no_memory_behind() -> None:
    report, _ = flipped_report()
    messages = [report.message + number.to_bytes(4, "big") for number in range(MOST_ROWS + 100)]
    scene = scene_of(*(Frame("server", message) for message in messages))
    assert len(scene.ids()) == MOST_ROWS
    assert scene.first() == scene.ids()[0] == 102  # and the note of the beginning
    assert len(scene._row_of) == MOST_ROWS


def test_a_browser_is_told_the_newest_rows_first_and_more_when_it_has_drawn_them() -> None:
    async def scene() -> None:
        feed = Feed()
        feed.touch(range(1, 2 * ROWS_AT_ONCE + 1), ["state"])
        feed.drawn.set()
        rows, topics = await feed.changes()
        assert (rows, topics) == ([*range(ROWS_AT_ONCE + 1, 2 * ROWS_AT_ONCE + 1)], {"state"})
        later = asyncio.ensure_future(feed.changes())
        done, _ = await asyncio.wait({later}, timeout=0.05)
        assert not done, "it has not drawn these yet"
        feed.touch([99], ["said"])
        feed.drawn.set()
        assert await later == ([*range(2, ROWS_AT_ONCE + 1), 99], {"said"})

    asyncio.run(scene())


def test_a_browser_that_reads_nothing_holds_up_no_end() -> None:
    with Room() as room, in_background(room) as door:
        table = room.table

        def over() -> bool:
            with table._changed:
                return table._changed.wait_for(lambda: table._ended, PATIENCE_S)

        async def scene(page: Talk) -> None:
            await page.has("CLIENT_HELLO")
            await page.type("auto")  # from here on nothing is read
            assert await asyncio.to_thread(over)

        asyncio.run(with_socket(Reader(door), scene))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_log_s_protocol_is_found_by_its_attacks(protocol: str) -> None:
    sets = read_sets(folder_of(protocol) / "sets.json")
    assert protocol_of([*sets.sets, *sets.not_prevented]) == protocol


def test_a_log_that_is_none_or_of_no_protocol_is_one_sentence() -> None:
    with pytest.raises(UserError, match="the log line 1 is not an event"):
        log_view("{}", "")
    with pytest.raises(UserError, match="there is no protocol 'no'"):
        log_view('{"attack": "a", "event": "ended", "by": "client", "error": "e"}', "no")
    view = log_view('{"attack": "a", "event": "ended", "by": "client", "error": "e"}', "")
    assert (view["protocol"], view["runs"][0]["ended"]) == ("classroom", "client: e (1)")


def test_a_line_of_a_log_is_read_by_its_kind_whatever_else_it_has() -> None:
    lines = [
        {"attack": "a", "event": "ended", "by": "client", "error": "e", "to": "server"},
        {"attack": "a", "event": "sent", "to": "server", "message": "0a", "deed": 5, "by": []},
    ]
    (run,) = log_view("\n".join(map(json.dumps, lines)), "")["runs"]
    assert (run["ended"], len(run["rows"])) == ("client: e (1)", 1)


@pytest.mark.slow
def test_of_a_huge_log_the_page_is_told_what_it_has_room_for() -> None:
    sent = {"event": "sent", "to": "server", "message": "0a" * 1_000}
    lines = [{"attack": f"{number:01000}", **sent} for number in range(MOST_RUNS + 5)]
    lines += [{"attack": "last", **sent}] * 1_000
    view = log_view("\n".join(map(json.dumps, lines)), "")
    assert (view["count"], len(view["runs"])) == (MOST_RUNS + 6, MOST_RUNS)
    assert len(json.dumps(view["runs"][0])) < 3 * MOST_LETTERS + 4 * MOST_BYTES
    (run,) = log_view("\n".join(map(json.dumps, lines[-1_000:])), "")["runs"]
    assert len(run["rows"]) == LONGEST
    assert {"note": "987 messages more"} in run["rows"]


def test_a_log_whose_protocol_lacks_a_package_names_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(PROTOCOLS, "secure_chat", "there_is_no_such_package")
    with pytest.raises(UserError, match=r"pip install -r companions/secure_chat/requirements\.txt"):
        log_view('{"attack": "a", "event": "ended", "by": "client", "error": "e"}', "secure_chat")


def test_a_played_attack_enters_the_board_under_its_rules_and_is_a_run() -> None:
    with Room("tag") as room:
        room._play(["flip-reading"], "tag")
        (cell,) = room.plays.board["tag"].values()
        assert (cell["kind"], "900.0" in cell["won"]) == ("won", True)
        run = room.plays.run_view()
        assert run is not None
        assert run["verdict"]["kind"] == "won"
        assert run["command"].endswith("--without tag flip-reading")
        assert [row["kind"] for row in run["rows"]][:3] == ["passed", "passed", "changed"]


@pytest.mark.slow
@posix_only
def test_the_program_serves_until_it_is_stopped() -> None:
    words = [sys.executable, "-m", "classroom.live.show", "--no-browser", "--without", "tag"]
    with subprocess.Popen(words, cwd=ROOT, text=True, stdout=subprocess.PIPE) as program:
        assert program.stdout
        line = program.stdout.readline()
        match = re.fullmatch(r"open this, once: (http://127\.0\.0\.1:\d+)/\?token=\S+\n", line)
        assert match
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(match[1], timeout=PATIENCE_S)
        program.send_signal(signal.SIGINT)
        assert program.wait(PATIENCE_S) == 0


def test_what_is_still_asked_for_is_not_done_when_the_room_is_left() -> None:
    done: list[str] = []
    with Room() as room:
        room._soon(room._hand, lambda: wait_until(lambda: room._hand._shutdown))
        room._soon(room._hand, lambda: done.append("late"))
    assert not done


def test_a_second_ctrl_c_does_not_disturb_the_end(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    class Left(Room):
        def __exit__(self, *exception: object) -> None:
            signal.raise_signal(signal.SIGINT)
            super().__exit__(*exception)

    monkeypatch.setattr(show, "show", interrupted)
    monkeypatch.setattr(show, "Room", Left)
    monkeypatch.setattr(logging.root.manager, "disable", logging.root.manager.disable)
    done = run_here(show.main, capfd, "show.py")
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


@pytest.mark.slow
def test_wrong_flags_are_one_sentence() -> None:
    for flags in (["--without", "nonsense"], ["--port", "x"], ["--without", ""]):
        done = run("-m", "classroom.live.show", "--no-browser", *flags)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), flags
        assert done.stderr.startswith("show.py: ")
