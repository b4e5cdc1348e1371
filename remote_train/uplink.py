"""What the laptop sends in bulk, under the same credit as the host: a `stop` never waits long behind an upload."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from remote_train.errors import ProtocolError
from remote_train.host import wire
from remote_train.host.credit import Credit

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_WINDOW = 256 * 1024
"""A launch sends its files at once, before the first answer; only what is larger than most of them is measured."""
FIRST_FRAME = 4096
"""Short, since the round trip is measured by it."""
PACE_SECONDS = 0.005
SEND_SECONDS = 60.0
"""How long a host that is heard may take nothing of ours."""


class Uplink:
    """The way up of one session; `lock` is the session's."""

    def __init__(self, host: str, lock: threading.RLock) -> None:
        self._host = host
        self._changed = threading.Condition(lock)
        self._credit = Credit(FIRST_WINDOW, FIRST_FRAME)
        self._moved = time.monotonic()

    def claim(self, size: int, check: Callable[[], None]) -> int:
        """Wait until something may be sent; return how much of `size`, which then counts as sent.

        `check` raises what ended the connection.
        """
        with self._changed:
            self._moved = time.monotonic()
            while not (room := self._room()):
                check()
                self._wait()
            count = min(size, room)
            self._credit.sent(count, bulk=True, now=time.monotonic())
            return count

    def _room(self) -> int:
        room = self._credit.room(bulk=True, now=time.monotonic())
        return min(room, self._credit.longest(), wire.CHUNK)

    def _wait(self) -> None:
        now = time.monotonic()
        if now - self._moved > SEND_SECONDS:
            raise ProtocolError(f"{self._host} has taken nothing for {SEND_SECONDS:.0f} s")
        self._changed.wait(PACE_SECONDS if self._credit.is_paced(now) else 1.0)

    def rest(self) -> None:
        """Note that there is nothing more to send for now."""
        with self._changed:
            self._credit.starve(time.monotonic())

    def note_ack(self, payload: bytes) -> None:
        """Take an ACK of the host."""
        received, *consumed = wire.parse_ack(payload)
        now = time.monotonic()
        self._credit.acked(received, consumed, now)
        self._moved = now
        self._changed.notify_all()

    def wake(self) -> None:
        """Let who waits see that the connection has ended."""
        self._changed.notify_all()
