"""The meter's file: whole lines of JSON, from one process of the training only, and silence when they cannot be written."""

from __future__ import annotations

import fcntl
import json
import os
import time

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from typing import Any, Dict, Optional, Tuple

METER_VARIABLE = "REMOTE_TRAIN_METER"
BEGAN_VARIABLE = "REMOTE_TRAIN_BEGAN"


class Lines:
    """Appends lines to the file, each in one write; closed for good by the first one that fails.

    A process whose RANK is not 0 has no file, nor has one that comes while another holds the lock on it: a training
    started by the training. A forked child never writes, though it has the descriptor. A script that closes descriptors
    it does not know closes ours as well, and its next file may have the number: that is never written to, nor closed.
    """

    __slots__ = ("_began", "_fd", "_owner", "_same")

    def __init__(self, path: str, began: float) -> None:
        self._began, self._owner = began, os.getpid()
        self._fd: Optional[int] = open_alone(path)
        self._same = identify(self._fd)

    @property
    def open(self) -> bool:
        """Whether lines are still taken."""
        return self._fd is not None and os.getpid() == self._owner

    def now(self) -> float:
        """Return the seconds since the supervisor began, on the host's monotonic clock."""
        return time.monotonic() - self._began

    def write(self, kind: str, fields: Dict[str, Any]) -> None:
        """Append one line; a field that is not finite makes it fail, as JSON has no word for it."""
        if not self.open:
            return
        line = dict({"kind": kind, "time": round(self.now(), 6)}, **fields)
        text = json.dumps(line, allow_nan=False).encode("ascii") + b"\n"
        fd = self._fd
        try:
            whole = fd is not None and self._is_ours(fd) and os.write(fd, text) == len(text)
        except OSError:  # a full disk
            whole = False
        if not whole:
            self.close()

    def close(self) -> None:
        """Let go of the file; the lock goes with the last process that has it open."""
        fd, self._fd = self._fd, None
        if fd is not None and identify(fd) == self._same:
            os.close(fd)

    def _is_ours(self, fd: int) -> bool:
        """Tell whether the number still means our file, and the file still has a name."""
        return identify(fd) == self._same and os.fstat(fd).st_nlink > 0


def identify(fd: Optional[int]) -> Optional[Tuple[int, int]]:
    """Return what a descriptor's file is told from others by; None for one that is closed."""
    try:
        status = os.fstat(-1 if fd is None else fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def open_lines() -> Optional[Lines]:
    """Return the file that the environment names, or None when this process is not the one to write it."""
    path = os.environ.get(METER_VARIABLE)
    if not path or os.environ.get("RANK", "0").strip() != "0":
        return None
    try:
        lines = Lines(path, float(os.environ.get(BEGAN_VARIABLE, "")))
    except ValueError:
        return None
    return lines if lines.open else None


def open_alone(path: str) -> Optional[int]:
    """Open a file for appending under a lock that ends with this process; None when that cannot be."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # another process has it
        os.close(fd)
        return None
    except OSError:  # a file system without locks: RANK has decided
        return fd
    return fd
