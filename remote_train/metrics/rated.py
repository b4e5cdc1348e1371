"""Rates of the whole run to a record: what they are of this device's peak for the dtype in use. One place for meter and report. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from remote_train.metrics.numbers import weigh_median
from remote_train.metrics.record import MetricRecord

if TYPE_CHECKING:
    from collections.abc import Iterable

    from remote_train.metrics.derive import Context
    from remote_train.metrics.peaks import Peak
    from remote_train.metrics.rates import Rates

LONGEST_TIME = 1e10
"""Seconds; over 300 years, and a moment can still be told."""
LARGEST_STEP = 1 << 53
RECENT = 64
"""Records whose typical pace stands for the run."""


class Rater:
    """Makes the records of one attempt and one source."""

    def __init__(self, context: Context, source: str) -> None:
        self._context = context
        self._source = source
        self._peaks: dict[str, Peak | None] = {}

    def make(
        self,
        rates: Rates,
        dtype: tuple[str | None, str | None],
        time: float | None,
        **facts: Any,  # noqa: ANN401
    ) -> MetricRecord:
        """Return a record; `dtype` is the name and what says so, `time` in seconds since the attempt's start."""
        name, said_by = (
            dtype if dtype[0] else (self._context.default_dtype, self._context.default_dtype_source)
        )
        peak = self.peak(name) if name else None
        total = peak.flops * self._context.devices if peak else None
        start = self._context.wall_start
        return MetricRecord(
            attempt=self._context.attempt,
            time=time,
            wall_time=start + time if start is not None and time is not None else None,
            step_seconds=rates.step_seconds,
            tokens_per_second=rates.tokens_per_second,
            flops_per_second=rates.flops_per_second,
            devices=self._context.devices,
            mfu=rates.flops_per_second / total if rates.flops_per_second and total else None,
            peak_flops=total,
            peak_source=peak.source if peak else None,
            dtype=name,
            dtype_source=said_by,
            source=self._source,
            **facts,
        )

    def peak(self, dtype: str) -> Peak | None:
        """Return the peak of one device; one that is being measured comes while the run goes on."""
        if self._peaks.get(dtype) is None:
            self._peaks = {**dict(list(self._peaks.items())[-15:]), dtype: self._context.peak_for(dtype)}
        return self._peaks[dtype]


def settle(last: MetricRecord, records: Iterable[MetricRecord]) -> MetricRecord:
    """Return a record with the typical pace of these in place of its own: one of them may have an evaluation in it.

    This is the pace of a run, in `show`, `ps`, `compare` and `explain` alike: the median, each record counted by its steps. Windows are
    of one length, so a slow one holds few steps, and counted like the others it would make the run slower than it is.
    """
    alike = [
        record for record in records if (record.dtype, record.peak_flops) == (last.dtype, last.peak_flops)
    ]
    return replace(
        last,
        step_seconds=_middle(alike, "step_seconds"),
        tokens_per_second=_middle(alike, "tokens_per_second"),
        flops_per_second=_middle(alike, "flops_per_second"),
        mfu=_middle(alike, "mfu"),
    )


def _middle(records: Iterable[MetricRecord], name: str) -> float | None:
    known = ((getattr(record, name), record.steps or 1) for record in records)
    return weigh_median([(value, steps) for value, steps in known if value is not None])
