"""The tables of docs/mfu.md, made from the data they describe, so that they cannot say anything else.

python -m remote_train.metrics.page
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from remote_train.metrics.families import FAMILIES
from remote_train.metrics.peak_table import SOURCES, TABLE, Row

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_DTYPES = ("fp16", "bf16", "tf32", "fp32", "fp8")


def render_peaks() -> str:
    """Return the table of peaks in Markdown, TFLOP/s; the best sources first."""
    rows = sorted(TABLE, key=lambda row: SOURCES.index(row.source))
    parts = []
    for source, found in groupby(rows, key=lambda row: row.source):
        parts.append(f"From {source.full} (shown as `{source.short}`):\n")
        parts.append(_render_table(("card", "SMs", "boost, MHz", *_DTYPES), map(_make_cells, found)))
    return "\n".join(parts)


def render_families() -> str:
    """Return the table of log formats in Markdown."""
    rows = ((family.name, family.rates, family.flops, family.mfu_of) for family in FAMILIES)
    return _render_table(("family", "tokens/s are of", "FLOP/s from", "its MFU is of"), rows)


def _make_cells(row: Row) -> Sequence[str]:
    peaks = [row.peak(dtype) for dtype in _DTYPES]
    figures = ["" if peak is None else f"{peak / 1e12:.1f}" for peak in peaks]
    return (row.label, str(row.sms or ""), str(row.mhz or ""), *figures)


def _render_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    import sys

    sys.stdout.write(f"{render_families()}\n{render_peaks()}")
