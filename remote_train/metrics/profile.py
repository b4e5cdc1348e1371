"""What the meter saw of one attempt, summed up: lines of metrics.jsonl in, one Profile out.

The lines come from the training's own process, so nothing in them is believed before it was looked at, and their number
is no reason to hold more than a bounded part. The first window has the warm-up in it (compilation, caches, clocks) and
does not count where there is another.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from remote_train.metrics.numbers import (
    parse_lines,
    pick_count,
    pick_flag,
    pick_number,
    pick_table,
    pick_text,
    weigh_median,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

WINDOWS = 4096
SAMPLES = 512
MOST_STEPS = 1 << 40
BOUNDS = (1e-9, 1e9)
"""Seconds that a step or a window may take."""
MOST_OF_A_STEP = {"flops": 1e28, "kernels": 1e12, "bytes": 1e20, "tokens": 1e18}
"""More than that no step has of anything."""
PHASES = ("forward", "backward", "optimizer", "other")


@dataclass(frozen=True, slots=True)
class Settings:
    """How a training is set up, as the meter found it; None is unknown."""

    threads: int | None = None
    compiled: bool | None = None
    optimizer: str | None = None
    fused: bool | None = None
    foreach: bool | None = None
    workers: int | None = None
    amp: str | None = None
    tf32: bool | None = None
    grad_scaler: bool | None = None
    parameters_dtype: str | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """One attempt by its meter: figures are of the process that was metered, and of one optimizer step; None is unknown.

    `shares` are of the time since the first window: data, eval and save as they were measured, and the rest split like
    the steps that were looked at closely: forward, backward, optimizer, other. They add up to 1; empty without a window.
    """

    device: str | None = None
    name: str | None = None
    world: int | None = None
    settings: Settings = field(default_factory=Settings)
    flops: float | None = None
    how: str | None = None
    why: str | None = None
    dtype: str | None = None
    dtype_source: str | None = None
    parameters: int | None = None
    trainable: int | None = None
    kernels: float | None = None
    bytes: float | None = None
    tokens: float | None = None
    shapes: int | None = None
    steps: int = 0
    seconds: float = 0.0
    """Of the windows that count, evaluation and checkpoints included."""
    step_seconds: float | None = None
    """One training step: the median, without evaluation and checkpoints, waiting for data included."""
    longest: float | None = None
    trend: float | None = None
    """Step time of the last third of the windows over that of the first third."""
    backwards: float | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    split: bool = False
    """Whether the steps were looked at closely, so that forward, backward, optimizer and other are known."""
    starved: float | None = None
    """Of the steps that were looked at, the share in which the GPU waited for its host."""
    off: str | None = None

    @property
    def flops_per_second(self) -> float | None:
        """Model FLOP/s of this process while it trains."""
        return _divide(self.flops, self.step_seconds)

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens/s of this process while it trains."""
        return _divide(self.tokens, self.step_seconds)


@dataclass(slots=True)
class _Sum:
    """What has been read so far of one process."""

    pid: int | None = None
    start: Mapping[str, Any] = field(default_factory=dict)
    count: Mapping[str, Any] = field(default_factory=dict)
    windows: deque[_Window] = field(default_factory=lambda: deque(maxlen=WINDOWS))
    first: _Window | None = None
    samples: deque[Mapping[str, float]] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    first_sample: Mapping[str, float] | None = None
    starved: deque[bool] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    steps: int = 0
    off: str | None = None


@dataclass(frozen=True, slots=True)
class _Window:
    steps: int
    seconds: float
    median: float
    longest: float | None
    data: float
    eval: float
    save: float
    backwards: float | None


def parse_profile(lines: Iterable[bytes]) -> Profile:
    """Sum up the lines of a meter; an empty Profile when there are none. After a restart, of the process that came last."""
    total = _Sum()
    for row in parse_lines(lines):
        total = _take(total, row)
    return _make_profile(total)


def _take(total: _Sum, row: Mapping[str, Any]) -> _Sum:
    kind = row.get("kind")
    if kind == "start":
        pid = pick_count(row, "pid")
        total = _Sum(pid) if pid != total.pid else total
        total.start = row
    elif kind == "count":
        total.count = row
    elif kind == "steps":
        _take_window(total, row)
    elif kind == "sample":
        _take_sample(total, row)
    elif kind == "off":
        total.off = pick_text(row, "why") or "it does not say why"
    return total


def _take_window(total: _Sum, row: Mapping[str, Any]) -> None:
    steps, seconds = pick_count(row, "steps", MOST_STEPS), pick_number(row, "seconds", *BOUNDS)
    if not steps or not seconds:
        return
    apart = {key: pick_number(row, key) or 0.0 for key in ("eval", "save", "data")}
    training = max(seconds - apart["eval"] - apart["save"], 0.0)
    median = pick_number(row, "median", *BOUNDS) or training / steps
    if median < BOUNDS[0]:
        return
    total.steps += steps
    window = _Window(
        steps, seconds, median, pick_number(row, "longest"), **apart, backwards=pick_number(row, "backwards")
    )
    if total.first is None:
        total.first = window
    else:
        total.windows.append(window)


def _take_sample(total: _Sum, row: Mapping[str, Any]) -> None:
    phases = {key: pick_number(row, key) or 0.0 for key in PHASES}
    whole = sum(phases.values())
    if whole > 0:
        shares = {key: value / whole for key, value in phases.items()}
        if total.first_sample is None:
            total.first_sample = shares  # with the optimizer's state made in it
        else:
            total.samples.append(shares)
    starved = pick_flag(row, "starved")
    if starved is not None:
        total.starved.append(starved)


def _make_profile(total: _Sum) -> Profile:
    windows = list(total.windows) or ([total.first] if total.first else [])
    samples = list(total.samples) or ([total.first_sample] if total.first_sample else [])
    longest = [window.longest for window in windows if window.longest is not None]
    backwards = [window.backwards for window in windows if window.backwards]
    return Profile(
        **_read_start(total.start),
        **_read_count(total.count),
        steps=total.steps,
        seconds=sum(window.seconds for window in windows),
        step_seconds=weigh_median([(window.median, window.steps) for window in windows]),
        longest=max(longest, default=None),
        trend=_make_trend(windows),
        backwards=statistics.median(backwards) if backwards else None,
        shares=_make_shares(windows, samples),
        split=bool(samples),
        starved=sum(total.starved) / len(total.starved) if total.starved else None,
        off=total.off,
    )


def _read_start(row: Mapping[str, Any]) -> dict[str, Any]:
    device, raw = pick_text(row, "device"), pick_table(row, "settings")
    settings = Settings(
        threads=pick_count(raw, "threads", 1 << 20) or None,
        compiled=pick_flag(raw, "compiled"),
        optimizer=pick_text(raw, "optimizer"),
        fused=pick_flag(raw, "fused"),
        foreach=pick_flag(raw, "foreach"),
        workers=pick_count(raw, "workers", 1 << 20),
        amp=pick_text(raw, "amp"),
        tf32=pick_flag(raw, "tf32"),
        grad_scaler=pick_flag(raw, "grad_scaler"),
        parameters_dtype=pick_text(raw, "parameters_dtype"),
    )
    return {
        "device": device if device in ("cpu", "cuda") else None,
        "name": pick_text(row, "name"),
        "world": pick_count(row, "world", 1 << 20) or None,
        "settings": settings,
    }


def _read_count(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{key: pick_text(row, key) for key in ("how", "why", "dtype", "dtype_source")},
        **{key: pick_count(row, key) for key in ("parameters", "trainable", "shapes")},
        **{key: pick_number(row, key, high=high) or None for key, high in MOST_OF_A_STEP.items()},
    }


def _make_shares(windows: list[_Window], samples: list[Mapping[str, float]]) -> dict[str, float]:
    """Return the shares of the time: what was measured in every window, and the rest as the samples split it."""
    seconds = sum(window.seconds for window in windows)
    if seconds <= 0:
        return {}
    apart = {
        "data": sum(window.data for window in windows),
        "eval": sum(window.eval for window in windows),
        "save": sum(window.save for window in windows),
    }
    whole = max(seconds, sum(apart.values()))
    shares = {key: value / whole for key, value in apart.items()}
    rest = max(1.0 - sum(shares.values()), 0.0)
    # Medians: of the few steps that are looked at, one may have been held up.
    phases = {key: statistics.median(sample[key] for sample in samples) if samples else 0.0 for key in PHASES}
    looked = sum(phases.values())
    if looked <= 0:
        return {**shares, "other": rest}
    return {**shares, **{key: rest * value / looked for key, value in phases.items()}}


def _make_trend(windows: list[_Window]) -> float | None:
    third = len(windows) // 3
    if third < 3:
        return None
    first, last = (
        statistics.median(window.median for window in part) for part in (windows[:third], windows[-third:])
    )
    return last / first


def _divide(value: float | None, by: float | None) -> float | None:
    return value / by if value is not None and by else None
