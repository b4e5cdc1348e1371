"""inotify by ctypes: be woken when an output grows. Where there is none, `open_watch` returns None: poll."""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Optional

_NONBLOCK = os.O_NONBLOCK
_CLOEXEC = os.O_CLOEXEC
_MODIFY = 0x2
_CREATE = 0x100
_MOVED_TO = 0x80


class Watch:
    """One inotify descriptor; readable when something watched has changed."""

    def __init__(self, libc: ctypes.CDLL, fd: int) -> None:
        self._libc = libc
        self.fd = fd

    def add(self, path: str) -> bool:
        """Watch a file's growth, or a folder's files appearing and growing; False when it cannot be."""
        mask = _MODIFY | _CREATE | _MOVED_TO
        return bool(self._libc.inotify_add_watch(self.fd, os.fsencode(path), mask) >= 0)

    def drain(self) -> None:
        """Forget what is pending: what changed is found by looking."""
        try:
            while os.read(self.fd, 65536):
                pass
        except BlockingIOError:
            return


def open_watch() -> Optional[Watch]:
    """Return a watch, or None on a system without inotify or out of watches."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        fd = libc.inotify_init1(_NONBLOCK | _CLOEXEC)
    except (OSError, AttributeError):
        return None
    return Watch(libc, fd) if fd >= 0 else None
