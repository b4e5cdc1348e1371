"""Metrics beside the stream: rank 0's bytes and the host's clock in, records out. And the same from a mirror.

MFU is derived here, on the laptop, from raw facts: the same code reads a live run and an old one.
"""

from __future__ import annotations

import bisect
import json
import math
import time
from typing import TYPE_CHECKING, Any

from remote_train.host import layout
from remote_train.metrics.denominator import choose_device, choose_device_peak, choose_usual_dtype
from remote_train.metrics.derive import Context, Deriver

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from remote_train.metrics.peaks import Peak
    from remote_train.metrics.record import MetricRecord
    from remote_train.records import Attempt

READ = 1 << 20
HEAD_BYTES = 256 * 1024
TAIL_BYTES = 256 * 1024
CLOCK_LINE = 64 * 1024
CLOCK_POINTS = 1 << 20
"""A week of notes, twice a second; of more, every other is forgotten."""


class Clock:
    """When rank 0's output had reached which size, by the host's clock."""

    def __init__(self) -> None:
        self._held = b""
        self._offsets: list[int] = []
        self._times: list[float] = []

    def feed(self, data: bytes) -> None:
        """Take bytes of clock.jsonl; a line that is not one is skipped."""
        *lines, held = (self._held + data).split(b"\n")
        self._held = held[:CLOCK_LINE]
        for line in lines:
            try:
                entry = json.loads(line)
                size, seconds = int(entry["sizes"]["0"]), float(entry["mono"])
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                continue
            if math.isfinite(seconds) and (not self._offsets or size > self._offsets[-1]):
                self._offsets.append(size)
                self._times.append(seconds)
        if len(self._offsets) > CLOCK_POINTS:
            del self._offsets[1:-1:2], self._times[1:-1:2]

    def time_at(self, offset: int) -> float | None:
        """Return seconds since the start at which the output held `offset` bytes, None while that is not known."""
        place = bisect.bisect_left(self._offsets, offset)
        return self._times[place] if place < len(self._times) else None


class Watch:
    """The metrics of one attempt, fed as its output comes."""

    def __init__(self, attempt: int, record: dict[str, Any], peak: dict[str, Any] | None) -> None:
        self.plan: dict[str, Any] = record["plan"]
        self.measured = peak
        self.clock = Clock()
        self.device = choose_device(
            self.plan["device"], self.plan["cpu"], record.get("gpus") or [], self.plan["processes"]
        )
        dtype = choose_usual_dtype(self.device)
        self.deriver = Deriver(
            Context(
                attempt=attempt,
                devices=self.device.count,
                peak_for=self._peak,
                default_dtype=dtype,
                default_dtype_source=f"assumed: {dtype} on this device",
                wall_start=record.get("started"),
                time_at=self.clock.time_at,
                device_kind=self.device.kind,
                capability=self.device.capability,
            )
        )

    def _peak(self, dtype: str) -> Peak | None:
        return choose_device_peak(self.device, dtype, self.plan.get("peak_tflops"), self.measured)

    def feed(self, name: str, data: bytes) -> list[MetricRecord]:
        """Take bytes of an output; only rank 0's and the clock's matter."""
        if name == "clock":
            self.clock.feed(data)
            return []
        return self.deriver.feed(data, time.time()) if name == "0" else []


def make_watch(attempt: int, mirror: Attempt) -> Watch | None:
    """Return the watch of a mirrored attempt, its clock read; None while the host's record is not here."""
    record = mirror.read(layout.ATTEMPT)
    if record is None or "plan" not in record:
        return None
    watch = Watch(attempt, record, mirror.read(layout.PEAK))
    for piece in read_pieces(mirror.output("clock")):
        watch.clock.feed(piece)
    return watch


def read_pieces(path: Path, begin: int = 0, end: int | None = None) -> Iterator[bytes]:
    """Yield a file's bytes from `begin` up to `end`, None meaning its end; nothing when it is not there."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(begin)
        left = end - begin if end is not None else None
        while piece := file.read(READ if left is None else max(0, min(READ, left))):
            left = left - len(piece) if left is not None else None
            yield piece


def read_metrics(attempt: int, mirror: Attempt) -> Iterator[MetricRecord]:
    """Yield every record that a mirrored attempt's output gives."""
    watch = make_watch(attempt, mirror)
    if watch is None:
        return
    for piece in read_pieces(mirror.output("0")):
        yield from watch.deriver.feed(piece, None)
    yield from watch.deriver.finish()


def read_last_metric(attempt: int, mirror: Attempt) -> tuple[MetricRecord | None, Watch | None]:
    """Return the newest record, from the beginning (start lines) and the end of the mirror alone, and its watch."""
    watch = make_watch(attempt, mirror)
    path = mirror.output("0")
    if watch is None or not path.exists():
        return None, watch
    last = None
    for piece in _read_ends(path):
        last = newest(watch.deriver.feed(piece, None), last)
    return newest(watch.deriver.finish(), last), watch


def _read_ends(path: Path) -> Iterable[bytes]:
    size = path.stat().st_size
    with path.open("rb") as file:
        yield file.read(HEAD_BYTES)
        if size > HEAD_BYTES + TAIL_BYTES:
            file.seek(size - TAIL_BYTES)
            file.readline()
            yield b"\n"
        yield file.read()


def newest(records: list[MetricRecord], before: MetricRecord | None) -> MetricRecord | None:
    """Return the last record that has a pace, else the last at all: the one to show."""
    for record in reversed(records):
        if record.step_seconds is not None or record.tokens_per_second is not None:
            return record
    return before or (records[-1] if records else None)
