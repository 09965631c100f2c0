"""The demo and what it sends: files that players open, and a demo that cannot hide a failure."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from companions.device_transfer import demo, media
from companions.device_transfer.demo import Stage, main
from companions.device_transfer.protocol import CHUNK_BYTES
from program import UserError

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 120
DEMO = [sys.executable, "-m", "companions.device_transfer.demo"]
posix_only = pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals")

# What is sent


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at = 8
    while at < len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length) == (zlib.crc32(name + body),)
        yield name, body
        at += 12 + length


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


# The demo


@pytest.fixture
def acts(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A demo whose acts do nothing, and whose signals stay with pytest."""
    monkeypatch.setattr(Stage, "__enter__", lambda stage: stage)
    for act in ("certify", "transfer", "revoke", "verify", "attack"):
        monkeypatch.setattr(demo, act, lambda stage: None)
    return monkeypatch


def test_what_goes_wrong_is_told_and_the_folder_is_gone(
    acts: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders: list[Path] = []
    acts.setattr(sys, "argv", ["demo"])
    acts.setattr(demo, "certify", lambda stage: folders.append(stage.folder))
    assert main() == 0
    acts.setattr(demo, "attack", lambda stage: stage.check(False, "the sky fell"))
    assert main() == 1
    assert capsys.readouterr().out.splitlines()[-1] == "PROBLEM: the sky fell"
    assert len({*folders}) == 2
    assert not any(folder.exists() for folder in folders)


def test_a_folder_is_kept_and_an_existing_one_refused(
    acts: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "kept"
    acts.setattr(sys, "argv", ["demo", "--keep", str(folder)])
    acts.setattr(demo, "certify", lambda stage: (stage.folder / "file").touch())
    assert main() == 0
    assert (folder / "file").exists()
    acts.setattr(demo, "certify", lambda stage: (stage.folder / "file").unlink())
    with pytest.raises(UserError, match="cannot make"):
        main()
    assert (folder / "file").exists()


@pytest.mark.slow
def test_a_program_that_ends_otherwise_than_it_should_is_a_problem(
    capsys: pytest.CaptureFixture[str], acts: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stage = Stage(tmp_path)
    with stage:
        assert stage.finish("ca", "list", tmp_path / "no such folder") != []
    stage.processes["ca"].communicate()  # closes its pipe
    assert stage.problems == ["ca ended with exit code 2, not 0"]
    assert capsys.readouterr().out == "$ ca list 'no such folder'\n"


@pytest.mark.slow
def test_the_demo_shows_all_of_it_within_80_columns_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        DEMO,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        text=True,
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert done.stdout.isascii()
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert len(done.stdout.splitlines()) <= 120
    for wanted in (
        "'door.avi': 5,530,408 bytes acknowledged",
        "CertificateRevoked",
        "file door.png          133226 ok\n",
        "ok, revoked by now",
        "not prevented",
    ):
        assert wanted in done.stdout
    assert done.stdout.endswith("\nAll went as it should.\n")
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
@posix_only
def test_ctrl_c_in_the_middle_ends_all_and_removes_the_folder(tmp_path: Path) -> None:
    with subprocess.Popen(
        DEMO,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("server "):
                process.send_signal(signal.SIGINT)
                break
        _, error = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert error == ""
    assert not [*tmp_path.iterdir()]
