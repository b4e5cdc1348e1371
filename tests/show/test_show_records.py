"""The table of `metrics`: aligned, within the terminal, evenly thinned with each source's share; and MFU by its sources."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import Any

import pytest

from remote_train.metrics.record import MetricRecord
from remote_train.show.records import HEADERS, thin, write_table
from remote_train.show.sources import list_mfu_lines
from remote_train.show.words import measure_cells, render_metric


def record(**figures: Any) -> MetricRecord:
    return MetricRecord(attempt=1, **figures)


def render(records: list[MetricRecord], width: int | None = None) -> list[str]:
    parts: list[str] = []
    assert write_table((one.as_json() for one in records), width, parts.append) == len(records)
    return "".join(parts).splitlines()


def test_a_table_is_what_a_person_reads() -> None:
    rows = [
        record(step=1, time=0.5, loss=4.1234567, step_seconds=0.0614, tokens_per_second=12_500.0, mfu=0.389),
        record(optimizer_step=2000, time=4000.0, mfu=2.5, source="meter", dtype="bfloat16"),
    ]
    assert render(rows) == [
        " STEP        TIME   LOSS  TIME/STEP   TOK/S       MFU  SOURCE       DTYPE",
        "    1      500 ms  4.123    61.4 ms  12,500    38.9 %  log:generic  -",
        "2,000  1 h 07 min      -          -       -  250.0 %?  meter        bfloat16",
    ]


def test_columns_that_say_nothing_are_left_out() -> None:
    assert render([record(step=1, loss=2.0)])[0].split() == ["STEP", "LOSS", "SOURCE"]
    assert render([]) == []


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_it_stays_within_the_terminal(width: int) -> None:
    chance = random.Random(width)
    rows = [
        record(
            step=chance.randrange(1 << 30),
            loss=chance.random(),
            mfu=chance.random(),
            time=chance.random() * 1e6,
            step_seconds=chance.random(),
            tokens_per_second=chance.random() * 1e7,
            dtype="bfloat16\x1b[31m",
        )
        for _ in range(50)
    ]
    table = render(rows, width)
    assert max(map(measure_cells, table)) <= max(width, len("1,000,000,000  0.009999  99.9 %"))
    assert table[0].split() == [name for name in HEADERS if name in table[0].split()]
    assert "MFU" in table[0]
    assert width < 60 or "SOURCE" in table[0]  # figures of two sources side by side mean nothing without it
    assert "\x1b" not in "".join(table)


@pytest.mark.parametrize(("count", "limit"), [(5, 20), (1000, 20), (1000, 2), (21, 20), (0, 20)])
def test_thinning_is_even_and_keeps_the_ends(count: int, limit: int) -> None:
    steps = [one.step for one in thin((record(step=step) for step in range(count)), limit)]
    assert len(steps) == min(count, limit)
    assert steps == sorted(set(steps), key=lambda step: step or 0)
    if count:
        assert (steps[0], steps[-1]) == (0, count - 1)
    gaps = [b - a for a, b in itertools.pairwise(step for step in steps if step is not None)]
    assert not gaps or max(gaps) <= 2 * count / max(1, len(steps) - 1) + 1


def test_each_source_keeps_its_share() -> None:
    records = [record(step=step) for step in range(5000)]
    records[100:100] = [record(optimizer_step=n, source="meter") for n in range(30)]
    kept = thin(records, 20)
    assert len(kept) == 20
    assert sum(one.source == "meter" for one in kept) == 10
    assert kept[0].step == 0
    assert kept[-1].step == 4999


def test_what_mfu_is_divided_by_stands_below_the_table_and_an_estimate_is_marked() -> None:
    counted = record(step=1, mfu=0.1, peak_flops=1e12, peak_source="measured", dtype="float32")
    assert render([counted])[-1] == "MFU is of 1.00 TFLOP/s (measured); float32"
    estimated = replace(counted, flops_source="6N")
    table = render([estimated], 40)
    assert "~10.0 %" in table[1]
    assert "~: FLOPs by 6N, not counted" in " ".join(table)
    assert max(map(measure_cells, table)) <= 40
    assert "MFU ~10.0 % of 1.00 TFLOP/s" in render_metric(estimated.as_json())


def test_a_long_table_comes_in_parts() -> None:
    assert len(render([record(step=step, loss=1.0) for step in range(4500)])) == 4501


LOG = record(
    mfu=0.06, peak_flops=1e12, peak_source="measured", dtype="float32", source="log:nanogpt"
).as_json()
METER = {**LOG, "mfu": 0.061, "source": "meter"}


def test_each_mfu_is_told_with_its_source_and_a_shared_denominator_once() -> None:
    assert list_mfu_lines({"sources": [METER, LOG], "why": None}) == [
        "6.10 % by the meter, of 1.00 TFLOP/s (measured); float32",
        "6.00 % by its log (nanogpt)",
    ]


def test_different_denominators_are_all_told_and_why_there_is_none() -> None:
    other = {**METER, "mfu": 1.5, "dtype": "bfloat16", "peak_flops": 2e12, "dtype_source": "autocast"}
    lines = list_mfu_lines({"sources": [other, LOG, {**LOG, "mfu": None}], "why": "not\x1b[31m metered"})
    assert len(lines) == 3
    assert lines[0].startswith("150.0 % (denominator looks wrong) by the meter, of 2.00 TFLOP/s")
    assert "bfloat16 (autocast)" in lines[0]
    assert lines[1].endswith("; float32")
    assert "\x1b" not in lines[2]
    estimated = {**METER, "flops_source": "6N"}
    assert (
        "by the meter (6N: 6 x parameters x tokens, not counted)"
        in list_mfu_lines({"sources": [estimated]})[0]
    )
    assert list_mfu_lines(None) == list_mfu_lines({"sources": [], "why": None}) == []
