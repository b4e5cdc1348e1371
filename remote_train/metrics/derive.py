"""A run's output to metric records, piece by piece. Pure: bytes and times in, records out; no clock, no IO.

`Deriver` is the only name the floors above need, with the `Context` they fill in. The same bytes give the same records in any
chunking, so records can be derived again from the mirrored log when a table has been corrected.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from remote_train.metrics.convention import render_nanogpt
from remote_train.metrics.lines import Line, LineSplitter
from remote_train.metrics.nanogpt import StartLines, choose_device_kind, choose_dtype
from remote_train.metrics.parsers import MORE_NEEDLES, NEEDLES, LogReader
from remote_train.metrics.rates import NanogptRates, PlainRates, Rates
from remote_train.metrics.reading import merge_readings
from remote_train.metrics.record import MetricRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from remote_train.metrics.peaks import Peak
    from remote_train.metrics.reading import Reading

_PACE_RECORDS = (
    32  # the time left is reckoned from this many records, so that evaluations count with their share
)


@dataclass(frozen=True, slots=True)
class Context:
    """What is known about an attempt beside its output; unknown is None.

    `peak_for` gives the peak of one device for a dtype. `default_dtype` is used where the output does not tell one.
    `time_at` gives the host's seconds since the attempt's start at which the stream had reached a byte offset, and `wall_start` that
    start in seconds since the epoch. `device_kind` and `capability` tell what nanoGPT runs on.
    """

    attempt: int
    devices: int
    peak_for: Callable[[str], Peak | None]
    default_dtype: str | None = None
    default_dtype_source: str | None = None
    wall_start: float | None = None
    time_at: Callable[[int], float | None] | None = None
    device_kind: str | None = None  # "cuda" or "cpu"
    capability: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Stamp:
    """When a line came: `host` by the host's clock, `time` that or else by receipt, both in seconds since the start."""

    host: float | None
    time: float | None
    wall: float | None


class Deriver:
    """Derive records from one rank's output: `feed` it in order, `finish` at its end.

    Open to look at between calls: `progress` (step, total), `evaluation` (step, validation loss), `interval` (FLOP/s that
    nanoGPT's printed MFU allows), `eta_seconds` and `explanation`.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._splitter = LineSplitter(NEEDLES)
        self._reader = LogReader()
        self._start = StartLines()
        self._nanogpt = NanogptRates(self._start)
        self._plain = PlainRates()
        self._peaks: dict[str, Peak | None] = {}
        self._rank: int | None = None
        self._bar: Reading | None = None
        self._held: tuple[Reading, Stamp] | None = None
        self._block: tuple[Reading, Stamp] | None = None  # a step whose figures still come, line by line
        self._recent: deque[tuple[int, float]] = deque(maxlen=_PACE_RECORDS)
        self._last: MetricRecord | None = None
        self.progress: tuple[int, int] | None = None
        self.evaluation: tuple[int | None, float | None] | None = None

    def feed(self, data: bytes, now: float | None) -> list[MetricRecord]:
        """Take in the next bytes of the stream, received at `now` (seconds since the epoch); give their records."""
        return [record for line in self._splitter.feed(data) for record in self._take(line, now)]

    def skip_to(self, offset: int) -> None:
        """Go on at another byte of the stream, the first of a line; no pace is reckoned across the gap."""
        self._splitter.skip_to(offset)
        self._nanogpt.see_gap()
        self._plain.see_gap()
        self._recent.clear()
        self._bar = self._held = self._block = None

    def finish(self, now: float | None = None) -> list[MetricRecord]:
        """Give what the end of the stream completes: a last line without a line end, a record held back."""
        records = [record for line in self._splitter.flush() for record in self._take(line, now)]
        return [*records, *self._release(self._bar), *self._close_block()]

    @property
    def family(self) -> str | None:
        """Tell whose log format it is, once a step line has been seen."""
        return self._reader.family

    @property
    def settings(self) -> dict[str, object]:
        """Give the settings that a script of nanoGPT's family printed, over its defaults; {} for any other."""
        return dict(self._start.settings) if self.family == "nanogpt" else {}

    @property
    def interval(self) -> tuple[float, float] | None:
        """Tell between which FLOP/s of the whole run nanoGPT's last printed MFU lies."""
        return self._nanogpt.printed.interval(self._context.devices)

    @property
    def eta_seconds(self) -> float | None:
        """Tell the seconds left to the last step, from the pace of the latest records."""
        if self.progress is None or self._last is None:
            return None
        left = max(0, self.progress[1] - self.progress[0])
        pace = self._last.step_seconds
        if len(self._recent) > 1:
            (first, began), (last, ended) = self._recent[0], self._recent[-1]
            pace = (ended - began) / (last - first) if ended > began else pace
        return None if pace is None else left * pace

    @property
    def explanation(self) -> str | None:
        """Say in one sentence what nanoGPT's printed MFU is of, and what it is of this device."""
        if self.family != "nanogpt" or self._last is None or self._last.dtype is None:
            return None
        return render_nanogpt(
            self._last,
            self._peak(self._last.dtype),
            self.interval,
            contradicted=self._nanogpt.printed.contradicts,
        )

    def _take(self, line: Line, now: float | None) -> Iterator[MetricRecord]:
        self._start.see(line.text)
        self._splitter.every = self._start.inside_config
        if line.rank is not None and self._rank not in {None, line.rank}:
            return  # several ranks on one output: the first that reports speaks for the run
        reading = self._reader.read(line.text)
        if reading is None:
            return
        if reading.family in MORE_NEEDLES:
            self._splitter.want(self._reader.needles)
        if reading.kind == "start":
            self._plain.see_start(reading)
        elif reading.kind == "part":
            self._block = (merge_readings(self._block[0], reading), self._block[1]) if self._block else None
        else:
            yield from self._close_block()
            yield from self._take_event(reading, line, now)

    def _take_event(self, reading: Reading, line: Line, now: float | None) -> Iterator[MetricRecord]:
        if reading.kind == "eval":
            self._nanogpt.see_evaluation(reading.step)
            self._plain.see_evaluation(reading)
            self.evaluation = (reading.step, reading.loss)
        elif reading.kind == "bar":
            yield from self._release(reading)
            self._bar = reading
        else:
            self._rank = self._rank if line.rank is None else line.rank
            stamp = self._stamp(line, now)
            if reading.kind == "block":
                self._block = (reading, stamp)
            else:
                yield from self._take_step(reading, stamp)

    def _close_block(self) -> Iterator[MetricRecord]:
        """Give the step whose figures have come, unless there were none: a heading alone tells nothing."""
        if self._block is not None:
            (reading, stamp), self._block = self._block, None
            if reading.loss is not None or reading.tokens_per_second or reading.step_seconds:
                yield self._make_record(reading, stamp)

    def _take_step(self, reading: Reading, stamp: Stamp) -> Iterator[MetricRecord]:
        yield from self._release(self._bar)  # two dicts without a bar between them
        if reading.family == "transformers" and reading.step is None and self._bar is not None:
            self._held = (reading, stamp)  # the dict has no step: the bar drawn right after it tells
            return
        yield self._make_record(reading, stamp)

    def _release(self, bar: Reading | None) -> Iterator[MetricRecord]:
        if self._held is None:
            return
        (reading, stamp), self._held = self._held, None
        for candidate in (bar, self._bar):
            if candidate is not None and self._belongs(candidate):
                reading = reading._replace(step=candidate.step, total=candidate.total)
                break
        yield self._make_record(reading, stamp)

    def _belongs(self, bar: Reading) -> bool:
        """Tell whether a bar is that of the training, not of an evaluation: same total, and forward."""
        done, total = self.progress or (0, bar.total)
        return bar.total == total and (bar.step or 0) > done

    def _stamp(self, line: Line, now: float | None) -> Stamp:
        start = self._context.wall_start
        host = self._context.time_at(line.end) if self._context.time_at else None
        if host is not None:
            return Stamp(host, host, start + host if start is not None else now)
        return Stamp(None, now - start if now is not None and start is not None else None, now)

    def _make_record(self, reading: Reading, stamp: Stamp) -> MetricRecord:
        rates = self._derive_rates(reading, stamp)
        dtype, dtype_source = self._choose_dtype(reading)
        peak = self._peak(dtype) if dtype is not None and self._runs_where_expected(reading) else None
        peak_flops = peak.flops * self._context.devices if peak else None
        record = MetricRecord(
            attempt=self._context.attempt,
            step=reading.step,
            time=stamp.time,
            wall_time=stamp.wall,
            loss=reading.loss,
            step_seconds=rates.step_seconds,
            tokens_per_second=rates.tokens_per_second,
            flops_per_second=rates.flops_per_second,
            devices=self._context.devices,
            mfu=rates.flops_per_second / peak_flops if rates.flops_per_second and peak_flops else None,
            peak_flops=peak_flops,
            peak_source=peak.source if peak else None,
            dtype=dtype,
            dtype_source=dtype_source,
            reported_mfu=reading.mfu,
            source=f"log:{reading.family}",
        )
        self._note(record, reading)
        return record

    def _derive_rates(self, reading: Reading, stamp: Stamp) -> Rates:
        if reading.family != "nanogpt":
            return self._plain.derive(reading, self._context.devices)
        self._start.start_running()
        return self._nanogpt.derive(reading, stamp.host, self._context.devices)

    def _choose_dtype(self, reading: Reading) -> tuple[str | None, str | None]:
        if reading.family == "nanogpt":
            chosen = choose_dtype(self._start, self._device_kind, self._context.capability)
            if chosen is not None:
                return chosen
        return self._context.default_dtype, self._context.default_dtype_source

    def _runs_where_expected(self, reading: Reading) -> bool:
        """Tell whether the script uses the device whose peak we know: `--device=cpu` on a GPU host does not."""
        return reading.family != "nanogpt" or self._context.device_kind in {None, self._device_kind}

    @property
    def _device_kind(self) -> str:
        """Tell what nanoGPT computes on: where there is only a CPU, that, whatever its settings say."""
        return "cpu" if self._context.device_kind == "cpu" else choose_device_kind(self._start)

    def _peak(self, dtype: str) -> Peak | None:
        # An unknown peak is asked for again: one that is being measured comes while the run goes on.
        if self._peaks.get(dtype) is None:
            self._peaks[dtype] = self._context.peak_for(dtype)
        return self._peaks[dtype]

    def _note(self, record: MetricRecord, reading: Reading) -> None:
        self._last = record
        if record.step is None:
            return
        total = reading.total or (self._start.number("max_iters") if reading.family == "nanogpt" else None)
        self.progress = (record.step, total) if total else None
        if self._recent and record.step <= self._recent[-1][0]:
            self._recent.clear()
        if record.time is not None:
            self._recent.append((record.step, record.time))
