"""What the meter wrote inside the training to records: lines of metrics.jsonl in, records of the whole run out. Pure.

The meter times one process, and processes are alike: rates of the run are so many times its own. The time of a step is
that of a window without its evaluations and checkpoints. The first window of a process has its compilation and warm-up.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from remote_train.metrics.json_lines import JsonLines
from remote_train.metrics.numbers import pick_count, pick_number, pick_text
from remote_train.metrics.rated import LARGEST_STEP, LONGEST_TIME, RECENT, Rater, settle
from remote_train.metrics.rates import Rates

if TYPE_CHECKING:
    from remote_train.metrics.derive import Context
    from remote_train.metrics.record import MetricRecord

LEAST_SECONDS = 1e-7
LEAST_SHARE = 0.02
"""A window that was nearly all evaluation tells nothing of a step."""


class Metered:
    """Derive records from metrics.jsonl. Open to look at: `why` there is no MFU, `dtype`, `latest` and `typical`."""

    def __init__(self, context: Context, processes: int) -> None:
        self._lines = JsonLines()
        self._rater = Rater(context, "meter")
        self._processes = processes
        self._pid: int | None = None
        self._count: dict[str, Any] = {}
        self._windows = 0
        self._recent: deque[MetricRecord] = deque(maxlen=RECENT)
        self.why: str | None = None
        """Why FLOPs are not known, by the meter's own words."""
        self.off: str | None = None
        """Why the meter has stopped."""

    def feed(self, data: bytes) -> list[MetricRecord]:
        """Take the next bytes; give their records."""
        records = (self._take(row) for row in self._lines.feed(data))
        return [record for record in records if record is not None]

    def skip(self) -> None:
        """Go on further behind, somewhere in a line."""
        self._lines.skip()

    @property
    def dtype(self) -> tuple[str | None, str | None]:
        """Tell what most of the FLOPs are computed in, and what says so; None and None before they are counted."""
        return pick_text(self._count, "dtype"), pick_text(self._count, "dtype_source")

    @property
    def latest(self) -> MetricRecord | None:
        """Tell the newest window's record."""
        return self._recent[-1] if self._recent else None

    @property
    def warming(self) -> bool:
        """Tell whether all there is is a first window."""
        return self._windows <= 1

    @property
    def typical(self) -> MetricRecord | None:
        """Tell the newest record with the typical pace of the latest windows in place of its own."""
        paced = [record for record in self._recent if record.step_seconds]
        return settle(paced[-1], paced) if paced else None

    def _take(self, row: dict[str, Any]) -> MetricRecord | None:
        kind = row.get("kind")
        if kind == "start":
            self._note_start(row)
        elif kind == "count":
            self._count = row
            self.why = (
                (pick_text(row, "why") or "the meter does not say why") if _flops(row) is None else None
            )
        elif kind == "off":
            self.off = pick_text(row, "why") or "it does not say why"
        elif kind == "steps":
            return self._take_window(row)
        return None

    def _note_start(self, row: dict[str, Any]) -> None:
        pid = pick_count(row, "pid")
        if pid != self._pid:  # torchrun has started the ranks anew
            self._pid, self.off = pid, None
            self._windows = 0
            self._recent.clear()

    def _take_window(self, row: dict[str, Any]) -> MetricRecord | None:
        steps = pick_count(row, "steps", LARGEST_STEP)
        if not steps:
            return None
        record = self._rater.make(
            self._derive(row, steps),
            self.dtype,
            pick_number(row, "time", high=LONGEST_TIME),
            optimizer_step=pick_count(row, "step", LARGEST_STEP),
            flops_source=pick_text(self._count, "how") if _flops(row) else None,
            steps=steps,
        )
        self._windows += 1
        if self._windows == 2:
            self._recent.clear()  # the first has the warm-up in it
        self._recent.append(record)
        return record

    def _derive(self, row: dict[str, Any], steps: int) -> Rates:
        seconds = pick_number(row, "seconds", high=LONGEST_TIME) or 0.0
        aside = sum(pick_number(row, key, high=LONGEST_TIME) or 0.0 for key in ("eval", "save"))
        trained = seconds - aside
        if trained < LEAST_SECONDS or trained < LEAST_SHARE * seconds:
            return Rates()
        pace = trained / steps
        tokens, flops = pick_number(self._count, "tokens", high=1e18), _flops(row)
        return Rates(
            step_seconds=pace,
            tokens_per_second=tokens * self._processes / pace if tokens else None,
            flops_per_second=flops * self._processes / pace if flops else None,
        )


def _flops(row: dict[str, Any]) -> float | None:
    return pick_number(row, "flops", high=1e28) or None
