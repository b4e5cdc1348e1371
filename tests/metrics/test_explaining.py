"""A run explained from its records on this laptop, of whatever age and length."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from remote_train import explaining
from remote_train.explaining import explain_run, read_ends, split_lines
from remote_train.host import layout
from remote_train.metrics.numbers import LONGEST_LINE
from remote_train.records import Run
from tests.host.account_kit import make_test_plan
from tests.metrics.meter_lines import count, host, line, sample, start, window

if TYPE_CHECKING:
    from pathlib import Path

PEAK = {"threads": 2, "float32": 1e12, "bfloat16": None, "bandwidth": 2e10, "dispatch": 1e-5}


def make_run(folder: Path, metered: list[bytes], output: str = "", **changes: Any) -> Run:
    """Write what lies here of a run of two processes on a CPU."""
    run = Run("run-1", folder)
    mirror = run.attempt(1)
    mirror.prepare()
    plan = make_test_plan("p", ("train.py",), processes=2, **changes).as_message()
    items = [{"attempt": 1, "plan": plan}]
    record = {"run": "run-1", "host": "box", "state": "running", "attempts": items, "created": 1.0}
    (folder / "run.json").write_text(json.dumps(record))
    mirror.write(layout.ATTEMPT, {"plan": plan, "started": 1.0})
    mirror.write(layout.PEAK, PEAK)
    mirror.output("meter").write_bytes(b"".join(metered))
    mirror.output("telemetry").write_bytes(host())
    mirror.output("0").write_text(output)
    return run


def test_a_metered_run(tmp_path: Path) -> None:
    cpu = {"model": "a CPU", "threads": 1, "cores": 4}
    run = make_run(tmp_path, [start(), count(), window(), window(), sample()], cpu=cpu)
    found = explain_run(run).as_json()
    assert found["notes"] == []
    # Two processes share the CPU: each has half of its peak and bandwidth, so 4 GFLOP take 8 ms.
    device = found["device"]
    assert (device["peak"], device["bandwidth"], device["dispatch"], device["cores"]) == (5e11, 1e10, 1e-5, 4)
    assert found["floors"][0]["seconds"] == 0.008
    assert found["telemetry"]["samples"] == 1
    assert found["profile"]["tokens_per_second"] == pytest.approx(768 / 0.05)
    json.dumps(found)


@pytest.mark.parametrize(("changes", "words"), [({"meter": False}, "--no-meter"), ({}, "has timed no step")])
def test_without_a_meter_the_output_is_judged(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    lines = [f"step {n}/9 | loss 3.0 | 100.0 ms | 10,000 tok/s\n" for n in range(1, 10)]
    head = "flops per token: 1000000\ntokens per step: 1000\n"
    found = explain_run(make_run(tmp_path, [], head + "".join(lines), **changes))
    assert words in found.notes[0]
    assert found.diagnosis.step_seconds == pytest.approx(0.1)
    assert not found.profile.shares


def test_output_without_a_pace_is_said_to_have_none(tmp_path: Path) -> None:
    found = explain_run(make_run(tmp_path, [], "step 1/9 | loss 3.0\n", meter=False))
    assert found.notes == ("no meter: it was started with --no-meter; and its output tells no step time",)
    assert found.diagnosis.step_seconds is None


def test_why_flops_were_not_counted_is_told(tmp_path: Path) -> None:
    found = explain_run(make_run(tmp_path, [start(), count(how="6N", why="it took too long"), window()]))
    assert found.notes == ("FLOPs by 6N: it took too long",)


def test_what_is_left_out_of_a_count_is_told(tmp_path: Path) -> None:
    found = explain_run(make_run(tmp_path, [start(), count(why="fft is not in it"), window()]))
    assert found.notes == ("FLOPs counted: fft is not in it",)


def test_a_meter_that_has_stopped_is_told(tmp_path: Path) -> None:
    off = line("off", why="no space left")
    found = explain_run(make_run(tmp_path, [start(), count(), window(), window(), off]))
    assert found.notes == ("the meter has stopped: no space left; what follows is from before",)
    assert found.diagnosis.step_seconds == pytest.approx(0.05)


def test_a_peak_of_before_bandwidth_and_dispatch_still_counts(tmp_path: Path) -> None:
    run = make_run(tmp_path, [start(), count(), window()])
    run.attempt(1).write(layout.PEAK, {"threads": 2, "float32": 1e12})
    found = explain_run(run)
    assert found.device is not None
    assert (found.device.peak, found.device.bandwidth, found.device.dispatch) == (5e11, None, None)
    assert [floor.name for floor in found.diagnosis.floors] == ["matmul"]


def test_a_host_that_has_told_nothing_is_no_crash(tmp_path: Path) -> None:
    run = make_run(tmp_path, [])
    (tmp_path / "attempts" / "1" / layout.ATTEMPT).unlink()
    assert explain_run(run).diagnosis.bottleneck == "unknown"


def test_of_a_long_file_the_beginning_and_the_end_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explaining, "HEAD_BYTES", 100)
    monkeypatch.setattr(explaining, "TAIL_BYTES", 100)
    path = tmp_path / "metrics.jsonl"
    lines = [b"%09d" % number for number in range(100)]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    assert list(read_ends(path)) == [*lines[:10], *lines[91:]]
    path.write_bytes(b"".join(line + b"\n" for line in lines[:20]))
    assert list(read_ends(path)) == lines[:20]
    assert list(read_ends(tmp_path / "none")) == []


def test_a_line_without_an_end_is_not_held() -> None:
    assert list(split_lines(iter([b"a\nb", b"c\n", b"torn"]))) == [b"a", b"bc"]
    endless = split_lines(b"x" * (1 << 20) for _ in range(64))
    assert list(endless) == []
    assert [len(line) for line in split_lines(iter([b"x" * (1 << 20), b"\n"]))] == [LONGEST_LINE + 1]
