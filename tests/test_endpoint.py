"""What both programs share: hosts, key files, numbers on the command line, files they write."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from endpoint import id_list, is_loopback, load_keys
from program import UserError, port_number, positive, seconds, write_text
from tests.programs import posix_only

GOOD_KEY = "ab" * 16


def test_a_host_with_one_foreign_address_is_not_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))
        for address in ("127.0.0.1", "192.0.2.1")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert not is_loopback("both")
    del found[1]
    assert is_loopback("ours")


@pytest.mark.parametrize(
    "text",
    [
        f"0:{GOOD_KEY}\n",
        f"256:{GOOD_KEY}\n",
        f"1:{GOOD_KEY[2:]}\n",
        f"1:{GOOD_KEY}\n1:{'cd' * 16}\n",
        f"1:{GOOD_KEY} # the first\n",
        f"1:{GOOD_KEY}\nand that is all\n",
        "\n \n",
    ],
    ids=["id 0", "id 256", "short key", "id twice", "more behind it", "a line of prose", "nothing"],
)
def test_a_malformed_key_file_is_refused_and_no_key_shown(tmp_path: Path, text: str) -> None:
    path = tmp_path / "some.keys"
    path.write_text(f"\n 255 : {GOOD_KEY.upper()} \n")
    path.chmod(0o600)
    assert load_keys(path) == {255: bytes.fromhex(GOOD_KEY)}
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_keys(path)
    assert GOOD_KEY not in str(caught.value)


@posix_only
@pytest.mark.parametrize("mode", [0o640, 0o620, 0o604, 0o601], ids=oct)
def test_a_key_file_that_others_can_access_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "some.keys"
    path.write_text(f"1:{GOOD_KEY}\n")
    path.chmod(mode)
    with pytest.raises(UserError, match="chmod 600"):
        load_keys(path)


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (id_list, "0"),
        (id_list, "4-1"),
        (id_list, "1-256"),
        (id_list, "1,,2"),
        (seconds, "0"),
        (seconds, "-1"),
        (seconds, "inf"),
        (seconds, "nan"),
        (positive, "0"),
        (positive, "9223372036854775808"),
        (positive, "1.5"),
        (port_number, "-1"),
        (port_number, "65536"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_number_outside_its_limits_is_refused(read: Callable[[str], object], text: str) -> None:
    with pytest.raises(ValueError):
        read(text)


def test_a_number_at_its_limit_is_accepted() -> None:
    assert id_list("1,3-4,255") == [1, 3, 4, 255]
    assert (seconds("1e-3"), positive("1")) == (0.001, 1)
    assert (port_number("0"), port_number("65535")) == (0, 65_535)


def test_a_file_that_cannot_be_written_is_reported_in_one_sentence(tmp_path: Path) -> None:
    write_text(str(tmp_path / "some.txt"), "one\ntwo\n")
    assert (tmp_path / "some.txt").read_bytes() == b"one\ntwo\n"
    with pytest.raises(UserError, match=r"cannot write .*No such file"):
        write_text(str(tmp_path / "nowhere" / "some.txt"), "one\n")
