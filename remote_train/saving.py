"""The step of a training at the time of a checkpoint: the last that it had printed, by its host's clock for both."""

from __future__ import annotations

import bisect
import json
import math
from typing import TYPE_CHECKING

from remote_train.host import layout
from remote_train.watch import Watch, find_line, read_pieces

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import BinaryIO

    from remote_train.metrics.record import MetricRecord
    from remote_train.records import Attempt

TICK = 0.5
"""Seconds from a line of output to the clock's next entry, at most: what was printed before a moment is in an entry by then."""
REACHES = (8 << 10, 256 << 10)
"""Bytes of output before that moment that are looked through, more where the last few say nothing."""
REPORT_REACH = 1 << 20
"""Of the script's own lines, which are few: an hour of one process."""
LONGEST_ENTRY = 64 * 1024


def read_step_at(number: int, mirror: Attempt, saved: float) -> int | None:
    """Return the last step printed or reported before `saved` (seconds since 1970 on the host), None where that is not known."""
    record = mirror.read(layout.ATTEMPT)
    if record is None or "plan" not in record:
        return None

    def make() -> Watch:
        return Watch(number, record, None)

    step = _read_printed_step(make, mirror, saved)
    return step if step is not None else _read_reported_step(make(), mirror, saved)


def _read_reported_step(watch: Watch, mirror: Attempt, saved: float) -> int | None:
    """Look at the end of what the script said itself."""
    end = mirror.offset("report")
    begin = max(0, end - REPORT_REACH)
    if begin:
        watch.reported.skip()
    pieces = read_pieces(mirror.output("report"), begin, end)
    found = [record for piece in pieces for record in watch.reported.feed(piece)]
    return choose_step(
        [record for record in found if record.wall_time is not None and record.wall_time <= saved]
    )


def _read_printed_step(make: Callable[[], Watch], mirror: Attempt, saved: float) -> int | None:
    offset = find_offset(mirror.output("clock"), saved)
    path = mirror.output("0")
    if offset is None or not path.exists():
        return None
    end = min(offset, path.stat().st_size)
    for reach in REACHES:
        begin = max(0, end - reach)
        watch = make()
        begin = find_line(path, begin) if begin else 0
        watch.go_to(begin)
        pieces = read_pieces(path, begin, end)
        step = choose_step([found for piece in pieces for found in watch.deriver.feed(piece, None)])
        if step is not None or not begin:
            return step
    return None


def choose_step(records: list[MetricRecord]) -> int | None:
    """Return the step of the last record that has one."""
    return next((record.step for record in reversed(records) if record.step is not None), None)


def find_offset(clock: Path, saved: float) -> int | None:
    """Return how long rank 0's output was at a moment, by a mirrored clock.jsonl; None before its first entry."""
    if not clock.exists():
        return None
    with clock.open("rb") as file:
        size = file.seek(0, 2)

        def is_later(position: int) -> bool:
            entry = read_entry(file, position)
            return entry is None or entry[0] > saved + TICK

        behind = bisect.bisect_left(range(size), True, key=is_later)
        entry = read_entry(file, behind - 1) if behind else None
    return None if entry is None else entry[1]


def read_entry(file: BinaryIO, position: int) -> tuple[float, int] | None:
    """Return time and size of the first entry of a clock that begins at a byte or behind it; None when there is none."""
    file.seek(max(0, position - 1))
    if position:
        file.readline()
    while line := file.readline(LONGEST_ENTRY):
        entry = parse_moment(line)
        if entry is not None:
            return entry
    return None


def parse_moment(line: bytes) -> tuple[float, int] | None:
    """Return (seconds since 1970, size of rank 0's output) of a line of clock.jsonl, None when it is not one."""
    try:
        entry = json.loads(line)
        wall, size = float(entry["wall"]), int(entry["sizes"]["0"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return (wall, size) if math.isfinite(wall) and size >= 0 else None
