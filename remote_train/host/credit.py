"""How many DATA bytes may be on their way, so that no control or log frame waits half a second behind bulk.

The window is the delivered rate x (round trip + 0.2 s): a fifth of a second of queue stands before the next frame, on
any link, and a fast link is still filled. Both figures come from acknowledgements of receipt:

- The rate is the greatest of the last second or so, each taken between a frame's sending and its acknowledgement, over the longer
  of the times in which those bytes were sent and acknowledged (as BBR does): what arrives in a heap after a pause is no rate.
  While there was nothing to send, a rate is what was written and not what the link carries: it counts only if it is greater.
- The round trip is the shortest seen. It is measured anew every 10 s with next to nothing on its way, because one measured
  behind our own queue would lengthen that queue, and so on.

Until the rate has stopped growing the window covers twice the round trip, so that it doubles with each of them; for that moment
the queue can be a round trip longer. Later a window that is empty, after a silence or a measurement, is filled at little more
than the rate, since all of it at once would be a queue. Beside the link, the receiver bounds what it holds and has not looked at yet, of outputs and
of files apart: who is slow with a file does not stop a log. Pure: the clock is passed in. Both ends send under it.
"""

from __future__ import annotations

from collections import deque

from remote_train.host.wire import CHUNK

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Deque, Optional, Sequence, Tuple

    Mark = Tuple[int, float, int, float, float, bool]

FLOOR = 4096
FIRST_WINDOW = 16 * 1024
QUEUE_SECONDS = 0.2
QUEUE_BYTES = 16 << 20
"""A queue needs no more than this to fill a link, however fast."""
FRAME_SECONDS = 0.05
FIRST_FRAME = 1024
RATE_SECONDS = 1.0
FORGET_SECONDS = 10.0
FORGET_TRIPS = 30
PROBE_SECONDS = 0.01
"""The queue that is left while the round trip is measured anew."""
GROWTH = 1.25
"""A start goes on while a round trip brings so much more; and an empty window is filled so much faster than it drains."""
PLATEAU = 3
"""So many round trips without growth end the start."""
CEILING = 40 << 20
"""Less than the SSH channel takes, for which a control frame would wait, and 400 MB/s at a round trip of 100 ms, which is more than
paramiko decrypts. What is faster than the laptop's other work stands in its memory, up to this."""
HELD = 4 << 20
"""What the receiver holds of one kind that it has not looked at, beside what is on its way."""
RESERVE = 8
"""Bulk leaves this part of the window to outputs."""


class Credit:
    """Count what was sent, what has arrived, and what the other side has done with it."""

    def __init__(self, first_window: int = FIRST_WINDOW, first_frame: int = FIRST_FRAME) -> None:
        self._first_window = first_window
        self._first_frame = first_frame
        self._sent = 0
        self._acked = 0
        self._lanes = [0, 0]
        self._consumed = [0, 0]
        self._marks: Deque[Mark] = deque()
        self._rates: Deque[Tuple[float, float]] = deque()
        self._round_trip: Optional[float] = None
        self._round_trip_at = 0.0
        self._probe_from: Optional[int] = None
        self._limited_until = 0
        self._acked_at = self._first_sent = 0.0
        self._starting = True
        self._measured = False
        """Whether the rate is the link's: more than what happened to be written has filled it once."""
        self._round_ends = self._plateau = 0
        self._best = 0.0
        self._queued = self._queued_at = 0.0
        self._window = first_window

    def room(self, bulk: bool, now: float) -> int:
        """Return how many bytes of a file, or of an output, may be sent now; not a few bytes at a time."""
        window = self._window if self._probe_from is None else self._probe_window()
        held = self._lanes[bulk] - self._consumed[bulk]
        spare = 0 if bulk else window // RESERVE
        on_the_way = self._sent - self._acked
        room = min(window + spare - on_the_way, window + HELD - held, self._pace(now) + spare)
        return room if room >= self._least() or (room > 0 and not on_the_way) else 0

    def _least(self) -> int:
        return max(1, self.longest() // 2)

    def is_paced(self, now: float) -> bool:
        """Tell whether nothing but time is waited for."""
        return self._pace(now) < self._least() <= self._window - (self._sent - self._acked)

    def _pace(self, now: float) -> int:
        """Return how much more makes no longer queue than there should be, if the link is as fast as it seems."""
        rate = self._rate()
        if self._starting or not self._measured:
            return CEILING
        # After a stall the rate is next to nothing, and no queue that is worth a frame would be short enough: it stayed so.
        return int(max(FLOOR, rate * QUEUE_SECONDS) - self._drain(rate, now))

    def _drain(self, rate: float, now: float) -> float:
        return max(0.0, self._queued - (now - self._queued_at) * rate * GROWTH)

    def longest(self) -> int:
        """Return how long the next frame may be: what the link carries in a moment.

        Of a frame that breaks off nothing is used, so it begins short: a line that breaks again and again then still
        brings most of what it carries.
        """
        rate = self._rate()
        by_rate = int(rate * FRAME_SECONDS) if rate else self._first_window // 4
        return max(FIRST_FRAME, min(max(self._first_frame, self._sent // 4), by_rate, CHUNK))

    def sent(self, count: int, bulk: bool, now: float) -> None:
        """Note that `count` bytes were queued for sending."""
        if self._sent == self._acked:
            self._begin_anew(now)
        self._queued, self._queued_at = self._drain(self._rate(), now) + count, now
        limited = self._acked < self._limited_until or self._probe_from is not None
        self._sent += count
        self._lanes[bulk] += count
        self._marks.append((self._sent, now, self._acked, self._acked_at, self._first_sent, limited))

    def _begin_anew(self, now: float) -> None:
        """After a silence the clock of the rate starts again, and what was known is as good as new."""
        self._acked_at = self._first_sent = now
        if self._rates:
            self._rates = deque([(now, self._rate())])

    def starve(self, now: float) -> None:
        """Note that there was nothing to send although there may be room: what is on its way then measures no link."""
        if self._window - (self._sent - self._acked) >= self._least() and not self.is_paced(now):
            self._limited_until = max(self._limited_until, self._sent + 1)

    def acked(self, received: int, consumed: Sequence[int], now: float) -> None:
        """Note how much has arrived since the connection began, and how much of outputs and of files was consumed."""
        if not self._acked <= received <= self._sent:
            return
        for lane, total in enumerate(consumed):
            if self._consumed[lane] <= total <= self._lanes[lane]:
                self._consumed[lane] = total
        self._acked = received
        mark = None
        while self._marks and self._marks[0][0] <= received:
            mark = self._marks.popleft()
        if mark is not None:
            self._note_rate(mark, now)
            self._note_round_trip(mark[0], now - mark[1], now)
            self._window = self._make_window()

    def _note_rate(self, mark: Mark, now: float) -> None:
        end, sent_at, acked, acked_at, first_sent, limited = mark
        self._acked_at, self._first_sent = now, sent_at
        seconds = max(sent_at - first_sent, now - acked_at)
        if seconds <= 0:
            return
        rate = (self._acked - acked) / seconds
        if limited and rate < self._rate():
            return
        self._measured = self._measured or not limited
        rates = self._rates
        while rates and rates[-1][1] <= rate:
            rates.pop()
        rates.append((now, rate))
        while now - rates[0][0] > RATE_SECONDS + 4 * (self._round_trip or 0.0):
            rates.popleft()
        if end > self._round_ends and not limited:
            self._end_round()

    def _end_round(self) -> None:
        """Look once a round trip whether the start has come to its end."""
        self._round_ends = self._sent
        rate = self._rate()
        if rate >= self._best * GROWTH:
            self._best, self._plateau = rate, 0
            return
        self._plateau += 1
        self._starting = self._starting and self._plateau < PLATEAU

    def _rate(self) -> float:
        return self._rates[0][1] if self._rates else 0.0

    def _note_round_trip(self, position: int, seconds: float, now: float) -> None:
        """Take a sample that is shorter than all before, or the first of a probe; begin a probe when it is time."""
        probed = self._probe_from is not None and position > self._probe_from
        if self._round_trip is None or seconds <= self._round_trip or probed:
            self._round_trip, self._round_trip_at = seconds, now
            self._probe_from = None
        elif self._probe_from is None and now - self._round_trip_at > self._forget_after():
            self._probe_from = self._sent
        if self._measured and seconds > self._round_trip + QUEUE_SECONDS:
            self._starting = False

    def _forget_after(self) -> float:
        return max(FORGET_SECONDS, FORGET_TRIPS * (self._round_trip or 0.0))

    def _probe_window(self) -> int:
        return max(FLOOR, int(self._rate() * PROBE_SECONDS))

    def _make_window(self) -> int:
        rate, round_trip = self._rate(), self._round_trip or 0.0
        queue = min(rate * QUEUE_SECONDS, QUEUE_BYTES)
        wanted = rate * round_trip * (2 if self._starting else 1) + queue
        return int(min(CEILING, max(self._first_window if self._starting else FLOOR, wanted)))
