"""Where DATA frames come from: the tail of an output that still grows; a file that is fetched comes from `blocks.py`.

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


class Reader:
    """Read a file from an offset, hashing everything before and after it."""

    def __init__(self, stream: int, path: str, offset: int) -> None:
        self.stream = stream
        self.path = path
        self.offset = offset
        self.done = False
        self.fd: Optional[int] = None
        self.hash = hashlib.sha256()
        self.hashed = 0
        self.due = 0.0
        """The moment before which it is not to be asked for a frame."""

    def open(self) -> Optional[int]:
        """Return the descriptor, None while there is no file."""
        if self.fd is None:
            try:
                self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                return None
        return self.fd

    def _pread(self, fd: int, size: int, offset: int) -> bytes:
        try:
            return os.pread(fd, size, offset)
        except OSError as error:
            raise name_place(error, self.path) from None

    def read(self, limit: int) -> bytes:
        """Return the next bytes, b"" where there are none."""
        fd = self.open()
        data = self._pread(fd, min(limit, CHUNK), self.offset) if fd is not None else b""
        if self.hashed == self.offset:
            self.hash.update(data)
            self.hashed += len(data)
        self.offset += len(data)
        return data

    def hash_skipped(self) -> bool:
        """Hash a piece of what was never read; True when the hash covers everything up to the offset."""
        if self.hashed < self.offset and self.fd is not None:
            size = min(CATCH_UP, self.offset - self.hashed)
            data = self._pread(self.fd, size, self.hashed)
            self.hash.update(data)
            self.hashed += len(data)
            if not data:
                self.hashed = self.offset
        return self.hashed >= self.offset

    def end(self, **more: object) -> bytes:
        """Return the END frame."""
        self.done = True
        self.close()
        summary: Dict[str, Any] = {"length": self.offset, "sha256": self.hash.hexdigest()}
        summary.update(more)
        return make_end(self.stream, summary)

    def close(self) -> None:
        """Close the file."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


class Tail(Reader):
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
        data = self.read(left) if left > 0 else b""
        if data:
            return make_frame(DATA, self.stream, data)
        if self.ended and (self.partial or (self.fd is None and self.offset)):
            return self.end(
                sha256=None
            )  # nobody wants a hash, or the file was removed with what was sent of it
        if self.ended and self.hash_skipped():
            return self.end()
        return None

    def wants_turn(self) -> bool:
        """Tell whether there is work left although nothing new was written."""
        return self.ended and not self.done
