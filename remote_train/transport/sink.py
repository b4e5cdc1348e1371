"""The inbound end of a stream: bytes that one thread feeds and another takes, joined once when taken."""

from __future__ import annotations

import threading

STDERR_TAIL = 8192


class Sink:
    """A queue of bytes with an end."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._closed = False
        self._changed = threading.Condition()

    def feed(self, data: bytes) -> None:
        """Add what has come."""
        with self._changed:
            self._chunks.append(data)
            self._changed.notify_all()

    def close(self) -> None:
        """Mark the end; what is there can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait(self, timeout: float) -> bool:
        """Wait for bytes or the end; say whether there is either."""
        with self._changed:
            return bool(self._changed.wait_for(lambda: self._chunks or self._closed, timeout))

    def wait_end(self, timeout: float) -> bool:
        """Wait for the end, whatever is still to be taken."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closed, timeout)

    def take(self) -> bytes:
        """Return everything that is there, b"" when that is nothing."""
        with self._changed:
            chunks, self._chunks = self._chunks, []
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def receive(self, timeout: float) -> bytes | None:
        """Return what a Channel's `receive` returns."""
        return self.take() if self.wait(timeout) else None


class Tail:
    """The last bytes of a stream."""

    def __init__(self, size: int = STDERR_TAIL) -> None:
        self._size = size
        self._data = b""
        self._lock = threading.Lock()

    def feed(self, data: bytes) -> None:
        """Add what has come, forget what is too old."""
        with self._lock:
            self._data = (self._data + data[-self._size :])[-self._size :]

    def read(self) -> bytes:
        """Return the tail."""
        with self._lock:
            return self._data
