"""Figures beside each other in columns, for `compare` and `bench`. Pure: values in, text out; values from hosts come out neutral."""

from __future__ import annotations

import textwrap
from itertools import zip_longest
from typing import TYPE_CHECKING

from remote_train.show.neutral import neutral_text
from remote_train.show.words import DASH, get_number, measure_cells

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_GAP = "  "
_LEAST = 16  # columns of a cell that is wrapped


def show_cell(value: object) -> str:
    """Return a value as a cell: a dash for what is not known."""
    if value is None or value == "":
        return DASH
    return neutral_text(str(value))


def show_number(row: Mapping[str, object], key: str, render: Callable[[float], str]) -> str:
    """Return a row's number as text, a dash where there is none."""
    value = get_number(row, key)
    return DASH if value is None else render(value)


def render_columns(rows: Sequence[Sequence[str]], width: int | None) -> str:
    """Return rows as aligned columns; within `width` columns of a terminal cells of the later columns are wrapped.

    With None nothing is wrapped: what reads it may be a program.
    """
    if not rows:
        return ""
    widths = [max(measure_cells(row[place]) for row in rows) for place in range(len(rows[0]))]
    over = sum(widths) + len(_GAP) * (len(widths) - 1) - width if width is not None else 0
    while over > 0 and (most := max(widths[1:], default=0)) > _LEAST:
        place = widths.index(most, 1)
        cut = min(over, most - max(_LEAST, _second(widths[1:], most)), most - _LEAST) or 1
        widths[place] -= cut
        over -= cut
    return "".join(_render_row(row, widths) for row in rows)


def _second(widths: Sequence[int], most: int) -> int:
    """Return the next widest column, so that the widest are narrowed evenly."""
    return max((width for width in widths if width < most), default=_LEAST)


def _render_row(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [_wrap(cell, width) for cell, width in zip(row, widths, strict=True)]
    lines = []
    for parts in zip_longest(*cells, fillvalue=""):
        padded = [
            part + " " * (width - measure_cells(part)) for part, width in zip(parts, widths, strict=True)
        ]
        lines.append(_GAP.join(padded).rstrip() + "\n")
    return "".join(lines)


def _wrap(cell: str, width: int) -> list[str]:
    return [cell] if measure_cells(cell) <= width else textwrap.wrap(cell, width) or [cell]
