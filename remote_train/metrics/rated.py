"""Rates of the whole run to a record: what they are of this device's peak for the dtype in use. One place for meter and report. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remote_train.metrics.record import MetricRecord

if TYPE_CHECKING:
    from remote_train.metrics.derive import Context
    from remote_train.metrics.peaks import Peak
    from remote_train.metrics.rates import Rates

LONGEST_TIME = 1e10
"""Seconds; over 300 years, and a moment can still be told."""
LARGEST_STEP = 1 << 53


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
