"""The benchmark of device_transfer: all rivals send the same file. Nothing is timed here."""

from __future__ import annotations

import os
import socket
import threading
from hashlib import sha256
from pathlib import Path

import pytest

from bench.device import NAMES, PIECE_BYTES, Slice, check_received, give, of, table, take
from bench.measure import BAR, Failed
from tests.programs import TIMEOUT_S, measured


def took(wall_s: float) -> Slice:
    return Slice(wall_s, wall_s / 2, wall_s / 4, "a channel")


@pytest.mark.parametrize("is_hashed", [True, False])
@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, 2 * PIECE_BYTES + 5])
def test_a_lean_rival_takes_all_that_is_given_and_both_have_its_digest(
    size: int, is_hashed: bool, tmp_path: Path
) -> None:
    content = os.urandom(size)
    came = bytearray()
    (tmp_path / "file").write_bytes(content)
    ours, theirs = socket.socketpair()
    with ours, theirs, (tmp_path / "file").open("rb", buffering=0) as file:
        given: list[bytes] = []
        sender = threading.Thread(
            target=lambda: given.append(give(ours, file.readinto, is_hashed)), daemon=True
        )
        sender.start()
        digest = take(theirs, size, came.extend, is_hashed)
        sender.join(TIMEOUT_S)
    assert came == content
    assert [digest] == given == [sha256(content).digest() if is_hashed else bytes(32)]


def test_a_sender_that_hangs_up_is_noticed() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.sendall(b"x")
        ours.close()
        with pytest.raises(SystemExit, match="gone"):
            take(theirs, 2, bytearray().extend, False)


def test_a_file_that_arrives_short_is_no_measurement(tmp_path: Path) -> None:
    path = tmp_path / "video.bin"
    path.write_bytes(os.urandom(100))
    (tmp_path / "received").mkdir()
    (tmp_path / "received" / "file").write_bytes(path.read_bytes()[:99])
    with pytest.raises(Failed, match="all of the file"):
        check_received("plain", path, tmp_path)
    (tmp_path / "received" / "file").write_bytes(path.read_bytes())
    check_received("plain", path, tmp_path)
    assert not [*(tmp_path / "received").iterdir()]
    with pytest.raises(Failed, match="all of the file"):
        check_received("plain", path, tmp_path)


def test_a_ratio_is_of_speeds_in_the_same_turn() -> None:
    ours = [took(2.0), took(4.0), took(40.0)]
    theirs = [took(1.0), took(3.0), took(10.0)]
    assert of(ours, theirs) == (0.5, 0.375, 0.625)
    assert of(ours, ours) == (1.0, 1.0, 1.0)


def test_the_table_names_all_fits_a_terminal_and_bars_show_speed() -> None:
    seen = {rival: [took(n), took(n)] for n, rival in enumerate(NAMES, 1)}
    lines = table(10_000_000, seen).splitlines()
    assert max(map(len, lines)) <= 79
    assert "\n".join(lines).isascii()
    rows = {
        name: [line for line in lines if line.startswith(f"{name:17} ")] for name in NAMES.values()
    }
    assert [len(each) for each in rows.values()] == [2] * len(NAMES)
    assert "0.20 (0.20-0.20)" in rows["plain TCP"][0]
    assert rows["plain TCP"][0].split()[2:5] == ["10", "50.00", "25.00"]
    assert rows["plain TCP"][1].count("#") == 2 * rows["TLS 1.2"][1].count("#") == BAR


@pytest.mark.slow
def test_all_rivals_send_a_file_and_the_numbers_are_written(tmp_path: Path) -> None:
    told, numbers = measured("device", tmp_path, "--size 3 --turns 1")
    assert "TLSv1.2, AES128-SHA256" in told
    assert {rival: len(slices) for rival, slices in numbers["slices"].items()} == dict.fromkeys(
        NAMES, 1
    )
    assert all(one["wall_s"] > 0 for slices in numbers["slices"].values() for one in slices)
