"""From a reading to rates of the whole run: seconds per step, tokens and FLOPs per second. One class per kind of log.

nanoGPT's `time` needs care. That of the iteration behind an evaluation holds the evaluation and the checkpoint: it
is no step time. And it is taken before the only synchronisation, so with log_interval > 1 on a GPU it may be the
time of launching the kernels: then the host's clock between lines, over at least 5 s, decides when it is over 1.25
times the printed time. With log_interval = 1 the lag is the same in every line and the printed time is right.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass

from remote_train.metrics.nanogpt import (
    A100_FLOPS,
    StartLines,
    choose_sizes,
    compute_flops_per_iteration,
)
from remote_train.metrics.reading import Reading, merge_readings

_PACE_SPAN = 5.0  # seconds: the supervisor notes the clock twice a second, so this is within 10 %
_PACE_RATIO = 1.25
_PACE_WINDOW = 64  # lines

_HALF_DIGIT = 0.00005  # nanoGPT prints per cent with two decimals: +-0.005 % as a fraction
_USABLE = 0.05  # a printed figure stands in for a computed one only when its rounding is within 5 %
_DISAGREEING = 5  # lines in a row before the printed figure is taken to contradict ours


@dataclass(frozen=True, slots=True)
class Rates:
    """Figures of the whole run, all devices."""

    step_seconds: float | None = None
    tokens_per_second: float | None = None
    flops_per_second: float | None = None


class PlainRates:
    """Rates from lines that state them, with what start lines add: FLOPs per token, tokens or samples per step.

    A stated figure comes before a derived one: FLOP/s before tokens times FLOPs per token, those before the printed
    MFU times the peak that the script says it divides by.
    """

    def __init__(self) -> None:
        self._start = Reading("", "start")
        self._elapsed: tuple[int, float] | None = None
        self._evaluated = False

    def see_start(self, reading: Reading) -> None:
        """Keep what stays the same; what a later line leaves out stays as it was."""
        self._start = merge_readings(self._start, reading)

    def see_evaluation(self, reading: Reading) -> None:
        """Note an evaluation that the time of the next line holds: build-nanogpt begins to count before it."""
        self._evaluated = reading.family == "build-nanogpt"

    def see_gap(self) -> None:
        """Note that lines are missing before the next one."""
        self._elapsed, self._evaluated = None, False

    def derive(self, reading: Reading, devices: int) -> Rates:
        """Give the rates of one step line."""
        polluted, self._evaluated = self._evaluated, False
        if polluted:
            return Rates()
        times = devices if reading.per == "device" else 1
        tokens = reading.tokens_per_second and reading.tokens_per_second * times
        per_step = reading.tokens_per_step or self._start.tokens_per_step
        seconds = self._choose_seconds(reading) or (tokens and per_step and per_step / tokens)
        samples = reading.samples_per_step or self._start.samples_per_step
        if per_step is None and samples and self._start.tokens_per_sample:
            per_step = samples * self._start.tokens_per_sample
        if tokens is None and per_step and seconds:
            tokens = per_step / seconds
        return Rates(seconds, tokens, self._choose_flops(reading, tokens, devices))

    def _choose_seconds(self, reading: Reading) -> float | None:
        if reading.step is not None and reading.elapsed is not None:
            known, self._elapsed = self._elapsed, (reading.step, reading.elapsed)
            if known and reading.step > known[0] and reading.elapsed > known[1]:
                return (reading.elapsed - known[1]) / (reading.step - known[0])
        samples = reading.samples_per_step or self._start.samples_per_step
        if reading.step_seconds is None and reading.samples_per_second and samples:
            return samples / reading.samples_per_second
        return reading.step_seconds

    def _choose_flops(self, reading: Reading, tokens: float | None, devices: int) -> float | None:
        start = self._start
        if reading.flops_per_second:
            return reading.flops_per_second * (devices if reading.per == "device" else 1)
        if start.flops_per_iteration and reading.iteration_seconds:
            return start.flops_per_iteration / reading.iteration_seconds
        if tokens and start.flops_per_token:
            return tokens * start.flops_per_token
        return reading.mfu * start.mfu_peak * devices if reading.mfu and start.mfu_peak else None


class NanogptRates:
    """Rates of nanoGPT's lines: FLOPs from its start lines, checked against the MFU that it prints."""

    def __init__(self, start: StartLines) -> None:
        self._start = start
        self._evaluated: int | None = None
        self._pace = Pace()
        self.printed = PrintedMfu()

    def see_evaluation(self, step: int | None) -> None:
        """Note that the iteration of this number, and its `time`, hold an evaluation."""
        self._evaluated = step
        self._pace.clear()

    def see_gap(self) -> None:
        """Note that lines are missing before the next one."""
        self._pace.clear()

    def derive(self, reading: Reading, time: float | None, devices: int) -> Rates:
        """Give the rates of one iter line; `time` is the host's clock at the line, in seconds, or None."""
        per_iteration = compute_flops_per_iteration(self._start)
        self.printed.see(reading, per_iteration and per_iteration / devices)
        seconds = self._choose_seconds(reading, time)
        if seconds is None:
            return Rates()
        tokens = self._start.tokens_per_iteration
        if per_iteration is None or (self.printed.contradicts and not self._is_verified()):
            flops = self.printed.usable_flops(devices)
        else:
            flops = per_iteration / seconds
        return Rates(seconds, tokens and tokens / seconds, flops)

    def _choose_seconds(self, reading: Reading, time: float | None) -> float | None:
        polluted = reading.step is not None and reading.step == self._evaluated
        pace = self._pace.measure(reading, time, polluted=polluted)
        return None if polluted else pace or reading.step_seconds

    def _is_verified(self) -> bool:
        sizes = choose_sizes(self._start)
        return sizes is not None and sizes.verified


class Pace:
    """Seconds per iteration by the host's clock, where nanoGPT's own may be that of launching kernels."""

    def __init__(self) -> None:
        self._marks: deque[tuple[int, float]] = deque(maxlen=_PACE_WINDOW)
        self._printed: deque[float] = deque(maxlen=_PACE_WINDOW)

    def clear(self) -> None:
        """Begin again: something else than iterations took time."""
        self._marks.clear()
        self._printed.clear()

    def measure(self, reading: Reading, time: float | None, *, polluted: bool) -> float | None:
        """Give the pace when it contradicts the printed times; None when those stand."""
        if reading.step is None or time is None:
            return None
        if self._marks and reading.step <= self._marks[-1][0]:
            self.clear()  # a restart counts from an earlier iteration
        self._marks.append((reading.step, time))
        if reading.step_seconds and not polluted:
            self._printed.append(reading.step_seconds)
        return self._compare()

    def _compare(self) -> float | None:
        if len(self._marks) < 2 or not self._printed or self._marks[-1][0] - self._marks[-2][0] < 2:
            return None
        (first, began), (last, ended) = self._marks[0], self._marks[-1]
        pace = (ended - began) / (last - first)
        if ended - began < _PACE_SPAN or pace < _PACE_RATIO * statistics.median(self._printed):
            return None
        return pace


class PrintedMfu:
    """nanoGPT's printed MFU: recomputed the way nanoGPT does, to see whether our FLOPs are its FLOPs.

    It prints a running mean, 0.9 of the last and 0.1 of this line, evaluations included, which can be repeated
    exactly from the printed times. A difference over its rounding in five lines in a row contradicts our figure. Then sizes that
    the tensor lines verify stand (a fork divides by another peak), and others give way to the printed figure.
    """

    def __init__(self) -> None:
        self.last: float | None = None
        self._running: float | None = None
        self._disagreeing = 0

    @property
    def contradicts(self) -> bool:
        """Tell whether the printed figure has disagreed with ours for several lines in a row."""
        return self._disagreeing >= _DISAGREEING

    def see(self, reading: Reading, flops_per_device: float | None) -> None:
        """Take in one iter line, with our FLOPs per iteration and device."""
        self.last = reading.mfu
        if reading.mfu is None or not reading.step_seconds or not flops_per_device:
            self._running = None
            return
        now = flops_per_device / reading.step_seconds / A100_FLOPS
        self._running = now if self._running is None else 0.9 * self._running + 0.1 * now
        # The printed time is rounded to 0.01 ms; the sum of the relative errors is small beside 1 %.
        tolerance = _HALF_DIGIT + self._running * (0.01 + 5e-6 / reading.step_seconds)
        agrees = abs(self._running - reading.mfu) <= tolerance
        self._disagreeing = 0 if agrees else self._disagreeing + 1

    def interval(self, devices: int) -> tuple[float, float] | None:
        """Give the FLOP/s of the whole run that the printed figure allows; None before it prints one."""
        if self.last is None:
            return None
        low, high = max(0.0, self.last - _HALF_DIGIT), self.last + _HALF_DIGIT
        return low * A100_FLOPS * devices, high * A100_FLOPS * devices

    def usable_flops(self, devices: int) -> float | None:
        """Give the printed figure as FLOP/s of the whole run when its rounding is within 5 %."""
        if self.last is None or self.last * _USABLE < _HALF_DIGIT:
            return None
        return self.last * A100_FLOPS * devices
