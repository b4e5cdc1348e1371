"""Locks on files of the state root; the kernel lets go of them with the process that holds them.

An attempt's `lock` is held by who starts it, then by its supervisor. `gc.lock` is shared by every start and
exclusive where something is taken away, so that no start loses what it has just been promised.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time

from remote_train.host import layout

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Callable, Optional

PAUSE = 0.005


def try_lock(fd: int, how: int = fcntl.LOCK_EX) -> bool:
    """Lock an open file if nobody else does, without waiting."""
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        return False
    return True


def open_lock(path: str) -> int:
    """Open a lock file, made where there is none."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def is_at(fd: int, path: str) -> bool:
    """Tell whether a locked file is still the one of that name: it may have been taken away while we waited for it."""
    try:
        there = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def take(path: str, how: int, seconds: float, progress: Callable[[], None] = lambda: None) -> Optional[int]:
    """Return the descriptor of a lock that was got within `seconds`, None when it was not."""
    deadline = time.monotonic() + seconds
    fd = open_lock(path)
    try:
        while not try_lock(fd, how):
            if time.monotonic() >= deadline:
                os.close(fd)
                return None
            progress()
            time.sleep(PAUSE)
    except OSError:
        os.close(fd)
        raise
    return fd


def hold_off_cleaning(root: str, seconds: float, progress: Callable[[], None]) -> Optional[int]:
    """Return a descriptor that keeps every file of the root in its place until it is closed."""
    return take(os.path.join(root, layout.GC_LOCK), fcntl.LOCK_SH, seconds, progress)


def hold_off_starts(root: str, seconds: float, progress: Callable[[], None] = lambda: None) -> Optional[int]:
    """Return a descriptor that keeps starts waiting until it is closed, None when one is going on all the time."""
    return take(os.path.join(root, layout.GC_LOCK), fcntl.LOCK_EX, seconds, progress)
