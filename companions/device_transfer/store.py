"""The folder of received files: all of a file or nothing of it, and nothing ever overwritten.

Content goes into a file with a name of our own, in the same folder. It gets its final name at the
very end, in one step that fails if that name is taken, be it by a link, or in other letters where
the system makes no difference. No name leads out of the folder. One server at a time uses a folder:
`clean` removes what a killed one has left.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from companions.device_transfer.transfer import MAX_NAME_BYTES, BadName, safe_name
from program import UserError, plural, reason_of
from protocol_fsm import ProtocolError

JOURNAL = "journal.jsonl"  # in the same folder: no file may have its name
PARTIAL = re.compile(r"\.[0-9a-f]{16}\.partial")  # no final name begins with a dot
MAX_SAME_NAME = 1_000  # numbered files of one name; later ones get random digits
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)  # Windows has O_BINARY


class StoreFailed(ProtocolError):
    """The server cannot store it, because its disk is full, for example."""


@contextlib.contextmanager
def storing(what: str) -> Iterator[None]:
    """Turn every error of the file system inside into StoreFailed, one of a name's encoding too."""
    try:
        yield
    except (OSError, UnicodeError) as error:
        raise StoreFailed(what, reason_of(error)) from error


class Store:
    """A folder that only its owner can write, made with mode 0700 if there is none.

    Any thread may use it. Raises UserError.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            mode = self.folder.stat().st_mode
        except OSError as error:
            raise UserError(f"cannot keep files in {folder}: {reason_of(error)}") from None
        if sys.platform != "win32" and mode & 0o022:  # they could swap what is being verified
            raise UserError(f"others can write {folder}; make it yours: chmod go-w {folder}")

    def clean(self) -> int:
        """Remove the files that a killed server has left, and count them. Raises UserError."""
        try:
            left = [path for path in self.folder.iterdir() if PARTIAL.fullmatch(path.name)]
            for path in left:
                path.unlink()
        except OSError as error:
            raise UserError(f"cannot clean {self.folder}: {reason_of(error)}") from None
        return len(left)

    def begin(self) -> Partial:
        """Return a new file without a final name, for a `with` block. Raises StoreFailed."""
        return Partial(self)

    def remove(self, name: str) -> None:
        """Discard a file just kept, because the journal does not name it. Raises StoreFailed."""
        with storing("to discard a file"):
            (self.folder / self.final_name(name)).unlink()

    def final_name(self, name: str) -> str:
        """Return a name that stays in the folder, or raise BadName."""
        final = safe_name(name)
        if unicodedata.normalize("NFKC", final).casefold() == JOURNAL:
            final = "_" + final
        if os.path.basename(final) != final or final in ("", ".", ".."):
            raise BadName("a name inside the folder", ascii(final))
        return final


class Partial:
    """A file without a name until `keep`. Leaving its `with` block before that removes it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._path = store.folder / f".{secrets.token_hex(8)}.partial"
        with storing("a new file"):
            self._file = os.open(self._path, NEW_FILE, 0o600)

    def __enter__(self) -> Partial:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):  # `clean` will try again
            self._close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        """Append all of `chunk`. Raises StoreFailed."""
        with storing(f"room for {plural(len(chunk), 'byte')}"):
            write_all(self._file, chunk)

    def sync(self) -> None:
        """Have the disk write the content so far, so that `keep` is quick. Raises StoreFailed."""
        with storing("the content so far"):
            os.fsync(self._file)

    def keep(self, name: str) -> str:
        """Give it a final name, and return that: `name`, or one like it if that is taken.

        By then it is on the disk. Raises BadName and StoreFailed, and then no file has the name.
        """
        final = self._store.final_name(name)
        with storing("a whole file"):
            os.fsync(self._file)
            self._close()
            for candidate in candidates(final):
                with contextlib.suppress(FileExistsError):
                    give_name(self._path, self._store.folder / candidate)
                    sync_folder(self._store.folder)
                    return candidate
        raise StoreFailed("a free name", "none")

    def _close(self) -> None:
        file = self._file
        self._file = -1  # the number may soon be another file's
        if file >= 0:
            os.close(file)


def candidates(name: str) -> Iterator[str]:
    """Yield a.png, a-2.png, a-3.png ... and last a name that no file can have."""
    yield name
    for number in range(2, MAX_SAME_NAME):
        yield numbered(name, f"-{number}")
    yield numbered(name, f"-{secrets.token_hex(8)}")


def numbered(name: str, mark: str) -> str:
    """Put `mark` before the ending, and shorten the stem to fit 255 bytes of UTF-8."""
    stem, ending = os.path.splitext(name)
    if len(ending) > 16:  # not an ending, but a long name with a dot in it
        stem = name
        ending = ""
    room = MAX_NAME_BYTES - len((mark + ending).encode("utf-8"))
    return stem.encode("utf-8")[:room].decode("utf-8", "ignore") + mark + ending


def write_all(file: int, data: bytes) -> None:
    """Write all of `data`, in as many steps as the system takes."""
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]


def give_name(path: Path, final: Path) -> None:
    """Give a file a name that is free, in one step; its old name may stay beside it.

    Without hard links (FAT) it takes two steps: first an empty file takes the name, and stays if
    the program is killed between them. Raises FileExistsError, or another OSError.
    """
    try:
        os.link(path, final)
    except FileExistsError:
        raise
    except (OSError, AttributeError):
        os.close(os.open(final, NEW_FILE, 0o600))
        try:
            os.replace(path, final)
        except OSError:
            final.unlink()
            raise


def sync_folder(folder: Path) -> None:
    """Make a new name survive a power cut, on systems that let a program do so."""
    if hasattr(os, "O_DIRECTORY"):
        with contextlib.suppress(OSError):
            file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(file)
            finally:
                os.close(file)
