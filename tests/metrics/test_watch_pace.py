"""The newest figures of a run: the last step that its output told of, and one pace for every command."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING

import pytest

from remote_train.comparing import compare_runs
from remote_train.explaining import explain_run
from remote_train.watch import Watch, read_curve, read_last_metric
from tests.host.account_kit import make_test_plan
from tests.metrics.meter_lines import count, start, window
from tests.metrics.test_explaining import PEAK, make_run

if TYPE_CHECKING:
    from pathlib import Path


def test_a_line_without_a_pace_goes_on_with_the_one_before() -> None:
    watch = Watch(1, {"plan": make_test_plan("p", ("train.py",)).as_message()}, PEAK)
    watch.feed("0", b"flops per token: 1000000\nstep 1/9 | loss 3.5 | 100.0 ms | 10,000 tok/s\n")
    timed = watch.blend()
    assert timed is not None
    assert (timed.step, timed.loss, timed.step_seconds, timed.mfu) == (1, 3.5, 0.1, 0.01)
    watch.feed("0", b"step 2/9 | loss 3.2\n")
    watch.feed("0", b"step 3/9 | loss 3.0\n")
    for newest in (watch.blend(), watch.blend(typical=True)):
        assert newest is not None
        assert (newest.step, newest.loss) == (3, 3.0)
        assert (newest.step_seconds, newest.tokens_per_second, newest.mfu) == (0.1, 10_000.0, 0.01)


def test_a_log_without_any_pace_shows_its_newest_step() -> None:
    watch = Watch(1, {"plan": make_test_plan("p", ("train.py",)).as_message()}, PEAK)
    for step in (1, 2):
        watch.feed("0", b"step %d/9 | loss 3.5\n" % step)
    assert watch.logged is not None
    assert (watch.logged.step, watch.logged.step_seconds) == (2, None)


def test_flops_that_were_counted_later_need_no_reason() -> None:
    watch = Watch(1, {"plan": make_test_plan("p", ("train.py",)).as_message()}, PEAK)
    watch.feed("meter", start() + count(flops=None, how=None, why="it took too long") + window(flops=None))
    assert watch.explain_unknown() == "the meter has not counted FLOPs: it took too long"
    watch.feed("meter", window(flops=4e9))  # the count was in the part of a long file that is not read
    assert watch.explain_unknown() is None


def test_one_run_has_one_pace_for_every_command(tmp_path: Path) -> None:
    """Windows are of one length, so those of slow steps are more than the slow steps are."""
    slow = [window(1.0, 2, time=float(n), flops=4e9, median=0.03) for n in range(5)]
    fast = [window(1.0, 20, time=float(n), flops=4e9, median=0.03) for n in range(5, 9)]
    run = make_run(tmp_path, [start(), count(), window(9.0, 1), *slow, *fast])
    shown, _ = read_last_metric(1, run.attempt(1))
    assert shown is not None
    assert shown.step_seconds == pytest.approx(0.05)
    assert shown.mfu == pytest.approx(0.16)
    explained = explain_run(run)
    assert explained.diagnosis.step_seconds == pytest.approx(0.05)
    assert explained.diagnosis.mfu == pytest.approx(shown.mfu)
    compared = json.loads(json.dumps(compare_runs(run, run)))["a"]
    assert compared["step_seconds"] == pytest.approx(0.05)
    assert compared["mfu"] == pytest.approx(shown.mfu)
    assert compared["sources"]["mfu"] == "meter"


def test_of_very_many_windows_an_even_part_is_read(tmp_path: Path) -> None:
    windows = [window(1.0, 20, time=float(n), flops=4e9, eval=0.001 * (n % 7)) for n in range(2000)]
    run = make_run(tmp_path, [start(), count(), *windows])
    assert sum(1 for _ in read_curve(run)) == 2000
    times = [record.time or 0.0 for record in read_curve(run, windows=100)]
    assert times[0] == 0.0
    assert times[-1] == 1999.0
    assert 100 <= len(times) <= 200
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert max(gaps) <= 2000 / 100 * 2
    assert all(record.mfu for record in read_curve(run, windows=100))
    assert list(read_curve(run, windows=0)) == []
