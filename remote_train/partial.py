"""One pull of a run at a time on this laptop, and the file it writes until that is whole.

What has come of a file is kept across lost connections and across processes. A journal beside the run's record says which
file of the host it is, where it lies, and up to which bytes, with which SHA-256, it was verified; whoever pulls next reads
the file again against that and goes on at the last block that stands, or removes it when nobody wants it any more.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from remote_train.errors import (
    ConnectionGivenUp,
    ConnectionLost,
    HostKeyRefused,
    HostUnfit,
    LoginRefused,
    Unreachable,
)
from remote_train.flocks import open_lock, try_lock
from remote_train.host.durable import write_whole
from remote_train.landing import PARTIAL
from remote_train.private import open_append
from remote_train.records import PULLER_LOCK
from remote_train.refusals import SourceChanged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from remote_train.records import Run

JOURNAL = "pulling.jsonl"
LOOK_SECONDS = 0.1
WORD_SECONDS = 2.0
LONGEST = 8192
"""Bytes of a path that is read back from the lock file."""
PIECE = 1 << 20

Row = dict[str, Any]


class PullInterrupted(Exception):
    """A pull was told to leave off; what it has is kept."""


GOING_ON = (
    PullInterrupted,
    ConnectionLost,
    ConnectionGivenUp,
    Unreachable,
    LoginRefused,
    HostKeyRefused,
    HostUnfit,
)
"""What may end a pull and leave what has come of a file good to go on with."""


def name_partial(place: Path) -> Path:
    """Return what this process hides beside a place until that is whole."""
    return place.with_name(f".{place.name[:50]}.{os.getpid()}{PARTIAL}")


def is_partial_of(partial: Path, place: Path) -> bool:
    """Tell whether a process hid this beside a place."""
    return partial.parent == place.parent and partial.name.startswith(".") and partial.name.endswith(PARTIAL)


class Partial:
    """A file that is being brought: its bytes so far, and how many of them are verified."""

    def __init__(self, head: Row, journal: Path, folder: int) -> None:
        self.path = Path(head["partial"])
        self.folder = folder
        """Where it lies, open: its path may lead elsewhere by now."""
        self.good = 0
        self.digest = hashlib.sha256()
        """Of everything written so far."""
        self._head = head
        self._journal = journal
        self._file: BinaryIO | None = None
        self._good_digest = self.digest.copy()

    @property
    def identity(self) -> Row | None:
        """What tells the host's file from any other, None before the host has said so."""
        found: Row | None = self._head["identity"]
        return found

    def identify(self, identity: Row) -> None:
        """Begin with this file of the host, or go on with it; raise SourceChanged when another was begun."""
        if self.identity is not None:
            if self.identity != identity:
                raise SourceChanged(self._head["path"])
            return
        self._head["identity"] = identity
        write_whole(str(self._journal), _make_line(self._head), sync=False)  # first: no partial is forgotten
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.fdopen(os.open(self.path.name, flags, 0o666, dir_fd=self.folder), "r+b", buffering=0)

    @property
    def is_open(self) -> bool:
        """Tell whether there is a file of ours."""
        return self._file is not None

    @property
    def file(self) -> BinaryIO:
        """The open file."""
        if self._file is None:
            raise ValueError("not identified")
        return self._file

    def write(self, data: memoryview) -> None:
        """Take bytes that came; raise OSError."""
        self.digest.update(data)
        while data:
            data = data[self.file.write(data) :]

    def confirm(self) -> None:
        """Note that everything so far is verified."""
        self.good = self.file.tell()
        self._good_digest = self.digest.copy()
        with open_append(self._journal) as journal:
            journal.write(_make_line([self.good, self.digest.hexdigest()]))

    def rewind(self) -> None:
        """Drop what is not verified."""
        if self._file is not None:
            self._file.truncate(self.good)
            self._file.seek(self.good)
        self.digest = self._good_digest.copy()

    def resume(self, marks: list[tuple[int, str]]) -> None:
        """Open what another process left, and keep as much of it as the journal vouches for; raise OSError."""
        fd = os.open(self.path.name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.folder)
        self._file = os.fdopen(fd, "r+b", buffering=0)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_uid != os.getuid():
            raise FileExistsError(f"{self.path} is not what a pull left there")
        for end, digest in marks:
            if not self._hash_to(min(end, status.st_size)) or self.digest.hexdigest() != digest:
                break
            self.good = end
            self._good_digest = self.digest.copy()
        self.rewind()

    def _hash_to(self, end: int) -> bool:
        """Hash on up to a byte; False when there is nothing up to there."""
        before = self.file.tell()
        while (left := end - self.file.tell()) > 0 and (piece := self.file.read(min(PIECE, left))):
            self.digest.update(piece)
        return self.file.tell() == end > before

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class Partials:
    """The one file of a run that is on its way, and what an earlier pull left of it."""

    def __init__(self, folder: Path, lock: int | None) -> None:
        self._journal = folder / JOURNAL
        self._lock = lock

    def find_begun(self) -> Row | None:
        """Return what the journal says is on its way: place, path, attempt, identity."""
        return self._read()[0]

    def keep_only(self, wanted: Callable[[Row], bool]) -> None:
        """Remove what an earlier pull left, unless it is wanted; where that does not work the next one tries again."""
        self._forget_old()
        head = self.find_begun()
        if head is None or not wanted(head):
            self.forget(head)

    def forget(self, head: Row | None, folder: int | None = None) -> None:
        """Remove a partial file, in the open folder where it lies if that is known, then its journal."""
        with contextlib.suppress(OSError):
            if head is not None:
                path = Path(head["partial"])
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path if folder is None else path.name, dir_fd=folder)
            self._journal.unlink(missing_ok=True)

    @contextlib.contextmanager
    def writing(self, place: Path, folder: int, of: Row) -> Iterator[Partial]:
        """Yield the file beside `place`, in its open folder, for a file `of` the host (path, attempt), as far as it has come.

        It is gone at the end unless it was renamed, or something came between that it can go on after. Raises OSError.
        """
        head: Row = {**of, "place": str(place), "partial": str(name_partial(place)), "identity": None}
        partial = self._resume(head, folder) or Partial(head, self._journal, folder)
        try:
            yield partial
        except BaseException as error:
            partial.close()
            leave = partial.good > 0 and (isinstance(error, GOING_ON) or not isinstance(error, Exception))
            if not leave:
                self.forget(head if partial.is_open else None, folder)
            raise
        partial.close()
        self.forget(head, folder)

    def _resume(self, wanted: Row, folder: int) -> Partial | None:
        """Return what the journal has of a file; what it has of another is removed."""
        head, marks = self._read()
        if head is None:
            return None
        if any(head.get(key) != wanted[key] for key in ("path", "attempt", "place")):
            self.forget(head)
            return None
        partial = Partial(head, self._journal, folder)
        try:
            partial.resume(marks)
        except OSError:
            partial.close()
            self.forget(head, folder)
            return None
        wanted.update(head)
        return partial

    def _read(self) -> tuple[Row | None, list[tuple[int, str]]]:
        """Return what is on its way, and the ends and hashes of its verified blocks; a torn line ends them."""
        marks: list[tuple[int, str]] = []
        try:
            first, *rest = self._journal.read_bytes().split(b"\n")
            head = json.loads(first)
            fine = is_partial_of(Path(head["partial"]), Path(head["place"]))
        except (OSError, ValueError, TypeError, KeyError):
            return None, []
        with contextlib.suppress(ValueError, TypeError):
            for line in rest:
                end, digest = json.loads(line)
                marks.append((int(end), str(digest)))
        return (head, marks) if fine and head.get("identity") else (None, [])

    def _forget_old(self) -> None:
        """Remove what a pull of version 0.1 left that was killed: the lock file names it."""
        if self._lock is None:
            return
        with contextlib.suppress(OSError, ValueError):
            left = Path(os.fsdecode(os.pread(self._lock, LONGEST, 0)))
            if left.is_absolute() and left.name.endswith(PARTIAL):
                left.unlink(missing_ok=True)
            os.ftruncate(self._lock, 0)


def _make_line(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


@contextlib.contextmanager
def pulling_alone(
    run: Run, wait: Callable[[], object], look: Callable[[], object] = int
) -> Iterator[Partials]:
    """Be the one process that pulls this run; call `wait` once when another does for WORD_SECONDS, and `look` at each try."""
    with run.pulling():  # before: a run that somebody waits for is in use too
        lock = open_lock(run.folder / PULLER_LOCK)
        try:
            _await(lock, wait, look)
            yield Partials(run.folder, lock)
        finally:
            if lock is not None:
                os.close(lock)


def _await(lock: int | None, wait: Callable[[], object], look: Callable[[], object]) -> None:
    word = time.monotonic() + WORD_SECONDS
    told = False
    while not try_lock(lock):
        look()
        if not told and time.monotonic() >= word:
            told = True
            wait()
        time.sleep(LOOK_SECONDS)
