"""Few rows that hold every pair of values of any two axes: what breaks by the meeting of two things breaks in one of them."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

Row = tuple[int, ...]
TRIES = 30


def make_pairs(sizes: Sequence[int], seed: int) -> list[Row]:
    """Return rows of indices, one for each axis of `sizes`, that hold every pair of two axes at least once."""
    chance = random.Random(seed)
    left = {
        ((first, one), (second, two))
        for first, second in itertools.combinations(range(len(sizes)), 2)
        for one in range(sizes[first])
        for two in range(sizes[second])
    }
    rows: list[Row] = []
    while left:
        fixed = dict(min(left))
        tries = [
            tuple(fixed.get(axis, chance.randrange(size)) for axis, size in enumerate(sizes))
            for _ in range(TRIES)
        ]
        rows.append(max(tries, key=lambda row: len(left & pairs_of(row))))
        left -= pairs_of(rows[-1])
    return rows


def pairs_of(row: Row) -> set[tuple[tuple[int, int], tuple[int, int]]]:
    """Return the pairs that a row holds."""
    return set(itertools.combinations(enumerate(row), 2))
