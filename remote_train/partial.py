"""One pull of a run at a time on this laptop, and the file it writes until that is whole.

The lock file names that file: whoever takes the lock next removes what a killed pull left.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from remote_train.flocks import open_lock, try_lock
from remote_train.landing import PARTIAL
from remote_train.records import PULLER_LOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from remote_train.records import Run

LOOK_SECONDS = 0.1
WORD_SECONDS = 2.0
LONGEST = 8192
"""Bytes of a path that is read back from the lock file."""


class Partials:
    """The temporary files of the one pull of a run, one after another."""

    def __init__(self, lock: int | None) -> None:
        self._lock = lock

    @contextlib.contextmanager
    def writing(self, place: Path) -> Iterator[tuple[Path, BinaryIO]]:
        """Yield a new file beside `place`, gone at the end unless it was renamed; raise OSError."""
        partial = place.with_name(f".{place.name[:50]}.{os.getpid()}{PARTIAL}")
        self._note(os.fsencode(partial))
        try:
            with _create(partial) as file:
                yield partial, file
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
                self._note(b"")

    def forget(self) -> None:
        """Remove what a killed pull left; the next one tries again where that does not work."""
        if self._lock is None:
            return
        with contextlib.suppress(OSError, ValueError):
            left = Path(os.fsdecode(os.pread(self._lock, LONGEST, 0)))
            if left.is_absolute() and left.name.endswith(PARTIAL):
                left.unlink(missing_ok=True)
            self._note(b"")

    def _note(self, name: bytes) -> None:
        if self._lock is not None:
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, name, 0)


def _create(partial: Path) -> BinaryIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(partial, flags, 0o666), "wb")


@contextlib.contextmanager
def pulling_alone(run: Run, wait: Callable[[], object]) -> Iterator[Partials]:
    """Be the one process that pulls this run; call `wait` once when another does for WORD_SECONDS."""
    with run.pulling():  # before: a run that somebody waits for is in use too
        lock = open_lock(run.folder / PULLER_LOCK)
        try:
            _await(lock, wait)
            partials = Partials(lock)
            partials.forget()
            yield partials
        finally:
            if lock is not None:
                os.close(lock)


def _await(lock: int | None, wait: Callable[[], object]) -> None:
    word = time.monotonic() + WORD_SECONDS
    told = False
    while not try_lock(lock):
        if not told and time.monotonic() >= word:
            told = True
            wait()
        time.sleep(LOOK_SECONDS)
