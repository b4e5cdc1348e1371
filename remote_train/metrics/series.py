"""Records to lines that can be drawn: one figure of one run against its steps or its time, from the best source. Pure.

A loss that is not a number leaves a gap, and against time so does the pause between two attempts. A rate that is missing at a
step (nanoGPT times none at an evaluation) is no gap: the line goes from its neighbour to its neighbour.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from remote_train.metrics.comparison import rank_source
from remote_train.metrics.numbers import LARGEST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from remote_train.metrics.record import MetricRecord

Point = tuple[float, float]
Item = TypeVar("Item")

FIELDS = {"loss": "loss", "mfu": "mfu", "tokens": "tokens_per_second"}
"""What can be drawn, and the field of a record that it is."""
AXES = ("step", "time")
MOST_POINTS = 4000
"""Of one line; a longer one keeps the first, last, least and greatest of each stretch, so that no spike is lost."""


MOST_STRETCHES = 4 * MOST_POINTS
"""Of one figure and source, while they are read."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line; where y is nan it is broken. Time is in seconds since the run's first attempt began; MFU is a fraction."""

    run: str
    host: str
    what: str
    axis: str
    points: tuple[Point, ...]
    source: str


@dataclass(frozen=True, slots=True)
class _Mark:
    attempt: int
    host: str | None
    step: float | None
    time: float | None
    value: float


class _Reduced(Generic[Item]):
    """Items in order, of which a bounded part is kept: all of them, or of each stretch the first, last, least and greatest."""

    def __init__(self, value: Callable[[Item], float]) -> None:
        self._value = value
        self._stretch = 1
        self._stretches: list[list[Item]] = []
        self._open: list[Item] = []

    def add(self, item: Item) -> None:
        self._open.append(item)
        if len(self._open) < self._stretch:
            return
        self._stretches.append(keep_extremes(self._open, self._value))
        self._open = []
        if len(self._stretches) >= MOST_STRETCHES:
            pairs = zip(self._stretches[::2], self._stretches[1::2], strict=True)
            self._stretches = [keep_extremes(one + other, self._value) for one, other in pairs]
            self._stretch *= 2

    def close(self) -> list[Item]:
        return [item for stretch in (*self._stretches, self._open) for item in stretch]


class Collected:
    """One run's marks of each figure and source, reduced as the records come: a log of any length takes bounded memory."""

    def __init__(self, run: str, records: Iterable[MetricRecord], whats: Sequence[str]) -> None:
        self.run = run
        marks: dict[tuple[str, str], _Reduced[_Mark]] = {}
        steps: dict[int, _Reduced[Point]] = {}
        for record in records:
            if record.step is not None and record.run_time is not None:
                known = steps.setdefault(record.attempt, _Reduced(lambda point: point[1]))
                known.add((record.run_time, float(record.step)))
            for what in whats:
                self._take(record, what, marks)
        self._marks = {key: each.close() for key, each in marks.items()}
        self._steps = {attempt: each.close() for attempt, each in steps.items()}

    def _take(self, record: MetricRecord, what: str, marks: dict[tuple[str, str], _Reduced[_Mark]]) -> None:
        value = getattr(record, FIELDS[what])
        if value is None and (what != "loss" or record.source == "meter"):
            return
        drawn = value is not None and abs(value) <= LARGEST  # beyond, a scale overflows
        number = float(value) if drawn else math.nan
        mark = _Mark(record.attempt, record.host, self._step_of(record), record.run_time, number)
        marks.setdefault((what, record.source), _Reduced(lambda mark: mark.value)).add(mark)

    @staticmethod
    def _step_of(record: MetricRecord) -> float | None:
        if record.step is not None:
            return float(record.step)
        own: int | None = getattr(record, "optimizer_step", None)
        return (
            None if own is None else -1.0 - own
        )  # below zero: the meter's own count, placed when all steps are known

    def make_line(self, what: str, axis: str) -> Line | None:
        """Return a figure as a line from the best source that has it, None when nothing can be placed on that axis."""
        sources = sorted((source for key, source in self._marks if key == what), key=rank_source)
        for source in sources:
            marks = self._marks[what, source]
            points = list(self._place(marks, axis))
            if any(math.isfinite(y) for _, y in points):
                host = next((mark.host for mark in reversed(marks) if mark.host), "")
                return Line(self.run, host, what, axis, tuple(thin(points)), source)
        return None

    def _place(self, marks: Sequence[_Mark], axis: str) -> Iterator[Point]:
        before: _Mark | None = None
        for mark in marks:
            x = mark.time if axis == "time" else self._find_step(mark)
            if x is None:
                continue
            if axis == "time" and before is not None and before.attempt != mark.attempt:
                yield x, math.nan
            yield x, mark.value
            before = mark

    def _find_step(self, mark: _Mark) -> float | None:
        """Return the step of a mark; the meter's are placed by their time among the steps that the script told of."""
        if mark.step is not None and mark.step >= 0:
            return mark.step
        known = self._steps.get(mark.attempt)
        if known and mark.time is not None:
            return interpolate(known, mark.time)
        alone = mark.attempt == 1 and mark.step is not None and not self._steps
        return -1.0 - mark.step if alone else None  # type: ignore[operator]  # looked at just before


def interpolate(known: Sequence[Point], x: float) -> float | None:
    """Return y at x between two known points, None beyond the first and the last; points are in order of x."""
    place = bisect.bisect_left(known, (x, -math.inf))
    if place == len(known):
        return None
    (right, high) = known[place]
    if right == x:
        return high
    if place == 0:
        return None
    (left, low) = known[place - 1]
    return low + (high - low) * (x - left) / (right - left)


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Return at most about `most` points of a line, spikes and gaps kept."""
    if len(points) <= most:
        return list(points)
    stretch = -(-len(points) * 4 // most)
    kept: list[Point] = []
    for begin in range(0, len(points), stretch):
        kept += keep_extremes(points[begin : begin + stretch], lambda point: point[1])
    return kept


def keep_extremes(piece: Sequence[Item], value: Callable[[Item], float]) -> list[Item]:
    """Return the first, last, least and greatest of a stretch, and the first gap."""
    if len(piece) <= 2:
        return list(piece)
    values = [value(item) for item in piece]
    numbers = [place for place, y in enumerate(values) if math.isfinite(y)]
    gap = next((place for place, y in enumerate(values) if math.isnan(y)), 0)
    extremes = [min(numbers, key=values.__getitem__), max(numbers, key=values.__getitem__)] if numbers else []
    return [piece[place] for place in sorted({0, gap, len(piece) - 1, *extremes})]


def choose_time_unit(seconds: float) -> tuple[str, float]:
    """Return the unit that an axis of so many seconds is read best in, and its seconds."""
    for name, size in (("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return name, size
    return "seconds", 1.0
