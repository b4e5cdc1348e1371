"""Figures out of JSON that a stranger wrote: finite, within bounds, of the type that they should have, or None."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

LONGEST_LINE = 256 * 1024
LONGEST_TEXT = 200
LARGEST = 1e30


def parse_lines(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the objects of JSON lines; a line that holds none, or is too long to be one of ours, is left out."""
    for line in lines:
        if len(line) > LONGEST_LINE:
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield value


def weigh_median(values: Iterable[tuple[float, int]]) -> float | None:
    """Return the value in the middle, each counted as often as its weight says; None where there is none."""
    known = sorted(values)
    half, passed = sum(weight for _, weight in known) / 2, 0
    for place, (value, weight) in enumerate(known):
        passed += weight
        if passed == half and place + 1 < len(known):
            return (value + known[place + 1][0]) / 2
        if passed > half:
            return value
    return None


def pick_number(row: Mapping[str, Any], key: str, low: float = 0.0, high: float = LARGEST) -> float | None:
    """Return a finite number within bounds, else None."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if low <= value <= high and math.isfinite(value) else None


def pick_count(row: Mapping[str, Any], key: str, high: int = 2**62) -> int | None:
    """Return a whole number that is not negative, else None."""
    value = row.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= high else None


def pick_text(row: Mapping[str, Any], key: str) -> str | None:
    """Return the beginning of a text, else None."""
    value = row.get(key)
    return value[:LONGEST_TEXT] if isinstance(value, str) else None


def pick_flag(row: Mapping[str, Any], key: str) -> bool | None:
    """Return true or false, else None."""
    value = row.get(key)
    return value if isinstance(value, bool) else None


def pick_table(row: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return an object, an empty one where there is none."""
    value = row.get(key)
    return value if isinstance(value, dict) else {}
