"""Figures of a diagnosis in words: seconds, shares, rates. Never rounded to nothing."""

from __future__ import annotations


def render_time(seconds: float) -> str:
    """Return seconds with three digits and a unit that suits them: `61.4 ms`, `820 us`, `3.2 s`."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size or unit == "us":
            return f"{_digits(seconds / size)} {unit}"
    raise AssertionError


def render_share(share: float) -> str:
    """Return a fraction in per cent, whole ones from ten on: `38 %`, `2.4 %`, `under 0.1 %`."""
    percent = share * 100.0
    if 0.0 < percent < 0.1:
        return "under 0.1 %"
    return f"{percent:.0f} %" if percent >= 9.95 else f"{percent:.1f} %"


def render_rate(flops: float) -> str:
    """Return FLOP/s: `80.2 TFLOP/s`, `560 GFLOP/s`."""
    return f"{_digits(flops / 1e12)} TFLOP/s" if flops >= 1e12 else f"{_digits(flops / 1e9)} GFLOP/s"


def render_gain(gain: tuple[float, float] | None) -> str:
    """Return a range of gains: `1.2 to 1.9 x`, `1.3 x` where both ends read alike, `not predicted`."""
    if gain is None:
        return "not predicted"
    low, high = (f"{value:.2f}" if value < 9.95 else f"{value:.0f}" for value in gain)
    return f"{low} x" if low == high else f"{low} to {high} x"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"
