"""Something to send: the view of a camera at a door, as an image (PNG) and as a video (AVI).

Both are drawn row by row with nothing but the standard library, always the same. The video is not
compressed, so that it is large enough for many chunks.
"""

from __future__ import annotations

import hashlib
import math
import struct
import zlib

WIDTH = 320
HEIGHT = 240  # pixels
FRAMES = 24
FRAMES_PER_S = 12
FLOOR_AT = 190  # rows above it are wall
DOOR = (200, 40, 270)  # its left edge, top and right edge
DOOR_COLOUR = bytes([120, 72, 40])
BALL_COLOUR = bytes([220, 40, 40])  # red, green, blue
BALL_RADIUS = 22
GRAIN = hashlib.shake_256(b"a camera in poor light").digest(3 * WIDTH * HEIGHT)


def draw(frame: int) -> list[bytes]:
    """Return the rows (960 bytes each, red, green, blue) of a frame: a ball bounces past a door."""
    rows = [bytearray(_background(y) * WIDTH) for y in range(HEIGHT)]
    left, top, right = DOOR
    for row in rows[top:FLOOR_AT]:
        row[3 * left : 3 * right] = DOOR_COLOUR * (right - left)
    x = BALL_RADIUS + frame * (WIDTH - 2 * BALL_RADIUS) // FRAMES
    y = FLOOR_AT - BALL_RADIUS - round(100 * abs(math.sin(2 * math.pi * frame / FRAMES)))
    for dy in range(-BALL_RADIUS, BALL_RADIUS):
        half = math.isqrt(BALL_RADIUS**2 - dy**2)
        rows[y + dy][3 * (x - half) : 3 * (x + half)] = BALL_COLOUR * (2 * half)
    return [bytes(row) for row in rows]


def _background(y: int) -> bytes:
    """Return a pixel: the wall grows lighter towards the floor, which has its own colour."""
    return bytes([90, 96, 90]) if y >= FLOOR_AT else bytes([100 + y // 2, 120 + y // 2, 150])


def image() -> bytes:
    """Return one frame with the grain of a cheap camera as a PNG. Source: RFC 2083."""
    pixels = b"".join(draw(FRAMES // 3))
    noisy = bytes(min(255, value + grain % 8) for value, grain in zip(pixels, GRAIN))
    lines = b"".join(b"\0" + noisy[at : at + 3 * WIDTH] for at in range(0, len(noisy), 3 * WIDTH))
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0)  # 8 bits each of three colours
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    )


def video() -> bytes:
    """Return all frames as an AVI. Source: "AVI RIFF File Reference", Microsoft."""
    frames = [_bitmap(draw(frame)) for frame in range(FRAMES)]
    size = len(frames[0])
    main = struct.pack(
        "<14I",
        1_000_000 // FRAMES_PER_S,
        size * FRAMES_PER_S,
        0,
        0x10,
        FRAMES,
        0,
        1,
        size,
        WIDTH,
        HEIGHT,
        0,
        0,
        0,
        0,
    )  # 0x10: there is an index
    stream = struct.pack(
        "<4s4sIHHIIIIIIII4H",
        b"vids",
        b"DIB ",
        0,
        0,
        0,
        0,
        1,
        FRAMES_PER_S,
        0,
        FRAMES,
        size,
        0xFFFFFFFF,
        0,
        0,
        0,
        WIDTH,
        HEIGHT,
    )
    form = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, 24, 0, size, 0, 0, 0, 0)
    index = b"".join(
        struct.pack("<4sIII", b"00db", 0x10, 4 + number * (8 + size), size)
        for number in range(FRAMES)
    )  # 0x10: it needs no other frame
    headers = _list(
        b"hdrl",
        _chunk(b"avih", main),
        _list(b"strl", _chunk(b"strh", stream), _chunk(b"strf", form)),
    )
    movie = _list(b"movi", *(_chunk(b"00db", frame) for frame in frames))
    return _chunk(b"RIFF", b"AVI " + headers + movie + _chunk(b"idx1", index))


def _bitmap(rows: list[bytes]) -> bytes:
    """Turn rows into what AVI calls a DIB: the lowest row first, and blue, green, red."""
    pixels = bytearray(b"".join(reversed(rows)))
    pixels[0::3], pixels[2::3] = pixels[2::3], pixels[0::3]
    return bytes(pixels)


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data


def _list(name: bytes, *chunks: bytes) -> bytes:
    return _chunk(b"LIST", name + b"".join(chunks))
