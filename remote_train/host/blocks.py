"""A file that is fetched: blocks, each followed by the SHA-256 of all its bytes that this connection has carried so far.

So the laptop knows of every block as it comes that it is whole, and goes on from there after a lost connection. Where a
file is sent from its beginning, that hash is the whole file's too, and it is hashed once.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time

from remote_train.host.sources import Reader
from remote_train.host.wire import DATA, make_end, make_frame

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Dict, Optional

SMALLEST = 4096
LARGEST = 64 << 20
"""Bytes of a block that a laptop may ask for."""
TURN_SECONDS = 0.05
"""What a frame may take at the rate that a laptop asks for, and how much of it may be made up for at once."""
TICK_NS = 50_000_000
"""Two writes within a tick of the kernel's clock, 10 ms at most, leave the same time behind."""
COARSE_TICK_NS = 2_000_000_000
"""The same on a file system that keeps whole seconds, or every second one."""


class Pace:
    """Has the files of one connection take turns so that together they go no faster than is asked for."""

    def __init__(self) -> None:
        self.rate = 0.0
        """Bytes a second; 0: as fast as the credit allows."""
        self.due = 0.0

    def limit(self, size: int) -> int:
        """Return how long a frame may be."""
        return min(size, max(1, int(self.rate * TURN_SECONDS))) if self.rate else size

    def spend(self, size: int) -> None:
        """Note that so many bytes go."""
        if self.rate:
            self.due = max(self.due, time.monotonic() - TURN_SECONDS) + size / self.rate


class Fetch(Reader):
    """Send one file as it is now; says so in END when it changed meanwhile, as soon as a block has shown it."""

    bulk = True

    def __init__(self, stream: int, path: str, offset: int, block: int, pace: Optional[Pace] = None) -> None:
        super().__init__(stream, path, offset)
        self._pace = pace or Pace()
        fd = self.open()
        if fd is None:
            raise FileNotFoundError(path)
        self.status = os.fstat(fd)
        self._block = self._left = block
        self._sum = hashlib.sha256() if offset else self.hash
        self._trailer = b""
        self._torn = False
        self._settled = False

    def identity(self) -> Dict[str, object]:
        """Return what tells this file, as it was opened, from any other."""
        status = self.status
        return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": str(status.st_ino)}

    def produce(self, limit: int) -> Optional[bytes]:
        """Return the next frame, or None once the file was sent; what cannot be read is the end of this file alone."""
        if not self.wants_turn():
            return None
        before = self.offset
        try:
            return self._make_next(self._pace.limit(limit))
        except OSError as error:
            return self._fail(error)
        finally:
            self._pace.spend(self.offset - before)

    def _fail(self, error: OSError) -> bytes:
        """Return an END that says why: of a file that was replaced or removed by another machine, that it has changed."""
        self.done = True
        self.close()
        if error.errno in (errno.ESTALE, errno.ENOENT):
            return make_end(self.stream, {"changed": True})
        return make_end(self.stream, {"error": error.strerror or str(error)})

    def _make_next(self, limit: int) -> Optional[bytes]:
        if self._trailer:
            piece, self._trailer = self._trailer[:limit], self._trailer[limit:]
            return make_frame(DATA, self.stream, piece)
        left = min(self._left, self.status.st_size - self.offset)
        data = self.read(min(limit, left)) if left > 0 and not self._torn else b""
        if data:
            self._note(data)
            return make_frame(DATA, self.stream, data)
        if self._torn or self.offset < self.status.st_size:
            return self.end(changed=True)
        if not self.hash_skipped() or self.fd is None:
            return None
        # A file renamed over or rotated away meanwhile is whole: the descriptor still reads the old one.
        return self.end(changed=self._has_changed(self.fd))

    def _note(self, data: bytes) -> None:
        """Take what is sent into the hash, and end the block where it is full."""
        if self._sum is not self.hash:
            self._sum.update(data)
        self._left -= len(data)
        if not self._left or self.offset == self.status.st_size:
            self._trailer = self._sum.digest()
            self._left = self._block
            self._torn = self.fd is None or self._has_changed(self.fd)

    def _has_changed(self, fd: int) -> bool:
        now = os.fstat(fd)
        return (now.st_size, now.st_mtime_ns) != (self.status.st_size, self.status.st_mtime_ns)

    def _is_settled(self) -> bool:
        """Tell whether a write from now on would leave another time behind than the file has."""
        if not self._settled:
            tick = TICK_NS if self.status.st_mtime_ns % 1_000_000_000 else COARSE_TICK_NS
            self._settled = not 0 <= time.time_ns() - self.status.st_mtime_ns < tick
        return self._settled

    def wants_turn(self) -> bool:
        """Tell whether there is work left, and it is time for it."""
        self.due = self._pace.due
        return not self.done and self._is_settled() and time.monotonic() >= self.due
