"""The counting itself: a failure is never lost, and a table says what was tried."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.faults.counts import ASKED, MODE, ONLY, RECORD, Goal, Trial
from tests.faults.nightly import find_tests, render_table

if TYPE_CHECKING:
    from pathlib import Path


def read_rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run_goal(bad: int) -> None:
    with Goal("g", reduced=5, nightly=7) as goal:
        for trial in goal:
            with trial:
                assert trial.number != bad


@pytest.mark.parametrize(("mode", "made"), [("nightly", 7), ("", 4)])
def test_a_failure_is_counted_and_at_night_the_other_trials_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, made: int
) -> None:
    for name, value in ((MODE, mode), (RECORD, str(tmp_path / "record")), (ONLY, "")):
        monkeypatch.setitem(ASKED, name, value)
    with pytest.raises(AssertionError):
        run_goal(bad=3)
    (row,) = read_rows(tmp_path / "record")
    assert (row["trials"], row["failures"]) == (made, 1)


def test_a_trial_has_the_same_chance_when_it_is_made_again() -> None:
    goal = Goal("g", reduced=4, nightly=4)
    first, again = ([Trial(goal, number).chance.random() for number in range(4)] for _ in range(2))
    assert first == again
    assert len(set(first)) == 4


def test_a_trial_may_count_for_several() -> None:
    goal = Goal("g", reduced=10, nightly=10)
    for trial in goal:
        with trial:
            trial.weight = 4
    assert goal.made == 12


def test_the_table_has_a_line_for_each_goal() -> None:
    row = {"goal": "G1 cuts", "trials": 5, "failures": 0, "seconds": 1.4, "seed": 7, "remark": ""}
    assert "| G1 cuts | 5 | 0 | 1 | 7 |  |" in render_table([row])


def test_every_file_that_counts_is_run() -> None:
    assert find_tests()[0] == "tests/faults"
