"""The server of the page: it shows the room to browsers that were let in, and takes their requests.

aiohttp serves pages and WebSockets from one event loop and one package. The loop only looks: work
that takes time is done by the room's own threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web

from classroom.live.room import Room
from classroom.live.safe import Door
from classroom.live.scene import Feed
from classroom.live.views import View, as_text, facts, log_view
from endpoint import HOST
from program import NoConnection, UserError, escaped, reason_of

PAGE = Path(__file__).with_name("page")
FILES = {  # by path: nothing else is served
    "/": ("index.html", "text/html"),
    "/live.css": ("live.css", "text/css"),
    "/live.js": ("live.js", "text/javascript"),
    "/ladder.js": ("ladder.js", "text/javascript"),
    "/hand.js": ("hand.js", "text/javascript"),
    "/panels.js": ("panels.js", "text/javascript"),
    "/dom.js": ("dom.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
MOST_BROWSERS = 8
TOO_MANY = b"too many windows show this page already: close one"
MOST_REQUEST = 140_000  # bytes: the longest message of the protocol in hexadecimal fits
MOST_LOG = 64 * 2**20  # bytes of an event log


class Live:
    """The routes, and what stands behind them."""

    def __init__(self, room: Room, door: Door) -> None:
        self._room = room
        self._facts = {"facts": facts()}
        self._files = {path: (PAGE / name).read_bytes() for path, (name, _) in FILES.items()}
        self.app = web.Application(middlewares=[door.guard], client_max_size=MOST_LOG)
        self.app.on_response_prepare.append(door.sign)
        self.app.router.add_get("/ws", self._talk)
        self.app.router.add_post("/log", self._log)
        for path in FILES:
            self.app.router.add_get(path, self._file)

    async def _file(self, request: web.Request) -> web.Response:
        _, kind = FILES[request.path]
        return web.Response(body=self._files[request.path], content_type=kind, charset="utf-8")

    async def _log(self, request: web.Request) -> web.Response:
        """Show an event log that the browser has read; nothing of it is kept."""
        text = (await request.read()).decode("utf-8-sig", "replace")
        protocol = request.query.get("protocol", "")
        try:
            view = await asyncio.to_thread(log_view, text, protocol)
        except UserError as error:
            view = {"error": escaped(str(error))}
        return web.Response(text=as_text(view), content_type="application/json")

    # The WebSocket

    async def _talk(self, request: web.Request) -> web.WebSocketResponse:
        talk = web.WebSocketResponse(max_msg_size=MOST_REQUEST, heartbeat=20.0)
        await talk.prepare(request)
        if len(self._room.feeds) >= MOST_BROWSERS:  # told in a way that the page can read
            await talk.close(code=WSCloseCode.TRY_AGAIN_LATER, message=TOO_MANY)
            return talk
        feed = Feed()
        self._room.feeds.add(feed)
        teller = asyncio.create_task(self._tell(talk, feed))
        try:
            async for message in talk:
                if message.type is WSMsgType.TEXT:
                    self._hear(message.data, feed)
                    await asyncio.sleep(0)  # a flood of requests does not keep others waiting
        finally:
            self._room.feeds.remove(feed)
            teller.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await teller
        return talk

    async def _tell(self, talk: web.WebSocketResponse, feed: Feed) -> None:
        """Tell a browser everything, and then what has changed, one picture at a time."""
        scene = self._room.scene
        await talk.send_str(as_text(self._facts))
        feed.touch(scene.ids(), ["state", "said", "script", "board", "run"])
        while not talk.closed:
            rows, topics = await feed.changes()
            picture = {"first": scene.first(), "rows": scene.rows_view(rows)}
            await talk.send_str(as_text({**picture, **self._topics(topics, feed)}))

    def _topics(self, topics: set[str], feed: Feed) -> View:
        room = self._room
        views: Mapping[str, Callable[[], object]] = {
            "state": room.view,
            "said": lambda: room.scene.news(feed),
            "script": room.script,
            "board": lambda: room.plays.board,
            "run": room.plays.run_view,
        }
        return {name: view() for name, view in views.items() if name in topics}

    def _hear(self, text: str, feed: Feed) -> None:
        """Do what a browser asks for, soon; say so if it cannot be understood."""
        room = self._room
        try:
            self._obey(json.loads(text), feed)
        except UserError as error:
            room.scene.say(str(error))
        except (ValueError, RecursionError):
            room.scene.say("the page asked for something that cannot be understood")

    def _obey(self, asked: Any, feed: Feed) -> None:
        """Carry out a request. Raises UserError, ValueError."""
        match asked:
            case {"drawn": True}:
                feed.drawn.set()
            case {"type": str(line)}:
                self._room.type(line)
            case {"rules": [*names], "patient": bool(is_patient)} if all_text(names):
                self._room.restart(names, is_patient)
            case {"inside": bool(is_on)}:
                self._room.scene.show_inside(is_on)
            case {"play": [*names]} if all_text(names):
                self._room.play(names)
            case {"stop": True}:
                self._room.plays.stop()
            case _:
                raise ValueError(asked)


def all_text(names: list[Any]) -> bool:
    return all(isinstance(name, str) for name in names)


@contextlib.asynccontextmanager
async def serving(room: Room, port: int = 0) -> AsyncIterator[Door]:
    """Serve a room on loopback, inside `async with`. Raises NoConnection."""
    try:
        listener = socket.create_server((HOST, port))
    except OSError as error:
        raise NoConnection(f"cannot listen on {HOST} port {port}: {reason_of(error)}") from None
    door = Door(listener.getsockname()[1])
    runner = web.AppRunner(Live(room, door).app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        yield door
    finally:
        await runner.cleanup()


@contextlib.contextmanager
def in_background(room: Room) -> Iterator[Door]:
    """Serve a room from a thread of its own, inside `with`. Raises NoConnection."""
    opened: queue.SimpleQueue[Door | Exception] = queue.SimpleQueue()
    closing = threading.Event()

    async def serve() -> None:
        async with serving(room) as door:
            opened.put(door)
            await asyncio.to_thread(closing.wait)

    def run() -> None:
        try:
            asyncio.run(serve())
        except Exception as error:
            opened.put(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    door = opened.get()
    if isinstance(door, Exception):
        raise door
    try:
        yield door
    finally:
        closing.set()
        thread.join(5.0)
