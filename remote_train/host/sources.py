"""Where DATA frames come from: the tail of an output that still grows, and a file that is fetched.

A source gives one frame at a time and never more than it is asked for; it ends with an END frame that states the
length and the SHA-256 of the whole file, also of the part that was skipped because the laptop had it already.
"""

from __future__ import annotations

import hashlib
import os

from remote_train.host.disk import name_place
from remote_train.host.wire import CHUNK, DATA, make_end, make_frame

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, Optional

CATCH_UP = 8 << 20


class _Reader:
    """Read a file from an offset, hashing everything before and after it."""

    def __init__(self, stream: int, path: str, offset: int) -> None:
        self.stream = stream
        self.path = path
        self.offset = offset
        self.done = False
        self._fd: Optional[int] = None
        self._hash = hashlib.sha256()
        self._hashed = 0

    def _open(self) -> Optional[int]:
        if self._fd is None:
            try:
                self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                return None
        return self._fd

    def _pread(self, fd: int, size: int, offset: int) -> bytes:
        try:
            return os.pread(fd, size, offset)
        except OSError as error:
            raise name_place(error, self.path) from None

    def _read(self, limit: int) -> bytes:
        fd = self._open()
        data = self._pread(fd, min(limit, CHUNK), self.offset) if fd is not None else b""
        if self._hashed == self.offset:
            self._hash.update(data)
            self._hashed += len(data)
        self.offset += len(data)
        return data

    def _hash_skipped(self) -> bool:
        """Hash a piece of what was never read; True when the hash covers everything up to the offset."""
        if self._hashed < self.offset and self._fd is not None:
            size = min(CATCH_UP, self.offset - self._hashed)
            data = self._pread(self._fd, size, self._hashed)
            self._hash.update(data)
            self._hashed += len(data)
            if not data:
                self._hashed = self.offset
        return self._hashed >= self.offset

    def _end(self, **more: object) -> bytes:
        self.done = True
        self.close()
        summary: Dict[str, Any] = {"length": self.offset, "sha256": self._hash.hexdigest()}
        summary.update(more)
        return make_end(self.stream, summary)

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class Tail(_Reader):
    """Follow an output; ends only after `ended` was set and the last byte was sent.

    With `partial`, what came before the offset is of no interest: nothing is hashed. `until` is a byte to end at.
    """

    bulk = False

    def __init__(self, stream: int, path: str, offset: int) -> None:
        super().__init__(stream, path, offset)
        self.partial = False
        self.until: Optional[int] = None
        self.ended = False

    def produce(self, limit: int) -> Optional[bytes]:
        """Return the next frame, or None while there is nothing to send."""
        if self.done:
            return None
        left = limit if self.until is None else min(limit, self.until - self.offset)
        data = self._read(left) if left > 0 else b""
        if data:
            return make_frame(DATA, self.stream, data)
        if self.ended and (self.partial or (self._fd is None and self.offset)):
            return self._end(
                sha256=None
            )  # nobody wants a hash, or the file was removed with what was sent of it
        if self.ended and self._hash_skipped():
            return self._end()
        return None

    def wants_turn(self) -> bool:
        """Tell whether there is work left although nothing new was written."""
        return self.ended and not self.done


class Fetch(_Reader):
    """Send one file as it is now; says so in END when it changed meanwhile."""

    bulk = True

    def __init__(self, stream: int, path: str, offset: int) -> None:
        super().__init__(stream, path, offset)
        fd = self._open()
        if fd is None:
            raise FileNotFoundError(path)
        self.status = os.fstat(fd)

    def produce(self, limit: int) -> Optional[bytes]:
        """Return the next frame, or None once the file was sent."""
        if self.done:
            return None
        left = self.status.st_size - self.offset
        data = self._read(min(limit, left)) if left > 0 else b""
        if data:
            return make_frame(DATA, self.stream, data)
        if not self._hash_skipped() or self._fd is None:
            return None
        # A file renamed over or rotated away meanwhile is whole: the descriptor still reads the old one.
        return self._end(changed=self._changed(os.fstat(self._fd)))

    def _changed(self, now: os.stat_result) -> bool:
        return (now.st_size, now.st_mtime_ns) != (self.status.st_size, self.status.st_mtime_ns)

    def wants_turn(self) -> bool:
        """Tell whether there is work left."""
        return not self.done
