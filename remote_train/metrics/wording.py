"""Figures of a diagnosis in words: seconds, shares, rates. Never rounded to nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def render_time(seconds: float) -> str:
    """Return seconds with three digits and a unit that suits them: `61.4 ms`, `820 us`, `3.2 s`, `12.0 ns`."""
    return _scale(seconds, (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)))


def render_share(share: float) -> str:
    """Return a fraction in per cent, whole ones from ten on: `38 %`, `2.4 %`, `under 0.1 %`."""
    percent = share * 100.0
    if 0.0 < percent < 0.1:
        return "under 0.1 %"
    return f"{percent:.0f} %" if percent >= 9.95 else f"{percent:.1f} %"


def render_rate(flops: float) -> str:
    """Return FLOP/s: `80.2 TFLOP/s`, `560 GFLOP/s`, `3.20 MFLOP/s`."""
    return _scale(
        flops, (("TFLOP/s", 1e12), ("GFLOP/s", 1e9), ("MFLOP/s", 1e6), ("kFLOP/s", 1e3), ("FLOP/s", 1.0))
    )


def _scale(value: float, units: Sequence[tuple[str, float]]) -> str:
    """Return a value in the largest unit of which it has one, else in the smallest."""
    unit, size = next((pair for pair in units if value >= pair[1]), units[-1])
    shown = _digits(value / size)
    return f"{value / size:.1e} {unit}" if value and float(shown) == 0 else f"{shown} {unit}"


def render_gain(gain: tuple[float, float] | None) -> str:
    """Return a range of gains: `1.2 to 1.9 x`, `1.3 x` where both ends read alike, `not predicted`."""
    if gain is None:
        return "not predicted"
    low, high = (f"{value:.2f}" if value < 9.95 else f"{value:.0f}" for value in gain)
    return f"{low} x" if low == high else f"{low} to {high} x"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"
