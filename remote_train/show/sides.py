"""The text of `compare`: two runs beside each other, then what may be said of them. Pure: what metrics/comparison.py gives in."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from remote_train.metrics.figures import render_mfu
from remote_train.show.columns import render_columns, show_cell, show_number
from remote_train.show.neutral import neutral_text
from remote_train.show.words import (
    DASH,
    render_count,
    render_flops,
    render_loss,
    render_seconds,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def render_comparison(found: Mapping[str, Any], width: int | None) -> str:
    """Return the table and the verdict; `width` in columns of a terminal, None elsewhere."""
    sides = (found["a"], found["b"])
    rows = [
        ("", "A", "B"),
        *((label, *(render(side) for side in sides)) for label, render in _ROWS),
    ]
    step = found["a"]["common_step"]
    if step is not None:
        losses = (show_number(side, "loss", render_loss) for side in sides)
        rows.append((f"loss at step {step:,}", *losses))
        rows.append(("time to it", *(show_number(side, "time_to_step", render_seconds) for side in sides)))
    rows.append(("duration", *(show_number(side, "duration", render_seconds) for side in sides)))
    return render_columns(rows, width) + _render_words(found, width)


def _render_words(found: Mapping[str, Any], width: int | None) -> str:
    lines = [neutral_text(found["sentence"])]
    if found["labels"]:
        lines.append(f"Names only: {neutral_text(', '.join(found['labels']))}")
    lines = lines if width is None else [textwrap.fill(line, width, break_on_hyphens=False) for line in lines]
    return "\n" + "\n".join(lines) + "\n"


def _show_with_source(side: Mapping[str, Any], key: str, render: Callable[[float], str]) -> str:
    source = side["sources"].get(key)
    shown = show_number(side, key, render)
    return shown if source is None or shown == DASH else f"{shown} ({show_cell(source)})"


def _show_mfu(side: Mapping[str, Any]) -> str:
    return _show_with_source(side, "mfu", render_mfu)


def _show_device(side: Mapping[str, Any]) -> str:
    count = side["devices"]
    return show_cell(side["device"]) + (f" x {count}" if count and count > 1 else "")


def _show_dtype(side: Mapping[str, Any]) -> str:
    source = side["dtype_source"]
    return show_cell(side["dtype"]) + (f" ({show_cell(source)})" if source else "")


_ROWS: tuple[tuple[str, Callable[[Mapping[str, Any]], str]], ...] = (
    ("run", lambda side: show_cell(side["run"])),
    ("host", lambda side: show_cell(side["host"])),
    ("state", lambda side: show_cell(side["state"])),
    ("exit", lambda side: show_cell(side["exit"])),
    ("device", _show_device),
    ("peak", lambda side: show_number(side, "peak_flops", render_flops)),
    ("peak from", lambda side: show_cell(side["peak_source"])),
    ("dtype", _show_dtype),
    ("MFU", _show_mfu),
    ("step time", lambda side: _show_with_source(side, "step_seconds", render_seconds)),
    ("tokens/s", lambda side: _show_with_source(side, "tokens_per_second", render_count)),
    ("bottleneck", lambda side: show_cell(side["bottleneck"])),
)
