"""The meter's lines and the script's own: to records of the whole run, in any chunking, whatever a stranger wrote; and one view of all."""

from __future__ import annotations

import itertools
import json
import math
import random
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_train.metrics.blend import blend
from remote_train.metrics.derive import Context
from remote_train.metrics.json_lines import LONGEST, JsonLines
from remote_train.metrics.metered import Metered
from remote_train.metrics.peaks import Peak
from remote_train.metrics.record import MetricRecord
from remote_train.metrics.reports import Reported

if TYPE_CHECKING:
    from collections.abc import Iterable

PEAKS = {"float32": Peak(1e12, "measured"), "bfloat16": Peak(1e14, "table: a card, bf16")}
COUNT = {
    "kind": "count",
    "how": "counted",
    "flops": 1e9,
    "dtype": "float32",
    "dtype_source": "parameters",
    "tokens": 500,
}


def context(devices: int = 1) -> Context:
    return Context(
        attempt=2,
        devices=devices,
        peak_for=PEAKS.get,
        default_dtype="bfloat16",
        default_dtype_source="assumed",
        wall_start=1000.0,
    )


def lines(*rows: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def window(time: float, **more: Any) -> dict[str, Any]:
    return {
        "kind": "steps",
        "time": time,
        "step": int(time * 10),
        "steps": 10,
        "seconds": 1.0,
        "flops": 1e9,
    } | more


def is_warming(metered: Metered) -> bool:
    return metered.warming


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    ends = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in itertools.pairwise(ends)]


STRANGE = [
    b"",
    b"null\n[]\n7\n{}\n",
    b'{"kind": "steps"}\n',
    b'{"kind": "steps", "steps": 1e400, "seconds": NaN, "time": Infinity}\n',
    b'{"kind": "steps", "steps": true, "seconds": true, "flops": true}\n',
    b'{"kind": "steps", "steps": -1, "seconds": -1, "flops": -1}\n',
    b'{"kind": "steps", "steps": 1' + b"0" * 400 + b', "seconds": 1}\n',
    b'{"kind": "steps", "steps": 1' + b"0" * 5000 + b', "seconds": 1}\n',
    b'{"kind": "steps", "steps": 3, "seconds": 1e-300, "flops": 1e300}\n',
    b'{"kind": "steps", "steps": 3, "seconds": 1.0, "eval": 9e9, "flops": 1e12}\n',
    b'{"kind": ["steps"], "steps": {}, "step": []}\n',
    b'{"kind": "count", "flops": "much", "dtype": 7, "why": ["x"], "tokens": {}}\n',
    b'{"kind": "step", "loss": NaN, "step": 1.5, "tokens": -4, "seconds": 0, "steps": 0, "rank": -1}\n',
    b'{"loss": 1e308, "step": 99999999999999999999999, "seconds": 1e-320, "tokens": 1e29}\n',
    b"[" * 70_000 + b"\n",
    b'{"a":' * 5_000 + b"\n",
    b"\xff\xfe\x00\n",
    b"x" * (LONGEST + 10),
]


@pytest.mark.parametrize("data", STRANGE, ids=range(len(STRANGE)))
def test_nothing_strange_is_believed_and_what_follows_is(data: bytes) -> None:
    metered, reported = Metered(context(), 1), Reported(context(), 1)
    for source in (metered, reported):
        for record in source.feed(data + b"\n"):
            numbers = [value for value in record.as_json().values() if isinstance(value, float | int)]
            assert all(math.isfinite(number) and abs(number) < 1e40 for number in numbers)
            assert record.step_seconds is None or record.step_seconds > 0
    assert len(metered.feed(lines(window(1.0)))) == 1
    assert len(reported.feed(lines({"step": 5}))) == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(STRANGE), max_size=6), st.lists(st.integers(0, 1 << 20), max_size=12))
def test_the_same_in_any_chunking(parts: list[bytes], places: list[int]) -> None:
    data = lines(COUNT, window(1.0)) + b"\n".join(parts) + b"\n" + lines(window(2.0), {"loss": 3})
    for make in (lambda: Metered(context(), 3), lambda: Reported(context(), 3)):
        whole, pieces = make(), make()
        expected = whole.feed(data)
        assert [record for piece in cut(data, places) for record in pieces.feed(piece)] == expected


def test_a_line_without_an_end_takes_no_memory() -> None:
    source = JsonLines()
    tracemalloc.start()
    for _ in range(200):
        assert list(source.feed(b"x" * 100_000)) == []
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert list(source.feed(b'\n{"a": 1}\n')) == [{"a": 1}]


def test_a_metered_window_is_a_record_of_the_whole_run() -> None:
    rows = (COUNT, window(3.0, seconds=2.0, eval=0.5, save=0.5))
    (record,) = Metered(context(devices=1), processes=4).feed(lines(*rows))
    expected = MetricRecord(
        attempt=2,
        time=3.0,
        wall_time=1003.0,
        step_seconds=0.1,  # of the second in which it trained
        tokens_per_second=500 * 4 / 0.1,
        flops_per_second=1e9 * 4 / 0.1,
        devices=1,  # four processes on one CPU
        mfu=0.04,
        peak_flops=1e12,
        peak_source="measured",
        dtype="float32",
        dtype_source="parameters",
        source="meter",
        optimizer_step=30,
        flops_source="counted",
        steps=10,
    )
    assert record == expected
    assert record.step is None


def test_flops_that_are_not_counted_give_no_mfu_and_a_reason() -> None:
    metered = Metered(context(), 1)
    count = {**COUNT, "flops": None, "why": "the model could not be copied"}
    (record,) = metered.feed(lines(count, window(1.0, flops=None)))
    assert (record.mfu, record.flops_per_second, record.step_seconds) == (None, None, 0.1)
    assert record.tokens_per_second == 5000.0
    assert metered.why == "the model could not be copied"
    assert metered.off is None
    metered.feed(lines({"kind": "off", "why": "it was slow"}))
    assert metered.off == "it was slow"


def test_the_warm_up_stands_for_nothing_once_there_is_more() -> None:
    metered = Metered(context(), 1)
    metered.feed(lines(COUNT, window(1.0, seconds=50.0)))
    assert is_warming(metered)
    assert metered.typical is not None
    assert metered.typical.step_seconds == 5.0
    metered.feed(lines(window(2.0), window(3.0, seconds=1.5), window(4.0, seconds=9.0)))
    assert not is_warming(metered)
    assert metered.typical.step_seconds == 0.15
    assert metered.typical.mfu == pytest.approx(1e9 / 0.15 / 1e12)
    assert metered.typical.optimizer_step == 40
    assert metered.latest is not None
    assert metered.latest.step_seconds == 0.9
    metered.feed(lines({"kind": "start", "pid": 7}, window(5.0, seconds=20.0)))  # started anew
    assert is_warming(metered)
    assert metered.typical.step_seconds == 2.0


def test_the_first_rank_that_reports_speaks_for_the_run() -> None:
    reported = Reported(context(), processes=2, dtype_of=lambda: ("float32", "autocast"))
    row = {"kind": "step", "time": 4.0, "steps": 10, "seconds": 2.0, "tokens": 1000, "flops": 1e11}
    first, second = reported.feed(
        lines(
            {**row, "rank": 1, "step": 7, "loss": 2.5},
            {**row, "rank": 0, "step": 7, "loss": 9.9},
            {"kind": "checkpoint", "path": "out", "files": []},
            {**row, "rank": 1, "step": None, "loss": None},
        )
    )
    assert (first.step, first.loss, first.step_seconds) == (7, 2.5, 0.2)
    assert (first.tokens_per_second, first.flops_per_second, first.mfu) == (1000.0, 1e11, 0.1)
    assert (first.dtype, first.dtype_source, first.source) == ("float32", "autocast", "report")
    assert (first.optimizer_step, second.optimizer_step) == (None, 20)
    assert (second.step, second.loss) == (None, None)


def test_a_line_with_an_evaluation_in_it_does_not_stand_for_the_run() -> None:
    reported = Reported(context(), 1)
    rows = [{"step": n, "steps": 10, "seconds": 1.0 if n != 5 else 60.0, "tokens": 100} for n in range(1, 6)]
    reported.feed(lines(*rows, {"step": 6, "loss": 2.5}))
    assert reported.latest is not None
    assert reported.typical is not None
    assert (reported.latest.step, reported.latest.step_seconds) == (6, 6.0)
    assert (reported.typical.step, reported.typical.loss, reported.typical.step_seconds) == (6, 2.5, 0.1)
    assert reported.typical.tokens_per_second == 100.0


def test_a_line_that_a_script_writes_itself_needs_little() -> None:
    reported = Reported(context(), 1)
    found = reported.feed(
        b'{"step": 3}\n{"step": true}\n{"loss": 1.5}\n{"tokens": 7}\n{"epoch": 1}\n', now=1060.0
    )
    assert [(record.step, record.loss, record.time) for record in found] == [
        (3, None, 60.0),
        (None, 1.5, 60.0),
        (None, None, 60.0),
    ]
    assert all(record.tokens_per_second is None and record.mfu is None for record in found)
    assert reported.latest is not None
    assert (reported.latest.step, reported.latest.loss) == (3, 1.5)


def test_steps_that_were_skipped_are_not_counted_as_none() -> None:
    reported = Reported(context(), 1)
    row = {"kind": "step", "time": 4.0, "step": None, "steps": 10, "seconds": 1.0, "loss": 2.5}
    (first,) = reported.feed(lines(row))
    reported.skip()
    assert reported.latest is not None
    assert (first.optimizer_step, reported.latest.optimizer_step) == (10, None)
    (last,) = reported.feed(b"torn\n" + lines(row))
    assert (last.optimizer_step, last.loss, last.step_seconds) == (None, 2.5, 0.1)
    view = blend(reported.latest, make("meter", optimizer_step=4000, mfu=0.3), None)
    assert view is not None
    assert (view.step, view.loss) == (4000, 2.5)


def make(source: str, **figures: Any) -> MetricRecord:
    return MetricRecord(attempt=1, source=source, **figures)


def test_each_figure_is_of_its_best_source() -> None:
    report = make("report", step=9, loss=1.0, tokens_per_second=100.0, time=5.0, dtype="bfloat16")
    meter = make(
        "meter", mfu=0.3, flops_per_second=3e9, peak_flops=1e10, dtype="float32", tokens_per_second=99.0
    )
    log = make("log:nanogpt", step=8, loss=1.1, mfu=0.2, step_seconds=0.4, reported_mfu=0.01, time=9.0)
    view = blend(report, meter, log)
    assert view is not None
    assert (view.step, view.loss, view.tokens_per_second) == (9, 1.0, 100.0)
    assert (view.mfu, view.dtype, view.source) == (0.3, "float32", "meter")
    assert (view.step_seconds, view.reported_mfu, view.time) == (0.4, 0.01, 9.0)
    assert blend(None, None, log) == log
    assert blend(None, None, None) is None


def test_without_a_step_of_the_scripts_the_meters_count_stands_for_it() -> None:
    view = blend(None, make("meter", optimizer_step=40, mfu=0.3), None)
    assert view is not None
    assert (view.step, view.optimizer_step, view.loss) == (40, 40, None)


def test_any_view_is_made_of_what_was_said() -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    names = ("step", "loss", "mfu", "tokens_per_second", "step_seconds", "time")
    for _ in range(500):
        said = [
            make(source, **{name: chance.choice([None, chance.randint(1, 99)]) for name in names})
            if chance.random() < 0.7
            else None
            for source in ("report", "meter", "log:generic")
        ]
        view = blend(*said)
        there = [record for record in said if record is not None]
        assert (view is None) == (not there)
        for name in names if view is not None else ():
            values = [getattr(record, name) for record in there]
            assert getattr(view, name) in values or getattr(view, name) is None
            if name in {"mfu", "tokens_per_second", "step_seconds"}:
                assert getattr(view, name) == next((value for value in values if value is not None), None)
