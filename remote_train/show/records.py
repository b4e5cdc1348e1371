"""Metric records as a table for people: `metrics`. Pure, but for where the rows go.

Where not every record fits, each source keeps its share, evenly thinned; the last one always stays.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from remote_train.metrics.figures import ESTIMATE, render_mfu_cell
from remote_train.show.neutral import neutral_text
from remote_train.show.sources import render_denominator
from remote_train.show.words import (
    DASH,
    get_number,
    measure_cells,
    render_count,
    render_loss,
    render_seconds,
    truncate_cells,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from remote_train.metrics.record import MetricRecord

    Row = Mapping[str, object]

HEADERS = ("STEP", "TIME", "LOSS", "TIME/STEP", "TOK/S", "MFU", "SOURCE", "DTYPE")
TEXTS = ("SOURCE", "DTYPE")
"""Columns of words: these stand left, numbers right."""
LEAST_WANTED = ("DTYPE", "TIME", "TOK/S", "SOURCE", "TIME/STEP")
AT_ONCE = 2000
"""Rows that are measured together; a longer table may grow wider behind them."""
GAP = "  "


class Thinned:
    """Records of one source as they come, of which at most `limit` are kept, evenly."""

    def __init__(self, limit: int) -> None:
        self._limit = max(2, limit)
        self._stride = 1
        self._seen = 0
        self._kept: list[tuple[int, MetricRecord]] = []
        self._last: tuple[int, MetricRecord] | None = None

    def add(self, place: int, record: MetricRecord) -> None:
        """Take one; `place` is its place among those of all sources."""
        self._last = (place, record)
        if self._seen % self._stride == 0:
            self._kept.append(self._last)
        self._seen += 1
        if len(self._kept) >= 2 * self._limit:
            self._kept = self._kept[::2]
            self._stride *= 2

    def choose(self, limit: int) -> list[tuple[int, MetricRecord]]:
        """Return at most `limit`, the first and the last among them."""
        rows = self._kept if self._last in self._kept or self._last is None else [*self._kept, self._last]
        if len(rows) <= limit:
            return rows
        most = max(1, limit - 1)
        return [rows[round(place * (len(rows) - 1) / most)] for place in range(limit)]


def thin(records: Iterable[MetricRecord], limit: int) -> list[MetricRecord]:
    """Return at most `limit` records in their order, from each source an even share."""
    sources: dict[str, Thinned] = {}
    for place, record in enumerate(records):
        sources.setdefault(record.source, Thinned(limit)).add(place, record)
    share = max(2, limit // max(1, len(sources)))
    chosen = [item for source in sources.values() for item in source.choose(share)]
    return [record for _, record in sorted(chosen, key=lambda item: item[0])]


def write_table(records: Iterable[Row], width: int | None, write: Callable[[str], object]) -> int:
    """Write records as a table within `width` columns, None: nothing is cut; return how many there were.

    Below it stands what MFU was divided by, where that is known, as the last record has it.
    """
    widths: dict[str, int] = {}
    count = 0
    foot = ""
    for rows in _batch(records):
        cells = [make_cells(row) for row in rows]
        if not count:
            widths = choose_columns(cells, width)
            write(_render({name: name for name in widths}, widths))
        for row in cells:
            widths = {name: max(size, measure_cells(row[name])) for name, size in widths.items()}
            write(_render(row, widths))
        count += len(rows)
        foot = render_foot(rows) or foot
    if foot:
        write((foot if width is None else textwrap.fill(foot, width)) + "\n")
    return count


def render_foot(rows: Sequence[Row]) -> str:
    """Return what the last MFU of these was divided by, and what the sign beside an estimate means; "" where there is none."""
    rated = [row for row in rows if get_number(row, "mfu") is not None]
    of = render_denominator(rated[-1]) if rated else ""
    estimated = any(row.get("flops_source") == ESTIMATE for row in rated)
    told = "; ~: FLOPs by 6N, not counted" if estimated else ""
    return f"MFU is of {of}{told}" if of else ""


def _batch(records: Iterable[Row]) -> Iterator[list[Row]]:
    held: list[Row] = []
    for record in records:
        held.append(record)
        if len(held) == AT_ONCE:
            yield held
            held = []
    if held:
        yield held


def make_cells(row: Row) -> dict[str, str]:
    """Return a record's cells; the meter's own count of steps stands where the script says none."""
    step = get_number(row, "step")
    step = step if step is not None else get_number(row, "optimizer_step")
    loss = row.get("loss")
    return {
        "STEP": DASH if step is None else f"{step:,.0f}",
        "TIME": _show(row, "time", render_seconds),
        "LOSS": render_loss(loss) if isinstance(loss, int | float) else DASH,
        "TIME/STEP": _show(row, "step_seconds", render_seconds),
        "TOK/S": _show(row, "tokens_per_second", render_count),
        "MFU": _show_mfu(row),
        "SOURCE": neutral_text(str(row.get("source") or DASH)),
        "DTYPE": neutral_text(str(row.get("dtype") or DASH)),
    }


def _show_mfu(row: Row) -> str:
    shown = _show(row, "mfu", render_mfu_cell)
    return f"~{shown}" if row.get("flops_source") == ESTIMATE and shown != DASH else shown


def _show(row: Row, key: str, render: Callable[[float], str]) -> str:
    value = get_number(row, key)
    return DASH if value is None else render(value)


def choose_columns(cells: Sequence[Mapping[str, str]], width: int | None) -> dict[str, int]:
    """Return the columns that say anything and fit, with their widths."""
    used = [name for name in HEADERS if name == "STEP" or any(row[name] != DASH for row in cells)]
    widths = {name: max(len(name), *(measure_cells(row[name]) for row in cells)) for name in used}
    for name in LEAST_WANTED:
        if width is None or sum(widths.values()) + len(GAP) * (len(widths) - 1) <= width:
            break
        widths.pop(name, None)
    return widths


def _render(row: Mapping[str, str], widths: Mapping[str, int]) -> str:
    cells = []
    for name, size in widths.items():
        text = truncate_cells(row[name], size)
        pad = " " * (size - measure_cells(text))
        cells.append(text + pad if name in TEXTS else pad + text)
    return GAP.join(cells).rstrip() + "\n"
