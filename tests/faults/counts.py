"""How often a fault is tried, with which seed, and what came of it: one way for every fault test.

    @PATIENT
    def test_cuts(...):
        with Goal("G1 random cuts while streaming", reduced=10, nightly=1000) as goal:
            for trial in goal:
                with trial:                      # its failure is counted; at night the others go on
                    trial.chance.randrange(...)  # a random.Random of its own, made from seed and number

or by hand: `count = trials(goal, reduced, nightly)`, `random.Random(seed())`, and `note(...)` at the end.

`REMOTE_TRAIN_FAULTS=nightly` chooses the large numbers, `REMOTE_TRAIN_SEED=N` repeats a run, and
`REMOTE_TRAIN_FAULTS_RECORD=FILE` gets a JSON line per goal, of which `scripts/faults` makes its table.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import time
import traceback
from functools import cache
from typing import TYPE_CHECKING, Self

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

MODE, SEED = "REMOTE_TRAIN_FAULTS", "REMOTE_TRAIN_SEED"
RECORD, ONLY = "REMOTE_TRAIN_FAULTS_RECORD", "REMOTE_TRAIN_TRIAL"
ENOUGH = 5
"""Failures after which a goal is not tried on: they are of one kind."""

# Read when this is imported: an account's fixture takes our variables out of the environment.
ASKED = {name: os.environ.get(name, "") for name in (MODE, SEED, RECORD, ONLY)}


def is_nightly() -> bool:
    """Tell whether the large numbers are asked for."""
    return ASKED[MODE] == "nightly"


PATIENT = pytest.mark.timeout(3000 if is_nightly() else 110)
"""For a fault test: the timeout that its number of trials needs."""


def trials(goal: str, reduced: int, nightly: int) -> int:
    """Return how many trials of a goal to make, and print it with the seed."""
    count = nightly if is_nightly() else reduced
    print(f"{goal}: {count} trials, {SEED}={seed()}")
    return count


@cache
def seed() -> int:
    """Return this run's seed."""
    return int(ASKED[SEED] or secrets.randbelow(1 << 31))


def note(goal: str, trials: int, failures: int, seconds: float, remark: str = "") -> None:
    """Record what came of a goal."""
    line = {"goal": goal, "trials": trials, "failures": failures, "seed": seed(), "seconds": seconds}
    print(line)
    if ASKED[RECORD]:
        with open(ASKED[RECORD], "a", encoding="utf-8") as file:  # noqa: PTH123  (appended whole)
            file.write(json.dumps({**line, "remark": remark}) + "\n")


class Trial:
    """One trial of a goal: its number, and chance of its own."""

    def __init__(self, goal: Goal, number: int) -> None:
        self.goal = goal
        self.number = number
        self.weight = 1
        """Faults in this trial, when they are what the goal counts."""
        self.chance = random.Random(f"{seed()} {goal.name} {number}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.goal.made += self.weight
        if not isinstance(error, Exception):
            return False
        self.goal.failed.append(self.number)
        print(f"{self.goal.name}: trial {self.number} failed, {SEED}={seed()}")
        traceback.print_exception(kind, error, trace)
        return is_nightly() and len(self.goal.failed) < ENOUGH


class Goal:
    """A goal and its trials; noted when the block ends, and failed if one of them was."""

    def __init__(self, name: str, *, reduced: int, nightly: int, remark: str = "") -> None:
        self.name = name
        self.count = trials(name, reduced, nightly)
        self.remark = remark
        self.made = 0
        self.failed: list[int] = []
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __iter__(self) -> Iterator[Trial]:
        """Yield the trials; `REMOTE_TRAIN_TRIAL=N` leaves only that one, to look at it again."""
        if ASKED[ONLY]:
            yield Trial(self, int(ASKED[ONLY]))
            return
        number = 0
        while self.made < self.count:
            before = self.made
            yield Trial(self, number)
            assert self.made > before, "`with trial:` counts it"
            number += 1

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        failures = len(self.failed) or int(kind is not None)
        note(self.name, self.made, failures, time.monotonic() - self._began, self.remark)
        if kind is None:
            assert not self.failed, f"{self.name}: trials {self.failed} failed, {SEED}={seed()}"
