"""One view of a run from all its sources, the best of each figure: report, then meter, then log (DESIGN §10). Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from remote_train.metrics.record import MetricRecord

RATED = ("flops_per_second", "mfu", "devices", "peak_flops", "peak_source", "dtype", "dtype_source")


def blend(
    report: MetricRecord | None, meter: MetricRecord | None, log: MetricRecord | None
) -> MetricRecord | None:
    """Return one record from the newest of each source; `source` is where its MFU is from, None where there is none.

    Step and loss are the script's own words, and the meter's count of steps only where it says none.
    """
    paced = [record for record in (report, meter, log) if record is not None]
    if not paced:
        return None
    said = [record for record in (report, log) if record is not None]
    rated = _first(paced, "mfu") or _first(paced, "flops_per_second") or paced[0]
    newest = max(paced, key=lambda record: (record.time is not None, record.time or 0.0))
    step = _value(said, "step")
    return replace(
        rated,
        step=step if step is not None else _value(paced, "optimizer_step"),
        loss=_value(said, "loss"),
        step_seconds=_value(paced, "step_seconds"),
        tokens_per_second=_value(paced, "tokens_per_second"),
        reported_mfu=_value(said, "reported_mfu"),
        optimizer_step=_value(paced, "optimizer_step"),
        time=newest.time,
        wall_time=newest.wall_time,
    )


def _first(records: Sequence[MetricRecord], name: str) -> MetricRecord | None:
    return next((record for record in records if getattr(record, name) is not None), None)


def _value(records: Iterable[MetricRecord], name: str) -> Any:  # noqa: ANN401  (a field's)
    return next((value for record in records if (value := getattr(record, name)) is not None), None)
