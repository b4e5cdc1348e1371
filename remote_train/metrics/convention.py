"""What nanoGPT's printed MFU is of, in a sentence for people. Figures in, text out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remote_train.metrics.figures import DOUBT, is_suspect

if TYPE_CHECKING:
    from remote_train.metrics.peaks import Peak
    from remote_train.metrics.record import MetricRecord


def render_nanogpt(
    record: MetricRecord, peak: Peak | None, interval: tuple[float, float] | None, *, contradicted: bool
) -> str | None:
    """Say what nanoGPT's printed MFU is of, and what it is of this device; None before it prints one."""
    if record.reported_mfu is None:
        return None
    text = f"nanoGPT prints {_per_cent(record.reported_mfu)}: that is of an A100's 312 TFLOP/s"
    if peak is None or record.peak_flops is None:
        return f"{text}; the peak of this device is not known"
    share = _share(record, interval)
    if share is not None:
        text += f"; of this {_short_name(peak.name)}'s {_tera(peak.flops)} it is {share}"
    return f"{text} (its figure does not agree with its start lines)" if contradicted else text


def _share(record: MetricRecord, interval: tuple[float, float] | None) -> str | None:
    if record.mfu is not None:
        doubt = f" ({DOUBT})" if is_suspect(record.mfu) else ""
        return _per_cent(record.mfu) + doubt
    if interval is None or not record.peak_flops:
        return None
    low, high = (bound / record.peak_flops for bound in interval)
    return f"{_per_cent(low)} to {_per_cent(high)}"


def _per_cent(fraction: float) -> str:
    value = fraction * 100
    if value >= 1:
        return f"{value:.1f} %"
    return f"{value:.2f} %" if value == 0 or value >= 0.095 else f"{value:.2g} %"


def _tera(flops: float) -> str:
    value = flops / 1e12
    return f"{value:.1f} TFLOP/s" if value >= 10 else f"{value:.2g} TFLOP/s"


def _short_name(name: str) -> str:
    return name.removeprefix("NVIDIA ").removeprefix("GeForce ")
