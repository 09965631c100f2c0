"""The benchmark of device_transfer: all rivals send the same file. Nothing is timed here."""

from __future__ import annotations

import io
import os
from hashlib import sha256
from pathlib import Path

import pytest

from bench.device import NAMES, PIECE_BYTES, check_received, copy
from bench.measure import Failed
from tests.programs import measured


@pytest.mark.parametrize("is_hashed", [True, False])
@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, 2 * PIECE_BYTES + 5])
def test_a_lean_rival_passes_all_on_and_knows_its_digest(size: int, is_hashed: bool) -> None:
    content = os.urandom(size)
    came = bytearray()
    digest = copy(io.BytesIO(content + b"more").readinto, came.extend, size, is_hashed)
    assert came == content
    assert digest == (sha256(content).digest() if is_hashed else bytes(32))


def test_a_sender_that_hangs_up_is_noticed() -> None:
    with pytest.raises(SystemExit, match="gone"):
        copy(io.BytesIO(b"x").readinto, bytearray().extend, 2, False)


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


@pytest.mark.slow
def test_all_rivals_send_a_file_and_the_numbers_are_written(tmp_path: Path) -> None:
    told, numbers = measured("device", tmp_path, "--size 3 --turns 1", NAMES)
    assert "TLSv1.2, AES128-SHA256" in told
    assert all(slices[0]["wall_s"] > 0 for slices in numbers["slices"].values())
