"""The host's clock beside the output: right for what is asked, and small for a run of weeks."""

from __future__ import annotations

import bisect
import json
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from remote_train.metrics import clock as clocks
from remote_train.metrics.clock import Clock
from remote_train.watch import Watch, find_line, read_last_metric, read_metrics
from tests.host.account_kit import make_test_plan

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest

from remote_train.records import Attempt


def entry(size: int, seconds: float) -> bytes:
    return json.dumps({"mono": seconds, "wall": 0.0, "sizes": {"0": size}}).encode() + b"\n"


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    yield from (data[start : start + size] for start in range(0, len(data), size))


GROWTH = st.lists(st.integers(0, 9), min_size=1, max_size=30)


@given(
    grown=GROWTH,
    asked=st.lists(st.integers(0, 200), max_size=10),
    piece=st.integers(1, 200),
    fed=st.integers(0, 30),
)
def test_every_time_is_that_of_the_first_entry_that_reached_the_byte(
    grown: list[int], asked: list[int], piece: int, fed: int
) -> None:
    sizes = [sum(grown[: count + 1]) for count in range(len(grown))]
    lines = [entry(size, float(number)) for number, size in enumerate(sizes)]
    clock = Clock(pieces(b"".join(lines[:fed]), piece))
    if fed < len(lines):
        clock.feed(b"".join(lines[fed:]))
    for offset in sorted(asked):
        place = bisect.bisect_left(sizes, offset)
        assert clock.time_at(offset) == (float(place) if place < len(sizes) else None)


def test_older_entries_are_read_only_as_far_as_they_are_asked_for() -> None:
    read = 0

    def older() -> Iterator[bytes]:
        nonlocal read
        for number in range(60):
            read += 1
            yield b"".join(entry(number * 1000 + part, number + part / 1000) for part in range(1, 1001))

    clock = Clock(older())
    for number in range(0, 30_000, 1000):
        assert clock.time_at(number + 1) == number / 1000 + 0.001
        assert len(clock._offsets) <= 2000
    assert read <= 31


def test_a_month_of_entries_that_nobody_asks_for_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "CLOCK_ENTRIES", 1000)
    clock = Clock()
    for number in range(50_000):
        clock.feed(entry(number * 10, number / 2))
    assert len(clock._offsets) <= 1000
    assert clock.time_at(499_990) == 24_999.5  # the newest is never thinned out
    clock.feed(entry(600_000, 30_000.0))
    assert clock.time_at(599_999) == 30_000.0


def test_lines_that_are_no_entries_are_skipped() -> None:
    clock = Clock()
    for data in (
        b"\n",
        b"{}\n",
        b"[1]\n",
        b'{"sizes": {"0": "x"}, "mono": 1}\n',
        b"[" * 9000 + b"\n",
        b"\xff" * 200_000,
    ):
        clock.feed(data)
    assert clock.time_at(0) is None
    clock.feed(b"\n" + entry(5, 1.5))
    assert clock.time_at(5) == 1.5


def make_mirror(folder: Path, output: bytes, clock: bytes) -> Attempt:
    mirror = Attempt(folder)
    mirror.prepare()
    mirror.output("0").write_bytes(output)
    mirror.output("clock").write_bytes(clock)
    record = {"plan": make_test_plan("package", ("train.py",)).as_message(), "started": 0.0}
    mirror.write("attempt.json", record)
    return mirror


def test_the_end_of_a_long_mirror_gives_the_records_that_all_of_it_gives(tmp_path: Path) -> None:
    """Also their times, though the middle was never read."""
    lines = [
        b"step %d loss %d.5 dt: 20 ms\n" % (number, number) + b"#" * 200 + b"\n" for number in range(20_000)
    ]
    ends = [sum(map(len, lines[: count + 1])) for count in range(0, 20_000, 400)]
    clock = b"".join(entry(end, float(number)) for number, end in enumerate(ends)) + entry(10**9, 99.0)
    mirror = make_mirror(tmp_path / "attempt", b"".join(lines), clock)
    last, _ = read_last_metric(1, mirror)
    *_, expected = read_metrics(1, mirror)
    assert last == expected
    assert last.step == 19_999


def test_a_line_begins_behind_a_line_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"first\nsecond\nthird")
    assert [find_line(path, offset) for offset in (0, 5, 6, 13)] == [6, 6, 13, 13]


def test_a_watch_that_goes_on_elsewhere_counts_from_there() -> None:
    made = Watch(1, {"plan": make_test_plan("package", ("train.py",)).as_message(), "started": 0.0}, None)
    made.clock.feed(entry(100, 1.0) + entry(5000, 2.0) + entry(6000, 3.0))
    made.feed("0", b"an open line that is never ended")
    made.go_to(4980)
    (record,) = made.feed("0", b"step 7 loss 1.25\n")
    assert (record.step, record.time) == (7, 2.0)
