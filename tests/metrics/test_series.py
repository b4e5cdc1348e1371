"""Records to lines: the best source, gaps where there is nothing, and the meter's figures at the script's steps."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from remote_train.metrics import series
from remote_train.metrics.record import MetricRecord
from remote_train.metrics.series import Collected, choose_time_unit, interpolate, thin

WHATS = ("loss", "mfu", "tokens")


def log(
    step: int, loss: float | None = 1.0, *, attempt: int = 1, at: float | None = None, mfu: float | None = 0.1
) -> MetricRecord:
    return MetricRecord(
        attempt,
        step=step,
        loss=loss,
        mfu=mfu,
        run_time=float(step) if at is None else at,
        source="log:x",
        host=f"h{attempt}",
    )


def meter(at: float, mfu: float, attempt: int = 1) -> MetricRecord:
    return MetricRecord(attempt, mfu=mfu, run_time=at, source="meter", tokens_per_second=10.0)


def points(records: list[MetricRecord], what: str, axis: str = "step") -> list[tuple[float, float]]:
    line = Collected("run", records, WHATS).make_line(what, axis)
    assert line is not None
    return list(line.points)


def test_a_loss_that_is_no_number_leaves_a_gap_and_a_missing_rate_does_not() -> None:
    records = [log(1), log(2, None, mfu=None), log(3)]
    (_, (x, y), _) = points(records, "loss")
    assert x == 2
    assert math.isnan(y)
    assert points(records, "mfu") == [(1, 0.1), (3, 0.1)]


def test_a_loss_that_no_scale_holds_is_a_gap() -> None:
    drawn = [y for _, y in points([log(1, 1e308), log(2), log(3, -1e308), log(4, math.inf)], "loss")]
    assert [math.isnan(y) for y in drawn] == [True, False, True, True]


def test_the_pause_between_attempts_breaks_the_line_against_time_alone() -> None:
    records = [log(1), log(2), log(3, attempt=2, at=50.0), log(4, attempt=2, at=51.0)]
    assert [x for x, _ in points(records, "loss")] == [1, 2, 3, 4]
    there = points(records, "loss", "time")
    assert [x for x, _ in there] == [1, 2, 50, 50, 51]
    assert [math.isnan(y) for _, y in there] == [False, False, True, False, False]


def test_the_meter_is_placed_by_its_time_among_the_steps() -> None:
    records = [log(0), log(10), meter(5.0, 0.2), meter(10.0, 0.3), meter(11.0, 0.4)]
    assert points(records, "mfu") == [(5, 0.2), (10, 0.3)]
    assert points(records, "mfu", "time") == [(5, 0.2), (10, 0.3), (11, 0.4)]
    line = Collected("run", records, WHATS).make_line("loss", "step")
    assert line is not None
    assert (line.source, line.host, len(line.points)) == ("log:x", "h1", 2)


def test_the_best_source_is_the_one_that_is_drawn() -> None:
    records = [
        log(1),
        log(2),
        meter(1.0, 0.2),
        MetricRecord(1, step=1, mfu=0.5, run_time=1.0, source="report"),
    ]
    assert points(records, "mfu") == [(1, 0.5)]
    assert points(records, "tokens", "time") == [(1, 10.0)]


def test_a_figure_that_nobody_has_is_no_line() -> None:
    collected = Collected("run", [MetricRecord(1, step=1, loss=None, source="log:x")], WHATS)
    assert all(collected.make_line(what, axis) is None for what in WHATS for axis in ("step", "time"))
    assert Collected("run", [meter(1.0, 0.2)], WHATS).make_line("mfu", "step") is None


@pytest.mark.parametrize(
    ("x", "y"),
    [(-1.0, None), (0.0, 0.0), (5.0, 50.0), (10.0, 100.0), (15.0, 100.0), (20.0, 100.0), (21.0, None)],
)
def test_between_two_known_points(x: float, y: float | None) -> None:
    assert interpolate([(0.0, 0.0), (10.0, 100.0), (20.0, 100.0)], x) == y


def test_a_long_line_keeps_its_spikes_its_gaps_and_its_ends() -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    line = [(float(x), chance.random()) for x in range(50_000)]
    spike, dip, gap = chance.sample(range(1, 49_999), 3)
    line[spike] = (float(spike), 100.0)
    line[dip] = (float(dip), -100.0)
    line[gap] = (float(gap), math.nan)
    kept = thin(line, 1000)
    assert len(kept) <= 1300
    assert {line[spike], line[dip], line[0], line[-1]} <= set(kept)
    assert [x for x, y in kept if math.isnan(y)] == [float(gap)]
    assert [x for x, _ in kept] == sorted({x for x, _ in kept})
    assert thin(line[:1000], 1000) == line[:1000]


def test_a_long_log_is_reduced_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "MOST_STRETCHES", 100)
    collected = Collected("run", (log(step, 9.0 if step == 7777 else 1.0) for step in range(20_000)), WHATS)
    assert max(map(len, collected._marks.values())) <= 600
    assert max(map(len, collected._steps.values())) <= 600
    line = collected.make_line("loss", "step")
    assert line is not None
    assert (7777.0, 9.0) in line.points
    assert (line.points[0][0], line.points[-1][0]) == (0.0, 19_999.0)
    gaps = [b[0] - a[0] for a, b in itertools.pairwise(line.points)]
    assert max(gaps) <= 2 * 20_000 / 50  # evenly: the beginning is no coarser than the end


@pytest.mark.parametrize(
    ("seconds", "unit"), [(0.0, "seconds"), (119.0, "seconds"), (120.0, "minutes"), (7200.0, "hours")]
)
def test_the_unit_of_a_time_axis(seconds: float, unit: str) -> None:
    assert choose_time_unit(seconds)[0] == unit
