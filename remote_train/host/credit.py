"""How many DATA bytes may be on their way, so that no control or log frame waits half a second behind bulk.

The window is the delivered rate x (round trip + 0.25 s), never under 256 KiB: at most a quarter of a second of
queue stands before the next frame, on any link, and a fast link is still filled. The round trip is the shortest
seen; it is measured anew every 10 s with next to nothing on its way, because one measured behind our own queue
would lengthen that queue, and so on. Pure: the clock is passed in.
"""

from __future__ import annotations

from collections import deque

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Deque, Optional, Tuple

FLOOR = 256 * 1024
PROBE = 64 * 1024
"""Bytes on their way while the round trip is measured anew."""
QUEUE_SECONDS = 0.25
QUEUE_BYTES = 24 * 1024 * 1024
"""The laptop holds at most this much that it has not looked at yet, however fast the link."""
RATE_SECONDS = 0.5
FORGET_SECONDS = 10.0
FIRST_FRAME = 1024
CEILING = 256 * 1024 * 1024


class Credit:
    """Count what was sent and what the other side consumed."""

    def __init__(self) -> None:
        self._sent = 0
        self._acked = 0
        self._marks: Deque[Tuple[int, float]] = deque()
        self._arrivals: Deque[Tuple[float, int]] = deque()
        self._round_trip: Optional[float] = None
        self._round_trip_at = 0.0
        self._probe_from: Optional[int] = 0
        self._window = FLOOR

    def room(self) -> int:
        """Return how many bytes may be sent now."""
        window = self._window if self._probe_from is None else PROBE
        return max(0, window - (self._sent - self._acked))

    def longest(self) -> int:
        """Return how long the next frame may be: of a frame that breaks off nothing is used, so it begins short.

        A line that breaks again and again then still brings most of what it carries.
        """
        return max(FIRST_FRAME, self._sent // 4)

    def sent(self, count: int, now: float) -> None:
        """Note that `count` bytes were queued for sending."""
        self._sent += count
        self._marks.append((self._sent, now))

    def acked(self, total: int, now: float) -> None:
        """Note that the other side consumed `total` bytes since the connection began."""
        if not self._acked <= total <= self._sent:
            return
        self._acked = total
        mark = None
        while self._marks and self._marks[0][0] <= total:
            mark = self._marks.popleft()
        if mark is not None:
            self._note_round_trip(mark[0], now - mark[1], now)
        self._window = self._make_window(now)

    def _note_round_trip(self, position: int, seconds: float, now: float) -> None:
        """Take a sample that is shorter than all before, or the first of a probe; begin a probe when it is time."""
        probed = self._probe_from is not None and position > self._probe_from
        if self._round_trip is None or seconds <= self._round_trip or probed:
            self._round_trip, self._round_trip_at = seconds, now
            self._probe_from = None
        elif self._probe_from is None and now - self._round_trip_at > FORGET_SECONDS:
            self._probe_from = self._sent

    def _make_window(self, now: float) -> int:
        arrivals = self._arrivals
        arrivals.append((now, self._acked))
        while len(arrivals) > 2 and now - arrivals[0][0] > RATE_SECONDS:
            arrivals.popleft()
        began, first = arrivals[0]
        seconds = now - began
        if seconds <= 0:
            return self._window
        rate = (self._acked - first) / seconds
        wanted = rate * (self._round_trip or 0.0) + min(rate * QUEUE_SECONDS, QUEUE_BYTES)
        return int(min(CEILING, max(FLOOR, wanted)))
