"""Metrics beside the stream: rank 0's bytes, the meter's, the script's and the host's clock in, records out. And the same from a mirror.

MFU is derived here, on the laptop, from raw facts: the same code reads a live run and an old one.
"""

from __future__ import annotations

import contextlib
import heapq
import operator
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from remote_train.attempts import item_of, place_of
from remote_train.host import layout
from remote_train.metrics.blend import blend
from remote_train.metrics.clock import Clock
from remote_train.metrics.curve import choose_limits, mark_superseded, place_record
from remote_train.metrics.denominator import choose_device, choose_device_peak, choose_usual_dtype
from remote_train.metrics.derive import Context, Deriver
from remote_train.metrics.json_lines import thin_windows
from remote_train.metrics.metered import Metered
from remote_train.metrics.rated import RECENT, settle
from remote_train.metrics.reports import Reported

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping
    from pathlib import Path

    from remote_train.metrics.peaks import Peak
    from remote_train.metrics.record import MetricRecord
    from remote_train.records import Attempt, Run

READ = 1 << 20
HEAD_BYTES = 256 * 1024
TAIL_BYTES = 256 * 1024
WINDOW_BYTES = 200
"""Of a line of the meter's, about."""
PACE = (
    "step_seconds",
    "tokens_per_second",
    "flops_per_second",
    "mfu",
    "devices",
    "peak_flops",
    "peak_source",
    "dtype",
    "dtype_source",
)
"""What a line of output without a pace keeps of the one before it."""
PART_BYTES = 64 * 1024
"""Of the meter's and the script's lines, at the beginning and at the end."""


class Watch:
    """The metrics of one attempt, fed as its output comes."""

    def __init__(
        self,
        attempt: int,
        record: dict[str, Any],
        peak: dict[str, Any] | None,
        clock: Iterator[bytes] | None = None,
    ) -> None:
        self.plan: dict[str, Any] = record["plan"]
        self.measured = peak
        self.clock = Clock(clock)
        self.device = choose_device(
            self.plan["device"], self.plan["cpu"], record.get("gpus") or [], self.plan["processes"]
        )
        self.waits = self.plan["device"] == "cuda" and not record.get("gpus")
        """Which GPUs it is given is not known yet."""
        dtype = choose_usual_dtype(self.device)
        context = Context(
            attempt=attempt,
            devices=self.device.count,
            peak_for=self._peak,
            default_dtype=dtype,
            default_dtype_source=f"assumed: {dtype} on this device",
            wall_start=record.get("started"),
            time_at=self.clock.time_at,
            device_kind=self.device.kind,
            capability=self.device.capability,
        )
        self.deriver = Deriver(context)
        self.metered = Metered(context, self.plan["processes"])
        self.reported = Reported(context, self.plan["processes"], lambda: self.metered.dtype)
        self.logged: MetricRecord | None = None
        """The newest record of the output, with the newest pace that any had."""
        self._paced: deque[MetricRecord] = deque(maxlen=RECENT)

    def _peak(self, dtype: str) -> Peak | None:
        return choose_device_peak(self.device, dtype, self.plan.get("peak_tflops"), self.measured)

    def feed(self, name: str, data: bytes) -> list[MetricRecord]:
        """Take bytes of an output as they come; give the records that they complete."""
        if name == "clock":
            self.clock.feed(data)
        elif name == "meter":
            return self.metered.feed(data)
        elif name == "report":
            return self.reported.feed(data, time.time())
        return self._log(self.deriver.feed(data, time.time())) if name == "0" else []

    def finish(self) -> list[MetricRecord]:
        """Give what the end of the output completes."""
        return self._log(self.deriver.finish())

    def _log(self, records: list[MetricRecord]) -> list[MetricRecord]:
        self._paced.extend(record for record in records if has_pace(record))
        self.logged = newest(records, self.logged)
        return records

    @property
    def typical_log(self) -> MetricRecord | None:
        """Tell the newest record of the output with the typical pace of the latest lines in place of its own."""
        return settle(self.logged, self._paced) if self.logged is not None and self._paced else self.logged

    def blend(self, *, typical: bool = False) -> MetricRecord | None:
        """Return the newest figures, each from its best source; with `typical` their pace is the median over a while."""
        meter = self.metered.typical if typical else self.metered.latest
        report = self.reported.typical if typical else self.reported.latest
        logged = self.typical_log if typical else self.logged
        other = next((record for record in (report, logged) if record and record.mfu), None)
        if self.metered.off or (self.metered.warming and other is not None):
            return blend(report, None, logged) or meter
        return blend(report, meter, logged)

    def list_sources(self) -> list[MetricRecord]:
        """Return the newest record of each source that has any, the best first, with its typical pace."""
        found = (self.reported.typical, self.metered.typical, self.typical_log)
        return [record for record in found if record is not None]

    def explain_unknown(self) -> str | None:
        """Say why there is no MFU by the meter, None where there is one, or nothing is known of why."""
        typical = self.metered.typical
        if self.plan.get("meter") is False:
            return "not metered: --no-meter"
        if self.metered.off is not None:
            return f"the meter has stopped: {self.metered.off}"
        latest = self.metered.latest
        if self.metered.why is not None and (latest is None or latest.flops_per_second is None):
            return f"the meter has not counted FLOPs: {self.metered.why}"
        if typical is not None and typical.mfu is None and typical.flops_per_second is not None:
            return f"the peak of {self.device.name} for {typical.dtype} is not known"
        return None

    def go_to(self, offset: int) -> None:
        """Go on with rank 0's output at another byte, the first of a line."""
        self.deriver.skip_to(offset)
        self.clock.forget(offset)

    def feed_ends(self, path: Path, size: int, position: int) -> list[MetricRecord]:
        """Take the beginning of a mirror (start lines) and its end, and go on at `position`; give their records.

        `size` is how much of the mirror counts. Where it does not reach up to `position`, its end says nothing.
        """
        tail = max(0, size - TAIL_BYTES)
        records = self._feed_part(path, 0, min(size, HEAD_BYTES))
        if position == size and tail <= HEAD_BYTES:
            return records + self._feed_part(path, HEAD_BYTES, size)
        if position == size:
            self.go_to(begin := find_line(path, tail))
            return records + self._feed_part(path, begin, size)
        self.go_to(position)
        return records

    def _feed_part(self, path: Path, begin: int, end: int) -> list[MetricRecord]:
        pieces = read_pieces(path, begin, end)
        return self._log([record for piece in pieces for record in self.deriver.feed(piece, None)])

    def feed_beside(self, mirror: Attempt, ends: Mapping[str, int]) -> None:
        """Take the beginning and the end of what is mirrored of the meter's and the script's lines, up to these bytes."""
        for name, source in (("meter", self.metered), ("report", self.reported)):
            path, end = mirror.output(name), min(mirror.offset(name), ends.get(name, 0))
            head, tail = min(end, PART_BYTES), max(0, end - PART_BYTES)
            for piece in read_pieces(path, 0, head):
                source.feed(piece)
            if tail > head:
                source.skip()
            for piece in read_pieces(path, max(head, tail), end):
                source.feed(piece)
            if end < ends.get(name, 0):
                source.skip()


def make_watch(attempt: int, mirror: Attempt) -> Watch | None:
    """Return the watch of a mirrored attempt, with its clock; None while the host's record is not here."""
    record = mirror.read(layout.ATTEMPT)
    if record is None or "plan" not in record:
        return None
    clock = read_pieces(mirror.output("clock"), end=mirror.offset("clock"))
    return Watch(attempt, record, mirror.read(layout.PEAK), clock)


def find_line(path: Path, offset: int) -> int:
    """Return where the first line behind `offset` begins; `offset` itself when none does within a piece."""
    piece = next(read_pieces(path, offset, offset + TAIL_BYTES), b"")
    return offset + piece.find(b"\n") + 1


def read_pieces(path: Path, begin: int = 0, end: int | None = None) -> Generator[bytes]:
    """Yield a file's bytes from `begin` up to `end`, None meaning its end; nothing when it is not there."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(begin)
        left = end - begin if end is not None else None
        while piece := file.read(READ if left is None else max(0, min(READ, left))):
            left = left - len(piece) if left is not None else None
            yield piece


def read_metrics(attempt: int, mirror: Attempt, *, windows: int | None = None) -> Iterator[MetricRecord]:
    """Yield every record that a mirrored attempt gives: of its output, its meter and its script, in the order of their times.

    `windows`: about so many of the meter's at most, evenly; 0 for none, which have neither step nor loss; None for all.
    """
    watch = make_watch(attempt, mirror)
    if watch is None:
        return
    sources = list(_read_sources(watch, mirror, windows))
    try:
        for _, record in heapq.merge(*sources, key=operator.itemgetter(0)):
            yield record
    finally:  # whoever wants only the first leaves files open
        for source in sources:
            source.close()
        watch.clock.close()


def _read_sources(
    watch: Watch, mirror: Attempt, windows: int | None
) -> Iterator[Generator[tuple[float, MetricRecord]]]:
    if windows != 0:
        yield _place_in_time(_read_meter(watch.metered, mirror.output("meter"), windows))
    yield _place_in_time(_read_lines(watch.reported, mirror.output("report")))
    yield _place_in_time(_read_log(watch, mirror))


def _read_meter(source: Metered, path: Path, windows: int | None) -> Generator[MetricRecord]:
    stride = path.stat().st_size // (windows * WINDOW_BYTES) if windows and path.exists() else 1
    if stride < 2:
        yield from _read_lines(source, path)
        return
    with contextlib.closing(read_pieces(path)) as pieces:
        for piece in thin_windows(pieces, stride):
            yield from source.feed(piece)


def _read_lines(source: Metered | Reported, path: Path) -> Generator[MetricRecord]:
    with contextlib.closing(read_pieces(path)) as pieces:
        for piece in pieces:
            yield from source.feed(piece)


def _read_log(watch: Watch, mirror: Attempt) -> Generator[MetricRecord]:
    with contextlib.closing(read_pieces(mirror.output("0"))) as pieces:
        for piece in pieces:
            yield from watch.deriver.feed(piece, None)
    yield from watch.deriver.finish()


def _place_in_time(records: Generator[MetricRecord]) -> Generator[tuple[float, MetricRecord]]:
    """Yield records with a time that never goes back; one without is where the one before it was."""
    reached = 0.0
    with contextlib.closing(records):
        for record in records:
            reached = max(reached, record.time or 0.0)
            yield reached, record


def read_curve(run: Run, *, everything: bool = False, windows: int | None = None) -> Iterator[MetricRecord]:
    """Yield the records of all attempts as one curve, with `everything` also those that later attempts took the place of.

    `windows`: about so many of the meter's of each attempt at most, 0 for none, None for all.
    """
    whole = run.read()
    numbers = [int(item["attempt"]) for item in whole["attempts"]]
    limits = choose_limits([_find_start(run, whole, number) for number in numbers])
    for number, limit in zip(numbers, limits, strict=True):
        host = place_of(whole, number)[0]
        for record in mark_superseded(read_metrics(number, run.attempt(number), windows=windows), limit):
            if everything or not record.superseded:
                yield place_record(record, host, whole.get("created"))


def _find_start(run: Run, whole: dict[str, Any], number: int) -> int | None:
    """Return the first step of an attempt: by its own words, before there are any by its checkpoint's."""
    steps = (record.step for record in read_metrics(number, run.attempt(number), windows=0))
    first = next((step for step in steps if step is not None), None)
    held = (item_of(whole, number).get("checkpoint") or {}).get("step")
    return first if first is not None else None if held is None else int(held) + 1


def read_last_metric(attempt: int, mirror: Attempt) -> tuple[MetricRecord | None, Watch | None]:
    """Return the newest figures, from the beginnings (start lines) and the ends of the mirrors alone, and their watch."""
    watch = make_watch(attempt, mirror)
    if watch is None:
        return None, None
    watch.feed_beside(mirror, {name: mirror.offset(name) for name in ("meter", "report")})
    path, size = mirror.output("0"), mirror.offset("0")
    watch.feed_ends(path, size, size)
    watch.finish()
    watch.clock.close()
    return watch.blend(typical=True), watch


def newest(records: list[MetricRecord], before: MetricRecord | None) -> MetricRecord | None:
    """Return the last record, with the pace of the one before it where it has none: many logs time only some of their lines."""
    paced = next((record for record in reversed(records) if has_pace(record)), before)
    last = records[-1] if records else before
    if last is None or paced is None or has_pace(last) or not has_pace(paced):
        return last
    return replace(last, **{name: getattr(paced, name) for name in PACE})


def has_pace(record: MetricRecord) -> bool:
    """Tell whether a record says how fast the run is."""
    return record.step_seconds is not None or record.tokens_per_second is not None
