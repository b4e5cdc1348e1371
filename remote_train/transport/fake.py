r"""A host that exists only in memory: a function plays the command, and the connection can be lost at any byte.

    def host(command: str, pipe: Pipe) -> None:
        pipe.send(b"ready\n")
        while data := pipe.receive():
            pipe.send(data.upper())

    channel = FakeTransport(host).open("anything")

The function runs in a thread of its own; when it returns, the stream ends.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Literal

from remote_train.errors import ConnectionLost
from remote_train.transport.sink import Sink, Tail

if TYPE_CHECKING:
    from collections.abc import Callable

Direction = Literal["up", "down", "both"]


class FakeTransport:
    """Opens channels to a function. `commands` lists what it was asked to run."""

    def __init__(self, host: Callable[[str, Pipe], None], name: str = "fake") -> None:
        self.name = name
        self.commands: list[str] = []
        self._host = host
        self._cuts: deque[tuple[int, Direction]] = deque()
        self._errors: deque[Exception] = deque()
        self._channel: FakeChannel | None = None

    def cut_after(self, count: int, direction: Direction = "both") -> FakeTransport:
        """Lose the next channel once `count` bytes have crossed it that way; call again for the channel after it."""
        self._cuts.append((count, direction))
        return self

    def refuse_next(self, error: Exception) -> FakeTransport:
        """Raise `error` from the next `open`; call again for the one after it."""
        self._errors.append(error)
        return self

    def open(self, command: str) -> FakeChannel:
        """Start the function on `command`."""
        self.close()
        self.commands.append(command)
        if self._errors:
            raise self._errors.popleft()
        wire = _Wire(*(self._cuts.popleft() if self._cuts else (None, "both")))
        threading.Thread(target=_play, args=(self._host, command, wire), daemon=True).start()
        self._channel = FakeChannel(wire)
        return self._channel

    def close(self) -> None:
        """Close the channel that is open."""
        if self._channel:
            self._channel.close()
            self._channel = None


def _play(host: Callable[[str, Pipe], None], command: str, wire: _Wire) -> None:
    try:
        host(command, Pipe(wire))
    except BrokenPipeError:
        return  # the other side has left: so would a real command end
    finally:
        wire.lose()


class _Wire:
    """Both directions of one channel, and the place where it breaks."""

    def __init__(self, cut: int | None, direction: Direction) -> None:
        self.up, self.down, self.stderr = Sink(), Sink(), Tail()
        self.lost = False
        self._left = cut
        self._direction = direction
        self._lock = threading.Lock()

    def carry(self, data: bytes, way: Literal["up", "down"]) -> bool:
        """Carry what the cut allows; say whether all of it arrived."""
        with self._lock:
            if self.lost:
                return False
            passed = data
            if self._left is not None and self._direction in {way, "both"}:
                passed = data[: self._left]
                self._left -= len(passed)
                self.lost = self._left == 0
            if passed:
                (self.up if way == "up" else self.down).feed(passed)
        if self.lost:
            self.lose()
        return len(passed) == len(data)

    def lose(self) -> None:
        """Break the connection: neither side hears more."""
        self.lost = True
        self.up.close()
        self.down.close()


class FakeChannel:
    """The laptop's end."""

    def __init__(self, wire: _Wire) -> None:
        self._wire = wire

    def send(self, data: bytes) -> None:
        """Send to the function; raise ConnectionLost once the channel is lost or closed."""
        if not self._wire.carry(bytes(data), "up"):
            raise ConnectionLost("the fake connection is lost")

    def receive(self, timeout: float) -> bytes | None:
        """Return what the function sent, b"" at the end or after the loss, None after `timeout` seconds."""
        return self._wire.down.receive(timeout)

    def stderr_tail(self) -> bytes:
        """Return the last 8 KiB or less that the function warned."""
        return self._wire.stderr.read()

    def close(self) -> None:
        """End the function's input."""
        self._wire.lose()


class Pipe:
    """The host's end, handed to the function."""

    def __init__(self, wire: _Wire) -> None:
        self._wire = wire
        self._unread = b""

    def receive(self, timeout: float | None = None) -> bytes | None:
        """Return what has come, b"" once the laptop has left, None after `timeout` seconds (None: wait for ever)."""
        if self._unread:
            data, self._unread = self._unread, b""
            return data
        return self._wire.up.receive(threading.TIMEOUT_MAX if timeout is None else timeout)

    def receive_exactly(self, count: int) -> bytes:
        """Return `count` bytes, fewer only when the laptop has left."""
        data = bytearray()
        while len(data) < count and (more := self.receive()):
            data += more
        self._unread = bytes(data[count:])
        return bytes(data[:count])

    def send(self, data: bytes) -> None:
        """Write to the command's stdout; raise BrokenPipeError when nobody listens any more."""
        if not self._wire.carry(data, "down"):
            raise BrokenPipeError

    def warn(self, data: bytes) -> None:
        """Write to the command's stderr."""
        self._wire.stderr.feed(data)
