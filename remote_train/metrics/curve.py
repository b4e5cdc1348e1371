"""The records of several attempts as one curve: what an attempt did beyond the step where the next went on counts no more. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from remote_train.metrics.record import MetricRecord


def choose_limits(starts: Sequence[int | None]) -> list[int | None]:
    """Return for each attempt the step from which on later attempts have done its work again, None: nowhere.

    `starts` are the first steps of the attempts, None where it is not known. One that went further back than the one
    before it, or began anew, also takes the place of what still older ones did.
    """
    limits: list[int | None] = []
    lowest: int | None = None
    for start in reversed(starts):
        limits.append(lowest)
        if start is not None and (lowest is None or start < lowest):
            lowest = start
    return limits[::-1]


def place_record(record: MetricRecord, host: str, began: float | None) -> MetricRecord:
    """Return a record with its host, and its seconds since the run's first attempt was started at `began` (epoch)."""
    known = record.wall_time is not None and began is not None
    since = max(0.0, record.wall_time - began) if known else None  # type: ignore[operator]  # just looked at
    return replace(record, host=host, run_time=since)


def mark_superseded(records: Iterable[MetricRecord], limit: int | None) -> Iterator[MetricRecord]:
    """Yield one attempt's records, those from step `limit` on marked; one without a step is like the one before it."""
    beyond = False
    for record in records:
        if record.step is not None:
            beyond = limit is not None and record.step >= limit
        yield replace(record, superseded=True) if beyond else record
