"""The man in the middle of one connection: it sees whole frames, and knows no protocol.

A tap is a generator over the frames that arrive. What it yields is delivered, and nothing else: a
frame that it keeps is dropped, one that it yields twice is replayed, one that it makes is forged.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import suppress

from lab.frames import Frame, Frames, Tap


PATIENCE_S = 5.0  # for a tap, and a server, to come to their ends


class Proxy:
    """Listens on loopback, connects on to the server, and delivers what `tap` yields, only that.

    `read_frame(recv)` and `write_frame(sendall, message)` are the framing of the protocol. When
    `tap` ends, both connections are cut.
    """

    def __init__(
        self,
        server: tuple[str, int],
        tap: Tap,
        read_frame: Callable[[Callable[[int], bytes]], bytes],
        write_frame: Callable[[Callable[[bytes], object], bytes], None],
    ) -> None:
        self._server = server
        self._tap = tap
        self._read_frame = read_frame
        self._write_frame = write_frame
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._seen: queue.SimpleQueue[tuple[str, bytes | None]] = queue.SimpleQueue()
        self._ends: dict[str, socket.socket] = {}
        self.address: tuple[str, int] = self._listener.getsockname()

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(OSError):  # wakes an accept that nobody came for
            socket.create_connection(self.address).close()
        self._thread.join(PATIENCE_S)
        for sock in self._ends.values():  # a server that never closes must not hold us up for ever
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _run(self) -> None:
        client, _ = self._listener.accept()
        with suppress(ConnectionError), client, socket.create_connection(self._server) as server:
            ends = self._ends = {"client": client, "server": server}
            for to, sock in (("server", client), ("client", server)):
                threading.Thread(target=self._listen, args=(to, sock), daemon=True).start()
            frames = self._tap(self._frames(ends))
            for frame in frames:
                try:
                    self._write_frame(ends[frame.to].sendall, frame.message)
                except OSError:  # one end may have closed; the other goes on
                    pass
                except Exception as error:  # such as a frame too long for its length field
                    if isinstance(frames, Generator):
                        with suppress(StopIteration):
                            frames.throw(error)
            for sock in ends.values():
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _listen(self, to: str, sock: socket.socket) -> None:
        try:
            while True:
                self._seen.put((to, self._read_frame(sock.recv)))
        except Exception:  # cut, reset, or no frame: for the proxy each of them is the end
            self._seen.put((to, None))

    def _frames(self, ends: dict[str, socket.socket]) -> Frames:
        still_open = 2
        while still_open:
            to, message = self._seen.get()
            if message is not None:
                yield Frame(to, message)
                continue
            still_open -= 1
            with suppress(OSError):
                ends[to].shutdown(socket.SHUT_WR)
