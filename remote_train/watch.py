"""Metrics beside the stream: rank 0's bytes and the host's clock in, records out. And the same from a mirror.

MFU is derived here, on the laptop, from raw facts: the same code reads a live run and an old one.
"""

from __future__ import annotations

import bisect
import json
import math
import time
from typing import TYPE_CHECKING, Any

from remote_train.attempts import item_of, place_of
from remote_train.host import layout
from remote_train.metrics.curve import choose_limits, mark_superseded, place_record
from remote_train.metrics.denominator import choose_device, choose_device_peak, choose_usual_dtype
from remote_train.metrics.derive import Context, Deriver

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from remote_train.metrics.peaks import Peak
    from remote_train.metrics.record import MetricRecord
    from remote_train.records import Attempt, Run

READ = 1 << 20
HEAD_BYTES = 256 * 1024
TAIL_BYTES = 256 * 1024
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


class Watch:
    """The metrics of one attempt, fed as its output comes."""

    def __init__(
        self,
        attempt: int,
        record: dict[str, Any],
        peak: dict[str, Any] | None,
        clock: Iterator[bytes] | None = None,
    ) -> None:
        self.plan: dict[str, Any] = record["plan"]
        self.measured = peak
        self.clock = Clock(clock)
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

    def go_to(self, offset: int) -> None:
        """Go on with rank 0's output at another byte, the first of a line."""
        self.deriver.skip_to(offset)
        self.clock.forget(offset)

    def feed_ends(self, path: Path, size: int, position: int) -> list[MetricRecord]:
        """Take the beginning of a mirror (start lines) and its end, and go on at `position`; give their records.

        `size` is how much of the mirror counts. Where it does not reach up to `position`, its end says nothing.
        """
        tail = max(0, size - TAIL_BYTES)
        records = self._feed_part(path, 0, min(size, HEAD_BYTES))
        if position == size and tail <= HEAD_BYTES:
            return records + self._feed_part(path, HEAD_BYTES, size)
        if position == size:
            self.go_to(begin := find_line(path, tail))
            return records + self._feed_part(path, begin, size)
        self.go_to(position)
        return records

    def _feed_part(self, path: Path, begin: int, end: int) -> list[MetricRecord]:
        pieces = read_pieces(path, begin, end)
        return [record for piece in pieces for record in self.deriver.feed(piece, None)]


def make_watch(attempt: int, mirror: Attempt) -> Watch | None:
    """Return the watch of a mirrored attempt, with its clock; None while the host's record is not here."""
    record = mirror.read(layout.ATTEMPT)
    if record is None or "plan" not in record:
        return None
    clock = read_pieces(mirror.output("clock"), end=mirror.offset("clock"))
    return Watch(attempt, record, mirror.read(layout.PEAK), clock)


def find_line(path: Path, offset: int) -> int:
    """Return where the first line behind `offset` begins; `offset` itself when none does within a piece."""
    piece = next(read_pieces(path, offset, offset + TAIL_BYTES), b"")
    return offset + piece.find(b"\n") + 1


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


def read_curve(run: Run, *, everything: bool = False) -> Iterator[MetricRecord]:
    """Yield the records of all attempts as one curve, with `everything` also those that later attempts took the place of."""
    whole = run.read()
    numbers = [int(item["attempt"]) for item in whole["attempts"]]
    limits = choose_limits([_find_start(run, whole, number) for number in numbers])
    for number, limit in zip(numbers, limits, strict=True):
        host = place_of(whole, number)[0]
        for record in mark_superseded(read_metrics(number, run.attempt(number)), limit):
            if everything or not record.superseded:
                yield place_record(record, host, whole.get("created"))


def _find_start(run: Run, whole: dict[str, Any], number: int) -> int | None:
    """Return the first step of an attempt: by its own words, before there are any by its checkpoint's."""
    steps = (record.step for record in read_metrics(number, run.attempt(number)))
    first = next((step for step in steps if step is not None), None)
    held = (item_of(whole, number).get("checkpoint") or {}).get("step")
    return first if first is not None else None if held is None else int(held) + 1


def read_last_metric(attempt: int, mirror: Attempt) -> tuple[MetricRecord | None, Watch | None]:
    """Return the newest record, from the beginning (start lines) and the end of the mirror alone, and its watch."""
    watch = make_watch(attempt, mirror)
    path = mirror.output("0")
    if watch is None or not path.exists():
        return None, watch
    size = path.stat().st_size
    records = watch.feed_ends(path, size, size)
    return newest(watch.deriver.finish(), newest(records, None)), watch


def newest(records: list[MetricRecord], before: MetricRecord | None) -> MetricRecord | None:
    """Return the last record that has a pace, else the last at all: the one to show."""
    for record in reversed(records):
        if record.step_seconds is not None or record.tokens_per_second is not None:
            return record
    return before or (records[-1] if records else None)
