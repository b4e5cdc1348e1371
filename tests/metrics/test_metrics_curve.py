"""Attempts that went on from one another make one curve, in which each step stands once."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.attempts import list_hops
from remote_train.host import layout
from remote_train.metrics.curve import choose_limits, mark_superseded
from remote_train.metrics.record import MetricRecord
from remote_train.records import Run
from remote_train.watch import read_curve

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("starts", "limits"),
    [
        ([1], [None]),
        ([1, 31], [31, None]),
        ([1, 31, 61], [31, 61, None]),
        ([1, 31, 21], [21, 21, None]),  # went further back than the one before it
        ([1, 31, 1], [1, 1, None]),  # began anew
        ([1, None], [None, None]),  # has said nothing yet
        ([1, None, 41], [41, 41, None]),
    ],
)
def test_an_attempt_counts_up_to_where_later_ones_went_on(
    starts: list[int | None], limits: list[int | None]
) -> None:
    assert choose_limits(starts) == limits


def test_a_record_without_a_step_is_like_the_one_before_it() -> None:
    records = [MetricRecord(1, step=step) for step in (None, 1, None, 2, None, 3)]
    assert [record.superseded for record in mark_superseded(records, 2)] == [False] * 3 + [True] * 3


def test_whatever_was_done_again_each_step_stands_once() -> None:
    """Attempts of random lengths from random steps: what is left is every step once, of the last that did it."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(200):
        attempts, end = [], 0
        for number in range(1, chance.randrange(2, 6)):
            start = chance.randrange(end + 1) + 1
            end = start + chance.randrange(1, 20)
            attempts.append([MetricRecord(number, step=step) for step in range(start, end + 1)])
        limits = choose_limits([records[0].step for records in attempts])
        kept = [
            record
            for records, limit in zip(attempts, limits, strict=True)
            for record in mark_superseded(records, limit)
            if not record.superseded
        ]
        assert [record.step for record in kept] == list(range(1, end + 1))
        for record in kept:
            later = [other for records in attempts[record.attempt :] for other in records]
            assert record.step not in [other.step for other in later]


PLAN: dict[str, Any] = {
    "device": "cpu",
    "cpu": {"model": "a CPU", "threads": 1},
    "processes": 1,
    "peak_tflops": {"fp32": 0.1},
}


def make_run(
    folder: Path, *, words: tuple[range, ...], checkpoints: tuple[dict[str, Any] | None, ...]
) -> Run:
    """Make the records of a run whose attempts logged these steps, on hosts a, b, a, b, …, an hour after one another."""
    run = Run("run", folder)
    items = []
    for number, (steps, checkpoint) in enumerate(zip(words, checkpoints, strict=True), 1):
        started = 1000.0 + 3600.0 * (number - 1)
        items.append(
            {"attempt": number, "host": "ab"[(number - 1) % 2], "checkpoint": checkpoint, "plan": PLAN}
            | {"reason": None if number == 1 else "a was silent for 61 s", "created": started}
        )
        mirror = run.attempt(number)
        mirror.prepare()
        mirror.write(layout.ATTEMPT, {"plan": PLAN, "started": started, "gpus": []})
        lines = [f"step {step}/60 | loss {5 - step / 60:.4f} | 100.0 ms | 1,000 tok/s\n" for step in steps]
        mirror.output("0").write_text("".join(lines))
        sizes = [sum(map(len, lines[:count])) for count in range(1, len(lines) + 1)]
        clock = [{"mono": float(index), "sizes": {"0": size}} for index, size in enumerate(sizes, 1)]
        mirror.output("clock").write_text("".join(json.dumps(entry) + "\n" for entry in clock))
    record = {"run": "run", "host": "b", "created": 1000.0, "state": "running", "attempts": items}
    (folder / "run.json").write_text(json.dumps({"format": 1, **record}))
    return run


def test_the_curve_of_a_run_goes_on_over_its_hosts(tmp_path: Path) -> None:
    saved = {"unit": "out/ckpt.pt", "attempt": 1, "step": 30}
    run = make_run(tmp_path, words=(range(5, 46, 5), range(31, 61)), checkpoints=(None, saved))
    curve = list(read_curve(run))
    assert [record.step for record in curve] == [*range(5, 31, 5), *range(31, 61)]
    assert [(record.attempt, record.host) for record in curve] == [(1, "a")] * 6 + [(2, "b")] * 30
    assert [record.time for record in curve][:6] == [1, 2, 3, 4, 5, 6]  # of its own attempt
    assert [record.run_time for record in curve][5:8] == [6.0, 3601.0, 3602.0]  # of the run
    everything = list(read_curve(run, everything=True))
    assert [record.step for record in everything if record.superseded] == [35, 40, 45]
    (hop,) = list_hops(run.read())
    assert (hop.attempt, hop.host, hop.from_host, hop.step) == (2, "b", "a", 30)
    assert (hop.checkpoint, hop.reason) == ("out/ckpt.pt", "a was silent for 61 s")


def test_before_an_attempt_has_said_anything_its_checkpoint_tells_where_it_goes_on(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        words=(range(5, 46, 5), range(0)),
        checkpoints=(None, {"unit": "out/ckpt.pt", "attempt": 1, "step": 30}),
    )
    assert [record.step for record in read_curve(run)] == [*range(5, 31, 5)]


def test_an_attempt_that_began_anew_takes_the_place_of_all(tmp_path: Path) -> None:
    run = make_run(tmp_path, words=(range(5, 46, 5), range(5, 21, 5)), checkpoints=(None, None))
    assert {record.attempt for record in read_curve(run)} == {2}
    assert list_hops(run.read())[0].checkpoint is None


def test_records_of_the_meter_and_the_script_stand_in_the_curve_and_confuse_nothing(tmp_path: Path) -> None:
    saved = {"unit": "out/ckpt.pt", "attempt": 1, "step": 6}
    run = make_run(tmp_path, words=(range(1, 11), range(7, 11)), checkpoints=(None, saved))
    for attempt, seconds in ((1, 10), (2, 4)):
        rows = [
            {"kind": "steps", "time": n + 0.5, "step": n, "steps": 1, "seconds": 1.0} for n in range(seconds)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        run.attempt(attempt).output("meter").write_text(text)
    run.attempt(2).output("report").write_text('{"kind": "step", "time": 2.25, "step": 8, "loss": 1.0}\n')
    curve = list(read_curve(run))
    assert [record.step for record in curve if record.source == "log:generic"] == [
        *range(1, 7),
        *range(7, 11),
    ]
    metered = [(record.attempt, record.time) for record in curve if record.source == "meter"]
    # Of the first attempt those up to where the second went on: its seventh step came at second 7.
    assert metered == [*((1, n + 0.5) for n in range(7)), *((2, n + 0.5) for n in range(4))]
    assert all(record.step is None for record in curve if record.source == "meter")
    times = [(record.attempt, record.time) for record in curve]
    assert times == sorted(times, key=lambda item: (item[0], item[1] or 0.0))
    assert [record.step for record in curve if record.source == "report"] == [8]
