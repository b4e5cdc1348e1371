"""What a script says of its steps itself to records: lines of report.jsonl in, records of the whole run out. Pure.

`report.step` writes them, or the script: a line needs no more than one of step, loss and tokens. Ranks are alike, so the first
that reports speaks for all: tokens and FLOPs of the run are so many times its own.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from remote_train.metrics.json_lines import JsonLines
from remote_train.metrics.numbers import LARGEST, pick_count, pick_number
from remote_train.metrics.rated import LARGEST_STEP, LONGEST_TIME, RECENT, Rater, settle
from remote_train.metrics.rates import Rates

if TYPE_CHECKING:
    from collections.abc import Callable

    from remote_train.metrics.derive import Context
    from remote_train.metrics.record import MetricRecord

SHORTEST = 1e-7  # seconds
FIGURES = ("step", "loss", "step_seconds", "tokens_per_second", "flops_per_second", "mfu", "optimizer_step")


class Reported:
    """Derive records from report.jsonl; `dtype_of` tells what the meter has found to be the dtype, and what says so."""

    def __init__(
        self,
        context: Context,
        processes: int,
        dtype_of: Callable[[], tuple[str | None, str | None]] = lambda: (None, None),
    ) -> None:
        self._lines = JsonLines()
        self._rater = Rater(context, "report")
        self._start = context.wall_start
        self._processes = processes
        self._dtype_of = dtype_of
        self._speaker: int | None = None
        self._steps: int | None = 0
        """None once some were skipped: how many there were is not known then."""
        self._recent: deque[MetricRecord] = deque(maxlen=RECENT)
        self.latest: MetricRecord | None = None
        """The newest word on each figure."""

    def feed(self, data: bytes, now: float | None = None) -> list[MetricRecord]:
        """Take the next bytes, received at `now` (seconds since the epoch); give their records."""
        records = (self._take(row, now) for row in self._lines.feed(data))
        return [record for record in records if record is not None]

    def skip(self) -> None:
        """Go on further behind, somewhere in a line."""
        self._lines.skip()
        self._steps = None
        if self.latest is not None:
            self.latest = replace(self.latest, optimizer_step=None)

    @property
    def typical(self) -> MetricRecord | None:
        """Tell the newest word on each figure, with the typical pace of the latest lines in place of the newest."""
        return settle(self.latest, self._recent) if self.latest is not None and self._recent else self.latest

    def _take(self, row: dict[str, Any], now: float | None) -> MetricRecord | None:
        if row.get("kind", "step") != "step" or not _is_told(row):
            return None
        rank = pick_count(row, "rank", 1 << 20) or 0
        self._speaker = rank if self._speaker is None else self._speaker
        if rank != self._speaker:
            return None
        steps = pick_count(row, "steps", LARGEST_STEP)
        if self._steps is not None:
            self._steps = min(self._steps + (steps or 1), LARGEST_STEP)
        step = pick_count(row, "step", LARGEST_STEP)
        record = self._rater.make(
            self._derive(row, steps),
            self._dtype_of(),
            self._choose_time(row, now),
            step=step,
            loss=pick_number(row, "loss", -LARGEST),
            optimizer_step=self._steps if step is None else None,
            steps=steps,
        )
        self.latest = _renew(self.latest, record)
        if record.step_seconds is not None:
            self._recent.append(record)
        return record

    def _choose_time(self, row: dict[str, Any], now: float | None) -> float | None:
        """Return when it was said: by the host's clock, else when it came."""
        said = pick_number(row, "time", high=LONGEST_TIME)
        if said is not None or now is None or self._start is None:
            return said
        return max(0.0, now - self._start)

    def _derive(self, row: dict[str, Any], steps: int | None) -> Rates:
        seconds = pick_number(row, "seconds", SHORTEST, LONGEST_TIME)
        if seconds is None:
            return Rates()
        tokens, flops = (pick_number(row, key, high=1e28) for key in ("tokens", "flops"))
        return Rates(
            step_seconds=seconds / steps if steps else None,
            tokens_per_second=tokens * self._processes / seconds if tokens else None,
            flops_per_second=flops * self._processes / seconds if flops else None,
        )


def _is_told(row: dict[str, Any]) -> bool:
    """Tell whether a line has a step, a loss or tokens; null is what `report.step` writes for one it was not told."""
    said = [row[key] for key in ("step", "loss", "tokens") if key in row]
    return any(
        value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in said
    )


def _renew(before: MetricRecord | None, record: MetricRecord) -> MetricRecord:
    """Return a record with the figures of the one before it where it has none."""
    if before is None:
        return record
    known: dict[str, Any] = {name: getattr(before, name) for name in FIGURES if getattr(record, name) is None}
    return replace(record, **known)
