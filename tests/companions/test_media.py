"""What the demo of device_transfer sends: files that players open."""

from __future__ import annotations

import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from companions.device_transfer import media
from companions.device_transfer.protocol import CHUNK_BYTES

LIMIT_S = 120


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at = 8
    while at < len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length) == (zlib.crc32(name + body),)
        yield name, body
        at += 12 + length


@pytest.mark.slow
def test_the_image_is_a_png_with_all_its_rows_that_takes_several_chunks() -> None:
    data = media.image()
    chunks = dict(png_chunks(data))
    assert [*chunks] == [b"IHDR", b"IDAT", b"IEND"]
    assert struct.unpack(">II", chunks[b"IHDR"][:8]) == (media.WIDTH, media.HEIGHT)
    assert len(zlib.decompress(chunks[b"IDAT"])) == media.HEIGHT * (1 + 3 * media.WIDTH)
    assert len(data) > CHUNK_BYTES


def riff_chunks(data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield name, place and content of each chunk in a list."""
    at = 0
    while at < len(data):
        name, length = struct.unpack_from("<4sI", data, at)
        yield name, at, data[at + 8 : at + 8 + length]
        at += 8 + length
    assert at == len(data)


def test_the_video_is_an_avi_whose_index_finds_every_frame() -> None:
    data = media.video()
    [(riff, _, whole)] = riff_chunks(data)
    assert (riff, whole[:4]) == (b"RIFF", b"AVI ")
    (_, _, headers), (_, _, movie), (_, _, index) = riff_chunks(whole[4:])
    assert (headers[:4], movie[:4]) == (b"hdrl", b"movi")
    frames = [*riff_chunks(movie[4:])]
    assert len(frames) == len(index) // 16 == media.FRAMES
    for (name, at, frame), entry in zip(frames, struct.iter_unpack("<4sIII", index)):
        assert entry == (name, 0x10, 4 + at, len(frame))
    assert 40 * CHUNK_BYTES < len(data) < 8_000_000


def test_the_video_shows_the_frames_upside_down_and_blue_first_as_avi_wants() -> None:
    at = media.video().index(b"00db") + 8
    rows = media.draw(0)
    bitmap = media.video()[at : at + len(rows) * len(rows[0])]
    assert len(bitmap) == 3 * media.WIDTH * media.HEIGHT
    assert bitmap[:3] == rows[-1][2::-1]  # the first pixel of the lowest row
    assert bitmap[-3:] == rows[0][:-4:-1]
    assert bitmap != media._bitmap(media.draw(1))  # it moves


@pytest.mark.slow
def test_a_player_reads_image_and_video_to_their_ends(tmp_path: Path) -> None:
    if not (ffprobe := shutil.which("ffprobe")):
        pytest.skip("there is no ffprobe")
    for name, content, frames in (("a.png", media.image(), 1), ("a.avi", media.video(), 24)):
        (tmp_path / name).write_bytes(content)
        done = subprocess.run(
            [
                ffprobe,
                "-v",
                "warning",
                "-count_frames",
                "-show_entries",
                "stream=width,height,nb_read_frames",
                "-of",
                "csv=p=0",
                name,
            ],
            cwd=tmp_path,
            text=True,
            capture_output=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert (done.stdout, done.stderr) == (f"{media.WIDTH},{media.HEIGHT},{frames}\n", "")
