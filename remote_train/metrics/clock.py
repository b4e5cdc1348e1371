"""When rank 0's output had reached which size, by the host's clock: clock.jsonl in, seconds since the start out. Pure."""

from __future__ import annotations

import bisect
import json
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

CLOCK_ENTRIES = 65_536
LONGEST_ENTRY = 64 * 1024


class Clock:
    """When rank 0's output had reached which size, by the host's clock. Asked for offsets that only go up.

    `older` are bytes of clock.jsonl that are read when they are needed. What was asked for is forgotten, and of more
    than CLOCK_ENTRIES that nobody has asked for yet every other one: a run of weeks takes no more memory than one of hours.
    """

    def __init__(self, older: Iterator[bytes] | None = None) -> None:
        self._older = older or iter(())
        self._held = b""
        self._floor = self._last = -1
        self._offsets: list[int] = []
        self._times: list[float] = []

    def feed(self, data: bytes) -> None:
        """Take bytes of clock.jsonl; a line that is not one is skipped."""
        for piece in self._older:
            self._take(piece)
        self._take(data)

    def _take(self, data: bytes) -> None:
        data = self._held + data
        end = data.rfind(b"\n") + 1
        self._held = data[end:] if len(data) - end < LONGEST_ENTRY else b""
        lines = data[:end]
        newest = parse_entry(lines[lines.rfind(b"\n", 0, max(0, end - 1)) + 1 :])
        if newest is not None and newest[0] < self._floor:
            return  # nobody will ask
        for line in lines.splitlines():
            entry = parse_entry(line)
            if entry is not None and entry[0] > self._last:
                self._last = entry[0]
                self._offsets.append(entry[0])
                self._times.append(entry[1])
        self.forget(self._floor)
        while len(self._offsets) > CLOCK_ENTRIES:
            del self._offsets[-2::-2], self._times[-2::-2]

    def forget(self, offset: int) -> None:
        """Note that nobody will ask for an offset below this one."""
        self._floor = max(self._floor, offset)
        gone = bisect.bisect_left(self._offsets, self._floor)
        del self._offsets[:gone], self._times[:gone]

    def close(self) -> None:
        """Read no more of what is older."""
        close = getattr(self._older, "close", None)
        if close is not None:
            close()
        self._older = iter(())

    def time_at(self, offset: int) -> float | None:
        """Return seconds since the start at which the output held `offset` bytes, None while that is not known."""
        self.forget(offset)
        while not self._offsets and (piece := next(self._older, None)) is not None:
            self._take(piece)
        return self._times[0] if self._times else None


def parse_entry(line: bytes) -> tuple[int, float] | None:
    """Return (size of rank 0's output, seconds since the start) of a line of clock.jsonl, None when it is not one."""
    try:
        entry = json.loads(line)
        size, seconds = int(entry["sizes"]["0"]), float(entry["mono"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return (size, seconds) if math.isfinite(seconds) else None
